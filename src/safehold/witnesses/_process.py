"""Whether a process still runs: this very one, and not another that has got its number.

`/proc/<pid>/stat` gives the start time in ticks since boot, so it means something together with the boot
only; and a number means something in its own pid namespace only. All three make a process's mark.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

from .._core.evidence import ABSENT, PRESENT, Presence
from .._core.unproven import Unproven


class _Stat(NamedTuple):
    state: str
    threads: int
    started: int


def started(pid: int) -> str:
    """Give the mark of a process that runs here: short text to store beside its number, for `process`.

    Take it when you start the process, while its number cannot belong to another. Raises
    `ProcessLookupError` when there is none, and `Unproven` where there is no `/proc`.
    """
    here = _here()
    stat = _stat(_checked(pid))
    if stat is None:
        msg = f"no process {pid}"
        raise ProcessLookupError(msg)
    return f"{here}/{stat.started}"


def process(pid: int, started: str, *, same_machine: bool = False) -> Presence:
    """Say whether the process with this number and this mark runs. `started` gives the mark.

    The same number with another start time is another process: yours is gone. So is one that has ended and
    was not waited for yet (a zombie). A mark from another boot is unproven, since another machine's looks the
    same; say `same_machine=True` where all of them are started on this one, and a reboot has ended them.
    A mark from another pid namespace (container) is always unproven. Linux only.

    It speaks of this instant. Between the answer and a signal the number may go to another process: signal
    through `os.pidfd_open`.
    """
    here, mark = _here(), _parsed(started)
    if mark.boot != here.boot:
        if same_machine:
            return ABSENT
        msg = "it was started before the last boot, or on another machine"
        raise Unproven(msg)
    if mark.namespace != here.namespace:
        msg = "it was started in another pid namespace, which cannot be seen from here"
        raise Unproven(msg)
    stat = _stat(_checked(pid))
    if stat is None or stat.started != mark.started:
        return ABSENT
    # The first thread may have ended while others go on: then it looks like a zombie, and is none.
    ended = stat.state in {"Z", "X", "x"} and stat.threads <= 1
    return ABSENT if ended else PRESENT


class _Here(NamedTuple):
    boot: str
    namespace: str

    def __str__(self) -> str:
        return f"{self.boot}/{self.namespace}"


class _Mark(NamedTuple):
    boot: str
    namespace: str
    started: int


def _here() -> _Here:
    if sys.platform != "linux":
        msg = f"processes are seen through /proc, which {sys.platform} does not have"
        raise Unproven(msg)
    proc = Path("/proc")
    if (proc / "self").readlink() != Path(str(os.getpid())):
        msg = "/proc shows another pid namespace than the one this process is in"
        raise Unproven(msg)
    boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
    return _Here(boot, str((proc / "self/ns/pid").stat().st_ino))


def _parsed(mark: object) -> _Mark:
    parts = mark.split("/") if isinstance(mark, str) else []
    if len(parts) != 3 or not all(parts) or not parts[2].isdecimal():
        msg = "its start was not recorded: store what started(pid) gives"
        raise Unproven(msg)
    return _Mark(parts[0], parts[1], int(parts[2]))


def _checked(pid: object) -> int:
    """Refuse the numbers that mean whole groups."""
    if not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0:
        msg = f"{pid!r} is no process id"
        raise Unproven(msg)
    return pid


def _stat(pid: int) -> _Stat | None:
    """Read what there is on a process; `None` when there is none."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        _check_gone(pid)
        return None
    # The second field is a name in brackets, which may hold brackets and spaces: count from the last one.
    fields = raw.rpartition(b")")[2].split()
    return _Stat(fields[0].decode(), int(fields[17]), int(fields[19]))


def _check_gone(pid: int) -> None:
    """Ask the kernel itself: `/proc` may be mounted so that it hides the processes of others."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return
    except PermissionError:
        pass
    msg = "there is a process of this number, and /proc hides it"
    raise Unproven(msg)
