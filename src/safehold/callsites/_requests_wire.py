"""The wire below requests: urllib3's pools, connections and sockets, with waits that are accounted for.

They are adopted in place, one through the other: an adapter gives pools, a pool gives connections, a
connection makes its socket. Each becomes an object of a cached subclass of its own class, which asks
`under_way()` how long it may wait, and is transparent where no guard is concerned.
"""

from __future__ import annotations

import socket
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache, partial
from http.client import HTTPException
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import ConnectTimeoutError, MaxRetryError, ProtocolError

from ._http import FAULTS, ServerFaultError
from ._plainly import plainly
from ._waits import CONNECT, LONGEST_WAIT, PIECE, READ, WRITE, Step, under_way


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
            with _connecting(self):
                plain.connect(self)
        _adopted(self.sock, socket.socket)

    return {"connect": connect}


@contextmanager
def _connecting(connection: Any) -> Generator[None]:
    before = connection.timeout
    own = before if isinstance(before, int | float) else None
    with Step(CONNECT, own, partial(ConnectTimeoutError, connection)) as step:
        connection.timeout = step.allowed
        try:
            yield
        finally:
            connection.timeout = before


def _over_socket(plain: Any) -> dict[str, Any]:
    def recv_into(self: Any, *args: Any, **options: Any) -> Any:
        if under_way() is None:
            return plain.recv_into(self, *args, **options)
        with _step(self, READ) as step:
            step.moved = plain.recv_into(self, *args, **options)
            return step.moved

    def recv(self: Any, *args: Any, **options: Any) -> Any:
        if under_way() is None:
            return plain.recv(self, *args, **options)
        with _step(self, READ) as step:
            data = plain.recv(self, *args, **options)
            step.moved = len(data)
            return data

    def sendall(self: Any, data: Any, *args: Any) -> None:
        if under_way() is None:
            plain.sendall(self, data, *args)
            return
        with memoryview(data) as view, view.cast("B") as every:
            for at in range(0, len(every), PIECE):
                piece = every[at : at + PIECE]
                with _step(self, WRITE, moved=len(piece)):
                    plain.sendall(self, piece, *args)

    def send(self: Any, data: Any, *args: Any) -> Any:
        if under_way() is None:
            return plain.send(self, data, *args)
        with _step(self, WRITE, moved=len(data)):
            return plain.send(self, data, *args)

    return {"recv_into": recv_into, "recv": recv, "sendall": sendall, "send": send}


@contextmanager
def _step(line: Any, what: str, *, moved: int = 0) -> Generator[Step]:
    own = line.gettimeout()
    with Step(what, own, TimeoutError, moved=moved) as step:
        line.settimeout(step.allowed)
        try:
            yield step
        finally:
            if line.fileno() >= 0:
                line.settimeout(own)
