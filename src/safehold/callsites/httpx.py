"""Guard calls through httpx, over a unix socket or TCP: `guard_client(client, health["api_socket"])`.

Every style of call is covered: plain, streamed, redirected, through proxies and mounts, sync and async. A
call is answered when its body is complete: one that is cut short or stalls counts.

    httpx.TransportError, DependencyUnhealthy
    └── HttpxUnhealthy      a refused call

How it works: `_httpx_like`, which this module shares with `httpx2`.
"""

from __future__ import annotations

from typing import Final, TypeVar

try:
    import httpcore
    import httpx
except ImportError as error:
    msg = 'safehold.callsites.httpx needs httpx: pip install "safehold[httpx]"'
    raise ImportError(msg, name=error.name) from error

from .._runtime.classify import Judgement
from .._runtime.dependency import Dependency
from ._http import ServerFaultError, long_calls
from ._httpx_like import Library, Unsent

__all__ = [
    "TABLE",
    "AsyncGuardTransport",
    "GuardTransport",
    "HttpxUnhealthy",
    "ServerFaultError",
    "classify",
    "guard_client",
    "long_calls",
    "unguard_client",
]

C = TypeVar("C", bound="httpx.Client | httpx.AsyncClient")


class HttpxUnhealthy(Unsent, httpx.TransportError):
    """A refused HTTP call: a `DependencyUnhealthy`, and an `httpx.TransportError` for existing handlers."""


_library: Final = Library(httpx, httpcore, HttpxUnhealthy)
TABLE: Final = _library.meaning.table
"""What the exceptions of httpx mean, as rows."""


def classify(error: Exception) -> Judgement:
    """Say what an exception of httpx means; `TABLE` holds the rows."""
    return _library.classify(error)


class GuardTransport(httpx.BaseTransport):
    """A sync transport with a guard around it. `deadline` and `long` are those of `guard_client`."""

    def __init__(
        self,
        inner: httpx.BaseTransport,
        dependency: Dependency,
        *,
        deadline: float | None = None,
        long: bool = False,
    ) -> None:
        self.guard = _library.guard(dependency, deadline=deadline, long=long)
        self.inner = inner
        _library.lines.put(inner)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request through a permit; raises `HttpxUnhealthy` when the breaker refuses."""
        response: httpx.Response = _library.handle(self.guard, self.inner, request)
        return response

    def close(self) -> None:
        """Close the transport inside."""
        self.inner.close()


class AsyncGuardTransport(httpx.AsyncBaseTransport):
    """An async transport with a guard around it. `deadline` and `long` are those of `guard_client`."""

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        dependency: Dependency,
        *,
        deadline: float | None = None,
        long: bool = False,
    ) -> None:
        self.guard = _library.guard(dependency, deadline=deadline, long=long)
        self.inner = inner
        _library.lines.put(inner)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request through a permit; raises `HttpxUnhealthy` when the breaker refuses."""
        response: httpx.Response = await _library.ahandle(self.guard, self.inner, request)
        return response

    async def aclose(self) -> None:
        """Close the transport inside."""
        await self.inner.aclose()


def guard_client(
    client: C,
    dependency: Dependency,
    *,
    probe_path: str = "/",
    deadline: float | None = None,
    long: bool = False,
) -> C:
    """Guard a client, in place, and give it back.

    A refused request raises `HttpxUnhealthy`. The dependency gets a default probe (a `GET` of `probe_path`
    through the same transport, on a connection of its own, half a second for each step; any answer below
    500 but 429 is one), unless it has one.

    `deadline`: seconds for a whole call, redirects and body included. `None`: the head of an answer has to
    come whole within one read time-out, an upload and a body may take as long as they make progress, and
    no wait is longer than a minute where the client sets no time-out. In either case the client raises its
    own time-out.
    `long`: these calls wait by nature, such as for the next event: see `long_calls`, which says so of some
    calls only.

    Guarding twice is guarding once; the later settings count. Raises `ConfigurationError` for what is not
    an httpx client, for a client of another dependency, and for bad settings.
    """
    _library.guard_client(
        client,
        dependency,
        (GuardTransport, AsyncGuardTransport),
        probe_path=probe_path,
        deadline=deadline,
        long=long,
    )
    return client


def unguard_client(client: C) -> C:
    """Undo `guard_client`, in place, and give the client back. Nothing happens to one that is not guarded.

    The dependency keeps its probe.
    """
    _library.unguard_client(client)
    return client
