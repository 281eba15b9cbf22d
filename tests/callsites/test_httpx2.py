"""What httpx2 has beyond httpx goes through the guard as well. All that they share is in test_httpx.py."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import httpx
import httpx2
import pytest

from safehold import BreakerPolicy, Dependency, DependencyUnhealthy, HealthState, Safehold
from safehold.callsites import httpx as on_httpx
from safehold.callsites.httpx2 import Httpx2Unhealthy, guard_client

from .clients import TLS
from .scripts import Guest, Scripted

EVENTS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n"
)


@pytest.fixture(scope="module", autouse=True)
def nothing_for_others() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def dependency(health: Safehold) -> Dependency:
    return health.dependency("api", policy=BreakerPolicy(failures=None, failure_rate=None))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Scripted]:
    def script(guest: Guest) -> bool:
        guest.say(EVENTS)
        return False  # it breaks off

    with Scripted(tmp_path / "s", script) as server:
        yield server


def client(server: Scripted) -> httpx2.Client:
    transport = httpx2.HTTPTransport(uds=str(server.where), verify=TLS)
    return httpx2.Client(transport=transport, base_url="http://api", trust_env=False)


def test_refusal_is_of_httpx2_and_not_of_httpx(server: Scripted, dependency: Dependency) -> None:
    """The two libraries have nothing in common, so neither have their refusals."""
    with guard_client(client(server), dependency) as guarded:
        dependency.trip()
        with pytest.raises(httpx2.TransportError) as caught:
            guarded.get("/")
    assert type(caught.value) is Httpx2Unhealthy
    assert isinstance(caught.value, DependencyUnhealthy)
    assert not isinstance(caught.value, httpx.HTTPError)
    assert not issubclass(on_httpx.HttpxUnhealthy, httpx2.HTTPError)


with_sse = pytest.mark.skipif(not hasattr(httpx2.Client, "sse"), reason="this version has no sse()")


@with_sse
def test_server_sent_events(server: Scripted, dependency: Dependency, health: Safehold) -> None:
    """Each event arrives; leaving the stream is no miss, and that it breaks off counts."""
    with guard_client(client(server), dependency) as guarded:
        with health.scope("work") as scope, guarded.sse("/") as source:
            assert next(iter(source)).data == "1"
        assert not scope.tainted
        assert dependency.state is HealthState.HEALTHY
        with pytest.raises(httpx2.RemoteProtocolError), guarded.sse("/") as source:
            assert [event.data for event in source] == ["1", "2"]
    assert dependency.status().failures == 1


@with_sse
def test_server_sent_events_in_asyncio(server: Scripted, dependency: Dependency) -> None:
    """The same, awaited."""
    transport = httpx2.AsyncHTTPTransport(uds=str(server.where), verify=TLS)

    async def main() -> None:
        made = httpx2.AsyncClient(transport=transport, base_url="http://api", trust_env=False)
        async with guard_client(made, dependency) as guarded, guarded.sse("/") as source:
            seen = []
            with pytest.raises(httpx2.RemoteProtocolError):
                async for event in source:
                    seen.append(event.data)
            assert seen == ["1", "2"]

    asyncio.run(main())
    assert dependency.status().failures == 1
