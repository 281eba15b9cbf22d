"""Guard a session of requests: `guard_session(session, health["api_socket"])`.

Every style of call is covered: plain, streamed, redirected, over TCP or, with the adapter of
requests-unixsocket2, over a unix socket. A call is answered when its body is complete: one that is cut
short or stalls counts.

The session stays the object that it was: its class becomes a cached subclass of its own class, in place,
which puts a guard around each adapter that it uses. A response and its raw stream are treated alike, so
that a streamed body is watched however it is read.

    requests.ConnectionError, DependencyUnhealthy
    └── RequestsUnhealthy      a refused call
"""

from __future__ import annotations

from functools import cache
from http.client import BadStatusLine, HTTPException, RemoteDisconnected
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

try:
    import requests
    from requests import exceptions as said
    from urllib3 import exceptions as below
except ImportError as error:
    msg = 'safehold.callsites.requests needs requests: pip install "safehold[requests]"'
    raise ImportError(msg, name=error.name) from error

from .._core.configuration import ConfigurationError
from .._runtime.classify import Judgement
from .._runtime.dependency import Dependency
from ..errors import DependencyUnhealthy
from ._exchange import Call, call_under_way
from ._guarding import Guard, Meaning, SessionGuard
from ._http import Marks, ServerFaultError, long_calls
from ._plainly import plain_class, plainly
from ._requests_calls import Guarded, GuardedAdapter, locate
from ._table import chain

__all__ = [
    "TABLE",
    "RequestsUnhealthy",
    "ServerFaultError",
    "classify",
    "guard_session",
    "long_calls",
    "unguard_session",
]

S = TypeVar("S", bound="requests.Session")


class RequestsUnhealthy(DependencyUnhealthy, requests.ConnectionError):
    """A refused call: a `DependencyUnhealthy`, and a `requests.ConnectionError` for existing handlers."""

    response: requests.Response | None = None
    request: requests.Request | requests.PreparedRequest | None = None


def _is_mistake(error: BaseException) -> bool:
    kinds = (
        said.InvalidSchema,
        said.MissingSchema,
        said.InvalidURL,
        said.InvalidProxyURL,
        said.InvalidJSONError,
        said.UnrewindableBodyError,
        said.StreamConsumedError,
        below.LocationValueError,
    )
    if isinstance(error, kinds):
        return True
    if isinstance(error, said.RequestException | below.HTTPError | HTTPException):
        return False
    no_file = type(error) is OSError and error.errno is None  # of certificates, and the message says which
    return isinstance(error, ValueError | TypeError) or no_file


def _is_not_http(error: BaseException) -> bool:
    """Whether it was understood as no HTTP, as opposed to a connection that ended."""
    links = list(chain(error))
    odd = (BadStatusLine, HTTPException, below.InvalidHeader)
    return any(isinstance(link, odd) for link in links) and not any(
        isinstance(link, RemoteDisconnected) for link in links
    )


def _is_connect_timeout(error: BaseException) -> bool:
    made = isinstance(error, below.ConnectTimeoutError) and not isinstance(error, below.NewConnectionError)
    return made or isinstance(error, said.ConnectTimeout)


def _is_timeout(error: BaseException) -> bool:
    kinds = (TimeoutError, below.TimeoutError, said.Timeout)
    return any(isinstance(link, kinds) for link in chain(error))


def _is_pool_full(error: BaseException) -> bool:
    return any(isinstance(link, below.EmptyPoolError) for link in chain(error))


_meaning: Final = Meaning(
    Marks(
        pool_full=_is_pool_full,
        mistake=_is_mistake,
        not_http=_is_not_http,
        connect_timeout=_is_connect_timeout,
        timeout=_is_timeout,
        proxy=lambda error: isinstance(error, said.ProxyError),
        redirected=lambda error: isinstance(error, said.TooManyRedirects),
        not_decoded=lambda error: isinstance(error, said.ContentDecodingError | below.DecodeError),
    ),
    RequestsUnhealthy,
    own=(said.RequestException, below.HTTPError),
    but=(said.HTTPError, said.InvalidJSONError),
)
TABLE: Final = _meaning.table
"""What the exceptions of requests mean, as rows."""


def classify(error: Exception) -> Judgement:
    """Say what an exception of requests means; `TABLE` holds the rows."""
    return _meaning.classify(error)


def guard_session(
    session: S,
    dependency: Dependency,
    *,
    base_url: str | None = None,
    probe_path: str = "/",
    deadline: float | None = None,
    long: bool = False,
) -> S:
    """Guard a session and give it back: the same object, of a subclass of its own class.

    A refused request raises `RequestsUnhealthy`. The dependency gets a default probe (a `GET` of
    `probe_path` through an adapter like the session's, on a connection of its own, half a second for each
    step; any answer below 500 but 429 is one), unless it has one.

    `base_url`: where the dependency is, for the probe: `"http+unix://%2Frun%2Fapi.sock"`. `None`: where the
    first request goes; there is no probe before that.
    `deadline`: seconds for a whole call, redirects and body included. `None`: the head of an answer has to
    come whole within one time-out, an upload and a body may take as long as they make progress, and no wait
    is longer than a minute where the request sets no time-out. In either case requests raises its own
    time-out.
    `long`: these calls wait by nature, such as for the next event: see `long_calls`, which says so of some
    calls only.

    Guarding twice is guarding once; the later settings count. Raises `ConfigurationError` for what is not
    a session, for a session of another dependency, and for bad settings.
    """
    if not isinstance(cast("object", session), requests.Session):
        msg = f"session must be a requests.Session, got {session!r}"
        raise ConfigurationError(msg)
    for name, value in (("base_url", base_url), ("probe_path", probe_path)):
        if not isinstance(value, str) and not (value is None and name == "base_url"):
            msg = f"{name} must be a string, got {value!r}"
            raise ConfigurationError(msg)
    if base_url is not None and not (urlsplit(base_url).scheme and urlsplit(base_url).netloc):
        msg = f"base_url must have a scheme and a host, got {base_url!r}"
        raise ConfigurationError(msg)
    # it checks what it is given
    guard = SessionGuard(dependency, _meaning, probe_path, deadline=deadline, long=long)
    kept = guard.renewing(_guarding(session), "session")
    if kept is guard:
        session.__class__ = _guarded_session(cast("Any", type(session)))
        cast("Any", session)._safehold = guard
    kept.probe_path = probe_path
    dependency.provide(classify=classify)
    if base_url is not None:
        locate(kept, session, base_url)
    return session


def unguard_session(session: S) -> S:
    """Undo `guard_session`, in place, and give the session back. Nothing happens to one that is not guarded.

    The dependency keeps its probe.
    """
    if _guarding(session) is not None:
        session.__class__ = plain_class(type(session))
        del session.__dict__["_safehold"]
    return session


def _guarding(session: object) -> SessionGuard | None:
    guard = session._safehold if isinstance(session, Guarded) else None
    return guard if isinstance(guard, SessionGuard) else None


# --- sessions -----------------------------------------------------------------------------------------


@cache
def _guarded_session(plain: Any) -> Any:
    """Make the guarded subclass of a session's class. The parent's methods are looked up at each call."""

    def send(self: Any, request: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None or _is_under_way(guard):  # requests sends redirects the same way
            return plain.send(self, request, **options)
        with Call(guard):
            return plain.send(self, request, **options)

    def get_adapter(self: Any, *args: Any, **options: Any) -> Any:
        adapter = plain.get_adapter(self, *args, **options)
        guard = self._safehold
        if guard is None or not _is_under_way(guard):
            return adapter
        return GuardedAdapter(adapter, guard, self)

    return plainly(plain, Guarded, {"send": send, "get_adapter": get_adapter})


def _is_under_way(guard: Guard) -> bool:
    call = call_under_way()
    return call is not None and call.open and call.guard is guard
