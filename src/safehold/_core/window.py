"""What a breaker remembers of its outcomes: a tally that numbers them, and a window over the numbers.

The tally is an `itertools.count`: `next` of it is one atomic C call, so the success path counts without
a lock. Because every outcome takes a number, a count-based window needs to remember only the failures:
with `n` outcomes so far, those numbered from `n - size` on are inside it, and the rest is a subtraction.
"Failures in a row" is the same idea: the streak goes on while the numbers are neighbours.

A time-based window cannot work that way; it keeps ten buckets and asks for the clock at every outcome.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, Protocol

from .configuration import check_count, check_number

BUCKETS = 10


def counted(tally: count[int]) -> int:
    """Say how often `next` was asked of a tally, without asking it once more.

    Its text is the one way to look at a `count` that every Python version keeps.
    """
    return int(repr(tally)[6:-1])


class Totals(NamedTuple):
    """What a window holds now."""

    calls: int
    failures: int
    slow: int


class Log(Protocol):
    """The outcomes inside a window."""

    def add(self, number: int, now: float, *, failed: bool, slow: bool) -> None:
        """Take in the outcome with this number."""
        ...

    def totals(self, calls: int, now: float) -> Totals:
        """Say what is inside, after `calls` outcomes in all, at `now`."""
        ...


class CountLog:
    """The last `size` outcomes. A plain success needs no `add`: its number alone is enough."""

    __slots__ = ("_failures", "_size", "_slow")

    def __init__(self, size: int) -> None:
        self._size = size
        self._failures: deque[int] | tuple[()] = ()
        self._slow: deque[int] | tuple[()] = ()

    def add(self, number: int, now: float, *, failed: bool, slow: bool) -> None:  # noqa: ARG002 - one protocol
        if failed:
            self._failures = self._failures or deque()
            self._failures.append(number)
        if slow:
            self._slow = self._slow or deque()
            self._slow.append(number)

    def totals(self, calls: int, now: float) -> Totals:  # noqa: ARG002 - one protocol
        oldest = calls - self._size
        for numbers in (self._failures, self._slow):
            while numbers and numbers[0] < oldest:
                numbers.popleft()
        return Totals(min(calls, self._size), len(self._failures), len(self._slow))


class TimeLog:
    """The outcomes of the last `length` seconds, in ten buckets that leave as wholes.

    An outcome exactly `length` seconds old is outside; a bucket leaves when its first instant is.
    """

    __slots__ = ("_buckets", "_length", "_origin")

    def __init__(self, length: float, now: float) -> None:
        self._length = length
        self._origin = now
        self._buckets: deque[tuple[int, list[int]]] = deque(maxlen=BUCKETS)

    def add(self, number: int, now: float, *, failed: bool, slow: bool) -> None:  # noqa: ARG002 - one protocol
        index = self._index(now)
        if not self._buckets or self._buckets[-1][0] < index:
            self._buckets.append((index, [0, 0, 0]))
        bucket = self._buckets[-1][1]  # a report that comes in late is taken for one of now
        bucket[0] += 1
        bucket[1] += failed
        bucket[2] += slow

    def totals(self, calls: int, now: float) -> Totals:  # noqa: ARG002 - one protocol
        oldest = self._index(now) - BUCKETS
        while self._buckets and self._buckets[0][0] <= oldest:
            self._buckets.popleft()
        return Totals(*(sum(bucket[i] for _, bucket in self._buckets) for i in range(3)))

    def _index(self, now: float) -> int:
        return math.floor((now - self._origin) * BUCKETS / self._length)


@dataclass(frozen=True, slots=True)
class CountWindow:
    """Judge the last `size` outcomes (at least 1; default 100, as resilience4j); free per success."""

    size: int = 100

    def __post_init__(self) -> None:
        check_count("window size", self.size)

    def log(self, now: float) -> Log:  # noqa: ARG002 - the time window needs it
        """Make an empty log."""
        return CountLog(self.size)


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """Judge the outcomes of the last `length` seconds (above 0; default 30, as Polly), in ten buckets.

    Reads the clock and takes the lock at every outcome, which `CountWindow` does not.
    """

    length: float = 30.0

    def __post_init__(self) -> None:
        check_number("window length", self.length, above=0)

    def log(self, now: float) -> Log:
        """Make an empty log that begins at `now`."""
        return TimeLog(self.length, now)


Window = CountWindow | TimeWindow
