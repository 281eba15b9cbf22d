"""Sweeps: periodic clean-up that nominates, confirms, waits while it watches, confirms again, and then acts.

A round is written once, as a generator that yields what has to be called; a thread calls it, or a task awaits
it. Everything that a round destroys goes through the gate of its operation, one by one.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterable, Callable, Generator, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .._core.configuration import ConfigurationError, check_count, check_name, check_number
from .._core.evidence import ABSENT, PRESENT, UNKNOWN, Evidence, Presence
from .._core.gate import Reason, Trigger
from .._core.sweep import Marks, SweepSettings
from ..errors import OperationBlocked
from . import log
from .acts import making_of
from .describe import words_of
from .grants import Grant
from .ledger import LedgerOutcome, outcome_of
from .observer import watch
from .plans import Plan, judged, plan_of
from .questions import Questions, aask, ask
from .scope import Scope
from .witness import name_of_witness

if TYPE_CHECKING:
    from .dependency import Dependency
    from .safehold import Safehold

MOST_EXAMPLES: Final = 100
"""Subjects that a report names one by one; the others are counted."""
_HIDDEN: Final = frozenset({"population_unknown", "population_collapsed"})  # then no reading is believed


class Swept(NamedTuple):
    """A subject that was ripe, what became of it, and why."""

    subject: str
    outcome: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What one round found and did.

    `nominated`, `present`, `absent`, `unknown` and `ripe` count subjects; `outcomes` counts what became of
    those that were ripe (`done`, `failed`, `unknown`, `spared`, `held`), and `examples` names the first
    hundred. `plan` holds what was ripe, with the digest that a person may approve. `reasons` say why the
    round acted on nothing, or stopped; `tainted` names what did not answer in it, `error` what failed
    otherwise, such as `nominate`.
    """

    sweep: str
    operation: str
    dry_run: bool
    seconds: float
    nominated: int = 0
    present: int = 0
    absent: int = 0
    unknown: int = 0
    marked: int = 0
    ripe: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    examples: tuple[Swept, ...] = ()
    plan: Plan | None = None
    reasons: tuple[Reason, ...] = ()
    tainted: tuple[str, ...] = ()
    error: str = ""

    @property
    def done(self) -> int:
        """How many were destroyed."""
        return self.outcomes.get("done", 0)

    @property
    def retry_after(self) -> float | None:
        """Seconds until what held it back may be over; `None` when a person has to end it."""
        waits = [reason.retry_after for reason in self.reasons]
        return None if None in waits else max((wait for wait in waits if wait is not None), default=0.0)

    def __str__(self) -> str:
        text = (
            f"{self.sweep}: {self.nominated} nominated, {self.present} present, {self.absent} absent, "
            f"{self.unknown} unknown, {self.marked} marked, {self.ripe} ripe"
        )
        told = ", ".join(f"{count} {outcome}" for outcome, count in self.outcomes.items())
        why = self.error or "; ".join(reason.text for reason in self.reasons)
        return text + (f"; {told}" if told else "") + (f" ({why})" if why else "")


class _Round:
    """What is gathered while a round runs."""

    def __init__(self) -> None:
        self.counts: Counter[Presence] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.examples: list[Swept] = []
        self.facts: dict[str, Any] = {}

    def tell(self, subject: str, outcome: str, why: str = "") -> None:
        self.outcomes[outcome] += 1
        if len(self.examples) < MOST_EXAMPLES:
            self.examples.append(Swept(subject, outcome, why))


class BaseSweep:
    """What a `Sweep` and an `AsyncSweep` share."""

    def __init__(
        self,
        home: Safehold,
        function: Callable[..., Any],
        *,
        nominate: Callable[[], Any],
        confirm: Callable[..., Any],
        every: float,
        wait: float,
        confirmations: int,
        pace: float,
        dry_run: bool,
        name: str | None,
        progress: Callable[[Swept], object] | None,
    ) -> None:
        making, first, named = making_of(function)
        operation = making.operation
        self.name = operation.name if name is None else name
        check_name("sweep name", self.name)
        check_number("every", every, above=0)
        check_number("wait", wait, least=0)
        check_count("confirmations", confirmations)
        check_number("pace", pace, least=0)
        if operation.trigger is not Trigger.AUTOMATIC:
            msg = f"sweep of {operation.name!r}: a sweep is no person's wish, register it as automatic"
            raise ConfigurationError(msg)
        if operation.subject is None:
            msg = f"sweep of {operation.name!r} needs an operation with subject="
            raise ConfigurationError(msg)
        witness = name_of_witness(confirm)
        if witness is None:
            msg = f"confirm must be a witness (@health.witness), got {confirm!r}"
            raise ConfigurationError(msg)
        if operation.evidence not in (None, witness):
            msg = f"confirm is {witness!r}, but {operation.name!r} demands evidence={operation.evidence!r}"
            raise ConfigurationError(msg)
        for what, value in (("nominate", nominate), ("progress", progress)):
            if value is not None and not callable(value):
                msg = f"{what} must be callable, got {value!r}"
                raise ConfigurationError(msg)
        self.operation = operation
        self.every = float(every)
        self.dry_run = dry_run
        self._home = home
        self._function = partial(function, *first, **named) if first or named else function
        self._nominate, self._confirm, self._progress = nominate, confirm, progress
        self._pace = float(pace)
        self._marks = Marks(SweepSettings(confirmations=confirmations, wait=float(wait), gap=float(every)))
        self._kept = home._records.keep_marks(self.name, self._marks)
        self._alone = threading.Lock()

    @property
    def marked(self) -> int:
        """How many subjects are marked."""
        return len(self._marks)

    def _round(self, grant: Grant | None, sleep: Callable[[float], Any]) -> Questions[SweepReport]:
        """Do one round: the questions and acts are yielded, one at a time."""
        if not self._alone.acquire(blocking=False):
            msg = f"a round of sweep {self.name!r} is under way"
            raise ConfigurationError(msg)
        try:
            self._home._gate.watch()
            clock = self._home._engine.clock
            began, this = clock.monotonic(), _Round()
            with Scope(f"sweep {self.name}"[:200]) as scope:
                try:
                    yield from self._steps(this, grant, scope, sleep)
                except Exception as error:  # noqa: BLE001 - a round that fails does nothing, and harms nobody
                    log.fault("sweep_failed", error, sweep=self.name)
                    this.facts["error"] = words_of(error)
            return SweepReport(
                sweep=self.name,
                operation=self.operation.name,
                dry_run=self.dry_run,
                seconds=clock.monotonic() - began,
                present=this.counts[PRESENT],
                absent=this.counts[ABSENT],
                unknown=this.counts[UNKNOWN],
                marked=len(self._marks),
                outcomes=dict(this.outcomes),
                examples=tuple(this.examples),
                tainted=tuple(scope.taints),
                **this.facts,
            )
        finally:
            self._alone.release()

    def _steps(
        self, this: _Round, grant: Grant | None, scope: Scope, sleep: Callable[[float], Any]
    ) -> Generator[Callable[[], Any], Any, None]:
        gate, operation = self._home._gate, self.operation
        population = yield from gate.questions(operation)
        try:
            subjects = _explicit((yield partial(_collect, self._nominate)))
        except Exception:
            self._learn({}, clean=False)
            raise
        readings: dict[str, Presence] = {}
        for name, subject in subjects.items():
            evidence = yield from self._ask(subject)
            this.counts[evidence.presence] += 1
            readings[name] = evidence.presence
        gone = [name for name in subjects if readings[name] is not PRESENT]
        reasons = () if scope.tainted else judged(gate, operation, gone, population)  # else nothing is learnt
        believed = not any(reason.code in _HIDDEN for reason in reasons)
        ripe = self._learn(readings, clean=believed and not scope.tainted)
        plan = plan_of(gate, operation, ripe, reasons)
        this.facts |= {"nominated": len(subjects), "ripe": len(ripe), "plan": plan}
        approved = grant is not None and grant.plan == plan.digest
        if not plan.allowed and not approved:
            this.facts["reasons"] = plan.reasons
            gate.tell_plan(operation, plan.verdict)
            for name in ripe:
                self._tell(this, name, "held", plan.reasons[0].text)
        elif not self.dry_run:
            chosen = {name: subjects[name] for name in ripe}
            yield from self._act(this, chosen, grant if approved else None, scope, sleep)

    def _ask(self, subject: Any) -> Questions[Evidence]:
        evidence = yield partial(self._confirm, subject)
        if not isinstance(evidence, Evidence):
            msg = f"confirm gave a {type(evidence).__name__}, no evidence"
            raise ConfigurationError(msg)
        return evidence

    def _learn(self, readings: dict[str, Presence], *, clean: bool) -> list[str]:
        """Move the marks, and give what is ripe."""
        home, now = self._home, self._home._engine.clock.monotonic()
        required = self._sources()
        sick = watch.void_before(home._gate_settings.stall_after) if home._gate.is_watched else None
        ends = [sick, *(dependency._breaker.last_miss for dependency in required)]
        well_since = max((end for end in ends if end is not None), default=-math.inf)
        ripe = self._marks.round(
            readings,
            now,
            clean=clean,
            well_since=well_since if all(dependency._is_well for dependency in required) else None,
            stamp={d.name: d.epoch_stamp for d in required if d.epoch_stamp},
        )
        self._kept()
        return ripe

    def _sources(self) -> list[Dependency]:
        """Give what the operation requires, and what the witness asks."""
        home = self._home
        asked = home._witnesses.asks(str(name_of_witness(self._confirm)))
        required = home._gate.needs(self.operation).required
        return list(dict.fromkeys([*required, *([] if asked is None else [home[asked]])]))

    def _act(
        self,
        this: _Round,
        ripe: dict[str, Any],
        grant: Grant | None,
        scope: Scope,
        sleep: Callable[[float], Any],
    ) -> Generator[Callable[[], Any], Any, None]:
        """Act on one after the other, in random order. What would stop all of them ends the round."""
        left = list(ripe)
        self._home._engine.rng.shuffle(left)
        marks = self._marks.take(ripe)  # and written down before the first act: a crash leaves none behind
        self._kept()
        try:
            while left and not scope.tainted:
                name = left.pop()
                ended = yield from self._act_on(this, name, ripe[name], grant)
                if ended:
                    left.append(name)
                    break
                if left and self._pace:
                    yield partial(sleep, self._pace)
            for name in left:
                this.tell(name, "held", "the round stopped before it")
        finally:
            self._marks.put_back({name: marks[name] for name in left})
            self._kept()

    def _act_on(
        self, this: _Round, name: str, subject: Any, grant: Grant | None
    ) -> Generator[Callable[[], Any], Any, bool]:
        """Look once more, act on one, and say whether all that follow are held back by the same."""
        evidence = yield from self._ask(subject)
        if evidence.presence is PRESENT:
            self._tell(this, name, "spared", "it is there again")
        if evidence.presence is UNKNOWN:
            self._tell(this, name, "held", f"it cannot be told whether it is there ({evidence.why})")
        if evidence.presence is not ABSENT:
            return False
        try:
            yield self._call(subject, grant)
        except OperationBlocked as blocked:
            this.facts["reasons"] = blocked.reasons
            alone = all(reason.code.startswith("evidence_") for reason in blocked.reasons)
            self._tell(this, name, "held", str(blocked))
            return not alone
        except Exception as error:  # noqa: BLE001 - the operation's own; the round goes on
            outcome, why = outcome_of(error)
            self._tell(this, name, str(outcome), why)
        else:
            self._tell(this, name, str(LedgerOutcome.DONE))
        return False

    def _call(self, subject: Any, grant: Grant | None) -> Callable[[], Any]:
        """Give the call of the operation for one subject."""
        named = {str(self.operation.subject): subject}
        if grant is None:
            return partial(self._function, **named)
        return partial(self._home.force, grant, self._function, **named)

    def _tell(self, this: _Round, subject: str, outcome: str, why: str = "") -> None:
        this.tell(subject, outcome, why)
        if self._progress is not None:
            try:
                self._progress(Swept(subject, outcome, why))
            except Exception as error:  # noqa: BLE001 - a listener harms nobody
                log.fault("listener_failed", error, listener=f"progress of sweep {self.name}")

    def _pause(self, report: SweepReport) -> float:
        """Give the seconds until the next round: never in step with others, and late after a block."""
        wait = max(self.every, report.retry_after or 0.0)
        return wait * (1 + 0.1 * self._home._engine.rng.random())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self.operation.name}, {self.marked} marked>"


class Sweep(BaseSweep):
    """A sweep of an operation that is a plain function. Made by `health.sweep`."""

    def run_once(self, *, grant: Grant | None = None) -> SweepReport:
        """Do one round now and say what it did. With a grant for its plan it acts in spite of the budget."""
        return ask(self._round(grant, time.sleep))

    def run(self, stop: threading.Event | None = None) -> None:
        """Do a round every `every` seconds until `stop` is set. It blocks; give it a thread of its own."""
        stop = threading.Event() if stop is None else stop
        while not stop.is_set():
            stop.wait(self._pause(self.run_once()))


class AsyncSweep(BaseSweep):
    """A sweep of an operation that is a coroutine function. Made by `health.sweep`."""

    async def run_once(self, *, grant: Grant | None = None) -> SweepReport:
        """Do one round now and say what it did. With a grant for its plan it acts in spite of the budget."""
        return await aask(self._round(grant, asyncio.sleep))

    async def run(self) -> None:
        """Do a round every `every` seconds until the task is cancelled."""
        while True:
            report = await self.run_once()
            await asyncio.sleep(self._pause(report))


def _collect(nominate: Callable[[], Any]) -> Any:
    given = nominate()
    return _gathered(given) if isinstance(given, AsyncIterable) else given


async def _gathered(given: AsyncIterable[Any]) -> list[Any]:
    return [subject async for subject in given]


def _explicit(given: Any) -> dict[str, Any]:
    """Give what was nominated, each once, by its name. Nothing but a series of subjects nominates any."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        msg = f"nominate gave a {type(given).__name__}, no series of subjects"
        raise ConfigurationError(msg)
    subjects: dict[str, Any] = {}
    for subject in given:
        if subject is None or not str(subject).strip():
            msg = f"nominate gave {subject!r}, which is no subject"
            raise ConfigurationError(msg)
        subjects.setdefault(str(subject), subject)
    return subjects
