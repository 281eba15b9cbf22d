"""What the runtime's tests share: one body under every form of guard, and small helpers."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from safehold import Backoff, BreakerPolicy, Dependency, DependencyUnhealthy, HealthState, Safehold

Body = Callable[..., Any]
Decorate = Callable[[Any], Any]

COOLDOWN = 10.0
POLICY = BreakerPolicy(
    failures=3,
    failure_rate=None,
    cooldown=Backoff(first=COOLDOWN, factor=2.0, cap=60.0, jitter=0.0),
    lease=30.0,
)
PATIENCE = 20.0  # seconds that a thread may take to come back before a test calls it hung


class Down(ConnectionError):
    """A dependency that does not answer."""


class Rejected(Exception):
    """An application error: the dependency answered."""


def answer(*_: Any) -> str:
    return "answer"


def down(*_: Any) -> None:
    raise Down("no answer")


def raiser(error: BaseException) -> Body:
    def body(*_: Any) -> None:
        raise error

    return body


def finish(coroutine: Any) -> Any:
    """Run a coroutine that waits for nothing, in the caller's own context and without a loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("the coroutine waited for something")


# --- one body, every form of callable -----------------------------------------------------------------


def _function(decorate: Decorate, body: Body) -> Body:
    @decorate
    def call(*args: Any) -> Any:
        return body(*args)

    return call


def _coroutine_function(decorate: Decorate, body: Body) -> Body:
    @decorate
    async def call(*args: Any) -> Any:
        return body(*args)

    return lambda *args: finish(call(*args))


def _generator(decorate: Decorate, body: Body) -> Body:
    @decorate
    def steps(*args: Any) -> Any:
        yield "begun"
        return body(*args)

    def call(*args: Any) -> Any:
        run = steps(*args)
        assert next(run) == "begun"
        try:
            next(run)
        except StopIteration as stop:
            return stop.value
        raise AssertionError("the generator went on")

    return call


def _async_generator(decorate: Decorate, body: Body) -> Body:
    @decorate
    async def steps(*args: Any) -> Any:
        yield "begun"
        yield body(*args)

    async def drain(*args: Any) -> Any:
        items = [item async for item in steps(*args)]
        assert items[0] == "begun"
        return items[-1]

    return lambda *args: finish(drain(*args))


def _method(decorate: Decorate, body: Body) -> Body:
    class Client:
        @decorate
        def call(self, *args: Any) -> Any:
            return body(*args)

    return Client().call


def _async_method(decorate: Decorate, body: Body) -> Body:
    class Client:
        @decorate
        async def call(self, *args: Any) -> Any:
            return body(*args)

    client = Client()
    return lambda *args: finish(client.call(*args))


def _staticmethod(decorate: Decorate, body: Body) -> Body:
    class Client:
        @decorate
        @staticmethod
        def call(*args: Any) -> Any:
            return body(*args)

    return Client.call


def _classmethod(decorate: Decorate, body: Body) -> Body:
    class Client:
        @decorate
        @classmethod
        def call(cls, *args: Any) -> Any:
            assert cls is Client
            return body(*args)

    return Client.call


def _bound_method(decorate: Decorate, body: Body) -> Body:
    class Client:
        def call(self, *args: Any) -> Any:
            return body(*args)

    return decorate(Client().call)


def _partial(decorate: Decorate, body: Body) -> Body:
    def call(known: str, *args: Any) -> Any:
        assert known == "known"
        return body(*args)

    return decorate(partial(call, "known"))


def _async_partial(decorate: Decorate, body: Body) -> Body:
    async def call(known: str, *args: Any) -> Any:
        assert known == "known"
        return body(*args)

    wrapped = decorate(partial(call, "known"))
    return lambda *args: finish(wrapped(*args))


def _callable_object(decorate: Decorate, body: Body) -> Body:
    class Call:
        def __call__(self, *args: Any) -> Any:
            return body(*args)

    return decorate(Call())


def _async_callable_object(decorate: Decorate, body: Body) -> Body:
    class Call:
        async def __call__(self, *args: Any) -> Any:
            return body(*args)

    wrapped = decorate(Call())
    return lambda *args: finish(wrapped(*args))


DECORATED: dict[str, Callable[[Decorate, Body], Body]] = {
    "function": _function,
    "coroutine_function": _coroutine_function,
    "generator": _generator,
    "async_generator": _async_generator,
    "method": _method,
    "async_method": _async_method,
    "staticmethod": _staticmethod,
    "classmethod": _classmethod,
    "bound_method": _bound_method,
    "partial": _partial,
    "async_partial": _async_partial,
    "callable_object": _callable_object,
    "async_callable_object": _async_callable_object,
}


class Form:
    """One way to write a guarded call or a gated operation. All are called the same way, from sync code."""

    def __init__(self, name: str) -> None:
        self.name = name

    def decorated(self, decorate: Decorate, body: Body) -> Body:
        return DECORATED[self.name](decorate, body)

    def guard(self, dependency: Dependency, body: Body, *, long: bool = False) -> Body:
        """Give `body` as a guarded call of `dependency`."""
        if self.name != "permit":
            return self.decorated(dependency.guard(long=long), body)

        def call(*args: Any) -> Any:
            with dependency.permit(long=long):
                return body(*args)

        return call

    def gate(self, health: Safehold, name: str, body: Body, **options: Any) -> Body:
        """Give `body` as a destructive operation."""
        return self.decorated(health.destructive(name, **options), body)

    def __repr__(self) -> str:
        return self.name


GUARD_FORMS = [Form(name) for name in (*DECORATED, "permit")]
GATE_FORMS = [Form(name) for name in DECORATED]


# --- states -------------------------------------------------------------------------------------------


def succeed(dependency: Dependency) -> None:
    with dependency.permit():
        pass


def fail(dependency: Dependency, times: int = 1) -> None:
    for _ in range(times):
        with contextlib.suppress(Down), dependency.permit():
            raise Down("no answer")


def cancel(dependency: Dependency) -> None:
    with contextlib.suppress(KeyboardInterrupt), dependency.permit():
        raise KeyboardInterrupt


def is_refused(dependency: Dependency) -> bool:
    try:
        with dependency.permit():
            return False
    except DependencyUnhealthy:
        return True


def make_healthy(dependency: Dependency) -> None:
    succeed(dependency)
    assert dependency.state is HealthState.HEALTHY


def make_open(dependency: Dependency) -> None:
    fail(dependency, 3)
    assert dependency.state is HealthState.UNHEALTHY


# --- threads and processes ----------------------------------------------------------------------------


def in_threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """Run `work(i)` in `count` threads that begin together; give what each returned or raised."""
    barrier = threading.Barrier(count)
    results: list[Any] = [None] * count

    def run(index: int) -> None:
        barrier.wait(PATIENCE)
        try:
            results[index] = work(index)
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread hangs"
    return results


def in_thread(work: Callable[[], Any]) -> Any:
    """Run `work` in a thread without our context, and give what it returned."""
    (result,) = in_threads(lambda _: work(), 1)
    if isinstance(result, BaseException):
        raise result
    return result


@contextlib.contextmanager
def many_switches() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def python(script: str, *, timeout: float = 40.0) -> str:
    """Run a script in a new interpreter and give what it printed; it must end well, and in time."""
    arguments = [sys.executable, "-W", "error", "-X", "faulthandler", "-c", textwrap.dedent(script)]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"the interpreter hangs: {error.stdout!r} {error.stderr!r}")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
