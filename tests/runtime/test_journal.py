"""The durable trail: numbers without a gap, lines that vouch for one another, and what crashes leave behind."""

from __future__ import annotations

import errno
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safehold import ConfigurationError
from safehold._runtime import chain, private
from safehold._runtime import journal as journals
from safehold._runtime.incarnation import incarnation, is_gone
from safehold._runtime.journal import Journal, verify

from .support import python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="flock")

INTENT = {"operation": "session.reap", "outcome": "intent", "subject": "s1"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.jsonl"


@pytest.fixture
def journal(path: Path) -> Journal:
    return Journal(path, wall=lambda: 1000.0)


def fill(journal: Journal, number: int) -> None:
    for one in range(number):
        journal.append({"operation": "reap", "outcome": "blocked", "count": one}, durable=False)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# Lines and numbers


def test_a_line_says_what_it_was_given_and_who_wrote_it(journal: Journal, path: Path) -> None:
    """One JSON object a line, numbered from 1, in a file that only we can read."""
    assert [journal.append(INTENT, durable=True), journal.append({"intent": 1}, durable=False)] == [1, 2]
    first, second = lines(path)
    assert first.items() >= INTENT.items()
    assert (first["seq"], first["pid"], first["boot"]) == (1, os.getpid(), incarnation(os.getpid()))
    assert (first["prev"], second["prev"]) == ("0" * 32, first["sum"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    report = verify(path)
    assert (report.ok, report.lines, report.files) == (True, 2, ("ledger.jsonl",))
    assert (report.first_seq, report.last_seq, report.open_intents) == (1, 2, ())


def test_whatever_is_json_is_read_as_it_was_written(journal: Journal, path: Path) -> None:
    """Other alphabets, half a surrogate, orders for a terminal, numbers: one line each, and whole."""
    for value in ("Ольга", "\ud800", "a\nb\x1b[2J\u2028", 1e300, -0.0, 10**30, [1, (2,)], {"b": {"a": None}}):
        journal.append({"value": value}, durable=False)
    assert verify(path).ok
    assert lines(path)[0]["value"] == "Ольга"
    assert path.read_bytes().isascii()


@pytest.mark.parametrize(
    "record",
    [
        {"at": float("nan")},
        {"at": float("inf")},
        {"subject": b"s1"},
        {"subject": {1, 2}},
        {"subjects": {2: "a", 10: "b"}},  # is sorted in another place when it is read
        {"seq": 7},
        {"sum": ""},
        {"why": "x" * chain.MOST_LINE},
    ],
    ids=lambda record: repr(record)[:30],
)
def test_what_is_no_record_is_refused(journal: Journal, path: Path, record: dict[str, Any]) -> None:
    """By name, and the journal goes on."""
    journal.append({}, durable=False)
    with pytest.raises(ConfigurationError, match="record"):
        journal.append(record, durable=True)
    assert journal.append({}, durable=False) == 2
    assert verify(path).ok


def test_a_bottomless_record_is_refused(journal: Journal) -> None:
    """Instead of exhausting the stack."""
    record: dict[str, Any] = {}
    inner = record
    for _ in range(200_000):
        inner["a"] = inner = {}
    with pytest.raises(ConfigurationError):
        journal.append(record, durable=False)


def test_the_chain_goes_on_in_the_next_process_and_the_next_file(path: Path) -> None:
    """Numbers never begin again: not after a restart, not after a rotation, not with both."""
    for _ in range(12):
        fill(Journal(path, most_bytes=500, most_files=100), 3)
    report = verify(path)
    assert (report.ok, report.lines, report.first_seq, report.last_seq) == (True, 36, 1, 36)
    assert len(report.files) > 5
    assert report.files[-1] == "ledger.jsonl"


def test_rotation_keeps_so_many_files_of_such_a_size(path: Path) -> None:
    """The oldest go. What is left is whole, and says where it begins."""
    fill(Journal(path, most_bytes=500, most_files=3), 60)
    assert sorted(one.name for one in path.parent.iterdir() if "lock" not in one.name) == [
        "ledger.jsonl",
        "ledger.jsonl.1",
        "ledger.jsonl.2",
    ]
    assert all(one.stat().st_size <= 500 for one in path.parent.iterdir())
    report = verify(path)
    assert (report.ok, report.last_seq) == (True, 60)
    assert report.first_seq == 60 - report.lines + 1 > 1


def test_fewer_files_than_before(path: Path) -> None:
    """A smaller limit holds from the next rotation on."""
    fill(Journal(path, most_bytes=500, most_files=9), 60)
    fill(Journal(path, most_bytes=500, most_files=2), 9)
    assert verify(path).files == ("ledger.jsonl.1", "ledger.jsonl")


@pytest.mark.parametrize("done", range(5))
def test_a_rotation_that_was_cut_short(path: Path, done: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of its steps was the last: no line is lost, and the next one goes on."""
    journal = Journal(path, most_bytes=500, most_files=9)
    while len(list(path.parent.glob("ledger.jsonl.[0-9]"))) < 4:
        fill(journal, 1)
    before = verify(path)
    real, left = os.rename, [done]

    def rename(*args: Any, **more: Any) -> None:
        if not left[0]:
            raise OSError(errno.EIO, "gone")
        left[0] -= 1
        real(*args, **more)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="gone"):
        patched.setattr(os, "rename", rename)
        fill(journal, 9)
    after = verify(path)
    assert after.ok
    assert after.lines >= before.lines
    fill(Journal(path, most_bytes=500, most_files=9), 5)
    last = verify(path)
    assert (last.ok, last.lines) == (True, after.lines + 5)


def test_a_rotation_that_was_cut_short_at_its_end(path: Path) -> None:
    """The newest file has its new name, and the next one is not begun."""
    fill(Journal(path), 3)
    path.rename(path.with_name("ledger.jsonl.1"))
    assert verify(path).ok
    assert Journal(path).append({}, durable=False) == 4
    assert verify(path).ok


# Faults that are found


def small(journal: Journal, path: Path) -> bytes:
    for record in (INTENT, {"intent": 1, "outcome": "done"}, {"why": "é\x7f", "at": 1.5, "n": [1, {}, None]}):
        journal.append(record, durable=False)
    return path.read_bytes()


def test_every_byte_that_changes_is_found(journal: Journal, path: Path) -> None:
    """By one bit or by another; what ends the last line makes it a torn one."""
    whole = small(journal, path)
    for at in range(len(whole)):
        for bit in (0, 5):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            report = verify(path)
            assert not report.ok or (report.torn_tail and at == len(whole) - 1), (at, bit)


def test_every_byte_that_is_missing_or_too_much_is_found(journal: Journal, path: Path) -> None:
    """Anywhere but at the end."""
    whole = small(journal, path)
    for at in range(len(whole) - 1):
        for other in (whole[:at] + whole[at + 1 :], whole[:at] + b" " + whole[at:]):
            path.write_bytes(other)
            assert not verify(path).ok, at


@pytest.mark.parametrize(
    ("change", "line", "what"),
    [
        (lambda a, b, c: [b, c], None, ""),  # as after a rotation: its number says so
        (lambda a, b, c: [a, c], 2, "number 3 after number 1"),
        (lambda a, b, c: [a, c, b], 2, "number 3 after number 1"),
        (lambda a, b, c: [a, b, b, c], 3, "number 2 after number 2"),
        (lambda a, b, c: [a, b"\n", b, c], 2, "not JSON"),
        (lambda a, b, c: [a, b"[" * 60_000 + b"\n", b, c], 2, "not JSON"),
        (lambda a, b, c: [a, b"x" * 70_000 + b"\n", b, c], 2, "longer than any"),
        (lambda a, b, c: [a, b'{"seq":2}\n', b, c], 2, "not a line"),
        (lambda a, b, c: [a, b.replace(b"done", b"gone"), c], 2, "checksum"),
        (lambda a, b, c: [a, b.replace(b",", b", ", 1), c], 2, "not JSON"),
        (lambda a, b, c: [a[:-1], b, c], 1, "not JSON"),
    ],
)
def test_what_was_edited_is_found(
    journal: Journal, path: Path, change: Callable[..., list[bytes]], line: int | None, what: str
) -> None:
    """The first fault is named: which file, which line, and what is wrong with it."""
    path.write_bytes(b"".join(change(*small(journal, path).splitlines(keepends=True))))
    report = verify(path)
    assert report.ok is (line is None)
    if report.first_fault is not None:
        assert (report.first_fault.file, report.first_fault.line) == (str(path), line)
        assert what in report.first_fault.what


def test_an_honest_line_of_another_journal_does_not_fit(journal: Journal, path: Path, tmp_path: Path) -> None:
    """Its checksum is right and its number is right, and it vouches for another line."""
    whole = small(journal, path).splitlines(keepends=True)
    other = Journal(tmp_path / "other" / "ledger.jsonl")
    fill(other, 2)
    path.write_bytes(whole[0] + other.path.read_bytes().splitlines(keepends=True)[1])
    fault = verify(path).first_fault
    assert fault is not None
    assert "vouches for another line" in fault.what


def test_a_first_line_that_follows_another_is_found(journal: Journal, path: Path) -> None:
    """Number 1 vouches for nothing: what came before it was taken away, and the rest numbered anew."""
    fill(journal, 1)
    stamp = {"pid": 1, "boot": ""}
    path.write_bytes(chain.encode({}, chain.Link(0, "1" * 32), stamp)[0])
    fault = verify(path).first_fault
    assert fault is not None
    assert "says that it is the first" in fault.what


def test_a_file_in_the_middle_that_is_cut_or_missing(path: Path) -> None:
    """Older files end with whole lines, and follow one another."""
    fill(Journal(path, most_bytes=500, most_files=9), 12)
    middle = path.with_name("ledger.jsonl.2")
    whole = middle.read_bytes()
    for told, what in ((whole[:-5], "ends in the middle"), (b"", "lines are missing")):
        middle.write_bytes(told)
        fault = verify(path).first_fault
        assert fault is not None
        assert what in fault.what
    middle.unlink()
    assert not verify(path).ok
    middle.write_bytes(whole)
    assert verify(path).ok


def test_lines_that_are_taken_away_from_a_living_process_leave_a_gap(journal: Journal, path: Path) -> None:
    """It goes on from what it knows, though the file ends before."""
    kept = small(journal, path).splitlines(keepends=True)[0]
    path.write_bytes(kept)
    assert journal.append({}, durable=True) == 4
    assert not verify(path).ok


def test_an_edit_is_not_repaired(journal: Journal, path: Path) -> None:
    """A new process goes on behind a broken last line, and does not make it look whole."""
    whole = small(journal, path)
    path.write_bytes(whole.replace(b'"n":[1', b'"n":[2'))
    assert Journal(path).append({}, durable=True) == 3
    assert path.read_bytes().startswith(whole.replace(b'"n":[1', b'"n":[2'))
    fault = verify(path).first_fault
    assert fault is not None
    assert fault.line == 3


@pytest.mark.parametrize("what", ["nothing", "directory", "fifo"])
def test_what_cannot_be_read_at_all(path: Path, what: str) -> None:
    """Is an error, not a broken journal, and nobody waits."""
    path.parent.mkdir()
    {"nothing": lambda: None, "directory": path.mkdir, "fifo": lambda: os.mkfifo(path)}[what]()
    with pytest.raises(OSError, match=r"journal|plain file"):
        verify(path)


# What crashes leave


def test_a_line_cut_anywhere_is_a_torn_tail(journal: Journal, path: Path) -> None:
    """It is tolerated, reported, and moved out of the way by the next one to write."""
    whole = small(journal, path)
    start = whole.rindex(b"\n", 0, -1) + 1
    torn = path.with_name("ledger.jsonl.torn")
    for end in range(start, len(whole)):
        torn.unlink(missing_ok=True)
        path.write_bytes(whole[:end])
        before = verify(path)
        assert (before.ok, before.lines, before.torn_tail) == (True, 2, end - start)
        assert Journal(path).append({"after": True}, durable=True) == 3
        after = verify(path)
        assert (after.ok, after.lines, after.torn_tail) == (True, 3, 0)
        assert end == start or torn.read_bytes() == whole[start:end] + b"\n"
        assert after.set_aside == (end - start + 1 if end > start else 0)


@pytest.mark.parametrize("junk", [b"\0" * 300_000, b"{" * 200_000, b"x"])
def test_a_long_torn_tail(journal: Journal, path: Path, junk: bytes) -> None:
    """Power loss can leave zeros; how many does not matter, and not all of them are kept."""
    path.write_bytes(small(journal, path) + junk)
    assert (verify(path).ok, verify(path).torn_tail) == (True, len(junk))
    assert Journal(path).append({}, durable=True) == 4
    report = verify(path)
    assert (report.ok, report.torn_tail) == (True, 0)
    assert 0 < report.set_aside <= chain.MOST_LINE + 1


def test_what_is_set_aside_is_bounded(journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a service crashes."""
    monkeypatch.setattr(journals, "MOST_TORN", 100)
    fill(journal, 1)
    for _ in range(50):
        with path.open("ab") as file:
            file.write(b"half a line")
        fill(journal, 1)
    assert verify(path).set_aside <= 100
    assert verify(path).ok


def test_nothing_but_a_torn_line(path: Path) -> None:
    """The very first line can be the one that was cut."""
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b'{"boot":')
    assert verify(path).ok
    assert Journal(path).append({}, durable=True) == 1
    assert verify(path).ok


def test_a_piece_that_cannot_be_set_aside_stays(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is lost while the disk is full, and nothing is written behind it."""
    torn = small(journal, path)[:-9]
    path.write_bytes(torn)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(os, "write", failing(errno.ENOSPC))
        journal.append({}, durable=True)
    assert path.read_bytes() == torn
    journal.append({}, durable=True)
    assert path.with_name("ledger.jsonl.torn").read_bytes()
    assert not verify(path).torn_tail


WRITER = """
import sys
from safehold._runtime.journal import Journal
journal = Journal(sys.argv[1], most_bytes=20_000, most_files=50)
for turn in range(100_000):
    seq = journal.append({"outcome": "intent", "subject": "s" * (turn * 37 % 900)}, durable=turn % 5 == 0)
    print(seq, flush=True)
    journal.append({"outcome": "done", "intent": seq}, durable=False)
"""


def start(path: Path, script: str = WRITER) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True, bufsize=1
    )


def told(writer: subprocess.Popen[str], number: int) -> int:
    assert writer.stdout is not None
    last = 0
    for _ in range(number):
        ready, _, _ = select.select([writer.stdout], [], [], 30)
        assert ready, "the writer hangs"
        last = int(writer.stdout.readline())
    return last


def test_killed_writers_leave_a_whole_chain(path: Path) -> None:
    """At whatever instant it comes. What a writer has told is there, and what it left open is told as unknown."""
    dice = random.Random(7)
    for _ in range(6):
        writer = start(path)
        seq = told(writer, dice.randint(1, 120))
        writer.kill()
        writer.communicate(timeout=30)
        report = verify(path)
        assert report.ok, report.first_fault
        assert report.last_seq is not None
        assert report.last_seq >= seq
        journal = Journal(path, most_bytes=20_000, most_files=50)
        lost = [one["seq"] for one in journal.open_intents()]
        assert len(lost) <= 1
        assert journal.reconcile() == len(lost)
        assert [journal.open_intents(), verify(path).open_intents] == [(), ()]


# Several writers

TOGETHER = """
import sys
from safehold._runtime.journal import Journal
journal = Journal(sys.argv[1], most_bytes=5_000, most_files=100, patience=60)
sys.stdin.readline()
for turn in range(150):
    journal.append({"turn": turn}, durable=False)
print("done")
"""


def test_processes_write_one_chain(path: Path) -> None:
    """Every line has its own number, whoever writes, while the files rotate beneath them."""
    many = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for one in many:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    assert [one.communicate(timeout=90)[0] for one in many] == ["done\n"] * 3
    report = verify(path)
    assert (report.ok, report.lines, report.last_seq) == (True, 450, 450), report.first_fault


def test_threads_write_one_chain(path: Path) -> None:
    """Each with the same journal, or with one of its own."""
    shared = Journal(path, patience=60)
    own = [shared, shared, Journal(path, patience=60)]
    threads = [threading.Thread(target=fill, args=(one, 60)) for one in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    report = verify(path)
    assert (report.ok, report.lines, report.last_seq) == (True, 180, 180)


def test_writers_that_take_turns_in_files_of_one_line(path: Path) -> None:
    """Inodes are used again at once; a writer that has waited does not take another file for its own."""
    one, two = (Journal(path, most_bytes=1, most_files=2) for _ in range(2))
    dice = random.Random(3)
    for _ in range(200):
        dice.choice([one, two]).append({"a": 1}, durable=False)
        assert verify(path).ok
    assert verify(path).last_seq == 200


def test_a_writer_that_stands_still_stops_nobody_for_long(path: Path) -> None:
    """Whoever waits too long is told so, by an `OSError`."""
    one, other = Journal(path), Journal(path, patience=0.0)
    with one._place.entered(), pytest.raises(TimeoutError):
        other.append({}, durable=False)
    assert other.append({}, durable=False) == 1


def test_a_signal_handler_in_the_middle_of_a_line(journal: Journal, path: Path) -> None:
    """It cannot wait for its own thread; it is told so at once."""
    with journal._place.entered(), pytest.raises(OSError, match="middle") as told:
        journal.append({}, durable=False)
    assert told.value.errno == errno.EDEADLK
    assert journal.append({}, durable=False) == 1


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform != "linux", reason="forks, on Linux")
def test_children_write_for_themselves(path: Path) -> None:
    """Also one that was forked while another thread of the parent was in the middle of a line."""
    script = f"""
    import os, threading, warnings
    from safehold._runtime.journal import Journal, verify
    warnings.simplefilter("ignore", DeprecationWarning)
    journal = Journal({str(path)!r}, patience=20)
    journal.append({{"who": "parent"}}, durable=True)
    inside, enough = threading.Event(), threading.Event()
    def write():
        with journal._place.entered():
            inside.set()
            enough.wait(20)
    writer = threading.Thread(target=write)
    writer.start()
    assert inside.wait(20)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            journal.append({{"who": "child"}}, durable=True)
            code = 0
        finally:
            os._exit(code)
    enough.set()
    writer.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    journal.append({{"who": "parent"}}, durable=True)
    report = verify({str(path)!r})
    print(report.ok, report.lines)
    """
    assert python(script) == "True 3\n"
    first, second, third = lines(path)
    assert first["pid"] == third["pid"] != second["pid"]


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform != "linux", reason="forks, on Linux")
def test_a_child_does_not_keep_a_dead_parents_lock(path: Path) -> None:
    """The parent is killed in the middle of a line; its child lives on, and others can write."""
    script = f"""
    import os, sys, threading
    from safehold._runtime.journal import Journal
    journal = Journal({str(path)!r})
    ready, tell = os.pipe()
    until, end = os.pipe()
    if os.fork() == 0:
        with journal._place.entered():
            pid = os.fork()
            if pid == 0:
                os.close(end)
                os.write(tell, b"x")
                os.read(until, 1)
                os._exit(0)
            os.kill(os.getpid(), 9)
    os.wait()
    os.read(ready, 1)
    print(Journal({str(path)!r}, patience=2).append({{}}, durable=True))
    """
    assert python(script) == "1\n"


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform != "linux", reason="forks, on Linux")
def test_a_child_that_python_did_not_prepare_does_not_keep_the_lock(path: Path) -> None:
    """Native code may fork as well; what such a child inherits is given back for it by the parent."""
    script = f"""
    import os
    from safehold._runtime import private
    from safehold._runtime.journal import Journal
    journal = Journal({str(path)!r})
    private._places.clear()
    until, end = os.pipe()
    with journal._place.entered():
        child = os.fork()
        if child == 0:
            os.close(end)
            os.read(until, 1)
            os._exit(0)
    print(Journal({str(path)!r}, patience=2).append({{}}, durable=True))
    os.close(end)
    os.waitpid(child, 0)
    """
    assert python(script) == "1\n"


# What cannot be written


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, "full")

    return fail


@pytest.mark.parametrize("call", ["write", "fsync", "open"])
def test_what_could_not_be_written_leaves_no_trace(
    journal: Journal, path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a hole: the next line has its number."""
    whole = small(journal, path)
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(os, call, failing(errno.EROFS))
        journal.append(INTENT, durable=True)
    assert path.read_bytes() == whole
    assert journal.append(INTENT, durable=True) == 4
    assert verify(path).ok


@pytest.mark.parametrize("repaired", [True, False])
def test_a_disk_that_fills_in_the_middle_of_a_line(
    journal: Journal, path: Path, repaired: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half that was written is taken back; when even that fails, it is a torn tail."""
    whole, real, left = small(journal, path), os.write, [3]

    def short(file: int, raw: Any) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "full")
        left[0] -= 1
        return real(file, raw[:7])

    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(os, "write", short)
        if not repaired:
            patched.setattr(os, "ftruncate", failing(errno.EIO))
        journal.append(INTENT, durable=True)
    assert path.read_bytes()[len(whole) :] == (b"" if repaired else path.read_bytes()[-21:])
    assert verify(path).torn_tail == (0 if repaired else 21)
    assert journal.append(INTENT, durable=True) == 4
    report = verify(path)
    assert (report.ok, report.torn_tail, report.lines) == (True, 0, 4)


def test_short_writes_are_continued(journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system may take a line in pieces."""
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, raw: real(file, raw[:5]))
        small(journal, path)
    assert verify(path).ok


def test_a_disk_that_is_really_full(path: Path) -> None:
    """A limit on the size of files: the line is refused, the file is whole, and with more room it goes on."""
    script = f"""
    import resource
    from safehold._runtime.journal import Journal, verify
    journal = Journal({str(path)!r})
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    written = 0
    try:
        for written in range(20):
            journal.append({{"a": "b" * 50}}, durable=True)
    except OSError as error:
        print(error.errno == 27, 0 < written < 10)
    report = verify({str(path)!r})
    print(report.ok, report.torn_tail, report.lines == written)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    print(journal.append({{}}, durable=True) == written + 1, verify({str(path)!r}).ok)
    """
    assert python(script) == "True True\nTrue 0 True\nTrue True\n"


def test_interrupted_in_the_middle_of_a_line(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between two halves takes the first one back."""
    whole = small(journal, path)

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "fsync", interrupted)
        journal.append(INTENT, durable=True)
    assert path.read_bytes() == whole
    assert journal.append(INTENT, durable=True) == 4


def test_durable_is_told_to_the_disk_before_it_returns(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file each time; the directory when the file in it is new. A line that need not last costs neither."""
    journal.prepare()
    synced: list[str] = []
    real = os.fsync

    def fsync(file: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    journal.append({}, durable=False)
    assert synced == []
    journal.append({}, durable=True)
    assert synced == ["ledger.jsonl", "state"]
    journal.append({}, durable=True)
    assert synced[2:] == ["ledger.jsonl"]
    del synced[:]
    Journal(path, most_bytes=10).append({}, durable=True)  # rotates
    assert synced == ["ledger.jsonl", "state", "ledger.jsonl", "state"]


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    """Below a file there is no directory. Nothing is touched before the first line."""
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "state" / "ledger.jsonl")
    for act in (journal.prepare, lambda: journal.append({}, durable=True), journal.reconcile):
        with pytest.raises(OSError, match="file"):
            act()
    assert journal.open_intents() == ()


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that changes its directory keeps its journal."""
    monkeypatch.chdir(tmp_path)
    journal = Journal("state/ledger.jsonl")
    monkeypatch.chdir("/")
    journal.append({}, durable=True)
    assert journal.path == tmp_path / "state" / "ledger.jsonl"
    assert journal.path.exists()


# What others could write


def everybody(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)


def group(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o770)


def directory_link(path: Path) -> None:
    (path.parent.parent / "real").mkdir(mode=0o700)
    path.parent.symlink_to("real")


def dangling_link(path: Path) -> None:
    path.parent.symlink_to("nowhere")


def file_link(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    (path.parent / "real").touch(mode=0o600)
    path.symlink_to("real")


def lock_link(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.with_name("ledger.jsonl.lock").symlink_to("/etc/passwd")


def open_file(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch()
    path.chmod(0o666)


def fifo(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    os.mkfifo(path, 0o600)


PLACES = [
    (everybody, "chmod go-w"),
    (group, "chmod go-w"),
    (directory_link, "symbolic link"),
    (dangling_link, "symbolic link"),
    (file_link, "symbolic link"),
    (lock_link, "symbolic link"),
    (open_file, "chmod go-w"),
    (fifo, "plain file"),
]


@pytest.mark.parametrize(("make", "told"), PLACES, ids=lambda one: getattr(one, "__name__", ""))
def test_a_place_where_others_could_write(path: Path, make: Callable[[Path], None], told: str) -> None:
    """Is refused in words that say what to do, before a byte is written."""
    make(path)
    for act in (lambda: Journal(path).append({}, durable=True), Journal(path).prepare):
        with pytest.raises(ConfigurationError, match=told):
            act()


def test_a_place_of_somebody_else(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is refused, though the mode is right."""
    journal.append({}, durable=True)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfigurationError, match="must belong to the user"):
        journal.append({}, durable=True)


@pytest.mark.parametrize(
    "settings",
    [{"most_bytes": 0}, {"most_files": 1}, {"most_files": 101}, {"patience": -1}, {"patience": float("nan")}],
)
def test_settings(path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Journal(path, **settings)


@pytest.mark.parametrize("bad", [None, 7, "", "/", "."])
def test_paths(bad: Any) -> None:
    with pytest.raises(ConfigurationError):
        Journal(bad)


# Acts of which nobody has told what became

DIES = """
import os, signal, sys
from safehold._runtime.journal import Journal
journal = Journal(sys.argv[1], most_bytes=400, most_files=50)
for number in range(5):
    intent = {"operation": "reap", "outcome": "intent", "subject": f"s{number}", "at": 1.0}
    seq = journal.append(intent, durable=True)
    if number % 2:
        journal.append({"operation": "reap", "outcome": "done", "intent": seq}, durable=False)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_t117_what_a_dead_process_left_open_is_unknown(path: Path) -> None:
    """Once, by whoever comes next; and never told as done, nor as not done."""
    assert subprocess.run([sys.executable, "-c", DIES, str(path)], check=False).returncode == -signal.SIGKILL
    journal = Journal(path, most_bytes=400, most_files=50, wall=lambda: 77.0)
    mine = journal.append(INTENT, durable=True)
    assert [one["subject"] for one in journal.open_intents()] == ["s0", "s2", "s4"]
    assert [one["seq"] for one in verify(path).open_intents][-1] == mine
    assert journal.reconcile() == 3
    assert journal.reconcile() == 0
    new = [line.record for line in journals.read(path) if line.record and line.record["seq"] > mine]
    assert [(one["subject"], one["outcome"], one["at"]) for one in new] == [
        ("s0", "unknown", 77.0),
        ("s2", "unknown", 77.0),
        ("s4", "unknown", 77.0),
    ]
    assert {one["why"] for one in new} == {"the process ended before it told"}
    assert [one["seq"] for one in verify(path).open_intents] == [mine]
    assert verify(path).ok


def test_only_one_reconciles(journal: Journal, path: Path) -> None:
    """Workers that boot together do not tell the same thing twice."""
    subprocess.run([sys.executable, "-c", DIES, str(path)], check=False)
    with Journal(path)._reconciling.entered():
        assert journal.reconcile() == 0
    assert journal.reconcile() == 3


def test_what_is_reconciled_lasts(journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on the disk when this returns; one fsync is enough for all."""
    fill(journal, 1)
    for _ in range(3):
        journal.append(INTENT, durable=True)
    synced: list[int] = []
    monkeypatch.setattr(journals, "is_gone", lambda pid, boot: True)
    monkeypatch.setattr(os, "fsync", synced.append)
    assert journal.reconcile() == 3
    assert len(synced) == 1


def test_an_intent_as_long_as_a_line_can_be(journal: Journal, path: Path, monkeypatch: Any) -> None:
    """Gets a short outcome, instead of being in the way for ever."""
    empty = Journal(path.with_name("other.jsonl"))
    empty.append({"outcome": "intent", "subject": ""}, durable=False)
    room = chain.MOST_LINE - empty.path.stat().st_size
    journal.append({"outcome": "intent", "subject": "s" * room}, durable=True)
    monkeypatch.setattr(journals, "is_gone", lambda pid, boot: True)
    assert journal.reconcile() == 1
    assert verify(path).open_intents == ()


def test_another_life_with_the_same_number() -> None:
    """A process number that is used again does not make the dead alive; what cannot be told is not gone."""
    me, boot = os.getpid(), incarnation(os.getpid())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(30)
    assert [is_gone(me, boot), is_gone(me, "another-1"), is_gone(me, "")] == [False, True, False]
    assert is_gone(gone.pid, boot)
    assert not any(is_gone(bad, boot) for bad in (None, 0, -1, 2**40, True, "1"))


def test_a_dead_child_that_nobody_fetched_is_gone() -> None:
    """A zombie writes nothing any more."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    boot = incarnation(child.pid)
    assert boot
    assert not is_gone(child.pid, boot)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(child.pid, boot)
    child.communicate(timeout=30)


def test_where_the_system_tells_no_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc only a number that nobody has is gone."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(30)
    monkeypatch.setattr("safehold._runtime.incarnation._BOOT_ID", Path("/nowhere"))
    assert incarnation(os.getpid()) == ""
    assert [is_gone(os.getpid(), ""), is_gone(1, ""), is_gone(gone.pid, "")] == [False, False, True]


def test_memory_for_open_intents_is_bounded(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest are kept."""
    monkeypatch.setattr(chain, "MOST_OPEN", 5)
    for _ in range(9):
        journal.append(INTENT, durable=False)
    assert [one["seq"] for one in verify(path).open_intents] == [5, 6, 7, 8, 9]


def test_reading_beside_a_writer_that_rotates(path: Path) -> None:
    """A reading sees the files of one instant."""
    writer = start(path, WRITER.replace("20_000", "2_000").replace("most_files=50", "most_files=4"))
    told(writer, 1)
    try:
        for _ in range(60):
            assert verify(path).ok
            told(writer, 3)
    finally:
        writer.kill()
        writer.communicate(timeout=30)


def test_a_rotation_in_the_middle_of_a_reading(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was opened before it and what is opened after it do not fit, so all is opened again."""
    journal = Journal(path, most_bytes=500, most_files=9)
    fill(journal, 5)
    real, opened = chain._open, list[Path]()

    def opening(one: Path) -> Any:
        opened.append(one)
        if len(opened) == 2:
            fill(journal, 3)
        return real(one)

    monkeypatch.setattr(chain, "_open", opening)
    report = verify(path)
    assert (report.ok, report.lines) == (True, 8), report.first_fault


def test_nothing_stays_open(journal: Journal, path: Path) -> None:
    """Whatever happens, no descriptor is left."""
    before = sorted(os.listdir("/proc/self/fd"))
    small(journal, path)
    verify(path)
    journal.reconcile()
    path.write_bytes(path.read_bytes()[:-3])
    fill(journal, 3)
    path.parent.chmod(0o777)
    with pytest.raises(ConfigurationError):
        fill(journal, 1)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert private._places
