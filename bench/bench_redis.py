"""What a guarded redis-py client costs beside a plain one, in one run.

    python bench/bench_redis.py              about a minute
    python bench/bench_redis.py --quick      a few seconds

Plain and guarded are sampled in turn, so that a busy machine slows both. "Stubbed" has connections that
answer at once, so that what is left is redis-py and the guard; "server" is a real one on a unix socket.
Read the ratios and the nanoseconds that are added; absolute times mean little.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
import tracemalloc
from collections.abc import Callable
from itertools import repeat
from typing import Any

import redis
import redis.asyncio

from safehold import Safehold
from safehold.callsites.redis import guard_client
from safehold.testing import RedisServer

health = Safehold("bench")
health.dependency("redis")


class Stub(redis.connection.Connection):
    """Answers at once."""

    def connect(self, *_: Any, **__: Any) -> None:
        pass

    def send_command(self, *_: Any, **__: Any) -> None:
        pass

    def read_response(self, *_: Any, **__: Any) -> bytes:
        return b"value"

    def can_read(self, *_: Any, **__: Any) -> bool:
        return False

    def disconnect(self, *_: Any, **__: Any) -> None:
        pass


class AsyncStub(redis.asyncio.Connection):
    """Answers at once."""

    async def connect(self, *_: Any, **__: Any) -> None:
        pass

    async def send_command(self, *_: Any, **__: Any) -> None:
        pass

    async def read_response(self, *_: Any, **__: Any) -> bytes:
        return b"value"

    async def can_read(self, *_: Any) -> bool:
        return False

    async def can_read_destructive(self) -> bool:
        return False

    async def disconnect(self, *_: Any, **__: Any) -> None:
        pass


def stubbed() -> Any:
    return redis.Redis(connection_pool=redis.ConnectionPool(connection_class=Stub))


def astubbed() -> Any:
    return redis.asyncio.Redis(connection_pool=redis.asyncio.ConnectionPool(connection_class=AsyncStub))


def gets(client: Any, n: int) -> None:
    for _ in repeat(None, n):
        client.get("key")


def queued(client: Any, n: int) -> None:
    pipeline = client.pipeline(transaction=False)
    for _ in repeat(None, n):
        pipeline.get("key")
    pipeline.reset()


def pipelines(client: Any, n: int) -> None:
    for _ in repeat(None, n // 100):
        pipeline = client.pipeline(transaction=False)
        for _ in repeat(None, 100):
            pipeline.get("key")
        pipeline.execute()


async def agets(client: Any, n: int) -> None:
    for _ in repeat(None, n):
        await client.get("key")


def per_call(work: Callable[[], Any], n: int) -> float:
    began = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - began) / n


def tell(name: str, samples: list[tuple[float, float]]) -> None:
    """Compare the minima, and the medians of the ratios of neighbours."""
    plain, guarded = (min(column) for column in zip(*samples, strict=True))
    ratio = statistics.median(g / p for p, g in samples)
    print(f"{name:<28} {plain:>10.0f} {guarded:>10.0f} {guarded - plain:>+9.0f} {ratio:>8.3f}")


def compare(
    name: str, work: Callable[[Any, int], None], make: Callable[[], Any], n: int, rounds: int
) -> None:
    plain, guarded = make(), guard_client(make(), health["redis"])
    for client in (plain, guarded):
        work(client, max(n // 10, 200))
    tell(
        name,
        [(per_call(lambda: work(plain, n), n), per_call(lambda: work(guarded, n), n)) for _ in range(rounds)],
    )


async def acompare(name: str, make: Callable[[], Any], n: int, rounds: int) -> None:
    plain, guarded = make(), guard_client(make(), health["redis"])
    samples = []
    for _ in range(rounds):
        pair = []
        for client in (plain, guarded):
            began = time.perf_counter_ns()
            await agets(client, n)
            pair.append((time.perf_counter_ns() - began) / n)
        samples.append((pair[0], pair[1]))
    tell(name, samples)
    await plain.aclose()
    await guarded.aclose()


def kept_per_command(client: Any) -> float:
    gets(client, 2000)
    tracemalloc.start()
    gets(client, 1000)
    before = tracemalloc.get_traced_memory()[0]
    gets(client, 10_000)
    kept = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return kept / 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    n, rounds = (500, 5) if parser.parse_args().quick else (3000, 40)
    print(f"{'per command, ns':<28} {'plain':>10} {'guarded':>10} {'added':>9} {'ratio':>8}")
    compare("stubbed GET", gets, stubbed, n, rounds)
    compare("stubbed, queued command", queued, stubbed, n, rounds)
    asyncio.run(acompare("stubbed GET, asyncio", astubbed, n, rounds))
    with RedisServer() as server:
        compare("server GET", gets, lambda: redis.Redis(unix_socket_path=server.path), n, rounds)
        compare(
            "server, pipeline of 100", pipelines, lambda: redis.Redis(unix_socket_path=server.path), n, rounds
        )
        asyncio.run(
            acompare(
                "server GET, asyncio",
                lambda: redis.asyncio.Redis(unix_socket_path=server.path),
                n,
                rounds,
            )
        )
    print(f"bytes kept per command: {kept_per_command(guard_client(stubbed(), health['redis'])):.2f}")


if __name__ == "__main__":
    main()
