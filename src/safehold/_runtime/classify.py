"""What an exception of a guarded call means for the breaker."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from .._core.breaker import Cause, Outcome
from .._core.configuration import ConfigurationError
from .._core.unproven import Unproven
from ..errors import OperationBlocked, Refused, Saturated
from . import log


class Judgement(NamedTuple):
    """The outcome for the machine, and whether the call went unanswered.

    `facets` are those that failed, where it was not the whole. `cause` says why, where the exception's
    type does not; `pause` how many seconds the dependency has asked to be left alone.
    """

    outcome: Outcome
    missed: bool
    facets: tuple[str, ...] = ()
    cause: Cause | None = None
    pause: float | None = None


Classifier = Callable[[Exception], Outcome | bool | Judgement]
Classify = Classifier | type[Exception] | tuple[type[Exception], ...] | None


_ANSWERED = Judgement(Outcome.SUCCESS, missed=False)
_NO_VERDICT = Judgement(Outcome.IGNORED, missed=False)
UNANSWERED = Judgement(Outcome.IGNORED, missed=True)
_FAILED = Judgement(Outcome.FAILURE, missed=True)
_BY_OUTCOME = {Outcome.SUCCESS: _ANSWERED, Outcome.FAILURE: _FAILED, Outcome.IGNORED: _NO_VERDICT}


def make_classifier(classify: object) -> Classifier | None:
    """Turn what people write into a function; raise `ConfigurationError` for what is none."""
    if classify is None:
        return None
    kinds: Any = classify if isinstance(classify, tuple) else (classify,)
    if kinds and all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        return lambda error: isinstance(error, kinds)
    if callable(classify) and not isinstance(classify, type) and not inspect.iscoroutinefunction(classify):
        return cast("Classifier", classify)
    msg = f"classify must be a plain function, an exception type or a tuple of them, got {classify!r}"
    raise ConfigurationError(msg)


def judge(
    error: BaseException, classify: Classifier | None, counted: Callable[[BaseException], bool] | None = None
) -> Judgement:
    """Judge what a guarded call raised.

    An `Exception` is a failure unless `classify` says otherwise: anything true or `Outcome.FAILURE` for a
    failure, anything false or `Outcome.IGNORED` for the application's own error, `Outcome.SUCCESS` for an
    error that is an answer. Whatever is not an `Exception` is ignored, and the call went unanswered. A
    refusal from elsewhere likewise; a blocked operation and a full limiter say nothing at all. An answer
    that proves nothing says itself whether it is a miss. A group is judged by its members. What was
    `counted` before says nothing new.
    """
    if counted is not None and counted(error):
        return _NO_VERDICT
    if isinstance(error, BaseExceptionGroup):
        return max((judge(member, classify, counted) for member in error.exceptions), key=gravity)
    if isinstance(error, OperationBlocked | Saturated):
        return _NO_VERDICT
    if isinstance(error, Refused) or not isinstance(error, Exception):
        return UNANSWERED
    if isinstance(error, Unproven):
        return Judgement(Outcome.IGNORED, missed=error.miss, cause=Cause(error.code, str(error)))
    if classify is None:
        return _FAILED
    try:
        said = classify(error)
        if isinstance(said, Judgement):
            return said
        if isinstance(said, Outcome):
            return _BY_OUTCOME[said]
        return _FAILED if said else _NO_VERDICT  # noqa: TRY300 - asking its truth may raise as well
    except Exception as fault:  # noqa: BLE001 - a classifier that raises has not excused anything
        log.fault("classifier_failed", fault, classifying=type(error).__name__)
        return _FAILED


def gravity(judgement: Judgement) -> tuple[bool, bool, bool]:
    """Rank judgements of what happened together; the greatest speaks for all."""
    failed = judgement.outcome is Outcome.FAILURE
    return failed, judgement.missed, judgement.outcome is Outcome.IGNORED
