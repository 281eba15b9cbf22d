"""Guard a program that is run and waited for: `run(health["git"], ["git", "fetch"], timeout=30)`.

`run` and `arun` take what `subprocess.run` takes and give an ordinary `CompletedProcess`. The child leads a
process group of its own. However the wait for it ends (time-out, Ctrl-C, cancellation), the whole group is
killed and the child reaped, before the caller goes on: what it was asked to do shall not go on behind him.

What an exit code means is declared: `answers={0: "success", 1: "success"}`. The rest of what can happen
stands in `TABLE`.
"""

from __future__ import annotations

import asyncio
import errno
import io
import locale
import os
import signal
import subprocess
import threading
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Final, Self, cast

from .._core.breaker import Outcome
from .._core.configuration import ConfigurationError, check_number
from .._runtime.classify import Judgement
from .._runtime.dependency import Dependency
from .._runtime.permit import Permit
from ..errors import DependencyUnhealthy
from ._outcome import check_dependency, row_of, tell_outcome
from ._table import (
    NO_PERMISSION,
    NOTHING_SAID,
    OWN_LIMITS,
    Row,
    Sent,
    Table,
    down,
    has_errno,
    misconfigured,
    unanswered,
)

__all__ = ["TABLE", "ProcessUnhealthy", "arun", "run"]

Answers = Mapping[int, str]

_CANNOT_RUN: Final = {errno.ENOEXEC, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_NO_PROGRAM: Final = {errno.ENOENT, errno.ENOTDIR}


_DECLARED: Final = "_safehold_declared"


def _code(error: BaseException) -> int | None:
    return error.returncode if isinstance(error, subprocess.CalledProcessError) else None


TABLE: Final = Table(
    (
        Row(
            "this process or machine can start no more (`EMFILE`, `EAGAIN`, `ENOMEM`)",
            lambda error: has_errno(error, OWN_LIMITS | {errno.EAGAIN}),
            unanswered("overloaded", "no more processes can be started here"),
            Sent.NO,
        ),
        Row(
            "there is no such program, or no such `cwd` (`FileNotFoundError`)",
            lambda error: has_errno(error, _NO_PROGRAM),
            misconfigured("no such program"),
            Sent.NO,
        ),
        Row(
            "no permission to run it (`PermissionError`)",
            lambda error: has_errno(error, NO_PERMISSION),
            misconfigured("no permission to run it"),
            Sent.NO,
        ),
        Row(
            "it is no program that runs here (`ENOEXEC`)",
            lambda error: has_errno(error, _CANNOT_RUN),
            misconfigured("no program that runs here"),
            Sent.NO,
        ),
        Row(
            "more arguments than there may be (`E2BIG`)",
            lambda error: has_errno(error, {errno.E2BIG}),
            NOTHING_SAID,
            Sent.NO,
        ),
        Row(
            "it did not end in time (`TimeoutExpired`), and was killed",
            lambda error: isinstance(error, subprocess.TimeoutExpired),
            down("timeout", "did not end in time"),
        ),
        Row(
            "an exit code that `answers` declares to be a success or to say nothing",
            lambda error: _DECLARED in vars(error),
            NOTHING_SAID,
            Sent.YES,
        ),
        Row(
            "it was killed by a signal, unless `answers` names that code",
            lambda error: (_code(error) or 0) < 0,
            down("killed", "killed by a signal"),
        ),
        Row(
            "any exit code but 0, unless `answers` names it",
            lambda error: _code(error) is not None,
            down("exit_code", "ended with an exit code that stands for a failure"),
            Sent.YES,
        ),
        Row(
            "its output is not the text that was asked for",
            lambda error: isinstance(error, UnicodeError),
            down("broken_answer", "its output cannot be decoded"),
            Sent.YES,
        ),
        Row(
            "the caller's mistake: arguments that cannot be",
            lambda error: isinstance(error, TypeError | ValueError),
            NOTHING_SAID,
            Sent.NO,
        ),
        Row("anything else that keeps it from being run", lambda _: True, down("not_run", "was not run")),
    )
)


class ProcessUnhealthy(DependencyUnhealthy, subprocess.SubprocessError):
    """A program that was not run: a `DependencyUnhealthy`, and a `subprocess.SubprocessError`."""


def run(
    dependency: Dependency,
    args: Sequence[Any],
    *,
    timeout: float | None,
    answers: Answers | None = None,
    long: bool = False,
    check: bool = False,
    input: Any = None,  # noqa: A002 - the name that `subprocess.run` gives it
    capture_output: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a program as `subprocess.run` does, guarded.

    `timeout` (seconds, `None` for none) is for the whole of it. `answers` says what an exit code means:
    `"success"` (it answered), `"failure"`, or `"ignored"` (it says nothing about the dependency); 0 is a
    success and all others are failures, unless it says otherwise. A code below 0 is a signal's. `long=True`
    is for programs that wait by nature: the gate does not wait for them, and their time-out is no failure.
    `options` are those of `Popen`, without `shell`.

    A refused call raises `ProcessUnhealthy`. All else is as with `subprocess.run`: `check=True` raises
    `CalledProcessError` for every code but 0, a time-out raises `TimeoutExpired`. Such errors carry
    `outcome`. Raises `ConfigurationError` for bad arguments.
    """
    call = _Call(dependency, args, timeout, answers, long=long)
    options = call.options(options, input, capture_output=capture_output)
    with call:
        process: subprocess.Popen[Any] | None = None
        try:
            with _held_back():
                process = subprocess.Popen(args, **options)  # noqa: S603 - without a shell
            call.started = True
            told = process.communicate(input, timeout=timeout)
        except BaseException:
            if process is not None:
                _end(process, call)
            raise
        call.ended(process.returncode, *told)
    return call.result(check=check)


async def arun(
    dependency: Dependency,
    args: Sequence[Any],
    *,
    timeout: float | None,  # noqa: ASYNC109 - the twin of run
    answers: Answers | None = None,
    long: bool = False,
    check: bool = False,
    input: Any = None,  # noqa: A002 - the name that `subprocess.run` gives it
    capture_output: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Do what `run` does while the event loop goes on. Cancelling it kills the program, too."""
    call = _Call(dependency, args, timeout, answers, long=long)
    options = call.options(options, input, capture_output=capture_output)
    text = _Text(options)
    limit = asyncio.timeout(timeout)
    with call:
        starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*args, **options))
        try:
            async with limit:
                process = await asyncio.shield(starting)
                call.started = True
                told = await process.communicate(text.encoded(input))
        except BaseException as error:
            await _uncancelled(asyncio.ensure_future(_aend(starting, call)))
            if isinstance(error, TimeoutError) and limit.expired():
                raise subprocess.TimeoutExpired(args, cast("float", timeout)) from None
            raise
        call.ended(cast("int", process.returncode), *map(text.decoded, told))
    return call.result(check=check)


class _Call:
    """One guarded run of a program, as a context manager."""

    def __init__(
        self,
        dependency: Dependency,
        args: Sequence[Any],
        timeout: float | None,
        answers: Answers | None,
        *,
        long: bool,
    ) -> None:
        check_dependency(dependency)
        if not isinstance(args, Sequence) or isinstance(args, str | bytes | bytearray) or not args:
            msg = f"args must be a list of the program and its arguments, got {args!r}"
            raise ConfigurationError(msg)
        if timeout is not None:
            check_number("timeout", timeout, above=0)
        if not isinstance(long, bool):
            msg = f"long must be True or False, got {long!r}"
            raise ConfigurationError(msg)
        self.args = args
        self.started = False
        self.own_group = True
        self._answers = {0: Outcome.SUCCESS, **_checked(answers)}
        self._long = long
        self._dependency = dependency
        self._error: subprocess.CalledProcessError | None = None
        self._completed: Any = None
        if dependency._classify is None:
            dependency.provide(classify=TABLE.classify)
        self._permit = Permit(dependency, error=ProcessUnhealthy, classify=self._classify, long=long)

    def options(self, options: dict[str, Any], given: Any, *, capture_output: bool) -> dict[str, Any]:
        """Give the options for `Popen`; raise `ConfigurationError` for those that exclude each other."""
        if options.get("shell"):
            msg = "shell is not for guarded programs: give args as a list"
            raise ConfigurationError(msg)
        pipes = ({"stdin"} if given is not None else set()) | (
            {"stdout", "stderr"} if capture_output else set()
        )
        if taken := sorted(pipe for pipe in pipes if options.get(pipe) is not None):
            msg = f"{', '.join(taken)} cannot be set beside input and capture_output, which set them"
            raise ConfigurationError(msg)
        made = {**options, **dict.fromkeys(pipes, subprocess.PIPE)}
        if not made.get("start_new_session") and made.get("process_group") is None:
            made["process_group"] = 0
        self.own_group = made.get("process_group") in (None, 0)
        return made

    def __enter__(self) -> Self:
        self._permit.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError | subprocess.SubprocessError | UnicodeError):
            sent = row_of(TABLE, error).sent if self.started else Sent.NO
            tell_outcome(error, sent, "the program")
        self._permit._leave(error)

    def ended(self, code: int, stdout: Any, stderr: Any) -> None:
        """Take in that it ran to its end."""
        self._completed = subprocess.CompletedProcess(self.args, code, stdout, stderr)
        meaning = self._answers.get(code, Outcome.FAILURE)
        if code != 0:
            self._error = subprocess.CalledProcessError(code, cast("Any", self.args), stdout, stderr)
            if meaning is not Outcome.FAILURE:
                vars(self._error)[_DECLARED] = True
            tell_outcome(self._error, row_of(TABLE, self._error).sent, "the program")
        if meaning is Outcome.SUCCESS:
            self._permit.succeed()
        else:
            self._permit.fail(self._error or subprocess.CalledProcessError(code, cast("Any", self.args)))

    def result(self, *, check: bool) -> subprocess.CompletedProcess[Any]:
        """Give what came of it."""
        error, self._error = self._error, None  # it has this frame in its traceback
        if check and error is not None:
            raise error
        return cast("subprocess.CompletedProcess[Any]", self._completed)

    def _classify(self, error: Exception) -> Outcome | bool | Judgement:
        code = _code(error)
        if code is not None:
            return self._of_code(code)
        if self._long and isinstance(error, subprocess.TimeoutExpired):
            return NOTHING_SAID
        declared = self._dependency.declared_classifier
        return declared(error) if declared is not None else row_of(TABLE, error).judgement

    def _of_code(self, code: int) -> Judgement:
        if self._answers.get(code) is Outcome.IGNORED:
            return NOTHING_SAID
        if code >= 0:
            return down("exit_code", f"ended with exit code {code}")
        with suppress(ValueError):  # a signal that has no name
            return down("killed", f"killed by {signal.Signals(-code).name}")
        return down("killed", f"killed by signal {-code}")


def _checked(answers: object) -> dict[int, Outcome]:
    if answers is None:
        return {}
    if not isinstance(answers, Mapping) or not all(
        isinstance(code, int) and meaning in tuple(Outcome) for code, meaning in answers.items()
    ):
        msg = f'answers must map exit codes to "success", "failure" or "ignored", got {answers!r}'
        raise ConfigurationError(msg)
    return {code: Outcome(meaning) for code, meaning in answers.items()}


# --- the end of a child ---------------------------------------------------------------------------------
# It is killed before it is reaped: until then its number, and so that of its group, is nobody else's.


@contextmanager
def _held_back() -> Generator[None]:
    """Hold Ctrl-C back while a child is started: there may be one already, and nothing yet to end it with."""
    known = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(known):
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *what: came.append(what))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, known)
        if came:
            known(*came[-1])


def _end(process: subprocess.Popen[Any], call: _Call) -> None:
    """Kill what runs still, close the pipes, and reap the child."""
    killed = process.returncode is not None or _kill(process.pid, call)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):  # what was to be written is not
                pipe.close()
    if killed:
        process.wait()


async def _aend(starting: asyncio.Future[asyncio.subprocess.Process], call: _Call) -> None:
    """Do the same.

    The loop may have reaped the child, while others of its group go on. Their group's number can be
    nobody else's as long as there are any, and no process has it.
    """
    try:
        process = await starting
    except Exception:  # noqa: BLE001 - whoever waits for it has met it
        return
    killed = _exists(process) or _kill(process.pid, call)
    cast("Any", process)._transport.close()  # nothing public closes its pipes
    if killed:
        await process.wait()


async def _uncancelled(ending: asyncio.Future[None]) -> None:
    """Wait for it, whatever comes; a cancellation meanwhile is passed on afterwards."""
    cancelled: asyncio.CancelledError | None = None
    while not ending.done():
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def _exists(process: asyncio.subprocess.Process) -> bool:
    """Whether the number of a child that was reaped belongs to another process now."""
    if process.returncode is None:
        return False
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _kill(pid: int, call: _Call) -> bool:
    """Kill a child with its group; say whether it may be waited for."""
    try:
        (os.killpg if call.own_group else os.kill)(pid, signal.SIGKILL)
    except PermissionError:  # it runs as somebody else
        return False
    except ProcessLookupError:
        return True
    return True


class _Text:
    """Text for asyncio's children, who know bytes only, as `subprocess` has it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._encoding = options.pop("encoding", None)
        self._errors = options.pop("errors", None)
        wanted = [options.pop(name, None) for name in ("text", "universal_newlines")]
        self._wanted = any((self._encoding, self._errors, *wanted))

    def encoded(self, given: Any) -> Any:
        if not self._wanted or given is None:
            return given
        return given.encode(self._encoding or locale.getencoding(), self._errors or "strict")

    def decoded(self, told: bytes | None) -> Any:
        if not self._wanted or told is None:
            return told
        return io.TextIOWrapper(io.BytesIO(told), self._encoding, self._errors).read()
