"""A guarded program is judged by how it ended, and whatever ends the wait for it leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from safehold import (
    BreakerPolicy,
    BreakerState,
    ConfigurationError,
    Dependency,
    DependencyUnhealthy,
    HealthState,
    Outcome,
    Safehold,
)
from safehold.callsites.process import TABLE, ProcessUnhealthy, arun, run
from safehold.testing.clock import ManualClock

from .support import COOLDOWN, PATIENCE, POLICY, Side, descriptors, raises

SOON = 0.5
NEVER = BreakerPolicy(failures=None, failure_rate=None)


@pytest.fixture
def dependency(health: Safehold) -> Dependency:
    return health.dependency("tool", critical=True, policy=POLICY)


@pytest.fixture
def go(side: Side, dependency: Dependency) -> Callable[..., Any]:
    """Run a program, either way."""

    def go(*args: Any, timeout: float | None = PATIENCE, **options: Any) -> Any:
        return side.do(side.pick(run, arun), dependency, args, timeout=timeout, **options)

    return go


@pytest.fixture
def life() -> Iterator[Life]:
    life = Life()
    yield life
    life.close()


class Life:
    """A pipe that whoever inherits it holds open: it ends with the last of them."""

    def __init__(self) -> None:
        self._end, self.held = os.pipe()
        self._given = False

    @property
    def inherited(self) -> dict[str, Any]:
        return {"pass_fds": (self.held,)}

    def close(self) -> None:
        os.close(self._end)
        if not self._given:
            os.close(self.held)

    def is_over(self) -> bool:
        os.close(self.held)
        self._given = True
        ready, _, _ = select.select([self._end], [], [], PATIENCE)
        return bool(ready) and os.read(self._end, 1) == b""


class Ready:
    """A named pipe that a program writes to when it is ready."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.path = os.path.join(self._directory.name, "ready")
        os.mkfifo(self.path)

    def wait(self) -> str:
        with open(self.path) as pipe:
            return pipe.read()

    def close(self) -> None:
        self._directory.cleanup()


def sh(script: str) -> tuple[str, ...]:
    return ("/bin/sh", "-c", script)


def is_reaped(pid: int) -> bool:
    """Whether it is nobody's child of ours any more, not even a dead one."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def counts(dependency: Dependency) -> tuple[int, int, bool]:
    report = dependency.status()
    return report.successes, report.failures, report.unresolved_miss


# --- what it gives ------------------------------------------------------------------------------------


def test_result_is_what_subprocess_gives(go: Callable[..., Any], dependency: Dependency) -> None:
    """An ordinary `CompletedProcess`, with the program, its exit code and what it wrote."""
    args = sh("cat; echo no >&2; exit 0")
    options: dict[str, Any] = {"input": b"yes\n", "capture_output": True}
    done, plain = go(*args, **options), subprocess.run(args, check=False, **options)
    assert type(done) is subprocess.CompletedProcess
    assert (tuple(done.args), done.returncode) == (args, 0)
    assert (done.stdout, done.stderr) == (plain.stdout, plain.stderr) == (b"yes\n", b"no\n")
    assert counts(dependency) == (1, 0, False)
    assert dependency.state is HealthState.HEALTHY


@pytest.mark.parametrize(
    "options",
    [
        {"text": True},
        {"universal_newlines": True},
        {"encoding": "latin-1"},
        {"encoding": "ascii", "errors": "replace"},
    ],
    ids=str,
)
def test_text_is_what_subprocess_makes_of_it(go: Callable[..., Any], options: dict[str, Any]) -> None:
    """Encodings, their errors and line ends are those of `subprocess.run`, on both sides."""
    args = sh(r"cat; printf 'caf\303\251\r\n'")
    wanted = subprocess.run(args, input="in\n", capture_output=True, check=False, **options).stdout
    assert go(*args, input="in\n", capture_output=True, **options).stdout == wanted
    assert isinstance(wanted, str)


def test_options_of_popen_are_passed_on(go: Callable[..., Any], tmp_path: Path) -> None:
    """Directory, environment and redirections work as usual."""
    options = {"cwd": tmp_path, "env": {"A": "1"}, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    done = go(*sh("pwd; echo $A >&2"), **options)
    assert done.stdout.decode().split() == [str(tmp_path), "1"]
    assert done.stderr is None


def test_undecodable_output_is_a_broken_answer(go: Callable[..., Any], dependency: Dependency) -> None:
    """Bytes that are no text, where text was asked for, are the program's failure."""
    error: Any = raises(
        UnicodeDecodeError, lambda: go(*sh(r"printf '\377'"), capture_output=True, encoding="utf-8")
    )
    assert error.outcome == "executed"
    assert counts(dependency) == (0, 1, True)


# --- exit codes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "answers", "expected"),
    [
        (0, None, (1, 0, False)),
        (1, None, (0, 1, True)),
        (1, {1: "success"}, (1, 0, False)),
        (1, {1: "ignored"}, (0, 0, False)),
        (1, {2: "success"}, (0, 1, True)),
        (0, {1: "success"}, (1, 0, False)),
        (0, {0: "failure"}, (0, 1, True)),
        (0, {0: "ignored"}, (0, 0, False)),
        (3, {3: Outcome.SUCCESS}, (1, 0, False)),
        (255, {}, (0, 1, True)),
    ],
)
def test_exit_codes_mean_what_is_declared(
    go: Callable[..., Any], dependency: Dependency, code: int, answers: Any, expected: tuple[int, int, bool]
) -> None:
    """0 is a success and the rest are failures, unless `answers` says otherwise."""
    assert go(*sh(f"exit {code}"), answers=answers).returncode == code
    assert counts(dependency) == expected


@pytest.mark.parametrize(
    ("script", "cause"),
    [
        ("exit 7", "ended with exit code 7"),
        ("kill -KILL $$", "killed by SIGKILL"),
        ("kill -40 $$", "killed by signal 40"),
    ],
)
def test_cause_says_how_it_ended(
    go: Callable[..., Any], dependency: Dependency, script: str, cause: str
) -> None:
    """Whoever reads the status at 3 a.m. sees the exit code, or the signal."""
    go(*sh(script))
    assert counts(dependency) == (0, 1, True)
    assert dependency.status().cause == cause


def test_signal_can_be_declared_as_well(go: Callable[..., Any], dependency: Dependency) -> None:
    """Codes below 0 are signals, as in `subprocess`."""
    go(*sh("kill -TERM $$"), answers={-signal.SIGTERM: "ignored"})
    assert counts(dependency) == (0, 0, False)


def test_check_raises_what_subprocess_raises(go: Callable[..., Any], dependency: Dependency) -> None:
    """`check=True` raises `CalledProcessError` with all that it knows; it was executed."""
    args = sh("echo out; exit 3")
    error: Any = raises(subprocess.CalledProcessError, lambda: go(*args, check=True, capture_output=True))
    assert (error.returncode, error.stdout, error.cmd, error.outcome) == (3, b"out\n", args, "executed")
    assert not hasattr(error, "__notes__")
    assert counts(dependency) == (0, 1, True)
    assert go(*sh("exit 0"), check=True).returncode == 0


@pytest.mark.parametrize(("answers", "failures"), [(None, 1), ({3: "success"}, 0), ({3: "ignored"}, 0)])
def test_guard_around_it_judges_an_exit_code_alike(
    side: Side, go: Callable[..., Any], dependency: Dependency, answers: Any, failures: int
) -> None:
    """What `check` raises is counted once by two guards, and not at all where it was declared an answer."""

    @dependency.guard
    def outer() -> None:
        go(*sh("exit 3"), answers=answers, check=True)

    raises(subprocess.CalledProcessError, outer)
    assert dependency.status().failures == failures


# --- what keeps it from running -------------------------------------------------------------------------


def plain_file(directory: Path, mode: int, text: str = "no program\n") -> str:
    path = directory / "tool"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize(
    ("make", "kind", "cause"),
    [
        (lambda d: str(d / "missing"), FileNotFoundError, "no such program"),
        (lambda d: "no-such-program-anywhere", FileNotFoundError, "no such program"),
        (lambda d: str(d), PermissionError, "no permission to run it"),
        (lambda d: plain_file(d, 0o644), PermissionError, "no permission to run it"),
        (lambda d: plain_file(d, 0o755), OSError, "no program that runs here"),
        (lambda d: plain_file(d, 0o755, "#!/no/such/interpreter\n"), FileNotFoundError, "no such program"),
    ],
    ids=["missing", "not on the path", "directory", "not executable", "no program", "no interpreter"],
)
def test_what_cannot_be_run_is_misconfigured(
    go: Callable[..., Any], dependency: Dependency, tmp_path: Path, make: Any, kind: Any, cause: str
) -> None:
    """It counts, it says what a person has to mend, and it was not executed."""
    error: Any = raises(kind, lambda: go(make(tmp_path)))
    assert error.outcome == "not_executed"
    assert not hasattr(error, "__notes__")
    assert TABLE.row(error).judgement.cause == ("misconfigured", cause)
    assert counts(dependency) == (0, 1, True)
    assert dependency.status().cause == cause


def test_no_descriptors_left_is_not_the_programs_fault(
    go: Callable[..., Any], dependency: Dependency
) -> None:
    """What this process has used up says nothing about the program; but the call was not answered."""
    go(*sh("exit 0"))  # the loop has its descriptors
    kept: list[int] = []
    with pytest.raises(OSError, match="Too many open files") as caught:
        with exhausted(kept):
            go(*sh("exit 0"), capture_output=True)
    assert caught.value.outcome == "not_executed"  # type: ignore[attr-defined]
    assert counts(dependency) == (1, 0, True)


@contextlib.contextmanager
def exhausted(kept: list[int]) -> Iterator[None]:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 3, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                kept.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in kept:
            os.close(descriptor)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((("a", 1),), {}),
        (("/bin/true", "nul\0"), {}),
        (("/bin/true",), {"no_such_option": 1}),
        (("/bin/true", "x" * 5_000_000), {}),
    ],
    ids=["kind", "nul", "option", "too long"],
)
def test_callers_mistake_says_nothing(
    go: Callable[..., Any], dependency: Dependency, args: Any, options: dict[str, Any]
) -> None:
    """Arguments that cannot be are no failure of the program."""
    raises(Exception, lambda: go(*args, **options))
    assert counts(dependency) == (0, 0, False)


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        ("args", "ls", {}),
        ("args", b"ls", {}),
        ("args", (), {}),
        ("args", None, {}),
        ("timeout", ["true"], {"timeout": 0}),
        ("timeout", ["true"], {"timeout": "1"}),
        ("timeout", ["true"], {"timeout": float("nan")}),
        ("long", ["true"], {"long": "yes"}),
        ("answers", ["true"], {"answers": {1: "fine"}}),
        ("answers", ["true"], {"answers": {"1": "success"}}),
        ("answers", ["true"], {"answers": [1]}),
        ("shell", ["true"], {"shell": True}),
        ("stdin", ["true"], {"input": b"", "stdin": subprocess.PIPE}),
        ("stdout", ["true"], {"capture_output": True, "stdout": subprocess.PIPE}),
    ],
)
def test_wrong_arguments_are_named(
    side: Side, dependency: Dependency, name: str, args: Any, options: Any
) -> None:
    """The mistake is told where it is made, and says nothing about the program."""
    with pytest.raises(ConfigurationError, match=name):
        side.do(side.pick(run, arun), dependency, args, **{"timeout": 1.0, **options})
    assert counts(dependency) == (0, 0, False)


@pytest.mark.parametrize("thing", [None, "tool", Safehold], ids=repr)
def test_what_is_no_dependency_is_turned_away(side: Side, thing: Any) -> None:
    with pytest.raises(ConfigurationError, match="dependency"):
        side.do(side.pick(run, arun), thing, ["true"], timeout=1.0)


# --- the end of a child ---------------------------------------------------------------------------------


def test_time_out_kills_the_group_and_reaps_the_child(
    go: Callable[..., Any], dependency: Dependency, life: Life, tmp_path: Path
) -> None:
    """A time-out is `TimeoutExpired`; when it is raised, no child is left, not even a dead one."""
    script = "sleep 100 & echo $$ > pid; wait"
    error: Any = raises(
        subprocess.TimeoutExpired,
        lambda: go(*sh(script), timeout=SOON, cwd=tmp_path, capture_output=True, **life.inherited),
    )
    assert error.timeout == SOON
    assert error.outcome == "unknown"
    assert "may have been executed" in "".join(error.__notes__)
    assert is_reaped(int((tmp_path / "pid").read_text()))
    assert life.is_over()
    assert counts(dependency) == (0, 1, True)
    assert dependency.status().cause == "did not end in time"


def test_partial_output_stays_on_the_time_out(dependency: Dependency) -> None:
    """What the program had written is on the error, as with `subprocess.run`."""
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run(dependency, sh("echo begun; exec sleep 100"), timeout=SOON, capture_output=True)
    assert caught.value.stdout == b"begun\n"


def test_child_that_leaves_its_output_open_is_waited_for_in_vain(
    go: Callable[..., Any], life: Life, tmp_path: Path
) -> None:
    """Who ends and leaves somebody behind who holds his output has not ended; the group is killed all the same."""
    script = "sleep 100 & echo $$ > pid"
    raises(
        subprocess.TimeoutExpired,
        lambda: go(*sh(script), timeout=SOON, cwd=tmp_path, capture_output=True, **life.inherited),
    )
    assert is_reaped(int((tmp_path / "pid").read_text()))
    assert life.is_over()


def test_who_leaves_the_group_holds_nobody_up(go: Callable[..., Any], tmp_path: Path) -> None:
    """A daemon that got away with the output pipe is left alone, and neither hangs the call nor leaks its pipe."""
    go(*sh("exit 0"))  # the loop has its descriptors
    before = descriptors()
    script = "setsid sh -c 'echo $$ > daemon; exec sleep 100' & sleep 100"
    raises(
        subprocess.TimeoutExpired, lambda: go(*sh(script), timeout=SOON, cwd=tmp_path, capture_output=True)
    )
    os.kill(int((tmp_path / "daemon").read_text()), signal.SIGKILL)  # it is there still
    assert descriptors() == before


def test_who_shares_our_group_is_killed_alone(go: Callable[..., Any], tmp_path: Path) -> None:
    """A child that was put into a group of others takes none of them along."""
    script = "echo $$ > pid; exec sleep 100"
    raises(
        subprocess.TimeoutExpired,
        lambda: go(*sh(script), timeout=SOON, cwd=tmp_path, process_group=os.getpgrp()),
    )
    assert is_reaped(int((tmp_path / "pid").read_text()))


def test_own_session_is_killed_as_a_group(go: Callable[..., Any], life: Life) -> None:
    """`start_new_session` makes a group, too."""
    raises(
        subprocess.TimeoutExpired,
        lambda: go(*sh("sleep 100 & wait"), timeout=SOON, start_new_session=True, **life.inherited),
    )
    assert life.is_over()


def test_ctrl_c_kills_and_reaps(dependency: Dependency, life: Life, tmp_path: Path) -> None:
    """`KeyboardInterrupt` passes untouched, and leaves nobody behind; it decides nothing, and is a miss."""
    script = "echo $$ > pid; sleep 100 & kill -INT $PPID; wait"
    with pytest.raises(KeyboardInterrupt):
        run(dependency, sh(script), timeout=PATIENCE, cwd=tmp_path, capture_output=True, **life.inherited)
    assert is_reaped(int((tmp_path / "pid").read_text()))
    assert life.is_over()
    assert counts(dependency) == (0, 0, True)


def test_ctrl_c_while_a_child_is_born_ends_it(
    dependency: Dependency, life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt that comes before there is an object for the child is held back for so long."""
    born: list[int] = []

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            born.append(self.pid)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run(dependency, sh("exec sleep 100"), timeout=PATIENCE, **life.inherited)
    assert is_reaped(born[0])
    assert life.is_over()
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    done: list[Any] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done.append(run(dependency, sh("kill -INT $PPID"), timeout=PATIENCE))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert done[0].returncode == 0


@pytest.mark.parametrize("times", [1, 3])
async def test_cancellation_kills_and_reaps(
    dependency: Dependency, life: Life, tmp_path: Path, times: int
) -> None:
    """A task that is cancelled, once or again while it cleans up, ends cancelled, and nobody is left."""
    with contextlib.closing(Ready()) as ready:
        script = sh(f"sleep 100 & echo $$ > {ready.path}; wait")
        options: dict[str, Any] = {"capture_output": True, **life.inherited}
        task = asyncio.create_task(arun(dependency, script, timeout=PATIENCE, **options))
        pid = int(await asyncio.to_thread(ready.wait))
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_reaped(pid)
    assert life.is_over()
    assert counts(dependency) == (0, 0, True)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """What lets children be reaped."""
    gate, wait = asyncio.Event(), asyncio.subprocess.Process.wait

    async def waits(process: asyncio.subprocess.Process) -> int:
        await gate.wait()
        return await wait(process)

    monkeypatch.setattr(asyncio.subprocess.Process, "wait", waits)
    return gate


async def test_cancellation_does_not_keep_a_child_from_being_reaped(
    dependency: Dependency, gate: asyncio.Event
) -> None:
    """Cancelled again while it cleans up, it cleans up."""
    with contextlib.closing(Ready()) as ready:
        script = sh(f"echo $$ > {ready.path}; exec sleep 100")
        task = asyncio.create_task(arun(dependency, script, timeout=PATIENCE))
        pid = int(await asyncio.to_thread(ready.wait))
    for _ in range(3):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not task.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_reaped(pid)


async def test_cancellation_while_a_time_out_is_cleaned_up_is_not_lost(
    dependency: Dependency, gate: asyncio.Event
) -> None:
    """The task ends cancelled, as whoever has cancelled it expects."""
    task = asyncio.create_task(arun(dependency, sh("exec sleep 100"), timeout=0.01))
    await asyncio.to_thread(threading.Event().wait, 0.1)
    assert not task.done()
    task.cancel()
    await asyncio.sleep(0)
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert dependency.status().unresolved_miss


async def test_time_out_of_the_system_is_passed_on(
    dependency: Dependency, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that does not answer is not our limit, and the error is its own."""
    own = TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    async def hangs(*_: Any, **__: Any) -> Any:
        raise own

    monkeypatch.setattr(asyncio, "create_subprocess_exec", hangs)
    with pytest.raises(TimeoutError) as caught:
        await arun(dependency, ["true"], timeout=PATIENCE)
    assert caught.value is own
    assert own.outcome == "not_executed"  # type: ignore[attr-defined]
    assert counts(dependency) == (0, 1, True)


async def test_time_out_of_somebody_else_is_not_taken_for_ours(dependency: Dependency) -> None:
    """`asyncio.timeout` around it ends with a `TimeoutError`, and is a miss that decides nothing."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SOON):
            await arun(dependency, sh("exec sleep 100"), timeout=PATIENCE)
    assert counts(dependency) == (0, 0, True)


def test_nothing_is_left_open(go: Callable[..., Any], dependency: Dependency) -> None:
    """However a run ends, it leaves no descriptor and no child."""
    go(*sh("exit 0"), capture_output=True, input=b"")
    before, family = descriptors(), children()
    for script in ("exit 0", "exit 1", "kill -9 $$", "exec sleep 100"):
        with contextlib.suppress(subprocess.TimeoutExpired):
            go(
                *sh(script),
                capture_output=True,
                input=b"x" * 200_000,
                timeout=0.2 if "sleep" in script else PATIENCE,
            )
        dependency.reset()
    with contextlib.suppress(FileNotFoundError):
        go("/no/such/program", capture_output=True)
    assert descriptors() == before
    assert children() == family


def children() -> set[int]:
    """The processes of this one, zombies among them."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(stat.parent.name))
    return found


# --- the breaker ----------------------------------------------------------------------------------------


def test_refusal_is_both_errors_and_starts_nothing(
    go: Callable[..., Any], dependency: Dependency, tmp_path: Path
) -> None:
    """While open, a `SubprocessError` that is a `DependencyUnhealthy` is raised, and no program runs."""
    dependency.trip()
    error: Any = raises(subprocess.SubprocessError, lambda: go(*sh("echo > ran"), cwd=tmp_path))
    assert type(error) is ProcessUnhealthy
    assert isinstance(error, DependencyUnhealthy)
    assert (error.dependency, error.reason, error.retry_after) == ("tool", "breaker_open", COOLDOWN)
    assert error.outcome == "not_executed"
    assert os.listdir(tmp_path) == []
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (type(twin), str(twin)) == (ProcessUnhealthy, str(error))


def test_failures_trip_and_a_trial_recovers(
    go: Callable[..., Any], dependency: Dependency, clock: ManualClock
) -> None:
    """Failures in a row open the breaker; after the cooldown one run decides."""
    for _ in range(2):
        go(*sh("exit 1"))
    assert dependency.breaker is BreakerState.OPEN
    clock.advance(COOLDOWN)
    go(*sh("exit 1"))
    assert dependency.breaker is BreakerState.OPEN
    clock.advance(COOLDOWN)
    go(*sh("exit 1"), answers={1: "ignored"})
    assert dependency.breaker is BreakerState.HALF_OPEN
    go(*sh("exit 0"))
    assert dependency.breaker is BreakerState.CLOSED


def test_declared_classifier_goes_first(side: Side, health: Safehold) -> None:
    """What the declaration says of an exception counts; exit codes have their own table."""
    mine = health.dependency(
        "mine", policy=POLICY, classify=lambda error: not isinstance(error, FileNotFoundError)
    )
    do = side.pick(run, arun)
    raises(FileNotFoundError, lambda: side.do(do, mine, ["/no/such/program"], timeout=1.0))
    assert counts(mine) == (0, 0, False)
    side.do(do, mine, sh("exit 1"), timeout=PATIENCE)
    assert counts(mine) == (0, 1, True)


def test_table_becomes_the_classifier_of_a_guard_around_it(
    go: Callable[..., Any], dependency: Dependency
) -> None:
    """A decorated function that raises one of these errors itself is judged by the same table."""
    go(*sh("exit 0"))

    @dependency.guard
    def own() -> None:
        raise TypeError("a mistake of the caller's")

    raises(TypeError, own)
    assert counts(dependency) == (1, 0, False)


def test_long_programs_are_not_waited_for(side: Side, dependency: Dependency, health: Safehold) -> None:
    """`long=True`: the gate does not wait for its end, and its time-out is no failure."""
    health.destructive("clean", requires=["tool"])(lambda: None)
    side.do(side.pick(run, arun), dependency, ["true"], timeout=PATIENCE)

    async def looked(*, long: bool) -> list[str]:
        with contextlib.closing(Ready()) as ready:
            script = sh(f"echo > {ready.path}; exec sleep 100")
            task = asyncio.create_task(arun(dependency, script, timeout=PATIENCE, long=long))
            await asyncio.to_thread(ready.wait)
            reasons = [reason.code for reason in health.check("clean").reasons]
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return reasons

    for long in (False, True):
        with health.scope("round"):
            assert ("call_in_flight" in asyncio.run(looked(long=long))) is not long
    do = side.pick(run, arun)
    with pytest.raises(subprocess.TimeoutExpired):
        side.do(do, dependency, sh("exec sleep 100"), timeout=0.1, long=True)
    assert dependency.status().failures == 0


def test_error_that_is_being_handled_has_no_say(go: Callable[..., Any], dependency: Dependency) -> None:
    """Who calls while he handles another error, such as a missing file, has its meaning not mixed in."""
    try:
        raise FileNotFoundError(2, "missing")
    except FileNotFoundError:
        error: Any = raises(subprocess.TimeoutExpired, lambda: go(*sh("exec sleep 100"), timeout=0.1))
    assert error.outcome == "unknown"
    assert dependency.status().cause == "did not end in time"
    assert FileNotFoundError in {type(link) for link in contexts(error)}  # it is told all the same


def contexts(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__context__


def test_every_row_of_the_table_is_met() -> None:
    """The last row matches everything, and no row stands behind one that hides it."""
    met = [
        OSError(24, "x"),
        FileNotFoundError(2, "x"),
        PermissionError(13, "x"),
        OSError(8, "x"),
        OSError(7, "x"),
        subprocess.TimeoutExpired("x", 1),
        declared(),
        subprocess.CalledProcessError(-9, "x"),
        subprocess.CalledProcessError(1, "x"),
        UnicodeDecodeError("utf-8", b"", 0, 1, "x"),
        TypeError("x"),
        RuntimeError("x"),
    ]
    assert [TABLE.index(TABLE.row(error)) for error in met] == list(range(len(TABLE)))


def declared() -> subprocess.CalledProcessError:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(Safehold("x")["tool"], sh("exit 1"), timeout=PATIENCE, answers={1: "success"}, check=True)
    return caught.value


def test_undeclared_dependency_passes_calls_through(side: Side, health: Safehold) -> None:
    """Unconfigured, nothing is refused, and misses count."""
    do = side.pick(run, arun)
    for _ in range(20):
        assert side.do(do, health["nobody"], sh("exit 1"), timeout=PATIENCE).returncode == 1
    assert health["nobody"].status().unresolved_miss


def test_it_runs_in_threads(dependency: Dependency) -> None:
    """`run` may be used from any thread."""

    async def many() -> list[Any]:
        return await asyncio.gather(
            *(
                asyncio.to_thread(run, dependency, [sys.executable, "-c", "pass"], timeout=PATIENCE)
                for _ in range(4)
            )
        )

    assert [done.returncode for done in asyncio.run(many())] == [0] * 4
    assert counts(dependency) == (4, 0, False)
