"""Asking users' functions, sync or async, from code that is written once.

What has to be asked is a generator: it yields a function, and is sent what the function gave or thrown what
it raised. `ask` drives it from sync code and `aask` from a task; nothing else differs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, TypeVar

from .._core.configuration import ConfigurationError

R = TypeVar("R")

Questions = Generator[Callable[[], Any], Any, R]


def ask(questions: Questions[R]) -> R:
    """Ask from sync code. A function that wants to be awaited is an error there."""
    with closing(questions):
        step: Callable[[Any], Callable[[], Any]] = questions.send
        given: Any = None
        while True:
            try:
                function = step(given)
            except StopIteration as stop:
                result: R = stop.value
                return result
            try:
                step, given = questions.send, _at_once(function())
            except Exception as error:  # noqa: BLE001 - it is for the questions to judge
                step, given = questions.throw, error


async def aask(questions: Questions[R]) -> R:
    """Ask from a task."""
    with closing(questions):  # at once when the task is cancelled, and not when the error is forgotten
        step: Callable[[Any], Callable[[], Any]] = questions.send
        given: Any = None
        while True:
            try:
                function = step(given)
            except StopIteration as stop:
                result: R = stop.value
                return result
            try:
                answer = function()
                step, given = questions.send, (await answer) if inspect.isawaitable(answer) else answer
            except Exception as error:  # noqa: BLE001 - it is for the questions to judge
                step, given = questions.throw, error


def _at_once(answer: Any) -> Any:
    if inspect.isawaitable(answer):
        close = getattr(answer, "close", None)
        if close is not None:
            close()
        msg = "a coroutine function can only be asked by an operation that is a coroutine function, too"
        raise ConfigurationError(msg)
    return answer
