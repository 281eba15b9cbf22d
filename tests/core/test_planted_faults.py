"""A test is trusted once it has failed: each planted fault must be caught by the cases or the exploration.

A fault is one change of one line of the core. The core is copied under another package name with the fault in it, and
the very rows and explorations of the other files are run against the copy.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, product
from pathlib import Path
from typing import NamedTuple

import pytest

import safehold._core

from .exploration import BrokenPromise, Small, explore
from .machine import Core, forget
from .steps import Player
from .test_breaker_cases import ADMITTED, CASES, MEANWHILE, ROW, assert_late_changes_nothing
from .test_exploration import BASE, SHARE

SOURCE = Path(safehold._core.__file__).parent
_names = count()


class Fault(NamedTuple):
    """`text` stands in `file` exactly once. `promise` is the one whose breaking an exploration reports."""

    text: str
    replacement: str
    promise: str | None = None
    small: Small = Small(BASE, hands=())
    file: str = "breaker.py"


HANDS = Small(BASE, top_level=1)
OBSERVING = Small({**BASE, "mode": "observe"}, top_level=1)
OUTAGES = Small({**BASE, "settle_min": 2.0, "settle_max": 6.0}, width=1, hands=("reset",), top_level=1)
LAST = Small({**BASE, **SHARE}, hands=(), top_level=1)

FAULTS = {
    "no generation check": Fault("current = generation is self.era.generation", "current = True", "I4"),
    "an ignored trial keeps its permit": Fault(
        "generation.trial, generation.due = None, now\n            case _:", "pass\n            case _:", "I4"
    ),
    "a trial has no lease": Fault(
        "if trial is not None and now >= trial.deadline:", "if trial is not None and now < trial.began:", "I4"
    ),
    "a lease ends a moment late": Fault(
        "if trial is not None and now >= trial.deadline:",
        "if trial is not None and now > trial.deadline:",
        "I4",
    ),
    "a lease ends when somebody looks": Fault(
        "self._open(trial.deadline, draw, cause)", "self._open(now, draw, cause)", "quiet look"
    ),
    "two trials at a time": Fault(
        "generation.due = generation.trial.deadline\n", "generation.due = now\n", "I6"
    ),
    "a late success of a lost lease is for nothing": Fault(
        "generation.due = min(generation.due, now)", "pass", "late"
    ),
    "any late success makes a trial due": Fault(
        'if generation.cause.code == "lease_expired" and',
        "if generation.state is BreakerState.OPEN and",
        "late",
        HANDS,
    ),
    "wins count across generations": Fault(
        "old.tally = self.late\n",
        "old.tally = self.late\n        self.era.generation.wins = old.wins\n",
        "growth",
    ),
    "the limit of a row is one too high": Fault("streak >= limit", "streak > limit"),
    "the limit of a share is exclusive": Fault(
        "failures / calls >= fail_limit * part", "failures / calls > fail_limit * part"
    ),
    "one call more than the least": Fault(
        "if calls < settings.min_calls:", "if calls <= settings.min_calls:", "fold", LAST
    ),
    "a window one too long": Fault(
        "oldest = calls - self._size", "oldest = calls - self._size - 1", file="window.py"
    ),
    "a bucket leaves a moment late": Fault(
        "self._buckets[0][0] <= oldest", "self._buckets[0][0] < oldest", file="window.py"
    ),
    "degraded at the full rate only": Fault(
        "self._rates_reach(0.5, now)", "self._rates_reach(1.0, now)", "fold", LAST
    ),
    "the cap is ignored": Fault(
        "return min(self.first * float(self.factor) ** (n - 1), float(self.cap))",
        "return self.first * float(self.factor) ** (n - 1)",
        "growth",
        file="backoff.py",
    ),
    "jitter outside the cap": Fault(
        "(1.0 - self.jitter * draw)", "(1.0 + self.jitter * draw)", file="backoff.py"
    ),
    "the cap swallows the jitter": Fault(
        "return self.envelope(n) * (1.0 - self.jitter * draw)",
        "return min(self.cap, 2 * self.envelope(n) * (1.0 - self.jitter * draw))",
        "growth",
        file="backoff.py",
    ),
    "a cooldown ends a moment late": Fault(
        "if now < generation.due + (", "if now <= generation.due + (", "I6"
    ),
    "the level resets on close": Fault(
        'self._move(BreakerState.CLOSED, now, Cause(code="recovered"',
        'self.level = 0\n            self._move(BreakerState.CLOSED, now, Cause(code="recovered"',
        "growth",
    ),
    "the level never falls": Fault("self.level - max(0, quiet)", "self.level", "growth"),
    "a miss does not start a new era": Fault("self.era = self._next_era(generation)\n", "pass\n", "era"),
    "a success of an old era resolves the miss": Fault(
        "if outcome is Outcome.SUCCESS and taken is self.era:", "if outcome is Outcome.SUCCESS:", "era"
    ),
    "a late miss is not dated": Fault(
        "else:\n                self._date_miss(now)", "else:\n                pass", "monotone"
    ),
    "the last miss moves back": Fault(
        "else max(self.last_miss, now)", "else min(self.last_miss, now)", "monotone"
    ),
    "settling ignores a relapse": Fault(
        "self._quiet_since = now\n        if generation is self.era.generation:",
        "if generation is self.era.generation:",
        "settling",
    ),
    "settling takes no success": Fault(
        "and self.era.answered\n            and not self._missed\n", "\n", "monotone", HANDS
    ),
    "a trip begins a new outage": Fault(
        "BreakerState.OPEN if self._outage is None:", "BreakerState.OPEN:", "settling"
    ),
    "an outage has no length": Fault(
        "max(now - self._outage, self._settings.settle_min)", "self._settings.settle_min", "settling", OUTAGES
    ),
    "a reset skips the settling": Fault(
        "self.level = 0\n        self._move(",
        "self.level = 0\n        self._outage = None\n        self._move(",
        "monotone",
        HANDS,
    ),
    "a hold ends by itself": Fault(
        "self.era.generation.due = math.inf\n        self._observe", "self._observe", "I5", HANDS
    ),
    "people act before time does": Fault(
        "self.tick(now, draw=draw)\n        if self.state is not BreakerState.OPEN:",
        "if self.state is not BreakerState.OPEN:",
        "quiet look",
        HANDS,
    ),
    "successes go unasked while it settles": Fault(
        "or not era.answered or self._outage is not None:", "or not era.answered:", "I7"
    ),
    "what changes nothing is told": Fault("if current != told:", "if current:", "I7"),
    "retry-after waits for the whole lease": Fault(
        "and now < trial.deadline:\n            first", "and now < trial.began:\n            first", "I6"
    ),
    "observing refuses": Fault(
        "BreakerState.CLOSED and self._settings.mode is Mode.ENFORCE", "BreakerState.CLOSED", "I3", OBSERVING
    ),
    "a disabled breaker trips": Fault(
        "elif self._settings.mode is Mode.DISABLED:",
        "elif taken is None:",
    ),
    "the table forgets the miss": Fault(
        "if missed or rates_high or impaired:", "if rates_high or impaired:", "fold", file="health.py"
    ),
}


@contextmanager
def planted(fault: Fault, tmp_path: Path) -> Iterator[Core]:
    """A copy of the core with the fault in it, under a name of its own."""
    text = (SOURCE / fault.file).read_text()
    assert text.count(fault.text) == 1, f"{fault.file} no longer holds exactly once: {fault.text!r}"
    package = f"planted_core_{next(_names)}"
    shutil.copytree(SOURCE, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / package / fault.file).write_text(text.replace(fault.text, fault.replacement))
    sys.path.insert(0, str(tmp_path))
    importlib.invalidate_caches()
    try:
        yield Core(package)
    finally:
        sys.path.remove(str(tmp_path))
        forget(package)
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            del sys.modules[name]


def first_failing_row(core: Core) -> str | None:
    """Replay the cases, rows and late results, until one fails."""
    for settings, steps in CASES:
        try:
            Player(core, **settings).play(steps)
        except Exception:
            return steps
    for (settings, begin), meanwhile, how in product(ADMITTED.values(), MEANWHILE.values(), "sfxc"):
        try:
            assert_late_changes_nothing(Player(core, **{**ROW, **settings}), f"s {begin} {meanwhile}", how)
        except Exception:
            return f"s {begin} {meanwhile} a:{how}"
    return None


def test_a_copy_without_a_fault_passes(tmp_path: Path) -> None:
    """The copying itself is no fault."""
    with planted(
        FAULTS["no generation check"]._replace(replacement=FAULTS["no generation check"].text), tmp_path
    ) as core:
        assert first_failing_row(core) is None
        assert explore(Small(BASE, width=1, hands=(), top_level=1), core).states > 50


@pytest.mark.parametrize("name", FAULTS)
def test_the_cases_catch_a_planted_fault(name: str, tmp_path: Path) -> None:
    """At least one row fails."""
    with planted(FAULTS[name], tmp_path) as core:
        assert first_failing_row(core) is not None


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.promise is not None])
def test_the_exploration_catches_a_planted_fault(name: str, tmp_path: Path) -> None:
    """A promise is broken in a state that the exploration reaches, and it is the promise that speaks of it."""
    fault = FAULTS[name]
    with planted(fault, tmp_path) as core, pytest.raises(BrokenPromise) as caught:
        explore(fault.small, core)
    assert caught.value.name == fault.promise
