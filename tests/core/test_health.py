"""The one place where breaker and health meet."""

from __future__ import annotations

from itertools import product

import pytest

from safehold._core.health import WORST_FIRST, BreakerState, HealthState, fold, overall, severity

CLOSED, OPEN, HALF_OPEN = BreakerState.CLOSED, BreakerState.OPEN, BreakerState.HALF_OPEN
UNKNOWN, HEALTHY, DEGRADED = HealthState.UNKNOWN, HealthState.HEALTHY, HealthState.DEGRADED
UNHEALTHY, RECOVERING = HealthState.UNHEALTHY, HealthState.RECOVERING

FACTS = ("disabled", "settling", "missed", "answered", "rates_high")


def folded(breaker: BreakerState, *facts: str) -> HealthState:
    return fold(breaker=breaker, **{fact: fact in facts for fact in FACTS})


@pytest.mark.parametrize(
    ("breaker", "facts", "health"),
    [
        (CLOSED, (), UNKNOWN),
        (CLOSED, ("answered",), HEALTHY),
        (CLOSED, ("missed",), DEGRADED),
        (CLOSED, ("missed", "answered"), DEGRADED),
        (CLOSED, ("rates_high", "answered"), DEGRADED),
        (CLOSED, ("rates_high", "missed", "answered"), DEGRADED),
        (CLOSED, ("rates_high",), DEGRADED),
        (CLOSED, ("settling",), RECOVERING),
        (CLOSED, ("settling", "answered"), RECOVERING),
        (CLOSED, ("settling", "missed", "answered", "rates_high"), RECOVERING),
        (HALF_OPEN, (), RECOVERING),
        (HALF_OPEN, ("settling", "missed", "answered"), RECOVERING),
        (OPEN, (), UNHEALTHY),
        (OPEN, ("settling", "missed", "answered"), UNHEALTHY),
        (OPEN, ("answered",), UNHEALTHY),
        (CLOSED, ("disabled", "answered"), UNKNOWN),
        (OPEN, ("disabled", "answered"), UNKNOWN),
        (HALF_OPEN, ("disabled", "missed"), UNKNOWN),
    ],
)
def test_each_row_of_the_table(breaker: BreakerState, facts: tuple[str, ...], health: HealthState) -> None:
    """Health is what the table makes of the breaker's state and the facts."""
    assert folded(breaker, *facts) is health


def test_healthy_takes_every_fact_to_be_in_order() -> None:
    """Out of all combinations exactly one is healthy: closed, answered, and nothing else the matter."""
    healthy = [
        (breaker, facts)
        for breaker in BreakerState
        for chosen in product([False, True], repeat=len(FACTS))
        if folded(breaker, *(facts := tuple(f for f, on in zip(FACTS, chosen, strict=True) if on))) is HEALTHY
    ]
    assert healthy == [(CLOSED, ("answered",))]


def test_no_trouble_makes_anything_healthy() -> None:
    """One more trouble never turns what is not healthy into healthy."""
    for breaker in BreakerState:
        for chosen in product([False, True], repeat=len(FACTS)):
            facts = {f for f, on in zip(FACTS, chosen, strict=True) if on}
            if folded(breaker, *facts) is not HEALTHY:
                for trouble in ("disabled", "settling", "missed", "rates_high"):
                    assert folded(breaker, *facts, trouble) is not HEALTHY


def test_the_worst_comes_first() -> None:
    """Unhealthy, recovering, unknown, degraded, healthy: the order in which states are told."""
    assert [str(state) for state in WORST_FIRST] == [
        "unhealthy",
        "recovering",
        "unknown",
        "degraded",
        "healthy",
    ]
    assert sorted(HealthState, key=severity) == list(WORST_FIRST)


@pytest.mark.parametrize(
    ("dependencies", "health"),
    [
        ([], UNKNOWN),
        ([(True, HEALTHY)], HEALTHY),
        ([(True, HEALTHY), (True, HEALTHY), (False, HEALTHY)], HEALTHY),
        ([(True, HEALTHY), (True, UNHEALTHY), (True, RECOVERING)], UNHEALTHY),
        ([(True, HEALTHY), (True, RECOVERING), (True, UNKNOWN)], RECOVERING),
        ([(True, HEALTHY), (True, UNKNOWN), (True, DEGRADED)], UNKNOWN),
        ([(True, HEALTHY), (True, DEGRADED)], DEGRADED),
        ([(True, HEALTHY), (False, UNHEALTHY)], DEGRADED),
        ([(True, HEALTHY), (False, RECOVERING)], DEGRADED),
        ([(True, HEALTHY), (False, DEGRADED)], DEGRADED),
        ([(True, HEALTHY), (False, UNKNOWN)], HEALTHY),
        ([(True, UNHEALTHY), (False, HEALTHY)], UNHEALTHY),
        ([(True, UNKNOWN), (False, UNHEALTHY)], UNKNOWN),
        ([(False, UNHEALTHY)], DEGRADED),
        ([(False, HEALTHY)], HEALTHY),
        ([(False, UNKNOWN)], UNKNOWN),
    ],
)
def test_critical_dependencies_decide(
    dependencies: list[tuple[bool, HealthState]], health: HealthState
) -> None:
    """The worst critical one speaks for the whole; an optional one makes it degraded at most."""
    assert overall(dependencies) is health
    assert overall(reversed(dependencies)) is health
