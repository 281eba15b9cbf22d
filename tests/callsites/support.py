"""What the call sites' tests share: both sides of a client in one body, and something to wait on."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any

import pytest

from safehold import Backoff, BreakerPolicy, BreakerState, Dependency, HealthState, Safehold
from safehold.testing.proxy import Entry, FaultProxy

PATIENCE = 20.0
COOLDOWN = 10.0
TIMEOUT = 0.4  # of the clients; what hangs, hangs for so long
POLICY = BreakerPolicy(
    failures=2, failure_rate=None, cooldown=Backoff(first=COOLDOWN, factor=1.0, cap=COOLDOWN, jitter=0.0)
)


class Side:
    """Sync or asyncio: `do` calls a function of the client, and waits for what it gives."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._runner = asyncio.Runner() if name == "asyncio" else None

    @property
    def is_async(self) -> bool:
        return self._runner is not None

    def do(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call it; an awaitable is awaited, in the scope of the caller."""

        async def called() -> Any:
            answer = function(*args, **options)
            return await answer if inspect.isawaitable(answer) else answer

        if self._runner is None:
            return function(*args, **options)
        return self._runner.run(called(), context=copy_context())

    def pick(self, sync: Any, asynchronous: Any) -> Any:
        return asynchronous if self.is_async else sync

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()

    def __repr__(self) -> str:
        return self.name


class Watch:
    """All events of one Safehold, and a way to wait for what they bring about."""

    def __init__(self, health: Safehold) -> None:
        self.health = health
        self.events: list[Any] = []
        self._changed = threading.Condition()
        health.subscribe(self._take)

    def _take(self, event: Any) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def until(self, predicate: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(predicate, PATIENCE), self.events

    def until_closed(self, dependency: Dependency) -> None:
        self.until(lambda: dependency.breaker is BreakerState.CLOSED)

    def probe(self, dependency: Dependency) -> HealthState:
        """Let a block order a probe of a dependency of which nothing is known, and give what came of it."""
        name = f"{dependency.name}.look"
        self.health.destructive(name, requires=[dependency.name])(lambda: None)
        assert dependency.state is HealthState.UNKNOWN
        assert not self.health.check(name)
        self.until(lambda: dependency.state is not HealthState.UNKNOWN)
        return dependency.state


def since(proxy: FaultProxy, mark: Entry | None, *kinds: str) -> list[Entry]:
    """What the proxy has seen after `mark`, of these kinds."""
    first = -1 if mark is None else mark.seq
    return [entry for entry in proxy.journal if entry.seq > first and (not kinds or entry.kind in kinds)]


def last(proxy: FaultProxy) -> Entry | None:
    journal = proxy.journal
    return journal[-1] if journal else None


def wait_for_quiet(proxy: FaultProxy) -> None:
    """Wait until the proxy has seen the end of every connection."""
    mark: Entry | None = None
    while proxy.connections:
        mark = proxy.wait_for(lambda entry: entry.kind in {"closed", "reset"}, after=mark, timeout=PATIENCE)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def swallowed(call: Callable[[], Any]) -> bool:
    """Ask as most code does: whatever goes wrong is a no."""
    try:
        return bool(call())
    except Exception:
        return False


class ScriptedRedis:
    """A server that says OK to all but ECHO: there `answer` is given the words, and gives the bytes."""

    def __init__(self, answer: Callable[[list[str]], bytes]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.heard: list[list[str]] = []
        self._guests: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._admit, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for guest in self._guests:
            with contextlib.suppress(OSError):
                guest.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)

    def _admit(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                guest, _ = self._listener.accept()
                self._guests.append(guest)
                self._threads.append(threading.Thread(target=self._serve, args=(guest,), daemon=True))
                self._threads[-1].start()

    def _serve(self, guest: socket.socket) -> None:
        with guest, guest.makefile("rb") as stream, contextlib.suppress(OSError):
            while line := stream.readline():
                words = []
                for _ in range(int(line[1:])):
                    size = int(stream.readline()[1:])
                    words.append(stream.read(size + 2)[:-2].decode())
                self.heard.append(words)
                guest.sendall(self._answer(words) if words[0] == "ECHO" else b"+OK\r\n")


@contextlib.contextmanager
def scripted(answer: Callable[[list[str]], bytes]) -> Iterator[ScriptedRedis]:
    server = ScriptedRedis(answer)
    try:
        yield server
    finally:
        server.close()


def raises(kind: type[BaseException], call: Callable[[], Any]) -> BaseException:
    with pytest.raises(kind) as caught:
        call()
    return caught.value
