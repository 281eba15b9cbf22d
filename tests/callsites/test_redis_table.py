"""The classification table of redis-py, row by row."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any

import fakeredis
import pytest
import redis
from redis import exceptions as said

from safehold import Safehold
from safehold._core.breaker import Outcome
from safehold._runtime.classify import judge
from safehold.callsites._table import Sent
from safehold.callsites.redis import TABLE, classify, guard_client

from .support import Side


def raised_from(error: Exception, cause: BaseException) -> Exception:
    try:
        raise error from cause
    except Exception as raised:
        return raised


def in_context(error: Exception, context: BaseException) -> Exception:
    error.__context__ = context
    return error


def out_of_parser() -> Exception:
    """What the pure-Python parser raises for a length that is no number."""
    from redis._parsers.resp2 import _RESP2Parser

    parser: Any = _RESP2Parser(65536)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(1)
        connection: Any = redis.Connection()
        connection._sock = ours
        parser.on_connect(connection)
        theirs.sendall(b"$abc\r\n")
        try:
            parser.read_response()
        except ValueError as error:
            return error
    raise AssertionError


def connect(number: int, text: str = "") -> Exception:
    return raised_from(redis.ConnectionError(text or f"Error {number} connecting"), OSError(number, "no"))


def pipelined(text: str) -> Exception:
    return redis.ResponseError(f"Command # 2 (SET k v) of pipeline caused error: {text}")


class Wrapping(redis.ConnectionError):
    """What a connection class of the user's may put around an error, as redis-py's asyncio does."""


FAILURE, IGNORED, SUCCESS = Outcome.FAILURE, Outcome.IGNORED, Outcome.SUCCESS
WRITE = ("write",)

ROWS: dict[str, tuple[tuple[Outcome, bool, tuple[str, ...]], list[Exception]]] = {
    "own pool": (
        (IGNORED, True, ()),
        [
            said.MaxConnectionsError("Too many connections"),
            redis.ConnectionError("No connection available."),
            redis.ConnectionError("Too many connections"),
        ],
    ),
    "this process": ((IGNORED, True, ()), [connect(24), redis.ConnectionError("Error 24 connecting to x")]),
    "forked child": ((IGNORED, False, ()), [said.ChildDeadlockedError()]),
    "credentials": (
        (FAILURE, True, ()),
        [
            redis.AuthenticationError("WRONGPASS invalid username-password pair"),
            said.AuthenticationWrongNumberOfArgsError("no"),
            said.AuthorizationError("no"),
            redis.ResponseError("NOAUTH Authentication required."),
            pipelined("NOAUTH Authentication required."),
            raised_from(redis.ConnectionError(inner := redis.AuthenticationError("no")), inner),
            raised_from(Wrapping(wrapped := redis.AuthenticationError("no")), wrapped),
        ],
    ),
    "open the socket": ((FAILURE, True, ()), [connect(13), connect(1), connect(88), connect(91)]),
    "accept queue": ((FAILURE, True, ()), [connect(11)]),
    "certificate": (
        (FAILURE, True, ()),
        [raised_from(redis.ConnectionError("no"), ssl.SSLCertVerificationError(1, "self-signed"))],
    ),
    "connection setting": (
        (FAILURE, True, ()),
        [redis.ConnectionError("Invalid Database"), redis.ResponseError("DB index is out of range")],
    ),
    "client-side cache": (
        (IGNORED, True, ()),
        [
            redis.ConnectionError(
                "To maximize compatibility with all Redis products, client-side caching is supported by Redis 7.4"
            ),
            redis.ConnectionError("Cannot retrieve information about server version"),
        ],
    ),
    "permission for this command": (
        (IGNORED, True, ()),
        [said.NoPermissionError("no"), pipelined("NOPERM this user has no permissions")],
    ),
    "no cluster client": (
        (IGNORED, True, ()),
        [
            said.MovedError("1 127.0.0.1:1"),
            said.AskError("1 127.0.0.1:1"),
            redis.ResponseError("MOVED 1 h:1"),
        ],
    ),
    "LOADING": ((FAILURE, True, ()), [redis.BusyLoadingError("no"), pipelined("LOADING Redis is loading")]),
    "`BUSY`": ((FAILURE, True, ()), [redis.ResponseError("BUSY Redis is busy"), pipelined("BUSY")]),
    "MASTERDOWN": ((FAILURE, True, ()), [said.MasterDownError("no"), redis.ResponseError("MASTERDOWN Link")]),
    "CLUSTERDOWN": (
        (FAILURE, True, ()),
        [said.ClusterDownError("no"), redis.ResponseError("CLUSTERDOWN no")],
    ),
    "TRYAGAIN": ((FAILURE, True, ()), [said.TryAgainError("no"), said.ClusterError("TTL exhausted.")]),
    "more clients": ((FAILURE, True, ()), [redis.ConnectionError("max number of clients reached")]),
    "OOM": ((SUCCESS, True, WRITE), [said.OutOfMemoryError("no"), pipelined("OOM command not allowed")]),
    "MISCONF": ((SUCCESS, True, WRITE), [redis.ResponseError("MISCONF Redis"), pipelined("MISCONF Redis")]),
    "READONLY": ((SUCCESS, True, WRITE), [said.ReadOnlyError("no"), pipelined("READONLY You can't write")]),
    "NOREPLICAS": (
        (SUCCESS, True, WRITE),
        [redis.ResponseError("NOREPLICAS Not enough"), pipelined("NOREPLICAS")],
    ),
    "while watching": (
        (FAILURE, True, ()),
        [in_context(redis.WatchError("A ConnectionError"), redis.ConnectionError("gone"))],
    ),
    "lost race": ((IGNORED, False, ()), [redis.WatchError("changed"), said.ExecAbortError("no")]),
    "of one command": (
        (IGNORED, False, ()),
        [
            redis.ResponseError("WRONGTYPE"),
            said.NoScriptError("no"),
            redis.ResponseError("ERR unknown command"),
        ],
    ),
    "no node": ((FAILURE, True, ()), [said.RedisClusterException("Redis Cluster cannot be connected. no")]),
    "finds wrong": (
        (IGNORED, False, ()),
        [
            redis.DataError("no"),
            said.LockError("no"),
            redis.PubSubError("no"),
            said.RedisClusterException("no"),
        ],
    ),
    "that is none": ((FAILURE, True, ()), [redis.InvalidResponse("Protocol Error"), out_of_parser()]),
    "in time": ((FAILURE, True, ()), [redis.TimeoutError("Timeout reading from socket")]),
    "cannot be reached": (
        (FAILURE, True, ()),
        [
            connect(111),
            connect(2),
            redis.ConnectionError("Connection closed by server."),
            OSError(104, "reset"),
        ],
    ),
    "no text": ((IGNORED, False, ()), [UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no")]),
    "not redis-py's": ((IGNORED, True, ()), [ValueError("a callback's"), KeyError("a callback's")]),
    "anything else": ((FAILURE, True, ()), [type("Newer", (redis.RedisError,), {})("a class of its own")]),
}
EXAMPLES = [(key, error) for key, (_, errors) in ROWS.items() for error in errors]


def test_every_row_has_examples() -> None:
    """A row that is added needs a row here."""
    assert len(ROWS) == len(TABLE)
    for row, key in zip(TABLE, ROWS, strict=True):
        assert key in row.what


@pytest.mark.parametrize(("key", "error"), EXAMPLES, ids=[f"{key}-{type(e).__name__}" for key, e in EXAMPLES])
def test_the_first_row_that_fits_decides(key: str, error: Exception) -> None:
    """Each example is met by the row that it stands for, and judged as that row says."""
    expected, _ = ROWS[key]
    assert key in TABLE.row(error).what
    assert judge(error, classify)[:3] == expected


def test_what_never_left_is_never_said_to_be_unknown() -> None:
    """Only rows in which the command may have left leave its outcome open."""
    assert {row.sent for row in TABLE} == set(Sent)
    for key in ("own pool", "credentials", "LOADING", "OOM", "READONLY"):
        assert TABLE.row(ROWS[key][1][0]).sent is Sent.NO


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt, GeneratorExit])
def test_cancellation_decides_nothing_and_is_a_miss(kind: type[BaseException]) -> None:
    """Whatever is no `Exception` never reaches the table."""
    assert judge(kind(), classify)[:2] == (IGNORED, True)


def test_fakeredis_clients_can_be_guarded(side: Side) -> None:
    """They are redis-py clients; what they do not do, such as sockets, is not needed."""
    dependency = Safehold().dependency("redis")
    kind: Callable[[], Any] = side.pick(fakeredis.FakeRedis, fakeredis.FakeAsyncRedis)
    client = guard_client(kind(), dependency)
    assert side.do(client.set, "k", "v") is True
    assert side.do(client.pipeline().get("k").incr("n").execute) == [b"v", 1]
    assert dependency.state == "healthy"
    dependency.trip()
    with pytest.raises(redis.ConnectionError):
        side.do(client.get, "k")
