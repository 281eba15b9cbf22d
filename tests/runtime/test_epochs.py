"""Data that is not the data that was known proves nothing, until it is back or a person says so."""

from __future__ import annotations

import asyncio
import random
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safehold import (
    Budget,
    ConfigurationError,
    Dependency,
    EpochReading,
    GatePolicy,
    OperationBlocked,
    Safehold,
    Scope,
)
from safehold._runtime.epochs import reading_of
from safehold.testing.clock import ManualClock

from .support import PATIENCE, Form, down, finish, make_healthy

TRIGGERS = ["automatic", "requested"]


class Store:
    """What stands for a data store: which data it is, who is there, and how it is asked."""

    def __init__(self) -> None:
        self.data: Any = "one"
        self.there: set[str] = {f"s{number}" for number in range(20)}
        self.error: Exception | None = None

    def epoch(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.data


class Service:
    def __init__(self, clock: ManualClock, store: Store, state: Path | None = None, **options: Any) -> None:
        self.health = health = Safehold(
            "s", clock=clock, rng=random.Random(1), gate=GatePolicy(startup_grace=0.0)
        )
        if state is not None:
            fresh = not state.exists()
            health.configure(state_dir=state)
            if fresh:
                health.budget("session").reset(actor="ada", reason="new")
        self.store = store
        self.redis = health.dependency("redis", critical=True, epoch=store.epoch)
        self.exists = health.witness("redis", name="exists")(lambda session: session in store.there)
        self.reaped: list[str] = []
        self.reap = health.destructive("session.reap", **{"subject": "session", **options})(
            lambda session: self.reaped.append(session)
        )
        make_healthy(self.redis)

    def tried(self, session: str = "s1") -> list[str]:
        try:
            self.reap(session)
        except OperationBlocked as blocked:
            return [reason.code for reason in blocked.reasons]
        return []


@pytest.fixture
def store() -> Store:
    return Store()


# --- asking -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_known_data_acts_and_other_data_does_not(
    gate_form: Form, health: Safehold, store: Store, trigger: str
) -> None:
    """In every form; a person ends it, and it is in the ledger."""
    redis = health.dependency("redis", critical=True, epoch=store.epoch)
    make_healthy(redis)
    ran: list[int] = []
    destroy = gate_form.gate(health, "destroy", lambda *_: ran.append(1), trigger=trigger)
    destroy()
    store.data = "two"
    for _ in range(2):
        with pytest.raises(OperationBlocked, match="acknowledge_epoch") as blocked:
            destroy()
        assert [reason.code for reason in blocked.value.reasons] == ["epoch_unexplained"]
        assert blocked.value.retry_after is None
    assert ran == [1]
    redis.acknowledge_epoch(actor="ada", reason="moved, INC-3")
    destroy()
    assert ran == [1, 1]
    (noted,) = health.ledger.entries("epoch acknowledged")
    assert (noted.actor, noted.why, noted.subject) == ("ada", "moved, INC-3", "redis")


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize(
    "trouble",
    [None, "", b"", {}, [], (), True, False, object(), ValueError("no"), TimeoutError(), {"a": object()}],
    ids=lambda trouble: type(trouble).__name__,
)
def test_what_tells_nothing_blocks(clock: ManualClock, store: Store, trouble: Any, trigger: str) -> None:
    """Nothing, an empty answer, a yes or no, whatever raises: it cannot be told, and then it can."""
    service = Service(clock, store, trigger=trigger)
    assert service.tried() == []
    if isinstance(trouble, Exception):
        store.error = trouble
    else:
        store.data = trouble
    assert service.tried() == ["epoch_unknown"]
    store.error, store.data = None, "one"
    assert service.tried() == []
    assert service.redis.epoch == 1, "a reading that fails is no change"


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        ("a", "a", "b"),
        (1, 1, 2),
        (0, 0, 1),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3}),
        (["a"], ("a",), ["b"]),
        ({"x", "y", "z"}, {"z", "y", "x"}, {"x"}),
        (b"a", b"a", b"b"),
        (uuid.UUID(int=1), uuid.UUID(int=1), uuid.UUID(int=2)),
        ("x" * 5000, "x" * 5000, "x" * 4999 + "y"),
        (1, 1, "1"),
        (EpochReading(lineage="a"), EpochReading(lineage="a"), EpochReading(lineage="b")),
    ],
)
def test_equal_values_are_one_epoch(one: Any, same: Any, other: Any) -> None:
    """Whatever order they are in; and long ones are kept short."""
    assert reading_of(one) == reading_of(same) != reading_of(other)
    assert len(reading_of(one).lineage) <= 1000


def test_a_coroutine_function_needs_an_operation_that_awaits(health: Safehold) -> None:
    """A plain operation cannot await it: blocked, with words that help; an awaited one acts."""

    async def epoch() -> str:
        await asyncio.sleep(0)
        return "one"

    redis = health.dependency("redis", critical=True, epoch=epoch)
    make_healthy(redis)
    ran: list[str] = []

    @health.destructive("plain")
    def plain() -> None:
        ran.append("plain")

    @health.destructive("awaited")
    async def awaited() -> None:
        ran.append("awaited")

    with pytest.raises(OperationBlocked, match="coroutine function") as blocked:
        plain()
    assert blocked.value.reason == "epoch_unknown"
    asyncio.run(awaited())
    assert ran == ["awaited"]
    with pytest.raises(ConfigurationError):
        health.dependency("bad", epoch="one")  # type: ignore[arg-type]


def test_a_swallowed_miss_tells_nothing(health: Safehold, api: Dependency) -> None:
    """An epoch function that turns a failure into a value is not believed while it does."""
    out = [True]

    def epoch() -> str:
        try:
            api.guard(down if out[0] else lambda: None)()
        except Exception:
            pass
        return "one"

    redis = health.dependency("redis", critical=True, epoch=epoch)
    make_healthy(redis)
    ran: list[int] = []
    destroy = health.destructive("destroy")(lambda: ran.append(1))
    with pytest.raises(OperationBlocked) as blocked:
        destroy()
    assert "epoch_unknown" in [reason.code for reason in blocked.value.reasons]
    out.clear()
    out.append(False)
    destroy()
    assert ran == [1]


def test_a_cancelled_reading_leaves_no_scope_behind(health: Safehold) -> None:
    """A task that is cancelled while the epoch is read does not act, and the next call is judged by itself."""
    hang = asyncio.Event()
    wait = [True]

    async def epoch() -> str:
        if wait[0]:
            await hang.wait()
        return "one"

    make_healthy(health.dependency("redis", critical=True, epoch=epoch))
    ran: list[int] = []

    @health.destructive("destroy")
    async def destroy() -> None:
        ran.append(1)

    async def main() -> None:
        task = asyncio.create_task(destroy())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ran == []
        wait[0] = False
        await destroy()

    asyncio.run(main())
    assert ran == [1]


# --- what a change voids ------------------------------------------------------------------------------


def test_evidence_from_before_is_void(clock: ManualClock, store: Store) -> None:
    """A failover that is explained blocks nothing, and yet what was seen before it is no proof."""
    service = Service(clock, store, evidence="exists")
    store.data = EpochReading(lineage="a")
    assert service.redis.read_epoch() == 1
    store.there.discard("s1")
    service.exists("s1")
    store.data = EpochReading(lineage="b", former=("a",))
    assert service.tried() == ["evidence_overtaken"]
    service.exists("s1")
    assert service.tried() == []
    assert service.reaped == ["s1"]


def test_the_data_that_a_witness_asks_counts_also_where_it_is_not_required(
    clock: ManualClock, store: Store
) -> None:
    """An operation that relies on other things and believes a witness of Redis relies on Redis."""
    service = Service(clock, store, evidence="exists", requires=())
    store.there.discard("s1")
    service.exists("s1")
    assert service.tried() == []
    store.data, store.there = "two", set()
    service.exists("s2")
    assert service.tried("s2") == ["evidence_overtaken"]
    service.exists("s2")
    assert service.tried("s2") == ["evidence_unknown"]
    store.error = ValueError("no")
    assert service.tried("s2") == ["evidence_unknown"]
    assert service.reaped == ["s1"]
    store.error = None
    service.redis.acknowledge_epoch(actor="ada", reason="flushed")
    assert service.tried("s2") == []


def test_a_slow_reading_does_not_undo_what_a_quick_one_found(clock: ManualClock, store: Store) -> None:
    """One thread looked before the loss and tells it after another has found it: both are blocked."""
    service = Service(clock, store)
    looked, go = threading.Event(), threading.Event()
    slow = threading.local()

    def epoch() -> Any:
        found = store.data
        if getattr(slow, "here", False):
            looked.set()
            assert go.wait(PATIENCE)
        return found

    service.redis._epoch_function = epoch
    assert service.tried() == []
    told: list[list[str]] = []

    def old() -> None:
        slow.here = True
        told.append(service.tried("old"))

    thread = threading.Thread(target=old, daemon=True)
    thread.start()
    assert looked.wait(PATIENCE)
    store.data = "two"
    assert service.tried("new") == ["epoch_unexplained"]
    go.set()
    thread.join(PATIENCE)
    assert told == [["epoch_unknown"]]
    assert service.reaped == ["s1"]
    store.data = "one"
    assert service.tried("back") == []


# --- how it ends --------------------------------------------------------------------------------------


def with_population(store: Store, *, asked: bool = True) -> Callable[[Safehold], Budget]:
    def make(health: Safehold) -> Budget:
        count: Any = lambda: len(store.there)  # noqa: E731
        return Budget(per_hour=100, share=1.0, population=health["redis"].guard(count) if asked else count)

    return make


class Counted(Service):
    """A service whose operation has a budget with a population, which is asked of the store or not."""

    def __init__(self, clock: ManualClock, store: Store, *, asked: bool = True, **more: Any) -> None:
        super().__init__(clock, store, **more)
        budget = with_population(store, asked=asked)(self.health)
        self.reap = self.health.destructive("session.sweep", subject="session", budget=budget)(
            lambda session: self.reaped.append(session)
        )


def test_the_population_is_back_and_time_has_passed(clock: ManualClock, store: Store) -> None:
    """Both: full at once is not settled, and time without the population is nothing."""
    service = Counted(clock, store)
    assert service.tried() == []
    store.data, everybody = "two", set(store.there)
    store.there = set()
    clock.advance(3600)
    assert "epoch_unexplained" in service.tried("s2")
    clock.advance(3600)
    assert "epoch_unexplained" in service.tried("s2"), "time alone is no proof"
    store.there = everybody
    store.data = "three"
    assert service.tried("s2") == ["epoch_unexplained"]
    clock.advance(29.5)
    assert service.tried("s2") == ["epoch_unexplained"]
    clock.advance(0.5)
    assert service.tried("s2") == []
    assert service.reaped == ["s1", "s2"]


def test_a_population_of_something_else_says_nothing(clock: ManualClock, store: Store) -> None:
    """That all files are there does not mean that the store's data is back."""
    service = Counted(clock, store, asked=False)
    assert service.tried() == []
    store.data = "two"
    assert service.tried("s2") == ["epoch_unexplained"]
    clock.advance(1e6)
    assert service.tried("s2") == ["epoch_unexplained"]
    service.redis.acknowledge_epoch(actor="ada", reason="real")
    assert service.tried("s2") == []


def test_acknowledging_needs_something_to_acknowledge(health: Safehold, store: Store) -> None:
    """Who and why, of a dependency that has an epoch and was read; and it is written first."""
    plain = health.dependency("plain")
    redis = health.dependency("redis", epoch=store.epoch)
    for dependency in (plain, redis):
        with pytest.raises(ConfigurationError, match="epoch"):
            dependency.acknowledge_epoch(actor="ada", reason="why")
    redis.read_epoch()
    for actor, reason in (("", "why"), ("ada", "")):
        with pytest.raises(ConfigurationError):
            redis.acknowledge_epoch(actor=actor, reason=reason)
    assert health.ledger.entries() == ()


# --- over a restart -----------------------------------------------------------------------------------


def test_a_restart_in_between_does_not_launder_a_loss(
    clock: ManualClock, store: Store, tmp_path: Path
) -> None:
    """The store was replaced while nobody looked: what was known survives."""
    state = tmp_path / "state"
    assert Service(clock, store, state).tried() == []
    assert Service(clock, store, state).tried() == [], "the same data in the next process"
    store.data = "two"
    replaced = Service(clock, store, state)
    assert replaced.tried() == ["epoch_unexplained"]
    assert Service(clock, store, state).tried() == ["epoch_unexplained"], "and in the one after"
    replaced.redis.acknowledge_epoch(actor="ada", reason="real")
    assert replaced.tried() == []
    assert Service(clock, store, state).tried() == []


def test_what_another_worker_was_told_counts_here(clock: ManualClock, store: Store, tmp_path: Path) -> None:
    """A person acknowledges once, not once for each worker."""
    one, two = (Service(clock, store, tmp_path / "state") for _ in range(2))
    assert (one.tried(), two.tried()) == ([], [])
    store.data = "two"
    assert (one.tried(), two.tried()) == (["epoch_unexplained"], ["epoch_unexplained"])
    one.redis.acknowledge_epoch(actor="ada", reason="real")
    assert (one.tried(), two.tried()) == ([], [])
    store.data = "one"
    assert (one.tried(), two.tried()) == (["epoch_unexplained"], ["epoch_unexplained"])


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "junk"])
def test_t48_lost_state_is_no_clean_slate(
    clock: ManualClock, store: Store, tmp_path: Path, damage: str
) -> None:
    """Missing, cut or changed: then nothing that is there is the known data, until a person says so."""
    state = tmp_path / "state"
    assert Service(clock, store, state).tried() == []
    file = state / "epochs.json"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "cut": file.read_bytes()[:-7], "junk": b"[1, 2]"}[damage])
    service = Service(clock, store, state)
    other = Store()
    second = service.health.dependency("sqlite", epoch=other.epoch)
    make_healthy(second)
    clean = service.health.destructive("row.delete", requires=["sqlite"])(lambda: None)
    assert service.tried() == ["epoch_unexplained"]
    service.redis.acknowledge_epoch(actor="ada", reason="looked at it")
    assert service.tried() == []
    assert Service(clock, store, state).tried() == []
    with pytest.raises(OperationBlocked) as blocked:
        clean()
    assert blocked.value.reason == "epoch_unexplained", "one acknowledgement speaks for one dependency"
    second.acknowledge_epoch(actor="ada", reason="looked at it")
    clean()


def test_state_that_cannot_be_written(
    clock: ManualClock, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told and harms nobody; the next process is as careful as with what it had before."""
    state = tmp_path / "state"
    service = Service(clock, store, state)
    assert service.tried() == []
    store.data = EpochReading(lineage="b", former=('"one"',))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(service.health._records._epochs), "update", full)
        assert service.redis.read_epoch() == 2
    assert service.tried() == []
    store.data = EpochReading(lineage="c", former=("b",))
    assert Service(clock, store, state).tried() == ["epoch_unexplained"]


def test_a_dropped_scope_of_an_epoch() -> None:
    """Reading leaves nothing open."""
    clock = ManualClock()
    service = Service(clock, Store())
    service.redis.read_epoch()
    with Scope("mine") as mine:
        assert list(mine.lineage()) == [mine]
    assert finish(service.redis.aread_epoch()) == 1
