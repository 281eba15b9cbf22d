"""A small document that survives restarts and that the processes of one machine share.

What is lost must not look like a clean slate: a file that is missing, cut, changed, from another machine, of
another format or from the future reads as `LOST`, which is a value of its own, so that whoever reads it has
to decide what caution it asks for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, Final

from .._core.configuration import ConfigurationError
from .canonical import canonical, checksum, parse
from .private import PrivatePlace, open_private, opened_directory, write_all

MOST_BYTES: Final = 1024 * 1024
AHEAD: Final = 60.0
_FORMAT: Final = "safehold-state"
_VERSION: Final = 1
_MACHINE: Final = Path("/etc/machine-id")
_FIELDS: Final = frozenset({"at", "format", "host", "sum", "value", "version"})


class Lost(Enum):
    """The type of `LOST`."""

    LOST = "lost"


LOST: Final = Lost.LOST


class StateFile:
    """One JSON value at `path`, at most `MOST_BYTES` as it is written.

    All methods may be called from any thread and in forked children; they block. A writer waits for others
    for `patience` seconds. `wall` gives Unix time. Building one touches no file. `why_lost` says in words
    why the last reading gave `LOST`; it is empty after one that did not.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, patience: float = 5.0, wall: Callable[[], float] = time.time
    ) -> None:
        self._place = PrivatePlace(path, patience=patience)
        self._wall = wall
        self.why_lost = ""

    @property
    def path(self) -> Path:
        """Where the document is."""
        return self._place.path

    def reborn(self) -> None:
        """Begin again in a forked child. Forking from Python does it by itself."""
        self._place.reborn()

    def read(self) -> Any:
        """Give the value, or `LOST`. Raises nothing, creates nothing and waits for nobody."""
        try:
            with opened_directory(self.path.parent, create=False) as directory:
                return self._read(directory)
        except (OSError, ConfigurationError) as error:
            return self._lost(str(error))

    def update(self, change: Callable[[Any], Any]) -> Any:
        """Replace the value by what `change` makes of it, or of `LOST`, and give that. Nobody comes between.

        `change` runs under the lock and must not come back here. What it raises passes through, and the old
        value stays. Raises `OSError` when the new one cannot be written or made to last (of these two the
        latter may have replaced the old one), `ConfigurationError` when others could write here, or when
        the new value is no JSON value or too long.
        """
        with self._place.entered() as directory:
            try:
                value = self._read(directory)
            except OSError as error:
                value = self._lost(str(error))
            changed = change(value)
            self._write(directory, changed)
            return changed

    def _read(self, directory: int) -> Any:
        file = open_private(self.path.name, os.O_RDONLY, directory)
        try:
            raw = os.read(file, MOST_BYTES + 1)
        finally:
            os.close(file)
        try:
            value = _value(raw, self._wall())
        except ValueError as error:
            return self._lost(str(error))
        self.why_lost = ""
        return value

    def _lost(self, why: str) -> Lost:
        self.why_lost = f"{self.path.name}: {why}"
        return LOST

    def _write(self, directory: int, value: Any) -> None:
        raw = _document(value, self._wall())
        name, new = self.path.name, f"{self.path.name}.new"
        with suppress(FileNotFoundError):
            os.unlink(new, dir_fd=directory)  # of a process that ended in the middle
        file = open_private(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, directory)
        try:
            try:
                write_all(file, raw)
                os.fsync(file)
            finally:
                os.close(file)
            os.replace(new, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(new, dir_fd=directory)
            raise
        os.fsync(directory)


def _document(value: Any, now: float) -> bytes:
    body = {"at": now, "format": _FORMAT, "host": _host(), "value": value, "version": _VERSION}
    try:
        raw = canonical({**body, "sum": checksum(canonical(body))}).encode("ascii")
    except ValueError as error:
        msg = f"a state must be a JSON value: {error}"
        raise ConfigurationError(msg) from None
    if len(raw) > MOST_BYTES:
        msg = f"a state must be at most {MOST_BYTES} bytes long, this one has {len(raw)}"
        raise ConfigurationError(msg)
    return raw


def _value(raw: bytes, now: float) -> Any:
    """Give what a document holds. Raises `ValueError`, which says why it is not to be believed."""
    body = parse(raw) if len(raw) <= MOST_BYTES else None
    if not isinstance(body, dict) or body.keys() != _FIELDS:
        doubt = "of another format"
    elif body["sum"] != checksum(canonical({name: body[name] for name in _FIELDS - {"sum"}})):
        doubt = "changed: its checksum is another"
    elif (body["format"], body["version"]) != (_FORMAT, _VERSION):
        doubt = "of another format"
    elif body["host"] != _host():
        doubt = "from another machine"
    elif type(body["at"]) not in {int, float} or body["at"] > now + AHEAD:
        doubt = "from the future"
    else:
        return body["value"]
    raise ValueError(doubt)


def _host() -> str:
    """Tell this machine from others, without telling which it is; the same for all that have no id."""
    try:
        return checksum("safehold ", _MACHINE.read_text("ascii").strip())
    except (OSError, ValueError):
        return ""
