"""A budget trips rather than clips, and nothing that fails makes room in it."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehold import Budget, ConfigurationError
from safehold._core.budget import GRAIN, MOST_NOMINATED, WINDOW, Population, Tally

NOW = 5_000.0
WIDE = Budget(per_hour=None, share=1.0, population=lambda: 0)


def names(count: int, first: int = 0) -> list[str]:
    return [f"s{number}" for number in range(first, first + count)]


def against(
    tally: Tally,
    budget: Budget,
    subjects: Any,
    now: float = NOW,
    *,
    size: int | None = None,
    plan: bool = True,
    automatic: bool = True,
) -> list[str]:
    population = None if size is None else Population(size)
    return [f.code for f in tally.judge(budget, subjects, now, population, automatic=automatic, plan=plan)]


def destroy(tally: Tally, subjects: list[str], now: float = NOW) -> None:
    for subject in subjects:
        assert tally.charge(now)
        tally.destroyed(subject, now)


# --- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"per_hour": 0},
        {"per_hour": -1},
        {"per_hour": True},
        {"per_hour": 1.5},
        {"per_hour": MOST_NOMINATED + 1},
        {"share": 0},
        {"share": 1.01},
        {"share": math.nan},
        {"share": "10%"},
        {"population": 12},
        {"zero_ok": 1},
        {"hard_cap": 0},
        {"per_hour": 10, "hard_cap": 9},
        {"per_hour": None},
        {"per_hour": None, "share": None, "population": len},
    ],
    ids=repr,
)
def test_settings_that_make_no_sense_are_refused_at_once(wrong: dict[str, Any]) -> None:
    """A limit that limits nothing, or cannot be read, is an error where it is written."""
    with pytest.raises(ConfigurationError):
        Budget(**wrong)


@pytest.mark.parametrize(
    ("budget", "cap"),
    [
        (Budget(per_hour=7), 70),
        (Budget(per_hour=7, hard_cap=7), 7),
        (WIDE, math.inf),
    ],
)
def test_cap_is_ten_times_the_limit_unless_said_otherwise(budget: Budget, cap: float) -> None:
    """Nobody exceeds the cap, whatever was granted."""
    assert budget.cap == cap


# --- the absolute limit -------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_plan_at_the_limit_passes_and_one_over_it_trips_all(limit: int) -> None:
    """All-or-nothing: the first that does not fit leaves none of the plan."""
    budget = Budget(per_hour=limit)
    assert against(Tally(), budget, names(limit)) == []
    tally = Tally()
    assert against(tally, budget, names(limit + 1)) == ["budget_exceeded"]
    assert tally.tripped
    assert against(tally, budget, names(1)) == ["budget_tripped"]


def test_direct_calls_are_charged_one_by_one_and_the_first_over_trips_all_that_follow() -> None:
    """Ten pass, the eleventh trips, and then none of the ten either."""
    tally, budget = Tally(), Budget(per_hour=10)
    for name in names(10):
        assert against(tally, budget, [name], plan=False) == []
    assert against(tally, budget, ["one more"], plan=False) == ["budget_exceeded"]
    assert against(tally, budget, ["s0"], plan=False) == ["budget_tripped"]


def test_one_subject_counts_once() -> None:
    """A call that is covered by a plan, or repeated, takes no more of the budget."""
    tally, budget = Tally(), Budget(per_hour=3)
    assert against(tally, budget, names(3)) == []
    for name in names(3) * 5:
        assert against(tally, budget, [name], plan=False) == []
    assert len(tally.nominated) == 3


def test_what_was_blocked_counts_as_nominated() -> None:
    """A partial outage does not slip a plan under its limit: what it held back still counts."""
    tally, budget = Tally(), Budget(per_hour=3)
    assert against(tally, budget, names(2)) == []  # nominated, and never done
    assert against(tally, budget, names(2, first=2)) == ["budget_exceeded"]


def test_slices_of_a_plan_are_one_plan() -> None:
    """Many small plans within an hour are one large one."""
    tally, budget = Tally(), Budget(per_hour=10)
    assert against(tally, budget, names(6)) == []
    assert against(tally, budget, names(6, first=6), NOW + WINDOW - 1) == ["budget_exceeded"]


@pytest.mark.parametrize(("later", "codes"), [(0, 1), (WINDOW - 0.01, 1), (WINDOW, 0), (WINDOW + 1, 0)])
def test_nomination_counts_for_exactly_the_window(later: float, codes: int) -> None:
    """An hour after it was last nominated, and no sooner, a subject makes room."""
    tally, budget = Tally(), Budget(per_hour=1)
    assert against(tally, budget, ["a"]) == []
    assert len(against(tally, budget, ["b"], NOW + later)) == codes


def test_unnamed_subjects_are_each_one_of_their_own() -> None:
    """What has no name may be another one each time, so each counts."""
    tally, budget = Tally(), Budget(per_hour=3)
    for _ in range(3):
        assert against(tally, budget, [None], plan=False) == []
    assert against(tally, budget, [None], plan=False) == ["budget_exceeded"]


def test_no_name_is_taken_for_that_of_an_unnamed_one() -> None:
    """A subject cannot hide behind the number of an unnamed one."""
    tally, budget = Tally(), Budget(per_hour=2)
    against(tally, budget, [None], plan=False)
    against(tally, budget, ["#1"], plan=False)
    assert against(tally, budget, ["=#1"], plan=False) == ["budget_exceeded"]


# --- T72: the window -----------------------------------------------------------------------------------


def test_nine_percent_a_minute_trips_in_the_second_sweep() -> None:
    """T72: 9 % each minute, all others each time: an hour destroys at most a tenth."""
    tally, budget, done = Tally(), Budget(per_hour=None, share=0.10, population=lambda: 100), 0
    for minute in range(60):
        subjects = names(9, first=9 * minute)
        now = NOW + 60 * minute
        if not against(tally, budget, subjects, now, size=100 - done):
            destroy(tally, subjects, now)
            done += 9
    assert done == 9
    assert tally.tripped


def test_same_nine_percent_over_hours_is_done() -> None:
    """The twin: what comes at the rate of the budget goes."""
    tally, budget, done = Tally(), Budget(per_hour=None, share=0.10, population=lambda: 100), 0
    for hour in range(5):
        subjects, now = names(9, first=9 * hour), NOW + hour * WINDOW
        size = 100  # others have come
        assert against(tally, budget, subjects, now, size=size) == []
        destroy(tally, subjects, now)
        done += 9
    assert done == 45


# --- the trip and what ends it ----------------------------------------------------------------------------


def tripped(limit: int = 3) -> tuple[Tally, Budget]:
    tally, budget = Tally(), Budget(per_hour=limit)
    assert against(tally, budget, names(limit + 1)) == ["budget_exceeded"]
    return tally, budget


@pytest.mark.parametrize("hours", [0.5, 1, 24, 10_000])
def test_trip_does_not_clear_by_waiting(hours: float) -> None:
    """T77: no direct call, no plan that does not fit and no empty one ends a trip, however late."""
    later = NOW + hours * WINDOW
    tally, budget = tripped()
    assert against(tally, budget, ["s0"], later, plan=False) == ["budget_tripped"]
    tally, budget = tripped()
    assert against(tally, budget, names(4), later) == ["budget_tripped"]
    tally, budget = tripped()
    assert against(tally, budget, [], later) == []  # nobody is held back, and
    assert tally.tripped


@pytest.mark.parametrize(("later", "ends"), [(1, False), (WINDOW - 0.01, False), (WINDOW, True), (9e9, True)])
def test_fresh_plan_that_fits_ends_a_trip_after_an_hour(later: float, ends: bool) -> None:
    """It fits by itself, and nothing for an hour before did not."""
    tally, budget = tripped()
    assert against(tally, budget, names(3), NOW + later) == ([] if ends else ["budget_tripped"])
    assert (tally.tripped is None) is ends
    if ends:
        assert against(tally, budget, names(1, first=9), NOW + later) == ["budget_exceeded"]


def test_what_does_not_fit_begins_the_hour_again() -> None:
    """Half an hour before, somebody still wanted too much."""
    tally, budget = tripped()
    against(tally, budget, names(4), NOW + WINDOW / 2)
    assert against(tally, budget, names(1), NOW + WINDOW) == ["budget_tripped"]
    assert against(tally, budget, names(1), NOW + WINDOW * 1.5) == []


def test_direct_calls_that_would_fit_one_by_one_do_not_age_a_trip() -> None:
    """While it is tripped, one new subject after the other is a plan in slices."""
    tally, budget = tripped()
    for minute in range(60):
        against(tally, budget, [f"direct {minute}"], NOW + 60 * minute, plan=False)
    assert against(tally, budget, names(1), NOW + WINDOW) == ["budget_tripped"]


def test_sweeps_that_fit_do_not_put_the_end_of_a_trip_off() -> None:
    """No block without an exit: plans that fit, every five minutes, get through after the hour."""
    tally, budget = tripped()
    for round_ in range(1, 12):
        assert against(tally, budget, names(2), NOW + 300 * round_) == ["budget_tripped"]
    assert against(tally, budget, names(2), NOW + WINDOW) == []


def test_reset_ends_a_trip_and_acts_still_count() -> None:
    """A person's word clears what was nominated, and never the cap."""
    tally, budget = Tally(), Budget(per_hour=2, hard_cap=3)
    assert against(tally, budget, names(2)) == []
    destroy(tally, names(2))
    assert against(tally, budget, names(2, first=2)) == ["budget_exceeded", "hard_cap"]
    tally.reset()
    assert against(tally, budget, names(2, first=2)) == ["hard_cap"]
    tally.reset()
    assert against(tally, budget, names(1, first=2)) == []


# --- the share, and few ---------------------------------------------------------------------------------


def test_t75_small_populations() -> None:
    """T75: of fewer than ten at most one goes in a window, the last only with leave; of two none."""
    table = {}
    for size in range(1, 13):
        for dead in (1, 2):
            budget = Budget(per_hour=None, share=0.10, population=lambda: 0)
            table[size, dead] = against(Tally(), budget, names(dead), size=size)
    few = {(size, 2): ["small_population"] for size in range(3, 10)}
    assert table == {
        (1, 1): ["last_member"],
        (1, 2): ["small_population", "last_member"],
        (2, 2): ["small_population", "last_member"],
        **{(size, 1): [] for size in range(2, 13)},
        **few,
        **{(size, 2): ["budget_exceeded"] for size in range(10, 13)},
    }


@pytest.mark.parametrize("size", range(2, 10))
def test_second_of_few_waits_for_an_hour(size: int) -> None:
    """At most one per window, and the next one says when."""
    tally = Tally()
    assert against(tally, WIDE, ["a"], size=size) == []
    destroy(tally, ["a"])
    (finding, *_) = tally.judge(WIDE, ["b"], NOW + 600, Population(size - 1), automatic=True)
    assert (finding.code, finding.retry_after) == ("small_population", WINDOW - 600)
    left = size - 1
    assert against(tally, WIDE, ["b"], NOW + WINDOW, size=left) == (["last_member"] if left == 1 else [])


def test_two_of_few_at_once_need_a_person() -> None:
    """Time does not choose which of two may go."""
    tally = Tally()
    (finding,) = tally.judge(WIDE, ["a", "b"], NOW, Population(8), automatic=True, plan=True)
    assert (finding.code, finding.retry_after) == ("small_population", None)
    assert not tally.tripped


def test_those_that_few_hold_back_count_as_nominated() -> None:
    """Two that were held leave no room for a third within the hour, and no trip after it."""
    tally = Tally()
    assert against(tally, WIDE, ["a", "b"], size=8) == ["small_population"]
    assert against(tally, WIDE, ["c"], NOW + WINDOW - 1, size=8) == ["small_population"]
    assert against(tally, WIDE, ["c"], NOW + 2 * WINDOW, size=8) == []


@pytest.mark.parametrize("zero_ok", [False, True])
def test_last_member_goes_only_where_zero_is_normal(zero_ok: bool) -> None:
    """T76: the only one that is left is held for a person, unless zero was said to be normal."""
    budget = Budget(per_hour=5, population=lambda: 1, zero_ok=zero_ok)
    assert against(Tally(), budget, ["a"], size=1) == ([] if zero_ok else ["last_member"])


def test_who_the_last_one_is_does_not_depend_on_what_was_held_back() -> None:
    """Ten, nine of them nominated: the tenth is the last, whether or not the nine have gone."""
    budget = Budget(per_hour=None, share=1.0, population=lambda: 0)
    for gone in range(10):
        tally = Tally()
        assert against(tally, budget, names(9), size=10) == []
        destroy(tally, names(gone)[:9])
        assert against(tally, budget, ["the tenth"], size=10 - min(gone, 9), plan=False) == ["last_member"]


def test_nobody_goes_from_a_population_that_is_empty() -> None:
    """More are nominated than there are: an empty first reading allows one of few, and no more."""
    budget = Budget(per_hour=None, share=1.0, population=lambda: 0, zero_ok=True)
    assert against(Tally(), budget, names(5), size=0) == ["small_population"]


@pytest.mark.parametrize(
    ("share", "size", "limit"), [(0.1, 30, 3), (0.29, 100, 29), (0.05, 12, 1), (1.0, 10, 10), (0.1, 19, 1)]
)
def test_share_is_rounded_down_and_at_least_one(share: float, size: int, limit: int) -> None:
    """A share of eleven is not stricter than the rule for nine, and no float takes one away."""
    budget = Budget(per_hour=None, share=share, population=lambda: 0, zero_ok=True)
    assert against(Tally(), budget, names(limit), size=size) == []
    assert against(Tally(), budget, names(limit + 1), size=size) == ["budget_exceeded"]


def test_limit_is_the_lower_of_the_two() -> None:
    """An absolute limit holds whatever the share, and the share whatever the absolute limit."""
    budget = Budget(per_hour=5, share=0.10, population=lambda: 0)
    assert against(Tally(), budget, names(6), size=1000) == ["budget_exceeded"]
    assert against(Tally(), budget, names(3), size=20) == ["budget_exceeded"]
    assert against(Tally(), budget, names(5), size=1000) == []


def test_what_was_destroyed_does_not_lower_the_hours_limit() -> None:
    """Else those that a failure held back would leave more room for others than those that were done."""
    budget = Budget(per_hour=None, share=0.10, population=lambda: 0)
    done, held = Tally(), Tally()
    for tally in (done, held):
        assert against(tally, budget, names(9), size=100) == []
    destroy(done, names(9))
    assert against(held, budget, [*names(9), "b"], NOW + 60, size=100) == []
    assert against(done, budget, ["b"], NOW + 60, size=91) == []
    assert against(done, budget, ["b"], NOW + WINDOW, size=91) == []
    assert against(done, budget, names(9, first=20), NOW + WINDOW, size=91) == ["budget_exceeded"]


def test_what_was_destroyed_makes_none_few_within_the_hour() -> None:
    """Twelve less three are still twelve to the hour in which they went."""
    budget = Budget(per_hour=None, share=0.5, population=lambda: 0)
    tally = Tally()
    assert against(tally, budget, names(3), size=12) == []
    destroy(tally, names(3))
    assert against(tally, budget, names(1, first=3), NOW + 60, size=9) == []
    assert against(tally, budget, names(1, first=5), NOW + WINDOW, size=8) == ["small_population"]


def test_aliases_of_one_subject_type_count_together() -> None:
    """T143: two operations, two budgets, one type of subject: each is judged on what both nominated."""
    tally, reap, expire = Tally(), Budget(per_hour=3), Budget(per_hour=5)
    assert against(tally, reap, names(3)) == []
    assert against(tally, expire, names(2, first=3)) == []
    assert against(tally, reap, ["s0"]) == ["budget_exceeded"]
    assert against(tally, expire, ["s0"]) == ["budget_tripped"]


# --- populations ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "seen", "collapsed"),
    [
        (100, 85, False),
        (100, 84, True),
        (100, 0, True),
        (1, 0, True),
        (2, 1, False),
        (3, 1, True),
        (3, 0, True),
        (7, 6, False),
        (7, 5, True),
        (100, 300, False),
    ],
)
def test_population_that_collapses_is_not_believed(known: int, seen: int, collapsed: bool) -> None:
    """T27: more than 15 percent, or all of a known set, is a listing that lost something."""
    tally, budget = Tally(), Budget(per_hour=10, population=lambda: 0, zero_ok=True)
    assert against(tally, budget, [], size=known) == []
    assert against(tally, budget, ["a"], size=seen) == (["population_collapsed"] if collapsed else [])
    assert tally.is_back(seen) is not collapsed


def test_baseline_is_learnt_in_rounds_with_nothing_to_do() -> None:
    """A population that nobody looked at while all was well could not collapse."""
    tally, budget = Tally(), Budget(per_hour=10, population=lambda: 0)
    against(tally, budget, [], size=100)
    assert tally.high_water == 100


def test_baseline_never_learns_downwards() -> None:
    """T28: half of a store is migrated and comes back slowly: an hour of sweeps destroys nothing."""
    tally, budget = Tally(), Budget(per_hour=10, population=lambda: 0)
    against(tally, budget, [], size=1000)
    for minute in range(60):
        size = 500 + 5 * minute
        assert "population_collapsed" in against(tally, budget, ["s0"], NOW + 60 * minute, size=size)
        assert tally.high_water == 1000
    assert against(tally, budget, ["s0"], NOW + WINDOW, size=850) == []


def test_baseline_does_not_creep_down_in_steps_that_are_believed() -> None:
    """Each loss is small, all together are not."""
    tally, budget = Tally(), Budget(per_hour=10, population=lambda: 0)
    for size in (100, 95, 90, 85):
        assert against(tally, budget, ["s0"], size=size) == []
    assert against(tally, budget, ["s0"], size=80) == ["population_collapsed"]


def test_a_person_acknowledges_a_loss() -> None:
    """The exit: so many are left, says a person, and that is what is known from now on."""
    tally, budget = Tally(), Budget(per_hour=10, population=lambda: 0)
    against(tally, budget, [], size=1000)
    tally.rebase(500)
    assert against(tally, budget, ["s0"], size=500) == []
    assert against(tally, budget, ["s0"], size=400) == ["population_collapsed"]


def test_baseline_falls_once_for_each_that_was_destroyed() -> None:
    """Destroying one again and again does not excuse a store that lost others."""
    tally, budget = Tally(), Budget(per_hour=10, population=lambda: 0, hard_cap=1000)
    against(tally, budget, [], size=100)
    for _ in range(50):
        destroy(tally, ["the same"])
    tally.destroyed(None, NOW)  # nobody knows who that was
    assert tally.high_water == 99
    assert against(tally, budget, ["a"], size=60) == ["population_collapsed"]


def test_unknown_population_blocks_and_what_was_nominated_counts() -> None:
    """Cannot tell means no, and hides nothing from the budget."""
    tally, budget = Tally(), Budget(per_hour=3, population=lambda: 0)
    unknown = Population(None, "no answer")
    (finding,) = tally.judge(budget, names(3), NOW, unknown, automatic=True, plan=True)
    assert (finding.code, finding.text) == (
        "population_unknown",
        "how many there are is not known (no answer)",
    )
    assert against(tally, budget, ["another"], size=1000) == ["budget_exceeded"]


def test_unknown_population_does_not_hide_a_plan_that_is_too_large() -> None:
    """Before the first reading the absolute limit trips as ever."""
    tally, budget = Tally(), Budget(per_hour=3, population=lambda: 0)
    found = tally.judge(budget, names(4), NOW, Population(None, "no"), automatic=True, plan=True)
    assert [finding.code for finding in found] == ["population_unknown", "budget_exceeded"]


# --- the cap ----------------------------------------------------------------------------------------------


def test_requested_operations_meet_the_cap_only() -> None:
    """A person's wish is not for a budget to judge; the cap is for everybody."""
    tally, budget = tripped(1)
    for number in range(10):
        assert against(tally, budget, [f"wish {number}"], automatic=False) == []
        assert tally.charge(NOW, budget.cap)
    assert against(tally, budget, ["one more"], automatic=False) == ["hard_cap"]
    assert not tally.charge(NOW, budget.cap)
    assert tally.done == 10


def test_blocked_attempts_do_not_use_up_the_cap() -> None:
    """What a person could not do in an outage does not count against what they do after it."""
    tally, budget = Tally(), Budget(per_hour=1)
    for _ in range(1000):
        assert against(tally, budget, ["wish"], automatic=False) == []
    assert tally.done == 0


def test_cap_says_when_there_is_room() -> None:
    """Acts lapse in the order in which they were done; a plan above the cap never fits."""
    tally, budget = Tally(), Budget(per_hour=1, hard_cap=3)
    for later in (0, 100, 200):
        tally.charge(NOW + later)
    for more, wait in (
        (1, WINDOW + GRAIN - 300),
        (2, WINDOW + GRAIN - 200),
        (3, WINDOW + GRAIN - 100),
        (4, None),
    ):
        (finding,) = tally.judge(budget, names(more), NOW + 300, None, automatic=False)
        assert (finding.code, finding.retry_after) == ("hard_cap", wait)
    (finding,) = tally.judge(budget, ["a"], NOW + WINDOW + GRAIN - 0.01, None, automatic=False)
    assert finding.code == "hard_cap"
    assert against(tally, budget, ["a"], NOW + WINDOW + GRAIN, automatic=False) == []


def test_act_counts_for_the_whole_window_and_little_longer() -> None:
    """Acts that are counted together lapse with the last that can be among them."""
    tally = Tally()
    tally.charge(NOW)
    tally.charge(NOW + GRAIN - 0.01)
    assert tally.at(NOW + WINDOW + GRAIN - 0.01).done == 2
    assert tally.at(NOW + WINDOW + GRAIN).done == 0


# --- over a restart ---------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(st.just("judge"), st.lists(st.integers(0, 15), max_size=5), st.booleans()),
        st.tuples(st.just("direct"), st.one_of(st.none(), st.integers(0, 15)), st.booleans()),
        st.tuples(st.just("charge"), st.integers(1, 3), st.just(0)),
        st.tuples(st.just("gone"), st.integers(0, 15), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([1, 599, 1800, 3600, 5000]), st.just(0)),
        st.tuples(st.just("reset"), st.just(0), st.just(0)),
        st.tuples(st.just("population"), st.sampled_from([None, 0, 3, 9, 10, 40, 100]), st.just(0)),
    ),
    max_size=25,
)


def play(history: list[Any], *, restart: bool) -> tuple[list[Any], dict[str, Any]]:
    tally, now, size = Tally(), NOW, Population(40)
    told: list[Any] = []
    budget = Budget(per_hour=6, share=0.2, population=lambda: 0)
    for what, value, flag in history:
        if what in ("judge", "direct"):
            subjects = [value if value is None else str(value)] if what == "direct" else map(str, value)
            found = tally.judge(budget, list(subjects), now, size, automatic=not flag, plan=what == "judge")
            told.append([(finding.code, finding.text) for finding in found])
        elif what == "charge":
            told += [tally.charge(now, budget.cap) for _ in range(value)]
        elif what == "gone":
            tally.destroyed(str(value), now)
        elif what == "wait":
            now += value
        elif what == "reset":
            tally.reset()
        else:
            size = Population(value)
        if restart:
            kept = json.loads(json.dumps(tally.dump(1e6)))
            tally = Tally.load(kept, now, 1e6)
            assert tally.dump(1e6) == kept
    return told, tally.at(now).dump(0)


@given(steps)
def test_restarts_change_nothing(history: list[Any]) -> None:
    """A history with a restart after every step tells the same, step by step, as one without."""
    assert play(history, restart=True) == play(history, restart=False)


@given(steps, st.floats(-1e5, 1e5))
def test_restart_at_another_monotonic_time_keeps_the_ages(history: list[Any], shift: float) -> None:
    """Wall time carries the ages over; the monotonic clock begins anywhere."""
    kept = play(history, restart=False)[1]
    moved = Tally.load(kept, 9e5 + shift, -shift).dump(-shift)
    for field in ("nominated", "gone"):
        assert moved[field] == pytest.approx(kept[field])
    assert {**moved, "nominated": 0, "gone": 0, "acts": 0, "over_at": 0} == {
        **kept,
        "nominated": 0,
        "gone": 0,
        "acts": 0,
        "over_at": 0,
    }


def test_instants_from_the_future_are_of_now() -> None:
    """A clock that was set back ends no window early, and none later than an hour from now."""
    tally, budget = Tally(), Budget(per_hour=1)
    against(tally, budget, ["a"])
    tally.charge(NOW)
    back = Tally.load(tally.dump(1e6), NOW, -1e6)
    assert list(back.nominated.values()) == [NOW]
    assert against(back, budget, ["b"], NOW + WINDOW - 1) == ["budget_exceeded"]
    assert back.done == 1


def test_lost_state_counts_the_hour_as_used_up() -> None:
    """No automatic act for an hour, then a clean slate; a person may end it sooner."""
    budget = Budget(per_hour=5)
    tally = Tally.lost(NOW)
    (finding,) = tally.judge(budget, ["a"], NOW + 60, None, automatic=True, plan=True)
    assert (finding.code, finding.retry_after) == ("budget_state_lost", WINDOW - 60)
    assert against(tally, budget, ["a"], NOW + WINDOW) == []
    tally = Tally.lost(NOW)
    assert against(tally, budget, ["a"], automatic=False) == []
    tally.reset()
    assert against(tally, budget, ["a"]) == []


GOOD = Tally().dump(0.0)
HOSTILE: list[Any] = [
    None,
    [],
    "",
    {},
    math.nan,
    *(
        {**GOOD, field: value}
        for field in GOOD
        for value in (
            math.nan,
            math.inf,
            -math.inf,
            10**400,
            -1,
            "x",
            [1],
            [[1]],
            {"a": None},
            {"a": math.nan},
            True,
        )
        if not (field == "tripped" and isinstance(value, str))
    ),
    {**GOOD, "acts": [[0.0, 10**400]]},
    {**GOOD, "acts": [[0.0, -5]]},
    {**GOOD, "acts": [[0.0, 1, 2]]},
    {**GOOD, "nominated": {str(n): 0.0 for n in range(MOST_NOMINATED + 2)}},
    *({name: value for name, value in GOOD.items() if name != field} for field in GOOD),
]


@pytest.mark.parametrize("kept", HOSTILE, ids=lambda kept: repr(kept)[:60])
def test_state_that_makes_no_sense_is_lost_or_cautious(kept: Any) -> None:
    """Never a crash, and never more room than a tally that knows all."""
    budget = Budget(per_hour=1, population=lambda: 0)
    try:
        tally = Tally.load(kept, NOW, 0.0)
    except ValueError:
        return
    for later in (0, WINDOW / 2, WINDOW, 3 * WINDOW):
        against(tally, budget, ["a"], NOW + later, size=50, plan=False)
        assert against(tally, budget, ["a", "b"], NOW + later, size=50)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5), st.lists))
def test_any_value_in_any_field_is_lost_or_works(value: Any) -> None:
    """Whatever stands in the file, judging goes on."""
    for field in GOOD:
        try:
            tally = Tally.load({**GOOD, field: value}, NOW, 0.0)
        except ValueError:
            continue
        assert against(tally, Budget(per_hour=1), ["a", "b"])
        json.dumps(tally.dump(0.0), allow_nan=False)


# --- size -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x" * 10_000, "\ud800 half", "", "\0", "ü" * 500])
def test_any_name_will_do(name: str) -> None:
    """A name is long, odd, or no text at all in any encoding: it counts once and is written down."""
    tally, budget = Tally(), Budget(per_hour=2)
    for _ in range(3):
        assert against(tally, budget, [name]) == []
    assert len(json.dumps(tally.dump(0.0))) < 500


def test_memory_is_bounded_by_the_limits_not_by_what_is_nominated() -> None:
    """A million candidates and a million acts leave a few thousand numbers."""
    budget = Budget(per_hour=None, share=1.0, population=lambda: 0, zero_ok=True)
    tally = Tally()
    tracemalloc.start()
    try:
        assert against(tally, budget, [], size=10**6) == []
        for hundred in range(20):
            against(tally, budget, names(5_000, first=5_000 * hundred), size=10**6, plan=False)
        for act in range(100_000):
            tally.charge(NOW + act / 10)
        against(Tally(), budget, names(20_000), size=5)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(tally.nominated) <= MOST_NOMINATED + 1
    assert len(tally.acts) <= WINDOW / GRAIN + 2
    assert kept < 4_000_000
    assert len(json.dumps(tally.dump(1.7e9))) < 1_000_000
