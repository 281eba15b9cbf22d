"""What people write: defaults, ranges, and what is said about bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError
from tenacity import wait_fixed

from safehold._core.backoff import Backoff
from safehold._core.configuration import ConfigurationError, SafeholdError
from safehold._core.gate import GateSettings
from safehold._core.schedule import ProbeSettings
from safehold._core.settings import BreakerSettings, Mode
from safehold._core.window import CountWindow, TimeWindow
from safehold._runtime.policies import BreakerPolicy, GatePolicy, ProbePolicy, check_policy

NUMBERS = {
    "zero": 0,
    "negative": -1,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "text": "many",
    "list": [1],
}
BOOLS = {"true": True, "false": False}


def bad(policy: type, field: str, *kinds: str) -> list[Any]:
    values = {**NUMBERS, **BOOLS}
    return [
        pytest.param(policy, field, values[kind], id=f"{policy.__name__}.{field}={kind}") for kind in kinds
    ]


ALL = (*NUMBERS, *BOOLS)
NOT_ZERO = tuple(kind for kind in ALL if kind != "zero")


@pytest.mark.parametrize(
    ("policy", "field", "value"),
    [
        *bad(BreakerPolicy, "failures", *ALL),
        *bad(BreakerPolicy, "failure_rate", *ALL),
        *bad(BreakerPolicy, "min_calls", *ALL),
        *bad(BreakerPolicy, "slow_after", *ALL),
        *bad(BreakerPolicy, "slow_rate", *ALL),
        *bad(BreakerPolicy, "successes", *ALL),
        *bad(BreakerPolicy, "lease", *ALL),
        *bad(BreakerPolicy, "window", *ALL),
        *bad(BreakerPolicy, "cooldown", *ALL),
        *bad(BreakerPolicy, "mode", *ALL),
        *bad(ProbePolicy, "timeout", *ALL),
        *bad(ProbePolicy, "interval", *ALL),
        *bad(ProbePolicy, "jitter", *NOT_ZERO),
        *bad(GatePolicy, "startup_grace", *NOT_ZERO),
        *bad(GatePolicy, "implicit_scope", *NOT_ZERO),
        *bad(GatePolicy, "settle_min", *NOT_ZERO),
        *bad(GatePolicy, "settle_max", *NOT_ZERO),
        *bad(GatePolicy, "mode", *ALL),
        pytest.param(BreakerPolicy, "failures", 2.5, id="BreakerPolicy.failures=fraction"),
        pytest.param(BreakerPolicy, "failure_rate", 1.01, id="BreakerPolicy.failure_rate=above 1"),
        pytest.param(BreakerPolicy, "slow_rate", 1.01, id="BreakerPolicy.slow_rate=above 1"),
        pytest.param(BreakerPolicy, "lease", None, id="BreakerPolicy.lease=none"),
        pytest.param(BreakerPolicy, "mode", "shadow", id="BreakerPolicy.mode=no such"),
        pytest.param(GatePolicy, "mode", "disabled", id="GatePolicy.mode=disabled"),
        pytest.param(ProbePolicy, "jitter", 1.01, id="ProbePolicy.jitter=above 1"),
        pytest.param(BreakerPolicy, "cooldown", 5.0, id="BreakerPolicy.cooldown=number"),
    ],
)
def test_bad_input_is_named_with_its_value(policy: type, field: str, value: object) -> None:
    """Every setting that cannot work is a configuration error that names the field and the value it had."""
    with pytest.raises(ConfigurationError) as caught:
        policy(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"{policy.__name__}: ")
    assert field in message
    assert repr(value) in message or (isinstance(value, int) and repr(float(value)) in message)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BreakerPolicy(window=CountWindow(10)), ["min_calls=20", "CountWindow(size=10)"]),
        (lambda: BreakerPolicy(min_calls=101), ["min_calls=101", "CountWindow(size=100)"]),
        (
            lambda: BreakerPolicy(failure_rate=None, slow_after=1.0, min_calls=101),
            ["min_calls=101", "CountWindow(size=100)"],
        ),
        (lambda: BreakerPolicy(slow_after=30.0), ["slow_after=30", "lease=30"]),
        (lambda: BreakerPolicy(slow_after=5.0, lease=2.0), ["slow_after=5", "lease=2"]),
        (lambda: GatePolicy(settle_min=601.0), ["settle_min=601", "settle_max=600"]),
        (lambda: GatePolicy(settle_max=29.0), ["settle_min=30", "settle_max=29"]),
        (lambda: ProbePolicy(interval=0.5), ["interval=0.5", "timeout=1"]),
        (lambda: ProbePolicy(timeout=9.0, interval=8.0), ["interval=8", "timeout=9"]),
    ],
)
def test_a_contradiction_names_both_sides(make: Any, words: list[str]) -> None:
    """Two settings that cannot both be right are told together, each with its value."""
    with pytest.raises(ConfigurationError) as caught:
        make()
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: BreakerPolicy(min_calls=100),
        lambda: BreakerPolicy(window=CountWindow(20)),
        lambda: BreakerPolicy(window=TimeWindow(1.0), min_calls=10_000),
        lambda: BreakerPolicy(failure_rate=None, min_calls=500),
        lambda: BreakerPolicy(slow_after=29.75),
        lambda: BreakerPolicy(failure_rate=1.0, slow_rate=1.0, failures=1, successes=1, min_calls=1),
        lambda: BreakerPolicy(failures=None, failure_rate=None),
        lambda: BreakerPolicy(lease=0.01, cooldown=Backoff(first=0.01, cap=0.01, jitter=1.0)),
        lambda: GatePolicy(startup_grace=0, implicit_scope=0, settle_min=0, settle_max=0),
        lambda: GatePolicy(settle_min=30, settle_max=30),
        lambda: ProbePolicy(interval=1.0, jitter=0.0),
        lambda: ProbePolicy(interval=None, jitter=1.0),
    ],
)
def test_the_ends_of_the_ranges_work(make: Any) -> None:
    """Bounds are inclusive where the documentation says so."""
    assert make() is not None


def test_several_faults_are_told_together() -> None:
    """Whoever has two settings wrong is told of both at once."""
    with pytest.raises(ConfigurationError) as caught:
        BreakerPolicy(failures="many", lease=[])
    assert "failures" in str(caught.value)
    assert "lease" in str(caught.value)


def test_a_setting_that_does_not_exist_is_refused() -> None:
    """A misspelt name is no setting that is silently ignored."""
    with pytest.raises(ConfigurationError, match="failure_treshold"):
        BreakerPolicy(failure_treshold=5)


def test_a_configuration_error_is_what_callers_expect_of_bad_input() -> None:
    """It is a ValueError and a TypeError, one of ours, and hides no second exception."""
    with pytest.raises(ValueError) as caught:
        BreakerPolicy(lease=0)
    assert isinstance(caught.value, ConfigurationError | SafeholdError)
    assert isinstance(caught.value, TypeError)
    assert not isinstance(caught.value, ValidationError)
    assert caught.value.__suppress_context__
    assert caught.value.code == "configuration"


def test_defaults_are_those_of_the_documentation() -> None:
    """The numbers that every guide relies on."""
    assert BreakerPolicy().model_dump() == {
        "failures": 5,
        "failure_rate": 0.5,
        "window": {"size": 100},
        "min_calls": 20,
        "slow_after": None,
        "slow_rate": 0.5,
        "cooldown": {"first": 1.0, "factor": 2.0, "cap": 60.0, "jitter": 0.5},
        "successes": 1,
        "lease": 30.0,
        "spread": 0.0,
        "mode": "enforce",
    }
    assert ProbePolicy().model_dump() == {"timeout": 1.0, "interval": None, "jitter": 0.2}
    assert GatePolicy().model_dump() == {
        "startup_grace": 30.0,
        "implicit_scope": 60.0,
        "settle_min": 30.0,
        "settle_max": 600.0,
        "stall_after": 2.0,
        "quiet_time": 30.0,
        "mode": "enforce",
    }


def test_policies_and_the_settings_of_the_core_agree() -> None:
    """What nobody sets is the same above and below."""
    assert BreakerPolicy().to_settings(GatePolicy().to_settings()) == BreakerSettings()
    assert GatePolicy().to_settings() == GateSettings()
    assert ProbePolicy().to_settings() == ProbeSettings()


def test_every_setting_reaches_the_core() -> None:
    """No setting is lost on the way."""
    policy = BreakerPolicy(
        failures=7,
        failure_rate=0.25,
        window=TimeWindow(9.0),
        min_calls=3,
        slow_after=2.0,
        slow_rate=0.75,
        cooldown=Backoff(first=2.0, factor=3.0, cap=50.0, jitter=0.1),
        successes=4,
        lease=11.0,
        mode="observe",
    )
    gate = GatePolicy(startup_grace=1.0, implicit_scope=2.0, settle_min=3.0, settle_max=4.0, mode="observe")
    assert policy.to_settings(gate.to_settings()) == BreakerSettings(
        failures=7,
        failure_rate=0.25,
        window=TimeWindow(9.0),
        min_calls=3,
        slow_after=2.0,
        slow_rate=0.75,
        cooldown=Backoff(first=2.0, factor=3.0, cap=50.0, jitter=0.1),
        successes=4,
        lease=11.0,
        mode=Mode.OBSERVE,
        settle_min=3.0,
        settle_max=4.0,
    )
    assert gate.to_settings() == GateSettings(
        startup_grace=1.0, implicit_scope=2.0, settle_min=3.0, settle_max=4.0, enforce=False
    )
    probe = ProbePolicy(timeout=2.0, interval=20.0, jitter=0.5)
    assert probe.to_settings() == ProbeSettings(timeout=2.0, interval=20.0, jitter=0.5)


def test_a_tenacity_wait_may_decide_the_cooldown() -> None:
    """Any tenacity wait is taken as it is; the core has a default to stand on meanwhile."""
    wait = wait_fixed(3)
    policy = BreakerPolicy(cooldown=wait)
    assert policy.cooldown_wait is wait
    assert policy.to_settings(GateSettings()).cooldown == Backoff()
    assert BreakerPolicy().cooldown_wait is None


def test_policies_are_frozen_values() -> None:
    """A policy cannot be changed behind the back of who uses it, and equals one with equal settings."""
    policy = BreakerPolicy(failures=3)
    with pytest.raises(ValidationError):
        policy.failures = 4
    assert policy == BreakerPolicy(failures=3)
    assert policy != BreakerPolicy()


def test_a_policy_of_the_wrong_kind_is_refused_by_name() -> None:
    """Where a policy is expected, a dictionary or another policy is told so."""
    assert check_policy("policy", None, BreakerPolicy) == BreakerPolicy()
    assert check_policy("policy", (mine := BreakerPolicy(failures=1)), BreakerPolicy) is mine
    for value in ({"failures": 1}, GatePolicy(), 5):
        with pytest.raises(ConfigurationError, match="policy must be a BreakerPolicy"):
            check_policy("policy", value, BreakerPolicy)
