"""A process that did not run holds its operations back when it runs again, and its old evidence is void."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import pytest

CHILD = """
    import sys, time
    from safehold import GatePolicy, OperationBlocked, Safehold

    health = Safehold("child", gate=GatePolicy(startup_grace=0, stall_after=1.0, quiet_time=1.5))
    store = health.dependency("store", critical=True)

    @health.witness("store")
    def exists(subject): return False

    @health.destructive("bare", requires=["store"])
    def bare(): pass

    @health.destructive("proven", subject="subject", evidence="exists", evidence_age=3600)
    def proven(subject): pass

    def tried(operation, *args):
        try:
            operation(*args)
        except OperationBlocked as blocked:
            return ",".join(reason.code for reason in blocked.reasons)
        return "done"

    exists("s1")
    print(tried(bare), tried(proven, "s1"), flush=True)
    for line in sys.stdin:
        if line.strip() == "prove":
            exists("s1")
        print(tried(bare), tried(proven, "s1"), flush=True)
"""


class Child:
    """A process with an operation that needs health alone, and one that needs evidence."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", textwrap.dedent(CHILD)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.first = self._answer()

    def ask(self, what: str = "") -> list[str]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self._answer()

    def stop_for(self, seconds: float) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self._process.pid, signal.SIGCONT)

    def _answer(self) -> list[str]:
        assert self._process.stdout is not None
        return self._process.stdout.readline().split()

    def close(self) -> None:
        self._process.communicate(timeout=20)


def wait_for(look: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes cannot be stopped here")
def test_a_process_that_was_stopped_holds_back_and_proves_anew() -> None:
    """At once after it runs again, before any watcher has; and after the quiet time only fresh proof counts."""
    child = Child()
    try:
        assert child.first == ["done", "done"]
        time.sleep(0.7)  # the watcher has begun
        assert child.ask() == ["done", "done"]
        child.stop_for(2.5)
        held = child.ask()
        assert held[0] == "observer_sick"
        assert set(held[1].split(",")) == {"observer_sick", "evidence_overtaken"}
        wait_for(lambda: child.ask()[0] == "done")
        assert child.ask() == ["done", "evidence_overtaken"], "what was seen before is void"
        assert child.ask("prove") == ["done", "done"]
    finally:
        child.close()
