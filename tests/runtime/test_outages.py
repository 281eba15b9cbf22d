"""Whole outages: one seed one story, several dependencies at once, and one that flaps."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from typing import Any

import pytest

from safehold import Dependency, GatePolicy, HealthState, OperationBlocked, Safehold, Transition
from safehold.testing.clock import ManualClock

from .support import POLICY, fail, is_refused, make_healthy, make_open, succeed

JITTERED = POLICY.model_copy(update={"cooldown": POLICY.cooldown.__class__(first=1.0, cap=30.0, jitter=0.5)})


# --- one seed, one story ------------------------------------------------------------------------------


def story(seed: int) -> bytes:
    """Let three dependencies fail and recover as chance will have it, and give every event of it."""
    clock, chance = ManualClock(), random.Random(seed)
    health = Safehold(
        "story", clock=clock, rng=random.Random(seed), gate=GatePolicy(settle_min=5, settle_max=9)
    )
    dependencies = [health.dependency(name, policy=JITTERED) for name in ("redis", "api", "db")]
    told: list[dict[str, Any]] = []
    health.subscribe(lambda event: told.append(asdict(event)) if isinstance(event, Transition) else None)
    for _ in range(400):
        dependency = chance.choice(dependencies)
        if chance.random() >= 0.4:
            is_refused(dependency)  # or it answers
        elif dependency.breaker == "closed" or dependency.retry_after == 0:
            fail(dependency)
        clock.advance(chance.random() * 3)
    return json.dumps(told, sort_keys=True, default=str).encode()


def test_one_seed_gives_one_story_byte_for_byte() -> None:
    """Cooldowns are jittered, and all the same a run can be done again; another seed gives another story."""
    first = story(1)
    assert first == story(1)
    assert first != story(2)
    assert first.count(b'"unhealthy"') > 20, "it was an eventful one"


# --- several at once ----------------------------------------------------------------------------------


@pytest.fixture
def both(health: Safehold) -> tuple[Dependency, Dependency]:
    """Redis and the API, critical and well."""
    two = tuple(health.dependency(name, critical=True, policy=POLICY) for name in ("redis", "api"))
    for dependency in two:
        make_healthy(dependency)
    return two[0], two[1]


def allowed(health: Safehold) -> set[str]:
    with health.scope("look"):
        return {operation.name for operation in health.operations if health.check(operation.name)}


def test_what_runs_while_one_is_back_and_the_other_is_not(
    health: Safehold, both: tuple[Dependency, Dependency], clock: ManualClock
) -> None:
    """Automatic ones wait for all that they require, requested ones for open breakers only."""
    redis, api = both
    for name, options in {
        "redis.auto": {"requires": ["redis"]},
        "api.auto": {"requires": ["api"]},
        "both.auto": {},
        "redis.asked": {"requires": ["redis"], "trigger": "requested"},
        "api.asked": {"requires": ["api"], "trigger": "requested"},
        "both.asked": {"trigger": "requested"},
        "free": {"requires": ()},
    }.items():
        health.destructive(name, **options)(lambda: None)  # type: ignore[arg-type]
    everything = {operation.name for operation in health.operations}
    assert allowed(health) == everything
    make_open(redis)
    make_open(api)
    assert allowed(health) == {"free"}, "both are down"
    assert health.status().overall is HealthState.UNHEALTHY
    clock.advance(10)
    succeed(redis)
    succeed(redis)
    assert redis.state is HealthState.RECOVERING
    assert allowed(health) == {"free", "redis.asked"}, "redis answers and has not settled, the API is down"
    clock.advance(30)
    succeed(redis)
    assert allowed(health) == {"free", "redis.asked", "redis.auto"}, "redis is well, the API is down"
    assert health.status().overall is HealthState.UNHEALTHY
    succeed(api)
    succeed(api)
    assert allowed(health) == everything - {"api.auto", "both.auto"}
    clock.advance(60)
    succeed(api)
    assert allowed(health) == everything
    assert health.status().overall is HealthState.HEALTHY


def test_a_dependency_that_flaps_destroys_nothing_all_the_while(
    health: Safehold, both: tuple[Dependency, Dependency], clock: ManualClock
) -> None:
    """Two hundred flips in a minute: blocked throughout, the cooldown grows, and both are over afterwards."""
    redis, _ = both
    ran: list[int] = []
    reap = health.destructive("reap")(lambda: ran.append(1))
    levels: list[int] = []
    for _ in range(200):
        with health.scope("sweep"):
            if redis.breaker == "closed":
                make_open_or_not(redis)
            elif redis.retry_after == 0:
                succeed(redis)
            with pytest.raises(OperationBlocked):
                reap()
        levels.append(redis.status().level)
        clock.advance(0.3)
    assert ran == []
    assert max(levels) >= 3, "it is asked less and less often"
    while redis.breaker != "closed":
        clock.advance(60)
        if redis.retry_after == 0:
            succeed(redis)
    for _ in range(12):
        clock.advance(60)
        succeed(redis)
    assert redis.state is HealthState.HEALTHY
    assert redis.status().level < max(levels)
    with health.scope("sweep"):
        reap()
    assert ran == [1]


def make_open_or_not(dependency: Dependency) -> None:
    for _ in range(3):
        if dependency.breaker == "closed":
            fail(dependency)
