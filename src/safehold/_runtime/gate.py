"""The gate's shell: gathers the facts, asks the core, and acts on what it says.

An error inside the gate blocks the operation and nothing else: whatever goes wrong while the facts are
gathered or judged becomes a reason of its own.

An operation that asks for nothing but health takes a short cut: where everything is plainly well, there is
nothing to judge. Whatever is not plainly well goes to the core, which alone can say no.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from math import inf
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from .._core.budget import Budget, Finding, Population
from .._core.configuration import ConfigurationError
from .._core.evidence import Demand
from .._core.gate import SELF, DependencyFacts, Reason, Situation, Trigger, Verdict, blocked_by, decide
from .._core.health import BreakerState, HealthState
from ..errors import OperationBlocked
from . import log
from .budgets import population_of
from .clock import SystemClock
from .describe import cause_of, words_of
from .handling import finalising, handled
from .ledger import Intent, LedgerOutcome, subject_of
from .observer import watch
from .operations import Operation
from .prober import run_errand
from .questions import Questions
from .scope import Scope, open_scope, scopes_open

if TYPE_CHECKING:
    from .dependency import Dependency
    from .grants import Grant
    from .safehold import Safehold


_OURS = 3  # frames of the gate's own between an act and the question whether all is plainly well


class Needs(NamedTuple):
    """The dependencies that an operation requires, as of one number of declarations."""

    declarations: int
    required: tuple[Dependency, ...]
    simple: bool  # whether health is all that there is to ask


class Gate:
    """The decision point of one Safehold."""

    def __init__(self, home: Safehold) -> None:
        self._home = home
        self._operations: dict[str, Operation] = {}
        self._needs: dict[str, Needs] = {}
        self.is_watched = isinstance(home._engine.clock, SystemClock)  # no watch over time that is made up
        self.reborn()

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All that is registered, by name."""
        return tuple(self._operations[name] for name in sorted(self._operations))

    @property
    def off(self) -> frozenset[str]:
        """The rules that a test build has switched off."""
        return self._home._gate_settings.off

    def reborn(self) -> None:
        """Begin, also in a forked child: the start-up grace begins again."""
        self._began = self._home._engine.clock.monotonic()
        self._grace_is_over = False

    # --- registering ------------------------------------------------------------------------------

    def watch(self) -> None:
        """See to it that somebody watches this process while it works."""
        if self.is_watched:
            watch.ensure()
            watch.ensure_loop()

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
        self._needs.pop(operation.name, None)

    def operation(self, name: str) -> Operation:
        """Give a registered operation; raises `ConfigurationError` when there is none of this name."""
        operation = self._operations.get(name)
        if operation is None:
            known = ", ".join(sorted(self._operations)) or "none"
            msg = f"no operation {name!r} is registered; there are: {known}"
            raise ConfigurationError(msg)
        return operation

    def needs(self, operation: Operation) -> Needs:
        """Give what an operation requires at present."""
        needs = self._needs.get(operation.name)
        if needs is None or needs.declarations != self._home._declarations:
            declarations = self._home._declarations
            required = tuple(self._home._required(operation.requires, operation.writes))
            simple = operation.evidence is None and operation.budget is None
            simple = simple and not any(dependency._epoch_function for dependency in required)
            needs = self._needs[operation.name] = Needs(declarations, required, simple)
        return needs

    # --- deciding ---------------------------------------------------------------------------------

    def check(self, name: str, subject: str | None) -> Verdict:
        """Decide, and order the probes that could change the answer. Never raises, and nominates nothing.

        Of a budget it sees what holds for any subject: a trip, a lost state, a cap that is reached.
        """
        operation = self._operations.get(name)
        if operation is None:
            reason = blocked_by("not_registered", f"no operation {name!r} is registered", retry_after=None)
            return Verdict(operation=name, trigger=Trigger.AUTOMATIC, subject=subject, reasons=(reason,))
        try:
            found = self._standing(operation)
        except Exception as error:  # noqa: BLE001 - cannot tell means no
            return _fault(operation, subject, error)
        return self._judge(operation, subject, None, found)

    def _standing(self, operation: Operation) -> tuple[Finding, ...]:
        budget, now = operation.budget, self._home._engine.clock.monotonic()
        if budget is None or finalising() is not None:
            return ()
        automatic = operation.trigger is Trigger.AUTOMATIC
        return self._home._budgets.look(
            operation.subject_type, lambda tally: tally.standing(budget, now, automatic=automatic)
        )

    def admit_at_once(self, operation: Operation, subject: str | None) -> Intent | None:
        """Write the intent and give it where there is nothing to judge, `None` elsewhere."""
        if not self._is_plainly_well(operation):
            return None
        try:
            scope, ledger = _scope_name() if scopes_open else None, self._home._ledger
            if ledger.path is None:
                return ledger.intent(operation.name, operation.trigger, subject, scope)
            told = ((), "", None, None, None, self._generations(operation))
            return ledger.intent(operation.name, operation.trigger, subject, scope, *told)
        except (OSError, ConfigurationError):  # tried once more on the long way, which can say why
            return None

    def admit(
        self,
        operation: Operation,
        subject: str | None,
        grant: Grant | None,
        population: Population | None,
    ) -> Intent:
        """Write the intent and give it, or raise `OperationBlocked`."""
        found = self.nominate(operation, (subject,), population)
        verdict = self._judge(operation, subject, grant, found)
        if not verdict.allowed:
            if self._is_enforced(verdict):
                self._refuse(operation, verdict)
            self._tell(operation, verdict, enforced=False)
        intent = self._intend(operation, verdict, grant)
        if isinstance(intent, Verdict):
            self._refuse(operation, intent)
        return intent

    def recheck(self, operation: Operation, subject: str | None, grant: Grant | None) -> None:
        """Decide again in the middle of an act: raises `OperationBlocked` when it must not go on."""
        verdict = self._judge(operation, subject, grant, (), runs=True)
        if not verdict.allowed and self._is_enforced(verdict):
            self._refuse(operation, verdict)

    def refuse(self, operation: Operation, subject: str | None, error: Exception) -> NoReturn:
        """Block an act because the gate itself failed."""
        self._refuse(operation, _fault(operation, subject, error))

    def tell_plan(self, operation: Operation, verdict: Verdict) -> None:
        """Write down and tell that a plan was blocked as a whole."""
        self._tell(operation, verdict, enforced=True)

    def _is_enforced(self, verdict: Verdict) -> bool:
        """Whether it is more than an observation; what the gate cannot do itself always is."""
        own = {"gate_fault", "ledger_unavailable", "grant_invalid"}
        return self._home._gate_settings.enforce or any(reason.code in own for reason in verdict.reasons)

    def _refuse(self, operation: Operation, verdict: Verdict) -> NoReturn:
        since, elapsed = self._tell(operation, verdict, enforced=True)
        raise OperationBlocked(operation.name, verdict.reasons, verdict.subject, since, elapsed)

    def _tell(
        self, operation: Operation, verdict: Verdict, *, enforced: bool
    ) -> tuple[datetime | None, Callable[[], float] | None]:
        """Write a block down and tell the listeners; give since when, and a clock that starts now."""
        since, elapsed = None, None
        try:
            self._home._ledger.blocked(verdict, _scope_name(), enforced=enforced)
            elapsed = self._home._engine.tell(verdict, enforced=enforced)
            since = self._since(verdict)
        except Exception as error:  # noqa: BLE001 - what cannot be told is blocked all the same
            with suppress(Exception):
                log.fault("gate_failed", error, operation=operation.name)
        return since, elapsed

    def _intend(self, operation: Operation, verdict: Verdict, grant: Grant | None) -> Intent | Verdict:
        """Use up the grant, charge the budget and write the intent. What cannot be written is not done."""
        subject = verdict.subject
        try:
            if grant is not None and not self._home._grants.use(grant, subject):
                return _instead(verdict, "grant_invalid", f"{grant.id} is used up")
        except Exception as error:  # noqa: BLE001 - cannot tell means no
            return _fault(operation, subject, error)
        intent = self._charge_and_write(operation, verdict, grant)
        if grant is not None and isinstance(intent, Verdict):  # it is not begun
            with suppress(Exception):
                self._home._grants.give_back(grant, subject)
        return intent

    def _charge_and_write(
        self, operation: Operation, verdict: Verdict, grant: Grant | None
    ) -> Intent | Verdict:
        subject, charged = verdict.subject, False
        try:
            if operation.budget is not None:
                charged = self._charge(operation, operation.budget)
                if not charged:
                    text = f"others were quicker: the cap of {operation.budget.cap:g} acts an hour is reached"
                    return _instead(verdict, "hard_cap", text)
            intent = self._home._ledger.intent(
                operation.name,
                operation.trigger,
                subject,
                _scope_name(),
                tuple(remark.code for remark in verdict.remarks),
                "" if grant is None else grant.reason,
                None if grant is None else grant.actor,
                None if grant is None else grant.id,
                self._testimony(operation, subject),
                self._generations(operation),
            )
        except (OSError, ConfigurationError) as error:  # told as the block that it is, however often
            text = f"the intent cannot be written to the ledger ({cause_of(error).text})"
            return _instead(verdict, "ledger_unavailable", text)
        except Exception as error:  # noqa: BLE001 - no record, no act
            return _fault(operation, subject, error)
        else:
            charged = False  # it is begun, and stays counted
            return intent
        finally:
            if charged:
                with suppress(Exception):  # it counts as an act, then
                    self._home._budgets.step(operation.subject_type, lambda tally, _: tally.refund())

    def _charge(self, operation: Operation, budget: Budget) -> bool:
        """Count an act; say whether it is under the cap, which others may have reached since."""
        enforced = self._home._gate_settings.enforce and "hard_cap" not in self.off
        cap = budget.cap if enforced else inf
        return self._home._budgets.step(operation.subject_type, lambda tally, now: tally.charge(now, cap))

    def rest_of(self, grant: Grant, subject: str | None) -> Grant:
        """Give what carries on the use of a grant by an act that was begun."""
        return self._home._grants.rest_of(grant, subject)

    def conclude(self, operation: Operation, intent: Intent, outcome: LedgerOutcome, why: str) -> None:
        """Write what became of an act. Never raises: it is done."""
        try:
            self._home._ledger.outcome(intent, outcome, why)
            if operation.budget is not None and outcome is LedgerOutcome.DONE:
                gone = subject_of(intent)
                self._home._budgets.step(
                    operation.subject_type, lambda tally, now: tally.destroyed(gone, now)
                )
        except Exception as error:  # noqa: BLE001 - the act has its own result
            with suppress(Exception):
                log.fault("ledger_failed", error, operation=operation.name)

    def _since(self, verdict: Verdict) -> datetime | None:
        blamed = self._home._known((verdict.reasons[0].dependency,))
        return blamed[0].since if blamed else None

    # --- facts ------------------------------------------------------------------------------------

    def _is_plainly_well(self, operation: Operation) -> bool:
        """Whether there is nothing to judge: nothing is asked but health, and all is healthy and quiet."""
        needs = self._needs.get(operation.name)
        if needs is None or needs.declarations != self._home._declarations:
            needs = self.needs(operation)
        if not needs.simple or sys.exception() is not None or finalising(_OURS) is not None:
            return False
        scope = open_scope() if scopes_open else None
        if scope is not None and not scope.is_clean:
            return False
        engine, settings = self._home._engine, self._home._gate_settings
        if self.is_watched and not watch.is_well(settings.stall_after):
            return False
        if not self._grace_is_over:
            self._grace_is_over = engine.clock.monotonic() - self._began >= settings.startup_grace
        if not self._grace_is_over or (not needs.required and operation.requires != ()):
            return False
        for dependency in needs.required:
            breaker = dependency._breaker
            if not breaker.is_plainly_well:
                return False
            last = breaker.last_miss if scope is None else None
            if last is not None and engine.clock.monotonic() - last < settings.implicit_scope:
                return False
        return True

    def asks_nothing(self, operation: Operation) -> bool:
        """Whether an act of it needs no questions before."""
        return self.needs(operation).simple

    def questions(self, operation: Operation) -> Questions[Population | None]:
        """Ask for the epochs and for the population, before an act that depends on them."""
        for dependency in self._relied_upon(operation):
            if dependency._epoch_function is not None:
                yield from dependency._read_epoch()
        budget = operation.budget
        if budget is None or budget.population is None or operation.trigger is Trigger.REQUESTED:
            return None
        try:
            with Scope(f"population of {operation.subject_type}"[:200]) as around:
                population = population_of((yield budget.population))._replace(asked=around.asked)
        except Exception as error:  # noqa: BLE001 - users' code; cannot tell means no
            return Population(None, words_of(error))
        if around.missed:
            return Population(None, f"a call to {', '.join(around.missed)} did not answer")
        return population

    def _generations(self, operation: Operation) -> tuple[tuple[str, int], ...]:
        """Give the generations of what an operation requires, as they are now."""
        required = self.needs(operation).required
        return tuple((d.name, d._breaker.era.generation.number) for d in required)

    def _relied_upon(self, operation: Operation) -> tuple[Dependency, ...]:
        """Give what an operation requires, and what its witness asks."""
        required = self.needs(operation).required
        asked = None if operation.evidence is None else self._home._witnesses.asks(operation.evidence)
        known = None if asked is None else self._home[asked]
        return required if known is None or known in required else (*required, known)

    def nominate(
        self,
        operation: Operation,
        subjects: Collection[str | None],
        population: Population | None,
        *,
        plan: bool = False,
    ) -> tuple[Finding, ...]:
        """Count subjects as nominated, and give what the budget says.

        In a finaliser or a signal handler nothing is counted: it may have interrupted the counting itself,
        and is blocked in any case.
        """
        budget = operation.budget
        if budget is None or finalising() is not None:
            return ()
        self._rebase(operation, population)
        automatic = operation.trigger is Trigger.AUTOMATIC
        return self._home._budgets.step(
            operation.subject_type,
            lambda tally, now: tally.judge(budget, subjects, now, population, automatic=automatic, plan=plan),
        )

    def _rebase(self, operation: Operation, population: Population | None) -> None:
        """Accept new data as the known data where the population is back and time has passed.

        It speaks for the dependencies that were asked for it: that all files are there says nothing of Redis.
        """
        if population is None or population.size is None:
            return
        size = population.size
        doubted = [
            dependency
            for dependency in self.needs(operation).required
            if dependency._epoch.unexplained and dependency.name in population.asked
        ]
        if not doubted:
            return
        is_back = self._home._budgets.step(operation.subject_type, lambda tally, _: tally.is_back(size))
        for dependency in doubted if is_back else ():
            dependency._rebase_epoch()

    def _judge(
        self,
        operation: Operation,
        subject: str | None,
        grant: Grant | None,
        found: tuple[Finding, ...],
        *,
        runs: bool = False,
    ) -> Verdict:
        """Decide, or decide again about one that runs. Never raises."""
        try:
            fault = None
            if grant is not None:
                fault = self._home._grants.fault(grant, operation.name, subject, runs=runs)
            if fault is not None:
                reason = blocked_by("grant_invalid", fault, retry_after=None)
                return Verdict(
                    operation=operation.name, trigger=operation.trigger, subject=subject, reasons=(reason,)
                )
            overrides = frozenset[str]() if grant is None else grant.overrides
            return self._decide(operation, subject, found, overrides, proof=not runs)
        except Exception as error:  # noqa: BLE001 - cannot tell means no
            return _fault(operation, subject, error)

    def _decide(
        self,
        operation: Operation,
        subject: str | None,
        found: tuple[Finding, ...],
        overrides: frozenset[str],
        *,
        proof: bool,
    ) -> Verdict:
        engine, settings = self._home._engine, self._home._gate_settings
        around, end, scope = handled(), finalising(), open_scope()
        scope_facts = None if scope is None else scope.facts()
        named_there = () if scope_facts is None else (*scope_facts.taints, *scope_facts.in_flight)
        required = self.needs(operation).required
        known = {d.name: d for d in self._home._known(named_there)}
        now, draw, offset = engine.clock.monotonic(), engine.rng.random(), engine.offset()
        sick = watch.sickness(settings.stall_after, settings.quiet_time) if self.is_watched else None

        def judge() -> tuple[tuple[Reason, ...], tuple[Reason, ...], list[Dependency]]:
            for dependency in (*required, *known.values()):
                dependency._breaker.tick(now, draw=draw)
            facts = tuple(dependency._facts(now, offset) for dependency in required)
            reasons, remarks = decide(
                Situation(
                    operation=operation.name,
                    trigger=operation.trigger,
                    requires=facts,
                    requires_nothing=operation.requires == (),
                    writes=operation.writes,
                    evidence=self._demand(operation, subject, now) if proof else None,
                    tolerates=operation.tolerates,
                    scope=scope_facts,
                    states={name: d._breaker.health(now) for name, d in known.items()},
                    handling=", ".join(f"{d}: {why}" for d, why in around.failures.items()) or None,
                    interrupted=around.interrupted,
                    finalising=end,
                    startup_left=max(0.0, self._began + settings.startup_grace - now),
                    observer=None if sick is None else (sick.text, sick.left),
                    budget=found,
                    overrides=overrides,
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
            operation=operation.name,
            trigger=operation.trigger,
            subject=subject,
            reasons=reasons,
            remarks=remarks,
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
        dependency, scope = self._home[seen.dependency], open_scope()
        missed, sick = (
            dependency._breaker.last_miss,
            watch.void_before(self._home._gate_settings.stall_after) if self.is_watched else None,
        )
        return demand._replace(
            age=max(0.0, now - seen.asked),
            same_scope=seen.scope in ([None] if scope is None else [s.number for s in scope.lineage()]),
            same_generation=seen.generation == dependency._breaker.era.generation.number,
            same_epoch=seen.epoch == dependency._epoch.number,
            miss_since=missed is not None and missed >= seen.asked,
            sick_since=sick is not None and sick >= seen.asked,
            epoch_doubt=self._epoch_doubt(operation, dependency),
        )

    def _epoch_doubt(self, operation: Operation, dependency: Dependency) -> str:
        """Say why the data that a witness asks cannot be the known data, unless it is required anyway."""
        if dependency._epoch_function is None or dependency in self.needs(operation).required:
            return ""
        return dependency._epoch.failed or dependency._epoch.unexplained

    def _testimony(self, operation: Operation, subject: str | None) -> str | None:
        """Say in a few words what an act relied on."""
        if operation.evidence is None or subject is None:
            return None
        seen = self._home._engine.run(lambda: self._home._witnesses.about(str(operation.evidence), subject))
        return None if seen is None else f"{seen.witness}: {seen.presence}"

    def _probe(self, dependency: Dependency) -> None:
        if self._home._engine.probing:
            self._home._engine.wake()
        else:
            run_errand(dependency)


def _fault(operation: Operation, subject: str | None, error: Exception) -> Verdict:
    with suppress(Exception):
        log.fault("gate_failed", error, operation=operation.name)
    reason = Reason(
        code="gate_fault",
        dependency=SELF,
        state=HealthState.UNKNOWN,
        retry_after=None,
        text=f"the gate itself failed ({type(error).__name__})",
    )
    return Verdict(operation=operation.name, trigger=operation.trigger, subject=subject, reasons=(reason,))


def _instead(verdict: Verdict, code: str, text: str) -> Verdict:
    """Give the verdict that something at the last moment makes of another."""
    reason = blocked_by(code, text, retry_after=None)
    return Verdict(
        operation=verdict.operation, trigger=verdict.trigger, subject=verdict.subject, reasons=(reason,)
    )


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


def _scope_name() -> str | None:
    scope = open_scope() if scopes_open else None
    return None if scope is None else scope.name
