"""Evidence: three values with their provenance, and operations that demand it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest

from safehold import (
    UNKNOWN,
    ConfigurationError,
    Dependency,
    Evidence,
    OperationBlocked,
    Presence,
    Safehold,
    combine,
)
from safehold.testing.clock import ManualClock

from .support import Down, Rejected, finish, make_healthy, make_open


class Sight:
    """What a witness will find, and the witness in both forms."""

    def __init__(self, health: Safehold, dependency: str, form: str) -> None:
        self.found: Any = False
        self.raises: BaseException | None = None
        self.before: Callable[[], Any] = lambda: None
        self.form = form

        def session_exists(session_id: str) -> Any:
            self.before()
            if self.raises is not None:
                raise self.raises
            return self.found

        async def asession_exists(session_id: str) -> Any:
            return session_exists(session_id)

        function: Any = session_exists if form == "function" else asession_exists
        self.witness = health.witness(dependency, name="session_exists")(function)

    def look(self, subject: Any = "s1") -> Evidence:
        seen: Any = self.witness(subject)
        return finish(seen) if self.form == "async" else seen


@pytest.fixture(params=["function", "async"])
def sight(request: pytest.FixtureRequest, health: Safehold, redis: Dependency) -> Sight:
    make_healthy(redis)
    return Sight(health, "redis", request.param)


@pytest.fixture
def reap(health: Safehold, sight: Sight) -> Callable[[str], Any]:
    @health.destructive("session.reap", subject="session_id", evidence="session_exists")
    def reap(session_id: str) -> str:
        return f"{session_id} reaped"

    return reap


def codes(blocked: pytest.ExceptionInfo[OperationBlocked]) -> list[str]:
    return [reason.code for reason in blocked.value.reasons]


def blocked_for(reap: Callable[[str], Any], subject: str = "s1") -> list[str]:
    with pytest.raises(OperationBlocked) as blocked:
        reap(subject)
    return codes(blocked)


# --- what a witness gives -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "presence"),
    [
        (True, Presence.PRESENT),
        (False, Presence.ABSENT),
        (None, Presence.UNKNOWN),
        (0, Presence.UNKNOWN),
        ([], Presence.UNKNOWN),
        (UNKNOWN, Presence.UNKNOWN),
        (Presence.ABSENT, Presence.ABSENT),
    ],
)
def test_only_a_clean_no_is_absence(sight: Sight, found: Any, presence: Presence) -> None:
    """An empty list, a zero, a forgotten return are no proof."""
    sight.found = found
    seen = sight.look()
    assert seen.presence is presence
    assert (seen.subject, seen.witness, seen.dependency) == ("s1", "session_exists", "redis")
    assert bool(seen.why) == (presence is Presence.UNKNOWN)


@pytest.mark.parametrize(
    "error", [Down("no"), Rejected("no"), KeyError("x"), TimeoutError(), RecursionError()]
)
def test_every_exception_makes_unknown(sight: Sight, error: Exception) -> None:
    """Also one that nobody has seen before; the caller gets evidence, not the exception."""
    sight.raises = error
    assert sight.look().presence is Presence.UNKNOWN


def test_a_failure_counts_as_one_of_the_dependency(sight: Sight, redis: Dependency) -> None:
    """The witness is a guarded call."""
    sight.raises = Down("no")
    sight.look()
    assert redis.status().failures == 1
    assert redis.status().unresolved_miss


def test_a_swallowed_miss_makes_unknown(sight: Sight, redis: Dependency) -> None:
    """A function that answers False because it could not tell is found out."""

    @redis.guard
    def ask() -> None:
        raise Down("no")

    def swallow() -> None:
        with pytest.raises(Down):
            ask()

    sight.before = swallow
    seen = sight.look()
    assert seen.presence is Presence.UNKNOWN
    assert "redis did not answer" in seen.why


def test_an_open_breaker_makes_unknown(sight: Sight, redis: Dependency) -> None:
    """Nothing was asked, so nothing is known."""
    make_open(redis)
    seen = sight.look()
    assert seen.presence is Presence.UNKNOWN
    assert "redis is unhealthy" in seen.why


@pytest.mark.parametrize("kind", [asyncio.CancelledError, KeyboardInterrupt])
def test_cancellation_goes_on_and_proves_nothing(
    sight: Sight, reap: Callable[[str], Any], kind: type[BaseException]
) -> None:
    """It is never turned into evidence; what was known before is void."""
    assert sight.look().presence is Presence.ABSENT
    sight.raises = kind()
    with pytest.raises(kind):
        sight.look()
    assert "evidence_unknown" in blocked_for(reap)


def test_a_witness_keeps_what_its_function_was(health: Safehold) -> None:
    """Name, docstring, signature, and whether it is awaited."""

    @health.witness("redis")
    async def there(path: str, *, deep: bool = False) -> bool:
        """Say whether it is there."""
        return deep

    assert (there.__name__, there.__doc__) == ("there", "Say whether it is there.")  # type: ignore[attr-defined]
    assert inspect.iscoroutinefunction(there)
    assert list(inspect.signature(there).parameters) == ["path", "deep"]


def test_methods_testify_about_their_first_argument(health: Safehold, redis: Dependency) -> None:
    """Not about the object that they belong to."""

    class Registry:
        @health.witness("redis", name="known")
        def known(self, name: str) -> bool:
            return name == "a"

    assert Registry().known("a").subject == "a"
    assert Registry().known(name="b").presence is Presence.ABSENT


# --- what evidence is -----------------------------------------------------------------------------------


def test_evidence_is_no_bool_and_no_key(sight: Sight) -> None:
    """Whoever takes it for one is told at once."""
    seen: Any = sight.look()
    with pytest.raises(TypeError, match="truth value"):
        bool(seen)
    with pytest.raises(TypeError, match="presence"):
        _ = seen == False  # noqa: E712
    with pytest.raises(TypeError, match="presence"):
        _ = seen != True  # noqa: E712
    with pytest.raises(TypeError, match="unhashable"):
        _ = {seen: 1}
    assert seen == seen
    with pytest.raises(AttributeError):
        seen.presence = Presence.PRESENT


def test_present_beats_unknown_beats_absent(sight: Sight) -> None:
    """Whatever their order."""
    seen = {}
    for name, found in (("present", True), ("absent", False), ("unknown", None)):
        sight.found = found
        seen[name] = sight.look()
    present, absent, unknown = seen["present"], seen["absent"], seen["unknown"]
    for several in ([present, unknown, absent], [absent, unknown, present], [absent, present]):
        assert combine(several) is present
    assert combine([absent, unknown, absent]) is unknown
    assert combine([absent]) is absent
    with pytest.raises(ConfigurationError, match="no proof"):
        combine([])


# --- what an operation demands --------------------------------------------------------------------------


def test_complete_proof_lets_the_operation_run(
    sight: Sight, reap: Callable[[str], Any], health: Safehold
) -> None:
    """The positive twin of all that follows: in a scope, and without one."""
    sight.look()
    assert reap("s1") == "s1 reaped"
    with health.scope("sweep"):
        sight.look("s2")
        assert reap("s2") == "s2 reaped"


def test_each_missing_part_is_named(
    sight: Sight, reap: Callable[[str], Any], clock: ManualClock, redis: Dependency
) -> None:
    """Not asked, there, cannot tell, about another, too old."""
    assert blocked_for(reap) == ["evidence_missing"]
    sight.found = True
    sight.look()
    assert blocked_for(reap) == ["evidence_present"]
    sight.found = None
    sight.look()
    assert blocked_for(reap) == ["evidence_unknown"]
    sight.found = False
    sight.look("another")
    assert blocked_for(reap) == ["evidence_unknown"]
    sight.look()
    clock.advance(5.0)
    assert reap("s1") == "s1 reaped"
    clock.advance(0.001)
    assert blocked_for(reap) == ["evidence_stale"]


def test_evidence_belongs_to_its_scope(sight: Sight, reap: Callable[[str], Any], health: Safehold) -> None:
    """A second attempt asks again: what the first one saw is dead."""
    with health.scope("attempt 1"):
        sight.look()
    with health.scope("attempt 2"):
        assert blocked_for(reap) == ["evidence_foreign"]
        sight.look()
        assert reap("s1") == "s1 reaped"
    assert blocked_for(reap) == ["evidence_foreign"]


def test_evidence_of_an_enclosing_scope_holds(
    sight: Sight, reap: Callable[[str], Any], health: Safehold
) -> None:
    """The other way round it does not."""
    with health.scope("sweep"):
        sight.look()
        with health.scope("item"):
            assert reap("s1") == "s1 reaped"
            sight.look("s2")
        assert blocked_for(reap, "s2") == ["evidence_foreign"]


def test_a_failure_since_overtakes_it(
    sight: Sight, reap: Callable[[str], Any], redis: Dependency, clock: ManualClock
) -> None:
    """Also one that was resolved, and one that has tripped and recovered."""
    sight.look()
    clock.advance(1.0)
    redis.report("failure")
    redis.report("success")
    assert "evidence_overtaken" in blocked_for(reap)
    sight.look()
    clock.advance(1.0)
    redis.trip()
    redis.reset()
    assert "evidence_overtaken" in blocked_for(reap)


@pytest.mark.parametrize("trigger", ["automatic", "requested"])
def test_both_triggers_need_it(health: Safehold, sight: Sight, trigger: str) -> None:
    """It speaks of the subject, not of who wants it gone."""

    @health.destructive("x", trigger=trigger, subject="session_id", evidence="session_exists")
    def x(session_id: str) -> str:
        return "done"

    assert blocked_for(x) == ["evidence_missing"]
    sight.look()
    assert x("s1") == "done"


def test_an_unknown_witness_blocks(health: Safehold, redis: Dependency) -> None:
    """Names are looked up late; one that never comes holds the operation back."""
    make_healthy(redis)

    @health.destructive("x", subject="name", evidence="nobody")
    def x(name: str) -> None: ...

    assert blocked_for(x) == ["evidence_missing"]


def test_forked_children_have_no_evidence(health: Safehold, sight: Sight, reap: Callable[[str], Any]) -> None:
    """What the parent saw is void."""
    sight.look()
    health._reborn()
    assert "evidence_missing" in blocked_for(reap)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"evidence": "w"}, "subject"),
        ({"evidence": "", "subject": "a"}, "evidence"),
        ({"evidence": "w", "subject": "a", "evidence_age": 0}, "evidence_age"),
    ],
)
def test_bad_demands_are_named(health: Safehold, arguments: dict[str, Any], name: str) -> None:
    """At once, where the operation is written."""
    with pytest.raises(ConfigurationError, match=name):
        health.destructive("x", **arguments)(lambda a: None)


def test_bad_witnesses_are_named(health: Safehold) -> None:
    """A class, a generator, a function without a subject, a name that is taken."""

    def items(a: str) -> Any:
        yield a

    for bad in (int, items, lambda: True):
        with pytest.raises(ConfigurationError):
            health.witness("redis", name="bad")(bad)
    health.witness("redis", name="taken")(lambda a: True)

    def other(a: str) -> bool:
        return True

    with pytest.raises(ConfigurationError, match="taken"):
        health.witness("redis", name="taken")(other)
    with pytest.raises(ConfigurationError, match="None"):
        health.witness("redis", name="nobody")(lambda a: True)(None)
