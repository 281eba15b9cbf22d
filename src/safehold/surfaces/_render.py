"""One renderer: what a person reads of a refusal, and what a client receives of it over HTTP.

A client learns which dependency, in which state, that this call changed nothing, and when to retry. It does
not learn what the refusal knows besides: causes, subjects and messages may quote exceptions, hosts and what
people wrote, so none of them is rendered. A name that looks like an address is not told, either.

Problem details are those of RFC 9457. They hold the members that a `Refusal` needs, so that
`Refused.from_payload` reads them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from .._core.configuration import ConfigurationError
from .._runtime import log
from .._runtime.redact import redact
from ..errors import OperationBlocked, Refused, Saturated

PROBLEM: Final = "application/problem+json"
PROBLEM_TYPE: Final = "urn:safehold:problem:"
"""What the `type` of a problem begins with; the code of the refusal follows."""
_DEEPEST: Final = 1000  # exceptions that are looked at

TEXTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "unhealthy": "{dependency} is unavailable",
        "recovering": "{dependency} is recovering",
        "degraded": "{dependency} is not reliable at the moment",
        "unknown": "nothing is known of {dependency} yet",
        "healthy": "{dependency} was not reliable just now",
        "held": "{dependency} is held back by a person",
        "saturated": "{dependency} is given no more calls at the moment",
        "self": "this service holds it back by itself",
        "unnamed": "a dependency",
        "call": "the call was not made and changed nothing",
        "operation": "{operation} was not executed and changed nothing",
        "now": "try again now",
        "seconds": "try again in {wait} s",
        "minutes": "try again in {wait} min",
        "hours": "try again in {wait} h",
        "person": "trying again does not help, a person has to end this",
        "short": "{what}; {done}; {when}",
        "long": "{what} (state {state}, reason {reason}). What it means: {done}. When to retry: {when}.",
        "title": "Not executed",
        "title.dependency_unhealthy": "A dependency is unavailable",
        "title.operation_blocked": "An operation was blocked",
        "title.saturated": "Too many calls at the moment",
    }
)
"""Every text that a client may read, by its key: translate those that you want, with the same fields."""
_FIELDS: Final = dict.fromkeys(
    ("dependency", "operation", "wait", "what", "done", "when", "state", "reason"), ""
)


def table(texts: Mapping[str, str] | None) -> Mapping[str, str]:
    """Complete a table of translations; raise `ConfigurationError` for one that could not be rendered."""
    for key, text in (texts or {}).items():
        if key not in TEXTS:
            msg = f"texts has the unknown key {key!r}; known are {', '.join(TEXTS)}"
            raise ConfigurationError(msg)
        try:
            text.format(**_FIELDS)
        except (AttributeError, IndexError, KeyError, ValueError) as error:
            msg = f"texts[{key!r}] cannot be rendered: {text!r}"
            raise ConfigurationError(msg) from error
    return {**TEXTS, **(texts or {})}


def short(refusal: Refused, texts: Mapping[str, str] = TEXTS) -> str:
    """Tell it in one clause after the other, for a banner or a `detail`."""
    return texts["short"].format(**_told(refusal, refusal.retry_after, texts))


def long(refusal: Refused, texts: Mapping[str, str] = TEXTS) -> str:
    """Tell it in sentences, with the codes that an operator asks for."""
    return texts["long"].format(**_told(refusal, refusal.retry_after, texts))


def _told(refusal: Refused, wait: float | None, texts: Mapping[str, str]) -> dict[str, str]:
    operation = _operation(refusal, texts)
    done = texts["call"] if operation is None else texts["operation"].format(operation=operation)
    return {
        "what": _what(refusal, texts),
        "done": done,
        "when": _when(wait, texts),
        "state": str(refusal.state),
        "reason": _name(refusal.reason, texts),
    }


def _what(refusal: Refused, texts: Mapping[str, str]) -> str:
    match refusal:
        case Saturated():
            key = "saturated"
        case _ if refusal.dependency == "self":
            key = "self"
        case _ if refusal.reason == "held":
            key = "held"
        case _:
            key = str(refusal.state)
    return texts[key].format(dependency=_name(refusal.dependency, texts))


def _when(wait: float | None, texts: Mapping[str, str]) -> str:
    match wait:
        case None:
            return texts["person"]
        case _ if wait <= 0:
            return texts["now"]
        case _ if wait <= 120:
            return texts["seconds"].format(wait=math.ceil(wait))
        case _ if wait <= 7200:
            return texts["minutes"].format(wait=math.ceil(wait / 60))
        case _:
            return texts["hours"].format(wait=math.ceil(wait / 3600))


def _name(name: str, texts: Mapping[str, str]) -> str:
    """Give a name, unless it may hold an address or a secret: that of a received refusal is any text."""
    return texts["unnamed"] if "@" in name or "://" in name or redact(name) != name else name


def _operation(refusal: Refused, texts: Mapping[str, str]) -> str | None:
    return _name(refusal.operation, texts) if isinstance(refusal, OperationBlocked) else None


def status_of(refusal: Refused) -> int:
    """Give 409 where waiting does not help, 429 for too many calls, else 503."""
    return _status(refusal, refusal.retry_after)


def _status(refusal: Refused, wait: float | None) -> int:
    if wait is None:
        return 409
    return 429 if isinstance(refusal, Saturated) else 503


def problem(
    refusal: Refused, texts: Mapping[str, str] = TEXTS, *, instance: str | None = None
) -> dict[str, Any]:
    """Give the problem details; `instance` is a URI of this occurrence, if there is one."""
    wait, operation = refusal.retry_after, _operation(refusal, texts)
    optional = {"instance": instance, "operation": operation}
    return {
        "type": PROBLEM_TYPE + refusal.code,
        "title": texts.get(f"title.{refusal.code}", texts["title"]),
        "status": _status(refusal, wait),
        "detail": texts["short"].format(**_told(refusal, wait, texts)),
        "code": refusal.code,
        "dependency": _name(refusal.dependency, texts),
        "state": str(refusal.state),
        "reason": _name(refusal.reason, texts),
        "retryable": wait is not None,
        "retry_after": wait,
        "outcome": refusal.outcome,
        **{name: value for name, value in optional.items() if value is not None},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole HTTP response."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def answer(content: Mapping[str, Any], status: int, kind: str, *more: tuple[str, str]) -> Answer:
    """Put JSON into a response that nobody keeps."""
    body = json.dumps(content).encode()
    headers = (("content-type", kind), ("content-length", str(len(body))), ("cache-control", "no-store"))
    return Answer(status=status, headers=(*headers, *more), body=body)


def refused(refusal: Refused, texts: Mapping[str, str] = TEXTS) -> Answer:
    """Answer a request that met a refusal: problem details, and `Retry-After` where waiting helps."""
    told = problem(refusal, texts)
    wait = told["retry_after"]
    later = () if wait is None else (("retry-after", str(max(1, math.ceil(wait)))),)
    return answer(told, told["status"], PROBLEM, *later)


def blamed(error: BaseException) -> Refused | None:
    """Find the refusal to answer with; an error that only came up while it was handled is told in the log.

    Such an error may be a mistake of the application's, and nobody else will hear of it.
    """
    refusal = find_refusal(error, during=False)
    if refusal is None:
        refusal = find_refusal(error)
        if refusal is not None:
            log.fault("error_after_refusal", error)
    return refusal


def find_refusal(error: BaseException, *, during: bool = True) -> Refused | None:
    """Find the refusal that an error is, was raised from or during, or holds in a group: the nearest one.

    Like a traceback, it does not look behind `raise ... from None`. `during`: whether one counts that was
    merely being handled.
    """
    waiting, met = [error], set[int]()
    while waiting and len(met) < _DEEPEST:
        nearest = waiting.pop(0)
        if isinstance(nearest, Refused):
            return nearest
        if id(nearest) not in met:
            met.add(id(nearest))
            waiting += _behind(nearest, during=during)
    return None


def _behind(error: BaseException, *, during: bool) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        yield from error.exceptions
    if error.__cause__ is not None:
        yield error.__cause__
    if during and error.__context__ is not None and not error.__suppress_context__:
        yield error.__context__
