"""What `status()` says: frozen pydantic models that every surface renders."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from .._core.health import BreakerState, HealthState
from .flow_report import LimiterReport, PaceReport, SubsystemReport


class DependencyReport(BaseModel):
    """One dependency at one instant.

    `retry_after` is in seconds, 0 when calls go through, `None` when only a person can end the state.
    `level` is how many steps the cooldown has grown. `late_dropped` counts results that came home after the
    state in which their calls began was over; `suppressed` counts calls that an observing breaker let
    through although it would have refused them. `impaired` names the facets that fail while the rest works
    (`"write"`, a node), each with why. `paused` is how many seconds it has asked to be left alone.
    `because` names the dependency at the root of its trouble, where it is not its own. `epoch` numbers the
    epoch of its data, `None` without an epoch function. `next_probe` is in seconds, `None` when none is
    planned.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    declared: bool
    critical: bool
    state: HealthState
    breaker: BreakerState
    held: bool
    mode: str
    since: datetime
    cause: str
    retry_after: float | None
    impaired: dict[str, str]
    paused: float
    unresolved_miss: bool
    because: str | None = None
    depends_on: tuple[str, ...] = ()
    epoch: int | None = None
    next_probe: float | None = None
    last_miss: datetime | None = None
    generation: int
    level: int
    successes: int
    failures: int
    refusals: int
    suppressed: int
    late_dropped: int
    probed: bool


class HealthReport(BaseModel):
    """The whole at one instant.

    `overall` is the worst state of the critical dependencies; an optional one that is not well makes it
    `degraded` at most. `retry_after` is the longest wait of those that are not well, `None` when one of
    them needs a person. `undeclared` names what is guarded or required but was never declared. `blocked`
    gives the operations that were blocked within the last minute, each with the codes of its newest block.
    `loops`, `limiters` and `subsystems` are those that there are.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    name: str
    at: datetime
    overall: HealthState
    retry_after: float | None
    dependencies: dict[str, DependencyReport]
    undeclared: tuple[str, ...]
    probing: bool
    blocked: dict[str, tuple[str, ...]] = {}
    loops: tuple[PaceReport, ...] = ()
    limiters: tuple[LimiterReport, ...] = ()
    subsystems: tuple[SubsystemReport, ...] = ()
