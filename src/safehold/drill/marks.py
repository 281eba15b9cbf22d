"""Symbols and colours. Nothing is told by one of them alone: a word stands beside each."""

from __future__ import annotations

from typing import Final

from rich.console import Console

from .. import HealthState

STYLES: Final = {
    HealthState.HEALTHY: "green",
    HealthState.DEGRADED: "yellow",
    HealthState.RECOVERING: "cyan",
    HealthState.UNHEALTHY: "bold red",
    HealthState.UNKNOWN: "bright_black",
}


class Marks:
    """The symbols, or plain letters where the output cannot carry them."""

    def __init__(self, console: Console) -> None:
        many = console.encoding.lower().startswith("utf")
        self.good, self.bad, self.held, self.arrow = ("✓", "✗", "■", "→") if many else ("+", "x", "#", "->")
        self._full, self._empty = ("█", "░") if many else ("#", ".")
        self.states = {
            HealthState.HEALTHY: self.good,
            HealthState.DEGRADED: "!",
            HealthState.RECOVERING: "↻" if many else "~",
            HealthState.UNHEALTHY: self.bad,
            HealthState.UNKNOWN: "?",
        }

    def bar(self, share: float, width: int) -> str:
        """Draw a share from 0 to 1; nothing but all fills it."""
        full = int(min(1.0, share) * width)
        return self._full * full + self._empty * (width - full)
