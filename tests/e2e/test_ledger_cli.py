"""`safehold ledger`: what it says of a ledger that is whole, torn, broken, or not there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safehold.__main__ import main
from safehold._runtime.journal import Journal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="flock")

REAP: dict[str, Any] = {
    "operation": "session.reap",
    "subject": "s1",
    "at": 1764342000.0,
    "trigger": "automatic",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.jsonl"


@pytest.fixture
def journal(path: Path) -> Journal:
    """An act, a block of another operation, and an act that is still running."""
    journal = Journal(path)
    journal.append({**REAP, "outcome": "intent"}, durable=True)
    journal.append({**REAP, "outcome": "failed", "intent": 1, "why": "KeyError: 's1'"}, durable=True)
    blocked = {"operation": "cache.drop", "outcome": "blocked", "count": 512, "reasons": ["unresolved_miss"]}
    journal.append({**blocked, "at": 1764342001.0}, durable=False)
    journal.append({**REAP, "outcome": "intent", "subject": "s2"}, durable=True)
    return journal


def run(*argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "safehold", "ledger", *argv],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **more,
    )


def test_a_whole_one(journal: Journal, path: Path) -> None:
    """Status 0, and what it found; an act that is running is no fault."""
    done = run("verify", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    first, second, third = done.stdout.splitlines()
    assert first == "whole: 4 lines in 1 files, numbers 1 to 4"
    assert second == "open intents: 1, of which nobody has told yet what became"
    assert third == "  4  2025-11-28T15:00:00Z  session.reap  s2  in progress"


def test_a_broken_one(capsys: pytest.CaptureFixture[str], journal: Journal, path: Path) -> None:
    """Status 1; where it is broken, and how."""
    path.write_bytes(path.read_bytes().replace(b"512", b"511"))
    assert main(["ledger", "verify", str(path)]) == 1
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first == "BROKEN: 4 lines in 1 files, numbers 1 to 4"
    assert second == f"first fault: {path}, line 3: changed: its checksum is another"


def test_after_a_crash(capsys: pytest.CaptureFixture[str], journal: Journal, path: Path) -> None:
    """A torn tail is told and tolerated, and so is what was set aside; status 0."""
    with path.open("ab") as file:
        file.write(b'{"half a')
    assert main(["ledger", "verify", str(path)]) == 0
    assert "torn tail: 8 bytes" in capsys.readouterr().out
    journal.append({}, durable=True)
    assert main(["ledger", "verify", str(path)]) == 0
    out = capsys.readouterr().out
    assert "torn tail" not in out
    assert "set aside: 9 bytes" in out


def test_after_a_rotation(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    """It is said that the beginning is not here."""
    journal = Journal(path, most_bytes=1, most_files=2)
    for _ in range(5):
        journal.append(REAP, durable=False)
    assert main(["ledger", "verify", str(path)]) == 0
    out = capsys.readouterr().out
    assert "whole: 2 lines in 2 files, numbers 4 to 5" in out
    assert "numbers 1 to 3 are not here" in out


DIES = """
import os, signal, sys
from safehold._runtime.journal import Journal
Journal(sys.argv[1]).append({"operation": "session.reap", "outcome": "intent", "subject": "s9"}, durable=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_t117_a_process_that_was_killed(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    """Its intent is open until somebody tells that it is unknown."""
    died = subprocess.run([sys.executable, "-c", DIES, str(path)], check=False, timeout=30)
    assert died.returncode == -signal.SIGKILL
    assert main(["ledger", "verify", str(path)]) == 0
    assert "  1  -  session.reap  s9  its process is gone" in capsys.readouterr().out
    assert Journal(path).reconcile() == 1
    assert main(["ledger", "verify", str(path)]) == 0
    assert "open intents" not in capsys.readouterr().out
    assert main(["ledger", "show", str(path)]) == 0
    assert "unknown" in capsys.readouterr().out.splitlines()[-1]


def test_a_table(capsys: pytest.CaptureFixture[str], journal: Journal, path: Path) -> None:
    """A line each, aligned, the oldest first."""
    assert main(["ledger", "show", str(path)]) == 0
    assert capsys.readouterr().out == (
        "number  time                  operation     outcome  subject  details\n"
        "1       2025-11-28T15:00:00Z  session.reap  intent   s1\n"
        "2       2025-11-28T15:00:00Z  session.reap  failed   s1       intent=1, why=KeyError: 's1'\n"
        '3       2025-11-28T15:00:01Z  cache.drop    blocked  -        count=512, reasons=["unresolved_miss"]\n'
        "4       2025-11-28T15:00:00Z  session.reap  intent   s2\n"
    )


def test_of_one_operation_as_json(capsys: pytest.CaptureFixture[str], journal: Journal, path: Path) -> None:
    """The records as they stand there."""
    assert main(["ledger", "show", str(path), "--operation", "cache.drop", "--format", "json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == json.loads(path.read_bytes().splitlines()[2])


def test_orders_for_a_terminal_are_spelled_out(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    """A subject is somebody else's text: it moves no cursor and begins no line."""
    Journal(path).append({**REAP, "subject": "\x1b[2J\nx\u202e\ud800é", "outcome": "done"}, durable=False)
    for format_ in ("text", "json"):
        assert main(["ledger", "show", str(path), "--format", format_]) == 0
        out = capsys.readouterr().out
        assert not {"\x1b", "\u202e", "\ud800"} & set(out)
        assert len(out.splitlines()) == (2 if format_ == "text" else 1)


def test_a_terminal_that_knows_ascii_only(path: Path) -> None:
    """Other letters are spelled out, too."""
    Journal(path).append({**REAP, "subject": "Ольга"}, durable=False)
    done = run("show", str(path), env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert "\\u041e" in done.stdout


def test_lines_that_cannot_be_read_are_told(
    capsys: pytest.CaptureFixture[str], journal: Journal, path: Path
) -> None:
    """The others are shown; status 1."""
    path.write_bytes(path.read_bytes().replace(b"512", b"511"))
    assert main(["ledger", "show", str(path)]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 4
    assert "1 lines cannot be read" in err
    assert "line 3: changed" in err


def test_long_ones_are_aligned_by_the_thousand(capsys: pytest.CaptureFixture[str], path: Path) -> None:
    """None is left out, none is told twice."""
    journal = Journal(path)
    for number in range(2100):
        journal.append({**REAP, "subject": f"s{number}"}, durable=False)
    assert main(["ledger", "show", str(path)]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.startswith("number")
    assert [row.split()[0] for row in rows] == [str(number) for number in range(1, 2101)]


@pytest.mark.parametrize(
    "argv", [[], ["verify"], ["forget", "x"], ["verify", "x", "--surprise"], ["show", "x", "--format", "xml"]]
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    """Status 2, and what would be right."""
    with pytest.raises(SystemExit) as end:
        main(["ledger", *argv])
    assert end.value.code == 2
    assert "usage: safehold ledger" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "show"])
def test_nothing_there(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    """A wrong path is neither whole nor broken: status 2, in one line."""
    for path in (tmp_path / "ledger.jsonl", tmp_path / "no" / "ledger.jsonl", tmp_path):
        assert main(["ledger", command, str(path)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("safehold ledger: ")
        assert err.count("\n") == 1


def test_nobody_reads_on(path: Path) -> None:
    """`safehold ledger show PATH | head -1` ends in silence."""
    journal = Journal(path)
    for _ in range(3000):
        journal.append(REAP, durable=False)
    shown = subprocess.Popen(
        [sys.executable, "-m", "safehold", "ledger", "show", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert shown.stdout is not None
    assert shown.stderr is not None
    shown.stdout.readline()
    shown.stdout.close()
    assert shown.stderr.read() == b""
    shown.stderr.close()
    assert shown.wait(30) == 0
