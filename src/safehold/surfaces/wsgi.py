"""Answer refusals in any WSGI application: `SafeholdMiddleware(app, health)`. Needs no extra.

A scope is a context variable, and a server asks for the parts of a body when it likes, with other requests
in between. So each request has a context of its own, in which the application is called, its body is asked
for, and closed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import copy_context
from http import HTTPStatus
from typing import Any

from .._runtime import log
from .._runtime.safehold import Safehold
from ._pages import check_arguments, page_at, serve
from ._render import TEXTS, Answer, blamed, refused, table

__all__ = ["TEXTS", "SafeholdMiddleware"]

Environment = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Any, Any], Iterable[bytes]]
Authorise = Callable[[Environment], bool]


class SafeholdMiddleware:
    """Opens a scope for each request, to the end of its body, and answers refusals.

    The answers, `health_at`, `authorise` and `texts` are those of `safehold.surfaces.asgi`; `authorise` is a
    function from the WSGI environment. WSGI has no lifespan: call `health.start()` for the probes.

    Raises `ConfigurationError` for arguments that cannot work.
    """

    def __init__(
        self,
        app: Application,
        health: Safehold,
        *,
        health_at: str | None = None,
        authorise: Authorise | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        check_arguments(health, health_at, authorise)
        self._app = app
        self._health = health
        self._health_at = health_at
        self._authorise = authorise
        self._texts = table(texts)

    def __call__(self, environ: Environment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        page, method = page_at(environ.get("PATH_INFO", ""), self._health_at), environ["REQUEST_METHOD"]
        if page is not None:
            told = serve(page, method, self._health, details=lambda: self._shows(environ))
            return _answer(told, method, start_response)
        return _Body(self._app, self._health, self._texts, environ, start_response)

    def _shows(self, environ: Environment) -> bool:
        try:
            return self._authorise is not None and self._authorise(environ) is True
        except Exception as error:  # noqa: BLE001 - whoever cannot be judged sees nothing
            log.fault("authorise_failed", error)
            return False


class _Body:
    """The body of one response; its scope ends with it."""

    def __init__(
        self,
        app: Application,
        health: Safehold,
        texts: Mapping[str, str],
        environ: Environment,
        start_response: StartResponse,
    ) -> None:
        self._texts = texts
        self._method = environ["REQUEST_METHOD"]
        self._start_response = start_response
        self._context = copy_context()
        self._begun = False  # whether a part of the body was handed over, and the headers with it
        self._scope = health.scope("request")
        self._context.run(self._scope.__enter__)
        self._body: Iterable[bytes] = ()
        self._parts: Iterator[bytes] = iter(())
        try:
            self._body = self._context.run(app, environ, self._start)
            self._parts = self._context.run(iter, self._body)
        except BaseException as error:
            self._leave()
            if not isinstance(error, Exception):
                raise
            self._parts = iter(self._refused(error))

    def _start(self, *arguments: Any) -> Any:
        write = self._start_response(*arguments)

        def begin(part: bytes) -> Any:
            self._begun = self._begun or bool(part)
            return write(part)

        return begin

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            part = self._context.run(next, self._parts)
        except StopIteration:
            self._leave()
            raise
        except Exception as error:  # noqa: BLE001 - it is raised again unless it is answered
            self._leave()
            parts = iter(self._refused(error))
            self._parts = parts
            return next(parts)
        self._begun = self._begun or bool(part)
        return part

    def _refused(self, error: Exception) -> list[bytes]:
        """Give the answer in place of what was to come, or raise what was raised."""
        refusal = None if self._begun else blamed(error)
        if refusal is None:
            raise error
        return _answer(refused(refusal, self._texts), self._method, self._start_response, sys.exc_info())

    def _leave(self) -> None:
        self._context.run(self._scope.__exit__, None, None, None)

    def close(self) -> None:
        """End the request, as the server does when it has sent the body or lost the client."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                self._context.run(close)
        finally:
            self._leave()


def _answer(told: Answer, method: str, start_response: StartResponse, *failed: Any) -> list[bytes]:
    status = f"{told.status} {HTTPStatus(told.status).phrase}"
    start_response(status, list(told.headers), *failed)
    return [b"" if method == "HEAD" else told.body]
