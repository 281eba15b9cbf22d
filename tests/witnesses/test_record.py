"""How long a record has said nothing: a missing time is not a long one."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from safehold import ConfigurationError
from safehold.witnesses import silent_for

from .support import ABSENT, PRESENT, Service, unproven

NOW = 1_800_000_000.0
ODD: dict[str, Any] = {
    "null": None,
    "zero": 0,
    "empty": "",
    "negative": -1.0,
    "future": NOW + 0.001,
    "no zone": datetime(2026, 1, 1),
    "text": "2026-01-01T00:00:00",
    "milliseconds": (NOW - 3600) * 1000,
    "the age itself": 3600.0,
    "nan": float("nan"),
    "infinite": float("-inf"),
    "bool": True,
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_t60_a_time_that_is_none_is_unknown(service: Service, odd: Any) -> None:
    """None of them is "very old"; a good time in their place is acted upon."""
    times = {"odd": odd, "old": NOW - 3600, "young": NOW - 3599}

    def recorded(subject: str) -> Any:
        return silent_for(times[subject], now=NOW, at_least=3600)

    assert service.sweep(recorded, *times) == {"odd", "young"}
    assert service.seen["odd"].presence == "unknown"
    assert "last_seen" in service.seen["odd"].why


def test_the_limit_is_inclusive() -> None:
    """Nothing, just under, exactly, past."""
    for passed, presence in ((0.0, PRESENT), (59.999, PRESENT), (60.0, ABSENT), (61.0, ABSENT)):
        assert silent_for(NOW - passed, now=NOW, at_least=60) is presence


def test_an_aware_datetime() -> None:
    """Whatever its zone."""
    for zone in (UTC, timezone(timedelta(hours=9))):
        assert silent_for(datetime.fromtimestamp(NOW - 61, zone), now=NOW, at_least=60) is ABSENT
        assert silent_for(datetime.fromtimestamp(NOW - 59, zone), now=NOW, at_least=60) is PRESENT


def test_the_present_is_checked_as_well() -> None:
    """A monotonic reading is no time of day, and milliseconds make everything old."""
    assert "now" in unproven(silent_for, NOW - 61, now=1000.0, at_least=60)
    assert silent_for(time.time() - 61, now=time.time(), at_least=60) is ABSENT
    assert "now" in unproven(silent_for, NOW, now=NOW * 1000, at_least=60)


@pytest.mark.parametrize("limit", [0, -1, None, float("inf")])
def test_a_limit_that_is_none(limit: Any) -> None:
    """It must be said, and be some time."""
    with pytest.raises(ConfigurationError, match="at_least"):
        silent_for(NOW, now=NOW, at_least=limit)
