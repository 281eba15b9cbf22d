"""The servers, the fault proxies in front of them, and the clients that go through the proxies.

Everything here is entered into one `ExitStack`, which is unwound in the end, whatever happened. Own servers
listen on unix sockets in private directories; only fakeredis, which cannot, takes a loopback port.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlsplit

import httpx
import redis
from redis.backoff import ConstantBackoff
from redis.connection import parse_url
from redis.exceptions import RedisError
from redis.retry import Retry

from .._runtime.describe import cause_of
from ..testing.proxy import Fault, FaultProxy
from ..testing.servers import ApiRequest, ApiServer, Handler, RedisServer, ServerNotReady, ServerUnavailable
from .script import Step
from .service import Listing
from .world import ALL, World

PATIENCE: Final = 3.0
"""Seconds that the drill itself waits for a user's server before it calls it unusable."""
_parse_url: Callable[[str], dict[str, Any]] = parse_url  # redis-py left it without annotations
HEAD: Final = 130
"""Bytes that the head of our API's answer takes, about."""


class UnusableError(Exception):
    """The drill cannot run here, for a reason that the text tells; it holds no secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisTarget:
    """A Redis: what it is called, where it is, and what a client needs to be let in."""

    origin: str
    upstream: str | tuple[str, int]
    login: Mapping[str, Any] = field(default_factory=dict)

    def client(self, door: FaultProxy | None, timeout: float, *, retries: int = 1) -> redis.Redis:
        """Make a client, through a fault proxy or (`None`) straight to the server."""
        address = self.upstream if door is None else door.address
        if isinstance(address, str) and address.startswith("unix:"):
            where: dict[str, Any] = {"unix_socket_path": address.removeprefix("unix:")}
        elif door is None:
            where = dict(zip(("host", "port"), self.upstream, strict=True))
        else:
            where = {"host": door.host, "port": door.port}
        return redis.Redis(
            **where,
            **self.login,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(ConstantBackoff(timeout / 10), retries),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiTarget:
    """An API behind a unix socket. `ours`: it can list the sessions."""

    origin: str
    upstream: str
    ours: bool

    def client(self, door: FaultProxy, run: str, timeout: float) -> httpx.Client:
        """Make a client that goes through a fault proxy."""
        transport = httpx.HTTPTransport(uds=door.path)
        base = f"http://localhost/{run}/" if self.ours else "http://localhost/"
        return httpx.Client(transport=transport, base_url=base, timeout=timeout, trust_env=False)

    def listing(self, world: World) -> Listing:
        """Give the way to read the listing of the sessions of `world`, one by one as they arrive."""
        return _read_listing if self.ours else _stand_in(world)


class Lab:
    """Both servers with their proxies, in a `with` statement that removes everything, keys included."""

    def __init__(
        self, worlds: Mapping[str, World], *, redis: RedisTarget | None, api_socket: str | None
    ) -> None:
        self._worlds = worlds
        self.prefix = f"safehold-drill:{secrets.token_hex(6)}:"
        self._stack = ExitStack()
        try:
            self.redis = redis or _own_redis(self._stack)
            self.api = _own_api(self._stack, worlds) if api_socket is None else users_api(api_socket)
            self._try_redis()
            self._stack.callback(self._forget_keys)
            self.redis_door = self._stack.enter_context(FaultProxy(self.redis.upstream))
            self.api_door = self._stack.enter_context(FaultProxy(self.api.upstream))
        except BaseException as error:
            self._stack.close()
            if isinstance(error, OSError):
                msg = f"the servers cannot be started: {cause_of(error).text}"
                raise UnusableError(msg) from error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def inject(self, step: Step) -> None:
        """Put the faults of a step in force, in place of all others."""
        self.redis_door.inject(*step.redis)
        self.api_door.inject(*step.api, *(() if step.cut is None else (self._cut(step.cut),)))

    def key(self, run: str) -> str:
        """Give what the keys of a run's heartbeats begin with."""
        return f"{self.prefix}{run}:"

    def _cut(self, share: float) -> Fault:
        """Cut the shorter of both listings at its share, and the longer one at the same byte."""
        if not self.api.ours:
            return Fault(kind="cut", after=int(60 * share), direction="downstream")
        shorter = min(len(_written(world)) for world in self._worlds.values())
        return Fault(kind="cut", after=HEAD + int(shorter * share), direction="downstream")

    def _keys(self) -> list[str]:
        return [self.key(run) + session for run in self._worlds for session in ALL]

    def _try_redis(self) -> None:
        """Do once, straight, what the drill will do, so that a server that forbids it is found out now."""
        keys = self._keys()
        try:
            with self.redis.client(None, PATIENCE, retries=0) as client:
                client.set(keys[0], "alive", px=5000)
                client.mget(keys)
                client.delete(*keys)
        except (RedisError, OSError, UnicodeError) as error:
            msg = f"{self.redis.origin} cannot be used: {cause_of(error).text}"
            raise UnusableError(msg) from None

    def _forget_keys(self) -> None:
        with suppress(RedisError), self.redis.client(None, PATIENCE, retries=0) as client:
            client.delete(*self._keys())  # should this fail: every key has a short time to live


# --- Redis --------------------------------------------------------------------------------------------------


def _own_redis(stack: ExitStack) -> RedisTarget:
    try:
        server = stack.enter_context(RedisServer())
    except (ServerUnavailable, ServerNotReady):
        return _fake_redis(stack)
    return RedisTarget(origin=server.origin, upstream=f"unix:{server.path}")


def _fake_redis(stack: ExitStack) -> RedisTarget:
    try:
        import fakeredis  # noqa: PLC0415 - the last resort, seldom needed
    except ImportError:
        msg = 'no Redis server runs here and fakeredis is not installed: pip install "safehold[drill]"'
        raise UnusableError(msg) from None
    server = fakeredis.TcpFakeServer(("127.0.0.1", 0))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # it would write to our terminal
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    stack.callback(thread.join, 5)
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    origin = "fakeredis, a Python stand-in (no redis-server or valkey-server runs here)"
    return RedisTarget(origin=origin, upstream=("127.0.0.1", server.server_address[1]))


def users_redis(url: str) -> RedisTarget:
    """Read `--redis-url`. Raises `ValueError` without quoting it: it may hold a password."""
    wanted: Mapping[str, Any] = {}
    try:
        scheme, wanted = urlsplit(url).scheme, _parse_url(url)
    except ValueError:
        scheme = ""
    if scheme not in ("redis", "unix") or (scheme == "unix" and not wanted.get("path")):
        msg = "need redis://[user:password@]host[:port][/db] or unix://[user:password@]/path[?db=N]"
        raise ValueError(msg)
    login: dict[str, Any] = {name: wanted[name] for name in ("username", "password", "db") if name in wanted}
    secret = "***@" if "password" in wanted or "username" in wanted else ""
    if scheme == "unix":
        return RedisTarget(
            origin=f"unix://{secret}{wanted['path']}", upstream=f"unix:{wanted['path']}", login=login
        )
    host, port = wanted.get("host", "localhost"), wanted.get("port", 6379)
    shown = f"[{host}]" if ":" in host else host
    origin = f"redis://{secret}{shown}:{port}/{login.get('db', 0)}"
    return RedisTarget(origin=origin, upstream=(host, port), login=login)


# --- the API ------------------------------------------------------------------------------------------------


def _own_api(stack: ExitStack, worlds: Mapping[str, World]) -> ApiTarget:
    routes = {f"GET /{run}/sessions": _lister(world) for run, world in worlds.items()}
    server = stack.enter_context(ApiServer(routes))
    return ApiTarget(origin="an API of its own on a unix socket", upstream=f"unix:{server.path}", ours=True)


def users_api(path: str) -> ApiTarget:
    """Take `--api-socket`, after one `GET /` straight to it. Raises `UnusableError`."""
    shown = os.fsencode(path).decode(errors="backslashreplace")
    target = ApiTarget(origin=f"unix:{shown}", upstream=f"unix:{path}", ours=False)
    try:
        with httpx.Client(
            transport=httpx.HTTPTransport(uds=path), timeout=PATIENCE, trust_env=False
        ) as client:
            status = client.get("http://localhost/").status_code
    except httpx.HTTPError as error:
        msg = f"{target.origin} cannot be used: {cause_of(error).text}"
        raise UnusableError(msg) from None
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        msg = f"{target.origin} cannot be used: GET / was answered with {status}"
        raise UnusableError(msg)
    return target


def _written(world: World) -> bytes:
    lines = [json.dumps({"session": session, "kind": "worker", "tags": []}) for session in world.listed]
    return "".join(f"{line}\n" for line in lines).encode()


def _lister(world: World) -> Handler:
    def listing(_: ApiRequest) -> tuple[int, object]:
        return 200, _written(world)

    return listing


def _read_listing(api: httpx.Client) -> Iterator[str]:
    with api.stream("GET", "sessions") as response:
        response.raise_for_status()
        for line in response.iter_lines():
            yield json.loads(line)["session"]


def _stand_in(world: World) -> Listing:
    """Read an API that knows nothing of our sessions: the request is real, the listing is the drill's."""

    def read(api: httpx.Client) -> Iterator[str]:
        with api.stream("GET", "/") as response:
            response.read()
            if response.is_server_error:
                response.raise_for_status()
        yield from world.listed

    return read
