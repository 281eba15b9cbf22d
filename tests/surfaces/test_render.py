"""What clients are told of a refusal: enough to act on, and nothing that is nobody's business."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehold import ConfigurationError, DependencyUnhealthy, OperationBlocked, Refused, Saturated
from safehold._core.gate import Reason
from safehold._core.health import HealthState
from safehold.surfaces._render import (
    TEXTS,
    blamed,
    find_refusal,
    long,
    problem,
    refused,
    short,
    status_of,
    table,
)

DOWN = HealthState.UNHEALTHY
OPEN = DependencyUnhealthy("redis", DOWN, 11.2, "breaker_open")


def blocked(
    wait: float | None, text: str = "redis is unhealthy", subject: str | None = None
) -> OperationBlocked:
    reason = Reason(code="dependency_unhealthy", dependency="redis", state=DOWN, retry_after=wait, text=text)
    return OperationBlocked("session.end", (reason,), subject)


@pytest.mark.parametrize(
    ("refusal", "text"),
    [
        (OPEN, "redis is unavailable; the call was not made and changed nothing; try again in 12 s"),
        (blocked(0), "redis is unavailable; session.end was not executed and changed nothing; try again now"),
        (
            Saturated("redis", HealthState.HEALTHY, 130.0, "saturated"),
            "redis is given no more calls at the moment; the call was not made and changed nothing;"
            " try again in 3 min",
        ),
        (
            DependencyUnhealthy("redis", DOWN, None, "held"),
            "redis is held back by a person; the call was not made and changed nothing;"
            " trying again does not help, a person has to end this",
        ),
        (
            Refused("self", HealthState.UNKNOWN, 7201, "startup_grace"),
            "this service holds it back by itself; the call was not made and changed nothing; try again in 3 h",
        ),
    ],
)
def test_short_form_says_who_what_and_when(refusal: Refused, text: str) -> None:
    """Which dependency, that this changed nothing, and when to retry."""
    assert short(refusal) == text


def test_long_form_adds_the_codes() -> None:
    """An operator who is sent the text can look the codes up."""
    told = long(blocked(3.0))
    assert "state unhealthy, reason dependency_unhealthy" in told
    assert "session.end was not executed" in told
    assert "try again in 3 s." in told


def test_texts_are_translated_by_a_table() -> None:
    """What is not translated stays as it is."""
    german = table({"unhealthy": "{dependency} ist nicht erreichbar", "seconds": "erneut in {wait} s"})
    assert short(OPEN, german).startswith("redis ist nicht erreichbar; the call")
    assert short(OPEN, german).endswith("erneut in 12 s")


@pytest.mark.parametrize("texts", [{"unhealty": "x"}, {"unhealthy": "{dependancy}"}, {"short": "{what"}])
def test_table_that_cannot_be_rendered_is_refused_at_once(texts: dict[str, str]) -> None:
    """Not in the middle of an outage."""
    with pytest.raises(ConfigurationError):
        table(texts)


@pytest.mark.parametrize(
    ("refusal", "status", "header"),
    [
        (OPEN, 503, "12"),
        (DependencyUnhealthy("redis", DOWN, 0.0, "trial_in_flight"), 503, "1"),
        (DependencyUnhealthy("redis", DOWN, 0.001, "breaker_open"), 503, "1"),
        (DependencyUnhealthy("redis", DOWN, 12.0, "breaker_open"), 503, "12"),
        (Saturated("redis", HealthState.HEALTHY, 0.2, "saturated"), 429, "1"),
        (DependencyUnhealthy("redis", DOWN, None, "held"), 409, None),
        (blocked(None), 409, None),
        (blocked(4.5), 503, "5"),
    ],
)
def test_status_and_header(refusal: Refused, status: int, header: str | None) -> None:
    """`Retry-After` is rounded up and never zero; where waiting does not help there is none."""
    answer = refused(refusal)
    headers = dict(answer.headers)
    told = json.loads(answer.body)
    assert (answer.status, headers.get("retry-after")) == (status, header)
    assert (told["status"], status_of(refusal)) == (status, status)
    assert headers["content-type"] == "application/problem+json"
    assert headers["content-length"] == str(len(answer.body))
    assert told["retry_after"] == refusal.retry_after
    assert told["retryable"] is (refusal.retry_after is not None)


def test_problem_has_the_members() -> None:
    """Those of RFC 9457, and ours."""
    assert problem(blocked(4.25), instance="urn:uuid:1") == {
        "type": "urn:safehold:problem:operation_blocked",
        "title": TEXTS["title.operation_blocked"],
        "status": 503,
        "detail": short(blocked(4.25)),
        "instance": "urn:uuid:1",
        "code": "operation_blocked",
        "dependency": "redis",
        "state": "unhealthy",
        "reason": "dependency_unhealthy",
        "retryable": True,
        "retry_after": 4.25,
        "outcome": "not_executed",
        "operation": "session.end",
    }


def test_problem_is_a_payload() -> None:
    """Whoever receives it can turn it back into the exception."""
    back = Refused.from_payload(refused(blocked(4.25)).body)
    assert isinstance(back, OperationBlocked)
    assert (back.operation, back.dependency, back.state, back.retry_after) == (
        "session.end",
        "redis",
        DOWN,
        4.25,
    )


SECRETS = st.text("abcdefghijklmnopqrstuvwxyz0123456789!$%^&*:/?#", min_size=12, max_size=30).map(
    "Zq".__add__
)


@given(SECRETS, st.sampled_from(["redis", "https", "amqp"]))
def test_no_credential_gets_out(secret: str, scheme: str) -> None:
    """Whatever a cause, a subject, a reason's text or even a name quotes."""
    url = f"{scheme}://user:{secret}@db-7.internal:6379/0"
    for refusal in (
        DependencyUnhealthy("redis", DOWN, 1.0, "breaker_open", cause=f"ConnectionError: {url}"),
        DependencyUnhealthy(url, DOWN, 1.0, url, cause=secret),
        blocked(1.0, text=f"cannot reach {url}", subject=url),
        OperationBlocked(url, blocked(1.0, text=secret).reasons),
    ):
        told = json.loads(refused(refusal).body)
        for text in (*map(str, told.values()), short(refusal), long(refusal)):
            assert secret not in text
            assert "db-7" not in text


def raised_from(error: Exception) -> Exception:
    try:
        try:
            raise error
        except Exception as inner:
            raise RuntimeError("wrapped") from inner
    except RuntimeError as outer:
        return outer


def raised_during(error: Exception, *, hidden: bool = False) -> Exception:
    try:
        try:
            raise error
        except Exception:
            if hidden:
                raise KeyError("x") from None
            raise KeyError("x")  # noqa: B904 - the context is what is looked for
    except KeyError as outer:
        return outer


def test_refusal_is_found_behind_what_wraps_it() -> None:
    """Causes, contexts and groups, in any order."""
    for error in (
        OPEN,
        raised_from(OPEN),
        raised_during(OPEN),
        raised_from(raised_during(OPEN)),
        ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [raised_from(OPEN)])]),
    ):
        assert find_refusal(error) is OPEN
    assert find_refusal(ValueError()) is None


def test_error_that_only_came_up_after_it_is_told_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """It may be a mistake, and the client is told of the refusal alone. What was wrapped on purpose is none."""
    assert blamed(raised_from(OPEN)) is OPEN
    assert caplog.records == []
    assert blamed(raised_during(OPEN)) is OPEN
    assert [record.getMessage() for record in caplog.records] == ["error_after_refusal: KeyError"]
    assert blamed(ValueError()) is None


def test_from_none_hides_it() -> None:
    """The application has said that one thing has nothing to do with the other."""
    assert find_refusal(raised_during(OPEN, hidden=True)) is None


def test_circle_of_causes_ends() -> None:
    """Exceptions can be their own causes, by mistake."""
    one, two = ValueError(), KeyError()
    one.__cause__, two.__cause__ = two, one
    assert find_refusal(one) is None
