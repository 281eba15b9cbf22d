"""The timeline: what has happened lately, in order, bounded, for an incident report."""

from __future__ import annotations

import random
from typing import Any

import pytest

from safehold import Decision, Dependency, ForcedAct, GatePolicy, OperationBlocked, Safehold, Transition
from safehold._runtime.timeline import MOST_KEPT
from safehold.testing.clock import ManualClock

from .support import COOLDOWN, answer, fail, finish, make_open, succeed


def block(operation: Any, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(OperationBlocked):
            operation()


def test_it_holds_what_listeners_hear(health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    """Transitions, blocks and forced acts are there, in order."""
    heard: list[Any] = []
    health.subscribe(heard.append)
    end = health.destructive("timeline.end", subject="session")(lambda session: session)
    succeed(redis)
    make_open(redis)
    with pytest.raises(OperationBlocked):
        end("s1")
    grant = health.grant(
        operation="timeline.end",
        subjects=["s1"],
        actor="ops",
        reason="stuck",
        overrides=["dependency_unhealthy", "recent_miss", "unresolved_miss"],
    )
    assert health.force(grant, end, "s1") == "s1"
    assert [entry.event for entry in health.timeline()] == heard
    assert [type(event) for event in heard] == [Transition] * 3 + [Decision, ForcedAct]
    forced = heard[-1]
    assert (forced.operation, forced.subject, forced.actor, forced.reason) == (
        "timeline.end",
        "s1",
        "ops",
        "stuck",
    )
    assert forced.outcome == "done"
    assert forced.overridden[0] == "dependency_unhealthy"


def test_it_is_a_table_in_utc(health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    """The Markdown of an outage can be pasted into a report."""
    destroy = health.destructive("timeline.table")(answer)
    succeed(redis)
    clock.advance(30)
    make_open(redis)
    block(destroy)
    clock.advance(5)
    block(destroy, 2)
    clock.advance(COOLDOWN)
    redis.hold("node | swap, https://ops:hunter2@wiki/7")
    assert health.timeline().to_markdown() == (
        "# Timeline of test\n"
        "\n"
        "| time (UTC) | what | from | to | why |\n"
        "|---|---|---|---|---|\n"
        "| 2026-01-01 00:00:00 | redis | unknown | healthy | a call was answered (answered) |\n"
        "| 2026-01-01 00:00:30 | redis | healthy | degraded | Down (Down) |\n"
        "| 2026-01-01 00:00:30 | redis | degraded (closed) | unhealthy (open) | Down (Down) |\n"
        "| 2026-01-01 00:00:30 to 00:00:35 | timeline.table |  | blocked, 3 times "
        "| redis is unhealthy since 00:00:30 UTC (Down) (dependency_unhealthy) |\n"
        "| 2026-01-01 00:00:45 | redis | unhealthy | unhealthy, held "
        "| node \\| swap, https://***@wiki/7 (hold) |\n"
    )


def test_an_empty_one_says_so(health: Safehold) -> None:
    """Nothing has happened, and that is what it says."""
    assert len(health.timeline()) == 0
    assert health.timeline().to_markdown() == "# Timeline of test\n\nNothing has happened.\n"


def test_a_blocked_sweep_does_not_push_out_the_outage(health: Safehold, redis: Dependency) -> None:
    """Equal blocks between two transitions are one entry, whatever else is blocked in between."""
    first = health.destructive("timeline.first")(answer)
    second = health.destructive("timeline.second")(answer)
    make_open(redis)
    for _ in range(MOST_KEPT):
        block(first)
        block(second)
    timeline = health.timeline()
    assert [entry.count for entry in timeline] == [1, 1, MOST_KEPT, MOST_KEPT]
    assert timeline.dropped == 0
    redis.hold()
    block(first)
    assert [entry.count for entry in health.timeline()][-2:] == [1, 1], "after a transition it is news again"


def test_it_is_bounded(health: Safehold, redis: Dependency) -> None:
    """The oldest fall out, and it says how many."""
    for _ in range(MOST_KEPT):
        fail(redis)
        succeed(redis)
    timeline = health.timeline()
    assert (len(timeline), timeline.dropped) == (MOST_KEPT, MOST_KEPT)
    assert "\n1000 earlier entries are not kept.\n" in timeline.to_markdown()
    newest = timeline.entries[-1].event
    assert isinstance(newest, Transition)
    assert str(newest.after) == "healthy"


def test_what_repeats_after_it_fell_out_is_a_new_entry(health: Safehold, redis: Dependency) -> None:
    """A count never goes to an entry that is gone."""
    first = health.destructive("timeline.gone")(answer)
    block(first)
    chronicle = health._engine.chronicle
    (known,) = health.timeline()
    for index in range(MOST_KEPT):
        event = known.event
        assert isinstance(event, Decision)
        chronicle._repeat(("other", index), event)
    block(first)
    timeline = health.timeline()
    assert len(timeline) == MOST_KEPT
    assert all(entry.count == 1 for entry in timeline)


def test_a_snapshot_stays_as_it_is(health: Safehold, redis: Dependency) -> None:
    """What was given does not change under its reader's hands."""
    succeed(redis)
    timeline = health.timeline()
    fail(redis)
    assert len(timeline) == 1
    assert len(health.timeline()) == 2


def test_guarded_calls_leave_nothing(health: Safehold, redis: Dependency) -> None:
    """A call that changes nothing is not news."""
    for _ in range(100):
        succeed(redis)
    assert len(health.timeline()) == 1


def test_a_child_begins_its_own(health: Safehold, redis: Dependency) -> None:
    """A forked child does not report what its parent went through."""
    make_open(redis)
    health._reborn()
    assert len(health.timeline()) == 0


def test_observed_blocks_say_so(clock: ManualClock) -> None:
    """What would have been blocked has run, and is told so."""
    home = Safehold(
        "observing", clock=clock, rng=random.Random(1), gate=GatePolicy(startup_grace=0, mode="observe")
    )
    home.dependency("redis", critical=True)
    home.destructive("timeline.observed")(answer)()
    assert "| timeline.observed |  | would have been blocked |" in home.timeline().to_markdown()


def test_a_forced_act_is_one_event_whatever_its_form(health: Safehold, redis: Dependency) -> None:
    """A plain function that gives a coroutine is decided twice and told once."""
    heard: list[Any] = []
    health.subscribe(heard.append)

    async def work() -> str:
        return "done"

    end = health.destructive("timeline.deferred")(lambda: work())
    grant = health.grant(
        operation="timeline.deferred", actor="ops", reason="stuck", overrides=["dependency_unknown"]
    )
    assert finish(health.force(grant, end)) == "done"
    (forced,) = [event for event in heard if isinstance(event, ForcedAct)]
    assert (forced.grant, forced.outcome) == (grant.id, "done")


def test_a_forced_act_that_failed_says_so(health: Safehold, redis: Dependency) -> None:
    """What became of it is part of the story, also where it is not known."""

    def broken() -> None:
        raise TimeoutError

    end = health.destructive("timeline.lost")(broken)
    grant = health.grant(
        operation="timeline.lost", actor="ops", reason="stuck", overrides=["dependency_unknown"]
    )
    with pytest.raises(TimeoutError):
        health.force(grant, end)
    assert "| forced, unknown | ops: stuck, in spite of dependency_unknown |" in (
        health.timeline().to_markdown()
    )
