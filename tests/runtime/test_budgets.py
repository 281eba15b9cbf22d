"""How much may be destroyed, end to end: in every form of operation, over restarts and between processes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from safehold import (
    Budget,
    ConfigurationError,
    Dependency,
    GatePolicy,
    OperationBlocked,
    Safehold,
)
from safehold._core.budget import WINDOW
from safehold.testing.clock import ManualClock

from .support import POLICY, Down, Form, fail, finish, in_threads, make_healthy, python, succeed

ASYNC = {"coroutine_function", "async_generator", "async_method", "async_partial", "async_callable_object"}


@pytest.fixture(autouse=True)
def well(redis: Dependency) -> None:
    make_healthy(redis)


def codes(error: OperationBlocked) -> list[str]:
    return [reason.code for reason in error.reasons]


def blocked(call: Callable[..., Any], *args: Any, **kwargs: Any) -> OperationBlocked:
    with pytest.raises(OperationBlocked) as caught:
        call(*args, **kwargs)
    return caught.value


def new(clock: ManualClock, directory: Path | None = None) -> Safehold:
    """A process that begins: everything is well, and what was kept is taken up."""
    home = Safehold("test", clock=clock, rng=random.Random(1), gate=GatePolicy(startup_grace=0.0))
    if directory is not None:
        home.configure(state_dir=directory)
    succeed(home.dependency("redis", critical=True, policy=POLICY))
    return home


def reaper(home: Safehold, budget: Budget, **options: Any) -> tuple[Callable[..., None], list[str]]:
    reaped: list[str] = []

    @home.destructive("session.reap", subject="session_id", budget=budget, **options)
    def reap(session_id: str) -> None:
        reaped.append(session_id)

    return reap, reaped


def end(s: str) -> None:
    """What a person asks for."""


# --- direct calls, in every form ------------------------------------------------------------------------


def test_direct_calls_are_charged_and_the_first_over_trips_all(health: Safehold, gate_form: Form) -> None:
    """Three go, the fourth trips, the fifth is held by the trip; none of the two has run."""
    ran: list[Any] = []
    call = gate_form.gate(health, "cache.drop", lambda *args: ran.append(args), budget=Budget(per_hour=3))
    for number in range(3):
        call(number)
    assert codes(blocked(call, 3)) == ["budget_exceeded"]
    late = blocked(call, 4)
    assert (codes(late), late.retry_after) == (["budget_tripped"], None)
    assert ran == [(0,), (1,), (2,)]
    assert health.budget("cache").acts == 3


def test_reset_lets_calls_through_again(health: Safehold, gate_form: Form) -> None:
    """A person's word ends the trip, with name and reason in the ledger."""
    ran: list[Any] = []
    call = gate_form.gate(health, "cache.drop", lambda *args: ran.append(args), budget=Budget(per_hour=1))
    call(1)
    blocked(call, 2)
    health.budget("cache").reset(actor="ada", reason="campaign is over")
    call(3)
    assert ran == [(1,), (3,)]
    (note,) = health.ledger.entries("budget reset")
    assert (note.actor, note.why, note.subject) == ("ada", "campaign is over", "cache")


def test_population_that_awaits_belongs_to_operations_that_do(health: Safehold, gate_form: Form) -> None:
    """A coroutine function is asked by a coroutine function; elsewhere the block says what is wrong."""

    async def population() -> int:
        return 1000

    ran: list[Any] = []
    budget = Budget(per_hour=3, population=population)
    call = gate_form.gate(health, "cache.drop", lambda *args: ran.append(args), budget=budget)
    if gate_form.name in ASYNC:
        call(1)
        assert ran == [(1,)]
        assert health.budget("cache").high_water == 1000
        return
    error = blocked(call, 1)
    assert codes(error) == ["population_unknown"]
    assert "a coroutine function can only be asked" in str(error)
    assert not ran


class Odd:
    def __len__(self) -> int:
        return -1


def _raises() -> int:
    raise Down("no answer")


@pytest.mark.parametrize(
    "population",
    [
        _raises,
        lambda: None,
        lambda: True,
        lambda: -1,
        lambda: 12.0,
        lambda: "hundred",
        lambda: b"hundred",
        lambda: iter([1, 2, 3]),
        lambda: 10**400,
        lambda: object(),
        Odd,
        lambda: len,
        lambda needed: needed,
    ],
)
def test_population_that_cannot_be_told_blocks(
    health: Safehold, gate_form: Form, population: Callable[..., Any]
) -> None:
    """Cannot tell means no, whatever it gives or raises."""
    ran: list[Any] = []
    budget = Budget(per_hour=3, population=population)
    call = gate_form.gate(health, "cache.drop", lambda *args: ran.append(args), budget=budget)
    assert codes(blocked(call, 1)) == ["population_unknown"]
    assert not ran


def test_population_whose_question_is_cancelled_lets_nothing_through(
    health: Safehold, gate_form: Form
) -> None:
    """A cancellation is the caller's: it passes, and nothing has run."""

    def population() -> int:
        raise asyncio.CancelledError

    ran: list[Any] = []
    budget = Budget(per_hour=3, population=population)
    call = gate_form.gate(health, "cache.drop", lambda *args: ran.append(args), budget=budget)
    with pytest.raises(asyncio.CancelledError):
        call(1)
    assert not ran


@pytest.mark.parametrize(
    "population", [lambda: 50, lambda: list(range(50)), lambda: dict.fromkeys(range(50))]
)
def test_population_is_a_number_or_a_collection(
    health: Safehold, gate_form: Form, population: Callable[[], Any]
) -> None:
    """The twin: what tells its size is believed."""
    ran: list[Any] = []
    budget = Budget(per_hour=None, share=0.04, population=population)
    call = gate_form.gate(health, "cache.drop", lambda *args: ran.append(args), budget=budget)
    call(1)
    call(2)
    assert codes(blocked(call, 3)) == ["budget_exceeded"]
    assert len(ran) == 2


def test_population_that_swallows_a_miss_is_unknown(
    health: Safehold, api: Dependency, gate_form: Form
) -> None:
    """`except: rows = []` does not make a population small."""
    ran: list[Any] = []

    def population() -> int:
        with suppress(Down), api.permit():
            raise Down("no answer")
        return 1000

    budget = Budget(per_hour=3, population=population)
    call = gate_form.gate(health, "cache.drop", lambda *args: ran.append(args), budget=budget)
    error = blocked(call, 1)
    assert codes(error) == ["population_unknown"]
    assert "api did not answer" in str(error)
    assert not ran


def test_population_is_not_asked_for_a_persons_wish(health: Safehold) -> None:
    """A requested operation meets the cap only, and needs no listing to work."""
    asked: list[int] = []
    budget = Budget(per_hour=1, hard_cap=2, population=lambda: asked.append(1))
    call, reaped = reaper(health, budget, trigger="requested")
    call("a")
    call("b")
    assert codes(blocked(call, "c")) == ["hard_cap"]
    assert (reaped, asked) == (["a", "b"], [])


def test_aliases_count_together(health: Safehold) -> None:
    """T143: operations of one subject type share what they may destroy."""
    reap, _ = reaper(health, Budget(per_hour=2))

    @health.destructive("zombie.kill", subject="zombie", subject_type="session", budget=Budget(per_hour=2))
    def kill(zombie: str) -> None: ...

    reap("a")
    kill("b")
    assert codes(blocked(reap, "c")) == ["budget_exceeded"]
    assert codes(blocked(kill, "b")) == ["budget_tripped"]
    health.destructive("job.end", subject="s", budget=Budget(per_hour=2))(end)("j1")


def test_retries_of_a_blocked_call_take_no_more_of_the_budget(health: Safehold, redis: Dependency) -> None:
    """One subject counts once, however often somebody tries while the store is down."""
    reap, reaped = reaper(health, Budget(per_hour=2))
    with health.scope("round"):
        fail(redis)
        for _ in range(50):
            blocked(reap, "a")
        assert health.budget("session").nominated == 1
    succeed(redis)
    with health.scope("next round"):
        reap("a")
        reap("b")
        assert codes(blocked(reap, "c")) == ["budget_exceeded"]
    assert reaped == ["a", "b"]


def test_what_was_held_back_counts_for_those_that_follow(health: Safehold, redis: Dependency) -> None:
    """An outage does not make room: what it held back was nominated."""
    reap, reaped = reaper(health, Budget(per_hour=2))
    with health.scope("round"):
        fail(redis)
        blocked(reap, "a")
        blocked(reap, "b")
    succeed(redis)
    with health.scope("next round"):
        assert codes(blocked(reap, "c")) == ["budget_exceeded"]
    assert not reaped


@pytest.mark.parametrize("threads", [8])
def test_threads_share_one_budget_and_one_cap(health: Safehold, threads: int) -> None:
    """However many ask at once, no more go than may."""
    reap, reaped = reaper(health, Budget(per_hour=20))
    purge: list[str] = []

    @health.destructive(
        "job.drop", subject="job", trigger="requested", budget=Budget(per_hour=2, hard_cap=30)
    )
    def drop(job: str) -> None:
        purge.append(job)

    def work(index: int) -> None:
        for number in range(10):
            with suppress(OperationBlocked):
                reap(f"{index}-{number}")
            with suppress(OperationBlocked):
                drop(f"{index}-{number}")

    in_threads(work, threads)
    assert len(reaped) <= 20
    assert len(purge) == 30


def test_cap_is_looked_at_again_when_it_is_charged(health: Safehold) -> None:
    """Between the judgement and the act others may have used it up."""
    inside, go = threading.Event(), threading.Event()
    done: list[str] = []
    budget = Budget(per_hour=1, hard_cap=1)
    call, _ = reaper(health, budget, trigger="requested")

    class Slow:
        def __init__(self) -> None:
            self.first = True

        def __str__(self) -> str:
            return "a"

    gate = health._gate
    judge = gate._judge

    def judged(*args: Any, **kwargs: Any) -> Any:
        verdict = judge(*args, **kwargs)
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            assert go.wait(10)
        return verdict

    gate._judge = judged  # type: ignore[method-assign]  # the race, made to happen

    def late() -> None:
        done.extend(codes(blocked(call, Slow())))

    thread = threading.Thread(target=late, daemon=True)
    thread.start()
    assert inside.wait(10)
    call("b")
    go.set()
    thread.join(10)
    assert done == ["hard_cap"]


def test_failed_act_is_charged_and_does_not_lower_the_baseline(health: Safehold) -> None:
    """What raised may have been done, or not: it counts, and nobody is known to be gone."""
    budget = Budget(per_hour=5, population=lambda: 100)

    @health.destructive("session.reap", subject="session_id", budget=budget)
    def reap(session_id: str) -> None:
        raise Down("no answer")

    with pytest.raises(Down):
        reap("a")
    told = health.budget("session")
    assert (told.acts, told.high_water) == (1, 100)


def test_population_that_collapses_blocks_until_it_is_back_or_acknowledged(health: Safehold) -> None:
    """T27: a store that lost half of its sessions is no reason to reap any; both exits work."""
    size = [100]
    reap, reaped = reaper(health, Budget(per_hour=10, population=lambda: size[0]))
    reap("a")
    size[0] = 50
    assert codes(blocked(reap, "b")) == ["population_collapsed"]
    size[0] = 95
    reap("b")
    size[0] = 50
    assert codes(blocked(reap, "c")) == ["population_collapsed"]
    health.budget("session").acknowledge(50, actor="ada", reason="half of them were moved")
    reap("c")
    assert reaped == ["a", "b", "c"]


# --- plans ----------------------------------------------------------------------------------------------


def test_plan_is_all_or_nothing(health: Safehold) -> None:
    """Three of three pass and are covered, four of three pass not at all."""
    reap, reaped = reaper(health, Budget(per_hour=3))
    plan = health.plan("session.reap", ["a", "b", "c"])
    assert plan
    assert plan.subjects == ("a", "b", "c")
    for name in plan.subjects:
        reap(name)
    health.budget("session").reset(actor="ada", reason="next")
    plan = health.plan("session.reap", ["d", "e", "f", "g"])
    assert not plan
    assert [reason.code for reason in plan.reasons] == ["budget_exceeded"]
    assert codes(blocked(reap, "d")) == ["budget_tripped"]
    assert reaped == ["a", "b", "c"]


def test_plan_does_not_end_a_trip_by_waiting_and_does_by_fitting(
    health: Safehold, clock: ManualClock
) -> None:
    """T77: an hour after what did not fit, a fresh plan that fits ends the trip; nothing else does."""
    reap, reaped = reaper(health, Budget(per_hour=3))
    assert not health.plan("session.reap", list("abcd"))
    clock.advance(WINDOW)
    blocked(reap, "a")
    clock.advance(WINDOW - 1)
    assert not health.plan("session.reap", ["a"])
    clock.advance(1)
    assert health.plan("session.reap", [])
    assert health.budget("session").tripped
    assert health.plan("session.reap", ["a"])
    assert health.budget("session").tripped is None
    reap("a")
    assert reaped == ["a"]


@pytest.mark.parametrize("subjects", [None, "", "abc", b"abc", 5, iter(["a"]), [None], ["a", " "], [""]])
def test_plan_names_its_subjects(health: Safehold, subjects: Any) -> None:
    """T90: none of nothing, a text or a blank ever means all."""
    reaper(health, Budget(per_hour=3))
    with pytest.raises(ConfigurationError):
        health.plan("session.reap", subjects)


def test_plan_with_an_async_population(health: Safehold) -> None:
    """`aplan` awaits what `plan` cannot."""

    async def population() -> int:
        return 100

    @health.destructive("session.reap", subject="s", budget=Budget(per_hour=3, population=population))
    async def reap(s: str) -> None: ...

    assert [r.code for r in health.plan("session.reap", ["a"]).reasons] == ["population_unknown"]
    assert finish(health.aplan("session.reap", ["a"]))


def test_plan_that_cannot_be_counted_says_no(clock: ManualClock, tmp_path: Path) -> None:
    """A state that cannot be written blocks a plan and a call; the application runs on."""
    home = new(clock, tmp_path / "state")
    reap, reaped = reaper(home, Budget(per_hour=3))
    home.budget("session").reset(actor="ada", reason="first start")
    reap("a")
    path = home._records.budgets._file
    assert path is not None
    path.path.unlink()
    path.path.mkdir()
    plan = home.plan("session.reap", ["b"])
    assert [reason.code for reason in plan.reasons] == ["gate_fault"]
    assert codes(blocked(reap, "b")) == ["gate_fault"]
    assert reaped == ["a"]


def test_digest_names_operation_and_subjects_in_any_order(health: Safehold) -> None:
    """What is approved is exactly this."""
    reaper(health, Budget(per_hour=3))
    health.destructive("session.end", subject="s", budget=Budget(per_hour=9))(end)
    digest = health.plan("session.reap", ["a", "b"]).digest
    assert health.plan("session.reap", ["b", "a", "b"]).digest == digest
    assert health.plan("session.reap", ["a"]).digest != digest
    assert health.plan("session.reap", ["ab"]).digest != digest
    assert health.plan("session.end", ["a", "b"]).digest != digest


def test_digest_names_the_epoch(health: Safehold) -> None:
    """T91: what was approved of other data is approved no more."""
    epoch = ["one"]
    health.dependency("store", policy=POLICY, epoch=lambda: epoch[0])
    succeed(health["store"])
    health.destructive("session.end", subject="s", requires=["store"], budget=Budget(per_hour=9))(end)
    before = health.plan("session.end", ["a"]).digest
    assert health.plan("session.end", ["a"]).digest == before
    epoch[0] = "two"
    assert health.plan("session.end", ["a"]).digest != before


# --- over a restart -----------------------------------------------------------------------------------------


def state_file(directory: Path) -> Path:
    return directory / "budgets.json"


def started(clock: ManualClock, directory: Path) -> tuple[Safehold, Callable[..., None], list[str]]:
    home = new(clock, directory)
    return home, *reaper(home, Budget(per_hour=3, population=lambda: 100))


def test_budget_survives_a_restart(clock: ManualClock, tmp_path: Path) -> None:
    """What was nominated, the trip, the acts and the baseline are those of the process before."""
    home, reap, _ = started(clock, tmp_path)
    home.budget("session").reset(actor="ada", reason="first start")
    reap("a")
    reap("b")
    clock.advance(60)
    home, reap, _ = started(clock, tmp_path)
    told = home.budget("session")
    assert (told.nominated, told.acts, told.high_water, told.tripped) == (2, 2, 99, None)
    reap("c")
    assert codes(blocked(reap, "d")) == ["budget_exceeded"]
    home, reap, reaped = started(clock, tmp_path)
    clock.advance(10 * WINDOW)
    assert codes(blocked(reap, "e")) == ["budget_tripped"]
    home.budget("session").reset(actor="ada", reason="looked at")
    home, reap, reaped = started(clock, tmp_path)
    reap("e")
    assert reaped == ["e"]


def _missing(path: Path) -> None:
    path.unlink()


def _corrupt(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _other(path: Path) -> None:
    path.write_text(json.dumps({"kinds": {}}))


@pytest.mark.parametrize("lose", [_missing, _corrupt, _cut, _empty, _other])
def test_lost_state_means_no_budget_for_an_hour(
    clock: ManualClock, tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    """Missing, changed or cut: the hour counts as used up; waiting it out or a person's word ends that."""
    for waits in (True, False):
        directory = tmp_path / str(waits)
        home, reap, _ = started(clock, directory)
        home.budget("session").reset(actor="ada", reason="first start")
        reap("a")
        lose(state_file(directory))
        home, reap, reaped = started(clock, directory)
        error = blocked(reap, "b")
        assert codes(error) == ["budget_state_lost"]
        assert error.retry_after == pytest.approx(WINDOW)
        clock.advance(600)
        home, reap, reaped = started(clock, directory)  # a restart does not begin the hour again
        assert blocked(reap, "b").retry_after == pytest.approx(WINDOW - 600)
        if waits:
            clock.advance(WINDOW - 600)
        else:
            home.budget("session").reset(actor="ada", reason="looked at")
        reap("b")
        assert reaped == ["b"]


def test_first_start_with_a_directory_is_as_careful_as_a_loss(clock: ManualClock, tmp_path: Path) -> None:
    """Nobody can tell a new directory from one that was lost."""
    home, reap, _ = started(clock, tmp_path / "new")
    assert codes(blocked(reap, "a")) == ["budget_state_lost"]
    wish: list[str] = []

    def end(s: str) -> None:
        wish.append(s)

    end_now = home.destructive("session.end", subject="s", trigger="requested", budget=Budget())(end)
    end_now("a")
    assert wish == ["a"]
    home.budget("session").reset(actor="ada", reason="first start")
    reap("a")


def test_new_type_of_subject_in_known_state_is_not_lost(clock: ManualClock, tmp_path: Path) -> None:
    """An operation that is added later begins at once, once the state itself is known for an hour."""
    home, reap, _ = started(clock, tmp_path)
    blocked(reap, "a")
    clock.advance(WINDOW)
    home, reap, _ = started(clock, tmp_path)
    dropped: list[str] = []

    def drop(job: str) -> None:
        dropped.append(job)

    home.destructive("job.drop", subject="job", budget=Budget(per_hour=1))(drop)("j1")
    assert dropped == ["j1"]


@pytest.mark.parametrize("step", [-10 * WINDOW, -WINDOW, WINDOW, 10 * WINDOW])
def test_setting_the_wall_clock_ends_no_window(clock: ManualClock, tmp_path: Path, step: float) -> None:
    """The hour is an hour of this process, whatever the administrator does to the clock."""
    home, reap, _ = started(clock, tmp_path)
    home.budget("session").reset(actor="ada", reason="first start")
    for name in "abc":
        reap(name)
    clock.set_wall(clock.wall() + step)
    if step > 0:
        assert codes(blocked(reap, "d")) == ["budget_exceeded"]
    else:  # written in what is now the future: nothing is known
        assert codes(blocked(reap, "d")) in (["budget_exceeded"], ["budget_state_lost"])


def test_state_is_configured_before_budgets_are_used(health: Safehold, tmp_path: Path) -> None:
    """What was counted in memory would be forgotten."""
    reap, _ = reaper(health, Budget(per_hour=3))
    reap("a")
    with pytest.raises(ConfigurationError, match="before a budget is used"):
        health.configure(state_dir=tmp_path)


def test_looking_at_a_budget_writes_nothing(clock: ManualClock, tmp_path: Path) -> None:
    """A page that shows budgets is no reason to touch the disk."""
    home = new(clock, tmp_path)
    told = home.budget("session")
    assert (told.nominated, told.acts, told.high_water, told.tripped) == (0, 0, 0, None)
    assert not state_file(tmp_path).exists()


WORKER = """
import sys
from pathlib import Path
from safehold import Budget, GatePolicy, OperationBlocked, Safehold
home = Safehold("worker", gate=GatePolicy(startup_grace=0.0, quiet_time=0.1))
home.configure(state_dir={directory!r})
redis = home.dependency("redis", critical=True)
with redis.permit():
    pass
@home.destructive("session.reap", subject="s", budget=Budget(per_hour=20))
def reap(s):
    print("done", s)
if sys.argv[1:] == ["reset"]:
    home.budget("session").reset(actor="ada", reason="first start")
for number in range(15):
    try:
        with home.scope("round"):
            reap({name!r} + str(number))
    except OperationBlocked as error:
        print("held", error.reasons[0].code)
"""


def test_two_processes_share_one_budget(tmp_path: Path) -> None:
    """Workers of one machine that keep one directory destroy together no more than one may."""
    python(
        WORKER.format(directory=str(tmp_path), name="w")
        .replace("range(15)", "range(0)")
        .replace('sys.argv[1:] == ["reset"]', "True")
    )
    results: list[str] = []

    def work(index: int) -> str:
        return python(WORKER.format(directory=str(tmp_path), name=f"w{index}-"))

    results = in_threads(work, 2)
    lines = [line for result in results for line in result.splitlines()]
    assert len([line for line in lines if line.startswith("done")]) == 20
    assert {line for line in lines if line.startswith("held")} == {
        "held budget_exceeded",
        "held budget_tripped",
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_child_counts_on_where_the_parent_was() -> None:
    """A fork is no fresh budget."""
    told = python("""
        import os
        from safehold import Budget, GatePolicy, OperationBlocked, Safehold
        home = Safehold("parent", gate=GatePolicy(startup_grace=0.0, quiet_time=0.1))
        redis = home.dependency("redis", critical=True)
        with redis.permit(): pass
        @home.destructive("session.reap", subject="s", trigger="requested", budget=Budget(per_hour=1, hard_cap=1))
        def reap(s): print("done", s, flush=True)
        reap("a")
        pid = os.fork()
        if pid == 0:
            with redis.permit(): pass
            try:
                reap("b")
            except OperationBlocked as error:
                print([r.code for r in error.reasons if r.code == "hard_cap"], flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
    """)
    assert told.splitlines() == ["done a", "['hard_cap']"]
