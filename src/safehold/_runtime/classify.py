"""What an exception of a guarded call means for the breaker."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .._core.breaker import Outcome
from .._core.configuration import ConfigurationError
from ..errors import OperationBlocked, Refused
from . import log


class Judgement(NamedTuple):
    """The outcome for the machine, and whether the call went unanswered."""

    outcome: Outcome
    missed: bool


Classifier = Callable[[Exception], Outcome | bool | Judgement]
Classify = Classifier | type[Exception] | tuple[type[Exception], ...] | None


_ANSWERED = Judgement(Outcome.SUCCESS, missed=False)
_NO_VERDICT = Judgement(Outcome.IGNORED, missed=False)
UNANSWERED = Judgement(Outcome.IGNORED, missed=True)
_FAILED = Judgement(Outcome.FAILURE, missed=True)


def make_classifier(classify: object) -> Classifier | None:
    """Turn what people write into a function; raise `ConfigurationError` for what is none."""
    kinds = classify if isinstance(classify, tuple) else (classify,)
    if kinds and all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        return lambda error: isinstance(error, kinds)
    if classify is None:
        return None
    if callable(classify) and not isinstance(classify, type):
        function: Classifier = classify
        return function
    msg = f"classify must be a function, an exception type or a tuple of them, got {classify!r}"
    raise ConfigurationError(msg)


def judge(error: BaseException, classify: Classifier | None) -> Judgement:
    """Judge what a guarded call raised.

    An `Exception` is a failure unless `classify` says otherwise: true or `Outcome.FAILURE` for a
    failure, false or `Outcome.IGNORED` for the application's own error, `Outcome.SUCCESS` for an error
    that is an answer. Whatever is not an `Exception` is ignored, and the call went unanswered. A refusal
    from elsewhere likewise; a blocked operation says nothing at all. A group is judged by its members.
    """
    if isinstance(error, BaseExceptionGroup):
        return _worst([judge(member, classify) for member in error.exceptions])
    if isinstance(error, OperationBlocked):
        return _NO_VERDICT
    if isinstance(error, Refused) or not isinstance(error, Exception):
        return UNANSWERED
    if classify is None:
        return _FAILED
    try:
        said = classify(error)
    except Exception as fault:  # noqa: BLE001 - a classifier that raises has not excused anything
        log.fault("classifier_failed", fault, classifying=type(error).__name__)
        return _FAILED
    if isinstance(said, Judgement):
        return said
    if said is Outcome.SUCCESS:
        return _ANSWERED
    return _FAILED if said is True or said is Outcome.FAILURE else _NO_VERDICT


def _worst(judgements: list[Judgement]) -> Judgement:
    for worst in (_FAILED, UNANSWERED, _NO_VERDICT):
        if worst in judgements:
            return worst
    return _ANSWERED
