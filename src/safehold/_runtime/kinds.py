"""What kinds of callables there are, and how to stand in for one without anybody noticing."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager
from functools import partial, update_wrapper
from typing import Any, Protocol, TypeVar

W = TypeVar("W")


class Kinds:
    """What calling `function` gives: a generator, a coroutine, an async generator, or simply a value.

    Looks through partials and at the `__call__` of objects.
    """

    __slots__ = ("is_async", "is_async_generator", "is_generator")

    def __init__(self, function: Any) -> None:
        function = without_partials(function)
        if not inspect.isroutine(function):
            function = type(function).__call__
        code = getattr(function, "__code__", None)
        flags = 0 if code is None else code.co_flags
        self.is_generator = bool(flags & inspect.CO_GENERATOR)
        self.is_async_generator = bool(flags & inspect.CO_ASYNC_GENERATOR)
        self.is_async = bool(flags & inspect.CO_COROUTINE) or inspect.iscoroutinefunction(function)


def without_partials(function: Any) -> Any:
    """Give what the partials around it were made of."""
    while isinstance(function, partial):
        function = function.func
    return function


def named(wrapper: W, function: Any) -> W:
    """Give the wrapper the name, docstring, module, annotations and `__wrapped__` of what it stands for."""
    update_wrapper(wrapper, function)  # type: ignore[arg-type]  # every wrapper here is a function
    if not hasattr(function, "__name__"):  # a partial, or an object with `__call__`
        inner = without_partials(function)
        known = inner if hasattr(inner, "__name__") else type(inner)
        wrapper.__name__, wrapper.__qualname__ = known.__name__, known.__qualname__  # type: ignore[attr-defined]  # functions, as above
    return wrapper


class Entered(Protocol):
    """What stands around a generator's whole life, and around each of its steps."""

    def sharing(self) -> AbstractContextManager[object]: ...

    def abandon(self) -> None: ...


Entering = Callable[[tuple[Any, ...], dict[str, Any]], AbstractContextManager[Entered]]


def around_generator(function: Any, entering: Entering) -> Callable[..., Any]:
    """Stand in for a generator function; what is sent, thrown and closed reaches the generator inside.

    A generator's body runs in the context of whoever asks for the next item, so what belongs to the call
    is put into the context for each step, by `sharing`, and not for the generator's life.
    """

    def guarded(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        inner = function(*args, **kwargs)  # runs nothing yet; arguments that do not fit end here
        with entering(args, kwargs) as entered:
            step: Any = inner.send
            hand: list[Any] = [None]  # what is passed on is not kept while the generator waits
            while True:
                with entered.sharing():
                    try:
                        hand.append(step(hand.pop()))
                    except StopIteration as stop:
                        return stop.value
                try:
                    hand.append((yield hand.pop()))
                    step = inner.send
                except GeneratorExit:
                    closed = inner.close()
                    if closed is None:
                        raise
                    entered.abandon()  # what it gives when it is closed, since Python 3.13
                    return closed
                except BaseException as error:  # noqa: BLE001 - it is the inner generator's to handle
                    hand.append(error)
                    step = inner.throw

    return guarded


def around_async_generator(function: Any, entering: Entering) -> Callable[..., Any]:
    """Stand in for an async generator function; the same as `around_generator`, awaited."""

    async def guarded(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        inner = function(*args, **kwargs)  # runs nothing yet; arguments that do not fit end here
        around = entering(args, kwargs)
        if (prepare := getattr(around, "prepare", None)) is not None:
            await prepare()
        with around as entered:
            step: Any = inner.asend
            hand: list[Any] = [None]  # what is passed on is not kept while the generator waits
            while True:
                with entered.sharing():
                    try:
                        hand.append(await step(hand.pop()))
                    except StopAsyncIteration:
                        return
                try:
                    hand.append((yield hand.pop()))
                    step = inner.asend
                except GeneratorExit:
                    await inner.aclose()
                    raise
                except BaseException as error:  # noqa: BLE001 - it is the inner generator's to handle
                    hand.append(error)
                    step = inner.athrow

    return guarded
