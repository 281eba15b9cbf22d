"""A fault in any line of the gate: nothing is destroyed, the host hears of it at once, the next call works."""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import safehold
from safehold import Budget, Dependency, GatePolicy, OperationBlocked, Safehold
from safehold._runtime import handling
from safehold._runtime.handling import finalising
from safehold._runtime.scope import scopes_open
from safehold.testing.clock import ManualClock

from .support import POLICY, finish, make_healthy, make_open

HOME = Path(safehold.__file__).parent
FILES = {
    str(HOME / name): name
    for name in (
        "_core/budget.py",
        "_core/epoch.py",
        "_core/evidence.py",
        "_core/gate.py",
        "_runtime/acts.py",
        "_runtime/budgets.py",
        "_runtime/epochs.py",
        "_runtime/gate.py",
        "_runtime/grants.py",
        "_runtime/handling.py",
        "_runtime/ledger.py",
        "_runtime/questions.py",
        "_runtime/scope.py",
    )
}
HOST = {"_runtime/acts.py", "_runtime/questions.py"}
"""Around the act itself: there the host may get the fault as it is. The act has not run all the same."""

DURABLE = {"_runtime/budgets.py", "_runtime/gate.py", "_runtime/ledger.py"}
Line = tuple[str, int]


class Fault(Exception):
    """Something that nobody has thought of."""


class Tracer:
    """Notes every line of the gate up to the act, or raises in one of them, once."""

    def __init__(self, target: Line | None = None) -> None:
        self.lines: dict[Line, None] = {}
        self.target = target
        self.over = self.fired = False

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename in FILES else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and not self.over:
            line = FILES[frame.f_code.co_filename], frame.f_lineno
            self.lines[line] = None
            if line == self.target:
                self.over = self.fired = True
                raise Fault
        return self._line

    def run(self, call: Callable[[], Any]) -> Any:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            return call()
        finally:
            sys.settrace(before)


class World:
    """One Safehold, one operation, and a call of it. `ran` holds what was destroyed."""

    def __init__(self, tmp_path: Path, kind: str) -> None:
        clock = ManualClock()
        self.ran: list[str] = []
        self.tracer: Tracer | None = None
        self.health = health = Safehold(
            "faulty", clock=clock, rng=random.Random(1), gate=GatePolicy(startup_grace=0.0)
        )
        options: dict[str, Any] = {}
        declared: dict[str, Any] = {}
        if kind in {"proven", "forced", "durable"}:
            declared = {"epoch": lambda: "one"}
            population = (lambda: 100) if kind == "forced" else health.guard("redis")(lambda: 100)
            options = {"evidence": "exists", "budget": Budget(per_hour=1000, population=population)}
        if kind == "durable":
            health.configure(state_dir=tmp_path / "state")
            health.budget("session").reset(actor="ada", reason="new")
        self.redis: Dependency = health.dependency("redis", critical=True, policy=POLICY, **declared)
        make_healthy(self.redis)
        self.exists = health.witness("redis", name="exists")(lambda session: False)
        self.kind = kind

        def act(session: str) -> str:
            if self.tracer is not None:
                self.tracer.over = True  # from here on it is the act's own
            self.ran.append(session)
            return session

        if kind == "async":

            @health.destructive("session.reap", subject="session", **options)
            async def areap(session: str) -> str:
                return act(session)

            self.reap: Any = lambda session: finish(areap(session))
            return
        self.reap = health.destructive("session.reap", subject="session", **options)(act)
        if kind == "forced":
            make_open(self.redis)

    def forget(self) -> None:
        """Let nothing be remembered that would spare a line in the next run."""
        self.health._gate._needs.clear()
        self.health._gate._grace_is_over = False
        handling._handlers = [], handling._NO_HANDLERS

    def prepare(self) -> Callable[[], Any]:
        """Give a call that is allowed, with fresh evidence or a fresh grant."""
        if self.kind == "forced":
            grant = self.health.grant(
                operation="session.reap",
                subjects=["s1"],
                actor="ada",
                reason="stuck",
                overrides=["dependency_unhealthy", "recent_miss", "evidence_missing"],
            )
            return lambda: self.health.force(grant, self.reap, "s1")
        self.exists("s1")
        return lambda: self.reap("s1")


KINDS = ["plain", "async", "proven", "durable", "forced"]


@pytest.fixture
def quiet() -> Iterator[None]:
    """Coverage traces too; while we do, it does not."""
    before = sys.gettrace()
    finalising()  # a new signal handler, such as the test's own time limit, is looked at once
    gc.collect()
    left_open = set(scopes_open)  # by other tests; they may end at any time
    scopes_open.clear()
    yield
    scopes_open.update(left_open)
    sys.settrace(before)


def lines_of(world: World) -> list[Line]:
    """Enumerate the lines that one admission reaches, in a run that is allowed."""
    call = world.prepare()
    world.forget()
    world.tracer = tracer = Tracer()
    assert tracer.run(call) == "s1"
    world.tracer = None
    assert world.ran == ["s1"]
    world.ran.clear()
    return list(tracer.lines)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_in_any_line_never_allows(tmp_path: Path, kind: str, quiet: None) -> None:
    """For every line that an admission reaches: raise in it, and the act has not run, the host gets a block
    at once, and the same call without a fault works.
    """
    reached = lines_of(World(tmp_path / "recorded", kind))
    assert {name for name, _ in reached} >= {"_runtime/gate.py", "_runtime/acts.py", "_runtime/ledger.py"}
    assert len(reached) > (40 if kind in {"plain", "async"} else 150)
    if kind == "durable":  # the rest is as in "proven"
        reached = [line for line in reached if line[0] in DURABLE]
    wrong: list[tuple[Line, str]] = []
    for index, line in enumerate(reached):
        world = World(tmp_path / str(index), kind)
        call = world.prepare()
        world.forget()
        world.tracer = tracer = Tracer(line)
        began = time.monotonic()
        outcome = tried(partial(tracer.run, call))
        took = time.monotonic() - began
        world.tracer = None
        assert tracer.fired, f"{line} was not reached"
        if world.ran:
            wrong.append((line, "it ran"))
        if not isinstance(outcome, OperationBlocked) and line[0] not in HOST and not world.ran:
            wrong.append((line, f"the host got {outcome!r}"))
        if took > 2.0:
            wrong.append((line, f"after {took} s"))
        world.ran.clear()
        again = tried(world.prepare())
        if again != "s1" or world.ran != ["s1"]:
            wrong.append((line, f"the next call: {again!r}"))
        world.ran.clear()
    assert wrong == [], "\n".join(map(str, wrong))


def tried(call: Callable[[], Any]) -> Any:
    """Call it in a context of its own, as a task would, and give what came of it."""
    try:
        return copy_context().run(call)
    except Exception as error:
        return error


@pytest.mark.parametrize("trigger", ["automatic", "requested"])
def test_a_fault_while_the_breaker_is_open(tmp_path: Path, trigger: str, quiet: None) -> None:
    """Where the verdict is no, a fault on the way to it does not make it a yes."""

    def out() -> tuple[World, Callable[[], Any]]:
        world = World(tmp_path, "plain")
        make_open(world.redis)
        register = world.health.destructive("session.end", subject="session", trigger=trigger)
        reap = register(lambda session: world.ran.append(session))
        world.forget()
        return world, lambda: reap("s1")

    recording = Tracer()
    with pytest.raises(OperationBlocked):
        recording.run(out()[1])
    assert len(recording.lines) > 100
    for line in recording.lines:
        world, call = out()
        tracer = Tracer(line)
        outcome = tried(partial(tracer.run, call))
        assert tracer.fired, line
        assert world.ran == [], line
        assert isinstance(outcome, OperationBlocked) or line[0] in HOST, (line, outcome)
        with pytest.raises(OperationBlocked) as blocked:
            call()
        assert blocked.value.reason == "dependency_unhealthy"


def test_a_tracer_that_never_fires_changes_nothing(tmp_path: Path, quiet: None) -> None:
    """The twin: the same run, with a fault in a line that is not there."""
    world = World(tmp_path, "proven")
    assert Tracer(("_core/gate.py", 100_000)).run(world.prepare()) == "s1"
    assert world.ran == ["s1"]
