"""A destructive command needs a running operation, however it is spelled. Asserted on what the server got."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff

from safehold import Decision, Dependency, HealthState, OperationBlocked, Safehold
from safehold.callsites.redis import guard_client, guarding
from safehold.testing.servers import RedisServer

from .support import PATIENCE, TIMEOUT, Side, raises

Ask = Callable[[Any], Any]

FUTURE = 4_102_444_800  # 2100-01-01
GREETINGS = {"hello", "client|setinfo", "auth", "select"}
OURS = {"info", "config|resetstat", "flushall", "function|flush", "ping"}
SEED: tuple[tuple[Any, ...], ...] = (
    ("MSET", "text", "here", "other", "there", "session:1", "alive", "session:2", "alive"),
    ("RPUSH", "list", "a", "b", "c"),
    ("SADD", "set", "a", "b"),
    ("ZADD", "zset", 1, "a", 2, "b"),
    ("HSET", "hash", "f", "1"),
    ("XADD", "stream", "1-1", "a", "1"),
    ("GEOADD", "geo", 13.3, 38.1, "x"),
)


# --- the world ------------------------------------------------------------------------------------------


class Station:
    """A guarded client, its server, and what of the client's has reached it."""

    def __init__(self, side: Side, server: RedisServer, dependency: Dependency, health: Safehold) -> None:
        self.side = side
        self.server = server
        self.dependency = dependency
        self.health = health
        once = side.pick(redis.retry.Retry, redis.asyncio.retry.Retry)(NoBackoff(), 0)
        make = side.pick(redis.Redis, redis.asyncio.Redis)
        self.client: Any = make(unix_socket_path=server.path, retry=once, socket_timeout=TIMEOUT)
        self.decisions: list[Decision] = []
        health.subscribe(self._take)
        self.begin_anew()

    def begin_anew(self) -> None:
        self.server.command("FLUSHALL")
        for words in SEED:
            self.server.command(*words)
        self.server.command("CONFIG", "RESETSTAT")

    def _take(self, event: Any) -> None:
        if isinstance(event, Decision):
            self.decisions.append(event)

    def guard(self, **settings: Any) -> Any:
        return guard_client(self.client, self.dependency, **settings)

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        return self.side.do(function, *args)

    def ask(self, ask: Ask) -> Any:
        return self.side.do(ask, self.client)

    def blocked(self, ask: Ask) -> OperationBlocked:
        error = raises(OperationBlocked, lambda: self.ask(ask))
        assert isinstance(error, OperationBlocked)
        return error

    def got(self) -> set[str]:
        """The commands that have come from the client."""
        stats = str(self.server.command("INFO", "commandstats"))
        names = {line[len("cmdstat_") :].split(":")[0] for line in stats.splitlines() if "cmdstat_" in line}
        return names - GREETINGS - OURS

    def calls(self) -> int:
        """How many commands have come since, without the greetings; the ones that ask are not counted."""
        stats = str(self.server.command("INFO", "commandstats")).splitlines()
        parts = (line[len("cmdstat_") :].split(":calls=") for line in stats if "cmdstat_" in line)
        asked = {"info", "config|resetstat"}
        return sum(int(rest.split(",")[0]) for name, rest in parts if name not in GREETINGS | asked)

    def forget(self) -> None:
        self.server.command("CONFIG", "RESETSTAT")

    def close(self) -> None:
        self.side.do(self.client.aclose if self.side.is_async else self.client.close)
        self.side.do(self.client.connection_pool.disconnect)


@pytest.fixture
def station(
    side: Side, redis_servers: dict[str, RedisServer], dependency: Dependency, health: Safehold
) -> Iterator[Station]:
    station = Station(side, redis_servers["unix"], dependency, health)
    yield station
    station.close()


@pytest.fixture
def strict(station: Station) -> Station:
    station.guard(destructive="ticket")
    return station


def command(*words: Any) -> Ask:
    return lambda client: client.execute_command(*words)


# --- in every spelling ----------------------------------------------------------------------------------

SPELLINGS: dict[str, Ask] = {
    "delete": lambda c: c.delete("text"),
    "unlink": lambda c: c.unlink("text"),
    "DEL": command("DEL", "text"),
    "del": command("del", "text"),
    "bytes": command(b"DEL", "text"),
    "lower bytes": command(b"del", b"text"),
    "mixed case": command("dEl", "text"),
    "memoryview": command(memoryview(b"DEL"), "text"),
    "one string": command("DEL text"),
    "flushall": lambda c: c.flushall(),
    "flushall asynchronous": lambda c: c.flushall(asynchronous=True),
    "FLUSHALL ASYNC": command("FLUSHALL ASYNC"),
    "flushall async": command("flushall async"),
    "flushdb": lambda c: c.flushdb(),
    "FLUSHDB, SYNC": command("FLUSHDB", "SYNC"),
    "script_flush": lambda c: c.script_flush(),
    "SCRIPT FLUSH": command("SCRIPT FLUSH"),
    "SCRIPT, FLUSH": command("SCRIPT", "FLUSH"),
    "script, flush": command("script", "flush"),
    "script flush, bytes": command(b"script flush"),
    "SCRIPT FLUSH SYNC": command("SCRIPT FLUSH SYNC"),
    "script, bytes, flush": command("SCRIPT", b"flush"),
    "function_flush": lambda c: c.function_flush(),
    "config_set": lambda c: c.config_set("maxmemory", 0),
    "CONFIG SET": command("CONFIG SET", "maxmemory", "0"),
    "expire": lambda c: c.expire("text", 100),
    "pexpire": lambda c: c.pexpire("text", 100_000),
    "expireat": lambda c: c.expireat("text", FUTURE),
    "hexpire": command("HEXPIRE", "hash", 100, "FIELDS", 1, "f"),
    "rename": lambda c: c.rename("text", "new"),
    "renamenx": lambda c: c.renamenx("text", "new"),
    "getdel": lambda c: c.getdel("text"),
    "getex": lambda c: c.getex("text", ex=100),
    "ltrim": lambda c: c.ltrim("list", 1, 0),
    "lpop": lambda c: c.lpop("list"),
    "rpop": lambda c: c.rpop("list", 2),
    "lrem": lambda c: c.lrem("list", 0, "a"),
    "lmpop": lambda c: c.lmpop(1, "list", direction="LEFT"),
    "blpop": lambda c: c.blpop("list", 0.1),
    "lmove": lambda c: c.lmove("list", "list2"),
    "rpoplpush": lambda c: c.rpoplpush("list", "list2"),
    "spop": lambda c: c.spop("set"),
    "srem": lambda c: c.srem("set", "a"),
    "smove": lambda c: c.smove("set", "set2", "a"),
    "sdiffstore": lambda c: c.sdiffstore("set2", "set", "nothing"),
    "sinterstore": lambda c: c.sinterstore("set2", "set"),
    "sunionstore": lambda c: c.sunionstore("set2", "set"),
    "zrem": lambda c: c.zrem("zset", "a"),
    "zpopmin": lambda c: c.zpopmin("zset"),
    "zremrangebyscore": lambda c: c.zremrangebyscore("zset", "-inf", "+inf"),
    "zrangestore": lambda c: c.zrangestore("zset2", "zset", 0, -1),
    "zunionstore": lambda c: c.zunionstore("zset2", ["zset"]),
    "zinterstore": lambda c: c.zinterstore("zset2", ["zset"]),
    "zdiffstore": lambda c: c.zdiffstore("zset2", ["zset"]),
    "hdel": lambda c: c.hdel("hash", "f"),
    "xtrim": lambda c: c.xtrim("stream", maxlen=0),
    "xdel": lambda c: c.xdel("stream", "1-1"),
    "xadd maxlen 0": lambda c: c.xadd("stream", {"a": 1}, maxlen=0, approximate=False),
    "sort store": lambda c: c.sort("list", alpha=True, store="list2"),
    "SORT ... store": command("SORT", "list", "ALPHA", "store", "list2"),
    "georadius store": lambda c: c.georadius("geo", 13, 38, 200, unit="km", store="geo2"),
    "GEORADIUS storedist": command("GEORADIUS", "geo", 13, 38, 200, "km", "storedist", "geo2"),
    "geosearchstore": lambda c: c.geosearchstore("geo2", "geo", member="x", radius=1),
    "copy replace": lambda c: c.copy("text", "other", replace=True),
    "COPY ... replace": command("COPY", "text", "other", "replace"),
    "COPY DB ... replace": command("COPY", "text", "other", "DB", 0, "replace"),
    "SORT by, get, store": command("SORT", "list", "BY", "store", "GET", "#", "STORE", "list2"),
    "XADD = MAXLEN 0": command("XADD", "stream", "NOMKSTREAM", "MAXLEN", "=", "0", "*", "a", "1"),
    "XADD ~ MAXLEN 00": command("XADD", "stream", "MAXLEN", "~", "00", "LIMIT", "5", "*", "a", "1"),
    "XADD, an option of a newer server": command("XADD", "stream", "NEW", "5", "MAXLEN", "0", "*", "a", "1"),
    "FUNCTION LOAD replace": command("FUNCTION", "LOAD", "replace", "#!lua name=x\n"),
    "FUNCTION RESTORE flush": command("FUNCTION", "RESTORE", b"", "flush"),
    "GEORADIUSBYMEMBER store": command("GEORADIUSBYMEMBER", "geo", "x", 1, "km", "STORE", "geo2"),
    "SET IFEQ NX EXAT past": command("SET", "text", "x", "IFEQ", "NX", "EXAT", "1"),
    "HGETEX FIELDS first": command("HGETEX", "hash", "FIELDS", 1, "f", "EX", 5),
    "MSETEX past": command("MSETEX", 1, "text", "x", "PXAT", 1),
    "bitop": lambda c: c.bitop("AND", "other", "text"),
    "set exat past": lambda c: c.set("text", "x", exat=1),
    "set pxat past": lambda c: c.set("text", "x", pxat=1000),
    "SET ... exat": command("set", "text", "x", "exat", b"1"),
    "move": lambda c: c.move("text", 1),
    "swapdb": lambda c: c.swapdb(0, 1),
    "restore replace": lambda c: c.restore("text", 0, b"\x00", replace=True),
    "json().delete": lambda c: c.json().delete("text"),
    "shutdown": lambda c: c.shutdown(),
    "bgsave": lambda c: c.bgsave(),
    "replicaof": lambda c: c.replicaof("127.0.0.1", 1),
    "client_kill": lambda c: c.client_kill_filter(_type="normal"),
    "acl_deluser": lambda c: c.acl_deluser("nobody"),
    "debug": command("DEBUG", "SLEEP", "0"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_destructive_command_is_blocked_outside_of_an_operation(strict: Station, name: str) -> None:
    """Whichever way it is written, nothing of it reaches the server, and no connection is made for it."""
    before = strict.server.command("DBSIZE")
    error = strict.blocked(SPELLINGS[name])
    assert strict.got() <= {"dbsize"}
    assert strict.server.command("DBSIZE") == before
    assert error.reasons[0].code == "no_ticket"
    assert len(guarding(strict.client).unregistered) == 1
    assert not strict.client.connection_pool._in_use_connections


HARMLESS: dict[str, Ask] = {
    "get": lambda c: c.get("text"),
    "set": lambda c: c.set("text", "x"),
    "set ex": lambda c: c.set("text", "x", ex=100),
    "set exat future": lambda c: c.set("text", "x", exat=FUTURE),
    "set nx": lambda c: c.set("text", "x", nx=True),
    "set to the word exat": lambda c: c.set("text", "EXAT"),
    "getex": lambda c: c.getex("text"),
    "getex persist": lambda c: c.getex("text", persist=True),
    "incr": lambda c: c.incr("n"),
    "mset": lambda c: c.mset({"text": "1", "b": "2"}),
    "hset": lambda c: c.hset("hash", "f", "2"),
    "rpush": lambda c: c.rpush("list", "x"),
    "sadd": lambda c: c.sadd("set", "x"),
    "copy": lambda c: c.copy("text", "new"),
    "copy to a key called replace": command("COPY", "text", "replace"),
    "copy from a key called replace": command("COPY", "replace", "new"),
    "sort": lambda c: c.sort("list", alpha=True),
    "sort of a key called store": command("SORT", "store"),
    "sort by a key called store": command("SORT", "list", "ALPHA", "BY", "store", "GET", "storedist"),
    "georadius of a key called store": command("GEORADIUS", "store", 13, 38, 200, "km"),
    "georadius of a member called store": command("GEORADIUSBYMEMBER", "nogeo", "STORE", 200, "km"),
    "xadd with a field called maxlen": command("XADD", "stream", "*", "MAXLEN", "0"),
    "xadd with a maxlen, and a value of 0": command("XADD", "stream", "MAXLEN", "~", "9", "2-*", "a", "0"),
    "xadd with an end, and a field called maxlen": command(
        "XADD", "stream", "MINID", "=", "0-1", "*", "MAXLEN", "0"
    ),
    "set to the word nx": lambda c: c.set("text", "NX"),
    "getex of a key called ex": lambda c: c.getex("EX"),
    "xadd maxlen": lambda c: c.xadd("stream", {"a": 1}, maxlen=1000),
    "persist": lambda c: c.persist("text"),
    "publish": lambda c: c.publish("news", "DEL"),
    "config_get": lambda c: c.config_get("maxmemory"),
    "script_load": lambda c: c.script_load("return 1"),
    "script exists": lambda c: c.script_exists("0" * 40),
    "ECHO of a bad word": command("ECHO", "FLUSHALL"),
    "a key called DEL": lambda c: c.get("DEL"),
    "a script, into which nobody can see": lambda c: c.eval("return redis.call('DEL', KEYS[1])", 1, "text"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_other_commands_go_on(strict: Station, name: str) -> None:
    """Everyday writes and reads need no operation."""
    strict.ask(HARMLESS[name])
    assert strict.got()
    assert guarding(strict.client).unregistered == set()
    assert strict.decisions == []


# --- pipelines and watches ------------------------------------------------------------------------------


@pytest.mark.parametrize("transaction", [True, False], ids=["transaction", "pipeline"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_pipeline_is_blocked_as_a_whole(strict: Station, transaction: bool, place: int) -> None:
    """One destructive command in it, and none of its commands is sent. It can be used again."""
    pipeline = strict.client.pipeline(transaction=transaction)
    for index in range(3):
        pipeline.execute_command(b"unlink", "text") if index == place else pipeline.incr("n")
    raises(OperationBlocked, lambda: strict.do(pipeline.execute))
    assert strict.got() == set()
    strict.do(pipeline.reset)
    pipeline.incr("n")
    assert strict.do(pipeline.execute) == [1]


def test_watched_pipeline_is_blocked_at_once(strict: Station) -> None:
    """After WATCH a command is sent as it is called; the watch is taken back and its connection given back."""

    def sync_body() -> None:
        with strict.client.pipeline() as pipeline:
            pipeline.watch("text")
            pipeline.delete("text")

    async def async_body() -> None:
        async with strict.client.pipeline() as pipeline:
            await pipeline.watch("text")
            await pipeline.delete("text")

    raises(OperationBlocked, lambda: strict.do(strict.side.pick(sync_body, async_body)))
    assert strict.got() <= {"watch", "unwatch"}
    assert strict.ask(lambda c: c.get("text")) == b"here"
    assert not strict.client.connection_pool._in_use_connections


def test_transaction_of_a_watched_pipeline_is_blocked(strict: Station) -> None:
    """What is queued behind MULTI is looked at when it is executed."""

    def sync_body() -> None:
        with strict.client.pipeline() as pipeline:
            pipeline.watch("text")
            pipeline.multi()
            pipeline.set("text", "x")
            pipeline.expire("text", 1)
            pipeline.execute()

    async def async_body() -> None:
        async with strict.client.pipeline() as pipeline:
            await pipeline.watch("text")
            pipeline.multi()
            pipeline.set("text", "x")
            pipeline.expire("text", 1)
            await pipeline.execute()

    raises(OperationBlocked, lambda: strict.do(strict.side.pick(sync_body, async_body)))
    assert strict.got() <= {"watch", "unwatch"}
    assert strict.ask(lambda c: c.get("text")) == b"here"


def test_born_clients_are_as_strict(strict: Station) -> None:
    """A client of one connection, and the pipelines of both."""
    born = strict.do(strict.client.client)
    raises(OperationBlocked, lambda: strict.do(born.delete, "text"))
    pipeline = born.pipeline()
    pipeline.delete("text")
    raises(OperationBlocked, lambda: strict.do(pipeline.execute))
    assert "del" not in strict.got()
    strict.do(born.aclose if strict.side.is_async else born.close)


# --- inside an operation --------------------------------------------------------------------------------


@pytest.fixture
def working(strict: Station) -> Station:
    """A healthy dependency, so that operations may run."""
    strict.ask(lambda c: c.get("text"))
    strict.forget()
    return strict


SAMPLE = ("delete", "one string", "FLUSHALL ASYNC", "script flush, bytes", "set exat past", "expire", "spop")


@pytest.mark.parametrize("name", SAMPLE)
def test_operation_may_do_it(working: Station, name: str) -> None:
    """In a registered operation that the gate has let through, a destructive command is sent."""

    async def work() -> None:
        await SPELLINGS[name](working.client)

    operation = working.health.destructive("sweep")(
        work if working.side.is_async else lambda: SPELLINGS[name](working.client)
    )
    working.do(operation)
    assert working.calls() > 0
    assert guarding(working.client).unregistered == set()
    assert working.decisions == []


def test_plain_function_that_returns_an_awaitable_is_an_operation_too(working: Station) -> None:
    """The methods of asyncio's client are such functions: the operation ends when its awaitable does."""
    delete = working.health.destructive("session.delete")(working.client.delete)
    assert working.do(delete, "text") == 1
    assert working.got() == {"del"}
    working.blocked(SPELLINGS["delete"])


async def _deletes(client: Any, key: str = "text") -> Any:
    answer = client.delete(key)
    return await answer if hasattr(answer, "__await__") else answer


def test_plain_function_as_an_operation(working: Station) -> None:
    """Sync code: the whole of the call is inside, whatever it calls."""
    if working.side.is_async:
        pytest.skip("its twin is the coroutine function")

    @working.health.destructive("sweep")
    def sweep() -> Any:
        return _helper(working.client)

    assert sweep() == 1
    assert working.got() == {"del"}
    working.blocked(SPELLINGS["delete"])


def _helper(client: Any) -> Any:
    return client.delete("text")


def test_coroutine_function_as_an_operation(working: Station) -> None:
    """It is inside from its first step to its last, also after it has waited."""

    @working.health.destructive("sweep")
    async def sweep() -> Any:
        first = await _deletes(working.client)
        await asyncio.sleep(0)
        return first, await _deletes(working.client, "other")

    assert asyncio_do(working, sweep) == (1, 1)
    assert working.got() == {"del"}
    working.blocked(SPELLINGS["delete"])


def asyncio_do(station: Station, function: Callable[..., Any]) -> Any:
    """Await it, in the loop of the client where that has one."""
    return station.do(function) if station.side.is_async else asyncio.run(function())


def test_generator_is_inside_while_it_runs_and_its_reader_is_not(working: Station) -> None:
    """Between two steps somebody else's code runs, which is no part of the operation."""
    if working.side.is_async:

        @working.health.destructive("sweep")
        async def asweep() -> Any:
            yield await _deletes(working.client)
            yield await _deletes(working.client, "other")

        async def read() -> list[Any]:
            seen = []
            async for deleted in asweep():
                seen.append(deleted)
                with pytest.raises(OperationBlocked):
                    await working.client.delete("session:1")
            return seen

        assert working.do(read) == [1, 1]
    else:

        @working.health.destructive("sweep")
        def sweep() -> Any:
            yield working.client.delete("text")
            yield working.client.delete("other")

        seen = []
        for deleted in sweep():
            seen.append(deleted)
            working.blocked(lambda c: c.delete("session:1"))
        assert seen == [1, 1]
    assert working.server.command("EXISTS", "session:1") == 1


def test_worker_threads_and_child_tasks_of_an_operation_are_inside(working: Station) -> None:
    """The ticket travels as every context does: `to_thread`, `create_task`, task groups."""

    @working.health.destructive("sweep")
    async def sweep() -> list[Any]:
        if not working.side.is_async:
            return [await asyncio.to_thread(working.client.delete, key) for key in ("text", "other")]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_deletes(working.client, key)) for key in ("text", "other")]
        return [task.result() for task in tasks]

    assert asyncio_do(working, sweep) == [1, 1]
    assert working.got() == {"del"}


def test_task_that_outlives_its_operation_is_outside(working: Station) -> None:
    """The ticket is worth nothing once the operation has ended."""
    late: list[asyncio.Task[Any]] = []

    async def body() -> BaseException | None:
        ended = asyncio.Event()

        async def straggler() -> Any:
            await ended.wait()
            return await _deletes(working.client)

        @working.health.destructive("sweep")
        async def sweep() -> None:
            late.append(asyncio.create_task(straggler()))
            await asyncio.sleep(0)

        await sweep()
        ended.set()
        await asyncio.wait(late)
        return late[0].exception()

    assert isinstance(asyncio_do(working, body), OperationBlocked)
    assert working.got() == set()


def test_thread_that_outlives_its_operation_or_has_no_context_is_outside(working: Station) -> None:
    """A bare thread knows of no operation; a copied context knows that it has ended."""
    if working.side.is_async:
        pytest.skip("threads call the sync client")
    caught: list[BaseException] = []
    ended = threading.Event()

    def delete(wait: bool) -> None:
        if wait:
            ended.wait(PATIENCE)
        try:
            working.client.delete("text")
        except OperationBlocked as error:
            caught.append(error)

    @working.health.destructive("sweep")
    def sweep() -> list[threading.Thread]:
        threads = [
            threading.Thread(target=delete, args=(False,)),
            threading.Thread(target=copy_context().run, args=(delete, True)),
        ]
        for thread in threads:
            thread.start()
        return threads

    threads = sweep()
    ended.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(caught) == 2
    assert working.got() == set()


def test_operation_that_failed_has_ended(working: Station) -> None:
    """The ticket does not survive the exception that ends the operation."""

    @working.health.destructive("sweep")
    def sweep() -> None:
        raise KeyError

    raises(KeyError, sweep)
    working.blocked(SPELLINGS["delete"])


def test_operation_that_the_gate_blocks_sends_nothing(strict: Station) -> None:
    """A ticket is given by the gate, not by the decorator."""
    strict.dependency.trip()
    sweep = strict.health.destructive("sweep")(lambda: strict.ask(SPELLINGS["delete"]))
    error: Any = raises(OperationBlocked, sweep)
    assert error.operation == "sweep"
    assert strict.got() == set()


def test_inner_operation_gives_its_ticket_back_to_the_outer_one(working: Station) -> None:
    """The end of an operation inside another one ends the inner one only."""
    inner = working.health.destructive("inner")(lambda: working.ask(SPELLINGS["lpop"]))

    @working.health.destructive("outer")
    def outer() -> None:
        inner()
        working.ask(SPELLINGS["spop"])

    outer()
    assert working.got() == {"lpop", "spop"}
    working.blocked(SPELLINGS["delete"])


# --- keys -----------------------------------------------------------------------------------------------

PATTERNS = ("session:*", "lock:?")
MATTERS: dict[str, Ask] = {
    "delete": lambda c: c.delete("session:1"),
    "delete, bytes": lambda c: c.delete(b"session:1"),
    "delete, second": lambda c: c.delete("text", "session:1"),
    "unlink, last": lambda c: c.unlink("text", "other", "session:1"),
    "second pattern": lambda c: c.delete("lock:1"),
    "expire": lambda c: c.expire("session:1", 1),
    "rename away": lambda c: c.rename("session:1", "text"),
    "rename over": lambda c: c.rename("text", "session:1"),
    "set": lambda c: c.set("session:1", "x"),
    "set xx": lambda c: c.set("session:1", "x", xx=True),
    "setex": command("SETEX", "session:1", 10, "x"),
    "mset": lambda c: c.mset({"text": "1", "session:1": "x"}),
    "getset": command("GETSET", "session:1", "x"),
    "copy over": lambda c: c.copy("text", "session:1", replace=True),
    "smove away": lambda c: c.smove("session:s", "set", "a"),
    "smove into": lambda c: c.smove("set", "session:s", "a"),
    "sunionstore": lambda c: c.sunionstore("session:s", "set"),
    "zunionstore": lambda c: c.zunionstore("session:z", ["zset"]),
    "bitop": lambda c: c.bitop("AND", "session:1", "text"),
    "sort store": lambda c: c.sort("list", alpha=True, store="session:l"),
    "georadius store": lambda c: c.georadius("geo", 13, 38, 200, unit="km", store="session:g"),
    "lmpop, second": lambda c: c.lmpop(2, "list", "session:l", direction="LEFT"),
    "blpop, second": lambda c: c.blpop(["list", "session:l"], 0.1),
    "lower case": command(b"getdel", b"session:1"),
    "flushall": lambda c: c.flushall(),
    "config_set": lambda c: c.config_set("maxmemory", 0),
    "SCRIPT FLUSH": command("SCRIPT FLUSH"),
    "xtrim": lambda c: c.xtrim("session:x", maxlen=5),
}
MATTERS_NOT: dict[str, Ask] = {
    "delete": lambda c: c.delete("text", "session"),
    "case counts": lambda c: c.delete("SESSION:1"),
    "longer": lambda c: c.delete("lock:12"),
    "rename": lambda c: c.rename("text", "other"),
    "set": lambda c: c.set("text", "x"),
    "set nx": lambda c: c.set("session:9", "x", nx=True),
    "get": lambda c: c.get("session:1"),
    "mset": lambda c: c.mset({"text": "1"}),
    "value only": lambda c: c.set("text", "session:1"),
    "sunionstore from": lambda c: c.sunionstore("set2", "session:s"),
    "sort from": lambda c: c.sort("list", by="session:*", alpha=True, store="list2"),
    "expire": lambda c: c.expire("text", 100),
    "hset": lambda c: c.hset("session:h", "f", "1"),
    "append": lambda c: c.append("session:1", "!"),
    "lpop": lambda c: c.lpop("list"),
    "copy": lambda c: c.copy("session:1", "new"),
}
KEYS: dict[str, Any] = {
    "patterns": PATTERNS,
    "list": list(PATTERNS),
    "callable": lambda key: key.startswith("session:") or (key.startswith("lock:") and len(key) == 6),
}


def is_blocked(station: Station, ask: Ask) -> bool:
    """Ask, of a server that is as new; whether the server has got it, must agree with whether it was blocked."""
    station.begin_anew()
    try:
        station.ask(ask)
    except OperationBlocked:
        assert station.got() == set()
        return True
    assert station.got()
    return False


@pytest.mark.parametrize("keys", KEYS)
def test_keys_that_matter(station: Station, keys: str) -> None:
    """On named keys overwriting is destruction, too; whatever names no key concerns all of them."""
    station.guard(destructive="ticket", keys=KEYS[keys])
    assert [name for name, ask in MATTERS.items() if not is_blocked(station, ask)] == []
    assert station.got() == set()
    assert station.server.command("GET", "session:1") == "alive"


@pytest.mark.parametrize("keys", KEYS)
def test_keys_that_do_not_matter(station: Station, keys: str) -> None:
    """All other keys are the application's to do with as it likes."""
    station.guard(destructive="ticket", keys=KEYS[keys])
    assert [name for name, ask in MATTERS_NOT.items() if is_blocked(station, ask)] == []
    assert guarding(station.client).unregistered == set()


def test_keys_in_a_pipeline(station: Station) -> None:
    """Each command of it is looked at by its own keys."""
    station.guard(destructive="ticket", keys=PATTERNS)
    pipeline = station.client.pipeline()
    pipeline.delete("text")
    pipeline.set("other", "x")
    station.do(pipeline.execute)
    assert {"del", "set"} <= station.got()
    station.forget()
    pipeline.delete("other")
    pipeline.set("session:1", "x")
    raises(OperationBlocked, lambda: station.do(pipeline.execute))
    assert station.got() == set()


def test_operation_may_touch_keys_that_matter(station: Station) -> None:
    """The ticket opens them all."""
    station.guard(destructive="ticket", keys=PATTERNS)
    station.ask(lambda c: c.get("text"))
    station.health.destructive("sweep")(lambda: station.ask(MATTERS["delete, second"]))()
    assert station.server.command("EXISTS", "session:1", "text") == 0


def test_names_of_commands_are_learnt_per_client_settings(station: Station) -> None:
    """What was harmless under one set of keys is looked at again under another one."""
    station.guard(destructive="ticket", keys=["nothing:*"])
    station.ask(lambda c: c.set("session:1", "x"))
    station.guard(destructive="ticket", keys=PATTERNS)
    station.blocked(lambda c: c.set("session:1", "y"))
    station.guard()
    station.ask(lambda c: c.delete("session:1"))


# --- what is told ---------------------------------------------------------------------------------------


def test_blocked_command_is_no_error_of_redis_and_says_nothing_of_its_health(strict: Station) -> None:
    """No `except redis.RedisError` takes it for an outage; neither breaker nor scope hears of it."""
    strict.ask(lambda c: c.get("text"))
    with strict.health.scope("work") as scope:
        error = strict.blocked(lambda c: c.delete("session:1", "session:2"))
        assert not scope.tainted
    assert not isinstance(error, redis.RedisError | OSError | TimeoutError)
    assert (error.operation, error.subject) == ("redis DEL", "session:1, session:2")
    assert (error.outcome, error.retry_after) == ("not_executed", None)
    assert [reason.code for reason in error.reasons] == ["no_ticket"]
    assert "DEL" in str(error)
    assert "destructive(" in str(error)
    status = strict.dependency.status()
    assert (status.state, status.successes, status.failures, status.refusals) == (
        HealthState.HEALTHY,
        1,
        0,
        0,
    )
    assert not status.unresolved_miss


def test_values_are_not_told(strict: Station) -> None:
    """A reason names the command and its keys, never what was to be written."""
    error = strict.blocked(lambda c: c.set("text", "s3cret", exat=1))
    assert "s3cret" not in f"{error} {error.reasons} {error.subject}"


@pytest.mark.parametrize(
    ("mode", "told", "sent"), [("ticket", True, False), ("observe", True, True), ("allow", False, True)]
)
def test_modes(station: Station, mode: Any, told: bool, sent: bool) -> None:
    """Ticket blocks and tells, observe lets through and tells, allow lets through and notes."""
    station.guard(destructive=mode)
    for ask in (SPELLINGS["delete"], SPELLINGS["SCRIPT FLUSH"], SPELLINGS["expire"]):
        if sent:
            station.ask(ask)
        else:
            station.blocked(ask)
    seen = station.got() - {"config|get"}  # asked by Valkey itself when it makes its Lua anew
    assert seen == ({"del", "script|flush", "expire"} if sent else set())
    assert guarding(station.client).unregistered == {"DEL", "SCRIPT FLUSH", "EXPIRE"}
    if told:
        assert [decision.verdict.operation for decision in station.decisions] == [
            "redis DEL",
            "redis SCRIPT FLUSH",
            "redis EXPIRE",
        ]
        assert {decision.enforced for decision in station.decisions} == {not sent}
        assert station.decisions[0].verdict.subject == "text"
        assert station.decisions[1].verdict.subject is None
        assert not station.decisions[0].verdict.allowed
    else:
        assert station.decisions == []


@pytest.mark.parametrize("mode", ["observe", "allow"])
def test_pipeline_that_is_let_through_is_noted(station: Station, mode: Any) -> None:
    """An inventory that was left incomplete can be completed."""
    station.guard(destructive=mode)
    pipeline = station.client.pipeline()
    pipeline.delete("text")
    pipeline.incr("n")
    pipeline.hdel("hash", "f")
    assert station.do(pipeline.execute) == [1, 1, 1]
    assert guarding(station.client).unregistered == {"DEL", "HDEL"}
    assert len(station.decisions) == (2 if mode == "observe" else 0)


def test_what_runs_inside_an_operation_is_not_noted(station: Station) -> None:
    """`unregistered` holds what no operation stands for."""
    station.guard(destructive="observe")
    station.ask(lambda c: c.get("text"))
    station.health.destructive("sweep")(lambda: station.ask(SPELLINGS["delete"]))()
    assert guarding(station.client).unregistered == set()
    assert station.decisions == []


def test_unguarded_twin_is_not_held_back(station: Station) -> None:
    """The look is at the client that was guarded, not at the pool or the class."""
    make = station.side.pick(redis.Redis, redis.asyncio.Redis)
    other = make(connection_pool=station.client.connection_pool)
    station.guard(destructive="ticket")
    assert station.do(other.delete, "text") == 1


def test_end_in_the_past_is_judged_when_it_is_sent(strict: Station) -> None:
    """`EXAT` of this moment deletes; one of later does not."""
    now = int(time.time())
    strict.blocked(lambda c: c.set("text", "x", exat=now))
    strict.ask(lambda c: c.set("text", "x", exat=now + 1000))
    strict.blocked(lambda c: c.set("text", "x", pxat=now * 1000 - 1))
