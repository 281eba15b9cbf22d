"""The frozen settings that the core's machines run on; the policies are converted into these once."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from .backoff import Backoff
from .window import CountWindow, Window


class Mode(StrEnum):
    """How much a breaker or the gate may do.

    `enforce`: decides, reports and refuses. `observe`: decides and reports, never refuses.
    `disabled`: lets every call through and says `unknown`; misses are still seen.
    """

    ENFORCE = "enforce"
    OBSERVE = "observe"
    DISABLED = "disabled"


class BreakerSettings(NamedTuple):
    """What one breaker runs on; the meaning of each is told at `BreakerPolicy`."""

    failures: int | None = 5
    failure_rate: float | None = 0.5
    window: Window = CountWindow()
    min_calls: int = 20
    slow_after: float | None = None
    slow_rate: float = 0.5
    cooldown: Backoff = Backoff()
    successes: int = 1
    lease: float = 30.0
    spread: float = 0.0
    mode: Mode = Mode.ENFORCE
    settle_min: float = 30.0
    settle_max: float = 600.0
