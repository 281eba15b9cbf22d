"""A Sentinel-managed client under guard: a failover, and a replica that is lost."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.sentinel import Sentinel

from safehold import Backoff, BreakerPolicy, GatePolicy, Safehold
from safehold.callsites.redis import guard_client
from safehold.testing import RedisServer

from .cluster import wait_for

SERVICE = "sessions"
POLICY = BreakerPolicy(failures=3, cooldown=Backoff(first=0.1, factor=1.0, cap=0.1))


class Estate:
    """One master, two replicas, three sentinels."""

    def __init__(self, binary: str, home: Path) -> None:
        self.binary = binary
        self.home = home
        self.servers = [RedisServer(listen="tcp", binary=binary) for _ in range(3)]
        self._sentinels: list[subprocess.Popen[bytes]] = []
        self.ports: list[int] = []

    def start(self) -> None:
        for server in self.servers:
            server.start()
        self.master = self.servers[0]
        for server in self.servers[1:]:
            with redis.Redis(port=server.port) as node:
                node.execute_command("REPLICAOF", "127.0.0.1", self.master.port)
        for number in range(3):
            self._start_sentinel(number)
        wait_for(self._is_complete, "estate that knows itself")

    def _start_sentinel(self, number: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = self.home / f"sentinel-{number}.conf"
        settings.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self.home}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.master.port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} 500\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )
        process = subprocess.Popen(
            [self.binary, str(settings), "--sentinel"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._sentinels.append(process)
        self.ports.append(port)

    def _is_complete(self) -> bool:
        try:
            for port in self.ports:
                with redis.Redis(port=port, decode_responses=True, socket_timeout=1) as sentinel:
                    state: Any = sentinel.execute_command("SENTINEL MASTER", SERVICE)
                    if int(state["num-slaves"]) < 2 or int(state["num-other-sentinels"]) < 2:
                        return False
        except redis.RedisError:
            return False
        return True

    def stop(self) -> None:
        for process in self._sentinels:
            process.send_signal(signal.SIGKILL)
            process.wait()
        for server in self.servers:
            server.stop()


@pytest.fixture
def estate(redis_binary: str, tmp_path: Path) -> Iterator[Estate]:
    estate = Estate(redis_binary, tmp_path)
    try:
        estate.start()
        yield estate
    finally:
        estate.stop()


def _guarded(estate: Estate) -> tuple[Safehold, Any]:
    health = Safehold(gate=GatePolicy(startup_grace=0, settle_min=0.05, settle_max=0.1))
    dependency = health.dependency("redis", critical=True, policy=POLICY)
    sentinel = Sentinel([("127.0.0.1", port) for port in estate.ports], socket_timeout=0.5)
    return health, guard_client(sentinel.master_for(SERVICE), dependency)


def test_a_failover_is_an_outage_that_ends(estate: Estate) -> None:
    """The master dies, the calls fail or are refused, the next master is found, and health says so."""
    health, client = _guarded(estate)
    dependency = health["redis"]
    assert client.set("k", "v") is True
    assert dependency.state == "healthy"
    with health.running():
        estate.master.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("k")
        assert dependency.state != "healthy"
        wait_for(lambda: _writes(client), "next master", timeout=30)
    assert client.connection_pool.get_master_address()[1] != estate.master.port
    estate.master.start()  # it comes back as a replica; until then one replica is lost
    probe: Any = dependency._probe
    wait_for(
        lambda: _writes(client) and _probes(probe) and dependency.state == "healthy",
        "health",
        timeout=30,
    )


def _writes(client: Any) -> bool:
    try:
        return bool(client.set("k", "v"))
    except redis.RedisError:
        return False


def _probes(probe: Any) -> bool:
    try:
        return probe() is not None
    except redis.RedisError:
        return False


def test_a_lost_replica_is_a_degraded_dependency(estate: Estate) -> None:
    """The master answers, and the probe has learnt from a sentinel that one replica is gone, and is back."""
    health, client = _guarded(estate)
    dependency = health["redis"]
    client.set("k", "v")
    probe: Any = dependency._probe
    probe()
    assert dependency.status().impaired == {}
    replica = estate.servers[1]
    replica.kill()
    facet = f"replica 127.0.0.1:{replica.port}"
    wait_for(lambda: probe() is not None and facet in dependency.status().impaired, "loss to be seen")
    assert (dependency.state, dependency.breaker) == ("degraded", "closed")
    assert client.get("k") == b"v"
    replica.start()
    with redis.Redis(port=replica.port) as node:
        node.execute_command("REPLICAOF", "127.0.0.1", estate.master.port)
    wait_for(lambda: probe() is not None and not dependency.status().impaired, "replica to be back")
    assert dependency.state == "healthy"
