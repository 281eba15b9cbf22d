"""A lock for work that reads and writes files: one thread at a time, and never twice by the same one.

A signal handler or a weakref callback may interrupt a thread in the middle of that work and want to begin it
again. It cannot wait for itself, so it is told that this does not go.
"""

from __future__ import annotations

import threading
from types import TracebackType


class Exclusive:
    """`with exclusive: ...`; entering raises `RuntimeError` where this thread is inside already."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._owner: int | None = None

    def __enter__(self) -> None:
        me = threading.get_ident()
        if self._owner == me:
            msg = f"{self._what} is being written by this very thread"
            raise RuntimeError(msg)
        self._lock.acquire()
        self._owner = me

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owner = None
        self._lock.release()
