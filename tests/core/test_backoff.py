"""How long a breaker stays open."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehold._core.backoff import Backoff
from safehold._core.configuration import ConfigurationError

JUST_UNDER_ONE = 1.0 - 2.0**-53


@pytest.mark.parametrize(
    ("backoff", "expected"),
    [
        (Backoff(), [1, 2, 4, 8, 16, 32, 60, 60]),
        (Backoff(first=1, factor=2, cap=5), [1, 2, 4, 5, 5]),
        (Backoff(first=5, factor=1.5, cap=100), [5, 7.5, 11.25]),
        (Backoff(first=3, factor=1, cap=60), [3, 3, 3]),
        (Backoff(first=3, factor=2, cap=3), [3, 3, 3]),
        (Backoff(first=0.5, factor=100, cap=60), [0.5, 50, 60]),
        (Backoff(first=1, factor=2, cap=8), [1, 2, 4, 8, 8]),
    ],
)
def test_each_cooldown_is_longer_until_the_cap(backoff: Backoff, expected: list[float]) -> None:
    """The n-th cooldown is `min(first * factor ** (n - 1), cap)`."""
    assert [backoff.envelope(n) for n in range(1, len(expected) + 1)] == pytest.approx(expected)


@pytest.mark.parametrize(("jitter", "draw", "seconds"), [
    (0.5, 0.0, 8), (0.5, 0.5, 6), (0.5, 1.0, 4), (0.0, 0.9, 8), (1.0, 0.25, 6), (1.0, 0.0, 8), (0.25, 0.5, 7),
])  # fmt: skip
def test_jitter_takes_a_share_away(jitter: float, draw: float, seconds: float) -> None:
    """Jitter is a share of the cooldown that chance takes away; it adds nothing."""
    assert Backoff(first=8, cap=60, jitter=jitter).seconds(1, draw) == pytest.approx(seconds)
    assert Backoff(first=1, cap=8, jitter=jitter).seconds(50, draw) == pytest.approx(seconds)


@given(
    first=st.floats(1e-3, 1e3),
    factor=st.floats(1, 10),
    room=st.floats(1, 1e4),
    jitter=st.floats(0, 1),
    n=st.integers(1, 200),
    draw=st.floats(0, JUST_UNDER_ONE),
)
def test_a_cooldown_keeps_its_bounds(
    first: float, factor: float, room: float, jitter: float, n: int, draw: float
) -> None:
    """Never above the cap, never under the share that jitter leaves, never shorter than the one before it."""
    backoff = Backoff(first=first, factor=factor, cap=first * room, jitter=jitter)
    envelope, seconds = backoff.envelope(n), backoff.seconds(n, draw)
    assert first * (1 - 1e-12) <= envelope <= backoff.cap
    assert envelope * (1 - jitter) * (1 - 1e-12) <= seconds <= envelope
    assert envelope <= backoff.envelope(n + 1) * (1 + 1e-12)
    assert seconds > 0


@pytest.mark.parametrize("n", [10_000, 10**9, 10**18])
@pytest.mark.parametrize("factor", [1.0, 1.0000001, 2.0, 1e300])
def test_no_level_overflows(n: int, factor: float) -> None:
    """However often it failed, the cooldown is a number within the cap."""
    assert 1.0 <= Backoff(first=1.0, factor=factor, cap=60.0).envelope(n) <= 60.0


def test_no_settings_that_are_accepted_overflow() -> None:
    """A cooldown never raises, whatever was configured: it is asked for while the breaker is moving."""
    backoff = Backoff(first=1e-300, factor=1e300, cap=1e300)
    assert [backoff.envelope(n) for n in (1, 2, 3, 4)] == pytest.approx([1e-300, 1.0, 1e300, 1e300])


def test_far_beyond_the_cap_chance_still_spreads() -> None:
    """Capping comes before jitter: long outages end as spread as short ones, over the whole band."""
    rng = random.Random(7)
    backoff = Backoff(first=1, factor=2, cap=60, jitter=0.5)
    drawn = sorted(backoff.seconds(500, rng.random()) for _ in range(5000))
    assert sum(seconds == 60 for seconds in drawn) < 5
    assert drawn[0] < 30.5
    assert drawn[-1] > 59.5
    assert drawn[2500] == pytest.approx(45, abs=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"first": 0}, ["first", "0"]),
        ({"first": -1}, ["first", "-1"]),
        ({"first": float("nan")}, ["first", "nan"]),
        ({"first": float("inf")}, ["first", "inf"]),
        ({"first": True}, ["first", "True"]),
        ({"first": "1"}, ["first", "'1'"]),
        ({"first": None}, ["first", "None"]),
        ({"first": 10**400}, ["first"]),
        ({"factor": 0.99}, ["factor", "0.99"]),
        ({"factor": float("nan")}, ["factor", "nan"]),
        ({"factor": float("inf")}, ["factor", "inf"]),
        ({"factor": True}, ["factor", "True"]),
        ({"cap": float("inf")}, ["cap", "inf"]),
        ({"cap": float("nan")}, ["cap", "nan"]),
        ({"first": 10, "cap": 9}, ["first=10", "cap", "9"]),
        ({"jitter": -0.1}, ["jitter", "-0.1"]),
        ({"jitter": 1.1}, ["jitter", "1.1"]),
        ({"jitter": float("nan")}, ["jitter", "nan"]),
        ({"jitter": False}, ["jitter", "False"]),
    ],
)
def test_a_cooldown_that_cannot_work_is_refused(settings: dict[str, Any], words: list[str]) -> None:
    """Every bad setting is a configuration error with the field and the value; a contradiction names both."""
    with pytest.raises(ConfigurationError) as caught:
        Backoff(**settings)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    "settings", [{"first": 60, "cap": 60}, {"jitter": 0}, {"jitter": 1}, {"factor": 1}, {"first": 1}]
)
def test_the_ends_of_the_ranges_work(settings: dict[str, Any]) -> None:
    """Bounds are inclusive where the documentation says "at least" and "to"."""
    assert Backoff(**settings).seconds(3, 0.5) > 0
