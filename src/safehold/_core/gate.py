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

from .evidence import Demand
from .health import BreakerState, HealthState, severity

SELF: Final = "self"
"""The name that stands where no dependency is to blame."""


class Trigger(StrEnum):
    """Who decided: code (`automatic`: sweeps, reapers, "it seems gone") or a person (`requested`)."""

    AUTOMATIC = "automatic"
    REQUESTED = "requested"


class GateSettings(NamedTuple):
    """What the gate runs on; the meaning of each is told at `GatePolicy`."""

    startup_grace: float = 30.0
    implicit_scope: float = 60.0
    settle_min: float = 30.0
    settle_max: float = 600.0
    enforce: bool = True


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
    required dependencies that the operation has to write to.
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
        *_act(situation),
        *_proof(situation),
        *_requirements(situation),
        *_healths(situation),
        *_misses(situation, settings),
    ]
    reasons = [reason for reason in found if automatic or reason.holds_requested]
    remarks = [reason for reason in found if not automatic and not reason.holds_requested]
    order = {facts.name: index for index, facts in enumerate(situation.requires)}
    reasons.sort(key=lambda r: (r.dependency == SELF, severity(r.state), order.get(r.dependency, len(order))))
    return tuple(reasons), tuple(remarks)


def blocked_by(code: str, text: str, *, retry_after: float | None, holds_requested: bool = True) -> Reason:
    """Make a reason for which no dependency is to blame."""
    return Reason(
        code=code,
        dependency=SELF,
        state=HealthState.UNKNOWN,
        retry_after=retry_after,
        text=text,
        holds_requested=holds_requested,
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
        yield blocked_by("startup_grace", text, retry_after=situation.startup_left, holds_requested=False)


def _proof(situation: Situation) -> Iterator[Reason]:
    """Check the evidence, where it is demanded: of either trigger, for it speaks of the subject itself."""
    missing = None if situation.evidence is None else situation.evidence.missing()
    if missing is not None:
        code, text = missing
        yield blocked_by(code, text, retry_after=0.0)


def _requirements(situation: Situation) -> Iterator[Reason]:
    if not situation.requires and not situation.requires_nothing:
        text = "nothing to require: declare a critical dependency, name some in requires=, or say requires=()"
        yield blocked_by("nothing_required", text, retry_after=None, holds_requested=False)
    for facts in situation.requires:
        if not facts.declared:
            yield Reason(
                code="undeclared_dependency",
                dependency=facts.name,
                state=HealthState.UNKNOWN,
                retry_after=None,
                text=f"{facts.name} is required but was never declared: call dependency({facts.name!r})",
            )


def _healths(situation: Situation) -> Iterator[Reason]:
    for facts in situation.requires:
        if not facts.declared or facts.state is HealthState.HEALTHY:
            continue
        closed = facts.breaker is BreakerState.CLOSED
        if closed and facts.writes_refused is not None and facts.name in situation.writes:
            text = f"{facts.name} refuses writes ({facts.writes_refused}){_exit(facts)}"
            yield Reason(
                code="writes_refused",
                dependency=facts.name,
                state=facts.state,
                retry_after=_wait(facts),
                text=text,
            )
        if closed and facts.state is HealthState.DEGRADED and facts.unresolved_miss:
            continue  # told as the miss that it is
        yield Reason(
            code=f"dependency_{facts.state}",
            dependency=facts.name,
            state=facts.state,
            retry_after=_wait(facts),
            text=_told(facts) + _exit(facts),
            holds_requested=facts.breaker is not BreakerState.CLOSED,
        )


def _misses(situation: Situation, settings: GateSettings) -> Iterator[Reason]:
    """Check what did not answer: in the open scope, or without one anywhere in the process lately."""
    scope = situation.scope
    for facts in situation.requires:
        if facts.unresolved_miss and facts.breaker is BreakerState.CLOSED:
            since = "only a trial has" if facts.state is HealthState.RECOVERING else "none has"
            text = f"the last call to {facts.name} did not answer and {since} answered since{_exit(facts)}"
            yield _missed("unresolved_miss", facts.name, facts.state, _probe_wait(facts), text)
        if scope is None and facts.since_miss is not None and facts.since_miss < settings.implicit_scope:
            text = (
                f"no scope is open and a call to {facts.name} did not answer {facts.since_miss:.3g} s ago; "
                "open a scope around the work that decides"
            )
            left = settings.implicit_scope - facts.since_miss
            yield _missed("recent_miss", facts.name, facts.state, left, text)
    if scope is None:
        return
    for name, why in scope.taints.items():
        if name not in situation.tolerates:
            text = f"a call to {name} did not answer in scope {scope.name!r} ({why}); begin a new scope"
            yield _missed("scope_tainted", name, _state(situation, name), 0.0, text)
    for name, calls in scope.in_flight.items():
        if name not in situation.tolerates:
            text = f"{calls} call(s) to {name} began in scope {scope.name!r} and have not ended"
            yield _missed("call_in_flight", name, _state(situation, name), 0.0, text)


def _told(facts: DependencyFacts) -> str:
    since = f" since {facts.since}" if facts.since else ""
    cause = f" ({facts.cause})" if facts.cause else ""
    return f"{facts.name} is {facts.state}{since}{cause}"


def _missed(code: str, name: str, state: HealthState, retry_after: float, text: str) -> Reason:
    return Reason(
        code=code, dependency=name, state=state, retry_after=retry_after, text=text, holds_requested=False
    )


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
