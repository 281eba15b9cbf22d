"""Export to OpenTelemetry: `export(health)`, once, where the application begins.

Only the API is used; which SDK, exporter and interval is the application's choice. Counters and states are
observable instruments, read when a reader collects. Durations are histograms: those of probes, and those of
calls where `slow_after` is set. A refused call and a blocked operation write attributes on the span that is
current where they were met; no span is ever begun.

    safehold.outcome            refused, blocked, or would_block (the gate observes)
    safehold.dependency.name    which dependency; `self` where none is to blame
    safehold.health             its health
    safehold.operation.name     the operation, of a block
    safehold.reason             the code; of several, the first
    safehold.retry_after        seconds; missing when only a person can end it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

try:
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
except ImportError as error:
    msg = 'safehold.surfaces.otel needs opentelemetry-api: pip install "safehold[otel]"'
    raise ImportError(msg, name=error.name) from error

from .._core.configuration import ConfigurationError
from .._core.gate import Verdict
from .._runtime.measures import Duration
from .._runtime.permit import BreakerNotice
from .._runtime.safehold import Safehold
from .._version import __version__
from ._metrics import BUCKETS, HOME, METRICS, Kind, Metric, samples

__all__ = ["Export", "export"]

_HOME: Final = f"{HOME}.name"


def export(*homes: Safehold, meter_provider: MeterProvider | None = None, spans: bool = True) -> Export:
    """Export the metrics of one or several Safeholds; `close()` of what it gives ends that.

    The attribute `safehold.name` is the name of each. `meter_provider`: `None` for the global one. `spans`:
    whether refusals and blocks are written on the current span. Raises `ConfigurationError` for names that
    are not distinct.
    """
    names = [home.name for home in homes if isinstance(home, Safehold)]
    if not homes or len(names) < len(homes) or len(set(names)) < len(names):
        msg = f"export takes Safeholds with distinct names, got {homes!r}"
        raise ConfigurationError(msg)
    return Export(homes, metrics.get_meter("safehold", __version__, meter_provider), spans=spans)


class Export:
    """What is exported. Made by `export`."""

    def __init__(self, homes: tuple[Safehold, ...], meter: Meter, *, spans: bool) -> None:
        self._homes = homes
        self._histograms: dict[str, Any] = {}
        self._hearing: list[tuple[Safehold, Callable[[Duration], None]]] = []
        self._spans = spans
        for metric in METRICS:
            self._create(meter, metric)
        for home in homes:
            self._begin(home)

    def _create(self, meter: Meter, metric: Metric) -> None:
        read = self._reader(metric)
        match metric.kind:
            case Kind.COUNTER:
                meter.create_observable_counter(metric.name, [read], metric.unit, metric.help)
            case Kind.STATE:
                meter.create_observable_up_down_counter(metric.name, [read], metric.unit, metric.help)
            case Kind.GAUGE:
                meter.create_observable_gauge(metric.name, [read], metric.unit, metric.help)
            case Kind.HISTOGRAM:
                self._histograms[metric.name] = meter.create_histogram(
                    metric.name,
                    metric.unit,
                    metric.help,
                    explicit_bucket_boundaries_advisory=BUCKETS,
                )

    def _reader(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        names = (
            (*metric.attributes, metric.state_attribute) if metric.kind is Kind.STATE else metric.attributes
        )

        def read(_: CallbackOptions) -> Iterable[Observation]:
            for home in self._homes:
                for values, value in samples(metric, home).items():
                    yield Observation(value, {_HOME: home.name, **dict(zip(names, values, strict=True))})

        return read

    def _begin(self, home: Safehold) -> None:
        def take(duration: Duration) -> None:
            self._record(home.name, duration)

        measures = home._engine.measures
        self._hearing.append((home, take))
        measures.durations += (take,)
        if self._spans:
            measures.refusals += (_refused,)
            measures.blocks += (_blocked,)

    def _record(self, home: str, duration: Duration) -> None:
        attributes = {
            _HOME: home,
            "safehold.dependency.name": duration.dependency,
            "safehold.outcome": duration.outcome,
        }
        if duration.error:
            attributes["error.type"] = duration.error
        self._histograms[f"safehold.{duration.of}.duration"].record(duration.seconds, attributes)

    def close(self) -> None:
        """Export no more."""
        for home, take in self._hearing:
            measures = home._engine.measures
            measures.durations = tuple(one for one in measures.durations if one is not take)
            if self._spans:
                measures.refusals = _without(measures.refusals, _refused)
                measures.blocks = _without(measures.blocks, _blocked)
        self._homes = ()
        self._hearing = []


def _without(those: tuple[Any, ...], one: Any) -> tuple[Any, ...]:
    """Take one away, once: another export may have added the same."""
    rest = list(those)
    rest.remove(one)
    return tuple(rest)


def _refused(notice: BreakerNotice) -> None:
    span = trace.get_current_span()
    if span.is_recording():
        attributes = {
            "safehold.outcome": "refused",
            "safehold.dependency.name": notice.dependency,
            "safehold.health": str(notice.state),
            "safehold.reason": notice.reason,
        }
        span.set_attributes(attributes | _wait(notice.retry_after()))


def _blocked(verdict: Verdict, enforced: bool) -> None:  # noqa: FBT001 - the hook's signature
    span = trace.get_current_span()
    if span.is_recording():
        first = verdict.reasons[0]
        attributes = {
            "safehold.outcome": "blocked" if enforced else "would_block",
            "safehold.operation.name": verdict.operation,
            "safehold.dependency.name": first.dependency,
            "safehold.health": str(first.state),
            "safehold.reason": first.code,
        }
        span.set_attributes(attributes | _wait(verdict.retry_after))


def _wait(seconds: float | None) -> dict[str, Any]:
    return {} if seconds is None else {"safehold.retry_after": seconds}
