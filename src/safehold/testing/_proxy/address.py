"""Where a proxy listens and where it forwards to, and the door: the address that clients connect to.

A door that refuses keeps its address. A TCP port is kept by a second socket that is bound but never listens:
without it the kernel could hand the port to any outgoing connection, or connect a client to itself.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

BACKLOG: Final = 4096
PATH_LIMIT: Final = 107  # bytes; sun_path has 108 and ends with a zero


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host and a port, written ``127.0.0.1:6379`` or ``[::1]:6379``."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a unix socket, written ``unix:/run/redis.sock`` or, absolute, as it is."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress
Target = tuple[int, Any]  # address family, and what connect() takes for it


def parse(value: object, *, name: str) -> Address:
    """Return the address that ``value`` writes; a ``ValueError`` names the argument."""
    if isinstance(value, str) and value.startswith(("unix:", "/")):
        return _unix(value.removeprefix("unix:"), name)
    host, port = _split(value)
    if not isinstance(host, str) or not host or host.count(":") == 1 or not _is_port(port):
        msg = f'{name}: need "host:port", "[v6]:port", (host, port) or "unix:/path", got {value!r}'
        raise ValueError(msg)
    return TcpAddress(host, int(port))


def parse_upstream(value: str | tuple[str, int]) -> Address:
    """Return the address of an upstream, whose port cannot be zero."""
    address = parse(value, name="upstream")
    if isinstance(address, TcpAddress) and address.port == 0:
        msg = f"upstream: need a port, got {value!r}"
        raise ValueError(msg)
    return address


def parse_listen(value: str | tuple[str, int] | None, *, upstream: Address) -> Address | None:
    """Return where to listen, never reachable from another machine; ``None``: a fresh unix socket."""
    if value is None:
        if isinstance(upstream, UnixAddress):
            return None
        return TcpAddress("::1" if ":" in upstream.host else "127.0.0.1", 0)
    address = parse(value, name="listen")
    if isinstance(address, TcpAddress) and not _is_loopback(address.host):
        msg = f"listen: a fault proxy is for this machine only; need a loopback address, got {value!r}"
        raise ValueError(msg)
    return address


def resolve(address: Address) -> list[Target]:
    """Return what to connect to, in the order in which to try. May block, and raise OSError."""
    if isinstance(address, UnixAddress):
        return [(socket.AF_UNIX, address.path)]
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return [(family, sockaddr) for family, _, _, _, sockaddr in found]


class Door(Protocol):
    """The address that clients connect to."""

    address: Address

    def open(self) -> socket.socket:
        """Return a new listening socket."""
        ...

    def refuse(self, *, stale: bool) -> None:
        """Make the address refuse, after the listening socket was closed."""
        ...

    def close(self) -> None:
        """Give the address back."""
        ...


class TcpDoor:
    """A loopback port."""

    def __init__(self, address: TcpAddress) -> None:
        self._family, sockaddr = resolve(address)[0]
        self._holder = self._bound(sockaddr)
        self._sockaddr = self._holder.getsockname()
        self.address: Address = TcpAddress(address.host, self._sockaddr[1])

    def open(self) -> socket.socket:
        """Return a new listening socket."""
        listener = self._bound(self._sockaddr)
        try:
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener

    def refuse(self, *, stale: bool) -> None:
        """Nothing to do: the holder refuses."""

    def close(self) -> None:
        """Give the port back."""
        self._holder.close()

    def _bound(self, sockaddr: Any) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(sockaddr)
        except OSError:
            sock.close()
            raise
        return sock


class UnixDoor:
    """A unix socket, at a given path or in a private directory. Removes only the file it has made."""

    def __init__(self, address: UnixAddress | None) -> None:
        self._directory = None if address else _private_directory()
        self._path = Path(address.path) if address else Path(self._directory or "", "proxy.sock")
        self._made: tuple[int, int] | None = None
        self.address: Address = UnixAddress(str(self._path))

    def open(self) -> socket.socket:
        """Return a new listening socket, in place of a stale file that was left by ``refuse``."""
        self._remove()
        listener = self._bound()
        try:
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        return listener

    def refuse(self, *, stale: bool) -> None:
        """Remove the socket file, as a server that ends well; leave one, as one that was killed."""
        if not stale:
            self._remove()
        elif self._made is None:
            self._bound().close()

    def close(self) -> None:
        """Remove the socket file and the private directory."""
        self._remove()
        if self._directory is not None:
            with suppress(OSError):  # gone, or somebody put a file there, which is not ours to remove
                Path(self._directory).rmdir()

    def _bound(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(str(self._path))
        except OSError:
            sock.close()
            raise
        self._made = self._identity()
        return sock

    def _remove(self) -> None:
        if self._made is not None and self._made == self._identity():
            self._path.unlink(missing_ok=True)
        self._made = None

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self._path.lstat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def make_door(address: Address | None) -> TcpDoor | UnixDoor:
    """Return the door at ``address``. A port is taken at once, a path when the door opens."""
    return TcpDoor(address) if isinstance(address, TcpAddress) else UnixDoor(address)


def _unix(path: str, name: str) -> UnixAddress:
    path = path.removeprefix("//")
    if not path or "\0" in path:
        msg = f'{name}: need a path after "unix:", got {path!r}'
        raise ValueError(msg)
    if (length := len(os.fsencode(path))) > PATH_LIMIT:
        msg = f"{name}: a unix socket's path has at most {PATH_LIMIT} bytes, this one has {length}: {path!r}"
        raise ValueError(msg)
    return UnixAddress(path)


def _split(value: Any) -> tuple[Any, Any]:
    match value:
        case str():
            host, _, port = value.rpartition(":")
            return host.removeprefix("[").removesuffix("]") if host.startswith("[") else host, port
        case host, port:
            return host, port
        case _:
            return None, None


def _private_directory() -> str:
    directory = tempfile.mkdtemp(prefix="safehold-")  # mode 0700
    if len(os.fsencode(directory)) + len("/proxy.sock") > PATH_LIMIT:
        Path(directory).rmdir()
        directory = tempfile.mkdtemp(prefix="safehold-", dir="/tmp")  # the one short path there is
    return directory


def _is_port(port: object) -> bool:
    if isinstance(port, str):
        return port.isascii() and port.isdigit() and int(port) <= 65535
    return isinstance(port, int) and not isinstance(port, bool) and 0 <= port <= 65535


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
