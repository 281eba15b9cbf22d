"""The breaker, case by case, in the step language of `steps.py`. Every row is a story of its own."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from .machine import SHIPPED, Machine
from .steps import Player, play

CASES: list[tuple[dict[str, Any], str]] = []
"""All rows of this file, for whoever wants to replay them on another copy of the core."""

ROW: dict[str, Any] = {"failures": 3, "failure_rate": None, "first": 4.0, "cap": 32.0, "lease": 10.0}
ONE = {**ROW, "failures": 1}
SHARE = {"failures": None, "failure_rate": 0.5, "last": 10, "min_calls": 4, "first": 4.0, "cap": 32.0}
SLOW = {**ROW, "failures": None, "slow_after": 1.0, "slow_rate": 0.5, "last": 10, "min_calls": 4}
LATELY = {"failures": None, "failure_rate": 0.5, "lately": 10.0, "min_calls": 4, "first": 4.0, "cap": 32.0}


def cases(settings: dict[str, Any], *lines: str, **more: Any) -> pytest.MarkDecorator:
    """Parametrize a test with one row for each line, and keep the rows."""
    rows = [({**settings, **more}, line) for line in lines]
    CASES.extend(rows)
    return pytest.mark.parametrize(("settings", "steps"), rows, ids=[line[:70] for line in lines])


# --- what trips ---------------------------------------------------------------------------------------


@cases(
    ROW,
    "2*f =closed f =open",
    "s 2*f =closed f =open cause=error",
    "2*f s 2*f =closed f =open",
    "2*s 2*f 2*s 2*f =closed f =open",
    "30*(2*f s) =closed",
    "20*(s f) =closed",
    "2*f x c 2*x =closed f =open",
    "a> b> s a:f b:f =closed f =open",
    "a> 2*f a:s 2*f =closed f =open",
)
def test_failures_in_a_row_trip(settings: dict[str, Any], steps: str) -> None:
    """So many failures in a row trip, not one fewer; a success breaks the row, an ignored call does not."""
    play(steps, **settings)


@cases({**ROW, "failures": 1}, "f =open", "s f =open", "x c =closed f =open")
def test_a_limit_of_one_trips_at_the_first_failure(settings: dict[str, Any], steps: str) -> None:
    """With `failures=1` every failure trips."""
    play(steps, **settings)


@cases({**ROW, "failures": None}, "50*f =closed @degraded level=0 s @healthy")
def test_what_is_not_judged_does_not_trip(settings: dict[str, Any], steps: str) -> None:
    """`None` for a rule means that it is not judged."""
    play(steps, **settings)


@cases(
    SHARE,
    "3*f =closed f =open",
    "2*s f =closed f =open",
    "3*s 2*f =closed f =open",
    "3*f s =closed f =open",
    "3*f 5*x =closed f =open",
    "2*f 2*x c =closed",
    "200*s 4*f =closed f =open",
    "4*f",
)
def test_share_of_failures_over_the_last_calls_trips(settings: dict[str, Any], steps: str) -> None:
    """The share trips at its limit exactly, on `min_calls` calls at least, and only a failure is judged."""
    play(steps, **settings)


@cases(
    {**SHARE, "last": 4},
    "f 3*s =closed f =closed f =open",
    "f 2*s f =open",
    "f 4*s f =closed f =open",
    "6*(f 3*s) =closed",
)
def test_count_window_forgets_the_oldest(settings: dict[str, Any], steps: str) -> None:
    """A failure is inside a window of `size` for exactly `size` outcomes."""
    play(steps, **settings)


@cases({**SHARE, "last": 1, "min_calls": 1}, "s f =open told=closed/healthy,open/unhealthy")
def test_window_of_one_trips_once(settings: dict[str, Any], steps: str) -> None:
    """A window of one call trips at the first failure, and tells of it once."""
    play(steps, **settings)


@cases({**SHARE, "failure_rate": 0.75, "last": 4}, "20*(s f) =closed", "s f f =closed f =open")
def test_a_share_never_reached_never_trips(settings: dict[str, Any], steps: str) -> None:
    """Every second call failing is no three of four."""
    play(steps, **settings)


@cases({**SHARE, "failure_rate": 0.4, "min_calls": 10}, "7*s 3*f =closed f =open", "6*s 3*f =closed f =open")
def test_share_is_inclusive(settings: dict[str, Any], steps: str) -> None:
    """Four of ten reaches 0.4, three of ten does not."""
    play(steps, **settings)


@cases({**SHARE, "failures": 2, "min_calls": 10}, "f =closed f =open", "5*(s f) =open", "4*(s f) =closed")
def test_whichever_rule_comes_first_trips(settings: dict[str, Any], steps: str) -> None:
    """Row and share are judged side by side."""
    play(steps, **settings)


@cases(
    LATELY,
    "2*f +1 f =closed f =open",
    "3*f +9.75 f =open",
    "3*f +10 f =closed",
    "3*f +11 3*f =closed f =open",
    "+0.75 3*f +9 f =open",
    "+0.75 3*f +9.25 f =closed",
    "3*f +1000 3*f =closed f =open",
    "100*s +10 3*f =closed f =open",
    "100*s +9 50*f =closed",
    "3*(f +5) 3*f =open",
)
def test_share_of_failures_over_the_last_seconds_trips(settings: dict[str, Any], steps: str) -> None:
    """A time window holds what is younger than its length; a bucket leaves as a whole."""
    play(steps, **settings)


@cases(LATELY, "3*f +9.5 f =open", "3*f +10 f =closed", start=1e9)
def test_time_window_does_not_care_when_it_began(settings: dict[str, Any], steps: str) -> None:
    """The window counts from its own beginning, however large the clock's readings are."""
    play(steps, **settings)


@cases({**LATELY, "lately": 1.0, "min_calls": 2}, "f +1 f =closed", "f +0.75 f =open")
def test_length_of_a_time_window_is_exact_for_short_ones_too(settings: dict[str, Any], steps: str) -> None:
    """An outcome exactly as old as the window is long is outside, whatever a tenth of the length rounds to."""
    play(steps, **settings)


@cases(
    SLOW,
    "3*s! =closed s! =open cause=slow_rate",
    "2*s s! =closed s! =open",
    "3*s! s =closed s! =open",
    "3*s 2*s! =closed s! =open",
    "20*f =closed",
    "3*f! =closed f! =open",
    "9*s 10*(s! 3*s) =closed",
)
def test_share_of_slow_calls_trips(settings: dict[str, Any], steps: str) -> None:
    """Slow successes are judged when they happen; a success that was not slow never trips."""
    play(steps, **settings)


# --- what is told of a closed breaker ------------------------------------------------------------------


@cases(
    ROW,
    "@unknown s @healthy",
    "x @unknown c @degraded s @healthy",
    "f @degraded missed=1 s @healthy missed=0",
    "s c @degraded s @healthy",
    "a> f a:s @degraded s @healthy",
    "a> c a:s @degraded missed=1",
    "a> f s @healthy a:s @healthy",
    "a> f s a:f @degraded",
    "s x @healthy missed=0",
    "a> b> a:f b:s @degraded",
)
def test_only_a_success_that_began_after_a_miss_resolves_it(settings: dict[str, Any], steps: str) -> None:
    """A success proves something about the time since its call began, and not about a miss in between."""
    play(steps, **settings)


@cases(
    {**SHARE, "failure_rate": 0.8, "min_calls": 5},
    "3*s f @degraded s @healthy",
    "2*s 2*f s @degraded",
    "s f 2*s @healthy",
    "2*s f f s @degraded",
    "6*s 3*f s @healthy",
    "4*s 4*f 6*s @degraded told=closed/healthy,closed/degraded s @healthy told=closed/healthy",
    "4*s 4*f 6*s heard=closed/healthy,closed/degraded s heard=closed/healthy",
)
def test_rates_at_half_their_limit_degrade(settings: dict[str, Any], steps: str) -> None:
    """Degraded at half the limit or more on enough calls, and told when successes have lowered it again."""
    play(steps, **settings)


@cases(
    {**LATELY, "failure_rate": 1.0, "min_calls": 2},
    "s f s s @healthy s f s s @healthy",
    "f s f s @degraded told=closed/degraded +10 told=closed/healthy",
    "f s f s +9.75 @degraded +0.25 @healthy cause=time_passed",
)
def test_time_alone_lowers_a_rate_and_nothing_else(settings: dict[str, Any], steps: str) -> None:
    """A rate over seconds falls as its failures leave; a miss without an answer stays for ever."""
    play(steps, **settings)
    play("s f +100000 @degraded missed=1", **settings)


@cases({**SLOW}, "3*s s! @degraded s @healthy", "3*s @healthy s! @degraded")
def test_slow_rate_degrades(settings: dict[str, Any], steps: str) -> None:
    """A share of slow calls at half its limit degrades as well."""
    play(steps, **settings)


@cases(ROW, "s ask=0 reset ask=0 5*s f ask=1 s ask=0", "ask=1 3*f ask=1 +4 s ask=1 s ask=1 +30 ask=0")
def test_successes_are_asked_for_as_long_as_they_can_change_anything(
    settings: dict[str, Any], steps: str
) -> None:
    """The first success of an era is settled, and every one until an outage has settled; later ones are counts."""
    play(steps, **settings)


@cases(
    ROW,
    "a> 2*a~ =closed missed=0 a~ =open a:s late=1 missed=0",
    "a> a~ a:s =closed @healthy failures=1 successes=1",
    "a> 2*a~ a:f =open failures=3",
    "a> 2*a~ a:s 2*f =closed f =open",
    "a> reset 5*a~ =closed failures=0",
    "3*f +4 a> 5*a~ =half_open a:s =closed",
    "3*f +4 a> 5*a~ =half_open a:f =open level=2",
)
def test_hidden_attempts_count_for_the_trip_rule_only(settings: dict[str, Any], steps: str) -> None:
    """A client's own retry inside one call may trip; if the call answers in the end it was no miss."""
    play(steps, **settings)


@cases(
    {"failures": None, "failure_rate": 1.0, "last": 4, "min_calls": 2},
    "s heard=closed/healthy a> a~ heard=closed/degraded a:s heard=closed/healthy",
    "s heard=closed/healthy a> a~ heard=closed/degraded b> b:s heard=closed/healthy",
)
def test_degradation_by_hidden_attempts_ends_with_an_event(settings: dict[str, Any], steps: str) -> None:
    """`degraded -> healthy` is told by the success that caused it, whoever had raised the rate."""
    play(steps, **settings)


# --- open ----------------------------------------------------------------------------------------------


@cases(
    ROW,
    "3*f +3.75 - P- +0.25 a> =half_open",
    "3*f +3.75 - +0.25 Ps =closed",
    "3*f - - P- refusals=3",
    "3*f retry=4 +1 retry=3 +2.75 retry=0.25 +0.25 retry=0 =open +100 retry=0 =open",
    "retry=0 s retry=0",
    "3*f +1000 =open s =closed",
)
def test_cooldown_is_inclusive_and_counts_down(settings: dict[str, Any], steps: str) -> None:
    """A trial may begin at the end of the cooldown exactly, when `retry_after` is 0; reading moves nothing."""
    play(steps, **settings)


@cases(
    {**ONE, "first": 1.0, "cap": 5.0},
    "f retry=1 +1 f retry=2 +2 f retry=4 +4 f retry=5 +5 f retry=5 level=5",
    "f +1 s =closed f level=2 retry=2",
    "f +1 f +2 f level=3 +4 s s +4.75 f level=4",
    "f +1 f +2 f level=3 +4 s s +5 f level=3 retry=4",
    "f +1 f +2 f level=3 +4 s s +9.75 f level=3 ",
    "f +1 f +2 f level=3 +4 s s +10 f level=2 retry=2",
    "f +1 f +2 f level=3 +4 s s +15 f level=1 retry=1",
    "f +1 f +2 f level=3 +4 s s +100000 f level=1 retry=1",
    "f +100000 f level=2",
    "f +1 f +2 f level=3 reset level=0 f level=1 retry=1",
)
def test_cooldown_grows_to_its_cap_and_shrinks_step_by_step(settings: dict[str, Any], steps: str) -> None:
    """Growth stays over a good answer and falls by one for each `cap` seconds closed: that tames flapping."""
    play(steps, **settings)


@cases(
    {**ONE, "first": 1.0, "cap": 5.0, "jitter": 0.5},
    "draw:0 f retry=1",
    "draw:0.5 f retry=0.75",
    "draw:0.5 f +1 f retry=1.5 +2 f retry=3 +4 f retry=3.75 +5 f retry=3.75",
    "draw:0 f +1 f +2 f +4 f retry=5",
    "draw:0.5 trip retry=0.75 +0.5 - +0.25 a> draw:0 +30 retry=0",
)
def test_jitter_takes_away_inside_the_cap(settings: dict[str, Any], steps: str) -> None:
    """Chance shortens a cooldown, also a capped one, and never makes it longer than the rule."""
    play(steps, **settings)


@cases(
    ROW,
    "3*f +1 wait:10 retry=9 +8.75 - +0.25 s =closed",
    "3*f wait:0 retry=0 s =closed",
    "hold wait:1 held=1 retry=none +2 - P-",
    "wait:10 =closed retry=0",
    "3*f +4 a> wait:1 =half_open retry=4 +1 -",
)
def test_another_cooldown_counts_from_the_opening(settings: dict[str, Any], steps: str) -> None:
    """A cooldown set from outside replaces the present one, where there is one."""
    play(steps, **settings)


def test_another_cooldown_for_a_generation_that_is_over_changes_nothing() -> None:
    """Who is asked for a cooldown may answer late."""
    player = play("3*f", **ROW)
    old = player.machine.generation
    player.play("+4 f retry=8")
    player.machine.breaker.set_cooldown(old, 100.0)
    player.play("retry=8")


# --- half-open -----------------------------------------------------------------------------------------


@cases(
    ROW,
    "3*f +4 s =closed successes=1 failures=3",
    "5*s 3*f +4 f =open level=2 retry=8 successes=5 failures=4",
    "3*f +4 a> - P- - =half_open a:s =closed",
    "3*f +4 Pa> - P- =half_open a:f =open",
    "3*f +4 a> - refusals=1 a:s refusals=1",
)
def test_half_open_lets_one_through_and_decides_at_once(settings: dict[str, Any], steps: str) -> None:
    """One trial at a time; its answer closes, its failure opens for longer."""
    play(steps, **settings)


@cases(
    {**ROW, "successes": 3},
    "3*f +4 2*s =half_open s =closed",
    "3*f +4 2*s f =open level=2",
    "3*f +4 2*s f +8 2*s =half_open s =closed",
    "3*f +4 a> - a:s retry=0 b> - b:s retry=0 =half_open s =closed",
    "3*f +4 s x s c =half_open s =closed",
    "3*f +4 2*s a> +10 =open +8 2*s =half_open s =closed",
    "3*f +4 2*s trip +8 2*s =half_open s =closed",
)
def test_several_successes_close_within_one_generation(settings: dict[str, Any], steps: str) -> None:
    """Wins count in a row and do not survive the half-open stay in which they were won."""
    play(steps, **settings)


@cases(
    ROW,
    "3*f +4 x =half_open retry=0 s =closed",
    "3*f +4 c =half_open retry=0 s =closed",
    "3*f +4 10*c 10*x =half_open level=1 f =open level=2",
    "3*f +4 a> - a:x b> - b:c s =closed",
    "3*f +4 Pc Px Ps =closed",
    "3*f +4 20*(c +10) s =closed",
)
def test_an_ignored_trial_gives_its_permit_back(settings: dict[str, Any], steps: str) -> None:
    """A cancelled trial and an application's error decide nothing and block nobody."""
    play(steps, **settings)


@cases(
    ROW,
    "3*f +4 a> retry=4 +1 retry=3 +2.75 retry=0.25 +0.25 retry=4 +3 retry=1 +1 retry=2 +1.75 retry=0.25",
    "3*f +5 a> retry=4 +1 retry=3 a:x retry=0",
)
def test_retry_after_while_a_trial_is_out_is_a_look_worth_taking(
    settings: dict[str, Any], steps: str
) -> None:
    """Until the lease ends or a first cooldown has passed, whichever is sooner; never zero."""
    play(steps, **settings)


@cases(
    {**ROW, "head_start": 1.0},
    "3*f +4 - retry=0 +0.75 - +0.25 s =closed",
    "3*f +4 - Ps =closed",
    "3*f +3.75 P- +0.25 Pa> +5 - a:s =closed",
    "3*f +4 Px - +1 s =closed",
    "3*f +4 Pa> +10 - =open retry=8 +8 - Ps =closed",
)
def test_a_running_prober_has_a_head_start(settings: dict[str, Any], steps: str) -> None:
    """Callers leave a due trial to the prober for a second, then they take it."""
    play(steps, **settings)


# --- the lease -----------------------------------------------------------------------------------------


@cases(
    ROW,
    "3*f +4 a> +9.75 =half_open - +0.25 =open cause=lease_expired level=2 retry=8",
    "3*f +4 a> +9.75 a:s =closed",
    "3*f +4 a> +9.75 a:f =open level=2 retry=8 late=0",
    "3*f +4 a> +12 =open retry=6",
    "3*f +4 a> +17.75 - +0.25 s =closed",
    "3*f +4 a> +100 =open level=2 retry=0 s =closed",
    "3*f +4 a> +100 f =open level=3 retry=16",
    "3*f +4 Pa> +10 =open level=2 missed=1 miss_at=14",
    "3*f +4 a> +50 b> - =half_open b:s late=0 =closed",
)
def test_a_trial_that_hangs_loses_its_lease(settings: dict[str, Any], steps: str) -> None:
    """A lease ends when it ends, not when somebody looks: the cooldown counts from its deadline."""
    play(steps, **settings)


@cases(
    ROW,
    "3*f +4 a> +11 =open retry=7 a:s late=1 retry=0 =open s =closed",
    "3*f +4 a> +11 a:s =open late=1 retry=0 level=2",
    "3*f +4 a> +10 a:s =open late=1 retry=0 s =closed",
    "3*f +4 a> +100 a:s =open late=1 retry=0 s =closed",
    "3*f +4 a> +11 a:f =open late=1 retry=7 level=2",
    "3*f +4 a> +11 a:x =open late=1 retry=7",
    "3*f +4 a> +11 a:c =open late=1 retry=7 miss_at=15",
    "3*f +4 a> +18 b> a:s =half_open late=1 b:f retry=16",
    "3*f +4 a> +10 look hold a:s held=1 retry=none",
    "3*f +4 a> +18 b> +10 look a:s late=1 retry=16 b:s late=2 retry=0",
    "3*f +4 a> +10 look reset trip a:s =open retry=4",
)
def test_an_answer_after_the_lease_makes_the_next_trial_due_at_once(
    settings: dict[str, Any], steps: str
) -> None:
    """A late success is no proof, but worth a trial; every other late result changes nothing."""
    play(steps, **settings)


# --- people --------------------------------------------------------------------------------------------


@cases(
    ROW,
    "trip =open @unhealthy retry=4 level=1 - cause=trip",
    "s trip =open +4 s =closed",
    "3*f +1 trip =open retry=3 level=1 cause=error",
    "3*f +4 a> trip =open level=2 retry=8 a:s =open late=1 retry=8",
    "hold trip held=1 retry=none cause=hold",
)
def test_trip_opens_as_a_failure_would(settings: dict[str, Any], steps: str) -> None:
    """A trip by hand opens for the next cooldown; where it is open already, nothing happens."""
    play(steps, **settings)


@cases(
    ROW,
    "hold =open @unhealthy held=1 retry=none - P- +1000000 - P- held=1 cause=hold",
    "s hold retry=none level=0",
    "3*f hold retry=none +4 - P-",
    "3*f +4 a> hold a:s =open held=1 late=1 retry=none",
    "hold hold held=1 release held=0",
    "a> hold a:f held=1 late=1",
)
def test_hold_keeps_open_until_released(settings: dict[str, Any], steps: str) -> None:
    """Neither time nor an answer ends a hold, and `retry_after` says that only a person can."""
    play(steps, **settings)


@cases(
    ROW,
    "release =closed @unknown",
    "s release @healthy generation=0",
    "3*f +1 release =open retry=3",
    "3*f +4 a> release =half_open - a:s =closed",
    "hold release =open @unhealthy held=0 retry=0 level=0 s =closed",
    "hold +1000 release f =open level=1 retry=4",
    "3*f hold release f level=2 retry=8",
)
def test_release_ends_a_hold_with_a_trial(settings: dict[str, Any], steps: str) -> None:
    """After a hold the next call is the trial; without a hold nothing happens."""
    play(steps, **settings)


@cases(
    ROW,
    "reset =closed @unknown s @healthy",
    "s reset =closed @healthy",
    "s c reset @degraded s @healthy",
    "3*f reset =closed @recovering retry=0 s @recovering",
    "3*f +4 a> reset =closed a:s late=1 @recovering",
    "3*f +4 a> reset a:f =closed late=1 level=0",
    "hold reset =closed held=0 @recovering",
    "2*f reset 2*f =closed f =open level=1",
    "a> 2*f reset a:f f =closed late=1",
    "3*f +4 f level=2 reset level=0 3*f level=1 retry=4",
)
def test_reset_closes_and_forgets(settings: dict[str, Any], steps: str) -> None:
    """A reset closes from every state, forgets counters and growth, and proves nothing about health."""
    play(steps, **settings)


@cases(
    ROW,
    "3*f fork =open @unhealthy retry=0 s =closed",
    "hold fork =open held=1 retry=none",
    "3*f +4 a> fork =open retry=0 a:s late=1 =open s =closed",
    "a> fork a:f =closed late=1 @unknown told=",
    "s told=closed/healthy fork @unknown told= s @healthy told=closed/healthy",
    "s c fork @degraded s @healthy",
    "2*f fork 2*f =closed f =open",
)
def test_a_forked_child_knows_nothing_and_learns(settings: dict[str, Any], steps: str) -> None:
    """What the parent knew is not known in the child; no permit is borrowed, and the first answer counts."""
    play(steps, **settings)


# --- modes ---------------------------------------------------------------------------------------------


@cases(
    {**ROW, "mode": "observe"},
    "3*f =open @unhealthy 5*s =open suppressed=5 refusals=0",
    "3*f +1 f =open retry=3 level=1 suppressed=1",
    "3*f +4 a> =half_open @recovering b> suppressed=1 b:f =half_open a:s =closed",
    "3*f +4 a> b> b:s =half_open a:f =open level=2 retry=8",
    "3*f +4 a> b> b:c =half_open a:s =closed",
    "3*f a> +4 b> a:f =half_open late=1 b:s =closed",
    "hold s f c x =open held=1 suppressed=4 retry=none",
    "3*f +4 a> +10 s =open suppressed=1 late=0",
    "3*f told=closed/degraded,open/unhealthy s told= +4 s told=half_open/recovering,closed/recovering",
)
def test_an_observing_breaker_is_truthful_and_never_refuses(settings: dict[str, Any], steps: str) -> None:
    """Machine and health run as if it enforced; what it would have refused is counted and let through."""
    play(steps, **settings)


@cases(
    {**ROW, "mode": "disabled"},
    "50*f =closed @unknown level=0 told= missed=1 s @unknown missed=0 told=",
    "a> f a:s missed=1 s missed=0",
    "a> 9*a~ =closed failures=0 a:s",
    "c missed=1 miss_at=0 ask=1 +5 f miss_at=5 s ask=0",
)
def test_a_disabled_breaker_lets_all_through_and_knows_nothing(settings: dict[str, Any], steps: str) -> None:
    """Disabled: health is unknown, nothing trips, and misses are still seen."""
    play(steps, **settings)


@cases(
    ROW,
    "s mode:disabled @unknown mode:enforce @healthy",
    "s c mode:observe @degraded",
    "2*f mode:observe 2*f =closed f =open",
    "3*f mode:observe =open s suppressed=1",
    "3*f mode:disabled =closed @unknown s mode:enforce =closed @recovering",
    "3*f +4 a> mode:observe =half_open a:s =half_open late=1 s =closed",
    "3*f mode:disabled +50 mode:enforce @recovering s +50 s @healthy",
    "hold mode:observe =open held=1 retry=none",
)
def test_other_settings_keep_state_and_health(settings: dict[str, Any], steps: str) -> None:
    """New settings begin with empty counters, and take nothing from what is known or from a person's hold."""
    play(steps, **settings)


@cases({**ROW, "mode": "disabled"}, "s mode:enforce @unknown s @healthy", "c s mode:enforce s @healthy")
def test_an_answer_before_the_declaration_does_not_hide_the_next(
    settings: dict[str, Any], steps: str
) -> None:
    """Whatever was answered while disabled, the first success in force makes it healthy."""
    play(steps, **settings)


@cases(
    {**ROW, "mode": "disabled"},
    "s successes=1 c s s s successes=4 failures=0",
    "2*f s successes=1 failures=2",
)
def test_every_call_that_ends_in_time_is_counted(settings: dict[str, Any], steps: str) -> None:
    """Successes and failures are counted in every mode, also where they decide nothing."""
    play(steps, **settings)
    play("3*f 2*s f x successes=2 failures=4", **{**settings, "mode": "observe"})
    play("3*f +4 a> s f a:s successes=2 failures=4 =closed", **{**settings, "mode": "observe"})


# --- settling ------------------------------------------------------------------------------------------


@cases(
    ONE,
    "f +4 s =closed @recovering settle=30 s @recovering +29.75 @recovering +0.25 @healthy cause=settled",
    "f +4 s +1000 @recovering settle=0 s @healthy",
    "trip +100 s settle=100 s +99.75 @recovering +0.25 @healthy",
    "trip +30 s settle=30",
    "trip +30.5 s settle=30.5",
    "trip +600.5 s settle=600",
    "trip +100000 s settle=600 s +599.75 @recovering +0.25 @healthy",
    "f +4 s x +1000 @recovering s @healthy",
    "f +4 s since=0 s since=0 +30 since=34",
    "trip settle=0 +4 a> settle=0",
    "f +4 s s +20 f settle=0 +8 a> settle=0",
    "+7 trip +100 s settle=100",
)
def test_recovery_settles_for_the_length_of_the_outage(settings: dict[str, Any], steps: str) -> None:
    """Recovering until the settle time is over *and* a success beyond the closing trial has arrived."""
    play(steps, **settings)


@cases(
    ONE,
    "f +4 s s +20 c @recovering settle=30 s +29.75 @recovering +0.25 @healthy",
    "f +4 s s +29.75 c +1000 @recovering s @healthy",
    "f +4 s a> c a:s +1000 @recovering s @healthy",
    "f +4 s a> s c a:s +1000 @recovering",
    "f +4 s s +20 x +10 @healthy",
    "f +4 s s +20 f since=0 @unhealthy +8 s settle=32 since=0",
    "f +4 s s +20 trip +8 s settle=32 s +31.75 @recovering +0.25 @healthy",
    "f +4 s s +20 hold +100 release s settle=124",
    "f +4 s f +8 s f +16 s settle=30 s +30 @healthy",
)
def test_a_relapse_starts_the_settling_again(settings: dict[str, Any], steps: str) -> None:
    """A miss starts the settle time anew, a trip prolongs the same outage, an ignored answer does neither."""
    play(steps, **settings)


@cases(
    ONE,
    "f reset =closed @recovering settle=30",
    "f +50 reset settle=50 +1000 @recovering s @healthy",
    "f +50 reset s +49.75 @recovering +0.25 @healthy",
    "f +4 s s +20 reset @recovering settle=10 +10 @recovering s @healthy",
    "hold +40 reset settle=40 @recovering",
    "f +4 a> +6 reset settle=30 a:s late=1 +30 @recovering s @healthy",
)
def test_a_reset_skips_no_settling(settings: dict[str, Any], steps: str) -> None:
    """A reset is a person's act and no proof of health."""
    play(steps, **settings)


@cases(
    {**ONE, "settle_min": 0.0, "settle_max": 0.0}, "f +4 s @recovering s @healthy", "f +4 s +9 @recovering"
)
def test_without_a_settle_time_a_second_answer_is_still_needed(settings: dict[str, Any], steps: str) -> None:
    """No settle time leaves the rule of the success beyond the closing trial."""
    play(steps, **settings)


@cases(
    ONE,
    "f +4 s s +500 c @degraded",
    "f +4 s s +500 f since=504",
    "f +4 s s +500 trip since=504",
    "f +4 s s +500 hold since=504",
    "f +4 s s +500 a> a~ since=504",
    "f +4 s s +500 reset @healthy",
    "f +4 s s +500 mode:observe @healthy",
    "f +4 s s a> +500 a:c @degraded",
)
def test_what_has_settled_has_settled_unseen(settings: dict[str, Any], steps: str) -> None:
    """A settle time that is over is over, whether or not somebody looked before the next thing happened."""
    play(steps, **settings)


@cases(
    ROW,
    "3*f +4 a> +12 trip =open level=2 retry=6",
    "3*f +4 a> +12 hold release level=2",
    "3*f +4 a> +12 mode:observe =open level=2",
    "a> 3*f +4 b> +13 a:f miss_at=17",
    "a> 3*f +4 b> +13 a:c miss_at=17",
)
def test_a_lease_that_ran_out_has_run_out_unseen(settings: dict[str, Any], steps: str) -> None:
    """What people and late calls do comes after the end of the lease, and no later miss is forgotten for it."""
    play(steps, **settings)


# --- what is told --------------------------------------------------------------------------------------


@cases(
    ONE,
    "told= s told=closed/healthy 10*s x told= f told=open/unhealthy 5*- told=",
    "f +4 s told=open/unhealthy,half_open/recovering,closed/recovering s told= +30 told=closed/healthy told=",
    "c told=closed/degraded 5*c x told= s told=closed/healthy",
    "hold told=open/unhealthy hold told= release told=open/unhealthy release told=",
    "trip told=open/unhealthy trip told= reset told=closed/recovering reset told=",
    "trip heard=open/unhealthy reset heard=closed/recovering hold heard=open/unhealthy "
    "release heard=open/unhealthy reset heard=closed/recovering mode:disabled heard=closed/unknown",
    "s told=closed/healthy reset told= release told=",
    "f +4 a> told=open/unhealthy,half_open/recovering a:x told= b> b:x told= +5 told=",
    "f +4 a> heard=open/unhealthy,half_open/recovering +100 heard= s "
    "heard=open/unhealthy,half_open/recovering,closed/recovering",
    "f +4 f told=open/unhealthy,half_open/recovering,open/unhealthy",
)
def test_each_change_is_told_once_and_in_order(settings: dict[str, Any], steps: str) -> None:
    """Every change of breaker or health is told once; what leads to where it is already, is silent."""
    play(steps, **settings)


@cases({**ONE, "first": 1.0, "cap": 1.0}, "10*(f +1 f +1 s told=" + "open/unhealthy,half_open/recovering," * 2
       + "closed/recovering)")  # fmt: skip
def test_a_cycle_does_not_drift(settings: dict[str, Any], steps: str) -> None:
    """The tenth cycle is told like the first."""
    play(steps, **settings)


def test_events_carry_the_facts_of_their_instant() -> None:
    """An event says from where to where, since when, why, and when to look again."""
    player = play("s +1 f +4 a> +15 look +8 s reset", **ONE)
    told = [
        (t.at, str(t.breaker_before), str(t.breaker), t.cause.code, t.generation, t.level, t.retry_after)
        for t in player.machine.mail
    ]
    assert told == [
        (0.0, "closed", "closed", "answered", 0, 0, 0.0),
        (1.0, "closed", "open", "error", 1, 1, 4.0),
        (5.0, "open", "half_open", "trial", 2, 1, 4.0),
        (15.0, "half_open", "open", "lease_expired", 3, 2, 8.0),
        (28.0, "open", "half_open", "trial", 4, 2, 4.0),
        (28.0, "half_open", "closed", "recovered", 5, 2, 0.0),
    ]
    assert {t.dependency for t in player.machine.mail} == {"redis"}


def test_a_journal_has_no_gaps() -> None:
    """Each event begins where the one before it ended, at no earlier instant."""
    steps = "s f +4 a> +30 look a:s b> b:c s s +40 c s hold +3 hold release f +8 trip +99 s reset s +600 look"
    mail = play(steps, **ONE).machine.mail
    assert len(mail) > 12
    for before, after in itertools.pairwise(mail):
        assert (before.breaker, before.after) == (after.breaker_before, after.before)
        assert before.at <= after.at
        assert before.generation <= after.generation
        if after.breaker_before != after.breaker:
            assert before.generation < after.generation


# --- late results --------------------------------------------------------------------------------------

ADMITTED = {
    "while closed": ({}, "a>"),
    "as a trial": ({}, "3*f +4 a>"),
    "as a probe's trial": ({}, "3*f +4 Pa>"),
    "while open, observing": ({"mode": "observe"}, "3*f a>"),
    "while half-open, observing": ({"mode": "observe"}, "3*f +4 b> a>"),
}
MEANWHILE = {
    "closed": "reset",
    "closed with a row of failures": "reset s 2*f",
    "closed and settled": "reset trip +4 Ps s +700 look",
    "open": "reset trip",
    "open and due": "reset trip +4",
    "held": "hold",
    "half-open with a trial out": "reset trip +4 Pz>",
    "half-open with the trial back": "reset trip +4 Px",
}


@pytest.mark.parametrize("how", ["s", "f", "x", "c"])
@pytest.mark.parametrize("meanwhile", MEANWHILE)
@pytest.mark.parametrize("admitted", ADMITTED)
def test_a_late_result_changes_nothing_but_a_counter(admitted: str, meanwhile: str, how: str) -> None:
    """What comes home after its generation is over moves `late_dropped`, and `last_miss` if it was one."""
    settings, begin = ADMITTED[admitted]
    assert_late_changes_nothing(Player(**{**ROW, **settings}), f"s {begin} {MEANWHILE[meanwhile]}", how)


def assert_late_changes_nothing(player: Player, steps: str, how: str) -> None:
    machine = player.play(steps).machine
    machine.now += 0.5
    machine.look()
    player.read = len(machine.mail)
    before, counters, last_miss = _all(machine), machine.counters, machine.breaker.last_miss
    player.play(f"a:{how} heard=")
    assert _all(machine) == before
    assert machine.counters == {**counters, "late": counters["late"] + 1}
    assert machine.breaker.last_miss == (machine.now if how in "fc" else last_miss)


def _all(machine: Machine) -> tuple[Any, ...]:
    """Everything that a late result might move, in-flight calls aside."""
    return machine.key()[0], machine.view, machine.retry_after, machine.breaker.since, machine.generation.due


# --- edges ---------------------------------------------------------------------------------------------


def test_a_failure_at_level_ten_thousand_is_like_any_other() -> None:
    """A dependency that stays away for a year overflows nothing."""
    play("f 10000*(+60 f) level=10001 retry=60", **{**ONE, "first": 1.0, "cap": 60.0})


@pytest.mark.parametrize("start", [0.0, -1e6, 1e12])
def test_the_size_of_the_clock_does_not_matter(start: float) -> None:
    """Only differences of instants count."""
    play(
        "s f retry=4 +3.5 - +0.5 a> +10 =open retry=8 +1000000 s @recovering s +600 @healthy",
        start=start,
        **ONE,
    )


def test_time_may_stand_still() -> None:
    """Without time passing, nothing opens early, divides by zero or is told twice."""
    still = {**ONE, "settle_min": 0.0, "settle_max": 0.0}
    play("f 5*- P- =open retry=4 20*(wait:0 f) level=21 wait:0 s @recovering s @healthy retry=0", **still)
    play("20*(f wait:0 s =closed s @healthy) level=20", **still)
    play("3*f f =open +10 =open", **LATELY)


def test_jitter_of_everything_still_leaves_a_cooldown() -> None:
    """With a jitter of 1 a cooldown is short, and the breaker still refuses until it is over."""
    play("draw:0.75 f retry=1 - +1 s =closed", **{**ONE, "jitter": 1.0})


@cases(ONE, "trip +4 s missed=0", "trip +3 - +1 s missed=1 miss_at=4 s missed=0", "trip +3 - reset missed=1")
def test_a_refused_call_is_a_miss(settings: dict[str, Any], steps: str) -> None:
    """A call that was refused did not answer: that counts, and is dated, by the end of its generation."""
    play(steps, **settings)


@cases(ONE, "since=5 +3 s since=8", start=5.0)
def test_a_state_is_dated_when_it_is_told(settings: dict[str, Any], steps: str) -> None:
    """Outside an outage a state has lasted since it was told; the first one since the start."""
    play(steps, **settings)


def test_every_era_has_a_number_of_its_own() -> None:
    """An era can be named without being kept."""
    player = Player(**ONE)
    numbers = []
    for steps in ("s", "c", "s c", "f", "+4 a>", "a:s", "c", "reset"):
        numbers.append(player.play(steps).machine.breaker.era.number)
    assert numbers == sorted(set(numbers))


def test_another_cooldown_corrects_what_was_not_told_yet() -> None:
    """An event that is still waiting tells the new wait: its own generation's, and no other breaker's."""
    player = play("trip +1 trip", **ONE)
    machine = player.machine
    other = Machine(SHIPPED, machine.settings, now=1.0, mail=machine.mail)
    other.breaker.name = "api"
    other.by_hand("trip")
    player.play("wait:10")
    assert [(t.dependency, t.retry_after) for t in machine.mail] == [("redis", 10.0), ("api", 4.0)]
    player.play("+9 a> wait:10 a:f wait:20")
    assert [t.retry_after for t in machine.mail if t.dependency == "redis"] == [10.0, 4.0, 20.0]


def test_copies_of_a_machine_share_nothing() -> None:
    """The tool that the exploration stands on: a step in the copy is not seen in the original."""
    machine = Player(SHIPPED, **SHARE).play("3*s a> b> f b:s").machine
    before = machine.key(), machine.counters
    copy = machine.clone()
    assert (copy.key(), copy.counters) == before
    for call in list(copy.calls):
        copy.end(call, "f")
    copy.by_hand("hold")
    assert (machine.key(), machine.counters) == before
    assert copy.key() != before[0]
