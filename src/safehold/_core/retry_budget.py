"""How many retries there may be: a share of the calls, plus a floor, over a rolling window.

A retry helps one caller and costs the dependency a call. While few calls fail, the share is never reached; in
an outage it is what keeps retries from multiplying the load, whatever each caller's own policy allows. The
floor lets a service with little traffic retry at all.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from .configuration import check_count, check_number

_SLOTS: Final = 10


class RetryCount:
    """Calls and retries of the last `window` seconds, counted in slots of a tenth of it."""

    __slots__ = ("_floor", "_share", "_slots", "_width")

    def __init__(self, share: float, floor: int, window: float) -> None:
        check_number("share", share, least=0, most=1)
        check_count("floor", floor, least=0)
        check_number("window", window, above=0)
        self._share, self._floor, self._width = share, floor, window / _SLOTS
        self._slots: deque[list[float]] = deque()  # [number of the slot, calls, retries]

    def call(self, now: float) -> None:
        """Count a call: one that a user made, however often it is tried."""
        self._slot(now)[1] += 1

    def retry(self, now: float) -> bool:
        """Count a retry if there may be one, and say whether there may."""
        slot = self._slot(now)
        if self.left(now) < 1:
            return False
        slot[2] += 1
        return True

    def left(self, now: float) -> float:
        """Give how many retries there may be."""
        self._slot(now)
        calls, retries = sum(s[1] for s in self._slots), sum(s[2] for s in self._slots)
        return max(0.0, self._floor + self._share * calls - retries)

    def _slot(self, now: float) -> list[float]:
        number = now // self._width
        while self._slots and self._slots[0][0] <= number - _SLOTS:
            self._slots.popleft()
        if not self._slots or self._slots[-1][0] != number:
            self._slots.append([number, 0, 0])
        return self._slots[-1]
