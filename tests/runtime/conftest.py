"""Fixtures of the runtime's tests: time that stands still, one Safehold, and every form of guard."""

from __future__ import annotations

import random

import pytest

from safehold import Dependency, GatePolicy, Safehold
from safehold.testing.clock import ManualClock

from .support import GATE_FORMS, GUARD_FORMS, POLICY, Form


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def health(clock: ManualClock) -> Safehold:
    """A Safehold whose start-up grace is over."""
    return Safehold("test", clock=clock, rng=random.Random(1), gate=GatePolicy(startup_grace=0.0))


@pytest.fixture
def redis(health: Safehold) -> Dependency:
    """A critical dependency of which nothing is known yet: three failures in a row trip, 10 s cooldown."""
    return health.dependency("redis", critical=True, policy=POLICY)


@pytest.fixture
def api(health: Safehold) -> Dependency:
    """An optional dependency."""
    return health.dependency("api", policy=POLICY)


@pytest.fixture(params=GUARD_FORMS, ids=repr)
def form(request: pytest.FixtureRequest) -> Form:
    """Every way to guard a call."""
    return request.param


@pytest.fixture(params=GATE_FORMS, ids=repr)
def gate_form(request: pytest.FixtureRequest) -> Form:
    """Every way to write a destructive operation."""
    return request.param
