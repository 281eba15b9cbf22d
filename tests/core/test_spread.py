"""A fleet that lost the same dependency at the same instant must not come back in step."""

from __future__ import annotations

import random

from .machine import SHIPPED, Machine

FLEET = 200
BINS = 20


def test_a_fleet_at_the_cap_does_not_probe_in_step() -> None:
    """Of 200 breakers that opened together, no twentieth of a cap period sees three times its share of trials."""
    rng = random.Random(20_24)
    settings = SHIPPED.make_settings(first=1.0, factor=2.0, cap=60.0, jitter=0.5)
    fleet = [Machine(SHIPPED, settings) for _ in range(FLEET)]
    for machine in fleet:
        machine.draw = rng.random()
        machine.by_hand("trip")
    begin, end = 600.0, 660.0  # the cap was reached at the seventh failure, long ago
    trials: list[float] = []
    for machine in fleet:
        while (due := machine.generation.due) < end:
            machine.now, machine.draw = due, rng.random()
            call = machine.begin(probe=True)
            assert call is not None
            machine.end(call, "f")
            if due >= begin:
                trials.append(due)
    assert all(machine.breaker.level > 7 for machine in fleet)
    bins = [0] * BINS
    for instant in trials:
        bins[int((instant - begin) / (end - begin) * BINS)] += 1
    assert len(trials) >= FLEET
    assert max(bins) <= 3 * len(trials) / BINS
    assert min(bins) > 0
