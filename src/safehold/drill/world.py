"""The truth: which sessions are alive, whatever the services can see."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

ALL = tuple(f"s{number:02}" for number in range(1, 57))
LIVE, ENDING_EARLY, ENDING_LATE = ALL[:50], ALL[50:53], ALL[53:]
"""Those that live through the whole drill, those that really end while all is well, and those that
really end in the middle of an outage."""
ENDED = len(ENDING_EARLY) + len(ENDING_LATE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A service has removed a session, at an instant of the monotonic clock. `lost`: it was alive."""

    session: str
    at: float
    lost: bool


class World:
    """The sessions of one run. May be used from any thread.

    A session that has ended sends no more heartbeats, but stays in the listing, as a process that hangs
    would: it takes a reaper to remove it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alive = dict.fromkeys(ALL)  # guarded by _lock
        self._listed = dict.fromkeys(ALL)  # guarded by _lock
        self._removals: list[Removal] = []  # guarded by _lock

    @property
    def alive(self) -> tuple[str, ...]:
        """The sessions that live and send heartbeats."""
        with self._lock:
            return tuple(self._alive)

    @property
    def listed(self) -> tuple[str, ...]:
        """The sessions that were not removed: what an honest listing says."""
        with self._lock:
            return tuple(self._listed)

    @property
    def removals(self) -> tuple[Removal, ...]:
        """What the service has removed so far."""
        with self._lock:
            return tuple(self._removals)

    @property
    def lost(self) -> tuple[Removal, ...]:
        """The removals that should not have happened."""
        return tuple(removal for removal in self.removals if removal.lost)

    @property
    def buried(self) -> tuple[Removal, ...]:
        """The removals of sessions that had really ended."""
        return tuple(removal for removal in self.removals if not removal.lost)

    def end(self, sessions: Iterable[str]) -> None:
        """Let sessions end by themselves."""
        with self._lock:
            for session in sessions:
                self._alive.pop(session, None)

    def reap(self, session_id: str) -> None:
        """Do what a service has decided: from here on the session is gone, alive or not."""
        with self._lock:
            if session_id in self._listed:
                lost = session_id in self._alive
                self._removals.append(Removal(session=session_id, at=time.monotonic(), lost=lost))
            self._alive.pop(session_id, None)
            self._listed.pop(session_id, None)
