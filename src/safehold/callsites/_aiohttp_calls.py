"""What becomes of a call through aiohttp: its attempts, and the heads of their answers; the default probe."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from functools import partial
from http import HTTPStatus
from time import monotonic
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, cast

import aiohttp
from yarl import URL

from .._runtime.classify import Judgement
from .._runtime.dependency import Dependency
from ._aiohttp_body import TOO_LATE, watch
from ._exchange import Exchange
from ._guarding import SessionGuard
from ._http import PROBE_TIMEOUT, QUEUE_FULL, judge_probe
from ._table import chain, has_errno
from ._waits import CONNECT, READ, WRITE

QUEUED: Final = "_safehold_queued"
"""Written on a time-out that has met a call while it waited for a place in the pool."""


class _Exchange(Exchange):
    """One that knows more of its connection than an error can say."""

    queue_full = False

    def unasked(self) -> None:
        """Report that nothing was asked at all."""
        permit, self._permit = self._permit, None
        if permit is not None:
            permit.withdraw()

    def _by_table(self, error: Exception) -> Judgement:
        return QUEUE_FULL.judgement if self.queue_full else super()._by_table(error)


class Sending:
    """How far a call has come, as a context manager: its attempts, each of which may be an exchange."""

    def __init__(self, guard: SessionGuard, session: Any, method: str, options: Mapping[str, Any]) -> None:
        self._guard = guard
        self._session = session
        self._method = method.upper()
        self._path = getattr(session.connector, "path", None)  # of a unix socket
        self._patience = _patience(session.timeout, options.get("timeout", ...))
        self._exchange = _Exchange(guard, self._method, wired=True)
        self._failed: Exception | None = None  # the last attempt, with this
        self._limit: asyncio.Timeout | None = None
        self._began = 0.0
        self._queued = self._connected = False
        self._chunks = 0
        self._token: Token[Sending | None] | None = None

    def __enter__(self) -> Self:
        self._token = _sending.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _sending.reset(self._token)
        exchange, failed, self._failed = self._exchange, self._failed, None
        if error is not None:
            self._note(error)
        if exchange.headed:
            if isinstance(error, TimeoutError) or (error is not None and not isinstance(error, Exception)):
                exchange.failed(error)  # before the head was handed over; other errors are made of it
        elif failed is not None:
            exchange.failed(failed)
        elif error is not None:
            exchange.failed(error)
        else:
            exchange.unasked()  # a middleware of the user's has answered by itself

    async def attempt(self, request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
        """Be the innermost middleware."""
        exchange = self._next()
        locate(self._guard, self._session, request.url.origin())
        sent, exchange.sent = exchange.sent, False
        self._queued = self._connected = False
        self._chunks = 0
        self._began = monotonic()
        try:
            response = await self._in_time(handler, request)
        except BaseException as error:
            self._took(0)
            exchange.sent = sent or (exchange.sent and not self._was_dead(request, error))
            self._note(error)
            if isinstance(error, Exception):
                self._failed = error
                exchange.upload_error = _upload_error(error)
                exchange.attempt_failed(error)
            raise
        self._took(1)
        self._failed = None
        self._take_head(exchange, response)
        return response

    def _next(self) -> _Exchange:
        """Give the exchange of the next attempt; raise what the last one has met if there shall be none."""
        if self._exchange.headed:
            self._exchange.answered()  # whoever asks once more has its answer
            self._exchange = _Exchange(self._guard, self._method, wired=True)
        elif (failed := self._exchange.given_up()) is not None:
            raise failed
        return self._exchange

    async def _in_time(self, handler: Any, request: aiohttp.ClientRequest) -> aiohttp.ClientResponse:
        if self._exchange.long:
            return cast("aiohttp.ClientResponse", await handler(request))
        try:
            async with asyncio.timeout(self._exchange.allow(CONNECT, self._patience.connect)) as self._limit:
                return cast("aiohttp.ClientResponse", await handler(request))
        except TimeoutError as error:
            if self._limit is None or not self._limit.expired() or isinstance(error, aiohttp.ClientError):
                raise
            if self._connected:
                raise aiohttp.SocketTimeoutError(TOO_LATE) from error
            msg = f"Connection timeout to host {request.url}"  # as aiohttp says it
            raise aiohttp.ConnectionTimeoutError(msg) from error
        finally:
            self._limit = None

    def _take_head(self, exchange: Exchange, response: aiohttp.ClientResponse) -> None:
        empty = response.content.is_eof() or response.status == HTTPStatus.SWITCHING_PROTOCOLS
        exchange.head(response.status, response.headers, empty=empty)
        if not empty:
            watch(response, exchange, self._patience.read)

    def _was_dead(self, request: aiohttp.ClientRequest, error: BaseException) -> bool:
        """Whether the connection was none before anything was written.

        asyncio takes a full accept queue of a unix socket for a connection, and what comes of that may be
        hidden by what comes of writing.
        """
        if has_errno(error, {errno.ENOTCONN}):
            return True
        dead = any("closing transport" in str(link) for link in chain(error))
        if not dead or self._chunks > 1 or "Expect" in request.headers:  # the head goes with the first part
            return False
        self._exchange.queue_full = self._exchange.fresh and self._path is not None and _is_full(self._path)
        return True

    def _note(self, error: BaseException) -> None:
        if self._queued and isinstance(error, TimeoutError):
            vars(error)[QUEUED] = True

    def _took(self, moved: int) -> None:
        self._exchange.took(READ if self._connected else CONNECT, self._began, moved)
        self._began = monotonic()

    # --- what aiohttp tells of an attempt -------------------------------------------------------------

    def queued(self) -> None:
        """Take in that it waits for a place in the pool."""
        self._queued = True

    def connecting(self) -> None:
        """Take in that it makes a connection."""
        self._queued = False
        self._exchange.connecting(unix=self._path is not None)

    def connected(self) -> None:
        """Take in that it has a connection, a new one or one that was kept."""
        self._took(0)
        self._queued, self._connected = False, True

    def writing(self, size: int) -> None:
        """Take in that a part of the request is written; from here on it waits for the head of the answer."""
        exchange = self._exchange
        exchange.sent = True
        if size:
            self._chunks += 1
            exchange.took(WRITE, self._began, size)
            self._began = monotonic()
        if self._limit is not None:
            allowed = exchange.allow(READ, self._patience.read)
            when = None if allowed is None else asyncio.get_running_loop().time() + allowed
            self._limit.reschedule(when)


def _is_full(path: str) -> bool:
    """Whether the accept queue of a unix socket is full."""
    with socket.socket(socket.AF_UNIX) as caller, suppress(OSError):
        caller.settimeout(0)
        try:
            caller.connect(path)
        except BlockingIOError:
            return True
    return False


class _Patience(NamedTuple):
    """The time-outs of a request, as far as it has any."""

    connect: float | None
    read: float | None


def _patience(timeout: aiohttp.ClientTimeout, given: object) -> _Patience:
    if isinstance(given, aiohttp.ClientTimeout):
        timeout = given
    elif given is None or isinstance(given, int | float):
        timeout = aiohttp.ClientTimeout(total=given)
    total = timeout.total or None
    return _Patience(timeout.connect or total, timeout.sock_read or total)


_LINE: Final = ("http_writer.py", "base_protocol.py")


def _upload_error(error: BaseException) -> BaseException | None:
    """Give what the data have raised that were to be sent, where aiohttp has made this error of it."""
    cause = error.__cause__
    trace = None if cause is None else cause.__traceback__
    if trace is None or trace.tb_frame.f_code.co_name != "write_bytes":
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return None if trace.tb_frame.f_code.co_filename.endswith(_LINE) else cause


_sending: Final[ContextVar[Sending | None]] = ContextVar("safehold_aiohttp", default=None)


def _telling(step: Callable[[Sending, Any], None]) -> Any:
    async def tell(_: Any, call: Sending | None, params: Any) -> None:
        if call is not None:
            step(call, params)

    return tell


def _trace_config() -> aiohttp.TraceConfig:
    """Make what lets aiohttp tell a call how far it has come. The call is its context."""
    traces = aiohttp.TraceConfig(cast("Any", lambda **_: _sending.get()))
    traces.on_connection_queued_start.append(_telling(lambda call, _: call.queued()))
    traces.on_connection_create_start.append(_telling(lambda call, _: call.connecting()))
    traces.on_connection_create_end.append(_telling(lambda call, _: call.connected()))
    traces.on_connection_reuseconn.append(_telling(lambda call, _: call.connected()))
    traces.on_request_headers_sent.append(_telling(lambda call, _: call.writing(0)))
    traces.on_request_chunk_sent.append(_telling(lambda call, params: call.writing(len(params.chunk))))
    traces.freeze()
    return traces


TRACES: Final = _trace_config()


# --- the default probe ----------------------------------------------------------------------------------


def locate(guard: SessionGuard, session: Any, base: URL) -> None:
    """Give the dependency of a session its default probe."""
    guard.locate(lambda path: _probe_for(session, base.join(URL(path)), guard.dependency))


def _probe_for(session: Any, url: URL, dependency: Dependency) -> Any:
    """Make a probe with a connector like the session's; `None` for one of another kind."""
    connector = session.connector
    make: Callable[[], aiohttp.BaseConnector]
    if isinstance(connector, aiohttp.UnixConnector):
        make = partial(aiohttp.UnixConnector, connector.path, force_close=True)
    elif isinstance(connector, aiohttp.TCPConnector):
        ssl = cast("Any", connector)._ssl
        make = partial(aiohttp.TCPConnector, ssl=ssl, family=cast("Any", connector.family), force_close=True)
    else:
        return None
    settings = {"trust_env": session.trust_env, "proxy": session._default_proxy}

    async def probe() -> None:
        step = PROBE_TIMEOUT
        limits = aiohttp.ClientTimeout(total=2 * step, connect=step, sock_connect=step, sock_read=step)
        async with (
            aiohttp.ClientSession(connector=make(), timeout=limits, **settings) as own,
            own.get(url, allow_redirects=False) as response,
        ):
            judge_probe(dependency, response.status, response.headers)

    return probe
