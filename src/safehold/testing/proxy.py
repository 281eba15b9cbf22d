"""A proxy between a client and what it depends on, whose faults are switched at run time.

For your own tests: put it in front of a Redis, an API socket or any other stream server, over TCP or a unix
socket, and take the dependency away in the middle of a call, without touching the server::

    with FaultProxy("unix:/run/redis.sock") as proxy:
        client = redis.Redis.from_url(proxy.url(), socket_timeout=0.1)
        client.ping()
        with proxy.hang():                      # in force at once, also for the pooled connection
            with pytest.raises(redis.TimeoutError):
                client.ping()
        client.ping()                           # and gone at the end of the block

Rules:

- *One call, one state.* A fault takes the place of all others; ``inject`` puts several in force at once. Used
  in a ``with`` statement, every such call restores at the end what was in force before it.
- *Every control call is a barrier.* What had reached the proxy before the call is treated by the old faults.
  When it returns, every live connection is under the new ones: new, busy, idle in a pool or waiting in the
  middle of a read.
- *Nothing is lost or reordered without a fault*, half-closes and resets pass through, and at most 256 KiB are
  held for each direction of a connection; then the sender has to wait.
- *No stream has a hole.* After a fault has swallowed bytes or shut down one side, its connection can never
  carry bytes in that direction again. It stays as it is until the next control call, which closes it.
- *Chance repeats.* It is drawn from ``seed``, the connection's number and the direction, never from the time.

The proxy runs on a daemon thread of its own, so tests may be plain functions or coroutines; control calls
take well under a millisecond. It never listens on more than this machine, and needs no more than the standard
library. On Linux a reset on a unix socket is a real ECONNRESET at any time; elsewhere a client that is only
waiting sees the end of the stream.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal, Self

from ._proxy.address import Address, TcpAddress, UnixAddress, make_door, parse_listen, parse_upstream, resolve
from ._proxy.faults import Board, Direction, Fault, FaultKind, together, whole
from ._proxy.journal import Entry, EntryKind, Journal
from ._proxy.poller import make_poller
from ._proxy.pumps import Connection, Wiring
from ._proxy.reactor import Reactor

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Connection", "Direction", "Entry", "EntryKind", "Fault", "FaultKind", "FaultProxy", "Injection"]


class Injection:
    """What a control call returns. It is in force already; ``with`` takes it back at the end of the block."""

    def __init__(self, proxy: FaultProxy, previous: tuple[Fault, ...]) -> None:
        self._proxy = proxy
        self._previous = previous

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._proxy.running:
            self._proxy.inject(*self._previous)


class FaultProxy:
    """Forwards every connection to ``upstream`` until told otherwise. May be used from any thread.

    Addresses: ``"127.0.0.1:6379"``, ``"[::1]:6379"``, ``("127.0.0.1", 6379)`` or
    ``"unix:/run/redis.sock"``. ``listen`` defaults to a fresh loopback port, or a fresh unix socket in a
    private directory, as ``upstream`` is one or the other. A bad argument raises ``ValueError`` at once; an
    address that cannot be had raises ``OSError`` from ``start``. A client whose upstream cannot be reached
    sees its connection closed.

    Use it in a ``with`` statement, or call ``start`` and ``stop``. A stopped proxy does not start again.
    """

    def __init__(
        self,
        upstream: str | tuple[str, int],
        *,
        listen: str | tuple[str, int] | None = None,
        seed: int = 0,
    ) -> None:
        self._upstream = parse_upstream(upstream)
        self._listen = parse_listen(listen, upstream=self._upstream)
        whole("seed", seed)
        self._seed = seed
        self._journal = Journal()
        self._lock = threading.Lock()
        self._address: Address | None = None  # guarded by _lock
        self._reactor: Reactor | None = None  # guarded by _lock
        self._stopped = False  # guarded by _lock

    def start(self) -> Self:
        """Listen and forward. ``with`` does it for you."""
        with self._lock:
            if self._reactor is not None or self._stopped:
                msg = "a fault proxy starts once"
                raise RuntimeError(msg)
            self._address, self._reactor = self._started()
        return self

    def stop(self) -> None:
        """Close all connections, give the address back, end the thread. Twice, or too early, does no harm."""
        with self._lock:
            reactor, self._reactor, self._stopped = self._reactor, None, True
        if reactor is not None:
            reactor.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        """True between ``start`` and ``stop``."""
        return self._reactor is not None

    @property
    def upstream(self) -> str:
        """Where it forwards to."""
        return str(self._upstream)

    @property
    def address(self) -> str:
        """Where it listens, in the form that ``upstream`` takes. Known from ``start`` on."""
        return str(self._bound())

    @property
    def path(self) -> str:
        """The path of its unix socket."""
        match self._bound():
            case UnixAddress(path=path):
                return path
            case address:
                msg = f"the fault proxy listens on {address}, not on a unix socket"
                raise AttributeError(msg)

    @property
    def host(self) -> str:
        """The host of its TCP address."""
        return self._tcp().host

    @property
    def port(self) -> int:
        """The port of its TCP address."""
        return self._tcp().port

    def url(self, scheme: str = "redis") -> str:
        """Return the address as a URL, such as ``redis://127.0.0.1:41234`` or, always, ``unix:///path``."""
        address = self._bound()
        return f"unix://{address.path}" if isinstance(address, UnixAddress) else f"{scheme}://{address}"

    def refuse(self, *, stale: bool = False, keep: bool = False) -> Injection:
        """Listen no more: connecting is refused, live connections are closed unless ``keep`` is true.

        A TCP port stays reserved. A unix socket's file is removed, or with ``stale`` left behind, as by a
        killed server.
        """
        return self.inject(Fault(kind="refuse", stale=stale, keep=keep))

    def hang(self, direction: Direction = "both") -> Injection:
        """Accept, read and hold, but hand nothing on: a black hole in which everybody waits.

        What was held goes on its way when the fault ends, even if its client has given up meanwhile: a
        request that timed out may still be executed, as it may be after a partition. Call ``disconnect``
        first if it shall not.
        """
        return self.inject(Fault(kind="hang", direction=direction))

    def latency(self, seconds: float, jitter: float = 0.0, direction: Direction = "both") -> Injection:
        """Let bytes wait for ``seconds`` and, drawn anew for each piece read, up to ``jitter`` seconds more.

        It counts from their arrival. The order stays.
        """
        return self.inject(Fault(kind="latency", seconds=seconds, jitter=jitter, direction=direction))

    def reset(self) -> Injection:
        """Reset live and new connections, so that their clients get ECONNRESET; upstream they are closed.

        A unix socket cannot tell that to a client which has sent nothing yet: it gets the reset for its first
        byte.
        """
        return self.inject(Fault(kind="reset"))

    def cut(
        self, after: int, direction: Direction = "downstream", how: Literal["close", "reset"] = "close"
    ) -> Injection:
        """End each connection as soon as ``after`` more bytes of one direction have passed; zero: at once."""
        return self.inject(Fault(kind="cut", after=after, direction=direction, how=how))

    def drop_reply(self, count: int | None = None, how: Literal["hang", "close"] = "hang") -> Injection:
        """Let requests pass, so that they are executed, and swallow the reply: always, or ``count`` times.

        A reply is what comes back first on a connection; with it the connection is spent. It stays silent
        (``hang``) or is closed there and then.
        """
        return self.inject(Fault(kind="drop_reply", direction="downstream", count=count, how=how))

    def half_close(self, direction: Direction = "downstream") -> Injection:
        """Shut down one direction of each connection; the other one still passes.

        Its receiver sees the end of the stream. Whatever its sender goes on sending is swallowed.
        """
        return self.inject(Fault(kind="half_close", direction=direction))

    def inject(self, *faults: Fault) -> Injection:
        """Put exactly these faults in force. Raises ``ValueError`` if two claim one direction."""
        checked = together(faults)
        reactor = self._running()
        return Injection(self, reactor.call(lambda: reactor.inject(checked)))

    def clear(self) -> Injection:
        """Let everything pass again, first of all what is held. Connections beyond repair are closed."""
        return self.inject()

    def disconnect(self, how: Literal["close", "reset"] = "close") -> None:
        """End every live connection, once, and leave the faults as they are."""
        if how not in ("close", "reset"):
            msg = f"how: need 'close' or 'reset', got {how!r}"
            raise ValueError(msg)
        reactor = self._running()
        reactor.call(lambda: reactor.disconnect(how))

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults in force; none after ``stop``."""
        reactor = self._reactor
        return () if reactor is None else reactor.call(reactor.faults)

    @property
    def connections(self) -> tuple[Connection, ...]:
        """The live connections, oldest first; none after ``stop``."""
        reactor = self._reactor
        return () if reactor is None else reactor.call(reactor.views)

    @property
    def journal(self) -> tuple[Entry, ...]:
        """What happened, oldest first: the last 10,000 entries."""
        return self._journal.entries()

    def wait_for(
        self, what: EntryKind | Callable[[Entry], bool], *, after: Entry | None = None, timeout: float = 5.0
    ) -> Entry:
        """Return the first journal entry of a kind, or that fulfils a predicate, as soon as it is there.

        It looks at what came after the entry ``after`` or, without one, after the last control call. Raises
        ``TimeoutError``, with the end of the journal, after ``timeout`` seconds.
        """
        return self._journal.search(what, after).wait(timeout)

    async def await_for(
        self,
        what: EntryKind | Callable[[Entry], bool],
        *,
        after: Entry | None = None,
        timeout: float = 5.0,  # noqa: ASYNC109 - the twin of wait_for
    ) -> Entry:
        """Do what ``wait_for`` does while the event loop goes on."""
        return await self._journal.search(what, after).await_(timeout)

    def _started(self) -> tuple[Address, Reactor]:
        targets = resolve(self._upstream)
        with ExitStack() as undo:
            door = make_door(self._listen)
            undo.callback(door.close)
            poller = make_poller()
            undo.callback(poller.close)
            wiring = Wiring(
                board=Board(), journal=self._journal, poller=poller, targets=targets, seed=self._seed
            )
            reactor = Reactor(door, wiring)
            undo.pop_all()  # the reactor closes them from here on
        reactor.start()
        return door.address, reactor

    def _running(self) -> Reactor:
        if (reactor := self._reactor) is None:
            msg = "the fault proxy is not running"
            raise RuntimeError(msg)
        return reactor

    def _bound(self) -> Address:
        if self._address is None:
            msg = "the fault proxy has no address before it starts"
            raise RuntimeError(msg)
        return self._address

    def _tcp(self) -> TcpAddress:
        match self._bound():
            case TcpAddress() as address:
                return address
            case address:
                msg = f"the fault proxy listens on {address}, not on TCP"
                raise AttributeError(msg)
