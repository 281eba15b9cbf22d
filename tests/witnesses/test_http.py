"""What an HTTP response says of a resource: a real server, and each client's own response."""

from __future__ import annotations

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import aiohttp
import httpx
import pytest
import requests

from safehold import ConfigurationError, Presence
from safehold.witnesses import http_resource

from .support import ABSENT, PRESENT, Service, unproven

JSON = "application/json"
SIGNED = {"code": "session_not_found"}


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    kind: str | None = JSON
    location: str | None = None
    length: int | None = None


REPLIES = {
    "live": Reply(200, b'{"id": "live"}'),
    "charset": Reply(200, b'{"id": "charset"}', "Application/JSON; charset=utf-8"),
    "gone": Reply(404, b'{"code": "session_not_found", "detail": "no session"}'),
    "gone-410": Reply(410, b'{"code": "session_not_found"}'),
    "gone-problem": Reply(404, b'{"code": "session_not_found"}', "application/problem+json"),
    "gone-nested": Reply(404, b'{"error": {"code": "session_not_found", "retry": false}, "at": 1}'),
    "wrong-route": Reply(404, b'{"detail": "Not Found"}'),
    "empty-404": Reply(404),
    "html-404": Reply(404, b"<html>no such page, session_not_found</html>", "text/html"),
    "signed-html": Reply(404, b'{"code": "session_not_found"}', "text/html"),
    "broken-404": Reply(404, b'{"code": "session_not_f'),
    "list-404": Reply(404, b'["code"]'),
    "html": Reply(200, b"<html>please log in</html>", "text/html"),
    "moved": Reply(302, location="/sessions/login"),
    "moved-live": Reply(302, location="/sessions/live"),
    "moved-gone": Reply(307, location="/sessions/gone"),
    "login": Reply(200, b"<html>please log in</html>", "text/html"),
    "cut": Reply(200, b'{"id": "cu'),
    "empty": Reply(200),
    "nothing": Reply(204, kind=None),
    "null": Reply(200, b"null"),
    "untyped": Reply(200, b'{"id": "untyped"}', None),
    **{
        f"status-{status}": Reply(status, b'{"code": "session_not_found"}') for status in (400, 401, 403, 407)
    },
    **{
        f"status-{status}": Reply(status, b'{"code": "session_not_found"}') for status in (408, 429, 500, 503)
    },
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            reply = REPLIES[self.path.rpartition("/")[2]]
            self.send_response(reply.status)
            if reply.kind is not None:
                self.send_header("Content-Type", reply.kind)
            if reply.location is not None:
                self.send_header("Location", reply.location)
            if reply.status == 407:
                self.send_header("Proxy-Authenticate", "Basic")
            if reply.status != 204:
                self.send_header("Content-Length", str(len(reply.body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/sessions/"
    server.shutdown()
    thread.join(20)
    server.server_close()


Ask = Callable[..., Presence]


def _httpx(url: str, options: dict[str, Any], *, follow: bool) -> Presence:
    with httpx.Client(trust_env=False, follow_redirects=follow) as client:
        return http_resource(client.get(url), **options)


def _requests(url: str, options: dict[str, Any], *, follow: bool) -> Presence:
    with requests.Session() as session:
        session.trust_env = False
        return http_resource(session.get(url, allow_redirects=follow, timeout=20), **options)


def _aiohttp(url: str, options: dict[str, Any], *, follow: bool) -> Presence:
    async def ask() -> Presence:
        async with (
            aiohttp.ClientSession() as session,
            session.get(url, allow_redirects=follow) as response,
        ):
            return http_resource(response, await response.read(), **options)

    return asyncio.run(ask())


@pytest.fixture(params=[_httpx, _requests, _aiohttp], ids=["httpx", "requests", "aiohttp"])
def ask(request: pytest.FixtureRequest, address: str) -> Ask:
    def ask(subject: str, *, follow: bool = True, **options: Any) -> Presence:
        return request.param(address + subject, options, follow=follow)

    return ask


def test_a_resource_is_there_or_is_signed_to_be_gone(service: Service, ask: Ask) -> None:
    """The positive twin of all that follows, for every client."""
    assert service.sweep(lambda subject: ask(subject, not_found=SIGNED), "live", "charset", "gone") == {
        "live",
        "charset",
    }
    assert service.seen["live"].presence is PRESENT
    for gone in ("gone", "gone-410", "gone-problem"):
        assert ask(gone, not_found=SIGNED) is ABSENT
    assert ask("gone-nested", not_found={"error": SIGNED}) is ABSENT


@pytest.mark.parametrize(
    ("subject", "why"),
    [
        ("html", "status 200 with text/html for application/json"),
        ("moved", "it was redirected, so another address has answered"),
        ("moved-live", "it was redirected, so another address has answered"),
        ("moved-gone", "it was redirected, so another address has answered"),
        ("cut", "status 200 with a body that is no JSON"),
        ("empty", "status 200 with an empty body"),
        ("nothing", "status 204 with an empty body"),
        ("null", "status 200 with null"),
        ("untyped", None),
        ("wrong-route", "status 404 without the sign that the service itself has not found it"),
        ("empty-404", "status 404 with a body that is no JSON"),
        ("html-404", "status 404 without the sign that the service itself has not found it"),
        ("signed-html", "status 404 without the sign that the service itself has not found it"),
        ("list-404", "status 404 without the sign that the service itself has not found it"),
        ("broken-404", "status 404 with a body that is no JSON"),
        *[(f"status-{s}", f"status {s} says neither") for s in (400, 401, 403, 407, 408, 429, 500, 503)],
    ],
)
def test_t10_what_proves_nothing(service: Service, ask: Ask, subject: str, why: str | None) -> None:
    """Login pages, redirects, broken bodies, every other status: with the sign in its body, even."""
    said = service.why(lambda subject: ask(subject, not_found=SIGNED), subject)
    assert why is None or said == why


def test_a_redirect_that_is_not_followed(ask: Ask) -> None:
    """Its status says neither."""
    assert "302" in unproven(ask, "moved", follow=False, not_found=SIGNED)


def test_only_no_answer_is_a_miss(service: Service, ask: Ask) -> None:
    """A server's own error spoils the sweep; an odd answer is one subject's business."""
    look = lambda subject: ask(subject, not_found=SIGNED)  # noqa: E731
    assert service.sweep(look, "status-401", "gone") == {"status-401"}
    assert service.sweep(look, "status-503", "gone-410") == {"status-401", "status-503", "gone-410"}


def test_a_bare_404_is_absence_only_where_somebody_says_so(service: Service, ask: Ask) -> None:
    """A proxy or a wrong route answers just so; and a page for people is never the service's answer."""
    for subject in ("gone", "wrong-route", "empty-404"):
        assert "without the sign" in unproven(ask, subject)
        assert ask(subject, bare_404=True) is ABSENT
    assert "not the service's own" in unproven(ask, "html-404", bare_404=True)
    assert "neither" in unproven(ask, "status-403", bare_404=True)


def test_a_sign_may_be_a_function(ask: Ask) -> None:
    """Of the response; only `True` is a yes."""
    assert ask("gone", not_found=lambda response: True) is ABSENT
    for answer in (False, None, 1, "yes"):
        assert "without the sign" in unproven(ask, "gone", not_found=lambda response, said=answer: said)
    with pytest.raises(KeyError):
        ask("gone", not_found=lambda response: {}["code"])


@pytest.mark.parametrize(
    "wanted",
    [
        {"code": "other"},
        {"code": SIGNED},
        {"code": "session_not_found", "more": 1},
        {"Code": "session_not_found"},
    ],
)
def test_a_sign_has_to_be_exact(ask: Ask, wanted: Any) -> None:
    """Every part of it; what else the body holds does not matter."""
    assert "without the sign" in unproven(ask, "gone", not_found=wanted)


def test_numbers_and_truths_are_told_apart(ask: Ask) -> None:
    """For Python they are equal."""
    assert ask("gone-nested", not_found={"at": 1, "error": {"retry": False}}) is ABSENT
    assert "without the sign" in unproven(ask, "gone-nested", not_found={"at": True})
    assert "without the sign" in unproven(ask, "gone-nested", not_found={"error": {"retry": 0}})


def test_other_content(ask: Ask) -> None:
    """What is expected is declared."""
    assert ask("html", content_type="text/html") is PRESENT
    assert "for text/html" in unproven(ask, "live", content_type="text/html")


@pytest.mark.parametrize(
    "options",
    [
        {"absent": (401,)},
        {"absent": (403, 404)},
        {"absent": (500,)},
        {"absent": (200,)},
        {"absent": (429,)},
        {"not_found": {}},
        {"not_found": "session_not_found"},
        {"not_found": SIGNED, "bare_404": True},
    ],
)
def test_settings_that_cannot_work(ask: Ask, options: dict[str, Any]) -> None:
    """A status that speaks of the asker, a sign that everything carries."""
    with pytest.raises(ConfigurationError):
        ask("live", **options)


def test_a_body_that_was_not_read(address: str) -> None:
    """A response that does not hold it proves nothing."""

    async def ask() -> str:
        async with aiohttp.ClientSession() as session, session.get(address + "gone") as response:
            return unproven(http_resource, response, not_found=SIGNED)

    assert "body" in asyncio.run(ask())
    with httpx.Client(trust_env=False) as client, client.stream("GET", address + "gone") as response:
        with pytest.raises(httpx.ResponseNotRead):
            http_resource(response, not_found=SIGNED)


def test_a_body_that_is_cut_short(service: Service) -> None:
    """Clients say so by themselves; where one does not, the length does, and that is a miss."""
    body = b'{"code": "session_not_found"}'
    headers = {"content-type": JSON, "content-length": str(len(body) + 1)}
    short = httpx.Response(404, headers=headers, stream=httpx.ByteStream(body))
    short.read()
    assert service.why(lambda subject: http_resource(short, not_found=SIGNED)) == "the body was cut short"
    assert service.source.status().unresolved_miss
    headers["content-length"] = str(len(body))
    whole = httpx.Response(404, headers=headers, stream=httpx.ByteStream(body))
    whole.read()
    service.source.report("success")
    assert service.sweep(lambda subject: http_resource(whole, not_found=SIGNED), "s1") == set()


def test_a_client_without_a_history(address: str) -> None:
    """The address that has answered is compared with the one that was asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(subject: str, asked: str | None) -> Presence:
        try:
            response = opener.open(address + subject, timeout=20)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            return http_resource(response, response.read(), not_found=SIGNED, asked=asked)

    assert ask("live", address + "live") is PRESENT
    assert ask("gone", address + "gone") is ABSENT
    with pytest.raises(Exception, match="redirected"):
        ask("moved-gone", address + "moved-gone")
    with pytest.raises(Exception, match="asked="):
        ask("gone", None)
