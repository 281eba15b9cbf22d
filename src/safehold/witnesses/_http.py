"""What an HTTP response says of the resource that was asked for.

Between a service and its client stand proxies, login pages and routes that somebody renamed, and all of them
answer. So a 404 is absence only when the service signs it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple, cast

from .._core.configuration import ConfigurationError
from .._core.evidence import ABSENT, PRESENT, Presence
from .._core.unproven import Unproven

NotFound = Callable[[Any], object] | Mapping[str, object] | None

_NO_ANSWERS: Final = frozenset({401, 403, 407, 408, 425, 429})
"""Client errors that speak of the one who asks, or of when."""


def http_resource(
    response: Any,
    body: bytes | None = None,
    *,
    not_found: NotFound = None,
    bare_404: bool = False,
    absent: Collection[int] = (404, 410),
    content_type: str = "application/json",
    asked: str | None = None,
) -> Presence:
    """Say what a response of `httpx`, `requests` or `aiohttp` says of the resource.

    A 2xx is presence when it was not redirected, has the content type that you expect, and a whole body. A
    status in `absent` is absence when the service signs it: `not_found` is what its JSON body then holds,
    such as `{"code": "session_not_found"}` (nested, it is compared in depth), or a function of the response
    that returns `True`. Services that say no more than 404 need `bare_404=True`, and a wrong route looks the
    same. Everything else is unproven; 408, 5xx and a body that is cut short are misses.

    Give `body` for clients whose responses do not hold it: `http_resource(response, await response.read())`
    with `aiohttp`. Give `asked`, the URL, where a response does not tell its `history` of redirects. Raises
    `ConfigurationError` for statuses and signatures that cannot work.
    """
    _check(absent, not_found, bare_404=bare_404)
    answer = _read(response, body)
    if _redirected(response, asked):
        msg = "it was redirected, so another address has answered"
        raise Unproven(msg)
    if 200 <= answer.status < 300:
        _check_found(answer, content_type)
        return PRESENT
    if answer.status not in absent:
        msg = f"status {answer.status} says neither"
        raise Unproven(msg, miss=answer.status == 408 or answer.status >= 500)
    if bare_404:
        _check_bare(answer, content_type)
    else:
        _check_signed(answer, response, not_found)
    return ABSENT


class _Answer(NamedTuple):
    status: int
    kind: str
    body: bytes

    @property
    def is_json(self) -> bool:
        return self.kind == "application/json" or self.kind.endswith("+json")

    def value(self) -> Any:
        """Give the JSON; the constants that are none, such as `NaN`, are refused with the rest."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            msg = f"status {self.status} with a body that is no JSON"
            raise Unproven(msg) from None


def _check(absent: Collection[int], not_found: NotFound, *, bare_404: bool) -> None:
    wrong = sorted(status for status in absent if not 400 <= status < 500 or status in _NO_ANSWERS)
    if wrong:
        msg = f"absent must be statuses with which a service answers for a resource, got {wrong}"
        raise ConfigurationError(msg)
    if not (not_found is None or callable(not_found) or (isinstance(not_found, Mapping) and not_found)):
        msg = f"not_found must be a function or a mapping that is not empty, got {not_found!r}"
        raise ConfigurationError(msg)
    if bare_404 and not_found is not None:
        msg = "not_found and bare_404=True contradict each other"
        raise ConfigurationError(msg)


def _read(response: Any, body: bytes | None) -> _Answer:
    headers = {str(name).lower(): str(value) for name, value in response.headers.items()}
    status = getattr(response, "status_code", None)
    status = response.status if status is None else status
    content = response.content if body is None else body
    if not isinstance(content, bytes):
        msg = "the response does not hold its body: read it, and give it as well"
        raise Unproven(msg)
    length = headers.get("content-length", "")
    if "content-encoding" not in headers and length.isdecimal() and int(length) > len(content) > 0:
        msg = "the body was cut short"
        raise Unproven(msg, miss=True)
    return _Answer(int(status), headers.get("content-type", "").partition(";")[0].strip().lower(), content)


def _redirected(response: Any, asked: str | None) -> bool:
    history = getattr(response, "history", None)
    if asked is not None:
        return bool(history) or str(response.url) != asked
    if history is None:
        msg = "the response does not tell whether it was redirected: give asked="
        raise Unproven(msg)
    return bool(history)


def _check_found(answer: _Answer, content_type: str) -> None:
    if not answer.body.strip():
        msg = f"status {answer.status} with an empty body"
        raise Unproven(msg)
    if answer.kind != content_type.lower():
        msg = f"status {answer.status} with {answer.kind or 'no content type'} for {content_type}"
        raise Unproven(msg)
    if answer.is_json and answer.value() is None:
        msg = f"status {answer.status} with null"
        raise Unproven(msg)


def _check_bare(answer: _Answer, content_type: str) -> None:
    if answer.body.strip() and answer.kind != content_type.lower() and not answer.is_json:
        msg = f"status {answer.status} with {answer.kind or 'no content type'}: not the service's own page"
        raise Unproven(msg)


def _check_signed(answer: _Answer, response: Any, not_found: NotFound) -> None:
    if not_found is None:
        signed = False
    elif callable(not_found):
        signed = not_found(response) is True
    else:
        signed = answer.is_json and _holds(answer.value(), not_found)
    if not signed:
        msg = f"status {answer.status} without the sign that the service itself has not found it"
        raise Unproven(msg)


def _holds(value: object, wanted: object) -> bool:
    """Whether what is wanted is in the value: mappings by what they name, everything else exactly."""
    if isinstance(wanted, Mapping):
        if not isinstance(value, Mapping):
            return False
        held = cast("Mapping[object, object]", value)
        named = cast("Mapping[object, object]", wanted)
        return all(name in held and _holds(held[name], inner) for name, inner in named.items())
    return type(value) is type(wanted) and value == wanted
