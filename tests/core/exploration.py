"""Walks through every state that a small breaker can reach, and checks each step.

Breadth first, over canonical states: times and generation numbers relative, so that the space is finite. Time lies on a
grid, which makes "just under", "exactly" and "past" three neighbouring points. Growth is bounded by not walking on from
a level above `top_level`.

The promises, by name:

* **I3** width: in half-open one trial at a time, and nobody else unless the breaker only observes.
* **I4** leases: the trial that is counted is in somebody's hands, and none outlives its lease.
* **I5** recovery: open means that a trial is due within the cap (or a person holds it), and a dependency that is back
  is closed, settled and healthy again in so many steps.
* **I6** retry-after: finite and never negative, `None` exactly while held, never zero while a trial is out, and never
  before somebody could be let through.
* **I7** journal: one move for one generation, along the known edges, told once, in order and without a gap.

And more, by their own names:

* **fold**: health is what the table makes of the facts.
* **monotone**: a failure never improves anything, time never proves anything, the last miss never moves back.
* **era**: a miss is resolved by a success that began after it, and by nothing else.
* **late**: a result that comes home late changes nothing, unless it makes a trial due.
* **growth**: the level grows by one with every opening and falls by one for each cap spent closed.
* **settling**: an outage lasts until it has settled, and a relapse starts the settling again.
* **quiet look**: looking changes nothing but when things are told.
* **free success**: a success that is only counted leaves what a settled one would.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .machine import ENDS, SHIPPED, Call, Core, Machine

EDGES = {
    ("closed", "open"),
    ("open", "half_open"),
    ("half_open", "open"),
    ("half_open", "closed"),
    ("open", "closed"),  # by a reset
}
HANDS = ("trip", "hold", "release", "reset")


class BrokenPromise(AssertionError):
    """A step after which something does not hold; `name` says what."""

    def __init__(self, name: str, message: str, path: tuple[str, ...]) -> None:
        super().__init__(f"{name}: {message}, after {' '.join(path)}")
        self.name = name


@dataclass
class Small:
    """What is explored: settings on a grid of whole seconds, and how much may be in flight."""

    settings: dict[str, Any]
    width: int = 2
    top_level: int = 2
    head_start: float = 0.0
    attempts: bool = False
    hands: tuple[str, ...] = HANDS


@dataclass
class Found:
    """What an exploration came across."""

    states: int = 0
    steps: int = 0
    seen: Counter[str] = field(default_factory=Counter)


@dataclass(eq=False)
class Node:
    machine: Machine
    parent: Node | None = None
    action: str = ""

    @cached_property
    def looked(self) -> Machine:
        """A copy that somebody has looked at."""
        copy = self.machine.clone()
        copy.look()
        return copy

    @cached_property
    def counters(self) -> dict[str, int]:
        return self.machine.counters

    @property
    def path(self) -> tuple[str, ...]:
        return () if self.parent is None else (*self.parent.path, self.action)


def explore(small: Small, core: Core = SHIPPED) -> Found:
    """Walk everywhere; raise `BrokenPromise` at the first step that breaks one."""
    found = Found()
    start = Machine(core, core.make_settings(**small.settings), head_start=small.head_start)
    known = {start.key()}
    queue = deque([Node(start)])
    while queue:
        node = queue.popleft()
        found.states += 1
        _check_state(node, found)
        waiting = node.looked._machine_key() != node.machine._machine_key()  # for a look to make a difference
        for action in _actions(node.machine, small):
            after = node.machine.clone()
            _act(after, action)
            found.steps += 1
            child = Node(after, node, action)
            _check_step(child, found)
            key = after.key()
            if waiting:
                _check_quiet_look(child, action)
            if key not in known and after.breaker.level <= small.top_level:
                known.add(key)
                queue.append(child)
    return found


# --- what can happen -----------------------------------------------------------------------------------


def _actions(machine: Machine, small: Small) -> Iterator[str]:
    if len(machine.calls) < small.width:
        yield "call"
        if machine.state != "closed":
            yield "probe"
    kinds: set[str] = set()
    for index, call in enumerate(machine.calls):
        if (kind := machine._token_key(call)) not in kinds:  # two of a kind end alike
            kinds.add(kind)
            yield from (f"{index}:{how}" for how in ENDS)
            if small.attempts:
                yield f"{index}~"
    yield from small.hands
    yield from (f"+{seconds:g}" for seconds in sorted(_waits(machine)))


def _waits(machine: Machine) -> set[float]:
    """The waits that end just under, at and just past each deadline ahead."""
    b, g, s, now = machine.breaker, machine.generation, machine.breaker.settings, machine.now
    ahead = set()
    if machine.state == "closed":
        ahead.add(b.settle_left(now))
        if b.level:
            ahead.add(s.cooldown.cap - (now - g.began) % s.cooldown.cap)
    else:
        ahead |= {g.due - now, g.due + machine.head_start - now}
    if g.trial is not None and now >= g.trial.deadline > now - s.cooldown.cap:
        ahead.add(2.0)  # and still nobody has looked
    waits = {wait + around for wait in ahead if 0 < wait < math.inf for around in (-1.0, 0.0, 1.0)}
    return {wait for wait in waits if wait > 0}


def _act(machine: Machine, action: str) -> None:
    if action == "call":
        machine.begin()
    elif action == "probe":
        machine.begin(probe=True)
    elif action in HANDS:
        machine.by_hand(action)
    elif action.startswith("+"):
        machine.now += float(action)
    elif action.endswith("~"):
        machine.attempt(machine.calls[int(action[:-1])])
    else:
        index, _, how = action.partition(":")
        machine.end(machine.calls[int(index)], how)


# --- what must hold after a step -----------------------------------------------------------------------


def _check_step(child: Node, found: Found) -> None:
    assert child.parent is not None
    before, after, action = child.parent.machine, child.machine, child.action
    _check_moves(child, before, after)
    _check_monotone(child, before, after)
    _check_counters(child, before, after)
    if not _asks_nobody(child, before):
        _check_growth(child, after)
        _check_settling(child, after)
    if action[1:2] == ":":
        _check_end(child, before, after)
    if action.endswith(":s"):
        _check_free_success(child, before)
    _notice(child, before, after, found)


def _check_moves(child: Node, before: Machine, after: Machine) -> None:
    moves = after.generation.number - before.generation.number
    told = before.breaker._told
    changes = 0
    at, number = -math.inf, before.generation.number
    for t in after.mail:
        _need(
            child,
            "I7",
            (t.breaker_before, t.before) == tuple(told[:2]),
            "an event does not follow the last one",
        )
        _need(child, "I7", (t.breaker, t.after, t.held) != tuple(told), "an event tells nothing new")
        _need(child, "I7", t.at >= at and t.generation >= number, "events are out of order")
        if t.breaker_before != t.breaker:
            changes += 1
            _need(child, "I7", t.generation > number, "two moves in one generation")
            edge = (str(t.breaker_before), str(t.breaker))
            _need(child, "I7", edge in EDGES, f"the move {edge} does not exist")
            _need(
                child, "I7", edge != ("open", "closed") or child.action == "reset", "closed without a trial"
            )
        told, at, number = (t.breaker, t.after, t.held), t.at, t.generation
        _need(child, "I6", t.retry_after is None or t.retry_after >= 0, "an event has a negative retry-after")
        _need(
            child,
            "I6",
            t.retry_after != 0 or t.breaker != "half_open",
            "an event says now while a trial is out",
        )
    _need(child, "I7", 0 <= changes <= moves <= 2, f"{moves} generations, {changes} told")
    if not _asks_nobody(child, before):
        _need(
            child, "I7", after.breaker._told == _view(after), f"told {after.breaker._told}, is {_view(after)}"
        )
        _need(child, "I7", tuple(told) == _view(after), "what was told last is not what is")
    after.mail.clear()


def _asks_nobody(child: Node, before: Machine) -> bool:
    """Whether this step may leave untold what only the passing of time has done."""
    action = child.action
    if action[1:] == ":s":
        token = _ended(child, before).token
        return before.is_late(_ended(child, before)) and not before.is_trial(token) and not token.ask
    nothing = (action == "call" and before.state == "closed") or (
        action == "release" and not before.breaker.held
    )
    return nothing or action.startswith("+")


def _view(machine: Machine) -> tuple[Any, ...]:
    return machine.breaker.state, machine.breaker.health(machine.now), machine.breaker.held


def _check_monotone(child: Node, before: Machine, after: Machine) -> None:
    b, a, action = before.breaker, after.breaker, child.action
    was, now_is = b.last_miss, a.last_miss
    _need(
        child, "monotone", was is None or (now_is is not None and now_is >= was), "the last miss moved back"
    )
    released = action in ("release", "reset")
    _need(child, "I5", not b.held or a.held or released, "a hold was ended by no person")
    missed = action[-2:] in (":f", ":c")
    if missed:
        _need(child, "monotone", now_is == after.now, "a miss was not seen")
    if missed or action.startswith("+") or action in ("trip", "hold"):
        _need(child, "monotone", before.state == "closed" or after.state != "closed", "closed by no answer")
        _need(
            child, "monotone", not b.unresolved_miss or a.unresolved_miss, "a miss was resolved by no answer"
        )
        _need(child, "monotone", before.health == "healthy" or after.health != "healthy" or
              (action.startswith("+") and b.era.answered), "healthy without an answer")  # fmt: skip
    if action == "reset":
        _need(child, "monotone", a.unresolved_miss or not b.unresolved_miss, "a reset has resolved a miss")
        unsettled = child.parent is not None and child.parent.looked.breaker._outage is not None
        _need(
            child,
            "monotone",
            not unsettled or after.health == "recovering",
            "a reset has skipped the settling",
        )
    if action.endswith(":x") and not _was_late(child, before):
        _need(
            child, "monotone", after.state in (before.state, "open"), "an ignored call has moved the breaker"
        )


def _was_late(child: Node, before: Machine) -> bool:
    """Whether the call that ends here was already late; its lease may run out in this very step."""
    assert child.parent is not None
    looked = child.parent.looked
    return looked.is_late(_ended(child, looked))


def _ended(child: Node, before: Machine) -> Call:
    return before.calls[int(child.action[:-2])]


def _check_counters(child: Node, before: Machine, after: Machine) -> None:
    assert child.parent is not None
    counters = child.counters
    grown = {name: counters[name] - number for name, number in child.parent.counters.items()}
    if child.action[1:2] != ":":
        wanted: dict[str, int] = {}
        if child.action in ("call", "probe"):
            refused = len(after.calls) == len(before.calls)
            let_through = (
                not refused and after.state != "closed" and not after.is_trial(after.calls[-1].token)
            )
            wanted = {"refusals": int(refused), "suppressed": int(let_through)}
        elif child.action.endswith("~"):
            wanted = {"failures": grown["failures"]}
    else:
        call, how = _ended(child, before), child.action[-1]
        disabled = before.breaker.settings.mode == "disabled"
        decides = before.is_trial(call.token) or call.token.generation.state == "closed"
        if _was_late(child, before):
            wanted = {"late": 1}
        elif disabled or not decides:
            wanted = {name: grown[name] for name in ("successes", "failures")}
        else:
            wanted = {"successes": int(how == "s"), "failures": int(how == "f")}
    for name, number in grown.items():
        _need(
            child,
            "I4",
            number == wanted.get(name, 0),
            f"{name} grew by {number}, not by {wanted.get(name, 0)}",
        )


def _check_growth(child: Node, after: Machine) -> None:
    """From what was there once time had taken effect, to what is there now."""
    assert child.parent is not None
    before = child.parent.looked
    b, a, cooldown = before.breaker, after.breaker, after.breaker.settings.cooldown
    opened = before.state != "open" and after.state == "open" and child.action != "hold"
    if child.action == "reset":
        _need(child, "growth", a.level == 0, "a reset keeps the level")
    elif opened:
        quiet = (after.now - before.generation.began) // cooldown.cap if before.state == "closed" else 0
        level = max(0, b.level - quiet) + 1
        _need(child, "growth", a.level == level, f"the level is {a.level}, not {level}")
        wait = min(cooldown.first * cooldown.factor ** (level - 1), cooldown.cap)
        _need(child, "growth", after.retry_after == wait, f"the cooldown is {after.retry_after}, not {wait}")
    else:
        _need(child, "growth", a.level == b.level, "the level moved without an opening")
    if after.generation.number > before.generation.number:
        g = after.generation
        _need(child, "growth", g.wins == g.streak == g.failed == 0, "a generation begins with something")


def _check_settling(child: Node, after: Machine) -> None:
    assert child.parent is not None
    before, s = child.parent.looked, after.breaker.settings
    was, now_is = before.breaker._outage, after.breaker._outage
    _need(child, "settling", after.state == "closed" or now_is is not None, "open, and no outage")
    if was is not None:
        settled = now_is is None and after.health != "recovering" and child.action[1:] == ":s"
        _need(child, "settling", now_is == was or settled, f"the outage of {was} is now of {now_is}")
    left = after.breaker.settle_left(after.now)
    if now_is is not None and after.state == "closed":
        if before.state != "closed":
            wanted = min(max(after.now - now_is, s.settle_min), s.settle_max)
            _need(child, "settling", left == wanted, f"{left} to settle, not {wanted}")
        elif child.action[1:] in (":f", ":c") and not _was_late(child, before):
            _need(
                child,
                "settling",
                left == after.breaker._settle,
                "a relapse does not start the settling again",
            )


def _check_end(child: Node, before: Machine, after: Machine) -> None:
    assert child.parent is not None
    looked, how = child.parent.looked, child.action[-1]
    call = _ended(child, looked)
    if _was_late(child, before):
        kind = looked._token_key(call)
        settled = after.clone()
        settled.look()
        if kind == "trial that lost its lease" and how == "s":
            _need(child, "late", settled.retry_after == 0, "a late success makes no trial due")
        else:
            same = settled._machine_key() == looked._machine_key()
            _need(child, "late", same and settled.view == looked.view, "a late result has changed something")
    elif how == "s" and before.state == "closed":
        resolved = looked.breaker.unresolved_miss and not after.breaker.unresolved_miss
        _need(child, "era", call.fresh or not resolved, "resolved by a call that began before the miss")
        _need(
            child,
            "era",
            not call.fresh or not after.breaker.unresolved_miss,
            "not resolved by a fresh success",
        )
    else:
        _need(
            child,
            "era",
            not looked.breaker.unresolved_miss or after.breaker.unresolved_miss,
            "resolved by a trial",
        )


def _check_free_success(child: Node, before: Machine) -> None:
    call = _ended(child, before)
    if before.is_trial(call.token) or call.token.ask:
        return
    settled = before.clone()
    settled.end(settled.calls[int(child.action[:-2])], "s", fast=False)
    free = child.machine.clone()
    free.look()
    settled.look()
    _need(child, "free success", settled._machine_key() == free._machine_key(), "settling would differ")


def _check_quiet_look(child: Node, action: str) -> None:
    assert child.parent is not None
    one, other = child.machine.clone(), child.parent.looked.clone()
    _act(other, action)
    one.look()
    other.look()
    mine, others = one.key(), other.key()
    _need(child, "quiet look", mine == others, f"a look before it changes {_difference(mine, others)}")


def _difference(mine: Any, other: Any) -> str:
    return ", ".join(
        f"{a} to {b}" for a, b in zip(mine[0] + mine[1:], other[0] + other[1:], strict=False) if a != b
    )


# --- what must hold in a state -------------------------------------------------------------------------


def _check_state(node: Node, found: Found) -> None:
    machine = node.looked
    b, g, now = machine.breaker, machine.generation, machine.now
    enforced, disabled = b.settings.mode == "enforce", b.settings.mode == "disabled"
    mine = [call for call in machine.calls if call.token.generation is g]
    trials = [call for call in mine if machine.is_trial(call.token)]

    _need(node, "I3", len(trials) <= 1, f"{len(trials)} trials at once")
    if machine.state != "closed" and enforced:
        _need(node, "I3", len(mine) == len(trials), "a call went through beside the trial")
    held_trial = [call.token for call in trials]
    _need(node, "I4", held_trial == [] if g.trial is None else held_trial == [g.trial], "counted is not held")
    _need(node, "I4", g.trial is None or now < g.trial.deadline, "a trial has outlived its lease")
    _need(node, "I4", g.trial is None or machine.state == "half_open", "a trial outside half-open")
    _need(node, "I3", g.refuses == (enforced and machine.state != "closed"), "refuses where it must not")
    _check_retry_after(node, machine)
    _check_fold(node, machine)
    if b.held:
        _need(node, "I5", machine.state == "open" and not disabled, "held but not open")
    elif machine.state == "open":
        _need(node, "I5", g.due <= now + b.settings.cooldown.cap, "no trial is due within the cap")
    if not b.held and not disabled:
        _check_recovery(node, machine)


def _check_retry_after(node: Node, machine: Machine) -> None:
    b, g, wait = machine.breaker, machine.generation, machine.retry_after
    _need(node, "I6", (wait is None) == b.held, "None means held, and only that")
    if wait is None:
        return
    _need(node, "I6", 0 <= wait < math.inf, f"retry-after is {wait}")
    _need(node, "I6", machine.state != "closed" or wait == 0, "closed, and not now")
    if g.trial is not None:
        most = min(g.trial.deadline - machine.now, b.settings.cooldown.first)
        _need(node, "I6", 0 < wait <= most, f"a trial is out, and retry-after is {wait}")
    if machine.state == "closed":
        return
    early = machine.clone()
    early.now += wait - 1
    if wait >= 1 and b.settings.mode == "enforce":
        _need(node, "I6", early.begin(probe=True) is None, "a trial before retry-after")
    if g.trial is None:
        then = machine.clone()
        then.now += wait
        trial = then.begin(probe=True)
        _need(node, "I6", trial is not None and then.is_trial(trial.token), "no trial at retry-after")


def _check_fold(node: Node, machine: Machine) -> None:
    """The table of health, row by row, from the facts that the machine shows."""
    b, health = machine.breaker, machine.health
    settling = b._outage is not None
    if b.settings.mode == "disabled":
        expected = "unknown"
    elif machine.state == "open":
        expected = "unhealthy"
    elif machine.state == "half_open" or settling:
        expected = "recovering"
    elif b.unresolved_miss or _rates_at_half(machine):
        expected = "degraded"
    else:
        expected = "healthy" if b._answers else "unknown"
    _need(node, "fold", health == expected, f"health is {health}, the table says {expected}")
    if settling and machine.state == "closed":
        done = b.settle_left(machine.now) == 0 and b.era.answered and not b.unresolved_miss
        _need(node, "fold", not done, "settled, and still recovering")
    if b._answers == 0:
        _need(node, "fold", health != "healthy", "healthy, and nothing has answered")


def _rates_at_half(machine: Machine) -> bool:
    g, s = machine.generation, machine.breaker.settings
    if g.log is None or s.failure_rate is None:
        return False
    calls, failures, _ = g.log.totals(machine.core.window.counted(g.tally), machine.now)
    return calls >= s.min_calls and 2 * failures >= s.failure_rate * calls


def _check_recovery(node: Node, machine: Machine) -> None:
    """A dependency that answers from now on is closed, and then healthy, in a bounded number of steps."""
    back, s = machine.clone(), machine.breaker.settings
    for _ in range(s.successes + 2):
        if back.state == "closed":
            break
        if (trial := back.generation.trial) is not None:
            back.now = trial.deadline
            back.look()
        back.now = max(back.now, back.generation.due)
        probe = back.begin(probe=True)
        _need(node, "I5", probe is not None, "no trial when it is due")
        assert probe is not None
        back.end(probe, "s")
    _need(node, "I5", back.state == "closed", "answers, and does not close")
    for _ in range(2 + 2 * s.min_calls):
        call = back.begin()
        assert call is not None
        back.end(call, "s")
        back.now += s.settle_max
    back.look()
    _need(node, "I5", back.health == "healthy", f"answers and has settled, and is {back.health}")


# --- what has been seen --------------------------------------------------------------------------------


def _notice(child: Node, before: Machine, after: Machine, found: Found) -> None:
    """Count what an exploration that proves anything must have met."""
    action, seen = child.action, found.seen
    seen[f"{before.state} to {after.state}"] += before.state != after.state
    seen[f"health {after.health}"] += 1
    seen[f"in flight {len(after.calls)}"] += 1
    seen[f"level {after.breaker.level}"] += 1
    if action[1:2] == ":":
        call = _ended(child, before)
        seen[f"{before._token_key(call)} ends with {action[-1]}"] += 1
        if before._token_key(call) == "trial" and before.now >= call.token.deadline:
            seen["lease runs out at the answer"] += 1
            if action[-1] == "s":
                seen["late success makes a trial due"] += after.retry_after == 0
        if before.state == "closed" and before.breaker._outage is not None and action[-1] in "fc":
            seen["relapse by a miss" if after.state == "closed" else "relapse by a trip"] += 1
    if action in HANDS:
        seen[f"{action} in {before.state}"] += 1
        seen[f"{action} with a trial out"] += before.generation.trial is not None
    if action == "call" and len(after.calls) == len(before.calls):
        seen[f"refused in {after.state}"] += 1
    if action == "call" and after.breaker.suppressed > before.breaker.suppressed:
        seen[f"suppressed in {after.state}"] += 1
    seen["lease runs out unseen"] += (
        action.startswith("+")
        and after.generation.trial is not None
        and after.now >= after.generation.trial.deadline
    )
    if action.endswith("~"):
        seen["an attempt trips"] += before.state == "closed" and after.state == "open"
        seen["an attempt degrades"] += before.health == "healthy" and after.health == "degraded"
    if action == "call" and before.head_start and len(after.calls) > len(before.calls):
        seen["a caller takes over from the prober"] += before.state == "open"
    seen["several wins"] += after.generation.wins > 0
    seen["settled"] += before.breaker._outage is not None and after.breaker._outage is None


def _need(node: Node, name: str, holds: bool, message: str) -> None:
    if not holds:
        raise BrokenPromise(name, message, node.path)
