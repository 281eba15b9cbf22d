"""What guards httpx and httpx2 alike: two libraries of one shape, each with its own classes.

The guard is a transport around the client's own, so that every style of call is covered, and it wraps the
stream of the response: a call is answered when its body is complete. The client's class becomes a cached
subclass whose `send` is one `Call`, so that redirects share a deadline. Below, the network backend of the
connection pool is wrapped (`_httpx_lines`), where waits are shortened to what is left: time-outs come from
the client itself, sync or async.

A `Library` is made from the two modules; types stay with those who make it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from time import monotonic
from typing import Any, Final

from .._core.configuration import ConfigurationError
from .._runtime.classify import Judgement
from .._runtime.dependency import Dependency
from ..errors import DependencyUnhealthy
from ._exchange import Call, Exchange
from ._guarding import Guard, Meaning
from ._http import PROBE_TIMEOUT, Marks, judge_probe
from ._httpx_lines import Lines
from ._httpx_streams import streams
from ._plainly import plain_class, plainly
from ._table import CONNECTION_LOST, chain, has_errno
from ._waits import LONGEST_WAIT, Span, Waits

_MARGIN: Final = 0.1
"""Seconds that the client's own time-outs have before a scope around them ends."""


class Unsent(DependencyUnhealthy):
    """A refusal that knows its request, as the errors of these libraries do."""

    @property
    def request(self) -> Any:
        """The request that was not sent."""
        request = self.__dict__.get("_request")
        if request is None:
            msg = "the request is not known here"
            raise RuntimeError(msg)
        return request

    @request.setter
    def request(self, request: Any) -> None:
        self.__dict__["_request"] = request


class Library:
    """One of the libraries: its module, its core's module, and the refusal in its tree of exceptions."""

    def __init__(self, http: Any, core: Any, refusal: type[DependencyUnhealthy]) -> None:
        self.http = http
        self.meaning = Meaning(_marks(http), refusal, own=(http.RequestError,))
        self.lines = Lines(http, core)
        self.body, self.async_body, self.upload = streams(http)

    def classify(self, error: Exception) -> Judgement:
        """Say what an exception means."""
        return self.meaning.classify(error)

    def guard(self, dependency: Dependency, *, deadline: float | None, long: bool) -> Guard:
        """Make the guard of a client."""
        return Guard(dependency, self.meaning, deadline=deadline, long=long)

    # --- requests -----------------------------------------------------------------------------------

    def handle(self, guard: Guard, inner: Any, request: Any) -> Any:
        """Send a request through a permit."""
        exchange = Exchange(guard, request.method, wired=self.lines.has(inner))
        began = monotonic()
        try:
            with exchange.here(), self._fitted(exchange, request):
                response = inner.handle_request(request)
        except BaseException as error:
            exchange.failed(error)
            raise
        if not exchange.wired:
            exchange.passed(began)
        exchange.head(response.status_code, response.headers, empty=response.is_stream_consumed)
        if not response.is_stream_consumed:
            response.stream = self.body(response.stream, exchange)
        return response

    async def ahandle(self, guard: Guard, inner: Any, request: Any) -> Any:
        """Send a request through a permit."""
        exchange = Exchange(guard, request.method, wired=self.lines.has(inner))
        try:
            with exchange.here(), self._fitted(exchange, request):
                response = await self.in_time(exchange, inner.handle_async_request, request)
        except BaseException as error:
            exchange.failed(error)
            raise
        exchange.head(response.status_code, response.headers, empty=response.is_stream_consumed)
        if not response.is_stream_consumed:
            response.stream = self.async_body(response.stream, exchange, self.in_time)
        return response

    async def in_time(self, exchange: Exchange, step: Callable[..., Any], *args: Any) -> Any:
        """Await one step, for as long as the call's deadline lets it; the client's own time-outs go first."""
        left = exchange.call.left()
        if left is None:
            return await step(*args)
        import anyio  # noqa: PLC0415 - the libraries bring it, for their async half alone

        began = monotonic()
        try:
            with anyio.move_on_after(max(0.0, left + (_MARGIN if exchange.wired else 0.0))):
                return await step(*args)
        finally:
            if not exchange.wired:
                exchange.passed(began)
        kind = self.http.ReadTimeout if exchange.sent or not exchange.wired else self.http.ConnectTimeout
        msg = "the deadline is over"
        raise kind(msg)

    @contextmanager
    def _fitted(self, exchange: Exchange, request: Any) -> Generator[None]:
        """Let the request have the limits of its exchange, and let the upload say when it fails by itself."""
        before = (request.stream, request.extensions)
        if not isinstance(request.stream, self.http.ByteStream):
            request.stream = self.upload(request.stream, exchange)
        if not exchange.long:
            request.extensions = _with_pool_limit(request.extensions, exchange)
        try:
            yield
        finally:
            request.stream, request.extensions = before

    # --- clients ------------------------------------------------------------------------------------

    def guard_client(
        self,
        client: Any,
        dependency: Dependency,
        transports: tuple[Any, Any],
        *,
        probe_path: str,
        deadline: float | None,
        long: bool,
    ) -> None:
        """Guard a client in place; `transports` are the guarding classes, sync and async."""
        http = self.http
        if not isinstance(client, http.Client | http.AsyncClient):
            name = http.__name__
            msg = f"client must be an {name}.Client or {name}.AsyncClient, got {client!r}"
            raise ConfigurationError(msg)
        if not isinstance(probe_path, str):
            msg = f"probe_path must be a path such as '/health', got {probe_path!r}"
            raise ConfigurationError(msg)
        guard = self.guard(dependency, deadline=deadline, long=long)  # checks what it is given
        if guard.renewing(guarding(client), "client") is guard:
            self._wrap(client, guard, transports[isinstance(client, http.AsyncClient)])
        probe = self._probe(client, probe_path, dependency)
        dependency.provide(probe=probe, classify=self.meaning.classify)

    def _wrap(self, client: Any, guard: Guard, transport: Any) -> None:
        made: dict[int, Any] = {}

        def wrapped(inner: Any) -> Any:
            if inner is None:
                return None
            if id(inner) not in made:
                made[id(inner)] = transport(inner, guard.dependency)
                made[id(inner)].guard = guard
            return made[id(inner)]

        client._transport = wrapped(client._transport)
        client._mounts = {pattern: wrapped(mount) for pattern, mount in client._mounts.items()}
        plain: Any = type(client)
        client.__class__ = _guarded_class(plain, isinstance(client, self.http.AsyncClient))
        client._safehold = guard

    def unguard_client(self, client: Any) -> None:
        """Undo `guard_client`."""
        if guarding(client) is None:
            return

        def plain(transport: Any) -> Any:
            if not isinstance(getattr(transport, "guard", None), Guard):
                return transport
            self.lines.remove(transport.inner)
            return transport.inner

        client._transport = plain(client._transport)
        client._mounts = {pattern: plain(mount) for pattern, mount in client._mounts.items()}
        client.__class__ = plain_class(type(client))
        del client.__dict__["_safehold"]

    # --- the default probe --------------------------------------------------------------------------

    def _probe(self, client: Any, path: str, dependency: Dependency) -> Any:
        """Probe on a connection of its own; a transport that has none, such as a mock, is asked itself."""
        http = self.http
        base = client.base_url if client.base_url.host else http.URL("http://localhost")
        url = base.join(path)
        inner = client._transport_for_url(url).inner
        request = http.Request("GET", url, extensions={"timeout": http.Timeout(PROBE_TIMEOUT).as_dict()})
        own = self.lines.has(inner)

        def probe() -> None:
            transport = _twin(inner) if own else inner
            try:
                with Waits(Span()).here():
                    response = transport.handle_request(request)
                judge_probe(dependency, response.status_code, response.headers)
            finally:
                if own:
                    transport.close()

        async def async_probe() -> None:
            transport = _twin(inner) if own else inner
            try:
                with Waits(Span()).here():
                    response = await transport.handle_async_request(request)
                judge_probe(dependency, response.status_code, response.headers)
            finally:
                if own:
                    await transport.aclose()

        return async_probe if isinstance(client, http.AsyncClient) else probe


class _Guarded:
    """Marks the classes made here."""

    __slots__ = ()
    _safehold: Guard | None = None


def guarding(client: Any) -> Guard | None:
    """Give the guard of a client; `None` for one that has none."""
    return client._safehold if isinstance(client, _Guarded) else None


@cache
def _guarded_class(plain: Any, is_async: bool) -> Any:  # noqa: FBT001 - one of two kinds
    """Make the guarded subclass of a client's class. The parent's `send` is looked up at each call."""

    def send(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None:
            return plain.send(self, *args, **options)
        with Call(guard):
            return plain.send(self, *args, **options)

    async def asend(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None:
            return await plain.send(self, *args, **options)
        with Call(guard):
            return await plain.send(self, *args, **options)

    asend.__name__ = "send"
    return plainly(plain, _Guarded, {"send": asend if is_async else send})


def _twin(transport: Any) -> Any:
    """Make a transport like this one that shares no connection with it."""
    pool = copy.copy(transport._pool)
    pool._connections, pool._requests = [], []
    pool._optional_thread_lock = type(pool._optional_thread_lock)()
    twin = copy.copy(transport)
    twin._pool = pool
    return twin


def _with_pool_limit(extensions: Any, exchange: Exchange) -> Any:
    """Limit the wait for a connection of the pool's: the one wait that the lines do not see."""
    timeouts = extensions.get("timeout") or {}
    own, left = timeouts.get("pool"), exchange.call.left()
    limits = [seconds for seconds in (own, left) if seconds is not None]
    limit = max(0.0, min(limits, default=LONGEST_WAIT))
    return extensions if limit == own else {**extensions, "timeout": {**timeouts, "pool": limit}}


def _marks(http: Any) -> Marks:
    mistakes = (http.UnsupportedProtocol, http.LocalProtocolError, http.InvalidURL, http.StreamError)

    def is_a(*kinds: Any) -> Callable[[BaseException], bool]:
        return lambda error: isinstance(error, kinds)

    def not_http(error: BaseException) -> bool:
        """Whether it was understood as no HTTP, as opposed to a connection that ended."""
        lost = has_errno(error, CONNECTION_LOST)
        return not lost and any(type(link).__module__.startswith("h11") for link in chain(error))

    return Marks(
        pool_full=is_a(http.PoolTimeout),
        mistake=is_a(*mistakes),
        not_http=not_http,
        connect_timeout=is_a(http.ConnectTimeout),
        timeout=is_a(http.TimeoutException),
        proxy=is_a(http.ProxyError),
        redirected=is_a(http.TooManyRedirects),
        not_decoded=is_a(http.DecodingError),
    )
