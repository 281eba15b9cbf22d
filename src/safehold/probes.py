"""Ready-made probes: each function gives a probe for `health.dependency(..., probe=...)`.

They use a connection of their own, one attempt, and time-outs shorter than the prober's. A guarded Redis or
HTTP client brings a better one by itself.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from http.client import HTTPConnection, HTTPSConnection
from typing import Final
from urllib.parse import urlsplit

from ._core.configuration import ConfigurationError, check_number

TIMEOUT: Final = 0.5
"""Seconds that a ready-made probe waits, unless it is told otherwise."""

Probe = Callable[[], None]


def tcp(host: str, port: int, *, timeout: float = TIMEOUT) -> Probe:
    """Probe whether a TCP port accepts a connection: that something listens, and not that it works.

    `timeout`: seconds (above 0). The probe raises `OSError`.
    """
    _check(host, port, timeout)

    def probe() -> None:
        socket.create_connection((host, port), timeout=timeout).close()

    return probe


def unix_socket(path: str, *, timeout: float = TIMEOUT) -> Probe:
    """Probe whether a unix-domain socket accepts a connection: that something listens, and not that it works.

    `timeout`: seconds (above 0). The probe raises `OSError`.
    """
    _check_path(path, timeout)

    def probe() -> None:
        with closing(_unix(path, timeout)):
            pass

    return probe


def http(
    url: str,
    *,
    expect: int | Collection[int] = 200,
    method: str = "GET",
    over: str | None = None,
    timeout: float = TIMEOUT,
) -> Probe:
    """Probe an HTTP address for an expected status: `http("http://localhost/health", over="/run/api.sock")`.

    `expect`: the status, or several. `over`: the path of a unix-domain socket to speak through; then the
    host in `url` is only what the server is told. `timeout`: seconds for each read and write (above 0).
    Redirects are not followed. The probe raises `OSError`, `HTTPException` or, for another status,
    `RuntimeError`.
    """
    check_number("timeout", timeout, above=0)
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        msg = f"url must be an http:// or https:// address with a host, got {url!r}"
        raise ConfigurationError(msg)
    if parts.username is not None or parts.password is not None:
        msg = "url must not hold a password: it would be seen in logs"
        raise ConfigurationError(msg)
    if over is not None and parts.scheme != "http":
        msg = f"over={over!r} speaks plain http, got {url!r}"
        raise ConfigurationError(msg)
    expected = frozenset([expect] if isinstance(expect, int) else expect)
    if not expected:
        msg = "expect must name at least one status"
        raise ConfigurationError(msg)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def probe() -> None:
        connection = kind(str(parts.hostname), parts.port, timeout=timeout)
        if over is not None:
            connection.sock = _unix(over, timeout)
        with closing(connection):
            connection.request(method, target, headers={"Connection": "close"})
            response = connection.getresponse()
            response.read(65_536)
        if response.status not in expected:
            msg = f"answered with status {response.status}, not {', '.join(map(str, sorted(expected)))}"
            raise RuntimeError(msg)

    return probe


def command(arguments: Sequence[str], *, expect: int = 0, timeout: float = TIMEOUT) -> Probe:
    """Probe with a program that ends with the expected exit code, and is killed when it takes longer.

    `arguments`: the program and its arguments, run without a shell and without input; what it prints is
    dropped. `timeout`: seconds (above 0). The probe raises `OSError`, `TimeoutExpired` or, for another code,
    `RuntimeError`.
    """
    check_number("timeout", timeout, above=0)
    if isinstance(arguments, str) or not arguments:
        msg = f"arguments must be a list of words, got {arguments!r}"
        raise ConfigurationError(msg)
    words = list(arguments)

    def probe() -> None:
        done = subprocess.run(  # noqa: S603 - the service's own words, and no shell
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )
        if done.returncode != expect:
            msg = f"{words[0]} ended with {done.returncode}, not {expect}"
            raise RuntimeError(msg)

    return probe


def _unix(path: str, timeout: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout)
        connection.connect(path)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(host: str, port: int, timeout: float) -> None:
    check_number("timeout", timeout, above=0)
    check_number("port", port, least=1, most=65_535)
    if not isinstance(host, str) or not host:
        msg = f"host must be a name or an address, got {host!r}"
        raise ConfigurationError(msg)


def _check_path(path: str, timeout: float) -> None:
    check_number("timeout", timeout, above=0)
    if not path:
        msg = f"path must be that of a socket, got {path!r}"
        raise ConfigurationError(msg)


__all__ = ["TIMEOUT", "command", "http", "tcp", "unix_socket"]
