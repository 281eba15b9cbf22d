"""Whether a path is there, where "no such file" is told apart from "no such storage"."""

from __future__ import annotations

import os
from pathlib import Path

from .._core.evidence import ABSENT, PRESENT, Presence
from .._core.unproven import Unproven


def path(
    path: str | os.PathLike[str],
    *,
    follow_symlinks: bool = False,
    canary: str | os.PathLike[str] | None = None,
    mount: str | os.PathLike[str] | None = None,
) -> Presence:
    """Say whether there is something at an absolute path.

    Absent is only what the system answers with ENOENT while the directory that would hold it is there. Every
    other error is raised: `os.path.exists` says `False` for a time-out and for a lack of rights. ENOTDIR is
    raised as well: a file where a directory should be is a surprise, not an absence.

    A storage that is not mounted answers ENOENT for everything. Name a `canary`, a file that lies on the same
    storage and is never removed, or the `mount` point: where it is missing nothing is proven. A link whose
    target is missing is there; with `follow_symlinks` it is unproven, since the target may lie elsewhere.
    """
    asked = _absolute(path)
    before = None if canary is None else _device(_absolute(canary), "the canary")
    if mount is not None:
        _check_mount(asked, _absolute(mount))
    try:
        if follow_symlinks:
            asked.stat()
        else:
            asked.lstat()
    except FileNotFoundError:
        if follow_symlinks and asked.is_symlink():
            msg = "it is a link, and what it points to is missing"
            raise Unproven(msg) from None
        holder = _device(asked.parent, "the directory that would hold it")
        if canary is not None and not before == _device(_absolute(canary), "the canary") == holder:
            msg = "the canary lies on another storage"
            raise Unproven(msg) from None
        if mount is not None:
            _check_mount(asked, _absolute(mount))
        return ABSENT
    return PRESENT


def _absolute(path: str | os.PathLike[str]) -> Path:
    """Refuse what means another file after `chdir`; the empty path would be "no such file", always."""
    given = Path(path)
    if not os.fspath(path) or not given.is_absolute():
        msg = "only an absolute path names one file"
        raise Unproven(msg)
    return given


def _device(path: Path, what: str) -> int:
    try:
        return path.stat().st_dev
    except FileNotFoundError:
        msg = f"{what} is missing: the storage may be"
        raise Unproven(msg, miss=True) from None


def _check_mount(asked: Path, mount: Path) -> None:
    if not os.path.ismount(mount):
        msg = "nothing is mounted there"
        raise Unproven(msg, miss=True)
    if _device(asked.parent, "the directory that would hold it") != _device(mount, "the mount point"):
        msg = "it does not lie on what is mounted there"
        raise Unproven(msg)
