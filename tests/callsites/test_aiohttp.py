"""A guarded aiohttp session is judged as every HTTP client, by its attempts and to the last byte of the body."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import gc
import hashlib
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.http import WS_KEY

from safehold import (
    BreakerPolicy,
    BreakerState,
    ConfigurationError,
    Dependency,
    DependencyUnhealthy,
    Outcome,
    Safehold,
)
from safehold.callsites.aiohttp import (
    TABLE,
    AiohttpUnhealthy,
    ServerFaultError,
    classify,
    guard_session,
    unguard_session,
)
from safehold.testing.clock import ManualClock

from .scripts import Guest, Scripted
from .support import COOLDOWN, PATIENCE, Watch
from .test_http import NEVER, PROMPT, look, nothing_for_others, prompt  # noqa: F401 - fixtures


@pytest.fixture
def dependency(health: Safehold) -> Dependency:
    return health.dependency("api", critical=True, policy=NEVER)


# --- the session that it was --------------------------------------------------------------------------


@pytest.fixture
async def make(tmp_path: Path, dependency: Dependency) -> AsyncIterator[Callable[..., aiohttp.ClientSession]]:
    """Make guarded sessions that speak over a unix socket."""
    async with contextlib.AsyncExitStack() as stack:

        def make(of: Dependency = dependency, guard: Any = None, **options: Any) -> aiohttp.ClientSession:
            session = plain_session(tmp_path / "s", **options)
            stack.push_async_callback(session.close)
            return guard_session(session, of, **(guard or {}))

        yield make


def plain_session(where: Path, **options: Any) -> aiohttp.ClientSession:
    limits = aiohttp.ClientTimeout(sock_read=PATIENCE)
    settings = {"timeout": limits, "read_bufsize": 4096, "base_url": "http://api", **options}
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(where)), **settings)


def serve(tmp_path: Path, play: Callable[[Guest], Any] = lambda guest: guest.answer()) -> Scripted:
    return Scripted(tmp_path / "s", play)


def counts(dependency: Dependency) -> tuple[int, int, bool]:
    report = dependency.status()
    return report.successes, report.failures, report.unresolved_miss


async def test_guarded_session_is_the_session_that_it_was(
    tmp_path: Path, make: Any, dependency: Dependency
) -> None:
    """The same object, of a class of the same name; every style of call works and counts as one."""
    session = make()
    assert isinstance(session, aiohttp.ClientSession)
    assert repr(type(session)) == repr(aiohttp.ClientSession)

    def script(guest: Guest) -> None:
        if guest.heard.startswith(b"HEAD"):
            guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        else:
            guest.answer(body=b'{"a": 1}', Content_Type="application/json")

    with serve(tmp_path, script) as server:
        assert (await session.get("/")).status == 200
        async with session.post("/", json={"b": 2}) as response:
            assert type(response).__name__ == "ClientResponse"
            assert isinstance(response, aiohttp.ClientResponse)
            assert await response.json() == {"a": 1}
        async with session.request("put", "/", data=b"x") as response:
            assert await response.text() == '{"a": 1}'
        async with session.head("/") as response:
            assert response.headers["Content-Length"] == "8"
        assert counts(dependency) == (4, 0, False)
        assert [heard.split()[0] for heard in server.heard] == [b"GET", b"POST", b"PUT", b"HEAD"]


async def test_handshake_of_a_websocket_is_a_call(tmp_path: Path, make: Any, dependency: Dependency) -> None:
    """One that is answered otherwise is judged by its status; one that stands is not waited for."""

    def script(guest: Guest) -> None:
        if guest.path == "/no":
            guest.answer("503 No")
            return
        key = next(
            line for line in guest.heard.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
        )
        token = base64.b64encode(hashlib.sha1(key.split()[1] + WS_KEY).digest()).decode()
        guest.say(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
            + f"Sec-WebSocket-Accept: {token}\r\n\r\n".encode()
            + b"\x81\x02hi"
        )
        guest.hang()

    session = make()
    with serve(tmp_path, script):
        async with session.ws_connect("/") as socket:
            assert await socket.receive_str() == "hi"
            assert counts(dependency) == (1, 0, False)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await socket.close()
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await session.ws_connect("/no")
    assert counts(dependency) == (1, 1, True)


async def test_what_the_user_has_hooked_in_goes_on_working(
    tmp_path: Path, make: Any, dependency: Dependency
) -> None:
    """Middlewares of the session and of a request, trace configs, response classes, header defaults."""
    seen: list[str] = []

    def middleware(name: str) -> Any:
        async def named(request: aiohttp.ClientRequest, handler: Any) -> aiohttp.ClientResponse:
            seen.append(name)
            request.headers["X-Way"] = name
            return await handler(request)

        return named

    async def started(*_: Any) -> None:
        seen.append("trace")

    class Response(aiohttp.ClientResponse):
        def mine(self) -> int:
            return self.status

    traces = aiohttp.TraceConfig()
    traces.on_request_start.append(started)
    mine = [traces]
    session = make(
        middlewares=[middleware("a"), middleware("b")],
        trace_configs=mine,
        response_class=Response,
        headers={"X-Me": "1"},
    )
    with serve(tmp_path) as server:
        async with session.get("/") as response:
            assert isinstance(response, Response)
            assert response.mine() == 200
            assert await response.read() == b"ok"
        assert seen == ["trace", "a", "b"]
        async with session.get("/", middlewares=[middleware("c")]) as response:
            await response.read()
        assert seen[3:] == ["trace", "c"]
        assert b"X-Way: b\r\n" in server.heard[0]
        assert b"X-Me: 1\r\n" in server.heard[1]
    assert mine == [traces]
    assert counts(dependency) == (2, 0, False)


async def test_unguarded_session_has_nothing_left_of_it(
    tmp_path: Path, make: Any, dependency: Dependency
) -> None:
    """Class, trace configs and middlewares are what they were."""
    session = make()
    unguard_session(session)
    assert type(session) is aiohttp.ClientSession
    assert session.trace_configs == []
    assert "_safehold" not in vars(session)
    unguard_session(session)


@pytest.mark.parametrize("thing", [None, "http://api", aiohttp.ClientSession, aiohttp, 1.5], ids=repr)
def test_what_is_no_session_is_turned_away(dependency: Dependency, thing: Any) -> None:
    with pytest.raises(ConfigurationError, match="session"):
        guard_session(thing, dependency)


@pytest.mark.parametrize("value", [5, "api", "/x", b"http://api"])
async def test_base_url_that_is_none_is_turned_away(make: Any, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="base_url"):
        make(guard={"base_url": value})


async def test_session_of_another_dependency_is_turned_away(make: Any, health: Safehold) -> None:
    session = make()
    with pytest.raises(ConfigurationError, match=r"api.*other"):
        guard_session(session, health["other"])


def test_session_goes_when_nobody_holds_it(tmp_path: Path, dependency: Dependency) -> None:
    """The guard makes no cycle: a session is gone with its last reference."""

    async def gone() -> bool:
        session = guard_session(plain_session(tmp_path / "s"), dependency)
        await session.close()
        known = weakref.ref(session)
        del session
        return known() is None

    gc.disable()
    try:
        assert asyncio.run(gone())
    finally:
        gc.enable()


def test_it_is_quiet_in_development_mode(tmp_path: Path) -> None:
    """Neither the guard nor a call warns, where Python and aiohttp warn of everything."""
    code = """
import asyncio, aiohttp, sys
from safehold import Safehold
from safehold.callsites.aiohttp import guard_session, unguard_session
from safehold.testing.servers import ApiServer

async def main(path):
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
        guard_session(session, Safehold("x")["api"])
        async with session.get("http://api/") as response:
            print(await response.text())
        unguard_session(session)

with ApiServer({"GET /": lambda _: (200, {})}) as api:
    asyncio.run(main(api.path))
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("{}\n", "", 0)


# --- refusals -----------------------------------------------------------------------------------------


async def test_refusal_is_both_errors_and_comes_before_everything(
    tmp_path: Path, make: Any, dependency: Dependency
) -> None:
    """A `ClientConnectionError` that is a `DependencyUnhealthy`; no middleware of the user's retries it."""
    seen: list[Any] = []

    async def middleware(request: Any, handler: Any) -> Any:
        seen.append(request)
        return await handler(request)

    session = make(middlewares=[middleware])
    prompt_trip(dependency)
    with serve(tmp_path) as server:
        with pytest.raises(aiohttp.ClientConnectionError) as caught:
            await session.get("/")
        error: Any = caught.value
        assert type(error) is AiohttpUnhealthy
        assert isinstance(error, DependencyUnhealthy)
        assert (error.dependency, error.reason, error.outcome) == ("api", "breaker_open", "not_executed")
        assert server.accepted == 0
    assert seen == []
    for twin in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert (type(twin), str(twin), twin.retry_after) == (AiohttpUnhealthy, str(error), error.retry_after)


def prompt_trip(dependency: Dependency) -> None:
    dependency.trip()
    assert dependency.breaker is BreakerState.OPEN


# --- attempts -----------------------------------------------------------------------------------------


def dies_on_second(guest: Guest) -> bool | None:
    return False if guest.number > 1 else guest.answer()


async def test_silent_retry_of_a_kept_connection_is_no_miss(
    tmp_path: Path, make: Any, dependency: Dependency, health: Safehold
) -> None:
    """aiohttp asks again by itself, on a new connection: one call, one success, nothing else."""
    session = make()
    with serve(tmp_path, dies_on_second) as server, health.scope("work") as scope:
        for _ in range(3):
            async with session.get("/") as response:
                assert await response.read() == b"ok"
        assert server.accepted == 3
        assert not scope.tainted
    assert counts(dependency) == (3, 0, False)


async def test_kept_connection_of_what_is_not_sent_again_is_excused_once(
    tmp_path: Path, make: Any, dependency: Dependency
) -> None:
    """aiohttp sends no POST twice: that is a miss and no failure; the next one in a row is one."""
    session = make()

    async def post() -> Any:
        async with session.post("/", data=b"x") as response:
            return await response.read()

    both = threading.Barrier(2)

    def script(guest: Guest) -> bool | None:
        if guest.number > 1:
            return False
        both.wait(PATIENCE)
        return guest.answer()

    with serve(tmp_path, script):
        for response in await asyncio.gather(session.get("/"), session.get("/")):
            await response.read()
        for failures in (0, 1):
            with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
                await post()
            assert caught.value.outcome == "unknown"  # type: ignore[attr-defined]
            assert dependency.status().failures == failures


async def test_silent_retry_counts_as_an_attempt(tmp_path: Path, make: Any, dependency: Dependency) -> None:
    """A server that closes each new connection has failed twice when a GET has failed once."""
    session = make()
    with serve(tmp_path, lambda _: False) as server:
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await session.get("/")
        assert server.accepted == 2
    assert counts(dependency) == (0, 2, True)


async def test_attempt_that_was_made_good_is_no_miss(
    tmp_path: Path, make: Any, dependency: Dependency, health: Safehold
) -> None:
    """It counts for the trip rule, and the call was answered."""
    session = make()

    def script(guest: Guest) -> bool | None:
        return False if guest.server.accepted == 1 else guest.answer()

    with serve(tmp_path, script), health.scope("work") as scope:
        async with session.get("/") as response:
            assert await response.read() == b"ok"
        assert not scope.tainted
    assert counts(dependency) == (1, 1, False)


async def test_breaker_ends_the_silent_retry(tmp_path: Path, make: Any, health: Safehold) -> None:
    """An attempt that opens the breaker, or fails a trial, is the last one; its error is what is raised."""
    first = BreakerPolicy(failures=1, failure_rate=None, cooldown=PROMPT.cooldown)
    dependency = health.dependency("first", policy=first)
    session = make(dependency)
    clock: Any = health._engine.clock
    with serve(tmp_path, lambda _: False) as server:
        for accepted in (1, 2):
            with pytest.raises(aiohttp.ServerDisconnectedError) as caught:
                await session.get("/")
            assert caught.value.outcome == "unknown"  # type: ignore[attr-defined]
            assert server.accepted == accepted
            assert dependency.breaker is BreakerState.OPEN
            assert dependency.status().failures == accepted
            clock.advance(COOLDOWN)


async def test_kept_connection_that_was_closed_decides_no_trial(
    tmp_path: Path, make: Any, dependency: Dependency, clock: ManualClock
) -> None:
    """It is excused, the trial is given back, and the next call decides."""
    session = make()
    with serve(tmp_path, dies_on_second):
        await (await session.get("/")).read()
        dependency.trip()
        clock.advance(COOLDOWN)
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await session.get("/")
        assert dependency.breaker is BreakerState.HALF_OPEN
        await (await session.get("/")).read()
        assert dependency.breaker is BreakerState.CLOSED


async def test_redirected_trial_is_decided_by_its_first_answer(
    tmp_path: Path, make: Any, dependency: Dependency, clock: ManualClock
) -> None:
    """Each hop is a request of its own, and is let through once the first one was answered."""
    session = make()

    def script(guest: Guest) -> None:
        if guest.path == "/":
            guest.answer("302 Found", Location="/end", body=b"x" * 20_000)
        else:
            guest.answer()

    with serve(tmp_path, script):
        dependency.trip()
        clock.advance(COOLDOWN)
        async with session.get("/") as response:
            assert await response.read() == b"ok"
    assert counts(dependency)[1:] == (0, False)
    assert dependency.breaker is BreakerState.CLOSED


async def test_attempts_of_a_middleware_count_alike(
    tmp_path: Path, make: Any, dependency: Dependency
) -> None:
    """A middleware that asks again after a 503 has made two requests; the answer that it gives is judged, too."""

    async def insists(request: Any, handler: Any) -> Any:
        response = await handler(request)
        if response.status == 503:
            response.release()
            return await handler(request)
        return response

    session = make(middlewares=[insists])
    with serve(tmp_path, lambda g: g.answer("503 No" if len(g.server.heard) == 1 else "200 OK")):
        async with session.get("/") as response:
            assert response.status == 200
            await response.read()
    assert counts(dependency) == (1, 1, False)


async def test_who_asks_again_has_his_answer(
    tmp_path: Path, make: Any, dependency: Dependency, clock: ManualClock
) -> None:
    """A middleware that keeps a 401 unread and sends the request anew is not in its own way, as a trial."""

    async def authenticates(request: Any, handler: Any) -> Any:
        response = await handler(request)
        return response if response.status == 200 else (response, await handler(request))[1]

    session = make(middlewares=[authenticates])
    script: Any = lambda g: g.answer("401 Who" if len(g.server.heard) == 1 else "200 OK", body=b"x" * 300_000)  # noqa: E731
    with serve(tmp_path, script):
        dependency.trip()
        clock.advance(COOLDOWN)
        async with session.get("/") as response:
            assert response.status == 200
    assert dependency.breaker is BreakerState.CLOSED
    assert counts(dependency)[1:] == (0, False)


async def test_request_that_was_sent_once_is_unknown_whatever_follows(
    tmp_path: Path, make: Any, dependency: Dependency
) -> None:
    """The first attempt may have been executed, though the second one found nobody there."""
    session = make()

    def script(guest: Guest) -> bool:
        (tmp_path / "s").unlink()
        return False

    with serve(tmp_path, script):
        with pytest.raises(aiohttp.ClientConnectorError) as caught:
            await session.delete("/")
    assert caught.value.outcome == "unknown"  # type: ignore[attr-defined]
    assert "".join(caught.value.__notes__) == "safehold: outcome: unknown, the DELETE may have been executed"


async def test_middleware_that_answers_by_itself_asks_nothing(
    tmp_path: Path, make: Any, dependency: Dependency, health: Safehold
) -> None:
    """An answer from a cache says nothing, and leaves no call in flight; behind a failure, that counts."""
    kept: list[Any] = []

    async def caches(request: Any, handler: Any) -> Any:
        if not kept:
            kept.append(await handler(request))
        if request.url.path == "/fresh":
            with contextlib.suppress(aiohttp.ClientError):
                await handler(request)
        return kept[0]

    health.destructive("look", requires=["api"])(lambda: None)
    session = make(middlewares=[caches])
    with health.scope("work") as scope:
        with serve(tmp_path, lambda guest: guest.answer(Connection="close")):
            await (await session.get("/")).read()
        assert (await session.get("/")).status == 200
        assert not in_flight(health)
        assert counts(dependency) == (1, 0, False)
        assert (await session.post("/fresh")).status == 200
        assert not in_flight(health)
        assert scope.tainted
    assert counts(dependency) == (1, 1, True)


def in_flight(health: Safehold) -> bool:
    return any(reason.code == "call_in_flight" for reason in health.check("look").reasons)


async def test_middleware_that_reads_the_body_has_its_failures_judged(
    tmp_path: Path, make: Any, dependency: Dependency
) -> None:
    """A body that breaks before the response is handed over has broken all the same."""

    async def reads(request: Any, handler: Any) -> Any:
        response = await handler(request)
        await response.read()
        return response

    def script(guest: Guest) -> bool:
        guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        return False

    session = make(middlewares=[reads])
    with serve(tmp_path, script):
        with pytest.raises(aiohttp.ClientPayloadError) as caught:
            await session.get("/")
    assert caught.value.outcome == "executed"  # type: ignore[attr-defined]
    assert counts(dependency) == (0, 1, True)


@pytest.mark.parametrize(("status", "failures"), [("404 No", 0), ("503 No", 1), ("429 No", 0)])
async def test_raise_for_status_is_judged_by_the_answer(
    tmp_path: Path, make: Any, dependency: Dependency, status: str, failures: int
) -> None:
    """Asked for in the session, by the call or by the caller, inside a guarded function or not: once."""

    @dependency.guard
    async def outer(session: aiohttp.ClientSession, **options: Any) -> None:
        async with session.get("/", **options) as response:
            response.raise_for_status()

    with serve(tmp_path, lambda guest: guest.answer(status, body=b"x" * 20_000)):
        for options, settings in (
            ({}, {}),
            ({"raise_for_status": True}, {}),
            ({}, {"raise_for_status": True}),
        ):
            before = dependency.status().failures
            with pytest.raises(aiohttp.ClientResponseError):
                await outer(make(**settings), **options)
            assert dependency.status().failures == before + failures
    assert dependency.status().unresolved_miss is (status != "404 No")


async def test_not_http_is_no_answer_though_aiohttp_calls_it_400(
    tmp_path: Path, make: Any, dependency: Dependency
) -> None:
    """Nobody has said 400: it counts, in a guard around it as well as here, once."""

    def script(guest: Guest) -> bool:
        guest.say(b"no HTTP at all\r\n\r\n")
        return False

    session = make()

    @dependency.guard
    async def outer() -> None:
        await session.post("/")

    with serve(tmp_path, script):
        with pytest.raises(aiohttp.ClientResponseError) as caught:
            await outer()
    assert caught.value.status == 400
    assert counts(dependency) == (0, 1, True)
    assert classify(caught.value).outcome is Outcome.FAILURE


# --- bodies -------------------------------------------------------------------------------------------


async def everything(reading: Any) -> Any:
    return [part async for part in reading]


READS: dict[str, Callable[[aiohttp.ClientResponse], Any]] = {
    "read": lambda r: r.read(),
    "text": lambda r: r.text(),
    "json": lambda r: r.json(content_type=None),
    "content.read": lambda r: r.content.read(),
    "content.read(n)": lambda r: until_empty(lambda: r.content.read(100)),
    "content.readany": lambda r: until_empty(r.content.readany),
    "content.readexactly": lambda r: r.content.readexactly(90_000),
    "content.readline": lambda r: until_empty(r.content.readline),
    "content.readuntil": lambda r: until_empty(lambda: r.content.readuntil(b"\n")),
    "content.readchunk": lambda r: until_empty(lambda: first(r.content.readchunk())),
    "iter_chunked": lambda r: everything(r.content.iter_chunked(100)),
    "iter_any": lambda r: everything(r.content.iter_any()),
    "iter_chunks": lambda r: everything(r.content.iter_chunks()),
    "lines": lambda r: everything(r.content),
    "wait_eof": lambda r: r.content.wait_eof(),
}


async def until_empty(read: Any) -> bytes:
    whole = b""
    while part := await read():
        whole += part
    return whole


async def first(pair: Any) -> Any:
    return (await pair)[0]


LINES = b'"' + b"x" * 88 + b'"\n'


@pytest.mark.parametrize("how", READS)
@pytest.mark.parametrize("end", ["whole", "cut", "stalled"])
async def test_every_way_to_read_is_watched(
    tmp_path: Path, make: Any, dependency: Dependency, how: str, end: str
) -> None:
    """A body counts once it is whole; one that is cut short or stalls is one failure, with aiohttp's own error."""
    whole = b"[" + LINES + b"," + LINES + b"]\n" if end == "whole" else LINES

    def script(guest: Guest) -> bool | None:
        guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(whole) if end == "whole" else 1000))
        guest.say(whole)
        return guest.hang() if end == "stalled" else False

    session = make(timeout=aiohttp.ClientTimeout(sock_read=0.05 if end == "stalled" else PATIENCE))
    with serve(tmp_path, script):
        response = await session.get("/")
        if end == "whole" and how == "content.readexactly":
            await response.content.readexactly(len(whole))
        elif end == "whole":
            await READS[how](response)
        else:
            kind: Any = aiohttp.ClientPayloadError if end == "cut" else aiohttp.SocketTimeoutError
            with pytest.raises(kind) as caught:
                await READS[how](response)
            response.close()
            assert caught.value.outcome == "executed"
            assert dependency.status().cause == (
                "the body was cut short" if end == "cut" else "the body stalled"
            )
        await response.wait_for_close()
    assert counts(dependency) == ((1, 0, False) if end == "whole" else (0, 1, True))


async def test_content_is_aiohttps_reader(tmp_path: Path, make: Any) -> None:
    """It is a `StreamReader`, the same one each time, with all its attributes, and aiohttp can send it on."""
    session = make()
    with serve(
        tmp_path, lambda guest: guest.answer(body=guest.heard.partition(b"\r\n\r\n")[2] or b"x" * 9000)
    ):
        response = await session.get("/")
        content = response.content
        assert isinstance(content, aiohttp.StreamReader)
        assert response.content is content
        assert await content.readexactly(10) == b"x" * 10
        assert (content.at_eof(), content.exception()) == (False, None)
        assert content.total_bytes >= 10
        assert "StreamReader" in repr(content) or "Body" in repr(content)
        assert content.get_read_buffer_limits() == (4096, 8192)
        async with session.post("/", data=content) as other:
            assert b"x" * 100 in await other.read()
        assert content.at_eof()
        response.content = None  # type: ignore[assignment]
        assert response.content is None


async def test_multipart_is_read_through_the_watch(tmp_path: Path, make: Any, dependency: Dependency) -> None:
    """Readers that are made of the response go the same way."""
    body = b"--x\r\nContent-Type: text/plain\r\n\r\none\r\n--x--\r\n"
    session = make()
    with serve(tmp_path, lambda g: g.answer(body=body, Content_Type="multipart/mixed; boundary=x")):
        async with session.get("/") as response:
            reader = aiohttp.MultipartReader.from_response(response)
            part: Any = await reader.next()
            assert await part.text() == "one"
            assert await reader.next() is None
    assert counts(dependency) == (1, 0, False)


@pytest.mark.parametrize("way", ["context", "close", "release"])
async def test_head_is_enough_for_who_wants_no_more(
    tmp_path: Path, make: Any, dependency: Dependency, health: Safehold, way: str
) -> None:
    """A response that is closed before any of its body was asked for was answered by its head."""
    session = make()
    with serve(tmp_path, lambda guest: guest.answer(body=b"x" * 500_000)), health.scope("work") as scope:
        if way == "context":
            async with session.get("/") as response:
                assert response.status == 200
        else:
            getattr(await session.get("/"), way)()
        assert not scope.tainted
    assert counts(dependency) == (1, 0, False)


async def test_body_that_is_left_in_the_middle_is_a_miss(
    tmp_path: Path, make: Any, dependency: Dependency, health: Safehold
) -> None:
    """Who has begun to read and leaves does not know the rest."""
    session = make()
    with serve(tmp_path, lambda guest: guest.answer(body=b"x" * 500_000)), health.scope("work") as scope:
        async with session.get("/") as response:
            await response.content.readany()
        assert scope.tainted
    assert counts(dependency) == (0, 0, True)


async def test_body_that_broke_while_nobody_read_has_broken(
    tmp_path: Path, make: Any, dependency: Dependency
) -> None:
    """It is found out when the response is closed."""
    gone = threading.Event()

    def script(guest: Guest) -> bool:
        guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        gone.wait(PATIENCE)
        return False

    session = make()
    with serve(tmp_path, script):
        response = await session.get("/")
        broke = asyncio.get_running_loop().create_future()
        protocol: Any = response.connection and response.connection.protocol
        lost = protocol.connection_lost
        protocol.connection_lost = lambda error: (lost(error), broke.set_result(None))
        gone.set()
        await broke
        response.close()
    assert counts(dependency) == (0, 1, True)


async def test_content_alone_keeps_its_connection(tmp_path: Path, make: Any, dependency: Dependency) -> None:
    """Who keeps the reader and lets go of the response reads on, as with aiohttp itself."""
    session = make()
    with serve(tmp_path, lambda guest: guest.answer(body=b"x" * 300_000)):
        content = (await session.get("/")).content
        gc.collect()
        assert len(await content.read()) == 300_000
    assert counts(dependency) == (1, 0, False)


async def test_reading_what_was_closed_says_nothing(
    tmp_path: Path, make: Any, dependency: Dependency
) -> None:
    """It is the caller's mistake, and aiohttp's one error for it bears no marks of ours."""
    session = make()
    with serve(tmp_path, lambda guest: guest.answer(body=b"x" * 300_000)):
        response = await session.get("/")
        response.close()
        with pytest.raises(aiohttp.ClientConnectionError) as caught:
            await response.content.read()
    assert not hasattr(caught.value, "outcome")
    assert counts(dependency) == (1, 0, False)


async def test_line_that_is_too_long_is_the_callers(
    tmp_path: Path, make: Any, dependency: Dependency
) -> None:
    """What he does not want to hold says nothing about the server."""
    session = make()
    with serve(tmp_path, lambda guest: guest.answer(body=b"x" * 300_000)):
        async with session.get("/") as response:
            with pytest.raises(Exception, match=r"(?i)big|long|more than|400"):
                await response.content.readline()
    assert dependency.status().failures == 0


async def test_call_is_in_flight_until_its_body_is_there(
    tmp_path: Path, make: Any, dependency: Dependency, health: Safehold
) -> None:
    """The gate waits for the rest of an answer that was begun."""
    go = threading.Event()

    def script(guest: Guest) -> None:
        guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nha")
        go.wait(PATIENCE)
        guest.say(b"lf")

    health.destructive("look", requires=["api"])(lambda: None)
    session = make()
    with serve(tmp_path, script), health.scope("work"):
        async with session.get("/") as response:
            assert await response.content.readany() == b"ha"
            assert in_flight(health)
            go.set()
            assert await response.read() == b"lf"
            assert not in_flight(health)


# --- cancellation and time-outs -----------------------------------------------------------------------


@pytest.mark.parametrize("where", ["queue", "head", "body"])
@pytest.mark.parametrize("how", ["cancelled", "total"])
async def test_end_comes_at_every_wait(
    tmp_path: Path, make: Any, dependency: Dependency, health: Safehold, where: str, how: str
) -> None:
    """A call that is cancelled is a miss, and gives its permit back; aiohttp's own total time-out counts.

    Waiting for a place in the pool is nobody's failure.
    """

    def script(guest: Guest) -> bool | None:
        if guest.path == "/held" or where == "body":
            guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        return guest.hang()

    health.destructive("look", requires=["api"])(lambda: None)
    connector = aiohttp.UnixConnector(str(tmp_path / "s"), limit=1 if where == "queue" else 9)
    session = guard_session(aiohttp.ClientSession("http://api", connector=connector), dependency)
    limit = aiohttp.ClientTimeout(total=0.1 if how == "total" else PATIENCE)
    async with session:
        with serve(tmp_path, script) as server, health.scope("work") as scope:
            held = await session.get("/held") if where == "queue" else None

            begun = asyncio.Event()

            async def called() -> None:
                async with session.get("/", timeout=limit) as response:
                    begun.set()
                    await response.read()

            task = asyncio.create_task(called())
            if how == "cancelled":
                if where == "queue":
                    while not connector._waiters:  # noqa: ASYNC110 - nothing tells of it
                        await asyncio.sleep(0)
                elif where == "head":
                    await asyncio.to_thread(server.hanging.wait, PATIENCE)
                else:
                    await begun.wait()
                task.cancel()
            with pytest.raises(asyncio.CancelledError if how == "cancelled" else TimeoutError) as caught:
                await task
            assert scope.tainted
            if held is not None:
                held.close()
            assert not in_flight(health)
    counted = how == "total" and where != "queue"
    assert dependency.status().failures == counted
    if how == "total":
        expected = {"queue": "not_executed", "head": "unknown", "body": "executed"}[where]
        assert caught.value.outcome == expected


# --- probes -------------------------------------------------------------------------------------------


async def test_probe_learns_from_the_first_request_where_to_go(
    dependency: Dependency, watch: Watch, health: Safehold
) -> None:
    """Over TCP without a base URL there is no probe before that."""
    with Scripted(None, lambda guest: guest.answer()) as server:
        async with aiohttp.ClientSession() as session:
            guard_session(session, dependency, probe_path="/health")
            assert not dependency.status().probed
            await session.get(f"http://127.0.0.1:{server.where}/x")
            assert dependency.status().probed
            await dependency._probe()  # type: ignore[misc]
    assert [heard.split()[1] for heard in server.heard] == [b"/x", b"/health"]


@pytest.mark.parametrize("given", ["http://127.0.0.1:{}", "http://127.0.0.1:{}/deeper/"])
async def test_base_url_says_where_the_probe_goes(dependency: Dependency, given: str) -> None:
    """Its path is replaced by the probe's."""
    with Scripted(None, lambda guest: guest.answer("503 No")) as server:
        async with aiohttp.ClientSession() as session:
            guard_session(session, dependency, base_url=given.format(server.where), probe_path="/health")
            with pytest.raises(ServerFaultError):
                await dependency._probe()  # type: ignore[misc]
    assert server.heard[0].startswith(b"GET /health ")


async def test_connector_of_another_kind_has_no_probe(tmp_path: Path, dependency: Dependency) -> None:
    """Nobody knows how to make another one like it."""

    class Connector(aiohttp.BaseConnector):
        pass

    async with aiohttp.ClientSession("http://api", connector=Connector()) as session:
        guard_session(session, dependency)
        assert not dependency.status().probed


def test_every_row_of_the_table_is_met() -> None:
    """The last row matches everything."""
    assert TABLE.row(RuntimeError()).judgement.missed is False
    assert TABLE.row(aiohttp.ServerDisconnectedError()) is TABLE[-1]
