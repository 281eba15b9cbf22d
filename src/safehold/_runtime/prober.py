"""Runs the probes: on a daemon thread, or inside an asyncio loop.

Both share one plan. Each round launches what is due, gives up what has hung for longer than its
time-out, and waits until something is due or somebody calls `wake`. A probe goes through a permit like
any call, so single flight, leases and late answers need no rules of their own. It runs on a thread or in
a task of its own: one that hangs delays nobody, is given up, and its late answer changes nothing.

A probe answers by returning; it fails by raising, by returning `False`, or by not returning in time.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final

from ..errors import DependencyUnhealthy
from . import log
from .permit import Permit

if TYPE_CHECKING:
    from .dependency import Dependency
    from .engine import Engine

MOST_HANGING: Final = 3
"""Probe threads of one dependency that may hang at a time; while so many do, its probes fail unasked."""


class ProbeFailedError(Exception):
    """A probe returned `False`, hung, or could not be started."""


class ProbeTimeoutError(ProbeFailedError, TimeoutError):
    """A probe did not return within its time-out."""


class ProbeRun:
    """One probe under way. `finish` may be called by whoever is first; later calls change nothing."""

    def __init__(self, dependency: Dependency, permit: Permit, deadline: float) -> None:
        self.dependency = dependency
        self.deadline = deadline
        self.task: asyncio.Task[None] | None = None
        self.done: Callable[[], object] | None = None
        self._permit = permit
        self._unfinished = [self]  # whoever takes it out, ends the run

    @property
    def finished(self) -> bool:
        """Whether its end was reported."""
        return not self._unfinished

    def finish(self, error: BaseException | None) -> None:
        """Report the end to the breaker and plan the next probe."""
        try:
            self._unfinished.pop()
        except IndexError:
            return
        dependency = self.dependency
        if error is None:
            self._permit.succeed()
        else:
            self._permit.fail(error)
        dependency._flight_over()
        if self.done is not None:
            self.done()
        dependency._engine.wake()

    def sharing(self) -> AbstractContextManager[object]:
        """Let a probe that uses a guarded client of its own dependency through."""
        return self._permit.sharing()

    def expire(self) -> None:
        """Give it up."""
        msg = f"the probe of {self.dependency.name} did not return in time"
        self.finish(ProbeTimeoutError(msg))
        if self.task is not None:
            self.task.cancel()


def claim(dependency: Dependency) -> ProbeRun | None:
    """Take the flight of a probe that is due; `None` when none is, or one is under way."""
    now = dependency._now()
    timeout = dependency._engine.run(lambda: dependency._claim(now), interrupted=lambda: None)
    if timeout is None:
        return None
    permit = Permit(dependency, probe=True, stepwise=True, classify=_every_error)
    try:
        permit.__enter__()
    except DependencyUnhealthy:  # somebody else's trial is out
        dependency._flight_over()
        return None
    return ProbeRun(dependency, permit, now + timeout)


def _every_error(error: Exception) -> bool:  # noqa: ARG001 - a classifier
    return True


def _judge_answer(answer: object) -> None:
    if answer is False:
        msg = "the probe returned False"
        raise ProbeFailedError(msg)


def run_on_thread(run: ProbeRun) -> None:
    """Run a probe on a daemon thread of its own; a coroutine function gets a loop of its own there."""
    dependency = run.dependency
    probe = dependency._probe

    def work() -> None:
        error: BaseException | None = None
        try:
            with run.sharing():
                answer = probe() if probe is not None else None
                if inspect.isawaitable(answer):
                    answer = asyncio.run(_awaited(answer))
            _judge_answer(answer)
        except BaseException as raised:  # noqa: BLE001 - whatever it is, it was the probe's
            error = raised
            if not isinstance(raised, Exception):
                log.fault("probe_interrupted", raised, dependency=dependency.name)
        hanging.discard(run)
        run.finish(error)

    hanging = dependency._hanging
    hanging.add(run)
    try:
        if len(hanging) > MOST_HANGING:
            msg = f"{MOST_HANGING} earlier probes still hang"
            raise ProbeFailedError(msg)
        threading.Thread(target=work, name=f"safehold-probe-{dependency.name}", daemon=True).start()
    except (ProbeFailedError, RuntimeError) as error:  # RuntimeError: no more threads to be had
        hanging.discard(run)
        run.finish(error)


async def _awaited(answer: Any) -> Any:
    return await answer


class Prober:
    """The plan and its rounds. Subclasses bring the waiting."""

    def __init__(self, engine: Engine, dependencies: Callable[[], Iterable[Dependency]]) -> None:
        self._engine = engine
        self._dependencies = dependencies
        self._runs: set[ProbeRun] = set()

    def round(self) -> float | None:
        """Launch and give up what is due; give the seconds to the next round, `None` if nothing waits."""
        now = self._engine.clock.monotonic()
        for run in list(self._runs):
            if run.finished:
                self._runs.discard(run)
            elif now >= run.deadline:
                self._runs.discard(run)
                run.expire()
        waits = [run.deadline for run in self._runs]
        for dependency in list(self._dependencies()):
            claimed = claim(dependency)
            if claimed is not None:
                self._runs.add(claimed)
                waits.append(claimed.deadline)
                self._launch(claimed)
            schedule = dependency._schedule
            due = None if schedule is None else schedule.due()
            if due is not None:
                waits.append(due)
        return None if not waits else max(0.0, min(waits) - self._engine.clock.monotonic())

    def _launch(self, run: ProbeRun) -> None:
        run_on_thread(run)

    def _give_up_all(self) -> None:
        for run in list(self._runs):
            run.expire()
        self._runs.clear()


class ThreadProber(Prober):
    """A prober on a daemon thread, which keeps no process alive."""

    def __init__(self, engine: Engine, dependencies: Callable[[], Iterable[Dependency]]) -> None:
        super().__init__(engine, dependencies)
        self._woken: SimpleQueue[None] = SimpleQueue()  # signal handlers and finalisers may put to it
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="safehold-prober", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    def wake(self) -> None:
        self._woken.put(None)

    def stop(self, timeout: float = 5.0) -> None:
        """End it, waiting `timeout` seconds at most; probes under way are given up."""
        self._stopping = True
        self.wake()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping:
            try:
                wait = self.round()
            except Exception as error:  # noqa: BLE001 - one bad round must not end the probing
                log.fault("prober_failed", error)
                wait = 1.0
            with suppress(Empty):
                self._woken.get(timeout=wait if wait is None else min(wait, threading.TIMEOUT_MAX))
                while True:  # one round answers all who woke it meanwhile
                    self._woken.get_nowait()
        self._give_up_all()


class LoopProber(Prober):
    """A prober inside a running asyncio loop. Probes that are plain functions run on threads."""

    def __init__(self, engine: Engine, dependencies: Callable[[], Iterable[Dependency]]) -> None:
        super().__init__(engine, dependencies)
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[None] | None = None

    def start(self) -> None:
        # in a context of its own: the scope in which somebody starts it is not where it works
        self._main = self._loop.create_task(self._run(), name="safehold-prober", context=Context())

    @property
    def alive(self) -> bool:
        return self._main is not None and not self._main.done() and not self._loop.is_closed()

    def wake(self) -> None:
        if self._loop.is_closed():
            return
        try:
            self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError:  # closed in between
            return

    async def stop(self) -> None:
        """End it; probes under way are given up, and no task is left."""
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        self._give_up_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            try:
                wait = self.round()
            except Exception as error:  # noqa: BLE001 - one bad round must not end the probing
                log.fault("prober_failed", error)
                wait = 1.0
            try:
                async with asyncio.timeout(wait):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def _launch(self, run: ProbeRun) -> None:
        if not inspect.iscoroutinefunction(run.dependency._probe):
            run_on_thread(run)
            return
        run_in_loop(run, self._tasks)


def run_in_loop(run: ProbeRun, tasks: set[asyncio.Task[None]]) -> None:
    """Run a coroutine function's probe as a task of the running loop, kept in `tasks` while it runs."""
    probe = run.dependency._probe

    async def work() -> None:
        try:
            with run.sharing():
                _judge_answer(await probe() if probe is not None else None)
        except asyncio.CancelledError as error:
            run.finish(error)
            raise
        except Exception as error:  # noqa: BLE001 - the probe's failure is its answer
            run.finish(error)
        else:
            run.finish(None)

    name = f"safehold-probe-{run.dependency.name}"
    run.task = asyncio.get_running_loop().create_task(work(), name=name, context=Context())
    tasks.add(run.task)
    run.task.add_done_callback(tasks.discard)


_errands: set[asyncio.Task[None]] = set()


def run_errand(dependency: Dependency) -> None:
    """Run a probe that is due where no prober is there to do it."""
    run = claim(dependency)
    if run is None:
        return
    wait = max(0.0, run.deadline - dependency._now())
    loop = asyncio._get_running_loop() if inspect.iscoroutinefunction(dependency._probe) else None
    if loop is not None:
        run_in_loop(run, _errands)
        run.done = loop.call_later(wait, run.expire).cancel
        return
    timer = threading.Timer(wait, run.expire)
    timer.daemon = True
    run.done = timer.cancel
    timer.start()
    run_on_thread(run)
