"""The durable trail: an append-only journal of JSON lines that several processes write and nobody else.

    ledger.jsonl                  the newest lines
    ledger.jsonl.1, .2, ...       older ones; the highest number is the oldest
    ledger.jsonl.torn             pieces of lines that crashes left behind, moved out of the way
    ledger.jsonl.lock             who writes (flock); `.reconcile.lock`: who tells what became of lost acts

What a line is and how it vouches for the one before is told in `chain`. A writer remembers the last line
that it wrote; when the file ends otherwise, others have written, and it reads the end again. When it then
ends *before* what this process knows, lines were taken away, and the chain goes on from what is known, so
that the gap shows. One journal belongs to the processes of one machine that see one another's numbers: of one
container, say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .._core.configuration import ConfigurationError, check_count
from .chain import (
    BEGINNING,
    MOST_LINE,
    OWN,
    TORN,
    Fault,
    Link,
    Record,
    VerifyReport,
    encode,
    end_of,
    note_intent,
    numbered,
    read,
    verify,
)
from .incarnation import incarnation, is_gone
from .private import PrivatePlace, open_private, write_all

__all__ = ["Fault", "Journal", "Record", "VerifyReport", "read", "verify"]

MOST_TORN: Final = 1024 * 1024
LOST_WHY: Final = "the process ended before it told"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stand:
    """How we left the newest file: which one, how long, and its last line (none in a new one)."""

    inode: tuple[int, int]
    size: int
    last: bytes
    link: Link


class Journal:
    """A journal at `path`. All methods may be called from any thread and in forked children; they block.

    A file grows to `most_bytes` and is then renamed; `most_files` are kept, the newest included. A writer
    waits for others for `patience` seconds. `wall` gives Unix time. Building one touches no file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        most_bytes: int = 16 * 1024 * 1024,
        most_files: int = 8,
        patience: float = 5.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        check_count("most_bytes", most_bytes)
        check_count("most_files", most_files, least=2)
        if most_files > 100:
            msg = f"most_files must be at most 100, got {most_files}"
            raise ConfigurationError(msg)
        self._place = PrivatePlace(path, patience=patience)
        self._reconciling = PrivatePlace(path, patience=0, lock=".reconcile.lock")
        self._most_bytes, self._most_files = most_bytes, most_files
        self._wall = wall
        self._stamp: dict[str, Any] = {}  # guarded by _place
        self._known = BEGINNING  # guarded by _place
        self._stand: _Stand | None = None  # None: to be read  # guarded by _place
        self._lasting: tuple[int, int] | None = (
            None  # the file whose name is on the disk  # guarded by _place
        )

    @property
    def path(self) -> Path:
        """Where the newest lines are."""
        return self._place.path

    def reborn(self) -> None:
        """Begin again in a forked child. Forking from Python does it by itself."""
        self._place.reborn()
        self._reconciling.reborn()

    def append(self, record: Mapping[str, Any], *, durable: bool) -> int:
        """Write a line and give its number. With `durable` it is on the disk when this returns.

        What could not be written leaves no trace. Raises `OSError` then; `ConfigurationError` when others
        could write here, or when the record is no JSON object of `MOST_LINE` bytes at most.
        """
        with self._place.entered() as directory:
            return self._append(directory, record, durable=durable)

    def prepare(self) -> None:
        """Do all of an append but the writing, so that a bad place is known early. Raises the same."""
        with self._place.entered() as directory, self._opened(directory) as file:
            self._resume(directory, file)

    def open_intents(self) -> tuple[Record, ...]:
        """Give the intents whose processes are gone, and of which no line tells what became."""
        intents: dict[int, Record] = {}
        with suppress(FileNotFoundError):
            for line in read(self.path):
                if line.record is not None:
                    note_intent(intents, line.record)
        return tuple(one for one in intents.values() if is_gone(one["pid"], one["boot"]))

    def reconcile(self) -> int:
        """Write for each of these that its outcome is `unknown`, and give how many there were.

        Where another process is at it, it is left to that one. Raises what `append` raises.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(self._reconciling.entered())
            except TimeoutError:
                return 0
            lost = self.open_intents()
            for number, intent in enumerate(lost, 1):
                self._lose(intent, durable=number == len(lost))
            return len(lost)

    def _lose(self, intent: Record, *, durable: bool) -> None:
        said = {name: value for name, value in intent.items() if name not in OWN}
        told = {"at": self._wall(), "outcome": "unknown", "intent": intent["seq"], "why": LOST_WHY}
        try:
            self.append({**said, **told}, durable=durable)
        except ConfigurationError:  # just too long with the added words
            self.append(told, durable=durable)

    @contextmanager
    def _opened(self, directory: int) -> Generator[int]:
        file = open_private(self.path.name, os.O_RDWR | os.O_APPEND | os.O_CREAT, directory)
        try:
            yield file
        finally:
            os.close(file)

    def _append(self, directory: int, record: Mapping[str, Any], *, durable: bool) -> int:
        with self._opened(directory) as file:
            stand = self._resume(directory, file)
            raw, link = encode(record, stand.link, self._who())
            if not stand.size or stand.size + len(raw) <= self._most_bytes:
                self._write(directory, file, stand.size, raw, link, durable=durable)
                return link.seq
            self._rotate(directory, file)
        with self._opened(directory) as file:
            self._write(directory, file, 0, raw, link, durable=durable)
        return link.seq

    def _write(self, directory: int, file: int, size: int, raw: bytes, link: Link, *, durable: bool) -> None:
        """Write one line at the end, all of it or nothing."""
        self._stand = None
        inode = _inode(file)
        try:
            write_all(file, raw)
            if durable:
                os.fsync(file)
                if self._lasting != inode:
                    os.fsync(directory)
                    self._lasting = inode
        except BaseException:
            with suppress(OSError):  # else it is a torn tail, for the next one
                os.ftruncate(file, size)
            raise
        self._known = link
        self._stand = _Stand(inode=inode, size=size + len(raw), last=raw, link=link)

    def _resume(self, directory: int, file: int) -> _Stand:
        """Tell where the chain goes on; that needs reading only when the end is not as we left it."""
        stand, size = self._stand, os.fstat(file).st_size
        if (
            stand is None
            or (stand.inode, stand.size) != (_inode(file), size)
            or os.pread(file, len(stand.last), size - len(stand.last)) != stand.last
        ):
            self._stand = stand = self._look(directory, file, size)
            self._known = stand.link
        return stand

    def _look(self, directory: int, file: int, size: int) -> _Stand:
        link, whole = end_of(file)
        if whole < size:
            self._set_aside(directory, file, whole, size)
        link = link or self._older(directory)
        if link.seq < self._known.seq:
            link = self._known
        return _Stand(inode=_inode(file), size=whole, last=b"", link=link)

    def _older(self, directory: int) -> Link:
        names = numbered(os.listdir(directory), self.path.name)
        for number in sorted(names):
            file = open_private(names[number], os.O_RDONLY, directory)
            try:
                link, _ = end_of(file)
            finally:
                os.close(file)
            if link is not None:
                return link
        return BEGINNING

    def _set_aside(self, directory: int, file: int, whole: int, size: int) -> None:
        """Move what a crash has left of a line to another file, which is begun anew when it grows."""
        piece = os.pread(file, min(size - whole, MOST_LINE), whole)
        torn = open_private(self.path.name + TORN, os.O_WRONLY | os.O_APPEND | os.O_CREAT, directory)
        try:
            if os.fstat(torn).st_size + len(piece) > MOST_TORN:
                os.ftruncate(torn, 0)
            write_all(torn, piece + b"\n")
            os.fsync(torn)
        finally:
            os.close(torn)
        os.ftruncate(file, whole)

    def _rotate(self, directory: int, file: int) -> None:
        """Make room: every file gets the next number, and what is too old goes."""
        os.fsync(file)  # before its successor: a chain must not last longer than its beginning
        self._stand = None
        name = self.path.name
        for number, old in sorted(numbered(os.listdir(directory), name).items(), reverse=True):
            if number + 1 < self._most_files:
                os.rename(old, f"{name}.{number + 1}", src_dir_fd=directory, dst_dir_fd=directory)
            else:
                os.unlink(old, dir_fd=directory)
        os.rename(name, f"{name}.1", src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)

    def _who(self) -> dict[str, Any]:
        pid = os.getpid()
        if self._stamp.get("pid") != pid:  # also after a fork
            self._stamp = {"pid": pid, "boot": incarnation(pid) or ""}
        return self._stamp


def _inode(file: int) -> tuple[int, int]:
    told = os.fstat(file)
    return told.st_dev, told.st_ino
