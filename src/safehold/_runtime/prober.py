"""Runs the probes: on a daemon thread, or inside an asyncio loop.

Both share one plan. Each round launches what is due, gives up what has hung for longer than its
time-out, and waits until something is due or somebody calls `wake`. A probe goes through a permit like
any call, so single flight, leases and late answers need no rules of their own. It runs on a thread or in
a task of its own: one that hangs delays nobody, is given up, and its late answer changes nothing.

A probe answers by returning; it fails by raising, by returning `False`, or by not returning in time. One
that has also tried a facet, such as writing, returns a `ProbeAnswer`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AbstractContextManager, suppress
from contextvars import Context
from functools import partial
from heapq import heappop, heappush
from math import inf
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .._core.breaker import Outcome
from ..errors import DependencyUnhealthy
from . import log
from .classify import Judgement, judge
from .kinds import Kinds
from .measures import Duration, Measured
from .permit import Permit

if TYPE_CHECKING:
    from .dependency import Dependency
    from .engine import Engine

MOST_HANGING: Final = 3
"""Probes of one dependency that may hang at a time; while so many do, its probes fail unasked."""
FEW: Final = 64
"""Dependencies that are looked at in every round; more than these are planned one by one."""
LOOK_AT_ALL: Final = 1.0
"""Seconds after which all of many are looked at again, whatever happened."""
STOP_TIMEOUT: Final = 5.0
"""Seconds that stopping waits for what is under way."""


class ProbeAnswer(NamedTuple):
    """A probe's answer with the facets that it has shown to work."""

    facets: tuple[str, ...] = ()


class JudgedError(Exception):
    """What knows by itself what it means: where a probe raises it, no classifier of calls is asked."""

    judgement: Judgement


class ProbeFailedError(Exception):
    """A probe returned `False`, hung, or could not be started."""


class ProbeTimeoutError(ProbeFailedError, TimeoutError):
    """A probe did not return within its time-out."""


class ProbeRun:
    """One probe under way. `finish` may be called by whoever is first; later calls change nothing."""

    def __init__(self, dependency: Dependency, permit: Permit, began: float, deadline: float) -> None:
        self.dependency = dependency
        self.began = began
        self.deadline = deadline
        self.task: asyncio.Task[None] | None = None
        self.done: Callable[[], object] | None = None
        self._permit = permit
        self._unfinished = [self]  # whoever takes it out, ends the run

    @property
    def finished(self) -> bool:
        """Whether its end was reported."""
        return not self._unfinished

    def finish(self, error: BaseException | None, answer: object = None) -> None:
        """Report the end to the breaker and plan the next probe."""
        try:
            self._unfinished.pop()
        except IndexError:
            return
        dependency = self.dependency
        if error is None:
            self._permit.succeed(answer.facets if isinstance(answer, ProbeAnswer) else ())
        else:
            self._permit.fail(error)
        decided = (
            error is None or judge(error, partial(_every_error, dependency)).outcome is not Outcome.IGNORED
        )
        dependency._flight_over(decided=decided)
        if self.done is not None:
            self.done()
        self._measure(error, decided=decided)
        dependency._engine.wake()

    def _measure(self, error: BaseException | None, *, decided: bool) -> None:
        """Say how long it took, if anybody wants to know."""
        measures, name = self.dependency._engine.measures, self.dependency.name
        if measures.durations:
            ended = Outcome.IGNORED if not decided else Outcome.FAILURE if error else Outcome.SUCCESS
            seconds = max(0.0, self.dependency._now() - self.began)
            kind = "" if error is None else type(error).__name__
            measures.lasted(Duration(Measured.PROBE, name, str(ended), seconds, kind))

    def sharing(self) -> AbstractContextManager[object]:
        """Let a probe that uses a guarded client of its own dependency through."""
        return self._permit.sharing()

    def expire(self) -> None:
        """Give it up."""
        msg = f"the probe of {self.dependency.name} did not return in time"
        self._end(ProbeTimeoutError(msg))

    def cancel(self) -> None:
        """Give it up because its prober ends: it decides nothing."""
        self._end(asyncio.CancelledError())

    def _end(self, error: BaseException) -> None:
        self.finish(error)
        if self.task is not None:
            with suppress(RuntimeError):  # its loop is closed, and it with it
                self.task.cancel()


def claim(dependency: Dependency) -> ProbeRun | None:
    """Take the flight of a probe that is due; `None` when none is, or one is under way."""
    now = dependency._now()
    timeout = dependency._engine.run(lambda: dependency._claim(now), interrupted=lambda: None)
    if timeout is None:
        return None
    permit = Permit(dependency, probe=True, stepwise=True, classify=partial(_every_error, dependency))
    try:
        permit.__enter__()
    except DependencyUnhealthy:  # somebody else's trial is out
        dependency._flight_over(decided=False)
        return None
    return ProbeRun(dependency, permit, now, now + timeout)


def waits_for_root(dependency: Dependency) -> bool:
    """Whether something that it needs itself is down and probed: that comes back first, or nothing does."""
    roots = [dependency._root(name) for name in dependency.depends_on]
    return any(root._schedule is not None and root.is_down for root in roots)


def _every_error(dependency: Dependency, error: Exception) -> Judgement:
    """Take everything that a probe raises for a failure, but for what says nothing about the other side.

    That is trouble of a facet only, and of this very process, such as no descriptor to probe with.
    """
    said = error.judgement if isinstance(error, JudgedError) else judge(error, dependency._classify)
    undecided = said.outcome is Outcome.IGNORED and said.missed
    return said if said.facets or undecided else said._replace(outcome=Outcome.FAILURE, missed=True)


def _judge_answer(answer: object) -> None:
    if answer is False:
        msg = "the probe returned False"
        raise ProbeFailedError(msg)


def _crowded(run: ProbeRun) -> bool:
    """Fail a probe unasked while too many earlier ones of its dependency hang; else note that it runs."""
    hanging = run.dependency._hanging
    if len(hanging) >= MOST_HANGING:
        msg = f"{MOST_HANGING} earlier probes still hang"
        run.finish(ProbeFailedError(msg))
        return True
    hanging.add(run)
    return False


def run_on_thread(run: ProbeRun, loop: asyncio.AbstractEventLoop | None) -> None:
    """Run a probe on a daemon thread of its own.

    What it gives to be awaited is awaited in `loop`, where its client may belong, or without one in a
    loop that lives as long as the probe.
    """
    dependency, probe = run.dependency, run.dependency._probe

    def work() -> None:
        error: BaseException | None = None
        answer: object = None
        try:
            with run.sharing():
                answer = probe() if probe is not None else None
                if inspect.isawaitable(answer):
                    answer = _await(_awaited(answer), loop)
            _judge_answer(answer)
        except BaseException as raised:  # noqa: BLE001 - whatever it is, it was the probe's
            error = raised
            if not isinstance(raised, Exception):
                log.fault("probe_interrupted", raised, dependency=dependency.name)
        dependency._hanging.discard(run)
        run.finish(error, answer)

    if _crowded(run):
        return
    try:
        threading.Thread(target=work, name=f"safehold-probe-{dependency.name}", daemon=True).start()
    except RuntimeError as error:  # no more threads to be had
        dependency._hanging.discard(run)
        run.finish(error)


def _await(answer: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop | None) -> Any:
    if loop is None or not loop.is_running():
        return asyncio.run(answer)
    return asyncio.run_coroutine_threadsafe(answer, loop).result()


async def _awaited(answer: Any) -> Any:
    return await answer


class Prober:
    """The plan and its rounds. Subclasses bring the waiting.

    A few dependencies are looked at in every round. Of many, only those that something has happened to, and
    those whose planned instant has come; and once a second all of them.
    """

    def __init__(self, engine: Engine, dependencies: Callable[[], Iterable[Dependency]]) -> None:
        self._engine = engine
        self._dependencies = dependencies
        self._runs: set[ProbeRun] = set()
        self._plan: list[tuple[float, int, Dependency]] = []  # a heap; what is overtaken is looked at in vain
        self._look_at_all = 0.0
        self._few = True

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
        for dependency in self._worth_a_look(now):
            claimed = None if waits_for_root(dependency) else claim(dependency)
            if claimed is not None:
                self._runs.add(claimed)
                waits.append(claimed.deadline)
                self._launch(claimed)
            schedule = dependency._schedule
            due = None if schedule is None or waits_for_root(dependency) else schedule.due()
            if due is not None:
                heappush(self._plan, (due, id(dependency), dependency))
        if self._plan:
            waits.append(self._plan[0][0])
        if now >= self._engine.diary.due:
            self._engine.catch_up(now)
        if self._engine.diary.due < inf:
            waits.append(max(now + 0.1, self._engine.diary.due))  # another thread may be telling
        return None if not waits else max(0.0, min(waits) - self._engine.clock.monotonic())

    def _worth_a_look(self, now: float) -> Iterable[Dependency]:
        """Give those that may have a probe due, each once."""
        everybody, moved = self._dependencies, self._engine.moved
        if now >= self._look_at_all or self._few:
            looked = list(everybody())
            self._few = len(looked) <= FEW
            self._look_at_all = now + LOOK_AT_ALL
            self._plan.clear()
            moved.clear()
            return looked
        found: dict[int, Dependency] = {}
        with suppress(IndexError):
            while True:
                one = moved.popleft()
                found[id(one)] = one
        while self._plan and self._plan[0][0] <= now:
            one = heappop(self._plan)[2]
            found[id(one)] = one
        return found.values()

    def _launch(self, run: ProbeRun) -> None:
        run_on_thread(run, None)

    def give_up_all(self) -> None:
        """Give up the probes under way; they decide nothing."""
        for run in list(self._runs):
            run.cancel()
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

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
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
        self.give_up_all()


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
        return self._main is not None and not self._main.done() and self._loop.is_running()

    def wake(self) -> None:
        if self._loop.is_closed():
            return
        try:
            self._loop.call_soon_threadsafe(self._woken.set)
        except RuntimeError:  # closed in between
            return

    async def stop(self) -> None:
        """End it; probes under way are given up, and no task is left."""
        self.give_up_all()
        if self._main is not None:
            self._main.cancel()
            await asyncio.gather(self._main, return_exceptions=True)
        self.give_up_all()
        if self._tasks:  # one that does not let itself be cancelled is left behind
            await asyncio.wait(self._tasks, timeout=STOP_TIMEOUT)

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
        if Kinds(run.dependency._probe).is_async:
            run_in_loop(run, self._tasks)
        else:
            run_on_thread(run, self._loop)


def run_in_loop(run: ProbeRun, tasks: set[asyncio.Task[None]]) -> None:
    """Run a coroutine function's probe as a task of the running loop, kept in `tasks` while it runs."""
    probe = run.dependency._probe

    async def work() -> None:
        try:
            with run.sharing():
                answer = await probe() if probe is not None else None
                _judge_answer(answer)
        except BaseException as error:  # whatever it is, it was the probe's
            run.finish(error)
            if isinstance(error, asyncio.CancelledError | GeneratorExit):
                raise
            if not isinstance(error, Exception):
                log.fault("probe_interrupted", error, dependency=run.dependency.name)
        else:
            run.finish(None, answer)
        finally:
            run.dependency._hanging.discard(run)

    if _crowded(run):
        return
    name = f"safehold-probe-{run.dependency.name}"
    run.task = asyncio.get_running_loop().create_task(work(), name=name, context=Context())
    tasks.add(run.task)
    run.task.add_done_callback(tasks.discard)


_errands: set[asyncio.Task[None]] = set()


def run_errand(dependency: Dependency) -> None:
    """Run a probe that is due where no prober is there to do it."""
    run = Context().run(claim, dependency)  # it is no call of the scope in which somebody asked
    if run is None:
        return
    wait = max(0.0, run.deadline - dependency._now())
    loop = asyncio._get_running_loop()
    if loop is not None and Kinds(dependency._probe).is_async:
        run.done = loop.call_later(wait, run.expire, context=Context()).cancel
        run_in_loop(run, _errands)
        return
    timer = threading.Timer(wait, run.expire)
    timer.daemon = True
    run.done = timer.cancel
    timer.start()
    run_on_thread(run, loop)
