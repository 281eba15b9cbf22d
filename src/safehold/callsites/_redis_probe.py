"""The default probe of a guarded client: a connection of its own, one attempt, short time-outs, a nonce.

Where a write has failed lately it also writes: setting no bytes at an offset of a key that is not there
creates nothing, and is refused like any write by a server that takes none.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Any, Final

import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError
from redis.retry import Retry

from .._runtime.permit import WRITES
from .._runtime.prober import ProbeAnswer
from ._redis_calls import ClientGuard

PROBE_TIMEOUT: Final = 0.5
"""Seconds that the default probe waits for a connection, and again for each reply."""
_NOT_OURS: Final = {"retry_on_error", "retry_on_timeout", "cache", "cache_config"}


def probe_for(client: Any, guard: ClientGuard) -> Any:
    """Make the default probe for a client: a plain function, or a coroutine function."""
    pool = client.connection_pool
    return _async_probe(pool, guard) if isinstance(client, redis.asyncio.Redis) else _sync_probe(pool, guard)


def _own_connection(pool: Any, retry: Any) -> Any:
    """Make a connection like the pool's, which shares nothing with it and tries once."""
    settings = {k: v for k, v in pool.connection_kwargs.items() if k not in _NOT_OURS}
    settings.update(retry=retry, socket_timeout=PROBE_TIMEOUT, socket_connect_timeout=PROBE_TIMEOUT)
    settings["health_check_interval"] = 0
    return pool.connection_class(**settings)


def _sync_probe(pool: Any, guard: ClientGuard) -> Any:
    def probe() -> ProbeAnswer:
        nonce = secrets.token_hex(8)
        connection = _own_connection(pool, Retry(NoBackoff(), 0))
        try:
            connection.connect()
            connection.send_command("ECHO", nonce)
            _same(connection.read_response(), nonce)
            if not _should_write(guard):
                return ProbeAnswer()
            connection.send_command(*_write_nothing(nonce))
            try:
                connection.read_response()
            except NoPermissionError:  # not for this key: the writes of the application have to show it
                return ProbeAnswer()
            guard.dependency.writes_failed = False
            return ProbeAnswer((WRITES,))
        finally:
            connection.disconnect()

    return probe


def _async_probe(pool: Any, guard: ClientGuard) -> Any:
    async def probe() -> ProbeAnswer:
        nonce = secrets.token_hex(8)
        connection = _own_connection(pool, AsyncRetry(NoBackoff(), 0))
        try:
            await connection.connect()
            await connection.send_command("ECHO", nonce)
            _same(await connection.read_response(), nonce)
            if not _should_write(guard):
                return ProbeAnswer()
            await connection.send_command(*_write_nothing(nonce))
            try:
                await connection.read_response()
            except NoPermissionError:  # not for this key: the writes of the application have to show it
                return ProbeAnswer()
            guard.dependency.writes_failed = False
            return ProbeAnswer((WRITES,))
        finally:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    return probe


def _should_write(guard: ClientGuard) -> bool:
    return guard.dependency.writes_failed or WRITES in guard.breaker.impaired


def _write_nothing(nonce: str) -> tuple[str, str, int, str]:
    return ("SETRANGE", f"safehold:{nonce}", 0, "")


def _same(reply: object, nonce: str) -> None:
    """Take nothing but the nonce for an answer: anything else was meant for somebody else."""
    if reply not in (nonce, nonce.encode()):
        msg = "the probe's nonce did not come back"
        raise RedisConnectionError(msg)
