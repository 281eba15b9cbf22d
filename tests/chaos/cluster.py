"""A real cluster of three masters, formed once and broken on purpose."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import redis

from safehold.testing import RedisServer

SETTINGS = (
    "--cluster-enabled",
    "yes",
    "--cluster-node-timeout",
    "1000",
    "--cluster-require-full-coverage",
    "no",
)
LAST_SLOT = 16383


class Cluster:
    def __init__(self, servers: list[RedisServer]) -> None:
        self.servers = servers

    @property
    def startup_nodes(self) -> list[tuple[str, int]]:
        return [("127.0.0.1", server.port) for server in self.servers]

    def server_of(self, port: int) -> RedisServer:
        return next(server for server in self.servers if server.port == port)


@contextmanager
def running_cluster(binary: str) -> Iterator[Cluster]:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(RedisServer(listen="tcp", binary=binary, args=SETTINGS)) for _ in range(3)
        ]
        cluster = Cluster(servers)
        share = (LAST_SLOT + 1) // 3
        for index, server in enumerate(servers):
            last = LAST_SLOT if index == 2 else (index + 1) * share - 1
            with redis.Redis(port=server.port) as node:
                node.execute_command("CLUSTER", "ADDSLOTSRANGE", index * share, last)
                for other in servers[:index]:
                    node.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)
        wait_for(lambda: all(_formed(server) for server in servers), "a cluster")
        yield cluster


def _formed(server: RedisServer) -> bool:
    with redis.Redis(port=server.port, decode_responses=True) as node:
        info = str(node.execute_command("CLUSTER INFO"))
        return (
            "cluster_state" in info and "ok" in info.split("cluster_state")[1][:8] and "known_nodes" in info
        )


def wait_for(true, what: str, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"no {what} within {timeout} s"
        time.sleep(0.05)
