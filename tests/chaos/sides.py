"""Sync and asyncio in one test body: the loop turns on a thread of its own while the test waits."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

PATIENCE = 20.0


class Side:
    """`do` calls a function of a client and waits for what it gives, in the scope of the caller."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.loop: asyncio.AbstractEventLoop | None = None
        if name == "asyncio":
            self.loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self.loop.run_forever, name="chaos-loop", daemon=True)
            self._thread.start()

    @property
    def is_async(self) -> bool:
        return self.loop is not None

    def pick(self, sync: Any, asynchronous: Any) -> Any:
        return asynchronous if self.is_async else sync

    def do(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if self.loop is None:
            return function(*args, **options)
        return self.begin(function, *args, **options).result(PATIENCE)

    def begin(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call it without waiting: a future of `concurrent.futures` in both worlds."""
        if self.loop is not None:
            return asyncio.run_coroutine_threadsafe(_called(function, args, options), self.loop)
        return InThread(function, args, options)

    def enter(self, manager: Any) -> Callable[[], Any]:
        """Enter what is a context manager of both kinds; give what leaves it."""
        if self.loop is None:
            manager.__enter__()
            return lambda: manager.__exit__(None, None, None)
        self.do(manager.__aenter__)
        return lambda: self.do(manager.__aexit__, None, None, None)

    def tasks(self) -> list[Any]:
        """What the loop still has to do."""
        if self.loop is None:
            return []

        async def others() -> list[Any]:
            await asyncio.sleep(0)
            return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

        return list(self.do(others))

    def close(self) -> None:
        if self.loop is not None:
            self.do(self.loop.shutdown_default_executor)
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(PATIENCE)
            self.loop.close()

    def __repr__(self) -> str:
        return self.name


async def _called(function: Callable[..., Any], args: Any, options: Any) -> Any:
    answer = function(*args, **options)
    return await answer if inspect.isawaitable(answer) else answer


class InThread:
    """A call on a thread."""

    def __init__(self, function: Callable[..., Any], args: Any, options: Any) -> None:
        self._answer: Any = None
        self._error: BaseException | None = None
        run = copy_context().run
        self._thread = threading.Thread(target=run, args=(self._run, function, args, options), daemon=True)
        self._thread.start()

    def _run(self, function: Callable[..., Any], args: Any, options: Any) -> None:
        try:
            self._answer = function(*args, **options)
        except BaseException as error:
            self._error = error

    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self, timeout: float = PATIENCE) -> Any:
        self._thread.join(timeout)
        assert self.done(), "still waiting"
        if self._error is not None:
            raise self._error
        return self._answer
