"""Guard a session of aiohttp: `guard_session(session, health["api_socket"])`.

Every style of call is covered: awaited or `async with`, redirected, over TCP or a unix socket; and of a
WebSocket, the handshake. A call is answered when its body is complete: one that is cut short or stalls
counts, however it is read. Who leaves a body unread has wanted the head, and that was the answer.

The session stays the object that it was: its class becomes a cached subclass of its own class, in place.
Three seams of aiohttp see a call: `_request`, which all calls go through, asks for the permit and adds a
client middleware in the innermost place. That one sees each attempt, so that the silent retry after a
dropped connection is an attempt and no call. A `TraceConfig` sees how far an attempt has come.

    aiohttp.ClientConnectionError, DependencyUnhealthy
    └── AiohttpUnhealthy       a refused call
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any, Final, TypeVar, cast

try:
    import aiohttp
    from aiohttp.http import HttpProcessingError
    from yarl import URL
except ImportError as error:
    msg = 'safehold.callsites.aiohttp needs aiohttp: pip install "safehold[aiohttp]"'
    raise ImportError(msg, name=error.name) from error

from .._core.configuration import ConfigurationError
from .._runtime.classify import Judgement
from .._runtime.dependency import Dependency
from ..errors import DependencyUnhealthy
from ._aiohttp_calls import QUEUED, TRACES, Sending, locate
from ._exchange import Call
from ._guarding import Meaning, SessionGuard
from ._http import Marks, ServerFaultError, long_calls
from ._plainly import plainly

__all__ = [
    "TABLE",
    "AiohttpUnhealthy",
    "ServerFaultError",
    "classify",
    "guard_session",
    "long_calls",
    "unguard_session",
]

S = TypeVar("S", bound="aiohttp.ClientSession")


class AiohttpUnhealthy(DependencyUnhealthy, aiohttp.ClientConnectionError):
    """A refused call: a `DependencyUnhealthy`, and an `aiohttp.ClientConnectionError` for handlers of it."""


# --- what it means --------------------------------------------------------------------------------------


def _is_not_http(error: BaseException) -> bool:
    """Whether no head could be read. aiohttp calls it a status of 400, which no server has said."""
    return isinstance(error, aiohttp.ClientResponseError) and isinstance(error.__cause__, HttpProcessingError)


def _is_an_answer(error: BaseException) -> bool:
    """Whether it was made of an answer that was judged when it came, as by `raise_for_status`."""
    others = (aiohttp.TooManyRedirects, aiohttp.ClientHttpProxyError)
    return isinstance(error, aiohttp.ClientResponseError) and not (
        isinstance(error, others) or _is_not_http(error)
    )


def _is_redirected(error: BaseException) -> bool:
    return isinstance(error, aiohttp.TooManyRedirects | aiohttp.RedirectClientError)


def _is_mistake(error: BaseException) -> bool:
    if _is_redirected(error):
        return False
    known = isinstance(error, aiohttp.ClientError | OSError)
    return (
        not known
        or _is_an_answer(error)
        or isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError)
    )


class _Meaning(Meaning):
    def is_own(self, error: BaseException) -> bool:
        return super().is_own(error) and not _is_an_answer(error)


_meaning: Final = _Meaning(
    Marks(
        pool_full=lambda error: QUEUED in vars(error),
        mistake=_is_mistake,
        not_http=_is_not_http,
        connect_timeout=lambda error: isinstance(error, aiohttp.ConnectionTimeoutError),
        timeout=lambda error: isinstance(error, TimeoutError),
        proxy=lambda error: isinstance(
            error, aiohttp.ClientHttpProxyError | aiohttp.ClientProxyConnectionError
        ),
        redirected=_is_redirected,
    ),
    AiohttpUnhealthy,
    own=(aiohttp.ClientError, TimeoutError),
)
TABLE: Final = _meaning.table
"""What the exceptions of aiohttp mean, as rows."""


def classify(error: Exception) -> Judgement:
    """Say what an exception of aiohttp means; `TABLE` holds the rows."""
    return _meaning.classify(error)


# --- sessions -------------------------------------------------------------------------------------------


def guard_session(
    session: S,
    dependency: Dependency,
    *,
    base_url: str | URL | None = None,
    probe_path: str = "/",
    deadline: float | None = None,
    long: bool = False,
) -> S:
    """Guard a session and give it back: the same object, of a subclass of its own class.

    A refused call raises `AiohttpUnhealthy`, before any of the session's middlewares. The dependency gets a
    default probe (a `GET` of `probe_path` on a connection of its own, half a second for each step; any answer
    below 500 but 429 is one), unless it has one.

    `base_url`: where the dependency is, for the probe. `None`: the session's own, or where its unix socket or
    else the first request goes; there is no probe before that.
    `deadline`: seconds for a whole call, redirects and body included. `None`: the head of an answer has to
    come whole within one time-out, a body may take as long as it makes progress, and no wait is longer than a
    minute where the request sets no time-out. In either case aiohttp's own time-outs are raised.
    `long`: these calls wait by nature, such as for the next event: see `long_calls`, which says so of some
    calls only.

    Guarding twice is guarding once; the later settings count. Raises `ConfigurationError` for what is not
    a session, for a session of another dependency, and for bad settings.
    """
    if not isinstance(cast("object", session), aiohttp.ClientSession):
        msg = f"session must be an aiohttp.ClientSession, got {session!r}"
        raise ConfigurationError(msg)
    if not isinstance(probe_path, str):
        msg = f"probe_path must be a path such as '/health', got {probe_path!r}"
        raise ConfigurationError(msg)
    base = _base_of(session, base_url)
    # it checks what it is given
    guard = SessionGuard(dependency, _meaning, probe_path, deadline=deadline, long=long)
    kept = guard.renewing(_guarding(session), "session")
    if kept is guard:
        _adopt(session, guard)
    kept.probe_path = probe_path
    dependency.provide(classify=classify)
    if base is not None:
        locate(kept, session, base)
    return session


def unguard_session(session: S) -> S:
    """Undo `guard_session`, in place, and give the session back. Nothing happens to one that is not guarded.

    The dependency keeps its probe.
    """
    if _guarding(session) is not None:
        session._trace_configs = [trace for trace in session._trace_configs if trace is not TRACES]
        _change_class(session, type(session).__bases__[0])
        del session.__dict__["_safehold"]
    return session


def _adopt(session: Any, guard: SessionGuard) -> None:
    session._trace_configs = [*session._trace_configs, TRACES]
    _change_class(session, _guarded_class(cast("Any", type(session))))
    session.__dict__["_safehold"] = guard


def _change_class(session: Any, kind: Any) -> None:
    object.__setattr__(session, "__class__", kind)  # its own warns of unknown attributes, in debug mode


def _guarding(session: Any) -> SessionGuard | None:
    guard = session.__dict__.get("_safehold")
    return guard if isinstance(guard, SessionGuard) else None


def _base_of(session: Any, given: object) -> URL | None:
    if given is not None:
        base = URL(given) if isinstance(given, str) else given
        if not isinstance(base, URL) or not base.absolute:
            msg = f"base_url must have a scheme and a host, got {given!r}"
            raise ConfigurationError(msg)
        return base
    if session._base_url is None and isinstance(session.connector, aiohttp.UnixConnector):
        return URL("http://localhost")
    return cast("URL | None", session._base_url)


class _Guarded:
    """Marks the classes made here."""

    __slots__ = ()


@cache
def _guarded_class(plain: Any) -> Any:
    """Make the guarded subclass of a session's class."""

    async def _request(self: Any, method: str, str_or_url: Any, **options: Any) -> aiohttp.ClientResponse:
        guard = _guarding(self)
        if guard is None:
            return cast("aiohttp.ClientResponse", await plain._request(self, method, str_or_url, **options))
        given = options.pop("middlewares", None)
        with Call(guard), Sending(guard, self, method, options) as sending:
            middlewares = (*(self._middlewares if given is None else given), sending.attempt)
            response = await plain._request(self, method, str_or_url, middlewares=middlewares, **options)
            return cast("aiohttp.ClientResponse", response)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # aiohttp would have nobody subclass it
        return plainly(plain, _Guarded, {"_request": _request})
