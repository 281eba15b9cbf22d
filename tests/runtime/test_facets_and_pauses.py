"""A facet that fails by itself, a pause that the dependency asks for, and outcomes reported by hand."""

from __future__ import annotations

from typing import Any

import pytest

from safehold import (
    BreakerState,
    ConfigurationError,
    Dependency,
    DependencyUnhealthy,
    HealthState,
    OperationBlocked,
    Safehold,
)
from safehold._core.breaker import Cause, Outcome
from safehold._runtime.classify import Judgement
from safehold._runtime.permit import WRITES, Permit
from safehold.testing.clock import ManualClock

from .support import POLICY, Down, Form, answer, down

REFUSED = Judgement(Outcome.SUCCESS, missed=True, facets=(WRITES,), cause=Cause("read_only", "read-only"))
SHED = Judgement(Outcome.IGNORED, missed=True, cause=Cause("shedding", "answered 429"), pause=30.0)


class Refusal(Exception):
    """A server that answers: not that."""


def write(dependency: Dependency, error: Exception | None = None) -> None:
    with Permit(dependency, classify=lambda _: REFUSED, facets=(WRITES,)):
        if error is not None:
            raise error


def refused_write(dependency: Dependency) -> None:
    with pytest.raises(Refusal):
        write(dependency, Refusal())


def shed(dependency: Dependency) -> None:
    with pytest.raises(Refusal), Permit(dependency, classify=lambda _: SHED):
        raise Refusal


# --- facets ---------------------------------------------------------------------------------------------


def test_refused_writes_leave_the_rest_alone(form: Form, redis: Dependency) -> None:
    """The breaker stays closed however often writes are refused, and reads prove nothing about them."""
    read = form.guard(redis, answer)
    for _ in range(20):
        refused_write(redis)
        assert read() == "answer"
    status = redis.status()
    assert (status.state, status.breaker) == (HealthState.DEGRADED, BreakerState.CLOSED)
    assert status.impaired == {WRITES: "read-only"}
    assert not status.unresolved_miss
    write(redis)
    assert (redis.state, redis.status().impaired) == (HealthState.HEALTHY, {})


def test_a_write_that_began_before_the_refusal_proves_nothing(redis: Dependency) -> None:
    """Only a write that began after it does."""
    early = Permit(redis, facets=(WRITES,)).__enter__()
    refused_write(redis)
    early.succeed()
    assert redis.status().impaired == {WRITES: "read-only"}


def test_a_trial_that_writes_shows_that_writes_work(redis: Dependency, clock: ManualClock) -> None:
    """What a trial has shown, is shown."""
    write(redis)
    refused_write(redis)
    redis.trip()
    clock.advance(redis.retry_after or 0.0)
    write(redis)
    assert redis.status().impaired == {}


def test_a_refused_write_as_trial_closes_and_stays_impaired(redis: Dependency, clock: ManualClock) -> None:
    """It was answered: reads may go on, writes are known to fail."""
    redis.trip()
    clock.advance(redis.retry_after or 0.0)
    refused_write(redis)
    assert (redis.breaker, redis.status().impaired) == (BreakerState.CLOSED, {WRITES: "read-only"})


@pytest.mark.parametrize("trigger", ["automatic", "requested"])
def test_an_operation_that_must_write_is_blocked(health: Safehold, redis: Dependency, trigger: str) -> None:
    """Also one that a person has asked for; one that need not write passes a person's wish."""

    @health.destructive("must write", trigger=trigger, writes=["redis"])
    def must_write() -> str:
        return "done"

    @health.destructive("need not", trigger=trigger)
    def need_not() -> str:
        return "done"

    write(redis)
    assert (must_write(), need_not()) == ("done", "done")
    refused_write(redis)
    redis.guard(answer)()
    with pytest.raises(OperationBlocked) as blocked:
        must_write()
    assert "writes_refused" in [reason.code for reason in blocked.value.reasons]
    assert "read-only" in str(blocked.value.reasons)
    if trigger == "requested":
        assert need_not() == "done"
    else:
        with pytest.raises(OperationBlocked):
            need_not()
    write(redis)
    if trigger == "requested":
        assert must_write() == "done"


def test_what_must_be_written_is_required(health: Safehold, redis: Dependency, api: Dependency) -> None:
    """An optional dependency that an operation writes to counts among those that it requires."""

    @health.destructive("reap", writes=["api"])
    def reap() -> str:
        return "done"

    redis.guard(answer)()
    assert health.check("reap").reasons[0].dependency == "api"
    with pytest.raises(ConfigurationError, match=r"writes=.*'api'.*requires"):
        health.destructive("other", requires=["redis"], writes=["api"])(answer)


def test_a_lost_node_degrades_until_that_node_answers(form: Form, redis: Dependency) -> None:
    """Other answers do not end it."""
    form.guard(redis, answer)()
    redis._impair("node b", Cause("timeout", "timed out"))
    form.guard(redis, answer)()
    assert (redis.state, redis.status().impaired) == (HealthState.DEGRADED, {"node b": "timed out"})
    redis._mend("node b")
    assert (redis.state, redis.status().impaired) == (HealthState.HEALTHY, {})


def test_each_change_of_a_facet_is_told(health: Safehold, redis: Dependency) -> None:
    """A person reads when writes began to fail, why, and when they worked again."""
    told: list[Any] = []
    write(redis)
    health.subscribe(told.append)
    refused_write(redis)
    refused_write(redis)
    write(redis)
    assert [(event.before, event.after) for event in told] == [
        ("healthy", "degraded"),
        ("degraded", "healthy"),
    ]
    assert told[0].cause == Cause("read_only", "read-only")


# --- pauses ---------------------------------------------------------------------------------------------


def test_a_pause_refuses_until_it_is_over(form: Form, redis: Dependency, clock: ManualClock) -> None:
    """Nobody asks before the instant that the dependency named: just under, and exactly."""
    guarded = form.guard(redis, answer)
    guarded()
    shed(redis)
    clock.advance(29.999)
    with pytest.raises(DependencyUnhealthy) as refused:
        guarded()
    assert (refused.value.state, refused.value.reason) == (HealthState.DEGRADED, "paused")
    assert refused.value.retry_after == pytest.approx(0.001)
    assert (redis.breaker, redis.state) == (BreakerState.CLOSED, HealthState.DEGRADED)
    clock.advance(0.001)
    assert guarded() == "answer"
    assert redis.state is HealthState.HEALTHY


def test_a_pause_is_no_failure(form: Form, redis: Dependency, clock: ManualClock) -> None:
    """However often it is asked for, the breaker does not trip."""
    for _ in range(10):
        shed(redis)
        clock.advance(30.0)
    assert redis.breaker is BreakerState.CLOSED
    assert redis.status().failures == 0


def test_a_pause_is_a_lower_bound_for_the_next_trial(
    form: Form, redis: Dependency, clock: ManualClock
) -> None:
    """A breaker that trips meanwhile waits for it, too."""
    guarded = form.guard(redis, down)
    calls = [Permit(redis).__enter__() for _ in range(POLICY.failures or 0)]
    shed(redis)
    for call in calls:
        call.fail(Down())
    assert redis.breaker is BreakerState.OPEN
    assert redis.retry_after == pytest.approx(30.0)
    clock.advance(29.0)
    with pytest.raises(DependencyUnhealthy):
        guarded()


def test_a_longer_pause_stands(redis: Dependency, clock: ManualClock) -> None:
    """A shorter one asked for later does not shorten it."""
    shed(redis)
    redis.report("ignored", retry_after=5)
    assert redis.retry_after == pytest.approx(30.0)
    redis.report("ignored", retry_after=60)
    assert redis.retry_after == pytest.approx(60.0)


def test_an_observing_breaker_lets_through_in_a_pause(health: Safehold, form: Form) -> None:
    """It says what it would have refused."""
    observing = health.dependency("watched", policy=POLICY.model_copy(update={"mode": "observe"}))
    shed(observing)
    assert form.guard(observing, answer)() == "answer"
    assert observing.status().suppressed == 1


def test_probes_wait_for_a_pause(health: Safehold, clock: ManualClock) -> None:
    """The gate orders a probe, and it is due when the pause is over."""
    redis = health.dependency("redis", critical=True, policy=POLICY, probe=answer)
    shed(redis)
    schedule: Any = redis._schedule
    schedule.order()
    assert schedule.due() == clock.monotonic() + 30.0


# --- by hand --------------------------------------------------------------------------------------------


def test_failures_reported_by_hand_trip(form: Form, redis: Dependency) -> None:
    """What a raw socket met counts like what a guard saw."""
    for _ in range(3):
        redis.report("failure", cause="no answer on the raw socket")
    assert redis.breaker is BreakerState.OPEN
    assert redis.status().cause == "no answer on the raw socket"
    with pytest.raises(DependencyUnhealthy, match="no answer on the raw socket"):
        form.guard(redis, answer)()


def test_successes_reported_by_hand_prove_that_it_answers(redis: Dependency) -> None:
    """They resolve a miss."""
    redis.report("failure")
    assert redis.state is HealthState.DEGRADED
    redis.report("success")
    assert redis.state is HealthState.HEALTHY


def test_an_exception_is_judged_by_the_classifier(health: Safehold) -> None:
    """The application's own error is none of the dependency's."""
    redis = health.dependency("redis", policy=POLICY, classify=ConnectionError)
    redis.report("success")
    redis.report(ValueError("mine"))
    assert redis.state is HealthState.HEALTHY
    redis.report(Down())
    assert (redis.state, redis.status().failures) == (HealthState.DEGRADED, 1)


def test_a_failure_reported_by_hand_taints_the_scope(health: Safehold, redis: Dependency) -> None:
    """The miss was in this stretch of work."""
    with health.scope("sweep") as scope:
        redis.report("failure")
        assert scope.tainted
    with health.scope("next") as scope:
        redis.report("success")
        assert not scope.tainted


def test_a_write_reported_by_hand_speaks_of_writes(redis: Dependency) -> None:
    """A refused write does not count against the rest."""
    redis.report("success")
    for _ in range(5):
        redis.report("failure", writes=True, cause="disk full")
    assert (redis.breaker, redis.status().impaired) == (BreakerState.CLOSED, {WRITES: "disk full"})
    redis.report("success")
    assert redis.status().impaired == {WRITES: "disk full"}
    redis.report("success", writes=True)
    assert redis.state is HealthState.HEALTHY


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("good",), "outcome"),
        ((None,), "outcome"),
        (("failure", -1), "retry_after"),
        (("failure", "5"), "retry_after"),
    ],
)
def test_bad_reports_are_named(redis: Dependency, arguments: tuple[Any, ...], name: str) -> None:
    """Nothing is counted of them."""
    outcome, *wait = arguments
    with pytest.raises(ConfigurationError, match=name):
        redis.report(outcome, **({"retry_after": wait[0]} if wait else {}))
    assert redis.state is HealthState.UNKNOWN


def test_an_undeclared_dependency_takes_reports(health: Safehold) -> None:
    """Its misses count already."""
    health["later"].report("failure", writes=True)
    assert health["later"].status().impaired == {WRITES: "reported as failure"}
    health["later"].report("success", writes=True)
    assert health["later"].status().impaired == {}


def test_a_forked_child_knows_nothing_of_facets(redis: Dependency) -> None:
    """What the parent knew is not known here."""
    refused_write(redis)
    shed(redis)
    redis._reborn()
    assert redis.status().impaired == {}
    assert redis.retry_after == 0.0


def test_raised_errors_are_untouched() -> None:
    """The exception of a refused write is the client's own."""
    error = Refusal("no")
    dependency = Safehold().dependency("redis")
    with pytest.raises(Refusal) as caught:
        write(dependency, error)
    assert caught.value is error
