"""The audit trail of destructive operations: what was about to be done, and what became of it.

The intent is written before the act and the outcome after it. Blocks are written as well; those of one
operation for one reason are one line that counts, so that a sweep that is blocked a hundred thousand times
costs one line. The newest `most` acts and `most` kinds of blocks are kept in memory; with a path, everything
is also in a journal, and an act that cannot be written there is not done.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from .._core.gate import Verdict
from . import log
from .describe import cause_of
from .events import ForcedAct

if TYPE_CHECKING:
    from .engine import Engine
    from .journal import Journal

MOST_KEPT: Final = 1000


class LedgerOutcome(StrEnum):
    """What a line of the ledger says.

    `intent`: about to be done. `done`: it returned. `failed`: it raised, and says that it did nothing or that
    it was wrong. `unknown`: it was given up or lost, so nobody knows; do not try again blindly. `blocked`: it
    has not run. `would_block`: it has run, because the gate observes. `deferred`: it gave something to be
    awaited, which has a line of its own. `noted`: a person did something, such as making a grant.
    """

    INTENT = "intent"
    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"
    BLOCKED = "blocked"
    WOULD_BLOCK = "would_block"
    DEFERRED = "deferred"
    NOTED = "noted"


_INTENT, _DEFERRED = LedgerOutcome.INTENT, LedgerOutcome.DEFERRED  # an enumeration takes its time


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line. `number` orders all of them; `intent` is the number of the act's first line.

    `at` is Unix time; of an entry that counts, of the newest. `reasons` are the codes that blocked, or that a
    grant overrode; `why` is what an act raised, or a person's reason, in a few words. `evidence` is what the
    witness said, `grant` the id of the grant that was used, `generations` those of the required dependencies.
    `count` is how often it happened.
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
    actor: str | None = None
    grant: str | None = None
    evidence: str | None = None
    generations: tuple[tuple[str, int], ...] = ()
    count: int = 1


_FIELDS: Final = tuple(field.name for field in fields(Entry))
_GRANT: Final = _FIELDS.index("grant")


Line = tuple[Any, ...]
"""The fields of an entry, in their order; those at the end may be missing. What is kept is read rarely."""
Intent = tuple[Line, int | None]
"""The first line of an act, and its number in the journal."""


def subject_of(intent: Intent) -> str | None:
    """Name what an act is about."""
    subject: str | None = intent[0][_FIELDS.index("subject")]
    return subject


class Ledger:
    """The trail of one Safehold. All methods may be called from any thread or task."""

    def __init__(self, engine: Engine, most: int = MOST_KEPT) -> None:
        self._engine = engine
        self._numbers = count(1)
        self._acts: deque[Line] = deque(maxlen=2 * most)  # fields of entries; single atomic steps
        self._blocks: OrderedDict[tuple[str, str, bool], Line] = OrderedDict()  # written in steps
        self._most = most
        self._journal: Journal | None = None
        self.executed: dict[tuple[str, LedgerOutcome], count[int]] = {}  # acts that ended

    def keep(self, path: Path) -> None:
        """Write everything to a journal, too. What earlier processes left open is told as unknown."""
        from .journal import Journal  # noqa: PLC0415 - most ledgers are in memory

        self._journal = journal = Journal(path)
        try:
            journal.prepare()
            journal.reconcile()
        except OSError as error:  # what cannot be written is not done; the application runs on
            log.fault("ledger_failed", error, path=str(path))

    @property
    def path(self) -> Path | None:
        """Where the journal is; `None` when the ledger is kept in memory alone."""
        return None if self._journal is None else self._journal.path

    def reborn(self) -> None:
        """Begin again in a forked child: the parent's lines are the parent's."""
        self._acts.clear()
        self._blocks.clear()
        self.executed.clear()
        if self._journal is not None:
            self._journal.reborn()

    def entries(self, operation: str | None = None) -> tuple[Entry, ...]:
        """Give what is kept in memory, the oldest first; of one operation, or of all."""
        blocks: list[Any] = self._engine.run(lambda: list(self._blocks.values()), interrupted=list)
        kept = sorted([*map(_line, self._acts.copy()), *blocks], key=lambda line: line[0])
        entries = (Entry(**dict(zip(_FIELDS, line, strict=False))) for line in kept)
        return tuple(entry for entry in entries if operation in (None, entry.operation))

    def blocked_since(self, at: float) -> dict[str, tuple[str, ...]]:
        """Give the operations that were blocked since a Unix time, with the codes of the newest block."""
        blocks: list[Line] = self._engine.run(lambda: list(self._blocks.values()), interrupted=list)
        return {line[2]: line[8] for line in blocks if line[1] >= at and line[4] is LedgerOutcome.BLOCKED}

    def intent(
        self,
        operation: str,
        trigger: str,
        subject: str | None,
        scope: str | None,
        *more: Any,
    ) -> Intent:
        """Write that something is about to be done. `more` are the fields of an entry from `reasons` on."""
        line = (
            next(self._numbers), self._engine.clock.wall(), operation, trigger, _INTENT, subject,
            scope, None, *more,
        )  # fmt: skip
        journal = self._journal
        sequence = None if journal is None else self._write(journal, line, durable=True)
        self._acts.append(line)
        return line, sequence

    def outcome(self, intent: Intent, outcome: LedgerOutcome, why: str = "") -> None:
        """Write what became of it."""
        line = intent[0]
        told = (next(self._numbers), self._engine.clock.wall(), outcome, why, line)
        self._acts.append(told)
        if self._journal is not None:
            self._write(self._journal, _line(told), durable=False, intent=intent[1])
        if outcome is not _DEFERRED:  # else it has a line of its own
            try:
                next(self.executed[line[2], outcome])
            except KeyError:
                next(self.executed.setdefault((line[2], outcome), count()))
            if len(line) > _GRANT and line[_GRANT] is not None:
                self._engine.post(_forced(line, outcome, self._engine.clock.monotonic()))

    def note(
        self,
        operation: str,
        why: str,
        actor: str,
        *,
        subject: str | None = None,
        reasons: Sequence[str] = (),
        grant: str | None = None,
    ) -> None:
        """Write what a person did, before it takes effect."""
        line = (
            next(self._numbers), self._engine.clock.wall(), operation, "requested", LedgerOutcome.NOTED,
            subject, None, None, tuple(reasons), why, actor, grant,
        )  # fmt: skip
        if self._journal is not None:
            self._write(self._journal, line, durable=True)
        self._acts.append(line)

    def blocked(self, verdict: Verdict, scope: str | None, *, enforced: bool) -> None:
        """Count a block."""
        key = (verdict.operation, verdict.reasons[0].code, enforced)
        at = self._engine.clock.wall()

        def write() -> Line:
            known = self._blocks.pop(key, None)
            self._blocks[key] = line = (
                next(self._numbers),
                at,
                verdict.operation,
                str(verdict.trigger),
                LedgerOutcome.BLOCKED if enforced else LedgerOutcome.WOULD_BLOCK,
                verdict.subject,
                scope,
                None,
                tuple(reason.code for reason in verdict.reasons),
                "", None, None, None, (),
                1 if known is None else known[-1] + 1,
            )  # fmt: skip
            while len(self._blocks) > self._most:
                self._blocks.popitem(last=False)
            return line

        line = cast("Line | None", self._engine.run(write))  # it may have to wait
        if self._journal is not None and line is not None and line[-1].bit_count() == 1:  # 1, 2, 4, 8, ...
            try:
                self._write(self._journal, line, durable=False)
            except Exception as error:  # noqa: BLE001 - it is blocked all the same
                log.fault("ledger_failed", error, operation=verdict.operation)

    def _write(self, journal: Journal, line: Line, *, durable: bool, intent: int | None = None) -> int:
        told = {
            name: value for name, value in zip(_FIELDS, line, strict=False) if value not in (None, (), "")
        }
        del told["number"]  # the journal counts for itself, over all processes
        told["outcome"] = str(told["outcome"])
        told.pop("intent", None)
        if intent is not None:
            told["intent"] = intent
        return journal.append(told, durable=durable)


def _line(kept: Line) -> Line:
    """Give a line in full: an outcome is kept with the line of its intent."""
    if not isinstance(kept[-1], tuple) or len(kept) != 5:
        return kept
    number, at, outcome, why, intent = kept
    told, _, operation, trigger, _, subject, scope, *more = intent
    return (number, at, operation, trigger, outcome, subject, scope, told, (), why, *more[3:])


def _forced(line: Line, outcome: LedgerOutcome, now: float) -> ForcedAct:
    entry = Entry(**dict(zip(_FIELDS, line, strict=False)))
    return ForcedAct(
        operation=entry.operation,
        trigger=str(entry.trigger),
        subject=entry.subject,
        actor=str(entry.actor),
        reason=entry.why,
        grant=str(entry.grant),
        overridden=entry.reasons,
        outcome=str(outcome),
        at=now,
    )


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
