"""The HTTP clients with a call site, each behind the same few verbs: what holds for one holds for all.

To add a client: write a `Driver` and name it in `DRIVERS`.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
import httpx
import httpx2
import requests
import requests_unixsocket
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from safehold import Dependency
from safehold.callsites import aiohttp as on_aiohttp
from safehold.callsites import httpx as on_httpx
from safehold.callsites import httpx2 as on_httpx2
from safehold.callsites import requests as on_requests

TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # one for all: to make one takes a while
TIMEOUT = 10.0  # where nobody waits for it


class Answer(NamedTuple):
    status: int
    body: bytes


class Driver:
    """A guarded client on a unix socket (a path) or a port."""

    module: Any
    error: type[Exception]
    refusal: type[Exception]
    base: str
    sees_half_a_head = True  # as opposed to none at all
    in_cycles = True  # whether what the client makes of a call is left to the garbage collector

    def __init__(self, where: Path | int, dependency: Dependency, *, timeout: Any, pool: int | None) -> None:
        raise NotImplementedError

    def call(self, path: str = "/", *, method: str = "GET", body: Any = None, **options: Any) -> Answer:
        """Send a request and read the answer to its end."""
        raise NotImplementedError

    def stream(self, path: str = "/") -> Iterator[bytes]:
        """Send a request; the iterator reads the body as it comes, and closing it closes the response."""
        raise NotImplementedError

    def open(self, path: str = "/") -> Any:
        """Send a request and give the response that came of it, unread."""
        raise NotImplementedError

    def hooked(self, hook: Callable[[Any], Any]) -> None:
        """Let a hook look at each response, as soon as its head is there."""
        raise NotImplementedError

    def again(self, dependency: Dependency, **guard: Any) -> Any:
        """Guard the client once more."""
        raise NotImplementedError

    def unguard(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class HttpxDriver(Driver):
    http: Any = httpx
    module = on_httpx
    error = httpx.RequestError
    refusal = on_httpx.HttpxUnhealthy

    def __init__(
        self,
        where: Path | int,
        dependency: Dependency,
        *,
        timeout: Any = TIMEOUT,
        pool: int | None = None,
        retries: int = 0,
        proxy: str | None = None,
        **guard: Any,
    ) -> None:
        limits = self.http.Limits(max_connections=pool)
        settings: dict[str, Any] = {"limits": limits, "verify": TLS, "retries": retries, "proxy": proxy}
        if not isinstance(where, int):
            settings["uds"] = str(where)
        base = f"http://127.0.0.1:{where}" if isinstance(where, int) else "http://api"
        times = self.http.Timeout(timeout, pool=None if timeout is None else 0.05)
        self.base = base
        made = self.make(base, times, settings)
        self.client = self.module.guard_client(made, dependency, **guard)

    def make(self, base: str, timeout: Any, settings: Any) -> Any:
        transport = self.http.HTTPTransport(**settings)
        return self.http.Client(base_url=base, transport=transport, timeout=timeout, trust_env=False)

    def call(self, path: str = "/", *, method: str = "GET", body: Any = None, **options: Any) -> Answer:
        options.setdefault("follow_redirects", True)
        response = self.client.request(method, path, content=body, **options)
        return Answer(response.status_code, response.content)

    def stream(self, path: str = "/") -> Iterator[bytes]:
        with self.client.stream("GET", path) as response:
            yield from response.iter_raw()

    def open(self, path: str = "/") -> Any:
        return self.client.send(self.client.build_request("GET", path), stream=True)

    def hooked(self, hook: Callable[[Any], Any]) -> None:
        self.client.event_hooks = {"response": [hook]}

    def again(self, dependency: Dependency, **guard: Any) -> Any:
        return self.module.guard_client(self.client, dependency, **guard)

    def unguard(self) -> None:
        assert self.module.unguard_client(self.client) is self.client

    def close(self) -> None:
        self.client.close()


class AsyncHttpxDriver(HttpxDriver):
    def __init__(self, *args: Any, **options: Any) -> None:
        self.runner = asyncio.Runner()
        super().__init__(*args, **options)

    def do(self, awaitable: Any) -> Any:
        async def done() -> Any:
            return await awaitable

        return self.runner.run(done(), context=copy_context())

    def make(self, base: str, timeout: Any, settings: Any) -> Any:
        transport = self.http.AsyncHTTPTransport(**settings)
        return self.http.AsyncClient(base_url=base, transport=transport, timeout=timeout, trust_env=False)

    def call(self, path: str = "/", *, method: str = "GET", body: Any = None, **options: Any) -> Answer:
        if hasattr(body, "__next__"):
            body = _async(body)
        options.setdefault("follow_redirects", True)
        response = self.do(self.client.request(method, path, content=body, **options))
        return Answer(response.status_code, response.content)

    def stream(self, path: str = "/") -> Iterator[bytes]:
        opened = self.client.stream("GET", path)
        response = self.do(opened.__aenter__())
        try:
            parts = response.aiter_raw()
            while True:
                try:
                    yield self.do(parts.__anext__())
                except StopAsyncIteration:
                    return
        finally:
            self.do(opened.__aexit__(None, None, None))

    def open(self, path: str = "/") -> Any:
        return self.do(self.client.send(self.client.build_request("GET", path), stream=True))

    def hooked(self, hook: Callable[[Any], Any]) -> None:
        async def later(response: Any) -> None:
            hook(response)

        self.client.event_hooks = {"response": [later]}

    def close(self) -> None:
        self.do(self.client.aclose())
        self.runner.close()


async def _async(parts: Iterator[bytes]) -> Any:
    for part in parts:
        yield part


class Httpx2Driver(HttpxDriver):
    in_cycles = not hasattr(httpx2.Client, "sse")  # as they were in the first versions
    http = httpx2
    module = on_httpx2
    error = httpx2.RequestError
    refusal = on_httpx2.Httpx2Unhealthy


class AsyncHttpx2Driver(AsyncHttpxDriver):
    in_cycles = not hasattr(httpx2.Client, "sse")  # as they were in the first versions
    http = httpx2
    module = on_httpx2
    error = httpx2.RequestError
    refusal = on_httpx2.Httpx2Unhealthy


class RequestsDriver(Driver):
    in_cycles = False
    module = on_requests
    error = requests.RequestException
    refusal = on_requests.RequestsUnhealthy

    def __init__(
        self,
        where: Path | int,
        dependency: Dependency,
        *,
        timeout: Any = TIMEOUT,
        pool: int | None = None,
        retries: int = 0,
        proxy: str | None = None,
        **guard: Any,
    ) -> None:
        self.timeout = timeout
        if isinstance(where, int):
            session = requests.Session()
            self.base = f"http://127.0.0.1:{where}"
        else:
            session = requests_unixsocket.Session()
            self.base = "http+unix://" + quote(str(where), safe="")
        session.trust_env = False
        if pool is not None:
            session.mount("http://", HTTPAdapter(pool_maxsize=pool, pool_block=True))
        if proxy is not None:
            session.proxies = {"http": proxy}
        if retries:
            for adapter in session.adapters.values():
                adapter.max_retries = Retry(retries, allowed_methods=None, backoff_factor=0)
        self.client = on_requests.guard_session(session, dependency, base_url=self.base, **guard)

    def call(self, path: str = "/", *, method: str = "GET", body: Any = None, **options: Any) -> Answer:
        url = path if "://" in path else self.base + path
        response = self.client.request(method, url, data=body, timeout=self.timeout, **options)
        return Answer(response.status_code, response.content)

    def stream(self, path: str = "/") -> Iterator[bytes]:
        with self.client.get(self.base + path, stream=True, timeout=self.timeout) as response:
            yield from response.iter_content(4096)

    def open(self, path: str = "/") -> Any:
        return self.client.get(self.base + path, stream=True, timeout=self.timeout)

    def hooked(self, hook: Callable[[Any], Any]) -> None:
        self.client.hooks["response"].append(lambda response, *_, **__: hook(response))

    def again(self, dependency: Dependency, **guard: Any) -> Any:
        return on_requests.guard_session(self.client, dependency, **guard)

    def unguard(self) -> None:
        assert on_requests.unguard_session(self.client) is self.client

    def close(self) -> None:
        self.client.close()


class AiohttpDriver(Driver):
    sees_half_a_head = False
    module = on_aiohttp
    error = aiohttp.ClientError
    refusal = on_aiohttp.AiohttpUnhealthy

    def __init__(
        self,
        where: Path | int,
        dependency: Dependency,
        *,
        timeout: Any = TIMEOUT,
        pool: int | None = None,
        retries: int = 0,
        proxy: str | None = None,
        **guard: Any,
    ) -> None:
        self.runner = asyncio.Runner()
        self.base = f"http://127.0.0.1:{where}" if isinstance(where, int) else "http://api"
        self.hook: Callable[[Any], Any] | None = None
        limits = aiohttp.ClientTimeout(connect=0.1 if pool else None, sock_connect=timeout, sock_read=timeout)

        async def middleware(request: Any, handler: Any) -> Any:
            for left in reversed(range(retries + 1)):
                try:
                    response = await handler(request)
                    break
                except aiohttp.ClientConnectionError:
                    if not left:
                        raise
            if self.hook is not None:
                seen = {"status_code": response.status, "raise_for_status": response.raise_for_status}
                self.hook(SimpleNamespace(**seen))
            return response

        async def make() -> aiohttp.ClientSession:
            connector = (
                aiohttp.TCPConnector(limit=pool or 100)
                if isinstance(where, int)
                else aiohttp.UnixConnector(str(where), limit=pool or 100)
            )
            session = aiohttp.ClientSession(
                self.base,
                connector=connector,
                timeout=limits,
                proxy=proxy,
                middlewares=[middleware],
                read_bufsize=4096,  # what is read is not all of it
            )
            session._retry_connection = False  # its silent retry has tests of its own
            return on_aiohttp.guard_session(session, dependency, **guard)

        self.client = self.do(make())

    def do(self, awaitable: Any) -> Any:
        async def done() -> Any:
            return await awaitable

        return self.runner.run(done(), context=copy_context())

    def call(self, path: str = "/", *, method: str = "GET", body: Any = None, **options: Any) -> Answer:
        if hasattr(body, "__next__"):
            body = _async(body)

        async def called() -> Answer:
            async with self.client.request(method, path, data=body, **options) as response:
                return Answer(response.status, await response.read())

        return self.do(called())

    def stream(self, path: str = "/") -> Iterator[bytes]:
        response = self.open(path)
        try:
            while part := self.do(response.content.read(4096)):
                yield part
        finally:
            response.close()
            self.do(asyncio.sleep(0))  # the loop closes the connection

    def open(self, path: str = "/") -> Any:
        return self.do(self.client.get(path))

    def hooked(self, hook: Callable[[Any], Any]) -> None:
        self.hook = hook

    def again(self, dependency: Dependency, **guard: Any) -> Any:
        return on_aiohttp.guard_session(self.client, dependency, **guard)

    def unguard(self) -> None:
        assert on_aiohttp.unguard_session(self.client) is self.client

    def close(self) -> None:
        self.do(self.client.close())
        self.runner.close()


DRIVERS: dict[str, Callable[..., Driver]] = {
    "httpx": HttpxDriver,
    "httpx async": AsyncHttpxDriver,
    "httpx2": Httpx2Driver,
    "httpx2 async": AsyncHttpx2Driver,
    "requests": RequestsDriver,
    "aiohttp": AiohttpDriver,
}
