"""The default probe of a guarded client: a connection of its own, one attempt, short time-outs, a nonce.

An `ECHO` of a nonce shows that the answer is ours, and a read that the server serves: it answers an `ECHO`
while it loads its data, too. Where a write has failed lately it also writes: setting no bytes at an offset
of a key that is not there creates nothing, and is refused like any write by a server that takes none.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Generator
from contextlib import suppress
from typing import Any, Final, TypeAlias, TypeVar, cast

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ClusterDownError, RedisError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from .._core.breaker import Cause, Outcome
from .._runtime.permit import WRITES
from .._runtime.prober import ProbeAnswer
from ._redis_calls import ClientGuard
from ._redis_cluster import CLUSTERS, node_facet
from ._redis_table import TABLE

T = TypeVar("T")
Conversation: TypeAlias = Generator[tuple[Any, ...], Any, T]
"""Gives the words to send, takes what was answered, and returns what it makes of that."""
PROBE_TIMEOUT: Final = 0.5
"""Seconds that the default probe waits for a connection, and again for each reply."""
_NOT_OURS: Final = {
    "retry_on_error",
    "retry_on_timeout",
    "cache",
    "cache_config",
    "maint_notifications_config",  # a probe hears no news for the application's pool;
    "maint_notifications_pool_handler",  # and over a unix socket redis-py 7 raises when it is to
}


def probe_for(client: Any, guard: ClientGuard) -> Any:
    """Make the default probe for a client: a plain function, or a coroutine function."""
    is_async = isinstance(client, redis.asyncio.Redis | redis.asyncio.RedisCluster)
    if isinstance(client, CLUSTERS):
        return _async_cluster_probe(client, guard) if is_async else _cluster_probe(client, guard)
    pool: Any = client.connection_pool
    return _async_probe(pool, guard) if is_async else _sync_probe(pool, guard)


def _own_connection(pool: Any, retry: Any) -> Any:
    """Make a connection like the pool's, which shares nothing with it and tries once."""
    return pool.connection_class(**_once(pool, retry))


def _once(pool: Any, retry: Any) -> dict[str, Any]:
    settings = {k: v for k, v in pool.connection_kwargs.items() if k not in _NOT_OURS}
    waits = {"socket_timeout": PROBE_TIMEOUT, "socket_connect_timeout": PROBE_TIMEOUT}
    return {**settings, **waits, "retry": retry, "health_check_interval": 0}


def _of_its_own(pool: Any, home: Any, retry: Any) -> tuple[Any, list[Any]]:
    """Give the pool to make a probe's connection from, and the sentinels to ask.

    A Sentinel-managed connection asks the sentinels through its pool: those of a probe are its own, because
    the application's may belong to another loop.
    """
    manager = getattr(pool, "sentinel_manager", None)
    if manager is None:
        return pool, []
    own = copy.copy(manager)
    own.sentinels = [
        home.Redis(
            connection_pool=home.ConnectionPool(
                connection_class=sentinel.connection_pool.connection_class,
                **_once(sentinel.connection_pool, retry),
            )
        )
        for sentinel in manager.sentinels
    ]
    settings = {k: v for k, v in _once(pool, retry).items() if k != "connection_pool"}
    kinds = {"is_master": pool.is_master, "check_connection": pool.check_connection}
    made = type(pool)(pool.service_name, own, connection_class=pool.connection_class, **kinds, **settings)
    return made, own.sentinels


def _sync_probe(pool: Any, guard: ClientGuard) -> Any:
    def probe() -> ProbeAnswer:
        own, sentinels = _of_its_own(pool, redis, Retry(NoBackoff(), 0))
        try:
            answer = ask(own, _conversation(guard))
            for sentinel in sentinels:
                with suppress(RedisError, OSError):
                    note_replicas(guard, ask(sentinel.connection_pool, _replicas(pool.service_name)))
                    break
        finally:
            for sentinel in sentinels:
                sentinel.connection_pool.disconnect()
        return answer

    def ask(pool: Any, conversation: Conversation[T]) -> T:
        connection = _own_connection(pool, Retry(NoBackoff(), 0))
        try:
            return _ask(connection, conversation)
        finally:
            connection.disconnect()

    return probe


def _async_probe(pool: Any, guard: ClientGuard) -> Any:
    async def probe() -> ProbeAnswer:
        own, sentinels = _of_its_own(pool, redis.asyncio, AsyncRetry(NoBackoff(), 0))
        try:
            answer = await ask(own, _conversation(guard))
            for sentinel in sentinels:
                with suppress(RedisError, OSError):
                    note_replicas(guard, await ask(sentinel.connection_pool, _replicas(pool.service_name)))
                    break
        finally:
            for sentinel in sentinels:
                await sentinel.connection_pool.disconnect()
        return answer

    async def ask(pool: Any, conversation: Conversation[T]) -> T:
        connection = _own_connection(pool, AsyncRetry(NoBackoff(), 0))
        try:
            return await _aask(connection, conversation)
        finally:
            with suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    return probe


def _conversation(guard: ClientGuard) -> Conversation[ProbeAnswer]:
    """Say what to send next, and take what was answered; what this user may not do is passed over."""
    nonce = secrets.token_hex(8)
    reply = yield ("ECHO", nonce)
    ours = reply in (nonce, nonce.encode())
    if not ours and not isinstance(reply, ResponseError):
        msg = "the probe's nonce did not come back"
        raise RedisConnectionError(msg)
    key = f"safehold:{nonce}"
    for words, answers in ((("EXISTS", key), (0,)), (("GET", key), (None,)), (("PING",), (b"PONG", "PONG"))):
        reply = yield words
        if isinstance(reply, ResponseError):
            continue
        if not ours and reply not in answers:
            msg = f"the probe's {words[0]} was answered by something else"
            raise RedisConnectionError(msg)
        break
    if guard.dependency._writes_failed or WRITES in guard.breaker.impaired:
        reply = yield ("SETRANGE", key, 0, "")
        if not isinstance(reply, ResponseError):
            guard.dependency._writes_failed = False
            return ProbeAnswer((WRITES,))
    return ProbeAnswer()


def _unless_it_counts(error: ResponseError) -> ResponseError:
    """Give an answer that says nothing against the server, such as a lack of permission; raise any other."""
    said = TABLE.classify(error)
    if said.outcome is Outcome.FAILURE or said.facets:
        raise error
    return error


def _ask(connection: Any, conversation: Conversation[T]) -> T:
    connection.connect()
    words = next(conversation)
    while True:
        connection.send_command(*words)
        try:
            reply = connection.read_response()
        except ResponseError as error:
            reply = _unless_it_counts(error)
        try:
            words = conversation.send(reply)
        except StopIteration as said:
            return cast("T", said.value)


async def _aask(connection: Any, conversation: Conversation[T]) -> T:
    await connection.connect()
    words = next(conversation)
    while True:
        await connection.send_command(*words)
        try:
            reply = await connection.read_response()
        except ResponseError as error:
            reply = _unless_it_counts(error)
        try:
            words = conversation.send(reply)
        except StopIteration as said:
            return cast("T", said.value)


# --- replicas, as a sentinel sees them --------------------------------------------------------------------


def _replicas(service: str) -> Conversation[dict[str, str]]:
    """Ask a sentinel for the replicas of a service: each address with its flags."""
    reply = yield ("SENTINEL", "REPLICAS", service)
    if not isinstance(reply, list):
        return {}
    found: dict[str, str] = {}
    for told in reply:
        pairs = told.items() if isinstance(told, dict) else zip(told[::2], told[1::2], strict=False)
        about = {_text(name): _text(value) for name, value in pairs}
        found[f"{about.get('ip')}:{about.get('port')}"] = about.get("flags", "")
    return found


def note_replicas(guard: ClientGuard, replicas: dict[str, str]) -> None:
    """Let each replica that a sentinel has lost be a facet that fails; forget those that are no more."""
    lost = {
        f"replica {address}"
        for address, flags in replicas.items()
        if {"s_down", "o_down", "disconnected"} & set(flags.split(","))
    }
    known = {facet for facet in guard.breaker.impaired if facet.startswith("replica ")}
    for facet in lost - known:
        guard.dependency._impair(facet, Cause("replica_lost", "a sentinel has lost it"))
    for facet in known - lost:
        guard.dependency._mend(facet)


def _text(word: Any) -> str:
    return word.decode(errors="replace") if isinstance(word, bytes) else str(word)


# --- clusters -------------------------------------------------------------------------------------------
# One node that is well and one that was lost are asked each time, and what they think of the cluster: one
# without some of its slots answers well enough.


def _cluster_probe(client: Any, guard: ClientGuard) -> Any:
    def probe() -> ProbeAnswer:
        well, lost = _chosen(client, guard)
        if lost is not None:
            with suppress(RedisError, OSError):
                node_answers(lost)
                guard.dependency._mend(node_facet(lost))
        node_answers(well)
        if not _should_write(guard):
            return ProbeAnswer()
        words = _write_nothing()
        with own(client.get_node_from_key(words[1])) as home:
            home.execute_command(*words)
        return ProbeAnswer((WRITES,))

    def node_answers(node: Any) -> None:
        with own(node) as home:
            _cluster_is_up(home.execute_command("CLUSTER INFO"))

    def own(node: Any) -> Any:
        return redis.Redis(**_node_settings(node, Retry(NoBackoff(), 0)))

    return probe


def _async_cluster_probe(client: Any, guard: ClientGuard) -> Any:
    async def probe() -> ProbeAnswer:
        well, lost = _chosen(client, guard)
        if lost is not None:
            with suppress(RedisError, OSError):
                await node_answers(lost)
                guard.dependency._mend(node_facet(lost))
        await node_answers(well)
        if not _should_write(guard):
            return ProbeAnswer()
        words = _write_nothing()
        async with own(client.get_node_from_key(words[1])) as home:
            await home.execute_command(*words)
        return ProbeAnswer((WRITES,))

    async def node_answers(node: Any) -> None:
        async with own(node) as home:
            _cluster_is_up(await home.execute_command("CLUSTER INFO"))

    def own(node: Any) -> Any:
        return redis.asyncio.Redis(**_node_settings(node, AsyncRetry(NoBackoff(), 0)))

    return probe


def _should_write(guard: ClientGuard) -> bool:
    due = guard.dependency._writes_failed or WRITES in guard.breaker.impaired
    guard.dependency._writes_failed = False
    return due


def _write_nothing() -> tuple[str, str, int, str]:
    return ("SETRANGE", f"safehold:{secrets.token_hex(8)}", 0, "")


def _chosen(client: Any, guard: ClientGuard) -> tuple[Any, Any]:
    """Choose a node to ask, and one that was lost, if any; forget those that have left."""
    nodes = {node_facet(node): node for node in list(client.nodes_manager.nodes_cache.values())}
    impaired = [facet for facet in guard.breaker.impaired if facet.startswith("node ")]
    for facet in impaired:
        if facet not in nodes:
            guard.dependency._mend(facet)
    lost = [nodes[facet] for facet in impaired if facet in nodes]
    well = [node for facet, node in nodes.items() if facet not in impaired]
    if not nodes:
        msg = "no node of the cluster is known"
        raise RedisConnectionError(msg)
    return secrets.choice(well or lost), secrets.choice(lost) if well and lost else None


_OF_A_NODE: Final = {
    "username", "password", "credential_provider", "protocol", "ssl", "ssl_keyfile", "ssl_certfile",
    "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_path", "ssl_check_hostname",
}  # fmt: skip


def _node_settings(node: Any, retry: Any) -> dict[str, Any]:
    home = getattr(node, "redis_connection", None)
    known = (
        home.connection_pool.connection_kwargs if home is not None else getattr(node, "connection_kwargs", {})
    )
    settings = {name: value for name, value in known.items() if name in _OF_A_NODE}
    waits = {"socket_timeout": PROBE_TIMEOUT, "socket_connect_timeout": PROBE_TIMEOUT}
    return {**settings, **waits, "host": node.host, "port": node.port, "retry": retry}


def _cluster_is_up(info: Any) -> None:
    text = info.decode() if isinstance(info, bytes) else str(info)  # redis-py makes a mapping of it
    if "cluster_state" in text and "ok" not in text.split("cluster_state", 1)[1][:8]:
        msg = "CLUSTERDOWN The cluster is down"
        raise ClusterDownError(msg)
