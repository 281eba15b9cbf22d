"""The way back: one trial at a time, whoever holds it, and no permit that is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tenacity.wait import wait_fixed

from safehold import (
    BreakerState,
    Dependency,
    DependencyUnhealthy,
    HealthState,
    Safehold,
)
from safehold.testing.clock import ManualClock

from .support import (
    COOLDOWN,
    PATIENCE,
    POLICY,
    Down,
    Form,
    Rejected,
    answer,
    down,
    fail,
    in_thread,
    in_threads,
    is_refused,
    make_open,
    many_switches,
    raiser,
    succeed,
)

LEASE = POLICY.lease
CROWD = 50


@pytest.fixture
def due(redis: Dependency, clock: ManualClock) -> Dependency:
    """A dependency whose trial is due now."""
    make_open(redis)
    clock.advance(COOLDOWN)
    return redis


# --- one at a time ------------------------------------------------------------------------------------


def test_fifty_threads_at_the_due_instant(form: Form, due: Dependency) -> None:
    """Of fifty threads that come at once, one is the trial; the others are refused at once."""
    ran: list[int] = []
    everybody = threading.Barrier(CROWD)  # which the trial holds until all the others have been refused

    def body(index: int) -> str:
        ran.append(index)
        everybody.wait(PATIENCE)
        return "answer"

    call = form.guard(due, body)

    def work(index: int) -> Any:
        try:
            return call(index)
        except DependencyUnhealthy as error:
            told = (error.state, error.reason, error.retry_after)
            everybody.wait(PATIENCE)
            return told

    results = in_threads(work, CROWD)
    assert len(ran) == 1
    assert results.count("answer") == 1
    told = (HealthState.RECOVERING, "trial_in_flight", COOLDOWN)
    assert [result for result in results if result != "answer"] == [told] * (CROWD - 1)
    assert due.breaker is BreakerState.CLOSED


async def test_fifty_tasks_at_the_due_instant(due: Dependency) -> None:
    """Of fifty tasks that come at once, one is the trial; the others are refused without waiting."""
    ran: list[int] = []
    refused: list[float | None] = []
    go = asyncio.Event()

    @due.guard
    async def call(index: int) -> str:
        ran.append(index)
        await go.wait()
        return "answer"

    async def work(index: int) -> str:
        try:
            return await call(index)
        except DependencyUnhealthy as error:
            refused.append(error.retry_after)
            if len(refused) == CROWD - 1:
                go.set()
            return "refused"

    results = await asyncio.gather(*(work(index) for index in range(CROWD)))
    assert len(ran) == 1
    assert sorted(results) == ["answer"] + ["refused"] * (CROWD - 1)
    assert refused == [COOLDOWN] * (CROWD - 1)


def test_many_rounds_of_threads_and_failing_trials(redis: Dependency, clock: ManualClock) -> None:
    """Round after round, each due instant lets exactly one through, also when the trials fail."""
    make_open(redis)
    with many_switches():
        for _ in range(30):
            clock.advance(redis.retry_after or 0.0)
            ran: list[int] = []
            begun, settled = threading.Barrier(8), threading.Barrier(8)

            @redis.guard
            def call(index: int, ran: list[int] = ran, settled: threading.Barrier = settled) -> None:
                ran.append(index)
                settled.wait(PATIENCE)
                raise Down("no answer")

            def work(
                index: int,
                call: Callable[[int], None] = call,
                begun: threading.Barrier = begun,
                settled: threading.Barrier = settled,
            ) -> str:
                begun.wait(PATIENCE)
                try:
                    call(index)
                except DependencyUnhealthy:
                    settled.wait(PATIENCE)
                    return "refused"
                except Down:
                    return "failed"
                return "answered"

            results = in_threads(work, 8)
            assert len(ran) == 1
            assert sorted(results) == ["failed"] + ["refused"] * 7
            assert redis.breaker is BreakerState.OPEN


def test_nothing_goes_through_before_the_due_instant(
    form: Form, redis: Dependency, clock: ManualClock
) -> None:
    """The cooldown is inclusive: not a moment before it is over, and at once when it is."""
    call = form.guard(redis, answer)
    make_open(redis)
    clock.advance(COOLDOWN - 0.25)
    with pytest.raises(DependencyUnhealthy) as caught:
        call()
    assert caught.value.retry_after == 0.25
    assert redis.breaker is BreakerState.OPEN
    clock.advance(0.25)
    assert call() == "answer"
    assert redis.breaker is BreakerState.CLOSED


def test_successes_in_a_row_close(form: Form, health: Safehold, clock: ManualClock) -> None:
    """With `successes=2`, one trial after the other has to answer; a failure in between begins again."""
    redis = health.dependency("two", policy=POLICY.model_copy(update={"successes": 2}))
    working, failing = form.guard(redis, answer), form.guard(redis, down)
    make_open(redis)
    clock.advance(COOLDOWN)
    working()
    assert redis.breaker is BreakerState.HALF_OPEN
    with pytest.raises(Down):
        failing()
    assert (redis.breaker, redis.retry_after) == (BreakerState.OPEN, 2 * COOLDOWN)
    clock.advance(2 * COOLDOWN)
    working()
    assert redis.breaker is BreakerState.HALF_OPEN
    working()
    assert redis.breaker is BreakerState.CLOSED


def test_failed_trial_grows_the_cooldown(form: Form, due: Dependency, clock: ManualClock) -> None:
    """Each failed recovery doubles the cooldown, up to its cap."""
    failing = form.guard(due, down)
    for cooldown in (20.0, 40.0, 60.0, 60.0):
        with pytest.raises(Down):
            failing()
        assert due.breaker is BreakerState.OPEN
        assert due.retry_after == cooldown
        clock.advance(cooldown)


# --- permits come back --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "interruption", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit]
)
def test_interrupted_trial_gives_its_permit_back(
    form: Form, due: Dependency, clock: ManualClock, interruption: type[BaseException]
) -> None:
    """A cancelled trial decides nothing and blocks nobody: still half-open, the next call is the trial."""
    report = due.status()
    with pytest.raises(interruption):
        form.guard(due, raiser(interruption()))()
    after = due.status()
    assert (after.breaker, after.state) == (BreakerState.HALF_OPEN, HealthState.RECOVERING)
    assert (after.level, after.failures, after.retry_after) == (report.level, report.failures, 0.0)
    assert after.since == report.since
    assert form.guard(due, answer)() == "answer"
    assert due.breaker is BreakerState.CLOSED


def test_application_error_in_a_trial_gives_the_permit_back(
    form: Form, health: Safehold, clock: ManualClock
) -> None:
    """An application error neither closes nor opens: the next call is the trial."""
    shop = health.dependency("shop", policy=POLICY, classify=Down)
    make_open(shop)
    clock.advance(COOLDOWN)
    for _ in range(3):
        with pytest.raises(Rejected):
            form.guard(shop, raiser(Rejected("no")))()
        assert (shop.breaker, shop.retry_after) == (BreakerState.HALF_OPEN, 0.0)
    assert form.guard(shop, answer)() == "answer"
    assert shop.breaker is BreakerState.CLOSED


def test_refusal_from_elsewhere_in_a_trial_gives_the_permit_back(
    form: Form, due: Dependency, api: Dependency
) -> None:
    """A trial that something else kept from being made has decided nothing."""
    make_open(api)
    with pytest.raises(DependencyUnhealthy):
        form.guard(due, form.guard(api, answer))()
    assert (due.breaker, due.retry_after) == (BreakerState.HALF_OPEN, 0.0)
    succeed(due)
    assert due.breaker is BreakerState.CLOSED


async def test_cancelled_task_gives_its_trial_back(due: Dependency) -> None:
    """Cancelling the task that holds the trial frees it for the next caller."""

    @due.guard
    async def call(wait: asyncio.Event) -> None:
        await wait.wait()

    task = asyncio.create_task(call(asyncio.Event()))
    await asyncio.sleep(0)
    assert is_refused(due)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    ready = asyncio.Event()
    ready.set()
    await call(ready)
    assert due.breaker is BreakerState.CLOSED


@pytest.mark.parametrize("how", ["close", "drop"])
def test_abandoned_generator_gives_its_trial_back(due: Dependency, how: str) -> None:
    """A generator that was the trial and is not read on frees it when it is closed or collected."""

    @due.guard
    def rows() -> Iterator[int]:
        yield 1
        yield 2

    run = rows()
    next(run)
    assert is_refused(due)
    if how == "close":
        run.close()
    del run
    gc.collect()
    assert due.breaker is BreakerState.HALF_OPEN
    assert list(rows()) == [1, 2]
    assert due.breaker is BreakerState.CLOSED


def test_a_generator_lets_its_reader_share_nothing(due: Dependency) -> None:
    """Between two items the trial is the generator's, not its reader's: the reader's own call is refused."""

    @due.guard
    def rows() -> Iterator[int]:
        with due.permit():  # inside it may share
            yield 1
        yield 2

    run = rows()
    assert next(run) == 1
    assert is_refused(due)
    assert list(run) == [2]
    assert due.breaker is BreakerState.CLOSED


def test_a_trial_is_not_shared_with_other_threads(due: Dependency) -> None:
    """What a trial sets off in another thread is no part of it."""
    with due.permit():
        assert in_threads(lambda _: is_refused(due), 2) == [True, True]
        assert not is_refused(due)


def test_a_trial_is_shared_no_longer_than_it_lasts(due: Dependency, clock: ManualClock) -> None:
    """A lease that ran out is nobody's ticket, also not that of the code that is still inside."""
    with due.permit():
        clock.advance(LEASE)
        assert due.breaker is BreakerState.OPEN
        assert is_refused(due)
    assert due.breaker is BreakerState.OPEN


# --- leases -------------------------------------------------------------------------------------------


def test_hung_trial_loses_its_lease(form: Form, due: Dependency, clock: ManualClock) -> None:
    """A trial that hangs has failed when its lease is over, not before, and without anybody's help."""
    seen: list[Any] = []

    def body() -> str:
        clock.advance(LEASE - 1)
        seen.append((due.breaker, due.retry_after))
        clock.advance(1)
        seen.append((due.breaker, due.retry_after))
        return "answer"

    assert form.guard(due, body)() == "answer"
    assert seen == [(BreakerState.HALF_OPEN, 1.0), (BreakerState.OPEN, 2 * COOLDOWN)]


def test_cooldown_counts_from_the_end_of_the_lease(due: Dependency, clock: ManualClock) -> None:
    """A lease ends when it ends, not when somebody looks."""
    permit = due.permit()
    permit.__enter__()
    clock.advance(LEASE + 7)
    assert (due.breaker, due.retry_after) == (BreakerState.OPEN, 2 * COOLDOWN - 7)
    clock.advance(2 * COOLDOWN - 7)
    succeed(due)
    assert due.breaker is BreakerState.CLOSED


def test_retry_after_while_a_trial_is_out(due: Dependency, clock: ManualClock) -> None:
    """Whichever is sooner, the lease's end or the next first cooldown, and never zero: nobody spins."""
    permit = due.permit()
    permit.__enter__()
    for passed, left in ((0, 10.0), (4, 6.0), (5, 1.0), (1, 10.0), (15, 5.0), (4, 1.0)):
        clock.advance(passed)
        assert due.retry_after == left
    permit.succeed()


def test_hung_trial_that_answers_after_all(form: Form, due: Dependency, clock: ManualClock) -> None:
    """The late answer of an expired trial closes nothing, but makes the next trial due at once."""

    def body() -> str:
        clock.advance(LEASE + 3)
        assert due.breaker is BreakerState.OPEN
        return "answer"

    late = due.status().late_dropped
    assert form.guard(due, body)() == "answer"
    report = due.status()
    assert (report.breaker, report.retry_after, report.late_dropped) == (BreakerState.OPEN, 0.0, late + 1)
    succeed(due)
    assert due.breaker is BreakerState.CLOSED


@pytest.mark.parametrize("error", [Down("late"), KeyboardInterrupt()], ids=repr)
def test_hung_trial_that_ends_badly(
    form: Form, due: Dependency, clock: ManualClock, error: BaseException
) -> None:
    """The late failure of an expired trial changes nothing but a counter."""

    def body() -> None:
        clock.advance(LEASE + 3)
        assert due.breaker is BreakerState.OPEN
        raise error

    before = due.status()
    with pytest.raises(type(error)):
        form.guard(due, body)()
    report = due.status()
    assert (report.breaker, report.retry_after) == (BreakerState.OPEN, 2 * COOLDOWN - 3)
    assert (report.late_dropped, report.failures) == (before.late_dropped + 1, before.failures)
    assert report.level == 2


# --- late results -------------------------------------------------------------------------------------


def early(dependency: Dependency) -> Any:
    """Begin a call and leave it in flight."""
    permit = dependency.permit()
    permit.__enter__()
    return permit


def test_late_failure_after_closing_again(redis: Dependency, clock: ManualClock) -> None:
    """A call of the time before the outage that fails after it opens nothing; it is a miss all the same."""
    permits = [early(redis) for _ in range(5)]
    make_open(redis)
    clock.advance(COOLDOWN)
    succeed(redis)
    clock.advance(600)
    succeed(redis)
    assert redis.state is HealthState.HEALTHY
    before = redis.status()
    for permit in permits:
        permit.fail(Down("late"))
    report = redis.status()
    assert (report.breaker, report.state) == (BreakerState.CLOSED, HealthState.HEALTHY)
    assert (report.late_dropped, report.failures) == (before.late_dropped + 5, before.failures)


def test_late_success_while_open(redis: Dependency, clock: ManualClock) -> None:
    """A success of the time before does not close an open breaker."""
    permit = early(redis)
    make_open(redis)
    clock.advance(4)
    permit.succeed()
    report = redis.status()
    assert (report.breaker, report.retry_after, report.late_dropped) == (BreakerState.OPEN, 6.0, 1)


def test_late_success_of_a_call_on_the_short_way(form: Form, redis: Dependency, clock: ManualClock) -> None:
    """A call of a healthy dependency that answers after the breaker has opened is late as well."""
    script: list[Callable[[], object]] = []
    call = form.guard(redis, lambda: [step() for step in script])
    for _ in range(3):
        call()
    script.append(lambda: fail(redis, 3))
    before = redis.status()
    call()
    report = redis.status()
    assert (report.breaker, report.retry_after) == (BreakerState.OPEN, COOLDOWN)
    assert (report.late_dropped, report.successes) == (1, before.successes)


def test_late_failure_while_open(redis: Dependency, clock: ManualClock) -> None:
    """A failure of the time before does not make an open breaker wait longer."""
    permit = early(redis)
    make_open(redis)
    clock.advance(4)
    permit.fail(Down("late"))
    assert redis.retry_after == 6.0
    assert redis.status().level == 1


@pytest.mark.parametrize("error", [None, Down("late")], ids=repr)
def test_late_result_while_the_trial_is_out(
    redis: Dependency, clock: ManualClock, error: Exception | None
) -> None:
    """Whatever a call of the time before says, the trial alone decides."""
    permit = early(redis)
    make_open(redis)
    clock.advance(COOLDOWN)
    trial = early(redis)
    if error is None:
        permit.succeed()
    else:
        permit.fail(error)
    assert redis.breaker is BreakerState.HALF_OPEN
    assert in_thread(lambda: is_refused(redis))
    trial.succeed()
    assert redis.breaker is BreakerState.CLOSED


def test_first_report_of_a_permit_is_heard(due: Dependency) -> None:
    """A permit reports once; whatever comes later changes nothing."""
    permit = early(due)
    permit.succeed()
    permit.fail(Down("second thought"))
    permit.__exit__(None, None, None)
    report = due.status()
    assert (report.breaker, report.failures, report.late_dropped) == (BreakerState.CLOSED, 3, 0)


# --- people, in the middle ----------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["trip", "hold", "reset"])
def test_verbs_while_a_trial_is_out(due: Dependency, clock: ManualClock, verb: str) -> None:
    """A person's word ends the trial: its answer comes late and decides nothing."""
    trial = early(due)
    getattr(due, verb)("by hand")
    wanted = BreakerState.CLOSED if verb == "reset" else BreakerState.OPEN
    assert due.breaker is wanted
    trial.fail(Down("late"))
    trial.succeed()
    assert due.breaker is wanted
    assert due.held is (verb == "hold")


def test_held_breaker_admits_no_trial(form: Form, due: Dependency, clock: ManualClock) -> None:
    """Held means held, however long; released, the next call is the trial."""
    call = form.guard(due, answer)
    due.hold("maintenance")
    clock.advance(1_000_000)
    with pytest.raises(DependencyUnhealthy) as caught:
        call()
    assert (caught.value.reason, caught.value.retry_after) == ("held", None)
    due.release("done")
    assert due.retry_after == 0.0
    assert call() == "answer"
    assert due.breaker is BreakerState.CLOSED


def test_released_breaker_waits_for_no_cooldown(form: Form, health: Safehold, clock: ManualClock) -> None:
    """After a release the next call is the trial, also where a tenacity wait decides the cooldowns."""
    policy = POLICY.model_copy(update={"cooldown": wait_fixed(25)})
    redis = health.dependency("waiting", policy=policy)
    make_open(redis)
    assert redis.retry_after == 25.0
    redis.hold()
    redis.release()
    assert redis.retry_after == 0.0
    assert form.guard(redis, answer)() == "answer"


# --- with a prober ------------------------------------------------------------------------------------


async def test_callers_leave_the_trial_to_a_running_prober(health: Safehold, clock: ManualClock) -> None:
    """With a prober running, callers wait one second for it; then the next caller is the trial."""
    probed = asyncio.Event()

    async def probe() -> None:
        probed.set()

    redis = health.dependency("redis", policy=POLICY, probe=probe)
    async with health.running():
        await asyncio.sleep(0)
        make_open(redis)
        clock.advance(COOLDOWN)
        assert is_refused(redis)
        clock.advance(0.75)
        assert is_refused(redis)
        assert redis.breaker is BreakerState.OPEN
        clock.advance(0.25)
        succeed(redis)  # the loop has not run since: the prober could not claim it
        assert redis.breaker is BreakerState.CLOSED
        assert not probed.is_set()


async def test_a_running_prober_brings_the_dependency_back(health: Safehold, clock: ManualClock) -> None:
    """The prober's own trial closes the breaker without a single call."""
    closed = asyncio.Event()

    async def probe() -> None: ...

    redis = health.dependency("redis", policy=POLICY, probe=probe)
    with health.subscribe(lambda event: closed.set() if event.breaker is BreakerState.CLOSED else None):
        async with health.running():
            await asyncio.sleep(0)
            make_open(redis)
            closed.clear()
            clock.advance(COOLDOWN)
            await asyncio.wait_for(closed.wait(), PATIENCE)
    assert redis.breaker is BreakerState.CLOSED


def test_without_a_prober_the_next_caller_is_the_trial(health: Safehold, clock: ManualClock) -> None:
    """A probe that nobody runs delays no caller: recovery never depends on `start`."""
    redis = health.dependency("redis", policy=POLICY, probe=answer)
    make_open(redis)
    clock.advance(COOLDOWN)
    succeed(redis)
    assert redis.breaker is BreakerState.CLOSED


async def test_when_the_prober_stops_callers_are_trials_again(health: Safehold, clock: ManualClock) -> None:
    """The head start ends with the prober."""

    async def probe() -> None: ...

    redis = health.dependency("redis", policy=POLICY, probe=probe)
    async with health.running():
        await asyncio.sleep(0)
        make_open(redis)
    clock.advance(COOLDOWN)
    succeed(redis)
    assert redis.breaker is BreakerState.CLOSED


async def test_a_head_start_is_told_in_retry_after(health: Safehold, clock: ManualClock) -> None:
    """A caller that is refused in the prober's favour is not told to try again at once."""

    async def probe() -> None: ...

    redis = health.dependency("redis", policy=POLICY, probe=probe)
    async with health.running():
        await asyncio.sleep(0)
        make_open(redis)
        clock.advance(COOLDOWN)
        with pytest.raises(DependencyUnhealthy) as caught, redis.permit():
            pass
        assert caught.value.retry_after
        clock.advance(caught.value.retry_after)
        assert not is_refused(redis)


# --- under load ---------------------------------------------------------------------------------------


def test_storm(redis: Dependency, clock: ManualClock) -> None:
    """Threads that succeed, fail and are interrupted while time passes never see two trials at once."""
    inside = 0
    most = 0
    lock = threading.Lock()
    stop = threading.Event()

    @redis.guard
    def call(index: int, turn: int) -> None:
        nonlocal inside, most
        trial = redis.breaker is BreakerState.HALF_OPEN
        if trial:
            with lock:
                inside += 1
                most = max(most, inside)
        try:
            if (index + turn) % 3 == 0:
                raise Down("no answer")
            if (index + turn) % 7 == 0:
                raise KeyboardInterrupt
        finally:
            if trial:
                with lock:
                    inside -= 1

    def work(index: int) -> int:
        if index == 0:
            for _ in range(300):
                clock.advance(2.5)
            stop.set()
            return 0
        refused = turn = 0
        while not stop.is_set():
            turn += 1
            try:
                call(index, turn)
            except DependencyUnhealthy:
                refused += 1
            except (Down, KeyboardInterrupt):
                pass
        return refused

    with many_switches():
        results = in_threads(work, 5)
    assert all(isinstance(result, int) for result in results), results
    clock.advance(100)
    with contextlib.suppress(DependencyUnhealthy):
        fail(redis)
    clock.advance(100)
    assert not is_refused(redis), "no permit is lost"
    assert redis.breaker is BreakerState.CLOSED
    assert most <= 1
