"""Guard a redis-py client, sync or asyncio: `client = guard_client(client, health["redis"])`.

The client stays the object that it was: its class becomes a cached subclass of its own class, in place,
and the pipelines it gives birth to are treated alike. Commands go through permits at the top, outside
redis-py's own retry loop, where a refusal may safely be a `redis.ConnectionError`. Beside it, a thin
companion in the retry policy sees every attempt of that loop, so that the breaker opens during the loop
and ends it.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from contextvars import ContextVar
from functools import cache
from typing import Any, Final, TypeVar, cast

import redis
import redis.asyncio
from redis import exceptions
from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    DataError,
    LockError,
    MasterDownError,
    MaxConnectionsError,
    OutOfMemoryError,
    PubSubError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
    WatchError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from .._core.breaker import Outcome
from .._core.configuration import ConfigurationError
from .._runtime.classify import UNANSWERED, Judgement
from .._runtime.dependency import Dependency
from .._runtime.permit import Permit
from ..errors import DependencyUnhealthy

__all__ = ["RedisUnhealthy", "classify", "guard_client"]

C = TypeVar("C", bound="redis.Redis | redis.asyncio.Redis")

PROBE_TIMEOUT: Final = 0.5
"""Seconds that the default probe waits for a connection, and again for a reply."""

_permit: ContextVar[Permit | None] = ContextVar("safehold_redis_permit", default=None)
_SERVER_ERRORS: Final = (
    BusyLoadingError, ClusterDownError, MasterDownError, OutOfMemoryError, ReadOnlyError, TryAgainError,
)  # fmt: skip
_SERVER_WORDS: Final = ("BUSY", "MISCONF", "NOREPLICAS")  # troubles that redis-py has no class for


class RedisUnhealthy(DependencyUnhealthy, RedisConnectionError):
    """A refused Redis call: a `DependencyUnhealthy`, and a `redis.ConnectionError` for existing handlers."""

    error_type: Any = getattr(getattr(exceptions, "ExceptionType", None), "NETWORK", None)
    status_code = None


def classify(error: Exception) -> Outcome | bool | Judgement:
    """Say what an exception of redis-py means.

    Transport failures and a server that cannot serve count. What the server answered about one command,
    and what redis-py found wrong with the caller's arguments, does not. A full local pool says nothing
    about the server, but the call was not answered.
    """
    if isinstance(error, MaxConnectionsError) or str(error) == "No connection available.":
        return UNANSWERED
    if isinstance(error, _SERVER_ERRORS):
        return True
    if isinstance(error, WatchError):
        return isinstance(error.__context__, RedisConnectionError | RedisTimeoutError)
    if isinstance(error, ResponseError):
        said = str(error).rpartition("caused error: ")[2]  # a pipeline says first which command it was
        return said.split(" ", 1)[0] in _SERVER_WORDS
    return not isinstance(error, DataError | PubSubError | LockError | UnicodeError)


def _classify_wait(error: Exception) -> Outcome | bool | Judgement:
    """Judge a command that waits for longer than its socket does: an idle queue is no outage.

    A server that cannot even be connected to is one.
    """
    waited = isinstance(error, RedisTimeoutError) and "connecting" not in str(error).lower()
    return UNANSWERED if waited else classify(error)


_SECONDS_LAST: Final = {"BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BZPOPMIN", "BZPOPMAX"}
_SECONDS_FIRST: Final = {"BLMPOP", "BZMPOP"}
_MILLISECONDS_LAST: Final = {"WAIT", "WAITAOF"}
_READS: Final = {"XREAD", "XREADGROUP"}
_WAITS: Final = _SECONDS_LAST | _SECONDS_FIRST | _MILLISECONDS_LAST | _READS


def _outlives_socket(client: Any, args: tuple[Any, ...]) -> bool:
    """Whether this is a command that the server may answer later than the client's socket will wait."""
    if not args or args[0] not in _WAITS:
        return False
    wait = _block_time(args[0], args[1:])
    limit = client.connection_pool.connection_kwargs.get("socket_timeout", 5.0)  # redis-py 8's own default
    return wait is not None and limit is not None and (wait == 0 or wait >= limit)


def _block_time(command: str, args: tuple[Any, ...]) -> float | None:
    """Give the seconds for which a blocking command asks the server to wait; `None` for none."""
    try:
        if command in _SECONDS_LAST:
            return float(args[-1])
        if command in _SECONDS_FIRST:
            return float(args[0])
        if command in _MILLISECONDS_LAST:
            return float(args[-1]) / 1000
        words = [word.upper() if isinstance(word, str | bytes) else word for word in args]
        block = next(i for i, word in enumerate(words) if word in ("BLOCK", b"BLOCK"))
        return float(args[block + 1]) / 1000
    except (IndexError, StopIteration, TypeError, ValueError):  # not well formed: the server will say so
        return None


def guard_client(client: C, dependency: Dependency) -> C:
    """Guard a client and give it back: the same object, of a subclass of its own class.

    Commands and pipelines go through the dependency's breaker; a refused one raises `RedisUnhealthy`.
    The dependency gets a default probe (a connection of its own, no retries, half a second for each
    step, an `ECHO` of a nonce), unless it has one. Guarding twice is guarding once. Raises
    `ConfigurationError` for what is not a redis-py client, and for a client of another dependency.
    """
    if not isinstance(cast("object", client), redis.Redis | redis.asyncio.Redis):
        msg = f"client must be a redis.Redis or redis.asyncio.Redis, got {client!r}"
        raise ConfigurationError(msg)
    guarded = getattr(client, "_safehold", None)
    if guarded is not None and guarded is not dependency:
        msg = f"this client is guarded as {guarded.name!r} already, not as {dependency.name!r}"
        raise ConfigurationError(msg)
    _adopt(client, dependency)
    _watch_retries(client.connection_pool)
    dependency.provide(probe=_probe_for(client), classify=classify)
    return client


def _adopt(client: Any, dependency: Dependency) -> None:
    if not isinstance(client, _Guarded):
        client.__class__ = _guarded_class(
            cast("Any", type(client))
        )  # the parent built it; only the class is ours
    client._safehold = dependency


class _Guarded:
    """Marks the classes made here. `None` until an object is guarded: redis-py makes more by itself."""

    __slots__ = ()
    _safehold: Any = None


@cache
def _guarded_class(plain: Any) -> Any:
    """Make the guarded subclass of a client's or a pipeline's class; it goes by the name of its parent.

    The parent's methods are looked up at each call, so that tools that patch them go on working.
    """
    forward = _forward_async if issubclass(plain, redis.asyncio.Redis) else _forward
    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    if issubclass(plain, Pipeline | AsyncPipeline):
        over = {name: forward(plain, name) for name in ("execute", "immediate_execute_command")}
    else:
        over = {"execute_command": forward(plain, "execute_command"), "pipeline": _bear(plain, "pipeline")}
    return type(plain.__name__, (plain, _Guarded), {**over, **names})


def _forward(plain: Any, name: str) -> Any:
    def guarded(self: Any, *args: Any, **options: Any) -> Any:
        if self._safehold is None:
            return getattr(plain, name)(self, *args, **options)
        judge = _classify_wait if _outlives_socket(self, args) else classify
        with Permit(self._safehold, error=RedisUnhealthy, classify=judge) as permit:
            token = _permit.set(permit)
            try:
                return getattr(plain, name)(self, *args, **options)
            finally:
                _permit.reset(token)

    return guarded


def _forward_async(plain: Any, name: str) -> Any:
    async def guarded(self: Any, *args: Any, **options: Any) -> Any:
        if self._safehold is None:
            return await getattr(plain, name)(self, *args, **options)
        judge = _classify_wait if _outlives_socket(self, args) else classify
        with Permit(self._safehold, error=RedisUnhealthy, classify=judge) as permit:
            token = _permit.set(permit)
            try:
                return await getattr(plain, name)(self, *args, **options)
            finally:
                _permit.reset(token)

    return guarded


def _bear(plain: Any, name: str) -> Any:
    """Guard what the client gives birth to."""

    def guarded(self: Any, *args: Any, **options: Any) -> Any:
        born = getattr(plain, name)(self, *args, **options)
        if self._safehold is not None:
            _adopt(born, self._safehold)
        return born

    return guarded


# --- the companion in the retry loop ------------------------------------------------------------------


class _Watching:
    """Marks retry policies that report their attempts. They hold no state: redis-py copies them."""

    __slots__ = ()


def _watch_retries(pool: Any) -> None:
    """Let the pool's retry policy, and those that its connections have copied, report attempts."""
    connections = [*getattr(pool, "_available_connections", ()), *getattr(pool, "_in_use_connections", ())]
    holders = [pool.connection_kwargs, *(vars(connection) for connection in connections)]
    for holder in holders:
        retry = holder.get("retry")
        if retry is not None and not isinstance(retry, _Watching):
            retry.__class__ = _watching_class(cast("Any", type(retry)))


@cache
def _watching_class(plain: Any) -> Any:
    is_async = issubclass(plain, AsyncRetry)
    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__}

    def call_with_retry(self: Any, do: Any, fail: Any, *args: Any, **options: Any) -> Any:
        permit = _permit.get()
        if permit is not None:
            fail = (_report_async if is_async else _report)(permit, fail)
        return plain.call_with_retry(self, do, fail, *args, **options)

    return type(plain.__name__, (plain, _Watching), {"call_with_retry": call_with_retry, **names})


def _report(permit: Permit, fail: Any) -> Any:
    """Let redis-py clean up after an attempt, then report it, and end the loop when the breaker is open."""

    def failed(error: Exception, *count: Any) -> Any:
        result = fail(error, *count)
        if not permit.attempt_failed(error):
            raise error
        return result

    return failed


def _report_async(permit: Permit, fail: Any) -> Any:
    async def failed(error: Exception, *count: Any) -> Any:
        result = await fail(error, *count)
        if not permit.attempt_failed(error):
            raise error
        return result

    return failed


# --- the default probe --------------------------------------------------------------------------------


def _probe_for(client: redis.Redis | redis.asyncio.Redis) -> Any:
    pool: Any = client.connection_pool
    return _async_probe(pool) if isinstance(client, redis.asyncio.Redis) else _sync_probe(pool)


def _own_connection(pool: Any, retry: Any) -> Any:
    """Make a connection like the pool's, which shares nothing with it and tries once."""
    settings = {
        k: v for k, v in pool.connection_kwargs.items() if k not in {"retry_on_error", "retry_on_timeout"}
    }
    settings.update(retry=retry, socket_timeout=PROBE_TIMEOUT, socket_connect_timeout=PROBE_TIMEOUT)
    settings["health_check_interval"] = 0
    return pool.connection_class(**settings)


def _sync_probe(pool: Any) -> Any:
    def probe() -> None:
        nonce = secrets.token_hex(8)
        connection = _own_connection(pool, Retry(NoBackoff(), 0))
        try:
            connection.connect()
            connection.send_command("ECHO", nonce)
            _same(connection.read_response(), nonce)
        finally:
            connection.disconnect()

    return probe


def _async_probe(pool: Any) -> Any:
    async def probe() -> None:
        nonce = secrets.token_hex(8)
        connection = _own_connection(pool, AsyncRetry(NoBackoff(), 0))
        try:
            await connection.connect()
            await connection.send_command("ECHO", nonce)
            _same(await connection.read_response(), nonce)
        finally:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    return probe


def _same(reply: object, nonce: str) -> None:
    """Take nothing but the nonce for an answer: anything else was meant for somebody else."""
    if reply not in (nonce, nonce.encode()):
        msg = "the probe's nonce did not come back"
        raise RedisConnectionError(msg)
