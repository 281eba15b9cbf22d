"""tenacity's retries respect what Safehold knows: sync and async, by decorator and by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis as redis_py
import tenacity
from tenacity import AsyncRetrying, RetryError, Retrying, stop_after_attempt, wait_fixed, wait_none

from safehold import (
    Backoff,
    BreakerPolicy,
    ConfigurationError,
    Dependency,
    DependencyUnhealthy,
    HealthState,
    OperationBlocked,
    RetryBudget,
    Safehold,
    Saturated,
)
from safehold.callsites.httpx import guard_client as guard_httpx
from safehold.callsites.redis import guard_client
from safehold.tenacity import retry_unless_refused, retry_within, stop_when_held, wait_retry_after
from safehold.testing.clock import ManualClock

from .support import COOLDOWN, POLICY, Down, make_healthy, make_open


class Caller:
    """A user call under a retry, sync or async; sleeping moves the manual clock and is noted."""

    def __init__(self, kind: str, clock: ManualClock) -> None:
        self.kind = kind
        self.clock = clock
        self.slept: list[float] = []
        self.attempts = 0
        self.retrying: Any = None

    def __call__(self, attempt: Callable[[], Any], **policy: Any) -> Any:
        """Call `attempt` under a retry of this policy."""

        def count() -> Any:
            self.attempts += 1
            return attempt()

        def sleep(seconds: float) -> None:
            self.slept.append(round(seconds, 6))
            self.clock.advance(seconds)

        async def acount() -> Any:
            return count()

        async def asleep(seconds: float) -> None:
            sleep(seconds)

        policy = {"reraise": True, **policy}
        match self.kind:
            case "Retrying":
                self.retrying = Retrying(sleep=sleep, **policy)
                return self.retrying(count)
            case "AsyncRetrying":
                self.retrying = AsyncRetrying(sleep=asleep, **policy)
                return asyncio.run(self.retrying(acount))
            case "decorator":
                decorated = tenacity.retry(sleep=sleep, **policy)(count)
                self.retrying = decorated
                return decorated()
            case _:
                self.retrying = Retrying(sleep=sleep, **policy)
                result = None
                for one in self.retrying:
                    with one:
                        result = count()
                return result


@pytest.fixture(params=["Retrying", "AsyncRetrying", "decorator", "for"])
def caller(request: pytest.FixtureRequest, clock: ManualClock) -> Caller:
    return Caller(request.param, clock)


FULL = {
    "retry": retry_unless_refused(unhealthy=True, saturated=True),
    "wait": wait_retry_after(wait_fixed(2)),
    "stop": stop_when_held() | stop_after_attempt(6),
}


def raiser(*errors: BaseException | None) -> Callable[[], str]:
    """Raise one error after the other, then answer."""
    left = list(errors)

    def attempt() -> str:
        error = left.pop(0) if left else None
        if error is not None:
            raise error
        return "answer"

    return attempt


# --- which exceptions are worth a retry ---------------------------------------------------------------


def chained(error: BaseException, how: str) -> BaseException:
    """Give an exception that came of another one."""
    outer = KeyError("outer")
    if how == "itself":
        return error
    if how == "cause":
        outer.__cause__ = error
    elif how == "context":
        outer.__context__ = error
    elif how == "deep":
        outer.__cause__ = chained(error, "context")
    else:
        return ExceptionGroup("many", [ValueError(), error])  # type: ignore[list-item]
    return outer


def blocked(health: Safehold) -> OperationBlocked:
    operation = health.destructive(f"destroy {len(health.operations)}", requires=["redis"])(lambda: None)
    with pytest.raises(OperationBlocked) as caught:
        operation()
    return caught.value


@pytest.mark.parametrize("how", ["itself", "cause", "context", "deep", "group"])
@pytest.mark.parametrize("permissive", [False, True])
def test_a_blocked_operation_is_never_tried_again(
    health: Safehold, redis: Dependency, caller: Caller, how: str, permissive: bool
) -> None:
    """However it is wrapped, and whatever else is allowed: one attempt, and its own exception."""
    error = chained(blocked(health), how)
    policy = FULL if permissive else {"retry": retry_unless_refused()}
    with pytest.raises(type(error)) as caught:
        caller(raiser(error, None), **policy)
    assert caught.value is error
    assert (caller.attempts, caller.slept) == (1, [])


@pytest.mark.parametrize("how", ["itself", "cause", "context", "deep", "group"])
def test_refusals_are_tried_again_only_when_asked_for(caller: Caller, how: str) -> None:
    """By default a refused call is not repeated; a breaker's and a limiter's are allowed one by one."""
    unhealthy = chained(DependencyUnhealthy("redis", HealthState.UNHEALTHY, 3.0), how)
    saturated = chained(Saturated("redis", HealthState.HEALTHY, 3.0), how)
    for error, allowed, tried in (
        (unhealthy, {}, 1),
        (saturated, {}, 1),
        (unhealthy, {"saturated": True}, 1),
        (saturated, {"unhealthy": True}, 1),
        (unhealthy, {"unhealthy": True}, 2),
        (saturated, {"saturated": True}, 2),
    ):
        caller.attempts = 0
        with contextlib.suppress(Exception):
            caller(raiser(error), retry=retry_unless_refused(**allowed), stop=stop_after_attempt(3))
        assert caller.attempts == tried, (error, allowed)


def test_each_of_several_refusals_has_to_be_allowed(
    health: Safehold, redis: Dependency, caller: Caller
) -> None:
    """A group is tried again only if every member may be."""
    unhealthy = DependencyUnhealthy("redis", HealthState.UNHEALTHY, 3.0)
    for other in (Saturated("redis", HealthState.HEALTHY, 3.0), blocked(health)):
        caller.attempts = 0
        with pytest.raises(ExceptionGroup):
            caller(
                raiser(ExceptionGroup("both", [unhealthy, other])), retry=retry_unless_refused(unhealthy=True)
            )
        assert caller.attempts == 1


def test_what_a_person_holds_is_not_tried_again(redis: Dependency, caller: Caller) -> None:
    """Whatever is allowed, and without any help of wait and stop."""
    redis.hold("maintenance")
    with pytest.raises(DependencyUnhealthy):
        caller(redis.guard(raiser()), retry=retry_unless_refused(unhealthy=True), stop=stop_after_attempt(5))
    assert caller.attempts == 1


def test_a_suppressed_context_is_no_refusal(caller: Caller) -> None:
    """`raise ... from None` says that what came before does not matter."""
    error = KeyError()
    error.__context__ = DependencyUnhealthy("redis", HealthState.UNHEALTHY, None)
    error.__suppress_context__ = True
    assert caller(raiser(error), **FULL) == "answer"


def test_other_exceptions_are_as_tenacity_says(caller: Caller) -> None:
    """Any `Exception` by default; a tenacity retry of one's own narrows it down; nothing else ever."""
    assert caller(raiser(Down(), KeyError()), retry=retry_unless_refused()) == "answer"
    assert caller.attempts == 3
    only = retry_unless_refused(tenacity.retry_if_exception_type(Down))
    with pytest.raises(KeyError):
        caller(raiser(Down(), KeyError()), retry=only)
    caller.attempts = 0
    with pytest.raises(SystemExit):
        caller(raiser(SystemExit(1)), **FULL)
    assert caller.attempts == 1


# --- how long to wait ---------------------------------------------------------------------------------


def test_retry_after_is_honoured(caller: Caller, redis: Dependency, clock: ManualClock) -> None:
    """An open breaker is asked again when it said, and not before; in between nobody is called."""
    make_open(redis)
    clock.advance(4)
    called: list[float] = []

    @redis.guard
    def call() -> str:
        called.append(clock.monotonic() - 1000)
        return "answer"

    assert caller(call, **FULL) == "answer"
    assert (caller.slept, called) == ([COOLDOWN - 4], [COOLDOWN])
    assert caller.attempts == 2


def test_an_outage_from_first_to_last(caller: Caller, redis: Dependency, clock: ManualClock) -> None:
    """Failures wait as tenacity says, refusals as the breaker says; the dependency is called four times."""
    make_healthy(redis)
    called: list[float] = []

    @redis.guard
    def call() -> str:
        called.append(clock.monotonic() - 1000)
        if len(called) < 5:
            raise Down
        return "answer"

    policy = {**FULL, "stop": stop_after_attempt(20)}
    assert caller(call, **policy) == "answer"
    assert called == [0, 2, 4, 14, 34]  # the third trips; 10 s, then 20 s of cooldown
    assert caller.slept == [2, 2, 2, 8, 2, 18]
    assert redis.status().refusals == 2


def test_the_longest_wait_of_several_counts(caller: Caller) -> None:
    """A group is done when all of it is."""
    group = ExceptionGroup(
        "many",
        [DependencyUnhealthy(name, HealthState.UNHEALTHY, wait) for name, wait in (("a", 3.0), ("b", 7.0))],
    )
    assert caller(raiser(group), **FULL) == "answer"
    assert caller.slept == [7]


@pytest.mark.parametrize(("least", "slept"), [(0.05, 0.05), (1.0, 1.0), (0.0, 0.0)])
def test_now_is_not_at_once(caller: Caller, least: float, slept: float) -> None:
    """A refusal that says "now" says so to everybody; a moment passes before it is asked again."""
    error = DependencyUnhealthy("redis", HealthState.RECOVERING, 0.0)
    policy = {**FULL, "wait": wait_retry_after(least=least)}
    assert caller(raiser(error), **policy) == "answer"
    assert caller.slept == [slept]


def test_waits_add_up_as_tenacity_adds_them(caller: Caller) -> None:
    """A fleet spreads itself with a wait of its own on top."""
    error = DependencyUnhealthy("redis", HealthState.UNHEALTHY, 3.0)
    policy = {**FULL, "wait": wait_retry_after() + wait_fixed(0.5)}
    assert caller(raiser(error), **policy) == "answer"
    assert caller.slept == [3.5]


# --- what only a person can end -----------------------------------------------------------------------


def test_a_held_breaker_ends_it(caller: Caller, redis: Dependency) -> None:
    """Once it is held, retrying stops, with the refused call's own exception."""
    calls: list[int] = []

    def attempt() -> None:
        calls.append(1)
        if len(calls) == 2:
            redis.hold("maintenance")
        redis.guard(raiser(Down()))()

    with pytest.raises(DependencyUnhealthy) as caught:
        caller(attempt, **FULL)
    assert caught.value.retry_after is None
    assert (len(calls), caller.slept) == (2, [2])


@pytest.mark.parametrize("retry", [None, "any"])
@pytest.mark.parametrize("stop", ["held", "other"])
def test_without_a_time_nobody_waits(caller: Caller, redis: Dependency, retry: str | None, stop: str) -> None:
    """Whichever of the three parts is used, a held breaker is not hammered: none of them sleeps on it."""
    redis.hold("maintenance")
    policy: dict[str, Any] = {"wait": wait_retry_after(), "stop": stop_when_held()}
    if retry is None:
        policy["retry"] = retry_unless_refused(unhealthy=True)
    if stop == "other":
        policy["stop"] = stop_after_attempt(100)
    with pytest.raises(DependencyUnhealthy):
        caller(redis.guard(raiser()), **policy)
    assert (caller.attempts, caller.slept) == (1, [])


def test_stop_when_held_is_an_ordinary_stop(caller: Caller, redis: Dependency) -> None:
    """What tenacity does at a stop is done: its own error, or the callback that was given."""
    redis.hold("maintenance")
    policy: dict[str, Any] = {"retry": tenacity.retry_if_exception_type(), "wait": wait_retry_after()}
    policy |= {"stop": stop_when_held(), "reraise": False}
    with pytest.raises(RetryError) as caught:
        caller(redis.guard(raiser()), **policy)
    assert isinstance(caught.value.last_attempt.exception(), DependencyUnhealthy)
    if caller.kind in {"Retrying", "decorator"}:
        assert caller(redis.guard(raiser()), **policy, retry_error_callback=lambda state: "stale") == "stale"
    redis.release()
    policy["stop"] = stop_when_held() | stop_after_attempt(2)
    with pytest.raises(RetryError):
        caller(raiser(Down(), Down(), Down()), **policy)


# --- what is counted ----------------------------------------------------------------------------------


def test_statistics_stay_intact(caller: Caller, redis: Dependency) -> None:
    """tenacity's own numbers are those of its attempts and sleeps."""
    make_open(redis)
    assert caller(redis.guard(raiser()), **FULL) == "answer"
    statistics = caller.retrying.statistics
    assert (statistics["attempt_number"], statistics["idle_for"]) == (2, COOLDOWN)


def test_one_user_call_is_one(caller: Caller, redis: Dependency) -> None:
    """With the guard around the retry, the breaker sees one call, and one failure, per user call."""
    make_healthy(redis)
    before = redis.status()
    whole = redis.guard(lambda: caller(raiser(*[Down()] * 9), stop=stop_after_attempt(4), wait=wait_none()))
    for _ in range(2):
        with pytest.raises(Down):
            whole()
    after = redis.status()
    assert (after.failures - before.failures, after.state) == (2, HealthState.DEGRADED)
    assert caller.attempts == 8


def test_a_guard_inside_and_outside_counts_a_failed_call_once(caller: Caller, redis: Dependency) -> None:
    """Each attempt that ran is one failure; that the whole failed with the last of them is none more."""
    make_healthy(redis)
    inner = redis.guard(raiser(Down(), Down()))
    whole = redis.guard(lambda: caller(inner, stop=stop_after_attempt(2), wait=wait_none()))
    with pytest.raises(Down):
        whole()
    assert redis.status().failures == 2
    assert redis.state is HealthState.DEGRADED


def test_a_budget_bounds_all_retries(caller: Caller, clock: ManualClock) -> None:
    """In an outage, callers who may try five times add a fifth of a call each, and the floor."""
    budget = RetryBudget(share=0.2, floor=3, clock=clock)
    policy = {"retry": retry_within(budget), "stop": stop_after_attempt(5), "wait": wait_none()}
    for _ in range(50):
        with pytest.raises(Down):
            caller(raiser(*[Down()] * 9), **policy)
    assert caller.attempts == 50 + 10 + 3
    assert budget.left == 0
    clock.advance(10)
    assert caller(raiser(Down()), **policy) == "answer"
    with pytest.raises(ConfigurationError):
        retry_within(0.2)  # type: ignore[arg-type]


def test_a_budget_counts_calls_that_need_no_retry(caller: Caller, clock: ManualClock) -> None:
    """The share is of all calls; what is refused or blocked costs no retry."""
    budget = RetryBudget(share=0.2, floor=0, clock=clock)
    policy = {"retry": retry_within(budget), "stop": stop_after_attempt(5), "wait": wait_none()}
    for _ in range(10):
        assert caller(raiser(), **policy) == "answer"
    assert budget.left == 2
    with pytest.raises(DependencyUnhealthy):
        caller(raiser(DependencyUnhealthy("redis", HealthState.UNHEALTHY, 3.0)), **policy)
    assert budget.left == 2
    assert caller(raiser(Down()), **policy) == "answer"
    assert budget.left == 1


# --- with guarded clients -----------------------------------------------------------------------------


def test_with_a_guarded_redis_client(caller: Caller, health: Safehold, clock: ManualClock) -> None:
    """A refused command is a redis error and a refusal, and waits as the refusal says."""
    policy = BreakerPolicy(failures=1, cooldown=Backoff(first=10.0, factor=2.0, cap=60.0, jitter=0.0))
    shop = health.dependency("shop", policy=policy)
    client = guard_client(redis_py.Redis(port=1, socket_connect_timeout=1, retry=None), shop)
    with pytest.raises(redis_py.ConnectionError) as caught:
        caller(lambda: client.get("key"), **{**FULL, "stop": stop_after_attempt(4)})
    assert caller.slept == [2, 8, 2]  # failed; refused; the trial failed; refused for 18 s more
    assert isinstance(caught.value, DependencyUnhealthy)
    assert caught.value.retry_after == 18
    client.close()


def test_with_a_guarded_http_client(caller: Caller, health: Safehold, clock: ManualClock) -> None:
    """A server that asks for a pause with Retry-After is left alone for so long, and then called once."""
    called: list[float] = []

    def answer(request: httpx.Request) -> httpx.Response:
        called.append(clock.monotonic() - 1000)
        headers = {"retry-after": "30"}
        return httpx.Response(503, headers=headers) if len(called) == 1 else httpx.Response(200)

    shop = health.dependency("shop", policy=POLICY)
    client = guard_httpx(httpx.Client(transport=httpx.MockTransport(answer)), shop)

    def call() -> int:
        return client.get("http://shop/").raise_for_status().status_code

    policy = {**FULL, "retry": retry_unless_refused(unhealthy=True)}
    assert caller(call, **policy) == 200
    assert called == [0, 30]
    assert caller.slept == [2, 28]
    client.close()
