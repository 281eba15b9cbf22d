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
        for name in ("instance", "doubt"):
            if not isinstance(getattr(self, name), str):
                msg = f"{name} must be a text, got {getattr(self, name)!r}"
                raise ConfigurationError(msg)
        former = self.former
        if not isinstance(former, tuple) or not all(isinstance(name, str) and name for name in former):
            msg = f"former must be a tuple of lineages, got {former!r}"
            raise ConfigurationError(msg)


class Epoch:
    """The epoch of one dependency. The caller holds the lock.

    `number` grows with every change. `unexplained` says what nothing explains, and `since` from when.
    `failed` says why the last reading told nothing.

    Several readings may be under way at once, and the one that is told last may have looked first. So each
    says at its end in which *turn* it began; whatever contradicts what was known ends a turn, and of a
    reading from an earlier turn nothing good is believed.
    """

    def __init__(self) -> None:
        self.number = 1
        self.turn = 0
        self.unexplained = ""
        self.since = 0.0
        self.failed = "it has not been read yet"
        self.reading: EpochReading | None = None
        self._accepted: EpochReading | None = None

    def see(self, reading: EpochReading, now: float, turn: int) -> bool:
        """Take in a reading that began in a turn; say whether it began a new epoch."""
        last = self.reading
        if turn != self.turn and (self.failed or reading != last):
            self.failed = self.failed or "readings at the same time contradict each other"
            self._turn(new=reading != last)
            return reading != last
        self.reading, self.failed = reading, ""
        known = self._accepted
        if reading == known:
            self.unexplained = ""
        elif reading.doubt:
            self._doubt(reading.doubt, now, new=reading != last)
        elif known is None or known.lineage in (reading.lineage, *reading.former):
            self._accepted, self.unexplained = reading, ""
        else:
            self._doubt("its data has another history than what was known", now, new=reading != last)
        if last == reading:
            return False
        self._turn(new=last is not None)
        return last is not None

    def miss(self, why: str) -> None:
        """Take in that a reading failed. It proves nothing, so nothing is proven by it."""
        self.failed = why
        self._turn(new=False)

    def accept(self) -> None:
        """Take what is there as what is known: a person said so."""
        self._accepted, self.unexplained = self.reading, ""

    def rebase(self, now: float, settle: float) -> bool:
        """Take what is there as what is known, since the population is back; say whether that could be.

        It cannot before `settle` seconds without another change, and never what is doubtful in itself: a
        replica may well be full.
        """
        reading = self.reading
        ready = bool(self.unexplained) and not self.failed and now - self.since >= settle
        if not ready or reading is None or reading.doubt:
            return False
        self.accept()
        return True

    @property
    def accepted(self) -> EpochReading | None:
        """What is known to be the data; `None` before the first reading."""
        return self._accepted

    def restore(self, accepted: EpochReading | None) -> None:
        """Take up what was known before a restart, or what another process has accepted meanwhile."""
        self._accepted = accepted

    def _turn(self, *, new: bool) -> None:
        self.turn += 1
        self.number += new

    def _doubt(self, why: str, now: float, *, new: bool) -> None:
        if new or not self.unexplained:
            self.since = now
        self.unexplained = why
