"""How long a breaker stays open.

The n-th cooldown is `c = min(first * factor ** (n - 1), cap)`, then jitter *inside* the cap:
`c * (1 - jitter * draw)` with `draw` uniform in [0, 1). Capping first keeps a fleet spread however
long the outage lasts; capping last would let every member wait exactly `cap` and probe in step.
"""

from __future__ import annotations

from dataclasses import dataclass

from .configuration import check_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to stay open after each trip, in seconds.

    `first`: the cooldown after the first trip (above 0; default 1 s, a restart of a local server).
    `factor`: growth per failed recovery (at least 1; default 2, the usual exponential).
    `cap`: no cooldown is longer, and each `cap` seconds spent closed take one step of growth back
    (at least `first`; default 60 s: a minute is what people accept to wait after a repair).
    `jitter`: share of the cooldown that chance may take away, 0 to 1 (default 0.5, which spreads a
    fleet over half a cooldown and never waits longer than the rule says).
    """

    first: float = 1.0
    factor: float = 2.0
    cap: float = 60.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        check_number("cooldown first", self.first, above=0)
        check_number("cooldown factor", self.factor, least=1)
        check_number(f"cooldown cap (with first={self.first:g})", self.cap, least=self.first)
        check_number("cooldown jitter", self.jitter, least=0, most=1)

    def seconds(self, n: int, draw: float) -> float:
        """Give the n-th cooldown (n from 1) for one uniform `draw` from [0, 1)."""
        return self.envelope(n) * (1.0 - self.jitter * draw)

    def envelope(self, n: int) -> float:
        """Give the n-th cooldown before jitter; growth beyond all numbers is the cap."""
        try:
            return min(self.first * float(self.factor) ** (n - 1), float(self.cap))
        except OverflowError:
            return float(self.cap)
