"""Waiting for a dependency to be in a state, and events as they come: for threads and for tasks.

Whoever waits is woken by events. What comes with time alone, such as the end of a settle time, comes when
somebody looks, so the wait is never longer than until the next such instant.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from .._core.configuration import ConfigurationError, check_number
from .._core.health import HealthState
from .clock import SystemClock

if TYPE_CHECKING:
    from .dependency import Dependency
    from .engine import Engine, Event, Subscription

LONGEST_LOOK: Final = 1.0
"""Seconds after which whoever waits looks again, whatever it was told."""
_MADE_UP: Final = 0.02  # the same under a clock that a test moves, which wakes nobody


def wanted_states(states: str | HealthState | Collection[str]) -> frozenset[HealthState]:
    """Check which states are waited for."""
    several = (states,) if isinstance(states, str) else tuple(states)
    try:
        wanted = frozenset(HealthState(state) for state in several)
    except ValueError:
        wanted = frozenset()
    if not wanted:
        msg = f"state must be one or several of {', '.join(HealthState)}, got {states!r}"
        raise ConfigurationError(msg)
    return wanted


def next_look(dependency: Dependency, deadline: float | None, now: float) -> float:
    """Give the seconds until a look may show something new, of which no event will tell before."""
    breaker = dependency._breaker
    waits = [LONGEST_LOOK, breaker.settle_left(now), breaker.pause_left(now)]
    if deadline is not None:
        waits.append(deadline - now)
    shortest = min(wait for wait in waits if wait > 0) if any(wait > 0 for wait in waits) else 0.0
    return shortest if isinstance(dependency._engine.clock, SystemClock) else min(shortest, _MADE_UP)


def wait_until(dependency: Dependency, states: Collection[HealthState], timeout: float | None) -> bool:
    """Wait on this thread; say whether it came."""
    _check_timeout(timeout)
    clock, woken = dependency._engine.clock, threading.Event()
    deadline = None if timeout is None else clock.monotonic() + timeout
    with dependency._engine.subscribe(lambda _: woken.set(), threaded=False):
        while dependency.state not in states:
            now = clock.monotonic()
            if deadline is not None and now >= deadline:
                return False
            woken.wait(next_look(dependency, deadline, now))
            woken.clear()
    return True


async def await_until(dependency: Dependency, states: Collection[HealthState], longest: float | None) -> bool:
    """Wait in this task; say whether it came."""
    _check_timeout(longest)
    clock, loop, woken = dependency._engine.clock, asyncio.get_running_loop(), asyncio.Event()
    deadline = None if longest is None else clock.monotonic() + longest
    with dependency._engine.subscribe(lambda _: _call(loop, woken.set), threaded=False):
        while dependency.state not in states:
            now = clock.monotonic()
            if deadline is not None and now >= deadline:
                return False
            try:
                async with asyncio.timeout(next_look(dependency, deadline, now)):
                    await woken.wait()
            except TimeoutError:
                continue
            woken.clear()
    return True


class Events:
    """Events as an async iterator: `async for event in health.events(): ...`.

    At most `most` wait to be taken; then the oldest are dropped, and counted in `dropped`. It ends with
    `close()`, with the block of `async with`, or with the loop of whoever iterates.
    """

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine = engine
        self._most = most
        self._waiting: deque[Event] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken: asyncio.Event | None = None
        self._closed = False
        self._subscription: Subscription = engine.subscribe(self._take, threaded=False)
        self.dropped = 0

    def _take(self, event: Event) -> None:
        self._waiting.append(event)
        while len(self._waiting) > self._most:
            self._waiting.popleft()
            self.dropped += 1
        self._wake()

    def _wake(self) -> None:
        loop, woken = self._loop, self._woken
        if loop is not None and woken is not None:
            _call(loop, woken.set)

    def close(self) -> None:
        """Take no more events; what waits is still given."""
        self._closed = True
        self._subscription.close()
        self._wake()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[Event]:
        self._loop, self._woken = asyncio.get_running_loop(), asyncio.Event()
        try:
            while True:
                while self._waiting:
                    yield self._waiting.popleft()
                if self._closed:
                    return
                self._woken.clear()
                if not self._waiting:
                    await self._woken.wait()
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _call(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:  # the loop is closed, and nobody waits in it
        return


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None:
        check_number("timeout", timeout, least=0)
