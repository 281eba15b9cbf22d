"""Export to Prometheus: `export(health)`, once, where the application begins.

Nothing works in the background: counters are kept anyway and read when somebody scrapes. Durations are put
into histograms as they come: those of probes, and those of calls where `slow_after` is set.

Under `prometheus_client`'s multiprocess mode, collectors of this kind do not work: what is scraped there
comes from files that only its plain metrics write. `export` sees that and mirrors the values into plain
metrics, with each event and whenever `refresh()` is called. A state or gauge is then the sum over the living
workers, so that of a state is the number of workers that see it.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, Final

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        StateSetMetricFamily,
    )
    from prometheus_client.core import Metric as Family
    from prometheus_client.registry import Collector
except ImportError as error:
    msg = 'safehold.surfaces.prometheus needs prometheus_client: pip install "safehold[prometheus]"'
    raise ImportError(msg, name=error.name) from error

from .._core.configuration import ConfigurationError
from .._runtime.measures import Duration
from .._runtime.safehold import Safehold
from ._metrics import BUCKETS, HOME, METRICS, Kind, Metric, samples

__all__ = ["HealthCollector", "Mirror", "export"]

_MULTIPROCESS: Final = "PROMETHEUS_MULTIPROC_DIR"
_MOST_NEW: Final = 1000  # durations that wait to be counted


def export(
    *homes: Safehold, registry: CollectorRegistry = REGISTRY, multiprocess: bool | None = None
) -> HealthCollector | Mirror:
    """Export the metrics of one or several Safeholds to a registry; `close()` of what it gives ends that.

    The label `safehold` is the name of each. `multiprocess`: whether prometheus_client's multiprocess mode is
    on; `None` looks at its environment variable. Raises `ConfigurationError` for names that are not distinct,
    and `ValueError`, as prometheus_client does, when something is exported to this registry already.
    """
    names = [home.name for home in homes if isinstance(home, Safehold)]
    if not homes or len(names) < len(homes) or len(set(names)) < len(names):
        msg = f"export takes Safeholds with distinct names, got {homes!r}"
        raise ConfigurationError(msg)
    on = _MULTIPROCESS in os.environ if multiprocess is None else multiprocess
    return Mirror(homes, registry) if on else HealthCollector(homes, registry)


class _Exporter:
    """What both ways share: they hear of the durations until they are closed."""

    def __init__(self, homes: tuple[Safehold, ...], registry: CollectorRegistry) -> None:
        self._homes = homes
        self._registry = registry
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._hearing = [(home, _listener(self, home.name)) for home in homes]

    def _begin(self) -> None:
        for home, listener in self._hearing:
            home._engine.measures.durations += (listener,)

    def _end(self) -> None:
        for home, listener in self._hearing:
            measures = home._engine.measures
            measures.durations = tuple(one for one in measures.durations if one is not listener)

    def _begin_again(self) -> None:
        """Begin in a forked child, where the lock may be held by a thread that is not there."""
        self._pid, self._lock = os.getpid(), threading.Lock()

    def observe(self, home: str, duration: Duration) -> None:
        raise NotImplementedError


def _listener(exporter: _Exporter, home: str) -> Any:
    return lambda duration: exporter.observe(home, duration)


class _Durations:
    """How often, and how long, in buckets. Counts of one kind of calls."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        bounds = [*map(str, BUCKETS), "+Inf"]
        return list(zip(bounds, accumulate(self.counts), strict=True))


class HealthCollector(_Exporter, Collector):
    """Reads everything when somebody scrapes. Made by `export`."""

    def __init__(self, homes: tuple[Safehold, ...], registry: CollectorRegistry) -> None:
        super().__init__(homes, registry)
        self._new: deque[tuple[tuple[str, ...], float]] = deque()  # single atomic steps
        self._durations: dict[tuple[str, ...], _Durations] = {}  # by metric and labels  # guarded by _lock
        registry.register(self)
        self._begin()

    def observe(self, home: str, duration: Duration) -> None:
        """Take in how long a call or a probe took."""
        if self._pid != os.getpid():
            self._begin_again()
        key = (f"safehold.{duration.of}.duration", home, duration.dependency, duration.outcome)
        self._new.append((key, duration.seconds))
        if len(self._new) >= _MOST_NEW:
            self._count()

    def _count(self) -> None:
        """Put what is new into the buckets, unless another thread does."""
        if self._pid != os.getpid():
            self._begin_again()
        if self._lock.acquire(blocking=False):
            try:
                while self._new:
                    key, seconds = self._new.popleft()
                    self._durations.setdefault(key, _Durations()).add(seconds)
            finally:
                self._lock.release()

    def _begin_again(self) -> None:
        super()._begin_again()
        self._new.clear()
        self._durations.clear()

    def describe(self) -> Iterable[Family]:
        """Give the families without values: nothing is asked when it is registered."""
        return [_family(metric) for metric in METRICS]

    def collect(self) -> Iterable[Family]:
        """Give the present values."""
        for metric in METRICS:
            family: Any = _family(metric)
            if metric.kind is Kind.HISTOGRAM:
                self._count()
                for (name, *labels), durations in list(self._durations.items()):
                    if name == metric.name:
                        family.add_metric(labels, durations.buckets(), durations.sum)
            for home in self._homes:
                _fill(family, metric, home)
            yield family

    def close(self) -> None:
        """Export no more."""
        self._end()
        self._registry.unregister(self)


_FAMILIES: Final[dict[Kind, Any]] = {
    Kind.STATE: StateSetMetricFamily,
    Kind.GAUGE: GaugeMetricFamily,
    Kind.COUNTER: CounterMetricFamily,
    Kind.HISTOGRAM: HistogramMetricFamily,
}


def _family(metric: Metric) -> Any:
    unit = {"unit": "seconds"} if metric.unit == "s" else {}
    return _FAMILIES[metric.kind](metric.prometheus, metric.help, labels=(HOME, *metric.labels), **unit)


def _fill(family: Any, metric: Metric, home: Safehold) -> None:
    if metric.kind is Kind.STATE:
        states: dict[tuple[str, ...], dict[str, bool]] = {}
        for (*labels, state), value in samples(metric, home).items():
            states.setdefault(tuple(labels), {})[state] = bool(value)
        for values, told in states.items():
            family.add_metric((home.name, *values), told)
        return
    for values, value in samples(metric, home).items():
        family.add_metric((home.name, *values), value)


class Mirror(_Exporter):
    """Mirrors everything into plain metrics, for the multiprocess mode. Made by `export`."""

    def __init__(self, homes: tuple[Safehold, ...], registry: CollectorRegistry) -> None:
        super().__init__(homes, registry)
        self._stale = True
        self._counted: dict[tuple[str, ...], float] = {}  # as mirrored  # guarded by _lock
        self._metrics: dict[str, Any] = {metric.name: _plain(metric, registry) for metric in METRICS}
        self._begin()
        self._subscriptions = [home.subscribe(lambda _: self.refresh()) for home in homes]
        self.refresh()

    def observe(self, home: str, duration: Duration) -> None:
        """Take in how long a call or a probe took."""
        metric = self._metrics[f"safehold.{duration.of}.duration"]
        metric.labels(home, duration.dependency, duration.outcome).observe(duration.seconds)

    def refresh(self) -> None:
        """Mirror the present values. Events do that by themselves; call it where counters should be fresh."""
        if self._pid != os.getpid():
            self._begin_again()
        self._stale = True
        while self._stale and self._lock.acquire(blocking=False):  # else whoever is here does it once more
            try:
                self._stale = False
                for home in self._homes:
                    for metric in METRICS:
                        self._mirror(home, metric)
            finally:
                self._lock.release()

    def _begin_again(self) -> None:
        super()._begin_again()
        self._counted.clear()  # each process counts its own

    def _mirror(self, home: Safehold, metric: Metric) -> None:
        for labels, value in samples(metric, home).items():
            mirrored = self._metrics[metric.name].labels(home.name, *labels)
            if metric.kind is not Kind.COUNTER:
                mirrored.set(value)
                continue
            key = (metric.name, home.name, *labels)
            mirrored.inc(max(0.0, value - self._counted.get(key, 0.0)))
            self._counted[key] = value

    def close(self) -> None:
        """Mirror no more."""
        self._end()
        for subscription in self._subscriptions:
            subscription.close()
        for metric in self._metrics.values():
            self._registry.unregister(metric)


def _plain(metric: Metric, registry: CollectorRegistry) -> Any:
    labels = (HOME, *metric.labels)
    match metric.kind:
        case Kind.COUNTER:
            return Counter(metric.prometheus, metric.help, labels, registry=registry)
        case Kind.HISTOGRAM:
            return Histogram(metric.prometheus, metric.help, labels, registry=registry, buckets=BUCKETS)
        case Kind.STATE:
            labels = (*labels, metric.prometheus)
        case _:
            pass
    return Gauge(metric.prometheus, metric.help, labels, registry=registry, multiprocess_mode="livesum")
