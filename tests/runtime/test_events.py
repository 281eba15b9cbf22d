"""What is told: in order, exactly once, and with the lock free."""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tenacity.wait import wait_base

from safehold import (
    BreakerState,
    Decision,
    Dependency,
    DependencyUnhealthy,
    GatePolicy,
    HealthState,
    OperationBlocked,
    Safehold,
    Transition,
)
from safehold.testing.clock import ManualClock

from .support import (
    COOLDOWN,
    PATIENCE,
    POLICY,
    Down,
    Form,
    answer,
    down,
    fail,
    in_threads,
    make_healthy,
    make_open,
    many_switches,
    python,
    succeed,
)


def from_elsewhere(health: Safehold) -> None:
    """Ask for the status in another thread and wait for it: hangs if the lock is held here."""
    done = threading.Event()

    def ask() -> None:
        health.status()
        done.set()

    threading.Thread(target=ask, daemon=True).start()
    assert done.wait(5), "the lock is held while something of the user's runs"


def moves(told: list[Any]) -> list[tuple[str, str]]:
    return [(str(event.before), str(event.after)) for event in told if isinstance(event, Transition)]


# --- what is told -------------------------------------------------------------------------------------


def test_the_story_of_an_outage(form: Form, health: Safehold, redis: Dependency, clock: ManualClock) -> None:
    """Every change of breaker or health is one event, complete, in order; what changes nothing is none."""
    told: list[Transition] = []
    health.subscribe(told.append)
    working, failing = form.guard(redis, answer), form.guard(redis, down)
    for call in (working, working, failing, failing, working, failing, failing, failing, working):
        clock.advance(1)
        try:
            call()
        except (Down, DependencyUnhealthy):
            pass
    clock.advance(COOLDOWN)
    working()
    clock.advance(60)
    working()
    working()
    assert moves(told) == [
        ("unknown", "healthy"),
        ("healthy", "degraded"),
        ("degraded", "healthy"),
        ("healthy", "degraded"),
        ("degraded", "unhealthy"),
        ("unhealthy", "recovering"),
        ("recovering", "recovering"),
        ("recovering", "healthy"),
    ]
    assert [str(event.breaker) for event in told[-4:]] == ["open", "half_open", "closed", "closed"]
    assert [event.generation for event in told] == sorted(event.generation for event in told)
    assert [event.at for event in told] == sorted(event.at for event in told)
    opened = told[4]
    assert (opened.dependency, opened.cause.code, opened.retry_after) == ("redis", "Down", COOLDOWN)
    assert (opened.at, opened.level, opened.held) == (1008.0, 1, False)
    for before, after in itertools.pairwise(told):
        assert (before.after, before.breaker) == (after.before, after.breaker_before), "no gap in the story"


def test_verbs_are_told(health: Safehold, redis: Dependency) -> None:
    """What a person does is an event with the person's reason."""
    told: list[Transition] = []
    health.subscribe(told.append)
    redis.hold("maintenance")
    redis.hold("still maintenance")
    redis.release("done")
    redis.release("twice changes nothing")
    redis.reset("checked")
    assert [(event.cause.code, event.cause.text, event.held) for event in told] == [
        ("hold", "maintenance", True),
        ("release", "done", False),
        ("reset", "checked", False),
    ]
    assert told[0].retry_after is None


def test_several_dependencies_have_one_order(health: Safehold, redis: Dependency, api: Dependency) -> None:
    """Events of one Safehold come in the order in which they happened, whosever they are."""
    told: list[Any] = []
    health.subscribe(told.append)
    succeed(redis)
    succeed(api)
    fail(redis)
    fail(api)
    assert [(event.dependency, str(event.after)) for event in told] == [
        ("redis", "healthy"),
        ("api", "healthy"),
        ("redis", "degraded"),
        ("api", "degraded"),
    ]


def test_listener_runs_before_the_call_returns(form: Form, health: Safehold, redis: Dependency) -> None:
    """A direct listener has heard of it when the guarded call comes back."""
    told: list[Any] = []
    health.subscribe(told.append)
    form.guard(redis, answer)()
    assert len(told) == 1


def test_closed_subscriptions_hear_nothing(health: Safehold, redis: Dependency) -> None:
    """`close`, and the end of its block, end a subscription; closing twice is harmless."""
    told: list[Any] = []
    with health.subscribe(told.append) as subscription:
        succeed(redis)
    fail(redis)
    subscription.close()
    assert len(told) == 1


# --- under threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("threaded", [False, True])
def test_exactly_once_and_in_order_under_threads(
    health: Safehold, clock: ManualClock, threaded: bool
) -> None:
    """Eight threads, several dependencies: each listener hears one gapless story of each, and the same."""
    deps = [health.dependency(f"d{index}", policy=POLICY) for index in range(3)]
    stories: list[list[Transition]] = [[], []]
    for story in stories:
        health.subscribe(story.append, threaded=threaded)

    def work_once(index: int) -> None:
        dice = random.Random()
        dependency = dice.choice(deps)
        match dice.randrange(4):
            case 0:
                dependency.reset()
            case 1:
                succeed(dependency)
            case _:
                with dependency.permit():
                    raise Down("no answer")

    def hammer(index: int) -> None:
        for _ in range(150):
            try:
                work_once(index)
            except DependencyUnhealthy:
                clock.advance(5)
            except Down:
                pass

    with many_switches():
        results = in_threads(hammer, 8)
    assert results == [None] * 8
    assert health.flush(PATIENCE)
    assert stories[0] == stories[1]
    for dependency in deps:
        story = [event for event in stories[0] if event.dependency == dependency.name]
        assert len(story) > 20
        for before, after in itertools.pairwise(story):
            assert (before.breaker, before.after, before.held) == (
                after.breaker_before,
                after.before,
                before.held,
            )
            assert before.generation <= after.generation
        report = dependency.status()
        assert (story[-1].after, story[-1].breaker) == (report.state, report.breaker)


def test_told_before_the_call_returns_whatever_others_do(health: Safehold, redis: Dependency) -> None:
    """An event does not wait for what another thread happens to be in the middle of."""
    told: list[Any] = []
    health.subscribe(told.append)
    engine = health._engine
    inside, go = threading.Event(), threading.Event()

    def step() -> None:
        inside.set()
        assert go.wait(PATIENCE)

    other = threading.Thread(target=lambda: engine.run(step), daemon=True)

    def busy() -> None:  # our step is over and its event is not told yet: the other thread begins one
        engine.wake = answer
        other.start()
        assert inside.wait(PATIENCE)
        threading.Timer(0.05, go.set).start()  # a teller that waits for the other thread may do so

    engine.wake = busy
    succeed(redis)
    heard = len(told)
    go.set()
    other.join(PATIENCE)
    assert heard == 1


# --- listeners that misbehave -------------------------------------------------------------------------


def test_raising_listener_harms_nobody(
    form: Form, health: Safehold, redis: Dependency, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A listener that raises is logged; calls keep their answers and errors, other listeners their events."""
    told: list[Any] = []

    def broken(event: object) -> None:
        raise ZeroDivisionError("secret-text")

    health.subscribe(broken)
    health.subscribe(told.append)
    with caplog.at_level(logging.ERROR, "safehold"):
        assert form.guard(redis, answer)() == "answer"
        for _ in range(3):
            with pytest.raises(Down) as caught:
                form.guard(redis, down)()
            assert caught.value.__context__ is None
        clock.advance(COOLDOWN)
        assert form.guard(redis, answer)() == "answer"
    assert len(told) == 5
    assert "listener_failed: ZeroDivisionError" in caplog.text
    assert "secret-text" not in caplog.text


def test_listener_that_calls_back(health: Safehold, redis: Dependency, api: Dependency) -> None:
    """What a listener causes is told after the present event, in order, to everybody."""
    first: list[Any] = []
    second: list[Any] = []

    def meddle(event: Any) -> None:
        first.append(event)
        health.status()
        health.check("anything")
        if event.dependency == "redis" and event.breaker is BreakerState.OPEN and not event.held:
            make_healthy(api)
            redis.hold("meddling")
            fail(api)

    health.subscribe(meddle)
    health.subscribe(second.append)
    make_open(redis)
    assert first == second
    assert [(event.dependency, str(event.after)) for event in first] == [
        ("redis", "degraded"),
        ("redis", "unhealthy"),
        ("api", "healthy"),
        ("redis", "unhealthy"),
        ("api", "degraded"),
    ]
    assert redis.held


def test_listener_that_subscribes_and_closes(health: Safehold, redis: Dependency) -> None:
    """Subscribing and closing inside a listener take effect from the next event on."""
    told: list[tuple[str, str]] = []

    def first(event: Any) -> None:
        told.append(("first", str(event.after)))
        subscription.close()
        health.subscribe(lambda later: told.append(("second", str(later.after))))

    subscription = health.subscribe(first)
    succeed(redis)
    fail(redis)
    assert told == [("first", "healthy"), ("second", "degraded")]


def test_slow_listener_delays_only_the_telling(health: Safehold, redis: Dependency) -> None:
    """While a listener takes its time, other threads call on; what they cause is told after it."""
    told: list[str] = []
    inside, go = threading.Event(), threading.Event()

    def slow(event: Any) -> None:
        if not told:
            inside.set()
            assert go.wait(PATIENCE)
        told.append(str(event.after))

    health.subscribe(slow)
    thread = threading.Thread(target=succeed, args=(redis,), daemon=True)
    thread.start()
    assert inside.wait(PATIENCE)
    fail(redis)
    assert redis.state is HealthState.DEGRADED
    assert told == []
    go.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert told == ["healthy", "degraded"]


# --- threaded listeners -------------------------------------------------------------------------------


def test_threaded_listener(form: Form, health: Safehold, redis: Dependency) -> None:
    """A threaded listener runs on a thread of its own, delays no call, and `flush` waits for it."""
    told: list[Any] = []
    threads: set[threading.Thread] = set()
    go = threading.Event()

    def slow(event: Any) -> None:
        assert go.wait(PATIENCE)
        threads.add(threading.current_thread())
        told.append(event)

    subscription = health.subscribe(slow, threaded=True)
    form.guard(redis, answer)()
    with pytest.raises(Down):
        form.guard(redis, down)()
    assert told == []
    assert not health.flush(0)
    go.set()
    assert health.flush(PATIENCE)
    assert moves(told) == [("unknown", "healthy"), ("healthy", "degraded")]
    (thread,) = threads
    assert thread is not threading.main_thread()
    assert thread.daemon
    subscription.close()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "its thread ends with it"


def test_threaded_listener_that_raises_goes_on(health: Safehold, redis: Dependency) -> None:
    """One bad event does not end the telling."""
    told: list[Any] = []

    def broken(event: Any) -> None:
        told.append(event)
        raise ZeroDivisionError

    with health.subscribe(broken, threaded=True):
        succeed(redis)
        fail(redis)
        assert health.flush(PATIENCE)
    assert len(told) == 2


def test_flush_inside_a_threaded_listener_does_not_wait_for_itself(
    health: Safehold, redis: Dependency
) -> None:
    """A listener that flushes does not hang."""
    told: list[bool] = []
    with health.subscribe(lambda _: told.append(health.flush(PATIENCE)), threaded=True) as subscription:
        succeed(redis)
        assert subscription.flush(PATIENCE)
    assert told == [True]


def test_flush_after_close_does_not_wait(health: Safehold, redis: Dependency) -> None:
    """A closed subscription has nothing left to tell: `flush` comes back as soon as its thread is through."""
    subscription = health.subscribe(lambda _: None, threaded=True)
    succeed(redis)
    assert subscription.flush(PATIENCE)
    subscription.close()
    assert subscription.flush(3.0)


def test_no_thread_before_the_first_event(health: Safehold) -> None:
    """Subscribing alone starts nothing."""
    before = threading.active_count()
    with health.subscribe(answer, threaded=True):
        assert threading.active_count() == before
        assert health.flush(0)


# --- nothing of the user's under the lock -------------------------------------------------------------


class AskingClock:
    """A clock whose every reading needs the lock to be free."""

    def __init__(self) -> None:
        self.ask: Callable[[], None] | None = None

    def monotonic(self) -> float:
        self._look()
        return 1000.0

    def wall(self) -> float:
        self._look()
        return 1_767_225_600.0

    def _look(self) -> None:
        ask, self.ask = self.ask, None
        if ask is not None:
            ask()
            self.ask = ask


class AskingDice(random.Random):
    """Dice whose every throw needs the lock to be free."""

    ask: Callable[[], None] | None = None

    def random(self) -> float:
        ask, self.ask = self.ask, None
        if ask is not None:
            ask()
            self.ask = ask
        return 0.5


class AskingWait(wait_base):
    """A tenacity wait that needs the lock to be free."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self.ask = ask

    def __call__(self, retry_state: Any) -> float:
        self.ask()
        return 7.0


@pytest.mark.parametrize(
    "what", ["listener", "classifier", "clock", "dice", "cooldown", "log", "body", "probe"]
)
def test_nothing_of_the_users_runs_under_the_lock(what: str) -> None:
    """Whatever we call of the user's may wait for another thread that needs the lock."""
    clock, dice = AskingClock(), AskingDice()
    health = Safehold("asking", clock=clock, rng=dice, gate=GatePolicy(startup_grace=0.0))
    asked: list[int] = []

    def ask() -> None:
        asked.append(1)
        from_elsewhere(health)

    policy = POLICY.model_copy(update={"cooldown": AskingWait(ask)}) if what == "cooldown" else POLICY
    classify = (lambda _: ask() or True) if what == "classifier" else None
    well = threading.Event()

    def probe() -> None:
        if what == "probe":
            ask()

    redis = health.dependency("redis", critical=True, policy=policy, classify=classify, probe=probe)
    destroy = health.destructive("destroy")(answer)
    handler = logging.Handler()
    handler.emit = lambda record: ask()  # type: ignore[method-assign]
    logger = logging.getLogger("safehold")
    health.subscribe(lambda event: well.set() if isinstance(event, Transition) else None)
    if what == "listener":
        health.subscribe(lambda _: ask())
    elif what == "clock":
        clock.ask = ask
    elif what == "dice":
        dice.ask = ask
    elif what == "log":
        logger.addHandler(handler)
    try:
        with pytest.raises(OperationBlocked):
            destroy()
        assert well.wait(PATIENCE), "the probe has answered"
        redis.guard(ask if what == "body" else answer)()
        fail(redis, 3)
        assert redis.breaker is BreakerState.OPEN
        with pytest.raises(DependencyUnhealthy) as caught:
            redis.guard(answer)()
        assert caught.value.retry_after
        redis.hold()
        redis.release()
        redis.reset()
        succeed(redis)
        assert health.status().dependencies["redis"].state is HealthState.RECOVERING
    finally:
        logger.removeHandler(handler)
        clock.ask = dice.ask = None
    assert asked


def test_a_signal_handler_may_ask() -> None:
    """A signal handler that interrupts us anywhere, under our lock included, gets its answer.

    No timer of the system is needed: a tracer sends the signal at each line that the library runs.
    """
    told = python(
        """
        import faulthandler, signal, sys
        from safehold import GatePolicy, Safehold

        faulthandler.dump_traceback_later(35, exit=True)
        health = Safehold("signals", gate=GatePolicy(startup_grace=0))
        redis = health.dependency("redis", critical=True)
        asked = 0

        def handler(number, frame):
            global asked
            sys.settrace(None)
            health.status()
            try:
                with redis.permit():
                    raise OSError
            except OSError:
                pass
            asked += 1

        signal.signal(signal.SIGUSR1, handler)
        lines = 0

        def tracer(frame, event, argument):
            global lines
            if "safehold" not in frame.f_code.co_filename:
                return None
            if event == "line":
                lines += 1
                if lines == due:
                    signal.raise_signal(signal.SIGUSR1)
            return tracer

        for due in range(1, 1000):
            lines = 0
            redis.reset()
            sys.settrace(tracer)
            try:
                with redis.permit():
                    raise OSError
            except OSError:
                pass
            sys.settrace(None)
            if lines < due:
                break  # each line had its turn
        assert asked > 20, asked
        health.status()
        print("well")
        """
    )
    assert told == "well\n"


def test_a_finaliser_may_ask() -> None:
    """An object whose `__del__` uses a guarded client may be collected anywhere, under our lock included."""
    told = python(
        """
        import faulthandler, gc, sys
        from safehold import GatePolicy, Safehold

        faulthandler.dump_traceback_later(35, exit=True)
        health = Safehold("finalisers", gate=GatePolicy(startup_grace=0))
        redis = health.dependency("redis", critical=True)
        closed = 0

        class Connection:
            def __init__(self):
                self.me = self

            def __del__(self):
                global closed
                try:
                    with redis.permit():
                        raise OSError
                except OSError:
                    pass
                closed += 1

        gc.disable()  # the tracer says when
        gc.freeze()
        lines = 0

        def tracer(frame, event, argument):
            global lines
            if "safehold" not in frame.f_code.co_filename:
                return None
            if event == "line":
                lines += 1
                if lines == due:
                    sys.settrace(None)
                    gc.collect()
            return tracer

        for due in range(1, 1000):
            lines = 0
            redis.reset()
            Connection()
            sys.settrace(tracer)
            try:
                with redis.permit():
                    raise OSError
            except OSError:
                pass
            sys.settrace(None)
            if lines < due:
                break  # each line had its turn
        assert closed > 20, closed
        health.status()
        print("well")
        """
    )
    assert told == "well\n"


# --- the log ------------------------------------------------------------------------------------------


def test_each_transition_is_one_log_line(
    health: Safehold, redis: Dependency, caplog: pytest.LogCaptureFixture
) -> None:
    """Transitions are logged once each, with their fields, on the logger `safehold`."""
    with caplog.at_level(logging.INFO, "safehold"):
        make_open(redis)
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("safehold", "WARNING"),
        ("safehold", "ERROR"),
    ]
    record: Any = caplog.records[-1]
    assert (record.dependency, record.health, record.breaker, record.cause) == (
        "redis",
        "unhealthy",
        "open",
        "Down",
    )
    assert "next look in 10 s" in record.getMessage()


def test_repeated_blocks_are_logged_once_a_minute(
    health: Safehold, redis: Dependency, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop that is blocked a thousand times does not fill the disk; what was left out is counted."""
    destroy = health.destructive("log.once")(answer)
    told: list[Any] = []
    health.subscribe(told.append)

    def block() -> None:
        with pytest.raises(OperationBlocked):
            destroy()

    with caplog.at_level(logging.INFO, "safehold"):
        for _ in range(5):
            block()
        assert len(caplog.records) == 1
        clock.advance(60)
        block()
    assert len(caplog.records) == 2
    record: Any = caplog.records[-1]
    assert (record.operation, record.suppressed) == ("log.once", 4)
    assert sum(isinstance(event, Decision) for event in told) == 6, "listeners hear of every one"


def test_blocks_of_two_safeholds_do_not_hide_each_other(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Whose operation was blocked matters: another instance's line of the same name is no repetition."""
    with caplog.at_level(logging.INFO, "safehold"):
        for name in ("one", "two"):
            home = Safehold(name, clock=clock, gate=GatePolicy(startup_grace=0.0))
            destroy = home.destructive("log.shared")(answer)
            with pytest.raises(OperationBlocked):
                destroy()
    assert len(caplog.records) == 2


def test_logging_configures_nothing() -> None:
    """Importing and using the library writes nothing and touches no logger but its own."""
    told = python(
        """
        import logging, sys, threading
        before = (list(logging.root.handlers), logging.root.level, threading.active_count())
        import safehold
        home = safehold.Safehold("quiet")
        redis = home.dependency("redis")
        for _ in range(6):
            try:
                with redis.permit():
                    raise OSError
            except (OSError, safehold.Refused):
                pass
        assert before == (list(logging.root.handlers), logging.root.level, threading.active_count())
        assert not any(name.split(".")[0] in ("redis", "httpx", "fakeredis") for name in sys.modules)
        """
    )
    assert told == ""
