"""A document that survives restarts: whole, or known to be lost."""

from __future__ import annotations

import errno
import json
import os
import random
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safehold import ConfigurationError
from safehold._runtime import state as states
from safehold._runtime.canonical import canonical, checksum
from safehold._runtime.state import LOST, MOST_BYTES, StateFile

from .support import python
from .test_journal import PLACES, failing

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="flock")


class Wall:
    """Unix time that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.jsonl"  # the name that the bad places have


@pytest.fixture
def state(path: Path, wall: Wall) -> StateFile:
    return StateFile(path, wall=wall)


def to(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def test_a_value_survives(state: StateFile, path: Path, wall: Wall) -> None:
    """The next process reads what the last one wrote; nobody else does."""
    value = {"a": [1, 2.5, None, True], "ö": {"\ud800": "\x1b"}}
    assert state.update(to(value)) == value
    other = StateFile(path, wall=wall)
    assert other.read() == value
    assert other.why_lost == ""
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert sorted(one.name for one in path.parent.iterdir()) == ["ledger.jsonl", "ledger.jsonl.lock"]


def test_a_change_sees_what_is_there(state: StateFile, path: Path, wall: Wall) -> None:
    """Read, changed and written in one step."""
    seen: list[Any] = []
    for _ in range(3):
        StateFile(path, wall=wall).update(lambda old: seen.append(old) or (1 if old is LOST else old + 1))
    assert seen == [LOST, 1, 2]
    assert state.read() == 3


def test_nothing_there_is_lost_and_not_nothing(state: StateFile, path: Path) -> None:
    """Reading creates no file; `None` is a value like others."""
    assert state.read() is LOST
    assert "No such file" in state.why_lost
    assert not path.parent.exists()
    state.update(to(None))
    assert state.read() is None


def document(value: Any, **other: Any) -> bytes:
    body = {**json.loads(states._document(value, 1000.0)), **other}
    del body["sum"]
    return canonical({**body, "sum": checksum(canonical(body))}).encode()


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "not JSON"),
        (b"null", "another format"),
        (b"[]", "another format"),
        (b"{}", "another format"),
        (b"[" * 200_000, "not JSON"),
        (b"[" * 200_000 + b"]" * 200_000, "not JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not JSON"),
        (b"1" * 100_000, "not JSON"),
        (b"NaN", "not JSON"),
        (b"\x80\x04.", "not JSON"),
        (b'"' + b"x" * MOST_BYTES + b'"', "another format"),
        (b"\0" * 4096, "not JSON"),
        (document(1, version=2), "another format"),
        (document(1, format="other"), "another format"),
        (document(1, more=1), "another format"),
        (document(1, host="other"), "another machine"),
        (document(1, at=1060.1), "future"),
        (document(1, at="now"), "future"),
        (document(1, at=None), "future"),
        (document(1, at=True), "future"),
        (document(1).replace(b'"value":1', b'"value":2'), "changed"),
        (document(1) + b"\n", "not JSON"),
    ],
    ids=lambda one: repr(one)[:24],
)
def test_t48_what_cannot_be_believed_is_lost(state: StateFile, path: Path, raw: bytes, why: str) -> None:
    """And says why; the next change begins from `LOST` and makes it whole."""
    path.parent.mkdir(mode=0o700)
    path.write_bytes(raw)
    assert state.read() is LOST
    assert why in state.why_lost
    seen: list[Any] = []
    assert state.update(lambda old: seen.append(old) or "cautious") == "cautious"
    assert seen == [LOST]
    assert (state.read(), state.why_lost) == ("cautious", "")


def test_the_present_may_be_a_little_early(state: StateFile, wall: Wall) -> None:
    """Clocks are set back by a second now and then: a minute is forgiven, and no more."""
    state.update(to(1))
    for now, value in ((1000.0, 1), (940.0, 1), (939.9, LOST), (1e9, 1)):
        wall.now = now
        assert state.read() == value


def test_every_byte_that_changes_or_is_missing_is_found(state: StateFile, path: Path) -> None:
    """By one bit or by another, anywhere; and cut anywhere."""
    state.update(to({"spent": [1, 2, 3]}))
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in (0, 5):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            assert state.read() is LOST, (at, bit)
        path.write_bytes(whole[:at])
        assert state.read() is LOST, at
    path.write_bytes(whole)
    assert state.read() == {"spent": [1, 2, 3]}


@pytest.mark.parametrize("value", [float("nan"), {1: 2, "1": 3}, {3}, b"", "x" * MOST_BYTES, LOST])
def test_what_is_no_state_is_refused(state: StateFile, value: Any) -> None:
    """The old value stays."""
    state.update(to("old"))
    with pytest.raises(ConfigurationError, match="state must be"):
        state.update(to(value))
    assert state.read() == "old"


def test_what_a_change_raises_passes_through(state: StateFile) -> None:
    """The old value stays, and the lock is free again."""
    state.update(to("old"))

    def broken(_: Any) -> Any:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        state.update(broken)
    assert state.update(lambda old: old + "er") == "older"


def test_a_change_that_comes_back(state: StateFile) -> None:
    """It is told so at once, instead of waiting for itself."""
    with pytest.raises(OSError, match="middle"):
        state.update(lambda _: state.update(to(1)))
    assert state.update(to(2)) == 2


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_t48_what_cannot_be_written_is_an_error(
    state: StateFile, path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old value stays, nothing else is left, and it can still be read."""
    state.update(to("old"))
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        patched.setattr(os, call, failing(errno.EROFS))
        state.update(to("new"))
    assert state.read() == "old"
    assert not path.with_name("ledger.jsonl.new").exists()
    assert state.update(to("new")) == "new"


def test_a_place_that_cannot_be(tmp_path: Path) -> None:
    """Below a file there is no directory: read as lost, and not to be written."""
    (tmp_path / "file").write_text("")
    state = StateFile(tmp_path / "file" / "state.json")
    assert state.read() is LOST
    with pytest.raises(OSError, match="file"):
        state.update(to(1))


@pytest.mark.parametrize(("make", "told"), PLACES, ids=lambda one: getattr(one, "__name__", ""))
def test_a_place_where_others_could_write(
    state: StateFile, path: Path, make: Callable[[Path], None], told: str
) -> None:
    """What is there is not believed, and nothing is put there."""
    make(path)
    assert state.read() is LOST
    with pytest.raises(ConfigurationError, match=told):
        state.update(to(1))


def test_it_is_on_the_disk_before_it_has_its_name(state: StateFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """File, name, directory, in this order: power loss leaves the old one or the new one."""
    state.update(to(1))
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(file: int) -> None:
        steps.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{file}')).name}")
        fsync(file)

    def replaced(old: str, new: str, **more: Any) -> None:
        steps.append(f"{old} -> {new}")
        replace(old, new, **more)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    state.update(to(2))
    assert steps == ["fsync ledger.jsonl.new", "ledger.jsonl.new -> ledger.jsonl", "fsync state"]


ADDS = """
import sys
from safehold._runtime.state import LOST, StateFile
state = StateFile(sys.argv[1], patience=60)
sys.stdin.readline()
for _ in range(60):
    state.update(lambda old: 1 if old is LOST else old + 1)
print("done")
"""


def test_processes_lose_no_update(path: Path) -> None:
    """Each of them sees what the others did."""
    many = [
        subprocess.Popen(
            [sys.executable, "-c", ADDS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for one in many:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    assert [one.communicate(timeout=90)[0] for one in many] == ["done\n"] * 3
    assert StateFile(path).read() == 180


def test_threads_lose_no_update(path: Path) -> None:
    """With one object, or one each; who reads meanwhile sees a whole value."""
    one = StateFile(path, patience=60)
    one.update(to(0))
    seen: list[Any] = []

    def add(state: StateFile) -> None:
        for _ in range(40):
            state.update(lambda old: old + 1)
            seen.append(StateFile(path).read())

    threads = [
        threading.Thread(target=add, args=(state,)) for state in (one, one, StateFile(path, patience=60))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert one.read() == 120
    assert LOST not in seen


COUNTS = """
import sys
from safehold._runtime.state import LOST, StateFile
state = StateFile(sys.argv[1])
while True:
    print(state.update(lambda old: {"n": 1 if old is LOST else old["n"] + 1, "pad": "x" * 9000})["n"], flush=True)
"""


def test_killed_writers_leave_the_old_value_or_the_new(path: Path) -> None:
    """Never a part of one; what was told is there."""
    dice = random.Random(5)
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", COUNTS, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        last = 0
        for _ in range(dice.randint(1, 40)):
            assert select.select([writer.stdout], [], [], 30)[0]
            last = int(writer.stdout.readline())
        writer.kill()
        writer.communicate(timeout=30)
        value = StateFile(path).read()
        assert value is not LOST
        assert value["n"] >= last
    path.with_name("ledger.jsonl.new").write_text("half of")
    assert StateFile(path).update(lambda old: old["n"] + 1) == value["n"] + 1


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform != "linux", reason="forks, on Linux")
def test_children_write_for_themselves(path: Path) -> None:
    """Also when a thread of the parent is in the middle of a change."""
    script = f"""
    import os, threading, warnings
    from safehold._runtime.state import LOST, StateFile
    warnings.simplefilter("ignore", DeprecationWarning)
    state = StateFile({str(path)!r}, patience=20)
    inside, enough = threading.Event(), threading.Event()
    def change(old):
        inside.set()
        enough.wait(20)
        return ["parent"]
    writer = threading.Thread(target=state.update, args=(change,))
    writer.start()
    assert inside.wait(20)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            state.update(lambda old: [*old, "child"])
            code = 0
        finally:
            os._exit(code)
    enough.set()
    writer.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print(state.read())
    """
    assert python(script) == "['parent', 'child']\n"


def test_machines_are_told_apart(monkeypatch: pytest.MonkeyPatch, state: StateFile, tmp_path: Path) -> None:
    """By their id, which is not written; those without one are all the same."""
    state.update(to(1))
    monkeypatch.setattr(states, "_MACHINE", tmp_path / "id")
    (tmp_path / "id").write_text("0123456789abcdef0123456789abcdef\n")
    assert state.read() is LOST
    state.update(to(2))
    assert "0123456789abcdef" not in state.path.read_text()
    assert state.read() == 2
    (tmp_path / "id").unlink()
    assert state.read() is LOST
    state.update(to(3))
    assert state.read() == 3
