"""The lines of a journal: what one looks like, how each vouches for the one before, and how all are read.

A line is one JSON object in its only form (`canonical`), at most `MOST_LINE` bytes with its end. Beside what
the writer says it has `seq` (1, 2, 3, ... over all files and processes), `pid` and `boot` (which process),
`prev` (the checksum of the line before, zeros for the first) and `sum`, the checksum over `prev` and the rest
of the line. So a changed byte, a line that is missing in the middle, and lines in another order are found.
Three things cannot be: lines missing at the very end, the oldest files missing (rotation drops them too), and
someone who writes the whole chain anew; compare the numbers with what was seen elsewhere.

A crash can leave a piece of a line at the end of the newest file. That is a *torn tail*, and no fault.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from .._core.configuration import ConfigurationError
from .canonical import canonical, checksum, parse

MOST_LINE: Final = 64 * 1024
MOST_OPEN: Final = 10_000
OWN: Final = frozenset({"boot", "pid", "prev", "seq", "sum"})
TORN: Final = ".torn"

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Link:
    """How far the chain has come: the number and the checksum of a line."""

    seq: int = 0
    sum: str = "0" * 32


BEGINNING: Final = Link()


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line as it was read. With a `fault` there is no record; a torn tail is neither."""

    file: Path
    number: int
    record: Record | None = None
    fault: str = ""
    torn: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Where a journal is broken: a file, a line in it (1 is the first), and what is wrong with it."""

    file: str
    line: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What a reading of all files has found. `ok` is true when the chain is whole.

    `lines` counts whole lines, broken ones included, `files` are the files' names, the oldest first;
    `first_seq` and `last_seq` are the numbers of the first and the last line that could be read. `torn_tail`
    is the length in bytes of a piece of a line at the end, `set_aside` that of earlier ones. `open_intents`
    are the records of which no outcome is known, living processes' included, the newest `MOST_OPEN`.
    """

    ok: bool
    lines: int
    files: tuple[str, ...]
    first_fault: Fault | None
    first_seq: int | None
    last_seq: int | None
    torn_tail: int
    set_aside: int
    open_intents: tuple[Record, ...]


def encode(record: Mapping[str, Any], before: Link, stamp: Mapping[str, Any]) -> tuple[bytes, Link]:
    """Give the line that follows, and how far the chain has come with it."""
    if taken := OWN & record.keys():
        msg = f"a record must leave {', '.join(sorted(taken))} to the journal"
        raise ConfigurationError(msg)
    line = {**record, **stamp, "seq": before.seq + 1, "prev": before.sum}
    try:
        link = Link(before.seq + 1, checksum(before.sum, canonical(line)))
        raw = canonical({**line, "sum": link.sum}).encode("ascii") + b"\n"
    except ValueError as error:
        msg = f"a record must be a JSON object: {error}"
        raise ConfigurationError(msg) from None
    if len(raw) > MOST_LINE:
        msg = f"a record must be at most {MOST_LINE} bytes long, this one has {len(raw)}"
        raise ConfigurationError(msg)
    return raw, link


def decode(raw: bytes) -> Record:
    """Give the record of a line, without its end. Raises `ValueError`, which says what is wrong with it."""
    record = parse(raw)
    if not isinstance(record, dict) or not record.keys() >= OWN or type(record["seq"]) is not int:
        msg = "not a line of a journal"
        raise ValueError(msg)
    rest = {name: value for name, value in record.items() if name != "sum"}
    if record["sum"] != checksum(str(record["prev"]), canonical(rest)):
        msg = "changed: its checksum is another"
        raise ValueError(msg)
    return record


def link_of(record: Record) -> Link:
    """Tell how far the chain has come with this line."""
    return Link(record["seq"], record["sum"])


def end_of(file: int) -> tuple[Link | None, int]:
    """Find the last good line of an open file, and where the last whole line ends, good or not."""
    size, reach, whole = os.fstat(file).st_size, 2 * MOST_LINE, 0
    while True:
        start = max(0, size - reach)
        *lines, piece = os.pread(file, size - start, start).split(b"\n")
        whole = size - len(piece) if lines else 0
        for raw in reversed(lines if start == 0 else lines[1:]):
            try:
                return link_of(decode(raw)), whole
            except ValueError:
                continue
        if start == 0:
            return None, whole
        reach *= 8


def numbered(names: list[str], name: str) -> dict[int, str]:
    """Pick a journal's older files, by number; the highest is the oldest."""
    endings = {one: one.removeprefix(f"{name}.") for one in names if one.startswith(f"{name}.")}
    return {
        int(end): one for one, end in endings.items() if end.isascii() and end.isdigit() and end[0] != "0"
    }


def read(path: Path) -> Iterator[Line]:
    """Give every line of all files, the oldest first. Raises `FileNotFoundError` when there is no file."""
    with _opened(path) as files:
        for file in files:
            yield from _lines(file, newest=file is files[-1])


def verify(path: str | os.PathLike[str]) -> VerifyReport:
    """Read a journal and all its older files, and tell whether the chain is whole.

    Locks nothing and changes nothing; what is being written meanwhile may show as a torn tail.
    Raises `OSError` when the files cannot be read.
    """
    path = Path(path)
    first: Record | None = None
    last: Record | None = None
    first_fault: Fault | None = None
    counted = torn = 0
    intents: dict[int, Record] = {}
    with _opened(path) as files:
        names = tuple(Path(file.name).name for file in files)
        for line in (one for file in files for one in _lines(file, newest=file is files[-1])):
            torn += line.torn
            counted += not line.torn
            fault = line.fault
            if line.record is not None:
                fault = _between(last, line.record)
                first, last = first or line.record, line.record
                note_intent(intents, line.record)
            if fault and first_fault is None:
                first_fault = Fault(file=str(line.file), line=line.number, what=fault)
    return VerifyReport(
        ok=first_fault is None,
        lines=counted,
        files=names,
        first_fault=first_fault,
        first_seq=None if first is None else first["seq"],
        last_seq=None if last is None else last["seq"],
        torn_tail=torn,
        set_aside=_size(path.with_name(path.name + TORN)),
        open_intents=tuple(intents.values()),
    )


def note_intent(intents: dict[int, Record], record: Record) -> None:
    """Keep the intents of which no outcome is known yet; the newest `MOST_OPEN`."""
    if record.get("outcome") == "intent":
        intents[record["seq"]] = record
        if len(intents) > MOST_OPEN:
            del intents[next(iter(intents))]
    elif type(intent := record.get("intent")) is int:
        intents.pop(intent, None)


def _between(before: Record | None, record: Record) -> str:
    """Say what is wrong between two lines. The first one that is kept may have any number: see rotation."""
    seq = record["seq"]
    if before is None:
        broken = seq < 1 or (seq == 1 and record["prev"] != BEGINNING.sum)
        return "says that it is the first, and is not" if broken else ""
    if seq != before["seq"] + 1:
        return f"has number {seq} after number {before['seq']}: lines are missing, doubled or out of order"
    if record["prev"] != before["sum"]:
        return "vouches for another line than the one before it"
    return ""


def _lines(file: BinaryIO, *, newest: bool) -> Generator[Line]:
    path, number = Path(file.name), 0
    while raw := file.readline(MOST_LINE):
        number += 1
        length, whole = len(raw), raw.endswith(b"\n")
        while not whole and (more := file.readline(MOST_LINE)):
            length, whole = length + len(more), more.endswith(b"\n")
        if not whole and newest:
            yield Line(file=path, number=number, torn=length)
        elif not whole:
            yield Line(file=path, number=number, fault="ends in the middle")
        elif length > MOST_LINE:
            yield Line(file=path, number=number, fault="longer than any line that was written")
        else:
            yield _judged(path, number, raw[:-1])


def _judged(path: Path, number: int, raw: bytes) -> Line:
    try:
        return Line(file=path, number=number, record=decode(raw))
    except ValueError as error:
        return Line(file=path, number=number, fault=str(error))


@contextmanager
def _opened(path: Path) -> Generator[list[BinaryIO]]:
    """Open all files as they were at one instant: when one was renamed meanwhile, all are opened again."""
    for _ in range(20):
        with ExitStack() as stack:
            try:
                files = [stack.enter_context(_open(one)) for one in _paths(path)]
                same = _identities(path) == [_identity(os.fstat(file.fileno())) for file in files]
            except FileNotFoundError:
                same, files = False, []
            if same and files:
                yield files
                return
            if not files and not _paths(path):
                msg = f"{path}: no journal there"
                raise FileNotFoundError(msg)
    msg = f"{path}: its files change too fast to be read"
    raise OSError(msg)


def _paths(path: Path) -> list[Path]:
    names = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    older = numbered(names, path.name)
    told = [path.with_name(older[number]) for number in sorted(older, reverse=True)]
    return [*told, path] if path.name in names else told


def _identities(path: Path) -> list[tuple[int, int]]:
    return [_identity(one.stat()) for one in _paths(path)]


def _identity(told: os.stat_result) -> tuple[int, int]:
    return told.st_dev, told.st_ino


def _open(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():  # a FIFO would make us wait
        msg = f"{path}: not a plain file"
        raise OSError(msg)
    return path.open("rb")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
