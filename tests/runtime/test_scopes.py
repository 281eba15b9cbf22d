"""One call that did not answer stops the clean-up that follows, also when nobody heard of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from safehold import (
    ConfigurationError,
    Dependency,
    GatePolicy,
    HealthState,
    OperationBlocked,
    Safehold,
    Scope,
)
from safehold.testing.clock import ManualClock

from .support import (
    COOLDOWN,
    PATIENCE,
    POLICY,
    Down,
    Form,
    answer,
    cancel,
    down,
    fail,
    in_thread,
    make_healthy,
    make_open,
    raiser,
    succeed,
)

IMPLICIT = GatePolicy().implicit_scope


@pytest.fixture
def reaped() -> list[str]:
    """What was destroyed."""
    return []


@pytest.fixture
def reap(health: Safehold, redis: Dependency, reaped: list[str]) -> Callable[[str], None]:
    """An automatic operation that requires the one critical dependency, redis, which is healthy."""
    make_healthy(redis)
    return health.destructive("reap", subject="session")(_appending(reaped))


def _appending(reaped: list[str]) -> Callable[[str], None]:
    def reap(session: str) -> None:
        reaped.append(session)

    return reap


def blocked_for(operation: Callable[..., Any], *args: Any) -> list[tuple[str, str]]:
    """Call an operation that has to be blocked; give the code and the dependency of each reason."""
    with pytest.raises(OperationBlocked) as caught:
        operation(*args)
    return [(reason.code, reason.dependency) for reason in caught.value.reasons]


def swallow(call: Callable[..., Any]) -> bool:
    """Ask as most code does: whatever goes wrong is a no."""
    try:
        call()
    except BaseException:
        return False
    return True


MISSES: dict[str, Any] = {
    "failure": down,
    "time-out": raiser(TimeoutError("timed out")),
    "cancelled": raiser(asyncio.CancelledError()),
    "interrupted": raiser(KeyboardInterrupt()),
}


# --- the defect that all this is about ----------------------------------------------------------------


@pytest.mark.parametrize("miss", MISSES)
def test_swallowed_miss_stops_the_cleanup_in_its_scope(
    form: Form,
    health: Safehold,
    redis: Dependency,
    reap: Callable[[str], None],
    reaped: list[str],
    miss: str,
) -> None:
    """With an open scope, a miss that was swallowed into False blocks until the scope ends."""
    exists, sees = form.guard(redis, MISSES[miss]), form.guard(redis, answer)
    with health.scope("sweep") as scope:
        assert not swallow(exists)
        assert scope.tainted
        assert list(scope.taints) == ["redis"]
        assert ("scope_tainted", "redis") in blocked_for(reap, "s1")
        sees()  # the miss is resolved, the scope stays tainted: its listing had a hole
        assert redis.state is HealthState.HEALTHY
        assert blocked_for(reap, "s1") == [("scope_tainted", "redis")]
    assert reaped == []


def test_clean_look_in_a_scope_lets_the_cleanup_run(
    form: Form, health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """With an open scope in which everything answered, the same clean-up runs."""
    exists = form.guard(redis, lambda: False)
    with health.scope("sweep") as scope:
        assert exists() is False
        assert not scope.tainted
        reap("s1")
    assert reaped == ["s1"]


def test_clean_scope_after_a_miss_elsewhere_lets_the_cleanup_run(
    form: Form, health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A miss outside the scope that was resolved since does not hold a scope back: that is what it buys."""
    assert not swallow(form.guard(redis, down))
    form.guard(redis, answer)()
    assert blocked_for(reap, "s1") == [("recent_miss", "redis")]
    with health.scope("sweep"):
        form.guard(redis, answer)()
        reap("s1")
    assert reaped == ["s1"]


def test_unresolved_miss_blocks_a_clean_scope(
    form: Form, health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """As long as nothing has answered since the last miss, a clean scope is no proof."""
    assert not swallow(form.guard(redis, down))
    with health.scope("sweep"):
        assert blocked_for(reap, "s1") == [("unresolved_miss", "redis")]
        form.guard(redis, answer)()
        reap("s1")
    assert reaped == ["s1"]


@pytest.mark.parametrize("miss", MISSES)
def test_swallowed_miss_stops_the_cleanup_without_a_scope(
    form: Form,
    clock: ManualClock,
    redis: Dependency,
    reap: Callable[[str], None],
    reaped: list[str],
    miss: str,
) -> None:
    """Without a scope, a miss blocks until it is resolved and the implicit scope's seconds have passed."""
    exists, sees = form.guard(redis, MISSES[miss]), form.guard(redis, answer)
    assert not swallow(exists)
    assert blocked_for(reap, "s1") == [("unresolved_miss", "redis"), ("recent_miss", "redis")]
    sees()
    assert blocked_for(reap, "s1") == [("recent_miss", "redis")]
    clock.advance(IMPLICIT - 0.5)
    with pytest.raises(OperationBlocked, match="open a scope") as caught:
        reap("s1")
    assert caught.value.retry_after == 0.5
    assert reaped == []
    clock.advance(0.5)
    reap("s1")
    assert reaped == ["s1"]


def test_time_alone_is_no_proof(
    form: Form, clock: ManualClock, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """Without a scope, a miss that nothing resolved blocks however long ago it was."""
    assert not swallow(form.guard(redis, down))
    clock.advance(1_000_000)
    assert blocked_for(reap, "s1") == [("unresolved_miss", "redis")]
    form.guard(redis, answer)()
    reap("s1")
    assert reaped == ["s1"]


def test_success_that_began_before_the_miss_resolves_nothing(
    form: Form, clock: ManualClock, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """Only a call that began after the miss proves that the dependency answers again."""
    form.guard(redis, lambda: fail(redis))()
    clock.advance(IMPLICIT)
    assert blocked_for(reap, "s1") == [("unresolved_miss", "redis")]
    form.guard(redis, answer)()
    reap("s1")
    assert reaped == ["s1"]


def test_misses_of_others_do_not_count_without_a_scope(
    form: Form, api: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """Without a scope, only the dependencies that the operation requires are asked about."""
    assert not swallow(form.guard(api, down))
    reap("s1")
    assert reaped == ["s1"]


def test_misses_of_others_count_in_a_scope(
    form: Form, health: Safehold, api: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """In a scope, a miss of any guarded dependency counts, required, optional or undeclared."""
    for dependency in (api, health["undeclared"]):
        with health.scope("sweep"):
            assert not swallow(form.guard(dependency, down))
            assert blocked_for(reap, "s1") == [("scope_tainted", dependency.name)]
        with health.scope("sweep"):
            form.guard(dependency, answer)()
            reap(dependency.name)
    assert reaped == ["api", "undeclared"]


def test_tolerated_misses(
    form: Form, health: Safehold, redis: Dependency, api: Dependency, reaped: list[str]
) -> None:
    """An automatic operation may name whose misses in the scope do not matter to it; others still do."""
    make_healthy(redis)
    reap = health.destructive("reap", tolerates=["api"])(_appending(reaped))
    with health.scope("sweep"):
        assert not swallow(form.guard(api, down))
        reap("s1")
        assert not swallow(form.guard(health["other"], down))
        assert blocked_for(reap, "s2") == [("scope_tainted", "other")]
    assert reaped == ["s1"]


def test_refusal_taints_the_scope(
    form: Form, health: Safehold, redis: Dependency, api: Dependency, reap: Callable[[str], None]
) -> None:
    """A call that a breaker refused did not answer either."""
    make_open(api)
    with health.scope("sweep") as scope:
        assert not swallow(form.guard(api, answer))
        assert dict(scope.taints) == {"api": "refused"}
        assert blocked_for(reap, "s1") == [("scope_tainted", "api")]


def test_application_error_taints_nothing(
    form: Form, health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """The application's own error is an answer, so the scope stays clean."""
    shop = health.dependency("shop", policy=POLICY, classify=Down)
    with health.scope("sweep") as scope:
        assert not swallow(form.guard(shop, raiser(KeyError("no such row"))))
        assert not scope.tainted
        reap("s1")
    assert reaped == ["s1"]


def test_outer_answer_does_not_hide_an_inner_miss(
    form: Form, health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """An outer call that answered does not hide that a call inside it did not."""
    outer = form.guard(health["outer"], lambda: swallow(form.guard(redis, down)))
    with health.scope("sweep") as scope:
        assert outer() is False
        assert list(scope.taints) == ["redis"]
        assert ("scope_tainted", "redis") in blocked_for(reap, "s1")
    assert reaped == []


def test_requested_operation_passes_a_tainted_scope_with_a_remark(
    form: Form, health: Safehold, redis: Dependency, reaped: list[str]
) -> None:
    """A person's wish is not held back by a miss, but the verdict reports it."""
    make_healthy(redis)
    delete = health.destructive("delete", trigger="requested")(_appending(reaped))
    with health.scope("request"):
        assert not swallow(form.guard(redis, down))
        verdict = health.check("delete")
        assert verdict.allowed
        assert {remark.code for remark in verdict.remarks} == {"unresolved_miss", "scope_tainted"}
        delete("s1")
    assert reaped == ["s1"]


# --- nesting ------------------------------------------------------------------------------------------


def test_nested_scope_is_as_tainted_as_its_parents(health: Safehold, redis: Dependency) -> None:
    """Nesting buys no clean sheet; only a root scope does."""
    with health.scope("outer") as outer:
        fail(redis)
        with health.scope("inner") as inner:
            assert inner.tainted
            assert list(inner.taints) == ["redis"]
        assert outer.tainted
    with health.scope("fresh") as fresh:
        assert not fresh.tainted


def test_miss_in_a_nested_scope_taints_all_around_it(
    health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A miss taints every enclosing scope, to its end."""
    with health.scope("outer") as outer:
        with health.scope("middle") as middle, health.scope("inner") as inner:
            fail(redis)
        assert (inner.tainted, middle.tainted, outer.tainted) == (True, True, True)
        succeed(redis)
        assert blocked_for(reap, "s1") == [("scope_tainted", "redis")]
        with health.scope("next") as following:
            assert following.tainted
            assert blocked_for(reap, "s1") == [("scope_tainted", "redis")]
    with health.scope("fresh"):
        reap("s1")
    assert reaped == ["s1"]


def test_miss_in_a_parent_reaches_a_nested_scope_that_is_open(
    health: Safehold, redis: Dependency, reap: Callable[[str], None]
) -> None:
    """A miss noted in the parent while a child is open counts for the child too."""
    with health.scope("outer"):
        outside = copy_context()
        with health.scope("inner") as inner:
            outside.run(fail, redis)
            assert inner.tainted
            succeed(redis)
            assert blocked_for(reap, "s1") == [("scope_tainted", "redis")]


def test_sibling_scopes_are_separate(health: Safehold, redis: Dependency) -> None:
    """What missed in one root scope does not taint another."""
    first, second = copy_context(), copy_context()
    one, two = health.scope("one"), health.scope("two")
    first.run(one.__enter__)
    second.run(two.__enter__)
    first.run(fail, redis)
    assert (one.tainted, two.tainted) == (True, False)
    first.run(one.__exit__, None, None, None)
    second.run(two.__exit__, None, None, None)


def test_scope_opened_while_handling_a_failure_is_born_tainted(
    form: Form, health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """Cleaning up because something failed is no clean look."""
    failing = form.guard(redis, down)
    with contextlib.suppress(Down):
        try:
            failing()
        finally:
            with health.scope("clean-up") as born:
                assert list(born.taints) == ["redis"]
    try:
        failing()
    except Down:
        with health.scope("clean-up") as born:
            assert list(born.taints) == ["redis"]
    succeed(redis)
    with health.scope("afterwards") as clean:
        assert not clean.tainted
        reap("s1")
    try:
        raise KeyError("not out of a guarded call")
    except KeyError:
        with health.scope("unrelated") as clean:
            assert not clean.tainted
    assert reaped == ["s1"]


# --- leaving ------------------------------------------------------------------------------------------


def test_scope_entered_twice(health: Safehold) -> None:
    """A scope is for one stretch of work."""
    scope = health.scope("once")
    with scope, pytest.raises(ConfigurationError, match="once"), scope:
        pass
    with pytest.raises(ConfigurationError, match="once"):
        scope.__enter__()


def test_leaving_never_raises_and_hides_nothing(health: Safehold, redis: Dependency) -> None:
    """The end of a scope lets the application's exception pass, and adds none of its own."""
    with pytest.raises(Down) as caught, health.scope("sweep"):
        raise (error := Down("own"))
    assert caught.value is error
    with health.scope("tainted"):
        fail(redis)


def test_leaving_twice_does_not_raise(health: Safehold) -> None:
    """A careless second leave harms nobody, and does not close what is open by then."""
    scope = health.scope("sweep")
    scope.__enter__()
    scope.__exit__(None, None, None)
    with health.scope("next") as following:
        scope.__exit__(None, None, None)
        with health.scope("inner") as inner:
            assert list(inner.lineage()) == [inner, following]


def test_leaving_without_having_entered_does_not_raise(health: Safehold) -> None:
    """Leaving is always harmless."""
    health.scope("sweep").__exit__(None, None, None)


def test_leaving_in_another_context_does_not_raise(
    health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A scope that ends in another context than it began in has ended all the same."""
    scope = health.scope("sweep")
    copy_context().run(scope.__enter__)
    scope.__exit__(None, None, None)
    assert "not open" in repr(scope)
    reap("s1")
    assert reaped == ["s1"]


def test_scopes_left_in_the_wrong_order(
    health: Safehold, redis: Dependency, api: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """Where the outer scope ends first, the inner one goes on and has lost nothing."""
    outer, inner = health.scope("outer"), health.scope("inner")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    fail(api)
    assert list(inner.taints) == ["api"]
    assert blocked_for(reap, "s1") == [("scope_tainted", "api")]
    inner.__exit__(None, None, None)
    fail(redis)
    succeed(redis)
    assert blocked_for(reap, "s1") == [("recent_miss", "redis")], "no scope is open any more"


def test_scope_in_a_generator(
    health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A scope that a generator opened lasts until the generator closes it, and leaving it never raises."""

    def rows() -> Iterator[int]:
        with health.scope("rows"):
            yield 1
            yield 2

    run = rows()
    next(run)
    fail(redis)
    succeed(redis)
    assert blocked_for(reap, "s1") == [("scope_tainted", "redis")]
    run.close()
    assert blocked_for(reap, "s1") == [("recent_miss", "redis")]
    left = rows()
    next(left)
    copy_context().run(left.close)
    assert blocked_for(reap, "s1") == [("recent_miss", "redis")]


def test_dropped_scopes_are_forgotten(health: Safehold, redis: Dependency) -> None:
    """Scopes that have ended leave nothing behind, whichever way they ended."""
    from safehold._runtime.scope import scopes_open

    before = set(scopes_open)
    for _ in range(3):
        with contextlib.suppress(Down), health.scope("sweep"), redis.permit():
            raise Down("no answer")
    assert scopes_open == before


# --- calls that have not ended ------------------------------------------------------------------------


def test_call_in_flight_blocks(
    form: Form, health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A guarded call that began in the scope and has not ended may still turn out a miss."""
    seen: list[Any] = []
    with health.scope("sweep"):
        form.guard(redis, lambda: seen.extend(blocked_for(reap, "s1")))()
        assert seen == [("call_in_flight", "redis")]
        reap("s2")
    assert reaped == ["s2"]


def test_long_call_in_flight_does_not_block(
    form: Form, health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A call that waits by nature is declared long, and nobody waits for its end; its miss still counts."""

    def failing() -> None:
        reap("s1")
        raise Down("no answer")

    with health.scope("sweep"):
        form.guard(redis, lambda: reap("s1"), long=True)()
        assert reaped == ["s1"]
        assert not swallow(form.guard(redis, failing, long=True))
        assert reaped == ["s1", "s1"]
        assert ("scope_tainted", "redis") in blocked_for(reap, "s2")


def test_call_that_began_before_the_scope_does_not_block(
    form: Form, health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """Only what began in the scope belongs to it."""

    def body() -> None:
        with health.scope("sweep"):
            reap("s1")

    form.guard(redis, body)()
    assert reaped == ["s1"]


def test_call_in_flight_in_a_nested_scope_blocks_around_it(
    form: Form, health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A call that began in a nested scope is in flight for all that enclose it, also after its end."""
    with health.scope("outer"):
        with health.scope("inner"):
            permit = redis.permit()
            permit.__enter__()
        assert blocked_for(reap, "s1") == [("call_in_flight", "redis")]
        permit.succeed()
        reap("s1")
    assert reaped == ["s1"]


def test_generator_in_the_middle_is_in_flight(
    health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A generator that was read in part is a half-read listing: it blocks, and abandoned it taints."""

    @redis.guard
    def rows() -> Iterator[int]:
        yield 1
        yield 2

    with health.scope("sweep"):
        run = rows()
        next(run)
        assert blocked_for(reap, "s1") == [("call_in_flight", "redis")]
        run.close()
        assert ("scope_tainted", "redis") in blocked_for(reap, "s1")
    succeed(redis)
    with health.scope("sweep"):
        assert list(rows()) == [1, 2]
        reap("s2")
    assert reaped == ["s2"]


def test_a_miss_that_comes_home_after_the_scope_is_nobodys(
    health: Safehold, redis: Dependency, reap: Callable[[str], None]
) -> None:
    """A call that fails after its scope has ended taints no later scope, but is seen by the process."""
    with health.scope("first"):
        permit = redis.permit()
        permit.__enter__()
    with health.scope("second") as second:
        permit.fail(Down("late"))
        assert not second.tainted
        assert blocked_for(reap, "s1") == [("unresolved_miss", "redis")]


def test_tolerated_call_in_flight(health: Safehold, redis: Dependency, api: Dependency) -> None:
    """What is tolerated is not waited for either."""
    make_healthy(redis)
    done: list[str] = []
    tolerant = health.destructive("tolerant", tolerates=["api"])(_appending(done))
    strict = health.destructive("strict")(_appending(done))
    with health.scope("sweep"), api.permit():
        tolerant("s1")
        assert blocked_for(strict, "s2") == [("call_in_flight", "api")]
    assert done == ["s1"]


# --- where a scope travels ----------------------------------------------------------------------------


class Remote:
    """A dependency that is asked asynchronously."""

    def __init__(self, dependency: Dependency) -> None:
        self.dependency = dependency
        self.fails = True
        self.stuck = asyncio.Event()

        @dependency.guard
        async def ask() -> str:
            await asyncio.sleep(0)
            if self.fails:
                raise Down("no answer")
            return "answer"

        @dependency.guard
        async def hang() -> None:
            await self.stuck.wait()

        @dependency.guard
        def ask_now() -> str:
            if self.fails:
                raise Down("no answer")
            return "answer"

        self.ask, self.hang, self.ask_now = ask, hang, ask_now


async def by_await(remote: Remote) -> None:
    with contextlib.suppress(Down):
        await remote.ask()


async def by_gather(remote: Remote) -> None:
    with contextlib.suppress(Down):
        await asyncio.gather(remote.ask(), remote.ask())


async def by_gather_returning(remote: Remote) -> None:
    await asyncio.gather(remote.ask(), remote.ask(), return_exceptions=True)


async def by_task_group(remote: Remote) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(remote.ask())
    except* Down:
        pass


async def by_wait_for(remote: Remote) -> None:
    with contextlib.suppress(Down):
        await asyncio.wait_for(remote.ask(), PATIENCE)


async def by_shield(remote: Remote) -> None:
    with contextlib.suppress(Down):
        await asyncio.shield(remote.ask())


async def by_create_task(remote: Remote) -> None:
    task = asyncio.create_task(remote.ask())
    await asyncio.wait([task])
    task.exception()


async def by_to_thread(remote: Remote) -> None:
    with contextlib.suppress(Down):
        await asyncio.to_thread(remote.ask_now)


async def by_executor_with_carry(remote: Remote) -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as pool, contextlib.suppress(Down):
        await loop.run_in_executor(pool, Safehold.carry(remote.ask_now))


async def by_async_generator(remote: Remote) -> None:
    @remote.dependency.guard
    async def stream() -> AsyncIterator[str]:
        yield await remote.ask()

    with contextlib.suppress(Down):
        _ = [item async for item in stream()]


async def by_callback(remote: Remote) -> None:
    done = asyncio.Event()

    def call() -> None:
        with contextlib.suppress(Down):
            remote.ask_now()
        done.set()

    asyncio.get_running_loop().call_soon(call)
    await done.wait()


WAYS = [
    by_await,
    by_gather,
    by_gather_returning,
    by_task_group,
    by_wait_for,
    by_shield,
    by_create_task,
    by_to_thread,
    by_executor_with_carry,
    by_async_generator,
    by_callback,
]


@pytest.mark.parametrize("way", WAYS)
async def test_scope_travels(
    health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str], way: Any
) -> None:
    """A miss taints the scope whichever way the call was made, and the same way clean lets the act run."""
    remote = Remote(redis)
    with health.scope("sweep") as scope:
        await way(remote)
        assert list(scope.taints) == ["redis"]
        succeed(redis)
        assert blocked_for(reap, "s1") == [("scope_tainted", "redis")]
    remote.fails = False
    with health.scope("sweep"):
        await way(remote)
        reap("s2")
    assert reaped == ["s2"]


@pytest.mark.parametrize("way", WAYS)
async def test_without_a_scope_the_process_is_the_scope(
    clock: ManualClock,
    redis: Dependency,
    reap: Callable[[str], None],
    reaped: list[str],
    way: Any,
) -> None:
    """Without a scope a miss blocks whichever way the call was made, until proof and time are there."""
    remote = Remote(redis)
    await way(remote)
    assert blocked_for(reap, "s1") == [("unresolved_miss", "redis"), ("recent_miss", "redis")]
    remote.fails = False
    await way(remote)
    assert blocked_for(reap, "s1") == [("recent_miss", "redis")]
    clock.advance(IMPLICIT)
    reap("s1")
    assert reaped == ["s1"]


async def test_executor_without_carry_is_outside_the_scope(
    health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """An executor knows no scope by itself; the miss still blocks until it is resolved."""
    remote = Remote(redis)
    loop = asyncio.get_running_loop()
    with health.scope("sweep") as scope, ThreadPoolExecutor(1) as pool:
        with pytest.raises(Down):
            await loop.run_in_executor(pool, remote.ask_now)
        assert not scope.tainted
        assert blocked_for(reap, "s1") == [("unresolved_miss", "redis")]
        with pytest.raises(Down):
            await loop.run_in_executor(pool, health.carry(remote.ask_now))
        succeed(redis)
        assert blocked_for(reap, "s1") == [("scope_tainted", "redis")]
    assert reaped == []


def test_carry_into_threads(health: Safehold, redis: Dependency, reap: Callable[[str], None]) -> None:
    """`carry` takes the scope along, many times and in many threads at once, and keeps the signature."""

    def work(index: int) -> Scope | None:
        """Fail in the third thread."""
        if index == 3:
            fail(redis)
        return None

    carried: Any = None
    with health.scope("sweep") as scope:
        carried = health.carry(work)
        assert (carried.__name__, carried.__doc__) == ("work", "Fail in the third thread.")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(carried, range(3)))
            assert not scope.tainted
            list(pool.map(carried, range(8)))
        assert list(scope.taints) == ["redis"]
    with health.scope("next") as following:
        in_thread(lambda: carried(3))
        assert not following.tainted


def test_plain_threads_are_outside_the_scope(
    health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A thread of its own has no scope: there, the process is the scope."""
    with health.scope("sweep") as scope:
        in_thread(lambda: fail(redis))
        assert not scope.tainted
        succeed(redis)
        assert in_thread(lambda: blocked_for(reap, "s1")) == [("recent_miss", "redis")]
        reap("s2")
    assert reaped == ["s2"]


async def test_timed_out_wait_taints(
    health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A call that `wait_for` or `timeout` cancelled did not answer."""
    remote = Remote(redis)

    async def waits() -> None:
        await asyncio.wait_for(remote.hang(), 0)

    async def timeout() -> None:
        async with asyncio.timeout(0):
            await remote.hang()

    for wait in (waits, timeout):
        with health.scope("sweep"):
            task = asyncio.create_task(remote.hang())  # wait_for(0) may not even start its call
            await asyncio.sleep(0)
            with contextlib.suppress(TimeoutError):
                await wait()
            task.cancel()
            await asyncio.wait([task])
            succeed(redis)
            assert blocked_for(reap, "s1") == [("scope_tainted", "redis")]
    assert redis.status().failures == 0
    assert reaped == []


async def test_shielded_call_is_in_flight_after_its_waiter_gave_up(
    health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A shielded call goes on when its waiter has given up: it blocks until it has answered."""
    remote = Remote(redis)
    with health.scope("sweep"):
        task = asyncio.create_task(remote.hang())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.shield(task)
        assert blocked_for(reap, "s1") == [("call_in_flight", "redis")]
        remote.stuck.set()
        await task
        reap("s1")
    assert reaped == ["s1"]


async def test_background_task_is_in_flight(
    health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A task of the scope that is still asking blocks what the scope decides."""
    remote = Remote(redis)
    with health.scope("sweep"):
        task = asyncio.create_task(remote.hang())
        await asyncio.sleep(0)
        assert blocked_for(reap, "s1") == [("call_in_flight", "redis")]
        remote.stuck.set()
        await task
        reap("s1")
    assert reaped == ["s1"]


async def test_task_that_holds_a_closed_scope_counts_as_unscoped(
    health: Safehold, clock: ManualClock, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A task that outlives its scope is judged as if it had none."""
    go = asyncio.Event()

    async def later() -> list[tuple[str, str]]:
        await go.wait()
        return blocked_for(reap, "s1")

    with health.scope("sweep"):
        task = asyncio.create_task(later())
        await asyncio.sleep(0)
    fail(redis)
    succeed(redis)
    go.set()
    assert await task == [("recent_miss", "redis")]
    clock.advance(IMPLICIT)
    with health.scope("sweep"):
        fail(redis)
        succeed(redis)
        held = copy_context()
    clock.advance(IMPLICIT)
    held.run(reap, "s2")
    assert reaped == ["s2"]


async def test_task_that_holds_a_closed_scope_belongs_to_what_encloses_it(
    health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """Where an enclosing scope is still open, a task of a closed one is judged by that."""
    with health.scope("outer"):
        with health.scope("inner"):
            held = copy_context()
        held.run(reap, "s1")
        fail(redis)
        succeed(redis)
        assert held.run(blocked_for, reap, "s2") == [("scope_tainted", "redis")]
        assert held.run(lambda: health.scope("new").__enter__().tainted)
    assert reaped == ["s1"]


async def test_a_miss_with_a_closed_scope_in_hand_reaches_what_encloses_it(
    health: Safehold, redis: Dependency, reap: Callable[[str], None]
) -> None:
    """The work of a task that outlived the inner scope is still work of the outer one."""
    with health.scope("outer") as outer:
        with health.scope("inner"):
            held = copy_context()
        held.run(fail, redis)
        assert outer.tainted


def test_threads_that_miss_in_one_scope(health: Safehold, redis: Dependency, api: Dependency) -> None:
    """Threads that taint one scope at once lose nothing and break nothing."""
    with health.scope("sweep") as scope:
        stop = threading.Event()

        def look() -> None:
            while not stop.is_set():
                scope.facts()
                _ = scope.taints

        looker = threading.Thread(target=look, daemon=True)
        looker.start()
        names = [f"d{index}" for index in range(40)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(health.carry(lambda name: fail(health[name])), names))
        stop.set()
        looker.join(PATIENCE)
        assert not looker.is_alive()
        assert sorted(scope.taints) == sorted(names)
        assert scope.facts().in_flight == {}


def test_permit_that_was_dropped_stays_in_flight(
    health: Safehold, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A call of which nobody will ever hear is no answer: it blocks to the scope's end, and not beyond."""
    with health.scope("sweep"):
        redis.permit().__enter__()
        gc.collect()
        assert blocked_for(reap, "s1") == [("call_in_flight", "redis")]
    with health.scope("next"):
        reap("s2")
    assert reaped == ["s2"]


def test_short_way_and_scope(health: Safehold, redis: Dependency, reap: Callable[[str], None]) -> None:
    """A call on the short way (nothing to learn, no scope) that fails in a scope opened meanwhile is seen."""
    script: list[str] = []

    @redis.guard
    def call() -> None:
        if script:
            raise Down("no answer")

    for _ in range(3):
        call()
    with health.scope("sweep") as scope:
        call()
        script.append("fail")
        with contextlib.suppress(Down):
            call()
        assert list(scope.taints) == ["redis"]


def test_outage_in_a_scope(
    form: Form, health: Safehold, clock: ManualClock, redis: Dependency, reap: Callable[[str], None]
) -> None:
    """A scope that has seen an outage stays tainted through the recovery."""
    call = form.guard(redis, answer)
    with health.scope("sweep"):
        fail(redis, 3)
        clock.advance(COOLDOWN)
        assert call() == "answer"
        clock.advance(600)
        assert call() == "answer"
        assert redis.state is HealthState.HEALTHY
        assert blocked_for(reap, "s1") == [("scope_tainted", "redis")]


def test_cancelled_call_in_the_process(
    clock: ManualClock, redis: Dependency, reap: Callable[[str], None], reaped: list[str]
) -> None:
    """A cancelled call anywhere in the process is a miss of the process."""
    in_thread(lambda: cancel(redis))
    succeed(redis)
    assert blocked_for(reap, "s1") == [("recent_miss", "redis")]
    clock.advance(IMPLICIT)
    reap("s1")
    assert reaped == ["s1"]
