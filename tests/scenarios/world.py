"""A small service in front of a real Redis: sessions are keys, and terminating one deletes its key.

What was destroyed is read from the server by a client that nobody guards. Time stands still until a scenario
moves it; the network and the server do not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from safehold import Budget, Dependency, GatePolicy, OperationBlocked, Safehold
from safehold.callsites.redis import guard_client
from safehold.testing import FaultProxy, ManualClock, RedisServer


class World:
    """One scenario's own service. `off` names rules of the gate that are switched off."""

    def __init__(self, server: RedisServer, proxy: FaultProxy, off: Iterable[str] = (), **gate: Any) -> None:
        self.server, self.proxy = server, proxy
        self.raw = redis.Redis.from_url(server.url, decode_responses=True)
        self.raw.flushall()
        self.clock = ManualClock()
        policy = GatePolicy(**{"startup_grace": 0.0, "settle_min": 30.0, **gate})
        self.health = Safehold("scenario", clock=self.clock, rng=random.Random(7), gate=policy)
        self.health._gate_settings = self.health._gate_settings._replace(off=frozenset(off))
        self.redis: Dependency = self.health.dependency("redis", critical=True)
        self.client = self.connect()

    def connect(self) -> redis.Redis:
        """Make another guarded client."""
        client = redis.Redis.from_url(
            self.proxy.url(), socket_timeout=0.15, socket_connect_timeout=0.15, retry=Retry(NoBackoff(), 0)
        )
        return guard_client(client, self.redis)

    # --- the service ------------------------------------------------------------------------------

    def open_sessions(self, count: int = 1) -> list[str]:
        """Open sessions, and let the service see that Redis is well."""
        ids = [f"s{number}" for number in range(count)]
        for session_id in ids:
            self.raw.set(f"session:{session_id}", "here")
        self.see()
        return ids

    def beat(self, *ids: str) -> None:
        """Write heartbeats, as the sessions do by themselves."""
        for session_id in ids:
            self.raw.set(f"heartbeat:{session_id}", "now")

    def see(self) -> None:
        """Let one call answer."""
        self.client.ping()

    def left(self) -> set[str]:
        """Give the sessions that are still there, as the server says."""
        return {str(key).removeprefix("session:") for key in self.raw.keys("session:*")}

    def has_heartbeat(self, session_id: str) -> bool:
        """Ask as ordinary services do: what cannot be told becomes `False`."""
        try:
            return bool(self.client.exists(f"heartbeat:{session_id}"))
        except redis.RedisError:
            return False

    def witness(self, name: str = "heartbeat") -> Callable[[str], Any]:
        """Give a witness of the heartbeats."""

        def ask(session_id: str) -> bool:
            return bool(self.client.exists(f"heartbeat:{session_id}"))

        return self.health.witness("redis", name=name)(ask)

    def operation(self, name: str = "session.reap", **options: Any) -> Callable[[str], None]:
        """Register the operation that deletes a session, through a client that the gate does not see."""

        def delete(session_id: str) -> None:
            self.raw.delete(f"session:{session_id}")

        return self.health.destructive(name, subject="session_id", **options)(delete)

    def budget(self, per_hour: int | None = 10, **more: Any) -> Budget:
        """Give a budget over what is there."""
        return Budget(per_hour=per_hour, population=lambda: len(self.left()), **more)


def tried(operation: Callable[..., Any], *args: Any, **kwargs: Any) -> list[str]:
    """Call an operation that may be blocked, and give the codes that blocked it; none when it ran."""
    try:
        operation(*args, **kwargs)
    except OperationBlocked as blocked:
        return [reason.code for reason in blocked.reasons]
    return []
