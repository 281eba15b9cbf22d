"""Whether a process runs: its number and its start, on this boot, in this namespace."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from safehold.witnesses import process, started

from .support import ABSENT, PRESENT, UNKNOWN, Service, unproven

SLEEPS = "import sys, time\nprint(flush=True)\ntime.sleep(600)\n"
ODD_NAME = "open('/proc/self/comm', 'w').write('a) Z 1 (b')\n" + SLEEPS
LEADER_ENDS = """
import ctypes, sys, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print(flush=True)
ctypes.CDLL(None).syscall(int(sys.argv[1]), 0)  # only this thread ends
"""
EXIT = {"x86_64": 60, "aarch64": 93}.get(platform.machine())

Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    children: list[subprocess.Popen[bytes]] = []

    def spawn(source: str = SLEEPS, *args: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen([sys.executable, "-c", source, *args], stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        child.stdout.readline()
        return child

    yield spawn
    for child in children:
        child.kill()
        child.wait(10)
        assert child.stdout is not None
        child.stdout.close()


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait(10)


def test_a_running_process_is_present_and_an_ended_one_is_not(service: Service, spawn: Spawn) -> None:
    """As a witness, used whole; its subject is the number."""
    there = service.health.witness("source", name="worker_runs")(process)
    child = spawn()
    mark = started(child.pid)
    seen = there(child.pid, mark)
    assert (seen.presence, seen.subject) == (PRESENT, str(child.pid))
    end(child)
    assert there(child.pid, mark).presence is ABSENT


def test_t78_a_number_used_anew_is_another_process(spawn: Spawn) -> None:
    """Same number, other start time: the one that was meant is gone, and the innocent one is left alone."""
    innocent, meant = spawn(), spawn()
    boot, namespace, ticks = started(innocent.pid).split("/")
    reused = f"{boot}/{namespace}/{int(ticks) - 1}"

    def kill(pid: int, mark: str) -> None:
        if process(pid, mark) is PRESENT:
            os.kill(pid, signal.SIGKILL)

    assert process(innocent.pid, reused) is ABSENT
    kill(innocent.pid, reused)
    assert innocent.poll() is None
    kill(meant.pid, started(meant.pid))
    assert meant.wait(10) == -signal.SIGKILL


def test_the_mark_stays(spawn: Spawn) -> None:
    """It is text that can be stored, and the same whenever it is taken."""
    child = spawn()
    assert started(child.pid) == started(child.pid)
    assert started(child.pid).isprintable()
    child.send_signal(signal.SIGSTOP)
    assert process(child.pid, started(child.pid)) is PRESENT, "stopped is not ended"


def test_a_zombie_has_ended(spawn: Spawn) -> None:
    """Nobody has waited for it, so its number is still taken."""
    child = spawn()
    mark = started(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child.pid}/stat").exists()
    assert process(child.pid, mark) is ABSENT


@pytest.mark.skipif(EXIT is None, reason="the number of the system call is not known here")
def test_a_process_whose_first_thread_has_ended_runs(spawn: Spawn) -> None:
    """It looks like a zombie, and works."""
    child = spawn(LEADER_ENDS, str(EXIT))
    mark = started(child.pid)
    stat = Path(f"/proc/{child.pid}/stat")
    while stat.read_bytes().rpartition(b")")[2].split()[0] != b"Z":
        os.sched_yield()
    assert process(child.pid, mark) is PRESENT
    end(child)
    assert process(child.pid, mark) is ABSENT


def test_a_name_with_brackets_and_spaces(spawn: Spawn) -> None:
    """It is a field of the line that is read, and anybody may choose it."""
    child = spawn(ODD_NAME)
    assert b"a) Z 1 (b" in Path(f"/proc/{child.pid}/stat").read_bytes()
    mark = started(child.pid)
    assert process(child.pid, mark) is PRESENT
    end(child)
    assert process(child.pid, mark) is ABSENT


def test_a_mark_of_another_boot(spawn: Spawn) -> None:
    """It may be another machine's: unproven, unless somebody says that all are this one's."""
    child = spawn()
    _, namespace, ticks = started(child.pid).split("/")
    other = f"0000-00/{namespace}/{ticks}"
    assert "machine" in unproven(process, child.pid, other)
    assert process(child.pid, other, same_machine=True) is ABSENT


def test_a_mark_of_another_namespace(spawn: Spawn) -> None:
    """A container's numbers mean something in that container."""
    child = spawn()
    boot, _, ticks = started(child.pid).split("/")
    for same_machine in (False, True):
        assert "namespace" in unproven(process, child.pid, f"{boot}/1/{ticks}", same_machine=same_machine)


@pytest.mark.parametrize("mark", ["", "12345", "a/b", "a/b/", "a/b/-1", "a/b/c", "//1", None, 12345])
def test_a_start_that_was_not_recorded(spawn: Spawn, mark: Any) -> None:
    """Nothing is known of it: its number alone names nobody."""
    assert "recorded" in unproven(process, spawn().pid, mark)


@pytest.mark.parametrize("pid", [0, -1, True, "1", None, 1.0])
def test_what_is_no_process_id(pid: Any) -> None:
    """Zero and negative numbers mean groups."""
    mark = started(os.getpid())
    assert "process id" in unproven(process, pid, mark)


def test_the_mark_of_nobody(spawn: Spawn) -> None:
    """There is none."""
    child = spawn()
    end(child)
    with pytest.raises(ProcessLookupError):
        started(child.pid)


def test_a_proc_that_hides_others(spawn: Spawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounted with `hidepid`, `/proc` answers ENOENT for what runs: the kernel is asked as well."""
    real = Path.read_bytes
    living, ended = spawn(), spawn()
    marks = {child.pid: started(child.pid) for child in (living, ended)}
    end(ended)

    def read_bytes(self: Path) -> bytes:
        if self.name == "stat":
            raise FileNotFoundError
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert "hides" in unproven(process, living.pid, marks[living.pid])
    assert process(ended.pid, marks[ended.pid]) is ABSENT


@pytest.mark.parametrize("error", [PermissionError("no"), OSError(5, "i/o")])
def test_an_unreadable_proc_is_raised(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """And so it is unknown."""
    mark = started(os.getpid())

    def read_bytes(self: Path) -> bytes:
        raise error

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(OSError):
        process(os.getpid(), mark)
    there = service.health.witness("source", name="runs")(process)
    assert there(os.getpid(), mark).presence is UNKNOWN


def test_a_proc_of_another_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `/proc` mounted from the host shows other numbers than ours."""
    mark = started(os.getpid())
    assert process(os.getpid(), mark) is PRESENT
    monkeypatch.setattr(Path, "readlink", lambda self: Path("1000000"))
    assert "namespace" in unproven(process, os.getpid(), mark)


def test_other_systems_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than guessed at."""
    mark = started(os.getpid())
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "darwin" in unproven(process, os.getpid(), mark)
    assert "darwin" in unproven(started, os.getpid())


def test_a_number_that_has_gone_to_a_thread() -> None:
    """`/proc` answers for threads, too; its start is another one."""
    asked = threading.Event()
    thread = threading.Thread(target=asked.wait, args=(20,))
    thread.start()
    boot, namespace, ticks = started(os.getpid()).split("/")
    try:
        assert thread.native_id is not None
        assert Path(f"/proc/{thread.native_id}/stat").exists()
        assert process(thread.native_id, f"{boot}/{namespace}/{int(ticks) - 1}") is ABSENT
    finally:
        asked.set()
        thread.join(20)
