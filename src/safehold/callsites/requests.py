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

import copy
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from http.client import BadStatusLine, HTTPException, RemoteDisconnected
from time import monotonic
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

try:
    import requests
    from requests import exceptions as said
    from requests.adapters import BaseAdapter, HTTPAdapter
    from urllib3 import HTTPResponse, Retry
    from urllib3 import exceptions as below
    from urllib3.util.response import is_fp_closed
except ImportError as error:
    msg = 'safehold.callsites.requests needs requests: pip install "safehold[requests]"'
    raise ImportError(msg, name=error.name) from error

from .._core.configuration import ConfigurationError
from .._runtime.classify import Judgement
from .._runtime.dependency import Dependency
from ..errors import DependencyUnhealthy
from ._exchange import Call, Exchange, call_under_way
from ._guarding import Guard, Meaning, SessionGuard
from ._http import PROBE_TIMEOUT, Marks, ServerFaultError, judge_probe, long_calls
from ._plainly import plain_class, plainly
from ._requests_wire import adopt
from ._table import chain
from ._waits import Span, Waits

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
        _locate(kept, session, base_url)
    return session


def unguard_session(session: S) -> S:
    """Undo `guard_session`, in place, and give the session back. Nothing happens to one that is not guarded.

    The dependency keeps its probe.
    """
    if _guarding(session) is not None:
        session.__class__ = plain_class(type(session))
        del session.__dict__["_safehold"]
    return session


class _Guarded:
    """Marks the classes made here."""

    __slots__ = ()
    _safehold: Any = None


def _guarding(session: object) -> SessionGuard | None:
    guard = session._safehold if isinstance(session, _Guarded) else None
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
        return _GuardedAdapter(adapter, guard, self)

    return plainly(plain, _Guarded, {"send": send, "get_adapter": get_adapter})


def _is_under_way(guard: Guard) -> bool:
    call = call_under_way()
    return call is not None and call.open and call.guard is guard


class _GuardedAdapter(BaseAdapter):
    """An adapter with a guard around it, for the time of one call."""

    def __init__(self, inner: Any, guard: SessionGuard, session: Any) -> None:
        super().__init__()
        self._inner = inner
        self._guard = guard
        self._session = session

    def send(self, request: Any, *args: Any, **options: Any) -> Any:
        """Send a request through a permit; raises `RequestsUnhealthy` when the breaker refuses."""
        guard = self._guard
        if request.url:
            _locate(guard, self._session, request.url)
        wired = adopt(self._inner)
        try:
            exchange = Exchange(guard, request.method or "request", wired=wired)
        except RequestsUnhealthy as error:
            error.request = request
            raise
        try:
            with exchange.here(), _fitted(exchange, request):
                response = self._send(request, args, options)
                if exchange.ended:
                    raise _half_a_head(request, response)
        except BaseException as error:
            exchange.failed(error)
            raise
        response.connection = self  # what answers a challenge sends by it
        return _watched(exchange, response)

    def _send(self, request: Any, args: Any, options: Any) -> Any:
        try:
            return self._inner.send(request, *args, **options)
        except below.EmptyPoolError as error:  # requests knows no limit to that wait, so it lets it through
            raise requests.ConnectionError(error, request=request) from error

    def close(self) -> None:
        """Close the adapter inside."""
        self._inner.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def _half_a_head(request: Any, response: Any) -> requests.ConnectionError:
    """Give what requests raises where nothing has come: in half a head, http.client sees no harm."""
    response.close()
    lost = RemoteDisconnected("Remote end closed connection in the middle of its head")
    return requests.ConnectionError(below.ProtocolError("Connection aborted.", lost), request=request)


@contextmanager
def _fitted(exchange: Exchange, request: Any) -> Generator[None]:
    """Let the upload say when it fails by itself."""
    body = request.body
    if body is not None and not isinstance(body, str | bytes | bytearray):
        request.body = (_FileUpload if hasattr(body, "read") else _Upload)(body, exchange)
    try:
        yield
    finally:
        request.body = body


class _Upload:
    """What the caller sends; its failure is the caller's own."""

    def __init__(self, inner: Any, exchange: Exchange) -> None:
        self._inner = inner
        self._exchange = exchange

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._inner
        except Exception as error:
            self._exchange.upload_error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _FileUpload(_Upload):
    def read(self, *args: Any) -> Any:
        try:
            return self._inner.read(*args)
        except Exception as error:
            self._exchange.upload_error = error
            raise


# --- responses ----------------------------------------------------------------------------------------


def _watched(exchange: Exchange, response: Any) -> Any:
    raw = response.raw
    has_stream = isinstance(raw, HTTPResponse)
    exchange.head(response.status_code, response.headers, empty=not has_stream)
    if has_stream:
        raw.enforce_content_length = True  # urllib3 1 takes half a body for a whole one
        parts: tuple[Any, Any] = (raw, response)
        for part in parts:
            if not isinstance(part, _Guarded):
                plain: Any = type(part)
                part.__class__ = _guarded_response(plain)
            part._safehold = exchange
    return response


@cache
def _guarded_response(plain: Any) -> Any:
    if not issubclass(plain, HTTPResponse):
        return plainly(plain, _Guarded, {"iter_content": _iter_content(plain)})

    def through(name: str) -> Any:
        def read(self: Any, *args: Any, **options: Any) -> Any:
            return _step(self, lambda: getattr(plain, name)(self, *args, **options))

        read.__name__ = name
        return read

    def read_chunked(self: Any, *args: Any, **options: Any) -> Iterator[Any]:
        parts = plain.read_chunked(self, *args, **options)
        while (part := _step(self, lambda: next(parts, None))) is not None:
            yield part

    def close(self: Any) -> None:
        if self._safehold is not None:
            self._safehold.abandoned()  # unless the body was read to its end
        plain.close(self)

    over = {name: through(name) for name in ("read", "read1") if hasattr(plain, name)}
    return plainly(plain, _Guarded, {**over, "read_chunked": read_chunked, "close": close})


def _step(raw: Any, read: Callable[[], Any]) -> Any:
    """Read on in a body."""
    exchange: Exchange | None = raw._safehold
    if exchange is None:
        return read()
    try:
        if exchange.overdue():
            raise below.ReadTimeoutError(raw._pool, None, "Read timed out.")
        began = monotonic()
        with exchange.here():
            part = read()
        if not exchange.wired:
            exchange.passed(began)
    except BaseException as error:
        exchange.failed(error)
        raise
    exchange.touched()
    if is_fp_closed(raw._fp):
        exchange.answered()
    return part


def _iter_content(plain: Any) -> Any:
    def iter_content(self: Any, *args: Any, **options: Any) -> Iterator[Any]:
        parts = plain.iter_content(self, *args, **options)
        return parts if self._safehold is None else _reported(self._safehold, parts)

    return iter_content


def _reported(exchange: Exchange, parts: Iterator[Any]) -> Iterator[Any]:
    """Let the exceptions that requests makes of urllib3's be known for what they are."""
    try:
        yield from parts
    except Exception as error:
        exchange.passed_on(error)
        raise
    exchange.answered()


# --- the default probe --------------------------------------------------------------------------------


def _locate(guard: SessionGuard, session: Any, url: str) -> None:
    """Give the dependency of a session its default probe."""

    def make(path: str) -> Callable[[], None]:
        parts = urlsplit(url)
        base = f"{parts.scheme}://{parts.netloc}"
        if not path.startswith("/"):
            base = f"{base}{parts.path}".rstrip("/") + "/"
        return _probe(session, base + path, guard.dependency)

    guard.locate(make)


def _probe(session: Any, url: str, dependency: Dependency) -> Callable[[], None]:
    def probe() -> None:
        request = requests.Request("GET", url).prepare()
        settings = session.merge_environment_settings(url, proxies={}, stream=True, verify=None, cert=None)
        adapter = session.get_adapter(url)
        twin = _twin(adapter)
        adopt(twin)
        waits = Waits(Span())
        try:
            with waits.here():
                response = twin.send(request, timeout=(PROBE_TIMEOUT, PROBE_TIMEOUT), **settings)
            if waits.ended:
                raise _half_a_head(request, response)
            try:
                judge_probe(dependency, response.status_code, response.headers)
            finally:
                response.close()
        finally:
            if twin is not adapter:
                twin.close()

    return probe


def _twin(adapter: Any) -> Any:
    """Make an adapter like this one that shares no connection with it, where that can be had."""
    plain: Any = type(adapter)
    if isinstance(adapter, HTTPAdapter) and plain.__reduce_ex__ is not HTTPAdapter.__reduce_ex__:
        plain = plain_class(plain)
    try:
        twin = copy.copy(adapter) if plain.__init__ is HTTPAdapter.__init__ else plain()
        twin.max_retries = Retry(0, read=False)
    except Exception:  # noqa: BLE001 - whatever it needs to be made, it cannot be made from here
        return adapter
    return twin
