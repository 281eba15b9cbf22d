"""No failure adds permission: insert failures into any history, and nothing is destroyed that was not without.

Random histories through the whole runtime, played twice within one window of the budget: as they are, and with
failures inserted. What is compared is the *set* of what was destroyed, which is more than its size.

Two things are no part of the claim. A call or a nomination that is never made, because a caller or a listing
failed before the gate heard of it, is not counted by any budget; so the listing that may fail here belongs to a
type of subject that only the sweep destroys. And the hard cap counts acts, so as not to charge people for
what was blocked: it bounds the number, and leaves to the order of arrival who is below it.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from safehold import (
    UNKNOWN,
    Backoff,
    BreakerPolicy,
    Budget,
    GatePolicy,
    OperationBlocked,
    Presence,
    Refused,
    Safehold,
)
from safehold._core.budget import WINDOW
from safehold.testing.clock import ManualClock

POLICY = BreakerPolicy(
    failures=3, failure_rate=None, cooldown=Backoff(first=10.0, factor=2.0, cap=60.0, jitter=0.0)
)
JOBS = [f"j{number}" for number in range(12)]
SESSIONS = [f"s{number}" for number in range(4)]
EVERY = 100.0


class Down(ConnectionError):
    """A dependency that does not answer."""


class Rehearsal:
    """A service with a sweep of sessions, and jobs that are dropped one by one, by plan, or on evidence."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.home = home = Safehold(
            "test",
            clock=self.clock,
            rng=random.Random(1),
            gate=GatePolicy(startup_grace=0.0, implicit_scope=60.0, settle_min=30.0),
        )
        self.redis = home.dependency("redis", critical=True, policy=POLICY, epoch=self._epoch)
        self.api = home.dependency("api", policy=POLICY)
        self.dead: set[str] = set()
        self.destroyed: set[str] = set()
        self.failing: set[str] = set()  # what fails when it is asked next

        @home.witness("redis")
        def job_exists(job: str) -> bool | Presence:
            return self._looks(job)

        @home.witness("api")
        def session_exists(session: str) -> bool | Presence:
            return self._looks(session)

        jobs = Budget(per_hour=6, share=0.5, population=lambda: self._population(JOBS))
        sessions = Budget(per_hour=2)

        def destroy(subject: str) -> None:
            self.destroyed.add(subject)

        self.job_exists = job_exists
        self.drop = home.destructive("job.drop", subject="subject", budget=jobs)(destroy)
        self.bury = home.destructive("job.bury", subject="subject", budget=jobs, evidence="job_exists")(
            destroy
        )
        self.tidy = home.destructive("job.tidy", subject="subject", subject_type="other")(destroy)
        reap = home.destructive("session.reap", subject="subject", budget=sessions)(destroy)
        self.sweep = home.sweep(reap, nominate=self._nominate, confirm=session_exists, every=EVERY)
        for dependency in (self.redis, self.api):
            with dependency.permit():
                pass

    def _may_fail(self, what: str) -> None:
        if what in self.failing:
            self.failing.discard(what)
            raise Down("no answer")

    def _looks(self, subject: str) -> bool | Presence:
        self._may_fail("witness")
        if "proof" in self.failing:
            self.failing.discard("proof")
            return UNKNOWN
        return subject not in self.dead

    def _epoch(self) -> str:
        self._may_fail("epoch")
        return "one"

    def _population(self, everybody: list[str]) -> int:
        self._may_fail("population")
        return len([subject for subject in everybody if subject not in self.destroyed])

    def _nominate(self) -> list[str]:
        self._may_fail("nominate")
        return [session for session in SESSIONS if session not in self.destroyed]

    def play(self, step: tuple[Any, ...]) -> None:
        match step:
            case ("call", name, outcome):
                self._call(name, outcome)
            case ("fails", what):
                self.failing.add(what)
            case ("wait", seconds):
                self.clock.advance(seconds)
            case ("dies", subject):
                self.dead.add(subject)
            case ("sweep",):
                self.sweep.run_once()
            case ("plan", jobs):
                if self.home.plan("job.drop", [JOBS[job] for job in jobs]):
                    for job in jobs:
                        self._act(self.drop, JOBS[job])
            case ("drop", job, within):
                self._act(self.drop, JOBS[job], within=within)
            case ("careful", job):
                with self.home.scope("careful"):
                    self._call("api", Down if "call" in self.failing else None)
                    self.failing.discard("call")
                    with contextlib.suppress(OperationBlocked):
                        self.tidy(f"c{job}")
            case ("tidy", job):
                self._act(self.tidy, f"t{job}", within=False)
            case ("bury", job, _):
                with self.home.scope("bury"):
                    self.job_exists(JOBS[job])
                    self._act(self.bury, JOBS[job])
            case _:
                raise AssertionError(step)

    def _call(self, name: str, outcome: type[BaseException] | None) -> None:
        with contextlib.suppress(Down, KeyboardInterrupt, Refused), self.home[name].permit():
            if outcome is not None:
                raise outcome

    def _act(self, operation: Callable[[str], None], subject: str, *, within: bool = True) -> None:
        around = self.home.scope("act") if within else contextlib.nullcontext()
        with contextlib.suppress(OperationBlocked), around:
            operation(subject)


names = st.sampled_from(["redis", "api"])
jobs = st.integers(0, len(JOBS) - 1)
failures = st.one_of(
    st.tuples(st.just("call"), names, st.sampled_from([Down, KeyboardInterrupt])),
    st.tuples(
        st.just("fails"), st.sampled_from(["witness", "proof", "call", "epoch", "population", "nominate"])
    ),
)
outages = st.builds(lambda name: [("call", name, Down)] * 3, names)
work = st.one_of(
    st.tuples(st.just("call"), names, st.sampled_from([None, None, None, Down, KeyboardInterrupt])),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 11.0, 31.0, 61.0, EVERY, EVERY])),
    st.tuples(st.just("dies"), st.sampled_from(JOBS + SESSIONS)),
    st.tuples(st.just("sweep")),
    st.tuples(st.just("plan"), st.lists(jobs, min_size=1, max_size=5, unique=True)),
    st.tuples(st.just("drop"), jobs, st.booleans()),
    st.tuples(st.sampled_from(["tidy", "careful"]), jobs),
    st.tuples(st.just("bury"), jobs, st.booleans()),
)
calm = st.just([("call", "redis", None), ("call", "api", None)])
recovery = st.just(
    [("wait", 61.0), ("call", "redis", None), ("call", "api", None)] * 2
    + [("wait", EVERY), ("call", "redis", None), ("call", "api", None)]
)
round_ = st.just([("wait", EVERY), ("sweep",)])
deaths = st.lists(st.tuples(st.just("dies"), st.sampled_from(JOBS + SESSIONS)), max_size=4)
histories = st.lists(
    st.one_of(work.map(lambda step: [step]), work.map(lambda step: [step]), calm, recovery, round_, deaths),
    max_size=14,
).map(lambda parts: [step for part in parts for step in part])
insertions = st.lists(
    st.tuples(st.integers(0, 40), st.one_of(failures.map(lambda step: [step]), outages)),
    min_size=1,
    max_size=4,
)


def destroyed_by(history: list[tuple[Any, ...]]) -> set[str]:
    rehearsal = Rehearsal()
    began = rehearsal.clock.monotonic()
    for step in history:
        if step[0] != "wait" or rehearsal.clock.monotonic() + step[1] - began < WINDOW:
            rehearsal.play(step)
    return rehearsal.destroyed


def with_failures(
    history: list[tuple[Any, ...]], inserted: list[tuple[int, list[tuple[Any, ...]]]]
) -> list[tuple[Any, ...]]:
    longer = list(history)
    for place, steps in sorted(inserted, key=lambda item: -item[0]):
        at = min(place, len(longer))
        longer[at:at] = steps
    return longer


SWEPT = [("dies", "s0"), ("sweep",), ("wait", EVERY), ("sweep",), ("wait", EVERY), ("dies", "s1"), ("sweep",)]

TOO_MANY = [("dies", "s0"), ("dies", "s1"), ("dies", "s2"), ("sweep",), ("wait", EVERY), ("sweep",)]


@settings(max_examples=300, deadline=None)
@example(history=[*SWEPT, ("wait", EVERY), ("sweep",)], inserted=[(3, [("fails", "nominate")])])
@example(history=[("drop", n, True) for n in range(8)], inserted=[(0, [("call", "redis", Down)])])
@example(history=[("drop", n, True) for n in range(8)], inserted=[(2, [("fails", "population")])])
@example(history=[("careful", 1)], inserted=[(0, [("fails", "call")])])
@example(history=TOO_MANY, inserted=[(3, [("fails", "proof")]), (5, [("fails", "proof")])])
@example(history=TOO_MANY, inserted=[(3, [("fails", "witness")]), (5, [("fails", "proof")])])
@given(history=histories, inserted=insertions)
def test_inserted_failures_destroy_nothing_more(
    history: list[tuple[Any, ...]], inserted: list[tuple[int, list[tuple[Any, ...]]]]
) -> None:
    """Misses, cancellations, outages, witnesses, listings, populations and epochs that fail: never one more."""
    assert destroyed_by(with_failures(history, inserted)) <= destroyed_by(history)


def test_histories_do_destroy() -> None:
    """The twin: each way to destroy works in a history without failures."""
    calls = [("call", "redis", None), ("call", "api", None)]
    assert destroyed_by([*SWEPT, ("wait", EVERY), ("sweep",)]) == {"s0", "s1"}
    assert destroyed_by([*calls, ("plan", [1, 2])]) == {"j1", "j2"}
    assert destroyed_by([*calls, ("drop", 3, True), ("drop", 4, False)]) == {"j3", "j4"}
    assert destroyed_by([*calls, ("dies", "j5"), ("bury", 5, True), ("bury", 6, True)]) == {"j5"}
    assert destroyed_by([*calls, ("tidy", 1), ("careful", 1)]) == {"t1", "c1"}


# --- the gate's short cut -----------------------------------------------------------------------------------


moves = st.one_of(
    st.tuples(st.just("call"), names, st.sampled_from([None, None, Down, KeyboardInterrupt, ValueError])),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 1.0, 10.0, 29.9, 30.0, 60.0, 600.0])),
    st.tuples(st.sampled_from(["hold", "release", "reset"]), names),
    st.tuples(st.just("slow"), names),
    st.tuples(st.sampled_from(["enter scope", "leave", "enter call", "handle"])),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(moves, max_size=25), st.sampled_from([0.0, 30.0]), st.booleans())
def test_short_cut_never_says_more_than_the_decision(
    history: list[tuple[Any, ...]], grace: float, critical: bool
) -> None:
    """Whenever the gate sees at a glance that all is well, the whole decision finds nothing against it."""
    clock = ManualClock()
    home = Safehold("test", clock=clock, rng=random.Random(1), gate=GatePolicy(startup_grace=grace))
    policy = POLICY.model_copy(update={"slow_after": 1.0, "failure_rate": 0.5, "min_calls": 4})
    home.dependency("redis", critical=True, policy=policy)
    home.dependency("api", critical=critical, policy=policy)
    home.destructive("plain")(print)
    home.destructive("none", requires=())(print)
    home.destructive("wish", trigger="requested")(print)
    glances = 0

    def look() -> None:
        nonlocal glances
        for operation in home.operations:
            if home._gate._is_plainly_well(operation):
                glances += 1
                verdict = home.check(operation.name)
                assert not verdict.reasons, (operation.name, verdict)

    def go(left: list[tuple[Any, ...]]) -> None:
        while left:
            step = left.pop(0)
            match step:
                case ("call", name, outcome):
                    with (
                        contextlib.suppress(Down, KeyboardInterrupt, ValueError, Refused),
                        home[name].permit(),
                    ):
                        if outcome is not None:
                            raise outcome
                case ("slow", name):
                    with contextlib.suppress(Refused), home[name].permit():
                        clock.advance(1.5)
                case ("wait", seconds):
                    clock.advance(seconds)
                case ("hold", name):
                    home[name].hold(reason="by hand")
                case ("release", name):
                    home[name].release()
                case ("reset", name):
                    home[name].reset()
                case ("enter scope",):
                    with home.scope("one"):
                        look()
                        go(left)
                case ("enter call",):
                    with contextlib.suppress(Refused), home["redis"].permit():
                        look()
                        go(left)
                case ("handle",):
                    try:
                        with home["redis"].permit():
                            raise Down("no answer")
                    except (Down, Refused):
                        look()
                        go(left)
                case _:
                    look()
                    return
            look()

    go([("call", "redis", None), ("call", "api", None), *history])
    assert glances or grace or history
