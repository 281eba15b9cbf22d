"""What the witnesses' tests share: a service that removes real files, and questions about reasons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safehold import Backoff, BreakerPolicy, Evidence, GatePolicy, OperationBlocked, Presence, Safehold
from safehold.testing.clock import ManualClock
from safehold.witnesses import Unproven

PRESENT, ABSENT, UNKNOWN = Presence.PRESENT, Presence.ABSENT, Presence.UNKNOWN
POLICY = BreakerPolicy(failures=3, failure_rate=None, cooldown=Backoff(first=10.0, jitter=0.0))


class Service:
    """Each subject has a file of its own; the sweep removes those whose subjects are found absent."""

    def __init__(self, belongings: Path) -> None:
        self.clock = ManualClock()
        self.health = Safehold("test", clock=self.clock, gate=GatePolicy(startup_grace=0.0))
        self.source = self.health.dependency("source", critical=True, policy=POLICY)
        self.source.report("success")
        self.seen: dict[str, Evidence] = {}
        self.blocked: dict[str, list[str]] = {}
        belongings.mkdir()
        self._belongings = belongings

        @self.health.destructive("belongings.remove", subject="subject", evidence="there")
        def remove(subject: str) -> None:
            (belongings / subject).unlink()

        self._remove = remove

    def sweep(self, function: Callable[..., Any], *subjects: str) -> set[str]:
        """Ask about each, remove what may go, and give what is left on disk."""
        there: Any = self.health.witness("source", name="there")(function)
        for subject in subjects:
            (self._belongings / subject).touch()
        self.clock.advance(1.0)
        with self.health.scope("sweep"):
            for subject in subjects:
                self.seen[subject] = there(subject)
                try:
                    self._remove(subject)
                except OperationBlocked as blocked:
                    self.blocked[subject] = [reason.code for reason in blocked.reasons]
        return {entry.name for entry in self._belongings.iterdir()}

    def why(self, function: Callable[..., Any], subject: str = "s1") -> str:
        """Sweep one subject that must stay, and give why nothing is known of it."""
        assert subject in self.sweep(function, subject)
        assert self.seen[subject].presence is UNKNOWN
        assert "evidence_unknown" in self.blocked[subject]
        return self.seen[subject].why


def unproven(function: Callable[..., Any], *args: Any, **options: Any) -> str:
    """Ask what cannot be told, and give the reason."""
    with pytest.raises(Unproven) as caught:
        function(*args, **options)
    return str(caught.value)
