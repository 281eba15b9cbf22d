"""A guarded stream is judged by exchange: what was asked, and whether the answer came, in time and whole."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import inspect
import os
import pickle
import socket
import ssl
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, Self

import pytest

from safehold import (
    BreakerPolicy,
    BreakerState,
    ConfigurationError,
    Dependency,
    DependencyUnhealthy,
    HealthState,
    Safehold,
)
from safehold.callsites.streams import (
    TABLE,
    Streams,
    StreamUnhealthy,
    connect,
    exchange,
    open_connection,
    open_unix_connection,
)
from safehold.testing.clock import ManualClock

from .scripts import full_backlog
from .support import COOLDOWN, PATIENCE, POLICY, Side, Watch, descriptors

NEVER = BreakerPolicy(failures=None, failure_rate=None)
NOBODY = 65534
SOON = 0.1


@pytest.fixture
def dependency(health: Safehold) -> Dependency:
    return health.dependency("daemon", critical=True, policy=NEVER)


@pytest.fixture
def prompt(health: Safehold) -> Dependency:
    return health.dependency("prompt", critical=True, policy=POLICY)


# --- a daemon that answers lines, and both sides of its client ---------------------------------------------


class Guest:
    """One connection, as a script sees it. `number` counts its lines, from one."""

    def __init__(self, daemon: Daemon, line: socket.socket) -> None:
        self.daemon = daemon
        self.line = line
        self.number = 0

    def say(self, data: bytes) -> None:
        self.line.sendall(data)

    def drip(self) -> None:
        while not self.daemon.closing.wait(0.02):
            self.say(b"x")

    def hang(self) -> None:
        self.daemon.hanging.set()
        with contextlib.suppress(OSError):
            while self.line.recv(65536):
                pass

    def reset(self) -> None:
        if self.line.family != socket.AF_UNIX:
            self.line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.line.close()


Play = Callable[[Guest, bytes], Any]


class Daemon:
    """A server that calls `play` for each line of each connection, until that gives `False`."""

    def __init__(self, where: Path | None, play: Play) -> None:
        self._play = play
        self.closing = threading.Event()
        self.hanging = threading.Event()
        self.heard: list[bytes] = []
        self.accepted = 0
        self.admitted = threading.Semaphore(0)
        if where is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(where))
            self._listener.listen(16)
        self.where: Any = where or self._listener.getsockname()[:2]
        self._guests: list[Guest] = []
        self._threads = [threading.Thread(target=self._admit, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(PATIENCE)  # nobody is admitted any more
        for guest in self._guests:
            with contextlib.suppress(OSError):
                guest.line.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)

    def _admit(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                self.accepted += 1
                guest = Guest(self, line)
                self._guests.append(guest)
                self._threads.append(threading.Thread(target=self._serve, args=(guest,), daemon=True))
                self._threads[-1].start()
                self.admitted.release()

    def _serve(self, guest: Guest) -> None:
        with guest.line, contextlib.suppress(OSError), guest.line.makefile("rb") as lines:
            for line in lines:
                guest.number += 1
                self.heard.append(line)
                if self._play(guest, line) is False:
                    return


def echo(guest: Guest, line: bytes) -> None:
    guest.say(line)


def closed(guest: Guest, line: bytes) -> bool:
    return False


def half(guest: Guest, line: bytes) -> bool:
    guest.say(b"hal")
    return False


class Client:
    """Lines over a guarded stream, sync or asyncio; whatever is wrong with an answer is an exception."""

    def __init__(self, side: Side, dependency: Dependency, where: Any) -> None:
        self.side = side
        self.dependency = dependency
        if not side.is_async:
            self.sock: Any = connect(dependency, os.fspath(where) if isinstance(where, Path) else where)
            self.file = self.sock.makefile("rb")
        elif isinstance(where, tuple):
            self.streams = side.do(open_connection, dependency, *where)
        else:
            self.streams = side.do(open_unix_connection, dependency, where)

    def ask(
        self,
        line: bytes = b"ping\n",
        *,
        deadline: float | None = PATIENCE,
        long: bool = False,
        read: Callable[[bytes], Any] = lambda answer: answer,
    ) -> Any:
        if self.side.is_async:
            return self.side.do(self._ask_async, line, deadline, long, read)
        with exchange(self.dependency, self.sock, deadline=deadline, long=long) as sock:
            sock.sendall(line)
            answer = self.file.readline()
            if not answer.endswith(b"\n"):
                raise asyncio.IncompleteReadError(answer, None)
            return read(answer)

    async def _ask_async(self, line: bytes, deadline: Any, long: bool, read: Any) -> Any:
        async with self.streams.exchange(deadline=deadline, long=long) as (reader, writer):
            writer.write(line)
            await writer.drain()
            return read(await reader.readuntil())

    def close(self) -> None:
        if self.side.is_async:
            self.side.do(self._close_async)
        else:
            self.file.close()
            self.sock.close()

    async def _close_async(self) -> None:
        self.streams.writer.close()
        with contextlib.suppress(OSError):
            await self.streams.writer.wait_closed()


@pytest.fixture
def client(side: Side, dependency: Dependency) -> Iterator[Callable[..., Client]]:
    with contextlib.ExitStack() as stack:

        def client(where: Any, of: Dependency = dependency) -> Client:
            made = Client(side, of, where)
            stack.callback(made.close)
            return made

        yield client


def counts(dependency: Dependency) -> tuple[int, int, bool]:
    report = dependency.status()
    return report.successes, report.failures, report.unresolved_miss


# --- connecting ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def missing(where: Path) -> Iterator[None]:
    yield


@contextlib.contextmanager
def stale(where: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(where))
    yield


@contextlib.contextmanager
def regular(where: Path) -> Iterator[None]:
    where.write_text("no socket")
    yield


@contextlib.contextmanager
def forbidden(where: Path) -> Iterator[None]:
    with Daemon(where, echo):
        where.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(user)


CONNECTING = {
    "missing": (missing, FileNotFoundError, "no such file or directory"),
    "stale": (stale, ConnectionRefusedError, "connection refused"),
    "regular file": (regular, ConnectionRefusedError, "connection refused"),
    "permission": (forbidden, PermissionError, "no permission to open the socket"),
    "full backlog": (full_backlog, OSError, "its accept queue is full"),
}


@pytest.mark.parametrize("name", CONNECTING)
def test_connection_that_cannot_be_made_counts(
    side: Side, dependency: Dependency, health: Safehold, tmp_path: Path, name: str
) -> None:
    """The error is the operating system's own, nothing was sent, and it is one failure and a miss."""
    make, kind, cause = CONNECTING[name]
    with make(tmp_path / "s"), health.scope("work") as scope:
        with pytest.raises(kind) as caught:
            if side.is_async:
                side.do(open_unix_connection, dependency, tmp_path / "s")
            else:
                connect(dependency, tmp_path / "s", timeout=SOON)
        assert scope.tainted
    assert caught.value.outcome == "not_executed"
    assert not hasattr(caught.value, "__notes__")
    assert dependency.status().cause == cause
    assert counts(dependency) == (0, 1, True)


@pytest.mark.parametrize("where", ["refused", "no such name", "too long"])
def test_other_addresses_that_lead_nowhere(side: Side, dependency: Dependency, where: str) -> None:
    """A port where nobody listens, a name without address, a path that is none."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address: Any = {
        "refused": ("127.0.0.1", port),
        "no such name": ("no.such.invalid", 1),
        "too long": "/" + "x" * 200,
    }
    with pytest.raises(OSError) as caught:
        if not side.is_async:
            connect(dependency, address[where])
        elif where == "too long":
            side.do(open_unix_connection, dependency, address[where])
        else:
            side.do(open_connection, dependency, *address[where])
    assert caught.value.outcome == "not_executed"
    causes = {
        "refused": "connection refused",
        "no such name": "name not resolved",
        "too long": "the path is no such socket",
    }
    assert dependency.status().cause == causes[where]
    assert counts(dependency) == (0, 1, True)


async def test_name_with_several_addresses_is_refused_at_all_of_them(
    dependency: Dependency, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio makes one error without a number of several; it is a refusal all the same."""
    loop = asyncio.get_running_loop()
    known = loop.getaddrinfo

    async def getaddrinfo(*_: Any, **__: Any) -> Any:
        return [
            *await known("127.0.0.1", 1, type=socket.SOCK_STREAM),
            *await known("127.0.0.2", 1, type=socket.SOCK_STREAM),
        ]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
    with pytest.raises(OSError, match="Multiple") as caught:
        await open_connection(dependency, "several.example", 1)
    assert caught.value.errno is None
    assert dependency.status().cause == "none of its addresses can be connected to"


def test_connection_in_time_or_not_at_all(dependency: Dependency, side: Side) -> None:
    """Connecting has a time-out of its own, and it is the client's."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, contextlib.ExitStack() as stack:
        address = listener.getsockname()[:2]
        for _ in range(4):  # what waits in the queue fills it
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        with pytest.raises(TimeoutError) as caught:
            if side.is_async:
                side.do(open_connection, dependency, *address, deadline=SOON)
            else:
                connect(dependency, address, timeout=SOON)
    assert caught.value.outcome == "not_executed"  # type: ignore[attr-defined]
    assert counts(dependency) == (0, 1, True)


def test_connecting_alone_proves_nothing(client: Any, dependency: Dependency, tmp_path: Path) -> None:
    """The kernel connects for a daemon that hangs; only an answer is a success."""
    with Daemon(tmp_path / "s", echo):
        made = client(tmp_path / "s")
        assert counts(dependency) == (0, 0, False)
        assert dependency.state is HealthState.UNKNOWN
        assert made.ask() == b"ping\n"
        assert counts(dependency) == (1, 0, False)
        assert dependency.state is HealthState.HEALTHY


def test_daemon_that_hangs_trips_though_it_connects(
    client: Any, side: Side, prompt: Dependency, tmp_path: Path
) -> None:
    """A new connection for each question resets no streak."""
    with Daemon(tmp_path / "s", lambda guest, _: guest.hang()):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                client(tmp_path / "s", prompt).ask(deadline=SOON)
    assert prompt.breaker is BreakerState.OPEN


# --- exchanges ----------------------------------------------------------------------------------------------


def reset(guest: Guest, line: bytes) -> bool:
    guest.reset()
    return False


EXCHANGES: dict[str, tuple[Play, Any, str]] = {
    "no answer": (lambda guest, _: guest.hang(), TimeoutError, "timed out"),
    "dripped": (lambda guest, _: guest.drip(), TimeoutError, "timed out"),
    "stalled": (lambda guest, _: (guest.say(b"hal"), guest.hang()), TimeoutError, "timed out"),
    "closed": (closed, EOFError, "closed before the answer"),
    "cut": (half, asyncio.IncompleteReadError, "the answer was cut short"),
}


@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.parametrize("over", ["unix", "tcp"])
def test_answer_that_does_not_come_counts(
    client: Any, dependency: Dependency, health: Safehold, tmp_path: Path, name: str, over: str
) -> None:
    """Whatever may have been done with the question is unknown, and the error says so; it is one failure."""
    play, kind, cause = EXCHANGES[name]
    with Daemon(tmp_path / "s" if over == "unix" else None, play) as daemon, health.scope("work") as scope:
        with pytest.raises(kind) as caught:
            client(daemon.where).ask(deadline=SOON if kind is TimeoutError else PATIENCE)
        assert scope.tainted
    assert caught.value.outcome == "unknown"
    assert "unknown, what was asked for may have been executed" in "".join(caught.value.__notes__)
    assert dependency.status().cause == cause
    assert counts(dependency) == (0, 1, True)


async def test_lines_that_are_written_to_a_lost_connection_say_what_writing_says(
    dependency: Dependency,
) -> None:
    """Python 3.13.0 stumbles over them, and that is no mistake of the caller's."""
    with Daemon(None, reset) as daemon:
        reader, writer = streams = await open_connection(dependency, *daemon.where)
        with pytest.raises(ConnectionResetError):
            async with streams.exchange(deadline=PATIENCE):
                writer.write(b"x\n")
                await reader.read()
        with pytest.raises(ConnectionResetError):
            async with streams.exchange(deadline=PATIENCE):
                writer.writelines([b"x\n"])
                await writer.drain()
        writer.close()
    assert counts(dependency) == (0, 2, True)


def test_reset_counts(client: Any, dependency: Dependency) -> None:
    """So does a connection that is reset."""
    with Daemon(None, reset) as daemon:
        with pytest.raises(ConnectionResetError) as caught:
            client(daemon.where).ask()
    assert caught.value.outcome == "unknown"  # type: ignore[attr-defined]
    assert dependency.status().cause == "connection reset by peer"
    assert counts(dependency) == (0, 1, True)


def test_answer_that_makes_no_sense_counts(client: Any, dependency: Dependency, tmp_path: Path) -> None:
    """What the caller's parser raises in the exchange is about the answer."""
    with Daemon(tmp_path / "s", lambda guest, _: guest.say(b"SMTP ready\n")):
        with pytest.raises(ValueError, match="invalid literal"):
            client(tmp_path / "s").ask(read=int)
    assert counts(dependency) == (0, 1, True)
    assert dependency.status().cause == "broken answer"


@pytest.mark.parametrize("error", [TypeError, AttributeError, AssertionError, NotImplementedError])
def test_mistake_of_the_caller_says_nothing(
    client: Any, dependency: Dependency, tmp_path: Path, error: type[Exception]
) -> None:
    """A bug in the block is none of the daemon's."""

    def read(_: bytes) -> None:
        raise error

    with Daemon(tmp_path / "s", echo):
        with pytest.raises(error):
            client(tmp_path / "s").ask(read=read)
    assert counts(dependency) == (0, 0, False)


def test_nothing_written_is_nothing_executed(side: Side, dependency: Dependency, tmp_path: Path) -> None:
    """Who waits for a greeting that does not come has asked for nothing."""
    with Daemon(tmp_path / "s", echo):
        if side.is_async:

            async def waits() -> None:
                streams = await open_unix_connection(dependency, tmp_path / "s")
                try:
                    async with streams.exchange(deadline=SOON) as (reader, _):
                        await reader.readline()
                finally:
                    streams.writer.close()

            with pytest.raises(TimeoutError) as caught:
                side.do(waits)
        else:
            with connect(dependency, tmp_path / "s") as sock, pytest.raises(TimeoutError) as caught:
                with exchange(dependency, sock, deadline=SOON):
                    sock.recv(10)
    assert caught.value.outcome == "not_executed"  # type: ignore[attr-defined]
    assert counts(dependency) == (0, 1, True)


def test_end_before_anything_was_said_counts_though_nothing_is_raised(
    side: Side, dependency: Dependency, tmp_path: Path
) -> None:
    """Nobody has to look at an empty read for it to be a failure."""
    with Daemon(tmp_path / "s", closed):
        if side.is_async:

            async def asks() -> bytes:
                streams = await open_unix_connection(dependency, tmp_path / "s")
                async with streams.exchange(deadline=PATIENCE) as (reader, writer):
                    writer.write(b"x\n")
                    answer = await reader.read()
                writer.close()
                return answer

            assert side.do(asks) == b""
        else:
            with connect(dependency, tmp_path / "s") as sock, exchange(dependency, sock, deadline=PATIENCE):
                sock.sendall(b"x\n")
                assert sock.recv(10) == b""
    assert counts(dependency) == (0, 1, True)


def test_answer_that_ends_with_the_connection_is_whole(
    side: Side, dependency: Dependency, tmp_path: Path
) -> None:
    """Where the end of the connection is the end of the answer, it is no failure."""
    with Daemon(tmp_path / "s", lambda guest, _: (guest.say(b"all\nof it\n"), False)[1]):
        if side.is_async:

            async def asks() -> list[bytes]:
                streams = await open_unix_connection(dependency, tmp_path / "s")
                async with streams.exchange(deadline=PATIENCE) as (reader, writer):
                    writer.write(b"x\n")
                    lines = [line async for line in reader]
                writer.close()
                return lines

            assert side.do(asks) == [b"all\n", b"of it\n"]
        else:
            with connect(dependency, tmp_path / "s") as sock, exchange(dependency, sock, deadline=PATIENCE):
                sock.sendall(b"x\n")
                with sock.makefile("rb") as file:
                    assert file.read() == b"all\nof it\n"
    assert counts(dependency) == (1, 0, False)


def test_failure_that_was_swallowed_counts(
    client: Any, side: Side, dependency: Dependency, tmp_path: Path
) -> None:
    """An exchange that ends as if nothing had happened has failed, if its last read has."""
    with Daemon(tmp_path / "s", lambda guest, _: guest.hang()):
        made = client(tmp_path / "s")
        if side.is_async:

            async def swallows() -> None:
                async with made.streams.exchange(deadline=PATIENCE) as (reader, writer):
                    writer.write(b"x\n")
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.readline(), SOON)

            side.do(swallows)
            assert counts(dependency) == (0, 0, True)  # it was given up: nobody knows
        else:
            made.sock.settimeout(SOON)
            began = monotonic()
            with exchange(dependency, made.sock, deadline=PATIENCE):
                made.sock.sendall(b"x\n")
                with contextlib.suppress(TimeoutError):
                    made.sock.recv(10)
            assert monotonic() - began < PATIENCE / 2  # the shorter one is in force
            assert counts(dependency) == (0, 1, True)
            assert made.sock.gettimeout() == SOON


def test_translated_error_is_judged_by_what_it_comes_from(
    client: Any, dependency: Dependency, tmp_path: Path
) -> None:
    """A client's own exception around a lost connection counts once, also for a guard around it."""

    class ProtocolFault(Exception):
        pass

    made = []

    @dependency.guard
    def outer() -> None:
        try:
            made[0].ask()
        except EOFError as error:
            raise ProtocolFault from error

    with Daemon(tmp_path / "s", closed):
        made.append(client(tmp_path / "s"))
        with pytest.raises((EOFError, ProtocolFault)):
            outer()
    assert dependency.status().failures == 2  # the guard around it sees another exception, made outside

    async def inside() -> None:
        streams = await open_unix_connection(dependency, tmp_path / "t")
        try:
            async with streams.exchange(deadline=PATIENCE) as (reader, writer):
                writer.write(b"x\n")
                try:
                    await reader.readuntil()
                except EOFError as error:
                    raise ProtocolFault from error
        finally:
            streams.writer.close()

    with Daemon(tmp_path / "t", closed), pytest.raises(ProtocolFault):
        asyncio.run(dependency.guard(inside)())
    assert dependency.status().failures == 3
    assert dependency.status().cause == "closed before the answer"


def test_deadline_that_the_caller_has_used_up_is_no_failure(
    client: Any, side: Side, dependency: Dependency, tmp_path: Path
) -> None:
    """Who thinks for too long has nobody else to blame; it is a miss all the same."""
    with Daemon(tmp_path / "s", echo):
        made = client(tmp_path / "s")
        if side.is_async:

            async def thinks() -> None:
                async with made.streams.exchange(deadline=SOON):
                    await asyncio.Event().wait()

            with pytest.raises(TimeoutError):
                side.do(thinks)
        else:
            with pytest.raises(TimeoutError), exchange(dependency, made.sock, deadline=SOON):
                threading.Event().wait(SOON * 1.5)
                made.sock.sendall(b"x\n")
    assert counts(dependency) == (0, 0, True)


def test_exchange_after_exchange(client: Any, dependency: Dependency, tmp_path: Path) -> None:
    """One connection carries as many as one likes, each counted, and a refused one is not sent."""
    with Daemon(tmp_path / "s", echo) as daemon:
        made = client(tmp_path / "s")
        for number in range(3):
            assert made.ask(b"%d\n" % number) == b"%d\n" % number
        dependency.trip()
        with pytest.raises(StreamUnhealthy):
            made.ask(b"4\n")
        assert daemon.heard == [b"0\n", b"1\n", b"2\n"]
    assert dependency.status().successes == 3


def test_silence_of_a_long_exchange_is_no_failure(
    client: Any, dependency: Dependency, health: Safehold, tmp_path: Path
) -> None:
    """It waits by nature; a connection that breaks meanwhile has broken."""
    with Daemon(tmp_path / "s", lambda guest, line: guest.hang() if line == b"wait\n" else False):
        with health.scope("work") as scope:
            with pytest.raises(TimeoutError):
                client(tmp_path / "s").ask(b"wait\n", deadline=SOON, long=True)
            assert not scope.tainted
        assert counts(dependency) == (0, 0, False)
        with pytest.raises(EOFError):
            client(tmp_path / "s").ask(b"go\n", deadline=None, long=True)
        assert counts(dependency) == (0, 1, True)


@pytest.mark.parametrize("long", [False, True])
async def test_gate_waits_for_an_exchange_unless_it_is_long(
    dependency: Dependency, health: Safehold, tmp_path: Path, long: bool
) -> None:
    """A question that is under way may still come to nothing."""
    with Daemon(tmp_path / "s", echo), health.scope("work") as scope:
        streams = await open_unix_connection(dependency, tmp_path / "s")
        assert scope.facts().in_flight == {}
        async with streams.exchange(deadline=PATIENCE, long=long) as (reader, writer):
            assert bool(scope.facts().in_flight) is not long
            writer.write(b"x\n")
            await reader.readline()
        assert scope.facts().in_flight == {}
        streams.writer.close()


@pytest.mark.parametrize("where", ["connect", "read", "drain", "idle"])
async def test_cancellation_gives_the_permit_back(
    dependency: Dependency, health: Safehold, tmp_path: Path, where: str
) -> None:
    """Wherever it comes, it decides nothing, and is a miss."""
    begun = asyncio.Event()

    async def work() -> None:
        if where == "connect":
            begun.set()
            await open_connection(dependency, *listener.getsockname()[:2])
        streams = await open_unix_connection(dependency, tmp_path / "s")
        try:
            async with streams.exchange(deadline=PATIENCE) as (reader, writer):
                begun.set()
                if where == "read":
                    await reader.readline()
                elif where == "drain":
                    writer.write(b"x" * 10_000_000)
                    await writer.drain()
                else:
                    await asyncio.Event().wait()
        finally:
            streams.writer.transport.abort()

    with (
        Daemon(tmp_path / "s", lambda guest, _: guest.hang()),
        socket.create_server(("127.0.0.1", 0), backlog=0) as listener,
        contextlib.ExitStack() as stack,
        health.scope("work") as scope,
    ):
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname()[:2])
        task = asyncio.create_task(work())
        await begun.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert scope.tainted
        assert scope.facts().in_flight == {}
    assert counts(dependency) == (0, 0, True)


def test_interrupt_gives_the_permit_back(dependency: Dependency, tmp_path: Path) -> None:
    """Ctrl-C in a plain exchange, too; and the socket is what it was."""
    with Daemon(tmp_path / "s", echo), connect(dependency, tmp_path / "s") as sock:
        with pytest.raises(KeyboardInterrupt):
            with exchange(dependency, sock, deadline=PATIENCE):
                raise KeyboardInterrupt
        assert type(sock) is socket.socket
    assert counts(dependency) == (0, 0, True)


# --- kept connections ---------------------------------------------------------------------------------------


def dies_on_second(guest: Guest, line: bytes) -> bool | None:
    return guest.say(line) if guest.number == 1 else False


def test_kept_connection_that_was_closed_is_excused_once_in_a_row(
    client: Any, dependency: Dependency, health: Safehold, tmp_path: Path
) -> None:
    """It is no failure, but a miss; the next one counts, unless something has answered in between."""
    with Daemon(tmp_path / "s", dies_on_second):
        first, second, third = (client(tmp_path / "s") for _ in range(3))
        for made in (first, second, third):
            made.ask()
        with health.scope("work") as scope:
            with pytest.raises((EOFError, ConnectionError)):
                first.ask()
            assert scope.tainted
        assert (dependency.status().failures, dependency.status().unresolved_miss) == (0, True)
        assert dependency.status().cause == "a kept connection was closed"
        with pytest.raises((EOFError, ConnectionError)):
            second.ask()
        assert dependency.status().failures == 1
        client(tmp_path / "s").ask()
        with pytest.raises((EOFError, ConnectionError)):
            third.ask()
        assert dependency.status().failures == 1


def test_kept_connection_that_breaks_in_the_answer_is_not_excused(
    client: Any, dependency: Dependency, tmp_path: Path
) -> None:
    """Who has begun to answer has had the question; so has who waits for too long."""
    with Daemon(tmp_path / "s", lambda g, line: echo(g, line) if g.number == 1 else half(g, line)):
        made = client(tmp_path / "s")
        made.ask()
        with pytest.raises(asyncio.IncompleteReadError):
            made.ask()
    assert dependency.status().failures == 1


async def test_kept_connection_that_breaks_after_a_part_is_not_excused(
    dependency: Dependency, tmp_path: Path
) -> None:
    """Neither is one that has answered a part, line by line."""

    def script(guest: Guest, line: bytes) -> bool | None:
        guest.say(b"first\n")
        return None if guest.number == 1 else False

    with Daemon(tmp_path / "s", script):
        streams = await open_unix_connection(dependency, tmp_path / "s")
        for number in range(2):
            with pytest.raises(asyncio.IncompleteReadError) if number else contextlib.nullcontext():
                async with streams.exchange(deadline=PATIENCE) as (reader, writer):
                    writer.write(b"x\n")
                    assert await reader.readline() == b"first\n"
                    if number:
                        await reader.readuntil()
        streams.writer.close()
    assert counts(dependency) == (1, 1, True)


# --- the breaker --------------------------------------------------------------------------------------------


def test_refusal_is_both_errors_and_connects_to_nobody(
    side: Side, dependency: Dependency, tmp_path: Path
) -> None:
    """While open, a `ConnectionError` that is a `DependencyUnhealthy`."""
    dependency.trip()
    with Daemon(tmp_path / "s", echo) as daemon:
        with pytest.raises(ConnectionError) as caught:
            side.do(side.pick(connect, open_unix_connection), dependency, tmp_path / "s")
        assert daemon.accepted == 0
    error: Any = caught.value
    assert type(error) is StreamUnhealthy
    assert isinstance(error, DependencyUnhealthy)
    assert (error.dependency, error.reason, error.outcome, error.errno) == (
        "daemon",
        "breaker_open",
        "not_executed",
        None,
    )
    for twin in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert (type(twin), str(twin), twin.retry_after) == (StreamUnhealthy, str(error), error.retry_after)


@pytest.mark.parametrize("answers", [True, False])
def test_trial_that_connects_is_decided_by_its_exchange(
    client: Any, prompt: Dependency, clock: ManualClock, tmp_path: Path, answers: bool
) -> None:
    """To have connected is not to have recovered."""
    with Daemon(tmp_path / "s", echo if answers else closed):
        prompt.trip()
        clock.advance(COOLDOWN)
        made = client(tmp_path / "s", prompt)
        assert prompt.breaker is BreakerState.HALF_OPEN
        with pytest.raises(StreamUnhealthy):
            client(tmp_path / "s", prompt)
        with contextlib.nullcontext() if answers else pytest.raises(EOFError):
            made.ask()
    assert prompt.breaker is (BreakerState.CLOSED if answers else BreakerState.OPEN)


@pytest.mark.parametrize("answers", [True, False])
async def test_trial_is_decided_by_what_is_read_between_exchanges_as_well(
    prompt: Dependency, clock: ManualClock, tmp_path: Path, answers: bool
) -> None:
    """What is written decides nothing; the answer does."""
    with Daemon(tmp_path / "s", echo if answers else closed):
        prompt.trip()
        clock.advance(COOLDOWN)
        reader, writer = await open_unix_connection(prompt, tmp_path / "s")
        writer.write(b"x\n")
        await writer.drain()
        assert prompt.breaker is BreakerState.HALF_OPEN
        assert await reader.readline() == (b"x\n" if answers else b"")
        writer.close()
    assert prompt.breaker is (BreakerState.CLOSED if answers else BreakerState.OPEN)


@pytest.mark.parametrize("how", ["closed", "collected"])
def test_trial_that_is_not_used_is_given_back(
    side: Side, prompt: Dependency, clock: ManualClock, tmp_path: Path, how: str
) -> None:
    """A connection that ends unused has decided nothing."""
    with Daemon(tmp_path / "s", echo):
        prompt.trip()
        clock.advance(COOLDOWN)
        made = Client(side, prompt, tmp_path / "s")
        assert prompt.breaker is BreakerState.HALF_OPEN
        if how == "closed" or side.is_async:
            made.close()
        if how == "collected" or not side.is_async:  # a plain socket does not say that it was closed
            if not side.is_async:
                made.close()
            del made
            gc.collect()
        again = Client(side, prompt, tmp_path / "s")
        assert again.ask() == b"ping\n"
        again.close()
    assert prompt.breaker is BreakerState.CLOSED


def test_declared_classifier_goes_first(side: Side, health: Safehold, tmp_path: Path) -> None:
    """What the declaration says of an exception counts."""
    mine = health.dependency(
        "mine", policy=NEVER, classify=lambda error: not isinstance(error, FileNotFoundError)
    )
    do = side.pick(connect, open_unix_connection)
    with pytest.raises(FileNotFoundError):
        side.do(do, mine, tmp_path / "none")
    assert counts(mine) == (0, 0, False)
    with Daemon(tmp_path / "s", closed):
        made = Client(side, mine, tmp_path / "s")
        with pytest.raises(EOFError):
            made.ask()
        made.close()
    assert counts(mine) == (0, 1, True)


@pytest.mark.parametrize(
    ("play", "kind", "cause"),
    [
        (lambda guest, _: guest.hang(), TimeoutError, "timed out"),
        (reset, ConnectionResetError, "connection reset by peer"),
    ],
    ids=["silence", "reset"],
)
def test_error_that_is_being_handled_has_no_say(
    client: Any, dependency: Dependency, play: Play, kind: Any, cause: str
) -> None:
    """Who asks while he handles a file that he may not read is not forbidden to ask."""
    with Daemon(None, play) as daemon:
        made = client(daemon.where)
        try:
            raise PermissionError(13, "not for you")
        except PermissionError:
            with pytest.raises(kind) as caught:
                made.ask(deadline=SOON if kind is TimeoutError else PATIENCE)
    assert caught.value.outcome == "unknown"
    assert dependency.status().cause == cause


@contextlib.contextmanager
def hung(where: Path | None) -> Iterator[Any]:
    """A process that is stopped: the kernel goes on accepting connections for it."""
    with (
        socket.create_server(("127.0.0.1", 0)) if where is None else socket.socket(socket.AF_UNIX) as listener
    ):
        if where is not None:
            listener.bind(str(where))
            listener.listen()
        yield where or listener.getsockname()


@pytest.mark.parametrize("over", ["unix", "tcp"])
def test_connection_to_what_hangs_is_no_answer(
    client: Any, health: Safehold, prompt: Dependency, clock: ManualClock, tmp_path: Path, over: str
) -> None:
    """It resolves no miss and ends no outage, whoever makes it, also while probes run."""
    health.destructive("act", requires=["prompt"])(lambda: None)

    def hangs(made: Client) -> None:
        with pytest.raises(TimeoutError):
            made.ask(deadline=SOON)

    with hung(tmp_path / "s" if over == "unix" else None) as where, health.running():
        hangs(client(where, prompt))
        first = health.check("act").reasons[0]
        assert first.code == "unresolved_miss"
        assert "nothing probes it" in first.text
        again = client(where, prompt)
        assert prompt.status().unresolved_miss
        hangs(again)
        assert prompt.breaker is BreakerState.OPEN
        clock.advance(COOLDOWN)
        trial = client(where, prompt)
        assert prompt.breaker is BreakerState.HALF_OPEN
        hangs(trial)
        assert prompt.breaker is BreakerState.OPEN
        assert not health.check("act")


def test_probe_of_ones_own_finds_the_way_back(
    side: Side, health: Safehold, clock: ManualClock, watch: Watch, tmp_path: Path
) -> None:
    """One that asks for something, over a guarded connection."""
    path = tmp_path / "s"

    def ask() -> bool:
        with connect(daemon, path, timeout=PATIENCE) as sock, exchange(daemon, sock, deadline=PATIENCE):
            sock.sendall(b"ping\n")
            return sock.recv(100) == b"ping\n"

    async def aask() -> bool:
        streams = await open_unix_connection(daemon, path)
        async with streams.exchange(deadline=PATIENCE) as (reader, writer):
            writer.write(b"ping\n")
            answer = await reader.readline()
        writer.close()
        return answer == b"ping\n"

    daemon = health.dependency("own", policy=POLICY, probe=side.pick(ask, aask))
    with Daemon(path, echo), health.running():
        daemon.trip()
        clock.advance(COOLDOWN)
        watch.until_closed(daemon)


# --- what asyncio makes ---------------------------------------------------------------------------------------


@pytest.fixture
async def streams(dependency: Dependency, tmp_path: Path) -> AsyncIterator[Streams]:
    def script(guest: Guest, line: bytes) -> bool | None:
        if line == b"close\n":
            return False
        if line == b"half\n":
            return half(guest, line)
        return echo(guest, line)

    with Daemon(tmp_path / "s", script):
        made = await open_unix_connection(dependency, tmp_path / "s")
        yield made
        made.writer.close()
        await made.writer.wait_closed()


async def test_pair_is_what_asyncio_makes(streams: Streams, dependency: Dependency) -> None:
    """Of its classes, with all its methods; between exchanges, too, each answer is one."""
    reader, writer = streams
    assert isinstance(reader, asyncio.StreamReader)
    assert isinstance(writer, asyncio.StreamWriter)
    writer.write(b"one\n")
    writer.writelines([b"two\n", b"three\n", b"four\n"])
    await writer.drain()
    assert await reader.readline() == b"one\n"
    assert await reader.readexactly(4) == b"two\n"
    assert await reader.readuntil(b"ee\n") == b"three\n"
    assert await reader.read(100) == b"four\n"
    assert counts(dependency) == (4, 0, False)
    assert writer.get_extra_info("socket").family == socket.AF_UNIX
    writer.write(b"bye\n")
    writer.write_eof()
    assert [line async for line in reader] == [b"bye\n"]
    assert reader.at_eof()
    writer.close()
    await writer.wait_closed()
    assert counts(dependency) == (5, 0, False)


def test_methods_take_what_asyncios_take() -> None:
    """The same parameters under the same names."""
    from safehold.callsites import streams as module

    for kind, names in (
        (asyncio.StreamReader, ("read", "readline", "readexactly", "readuntil")),
        (asyncio.StreamWriter, ("write", "writelines", "drain", "close")),
    ):
        ours = module._Reader if kind is asyncio.StreamReader else module._Writer
        for name in names:
            theirs = inspect.signature(getattr(kind, name)).parameters.values()
            mine = inspect.signature(getattr(ours, name)).parameters.values()
            assert [(p.name, p.default) for p in mine] == [(p.name, p.default) for p in theirs]


async def test_end_between_two_questions_is_no_failure(streams: Streams, dependency: Dependency) -> None:
    """Nothing was to come: whoever waits for more learns that the other side has left."""
    reader, writer = streams
    writer.write(b"close\n")
    with pytest.raises(asyncio.IncompleteReadError):
        await reader.readexactly(4)
    assert counts(dependency)[1:] == (1, True)  # something was asked
    dependency.reset()
    again = await open_unix_connection(dependency, writer.get_extra_info("peername"))
    again.writer.write_eof()
    with pytest.raises(asyncio.IncompleteReadError):
        await again.reader.readexactly(4)
    assert await again.reader.readline() == b""
    assert await again.reader.read() == b""
    assert counts(dependency)[1] == 1
    again.writer.close()


async def test_line_that_nobody_asked_for_may_be_cut_as_well(dependency: Dependency, tmp_path: Path) -> None:
    """What the other side says by itself is half said, too, when it ends in the middle."""

    def script(guest: Guest, line: bytes) -> bool:
        guest.say(b"answer\nev")
        return False

    with Daemon(tmp_path / "s", script):
        reader, writer = await open_unix_connection(dependency, tmp_path / "s")
        writer.writelines([b"x\n"])
        assert await reader.readline() == b"answer\n"
        assert await reader.readline() == b"ev"
        writer.close()
    assert counts(dependency) == (1, 1, True)


async def test_every_way_to_write_asks(streams: Streams, dependency: Dependency) -> None:
    """Nothing that was written and not answered ends well."""
    streams.writer.writelines([b"clo", b"se\n"])
    assert await streams.reader.read() == b""
    assert counts(dependency) == (0, 1, True)


@pytest.mark.parametrize("how", ["readline", "readuntil", "readexactly"])
async def test_end_in_the_middle_is_a_failure(streams: Streams, dependency: Dependency, how: str) -> None:
    """Half a line is no answer, whether asyncio raises or gives it; also between exchanges."""
    reader, writer = streams
    writer.write(b"half\n")
    if how == "readline":
        assert await reader.readline() == b"hal"
    else:
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await (reader.readuntil() if how == "readuntil" else reader.readexactly(10))
        assert caught.value.outcome == "unknown"  # type: ignore[attr-defined]
    assert counts(dependency) == (0, 1, True)
    assert dependency.status().cause == "the answer was cut short"


async def test_write_that_fails_is_a_failure(dependency: Dependency) -> None:
    """So is a question that cannot be sent any more."""
    with Daemon(None, reset) as daemon:
        streams = await open_connection(dependency, *daemon.where)
        streams.writer.write(b"x\n")
        with pytest.raises(ConnectionError):
            while True:
                streams.writer.write(b"x" * 100_000)
                await streams.writer.drain()
        streams.writer.transport.abort()
    assert counts(dependency) == (0, 1, True)


async def test_read_between_exchanges_is_not_refused(streams: Streams, dependency: Dependency) -> None:
    """What was asked may be answered still, though the breaker has opened meanwhile."""
    streams.writer.write(b"x\n")
    dependency.trip()
    assert await streams.reader.readline() == b"x\n"
    with pytest.raises(StreamUnhealthy):
        async with streams.exchange(deadline=PATIENCE):
            raise AssertionError("not reached")


async def test_one_exchange_at_a_time(streams: Streams) -> None:
    """Two on one connection would read each other's answers."""
    async with streams.exchange(deadline=PATIENCE):
        with pytest.raises(ConfigurationError, match="exchange"):
            async with streams.exchange(deadline=PATIENCE):
                raise AssertionError("not reached")


async def test_second_reader_is_a_mistake_of_the_callers(streams: Streams, dependency: Dependency) -> None:
    """asyncio allows one; the other one's error says nothing about the daemon."""
    first = asyncio.create_task(streams.reader.readline())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError):
        await streams.reader.readline()
    streams.writer.write(b"x\n")
    assert await first == b"x\n"
    assert counts(dependency) == (1, 0, False)


async def test_options_of_asyncio_are_passed_on(dependency: Dependency) -> None:
    """A limit for lines, a local address, and whatever else `create_connection` takes."""
    with Daemon(None, echo) as daemon:
        streams = await open_connection(dependency, *daemon.where, limit=10, local_addr=("127.0.0.1", 0))
        async with streams.exchange(deadline=PATIENCE) as (reader, writer):
            writer.write(b"x" * 100 + b"\n")
            with pytest.raises(ValueError, match="limit"):
                await reader.readline()
        streams.writer.close()
        own = socket.create_connection(daemon.where)
        own.setblocking(False)
        streams = await open_connection(dependency, sock=own)
        async with streams.exchange(deadline=PATIENCE) as (reader, writer):
            writer.write(b"y\n")
            assert await reader.readline() == b"y\n"
        streams.writer.close()
        with pytest.raises(TypeError):
            await open_connection(dependency, *daemon.where, no_such_option=1)
        with pytest.raises(ValueError):
            await open_unix_connection(dependency)
    assert counts(dependency)[:2] == (1, 1)  # the line that was too long; what cannot be asked says nothing


async def test_nothing_is_left_open(dependency: Dependency, tmp_path: Path) -> None:
    """Connections that fail, or are closed, leave no descriptor."""
    await asyncio.to_thread(lambda: None)
    before = descriptors()
    with Daemon(tmp_path / "s", echo):
        streams = await open_unix_connection(dependency, tmp_path / "s")
        streams.writer.close()
        await streams.writer.wait_closed()
        connect(dependency, tmp_path / "s").close()
    for where in (tmp_path / "s", tmp_path / "none"):
        with pytest.raises(OSError):
            await open_unix_connection(dependency, where)
        with pytest.raises(OSError):
            connect(dependency, where)
    with full_backlog(tmp_path / "full"):
        inside = descriptors()
        with pytest.raises(OSError):
            await open_unix_connection(dependency, tmp_path / "full")
        with pytest.raises(OSError):
            connect(dependency, tmp_path / "full", timeout=SOON)
        await asyncio.sleep(0)
        assert descriptors() == inside
    assert descriptors() == before


# --- plain sockets --------------------------------------------------------------------------------------------


def test_socket_is_plain_again_after_the_exchange(dependency: Dependency, tmp_path: Path) -> None:
    """Its class and its time-out are what they were; during it, it passes for what it is."""
    with Daemon(tmp_path / "s", echo), connect(dependency, tmp_path / "s", timeout=500.0) as sock:
        with exchange(dependency, sock, deadline=PATIENCE) as same:
            assert same is sock
            assert isinstance(sock, socket.socket)
            assert type(sock).__name__ == "socket"
            assert sock.send(b"one\n") == 4
            assert sock.recv(4) == b"one\n"
            sock.sendmsg([b"two\n"])
            assert sock.recvmsg(4)[0] == b"two\n"
            sock.sendall(b"three\n")
            buffer = bytearray(6)
            assert sock.recv_into(buffer) == 6
            assert bytes(buffer) == b"three\n"
            with sock.makefile("rwb") as file:
                file.write(b"four\n")
                file.flush()
                assert file.readline() == b"four\n"
        assert type(sock) is socket.socket
        assert sock.gettimeout() == 500.0
        assert counts(dependency) == (1, 0, False)


def test_own_time_out_stays_the_shorter_one(dependency: Dependency, tmp_path: Path) -> None:
    """A socket that waits for less than the deadline goes on doing so."""
    with Daemon(tmp_path / "s", lambda guest, _: guest.hang()):
        with connect(dependency, tmp_path / "s", timeout=SOON) as sock, pytest.raises(TimeoutError):
            with exchange(dependency, sock, deadline=None):
                sock.sendall(b"x\n")
                sock.recv(1)
    assert counts(dependency) == (0, 1, True)


def test_socket_that_was_made_elsewhere_is_as_good(dependency: Dependency) -> None:
    """Also one with TLS around it, and one of a subclass."""

    class Mine(socket.socket):
        pass

    ours, theirs = socket.socketpair()
    with Mine(fileno=ours.detach()) as sock, theirs:
        theirs.sendall(b"hello")
        with exchange(dependency, sock, deadline=PATIENCE):
            assert sock.recv(10) == b"hello"
        assert type(sock) is Mine
    assert counts(dependency) == (1, 0, False)


def test_socket_with_tls_around_it_is_as_good(dependency: Dependency) -> None:
    """Its waits are shortened like those of any other."""
    ours, theirs = socket.socketpair()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with theirs, context.wrap_socket(ours, do_handshake_on_connect=False) as sock:
        with pytest.raises(TimeoutError) as caught, exchange(dependency, sock, deadline=SOON):
            assert isinstance(sock, ssl.SSLSocket)
            sock.recv()  # shakes hands before, with nobody
        assert type(sock) is ssl.SSLSocket
    assert caught.value.outcome == "not_executed"  # type: ignore[attr-defined]
    assert counts(dependency) == (0, 1, True)


def test_greeting_that_does_not_come_is_a_failure(dependency: Dependency) -> None:
    """Who is left before he has asked has not been answered either."""
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, exchange(dependency, ours, deadline=PATIENCE):
        assert ours.recv(10) == b""
    assert counts(dependency) == (0, 1, True)


def test_socket_that_is_closed_in_its_exchange(dependency: Dependency, tmp_path: Path) -> None:
    """Nothing gets in the way of closing it."""
    with Daemon(tmp_path / "s", echo):
        sock = connect(dependency, tmp_path / "s")
        with exchange(dependency, sock, deadline=PATIENCE):
            sock.sendall(b"x\n")
            assert sock.recv(10) == b"x\n"
            sock.close()
    assert counts(dependency) == (1, 0, False)


def test_socket_goes_when_nobody_holds_it(dependency: Dependency, tmp_path: Path) -> None:
    """The guard keeps none alive."""
    with Daemon(tmp_path / "s", echo):
        sock = connect(dependency, tmp_path / "s")
        with exchange(dependency, sock, deadline=PATIENCE):
            sock.sendall(b"x\n")
            sock.recv(10)
        sock.close()
        known = weakref.ref(sock)
        del sock
        gc.collect()
        assert known() is None


def test_nested_guards_share_a_trial(prompt: Dependency, clock: ManualClock, tmp_path: Path) -> None:
    """A guarded function that connects and asks is one call."""

    @prompt.guard
    def asks() -> bytes:
        with connect(prompt, tmp_path / "s") as sock, exchange(prompt, sock, deadline=PATIENCE):
            sock.sendall(b"x\n")
            return sock.recv(10)

    with Daemon(tmp_path / "s", echo):
        prompt.trip()
        clock.advance(COOLDOWN)
        assert asks() == b"x\n"
    assert prompt.breaker is BreakerState.CLOSED


# --- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, "soon", float("inf")])
def test_wrong_deadline_is_named(
    side: Side, client: Any, dependency: Dependency, tmp_path: Path, value: Any
) -> None:
    with Daemon(tmp_path / "s", echo):
        with pytest.raises(ConfigurationError, match="deadline"):
            client(tmp_path / "s").ask(deadline=value)
        with pytest.raises(ConfigurationError, match="timeout" if not side.is_async else "deadline"):
            if side.is_async:
                side.do(open_unix_connection, dependency, tmp_path / "s", deadline=value)
            else:
                connect(dependency, tmp_path / "s", timeout=value)
    assert counts(dependency) == (0, 0, False)


def test_wrong_arguments_are_named(
    side: Side, client: Any, dependency: Dependency, health: Safehold, tmp_path: Path
) -> None:
    with Daemon(tmp_path / "s", echo):
        made = client(tmp_path / "s")
        with pytest.raises(ConfigurationError, match="long"):
            made.ask(long="yes")  # type: ignore[arg-type]
        for thing in (None, "daemon"):
            with pytest.raises(ConfigurationError, match="dependency"):
                side.do(side.pick(connect, open_unix_connection), thing, tmp_path / "s")
        if not side.is_async:
            with pytest.raises(ConfigurationError, match=r"daemon.*other"):
                with exchange(health["other"], made.sock, deadline=1.0):
                    raise AssertionError("not reached")
            made.sock.setblocking(False)
            for thing in (made.sock, made.file, None):
                with pytest.raises(ConfigurationError, match="sock"):
                    with exchange(dependency, thing, deadline=1.0):
                        raise AssertionError("not reached")
            made.sock.setblocking(True)


def test_certificate_that_is_not_trusted_is_misconfigured() -> None:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    judgement = TABLE.row(error).judgement
    assert judgement.cause == ("misconfigured", "TLS certificate not trusted")
