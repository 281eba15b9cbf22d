"""Paced loops: on threads and in tasks, driven by news, and gone without a trace."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import multiprocessing
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from safehold import (
    ConfigurationError,
    Dependency,
    DependencyUnhealthy,
    HealthState,
    OperationBlocked,
    Pace,
    Safehold,
    Tick,
)
from safehold.testing.clock import ManualClock

from .support import COOLDOWN, PATIENCE, POLICY, Down, fail, make_healthy, make_open, python, succeed


async def settle() -> None:
    """Let everything run that can, without waiting for time."""
    for _ in range(20):
        await asyncio.sleep(0)


class Loop:
    """A paced loop whose ticks are gathered, in a task or on a thread, under one face."""

    def __init__(self, pace: Pace, clock: ManualClock, body: Callable[[Tick], Any] = lambda _: None) -> None:
        self.pace = pace
        self.ticks: list[Tick] = []
        self.at: list[float] = []
        self.clock = clock
        self.body = body
        self.ended = False

    def took(self, tick: Tick) -> None:
        self.ticks.append(tick)
        self.at.append(self.clock.monotonic() - 1000.0)
        self.body(tick)

    async def run(self) -> None:
        async for tick in self.pace:
            self.took(tick)
        self.ended = True

    def run_here(self) -> None:
        for tick in self.pace:
            self.took(tick)
        self.ended = True


@pytest.fixture(params=["task", "thread"])
async def start(request: pytest.FixtureRequest, clock: ManualClock) -> AsyncIterator[Any]:
    """Begin a loop; what is given lets it run until it waits, after some seconds."""
    running: list[tuple[Loop, Any]] = []

    async def begin(pace: Pace, body: Callable[[Tick], Any] = lambda _: None) -> Loop:
        loop = Loop(pace, clock, body)
        if request.param == "task":
            running.append((loop, asyncio.create_task(loop.run())))
        else:
            thread = threading.Thread(target=loop.run_here, daemon=True)
            thread.start()
            running.append((loop, thread))
        await rest()
        return loop

    async def rest() -> None:
        if request.param == "task":
            await settle()
            return
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if all(loop.ended or _idle(loop.pace) for loop, _ in running):
                return
            await asyncio.sleep(0.001)

    async def advance(seconds: float) -> None:
        clock.advance(seconds)
        await rest()

    begin.advance, begin.rest = advance, rest  # type: ignore[attr-defined]
    yield begin
    for loop, worker in running:
        loop.pace.close()
        if isinstance(worker, threading.Thread):
            await asyncio.to_thread(worker.join, PATIENCE)
            assert not worker.is_alive()
        else:
            await asyncio.wait_for(worker, PATIENCE)


def _idle(pace: Pace) -> bool:
    """Whether a thread's loop waits, and has nothing to see when it is woken."""
    rounds = pace._current()
    if rounds is None:
        return False
    condition = rounds._condition  # type: ignore[attr-defined]
    with condition:
        waits = bool(condition._waiters)
    due = min(pace._rhythm.due, pace._look_at)
    return waits and due > pace._paces.engine.clock.monotonic()


# --- the ticks ----------------------------------------------------------------------------------------


async def test_a_healthy_loop_ticks_as_usual(
    health: Safehold, redis: Dependency, clock: ManualClock, start: Any
) -> None:
    """At once, then every interval: not before it is over."""
    loop = await start(health.pace("redis", every=5, jitter=0))
    assert loop.at == [0]
    await start.advance(4.9)
    assert loop.at == [0]
    await start.advance(0.1)
    await start.advance(5)
    assert loop.at == [0, 5, 10]
    assert [tick.number for tick in loop.ticks] == [1, 2, 3]
    assert loop.ticks[0] == Tick(number=1, health=HealthState.UNKNOWN, interval=5, late_by=0, missed=0)


async def test_a_degraded_dependency_slows_its_loop(
    health: Safehold, redis: Dependency, clock: ManualClock, start: Any
) -> None:
    """An unresolved miss is enough; when it is resolved, the loop is as fast as before."""
    make_healthy(redis)
    loop = await start(health.pace("redis", every=5, jitter=0))
    fail(redis)
    await start.advance(19.9)
    assert loop.at == [0]
    await start.advance(0.1)
    assert (loop.at[1:], loop.ticks[-1].interval) == ([20], 20)
    succeed(redis)
    await start.rest()
    await start.advance(5)
    assert loop.at[2:] == [25]


async def test_an_outage_pauses_and_recovery_wakes_at_once(
    health: Safehold, redis: Dependency, clock: ManualClock, start: Any
) -> None:
    """While the breaker is open nothing ticks; the moment it is not, the loop does."""
    make_healthy(redis)
    loop = await start(health.pace("redis", every=5, jitter=0))
    redis.hold("maintenance")
    await start.advance(10_000)
    assert loop.at == [0]
    redis.reset()
    await start.rest()
    assert (loop.at, loop.ticks[-1].health) == ([0, 10_000], HealthState.RECOVERING)


async def test_a_loop_that_begins_in_an_outage_waits(
    health: Safehold, redis: Dependency, clock: ManualClock, start: Any
) -> None:
    """The first tick is at once, unless the loop is paused."""
    redis.hold("maintenance")
    loop = await start(health.pace("redis", every=5))
    assert loop.at == []
    redis.reset()
    await start.rest()
    await start.advance(0.5)
    assert len(loop.at) == 1


async def test_the_worst_dependency_decides(
    health: Safehold, redis: Dependency, api: Dependency, clock: ManualClock, start: Any
) -> None:
    """One of several that is down pauses the loop, and it says which."""
    make_healthy(redis)
    loop = await start(health.pace("redis", "api", every=5, jitter=0))
    api.hold("maintenance")
    await start.advance(100)
    assert loop.at == [0]
    report = loop.pace.report()
    assert (report.why, report.interval, report.next_tick) == ("api is unhealthy", None, None)
    api.reset()
    await start.rest()
    assert len(loop.at) == 2


async def test_an_overrun_is_counted_and_not_replayed(
    health: Safehold, redis: Dependency, clock: ManualClock, start: Any
) -> None:
    """A round that takes three intervals is followed by one tick, late, and then by the usual ones."""
    lengths = iter([17.0])
    loop = await start(health.pace("redis", every=5, jitter=0), lambda _: clock.advance(next(lengths, 0.0)))
    await start.rest()
    assert loop.at == [0, 17]
    assert (loop.ticks[1].late_by, loop.ticks[1].missed) == (12, 2)
    await start.advance(4.4)
    assert len(loop.at) == 2
    await start.advance(0.2)
    assert len(loop.at) == 3


async def test_intervals_can_be_chosen(
    health: Safehold, redis: Dependency, clock: ManualClock, start: Any
) -> None:
    """Each health has its own interval; infinity pauses, and a number keeps an unhealthy loop going."""
    make_healthy(redis)
    pace = health.pace("redis", every=1, degraded=math.inf, unhealthy=7, recovering=3, jitter=0)
    loop = await start(pace)
    fail(redis)
    await start.advance(0.5)
    assert pace.report().interval is None
    fail(redis, 2)
    redis.hold("maintenance")
    await start.advance(6.5)
    assert loop.at[-1] == 7
    redis.reset()
    await start.advance(3)
    assert loop.at[-1] == 10


# --- nobody else finds out ----------------------------------------------------------------------------


async def test_a_paused_loop_is_the_trial_where_nobody_else_is(
    health: Safehold, redis: Dependency, clock: ManualClock, start: Any
) -> None:
    """Without probe and other callers, one round goes through when a trial is due, and recovery follows."""
    up = False
    seen: list[str] = []

    def body(tick: Tick) -> None:
        with contextlib.suppress(Down, DependencyUnhealthy), redis.permit():
            seen.append(str(tick.health))
            if not up:
                raise Down

    make_healthy(redis)
    loop = await start(health.pace("redis", every=1, degraded=1, jitter=0), body)
    for _ in range(2):
        await start.advance(1)
    assert redis.state is HealthState.UNHEALTHY
    assert len(seen) == 3
    await start.advance(COOLDOWN - 0.1)
    assert len(seen) == 3
    await start.advance(0.1)
    assert (len(seen), loop.ticks[-1].interval) == (4, None)  # failed: the cooldown has doubled
    up = True
    await start.advance(2 * COOLDOWN - 0.1)
    assert len(seen) == 4
    await start.advance(0.1)
    assert len(seen) == 5
    assert redis.state is HealthState.RECOVERING
    await start.advance(1)
    assert len(seen) == 6


async def test_only_one_of_many_loops_is_the_trial(
    health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """While one finds out, the others leave the dependency alone."""
    make_open(redis)
    loops = [Loop(health.pace("redis", every=5, jitter=0), clock) for _ in range(50)]
    tasks = [asyncio.create_task(loop.run()) for loop in loops]
    await settle()
    clock.advance(COOLDOWN)
    await settle()
    assert sum(len(loop.at) for loop in loops) == 1
    clock.advance(4.9)
    await settle()
    assert sum(len(loop.at) for loop in loops) == 1  # it called nobody, so it is another one's turn
    clock.advance(0.1)
    await settle()
    assert sum(len(loop.at) for loop in loops) == 2
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_paused_loop_has_the_probe_ask_where_there_is_one(
    health: Safehold, clock: ManualClock
) -> None:
    """With a probe and no prober, the loop orders it; no round is spent."""
    probes: list[float] = []

    async def probe() -> None:
        probes.append(clock.monotonic() - 1000)

    shop = health.dependency("shop", policy=POLICY, probe=probe)
    make_open(shop)
    loop = Loop(health.pace("shop", every=5, jitter=0), clock)
    task = asyncio.create_task(loop.run())
    await settle()
    assert probes == []
    clock.advance(COOLDOWN)
    await settle()
    assert (probes, len(loop.at)) == ([COOLDOWN], 1)
    assert loop.ticks[0].health is HealthState.RECOVERING
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- chance and priority ------------------------------------------------------------------------------


async def test_loops_wake_spread_and_in_order_of_priority(redis: Dependency, clock: ManualClock) -> None:
    """After an outage, all of a higher priority come before any of a lower one, and not all at once."""
    home = Safehold("spread", clock=clock, rng=random.Random(7))
    shop = home.dependency("shop", policy=POLICY)
    make_healthy(shop)
    order: list[tuple[int, float]] = []

    def note(priority: int) -> Callable[[Tick], None]:
        return lambda tick: order.append((priority, clock.monotonic()))

    loops = [
        Loop(home.pace("shop", every=5, jitter=0.1, priority=priority), clock, note(priority))
        for priority in (0, -10, 5) * 20
    ]
    tasks = [asyncio.create_task(loop.run()) for loop in loops]
    await settle()
    shop.hold("maintenance")
    await settle()
    clock.advance(100)
    await settle()
    order.clear()
    woken = clock.monotonic()
    shop.reset()
    for _ in range(200):
        await settle()
        clock.advance(0.01)
    assert [priority for priority, _ in order] == [5] * 20 + [0] * 20 + [-10] * 20
    for rank, priority in enumerate((5, 0, -10)):
        offsets = [at - woken for p, at in order if p == priority]
        assert 0.5 * rank <= min(offsets) <= max(offsets) <= 0.5 * (rank + 1) + 0.011
        assert max(offsets) - min(offsets) > 0.2
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_without_jitter_the_order_still_stands(
    health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """Loops that wake in one instant wake by priority."""
    make_healthy(redis)
    order: list[int] = []
    loops = [
        Loop(health.pace("redis", jitter=0, priority=p), clock, lambda _, p=p: order.append(p))
        for p in (1, 3, 2)
    ]
    tasks = [asyncio.create_task(loop.run()) for loop in loops]
    await settle()
    redis.hold("maintenance")
    await settle()
    clock.advance(100)
    await settle()
    order.clear()
    redis.reset()
    await settle()
    assert order == [3, 2, 1]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# --- the decorator ------------------------------------------------------------------------------------


async def test_a_body_that_raises_does_not_end_its_loop(
    health: Safehold, redis: Dependency, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage is what a paced loop has to outlive; it is logged and counted."""
    rounds: list[int] = []

    @health.pace("redis", every=5, jitter=0)
    async def refresh(tick: Tick) -> None:
        """Refresh the cache."""
        rounds.append(tick.number)
        raise Down("hunter2")

    assert (refresh.__name__, refresh.__doc__) == ("refresh", "Refresh the cache.")
    stop = asyncio.Event()
    task = asyncio.create_task(refresh(stop))
    await settle()
    clock.advance(5)
    await settle()
    assert rounds == [1, 2]
    assert refresh.pace.report().failures == 2
    assert "refresh" in refresh.pace.name
    assert [r.fault for r in caplog.records if hasattr(r, "fault")] == ["paced_loop_failed"] * 2
    assert "hunter2" not in caplog.text
    stop.set()
    await asyncio.wait_for(task, PATIENCE)
    assert rounds == [1, 2]


def test_a_decorated_function_runs_until_it_is_stopped(health: Safehold, redis: Dependency) -> None:
    """`run(stop)` ends between two rounds, at once, even while the loop is paused for ever."""
    began = threading.Event()

    @health.pace("redis", every=3600)
    def work() -> None:
        began.set()
        raise ValueError

    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), daemon=True)
    thread.start()
    assert began.wait(PATIENCE)
    redis.hold("maintenance")
    stop.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    work(stop)  # set already: not one round
    assert (work.pace.report().ticks, work.pace.report().failures) == (1, 1)


def test_any_kind_of_event_stops(health: Safehold, redis: Dependency) -> None:
    """An event of another process stops a loop, too, and does not keep the news from it."""
    stop = multiprocessing.get_context("spawn").Event()
    rounds: list[int] = []

    @health.pace("redis", every=3600, jitter=0)
    def work() -> None:
        rounds.append(1)
        stop.set()

    redis.hold("maintenance")
    thread = threading.Thread(target=work, args=(stop,), daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while not health._paces.watchers.get("redis") and time.monotonic() < deadline:
        time.sleep(0.001)
    assert rounds == []
    redis.reset()
    thread.join(PATIENCE)
    assert rounds == [1]


def test_close_ends_a_loop_from_another_thread(health: Safehold, redis: Dependency) -> None:
    """`close` is for good."""
    pace = health.pace("redis", every=3600)
    ticks: list[Tick] = []
    thread = threading.Thread(target=lambda: ticks.extend(pace), daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while not ticks and pace.report().ticks == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    pace.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert pace.closed
    assert list(pace) == []


async def test_kinds_of_stop_and_body_that_cannot_be(health: Safehold) -> None:
    """What would never work is said when it is written."""
    pace = health.pace("redis")

    with pytest.raises(ConfigurationError, match="takes nothing"):
        pace(lambda a, b: None)
    with pytest.raises(ConfigurationError, match="decorates"):

        @pace
        def steps() -> Iterator[int]:
            yield 1

    with pytest.raises(ConfigurationError, match="async for"):
        next(iter(pace))
    with pytest.raises(ConfigurationError, match="at least one"):
        health.pace()
    for wrong in (
        {"every": 0},
        {"every": "5"},
        {"jitter": 2},
        {"degraded": 1},
        {"priority": 1.5},
        {"name": ""},
    ):
        with pytest.raises(ConfigurationError):
            health.pace("redis", **wrong)  # type: ignore[arg-type]

    async def nothing() -> None: ...

    with pytest.raises(ConfigurationError, match=r"asyncio\.Event"):
        await pace(nothing)(threading.Event())  # type: ignore[arg-type]
    sync = pace(lambda: None)
    with pytest.raises(ConfigurationError, match=r"threading\.Event"):
        await asyncio.to_thread(sync, asyncio.Event())  # type: ignore[arg-type]


async def test_one_loop_at_a_time(health: Safehold, clock: ManualClock) -> None:
    """Two loops would get half of the ticks each; a pace that was left can be taken up again."""
    pace = health.pace("redis", jitter=0)
    async for _ in pace:
        with pytest.raises(ConfigurationError, match="already"):
            await anext(aiter(pace))
        break
    assert not pace.running
    clock.advance(5)
    async for tick in pace:
        assert tick.number == 2
        break


# --- scopes -------------------------------------------------------------------------------------------


async def test_each_round_is_a_scope(
    health: Safehold, redis: Dependency, clock: ManualClock, start: Any
) -> None:
    """A miss blocks what its own round decides, and not the next one."""
    make_healthy(redis)
    destroy = health.destructive("destroy", requires=["redis"])(lambda: None)
    told: list[str] = []

    def body(tick: Tick) -> None:
        if tick.number == 1:
            fail(redis)
            succeed(redis)
        try:
            destroy()
            told.append("done")
        except OperationBlocked as blocked:
            told.append(blocked.reasons[0].code)

    await start(health.pace("redis", every=5, degraded=5, jitter=0), body)
    await start.advance(5)
    assert told == ["scope_tainted", "done"]


def innermost() -> Any:
    from safehold._runtime.scope import open_scope

    return open_scope()


@pytest.mark.parametrize("leave", ["break", "return", "raise", "end"])
def test_the_scope_of_a_thread_ends_with_its_loop(health: Safehold, leave: str) -> None:
    """However a loop is left, what comes after it is in no round."""
    pace = health.pace("redis")

    def work() -> None:
        for _ in pace:
            assert "round of" in innermost().name
            if leave == "break":
                break
            if leave == "return":
                return
            if leave == "raise":
                raise KeyError
            pace.close()
        assert innermost() is None

    with contextlib.suppress(KeyError):
        work()
    assert innermost() is None
    assert not pace.running


@pytest.mark.parametrize("leave", ["break", "return", "raise", "end"])
async def test_the_scope_of_a_task_ends_with_its_loop(health: Safehold, leave: str) -> None:
    """The same for `async for`, before anything else is awaited."""
    pace = health.pace("redis")

    async def work() -> None:
        async for _ in pace:
            assert "round of" in innermost().name
            if leave == "break":
                break
            if leave == "return":
                return
            if leave == "raise":
                raise KeyError
            pace.close()
        assert innermost() is None

    with contextlib.suppress(KeyError):
        await work()
    assert innermost() is None


async def test_waiting_is_in_no_scope(health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    """Between two rounds no scope is open anywhere, so guarded calls go the short way."""
    from safehold._runtime.scope import scopes_open

    before = len(scopes_open)
    loop = Loop(health.pace("redis"), clock)
    task = asyncio.create_task(loop.run())
    await settle()
    clock.advance(1)
    await settle()
    assert len(loop.at) == 1
    assert len(scopes_open) == before
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# --- nothing is left, and nothing is wasted -----------------------------------------------------------


async def test_cancellation_leaves_nothing(health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    """A cancelled loop leaves no task, no timer, no place among those who wait."""
    before = asyncio.all_tasks()

    @health.pace("redis", every=5)
    async def work() -> None: ...

    task = asyncio.create_task(work(asyncio.Event()))
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == before
    assert not any(health._paces.watchers.values())
    assert not work.pace.running
    timers = [t for t in asyncio.get_running_loop()._scheduled if not t.cancelled()]
    assert not [t for t in timers if "wake_here" in repr(t)]


def test_a_loop_that_nobody_holds_is_forgotten(health: Safehold) -> None:
    """What was made and dropped appears in no report."""
    pace = health.pace("redis", name="mine")
    for _ in pace:
        break
    assert [p.name for p in health._paces] == ["mine"]
    del pace
    gc.collect()
    assert list(health._paces) == []


async def test_ten_thousand_idle_loops_cost_nothing(clock: ManualClock) -> None:
    """No thread, one subscription, not one step of a loop while nothing happens; news wakes all."""
    home = Safehold("many", clock=clock)
    shop = home.dependency("shop", policy=POLICY)
    make_healthy(shop)
    threads = threading.active_count()
    paces = [home.pace("shop", every=3600) for _ in range(10_000)]
    ticked = 0

    async def run(pace: Pace) -> None:
        nonlocal ticked
        async for _ in pace:
            ticked += 1

    tasks = [asyncio.create_task(run(pace)) for pace in paces]
    await asyncio.sleep(0)
    while ticked < 10_000:  # noqa: ASYNC110 - the loops themselves are what is waited for
        await asyncio.sleep(0)
    await settle()
    assert threading.active_count() == threads
    assert len(home._engine._subscriptions) == 1
    gc.collect()
    spent = time.thread_time()
    await asyncio.sleep(0.3)
    spent = time.thread_time() - spent
    assert spent < 0.03
    shop.hold("maintenance")
    await settle()
    while any(p.report().interval is not None for p in paces[::500]):  # noqa: ASYNC110 - likewise
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_waking_many_does_not_hold_the_event_loop_up(clock: ManualClock) -> None:
    """However many loops one event wakes, each callback of ours wakes a hundred at most."""
    home = Safehold("many", clock=clock)
    shop = home.dependency("shop", policy=POLICY)
    loops = [Loop(home.pace("shop", every=3600), clock) for _ in range(1000)]
    tasks = [asyncio.create_task(loop.run()) for loop in loops]
    await settle()
    waiting = list(home._paces.watchers["shop"])
    shop.hold("maintenance")
    awake: list[int] = []
    while not awake or awake[-1] < 1000:
        await asyncio.sleep(0)
        awake.append(sum(1 for one in waiting if one.pace.report().interval is None))
        assert len(awake) < 100
    steps = [b - a for a, b in zip([0, *awake], awake, strict=False)]
    assert max(steps) <= 200
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_a_report_says_where_a_loop_stands(health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    """Name, interval, why, and when it ticks next."""
    make_healthy(redis)
    pace = health.pace("redis", every=5, jitter=0, name="refresh", priority=3)
    report = pace.report()
    assert (report.running, report.why, report.next_tick, report.interval) == (False, "not begun", None, None)
    assert "idle" in repr(pace)
    for _ in pace:
        clock.advance(2)
        report = pace.report()
        break_after = report.model_dump()
        break
    assert break_after == {
        "name": "refresh",
        "dependencies": ("redis",),
        "priority": 3,
        "running": True,
        "health": HealthState.HEALTHY,
        "interval": 5.0,
        "why": "redis is healthy",
        "next_tick": 3.0,
        "ticks": 1,
        "missed": 0,
        "failures": 0,
    }
    assert "every 5 s" in repr(pace)
    pace.close()
    assert "closed" in repr(pace)


def test_a_signal_handler_may_bring_the_news() -> None:
    """News that arrives in a handler, on the very thread that waits, wakes its loop."""
    python(
        """
        import signal, threading
        from safehold import *
        home = Safehold("signals")
        shop = home.dependency("shop", policy=BreakerPolicy())
        shop.hold("maintenance")
        def handler(*_):
            shop.reset()
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        for tick in home.pace("shop", every=3600, jitter=0):
            break
        assert tick.number == 1
        # and in the worst moment: while the thread holds what it waits on
        pace = home.pace("shop", every=3600, jitter=0)
        from safehold._runtime.pace import ThreadRounds
        rounds = ThreadRounds(pace)
        with rounds._condition:
            rounds.wake()
            assert rounds._condition.wait(5), "not woken"
        assert rounds._news
        """
    )


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="forks")
def test_a_child_does_not_wake_its_parents_loops() -> None:
    """After a fork nobody waits in the child, and its own loops work."""
    python(
        """
        import asyncio, os, threading, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from safehold import *
        home = Safehold("fork")
        shop = home.dependency("shop")
        threading.Thread(target=lambda: [None for _ in home.pace("shop", every=3600)], daemon=True).start()
        while not home._paces.watchers.get("shop"):
            time.sleep(0.01)
        pid = os.fork()
        if pid == 0:
            assert not home._paces.watchers
            shop.hold("maintenance")
            shop.reset()
            for tick in home.pace("shop"):
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        """
    )


# --- in real time -------------------------------------------------------------------------------------


def test_in_real_time_with_every_warning_an_error() -> None:
    """Threads and tasks through an outage of half a second: awake at once, nothing left over."""
    python(
        """
        import asyncio, sys, threading, time
        from safehold import *

        home = Safehold("real")
        policy = BreakerPolicy(failures=1, cooldown=Backoff(first=0.2, factor=1, cap=0.2, jitter=0))
        shop = home.dependency("shop", policy=policy)
        at = {"thread": [], "task": []}

        @home.pace("shop", every=0.1, degraded=0.1, jitter=0.1)
        def on_thread():
            at["thread"].append(time.monotonic())

        @home.pace("shop", every=0.1, degraded=0.1, jitter=0.1)
        async def in_task():
            at["task"].append(time.monotonic())

        async def main():
            loop = asyncio.get_running_loop()
            loop.slow_callback_duration = 0.1
            stop, end = threading.Event(), asyncio.Event()
            thread = threading.Thread(target=on_thread, args=(stop,))
            thread.start()
            task = asyncio.create_task(in_task(end))
            await asyncio.sleep(0.5)
            with shop.permit():
                pass
            shop.hold("outage")
            began = time.monotonic()
            await asyncio.sleep(0.5)
            shop.reset()
            over = time.monotonic()
            await asyncio.sleep(0.7)
            stop.set(); end.set()
            await asyncio.wait_for(task, 10)
            thread.join(10)
            assert not thread.is_alive()
            for name, ticks in at.items():
                assert not [t for t in ticks if began + 0.25 < t < over], name
                (first, *_) = [t for t in ticks if t >= over]
                assert first - over < 1.0, (name, first - over)  # without news it would never come
                assert 3 <= len(ticks) <= 16, (name, len(ticks))
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main(), debug=True)
        assert threading.active_count() == 1
        """
    )
