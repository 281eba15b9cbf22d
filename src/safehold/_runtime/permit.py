"""How one guarded call enters and leaves. Every form of guard comes through here.

Only a call of a closed breaker that cannot change anything but a count takes the shorter way that the
generated wrappers know: `Era.ask` is false and no scope is open.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar, Token
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypedDict, Unpack

from .._core.breaker import Cause, Era, Generation, Outcome, Trial
from .._core.configuration import ConfigurationError
from .._core.health import BreakerState, HealthState
from ..errors import DependencyUnhealthy
from .classify import Classifier, Judgement, judge
from .clock import at_wall
from .describe import cause_of
from .handling import mark, mark_attempt, may_be_seen, seen_since, was_attempt
from .measures import Duration, Measured
from .scope import Scope, innermost, scopes_open

if TYPE_CHECKING:
    from .dependency import Dependency

WRITES: Final = "write"
"""The facet of a dependency that takes writes."""
_ANSWERED: Final = Cause(code="answered", text="a call was answered")
_trials: ContextVar[tuple[Trial, ...]] = ContextVar("safehold_trials", default=())
_trials_here = _trials.get
_NOT_SHARING: Final = nullcontext()


class How(TypedDict, total=False):
    """What a call site may say of its calls."""

    long: bool
    probe: bool
    stepwise: bool
    error: type[DependencyUnhealthy]
    classify: Classifier | None
    facets: tuple[str, ...]


class Permit:
    """Leave to make one call, as a context manager: `with dependency.permit(): ...`.

    Entering raises `DependencyUnhealthy` when the breaker refuses. Leaving reports how the block ended,
    and lets its exception pass untouched. A permit is for one call; `succeed` and `fail` end it earlier,
    where the end of the block is not the end of the call. Whoever reports first is heard.

    Guards of one dependency inside each other share a trial's permit: the inner call may go through, and
    should it fail, the trial has failed.
    """

    # what most permits never change stands on the class: making one is part of every slower call
    _long = _probe = _stepwise = _shared = _done = False
    _error: type[DependencyUnhealthy] = DependencyUnhealthy
    _classify: Classifier | None = None
    _taken: Era | Trial | None = None
    _began: float | None = None
    _scope: Scope | None = None
    _token: Token[tuple[Trial, ...]] | None = None
    _facets: tuple[str, ...] = ()

    def __init__(self, dependency: Dependency, **how: Unpack[How]) -> None:
        self._dependency = dependency
        for name, value in how.items():
            setattr(self, f"_{name}", value)

    def __enter__(self) -> Self:
        if self._taken is not None:
            msg = f"this permit for {self._dependency.name} was used: take a new one for each call"
            raise ConfigurationError(msg)
        dependency = self._dependency
        self._era = era = dependency._breaker.era
        if era.generation.state is BreakerState.CLOSED and dependency._breaker.paused_until is None:
            self._taken = era
        else:
            self._try(era.generation)
        if dependency._timed:
            self._began = dependency._engine.clock.monotonic()
        if scopes_open and (scope := innermost()) is not None:
            self._scope = scope
            scope.begin(self, dependency.name, long=self._long)
        return self

    def _unasked(self) -> Self:
        """Take part without asking: for what is under way anyway, and only its outcome matters."""
        self._taken = self._era = self._dependency._breaker.era
        self._scope = innermost() if scopes_open else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error)

    def succeed(self, facets: tuple[str, ...] = ()) -> None:
        """Report that the call was answered; `facets` are those that it has shown to work."""
        if facets:
            self._facets = facets
        self._leave(None)

    def fail(self, error: BaseException) -> None:
        """Report what the call raised; the classifier decides what it means."""
        self._leave(error)

    def withdraw(self) -> None:
        """Give the permit back as if the call had never begun: it says nothing."""
        if not self._done and self._taken is not None:
            self._done = True
            unshare(self._token)
            self._began = None  # it has not lasted
            if not self._shared:
                self._settle(self._taken, Outcome.IGNORED, _ANSWERED, missed=False)
            if self._scope is not None:
                self._scope.end(self)

    def abandon(self) -> None:
        """Report that the call was given up before its answer was complete: ignored, and a miss."""
        self._leave(GeneratorExit())

    def attempt_failed(self, error: BaseException) -> bool:
        """Report a hidden attempt inside this call (a client's own retry); say whether to go on trying.

        It counts for the trip rule. It is a miss only if the call is not answered in the end.
        """
        if self._done or not isinstance(self._taken, Era):
            return False  # one attempt decides a trial
        return attempt_failed(self._dependency, self._taken, error, self._classify)

    # --- entering ---------------------------------------------------------------------------------

    def _try(self, generation: Generation) -> None:
        dependency = self._dependency
        if generation.trial is not None and generation.trial in _trials_here():
            self._taken, self._shared = generation.trial, True
            return
        if turned_away(dependency, generation, probe=self._probe):
            raise refusal(dependency, generation, self._error)
        now, draw, breaker = dependency._now(), dependency._draw(), dependency._breaker

        def ask() -> tuple[Trial | Era | None, Generation]:
            return breaker.admit(now, draw=draw, probe=self._probe), breaker.era.generation

        def as_it_stands() -> tuple[Trial | Era | None, Generation]:
            return None if generation.refuses else breaker.era, generation

        taken, generation = dependency._engine.run(ask, interrupted=as_it_stands)
        dependency._settled()
        if taken is None:
            raise refusal(dependency, generation, self._error)
        self._taken = taken
        if not self._stepwise:
            self._token = self._share()

    def sharing(self) -> AbstractContextManager[object]:
        """Let inner guards share the trial for the length of a block: one step of a generator."""
        return self._sharing() if isinstance(self._taken, Trial) else _NOT_SHARING

    @contextmanager
    def _sharing(self) -> Generator[None]:
        token = self._share()
        try:
            yield
        finally:
            unshare(token)

    def _share(self) -> Token[tuple[Trial, ...]] | None:
        taken = self._taken
        return _trials.set((*_trials_here(), taken)) if isinstance(taken, Trial) else None

    # --- leaving ----------------------------------------------------------------------------------

    def _leave(self, error: BaseException | None) -> None:
        if self._done or self._taken is None:
            return
        self._done = True
        unshare(self._token)
        if error is None:
            self._answered(self._taken)
        else:
            self._raised(self._taken, error)
        if self._scope is not None:
            self._scope.end(self)

    def _answered(self, taken: Era | Trial) -> None:
        if self._shared:
            return  # the trial's owner says how it ended
        if taken is self._era and not self._era.ask and self._began is None:
            next(self._era.generation.tally)
        else:
            self._settle(taken, Outcome.SUCCESS, _ANSWERED, missed=False, facets=self._facets)

    def _raised(self, taken: Era | Trial, error: BaseException) -> None:
        dependency = self._dependency
        classify = self._classify or dependency._classify
        judgement = judge(error, classify)
        missed = judgement.missed
        if judgement.outcome is Outcome.SUCCESS and not missed:
            self._answered(taken)
            return
        cause = judgement.cause or cause_of(error)
        if missed and self._scope is not None:
            self._scope.taint(dependency.name, cause.text)
        news = judgement
        if may_be_seen(error):  # by an inner guard of this dependency, which has counted it
            news = judge(error, classify, partial(seen_since, key=dependency._key, era=self._era.number))
        outcome = Outcome.IGNORED if was_attempt(error, dependency._key) else news.outcome
        if self._shared and outcome is not Outcome.FAILURE:
            taken = self._era  # decides nothing, and the trial goes on
        self._settle(
            taken, outcome, cause, missed=news.missed, facets=judgement.facets, pause=judgement.pause
        )
        if missed:
            mark(error, dependency._key, dependency._breaker.era.number, dependency.name)

    def _settle(
        self,
        taken: Era | Trial,
        outcome: Outcome,
        cause: Cause,
        *,
        missed: bool,
        facets: tuple[str, ...] = (),
        pause: float | None = None,
    ) -> None:
        dependency = self._dependency
        now, draw, breaker = dependency._now(), dependency._draw(), dependency._breaker
        limit = breaker.settings.slow_after
        slow = self._began is not None and limit is not None and now - self._began >= limit

        def settle() -> None:
            breaker.settle(
                taken, outcome, now, draw=draw, cause=cause, slow=slow, missed=missed, facets=facets
            )
            if pause is not None:
                breaker.pause(now + pause, now, draw=draw, cause=cause)

        engine = dependency._engine
        engine.run(settle)
        dependency._settled()
        if self._began is not None and engine.measures.durations and not self._probe:
            error = "" if outcome is Outcome.SUCCESS else cause.code
            engine.measures.lasted(
                Duration(Measured.CALL, dependency.name, str(outcome), max(0.0, now - self._began), error)
            )
        if now >= engine.diary.due:
            engine.catch_up(now)


def missed(
    dependency: Dependency, era: Era, error: BaseException, classify: Classifier | None = None
) -> None:
    """Settle a call of the short way that raised."""
    permit = Permit(dependency, classify=classify)
    permit._taken = permit._era = era
    permit._scope = innermost() if scopes_open else None
    permit._leave(error)


def answered(dependency: Dependency, era: Era) -> None:
    """Settle a call of the short way that was answered."""
    permit = Permit(dependency)
    permit._taken = permit._era = era
    permit._leave(None)


def report_by_hand(
    dependency: Dependency,
    outcome: Outcome | str | BaseException,
    *,
    cause: str,
    pause: float | None,
    facets: tuple[str, ...],
) -> None:
    """Settle a call that no guard has seen, as if it had just begun."""
    if isinstance(outcome, BaseException):
        judgement = judge(outcome, dependency._classify)
        why = judgement.cause or cause_of(outcome)
    else:
        judgement = Judgement(Outcome(outcome), missed=outcome != Outcome.SUCCESS)
        why = Cause(code="reported", text=f"reported as {judgement.outcome}")
    if facets and judgement.outcome is Outcome.FAILURE:
        judgement = judgement._replace(outcome=Outcome.IGNORED)  # only that facet has failed
    why = Cause(why.code, cause) if cause else why
    error = _ByHandError()
    permit = Permit(
        dependency,
        facets=facets,
        stepwise=True,
        classify=lambda _: judgement._replace(
            facets=facets or judgement.facets, cause=why, pause=pause or judgement.pause
        ),
    )._unasked()
    if judgement.outcome is Outcome.SUCCESS:
        permit.succeed()
    else:
        permit.fail(outcome if isinstance(outcome, BaseException) else error)


class _ByHandError(Exception):
    """Stands for what a call without a guard has met."""


def attempt_failed(
    dependency: Dependency, taken: Era, error: BaseException, classify: Classifier | None
) -> bool:
    """Count a hidden attempt inside a call; say whether to go on trying."""
    judgement = judge(error, classify or dependency._classify)
    if judgement.outcome is Outcome.FAILURE and mark_attempt(error, dependency._key):
        # else it is none, or comes out of a retry inside a retry, which has counted it
        now, draw, breaker = dependency._now(), dependency._draw(), dependency._breaker
        cause = judgement.cause or cause_of(error)
        dependency._engine.run(lambda: breaker.attempt_failed(taken, now, draw=draw, cause=cause))
        dependency._settled()
    return not dependency._breaker.era.generation.refuses


def turned_away(dependency: Dependency, generation: Generation, *, probe: bool = False) -> bool:
    """Whether a call is refused for sure, without taking a lock; if not, it may be a trial."""
    head_start = 0.0 if probe else dependency._breaker.head_start
    return (
        generation.refuses
        and dependency._engine.clock.monotonic() < generation.due + head_start
        and (generation.trial is None or generation.trial not in _trials_here())
    )


def refusal(
    dependency: Dependency, generation: Generation, kind: type[DependencyUnhealthy] = DependencyUnhealthy
) -> DependencyUnhealthy:
    """Count a refusal and give its error. Raise it at once: a name for it would keep its frames alive."""
    turn = next(generation.turned_away)
    if scopes_open and (scope := innermost()) is not None:
        scope.taint(dependency.name, "refused")
    if generation.notice is None:
        generation.notice = BreakerNotice(dependency, generation)
    error = kind.__new__(kind)  # what the constructor would check, is known
    error._notice = generation.notice
    if dependency._breaker.settings.spread:
        error._turn = turn
    if dependency._engine.measures.refusals:
        dependency._engine.measures.refused(generation.notice)
    return error


def unshare(token: Token[tuple[Trial, ...]] | None) -> None:
    """Take a trial out of the context; left in another one, it is dead and shared by nobody."""
    if token is not None:
        with suppress(ValueError):
            _trials.reset(token)


class BreakerNotice:
    """What a refused call's error stores: the generation that refused it. The rest is computed when read."""

    __slots__ = ("_dependency", "_since", "cause", "dependency", "generation", "reason", "state")

    def __init__(self, dependency: Dependency, generation: Generation) -> None:
        self._dependency = dependency
        self.generation = generation
        self.dependency = dependency.name
        self.cause = dependency._breaker.cause.text
        self._since = dependency._breaker.since
        if generation.state is BreakerState.CLOSED:
            self.state, self.reason = HealthState.DEGRADED, "paused"
        elif generation.state is BreakerState.HALF_OPEN:
            self.state, self.reason = HealthState.RECOVERING, "trial_in_flight"
        else:
            self.state = HealthState.UNHEALTHY
            self.reason = "held" if generation.held else "breaker_open"

    @property
    def spread(self) -> float:
        return self._dependency._breaker.settings.spread

    @property
    def since(self) -> datetime:
        return at_wall(self._since, self._dependency._engine.offset())

    def retry_after(self) -> float | None:
        breaker, now = self._dependency._breaker, self._dependency._now()
        wait = breaker.retry_after(now)
        if wait == 0 and breaker.head_start:  # a trial is due, and left to the prober for a moment
            wait = min(breaker.head_start, max(0.0, breaker.era.generation.due + breaker.head_start - now))
        return wait
