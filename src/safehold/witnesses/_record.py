"""How long a record has said nothing. It speaks of the record; see `silent_for`."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from .._core.configuration import check_number
from .._core.evidence import ABSENT, PRESENT, Presence
from .._core.unproven import Unproven

_EARLIEST: Final = 946_684_800.0  # 2000-01-01: what lies before is a default, or another clock's reading
_LATEST: Final = 10_000_000_000.0  # 2286: what lies after is counted in smaller units


def silent_for(last_seen: object, *, now: float, at_least: float) -> Presence:
    """Say whether a record's last sign of life is at least so many seconds old: then that is absent.

    This is the record, not what it is about: whoever could not write looks the same as whoever is dead. Ask
    something else as well, and `combine`.

    `last_seen` is Unix time in seconds or an aware `datetime`, `now` Unix time, read from the same clock
    where possible. Null, zero, text, a negative number, a time to come (milliseconds are), one before the
    year 2000 and a `datetime` without a zone are unproven: a missing time is not a long one.
    """
    check_number("at_least", at_least, above=0)
    passed = _seconds(now, "now") - _seconds(last_seen, "last_seen")
    if passed < 0:
        msg = "last_seen lies in the future"
        raise Unproven(msg)
    return ABSENT if passed >= at_least else PRESENT


def _seconds(given: object, what: str) -> float:
    value = given
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            msg = f"{what} has no time zone"
            raise Unproven(msg)
        value = value.timestamp()
    if not isinstance(value, int | float):
        msg = f"{what} is no time: {type(given).__name__}"
        raise Unproven(msg)
    if not _EARLIEST <= value < _LATEST:  # nor is `nan`
        msg = f"{what} is not a plausible time in seconds"
        raise Unproven(msg)
    return float(value)
