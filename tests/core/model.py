"""The breaker once more, written down naively: lists of what happened, and rules read off them.

It shares nothing with the core and is slow on purpose. Whatever can be asked of the past is asked of the list of what
happened in the present generation, instead of being kept up to date.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Happened:
    """Something that counts in the present generation: `what` is ok, bad, miss or proof."""

    what: str
    at: float
    step: int
    slow: bool = False


@dataclass
class Taken:
    """A call in flight."""

    generation: int
    step: int
    trial: bool = False
    deadline: float = math.inf


@dataclass
class Model:
    s: dict[str, Any]
    now: float = 0.0
    draw: float = 0.0
    step: int = 0
    state: str = "closed"
    generation: int = 0
    began: float = 0.0
    due: float = 0.0
    held: bool = False
    lost_lease_of: int = -1
    trial: Taken | None = None
    wins: int = 0
    log: list[Happened] = field(default_factory=list)
    level: int = 0
    missed: bool = False
    answered: bool = False
    outage: float | None = None
    settle_for: float = 0.0
    quiet_since: float = 0.0
    last_miss: float = -math.inf
    counters: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("successes", "failures", "refusals", "late", "suppressed"), 0)
    )

    # --- what is asked of it ---------------------------------------------------------------------

    @property
    def health(self) -> str:
        if self.s["mode"] == "disabled":
            return "unknown"
        if self.state != "closed":
            return "unhealthy" if self.state == "open" else "recovering"
        if self.outage is not None:
            return "recovering"
        if self.missed or self.rates_at(0.5):
            return "degraded"
        return "healthy" if self.answered else "unknown"

    @property
    def retry_after(self) -> float | None:
        if self.held:
            return None
        if self.state == "closed":
            return 0.0
        if self.trial is not None:
            looks = (self.trial.deadline - self.s["lease"] + k * self.s["first"] for k in range(1, 1000))
            return min(self.trial.deadline, next(look for look in looks if look > self.now)) - self.now
        return max(0.0, self.due - self.now)

    # --- what happens to it ----------------------------------------------------------------------

    def begin(self) -> Taken | None:
        """A call or a probe: no prober runs here, so that they are alike."""
        self.time_passes()
        refuses = self.s["mode"] == "enforce"
        if self.state == "closed":
            return Taken(self.generation, self.step)
        if self.trial is not None or self.now < self.due:
            if refuses:
                self.counters["refusals"] += 1
                self.missed = True
                return None
            self.counters["suppressed"] += 1
            return Taken(self.generation, self.step)
        if self.state == "open":
            self.move("half_open")
        self.trial = Taken(self.generation, self.step, trial=True, deadline=self.now + self.s["lease"])
        return self.trial

    def end(self, call: Taken, how: str, *, slow: bool) -> None:
        self.time_passes()
        missed = how in "fc"
        if missed:
            self.last_miss = self.now
        if call.generation != self.generation:
            self.counters["late"] += 1
            if call.trial and how == "s" and self.lost_lease_of == call.generation:
                self.due = min(self.due, self.now)
            return
        generation = self.generation
        if self.s["mode"] == "disabled":
            if how == "s":
                self.prove(call)
        elif call.trial:
            self.end_trial(how)
        elif self.state == "closed" and how == "s":
            self.counters["successes"] += 1
            self.log.append(Happened("ok", self.now, self.step, slow))
            self.prove(call)
            if slow and self.rates_at(1.0):
                self.open()
        elif self.state == "closed" and how == "f":
            self.fail(slow=slow)
        if missed:
            self.missed = True
            self.quiet_since = self.now
            if self.generation == generation:
                self.log.append(Happened("miss", self.now, self.step))

    def end_trial(self, how: str) -> None:
        self.trial, self.due = None, self.now
        if how == "s":
            self.counters["successes"] += 1
            self.answered = True
            self.wins += 1
            if self.wins == self.s["successes"]:
                self.move("closed")
        elif how == "f":
            self.counters["failures"] += 1
            self.open()

    def attempt(self, call: Taken) -> None:
        self.time_passes()
        if call.generation == self.generation and self.state == "closed" and self.s["mode"] != "disabled":
            self.fail(slow=False)

    def fail(self, *, slow: bool) -> None:
        self.counters["failures"] += 1
        self.log.append(Happened("bad", self.now, self.step, slow))
        row = 0
        for happened in reversed([h for h in self.log if h.what in ("ok", "bad")]):
            if happened.what == "ok":
                break
            row += 1
        limit = self.s["failures"]
        if (limit is not None and row >= limit) or self.rates_at(1.0):
            self.open()

    def prove(self, call: Taken) -> None:
        """A success proves that the dependency answers, unless something missed since the call began."""
        if not any(h.what == "miss" and h.step > call.step for h in self.log):
            self.missed = False
            self.answered = self.answered or self.s["mode"] != "disabled"
            self.log.append(Happened("proof", self.now, self.step))

    def by_hand(self, verb: str) -> None:
        self.time_passes()
        if verb == "trip" and self.state != "open":
            self.open()
        elif verb == "hold":
            self.move("open")
            self.held, self.due = True, math.inf
        elif verb == "release" and self.held:
            self.move("open")
        elif verb == "reset":
            self.level = 0
            self.move("closed")

    def time_passes(self) -> None:
        """Let the lease run out and the settling end, at the instants at which they do."""
        if self.trial is not None and self.now >= self.trial.deadline:
            now, self.now = self.now, self.trial.deadline
            lost = self.generation
            self.open()
            self.lost_lease_of = lost
            self.missed, self.quiet_since = True, self.now
            self.last_miss = max(self.last_miss, self.now)
            self.now = now
        if self.outage is not None and self.state == "closed" and not self.missed:
            proofs = [h.step for h in self.log if h.what == "proof"]
            misses = [h.step for h in self.log if h.what == "miss"]
            proven = bool(proofs) and (not misses or proofs[-1] > misses[-1])
            if proven and self.now >= self.quiet_since + self.settle_for:
                self.outage = None

    # --- its parts -------------------------------------------------------------------------------

    def rates_at(self, part: float) -> bool:
        s = self.s
        outcomes = [h for h in self.log if h.what in ("ok", "bad")]
        if self.state != "closed" or (s["failure_rate"] is None and s["slow_after"] is None):
            return False
        if "lately" in s:
            outcomes = [h for h in outcomes if self.now - h.at < s["lately"]]
        else:
            outcomes = outcomes[-s["last"] :]
        if len(outcomes) < s["min_calls"]:
            return False
        bad = sum(h.what == "bad" for h in outcomes) / len(outcomes)
        slow = sum(h.slow for h in outcomes) / len(outcomes)
        by_failures = s["failure_rate"] is not None and bad >= s["failure_rate"] * part
        return by_failures or (s["slow_after"] is not None and slow >= s["slow_rate"] * part)

    def open(self) -> None:
        if self.state == "closed":
            intervals = math.floor((self.now - self.began) / self.s["cap"])
            self.level = max(0, self.level - intervals)
        self.level += 1
        self.move("open")
        cooldown = min(self.s["first"] * self.s["factor"] ** (self.level - 1), self.s["cap"])
        self.due = self.now + cooldown - cooldown * self.s["jitter"] * self.draw

    def move(self, state: str) -> None:
        if self.state == "closed" and state == "open" and self.outage is None:
            self.outage = self.now
        if self.state != "closed" and state == "closed":
            assert self.outage is not None
            self.settle_for = max(self.s["settle_min"], min(self.s["settle_max"], self.now - self.outage))
            self.quiet_since = self.now
        self.state, self.began, self.due = state, self.now, self.now
        self.generation += 1
        self.held, self.trial, self.wins, self.lost_lease_of = False, None, 0, -1
        self.log = []
