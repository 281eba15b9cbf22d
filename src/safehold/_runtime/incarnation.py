"""Which process this is, in a word that no later process with the same number will have."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def incarnation(pid: int) -> str | None:
    """Tell the life of a process: which start of the machine, and when in it. `None`: there is none.

    Where the system does not tell (no `/proc`), all lives look the same: an empty text.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        boot = _BOOT_ID.read_text("ascii")[:8]
    except (FileNotFoundError, ProcessLookupError):
        return None if _BOOT_ID.exists() else ""
    except (OSError, ValueError):
        return ""
    if len(fields) < 20 or fields[0] in {b"Z", b"X"}:  # dead, and not yet fetched by its parent
        return None
    return f"{boot}-{int(fields[19])}"


def is_gone(pid: object, boot: object) -> bool:
    """Whether the process that wrote these two has ended. What cannot be told is no."""
    if type(pid) is not int or not 0 < pid < 2**31:
        return False
    now = incarnation(pid)
    if now is None:
        return True
    if now and boot:
        return now != boot
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
