"""What both servers stand on: a private directory, an address that stays reserved, and a warden.

``safehold.testing.servers`` says why: nothing outlives its owner, and a port is never lent out.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO, Literal, TypeAlias, cast

Listen: TypeAlias = Literal["unix", "tcp"]
Address: TypeAlias = str | tuple[str, int]

LOOPBACK = "127.0.0.1"
LINUX = sys.platform == "linux"
_LONGEST_BASE = 60  # a socket's path must fit into sun_path: 104 bytes on the narrowest system

# Each line names the process group to kill, or nobody. "done": we are; end of file: we are dead.
_WARDEN = """
group=
while read -r line && [ "$line" != done ]; do group=$line; done
[ -n "$group" ] && kill -s KILL -- "-$group"
rm -rf -- "${1:?}"
"""


class ServerNotReady(RuntimeError):
    """The server was started and did not answer as it should, or it is not running at all."""


class PortTaken(ServerNotReady):
    pass


class Place:
    """A private directory and an address, given up when this process ends, in whatever way it ends."""

    def __init__(self, listen: Listen, name: str) -> None:
        base = tempfile.gettempdir()
        if len(os.fsencode(base)) > _LONGEST_BASE:
            base = "/tmp"  # noqa: S108 - only the base: mkdtemp makes a private directory in it
        self._owner = os.getpid()
        self._port: socket.socket | None = None
        self.directory = Path(tempfile.mkdtemp(prefix=f"safehold-{name}-", dir=base))
        self.address: Address = str(self.directory / f"{name}.sock")
        try:
            if listen == "tcp":
                self.move()
            self._warden = _warden(self.directory)
        except BaseException:
            self._clear()
            raise
        self._line = cast("BinaryIO", self._warden.stdin)

    @property
    def mine(self) -> bool:
        """Tell a forked child, which must not give up what belongs to its parent."""
        return self._owner == os.getpid()

    def move(self) -> None:
        """Take a port, or another one than before."""
        before = self._port
        # Bound and not listening: whoever connects is refused, and nobody else is handed this number.
        self._port = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind((LOOPBACK, 0))
        self.address = (LOOPBACK, self._port.getsockname()[1])
        if before is not None:
            before.close()
        if not LINUX:
            self._port.close()

    def entrust(self, pid: int | None) -> None:
        """Name the process group that must not outlive us; ``None`` when it is gone."""
        self._tell("" if pid is None else str(pid))

    def leave(self) -> None:
        self._tell("done")  # closing the pipe would not do while a forked child holds it, too
        self._line.close()
        try:
            self._warden.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._warden.kill()
            self._warden.wait(timeout=5)
        self._clear()

    def _tell(self, line: str) -> None:
        if self.mine:
            with contextlib.suppress(BrokenPipeError):  # somebody killed the warden: the insurance is lost
                self._line.write(line.encode() + b"\n")

    def _clear(self) -> None:
        if self._port is not None:
            self._port.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def _warden(directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - a constant script; the directory is its argument, not its text
        ["/bin/sh", "-c", _WARDEN, "safehold-warden", directory],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={"PATH": os.defpath},
        start_new_session=True,  # Ctrl-C in a terminal must not end it before us
    )


class Server:
    """Where a server can be reached."""

    _name: str

    def __init__(self, listen: Listen) -> None:
        if listen not in ("unix", "tcp"):
            msg = f'listen is "unix" or "tcp", got {listen!r}'
            raise ValueError(msg)
        self.listen: Listen = listen
        self._home: Place | None = None

    @property
    def address(self) -> Address:
        """What ``socket.connect`` takes; the same from ``start`` to ``stop``, crashes included."""
        return self._place().address

    @property
    def path(self) -> str:
        """The unix socket's path."""
        if isinstance(self.address, str):
            return self.address
        msg = f"the {self._name} server listens on {self.address}, not on a unix socket"
        raise ServerNotReady(msg)

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        if isinstance(self.address, tuple):
            return self.address[1]
        msg = f"the {self._name} server listens on {self.address}, not on a port"
        raise ServerNotReady(msg)

    def _place(self) -> Place:
        if self._home is None:
            msg = f"the {self._name} server is not started, or is stopped already"
            raise ServerNotReady(msg)
        return self._home

    def _settle(self) -> bool:
        """Take a place, and say whether it is a new one: a killed server still has its own."""
        if self._home is not None:
            return False
        self._home = Place(self.listen, self._name)
        return True

    def _abandon(self) -> None:
        home, self._home = self._home, None
        if home is not None:
            home.leave()

    def _mine(self) -> bool:
        return self._home is not None and self._home.mine
