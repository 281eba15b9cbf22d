"""What listeners hear of, besides the transitions of breakers."""

from __future__ import annotations

from dataclasses import dataclass

from .._core.breaker import Transition
from .._core.gate import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The gate has blocked an operation, or would have (`enforced` is false while the gate observes)."""

    verdict: Verdict
    enforced: bool
    at: float
    wall: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ForcedAct:
    """A destructive operation was done with a grant, and has ended.

    `overridden` are the codes of what would have blocked it; `outcome` is what the ledger says of it.
    """

    operation: str
    trigger: str
    subject: str | None
    actor: str
    reason: str
    grant: str
    overridden: tuple[str, ...]
    outcome: str
    at: float
    wall: float = 0.0


Event = Transition | Decision | ForcedAct
