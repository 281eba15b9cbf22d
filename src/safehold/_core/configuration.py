"""The root of every error of ours, and the checks that settings make once, at construction."""

from __future__ import annotations

import math
from typing import ClassVar


class SafeholdError(Exception):
    """Root of everything that Safehold raises. `code` is stable and safe to match on."""

    code: ClassVar[str] = "safehold_error"


class ConfigurationError(SafeholdError, ValueError, TypeError):
    """A setting or an argument that cannot work; the message names it and the value it had.

    It is a `ValueError` and a `TypeError` at once, so that whichever a caller expects of bad input
    catches it.
    """

    code = "configuration"


def check_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> None:
    """Raise `ConfigurationError` unless `value` is a finite number within the bounds."""
    wanted = " and ".join(
        text
        for bound, text in (
            (above, f"above {above:g}" if above is not None else ""),
            (least, f"at least {least:g}" if least is not None else ""),
            (most, f"at most {most:g}" if most is not None else ""),
        )
        if bound is not None
    )
    ok = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and _is_finite(value)
        and (above is None or value > above)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )
    if not ok:
        msg = f"{name} must be a finite number{' ' + wanted if wanted else ''}, got {value!r}"
        raise ConfigurationError(msg)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int too large for a float
        return False


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Raise `ConfigurationError` unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        msg = f"{name} must be a whole number of at least {least}, got {value!r}"
        raise ConfigurationError(msg)


def check_name(what: str, value: object) -> None:
    """Raise `ConfigurationError` unless `value` is printable, non-blank text of 200 characters at most."""
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 200:
        msg = f"{what} must be a printable, non-empty text of at most 200 characters, got {value!r}"
        raise ConfigurationError(msg)
