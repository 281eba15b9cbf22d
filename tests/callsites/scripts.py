"""HTTP servers that do what no server should: each plays a script, over a unix socket or a loopback port."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from .support import PATIENCE

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Play = Callable[["Guest"], Any]


class Guest:
    """One connection, as a script sees it. `number` counts its requests, from one."""

    def __init__(self, server: Scripted, line: socket.socket) -> None:
        self.server = server
        self.line = line
        self.number = 0
        self.heard = b""

    def read_request(self) -> bool:
        """Read a request: its head, and a body of known length or in chunks."""
        heard = b""
        while b"\r\n\r\n" not in heard:
            part = self.line.recv(65536)
            if not part:
                return False
            heard += part
        head, _, body = heard.partition(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        wanted = int(length[0].split(b":")[1]) if length else 0
        chunked = b"transfer-encoding: chunked" in head.lower()
        while len(body) < wanted or (chunked and not body.endswith(b"0\r\n\r\n")):
            part = self.line.recv(65536)
            if not part:
                return False
            body += part
        self.number += 1
        self.heard = head + b"\r\n\r\n" + body
        self.server.heard.append(self.heard)
        return True

    @property
    def path(self) -> str:
        return self.heard.split(b" ", 2)[1].decode()

    def say(self, data: bytes) -> None:
        self.line.sendall(data)

    def answer(self, status: str = "200 OK", body: bytes = b"ok", **headers: str) -> None:
        named = {"Content-Length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}
        lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        self.say(f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body)

    def drip(self, data: bytes, every: float) -> None:
        """Say it byte by byte, until it is said or the other side has had enough."""
        for at in range(len(data)):
            self.say(data[at : at + 1])
            if self.server.closing.wait(every):
                return

    def hang(self) -> None:
        """Say nothing until the other side goes, or the server ends."""
        self.server.hanging.set()
        with contextlib.suppress(OSError):
            while self.line.recv(65536):
                pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.line.shutdown(socket.SHUT_RDWR)
        self.line.close()

    def reset(self) -> None:
        """Close so that the other side gets a reset: with what it has sent unread, or at once over TCP."""
        if self.line.family != socket.AF_UNIX:
            self.line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.line.close()


class Scripted:
    """A server that calls `play` for each request of each connection, until that gives `False`.

    With `before`, that is called for each connection, before anything is read.
    """

    def __init__(self, where: Path | None, play: Play, before: Play | None = None) -> None:
        self._play = play
        self._before = before
        self.heard: list[bytes] = []
        self.closing = threading.Event()
        self.hanging = threading.Event()
        self.accepted = 0
        if where is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(where))
            self._listener.listen(16)
        self.where: Any = where or self._listener.getsockname()[1]
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

    def _serve(self, guest: Guest) -> None:
        with guest.line, contextlib.suppress(OSError):
            if self._before is not None and self._before(guest) is False:
                return
            while guest.read_request():
                if self._play(guest) is False:
                    return


@contextlib.contextmanager
def full_backlog(where: Path) -> Iterator[None]:
    """A unix socket whose accept queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(where))
        listener.listen(0)
        while True:
            caller = stack.enter_context(socket.socket(socket.AF_UNIX))
            caller.setblocking(False)
            try:
                caller.connect(str(where))
            except BlockingIOError:
                break
        yield
