"""A real Redis in a child process, which can be killed, paused and started again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self
from urllib.parse import quote

from .binary import find_redis_server
from .place import LOOPBACK, Listen, PortTaken, Server, ServerNotReady
from .resp import ErrorReply, Reply, Word, converse


class RedisServer(Server):
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
        return f"redis://{secret}{LOOPBACK}:{self.port}/0"

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
        return converse(self.address, timeout, *login, words)

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
        except PortTaken:
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
            self._process = subprocess.Popen(  # noqa: S603 - see binary._version
                [self.found.path, config, *self._args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; and a background save is killed with its server
            )
        place.entrust(self._process.pid)

    def _settings(self, data: Path) -> str:
        """Write them for a file: a command line, and so the password, can be read by every user."""
        settings = {"daemonize": "no", "save": "", "appendonly": "no", "dir": str(data), "bind": LOOPBACK}
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
        kind = PortTaken if self.listen == "tcp" and "Address already in use" in log else ServerNotReady
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
