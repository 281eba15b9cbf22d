"""A Safehold in which everything that is exported has happened."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest

from safehold import Backoff, BreakerPolicy, Dependency, GatePolicy, OperationBlocked, Refused, Safehold
from safehold._runtime.prober import ProbeRun, claim
from safehold.testing.clock import ManualClock

POLICY = BreakerPolicy(
    failures=3, failure_rate=None, slow_after=1.0, cooldown=Backoff(first=10.0, cap=60.0, jitter=0.0)
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def health(clock: ManualClock) -> Safehold:
    """One whose start-up grace is over."""
    return Safehold("svc", clock=clock, rng=random.Random(1), gate=GatePolicy(startup_grace=0.0))


@pytest.fixture
def redis(health: Safehold) -> Dependency:
    return health.dependency("redis", critical=True, policy=POLICY, probe=lambda: None)


@pytest.fixture
def plain(health: Safehold) -> Dependency:
    """One whose calls are not measured."""
    return health.dependency("plain", policy=POLICY.model_copy(update={"slow_after": None}))


def call(dependency: Dependency, clock: ManualClock, seconds: float, error: BaseException | None) -> None:
    """Make a guarded call that takes some time."""
    with suppress(Refused, TimeoutError, ValueError), dependency.permit():
        clock.advance(seconds)
        if error is not None:
            raise error


def probe(dependency: Dependency, clock: ManualClock, seconds: float, error: BaseException | None) -> None:
    """Let a probe of it end after some time."""
    dependency._order()
    run = claim(dependency)
    assert isinstance(run, ProbeRun)
    clock.advance(seconds)
    run.finish(error)


def live(health: Safehold, redis: Dependency, clock: ManualClock) -> dict[str, Any]:
    """Let everything happen that is counted; give what has to be counted, by metric and attributes."""
    end = health.destructive("session.end", subject="session")(lambda session: session)

    @health.destructive("session.list", trigger="requested")
    def list_() -> str:
        return "listed"

    for _ in range(4):
        call(redis, clock, 0.02, None)
    probe(redis, clock, 0.3, None)
    list_()
    call(redis, clock, 2.0, TimeoutError())
    call(redis, clock, 0.0, TimeoutError())
    call(redis, clock, 0.0, TimeoutError())
    for _ in range(5):
        call(redis, clock, 0.0, None)
    for _ in range(2):
        with suppress(OperationBlocked):
            end("s1")
    grant = health.grant(
        operation="session.end",
        subjects=["s1"],
        actor="ops",
        reason="stuck",
        overrides=["dependency_unhealthy", "unresolved_miss", "recent_miss"],
    )
    health.force(grant, end, "s1")
    clock.advance(10.0)
    probe(redis, clock, 0.7, TimeoutError())
    return {
        "safehold.call.ended": {("redis", "success"): 5, ("redis", "failure"): 4},
        "safehold.call.refused": {("redis", "true"): 5, ("redis", "false"): 0},
        "safehold.operation.blocked": {("session.end", "dependency_unhealthy", "true"): 2},
        "safehold.operation.forced": {("session.end", "dependency_unhealthy"): 1},
        "safehold.operation.executed": {("session.list", "done"): 1, ("session.end", "done"): 1},
        "safehold.dependency.transitions": {
            ("redis", "healthy"): 1,
            ("redis", "degraded"): 1,
            ("redis", "unhealthy"): 2,
            ("redis", "recovering"): 1,
        },
        "safehold.dependency.level": {("redis",): 2},
        "safehold.dependency.critical": {("redis",): 1},
        "safehold.dependency.held": {("redis",): 0},
    }


DURATIONS = {
    ("safehold.call.duration", "success"): (4, 0.08),
    ("safehold.call.duration", "failure"): (3, 2.0),
    ("safehold.probe.duration", "success"): (1, 0.3),
    ("safehold.probe.duration", "failure"): (1, 0.7),
}
"""How often, and how long in all: what `live` measures."""
