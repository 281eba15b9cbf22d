"""What redis-py's exceptions mean. The one table: code, tests and docs read it.

Rows go by class, then by the first word of what the server said (behind the words that a pipeline puts
before it), then by text, where redis-py has no class for it.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Any, Final, cast

from redis import exceptions as said
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, ResponseError, WatchError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .._core.breaker import Outcome
from .._runtime.classify import Judgement
from .._runtime.permit import WRITES
from ._table import (
    NO_PERMISSION,
    NO_SOCKET_THERE,
    NOTHING_SAID,
    OWN_LIMITS,
    Row,
    Sent,
    Table,
    down,
    has_errno,
    is_certificate,
    misconfigured,
    refuses,
    unanswered,
)


def _kinds(*names: str) -> tuple[type[BaseException], ...]:
    """Give those of redis-py's exceptions that this version has."""
    return tuple(getattr(said, name) for name in names if hasattr(said, name))


def _is(*names: str) -> Callable[[BaseException], bool]:
    kinds = _kinds(*names)
    return lambda error: isinstance(error, kinds)


_PIPELINE = re.compile(r"^Command # \d+ .* of pipeline caused error: ", re.DOTALL)


def word(error: BaseException) -> str:
    """Give the first word of what the server said; empty when it was not the server."""
    if not isinstance(error, ResponseError | RedisConnectionError):
        return ""
    return _PIPELINE.sub("", str(error)).split(" ", 1)[0]


class RedisTable(Table):
    """The rows, asked about what redis-py met: its asyncio client may put an error of its own around it."""

    __slots__ = ()

    def row(self, error: BaseException) -> Row:
        """Give the first row that matches."""
        return super().row(inside(error))


def inside(error: BaseException) -> BaseException:
    """Give what redis-py, or a connection class of the user's, has put an error of its own around."""
    while isinstance(error, RedisConnectionError) and error.args and error.args[0] is error.__cause__:
        error = cast("BaseException", error.__cause__)
    return error


def _says(*words: str) -> Callable[[BaseException], bool]:
    return lambda error: word(error) in words


def _text(*parts: str) -> Callable[[BaseException], bool]:
    lowered = [part.lower() for part in parts]
    return lambda error: isinstance(error, RedisError) and any(p in str(error).lower() for p in lowered)


def _any(*tests: Callable[[BaseException], bool]) -> Callable[[BaseException], bool]:
    return lambda error: any(test(error) for test in tests)


def _watch_hides_failure(error: BaseException) -> bool:
    failure = isinstance(error.__context__, RedisConnectionError | RedisTimeoutError)
    return isinstance(error, WatchError) and failure


def _from_parser(error: BaseException) -> bool:
    """Whether an error that is nobody's of redis-py's came out of its parser: the answer was broken."""
    trace = error.__traceback__
    while trace is not None:
        if "_parsers" in trace.tb_frame.f_code.co_filename and not isinstance(error, UnicodeError):
            return not isinstance(error, RedisError | OSError)
        trace = trace.tb_next
    return False


def _transport(error: BaseException) -> bool:
    return isinstance(error, RedisConnectionError | RedisTimeoutError | InvalidResponse | OSError)


def _cluster_lost(error: BaseException) -> bool:
    return isinstance(error, _CLUSTER) and "cannot be connected" in str(error)


_CLUSTER: Any = _kinds("RedisClusterException")

TABLE: Final = RedisTable(
    (
        Row(
            "the client's own pool has no connection left (`MaxConnectionsError`)",
            _any(_is("MaxConnectionsError"), _text("No connection available.", "Too many connections")),
            unanswered("overloaded", "the client's own pool is full"),
            Sent.NO,
        ),
        Row(
            "this process has no descriptor or memory left for a connection (`Error 24 connecting`)",
            lambda error: has_errno(error, OWN_LIMITS) or _text("Error 24 connecting")(error),
            unanswered("overloaded", "this process has no descriptor left"),
            Sent.NO,
        ),
        Row(
            "a connection of the parent used in a forked child (`ChildDeadlockedError`)",
            _is("ChildDeadlockedError"),
            NOTHING_SAID,
            Sent.NO,
        ),
        Row(
            "wrong, missing or unwanted credentials (`AuthenticationError`, `NOAUTH`, `WRONGPASS`)",
            _any(
                _is(
                    "AuthenticationError",
                    "AuthenticationWrongNumberOfArgsError",
                    "AuthorizationError",
                    "ExternalAuthProviderError",
                ),
                _says("NOAUTH", "WRONGPASS"),
                _text("invalid username-password"),
            ),
            misconfigured("credentials refused"),
            Sent.NO,
        ),
        Row(
            "no permission to open the socket, or nothing that could be one (`EACCES`, `ENOTSOCK`)",
            lambda error: has_errno(error, NO_PERMISSION | NO_SOCKET_THERE),
            misconfigured("the socket cannot be opened"),
            Sent.NO,
        ),
        Row(
            "the server's accept queue is full (`EAGAIN` from connecting to a unix socket)",
            lambda error: has_errno(error, {errno.EAGAIN}),
            down("overloaded", "its accept queue is full"),
            Sent.NO,
        ),
        Row(
            "the server's TLS certificate is not trusted",
            is_certificate,
            misconfigured("TLS certificate not trusted"),
            Sent.NO,
        ),
        Row(
            "a connection setting that the server does not take (database, protocol, client name)",
            _text(
                "Invalid Database",
                "DB index is out of range",
                "SELECT is not allowed in cluster mode",
                "Invalid RESP version",
                "Error setting client name",
                "protocol must be",
            ),
            misconfigured("connection settings refused"),
            Sent.NO,
        ),
        Row(
            "a client-side cache on a server that redis-py takes for too old for one",
            _text("client-side caching is supported by", "Cannot retrieve information about server version"),
            unanswered("misconfigured", "no client-side caching there"),
            Sent.NO,
        ),
        Row(
            "no permission for this command or key (`NOPERM`)",
            _any(_is("NoPermissionError"), _says("NOPERM")),
            unanswered("misconfigured", "no permission for a command"),
            Sent.NO,
        ),
        Row(
            "a client that is no cluster client, on a cluster (`MOVED`, `ASK`)",
            _any(_is("AskError", "MovedError"), _says("MOVED", "ASK")),
            unanswered("misconfigured", "a cluster needs a cluster client"),
            Sent.NO,
        ),
        Row(
            "the server loads its data (`LOADING`)",
            _any(_is("BusyLoadingError"), _says("LOADING")),
            down("loading", "loading its data"),
            Sent.NO,
        ),
        Row(
            "a script keeps the server busy (`BUSY`)",
            _says("BUSY"),
            down("busy", "busy with a script"),
            Sent.NO,
        ),
        Row(
            "a replica without its master (`MASTERDOWN`)",
            _any(_is("MasterDownError"), _says("MASTERDOWN")),
            down("master_down", "its master is down"),
            Sent.NO,
        ),
        Row(
            "the cluster is down, or the slot is not covered (`CLUSTERDOWN`)",
            _any(_is("ClusterDownError", "SlotNotCoveredError"), _says("CLUSTERDOWN")),
            down("cluster_down", "cluster down"),
            Sent.NO,
        ),
        Row(
            "a slot on the move (`TRYAGAIN`), redirected without end",
            _any(_is("TryAgainError"), _says("TRYAGAIN"), _text("TTL exhausted")),
            down("try_again", "a slot is on the move"),
            Sent.NO,
        ),
        Row(
            "the server takes no more clients (`max number of clients reached`)",
            _text("max number of clients", "Connection not ready"),
            down("max_clients", "takes no more clients"),
            Sent.NO,
        ),
        Row(
            "out of memory (`OOM`)",
            _any(_is("OutOfMemoryError"), _says("OOM")),
            refuses(WRITES, "out_of_memory", "out of memory"),
            Sent.NO,
        ),
        Row(
            "cannot persist (`MISCONF`)",
            _says("MISCONF"),
            refuses(WRITES, "cannot_persist", "cannot persist"),
            Sent.NO,
        ),
        Row(
            "a replica (`READONLY`)",
            _any(_is("ReadOnlyError"), _says("READONLY")),
            refuses(WRITES, "read_only", "read-only replica"),
            Sent.NO,
        ),
        Row(
            "too few replicas (`NOREPLICAS`)",
            _says("NOREPLICAS"),
            refuses(WRITES, "no_replicas", "too few replicas"),
            Sent.NO,
        ),
        Row(
            "a transport failure while watching (`WatchError` raised from one)",
            _watch_hides_failure,
            down("watch_lost"),
        ),
        Row(
            "a lost race for a watched key, an aborted transaction (`WatchError`, `EXECABORT`)",
            _any(_is("WatchError", "ExecAbortError"), _says("EXECABORT")),
            NOTHING_SAID,
            Sent.NO,
        ),
        Row(
            "what the server says of one command (`WRONGTYPE`, `NOSCRIPT`, `ERR`, and the like)",
            lambda error: isinstance(error, ResponseError),
            NOTHING_SAID,
            Sent.YES,
        ),
        Row(
            "no node of the cluster answers",
            _cluster_lost,
            down("cluster_lost", "no node answers"),
            Sent.MAYBE,
        ),
        Row(
            "arguments or a use that redis-py finds wrong (`DataError`, `LockError`, `PubSubError`)",
            lambda error: (
                _is(
                    "DataError",
                    "LockError",
                    "PubSubError",
                    "IncorrectPolicyType",
                    "InvalidPipelineStack",
                    "CrossSlotTransactionError",
                    "RedisClusterException",
                )(error)
                or type(error) is RedisError
            ),
            NOTHING_SAID,
            Sent.NO,
        ),
        Row(
            "an answer that is none (`InvalidResponse`, an error out of the parser)",
            lambda error: isinstance(error, InvalidResponse) or _from_parser(error),
            down("broken_answer", "broken answer"),
        ),
        Row(
            "no answer in time (`TimeoutError`)",
            lambda error: isinstance(error, RedisTimeoutError),
            down("timeout"),
        ),
        Row(
            "the server cannot be reached, or the connection broke (`ConnectionError`)",
            _transport,
            down("transport"),
        ),
        Row(
            "an answer that is no text, read as text (`UnicodeError`)",
            lambda error: isinstance(error, UnicodeError),
            NOTHING_SAID,
            Sent.YES,
        ),
        Row(
            "whatever is not redis-py's, such as an error of the caller's own response callback",
            lambda error: not isinstance(error, RedisError),
            Judgement(Outcome.IGNORED, missed=True),
            Sent.YES,
        ),
        Row("anything else of redis-py's", lambda _: True, down("other")),
    )
)
