"""Probes on demand, what depends on what, waiting for a state, and events to iterate over."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise
from typing import Any

import pytest

from safehold import (
    UNKNOWN,
    BreakerPolicy,
    Budget,
    ConfigurationError,
    Dependency,
    DependencyUnhealthy,
    HealthState,
    OperationBlocked,
    Safehold,
)
from safehold.testing.clock import ManualClock

from .support import POLICY, Down, fail, make_healthy, make_open, succeed


def probed(
    health: Safehold, name: str = "api", answers: list[Any] | None = None, **options: Any
) -> Dependency:
    """Declare a dependency whose probe pops its answers; the last one stays."""
    left = [True] if answers is None else answers

    def probe() -> Any:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return health.dependency(name, policy=POLICY, probe=probe, **options)


# --- a probe now --------------------------------------------------------------------------------------


def test_a_probe_now_tells_what_it_found(health: Safehold) -> None:
    """Of a dependency that nobody has called yet, good and bad."""
    assert probed(health) is health["api"]
    assert health.probe_now("api").result(10) is HealthState.HEALTHY
    probed(health, "db", [Down("no answer")])
    assert health.probe_now("db").result(10) is HealthState.DEGRADED


def test_a_probe_now_does_not_wait_for_the_cooldown(health: Safehold) -> None:
    """Somebody has mended it and wants to see; a probe that fails opens the breaker again."""
    api = probed(health, answers=[Down("no answer"), True])
    make_open(api)
    assert health.probe_now("api").result(10) is HealthState.UNHEALTHY
    assert api.retry_after == 20.0, "a failed probe is a failed recovery"
    assert health.probe_now("api").result(10) is HealthState.RECOVERING
    assert api.breaker == "closed"


def test_a_probe_now_can_be_awaited(health: Safehold) -> None:
    """In a loop of its own, with a coroutine function, by several at once."""
    asked: list[int] = []

    async def probe() -> None:
        asked.append(1)
        await asyncio.sleep(0)

    health.dependency("api", probe=probe)

    async def main() -> list[HealthState]:
        first, second = health.probe_now("api"), health.probe_now("api")
        return [await first, await second]

    assert asyncio.run(main()) == [HealthState.HEALTHY] * 2
    assert asked == [1], "one that is under way answers for all"


def test_a_probe_now_with_a_prober_running(health: Safehold) -> None:
    """The prober makes it; on a thread and in a loop."""
    probed(health)
    with health.running():
        assert health.probe_now("api").result(10) is HealthState.HEALTHY

    async def main() -> HealthState:
        async with health.running():
            return await health.probe_now("api")

    assert asyncio.run(main()) is HealthState.HEALTHY


def test_a_probe_now_needs_a_probe_and_no_hold(health: Safehold, redis: Dependency) -> None:
    """What cannot be done is said at once."""
    with pytest.raises(ConfigurationError, match="redis has no probe"):
        health.probe_now("redis")
    api = probed(health)
    api.hold("maintenance")
    with pytest.raises(ConfigurationError, match="api is held"):
        health.probe_now("api")


# --- what depends on what -----------------------------------------------------------------------------


def test_a_dependent_names_the_root_of_its_trouble(health: Safehold) -> None:
    """The API behind the socket needs Redis: there is one outage, and it is Redis's."""
    redis = probed(health, "redis")
    api = probed(health, "api", depends_on=["redis"])
    page = probed(health, "page", depends_on=["api"])
    for dependency in (redis, api, page):
        make_open(dependency)
    report = health.status().dependencies
    assert [report[name].because for name in ("redis", "api", "page")] == [None, "redis", "redis"]
    assert report["page"].depends_on == ("api",)
    redis.reset()
    assert health.status().dependencies["page"].because == "api"


def test_the_root_is_probed_first(health: Safehold, clock: ManualClock) -> None:
    """As long as it is down, what depends on it is not asked; then it is, at once."""
    order: list[str] = []
    state = {"redis": False}

    def probe(name: str) -> Any:
        def ask() -> bool:
            order.append(name)
            return state.get(name, True) and state["redis"]

        return ask

    for name, roots in (("api", ["redis"]), ("redis", [])):
        make_open(health.dependency(name, policy=POLICY, probe=probe(name), depends_on=roots))
    told = threading.Semaphore(0)
    health.subscribe(lambda _: told.release())
    with health.running():
        clock.advance(10)
        while health["redis"].retry_after != 20.0:
            assert told.acquire(timeout=10)
        assert order == ["redis"]
        state["redis"] = True
        clock.advance(20)
        while health["api"].breaker != "closed":
            assert told.acquire(timeout=10)
    assert order == ["redis", "redis", "api"]


def test_a_dependency_cannot_need_itself(health: Safehold) -> None:
    """Neither at once nor in the end."""
    health.dependency("a", depends_on=["b"])
    health.dependency("b", depends_on=["c"])
    with pytest.raises(ConfigurationError, match="leads back to 'c'"):
        health.dependency("c", depends_on=["a"])
    with pytest.raises(ConfigurationError, match="leads back"):
        health.dependency("d", depends_on=["d"])
    with pytest.raises(ConfigurationError, match="list of dependency names"):
        health.dependency("e", depends_on="redis")


# --- waiting ------------------------------------------------------------------------------------------


def test_waiting_ends_when_the_state_has_come(health: Safehold, redis: Dependency) -> None:
    """At once where it is there, else with the event that brings it."""
    assert health.wait_until("redis", "unknown")
    make_healthy(redis)
    waiting = threading.Thread(
        target=lambda: results.append(health.wait_until("redis", ["unhealthy"], timeout=60))
    )
    results: list[bool] = []
    waiting.start()
    make_open(redis)
    waiting.join(10)
    assert results == [True]


def test_waiting_has_an_end(health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    """By the clock of the Safehold; zero seconds ask once."""
    assert not health.wait_until("redis", "healthy", timeout=0)
    results: list[bool] = []
    waiting = threading.Thread(
        target=lambda: results.append(health.wait_until("redis", "healthy", timeout=30))
    )
    waiting.start()
    while waiting.is_alive():
        clock.advance(10)
        waiting.join(0.05)
    assert results == [False]


def test_waiting_sees_what_comes_with_time(health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    """The end of a settle time is no call's doing, and nobody else looks."""
    make_open(redis)
    clock.advance(10)
    succeed(redis)
    succeed(redis)
    assert redis.state is HealthState.RECOVERING
    results: list[bool] = []
    waiting = threading.Thread(
        target=lambda: results.append(health.wait_until("redis", "healthy", timeout=3600))
    )
    waiting.start()
    while waiting.is_alive():
        clock.advance(5)
        waiting.join(0.05)
    assert results == [True]


def test_a_task_waits_without_blocking_its_loop(health: Safehold, redis: Dependency) -> None:
    """The failure comes from the very loop that waits."""

    async def main() -> tuple[bool, bool]:
        wait = asyncio.create_task(health.await_until("redis", "degraded", timeout=60))
        await asyncio.sleep(0)
        fail(redis)
        return await wait, await health.await_until("redis", "healthy", timeout=0)

    assert asyncio.run(main()) == (True, False)


@pytest.mark.parametrize("state", ["fine", [], ["healthy", "fine"]])
def test_a_state_that_there_is_not(health: Safehold, state: Any) -> None:
    """Nobody waits for a slip of the pen for ever."""
    with pytest.raises(ConfigurationError, match="state must be one or several of"):
        health.wait_until("redis", state)


# --- events -------------------------------------------------------------------------------------------


def test_events_come_in_order_and_end(health: Safehold, redis: Dependency) -> None:
    """From threads as well; closing ends the iteration, and what waits is still given."""

    async def main() -> list[str]:
        told: list[str] = []
        async with health.events() as events:
            await asyncio.to_thread(make_open, redis)
            async for event in events:
                told.append(str(event.after))
                if told[-1] == "unhealthy":
                    redis.reset()
                    events.close()
        return told

    assert asyncio.run(main()) == ["degraded", "unhealthy", "recovering"]


def test_events_that_nobody_takes_are_dropped_and_counted(health: Safehold, redis: Dependency) -> None:
    """The newest stay."""
    events = health.events(most=2)
    make_open(redis)
    redis.reset()
    assert events.dropped == 1

    async def main() -> list[str]:
        events.close()
        return [str(event.after) async for event in events]

    assert asyncio.run(main()) == ["unhealthy", "recovering"]


# --- the status ---------------------------------------------------------------------------------------


def test_the_status_tells_loops_limiters_subsystems_and_blocks(
    health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """What is slowed down, held back or blocked at present, and why; a block is told for a minute."""
    loop = health.pace("redis", every=5, name="refresh")
    health.limiter("redis", 3)
    health.subsystem("cache", on=["redis"])
    reap = health.destructive("session.reap")(lambda: None)
    rounds = iter(loop)
    next(rounds)
    make_open(redis)
    with pytest.raises(OperationBlocked):
        reap()
    report = health.status()
    assert report.blocked["session.reap"][0] == "dependency_unhealthy"
    assert [(told.name, told.running) for told in report.loops] == [("refresh", True)]
    assert [(told.dependency, told.concurrency) for told in report.limiters] == [("redis", 3)]
    assert [(told.name, told.state) for told in report.subsystems] == [("cache", "paused")]
    assert loop.name == "refresh"
    clock.advance(61)
    assert health.status().blocked == {}


def test_a_status_is_told_again_until_something_changes(
    health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """The very same report; a call, an event, or time makes a new one."""
    first = health.status()
    assert health.status() is first
    make_healthy(redis)
    second = health.status()
    assert second is not first
    succeed(redis)
    third = health.status()
    assert third.dependencies["redis"].successes == 2
    clock.advance(0.1)
    assert health.status() is not third


def test_a_check_sees_a_budget_that_has_tripped(health: Safehold) -> None:
    """A preflight that says yes where the act is sure to be blocked would be none; it nominates nothing."""
    reap = health.destructive(
        "session.reap", subject="sid", requires=(), budget=Budget(per_hour=1, hard_cap=2)
    )(lambda sid: None)
    for _ in range(5):
        assert health.check("session.reap", "s1")
    reap("s1")
    with pytest.raises(OperationBlocked):
        reap("s2")
    assert [reason.code for reason in health.check("session.reap", "s3").reasons] == ["budget_tripped"]
    health.budget("session").reset(actor="ops", reason="seen")
    reap("s3")
    assert [reason.code for reason in health.check("session.reap", "s4").reasons] == ["hard_cap"]


def test_an_act_that_was_never_begun_uses_no_budget_up(health: Safehold, monkeypatch: Any) -> None:
    """A ledger that cannot be written blocks; when it can again, the cap is as it was."""
    reap = health.destructive(
        "x.reap", trigger="requested", requires=(), budget=Budget(per_hour=1, hard_cap=2)
    )(lambda: "done")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(health.ledger, "intent", full)
        for _ in range(5):
            with pytest.raises(OperationBlocked, match="cannot be written to the ledger"):
                reap()
    assert health.budget("x").acts == 0
    assert [reap(), reap()] == ["done", "done"]
    with pytest.raises(OperationBlocked, match="exceed the cap"):
        reap()


def test_an_outage_of_a_round_trips_no_budget(health: Safehold) -> None:
    """What did not answer says nothing about how much there is to do; what answers "cannot tell" does."""
    never = BreakerPolicy(failures=None, failure_rate=None)
    db = health.dependency("db", critical=True, policy=never)
    make_healthy(db)
    answers: list[Any] = [TimeoutError()]

    @health.witness("db")
    def gone(sid: str) -> Any:
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]

    reap = health.destructive("x.reap", subject="sid", evidence="gone", budget=Budget(per_hour=5))(
        lambda sid: None
    )
    everybody = [f"s{number}" for number in range(11)]
    sweep = health.sweep(reap, nominate=lambda: everybody, confirm=gone, wait=0, confirmations=1)
    report = sweep.run_once()
    assert (report.tainted, report.unknown, health.budget("x").tripped) == (("db",), 11, None)
    answers[0] = True
    for _ in range(2):
        succeed(db)
        assert sweep.run_once().present == 11
    assert health.budget("x").nominated == 0
    answers[0] = UNKNOWN
    sweep.run_once()
    assert health.budget("x").tripped is not None, "eleven that cannot be told are eleven"


def test_a_sweep_that_its_budget_holds_back_is_told(health: Safehold) -> None:
    """To listeners, in the ledger, in the status, and to who asked for progress."""
    db = health.dependency("db", critical=True)
    make_healthy(db)
    gone = health.witness("db", name="gone")(lambda sid: False)
    reap = health.destructive("x.reap", subject="sid", evidence="gone", budget=Budget(per_hour=2))(
        lambda sid: None
    )
    told: list[Any] = []
    swept: list[Any] = []
    health.subscribe(told.append)
    sweep = health.sweep(
        reap, nominate=lambda: ["a", "b", "c"], confirm=gone, wait=0, confirmations=1, progress=swept.append
    )
    assert sweep.run_once().done == 0
    assert [event.verdict.reasons[0].code for event in told] == ["budget_exceeded"]
    assert health.status().blocked == {"x.reap": ("budget_exceeded",)}
    assert [one.outcome for one in swept] == ["held"] * 3


# --- fleet manners ------------------------------------------------------------------------------------


def refused(dependency: Dependency, times: int) -> list[DependencyUnhealthy]:
    errors: list[DependencyUnhealthy] = []
    for _ in range(times):
        try:
            succeed(dependency)
        except DependencyUnhealthy as error:
            errors.append(error)
    return errors


def test_refused_callers_are_told_to_come_back_one_after_the_other(
    health: Safehold, clock: ManualClock
) -> None:
    """Nobody earlier than may be, all within the share, evenly; and the same error says the same twice."""
    policy = POLICY.model_copy(update={"spread": 0.5})
    api = health.dependency("api", policy=policy)
    make_open(api)
    errors = refused(api, 100)
    waits = sorted(error.retry_after or 0.0 for error in errors)
    assert waits == sorted(error.retry_after or 0.0 for error in errors)
    assert waits[0] == 10.0
    assert 14.5 < waits[-1] < 15.0
    gaps = [later - earlier for earlier, later in pairwise(waits)]
    assert max(gaps) < 0.15
    clock.advance(5)
    assert min(error.retry_after or 0.0 for error in errors) == 5.0


def test_without_a_spread_all_are_told_the_same(health: Safehold, api: Dependency) -> None:
    """That is the default: the instant of the next trial."""
    make_open(api)
    assert {error.retry_after for error in refused(api, 20)} == {10.0}
