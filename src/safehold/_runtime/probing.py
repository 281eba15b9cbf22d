"""A probe that somebody wants now, and the way to wait for it: `await` in a task, `result()` on a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from .._core.configuration import ConfigurationError
from .._core.health import HealthState
from .prober import run_errand

if TYPE_CHECKING:
    from .dependency import Dependency


class Probing:
    """One probe under way: `await health.probe_now("redis")`, or `health.probe_now("redis").result()`.

    Both give the dependency's health when the probe has ended, whatever it found.
    """

    def __init__(self, dependency: Dependency) -> None:
        if dependency._probe is None:
            msg = f"{dependency.name} has no probe: declare it with probe=, or guard a client of it"
            raise ConfigurationError(msg)
        if dependency.held:
            msg = f"{dependency.name} is held, and only release() ends that"
            raise ConfigurationError(msg)
        self._dependency = dependency
        self._ended = threading.Event()
        dependency._landings.append(self._ended.set)
        self._launch()

    def _launch(self) -> None:
        dependency, engine = self._dependency, self._dependency._engine
        now = dependency._now()

        def order() -> bool:
            dependency._breaker.hasten(now)
            return dependency._order()

        launched = engine.run(order)
        if not launched:
            return  # one is under way, and answers for all
        if engine.probing:
            engine.wake()
        else:
            run_errand(dependency)

    def result(self, timeout: float | None = None) -> HealthState:
        """Wait on this thread, `timeout` seconds at most, and give the health.

        Raises `TimeoutError` when the probe has not ended by then; it ends by itself at its own time-out.
        """
        if not self._ended.wait(timeout):
            msg = f"the probe of {self._dependency.name} has not ended within {timeout:g} s"
            raise TimeoutError(msg)
        return self._dependency.state

    def __await__(self) -> Generator[Any, None, HealthState]:
        return self._wait().__await__()

    async def _wait(self) -> HealthState:
        loop, woken = asyncio.get_running_loop(), asyncio.Event()
        self._dependency._landings.append(lambda: loop.call_soon_threadsafe(woken.set))
        if not self._ended.is_set():
            await woken.wait()
        return self._dependency.state

    def __repr__(self) -> str:
        return f"<Probing {self._dependency.name}, {'ended' if self._ended.is_set() else 'under way'}>"
