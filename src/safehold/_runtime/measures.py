"""What is measured for whoever exports it. Nobody exports: nothing is measured, and nothing is kept.

Counters are read where they are kept anyway, at the breakers, in the chronicle and in the ledger. Durations
are not kept anywhere; those of probes, and of calls where a slow limit is set, are handed to the exporters
as they come. So are refusals and blocks, in the thread or task that met them, for the span that is open
there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .._core.gate import Verdict
    from .permit import BreakerNotice


class Measured(StrEnum):
    """What a duration is of."""

    CALL = "call"
    PROBE = "probe"


class Duration(NamedTuple):
    """One call or probe that has ended. `error` is the type of what it raised; empty after a success."""

    of: Measured
    dependency: str
    outcome: str
    seconds: float
    error: str


class Measures:
    """Who wants to know; each tuple is replaced whole. What an exporter raises harms nobody."""

    def __init__(self) -> None:
        self.durations: tuple[Callable[[Duration], object], ...] = ()
        self.refusals: tuple[Callable[[BreakerNotice], object], ...] = ()
        self.blocks: tuple[Callable[[Verdict, bool], object], ...] = ()

    def lasted(self, duration: Duration) -> None:
        """Hand a duration on."""
        for take in self.durations:
            with suppress(Exception):
                take(duration)

    def refused(self, notice: BreakerNotice) -> None:
        """Hand a refusal on, where it was met."""
        for take in self.refusals:
            with suppress(Exception):
                take(notice)

    def blocked(self, verdict: Verdict, *, enforced: bool) -> None:
        """Hand a block on, where it was met."""
        for take in self.blocks:
            with suppress(Exception):
                take(verdict, enforced)
