"""A guarded httpx client counts what did not answer, to the last byte of the body, and refuses in kind."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import httpx2
import pytest

from safehold import (
    Backoff,
    BreakerPolicy,
    BreakerState,
    ConfigurationError,
    Dependency,
    DependencyUnhealthy,
    HealthState,
    OperationBlocked,
    Outcome,
    Safehold,
)
from safehold._runtime.classify import judge
from safehold.callsites import httpx as on_httpx
from safehold.callsites import httpx2 as on_httpx2
from safehold.testing.clock import ManualClock
from safehold.testing.proxy import FaultProxy, Injection
from safehold.testing.servers import ApiServer

from .clients import TLS
from .support import (
    COOLDOWN,
    PATIENCE,
    POLICY,
    Side,
    Watch,
    descriptors,
    last,
    raises,
    since,
    swallowed,
    wait_for_quiet,
)

# httpcore leaves a socket that could not be connected to the garbage collector
pytestmark = pytest.mark.filterwarnings(
    r"ignore:unclosed <socket\.socket fd=\d+, family=1, type=1, proto=0>:ResourceWarning"
)


class Lib(NamedTuple):
    """httpx or httpx2, and its call site: what holds for one holds for the other."""

    http: Any
    site: Any
    refusal: Any

    @property
    def guard_client(self) -> Any:
        return self.site.guard_client


LIBS = {
    "httpx": Lib(httpx, on_httpx, on_httpx.HttpxUnhealthy),
    "httpx2": Lib(httpx2, on_httpx2, on_httpx2.Httpx2Unhealthy),
}


@pytest.fixture(params=LIBS)
def lib(request: pytest.FixtureRequest) -> Lib:
    return LIBS[request.param]


TIMEOUT = 0.15  # what hangs, hangs for so long
NEVER = BreakerPolicy(failures=None, failure_rate=None)
BIG = b"x" * 300_000
STALE = {"reply lost, closed"}  # of a kept connection, and nobody could see it before: excused once in a row
STATUSES = (200, 204, 304, 404, 429, 500, 501, 503, 505)  # all of them: test_taxonomy_http.py


@pytest.fixture(scope="module", autouse=True)
def nothing_for_others() -> Iterator[None]:
    """Collect those sockets before tests of other modules are blamed for them."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs holds no probe up for as long as it would."""
    monkeypatch.setattr("safehold.callsites._httpx_like.PROBE_TIMEOUT", TIMEOUT)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    routes: dict[str, Any] = {f"GET /{status}": lambda _, s=status: (s, {"status": s}) for status in STATUSES}
    routes |= {
        "GET /": lambda _: (200, {}),
        "GET /x": lambda _: (200, {"a": 1}),
        "HEAD /x": lambda _: (200, {"a": 1}),
        "POST /x": lambda request: (201, request.body),
        "GET /big": lambda _: (200, BIG),
        "GET /empty": lambda _: (200, b""),
        "GET /health": lambda _: (200, {}),
        "GET /sick": lambda _: (503, {}),
        "GET /sessions/{id}": lambda request: (200 if request.params["id"] == "1" else 404, {}),
    }
    with ApiServer(routes) as api:
        yield api


@pytest.fixture
def proxy(api: ApiServer) -> Iterator[FaultProxy]:
    with FaultProxy(upstream=f"unix:{api.path}") as proxy:
        yield proxy


@pytest.fixture
def keep(side: Side) -> Iterator[Callable[[Any], Any]]:
    """Close clients after the test."""
    kept: list[Any] = []

    def keep(client: Any) -> Any:
        kept.append(client)
        return client

    yield keep
    for client in kept:
        side.do(client.aclose if side.is_async else client.close)


@pytest.fixture
def connect(lib: Lib, side: Side, proxy: FaultProxy, keep: Callable[[Any], Any]) -> Callable[..., Any]:
    """Make clients that speak over the proxy's socket."""

    def connect(**options: Any) -> Any:
        transport = side.pick(lib.http.HTTPTransport, lib.http.AsyncHTTPTransport)(
            uds=proxy.path, verify=TLS, limits=options.pop("limits", lib.http.Limits())
        )
        settings = {"base_url": "http://api", "timeout": TIMEOUT, "transport": transport, "trust_env": False}
        return keep(side.pick(lib.http.Client, lib.http.AsyncClient)(**{**settings, **options}))

    return connect


@pytest.fixture
def dependency(health: Safehold) -> Dependency:
    return health.dependency("api", critical=True, policy=POLICY)


@pytest.fixture
def client(lib: Lib, connect: Callable[..., Any], dependency: Dependency) -> Any:
    return lib.guard_client(connect(), dependency)


def make_open(dependency: Dependency) -> None:
    dependency.trip()
    assert dependency.breaker is BreakerState.OPEN


class Stream:
    """One streamed response, sync or asyncio."""

    def __init__(self, side: Side, client: Any, path: str) -> None:
        self._side = side
        self.response = side.do(client.send, client.build_request("GET", path), stream=True)
        parts = side.pick(self.response.iter_raw, self.response.aiter_raw)()
        self._next = parts.__next__ if side.name == "sync" else parts.__anext__

    def part(self) -> bytes:
        return self._side.do(self._next)

    def read(self) -> bytes:
        return self._side.do(self._side.pick(self.response.read, self.response.aread))

    def close(self) -> None:
        self._side.do(self._side.pick(self.response.close, self.response.aclose))


# --- the client that it was ---------------------------------------------------------------------------


def test_guarded_client_is_the_client_that_it_was(
    lib: Lib, side: Side, connect: Callable[..., Any], dependency: Dependency
) -> None:
    """The same object of the same class; every style of call works and counts as one."""
    plain = connect()
    client = lib.guard_client(plain, dependency)
    assert client is plain
    assert isinstance(client, side.pick(lib.http.Client, lib.http.AsyncClient))
    assert type(client).__name__ == side.pick("Client", "AsyncClient")
    assert side.do(client.get, "/x").json() == {"a": 1}
    assert side.do(client.post, "/x", json={"b": 2}).json() == {"b": 2}
    assert side.do(client.request, "GET", "/x").status_code == 200
    assert side.do(client.send, client.build_request("GET", "/x")).status_code == 200
    report = dependency.status()
    assert (report.state, report.successes, report.failures) == (HealthState.HEALTHY, 4, 0)


def test_guarding_twice_is_guarding_once(
    lib: Lib, side: Side, connect: Callable[..., Any], dependency: Dependency
) -> None:
    """A second guard changes nothing: one request is one success."""
    client = connect()
    lib.guard_client(lib.guard_client(client, dependency), dependency)
    side.do(client.get, "/x")
    assert dependency.status().successes == 1


def test_client_of_another_dependency_is_turned_away(
    lib: Lib, connect: Callable[..., Any], dependency: Dependency, health: Safehold, side: Side
) -> None:
    """One client stands for one dependency, as it is with Redis: a second name would never be judged."""
    client = lib.guard_client(connect(), dependency)
    with pytest.raises(ConfigurationError, match=r"api.*other"):
        lib.guard_client(client, health["other"])
    side.do(client.get, "/x")
    assert dependency.status().successes == 1


@pytest.mark.parametrize("thing", [None, "http://api", dict, pytest, 1.5], ids=repr)
def test_what_is_no_client_is_turned_away(lib: Lib, dependency: Dependency, thing: Any) -> None:
    """The mistake is told where it is made."""
    with pytest.raises(ConfigurationError, match="client"):
        lib.guard_client(thing, dependency)


def test_mounts_are_guarded_as_well(
    lib: Lib, side: Side, proxy: FaultProxy, dependency: Dependency, keep: Callable[[Any], Any]
) -> None:
    """A request that another transport of the client carries goes through the same breaker."""
    kind = side.pick(lib.http.HTTPTransport, lib.http.AsyncHTTPTransport)
    mounts = {"http://mounted": kind(uds=proxy.path, verify=TLS), "http://off": None}
    client = side.pick(lib.http.Client, lib.http.AsyncClient)(
        mounts=mounts, transport=kind(uds=proxy.path, verify=TLS), timeout=TIMEOUT, trust_env=False
    )
    lib.guard_client(keep(client), dependency)
    side.do(client.get, "http://mounted/x")
    side.do(client.get, "http://other/x")
    assert dependency.status().successes == 2
    make_open(dependency)
    for url in ("http://mounted/x", "http://other/x", "http://off/x"):
        raises(lib.refusal, lambda: side.do(client.get, url))  # noqa: B023 - called here


def test_closing_the_client_closes_what_is_inside(
    lib: Lib, side: Side, connect: Callable[..., Any], dependency: Dependency, proxy: FaultProxy
) -> None:
    """The guard passes the end on: no connection is left."""
    client = lib.guard_client(connect(), dependency)
    side.do(client.get, "/x")
    assert len(proxy.connections) == 1
    side.do(client.aclose if side.is_async else client.close)
    wait_for_quiet(proxy)


def test_client_as_a_context_manager(
    lib: Lib, side: Side, connect: Callable[..., Any], dependency: Dependency, proxy: FaultProxy
) -> None:
    """`with` opens and closes the transport inside."""
    client = lib.guard_client(connect(), dependency)

    def sync_body() -> int:
        with client:
            return client.get("/x").status_code

    async def async_body() -> int:
        async with client:
            return (await client.get("/x")).status_code

    assert side.do(side.pick(sync_body, async_body)) == 200
    wait_for_quiet(proxy)


@pytest.mark.parametrize("kind", ["mock", "application"])
def test_transports_without_a_network_are_guarded_too(
    lib: Lib, side: Side, dependency: Dependency, watch: Watch, keep: Callable[[Any], Any], kind: str
) -> None:
    """A mock or an application in the process is a dependency like another, and is its own default probe."""
    seen: list[str] = []
    transport: Any
    if kind == "mock":

        def handler(request: lib.http.Request) -> lib.http.Response:
            seen.append(request.url.path)
            return lib.http.Response(200, json={})

        transport = lib.http.MockTransport(handler)
    elif side.is_async:

        async def asgi(scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["path"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

        transport = lib.http.ASGITransport(asgi)
    else:

        def wsgi(environ: Any, start_response: Any) -> list[bytes]:
            seen.append(environ["PATH_INFO"])
            start_response("200 OK", [])
            return [b"{}"]

        transport = lib.http.WSGITransport(wsgi)
    kind_of = side.pick(lib.http.Client, lib.http.AsyncClient)
    client = lib.guard_client(
        keep(kind_of(transport=transport, base_url="http://app")), dependency, probe_path="/health"
    )
    assert watch.probe(dependency) is HealthState.HEALTHY
    assert seen == ["/health"]
    assert side.do(client.get, "/x").json() == {}
    assert seen == ["/health", "/x"]
    assert dependency.status().successes == 2


# --- refusals -----------------------------------------------------------------------------------------


def test_refusal_is_both_errors_and_never_reaches_the_wire(
    lib: Lib, side: Side, client: Any, dependency: Dependency, proxy: FaultProxy
) -> None:
    """While open, requests raise a `TransportError` that is a `DependencyUnhealthy`, and send nothing."""
    side.do(client.get, "/x")
    make_open(dependency)
    mark = last(proxy)
    error: Any = raises(lib.http.TransportError, lambda: side.do(client.get, "/x"))
    assert type(error) is lib.refusal
    assert isinstance(error, DependencyUnhealthy)
    assert isinstance(error, lib.http.HTTPError)
    assert (error.dependency, error.state) == ("api", HealthState.UNHEALTHY)
    assert (error.reason, error.retry_after) == ("breaker_open", COOLDOWN)
    assert error.request.url.path == "/x"
    assert since(proxy, mark) == []


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_refusal_can_be_copied_and_pickled(
    lib: Lib, side: Side, client: Any, dependency: Dependency, copied: Callable[[Any], Any]
) -> None:
    """A refusal crosses processes with everything that it says, and stays of both kinds."""
    make_open(dependency)
    error: Any = raises(lib.refusal, lambda: side.do(client.get, "/x"))
    twin = copied(error)
    assert type(twin) is lib.refusal
    for name in ("dependency", "state", "reason", "retry_after", "since", "cause"):
        assert getattr(twin, name) == getattr(error, name)
    assert str(twin) == str(error)
    assert twin.request.url == error.request.url


def test_refusal_made_by_hand_knows_no_request(lib: Lib) -> None:
    """As with httpx's own errors, asking for a request that is not known raises a `RuntimeError`."""
    with pytest.raises(RuntimeError):
        _ = lib.refusal("api").request


# --- faults -------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[Callable[[FaultProxy], Injection], tuple[str, ...]]] = {
    "refuse": (lambda p: p.refuse(), ("ConnectError",)),
    "stale socket": (lambda p: p.refuse(stale=True), ("ConnectError",)),
    "hang": (lambda p: p.hang(), ("ReadTimeout",)),
    "latency": (lambda p: p.latency(PATIENCE), ("ReadTimeout",)),
    "reset": (lambda p: p.reset(), ("ReadError", "WriteError", "ConnectError")),
    "cut in the head": (lambda p: p.cut(after=20), ("RemoteProtocolError",)),
    "cut at once": (
        lambda p: p.cut(after=0),
        ("RemoteProtocolError", "ReadError", "WriteError"),
    ),
    "cut in the body": (lambda p: p.cut(after=100_000), ("RemoteProtocolError",)),
    "reset in the body": (lambda p: p.cut(after=100_000, how="reset"), ("ReadError",)),
    "reply lost": (lambda p: p.drop_reply(), ("ReadTimeout",)),
    "reply lost, closed": (
        lambda p: p.drop_reply(how="close"),
        ("RemoteProtocolError", "ReadError"),
    ),
    "half-closed": (lambda p: p.half_close(), ("RemoteProtocolError",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_counted_once_and_passes_untouched_and_a_probe_finds_the_way_back(
    lib: Lib,
    side: Side,
    client: Any,
    dependency: Dependency,
    proxy: FaultProxy,
    health: Safehold,
    clock: ManualClock,
    watch: Watch,
    fault: str,
) -> None:
    """Whatever happens to the line: httpx's own error, counted, refused at the limit, back by a probe."""
    inject, kinds = FAULTS[fault]
    inject(proxy)
    for count, state in ((1, HealthState.DEGRADED), (2, HealthState.UNHEALTHY)):
        error = raises(lib.http.TransportError, lambda: side.do(client.get, "/big"))
        assert type(error).__name__ in kinds
        assert dependency.status().failures == count
        assert dependency.state is state
    mark = last(proxy)
    raises(lib.refusal, lambda: side.do(client.get, "/big"))
    assert since(proxy, mark, "accept") == []
    proxy.clear()
    health.start()
    clock.advance(COOLDOWN)
    watch.until_closed(dependency)
    assert side.do(client.get, "/big").content == BIG


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_on_a_pooled_connection_counts_once(
    lib: Lib, side: Side, connect: Callable[..., Any], health: Safehold, proxy: FaultProxy, fault: str
) -> None:
    """A kept connection that broke is one failure of one call, or is excused, and a miss of one scope."""
    dependency = health.dependency("api", policy=NEVER)
    client = lib.guard_client(connect(), dependency)
    side.do(client.get, "/x")
    FAULTS[fault][0](proxy)
    with health.scope("work") as scope:
        raises(lib.http.TransportError, lambda: side.do(client.get, "/big"))
        assert scope.tainted
    report = dependency.status()
    assert (report.failures, report.state) == (fault not in STALE, HealthState.DEGRADED)


@pytest.mark.parametrize("fault", ["refuse", "hang", "reset", "cut in the head"])
def test_probe_fails_as_long_as_the_fault_lasts(
    lib: Lib,
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
    make_open(dependency)
    FAULTS[fault][0](proxy)
    health.start()
    for _ in range(2):
        before = dependency.status().generation
        clock.advance(COOLDOWN)
        watch.until(lambda: dependency.status().generation == before + 2)  # noqa: B023 - waited for here
        assert dependency.breaker is BreakerState.OPEN
    raises(lib.refusal, lambda: side.do(client.get, "/x"))


def test_nobody_sleeps_before_an_attempt_that_is_not_made(
    lib: Lib, side: Side, keep: Callable[[Any], Any], dependency: Dependency, tmp_path: Path
) -> None:
    """The second attempt has opened the breaker, so the pause before the third one would be for nothing."""
    (tmp_path / "s").write_text("no socket")
    kind = side.pick(lib.http.HTTPTransport, lib.http.AsyncHTTPTransport)
    transport = kind(uds=str(tmp_path / "s"), verify=TLS, retries=9)
    client = side.pick(lib.http.Client, lib.http.AsyncClient)(transport=transport, trust_env=False)
    keep(lib.guard_client(client, dependency))
    pauses: list[float] = []

    async def asleep(seconds: float) -> None:
        pauses.append(seconds)

    transport._pool._network_backend.inner.sleep = side.pick(pauses.append, asleep)
    raises(lib.http.ConnectError, lambda: side.do(client.get, "http://api/x"))
    assert dependency.breaker is BreakerState.OPEN
    assert pauses == [0]


class Stall:
    """A server whose body stops in the middle and never goes on, over the guarded client's own socket."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._guests: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                guest, _ = self._listener.accept()
                self._guests.append(guest)
                guest.recv(65536)
                guest.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for part in (self._listener, *self._guests):
            part.close()


def test_body_that_stalls_after_200_counts(
    lib: Lib, side: Side, tmp_path: Any, dependency: Dependency, keep: Callable[[Any], Any], health: Safehold
) -> None:
    """A head is no answer: a body that stops half-way is a failed call."""
    path = str(tmp_path / "s")
    server = Stall(path)
    kind = side.pick(lib.http.HTTPTransport, lib.http.AsyncHTTPTransport)
    client = side.pick(lib.http.Client, lib.http.AsyncClient)(
        transport=kind(uds=path, verify=TLS), base_url="http://api", timeout=TIMEOUT
    )
    lib.guard_client(keep(client), dependency)
    with health.scope("work") as scope:
        raises(lib.http.ReadTimeout, lambda: side.do(client.get, "/"))
        assert scope.tainted
    assert dependency.status().failures == 1
    server.close()


# --- answers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", STATUSES)
def test_server_faults_count_and_every_response_arrives(
    side: Side, client: Any, dependency: Dependency, status: int
) -> None:
    """500, 502, 503 and 504 say that the server cannot serve; whatever it says, the caller reads it."""
    response = side.do(client.get, f"/{status}")
    assert response.status_code == status
    if status not in {204, 304}:
        assert response.json() == {"status": status}
    fault = status in {500, 502, 503, 504}
    report = dependency.status()
    assert report.failures == fault
    assert report.state is (HealthState.DEGRADED if fault or status == 429 else HealthState.HEALTHY)


def test_server_faults_trip_and_a_healthy_answer_recovers(
    lib: Lib, side: Side, client: Any, dependency: Dependency, clock: ManualClock
) -> None:
    """Two in a row open the breaker; after the cooldown an answer closes it."""
    for _ in range(2):
        assert side.do(client.get, "/503").status_code == 503
    raises(lib.refusal, lambda: side.do(client.get, "/x"))
    clock.advance(COOLDOWN)
    assert side.do(client.get, "/x").status_code == 200
    assert dependency.breaker is BreakerState.CLOSED


@pytest.mark.parametrize(
    ("method", "path"),
    [("HEAD", "/x"), ("HEAD", "/404"), ("GET", "/204"), ("GET", "/304"), ("GET", "/empty")],
)
def test_answer_without_a_body_is_complete_with_its_head(
    side: Side, client: Any, dependency: Dependency, health: Safehold, method: str, path: str
) -> None:
    """Nothing is waited for where nothing comes: also if the caller streams and never reads."""
    with health.scope("work") as scope:
        response = side.do(client.send, client.build_request(method, path), stream=True)
        assert dependency.status().successes == 1
        assert not health.check("nothing").remarks
        side.do(response.aclose if side.is_async else response.close)
        assert not scope.tainted
    assert dependency.state is HealthState.HEALTHY


def test_caller_mistakes_do_not_count(
    lib: Lib, side: Side, client: Any, dependency: Dependency, health: Safehold
) -> None:
    """A URL without a known scheme says nothing about the server."""
    with health.scope("work") as scope:
        for _ in range(3):
            raises(lib.http.UnsupportedProtocol, lambda: side.do(client.get, "ftp://api/x"))
            raises(lib.http.InvalidURL, lambda: side.do(client.get, "http://api:port/"))
        assert not scope.tainted
    assert dependency.status().failures == 0


MEANING: dict[str, tuple[str, Outcome, bool]] = {
    "refused": ("ConnectError", Outcome.FAILURE, True),
    "slow": ("ReadTimeout", Outcome.FAILURE, True),
    "garbage": ("RemoteProtocolError", Outcome.FAILURE, True),
    "proxy": ("ProxyError", Outcome.FAILURE, True),
    "pool full": ("PoolTimeout", Outcome.IGNORED, True),
    "scheme": ("UnsupportedProtocol", Outcome.IGNORED, False),
    "bad header": ("LocalProtocolError", Outcome.IGNORED, False),
    "bad url": ("InvalidURL", Outcome.IGNORED, False),
    "read twice": ("StreamConsumed", Outcome.IGNORED, False),
}


@pytest.mark.parametrize("name", MEANING)
def test_meaning_of_each_error(lib: Lib, name: str) -> None:
    """Transport failures count, the caller's own mistakes do not, and a full pool is a miss."""
    error, outcome, missed = MEANING[name]
    kind = getattr(lib.http, error)
    judgement = judge(kind() if error == "StreamConsumed" else kind("why"), lib.site.classify)
    assert (judgement.outcome, judgement.missed) == (outcome, missed)


def test_full_pool_is_no_failure_and_a_miss(
    lib: Lib, side: Side, connect: Callable[..., Any], dependency: Dependency, health: Safehold
) -> None:
    """A pool without a free connection says nothing about the server, but the call was not answered."""
    client = lib.guard_client(
        connect(limits=lib.http.Limits(max_connections=1), timeout=lib.http.Timeout(TIMEOUT, pool=0.05)),
        dependency,
    )
    held = Stream(side, client, "/big")
    with health.scope("work") as scope:
        raises(lib.http.PoolTimeout, lambda: side.do(client.get, "/x"))
        assert scope.tainted
    assert dependency.status().failures == 0
    assert dependency.status().unresolved_miss
    held.close()
    side.do(client.get, "/x")
    assert dependency.state is HealthState.HEALTHY


# --- streams ------------------------------------------------------------------------------------------


def test_stream_is_answered_when_it_was_read_to_its_end(
    side: Side, client: Any, dependency: Dependency, health: Safehold
) -> None:
    """Until the last byte the call is in flight; with it, it was answered."""
    health.destructive("reap", requires=["api"])(lambda: None)
    side.do(client.get, "/x")
    with health.scope("work") as scope:
        stream = Stream(side, client, "/big")
        assert dependency.status().successes == 1
        assert "call_in_flight" in {reason.code for reason in health.check("reap").reasons}
        assert stream.read() == BIG
        assert dependency.status().successes == 2
        stream.close()
        assert not scope.tainted
        assert health.check("reap")


def test_stream_that_was_closed_early_is_abandoned(
    side: Side, client: Any, dependency: Dependency, health: Safehold
) -> None:
    """Half a listing is no listing: closing early is no failure, but a miss."""
    side.do(client.get, "/x")
    with health.scope("work") as scope:
        stream = Stream(side, client, "/big")
        assert stream.part()
        stream.close()
        assert scope.tainted
    report = dependency.status()
    assert (report.failures, report.successes, report.state) == (0, 1, HealthState.DEGRADED)


def test_stream_that_breaks_half_way_counts(
    lib: Lib, side: Side, client: Any, dependency: Dependency, proxy: FaultProxy, health: Safehold
) -> None:
    """The part that arrived does not make up for the part that did not."""
    proxy.cut(after=100_000)
    with health.scope("work") as scope:
        stream = Stream(side, client, "/big")

        def read_on() -> None:
            while stream.part():
                pass

        raises(lib.http.RemoteProtocolError, read_on)
        assert scope.tainted
    assert dependency.status().failures == 1


def test_response_that_is_never_closed_holds_nobody_up(
    side: Side, client: Any, dependency: Dependency, health: Safehold
) -> None:
    """A stream that was dropped without a word is unfinished business of its scope only."""
    health.destructive("reap", requires=["api"])(lambda: None)
    with health.scope("work"):
        stream = Stream(side, client, "/big")
        assert "call_in_flight" in {reason.code for reason in health.check("reap").reasons}
    side.do(client.get, "/x")
    with health.scope("next"):
        assert health.check("reap")
    stream.close()


def test_response_that_came_complete_is_answered(
    lib: Lib, side: Side, dependency: Dependency, health: Safehold, keep: Callable[[Any], Any]
) -> None:
    """A transport that hands over a body already read (a mock, a cache) leaves no call in flight."""
    transport = lib.http.MockTransport(lambda _: lib.http.Response(200, json={"a": 1}))
    kind = side.pick(lib.http.Client, lib.http.AsyncClient)
    client = lib.guard_client(keep(kind(transport=transport, base_url="http://api")), dependency)
    health.destructive("reap", requires=["api"])(lambda: None)
    with health.scope("work") as scope:
        assert side.do(client.get, "/x").json() == {"a": 1}
        assert dependency.status().successes == 1
        assert not scope.tainted
        assert health.check("reap")


# --- trials -------------------------------------------------------------------------------------------


@pytest.fixture
def half_open(client: Any, dependency: Dependency, clock: ManualClock) -> Any:
    """The client, when its next request is the trial."""
    make_open(dependency)
    clock.advance(COOLDOWN)
    return client


def free_again(side: Side, client: Any, dependency: Dependency) -> None:
    assert side.do(client.get, "/x").status_code == 200
    assert dependency.breaker is BreakerState.CLOSED


def test_trial_that_was_read_closes_the_breaker(
    lib: Lib, side: Side, half_open: Any, dependency: Dependency
) -> None:
    """A complete answer is the proof."""
    stream = Stream(side, half_open, "/big")
    assert dependency.breaker is BreakerState.HALF_OPEN
    raises(lib.refusal, lambda: side.do(half_open.get, "/x"))  # one at a time
    assert stream.read() == BIG
    assert dependency.breaker is BreakerState.CLOSED


def test_trial_that_was_never_read_gives_its_permit_back(
    side: Side, half_open: Any, dependency: Dependency
) -> None:
    """A response that was closed unread decides nothing: the next request is the trial."""
    Stream(side, half_open, "/big").close()
    assert dependency.breaker is BreakerState.HALF_OPEN
    free_again(side, half_open, dependency)


def test_trial_that_was_left_half_read_gives_its_permit_back(
    side: Side, half_open: Any, dependency: Dependency
) -> None:
    """So does one that was closed in the middle."""
    stream = Stream(side, half_open, "/big")
    stream.part()
    stream.close()
    assert dependency.breaker is BreakerState.HALF_OPEN
    free_again(side, half_open, dependency)


@pytest.mark.parametrize("path", ["/500", "/503"])
def test_trial_with_a_server_fault_opens_again(
    side: Side, half_open: Any, dependency: Dependency, path: str
) -> None:
    """A server that says that it cannot serve has not recovered."""
    assert side.do(half_open.get, path).status_code >= 500
    assert dependency.breaker is BreakerState.OPEN


@pytest.mark.parametrize("fault", ["cut in the body", "reset", "hang"])
def test_trial_that_fails_opens_again(
    lib: Lib, side: Side, half_open: Any, dependency: Dependency, proxy: FaultProxy, fault: str
) -> None:
    """Half an answer has not closed it."""
    FAULTS[fault][0](proxy)
    raises(lib.http.TransportError, lambda: side.do(half_open.get, "/big"))
    assert dependency.breaker is BreakerState.OPEN


def test_trial_with_a_mistake_of_the_caller_gives_its_permit_back(
    lib: Lib, side: Side, half_open: Any, dependency: Dependency
) -> None:
    """A request that could not be sent decides nothing."""
    raises(lib.http.UnsupportedProtocol, lambda: side.do(half_open.get, "ftp://api/"))
    free_again(side, half_open, dependency)


def test_trial_without_a_body_closes_the_breaker(side: Side, half_open: Any, dependency: Dependency) -> None:
    """An answer that is only a head is an answer."""
    assert side.do(half_open.head, "/x").status_code == 200
    assert dependency.breaker is BreakerState.CLOSED


def test_trial_may_make_calls_of_its_own(
    lib: Lib, side: Side, connect: Callable[..., Any], dependency: Dependency, clock: ManualClock
) -> None:
    """Redirects and authentication send more requests inside one call; a permit each, none left behind."""

    class Login(lib.http.Auth):
        def auth_flow(self, request: lib.http.Request) -> Any:
            yield lib.http.Request("GET", "http://api/x")
            yield request

    client = lib.guard_client(connect(auth=Login()), dependency)
    make_open(dependency)
    clock.advance(COOLDOWN)
    assert side.do(client.get, "/x").status_code == 200
    assert dependency.breaker is BreakerState.CLOSED


# --- cancellation -------------------------------------------------------------------------------------


@pytest.fixture
def async_client(lib: Lib, proxy: FaultProxy, dependency: Dependency) -> lib.http.AsyncClient:
    client = lib.http.AsyncClient(
        transport=lib.http.AsyncHTTPTransport(uds=proxy.path, verify=TLS),
        base_url="http://api",
        timeout=PATIENCE,
    )
    return lib.guard_client(client, dependency)


@pytest.mark.parametrize("where", ["head", "body"])
@pytest.mark.parametrize("trial", [False, True])
async def test_cancelled_request_decides_nothing_and_is_a_miss(
    lib: Lib,
    async_client: lib.http.AsyncClient,
    proxy: FaultProxy,
    dependency: Dependency,
    health: Safehold,
    clock: ManualClock,
    where: str,
    trial: bool,
) -> None:
    """Cancelled in front of the head or in the body: no failure, a tainted scope, and the permit is back."""
    async with async_client as client:
        if trial:
            make_open(dependency)
            clock.advance(COOLDOWN)
        else:
            await client.get("/x")
        before = dependency.status().failures
        begun = asyncio.Event()

        async def call() -> None:
            async with client.stream("GET", "/big") as response:
                async for _ in response.aiter_raw():
                    begun.set()
                    await asyncio.Event().wait()

        with health.scope("work") as scope:
            if where == "head":
                proxy.hang("downstream")
            task = asyncio.create_task(call())
            if where == "head":
                await proxy.await_for("data", timeout=PATIENCE)
            else:
                async with asyncio.timeout(PATIENCE):
                    await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert scope.tainted
        assert dependency.status().failures == before
        proxy.clear()
        assert (await client.get("/x")).status_code == 200
        assert dependency.breaker is BreakerState.CLOSED


@pytest.mark.parametrize("trial", [False, True])
async def test_cancelled_at_any_await_leaves_nothing_behind(
    lib: Lib, async_client: Any, dependency: Dependency, health: Safehold, clock: ManualClock, trial: bool
) -> None:
    """Wherever the cancellation hits, no call stays in flight and the trial is free again."""
    async with async_client as client:

        async def call() -> None:
            async with client.stream("POST", "/x", json={"b": 2}) as response:
                await response.aread()

        await client.get("/x")
        for steps in range(1, 60):
            if trial:
                make_open(dependency)
                clock.advance(COOLDOWN)
            with health.scope("work") as scope:
                task = asyncio.create_task(call())
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                assert not scope.facts().in_flight
            assert dependency.status().failures == 0
        assert (await client.get("/x")).status_code == 200
        assert dependency.breaker is BreakerState.CLOSED


async def test_deadline_holds_for_an_application_in_the_process(lib: Lib, dependency: Dependency) -> None:
    """A transport without a network has no time-outs of its own: the deadline is one all the same."""

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    client = lib.http.AsyncClient(
        transport=lib.http.ASGITransport(asgi), base_url="http://app", trust_env=False
    )
    async with lib.guard_client(client, dependency, deadline=0.1):
        with pytest.raises(lib.http.ReadTimeout):
            await client.get("/")
    assert dependency.status().failures == 1


def test_deadline_holds_between_the_parts_of_a_body_without_a_network(
    lib: Lib, dependency: Dependency
) -> None:
    """A sync application cannot be interrupted, but it is not waited for any longer than for its next part."""

    def wsgi(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for _ in range(100):
            threading.Event().wait(0.03)
            yield b"part"

    client = lib.http.Client(transport=lib.http.WSGITransport(wsgi), base_url="http://app", trust_env=False)
    with lib.guard_client(client, dependency, deadline=0.1), pytest.raises(lib.http.ReadTimeout):
        client.get("/")
    assert dependency.status().failures == 1


async def test_cancellation_from_outside_goes_before_a_deadline(lib: Lib, dependency: Dependency) -> None:
    """A task that is cancelled is cancelled, deadline or not."""

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    client = lib.http.AsyncClient(
        transport=lib.http.ASGITransport(asgi), base_url="http://app", trust_env=False
    )
    async with lib.guard_client(client, dependency, deadline=PATIENCE):
        task = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert dependency.status().failures == 0
    assert dependency.status().unresolved_miss


def test_settings_of_the_request_are_left_as_they_were(
    lib: Lib, side: Side, connect: Callable[..., Any], dependency: Dependency
) -> None:
    """A request may be sent again: what the guard needs of it is taken back."""
    client = lib.guard_client(connect(), dependency, deadline=PATIENCE)
    request = client.build_request("POST", "/x", files={"f": b"1"})
    before = (request.stream, dict(request.extensions))
    side.do(client.send, request)
    assert (request.stream, request.extensions) == before


def test_client_that_was_used_before_is_guarded_on_the_connections_that_it_has(
    lib: Lib, side: Side, connect: Callable[..., Any], dependency: Dependency, proxy: FaultProxy
) -> None:
    """A deadline holds on a kept connection, too."""
    client = connect(timeout=PATIENCE)
    side.do(client.get, "/x")
    lib.guard_client(client, dependency, deadline=0.1)
    mark = last(proxy)
    with proxy.hang():
        raises(lib.http.ReadTimeout, lambda: side.do(client.get, "/x"))
    assert since(proxy, mark, "accept") == []


async def test_body_may_be_read_in_another_task(
    lib: Lib, async_client: lib.http.AsyncClient, dependency: Dependency, clock: ManualClock
) -> None:
    """A trial that one task sent and another one read is one trial, and leaves no context behind."""
    async with async_client as client:
        make_open(dependency)
        clock.advance(COOLDOWN)
        request = client.build_request("GET", "/big")
        response = await asyncio.create_task(client.send(request, stream=True))
        assert await asyncio.create_task(response.aread()) == BIG
        assert dependency.breaker is BreakerState.CLOSED


# --- the default probe --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/health", "/x", "/nowhere", "/404", "/204"])
def test_probe_takes_any_answer_below_500(
    lib: Lib,
    side: Side,
    connect: Callable[..., Any],
    dependency: Dependency,
    api: ApiServer,
    proxy: FaultProxy,
    watch: Watch,
    path: str,
) -> None:
    """The probe asks for `probe_path` on a connection of its own, which ends with it."""
    lib.guard_client(connect(), dependency, probe_path=path)
    mark = last(proxy)
    assert watch.probe(dependency) is HealthState.HEALTHY
    assert api.requests[f"GET {path}"] == 1
    assert len(since(proxy, mark, "accept")) == 1
    wait_for_quiet(proxy)


@pytest.mark.parametrize("path", ["/500", "/501", "/503", "/505"])
def test_probe_takes_no_answer_from_500_on(
    lib: Lib, connect: Callable[..., Any], dependency: Dependency, watch: Watch, path: str
) -> None:
    """A server that has an error to report is not well."""
    lib.guard_client(connect(), dependency, probe_path=path)
    assert watch.probe(dependency) is HealthState.DEGRADED


@pytest.mark.parametrize(
    ("base", "probe_path", "asked"),
    [
        ("http://api", "/health", "GET /health"),
        ("http://api/v1", "/health", "GET /health"),
        ("http://api/v1/", "health", "GET /v1/health"),
        ("", "/health", "GET /health"),
    ],
)
def test_probe_path_is_joined_to_the_base_url(
    lib: Lib,
    connect: Callable[..., Any],
    dependency: Dependency,
    api: ApiServer,
    watch: Watch,
    base: str,
    probe_path: str,
    asked: str,
) -> None:
    """A path with a slash in front is the server's, one without is the base URL's."""
    lib.guard_client(connect(base_url=base), dependency, probe_path=probe_path)
    assert watch.probe(dependency) is HealthState.HEALTHY
    assert api.requests[asked] == 1


def test_probe_over_tcp(
    lib: Lib, side: Side, health: Safehold, watch: Watch, keep: Callable[[Any], Any], dependency: Dependency
) -> None:
    """Over TCP it is the same probe."""
    with ApiServer(lambda _: (200, {}), listen="tcp") as api:
        lib.guard_client(keep(side.pick(lib.http.Client, lib.http.AsyncClient)(base_url=api.url)), dependency)
        assert watch.probe(dependency) is HealthState.HEALTHY
        assert api.requests["GET /"] == 1


def test_probe_of_the_users_goes_before_the_default_one(
    lib: Lib, connect: Callable[..., Any], health: Safehold, api: ApiServer, watch: Watch
) -> None:
    """A declared probe stays."""
    asked: list[str] = []
    dependency = health.dependency("api", probe=lambda: asked.append("asked"))
    lib.guard_client(connect(), dependency)
    assert watch.probe(dependency) is HealthState.HEALTHY
    assert asked == ["asked"]
    assert not api.requests


# --- what is left behind, and what all of it is for ---------------------------------------------------


def test_two_hundred_faulted_calls_leave_nothing_open(
    lib: Lib, side: Side, connect: Callable[..., Any], proxy: FaultProxy, health: Safehold
) -> None:
    """Neither a connection nor a descriptor is lost, whatever ends the calls."""
    dependency = health.dependency("api", policy=NEVER)
    client = lib.guard_client(connect(), dependency)
    side.do(client.get, "/x")
    gc.collect()
    before = descriptors()
    injections = [
        lambda: proxy.reset(),
        lambda: proxy.cut(after=30),
        lambda: proxy.half_close(),
        lambda: proxy.drop_reply(how="close"),
        lambda: proxy.refuse(),
    ]
    for index in range(200):
        injections[index % len(injections)]()
        with contextlib.suppress(lib.http.TransportError):
            side.do(client.get, "/x")
        if index % 3 == 0:
            proxy.clear()
            assert side.do(client.get, "/x").json() == {"a": 1}
    assert (
        180 <= dependency.status().failures <= 200
    )  # a kept connection that is lost is excused now and then
    proxy.clear()
    side.do(client.get, "/x")
    gc.collect()
    assert len(proxy.connections) <= 1
    assert descriptors() <= before + 1  # the pool's one connection may be held at both ends of the proxy


@pytest.mark.parametrize("fault", ["hang", "refuse", "reset", "cut in the head", "a server fault"])
def test_first_swallowed_failure_stops_the_reaper_and_a_clean_look_lets_it_run(
    lib: Lib,
    side: Side,
    connect: Callable[..., Any],
    proxy: FaultProxy,
    health: Safehold,
    fault: str,
) -> None:
    """`except: return False` makes a session look gone. The very first time, nothing is destroyed."""
    dependency = health.dependency("api", critical=True)
    client = lib.guard_client(connect(), dependency)
    reaped: list[str] = []
    reap = health.destructive("session.reap", subject="session")(lambda session: reaped.append(session))
    side.do(client.get, "/x")

    def exists(session: str) -> bool:
        path = "/503" if session == "1" and fault == "a server fault" and faulty else f"/sessions/{session}"
        return side.do(client.get, path).status_code == 200

    def sweep() -> None:
        with health.scope("sweep"):
            for session in ("1", "2"):
                if not swallowed(lambda: exists(session)):  # noqa: B023 - called here
                    reap(session)

    faulty = True
    with FAULTS[fault][0](proxy) if fault in FAULTS else contextlib.nullcontext():
        blocked: Any = raises(OperationBlocked, sweep)
    faulty = False
    assert reaped == []
    assert not isinstance(blocked, OSError | lib.http.HTTPError)
    for thread in threading.enumerate():
        if thread.name == "safehold-probe-api":
            thread.join(PATIENCE)
    assert side.do(client.get, "/x").status_code == 200
    assert dependency.policy.cooldown == Backoff()
    sweep()
    assert reaped == ["2"]
