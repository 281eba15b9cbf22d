"""How many calls of a dependency may be in flight at a time, and how many retries there may be.

A limiter has no lock. Slots and seats (the places of those who wait) lie in deques, whose single steps are
atomic, so a signal handler or a finaliser may come through here at any time. Whoever takes a slot's owner
out of the queue gives it the slot; whoever stops waiting and finds that it was given one hands it on.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context
from functools import update_wrapper
from itertools import count
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar, cast
from weakref import WeakSet

from .._core.configuration import ConfigurationError, check_count, check_number
from .._core.retry_budget import RetryCount
from .._core.window import counted
from ..errors import Saturated
from .clock import Clock, SystemClock
from .kinds import Kinds
from .scope import open_scope, scopes_open

if TYPE_CHECKING:
    from .dependency import Dependency
    from .flow_report import LimiterReport

F = TypeVar("F", bound=Callable[..., Any])

_LEAST_WAIT: Final = 0.05  # seconds; a refusal that says "now" would be asked again at once
_MOST_WAIT: Final = 60.0
_FIRST_WAIT: Final = 1.0  # while nothing was observed yet
_OBSERVED: Final = 32  # releases that the estimate is made of


class Limits(NamedTuple):
    """The settings of a limiter."""

    concurrency: int
    max_waiting: int
    wait_timeout: float | None


class _Waiter:
    """A place in the queue. Either somebody gives it a slot, or it gives up, whichever comes first."""

    def __init__(self) -> None:
        self._open = [self]  # whoever takes it out, decides
        self._lost = False

    def _settle(self) -> bool:
        try:
            self._open.pop()
        except IndexError:
            return False
        return True

    def give(self) -> bool:
        """Give it the slot; false if it waits no more."""
        if not self._settle():
            return False
        self._lost = not self.wake()
        return not self._lost

    def give_up(self) -> bool:
        """Stop waiting; false if it was given the slot already."""
        return self._settle() or self._lost

    def wake(self) -> bool:
        """Let it look again; false if it never will."""
        raise NotImplementedError

    def left(self, clock: Clock, deadline: float | None) -> float | None:
        """Give the seconds that it may still wait, 0 when that is over; `None`: as long as it takes."""
        if not self._open:
            return 0.0
        return None if deadline is None else max(0.0, deadline - clock.monotonic())


class _ThreadWaiter(_Waiter):
    def __init__(self) -> None:
        super().__init__()
        self._woken: SimpleQueue[None] = SimpleQueue()

    def wake(self) -> bool:
        self._woken.put(None)
        return True

    def wait(self, clock: Clock, deadline: float | None) -> None:
        while (left := self.left(clock, deadline)) != 0:
            with suppress(Empty):
                self._woken.get(timeout=None if left is None else min(left, threading.TIMEOUT_MAX))


class _TaskWaiter(_Waiter):
    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()

    def wake(self) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._woken.set, context=Context())
        except RuntimeError:  # its loop is closed
            return False
        return True

    async def wait(self, clock: Clock, deadline: float | None) -> None:
        while (left := self.left(clock, deadline)) != 0:
            timer = None if left is None else self._loop.call_later(left, self._woken.set, context=Context())
            try:
                await self._woken.wait()
            finally:
                if timer is not None:
                    timer.cancel()
            self._woken.clear()


class Limiter:
    """At most `concurrency` calls at a time: `with limiter:`, `async with limiter:`, or as a decorator.

    Made by `health.limiter`. When all slots are taken, up to `max_waiting` callers wait, in the order in
    which they came, threads and tasks alike, for `wait_timeout` seconds at most (`None`: as long as it
    takes); any other is refused with `Saturated`. In an event loop's thread a plain `with` never waits: it
    would stop those who hold the slots. A waiter that is cancelled gives its place back.
    """

    def __init__(
        self, dependency: Dependency, concurrency: int, *, max_waiting: int, wait_timeout: float | None
    ) -> None:
        check_count("concurrency", concurrency)
        check_count("max_waiting", max_waiting, least=0)
        if wait_timeout is not None:
            check_number("wait_timeout", wait_timeout, least=0)
        self.concurrency = concurrency
        self.max_waiting = max_waiting
        self.wait_timeout = wait_timeout
        self._dependency = dependency
        self._clock = dependency._engine.clock
        self.reborn()

    def reborn(self) -> None:
        """Begin, also in a forked child: the parent's calls are not ours."""
        # no longer than this: a call that began before a fork gives back what the child has already
        self._slots = deque([None] * self.concurrency, maxlen=self.concurrency)
        self._seats = deque([None] * self.max_waiting, maxlen=self.max_waiting)
        self._waiting: deque[_Waiter] = deque()
        self._admitted = count()
        self._refused = count()
        self._gaps: deque[float] = deque(maxlen=_OBSERVED)  # seconds between releases while it was full
        self._full_since: float | None = None  # since which nobody has left

    @property
    def dependency(self) -> str:
        """The name of what is called."""
        return self._dependency.name

    @property
    def limits(self) -> Limits:
        """What it was made with."""
        return Limits(self.concurrency, self.max_waiting, self.wait_timeout)

    @property
    def in_flight(self) -> int:
        """How many calls hold a slot."""
        return max(0, self.concurrency - len(self._slots))

    @property
    def waiting(self) -> int:
        """How many callers wait for one."""
        return self.max_waiting - len(self._seats)

    # --- entering ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if not self._take():
            if asyncio._get_running_loop() is not None:
                raise self._saturated()
            waiter = _ThreadWaiter()
            self._queue(waiter)
            try:
                waiter.wait(self._clock, self._deadline())
            except BaseException:
                self._leave_queue(waiter, use=False)
                raise
            if not self._leave_queue(waiter, use=True):
                raise self._saturated()
        return self

    async def __aenter__(self) -> Self:
        if not self._take():
            waiter = _TaskWaiter()
            self._queue(waiter)
            try:
                await waiter.wait(self._clock, self._deadline())
            except BaseException:
                self._leave_queue(waiter, use=False)
                raise
            if not self._leave_queue(waiter, use=True):
                raise self._saturated()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def __call__(self, function: F) -> F:
        """Limit a function or a coroutine function: `@limiter`."""
        kinds = Kinds(function)
        if (
            not callable(function)
            or isinstance(function, type)
            or kinds.is_generator
            or kinds.is_async_generator
        ):
            msg = f"a limiter decorates functions and coroutine functions, got {function!r}"
            raise ConfigurationError(msg)

        def limited(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        async def alimited(*args: Any, **kwargs: Any) -> Any:
            async with self:
                return await function(*args, **kwargs)

        made: Any = update_wrapper(cast("Any", alimited if kinds.is_async else limited), function)
        return cast("F", made)

    def look(self) -> None:
        """Let all who wait look at the clock."""
        for waiter in list(self._waiting):
            waiter.wake()

    def _deadline(self) -> float | None:
        return None if self.wait_timeout is None else self._clock.monotonic() + self.wait_timeout

    # --- slots ------------------------------------------------------------------------------------

    def _take(self) -> bool:
        """Take a free slot, unless somebody waits for one."""
        if self._waiting:
            self._serve()
            if self._waiting:
                return False
        try:
            self._slots.pop()
        except IndexError:
            return False
        self._taken()
        return True

    def _taken(self) -> None:
        next(self._admitted)
        if not self._slots and self._full_since is None:
            self._full_since = self._clock.monotonic()

    def _release(self) -> None:
        since = self._full_since
        if since is not None:
            self._gaps.append(max(0.0, self._clock.monotonic() - since))
            self._full_since = None  # whoever takes the slot next, starts anew
        self._slots.append(None)
        self._serve()

    def _serve(self) -> None:
        """Give free slots to those who wait, in their order."""
        while self._waiting and self._slots:
            try:
                self._slots.pop()
            except IndexError:
                return
            try:
                given = self._waiting.popleft().give()
            except IndexError:  # somebody else was faster
                given = False
            if not given:
                self._slots.append(None)

    def _queue(self, waiter: _Waiter) -> None:
        try:
            self._seats.pop()
        except IndexError:
            raise self._saturated() from None
        self._waiting.append(waiter)
        self._serve()  # a slot may have come free between the look and this

    def _leave_queue(self, waiter: _Waiter, *, use: bool) -> bool:
        """Stop waiting and say whether it has a slot now; one that is not used goes to the next."""
        given = not waiter.give_up()
        if not given:
            with suppress(ValueError):  # it was taken out to be served, and seen to be gone
                self._waiting.remove(waiter)
        self._seats.append(None)
        if given and use:
            self._taken()
        elif given:
            self._slots.append(None)
            self._serve()
        return given

    # --- telling ----------------------------------------------------------------------------------

    def _estimate(self) -> float:
        """Give the seconds until there may be room for one more.

        Under saturation, slots come free once in a while that was observed; whoever waits already goes
        first. An observation that is running, of calls that hang, counts as far as it has come.
        """
        since, gaps = self._full_since, list(self._gaps)
        running = 0.0 if since is None else max(0.0, self._clock.monotonic() - since)
        gap = max(sum(gaps) / len(gaps) if gaps else _FIRST_WAIT, running)
        return min(max(gap * (self.waiting + 1), _LEAST_WAIT), _MOST_WAIT)

    def _saturated(self) -> Saturated:
        next(self._refused)
        dependency, began = self._dependency, self._clock.monotonic()
        text = f"{self.concurrency} calls in flight, {self.waiting} waiting"
        # it may well be there, but this caller does not know what it would have answered
        if scopes_open and (scope := open_scope()) is not None:
            scope.taint(dependency.name, text)
        return Saturated._told(
            dependency.name,
            dependency.state,
            self._estimate(),
            text,
            lambda: self._clock.monotonic() - began,
        )

    def report(self) -> LimiterReport:
        """Say how it is, from memory."""
        from .flow_report import LimiterReport  # noqa: PLC0415 - pydantic's models load when they are used

        return LimiterReport(
            dependency=self.dependency,
            concurrency=self.concurrency,
            in_flight=self.in_flight,
            max_waiting=self.max_waiting,
            waiting=self.waiting,
            admitted=counted(self._admitted),
            saturated=counted(self._refused),
            retry_after=0.0 if self._slots else self._estimate(),
        )

    def __repr__(self) -> str:
        return (
            f"<Limiter {self.dependency!r}: {self.in_flight} of {self.concurrency}, {self.waiting} waiting>"
        )


class Limiters:
    """The limiters of one Safehold, by dependency."""

    def __init__(self, clock: Clock) -> None:
        self._all: dict[str, Limiter] = {}
        on_advance = getattr(clock, "on_advance", None)
        if callable(on_advance):
            on_advance(self._time_passed)

    def __iter__(self) -> Iterator[Limiter]:
        return iter(list(self._all.values()))

    def get(
        self, dependency: Dependency, concurrency: int, *, max_waiting: int, wait_timeout: float | None
    ) -> Limiter:
        """Give the limiter of a dependency; made now if there is none. Other limits raise."""
        wanted = Limiter(dependency, concurrency, max_waiting=max_waiting, wait_timeout=wait_timeout)
        known = self._all.setdefault(dependency.name, wanted)
        if known.limits != wanted.limits:
            msg = f"{dependency.name!r} has a limiter already, with {known.limits}, not {wanted.limits}"
            raise ConfigurationError(msg)
        return known

    def reborn(self) -> None:
        """Begin again in a forked child."""
        for limiter in self:
            limiter.reborn()

    def _time_passed(self) -> None:
        for limiter in self:
            limiter.look()


class RetryBudget:
    """How many retries there may be, for all callers who share it: a share of the calls plus a floor.

    `share`: retries for each call, 0 to 1 (default 0.2, as Finagle's `RetryBudget` and Envoy's
    `retry_budget`). `floor`: retries that are always allowed, in each `window` of seconds (default 3 in 10:
    Envoy's `min_retry_concurrency` is 3, Finagle's window 10 s; gRPC's retry throttling, gRFC A6, has the
    same aim with tokens). One user call counts as one, however often it is tried. `clock` is for tests.

    `safehold.tenacity.retry_within(budget)` makes tenacity respect it. Safe from any thread or task.
    """

    def __init__(
        self, share: float = 0.2, floor: int = 3, window: float = 10.0, *, clock: Clock | None = None
    ) -> None:
        self.share, self.floor, self.window = share, floor, window
        self._count = RetryCount(share, floor, window)
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        _budgets.add(self)

    def call(self) -> None:
        """Count a call, once, before or after it is made for the first time."""
        now = self._clock.monotonic()
        with self._lock:
            self._count.call(now)

    def retry(self) -> bool:
        """Say whether a retry may be made now; if so, it is counted."""
        now = self._clock.monotonic()
        with self._lock:
            return self._count.retry(now)

    @property
    def left(self) -> int:
        """How many retries could be made now."""
        now = self._clock.monotonic()
        with self._lock:
            return int(self._count.left(now))

    def _reborn(self) -> None:
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return (
            f"<RetryBudget share={self.share:g} floor={self.floor} window={self.window:g}: {self.left} left>"
        )


_budgets: Final[WeakSet[RetryBudget]] = WeakSet()


def _forked() -> None:
    for budget in list(_budgets):
        budget._reborn()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
