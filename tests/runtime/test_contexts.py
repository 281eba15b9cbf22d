"""Where a failure can hide: in groups, suppressed, in siblings and children, in retries, callbacks and signals."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import redis as redis_py
import tenacity

from safehold import Dependency, HealthState, OperationBlocked, Safehold
from safehold.testing.clock import ManualClock

from .support import Down, down, fail, in_thread, make_healthy, python, succeed

TRIGGERS = ["automatic", "requested"]


class Place:
    """An operation, and the way to try it: what it did and why it was blocked."""

    def __init__(self, health: Safehold, redis: Dependency, trigger: str) -> None:
        make_healthy(redis)
        self.ran: list[str] = []
        self.told: list[list[str]] = []
        self.health, self.redis = health, redis
        self.destroy = health.destructive("destroy", trigger=trigger, subject="what")(self._act)

        @health.destructive("adestroy", trigger=trigger, subject="what")
        async def adestroy(what: str) -> None:
            self.ran.append(what)

        self.adestroy = adestroy

    def _act(self, what: str) -> None:
        self.ran.append(what)

    def try_it(self, *_: Any) -> None:
        try:
            self.destroy("it")
        except OperationBlocked as blocked:
            self.told.append([reason.code for reason in blocked.reasons])

    async def atry_it(self) -> None:
        try:
            await self.adestroy("it")
        except OperationBlocked as blocked:
            self.told.append([reason.code for reason in blocked.reasons])

    def was_blocked_for(self, code: str, times: int = 1) -> None:
        assert self.ran == []
        assert len(self.told) == times, self.told
        assert all(code in told for told in self.told), self.told

    def now_it_runs(self) -> None:
        """The twin: in a clean scope, after an answer, the same call acts."""
        succeed(self.redis)
        with self.health.scope("twin"):
            self.try_it()
        assert self.ran == ["it"], self.told


@pytest.fixture(params=TRIGGERS)
def place(request: pytest.FixtureRequest, health: Safehold, redis: Dependency) -> Place:
    return Place(health, redis, request.param)


@pytest.fixture
def automatic(health: Safehold, redis: Dependency) -> Place:
    return Place(health, redis, "automatic")


# --- T70: groups and suppression ----------------------------------------------------------------------


def test_t70_a_group_that_was_split(place: Place) -> None:
    """`except*` takes one part of a group; the part that a guard saw is still being handled."""
    try:
        try:
            place.redis.guard(down)()
        except Down as error:
            raise ExceptionGroup("both", [ExceptionGroup("deep", [error]), KeyError("k")]) from None
    except* KeyError:
        place.try_it()
    except* Down:
        place.try_it()
    place.was_blocked_for("handling_failure", 2)
    place.now_it_runs()


@pytest.mark.parametrize("how", ["suppress", "exit", "gather", "except"])
def test_t70_what_was_suppressed_taints(automatic: Place, how: str) -> None:
    """Nothing is visible any more, and yet the scope knows."""

    class Swallows:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> bool:
            return True

    async def gathered() -> None:
        async def look() -> None:
            automatic.redis.guard(down)()

        assert len(await asyncio.gather(look(), look(), return_exceptions=True)) == 2

    def look() -> None:
        if how == "gather":
            asyncio.run(gathered())
            return
        with contextlib.suppress(Down) if how == "suppress" else Swallows():
            automatic.redis.guard(down)()

    with automatic.health.scope("sweep") as scope:
        look()
        assert scope.tainted
        succeed(automatic.redis)
        automatic.try_it()
    automatic.was_blocked_for("scope_tainted")
    automatic.now_it_runs()


def test_t66_a_listing_that_was_swallowed(automatic: Place) -> None:
    """`rows = []` after a time-out, and everything not in rows is stale."""
    with automatic.health.scope("sweep"):
        try:
            rows = automatic.redis.guard(down)()
        except Exception:
            rows = []
        for session in ("s1", "s2"):
            if session not in rows:
                automatic.try_it()
    automatic.was_blocked_for("scope_tainted", 2)
    automatic.now_it_runs()


# --- T64, T65: cancellation ---------------------------------------------------------------------------


async def test_t64_cleaning_up_after_a_time_limit(place: Place) -> None:
    """In the `finally` under `asyncio.timeout`, and in the `except TimeoutError` around it."""
    try:
        async with asyncio.timeout(0.001):
            try:
                await asyncio.Event().wait()
            finally:
                await place.atry_it()
    except TimeoutError:
        place.try_it()
    place.was_blocked_for("interrupted", 2)
    await asyncio.sleep(0)
    await place.atry_it()
    assert place.ran == ["it"]


async def test_t65_a_sibling_in_a_task_group(place: Place) -> None:
    """A child fails, and the group cancels its sibling, whose `finally` is no place to destroy in."""

    async def fails() -> None:
        await asyncio.sleep(0)
        place.redis.guard(down)()

    async def cleans() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await place.atry_it()

    with contextlib.suppress(BaseExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(cleans())
            group.create_task(fails())
    place.was_blocked_for("interrupted")
    place.now_it_runs()


async def test_a_swallowed_cancel_does_not_block_for_ever(place: Place) -> None:
    """`task.cancelling()` stays set after it; what was handled is over."""

    async def stubborn() -> int:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await place.atry_it()
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    task.cancel()
    assert await task == 1
    assert (place.ran, place.told) == (["it"], [])


# --- tasks that were born in trouble ------------------------------------------------------------------


async def test_a_task_spawned_while_a_failure_is_handled(automatic: Place) -> None:
    """It sees no exception. With a scope it inherits the taint; without one the whole process is the scope."""
    tasks: list[Awaitable[None]] = []
    with automatic.health.scope("request"):
        try:
            automatic.redis.guard(down)()
        except Down:
            tasks.append(asyncio.create_task(automatic.atry_it()))
        succeed(automatic.redis)
        await tasks[0]
    automatic.was_blocked_for("scope_tainted")
    automatic.told.clear()
    try:
        automatic.redis.guard(down)()
    except Down:
        tasks.append(asyncio.create_task(automatic.atry_it()))
    await tasks[1]
    succeed(automatic.redis)
    await asyncio.create_task(automatic.atry_it())
    automatic.was_blocked_for("recent_miss", 2)
    automatic.now_it_runs()


async def test_a_task_that_outlives_its_request(automatic: Place, clock: ManualClock) -> None:
    """The scope is over, so the process-wide rule holds for it: it is neither free nor blocked for ever."""
    go = asyncio.Event()

    async def later() -> None:
        await go.wait()
        await automatic.atry_it()

    with automatic.health.scope("request"):
        tasks = [asyncio.create_task(later()) for _ in range(2)]
        await asyncio.sleep(0)
        fail(automatic.redis)
    succeed(automatic.redis)
    go.set()
    await asyncio.gather(*tasks)
    automatic.was_blocked_for("recent_miss", 2)
    clock.advance(60)
    await asyncio.create_task(automatic.atry_it())
    assert automatic.ran == ["it"]


# --- T69: retries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_scope", [True, False])
@pytest.mark.parametrize("retry", ["loop", "tenacity"])
def test_t69_evidence_of_another_attempt(
    health: Safehold, redis: Dependency, clock: ManualClock, with_scope: bool, retry: str
) -> None:
    """What the first attempt saw is dead in the second; asked afresh, it is alive."""
    make_healthy(redis)
    reaped: list[str] = []
    exists = health.witness("redis", name="exists")(lambda session: False)
    options: dict[str, Any] = {"subject": "session", "evidence": "exists"}
    reap = health.destructive("reap", **options)(lambda session: reaped.append(session))
    cached: dict[str, Any] = {}
    codes: list[list[str]] = []

    def attempt(number: int, *, ask: bool) -> None:
        with health.scope("attempt") if with_scope else contextlib.nullcontext():
            if ask or "s1" not in cached:
                cached["s1"] = exists("s1")
            if number == 0:
                redis.guard(down)()
            succeed(redis)
            try:
                reap("s1")
            except OperationBlocked as blocked:
                codes.append([reason.code for reason in blocked.reasons])

    def twice(*, ask: bool) -> None:
        numbers = iter(range(2))
        if retry == "tenacity":
            again = tenacity.retry(stop=tenacity.stop_after_attempt(2), reraise=True)
            again(lambda: attempt(next(numbers), ask=ask))()
        else:
            with contextlib.suppress(Down):
                attempt(next(numbers), ask=ask)
            attempt(next(numbers), ask=ask)

    twice(ask=False)
    assert reaped == []
    assert codes
    assert {"evidence_foreign", "evidence_overtaken"} & set(codes[0])
    clock.advance(61)
    attempt(1, ask=True)
    assert reaped == ["s1"]


# --- executors and threads ----------------------------------------------------------------------------


def test_executors_and_threads(automatic: Place, clock: ManualClock) -> None:
    """Carried, work belongs to its scope; without it, a thread is judged by the whole process."""
    with ThreadPoolExecutor(1) as pool, automatic.health.scope("sweep"):
        with contextlib.suppress(Down):
            pool.submit(automatic.health.carry(automatic.redis.guard(down))).result()
        succeed(automatic.redis)
        pool.submit(automatic.health.carry(automatic.try_it)).result()
        automatic.was_blocked_for("scope_tainted")
        automatic.told.clear()
        pool.submit(automatic.try_it).result()
        in_thread(automatic.try_it)
    automatic.was_blocked_for("recent_miss", 2)
    clock.advance(60)
    in_thread(automatic.try_it)
    assert automatic.ran == ["it"]


# --- T68: code that runs in between -------------------------------------------------------------------


def test_t68_a_generator_that_is_closed(place: Place) -> None:
    """Closed by hand, by a `break` and the collector, or thrown away: its `finally` destroys nothing."""

    def rows() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            place.try_it()

    for row in rows():
        assert row == 1
        break
    gc.collect()
    run = rows()
    next(run)
    run.close()
    with contextlib.closing(rows()) as one:
        next(one)
    place.was_blocked_for("interrupted", 3)
    assert list(rows()) == [1, 2]
    assert place.ran == ["it"]


class Service:
    def __init__(self, place: Place) -> None:
        self.place = place

    def stop(self, *_: Any) -> None:
        self.place.try_it()

    def __call__(self, *_: Any) -> None:
        self.place.try_it()


def wrapper_of(function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> None:
        function(*args)

    return wrapper


def plain_handler(place: Place) -> Any:
    def handler(signum: int, frame: Any) -> None:
        place.try_it()

    return handler


HANDLERS: dict[str, Callable[[Place], Any]] = {
    "function": plain_handler,
    "method": lambda place: Service(place).stop,
    "lambda": lambda place: lambda *_: place.try_it(),
    "wrapped": lambda place: wrapper_of(place.try_it),
    "wrapped method": lambda place: wrapper_of(Service(place).stop),
    "partial": lambda place: functools.partial(plain_handler(place)),
    "object": Service,
    "deep": lambda place: lambda *_: [place.try_it() for _ in range(1)],
}


@pytest.mark.parametrize("name", HANDLERS)
def test_t68_signal_handlers(place: Place, name: str) -> None:
    """However a handler is written. What it has merely noted is acted upon by whoever asks later."""
    before = signal.signal(signal.SIGUSR1, HANDLERS[name](place))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        place.was_blocked_for("finalising", 2)
        wrapper_of(place.try_it)()
        assert place.ran == ["it"], "another function of the same decorator is no signal handler"
    finally:
        signal.signal(signal.SIGUSR1, before)


async def test_t68_signal_handlers_of_a_loop(place: Place) -> None:
    """`loop.add_signal_handler` runs it without a task; a callback that the loop was asked for may act."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()

    def handler() -> None:
        place.try_it()
        told.set()

    loop.add_signal_handler(signal.SIGUSR1, handler)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(told.wait(), 20)
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)
    place.was_blocked_for("finalising")
    told.clear()
    loop.call_soon(handler)
    await asyncio.wait_for(told.wait(), 20)
    assert place.ran == ["it"]


async def test_t68_done_callbacks_of_a_loop(place: Place) -> None:
    """Of a task that failed, one that was cancelled, one that is done already, and of a bare future."""

    async def fails() -> None:
        raise ValueError("failed")

    loop = asyncio.get_running_loop()
    failed, hanging = asyncio.create_task(fails()), asyncio.create_task(asyncio.Event().wait())
    future: asyncio.Future[int] = loop.create_future()
    for waited in (failed, hanging, future):
        waited.add_done_callback(place.try_it)
    await asyncio.sleep(0)
    hanging.cancel()
    future.set_result(1)
    await asyncio.gather(failed, hanging, future, return_exceptions=True)
    await asyncio.sleep(0)
    future.add_done_callback(functools.partial(place.try_it))
    await asyncio.sleep(0)
    place.was_blocked_for("finalising", 4)
    place.now_it_runs()


def test_t68_done_callbacks_of_threads(place: Place) -> None:
    """In the worker's thread, or at once in one's own when the future is done already."""
    with ThreadPoolExecutor(1) as pool:
        go = threading.Event()
        future = pool.submit(go.wait)
        future.add_done_callback(place.try_it)
        go.set()
        future.result()
    done: Future[int] = Future()
    done.set_result(1)
    done.add_done_callback(place.try_it)
    place.was_blocked_for("finalising", 2)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(place.try_it).result()
    assert place.ran == ["it"]


def test_t68_the_process_ends_without_delay() -> None:
    """Blocked at exit, in an outage, with a prober running: the process ends at once and well."""
    told = python(
        """
        import atexit, contextlib, threading, time, weakref
        from safehold import GatePolicy, OperationBlocked, Safehold

        health = Safehold("exit", gate=GatePolicy(startup_grace=0))
        def probe():
            raise ConnectionError
        redis = health.dependency("redis", critical=True, probe=probe)

        @health.destructive("destroy", trigger="requested", requires=())
        def destroy():
            print("ran", flush=True)

        def clean_up(where):
            try:
                destroy()
            except OperationBlocked as blocked:
                print(where, blocked.reason, flush=True)

        class Owner:
            pass

        owner = Owner()
        weakref.finalize(owner, clean_up, "finalize")
        atexit.register(clean_up, "atexit")
        for _ in range(10):
            with contextlib.suppress(Exception), redis.permit():
                raise ConnectionError
        health.start()
        clean_up("before")
        """,
        timeout=20.0,
    )
    assert sorted(told.splitlines()) == ["atexit finalising", "finalize finalising", "ran"]


# --- what a block is not ------------------------------------------------------------------------------


def test_a_block_is_no_error_of_any_client(place: Place, health: Safehold, api: Dependency) -> None:
    """No handler that is meant for outages takes it, and no breaker counts it, however it passes through."""
    client_errors = (TimeoutError, OSError, ConnectionError, redis_py.RedisError, httpx.HTTPError)
    assert not issubclass(OperationBlocked, client_errors)
    fail(place.redis, 3)

    @api.guard
    def call() -> None:
        place.destroy("it")

    for _ in range(10):
        with pytest.raises(OperationBlocked):
            call()
        with pytest.raises(OperationBlocked), api.permit():
            place.destroy("it")
    assert api.state is not HealthState.UNHEALTHY
    assert api.status().failures == 0
    assert place.ran == []


def test_t63_a_scope_that_is_opened_while_handling(place: Place) -> None:
    """A new scope does not make a handler a clean place."""
    try:
        place.redis.guard(down)()
    except Down:
        with place.health.scope("fresh") as scope:
            assert scope.tainted
            place.try_it()
    place.was_blocked_for("handling_failure")
    place.now_it_runs()


def test_a_chain_that_is_too_long_to_read(place: Place) -> None:
    """What cannot be looked through to its end is not believed to be harmless."""

    def chain(length: int) -> Exception:
        error = Exception("first")
        for _ in range(length):
            following = Exception("next")
            following.__context__, error = error, following
        return error

    try:
        raise chain(2000)
    except Exception:
        place.try_it()
    place.was_blocked_for("interrupted")
    try:
        raise chain(100)
    except Exception:
        place.try_it()
    assert place.ran == ["it"]
