"""Waiting for sockets, by edges instead of levels: an end is reported once, and again after it has run dry.

Edges let a pump leave readable bytes where they are (back-pressure, and the byte that a unix socket keeps,
see ``ends``) without being told of them for ever. ``Edges`` has them from epoll. ``Levels`` imitates them
elsewhere: it stops to listen for what it has reported, until ``rearm``.
"""

from __future__ import annotations

import select
import selectors
import sys
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import socket


class Event(NamedTuple):
    """Something may be read or written at ``owner``; ``hung_up``: the peer will send nothing more."""

    owner: object
    readable: bool
    writable: bool
    hung_up: bool


class Poller(Protocol):
    """What the reactor and the ends need."""

    sees_hang_up: bool

    def add(self, sock: socket.socket, owner: object, *, edge: bool) -> None:
        """Report edges of both kinds, or reading alone and again and again."""
        ...

    def remove(self, sock: socket.socket) -> None:
        """Forget ``sock``, which must still be open."""
        ...

    def rearm(self, sock: socket.socket, *, read: bool) -> None:
        """Hear that reading (else writing) has run dry."""
        ...

    def wait(self, timeout: float | None) -> list[Event]:
        """Return what happened, after at most ``timeout`` seconds."""
        ...

    def close(self) -> None:
        """Give the descriptor back."""
        ...


def make_poller() -> Poller:
    """Return the best poller of this system."""
    return Edges() if sys.platform == "linux" else Levels()


if sys.platform == "linux":

    class Edges:
        """Real edges, and a hang-up that shows while bytes are still unread."""

        sees_hang_up = True

        def __init__(self) -> None:
            self._epoll = select.epoll()
            self._owners: dict[int, object] = {}

        def add(self, sock: socket.socket, owner: object, *, edge: bool) -> None:
            """Report edges of both kinds, or reading alone and again and again."""
            both = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
            self._owners[sock.fileno()] = owner
            self._epoll.register(sock, both if edge else select.EPOLLIN)

        def remove(self, sock: socket.socket) -> None:
            """Forget ``sock``, which must still be open."""
            if self._owners.pop(sock.fileno(), None) is not None:
                self._epoll.unregister(sock)

        def rearm(self, sock: socket.socket, *, read: bool) -> None:
            """Nothing to do: epoll knows."""

        def wait(self, timeout: float | None) -> list[Event]:
            """Return what happened, after at most ``timeout`` seconds."""
            lost = select.EPOLLHUP | select.EPOLLERR
            over = lost | select.EPOLLRDHUP
            return [
                Event(
                    self._owners[fd],
                    bool(mask & (select.EPOLLIN | over)),
                    bool(mask & (select.EPOLLOUT | lost)),
                    bool(mask & over),
                )
                for fd, mask in self._epoll.poll(timeout)
            ]

        def close(self) -> None:
            """Give the descriptor back."""
            self._epoll.close()


class Levels:
    """Imitated edges for every system that ``selectors`` knows; sees no hang-up behind unread bytes."""

    sees_hang_up = False

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._edges: dict[int, object] = {}

    def add(self, sock: socket.socket, owner: object, *, edge: bool) -> None:
        """Report edges of both kinds, or reading alone and again and again."""
        events = selectors.EVENT_READ
        if edge:
            self._edges[sock.fileno()] = owner
            events |= selectors.EVENT_WRITE
        self._selector.register(sock.fileno(), events, owner)

    def remove(self, sock: socket.socket) -> None:
        """Forget ``sock``, which must still be open."""
        self._edges.pop(sock.fileno(), None)
        if sock.fileno() in self._selector.get_map():
            self._selector.unregister(sock.fileno())

    def rearm(self, sock: socket.socket, *, read: bool) -> None:
        """Listen again for what has run dry."""
        key = self._selector.get_map().get(sock.fileno())
        more = selectors.EVENT_READ if read else selectors.EVENT_WRITE
        self._listen(sock.fileno(), more | (key.events if key else 0))

    def wait(self, timeout: float | None) -> list[Event]:
        """Return what happened, after at most ``timeout`` seconds."""
        events: list[Event] = []
        for key, mask in self._selector.select(timeout):
            read, write = bool(mask & selectors.EVENT_READ), bool(mask & selectors.EVENT_WRITE)
            events.append(Event(key.data, read, write, hung_up=False))
            if key.fd in self._edges:
                self._listen(key.fd, key.events & ~mask)
        return events

    def close(self) -> None:
        """Give the descriptor back."""
        self._selector.close()

    def _listen(self, fd: int, events: int) -> None:
        if fd in self._selector.get_map():
            self._selector.unregister(fd)
        if events:
            self._selector.register(fd, events, self._edges[fd])
