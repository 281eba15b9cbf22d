"""What happened, in order: bounded, readable at any time, and something to wait for instead of sleeping."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Final, Literal, get_args

from .faults import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from .faults import Way

JOURNAL_LIMIT: Final = 10_000

EntryKind = Literal[
    "control",  # a control call took effect; note: which
    "accept",  # a client connected
    "dial",  # the connection upstream stands
    "unreachable",  # it could not be made; note: the errno's name
    "data",  # bytes arrived at the proxy
    "passed",  # bytes were handed on
    "dropped",  # bytes were swallowed
    "eof",  # the sender of this direction has nothing more to say
    "abort",  # the sender of this direction reset its connection
    "broken",  # the receiver of this direction takes nothing more
    "half_close",  # the proxy shut this direction down
    "closed",  # the connection is over, the client saw it end; note: why
    "reset",  # the connection is over, the client saw a reset; note: why
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that happened. ``connection`` counts from 1 in the order of arrival, ``size`` is in bytes."""

    seq: int
    kind: EntryKind
    connection: int | None = None
    direction: Way | None = None
    size: int = 0
    note: str = ""


class Journal:
    """Written by the proxy's thread, read by all. Keeps the last ``JOURNAL_LIMIT`` entries."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque(maxlen=JOURNAL_LIMIT)  # guarded by _lock
        self._watchers: list[Callable[[], object]] = []  # guarded by _lock
        self._seq = 0  # guarded by _lock
        self._control = 0  # guarded by _lock; the last control call's seq

    def add(
        self,
        kind: EntryKind,
        connection: int | None = None,
        direction: Way | None = None,
        size: int = 0,
        note: str = "",
    ) -> None:
        """Write one entry and wake whoever waits."""
        with self._lock:
            self._seq += 1
            if kind == "control":
                self._control = self._seq
            entry = Entry(
                seq=self._seq, kind=kind, connection=connection, direction=direction, size=size, note=note
            )
            self._entries.append(entry)
            # Under the lock, so that none is called after watching() has ended and its event loop is closed.
            for wake in self._watchers:
                wake()

    def entries(self) -> tuple[Entry, ...]:
        """Return what is kept, oldest first."""
        with self._lock:
            return tuple(self._entries)

    def since(self, seq: int) -> list[Entry]:
        """Return the entries after ``seq``, oldest first."""
        with self._lock:
            return list(takewhile(lambda entry: entry.seq > seq, reversed(self._entries)))[::-1]

    def search(self, what: EntryKind | Callable[[Entry], bool], after: Entry | None) -> Search:
        """Return a search that begins after ``after``, or after the last control call."""
        with self._lock:
            return Search(self, what, self._control if after is None else after.seq)

    @contextmanager
    def watching(self, wake: Callable[[], object]) -> Generator[None]:
        """Call ``wake`` after each new entry, on the proxy's thread."""
        with self._lock:
            self._watchers.append(wake)
        try:
            yield
        finally:
            with self._lock:
                self._watchers.remove(wake)


class Search:
    """Looks through the journal as it grows. The predicate runs in the searcher's thread, under no lock."""

    def __init__(self, journal: Journal, what: EntryKind | Callable[[Entry], bool], begin: int) -> None:
        if not callable(what) and what not in get_args(EntryKind):
            msg = f"what: need a predicate or one of {', '.join(get_args(EntryKind))}, got {what!r}"
            raise ValueError(msg)
        self._journal = journal
        self._what = what
        self._begin = self._position = begin

    def look(self) -> Entry | None:
        """Return the first match among the entries that are new since the last look."""
        for entry in self._journal.since(self._position):
            self._position = entry.seq
            if self._what(entry) if callable(self._what) else entry.kind == self._what:
                return entry
        return None

    def wait(self, timeout: float) -> Entry:
        """Return the first match, or raise ``TimeoutError`` after ``timeout`` seconds."""
        duration("timeout", timeout)
        deadline = time.monotonic() + timeout
        changed = threading.Event()
        with self._journal.watching(changed.set):
            while (found := self.look()) is None:
                if not changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(self._nothing_in(timeout))
                changed.clear()
        return found

    async def await_(self, timeout: float) -> Entry:  # noqa: ASYNC109 - the twin of wait
        """Do the same while the event loop goes on."""
        duration("timeout", timeout)
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()
        with self._journal.watching(lambda: loop.call_soon_threadsafe(changed.set)):
            try:
                async with asyncio.timeout(timeout):
                    while (found := self.look()) is None:
                        await changed.wait()
                        changed.clear()
            except TimeoutError as error:
                raise TimeoutError(self._nothing_in(timeout)) from error
        return found

    def _nothing_in(self, timeout: float) -> str:
        last = "".join(f"\n  {entry}" for entry in self._journal.since(self._begin)[-10:])
        return f"no {self._what!r} within {timeout:g} s; the journal since then ends with{last or ' nothing'}"
