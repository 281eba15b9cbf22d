"""The gate's shell: registers destructive operations, gathers the facts, asks the core, and acts on it.

An error inside the gate blocks the operation and nothing else: whatever goes wrong while the facts are
gathered or judged becomes a reason of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, cast

from .._core.configuration import ConfigurationError, check_name, check_number
from .._core.evidence import Demand
from .._core.gate import DependencyFacts, Reason, Situation, Trigger, Verdict, blocked_by, decide
from .._core.health import BreakerState, HealthState
from ..errors import OperationBlocked
from . import log
from .handling import finalising, handled
from .kinds import Kinds, around_async_generator, around_generator, named, without_partials
from .ledger import Entry, LedgerOutcome, outcome_of
from .prober import run_errand
from .scope import open_scope
from .subjects import check_subject, subject_reader
from .ticket import Ticket

if TYPE_CHECKING:
    from .dependency import Dependency
    from .safehold import Safehold

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A registered destructive operation: what `destructive` was told, and where the code stands.

    `requires` is `None` when every critical dependency is required.
    """

    name: str
    trigger: Trigger
    requires: tuple[str, ...] | None
    writes: frozenset[str]
    tolerates: frozenset[str]
    subject: str | None
    evidence: str | None
    evidence_age: float
    module: str
    qualname: str
    filename: str
    line: int

    @property
    def place(self) -> str:
        """Where the code stands, for people."""
        return f"{self.qualname} in {self.filename}:{self.line}"

    def same_code(self, other: Operation) -> bool:
        """Whether both come from one place in the source: loaded again, or run as `__main__` as well.

        Lines move when a module is edited and loaded again, so they count for lambdas only.
        """
        lines = self.line == other.line or "<lambda>" not in self.qualname
        return lines and (self.filename, self.qualname) == (other.filename, other.qualname)


class Gate:
    """The decision point of one Safehold."""

    def __init__(self, home: Safehold) -> None:
        self._home = home
        self._began = home._engine.clock.monotonic()
        self._operations: dict[str, Operation] = {}

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All that is registered, by name."""
        return tuple(self._operations[name] for name in sorted(self._operations))

    def reborn(self) -> None:
        """Begin again in a forked child, the start-up grace included."""
        self._began = self._home._engine.clock.monotonic()

    # --- registering ------------------------------------------------------------------------------

    def register(self, operation: Operation) -> None:
        """Add an operation; two of one name raise, unless they are the same code loaded twice."""
        known = self._operations.get(operation.name)
        if known is not None and not known.same_code(operation):
            msg = (
                f"operation {operation.name!r} is registered already, by {known.place}; "
                f"{operation.place} needs another name"
            )
            raise ConfigurationError(msg)
        self._operations[operation.name] = operation

    # --- deciding ---------------------------------------------------------------------------------

    def check(self, name: str, subject: str | None) -> Verdict:
        """Decide, and order the probes that could change the answer. Never raises."""
        try:
            return self._decide(name, subject)
        except Exception as error:  # noqa: BLE001 - cannot tell means no
            return self._fault(name, subject, error)

    def _fault(self, name: str, subject: str | None, error: Exception) -> Verdict:
        log.fault("gate_failed", error, operation=name)
        text = f"the gate itself failed ({type(error).__name__})"
        reason = blocked_by("gate_fault", text, retry_after=None)
        return Verdict(operation=name, trigger=Trigger.AUTOMATIC, subject=subject, reasons=(reason,))

    def admit(self, operation: Operation, subject: str | None) -> Entry:
        """Write the intent and give it, or raise `OperationBlocked`."""
        verdict = self.check(operation.name, subject)
        if verdict.allowed:
            verdict, intent = self._intend(operation, verdict)
            if intent is not None:
                return intent
        faulty = any(reason.code == "gate_fault" for reason in verdict.reasons)
        enforced = faulty or self._home._gate_settings.enforce
        since, elapsed = None, None
        try:
            self._home.ledger.blocked(verdict, _scope_name(), enforced=enforced)
            elapsed = self._home._engine.tell(verdict, enforced=enforced)
            since = self._since(verdict)
        except Exception as error:  # noqa: BLE001 - what cannot be told is blocked all the same
            log.fault("gate_failed", error, operation=operation.name)
        if not enforced:
            verdict, intent = self._intend(operation, verdict)
            if intent is not None:
                return intent
        raise OperationBlocked(operation.name, verdict.reasons, subject, since, elapsed)

    def _intend(self, operation: Operation, verdict: Verdict) -> tuple[Verdict, Entry | None]:
        """Write the intent. What cannot be written is not done."""
        try:
            trigger = str(operation.trigger)
            return verdict, self._home.ledger.intent(operation.name, trigger, verdict.subject, _scope_name())
        except Exception as error:  # noqa: BLE001 - no record, no act
            return self._fault(operation.name, verdict.subject, error), None

    def conclude(self, intent: Entry, outcome: LedgerOutcome, why: str) -> None:
        """Write what became of an act. Never raises: it is done."""
        try:
            self._home.ledger.outcome(intent, outcome, why)
        except Exception as error:  # noqa: BLE001 - the act has its own result
            log.fault("ledger_failed", error, operation=intent.operation)

    def _since(self, verdict: Verdict) -> datetime | None:
        blamed = self._home._known((verdict.reasons[0].dependency,))
        return blamed[0].since if blamed else None

    def _decide(self, name: str, subject: str | None) -> Verdict:
        operation = self._operations.get(name)
        if operation is None:
            reason = blocked_by("not_registered", f"no operation {name!r} is registered", retry_after=None)
            return Verdict(operation=name, trigger=Trigger.AUTOMATIC, subject=subject, reasons=(reason,))
        engine, settings = self._home._engine, self._home._gate_settings
        around, end, scope = handled(), finalising(), open_scope()
        scope_facts = None if scope is None else scope.facts()
        named_there = () if scope_facts is None else (*scope_facts.taints, *scope_facts.in_flight)
        required = self._home._required(operation.requires, operation.writes)
        known = {d.name: d for d in self._home._known(named_there)}
        now, draw, offset = engine.clock.monotonic(), engine.rng.random(), engine.offset()

        def judge() -> tuple[tuple[Reason, ...], tuple[Reason, ...], list[Dependency]]:
            for dependency in (*required, *known.values()):
                dependency._breaker.tick(now, draw=draw)
            facts = tuple(dependency._facts(now, offset) for dependency in required)
            reasons, remarks = decide(
                Situation(
                    operation=name,
                    trigger=operation.trigger,
                    requires=facts,
                    requires_nothing=operation.requires == (),
                    writes=operation.writes,
                    evidence=self._demand(operation, subject, now),
                    tolerates=operation.tolerates,
                    scope=scope_facts,
                    states={name: d._breaker.health(now) for name, d in known.items()},
                    handling=", ".join(f"{d}: {why}" for d, why in around.failures.items()) or None,
                    interrupted=around.interrupted,
                    finalising=end,
                    startup_left=max(0.0, self._began + settings.startup_grace - now),
                ),
                settings,
            )
            wanting = [d for d, f in zip(required, facts, strict=True) if _wants_proof(f) and d._order()]
            return reasons, remarks, wanting

        reasons, remarks, ordered = engine.run(judge, interrupted=_in_between)  # one instant for all
        for dependency in required:
            dependency._settled()
        for dependency in ordered:
            self._probe(dependency)
        return Verdict(
            operation=name, trigger=operation.trigger, subject=subject, reasons=reasons, remarks=remarks
        )

    def _demand(self, operation: Operation, subject: str | None, now: float) -> Demand | None:
        """Give what the operation asks of its evidence, and what there is. A step."""
        if operation.evidence is None:
            return None
        witnesses = self._home._witnesses
        seen = witnesses.about(operation.evidence, subject)
        demand = Demand(
            witness=operation.evidence,
            subject=subject,
            known=witnesses.knows(operation.evidence),
            max_age=operation.evidence_age,
            seen=seen,
        )
        if seen is None:
            return demand
        breaker, scope = self._home[seen.dependency]._breaker, open_scope()
        missed = breaker.last_miss
        return demand._replace(
            age=max(0.0, now - seen.asked),
            same_scope=seen.scope in ([None] if scope is None else [s.number for s in scope.lineage()]),
            same_generation=seen.generation == breaker.era.generation.number,
            miss_since=missed is not None and missed >= seen.asked,
        )

    def _probe(self, dependency: Dependency) -> None:
        if self._home._engine.probing:
            self._home._engine.wake()
        else:
            run_errand(dependency)


def _in_between() -> NoReturn:
    """Refuse to tell anything: a signal handler or finaliser asks in the middle of a step."""
    msg = "asked in the middle of a step"
    raise RuntimeError(msg)


def _wants_proof(facts: DependencyFacts) -> bool:
    """Whether a probe could end what blocks: nothing known, a miss, an unsettled recovery, a due trial."""
    if not facts.declared:
        return False
    if facts.breaker is not BreakerState.CLOSED:
        return facts.retry_after == 0
    return facts.state is not HealthState.HEALTHY or facts.unresolved_miss


def make_operation(
    function: Any,
    name: str,
    *,
    trigger: str,
    requires: Collection[str] | None,
    writes: Collection[str],
    tolerates: Collection[str],
    subject: str | None,
    evidence: str | None,
    evidence_age: float,
) -> Operation:
    """Check what `destructive` was told, at once, and find out where the code stands."""
    check_name("operation name", name)
    if trigger not in tuple(Trigger):
        msg = f'trigger must be "automatic" or "requested", got {trigger!r}'
        raise ConfigurationError(msg)
    required = None if requires is None else _names("requires", requires)
    written = frozenset(_names("writes", writes))
    if required is not None and (other := written.difference(required)):
        msg = f"writes={sorted(written)!r} names {sorted(other)!r}, which requires={required!r} does not"
        raise ConfigurationError(msg)
    tolerated = frozenset(_names("tolerates", tolerates))
    if both := tolerated.intersection(required or ()):
        msg = f"requires={required!r} and tolerates={sorted(tolerated)!r} both name {sorted(both)!r}"
        raise ConfigurationError(msg)
    if evidence is not None:
        check_name("evidence", evidence)
        if subject is None:
            msg = f"evidence={evidence!r} of {name!r} needs subject=: what shall it testify about?"
            raise ConfigurationError(msg)
    check_number("evidence_age", evidence_age, above=0)
    if subject is not None:
        check_subject(function, name, subject)
    inner = without_partials(function)
    code = getattr(inspect.unwrap(inner), "__code__", None)
    return Operation(
        name=name,
        trigger=Trigger(trigger),
        requires=required,
        writes=written,
        tolerates=tolerated,
        subject=subject,
        evidence=evidence,
        evidence_age=evidence_age,
        module=str(getattr(inner, "__module__", "")),
        qualname=str(getattr(inner, "__qualname__", type(inner).__qualname__)),
        filename="" if code is None else code.co_filename,
        line=0 if code is None else code.co_firstlineno,
    )


def _names(what: str, names: Collection[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(cast("object", names), Collection):
        msg = f"{what} must be a list of dependency names, got {names!r}"
        raise ConfigurationError(msg)
    for name in names:
        check_name(f"a name in {what}", name)
    return tuple(dict.fromkeys(names))


def gated(function: Any, gate: Gate, operation: Operation) -> Any:
    """Give the gated form of a function, coroutine function, generator or async generator."""
    read_subject = subject_reader(function, operation.subject)

    def act(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Act:
        return Act(gate, operation, read_subject(args, kwargs))

    def stepwise(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Act:
        return Act(gate, operation, read_subject(args, kwargs), stepwise=True)

    kinds = Kinds(function)
    if kinds.is_generator or kinds.is_async_generator:
        around = around_generator if kinds.is_generator else around_async_generator
        return named(around(function, stepwise), function)
    return named((_gate_async if kinds.is_async else _gate)(function, act), function)


def _gate(function: Any, act: Callable[[Any, Any], Act]) -> Callable[..., Any]:
    def destructive(*args: Any, **kwargs: Any) -> Any:
        with act(args, kwargs) as this:
            result = function(*args, **kwargs)
            if not inspect.iscoroutine(result):
                return result
            this.deferred = True
        return ended(result, args, kwargs)

    async def ended(coroutine: Any, args: Any, kwargs: Any) -> Any:
        """Await what a plain function gave: nothing was done yet, so it is decided again."""
        try:
            with act(args, kwargs):
                return await coroutine
        finally:
            coroutine.close()  # blocked, it was never begun

    return destructive


def _gate_async(function: Any, act: Callable[[Any, Any], Act]) -> Callable[..., Any]:
    async def destructive(*args: Any, **kwargs: Any) -> Any:
        with act(args, kwargs):
            return await function(*args, **kwargs)

    return destructive


class Act:
    """One act: entering asks the gate and writes the intent, leaving writes what became of it.

    A generator's is entered at its first step, and its ticket is shown for one step at a time.
    """

    __slots__ = ("_gate", "_intent", "_operation", "_subject", "_ticket", "deferred")

    def __init__(
        self, gate: Gate, operation: Operation, subject: str | None, *, stepwise: bool = False
    ) -> None:
        self._gate = gate
        self._operation = operation
        self._subject = subject
        self._ticket = None if stepwise else Ticket(operation.name)
        self.deferred = False

    def __enter__(self) -> Self:
        self._intent = self._gate.admit(self._operation, self._subject)
        if self._ticket is not None:
            self._ticket.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ticket is not None:
            self._ticket.__exit__(None, None, None)
        outcome, why = (LedgerOutcome.DEFERRED, "") if self.deferred else outcome_of(error)
        self._gate.conclude(self._intent, outcome, why)

    def sharing(self) -> AbstractContextManager[object]:
        return Ticket(self._operation.name)

    def abandon(self) -> None:
        pass


def _scope_name() -> str | None:
    scope = open_scope()
    return None if scope is None else scope.name
