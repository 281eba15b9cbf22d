"""A durable ledger by hand: `safehold ledger verify PATH` and `safehold ledger show PATH`.

PATH is the newest file (`.../ledger.jsonl`); the older ones beside it are read with it. Nothing is changed
and nothing is locked, so both can be run beside a working service, or on a copy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

from ._runtime.incarnation import is_gone
from ._runtime.journal import Record, VerifyReport, read, verify

WHOLE, BROKEN, USAGE = 0, 1, 2
_COLUMNS: Final = ("number", "time", "operation", "outcome", "subject", "details")
_DETAILS: Final = ("intent", "count", "reasons", "why", "actor", "grant", "evidence", "scope")
_BATCH: Final = 1000


def main(argv: list[str]) -> int:
    """Exit status 0: whole; 1: broken; 2: bad arguments, or nothing that can be read."""
    options = _parser().parse_args(argv)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: end in silence
        return WHOLE
    except OSError as error:
        sys.stderr.write(f"safehold ledger: {_plain(str(error))}\n")
        return USAGE
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safehold ledger",
        description="Read a ledger that is kept in files, and tell whether it is whole.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, told in (
        ("verify", _verify, "tell whether the ledger is whole; exit status 0: it is, 1: it is broken"),
        ("show", _show, "print its lines, the oldest first"),
    ):
        command = commands.add_parser(name, help=told, description=told)
        command.set_defaults(run=run)
        command.add_argument("path", type=Path, metavar="PATH", help="the newest file, such as ledger.jsonl")
        if run is _show:
            command.add_argument("--operation", metavar="NAME", help="of this operation only")
            command.add_argument("--format", choices=("text", "json"), default="text")
    return parser


def _verify(options: argparse.Namespace) -> int:
    report = verify(options.path)
    for line in _told(report):
        _say(line)
    return WHOLE if report.ok else BROKEN


def _told(report: VerifyReport) -> Iterator[str]:
    which = "" if report.first_seq is None else f", numbers {report.first_seq} to {report.last_seq}"
    yield f"{'whole' if report.ok else 'BROKEN'}: {report.lines} lines in {len(report.files)} files{which}"
    if (fault := report.first_fault) is not None:
        yield f"first fault: {fault.file}, line {fault.line}: {fault.what}"
    if report.ok and report.first_seq is not None and report.first_seq > 1:
        yield f"numbers 1 to {report.first_seq - 1} are not here: dropped by rotation, or taken away"
    if report.torn_tail:
        yield f"torn tail: {report.torn_tail} bytes of a line that was cut short, or is being written"
    if report.set_aside:
        yield f"set aside: {report.set_aside} bytes of lines that earlier crashes cut short"
    if report.open_intents:
        yield f"open intents: {len(report.open_intents)}, of which nobody has told yet what became"
    for intent in report.open_intents:
        where = "its process is gone" if is_gone(intent["pid"], intent["boot"]) else "in progress"
        yield f"  {'  '.join([*_row(intent)[:3], _row(intent)[4], where])}"


def _show(options: argparse.Namespace) -> int:
    faults: list[str] = []
    records = _records(options.path, options.operation, faults)
    for line in _table(records) if options.format == "text" else map(_json, records):
        _say(line)
    for fault in faults[:1]:
        sys.stderr.write(f"safehold ledger: {len(faults)} lines cannot be read; the first: {_plain(fault)}\n")
    return BROKEN if faults else WHOLE


def _records(path: Path, operation: str | None, faults: list[str]) -> Iterator[Record]:
    for line in read(path):
        if line.fault:
            faults.append(f"{line.file}, line {line.number}: {line.fault}")
        elif line.record is not None and operation in {None, line.record.get("operation")}:
            yield line.record


def _json(record: Record) -> str:
    return json.dumps(record, sort_keys=True)


def _table(records: Iterable[Record]) -> Iterator[str]:
    """Align a thousand lines at a time, so that a long ledger needs no memory."""
    rows = iter([_COLUMNS])
    widths = [0] * (len(_COLUMNS) - 1)
    more = map(_row, records)
    while batch := [*rows, *islice(more, _BATCH)]:
        rows = iter([])
        widths = [max(width, *(len(row[at]) for row in batch)) for at, width in enumerate(widths)]
        for row in batch:
            cells = [cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)]
            yield "  ".join(cells).rstrip()


def _row(record: Record) -> tuple[str, ...]:
    details = ", ".join(f"{name}={_word(record[name])}" for name in _DETAILS if record.get(name))
    named = (_word(record.get(name, "-")) for name in ("operation", "outcome", "subject"))
    return str(record["seq"]), _time(record.get("at")), *named, _plain(details)


def _time(at: object) -> str:
    if not isinstance(at, int | float):
        return "-"
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return "-"


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return _plain(text)


def _plain(text: str) -> str:
    """Whatever a terminal could take for an order is spelled out."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _say(line: str) -> None:
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
