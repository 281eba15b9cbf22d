"""What type checkers have to make of the library: read by mypy and pyright, never run.

`assert_type` fails the check when a type is not exactly this one. The errors that have to be found stand
beside an ignore, and mypy complains about an ignore that is not needed.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from datetime import datetime
from typing import Any, Generic, TypeVar, assert_type, overload

import aiohttp
import httpx
import httpx2
import redis
import redis.asyncio
import requests

from safehold import (
    Backoff,
    BreakerPolicy,
    BreakerState,
    CountWindow,
    Dependency,
    DependencyReport,
    DependencyUnhealthy,
    Evidence,
    GatePolicy,
    HealthReport,
    HealthState,
    Limiter,
    LimiterReport,
    Operation,
    OperationBlocked,
    Pace,
    PaceReport,
    Permit,
    Presence,
    ProbePolicy,
    Reason,
    Refused,
    Safehold,
    Scope,
    Subscription,
    Subsystem,
    SubsystemState,
    SubsystemSubscription,
    Tick,
    TimeWindow,
    Verdict,
    combine,
    health,
)
from safehold.callsites import aiohttp as guarded_aiohttp
from safehold.callsites import httpx as guarded_httpx
from safehold.callsites import httpx2 as guarded_httpx2
from safehold.callsites import redis as guarded_redis
from safehold.callsites import requests as guarded_requests
from safehold.errors import Refusal
from safehold.testing.clock import ManualClock

T = TypeVar("T")


class Session:
    """A thing to fetch."""


# --- what is declared ---------------------------------------------------------------------------------

dependency = health.dependency(
    "redis",
    critical=True,
    policy=BreakerPolicy(failures=3, window=CountWindow(10), min_calls=5, cooldown=Backoff(first=2.0)),
    classify=(ConnectionError, TimeoutError),
    probe=lambda: None,
    probe_policy=ProbePolicy(timeout=0.5),
)
assert_type(health, Safehold)
assert_type(dependency, Dependency)
assert_type(health["api"], Dependency)
assert_type(list(health), list[Dependency])
assert_type(dependency.state, HealthState)
assert_type(dependency.breaker, BreakerState)
assert_type(dependency.retry_after, float | None)
assert_type(dependency.since, datetime)
assert_type(dependency.status(), DependencyReport)
assert_type(health.status(), HealthReport)
assert_type(health.status().dependencies["redis"].retry_after, float | None)
assert_type(health.check("reap"), Verdict)
assert_type(health.check("reap", subject="s1").reasons, tuple[Reason, ...])
assert_type(health.operations, tuple[Operation, ...])
assert_type(health.subscribe(print), Subscription)
assert_type(health.scope("sweep"), Scope)
own = Safehold("own", clock=ManualClock(), gate=GatePolicy(startup_grace=0.0))
own.dependency("rated", policy=BreakerPolicy(failure_rate=0.2, window=TimeWindow(10.0)))


async def probe() -> bool:
    """Look at it."""
    return True


own.dependency("probed", probe=probe)


# --- guarded functions keep their types ---------------------------------------------------------------


@health.guard("api")
def plain(name: str, *, limit: int = 10) -> Session:
    """Fetch."""
    return Session()


@dependency.guard
async def coroutine(name: str, /, *rest: int) -> list[Session]:
    """Fetch many."""
    return []


@dependency.guard(long=True)
def generator(size: int) -> Generator[bytes, str, int]:
    """Send and receive."""
    yield b""
    return size


@health.guard("api", long=True)
async def async_generator(size: int) -> AsyncGenerator[bytes, str]:
    """Send and receive."""
    yield b""


@health.guard("api")
def iterator() -> Iterator[int]:
    """Give one after the other."""
    yield 1


@health.guard("api")
async def async_iterator() -> AsyncIterator[int]:
    """Give one after the other."""
    yield 1


@health.guard("api")
def generic(value: T) -> list[T]:
    """Give it back."""
    return [value]


@overload
def overloaded(value: int) -> int: ...
@overload
def overloaded(value: str) -> str: ...
@health.guard("api")
def overloaded(value: int | str) -> int | str:
    """Give it back."""
    return value


class Client(Generic[T]):
    """Every kind of method."""

    @health.guard("api")
    def method(self, key: str) -> T | None:
        """Get."""
        return None

    @health.guard("api")
    async def async_method(self, key: str) -> T | None:
        """Get."""
        return None

    @classmethod
    @health.guard("api")
    def make(cls, url: str) -> Client[T]:
        """Make one."""
        return cls()

    @staticmethod
    @health.guard("api")
    def parse(text: str) -> dict[str, int]:
        """Parse."""
        return {}

    @property
    @health.guard("api")
    def size(self) -> int:
        """Count."""
        return 0


async def use_guarded(client: Client[bytes]) -> None:
    """Call each of them."""
    assert_type(plain("a", limit=1), Session)
    assert_type(await coroutine("a", 1, 2), list[Session])
    assert_type(generator(1), Generator[bytes, str, int])
    assert_type(async_generator(1), AsyncGenerator[bytes, str])
    assert_type(iterator(), Iterator[int])
    assert_type(async_iterator(), AsyncIterator[int])
    assert_type(generic(1.5), list[float])
    assert_type(overloaded(1), int)
    assert_type(overloaded("a"), str)
    assert_type(client.method("k"), bytes | None)
    assert_type(await client.async_method("k"), bytes | None)
    assert_type(Client[int].make("u"), Client[int])
    assert_type(Client.parse("t"), dict[str, int])
    assert_type(client.size, int)
    assert_type(dependency.guard(len)("abc"), int)
    caller: Callable[[str], Session] = plain
    waiter: Callable[[str], Awaitable[list[Session]]] = coroutine
    caller("a")
    await waiter("a")
    plain(1)  # type: ignore[arg-type]  # the parameter is a str
    plain("a", 1)  # type: ignore[call-arg]  # keyword only
    plain("a", limits=1)  # type: ignore[call-arg]  # no such parameter
    await coroutine(name="a")  # type: ignore[call-arg]  # positional only
    client.method()  # type: ignore[call-arg]  # needs a key


# --- gated functions keep their types -----------------------------------------------------------------


@health.destructive("plain", subject="session", requires=["redis"], tolerates=["api"])
def reap(session: str, *, force: bool = False) -> int:
    """Destroy."""
    return 1


@health.destructive("coroutine", trigger="requested")
async def terminate(session: str) -> Session:
    """Destroy."""
    return Session()


@health.destructive("generator")
def reap_all() -> Generator[str, None, int]:
    """Destroy one after the other."""
    yield ""
    return 1


@health.destructive("async generator", requires=())
async def terminate_all() -> AsyncIterator[str]:
    """Destroy one after the other."""
    yield ""


class Store:
    """Gated methods."""

    @health.destructive("method", subject="key")
    def delete(self, key: str) -> bool:
        """Destroy."""
        return True

    @health.destructive("async method")
    async def adelete(self, key: str) -> bool:
        """Destroy."""
        return True

    @classmethod
    @health.destructive("class method")
    def drop(cls) -> Store:
        """Destroy."""
        return cls()


async def use_gated(store: Store) -> None:
    """Call each of them."""
    assert_type(reap("s1", force=True), int)
    assert_type(await terminate("s1"), Session)
    assert_type(reap_all(), Generator[str, None, int])
    assert_type(terminate_all(), AsyncIterator[str])
    assert_type(store.delete("k"), bool)
    assert_type(await store.adelete("k"), bool)
    assert_type(Store.drop(), Store)
    assert_type(health.carry(plain)("a"), Session)
    reap(1)  # type: ignore[arg-type]  # the parameter is a str
    store.delete()  # type: ignore[call-arg]  # needs a key


# --- blocks -------------------------------------------------------------------------------------------


async def use_blocks() -> None:
    """Enter what can be entered."""
    with dependency.permit() as permit:
        assert_type(permit, Permit)
        permit.succeed()
    with dependency.permit(long=True) as permit:
        permit.fail(ValueError())
    with health.scope("sweep") as scope:
        assert_type(scope, Scope)
        assert_type(scope.tainted, bool)
        assert_type(dict(scope.taints), dict[str, str])
    with health.running() as running:
        assert_type(running, Safehold)
    async with health.running() as running:
        assert_type(running, Safehold)
    with health.subscribe(print) as subscription:
        assert_type(subscription, Subscription)


def a_block_goes_on_after_a_permit() -> int:
    """A permit swallows no exception, so no checker thinks that the code behind it can be reached."""
    with dependency.permit():
        return 1


# --- errors -------------------------------------------------------------------------------------------


def use_errors() -> None:
    """Read what they carry."""
    try:
        reap("s1")
    except OperationBlocked as blocked:
        assert_type(blocked.reasons, tuple[Reason, ...])
        assert_type(blocked.operation, str)
        assert_type(blocked.subject, str | None)
    except DependencyUnhealthy as refused:
        assert_type(refused.retry_after, float | None)
        assert_type(refused.state, HealthState)
        assert_type(refused.since, datetime | None)
        assert_type(refused.to_payload(), Refusal)
    assert_type(Refused.from_payload("{}"), Refused)


# --- clients ------------------------------------------------------------------------------------------


class OwnSession(requests.Session):
    """A subclass stays what it is."""


class OwnRedis(redis.Redis):
    """A client of the user's own."""


async def use_clients(cluster: redis.RedisCluster, acluster: redis.asyncio.RedisCluster) -> None:
    """Guarded clients keep their type."""
    assert_type(guarded_redis.guard_client(redis.Redis(), dependency), redis.Redis)
    assert_type(guarded_redis.guard_client(OwnRedis(), dependency), OwnRedis)
    assert_type(guarded_redis.guard_client(redis.asyncio.Redis(), dependency), redis.asyncio.Redis)
    assert_type(guarded_httpx.guard_client(httpx.Client(), dependency), httpx.Client)
    assert_type(guarded_httpx.guard_client(httpx.AsyncClient(), dependency), httpx.AsyncClient)
    assert_type(guarded_httpx2.guard_client(httpx2.Client(), dependency, deadline=1.0), httpx2.Client)
    assert_type(guarded_httpx2.unguard_client(httpx2.AsyncClient()), httpx2.AsyncClient)
    assert_type(guarded_requests.guard_session(OwnSession(), dependency, base_url="http://api"), OwnSession)
    assert_type(guarded_requests.unguard_session(requests.Session()), requests.Session)
    assert_type(guarded_aiohttp.guard_session(aiohttp.ClientSession(), dependency), aiohttp.ClientSession)
    assert_type(guarded_aiohttp.unguard_session(aiohttp.ClientSession()), aiohttp.ClientSession)
    assert_type(guarded_redis.guard_client(cluster, dependency), redis.RedisCluster)
    assert_type(guarded_redis.guard_client(acluster, dependency), redis.asyncio.RedisCluster)
    assert_type(guarded_redis.unguard_client(OwnRedis()), OwnRedis)
    assert_type(guarded_redis.guarding(cluster), guarded_redis.ClientGuard | None)
    guarded_redis.guard_client(cluster, dependency, destructive="maybe")  # type: ignore[arg-type]  # no such mode
    guarded_redis.guard_client("redis://", dependency)  # type: ignore[type-var]  # no client
    guarded_httpx.guard_client(redis.Redis(), dependency)  # type: ignore[type-var]  # another one's client
    guarded_httpx2.guard_client(httpx.Client(), dependency)  # type: ignore[type-var]  # another one's client
    guarded_requests.guard_session(httpx2.Client(), dependency)  # type: ignore[type-var]  # no session
    guarded_aiohttp.guard_session(requests.Session(), dependency)  # type: ignore[type-var]  # another one's session
    try:
        pass
    except guarded_redis.RedisUnhealthy as refused:
        both: tuple[redis.ConnectionError, DependencyUnhealthy] = (refused, refused)
        del both
    except guarded_httpx.HttpxUnhealthy as refused_too:
        pair: tuple[httpx.TransportError, DependencyUnhealthy] = (refused_too, refused_too)
        del pair
    except guarded_aiohttp.AiohttpUnhealthy as refused_as_well:
        twin: tuple[aiohttp.ClientConnectionError, DependencyUnhealthy] = (refused_as_well, refused_as_well)
        del twin


# --- what cannot work is told -------------------------------------------------------------------------


def mistakes() -> None:
    """Be told at once."""
    health.dependency("a", critical="yes")  # type: ignore[arg-type]  # a bool
    health.dependency("a", policy={"failures": 3})  # type: ignore[arg-type]  # a BreakerPolicy
    health.dependency("a", probes=None)  # type: ignore[call-arg]  # no such parameter
    health.guard(len)  # type: ignore[arg-type]  # a name
    dependency.permit("long")  # type: ignore[call-arg, arg-type]  # keyword only
    value: Any = dependency.guard(3)  # type: ignore[call-overload]  # not callable
    del value


# --- witnesses ----------------------------------------------------------------------------------------


@health.witness("tmux")
def exists(name: str, *, deep: bool = False) -> bool:
    """A plain function."""
    return deep


@health.witness("tmux", subject="name")
async def aexists(name: str) -> bool:
    """A coroutine function."""
    return bool(name)


async def use_witnesses() -> None:
    """Witnesses give evidence, and keep their parameters."""
    assert_type(exists("a", deep=True), Evidence)
    assert_type(await aexists("a"), Evidence)
    assert_type(combine([exists("a")]).presence, Presence)
    exists(3)  # type: ignore[arg-type]  # a name


# --- loops, limiters and subsystems -------------------------------------------------------------------

limiter = health.limiter("redis", 10)


@limiter
def limited(name: str) -> int:
    return len(name)


@limiter
async def alimited(name: str) -> int:
    return len(name)


@health.pace("redis")
def paced(tick: Tick) -> None: ...


@health.pace("redis")
async def apaced() -> None: ...


async def use_loops() -> None:
    assert_type(limiter, Limiter)
    assert_type(limited("a"), int)
    assert_type(await alimited("a"), int)
    limited(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with limiter as entered:
        assert_type(entered, Limiter)
    async with limiter as aentered:
        assert_type(aentered, Limiter)
    assert_type(limiter.report(), LimiterReport)
    pace = health.pace("redis", "api", every=1)
    assert_type(pace, Pace)
    for tick in pace:
        assert_type(tick, Tick)
    async for atick in pace:
        assert_type(atick.interval, float | None)
    assert_type(paced(threading.Event()), None)
    assert_type(await apaced(), None)
    await apaced(threading.Event())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(paced.pace.report(), PaceReport)
    assert_type(apaced.pace, Pace)
    subsystem = health.subsystem("refresh", on=["redis"], states={HealthState.UNKNOWN: "full"})
    assert_type(subsystem, Subsystem)
    assert_type(subsystem.state, SubsystemState)
    assert_type(subsystem.subscribe(print), SubsystemSubscription)
