"""Run as a program: a guarded client in a process that has used up its descriptors. Prints what it saw."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import resource
import sys
import threading
from typing import Any

import redis
import redis.asyncio
from redis.backoff import NoBackoff

from safehold import GatePolicy, Safehold
from safehold.callsites.redis import guard_client

side, path = sys.argv[1:]
health = Safehold("starved", gate=GatePolicy(startup_grace=0.0, implicit_scope=0.0))
dependency = health.dependency("redis", critical=True)
health.destructive("sweep")(lambda: None)
runner = asyncio.Runner()
home: Any = redis if side == "sync" else redis.asyncio
client = home.Redis(unix_socket_path=path, retry=home.retry.Retry(NoBackoff(), 0), socket_timeout=1.0)
guard_client(client, dependency)


def do(function: Any, *args: Any) -> Any:
    async def called() -> Any:
        answer = function(*args)
        return await answer if inspect.isawaitable(answer) else answer

    return runner.run(called())


def number(error: BaseException | None) -> int | None:
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


do(client.set, "a", "1")
do(client.connection_pool.disconnect)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
hoard: list[int] = []
with contextlib.suppress(OSError):
    while True:
        hoard.append(os.open("/dev/null", os.O_RDONLY))

errors = []
for _ in range(3):
    try:
        do(client.get, "a")
    except (redis.RedisError, OSError) as error:
        errors.append(number(error))
status_error = None
try:
    dependency.status()
except OSError as error:
    status_error = repr(error)
failures = dependency._breaker.failures
blocked = not health.check("sweep")  # and a probe is on its way
for thread in threading.enumerate():
    if thread.name.startswith("safehold-probe"):
        thread.join()
failures_of_probe = dependency._breaker.failures - failures
for descriptor in hoard:
    os.close(descriptor)
status = dependency.status()
after = do(client.get, "a")
do(client.connection_pool.disconnect)
told = {
    "errors": errors,
    "status_error": status_error,
    "failures": failures,
    "failures_of_probe": failures_of_probe,
    "breaker": status.breaker,
    "state": status.state,
    "cause": status.cause,
    "blocked": blocked,
    "after": after.decode(),
    "state_after": dependency.state,
}
sys.stdout.write(json.dumps(told) + "\n")
runner.close()
