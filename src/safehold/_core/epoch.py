"""Whether the data that a dependency holds is the data that was known before.

A store that came back empty answers correctly, and everything seems to be gone. An epoch is the stretch in
which the data has one history. A change that the history explains (a failover that goes on where the old
primary stopped) begins a new epoch, and what was learnt before is void. One that nothing explains also holds
back what relies on it, until the population is back or a person acknowledges the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

from .configuration import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReading:
    """What an epoch function found.

    `lineage` names the history that the data has, `former` the lineages that it goes on from, `instance` who
    keeps it at present. `doubt` says why this cannot be the data that was known, such as a canary that is
    missing; empty when there is none.
    """

    lineage: str
    instance: str = ""
    former: tuple[str, ...] = ()
    doubt: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.lineage, str) or not self.lineage:
            msg = f"lineage must be a text that names a history, got {self.lineage!r}"
            raise ConfigurationError(msg)


class Epoch:
    """The epoch of one dependency. The caller holds the lock.

    `number` grows with every change. `unexplained` says what nothing explains, and `since` from when.
    `failed` says why the last reading told nothing.
    """

    def __init__(self) -> None:
        self.number = 1
        self.unexplained = ""
        self.since = 0.0
        self.failed = "it has not been read yet"
        self.reading: EpochReading | None = None
        self._accepted: EpochReading | None = None

    def see(self, reading: EpochReading, now: float) -> bool:
        """Take in a reading; say whether it began a new epoch."""
        last, self.reading, self.failed = self.reading, reading, ""
        known = self._accepted
        if reading == known:
            self.unexplained = ""
        elif reading.doubt:
            self._doubt(reading.doubt, now)
        elif known is None or known.lineage in (reading.lineage, *reading.former):
            self._accepted, self.unexplained = reading, ""
        else:
            self._doubt("its data has another history than what was known", now)
        if last is None or last == reading:
            return False
        self.number += 1
        return True

    def miss(self, why: str) -> None:
        """Take in that a reading failed. It proves nothing, so nothing is proven by it."""
        self.failed = why

    def accept(self) -> None:
        """Take what is there as what is known: the population is back, or a person said so."""
        self._accepted, self.unexplained = self.reading, ""

    @property
    def accepted(self) -> EpochReading | None:
        """What is known to be the data; `None` before the first reading."""
        return self._accepted

    def restore(self, accepted: EpochReading | None) -> None:
        """Take up what was known before a restart."""
        self._accepted = accepted

    def _doubt(self, why: str, now: float) -> None:
        if not self.unexplained:
            self.since = now
        self.unexplained = why
