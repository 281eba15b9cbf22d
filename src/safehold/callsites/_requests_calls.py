"""What becomes of a request through requests: its upload, the body of its answer; the default probe."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from http.client import RemoteDisconnected
from time import monotonic
from typing import Any, cast
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3 import HTTPResponse, Retry
from urllib3 import exceptions as below
from urllib3.util.response import is_fp_closed

from .._runtime.dependency import Dependency
from ..errors import DependencyUnhealthy
from ._exchange import Exchange
from ._guarding import SessionGuard
from ._http import PROBE_TIMEOUT, judge_probe
from ._plainly import plain_class, plainly
from ._requests_wire import adopt
from ._waits import Span, Waits


class Guarded:
    """Marks the classes that are made of sessions and responses."""

    __slots__ = ()
    _safehold: Any = None


class GuardedAdapter(BaseAdapter):
    """An adapter with a guard around it, for the time of one call."""

    def __init__(self, inner: Any, guard: SessionGuard, session: Any) -> None:
        super().__init__()
        self._inner = inner
        self._guard = guard
        self._session = session

    def send(self, request: Any, *args: Any, **options: Any) -> Any:
        """Send a request through a permit; raises the refusal when there is none."""
        guard = self._guard
        if request.url:
            locate(guard, self._session, request.url)
        wired = adopt(self._inner)
        try:
            exchange = Exchange(guard, request.method or "request", wired=wired)
        except DependencyUnhealthy as error:
            cast("Any", error).request = request
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
            if not isinstance(part, Guarded):
                plain: Any = type(part)
                part.__class__ = _guarded_response(plain)
            part._safehold = exchange
    return response


@cache
def _guarded_response(plain: Any) -> Any:
    if not issubclass(plain, HTTPResponse):
        return plainly(plain, Guarded, {"iter_content": _iter_content(plain)})

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
    return plainly(plain, Guarded, {**over, "read_chunked": read_chunked, "close": close})


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


def locate(guard: SessionGuard, session: Any, url: str) -> None:
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
