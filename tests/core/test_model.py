"""The breaker against its naive twin, through random stories.

Random walks find what the exploration's small settings leave out (windows over time, slow calls, jitter, rows beside
shares); the exploration finds what random walks miss. Neither replaces the other.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from .machine import SHIPPED, Call, Core, Machine
from .model import Model, Taken

MANY = 6
"""Calls in flight at most."""

WINDOWS = st.sampled_from([{"last": 4}, {"last": 4}, {"last": 7}, {"lately": 10.0}])
SETTINGS = st.fixed_dictionaries(
    {
        "failures": st.sampled_from([1, 2, 3, None]),
        "failure_rate": st.sampled_from([None, 0.25, 0.5, 0.6, 1.0]),
        "min_calls": st.integers(1, 4),
        "slow_after": st.sampled_from([None, None, 1.0]),
        "slow_rate": st.sampled_from([0.5, 1.0]),
        "first": st.sampled_from([1.0, 2.0]),
        "factor": st.sampled_from([1.0, 2.0, 3.0]),
        "cap": st.sampled_from([2.0, 5.0, 8.0]),
        "jitter": st.sampled_from([0.0, 0.5]),
        "successes": st.integers(1, 3),
        "lease": st.sampled_from([2.0, 4.0]),
        "settle_min": st.sampled_from([0.0, 3.0]),
        "settle_max": st.sampled_from([3.0, 12.0]),
        "mode": st.sampled_from(["enforce"] * 7 + ["observe"] * 2 + ["disabled"]),
    }
)


class Twins(RuleBasedStateMachine):
    """Whatever is done to the one is done to the other; whatever is read must be the same."""

    core: Core = SHIPPED

    @initialize(settings=SETTINGS, window=WINDOWS)
    def begin_again(self, settings: dict[str, Any], window: dict[str, Any]) -> None:
        values = {**settings, **window}
        if "lately" in values:
            values["jitter"] = 0.0  # whole seconds only: on them the window's tenths are exact
        self.values = values
        self.machine = Machine(self.core, self.core.make_settings(**values))
        self.model = Model(values)
        self.calls: list[tuple[Call, Taken]] = []

    def both(self) -> None:
        """One more step; both live in the same instant."""
        self.model.step += 1
        self.model.now = self.machine.now
        self.model.draw = self.machine.draw

    @precondition(lambda self: len(self.calls) < MANY)
    @rule(probe=st.booleans())
    def call(self, probe: bool) -> None:
        self.both()
        call, taken = self.machine.begin(probe=probe), self.model.begin()
        assert (call is None) == (taken is None), (
            f"refused by {'the breaker' if call is None else 'the model'} alone"
        )
        if call is not None and taken is not None:
            assert self.machine.is_trial(call.token) == taken.trial
            self.calls.append((call, taken))

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, MANY - 1), how=st.sampled_from("ssssffxc"), slow=st.booleans())
    def end(self, which: int, how: str, slow: bool) -> None:
        self.both()
        call, taken = self.calls.pop(which % len(self.calls))
        slow = slow and self.values["slow_after"] is not None and how in "sf"
        self.machine.end(call, how, slow=slow)
        self.model.end(taken, how, slow=slow)

    @rule(how=st.sampled_from("sssfffxc"), times=st.integers(1, 4), slow=st.booleans())
    def call_and_end(self, how: str, times: int, slow: bool) -> None:
        for _ in range(times):
            before = len(self.calls)
            self.call(probe=False)
            if len(self.calls) > before:
                self.end(len(self.calls) - 1, how, slow)

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, MANY - 1))
    def attempt(self, which: int) -> None:
        self.both()
        call, taken = self.calls[which % len(self.calls)]
        self.machine.attempt(call)
        self.model.attempt(taken)

    @rule(verb=st.sampled_from(["trip"] * 3 + ["reset"] * 2 + ["release"] * 3 + ["hold"]))
    def hand(self, verb: str) -> None:
        if self.values["mode"] != "disabled":
            self.both()
            self.machine.by_hand(verb)
            self.model.by_hand(verb)

    @rule(
        seconds=st.sampled_from([0.0, 1.0, 2.0, 3.0, 5.0, 13.0, 100.0]),
        draw=st.sampled_from([0.0, 0.5, 0.75]),
    )
    def wait(self, seconds: float, draw: float) -> None:
        self.machine.now += seconds
        self.machine.draw = draw

    @rule(how=st.sampled_from("ssfc"), lease=st.sampled_from([0.0, 0.0, 1.75, 2.0, 4.0, 9.0]))
    def trial(self, how: str, lease: float) -> None:
        """Let the cooldown pass, and let a trial take its time."""
        self.wait_for_the_breaker(0.0)
        before = len(self.calls)
        if before < MANY:
            self.call(probe=True)
        self.machine.now += 0.0 if "lately" in self.values else lease
        if len(self.calls) > before:
            self.end(before, how, slow=False)

    @rule(around=st.sampled_from([0.0, 0.25, -0.25]))
    def wait_for_the_breaker(self, around: float) -> None:
        """To just under, exactly or just past the next deadline."""
        machine = self.machine
        closed = machine.state == "closed"
        left = machine.breaker.settle_left(machine.now) if closed else machine.generation.due - machine.now
        around = 0.0 if "lately" in self.values else around
        if 0 < left + around < 1e6:
            machine.now += left + around

    @rule()
    def look(self) -> None:
        self.machine.look()

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "machine"):
            return
        self.both()
        model, machine = (
            self.model,
            self.machine.clone(),
        )  # the breaker itself is not looked at: that is a rule
        machine.look()
        model.time_passes()
        assert (machine.state, machine.health, machine.breaker.held) == (
            model.state,
            model.health,
            model.held,
        )
        if self.values["mode"] == "enforce":  # else calls are counted, too, that decide nothing
            assert machine.counters == model.counters
        assert machine.breaker.level == model.level
        assert _near(machine.retry_after, model.retry_after)
        if model.state == "closed":
            assert machine.breaker.unresolved_miss == model.missed
        last_miss = machine.breaker.last_miss
        assert model.last_miss <= (-1.0 if last_miss is None else last_miss)
        if not model.counters["refusals"]:
            assert model.last_miss == (float("-inf") if last_miss is None else last_miss)


def _near(one: float | None, other: float | None) -> bool:
    return one == other or (one is not None and other is not None and abs(one - other) < 1e-9)


TestTwins = Twins.TestCase
TestTwins.settings = hypothesis_settings(max_examples=100, stateful_step_count=40, deadline=None)
