"""A write is sent at most once: the server has executed it, and its reply is lost on the way back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import redis

from safehold import BreakerPolicy, DependencyUnhealthy, HealthState

from .impostors import greeted, impostor
from .sides import Side
from .world import FAILURES, POLICY, World, patient

UNLIMITED = BreakerPolicy(failures=None, failure_rate=None, cooldown=POLICY.cooldown)
LOST = (redis.ConnectionError, redis.TimeoutError)


class Write(NamedTuple):
    """What the client is asked, the command that the server counts, and what the note names."""

    ask: Callable[[Any], Any]
    counted: str
    named: str = ""


def _pipeline(*, transaction: bool) -> Callable[[Any], Any]:
    def ask(client: Any) -> Any:
        pipeline = client.pipeline(transaction=transaction)
        pipeline.get("text")
        pipeline.incr("n")
        return pipeline.execute()

    return ask


INCR = "return redis.call('INCR', KEYS[1])"
WRITES: dict[str, Write] = {
    "lpop": Write(lambda client: client.lpop("list"), "lpop", "LPOP"),
    "incr": Write(lambda client: client.incr("n"), "incrby", "INCRBY"),
    "delete": Write(lambda client: client.delete("text"), "del", "DEL"),
    "getdel": Write(lambda client: client.getdel("text"), "getdel", "GETDEL"),
    "xadd": Write(lambda client: client.xadd("stream", {"a": 1}), "xadd", "XADD"),
    "publish": Write(lambda client: client.publish("news", "a"), "publish", "PUBLISH"),
    "eval": Write(lambda client: client.eval(INCR, 1, "n"), "eval", "EVAL"),
    "config": Write(lambda client: client.config_set("maxmemory", 0), "config|set", "CONFIG SET"),
    "one string": Write(lambda client: client.execute_command("incr", "n"), "incr", "INCR"),
    "pipeline": Write(_pipeline(transaction=False), "incrby", "INCRBY"),
    "transaction": Write(_pipeline(transaction=True), "exec", "INCRBY"),
}


def lost(proxy: Any, how: str = "close") -> None:
    """Let the next reply be lost, and no other one."""
    proxy.drop_reply(count=1, how=how)


@pytest.fixture
def guarded(make_world: Callable[..., World], side: Side) -> World:
    """A client as `Redis()` makes it, guarded, that is connected; ten retries, and a breaker that never trips."""
    return prepared(make_world(listen="proxy", policy=UNLIMITED, **patient(side)))


def prepared(world: World) -> World:
    world.server.command("RPUSH", "list", "a", "b", "c")
    world.server.command("SET", "text", "here")
    assert world.do(world.client.get, "text") == b"here"
    world.server.command("CONFIG", "RESETSTAT")
    return world


def received(world: World, command: str) -> int:
    """How often the server has executed a command."""
    for line in str(world.server.command("INFO", "commandstats")).splitlines():
        if line.startswith(f"cmdstat_{command}:"):
            return int(line.split("calls=")[1].split(",")[0])
    return 0


def executed_once(world: World, write: Write) -> bool:
    """Whether the server has taken it once and for all: it could still be on its way."""
    world.proxy.disconnect()
    world.server.command("PING")
    return received(world, write.counted) == 1


# --- once -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITES)
def test_write_whose_reply_is_lost_is_sent_once_and_its_outcome_is_unknown(guarded: World, name: str) -> None:
    """Redis-py would send it again, up to ten times. The error says that it may have been executed."""
    write = WRITES[name]
    lost(guarded.proxy)
    error = guarded.fails(write.ask, guarded.client)
    assert isinstance(error, LOST)
    assert error.outcome == "unknown"
    notes = [note for note in error.__notes__ if note.startswith("safehold: outcome: unknown")]
    assert len(notes) == 1
    assert write.named in notes[0]
    assert guarded.status.failures == 1
    assert guarded.status.unresolved_miss
    assert executed_once(guarded, write)
    assert guarded.do(guarded.client.get, "after") is None
    assert guarded.status.state is HealthState.HEALTHY


SOME = ("lpop", "incr", "delete", "eval", "pipeline", "transaction")


@pytest.mark.parametrize("name", SOME)
def test_plain_client_sends_it_again(guarded: World, side: Side, name: str) -> None:
    """The positive twin: the same client without a guard, the same lost reply, and the server does it twice."""
    write = WRITES[name]
    client = guarded.plain(**patient(side))
    guarded.do(client.get, "text")
    guarded.server.command("CONFIG", "RESETSTAT")
    lost(guarded.proxy)
    guarded.do(write.ask, client)
    assert received(guarded, write.counted) == 2


@pytest.mark.parametrize("name", ["incr", "transaction", "eval"])
def test_write_whose_reply_does_not_come_in_time_is_sent_once(guarded: World, name: str) -> None:
    """The same where the line is silent instead of closed."""
    write = WRITES[name]
    lost(guarded.proxy, "hang")
    error = guarded.fails(write.ask, guarded.client)
    assert isinstance(error, redis.TimeoutError)
    assert error.outcome == "unknown"
    assert executed_once(guarded, write)


def test_server_that_dies_with_a_write_under_way(guarded: World) -> None:
    """It is not sent to the server that comes back."""
    waiting = guarded.side.begin(guarded.client.blpop, "queue", 0)
    guarded.until(lambda: "cmd=blpop" in str(guarded.server.command("CLIENT", "LIST")))
    guarded.server.restart()
    with pytest.raises(redis.ConnectionError) as caught:
        waiting.result()
    assert caught.value.outcome == "unknown"  # type: ignore[attr-defined]  # written on it
    assert received(guarded, "blpop") == 0
    assert "cmd=blpop" not in str(guarded.server.command("CLIENT", "LIST"))


def test_reply_that_is_cut_off_is_lost(guarded: World) -> None:
    """Half a reply says as little as none."""
    guarded.proxy.cut(after=2)
    error = guarded.fails(guarded.client.lpop, "list")
    assert error.outcome == "unknown"
    guarded.proxy.clear()
    assert guarded.do(guarded.client.lrange, "list", 0, -1) == [b"b", b"c"]


def test_command_that_was_being_watched_for(guarded: World) -> None:
    """After WATCH commands are sent at once: also these are sent once."""
    ask: Any = _watched_async if guarded.side.is_async else _watched_sync
    error = guarded.fails(ask, guarded)
    assert isinstance(error, redis.RedisError)
    assert received(guarded, "incrby") == 1


def _watched_sync(world: World) -> None:
    with world.client.pipeline() as pipeline:
        pipeline.watch("n")
        lost(world.proxy)
        pipeline.incr("n")


async def _watched_async(world: World) -> None:
    async with world.client.pipeline() as pipeline:
        await pipeline.watch("n")
        lost(world.proxy)
        await pipeline.incr("n")


# --- again ------------------------------------------------------------------------------------------------


def _reads(client: Any) -> Any:
    pipeline = client.pipeline(transaction=False)
    pipeline.get("text")
    pipeline.exists("text")
    return pipeline.execute()


READS: dict[str, tuple[Callable[[Any], Any], str, Any]] = {
    "get": (lambda client: client.get("text"), "get", b"here"),
    "exists": (lambda client: client.exists("text"), "exists", 1),
    "lower case": (lambda client: client.execute_command(b"get", "text"), "get", b"here"),
    "pipeline": (_reads, "exists", [b"here", 1]),
    "read-only script": (
        lambda client: client.eval_ro("return redis.call('GET', KEYS[1])", 1, "text"),
        "eval_ro",
        b"here",
    ),
}


@pytest.mark.parametrize("how", ["close", "hang"])
@pytest.mark.parametrize("name", READS)
def test_read_is_answered_at_the_second_attempt(guarded: World, name: str, how: str) -> None:
    """What changes nothing may be sent again; the attempt counts, and the call was answered."""
    ask, counted, answer = READS[name]
    lost(guarded.proxy, how)
    with guarded.health.scope("work") as scope:
        assert guarded.do(ask, guarded.client) == answer
        assert not scope.tainted
    assert received(guarded, counted) == 2
    status = guarded.status
    assert (status.failures, status.unresolved_miss, status.state) == (1, False, HealthState.HEALTHY)


@pytest.mark.parametrize("name", ["incr", "transaction"])
def test_writes_are_sent_again_by_whoever_wants_it(
    make_world: Callable[..., World], side: Side, name: str
) -> None:
    """`resend_writes=True` leaves redis-py to its own ways."""
    write = WRITES[name]
    world = prepared(make_world(listen="proxy", policy=UNLIMITED, resend_writes=True, **patient(side)))
    lost(world.proxy)
    world.do(write.ask, world.client)
    assert received(world, write.counted) == 2
    assert (world.status.failures, world.status.state) == (1, HealthState.HEALTHY)


FAILS_TO_CONNECT: dict[str, Callable[[Any], Any]] = {
    "refused": lambda proxy: proxy.refuse(),
    "reset": lambda proxy: proxy.reset(),
    "silent": lambda proxy: proxy.hang(),
    "closed": lambda proxy: proxy.cut(after=0),
}


@pytest.mark.skipif(redis.VERSION < (7,), reason="redis-py retries its connecting since 7")
@pytest.mark.parametrize("fault", FAILS_TO_CONNECT)
@pytest.mark.parametrize("name", ["incr", "transaction"])
def test_write_that_cannot_be_sent_is_tried_again(guarded: World, name: str, fault: str) -> None:
    """As long as no connection stands, nothing was sent: redis-py may go on trying."""
    write = WRITES[name]
    guarded.hang_up()
    FAILS_TO_CONNECT[fault](guarded.proxy)
    call = guarded.side.begin(write.ask, guarded.client)
    guarded.until(lambda: guarded.status.failures >= 1)
    guarded.proxy.clear()
    call.result()
    assert received(guarded, write.counted) == 1
    assert guarded.status.state is HealthState.HEALTHY


@pytest.mark.parametrize("fault", FAILS_TO_CONNECT)
@pytest.mark.parametrize("name", ["incr", "transaction"])
def test_write_that_was_never_sent_says_so(
    make_world: Callable[..., World], side: Side, name: str, fault: str
) -> None:
    """Where the attempts to connect end, the error says that nothing was executed; the breaker ends them."""
    write = WRITES[name]
    world = prepared(make_world(listen="proxy", **patient(side)))
    world.hang_up()
    FAILS_TO_CONNECT[fault](world.proxy)
    while world.status.failures < FAILURES:
        error = world.fails(write.ask, world.client, within=2.0)
        assert isinstance(error, LOST)
        assert error.outcome == "not_executed"
        assert not getattr(error, "__notes__", [])
    refused = world.refused(write.ask, world.client)
    assert refused.outcome == "not_executed"
    world.proxy.clear()
    assert received(world, write.counted) == 0


# --- a server that counts what it hears -------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME)
def test_server_that_takes_every_write_and_answers_none(
    make_world: Callable[..., World], side: Side, name: str
) -> None:
    """However often its answer is lost: one command, one error, one connection."""
    write = WRITES[name]
    world = make_world(policy=UNLIMITED, **patient(side))

    def answer(guest: Any, words: list[str]) -> bytes | None:
        return greeted(words)  # and nothing else

    with pretended(world, answer) as (client, heard):
        error = world.fails(write.ask, client)
        assert isinstance(error, LOST)
        assert error.outcome == "unknown"
        assert not isinstance(error, DependencyUnhealthy)
        first = [words[0].upper() for words in heard]
        assert len(first) == len(set(first)), first


def test_write_that_the_server_would_not_take_is_tried_again(
    make_world: Callable[..., World], side: Side
) -> None:
    """A reply that says "not now" is proof that nothing was executed: redis-py may wait the load out."""
    world = make_world(policy=UNLIMITED, **patient(side))
    replies = iter([LOADING, b":1\r\n"])
    with pretended(world, lambda _, words: greeted(words) or next(replies)) as (client, heard):
        assert world.do(client.incr, "n") == 1
        assert len(heard) == 2
    assert world.status.failures == 1


@pytest.mark.parametrize("reply", ["loading", "not let in"])
def test_write_that_the_server_would_not_take_says_so(make_world: Callable[..., World], reply: str) -> None:
    """Whoever handles a `redis.ConnectionError` may ask it for its outcome."""
    world = make_world(policy=UNLIMITED)
    answer = LOADING if reply == "loading" else b"-NOAUTH Authentication required.\r\n"
    with pretended(world, lambda _, words: greeted(words) or answer) as (client, _):
        error = world.fails(client.incr, "n")
    assert isinstance(error, redis.ConnectionError)
    assert error.outcome == "not_executed"


LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"


@contextlib.contextmanager
def pretended(world: World, answer: Any) -> Iterator[tuple[Any, list[list[str]]]]:
    """A guarded client of a server that gives these answers, and what the server hears."""
    path = world.link.with_name("pretended")
    with impostor(answer, str(path)) as server:
        client = world.connect(unix_socket_path=str(path), **world.settings)
        yield client, server.heard
