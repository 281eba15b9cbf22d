"""Every duration of the drill, in seconds. The speed divides them all."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final, Self

SLOWEST: Final = 0.25
FASTEST: Final = 4.0
"""Faster than this, a time-out of the clients would be no longer than a busy machine's hiccup."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The services' own habits, and the settings of Safehold, which are shorter than the defaults.

    Three relations make the protected run sound. `settle_min` and `implicit_scope` are longer than the
    heartbeats need to come back after a repair: a `beat`, and the time-outs of one that failed.
    `implicit_scope` is longer than a round with all its time-outs, because the three lines open no scope.
    `heartbeat_ttl` is longer than two beats, so that a single one may get lost.
    """

    beat: float = 2.0
    heartbeat_ttl: float = 4.5
    round: float = 0.5
    timeout: float = 0.3
    startup_grace: float = 1.0
    implicit_scope: float = 3.0
    settle_min: float = 3.5
    settle_max: float = 4.5
    cooldown_first: float = 0.5
    cooldown_cap: float = 1.0
    lease: float = 2.0
    probe_timeout: float = 1.0

    def faster(self, speed: float) -> Self:
        """Give the same, `speed` times as fast."""
        return type(self)(**{field.name: getattr(self, field.name) / speed for field in fields(self)})
