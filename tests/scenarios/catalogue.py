"""The scenarios: what must not destroy anything, each with its twin in which the proof is complete.

A scenario gets a maker of worlds and asserts on what the server has left. `without` names the rules whose
absence it notices: with one of them switched off, it fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from safehold import Budget, ConfigurationError, EpochReading, OperationBlocked, combine
from safehold._core.evidence import ABSENT, PRESENT, UNKNOWN

from .world import World, tried

Make = Callable[..., World]


class Scenario(NamedTuple):
    """One scenario: its id, what it tells, the rules that it needs, and what happens."""

    id: str
    told: str
    without: tuple[str, ...]
    happen: Callable[[Make], None]


SCENARIOS: list[Scenario] = []


def scenario(name: str, *without: str) -> Callable[[Callable[[Make], None]], Callable[[Make], None]]:
    def note(happen: Callable[[Make], None]) -> Callable[[Make], None]:
        told = (happen.__doc__ or "").strip().splitlines()[0]
        SCENARIOS.append(Scenario(name, told, without, happen))
        return happen

    return note


# --- evidence -----------------------------------------------------------------------------------------


@scenario("T02", "evidence_unknown")
def unknown_outranks_absent(make: Make) -> None:
    """Absent, absent, unknown in any order is unknown, and with one present it is present."""
    world = make()
    (session,) = world.open_sessions()
    answers: dict[str, Any] = {"a": ABSENT, "b": ABSENT, "c": UNKNOWN}
    asked = [
        world.health.witness("redis", name=name)(lambda session_id, name=name: answers[name])
        for name in answers
    ]
    for first in range(3):
        seen = [ask(session) for ask in (*asked[first:], *asked[:first])]
        assert combine(seen).presence is UNKNOWN
    overall = world.health.witness("redis", name="overall")(
        lambda session_id: combine(ask(session_id) for ask in asked)
    )
    reap = world.operation(evidence="overall")
    with world.health.scope():
        overall(session)
        assert tried(reap, session) == ["evidence_unknown"]
    assert world.left() == {session}
    answers["b"] = PRESENT
    assert combine(ask(session) for ask in asked).presence is PRESENT
    answers.update(b=ABSENT, c=ABSENT)
    with world.health.scope():
        overall(session)
        assert tried(reap, session) == []
    assert world.left() == set()


@scenario("T06")
def a_swallowed_time_out(make: Make) -> None:
    """A client's time-out is no builtin TimeoutError, a broad handler swallows it, and "gone" is deleted."""
    world = make()
    ids = world.open_sessions(3)
    world.beat("s0", "s1")
    reap = world.operation()
    with world.proxy.hang(), world.health.scope("sweep"):
        gone = [session for session in ids if not world.has_heartbeat(session)]
        assert gone == ids
        for session in gone:
            tried(reap, session)
    assert world.left() == set(ids)
    world.client = world.connect()
    world.see()
    world.clock.advance(700)
    world.see()
    with world.health.scope("sweep"):
        for session in ids:
            if not world.has_heartbeat(session):
                tried(reap, session)
    assert world.left() == {"s0", "s1"}


@scenario("T66", "scope_tainted")
def an_empty_listing_that_was_a_failure(make: Make) -> None:
    """The listing times out and becomes `[]`; a later call answers, and everything that was not listed goes."""
    world = make()
    ids = world.open_sessions(3)
    reap = world.operation()

    def sweep() -> None:
        with world.health.scope("sweep"):
            try:
                live = [key.decode().removeprefix("session:") for key in world.client.keys("session:*")]
            except redis.RedisError:
                live = []
            world.proxy.clear()
            world.client = world.connect()
            world.see()
            for session in (*ids, "s9"):
                if session not in live:
                    tried(reap, session)

    world.proxy.hang()
    sweep()
    assert world.left() == set(ids)
    world.raw.set("session:s9", "here")
    live_again = [*ids]
    world.raw.rename("session:s9", "closed:s9")
    with world.health.scope("sweep"):
        world.see()
        assert tried(reap, live_again[0]) == []
    assert world.left() == {"s1", "s2"}


@scenario("T06-first", "unresolved_miss", "recent_miss")
def the_first_time_out_without_a_scope(make: Make) -> None:
    """One time-out trips no breaker; without a scope the whole process remembers it."""
    world = make()
    (session,) = world.open_sessions()
    reap = world.operation()
    with world.proxy.hang():
        assert not world.has_heartbeat(session)
    assert world.redis.breaker == "closed"
    wanted = {"unresolved_miss", "recent_miss", "dependency_degraded"}
    codes = set(tried(reap, session))
    assert "recent_miss" in codes
    assert "unresolved_miss" in codes
    assert codes <= wanted
    assert world.left() == {session}
    world.clock.advance(61)
    assert "unresolved_miss" in tried(reap, session), "time alone is no proof"
    world.client = world.connect()
    world.see()
    assert tried(reap, session) == []
    assert world.left() == set()


@scenario("T12", "evidence_missing")
def a_source_that_was_never_asked(make: Make) -> None:
    """Never read and read and empty are different: only the second can prove anything."""
    world = make()
    (session,) = world.open_sessions()
    heartbeat, reap = world.witness(), world.operation(evidence="heartbeat")
    with world.health.scope():
        assert tried(reap, session) == ["evidence_missing"]
        assert world.left() == {session}
        heartbeat("another")
        assert tried(reap, session) == ["evidence_missing"], "about this very subject"
        heartbeat(session)
        assert tried(reap, session) == []
    assert world.left() == set()


@scenario("T59", "evidence_present")
def a_sign_of_life(make: Make) -> None:
    """Whatever nominated it: a subject that shows signs of life is not destroyed."""
    world = make()
    (session,) = world.open_sessions()
    world.beat(session)
    heartbeat, reap = world.witness(), world.operation(evidence="heartbeat")
    with world.health.scope():
        heartbeat(session)
        assert tried(reap, session) == ["evidence_present"]
    assert world.left() == {session}
    world.raw.delete(f"heartbeat:{session}")
    with world.health.scope():
        heartbeat(session)
        assert tried(reap, session) == []
    assert world.left() == set()


@scenario("T37", "evidence_stale")
def evidence_grows_old(make: Make) -> None:
    """What was proven is proven for five seconds."""
    world = make()
    (session,) = world.open_sessions()
    heartbeat, reap = world.witness(), world.operation(evidence="heartbeat")
    with world.health.scope():
        heartbeat(session)
        world.clock.advance(5.1)
        assert tried(reap, session) == ["evidence_stale"]
        assert world.left() == {session}
        heartbeat(session)
        world.clock.advance(5)
        assert tried(reap, session) == []
    assert world.left() == set()


@scenario("T42", "evidence_overtaken")
def a_blip_between_the_look_and_the_act(make: Make) -> None:
    """A short failure after the evidence was gathered makes it worthless, whatever answered since."""
    world = make(implicit_scope=0.0)
    (session,) = world.open_sessions()
    heartbeat, reap = world.witness(), world.operation(evidence="heartbeat")
    heartbeat(session)
    with world.proxy.reset(), contextlib.suppress(redis.RedisError):
        world.client.ping()
    world.see()
    assert tried(reap, session) == ["evidence_overtaken"]
    assert world.left() == {session}
    world.clock.advance(1)
    heartbeat(session)
    assert tried(reap, session) == []
    assert world.left() == set()


@scenario("T69", "evidence_foreign")
def a_retry_keeps_the_evidence_of_its_first_attempt(make: Make) -> None:
    """A retry around a sweep carries evidence over from an attempt that failed: it has to ask again."""
    world = make()
    (session,) = world.open_sessions()
    heartbeat, reap = world.witness(), world.operation(evidence="heartbeat")
    asked: list[Any] = []

    def attempt() -> list[str]:
        with world.health.scope("attempt"):
            if not asked:
                asked.append(heartbeat(session))
                msg = "the rest of the attempt failed"
                raise ValueError(msg)
            return tried(reap, session)

    with contextlib.suppress(ValueError):
        attempt()
    assert attempt() == ["evidence_foreign"]
    assert world.left() == {session}
    with world.health.scope("attempt"):
        heartbeat(session)
        assert tried(reap, session) == []
    assert world.left() == set()


# --- outages, recovery, start --------------------------------------------------------------------------


@scenario("T07", "dependency_unhealthy")
def an_open_breaker(make: Make) -> None:
    """While the breaker is open nothing is destroyed, on a person's wish neither."""
    world = make()
    (session,) = world.open_sessions()
    reap = world.operation()
    stop = world.operation("session.terminate", trigger="requested")
    world.redis.trip()
    with world.health.scope():
        assert tried(reap, session) == tried(stop, session) == ["dependency_unhealthy"]
    assert world.left() == {session}
    world.redis.reset()
    world.clock.advance(700)
    world.see()
    with world.health.scope():
        assert tried(stop, session) == []
    assert world.left() == set()


@scenario("T41", "dependency_recovering")
def everything_is_stale_right_after_recovery(make: Make) -> None:
    """Every heartbeat is over its limit, every read succeeds, and the outage was a second ago."""
    world = make()
    ids = world.open_sessions(3)
    reap = world.operation()
    world.redis.trip()
    world.clock.advance(100)
    for _ in range(3):
        world.see()
    with world.health.scope("sweep"):
        for session in ids:
            assert not world.has_heartbeat(session), "nobody could write one"
            assert tried(reap, session) == ["dependency_recovering"]
    assert world.left() == set(ids)
    world.clock.advance(100)
    world.beat("s0")
    world.see()
    with world.health.scope("sweep"):
        for session in ids:
            if not world.has_heartbeat(session):
                assert tried(reap, session) == []
    assert world.left() == {"s0"}


@scenario("T45", "startup_grace")
def the_service_has_just_begun(make: Make) -> None:
    """A process that has just begun has seen nothing yet."""
    world = make(startup_grace=30.0)
    (session,) = world.open_sessions()
    reap = world.operation()
    with world.health.scope():
        assert tried(reap, session) == ["startup_grace"]
        assert world.left() == {session}
        world.clock.advance(30)
        assert tried(reap, session) == []
    assert world.left() == set()


@scenario("T46", "dependency_unknown")
def nothing_has_answered_yet(make: Make) -> None:
    """Nothing is known of a dependency that has never answered."""
    world = make()
    world.raw.set("session:s0", "here")
    reap = world.operation()
    with world.health.scope():
        assert tried(reap, "s0") == ["dependency_unknown"]
    assert world.left() == {"s0"}
    world.see()
    with world.health.scope():
        assert tried(reap, "s0") == []
    assert world.left() == set()


@scenario("T-degraded", "dependency_degraded")
def a_dependency_that_answers_badly(make: Make) -> None:
    """Half of the calls fail: it is up, and what it says is not to be relied on."""
    world = make()
    (session,) = world.open_sessions()
    reap = world.operation()
    world.redis._impair("node a", redis_cause())
    with world.health.scope():
        assert tried(reap, session) == ["dependency_degraded"]
    assert world.left() == {session}
    world.redis._mend("node a")
    with world.health.scope():
        assert tried(reap, session) == []
    assert world.left() == set()


def redis_cause() -> Any:
    from safehold import Cause

    return Cause(code="lost", text="it is gone")


@scenario("T-writes", "writes_refused")
def a_server_that_refuses_writes(make: Make) -> None:
    """A replica that was not promoted yet: reads go on, and a wish that has to write is refused."""
    world = make()
    (session,) = world.open_sessions()
    stop = world.operation("session.terminate", trigger="requested", writes=["redis"])
    world.redis.report("failure", cause="READONLY", writes=True)
    with world.health.scope():
        assert tried(stop, session) == ["writes_refused"]
    assert world.left() == {session}
    world.redis.report("success", writes=True)
    with world.health.scope():
        assert tried(stop, session) == []
    assert world.left() == set()


# --- the data -----------------------------------------------------------------------------------------


def with_epoch(world: World) -> None:
    """Declare what the data is known by, as a service would: a canary that nobody recreates."""
    world.raw.set("canary", "first")
    world.health.dependency("data", epoch=lambda: epoch_of(world))
    with world.health["data"].permit():
        world.raw.ping()


def epoch_of(world: World) -> EpochReading:
    canary = world.client.get("canary")
    doubt = "" if canary else "the canary is missing"
    return EpochReading(lineage=f"canary {canary!r}", doubt=doubt)


@scenario("T30", "epoch_unexplained")
def a_store_that_came_back_empty(make: Make) -> None:
    """FLUSHDB: the server runs, answers, and says truthfully that nothing is there."""
    world = make()
    ids = world.open_sessions(2)
    with_epoch(world)
    heartbeat = world.witness()
    reap = world.operation(requires=["redis", "data"], evidence="heartbeat")
    with world.health.scope():
        heartbeat("s1")
        assert tried(reap, "s1") == []
    world.raw.flushdb()
    world.raw.set("session:s0", "re-registered")
    with world.health.scope():
        heartbeat("s0")
        assert "epoch_unexplained" in tried(reap, "s0")
        heartbeat("s0")
        assert tried(reap, "s0") == ["epoch_unexplained"]
    assert world.left() == {"s0"}
    world.health["data"].acknowledge_epoch(actor="ops", reason="flushed on purpose")
    with world.health.scope():
        heartbeat(ids[0])
        assert tried(reap, ids[0]) == []
    assert world.left() == set()


@scenario("T31", "epoch_unknown")
def an_epoch_that_cannot_be_read(make: Make) -> None:
    """Which data it is cannot be told: that is no proof that it is the data that was known."""
    world = make()
    (session,) = world.open_sessions()
    broken: list[int] = [1]

    def epoch() -> str:
        if broken:
            msg = "INFO is forbidden"
            raise PermissionError(msg)
        return "first"

    world.health.dependency("data", epoch=epoch)
    with world.health["data"].permit():
        pass
    reap = world.operation(requires=["redis", "data"])
    with world.health.scope():
        assert tried(reap, session) == ["epoch_unknown"]
    assert world.left() == {session}
    broken.clear()
    with world.health.scope():
        assert tried(reap, session) == []
    assert world.left() == set()


# --- how much -----------------------------------------------------------------------------------------


@scenario("T72", "budget_tripped")
def a_little_every_minute(make: Make) -> None:
    """Nine in a hundred, again and again: the hour counts, and the trip stays."""
    world = make()
    ids = world.open_sessions(100)
    reap = world.operation(budget=world.budget(None))
    for minute in range(10):
        with world.health.scope("sweep"):
            for session in ids[9 * minute : 9 * minute + 9]:
                tried(reap, session)
        world.clock.advance(60)
    assert len(world.left()) == 90, "a tenth, and no more"
    world.clock.advance(3600)
    world.see()
    with world.health.scope("sweep"):
        assert tried(reap, ids[99]) == ["budget_tripped"], "waiting does not end it"
        world.health.budget("session").reset(actor="ops", reason="a campaign has ended")
        assert tried(reap, ids[99]) == []
    assert len(world.left()) == 89


@scenario("T143", "budget_exceeded")
def plans_in_slices(make: Make) -> None:
    """Slices of a large plan, and other names for the same operation, count together."""
    world = make()
    ids = world.open_sessions(200)
    one = world.operation(budget=world.budget(10))
    world.operation("session.close", budget=world.budget(10))
    assert world.health.plan("session.reap", ids[:8])
    with world.health.scope():
        for session in ids[:8]:
            assert tried(one, session) == []
    over = world.health.plan("session.close", ids[8:16])
    assert [reason.code for reason in over.reasons] == ["budget_exceeded"]
    assert len(world.left()) == 192


@scenario("T75", "small_population")
def two_of_a_few(make: Make) -> None:
    """Of fewer than ten, one goes in a window."""
    world = make()
    ids = world.open_sessions(5)
    reap = world.operation(budget=world.budget())
    with world.health.scope():
        assert tried(reap, ids[0]) == []
        assert tried(reap, ids[1]) == ["small_population"]
        assert len(world.left()) == 4
        world.clock.advance(3601)
        world.see()
    with world.health.scope():
        assert tried(reap, ids[1]) == []
    assert len(world.left()) == 3


@scenario("T76", "last_member")
def the_last_one(make: Make) -> None:
    """Nothing would be left: somebody has to say that this is normal."""
    world = make()
    (session,) = world.open_sessions()
    reap = world.operation(budget=world.budget())
    empty = world.operation("session.close", budget=world.budget(zero_ok=True))
    with world.health.scope():
        assert tried(reap, session) == ["last_member"]
        assert world.left() == {session}
        assert tried(empty, session) == []
    assert world.left() == set()


@scenario("T27", "population_collapsed")
def a_population_that_collapses(make: Make) -> None:
    """Storage is unmounted, the listing is empty, and the status is 200."""
    world = make()
    ids = world.open_sessions(40)
    seen: list[Any] = [ids]
    reap = world.operation(budget=world.budget().__class__(population=lambda: seen[0]))
    with world.health.scope():
        assert tried(reap, ids[0]) == []
        seen[0] = ids[:20]
        assert tried(reap, ids[1]) == ["population_collapsed"]
        seen[0] = []
        assert "population_collapsed" in tried(reap, ids[1])
        assert len(world.left()) == 39
        seen[0] = ids[1:]
        assert tried(reap, ids[1]) == []
    assert len(world.left()) == 38


@scenario("T74", "population_unknown")
def a_population_that_cannot_be_counted(make: Make) -> None:
    """How many there are is asked of the very store that is down."""
    world = make()
    ids = world.open_sessions(40)
    answers: list[Any] = [None]
    reap = world.operation(budget=world.budget().__class__(population=lambda: answers[0]))
    with world.health.scope():
        assert tried(reap, ids[0]) == ["population_unknown"]
        assert len(world.left()) == 40
        answers[0] = 40
        assert tried(reap, ids[0]) == []
    assert len(world.left()) == 39


@scenario("T111", "hard_cap")
def a_person_has_a_cap_too(make: Make) -> None:
    """Whoever asks: so many in an hour and no more, by grant neither."""
    world = make()
    ids = world.open_sessions(20)
    stop = world.operation(
        "session.terminate", trigger="requested", budget=world.budget().__class__(per_hour=2, hard_cap=3)
    )
    assert [tried(stop, session) for session in ids[:4]] == [[], [], [], ["hard_cap"]]
    assert len(world.left()) == 17
    try:
        world.health.grant(
            operation="session.terminate", subjects=ids, actor="ops", reason="x", overrides=["hard_cap"]
        )
    except ConfigurationError:
        pass
    else:
        msg = "the hard cap was granted away"
        raise AssertionError(msg)
    world.clock.advance(3620)
    world.see()
    assert tried(stop, ids[3]) == []
    assert len(world.left()) == 16


# --- where and when -----------------------------------------------------------------------------------


@scenario("T63", "handling_failure")
def clean_up_in_a_handler(make: Make) -> None:
    """`except TimeoutError: clean_up()` is how most accidents begin; a fresh scope does not help."""
    world = make()
    (session,) = world.open_sessions()
    stop = world.operation("session.terminate", trigger="requested")
    with world.proxy.hang():
        try:
            world.client.ping()
        except redis.TimeoutError:
            assert tried(stop, session) == ["handling_failure"]
            with world.health.scope():
                assert tried(stop, session) == ["handling_failure"]
    assert world.left() == {session}
    assert tried(stop, session) == [], "after the handler it is a wish like any other"
    assert world.left() == set()


@scenario("T64", "interrupted")
def clean_up_in_a_cancelled_task(make: Make) -> None:
    """A time-out cancels the task, and its `finally` cleans up."""
    world = make()
    (session,) = world.open_sessions()
    stop = world.operation("session.terminate", trigger="requested")
    codes: list[str] = []

    async def work(seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                try:
                    await asyncio.sleep(0.05)
                finally:
                    codes[:] = tried(stop, session)

    asyncio.run(work(0.01))
    assert codes == ["interrupted"]
    assert world.left() == {session}
    asyncio.run(work(5))
    assert codes == []
    assert world.left() == set()


@scenario("T68", "finalising")
def clean_up_in_a_finaliser(make: Make) -> None:
    """`__del__` runs whenever it pleases the interpreter."""
    world = make()
    (session,) = world.open_sessions()
    reap = world.operation()
    codes: list[str] = []

    class Session:
        def __del__(self) -> None:
            codes[:] = tried(reap, session)

    held = Session()
    del held
    assert codes == ["finalising"]
    assert world.left() == {session}
    assert tried(reap, session) == []
    assert world.left() == set()


@scenario("T-inflight", "call_in_flight")
def a_call_that_has_not_ended(make: Make) -> None:
    """The listing is still under way, and what it has not given yet is not gone."""
    world = make()
    (session,) = world.open_sessions()
    reap = world.operation()
    with world.health.scope("sweep"):
        with world.redis.permit():
            assert tried(reap, session) == ["call_in_flight"]
        assert world.left() == {session}
        assert tried(reap, session) == []
    assert world.left() == set()


@scenario("T-nothing", "nothing_required")
def an_operation_that_relies_on_nothing(make: Make) -> None:
    """No dependency is declared critical: then nothing could ever speak against it."""
    world = make()
    (session,) = world.open_sessions()
    world.health._handles.pop("redis")
    world.health._declarations += 1
    reap = world.operation()
    free = world.operation("session.close", requires=())
    assert tried(reap, session) == ["nothing_required"]
    assert world.left() == {session}
    assert tried(free, session) == []
    assert world.left() == set()


@scenario("T-undeclared", "undeclared_dependency")
def a_dependency_that_nobody_declared(make: Make) -> None:
    """A name with a slip in it is always healthy, elsewhere."""
    world = make()
    (session,) = world.open_sessions()
    reap = world.operation(requires=["redsi"])
    fine = world.operation("session.close", requires=["redis"])
    assert tried(reap, session) == ["undeclared_dependency"]
    assert world.left() == {session}
    assert tried(fine, session) == []
    assert world.left() == set()


# --- plans, sweeps and force --------------------------------------------------------------------------


@scenario("T40", "scope_tainted")
def an_outage_in_the_middle_of_a_batch(make: Make) -> None:
    """Fifty approved deletions; the store is gone after seventeen, and the rest is held."""
    world = make()
    ids = world.open_sessions(60)
    done: list[str] = []

    def delete(session_id: str) -> None:
        world.client.ping()
        world.raw.delete(f"session:{session_id}")
        done.append(session_id)
        if len(done) == 17:
            world.proxy.hang()

    reap = world.health.destructive("session.reap", subject="session_id")(delete)
    try:
        with world.health.scope("batch"):
            codes = [tried_or_failed(reap, session) for session in ids[:50]]
    finally:
        world.proxy.clear()
    assert len(world.left()) == 43
    assert codes[17] == ["TimeoutError"]
    assert all("scope_tainted" in code for code in codes[18:])
    told = [str(entry.outcome) for entry in world.health.ledger.entries()]
    assert (told.count("done"), told.count("unknown")) == (17, 1)


def tried_or_failed(operation: Callable[..., Any], *args: Any) -> list[str]:
    try:
        return tried(operation, *args)
    except Exception as error:
        return [type(error).__name__]


@scenario("T90")
def nothing_named_is_nothing_done(make: Make) -> None:
    """No selector, an empty one and a wildcard mean nothing, and never everything."""
    world = make()
    ids = world.open_sessions(3)
    world.operation()
    for selector in (None, "*", "", [""], [None]):
        try:
            world.health.plan("session.reap", selector)  # type: ignore[arg-type]
        except ConfigurationError:
            continue
        raise AssertionError(selector)
    assert world.health.plan("session.reap", []).subjects == ()
    assert world.left() == set(ids)
    plan = world.health.plan("session.reap", ids[:1])
    assert (plan.subjects, plan.allowed) == (("s0",), True)


@scenario("T109", "dependency_recovering")
def a_grant_lifts_what_it_names(make: Make) -> None:
    """What it does not name still blocks, and is named; what it names is used up by the act."""
    world = make()
    ids = world.open_sessions(2)
    reap = world.operation()
    world.redis.trip()
    world.clock.advance(100)
    world.see()
    world.see()

    def grant(*overrides: str) -> Any:
        return world.health.grant(
            operation="session.reap", subjects=ids[:1], actor="ops", reason="INC-1", overrides=overrides
        )

    with world.health.scope():
        assert tried(world.health.force, grant("budget_exceeded"), reap, ids[0]) == ["dependency_recovering"]
        assert world.left() == set(ids)
        leave = grant("dependency_recovering")
        assert tried(world.health.force, leave, reap, ids[1]) == ["grant_invalid"]
        assert tried(world.health.force, leave, reap, ids[0]) == []
        assert tried(world.health.force, leave, reap, ids[0]) == ["grant_invalid"]
    assert world.left() == {"s1"}


@scenario("T144", "budget_tripped")
def an_outage_hides_a_part_of_the_plan(make: Make) -> None:
    """Twelve of a hundred are dead, the limit is ten, and a partial outage makes four of them unknown."""
    world = make()
    ids = world.open_sessions(100)
    dead, hidden = ids[:12], set(ids[:4])

    def alive(session_id: str) -> Any:
        return UNKNOWN if session_id in hidden else session_id not in dead

    heartbeat = world.health.witness("redis", name="alive")(alive)
    reap = world.operation(evidence="alive", budget=world.budget(10, share=None))
    sweep = world.health.sweep(reap, nominate=lambda: dead, confirm=heartbeat, wait=0, confirmations=1)
    assert sweep.run_once().done == 0
    hidden.clear()
    assert sweep.run_once().done == 0
    assert len(world.left()) == 100
    world.health.budget("session").reset(actor="ops", reason="looked at")
    dead = ids[:8]
    assert sweep.run_once().done == 8
    assert len(world.left()) == 92


@scenario("T130")
def a_conflict_is_no_reason_to_delete_and_recreate(make: Make) -> None:
    """What raised is told as it was, and the error is nobody's outage."""
    world = make()
    (session,) = world.open_sessions()
    reap = world.operation()
    world.redis.trip()
    with pytest.raises(OperationBlocked) as blocked:
        try:
            with world.health.scope():
                reap(session)
        except (TimeoutError, OSError, redis.RedisError):
            world.raw.delete(f"session:{session}")
    assert blocked.value.outcome == "not_executed"
    assert world.left() == {session}


@scenario("T47", "budget_tripped")
def a_crash_loop_with_a_fresh_budget_in_each_life(make: Make) -> None:
    """It crashes again and again, and each life would begin with a budget of its own: the hour is one."""
    with tempfile.TemporaryDirectory(prefix="sh") as place:
        lives = 0
        total = 100
        for _ in range(6):
            world = make()
            if lives == 0:
                ids = world.open_sessions(total)
            else:
                for session in ids[lives * 5 :]:
                    world.raw.set(f"session:{session}", "here")
                world.see()
            world.health.configure(state_dir=Path(place) / "state")
            reap = world.operation(budget=Budget(per_hour=10, share=None))
            if lives == 0:
                world.health.budget("session").reset(actor="ops", reason="first start")
            with world.health.scope("sweep"):
                for session in ids[lives * 5 : lives * 5 + 5]:
                    tried(reap, session)
            lives += 1
            left = len(world.left())
        assert left == total - 25, "five lives' worth was nominated and ten acts were done, in the first two"


@scenario("T77", "budget_tripped")
def many_really_end_and_a_person_approves_the_plan(make: Make) -> None:
    """A campaign is over and four in ten go: nothing until a person approves exactly this plan."""
    world = make()
    ids = world.open_sessions(50)
    ended = ids[:20]
    gone = world.health.witness("redis", name="gone")(lambda session_id: session_id not in ended)
    reap = world.operation(evidence="gone", budget=world.budget(10))
    sweep = world.health.sweep(reap, nominate=lambda: ended, confirm=gone, wait=0, confirmations=1)
    report = sweep.run_once()
    assert (report.done, len(world.left())) == (0, 50)
    world.clock.advance(24 * 3600)
    world.see()
    report = sweep.run_once()
    assert (report.done, len(world.left())) == (0, 50), "waiting approves nothing"
    leave = world.health.grant(
        operation="session.reap",
        plan=report.plan,
        actor="ops",
        reason="the campaign is over",
        overrides=["budget_exceeded", "budget_tripped"],
    )
    assert sweep.run_once(grant=leave).done == 20
    assert world.left() == set(ids[20:])


@scenario("T91")
def a_grant_for_another_plan(make: Make) -> None:
    """Granted at ten, and at seven past ten the plan is another one: the grant is for what it was made for."""
    world = make()
    ids = world.open_sessions(50)
    ended = ids[:15]
    gone = world.health.witness("redis", name="gone")(lambda session_id: session_id not in ended)
    reap = world.operation(evidence="gone", budget=world.budget(10))
    sweep = world.health.sweep(reap, nominate=lambda: list(ended), confirm=gone, wait=0, confirmations=1)
    report = sweep.run_once()
    leave = world.health.grant(
        operation="session.reap",
        plan=report.plan,
        actor="ops",
        reason="approved",
        overrides=["budget_exceeded", "budget_tripped"],
    )
    ended.append(ids[30])
    assert sweep.run_once(grant=leave).done == 0
    assert len(world.left()) == 50
    ended.pop()
    assert sweep.run_once(grant=leave).done == 15
    assert world.left() == set(ids[15:])


@scenario("T110", "dependency_unhealthy")
def an_operator_acts_while_redis_is_down(make: Make) -> None:
    """With the rules named it runs, and the ledger says who, why, and what was overridden."""
    world = make()
    (session,) = world.open_sessions()
    stop = world.operation("session.terminate", trigger="requested")
    world.redis.trip()
    with world.health.scope("console"):
        assert tried(stop, session) == ["dependency_unhealthy"]
        assert world.left() == {session}
        leave = world.health.grant(
            operation="session.terminate",
            subjects=[session],
            actor="ada@example.org",
            reason="stuck, INC-12",
            overrides=["dependency_unhealthy"],
        )
        assert tried(world.health.force, leave, stop, session) == []
    assert world.left() == set()
    done = world.health.ledger.entries("session.terminate")[-2:]
    assert [str(entry.outcome) for entry in done] == ["intent", "done"]
    assert (done[0].actor, done[0].why, done[0].reasons) == (
        "ada@example.org",
        "stuck, INC-12",
        ("dependency_unhealthy",),
    )


@scenario("T136", "evidence_present")
def what_came_back_is_proven_afresh(make: Make) -> None:
    """Its deletion was lost in a failover and it is back, alive: no earlier proof counts."""
    world = make()
    ids = world.open_sessions(12)
    heartbeat = world.witness()
    reap = world.operation(evidence="heartbeat")
    sweep = world.health.sweep(reap, nominate=lambda: ids[:1], confirm=heartbeat, wait=60)
    assert sweep.run_once().done == 0
    world.clock.advance(61)
    world.see()
    assert sweep.run_once().done == 1
    world.raw.set("session:s0", "back again")
    world.beat("s0")
    world.clock.advance(61)
    world.see()
    assert sweep.run_once().done == 0
    with world.health.scope("by hand"):
        heartbeat("s0")
        assert tried(reap, "s0") == ["evidence_present"]
    assert "s0" in world.left()
    world.raw.delete("heartbeat:s0")
    for _ in range(2):
        world.clock.advance(61)
        world.see()
        done = sweep.run_once().done
    assert done == 1
    assert "s0" not in world.left()
