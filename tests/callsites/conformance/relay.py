"""A relay in front of the server that remembers what the clients sent, and a way to make the server new."""

from __future__ import annotations

import contextlib
import re
import selectors
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

PATIENCE = 20.0
CHUNK = 1 << 18

MASKS = (
    (re.compile(rb"\b[0-9a-f]{32}\b"), b"<token>"),  # of a lock
    (re.compile(rb"(?<=\r\nID\r\n)\$\d+\r\n\d+"), b"<client>"),  # of a connection, in CLIENT KILL
)


class Line:
    """One client's connection and its twin to the server. Used by the relay's thread only."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.sent = bytearray()
        self.news = True  # something to tell: it came, it said something, or it went
        self.open = True
        self.left = False  # the client went first

    def pump(self, source: socket.socket, *, mute: bool) -> None:
        target = self.server if source is self.client else self.client
        try:
            data = source.recv(CHUNK)
        except OSError:
            data = b""
        if source is self.client:
            self.news = True
            self.sent += data
        if not data:
            self.open = False
            self.left = source is self.client
            return
        if not mute or source is self.server:
            with contextlib.suppress(OSError):
                target.sendall(data)

    def close(self) -> None:
        self.client.close()
        self.server.close()

    def tell(self) -> str:
        said, self.sent, self.news = bytes(self.sent), bytearray(), False
        for pattern, mask in MASKS:
            said = pattern.sub(mask, said)
        words = said.decode("utf-8", "backslashreplace").replace("\r\n", " ")
        return f"{words}{'(closed)' if self.left else ''}"


class Relay:
    """Listens on a unix socket and on a loopback port, and connects everybody to the server's unix socket.

    `take` is a barrier: it tells all that clients have sent and closed before it was called.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._directory = Path(tempfile.mkdtemp(prefix="safehold-relay-"))
        self.path = str(self._directory / "relay.sock")
        self._unix = socket.socket(socket.AF_UNIX)
        self._unix.bind(self.path)
        self._unix.listen()
        self._tcp = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._tcp.getsockname()[1]
        self._ask, self._asked = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for listener in (self._unix, self._tcp):
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ, None)
        self._selector.register(self._asked, selectors.EVENT_READ, None)
        self._lines: list[Line] = []
        self.mute = False  # to hand nothing on that clients send
        self._answer: list[str] = []
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._thread.start()

    def take(self) -> list[str]:
        """Tell what each connection has sent since the last time, the oldest first, and which have gone."""
        return self._order(b"t")

    def settle(self) -> None:
        """Hand on all that was sent or closed before, on either side, and tell it the next time."""
        self._order(b"s")

    def restart(self) -> None:
        """Close what is open."""
        self._order(b"r")

    def close(self) -> None:
        self._order(b"q")
        self._thread.join(PATIENCE)
        for end in (self._unix, self._tcp, self._ask, self._asked):
            end.close()
        self._selector.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _order(self, order: bytes) -> list[str]:
        self._ask.settimeout(PATIENCE)
        self._ask.sendall(order)
        assert self._ask.recv(1) == order
        return self._answer

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                self._serve(key.fileobj, key.data)
            with contextlib.suppress(BlockingIOError):
                order = self._asked.recv(1, socket.MSG_DONTWAIT)
                self._catch_up()
                if order != b"s":
                    self._answer = [line.tell() for line in self._lines if line.news]
                    self._lines = [line for line in self._lines if line.open]
                if order in b"rq":
                    self._forget()
                self._asked.sendall(order)
                if order == b"q":
                    return

    def _catch_up(self) -> None:
        while ready := [pair for pair, _ in self._selector.select(0) if pair.fileobj is not self._asked]:
            for key in ready:
                self._serve(key.fileobj, key.data)

    def _serve(self, source: Any, line: Line | None) -> None:
        if line is not None:
            if line.open:
                line.pump(source, mute=self.mute)
                if not line.open:
                    self._hang_up(line)
        elif source is not self._asked:
            with contextlib.suppress(BlockingIOError):
                self._admit(source.accept()[0])

    def _admit(self, client: socket.socket) -> None:
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        server = socket.socket(socket.AF_UNIX)
        server.connect(self._upstream)
        line = Line(client, server)
        self._lines.append(line)
        for end in (client, server):
            self._selector.register(end, selectors.EVENT_READ, line)

    def _hang_up(self, line: Line) -> None:
        for end in (line.client, line.server):
            self._selector.unregister(end)
        line.close()

    def _forget(self) -> None:
        for line in self._lines:
            if line.open:
                self._hang_up(line)
        self._lines.clear()


def packed(*words: str | bytes) -> bytes:
    """Write a command as it goes over the wire."""
    parts = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


class Backdoor:
    """A connection to the server that the relay does not see."""

    END = packed("ECHO", "that was all")

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._socket.connect(path)

    def __call__(self, commands: bytes) -> bytes:
        """Send packed commands, and give all their replies."""
        self._socket.sendall(commands + self.END)
        heard = b""
        while not heard.endswith(b"\r\nthat was all\r\n"):
            heard += self._socket.recv(CHUNK)
        return heard

    def close(self) -> None:
        self._socket.close()
