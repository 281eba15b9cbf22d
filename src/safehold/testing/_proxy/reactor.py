"""The proxy's thread: it owns every socket, and nothing else touches one.

A control call is carried out between two turns, on this thread, while its caller waits. Before it takes
effect, whatever had arrived by then is judged by the faults that were in force; when it returns, every
connection is under the new ones.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from .ends import End
from .pumps import Link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .address import Door
    from .faults import Fault
    from .poller import Event
    from .pumps import Connection, How, Wiring

T = TypeVar("T")

_ACCEPT_AGAIN: Final = 0.05  # seconds; when descriptors are scarce


class Reactor:
    """Runs the links on a daemon thread of its own. ``call`` and ``stop`` may be used from any thread."""

    def __init__(self, door: Door, wiring: Wiring) -> None:
        self._door = door
        self._wiring = wiring
        self._links: dict[int, Link] = {}
        self._busy: set[int] = set()
        self._accepted = 0
        self._accept_at: float | None = None
        self._listener: socket.socket | None = None
        self._stopping = False
        self._failure: BaseException | None = None
        self._lock = threading.Lock()
        self._commands: deque[tuple[Callable[[], Any], Future[Any]]] = deque()  # guarded by _lock
        self._open = True  # guarded by _lock; false: no command is taken any more
        self._ear, self._wake = socket.socketpair()
        self._ear.settimeout(0.0)
        self._wake.settimeout(0.0)
        wiring.poller.add(self._ear, self._ear, edge=False)
        self._thread = threading.Thread(target=self._run, name=f"fault proxy {door.address}", daemon=True)

    def start(self) -> None:
        """Open the door and start the thread; raises OSError if the address cannot be had."""
        try:
            self._listen()
        except OSError:
            self._close()
            raise
        self._thread.start()

    def stop(self) -> None:
        """Close everything and join the thread. Raises, once, what had killed it before."""
        with suppress(RuntimeError):
            self.call(self._stop)
        self._thread.join()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def call(self, act: Callable[[], T]) -> T:
        """Return what ``act`` returns on the proxy's thread."""
        future: Future[T] = Future()
        with self._lock:
            if not (self._open and self._thread.is_alive()):  # not alive: also in a forked child
                msg = "the fault proxy is not running"
                raise RuntimeError(msg) from self._failure
            self._commands.append((act, future))
            with suppress(BlockingIOError):  # full: it will wake up all the same
                self._wake.send(b"\0")
        return future.result()

    def inject(self, faults: tuple[Fault, ...]) -> tuple[Fault, ...]:
        """Put ``faults`` in force for every connection, and return what was before. On the proxy's thread."""
        board = self._wiring.board
        previous = board.faults
        board.put(faults)
        self._wiring.journal.add("control", note=" + ".join(map(str, faults)) or "clear")
        try:
            if board.refusal is None:
                self._listen()
            else:
                self._refuse(board.refusal)
        finally:  # the barrier holds, too, if the address cannot be had again
            for link in self._links.values():
                link.change()
            self._turn_links(self._links)
        return previous

    def disconnect(self, how: How) -> None:
        """End every live connection. On the proxy's thread."""
        self._wiring.journal.add("control", note="disconnect")
        self._end_links(how, "disconnect")

    def faults(self) -> tuple[Fault, ...]:
        """Return what is in force. On the proxy's thread."""
        return self._wiring.board.faults

    def views(self) -> tuple[Connection, ...]:
        """Return how the live connections stand. On the proxy's thread."""
        return tuple(link.view() for link in self._links.values())

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._serve(self._wiring.poller.wait(self._timeout()))
                self._obey()
        except BaseException as error:  # noqa: BLE001 - told to the next caller, and by stop()
            self._failure = error
        finally:
            self._close()

    def _obey(self) -> None:
        while self._commands:
            self._serve(self._wiring.poller.wait(0.0))  # what came before the call
            with self._lock:
                act, future = self._commands.popleft()
            try:
                result = act()
            except Exception as error:  # noqa: BLE001 - the caller's
                future.set_exception(error)
            else:
                future.set_result(result)

    def _serve(self, events: list[Event]) -> None:
        touched = set(self._busy)
        for event in events:
            match event.owner:
                case End() as end:
                    end.note(event)
                    touched.add(end.number)
                case owner if owner is self._ear:
                    self._hear()
                case _:
                    self._accept()
        now = time.monotonic()
        if self._accept_at is not None and now >= self._accept_at:
            self._accept_at = None
            self._watch_listener()
        touched |= {
            number for number, link in self._links.items() if (due := link.due()) is not None and due <= now
        }
        self._turn_links(touched)

    def _turn_links(self, numbers: Iterable[int]) -> None:
        now = time.monotonic()
        for number in sorted(numbers):
            link = self._links.get(number)
            if link is not None and link.turn(now):
                self._busy.add(number)
            else:
                self._busy.discard(number)
            if link is not None and link.over:
                del self._links[number]

    def _timeout(self) -> float | None:
        if self._busy:
            return 0.0
        times = [due for link in self._links.values() if (due := link.due()) is not None]
        if self._accept_at is not None:
            times.append(self._accept_at)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            while self._ear.recv(1024):
                pass

    def _accept(self) -> None:
        accepted: list[int] = []
        while self._listener is not None:
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                break
            except ConnectionAbortedError:
                continue
            except OSError:
                self._wiring.poller.remove(self._listener)
                self._accept_at = time.monotonic() + _ACCEPT_AGAIN
                break
            self._accepted += 1
            self._links[self._accepted] = Link(self._accepted, client, self._wiring)
            accepted.append(self._accepted)
        self._turn_links(accepted)

    def _listen(self) -> None:
        if self._listener is None:
            self._listener = self._door.open()
            self._listener.settimeout(0.0)
            self._watch_listener()

    def _watch_listener(self) -> None:
        if self._listener is not None:
            self._wiring.poller.add(self._listener, self._listener, edge=False)

    def _refuse(self, refusal: Fault) -> None:
        self._close_listener()
        self._door.refuse(stale=refusal.stale)
        if not refusal.keep:
            self._end_links("close", "refuse")

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._wiring.poller.remove(self._listener)
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # a forked child may hold it, too
            self._listener.close()
            self._listener = None
            self._accept_at = None

    def _end_links(self, how: How, why: str) -> None:
        for link in self._links.values():
            link.end(how, why)
        self._links = {number: link for number, link in self._links.items() if not link.over}

    def _stop(self) -> None:
        self._stopping = True

    def _close(self) -> None:
        with self._lock:
            self._open = False
            late = [future for _, future in self._commands]
            self._commands.clear()
            self._ear.close()
            self._wake.close()
        self._end_links("close", "stop")
        self._close_listener()
        self._door.close()
        self._wiring.poller.close()
        for future in late:
            future.set_exception(RuntimeError("the fault proxy has stopped"))
