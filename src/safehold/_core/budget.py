"""How much may be destroyed: an absolute number, a share of what there is, and a cap that nobody lifts.

A tally counts what was *nominated* for one type of subject in a rolling hour, not what was done: a partial
outage that hides some subjects must not let the rest of a plan slip under the limit. Over it nothing is done,
and the trip latches: waiting does not end it, a person or a fresh plan that fits by itself does. Only the cap
counts acts, so that attempts that were blocked do not use up what a person may do.

The high-water mark of the population rises by itself and falls only by what was destroyed with leave, by
name, or by a person. A population far below it is no population but a listing that lost something. A limit is
a share of the mark as it was before the hour's own destructions: else those that a failure held back would
leave more room for others than those that were done.

Subjects are kept as digests: their names may be long, or nobody's business.
"""

from __future__ import annotations

import hashlib
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
MOST: Final = 2**53
"""No population is larger: floats, and files, count so far."""
GRAIN: Final = 10.0
"""Acts of so many seconds are counted together, and lapse with the last that can be among them."""
_HARD: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much an operation may destroy: `destructive(..., budget=Budget(per_hour=10, share=0.10))`.

    `per_hour`: so many subjects in a rolling hour (at least 1, 10,000 at most; `None`: no absolute limit).
    `share`: so large a share of the highest population seen, and at least one (above 0 to 1; `None`: not
    judged); it needs `population`, and is not judged without. `population`: a function without arguments that
    gives how many subjects there are, as a number or a sized collection; a coroutine function where the
    operation is one. One that fails blocks. `zero_ok`: whether the last member may go. `hard_cap`: so many
    acts in a rolling hour, whoever asks; no grant lifts it (`None`: ten times `per_hour`; without `per_hour`,
    no cap).

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
    """How many there are; `size` is `None` when nobody could tell, and `why` says why.

    `asked` are the dependencies that were asked for it.
    """

    size: int | None
    why: str = ""
    asked: frozenset[str] = frozenset()


class Finding(NamedTuple):
    """What a budget has against an act."""

    code: str
    text: str
    retry_after: float | None


def key_of(subject: str) -> str:
    """Give the digest under which a subject is remembered: short, the same everywhere, and not its name."""
    return hashlib.blake2b(subject.encode(errors="surrogatepass"), digest_size=12).hexdigest()


class Tally:
    """What was nominated and done for one type of subject. The caller holds the lock."""

    def __init__(self) -> None:
        self.nominated: OrderedDict[str, float] = OrderedDict()  # by the instant of the last nomination
        self.gone: OrderedDict[str, float] = OrderedDict()  # destroyed with leave, by the first instant
        self.acts: deque[tuple[float, int]] = deque()
        self.tripped: str | None = None
        self.over_at = -math.inf  # when something was nominated last that did not fit
        self.high_water = 0
        self.closed_until = -math.inf  # what was counted before is lost, so the hour counts as used up
        self._unnamed = 0

    @property
    def done(self) -> int:
        """How many acts were begun within the window."""
        return sum(count for _, count in self.acts)

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
        that it may end a trip when it fits; a plan for nobody proves nothing and ends none.
        """
        self.at(now)
        found: list[Finding] = []
        names = dict.fromkeys(self._name(subject) for subject in subjects)
        if automatic:
            found += self._plausible(population)
            found += self._within(budget, names, now, population, plan=plan) if names else []
            found += self._remaining(budget, names, population) if names else []
        if names and self.done + len(names) > budget.cap:
            text = f"{self.done} acts within an hour and {len(names)} more exceed the cap of {budget.cap:g}"
            found.append(Finding("hard_cap", text, self._until_acts_lapse(len(names), budget.cap, now)))
        return tuple(found)

    def at(self, now: float) -> Tally:
        """Let what is older than the window count no more."""
        for lapsing in (self.nominated, self.gone):
            while lapsing and now - next(iter(lapsing.values())) >= WINDOW:
                lapsing.popitem(last=False)
        while self.acts and now - self.acts[0][0] >= WINDOW + GRAIN:
            self.acts.popleft()
        return self

    def charge(self, now: float, cap: float = math.inf) -> bool:
        """Count an act that is about to be done, unless that would exceed the cap; say which.

        What was begun is never given back: what was lost on the way may have been done.
        """
        self.at(now)
        if self.done >= cap:
            return False
        began, count = self.acts[-1] if self.acts else (-math.inf, 0)
        if now - began < GRAIN:
            self.acts[-1] = (began, count + 1)
        else:
            self.acts.append((now, 1))
        return True

    def refund(self) -> None:
        """Give back the last act counted, which was not begun after all."""
        if self.acts:
            began, count = self.acts.pop()
            if count > 1:
                self.acts.append((began, count - 1))

    def destroyed(self, subject: str | None, now: float) -> None:
        """Let the high-water mark fall by one that has gone with leave, once for each.

        What has no name may be the same one again, so nothing is known to be missing.
        """
        self.at(now)
        key = None if subject is None else key_of(subject)
        if key is not None and key not in self.gone and len(self.gone) < MOST_NOMINATED and self.high_water:
            self.gone[key] = now
            self.high_water -= 1

    def reset(self) -> None:
        """End a trip by a person's word: what was nominated is looked at afresh. Acts still count."""
        self.tripped = None
        self.nominated.clear()
        self.over_at = self.closed_until = -math.inf

    def rebase(self, size: int) -> None:
        """Take a population as the new high-water mark, by a person's word."""
        self.high_water = size
        self.gone.clear()

    def is_back(self, size: int) -> bool:
        """Whether a population is back to the share of a known high-water mark that is believed."""
        return self.high_water > 0 and not self._collapsed(size)

    def standing(self, budget: Budget, now: float, *, automatic: bool) -> tuple[Finding, ...]:
        """Say what speaks against any act at this instant, whatever its subject. Nothing is nominated."""
        self.at(now)
        found: list[Finding] = []
        if automatic and (lost := self._lost(now)) is not None:
            found.append(lost)
        elif automatic and self.tripped is not None:
            found.append(self._latched(self.tripped))
        if self.done >= budget.cap:
            text = f"{self.done} acts within an hour reach the cap of {budget.cap:g}"
            found.append(Finding("hard_cap", text, self._until_acts_lapse(1, budget.cap, now)))
        return tuple(found)

    def _lost(self, now: float) -> Finding | None:
        if now >= self.closed_until:
            return None
        text = "what was counted before is lost, so the hour counts as used up; a person may reset it"
        return Finding("budget_state_lost", text, self.closed_until - now)

    @staticmethod
    def _latched(tripped: str) -> Finding:
        return Finding("budget_tripped", f"{tripped}; a person has to reset it", None)

    def _within(
        self,
        budget: Budget,
        names: Collection[str],
        now: float,
        population: Population | None,
        *,
        plan: bool,
    ) -> list[Finding]:
        if (lost := self._lost(now)) is not None:
            return [lost]
        limit, few = self._limit(budget, population)
        new = sum(name not in self.nominated for name in names)
        together = len(self.nominated) + new
        fits = together <= limit
        if self.tripped is not None and plan and fits and now - self.over_at >= WINDOW:
            self.tripped = None
        if self.tripped is not None:
            if not fits or (new and not plan):  # one by one, each of them would fit
                self.over_at = now
            return [self._latched(self.tripped)]
        if not fits and not few:
            self.over_at = now
            self.tripped = f"{together} nominated within an hour exceed the limit of {limit:g}"
            return [Finding("budget_exceeded", f"{self.tripped}; nothing is done", None)]
        self._nominate(names, now)
        if fits:
            return []
        text = f"{together} nominated within an hour, and of fewer than {FEW} one may go in a window"
        return [Finding("small_population", text, self._until_others_lapse(names, now))]

    def _limit(self, budget: Budget, population: Population | None) -> tuple[float, bool]:
        """Give how many may be nominated, and whether that is because there are so few."""
        limit: float = MOST_NOMINATED if budget.per_hour is None else budget.per_hour
        if population is None:
            return limit, False
        most = self.high_water + len(self.gone)
        if most < FEW and (most or population.size is not None):
            return 1, True
        if most and budget.share is not None:
            limit = min(limit, max(1, math.floor(budget.share * most + 1e-9)))
        return limit, False

    def _remaining(
        self, budget: Budget, names: Collection[str], population: Population | None
    ) -> list[Finding]:
        """Check that somebody is left when all that was nominated in the window has gone."""
        if budget.zero_ok or population is None or population.size is None:
            return []
        going = len(self.nominated.keys() | set(names)) - len(self.gone)
        if population.size > max(going, len(names)):
            return []
        text = f"nothing would be left of {population.size}; say zero_ok=True where that is normal"
        return [Finding("last_member", text, None)]

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
            return key_of(subject)
        self._unnamed += 1
        return f"#{self._unnamed}"

    def _nominate(self, names: Collection[str], now: float) -> None:
        for name in names:
            if name in self.nominated or len(self.nominated) <= MOST_NOMINATED:
                self.nominated[name] = now
                self.nominated.move_to_end(name)

    def _until_others_lapse(self, names: Collection[str], now: float) -> float | None:
        """Give the seconds until nobody but these is nominated; `None` when they are too many."""
        last = max((at for name, at in self.nominated.items() if name not in names), default=now)
        return max(0.0, last + WINDOW - now) if len(names) <= 1 else None

    def _until_acts_lapse(self, more: int, cap: float, now: float) -> float | None:
        """Give the seconds until so many more acts fit under the cap; `None` when they never do."""
        done = self.done
        for began, count in self.acts:
            done -= count
            if done + more <= cap:
                return max(0.0, began + WINDOW + GRAIN - now)
        return None

    # --- surviving a restart ---------------------------------------------------------------------

    def dump(self, offset: float) -> dict[str, Any]:
        """Give what is kept over a restart, in wall time: `offset` is wall less monotonic."""
        return {
            "nominated": {name: at + offset for name, at in self.nominated.items()},
            "gone": {name: at + offset for name, at in self.gone.items()},
            "acts": [[began + offset, count] for began, count in self.acts],
            "tripped": self.tripped,
            "over_at": None if math.isinf(self.over_at) else self.over_at + offset,
            "closed_until": None if math.isinf(self.closed_until) else self.closed_until + offset,
            "high_water": self.high_water,
            "unnamed": self._unnamed,
        }

    @classmethod
    def load(cls, kept: Any, now: float, offset: float) -> Tally:
        """Take up what was kept. Raises `ValueError` for whatever `dump` would not have given."""

        def instant(wall: Any, most: float = now) -> float:
            if isinstance(wall, bool) or not isinstance(wall, int | float) or not abs(wall) < MOST:
                msg = f"no instant: {wall!r}"
                raise ValueError(msg)
            return min(most, wall - offset)

        def size(count: Any) -> int:
            if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST:
                msg = f"no number: {count!r}"
                raise ValueError(msg)
            return count

        def instants(named: Mapping[str, Any]) -> OrderedDict[str, float]:
            if len(named) > MOST_NOMINATED + 1:
                msg = f"{len(named)} are too many"
                raise ValueError(msg)
            told = ((str(name), instant(at)) for name, at in named.items())
            return OrderedDict(sorted(told, key=lambda item: item[1]))

        tally = cls()
        try:
            tally.nominated, tally.gone = instants(kept["nominated"]), instants(kept["gone"])
            acts = [(instant(began), size(count)) for began, count in kept["acts"]]
            tripped, over_at, closed = kept["tripped"], kept["over_at"], kept["closed_until"]
            tally.high_water, tally._unnamed = size(kept["high_water"]), size(kept["unnamed"])
        except (TypeError, KeyError, AttributeError) as error:
            msg = f"no tally: {type(error).__name__}"
            raise ValueError(msg) from None
        tally.acts.extend(sorted(acts))
        tally.tripped = None if tripped is None else str(tripped)
        tally.over_at = -math.inf if over_at is None else instant(over_at)
        tally.closed_until = -math.inf if closed is None else instant(closed, now + WINDOW)
        return tally

    @classmethod
    def lost(cls, now: float) -> Tally:
        """Make the tally of somebody who cannot know what was done before: the hour counts as used up."""
        tally = cls()
        tally.closed_until = now + WINDOW
        return tally
