"""The audit trail of destructive operations: what was about to be done, and what became of it.

The intent is written before the act and the outcome after it. Blocks are written as well; those of one
operation for one reason are one line that counts, so that a sweep that is blocked a hundred thousand times
costs one line. The newest `most` acts and `most` kinds of blocks are kept, in memory.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import count
from typing import TYPE_CHECKING, Final

from .._core.gate import Verdict
from .describe import cause_of

if TYPE_CHECKING:
    from .engine import Engine

MOST_KEPT: Final = 1000


class LedgerOutcome(StrEnum):
    """What a line of the ledger says.

    `intent`: about to be done. `done`: it returned. `failed`: it raised, and says that it did nothing or that
    it was wrong. `unknown`: it was given up or lost, so nobody knows; do not try again blindly. `blocked`: it
    has not run. `would_block`: it has run, because the gate observes. `deferred`: it gave something to be
    awaited, which has a line of its own.
    """

    INTENT = "intent"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"
    BLOCKED = "blocked"
    WOULD_BLOCK = "would_block"
    DEFERRED = "deferred"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line. `number` orders all of them; `intent` is the number of the act's first line.

    `at` is Unix time; of an entry that counts, of the newest. `reasons` are the codes that blocked, `why` is
    what an act raised, in a few words, `count` how often it happened.
    """

    number: int
    at: float
    operation: str
    trigger: str
    outcome: LedgerOutcome
    subject: str | None = None
    scope: str | None = None
    intent: int | None = None
    reasons: tuple[str, ...] = ()
    why: str = ""
    count: int = 1


class Ledger:
    """The trail of one Safehold. All methods may be called from any thread or task."""

    def __init__(self, engine: Engine, most: int = MOST_KEPT) -> None:
        self._engine = engine
        self._numbers = count(1)
        self._acts: deque[Entry] = deque(maxlen=2 * most)  # single atomic steps
        self._blocks: OrderedDict[tuple[str, str, bool], Entry] = OrderedDict()  # written in steps
        self._most = most

    def entries(self, operation: str | None = None) -> tuple[Entry, ...]:
        """Give what is kept, the oldest first; of one operation, or of all."""
        blocks: list[Entry] = self._engine.run(lambda: list(self._blocks.values()), interrupted=list)
        kept = sorted([*self._acts.copy(), *blocks], key=lambda entry: entry.number)
        return tuple(entry for entry in kept if operation in (None, entry.operation))

    def intent(self, operation: str, trigger: str, subject: str | None, scope: str | None) -> Entry:
        """Write that something is about to be done."""
        entry = Entry(
            number=next(self._numbers),
            at=self._engine.clock.wall(),
            operation=operation,
            trigger=trigger,
            outcome=LedgerOutcome.INTENT,
            subject=subject,
            scope=scope,
        )
        self._acts.append(entry)
        return entry

    def outcome(self, intent: Entry, outcome: LedgerOutcome, why: str = "") -> None:
        """Write what became of it."""
        told = replace(
            intent,
            number=next(self._numbers),
            at=self._engine.clock.wall(),
            outcome=outcome,
            intent=intent.number,
            why=why,
        )
        self._acts.append(told)

    def blocked(self, verdict: Verdict, scope: str | None, *, enforced: bool) -> None:
        """Count a block."""
        key = (verdict.operation, verdict.reasons[0].code, enforced)
        at = self._engine.clock.wall()

        def write() -> None:
            known = self._blocks.pop(key, None)
            self._blocks[key] = Entry(
                number=next(self._numbers),
                at=at,
                operation=verdict.operation,
                trigger=str(verdict.trigger),
                outcome=LedgerOutcome.BLOCKED if enforced else LedgerOutcome.WOULD_BLOCK,
                subject=verdict.subject,
                scope=scope,
                reasons=tuple(reason.code for reason in verdict.reasons),
                count=1 if known is None else known.count + 1,
            )
            while len(self._blocks) > self._most:
                self._blocks.popitem(last=False)

        self._engine.run(write)


def outcome_of(error: BaseException | None) -> tuple[LedgerOutcome, str]:
    """Say what became of an act that returned or raised.

    Whoever knows better has written it on the error (`outcome`), as the call sites do. A time-out, a lost
    connection and whatever is no `Exception` leave it open.
    """
    if error is None:
        return LedgerOutcome.DONE, ""
    said = getattr(error, "outcome", None)
    known = said in {"not_executed", "executed"}
    lost = said == "unknown" or isinstance(error, OSError) or not isinstance(error, Exception)
    unknown = lost or "Timeout" in type(error).__name__ or "Connection" in type(error).__name__
    return LedgerOutcome.UNKNOWN if unknown and not known else LedgerOutcome.FAILED, cause_of(error).text
