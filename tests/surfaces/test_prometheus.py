"""What is scraped is what happened, in both of Prometheus' text formats."""

from __future__ import annotations

import asyncio
import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from safehold import ConfigurationError, Dependency, Safehold
from safehold.surfaces import _metrics
from safehold.surfaces._metrics import METRICS, Kind
from safehold.surfaces.prometheus import HealthCollector, Mirror, export
from safehold.testing.clock import ManualClock

from .conftest import DURATIONS, call, live

ALERTS = Path(__file__).parents[2] / "docs" / "alerts.yml"


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def scrape(
    registry: CollectorRegistry, *, classic: bool
) -> dict[str, dict[frozenset[tuple[str, str]], float]]:
    """Scrape and parse, by name and labels; whatever is no valid text raises."""
    if classic:
        families = parse_classic(generate_latest(registry).decode())
    else:
        families = parse_openmetrics(openmetrics.generate_latest(registry).decode())
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in families:
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = frozenset(sample.labels.items())
            assert labels not in series, f"{sample.name} {labels} is there twice"
            series[labels] = sample.value
    return found


def labels_of(
    metric: _metrics.Metric, values: tuple[str, ...], home: str = "svc"
) -> frozenset[tuple[str, str]]:
    return frozenset([("safehold", home), *zip(metric.labels, values, strict=True)])


@pytest.mark.parametrize("multiprocess", [False, True], ids=["collector", "mirror"])
@pytest.mark.parametrize("classic", [True, False], ids=["classic", "openmetrics"])
def test_everything_is_counted(
    health: Safehold,
    redis: Dependency,
    clock: ManualClock,
    registry: CollectorRegistry,
    classic: bool,
    multiprocess: bool,
) -> None:
    """Every counter, gauge and histogram has the value of what happened, under the name that is documented."""
    exporter = export(health, registry=registry, multiprocess=multiprocess)
    expected = live(health, redis, clock)
    if isinstance(exporter, Mirror):
        exporter.refresh()
        exporter.refresh()
    found = scrape(registry, classic=classic)
    metrics = {metric.name: metric for metric in METRICS}
    for name, values in expected.items():
        metric = metrics[name]
        series = {labels_of(metric, labels): float(value) for labels, value in values.items()}
        assert found[metric.shown] == series, name
    for (name, outcome), (number, seconds) in DURATIONS.items():
        metric = metrics[name]
        labels = labels_of(metric, ("redis", outcome))
        assert found[f"{metric.shown}_count"][labels] == number
        assert found[f"{metric.shown}_sum"][labels] == pytest.approx(seconds)
    buckets = found["safehold_probe_duration_seconds_bucket"]
    name = labels_of(metrics["safehold.probe.duration"], ("redis", "success"))
    below = {float(dict(labels)["le"]): value for labels, value in buckets.items() if name < labels}
    assert [bound for bound, value in sorted(below.items()) if value] == [0.5, 1, 2.5, 5, 10, 30, math.inf]


@pytest.mark.parametrize("multiprocess", [False, True], ids=["collector", "mirror"])
def test_one_series_per_state(
    health: Safehold, redis: Dependency, clock: ManualClock, registry: CollectorRegistry, multiprocess: bool
) -> None:
    """The present state is 1, all others are there and 0, also after a change."""
    export(health, registry=registry, multiprocess=multiprocess)

    def states(name: str) -> dict[str, float]:
        found = scrape(registry, classic=True)[name]
        return {dict(labels)[name]: value for labels, value in found.items()}

    others = dict.fromkeys(["unknown", "healthy", "degraded", "unhealthy", "recovering"], 0.0)
    call(redis, clock, 0.0, None)
    assert states("safehold_dependency_state") == others | {"healthy": 1.0}
    redis.hold()
    assert states("safehold_dependency_state") == others | {"unhealthy": 1.0}
    assert states("safehold_overall") == others | {"unhealthy": 1.0}


def test_openmetrics_has_real_statesets_and_units(
    health: Safehold, redis: Dependency, registry: CollectorRegistry
) -> None:
    """The type and the unit of each family are what they are."""
    export(health, registry=registry)
    text = openmetrics.generate_latest(registry).decode()
    assert "# TYPE safehold_dependency_state stateset" in text
    assert "# UNIT safehold_probe_duration_seconds seconds" in text
    assert text.endswith("# EOF\n")


def test_only_what_is_measured_anyway_has_durations(
    health: Safehold, redis: Dependency, plain: Dependency, clock: ManualClock, registry: CollectorRegistry
) -> None:
    """A call whose policy reads no clock is not timed for the metrics."""
    export(health, registry=registry)
    call(plain, clock, 0.5, None)
    call(redis, clock, 0.5, None)
    found = scrape(registry, classic=True)["safehold_call_duration_seconds_count"]
    assert [dict(labels)["dependency"] for labels in found] == ["redis"]


def test_the_making_of_a_coroutine_is_no_call(
    health: Safehold, redis: Dependency, clock: ManualClock, registry: CollectorRegistry
) -> None:
    """A plain function that gives a coroutine is timed where it is awaited, once."""

    async def work() -> None:
        clock.advance(0.5)

    export(health, registry=registry)
    asyncio.run(redis.guard(lambda: work())())
    found = scrape(registry, classic=True)
    assert list(found["safehold_call_duration_seconds_count"].values()) == [1]
    assert list(found["safehold_call_duration_seconds_sum"].values()) == [0.5]


def test_registering_asks_nothing(health: Safehold, registry: CollectorRegistry) -> None:
    """Nothing is read before somebody scrapes."""
    health.dependency("never", probe=lambda: 1 / 0)
    before = health._engine.steps
    export(health, registry=registry)
    assert health._engine.steps == before


def test_two_safeholds_share_a_registry(
    health: Safehold, redis: Dependency, registry: CollectorRegistry
) -> None:
    """They are told apart by their names, in one family each."""
    other = Safehold("other")
    other.dependency("redis")
    export(health, other, registry=registry)
    text = generate_latest(registry).decode()
    assert text.count("# TYPE safehold_dependency_state ") == 1
    found = scrape(registry, classic=True)["safehold_dependency_critical"]
    assert {dict(labels)["safehold"]: value for labels, value in found.items()} == {"svc": 1.0, "other": 0.0}


def test_what_cannot_be_exported_is_said(health: Safehold, registry: CollectorRegistry) -> None:
    """Two of one name, something else, or the same again are errors at once."""
    for wrong in [(), (health, Safehold("svc")), ("svc",)]:
        with pytest.raises(ConfigurationError):
            export(*wrong, registry=registry)  # type: ignore[arg-type]
    export(health, registry=registry)
    with pytest.raises(ValueError, match="safehold_"):
        export(health, registry=registry)


@pytest.mark.parametrize("multiprocess", [False, True], ids=["collector", "mirror"])
def test_closing_leaves_nothing(
    health: Safehold, redis: Dependency, clock: ManualClock, registry: CollectorRegistry, multiprocess: bool
) -> None:
    """After `close` nothing is measured, nothing is exported, and it may be exported anew."""
    exporter = export(health, registry=registry, multiprocess=multiprocess)
    exporter.close()
    assert health._engine.measures.durations == ()
    assert health._engine._subscriptions == ()
    assert scrape(registry, classic=True) == {}
    export(health, registry=registry).close()


def test_paces_and_limiters(health: Safehold, redis: Dependency, registry: CollectorRegistry) -> None:
    """A loop's interval and pause, and a limiter's load, are there."""
    pace = health.pace("redis", every=5.0, name="poll")
    limiter = health.limiter("redis", 3, max_waiting=2)
    export(health, registry=registry)
    assert next(iter(pace)).number == 1
    with limiter:
        found = scrape(registry, classic=True)
    (in_flight,) = found["safehold_limiter_in_flight"].values()
    (limit,) = found["safehold_limiter_concurrency"].values()
    (paused,) = found["safehold_pace_paused"].values()
    (interval,) = found["safehold_pace_interval_seconds"].values()
    assert (in_flight, limit, paused, interval) == (1, 3, 0, 5.0)
    assert dict(next(iter(found["safehold_pace_paused"])))["loop"] == pace.name == "poll"


def test_durations_do_not_pile_up(
    health: Safehold, redis: Dependency, clock: ManualClock, registry: CollectorRegistry
) -> None:
    """What nobody scrapes is counted, not kept."""
    exporter = export(health, registry=registry, multiprocess=False)
    assert isinstance(exporter, HealthCollector)
    for _ in range(2500):
        call(redis, clock, 0.0, None)
    assert len(exporter._new) <= 1000
    assert list(scrape(registry, classic=True)["safehold_call_duration_seconds_count"].values()) == [2500]


def run(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_child_counts_its_own(tmp_path: Path) -> None:
    """A child's scrape holds what the child did, whatever lock its parent held."""
    told = run(
        """
        import os, sys
        from prometheus_client import CollectorRegistry
        from safehold import BreakerPolicy, Safehold
        from safehold.surfaces.prometheus import export
        registry, home = CollectorRegistry(), Safehold("svc")
        redis = home.dependency("redis", policy=BreakerPolicy(slow_after=1.0))
        collector = export(home, registry=registry)
        for _ in range(3):
            with redis.permit():
                pass
        redis.hold()
        collector._lock.acquire()
        if os.fork() == 0:
            redis.reset()
            with redis.permit():
                pass
            value = registry.get_sample_value
            labels = {"safehold": "svc", "dependency": "redis", "outcome": "success"}
            for name in ("safehold_call_ended_total", "safehold_call_duration_seconds_count"):
                print(int(value(name, labels)))
            sys.stdout.flush()
            os._exit(0)
        os.wait()
        """
    )
    assert told == "1\n1\n"


def test_prefork_workers_add_up(tmp_path: Path) -> None:
    """In the multiprocess mode, counters are sums over the workers and a state is how many see it."""
    told = run(
        """
        import os
        from prometheus_client import CollectorRegistry, multiprocess
        from safehold import Safehold
        from safehold.surfaces.prometheus import Mirror, export
        home = Safehold("svc")
        redis = home.dependency("redis")
        mirror = export(home)
        assert isinstance(mirror, Mirror)
        redis.report("success")
        ready, gate = os.pipe(), os.pipe()
        for worker in range(2):
            if os.fork() == 0:
                redis.report("success")
                if worker:
                    redis.hold()
                mirror.refresh()
                os.write(ready[1], b"x")
                os.close(gate[1])
                os.read(gate[0], 1)  # alive until the scrape is over
                os._exit(0)
        for _ in range(2):
            os.read(ready[0], 1)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        labels = {"safehold": "svc", "dependency": "redis"}
        def state(which):
            told = labels | {"safehold_dependency_state": which}
            return registry.get_sample_value("safehold_dependency_state", told)
        print(state("healthy"), state("unhealthy"), state("recovering"))
        print(registry.get_sample_value("safehold_call_ended_total", labels | {"outcome": "success"}))
        os.close(gate[1])
        os.wait(), os.wait()
        """,
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
    )
    assert told == "2.0 1.0 0.0\n3.0\n"


# --- names --------------------------------------------------------------------------------------------


def test_names_are_those_of_the_conventions() -> None:
    """Lower case, dotted, a unit where there is one; labels without the prefix; no name twice."""
    assert len({metric.name for metric in METRICS}) == len({m.prometheus for m in METRICS}) == len(METRICS)
    names = [metric.name for metric in METRICS]
    for metric in METRICS:
        assert re.fullmatch(r"safehold(\.[a-z_]+)+", metric.name)
        assert not metric.name.endswith(("_total", ".total", "_seconds"))
        assert not any(other.startswith(f"{metric.name}.") for other in names), "a name is no namespace"
        assert metric.unit in {"1", "s"} or re.fullmatch(r"\{[a-z]+\}", metric.unit)
        assert (metric.kind is Kind.HISTOGRAM) <= (metric.unit == "s")
        assert metric.help.endswith(".")


def test_without_the_package_the_extra_is_named() -> None:
    """Whoever lacks the package is told what to install."""
    for surface, package in (("prometheus", "prometheus_client"), ("otel", "opentelemetry")):
        told = run(
            f"""
            import sys
            sys.modules["{package}"] = None
            try:
                import safehold.surfaces.{surface}
            except ImportError as error:
                print(error)
            """
        )
        assert f'pip install "safehold[{surface}]"' in told


# --- alerts -------------------------------------------------------------------------------------------


def known_labels() -> dict[str, set[str]]:
    """Give the names that are scraped, each with its labels."""
    found: dict[str, set[str]] = {}
    for metric in METRICS:
        labels = {"safehold", *metric.labels}
        match metric.kind:
            case Kind.HISTOGRAM:
                for suffix, more in (("bucket", {"le"}), ("count", set()), ("sum", set())):
                    found[f"{metric.shown}_{suffix}"] = labels | more
            case Kind.STATE:
                found[metric.shown] = labels | {metric.prometheus}
            case _:
                found[metric.shown] = labels
    return found


def faults(rules: Any) -> list[str]:
    """Say what in alert rules no metric can answer."""
    known, wrong = known_labels(), []
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        used: set[str] = set()
        for name, matchers in re.findall(
            r"\b(safehold_\w+)(?:\{([^}]*)\})?", re.sub(r'"[^"]*"', '""', rule["expr"])
        ):
            if name in known:
                used |= known[name]
                wrong += [
                    f"{name}{{{label}}}"
                    for label in re.findall(r"(\w+)\s*[=!]", matchers)
                    if label not in known[name]
                ]
            elif not re.search(rf"\{{[^}}]*\b{name}\s*=", rule["expr"]):
                wrong.append(name)
        for by in re.findall(r"(?:by|on) \(([^)]*)\)", rule["expr"]):
            wrong += [label for label in by.split(", ") if label not in used | {"job", "instance"}]
        shown = re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))
        wrong += [f"$labels.{label}" for label in shown if label not in used]
    return wrong


def test_the_alert_rules_ask_for_what_there_is() -> None:
    """Every name, label and value in the alert rules is one that the code emits."""
    rules = yaml.safe_load(ALERTS.read_text())
    assert faults(rules) == []
    text = ALERTS.read_text()
    health = {str(state) for state in _metrics.METRICS[0].states}
    assert set(re.findall(r'(?:_state|health)="(\w+)"', text)) <= health
    assert set(re.findall(r'outcome="(\w+)"', text)) <= {"failure", "success", "unknown", "done", "failed"}
    for rule in rules["groups"][0]["rules"]:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["expr"].count("(") == rule["expr"].count(")")


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("safehold_dependency_held", "safehold_dependency_hold"),
        ('{enforced="true"}', '{observed="true"}'),
        ("$labels.operation", "$labels.session"),
        ("safehold_operation_forced_total", "safehold_operation_forced"),
        ("by (job, instance, safehold, dependency)", "by (job, pod, dependency)"),
    ],
)
def test_an_alert_rule_that_is_wrong_is_found(was: str, becomes: str) -> None:
    """The test of the rules is one."""
    text = ALERTS.read_text()
    assert was in text
    assert faults(yaml.safe_load(text.replace(was, becomes))) != []
