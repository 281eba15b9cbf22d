"""The body of an answer that came through aiohttp: a call is answered when all of it is there.

aiohttp gives a response one reader, `content`, which the connection fills, and all other ways to read are
made of that. So a watched response hands out a reader of ours in its place. Who holds that, holds the
response; nothing else does, so that one which nobody holds is closed at once, and its permit is back.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache, partial
from time import monotonic
from typing import Any, Final, cast

import aiohttp

from ._exchange import Exchange
from ._plainly import plainly
from ._waits import READ

TOO_LATE: Final = "Timeout on reading data from socket"
"""What aiohttp itself says."""


def watch(response: Any, exchange: Exchange, patience: float | None) -> None:
    """Watch whoever reads the body of a response; `patience` is the client's time-out for each wait."""
    inner = response.content
    callbacks = getattr(inner, "_eof_callbacks", [])
    if response._response_eof in callbacks:  # it would keep the response for as long as the connection lives
        callbacks[callbacks.index(response._response_eof)] = _weakly(response)
    inner.on_eof(exchange.answered)
    response.__dict__["_safehold"] = _Watch(inner, exchange, patience)
    response.__class__ = _watched_class(cast("Any", type(response)))


class _Watched:
    """Marks the classes made here."""

    __slots__ = ()


@cache
def _watched_class(plain: Any) -> Any:
    """Make the watched subclass of a response's class."""

    def content(self: Any) -> Any:
        known, watched = self.__dict__["content"], self.__dict__["_safehold"]
        return watched.body_for(self) if known is watched.inner else known

    def set_content(self: Any, value: Any) -> None:
        self.__dict__["content"] = value

    def dropped(self: Any) -> None:
        self.__dict__["_safehold"].dropped()
        plain.__del__(self)

    return plainly(plain, _Watched, {"content": property(content, set_content), "__del__": dropped})


def _weakly(response: Any) -> Callable[[], None]:
    known = weakref.ref(response)

    def response_eof() -> None:
        there = known()
        if there is not None:
            there._response_eof()

    return response_eof


class _Watch:
    """What is known of a body."""

    def __init__(self, inner: aiohttp.StreamReader, exchange: Exchange, patience: float | None) -> None:
        self.inner = inner
        self._exchange: Exchange | None = exchange  # until there is nothing left to say
        self._patience = patience
        self._touched = False
        self._body: Callable[[], Body | None] = lambda: None

    def body_for(self, response: Any) -> Body:
        """Give the reader that stands for aiohttp's own; the same one as long as anybody has it."""
        body = self._body()
        if body is None:
            body = Body(self, response)
            self._body = weakref.ref(body)
        return body

    async def read(self, read: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Wait for something of the body."""
        exchange = self._exchange
        if exchange is None:
            return await read(*args, **options)
        self._touched = True
        exchange.touched()
        began, moved = monotonic(), 0
        try:
            with self.reading():
                data = await self._in_time(exchange, partial(read, *args, **options))
            moved = len(data[0] if isinstance(data, tuple) else data or b"")
            return data
        finally:
            exchange.took(READ, began, moved)

    async def _in_time(self, exchange: Exchange, read: Callable[[], Any]) -> Any:
        if exchange.long or self.inner.is_eof():
            return await read()
        allowed = exchange.allow(READ, self._patience)
        if allowed is not None and allowed <= 0:
            raise aiohttp.SocketTimeoutError(TOO_LATE)
        limit = asyncio.timeout(allowed)
        try:
            async with limit:
                return await read()
        except TimeoutError as error:
            if not limit.expired() or isinstance(error, aiohttp.ClientError):
                raise
            raise aiohttp.SocketTimeoutError(TOO_LATE) from error

    @contextmanager
    def reading(self) -> Generator[None]:
        """Take in what reading raises."""
        try:
            yield
        except BaseException as error:
            # the rest is the caller's: a line that is too long for him, two reads at once
            if isinstance(error, aiohttp.ClientError | OSError) or not isinstance(error, Exception):
                self.broken(error)
            raise

    def broken(self, error: BaseException) -> None:
        """Take in that it will never be whole."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.failed(error)

    def left(self) -> None:
        """Take in that it is closed. Who has not begun to read has wanted the head, and has it."""
        if self._exchange is not None and not self._touched:
            self._exchange.answered()
        self.dropped()

    def dropped(self) -> None:
        """Take in that nobody reads on."""
        error = self.inner.exception()
        if error is not None:
            self.broken(error)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abandoned()


class Body(aiohttp.StreamReader):
    """Stands for aiohttp's own reader: what is not found here, and all that is set, is of that one."""

    __slots__ = ("__weakref__", "_inner", "_response", "_watch")
    _own = frozenset(__slots__)

    def __init__(self, watch: _Watch, response: Any) -> None:
        self._inner = watch.inner
        self._watch = watch
        self._response = response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in Body._own:
            object.__setattr__(self, name, value)
        else:
            setattr(self._inner, name, value)

    # aiohttp makes of these all the other ways to read

    async def readany(self) -> bytes:
        return cast("bytes", await self._watch.read(self._inner.readany))

    async def readchunk(self) -> tuple[bytes, bool]:
        return cast("tuple[bytes, bool]", await self._watch.read(self._inner.readchunk))

    async def readuntil(self, *args: Any, **options: Any) -> bytes:
        return cast("bytes", await self._watch.read(self._inner.readuntil, *args, **options))

    async def read(self, n: int = -1) -> bytes:
        if n >= 0:
            return cast("bytes", await self._watch.read(self._inner.read, n))
        with self._watch.reading():
            return await super().read(n)

    async def wait_eof(self) -> None:
        await self._watch.read(self._inner.wait_eof)

    def read_nowait(self, n: int = -1) -> bytes:
        with self._watch.reading():
            return self._inner.read_nowait(n)

    def exception(self) -> BaseException | None:
        """Give what has gone wrong with it. aiohttp asks when the response is closed or released."""
        error: BaseException | None = self._inner.exception()
        if error is not None:
            self._watch.broken(error)
        return error

    def set_exception(self, exc: BaseException, exc_cause: Any = None) -> None:
        """Take an exception. aiohttp sets one when the response is closed or released."""
        self._watch.left()
        self._inner.set_exception(*((exc,) if exc_cause is None else (exc, exc_cause)))
