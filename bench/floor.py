"""What any pure-Python breaker has to pay: the least that reads a state and notices a failure."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


class Refused(Exception):
    """A refusal with the three facts that a caller needs."""

    def __init__(self, dependency: str, state: str, retry_after: float) -> None:
        self.dependency = dependency
        self.state = state
        self.retry_after = retry_after


class Floor:
    """A state and a count, and wrappers around them."""

    __slots__ = ("failures", "is_open")

    def __init__(self) -> None:
        self.failures = 0
        self.is_open = False

    def guard(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.is_open:
                raise Refused("d", "open", 1.0)
            try:
                return function(*args, **kwargs)
            except Exception:
                self.failures += 1
                raise

        return guarded

    def guard_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.is_open:
                raise Refused("d", "open", 1.0)
            try:
                return await function(*args, **kwargs)
            except Exception:
                self.failures += 1
                raise

        return guarded

    def guard_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.is_open:
                raise Refused("d", "open", 1.0)
            try:
                return (yield from function(*args, **kwargs))
            except Exception:
                self.failures += 1
                raise

        return guarded

    def __enter__(self) -> None:
        if self.is_open:
            raise Refused("d", "open", 1.0)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self.failures += 1
