"""Fixtures of the call sites' tests: servers that live for the whole session, a proxy for each test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from safehold import Dependency, GatePolicy, Safehold
from safehold.testing.clock import ManualClock
from safehold.testing.proxy import FaultProxy
from safehold.testing.servers import RedisServer

from .support import POLICY, Side, Watch


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def health(clock: ManualClock) -> Iterator[Safehold]:
    """A Safehold whose start-up grace is over, and whose cooldowns end when the test says so."""
    health = Safehold("test", clock=clock, gate=GatePolicy(startup_grace=0.0))
    yield health
    health.stop()


@pytest.fixture
def watch(health: Safehold) -> Watch:
    return Watch(health)


@pytest.fixture(params=["sync", "asyncio"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    side = Side(request.param)
    yield side
    side.close()


@pytest.fixture
def dependency(health: Safehold) -> Dependency:
    """Two failures in a row trip; 10 s cooldown."""
    return health.dependency("redis", critical=True, policy=POLICY)


@pytest.fixture(scope="session")
def redis_servers(redis_binary: str) -> Iterator[dict[str, RedisServer]]:
    with RedisServer(listen="tcp", binary=redis_binary) as tcp, RedisServer(binary=redis_binary) as unix:
        yield {"tcp": tcp, "unix": unix}


@pytest.fixture(params=["tcp", "unix"])
def redis_server(request: pytest.FixtureRequest, redis_servers: dict[str, RedisServer]) -> RedisServer:
    """A real server, emptied."""
    server = redis_servers[request.param]
    server.command("FLUSHALL")
    return server


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[FaultProxy]:
    """A proxy in front of it."""
    address: Any = redis_server.address
    with FaultProxy(f"unix:{address}" if isinstance(address, str) else address) as proxy:
        yield proxy
