"""The streams of httpx and httpx2: bodies that report how they end, uploads that say when they fail."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

from ._exchange import Exchange


def streams(http: Any) -> tuple[Any, Any, Any]:
    """Make the streams of a library: a body, an async body, an upload."""
    return _body(http), _async_body(http), _upload(http)


def _body(http: Any) -> Any:
    class Body(http.SyncByteStream):  # type: ignore[misc]  # the library is given
        def __init__(self, inner: Any, exchange: Exchange) -> None:
            self._inner = inner
            self._exchange = exchange

        def __iter__(self) -> Iterator[bytes]:
            exchange, parts = self._exchange, iter(self._inner)
            try:
                while (part := self._next(parts)) is not None:
                    exchange.touched()
                    yield part
            except BaseException as error:
                exchange.failed(error)
                raise
            exchange.answered()

        def _next(self, parts: Iterator[bytes]) -> bytes | None:
            exchange, began = self._exchange, monotonic()
            if exchange.overdue():
                msg = "the deadline is over"
                raise http.ReadTimeout(msg)
            with exchange.here():
                part = next(parts, None)
            if not exchange.wired:
                exchange.passed(began)
            return part

        def close(self) -> None:
            self._exchange.abandoned()  # unless the body was read to its end
            self._inner.close()

        def __del__(self) -> None:
            self._exchange.abandoned()

    return Body


def _async_body(http: Any) -> Any:
    class AsyncBody(http.AsyncByteStream):  # type: ignore[misc]  # the library is given
        def __init__(self, inner: Any, exchange: Exchange, in_time: Any) -> None:
            self._inner = inner
            self._exchange = exchange
            self._in_time = in_time

        async def __aiter__(self) -> Any:
            exchange, parts = self._exchange, aiter(self._inner)
            try:
                while (part := await self._next(parts)) is not None:
                    exchange.touched()
                    yield part
            except BaseException as error:
                exchange.failed(error)
                raise
            exchange.answered()

        async def _next(self, parts: Any) -> Any:
            try:
                with self._exchange.here():
                    return await self._in_time(self._exchange, parts.__anext__)
            except StopAsyncIteration:
                return None

        async def aclose(self) -> None:
            self._exchange.abandoned()  # unless the body was read to its end
            await self._inner.aclose()

        def __del__(self) -> None:
            self._exchange.abandoned()

    return AsyncBody


def _upload(http: Any) -> Any:
    class Upload(http.SyncByteStream, http.AsyncByteStream):  # type: ignore[misc]  # the library is given
        """What the caller sends; its failure is the caller's own."""

        def __init__(self, inner: Any, exchange: Exchange) -> None:
            self._inner = inner
            self._exchange = exchange

        def __iter__(self) -> Iterator[bytes]:
            try:
                yield from self._inner
            except Exception as error:
                self._exchange.upload_error = error
                raise

        async def __aiter__(self) -> Any:
            try:
                async for part in self._inner:
                    yield part
            except Exception as error:
                self._exchange.upload_error = error
                raise

    return Upload
