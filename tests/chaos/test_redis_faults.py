"""The fault matrix of a guarded redis-py client, against real servers: what breaks, what is said, what is left.

Every test ends with a look around (`nothing_left`): no descriptor, thread or task may stay behind, and once
the fault is over the server has no more connections than the client's pool.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis
import redis.asyncio
from redis import exceptions

from safehold import (
    BreakerState,
    DependencyUnhealthy,
    GatePolicy,
    HealthState,
    OperationBlocked,
    Safehold,
)
from safehold.callsites.redis import RedisUnhealthy, guard_client
from safehold.testing import ApiServer, RedisServer
from safehold.testing.servers import ErrorReply

from .impostors import bulk, drips, full_house, greeted, impostor, says
from .sides import PATIENCE, Side
from .world import FAILURES, POLICY, SETTLE, SLACK, TIMEOUT, World, patient

Strike = Callable[[World], contextlib.AbstractContextManager[None]]
LOST = (redis.ConnectionError, redis.TimeoutError)  # a silent handshake is told as either of them


class Fault(NamedTuple):
    """What is done to a world, the errors that its calls raise meanwhile, and what its health says of it."""

    strike: Strike
    errors: tuple[type[Exception], ...]
    cause: tuple[str, ...]
    listen: str = "unix"
    args: tuple[str, ...] = ()
    client: dict[str, Any] = {}


# --- strikes: servers that stop -------------------------------------------------------------------------


@contextlib.contextmanager
def frozen(world: World) -> Iterator[None]:
    world.server.pause()
    yield
    world.server.resume()


@contextlib.contextmanager
def killed(world: World) -> Iterator[None]:
    world.server.kill()
    yield
    world.server.start()


@contextlib.contextmanager
def terminated(world: World) -> Iterator[None]:
    process = world.server._process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)
    yield
    world.server.start()


@contextlib.contextmanager
def paused(world: World) -> Iterator[None]:
    world.server.command("CLIENT", "PAUSE", 1300, "ALL")
    yield


@contextlib.contextmanager
def asleep(world: World) -> Iterator[None]:
    with told(world.server, "DEBUG", "SLEEP", "1.3"):
        with contextlib.suppress(TimeoutError):
            while True:  # it has not heard it yet
                world.server.command("PING", timeout=0.02)
        yield


@contextlib.contextmanager
def told(server: RedisServer, *words: str) -> Iterator[None]:
    """Send a command without waiting for its reply."""
    address: Any = server.address
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as sock:
        sock.connect(address)
        sock.sendall(b"*%d\r\n" % len(words) + b"".join(map(bulk, words)))
        yield


@contextlib.contextmanager
def busy(world: World) -> Iterator[None]:
    world.server.command("CONFIG", "SET", "busy-reply-threshold", 20)
    with told(world.server, "EVAL", "while true do end", "0"):
        until_it_says(world.server, "BUSY")
        yield
        world.server.command("SCRIPT", "KILL")


@contextlib.contextmanager
def loading(world: World) -> Iterator[None]:
    command = world.server.command
    for setting in (("rdbcompression", "no"), ("loading-process-events-interval-bytes", 1024)):
        command("CONFIG", "SET", *setting)
    for number in range(200):
        command("SET", f"key:{number}", "x" * 1024)
    command("CONFIG", "SET", "key-load-delay", 20_000)
    with told(world.server, "DEBUG", "RELOAD"):
        until_it_says(world.server, "LOADING")
        yield
        command("CONFIG", "SET", "key-load-delay", 0)


@contextlib.contextmanager
def without_master(world: World) -> Iterator[None]:
    world.server.command("CONFIG", "SET", "replica-serve-stale-data", "no")
    world.server.command("REPLICAOF", "127.0.0.1", 1)
    yield
    world.server.command("REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def crowded(world: World) -> Iterator[None]:
    with redis.Redis(unix_socket_path=world.server.path, single_connection_client=True) as only:
        only.ping()
        world.hang_up()
        world.until(lambda: len(only.client_list()) == 1)
        only.config_set("maxclients", 1)
        yield
        only.config_set("maxclients", 1000)
        only.connection_pool.disconnect()


def until_it_says(server: RedisServer, code: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            server.command("GET", "a")
        except ErrorReply as error:
            if error.code == code:
                return
    raise AssertionError(f"it never said {code}")


# --- strikes: credentials -------------------------------------------------------------------------------


@contextlib.contextmanager
def password_set(world: World) -> Iterator[None]:
    """It is wanted from now on, also of those who are let in again."""
    world.server.command("CONFIG", "SET", "requirepass", "secret")
    world.hang_up()
    yield
    with redis.Redis(unix_socket_path=world.server.path, password="secret") as admin:
        admin.config_set("requirepass", "")


@contextlib.contextmanager
def password_changed(world: World) -> Iterator[None]:
    world.server.command("ACL", "SETUSER", "app", "resetpass", ">other")
    world.hang_up()
    yield
    world.server.command("ACL", "SETUSER", "app", "resetpass", ">secret")


@contextlib.contextmanager
def user_deleted(world: World) -> Iterator[None]:
    """The server hangs up on whoever is logged in."""
    world.server.command("ACL", "DELUSER", "app")
    yield
    world.server.command("ACL", "SETUSER", *APP)


APP = ("app", "on", ">secret", "~*", "+@all")
AS_APP: dict[str, Any] = {"username": "app", "password": "secret"}
WITH_APP = ("--user", *APP)


# --- strikes: the address -------------------------------------------------------------------------------


def leads_to(make: Callable[[World], contextlib.AbstractContextManager[Any]]) -> Strike:
    """Put something else at the end of the link, and end the connections that stand."""

    @contextlib.contextmanager
    def strike(world: World) -> Iterator[None]:
        world.link.unlink()
        with make(world):
            world.server.command("CLIENT", "KILL", "TYPE", "normal")
            yield
        if world.link.is_dir():
            world.link.rmdir()
        world.link.unlink(missing_ok=True)
        world.link.symlink_to(world.server.path)

    return strike


@contextlib.contextmanager
def nothing(world: World) -> Iterator[None]:
    yield


@contextlib.contextmanager
def stale_socket(world: World) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(world.link))
    yield


@contextlib.contextmanager
def a_directory(world: World) -> Iterator[None]:
    world.link.mkdir()
    yield


@contextlib.contextmanager
def a_file(world: World) -> Iterator[None]:
    world.link.write_text("redis")
    yield


@contextlib.contextmanager
def a_datagram_socket(world: World) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(world.link))
        yield


@contextlib.contextmanager
def a_web_server(world: World) -> Iterator[None]:
    with ApiServer(lambda _: (200, {})) as web:
        world.link.symlink_to(web.path)
        yield


def at_the_link(answer: Any) -> Callable[[World], contextlib.AbstractContextManager[Any]]:
    return lambda world: impostor(answer, str(world.link))


@contextlib.contextmanager
def forbidden(world: World) -> Iterator[None]:
    """Be somebody who may not look into the server's directory."""
    folder, root = Path(world.server.path).parent, os.geteuid() == 0
    world.hang_up()
    folder.chmod(0)
    if root:  # whom no permission stops
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)


NOBODY = 65534


@contextlib.contextmanager
def full_queue(world: World) -> Iterator[None]:
    """Somebody listens at the port who never takes anybody in."""
    world.server.kill()
    with full_house(("127.0.0.1", world.server.port)):
        yield
    world.server.start()


def by_proxy(fault: Callable[[Any], Any]) -> Strike:
    @contextlib.contextmanager
    def strike(world: World) -> Iterator[None]:
        with fault(world.proxy):
            yield

    return strike


BROKEN = ("broken answer",)
CLOSED = ("ConnectionError", "broken answer", "broken pipe", "connection reset by peer")
"""Whoever writes while the other side hangs up hears of it in one of these ways."""
WRAPPED = (redis.ConnectionError,)
"""Over a unix socket, asyncio's connection tells whatever goes wrong in the handshake as one of these."""

OUTAGES: dict[str, Fault] = {
    "frozen": Fault(frozen, LOST, ("timed out",)),
    "frozen, tcp": Fault(frozen, LOST, ("timed out",), "tcp"),
    "killed": Fault(killed, (redis.ConnectionError,), ("connection refused",)),
    "killed, tcp": Fault(killed, (redis.ConnectionError,), ("connection refused",), "tcp"),
    "terminated": Fault(
        terminated, (redis.ConnectionError,), ("no such file or directory", "connection refused")
    ),
    "paused": Fault(paused, LOST, ("timed out",)),
    "asleep": Fault(asleep, LOST, ("timed out",)),
    "busy": Fault(busy, (redis.ResponseError,), ("busy with a script",)),
    "loading": Fault(loading, (exceptions.BusyLoadingError,), ("loading its data",)),
    "masterdown": Fault(without_master, (redis.ResponseError,), ("its master is down",)),
    "max clients": Fault(crowded, (redis.ConnectionError,), ("takes no more clients", *CLOSED)),
    "no password": Fault(password_set, (exceptions.AuthenticationError, *WRAPPED), ("credentials refused",)),
    "wrong password": Fault(
        password_changed,
        (exceptions.AuthenticationError, *WRAPPED),
        ("credentials refused",),
        args=WITH_APP,
        client=AS_APP,
    ),
    "user deleted": Fault(
        user_deleted, (redis.ConnectionError,), ("credentials refused",), args=WITH_APP, client=AS_APP
    ),
    "socket removed": Fault(leads_to(nothing), (redis.ConnectionError,), ("no such file or directory",)),
    "socket stale": Fault(leads_to(stale_socket), (redis.ConnectionError,), ("connection refused",)),
    "a directory": Fault(leads_to(a_directory), (redis.ConnectionError,), ("connection refused",)),
    "a file": Fault(leads_to(a_file), (redis.ConnectionError,), ("connection refused",)),
    "a datagram socket": Fault(
        leads_to(a_datagram_socket), (redis.ConnectionError,), ("the socket cannot be opened",)
    ),
    "no permission": Fault(forbidden, (redis.ConnectionError,), ("the socket cannot be opened",)),
    "accept queue full": Fault(
        leads_to(lambda world: full_house(str(world.link))), LOST, ("its accept queue is full", *CLOSED)
    ),
    "accept queue full, tcp": Fault(full_queue, LOST, ("timed out",), "tcp"),
    "a web server": Fault(leads_to(a_web_server), (redis.RedisError, ValueError), (*BROKEN, *CLOSED)),
    "garbage": Fault(
        leads_to(at_the_link(says(b"\xde\xad\xbe\xef\r\n"))), (exceptions.InvalidResponse, *WRAPPED), BROKEN
    ),
    "garbage after a welcome": Fault(
        leads_to(at_the_link(says(b"?!\r\n", greets=True))), (exceptions.InvalidResponse,), BROKEN
    ),
    "bad length": Fault(
        leads_to(at_the_link(says(b"$1o\r\n", greets=True))), (ValueError, exceptions.InvalidResponse), BROKEN
    ),
    "truncated": Fault(
        leads_to(
            at_the_link(lambda guest, words: greeted(words) or (guest.sendall(b"$100\r\nabc"), None)[1])
        ),
        (redis.ConnectionError,),
        CLOSED,
    ),
    "hangs up": Fault(
        leads_to(at_the_link(lambda *_: None)),
        (redis.ConnectionError,),
        CLOSED,
    ),
    "reset": Fault(by_proxy(lambda p: p.reset()), (redis.ConnectionError,), CLOSED, "proxy"),
    "black hole": Fault(by_proxy(lambda p: p.hang()), LOST, ("timed out",), "proxy"),
    "replies lost": Fault(by_proxy(lambda p: p.drop_reply()), LOST, ("timed out",), "proxy"),
    "half-closed": Fault(by_proxy(lambda p: p.half_close()), (redis.ConnectionError,), CLOSED, "proxy"),
    "port closed": Fault(
        by_proxy(lambda p: p.refuse()), (redis.ConnectionError,), ("connection refused",), "proxy"
    ),
}


@pytest.mark.parametrize("name", OUTAGES)
def test_outage_is_told_refused_and_survived(make_world: Callable[..., World], name: str) -> None:
    """Redis-py's own error for what ran, a refusal at once for what did not, health that says why, and back.

    A probe is fooled by none of these, and when the fault is over the first one finds out.
    """
    fault = OUTAGES[name]
    world = make_world(listen=fault.listen, args=fault.args, **fault.client)
    if name == "accept queue full" and redis.VERSION < (8,) and not world.side.is_async:
        pytest.skip("redis-py before 8 knows no time-out for connecting to a unix socket")
    get = world.client.get
    assert world.do(world.client.set, "a", "1")
    assert world.status.state is HealthState.HEALTHY
    with fault.strike(world):
        for count in range(1, FAILURES + 1):
            error = world.fails(get, "a")
            assert isinstance(error, fault.errors), error
            assert world.status.failures == count
            if count < FAILURES:
                assert world.status.state is HealthState.DEGRADED
                assert world.status.unresolved_miss
        opened = world.opened()
        assert opened.after is HealthState.UNHEALTHY
        assert opened.cause.text in fault.cause
        world.refused(get, "a")
        world.refused(world.client.set, "a", "2")
        world.probe_fails()
        world.refused(get, "a")
        assert world.status.failures >= FAILURES + 1  # the probe's
    world.recovers()


# --- redis-py's own retries in an outage ------------------------------------------------------------------


@pytest.mark.skipif(redis.VERSION < (7,), reason="redis-py retries its connecting since 7")
@pytest.mark.parametrize("name", ["frozen", "killed", "loading", "max clients", "reset", "black hole"])
def test_client_that_retries_by_itself_is_stopped_at_the_limit(
    make_world: Callable[..., World], side: Side, name: str
) -> None:
    """Each attempt that redis-py hides counts, so that one call opens the breaker, in bounded time."""
    fault = OUTAGES[name]
    world = make_world(listen=fault.listen, args=fault.args, **patient(side), **fault.client)
    get = world.client.get
    assert world.do(world.client.set, "a", "1")
    with fault.strike(world):
        error = world.fails(get, "a", within=FAILURES * 2 * TIMEOUT + 1)
        assert isinstance(error, (*fault.errors, *LOST)), error
        assert world.status.failures == FAILURES
        assert world.opened().after is HealthState.UNHEALTHY
        world.refused(get, "a")
    world.recovers()


@pytest.mark.parametrize("name", ["no password", "wrong password", "no permission"])
def test_what_a_person_has_to_mend_is_tried_once(
    make_world: Callable[..., World], side: Side, name: str
) -> None:
    """A wrong password does not get right by trying: one attempt, whatever the client's retry policy says."""
    fault = OUTAGES[name]
    world = make_world(args=fault.args, **patient(side), **fault.client)
    with fault.strike(world):
        error = world.fails(world.client.get, "a")
        assert isinstance(error, fault.errors)
        assert world.status.failures == 1
        assert world.status.cause in fault.cause
    world.recovers()


# --- a server that takes no writes ------------------------------------------------------------------------


@contextlib.contextmanager
def out_of_memory(world: World) -> Iterator[None]:
    world.server.command("CONFIG", "SET", "maxmemory", 1)
    yield
    world.server.command("CONFIG", "SET", "maxmemory", 0)


@contextlib.contextmanager
def demoted(world: World) -> Iterator[None]:
    world.server.command("REPLICAOF", "127.0.0.1", 1)
    yield
    world.server.command("REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def alone(world: World) -> Iterator[None]:
    world.server.command("CONFIG", "SET", "min-replicas-to-write", 1)
    yield
    world.server.command("CONFIG", "SET", "min-replicas-to-write", 0)


@contextlib.contextmanager
def cannot_save(world: World) -> Iterator[None]:
    command = world.server.command
    shutil.rmtree(str(dict_of(command("CONFIG", "GET", "dir"))["dir"]))
    command("CONFIG", "SET", "save", "3600 1")
    command("BGSAVE")
    world.until(lambda: "rdb_last_bgsave_status:err" in str(command("INFO", "persistence")))
    yield
    command("CONFIG", "SET", "save", "")


def dict_of(reply: Any) -> dict[Any, Any]:
    return dict(zip(reply[::2], reply[1::2], strict=True))


REFUSED_WRITES: dict[str, tuple[Strike, str, str]] = {
    "OOM": (out_of_memory, "OOM|command not allowed", "out of memory"),
    "READONLY": (demoted, "READONLY|read only replica", "read-only replica"),
    "NOREPLICAS": (alone, "NOREPLICAS", "too few replicas"),
    "MISCONF": (cannot_save, "MISCONF", "cannot persist"),
}


@pytest.mark.parametrize("name", REFUSED_WRITES)
def test_server_that_refuses_writes_is_degraded_and_reads_go_on(world: World, name: str) -> None:
    """Writes are a facet: the breaker stays closed, reads prove nothing, the gate holds back what writes.

    The probe that the gate orders writes, too, so it finds out when writes are taken again.
    """
    strike, text, cause = REFUSED_WRITES[name]
    done: list[str] = []
    sweep = world.health.destructive("sweep")(lambda: done.append("sweep"))
    wish = world.health.destructive("wish", trigger="requested", writes=["redis"])(
        lambda: done.append("wish")
    )
    look = world.health.destructive("look", trigger="requested")(lambda: done.append("look"))
    client = world.client
    assert world.do(client.set, "a", "1")
    with strike(world):
        for _ in range(FAILURES + 1):
            error = world.fails(client.set, "a", "2")
            assert isinstance(error, redis.ResponseError)
            assert any(part in str(error) for part in text.split("|"))
            assert world.do(client.get, "a") == b"1"
            pipeline = client.pipeline()
            pipeline.incr("a")
            assert isinstance(world.fails(pipeline.execute), redis.ResponseError)
        status = world.status
        assert (status.state, status.breaker) == (HealthState.DEGRADED, BreakerState.CLOSED)
        assert (status.failures, status.impaired) == (0, {"write": cause})
        for held in (sweep, wish):
            with pytest.raises(OperationBlocked) as blocked:
                held()
            assert blocked.value.dependency == "redis"
        look()
        world.until(lambda: not world.dependency._schedule.in_flight)  # type: ignore[union-attr]  # it has one
        assert world.status.impaired == {"write": cause}
        assert done == ["look"]
    world.until(lambda: bool(world.health.check("wish")) and bool(world.health.check("sweep")))
    assert world.status.impaired == {}
    sweep()
    assert world.do(client.get, "a") == b"1"
    world.recovers()


def test_paused_writes_are_no_success_for_a_probe(world: World) -> None:
    """A server that reads and lets writes wait would look well to a probe that only reads."""
    client = world.client
    assert world.do(client.set, "a", "1")
    world.server.command("CLIENT", "PAUSE", 30_000, "WRITE")
    for _ in range(FAILURES):
        error = world.fails(client.set, "a", "2")
        assert isinstance(error, redis.TimeoutError)
        assert error.outcome == "unknown"
    assert world.opened().cause.text == "timed out"
    world.probe_fails()
    world.refused(client.get, "a")
    world.server.command("CLIENT", "UNPAUSE")
    world.recovers()


# --- permissions ------------------------------------------------------------------------------------------


def test_command_that_is_not_permitted_is_no_failure_and_a_miss(make_world: Callable[..., World]) -> None:
    """NOPERM says nothing about the server, but the question was not answered: the gate waits."""
    world = make_world(args=WITH_APP, **AS_APP)
    world.health.destructive("sweep")(lambda: None)
    assert world.do(world.client.set, "a", "1")
    world.server.command("ACL", "SETUSER", "app", "-get")
    with world.health.scope("work") as scope:
        for _ in range(FAILURES + 1):
            assert isinstance(world.fails(world.client.get, "a"), exceptions.NoPermissionError)
        assert scope.tainted
        assert not world.health.check("sweep")
    status = world.status
    assert (status.failures, status.breaker) == (0, BreakerState.CLOSED)
    assert status.cause in {"no permission for a command", "a call was answered"}  # a probe may have come
    assert not [event for event in world.events if event.after is HealthState.UNHEALTHY]
    world.server.command("ACL", "SETUSER", "app", "+get")
    world.recovers()


RIGHTS = {
    "one key, two commands": ("~a", "~after", "+get", "+set"),
    "no ECHO": ("~*", "+@all", "-echo"),
    "no EXISTS": ("~*", "+@all", "-exists"),
    "keys of its own": ("~a*", "+@all"),
    "no PING": ("~*", "+@all", "-ping"),
}


@pytest.mark.parametrize("name", RIGHTS)
def test_user_with_few_rights_gets_out_of_an_open_breaker(
    make_world: Callable[..., World], name: str
) -> None:
    """What the default probe may not do cannot keep a breaker open for ever."""
    world = make_world(args=("--user", "app", "on", ">secret", *RIGHTS[name]), **AS_APP)
    assert world.do(world.client.set, "a", "1")
    world.server.kill()
    for _ in range(FAILURES):
        world.fails(world.client.get, "a")
    world.refused(world.client.get, "a")
    world.server.start()
    world.until(lambda: gets_through(world), "never let through again")
    world.recovers()


def gets_through(world: World) -> bool:
    try:
        world.do(world.client.get, "a")
    except redis.RedisError:
        return False
    return True


# --- what is hardly a fault -------------------------------------------------------------------------------


@pytest.mark.parametrize("listen", ["unix", "tcp"])
def test_killed_connection_is_one_failure_at_most(make_world: Callable[..., World], listen: str) -> None:
    """An administrator's CLIENT KILL between two calls and in one: a reconnect, and never unhealthy."""
    world = make_world(listen=listen)
    kill = ("CLIENT", "KILL", "TYPE", "normal")
    assert world.do(world.client.set, "a", "1")
    for _ in range(3):
        world.server.command(*kill)
        with contextlib.suppress(redis.ConnectionError):
            world.do(world.client.get, "a")
        assert world.do(world.client.get, "a") == b"1"
    assert world.status.failures <= 3
    waiting = world.side.begin(world.client.blpop, "queue", 0.25)
    world.until(lambda: "cmd=blpop" in str(world.server.command("CLIENT", "LIST")))
    before = world.status.failures
    world.server.command(*kill)
    with pytest.raises(redis.ConnectionError) as caught:
        waiting.result()
    assert not isinstance(caught.value, DependencyUnhealthy)
    assert world.status.failures == before + 1
    assert world.do(world.client.get, "a") == b"1"
    assert {event.breaker for event in world.events} == {BreakerState.CLOSED}
    world.recovers()


@pytest.mark.parametrize("listen", ["unix", "tcp"])
def test_server_that_came_back_empty_between_two_calls_goes_unnoticed(
    make_world: Callable[..., World], listen: str
) -> None:
    """The limit that the README tells: no error, no key. At most one failure, and never unhealthy."""
    world = make_world(listen=listen)
    assert world.do(world.client.set, "a", "1")
    world.server.restart()
    with contextlib.suppress(redis.ConnectionError):
        world.do(world.client.get, "a")
    assert world.do(world.client.get, "a") is None
    assert world.status.failures <= 1
    assert {event.breaker for event in world.events} == {BreakerState.CLOSED}
    world.recovers()


def test_wait_that_ends_by_its_own_time_is_an_answer(world: World) -> None:
    """Nothing came, says the server in time: a success. And one that outlives its socket is no failure."""
    assert world.do(world.client.blpop, "queue", 0.1) is None
    assert (world.status.state, world.status.failures) == (HealthState.HEALTHY, 0)
    error = world.fails(world.client.blpop, "queue", 5)
    assert isinstance(error, redis.TimeoutError)
    assert (world.status.breaker, world.status.failures) == (BreakerState.CLOSED, 0)
    world.recovers()


@pytest.mark.parametrize("wait", [0.25, 0])
def test_wait_whose_server_dies_is_a_failure(world: World, wait: float) -> None:
    """However long it would have waited: the line broke."""
    assert world.do(world.client.set, "a", "1")
    waiting = world.side.begin(world.client.blpop, "queue", wait)
    world.until(lambda: "cmd=blpop" in str(world.server.command("CLIENT", "LIST")))
    world.server.kill()
    with pytest.raises(redis.ConnectionError) as caught:
        waiting.result()
    assert not isinstance(caught.value, DependencyUnhealthy)
    assert (world.status.state, world.status.failures) == (HealthState.DEGRADED, 1)
    world.server.start()
    world.recovers()


# --- replies that are none --------------------------------------------------------------------------------


def one_behind() -> Any:
    """A line on which each reply is the answer to the question before."""
    before = ["0123456789abcdef"]

    def answer(guest: socket.socket, words: list[str]) -> bytes:
        if words[0] == "ECHO":
            before.append(words[1])
            return bulk(before[-2])
        return greeted(words) or bulk("value")

    return answer


STALE: dict[str, Callable[[], Any]] = {
    "one behind": one_behind,
    "a reply too many": lambda: (
        lambda _, words: (
            greeted(words)
            or (bulk("fedcba9876543210") + bulk(words[-1]) if words[0] == "ECHO" else bulk("value"))
        )
    ),
    "PONG": lambda: says(b"+PONG\r\n", greets=True),
    "nil": lambda: says(b"$-1\r\n", greets=True),
}


@pytest.mark.parametrize("name", STALE)
def test_stale_reply_is_no_answer_to_a_probe(world: World, name: str) -> None:
    """What was meant for somebody else never makes a dependency healthy."""
    assert world.do(world.client.set, "a", "1")
    with leads_to(at_the_link(STALE[name]()))(world):
        world.dependency.trip()
        world.probe_fails(3)
    world.recovers()


def test_reply_that_drips_is_too_late(world: World) -> None:
    """The time-out is one for the whole answer, in both worlds, although redis-py's sync one is for each byte."""
    with leads_to(at_the_link(drips(bulk("12345678"), 0.07)))(world):
        for _ in range(FAILURES):
            assert isinstance(world.fails(world.client.get, "a"), redis.TimeoutError)
        assert world.opened().cause.text == "timed out"
        world.refused(world.client.get, "a")
        world.probe_fails()
    world.recovers()


# --- pipelines, transactions and watches ------------------------------------------------------------------


@pytest.mark.parametrize("transaction", [True, False], ids=["transaction", "pipeline"])
@pytest.mark.parametrize("name", ["frozen", "killed", "replies lost"])
def test_pipeline_in_an_outage(make_world: Callable[..., World], name: str, transaction: bool) -> None:
    """It counts once for all it sends, is refused as a whole, and gives its connection back."""
    fault = OUTAGES[name]
    world = make_world(listen=fault.listen)
    assert world.do(world.client.set, "n", "0")

    def batch() -> Any:
        pipeline = world.client.pipeline(transaction=transaction)
        pipeline.incr("n")
        pipeline.get("n")
        return pipeline.execute()

    with fault.strike(world):
        for count in range(1, FAILURES + 1):
            assert isinstance(world.fails(batch), fault.errors)
            assert world.status.failures == count
        world.refused(batch)
        pool = world.client.connection_pool
        assert not pool._in_use_connections
    world.recovers()
    before = int(world.do(world.client.get, "n") or 0)
    assert world.do(batch) == [before + 1, b"%d" % (before + 1)]


@pytest.mark.parametrize("name", ["frozen", "killed"])
def test_watching_loop_ends_in_an_outage(world: World, name: str) -> None:
    """`transaction()` tries again when its race is lost; that the line broke under it is another matter."""
    strike = OUTAGES[name].strike
    assert world.do(world.client.set, "n", "1")
    rounds: list[int] = []

    with contextlib.ExitStack() as struck:

        def sync_add(pipeline: Any) -> None:
            rounds.append(1)
            if len(rounds) == 1:
                struck.enter_context(strike(world))
            pipeline.get("n")
            pipeline.multi()
            pipeline.incr("n")

        async def async_add(pipeline: Any) -> None:
            rounds.append(1)
            if len(rounds) == 1:
                struck.enter_context(strike(world))
            await pipeline.get("n")
            pipeline.multi()
            pipeline.incr("n")

        error = world.fails(
            world.client.transaction, world.side.pick(sync_add, async_add), "n", within=4 * TIMEOUT
        )
        assert isinstance(error, redis.RedisError)
        assert not isinstance(error, redis.WatchError)
        assert len(rounds) <= 2
        assert world.status.failures >= 1
        assert world.status.state in {HealthState.DEGRADED, HealthState.UNHEALTHY, HealthState.RECOVERING}
        give_back_what_redis_py_lost(world)
    world.until(lambda: gets_through(world))
    assert world.do(world.client.get, "n") == (b"1" if name == "frozen" else None)
    world.recovers()


def give_back_what_redis_py_lost(world: World) -> None:
    """Its sync pipeline keeps a watched connection when taking the watch back times out, guarded or not."""
    pool = world.client.connection_pool
    lost = list(pool._in_use_connections)
    assert len(lost) <= (not world.side.is_async)
    for connection in lost:
        connection.disconnect()
        pool.release(connection)


# --- listeners --------------------------------------------------------------------------------------------


def test_reader_of_a_channel_is_let_be_while_its_line_stands_and_resumes(
    make_world: Callable[..., World],
) -> None:
    """An open breaker neither disturbs who listens nor lets anybody connect anew; then it goes on as before."""
    world = make_world(listen="proxy")
    client, publish = world.client, world.server.command
    channel = client.pubsub()
    world.do(channel.subscribe, "news")
    assert world.do(channel.get_message, timeout=PATIENCE)["type"] == "subscribe"
    world.hang_up()
    world.proxy.refuse(keep=True)  # who is connected stays
    for _ in range(FAILURES):
        world.fails(client.get, "a")
    world.refused(client.get, "a")
    publish("PUBLISH", "news", "one")
    assert world.do(channel.get_message, timeout=PATIENCE)["data"] == b"one"
    assert world.do(channel.get_message, timeout=0.05) is None
    other = client.pubsub()
    world.refused(other.subscribe, "sports")
    world.proxy.refuse()
    world.fails(channel.get_message, within=1.0)
    refused, _ = world._caught(channel.get_message)
    assert type(refused) is RedisUnhealthy
    publish("PUBLISH", "news", "nobody hears")
    world.proxy.clear()
    world.until(lambda: world.dependency.breaker is BreakerState.CLOSED)
    heard: list[Any] = []
    world.until(lambda: hears(world, channel, heard), "never resumed")
    publish("PUBLISH", "news", "two")
    world.until(lambda: hears(world, channel, heard) and heard[-1]["data"] == b"two")
    assert [message["data"] for message in heard if message["type"] == "message"] == [b"two"]
    for each in (channel, other):
        world.do(each.aclose if world.side.is_async else each.close)
    world.recovers()


def hears(world: World, channel: Any, heard: list[Any]) -> bool:
    with contextlib.suppress(redis.RedisError):
        message = world.do(channel.get_message, timeout=0.05)
        if message is not None:
            heard.append(message)
            return True
    return False


# --- clients of other kinds ---------------------------------------------------------------------------------


def with_one_connection(world: World) -> Any:
    return world.connect(single_connection_client=True)


def with_a_waiting_pool(world: World) -> Any:
    home = world.side.pick(redis, redis.asyncio)
    plain = world.plain()
    pool = home.BlockingConnectionPool(
        max_connections=2,
        timeout=TIMEOUT,
        connection_class=plain.connection_pool.connection_class,
        **plain.connection_pool.connection_kwargs,
    )
    return guard_client(world.kept(home.Redis(connection_pool=pool)), world.dependency)


@pytest.mark.parametrize("make", [with_one_connection, with_a_waiting_pool])
@pytest.mark.parametrize("name", ["frozen", "killed"])
def test_client_of_another_kind_survives_too(world: World, name: str, make: Callable[[World], Any]) -> None:
    """The one connection of a client and the places of a waiting pool are there again afterwards."""
    client = make(world)
    assert world.do(client.set, "a", "1")
    with OUTAGES[name].strike(world):
        for _ in range(FAILURES):
            assert isinstance(world.fails(client.get, "a"), LOST)
        for _ in range(5):
            world.refused(client.get, "a")
    world.until(lambda: world.dependency.breaker is BreakerState.CLOSED)
    for _ in range(5):
        assert world.do(client.set, "a", "2")
    world.do(client.aclose if world.side.is_async else client.close)
    world.do(client.connection_pool.disconnect)
    world.recovers()


# --- many at a time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["frozen", "killed"])
def test_crowd_in_an_outage(world: World, name: str) -> None:
    """Twenty callers at once: all end in time, with one error or the other, and leave nothing behind."""
    one_by_one = redis.VERSION < (7,) and world.side.is_async  # its pool connects under a lock
    limit = (20 if one_by_one else 2) * TIMEOUT + SLACK
    strike = OUTAGES[name].strike
    assert world.do(world.client.set, "a", "1")
    with strike(world):
        began = time.monotonic()
        for _ in range(3):
            calls = [world.side.begin(world.client.get, "a") for _ in range(20)]
            for call in calls:
                with pytest.raises(redis.RedisError):
                    call.result()
        assert time.monotonic() - began < 3 * limit
        world.refused(world.client.get, "a")
    world.recovers()
    assert world.do(world.client.set, "a", "1")
    calls = [world.side.begin(world.client.get, "a") for _ in range(20)]
    assert {call.result() for call in calls} == {b"1"}


# --- this process has nothing left ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def starved(redis_binary: str) -> dict[str, dict[str, Any]]:
    """What two clients in a process without descriptors have seen; the sides side by side, for time's sake."""
    script = Path(__file__).with_name("starved.py")
    with RedisServer(binary=redis_binary) as server:
        runs = {
            name: subprocess.Popen(
                [sys.executable, script, name, server.path],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for name in ("sync", "asyncio")
        }
        told = {}
        for name, run in runs.items():
            out, errors = run.communicate(timeout=60)
            assert run.returncode == 0, errors
            told[name] = json.loads(out.splitlines()[-1])
    return told


@pytest.mark.parametrize("world", ["sync", "asyncio"])
def test_own_descriptors_used_up(starved: dict[str, dict[str, Any]], world: str) -> None:
    """What this process has run out of is not the server's fault: no failure, a miss, and the gate waits."""
    told = starved[world]
    assert told["errors"] == [24, 24, 24]
    assert (told["failures"], told["breaker"], told["state"]) == (0, "closed", "degraded")
    assert told["cause"] == "this process has no descriptor left"
    assert told["blocked"]
    assert (told["after"], told["state_after"]) == ("1", "healthy")


@pytest.mark.parametrize("world", ["sync", "asyncio"])
def test_probe_without_a_descriptor_blames_nobody(starved: dict[str, dict[str, Any]], world: str) -> None:
    """A probe that this process cannot even make says nothing about the server."""
    assert starved[world]["failures_of_probe"] == 0


@pytest.mark.parametrize("world", ["sync", "asyncio"])
def test_status_needs_no_descriptor(starved: dict[str, dict[str, Any]], world: str) -> None:
    """It is told from memory, also for the first time."""
    assert starved[world]["status_error"] is None


# --- sentinels --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watched_pair(binary: str) -> Iterator[tuple[list[RedisServer], list[RedisServer]]]:
    """A master, its replica, and three sentinels that agree on them."""
    with contextlib.ExitStack() as stack:

        def server(*args: str) -> RedisServer:
            return stack.enter_context(RedisServer(listen="tcp", binary=binary, args=args))

        master = server("--repl-diskless-sync-delay", "0")
        replica = server("--replicaof", "127.0.0.1", str(master.port), "--repl-diskless-sync-delay", "0")
        sentinels = [server("--sentinel") for _ in range(3)]
        for sentinel in sentinels:
            sentinel.command("SENTINEL", "MONITOR", "main", "127.0.0.1", master.port, 2)
            for setting in (("down-after-milliseconds", 300), ("failover-timeout", 3000)):
                sentinel.command("SENTINEL", "SET", "main", *setting)
        wait_until(lambda: all(in_agreement(sentinel) for sentinel in sentinels))
        wait_until(lambda: "master_link_status:up" in str(replica.command("INFO", "replication")))
        yield [master, replica], sentinels


def in_agreement(sentinel: RedisServer) -> bool:
    known: Any = dict_of(sentinel.command("SENTINEL", "MASTER", "main"))
    return (known["num-slaves"], known["num-other-sentinels"], known["flags"]) == ("1", "2", "master")


def wait_until(true: Callable[[], bool], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_failover(redis_binary: str) -> None:
    """The master dies: calls fail, then are refused, and a probe finds the new master by itself.

    A sync client, an asyncio client that is probed in its loop, and one that is probed by a thread.
    """
    with watched_pair(redis_binary) as ((master, replica), sentinels), contextlib.ExitStack() as stack:
        writers = []
        for world, threaded in (("sync", False), ("asyncio", False), ("asyncio", True)):
            side = Side(world)
            stack.callback(side.close)
            health = Safehold(world, gate=GatePolicy(startup_grace=0, settle_min=SETTLE, settle_max=SETTLE))
            dependency = health.dependency("redis", critical=True, policy=POLICY)
            client = of_sentinels(side, sentinels)
            stack.callback(hang_up_on_all, side, client.connection_pool)
            if threaded:
                stack.enter_context(health.running())
            else:
                stack.callback(side.enter(health.running()))
            writers.append(Writer(side, guard_client(client, dependency), dependency, []))
            assert side.do(client.set, "a", "1")
        master.command("WAIT", 1, 5000)
        master.kill()
        wait_until(lambda: {True} == {writer.got_through_again() for writer in writers})
        for side, client, dependency, errors in writers:
            assert [error for error in errors if not isinstance(error, redis.RedisError)] == []
            assert any(isinstance(error, RedisUnhealthy) for error in errors)
            assert dependency.status().failures >= FAILURES
            assert dependency.breaker is BreakerState.CLOSED
            assert set(dependency.status().impaired) <= {f"replica 127.0.0.1:{master.port}"}
            assert side.do(client.get, "a") == b"2"
        assert replica.command("GET", "a") == "2"


def hang_up_on_all(side: Side, pool: Any) -> None:
    for each in (pool, *(sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels)):
        side.do(each.disconnect)


class Writer(NamedTuple):
    side: Side
    client: Any
    dependency: Any
    errors: list[Exception]

    def got_through_again(self) -> bool:
        try:
            self.side.do(self.client.set, "a", "2")
        except Exception as error:
            self.errors.append(error)
            return False
        return bool(self.errors)


def of_sentinels(side: Side, sentinels: list[RedisServer]) -> Any:
    once = side.pick(redis.retry.Retry, redis.asyncio.retry.Retry)(redis.backoff.NoBackoff(), 0)
    settings = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "retry": once}
    make = side.pick(redis.sentinel.Sentinel, redis.asyncio.sentinel.Sentinel)
    addresses = [("127.0.0.1", sentinel.port) for sentinel in sentinels]
    return make(addresses, sentinel_kwargs=settings).master_for("main", **settings)
