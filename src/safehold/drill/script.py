"""The script: which fault, when, and for how long. The same seed gives the same script."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from ..testing.proxy import Fault
from .world import ENDING_EARLY, ENDING_LATE

CALM: Final = "All is well"
PAUSE: Final = "Repaired for a moment"
RECOVERY: Final = "Repaired for good"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A stretch of the drill and the faults in force. It lasts so many seconds at the default speed.

    `act` is the number of the fault that it belongs to, repair included; 0 before the first.
    `cut` is the share of the API's listing that still passes. `ends` are sessions that really end.
    """

    act: int
    name: str
    lasts: float
    redis: tuple[Fault, ...] = ()
    api: tuple[Fault, ...] = ()
    cut: float | None = None
    ends: tuple[str, ...] = ()

    @property
    def faulty(self) -> bool:
        """Whether a fault is in force."""
        return bool(self.redis or self.api or self.cut is not None)


REFUSED: Final = Fault(kind="refuse", stale=True)
BLACKHOLE: Final = Fault(kind="hang")
RESET: Final = Fault(kind="reset")


def make_script(seed: int, *, timeout: float, faults: bool = True) -> tuple[Step, ...]:
    """Write the script. `timeout` is the clients' own, in real seconds.

    Without faults it is a short one in which sessions end and nothing fails.
    """
    dice = random.Random(seed)  # noqa: S311 - a script to repeat, no secret
    calm = Step(act=0, name=CALM, lasts=7.0, ends=ENDING_EARLY)
    if not faults:
        return (calm, Step(act=0, name=CALM, lasts=5.0, ends=ENDING_LATE))
    return (calm, *_faults(dice, timeout))


def _faults(dice: random.Random, timeout: float) -> Iterator[Step]:
    def about(seconds: float) -> float:
        return seconds * dice.uniform(0.85, 1.05)

    # the first outage outlasts the heartbeats: after the repair, Redis answers, and has none
    late = Fault(kind="latency", seconds=timeout * dice.uniform(2, 3), direction="downstream")
    acts = (
        Step(act=1, name="Redis refuses connections", lasts=about(5.5), redis=(REFUSED,)),
        Step(
            act=2,
            name="Redis takes requests and never answers",
            lasts=about(3.5),
            redis=(BLACKHOLE,),
            ends=ENDING_LATE,
        ),
        Step(act=3, name="Redis resets every connection", lasts=about(2.5), redis=(RESET,)),
        Step(act=4, name="Redis answers after the time-out", lasts=about(3.5), redis=(late,)),
        Step(act=5, name="The API's listing is cut in half", lasts=about(2.5), cut=dice.uniform(0.4, 0.6)),
        Step(
            act=6,
            name="Both: Redis hangs, the API refuses",
            lasts=about(3.5),
            redis=(BLACKHOLE,),
            api=(REFUSED,),
        ),
    )
    for act in acts:
        yield act
        yield Step(act=act.act, name=PAUSE, lasts=about(2.0 if act.act == 1 else 1.2))
    yield from _flapping(7, dice, about)


def _flapping(act: int, dice: random.Random, about: Callable[[float], float]) -> Iterator[Step]:
    name = "Flapping, up and down"
    for hits_redis in dice.sample((True, False, True), 3):
        fault = (dice.choice((REFUSED, BLACKHOLE, RESET)),)
        redis, api = (fault, ()) if hits_redis else ((), fault)
        yield Step(act=act, name=name, lasts=about(1.1), redis=redis, api=api)
        yield Step(act=act, name=name, lasts=about(0.7))
