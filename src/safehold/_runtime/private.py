"""Files that only we write, and one writer at a time: a lock for threads, and one for processes.

The directory is opened for each use and everything in it is reached through that, so nobody can exchange it
in between; and nothing stays open, so there is nothing to give to a forked child but what a thread of the
parent has open at that instant. That is why the processes' lock is given back in words: merely closed, it
would live on in such a child.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from weakref import WeakSet

from .._core.configuration import ConfigurationError, check_number

if sys.platform != "win32":
    import fcntl

_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # the last: a FIFO must not make us wait
_LINK: Final = {errno.ELOOP, errno.EMLINK}


class PrivatePlace:
    """A file and the directory that holds it. `path` is absolute.

    `patience` is how many seconds a writer waits for another one, in this process or elsewhere, before it
    gives up with `TimeoutError`: one that was stopped in the middle must not stop everybody.
    """

    def __init__(self, path: str | os.PathLike[str], *, patience: float, lock: str = ".lock") -> None:
        if not isinstance(path, str | os.PathLike) or not Path(path).name:
            msg = f"need the path of a file, got {path!r}"
            raise ConfigurationError(msg)
        if sys.platform == "win32":
            msg = "files that several processes write need flock, which this platform does not have"
            raise ConfigurationError(msg)
        check_number("patience", patience, least=0)
        self.path = Path(path).absolute()
        self._lock_name = self.path.name + lock
        self._patience = patience
        self._held: int | None = None
        self.reborn()
        _places.add(self)

    def reborn(self) -> None:
        """Begin, also in a forked child: the parent's thread that had the lock is not here.

        Forking from Python calls it; twice does no harm.
        """
        self._lock = threading.Lock()
        self._owner: int | None = None  # guarded by _lock
        if self._held is not None:
            with suppress(OSError):
                os.close(self._held)
        self._held = None  # guarded by _lock

    @contextmanager
    def entered(self) -> Generator[int]:
        """Be alone with the files; gives the directory's descriptor. Creates the directory if need be.

        Raises `OSError` when that cannot be had (`TimeoutError` when others keep it, `EDEADLK` when a
        signal handler or a finaliser comes here in the middle of the same thread's own writing), and
        `ConfigurationError` when somebody else could write here.
        """
        me = threading.get_ident()
        if self._owner == me:
            raise OSError(errno.EDEADLK, "this thread is in the middle of writing it", str(self.path))
        if not self._lock.acquire(timeout=self._patience):
            raise _waited(self.path)
        try:
            self._owner = me
            with opened_directory(self.path.parent, create=True) as directory, self._alone(directory):
                yield directory
        finally:
            self._owner = None
            self._lock.release()

    @contextmanager
    def _alone(self, directory: int) -> Generator[None]:
        self._held = held = open_private(self._lock_name, os.O_RDWR | os.O_CREAT, directory)
        try:
            self._flock(held)
            yield
        finally:
            fcntl.flock(held, fcntl.LOCK_UN)
            self._held = None
            os.close(held)

    def _flock(self, held: int) -> None:
        deadline, pause = time.monotonic() + self._patience, 0.0005
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise _waited(self.path) from None
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
            else:
                return


_places: Final[WeakSet[PrivatePlace]] = WeakSet()


def _forked() -> None:
    for place in list(_places):
        place.reborn()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@contextmanager
def opened_directory(path: Path, *, create: bool) -> Generator[int]:
    """Open a directory in which nobody else can put things; created with mode 0700 and made to last."""
    try:
        directory = _open_directory(path)
    except FileNotFoundError:
        if not create:
            raise
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        _settle(path.parent)
        directory = _open_directory(path)
    try:
        _check(os.fstat(directory), str(path))
        yield directory
    finally:
        os.close(directory)


def open_private(name: str, flags: int, directory: int) -> int:
    """Open a plain file of ours. Refuses links, and files that others can write."""
    try:
        file = os.open(name, flags | _FLAGS, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno in _LINK:
            raise _link(name) from None
        raise
    try:
        told = os.fstat(file)
        if not stat.S_ISREG(told.st_mode):
            msg = f"{name} is not a plain file"
            raise ConfigurationError(msg)
        _check(told, name)
    except BaseException:
        os.close(file)
        raise
    return file


def write_all(file: int, raw: bytes) -> None:
    """Write all of it, or raise `OSError` after a part of it."""
    rest = memoryview(raw)
    while rest:
        written = os.write(file, rest)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest = rest[written:]


def _open_directory(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | _FLAGS)
    except OSError:
        if path.is_symlink():
            raise _link(str(path)) from None
        raise


def _settle(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _check(told: os.stat_result, name: str) -> None:
    if told.st_uid != os.geteuid():
        msg = f"{name} must belong to the user of this process ({os.geteuid()}), not to user {told.st_uid}"
        raise ConfigurationError(msg)
    if told.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        msg = f"{name} must not be writable by others (chmod go-w); its mode is {told.st_mode & 0o7777:04o}"
        raise ConfigurationError(msg)


def _link(name: str) -> ConfigurationError:
    return ConfigurationError(f"{name} is a symbolic link; name what it points to instead")


def _waited(path: Path) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, "others keep it", str(path))
