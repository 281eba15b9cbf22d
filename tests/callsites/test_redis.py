"""A guarded redis-py client is the client that it was, and no failure of its line goes unseen."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import redis
import redis.asyncio
from redis import exceptions
from redis.backoff import NoBackoff

from safehold import (
    BreakerPolicy,
    BreakerState,
    ConfigurationError,
    Dependency,
    DependencyUnhealthy,
    HealthState,
    OperationBlocked,
    Outcome,
    Safehold,
    Transition,
)
from safehold._runtime.classify import judge
from safehold.callsites.redis import RedisUnhealthy, classify, guard_client, guarding
from safehold.testing.clock import ManualClock
from safehold.testing.proxy import FaultProxy, Injection
from safehold.testing.servers import RedisServer

from .support import (
    COOLDOWN,
    PATIENCE,
    POLICY,
    TIMEOUT,
    Side,
    Watch,
    descriptors,
    last,
    raises,
    scripted,
    since,
    swallowed,
    wait_for_quiet,
)


def address(proxy: FaultProxy) -> dict[str, Any]:
    if proxy.url().startswith("unix"):
        return {"unix_socket_path": proxy.path}
    return {"host": proxy.host, "port": proxy.port}


def make(side: Side, proxy: FaultProxy, **options: Any) -> Any:
    """Make a client that asks once and does not wait for long."""
    once = side.pick(redis.retry.Retry, redis.asyncio.retry.Retry)(NoBackoff(), 0)
    settings = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "retry": once}
    return side.pick(redis.Redis, redis.asyncio.Redis)(**address(proxy), **{**settings, **options})


@pytest.fixture
def keep(side: Side) -> Iterator[Callable[[Any], Any]]:
    """Close clients after the test, with all their connections."""
    kept: list[Any] = []

    def keep(client: Any) -> Any:
        kept.append(client)
        return client

    yield keep
    for client in kept:
        side.do(client.aclose if side.is_async else client.close)
        side.do(client.connection_pool.disconnect)


@pytest.fixture
def connect(side: Side, proxy: FaultProxy, keep: Callable[[Any], Any]) -> Callable[..., Any]:
    """Make clients of the proxy's server."""
    return lambda **options: keep(make(side, proxy, **options))


@pytest.fixture
def client(connect: Callable[..., Any], dependency: Dependency) -> Any:
    return guard_client(connect(), dependency)


def make_open(side: Side, client: Any, dependency: Dependency, proxy: FaultProxy) -> None:
    with proxy.reset():
        for _ in range(2):
            raises(redis.ConnectionError, lambda: side.do(client.get, "a"))
    assert dependency.breaker is BreakerState.OPEN


# --- the client that it was ---------------------------------------------------------------------------


def test_guarded_client_is_the_client_that_it_was(
    side: Side, connect: Callable[..., Any], dependency: Dependency
) -> None:
    """The same object, of a class that goes by the name of its own; its methods work, nothing is counted."""
    plain = connect()
    kind = type(plain)
    client = guard_client(plain, dependency)
    assert client is plain
    assert isinstance(client, kind)
    assert type(client).__name__ == kind.__name__
    assert type(client).__qualname__ == kind.__qualname__
    assert type(client).__module__ == kind.__module__
    assert type(client).__doc__ == kind.__doc__
    assert repr(client).startswith("<redis.")
    assert side.do(client.set, "a", "1")
    assert side.do(client.get, "a") == b"1"
    assert side.do(client.incr, "a") == 2
    assert side.do(client.hset, "h", mapping={"x": 1}) == 1
    assert side.do(client.ping)
    report = dependency.status()
    assert (report.state, report.successes, report.failures) == (HealthState.HEALTHY, 5, 0)
    assert report.probed


def test_what_stands_on_a_client_works_on_a_guarded_one(side: Side, client: Any) -> None:
    """Scripts, locks, scans and subscriptions use the client as before."""

    def sync_body() -> list[Any]:
        with client.lock("lock", timeout=5):
            client.set("scan:1", "x")
        seen = list(client.scan_iter("scan:*"))
        script = client.register_script("return ARGV[1]")
        with client.pubsub() as channel:
            channel.subscribe("news")
            kind = channel.get_message(timeout=PATIENCE)["type"]
        return [seen, script(args=["a"]), kind]

    async def async_body() -> list[Any]:
        async with client.lock("lock", timeout=5):
            await client.set("scan:1", "x")
        seen = [key async for key in client.scan_iter("scan:*")]
        script = client.register_script("return ARGV[1]")
        async with client.pubsub() as channel:
            await channel.subscribe("news")
            kind = (await channel.get_message(timeout=PATIENCE))["type"]
        return [seen, await script(args=["a"]), kind]

    assert side.do(side.pick(sync_body, async_body)) == [[b"scan:1"], b"a", "subscribe"]


def test_subclass_of_the_users_stays_what_it_is(
    side: Side, proxy: FaultProxy, dependency: Dependency, keep: Callable[[Any], Any]
) -> None:
    """A class of the user's own keeps its methods, and they are guarded by what they call."""
    base = side.pick(redis.Redis, redis.asyncio.Redis)

    class Store(base):  # type: ignore[misc, valid-type]  # one of two
        def fetch(self, key: str) -> Any:
            return self.get(key)

    client = guard_client(keep(Store(**address(proxy), socket_timeout=TIMEOUT)), dependency)
    assert isinstance(client, Store)
    assert type(client).__name__ == "Store"
    assert side.do(client.fetch, "nothing") is None
    assert dependency.status().successes == 1


def test_guarding_twice_is_guarding_once(
    side: Side, connect: Callable[..., Any], dependency: Dependency
) -> None:
    """A second guard changes nothing: one call is one success."""
    client = connect()
    kind = type(guard_client(client, dependency))
    assert type(guard_client(client, dependency)) is kind
    side.do(client.get, "a")
    assert dependency.status().successes == 1


def test_client_of_another_dependency_is_turned_away(
    connect: Callable[..., Any], dependency: Dependency, health: Safehold
) -> None:
    """One client stands for one dependency; the first guard stays."""
    client = guard_client(connect(), dependency)
    with pytest.raises(ConfigurationError, match=r"redis.*other"):
        guard_client(client, health["other"])
    assert guarding(client).dependency is dependency


@pytest.mark.parametrize(
    "thing", [None, "redis://", redis.Redis, 1.5, mock.Mock(spec=redis.Redis)], ids=lambda t: type(t).__name__
)
def test_what_is_no_client_is_turned_away(dependency: Dependency, thing: Any) -> None:
    """The mistake is told where it is made."""
    with pytest.raises(ConfigurationError, match="client"):
        guard_client(thing, dependency)


def test_unguarded_client_of_the_same_pool_stays_unguarded(
    side: Side, connect: Callable[..., Any], proxy: FaultProxy, dependency: Dependency
) -> None:
    """Guarding one client changes no other, also where they share the pool and so the retry policy."""
    client = connect()
    other = side.pick(redis.Redis, redis.asyncio.Redis)(connection_pool=client.connection_pool)
    guard_client(client, dependency)
    with proxy.reset():
        error = raises(redis.ConnectionError, lambda: side.do(other.get, "a"))
    assert not isinstance(error, DependencyUnhealthy)
    assert dependency.status().failures == 0
    side.do(other.get, "a")
    assert dependency.status().successes == 0


# --- refusals -----------------------------------------------------------------------------------------


def test_refusal_is_both_errors_and_never_reaches_the_wire(
    side: Side, client: Any, dependency: Dependency, proxy: FaultProxy
) -> None:
    """While open, calls raise a `redis.ConnectionError` that is a `DependencyUnhealthy`, and send nothing."""
    make_open(side, client, dependency, proxy)
    mark = last(proxy)
    for _ in range(3):
        error = raises(redis.ConnectionError, lambda: side.do(client.get, "a"))
        assert type(error) is RedisUnhealthy
        assert isinstance(error, DependencyUnhealthy)
        assert isinstance(error, redis.RedisError)
        assert (error.dependency, error.state) == ("redis", HealthState.UNHEALTHY)
        assert (error.reason, error.retry_after) == ("breaker_open", COOLDOWN)
    pipeline = client.pipeline()
    pipeline.get("a")
    raises(RedisUnhealthy, lambda: side.do(pipeline.execute))
    assert since(proxy, mark) == []
    assert dependency.status().refusals == 4


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_refusal_can_be_copied_and_pickled(
    side: Side,
    client: Any,
    dependency: Dependency,
    proxy: FaultProxy,
    copied: Callable[[Any], Any],
) -> None:
    """A refusal crosses processes with everything that it says, and stays of both kinds."""
    make_open(side, client, dependency, proxy)
    error: Any = raises(RedisUnhealthy, lambda: side.do(client.get, "a"))
    twin = copied(error)
    assert type(twin) is RedisUnhealthy
    assert isinstance(twin, redis.ConnectionError)
    for name in ("dependency", "state", "reason", "retry_after", "since", "cause"):
        assert getattr(twin, name) == getattr(error, name)
    assert str(twin) == str(error)
    again = DependencyUnhealthy.from_payload(error.to_payload())
    assert (again.dependency, again.retry_after) == ("redis", COOLDOWN)


# --- faults -------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Callable[[FaultProxy], Injection], type[Exception]]] = {
    "refuse": (lambda p: p.refuse(), redis.ConnectionError),
    "hang": (lambda p: p.hang(), redis.TimeoutError),
    "reset": (lambda p: p.reset(), redis.ConnectionError),
    "latency": (lambda p: p.latency(PATIENCE), redis.TimeoutError),
    "cut in mid reply": (lambda p: p.cut(after=3), redis.ConnectionError),
    "cut at once": (lambda p: p.cut(after=0), redis.ConnectionError),
    "reply lost": (lambda p: p.drop_reply(), redis.TimeoutError),
    "reply lost, closed": (lambda p: p.drop_reply(how="close"), redis.ConnectionError),
    "half-closed": (lambda p: p.half_close(), redis.ConnectionError),
    "stale socket": (lambda p: p.refuse(stale=True), redis.ConnectionError),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_counted_and_passes_untouched_and_a_probe_finds_the_way_back(
    side: Side,
    client: Any,
    dependency: Dependency,
    proxy: FaultProxy,
    health: Safehold,
    clock: ManualClock,
    watch: Watch,
    fault: str,
) -> None:
    """Whatever happens to the line: redis-py's own error, counted, refused at the limit, back by a probe."""
    inject, kind = FAULTS[fault]
    assert side.do(client.set, "a", "1")
    inject(proxy)
    for count, state in ((1, HealthState.DEGRADED), (2, HealthState.UNHEALTHY)):
        error = raises(Exception, lambda: side.do(client.get, "a"))
        # asyncio over a unix socket tells a time-out of the handshake as a `ConnectionError`
        assert type(error) in {kind, redis.ConnectionError if count == 2 else kind}
        assert dependency.status().failures == count
        assert dependency.state is state
    mark = last(proxy)
    raises(RedisUnhealthy, lambda: side.do(client.get, "a"))
    asked = [entry for entry in since(proxy, mark, "accept", "data") if entry.direction != "downstream"]
    assert asked == []  # what comes back late was asked before
    health.start()
    proxy.clear()
    clock.advance(COOLDOWN)
    watch.until_closed(dependency)
    assert dependency.state is HealthState.RECOVERING
    assert side.do(client.get, "a") == b"1"


@pytest.mark.parametrize("fault", ["refuse", "hang", "reset", "cut in mid reply"])
def test_probe_fails_as_long_as_the_fault_lasts(
    side: Side,
    client: Any,
    dependency: Dependency,
    proxy: FaultProxy,
    health: Safehold,
    clock: ManualClock,
    watch: Watch,
    fault: str,
) -> None:
    """The default probe is fooled by no fault: it opens the breaker again, and no call gets through."""
    make_open(side, client, dependency, proxy)
    FAULTS[fault][0](proxy)
    health.start()
    for _ in range(2):
        before = dependency.status().generation
        clock.advance(COOLDOWN)
        watch.until(lambda: dependency.status().generation == before + 2)  # noqa: B023 - waited for here
        assert dependency.breaker is BreakerState.OPEN
    raises(RedisUnhealthy, lambda: side.do(client.get, "a"))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_call_that_fails_counts_once(
    side: Side, connect: Callable[..., Any], proxy: FaultProxy, health: Safehold, fault: str, warm: bool
) -> None:
    """One call of a client that does not retry is one failure, wherever in it the line breaks."""
    dependency = health.dependency("redis", policy=BreakerPolicy(failures=None, failure_rate=None))
    client = guard_client(connect(), dependency)
    if warm:
        side.do(client.set, "a", "1")
    FAULTS[fault][0](proxy)
    raises(redis.RedisError, lambda: side.do(client.get, "a"))
    assert dependency.status().failures == 1


# --- redis-py's own retries ---------------------------------------------------------------------------


def patient(side: Side, proxy: FaultProxy) -> Any:
    """A client as `Redis()` makes it: ten retries."""
    kind = side.pick(redis.Redis, redis.asyncio.Redis)
    return kind(**address(proxy), socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)


@pytest.mark.parametrize("warm", [False, True])
def test_breaker_opens_during_the_retries_and_ends_them(
    side: Side, proxy: FaultProxy, health: Safehold, keep: Callable[[Any], Any], warm: bool
) -> None:
    """Each hidden attempt counts; at the limit the loop ends, with redis-py's own error."""
    dependency = health.dependency("redis", policy=BreakerPolicy(failures=3))
    client = guard_client(keep(patient(side, proxy)), dependency)
    if warm:
        side.do(client.get, "a")
    proxy.reset()
    mark = last(proxy)
    error = raises(redis.ConnectionError, lambda: side.do(client.get, "a"))
    assert type(error) is redis.ConnectionError
    assert dependency.status().failures == 3
    assert dependency.breaker is BreakerState.OPEN
    assert len(since(proxy, mark, "accept")) <= 3
    raises(RedisUnhealthy, lambda: side.do(client.get, "a"))


def test_silent_server_is_asked_no_more_often_than_the_limit(
    side: Side, proxy: FaultProxy, health: Safehold, keep: Callable[[Any], Any]
) -> None:
    """Redis-py nests its loops when connecting times out; the breaker ends all of them."""
    dependency = health.dependency("redis", policy=BreakerPolicy(failures=3))
    client = guard_client(keep(patient(side, proxy)), dependency)
    side.do(client.get, "a")
    proxy.hang()
    mark = last(proxy)
    error = raises(redis.RedisError, lambda: side.do(client.get, "a"))
    assert type(error) in {redis.TimeoutError, redis.ConnectionError}
    assert dependency.status().failures == 3
    assert len(since(proxy, mark, "accept")) <= 3
    proxy.clear()


def test_hidden_attempts_are_no_miss_if_the_call_answers(
    side: Side, proxy: FaultProxy, health: Safehold, keep: Callable[[Any], Any]
) -> None:
    """An attempt that failed counts for the trip rule; the call was answered, so nothing is tainted."""
    dependency = health.dependency("redis", policy=BreakerPolicy(failures=3))
    client = guard_client(keep(patient(side, proxy)), dependency)
    side.do(client.set, "a", "1")
    with health.scope("work") as scope:
        proxy.drop_reply(count=1, how="close")
        assert side.do(client.get, "a") == b"1"
        assert not scope.tainted
    report = dependency.status()
    assert (report.failures, report.unresolved_miss, report.state) == (1, False, HealthState.HEALTHY)


def test_hidden_attempts_of_a_call_that_fails_in_the_end_are_a_miss(
    side: Side, proxy: FaultProxy, health: Safehold, keep: Callable[[Any], Any]
) -> None:
    """The positive twin: the call was not answered, so its scope is tainted."""
    dependency = health.dependency("redis", policy=BreakerPolicy(failures=3))
    client = guard_client(keep(patient(side, proxy)), dependency)
    side.do(client.set, "a", "1")
    with health.scope("work") as scope:
        proxy.reset()
        raises(redis.ConnectionError, lambda: side.do(client.get, "a"))
        assert scope.tainted
    assert dependency.state is HealthState.UNHEALTHY


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_refused_credentials_are_sent_once_and_count_once(
    side: Side,
    redis_server: RedisServer,
    proxy: FaultProxy,
    health: Safehold,
    keep: Callable[[Any], Any],
    warm: bool,
) -> None:
    """No loop of redis-py's, nor one around another, hammers a server with a password that it refuses."""
    dependency = health.dependency("redis", policy=BreakerPolicy(failures=None, failure_rate=None))
    kind = side.pick(redis.Redis, redis.asyncio.Redis)
    redis_server.command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all")
    try:
        client = keep(kind(**address(proxy), username="app", password="secret" if warm else "wrong"))
        guard_client(client, dependency)
        if warm:
            side.do(client.get, "a")
            redis_server.command("ACL", "SETUSER", "app", "resetpass", ">other")
            redis_server.command("CLIENT", "KILL", "USER", "app")
        redis_server.command("CONFIG", "RESETSTAT")
        raises(redis.ConnectionError, lambda: side.do(client.get, "a"))
        stats = str(redis_server.command("INFO", "commandstats"))
    finally:
        redis_server.command("ACL", "DELUSER", "app")
    tried = [line.split(",")[0] for line in stats.splitlines() if "_auth:" in line or "_hello:" in line]
    assert [line.rpartition("=")[2] for line in tried] == ["1"]
    assert dependency.status().failures in {1, 1 + warm}  # and the connection that was lost, if it was tried
    assert dependency.status().cause == "credentials refused"


# --- what is no failure -------------------------------------------------------------------------------


def test_cache_that_the_server_is_too_old_for_opens_no_breaker(
    connect: Callable[..., Any], side: Side, proxy: FaultProxy, dependency: Dependency
) -> None:
    """The server is well, the client's setting is not: it is told, and others of the dependency go on."""
    if side.is_async or proxy.url().startswith("unix"):
        pytest.skip("redis-py has a cache for sync clients over TCP only")
    client = guard_client(connect(protocol=3, cache_config=redis.cache.CacheConfig()), dependency)
    other = guard_client(connect(), dependency)
    with mock.patch.object(redis.connection.CacheProxyConnection, "DEFAULT_SERVER_NAME", "another"):
        for _ in range(3):
            error = raises(redis.ConnectionError, lambda: client.get("a"))
            assert not isinstance(error, DependencyUnhealthy)
    report = dependency.status()
    assert (report.breaker, report.failures, report.state) == (BreakerState.CLOSED, 0, HealthState.DEGRADED)
    assert report.cause == "no client-side caching there"
    other.get("a")
    assert dependency.state is HealthState.HEALTHY


@pytest.mark.parametrize("protocol", [2, 3])
def test_probe_asks_for_no_news_of_the_servers_maintenance(
    side: Side, proxy: FaultProxy, dependency: Dependency, keep: Callable[[Any], Any], protocol: int
) -> None:
    """It is the application's pool that acts on them; over a unix socket redis-py 7 raises when it asks."""
    seen: list[dict[str, Any]] = []
    socket = "UnixDomainSocketConnection" if proxy.url().startswith("unix") else "Connection"
    home = side.pick(redis.connection, redis.asyncio.connection)

    class Recorded(getattr(home, socket)):  # type: ignore[misc]  # one of four
        def __init__(self, **settings: Any) -> None:
            seen.append(settings)
            super().__init__(**settings)

    where = {"path" if name == "unix_socket_path" else name: value for name, value in address(proxy).items()}
    pool = home.ConnectionPool(connection_class=Recorded, protocol=protocol, **where)
    guard_client(keep(side.pick(redis.Redis, redis.asyncio.Redis)(connection_pool=pool)), dependency)
    probe: Any = dependency._probe
    side.do(probe)
    assert [name for name in seen[-1] if name.startswith("maint")] == []


def _wrong_type(client: Any) -> Any:
    return client.lpush("text", "x")


def _data_error(client: Any) -> Any:
    return client.set("a", {"a": "mapping"})


def _no_script(client: Any) -> Any:
    return client.evalsha("0" * 40, 0)


def _syntax(client: Any) -> Any:
    return client.execute_command("SET", "a")


def _unknown(client: Any) -> Any:
    return client.execute_command("NO-SUCH-COMMAND")


def _not_a_number(client: Any) -> Any:
    return client.incr("text")


MISTAKES: dict[str, tuple[Callable[[Any], Any], type[Exception]]] = {
    "WRONGTYPE": (_wrong_type, redis.ResponseError),
    "DataError": (_data_error, redis.DataError),
    "NOSCRIPT": (_no_script, exceptions.NoScriptError),
    "syntax": (_syntax, redis.ResponseError),
    "unknown command": (_unknown, redis.ResponseError),
    "not a number": (_not_a_number, redis.ResponseError),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_application_error_is_no_failure_and_no_miss(
    side: Side, client: Any, dependency: Dependency, health: Safehold, mistake: str
) -> None:
    """What the server answered about one command, or redis-py about its arguments, is an answer."""
    call, kind = MISTAKES[mistake]
    side.do(client.set, "text", "words")
    with health.scope("work") as scope:
        for _ in range(5):
            error = raises(kind, lambda: side.do(call, client))
            assert not isinstance(error, DependencyUnhealthy)
        assert not scope.tainted
    report = dependency.status()
    assert (report.failures, report.state) == (0, HealthState.HEALTHY)


def test_mistake_in_a_pipeline_is_no_failure_either(
    side: Side, client: Any, dependency: Dependency, health: Safehold
) -> None:
    """A pipeline's error speaks of one of its commands."""
    side.do(client.set, "text", "words")
    with health.scope("work") as scope:
        for _ in range(3):
            pipeline = client.pipeline()
            pipeline.get("text")
            pipeline.lpush("text", "x")
            raises(redis.ResponseError, lambda: side.do(pipeline.execute))  # noqa: B023 - called here
        assert not scope.tainted
    assert dependency.status().failures == 0


def test_reply_that_is_no_text_is_an_answer(
    side: Side, connect: Callable[..., Any], dependency: Dependency
) -> None:
    """What `decode_responses` cannot decode came from a server that is well."""
    client = guard_client(connect(decode_responses=True), dependency)
    side.do(client.set, "bytes", b"\xff\xfe")
    for _ in range(3):
        raises(UnicodeDecodeError, lambda: side.do(client.get, "bytes"))
    assert dependency.status().failures == 0


TROUBLE: dict[str, tuple[Exception, Outcome, bool]] = {
    "refused": (redis.ConnectionError("Error 111 connecting"), Outcome.FAILURE, True),
    "time-out": (redis.TimeoutError("Timeout reading from socket"), Outcome.FAILURE, True),
    "garbage": (exceptions.InvalidResponse("Protocol Error"), Outcome.FAILURE, True),
    "loading": (redis.BusyLoadingError("Redis is loading"), Outcome.FAILURE, True),
    "read only": (redis.ReadOnlyError("You can't write"), Outcome.SUCCESS, True),
    "out of memory": (exceptions.OutOfMemoryError("command not allowed"), Outcome.SUCCESS, True),
    "cluster down": (exceptions.ClusterDownError("CLUSTERDOWN"), Outcome.FAILURE, True),
    "master down": (exceptions.MasterDownError("Link with MASTER is down"), Outcome.FAILURE, True),
    "busy": (redis.ResponseError("BUSY Redis is busy running a script."), Outcome.FAILURE, True),
    "misconf": (redis.ResponseError("MISCONF Errors writing to the AOF file"), Outcome.SUCCESS, True),
    "no replicas": (redis.ResponseError("NOREPLICAS Not enough good replicas"), Outcome.SUCCESS, True),
    "misconf in a pipeline": (
        redis.ResponseError("Command # 1 (SET a 1) of pipeline caused error: MISCONF Errors writing"),
        Outcome.SUCCESS,
        True,
    ),
    "pool full": (exceptions.MaxConnectionsError("Too many connections"), Outcome.IGNORED, True),
    "pool busy": (redis.ConnectionError("No connection available."), Outcome.IGNORED, True),
    "wrong type": (redis.ResponseError("WRONGTYPE Operation against"), Outcome.IGNORED, False),
    "no permission": (exceptions.NoPermissionError("this user has no permissions"), Outcome.IGNORED, True),
    "lost race": (redis.WatchError("Watched variable changed."), Outcome.IGNORED, False),
    "lock": (exceptions.LockNotOwnedError("Cannot release"), Outcome.IGNORED, False),
    "bad data": (redis.DataError("Invalid input"), Outcome.IGNORED, False),
    "pub/sub misuse": (redis.PubSubError("not subscribed"), Outcome.IGNORED, False),
    "not text": (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), Outcome.IGNORED, False),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_meaning_of_each_error(name: str) -> None:
    """Transport and a server that cannot serve count; one command's own fate does not."""
    error, outcome, missed = TROUBLE[name]
    assert judge(error, classify)[:2] == (outcome, missed)


def test_watch_error_in_disguise_is_a_failure() -> None:
    """Redis-py says "watch error" also when the line broke while watching."""
    with pytest.raises(redis.WatchError) as caught:
        try:
            raise redis.ConnectionError("Connection closed by server.")
        except redis.ConnectionError:
            raise redis.WatchError("A ConnectionError occurred while watching one or more keys") from None
    assert judge(caught.value, classify).outcome is Outcome.FAILURE


def test_server_without_memory_refuses_writes_only(
    redis_binary: str, side: Side, health: Safehold, keep: Callable[[Any], Any]
) -> None:
    """A real OOM concerns the write facet: reads go on and prove nothing about it, a write ends it."""
    dependency = health.dependency("redis", policy=POLICY)
    with RedisServer(binary=redis_binary, args=("--maxmemory", "1")) as server:
        make = side.pick(redis.Redis, redis.asyncio.Redis)
        client = guard_client(keep(make(unix_socket_path=server.path)), dependency)
        for _ in range(10):
            raises(exceptions.OutOfMemoryError, lambda: side.do(client.set, "a", "1"))
            assert side.do(client.get, "a") is None
        status = dependency.status()
        assert (status.failures, status.breaker, status.state) == (0, "closed", "degraded")
        assert status.impaired == {"write": "out of memory"}
        assert not status.unresolved_miss
        side.do(client.config_set, "maxmemory", "0")
        side.do(client.set, "a", "1")
        assert (dependency.state, dependency.status().impaired) == ("healthy", {})


@pytest.mark.parametrize("blocking", [False, True])
def test_full_pool_is_no_failure_and_a_miss(
    side: Side, proxy: FaultProxy, dependency: Dependency, health: Safehold, blocking: bool
) -> None:
    """A pool without a free connection says nothing about the server, but the call was not answered."""
    home = side.pick(redis, redis.asyncio)
    options: dict[str, Any] = {"max_connections": 1, **address(proxy)}
    if "unix_socket_path" in options:
        options["path"] = options.pop("unix_socket_path")
        options["connection_class"] = home.UnixDomainSocketConnection
    if blocking:
        pool = home.BlockingConnectionPool(timeout=0.05, **options)
    else:
        pool = home.ConnectionPool(**options)
    client = guard_client(home.Redis(connection_pool=pool), dependency)
    side.do(client.get, "a")
    taken = side.do(pool.get_connection)
    with health.scope("work") as scope:
        for _ in range(3):
            raises(redis.ConnectionError, lambda: side.do(client.get, "a"))
        assert scope.tainted
    report = dependency.status()
    assert (report.failures, report.state) == (0, HealthState.DEGRADED)
    side.do(pool.release, taken)
    side.do(client.get, "a")
    assert dependency.state is HealthState.HEALTHY
    side.do(pool.disconnect)


BLOCKING: dict[str, Callable[[Any], Any]] = {
    "BLPOP": lambda client: client.blpop("queue", 5),
    "BLPOP for ever": lambda client: client.blpop("queue", 0),
    "BRPOP": lambda client: client.brpop(["queue", "other"], 5),
    "BLMOVE": lambda client: client.blmove("queue", "other", 5),
    "BZPOPMIN": lambda client: client.bzpopmin("zset", 5),
    "XREAD": lambda client: client.xread({"stream": "$"}, block=5000),
}


@pytest.mark.parametrize("command", BLOCKING)
def test_wait_that_outlives_the_socket_timeout_is_no_failure(
    side: Side, client: Any, dependency: Dependency, health: Safehold, command: str
) -> None:
    """An idle queue is no outage: a blocking command that waits longer than its socket was not answered."""
    side.do(client.get, "a")
    with health.scope("work") as scope:
        raises(redis.TimeoutError, lambda: side.do(BLOCKING[command], client))
        assert scope.tainted
    assert dependency.status().failures == 0
    assert dependency.state is HealthState.DEGRADED


def test_wait_that_ends_before_the_socket_timeout_is_judged_like_any_call(
    side: Side, connect: Callable[..., Any], dependency: Dependency, proxy: FaultProxy
) -> None:
    """The server would have answered in time: that it did not, counts. Its own "nothing came" is an answer."""
    client = guard_client(connect(), dependency)
    assert side.do(client.blpop, "queue", 0.05) is None
    assert dependency.state is HealthState.HEALTHY
    proxy.hang()
    raises(redis.TimeoutError, lambda: side.do(client.blpop, "queue", 0.05))
    assert dependency.status().failures == 1


# --- cancellation -------------------------------------------------------------------------------------


async def under_way(proxy: FaultProxy) -> None:
    """Wait until a command is sent and waits for its reply."""
    await proxy.await_for("data", timeout=PATIENCE)
    for _ in range(10):  # Python 3.11 loses a cancellation that comes in the moment in which a send ends
        await asyncio.sleep(0)


@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_cancelled_command_decides_nothing_and_is_a_miss(
    proxy: FaultProxy, dependency: Dependency, health: Safehold, how: str
) -> None:
    """A cancelled command did not answer: no failure, but its scope is tainted. Its connection comes back."""
    async with redis.asyncio.Redis(**address(proxy)) as client:
        guard_client(client, dependency)
        await client.set("a", "1")
        with health.scope("work") as scope:
            proxy.hang()
            if how == "timeout":
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.get("a")
            else:
                task = asyncio.create_task(client.get("a"))
                await under_way(proxy)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert scope.tainted
        report = dependency.status()
        assert (report.failures, report.state) == (0, HealthState.DEGRADED)
        proxy.clear()
        assert await client.get("a") == b"1"
        assert dependency.state is HealthState.HEALTHY
        await client.connection_pool.disconnect()


async def test_cancelled_trial_gives_its_permit_back(
    proxy: FaultProxy, dependency: Dependency, health: Safehold, clock: ManualClock
) -> None:
    """In half-open, a cancelled command frees the trial for the next caller."""
    async with redis.asyncio.Redis(**address(proxy)) as client:
        guard_client(client, dependency)
        await client.set("a", "1")
        dependency.trip()
        clock.advance(COOLDOWN)
        proxy.hang()
        task = asyncio.create_task(client.get("a"))
        await under_way(proxy)
        with pytest.raises(RedisUnhealthy, match="recovering"):
            await client.get("a")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        proxy.clear()
        assert await client.get("a") == b"1"
        assert dependency.breaker is BreakerState.CLOSED
        await client.connection_pool.disconnect()


# --- pipelines and transactions -----------------------------------------------------------------------


def test_pipeline_is_one_call_and_stays_a_pipeline(
    side: Side, client: Any, dependency: Dependency, health: Safehold
) -> None:
    """What a guarded client gives birth to is guarded, of its own kind, and counts once for all it sends."""
    for transaction in (True, False):
        pipeline = client.pipeline(transaction=transaction)
        assert type(pipeline).__name__ == "Pipeline"
        assert isinstance(pipeline, side.pick(redis.client.Pipeline, redis.asyncio.client.Pipeline))
        pipeline.set("a", "1")
        pipeline.incr("a")
        pipeline.get("a")
        assert side.do(pipeline.execute) == [True, 2, b"2"]
    assert dependency.status().successes == 2


@pytest.mark.parametrize("fault", ["hang", "reset", "cut in mid reply"])
def test_pipeline_that_fails_counts_once(
    side: Side, client: Any, dependency: Dependency, proxy: FaultProxy, health: Safehold, fault: str
) -> None:
    """Half a reply of a pipeline is no reply: one failure, and a tainted scope."""
    inject, kind = FAULTS[fault]
    side.do(client.set, "a", "1")
    with health.scope("work") as scope:
        pipeline = client.pipeline()
        pipeline.get("a")
        pipeline.get("a")
        inject(proxy)
        assert type(raises(kind, lambda: side.do(pipeline.execute))) is kind
        assert scope.tainted
    assert dependency.status().failures == 1


def test_watched_transaction(side: Side, client: Any, dependency: Dependency) -> None:
    """WATCH, MULTI and EXEC work through the guard; a race that was lost is no failure."""
    side.do(client.set, "a", "1")

    def sync_body() -> None:
        with client.pipeline() as pipeline:
            pipeline.watch("a")
            value = int(pipeline.get("a"))
            client.set("a", "10")  # somebody else
            pipeline.multi()
            pipeline.set("a", value + 1)
            pipeline.execute()

    async def async_body() -> None:
        async with client.pipeline() as pipeline:
            await pipeline.watch("a")
            value = int(await pipeline.get("a"))
            await client.set("a", "10")
            pipeline.multi()
            pipeline.set("a", value + 1)
            await pipeline.execute()

    raises(redis.WatchError, lambda: side.do(side.pick(sync_body, async_body)))
    assert dependency.status().failures == 0
    assert dependency.state is HealthState.HEALTHY

    def add(pipeline: Any) -> None:
        pipeline.multi()
        pipeline.incr("a")

    async def aadd(pipeline: Any) -> None:
        add(pipeline)

    assert side.do(client.transaction, side.pick(add, aadd), "a") == [11]


def test_line_that_breaks_while_watching_counts(
    side: Side, client: Any, dependency: Dependency, proxy: FaultProxy
) -> None:
    """Whatever redis-py calls it: the dependency did not answer."""
    side.do(client.set, "a", "1")

    def sync_body() -> None:
        with client.pipeline() as pipeline:
            pipeline.watch("a")
            proxy.reset()
            pipeline.get("a")

    async def async_body() -> None:
        async with client.pipeline() as pipeline:
            await pipeline.watch("a")
            proxy.reset()
            await pipeline.get("a")

    raises(redis.RedisError, lambda: side.do(side.pick(sync_body, async_body)))
    assert 1 <= dependency.status().failures <= 2  # redis-py may try to take the watch back
    assert dependency.status().unresolved_miss


# --- the default probe --------------------------------------------------------------------------------


def test_probe_has_a_connection_of_its_own_and_leaves_nothing_open(
    side: Side,
    connect: Callable[..., Any],
    dependency: Dependency,
    proxy: FaultProxy,
    watch: Watch,
) -> None:
    """The probe takes nothing from the client's pool, and its connection ends with it."""
    client = guard_client(connect(max_connections=1), dependency)
    taken = side.do(client.connection_pool.get_connection)
    before = proxy.connections
    mark = last(proxy)
    assert watch.probe(dependency) is HealthState.HEALTHY
    assert len(since(proxy, mark, "accept")) == 1
    proxy.wait_for("closed", after=mark, timeout=PATIENCE)
    assert [c.number for c in proxy.connections] == [c.number for c in before]
    side.do(client.connection_pool.release, taken)


@pytest.mark.parametrize(
    "options",
    [
        {"decode_responses": True},
        {"db": 3},
        {"protocol": 2},
        {"protocol": 3},
        {"decode_responses": True, "protocol": 2, "db": 1},
        {"client_name": "somebody"},
        {"health_check_interval": 1},
        {"encoding": "latin-1"},
    ],
    ids=str,
)
def test_probe_speaks_as_its_client_does(
    side: Side, connect: Callable[..., Any], dependency: Dependency, watch: Watch, options: dict[str, Any]
) -> None:
    """Whatever the client was told about the connection holds for the probe's as well."""
    client = guard_client(connect(**options), dependency)
    assert watch.probe(dependency) is HealthState.HEALTHY
    side.do(client.ping)


@pytest.mark.parametrize(
    ("word", "state"), [("secret ü", HealthState.HEALTHY), ("wrong", HealthState.DEGRADED)]
)
def test_probe_logs_in_as_its_client_does(
    side: Side,
    redis_binary: str,
    dependency: Dependency,
    watch: Watch,
    keep: Callable[[Any], Any],
    word: str,
    state: HealthState,
) -> None:
    """With the client's password the probe is let in; with a wrong one it is no better than its client."""
    with RedisServer(password="secret ü", binary=redis_binary) as server:
        kind = side.pick(redis.Redis, redis.asyncio.Redis)
        guard_client(keep(kind(unix_socket_path=server.path, password=word)), dependency)
        assert watch.probe(dependency) is state


def _bulk(text: str) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text.encode())


REPLIES: dict[str, tuple[Callable[[list[str]], bytes], HealthState]] = {
    "the nonce": (lambda words: _bulk(words[-1]), HealthState.HEALTHY),
    "a stale nonce": (lambda words: _bulk("0123456789abcdef"), HealthState.DEGRADED),
    "pong": (lambda words: b"+PONG\r\n", HealthState.DEGRADED),
    "ok": (lambda words: b"+OK\r\n", HealthState.DEGRADED),
    "nothing": (lambda words: b"$-1\r\n", HealthState.DEGRADED),
    "empty": (lambda words: b"$0\r\n\r\n", HealthState.DEGRADED),
    "a number": (lambda words: b":1\r\n", HealthState.DEGRADED),
    "half": (lambda words: _bulk(words[-1][:8]), HealthState.DEGRADED),
    "loading": (lambda words: b"-LOADING Redis is loading the dataset in memory\r\n", HealthState.DEGRADED),
    "error": (lambda words: b"-ERR no\r\n", HealthState.DEGRADED),
    "web": (lambda words: b"HTTP/1.1 400 Bad Request\r\n\r\n", HealthState.DEGRADED),
    "silence": (lambda words: b"", HealthState.DEGRADED),
}


@pytest.mark.parametrize("reply", REPLIES)
def test_only_the_nonce_is_an_answer(
    side: Side, dependency: Dependency, watch: Watch, keep: Callable[[Any], Any], reply: str
) -> None:
    """A reply to somebody else's question, however friendly, does not make a dependency healthy."""
    answer, state = REPLIES[reply]
    with scripted(answer) as server:
        kind = side.pick(redis.Redis, redis.asyncio.Redis)
        guard_client(keep(kind(port=server.port, protocol=2, socket_timeout=TIMEOUT)), dependency)
        assert watch.probe(dependency) is state
        assert len([words for words in server.heard if words[0] == "ECHO"]) == 1  # it does not try again


def test_nonce_is_another_one_each_time(
    side: Side, health: Safehold, watch: Watch, keep: Callable[[Any], Any]
) -> None:
    """Yesterday's answer is no answer."""
    with scripted(lambda words: _bulk(words[-1])) as server:
        kind = side.pick(redis.Redis, redis.asyncio.Redis)
        for name in "ab":
            guard_client(keep(kind(port=server.port, protocol=2)), health.dependency(name))
            assert watch.probe(health[name]) is HealthState.HEALTHY
        first, second = (words for words in server.heard if words[0] == "ECHO")
        assert first != second


def test_probe_of_the_users_goes_before_the_default_one(
    side: Side, connect: Callable[..., Any], health: Safehold, proxy: FaultProxy, watch: Watch
) -> None:
    """A declared probe stays; guarding a client brings its own only where there is none."""
    asked: list[str] = []
    dependency = health.dependency("redis", probe=lambda: asked.append("asked"))
    guard_client(connect(), dependency)
    mark = last(proxy)
    assert watch.probe(dependency) is HealthState.HEALTHY
    assert asked == ["asked"]
    assert since(proxy, mark, "accept") == []


async def test_recovery_in_a_loop(
    proxy: FaultProxy, dependency: Dependency, health: Safehold, clock: ManualClock
) -> None:
    """`async with health.running()` brings an asyncio client back without a call and without a thread."""
    async with redis.asyncio.Redis(**address(proxy), socket_timeout=TIMEOUT) as client, health.running():
        guard_client(client, dependency)
        await client.get("a")
        dependency.trip()
        closed = asyncio.Event()

        def look(event: object) -> None:
            if isinstance(event, Transition) and event.breaker is BreakerState.CLOSED:
                closed.set()

        with health.subscribe(look):
            clock.advance(COOLDOWN)
            async with asyncio.timeout(PATIENCE):
                await closed.wait()
        await client.get("a")


# --- what is left behind ------------------------------------------------------------------------------


def test_two_hundred_faulted_calls_leave_nothing_open(
    side: Side, connect: Callable[..., Any], proxy: FaultProxy, health: Safehold
) -> None:
    """Neither a connection nor a descriptor is lost, whatever ends the calls."""
    dependency = health.dependency("redis", policy=BreakerPolicy(failures=None, failure_rate=None))
    client = guard_client(connect(), dependency)
    pool = client.connection_pool
    side.do(client.set, "a", "1")
    side.do(pool.disconnect)
    wait_for_quiet(proxy)
    gc.collect()
    before = descriptors()
    injections = [
        lambda: proxy.reset(),
        lambda: proxy.cut(after=2),
        lambda: proxy.half_close(),
        lambda: proxy.drop_reply(how="close"),
        lambda: proxy.refuse(),
    ]
    for index in range(200):
        injections[index % len(injections)]()
        with contextlib.suppress(redis.RedisError):
            side.do(client.get, "a")
        if index % 3 == 0:
            proxy.clear()
            assert side.do(client.get, "a") == b"1"
    assert dependency.status().failures == 200
    assert not pool._in_use_connections
    proxy.clear()
    side.do(pool.disconnect)
    wait_for_quiet(proxy)
    gc.collect()
    assert descriptors() <= before


def test_failed_probes_leave_nothing_open(
    side: Side,
    client: Any,
    dependency: Dependency,
    proxy: FaultProxy,
    health: Safehold,
    clock: ManualClock,
    watch: Watch,
) -> None:
    """Each probe closes what it opened, also when it fails."""
    make_open(side, client, dependency, proxy)
    side.do(client.connection_pool.disconnect)
    proxy.clear()
    wait_for_quiet(proxy)
    before = descriptors()
    proxy.cut(after=1)
    health.start()
    for _ in range(20):
        generation = dependency.status().generation
        clock.advance(COOLDOWN)
        watch.until(lambda: dependency.status().generation == generation + 2)  # noqa: B023 - waited for here
    health.stop()
    wait_for_quiet(proxy)
    gc.collect()
    assert descriptors() <= before


# --- several clients ----------------------------------------------------------------------------------


def test_clients_of_one_dependency_share_what_they_learn(
    side: Side, connect: Callable[..., Any], dependency: Dependency, proxy: FaultProxy
) -> None:
    """Failures of two clients add up, and the breaker refuses both; so does a success resolve for both."""
    first, second = guard_client(connect(), dependency), guard_client(connect(), dependency)
    side.do(first.get, "a")
    with proxy.reset():
        raises(redis.ConnectionError, lambda: side.do(first.get, "a"))
        assert dependency.state is HealthState.DEGRADED
    side.do(second.get, "a")
    assert dependency.state is HealthState.HEALTHY
    with proxy.reset():
        for client in (first, second):
            raises(redis.ConnectionError, lambda: side.do(client.get, "a"))  # noqa: B023 - called here
    for client in (first, second):
        raises(RedisUnhealthy, lambda: side.do(client.get, "a"))  # noqa: B023 - called here


# --- from the swallowed time-out to the session that lives on -----------------------------------------


@pytest.mark.parametrize("scoped", [False, True])
@pytest.mark.parametrize("fault", ["hang", "refuse", "reset", "reply lost, closed"])
def test_first_swallowed_failure_stops_the_reaper_and_a_clean_look_lets_it_run(
    side: Side,
    connect: Callable[..., Any],
    proxy: FaultProxy,
    health: Safehold,
    clock: ManualClock,
    fault: str,
    scoped: bool,
) -> None:
    """`except: return False` makes a session look gone. The very first time, nothing is destroyed."""
    dependency = health.dependency("redis", critical=True)
    client = guard_client(connect(), dependency)
    reaped: list[str] = []
    reap = health.destructive("session.reap", subject="session")(lambda session: reaped.append(session))
    side.do(client.set, "session:1", "alive")

    def sweep() -> None:
        with health.scope("sweep") if scoped else contextlib.nullcontext():
            for session in ("1", "2"):
                if not swallowed(lambda: side.do(client.exists, f"session:{session}")):  # noqa: B023 - here
                    reap(session)

    with FAULTS[fault][0](proxy):
        blocked: Any = raises(OperationBlocked, sweep)
    assert reaped == []
    assert not isinstance(blocked, OSError | TimeoutError | redis.RedisError)
    assert {reason.dependency for reason in blocked.reasons} == {"redis"}
    assert dependency.breaker is BreakerState.CLOSED  # one failure and one probe: far from a trip
    for thread in threading.enumerate():
        if thread.name == "safehold-probe-redis":
            thread.join(PATIENCE)
    if not scoped:
        side.do(client.get, "a")
        clock.advance(60.0)
    else:
        assert side.do(client.exists, "session:1")
    sweep()
    assert reaped == ["2"]
