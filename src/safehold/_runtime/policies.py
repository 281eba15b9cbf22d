"""The settings that people write: pydantic models, checked at once, converted once into the core's own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from tenacity.wait import wait_base

from .._core.backoff import Backoff
from .._core.configuration import ConfigurationError, check_count, check_number
from .._core.gate import GateSettings
from .._core.schedule import ProbeSettings
from .._core.settings import BreakerSettings, Mode
from .._core.window import CountWindow, TimeWindow
from .log import KINDS, SEVERITIES, LogSettings

ModeName = Literal["enforce", "observe", "disabled"]


class _Policy(BaseModel):
    """Frozen settings whose every fault is a `ConfigurationError` that names the field and the value."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, defer_build=True)

    def __init__(self, **settings: Any) -> None:
        for name, value in settings.items():
            if isinstance(value, bool):  # no setting is one; it would pass for 0 or 1
                msg = f"{type(self).__name__}: {name} must not be a bool, got {value!r}"
                raise ConfigurationError(msg)
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigurationError(_told(type(self).__name__, error)) from None


def _told(model: str, error: ValidationError) -> str:
    """Write one line for a person: what was found, with the field and the value it had."""
    faults: list[str] = []
    for fault in error.errors(include_url=False):
        ours = fault.get("ctx", {}).get("error")
        if isinstance(ours, ConfigurationError):
            faults.append(str(ours))
            continue
        field = ".".join(str(part) for part in fault["loc"][:1]) or model
        faults.append(f"{field}: {fault['msg'].lower()}, got {fault['input']!r}")
    return f"{model}: {'; '.join(dict.fromkeys(faults))}"


class BreakerPolicy(_Policy):
    """When a breaker trips, how long it stays open, and what closes it again.

    `failures`: so many failures in a row trip (at least 1; `None`: not judged). Default 5, as Envoy and
    Finagle: fewer trips on a hiccup, more keeps callers waiting for time-outs.
    `failure_rate`: so large a share of the window's calls trips (above 0 to 1; `None`: not judged).
    Default 0.5, as resilience4j and Hystrix.
    `window`: `CountWindow(100)` (default, free per success) or `TimeWindow(30.0)` (reads the clock).
    `min_calls`: no rate is judged on fewer calls (at least 1; default 20, as Hystrix; not more than a
    count window holds).
    `slow_after`: a call of this many seconds or more is slow (above 0; `None`, the default: durations
    are not measured, and no clock is read).
    `slow_rate`: so large a share of slow calls trips (above 0 to 1; default 0.5).
    `cooldown`: a `Backoff`, or any tenacity wait, which is asked with the number of the cooldown as its
    attempt, outside every lock.
    `successes`: trials or probes in a row that close (at least 1; default 1).
    `lease`: a trial that takes longer, in seconds, counts as failed (above 0; default 30).
    `spread`: share of the wait by which the `retry_after` of refused callers is drawn out, evenly and never
    shortened (0 to 1; default 0), so that they do not all come back in one moment.
    `mode`: `"enforce"`; `"observe"` decides and reports but never refuses; `"disabled"` lets all through
    and says `unknown`.

    Thresholds and deadlines are inclusive. Raises `ConfigurationError`.
    """

    failures: int | None = 5
    failure_rate: float | None = 0.5
    window: CountWindow | TimeWindow = CountWindow()
    min_calls: int = 20
    slow_after: float | None = None
    slow_rate: float = 0.5
    cooldown: Backoff | wait_base = Backoff()
    successes: int = 1
    lease: float = 30.0
    spread: float = 0.0
    mode: ModeName = "enforce"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.failures is not None:
            check_count("failures", self.failures)
        if self.failure_rate is not None:
            check_number("failure_rate", self.failure_rate, above=0, most=1)
        check_count("min_calls", self.min_calls)
        if self.slow_after is not None:
            check_number("slow_after", self.slow_after, above=0)
        check_number("slow_rate", self.slow_rate, above=0, most=1)
        check_count("successes", self.successes)
        check_number("lease", self.lease, above=0)
        check_number("spread", self.spread, least=0, most=1)
        rated = self.failure_rate is not None or self.slow_after is not None
        if rated and isinstance(self.window, CountWindow) and self.min_calls > self.window.size:
            msg = (
                f"min_calls={self.min_calls} is larger than window={self.window!r}: "
                "the rates would never be judged"
            )
            raise ConfigurationError(msg)
        if self.slow_after is not None and self.slow_after >= self.lease:
            msg = (
                f"slow_after={self.slow_after:g} is not below lease={self.lease:g}: "
                "a trial would fail before it could be slow"
            )
            raise ConfigurationError(msg)
        return self

    @property
    def cooldown_wait(self) -> wait_base | None:
        """The tenacity wait that decides the cooldown, if one does."""
        return None if isinstance(self.cooldown, Backoff) else self.cooldown

    def to_settings(self, gate: GateSettings) -> BreakerSettings:
        """Give the core's settings, with the settle times of `gate`."""
        return BreakerSettings(
            failures=self.failures,
            failure_rate=self.failure_rate,
            window=self.window,
            min_calls=self.min_calls,
            slow_after=self.slow_after,
            slow_rate=self.slow_rate,
            cooldown=self.cooldown if isinstance(self.cooldown, Backoff) else Backoff(),
            successes=self.successes,
            lease=self.lease,
            spread=self.spread,
            mode=Mode(self.mode),
            settle_min=gate.settle_min,
            settle_max=gate.settle_max,
        )


class ProbePolicy(_Policy):
    """How a dependency is probed.

    `timeout`: a probe that takes longer, in seconds, has failed and is abandoned (above 0; default 1: a
    server that needs longer for a ping is not well).
    `interval`: seconds between probes while the breaker is closed (at least `timeout`; `None`, the
    default: only recovery and the gate ask for probes).
    `jitter`: share of the interval that chance may take away, 0 to 1 (default 0.2), so that a fleet does
    not probe in step.

    Raises `ConfigurationError`.
    """

    timeout: float = 1.0
    interval: float | None = None
    jitter: float = 0.2

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.to_settings()
        return self

    def to_settings(self) -> ProbeSettings:
        """Give the core's settings."""
        return ProbeSettings(timeout=self.timeout, interval=self.interval, jitter=self.jitter)


class GatePolicy(_Policy):
    """When the gate holds destructive operations back.

    `startup_grace`: automatic operations wait so many seconds after the start (at least 0; default 30:
    a process that has just begun has seen nothing yet).
    `implicit_scope`: without an open scope, an automatic operation waits until so many seconds have
    passed since the last miss of each dependency that it requires (at least 0; default 60: one round of
    a usual periodic job).
    `settle_min`, `settle_max`: bounds, in seconds, of the settle time after an outage, which is as long
    as the outage was (0 <= min <= max; default 30 and 600: long enough for the heartbeats that were
    missed to arrive, short enough that a long night does not block the day).
    `stall_after`: a process that did not run for so many seconds more than it should have, or whose event
    loop did not, is not trusted (at least 0.5; default 2, as Redis Sentinel's tilt mode). `quiet_time`: it
    holds operations back for so many seconds afterwards (at least 0; default 30, as there).
    `mode`: `"enforce"`; `"observe"` runs the operation and reports what would have blocked it.

    Raises `ConfigurationError`.
    """

    startup_grace: float = 30.0
    implicit_scope: float = 60.0
    settle_min: float = 30.0
    settle_max: float = 600.0
    stall_after: float = 2.0
    quiet_time: float = 30.0
    mode: Literal["enforce", "observe"] = "enforce"

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_number("startup_grace", self.startup_grace, least=0)
        check_number("implicit_scope", self.implicit_scope, least=0)
        check_number("settle_min", self.settle_min, least=0)
        check_number("settle_max", self.settle_max, least=0)
        check_number("stall_after", self.stall_after, least=0.5)
        check_number("quiet_time", self.quiet_time, least=0)
        if self.settle_min > self.settle_max:
            msg = f"settle_min={self.settle_min:g} is larger than settle_max={self.settle_max:g}"
            raise ConfigurationError(msg)
        return self

    def to_settings(self) -> GateSettings:
        """Give the core's settings."""
        return GateSettings(
            startup_grace=self.startup_grace,
            implicit_scope=self.implicit_scope,
            settle_min=self.settle_min,
            settle_max=self.settle_max,
            stall_after=self.stall_after,
            quiet_time=self.quiet_time,
            enforce=self.mode == "enforce",
        )


class LogPolicy(_Policy):
    """How much the log says, and how severe it is.

    `lines`: after so many lines about transitions of one dependency in a window (at least 1; default 8: an
    outage and the way out of it), further ones are summed up in one line when the window ends.
    `window`: its length in seconds (above 0; default 60). It is also how often refused calls are counted, and
    repeated blocks.
    `severity`: other severities for kinds of lines, such as `{"dependency.degraded": "info"}`: `"debug"`,
    `"info"`, `"warning"`, `"error"`, `"critical"`, or `"off"` to leave them out.

    Raises `ConfigurationError`.
    """

    lines: int = 8
    window: float = 60.0
    severity: Mapping[str, str] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_count("lines", self.lines)
        check_number("window", self.window, above=0)
        for kind, severity in self.severity.items():
            if kind not in KINDS:
                msg = f"severity names {kind!r}, which is no kind of line; there are: {', '.join(KINDS)}"
                raise ConfigurationError(msg)
            if severity not in SEVERITIES:
                msg = f"severity of {kind} must be one of {', '.join(SEVERITIES)}, got {severity!r}"
                raise ConfigurationError(msg)
        return self

    def to_settings(self) -> LogSettings:
        """Give the log's settings."""
        return LogSettings(self.lines, self.window, dict(self.severity))


P = TypeVar("P")


@cache
def _default(kind: Any) -> Any:
    """Make the one policy that all share who name none."""
    return kind()


def check_policy(name: str, value: P | None, kind: type[P]) -> P:
    """Give `value`, or the defaults for `None`; raise `ConfigurationError` for anything else."""
    if value is None:
        shared: P = _default(cast("Any", kind))
        return shared
    if not isinstance(value, kind):
        msg = f"{name} must be a {kind.__name__}, got {cast('object', value)!r}"
        raise ConfigurationError(msg)
    return value
