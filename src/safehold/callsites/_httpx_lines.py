"""The wire of httpx and httpx2: their network backends and streams, with waits that are accounted for.

A connection pool makes its connections through a backend, and reads and writes through the streams that it
gives. Wrapped, both ask `under_way()` how long they may wait; where no guard is concerned they are
transparent. So one pool may serve guarded and unguarded clients, and a stream outlives its guard.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ._waits import CONNECT, PIECE, READ, WRITE, Step, Waits, under_way


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


def _pieces(buffer: Any) -> Any:
    if under_way() is None:
        return (buffer,)
    return (buffer[at : at + PIECE] for at in range(0, len(buffer), PIECE))


def _lines(core: Any) -> tuple[Any, Any]:
    class Line(core.NetworkStream):  # type: ignore[misc]  # the library is given
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
            with Step(READ, timeout, core.ReadTimeout) as step:
                data: bytes = self._inner.read(max_bytes, step.allowed)
                step.moved = len(data)
                return data

        def write(self, buffer: bytes, timeout: float | None = None) -> None:
            for piece in _pieces(buffer):
                with Step(WRITE, timeout, core.WriteTimeout, moved=len(piece)) as step:
                    self._inner.write(piece, step.allowed)

        def close(self) -> None:
            self._inner.close()

        def start_tls(
            self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
        ) -> Line:
            with Step(CONNECT, timeout, core.ConnectTimeout) as step:
                return Line(self._inner.start_tls(ssl_context, server_hostname, step.allowed))

        def get_extra_info(self, info: str) -> Any:
            return self._inner.get_extra_info(info)

    class AsyncLine(core.AsyncNetworkStream):  # type: ignore[misc]  # the library is given
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - its name
            with Step(READ, timeout, core.ReadTimeout) as step:
                data: bytes = await self._inner.read(max_bytes, step.allowed)
                step.moved = len(data)
                return data

        async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - its name
            for piece in _pieces(buffer):
                with Step(WRITE, timeout, core.WriteTimeout, moved=len(piece)) as step:
                    await self._inner.write(piece, step.allowed)

        async def aclose(self) -> None:
            await self._inner.aclose()

        async def start_tls(
            self,
            ssl_context: Any,
            server_hostname: str | None = None,
            timeout: float | None = None,  # noqa: ASYNC109 - its name
        ) -> AsyncLine:
            with Step(CONNECT, timeout, core.ConnectTimeout) as step:
                return AsyncLine(await self._inner.start_tls(ssl_context, server_hostname, step.allowed))

        def get_extra_info(self, info: str) -> Any:
            return self._inner.get_extra_info(info)

    return Line, AsyncLine


def _backends(http: Any, core: Any) -> tuple[Any, Any]:
    def go_on(waits: Waits) -> None:
        """Raise what the last attempt has met if there shall be no other."""
        failed = waits.given_up()
        if failed is not None:
            raise http.ConnectError(str(failed)) from failed

    @contextmanager
    def connecting(timeout: float | None, *, unix: bool) -> Generator[Step]:
        waits = under_way()
        if waits is not None:
            go_on(waits)
            waits.connecting(unix=unix)
        with Step(CONNECT, timeout, core.ConnectTimeout) as step:
            try:
                yield step
            except Exception as error:
                if waits is not None:
                    waits.attempt_failed(error)
                raise

    def pause(seconds: float) -> float:
        """Give the seconds to sleep before another attempt."""
        waits = under_way()
        if waits is None:
            return seconds
        go_on(waits)
        left = waits.span.left()
        return seconds if left is None else max(0.0, min(seconds, left))

    class Backend(core.NetworkBackend):  # type: ignore[misc]  # the library is given
        def __init__(self, inner: Any, line: Any) -> None:
            self.inner = inner
            self._line = line

        def connect_tcp(self, *args: Any, timeout: float | None = None, **options: Any) -> Any:
            with connecting(timeout, unix=False) as step:
                return self._line(self.inner.connect_tcp(*args, timeout=step.allowed, **options))

        def connect_unix_socket(self, *args: Any, timeout: float | None = None, **options: Any) -> Any:
            with connecting(timeout, unix=True) as step:
                return self._line(self.inner.connect_unix_socket(*args, timeout=step.allowed, **options))

        def sleep(self, seconds: float) -> None:
            self.inner.sleep(pause(seconds))

    class AsyncBackend(core.AsyncNetworkBackend):  # type: ignore[misc]  # the library is given
        def __init__(self, inner: Any, line: Any) -> None:
            self.inner = inner
            self._line = line

        async def connect_tcp(self, *args: Any, timeout: float | None = None, **options: Any) -> Any:  # noqa: ASYNC109 - its name
            with connecting(timeout, unix=False) as step:
                return self._line(await self.inner.connect_tcp(*args, timeout=step.allowed, **options))

        async def connect_unix_socket(self, *args: Any, timeout: float | None = None, **options: Any) -> Any:  # noqa: ASYNC109 - its name
            with connecting(timeout, unix=True) as step:
                return self._line(
                    await self.inner.connect_unix_socket(*args, timeout=step.allowed, **options)
                )

        async def sleep(self, seconds: float) -> None:
            await self.inner.sleep(pause(seconds))

    return Backend, AsyncBackend
