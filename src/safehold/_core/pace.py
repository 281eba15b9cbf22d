"""When a paced loop ticks.

Ticks lie on a grid of the present interval, each put off by chance within the jitter, so that loops that
began together do not stay together. What came late is not replayed: a tick that is due is given once, those
that were missed meanwhile are counted, and the next one keeps its distance.

Every interval is that of a health; an infinite one is a pause. A loop that wakes from a pause ticks at once,
but no sooner than its usual interval after the tick before: a dependency that flaps must not make its loops
faster than a healthy one does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from .configuration import ConfigurationError, check_number
from .health import HealthState

MOST_SPREAD: Final = 10.0
"""Seconds over which loops are spread, at most, when they wake from a pause."""
_SLACK: Final = 0.1  # share of an interval by which a tick may be late before the grid moves with it


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceSettings:
    """The intervals of one loop, in seconds; infinite ones are pauses."""

    every: float
    degraded: float
    recovering: float
    unhealthy: float
    jitter: float

    def __post_init__(self) -> None:
        check_number("every", self.every, above=0)
        check_number("jitter", self.jitter, least=0, most=1)
        for name in ("degraded", "recovering", "unhealthy"):
            value: float = getattr(self, name)
            if value != math.inf:
                check_number(name, value, above=0)
            if value < self.every:
                msg = f"{name}={value:g} is shorter than every={self.every:g}: a loop slows down, never up"
                raise ConfigurationError(msg)

    def interval(self, health: HealthState) -> float:
        """Give the seconds between two ticks in this health. What is not known yet is found out as usual."""
        match health:
            case HealthState.DEGRADED:
                return self.degraded
            case HealthState.RECOVERING:
                return self.recovering
            case HealthState.UNHEALTHY:
                return self.unhealthy
            case _:
                return self.every

    @property
    def spread(self) -> float:
        """Over how many seconds chance spreads the first tick after a pause."""
        return min(self.jitter * self.every, MOST_SPREAD)


class Rhythm:
    """The ticks of one loop. `due` is the instant of the next one, infinite while paused."""

    __slots__ = ("_last", "_nominal", "_settings", "due", "health", "interval", "missed", "number")

    def __init__(self, settings: PaceSettings) -> None:
        self._settings = settings
        self._last: float | None = None
        self._nominal = 0.0
        self.due = math.inf
        self.health: HealthState | None = None
        self.interval = math.inf
        self.number = 0
        self.missed = 0

    def follow(self, health: HealthState, now: float, *, draw: float, after: float = 0.0) -> None:
        """Take in the present health. `after`: seconds for which loops of a higher priority wake first."""
        was, first = self.interval, self.health is None
        self.health, self.interval = health, self._settings.interval(health)
        if self.interval == was:
            return
        if self.interval == math.inf:
            self.due = math.inf
        elif first:
            self._nominal = self.due = now
        elif was == math.inf:
            least = now if self._last is None else max(now, self._last + self._settings.every)
            self._nominal = least + after
            self.due = self._nominal + self._settings.spread * draw
        else:
            last = now if self._last is None else self._last
            self._nominal = max(now, last + self.interval)
            self.due = self._nominal + self._settings.jitter * self.interval * draw

    def tick(self, now: float, *, draw: float) -> float:
        """Take the tick that is due, or one out of turn while paused; give by how many seconds it is late."""
        self.number += 1
        self._last = now
        if self.interval == math.inf:
            return 0.0
        late, jitter = now - self.due, self._settings.jitter
        self.missed += int((now - self._nominal) // self.interval)
        nearest = now + self.interval * (1.0 - max(jitter, _SLACK))
        self._nominal = max(self._nominal + self.interval, nearest)
        self.due = self._nominal + jitter * self.interval * draw
        return late
