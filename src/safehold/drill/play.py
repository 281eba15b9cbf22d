"""The drill itself: two services side by side, one script, and what became of the sessions."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Self

import redis

from .. import (
    Backoff,
    BreakerPolicy,
    Decision,
    ForcedAct,
    GatePolicy,
    HealthState,
    ProbePolicy,
    Safehold,
    Transition,
)
from .lab import Lab
from .script import RECOVERY, Step, make_script
from .service import SessionService, Tools, protected
from .timing import Timing
from .world import ALL, ENDED, World

_log = logging.getLogger(__name__)

UNPROTECTED: Final = "unprotected"
PROTECTED: Final = "protected"
NAMES: Final = (UNPROTECTED, PROTECTED)
TICK: Final = 0.05
PATIENCE: Final = 20.0
"""Seconds, at any speed, that the protected run may take to recover before the drill calls it failed."""


class Side:
    """One of both runs: a world, a service in it, the heartbeats of its sessions and what was seen."""

    def __init__(self, name: str, world: World, lab: Lab, timing: Timing, health: Safehold | None) -> None:
        self.name = name
        self.world = world
        self.health = health
        self.transitions: list[Transition] = []
        self.blocks: list[Decision] = []
        self._timing = timing
        self._key = lab.key(name)
        self._heart = lab.redis.client(lab.redis_door, timing.timeout)
        tools = Tools(
            redis=lab.redis.client(lab.redis_door, timing.timeout),
            api=lab.api.client(lab.api_door, name, timing.timeout),
            reap=world.reap,
        )
        if health is not None:
            health.subscribe(self._hear)
            tools = protected(tools, health)
        self._tools = tools
        self.service = SessionService(tools, listing=lab.api.listing(world), prefix=self._key, sessions=ALL)
        self._stopping = threading.Event()
        self._threads = (
            threading.Thread(target=self._every, args=(timing.beat, self._beat), daemon=True),
            threading.Thread(target=self._every, args=(timing.round, self.service.sweep), daemon=True),
        )

    def start(self) -> None:
        """Begin, with a first heartbeat of every session."""
        self._beat()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Tell both loops to end."""
        self._stopping.set()

    def close(self) -> None:
        """Wait for the end of both loops, and close the clients."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=5)
        self._heart.close()
        self._tools.redis.close()
        self._tools.api.close()

    def _every(self, seconds: float, work: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            try:
                work()
            except Exception as error:  # noqa: BLE001 - as services do: a bad round is not the last one
                _log.warning("a round failed: %r", error)
            self._stopping.wait(seconds)

    def _beat(self) -> None:
        """Let the sessions send their heartbeats; one that cannot be sent is sent the next time."""
        pipeline = self._heart.pipeline(transaction=False)
        for session in self.world.alive:
            pipeline.set(self._key + session, "alive", px=round(self._timing.heartbeat_ttl * 1000))
        with suppress(redis.RedisError):
            pipeline.execute()

    def _hear(self, event: Transition | Decision | ForcedAct) -> None:
        if isinstance(event, Transition):
            self.transitions.append(event)
        elif isinstance(event, Decision):
            self.blocks.append(event)


class Drill:
    """Both runs, the script, and the clock that they share. A `with` statement ends the services."""

    def __init__(
        self, lab: Lab, worlds: Mapping[str, World], *, seed: int, speed: float, faults: bool = True
    ) -> None:
        self.lab = lab
        self.seed = seed
        self.speed = speed
        self.timing = Timing().faster(speed)
        self.script = make_script(seed, timeout=self.timing.timeout, faults=faults)
        self.step = self.script[0]
        self.begun: list[tuple[float, Step]] = []
        self.healed: float | None = None  # when the last fault ended
        self.recovered: float | None = None
        self.zero = time.monotonic()
        self.health = make_health(self.timing, seed)
        self.unprotected = Side(UNPROTECTED, worlds[UNPROTECTED], lab, self.timing, None)
        self.protected = Side(PROTECTED, worlds[PROTECTED], lab, self.timing, self.health)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for side in self.sides:
            side.stop()
        for side in self.sides:
            side.close()

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both runs."""
        return self.unprotected, self.protected

    @property
    def length(self) -> float:
        """How long the script is, in seconds; the recovery comes on top."""
        return sum(step.lasts for step in self.script) / self.speed

    @property
    def now(self) -> float:
        """The seconds since the start."""
        return time.monotonic() - self.zero

    def play(self, watch: Callable[[], None]) -> None:
        """Play the script. `watch` is called many times a second, and ends the drill by raising."""
        self.zero = time.monotonic()
        for side in self.sides:
            side.start()
        for step in self.script:
            self._begin(step)
            self._wait(step.lasts / self.speed, watch)
        if last := self.script[-1].act:
            self._begin(Step(act=last + 1, name=RECOVERY, lasts=0.0))
            self.healed = self.now
        if self._wait(PATIENCE, watch, until=self._has_recovered):
            self.recovered = self.now

    def _begin(self, step: Step) -> None:
        self.lab.inject(step)
        self.step = step
        self.begun.append((time.monotonic(), step))
        for side in self.sides:
            side.world.end(step.ends)

    def _wait(
        self, seconds: float, watch: Callable[[], None], until: Callable[[], bool] = lambda: False
    ) -> bool:
        """Wait so long, or until something is true; say whether it came true."""
        end = time.monotonic() + seconds
        while not until():
            watch()
            if (left := end - time.monotonic()) <= 0:
                return False
            time.sleep(min(TICK, left))
        return True

    def _has_recovered(self) -> bool:
        """Whether all is known to be well, and the sessions that really ended are removed again."""
        healthy = self.health.status().overall is HealthState.HEALTHY
        return healthy and len(self.protected.world.buried) == ENDED


def make_health(timing: Timing, seed: int) -> Safehold:
    """Declare the dependencies, with the drill's shorter settings."""
    health = Safehold(
        "drill",
        rng=random.Random(seed),  # noqa: S311 - jitter, no secret
        gate=GatePolicy(
            startup_grace=timing.startup_grace,
            implicit_scope=timing.implicit_scope,
            settle_min=timing.settle_min,
            settle_max=timing.settle_max,
        ),
    )
    policy = BreakerPolicy(
        failures=3,
        cooldown=Backoff(first=timing.cooldown_first, cap=timing.cooldown_cap),
        lease=timing.lease,
    )
    for name in ("redis", "api_socket"):
        health.dependency(
            name, critical=True, policy=policy, probe_policy=ProbePolicy(timeout=timing.probe_timeout)
        )
    return health
