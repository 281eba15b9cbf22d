"""Every state that a small breaker can reach, walked through in every test run."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from .exploration import HANDS, Small, explore

BASE: dict[str, Any] = {
    "failures": 2,
    "failure_rate": None,
    "min_calls": 2,
    "first": 2.0,
    "factor": 2.0,
    "cap": 4.0,
    "lease": 3.0,
    "settle_min": 4.0,
    "settle_max": 4.0,
}
SHARE = {"failures": None, "failure_rate": 0.5, "last": 3}

SMALL = {
    "a person's hands": (Small(BASE, top_level=1), 951),
    "trial after trial": (Small(BASE, hands=()), 1099),
    "two wins to close": (Small({**BASE, "successes": 2}, hands=("trip",), top_level=1), 364),
    "observing": (Small({**BASE, "mode": "observe"}, hands=("hold",), top_level=1), 379),
    "disabled": (Small({**BASE, "mode": "disabled"}, width=3, hands=()), 18),
    "a share of the last three": (Small({**BASE, **SHARE}, hands=(), top_level=1), 1088),
    "hidden attempts": (
        Small({**BASE, **SHARE, "failure_rate": 1.0}, width=1, attempts=True, hands=(), top_level=1),
        548,
    ),
    "a prober with a head start": (
        Small({**BASE, "first": 3.0, "cap": 3.0}, head_start=1.0, hands=(), top_level=1),
        265,
    ),
    "three in flight": (Small(BASE, width=3, hands=(), top_level=1), 547),
    "outages of several lengths": (
        Small({**BASE, "settle_min": 2.0, "settle_max": 6.0}, width=1, hands=("reset",), top_level=1),
        677,
    ),
}
"""What is explored, and how many states it has. A change of the machine that moves a number wants a reason."""

_seen: dict[str, Counter[str]] = {}


def seen(name: str) -> Counter[str]:
    """What the exploration of that name came across; explored once, whoever asks first."""
    if name not in _seen:
        small, states = SMALL[name]
        found = explore(small)
        assert found.states == states
        _seen[name] = found.seen
    return _seen[name]


@pytest.mark.parametrize("name", SMALL)
def test_no_reachable_state_breaks_a_promise(name: str) -> None:
    """Width, leases, recovery, retry-after, journal and the table of health hold in every reachable state."""
    assert seen(name)


SOMETIMES = {
    "a person's hands": [
        "open to closed",
        *(f"health {health}" for health in ("unknown", "healthy", "degraded", "recovering", "unhealthy")),
        *(f"{verb} in {state}" for verb in HANDS for state in ("closed", "open", "half_open")),
        *(f"{verb} with a trial out" for verb in HANDS),
        *(f"late trial ends with {how}" for how in "sfxc"),
    ],
    "trial after trial": [
        "closed to open",
        "open to half_open",
        "half_open to open",
        "half_open to closed",
        "level 3",
        "in flight 2",
        "refused in open",
        "refused in half_open",
        "lease runs out unseen",
        "lease runs out at the answer",
        "late success makes a trial due",
        *(f"trial that lost its lease ends with {how}" for how in "sfxc"),
        *(f"late call ends with {how}" for how in "sfxc"),
        *(f"call of an older era ends with {how}" for how in "sfxc"),
        *(f"trial ends with {how}" for how in "sfxc"),
        "relapse by a miss",
        "relapse by a trip",
        "settled",
    ],
    "two wins to close": ["several wins", "trial ends with s", "trial ends with f", "lease runs out unseen"],
    "observing": ["suppressed in open", "suppressed in half_open", "late success makes a trial due"],
    "disabled": ["in flight 3", "call of an older era ends with s"],
    "a share of the last three": ["closed to open", "relapse by a trip", "health degraded", "settled"],
    "hidden attempts": ["an attempt trips", "an attempt degrades", "late call ends with s"],
    "a prober with a head start": [
        "refused in open",
        "trial ends with s",
        "a caller takes over from the prober",
    ],
    "three in flight": ["in flight 3", "late call ends with f", "call of an older era ends with f"],
    "outages of several lengths": ["settled", "reset in open", "relapse by a miss"],
}
"""What each exploration must have met."""


@pytest.mark.parametrize("name", SMALL)
def test_the_exploration_has_been_where_it_matters(name: str) -> None:
    """A promise that was never put to the test proves nothing: each of these has happened."""
    missing = [what for what in SOMETIMES[name] if not seen(name)[what]]
    assert missing == []
