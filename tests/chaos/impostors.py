"""Servers that are no Redis, or a bad one: they say what the test makes them say."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .sides import PATIENCE

Answer = Callable[[socket.socket, list[str]], "bytes | None"]

HELLO = b"%2\r\n$6\r\nserver\r\n$5\r\nredis\r\n$5\r\nproto\r\n:3\r\n"
GREETINGS = ("HELLO", "CLIENT", "AUTH", "SELECT", "READONLY")


def bulk(text: str) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text.encode())


def greeted(words: list[str]) -> bytes | None:
    """What a Redis says to those commands with which a client begins."""
    if words[0].upper() == "HELLO":
        return HELLO
    return b"+OK\r\n" if words[0].upper() in GREETINGS else None


class Impostor:
    """Listens on `address`. `answer` is given the guest and the words of each command it sends.

    It gives the bytes to be sent back, or `None` to hang up. `heard` holds the commands, greetings left out.
    """

    def __init__(self, answer: Answer, address: str | tuple[str, int]) -> None:
        self._answer = answer
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(address)
        self._listener.listen(64)
        self.address: Any = self._listener.getsockname()
        self.heard: list[list[str]] = []
        self.over = threading.Event()
        self._guests: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._admit, name="impostor", daemon=True)]
        self._threads[0].start()

    def times(self, *words: str) -> int:
        """How many commands began with these words."""
        return sum(tuple(w.upper() for w in said[: len(words)]) == words for said in self.heard)

    def close(self) -> None:
        self.over.set()
        for end in (self._listener, *self._guests):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)
        if isinstance(self.address, str):
            Path(self.address).unlink(missing_ok=True)

    def _admit(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                guest, _ = self._listener.accept()
                self._guests.append(guest)
                self._threads.append(threading.Thread(target=self._serve, args=(guest,), daemon=True))
                self._threads[-1].start()

    def _serve(self, guest: socket.socket) -> None:
        with guest, guest.makefile("rb") as stream, contextlib.suppress(OSError, ValueError):
            while line := stream.readline():
                words = []
                for _ in range(int(line[1:])):
                    size = int(stream.readline()[1:])
                    words.append(stream.read(size + 2)[:-2].decode())
                if words[0].upper() not in GREETINGS:
                    self.heard.append(words)
                reply = self._answer(guest, words)
                if reply is None:
                    return
                guest.sendall(reply)


@contextlib.contextmanager
def impostor(answer: Answer, address: str | tuple[str, int] = ("127.0.0.1", 0)) -> Iterator[Impostor]:
    server = Impostor(answer, address)
    try:
        yield server
    finally:
        server.close()


def says(reply: bytes, *, greets: bool = False) -> Answer:
    """Answer everything alike; one that greets speaks well until the first real question."""
    return lambda _, words: (greeted(words) if greets else None) or reply


def drips(reply: bytes, every: float) -> Answer:
    """Send byte after byte, one `every` seconds, until the guest leaves."""

    def answer(guest: socket.socket, words: list[str]) -> bytes | None:
        if (welcome := greeted(words)) is not None:
            return welcome
        waiting = threading.Event()
        for byte in reply:
            guest.sendall(bytes([byte]))
            waiting.wait(every)
        return b""

    return answer


@contextlib.contextmanager
def full_house(address: str | tuple[str, int]) -> Iterator[None]:
    """A listener that accepts nobody and whose queue is full: a black hole for whoever connects."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(0)
        for _ in range(4):
            guest = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            guest.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                guest.connect(address)
        yield
    if isinstance(address, str):
        Path(address).unlink(missing_ok=True)
