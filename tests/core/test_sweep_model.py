"""Every small history of sweeps, with every way to make a few of its looks fail.

Three subjects, five sweeps five minutes apart, so all within one window of the budget. A subject that has died
stays dead, and what can be read of it is true. Up to three of the fifteen readings fail. A failure must never
add a destruction.

The claim is set inclusion, not only the count: what is destroyed with failures is a subset of what is destroyed
without. It holds because a round in which a call failed is no round at all, for the budget and for every mark,
and because in the others what cannot be told counts as nominated. Subjects are alike, so of histories that
differ by a renaming one is walked and counted for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from itertools import combinations, combinations_with_replacement, permutations

import pytest

from safehold import Budget
from safehold._core.budget import Population, Tally
from safehold._core.evidence import ABSENT, PRESENT, UNKNOWN, Presence
from safehold._core.sweep import Marks, SweepSettings

SUBJECTS, SWEEPS, FAILURES, NEVER = ("a", "b", "c"), 5, 3, 9
CELLS = [(sweep, subject) for sweep in range(SWEEPS) for subject in SUBJECTS]
Cells = Collection[tuple[int, str]]
Deaths = tuple[int, ...]
Readings = dict[str, Presence]
Sweeping = Callable[[Marks, Tally, Budget, Readings, float, bool], set[str]]

FAILING: list[frozenset[tuple[int, str]]] = [
    frozenset(cells) for count in range(1, FAILURES + 1) for cells in combinations(CELLS, count)
]


def act(tally: Tally, budget: Budget, ripe: Collection[str], now: float) -> set[str]:
    """Act on one after the other, as a sweep does: each is judged again, charged, and gone."""
    done = set()
    for subject in ripe:
        if not tally.judge(budget, [subject], now, None, automatic=True):
            assert tally.charge(now, budget.cap)
            tally.destroyed(subject, now)
            done.add(subject)
    return done


def look(marks: Marks, readings: Readings, now: float, *, clean: bool) -> list[str]:
    return marks.round(readings, now, clean=clean, well_since=float("-inf"), stamp={})


def plan(tally: Tally, budget: Budget, nominated: Collection[str], now: float) -> bool:
    return not tally.judge(budget, nominated, now, None, automatic=True, plan=True)


def real(
    marks: Marks, tally: Tally, budget: Budget, readings: Readings, now: float, failed: bool
) -> set[str]:
    """What `Sweep` does: all that may be gone is nominated; of a failed round nothing is left."""
    if failed:
        look(marks, readings, now, clean=False)
        return set()
    gone = [subject for subject, found in readings.items() if found is not PRESENT]
    fits = plan(tally, budget, gone, now)
    ripe = look(marks, readings, now, clean=True)
    return act(tally, budget, ripe, now) if fits else set()


def unscoped(marks: Marks, tally: Tally, budget: Budget, readings: Readings, now: float, _: bool) -> set[str]:
    """Unsafe: only the item that cannot be read is spared, and only what is ripe is judged."""
    ripe = look(marks, readings, now, clean=True)
    return act(tally, budget, ripe, now) if plan(tally, budget, ripe, now) else set()


def forgetful(
    marks: Marks, tally: Tally, budget: Budget, readings: Readings, now: float, failed: bool
) -> set[str]:
    """Unsafe: a failed round acts on nothing, but it teaches, and those that were hidden are not nominated."""
    ripe = look(marks, readings, now, clean=True)
    if failed:
        return set()
    return act(tally, budget, ripe, now) if plan(tally, budget, ripe, now) else set()


def walk(deaths: Deaths, failing: Cells, sweeping: Sweeping, limit: int, *, taints: bool) -> frozenset[str]:
    """Give what a history destroys."""
    budget, tally, marks = Budget(per_hour=limit), Tally(), Marks(SweepSettings())
    dies = dict(zip(SUBJECTS, deaths, strict=True))
    done: set[str] = set()
    for sweep in range(SWEEPS):
        readings: Readings = {
            subject: UNKNOWN if (sweep, subject) in failing else ABSENT if dies[subject] <= sweep else PRESENT
            for subject in SUBJECTS
            if subject not in done
        }
        failed = taints and UNKNOWN in readings.values()
        gone = sweeping(marks, tally, budget, readings, 1000.0 + 300.0 * sweep, failed)
        assert all(dies[subject] <= sweep for subject in gone), "a live subject was destroyed"
        done |= gone
    return frozenset(done)


def histories() -> Iterator[tuple[Deaths, int]]:
    """Give who dies when, up to renaming, and for how many histories each one stands."""
    for deaths in combinations_with_replacement([*range(SWEEPS), NEVER], len(SUBJECTS)):
        yield deaths, len(set(permutations(deaths)))


def violations(sweeping: Sweeping, limit: int, *, taints: bool, every: int = 1) -> Counter[str]:
    """Count the histories in which failures have added destructions, or destroyed others."""
    found: Counter[str] = Counter()
    for deaths, weight in histories():
        without = walk(deaths, (), sweeping, limit, taints=taints)
        for failing in FAILING[::every]:
            with_failures = walk(deaths, failing, sweeping, limit, taints=taints)
            found["histories"] += weight
            found["destroyed"] += weight * len(with_failures)
            found["others"] += weight * (not with_failures <= without)
            found["more"] += weight * (len(with_failures) > len(without))
    return found


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("taints", [True, False], ids=["failed calls", "answers that prove nothing"])
def test_failures_never_add_a_destruction(limit: int, taints: bool) -> None:
    """No failure adds permission, whether it taints the round or is an answer that proves nothing."""
    found = violations(real, limit, taints=taints)
    assert (found["others"], found["more"]) == (0, 0)
    assert found["histories"] == 6**3 * len(FAILING) == 124_200
    assert found["destroyed"] > 5_000, "a sweep that never acts proves nothing"


@pytest.mark.parametrize("sweeping", [unscoped, forgetful])
def test_unsafe_variants_are_seen(sweeping: Sweeping) -> None:
    """The model can tell: without the rules, failures add destructions."""
    found = violations(sweeping, 2, taints=True, every=4)
    assert found["others"] > 500
    assert found["more"] > 500


def test_rounds_that_nominate_nobody_add_no_destruction() -> None:
    """A listing that fails as a whole hides everybody at once: nothing is learnt, and nobody is let through."""

    def listing(failing: Collection[int]) -> Sweeping:
        def sweep(
            marks: Marks, tally: Tally, budget: Budget, readings: Readings, now: float, _: bool
        ) -> set[str]:
            if (now - 1000.0) / 300.0 in failing:
                look(marks, {}, now, clean=False)
                return set()
            return real(marks, tally, budget, readings, now, False)

        return sweep

    destroyed = 0
    for limit in (1, 2):
        for deaths, _ in histories():
            without = walk(deaths, (), listing(()), limit, taints=True)
            for count in range(1, SWEEPS):
                for failing in combinations(range(SWEEPS), count):
                    gone = walk(deaths, (), listing(failing), limit, taints=True)
                    assert gone <= without
                    destroyed += len(gone)
    assert destroyed


def test_fewer_readings_of_a_population_add_none() -> None:
    """A share of a population: what went within the hour does not make the limit of others smaller."""
    budget = Budget(per_hour=None, share=0.2, population=lambda: 0)
    for held in range(3):
        destroyed = []
        for failing in (frozenset[int](), frozenset({held})):
            tally, size, done = Tally(), 10, set[str]()
            for sweep, subjects in enumerate((["a"], ["a", "b"], ["a", "b"])):
                left = [subject for subject in subjects if subject not in done]
                population = Population(size - len(done))
                found = tally.judge(budget, left, 300.0 * sweep, population, automatic=True, plan=True)
                if not found and sweep not in failing:
                    for subject in left:
                        tally.destroyed(subject, 300.0 * sweep)
                        done.add(subject)
            destroyed.append(done)
        assert destroyed[1] <= destroyed[0]
