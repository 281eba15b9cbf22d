"""What `status()` says of loops, limiters and subsystems: frozen pydantic models."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from .._core.health import HealthState


class PaceReport(BaseModel):
    """One paced loop at one instant.

    `interval` is the present one in seconds, `None` while paused; `why` names the dependency that decides it.
    `next_tick` is in seconds from now, `None` while nobody can say. `running` says whether somebody iterates
    it. `missed` counts ticks that an overrun has cost, `failures` the rounds of a decorated body that raised.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    dependencies: tuple[str, ...]
    priority: int
    running: bool
    health: HealthState
    interval: float | None
    why: str
    next_tick: float | None
    ticks: int
    missed: int
    failures: int


class LimiterReport(BaseModel):
    """One limiter at one instant: calls in flight and waiting, each with its limit, and what was refused.

    `retry_after` is what a refusal would say now, in seconds; 0 while there is room.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    dependency: str
    concurrency: int
    in_flight: int
    max_waiting: int
    waiting: int
    admitted: int
    saturated: int
    retry_after: float


class SubsystemReport(BaseModel):
    """One subsystem at one instant: `full`, `reduced` or `paused`, and `why`."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    dependencies: tuple[str, ...]
    state: str
    why: str
    changes: int
