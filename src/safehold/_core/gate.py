"""The decision in front of every destructive operation.

One function, `decide`, over the facts of one instant. Each check either says nothing or gives a reason;
every "no" and every "cannot tell" is a reason, and all of them are reported. What a reason does depends
on the operation's trigger: an automatic operation (the default) is held back by each; a requested one,
which carries out a person's explicit wish, is held back by those that speak of the act itself and passes
the rest with a remark, because a guard that over-blocks people gets switched off.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from .budget import Finding
from .evidence import Demand
from .health import BreakerState, HealthState, severity

SELF: Final = "self"
"""The name that stands where no dependency is to blame."""


class Trigger(StrEnum):
    """Who decided: code (`automatic`: sweeps, reapers, "it seems gone") or a person (`requested`)."""

    AUTOMATIC = "automatic"
    REQUESTED = "requested"


class Rule(NamedTuple):
    """One reason that an operation can be held back for.

    `holds_requested`: whether it holds back a requested operation as well (`None`: while the breaker is not
    closed). `may_be_forced`: whether a grant may override it.
    """

    code: str
    meaning: str
    holds_requested: bool | None = True
    may_be_forced: bool = True


RULES: Final = {
    rule.code: rule
    for rule in (
        Rule("not_registered", "no operation of this name is registered", may_be_forced=False),
        Rule("gate_fault", "the gate itself failed", may_be_forced=False),
        Rule("ledger_unavailable", "the intent cannot be written down", may_be_forced=False),
        Rule("grant_invalid", "the grant does not cover this act, or is used up", may_be_forced=False),
        Rule(
            "finalising",
            "called in a finaliser, a signal handler, a callback or at exit",
            may_be_forced=False,
        ),
        Rule("no_ticket", "a destructive command was sent outside of all operations", may_be_forced=False),
        Rule("interrupted", "called while a cancellation or a generator's end is being handled"),
        Rule("handling_failure", "called while a failure that a guard saw is being handled"),
        Rule("observer_sick", "this process did not run, or its clocks disagree"),
        Rule("startup_grace", "the process has just begun", holds_requested=False),
        Rule("evidence_missing", "the witness has not been asked about this subject"),
        Rule("evidence_present", "the witness says that the subject is there"),
        Rule("evidence_unknown", "the witness cannot tell"),
        Rule("evidence_foreign", "the witness was asked in another scope"),
        Rule("evidence_overtaken", "something failed or changed after the witness was asked"),
        Rule("evidence_stale", "the witness was asked too long ago"),
        Rule("nothing_required", "nothing is declared that it could rely on", holds_requested=False),
        Rule("undeclared_dependency", "a dependency that it requires was never declared"),
        Rule("writes_refused", "a dependency that it writes to refuses writes"),
        Rule("dependency_unhealthy", "a dependency's breaker is open or held", holds_requested=None),
        Rule("dependency_recovering", "a dependency recovers and has not settled", holds_requested=None),
        Rule("dependency_unknown", "nothing is known of a dependency", holds_requested=None),
        Rule("dependency_degraded", "a dependency answers badly or in part", holds_requested=None),
        Rule("unresolved_miss", "the last call to a dependency did not answer", holds_requested=False),
        Rule("recent_miss", "a call did not answer lately, and no scope is open", holds_requested=False),
        Rule("scope_tainted", "a call did not answer in this scope", holds_requested=False),
        Rule("call_in_flight", "a call that began in this scope has not ended", holds_requested=False),
        Rule("epoch_unknown", "whether the data is the data that was known cannot be told"),
        Rule("epoch_unexplained", "the data is not the data that was known"),
        Rule("population_unknown", "how many there are cannot be told", holds_requested=False),
        Rule("population_collapsed", "far fewer are seen than there were", holds_requested=False),
        Rule("budget_exceeded", "more is nominated than the budget allows", holds_requested=False),
        Rule("budget_tripped", "the budget was exceeded before, and is latched", holds_requested=False),
        Rule("budget_state_lost", "what was done before the restart is not known", holds_requested=False),
        Rule("small_population", "of so few one may go in a window", holds_requested=False),
        Rule("last_member", "nothing would be left", holds_requested=False),
        Rule("hard_cap", "more acts than anybody may order", may_be_forced=False),
    )
}
"""Every reason by its code: what a user-forced operation may do while something is wrong is decided here."""


class GateSettings(NamedTuple):
    """What the gate runs on; the meaning of each is told at `GatePolicy`.

    `off` names rules that a test build has switched off, to see which test notices.
    """

    startup_grace: float = 30.0
    implicit_scope: float = 60.0
    settle_min: float = 30.0
    settle_max: float = 600.0
    enforce: bool = True
    stall_after: float = 2.0
    quiet_time: float = 30.0
    off: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why an operation does not run, or what was passed over.

    `retry_after` is in seconds; 0 means that a new attempt makes sense at once, `None` that only a
    person or a change of the program can end it. `holds_requested` says whether it holds back a
    requested operation as well.
    """

    code: str
    dependency: str
    state: HealthState
    retry_after: float | None
    text: str
    holds_requested: bool = True


class DependencyFacts(NamedTuple):
    """What is known of one required dependency at this instant."""

    name: str
    declared: bool = True
    state: HealthState = HealthState.HEALTHY
    breaker: BreakerState = BreakerState.CLOSED
    unresolved_miss: bool = False
    since_miss: float | None = None
    retry_after: float | None = 0.0
    settle_left: float = 0.0
    probe_timeout: float | None = None
    since: str = ""
    cause: str = ""
    writes_refused: str | None = None
    epoch_unknown: str = ""
    epoch_unexplained: str = ""


class ScopeFacts(NamedTuple):
    """What was seen in the open scope: dependencies that missed (with why), calls that have not ended."""

    name: str
    taints: Mapping[str, str] = MappingProxyType({})
    in_flight: Mapping[str, int] = MappingProxyType({})


class Situation(NamedTuple):
    """Everything the decision depends on.

    `handling` names the seen failure that is being handled, `interrupted` the cancellation or generator
    close, `finalising` the finaliser or interpreter exit; `None` when there is none. `states` gives the
    health of dependencies that are not required but may be named by a scope. `writes` are those of the
    required dependencies that the operation has to write to. `observer` says why this process cannot be
    trusted at present, and for how many seconds. `budget` is what the budget has against it, `overrides` the
    rules that a grant lifts.
    """

    operation: str
    trigger: Trigger
    requires: tuple[DependencyFacts, ...]
    writes: frozenset[str] = frozenset()
    evidence: Demand | None = None
    requires_nothing: bool = False
    tolerates: frozenset[str] = frozenset()
    scope: ScopeFacts | None = None
    states: Mapping[str, HealthState] = MappingProxyType({})
    handling: str | None = None
    interrupted: str | None = None
    finalising: str | None = None
    startup_left: float = 0.0
    observer: tuple[str, float] | None = None
    budget: tuple[Finding, ...] = ()
    overrides: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The gate's answer. True in a condition when the operation may run.

    `reasons` hold it back, the worst dependency first; `remarks` were seen and passed over.
    """

    operation: str
    trigger: Trigger
    subject: str | None = None
    reasons: tuple[Reason, ...] = ()
    remarks: tuple[Reason, ...] = ()

    @property
    def allowed(self) -> bool:
        """Whether the operation may run."""
        return not self.reasons

    @property
    def retry_after(self) -> float | None:
        """The longest of the reasons' seconds; `None` if any needs a person, 0 when allowed."""
        waits = [reason.retry_after for reason in self.reasons]
        return None if None in waits else max((wait for wait in waits if wait is not None), default=0.0)

    def __bool__(self) -> bool:
        return self.allowed


def decide(situation: Situation, settings: GateSettings) -> tuple[tuple[Reason, ...], tuple[Reason, ...]]:
    """Give the reasons that block, the worst first, and the remarks that do not."""
    automatic = situation.trigger is Trigger.AUTOMATIC
    found = [
        reason
        for reason in (
            *_act(situation),
            *_proof(situation),
            *_requirements(situation),
            *_healths(situation),
            *_misses(situation, settings),
            *_epochs(situation),
            *_budget(situation),
        )
        if reason.code not in settings.off
    ]
    passed = [r for r in found if r.code in situation.overrides or not (automatic or r.holds_requested)]
    reasons = [reason for reason in found if reason not in passed]
    order = {facts.name: index for index, facts in enumerate(situation.requires)}
    reasons.sort(key=lambda r: (r.dependency == SELF, severity(r.state), order.get(r.dependency, len(order))))
    return tuple(reasons), tuple(passed)


def blocked_by(code: str, text: str, *, retry_after: float | None) -> Reason:
    """Make a reason for which no dependency is to blame."""
    return _reason(code, text, SELF, HealthState.UNKNOWN, retry_after)


def _reason(
    code: str,
    text: str,
    dependency: str,
    state: HealthState,
    retry_after: float | None,
    breaker: BreakerState = BreakerState.CLOSED,
) -> Reason:
    holds = RULES[code].holds_requested
    return Reason(
        code=code,
        dependency=dependency,
        state=state,
        retry_after=retry_after,
        text=text,
        holds_requested=breaker is not BreakerState.CLOSED if holds is None else holds,
    )


def _act(situation: Situation) -> Iterator[Reason]:
    """Check when and where the operation was called. Start-up alone passes a person's wish."""
    if situation.finalising is not None:
        yield blocked_by("finalising", f"called {situation.finalising}", retry_after=None)
    if situation.interrupted is not None:
        yield blocked_by(
            "interrupted", f"called while {situation.interrupted} is being handled", retry_after=0.0
        )
    if situation.handling is not None:
        text = f"called while a failure is being handled ({situation.handling})"
        yield blocked_by("handling_failure", text, retry_after=0.0)
    if situation.startup_left > 0:
        text = f"started less than the start-up grace ago, {situation.startup_left:.3g} s left"
        yield blocked_by("startup_grace", text, retry_after=situation.startup_left)
    if situation.observer is not None:
        text, left = situation.observer
        yield blocked_by("observer_sick", text, retry_after=left)


def _proof(situation: Situation) -> Iterator[Reason]:
    """Check the evidence, where it is demanded: of either trigger, for it speaks of the subject itself."""
    missing = None if situation.evidence is None else situation.evidence.missing()
    if missing is not None:
        code, text = missing
        yield blocked_by(code, text, retry_after=0.0)


def _requirements(situation: Situation) -> Iterator[Reason]:
    if not situation.requires and not situation.requires_nothing:
        text = "nothing to require: declare a critical dependency, name some in requires=, or say requires=()"
        yield blocked_by("nothing_required", text, retry_after=None)
    for facts in situation.requires:
        if not facts.declared:
            text = f"{facts.name} is required but was never declared: call dependency({facts.name!r})"
            yield _reason("undeclared_dependency", text, facts.name, HealthState.UNKNOWN, None)


def _healths(situation: Situation) -> Iterator[Reason]:
    for facts in situation.requires:
        if not facts.declared or facts.state is HealthState.HEALTHY:
            continue
        closed = facts.breaker is BreakerState.CLOSED
        if closed and facts.writes_refused is not None and facts.name in situation.writes:
            text = f"{facts.name} refuses writes ({facts.writes_refused}){_exit(facts)}"
            yield _reason("writes_refused", text, facts.name, facts.state, _wait(facts))
        if closed and facts.state is HealthState.DEGRADED and facts.unresolved_miss:
            continue  # told as the miss that it is
        text = _told(facts) + _exit(facts)
        yield _reason(f"dependency_{facts.state}", text, facts.name, facts.state, _wait(facts), facts.breaker)


def _misses(situation: Situation, settings: GateSettings) -> Iterator[Reason]:
    """Check what did not answer: in the open scope, or without one anywhere in the process lately."""
    scope = situation.scope
    for facts in situation.requires:
        if facts.unresolved_miss and facts.breaker is BreakerState.CLOSED:
            since = "only a trial has" if facts.state is HealthState.RECOVERING else "none has"
            text = f"the last call to {facts.name} did not answer and {since} answered since{_exit(facts)}"
            yield _reason("unresolved_miss", text, facts.name, facts.state, _probe_wait(facts))
        if scope is None and facts.since_miss is not None and facts.since_miss < settings.implicit_scope:
            text = (
                f"no scope is open and a call to {facts.name} did not answer {facts.since_miss:.3g} s ago; "
                "open a scope around the work that decides"
            )
            left = settings.implicit_scope - facts.since_miss
            yield _reason("recent_miss", text, facts.name, facts.state, left)
    if scope is None:
        return
    for name, why in scope.taints.items():
        if name not in situation.tolerates:
            text = f"a call to {name} did not answer in scope {scope.name!r} ({why}); begin a new scope"
            yield _reason("scope_tainted", text, name, _state(situation, name), 0.0)
    for name, calls in scope.in_flight.items():
        if name not in situation.tolerates:
            text = f"{calls} call(s) to {name} began in scope {scope.name!r} and have not ended"
            yield _reason("call_in_flight", text, name, _state(situation, name), 0.0)


def _epochs(situation: Situation) -> Iterator[Reason]:
    """Check whether the data is the data that was known. Only a person ends what nothing explains."""
    for facts in situation.requires:
        if facts.epoch_unknown:
            text = (
                f"whether {facts.name} holds the data that was known cannot be told ({facts.epoch_unknown})"
            )
            yield _reason("epoch_unknown", text, facts.name, facts.state, 0.0)
        elif facts.epoch_unexplained:
            text = f"{facts.name}: {facts.epoch_unexplained}; when the loss is real, acknowledge_epoch()"
            yield _reason("epoch_unexplained", text, facts.name, facts.state, None)


def _budget(situation: Situation) -> Iterator[Reason]:
    for finding in situation.budget:
        yield blocked_by(finding.code, finding.text, retry_after=finding.retry_after)


def _told(facts: DependencyFacts) -> str:
    since = f" since {facts.since}" if facts.since else ""
    cause = f" ({facts.cause})" if facts.cause else ""
    return f"{facts.name} is {facts.state}{since}{cause}"


def _state(situation: Situation, name: str) -> HealthState:
    return situation.states.get(name, HealthState.UNKNOWN)


def _wait(facts: DependencyFacts) -> float | None:
    """Seconds until a look makes sense: the breaker's own, or the probe that the block orders."""
    if facts.breaker is not BreakerState.CLOSED:
        due = facts.retry_after == 0 and facts.probe_timeout is not None
        return facts.probe_timeout if due else facts.retry_after
    return max(facts.settle_left, facts.retry_after or 0.0, _probe_wait(facts))


def _probe_wait(facts: DependencyFacts) -> float:
    return 1.0 if facts.probe_timeout is None else facts.probe_timeout


def _exit(facts: DependencyFacts) -> str:
    """Say what helps where no probe can."""
    if facts.probe_timeout is not None or facts.breaker is not BreakerState.CLOSED:
        return ""
    return f"; nothing probes it: call it, give it a probe, or leave {facts.name} out of requires"
