"""The tallies of one Safehold, by type of subject: in memory, or in a file that all its workers share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .._core.budget import WINDOW, Population, Tally
from .._core.configuration import ConfigurationError, check_count, check_name
from .exclusive import Exclusive

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
        self._alone = Exclusive("the state of the budgets")

    def keep(self, path: Path) -> None:
        """Keep the tallies in a file from now on."""
        from .state import StateFile  # noqa: PLC0415 - most budgets are in memory

        self._file = StateFile(path)

    def reborn(self) -> None:
        """Begin again in a forked child: what the parent destroyed counts, the locks are new."""
        self._alone = Exclusive("the state of the budgets")
        if self._file is not None:
            self._file.reborn()

    def step(self, kind: str, change: Callable[[Tally, float], R]) -> R:
        """Let `change` look at a tally and move it, at one instant. Raises what writing the file raises."""
        now = self._engine.clock.monotonic()
        if self._file is None:
            return self._engine.run(lambda: change(self._tallies.setdefault(kind, Tally()), now))
        offset = self._engine.offset()
        results: list[R] = []

        def rewrite(document: Any) -> Any:
            kept, lost_until = _opened(document, now, offset)
            tally = _tally(kept, kind, now, offset, lost=lost_until > now)
            results.append(change(tally, now))
            kept[kind] = tally.dump(offset)
            return {"kinds": kept, "lost_until": lost_until + offset}

        with self._alone:
            self._file.update(rewrite)
        return results[0]


def _opened(document: Any, now: float, offset: float) -> tuple[dict[str, Any], float]:
    """Give the tallies that were kept, and until when those that are missing count as lost."""
    try:
        kept, lost_until = document["kinds"], float(document["lost_until"]) - offset
    except (TypeError, KeyError, ValueError):
        return {}, now + WINDOW
    if not isinstance(kept, dict):
        return {}, now + WINDOW
    return kept, min(lost_until, now + WINDOW)


def _tally(kept: dict[str, Any], kind: str, now: float, offset: float, *, lost: bool) -> Tally:
    if kind not in kept:
        return Tally.lost(now) if lost else Tally()
    try:
        return Tally.load(kept[kind], now, offset)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
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
        return self._look(lambda tally: len(tally.acts))

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
        check_count("population", population, least=0)
        self._by_hand("population acknowledged", actor, reason, lambda tally, _: tally.rebase(population))

    def _by_hand(self, what: str, actor: str, reason: str, change: Callable[[Tally, float], None]) -> None:
        check_name("actor", actor)
        check_name("reason", reason)
        self._ledger.note(what, reason, actor, subject=self.subject_type)
        self._budgets.step(self.subject_type, change)

    def _look(self, read: Callable[[Tally], R]) -> R:
        return self._budgets.step(self.subject_type, lambda tally, now: read(tally.at(now)))

    def __repr__(self) -> str:
        return f"<Budget of {self.subject_type!r}>"


def population_of(answer: Any) -> Population:
    """Take what a population function gave: a number, or a collection that knows its size."""
    if isinstance(answer, bool) or answer is None:
        msg = f"population gave {answer!r}, neither a number nor a collection"
        raise ConfigurationError(msg)
    size = answer if isinstance(answer, int) else len(answer)
    check_count("population", size, least=0)
    return Population(size)
