"""What is going on around the present line of code: a failure being handled, a cancellation, an end.

A guard that saw a call go unanswered leaves a mark on the exception object. The mark is how the gate
knows, in an `except` block three frames up, that the exception being handled there (or one in its chain,
or in its group) came out of a guarded call; and how a breaker knows that an exception that passes
several guards of one dependency is one failure.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, without its enums
import asyncio
import atexit
import concurrent.futures
import inspect
import os
import signal
import sys
import threading
import weakref
from asyncio import _get_running_loop as _running_loop
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from types import CodeType, FrameType, FunctionType
from typing import Any, Final, NamedTuple

from ..errors import OperationBlocked, Refused
from .describe import cause_of

_MARK = "_safehold"
_future: Any = concurrent.futures.Future
_HANDLE_RUN: Final = asyncio.Handle._run.__code__
_CALLBACKS: Final = {
    weakref.finalize.__call__.__code__: "in a finaliser",
    _future._invoke_callbacks.__code__: "in a future's done-callback",
    _future.add_done_callback.__code__: "in a future's done-callback",  # of one that is done already
}
_NAMES: Final = frozenset({"__del__", _HANDLE_RUN.co_name, *(code.co_name for code in _CALLBACKS)})
_main = threading.main_thread()
_main_ident = _main.ident
_DEEPEST = 1000


class Seen(NamedTuple):
    """One guard's mark: the era that began with this miss, and the dependency's name."""

    era: int
    dependency: str


class _Marks(dict[int, Seen]):
    """The marks on one exception, by dependency. They mean nothing elsewhere: pickled, they are gone.

    `attempts` names the dependencies whose breakers have counted it as a hidden attempt.
    """

    def __init__(self) -> None:
        self.attempts: set[int] = set()

    def __reduce__(self) -> tuple[type[dict[int, Seen]], tuple[()]]:
        return (dict, ())


def mark(error: BaseException, key: int, era: int, dependency: str) -> None:
    """Leave a mark. An exception that takes none is simply not recognised again."""
    _marks(error)[key] = Seen(era, dependency)


def mark_attempt(error: BaseException, key: int) -> bool:
    """Note that it was counted as a hidden attempt; say whether that is news."""
    attempts = _marks(error).attempts
    known = key in attempts
    attempts.add(key)
    return not known


def was_attempt(error: BaseException, key: int) -> bool:
    """Whether it was counted as a hidden attempt, of the call that ends with it now."""
    for link in (error, error.__cause__):  # a client may have put an error of its own around it
        marks = None if link is None else link.__dict__.get(_MARK)
        if isinstance(marks, _Marks) and key in marks.attempts:
            marks.attempts.discard(key)
            return True
    return False


def _marks(error: BaseException) -> _Marks:
    marks = error.__dict__.get(_MARK)
    if not isinstance(marks, _Marks):
        marks = error.__dict__[_MARK] = _Marks()
    return marks


def may_be_seen(error: BaseException) -> bool:
    """Whether a guard may have met this object before, or one inside it."""
    return _MARK in error.__dict__ or isinstance(error, BaseExceptionGroup)


def seen_since(error: BaseException, key: int, era: int) -> bool:
    """Whether a guard of this dependency has counted this very object since `era` began."""
    marks = error.__dict__.get(_MARK)
    return isinstance(marks, _Marks) and key in marks and marks[key].era > era


class Handled(NamedTuple):
    """What is being handled: failures that a guard saw, by dependency, and an interruption."""

    failures: Mapping[str, str]
    interrupted: str | None


_NOTHING = Handled(failures={}, interrupted=None)


def handled() -> Handled:
    """Look at the exception being handled in this frame or in one that called it, with all that led to it."""
    error = sys.exception()
    if error is None:
        return _NOTHING
    failures: dict[str, str] = {}
    interrupted = None
    for link in _links(error):
        why = cause_of(link)
        if isinstance(link, Refused):
            if not isinstance(link, OperationBlocked):
                failures.setdefault(link.dependency, "refused")
        elif not isinstance(link, Exception | BaseExceptionGroup):
            interrupted = interrupted or why.code
        marks = link.__dict__.get(_MARK)
        if isinstance(marks, _Marks):
            for seen in marks.values():
                failures.setdefault(seen.dependency, why.text)
    if interrupted is None and sum(1 for _ in _links(error)) >= _DEEPEST:
        interrupted = "a chain of exceptions too long to read"
    return Handled(failures=failures, interrupted=interrupted)


def _links(error: BaseException) -> Iterator[BaseException]:
    """Give an exception, its causes and contexts, and the members of groups, each once."""
    waiting: list[BaseException] = [error]
    met: set[int] = set()
    while waiting and len(met) < _DEEPEST:
        link = waiting.pop()
        if id(link) in met:
            continue
        met.add(id(link))
        yield link
        waiting.extend(x for x in (link.__cause__, link.__context__) if x is not None)
        if isinstance(link, BaseExceptionGroup):
            waiting.extend(link.exceptions)


def _forked() -> None:
    """Whoever forked is the main thread of the child."""
    global _main, _main_ident  # noqa: PLW0603 - one process
    _main = threading.main_thread()
    _main_ident = _main.ident


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

_exiting = False


@atexit.register
def _exit() -> None:
    global _exiting  # noqa: PLW0603 - one process
    _exiting = True


_SIGNALS = tuple(
    int(getattr(signal, name))
    for name in (
        "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGCONT",
    )
    if hasattr(signal, name)
)  # fmt: skip
"""Those that programs handle; to look for the others as well would cost more than the rest of the gate."""


def finalising(skip: int = 0) -> str | None:
    """Say in which finaliser, signal handler or callback this runs, or that the interpreter ends.

    `skip` callers are known to be neither, and are not looked at.

    All of these run in between other code, whenever it pleases the interpreter or the loop, and what they
    run after may be a failure. The interpreter calls its exit handlers on the main thread after that has
    ended; other threads may outlive it for as long as they work, and are not at their end. A bare
    `weakref.ref` callback leaves no trace on the stack; `weakref.finalize` does.
    """
    if _exiting or sys.is_finalizing():
        return "at interpreter exit"
    in_main = threading.get_ident() == _main_ident
    handlers, names = _NO_HANDLERS
    if in_main:
        if [*map(_signal.getsignal, _SIGNALS)] != _handlers[0]:
            _look_at_handlers()
        handlers, names = _handlers[1]
    code: CodeType | None = None
    found = None
    frame: FrameType | None = sys._getframe(1 + skip)
    while frame is not None:
        code = frame.f_code
        if code.co_name in names:  # most have no such name, and this is asked of each
            if code.co_name == "__del__":
                return "in a finaliser"
            if code is _HANDLE_RUN:
                return _in_between(frame) or found
            if code in _CALLBACKS:
                return _CALLBACKS[code]
            if code in handlers and any(_runs(frame, handler) for handler in handlers[code]):
                found = "in a signal handler"
        frame = frame.f_back
    if in_main and code is not None and code.co_name != "<module>" and not _main.is_alive():
        return "at interpreter exit"  # what a program runs begins in a module, what the exit runs does not
    return found


Handlers = Mapping[CodeType, Sequence[FunctionType]]


def _look_at_handlers() -> None:
    """Note the code that handles signals in this process, on its main thread, and all names to look at."""
    global _handlers  # noqa: PLW0603 - one process, one table
    now = [*map(_signal.getsignal, _SIGNALS)]
    codes: dict[CodeType, list[FunctionType]] = {}
    for function in map(_function_of, now):
        if function is not None:
            codes.setdefault(function.__code__, []).append(function)
    _handlers = now, (codes, _NAMES | {code.co_name for code in codes})


_NO_HANDLERS: Final[tuple[Handlers, Collection[str]]] = ({}, _NAMES)
_handlers: tuple[list[Any], tuple[Handlers, Collection[str]]] = [], _NO_HANDLERS


def _function_of(handler: Any) -> FunctionType | None:
    """Give the Python function that a handler is, or is made of."""
    while isinstance(handler, partial):
        handler = handler.func
    called = inspect.getattr_static(type(handler), "__call__", None)
    for known in (handler, getattr(handler, "__func__", None), called):
        if isinstance(known, FunctionType):
            return known
    return None


def _runs(frame: FrameType, function: FunctionType) -> bool:
    """Whether a frame runs this function, and not another one that a decorator has made of the same code."""
    names, cells = function.__code__.co_freevars, function.__closure__ or ()
    if not names:
        return True
    local = frame.f_locals
    try:
        return all(local[name] is cell.cell_contents for name, cell in zip(names, cells, strict=True))
    except (KeyError, ValueError):  # not bound yet, or no more
        return True


def _in_between(frame: FrameType) -> str | None:
    """Say whether the loop runs a signal's handler, or what was added to a future that is done.

    It runs both without a task, and what it was merely asked to call as well.
    """
    loop = _running_loop()
    if loop is None or asyncio.current_task() is not None:
        return None
    handle = frame.f_locals.get("self")
    if handle in getattr(loop, "_signal_handlers", {}).values():
        return "in a signal handler"
    handed: tuple[Any, ...] = getattr(handle, "_args", None) or ()
    is_callback = len(handed) == 1 and isinstance(handed[0], asyncio.Future) and handed[0].done()
    return "in a future's done-callback" if is_callback else None
