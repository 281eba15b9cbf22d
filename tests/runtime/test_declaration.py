"""What people write down: declarations, handles, policies and manual verbs. Bad input is named at once."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from tenacity.wait import wait_fixed

from safehold import (
    Backoff,
    BreakerPolicy,
    BreakerState,
    Clock,
    ConfigurationError,
    CountWindow,
    Dependency,
    GatePolicy,
    HealthState,
    ProbePolicy,
    Safehold,
    SafeholdError,
    SystemClock,
    TimeWindow,
)
from safehold import (
    health as default_health,
)
from safehold.testing.clock import ManualClock

from .support import POLICY, answer, fail, in_threads, make_open, succeed


class Something:
    """A class, which is no function."""


async def work() -> None: ...


# --- declarations -------------------------------------------------------------------------------------


def test_a_handle_before_and_after_its_declaration(health: Safehold) -> None:
    """`health[name]` is one object, filled when the name is declared."""
    handle = health["redis"]
    assert (handle.declared, handle.critical, handle.policy) == (False, False, None)
    assert handle.state is HealthState.UNKNOWN
    assert "undeclared" in repr(handle)
    assert "redis" not in health
    declared = health.dependency("redis", critical=True, policy=POLICY)
    assert declared is handle is health["redis"]
    assert (handle.declared, handle.critical, handle.policy) == (True, True, POLICY)
    assert "redis" in health
    assert "unknown" in repr(handle)


def test_membership_and_iteration(health: Safehold) -> None:
    """`in` asks for declarations; iterating gives the declared ones first, in their order, then the rest."""
    _ = health["b"]
    health.dependency("a")
    assert [handle.name for handle in health] == ["a", "b"]
    assert ("a" in health, "b" in health, "c" in health, 5 in health, None in health) == (
        True,
        False,
        False,
        False,
        False,
    )
    for handle in health:  # naming one while iterating harms nobody
        _ = health[f"{handle.name}2"]
    assert set(health.status().undeclared) == {"b", "b2", "a2"}


def test_handles_from_many_threads(health: Safehold) -> None:
    """Threads that name one dependency at once get one handle."""
    handles = in_threads(lambda _: health["shared"], 8)
    assert len({id(handle) for handle in handles}) == 1
    declared = in_threads(lambda _: health.dependency("shared", policy=POLICY), 8)
    assert set(declared) == set(handles)


def probe() -> None: ...


SETTINGS: dict[str, Any] = {
    "critical": True,
    "policy": POLICY,
    "classify": ConnectionError,
    "probe": probe,
    "probe_policy": ProbePolicy(timeout=2.0),
}


def test_declared_twice_alike(health: Safehold) -> None:
    """Equal declarations are one, and change nothing."""
    handle = health.dependency("redis", **SETTINGS)
    fail(handle)
    again = {**SETTINGS, "policy": POLICY.model_copy(), "probe_policy": ProbePolicy(timeout=2.0)}
    before = handle.status()
    assert health.dependency("redis", **again) is handle
    assert handle.status() == before


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("critical", False),
        ("policy", BreakerPolicy(failures=17)),
        ("classify", OSError),
        ("probe", answer),
        ("probe_policy", ProbePolicy(timeout=3.0)),
    ],
)
def test_declared_twice_differently(health: Safehold, field: str, other: Any) -> None:
    """A different declaration raises, names the difference, and changes nothing."""
    handle = health.dependency("redis", **SETTINGS)
    with pytest.raises(ConfigurationError, match=field) as caught:
        health.dependency("redis", **{**SETTINGS, field: other})
    assert "redis" in str(caught.value)
    assert handle.policy == POLICY
    assert handle.critical


@pytest.mark.parametrize(
    ("name", "settings", "word"),
    [
        ("", {}, "dependency name"),
        ("  ", {}, "dependency name"),
        ("a\nb", {}, "dependency name"),
        ("x" * 201, {}, "dependency name"),
        (5, {}, "dependency name"),
        (None, {}, "dependency name"),
        ("redis", {"critical": 1}, "critical"),
        ("redis", {"critical": "yes"}, "critical"),
        ("redis", {"policy": GatePolicy()}, "policy"),
        ("redis", {"policy": {"failures": 3}}, "policy"),
        ("redis", {"policy": BreakerPolicy}, "policy"),
        ("redis", {"probe_policy": POLICY}, "probe_policy"),
        ("redis", {"probe": 5}, "probe"),
        ("redis", {"probe": Something}, "probe"),
        ("redis", {"classify": 5}, "classify"),
        ("redis", {"classify": "ConnectionError"}, "classify"),
        ("redis", {"classify": Something}, "classify"),
        ("redis", {"classify": KeyboardInterrupt}, "classify"),
        ("redis", {"classify": ()}, "classify"),
        ("redis", {"classify": (OSError, 5)}, "classify"),
        ("redis", {"classify": [OSError]}, "classify"),
    ],
)
def test_bad_declarations_are_named(health: Safehold, name: Any, settings: dict[str, Any], word: str) -> None:
    """A declaration that cannot work raises at once and names the argument; nothing is declared."""
    with pytest.raises(ConfigurationError, match=word):
        health.dependency(name, **settings)
    assert health.status().dependencies == {}
    assert health.status().undeclared == (), "and no handle is left behind"


def test_coroutine_objects_are_no_probes(health: Safehold) -> None:
    """A probe is a function; a coroutine object, made once, could answer only once."""
    coroutine = work()
    with pytest.raises(ConfigurationError, match="probe"):
        health.dependency("redis", probe=coroutine)  # type: ignore[arg-type]
    coroutine.close()
    health.dependency("redis", probe=work)


# --- policies -----------------------------------------------------------------------------------------

NOT_NUMBERS = [math.nan, math.inf, -math.inf, "five", True, [], object()]


@pytest.mark.parametrize(
    ("model", "field", "wrong"),
    [
        *((BreakerPolicy, "failures", value) for value in (0, -1, 1.5, math.nan, True, "x")),
        *((BreakerPolicy, "failure_rate", value) for value in (0, -0.1, 1.1, math.nan, math.inf, "x")),
        *((BreakerPolicy, "min_calls", value) for value in (0, -1, 1.5, None, 101)),
        *((BreakerPolicy, "slow_after", value) for value in (0, -1, math.nan, math.inf, 30.0, 31.0)),
        *((BreakerPolicy, "slow_rate", value) for value in (0, 1.1, math.nan, None)),
        *((BreakerPolicy, "successes", value) for value in (0, -1, 1.5, None, math.nan)),
        *((BreakerPolicy, "lease", value) for value in (0, -1, None, *NOT_NUMBERS)),
        *((BreakerPolicy, "cooldown", value) for value in (5, None, "x", Backoff)),
        *((BreakerPolicy, "window", value) for value in (5, None, CountWindow)),
        *((BreakerPolicy, "mode", value) for value in ("off", None, 1, "")),
        *((BreakerPolicy, "falures", value) for value in (3,)),
        *((ProbePolicy, "timeout", value) for value in (0, -1, None, *NOT_NUMBERS)),
        *((ProbePolicy, "interval", value) for value in (0, 0.5, -1, math.nan, "x")),
        *((ProbePolicy, "jitter", value) for value in (-0.1, 1.1, math.nan, None)),
        *((GatePolicy, "startup_grace", value) for value in (-1, None, *NOT_NUMBERS)),
        *((GatePolicy, "implicit_scope", value) for value in (-1, None, *NOT_NUMBERS)),
        *((GatePolicy, "settle_min", value) for value in (-1, 601, None, math.nan)),
        *((GatePolicy, "settle_max", value) for value in (-1, 29, None, math.inf)),
        *((GatePolicy, "mode", value) for value in ("disabled", "off", None)),
        *((Backoff, "first", value) for value in (0, -1, 61, None, *NOT_NUMBERS)),
        *((Backoff, "factor", value) for value in (0.9, 0, -1, None, math.nan)),
        *((Backoff, "cap", value) for value in (0.5, None, math.nan, math.inf)),
        *((Backoff, "jitter", value) for value in (-0.1, 1.1, None, math.nan)),
        *((CountWindow, "size", value) for value in (0, -1, 1.5, None, True)),
        *((TimeWindow, "length", value) for value in (0, -1, None, *NOT_NUMBERS)),
    ],
)
def test_bad_settings_are_named(model: Callable[..., Any], field: str, wrong: Any) -> None:
    """A setting that cannot work raises our own error, which names the field and fits any handler."""
    with pytest.raises(ConfigurationError, match=field) as caught:
        model(**{field: wrong})
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, SafeholdError)
    assert caught.value.code == "configuration"
    assert "\n" not in str(caught.value)


def test_policies_are_frozen_and_comparable() -> None:
    """A policy cannot be changed after it was checked, and equal ones are equal."""
    with pytest.raises((ConfigurationError, ValueError)):
        POLICY.failures = 5  # type: ignore[misc]
    assert BreakerPolicy() == BreakerPolicy()
    assert BreakerPolicy(failures=None, failure_rate=None).failures is None
    assert BreakerPolicy(cooldown=wait_fixed(3)).cooldown_wait is not None


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"name": ""}, "name"),
        ({"name": 5}, "name"),
        ({"clock": 5}, "clock"),
        ({"clock": object()}, "clock"),
        ({"rng": 5}, "rng"),
        ({"rng": random}, "rng"),
        ({"gate": BreakerPolicy()}, "gate"),
        ({"gate": "enforce"}, "gate"),
    ],
)
def test_bad_construction_is_named(settings: dict[str, Any], word: str) -> None:
    """A Safehold that cannot work is not made."""
    with pytest.raises(ConfigurationError, match=word):
        Safehold(**settings)


@pytest.mark.parametrize("wrong", ["", " ", 5, None, "a\tb"])
def test_bad_names_are_named_everywhere(health: Safehold, wrong: Any) -> None:
    """Guards, handles and scopes check their names like declarations do."""
    for call in (lambda: health[wrong], lambda: health.guard(wrong), lambda: health.scope(wrong)):
        with pytest.raises(ConfigurationError, match="name"):
            call()
    assert list(health) == []


def test_bad_listeners_are_named(health: Safehold) -> None:
    """Only what can be called can listen."""
    with pytest.raises(ConfigurationError, match="listener"):
        health.subscribe(5)  # type: ignore[arg-type]


def test_clocks() -> None:
    """The system's and the manual clock are clocks; the default Safehold is there and knows nothing yet."""
    assert isinstance(SystemClock(), Clock)
    assert isinstance(ManualClock(), Clock)
    assert isinstance(default_health, Safehold)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1, "x", None])
def test_manual_clock_refuses_to_go_back(wrong: Any) -> None:
    """Time passes, by a finite amount."""
    with pytest.raises(ConfigurationError, match="seconds"):
        ManualClock().advance(wrong)


# --- manual verbs -------------------------------------------------------------------------------------

VERBS = ["trip", "hold", "release", "reset"]


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_on_what_has_no_breaker(health: Safehold, verb: str) -> None:
    """An undeclared or disabled dependency cannot be tripped, held, released or reset, and says why."""
    off = health.dependency("off", policy=BreakerPolicy(mode="disabled"))
    for handle, word in ((off, "disabled"), (health["nobody"], "not declared")):
        with pytest.raises(ConfigurationError, match=word) as caught:
            getattr(handle, verb)("because")
        assert verb in str(caught.value)
        assert handle.state is HealthState.UNKNOWN


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("reason", ["", "  ", 5, None, "two\nlines", "x" * 201])
def test_verbs_want_a_reason(redis: Dependency, verb: str, reason: Any) -> None:
    """A reason is a line of text, because people will read it."""
    with pytest.raises(ConfigurationError, match="reason"):
        getattr(redis, verb)(reason)
    assert redis.breaker is BreakerState.CLOSED


def test_what_the_verbs_do(redis: Dependency, clock: ManualClock) -> None:
    """Trip opens for one cooldown, hold until released, release makes a trial due, reset closes."""
    redis.trip("tested")
    assert (redis.breaker, redis.retry_after, redis.held) == (BreakerState.OPEN, 10.0, False)
    assert redis.status().cause == "tested"
    redis.hold("maintenance")
    assert (redis.breaker, redis.retry_after, redis.held) == (BreakerState.OPEN, None, True)
    redis.trip("changes nothing")
    assert redis.held
    redis.release("done")
    assert (redis.breaker, redis.retry_after, redis.held) == (BreakerState.OPEN, 0.0, False)
    redis.reset("checked")
    assert (redis.breaker, redis.retry_after, redis.status().level) == (BreakerState.CLOSED, 0.0, 0)
    redis.release("changes nothing")
    assert redis.breaker is BreakerState.CLOSED


def test_reset_is_no_proof_of_health(redis: Dependency, clock: ManualClock) -> None:
    """What must settle settles all the same, and a reset from health is harmless."""
    succeed(redis)
    redis.reset("nothing was wrong")
    assert redis.breaker is BreakerState.CLOSED
    make_open(redis)
    redis.reset("checked")
    assert redis.state is HealthState.RECOVERING
    clock.advance(600)
    assert redis.state is HealthState.RECOVERING
    succeed(redis)
    assert redis.state is HealthState.HEALTHY


# --- reports ------------------------------------------------------------------------------------------


def test_status_of_nothing(health: Safehold) -> None:
    """A Safehold that knows nothing says so."""
    report = health.status()
    assert (report.name, report.overall, report.retry_after) == ("test", HealthState.UNKNOWN, 0.0)
    assert (report.dependencies, report.undeclared, report.probing) == ({}, (), False)


def test_status_of_the_whole(
    health: Safehold, redis: Dependency, api: Dependency, clock: ManualClock
) -> None:
    """Critical dependencies decide; an optional one that is down makes the whole degraded at most."""
    succeed(redis)
    assert health.status().overall is HealthState.HEALTHY
    make_open(api)
    report = health.status()
    assert (report.overall, report.retry_after) == (HealthState.DEGRADED, 10.0)
    make_open(redis)
    assert health.status().overall is HealthState.UNHEALTHY
    redis.hold()
    report = health.status()
    assert (report.overall, report.retry_after) == (HealthState.UNHEALTHY, None)
    assert report.dependencies["redis"].held
    assert report.dependencies["redis"].mode == "enforce"
    assert report.at.timestamp() == clock.wall()


def test_status_is_json_and_back(health: Safehold, redis: Dependency) -> None:
    """A report is a pydantic model that travels."""
    make_open(redis)
    report = health.status()
    assert type(report).model_validate_json(report.model_dump_json()) == report


def test_status_lets_time_take_effect(redis: Dependency, health: Safehold, clock: ManualClock) -> None:
    """A lease that ran out and a settle time that is over show when somebody looks."""
    make_open(redis)
    clock.advance(10)
    redis.permit().__enter__()
    assert health.status().dependencies["redis"].state is HealthState.RECOVERING
    clock.advance(30)
    assert health.status().dependencies["redis"].state is HealthState.UNHEALTHY
