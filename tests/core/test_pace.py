"""When a paced loop ticks: by nothing, just under, exactly and past each limit."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehold import ConfigurationError, HealthState
from safehold._core.pace import MOST_SPREAD, PaceSettings, Rhythm
from safehold._core.retry_budget import RetryCount

HEALTHY, DEGRADED, UNHEALTHY = HealthState.HEALTHY, HealthState.DEGRADED, HealthState.UNHEALTHY
RECOVERING = HealthState.RECOVERING


def settings(**changes: Any) -> PaceSettings:
    usual = {"every": 5.0, "degraded": 20.0, "recovering": 20.0, "unhealthy": math.inf, "jitter": 0.0}
    return PaceSettings(**{**usual, **changes})


def rhythm(health: HealthState = HEALTHY, now: float = 0.0, **changes: Any) -> Rhythm:
    made = Rhythm(settings(**changes))
    made.follow(health, now, draw=0.0)
    return made


def test_the_first_tick_is_at_once() -> None:
    """Who begins a loop wants its first round now, whatever the dice say."""
    made = Rhythm(settings(jitter=1.0))
    made.follow(HEALTHY, 7.0, draw=0.9)
    assert made.due == 7.0


def test_ticks_lie_on_a_grid() -> None:
    """A tick that comes a little late moves none that follow."""
    made = rhythm()
    for expected in (0.0, 5.0, 10.0, 15.0):
        assert made.due == expected
        made.tick(expected + 0.4, draw=0.0)
    assert made.missed == 0


@pytest.mark.parametrize(
    ("asked", "missed", "due"), [(5.0, 0, 10.0), (9.9, 0, 14.4), (10.0, 1, 14.5), (17.0, 2, 21.5)]
)
def test_an_overrun_is_not_replayed(asked: float, missed: int, due: float) -> None:
    """What was missed is counted; one tick is late, and the next keeps its distance."""
    made = rhythm()
    made.tick(0.0, draw=0.0)
    late = made.tick(asked, draw=0.0)
    assert (late, made.missed, made.due, made.number) == (asked - 5.0, missed, pytest.approx(due), 2)


def test_unhealthy_pauses_and_recovery_wakes_at_once() -> None:
    """While paused nothing is due; the end of the pause is."""
    made = rhythm()
    made.tick(0.0, draw=0.0)
    made.follow(UNHEALTHY, 1.0, draw=0.0)
    assert made.due == math.inf
    made.follow(RECOVERING, 100.0, draw=0.0)
    assert made.due == 100.0
    made.tick(100.0, draw=0.0)
    assert made.due == 120.0


@pytest.mark.parametrize(("woken", "due"), [(1.0, 5.0), (4.9, 5.0), (5.0, 5.0), (5.1, 5.1)])
def test_flapping_makes_no_loop_faster(woken: float, due: float) -> None:
    """A pause shorter than the interval leaves the distance between two ticks as it is."""
    made = rhythm()
    made.tick(0.0, draw=0.0)
    made.follow(UNHEALTHY, 0.5, draw=0.0)
    made.follow(HEALTHY, woken, draw=0.0)
    assert made.due == due


def test_a_slower_interval_counts_from_the_last_tick() -> None:
    """A loop that is told to slow down does so from where it stands, and likewise back."""
    made = rhythm()
    made.tick(0.0, draw=0.0)
    made.follow(DEGRADED, 1.0, draw=0.0)
    assert made.due == 20.0
    made.follow(HEALTHY, 2.0, draw=0.0)
    assert made.due == 5.0
    made.follow(DEGRADED, 3.0, draw=0.0)
    made.follow(HEALTHY, 12.0, draw=0.0)
    assert made.due == 12.0


def test_chance_spreads_within_the_jitter() -> None:
    """No tick is put off by more than the share that was allowed, and the grid stays where it is."""
    made = rhythm(jitter=0.1)
    made.tick(0.0, draw=0.5)
    assert made.due == pytest.approx(5.25)
    made.tick(made.due, draw=1.0)
    assert made.due == pytest.approx(10.5)
    made.follow(UNHEALTHY, 11.0, draw=0.0)
    made.follow(HEALTHY, 50.0, draw=1.0, after=3.0)
    assert made.due == pytest.approx(53.5)


def test_waking_is_spread_over_seconds_only() -> None:
    """A loop of an hour does not wait for minutes after an outage."""
    made = rhythm(UNHEALTHY, every=3600.0, degraded=3600.0, recovering=3600.0, jitter=1.0)
    made.follow(HEALTHY, 10.0, draw=1.0)
    assert made.due == 10.0 + MOST_SPREAD


def test_a_round_out_of_turn_ends_no_pause() -> None:
    """A loop that is let through to find out goes on being paused."""
    made = rhythm(UNHEALTHY)
    assert made.tick(3.0, draw=0.0) == 0.0
    assert (made.number, made.due) == (1, math.inf)
    made.follow(HEALTHY, 4.0, draw=0.0)
    assert made.due == 8.0


@given(
    st.lists(
        st.tuples(st.sampled_from(list(HealthState)), st.floats(0, 30), st.floats(0, 0.999)),
        min_size=1,
        max_size=60,
    ),
    st.floats(0, 1),
)
def test_no_history_makes_a_loop_faster_than_usual(
    steps: list[tuple[HealthState, float, float]], jitter: float
) -> None:
    """Whatever the healths and the dice: two ticks keep the usual distance, less the jitter."""
    made, now, last = Rhythm(settings(jitter=jitter)), 0.0, None
    for health, passed, draw in steps:
        now += passed
        made.follow(health, now, draw=draw)
        assert (made.due == math.inf) == (health is UNHEALTHY)
        if made.due <= now:
            made.tick(now, draw=draw)
            assert last is None or now - last >= 5.0 * (1 - max(jitter, 0.1)) - 1e-6
            last = now


@pytest.mark.parametrize(
    "wrong",
    [
        {"every": 0},
        {"every": math.inf},
        {"every": "5"},
        {"jitter": 1.1},
        {"jitter": -0.1},
        {"degraded": 4.9},
        {"recovering": -1},
        {"unhealthy": math.nan},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    """A loop slows down with its dependencies; numbers are numbers."""
    with pytest.raises((ConfigurationError, TypeError)):
        settings(**wrong)


# --- the retry budget ---------------------------------------------------------------------------------


def test_a_floor_and_a_share() -> None:
    """Few calls may be retried by the floor, many by their share."""
    made = RetryCount(0.2, 3, 10.0)
    assert [made.retry(0.0) for _ in range(4)] == [True, True, True, False]
    for _ in range(9):
        made.call(0.0)
    assert [made.retry(0.0) for _ in range(2)] == [True, False]
    made.call(0.0)
    assert [made.retry(0.0) for _ in range(2)] == [True, False]


@pytest.mark.parametrize(("passed", "allowed"), [(9.0, False), (9.999, False), (10.0, True), (99.0, True)])
def test_the_window_rolls(passed: float, allowed: bool) -> None:
    """A retry counts for as long as the window, and no longer."""
    made = RetryCount(0.0, 1, 10.0)
    assert made.retry(0.0)
    assert made.retry(passed) is allowed


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=200))
def test_retries_never_exceed_the_budget(steps: list[tuple[bool, float]]) -> None:
    """In no ten seconds are there more retries than the floor and the share of the calls in twenty."""
    made, now = RetryCount(0.2, 3, 10.0), 0.0
    calls: list[float] = []
    retries: list[float] = []
    for is_call, passed in steps:
        now += passed
        if is_call:
            made.call(now)
            calls.append(now)
        elif made.retry(now):
            retries.append(now)
        recent = sum(1 for at in retries if at > now - 9)
        assert recent <= 3 + 0.2 * sum(1 for at in calls if at > now - 20)
