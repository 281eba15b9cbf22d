"""When a probe is due.

Open and half-open: when the breaker's next trial is due, so that probes drive recovery through the same
permits as calls. Closed: at once when somebody asked for proof, else at the liveness interval if one is
set. Held: never, because only a person ends a hold.
"""

from __future__ import annotations

from dataclasses import dataclass

from .breaker import Breaker
from .configuration import ConfigurationError, check_number
from .health import BreakerState


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSettings:
    """How one dependency is probed; the meaning of each is told at `ProbePolicy`."""

    timeout: float = 1.0
    interval: float | None = None
    jitter: float = 0.2

    def __post_init__(self) -> None:
        check_number("probe timeout", self.timeout, above=0)
        check_number("probe jitter", self.jitter, least=0, most=1)
        if self.interval is not None:
            check_number("probe interval", self.interval, above=0)
            if self.interval < self.timeout:
                msg = f"probe interval={self.interval:g} is shorter than probe timeout={self.timeout:g}"
                raise ConfigurationError(msg)


class ProbeSchedule:
    """The probe plan of one dependency: single flight, ordered or by the clock."""

    __slots__ = ("_breaker", "_next", "_not_before", "in_flight", "ordered", "settings")

    def __init__(self, breaker: Breaker, settings: ProbeSettings, now: float, *, draw: float) -> None:
        self._breaker = breaker
        self.settings = settings
        self.in_flight = False
        self.ordered = False
        self._not_before = now
        self._next = self._after(now, draw)

    def due(self) -> float | None:
        """Give the instant of the next probe; `None` when nothing is planned."""
        generation = self._breaker.era.generation
        if self.in_flight or generation.held:
            return None
        if generation.state is not BreakerState.CLOSED:
            return max(generation.due, self._not_before)
        due, pause = 0.0 if self.ordered else self._next, self._breaker.paused_until
        return due if due is None or pause is None else max(due, pause)

    def order(self) -> bool:
        """Ask for a probe as soon as it may be; say whether somebody has to launch it.

        One that is under way answers for all who ask meanwhile.
        """
        self.ordered = not self.in_flight
        return self.ordered

    def claim(self, now: float) -> bool:
        """Take the flight, if a probe is due and none is under way."""
        due = self.due()
        if due is None or now < due:
            return False
        self.in_flight, self.ordered = True, False
        return True

    def done(self, now: float, *, draw: float, decided: bool = True) -> None:
        """Give the flight back and plan the next probe.

        One that decided nothing gives its trial back, which is then due at once: the next probe keeps
        the distance of a time-out, so that nobody probes in a circle.
        """
        self.in_flight = False
        self._not_before = now if decided else now + self.settings.timeout
        self._next = self._after(now, draw)

    def _after(self, now: float, draw: float) -> float | None:
        interval = self.settings.interval
        return None if interval is None else now + interval * (1.0 - self.settings.jitter * draw)
