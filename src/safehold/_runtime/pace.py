"""Loops that slow down or pause with the health of what they depend on.

No thread and no task of ours watches them. A loop waits for its next tick; news of its dependencies wake it
early: all Paces of one Safehold share one subscription, tasks wait on a future, threads on a condition.

A paused loop must not wait for others to find out that the outage is over, because there may be no others.
When a trial is due and no prober is there to make it, the loop orders a probe, or, where there is none, is
let through for one round, whose guarded call is the trial: one loop at a time, and each no sooner than its
own interval.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextvars import Context
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, cast, overload
from weakref import WeakSet, ref

from .._core.breaker import Transition
from .._core.configuration import ConfigurationError, check_count, check_name
from .._core.health import HealthState, severity
from .._core.pace import PaceSettings, Rhythm
from . import log
from .kinds import Kinds
from .prober import run_errand
from .scope import Scope

if TYPE_CHECKING:
    from .dependency import Dependency
    from .engine import Engine, Event, Subscription
    from .flow_report import PaceReport

_AT_A_TIME: Final = 100  # tasks that one callback wakes; more would hold an event loop up
_LOOK: Final = 0.25  # seconds between looks at a foreign kind of `stop`, which nothing can wait for with us
_numbers = count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One round of a paced loop.

    `number` counts from 1. `health` is the one that decides the pace, `interval` the seconds to the next
    tick (`None`: the loop is paused, and this round is let through to find out whether the outage is over).
    `late_by` is in seconds. `missed` is how many ticks have been left out so far because rounds took too
    long.
    """

    number: int
    health: HealthState
    interval: float | None
    late_by: float
    missed: int


class Run(Protocol):
    """A decorated loop: call it in a thread that it may have to itself."""

    @property
    def pace(self) -> Pace: ...
    def __call__(self, stop: threading.Event | None = None) -> None: ...


class AsyncRun(Protocol):
    """A decorated loop of a coroutine function: await it, or make it a task."""

    @property
    def pace(self) -> Pace: ...
    def __call__(self, stop: asyncio.Event | None = None) -> Coroutine[Any, Any, None]: ...


class Pace:
    """A loop's ticks: `async for tick in pace`, `for tick in pace`, or a decorator for the body of the loop.

    Made by `health.pace`. One loop at a time may use it; one that ends early may be taken up again. Each
    round is a scope of its own, open from the tick until the next one is asked for or the loop is left.
    """

    def __init__(
        self,
        paces: Paces,
        dependencies: tuple[Dependency, ...],
        settings: PaceSettings,
        *,
        priority: int = 0,
        name: str | None = None,
    ) -> None:
        if not dependencies:
            msg = "pace needs the name of at least one dependency"
            raise ConfigurationError(msg)
        check_count("priority", priority, least=-1_000_000)
        if name is not None:
            check_name("name of the loop", name)
        self._number = next(_numbers)
        self._named = name is not None
        self.name = name or f"loop {self._number} on {', '.join(d.name for d in dependencies)}"[:200]
        self.dependencies = tuple(d.name for d in dependencies)
        self.priority = priority
        self._settings = settings
        self._handles = dependencies
        self._paces = paces
        self._rhythm = Rhythm(settings)
        self._why = "not begun"
        self._look_at = math.inf  # when a paused loop has to see for itself
        self._failures = 0
        self._closed = False
        self._rounds: ref[_Rounds] | None = None

    @property
    def closed(self) -> bool:
        """Whether it ticks no more."""
        return self._closed

    @property
    def running(self) -> bool:
        """Whether a loop uses it."""
        return self._current() is not None

    def close(self) -> None:
        """End it for good, as soon as its present round is over. From any thread; may be called twice."""
        self._closed = True
        rounds = self._current()
        if rounds is not None:
            self._paces.wake([rounds])

    def __iter__(self) -> Iterator[Tick]:
        """Give the ticks to a thread, which waits for them."""
        return ThreadRounds(self)

    def __aiter__(self) -> AsyncIterator[Tick]:
        """Give the ticks to a task."""
        return TaskRounds(self)

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine is an object, too; the first that fits counts
        self, body: Callable[..., Coroutine[Any, Any, object]]
    ) -> AsyncRun: ...
    @overload
    def __call__(self, body: Callable[..., object]) -> Run: ...
    def __call__(self, body: Callable[..., Any]) -> Run | AsyncRun:
        """Make `body`, which takes nothing or the `Tick`, a loop: `run(stop=None)`, awaited if it is async.

        What a round raises is logged, and the loop goes on: an outage must not end it. `stop` is an event
        that ends the loop between two rounds.
        """
        kinds = Kinds(body)
        if not callable(body) or isinstance(body, type) or kinds.is_generator or kinds.is_async_generator:
            msg = f"pace decorates functions and coroutine functions, got {body!r}"
            raise ConfigurationError(msg)
        if not self._named:
            self.name = str(getattr(body, "__qualname__", self.name))[:200]
        arguments = _arguments(body)

        def run(stop: threading.Event | None = None) -> None:
            if isinstance(stop, asyncio.Event):
                msg = "stop must be a threading.Event: this loop runs on a thread"
                raise ConfigurationError(msg)
            rounds = ThreadRounds(self, stop)
            try:
                for tick in rounds:
                    try:
                        body(*arguments(tick))
                    except Exception as error:  # noqa: BLE001 - the loop outlives a round that fails
                        self._failed(error)
            finally:
                rounds.end()

        async def arun(stop: asyncio.Event | None = None) -> None:
            if stop is not None and not isinstance(stop, asyncio.Event):
                msg = "stop must be an asyncio.Event: this loop runs in a task"
                raise ConfigurationError(msg)
            rounds = TaskRounds(self, stop)
            watching = rounds.watch()
            try:
                async for tick in rounds:
                    try:
                        await body(*arguments(tick))
                    except Exception as error:  # noqa: BLE001 - the loop outlives a round that fails
                        self._failed(error)
            finally:
                rounds.end()
                if watching is not None:
                    watching.cancel()
                    await asyncio.gather(watching, return_exceptions=True)

        made: Any = arun if kinds.is_async else run
        made.pace = self
        name, text = getattr(body, "__name__", "run"), body.__doc__
        made.__name__ = made.__qualname__ = name
        made.__doc__, made.__module__ = text, getattr(body, "__module__", made.__module__)
        return cast("Run | AsyncRun", made)

    def report(self) -> PaceReport:
        """Say how it is, from memory."""
        from .flow_report import PaceReport  # noqa: PLC0415 - pydantic's models load when they are used

        rhythm = self._rhythm
        due = min(rhythm.due, self._look_at)
        return PaceReport(
            name=self.name,
            dependencies=self.dependencies,
            priority=self.priority,
            running=self.running,
            health=rhythm.health or HealthState.UNKNOWN,
            interval=_or_none(rhythm.interval),
            why=self._why,
            next_tick=_or_none(max(0.0, due - self._paces.engine.clock.monotonic()))
            if self.running
            else None,
            ticks=rhythm.number,
            missed=rhythm.missed,
            failures=self._failures,
        )

    def __repr__(self) -> str:
        interval = self._rhythm.interval
        told = "paused" if interval == math.inf else f"every {interval:g} s"
        state = "closed" if self._closed else told if self._rhythm.health else "idle"
        return f"<Pace {self.name!r} {state}: {self._why}>"

    # --- the next tick ----------------------------------------------------------------------------

    def _look(self) -> Tick | None:
        """Give the tick that is due, if one is; else note until when there is nothing to see."""
        engine, settings, rhythm = self._paces.engine, self._settings, self._rhythm
        states = [(handle, handle.state) for handle in self._handles]
        decisive, health = max(states, key=lambda s: (settings.interval(s[1]), -severity(s[1])))
        now = engine.clock.monotonic()
        wakes = rhythm.interval == math.inf and rhythm.health is not None
        after = self._paces.before(self) if wakes else 0.0
        rhythm.follow(health, now, draw=engine.rng.random(), after=after)
        self._why = f"{decisive.name} is {health}"
        self._look_at = math.inf
        if rhythm.due <= now or (rhythm.interval == math.inf and self._must_find_out(states, now)):
            late = rhythm.tick(now, draw=engine.rng.random())
            interval = _or_none(rhythm.interval)
            return Tick(
                number=rhythm.number, health=health, interval=interval, late_by=late, missed=rhythm.missed
            )
        return None

    def _must_find_out(self, states: Iterable[tuple[Dependency, HealthState]], now: float) -> bool:
        """While paused: whether this round has to be the trial. Orders probes where there are some."""
        for handle, state in states:
            if self._settings.interval(state) != math.inf:
                continue
            probed = handle._schedule is not None
            if probed and self._paces.engine.probing:
                continue  # its news will wake this loop
            wait = handle.retry_after
            if wait is None:  # only a person can end it
                continue
            turn = self._paces.turn(handle.name, now + wait, self._settings.every)
            if turn > now:
                self._look_at = min(self._look_at, turn)
                continue
            self._paces.take_turn(handle.name, now)
            if not probed:
                return True
            self._paces.engine.run(handle._order)
            run_errand(handle)
            self._look_at = min(self._look_at, now + self._settings.every)
        return False

    def _seconds(self) -> float | None:
        """Give the seconds until there is something to see; `None` when only news can bring it."""
        until = min(self._rhythm.due, self._look_at)
        if until == math.inf:
            return None
        return max(0.0, min(until - self._paces.engine.clock.monotonic(), threading.TIMEOUT_MAX))

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        log.fault("paced_loop_failed", error, loop=self.name)

    def _current(self) -> _Rounds | None:
        rounds = None if self._rounds is None else self._rounds()
        return None if rounds is None or rounds.ended else rounds

    def _begin(self, rounds: _Rounds) -> None:
        if self.running:
            msg = f"{self.name!r} is used by a loop already: make a pace for each"
            raise ConfigurationError(msg)
        self._rounds = ref(rounds)
        self._paces.add(self)


class _Rounds:
    """One loop over a pace: its waiting, and the scope of its present round."""

    def __init__(self, pace: Pace, stop: Any) -> None:
        self.ended = False
        self.pace = pace
        self.stop = stop
        self._scope: Scope | None = None
        pace._begin(self)

    @property
    def must_end(self) -> bool:
        return self.pace._closed or self.ended or (self.stop is not None and self.stop.is_set())

    def open_scope(self) -> None:
        self._scope = Scope(f"round of {self.pace.name}"[:200])
        self._scope.__enter__()

    def close_scope(self) -> None:
        scope, self._scope = self._scope, None
        if scope is not None:
            scope.__exit__(None, None, None)

    def end(self) -> None:
        self.close_scope()
        self.ended = True
        self.pace._paces.forget_slots()

    def wake(self) -> None:
        raise NotImplementedError

    def __del__(self) -> None:  # a loop that was left by `break`, `return` or an exception
        if hasattr(self, "_scope"):
            self.end()


class ThreadRounds(_Rounds):
    """Ticks for a thread."""

    def __init__(self, pace: Pace, stop: threading.Event | None = None) -> None:
        if asyncio._get_running_loop() is not None:
            msg = f"{pace.name!r} would block the event loop here: use `async for`, or a coroutine function"
            raise ConfigurationError(msg)
        super().__init__(pace, threading.Event() if stop is None else stop)
        # what `wait` of an Event waits on, so that the Event and our news can end one and the same wait
        self._condition: threading.Condition | None = (
            getattr(self.stop, "_cond", None) if isinstance(self.stop, threading.Event) else None
        )
        self._news = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Tick:
        self.close_scope()
        with self.pace._paces.waiting(self):
            while True:
                if self.must_end:
                    self.end()
                    raise StopIteration
                self._news = False
                tick = self.pace._look()
                if tick is not None:
                    break
                self._wait(self.pace._seconds())
        self.open_scope()
        return tick

    def _wait(self, seconds: float | None) -> None:
        condition = self._condition
        if condition is None:
            self.stop.wait(_LOOK if seconds is None else min(seconds, _LOOK))
            return
        with condition:
            if not (self._news or self.must_end):
                condition.wait(seconds)

    def wake(self) -> None:
        self._news = True
        condition = self._condition
        if condition is None:
            return
        if not condition.acquire(timeout=0.05):
            # a signal handler of the very thread that is about to wait: it can be woken once it does
            threading.Thread(target=self._notify, name="safehold-wake", daemon=True).start()
            return
        try:
            condition.notify_all()
        finally:
            condition.release()

    def _notify(self) -> None:
        condition = self._condition
        if condition is not None:
            with condition:
                condition.notify_all()


class TaskRounds(_Rounds):
    """Ticks for a task."""

    def __init__(self, pace: Pace, stop: asyncio.Event | None = None) -> None:
        super().__init__(pace, stop)
        self.loop = asyncio.get_running_loop()
        self._news = False
        self._future: asyncio.Future[None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Tick:
        self.close_scope()
        with self.pace._paces.waiting(self):
            while True:
                if self.must_end:
                    self.end()
                    raise StopAsyncIteration
                self._news = False
                tick = self.pace._look()
                if tick is not None:
                    break
                await self._wait(self.pace._seconds())
        self.open_scope()
        return tick

    def watch(self) -> asyncio.Task[Any] | None:
        """Wake when `stop` is set."""
        if self.stop is None:
            return None
        task = self.loop.create_task(self.stop.wait(), name="safehold-pace-stop", context=Context())
        task.add_done_callback(lambda _: self.wake_here())
        return task

    async def _wait(self, seconds: float | None) -> None:
        if self._news:
            return
        self._future = self.loop.create_future()
        timer = None
        if seconds is not None:
            timer = self.loop.call_later(seconds, self.wake_here, context=Context())
        try:
            await self._future
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()

    def wake_here(self) -> None:
        """Wake it, in its own event loop."""
        self._news = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class _Waiting:
    """A loop among those that wait for news, for the length of a block."""

    __slots__ = ("_paces", "_rounds")

    def __init__(self, paces: Paces, rounds: _Rounds) -> None:
        self._paces = paces
        self._rounds = rounds

    def __enter__(self) -> None:
        for name in self._rounds.pace.dependencies:
            self._paces.watchers.setdefault(name, {})[self._rounds] = None

    def __exit__(self, *_: object) -> None:
        for name in self._rounds.pace.dependencies:
            self._paces.watchers.get(name, {}).pop(self._rounds, None)


class Paces:
    """The paced loops of one Safehold, and what wakes them. Each change is an atomic step of a dictionary."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._all: WeakSet[Pace] = WeakSet()
        self._subscription: Subscription | None = None
        on_advance = getattr(engine.clock, "on_advance", None)
        if callable(on_advance):
            on_advance(self._time_passed)
        self.reborn()

    def reborn(self) -> None:
        """Begin, also in a forked child: whoever waited there is not here."""
        self.watchers: dict[str, dict[_Rounds, None]] = {}
        self._turns: dict[str, float] = {}
        self._slots: dict[str, dict[int, float]] | None = None
        self._adding = threading.RLock()

    def __iter__(self) -> Iterator[Pace]:
        """Give them in the order in which they were made."""
        with self._adding:
            loops = list(self._all)
        return iter(sorted(loops, key=lambda pace: pace._number))

    def add(self, pace: Pace) -> None:
        """Take a loop in."""
        with self._adding:
            self._all.add(pace)
            if self._subscription is None:
                self._subscription = self.engine.subscribe(self._heard, threaded=False)
        self.forget_slots()

    def waiting(self, rounds: _Rounds) -> _Waiting:
        """Let news wake a loop for the length of a block."""
        return _Waiting(self, rounds)

    def forget_slots(self) -> None:
        """Count anew who wakes before whom."""
        self._slots = None

    def before(self, pace: Pace) -> float:
        """Give the seconds that loops of a higher priority on the same dependencies take to wake."""
        slots = self._slots
        if slots is None:
            slots = {}
            for other in self:
                if other.running:
                    for name in other.dependencies:
                        of_name = slots.setdefault(name, {})
                        spread = other._settings.spread
                        of_name[other.priority] = max(spread, of_name.get(other.priority, 0.0))
            self._slots = slots
        return max(
            sum(spread for priority, spread in slots.get(name, {}).items() if priority > pace.priority)
            for name in pace.dependencies
        )

    def turn(self, dependency: str, due: float, every: float) -> float:
        """Give the instant from which a paused loop may find out how a dependency is."""
        last = self._turns.get(dependency)
        return due if last is None else max(due, last + every)

    def take_turn(self, dependency: str, now: float) -> None:
        """Note that a loop finds out; the others leave it to that one for a while."""
        self._turns[dependency] = now

    def wake(self, rounds: Iterable[_Rounds]) -> None:
        """Wake loops, those of a higher priority first. From any thread."""
        tasks: dict[asyncio.AbstractEventLoop, deque[TaskRounds]] = {}
        for one in sorted(rounds, key=lambda r: -r.pace.priority):
            if isinstance(one, TaskRounds):
                tasks.setdefault(one.loop, deque()).append(one)
            else:
                one.wake()
        for loop, some in tasks.items():
            try:
                loop.call_soon_threadsafe(_wake_some, loop, some, context=Context())
            except RuntimeError:  # the loop is closed, and they with it
                continue

    def _heard(self, event: Event) -> None:
        if isinstance(event, Transition):
            self.wake(list(self.watchers.get(event.dependency, ())))

    def _time_passed(self) -> None:
        self.wake({one for some in list(self.watchers.values()) for one in list(some)})


def _wake_some(loop: asyncio.AbstractEventLoop, some: deque[TaskRounds]) -> None:
    for _ in range(min(len(some), _AT_A_TIME)):
        some.popleft().wake_here()
    if some:
        loop.call_soon(_wake_some, loop, some, context=Context())


def _arguments(body: Callable[..., Any]) -> Callable[[Tick], tuple[Any, ...]]:
    """Say what the body is called with: the tick if it takes something."""
    try:
        inspect.signature(body).bind()
    except TypeError:
        pass
    except ValueError:  # some builtins do not say what they take
        return lambda _: ()
    else:
        return lambda _: ()
    try:
        inspect.signature(body).bind(None)
    except TypeError:
        msg = f"the body of a paced loop takes nothing, or the tick: {body!r} takes more"
        raise ConfigurationError(msg) from None
    return lambda tick: (tick,)


def _or_none(seconds: float) -> float | None:
    return None if seconds == math.inf else seconds


def settings_of(
    *, every: float, degraded: float | None, recovering: float | None, unhealthy: float | None, jitter: float
) -> PaceSettings:
    """Fill in what was left open: four times as slow while degraded or recovering, paused while unhealthy."""
    slow: Any = 4 * every if degraded is None and isinstance(every, int | float) else degraded
    return PaceSettings(
        every=every,
        degraded=slow,
        recovering=slow if recovering is None else recovering,
        unhealthy=math.inf if unhealthy is None else unhealthy,
        jitter=jitter,
    )
