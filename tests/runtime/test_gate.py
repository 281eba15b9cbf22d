"""Nothing is destroyed because it could not be seen: the gate, end to end, in every form of operation."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import random
import runpy
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from safehold import (
    Backoff,
    BreakerPolicy,
    BreakerState,
    ConfigurationError,
    Decision,
    Dependency,
    DependencyUnhealthy,
    GatePolicy,
    HealthState,
    OperationBlocked,
    ProbePolicy,
    Safehold,
    Trigger,
)
from safehold._runtime import gate
from safehold.testing.clock import ManualClock

from .support import (
    COOLDOWN,
    PATIENCE,
    POLICY,
    Down,
    Form,
    Rejected,
    answer,
    cancel,
    down,
    fail,
    finish,
    in_threads,
    make_healthy,
    make_open,
    python,
    succeed,
)

TRIGGERS = ["automatic", "requested"]
SETTLE = GatePolicy().settle_min


def codes(error: OperationBlocked) -> list[str]:
    return [reason.code for reason in error.reasons]


def blocked(call: Callable[..., Any], *args: Any) -> OperationBlocked:
    with pytest.raises(OperationBlocked) as caught:
        call(*args)
    return caught.value


def acts(ran: list[Any]) -> Callable[..., None]:
    return lambda *args: ran.append(args)


# --- the trigger table --------------------------------------------------------------------------------


class Case:
    """One row of the table: what is the matter, what each trigger makes of it, and what proves it over."""

    def __init__(
        self,
        name: str,
        trouble: Callable[[Safehold, ManualClock], Any],
        automatic: list[str],
        requested: list[str],
        proof: Callable[[Safehold, ManualClock], Any],
    ) -> None:
        self.name = name
        self.trouble = trouble
        self.blocks = {"automatic": automatic, "requested": requested}
        self.proof = proof

    def __repr__(self) -> str:
        return self.name


def settle(health: Safehold, clock: ManualClock) -> None:
    """Bring what was out back to healthy: a trial, the settle time, a success beyond the trial."""
    clock.advance(600)
    succeed(health["redis"])
    clock.advance(600)
    succeed(health["redis"])


def half_open(health: Safehold, clock: ManualClock) -> None:
    make_open(health["redis"])
    clock.advance(COOLDOWN)
    cancel(health["redis"])
    assert health["redis"].breaker is BreakerState.HALF_OPEN


def recovering(health: Safehold, clock: ManualClock) -> None:
    make_open(health["redis"])
    clock.advance(COOLDOWN)
    succeed(health["redis"])
    assert (health["redis"].breaker, health["redis"].state) == (BreakerState.CLOSED, HealthState.RECOVERING)


def resolved_long_ago(health: Safehold, clock: ManualClock) -> None:
    succeed(health["redis"])
    clock.advance(60)


def release(health: Safehold, clock: ManualClock) -> None:
    health["redis"].release("done")
    settle(health, clock)


def nothing(health: Safehold, clock: ManualClock) -> None:
    pass


CASES = [
    Case(
        "unknown",
        nothing,
        ["dependency_unknown"],
        [],
        lambda health, clock: succeed(health["redis"]),
    ),
    Case("healthy", lambda health, clock: succeed(health["redis"]), [], [], nothing),
    Case(
        "missed",
        lambda health, clock: (succeed(health["redis"]), fail(health["redis"])),
        ["unresolved_miss", "recent_miss"],
        [],
        resolved_long_ago,
    ),
    Case(
        "missed a minute ago",
        lambda health, clock: (succeed(health["redis"]), fail(health["redis"]), clock.advance(60)),
        ["unresolved_miss"],
        [],
        resolved_long_ago,
    ),
    Case(
        "resolved just now",
        lambda health, clock: (fail(health["redis"]), succeed(health["redis"])),
        ["recent_miss"],
        [],
        resolved_long_ago,
    ),
    Case(
        "cancelled",
        lambda health, clock: (succeed(health["redis"]), cancel(health["redis"])),
        ["unresolved_miss", "recent_miss"],
        [],
        resolved_long_ago,
    ),
    Case(
        "open",
        lambda health, clock: make_open(health["redis"]),
        ["dependency_unhealthy", "recent_miss"],
        ["dependency_unhealthy"],
        settle,
    ),
    Case(
        "open with a trial due",
        lambda health, clock: (make_open(health["redis"]), clock.advance(60)),
        ["dependency_unhealthy"],
        ["dependency_unhealthy"],
        settle,
    ),
    Case(
        "held",
        lambda health, clock: (succeed(health["redis"]), health["redis"].hold("maintenance")),
        ["dependency_unhealthy"],
        ["dependency_unhealthy"],
        release,
    ),
    Case(
        "half-open",
        half_open,
        ["dependency_recovering", "recent_miss"],
        ["dependency_recovering"],
        settle,
    ),
    Case(
        "recovering",
        recovering,
        ["dependency_recovering", "unresolved_miss", "recent_miss"],
        [],
        settle,
    ),
    Case(
        "reset by hand",
        lambda health, clock: (make_open(health["redis"]), health["redis"].reset(), clock.advance(60)),
        ["dependency_recovering", "unresolved_miss"],
        [],
        settle,
    ),
]


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("case", CASES, ids=repr)
def test_health_of_what_is_required(
    gate_form: Form, health: Safehold, redis: Dependency, clock: ManualClock, case: Case, trigger: str
) -> None:
    """Automatic acts only on `healthy`; a person's wish waits only for what is open, held or half-open.
    What was blocked has not run; with complete proof the same call acts.
    """
    ran: list[Any] = []
    destroy = gate_form.gate(health, "destroy", acts(ran), trigger=trigger)
    case.trouble(health, clock)
    wanted = case.blocks[trigger]
    verdict = health.check("destroy")
    assert [reason.code for reason in verdict.reasons] == wanted
    assert bool(verdict) is verdict.allowed is (not wanted)
    assert ran == [], "a check runs nothing"
    if wanted:
        error = blocked(destroy)
        assert codes(error) == wanted
        assert (error.operation, error.outcome, error.dependency) == ("destroy", "not_executed", "redis")
        assert error.state is redis.state
        assert ran == []
    else:
        destroy()
        assert ran == [()]
    ran.clear()
    case.proof(health, clock)
    destroy()
    assert ran == [()]


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_high_failure_rate_holds_back(
    gate_form: Form, health: Safehold, clock: ManualClock, trigger: str
) -> None:
    """Half of the trip rate already makes `degraded`, which holds an automatic operation back."""
    ran: list[Any] = []
    policy = BreakerPolicy(failures=None, failure_rate=0.5, min_calls=8)
    shaky = health.dependency("shaky", critical=True, policy=policy)
    destroy = gate_form.gate(health, "destroy", acts(ran), trigger=trigger)
    for _ in range(3):
        fail(shaky)
        succeed(shaky)
        succeed(shaky)
    clock.advance(60)
    assert shaky.state is HealthState.DEGRADED
    if trigger == "automatic":
        assert codes(blocked(destroy)) == ["dependency_degraded"]
        for _ in range(6):
            succeed(shaky)
    destroy()
    assert ran == [()]


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("mode", ["observe", "disabled"])
def test_breakers_that_do_not_enforce(gate_form: Form, health: Safehold, mode: str, trigger: str) -> None:
    """An observing breaker refuses no call, but the gate believes it; a disabled one knows nothing."""
    ran: list[Any] = []
    soft = health.dependency("soft", critical=True, policy=POLICY.model_copy(update={"mode": mode}))
    destroy = gate_form.gate(health, "destroy", acts(ran), trigger=trigger)
    succeed(soft)
    if mode == "disabled":
        if trigger == "automatic":
            assert codes(blocked(destroy)) == ["dependency_unknown"]
        else:
            destroy()
        return
    destroy()
    fail(soft, 3)
    assert "dependency_unhealthy" in codes(blocked(destroy))
    assert ran == [()]


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_start_up_grace(gate_form: Form, clock: ManualClock, trigger: str) -> None:
    """A process that has just started has seen nothing: automatic waits, a person does not."""
    ran: list[Any] = []
    young = Safehold("young", clock=clock)
    make_healthy(young.dependency("redis", critical=True))
    destroy = gate_form.gate(young, "destroy", acts(ran), trigger=trigger)
    clock.advance(29)
    if trigger == "automatic":
        error = blocked(destroy)
        assert codes(error) == ["startup_grace"]
        assert (error.dependency, error.retry_after) == ("self", 1.0)
        clock.advance(1)
    else:
        assert [remark.code for remark in young.check("destroy").remarks] == ["startup_grace"]
    destroy()
    assert ran == [()]


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_nothing_to_require(gate_form: Form, health: Safehold, trigger: str) -> None:
    """An automatic operation that relies on nothing is blocked, unless it says so itself."""
    ran: list[Any] = []
    health.dependency("optional")
    careless = gate_form.gate(health, "careless", acts(ran), trigger=trigger)
    deliberate = gate_form.gate(health, "deliberate", acts(ran), trigger=trigger, requires=())
    if trigger == "automatic":
        error = blocked(careless)
        assert codes(error) == ["nothing_required"]
        assert (error.dependency, error.retry_after) == ("self", None)
    else:
        careless()
        ran.clear()
    deliberate()
    assert ran == [()]


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_undeclared_requirement(gate_form: Form, health: Safehold, trigger: str) -> None:
    """What is required and was never declared blocks everybody; declared and well, it does not."""
    ran: list[Any] = []
    destroy = gate_form.gate(health, "destroy", acts(ran), trigger=trigger, requires=["later"])
    succeed(health["later"])
    error = blocked(destroy)
    assert codes(error) == ["undeclared_dependency"]
    assert (error.dependency, error.retry_after) == ("later", None)
    assert "later" in health.status().undeclared
    make_healthy(health.dependency("later"))
    destroy()
    assert ran == [()]


def test_requirements_decide_whose_health_matters(
    gate_form: Form, health: Safehold, redis: Dependency, api: Dependency
) -> None:
    """Without `requires`, all critical dependencies count; with it, the named ones, critical or not."""
    ran: list[str] = []
    by_default = gate_form.gate(health, "by default", lambda: ran.append("by default"))
    by_name = gate_form.gate(health, "by name", lambda: ran.append("by name"), requires=["api"])
    make_healthy(redis)
    by_default()
    assert codes(blocked(by_name)) == ["dependency_unknown"]
    make_healthy(api)
    make_open(redis)
    by_name()
    assert blocked(by_default).dependency == "redis"
    assert ran == ["by default", "by name"]


def test_unregistered_operation(health: Safehold, redis: Dependency) -> None:
    """A preflight for an operation that nobody registered says no."""
    make_healthy(redis)
    verdict = health.check("unheard of")
    assert [reason.code for reason in verdict.reasons] == ["not_registered"]
    assert (verdict.allowed, verdict.retry_after) == (False, None)


def test_check_runs_nothing_and_names_the_subject(health: Safehold, redis: Dependency) -> None:
    """A preflight is a verdict; nothing runs, whether allowed or blocked."""
    ran: list[Any] = []

    @health.destructive("destroy", subject="session")
    def destroy(session: str) -> None:
        ran.append(session)

    verdict = health.check("destroy", subject="s1")
    assert (verdict.allowed, verdict.operation, verdict.subject) == (False, "destroy", "s1")
    assert verdict.trigger is Trigger.AUTOMATIC
    make_healthy(redis)
    assert health.check("destroy", subject="s1").allowed
    assert ran == []
    destroy("s1")
    assert ran == ["s1"]


# --- settling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("outage", "settle"), [(10.0, 30.0), (100.0, 100.0), (100_000.0, 600.0)])
def test_settle_time(
    gate_form: Form,
    health: Safehold,
    redis: Dependency,
    clock: ManualClock,
    outage: float,
    settle: float,
) -> None:
    """After an outage an automatic act waits as long as the outage was (30 to 600 s), and for a success."""
    ran: list[Any] = []
    destroy = gate_form.gate(health, "destroy", acts(ran), requires=["redis"])
    make_healthy(redis)
    make_open(redis)
    clock.advance(outage)
    succeed(redis)
    assert redis.state is HealthState.RECOVERING
    succeed(redis)
    clock.advance(settle - 0.5)
    error = blocked(destroy)
    assert codes(error)[0] == "dependency_recovering"
    clock.advance(60)
    assert redis.state is HealthState.HEALTHY
    destroy()
    assert ran == [()]


def test_settling_needs_a_success_beyond_the_trial(
    gate_form: Form, health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """Time alone settles nothing: the trial opened the door, a call after it is the proof."""
    ran: list[Any] = []
    destroy = gate_form.gate(health, "destroy", acts(ran))
    make_open(redis)
    clock.advance(COOLDOWN)
    succeed(redis)
    clock.advance(100_000)
    assert "dependency_recovering" in codes(blocked(destroy))
    succeed(redis)
    destroy()
    assert ran == [()]


def test_a_miss_begins_the_settle_time_again(
    gate_form: Form, health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """A relapse, however small, starts the settle time again."""
    ran: list[Any] = []
    destroy = gate_form.gate(health, "destroy", acts(ran))
    make_open(redis)
    clock.advance(COOLDOWN)
    succeed(redis)
    succeed(redis)
    clock.advance(SETTLE - 1)
    cancel(redis)
    succeed(redis)
    clock.advance(SETTLE - 0.5)
    with health.scope("sweep"):
        assert codes(blocked(destroy)) == ["dependency_recovering"]
        clock.advance(0.5)
        destroy()
    assert ran == [()]


def test_requested_is_not_held_back_by_settling(
    gate_form: Form, health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """A person may act as soon as the breaker is closed; the verdict says what it passed over."""
    ran: list[Any] = []
    destroy = gate_form.gate(health, "destroy", acts(ran), trigger="requested")
    make_open(redis)
    clock.advance(COOLDOWN)
    assert codes(blocked(destroy)) == ["dependency_unhealthy"]
    succeed(redis)
    assert "dependency_recovering" in [remark.code for remark in health.check("destroy").remarks]
    destroy()
    assert ran == [()]


# --- while a failure is being handled -----------------------------------------------------------------


def in_except(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    try:
        seen()
    except Exception:
        act()


def in_except_deep(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    try:
        seen()
    except Exception:
        (lambda: (lambda: act())())()


def in_finally(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    with contextlib.suppress(Exception):
        try:
            seen()
        finally:
            act()


def in_exit(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    class Manager:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> bool:
            act()
            return True

    with Manager():
        seen()


def in_exit_stack(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    with contextlib.suppress(Exception), contextlib.ExitStack() as stack:
        stack.callback(act)
        seen()


def in_context_manager(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    @contextlib.contextmanager
    def manager() -> Iterator[None]:
        try:
            yield
        except Exception:
            act()

    with manager():
        seen()


def in_except_star(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    try:
        seen()
    except* Exception:
        act()


def in_group(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    try:
        try:
            seen()
        except Exception as error:
            caught = error
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [caught, KeyError("other")])])
    except ExceptionGroup:
        act()


def in_chain(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    try:
        try:
            seen()
        except Exception as error:
            raise LookupError("not found") from error
    except LookupError:
        act()


def in_context(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    try:
        try:
            seen()
        except Exception:
            raise LookupError("not found")  # noqa: B904
    except LookupError:
        act()


def in_chain_cut(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    try:
        try:
            seen()
        except Exception:
            raise LookupError("not found") from None
    except LookupError:
        act()


def in_cause_set_later(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    try:
        seen()
    except Exception as error:
        caught = error
    try:
        later = LookupError("not found")
        later.__cause__ = caught
        raise later
    except LookupError:
        act()


def in_another_handler(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    try:
        seen()
    except Exception:
        try:
            raise KeyError("unrelated")
        except KeyError:
            act()


def after_another_handler(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    try:
        seen()
    except Exception:
        with contextlib.suppress(KeyError):
            raise KeyError("unrelated") from None
        act()


def in_generator_of_handler(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    def steps() -> Iterator[None]:
        act()
        yield

    try:
        seen()
    except Exception:
        list(steps())


def in_coroutine_of_handler(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    async def inner() -> None:
        act()

    async def outer() -> None:
        try:
            seen()
        except Exception:
            await inner()

    finish(outer())


def in_aexit(seen: Callable[[], Any], act: Callable[[], Any]) -> None:
    class Manager:
        async def __aenter__(self) -> None: ...
        async def __aexit__(self, *_: object) -> bool:
            act()
            return True

    async def work() -> None:
        async with Manager():
            seen()

    finish(work())


HANDLERS = [
    in_except,
    in_except_deep,
    in_finally,
    in_exit,
    in_exit_stack,
    in_context_manager,
    in_except_star,
    in_group,
    in_chain,
    in_context,
    in_chain_cut,
    in_cause_set_later,
    in_another_handler,
    after_another_handler,
    in_generator_of_handler,
    in_coroutine_of_handler,
    in_aexit,
]


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("handler", HANDLERS)
def test_while_a_seen_failure_is_handled(
    gate_form: Form, health: Safehold, redis: Dependency, handler: Any, trigger: str
) -> None:
    """Nobody destroys anything because a guarded call has just failed, wherever that is being handled.
    The same handler of an exception that no guard saw acts, and so does what comes after the handler.
    """
    ran: list[Any] = []
    make_healthy(redis)
    destroy = gate_form.gate(health, "destroy", acts(ran), trigger=trigger)
    tolerant = gate_form.gate(
        health, "tolerant", acts(ran), trigger=trigger, requires=(), tolerates=["unrelated"]
    )
    errors: list[OperationBlocked] = []
    handler(redis.guard(down), lambda: errors.append(blocked(destroy)))
    assert "handling_failure" in codes(errors[0])
    handler(health["unrelated"].guard(down), lambda: errors.append(blocked(tolerant)))
    assert codes(errors[1]) == ["handling_failure"], "also where the dependency does not matter otherwise"
    assert ran == []
    succeed(redis)
    with health.scope("afterwards"):
        handler(down, destroy)
        assert ran == [()]
        destroy()
    assert ran == [(), ()]


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_while_a_refusal_is_handled(
    gate_form: Form, health: Safehold, redis: Dependency, api: Dependency, trigger: str
) -> None:
    """A refused call is a seen failure as well."""
    ran: list[Any] = []
    make_healthy(redis)
    make_open(api)
    destroy = gate_form.gate(health, "destroy", acts(ran), trigger=trigger)
    try:
        api.guard(answer)()
    except DependencyUnhealthy:
        assert codes(blocked(destroy)) == ["handling_failure"]
    destroy()
    assert ran == [()]


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_while_a_block_is_handled(gate_form: Form, health: Safehold, redis: Dependency, trigger: str) -> None:
    """A blocked operation is no failure of a dependency: handling it holds nothing else back."""
    ran: list[Any] = []
    make_healthy(redis)
    destroy = gate_form.gate(health, "destroy", acts(ran), trigger=trigger)
    other = gate_form.gate(health, "other", acts(ran), requires=["undeclared"])
    try:
        other()
    except OperationBlocked:
        destroy()
    assert ran == [()]


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_while_an_application_error_is_handled(
    gate_form: Form, health: Safehold, redis: Dependency, trigger: str
) -> None:
    """The application's own error is an answer, and acting on an answer is what operations are for."""
    ran: list[Any] = []
    make_healthy(redis)
    shop = health.dependency("shop", classify=Down)
    destroy = gate_form.gate(health, "destroy", acts(ran), trigger=trigger)

    @shop.guard
    def look(error: Exception) -> None:
        raise error

    try:
        look(Rejected("gone"))
    except Rejected:
        destroy()
    assert ran == [()]
    try:
        look(Down("no answer"))
    except Down:
        assert codes(blocked(destroy)) == ["handling_failure"]


def test_a_circular_chain_is_read_to_its_end(gate_form: Form, health: Safehold, redis: Dependency) -> None:
    """Exceptions that are each other's cause do not lead the gate in circles."""
    make_healthy(redis)
    ran: list[Any] = []
    destroy = gate_form.gate(health, "destroy", acts(ran))
    one, two = KeyError("one"), KeyError("two")
    one.__cause__, two.__cause__ = two, one
    try:
        raise one
    except KeyError:
        destroy()
    assert ran == [()]


# --- during cancellation, in finalisers, at exit ------------------------------------------------------


@pytest.mark.parametrize("trigger", TRIGGERS)
async def test_during_cancellation(health: Safehold, redis: Dependency, trigger: str) -> None:
    """A task that is being cancelled destroys nothing on its way out; one that ends by itself may."""
    make_healthy(redis)
    ran: list[str] = []
    errors: list[OperationBlocked] = []

    @health.destructive("destroy", trigger=trigger)
    async def destroy() -> None:
        ran.append("ran")

    async def work(wait: asyncio.Event) -> None:
        try:
            await wait.wait()
        finally:
            try:
                await destroy()
            except OperationBlocked as error:
                errors.append(error)

    task = asyncio.create_task(work(asyncio.Event()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert codes(errors[0]) == ["interrupted"]
    assert ran == []
    ready = asyncio.Event()
    ready.set()
    await work(ready)
    assert ran == ["ran"]


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_during_an_interruption(
    gate_form: Form, health: Safehold, redis: Dependency, interruption: type[BaseException], trigger: str
) -> None:
    """Whoever is on the way out because of an interruption destroys nothing."""
    make_healthy(redis)
    ran: list[Any] = []
    destroy = gate_form.gate(health, "destroy", acts(ran), trigger=trigger)
    try:
        raise interruption
    except interruption:
        assert codes(blocked(destroy)) == ["interrupted"]
    destroy()
    assert ran == [()]


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_in_the_finally_of_a_dropped_generator(
    gate_form: Form, health: Safehold, redis: Dependency, trigger: str
) -> None:
    """A generator that is closed or collected is being interrupted; one that is read to its end is not."""
    make_healthy(redis)
    ran: list[Any] = []
    destroy = gate_form.gate(health, "destroy", acts(ran), trigger=trigger)
    told: list[str] = []

    def rows() -> Iterator[int]:
        try:
            yield 1
        finally:
            try:
                destroy()
            except OperationBlocked as error:
                told.extend(codes(error))

    run = rows()
    next(run)
    run.close()
    run = rows()
    next(run)
    del run
    gc.collect()
    assert told == ["interrupted"] * 2
    assert ran == []
    list(rows())
    assert ran == [()]


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_in_a_finaliser(gate_form: Form, health: Safehold, redis: Dependency, trigger: str) -> None:
    """Whatever an object's end sets off, it destroys nothing; the same method called by hand may."""
    make_healthy(redis)
    ran: list[Any] = []
    told: list[str] = []
    destroy = gate_form.gate(health, "destroy", acts(ran), trigger=trigger)

    def clean_up() -> None:
        try:
            destroy()
        except OperationBlocked as error:
            told.extend(codes(error))

    class Owner:
        def close(self) -> None:
            clean_up()

        def __del__(self) -> None:
            self.close()

    class Watched:
        pass

    owner = Owner()
    del owner
    loop = Owner()
    loop.me = loop  # type: ignore[attr-defined]
    del loop
    gc.collect()
    watched = Watched()
    finaliser = weakref.finalize(watched, clean_up)
    del watched
    gc.collect()
    assert not finaliser.alive
    assert told == ["finalising"] * 3
    assert ran == []
    clean_up()
    assert ran == [()]


def test_at_exit() -> None:
    """At the interpreter's end nothing is destroyed; the same call before it is."""
    told = python(
        """
        import atexit, os
        from safehold import GatePolicy, OperationBlocked, Safehold

        health = Safehold("exit", gate=GatePolicy(startup_grace=0))
        redis = health.dependency("redis", critical=True)
        with redis.permit():
            pass

        def say(*words, write=os.write):
            write(1, (" ".join(words) + "\\n").encode())

        def clean_up(where, trigger, operations, blocked=OperationBlocked, say=say):
            try:
                operations[trigger](where)
            except blocked as error:
                say(where, trigger, "blocked", *[reason.code for reason in error.reasons])

        operations = {}
        for trigger in ("automatic", "requested"):
            @health.destructive(f"destroy {trigger}", trigger=trigger)
            def destroy(where, trigger=trigger, say=say):
                say(where, trigger, "ran")
            operations[trigger] = destroy

        class Late:
            def __init__(self, *given):
                self.given = given

            def __iter__(self):
                clean_up, operations = self.given
                for trigger in operations:
                    clean_up("module end", trigger, operations)
                yield

            def __del__(self):
                list(self)

        for trigger in operations:
            clean_up("before", trigger, operations)
            atexit.register(clean_up, "atexit", trigger, operations)
        late = Late(clean_up, operations)
        """
    )
    assert sorted(told.splitlines()) == [
        "atexit automatic blocked finalising",
        "atexit requested blocked finalising",
        "before automatic ran",
        "before requested ran",
        "module end automatic blocked finalising",
        "module end requested blocked finalising",
    ]


def test_threads_that_outlive_the_main_thread() -> None:
    """A service whose main thread has ended goes on in its other threads, and they may act."""
    told = python(
        """
        import threading
        from safehold import GatePolicy, OperationBlocked, Safehold

        health = Safehold("threads", gate=GatePolicy(startup_grace=0))

        @health.destructive("destroy", requires=())
        def destroy():
            print("ran")

        def work():
            threading.main_thread().join()
            destroy()

        health.check("destroy")  # the watch begins; since Python 3.12 no thread can be started afterwards
        threading.Thread(target=work).start()
        """
    )
    assert told == "ran\n"


# --- how it is told -----------------------------------------------------------------------------------


def test_a_block_is_no_fault_of_anybody(gate_form: Form, health: Safehold, redis: Dependency) -> None:
    """A blocked operation never lands in a handler that is meant for outages."""
    destroy = gate_form.gate(health, "destroy", answer)
    try:
        try:
            destroy()
        except (TimeoutError, OSError, ConnectionError, EOFError, LookupError, ArithmeticError) as error:
            pytest.fail(f"taken for an outage: {error!r}")
    except OperationBlocked:
        make_healthy(redis)
    assert destroy() == "answer"


def test_reasons_stand_worst_first(health: Safehold, clock: ManualClock) -> None:
    """Unhealthy, recovering, unknown, degraded, then declaration order; what nobody is to blame for, last."""
    young = Safehold("young", clock=clock, rng=random.Random(1))
    names = ["degraded", "unknown", "recovering", "unhealthy b", "unhealthy a"]
    deps = {
        name: young.dependency(
            name, critical=True, policy=POLICY.model_copy(update={"cooldown": Backoff(first=25, jitter=0)})
        )
        for name in names
    }
    make_open(deps["recovering"])
    clock.advance(25)
    succeed(deps["recovering"])
    fail(deps["degraded"])
    make_open(deps["unhealthy b"])
    make_open(deps["unhealthy a"])
    young.destructive("destroy")(answer)
    verdict = young.check("destroy")
    blamed = list(dict.fromkeys(reason.dependency for reason in verdict.reasons))
    assert blamed == ["unhealthy b", "unhealthy a", "recovering", "unknown", "degraded", "self"]
    assert {reason.code for reason in verdict.reasons} == {
        "dependency_unhealthy",
        "dependency_recovering",
        "dependency_unknown",
        "unresolved_miss",
        "recent_miss",
        "startup_grace",
    }
    error = blocked(young.destructive("again")(answer))
    assert (error.dependency, error.state, error.reason) == (
        "unhealthy b",
        HealthState.UNHEALTHY,
        "dependency_unhealthy",
    )


def test_equally_bad_reasons_stand_in_the_order_of_declaration(health: Safehold) -> None:
    """Whatever order `requires` has, and whoever was named first, declarations give the order."""
    _ = health["second"]
    for name in ("first", "second"):
        make_open(health.dependency(name, critical=True, policy=POLICY))
    health.destructive("all")(answer)
    health.destructive("named", requires=["second", "first"])(answer)
    for name in ("all", "named"):
        assert health.check(name).reasons[0].dependency == "first"


def test_retry_after_is_the_longest_and_none_needs_a_person(
    gate_form: Form, health: Safehold, redis: Dependency, api: Dependency, clock: ManualClock
) -> None:
    """`retry_after` is the maximum over the reasons, read late, and `None` if one of them needs a person."""
    destroy = gate_form.gate(health, "destroy", answer, trigger="requested", requires=["redis", "api"])
    make_open(redis)
    clock.advance(4)
    make_open(api)
    error = blocked(destroy)
    assert [reason.retry_after for reason in error.reasons] == [6.0, 10.0]
    assert (error.dependency, error.retry_after) == ("redis", 10.0)
    clock.advance(3)
    assert error.retry_after == 7.0
    clock.advance(100)
    assert error.retry_after == 0.0
    api.hold()
    assert blocked(destroy).retry_after is None
    assert health.check("destroy").retry_after is None


def test_since_is_when_the_trouble_began(
    gate_form: Form, health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """A block says since when the dependency that is to blame has been in its state."""
    make_healthy(redis)
    clock.advance(100)
    make_open(redis)
    at = clock.wall()
    clock.advance(5)
    error = blocked(gate_form.gate(health, "destroy", answer))
    assert error.since is not None
    assert abs(error.since.timestamp() - at) < 1e-3


# --- observing ----------------------------------------------------------------------------------------


def test_observing_gate_runs_and_records(gate_form: Form, clock: ManualClock) -> None:
    """In observe mode the operation runs, and what would have blocked it is told."""
    watching = Safehold("watching", clock=clock, gate=GatePolicy(startup_grace=0.0, mode="observe"))
    redis = watching.dependency("redis", critical=True)
    told: list[Any] = []
    watching.subscribe(told.append)
    ran: list[Any] = []
    destroy = gate_form.gate(watching, "destroy", acts(ran))
    destroy()
    assert ran == [()]
    (decision,) = told
    assert isinstance(decision, Decision)
    assert (decision.enforced, decision.verdict.operation) == (False, "destroy")
    assert [reason.code for reason in decision.verdict.reasons] == ["dependency_unknown"]
    told.clear()
    make_healthy(redis)
    told.clear()
    destroy()
    assert told == [], "an allowed operation is no news"


def test_enforcing_gate_tells_its_blocks(gate_form: Form, health: Safehold, redis: Dependency) -> None:
    """Every block is an event, with all its reasons."""
    told: list[Any] = []
    health.subscribe(told.append)
    destroy = gate_form.gate(health, "destroy", answer)
    for _ in range(2):
        blocked(destroy)
    assert [(event.enforced, event.verdict.operation) for event in told] == [(True, "destroy")] * 2


# --- a fault in the gate ------------------------------------------------------------------------------


def fault_in_decision(health: Safehold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "decide", down)


def fault_in_handling(health: Safehold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "handled", down)


def fault_in_scope(health: Safehold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "open_scope", down)


def fault_in_facts(health: Safehold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dependency, "_facts", down)


def fault_in_requirements(health: Safehold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_required", down)


def fault_in_dice(health: Safehold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health._engine.rng, "random", down)


def fault_in_clock(health: Safehold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health._engine.clock, "monotonic", down)


def fault_in_wellness(health: Safehold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate.Gate, "_is_plainly_well", down)


IN_THE_JUDGEMENT = [fault_in_decision, fault_in_handling, fault_in_scope, fault_in_facts, fault_in_dice]
ANYWHERE = [fault_in_requirements, fault_in_clock, fault_in_wellness]
FAULTS = [(fault, True) for fault in (*IN_THE_JUDGEMENT, *ANYWHERE)] + [(fault, False) for fault in ANYWHERE]


@pytest.mark.parametrize("mode", ["enforce", "observe"])
@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize(("fault", "judged"), FAULTS)
def test_a_fault_in_the_gate_blocks(
    gate_form: Form,
    clock: ManualClock,
    monkeypatch: pytest.MonkeyPatch,
    fault: Any,
    judged: bool,
    trigger: str,
    mode: Any,
) -> None:
    """When the gate itself fails, the operation is blocked, in every mode; nothing else suffers."""
    health = Safehold(
        "faulty", clock=clock, rng=random.Random(1), gate=GatePolicy(startup_grace=0.0, mode=mode)
    )
    redis = health.dependency("redis", critical=True)
    make_healthy(redis)
    ran: list[Any] = []
    destroy = gate_form.gate(health, "destroy", acts(ran), trigger=trigger)
    with monkeypatch.context() as patch:
        if judged:  # with no short cut to take
            patch.setattr(gate.Gate, "_is_plainly_well", lambda *_: False)
        fault(health, patch)
        error = blocked(destroy)
        assert codes(error) == ["gate_fault"]
        assert (error.dependency, error.retry_after) == ("self", None)
        assert not health.check("destroy").allowed or fault is fault_in_wellness
    assert ran == []
    assert health.status().overall is HealthState.HEALTHY, "the lock is free again"
    destroy()
    assert ran == [()]


# --- subjects -----------------------------------------------------------------------------------------


def by_position(session: str, force: bool = False) -> None: ...


def by_position_only(session: str, /, **options: Any) -> None: ...


def by_keyword(*, session: str = "default") -> None: ...


def by_keyword_after_args(*others: str, session: str = "default") -> None: ...


def by_default(force: bool = False, session: str = "default") -> None: ...


def by_any_keyword(*args: str, **options: Any) -> None: ...


def by_number(session: int) -> None: ...


SUBJECTS: list[tuple[Callable[..., None], tuple[Any, ...], dict[str, Any], str | None]] = [
    (by_position, ("s1",), {}, "s1"),
    (by_position, (), {"session": "s1", "force": True}, "s1"),
    (by_position_only, ("s1",), {}, "s1"),
    (by_position_only, ("s1",), {"session": "another"}, "s1"),
    (by_keyword, (), {"session": "s1"}, "s1"),
    (by_keyword, (), {}, "default"),
    (by_keyword_after_args, ("a", "b"), {"session": "s1"}, "s1"),
    (by_keyword_after_args, ("a", "b"), {}, "default"),
    (by_default, (True,), {}, "default"),
    (by_default, (True, "s1"), {}, "s1"),
    (by_any_keyword, ("a", "b", "c"), {"session": "s1"}, "s1"),
    (by_any_keyword, ("a", "b", "c"), {}, None),
    (by_number, (17,), {}, "17"),
    (partial(by_position, force=True), ("s1",), {}, "s1"),
    (partial(by_keyword, session="s1"), (), {}, "s1"),
]


@pytest.mark.parametrize(("function", "args", "kwargs", "subject"), SUBJECTS)
def test_subject_is_found_however_it_is_given(
    health: Safehold,
    function: Callable[..., None],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    subject: str | None,
) -> None:
    """The blocked subject is the one that would have been destroyed, however it was passed."""
    destroy = health.destructive("destroy", subject="session", requires=["undeclared"])(function)
    with pytest.raises(OperationBlocked) as caught:
        destroy(*args, **kwargs)
    assert caught.value.subject == subject


def test_subject_of_methods_and_objects(health: Safehold) -> None:
    """`self` and `cls` do not shift the subject."""
    options: dict[str, Any] = {"subject": "session", "requires": ["undeclared"]}

    class Sessions:
        @health.destructive("method", **options)
        def method(self, session: str) -> None: ...

        @health.destructive("async method", **options)
        async def async_method(self, session: str) -> None: ...

        @health.destructive("class method", **options)
        @classmethod
        def class_method(cls, session: str) -> None: ...

        @health.destructive("static method", **options)
        @staticmethod
        def static_method(session: str) -> None: ...

        @health.destructive("generator", **options)
        def generator(self, session: str) -> Iterator[None]:
            yield

        @health.destructive("async generator", **options)
        async def async_generator(self, session: str) -> AsyncIterator[None]:
            yield

        def __call__(self, session: str) -> None: ...

    sessions = Sessions()
    called = health.destructive("called", **options)(sessions)
    for call in (
        sessions.method,
        Sessions.class_method,
        Sessions.static_method,
        called,
        lambda s: finish(sessions.async_method(s)),
        lambda s: list(sessions.generator(s)),
        lambda s: finish(sessions.async_generator(s).__anext__()),
        lambda s: sessions.method(session=s),
    ):
        assert blocked(call, "s1").subject == "s1"


def test_subject_that_cannot_be_read(health: Safehold, redis: Dependency) -> None:
    """A subject without a text is nobody's fault: blocked, the block has none; allowed, the call runs."""

    class Mute:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    ran: list[Any] = []

    @health.destructive("destroy", subject="session")
    def destroy(session: object) -> None:
        ran.append(session)

    assert blocked(destroy, Mute()).subject is None
    make_healthy(redis)
    destroy(Mute())
    assert len(ran) == 1


# --- registration -------------------------------------------------------------------------------------


def test_two_operations_of_one_name_raise(health: Safehold) -> None:
    """One name is one operation; the message says where the other one stands."""

    @health.destructive("destroy")
    def one() -> None: ...

    with pytest.raises(ConfigurationError, match="destroy") as caught:

        @health.destructive("destroy")
        def two() -> None: ...

    assert "one" in str(caught.value)
    assert Path(__file__).name in str(caught.value)
    assert [operation.name for operation in health.operations] == ["destroy"]


def test_two_lambdas_of_one_name_raise(health: Safehold) -> None:
    """Two lambdas are two operations, although both are called `<lambda>`."""
    health.destructive("destroy")(lambda: 1)
    with pytest.raises(ConfigurationError, match="destroy"):
        health.destructive("destroy")(lambda: 2)


MODULE = """
from safehold import Safehold
import shared_home

@shared_home.health.destructive("module.destroy", requires=())
def destroy():
    return "destroyed"

class Sessions:
    @shared_home.health.destructive("module.reap", requires=())
    def reap(self):
        return "reaped"
"""


def test_the_same_code_loaded_twice_is_one_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    """Reloading a module, or running it as `__main__` as well, registers nothing twice and raises nothing."""
    (tmp_path / "shared_home.py").write_text("health = None\n")
    (tmp_path / "operations_of_a_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    home = importlib.import_module("shared_home")
    home.health = Safehold("shared", clock=clock, gate=GatePolicy(startup_grace=0.0))
    try:
        module = importlib.import_module("operations_of_a_module")
        module = importlib.reload(module)
        assert module.destroy() == "destroyed"
        again = runpy.run_path(str(tmp_path / "operations_of_a_module.py"), run_name="__main__")
        assert again["Sessions"]().reap() == "reaped"
        assert [operation.name for operation in home.health.operations] == ["module.destroy", "module.reap"]
    finally:
        for name in ("shared_home", "operations_of_a_module"):
            sys.modules.pop(name, None)


def test_inventory(health: Safehold) -> None:
    """Everything registered can be listed, with its trigger, its requirements and its place."""

    @health.destructive("b", trigger="requested", requires=["redis"], tolerates=["api"], subject="session")
    def purge(session: str) -> None: ...

    health.destructive("a")(answer)
    first, second = health.operations
    assert (first.name, first.trigger, first.requires) == ("a", Trigger.AUTOMATIC, None)
    assert (second.name, second.trigger, second.requires) == ("b", Trigger.REQUESTED, ("redis",))
    assert (second.tolerates, second.subject) == (frozenset({"api"}), "session")
    assert "purge" in second.place
    assert Path(__file__).name in second.place


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"trigger": "sometimes"}, "trigger"),
        ({"trigger": None}, "trigger"),
        ({"requires": "redis"}, "requires"),
        ({"requires": 5}, "requires"),
        ({"requires": [5]}, "requires"),
        ({"requires": [""]}, "requires"),
        ({"tolerates": "redis"}, "tolerates"),
        ({"tolerates": None}, "tolerates"),
        ({"requires": ["redis"], "tolerates": ["redis"]}, "redis"),
        ({"subject": "nobody"}, "subject"),
        ({"subject": 5}, "subject"),
    ],
)
def test_bad_registration_is_named(health: Safehold, options: dict[str, Any], word: str) -> None:
    """A registration that cannot work raises at once and names the argument; nothing is registered."""
    with pytest.raises(ConfigurationError, match=word):
        health.destructive("destroy", **options)(by_position)
    assert health.operations == ()


def test_what_cannot_be_an_operation_is_named(health: Safehold) -> None:
    """Only functions and methods destroy; the message says what it was given instead."""

    class Sessions:
        pass

    for wrong in (Sessions, 5, "text"):
        with pytest.raises(ConfigurationError, match="destroy"):
            health.destructive("destroy")(wrong)
    for name in ("", "  ", 5, None, "a\nb"):
        with pytest.raises(ConfigurationError, match="operation name"):
            health.destructive(name)  # type: ignore[arg-type]
    assert health.operations == ()


def test_operation_is_judged_when_it_begins(health: Safehold, redis: Dependency) -> None:
    """A generator or coroutine that was made before the trouble is judged when it starts."""
    make_healthy(redis)
    ran: list[str] = []

    @health.destructive("rows")
    def rows() -> Iterator[int]:
        ran.append("rows")
        yield 1

    @health.destructive("one")
    async def one() -> None:
        ran.append("one")

    early, coroutine = rows(), one()
    make_open(redis)
    blocked(next, early)
    blocked(finish, coroutine)
    assert ran == []


def test_wrapper_of_an_operation_looks_like_the_function(health: Safehold) -> None:
    """Name, docstring, signature and kind stay."""
    import inspect

    async def purge(session: str, /, *, force: bool = False) -> int:
        """Purge it."""
        return 1

    wrapped = health.destructive("purge")(purge)
    assert (wrapped.__name__, wrapped.__doc__) == ("purge", "Purge it.")
    assert inspect.signature(wrapped) == inspect.signature(purge)
    assert inspect.iscoroutinefunction(wrapped)


# --- no block without an exit -------------------------------------------------------------------------


class CountedProbe:
    """A probe that says when it was asked, and answers when it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls = 0
        self.error = error
        self.asked = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def __call__(self) -> None:
        self.calls += 1
        self.asked.set()
        assert self.go.wait(PATIENCE)
        if self.error is not None:
            raise self.error


def wait_for(health: Safehold, condition: Callable[[], bool]) -> None:
    """Wait until an event of this Safehold makes a condition true."""
    changed = threading.Event()
    with health.subscribe(lambda _: changed.set()):
        for _ in range(100):
            if condition():
                return
            assert changed.wait(PATIENCE), "nothing happened"
            changed.clear()
    raise AssertionError("never")


def test_an_idle_healthy_service_is_blocked_for_one_probe_at_most(gate_form: Form, health: Safehold) -> None:
    """A block for want of proof orders a probe, says its time-out, and the next attempt runs."""
    probe = CountedProbe()
    redis = health.dependency(
        "redis", critical=True, policy=POLICY, probe=probe, probe_policy=ProbePolicy(timeout=2.0)
    )
    ran: list[Any] = []
    destroy = gate_form.gate(health, "destroy", acts(ran))
    error = blocked(destroy)
    assert (codes(error), error.retry_after) == (["dependency_unknown"], 2.0)
    wait_for(health, lambda: redis.state is HealthState.HEALTHY)
    destroy()
    assert (ran, probe.calls) == ([()], 1)


@pytest.mark.parametrize("trouble", ["miss", "recovery"])
def test_blocks_that_order_a_probe(health: Safehold, clock: ManualClock, trouble: str) -> None:
    """An unresolved miss and an unfinished settling order a probe too, and it can end them."""
    probe = CountedProbe()
    redis = health.dependency("redis", critical=True, policy=POLICY, probe=probe)
    make_healthy(redis)
    if trouble == "miss":
        fail(redis)
    else:
        make_open(redis)
        clock.advance(COOLDOWN)
        succeed(redis)
    clock.advance(600)
    ran: list[Any] = []
    destroy = health.destructive("destroy")(acts(ran))
    error = blocked(destroy)
    assert error.retry_after == 1.0
    wait_for(health, lambda: redis.state is HealthState.HEALTHY)
    destroy()
    assert (ran, probe.calls) == ([()], 1)


def test_a_trial_that_is_due_is_ordered_as_well(health: Safehold, clock: ManualClock) -> None:
    """A block by a breaker whose cooldown is over orders the probe that can close it: who else would call?"""
    probe = CountedProbe()
    redis = health.dependency("redis", critical=True, policy=POLICY, probe=probe)
    make_open(redis)
    clock.advance(COOLDOWN - 1)
    destroy = health.destructive("destroy", trigger="requested")(answer)
    assert blocked(destroy).retry_after == 1.0
    assert probe.calls == 0, "not before its time"
    clock.advance(1)
    blocked(destroy)
    assert probe.asked.wait(2.0), "retry_after says now, and nothing is under way that could help"
    wait_for(health, lambda: redis.breaker is BreakerState.CLOSED)
    assert destroy() == "answer"


def test_probes_are_single_flight(health: Safehold) -> None:
    """However many are blocked, one probe is under way; the next block after it orders the next."""
    probe = CountedProbe(Down("no answer"))
    probe.go.clear()
    redis = health.dependency("redis", critical=True, policy=POLICY, probe=probe)
    destroy = health.destructive("destroy")(answer)
    results = in_threads(lambda _: destroy(), 8)
    assert all(isinstance(result, OperationBlocked) for result in results)
    assert probe.asked.wait(PATIENCE)
    for _ in range(20):
        blocked(destroy)
    assert probe.calls == 1
    probe.go.set()
    wait_for(health, lambda: redis.status().failures == 1)
    wait_for_probe_end(redis)
    probe.error = None
    blocked(destroy)
    wait_for(health, lambda: redis.state is HealthState.HEALTHY)
    assert probe.calls == 2


def wait_for_probe_end(dependency: Dependency) -> None:
    """Wait until the flight of a probe has been given back."""
    idle = threading.Event()

    def look() -> None:
        while dependency._schedule is not None and dependency._schedule.in_flight:
            pass
        idle.set()

    threading.Thread(target=look, daemon=True).start()
    assert idle.wait(PATIENCE)


async def test_probes_in_a_loop_are_tasks(health: Safehold) -> None:
    """A coroutine function's probe runs in the loop of whoever was blocked."""
    loops: list[Any] = []

    async def probe() -> None:
        loops.append(asyncio.get_running_loop())

    redis = health.dependency("redis", critical=True, policy=POLICY, probe=probe)
    told = asyncio.Event()

    @health.destructive("destroy")
    async def destroy() -> str:
        return "destroyed"

    with health.subscribe(lambda event: told.set() if redis.state is HealthState.HEALTHY else None):
        with pytest.raises(OperationBlocked):
            await destroy()
        await asyncio.wait_for(told.wait(), PATIENCE)
    assert await destroy() == "destroyed"
    assert loops == [asyncio.get_running_loop()]


@pytest.mark.parametrize("why", ["held", "cooling", "no probe"])
def test_blocks_that_order_no_probe(health: Safehold, clock: ManualClock, why: str) -> None:
    """Held and cooling dependencies are not asked; where nothing probes, the reason says what helps."""
    probe = CountedProbe()
    redis = health.dependency(
        "redis", critical=True, policy=POLICY, probe=None if why == "no probe" else probe
    )
    destroy = health.destructive("destroy")(answer)
    if why == "held":
        redis.hold()
    elif why == "cooling":
        make_open(redis)
    error = blocked(destroy)
    assert probe.calls == 0
    assert not any(thread.name.startswith("safehold-probe") for thread in threading.enumerate())
    if why == "no probe":
        assert "give it a probe" in str(error)
        assert error.retry_after == 1.0


def test_healthy_operations_order_no_probe(gate_form: Form, health: Safehold) -> None:
    """Where nothing is missing, nobody is asked."""
    probe = CountedProbe()
    make_healthy(health.dependency("redis", critical=True, probe=probe))
    destroy = gate_form.gate(health, "destroy", answer)
    for _ in range(3):
        assert destroy() == "answer"
    assert probe.calls == 0


# --- the whole ----------------------------------------------------------------------------------------


def test_failures_only_take_permission_away(health: Safehold, clock: ManualClock) -> None:
    """Insert failures anywhere into a history, and what was destroyed does not grow."""

    def destroyed(history: list[str]) -> set[int]:
        clock = ManualClock()
        home = Safehold("h", clock=clock, rng=random.Random(1), gate=GatePolicy(startup_grace=0.0))
        redis = home.dependency("redis", critical=True, policy=POLICY)
        ran: set[int] = set()
        destroy = home.destructive("destroy")(ran.add)
        acts = 0
        for step in history:
            if step == "act":
                with contextlib.suppress(OperationBlocked):
                    destroy(acts)
                acts += 1
            elif step == "time":
                clock.advance(25)
            else:
                with contextlib.suppress(Exception, KeyboardInterrupt), redis.permit():
                    if step == "fail":
                        raise Down("no answer")
                    if step == "cancel":
                        raise KeyboardInterrupt
        return ran

    dice = random.Random(11)
    some = 0
    for _ in range(300):
        history = dice.choices(["act", "time", "call"], [3, 3, 3], k=40)
        worse = list(history)
        for _ in range(dice.randint(1, 6)):
            worse.insert(dice.randint(0, len(worse)), dice.choice(["fail", "cancel"]))
        was, now = destroyed(history), destroyed(worse)
        assert now <= was, (history, worse)
        some += len(now)
    assert some > 500, "and something was destroyed at all"
