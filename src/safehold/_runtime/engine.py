"""What all dependencies of one Safehold share: the lock, the clock, the dice, and the order of events."""

from __future__ import annotations

import atexit
import math
import random
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from .._core.gate import Verdict
from . import events, log
from .measures import Measures
from .timeline import Chronicle

if TYPE_CHECKING:
    from .clock import Clock


R = TypeVar("R")

Event = events.Event
Listener = Callable[[Event], object]


class Engine:
    """Lock, clock, dice and mailbox.

    The mailbox is filled under the lock and emptied after it is free, by one thread at a time, so every
    event is told exactly once and in the order in which it happened. A listener that calls back into the
    library is safe: what that causes is told after the present event.
    """

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self.clock = clock
        self.rng = rng
        self.wake: Callable[[], None] = nobody  # tells the prober to look again
        self.prober: Any = None  # the one that runs, or ran
        self.diary = log.Diary()
        self.chronicle = Chronicle()
        self.measures = Measures()
        self.moved: deque[Any] = deque(maxlen=100_000)  # dependencies that a prober shall look at
        self.steps = 0  # how many were taken; what nobody has moved is as it was
        self.mail: deque[Event] = deque()  # all breakers append to this one, in their steps
        self._subscriptions: tuple[Subscription, ...] = ()  # replaced whole
        self.reborn()
        _alive.add(self)

    def reborn(self) -> None:
        """Begin, also in a forked child: no lock is held, no thread alive, the parent's news is not ours."""
        self.mail.clear()
        self.diary.reborn()
        self.chronicle.reborn()
        self.wake, self.prober = nobody, None
        self._lock = threading.RLock()
        self._stepping: int | None = None  # the thread that is in a step  # guarded by _lock
        self._waiting: deque[Callable[[], object]] = deque()  # guarded by _lock
        self._telling = threading.Lock()
        for subscription in self._subscriptions:
            subscription.reborn()

    def run(self, step: Callable[[], R], interrupted: Callable[[], R] | None = None) -> R:
        """Take a step of the core under the lock, and give what it gives.

        A signal handler or a finaliser may interrupt a thread in the middle of a step and call in here
        again. What it wants then gives `interrupted()`, or else waits until the present step is done.
        """
        with self._lock:
            if self._stepping is not None:  # by this very thread: it holds the lock
                if interrupted is not None:
                    return interrupted()
                self._waiting.append(step)
                return cast("R", None)
            self._stepping = threading.get_ident()
            self.steps += 1
            try:
                answer = step()
                while self._waiting:
                    self._waiting.popleft()()
            finally:
                self._stepping = None
            if self._waiting:  # it came between the last look and the flag
                self.run(nobody)
            return answer

    @property
    def probing(self) -> bool:
        """Whether a prober runs."""
        return self.prober is not None and self.prober.alive

    def offset(self) -> float:
        """Give wall time less monotonic time, now. Read it before the lock: the clock may be anybody's."""
        return self.clock.wall() - self.clock.monotonic()

    def deliver(self) -> None:
        """Tell the listeners. Call it after the lock is released, whenever `mail` is not empty."""
        self.wake()
        within = self._stepping == threading.get_ident()  # a signal handler, in the middle of a step
        while self.mail and not within and self._telling.acquire(blocking=False):
            try:
                self._tell_all()
            finally:
                self._telling.release()

    def _tell_all(self) -> None:
        while (event := self.run(self._next, interrupted=lambda: None)) is not None:
            event = replace(event, wall=self.clock.wall())
            self.diary.take(event)
            self.chronicle.take(event)
            for subscription in self._subscriptions:
                subscription.take(event)

    def _next(self) -> Event | None:
        return self.mail.popleft() if self.mail else None

    def tell(self, verdict: Verdict, *, enforced: bool) -> Callable[[], float]:
        """Tell the listeners of a block; give a clock that starts now."""
        at = self.clock.monotonic()
        self.measures.blocked(verdict, enforced=enforced)
        self.mail.append(events.Decision(verdict=verdict, enforced=enforced, at=at))
        self.deliver()
        return lambda: self.clock.monotonic() - at

    def post(self, event: Event) -> None:
        """Tell the listeners of an event that no step has brought."""
        self.mail.append(event)
        self.deliver()

    def catch_up(self, now: float, *, everything: bool = False) -> None:
        """Let the log tell what it has put off, as far as it is due. Asked only if `diary.due` has come."""
        if self._stepping != threading.get_ident() and self._telling.acquire(blocking=False):
            try:
                self.diary.catch_up(now, everything=everything)
            finally:
                self._telling.release()
            if self.mail:  # it came while we were telling
                self.deliver()

    def subscribe(self, listener: Listener, *, threaded: bool) -> Subscription:
        """Add a listener."""
        subscription = Subscription(self, listener, threaded=threaded)
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Remove a listener; it may still be told of an event that is being delivered."""
        with self._lock:
            self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)

    def flush(self, timeout: float | None) -> bool:
        """Wait until the threaded listeners were told all there is, `timeout` seconds at most in all."""
        self.catch_up(self.clock.monotonic(), everything=True)
        deadline = None if timeout is None else time.monotonic() + timeout
        told = [
            subscription.flush(None if deadline is None else max(0.0, deadline - time.monotonic()))
            for subscription in self._subscriptions
        ]
        return all(told)


def nobody() -> None:
    """No prober runs."""


_alive: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _tell_the_rest() -> None:
    """Let no log end before the last state: what was put off is told at the end of the process."""
    for engine in list(_alive):
        if engine.diary.due < math.inf:
            engine.catch_up(engine.clock.monotonic(), everything=True)


class Subscription:
    """A listener's place in the line. `close` ends it; as a context manager it ends with the block.

    A direct listener runs in the thread that caused the event, before its guarded call returns, so it
    must be quick. With `threaded=True` the events are told on a daemon thread of their own, in order;
    `flush` waits for it.
    """

    def __init__(self, engine: Engine, listener: Listener, *, threaded: bool) -> None:
        self._engine = engine
        self._listener = listener
        self._threaded = threaded
        self._closed = False
        self.reborn()

    def reborn(self) -> None:
        from queue import SimpleQueue  # noqa: PLC0415 - most processes have no listener

        self._queue: SimpleQueue[Event | threading.Event | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()

    def take(self, event: Event) -> None:
        if self._threaded:
            self._queue.put(event)
            self._start()
        else:
            self._tell(event)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until all events so far were told, `timeout` seconds at most; say whether they were."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        if self._closed:
            thread.join(timeout)
            return not thread.is_alive()
        done = threading.Event()
        self._queue.put(done)
        return done.wait(timeout)

    def close(self) -> None:
        """Tell no more; a thread of its own ends after what is queued."""
        self._engine.unsubscribe(self)
        self._closed = True
        self._queue.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="safehold-listener", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
            else:
                self._tell(item)

    def _tell(self, event: Event) -> None:
        try:
            self._listener(event)
        except Exception as error:  # noqa: BLE001 - a listener harms nobody
            log.fault("listener_failed", error, listener=_name(self._listener))


def _name(listener: Any) -> str:
    return str(getattr(listener, "__qualname__", type(listener).__qualname__))
