"""What the world is told. The breaker's state and the health are two views of one thing; they meet here."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class BreakerState(StrEnum):
    """Where the state machine in front of a dependency stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class HealthState(StrEnum):
    """What is known of a dependency.

    `unknown`: nothing answered yet since the start, or the breaker is disabled.
    `healthy`: closed, the last miss is resolved, the rates are in order.
    `degraded`: closed, with an unresolved miss, with a rate at half its limit or more, with a facet that
    fails (it refuses writes, a node is lost), or pausing on its own wish.
    `unhealthy`: the breaker is open, or held open by a person.
    `recovering`: half-open, or closed again and not yet settled.
    """

    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    RECOVERING = "recovering"


WORST_FIRST = (
    HealthState.UNHEALTHY,
    HealthState.RECOVERING,
    HealthState.UNKNOWN,
    HealthState.DEGRADED,
    HealthState.HEALTHY,
)
"""The order in which states are told when several could be."""


def severity(state: HealthState) -> int:
    """Rank a state: 0 is the worst."""
    return WORST_FIRST.index(state)


def fold(
    *,
    breaker: BreakerState,
    disabled: bool,
    settling: bool,
    missed: bool,
    answered: bool,
    rates_high: bool,
    impaired: bool = False,
) -> HealthState:
    """Turn the facts of one breaker into its health.

    An unresolved miss is told before "nothing answered yet": both hold automatic operations back, and
    the miss is the more precise news.
    """
    match breaker:
        case _ if disabled:
            return HealthState.UNKNOWN
        case BreakerState.OPEN:
            return HealthState.UNHEALTHY
        case BreakerState.HALF_OPEN:
            return HealthState.RECOVERING
        case _ if settling:
            return HealthState.RECOVERING
        case _ if missed or rates_high or impaired:
            return HealthState.DEGRADED
        case _ if not answered:
            return HealthState.UNKNOWN
        case _:
            return HealthState.HEALTHY


def overall(dependencies: Iterable[tuple[bool, HealthState]]) -> HealthState:
    """Fold (critical, state) pairs into one state.

    Critical dependencies decide, the worst first. An optional one that is not well makes the whole at
    most `degraded`, and one of which nothing is known says nothing. Without any, it is `unknown`.
    """
    states: list[HealthState] = []
    for critical, state in dependencies:
        if critical or state is HealthState.HEALTHY:
            states.append(state)
        elif state is not HealthState.UNKNOWN:
            states.append(HealthState.DEGRADED)
    return min(states, key=severity, default=HealthState.UNKNOWN)
