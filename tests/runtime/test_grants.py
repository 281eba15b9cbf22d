"""A person may act in spite of a block: once, for what was named, over the rules that were named, and no more."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import pytest

from safehold import (
    Budget,
    ConfigurationError,
    Dependency,
    Grant,
    GrantDeniedError,
    GrantRequest,
    OperationBlocked,
    Safehold,
)
from safehold.grants import anyone, nobody, two_persons
from safehold.testing.clock import ManualClock

from .support import PATIENCE, Form, finish, in_threads, make_healthy, make_open, many_switches

OUT = ["dependency_unhealthy", "recent_miss"]


def give(health: Safehold, operation: str = "destroy", **changes: Any) -> Grant:
    settings: dict[str, Any] = {
        "operation": operation,
        "actor": "ada",
        "reason": "stuck, INC-12",
        "overrides": OUT,
        **changes,
    }
    return health.grant(**settings)


def codes(call: Callable[[], Any]) -> list[str]:
    with pytest.raises(OperationBlocked) as blocked:
        call()
    return [reason.code for reason in blocked.value.reasons]


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def end(health: Safehold, redis: Dependency, ended: list[str]) -> Callable[[str], None]:
    """An operation with a subject, whose dependency is out."""
    make_open(redis)

    @health.destructive("session.end", subject="session")
    def end(session: str) -> None:
        ended.append(session)

    return end


# --- what it lifts ------------------------------------------------------------------------------------


def test_a_grant_lifts_what_it_names_in_every_form(
    gate_form: Form, health: Safehold, redis: Dependency
) -> None:
    """Functions, methods, partials, coroutines, generators: without the grant blocked, with it run, once."""
    ran: list[Any] = []
    raw: list[Any] = []

    def keep(function: Any) -> Any:
        decorated = health.destructive("destroy")(function)
        raw.append(decorated)
        return decorated

    call = gate_form.decorated(keep, lambda *args: ran.append(args))
    make_open(redis)
    assert codes(call) == OUT
    grant = give(health)
    owner = getattr(call, "__self__", None)
    target = raw[0]
    if "method" in gate_form.name and owner is not None:
        target = call
    if isinstance(target, staticmethod):
        target = target.__func__
    elif isinstance(target, classmethod):
        target = call
    args = needs_self(gate_form.name, target)
    first = health.force(grant, target, *args)
    drain(first)
    assert len(ran) == 1
    again = health.force(grant, target, *args) if is_lazy(first) else None
    assert codes(lambda: drain(again if again is not None else health.force(grant, target, *args))) == [
        "grant_invalid"
    ]
    assert len(ran) == 1
    assert codes(call) == OUT, "the grant was for that call alone"


def needs_self(name: str, target: Any) -> tuple[Any, ...]:
    """The plain function of an async method wants its object."""
    return (object(),) if name == "async_method" and not hasattr(target, "__self__") else ()


def is_lazy(given: Any) -> bool:
    return hasattr(given, "send") or hasattr(given, "asend")


def drain(given: Any) -> Any:
    if hasattr(given, "asend"):

        async def read() -> list[Any]:
            return [item async for item in given]

        return finish(read())
    if hasattr(given, "close") and hasattr(given, "send") and hasattr(given, "cr_frame"):
        return finish(given)
    return list(given) if hasattr(given, "send") else given


def test_bound_methods_and_partials(health: Safehold, redis: Dependency) -> None:
    """The subject is found where the call would find it."""
    make_open(redis)
    ended: list[Any] = []

    class Sessions:
        @health.destructive("session.end", subject="session")
        def end(self, session: str, *, hard: bool = False) -> None:
            ended.append((session, hard))

    sessions = Sessions()
    grant = give(health, "session.end", subjects=["s1", "s2", "s3"])
    health.force(grant, sessions.end, "s1")
    health.force(grant, partial(sessions.end, "s2"), hard=True)
    health.force(grant, partial(Sessions.end, sessions, session="s3", hard=True))
    assert ended == [("s1", False), ("s2", True), ("s3", True)]
    assert codes(lambda: health.force(grant, partial(sessions.end, "s2"))) == ["grant_invalid"]


def test_t109_a_rule_that_is_not_named_still_blocks(
    health: Safehold, end: Callable[[str], None], ended: list[str]
) -> None:
    """The block names the rule that was not lifted, and leaves the grant as it was."""
    grant = give(health, "session.end", subjects=["s1"], overrides=["budget_exceeded"])
    assert codes(lambda: health.force(grant, end, "s1")) == OUT
    partly = give(health, "session.end", subjects=["s1"], overrides=["dependency_unhealthy"])
    assert codes(lambda: health.force(partly, end, "s1")) == ["recent_miss"]
    assert ended == []
    whole = give(health, "session.end", subjects=["s1"])
    health.force(whole, end, "s1")
    assert ended == ["s1"]


def test_a_block_uses_nothing_up(
    health: Safehold, end: Callable[[str], None], ended: list[str], clock: ManualClock
) -> None:
    """What the grant does not lift may end, and then it is still good."""
    grant = give(health, "session.end", subjects=["s1"], overrides=["dependency_unhealthy"])
    for _ in range(3):
        assert codes(lambda: health.force(grant, end, "s1")) == ["recent_miss"]
    clock.advance(60)
    health.force(grant, end, "s1")
    assert ended == ["s1"]


def test_it_is_used_up_before_the_act(health: Safehold, redis: Dependency) -> None:
    """An act that raises, or is lost, has used it: nobody knows what it has done."""
    make_open(redis)

    @health.destructive("fail")
    def fail() -> None:
        assert codes(lambda: health.force(grant_of_fail, fail)) == ["grant_invalid"], "used while it runs"
        raise ValueError("half way")

    grant_of_fail = give(health, "fail")
    with pytest.raises(ValueError, match="half way"):
        health.force(grant_of_fail, fail)
    assert codes(lambda: health.force(grant_of_fail, fail)) == ["grant_invalid"]


def test_a_requested_operation_can_be_forced_as_well(health: Safehold, redis: Dependency) -> None:
    """The same grant, the other trigger."""
    make_open(redis)
    ran: list[int] = []
    destroy = health.destructive("destroy", trigger="requested")(lambda: ran.append(1))
    assert codes(destroy) == ["dependency_unhealthy"]
    health.force(give(health), destroy)
    assert ran == [1]


def test_it_is_never_ambient(health: Safehold, redis: Dependency) -> None:
    """An operation inside a forced one is judged by itself, in the same thread, task or generator."""
    make_open(redis)
    ran: list[str] = []
    told: list[list[str]] = []

    @health.destructive("inner")
    def inner() -> None:
        ran.append("inner")

    @health.destructive("outer")
    def outer() -> None:
        ran.append("outer")
        told.append(codes(inner))
        told.append(codes(outer))

    health.force(give(health, "outer"), outer)
    assert told == [OUT, OUT]
    assert ran == ["outer"]
    health.force(give(health, "inner"), inner)
    assert ran == ["outer", "inner"]


def test_a_forced_operation_may_look_again_at_itself(
    health: Safehold, redis: Dependency, api: Dependency, clock: ManualClock
) -> None:
    """`recheck` in a forced act lifts what the grant lifts, stops for what is new, and for a grant that ended."""
    make_open(redis)
    steps: list[str] = []

    @health.destructive("destroy", requires=["redis", "api"])
    def destroy(trouble: Callable[[], None]) -> None:
        health.recheck()
        steps.append("one")
        trouble()
        health.recheck()
        steps.append("two")

    make_healthy(api)
    health.force(give(health), destroy, lambda: None)
    assert steps == ["one", "two"]
    assert codes(lambda: health.force(give(health), destroy, lambda: clock.advance(600))) == ["grant_invalid"]
    make_healthy(api)
    only = give(health, overrides=["recent_miss"])
    assert "dependency_unhealthy" in codes(lambda: health.force(only, destroy, lambda: None))


def test_a_coroutine_from_a_plain_function_uses_it_once(health: Safehold, redis: Dependency) -> None:
    """It is decided again where it really begins, with the same use of the grant."""
    make_open(redis)
    ran: list[int] = []

    async def work() -> str:
        ran.append(1)
        return "done"

    destroy: Any = health.destructive("destroy")(lambda: work())
    grant = give(health)
    assert finish(health.force(grant, destroy)) == "done"
    assert codes(lambda: health.force(grant, destroy)) == ["grant_invalid"]
    assert ran == [1]


def test_what_a_decorator_around_it_does_is_not_left_out(health: Safehold, redis: Dependency) -> None:
    """`force` takes the operation itself; a decorator around it would be passed over, so it is refused."""
    make_open(redis)
    ran: list[str] = []
    destroy = health.destructive("destroy")(lambda: ran.append("operation"))

    @wraps(destroy)
    def checked() -> None:
        ran.append("check")
        destroy()

    grant = give(health)
    with pytest.raises(ConfigurationError, match="itself"):
        health.force(grant, checked)
    for wrong in (print, lambda: None, "destroy", None):
        with pytest.raises(ConfigurationError, match="operation"):
            health.force(grant, wrong)  # type: ignore[arg-type]
    assert ran == []
    health.force(grant, destroy)
    assert ran == ["operation"]


# --- once, and in time --------------------------------------------------------------------------------


def test_once_per_subject(health: Safehold, end: Callable[[str], None], ended: list[str]) -> None:
    """Each subject has its own use; another subject or another operation has none."""
    other = health.destructive("session.archive", subject="session")(lambda session: ended.append(session))
    grant = give(health, "session.end", subjects=["s1", "s2"])
    health.force(grant, end, "s1")
    assert codes(lambda: health.force(grant, end, "s1")) == ["grant_invalid"]
    assert codes(lambda: health.force(grant, end, "s3")) == ["grant_invalid"]
    assert codes(lambda: health.force(grant, other, "s2")) == ["grant_invalid"]
    health.force(grant, end, "s2")
    assert ended == ["s1", "s2"]


def test_once_also_for_many_threads(health: Safehold, end: Callable[[str], None], ended: list[str]) -> None:
    """Of eight that use it at once, one acts."""
    for _ in range(20):
        ended.clear()
        grant = give(health, "session.end", subjects=["s1"])
        with many_switches():
            results = in_threads(lambda _, grant=grant: health.force(grant, end, "s1"), 8)
        assert ended == ["s1"]
        assert sum(isinstance(result, OperationBlocked) for result in results) == 7


@pytest.mark.parametrize(("after", "runs"), [(0.0, True), (599.5, True), (600.0, False), (1e6, False)])
def test_it_expires(
    health: Safehold,
    end: Callable[[str], None],
    ended: list[str],
    clock: ManualClock,
    after: float,
    runs: bool,
) -> None:
    """After ten minutes by the monotonic clock, whatever the wall clock says."""
    grant = give(
        health,
        "session.end",
        subjects=["s1"],
        overrides=[*OUT, "unresolved_miss", "dependency_recovering"],
    )
    clock.advance(after)
    if runs:
        health.force(grant, end, "s1")
        assert ended == ["s1"]
    else:
        with pytest.raises(OperationBlocked, match="expired"):
            health.force(grant, end, "s1")
        assert ended == []


# --- what it cannot do --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"overrides": []}, "overrides"),
        ({"overrides": "dependency_unhealthy"}, "overrides"),
        ({"overrides": None}, "overrides"),
        ({"overrides": 5}, "overrides"),
        ({"overrides": [["dependency_unhealthy"]]}, "overrides"),
        ({"overrides": ["unheard_of"]}, "no rule"),
        ({"overrides": ["hard_cap"]}, "nobody may override"),
        ({"overrides": ["ledger_unavailable"]}, "nobody may override"),
        ({"overrides": ["grant_invalid"]}, "nobody may override"),
        ({"overrides": ["gate_fault"]}, "nobody may override"),
        ({"overrides": ["not_registered"]}, "nobody may override"),
        ({"overrides": ["finalising"]}, "nobody may override"),
        ({"overrides": ["no_ticket"]}, "nobody may override"),
        ({"actor": ""}, "actor"),
        ({"actor": None}, "actor"),
        ({"reason": "  "}, "reason"),
        ({"approved_by": ""}, "approved_by"),
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": 86_401}, "expires_in"),
        ({"expires_in": float("nan")}, "expires_in"),
        ({"subjects": None}, "subjects"),
        ({"subjects": []}, "subjects"),
        ({"subjects": "s1"}, "subjects"),
        ({"subjects": b"s1"}, "subjects"),
        ({"subjects": [None]}, "subjects"),
        ({"subjects": ["s1", ""]}, "subjects"),
        ({"operation": "unheard of"}, "unheard of"),
        ({"operation": "no.subject", "subjects": ["s1"]}, "no subject"),
    ],
)
def test_what_cannot_be_granted_is_named_at_once(
    health: Safehold, end: Any, changes: dict[str, Any], word: str
) -> None:
    """A mistake is told to whoever makes the grant, not to whoever uses it; and nothing is written."""
    health.destructive("no.subject")(lambda: None)
    with pytest.raises(ConfigurationError, match=word):
        give(health, **{"operation": "session.end", "subjects": ["s1"], **changes})
    assert health.ledger.entries() == ()


def test_it_cannot_be_copied_kept_or_read(health: Safehold, end: Any) -> None:
    """Nothing in it can leave the process, and nothing in its text says more than who and what for."""
    grant = give(health, "session.end", subjects=["s1"])
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps, lambda g: copy.deepcopy([g])):
        with pytest.raises(TypeError, match="grant"):
            attempt(grant)
    assert repr(grant) == str(grant) == f"<Grant {grant.id} for session.end to ada>"
    assert not hasattr(grant, "__dict__")


def test_one_made_by_hand_is_worth_nothing(
    health: Safehold, end: Callable[[str], None], ended: list[str], clock: ManualClock
) -> None:
    """Neither one that nobody gave, nor one that was widened, nor one of another Safehold."""
    real = give(health, "session.end", subjects=["s1"], overrides=["budget_exceeded"])
    request = GrantRequest(
        operation="session.end",
        subjects=("s1",),
        actor="mallory",
        reason="mine",
        overrides=frozenset(OUT),
        expires_in=600.0,
        plan=None,
        approved_by=None,
    )
    made = Grant(1, request, 1e9)
    empty = object.__new__(Grant)
    stranger = Safehold("stranger", clock=clock)
    stranger.destructive("session.end", subject="session")(lambda session: None)
    foreign = give(stranger, "session.end", subjects=["s1"])
    for grant in (made, empty, foreign):
        with pytest.raises(OperationBlocked, match="has not made"):
            health.force(grant, end, "s1")
    for name, value in (("_request", request), ("_until", 1e9), ("id", "g0"), ("extra", 1)):
        with pytest.raises(TypeError):
            setattr(real, name, value)
    object.__setattr__(real, "_request", request)
    with pytest.raises(OperationBlocked, match="was changed"):
        health.force(real, end, "s1")
    with pytest.raises(TypeError, match="no other kinds"):
        type("Mine", (Grant,), {})
    with pytest.raises(ConfigurationError, match=r"health\.grant"):
        health.force("g1", end, "s1")  # type: ignore[arg-type]
    assert ended == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_useless_in_a_forked_child(health: Safehold, end: Callable[[str], None], ended: list[str]) -> None:
    """A child cannot use what its parent was given; the parent can."""
    grant = give(
        health, "session.end", subjects=["s1"], overrides=[*OUT, "startup_grace", "dependency_unknown"]
    )
    pid = os.fork()
    if pid == 0:
        code = 3
        try:
            health.force(grant, end, "s1")
        except OperationBlocked as blocked:
            code = 0 if blocked.reason == "grant_invalid" else 4
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    health.force(grant, end, "s1")
    assert ended == ["s1"]


def test_useless_after_a_fork_that_nobody_told(
    health: Safehold, end: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Native code forks without Python's hooks; the number of the process tells."""
    grant = give(health, "session.end", subjects=["s1"])
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: 1)
        assert codes(lambda: health.force(grant, end, "s1")) == ["grant_invalid"]
    health.force(grant, end, "s1")


def test_t111_the_hard_cap_holds_for_everybody(
    health: Safehold, redis: Dependency, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No grant lifts it, also not for eight at once."""
    make_open(redis)
    ended: list[str] = []
    budget = Budget(per_hour=1, hard_cap=3)
    end = health.destructive("session.end", subject="session", budget=budget)(
        lambda session: ended.append(session)
    )
    names = [f"s{number}" for number in range(8)]
    grant = give(health, "session.end", subjects=names, overrides=[*OUT, "budget_exceeded", "budget_tripped"])
    judged, use = threading.Barrier(8), health._grants.use

    def use_together(grant: Grant, subject: str | None) -> bool:
        judged.wait(PATIENCE)  # by now all of them were told that there is room
        return use(grant, subject)

    with monkeypatch.context() as patch:
        patch.setattr(health._grants, "use", use_together)
        results = in_threads(lambda index: health.force(grant, end, names[index]), 8)
    assert len(ended) == 3
    refused = [result for result in results if isinstance(result, OperationBlocked)]
    assert {reason.code for error in refused for reason in error.reasons} == {"hard_cap"}
    left = next(name for name in names if name not in ended)
    assert codes(lambda: health.force(grant, end, left)) == ["hard_cap"]


def test_t116_without_a_ledger_nothing_is_forced(
    health: Safehold, end: Callable[[str], None], ended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record, no act; and since it has certainly not begun, the grant is as it was."""
    grant = give(health, "session.end", subjects=["s1"])

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(health.ledger), "intent", full)
        assert codes(lambda: health.force(grant, end, "s1")) == ["ledger_unavailable"]
    assert ended == []
    health.force(grant, end, "s1")
    assert ended == ["s1"]


# --- who may, and what is written ---------------------------------------------------------------------


def test_policies(health: Safehold, end: Any) -> None:
    """Anyone by default; nobody; two persons, who are two."""
    give(health, "session.end", subjects=["s1"])
    health.configure(grants=nobody)
    with pytest.raises(GrantDeniedError, match="no grants"):
        give(health, "session.end", subjects=["s1"])
    health.configure(grants=two_persons)
    for other in (None, "ada", " ADA "):
        with pytest.raises(GrantDeniedError):
            give(health, "session.end", subjects=["s1"], approved_by=other)
    grant = give(health, "session.end", subjects=["s1"], approved_by="bob")
    assert "bob" in health.ledger.entries()[-1].why
    health.force(grant, end, "s1")
    health.configure(grants=anyone)
    give(health, "session.end", subjects=["s1"])


def test_a_policy_that_fails_denies(health: Safehold, end: Any) -> None:
    """Whatever is not a clear yes is a no: an exception, a coroutine, a value that is no reason."""

    def broken(_: GrantRequest) -> str | None:
        raise RuntimeError("directory is down")

    async def later(_: GrantRequest) -> None: ...

    seen: list[GrantRequest] = []
    for policy in (broken, later, lambda _: False, lambda _: "", lambda _: 0):
        health.configure(grants=policy)  # type: ignore[arg-type]
        with pytest.raises(GrantDeniedError) as denied:
            give(health, "session.end", subjects=["s1"])
        assert isinstance(denied.value, PermissionError)
    with pytest.raises(ConfigurationError, match="grants"):
        health.configure(grants="nobody")  # type: ignore[arg-type]
    health.configure(grants=lambda request: seen.append(request))  # type: ignore[func-returns-value]
    give(health, "session.end", subjects=["s1"], expires_in=60)
    (request,) = seen
    assert (request.operation, request.subjects, request.expires_in) == ("session.end", ("s1",), 60.0)
    assert health.ledger.entries()[-1].outcome == "noted"
    assert len(health.ledger.entries()) == 1, "what was denied was not noted"


def test_what_is_written(health: Safehold, end: Callable[[str], None]) -> None:
    """Who, why, which rules: when it is given, and again with the act that used it."""
    grant = give(health, "session.end", subjects=["s1", "s2"])
    health.force(grant, end, "s1")
    noted, intent, outcome = health.ledger.entries()
    assert (noted.outcome, noted.actor, noted.why, noted.grant) == ("noted", "ada", "stuck, INC-12", grant.id)
    assert (noted.reasons, noted.subject) == (tuple(sorted(OUT)), "s1, s2")
    assert (intent.outcome, intent.actor, intent.why, intent.grant) == (
        "intent",
        "ada",
        "stuck, INC-12",
        grant.id,
    )
    assert (set(intent.reasons), intent.subject) == (set(OUT), "s1")
    assert (outcome.outcome, outcome.intent, outcome.grant) == ("done", intent.number, grant.id)
    many = give(health, "session.end", subjects=[f"session-{number}" for number in range(1000)])
    assert len(str(health.ledger.entries()[-1].subject)) < 600
    assert len(many.subjects) == 1000
