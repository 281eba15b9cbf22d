r"""Guard streams: asyncio's, and plain sockets, over unix sockets and TCP.

    streams = await open_unix_connection(health["daemon"], "/run/daemon.sock")
    async with streams.exchange(deadline=2.0) as (reader, writer):
        writer.write(b"PING\n")
        answer = await reader.readline()

    sock = connect(health["daemon"], "/run/daemon.sock")
    with exchange(health["daemon"], sock, deadline=2.0):
        ...

*Frames.* Only who uses a stream knows where an answer ends. So he says what one call is: an `exchange` is a
request and its answer, with one deadline for all of it. One that ends without an exception was answered,
unless the other side has left before it said anything, or in the middle of a line. An exception that leaves
it counts, also one about an answer that makes no sense; mistakes such as a `TypeError` do not.

*Between exchanges* each read and each write is looked at for itself, and none is refused. A read that gives
something is an answer. The end of the stream is a failure only if something was asked and not answered.

*What a connection proves.* The kernel connects on behalf of a listener that hangs. So connecting counts when
it fails, and says nothing when it does not; a trial that is used to connect is decided by what comes next.
For the same reason there is no default probe: what would only connect would take silence for an answer.

*Reuse.* A kept connection may be closed while nobody looks, and then fails its next exchange. That is
excused, once in a row.

Errors are those of asyncio and of the operating system, as they are. Each says in `outcome` whether something
may have been executed: `"not_executed"` when nothing was written, else `"unknown"`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from typing import Any, Final, NamedTuple, Self, TypeVar, cast
from weakref import WeakKeyDictionary

from .._core.configuration import ConfigurationError, check_number
from .._runtime.dependency import Dependency
from ._conversation import TABLE, Line, StreamUnhealthy, Talk
from ._outcome import check_dependency

__all__ = [
    "TABLE",
    "StreamUnhealthy",
    "Streams",
    "connect",
    "exchange",
    "open_connection",
    "open_unix_connection",
]

S = TypeVar("S", bound=socket.socket)
Path = str | bytes | os.PathLike[str]

# tracebacks and reprs name the public module
StreamUnhealthy.__module__ = __name__

# --- asyncio ------------------------------------------------------------------------------------------


class Streams(NamedTuple):
    """A guarded connection: `reader, writer = streams`. Both are what asyncio makes, of its own classes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @asynccontextmanager
    async def exchange(self, *, deadline: float | None, long: bool = False) -> AsyncGenerator[Self]:
        """Make one guarded call of a block: a request and its answer.

        `deadline`: seconds for all of it, then it ends with a `TimeoutError`. `long=True` is for waits that
        are long by nature, such as for the next event: the gate does not wait for their end, and silence is
        no failure. A refused exchange raises `StreamUnhealthy`. There is one at a time.
        """
        line = cast("_Writer", self.writer).line
        with Talk(line, whole=True, deadline=deadline, long=long):
            async with asyncio.timeout(deadline):
                yield self


async def open_connection(
    dependency: Dependency,
    host: str | None = None,
    port: int | str | None = None,
    *,
    deadline: float | None = None,
    limit: int = 2**16,
    **options: Any,
) -> Streams:
    """Connect as `asyncio.open_connection` does, guarded. `deadline`: seconds to connect in.

    A refused connection raises `StreamUnhealthy`. The dependency gets no default probe, for only its user
    knows what to ask it.
    """

    def connecting(loop: asyncio.AbstractEventLoop, protocol: Any) -> Any:
        return loop.create_connection(protocol, cast("Any", host), cast("Any", port), **options)

    return await _open(dependency, connecting, deadline, limit)


async def open_unix_connection(
    dependency: Dependency,
    path: Path | None = None,
    *,
    deadline: float | None = None,
    limit: int = 2**16,
    **options: Any,
) -> Streams:
    """Do the same as `open_connection` over a unix socket, as `asyncio.open_unix_connection` does."""

    def connecting(loop: asyncio.AbstractEventLoop, protocol: Any) -> Any:
        return loop.create_unix_connection(protocol, cast("Any", path), **options)

    return await _open(dependency, connecting, deadline, limit)


async def _open(
    dependency: Dependency, connecting: Callable[..., Any], deadline: float | None, limit: int
) -> Streams:
    line = Line(dependency)
    if deadline is not None:
        check_number("deadline", deadline, above=0)
    loop = asyncio.get_running_loop()
    reader = _Reader(limit=limit, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    with line.connecting():
        async with asyncio.timeout(deadline):
            transport, _ = await connecting(loop, lambda: protocol)
        try:  # asyncio takes a full accept queue of a unix socket for a connection
            transport.get_extra_info("socket").getpeername()
        except OSError:
            transport.abort()
            raise
    writer = _Writer(transport, protocol, reader, loop)
    reader.line = writer.line = line
    return Streams(reader, writer)


class _Reader(asyncio.StreamReader):
    line: Line
    _taking = False

    async def read(self, n: int = -1) -> bytes:
        return await self._take(super().read(n), wanted=n != 0)

    async def readline(self) -> bytes:
        return await self._take(super().readline(), is_whole=lambda data: data.endswith(b"\n"))

    async def readexactly(self, n: int) -> bytes:
        return await self._take(super().readexactly(n), wanted=n != 0)

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        return await self._take(super().readuntil(separator))

    async def _take(
        self, reading: Awaitable[bytes], *, wanted: bool = True, is_whole: Callable[[bytes], bool] = bool
    ) -> bytes:
        if self._taking:  # asyncio makes some reads of others
            return await reading
        self._taking = True
        try:
            with self.line.step() as talk:
                data = await reading
                if is_whole(data):
                    talk.heard()
                elif wanted:
                    talk.met_end(data)
                return data
        finally:
            self._taking = False


class _Writer(asyncio.StreamWriter):
    line: Line

    def write(self, data: Any) -> None:
        self.line.sending()
        super().write(data)

    def writelines(self, data: Any) -> None:
        self.line.sending()
        if not self.transport.is_closing():  # Python 3.13.0 would stumble, and none sends anything any more
            super().writelines(data)

    async def drain(self) -> None:
        with self.line.step():
            await super().drain()

    def close(self) -> None:
        self.line.give_up()
        super().close()


# --- plain sockets --------------------------------------------------------------------------------------


def connect(
    dependency: Dependency,
    address: tuple[str, int] | Path,
    *,
    timeout: float | None = None,
    source_address: tuple[str, int] | None = None,
) -> socket.socket:
    """Connect a plain socket, guarded: to `(host, port)` as `socket.create_connection` does, or to a path.

    `timeout` (seconds, `None` for none) becomes the socket's. A refused connection raises `StreamUnhealthy`.
    """
    line = Line(dependency)
    if timeout is not None:
        check_number("timeout", timeout, above=0)
    with line.connecting():
        sock = _connected(address, timeout, source_address)
    _lines[sock] = line
    return sock


@contextmanager
def exchange(dependency: Dependency, sock: S, *, deadline: float | None, long: bool = False) -> Generator[S]:
    """Make one guarded call of a block: a request and its answer over a plain, blocking socket.

    Meanwhile every wait on the socket is shortened to what is left of `deadline` (seconds), also those of
    files that were made of it; then a `TimeoutError` is raised. The rest is as with `Streams.exchange`.
    """
    check_dependency(dependency)
    if not isinstance(sock, socket.socket) or sock.gettimeout() == 0:
        msg = f"sock must be a blocking socket, got {sock!r}"
        raise ConfigurationError(msg)
    line = _lines.get(sock)
    if line is None:
        line = _lines[sock] = Line(dependency)
    if line.dependency is not dependency:
        msg = f"this socket is guarded as {line.dependency.name!r} already, not as {dependency.name!r}"
        raise ConfigurationError(msg)
    with Talk(line, whole=True, deadline=deadline, long=long):
        plain = type(sock)
        cast("Any", sock).__class__ = _timed(cast("Any", plain))
        try:
            yield sock
        finally:
            cast("Any", sock).__class__ = plain


_lines: Final[WeakKeyDictionary[socket.socket, Line]] = WeakKeyDictionary()


def _connected(address: Any, timeout: float | None, source_address: Any = None) -> socket.socket:
    if isinstance(address, tuple):
        return socket.create_connection(cast("Any", address), timeout, source_address)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(timeout)
        sock.connect(os.fspath(address))
    except BaseException:
        sock.close()
        raise
    return sock


@cache
def _timed(plain: Any) -> Any:
    """Make the class that a socket has during an exchange."""
    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__slots__": ()}
    return type(plain.__name__, (_Timed, plain), names)


class _Timed:
    """Waits no longer than its exchange may."""

    __slots__ = ()

    @contextmanager
    def _step(self) -> Generator[Talk]:
        sock = cast("Any", self)
        own = sock.gettimeout()
        with _lines[sock].step() as talk:
            sock.settimeout(talk.allow(own))
            try:
                yield talk
            finally:
                with suppress(OSError):  # it was closed meanwhile
                    sock.settimeout(own)

    def recv(self, *args: Any, **options: Any) -> bytes:
        with self._step() as talk:
            data: bytes = cast("Any", super()).recv(*args, **options)
            _took(talk, len(data), wanted=args != (0,))
            return data

    def recv_into(self, buffer: Any, *args: Any, **options: Any) -> int:
        with self._step() as talk:
            size: int = cast("Any", super()).recv_into(buffer, *args, **options)
            _took(talk, size, wanted=len(buffer) > 0)
            return size

    def recvmsg(self, *args: Any) -> Any:
        with self._step() as talk:
            message: Any = cast("Any", super()).recvmsg(*args)
            _took(talk, len(message[0]), wanted=args != (0,))
            return message

    def send(self, *args: Any) -> int:
        return cast("int", self._send("send", *args))

    def sendall(self, *args: Any) -> None:
        self._send("sendall", *args)

    def sendmsg(self, *args: Any) -> int:
        return cast("int", self._send("sendmsg", *args))

    def _send(self, how: str, *args: Any) -> Any:
        with self._step() as talk:
            talk.line.sending()
            return getattr(super(), how)(*args)


def _took(talk: Talk, size: int, *, wanted: bool) -> None:
    if size:
        talk.heard()
    elif wanted:
        talk.met_end()
