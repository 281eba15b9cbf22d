"""What a reader of the OpenTelemetry SDK collects is what happened; spans are told where they were open."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from safehold import (
    ConfigurationError,
    Dependency,
    DependencyUnhealthy,
    GatePolicy,
    OperationBlocked,
    Safehold,
)
from safehold.surfaces._metrics import METRICS, Kind
from safehold.surfaces.otel import export
from safehold.testing.clock import ManualClock

from .conftest import DURATIONS, call, live

Points = dict[frozenset[tuple[str, str]], Any]


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    provider = MeterProvider([reader])
    yield provider
    provider.shutdown()


@pytest.fixture
def tracer() -> trace.Tracer:
    return TracerProvider().get_tracer("test")


def collect(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Give the collected metrics by name."""
    data = reader.get_metrics_data()
    if data is None:
        return {}
    found: dict[str, Any] = {}
    for resource in data.resource_metrics:
        for scope in resource.scope_metrics:
            assert scope.scope.name == "safehold"
            found |= {metric.name: metric for metric in scope.metrics}
    return found


def points(metric: Any) -> Points:
    return {frozenset(point.attributes.items()): point for point in metric.data.data_points}


def attributes(metric: Any, values: tuple[str, ...], **more: str) -> frozenset[tuple[str, str]]:
    told = {"safehold.name": "svc", **dict(zip(metric.attributes, values, strict=True)), **more}
    return frozenset(told.items())


def test_everything_is_counted(
    health: Safehold,
    redis: Dependency,
    clock: ManualClock,
    provider: MeterProvider,
    reader: InMemoryMetricReader,
) -> None:
    """Every instrument has the value, the unit and the attributes of what happened."""
    export(health, meter_provider=provider)
    expected = live(health, redis, clock)
    found = collect(reader)
    metrics = {metric.name: metric for metric in METRICS}
    for name, values in expected.items():
        metric = metrics[name]
        told = {labels: point.value for labels, point in points(found[name]).items()}
        assert told == {attributes(metric, labels): value for labels, value in values.items()}, name
    for name, told in found.items():
        assert (told.unit, told.description) == (metrics[name].unit, metrics[name].help)


def test_durations_are_histograms(
    health: Safehold,
    redis: Dependency,
    clock: ManualClock,
    provider: MeterProvider,
    reader: InMemoryMetricReader,
) -> None:
    """Calls that are measured anyway, and probes, in seconds; `error.type` on failure only."""
    export(health, meter_provider=provider)
    live(health, redis, clock)
    found = collect(reader)
    metrics = {metric.name: metric for metric in METRICS}
    for (name, outcome), (number, seconds) in DURATIONS.items():
        more = {"error.type": "TimeoutError"} if outcome == "failure" else {}
        point = points(found[name])[attributes(metrics[name], ("redis", outcome), **more)]
        assert (point.count, point.sum) == (number, pytest.approx(seconds))
        assert point.explicit_bounds[:3] == (0.001, 0.0025, 0.005)
    assert len(points(found["safehold.call.duration"])) == 2


def test_state_is_an_up_down_counter_with_one_series_per_state(
    health: Safehold, redis: Dependency, provider: MeterProvider, reader: InMemoryMetricReader
) -> None:
    """As the conventions want it: 1 for the present state, 0 for the rest, all always there."""
    export(health, meter_provider=provider)
    redis.hold()
    metric = collect(reader)["safehold.dependency.state"]
    assert metric.unit == "1"
    assert metric.data.is_monotonic is False
    told = {point.attributes["safehold.dependency.state"]: point.value for point in metric.data.data_points}
    assert told == {"unknown": 0, "healthy": 0, "degraded": 0, "unhealthy": 1, "recovering": 0}


def test_counters_are_monotonic(
    health: Safehold,
    redis: Dependency,
    clock: ManualClock,
    provider: MeterProvider,
    reader: InMemoryMetricReader,
) -> None:
    """A counter is told as one."""
    export(health, meter_provider=provider)
    live(health, redis, clock)
    found = collect(reader)
    for metric in METRICS:
        if metric.kind is Kind.COUNTER and metric.name in found:
            assert found[metric.name].data.is_monotonic, metric.name


def test_closing_ends_it(
    health: Safehold,
    redis: Dependency,
    clock: ManualClock,
    provider: MeterProvider,
    reader: InMemoryMetricReader,
) -> None:
    """After `close` nothing is measured and nothing is told; another export of the same goes on."""
    first, second = export(health, meter_provider=provider), export(health, meter_provider=MeterProvider())
    first.close()
    assert collect(reader) == {}
    measures = health._engine.measures
    assert (len(measures.durations), len(measures.refusals), len(measures.blocks)) == (1, 1, 1)
    second.close()
    second.close()
    assert (measures.durations, measures.refusals, measures.blocks) == ((), (), ())


def test_what_cannot_be_exported_is_said(health: Safehold) -> None:
    """Two of one name, or nothing, are errors at once."""
    for wrong in [(), (health, Safehold("svc")), ("svc",)]:
        with pytest.raises(ConfigurationError):
            export(*wrong)  # type: ignore[arg-type]


def test_without_an_sdk_nothing_happens(health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    """The API alone is a no-op: an application without a provider is not disturbed."""
    export(health)
    live(health, redis, clock)


# --- spans --------------------------------------------------------------------------------------------


def test_a_refusal_is_told_on_the_current_span(
    health: Safehold, redis: Dependency, clock: ManualClock, tracer: trace.Tracer
) -> None:
    """Why a call was not made stands on the caller's span, and no span is added."""
    export(health, meter_provider=MeterProvider())
    redis.trip("drill")
    with tracer.start_as_current_span("request") as span, suppress(DependencyUnhealthy), redis.permit():
        pytest.fail("refused")
    assert dict(span.attributes) == {  # type: ignore[attr-defined]
        "safehold.outcome": "refused",
        "safehold.dependency.name": "redis",
        "safehold.health": "unhealthy",
        "safehold.reason": "breaker_open",
        "safehold.retry_after": 10.0,
    }


def test_a_hold_has_no_time_to_retry(health: Safehold, redis: Dependency, tracer: trace.Tracer) -> None:
    """What only a person can end says nothing of seconds."""
    export(health, meter_provider=MeterProvider())
    redis.hold()
    with tracer.start_as_current_span("request") as span, suppress(DependencyUnhealthy), redis.permit():
        pytest.fail("refused")
    told = dict(span.attributes)  # type: ignore[attr-defined]
    assert told["safehold.reason"] == "held"
    assert "safehold.retry_after" not in told


@pytest.mark.parametrize("mode", ["enforce", "observe"])
def test_a_block_is_told_on_the_current_span(clock: ManualClock, tracer: trace.Tracer, mode: Any) -> None:
    """Why an operation was not executed stands on the caller's span; observed, it says so."""
    health = Safehold("svc", clock=clock, gate=GatePolicy(startup_grace=0.0, mode=mode))
    health.dependency("redis", critical=True)
    end = health.destructive("session.end")(lambda: None)
    export(health, meter_provider=MeterProvider())
    with tracer.start_as_current_span("request") as span, suppress(OperationBlocked):
        end()
    told = dict(span.attributes)  # type: ignore[attr-defined]
    assert told["safehold.outcome"] == {"enforce": "blocked", "observe": "would_block"}[mode]
    assert (told["safehold.operation.name"], told["safehold.reason"]) == ("session.end", "dependency_unknown")


def test_each_task_has_its_own_span(health: Safehold, redis: Dependency, tracer: trace.Tracer) -> None:
    """A refusal is told where it was met, not where others are."""
    export(health, meter_provider=MeterProvider())
    redis.hold()

    async def work(refused: bool) -> dict[str, Any]:
        with tracer.start_as_current_span("request") as span:
            await asyncio.sleep(0)
            if refused:
                with suppress(DependencyUnhealthy), redis.permit():
                    pytest.fail("refused")
            await asyncio.sleep(0)
            return dict(span.attributes)  # type: ignore[attr-defined]

    async def both() -> list[dict[str, Any]]:
        return await asyncio.gather(work(refused=True), work(refused=False))

    refused, other = asyncio.run(both())
    assert refused["safehold.outcome"] == "refused"
    assert other == {}


def test_a_healthy_call_touches_no_span(
    health: Safehold, redis: Dependency, clock: ManualClock, tracer: trace.Tracer
) -> None:
    """Where nothing is refused, nothing is written; and spans can be left out altogether."""
    export(health, meter_provider=MeterProvider(), spans=False)
    with tracer.start_as_current_span("request") as span:
        call(redis, clock, 0.0, None)
        redis.hold()
        call(redis, clock, 0.0, None)
    assert dict(span.attributes) == {}  # type: ignore[attr-defined]


def test_a_failing_exporter_harms_nobody(health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    """What a hook raises reaches no caller."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    measures = health._engine.measures
    measures.durations = measures.refusals = measures.blocks = (broken,)
    expected = live(health, redis, clock)
    assert redis.status().refusals == expected["safehold.call.refused"]["redis", "true"]
