"""Ready-made witnesses: what can be asked about a path, a process, a key, and which answers are proof.

They are plain functions. Each gives `PRESENT` or `ABSENT`, and raises for everything else: `Unproven`, which
says why, where the answer proves nothing, and whatever the question itself has met. A witness turns both into
unknown, so a function can be one by itself, or be the last line of one:

    workdir_there = health.witness("storage", name="workdir_there")(path)

    @health.witness("redis")
    def session_known(session_id: str) -> Presence:
        return key(client, f"session:{session_id}")

Only what is listed makes absence. An error that nobody has seen yet is unknown.
"""

from __future__ import annotations

from .._core.unproven import Unproven
from ._exit_code import exit_code
from ._http import http_resource
from ._listing import Listing
from ._path import path
from ._process import process, started
from ._record import silent_for
from ._redis import akey, key

__all__ = [
    "Listing",
    "Unproven",
    "akey",
    "exit_code",
    "http_resource",
    "key",
    "path",
    "process",
    "silent_for",
    "started",
]
