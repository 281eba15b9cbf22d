"""The wire of httpx and httpx2: their network backends and streams, with waits that are accounted for.

A connection pool makes its connections through a backend, and reads and writes through the streams that it
gives. Wrapped, both ask `under_way()` how long they may wait; where no guard is concerned they are
transparent. So one pool may serve guarded and unguarded clients, and a stream outlives its guard.
"""

from __future__ import annotations

from time import monotonic
from typing import Any, Final, cast

from ._waits import CONNECT, READ, WRITE, Waits, under_way

_PIECE: Final = 65536
"""Bytes that are written in one wait: of a larger buffer nobody would know whether it makes progress."""


class Lines:
    """The wrapping classes of one library, and how to put them in and out."""

    def __init__(self, http: Any, core: Any) -> None:
        self._backends = _backends(http, core)
        self._lines = _lines(core)

    def has(self, transport: Any) -> bool:
        """Whether all that goes over its connections is seen."""
        pool = getattr(transport, "_pool", None)
        return isinstance(getattr(pool, "_network_backend", None), self._backends)

    def put(self, transport: Any) -> None:
        """Wrap the backend of a transport, and the connections that it has; one without a pool is let be."""
        pool: Any = getattr(transport, "_pool", None)
        if getattr(pool, "_network_backend", None) is None or self.has(transport):
            return
        is_async = hasattr(pool, "handle_async_request")
        backend, line = self._backends[is_async], self._lines[is_async]
        pool._network_backend = backend(pool._network_backend, line)
        for connection in list(getattr(pool, "_connections", ())):
            link: Any = connection
            while link is not None:
                if hasattr(link, "_network_backend"):
                    link._network_backend = pool._network_backend
                if hasattr(link, "_network_stream"):
                    link._network_stream = line(link._network_stream)
                link = getattr(link, "_connection", None)

    def remove(self, transport: Any) -> None:
        """Take the wrapper off a transport; the streams that it has made stay, and are transparent."""
        if self.has(transport):
            transport._pool._network_backend = transport._pool._network_backend.inner


def _granted(waits: Waits, what: str, own: float | None, kind: type[Exception]) -> float | None:
    """Give the seconds of a wait; raise the client's time-out when there are none."""
    allowed = waits.allow(what, own)
    if allowed is not None and allowed <= 0 and (own is None or own > 0):
        msg = "there is no time left"
        raise kind(msg)
    return allowed


def _pieces(buffer: Any) -> Any:
    return (buffer[at : at + _PIECE] for at in range(0, len(buffer), _PIECE))


def _lines(core: Any) -> tuple[Any, Any]:
    class Line(core.NetworkStream):  # type: ignore[misc]  # the library is given
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            waits = under_way()
            if waits is None:
                return cast("bytes", self._inner.read(max_bytes, timeout))
            allowed = _granted(waits, READ, timeout, core.ReadTimeout)
            data: bytes = b""
            began = monotonic()
            try:
                data = self._inner.read(max_bytes, allowed)
            finally:
                waits.took(READ, began, len(data))
            return data

        def write(self, buffer: bytes, timeout: float | None = None) -> None:
            waits = under_way()
            if waits is None:
                self._inner.write(buffer, timeout)
                return
            for piece in _pieces(buffer):
                allowed = _granted(waits, WRITE, timeout, core.WriteTimeout)
                began = monotonic()
                try:
                    self._inner.write(piece, allowed)
                finally:
                    waits.took(WRITE, began, len(piece))

        def close(self) -> None:
            self._inner.close()

        def start_tls(
            self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
        ) -> Line:
            waits = under_way()
            if waits is not None:
                timeout = _granted(waits, CONNECT, timeout, core.ConnectTimeout)
            began = monotonic()
            try:
                return Line(self._inner.start_tls(ssl_context, server_hostname, timeout))
            finally:
                if waits is not None:
                    waits.took(CONNECT, began)

        def get_extra_info(self, info: str) -> Any:
            return self._inner.get_extra_info(info)

    class AsyncLine(core.AsyncNetworkStream):  # type: ignore[misc]  # the library is given
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - its name
            waits = under_way()
            if waits is None:
                return cast("bytes", await self._inner.read(max_bytes, timeout))
            allowed = _granted(waits, READ, timeout, core.ReadTimeout)
            data: bytes = b""
            began = monotonic()
            try:
                data = await self._inner.read(max_bytes, allowed)
            finally:
                waits.took(READ, began, len(data))
            return data

        async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - its name
            waits = under_way()
            if waits is None:
                await self._inner.write(buffer, timeout)
                return
            for piece in _pieces(buffer):
                allowed = _granted(waits, WRITE, timeout, core.WriteTimeout)
                began = monotonic()
                try:
                    await self._inner.write(piece, allowed)
                finally:
                    waits.took(WRITE, began, len(piece))

        async def aclose(self) -> None:
            await self._inner.aclose()

        async def start_tls(
            self,
            ssl_context: Any,
            server_hostname: str | None = None,
            timeout: float | None = None,  # noqa: ASYNC109 - its name
        ) -> AsyncLine:
            waits = under_way()
            if waits is not None:
                timeout = _granted(waits, CONNECT, timeout, core.ConnectTimeout)
            began = monotonic()
            try:
                return AsyncLine(await self._inner.start_tls(ssl_context, server_hostname, timeout))
            finally:
                if waits is not None:
                    waits.took(CONNECT, began)

        def get_extra_info(self, info: str) -> Any:
            return self._inner.get_extra_info(info)

    return Line, AsyncLine


def _backends(http: Any, core: Any) -> tuple[Any, Any]:
    def asked(timeout: float | None, *, unix: bool) -> float | None:
        """Ask whether to connect, and for how long."""
        waits = under_way()
        if waits is None:
            return timeout
        failed = waits.given_up()
        if failed is not None:
            raise http.ConnectError(str(failed)) from failed
        waits.connecting(unix=unix)
        return _granted(waits, CONNECT, timeout, core.ConnectTimeout)

    def told(began: float, error: Exception | None = None) -> None:
        waits = under_way()
        if waits is not None:
            waits.took(CONNECT, began)
            if error is not None:
                waits.attempt_failed(error)

    def left(seconds: float) -> float:
        waits = under_way()
        over = None if waits is None else waits.span.left()
        return seconds if over is None else max(0.0, min(seconds, over))

    class Backend(core.NetworkBackend):  # type: ignore[misc]  # the library is given
        def __init__(self, inner: Any, line: Any) -> None:
            self.inner = inner
            self._line = line

        def connect_tcp(self, *args: Any, timeout: float | None = None, **options: Any) -> Any:
            return self._connect(self.inner.connect_tcp, args, asked(timeout, unix=False), options)

        def connect_unix_socket(self, *args: Any, timeout: float | None = None, **options: Any) -> Any:
            return self._connect(self.inner.connect_unix_socket, args, asked(timeout, unix=True), options)

        def _connect(self, connect: Any, args: Any, timeout: float | None, options: Any) -> Any:
            began = monotonic()
            try:
                stream = connect(*args, timeout=timeout, **options)
            except Exception as error:
                told(began, error)
                raise
            told(began)
            return self._line(stream)

        def sleep(self, seconds: float) -> None:
            self.inner.sleep(left(seconds))

    class AsyncBackend(core.AsyncNetworkBackend):  # type: ignore[misc]  # the library is given
        def __init__(self, inner: Any, line: Any) -> None:
            self.inner = inner
            self._line = line

        async def connect_tcp(self, *args: Any, timeout: float | None = None, **options: Any) -> Any:  # noqa: ASYNC109 - its name
            return await self._connect(self.inner.connect_tcp, args, asked(timeout, unix=False), options)

        async def connect_unix_socket(self, *args: Any, timeout: float | None = None, **options: Any) -> Any:  # noqa: ASYNC109 - its name
            return await self._connect(
                self.inner.connect_unix_socket, args, asked(timeout, unix=True), options
            )

        async def _connect(self, connect: Any, args: Any, timeout: float | None, options: Any) -> Any:  # noqa: ASYNC109 - its name
            began = monotonic()
            try:
                stream = await connect(*args, timeout=timeout, **options)
            except Exception as error:
                told(began, error)
                raise
            told(began)
            return self._line(stream)

        async def sleep(self, seconds: float) -> None:
            await self.inner.sleep(left(seconds))

    return Backend, AsyncBackend
