"""Whether a key is there: asked of a real primary, a replica, a paused server, a connection out of step."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import redis
import redis.asyncio

from safehold.callsites.redis import guard_client
from safehold.testing.servers import RedisServer
from safehold.witnesses import akey, key
from safehold.witnesses._redis import _answer

from .support import ABSENT, PRESENT, UNKNOWN, Service, unproven


class Side:
    """A client of one kind, and the witness that goes with it."""

    def __init__(self, kind: str) -> None:
        self.runner = asyncio.Runner() if kind == "asyncio" else None

    def do(self, answer: Any) -> Any:
        async def awaited() -> Any:
            return await answer

        if self.runner is None or not inspect.isawaitable(answer):
            return answer
        return self.runner.run(awaited())

    def client(self, server: RedisServer, **options: Any) -> Any:
        family = redis if self.runner is None else redis.asyncio
        retry = {"retry_on_timeout": False, "socket_timeout": 5.0}
        return family.Redis.from_url(server.url, **{**retry, **options})

    def ask(self, client: Any, name: str | bytes, **options: Any) -> Any:
        return self.do((key if self.runner is None else akey)(client, name, **options))

    def close(self, client: Any) -> None:
        self.do(client.close() if self.runner is None else client.aclose())


@pytest.fixture(params=["sync", "asyncio"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    side = Side(request.param)
    yield side
    if side.runner is not None:
        side.runner.close()


@pytest.fixture(scope="module")
def primary(redis_binary: str) -> Iterator[RedisServer]:
    with RedisServer(listen="tcp", binary=redis_binary) as server:
        yield server


@pytest.fixture
def server(primary: RedisServer) -> RedisServer:
    primary.command("FLUSHALL")
    primary.command("SET", "session:live", "1")
    return primary


@pytest.fixture
def connect(side: Side) -> Iterator[Callable[..., Any]]:
    clients: list[Any] = []

    def connect(server: RedisServer, **options: Any) -> Any:
        clients.append(side.client(server, **options))
        return clients[-1]

    yield connect
    for client in clients:
        side.close(client)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("guarded", [False, True])
def test_a_key_is_there_or_not(
    service: Service,
    server: RedisServer,
    side: Side,
    connect: Any,
    protocol: int,
    decode: bool,
    guarded: bool,
) -> None:
    """Positive twin: whatever the client, what is missing on the primary goes, and what is there stays."""
    client = connect(server, protocol=protocol, decode_responses=decode)
    if guarded:
        client = guard_client(client, service.source)
    look = lambda subject: side.ask(client, f"session:{subject}")  # noqa: E731
    assert service.sweep(look, "live", "gone") == {"live"}
    assert side.ask(client, b"session:live") is PRESENT
    assert side.ask(client, b"session:gone") is ABSENT


async def test_in_a_witness_that_is_awaited(service: Service, server: RedisServer) -> None:
    """As it is written in a service."""
    client = redis.asyncio.Redis.from_url(server.url)

    @service.health.witness("source")
    async def session_known(session_id: str) -> Any:
        return await akey(client, f"session:{session_id}")

    assert (await session_known("live")).presence is PRESENT
    assert (await session_known("gone")).presence is ABSENT
    await client.aclose()


def test_t19_a_replica_is_no_authority(
    service: Service, server: RedisServer, side: Side, connect: Any, redis_binary: str
) -> None:
    """One that lags, here for ever, and serves what it has: nothing. The primary knows better."""
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        args = ("--replicaof", f"127.0.0.1 {nobody.getsockname()[1]}", "--replica-serve-stale-data", "yes")
        with RedisServer(args=args, binary=redis_binary) as replica:
            stale = connect(replica)
            assert side.do(stale.exists("session:live")) == 0
            why = service.why(lambda subject: side.ask(stale, f"session:{subject}"), "live")
            assert why == "the answer came from a replica"
            assert side.ask(stale, "session:live", replica_ok=True) is ABSENT, (
                "asked for, and told in the docs"
            )
    good = connect(server)
    assert service.sweep(lambda subject: side.ask(good, f"session:{subject}"), "live", "gone") == {"live"}


def test_a_primary_that_has_become_a_replica(
    service: Service, server: RedisServer, side: Side, connect: Any, redis_binary: str
) -> None:
    """On the same connection: the role is asked with every question."""
    with RedisServer(listen="tcp", binary=redis_binary) as demoted:
        client = connect(demoted)
        assert side.ask(client, "session:live") is ABSENT
        demoted.command("REPLICAOF", "127.0.0.1", str(server.port))
        assert unproven(side.ask, client, "session:live") == "the answer came from a replica"
        demoted.command("REPLICAOF", "NO", "ONE")
        assert side.ask(client, "session:none") is ABSENT


def test_a_paused_server_is_unknown(service: Service, side: Side, connect: Any, redis_binary: str) -> None:
    """The client's time-out goes on as it is, and counts as what it is."""
    with RedisServer(binary=redis_binary) as server:
        client = connect(server, socket_timeout=0.2)
        look = lambda subject: side.ask(client, f"session:{subject}")  # noqa: E731
        assert side.ask(client, "session:gone") is ABSENT
        server.pause()
        with pytest.raises(redis.TimeoutError):
            look("gone")
        assert "timed out" in service.why(look, "gone")
        assert service.source.status().failures == 1
        server.resume()
        service.source.report("success")
        assert service.sweep(look, "gone") == set()


def test_a_server_that_is_gone_is_unknown(
    service: Service, side: Side, connect: Any, redis_binary: str
) -> None:
    """Refused is not absent."""
    with RedisServer(binary=redis_binary) as server:
        client = connect(server)
        server.kill()
        with pytest.raises(redis.ConnectionError):
            side.ask(client, "session:gone")


def test_an_answer_to_another_question(
    service: Service, server: RedisServer, side: Side, connect: Any
) -> None:
    """A connection that still owes an earlier answer of the very same shape gives that one: it is found out."""
    client = connect(server, single_connection_client=False, max_connections=1)
    earlier = [("MULTI",), ("ECHO", "earlier"), ("ROLE",), ("EXISTS", "session:gone"), ("EXEC",)]
    assert side.ask(client, "session:live") is PRESENT
    server.command("CLIENT", "PAUSE", "300", "ALL")
    pool = client.connection_pool

    async def aowe() -> None:
        connection = await pool.get_connection()
        await connection.send_packed_command(connection.pack_commands(earlier))
        await pool.release(connection)

    if side.runner is None:
        connection = pool.get_connection()
        connection.send_packed_command(connection.pack_commands(earlier))
        pool.release(connection)
    else:
        side.do(aowe())
    assert unproven(side.ask, client, "session:live") == "the answer belongs to another question"


def test_t19_another_question_is_a_miss(service: Service) -> None:
    """Nothing else that this connection says in the sweep is acted upon."""
    replies = [b"1", [b"master", 0, []], 0]
    why = service.why(lambda subject: _answer(replies, "2", replica_ok=False), "s1")
    assert why == "the answer belongs to another question"
    assert service.source.status().unresolved_miss
    service.source.report("success")
    assert service.sweep(lambda subject: _answer(replies, "1", replica_ok=False), "s1") == set()


def test_without_the_right_to_ask_for_the_role(
    service: Service, server: RedisServer, side: Side, connect: Any
) -> None:
    """Unknown, and the reason names what to allow."""
    rights = "+multi +exec +discard +echo +exists +hello +auth +client +ping +select".split()
    server.command("ACL", "SETUSER", "limited", "reset", "on", ">secret", "~*", *rights)
    client = connect(server, username="limited", password="secret")
    why = service.why(lambda subject: side.ask(client, f"session:{subject}"), "gone")
    assert "ROLE" in why
    assert "replica_ok=True" in why
    assert side.ask(client, "session:gone", replica_ok=True) is ABSENT
    server.command("ACL", "SETUSER", "limited", "+role")
    assert service.sweep(lambda subject: side.ask(client, f"session:{subject}"), "gone") == set()


def test_a_cluster_client_is_not_asked(side: Side) -> None:
    """It would ask many nodes; the reason says what to give instead."""
    kind: Any = redis.RedisCluster if side.runner is None else redis.asyncio.RedisCluster
    unconnected = type("Unconnected", (kind,), {"__init__": lambda self: None, "__del__": lambda self: None})
    assert "the node that holds the key" in unproven(side.ask, unconnected(), "session:live")


@pytest.mark.parametrize("found", [True, False, None, b"0", "0", 2, -1, [0]])
def test_what_is_no_answer(found: Any) -> None:
    """Nothing but the two numbers that `EXISTS` gives."""
    assert "EXISTS" in unproven(_answer, ["n", ["master"], found], "n", replica_ok=False)
    assert _answer(["n", ["master"], 0], "n", replica_ok=False) is ABSENT


def test_a_sentinel_is_no_primary() -> None:
    """Nor whatever else answers."""
    assert "sentinel" in unproven(_answer, [b"n", [b"sentinel"], 0], "n", replica_ok=False)


def test_unknown_is_what_evidence_says(service: Service, server: RedisServer) -> None:
    """An error of the server, here of a command that nobody knows, is unknown as well."""
    there = service.health.witness("source", name="there")(lambda subject: key(server, subject))  # type: ignore[arg-type]
    assert there("s1").presence is UNKNOWN
