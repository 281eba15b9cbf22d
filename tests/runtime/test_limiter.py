"""Limits: exact, fair, without leaks, and no word about the dependency."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import threading
import time
from typing import Any

import pytest

from safehold import (
    ConfigurationError,
    Dependency,
    HealthState,
    Limiter,
    OperationBlocked,
    Refused,
    RetryBudget,
    Safehold,
    Saturated,
)
from safehold._runtime.limiter import _ThreadWaiter
from safehold.testing.clock import ManualClock

from .support import PATIENCE, in_threads, make_healthy, make_open, many_switches, python


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def is_whole(limiter: Limiter) -> bool:
    """Whether every slot and every seat has come back."""
    return (limiter.in_flight, limiter.waiting, len(limiter._waiting)) == (0, 0, 0)


@contextlib.contextmanager
def full(limiter: Limiter) -> Any:
    """Take all slots for the length of a block."""
    with contextlib.ExitStack() as stack:
        while limiter.in_flight < limiter.concurrency:
            stack.enter_context(limiter)
        yield


# --- the limit ----------------------------------------------------------------------------------------


def test_one_more_than_may_be_is_refused(health: Safehold, redis: Dependency) -> None:
    """Up to the limit everybody comes in; the next one does not, until one has left."""
    limiter = health.limiter("redis", 2)
    with limiter:
        with limiter:
            with pytest.raises(Saturated) as caught, limiter:
                pytest.fail("one too many")
            assert limiter.in_flight == 2
        with limiter:
            pass
    assert is_whole(limiter)
    error = caught.value
    assert (error.dependency, error.reason, error.state) == ("redis", "saturated", HealthState.UNKNOWN)
    assert isinstance(error, Refused)
    assert str(error) == (
        "redis is given no more calls now (2 calls in flight, 0 waiting), the call was not made, retry in 1 s"
    )


async def test_every_form_takes_a_slot(health: Safehold, redis: Dependency) -> None:
    """`with`, `async with` and both decorators count together, and keep values, names and exceptions."""
    limiter = health.limiter("redis", 1)

    @limiter
    def read(key: str) -> str:
        """Read it."""
        assert limiter.in_flight == 1
        return key.upper()

    @limiter
    async def aread(key: str) -> str:
        assert limiter.in_flight == 1
        if key == "bad":
            raise KeyError(key)
        return key.upper()

    assert (read("a"), await aread("b"), read.__name__, read.__doc__) == ("A", "B", "read", "Read it.")
    with pytest.raises(KeyError):
        await aread("bad")
    async with limiter:
        with pytest.raises(Saturated):
            read("a")
        with pytest.raises(Saturated):
            await aread("a")
        with pytest.raises(Saturated):
            async with limiter:
                pass
    assert is_whole(limiter)


def test_the_same_dependency_has_one_limiter(health: Safehold) -> None:
    """Two modules that limit one dependency share the limit; if they disagree, they are told."""
    limiter = health.limiter("redis", 2, max_waiting=1, wait_timeout=3)
    assert health.limiter("redis", 2, max_waiting=1, wait_timeout=3) is limiter
    with pytest.raises(ConfigurationError, match="limiter already"):
        health.limiter("redis", 3, max_waiting=1, wait_timeout=3)
    assert list(health._limiters) == [limiter]


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"concurrency": 1.5},
        {"concurrency": 1, "max_waiting": -1},
        {"concurrency": 1, "wait_timeout": -1},
        {"concurrency": 1, "wait_timeout": float("inf")},
    ],
)
def test_limits_that_cannot_be(health: Safehold, wrong: dict[str, Any]) -> None:
    """Limits are whole numbers, times are finite."""
    with pytest.raises(ConfigurationError):
        health.limiter("redis", **wrong)


def test_what_cannot_be_decorated_says_so(health: Safehold) -> None:
    """A generator would hold its slot for as long as somebody keeps it."""
    with pytest.raises(ConfigurationError, match="decorates"):

        @health.limiter("redis", 1)
        def steps() -> Any:
            yield 1


def test_the_limit_holds_under_load(health: Safehold) -> None:
    """Threads that come and go at every moment never exceed the limit, and leave nothing behind."""
    limiter = health.limiter("redis", 3, max_waiting=4)
    inside: list[int] = []
    most: list[int] = []

    def work(_: int) -> tuple[int, int]:
        done = refused = 0
        for _ in range(300):
            try:
                with limiter:
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    done += 1
            except Saturated:
                refused += 1
        return done, refused

    with many_switches():
        results = in_threads(work, 12)
    assert max(most) <= 3
    assert is_whole(limiter)
    report = limiter.report()
    assert report.admitted == sum(done for done, _ in results)
    assert report.saturated == sum(refused for _, refused in results)
    with full(limiter):
        assert limiter.in_flight == 3


# --- waiting ------------------------------------------------------------------------------------------


async def test_waiting_is_first_come_first_served(health: Safehold, clock: ManualClock) -> None:
    """Tasks and threads wait in one queue; nobody who comes later goes first."""
    limiter = health.limiter("redis", 1, max_waiting=8)
    order: list[int] = []

    async def task(number: int) -> None:
        async with limiter:
            order.append(number)

    def thread(number: int) -> None:
        with limiter:
            order.append(number)

    work: list[Any] = []
    async with limiter:
        for number in range(8):
            if number % 2:
                work.append(asyncio.create_task(asyncio.to_thread(thread, number)))
            else:
                work.append(asyncio.create_task(task(number)))
            deadline = time.monotonic() + PATIENCE
            while len(limiter._waiting) <= number and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        with pytest.raises(Saturated):
            await task(99)
        assert (limiter.waiting, limiter.report().waiting) == (8, 8)
    await asyncio.wait_for(asyncio.gather(*work), PATIENCE)
    assert order == list(range(8))
    assert is_whole(limiter)


async def test_nobody_overtakes_those_who_wait(health: Safehold) -> None:
    """A caller that comes just as a slot comes free queues up behind the others."""
    limiter = health.limiter("redis", 1, max_waiting=2)
    order: list[str] = []

    async def task(name: str) -> None:
        async with limiter:
            order.append(name)

    async with limiter:
        first = asyncio.create_task(task("first"))
        await settle()
    late = asyncio.create_task(task("late"))
    with pytest.raises(Saturated), limiter:  # this very moment the slot is promised already
        pytest.fail("overtaken")
    await asyncio.gather(first, late)
    assert order == ["first", "late"]


@pytest.mark.parametrize(("passed", "refused"), [(2.9, False), (3.0, True), (9.0, True)])
async def test_waiting_ends_in_time(
    health: Safehold, clock: ManualClock, passed: float, refused: bool
) -> None:
    """Nobody waits longer than the limit says, and it gives the place back."""
    limiter = health.limiter("redis", 1, max_waiting=1, wait_timeout=3)

    async def work() -> str:
        async with limiter:
            return "done"

    with limiter:
        task = asyncio.create_task(work())
        await settle()
        clock.advance(passed)
        await settle()
        assert task.done() is refused
        assert limiter.waiting == (0 if refused else 1)
    if refused:
        with pytest.raises(Saturated):
            await task
    else:
        assert await task == "done"
    assert is_whole(limiter)


def test_a_thread_does_not_wait_for_ever(health: Safehold, clock: ManualClock) -> None:
    """The same on a thread."""
    limiter = health.limiter("redis", 1, max_waiting=1, wait_timeout=3)
    result: list[Any] = []

    def work() -> None:
        try:
            with limiter:
                result.append("done")
        except Saturated as error:
            result.append(error)

    with limiter:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        deadline = time.monotonic() + PATIENCE
        while not limiter._waiting and time.monotonic() < deadline:
            time.sleep(0.001)
        clock.advance(2.9)
        thread.join(0.05)
        assert thread.is_alive()
        clock.advance(0.1)
        thread.join(PATIENCE)
    assert isinstance(result[0], Saturated)
    assert is_whole(limiter)


async def test_a_plain_with_never_blocks_an_event_loop(health: Safehold) -> None:
    """Who would wait here would stop those who hold the slots."""
    limiter = health.limiter("redis", 1, max_waiting=5)
    async with limiter:
        with pytest.raises(Saturated), limiter:
            pass
    assert is_whole(limiter)


@pytest.mark.parametrize("moment", ["while waiting", "when given", "when given and run"])
async def test_a_cancelled_waiter_leaks_no_slot(health: Safehold, moment: str) -> None:
    """Whenever the cancellation comes, slot and seat go to the next."""
    limiter = health.limiter("redis", 1, max_waiting=2)
    served: list[str] = []

    async def work(name: str) -> None:
        async with limiter:
            served.append(name)
            await asyncio.sleep(0)

    async with limiter:
        first = asyncio.create_task(work("first"))
        second = asyncio.create_task(work("second"))
        await settle()
        if moment == "while waiting":
            first.cancel()
            await settle()
            assert limiter.waiting == 1
    if moment == "when given and run":
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), PATIENCE)
    assert served[-1] == "second"
    assert is_whole(limiter)


def test_an_event_loop_that_is_gone_keeps_no_slot(health: Safehold) -> None:
    """A waiter whose loop was closed is passed over, and gives nothing back twice."""
    limiter = health.limiter("redis", 2, max_waiting=2)
    loop = asyncio.new_event_loop()

    async def work() -> None:
        async with limiter:
            pytest.fail("its loop is closed")

    with limiter:
        with limiter:
            task = loop.create_task(work())
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
        assert (limiter.in_flight, limiter.waiting) == (1, 1)
        task._log_destroy_pending = False
        coroutine = task.get_coro()
        assert coroutine is not None
        coroutine.close()
        assert (limiter.in_flight, limiter.waiting) == (1, 0)
    assert is_whole(limiter)


def test_the_moment_in_which_a_slot_comes_free(health: Safehold, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever comes between a slot's return and its next owner: those who wait go first, and do go."""
    limiter = health.limiter("redis", 1, max_waiting=2)
    waiter = _ThreadWaiter()
    limiter._seats.pop()
    limiter._waiting.append(waiter)  # as if the slot had come free this very moment
    monkeypatch.setattr(limiter, "max_waiting", 1)
    limiter._seats.clear()
    with pytest.raises(Saturated), limiter:
        pytest.fail("overtaken")
    assert not waiter._open
    assert limiter._leave_queue(waiter, use=True)
    limiter.__exit__(None, None, None)
    monkeypatch.setattr(limiter, "_take", lambda: False)  # as if it came free right after the look
    with limiter:
        assert limiter.in_flight == 1


async def test_a_storm_of_cancellations(health: Safehold) -> None:
    """Random cancellations of random waiters: the limit holds, and everything comes back."""
    limiter = health.limiter("redis", 4, max_waiting=50)
    rng, inside, most = random.Random(3), 0, 0

    async def work() -> None:
        nonlocal inside, most
        async with limiter:
            inside += 1
            most = max(most, inside)
            try:
                await asyncio.sleep(0)
            finally:
                inside -= 1

    tasks = []
    for _ in range(1000):
        tasks.append(asyncio.create_task(work()))
        if rng.random() < 0.4:
            await asyncio.sleep(0)
        rng.choice(tasks).cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 4
    assert is_whole(limiter)
    with full(limiter):
        pass


# --- what a refusal says, and what it does not --------------------------------------------------------


@pytest.mark.parametrize("health_before", ["unknown", "healthy", "half_open"])
def test_saturation_says_nothing_about_the_dependency(
    health: Safehold, redis: Dependency, clock: ManualClock, health_before: str
) -> None:
    """Inside a guard it is neither success nor failure nor miss; a trial gives its permit back."""
    if health_before == "healthy":
        make_healthy(redis)
    if health_before == "half_open":
        make_open(redis)
        clock.advance(10)
    limiter = health.limiter("redis", 1)

    @redis.guard
    def call() -> None:
        with limiter:
            pytest.fail("one too many")

    before = redis.status()
    with limiter:
        for _ in range(10):
            with pytest.raises(Saturated):
                call()
    after = redis.status()
    for told in ("successes", "failures", "unresolved_miss", "level"):
        assert getattr(after, told) == getattr(before, told)
    if health_before == "half_open":
        assert redis.state is HealthState.RECOVERING
        with redis.permit():
            pass
    else:
        assert after.state is before.state


def test_a_swallowed_saturation_taints_its_scope(health: Safehold, redis: Dependency) -> None:
    """The dependency is well, but this round does not know what it would have answered."""
    make_healthy(redis)
    limiter = health.limiter("redis", 1)
    destroy = health.destructive("destroy", requires=["redis"])(lambda: None)
    with health.scope("sweep") as scope, limiter:
        with contextlib.suppress(Saturated), limiter:
            pass
        assert scope.missed == ("redis",)
        with pytest.raises(OperationBlocked) as caught:
            destroy()
    assert [reason.code for reason in caught.value.reasons] == ["scope_tainted"]
    with health.scope("next"):
        destroy()
    assert redis.state is HealthState.HEALTHY


def test_retry_after_is_what_was_observed(health: Safehold, clock: ManualClock) -> None:
    """A second where nothing is known; then the time between two releases, times those who go first."""
    limiter = health.limiter("redis", 1)

    def told() -> float:
        with pytest.raises(Saturated) as caught, limiter:
            pass
        wait = caught.value.retry_after
        assert wait is not None
        return wait

    with limiter:
        assert told() == 1.0
        clock.advance(4)
        assert told() == 4.0  # it has lasted that long already
    for _ in range(40):
        with limiter:
            clock.advance(0.5)
    with limiter:
        assert told() == pytest.approx(0.5)
        clock.advance(3)
        assert told() == pytest.approx(3.0)
        clock.advance(1000)
        assert told() == 60.0
    with limiter, pytest.raises(Saturated) as caught, limiter:
        pass
    before = caught.value.retry_after
    assert before is not None
    clock.advance(before / 2)
    assert caught.value.retry_after == pytest.approx(before / 2)
    clock.advance(1000)
    assert caught.value.retry_after == 0


async def test_retry_after_counts_those_who_go_first(health: Safehold, clock: ManualClock) -> None:
    """One who waits doubles the time, and each release under load is an observation."""
    limiter = health.limiter("redis", 1, max_waiting=1)

    async def work() -> None:
        async with limiter:
            clock.advance(2)

    async with limiter:
        task = asyncio.create_task(work())
        await settle()
        with pytest.raises(Saturated) as caught, limiter:
            pass
        assert caught.value.retry_after == 2.0
        clock.advance(4)
    await task
    assert list(limiter._gaps) == [4, 2]


def test_a_refusal_travels(health: Safehold) -> None:
    """As every other error: as a payload, and back."""
    limiter = health.limiter("redis", 1)
    with limiter, pytest.raises(Saturated) as caught, limiter:
        pass
    payload = caught.value.to_payload()
    assert (payload.code, payload.reason) == ("saturated", "saturated")
    again = Refused.from_payload(payload.model_dump_json())
    assert type(again) is Saturated
    assert (str(again), again.retry_after) == (str(caught.value), caught.value.retry_after)


def test_a_report_counts(health: Safehold) -> None:
    """In flight, waiting, admitted, refused, each with its limit."""
    limiter = health.limiter("redis", 2, max_waiting=3)
    with limiter:
        assert limiter.report().model_dump() == {
            "dependency": "redis",
            "concurrency": 2,
            "in_flight": 1,
            "max_waiting": 3,
            "waiting": 0,
            "admitted": 1,
            "saturated": 0,
            "retry_after": 0.0,
        }
        with limiter:
            assert limiter.report().retry_after == 1.0
    assert repr(limiter) == "<Limiter 'redis': 0 of 2, 0 waiting>"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_has_all_slots() -> None:
    """Calls and waiters of the parent are not the child's, and what it gives back is not too much."""
    python(
        """
        import os, threading, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from safehold import *
        home = Safehold("fork")
        limiter = home.limiter("redis", 1, max_waiting=1)
        budget = RetryBudget()
        with limiter:
            threading.Thread(target=limiter.__enter__, daemon=True).start()
            while not limiter._waiting:
                time.sleep(0.01)
            budget._lock.acquire()
            pid = os.fork()
            if pid == 0:
                assert (limiter.in_flight, limiter.waiting) == (0, 0)
                limiter.__exit__(None, None, None)  # of the block around the fork
                thread = threading.Thread(target=budget.call, daemon=True)
                thread.start()
                thread.join(5)
                if thread.is_alive():
                    os._exit(3)
                with limiter:
                    try:
                        limiter.max_waiting = 0
                        limiter._seats.clear()
                        with limiter:
                            os._exit(2)
                    except Saturated:
                        os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        """
    )


# --- the retry budget ---------------------------------------------------------------------------------


def test_a_retry_budget_is_shared(clock: ManualClock) -> None:
    """All who use it draw from the same share, and time refills it."""
    budget = RetryBudget(share=0.5, floor=1, window=10, clock=clock)
    assert (budget.left, budget.retry(), budget.retry()) == (1, True, False)
    for _ in range(4):
        budget.call()
    assert budget.left == 2
    assert [budget.retry() for _ in range(3)] == [True, True, False]
    clock.advance(10)
    assert repr(budget) == "<RetryBudget share=0.5 floor=1 window=10: 1 left>"


@pytest.mark.parametrize(
    "wrong", [{"share": 1.1}, {"share": -0.1}, {"floor": -1}, {"floor": 1.5}, {"window": 0}]
)
def test_budgets_that_cannot_be(wrong: dict[str, Any]) -> None:
    """A share is a share, a floor is a number of retries."""
    with pytest.raises(ConfigurationError):
        RetryBudget(**wrong)


def test_a_budget_is_exact_under_load(clock: ManualClock) -> None:
    """However many threads ask at once, no retry too many is given."""
    budget = RetryBudget(share=0.0, floor=50, window=10, clock=clock)
    with many_switches():
        given = in_threads(lambda _: sum(budget.retry() for _ in range(20)), 8)
    assert sum(given) == 50
