"""What is raised: complete, portable, readable, and without a secret in it."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import logging
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

import safehold
from safehold import (
    ConfigurationError,
    Dependency,
    DependencyUnhealthy,
    HealthState,
    OperationBlocked,
    Refusal,
    Refused,
    Safehold,
    SafeholdError,
    errors,
)
from safehold.testing.clock import ManualClock

from .support import COOLDOWN, POLICY, Form, answer, make_healthy, make_open

CONTRACT = ("dependency", "state", "retry_after", "reason", "since")


def refused(redis: Dependency) -> DependencyUnhealthy:
    make_open(redis)
    with pytest.raises(DependencyUnhealthy) as caught, redis.permit():
        pass
    return caught.value


def blocked(health: Safehold) -> OperationBlocked:
    destroy = health.destructive("destroy", subject="session")(lambda session: None)
    with pytest.raises(OperationBlocked) as caught:
        destroy("s1")
    return caught.value


@pytest.fixture(params=["refused", "held", "blocked"])
def error(request: pytest.FixtureRequest, health: Safehold, redis: Dependency) -> Refused:
    """An error of each kind, as it was raised."""
    if request.param == "blocked":
        make_open(redis)
        return blocked(health)
    raised = refused(redis)
    if request.param == "held":
        redis.hold("maintenance")
        with pytest.raises(DependencyUnhealthy) as caught, redis.permit():
            pass
        raised = caught.value
    return raised


def contract(error: Refused) -> dict[str, Any]:
    told = {name: getattr(error, name) for name in CONTRACT}
    if isinstance(error, OperationBlocked):
        told |= {name: getattr(error, name) for name in ("operation", "subject", "outcome")}
        told["reasons"] = [(r.code, r.dependency, r.state, r.retry_after, r.text) for r in error.reasons]
    return told


# --- portable -----------------------------------------------------------------------------------------


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda error: pickle.loads(pickle.dumps(error)),
    "pickle 2": lambda error: pickle.loads(pickle.dumps(error, 2)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "twice": lambda error: copy.deepcopy(pickle.loads(pickle.dumps(error))),
    "payload": lambda error: Refused.from_payload(error.to_payload()),
    "mapping": lambda error: Refused.from_payload(error.to_payload().model_dump()),
    "json mapping": lambda error: Refused.from_payload(error.to_payload().model_dump(mode="json")),
    "json": lambda error: Refused.from_payload(error.to_payload().model_dump_json()),
    "bytes": lambda error: Refused.from_payload(error.to_payload().model_dump_json().encode()),
}


@pytest.mark.parametrize("way", WAYS)
def test_errors_travel(error: Refused, way: str) -> None:
    """Pickled, copied or sent as a payload, an error keeps its type and everything of the contract."""
    again = WAYS[way](error)
    assert type(again) is type(error)
    assert contract(again) == contract(error)
    assert again is not error


@pytest.mark.parametrize("way", ["pickle", "copy", "deepcopy"])
def test_copies_keep_what_was_added(error: Refused, way: str) -> None:
    """Notes and attributes of the application go along; the text stays the same."""
    error.add_note("seen by the reaper")
    error.ticket = 17  # type: ignore[attr-defined]
    again = WAYS[way](error)
    assert (again.__notes__, again.ticket, str(again)) == (["seen by the reaper"], 17, str(error))


@pytest.mark.parametrize("kind", ["refused", "blocked"])
@pytest.mark.parametrize("way", WAYS)
def test_errors_travel_later_too(
    health: Safehold, redis: Dependency, clock: ManualClock, kind: str, way: str
) -> None:
    """`retry_after` travels as it is when the error sets out, not as it was when it was raised."""
    make_open(redis)
    destroy = health.destructive("destroy", trigger="requested")(answer)
    with pytest.raises(Refused) as caught:
        destroy() if kind == "blocked" else redis.guard(answer)()
    error = caught.value
    clock.advance(4)
    assert error.retry_after == COOLDOWN - 4
    assert WAYS[way](error).retry_after == COOLDOWN - 4


def test_retry_after_is_computed_when_read(redis: Dependency, clock: ManualClock) -> None:
    """An error that was kept tells the truth of the moment at which it is asked."""
    error = refused(redis)
    for passed, left in ((0, 10.0), (7, 3.0), (3, 0.0), (100, 0.0)):
        clock.advance(passed)
        assert error.retry_after == left


@pytest.mark.parametrize("state", list(HealthState))
@pytest.mark.parametrize("retry_after", [None, 0.0, 1.5])
def test_errors_made_by_hand_travel(state: HealthState, retry_after: float | None) -> None:
    """An error that somebody built travels like one that was raised."""
    made = DependencyUnhealthy(
        "redis", state, retry_after, "breaker_open", datetime(2026, 1, 2, tzinfo=UTC), "timed out"
    )
    for way in WAYS.values():
        assert contract(way(made)) == contract(made)


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "soon", True])
def test_bad_retry_after_is_refused(wrong: Any) -> None:
    """Seconds are finite and never negative."""
    with pytest.raises(ConfigurationError, match="retry_after"):
        Refused("redis", HealthState.UNHEALTHY, wrong)


# --- the payload --------------------------------------------------------------------------------------


def test_payload_says_everything(health: Safehold, redis: Dependency) -> None:
    """One model carries it all: code, context, detail, and that nothing was executed."""
    make_open(redis)
    error = blocked(health)
    payload = json.loads(error.to_payload().model_dump_json())
    assert (payload["version"], payload["code"], payload["outcome"]) == (
        1,
        "operation_blocked",
        "not_executed",
    )
    assert (payload["operation"], payload["subject"], payload["dependency"]) == ("destroy", "s1", "redis")
    assert payload["detail"] == str(error)
    assert [reason["code"] for reason in payload["reasons"]] == ["dependency_unhealthy", "recent_miss"]
    assert set(payload) == set(Refusal.model_fields)


def minimal(**members: Any) -> dict[str, Any]:
    return {
        "code": "dependency_unhealthy",
        "dependency": "redis",
        "state": "unhealthy",
        "reason": "breaker_open",
        **members,
    }


def test_tolerant_reader() -> None:
    """What a newer version sends is read as well as can be."""
    again = Refused.from_payload(
        minimal(version=7, colour="red", state="hibernating", reasons=[], extra={"deep": [1, 2]})
    )
    assert type(again) is DependencyUnhealthy
    assert (again.state, again.retry_after, again.since) == (HealthState.UNKNOWN, None, None)
    plain = Refused.from_payload(minimal(code="budget_exceeded"))
    assert type(plain) is Refused
    assert plain.dependency == "redis"
    told = Refused.from_payload(
        minimal(
            code="operation_blocked",
            operation="destroy",
            reasons=[{"code": "new", "dependency": "redis", "state": "odd", "new": 1}],
        )
    )
    assert isinstance(told, OperationBlocked)
    assert (told.reasons[0].code, told.reasons[0].state) == ("new", HealthState.UNKNOWN)
    bare = Refused.from_payload(minimal(code="operation_blocked"))
    assert isinstance(bare, OperationBlocked)
    assert bare.reasons[0].code == "breaker_open"
    assert pickle.loads(pickle.dumps(bare)).reasons == bare.reasons


@pytest.mark.parametrize(
    "junk",
    [
        "",
        "not json",
        b"\xff\xfe",
        "[]",
        "null",
        "{}",
        "[" * 5000,
        {},
        [],
        None,
        5,
        minimal(dependency=None),
        minimal(dependency="x" * 201),
        minimal(retry_after=-1),
        minimal(retry_after=float("nan")),
        minimal(retry_after=float("inf")),
        minimal(retry_after="soon"),
        minimal(reason="x" * 101),
        minimal(since="yesterday"),
        minimal(reasons="many"),
        minimal(reasons=[{}]),
        minimal(reasons=[{"code": "c", "dependency": "d"}] * 101),
        minimal(detail="x" * 2001),
    ],
    ids=lambda junk: repr(junk)[:40],
)
def test_junk_is_no_refusal(junk: Any) -> None:
    """Whatever a stranger sends either reads as a refusal or raises our own error."""
    with pytest.raises(ConfigurationError, match="payload"):
        Refused.from_payload(junk)


def test_odd_states_are_unknown() -> None:
    """A state of any shape that is not one of ours is `unknown`."""
    for state in ("", "HEALTHY", 5, None, [], {}, ["healthy"]):
        assert Refused.from_payload(minimal(state=state)).state is HealthState.UNKNOWN


def test_long_texts_do_not_keep_an_error_from_travelling(health: Safehold) -> None:
    """Names and subjects of any allowed length make a payload that can be read back."""
    name = "d" * 200
    make_open(health.dependency(name, critical=True, policy=POLICY))
    destroy = health.destructive("o" * 200, subject="session")(lambda session: None)
    with pytest.raises(OperationBlocked) as caught:
        destroy("s" * 10_000)
    again = Refused.from_payload(caught.value.to_payload().model_dump_json())
    assert (again.dependency, again.operation) == (name, "o" * 200)  # type: ignore[attr-defined]


# --- for people ---------------------------------------------------------------------------------------


def test_text_of_a_refusal(redis: Dependency, clock: ManualClock) -> None:
    """At three in the morning one line says what, how, since when, why, what did not happen, and when."""
    clock.set_wall(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp())
    error = refused(redis)
    assert str(error) == (
        "redis is unhealthy since 03:04:05 UTC (Down), the call was not made, retry in 10 s"
    )
    clock.advance(10)
    assert str(error).endswith("retry now")
    redis.hold("maintenance")
    with pytest.raises(DependencyUnhealthy) as caught, redis.permit():
        pass
    assert "maintenance" in str(caught.value)
    assert str(caught.value).endswith("the call was not made, a person has to end this")


def test_text_of_a_block(health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    """A blocked operation names the operation, the trouble, what else there is, and when to try again."""
    clock.set_wall(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp())
    make_open(redis)
    error = blocked(health)
    assert str(error) == (
        "redis is unhealthy since 03:04:05 UTC (Down) (and 1 more), destroy was not executed, retry in 60 s"
    )


def test_no_text_shows_the_inside(error: Refused) -> None:
    """Neither the text nor the repr is empty, of several lines, or full of addresses."""
    for text in (str(error), repr(error)):
        assert "redis" in text
        assert "\n" not in text
        assert " at 0x" not in text


# --- codes --------------------------------------------------------------------------------------------


def test_every_error_has_a_stable_code() -> None:
    """Codes are for programs: one each, in small letters, and these."""
    found = {
        kind.__name__: kind.code
        for kind in vars(errors).values()
        if inspect.isclass(kind) and issubclass(kind, SafeholdError)
    }
    assert found == {
        "SafeholdError": "safehold_error",
        "ConfigurationError": "configuration",
        "Refused": "refused",
        "DependencyUnhealthy": "dependency_unhealthy",
        "OperationBlocked": "operation_blocked",
        "Saturated": "saturated",
    }
    assert set(found) <= set(safehold.__all__)


def test_the_family() -> None:
    """Three children of one parent; a blocked operation is no relative of any outage."""
    assert issubclass(DependencyUnhealthy, Refused)
    assert issubclass(errors.Saturated, Refused)
    assert not issubclass(errors.Saturated, DependencyUnhealthy)
    assert issubclass(OperationBlocked, Refused)
    assert OperationBlocked.__mro__[1:] == Refused.__mro__
    assert not issubclass(OperationBlocked, OSError | ValueError | LookupError | RuntimeError)


def test_a_block_without_a_reason_cannot_be_made() -> None:
    """Something is always to blame."""
    with pytest.raises(ConfigurationError, match="reasons"):
        OperationBlocked("destroy", ())


# --- secrets ------------------------------------------------------------------------------------------

SECRET = "hunter2"


class Leaky(ConnectionError):
    """What clients raise: the whole address, with the password."""

    def __init__(self, *extra: object) -> None:
        super().__init__(f"cannot reach redis://admin:{SECRET}@10.0.0.1:6379/0", *extra)


def test_no_secret_in_anything_we_say(
    form: Form,
    health: Safehold,
    redis: Dependency,
    clock: ManualClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The text of the application's exceptions appears in no error, payload, report, event or log line."""
    said: list[str] = []
    health.subscribe(lambda event: said.append(repr(event)))
    make_healthy(redis)

    def leak() -> None:
        try:
            raise Leaky(SECRET)
        except Leaky as error:
            error.add_note(SECRET)
            raise OSError(f"wrapped {SECRET}") from error

    def classify(error: Exception) -> bool:
        raise ValueError(SECRET)

    shop = health.dependency("shop", policy=POLICY, classify=classify)
    call = form.guard(redis, leak)
    destroy = health.destructive("destroy", subject="session", requires=["redis", "shop"])(
        lambda session: None
    )
    with caplog.at_level(logging.DEBUG, "safehold"), health.scope("sweep") as scope:
        for dependency_call in (call, form.guard(shop, leak)):
            for _ in range(3):
                try:
                    dependency_call()
                except OSError:
                    try:
                        destroy("s1")
                    except OperationBlocked as error:
                        said += [str(error), repr(error), repr(error.reasons), str(error.to_payload())]
        with pytest.raises(DependencyUnhealthy) as caught:
            call()
        said += [str(caught.value), repr(caught.value), caught.value.cause, str(caught.value.to_payload())]
        said += [str(dict(scope.taints)), health.status().model_dump_json(), str(health.check("destroy"))]
    said += [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    assert len(said) > 10
    assert not [text for text in said if SECRET in text or "10.0.0.1" in text]


def test_a_number_of_the_system_is_said_in_words(health: Safehold) -> None:
    """Where the operating system has words for it, they are the cause; else the type, never the text."""
    for index, (error, words) in enumerate(
        (
            (ConnectionRefusedError(111, SECRET), "connection refused"),
            (TimeoutError(SECRET), "timed out"),
            (Leaky(), "Leaky"),
        )
    ):
        dependency = health.dependency(f"d{index}")
        with contextlib.suppress(OSError), dependency.permit():
            raise error
        assert dependency.status().cause == words
