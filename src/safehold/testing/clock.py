"""A clock that stands still until it is told to move."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from weakref import WeakMethod

from .._core.configuration import check_number


class ManualClock:
    """A `Clock` for tests: `clock.advance(30)` is half a minute, at once, for everything that reads it.

    Safe to read and move from any thread. `set_wall` moves only what people read: no decision may
    depend on it.
    """

    def __init__(self, monotonic: float = 1000.0, wall: float = 1_767_225_600.0) -> None:
        check_number("monotonic", monotonic)
        check_number("wall", wall)
        self._lock = threading.Lock()
        self._monotonic = float(monotonic)  # guarded by _lock
        self._wall = float(wall)  # guarded by _lock
        self._watchers: list[Callable[[], Callable[[], object] | None]] = []

    def monotonic(self) -> float:
        """Seconds that only `advance` moves."""
        return self._monotonic

    def wall(self) -> float:
        """Unix time; moves along with `advance`."""
        return self._wall

    def advance(self, seconds: float) -> None:
        """Let time pass: `seconds`, at least 0."""
        check_number("seconds", seconds, least=0)
        with self._lock:
            self._monotonic += seconds
            self._wall += seconds
        for find in list(self._watchers):
            watcher = find()
            if watcher is not None:
                watcher()

    def set_wall(self, wall: float) -> None:
        """Set the wall clock, as an administrator or a time server would."""
        check_number("wall", wall)
        with self._lock:
            self._wall = float(wall)

    def on_advance(self, watcher: Callable[[], object]) -> None:
        """Call `watcher` after each `advance`; a prober learns from it that time has passed.

        A method does not keep its object alive.
        """
        bound = inspect.ismethod(watcher)
        self._watchers = [find for find in self._watchers if find() is not None]
        self._watchers.append(WeakMethod(watcher) if bound else lambda: watcher)
