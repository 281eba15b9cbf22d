"""When a probe is due."""

from __future__ import annotations

from typing import Any

import pytest

from safehold._core.configuration import ConfigurationError
from safehold._core.schedule import ProbeSchedule, ProbeSettings

from .steps import Player, play

ROW: dict[str, Any] = {"failures": 1, "failure_rate": None, "first": 4.0, "cap": 32.0, "lease": 10.0}


def plan(player: Player, *, draw: float = 0.0, **settings: Any) -> ProbeSchedule:
    machine = player.machine
    return ProbeSchedule(machine.breaker, ProbeSettings(**settings), machine.now, draw=draw)


@pytest.mark.parametrize(
    ("steps", "due"),
    [
        ("s", None),
        ("f", 4.0),
        ("f +1 look", 4.0),
        ("hold", None),
        ("f +3 hold", None),
        ("hold +7 release", 7.0),
        ("f +4 x", 4.0),
        ("f +4 a>", 14.0),
        ("f +4 a> +10 look", 22.0),
        ("f +4 a> +11 a:s", 15.0),
        ("f +4 s", None),
    ],
)
def test_recovery_is_probed_when_a_trial_is_due(steps: str, due: float | None) -> None:
    """Open and half-open: when the next trial may begin; held: never; closed: only if somebody asked."""
    assert plan(play(steps, **ROW)).due() == due


def test_a_probe_is_claimed_when_it_is_due_and_not_before() -> None:
    """Exactly at its instant a probe may be taken, and by one only."""
    player = play("f", **ROW)
    schedule = plan(player)
    assert not schedule.claim(3.75)
    assert schedule.claim(4.0)
    assert schedule.in_flight
    assert not schedule.claim(4.0)
    assert schedule.due() is None
    schedule.done(5.0, draw=0.0)
    assert not schedule.in_flight
    assert schedule.claim(100.0)


def test_a_probe_that_decided_nothing_is_not_repeated_at_once() -> None:
    """Its trial is due again, but the next probe keeps the distance of a time-out; a decision ends the distance."""
    player = play("f +4 Px", **ROW)
    schedule = plan(player, timeout=2.0)
    assert schedule.claim(4.0)
    schedule.done(5.0, draw=0.0, decided=False)
    assert schedule.due() == 7.0
    assert not schedule.claim(6.75)
    assert schedule.claim(7.0)
    schedule.done(8.0, draw=0.0)
    assert schedule.due() == 8.0


def test_an_order_is_due_at_once_and_is_used_up() -> None:
    """A block that wants proof has it asked for now; nobody has to ask twice."""
    schedule = plan(play("s", **ROW))
    assert not schedule.claim(1e9)
    assert schedule.order()
    assert schedule.due() is not None
    assert schedule.claim(0.0)
    schedule.done(0.5, draw=0.0)
    assert schedule.due() is None


def test_a_probe_under_way_answers_for_all_who_ask() -> None:
    """Single flight: while one is out, an order launches no second one."""
    schedule = plan(play("s", **ROW))
    schedule.order()
    assert schedule.claim(0.0)
    assert not schedule.order()
    assert schedule.due() is None
    assert not schedule.claim(1.0)


def test_an_order_does_not_hurry_a_cooldown() -> None:
    """While the breaker is open an order waits for the trial's time, and while held for a person."""
    player = play("f", **ROW)
    schedule = plan(player)
    schedule.order()
    assert schedule.due() == 4.0
    player.play("hold")
    assert schedule.due() is None
    assert not schedule.claim(1e9)


def test_liveness_probes_come_at_their_interval() -> None:
    """With an interval a closed breaker is probed as well, counted from the end of the last probe."""
    schedule = plan(play("s", **ROW), interval=10.0)
    assert schedule.due() == 10.0
    assert not schedule.claim(9.75)
    assert schedule.claim(10.0)
    schedule.done(10.5, draw=0.0)
    assert schedule.due() == 20.5


@pytest.mark.parametrize(("draw", "due"), [(0.0, 10.0), (0.5, 9.0), (1.0, 8.0)])
def test_liveness_probes_are_spread(draw: float, due: float) -> None:
    """Chance takes a share of the interval away, so that a fleet does not probe in step."""
    schedule = plan(play("s", **ROW), draw=draw, interval=10.0, jitter=0.2)
    assert schedule.due() == pytest.approx(due)
    schedule.claim(due)
    schedule.done(100.0, draw=draw)
    assert schedule.due() == pytest.approx(100.0 + due)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"timeout": 0}, ["timeout", "0"]),
        ({"timeout": -1}, ["timeout", "-1"]),
        ({"timeout": float("nan")}, ["timeout", "nan"]),
        ({"timeout": True}, ["timeout", "True"]),
        ({"interval": 0}, ["interval", "0"]),
        ({"interval": float("inf")}, ["interval", "inf"]),
        ({"interval": 0.5}, ["interval=0.5", "timeout=1"]),
        ({"interval": 4, "timeout": 5}, ["interval=4", "timeout=5"]),
        ({"jitter": 1.5}, ["jitter", "1.5"]),
        ({"jitter": -0.5}, ["jitter", "-0.5"]),
    ],
)
def test_a_plan_that_cannot_work_is_refused(settings: dict[str, Any], words: list[str]) -> None:
    """Each bad setting is a configuration error with name and value; a contradiction names both."""
    with pytest.raises(ConfigurationError) as caught:
        ProbeSettings(**settings)
    assert [word for word in words if word not in str(caught.value)] == []


def test_an_interval_as_long_as_the_time_out_works() -> None:
    """The bound is inclusive."""
    assert ProbeSettings(timeout=5, interval=5).interval == 5
