"""Answer refusals in any ASGI application: `SafeholdMiddleware(app, health)`. Needs no extra.

An answer of status 500 that is complete is held back until the application has returned. Frameworks send
such an answer and then raise what it is about (Starlette does, in each mounted application), and only the
exception tells whether it was a refusal. Everything else passes through as it comes.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from .._runtime import log
from .._runtime.safehold import Safehold
from ..errors import Refused
from ._pages import Page, check_arguments, page_at, serve
from ._render import TEXTS, Answer, blamed, refused, short, table

__all__ = ["TEXTS", "SafeholdMiddleware"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Any, Any], Awaitable[None]]
Authorise = Callable[[Scope], bool | Awaitable[bool]]

TRY_AGAIN_LATER: Final = 1013
"""The close code of a WebSocket that met a refusal, as registered with IANA."""
_LONGEST_REASON: Final = 123  # bytes, of a close frame


class SafeholdMiddleware:
    """Opens a scope for each request, answers refusals, probes while the application runs.

    A `Refused` that escapes, or is behind what escapes, becomes `application/problem+json`: 503 with
    `Retry-After`, 429 for `Saturated`, 409 where only a person can end it. Where the response has begun,
    the exception goes on. A WebSocket is denied with the same answer before it is accepted, if the server
    can; else it is closed with 1013.

    `health_at`: the path under which `/livez`, `/readyz` and `/health` are served, such as `"/"`; `None`
    for nowhere. `authorise`: a function or coroutine function from the ASGI scope to whether details may be
    shown; `None` shows none. `texts`: translations of what clients read.

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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, WebSocket or lifespan."""
        match scope["type"]:
            case "http":
                page = page_at(_path(scope), self._health_at)
                await (self._http(scope, receive, send) if page is None else self._serve(page, scope, send))
            case "websocket":
                await self._websocket(scope, receive, send)
            case "lifespan":
                await self._lifespan(scope, receive, send)
            case _:
                await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = _Response(send)
        try:
            with self._health.scope("request"):
                await self._app(scope, receive, response.send)
        except BaseException as error:
            refusal = None if response.started or not isinstance(error, Exception) else blamed(error)
            if refusal is None:
                await response.release()
                raise
            await _answer(send, refused(refusal, self._texts))
        else:
            await response.release()

    async def _serve(self, page: Page, scope: Scope, send: Send) -> None:
        shown = page != "/livez" and await self._shows(scope)
        await _answer(send, serve(page, scope["method"], self._health, details=lambda: shown))

    async def _shows(self, scope: Scope) -> bool:
        if self._authorise is None:
            return False
        try:
            allowed = self._authorise(scope)
            if inspect.isawaitable(allowed):
                allowed = await allowed
        except Exception as error:  # noqa: BLE001 - whoever cannot be judged sees nothing
            log.fault("authorise_failed", error)
            return False
        return allowed is True

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = _Socket(send)
        try:
            with self._health.scope("websocket"):
                await self._app(scope, receive, socket.send)
        except Exception as error:
            refusal = None if socket.over else blamed(error)
            if refusal is None:
                raise
            if not socket.accepted and "websocket.http.response" in (scope.get("extensions") or {}):
                await _answer(send, refused(refusal, self._texts), "websocket.http.response")
            else:
                await send(_closing(refusal, self._texts))

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = False

        async def ask() -> Message:
            nonlocal asked
            asked = True
            return await receive()

        async with self._health.running():
            try:
                await self._app(scope, ask, send)
            except Exception:
                if asked:
                    raise
            if not asked:  # it knows no lifespan; its probes have one all the same
                await _live(receive, send)


class _Response:
    """What has been sent of one, and what is held back."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []
        self.started = False

    async def send(self, message: Message) -> None:
        if self.started or not self._may_wait(message):
            await self.release()
            self.started = True
            await self._send(message)
        else:
            self._held.append(message)

    def _may_wait(self, message: Message) -> bool:
        match message["type"]:
            case "http.response.start":
                return int(message["status"]) == 500
            case "http.response.body":
                return not message.get("more_body", False)
            case _:
                return False

    async def release(self) -> None:
        held, self._held = self._held, []
        for message in held:
            self.started = True
            await self._send(message)


class _Socket:
    """How far a WebSocket has come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.accepted = self.over = False

    async def send(self, message: Message) -> None:
        match message["type"]:
            case "websocket.accept":
                self.accepted = True
            case "websocket.close" | "websocket.http.response.start":
                self.over = True
            case _:
                pass
        await self._send(message)


def _path(scope: Scope) -> str:
    """Give the path below the mount point, which servers put in front of it."""
    path: str = scope["path"]
    root: str = (scope.get("root_path") or "").rstrip("/")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def _closing(refusal: Refused, texts: Mapping[str, str]) -> Message:
    reason = short(refusal, texts).encode()[:_LONGEST_REASON].decode(errors="ignore")
    return {"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": reason}


async def _answer(send: Send, told: Answer, kind: str = "http.response") -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in told.headers]
    await send({"type": f"{kind}.start", "status": told.status, "headers": headers})
    await send({"type": f"{kind}.body", "body": told.body})


async def _live(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})
