"""Where time comes from. Everything else in the library is handed a clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol, runtime_checkable


@runtime_checkable
class Clock(Protocol):
    """Two readings in seconds; both may be called from any thread.

    `monotonic` never goes back and drives every decision; `wall` is the Unix time that people read.
    """

    def monotonic(self) -> float: ...

    def wall(self) -> float: ...


class SystemClock:
    """The machine's clocks."""

    __slots__ = ()

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)


def at_wall(instant: float, offset: float) -> datetime:
    """Turn a monotonic instant into what people read; `offset` is wall time less monotonic time, now."""
    return datetime.fromtimestamp(instant + offset, UTC)
