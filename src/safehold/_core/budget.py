"""How much may be destroyed: an absolute number, a share of what there is, and a cap that nobody lifts.

A tally counts what was *nominated* for one type of subject in a rolling hour, not what was done: a partial
outage that hides some subjects must not let the rest of a plan slip under the limit. Over it nothing is done,
and the trip latches: waiting does not end it, a person or a fresh plan that fits by itself does.

The high-water mark of the population rises by itself and falls only by what was destroyed with leave, one by
one, or by a person. A population far below it is no population but a listing that lost something.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from .configuration import ConfigurationError, check_count, check_number

WINDOW: Final = 3600.0
"""Seconds for which a nomination and an act count."""
COLLAPSE: Final = 0.15
"""Share of the high-water mark that may be missing before a reading of the population is not believed."""
FEW: Final = 10
"""Below so many members a share says nothing: one of them may go in a window."""
MOST_NOMINATED: Final = 10_000
"""Nominations that are remembered one by one; a plan of more trips whatever its limit is."""
_HARD: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much an operation may destroy: `destructive(..., budget=Budget(per_hour=10, share=0.10))`.

    `per_hour`: so many subjects in a rolling hour (at least 1, 10,000 at most; `None`: no absolute limit).
    `share`: so large a share of the highest population seen (above 0 to 1; `None`: not judged); it needs
    `population`, and is not judged without. `population`: a function without arguments that gives how many
    subjects there are, as a number or a sized collection; a coroutine function where the operation is one.
    One that fails blocks. `zero_ok`: whether the last member may go. `hard_cap`: so many acts in a rolling
    hour, whoever asks; no grant lifts it (`None`: ten times `per_hour`; without `per_hour`, no cap).

    The defaults (10 an hour, a tenth) are those of the careful end of what cluster managers ship with. Raises
    `ConfigurationError`.
    """

    per_hour: int | None = 10
    share: float | None = 0.10
    population: Callable[[], Any] | None = None
    zero_ok: bool = False
    hard_cap: int | None = None

    def __post_init__(self) -> None:
        for name in ("per_hour", "hard_cap"):
            value = getattr(self, name)
            if value is not None:
                check_count(name, value)
        if self.per_hour is not None and self.per_hour > MOST_NOMINATED:
            msg = f"per_hour must be at most {MOST_NOMINATED}, got {self.per_hour}; None means no limit"
            raise ConfigurationError(msg)
        if self.share is not None:
            check_number("share", self.share, above=0, most=1)
        if self.population is not None and not callable(self.population):
            msg = f"population must be a function without arguments, got {self.population!r}"
            raise ConfigurationError(msg)
        if not isinstance(self.zero_ok, bool):
            msg = f"zero_ok must be True or False, got {self.zero_ok!r}"
            raise ConfigurationError(msg)
        if self.per_hour is None and (self.share is None or self.population is None):
            msg = "a budget needs a limit: per_hour, or share together with population"
            raise ConfigurationError(msg)
        if self.per_hour is not None and self.hard_cap is not None and self.hard_cap < self.per_hour:
            msg = f"hard_cap={self.hard_cap} is below per_hour={self.per_hour}, which it would make useless"
            raise ConfigurationError(msg)

    @property
    def cap(self) -> float:
        """Give the acts that nobody may exceed."""
        if self.hard_cap is not None:
            return self.hard_cap
        return math.inf if self.per_hour is None else _HARD * self.per_hour


class Population(NamedTuple):
    """How many there are; `size` is `None` when nobody could tell, and `why` says why."""

    size: int | None
    why: str = ""


class Finding(NamedTuple):
    """What a budget has against an act."""

    code: str
    text: str
    retry_after: float | None


class Tally:
    """What was nominated and done for one type of subject. The caller holds the lock."""

    def __init__(self) -> None:
        self.nominated: OrderedDict[str, float] = OrderedDict()  # by the instant of the last nomination
        self.acts: deque[float] = deque()
        self.tripped: str | None = None
        self.over_at = -math.inf  # when something was nominated last that did not fit
        self.high_water = 0
        self.closed_until = -math.inf  # what was counted before is lost, so the hour counts as used up
        self._unnamed = 0

    # --- judging ---------------------------------------------------------------------------------

    def judge(
        self,
        budget: Budget,
        subjects: Collection[str | None],
        now: float,
        population: Population | None,
        *,
        automatic: bool,
        plan: bool = False,
    ) -> tuple[Finding, ...]:
        """Nominate `subjects` and say what speaks against acting on them.

        A requested operation is judged by the hard cap alone. `plan` says that this is all there is to do, so
        that it may end a trip when it fits.
        """
        self.at(now)
        found: list[Finding] = []
        names = [self._name(subject) for subject in subjects]
        if automatic:
            found += self._plausible(population)
            found += self._within(budget, names, now, population, plan=plan)
            if population is not None and population.size is not None and not budget.zero_ok:
                left = population.size - len(set(names))
                if left <= 0:
                    text = (
                        f"nothing would be left of {population.size}; say zero_ok=True where that is normal"
                    )
                    found.append(Finding("last_member", text, None))
        if len(self.acts) + len(names) > budget.cap:
            text = (
                f"{len(self.acts)} acts within an hour and {len(names)} more exceed the cap of {budget.cap:g}"
            )
            found.append(Finding("hard_cap", text, self._until(self.acts[0] if self.acts else None, now)))
        return tuple(found)

    def at(self, now: float) -> Tally:
        """Let what is older than the window count no more."""
        while self.nominated and now - next(iter(self.nominated.values())) >= WINDOW:
            self.nominated.popitem(last=False)
        while self.acts and now - self.acts[0] >= WINDOW:
            self.acts.popleft()
        return self

    def charge(self, now: float) -> None:
        """Count an act that is about to be done. It is never given back: what was lost may have been done."""
        self.acts.append(now)

    def destroyed(self) -> None:
        """Let the high-water mark fall by one that has gone with leave."""
        self.high_water = max(0, self.high_water - 1)

    def reset(self) -> None:
        """End a trip by a person's word: what was nominated is looked at afresh. Acts still count."""
        self.tripped = None
        self.nominated.clear()
        self.over_at = self.closed_until = -math.inf

    def rebase(self, size: int) -> None:
        """Take a population as the new high-water mark, by a person's word."""
        self.high_water = size

    def is_back(self, size: int) -> bool:
        """Whether a population is back to the share of a known high-water mark that is believed."""
        return self.high_water > 0 and not self._collapsed(size)

    def _within(
        self,
        budget: Budget,
        names: list[str],
        now: float,
        population: Population | None,
        *,
        plan: bool,
    ) -> list[Finding]:
        limit, few = self._limit(budget, population)
        together = len(self.nominated.keys() | set(names))
        fits = together <= limit
        if now < self.closed_until:
            text = "what was counted before is lost, so the hour counts as used up; a person may reset it"
            return [Finding("budget_state_lost", text, self.closed_until - now)]
        if self.tripped is not None:
            if not (plan and fits and now - self.over_at >= WINDOW):
                if not fits or any(name not in self.nominated for name in names):
                    self.over_at = now if not (plan and fits) else self.over_at
                return [Finding("budget_tripped", f"{self.tripped}; a person has to reset it", None)]
            self.tripped = None
        if not fits and not few:
            self.over_at = now
            self.tripped = f"{together} nominated within an hour exceed the limit of {limit:g}"
            return [Finding("budget_exceeded", f"{self.tripped}; nothing is done", None)]
        self._nominate(names, now)
        if fits:
            return []
        text = f"{together} nominated within an hour, and of fewer than {FEW} one may go in a window"
        return [Finding("small_population", text, self._until(next(iter(self.nominated.values())), now))]

    def _limit(self, budget: Budget, population: Population | None) -> tuple[float, bool]:
        """Give how many may be nominated, and whether that is because there are so few."""
        limit = math.inf if budget.per_hour is None else budget.per_hour
        if population is not None and self.high_water:
            if self.high_water < FEW:
                return 1, True
            if budget.share is not None:
                limit = min(limit, math.floor(budget.share * self.high_water))
        return min(limit, MOST_NOMINATED), False

    def _plausible(self, population: Population | None) -> list[Finding]:
        if population is None:
            return []
        if population.size is None:
            return [Finding("population_unknown", f"how many there are is not known ({population.why})", 0.0)]
        if self._collapsed(population.size):
            text = (
                f"only {population.size} are seen of {self.high_water}: some are hidden rather than gone; "
                "a person may acknowledge the loss"
            )
            return [Finding("population_collapsed", text, 0.0)]
        self.high_water = max(self.high_water, population.size)
        return []

    def _collapsed(self, size: int) -> bool:
        missing = self.high_water - size
        return missing > 0 and (size == 0 or missing > max(1.0, COLLAPSE * self.high_water))

    def _name(self, subject: str | None) -> str:
        """Name what has no name: each such act is a subject of its own."""
        if subject is not None:
            return f"={subject}"
        self._unnamed += 1
        return f"#{self._unnamed}"

    def _nominate(self, names: list[str], now: float) -> None:
        for name in names:
            self.nominated[name] = now
            self.nominated.move_to_end(name)
        while len(self.nominated) > MOST_NOMINATED + 1:
            self.nominated.popitem()

    @staticmethod
    def _until(oldest: float | None, now: float) -> float | None:
        return None if oldest is None else max(0.0, oldest + WINDOW - now)

    # --- surviving a restart ---------------------------------------------------------------------

    def dump(self, offset: float) -> dict[str, Any]:
        """Give what is kept over a restart, in wall time: `offset` is wall less monotonic."""
        return {
            "nominated": {name: at + offset for name, at in self.nominated.items()},
            "acts": [at + offset for at in self.acts],
            "tripped": self.tripped,
            "over_at": None if math.isinf(self.over_at) else self.over_at + offset,
            "closed_until": None if math.isinf(self.closed_until) else self.closed_until + offset,
            "high_water": self.high_water,
            "unnamed": self._unnamed,
        }

    @classmethod
    def load(cls, kept: Mapping[str, Any], now: float, offset: float) -> Tally:
        """Take up what was kept. What makes no sense raises `ValueError`, `TypeError` or `KeyError`."""
        tally = cls()

        def instant(wall: Any) -> float:
            if isinstance(wall, bool) or not isinstance(wall, int | float) or not math.isfinite(wall):
                msg = f"no instant: {wall!r}"
                raise ValueError(msg)
            return min(now, wall - offset)

        nominated = sorted(kept["nominated"].items(), key=lambda item: item[1])
        for name, at in nominated[-MOST_NOMINATED:]:
            tally.nominated[str(name)] = instant(at)
        tally.acts.extend(sorted(instant(at) for at in kept["acts"]))
        tally.tripped = None if kept["tripped"] is None else str(kept["tripped"])
        tally.over_at = -math.inf if kept["over_at"] is None else instant(kept["over_at"])
        closed = kept["closed_until"]
        if closed is not None:
            tally.closed_until = min(now + WINDOW, float(closed) - offset)
        tally.high_water = int(kept["high_water"])
        tally._unnamed = int(kept["unnamed"])
        return tally

    @classmethod
    def lost(cls, now: float) -> Tally:
        """Make the tally of somebody who cannot know what was done before: the hour counts as used up."""
        tally = cls()
        tally.closed_until = now + WINDOW
        return tally
