"""Subsystems: the worst decides, and each change is told once, in order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from typing import Any

import pytest

from safehold import ConfigurationError, Dependency, HealthState, Safehold, Subsystem, SubsystemState
from safehold.testing.clock import ManualClock

from .support import fail, in_threads, make_healthy, make_open, many_switches, python, succeed

FULL, REDUCED, PAUSED = SubsystemState.FULL, SubsystemState.REDUCED, SubsystemState.PAUSED


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def cache(health: Safehold, redis: Dependency) -> Subsystem:
    return health.subsystem("cache refresh", on=["redis"])


def test_each_health_has_its_state(cache: Subsystem, redis: Dependency, clock: ManualClock) -> None:
    """Healthy is full, unhealthy is paused, and everything between is reduced."""
    told: list[SubsystemState] = []
    cache.subscribe(told.append)
    assert (cache.state, cache.why) == (REDUCED, "redis is unknown")
    succeed(redis)
    assert cache.state is FULL
    fail(redis)
    assert (cache.state, cache.why) == (REDUCED, "redis is degraded")
    fail(redis, 2)
    assert cache.state is PAUSED
    clock.advance(10)
    succeed(redis)
    assert redis.state is HealthState.RECOVERING
    assert cache.state is REDUCED
    succeed(redis)
    clock.advance(600)
    assert cache.state is FULL  # time alone has brought it, and reading it is enough to be told
    assert told == [REDUCED, FULL, REDUCED, PAUSED, REDUCED, FULL]


def test_states_can_be_chosen(health: Safehold, redis: Dependency) -> None:
    """What is written goes before the usual; the rest stays."""
    made = health.subsystem(
        "billing", on=["redis"], states={"degraded": "full", HealthState.UNKNOWN: "paused"}
    )
    assert made.state is PAUSED
    succeed(redis)
    told: list[str] = []
    made.subscribe(told.append)
    fail(redis)
    assert made.state is FULL
    fail(redis, 2)
    assert told == ["full", "paused"]  # from healthy to degraded nothing changed for it


def test_the_worst_dependency_decides(health: Safehold, redis: Dependency, api: Dependency) -> None:
    """All have to be well for full work, and one that is down pauses."""
    made = health.subsystem("export", on=["redis", "api"])
    make_healthy(redis)
    assert (made.state, made.why) == (REDUCED, "api is unknown")
    make_healthy(api)
    assert made.state is FULL
    make_open(api)
    fail(redis)
    assert (made.state, made.why) == (PAUSED, "api is unhealthy")
    assert repr(made) == "<Subsystem 'export' paused: api is unhealthy>"
    assert made.report().model_dump() == {
        "name": "export",
        "dependencies": ("redis", "api"),
        "state": "paused",
        "why": "api is unhealthy",
        "changes": 3,
    }


def test_a_late_subscriber_is_told_at_once(cache: Subsystem, redis: Dependency) -> None:
    """Whoever comes later learns where it stands, and from then on the same as all others."""
    early: list[SubsystemState] = []
    late: list[SubsystemState] = []
    cache.subscribe(early.append)
    succeed(redis)
    cache.subscribe(late.append)
    assert late == [FULL]
    make_open(redis)
    assert early == [REDUCED, FULL, REDUCED, PAUSED]
    assert late == [FULL, REDUCED, PAUSED]


def test_a_callback_may_cause_the_next_change(cache: Subsystem, redis: Dependency) -> None:
    """What a callback brings about is told after what it is being told."""
    told: list[str] = []

    def callback(state: SubsystemState) -> None:
        told.append(f"begin {state}")
        if state is FULL:
            redis.hold("by the callback")
        told.append(f"end {state}")

    cache.subscribe(callback)
    succeed(redis)
    assert told == [f"{when} {state}" for state in ("reduced", "full", "paused") for when in ("begin", "end")]


def test_no_change_is_passed_over(health: Safehold, redis: Dependency) -> None:
    """Each change is told as it happened, even if by then the next one has."""

    def trip(event: object) -> None:
        if redis.state is HealthState.HEALTHY:
            redis.hold("by an earlier listener")

    health.subscribe(trip)
    told: list[SubsystemState] = []
    health.subsystem("late", on=["redis"]).subscribe(told.append)
    succeed(redis)
    assert told == [REDUCED, FULL, PAUSED]


def test_a_subscriber_is_told_one_thing_at_a_time(cache: Subsystem, redis: Dependency) -> None:
    """While it hears the present state, a change that comes meanwhile waits its turn."""
    told: list[str] = []
    began, go = threading.Event(), threading.Event()

    def callback(state: SubsystemState) -> None:
        told.append(f"begin {state}")
        began.set()
        assert go.wait(20)
        told.append(f"end {state}")

    thread = threading.Thread(target=cache.subscribe, args=(callback,), daemon=True)
    thread.start()
    assert began.wait(20)
    succeed(redis)
    go.set()
    thread.join(20)
    assert told == ["begin reduced", "end reduced", "begin full", "end full"]


def test_a_callback_that_raises_harms_nobody(
    cache: Subsystem, redis: Dependency, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged; the call that caused the change, and the next callback, go on."""
    told: list[SubsystemState] = []

    def bad(state: SubsystemState) -> None:
        raise ValueError("hunter2")

    cache.subscribe(bad)
    cache.subscribe(told.append)
    succeed(redis)
    assert told == [REDUCED, FULL]
    assert "listener_failed" in caplog.text
    assert "hunter2" not in caplog.text


def test_closed_subscriptions_hear_nothing(cache: Subsystem, redis: Dependency) -> None:
    """The end of a block, `close`, and the end of the subsystem."""
    told: list[list[SubsystemState]] = [[], [], []]
    with cache.subscribe(told[0].append):
        pass
    cache.subscribe(told[1].append).close()
    cache.subscribe(told[2].append)
    succeed(redis)
    cache.close()
    make_open(redis)
    assert told == [[REDUCED], [REDUCED], [REDUCED, FULL]]


async def test_coroutines_are_told_one_after_the_other(cache: Subsystem, redis: Dependency) -> None:
    """In their own event loop, in order, none at the same time as another, from whatever thread it comes."""
    told: list[str] = []
    go = asyncio.Event()
    before = asyncio.all_tasks()

    async def callback(state: SubsystemState) -> None:
        told.append(f"begin {state}")
        await go.wait()
        told.append(f"end {state}")

    cache.subscribe(callback)
    await settle()
    await asyncio.to_thread(succeed, redis)
    await asyncio.to_thread(fail, redis, 3)
    await settle()
    assert told == ["begin reduced"]
    go.set()
    await settle()
    assert told == [
        f"{when} {state}" for state in ("reduced", "full", "reduced", "paused") for when in ("begin", "end")
    ]
    assert asyncio.all_tasks() == before


async def test_a_coroutine_that_is_closed_is_cancelled(cache: Subsystem, redis: Dependency) -> None:
    """Nothing is left behind."""
    before = asyncio.all_tasks()

    async def callback(state: SubsystemState) -> None:
        await asyncio.Event().wait()

    subscription = cache.subscribe(callback)
    await settle()
    assert len(asyncio.all_tasks() - before) == 1
    subscription.close()
    await settle()
    assert asyncio.all_tasks() == before


async def test_a_coroutine_that_raises_goes_on(
    cache: Subsystem, redis: Dependency, caplog: pytest.LogCaptureFixture
) -> None:
    """The next change is told all the same."""
    told: list[SubsystemState] = []

    async def callback(state: SubsystemState) -> None:
        told.append(state)
        raise ValueError

    cache.subscribe(callback)
    succeed(redis)
    await settle()
    assert told == [REDUCED, FULL]
    assert "listener_failed" in caplog.text


def test_each_change_once_under_load(cache: Subsystem, redis: Dependency) -> None:
    """Threads that change it at every moment: no change is told twice in a row, none out of order."""
    told: list[list[SubsystemState]] = [[], []]
    cache.subscribe(told[0].append)

    def flap(index: int) -> None:
        for number in range(60):
            with contextlib.suppress(ConfigurationError):
                if number % 2:
                    redis.hold("maintenance")
                else:
                    redis.reset()
            if index == 0 and number == 30:
                cache.subscribe(told[1].append)

    with many_switches():
        assert in_threads(flap, 6) == [None] * 6
    for states in told:
        assert all(a is not b for a, b in itertools.pairwise(states))
        assert states[-1] is cache.state
    assert told[0][-len(told[1]) :] == told[1]
    assert len(told[0]) == cache.report().changes + 1


@pytest.mark.parametrize(
    ("on", "states"),
    [
        ([], None),
        (["redis"], {"well": "full"}),
        (["redis"], {"healthy": "half"}),
        (["redis"], ["healthy"]),
    ],
)
def test_what_cannot_be(health: Safehold, on: list[str], states: Any) -> None:
    """A word that means nothing is found when it is written."""
    with pytest.raises(ConfigurationError):
        health.subsystem("wrong", on=on, states=states)
    assert list(health._subsystems) == []


def test_one_name_is_one_subsystem(health: Safehold, cache: Subsystem) -> None:
    """Again with the same settings: the same; with others: an error."""
    assert health.subsystem("cache refresh", on=["redis"]) is cache
    for other in ({"on": ["api"]}, {"on": ["redis"], "states": {"unhealthy": "reduced"}}):
        with pytest.raises(ConfigurationError, match="exists already"):
            health.subsystem("cache refresh", **other)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="callable"):
        cache.subscribe("function")  # type: ignore[arg-type]

    async def callback(state: SubsystemState) -> None: ...

    with pytest.raises(ConfigurationError, match="event loop"):
        cache.subscribe(callback)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_knows_its_own_state() -> None:
    """What was healthy in the parent is unknown in the child, and its subscribers hear of it."""
    python(
        """
        import os, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from safehold import *
        home = Safehold("fork")
        shop = home.dependency("shop")
        made = home.subsystem("refresh", on=["shop"])
        told = []
        made.subscribe(told.append)
        with shop.permit():
            pass
        assert told == ["reduced", "full"]
        threading.Thread(target=made._changing.acquire).start()
        pid = os.fork()
        if pid == 0:
            assert made.state == "reduced", made
            shop.hold("maintenance")
            assert made.state == "paused"
            assert told == ["reduced", "full", "reduced", "paused"], told
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        """
    )
