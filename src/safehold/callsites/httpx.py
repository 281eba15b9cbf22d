"""Guard calls through httpx, over a unix socket or TCP: `guard_client(client, health["api_socket"])`.

The guard is a transport around the client's own, so that every style of call is covered, and it wraps the
stream of the response, so that a body that is cut short or stalls counts: a call is answered when its
body is complete.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final, TypeVar, cast

import httpx

from .._core.configuration import ConfigurationError
from .._runtime.classify import UNANSWERED, Judgement
from .._runtime.dependency import Dependency
from .._runtime.permit import Permit
from ..errors import DependencyUnhealthy

__all__ = [
    "AsyncGuardTransport",
    "GuardTransport",
    "HttpxUnhealthy",
    "ServerFaultError",
    "classify",
    "guard_client",
]

C = TypeVar("C", bound="httpx.Client | httpx.AsyncClient")

PROBE_TIMEOUT: Final = 0.5
"""Seconds that the default probe waits in each step."""
FAULTS: Final = frozenset({500, 502, 503, 504})
"""Answers that say the server cannot serve; the response reaches the caller all the same."""


class HttpxUnhealthy(DependencyUnhealthy, httpx.TransportError):
    """A refused HTTP call: a `DependencyUnhealthy`, and an `httpx.TransportError` for existing handlers."""

    @property
    def request(self) -> httpx.Request:
        """The request that was not sent."""
        request = self.__dict__.get("_request")
        if request is None:
            msg = "the request is not known here"
            raise RuntimeError(msg)
        return cast("httpx.Request", request)

    @request.setter
    def request(self, request: httpx.Request) -> None:
        self.__dict__["_request"] = request


class ServerFaultError(Exception):
    """The server answered that it cannot serve. Seen by the breaker only."""


def classify(error: Exception) -> bool | Judgement:
    """Say what an exception of httpx means: transport failures count, the caller's own mistakes do not.

    A full local pool says nothing about the server, but the call was not answered.
    """
    if isinstance(error, httpx.PoolTimeout):
        return UNANSWERED
    return not isinstance(
        error, httpx.UnsupportedProtocol | httpx.LocalProtocolError | httpx.InvalidURL | httpx.StreamError
    )


class GuardTransport(httpx.BaseTransport):
    """A sync transport with a guard around it."""

    def __init__(self, inner: httpx.BaseTransport, dependency: Dependency) -> None:
        self._inner = inner
        self.dependency = dependency

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request through a permit; raises `HttpxUnhealthy` when the breaker refuses."""
        permit = _enter(self.dependency)
        try:
            response = self._inner.handle_request(request)
        except BaseException as error:
            permit.fail(error)
            raise
        if not _decided(permit, request, response):
            response.stream = _GuardedStream(cast("httpx.SyncByteStream", response.stream), permit)
        return response

    def close(self) -> None:
        """Close the transport inside."""
        self._inner.close()


class AsyncGuardTransport(httpx.AsyncBaseTransport):
    """An async transport with a guard around it."""

    def __init__(self, inner: httpx.AsyncBaseTransport, dependency: Dependency) -> None:
        self._inner = inner
        self.dependency = dependency

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request through a permit; raises `HttpxUnhealthy` when the breaker refuses."""
        permit = _enter(self.dependency)
        try:
            response = await self._inner.handle_async_request(request)
        except BaseException as error:
            permit.fail(error)
            raise
        if not _decided(permit, request, response):
            response.stream = _AsyncGuardedStream(cast("httpx.AsyncByteStream", response.stream), permit)
        return response

    async def aclose(self) -> None:
        """Close the transport inside."""
        await self._inner.aclose()


def _enter(dependency: Dependency) -> Permit:
    # the answer may be read in another task than the request was sent from: nothing stays in the context
    return Permit(dependency, stepwise=True, error=HttpxUnhealthy, classify=classify).__enter__()


def _decided(permit: Permit, request: httpx.Request, response: httpx.Response) -> bool:
    """Whether the head of the response tells all there is to know."""
    if response.status_code in FAULTS:
        permit.fail(ServerFaultError(response.status_code))
        return True
    empty = response.status_code in {204, 304} or response.headers.get("content-length") == "0"
    if request.method == "HEAD" or empty or response.is_stream_consumed:
        permit.succeed()
        return True
    return False


class _GuardedStream(httpx.SyncByteStream):
    def __init__(self, inner: httpx.SyncByteStream, permit: Permit) -> None:
        self._inner = inner
        self._permit = permit

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._inner
        except BaseException as error:
            self._permit.fail(error)
            raise
        self._permit.succeed()

    def close(self) -> None:
        self._permit.abandon()  # unless the body was read to its end
        self._inner.close()


class _AsyncGuardedStream(httpx.AsyncByteStream):
    def __init__(self, inner: httpx.AsyncByteStream, permit: Permit) -> None:
        self._inner = inner
        self._permit = permit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._inner:
                yield part
        except BaseException as error:
            self._permit.fail(error)
            raise
        self._permit.succeed()

    async def aclose(self) -> None:
        self._permit.abandon()  # unless the body was read to its end
        await self._inner.aclose()


def guard_client(client: C, dependency: Dependency, *, probe_path: str = "/") -> C:
    """Guard a client, in place, and give it back.

    Its transports are wrapped; a refused request raises `HttpxUnhealthy`. The dependency gets a default
    probe (a `GET` of `probe_path` on a connection of its own, half a second for each step; any answer
    below 500 is one), unless it has one. Guarding twice is guarding once. Raises `ConfigurationError`
    for what is not an httpx client.
    """
    if not isinstance(cast("object", client), httpx.Client | httpx.AsyncClient):
        msg = f"client must be an httpx.Client or httpx.AsyncClient, got {client!r}"
        raise ConfigurationError(msg)
    wrap: Any = AsyncGuardTransport if isinstance(client, httpx.AsyncClient) else GuardTransport
    internals: Any = client
    inner = internals._transport
    if isinstance(inner, wrap):
        if inner.dependency is not dependency:
            msg = f"this client is guarded as {inner.dependency.name!r} already, not as {dependency.name!r}"
            raise ConfigurationError(msg)
        return client
    internals._transport = wrap(inner, dependency)
    internals._mounts = {
        pattern: None if mount is None else wrap(mount, dependency)
        for pattern, mount in internals._mounts.items()
    }
    base = client.base_url if client.base_url.host else httpx.URL("http://localhost")
    probe = _probe_for(inner, base.join(probe_path), is_async=wrap is AsyncGuardTransport)
    dependency.provide(probe=probe, classify=classify)
    return client


def _probe_for(inner: Any, url: httpx.URL, *, is_async: bool) -> Any:
    """Probe on a connection of its own; a transport that has none, such as a mock, is asked itself."""
    timeout = {"timeout": httpx.Timeout(PROBE_TIMEOUT).as_dict()}
    request = httpx.Request("GET", url, extensions=timeout)

    def probe() -> None:
        pool = inner._pool
        with httpx.HTTPTransport(uds=pool._uds, verify=pool._ssl_context or True) as transport:
            _judge(transport.handle_request(request))

    def probe_inner() -> None:
        _judge(inner.handle_request(request))

    async def probe_inner_async() -> None:
        _judge(await inner.handle_async_request(request))

    if isinstance(inner, httpx.HTTPTransport | httpx.AsyncHTTPTransport):
        return probe
    return probe_inner_async if is_async else probe_inner


def _judge(response: httpx.Response) -> None:
    if response.status_code >= 500:
        msg = f"the probe was answered with {response.status_code}"
        raise ServerFaultError(msg)
