"""One socket of a proxied connection, and how to end it so that the peer sees what it should see.

A TCP connection is reset with SO_LINGER 0. A unix socket has no reset: its peer gets ECONNRESET only if the
closer leaves bytes unread in its own receive queue. So an end that faces a client on a unix socket always
keeps the last byte that it has read in the kernel, and peeks past it. An orderly close takes that byte out
first; a reset leaves it there, and so reaches even a client that is waiting for the answer to a request that
was read long ago.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .poller import Event, Poller

_CHUNK: Final = 65536
_DRAIN: Final = 64  # chunks; a peer that sends faster than we can read must not keep us from closing


class End:
    """A non-blocking socket that knows whether it may be read or written. ``number`` is its connection's."""

    def __init__(self, sock: socket.socket, poller: Poller, number: int, *, faces_client: bool) -> None:
        sock.settimeout(0.0)
        self._unix = sock.family == socket.AF_UNIX
        if not self._unix:
            with suppress(OSError):  # the peer may be gone already
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = number
        self.readable = self.writable = self.hung_up = False
        self._sock = sock
        self._poller = poller
        self._keeps_a_byte = self._unix and faces_client and poller.sees_hang_up
        self._kept = 0
        self._heard = False
        poller.add(sock, self, edge=True)

    def note(self, event: Event) -> None:
        """Remember what the poller has reported."""
        self.readable |= event.readable
        self.writable |= event.writable
        self.hung_up |= event.hung_up

    def read(self, limit: int) -> bytes | None:
        """Return at most ``limit`` bytes; ``b""``: the end; ``None``: nothing now. OSError if reset."""
        limit = min(limit, _CHUNK)
        try:
            data = self._peek(limit) if self._keeps_a_byte else self._sock.recv(limit)
        except BlockingIOError:
            data = None
        if data is None:
            self.readable = False
            self._poller.rearm(self._sock, read=True)
        self._heard |= bool(data)
        return data

    def write(self, data: memoryview) -> int:
        """Return how much of ``data`` was taken. Raises OSError if the peer takes nothing any more."""
        try:
            return self._sock.send(data)
        except BlockingIOError:
            self.writable = False
            self._poller.rearm(self._sock, read=False)
            return 0

    def shut_down(self) -> None:
        """Tell the peer that no more bytes follow."""
        with suppress(OSError):  # gone already
            self._sock.shutdown(socket.SHUT_WR)

    def error(self) -> int:
        """Return, and clear, the errno that the socket holds ready."""
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def close(self) -> None:
        """Close so that the peer sees the end of the stream, and no reset."""
        self._poller.remove(self._sock)
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # a forked child may hold the socket, too
        with suppress(OSError):
            for _ in range(_DRAIN):  # unread bytes would make a reset of it
                if not self._sock.recv(_CHUNK):
                    break
        self._sock.close()

    def reset(self) -> bool:
        """Close so that the peer gets ECONNRESET. False: not yet, a unix peer must send a byte before."""
        if not self._unix:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif not self._heard and not self._has_unread():
            return False
        self._poller.remove(self._sock)
        self._sock.close()
        return True

    def _peek(self, limit: int) -> bytes | None:
        seen = self._sock.recv(self._kept + limit, socket.MSG_PEEK)
        fresh = seen[self._kept :]
        if fresh:
            taken = len(self._sock.recv(len(seen) - 1)) if len(seen) > 1 else 0
            self._kept = len(seen) - taken
            return fresh
        if seen and not self.hung_up:
            return None
        if code := self.error():
            raise OSError(code, "reset behind unread bytes")
        return b""

    def _has_unread(self) -> bool:
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass  # gone: nobody is left to wait for
        return True
