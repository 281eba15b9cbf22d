"""What is exported: every metric with its name, unit and attributes, and how its values are read.

Names follow OpenTelemetry's conventions: a state is one series for each value, 1 for the present one and 0
for the others; durations are histograms in seconds. Prometheus' names are made from them. Reading takes no
lock for longer than a look at one dependency, and runs nothing of the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from .._core.health import HealthState, overall
from .._core.window import counted
from .._runtime.safehold import Safehold

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds, in seconds, of the buckets of durations."""


class Kind(StrEnum):
    """How the values of a metric behave."""

    STATE = "state"
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Sample(NamedTuple):
    """One value, with the values of the metric's attributes; for a state the value is its name."""

    attributes: tuple[str, ...]
    value: float | str


Read = Callable[[Safehold], Iterator[Sample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric. A state has one attribute more, which says which of `states` a series is of."""

    name: str
    kind: Kind
    unit: str
    attributes: tuple[str, ...]
    help: str
    read: Read
    states: tuple[str, ...] = ()

    @property
    def prometheus(self) -> str:
        """Its name in Prometheus, without `_total`."""
        name = self.name.replace(".", "_")
        return f"{name}_seconds" if self.unit == "s" else name

    @property
    def shown(self) -> str:
        """Its name as queries have it."""
        return f"{self.prometheus}_total" if self.kind is Kind.COUNTER else self.prometheus

    @property
    def labels(self) -> tuple[str, ...]:
        """Its labels in Prometheus."""
        return tuple(LABELS[attribute] for attribute in self.attributes)

    @property
    def state_attribute(self) -> str:
        """The attribute that says which state a series is of. In Prometheus it is the metric's own name."""
        return self.name


HOME: Final = "safehold"
"""The label, and the attribute with `.name`, that says of which Safehold a value is."""
LABELS: Final[Mapping[str, str]] = {
    "safehold.dependency.name": "dependency",
    "safehold.health": "health",
    "safehold.outcome": "outcome",
    "safehold.operation.name": "operation",
    "safehold.reason": "reason",
    "safehold.enforced": "enforced",
    "safehold.loop.name": "loop",
    "error.type": "error",
}
_DEPENDENCY: Final = "safehold.dependency.name"
_OPERATION: Final = "safehold.operation.name"
_HEALTH: Final = tuple(str(state) for state in HealthState)


def _overall(health: Safehold) -> Iterator[Sample]:
    yield Sample((), str(overall((handle.critical, handle.state) for handle in health)))


def _state(health: Safehold) -> Iterator[Sample]:
    for handle in health:
        yield Sample((handle.name,), str(handle.state))


def _critical(health: Safehold) -> Iterator[Sample]:
    for handle in health:
        yield Sample((handle.name,), float(handle.critical))


def _held(health: Safehold) -> Iterator[Sample]:
    for handle in health:
        yield Sample((handle.name,), float(handle.held))


def _level(health: Safehold) -> Iterator[Sample]:
    for handle in health:
        yield Sample((handle.name,), handle._breaker.level)


def _transitions(health: Safehold) -> Iterator[Sample]:
    for key, number in list(health._engine.chronicle.transitions.items()):
        yield Sample(key, number)


def _calls(health: Safehold) -> Iterator[Sample]:
    for handle in health:
        yield Sample((handle.name, "success"), handle._breaker.successes)
        yield Sample((handle.name, "failure"), handle._breaker.failures)


def _refused(health: Safehold) -> Iterator[Sample]:
    for handle in health:
        yield Sample((handle.name, "true"), handle._breaker.refusals)
        yield Sample((handle.name, "false"), handle._breaker.suppressed)


def _blocked(health: Safehold) -> Iterator[Sample]:
    for key, number in list(health._engine.chronicle.blocked.items()):
        yield Sample(key, number)


def _forced(health: Safehold) -> Iterator[Sample]:
    for key, number in list(health._engine.chronicle.forced.items()):
        yield Sample(key, number)


def _executed(health: Safehold) -> Iterator[Sample]:
    for key, counter in list(health.ledger.executed.items()):
        yield Sample(key, counted(counter))


def _interval(health: Safehold) -> Iterator[Sample]:
    for pace in health._paces:
        if (interval := pace.report().interval) is not None:
            yield Sample((pace.name,), interval)


def _paused(health: Safehold) -> Iterator[Sample]:
    for pace in health._paces:
        yield Sample((pace.name,), float(pace.report().interval is None))


def _in_flight(health: Safehold) -> Iterator[Sample]:
    for limiter in health._limiters:
        yield Sample((limiter.dependency,), limiter.in_flight)


def _waiting(health: Safehold) -> Iterator[Sample]:
    for limiter in health._limiters:
        yield Sample((limiter.dependency,), limiter.waiting)


def _limit(health: Safehold) -> Iterator[Sample]:
    for limiter in health._limiters:
        yield Sample((limiter.dependency,), limiter.concurrency)


def _saturated(health: Safehold) -> Iterator[Sample]:
    for limiter in health._limiters:
        yield Sample((limiter.dependency,), limiter.report().saturated)


def _measured(_: Safehold) -> Iterator[Sample]:
    """Give nothing: durations are handed to the exporters as they come."""
    return iter(())


def _metric(
    name: str, kind: Kind, unit: str, attributes: tuple[str, ...], text: str, read: Read, *states: str
) -> Metric:
    return Metric(
        name=f"safehold.{name}",
        kind=kind,
        unit=unit,
        attributes=attributes,
        help=text,
        read=read,
        states=states,
    )


METRICS: Final = (
    _metric("overall", Kind.STATE, "1", (), "Health of the whole.", _overall, *_HEALTH),
    _metric("dependency.state", Kind.STATE, "1", (_DEPENDENCY,), "Health.", _state, *_HEALTH),
    _metric(
        "dependency.critical", Kind.GAUGE, "1", (_DEPENDENCY,),
        "Whether the service cannot do without it.", _critical,
    ),
    _metric(
        "dependency.held", Kind.GAUGE, "1", (_DEPENDENCY,), "Whether a person keeps its breaker open.", _held
    ),
    _metric(
        "dependency.level", Kind.GAUGE, "1", (_DEPENDENCY,), "Steps by which its cooldown has grown.", _level
    ),
    _metric(
        "dependency.transitions", Kind.COUNTER, "{transition}", (_DEPENDENCY, "safehold.health"),
        "Changes of breaker or health, by the health after them.", _transitions,
    ),
    _metric(
        "call.ended", Kind.COUNTER, "{call}", (_DEPENDENCY, "safehold.outcome"),
        "Guarded calls that were answered or failed.", _calls,
    ),
    _metric(
        "call.refused", Kind.COUNTER, "{call}", (_DEPENDENCY, "safehold.enforced"),
        "Calls that its breaker refused; not enforced: would have refused while it observes.", _refused,
    ),
    _metric(
        "call.duration", Kind.HISTOGRAM, "s", (_DEPENDENCY, "safehold.outcome"),
        "Duration of guarded calls, where `slow_after` is set.", _measured,
    ),
    _metric(
        "probe.duration", Kind.HISTOGRAM, "s", (_DEPENDENCY, "safehold.outcome"),
        "Duration of probes; `ignored`: it decided nothing.", _measured,
    ),
    _metric(
        "operation.blocked", Kind.COUNTER, "{operation}",
        (_OPERATION, "safehold.reason", "safehold.enforced"),
        "Acts that the gate blocked, by the first reason; not enforced: would have blocked.", _blocked,
    ),
    _metric(
        "operation.forced", Kind.COUNTER, "{operation}", (_OPERATION, "safehold.reason"),
        "Acts with a grant, by the first reason that it overrode, or `none`.", _forced,
    ),
    _metric(
        "operation.executed", Kind.COUNTER, "{operation}", (_OPERATION, "safehold.outcome"),
        "Acts that have ended, forced ones among them, by what the ledger says of them.", _executed,
    ),
    _metric(
        "pace.interval", Kind.GAUGE, "s", ("safehold.loop.name",),
        "Present interval of a paced loop; missing while it is paused.", _interval,
    ),
    _metric(
        "pace.paused", Kind.GAUGE, "1", ("safehold.loop.name",), "Whether a paced loop is paused.", _paused
    ),
    _metric("limiter.in_flight", Kind.GAUGE, "{call}", (_DEPENDENCY,), "Calls in flight.", _in_flight),
    _metric("limiter.waiting", Kind.GAUGE, "{call}", (_DEPENDENCY,), "Callers that wait.", _waiting),
    _metric("limiter.concurrency", Kind.GAUGE, "{call}", (_DEPENDENCY,), "Calls at a time, at most.", _limit),
    _metric(
        "limiter.saturated", Kind.COUNTER, "{call}", (_DEPENDENCY,), "Calls that the limiter refused.",
        _saturated,
    ),
)  # fmt: skip


def samples(metric: Metric, health: Safehold) -> dict[tuple[str, ...], float]:
    """Give the present values by the values of the attributes; of a state, 0 or 1 for each."""
    values: dict[tuple[str, ...], float] = {}
    for attributes, value in metric.read(health):
        if isinstance(value, str):
            values |= {(*attributes, state): float(state == value) for state in metric.states}
        else:
            values.setdefault(attributes, float(value))  # two loops of one name: the first
    return values
