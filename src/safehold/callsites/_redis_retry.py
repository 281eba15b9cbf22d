"""Watches redis-py try again by itself, between one attempt and the next.

redis-py hides up to ten failed attempts and minutes behind one call, and it sends a command whose reply was
lost once more. Its retry policy asks its backoff how long to wait before each new attempt; that is where
we stand: `compute` of a watched backoff is called when an attempt has failed and another one is about to
be made, and at no other time, so that a call that succeeds pays nothing. Raising there ends the loop with
the attempt's own error.

Which guarded call is being tried again is found on the stack: the policy cannot know (redis-py copies it
into every connection, and unguarded clients may share the pool), and telling it would cost every command.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from types import CodeType, FrameType, TracebackType
from typing import Any, Final, Protocol, cast

from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from ._plainly import plainly
from ._redis_parent import parents

__all__ = ["Tried", "call_sites", "may_have_been_sent", "pools_of", "tried_here", "watch_retries"]

call_sites: Final[dict[CodeType, Callable[[Mapping[str, Any]], Tried]]] = {}
"""The code of each function in which guarded calls are made, with how to read the call from its locals."""

_DEEPEST: Final = 200


class Tried(Protocol):
    """A guarded call, as the loop sees it."""

    def again(self, error: Exception) -> bool:
        """Take in a failed attempt; say whether there may be another one."""
        ...


def pools_of(client: Any) -> list[Any]:
    """Give the connection pools of a client; of a cluster client, those that its nodes have by now."""
    pool = getattr(client, "connection_pool", None)
    if pool is not None:
        return [pool]
    manager = getattr(client, "nodes_manager", None)
    nodes = {} if manager is None else manager.nodes_cache
    homes = [getattr(node, "redis_connection", None) for node in nodes.values()]
    return [home.connection_pool for home in homes if home is not None]


def watch_retries(pool: Any) -> None:
    """Let the pool's retry policy, and those that its connections have copied, report attempts."""
    settings = getattr(pool, "connection_kwargs", {})
    if settings.get("retry") is None and (settings.get("retry_on_error") or settings.get("retry_on_timeout")):
        # what a connection would make for itself, where nobody could watch it
        is_async = getattr(pool, "connection_class", Retry).__module__.startswith("redis.asyncio")
        settings["retry"] = (AsyncRetry if is_async else Retry)(NoBackoff(), 1)
    _watch(settings.get("retry"))
    for connection in connections_of(pool):
        _watch(getattr(connection, "retry", None))


def connections_of(pool: Any) -> list[Any]:
    """Give the connections that a pool has by now."""
    names = ("_available_connections", "_in_use_connections", "_connections")
    return [connection for name in names for connection in list(getattr(pool, name, None) or ())]


def _watch(retry: Any) -> None:
    if not isinstance(retry, Retry | AsyncRetry):  # none, or a mock
        return
    backoff = getattr(retry, "_backoff", None)
    if backoff is not None and not isinstance(backoff, _Watched):
        backoff.__class__ = _watched_class(cast("Any", type(backoff)))


class _Watched:
    """Marks the backoffs that report."""

    __slots__ = ()


@cache
def _watched_class(plain: Any) -> Any:
    def compute(self: Any, failures: int) -> float:
        error = sys.exception()
        tried = tried_here(sys._getframe(1))
        if tried is not None and isinstance(error, Exception) and not tried.again(error):
            raise error
        return float(parents(plain, "compute", self)(failures))

    return plainly(plain, _Watched, {"compute": compute})


def tried_here(frame: FrameType | None) -> Tried | None:
    """Find the guarded call that this attempt belongs to."""
    for _ in range(_DEEPEST):
        if frame is None:
            break
        if (read := call_sites.get(frame.f_code)) is not None:
            return read(frame.f_locals)
        frame = frame.f_back
    return None


def may_have_been_sent(error: BaseException) -> bool:
    """Whether the command may have left before this was raised: not while the connection was being made."""
    path = list(_names(error.__traceback__))
    if not any(name.startswith(("send", "_send", "read", "parse", "execute", "_execute")) for name in path):
        return False
    connecting = [i for i, name in enumerate(path) if name.startswith(("connect", "_connect"))]
    if not connecting:
        return "get_connection" not in path
    before = path[: connecting[0]]
    return not before or not before[-1].startswith(("send", "get_connection", "ensure", "call_with"))


def _names(trace: TracebackType | None) -> Any:
    while trace is not None:
        name = trace.tb_frame.f_code.co_name
        if name != "<lambda>":  # redis-py puts some around what it tries
            yield name
        trace = trace.tb_next
