"""A real Redis at an address that can be taken away, a guarded client of it, and probes that run."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff

from safehold import (
    Backoff,
    BreakerPolicy,
    BreakerState,
    DependencyUnhealthy,
    GatePolicy,
    HealthState,
    ProbePolicy,
    Safehold,
    Transition,
)
from safehold.callsites.redis import RedisUnhealthy, guard_client
from safehold.testing import FaultProxy, RedisServer
from safehold.testing.servers import ServerNotReady

from .sides import PATIENCE, Side

TIMEOUT = 0.25  # seconds that a client waits for a connection, and again for a reply
COOLDOWN = 0.05
SETTLE = 0.05
FAILURES = 2
SLACK = 0.7  # what a slow machine may take on top
QUICK = 0.2  # a refusal needs no wait
POLICY = BreakerPolicy(
    failures=FAILURES,
    failure_rate=None,
    cooldown=Backoff(first=COOLDOWN, factor=1.0, cap=COOLDOWN, jitter=0.0),
)
PROBES = ProbePolicy(timeout=0.3)
GATE = GatePolicy(startup_grace=0.0, settle_min=SETTLE, settle_max=SETTLE, implicit_scope=0.0)


def patient(side: Side) -> dict[str, Any]:
    """The settings of a client that tries again by itself: none, as `Redis()` does it, where it does."""
    if redis.VERSION >= (6,):
        return {"retry": ...}
    made = side.pick(redis.retry.Retry, redis.asyncio.retry.Retry)(NoBackoff(), 10)
    return {"retry": made, "retry_on_error": [redis.ConnectionError, redis.TimeoutError]}


class World:
    """`listen`: `unix` (by a link that can be led elsewhere), `tcp`, or `proxy` (TCP through a proxy)."""

    def __init__(
        self,
        side: Side,
        binary: str,
        directory: Path,
        *,
        listen: str = "unix",
        policy: BreakerPolicy = POLICY,
        resend_writes: bool = False,
        args: tuple[str, ...] = (),
        **client: Any,
    ) -> None:
        self.side = side
        self.listen = listen
        self.link = directory / "redis.sock"
        self._stack = contextlib.ExitStack()
        kind: Any = "unix" if listen == "unix" else "tcp"
        self.server = self._stack.enter_context(
            RedisServer(listen=kind, binary=binary, args=("--enable-debug-command", "yes", *args))
        )
        self.proxy: Any = None
        if listen == "unix":
            self.link.symlink_to(self.server.path)
        elif listen == "proxy":
            self.proxy = self._stack.enter_context(FaultProxy(("127.0.0.1", self.server.port)))
        self.health = Safehold("chaos", gate=GATE)
        self.dependency = self.health.dependency("redis", critical=True, policy=policy, probe_policy=PROBES)
        self.events: list[Transition] = []
        self._changed = threading.Condition()
        self.health.subscribe(self._take)
        self.settings = client
        self.client = self.connect(resend_writes=resend_writes, **client)
        self._leave = side.enter(self.health.running())

    # --- clients ------------------------------------------------------------------------------------

    def address(self) -> dict[str, Any]:
        if self.listen == "unix":
            return {"unix_socket_path": str(self.link)}
        return {"host": "127.0.0.1", "port": (self.proxy or self.server).port}

    def plain(self, **options: Any) -> Any:
        """A client that asks once; with `**patient(side)` one that does not."""
        once = self.side.pick(redis.retry.Retry, redis.asyncio.retry.Retry)(NoBackoff(), 0)
        settings = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "retry": once, **options}
        settings = {name: value for name, value in settings.items() if value is not ...}
        return self.kept(self.side.pick(redis.Redis, redis.asyncio.Redis)(**{**self.address(), **settings}))

    def kept(self, client: Any) -> Any:
        """Close it in the end."""
        self._stack.callback(self._close, client)
        return client

    def connect(self, *, resend_writes: bool = False, **options: Any) -> Any:
        return guard_client(self.plain(**options), self.dependency, resend_writes=resend_writes)

    def hang_up(self) -> None:
        """Close the connections that nobody uses."""
        self.side.do(self.client.connection_pool.disconnect, inuse_connections=False)

    def _close(self, client: Any) -> None:
        assert not getattr(client.connection_pool, "_in_use_connections", None)
        self.side.do(client.aclose if self.side.is_async and hasattr(client, "aclose") else client.close)
        self.side.do(client.connection_pool.disconnect)

    # --- calls --------------------------------------------------------------------------------------

    def do(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return self.side.do(function, *args, **options)

    def fails(self, function: Callable[..., Any], *args: Any, within: float = 2 * TIMEOUT) -> Any:
        """Call it, let it fail within so many seconds with an error of redis-py's own, and give the error."""
        error, took = self._caught(function, *args)
        assert not isinstance(error, DependencyUnhealthy), error
        assert took < within + SLACK, f"{error!r} after {took:.2f} s"
        return error

    def refused(self, function: Callable[..., Any], *args: Any) -> RedisUnhealthy:
        """Call it and let it be refused, at once, with all that a refusal has to say."""
        error, took = self._caught(function, *args)
        assert type(error) is RedisUnhealthy, error
        assert isinstance(error, redis.ConnectionError)
        assert isinstance(error, DependencyUnhealthy)
        assert took < QUICK, f"refused after {took:.2f} s"
        assert error.dependency == "redis"
        assert error.state in {HealthState.UNHEALTHY, HealthState.RECOVERING}
        assert error.retry_after is not None
        assert error.retry_after >= 0
        assert error.outcome == "not_executed"
        return error

    def _caught(self, function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
        began = time.monotonic()
        try:
            answer = self.do(function, *args)
        except Exception as error:
            return error, time.monotonic() - began
        raise AssertionError(f"it answered {answer!r}")

    # --- health -------------------------------------------------------------------------------------

    @property
    def status(self) -> Any:
        return self.dependency.status()

    def _take(self, event: Any) -> None:
        with self._changed:
            if isinstance(event, Transition):
                self.events.append(event)
            self._changed.notify_all()

    def until(self, true: Callable[[], bool], what: str = "") -> None:
        """Wait for it, at each event and now and then."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert time.monotonic() < deadline, (what, self.status, self.events[-6:])
            with self._changed:
                self._changed.wait(0.02)

    def opened(self) -> Transition:
        """The transition that opened the breaker first."""
        return next(event for event in self.events if event.breaker is BreakerState.OPEN)

    def probe_fails(self, times: int = 1) -> None:
        """Wait until so many probes have failed; none may have closed the breaker."""
        mark = len(self.events)
        before = self.status.generation
        self.until(lambda: self.status.generation >= before + 2 * times, "no probe")
        closed = [event for event in self.events[mark:] if event.breaker is BreakerState.CLOSED]
        assert not closed, f"a probe took this for an answer: {closed}"

    def recovers(self, within: float = 5.0) -> None:
        """Wait until it is healthy by what probes and calls see."""
        began = time.monotonic()
        self.until(lambda: self.dependency.breaker is BreakerState.CLOSED, "never closed")
        assert self.do(self.client.set, "after", "all")
        assert self.do(self.client.get, "after") == b"all"
        self.until(lambda: self.dependency.state is HealthState.HEALTHY, "never settled")
        status = self.status
        assert (status.breaker, status.impaired, status.unresolved_miss) == (BreakerState.CLOSED, {}, False)
        assert time.monotonic() - began < within
        self.no_connection_leaked()

    def no_connection_leaked(self) -> None:
        """The server knows no more connections than the client's pool does."""
        pool = self.client.connection_pool
        assert not pool._in_use_connections
        mine = [c for c in pool._available_connections if _stands(c)]
        self.until(lambda: self.connections() <= len(mine), f"more than {len(mine)} connections")

    def connections(self) -> int:
        """How many the server has, without the one that asks."""
        return len(str(self.server.command("CLIENT", "LIST")).strip().splitlines()) - 1

    def close(self) -> None:
        self._leave()
        self.health.stop()
        with contextlib.suppress(ServerNotReady):
            self.server.kill()  # sooner done than asking it to stop
        self._stack.close()


def _stands(connection: Any) -> bool:
    if hasattr(connection, "_writer"):
        return bool(connection.is_connected)
    return connection._sock is not None


def descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def _threads() -> set[threading.Thread]:
    """All but the one that watches the whole process, which stays once it has begun."""
    return {thread for thread in threading.enumerate() if thread.name != "safehold-observer"}


@contextlib.contextmanager
def nothing_left(side: Side) -> Iterator[None]:
    """Whatever happened in the block: no descriptor, thread or task is left of it."""
    before = descriptors()
    threads = _threads()
    yield
    deadline = time.monotonic() + PATIENCE
    while (more := _threads() - threads) and time.monotonic() < deadline:
        for thread in more:  # one that ends may have begun another
            thread.join(max(0.0, deadline - time.monotonic()))
    assert not more, more
    assert side.tasks() == []
    after = descriptors()
    if len(after) > len(before):
        gc.collect()
        after = descriptors()
    assert len(after) <= len(before), {k: v for k, v in after.items() if before.get(k) != v}
