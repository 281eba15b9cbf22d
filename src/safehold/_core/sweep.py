"""Marks: what a sweep has seen to be gone, how often, and for how long it watched.

A subject is ripe when it was found absent several times over a stretch of *watched* seconds: time during
which the source and this process were well. Any sign of life and anything that cannot be told ends the
mark; a round in which something failed says nothing about any subject, and its time does not count.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

from .budget import key_of
from .evidence import ABSENT, Presence

MOST_MARKS: Final = 10_000
"""Subjects that are marked at a time; a sweep that wants more has a budget that says no."""


class SweepSettings(NamedTuple):
    """What makes a subject ripe: so many confirmations, and so many watched seconds since the first.

    Between two rounds `gap` seconds are watched at most: for longer, nobody was looking.
    """

    confirmations: int = 2
    wait: float = 60.0
    gap: float = 300.0


class Mark(NamedTuple):
    """A subject that seems to be gone: how often it was found absent, and the seconds watched since."""

    readings: int
    watched: float


class Marks:
    """The marks of one sweep. `stamp` names the data that they speak of; with other data they are void."""

    def __init__(self, settings: SweepSettings) -> None:
        self._settings = settings
        self._marks: dict[str, Mark] = {}  # by digest
        self._stamp: Mapping[str, str] = {}
        self._looked: float | None = None  # when the last round began that counts

    def __len__(self) -> int:
        return len(self._marks)

    def round(
        self,
        readings: Mapping[str, Presence],
        now: float,
        *,
        clean: bool,
        well_since: float | None,
        stamp: Mapping[str, str],
    ) -> list[str]:
        """Take in what one round has found, and give what is ripe.

        `clean` says that nothing failed in it, `well_since` since when the source and this process have been
        well (`None`: they are not). In a round that is not clean, or of a source that is not well, nothing is
        learnt and nothing is ripe.
        """
        if stamp != self._stamp:
            self._marks.clear()
            self._stamp, self._looked = dict(stamp), None
        if not clean or well_since is None:
            self._looked = None
            return []
        looked, self._looked = self._looked, now
        more = min(now - looked, self._settings.gap) if looked is not None and well_since < looked else 0.0
        before, kept = self._marks, dict[str, Mark]()
        absent = {key_of(subject): subject for subject, found in readings.items() if found is ABSENT}
        for key in absent.keys() & before.keys():
            kept[key] = Mark(before[key].readings + 1, before[key].watched + more)
        for key in absent:  # in the order in which they were nominated
            if key not in kept and len(kept) < MOST_MARKS:
                kept[key] = Mark(1, 0.0)
        self._marks = kept
        return [subject for key, subject in absent.items() if key in kept and self._is_ripe(kept[key])]

    def take(self, subjects: Iterable[str]) -> dict[str, Mark]:
        """Take out the marks of what is about to be acted upon: it has to be proven afresh after that."""
        return {subject: self._marks.pop(key_of(subject)) for subject in subjects}

    def put_back(self, taken: Mapping[str, Mark]) -> None:
        """Put back the marks of what was not acted upon after all."""
        self._marks |= {key_of(subject): mark for subject, mark in taken.items()}

    def _is_ripe(self, mark: Mark) -> bool:
        return mark.readings >= self._settings.confirmations and mark.watched >= self._settings.wait

    def dump(self) -> dict[str, Any]:
        """Give what is kept over a restart. The time of the restart is not watched."""
        return {
            "stamp": dict(self._stamp),
            "marks": {key: [mark.readings, mark.watched] for key, mark in self._marks.items()},
        }

    def load(self, kept: Any) -> None:
        """Take up what was kept; what makes no sense is no mark."""
        match kept:
            case {"stamp": dict() as stamp, "marks": dict() as marks} if len(marks) <= MOST_MARKS:
                read = {str(key): _mark(mark) for key, mark in marks.items()}
                self._marks = {key: mark for key, mark in read.items() if mark is not None}
                self._stamp = {str(name): str(lineage) for name, lineage in stamp.items()}
            case _:
                pass


def _mark(kept: Any) -> Mark | None:
    match kept:
        case [int() as readings, int() | float() as watched] if readings >= 1 and 0 <= watched < math.inf:
            return Mark(readings, float(min(watched, _LONGEST)))
        case _:
            return None


_LONGEST: Final = 1e9
