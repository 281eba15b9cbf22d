"""Sockets on which an answer cannot drip in for ever.

The sync client's time-out is for each read: a server that sends one byte in time, again and again, holds a
call without end. Here an answer has to make progress: within a time-out it is there, or at least
`PROGRESS` bytes of it are, so that a large answer over a slow line still arrives. An answer that comes
with one read, as nearly all do, costs one look at the clock.

A connection that listens for messages asks for nothing and may wait: it is `patient`.
"""

from __future__ import annotations

import socket
import ssl
import time
from functools import cache
from typing import Any, Final, cast

from redis.connection import AbstractConnection

from ._plainly import plainly

PROGRESS: Final = 1024
"""Bytes that have to arrive within a time-out."""


class _Steady:
    """What is added to a socket: when the present answer was first waited for, and how much has come."""

    began: float | None = None
    came = 0
    patient = False

    def sendall(self, *args: Any) -> Any:
        self.began = None
        return cast("Any", super()).sendall(*args)

    def recv(self, *args: Any) -> Any:
        return self._steadily(cast("Any", super()).recv, args, len)

    def recv_into(self, *args: Any) -> Any:
        return self._steadily(cast("Any", super()).recv_into, args, int)

    def _steadily(self, receive: Any, args: tuple[Any, ...], size: Any) -> Any:
        if self.began is None:
            self.began, self.came = time.monotonic(), 0
            data = receive(*args)
        else:
            data = self._more(receive, args)
        self.came += size(data)
        return data

    def _more(self, receive: Any, args: tuple[Any, ...]) -> Any:
        """Read more of an answer, within what is left of its time-out."""
        this = cast("Any", self)
        timeout = this.gettimeout()
        if not timeout or self.patient:  # it never waits, or for ever
            return receive(*args)
        now = time.monotonic()
        if self.came >= PROGRESS or self.began is None:
            self.began, self.came = now, 0
        left = self.began + timeout - now
        if left <= 0:
            msg = "timed out: the answer drips in too slowly"
            raise TimeoutError(msg)
        this.settimeout(left)
        try:
            return receive(*args)
        finally:
            this.settimeout(timeout)


class _SteadySocket(_Steady, socket.socket):
    pass


class _SteadySSLSocket(_Steady, ssl.SSLSocket):
    pass


def _steady(sock: Any) -> Any:
    """Give the same connection, as a socket of that kind; whatever else it is, is left alone."""
    if type(sock) is ssl.SSLSocket:
        sock.__class__ = _SteadySSLSocket
    elif type(sock) is socket.socket:
        timeout = sock.gettimeout()
        sock = _SteadySocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        sock.settimeout(timeout)
    return sock


class _Marked:
    """Marks the connection classes made here."""

    __slots__ = ()


@cache
def _steady_class(plain: Any) -> Any:
    return plainly(plain, _Marked, {"_connect": lambda self: _steady(plain._connect(self))})


def bound_answers(pool: Any) -> None:
    """Let the connections that a sync pool makes from now on bound their answers."""
    kind = getattr(pool, "connection_class", None)
    known = isinstance(kind, type) and issubclass(kind, AbstractConnection) and not issubclass(kind, _Marked)
    if known and hasattr(kind, "_connect"):
        pool.connection_class = _steady_class(cast("Any", kind))


def let_wait(client: Any) -> None:
    """Let the connection of a subscription or a monitor wait as long as it is told to."""
    sock = getattr(getattr(client, "connection", None), "_sock", None)
    if isinstance(sock, _Steady):
        sock.patient = True
