"""What a guarded call is, in every form in which it can be written."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import inspect
import pickle
import random
import typing
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from safehold import (
    BreakerPolicy,
    BreakerState,
    ConfigurationError,
    CountWindow,
    Dependency,
    DependencyUnhealthy,
    HealthState,
    OperationBlocked,
    Outcome,
    Refused,
    Safehold,
)
from safehold.testing.clock import ManualClock

from .support import (
    COOLDOWN,
    POLICY,
    Down,
    Form,
    Rejected,
    answer,
    down,
    fail,
    finish,
    in_threads,
    make_healthy,
    make_open,
    many_switches,
    raiser,
    succeed,
)

INTERRUPTIONS = [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit]


def plain(function: Any) -> Any:
    """Decorate nothing: what a guarded function is compared with."""
    return function


# --- outcomes -----------------------------------------------------------------------------------------


def test_success(form: Form, redis: Dependency) -> None:
    """A guarded call gives what the function gives, and the first one makes the dependency healthy."""
    call = form.guard(redis, answer)
    assert redis.state is HealthState.UNKNOWN
    for _ in range(4):
        assert call() == "answer"
    report = redis.status()
    assert (report.state, report.successes, report.failures) == (HealthState.HEALTHY, 4, 0)


def test_failure(form: Form, redis: Dependency) -> None:
    """An exception is a failure and a miss; so many in a row trip, and one success resolves the miss."""
    failing, working = form.guard(redis, down), form.guard(redis, answer)
    for _ in range(2):
        with pytest.raises(Down):
            failing()
    assert (redis.state, redis.status().failures) == (HealthState.DEGRADED, 2)
    assert redis.status().unresolved_miss
    working()
    assert (redis.state, redis.status().unresolved_miss) == (HealthState.HEALTHY, False)
    for _ in range(2):
        with pytest.raises(Down):
            failing()
    assert redis.breaker is BreakerState.CLOSED
    with pytest.raises(Down):
        failing()
    assert (redis.breaker, redis.state) == (BreakerState.OPEN, HealthState.UNHEALTHY)


def test_refusal(form: Form, redis: Dependency, clock: ManualClock) -> None:
    """A refused call is not made, and its error carries dependency, state, retry_after, reason and since."""
    ran: list[str] = []
    call = form.guard(redis, lambda: ran.append("ran"))
    clock.advance(5)
    tripped = datetime.fromtimestamp(clock.wall(), UTC)
    make_open(redis)
    clock.advance(4)
    with pytest.raises(DependencyUnhealthy) as caught:
        call()
    error = caught.value
    assert ran == []
    assert (error.dependency, error.state, error.reason) == ("redis", HealthState.UNHEALTHY, "breaker_open")
    assert error.retry_after == COOLDOWN - 4
    assert abs((error.since - tripped).total_seconds()) < 1e-3
    assert redis.status().refusals == 1
    assert error.__cause__ is None
    assert error.__context__ is None
    clock.advance(5)
    assert error.retry_after == 1.0
    clock.advance(1)
    assert error.retry_after == 0.0
    call()
    assert ran == ["ran"]


def test_each_refusal_is_an_error_of_its_own(form: Form, redis: Dependency) -> None:
    """No exception object is raised twice."""
    call = form.guard(redis, answer)
    make_open(redis)
    errors = []
    for _ in range(3):
        with pytest.raises(DependencyUnhealthy) as caught:
            call()
        errors.append(caught.value)
    assert len({id(error) for error in errors}) == 3


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_interruption_is_ignored(form: Form, redis: Dependency, interruption: type[BaseException]) -> None:
    """What is no Exception never moves the breaker; the call did not answer, so it is a miss."""
    make_healthy(redis)
    call, working = form.guard(redis, raiser(interruption())), form.guard(redis, answer)
    for _ in range(10):
        with pytest.raises(interruption):
            call()
    report = redis.status()
    assert (report.breaker, report.failures) == (BreakerState.CLOSED, 0)
    assert (report.state, report.unresolved_miss) == (HealthState.DEGRADED, True)
    working()
    assert redis.state is HealthState.HEALTHY


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_interruption_does_not_end_a_row_of_failures(
    form: Form, redis: Dependency, interruption: type[BaseException]
) -> None:
    """An ignored call is no success either: the failures around it stay in a row."""
    call, failing = form.guard(redis, raiser(interruption())), form.guard(redis, down)
    for attempt in (failing, failing, call, failing):
        with pytest.raises((Down, interruption)):
            attempt()
    assert redis.breaker is BreakerState.OPEN


class Unhashable(Exception):
    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]


class Frozen(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class Picky(Exception):
    __slots__ = ("wanted",)

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize("error", [Down("a", 1), Unhashable("b"), Frozen("c"), Picky("d")], ids=type)
def test_own_exception_is_untouched(form: Form, redis: Dependency, error: Exception) -> None:
    """A call that ran keeps its own exception object: identity, arguments, notes, cause and context."""
    cause = ValueError("cause")
    if not isinstance(error, Frozen):
        error.__notes__ = ["noted"]

    def body() -> None:
        raise error from cause

    args, context = error.args, error.__context__
    call = form.guard(redis, body)
    for _ in range(2):  # the first call and the later ones take different ways
        with pytest.raises(type(error)) as caught:
            call()
        assert caught.value is error
        assert (error.args, error.__cause__, error.__context__) == (args, cause, context)
        assert error.__suppress_context__
        assert getattr(error, "__notes__", ["noted"]) == ["noted"]
    assert redis.status().failures == 2


def test_tripping_call_raises_its_own_exception(form: Form, redis: Dependency) -> None:
    """The failure that trips is the caller's to see, not a refusal."""
    fail(redis, 2)
    with pytest.raises(Down):
        form.guard(redis, down)()
    assert redis.breaker is BreakerState.OPEN


def test_a_guarded_failure_can_be_pickled_and_copied(form: Form, redis: Dependency) -> None:
    """What the guard leaves on an exception stands in nobody's way."""
    with pytest.raises(Down) as caught:
        form.guard(redis, down)()
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.deepcopy(caught.value)):
        assert (type(again), again.args) == (Down, ("no answer",))


def test_disabled_and_undeclared_refuse_nothing(form: Form, health: Safehold) -> None:
    """A disabled dependency, like an undeclared one, is `unknown` and refuses nothing; misses still count."""
    off = health.dependency("off", policy=BreakerPolicy(failures=1, mode="disabled"))
    for dependency in (off, health["undeclared"]):
        call = form.guard(dependency, down)
        for _ in range(5):
            with pytest.raises(Down):
                call()
        assert dependency.state is HealthState.UNKNOWN
        assert dependency.status().unresolved_miss
        assert form.guard(dependency, answer)() == "answer"
        assert not dependency.status().unresolved_miss
    assert health.status().undeclared == ("undeclared",)


def test_observed_breaker_decides_and_never_refuses(form: Form, health: Safehold) -> None:
    """In observe mode the machine runs truthfully and only the refusals are suppressed."""
    policy = POLICY.model_copy(update={"mode": "observe"})
    watched = health.dependency("watched", policy=policy)
    call = form.guard(watched, answer)
    make_open(watched)
    assert call() == "answer"
    assert (watched.state, watched.breaker) == (HealthState.UNHEALTHY, BreakerState.OPEN)
    assert watched.status().suppressed == 1


# --- what a wrapper keeps -----------------------------------------------------------------------------


def kinds(health: Safehold) -> Iterator[tuple[Callable[..., Any], Any]]:
    """Give functions of each kind with their guarded forms."""

    def function(a: int, /, b: str = "b", *c: float, d: bytes = b"d", **e: complex) -> list[int]:
        """What it does."""
        return [a]

    async def coroutine_function(a: int, *, b: str = "b") -> int:
        """What it awaits."""
        return a

    def generator(a: int) -> Iterator[int]:
        """What it yields."""
        yield a

    async def async_generator(a: int) -> AsyncIterator[int]:
        """What it yields in time."""
        yield a

    for kind in (function, coroutine_function, generator, async_generator):
        kind.mark = object()  # type: ignore[attr-defined]
        yield kind, health.guard("redis")(kind)


def test_wrapper_looks_like_the_function(health: Safehold) -> None:
    """Name, docstring, module, signature, annotations, attributes and kind stay, before and after a call."""
    for function, wrapped in kinds(health):
        for _ in range(2):
            for attribute in ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__", "mark"):
                assert getattr(wrapped, attribute) == getattr(function, attribute)
            assert wrapped.__wrapped__ is function
            assert inspect.signature(wrapped) == inspect.signature(function)
            assert typing.get_type_hints(wrapped) == typing.get_type_hints(function)
            for question in (
                inspect.iscoroutinefunction,
                inspect.isgeneratorfunction,
                inspect.isasyncgenfunction,
                inspect.isfunction,
            ):
                assert question(wrapped) is question(function)
            result = wrapped(1)
            if inspect.iscoroutine(result):
                result.close()


def test_wrapper_of_a_callable_without_a_name_takes_its_class_name(health: Safehold) -> None:
    """Partials and callable objects get a name that a person recognises, and a signature that fits."""

    class Call:
        def __call__(self, a: int, b: int = 2) -> int:
            return a + b

    def inner(a: int, b: int) -> int:
        return a + b

    bound = functools.partial(inner, 1)
    for function, name in ((Call(), "Call"), (bound, "inner")):
        wrapped = health.guard("redis")(function)
        assert wrapped.__name__ == name
        assert inspect.signature(wrapped) == inspect.signature(function)
        assert wrapped(3) == function(3)


def test_decorator_keeps_static_and_class_methods(health: Safehold) -> None:
    """A decorated staticmethod is one still, a classmethod too, on the class and on its children."""

    class Base:
        @health.guard("redis")
        @classmethod
        def made_by(cls) -> type:
            return cls

        @classmethod
        @health.guard("redis")
        def made_inside(cls) -> type:
            return cls

        @health.guard("redis")
        @staticmethod
        def nothing(x: int) -> int:
            return x

        @property
        @health.guard("redis")
        def value(self) -> type:
            return type(self)

    class Child(Base):
        pass

    for _ in range(2):
        assert (Child.made_by(), Child().made_by(), Child.made_inside()) == (Child, Child, Child)
        assert (Child.nothing(1), Child().nothing(2)) == (1, 2)
        assert Child().value is Child


# --- arguments ----------------------------------------------------------------------------------------


def positional_only(a: Any, b: Any = 2, /, c: Any = 3) -> Any:
    return a, b, c


def keyword_only(*, a: Any, b: Any = [1]) -> Any:  # noqa: B006
    return a, b


def everything(a: Any, /, b: Any, c: Any = (), *args: Any, d: Any, e: Any = {}, **kwargs: Any) -> Any:  # noqa: B006
    return a, b, c, args, d, e, kwargs


def called_like_ours(sh_era: Any, sh_call: Any = 1, *, sh_next: Any = 2) -> Any:
    return sh_era, sh_call, sh_next


def called_like_the_wrapper(guarded: Any, factory: Any = 1, *, next: Any = 2, args: Any = 3) -> Any:  # noqa: A002
    return guarded, factory, next, args


def called_like_the_rest(*sh_args: Any, **sh_kwargs: Any) -> Any:
    return sh_args, sh_kwargs


def called_args_and_kwargs(args: Any, kwargs: Any = None, **self: Any) -> Any:
    return args, kwargs, self


def called_self(self: Any, cls: Any = None) -> Any:
    return self, cls


def not_ascii(größe: Any, *, ключ: Any = 1) -> Any:
    return größe, ключ


def hidden_in_a_comprehension(rows: Any, key: Any = None) -> Any:
    return [(row, key) for row in rows]


SHAPES: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (positional_only, (1,), {}),
    (positional_only, (1, 5), {"c": 6}),
    (keyword_only, (), {"a": 1}),
    (keyword_only, (), {"a": 1, "b": 2}),
    (everything, (1, 2), {"d": 4}),
    (everything, (1, 2, 3, 4, 5), {"d": 6, "e": 7, "f": 8, "a": 9}),
    (everything, (1,), {"b": 2, "d": 3, "args": 4, "kwargs": 5, "sh_call": 6}),
    (called_like_ours, (1,), {}),
    (called_like_ours, (1,), {"sh_call": 2, "sh_next": 3}),
    (called_like_the_wrapper, (1,), {"next": 5}),
    (called_like_the_rest, (1, 2), {"sh_kwargs": 3, "self": 4}),
    (called_args_and_kwargs, (1,), {"kwargs": 2, "cls": 3}),
    (called_self, (1,), {"cls": 2}),
    (not_ascii, (1,), {"ключ": 2}),
    (hidden_in_a_comprehension, ([1, 2],), {"key": 3}),
    (lambda a, *b, c=1, **d: (a, b, c, d), (1, 2), {"c": 3, "e": 4}),
    (lambda: "nothing", (), {}),
]


@pytest.mark.parametrize(("function", "args", "kwargs"), SHAPES)
def test_arguments_of_every_shape(
    health: Safehold, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Arguments reach the function as they were given, whatever its parameters are called."""
    wanted = function(*args, **kwargs)

    def coroutine(*args: Any, **kwargs: Any) -> Any:
        return wrapped_async(*args, **kwargs)

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    wrapped, wrapped_async = health.guard("redis")(function), health.guard("redis")(awaited)
    for _ in range(3):
        assert wrapped(*args, **kwargs) == wanted
        assert finish(coroutine(*args, **kwargs)) == wanted


def test_defaults_are_the_functions_own_objects(health: Safehold) -> None:
    """A mutable default stays one object, shared with the function."""

    @health.guard("redis")
    def remember(value: int, seen: list[int] = [], *, more: dict[int, int] = {}) -> Any:  # noqa: B006
        seen.append(value)
        more[value] = value
        return seen, more

    assert remember(1) == ([1], {1: 1})
    assert remember(2) == ([1, 2], {1: 1, 2: 2})
    assert remember(3) == ([1, 2, 3], {1: 1, 2: 2, 3: 3})
    assert remember.__wrapped__.__defaults__[0] == [1, 2, 3]  # type: ignore[attr-defined]


def test_defaults_changed_before_the_first_call_are_used(health: Safehold) -> None:
    """The wrapper takes the function's defaults over at its first call, and keeps its own copy from then on."""

    def greet(name: str = "before", *, mark: str = ".") -> str:
        return name + mark

    wrapped = health.guard("redis")(greet)
    greet.__defaults__ = ("after",)
    greet.__kwdefaults__ = {"mark": "!"}
    assert wrapped() == "after!"
    greet.__defaults__ = ("later",)
    assert wrapped() == "after!"


def test_recursive_functions(health: Safehold) -> None:
    """A guarded function may call itself, from its first call on."""

    @health.guard("redis")
    def factorial(n: int) -> int:
        return 1 if n < 2 else n * factorial(n - 1)

    @health.guard("redis")
    async def total(n: int) -> int:
        return 0 if n == 0 else n + await total(n - 1)

    @health.guard("redis")
    def walk(n: int) -> Iterator[int]:
        if n:
            yield n
            yield from walk(n - 1)

    for _ in range(2):
        assert factorial(20) == 2432902008176640000
        assert finish(total(10)) == 55
        assert list(walk(4)) == [4, 3, 2, 1]


def test_parameters_called_like_builtins(health: Safehold) -> None:
    """A failure is one also where a parameter has the name of something that the guard uses."""

    def odd(BaseException: Any = 1, Exception: Any = 2, next: Any = 3) -> None:  # noqa: A002
        raise Down("no answer")

    call = health.guard("redis")(odd)
    for _ in range(3):
        with pytest.raises(Down):
            call()


@pytest.mark.parametrize("calls_before", [0, 1, 2])
def test_a_call_with_wrong_arguments_was_never_made(redis: Dependency, calls_before: int) -> None:
    """Arguments that do not fit are the caller's mistake, and say nothing about the dependency."""

    @redis.guard
    def call(a: int) -> int:
        return a

    @redis.guard
    async def awaited(a: int) -> int:
        return a

    for _ in range(calls_before):
        call(1)
        finish(awaited(1))
    before = redis.status()
    for wrong in ((), (1, 2)):
        with pytest.raises(TypeError):
            call(*wrong)
        with pytest.raises(TypeError):
            finish(awaited(*wrong))
    assert redis.status() == before


def test_first_call_from_many_threads_at_once(health: Safehold) -> None:
    """The wrapper that is made on the first call is right for every thread that made the first call."""

    def body(a: int, b: int = 2, /, *c: int, d: int = 4, **e: int) -> Any:
        return a, b, c, d, e

    async def awaited(a: int, b: int = 2, /, *c: int, d: int = 4, **e: int) -> Any:
        return a, b, c, d, e

    with many_switches():
        for _ in range(20):
            call, coroutine = health.guard("redis")(body), health.guard("redis")(awaited)

            def work(index: int, call: Any = call, coroutine: Any = coroutine) -> Any:
                return [
                    (call(index), call(index, 1, 2, d=3, e=4), finish(coroutine(index, d=index)))
                    for _ in range(3)
                ]

            for index, got in enumerate(in_threads(work, 8)):
                wanted = (
                    (index, 2, (), 4, {}),
                    (index, 1, (2,), 3, {"e": 4}),
                    (index, 2, (), index, {}),
                )
                assert got == [wanted] * 3


# --- plain functions that give a coroutine --------------------------------------------------------------


def undecorated(function: Any) -> Any:
    """A decorator that turns an `async def` into a plain function, as many do."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


@pytest.mark.parametrize("first", ["answered", "refused", "failed", "raised"])
def test_plain_function_that_gives_a_coroutine(redis: Dependency, clock: ManualClock, first: str) -> None:
    """It is the coroutine that is guarded, from the first call on and whatever became of that."""
    script: list[Exception | None] = []

    @redis.guard
    @undecorated
    async def call() -> str:
        if script[-1] is not None:
            raise script[-1]
        return "answer"

    if first == "refused":
        make_open(redis)
        with pytest.raises(DependencyUnhealthy):
            finish(call())
        redis.reset()
    elif first == "raised":
        with pytest.raises(TypeError):
            call("too many")
    else:
        script.append(None if first == "answered" else Down("no answer"))
        with contextlib.suppress(Down):
            finish(call())
    for _ in range(3):
        succeed(redis)
    before = redis.status()
    script.append(Down("no answer"))
    for failures in (1, 2, 3):
        with pytest.raises(Down):
            finish(call())
        assert redis.status().failures - before.failures == failures
    with pytest.raises(DependencyUnhealthy):
        finish(call())
    script.append(None)
    clock.advance(redis.retry_after or 0.0)
    assert finish(call()) == "answer"
    assert redis.breaker is BreakerState.CLOSED


def test_first_coroutine_of_a_plain_function_is_one_call(redis: Dependency, health: Safehold) -> None:
    """The call in which a function shows that it gives coroutines takes one permit, and gives it back."""

    @redis.guard
    @undecorated
    async def call() -> str:
        return "answer"

    destroy = health.destructive("destroy")(answer)
    with health.scope("sweep"):
        assert asyncio.run(call()) == "answer"
        assert redis.status().successes == 1
        assert destroy() == "answer"


def test_coroutine_that_is_never_awaited(redis: Dependency, health: Safehold) -> None:
    """A coroutine that somebody made and threw away was no call: nothing is in flight for ever."""

    @redis.guard
    @undecorated
    async def call() -> str:
        return "answer"

    destroy = health.destructive("destroy")(answer)
    assert asyncio.run(call()) == "answer"
    with health.scope("sweep"):
        for _ in range(3):
            call().close()
        succeed(redis)
        assert destroy() == "answer"


# --- generators ---------------------------------------------------------------------------------------


def dialogue() -> Any:
    """A generator that uses all that the protocol has."""
    log: list[Any] = []
    try:
        while True:
            try:
                got = yield list(log)
                log.append(got)
                if got == "stop":
                    return log
            except Rejected as error:
                log.append(str(error))
    finally:
        log.append("closed")


def stubborn() -> Any:
    """A generator that does not let itself be closed."""
    try:
        yield 1
    except GeneratorExit:
        yield 2


def forgiving() -> Any:
    """A generator that ends well when it is closed."""
    try:
        yield 1
    except GeneratorExit:
        return "closed"


def stopping() -> Any:
    """A generator out of which a StopIteration comes."""
    yield 1
    raise StopIteration(2)


SCRIPTS: list[tuple[Callable[[], Any], list[tuple[str, Any]]]] = [
    (dialogue, [("send", None), ("send", 1), ("throw", Rejected("x")), ("send", "stop"), ("send", 2)]),
    (dialogue, [("send", None), ("throw", Down("y")), ("send", None)]),
    (dialogue, [("send", None), ("close", None), ("send", None)]),
    (dialogue, [("close", None), ("send", None)]),
    (dialogue, [("throw", Down("unstarted")), ("send", None)]),
    (dialogue, [("send", "too early")]),
    (dialogue, [("send", None), ("throw", KeyboardInterrupt()), ("send", None)]),
    (dialogue, [("send", None), ("throw", StopIteration(1))]),
    (dialogue, [("send", None), ("throw", GeneratorExit()), ("send", None)]),
    (stubborn, [("send", None), ("close", None)]),
    (forgiving, [("send", None), ("close", None), ("send", None)]),
    (stopping, [("send", None), ("send", None)]),
]


def play(run: Any, script: list[tuple[str, Any]]) -> list[Any]:
    """Journal what each step of a generator gives or raises."""
    journal: list[Any] = []
    for verb, given in script:
        try:
            step = getattr(run, verb)
            journal.append(step() if verb == "close" else step(given))
        except BaseException as error:
            journal.append((type(error), str(error), getattr(error, "value", None)))
            if error is given:
                journal.append("the same object")
    return journal


@pytest.mark.parametrize(("function", "script"), SCRIPTS)
def test_generator_protocol(
    redis: Dependency, function: Callable[[], Any], script: list[tuple[str, Any]]
) -> None:
    """What is sent, thrown and closed reaches the generator, and what it answers comes back."""
    assert play(redis.guard(function)(), script) == play(function(), script)


async def async_dialogue() -> Any:
    """An async generator that uses all that the protocol has."""
    log: list[Any] = []
    try:
        while True:
            try:
                got = yield list(log)
                log.append(got)
                if got == "stop":
                    return
            except Rejected as error:
                log.append(str(error))
    finally:
        log.append("closed")


async def async_stubborn() -> Any:
    """An async generator that does not let itself be closed."""
    try:
        yield 1
    except GeneratorExit:
        yield 2


ASYNC_SCRIPTS: list[tuple[Callable[[], Any], list[tuple[str, Any]]]] = [
    (
        async_dialogue,
        [("asend", None), ("asend", 1), ("athrow", Rejected("x")), ("asend", "stop"), ("asend", 2)],
    ),
    (async_dialogue, [("asend", None), ("athrow", Down("y")), ("asend", None)]),
    (async_dialogue, [("asend", None), ("aclose", None), ("asend", None)]),
    (async_dialogue, [("aclose", None), ("asend", None)]),
    (async_dialogue, [("asend", None), ("athrow", asyncio.CancelledError()), ("asend", None)]),
    (async_dialogue, [("asend", None), ("athrow", GeneratorExit()), ("asend", None)]),
    (async_dialogue, [("asend", None), ("athrow", StopAsyncIteration(1))]),
    (async_stubborn, [("asend", None), ("aclose", None)]),
]


@pytest.mark.parametrize(("function", "script"), ASYNC_SCRIPTS)
async def test_async_generator_protocol(
    redis: Dependency, function: Callable[[], Any], script: list[tuple[str, Any]]
) -> None:
    """What is sent, thrown and closed reaches the async generator, and what it answers comes back."""

    async def journal(run: Any) -> list[Any]:
        told: list[Any] = []
        for verb, given in script:
            try:
                step = getattr(run, verb)
                told.append(await (step() if verb == "aclose" else step(given)))
            except BaseException as error:
                told.append((type(error), str(error)))
                if error is given:
                    told.append("the same object")
        return told

    assert await journal(redis.guard(function)()) == await journal(function())


async def test_async_generator_waits_in_the_middle(redis: Dependency) -> None:
    """An async generator may wait between items, and be cancelled there: a miss, and no failure."""
    waiting = asyncio.Event()

    @redis.guard
    async def stream() -> AsyncIterator[int]:
        yield 1
        waiting.set()
        await asyncio.Event().wait()

    async def read() -> None:
        async for _ in stream():
            pass

    task = asyncio.create_task(read())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    report = redis.status()
    assert (report.failures, report.unresolved_miss) == (0, True)


def test_generator_is_admitted_at_its_first_step(redis: Dependency, clock: ManualClock) -> None:
    """A generator or coroutine that was made and not started has taken no permit and asks when it starts."""

    @redis.guard
    def rows() -> Iterator[int]:
        yield 1

    @redis.guard
    async def arows() -> AsyncIterator[int]:
        yield 1

    @redis.guard
    async def one() -> int:
        return 1

    early, aearly, coroutine = rows(), arows(), one()
    make_open(redis)
    with pytest.raises(DependencyUnhealthy):
        next(early)
    with pytest.raises(DependencyUnhealthy):
        finish(aearly.__anext__())
    with pytest.raises(DependencyUnhealthy):
        finish(coroutine)
    later, unstarted = rows(), rows()
    clock.advance(COOLDOWN)
    assert redis.breaker is BreakerState.OPEN
    assert list(later) == [1]
    assert redis.breaker is BreakerState.CLOSED
    del unstarted


def test_generator_failing_in_the_middle(redis: Dependency) -> None:
    """A failure between two items counts, and the call ends when the generator does."""

    @redis.guard
    def rows() -> Iterator[int]:
        yield 1
        raise Down("no answer")

    run = rows()
    assert next(run) == 1
    assert redis.status().failures == 0
    with pytest.raises(Down):
        next(run)
    assert redis.status().failures == 1


@pytest.mark.parametrize("how", ["close", "drop"])
def test_generator_closed_early_is_a_miss(redis: Dependency, how: str) -> None:
    """A generator that is not read to its end was abandoned: a miss, and no failure."""
    make_healthy(redis)

    @redis.guard
    def rows() -> Iterator[int]:
        yield 1
        yield 2

    run = rows()
    next(run)
    assert not redis.status().unresolved_miss
    if how == "close":
        run.close()
    else:
        del run
        gc.collect()
    report = redis.status()
    assert (report.failures, report.unresolved_miss) == (0, True)
    assert list(rows()) == [1, 2]
    assert not redis.status().unresolved_miss


async def test_async_generator_closed_early_is_a_miss(redis: Dependency) -> None:
    """An async generator that is not read to its end was abandoned: a miss, and no failure."""
    make_healthy(redis)

    @redis.guard
    async def rows() -> AsyncIterator[int]:
        yield 1
        yield 2

    run = rows()
    await anext(run)
    await run.aclose()
    report = redis.status()
    assert (report.failures, report.unresolved_miss) == (0, True)
    assert [row async for row in rows()] == [1, 2]
    assert not redis.status().unresolved_miss


def test_error_thrown_into_a_generator(redis: Dependency) -> None:
    """What the reader throws in is the generator's to handle; handled, it is nobody's failure."""
    run = redis.guard(dialogue)()
    next(run)
    assert run.throw(Rejected("handled")) == ["handled"]
    assert redis.status().failures == 0
    with pytest.raises(Down):
        run.throw(Down("not handled"))
    assert redis.status().failures == 1


# --- what cannot be guarded ---------------------------------------------------------------------------


def test_what_cannot_be_guarded_is_named(health: Safehold) -> None:
    """Decorating a class, a value or a coroutine object raises at once and says what it was."""

    class Client:
        pass

    async def work() -> None: ...

    coroutine = work()
    for wrong, word in ((Client, "class"), (5, "5"), ("text", "text"), (coroutine, "coroutine")):
        with pytest.raises(ConfigurationError, match=word) as caught:
            health.guard("redis")(wrong)
        assert "redis" in str(caught.value)
    coroutine.close()


def test_a_permit_is_for_one_call(redis: Dependency) -> None:
    """Entering a permit again raises, also after its call has ended."""
    permit = redis.permit()
    with permit, pytest.raises(ConfigurationError, match="redis"), permit:
        pass
    with pytest.raises(ConfigurationError, match="redis"):
        permit.__enter__()


# --- late binding -------------------------------------------------------------------------------------


def test_decorated_before_declaration(form: Form, health: Safehold) -> None:
    """A guard may stand before its dependency is declared, and obeys the declaration from then on."""
    failing, working = form.guard(health["later"], down), form.guard(health["later"], answer)
    for _ in range(5):
        with pytest.raises(Down):
            failing()
    assert working() == "answer"
    assert health.status().undeclared == ("later",)
    with pytest.raises(Down):
        failing()
    later = health.dependency("later", policy=POLICY)
    assert health.status().undeclared == ()
    assert later.status().unresolved_miss, "what was missed before the declaration is not forgotten"
    for _ in range(3):
        with pytest.raises(Down):
            failing()
    with pytest.raises(DependencyUnhealthy):
        working()


def test_slow_limit_declared_later_is_measured(form: Form, health: Safehold, clock: ManualClock) -> None:
    """Calls are measured from the moment at which a slow limit is declared."""
    call = form.guard(health["later"], clock.advance)
    call(5)
    call(5)
    later = health.dependency(
        "later",
        policy=BreakerPolicy(
            failures=None, failure_rate=None, slow_after=2.0, min_calls=4, window=CountWindow(4)
        ),
    )
    for seconds in (1.9, 1.9, 2.0):
        call(seconds)
    assert later.breaker is BreakerState.CLOSED
    call(2.0)
    assert later.breaker is BreakerState.OPEN


# --- classifiers --------------------------------------------------------------------------------------


def is_down(error: Exception) -> bool:
    return isinstance(error, Down)


@pytest.mark.parametrize("classify", [is_down, Down, (Down, TimeoutError)], ids=["function", "type", "types"])
def test_application_errors_are_ignored(form: Form, health: Safehold, classify: Any) -> None:
    """The application's own error decides nothing and is no miss: the dependency answered."""
    shop = health.dependency("shop", policy=POLICY, classify=classify)
    make_healthy(shop)
    rejecting, failing = form.guard(shop, raiser(Rejected("no"))), form.guard(shop, down)
    for _ in range(10):
        with pytest.raises(Rejected):
            rejecting()
    report = shop.status()
    assert (report.state, report.failures, report.unresolved_miss) == (HealthState.HEALTHY, 0, False)
    for _ in range(3):
        with pytest.raises(Down):
            failing()
    assert shop.breaker is BreakerState.OPEN


def test_application_error_resolves_no_miss(form: Form, health: Safehold) -> None:
    """An ignored call proves nothing: only a success resolves a miss."""
    shop = health.dependency("shop", policy=POLICY, classify=Down)
    fail(shop)
    with pytest.raises(Rejected):
        form.guard(shop, raiser(Rejected("no")))()
    assert shop.status().unresolved_miss


def test_outcomes_of_a_classifier(form: Form, health: Safehold) -> None:
    """A classifier may say failure, success or ignored in the library's own words."""
    said: list[Any] = []
    shop = health.dependency("shop", policy=POLICY, classify=lambda _: said[-1])
    call = form.guard(shop, raiser(Rejected("no")))
    for word, failures, state in (
        (Outcome.FAILURE, 1, HealthState.DEGRADED),
        (Outcome.IGNORED, 1, HealthState.DEGRADED),
        (Outcome.SUCCESS, 1, HealthState.HEALTHY),
        (True, 2, HealthState.DEGRADED),
        (False, 2, HealthState.DEGRADED),
    ):
        said.append(word)
        with pytest.raises(Rejected):
            call()
        assert (shop.status().failures, shop.state) == (failures, state)


@pytest.mark.parametrize("truthy", [1, "timeout", [0]], ids=repr)
def test_whatever_is_true_is_a_failure(form: Form, health: Safehold, truthy: object) -> None:
    """A classifier that answers with something true (a match, a code) has said failure, not nothing."""
    shop = health.dependency("shop", policy=POLICY, classify=lambda _: truthy)
    make_healthy(shop)
    with pytest.raises(Down):
        form.guard(shop, down)()
    report = shop.status()
    assert (report.failures, report.unresolved_miss) == (1, True)


def test_a_raising_classifier_excuses_nothing(form: Form, health: Safehold) -> None:
    """A classifier that raises is no excuse: the call has failed, with its own exception."""

    def classify(error: Exception) -> bool:
        raise RuntimeError("broken")

    shop = health.dependency("shop", policy=POLICY, classify=classify)
    call = form.guard(shop, raiser(Rejected("no")))
    for _ in range(3):
        with pytest.raises(Rejected) as caught:
            call()
        assert caught.value.__context__ is None
    assert shop.breaker is BreakerState.OPEN


def test_a_classifier_is_not_asked_about_interruptions(form: Form, health: Safehold) -> None:
    """Cancellation, interruption and refusals are ignored whatever the classifier thinks."""
    asked: list[Exception] = []
    shop = health.dependency("shop", policy=POLICY, classify=lambda error: asked.append(error) or True)
    for error in (KeyboardInterrupt(), asyncio.CancelledError(), DependencyUnhealthy("elsewhere")):
        with pytest.raises(type(error)):
            form.guard(shop, raiser(error))()
    assert asked == []
    assert shop.status().failures == 0


# --- guards inside guards -----------------------------------------------------------------------------


def test_nested_guards_count_one_failure(form: Form, redis: Dependency) -> None:
    """One exception object that passes several guards of one dependency counts once."""
    inner = form.guard(redis, down)

    def body() -> None:
        with redis.permit():
            inner()

    outer = form.guard(redis, body)
    for failures in (1, 2):
        with pytest.raises(Down):
            outer()
        assert redis.status().failures == failures
        assert redis.breaker is BreakerState.CLOSED
    with pytest.raises(Down):
        outer()
    assert redis.breaker is BreakerState.OPEN


def test_one_object_raised_by_two_calls_counts_twice(form: Form, redis: Dependency) -> None:
    """It is the passage through nested guards that counts once; a call of its own counts for itself."""
    error = Down("always the same object")
    call = form.guard(redis, raiser(error))
    for failures in (1, 2):
        with pytest.raises(Down):
            call()
        assert redis.status().failures == failures


def test_nested_guards_of_two_dependencies_count_for_each(
    form: Form, redis: Dependency, api: Dependency
) -> None:
    """A failure that passes the guards of two dependencies is one of each."""
    outer = form.guard(api, form.guard(redis, down))
    with pytest.raises(Down):
        outer()
    assert (redis.status().failures, api.status().failures) == (1, 1)


def test_group_of_counted_failures_counts_no_more(form: Form, redis: Dependency) -> None:
    """A group whose members were counted by inner guards adds nothing at the outer guard."""
    inner = form.guard(redis, down)

    def body() -> None:
        errors = []
        for _ in range(2):
            try:
                inner()
            except Down:
                errors.append(Down("another"))  # never seen by a guard: the twin below
        raise ExceptionGroup("unseen", errors)

    def seen() -> None:
        errors = []
        for _ in range(2):
            try:
                inner()
            except Down as error:
                errors.append(error)
        raise ExceptionGroup("seen", errors)

    with pytest.raises(ExceptionGroup):
        form.guard(redis, body)()
    assert redis.status().failures == 3
    redis.reset()
    before = redis.status().failures
    with pytest.raises(ExceptionGroup):
        form.guard(redis, seen)()
    assert redis.status().failures - before == 2
    assert redis.breaker is BreakerState.CLOSED


def test_group_is_judged_by_its_worst_member(form: Form, health: Safehold) -> None:
    """A group with a failure in it is a failure, one of application errors is none, cancelled is a miss."""
    shop = health.dependency("shop", policy=POLICY, classify=Down)
    make_healthy(shop)
    harmless = ExceptionGroup("harmless", [Rejected("a"), ExceptionGroup("inner", [Rejected("b")])])
    with pytest.raises(ExceptionGroup):
        form.guard(shop, raiser(harmless))()
    assert shop.state is HealthState.HEALTHY
    cancelled = BaseExceptionGroup("cancelled", [Rejected("a"), KeyboardInterrupt()])
    with pytest.raises(BaseExceptionGroup):
        form.guard(shop, raiser(cancelled))()
    assert (shop.status().failures, shop.status().unresolved_miss) == (0, True)
    succeed(shop)
    mixed = ExceptionGroup("mixed", [Rejected("a"), ExceptionGroup("inner", [Down("b")])])
    with pytest.raises(ExceptionGroup):
        form.guard(shop, raiser(mixed))()
    assert shop.status().failures == 1


def test_nested_guards_share_one_trial(form: Form, redis: Dependency, clock: ManualClock) -> None:
    """In half-open the guard inside a trial belongs to it: it is let through and does not decide alone."""
    seen: list[BreakerState] = []

    def body() -> str:
        with redis.permit():
            seen.append(redis.breaker)
        seen.append(redis.breaker)
        return "answer"

    outer = form.guard(redis, form.guard(redis, body))
    make_open(redis)
    clock.advance(COOLDOWN)
    assert outer() == "answer"
    assert seen == [BreakerState.HALF_OPEN] * 2
    assert redis.breaker is BreakerState.CLOSED


def test_nested_guards_fail_one_trial(form: Form, redis: Dependency, clock: ManualClock) -> None:
    """In half-open a failure that passes nested guards opens once: the cooldown grows by one step."""
    outer = form.guard(redis, form.guard(redis, down))
    make_open(redis)
    failures, level = redis.status().failures, redis.status().level
    clock.advance(COOLDOWN)
    with pytest.raises(Down):
        outer()
    report = redis.status()
    assert (report.failures, report.level) == (failures + 1, level + 1)
    assert report.retry_after == 2 * COOLDOWN


def test_nested_cancellation_gives_the_trial_back(form: Form, redis: Dependency, clock: ManualClock) -> None:
    """A cancellation that passes nested guards gives the one trial back."""
    outer = form.guard(redis, form.guard(redis, raiser(asyncio.CancelledError())))
    make_open(redis)
    clock.advance(COOLDOWN)
    with pytest.raises(asyncio.CancelledError):
        outer()
    assert (redis.breaker, redis.retry_after) == (BreakerState.HALF_OPEN, 0.0)
    assert form.guard(redis, answer)() == "answer"
    assert redis.breaker is BreakerState.CLOSED


def test_refusal_from_elsewhere_is_a_miss_and_no_failure(
    form: Form, redis: Dependency, api: Dependency
) -> None:
    """A call that could not be made because something else is down says nothing bad about this one."""
    make_healthy(api)
    make_open(redis)
    outer = form.guard(api, form.guard(redis, answer))
    for _ in range(10):
        with pytest.raises(DependencyUnhealthy) as caught:
            outer()
        assert caught.value.dependency == "redis"
    report = api.status()
    assert (report.breaker, report.failures, report.unresolved_miss) == (BreakerState.CLOSED, 0, True)


def test_blocked_operation_is_neither_failure_nor_miss(
    form: Form, health: Safehold, redis: Dependency, api: Dependency
) -> None:
    """A blocked operation says nothing about the dependency of the call around it."""
    make_healthy(api)
    delete = health.destructive("delete")(answer)
    outer = form.guard(api, delete)
    for _ in range(10):
        with pytest.raises(OperationBlocked):
            outer()
    report = api.status()
    assert (report.state, report.failures, report.unresolved_miss) == (HealthState.HEALTHY, 0, False)
    make_healthy(redis)
    assert outer() == "answer"


def test_refusals_are_one_family(form: Form, redis: Dependency) -> None:
    """One except clause catches whatever did not run because of us."""
    make_open(redis)
    with pytest.raises(Refused):
        form.guard(redis, answer)()


# --- the host never suffers ---------------------------------------------------------------------------


def test_guarding_changes_no_answer(form: Form, health: Safehold, clock: ManualClock) -> None:
    """Whatever history a guarded call has, it gives or raises what the bare call would, or a refusal."""
    dice = random.Random(3)
    flaky = health.dependency("flaky", policy=POLICY)
    script: list[Exception | None] = []

    def body() -> str:
        error = script[-1]
        if error is not None:
            raise error
        return "answer"

    call = form.guard(flaky, body)
    outcomes: set[str] = set()
    for _ in range(200):
        script.append(Down("no answer") if dice.random() < 0.5 else None)
        clock.advance(dice.choice([0.0, 1.0, 7.0]))
        try:
            assert call() == "answer"
            assert script[-1] is None
            outcomes.add("answered")
        except Down as error:
            outcomes.add("failed" if error is script[-1] else "changed")
        except DependencyUnhealthy:
            assert flaky.breaker is not BreakerState.CLOSED
            outcomes.add("refused")
    assert outcomes == {"answered", "failed", "refused"}


def test_threads_share_one_breaker(form: Form, redis: Dependency) -> None:
    """Eight threads that succeed and fail lose no count."""
    working = form.guard(redis, answer)
    counting = redis.status().successes

    def work(index: int) -> None:
        for _ in range(200):
            working()

    with many_switches():
        assert in_threads(work, 8) == [None] * 8
    assert redis.status().successes - counting == 1600
