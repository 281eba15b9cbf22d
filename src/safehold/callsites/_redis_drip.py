"""Answers that cannot drip in for ever.

The sync client's time-out is for each read: a server that sends one byte in time, again and again, holds a
call without end. Here each line and each value of an answer has to make progress once it has begun:
within a time-out it is there, or at least `PROGRESS` bytes of it are, so that a large value over a slow line
still arrives. An answer that comes with one read, as nearly all do, pays nothing.

No class of the client's own is changed for it, because Python reads the attributes of two kinds of objects
at one place more slowly, and every command passes those places: the buffers that are put in are made so,
and the few functions that lead there are set on single objects.
"""

from __future__ import annotations

import inspect
import weakref
from time import monotonic
from typing import Any, Final

from redis._parsers.socket import SocketBuffer
from redis.connection import AbstractConnection, ConnectionPool
from redis.exceptions import TimeoutError as RedisTimeoutError

from ._redis_parent import parents
from ._redis_retry import connections_of

PROGRESS: Final = 1024
"""Bytes that have to arrive within a time-out."""
_CRLF: Final = b"\r\n"
_SOCKETS_OWN: Final = inspect.signature(SocketBuffer._read_from_socket).parameters["timeout"].default


class SteadyBuffer(SocketBuffer):
    """redis-py's buffer, which waits for the rest of what has begun only as long as it makes progress."""

    def readline(self, timeout: Any = _SOCKETS_OWN) -> bytes:
        """Read a line, without its end."""
        buffer: Any = self._buffer
        line: bytes = buffer.readline()
        if line.endswith(_CRLF):
            return line[:-2]
        self._read_from_socket(timeout=timeout)
        line += buffer.readline()
        if not line.endswith(_CRLF):
            patience = _Patience(self, timeout)
            while not line.endswith(_CRLF):
                self._read_from_socket(timeout=patience.left(len(line)))
                line += buffer.readline()
        return line[:-2]

    def read(self, length: int, timeout: Any = _SOCKETS_OWN) -> bytes:
        """Read a value of so many bytes, and the end of the line behind it, which is left out."""
        buffer: Any = self._buffer
        data: bytes = buffer.read(length + 2)
        missing = length + 2 - len(data)
        if missing:
            self._read_from_socket(timeout=timeout)
            if self.unread_bytes() < missing:
                patience = _Patience(self, timeout)
                while self.unread_bytes() < missing:
                    self._read_from_socket(timeout=patience.left(self.unread_bytes()))
            data += buffer.read(missing)
        return data[:-2]


class _Patience:
    """How long to wait for more: a time-out for each `PROGRESS` bytes. No time-out, or none at all, stays."""

    __slots__ = ("_before", "_given", "_limit", "_since")

    def __init__(self, buffer: SocketBuffer, given: Any) -> None:
        self._given = given
        self._limit = buffer.socket_timeout if given is _SOCKETS_OWN else given
        self._since = monotonic()
        self._before = 0

    def left(self, came: int) -> Any:
        """Give the time-out of the next read, when so many bytes have come; raise when it is over."""
        if not self._limit:
            return self._given
        now = monotonic()
        if came - self._before >= PROGRESS:
            self._since, self._before = now, came
        left = self._since + self._limit - now
        if left <= 0:
            msg = "Timeout reading from socket: the answer drips in too slowly"
            raise RedisTimeoutError(msg)
        return left


def bound_answers(pool: Any) -> None:
    """Let the connections of a sync pool bound their answers: those that there are, and all to come."""
    if isinstance(pool, ConnectionPool) and not isinstance(pool.make_connection, _Instead):
        for connection in connections_of(pool):
            _bound(connection)
        _put_instead(pool, "make_connection", lambda _, make: _bound(make()))


def _bound(connection: Any) -> Any:
    """Let a connection put steady buffers into its parsers; give it back."""
    inner = getattr(connection, "_conn", connection)  # of one that caches
    if issubclass(type(inner), AbstractConnection) and not isinstance(inner.set_parser, _Instead):  # no mock
        _put_instead(inner, "set_parser", _set_parser)
        _steady(inner._parser)
    return connection


def _set_parser(connection: Any, set_parser: Any, parser_class: Any) -> None:
    set_parser(parser_class)
    _steady(connection._parser)


def _steady(parser: Any) -> None:
    if hasattr(parser, "_buffer") and not isinstance(parser.on_connect, _Instead):
        _put_instead(parser, "on_connect", _put_buffer)


def _put_buffer(parser: Any, on_connect: Any, connection: Any) -> None:
    """Let a parser that has just been connected read through a buffer of ours; hiredis has none."""
    on_connect(connection)
    plain: Any = parser._buffer
    if type(plain) is SocketBuffer:
        sock: Any = plain._sock
        parser._buffer = SteadyBuffer(sock, plain.socket_read_size, plain.socket_timeout)


class _Instead:
    """Stands in for one method of one object, without keeping that object alive."""

    __slots__ = ("_does", "_name", "_of")

    def __init__(self, of: Any, name: str, does: Any) -> None:
        self._of = weakref.ref(of)
        self._name = name
        self._does = does

    def __call__(self, *args: Any) -> Any:
        of: Any = self._of()
        return self._does(of, parents(type(of), self._name, of), *args)


def _put_instead(of: Any, name: str, does: Any) -> None:
    setattr(of, name, _Instead(of, name, does))  # not through its dictionary: that would slow down every read
