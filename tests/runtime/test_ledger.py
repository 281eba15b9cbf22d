"""The trail of destructive operations: intent before, outcome after, and blocks that count."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from safehold import Dependency, GatePolicy, LedgerOutcome, OperationBlocked, Safehold
from safehold.testing.clock import ManualClock

from .support import Form, answer, fail, make_healthy, raiser


def trail(health: Safehold) -> list[tuple[str, str | None]]:
    return [(str(entry.outcome), entry.subject) for entry in health.ledger.entries()]


def test_the_intent_stands_before_the_act(gate_form: Form, health: Safehold, redis: Dependency) -> None:
    """While it runs, its intent is there and its outcome is not."""
    make_healthy(redis)
    seen: list[Any] = []

    def act(*_: Any) -> str:
        seen.extend(health.ledger.entries())
        return "done"

    destroy = gate_form.gate(health, "session.reap", act)
    assert destroy() == "done"
    assert [entry.outcome for entry in seen] == [LedgerOutcome.INTENT]
    intent, outcome = health.ledger.entries()
    assert (intent.outcome, outcome.outcome) == (LedgerOutcome.INTENT, LedgerOutcome.DONE)
    assert outcome.intent == intent.number
    assert (outcome.operation, outcome.trigger) == ("session.reap", "automatic")


class SaysSo(Exception):
    def __init__(self, outcome: str) -> None:
        self.outcome = outcome


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ValueError("no such session"), "failed"),
        (TimeoutError(), "unknown"),
        (ConnectionResetError(), "unknown"),
        (asyncio.CancelledError(), "unknown"),
        (KeyboardInterrupt(), "unknown"),
        (SaysSo("unknown"), "unknown"),
        (SaysSo("not_executed"), "failed"),
    ],
)
def test_what_raised_is_failed_or_unknown(
    gate_form: Form, health: Safehold, redis: Dependency, error: BaseException, outcome: str
) -> None:
    """A call that was lost may have been executed; the error passes through as it is."""
    make_healthy(redis)
    destroy = gate_form.gate(health, "session.reap", raiser(error))
    with pytest.raises(type(error)) as raised:
        destroy()
    assert raised.value is error
    assert [told for told, _ in trail(health)] == ["intent", outcome]


def test_blocks_of_one_kind_are_one_line(gate_form: Form, health: Safehold, redis: Dependency) -> None:
    """However many there are: with a count, and with the newest subject."""
    make_healthy(redis)
    fail(redis)
    destroy = gate_form.gate(health, "session.reap", answer)
    for _ in range(500):
        with pytest.raises(OperationBlocked):
            destroy()
    (entry,) = health.ledger.entries()
    assert (entry.outcome, entry.count) == (LedgerOutcome.BLOCKED, 500)
    assert "unresolved_miss" in entry.reasons


def test_an_observing_gate_writes_both(health: Safehold, clock: ManualClock) -> None:
    """That it would have blocked, and what the act did."""
    observing = Safehold("o", clock=clock, gate=GatePolicy(mode="observe", startup_grace=0))
    observing.dependency("redis", critical=True)
    assert observing.destructive("reap")(answer)() == "answer"
    assert [told for told, _ in trail(observing)] == ["would_block", "intent", "done"]


def test_memory_is_bounded(health: Safehold) -> None:
    """The newest thousand acts are kept, and a thousand kinds of blocks."""

    @health.destructive("reap", subject="session_id", requires=())
    def reap(session_id: int) -> None: ...

    for number in range(1500):
        reap(number)
    entries = health.ledger.entries("reap")
    assert len(entries) == 2000
    assert entries[-1].subject == "1499"
    assert [entry.number for entry in entries] == sorted(entry.number for entry in entries)


def test_the_scope_is_named(health: Safehold, redis: Dependency) -> None:
    """A person sees which stretch of work has decided."""
    make_healthy(redis)
    reap = health.destructive("reap")(answer)
    with health.scope("stale sessions"):
        reap()
    assert {entry.scope for entry in health.ledger.entries()} == {"stale sessions"}


def test_what_cannot_be_written_is_not_done(
    gate_form: Form, health: Safehold, redis: Dependency, monkeypatch: Any
) -> None:
    """No record, no act; and the application gets an ordinary block."""
    make_healthy(redis)
    ran: list[int] = []
    destroy = gate_form.gate(health, "session.reap", lambda *_: ran.append(1))

    def broken(*_: Any) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(type(health.ledger), "intent", broken)
    with pytest.raises(OperationBlocked) as blocked:
        destroy()
    assert blocked.value.reason == "gate_fault"
    assert ran == []


def test_a_coroutine_from_a_plain_function_is_decided_when_it_runs(
    health: Safehold, redis: Dependency
) -> None:
    """Between the call and the await a failure may have come."""
    make_healthy(redis)

    async def act() -> str:
        return "done"

    reap: Any = health.destructive("reap")(lambda: act())
    assert asyncio.run(reap()) == "done"
    assert [told for told, _ in trail(health)] == ["intent", "deferred", "intent", "done"]
    waiting = reap()
    fail(redis)
    with pytest.raises(OperationBlocked):
        asyncio.run(waiting)
