"""Nothing that a call used is kept: no frame, no exception, no growth."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from safehold import (
    BreakerPolicy,
    Dependency,
    DependencyUnhealthy,
    GatePolicy,
    OperationBlocked,
    Refused,
    Safehold,
    TimeWindow,
)
from safehold._runtime.timeline import MOST_KEPT
from safehold.testing.clock import ManualClock

from .support import COOLDOWN, POLICY, Down, Form, answer, cancel, down, fail, finish, make_open, succeed

NEVER = BreakerPolicy(failures=None, failure_rate=None)


class Big:
    """Something that a call has in a local variable, or raises."""


class BigError(Down):
    """An exception that can be watched."""


@pytest.fixture
def without_gc() -> Iterator[None]:
    """Only reference counts free: whatever is in a cycle, stays."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def steady(health: Safehold) -> Dependency:
    """A dependency that never trips."""
    return health.dependency("steady", policy=NEVER)


def watched(kind: type[BaseException], refs: list[Any]) -> Callable[[], None]:
    """Give a body that raises, and watch its frame's big local and its exception."""

    def body() -> None:
        big, error = Big(), kind("no answer")
        refs.extend((weakref.ref(big), weakref.ref(error)))
        try:
            raise error
        finally:
            del error  # or the frame and the exception keep each other

    return body


class BigInterrupt(KeyboardInterrupt):
    """An interruption that can be watched."""


@pytest.mark.usefixtures("without_gc")
@pytest.mark.parametrize("kind", [BigError, BigInterrupt])
@pytest.mark.parametrize("scoped", [False, True])
def test_failures_keep_nothing_alive(
    form: Form, health: Safehold, steady: Dependency, kind: type[BaseException], scoped: bool
) -> None:
    """When the caller has dropped the exception, it is gone with its frames, and without the collector."""
    refs: list[Any] = []
    call = form.guard(steady, watched(kind, refs))
    for _ in range(3):
        with contextlib.suppress(kind), health.scope("sweep") if scoped else contextlib.nullcontext():
            call()
    assert len(refs) == 6
    assert [ref() for ref in refs] == [None] * 6


@pytest.mark.usefixtures("without_gc")
def test_tripping_and_trials_keep_nothing_alive(form: Form, redis: Dependency, clock: ManualClock) -> None:
    """Nor does the failure that trips, or one in half-open, stay anywhere."""
    refs: list[Any] = []
    call = form.guard(redis, watched(BigError, refs))
    for _ in range(3):
        with contextlib.suppress(BigError):
            call()
    clock.advance(COOLDOWN)
    with contextlib.suppress(BigError):
        call()
    assert len(refs) == 8
    assert [ref() for ref in refs] == [None] * 8


@pytest.mark.usefixtures("without_gc")
def test_refusals_keep_nothing_alive(form: Form, redis: Dependency) -> None:
    """A refusal is gone when its caller has dropped it, and so is whatever was on the stack."""
    make_open(redis)
    call = form.guard(redis, answer)
    refs: list[Any] = []

    def caller() -> None:
        big = Big()
        refs.append(weakref.ref(big))
        try:
            call()
        except DependencyUnhealthy as error:
            refs.append(weakref.ref(error))

    for _ in range(3):
        caller()
    assert len(refs) == 6
    assert [ref() for ref in refs] == [None] * 6


@pytest.mark.usefixtures("without_gc")
def test_blocks_keep_nothing_alive(gate_form: Form, health: Safehold, redis: Dependency) -> None:
    """A blocked operation and its arguments are gone when its caller has dropped them."""
    destroy = gate_form.gate(health, "destroy", answer)
    refs: list[Any] = []

    def caller() -> None:
        big = Big()
        refs.append(weakref.ref(big))
        try:
            destroy(big)
        except OperationBlocked as error:
            refs.append(weakref.ref(error))

    for _ in range(3):
        caller()
    assert len(refs) == 6
    assert [ref() for ref in refs] == [None] * 6


@pytest.mark.usefixtures("without_gc")
def test_arguments_and_results_are_not_kept(form: Form, steady: Dependency) -> None:
    """What goes in and what comes out belongs to the caller."""
    call = form.guard(steady, lambda big: big)
    for _ in range(3):
        big = Big()
        ref = weakref.ref(big)
        assert call(big) is big
        del big
        assert ref() is None


@pytest.mark.usefixtures("without_gc")
def test_a_waiting_generator_keeps_no_item(steady: Dependency) -> None:
    """Between two items, a guarded generator holds neither what it gave nor what it was sent."""

    @steady.guard
    def rows() -> Any:
        got = yield Big()
        del got
        yield None
        yield None

    run = rows()
    given = weakref.ref(next(run))
    assert given() is None
    sent = Big()
    ref = weakref.ref(sent)
    run.send(sent)
    del sent
    assert ref() is None
    run.close()


@pytest.mark.usefixtures("without_gc")
def test_a_waiting_async_generator_keeps_no_item(steady: Dependency) -> None:
    """Between two items, a guarded async generator holds nothing either."""

    @steady.guard
    async def rows() -> AsyncIterator[Any]:
        yield Big()
        yield None

    run = rows()
    given = weakref.ref(finish(run.__anext__()))
    assert given() is None
    finish(run.aclose())  # type: ignore[attr-defined]


@pytest.mark.usefixtures("without_gc")
@pytest.mark.parametrize("handled", [True, False])
def test_errors_thrown_into_a_generator_are_not_kept(steady: Dependency, handled: bool) -> None:
    """What is thrown into a guarded generator is gone when the thrower has dropped it."""

    @steady.guard
    def rows() -> Any:
        with contextlib.suppress(BigError) if handled else contextlib.nullcontext():
            yield 1
        yield 2

    run = rows()
    next(run)
    error = BigError("no answer")
    ref = weakref.ref(error)
    with contextlib.suppress(BigError):
        run.throw(error)
    del error
    assert ref() is None
    run.close()


# --- no growth ----------------------------------------------------------------------------------------


def grown(work: Callable[[], Any], rounds: int) -> int:
    """Give how many blocks of memory `rounds` rounds leave behind, after a warm-up."""
    for _ in range(300):
        work()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(rounds):
        work()
    gc.collect()
    return sys.getallocatedblocks() - before


def quietly(call: Callable[[], Any], *kinds: type[BaseException]) -> Callable[[], None]:
    def work() -> None:
        with contextlib.suppress(*kinds):
            call()

    return work


@pytest.fixture
def muted(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Let pytest's own log capture collect nothing."""
    caplog.set_level("CRITICAL", "safehold")


@pytest.mark.usefixtures("muted")
def test_no_growth_over_calls_and_refusals(form: Form, redis: Dependency, steady: Dependency) -> None:
    """Successes, failures and refusals leave nothing behind, in whichever form."""
    assert grown(form.guard(steady, answer), 1_000) < 100
    assert grown(quietly(form.guard(steady, down), Down), 1_000) < 100
    make_open(redis)
    assert grown(quietly(form.guard(redis, answer), DependencyUnhealthy), 1_000) < 100


@pytest.mark.usefixtures("muted")
def test_no_growth_over_ten_thousand(redis: Dependency, steady: Dependency) -> None:
    """Ten thousand failures and ten thousand refusals leave nothing behind."""
    assert grown(quietly(steady.guard(down), Down), 10_000) < 100
    make_open(redis)
    assert grown(quietly(redis.guard(answer), DependencyUnhealthy), 10_000) < 100


@pytest.mark.usefixtures("muted")
def test_no_growth_of_windows(health: Safehold, clock: ManualClock) -> None:
    """A window holds what is inside it, and nothing that has left it."""
    policies = [
        BreakerPolicy(failures=None, failure_rate=1.0, min_calls=100),
        BreakerPolicy(failures=None, failure_rate=1.0, window=TimeWindow(1.0), min_calls=1000),
    ]
    for index, policy in enumerate(policies):
        dependency = health.dependency(f"d{index}", policy=policy)

        def work(dependency: Dependency = dependency) -> None:
            clock.advance(0.01)
            fail(dependency)
            succeed(dependency)

        fill_the_timeline(work)
        assert grown(work, 2_000) < 300


def fill_the_timeline(work: Callable[[], None]) -> None:
    """Let it hold as many entries as it ever does; from then on it grows no more."""
    for _ in range(MOST_KEPT):
        work()


@pytest.mark.usefixtures("muted")
def test_no_growth_over_outages(health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    """A dependency that flaps for years leaves no old generations behind."""

    def outage() -> None:
        fail(redis, 3)
        with contextlib.suppress(DependencyUnhealthy):
            succeed(redis)
        clock.advance(60)
        cancel(redis)
        fail(redis)
        clock.advance(60)
        succeed(redis)
        clock.advance(1000)
        succeed(redis)

    assert grown(outage, 1_000) < 300


@pytest.mark.usefixtures("muted")
def test_no_growth_over_scopes_and_blocks(health: Safehold, redis: Dependency) -> None:
    """Scopes, taints, blocked operations and their checks leave nothing behind."""
    destroy = health.destructive("destroy")(answer)

    def sweep() -> None:
        with health.scope("outer"), health.scope("inner"):
            fail(redis)
            succeed(redis)
            with contextlib.suppress(OperationBlocked):
                destroy()
        health.check("destroy")

    fill_the_timeline(sweep)
    assert grown(sweep, 2_000) < 300


@pytest.mark.usefixtures("muted")
async def test_no_growth_over_cancelled_tasks(steady: Dependency) -> None:
    """Cancelled tasks leave nothing behind, scoped or not."""

    @steady.guard
    async def hang() -> None:
        await asyncio.Event().wait()

    async def rounds(count: int) -> None:
        for _ in range(count):
            task = asyncio.create_task(hang())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    await rounds(200)
    gc.collect()
    before = sys.getallocatedblocks()
    await rounds(2_000)
    gc.collect()
    assert sys.getallocatedblocks() - before < 300


def test_wrappers_can_be_dropped(form: Form, steady: Dependency) -> None:
    """A guarded function that nobody uses any more is collected: the dependency does not hold it."""

    def guarded() -> Any:
        big = Big()
        refs.append(weakref.ref(big))
        return form.guard(steady, lambda: id(big))

    refs: list[Any] = []
    call = guarded()
    call()
    del call
    gc.collect()
    assert refs[0]() is None


def test_safeholds_can_be_dropped() -> None:
    """A Safehold of its own, with all that hangs on it, is collected when nobody uses it any more."""
    home = Safehold("short-lived", gate=GatePolicy(startup_grace=0.0))
    redis = home.dependency("redis", critical=True, policy=POLICY)
    home.subscribe(answer)
    call = redis.guard(answer)
    call()
    make_open(redis)
    with contextlib.suppress(Refused):
        call()
    ref = weakref.ref(home)
    del home, redis, call
    gc.collect()
    assert ref() is None


def test_a_clock_does_not_hold_its_safeholds(clock: ManualClock) -> None:
    """A manual clock that many tests share keeps none of their Safeholds."""
    home = Safehold("short-lived", clock=clock)
    ref = weakref.ref(home)
    del home
    gc.collect()
    clock.advance(1)
    assert ref() is None
