"""Time: only the monotonic clock decides, and a moved wall clock moves no decision."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

import pytest

from safehold import (
    BreakerPolicy,
    BreakerState,
    DependencyUnhealthy,
    GatePolicy,
    HealthState,
    OperationBlocked,
    Safehold,
    TimeWindow,
)
from safehold.testing.clock import ManualClock

from .support import COOLDOWN, POLICY, Form, answer, cancel, fail, is_refused, make_open, succeed

HOUR = 3600.0
SHIFTS = [HOUR, -HOUR]


@pytest.fixture(params=SHIFTS, ids=["an hour ahead", "an hour back"])
def shift(request: pytest.FixtureRequest, clock: ManualClock) -> Callable[[], None]:
    """Move the wall clock, once, as a time server would."""
    return lambda: clock.set_wall(clock.wall() + request.param)


def test_cooldown(form: Form, redis: Any, clock: ManualClock, shift: Callable[[], None]) -> None:
    """An open breaker lets its trial through when its cooldown is over, neither early nor late."""
    call = form.guard(redis, answer)
    make_open(redis)
    shift()
    assert is_refused(redis)
    assert redis.retry_after == COOLDOWN
    clock.advance(COOLDOWN - 0.25)
    assert is_refused(redis)
    clock.advance(0.25)
    assert call() == "answer"
    assert redis.breaker is BreakerState.CLOSED


def test_lease(redis: Any, clock: ManualClock, shift: Callable[[], None]) -> None:
    """A trial keeps its lease for as long as it was given."""
    make_open(redis)
    clock.advance(COOLDOWN)
    permit = redis.permit()
    permit.__enter__()
    shift()
    clock.advance(29.75)
    assert redis.breaker is BreakerState.HALF_OPEN
    clock.advance(0.25)
    assert redis.breaker is BreakerState.OPEN


def test_settling_and_implicit_scope(
    health: Safehold, redis: Any, clock: ManualClock, shift: Callable[[], None]
) -> None:
    """The waits of the gate are as long as they are."""
    ran: list[int] = []
    destroy = health.destructive("destroy")(lambda: ran.append(1))
    make_open(redis)
    clock.advance(COOLDOWN)
    succeed(redis)
    succeed(redis)
    shift()
    clock.advance(29.75)
    assert redis.state is HealthState.RECOVERING
    clock.advance(0.25)
    assert redis.state is HealthState.HEALTHY
    clock.advance(60)
    cancel(redis)
    succeed(redis)
    shift()
    clock.advance(59.75)
    with pytest.raises(OperationBlocked):
        destroy()
    clock.advance(0.25)
    destroy()
    assert ran == [1]


def test_start_up_grace(clock: ManualClock, shift: Callable[[], None]) -> None:
    """The start-up grace counts from the start, on the monotonic clock."""
    young = Safehold("young", clock=clock, gate=GatePolicy())
    destroy = young.destructive("destroy", requires=())(answer)
    shift()
    clock.advance(29.75)
    with pytest.raises(OperationBlocked):
        destroy()
    clock.advance(0.25)
    assert destroy() == "answer"


def test_time_window(health: Safehold, clock: ManualClock, shift: Callable[[], None]) -> None:
    """A time window forgets after its length, and what is old does not count again."""
    policy = BreakerPolicy(failures=None, failure_rate=0.5, window=TimeWindow(10.0), min_calls=4)
    shaky = health.dependency("shaky", policy=policy)
    fail(shaky, 3)
    shift()
    clock.advance(10)
    fail(shaky)
    assert shaky.breaker is BreakerState.CLOSED
    shift()
    fail(shaky, 3)
    assert shaky.breaker is BreakerState.OPEN


def test_errors_and_reports(
    health: Safehold, redis: Any, clock: ManualClock, shift: Callable[[], None]
) -> None:
    """`retry_after` is untouched by the wall clock; instants for people follow it, so that durations hold."""
    make_open(redis)
    clock.advance(4)
    shift()
    report = health.status()
    known = report.dependencies["redis"]
    assert known.retry_after == COOLDOWN - 4
    assert abs((report.at - known.since).total_seconds() - 4) < 1e-3


def test_a_moving_wall_clock_changes_no_history() -> None:
    """The same calls at the same times give the same events, whatever the wall clock does meanwhile."""

    def history(moves: bool) -> list[tuple[Any, ...]]:
        clock, dice = ManualClock(), random.Random(5)
        health = Safehold("h", clock=clock, rng=random.Random(1), gate=GatePolicy(startup_grace=0.0))
        redis = health.dependency("redis", critical=True, policy=POLICY)
        told: list[tuple[Any, ...]] = []
        health.subscribe(lambda event: told.append((event.at, event.breaker, event.after, event.retry_after)))
        for _ in range(400):
            clock.advance(dice.choice([0.0, 1.0, 6.0, 31.0]))
            jump = dice.choice(SHIFTS)
            if moves:
                clock.set_wall(clock.wall() + jump)
            with contextlib.suppress(DependencyUnhealthy):
                dice.choice([succeed, fail, fail, fail, cancel])(redis)
        return told

    still = history(moves=False)
    assert history(moves=True) == still
    assert {BreakerState.OPEN, BreakerState.HALF_OPEN} <= {event[1] for event in still}


def test_wall_clock_from_before_and_far_beyond(health: Safehold, redis: Any, clock: ManualClock) -> None:
    """A wall clock at the epoch or in another century harms nobody."""
    for wall in (0.0, -86_400.0, 32_503_680_000.0):
        clock.set_wall(wall)
        redis.reset()
        make_open(redis)
        assert is_refused(redis)
        assert health.status().dependencies["redis"].retry_after
        with pytest.raises(OperationBlocked) as caught:
            health.destructive("destroy")(answer)()
        assert "redis is unhealthy" in str(caught.value)
