"""What one Safehold writes down: the ledger, the budgets, and which data was known.

In memory until a directory is named; then in files there, which the workers of one service on one machine
share.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core.configuration import ConfigurationError
from .._core.epoch import EpochReading
from . import log
from .budgets import Budgets
from .ledger import Ledger

if TYPE_CHECKING:
    from .._core.sweep import Marks
    from .engine import Engine
    from .state import StateFile

_LOST_EPOCH = EpochReading(lineage="what was known is lost")
_OTHERS_ARE_LOST = ""  # no dependency is called so
_EPOCHS, _LEDGER, _BUDGETS = "epochs.json", "ledger.jsonl", "budgets.json"


class Records:
    """The records of one Safehold."""

    def __init__(self, engine: Engine) -> None:
        self.ledger = Ledger(engine)
        self.budgets = Budgets(engine)
        self.directory: Path | None = None
        self._epochs: StateFile | None = None

    def keep(self, directory: str | os.PathLike[str]) -> None:
        """Keep the records in a directory from now on. Raises `ConfigurationError` when it cannot be used."""
        from .state import StateFile  # noqa: PLC0415 - most processes keep nothing

        path = Path(directory).absolute()
        _provision(path)
        self.keep_ledger(path / _LEDGER)
        self.budgets.keep(path / _BUDGETS)
        self._epochs = StateFile(path / _EPOCHS)
        self.directory = path

    def keep_ledger(self, path: str | os.PathLike[str]) -> None:
        """Keep the ledger in a file from now on. One that cannot be written blocks, and no more."""
        self.ledger.keep(Path(path).absolute())

    def reborn(self) -> None:
        """Begin again in a forked child."""
        self.ledger.reborn()
        self.budgets.reborn()
        if self._epochs is not None:
            self._epochs.reborn()

    def keep_marks(self, sweep: str, marks: Marks) -> Callable[[], None]:
        """Take up the marks that a sweep has left, and give a function that writes them down."""
        if self.directory is None:
            return lambda: None
        from .state import StateFile  # noqa: PLC0415 - most processes keep nothing

        name = hashlib.sha256(sweep.encode()).hexdigest()[:16]
        file = StateFile(self.directory / f"marks-{name}.json")
        marks.load(file.read())

        def keep() -> None:
            try:
                file.update(lambda _: marks.dump())
            except (OSError, ConfigurationError) as error:  # they are marked afresh after a restart
                log.fault("state_failed", error, sweep=sweep)
                with suppress(OSError):
                    file.path.unlink()  # else marks that have ended since would come back

        return keep

    def known_epoch(self, dependency: str) -> EpochReading | None:
        """Give what was known of the data of a dependency before this process; `None` when nothing was."""
        if self._epochs is None:
            return None
        document = self._epochs.read()
        if not isinstance(document, dict):  # lost, or not of our making
            return _LOST_EPOCH
        try:
            kept = document.get(dependency)
            if kept is None:
                return _LOST_EPOCH if _OTHERS_ARE_LOST in document else None
            return _reading(kept)
        except (AttributeError, KeyError, TypeError, ValueError):
            return _LOST_EPOCH

    def keep_epoch(self, dependency: str, reading: EpochReading | None) -> None:
        """Write down which data is known. What cannot be written is told, and known to this process only."""
        if self._epochs is None or reading is None:
            return
        kept = {
            "lineage": reading.lineage,
            "instance": reading.instance,
            "former": list(reading.former),
            "doubt": reading.doubt,
        }

        def rewrite(document: Any) -> Any:
            return {
                **(document if isinstance(document, dict) else {_OTHERS_ARE_LOST: True}),
                dependency: kept,
            }

        try:
            self._epochs.update(rewrite)
        except (OSError, ConfigurationError) as error:
            log.fault("state_failed", error, dependency=dependency)


def _provision(directory: Path) -> None:
    """Say in a new directory that no epoch is known yet: later, what says nothing is lost."""
    from .state import StateFile  # noqa: PLC0415 - most processes keep nothing

    try:
        if not any((directory / name).exists() for name in (_EPOCHS, _LEDGER, _BUDGETS)):
            StateFile(directory / _EPOCHS).update(lambda known: known if isinstance(known, dict) else {})
    except OSError as error:  # then nothing is known, and a person has to say what is
        log.fault("state_failed", error, path=str(directory))


def _reading(kept: Any) -> EpochReading:
    return EpochReading(
        lineage=str(kept["lineage"]),
        instance=str(kept["instance"]),
        former=tuple(str(name) for name in kept["former"]),
        doubt=str(kept["doubt"]),
    )
