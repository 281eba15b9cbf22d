"""Refusals as clients of a WSGI application receive them, from wsgiref and its checks of the protocol."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.validate import validator

import httpx
import pytest

from safehold import (
    Backoff,
    BreakerPolicy,
    ConfigurationError,
    Dependency,
    GatePolicy,
    OperationBlocked,
    Safehold,
)
from safehold._runtime.scope import open_scope
from safehold.surfaces.wsgi import SafeholdMiddleware

POLICY = BreakerPolicy(cooldown=Backoff(first=60.0, cap=60.0))


@pytest.fixture
def health() -> Safehold:
    return Safehold("svc", gate=GatePolicy(startup_grace=0.0))


@pytest.fixture
def redis(health: Safehold) -> Dependency:
    return health.dependency("redis", critical=True, policy=POLICY)


class Quiet(WSGIRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def serving(app: Any) -> Iterator[str]:
    with make_server("127.0.0.1", 0, app, handler_class=Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(20)


def call(redis: Dependency) -> None:
    with redis.permit():
        pass


def application(redis: Dependency, closed: list[str]) -> Callable[..., Any]:
    """Meets a refusal when it is called, before its first part, or after it."""

    class Parts:
        def __init__(self, where: str) -> None:
            self.where, self.left = where, iter([b"", b"first", b"second"])

        def __iter__(self) -> Parts:
            return self

        def __next__(self) -> bytes:
            part = next(self.left)
            if (self.where, part) in {("/before", b""), ("/after", b"second")}:
                call(redis)
            return part

        def close(self) -> None:
            closed.append(self.where)

    def app(environ: Any, start_response: Any) -> Any:
        where = environ["PATH_INFO"]
        start_response("200 OK", [("Content-Type", "text/plain")])
        if where == "/called":
            try:
                call(redis)
            except Exception as error:
                raise RuntimeError("https://user:hunter2@db") from error
        if where == "/broken":
            raise KeyError("x")
        return Parts(where)

    return app


@pytest.mark.parametrize("path", ["/called", "/before"])
def test_refusal_is_answered(health: Safehold, redis: Dependency, path: str) -> None:
    """Until the first part of the body was sent, though the application had begun with 200."""
    closed: list[str] = []
    with serving(validator(SafeholdMiddleware(validator(application(redis, closed)), health))) as at:
        assert httpx.get(at + path, trust_env=False).text == "firstsecond"
        redis.trip("test")
        answer = httpx.get(at + path, trust_env=False)
        headless = httpx.head(at + path, trust_env=False)
    assert answer.status_code == headless.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert (told["dependency"], told["state"], told["reason"]) == ("redis", "unhealthy", "breaker_open")
    assert int(answer.headers["retry-after"]) - 1 < told["retry_after"] <= int(answer.headers["retry-after"])
    assert b"hunter2" not in answer.content
    assert headless.content == b""
    assert closed.count("/before") == (3 if path == "/before" else 0)


def environment(path: str) -> dict[str, Any]:
    return {"PATH_INFO": path, "REQUEST_METHOD": "GET"}


def started(*arguments: Any) -> Callable[[bytes], Any]:
    return lambda part: None


def test_response_that_has_begun_is_not_mended(health: Safehold, redis: Dependency) -> None:
    """The exception goes on to the server, and the body is closed."""
    closed: list[str] = []
    redis.trip("test")
    body = SafeholdMiddleware(application(redis, closed), health)(environment("/after"), started)
    parts = iter(body)
    assert [next(parts), next(parts)] == [b"", b"first"]
    with pytest.raises(Exception, match="redis is unhealthy"):
        next(parts)
    body.close()  # type: ignore[attr-defined]
    assert closed == ["/after"]


def test_response_that_was_written_to_is_not_mended(health: Safehold, redis: Dependency) -> None:
    """The old way to send a body counts, too."""
    redis.trip("test")

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])(b"part")
        call(redis)

    with pytest.raises(Exception, match="redis is unhealthy"):
        SafeholdMiddleware(app, health)(environment("/"), started)


def test_other_errors_are_the_servers(health: Safehold, redis: Dependency) -> None:
    """They go on as they are."""
    with pytest.raises(KeyError):
        SafeholdMiddleware(application(redis, []), health)(environment("/broken"), started)
    assert open_scope() is None


def test_scope_covers_the_body_and_nothing_else(health: Safehold, redis: Dependency) -> None:
    """Two bodies that are asked for in turn on one thread have a scope each; a miss taints its own."""

    @health.destructive("session.end")
    def end() -> bytes:
        return b"ended"

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        if environ["PATH_INFO"] == "/misses":
            with pytest.raises(TimeoutError), redis.permit():
                raise TimeoutError
        yield b"x"
        yield end()

    call(redis)
    wrapped = SafeholdMiddleware(app, health)
    sick, well = (iter(wrapped(environment(path), started)) for path in ("/misses", "/well"))
    assert next(sick) == next(well) == b"x"
    assert open_scope() is None
    call(redis)  # the last call is one that has answered
    with pytest.raises(OperationBlocked) as blocked:
        next(sick)
    assert "scope_tainted" in [reason.code for reason in blocked.value.reasons]
    assert next(well) == b"ended"
    assert list(well) == []
    assert open_scope() is None


def test_health_endpoints(health: Safehold, redis: Dependency) -> None:
    """The same as over ASGI, and closed where nobody says who may see them."""

    def allowed(environ: Any) -> bool:
        return bool(environ["HTTP_AUTHORIZATION"] == "let me")

    app = application(redis, [])
    with serving(validator(SafeholdMiddleware(app, health, health_at="/internal/", authorise=allowed))) as at:
        redis.hold("https://user:hunter2@db")

        def get(path: str, **headers: str) -> httpx.Response:
            return httpx.get(f"{at}/internal{path}", headers=headers, trust_env=False)

        assert get("/livez").json() == {"status": "alive"}
        assert (get("/readyz").status_code, get("/readyz").json()) == (503, {"status": "not ready"})
        assert get("/health").json().keys() == {"status", "at"}  # the hook has raised
        full = get("/health", authorization="let me")
        assert (full.status_code, full.json()["dependencies"]["redis"]["held"]) == (503, True)
        assert b"hunter2" not in full.content
        assert get("/other").text == "firstsecond"
        head = httpx.head(f"{at}/internal/livez", trust_env=False)
        assert (head.status_code, head.content) == (200, b"")


def test_arguments_that_cannot_work(health: Safehold) -> None:
    """They are told where the application begins."""
    with pytest.raises(ConfigurationError):
        SafeholdMiddleware(lambda environ, start: [], None)  # type: ignore[arg-type]
