"""Drives one breaker by hand: the calls in flight, the instant, the dice, and what was told.

The runtime's protocol is kept, without its lock: a call of a closed breaker takes the current era and asks
nobody; a success that the era no longer asks about is one count.

`Core` is whichever copy of the core is under test, so that a copy with a planted fault can take its place.
"""

from __future__ import annotations

import importlib
import math
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from operator import attrgetter
from typing import Any

ENDS = {
    "s": ("success", False),
    "f": ("failure", True),
    "x": ("ignored", False),  # the application's own error: an answer that decides nothing
    "c": ("ignored", True),  # cancelled: no verdict, and no answer either
}


class Core:
    """One copy of the core, under whatever package name it was loaded."""

    def __init__(self, package: str = "safehold._core") -> None:
        def module(name: str) -> Any:
            return importlib.import_module(f"{package}.{name}")

        self.package = package
        self.breaker = module("breaker")
        self.settings = module("settings")
        self.window = module("window")
        self.backoff = module("backoff")
        self.health = module("health")
        self.gate = module("gate")
        self.schedule = module("schedule")
        self.Backoff = self.backoff.Backoff
        self.CountWindow = self.window.CountWindow
        self.TimeWindow = self.window.TimeWindow
        self.Mode = self.settings.Mode
        learn(self)

    def make_settings(self, **values: Any) -> Any:
        """Settings with short keys for the cooldown: `first`, `factor`, `cap`, `jitter`; no jitter unless said."""
        backoff = {key: values.pop(key) for key in ("first", "factor", "cap", "jitter") if key in values}
        if size := values.pop("last", None):
            values["window"] = self.CountWindow(size)
        if length := values.pop("lately", None):
            values["window"] = self.TimeWindow(length)
        if "mode" in values:
            values["mode"] = self.Mode(values["mode"])
        return self.settings.BreakerSettings(cooldown=self.Backoff(**{"jitter": 0.0, **backoff}), **values)


@dataclass(eq=False)
class Call:
    """A call in flight: what it took on entry, and whether nothing has missed since."""

    token: Any
    name: str = ""
    fresh: bool = True


@dataclass(eq=False)
class Machine:
    core: Core
    settings: Any
    now: float = 0.0
    draw: float = 0.0
    head_start: float = 0.0
    calls: list[Call] = field(default_factory=list)
    mail: list[Any] = field(default_factory=list)
    breaker: Any = None

    def __post_init__(self) -> None:
        if self.breaker is None:
            self.breaker = self.core.breaker.Breaker("redis", self.settings, self.now, self.mail)
            self.breaker.head_start = self.head_start

    # --- reading ---------------------------------------------------------------------------------

    @property
    def generation(self) -> Any:
        return self.breaker.era.generation

    @property
    def state(self) -> str:
        return str(self.breaker.state)

    @property
    def health(self) -> str:
        return str(self.breaker.health(self.now))

    @property
    def view(self) -> tuple[str, str, bool]:
        return self.state, self.health, self.breaker.held

    @property
    def retry_after(self) -> float | None:
        return self.breaker.retry_after(self.now)

    @property
    def counters(self) -> dict[str, int]:
        b = self.breaker
        return {
            "successes": b.successes,
            "failures": b.failures,
            "refusals": b.refusals,
            "late": b.late_dropped,
            "suppressed": b.suppressed,
        }

    def is_trial(self, token: Any) -> bool:
        return isinstance(token, self.core.breaker.Trial)

    def is_late(self, call: Call) -> bool:
        return call.token.generation is not self.generation

    # --- steps -----------------------------------------------------------------------------------

    def cause(self, code: str) -> Any:
        return self.core.breaker.Cause(code=code, text=code)

    def begin(self, *, probe: bool = False, name: str = "") -> Call | None:
        """Admit a call and leave it in flight; `None` when it was refused."""
        if self.state == "closed":
            token = self.breaker.era
        else:
            token = self.breaker.admit(self.now, draw=self.draw, probe=probe)
        if token is None:
            next(self.generation.turned_away)
            return None
        call = Call(token, name)
        self.calls.append(call)
        return call

    def end(self, call: Call, how: str, *, slow: bool = False, fast: bool = True) -> None:
        """End a call; `fast` lets a success that nobody asks about be one count, as the wrappers do."""
        self.calls.remove(call)
        token = call.token
        trial = self.generation.trial
        lost = trial is not None and self.now >= trial.deadline  # and with it everybody in its generation
        if how in "fc" and token.generation is self.generation and not lost:
            for other in self.calls:
                other.fresh = False
        counted_only = how == "s" and fast and not self.is_trial(token) and not token.ask
        if counted_only and self.breaker.settings.slow_after is None:
            next(token.generation.tally)
            return
        outcome, missed = ENDS[how]
        self.breaker.settle(
            token,
            self.core.breaker.Outcome(outcome),
            self.now,
            draw=self.draw,
            cause=self.cause("answered" if how == "s" else "error"),
            slow=slow,
            missed=missed,
        )

    def attempt(self, call: Call) -> None:
        self.breaker.attempt_failed(call.token, self.now, draw=self.draw, cause=self.cause("attempt"))

    def look(self) -> None:
        self.breaker.tick(self.now, draw=self.draw)

    def by_hand(self, verb: str) -> None:
        match verb:
            case "trip":
                self.breaker.trip(self.now, draw=self.draw, cause=self.cause(verb))
            case "hold":
                self.breaker.hold(self.now, draw=self.draw, cause=self.cause(verb))
            case "release":
                self.breaker.release(self.now, draw=self.draw, cause=self.cause(verb))
            case "reset":
                self.breaker.reset(self.now, draw=self.draw, cause=self.cause(verb))
            case _:
                raise AssertionError(verb)

    # --- copies ----------------------------------------------------------------------------------

    def clone(self) -> Machine:
        """An independent copy: nothing that a step may change is shared."""
        memo: dict[int, Any] = {id(self.mail): (mail := [])}
        breaker = _copy(self.breaker, memo)
        calls = [Call(_copy(call.token, memo), call.name, call.fresh) for call in self.calls]
        return Machine(self.core, self.settings, self.now, self.draw, self.head_start, calls, mail, breaker)

    # --- the canonical form ----------------------------------------------------------------------

    def key(self) -> tuple[Any, ...]:
        """What can still matter: times and generation numbers relative, everything outlived left out."""
        return (
            self._machine_key(),
            tuple(sorted(self._token_key(call) for call in self.calls)),
        )

    def _machine_key(self) -> tuple[Any, ...]:
        b, g, s, now = self.breaker, self.generation, self.breaker.settings, self.now
        closed = self.state == "closed"
        decayed = min(now - g.began, b.level * s.cooldown.cap) if closed else 0.0
        contiguous = g.streak_end == self.core.window.counted(g.tally) - 1
        outage = None
        if b._outage is not None:
            lasted = now - b._outage if s.settle_min < s.settle_max else 0.0
            outage = (min(lasted, s.settle_max), b.settle_left(now))
        return (
            self.state,
            b.held,
            "held" if math.isinf(g.due) else 0.0 if closed else max(g.due - now, -self.head_start),
            None if g.trial is None else max(g.trial.deadline - now, -s.cooldown.cap),
            g.wins,
            g.streak if closed and contiguous else 0,
            self._window_key() if closed else (),
            decayed,
            b.level,
            b.era.answered and str(s.mode) != "disabled",
            b.era.ask,
            b.unresolved_miss,
            b._answers > 0,
            outage,
            tuple(map(str, b._told)),
            g.cause.code == "lease_expired",
        )

    def _window_key(self) -> tuple[Any, ...]:
        g, s = self.generation, self.breaker.settings
        if g.log is None:
            return ()
        calls = self.core.window.counted(g.tally)
        if not isinstance(s.window, self.core.CountWindow):
            return tuple(g.log.totals(calls, self.now))
        inside = calls - s.window.size
        failures = tuple(calls - n for n in g.log._failures if n >= inside)
        slow = tuple(calls - n for n in g.log._slow if n >= inside)
        return min(calls, s.window.size), failures, slow

    def _token_key(self, call: Call) -> str:
        token, g = call.token, self.generation
        if not self.is_trial(token):
            if token.generation is not g:
                return "late call"
            kind = "call" if token is self.breaker.era else "call of an older era"
            return kind if call.fresh == (token is self.breaker.era) else f"{kind}, which is wrong"
        if token.generation is g:
            return "trial" if token is g.trial else "trial without its place"
        if g.cause.code == "lease_expired" and g.number == token.generation.number + 1:
            return "trial that lost its lease"
        return "late trial"


def _copy_count(value: Any, _: dict[int, Any]) -> Any:
    return count(int(repr(value)[6:-1]))


def _copy_deque(value: Any, memo: dict[int, Any]) -> Any:
    return deque((_copy(item, memo) for item in value), value.maxlen)


def _copy_list(value: Any, memo: dict[int, Any]) -> Any:
    return [_copy(item, memo) for item in value]


def _copy_tuple(value: Any, memo: dict[int, Any]) -> Any:
    return tuple(_copy(item, memo) for item in value)


def _copy_slots(kind: type) -> Any:
    names = kind.__slots__
    read = attrgetter(*names)

    def copy(value: Any, memo: dict[int, Any]) -> Any:
        fresh = memo[id(value)] = object.__new__(kind)
        for name, held in zip(names, read(value), strict=True):
            setattr(fresh, name, held if type(held) not in _COPIERS else _copy(held, memo))
        return fresh

    return copy


def _copy_dict(kind: type) -> Any:
    def copy(value: Any, memo: dict[int, Any]) -> Any:
        fresh = memo[id(value)] = object.__new__(kind)
        held = vars(value)
        vars(fresh).update(held)
        vars(fresh).update({name: _copy(it, memo) for name, it in held.items() if type(it) in _COPIERS})
        return fresh

    return copy


_COPIERS: dict[type, Any] = {count: _copy_count, deque: _copy_deque, list: _copy_list, tuple: _copy_tuple}
"""How to copy what a step may change. Whatever is of no such kind is frozen, and shared."""


def learn(core: Core) -> None:
    """Let the objects of this core be copied."""
    b, w = core.breaker, core.window
    for kind in (b.Breaker, b.Generation, b.Era, b.Trial, w.CountLog, w.TimeLog):
        _COPIERS[kind] = _copy_slots(kind) if hasattr(kind, "__slots__") else _copy_dict(kind)


def forget(package: str) -> None:
    """Let go of a copy of the core."""
    for kind in [kind for kind in _COPIERS if kind.__module__.startswith(f"{package}.")]:
        del _COPIERS[kind]


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    copier = _COPIERS.get(type(value))
    if copier is None:
        return value
    if (known := memo.get(id(value))) is None:
        known = memo[id(value)] = copier(value, memo)
    return known


SHIPPED = Core()
"""The core that is shipped."""
