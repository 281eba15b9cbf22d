"""The tallies of one Safehold, by type of subject: in memory, or in a file that all its workers share."""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .._core.budget import MOST, WINDOW, Population, Tally
from .._core.configuration import ConfigurationError, check_count, check_name

if TYPE_CHECKING:
    from .engine import Engine
    from .ledger import Ledger
    from .state import StateFile

R = TypeVar("R")


class Budgets:
    """Every tally, and the way to one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tallies: dict[str, Tally] = {}
        self._file: StateFile | None = None
        self._offset = 0.0  # wall time less monotonic: taken once, so that setting the clock ends no window

    def keep(self, path: Path) -> None:
        """Keep the tallies in a file from now on. Raises when one was used: it would be forgotten."""
        from .state import StateFile  # noqa: PLC0415 - most budgets are in memory

        if self._tallies:
            msg = f"state_dir must be configured before a budget is used; {', '.join(self._tallies)} was"
            raise ConfigurationError(msg)
        self._offset = self._engine.offset()
        self._file = StateFile(path)

    def reborn(self) -> None:
        """Begin again in a forked child: what the parent destroyed counts, the locks are new."""
        if self._file is not None:
            self._file.reborn()

    def step(self, kind: str, change: Callable[[Tally, float], R]) -> R:
        """Let `change` look at a tally and move it, at one instant. Raises what writing the file raises."""
        now = self._engine.clock.monotonic()
        if self._file is None:
            return self._engine.run(lambda: change(self._tallies.setdefault(kind, Tally()), now))
        offset = self._offset
        results: list[R] = []

        def rewrite(document: Any) -> Any:
            kept, lost_until = _opened(document, now, offset)
            tally = _tally(kept, kind, now, offset, lost=now < lost_until)
            results.append(change(tally, now))
            kept[kind] = tally.dump(offset)
            return {"kinds": kept, "lost_until": lost_until + offset}

        self._file.update(rewrite)
        return results[0]

    def look(self, kind: str, read: Callable[[Tally], R]) -> R:
        """Let `read` look at a tally. Nothing is written."""
        now = self._engine.clock.monotonic()
        if self._file is None:
            return self._engine.run(lambda: read(self._tallies.get(kind, Tally()).at(now)))
        kept, lost_until = _opened(self._file.read(), now, self._offset)
        return read(_tally(kept, kind, now, self._offset, lost=now < lost_until).at(now))


def _opened(document: Any, now: float, offset: float) -> tuple[dict[str, Any], float]:
    """Give the tallies that were kept, and until when those that are missing count as lost."""
    match document:
        case {"kinds": dict() as kept, "lost_until": int() | float() as lost} if abs(lost) < MOST:
            return kept, min(lost - offset, now + WINDOW)
        case _:
            return {}, now + WINDOW


def _tally(kept: dict[str, Any], kind: str, now: float, offset: float, *, lost: bool) -> Tally:
    if kind not in kept:
        return Tally.lost(now) if lost else Tally()
    try:
        return Tally.load(kept[kind], now, offset)
    except ValueError:
        return Tally.lost(now)


class BudgetHandle:
    """The budget of one type of subject, for people: `health.budget("session")`."""

    def __init__(self, kind: str, budgets: Budgets, ledger: Ledger) -> None:
        check_name("subject type", kind)
        self.subject_type = kind
        self._budgets = budgets
        self._ledger = ledger

    @property
    def nominated(self) -> int:
        """How many subjects were nominated within the last hour."""
        return self._look(lambda tally: len(tally.nominated))

    @property
    def acts(self) -> int:
        """How many acts were done, or begun, within the last hour."""
        return self._look(lambda tally: tally.done)

    @property
    def tripped(self) -> str | None:
        """Why nothing more is done; `None` when the budget has not tripped."""
        return self._look(lambda tally: tally.tripped)

    @property
    def high_water(self) -> int:
        """The largest population seen, less what was destroyed with leave."""
        return self._look(lambda tally: tally.high_water)

    def reset(self, *, actor: str, reason: str) -> None:
        """End a trip, or the hour after state was lost. What is nominated from now on is counted afresh.

        Acts still count against the hard cap. It is written to the ledger first.
        """
        self._by_hand("budget reset", actor, reason, lambda tally, _: tally.reset())

    def acknowledge(self, population: int, *, actor: str, reason: str) -> None:
        """Take so many as what there is, the rest as gone. It is written to the ledger first."""
        _check_size(population)
        self._by_hand("population acknowledged", actor, reason, lambda tally, _: tally.rebase(population))

    def _by_hand(self, what: str, actor: str, reason: str, change: Callable[[Tally, float], None]) -> None:
        check_name("actor", actor)
        check_name("reason", reason)
        self._ledger.note(what, reason, actor, subject=self.subject_type)
        self._budgets.step(self.subject_type, change)

    def _look(self, read: Callable[[Tally], R]) -> R:
        return self._budgets.look(self.subject_type, read)

    def __repr__(self) -> str:
        return f"<Budget of {self.subject_type!r}>"


def population_of(answer: Any) -> Population:
    """Take what a population function gave: a number, or a collection that knows its size."""
    if answer is None or isinstance(answer, bool | float | str | bytes):
        msg = f"population gave a {type(answer).__name__}, neither a whole number nor a collection"
        raise ConfigurationError(msg)
    size = index(answer) if hasattr(answer, "__index__") else len(answer)
    _check_size(size)
    return Population(size)


def _check_size(population: int) -> None:
    check_count("population", population, least=0)
    if population > MOST:
        msg = f"population must be at most {MOST}, got more"
        raise ConfigurationError(msg)
