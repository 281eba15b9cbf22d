"""How long an HTTP exchange may wait.

Clients limit each wait, so a server that sends one byte now and then holds a call for as long as it likes.
Here the waits of one exchange are added up, by what is waited for:

- a connection: each attempt is one wait, as the client has it;
- the head of the answer: all its waits together are one, so that it has to come whole in one read time-out;
- what is transferred (an upload, a body): as long as it makes progress. Its waits may add up to `GRACE`
  time-outs, and `SLOWEST` bytes earn one more second. That is how Apache's mod_reqtimeout limits requests,
  its `MinRate` included.

Where the client sets no time-out, a wait is `LONGEST_WAIT`. A deadline, where one is given, ends whatever is
going on: it belongs to the user's call, redirects, pauses between two reads and all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from math import inf
from time import monotonic
from typing import Final, Self

LONGEST_WAIT: Final = 60.0
"""Seconds of a wait for which neither the client nor a deadline sets a limit."""
GRACE: Final = 10
"""Time-outs that the waits of a transfer may add up to, whatever its rate."""
SLOWEST: Final = 500.0
"""Bytes of a transfer that earn one second more."""
PIECE: Final = 65536
"""Bytes that are written in one wait: of a larger buffer nobody would know whether it makes progress."""

CONNECT: Final = "connect"
WRITE: Final = "write"
READ: Final = "read"
_HEAD: Final = "head"


class Span:
    """The time that one call of the user's may take, and how much of it was spent in waiting."""

    def __init__(self, limit: float | None = None) -> None:
        self.limit = inf if limit is None else limit
        self.ends = inf if limit is None else monotonic() + limit
        self.waited = 0.0

    def left(self) -> float | None:
        """Give the seconds to its deadline; `None` without one."""
        return None if self.ends == inf else self.ends - monotonic()

    def used_up(self) -> bool:
        """Whether its time is over, and was spent by the caller rather than in waiting."""
        return self.ends <= monotonic() and self.waited < self.limit / 2


class _Meter:
    __slots__ = ("moved", "waited")

    def __init__(self) -> None:
        self.waited = 0.0
        self.moved = 0


class Waits:
    """The waits of one exchange, and what has gone over its line. `long`: no limits but the client's own."""

    def __init__(self, span: Span, *, long: bool = False) -> None:
        self.span = span
        self.long = long
        self.unix = self.sent = self.headed = False
        self.handled = sys.exception()  # by whoever waits: what happens now comes after it, not of it
        self._meters = {WRITE: _Meter(), READ: _Meter()}
        self.renew()

    def renew(self) -> None:
        """Begin an attempt. `ended` is whether its connection did, or a wait, before its head was whole."""
        self.fresh = self.received = self.ended = False
        self._meters[_HEAD] = _Meter()

    def here(self) -> _Here:
        """Make this what the line asks, for the length of a block."""
        return _Here(self)

    def allow(self, what: str, own: float | None) -> float | None:
        """Give the seconds that this wait may take, not above 0 when there are none left.

        `own` is the client's own time-out for it.
        """
        allowed = own if self.long else self._limit(what, own)
        if what is WRITE and (allowed is None or allowed > 0):
            self.sent = True
        return allowed

    def _limit(self, what: str, own: float | None) -> float:
        left = self.span.ends - monotonic()
        patience = own if own is not None else (LONGEST_WAIT if left == inf else left)
        if what is CONNECT:
            return min(patience, left)
        if what is READ and not self.headed:
            return min(patience - self._meters[_HEAD].waited, left)
        meter = self._meters[what]
        return min(patience, patience * GRACE + meter.moved / SLOWEST - meter.waited, left)

    def took(self, what: str, began: float, moved: int = 0) -> None:
        """Take in a wait that is over."""
        waited = monotonic() - began
        self.span.waited += waited
        if what is READ:
            self.received = self.received or moved > 0
            self.ended = self.ended or not (moved or self.headed)
            what = READ if self.headed else _HEAD
        if what is not CONNECT:
            meter = self._meters[what]
            meter.waited += waited
            meter.moved += moved

    def passed(self, began: float) -> None:
        """Take in a step of which nobody knows what was waited for: all of it was."""
        self.span.waited += monotonic() - began

    def connecting(self, *, unix: bool) -> None:
        """Take in that a connection is about to be made."""
        self.fresh, self.unix = True, unix

    def attempt_failed(self, error: Exception) -> None:
        """Take in that an attempt has failed. The client may make another one by itself."""

    def given_up(self) -> Exception | None:
        """Say, before an attempt, after which failed one there shall be none; `None`: go on."""
        return None


_waits: ContextVar[Waits | None] = ContextVar("safehold_http_waits", default=None)
under_way: Final = _waits.get
"""On whose behalf this code waits; `None` where no guard is concerned."""


class _Here:
    __slots__ = ("_token", "_waits")

    def __init__(self, waits: Waits) -> None:
        self._waits = waits

    def __enter__(self) -> None:
        self._waits.handled = sys.exception()
        self._token = _waits.set(self._waits)

    def __exit__(self, *_: object) -> None:
        _waits.reset(self._token)


class Step:
    """One wait, as a context manager that lets it take `allowed` seconds and takes in how long it took.

    Where no guard is concerned, `allowed` is the client's `own` time-out. Where there is no time left, it
    raises what `late` makes. `moved` is how many bytes went over the line.
    """

    __slots__ = ("_began", "_late", "_own", "_waits", "_what", "allowed", "moved")

    def __init__(
        self, what: str, own: float | None, late: Callable[[str], Exception], *, moved: int = 0
    ) -> None:
        self._what = what
        self._own = own
        self._late = late
        self._waits = under_way()
        self.moved = moved

    def __enter__(self) -> Self:
        own, waits = self._own, self._waits
        self.allowed = allowed = own if waits is None else waits.allow(self._what, own)
        if allowed is not None and allowed <= 0 and (own is None or own > 0):
            msg = "timed out"
            raise self._late(msg)
        self._began = monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._waits is not None:
            self._waits.took(self._what, self._began, self.moved)
