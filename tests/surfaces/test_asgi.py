"""Refusals as clients of an ASGI application receive them, over real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import pytest
import redis as redis_py
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from safehold import (
    Backoff,
    BreakerPolicy,
    ConfigurationError,
    GatePolicy,
    OperationBlocked,
    Safehold,
    Saturated,
)
from safehold._core.health import HealthState
from safehold._runtime.scope import open_scope
from safehold.callsites.redis import guard_client
from safehold.surfaces.asgi import SafeholdMiddleware
from safehold.testing import FaultProxy, RedisServer

POLICY = BreakerPolicy(failures=3, cooldown=Backoff(first=60.0, cap=60.0))


@pytest.fixture
def health() -> Safehold:
    return Safehold("svc", gate=GatePolicy(startup_grace=0.0))


@contextmanager
def serving(app: Any, lifespan: str = "auto") -> Iterator[str]:
    """Serve it with uvicorn; give what comes after the scheme."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="critical", lifespan=lifespan, ws="websockets-sansio")  # type: ignore[arg-type]
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def get(at: str, path: str, **more: Any) -> httpx.Response:
    return httpx.get(f"http://{at}{path}", trust_env=False, **more)


def application(health: Safehold) -> list[Any]:
    """Give routes that meet a refusal in all kinds of ways."""
    redis = health.dependency("redis", critical=True, policy=POLICY)

    def call() -> None:
        with redis.permit():
            pass

    async def plain(request: Request) -> Response:
        call()
        return Response("done")

    async def wrapped(request: Request) -> Response:
        try:
            call()
        except Exception as error:
            raise RuntimeError("https://user:hunter2@db") from error
        return Response("done")

    async def answered(request: Request) -> Response:
        try:
            call()
        except Exception as error:
            raise HTTPException(500) from error
        return Response("done")

    async def saturated(request: Request) -> Response:
        raise Saturated("redis", HealthState.HEALTHY, 0.2, "saturated")

    async def broken(request: Request) -> Response:
        raise KeyError("x")

    async def streamed(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first"
            call()

        return StreamingResponse(parts())

    async def scoped(request: Request) -> Response:
        before = open_scope()

        async def parts() -> AsyncIterator[bytes]:
            yield json.dumps(before is not None and open_scope() is before).encode()

        return StreamingResponse(parts())

    async def failing(request: Request) -> Response:
        return JSONResponse({"own": True}, 500)

    async def early(ws: WebSocket) -> None:
        call()

    async def late(ws: WebSocket) -> None:
        await ws.accept()
        await ws.send_text("hello")
        call()

    handlers: list[Callable[..., Any]] = [
        plain, wrapped, answered, saturated, broken, streamed, scoped, failing
    ]  # fmt: skip
    routes: list[Any] = [Route(f"/{handler.__name__}", handler) for handler in handlers]
    return [*routes, WebSocketRoute("/early", early), WebSocketRoute("/late", late)]


@pytest.fixture
def served(health: Safehold) -> Iterator[str]:
    """An application that is wrapped from outside, with one of its own mounted inside."""
    routes = application(health)
    inner = Starlette(routes=routes)
    with serving(SafeholdMiddleware(Starlette(routes=[*routes, Mount("/sub", inner)]), health)) as at:
        yield at


@pytest.mark.parametrize("path", ["/plain", "/wrapped", "/sub/plain", "/sub/wrapped"])
def test_refusal_is_answered(health: Safehold, served: str, path: str) -> None:
    """Also from a mounted application, which has sent its own 500 before it raises."""
    assert get(served, "/plain").text == "done"
    health["redis"].hold("https://user:hunter2@db")
    answer = get(served, path)
    assert answer.status_code == 409
    assert "retry-after" not in answer.headers
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert (told["dependency"], told["state"], told["reason"]) == ("redis", "unhealthy", "held")
    assert (told["retryable"], told["retry_after"], told["outcome"]) == (False, None, "not_executed")
    assert b"hunter2" not in answer.content


def test_open_breaker_is_a_503_with_the_exact_wait(health: Safehold, served: str) -> None:
    """The header is the member, rounded up."""
    health["redis"].trip("test")
    answer = get(served, "/plain")
    wait = answer.json()["retry_after"]
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) - 1 < wait <= int(answer.headers["retry-after"])


def test_installed_as_the_frameworks_own_middleware(health: Safehold) -> None:
    """Under Starlette's own 500, what its handlers do not take gets here."""
    app = Starlette(routes=application(health), middleware=[Middleware(SafeholdMiddleware, health=health)])
    health["redis"].trip("test")
    with serving(app) as at:
        assert get(at, "/plain").status_code == 503
        assert get(at, "/answered").status_code == 500  # the framework has answered, and raises nothing


def test_other_answers_pass_as_they_are(health: Safehold, served: str) -> None:
    """429 for a full limiter; errors and answers of the application are its own."""
    answer = get(served, "/saturated")
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert (get(served, "/broken").status_code, get(served, "/broken").text) == (500, "Internal Server Error")
    assert (get(served, "/failing").status_code, get(served, "/failing").json()) == (500, {"own": True})


def test_response_that_has_begun_is_not_mended(health: Safehold, served: str) -> None:
    """The client sees that it was cut off, and never a second answer inside the first."""
    health["redis"].trip("test")
    got = b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        httpx.stream("GET", f"http://{served}/streamed", trust_env=False) as answer,
    ):
        for part in answer.iter_raw():
            got += part
    assert (answer.status_code, got) == (200, b"first")


def test_scope_covers_the_request_and_its_body(served: str) -> None:
    """One for each, also while the body is made."""
    assert get(served, "/scoped").json() is True


def test_websocket_is_denied_before_it_is_accepted(health: Safehold, served: str) -> None:
    """With the same answer as any request."""
    health["redis"].trip("test")
    with pytest.raises(InvalidStatus) as denied, connect(f"ws://{served}/early", proxy=None):
        pass
    response = denied.value.response
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert json.loads(response.body)["dependency"] == "redis"


def test_websocket_is_closed_with_1013_after_it_is_accepted(health: Safehold, served: str) -> None:
    """Try again later, and why."""
    health["redis"].trip("test")
    with connect(f"ws://{served}/late", proxy=None) as ws:
        assert ws.recv() == "hello"
        with pytest.raises(ConnectionClosedError) as closed:
            ws.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1013
    assert closed.value.rcvd.reason.startswith("redis is unavailable; ")


async def test_websocket_is_closed_where_the_server_cannot_deny(health: Safehold) -> None:
    """Without the extension there is only a close code."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise Saturated("d" * 150, HealthState.HEALTHY, 0.2, "saturated")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await SafeholdMiddleware(app, health)({"type": "websocket", "path": "/"}, None, send)  # type: ignore[arg-type]
    assert [message["code"] for message in sent] == [1013]
    assert len(sent[0]["reason"].encode()) <= 123


async def test_answer_that_waited_is_sent_when_the_request_is_cancelled(health: Safehold) -> None:
    """What was held back is not lost with the task."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"broken"})
        assert sent == []
        raise asyncio.CancelledError

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    with pytest.raises(asyncio.CancelledError):
        await SafeholdMiddleware(app, health)({"type": "http", "path": "/"}, None, send)  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


async def plain_app(scope: Any, receive: Any, send: Any) -> None:
    """One that knows no lifespan, and says so as such applications do."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize("kind", ["plain", "starlette"])
def test_probes_live_as_long_as_the_application(health: Safehold, kind: str) -> None:
    """Also where the application itself knows no lifespan; its own one is kept."""
    lived: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        lived.append("up")
        yield
        lived.append("down")

    app = plain_app if kind == "plain" else Starlette(lifespan=lifespan)
    with serving(SafeholdMiddleware(app, health), lifespan="on"):
        assert health.status().probing
    assert not health.status().probing
    assert lived == ([] if kind == "plain" else ["up", "down"])


def test_failing_startup_fails(health: Safehold) -> None:
    """An application that cannot start is not started, and its probes end."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise RuntimeError("no")

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    with pytest.raises(RuntimeError):
        asyncio.run(SafeholdMiddleware(app, health)({"type": "lifespan"}, receive, None))  # type: ignore[arg-type]
    assert not health.status().probing


def allowed(scope: Any) -> bool:
    return (b"authorization", b"let me") in scope["headers"]


def test_health_endpoints(health: Safehold) -> None:
    """Details are for those who may see them, and secrets for nobody."""
    health.dependency("redis", critical=True, policy=POLICY)
    health.dependency("mail")
    app = SafeholdMiddleware(plain_app, health, health_at="/", authorise=allowed)
    with serving(app) as at:
        health["redis"].report("success")
        health["mail"].hold("https://user:hunter2@db")
        assert get(at, "/livez").json() == {"status": "alive"}
        assert (get(at, "/readyz").status_code, get(at, "/readyz").json()) == (200, {"status": "ready"})
        assert get(at, "/health").json().keys() == {"status", "at"}
        assert get(at, "/health").json()["status"] == "degraded"
        assert get(at, "/other").text == "ok"
        assert httpx.post(f"http://{at}/health", trust_env=False).status_code == 405
        health["redis"].trip("test")
        assert get(at, "/livez").status_code == 200
        assert (get(at, "/readyz").status_code, get(at, "/readyz").json()) == (503, {"status": "not ready"})
        assert get(at, "/health").status_code == 503
        full = get(at, "/health", headers={"authorization": "let me"})
        assert full.json()["dependencies"]["mail"]["held"] is True
        assert b"hunter2" not in full.content
        assert get(at, "/readyz", headers={"authorization": "let me"}).json()["waiting_for"] == ["redis"]


async def awaited_yes(scope: Any) -> bool:
    return True


def raising(scope: Any) -> bool:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("authorise", "shown"),
    [(None, False), (raising, False), (awaited_yes, True), (lambda scope: "no", False)],
)
def test_whoever_cannot_be_judged_sees_nothing(health: Safehold, authorise: Any, shown: bool) -> None:
    """Only True opens."""
    with serving(SafeholdMiddleware(plain_app, health, health_at="/in", authorise=authorise)) as at:
        assert ("dependencies" in get(at, "/in/health").json()) is shown


def test_everything_answers_while_redis_hangs(health: Safehold, redis_binary: str) -> None:
    """A real Redis that hangs: endpoints at once, requests a 503 that names it, and a blocked operation too."""
    with (
        RedisServer(binary=redis_binary) as server,
        FaultProxy(server.address, listen="127.0.0.1:0") as proxy,
    ):
        store = health.dependency("redis", critical=True, policy=POLICY)
        client = guard_client(redis_py.Redis(host=proxy.host, port=proxy.port, socket_timeout=0.1), store)

        @health.destructive("session.end", trigger="requested")
        def end() -> None:
            raise AssertionError

        def read(request: Request) -> Response:
            return Response(str(client.get("k")))

        def remove(request: Request) -> Response:
            end()
            return Response()

        app = Starlette(routes=[Route("/read", read), Route("/end", remove)])
        with serving(SafeholdMiddleware(app, health, health_at="/")) as at:
            assert get(at, "/read").text == "None"
            proxy.hang()
            seen = [get(at, "/read").status_code for _ in range(12)]
            assert seen[0] == 500
            answer = get(at, "/read")
            assert (answer.status_code, answer.json()["dependency"]) == (503, "redis")
            assert 0 < answer.json()["retry_after"] <= int(answer.headers["retry-after"])
            told = get(at, "/end")
            assert told.status_code == 503
            assert (told.json()["code"], told.json()["operation"]) == (OperationBlocked.code, "session.end")
            began = time.monotonic()
            assert [get(at, page).status_code for page in ("/livez", "/readyz", "/health")] == [200, 503, 503]
            assert time.monotonic() - began < 1.0
            proxy.clear()
        client.close()


@pytest.mark.parametrize("more", [{"health_at": "x"}, {"authorise": 1}, {"texts": {"x": "y"}}])
def test_arguments_that_cannot_work(health: Safehold, more: Any) -> None:
    """They are told where the application begins."""
    with pytest.raises(ConfigurationError):
        SafeholdMiddleware(plain_app, health, **more)
