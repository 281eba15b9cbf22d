"""Probes find the way back: by themselves, one at a time, and at nobody's cost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tenacity
from tenacity.wait import wait_base

from safehold import (
    Backoff,
    BreakerPolicy,
    BreakerState,
    Dependency,
    DependencyUnhealthy,
    GatePolicy,
    HealthState,
    OperationBlocked,
    ProbePolicy,
    Refused,
    Safehold,
    Transition,
)
from safehold._runtime.prober import MOST_HANGING
from safehold.testing.clock import ManualClock

from .support import COOLDOWN, PATIENCE, POLICY, Down, fail, in_threads, is_refused, succeed

ONE = POLICY.model_copy(update={"failures": 1})
TIMEOUT = ProbePolicy().timeout
HEAD_START = 1.0
KINDS = ("sync", "async")


# --- what probes do, and how tests wait for it --------------------------------------------------------


class Hang:
    """A place in which probes stay until `release`; then they take the step `then`."""

    def __init__(self) -> None:
        self.then: Any = None
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []  # guarded by _lock

    def wait(self) -> None:
        assert self._released.wait(PATIENCE * 3), "the probe was never released"

    async def await_(self) -> None:
        done = asyncio.Event()
        with self._lock:
            if self._released.is_set():
                return
            self._waiting.append((asyncio.get_running_loop(), done))
        await done.wait()

    def release(self) -> None:
        with self._lock:
            self._released.set()
            for loop, done in self._waiting:
                with contextlib.suppress(RuntimeError):  # that loop is over
                    loop.call_soon_threadsafe(done.set)


class Probe:
    """A probe with a script: each run takes the next step, and the last one stays.

    A step is an exception to raise, a `Hang` to stay in, a function to call, or a value to return.
    """

    def __init__(self, *script: Any) -> None:
        self._script = list(script) or [None]
        self._changed = threading.Condition()
        self.runs = self.over = self.at_once = 0  # guarded by _changed
        self.loops: list[asyncio.AbstractEventLoop] = []

    def form(self, kind: str) -> Callable[[], Any]:
        return self.sync if kind == "sync" else self.asynchronous

    def sync(self) -> Any:
        step = self._begin()
        try:
            if isinstance(step, Hang):
                step.wait()
            return self._do(step)
        finally:
            self._end()

    async def asynchronous(self) -> Any:
        self.loops.append(asyncio.get_running_loop())
        step = self._begin()
        try:
            if isinstance(step, Hang):
                await step.await_()
            answer = self._do(step)
            return await answer if asyncio.iscoroutine(answer) else answer
        finally:
            self._end()

    def wait_runs(self, count: int) -> None:
        """Wait until it has begun so often."""
        self._wait(lambda: self.runs >= count, f"begun {count} times")

    def wait_over(self, count: int) -> None:
        """Wait until it has ended so often."""
        self._wait(lambda: self.over >= count, f"ended {count} times")

    def has_begun(self, count: int, within: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.runs >= count, within)

    def _wait(self, predicate: Callable[[], bool], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(predicate, PATIENCE), f"the probe has not {what}"

    def _begin(self) -> Any:
        with self._changed:
            self.runs += 1
            self.at_once = max(self.at_once, self.runs - self.over)
            self._changed.notify_all()
            return self._script.pop(0) if len(self._script) > 1 else self._script[0]

    def _end(self) -> None:
        with self._changed:
            self.over += 1
            self._changed.notify_all()

    def _do(self, step: Any) -> Any:
        step = step.then if isinstance(step, Hang) else step
        if isinstance(step, Refused):
            raise DependencyUnhealthy(step.dependency, step.state, step.retry_after, step.reason)
        if isinstance(step, BaseException):
            raise type(step)(*step.args)
        return step() if callable(step) else step


class Watch:
    """All events of one Safehold, and something to wait on instead of sleeping."""

    def __init__(self, health: Safehold) -> None:
        self.events: list[Any] = []
        self._changed = threading.Condition()
        health.subscribe(self._take)

    def _take(self, event: Any) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def until(self, predicate: Callable[[], bool], what: str = "that") -> None:
        with self._changed:
            assert self._changed.wait_for(predicate, PATIENCE), f"{what} did not happen: {self.events}"

    def until_state(self, dependency: Dependency, state: HealthState) -> None:
        self.until(lambda: dependency.state is state, f"{dependency.name} {state}")

    def is_state(self, dependency: Dependency, state: HealthState, within: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: dependency.state is state, within)

    def insist(self, health: Safehold, dependency: Dependency, state: HealthState) -> None:
        """Order probes until it is in this state."""
        insist(
            lambda: health.check(f"{dependency.name}.reap"),
            lambda seconds: self.is_state(dependency, state, seconds),
        )

    def until_moves(self, dependency: Dependency, *path: str) -> None:
        """Wait until its breaker has gone through these states, and no others, since it was declared."""
        self.until(lambda: self.moves(dependency) == list(path), f"{dependency.name}: {path}")

    def until_moved(self, dependency: Dependency, times: int) -> None:
        self.until(lambda: len(self.moves(dependency)) >= times, f"{times} moves of {dependency.name}")

    def moves(self, dependency: Dependency) -> list[str]:
        return [
            str(event.breaker)
            for event in self.events
            if isinstance(event, Transition)
            and event.dependency == dependency.name
            and event.breaker is not event.breaker_before
        ]


class Home:
    """Runs a prober, on a thread or in a loop of its own, for tests that are plain functions."""

    def __init__(self, health: Safehold, kind: str) -> None:
        self.health, self.kind = health, kind
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    def begin(self) -> None:
        if self.kind == "thread":
            self.health.start()
            return
        ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live(ready)), name="loop of the test", daemon=True
        )
        self._thread.start()
        assert ready.wait(PATIENCE)

    def end(self) -> None:
        if self.kind == "thread":
            self.health.stop(PATIENCE)
            return
        thread, self._thread = self._thread, None
        if thread is not None and self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            thread.join(PATIENCE)
            assert not thread.is_alive(), "the loop's prober does not end"

    async def _live(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        async with self.health.running():
            ready.set()
            await self._stop.wait()


def insist(ask: Callable[[], object], answered: Callable[[float], bool]) -> None:
    """Ask again and again, as people do: a probe that is ending just now may have answered somebody else."""
    end = time.monotonic() + PATIENCE
    while ask() is not None and not answered(0.02):
        assert time.monotonic() < end, "no answer, however often one asked"


class Beacon:
    """Proves that the prober has looked at everything since: its own probe was ordered later, and has run."""

    def __init__(self, health: Safehold) -> None:
        self._health, self._probe = health, Probe(False)
        never = BreakerPolicy(failures=None, failure_rate=None)
        health.dependency("beacon", policy=never, probe=self._probe.sync)
        health.destructive("look at the beacon", requires=["beacon"])(lambda: None)

    def pass_by(self) -> None:
        for _ in range(2):  # the round of the first may have begun before this call
            runs = self._probe.runs
            insist(
                lambda: self._health.check("look at the beacon"),
                lambda seconds: self._probe.has_begun(runs + 1, seconds),  # noqa: B023 - called here
            )


@pytest.fixture(params=["thread", "loop"])
def home(request: pytest.FixtureRequest, health: Safehold) -> Iterator[Home]:
    """A prober of either kind, ended after the test."""
    home = Home(health, request.param)
    yield home
    home.end()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """How the probe is written."""
    return request.param


@pytest.fixture
def watch(health: Safehold) -> Watch:
    return Watch(health)


@pytest.fixture
def hang() -> Iterator[Hang]:
    hang = Hang()
    yield hang
    hang.release()


def declared(
    health: Safehold,
    probe: Probe | None,
    kind: str,
    name: str = "redis",
    policy: BreakerPolicy = ONE,
    **probing: Any,
) -> Dependency:
    """A critical dependency with this probe, and an automatic operation that requires it."""
    dependency = health.dependency(
        name,
        critical=True,
        policy=policy,
        probe=None if probe is None else probe.form(kind),
        probe_policy=ProbePolicy(**probing),
    )
    health.destructive(f"{name}.reap", requires=[name])(lambda: None)
    return dependency


def order(health: Safehold, name: str = "redis") -> None:
    """Ask for proof, as everybody does: by being blocked."""
    assert not health.check(f"{name}.reap")


def probe_threads(name: str = "redis") -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == f"safehold-probe-{name}"]


# --- the way back -------------------------------------------------------------------------------------


def test_probes_close_the_breaker_without_traffic(
    home: Home, kind: str, health: Safehold, clock: ManualClock, watch: Watch
) -> None:
    """Open to half-open to closed by probes alone, each when it is due, the cooldown growing in between."""
    probe = Probe(Down(), None)
    redis = declared(health, probe, kind)
    beacon = Beacon(health)
    fail(redis)
    home.begin()
    clock.advance(COOLDOWN - 0.001)
    beacon.pass_by()
    assert probe.runs == 0
    clock.advance(0.001)
    watch.until_moves(redis, "open", "half_open", "open")
    clock.advance(COOLDOWN * 2 - 0.001)
    beacon.pass_by()
    assert probe.runs == 1
    clock.advance(0.001)
    watch.until_moves(redis, "open", "half_open", "open", "half_open", "closed")
    assert redis.state is HealthState.RECOVERING


def test_probes_settle_a_recovery_that_the_gate_waits_for(
    home: Home, kind: str, health: Safehold, clock: ManualClock, watch: Watch
) -> None:
    """After the settle time, one ordered probe makes it healthy and the operation runs: no traffic needed."""
    redis = declared(health, Probe(), kind)
    fail(redis)
    home.begin()
    clock.advance(COOLDOWN)
    watch.until_state(redis, HealthState.RECOVERING)
    watch.until(lambda: redis.breaker is BreakerState.CLOSED)
    clock.advance(GatePolicy().settle_min)
    watch.insist(health, redis, HealthState.HEALTHY)
    with health.scope():
        assert health.check("redis.reap")


def test_probe_that_uses_a_guarded_client_of_its_own_dependency_gets_through(
    home: Home, kind: str, health: Safehold, clock: ManualClock, watch: Watch
) -> None:
    """A trial's permit is shared with the guards inside the probe, else half-open could never end."""
    redis = health["redis"]

    @redis.guard
    def ping() -> str:
        return "PONG"

    @redis.guard
    async def aping() -> str:
        await asyncio.sleep(0)
        return "PONG"

    declared(health, Probe(ping if kind == "sync" else aping), kind)
    fail(redis)
    home.begin()
    clock.advance(COOLDOWN)
    watch.until_moves(redis, "open", "half_open", "closed")
    assert redis.status().refusals == 0


def test_probe_whose_guarded_client_fails_counts_once(
    home: Home, kind: str, health: Safehold, watch: Watch
) -> None:
    """One exception object that passes the client's guard and the probe's permit is one failure."""
    redis = health["redis"]

    @redis.guard
    def ping() -> None:
        raise Down

    declared(health, Probe(ping), kind, policy=POLICY)
    home.begin()
    order(health)
    watch.until_state(redis, HealthState.DEGRADED)
    home.end()
    assert redis.status().failures == 1


@pytest.mark.parametrize("answer", [None, True, 0, "", [], "no", ValueError], ids=repr)
def test_every_return_but_false_is_an_answer(
    home: Home, kind: str, health: Safehold, watch: Watch, answer: Any
) -> None:
    """A probe answers by returning, whatever it returns: a reply of zero is a reply."""
    redis = declared(health, Probe(answer), kind)
    home.begin()
    order(health)
    watch.until_state(redis, HealthState.HEALTHY)


@pytest.mark.parametrize("step", [False, Down("no"), TimeoutError(), ValueError("nonsense")], ids=repr)
def test_false_and_exceptions_are_failures(
    home: Home, kind: str, health: Safehold, watch: Watch, step: Any
) -> None:
    """A probe fails by returning `False` or by raising."""
    redis = declared(health, Probe(step), kind)
    home.begin()
    order(health)
    watch.until_state(redis, HealthState.UNHEALTHY)
    assert redis.status().failures == 1


def test_classifier_does_not_excuse_a_probe(home: Home, kind: str, health: Safehold, watch: Watch) -> None:
    """What is the application's own error in a call is no answer in a probe."""
    probe = Probe(KeyError("not there"))
    redis = health.dependency("redis", policy=ONE, classify=Down, probe=probe.form(kind), critical=True)
    health.destructive("redis.reap")(lambda: None)
    home.begin()
    order(health)
    watch.until_state(redis, HealthState.UNHEALTHY)


# --- one at a time ------------------------------------------------------------------------------------


def test_orders_while_one_is_in_flight_are_one_more_probe(
    home: Home, kind: str, health: Safehold, watch: Watch, hang: Hang
) -> None:
    """Orders are single flight: many of them during a probe are one probe after it, never one beside it."""
    probe = Probe(hang, None)
    redis = declared(health, probe, kind)
    beacon = Beacon(health)
    home.begin()
    for _ in range(3):
        order(health)
    probe.wait_runs(1)
    for _ in range(3):
        order(health)
    beacon.pass_by()
    assert probe.runs == 1
    hang.release()
    watch.until_state(redis, HealthState.HEALTHY)
    beacon.pass_by()
    assert probe.runs <= 2
    assert probe.at_once == 1


def test_order_and_schedule_of_one_instant_are_one_probe(
    home: Home, kind: str, health: Safehold, clock: ManualClock, watch: Watch
) -> None:
    """A probe that is due and ordered runs once."""
    probe = Probe()
    redis = declared(health, probe, kind, interval=10.0, jitter=0.0)
    beacon = Beacon(health)
    clock.advance(10.0)
    with health._engine._lock:
        redis._order()
    home.begin()
    watch.until_state(redis, HealthState.HEALTHY)
    beacon.pass_by()
    assert probe.runs == 1


def test_trial_of_a_caller_is_not_doubled_by_a_probe(
    home: Home, kind: str, health: Safehold, clock: ManualClock, watch: Watch
) -> None:
    """While a caller's trial is out, no probe goes through; when it failed, the next cooldown counts."""
    probe = Probe()
    redis = declared(health, probe, kind)
    beacon = Beacon(health)
    fail(redis)
    clock.advance(COOLDOWN)
    with contextlib.suppress(Down), redis.permit():  # no prober runs: the caller is the trial
        home.begin()
        beacon.pass_by()
        assert probe.runs == 0
        raise Down
    clock.advance(COOLDOWN * 2)
    watch.until_moves(redis, "open", "half_open", "open", "half_open", "closed")
    assert probe.runs == 1


# --- probes that hang ---------------------------------------------------------------------------------


def test_hung_probe_delays_no_other_dependency(
    home: Home, kind: str, health: Safehold, watch: Watch, hang: Hang
) -> None:
    """A probe that hangs is alone with it: others are probed and become healthy meanwhile."""
    probe = Probe(hang)
    declared(health, probe, kind)
    home.begin()
    order(health)
    probe.wait_runs(1)
    for other in ("api", "store"):
        for form in KINDS:
            name = f"{other}-{form}"
            dependency = declared(health, Probe(), form, name)
            order(health, name)
            watch.until_state(dependency, HealthState.HEALTHY)


def test_hung_probe_is_given_up_at_its_timeout_and_its_late_answer_changes_nothing(
    home: Home, kind: str, health: Safehold, clock: ManualClock, watch: Watch, hang: Hang
) -> None:
    """At its time-out, not before, a probe has failed; what it says afterwards is heard by nobody."""
    probe = Probe(hang)
    redis = declared(health, probe, kind)
    beacon = Beacon(health)
    home.begin()
    order(health)
    probe.wait_runs(1)
    clock.advance(TIMEOUT - 0.001)
    beacon.pass_by()
    assert redis.state is HealthState.UNKNOWN
    clock.advance(0.001)
    watch.until_state(redis, HealthState.UNHEALTHY)
    before = redis.status()
    assert (before.failures, before.cause) == (1, "timed out")
    hang.release()
    probe.wait_over(1)
    for thread in probe_threads():
        thread.join(PATIENCE)
    beacon.pass_by()
    after = redis.status()
    assert after == before.model_copy(update={"retry_after": after.retry_after})


@pytest.mark.parametrize("in_half_open", [False, True])
def test_hung_probe_is_followed_by_others(
    home: Home,
    kind: str,
    health: Safehold,
    clock: ManualClock,
    watch: Watch,
    hang: Hang,
    in_half_open: bool,
) -> None:
    """After a probe was given up, the next one runs when it is due, and succeeds while the old one hangs."""
    probe = Probe(hang, None)
    redis = declared(health, probe, kind)
    if in_half_open:
        fail(redis)
    home.begin()
    order(health)
    clock.advance(COOLDOWN if in_half_open else 0.0)
    probe.wait_runs(1)
    clock.advance(TIMEOUT)
    watch.until_state(redis, HealthState.UNHEALTHY)
    clock.advance(COOLDOWN * 2)
    watch.until_state(redis, HealthState.RECOVERING)
    watch.until(lambda: redis.breaker is BreakerState.CLOSED)


@pytest.mark.parametrize(
    ("where", "kind"), [("thread", "sync"), ("thread", "async"), ("loop", "sync"), ("loop", "async")]
)
def test_hung_probes_do_not_pile_up(
    where: str, kind: str, health: Safehold, clock: ManualClock, watch: Watch, hang: Hang
) -> None:
    """At most `MOST_HANGING` threads of one dependency hang; its probes fail unasked until one comes back."""
    home = Home(health, where)
    probe = Probe(hang)
    redis = declared(health, probe, kind)
    fail(redis)
    home.begin()
    moves = 1
    for _ in range(MOST_HANGING + 3):
        clock.advance(redis.retry_after or 0.0)
        watch.until_moved(redis, moves + 1)
        clock.advance(TIMEOUT)
        moves += 2
        watch.until_moved(redis, moves)
        assert redis.breaker is BreakerState.OPEN
        assert len(probe_threads()) <= MOST_HANGING
    probe.wait_runs(MOST_HANGING)
    if (where, kind) != ("loop", "async"):
        assert probe.runs == MOST_HANGING
    hang.release()
    for thread in probe_threads():
        thread.join(PATIENCE)
    clock.advance(redis.retry_after or 0.0)
    watch.until_moved(redis, moves + 2)
    assert redis.breaker is BreakerState.CLOSED
    home.end()


def test_probe_tasks_that_swallow_cancellation_do_not_pile_up(
    health: Safehold, clock: ManualClock, watch: Watch, hang: Hang
) -> None:
    """What holds for threads holds for tasks: one that cannot be cancelled counts as hanging."""
    alive = set()

    async def stubborn() -> None:
        alive.add(asyncio.current_task())
        while not hang._released.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await hang.await_()

    redis = health.dependency("redis", policy=ONE, probe=stubborn, critical=True)
    fail(redis)
    home = Home(health, "loop")
    home.begin()
    for moves in range(1, 2 * MOST_HANGING + 4, 2):
        clock.advance(redis.retry_after or 0.0)
        watch.until_moved(redis, moves + 1)
        clock.advance(TIMEOUT)
        watch.until_moved(redis, moves + 2)
    hanging = len([task for task in alive if not task.done()])
    hang.release()
    home.end()
    assert hanging <= MOST_HANGING


# --- probes that decide nothing -----------------------------------------------------------------------

UNDECIDED = {
    "refused": DependencyUnhealthy("another", HealthState.UNHEALTHY, 5.0, "breaker_open"),
    "exit": SystemExit(3),
    "interrupt": KeyboardInterrupt(),
    "cancelled": asyncio.CancelledError(),
}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_interruption_in_a_probe_is_logged_and_not_counted_and_probing_goes_on(
    home: Home,
    kind: str,
    health: Safehold,
    watch: Watch,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    """A probe that exits or is interrupted ends neither the prober nor the loop; it is a miss, no failure."""
    caplog.set_level(logging.ERROR, "safehold")
    redis = declared(health, Probe(error, None), kind)
    home.begin()
    order(health)
    watch.until_state(redis, HealthState.DEGRADED)
    assert redis.status().failures == 0
    assert redis.status().unresolved_miss
    watch.insist(health, redis, HealthState.HEALTHY)
    assert any("probe_interrupted" in record.message for record in caplog.records)


def test_refusal_in_a_probe_is_a_miss_and_no_failure(
    home: Home, kind: str, health: Safehold, watch: Watch
) -> None:
    """A probe that met another dependency's open breaker says nothing about its own."""
    redis = declared(health, Probe(UNDECIDED["refused"], None), kind)
    home.begin()
    order(health)
    watch.until_state(redis, HealthState.DEGRADED)
    assert redis.status().failures == 0
    watch.insist(health, redis, HealthState.HEALTHY)


@pytest.mark.parametrize("why", UNDECIDED)
def test_trial_that_decided_nothing_is_not_repeated_in_a_hot_loop(
    home: Home, kind: str, health: Safehold, clock: ManualClock, watch: Watch, why: str
) -> None:
    """In half-open, a probe that decides nothing is asked again after a while, not at once and for ever."""
    if (home.kind, kind) == ("loop", "async") and why in {"exit", "interrupt"}:
        error: BaseException = Down()  # ends the loop: a test of its own says so
    else:
        error = UNDECIDED[why]
    probe = Probe(error)
    redis = declared(health, probe, kind)
    beacon = Beacon(health)
    fail(redis)
    home.begin()
    clock.advance(COOLDOWN)
    probe.wait_runs(1)
    for _ in range(5):
        beacon.pass_by()
    runs = probe.runs
    probe._script = [None]
    clock.advance(redis.policy.cooldown.cap)
    watch.until(lambda: redis.breaker is BreakerState.CLOSED, "recovery")
    assert runs <= 2


# --- callers and the prober ---------------------------------------------------------------------------


class StuckClock(ManualClock):
    """Stands still for a prober: whoever runs in its thread waits here until `free`."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def monotonic(self) -> float:
        if threading.current_thread().name in {"safehold-prober", "loop of the test"}:
            self.free.wait(PATIENCE * 2)
        return super().monotonic()


@pytest.mark.parametrize("where", ["thread", "loop"])
def test_caller_takes_the_trial_that_no_prober_claims(where: str, kind: str) -> None:
    """A running prober has a head start of one second; after it, the next caller is the trial."""
    clock = StuckClock()
    health = Safehold("stuck", clock=clock)
    redis = declared(health, Probe(), kind)
    fail(redis)
    home = Home(health, where)
    try:
        home.begin()
        clock.advance(COOLDOWN)
        assert is_refused(redis)
        clock.advance(HEAD_START - 0.001)
        assert is_refused(redis)
        clock.advance(0.001)
        succeed(redis)
        assert redis.breaker is BreakerState.CLOSED
    finally:
        clock.free.set()
        home.end()


@pytest.mark.parametrize("why", ["never started", "stopped", "no probe"])
def test_caller_is_the_trial_at_once_where_nobody_probes(
    home: Home, kind: str, health: Safehold, clock: ManualClock, why: str
) -> None:
    """Recovery never depends on `start()`, and nobody waits for a probe that cannot come."""
    redis = declared(health, None if why == "no probe" else Probe(), kind)
    fail(redis)
    if why != "never started":
        home.begin()
    if why == "stopped":
        home.end()
    clock.advance(COOLDOWN - 0.001)
    assert is_refused(redis)
    clock.advance(0.001)
    succeed(redis)
    assert redis.breaker is BreakerState.CLOSED


def test_held_breaker_is_never_probed(
    home: Home, kind: str, health: Safehold, clock: ManualClock, watch: Watch
) -> None:
    """Only a person ends a hold; from the release on, probes do the rest."""
    probe = Probe()
    redis = declared(health, probe, kind, interval=10.0)
    beacon = Beacon(health)
    redis.hold("maintenance")
    home.begin()
    for seconds in (COOLDOWN, 100.0, 10_000.0):
        clock.advance(seconds)
        order(health)
        beacon.pass_by()
    assert probe.runs == 0
    assert redis.retry_after is None
    redis.release()
    watch.until(lambda: redis.breaker is BreakerState.CLOSED, "recovery")
    assert probe.runs == 1


# --- liveness -----------------------------------------------------------------------------------------


class Dice(random.Random):
    """Always draws the same."""

    def __init__(self, draw: float) -> None:
        super().__init__()
        self.draw = draw

    def random(self) -> float:
        return self.draw


def landed(dependency: Dependency) -> None:
    """Wait until the flight of a probe is given back: the next one is planned from there."""
    look = threading.Event()
    for _ in range(10_000):
        schedule = dependency._schedule
        if schedule is None or not schedule.in_flight:
            return
        look.wait(0.001)
    pytest.fail("the probe's flight was never given back")


@pytest.mark.parametrize("where", ["thread", "loop"])
@pytest.mark.parametrize(("draw", "after"), [(0.0, 10.0), (0.5, 7.5), (math.nextafter(1.0, 0.0), 5.0)])
def test_closed_breaker_is_probed_at_the_interval_less_jitter(
    where: str, kind: str, clock: ManualClock, draw: float, after: float
) -> None:
    """Chance takes at most `jitter` of the interval away, and nothing is added to it."""
    health = Safehold("liveness", clock=clock, rng=Dice(draw))
    probe = Probe()
    redis = declared(health, probe, kind, interval=10.0, jitter=0.5)
    beacon, home = Beacon(health), Home(health, where)
    home.begin()
    for done in range(3):
        clock.advance(after - 0.001)
        beacon.pass_by()
        assert probe.runs == done
        clock.advance(0.002)
        probe.wait_runs(done + 1)
        landed(redis)
        beacon.pass_by()
    home.end()
    assert redis.status().successes == 3


def test_closed_breaker_without_an_interval_is_not_probed(
    home: Home, kind: str, health: Safehold, clock: ManualClock
) -> None:
    """By default only recovery and the gate ask for probes."""
    probe = Probe()
    declared(health, probe, kind)
    beacon = Beacon(health)
    home.begin()
    clock.advance(100_000.0)
    beacon.pass_by()
    assert probe.runs == 0


def test_liveness_probes_find_an_outage_that_no_call_has_met(
    home: Home, kind: str, health: Safehold, clock: ManualClock, watch: Watch
) -> None:
    """With an interval, a dependency that nobody calls trips on its probes and comes back on them."""
    probe = Probe(None, Down(), Down(), None)
    redis = declared(health, probe, kind, interval=10.0, jitter=0.0, policy=POLICY)
    home.begin()
    clock.advance(10.0)
    watch.until_state(redis, HealthState.HEALTHY)
    landed = threading.Event()
    redis._landings.append(landed.set)
    clock.advance(10.0)
    watch.until_state(redis, HealthState.DEGRADED)
    assert landed.wait(PATIENCE), "the next one is planned when this one has landed"
    fail(redis)
    clock.advance(10.0)
    watch.until_state(redis, HealthState.UNHEALTHY)
    clock.advance(COOLDOWN)
    watch.until(lambda: redis.breaker is BreakerState.CLOSED)


# --- late, twice, not at all --------------------------------------------------------------------------


@pytest.mark.parametrize("late", ["declared", "probe", "open and probe"])
def test_what_comes_after_the_start_is_probed_as_well(
    home: Home, kind: str, health: Safehold, clock: ManualClock, watch: Watch, late: str
) -> None:
    """A dependency declared, or given its probe, after `start()` is probed as if it had been there before."""
    probe = Probe()
    if late != "declared":
        redis = declared(health, None, kind)
    if late == "open and probe":
        fail(redis)
        clock.advance(COOLDOWN)
    beacon = Beacon(health)
    home.begin()
    beacon.pass_by()
    if late == "declared":
        redis = declared(health, probe, kind)
    else:
        redis.provide(probe=probe.form(kind))
    if late != "open and probe":
        fail(redis)
        clock.advance(COOLDOWN)
    watch.until(lambda: redis.breaker is BreakerState.CLOSED, "recovery")
    assert probe.runs == 1


@pytest.mark.parametrize("where", ["thread", "loop"])
def test_interval_of_a_probe_given_after_the_start_begins_to_run(where: str, kind: str) -> None:
    """A call site that brings the probe later than `start()` gets its liveness probes all the same."""
    health = Safehold("late")  # the machine's clock, which tells nobody that it moves
    watch, home = Watch(health), Home(health, where)
    redis = health.dependency("redis", probe_policy=ProbePolicy(timeout=0.3, interval=0.3))
    home.begin()
    Beacon(health).pass_by()
    redis.provide(probe=Probe().form(kind))
    watch.until_state(redis, HealthState.HEALTHY)
    home.end()


def test_late_probe_gives_its_prober_the_head_start(
    home: Home, kind: str, health: Safehold, clock: ManualClock, hang: Hang
) -> None:
    """Callers leave the trial to a prober also where the probe came after the start."""
    probe = Probe(hang)
    redis = declared(health, None, kind)
    home.begin()
    redis.provide(probe=probe.form(kind))
    fail(redis)
    clock.advance(COOLDOWN)
    assert is_refused(redis)
    probe.wait_runs(1)


def test_start_twice_is_start_once(health: Safehold) -> None:
    """A second `start` finds the prober running and changes nothing; so does one beside a loop's prober."""
    health.start()
    first = health._engine.prober
    health.start()
    assert health._engine.prober is first
    assert health.status().probing
    health.stop()
    assert not health.status().probing
    home = Home(health, "loop")
    home.begin()
    second = health._engine.prober
    health.start()
    health.stop()  # ends what `start` began, and that is nothing
    assert health._engine.prober is second
    assert health.status().probing
    home.end()
    assert not health.status().probing


def test_stop_without_start_and_twice(health: Safehold) -> None:
    """`stop` may be called at any time, and again."""
    health.stop()
    health.start()
    prober = health._engine.prober
    health.stop()
    health.stop()
    assert prober is not None
    assert not prober._thread.is_alive()  # type: ignore[union-attr]  # a thread's


def test_many_threads_that_start_and_stop(health: Safehold) -> None:
    """Whoever starts and stops at once leaves one prober or none, and no thread behind."""
    for _ in range(5):
        results = in_threads(lambda i: (health.start, health.stop)[i % 2](), 8)
        assert results == [None] * 8
    health.stop()
    left = [thread for thread in threading.enumerate() if thread.name == "safehold-prober"]
    for thread in left:
        thread.join(PATIENCE / 10)
    assert not [thread for thread in left if thread.is_alive()]


def test_stop_does_not_wait_for_a_probe_in_flight(
    home: Home, kind: str, health: Safehold, clock: ManualClock, watch: Watch, hang: Hang
) -> None:
    """A probe that hangs does not hold `stop` up, and probing goes on after the next start."""
    probe = Probe(hang, None)
    redis = declared(health, probe, kind)
    home.begin()
    order(health)
    probe.wait_runs(1)
    home.end()
    assert not health.status().probing
    home.begin()
    clock.advance(COOLDOWN)
    insist(
        lambda: health.check("redis.reap"),
        lambda seconds: probe.has_begun(2, seconds) and watch.is_state(redis, redis.state, seconds),
    )
    watch.until(lambda: redis.status().successes > 0, "an answer")


def test_loop_ends_although_a_probe_swallows_its_cancellation(health: Safehold, hang: Hang) -> None:
    """Leaving `async with running()` is bounded also where a probe cleans up for ever."""
    begun = threading.Event()

    async def probe() -> None:
        begun.set()
        try:
            await hang.await_()
        finally:
            await hang.await_()  # such as closing a connection to what hangs

    health.dependency("redis", critical=True, probe=probe)
    health.destructive("redis.reap")(lambda: None)
    left = threading.Event()

    async def main() -> None:
        async with health.running():
            order(health)
            await asyncio.to_thread(begun.wait, PATIENCE)
        left.set()
        hang.release()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    in_time = left.wait(PATIENCE)
    hang.release()
    thread.join(PATIENCE)
    assert in_time


async def test_cancelled_while_leaving_still_gives_its_probes_up(health: Safehold, hang: Hang) -> None:
    """A task that is cancelled once more on its way out leaves no flight taken."""
    probe = Probe(hang, None)
    redis = declared(health, probe, "sync")
    running = health.running()
    await running.__aenter__()
    order(health)
    await asyncio.to_thread(probe.wait_runs, 1)
    leaving = asyncio.create_task(running.__aexit__(None, None, None))
    await asyncio.sleep(0)
    leaving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await leaving
    assert not health.status().probing
    order(health)
    await asyncio.to_thread(probe.wait_runs, 2)
    assert redis.status().failures == 0


def test_probe_given_up_by_stop_decides_nothing(
    home: Home, kind: str, health: Safehold, clock: ManualClock, watch: Watch, hang: Hang
) -> None:
    """A probe that `stop` gave up before its time-out has not failed: the trial is the next caller's."""
    probe = Probe(hang)
    redis = declared(health, probe, kind)
    fail(redis)
    home.begin()
    clock.advance(COOLDOWN)
    probe.wait_runs(1)
    home.end()
    assert redis.status().failures == 1
    succeed(redis)
    assert redis.breaker is BreakerState.CLOSED


def test_prober_starts_again(
    home: Home, kind: str, health: Safehold, clock: ManualClock, watch: Watch
) -> None:
    """Started, stopped and started again, it probes."""
    redis = declared(health, Probe(), kind)
    for cycle in range(3):
        home.begin()
        fail(redis)
        clock.advance(redis.retry_after or 0.0)
        watch.until_moved(redis, 3 * (cycle + 1))
        assert redis.breaker is BreakerState.CLOSED
        home.end()


def test_running_as_a_block(health: Safehold) -> None:
    """`with health.running()` probes on a thread for the length of the block, and gives the Safehold."""
    with health.running() as inside:
        assert inside is health
        assert health.status().probing
    assert not health.status().probing


def test_running_blocks_inside_each_other(health: Safehold) -> None:
    """An inner block changes nothing: the outermost begins and ends the probing."""
    with health.running():
        first = health._engine.prober
        with health.running():
            assert health._engine.prober is first
        assert health.status().probing
    assert not health.status().probing
    health.start()
    with health.running():
        pass
    assert health.status().probing  # it was running before the block
    health.stop()


async def test_running_blocks_inside_each_other_in_a_loop(health: Safehold) -> None:
    """So it is in a loop, in every mixture of both kinds."""
    async with health.running() as inside:
        assert inside is health
        first = health._engine.prober
        async with health.running():
            with health.running():
                assert health._engine.prober is first
        assert health.status().probing
    assert not health.status().probing
    with health.running():
        async with health.running():
            pass
        assert health.status().probing
    assert not health.status().probing


async def test_running_block_ends_also_when_its_body_raises(health: Safehold) -> None:
    """An exception in the block passes untouched, and no task is left."""
    before = asyncio.all_tasks()
    with pytest.raises(Down):
        async with health.running():
            raise Down
    assert asyncio.all_tasks() == before
    with pytest.raises(Down), health.running():
        raise Down
    assert not health.status().probing


# --- a loop that ends before its prober ---------------------------------------------------------------


@pytest.mark.parametrize("how", ["run", "closed"])
@pytest.mark.parametrize("step", ["idle", "answers", "hangs"])
@pytest.mark.parametrize("then", ["thread", "loop"])
def test_prober_whose_loop_is_gone_is_replaced(
    health: Safehold,
    clock: ManualClock,
    watch: Watch,
    hang: Hang,
    kind: str,
    how: str,
    step: str,
    then: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A loop that ended with its prober inside leaves no flight taken: the next start probes again."""
    probe = Probe(hang if step == "hangs" else None, None)
    redis = declared(health, probe, kind)

    async def main() -> None:
        await health.running().__aenter__()
        if step != "idle":
            order(health)
            await asyncio.to_thread(probe.wait_runs, 1)

    if how == "run":
        asyncio.run(main())
    else:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()  # its tasks were never told
    assert not health.status().probing
    home = Home(health, then)
    home.begin()
    clock.advance(COOLDOWN)
    runs = probe.runs
    fail(redis)
    clock.advance(redis.retry_after or 0.0)
    watch.until(lambda: redis.breaker is BreakerState.CLOSED, "recovery")
    assert probe.runs == runs + 1
    home.end()


@pytest.mark.parametrize("how", ["run", "closed"])
def test_callers_and_orders_do_without_a_prober_whose_loop_is_gone(
    health: Safehold, clock: ManualClock, watch: Watch, kind: str, how: str
) -> None:
    """A block has an exit also where the loop of the prober has ended: somebody else runs the probe."""
    redis = declared(health, Probe(), kind)

    async def main() -> None:
        await health.running().__aenter__()

    if how == "run":
        asyncio.run(main())
    else:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
    order(health)
    watch.until_state(redis, HealthState.HEALTHY)
    fail(redis)
    clock.advance(COOLDOWN + HEAD_START)
    succeed(redis)
    assert redis.breaker is BreakerState.CLOSED


# --- scopes and contexts ------------------------------------------------------------------------------


def test_scope_around_the_start_does_not_leak_into_probes(
    home: Home, kind: str, health: Safehold, clock: ManualClock, watch: Watch
) -> None:
    """What a probe meets is no business of the scope in which somebody started the prober, or asked."""
    api = health.dependency("api", policy=POLICY)

    @api.guard
    def call() -> None:
        raise Down

    def step() -> None:
        with contextlib.suppress(Down):
            call()

    redis = declared(health, Probe(step), kind)
    with health.scope("around") as scope:
        home.begin()
        order(health)
        watch.until_state(redis, HealthState.HEALTHY)
        home.end()
        assert not scope.tainted
    assert api.state is HealthState.DEGRADED


def test_plain_function_that_returns_an_awaitable_is_awaited_in_the_loop_of_the_prober(
    health: Safehold, watch: Watch
) -> None:
    """`probe=client.ping` of an asyncio client is such a function, and its client lives in that loop."""
    probe = Probe()
    redis = health.dependency("redis", critical=True, probe=lambda: probe.asynchronous())
    health.destructive("redis.reap")(lambda: None)
    home = Home(health, "loop")
    home.begin()
    order(health)
    watch.until_state(redis, HealthState.HEALTHY)
    assert probe.loops == [home._loop]
    home.end()


def test_coroutine_functions_of_every_make_run_in_the_loop_of_the_prober(
    health: Safehold, watch: Watch
) -> None:
    """A bound method and an object with an async `__call__` are coroutine functions as well."""

    class Callable_:
        def __init__(self, probe: Probe) -> None:
            self.probe = probe

        async def __call__(self) -> None:
            await self.probe.asynchronous()

    method, called = Probe(), Probe()
    first = health.dependency("method", critical=True, probe=method.asynchronous)
    second = health.dependency("called", critical=True, probe=Callable_(called))
    health.destructive("reap")(lambda: None)
    home = Home(health, "loop")
    home.begin()
    assert not health.check("reap")
    watch.until_state(first, HealthState.HEALTHY)
    watch.until_state(second, HealthState.HEALTHY)
    assert method.loops == [home._loop]
    assert called.loops == [home._loop]
    home.end()


# --- no block without an exit -------------------------------------------------------------------------


def _unknown(health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    pass


def _missed(health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    succeed(redis)
    fail(redis)


def _settling(health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    fail(redis, 3)
    clock.advance(COOLDOWN)
    succeed(redis)
    clock.advance(GatePolicy().settle_min)


WANTING = {"unknown": _unknown, "unresolved_miss": _missed, "settling": _settling}


@pytest.mark.parametrize("blocked_by", WANTING)
@pytest.mark.parametrize("where", ["sync", "in a loop"])
def test_block_orders_one_probe_without_any_prober(
    health: Safehold, clock: ManualClock, watch: Watch, kind: str, where: str, blocked_by: str
) -> None:
    """A block that a probe could end orders one at once, says its time-out, and is ended by it."""
    probe = Probe()
    redis = declared(health, probe, kind, policy=POLICY, timeout=7.0)
    WANTING[blocked_by](health, redis, clock)

    def ask() -> None:
        with health.scope():
            assert health.check("redis.reap").retry_after == 7.0

    async def ask_in_a_loop() -> None:
        ask()
        await asyncio.to_thread(watch.until_state, redis, HealthState.HEALTHY)
        assert len(asyncio.all_tasks()) == 1

    if where == "sync":
        ask()
    else:
        asyncio.run(ask_in_a_loop())
    watch.until_state(redis, HealthState.HEALTHY)
    assert probe.runs == 1
    with health.scope():
        assert health.check("redis.reap")
    assert probe.runs == 1


@pytest.mark.parametrize("where", ["sync", "in a loop"])
def test_blocked_operation_orders_what_a_check_orders(
    health: Safehold, watch: Watch, kind: str, where: str
) -> None:
    """Calling the operation is asking: the error says when, and then it runs."""
    redis = declared(health, Probe(), kind, timeout=7.0)
    ran: list[str] = []
    reap = health.destructive("reap", requires=["redis"])(lambda: ran.append("ran"))

    async def main() -> None:
        with pytest.raises(OperationBlocked) as caught:
            reap()
        assert caught.value.retry_after == 7.0
        await asyncio.to_thread(watch.until_state, redis, HealthState.HEALTHY)
        reap()

    if where == "in a loop":
        asyncio.run(main())
    else:
        with pytest.raises(OperationBlocked):
            reap()
        watch.until_state(redis, HealthState.HEALTHY)
        reap()
    assert ran == ["ran"]


def test_asking_many_times_orders_one_probe_at_a_time(
    health: Safehold, watch: Watch, kind: str, hang: Hang
) -> None:
    """However many are blocked at once, one probe runs."""
    probe = Probe(hang, None)
    redis = declared(health, probe, kind)
    in_threads(lambda _: order(health), 8)
    probe.wait_runs(1)
    hang.release()
    watch.until_state(redis, HealthState.HEALTHY)
    assert probe.runs <= 2
    assert probe.at_once == 1


@pytest.mark.parametrize("where", ["sync", "in a loop"])
def test_order_during_a_probe_does_not_close_the_exit(
    health: Safehold, watch: Watch, kind: str, hang: Hang, where: str
) -> None:
    """Whoever asked while a probe was under way may ask again after it failed, and gets another one."""
    probe = Probe(hang, None)
    hang.then = Down()
    redis = declared(health, probe, kind, policy=POLICY)

    def first() -> None:
        probe.wait_runs(1)
        order(health)
        hang.release()
        watch.until_state(redis, HealthState.DEGRADED)
        for thread in probe_threads():
            thread.join(PATIENCE)

    async def main() -> None:
        order(health)
        await asyncio.to_thread(first)
        while health.check("redis.reap") is not None and redis.state is not HealthState.HEALTHY:
            await asyncio.to_thread(watch.is_state, redis, HealthState.HEALTHY, 0.02)

    if where == "in a loop":
        asyncio.run(main())
    else:
        order(health)
        first()
        watch.insist(health, redis, HealthState.HEALTHY)


def test_order_that_a_stopped_prober_left_is_ordered_anew(health: Safehold, watch: Watch, kind: str) -> None:
    """An order that nobody has carried out does not stand in the way of the next."""
    redis = declared(health, Probe(), kind)
    with health._engine._lock:
        redis._order()  # as a prober would have found it, had it not been stopped
    order(health)
    watch.until_state(redis, HealthState.HEALTHY)


@pytest.mark.parametrize("where", ["sync", "in a loop"])
def test_ordered_probe_that_hangs_is_given_up_without_a_prober(
    health: Safehold, watch: Watch, kind: str, hang: Hang, where: str
) -> None:
    """An order that nobody but a timer looks after fails at its time-out, and may be repeated."""
    probe = Probe(hang, None)
    redis = declared(health, probe, kind, policy=POLICY, timeout=0.05)

    async def main() -> None:
        order(health)
        await asyncio.to_thread(watch.until_state, redis, HealthState.DEGRADED)
        while health.check("redis.reap") is not None and redis.state is not HealthState.HEALTHY:
            await asyncio.to_thread(watch.is_state, redis, HealthState.HEALTHY, 0.02)

    if where == "in a loop":
        asyncio.run(main())
        return
    order(health)
    watch.until_state(redis, HealthState.DEGRADED)
    assert redis.status().cause == "timed out"
    watch.insist(health, redis, HealthState.HEALTHY)


@pytest.mark.parametrize("answer", [None, False])
def test_ordered_probe_is_no_call_of_the_scope_in_which_somebody_asked(
    health: Safehold, watch: Watch, kind: str, hang: Hang, answer: object
) -> None:
    """A scope that asked is neither tainted by the answer nor held up by it: the probe is not its call."""
    probe = Probe(hang, None)
    redis = declared(health, probe, kind, policy=POLICY)
    hang.then = answer
    with health.scope("asking") as scope:
        order(health)
        probe.wait_runs(1)
        verdict = health.check("redis.reap")
        assert [reason.code for reason in verdict.reasons] == ["dependency_unknown"]
        hang.release()
        watch.until(lambda: redis.state is not HealthState.UNKNOWN)
        assert not scope.tainted
        if answer is None:
            assert health.check("redis.reap")


def test_block_without_a_probe_says_what_helps(health: Safehold) -> None:
    """Where nothing can be ordered, the reason names the three ways out."""
    redis = declared(health, None, "sync", policy=POLICY)
    for blocked_by in ("dependency_unknown", "unresolved_miss"):
        with health.scope():
            (reason,) = health.check("redis.reap").reasons
        assert reason.code == blocked_by
        for help_ in ("call it", "give it a probe", "leave redis out of requires"):
            assert help_ in reason.text
        assert reason.retry_after is not None
        fail(redis)


def test_block_with_a_probe_does_not_ask_for_one(health: Safehold, hang: Hang) -> None:
    """The text of a block that has ordered a probe does not tell people to write one."""
    declared(health, Probe(hang), "sync")
    (reason,) = health.check("redis.reap").reasons
    assert "probe" not in reason.text


def test_open_breaker_is_not_probed_before_its_time_because_somebody_asked(
    health: Safehold, kind: str, clock: ManualClock, home: Home
) -> None:
    """A block by an open breaker orders nothing: the cooldown is the answer."""
    probe = Probe()
    redis = declared(health, probe, kind)
    beacon = Beacon(health)
    fail(redis)
    home.begin()
    with health.scope():
        assert health.check("redis.reap").retry_after == COOLDOWN
    beacon.pass_by()
    assert probe.runs == 0


# --- a tenacity wait for a cooldown -------------------------------------------------------------------


class Asked(wait_base):
    """A wait that notes with which attempt, and whether under the lock, it was asked."""

    def __init__(self, health: Safehold, wait: Callable[[Any], Any]) -> None:
        self.health, self.wait = health, wait
        self.attempts: list[int] = []
        self.locked: list[bool] = []

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        self.attempts.append(retry_state.attempt_number)
        self.locked.append(self.health._engine._stepping)
        return self.wait(retry_state)


def with_wait(health: Safehold, wait: Callable[[Any], Any], **policy: Any) -> tuple[Dependency, Asked]:
    asked = Asked(health, wait)
    return health.dependency("redis", policy=BreakerPolicy(failures=1, cooldown=asked, **policy)), asked


def fail_trial(redis: Dependency, clock: ManualClock) -> None:
    clock.advance(redis.retry_after or 0.0)
    fail(redis)


WAITS: dict[str, tuple[Any, list[tuple[float, float]]]] = {
    "fixed": (tenacity.wait_fixed(7), [(7, 7)] * 3),
    "exponential": (tenacity.wait_exponential(multiplier=2, max=5), [(2, 2), (4, 4), (5, 5)]),
    "random": (tenacity.wait_random(3, 4), [(3, 4)] * 3),
    "combined": (tenacity.wait_fixed(10) + tenacity.wait_random(0, 2), [(10, 12)] * 3),
    "chain": (tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(9)), [(1, 1), (9, 9), (9, 9)]),
    "jitter": (tenacity.wait_exponential_jitter(initial=1, jitter=0), [(1, 1), (2, 2), (4, 4)]),
    "none": (tenacity.wait_none(), [(0, 0)] * 3),
}


@pytest.mark.parametrize("name", WAITS)
def test_tenacity_wait_is_the_cooldown(health: Safehold, clock: ManualClock, name: str) -> None:
    """Each generation is open for as long as the wait says, asked with the number of the cooldown."""
    wait, bounds = WAITS[name]
    redis, asked = with_wait(health, wait)
    fail(redis)
    for number, (least, most) in enumerate(bounds, start=1):
        left = redis.retry_after
        assert left is not None
        assert least <= left <= most
        if left:
            clock.advance(left - 0.001)
            assert is_refused(redis)
            clock.advance(0.002)
        assert asked.attempts == list(range(1, number + 1))
        fail(redis)
        assert redis.status().level == number + 1
    assert not any(asked.locked)


def test_tenacity_wait_is_asked_once_for_each_generation(health: Safehold, clock: ManualClock) -> None:
    """Looking, refusing, asking for the state: none of it asks the wait again."""
    redis, asked = with_wait(health, tenacity.wait_fixed(7))
    fail(redis)
    for _ in range(3):
        assert is_refused(redis)
        assert redis.retry_after == 7
        health.status()
        redis.status()
    fail_trial(redis, clock)
    assert asked.attempts == [1, 2]
    assert not any(asked.locked)


def _raises(_: Any) -> float:
    raise Down("no idea")


BAD_WAITS = {
    "raises": _raises,
    "nan": lambda _: math.nan,
    "negative": lambda _: -1.0,
    "infinite": lambda _: math.inf,
    "text": lambda _: "soon",
    "none": lambda _: None,
}


@pytest.mark.parametrize("name", BAD_WAITS)
def test_wait_that_gives_no_seconds_leaves_the_default_cooldown(
    health: Safehold, clock: ManualClock, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """A wait that fails is logged; the call's own exception passes, and the default backoff stands."""
    caplog.set_level(logging.ERROR, "safehold")
    redis, asked = with_wait(health, BAD_WAITS[name])
    fail(redis)
    default = Backoff()
    left = redis.retry_after
    assert left is not None
    assert default.first * (1 - default.jitter) <= left <= default.first
    assert any("cooldown_failed" in record.message for record in caplog.records)
    clock.advance(default.cap)
    succeed(redis)
    assert redis.breaker is BreakerState.CLOSED
    assert asked.attempts == [1]


def test_event_of_a_trip_says_the_cooldown_that_the_wait_gave(health: Safehold, watch: Watch) -> None:
    """What operators are told is what happens: the next look is when the wait says."""
    redis, _ = with_wait(health, tenacity.wait_fixed(7))
    fail(redis)
    (trip,) = [event for event in watch.events if event.breaker is BreakerState.OPEN]
    assert trip.retry_after == 7


@pytest.mark.parametrize("look", ["status", "check", "state"])
def test_lease_that_ran_out_asks_the_wait_whoever_notices(
    health: Safehold, clock: ManualClock, look: str
) -> None:
    """A generation that begins because somebody looked has the wait's cooldown like any other."""
    redis, asked = with_wait(health, tenacity.wait_fixed(40))
    health.destructive("redis.reap", requires=["redis"])(lambda: None)
    fail(redis)
    clock.advance(40)
    trial = redis.permit()
    trial.__enter__()
    clock.advance(30)  # the lease
    match look:
        case "status":
            health.status()
        case "check":
            health.check("redis.reap")
        case _:
            assert redis.state is HealthState.UNHEALTHY
    assert redis.retry_after == 40
    assert asked.attempts == [1, 2]


def test_release_is_due_at_once_whatever_the_wait_says(health: Safehold) -> None:
    """A wait decides a cooldown, and a hold that was released has none."""
    redis, _ = with_wait(health, tenacity.wait_fixed(7))
    redis.hold("maintenance")
    redis.release()
    assert redis.retry_after == 0
    succeed(redis)
    assert redis.breaker is BreakerState.CLOSED


def test_wait_is_asked_also_while_another_thread_tells_the_events(health: Safehold) -> None:
    """Who empties the mailbox is chance; that a cooldown is asked for is not."""
    for index in range(150):
        waits = [
            health.dependency(
                f"{name}-{index}", policy=BreakerPolicy(failures=1, cooldown=tenacity.wait_fixed(40))
            )
            for name in "abcd"
        ]
        in_threads(lambda i: fail(waits[i]), len(waits))  # noqa: B023 - called here
        assert [d.retry_after for d in waits] == [40.0] * len(waits)


# --- processes ----------------------------------------------------------------------------------------


def interpreter(script: str, *, fork: bool = False) -> str:
    """Run a script in a new interpreter; it has to end well, soon, and without a word on stderr."""
    prelude = """
        import asyncio, os, signal, sys, threading, time
        from safehold import BreakerPolicy, GatePolicy, ProbePolicy, Safehold
        health = Safehold("script", gate=GatePolicy(startup_grace=0))
        def open_one(**options):
            redis = health.dependency("redis", critical=True, policy=BreakerPolicy(failures=1), **options)
            health.destructive("reap", requires=["redis"])(lambda: None)
            redis.trip()
            return redis
        def until(predicate):
            end = time.monotonic() + 20
            while not predicate():
                assert time.monotonic() < end, "too late"
                time.sleep(0.001)
    """
    warnings = ["-W", "ignore:.*fork:DeprecationWarning"] if fork else []
    program = textwrap.dedent(prelude) + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *warnings, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


EXITS = {
    "prober thread": "open_one(probe=lambda: None); health.start()",
    "prober thread, asyncio probe": """
        async def probe(): await asyncio.sleep(1000)
        health.start(); open_one(probe=probe)
    """,
    "hanging probe": """
        begun = threading.Event()
        def probe(): begun.set(); threading.Event().wait()
        health.start(); open_one(probe=probe).release()
        health.dependency("other", critical=True, probe=probe); health.check("reap")
        until(lambda: health["redis"].retry_after == 0 or begun.is_set())
    """,
    "hanging asyncio probe on its thread": """
        begun = threading.Event()
        async def probe(): begun.set(); await asyncio.Event().wait()
        health.start()
        health.dependency("other", critical=True, probe=probe)
        health.destructive("look")(lambda: None); health.check("look")
        assert begun.wait(20)
    """,
    "hanging order": """
        begun = threading.Event()
        def probe(): begun.set(); threading.Event().wait()
        health.dependency("other", critical=True, probe=probe, probe_policy=ProbePolicy(timeout=1000))
        health.destructive("look")(lambda: None); health.check("look")
        assert begun.wait(20)
    """,
    "loop ended with a prober and a probe inside": """
        async def probe(): await asyncio.sleep(1000)
        async def main():
            await health.running().__aenter__()
            health.dependency("other", critical=True, probe=probe)
            health.destructive("look")(lambda: None); health.check("look")
            await asyncio.sleep(0); await asyncio.sleep(0)
        open_one(probe=probe)
        asyncio.run(main())
    """,
    "loop ended with an order inside": """
        async def probe(): await asyncio.sleep(1000)
        async def main():
            health.dependency("other", critical=True, probe=probe)
            health.destructive("look")(lambda: None); health.check("look")
        asyncio.run(main())
    """,
    "loop left in good order": """
        async def probe(): await asyncio.sleep(1000)
        async def main():
            async with health.running():
                health.dependency("other", critical=True, probe=probe)
                health.destructive("look")(lambda: None); health.check("look")
                await asyncio.sleep(0)
        asyncio.run(main())
    """,
    "exit by SystemExit": "open_one(probe=lambda: None); health.start(); sys.exit(0)",
}


@pytest.mark.parametrize("how", EXITS)
def test_process_ends_at_once_and_in_silence(how: str) -> None:
    """Neither a prober nor a probe that hangs keeps a process alive, and nothing is said on its way out."""
    interpreter(EXITS[how])


def test_child_of_a_fork_has_no_prober_and_recovers_by_its_callers() -> None:
    """In a forked child nobody probes; an open breaker lets the next caller try at once."""
    out = interpreter(
        """
        redis = open_one(probe=lambda: None)
        health.start()
        redis.trip()
        child = os.fork()
        if child == 0:
            try:
                assert not health.status().probing
                assert threading.active_count() == 1
                assert redis.breaker == "open", redis
                with redis.permit():
                    pass
                assert redis.breaker == "closed", redis
                os._exit(0)
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert health.status().probing
        health.stop()
        """,
        fork=True,
    )
    assert out == ""


@pytest.mark.parametrize("where", ["start", "order"])
def test_child_of_a_fork_probes_when_it_is_told_to(where: str) -> None:
    """Probes that hang in the parent are not the child's: it may start a prober, or order, like any other."""
    out = interpreter(
        f"""
        parent = os.getpid()
        begun = threading.Semaphore(0)
        def probe():
            if os.getpid() == parent:
                begun.release()
                threading.Event().wait()
        redis = health.dependency("redis", critical=True, probe=probe,
            policy=BreakerPolicy(failures=None, failure_rate=None), probe_policy=ProbePolicy(timeout=0.05))
        health.destructive("reap")(lambda: None)
        health.start()
        for _ in range({MOST_HANGING}):
            health.check("reap")
            assert begun.acquire(timeout=20)
            until(lambda: redis._schedule.in_flight is False)
        child = os.fork()
        if child == 0:
            try:
                if {where!r} == "start":
                    health.start()
                health.check("reap")
                until(lambda: redis.state == "healthy")
                os._exit(0)
            except BaseException as error:
                print(repr(error), redis.status(), flush=True)
                os._exit(1)
        status = os.waitpid(child, 0)[1]
        health.stop()
        assert status == 0
        """,
        fork=True,
    )
    assert out == ""
