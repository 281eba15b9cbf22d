"""Ready-made probes against real sockets, servers and programs; each fault with its positive twin."""

from __future__ import annotations

import http.server
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from safehold import ConfigurationError, ProbePolicy, Safehold, probes


@contextmanager
def listening(family: int, address: Any) -> Iterator[socket.socket]:
    with socket.socket(family) as listener:
        listener.bind(address)
        listener.listen()
        yield listener


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response({"/fine": 200, "/empty": 204, "/moved": 302}.get(self.path, 503))
        self.send_header("Location", "/fine")
        self.end_headers()

    def address_string(self) -> str:
        return "peer"

    def log_message(self, *_: Any) -> None:
        pass


class UnixServer(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[socketserver.BaseServer]:
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sh") as directory:  # short: socket paths are
        yield Path(directory)


def fails(probe: Callable[[], None]) -> str:
    with pytest.raises((OSError, RuntimeError)) as raised:
        probe()
    return str(raised.value)


def test_tcp() -> None:
    """A port that listens answers, and one that does not is refused."""
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        probes.tcp("127.0.0.1", port)()
    assert "refused" in fails(probes.tcp("127.0.0.1", port))


def test_unix_socket(place: Path) -> None:
    """A socket that listens answers; a stale file and a missing one do not."""
    path = str(place / "s")
    missing = probes.unix_socket(path)
    assert "No such file" in fails(missing)
    with listening(socket.AF_UNIX, path):
        missing()
    assert "refused" in fails(missing)


def test_http() -> None:
    """The expected status is an answer; another one, a redirect and silence are none."""
    with serving(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        probes.http(f"{url}/fine")()
        probes.http(f"{url}/empty", expect=[200, 204])()
        assert "status 503" in fails(probes.http(f"{url}/broken"))
        assert "status 302" in fails(probes.http(f"{url}/moved"))
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as silent:
        assert "timed out" in fails(probes.http(f"http://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.05))


def test_http_over_a_unix_socket(place: Path) -> None:
    """Through the socket's path; the host is what the server is told."""
    path = str(place / "api")
    with serving(UnixServer(path, Handler)):
        probes.http("http://api/fine", over=path)()
        assert "status 503" in fails(probes.http("http://api/broken", over=path))
    assert "refused" in fails(probes.http("http://api/fine", over=path))


def test_command() -> None:
    """A program that ends with the code is an answer; another code, a hang and a missing one are none."""
    probes.command([sys.executable, "-c", ""], timeout=20)()
    probes.command([sys.executable, "-c", "raise SystemExit(3)"], expect=3, timeout=20)()
    assert "ended with 1" in fails(probes.command([sys.executable, "-c", "raise SystemExit(1)"], timeout=20))
    hangs = probes.command([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
    with pytest.raises(subprocess.TimeoutExpired):
        hangs()
    assert "No such file" in fails(probes.command(["/nowhere/program"]))


def test_a_ready_made_probe_heals_a_dependency() -> None:
    """It goes where any probe goes."""
    health = Safehold("probes")
    with listening(socket.AF_INET, ("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        api = health.dependency(
            "api", probe=probes.tcp("127.0.0.1", port), probe_policy=ProbePolicy(timeout=5)
        )
        answered = threading.Event()
        health.subscribe(lambda event: answered.set())
        with health.running():
            health.destructive("reap", requires=["api"])(print)
            health.check("reap")
            assert answered.wait(10)
        assert api.state == "healthy"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: probes.tcp("", 1), "host"),
        (lambda: probes.tcp("localhost", 0), "port"),
        (lambda: probes.tcp("localhost", 1, timeout=0), "timeout"),
        (lambda: probes.unix_socket(""), "path"),
        (lambda: probes.http("localhost/health"), "url"),
        (lambda: probes.http("http://user:secret@localhost/"), "password"),
        (lambda: probes.http("https://localhost/", over="/run/x"), "over"),
        (lambda: probes.http("http://localhost/", expect=[]), "expect"),
        (lambda: probes.command("ls -l"), "arguments"),
        (lambda: probes.command([]), "arguments"),
    ],
)
def test_bad_arguments_are_told_at_once(make: Callable[[], Any], text: str) -> None:
    """And a password is not repeated."""
    with pytest.raises(ConfigurationError, match=text) as raised:
        make()
    assert "secret" not in str(raised.value)
