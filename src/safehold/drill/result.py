"""What became of the sessions: frozen pydantic models, which `--json` prints as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel, ConfigDict

from .. import Decision, Transition, __version__
from .play import Drill, Side
from .world import ENDED, LIVE


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)


class Loss(_Model):
    """A live session that was removed."""

    at: float
    session: str


class Block(_Model):
    """A destructive operation that was not executed; `retry_after` is in seconds."""

    at: float
    operation: str
    session: str | None
    dependency: str
    state: str
    reason: str
    text: str
    retry_after: float | None


class Move(_Model):
    """A state transition and its cause."""

    at: float
    dependency: str
    before: str
    after: str
    breaker_before: str
    breaker: str
    cause: str
    cause_code: str
    retry_after: float | None


class Act(_Model):
    """A stretch of the script, and what it did to each run."""

    at: float
    name: str
    unprotected_lost: int
    protected_lost: int
    protected_blocked: int


class Run(_Model):
    """One run: of `sessions` live ones so many lost, of `ended` ones that really ended so many removed."""

    sessions: int
    sessions_lost: int
    ended: int
    ended_removed: int
    lost: tuple[Loss, ...]


class ProtectedRun(Run):
    """The protected run."""

    operations_blocked: int
    blocked_by: dict[str, int]
    blocks: tuple[Block, ...]
    transitions: tuple[Move, ...]


class Result(_Model):
    """The whole drill. Instants are seconds since its start.

    `recovered`: in the end all was known to be well, and the sessions that really ended were removed.
    `repair_to_recovered` is `None` if it never was, or if nothing failed. `passed`: the protected run
    lost no live session, and recovered.
    """

    version: str
    seed: int
    speed: float
    redis: str
    api: str
    settings: dict[str, float]
    acts: tuple[Act, ...]
    unprotected: Run
    protected: ProtectedRun
    recovered: bool
    repair_to_recovered: float | None
    seconds: float
    passed: bool


def result_of(drill: Drill) -> Result:
    """Sum up a drill that was played to its end."""
    protected, recovered, healed = drill.protected, drill.recovered, drill.healed
    lost = len(protected.world.lost)
    return Result(
        version=__version__,
        seed=drill.seed,
        speed=drill.speed,
        redis=drill.lab.redis.origin,
        api=drill.lab.api.origin,
        settings={name: _round(value) for name, value in asdict(drill.timing).items()},
        acts=_acts(drill),
        unprotected=Run(**_run(drill, drill.unprotected)),
        protected=ProtectedRun(
            **_run(drill, protected),
            operations_blocked=len(protected.blocks),
            blocked_by=dict(Counter(block.verdict.reasons[0].code for block in protected.blocks)),
            blocks=tuple(_block(drill, block) for block in protected.blocks),
            transitions=tuple(_move(drill, move) for move in protected.transitions),
        ),
        recovered=recovered is not None,
        repair_to_recovered=None if recovered is None or healed is None else _round(recovered - healed),
        seconds=_round(drill.now),
        passed=recovered is not None and lost == 0,
    )


def _run(drill: Drill, side: Side) -> dict[str, Any]:
    lost = side.world.lost
    return {
        "sessions": len(LIVE),
        "sessions_lost": len(lost),
        "ended": ENDED,
        "ended_removed": len(side.world.buried),
        "lost": tuple(Loss(at=_round(loss.at - drill.zero), session=loss.session) for loss in lost),
    }


def _acts(drill: Drill) -> tuple[Act, ...]:
    firsts: dict[int, tuple[float, str]] = {}
    for began, step in drill.begun:
        firsts.setdefault(step.act, (began, step.name))
    begins = list(firsts.values())
    ends = [*(began for began, _ in begins[1:]), float("inf")]

    def within(began: float, end: float, instants: Sequence[float]) -> int:
        return sum(began <= instant < end for instant in instants)

    unprotected, protected = ([loss.at for loss in side.world.lost] for side in drill.sides)
    blocked = [block.at for block in drill.protected.blocks]
    return tuple(
        Act(
            at=_round(began - drill.zero),
            name=name,
            unprotected_lost=within(began, end, unprotected),
            protected_lost=within(began, end, protected),
            protected_blocked=within(began, end, blocked),
        )
        for (began, name), end in zip(begins, ends, strict=True)
    )


def _block(drill: Drill, decision: Decision) -> Block:
    verdict, first = decision.verdict, decision.verdict.reasons[0]
    return Block(
        at=_round(decision.at - drill.zero),
        operation=verdict.operation,
        session=verdict.subject,
        dependency=first.dependency,
        state=first.state,
        reason=first.code,
        text=first.text,
        retry_after=verdict.retry_after,
    )


def _move(drill: Drill, move: Transition) -> Move:
    return Move(
        at=_round(move.at - drill.zero),
        dependency=move.dependency,
        before=move.before,
        after=move.after,
        breaker_before=move.breaker_before,
        breaker=move.breaker,
        cause=move.cause.text,
        cause_code=move.cause.code,
        retry_after=move.retry_after,
    )


def _round(seconds: float) -> float:
    return round(seconds, 3)
