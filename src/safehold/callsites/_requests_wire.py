"""The wire below requests: urllib3's pools, connections and sockets, with waits that are accounted for.

They are adopted in place, one through the other: an adapter gives pools, a pool gives connections, a
connection makes its socket. Each becomes an object of a cached subclass of its own class, which asks
`under_way()` how long it may wait, and is transparent where no guard is concerned.
"""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from http.client import HTTPException
from time import monotonic
from typing import Any, Final

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, ProtocolError

from ._http import FAULTS, ServerFaultError
from ._plainly import plainly
from ._waits import CONNECT, LONGEST_WAIT, READ, WRITE, Waits, under_way

_PIECE: Final = 65536
"""Bytes that are written in one wait: of a larger buffer nobody would know whether it makes progress."""


class _Adopted:
    """Marks the classes made here."""

    __slots__ = ()


def adopt(adapter: Any) -> bool:
    """Adopt an adapter; say whether all that goes over its connections is seen."""
    return _adopted(adapter, HTTPAdapter)


def _adopted(thing: Any, kind: type) -> bool:
    if not isinstance(thing, kind):
        return False
    if not isinstance(thing, _Adopted):
        plain: Any = type(thing)
        thing.__class__ = _subclass(plain)
    return True


@cache
def _subclass(plain: Any) -> Any:
    if issubclass(plain, socket.socket):
        over = {**_over_socket(plain), "__slots__": ()}
        return type(plain.__name__, (plain, _Adopted), {**over, "__module__": plain.__module__})
    over = (
        _over_adapter(plain)
        if issubclass(plain, HTTPAdapter)
        else _over_pool(plain)
        if issubclass(plain, HTTPConnectionPool)
        else _over_connection(plain)
    )
    return plainly(plain, _Adopted, over)


def _over_adapter(plain: Any) -> dict[str, Any]:
    def through(name: str) -> Any:
        def connection(self: Any, *args: Any, **options: Any) -> Any:
            pool = getattr(plain, name)(self, *args, **options)
            _adopted(pool, HTTPConnectionPool)
            return pool

        connection.__name__ = name
        return connection

    names = ("get_connection", "get_connection_with_tls_context")  # the second since requests 2.32
    return {name: through(name) for name in names if hasattr(plain, name)}


def _over_pool(plain: Any) -> dict[str, Any]:
    def _get_conn(self: Any, timeout: float | None = None) -> Any:
        waits = under_way()
        if waits is not None:
            failed = waits.given_up()
            if failed is not None:
                reason = failed
                if isinstance(failed, OSError | HTTPException):
                    reason = ProtocolError("Connection aborted.", failed)
                raise MaxRetryError(self, "", reason) from failed
            if timeout is None and self.block and not waits.long:
                left = waits.span.left()
                timeout = LONGEST_WAIT if left is None else max(0.0, left)
        connection = plain._get_conn(self, timeout)
        _adopted(connection, HTTPConnection)
        return connection

    def _make_request(self: Any, *args: Any, **options: Any) -> Any:
        waits = under_way()
        if waits is None:
            return plain._make_request(self, *args, **options)
        try:
            response = plain._make_request(self, *args, **options)
        except Exception as error:
            waits.attempt_failed(error)
            raise
        if response.status in FAULTS:
            waits.attempt_failed(ServerFaultError(response.status))
        return response

    return {"_get_conn": _get_conn, "_make_request": _make_request}


def _over_connection(plain: Any) -> dict[str, Any]:
    def connect(self: Any) -> Any:
        waits = under_way()
        if waits is None:
            plain.connect(self)
        else:
            waits.connecting(unix=hasattr(self, "unix_socket_url"))
            with _connecting(self, waits):
                plain.connect(self)
        _adopted(self.sock, socket.socket)

    return {"connect": connect}


@contextmanager
def _connecting(connection: Any, waits: Waits) -> Generator[None]:
    own = connection.timeout if isinstance(connection.timeout, int | float) else None
    allowed = waits.allow(CONNECT, own)
    if allowed is not None and allowed <= 0 and (own is None or own > 0):
        msg = "there is no time left"
        raise ConnectTimeoutError(connection, msg)
    before, connection.timeout = connection.timeout, allowed
    began = monotonic()
    try:
        yield
    finally:
        connection.timeout = before
        waits.took(CONNECT, began)


def _over_socket(plain: Any) -> dict[str, Any]:
    def recv_into(self: Any, *args: Any, **options: Any) -> Any:
        return _received(self, plain.recv_into, args, options, lambda size: size)

    def recv(self: Any, *args: Any, **options: Any) -> Any:
        return _received(self, plain.recv, args, options, len)

    def sendall(self: Any, data: Any, *args: Any) -> None:
        if under_way() is None:
            plain.sendall(self, data, *args)
            return
        with memoryview(data) as view, view.cast("B") as every:
            for at in range(0, len(every), _PIECE):
                _sent(self, plain.sendall, every[at : at + _PIECE], args)

    def send(self: Any, data: Any, *args: Any) -> Any:
        return plain.send(self, data, *args) if under_way() is None else _sent(self, plain.send, data, args)

    return {"recv_into": recv_into, "recv": recv, "sendall": sendall, "send": send}


def _received(line: Any, method: Any, args: Any, options: Any, size: Any) -> Any:
    waits = under_way()
    if waits is None:
        return method(line, *args, **options)
    moved, began = 0, monotonic()
    with _limited(line, waits, READ):
        try:
            got = method(line, *args, **options)
            moved = size(got)
            return got
        finally:
            waits.took(READ, began, moved)


def _sent(line: Any, method: Any, data: Any, args: Any) -> Any:
    waits = under_way()
    if waits is None:
        return method(line, data, *args)
    began = monotonic()
    with _limited(line, waits, WRITE):
        try:
            return method(line, data, *args)
        finally:
            waits.took(WRITE, began, len(data))


@contextmanager
def _limited(line: Any, waits: Waits, what: str) -> Generator[None]:
    own = line.gettimeout()
    allowed = waits.allow(what, own)
    if allowed is not None and allowed <= 0 and (own is None or own > 0):
        msg = "timed out"  # there is no time left
        raise TimeoutError(msg)
    line.settimeout(allowed)
    try:
        yield
    finally:
        if line.fileno() >= 0:
            line.settimeout(own)
