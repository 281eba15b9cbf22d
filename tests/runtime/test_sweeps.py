"""A sweep destroys what was proven to be gone, twice and over watched time, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from safehold import (
    UNKNOWN,
    AsyncSweep,
    Budget,
    ConfigurationError,
    Dependency,
    GatePolicy,
    OperationBlocked,
    Safehold,
    Sweep,
    SweepReport,
    Swept,
)
from safehold._core.budget import WINDOW
from safehold._core.evidence import PRESENT
from safehold.testing.clock import ManualClock

from .support import POLICY, Down, fail, make_healthy, make_open, succeed

EVERY = 300.0


class World:
    """A store of sessions, and what a service knows of them. `down` says that the store does not answer."""

    def __init__(self, home: Safehold, kind: str, **options: Any) -> None:
        self.home = home
        self.is_async = kind == "async"
        self.alive: set[str] = set()
        self.known: list[str] = []
        self.reaped: list[str] = []
        self.asked: list[str] = []
        self.down = False
        self.says: dict[str, Any] = {}  # what the witness gives instead of the truth
        self.failing: dict[str, BaseException] = {}  # what the act raises
        self.after_act: Callable[[str], object] = lambda _: None
        self.told: list[Swept] = []
        self.nominate: Callable[[], Any] = lambda: list(self.known)
        self.reap = self._operation(**options)
        self.exists = self._witness()

    def look(self, session_id: str) -> object:
        self.asked.append(session_id)
        if self.down:
            raise Down("no answer")
        return self.says.get(session_id, session_id in self.alive)

    def end(self, session_id: str) -> None:
        if session_id in self.failing:
            raise self.failing[session_id]
        self.reaped.append(session_id)
        self.known.remove(session_id)
        self.after_act(session_id)

    def _operation(self, **options: Any) -> Any:
        gate = self.home.destructive("session.reap", subject="session_id", **options)

        async def areap(session_id: str) -> None:
            self.end(session_id)

        def reap(session_id: str) -> None:
            self.end(session_id)

        return gate(areap) if self.is_async else gate(reap)

    def _witness(self) -> Any:
        async def aexists(session_id: str) -> object:
            return self.look(session_id)

        def exists(session_id: str) -> object:
            return self.look(session_id)

        witness = self.home.witness("redis", name="session_exists")
        return witness(aexists) if self.is_async else witness(exists)

    def sweep(self, **options: Any) -> Sweep | AsyncSweep:
        options = {"every": EVERY, "progress": self.told.append, **options}
        return self.home.sweep(self.reap, nominate=lambda: self.nominate(), confirm=self.exists, **options)


def run(sweep: Sweep | AsyncSweep, **options: Any) -> SweepReport:
    if isinstance(sweep, AsyncSweep):
        return asyncio.run(sweep.run_once(**options))
    return sweep.run_once(**options)


def rounds(world: World, clock: ManualClock, sweep: Sweep | AsyncSweep, count: int) -> SweepReport:
    """Do so many rounds, `EVERY` seconds apart."""
    report = run(sweep)
    for _ in range(count - 1):
        clock.advance(EVERY)
        report = run(sweep)
    return report


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(health: Safehold, redis: Dependency, kind: str) -> World:
    make_healthy(redis)
    return World(health, kind)


def forget_limit(world: World, **options: Any) -> World:
    """Give the same world, with other options of its operation."""
    home = Safehold(
        "test", clock=world.home._engine.clock, rng=random.Random(1), gate=GatePolicy(startup_grace=0.0)
    )
    succeed(home.dependency("redis", critical=True, policy=POLICY))
    return World(home, "async" if world.is_async else "sync", **options)


# --- the way to an act --------------------------------------------------------------------------------


def test_what_is_gone_is_destroyed_in_the_second_round(world: World, clock: ManualClock) -> None:
    """Complete proof acts: found absent twice, over watched time, and once more right before the act."""
    world.known, world.alive = ["a", "b", "c"], {"b"}
    sweep = world.sweep()
    report = run(sweep)
    assert (report.nominated, report.present, report.absent, report.ripe, report.done) == (3, 1, 2, 0, 0)
    assert (report.marked, sweep.marked) == (2, 2)
    clock.advance(EVERY)
    report = run(sweep)
    assert (report.ripe, report.done, report.outcomes) == (2, 2, {"done": 2})
    assert sorted(world.reaped) == ["a", "c"]
    assert sorted(world.told) == [Swept("a", "done", ""), Swept("c", "done", "")]
    assert sweep.marked == 0
    assert report.plan is not None
    assert sorted(report.plan.subjects) == ["a", "c"]
    assert world.asked.count("a") == 3


@pytest.mark.parametrize(("apart", "done"), [(0.0, 0), (59.9, 0), (60.0, 1), (300.0, 1)])
def test_ripeness_needs_watched_time(world: World, clock: ManualClock, apart: float, done: int) -> None:
    """Two looks at once are one look."""
    world.known = ["a"]
    sweep = world.sweep(wait=60.0)
    run(sweep)
    clock.advance(apart)
    assert run(sweep).done == done


@pytest.mark.parametrize("confirmations", [1, 2, 3, 5])
def test_ripeness_needs_confirmations(world: World, clock: ManualClock, confirmations: int) -> None:
    """Time alone is no proof: however long, so many rounds have to find it absent."""
    world.known = ["a"]
    sweep = world.sweep(wait=0.0, confirmations=confirmations)
    assert rounds(world, clock, sweep, confirmations - 1).done == 0 if confirmations > 1 else True
    clock.advance(EVERY)
    assert run(sweep).done == 1


def test_long_pause_between_rounds_is_not_watched(world: World, clock: ManualClock) -> None:
    """For longer than `every`, nobody was looking."""
    world.known = ["a"]
    sweep = world.sweep(wait=2 * EVERY)
    run(sweep)
    clock.advance(100 * EVERY)
    assert run(sweep).done == 0
    clock.advance(EVERY)
    assert run(sweep).done == 1


@pytest.mark.parametrize("sign", ["present", "not nominated", "unknown"])
def test_any_sign_of_life_ends_the_mark(world: World, clock: ManualClock, sign: str) -> None:
    """What comes back, is not nominated any more, or cannot be told, is proven afresh from the start."""
    world.known = ["a"]
    sweep = world.sweep()
    run(sweep)
    clock.advance(EVERY)
    if sign == "present":
        world.alive.add("a")
    elif sign == "unknown":
        world.says["a"] = UNKNOWN
    else:
        world.known = []
    assert run(sweep).marked == 0
    world.alive.clear()
    world.says.clear()
    world.known = ["a"]
    clock.advance(EVERY)
    assert run(sweep).done == 0
    clock.advance(EVERY)
    assert run(sweep).done == 1


def look_again(world: World, answer: object) -> None:
    """Let the last look of a round, the one right before the act, find something else."""
    looks = world.look

    def look(session_id: str) -> object:
        seen = looks(session_id)
        return answer if world.asked.count(session_id) == 3 else seen

    world.look = look  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("answer", "outcome"), [(True, "spared"), (PRESENT, "spared"), (UNKNOWN, "held"), (None, "held")]
)
@pytest.mark.parametrize("evidence", [None, "session_exists"])
def test_last_look_decides(
    world: World, clock: ManualClock, answer: object, outcome: str, evidence: str | None
) -> None:
    """Ripe, and then there again, or nobody can tell: it is not destroyed, whether evidence is demanded or not."""
    world = forget_limit(world, evidence=evidence)
    world.known = ["a"]
    look_again(world, answer)
    report = rounds(world, clock, world.sweep(), 2)
    assert (report.ripe, report.outcomes, world.reaped) == (1, {outcome: 1}, [])
    clock.advance(EVERY)
    assert run(world.sweep()).done == 0


def test_one_that_cannot_be_told_does_not_hold_up_the_others(world: World, clock: ManualClock) -> None:
    """No failure, only an answer that proves nothing: the rest of the round goes on."""
    world.known = ["a", "b", "c"]
    sweep = world.sweep()
    run(sweep)
    clock.advance(EVERY)
    looks = world.look
    world.look = lambda s: UNKNOWN if s == "b" and world.asked.count("b") > 1 else looks(s)  # type: ignore[method-assign]
    report = run(sweep)
    assert sorted(world.reaped) == ["a", "c"]
    assert (report.ripe, report.outcomes) == (3, {"held": 1, "done": 2}) or report.outcomes == {"done": 2}


# --- failures -------------------------------------------------------------------------------------------


def test_round_in_which_something_failed_learns_nothing(
    world: World, clock: ManualClock, api: Dependency
) -> None:
    """One miss, of any dependency, swallowed: neither readings nor time of that round count for anybody."""
    world.known = ["a"]
    sweep = world.sweep()
    run(sweep)
    clock.advance(EVERY)
    plainly = world.nominate

    def nominate() -> Any:
        with contextlib.suppress(Down), api.permit():
            raise Down("no answer")
        return plainly()

    world.nominate = nominate
    report = run(sweep)
    assert (report.tainted, report.ripe, report.done, report.marked) == (("api",), 0, 0, 1)
    world.nominate = plainly
    clock.advance(EVERY)
    assert run(sweep).done == 0  # the time since is not watched: it began in a failed round
    clock.advance(EVERY)
    assert run(sweep).done == 1


def test_outage_is_not_watched(world: World, clock: ManualClock, redis: Dependency) -> None:
    """T07 to T12: a store that was down for an hour testifies to no hour of absence."""
    world.known = ["a"]
    sweep = world.sweep(wait=2 * EVERY)
    run(sweep)
    make_open(redis)
    world.down = True
    for _ in range(12):
        clock.advance(EVERY)
        assert run(sweep).done == 0
    world.down = False
    clock.advance(EVERY)
    succeed(redis)  # the trial
    for _ in range(6):
        if not world.reaped:
            clock.advance(EVERY)
            succeed(redis)
            run(sweep)
    assert world.reaped == ["a"]
    assert clock.monotonic() - 1000.0 >= 12 * EVERY + 600 + 2 * EVERY  # settled, and then watched


def test_miss_between_two_rounds_breaks_the_watch(
    world: World, clock: ManualClock, redis: Dependency
) -> None:
    """A call that did not answer, by anybody, and one that did: the time around it was not watched."""
    world.known = ["a"]
    sweep = world.sweep()
    run(sweep)
    clock.advance(EVERY / 2)
    fail(redis)
    succeed(redis)
    clock.advance(EVERY / 2)
    assert run(sweep).done == 0
    clock.advance(EVERY)
    assert run(sweep).done == 1


def test_miss_at_the_very_instant_of_a_look_breaks_the_watch(
    world: World, clock: ManualClock, redis: Dependency
) -> None:
    """Nobody can tell which of the two came first."""
    world.known = ["a"]
    sweep = world.sweep()
    run(sweep)
    fail(redis)
    succeed(redis)
    clock.advance(EVERY)
    assert run(sweep).done == 0


def test_source_of_the_witness_is_watched_too(
    health: Safehold, redis: Dependency, kind: str, clock: ManualClock
) -> None:
    """What the witness asks is a source, whether the operation requires it or not."""
    health.dependency("api", policy=POLICY)
    make_healthy(redis)
    succeed(health["api"])
    world = World(health, kind, requires=["api"])
    world.known = ["a"]
    sweep = world.sweep()
    run(sweep)
    clock.advance(EVERY / 2)
    fail(redis)
    succeed(redis)
    clock.advance(EVERY / 2)
    assert run(sweep).done == 0
    clock.advance(EVERY)
    assert run(sweep).done == 1


def test_population_that_is_not_believed_teaches_nothing(world: World, clock: ManualClock) -> None:
    """T28: what is hidden reads as absent; no mark ripens while the population has collapsed."""
    size = [100]
    world = forget_limit(world, budget=Budget(per_hour=10, population=lambda: size[0]))
    world.known = ["a"]
    world.alive = {"a"}
    sweep = world.sweep()
    run(sweep)
    size[0] = 50
    world.alive = set()
    for _ in range(12):
        clock.advance(EVERY)
        report = run(sweep)
        assert [reason.code for reason in report.reasons] == ["population_collapsed"]
        assert (report.ripe, report.marked) == (0, 0)
    size[0] = 99
    clock.advance(EVERY)
    assert run(sweep).done == 0
    clock.advance(EVERY)
    assert run(sweep).done == 1


def test_unexplained_epoch_teaches_nothing(world: World, clock: ManualClock) -> None:
    """A store that came back empty answers correctly; marks do not ripen in it, and older ones are void."""
    epoch = ["one"]
    home = Safehold("test", clock=clock, rng=random.Random(1), gate=GatePolicy(startup_grace=0.0))
    store = home.dependency("redis", critical=True, policy=POLICY, epoch=lambda: epoch[0])
    succeed(store)
    world = World(home, "async" if world.is_async else "sync")
    world.known = ["a"]
    sweep = world.sweep()
    run(sweep)
    epoch[0] = "two"
    for _ in range(5):
        clock.advance(EVERY)
        report = run(sweep)
        assert (report.marked, report.done) == (0, 0)
    store.acknowledge_epoch(actor="ada", reason="the loss is real")
    clock.advance(EVERY)
    assert run(sweep).done == 0
    clock.advance(EVERY)
    assert run(sweep).done == 1


@pytest.mark.parametrize(
    "nominate",
    [
        lambda: None,
        lambda: "abc",
        lambda: b"abc",
        lambda: 5,
        lambda: [None],
        lambda: ["a", ""],
        lambda: ["a", "  "],
        lambda needed: needed,
        lambda: (_ for _ in [1, 1 / 0]),
    ],
)
def test_nomination_that_fails_nominates_nobody(
    world: World, clock: ManualClock, nominate: Callable[..., Any]
) -> None:
    """T90: an error is in the report, nothing is done, and the rounds go on."""
    world.known = ["a"]
    sweep = world.sweep()
    run(sweep)
    clock.advance(EVERY)
    plainly, world.nominate = world.nominate, nominate
    report = run(sweep)
    assert report.error
    assert (report.nominated, report.done, world.reaped) == (0, 0, [])
    world.nominate = plainly
    clock.advance(EVERY)
    assert run(sweep).done == 0
    clock.advance(EVERY)
    assert run(sweep).done == 1


def test_nomination_may_be_any_series(world: World, clock: ManualClock) -> None:
    """A generator, a set, a mapping, a coroutine function or an async generator, where it can be awaited."""

    def generator() -> Iterator[str]:
        yield from list(world.known)

    async def awaited() -> Iterable[str]:
        return list(world.known)

    async def stream() -> AsyncIterator[str]:
        for name in list(world.known):
            yield name

    given: list[Callable[[], Any]] = [
        generator,
        lambda: set(world.known),
        lambda: dict.fromkeys(world.known),
        lambda: iter(list(world.known)),
        *([awaited, stream] if world.is_async else []),
    ]
    for number, nominate in enumerate(given):
        world.known, world.nominate, world.reaped = ["a", "a", "b"][1:], nominate, []
        assert rounds(world, clock, world.sweep(name=f"sweep {number}"), 2).done == 2
        clock.advance(WINDOW)


@pytest.mark.parametrize("nominate", ["awaited", "stream"])
def test_sync_sweep_cannot_await(health: Safehold, redis: Dependency, nominate: str) -> None:
    """What wants to be awaited is an error in the report, and no coroutine is left behind."""
    make_healthy(redis)
    world = World(health, "sync")

    async def awaited() -> list[str]:
        return ["a"]

    async def stream() -> AsyncIterator[str]:
        yield "a"

    world.nominate = awaited if nominate == "awaited" else stream
    assert "coroutine function" in run(world.sweep()).error


class Number:
    """A subject that is no text."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __str__(self) -> str:
        return f"n{self.number}"


def test_subjects_reach_witness_and_operation_as_they_are(
    health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """A number that became a text on the way would be found nowhere, and so would seem to be gone."""
    make_healthy(redis)
    alive, gone = {1, 2}, list[object]()
    one, two, three = 1, b"two", Number(3)

    @health.witness("redis")
    def exists(item: object) -> bool:
        return item in alive

    @health.destructive("item.drop", subject="item")
    def drop(item: object) -> None:
        gone.append(item)

    sweep = health.sweep(drop, nominate=lambda: [one, two, three], confirm=exists, every=EVERY)
    run(sweep)
    clock.advance(EVERY)
    run(sweep)
    assert set(map(id, gone)) == {id(two), id(three)}


# --- budget, plan, approval -----------------------------------------------------------------------------


def test_plan_over_the_budget_acts_on_nothing(world: World, clock: ManualClock) -> None:
    """Trip, do not clip: none of four over a limit of three, and all of three at it."""
    for count, done in ((4, 0), (3, 3)):
        fresh = forget_limit(world, budget=Budget(per_hour=3))
        fresh.known = [f"s{number}" for number in range(count)]
        report = rounds(fresh, clock, fresh.sweep(), 2)
        assert (report.ripe, report.done, len(fresh.reaped)) == (count, done, done)
        if not done:
            assert report.outcomes == {"held": 4}
            assert [reason.code for reason in report.reasons] == ["budget_tripped"]
            assert report.retry_after is None


def test_what_cannot_be_read_counts_as_nominated(world: World, clock: ManualClock) -> None:
    """An outage that hides some of a plan does not slip the rest of it under the limit."""
    world = forget_limit(world, budget=Budget(per_hour=3))
    world.known = ["a", "b", "c", "d"]
    world.says = {"d": UNKNOWN}
    report = rounds(world, clock, world.sweep(), 2)
    assert (report.ripe, report.done) == (3, 0)
    assert [reason.code for reason in report.reasons] == ["budget_tripped"]


def test_dry_run_plans_the_same_and_acts_on_nothing(world: World, clock: ManualClock) -> None:
    """T91: the same code path, the same digest."""
    world.known = ["a", "b"]
    dry, wet = world.sweep(dry_run=True, name="dry"), world.sweep(name="wet")
    run(dry)
    run(wet)
    clock.advance(EVERY)
    tried = run(dry)
    assert (tried.ripe, tried.done, world.reaped, tried.dry_run) == (2, 0, [], True)
    real = run(wet)
    assert tried.plan is not None
    assert real.plan is not None
    assert (real.plan.digest, real.done) == (tried.plan.digest, 2)


def approved(world: World, report: SweepReport, *overrides: str) -> Any:
    return world.home.grant(
        operation="session.reap",
        plan=report.plan,
        actor="ada",
        reason="the campaign is over",
        expires_in=WINDOW,
        overrides=overrides or ("budget_exceeded", "budget_tripped"),
    )


def test_person_approves_exactly_this_plan(world: World, clock: ManualClock) -> None:
    """T77: 40 percent really ended; a grant for the plan acts on these, once, and waiting did not."""
    world = forget_limit(world, budget=Budget(per_hour=3))
    world.known = [f"s{number}" for number in range(8)]
    sweep = world.sweep()
    report = rounds(world, clock, sweep, 2)
    assert report.done == 0
    clock.advance(EVERY)
    grant = approved(world, report)
    report = run(sweep, grant=grant)
    assert (report.done, len(set(world.reaped))) == (8, 8)
    assert world.home.budget("session").tripped
    forced = [entry for entry in world.home.ledger.entries("session.reap") if entry.grant == grant.id]
    assert {entry.actor for entry in forced} == {"ada"}


@pytest.mark.parametrize("change", ["more", "fewer", "other"])
def test_changed_plan_voids_an_approval(world: World, clock: ManualClock, change: str) -> None:
    """What was approved is that and nothing else."""
    world = forget_limit(world, budget=Budget(per_hour=3))
    world.known = [f"s{number}" for number in range(5)]
    sweep = world.sweep()
    if change in ("more", "other"):
        world.known.append("late")
        world.alive = {"late"} if change == "more" else {"s0"}
    report = rounds(world, clock, sweep, 2)
    grant = approved(world, report)
    world.alive = {"s1"} if change == "fewer" else set()
    clock.advance(EVERY)
    run(sweep)
    clock.advance(EVERY)
    report = run(sweep, grant=grant)
    assert (report.done, world.reaped) == (0, [])
    assert report.plan is not None
    assert report.plan.digest != grant.plan


def test_approval_lifts_only_the_rules_that_it_names(world: World, clock: ManualClock) -> None:
    """A person who approves a large plan has not approved one in an outage."""
    world = forget_limit(world, budget=Budget(per_hour=3))
    world.known = [f"s{number}" for number in range(5)]
    sweep = world.sweep()
    report = rounds(world, clock, sweep, 2)
    clock.advance(EVERY)
    grant = approved(world, report, "budget_exceeded")
    report = run(sweep, grant=grant)
    assert (report.done, world.reaped) == (0, [])
    assert [reason.code for reason in report.reasons] == ["budget_tripped"]


def test_t40_store_is_blackholed_in_the_middle(world: World, clock: ManualClock) -> None:
    """T40: fifty approved deletions, the store is gone after 17: 17 are done, 33 are held, none is asked again."""
    world = forget_limit(world, budget=Budget(per_hour=10))
    world.known = [f"s{number}" for number in range(50)]
    sweep = world.sweep()
    report = rounds(world, clock, sweep, 2)
    clock.advance(EVERY)

    def blackhole(_: str) -> None:
        world.down = len(world.reaped) == 17

    world.after_act = blackhole
    asked = len(world.asked)
    report = run(sweep, grant=approved(world, report))
    assert (report.done, len(world.reaped)) == (17, 17)
    assert (report.outcomes, report.tainted) == ({"done": 17, "held": 33}, ("redis",))
    assert len(world.asked) - asked == 50 + 17 + 1  # the first look that fails ends the round


# --- acts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(TimeoutError(), "unknown"), (Down("gone"), "unknown"), (ValueError("no"), "failed")],
)
def test_act_that_raised_is_told_and_not_repeated(
    world: World, clock: ManualClock, error: BaseException, outcome: str
) -> None:
    """A destructive call that timed out may have been done: it is proven afresh before it is tried again."""
    world.known = ["a", "b"]
    world.failing = {"a": error}
    sweep = world.sweep()
    report = rounds(world, clock, sweep, 2)
    assert report.outcomes.get("done") == 1
    assert report.outcomes.get(outcome) == 1 or outcome == "unknown"
    assert world.reaped == ["b"]
    world.failing = {}
    clock.advance(EVERY)
    assert run(sweep).done == 0
    clock.advance(EVERY)
    assert run(sweep).done == 1


def test_guarded_act_that_timed_out_ends_the_round(
    world: World, clock: ManualClock, redis: Dependency
) -> None:
    """The miss taints the round: that one is unknown, and the rest is held."""
    world.known = [f"s{number}" for number in range(6)]

    def lose(_: str) -> None:
        if len(world.reaped) == 2:
            with redis.permit():
                raise TimeoutError

    world.after_act = lose
    report = rounds(world, clock, world.sweep(), 2)
    assert report.outcomes == {"done": 1, "unknown": 1, "held": 4}
    assert len(world.reaped) == 2


def test_order_is_random(world: World, clock: ManualClock) -> None:
    """A run that stops half-way is no prefix that anybody could count on."""
    orders = set()
    for seed in range(5):
        fresh = forget_limit(world)
        fresh.home._engine.rng = random.Random(seed)
        fresh.known = [f"s{number}" for number in range(6)]
        rounds(fresh, clock, fresh.sweep(), 2)
        assert sorted(fresh.reaped) == [f"s{number}" for number in range(6)]
        orders.add(tuple(fresh.reaped))
    assert len(orders) > 1


def test_pace_lies_between_acts(world: World, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many seconds between two, none after the last."""
    paused: list[float] = []

    async def arest(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr("safehold._runtime.sweep.time.sleep", paused.append)
    monkeypatch.setattr("safehold._runtime.sweep.asyncio.sleep", arest)
    world.known = ["a", "b", "c"]
    assert rounds(world, clock, world.sweep(pace=2.5), 2).done == 3
    assert paused == [2.5, 2.5]


def test_progress_that_raises_harms_nobody(world: World, clock: ManualClock) -> None:
    """A listener is no reason to stop, nor to go on."""

    def broken(_: Swept) -> None:
        raise RuntimeError("no")

    world.known = ["a", "b"]
    assert rounds(world, clock, world.sweep(progress=broken), 2).done == 2


def test_gate_holds_what_a_sweep_would_do(world: World, clock: ManualClock) -> None:
    """Whatever the sweep thinks, the gate of the operation decides, item by item."""
    world.known = ["a", "b", "c"]
    sweep = world.sweep()
    run(sweep)
    clock.advance(EVERY)
    world.after_act = lambda _: fail(world.home["redis"])
    report = run(sweep)
    assert (report.done, report.outcomes) == (1, {"done": 1, "held": 2})
    assert sweep.marked == 2


def test_fault_of_the_state_does_not_end_the_rounds(clock: ManualClock, tmp_path: Path, kind: str) -> None:
    """A budget that cannot be written holds everything, in a report."""
    home = begun(clock, tmp_path)
    home.budget("session").reset(actor="ada", reason="first start")
    world = World(home, kind, budget=Budget(per_hour=3))
    world.known = ["a"]
    sweep = world.sweep()
    run(sweep)
    clock.advance(EVERY)
    (tmp_path / "budgets.json").unlink()
    (tmp_path / "budgets.json").mkdir()
    report = run(sweep)
    assert (report.done, [reason.code for reason in report.reasons]) == (0, ["gate_fault"])


def test_one_round_at_a_time(world: World) -> None:
    """A round within a round is an error of the program."""
    sweep = world.sweep()
    seen: list[str] = []

    def nominate() -> list[str]:
        try:
            if isinstance(sweep, Sweep):
                sweep.run_once()
            else:
                sweep.run_once().send(None)
        except ConfigurationError as error:
            seen.append(str(error))
        return []

    world.nominate = nominate
    assert not run(sweep).error
    assert "under way" in seen[0]
    assert not run(sweep).error


# --- cancellation ---------------------------------------------------------------------------------------


def test_cancelled_round_leaves_nothing_behind(
    health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """What was begun is unknown and loses its mark, the rest keeps its own, and the next round may begin at once."""
    make_healthy(redis)
    world = World(health, "async")
    world.known = ["a", "b", "c"]
    hang = asyncio.Event()

    @health.destructive("session.end", subject="session_id")
    async def end(session_id: str) -> None:
        world.reaped.append(session_id)
        if len(world.reaped) == 2:
            hang.set()
            await asyncio.Event().wait()

    sweep = health.sweep(end, nominate=lambda: world.known, confirm=world.exists, every=EVERY)

    async def main() -> None:
        await sweep.run_once()
        clock.advance(EVERY)
        task = asyncio.create_task(sweep.run_once())
        await hang.wait()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            assert sweep.marked == 1
            held_back = await sweep.run_once()  # the failed one's traceback is still alive
            assert held_back.done == 0
        else:
            pytest.fail("the cancellation was swallowed")

    asyncio.run(main())
    assert len(world.reaped) == 2
    outcomes = [entry.outcome for entry in health.ledger.entries("session.end") if entry.intent]
    assert sorted(outcomes) == ["done", "unknown"]


# --- over a restart -------------------------------------------------------------------------------------


def begun(clock: ManualClock, directory: Path, epoch: Callable[[], str] | None = None) -> Safehold:
    """A process that begins, with the state that another one has left."""
    home = Safehold("test", clock=clock, rng=random.Random(1), gate=GatePolicy(startup_grace=0.0))
    home.configure(state_dir=directory)
    succeed(home.dependency("redis", critical=True, policy=POLICY, epoch=epoch))
    return home


def restarted(
    clock: ManualClock, directory: Path, kind: str, epoch: Callable[[], str] | None = None, **options: Any
) -> World:
    world = World(begun(clock, directory, epoch), kind)
    world.known = ["a"]
    return world


def test_marks_survive_a_restart_and_its_time_does_not_count(
    clock: ManualClock, tmp_path: Path, kind: str
) -> None:
    """T85: the wait goes on where it was; the hours in which nobody looked are not watched."""
    world = restarted(clock, tmp_path, kind)
    rounds(world, clock, world.sweep(wait=2 * EVERY), 2)  # 300 s watched
    clock.advance(10 * EVERY)
    world = restarted(clock, tmp_path, kind)
    sweep = world.sweep(wait=2 * EVERY)
    assert sweep.marked == 1
    assert run(sweep).done == 0
    clock.advance(EVERY)
    assert run(sweep).done == 1


def test_marks_are_void_in_another_epoch(clock: ManualClock, tmp_path: Path, kind: str) -> None:
    """T85: the data is not the data that the marks speak of; the twin with the same data goes on."""
    epoch = ["one"]
    world = restarted(clock, tmp_path, kind, lambda: epoch[0])
    rounds(world, clock, world.sweep(wait=2 * EVERY), 2)
    world = restarted(clock, tmp_path, kind, lambda: epoch[0])
    sweep = world.sweep(wait=2 * EVERY)
    run(sweep)
    assert sweep.marked == 1
    epoch[0] = "two"
    world = restarted(clock, tmp_path, kind, lambda: epoch[0])
    sweep = world.sweep(wait=2 * EVERY)
    run(sweep)
    assert sweep.marked == 0


def test_crash_in_the_middle_leaves_no_mark_of_what_was_begun(
    clock: ManualClock, tmp_path: Path, kind: str
) -> None:
    """Nobody knows what became of it, so it is proven afresh."""
    world = restarted(clock, tmp_path, kind)
    sweep = world.sweep()
    run(sweep)
    clock.advance(EVERY)
    seen: list[int] = []
    world.after_act = lambda _: seen.append(World(begun(clock, tmp_path), kind).sweep().marked)
    assert run(sweep).done == 1
    assert seen == [0]


@pytest.mark.parametrize("raw", [b"", b"{}", b"[1, 2]", b"\xff" * 100])
def test_marks_that_cannot_be_read_are_none(
    clock: ManualClock, tmp_path: Path, kind: str, raw: bytes
) -> None:
    """What is lost is proven afresh."""
    world = restarted(clock, tmp_path, kind)
    run(world.sweep())
    (file,) = tmp_path.glob("marks-*.json")
    file.write_bytes(raw)
    world = restarted(clock, tmp_path, kind)
    sweep = world.sweep()
    assert sweep.marked == 0
    assert rounds(world, clock, sweep, 2).done == 1


def test_marks_that_cannot_be_written_do_not_come_back(
    clock: ManualClock, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has ended since must not be ripe after a restart."""
    world = restarted(clock, tmp_path, kind)
    sweep = world.sweep()
    run(sweep)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safehold._runtime.state.StateFile._write", full)
        world.alive = {"a"}
        clock.advance(EVERY)
        assert run(sweep).marked == 0
    assert restarted(clock, tmp_path, kind).sweep().marked == 0


# --- making one ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"every": 0},
        {"every": -1},
        {"wait": -1},
        {"confirmations": 0},
        {"pace": -0.1},
        {"name": ""},
        {"progress": 5},
    ],
    ids=repr,
)
def test_settings_that_make_no_sense_are_refused_at_once(world: World, wrong: dict[str, Any]) -> None:
    """At the line that makes it, not an hour later."""
    with pytest.raises(ConfigurationError):
        world.sweep(**wrong)


def test_sweep_needs_an_automatic_operation_with_a_subject_and_its_witness(
    health: Safehold, redis: Dependency
) -> None:
    """A person's wish passes what holds code back, so code must not borrow it."""
    make_healthy(redis)

    @health.witness("redis")
    def exists(s: str) -> bool:
        return True

    @health.witness("redis")
    def other(s: str) -> bool:
        return True

    def body(s: str) -> None: ...

    def make(name: str, confirm: Any = exists, **options: Any) -> None:
        health.sweep(health.destructive(name, **options)(body), nominate=list, confirm=confirm)

    make("fine", subject="s", evidence="exists")
    for number, options in enumerate(
        (
            {"subject": "s", "trigger": "requested"},
            {},
            {"subject": "s", "evidence": "other"},
            {"subject": "s", "confirm": body},
            {"subject": "s", "confirm": None},
        )
    ):
        with pytest.raises(ConfigurationError):
            make(f"wrong {number}", **options)
    with pytest.raises(ConfigurationError):
        health.sweep(body, nominate=list, confirm=exists)


def test_blocked_candidates_do_not_flood(world: World, clock: ManualClock) -> None:
    """A report names a hundred, and counts the rest."""
    world = forget_limit(world, budget=Budget(per_hour=3))
    world.known = [f"s{number}" for number in range(500)]
    report = rounds(world, clock, world.sweep(), 2)
    assert (len(report.examples), report.outcomes) == (100, {"held": 500})
    assert "500 held" in str(report)


def test_blocked_call_of_a_swept_operation_is_still_blocked(world: World) -> None:
    """A sweep opens no door for others."""
    fail(world.home["redis"])
    with pytest.raises(OperationBlocked):
        if world.is_async:
            asyncio.run(world.reap("a"))
        else:
            world.reap("a")
