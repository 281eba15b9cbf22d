"""Marks: what a sweep has seen to be gone, how often, and for how long it watched.

A subject is ripe when it was found absent several times over a stretch of *watched* seconds: time during
which the source and this process were well. Any sign of life and anything that cannot be told ends the
mark; a round in which something failed says nothing about any subject, and its time does not count.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from .evidence import ABSENT, Presence

MOST_MARKS: Final = 10_000
"""Subjects that are marked at a time; a sweep that wants more has a budget that says no."""


class SweepSettings(NamedTuple):
    """What makes a subject ripe: so many confirmations, and so many watched seconds since the first."""

    confirmations: int = 2
    wait: float = 60.0


class Mark(NamedTuple):
    """A subject that seems to be gone: how often it was found absent, and the seconds watched since."""

    readings: int
    watched: float


class Marks:
    """The marks of one sweep. `stamp` names the data that they speak of; with other data they are void."""

    def __init__(self, settings: SweepSettings) -> None:
        self._settings = settings
        self._marks: dict[str, Mark] = {}
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
        well (`None`: they are not). In a round that is not clean nothing is learnt and nothing is ripe.
        """
        if stamp != self._stamp:
            self._marks.clear()
            self._stamp = dict(stamp)
        if not clean:
            self._looked = None
            return []
        watched_from = self._looked
        watched = watched_from is not None and well_since is not None and well_since <= watched_from
        more = now - watched_from if watched and watched_from is not None else 0.0
        self._looked = now
        kept: dict[str, Mark] = {}
        for subject, presence in readings.items():
            if presence is ABSENT and (subject in self._marks or len(kept) < MOST_MARKS):
                mark = self._marks.get(subject)
                kept[subject] = Mark(1, 0.0) if mark is None else Mark(mark.readings + 1, mark.watched + more)
        self._marks = kept
        return [subject for subject, mark in kept.items() if self._is_ripe(mark)]

    def forget(self, subjects: Collection[str]) -> None:
        """Let what was acted upon be proven afresh, should it come up again."""
        for subject in subjects:
            self._marks.pop(subject, None)

    def _is_ripe(self, mark: Mark) -> bool:
        return mark.readings >= self._settings.confirmations and mark.watched >= self._settings.wait

    def dump(self) -> dict[str, Any]:
        """Give what is kept over a restart. The time of the restart is not watched."""
        return {
            "stamp": dict(self._stamp),
            "marks": {subject: [mark.readings, mark.watched] for subject, mark in self._marks.items()},
        }

    def load(self, kept: Any) -> None:
        """Take up what was kept; what makes no sense is no mark."""
        try:
            stamp = {str(name): str(lineage) for name, lineage in kept["stamp"].items()}
            marks = {
                str(subject): Mark(int(readings), float(watched))
                for subject, (readings, watched) in kept["marks"].items()
            }
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
            return
        if all(mark.readings >= 0 and 0 <= mark.watched < math.inf for mark in marks.values()):
            self._marks, self._stamp = dict(list(marks.items())[:MOST_MARKS]), stamp
