"""The bytes of one connection: a link has two pumps, and each looks at the board whenever it moves a byte.

A pump holds at most ``LIMIT`` bytes and then stops to read, so that back-pressure reaches the sender. What it
holds is judged when it is about to go, by the fault that is in force then. Bytes are handed on in order or,
once a fault has taken one, not at all: a stream with a hole in it is something that no network produces. Such
a link is damaged. It stays as it is until the next control call, which closes it.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Final, Literal

from .ends import End

if TYPE_CHECKING:
    from .address import Target
    from .faults import Board, Fault, Way
    from .journal import EntryKind, Journal
    from .poller import Poller

LIMIT: Final = 262_144  # bytes held in one direction of one link
_TURNS: Final = 16  # steps of one link before the others, and the control calls, have theirs
# Seconds. A unix socket whose backlog is full says EAGAIN, and never tells when there is room.
_REDIAL: Final = 0.005

How = Literal["close", "reset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """What all links of one proxy share."""

    board: Board
    journal: Journal
    poller: Poller
    targets: list[Target]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """A live connection at one instant; all sizes are in bytes. ``connected``: its way upstream stands."""

    number: int
    connected: bool
    passed_upstream: int
    passed_downstream: int
    held_upstream: int
    held_downstream: int


class Pump:
    """Moves bytes in one direction. ``verdict`` says how the whole link must end, once it must."""

    def __init__(self, way: Way, number: int, wiring: Wiring) -> None:
        self.way: Final = way
        self.source: End | None = None
        self.target: End | None = None
        self.passed = self.held = 0
        self.done = False  # nothing will be handed on any more
        self.damaged = False  # by a fault, beyond repair
        self.verdict: tuple[How, str] | None = None
        self._number = number
        self._wiring = wiring
        self._chance = Random(f"{wiring.seed}/{number}/{way}")  # noqa: S311 - must repeat, need not be secret
        self._pieces: deque[tuple[float, memoryview]] = deque()  # with the time of their arrival
        self._ended: float | None = None
        self._aborted = False
        self._swallowing = False
        self._due: float | None = None  # when the delayed first piece may go
        self.wakes: float | None = None  # the same, while that is still to come
        self._left = 0
        self.arm()

    def arm(self) -> None:
        """Begin anew to count and to delay: the board has changed."""
        self._left = self._fault.after if self._fault is not None else 0
        self._due = self.wakes = None

    def turn(self, now: float) -> bool:
        """Move what can be moved; true if something was."""
        self._obey()
        before = self.passed, self.held, self._ended, self.done
        if self.verdict is None:
            self._fill(now)
            self._flush(now)
        return before != (self.passed, self.held, self._ended, self.done)

    def end(self, now: float) -> None:
        """Take it that the source has nothing to say."""
        self._ended = now

    def give_up(self, kind: EntryKind) -> None:
        """Hand on nothing any more, and swallow the rest."""
        self._swallowing = self.done = True
        self._note(kind)

    @property
    def _fault(self) -> Fault | None:
        return self._wiring.board.at(self.way)

    def _obey(self) -> None:
        match self._fault:
            case None:
                pass
            case fault if fault.kind == "cut" and self._left == 0:
                self.verdict = ("reset" if fault.how == "reset" else "close", "cut")
            case fault if fault.kind == "half_close" and self.target is not None and not self.done:
                self.target.shut_down()
                self.damaged = True
                self.give_up("half_close")
            case _:
                pass

    def _fill(self, now: float) -> None:
        while self.source is not None and self.source.readable and self._ended is None and self.held < LIMIT:
            try:
                data = self.source.read(LIMIT - self.held)
            except OSError:
                self._ended, self._aborted = now, True
                self._note("abort")
                return
            if data is None:
                return
            if not data:
                self._ended = now
                self._note("eof")
                return
            self._pieces.append((now, memoryview(data)))
            self.held += len(data)
            self._note("data", len(data))

    def _flush(self, now: float) -> None:
        while self._pieces and self.verdict is None and self._may_pass(self._pieces[0][0], now):
            if self._swallows():
                self._take(len(self._pieces[0][1]), "dropped")
            elif not self._hand_on():
                return
        if not self._pieces and self._ended is not None and not self.done and self.verdict is None:
            self._finish(self._ended, now)

    def _may_pass(self, arrived: float, now: float) -> bool:
        match self._fault:
            case fault if fault is not None and fault.kind == "hang":
                return False
            case fault if fault is not None and fault.kind == "latency":
                if self._due is None:
                    # Drawn when it is needed, so that jitter that is never switched on draws nothing.
                    jitter = fault.jitter * self._chance.random() if fault.jitter else 0.0
                    self._due = arrived + fault.seconds + jitter
                self.wakes = self._due if self._due > now else None
                return self._due <= now
            case _:
                return True

    def _swallows(self) -> bool:
        fault = self._fault
        if not self._swallowing and fault is not None and fault.kind == "drop_reply":
            if not self._wiring.board.take_drop():
                return False
            self._swallowing = self.damaged = True
            if fault.how == "close":
                self.verdict = ("close", "drop_reply")
        return self._swallowing

    def _hand_on(self) -> bool:
        fault = self._fault
        cut = fault is not None and fault.kind == "cut"
        if self.target is None or not self.target.writable:
            return False
        try:
            size = self.target.write(self._pieces[0][1][: self._left] if cut else self._pieces[0][1])
        except OSError:
            self.give_up("broken")
            return True
        if size:
            self._take(size, "passed")
            self.passed += size
        if cut:
            self._left -= size
        return size > 0

    def _take(self, size: int, kind: EntryKind) -> None:
        arrived, piece = self._pieces.popleft()
        if size < len(piece):
            self._pieces.appendleft((arrived, piece[size:]))
        else:
            self._due = None
        self.held -= size
        self._note(kind, size)

    def _finish(self, ended: float, now: float) -> None:
        if self._swallowing or self.target is None or not self._may_pass(ended, now):
            return
        self.done = True
        if self._aborted:
            self.verdict = ("reset", "aborted")
        else:
            self.target.shut_down()

    def _note(self, kind: EntryKind, size: int = 0) -> None:
        self._wiring.journal.add(kind, self._number, self.way, size)


class Link:
    """One client's connection and its way upstream."""

    def __init__(self, number: int, client: socket.socket, wiring: Wiring) -> None:
        self.number = number
        self.over = False
        self._wiring = wiring
        self._client = End(client, wiring.poller, number, faces_client=True)
        self._server: End | None = None
        self._up = Pump("upstream", number, wiring)
        self._down = Pump("downstream", number, wiring)
        self._up.source = self._down.target = self._client
        self._dialing = True
        self._attempt = 0
        self._redial_at = 0.0
        self._doomed: str | None = None  # to be reset as soon as the client's kernel can be told; why
        wiring.journal.add("accept", number)

    def turn(self, now: float) -> bool:
        """Do what can be done; true if there is more, which waits for the other links to have their turns."""
        turns = 0
        while turns < _TURNS and not self.over and self._step(now):
            turns += 1
        return turns == _TURNS

    def change(self) -> None:
        """Hear that the board has changed."""
        if self._up.damaged or self._down.damaged or self._doomed:
            self.end("close", "damaged")
        self._up.arm()
        self._down.arm()

    def end(self, how: How, why: str) -> None:
        """End the connection: the client as ``how`` says, upstream well unless one side has reset it."""
        if self.over:
            return
        if self._server is not None:
            if why != "aborted" or not self._server.reset():
                self._server.close()
            self._server = None
        if how == "close":
            self._client.close()
        elif not self._client.reset():
            self._doomed = why
            return
        self.over = True
        self._wiring.journal.add("closed" if how == "close" else "reset", self.number, note=why)

    def due(self) -> float | None:
        """Return when it wants its next turn even if no socket is ready."""
        if self._doomed:
            return None
        times = [pump.wakes for pump in (self._up, self._down) if pump.wakes is not None]
        if self._dialing and self._server is None and not self._wiring.board.black_hole:
            times.append(self._redial_at)
        return min(times, default=None)

    def view(self) -> Connection:
        """Return how it stands."""
        return Connection(
            number=self.number,
            connected=self._server is not None and not self._dialing,
            passed_upstream=self._up.passed,
            passed_downstream=self._down.passed,
            held_upstream=self._up.held,
            held_downstream=self._down.held,
        )

    def _step(self, now: float) -> bool:
        """Return whether something moved, so that another step may find more."""
        if self._doomed is not None:
            self.end("reset", self._doomed)
            return False
        if self._wiring.board.resets:
            self.end("reset", "reset")
            return False
        self._connect(now)
        moved = False
        for pump in (self._up, self._down):
            moved |= pump.turn(now)
            if pump.verdict is not None:
                self.end(*pump.verdict)
                return False
        if self._up.done and self._down.done:
            self.end("close", "ended")
            return False
        return moved

    def _connect(self, now: float) -> None:
        # A black hole hides whether anything is behind it, so nothing is dialled before it is gone.
        while self._dialing and self._server is None and now >= self._redial_at:
            if self._wiring.board.black_hole:
                return
            self._dial(now)
        if self._dialing and self._server is not None and (self._server.writable or self._server.hung_up):
            self._dialed(self._server, now)

    def _dial(self, now: float) -> None:
        family, sockaddr = self._wiring.targets[self._attempt]
        sock: socket.socket | None = None
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.settimeout(0.0)
            code = sock.connect_ex(sockaddr)
        except OSError as error:
            code = error.errno or errno.EIO
        if sock is not None and code in (0, errno.EINPROGRESS):
            self._server = End(sock, self._wiring.poller, self.number, faces_client=False)
            return
        if sock is not None:
            sock.close()
        if code == errno.EAGAIN:
            self._redial_at = now + _REDIAL
        else:
            self._failed(code, now)

    def _dialed(self, server: End, now: float) -> None:
        if code := server.error():
            server.close()
            self._server = None
            self._failed(code, now)
        else:
            self._dialing = False
            self._up.target = self._down.source = server
            self._wiring.journal.add("dial", self.number)

    def _failed(self, code: int, now: float) -> None:
        self._attempt += 1
        if self._attempt < len(self._wiring.targets):
            return
        self._dialing = False
        self._wiring.journal.add("unreachable", self.number, note=errno.errorcode.get(code, str(code)))
        self._up.give_up("broken")
        self._down.end(now)
