"""Real processes that are stopped, stalled and forked, and what they say of themselves afterwards.

All children run at the same time, and the tests look at what each of them told.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Thread
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stops processes, and forks")

PRELUDE = """
import asyncio, ctypes, gc, json, os, sys, threading, time
from safehold._runtime import observer
from safehold._runtime.observer import Clocks, watch

def say(**what):
    print(json.dumps(what), flush=True)

def asked(**limits):
    sickness, void = watch.sickness(**limits), watch.void_before()
    if sickness is None:
        return None
    return {"kind": str(sickness.kind), "text": sickness.text, "left": sickness.left,
            "void": None if void is None else Clocks.monotonic() - void}

def threads():
    return sorted(thread.name for thread in threading.enumerate() if thread is not threading.main_thread())
"""

SCRIPTS = {
    "import": """
        say(before=threads(), since=watch.since)
        for _ in range(3):
            watch.ensure()
        say(after=threads(), daemon=all(t.daemon for t in threading.enumerate()[1:]), well=asked())
    """,
    "stopped": """
        assert asked() is None
        say(ready=True)
        sys.stdin.readline()
        say(at_once=asked())
        time.sleep(0.8)
        say(later=asked(), short=asked(quiet=0.5), lenient=asked(stall=60))
    """,
    "interpreter held": """
        watch.ensure()
        time.sleep(0.7)
        sys.setswitchinterval(1000)  # no other thread gets a turn between the call and the question
        ctypes.PyDLL(None).usleep(3_000_000)
        say(at_once=asked())
        sys.setswitchinterval(0.005)
        say(from_a_thread=in_a_thread(asked))
        read, write = os.pipe()
        if os.fork() == 0:
            before = watch.since, threads()
            first = asked()
            beat = watch._observer._beats[observer.PROCESS]
            time.sleep(0.8)
            os.write(write, json.dumps({
                "since": before[0], "threads": [before[1], threads()], "well": [first, asked()],
                "beats": watch._observer._beats[observer.PROCESS] > beat,
            }).encode())
            os._exit(0)
        os.wait()
        say(child=json.loads(os.read(read, 10_000)), parent=asked())
    """,
    "loop stalled": """
        async def main():
            watch.ensure_loop()
            await asyncio.sleep(0.7)
            seen = []
            outside = threading.Thread(target=lambda: (time.sleep(3.2), seen.append(asked())))
            outside.start()
            time.sleep(3.5)
            say(at_once=asked())
            outside.join()
            say(meanwhile_outside=seen[0])
            await asyncio.sleep(0.8)
            say(later=asked(), timers=len(asyncio.get_running_loop()._scheduled))
        asyncio.run(main())
        say(without_a_loop=asked())
    """,
    "loop at rest": """
        loop = asyncio.new_event_loop()
        async def ask():
            answer = asked()
            await asyncio.sleep(0.7)
            return answer, asked()
        say(first=loop.run_until_complete(ask()))
        time.sleep(3)
        say(again=loop.run_until_complete(ask()))
        async def stall():
            time.sleep(3.6)
            return asked()
        time.sleep(1.2)
        say(stalled=loop.run_until_complete(stall()))
        loop.close()
    """,
    "many loops": """
        async def main():
            watch.ensure_loop()
            assert asked() is None
            assert len([h for h in asyncio.get_running_loop()._scheduled if not h.cancelled()]) == 1
        for _ in range(40):
            asyncio.run(main())
        time.sleep(1.2)
        gc.collect()
        alive = [x for x in gc.get_objects() if isinstance(x, asyncio.BaseEventLoop)]
        say(chains=len(watch._chains), beats=list(watch._observer._beats), loops=len(alive), threads=threads())
    """,
    "clocks": """
        real = Clocks.boottime, Clocks.wall
        assert asked() is None
        Clocks.boottime, Clocks.wall = (lambda: real[0]() + 28800), (lambda: real[1]() + 28800)
        say(resumed=asked())
        watch._begin()
        assert asked() is None
        Clocks.wall = lambda: real[1]() + 28800 - 7200
        time.sleep(0.002)  # a healthy answer is good for a millisecond, unless the machine slept
        say(stepped=asked())
    """,
    "no thread": """
        start = threading.Thread.start
        def fail(thread):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = fail
        say(unwatched=[asked(), asked()])
        threading.Thread.start = start
        say(watched=asked())
        read, fails = Clocks.read, []
        def broken():
            if threading.current_thread() is not threading.main_thread():
                raise ValueError("the thread ends")
            return read()
        Clocks.read = broken
        time.sleep(0.8)
        say(dead=threads())
        Clocks.read = read
        time.sleep(2.2)
        say(late=asked())
        time.sleep(0.8)
        say(revived=threads(), well=asked(quiet=0.5))
    """,
    "chain cut": """
        async def main():
            watch.ensure_loop()
            loop = asyncio.get_running_loop()
            for handle in list(loop._scheduled):
                handle.cancel()
            await asyncio.sleep(2.8)
            say(cut=asked())
            await asyncio.sleep(2.8)
            say(mended=asked(quiet=1.0), chains=len(watch._chains))
        asyncio.run(main())
    """,
    "strange loop": """
        class Strange(asyncio.SelectorEventLoop):
            def call_later(self, *args, **kwargs):
                raise NotImplementedError
        loop = Strange()
        async def main():
            first = asked()
            await asyncio.to_thread(time.sleep, 3.0)
            return first, asked()
        say(well=loop.run_until_complete(main()))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    """,
    "exit": """
        async def main():
            watch.ensure_loop()
            await asyncio.sleep(0.1)
            return asked()
        class Late:
            def __del__(self, new=observer.Watch(), write=os.write):
                write(1, (json.dumps({"late": new.sickness().text}) + "\\n").encode())
        late = Late()  # outlives everything
        say(well=asyncio.run(main()), now=time.time())
    """,
}
HELPERS = """
def in_a_thread(function):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join()
    return answers[0]
"""


@dataclass
class Child:
    """A process, and what it told before it ended."""

    process: subprocess.Popen[str]
    told: dict[str, Any] = field(default_factory=dict)
    errors: str = ""
    ended: float = 0.0

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.update(json.loads(line))
        self.process.wait()
        self.ended = time.time()


def start(name: str) -> Child:
    code = PRELUDE + HELPERS + textwrap.dedent(SCRIPTS[name])
    # newer Pythons warn of any fork beside threads
    quiet = ["-W", "ignore:This process:DeprecationWarning"] if "os.fork" in code else []
    return Child(
        subprocess.Popen(
            [sys.executable, "-X", "dev", "-W", "error", *quiet, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )


def stop_and_continue(child: Child) -> None:
    """Stop it for three seconds; its question lies ready when it goes on."""
    while "ready" not in child.told:
        time.sleep(0.01)
    os.kill(child.process.pid, signal.SIGSTOP)
    time.sleep(3.2)
    assert child.process.stdin is not None
    child.process.stdin.write("\n")
    child.process.stdin.flush()
    os.kill(child.process.pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def children() -> Iterator[dict[str, Child]]:
    children = {name: start(name) for name in SCRIPTS}
    listeners = [Thread(target=child.listen, daemon=True) for child in children.values()]
    try:
        for listener in listeners:
            listener.start()
        Thread(target=stop_and_continue, args=(children["stopped"],), daemon=True).start()
        for listener in listeners:
            listener.join(30)
        for child in children.values():
            assert child.process.poll() is not None
            _, errors = child.process.communicate()
            # of a callback that took long asyncio tells by itself, in development mode
            child.errors = "".join(
                line for line in errors.splitlines(True) if not line.startswith("Executing ")
            )
        yield children
    finally:
        for child in children.values():
            if child.process.poll() is None:
                child.process.kill()
            child.process.wait()
            for stream in (child.process.stdin, child.process.stdout, child.process.stderr):
                if stream is not None:
                    stream.close()


def test_all_children_end_well_and_in_silence(children: dict[str, Child]) -> None:
    """No warning of an unclosed loop, a pending task or a forgotten thread; nothing on standard error."""
    for name, child in children.items():
        assert (child.process.returncode, child.errors) == (0, ""), name


def test_importing_starts_no_thread_and_ensuring_starts_one(children: dict[str, Child]) -> None:
    """A thread with a name, a daemon, and only when somebody asks for it."""
    told = children["import"].told
    assert told["before"] == []
    assert told["since"] is None
    assert told["after"] == ["safehold-observer"]
    assert told["daemon"] is True
    assert told["well"] is None


def test_a_stopped_process_is_sick_at_once_and_stays_so(children: dict[str, Child]) -> None:
    """SIGSTOP and SIGCONT: what it saw before is void, and the quiet time runs from the end of the stop."""
    told = children["stopped"].told
    for answer in (told["at_once"], told["later"]):
        assert answer["kind"] == "stalled"
        assert "this process did not run for" in answer["text"]
        assert 0 <= answer["void"] < 5
    assert 29 < told["at_once"]["left"] <= 30
    assert told["later"]["left"] < told["at_once"]["left"] - 0.5
    assert told["short"] is None
    assert told["lenient"] is None


def test_native_code_that_keeps_the_interpreter_to_itself(children: dict[str, Child]) -> None:
    """Loop and thread both slept: the first question finds it before the watcher has had a turn (T53)."""
    told = children["interpreter held"].told
    for answer in (told["at_once"], told["from_a_thread"], told["parent"]):
        assert answer["kind"] == "stalled"
    assert told["at_once"]["void"] < 0.1


def test_a_forked_child_watches_anew(children: dict[str, Child]) -> None:
    """The parent's thread is not there and its sickness not the child's, whose own watch begins when asked."""
    child = children["interpreter held"].told["child"]
    assert child["since"] is None
    assert child["threads"] == [[], ["safehold-observer"]]
    assert child["well"] == [None, None]
    assert child["beats"] is True


def test_a_blocked_loop_makes_the_process_sick(children: dict[str, Child]) -> None:
    """For those who ask in the loop at once, for threads while it lasts, and for all afterwards."""
    told = children["loop stalled"].told
    assert told["timers"] == 1
    for name in ("at_once", "meanwhile_outside", "later", "without_a_loop"):
        assert told[name]["kind"] == "stalled", name
        assert "event loop" in told[name]["text"], name


def test_a_loop_that_is_not_running_is_not_stalled(children: dict[str, Child]) -> None:
    """Between two runs nobody expects a loop to beat; the next run is watched from its first step."""
    told = children["loop at rest"].told
    assert told["first"] == [None, None]
    assert told["again"] == [None, None]
    assert told["stalled"]["kind"] == "stalled"


def test_loops_leave_nothing_behind(children: dict[str, Child]) -> None:
    """One timer a loop, nothing that keeps a loop alive, nothing kept of those that are closed."""
    told = children["many loops"].told
    assert told["chains"] == 0
    assert told["beats"] == ["process"]
    assert told["loops"] == 0
    assert told["threads"] == ["safehold-observer"]


def test_the_first_question_after_a_sleep_or_a_step_finds_it(children: dict[str, Child]) -> None:
    """Monotonic time shows nothing, the other clocks do, and nobody has beaten since (T50)."""
    told = children["clocks"].told
    assert told["resumed"]["kind"] == "suspended"
    assert told["resumed"]["text"].startswith("the machine was suspended for 28800.")
    assert told["stepped"]["kind"] == "clock_jumped"
    assert "-7200.0 s" in told["stepped"]["text"]


def test_a_process_that_cannot_watch_itself_is_not_well(children: dict[str, Child]) -> None:
    """Where no thread can be had nothing is known; with the first that can be had it is over."""
    told = children["no thread"].told
    for answer in told["unwatched"]:
        assert answer["kind"] == "unwatched"
        assert answer["text"] == "this process cannot watch itself: can't start new thread"
    assert told["watched"] is None


def test_a_watch_that_broke_is_noticed_and_mended(children: dict[str, Child]) -> None:
    """A thread that ended, or a chain of timers that was cut, counts as late, and the question starts anew."""
    told = children["no thread"].told
    assert told["dead"] == []
    assert told["late"]["kind"] == "stalled"
    assert told["revived"] == ["safehold-observer"]
    assert told["well"] is None
    told = children["chain cut"].told
    assert told["cut"]["kind"] == "stalled"
    assert told["mended"] is None
    assert told["chains"] == 1


def test_a_loop_that_cannot_be_watched_harms_nobody(children: dict[str, Child]) -> None:
    """The thread watches the process; a loop without timers is not expected to beat."""
    assert children["strange loop"].told["well"] == [None, None]


def test_the_watch_does_not_delay_the_end(children: dict[str, Child]) -> None:
    """The interpreter waits for no beat, and who asks at its end is not kept waiting for a new thread."""
    told = children["exit"]
    assert told.told["well"] is None
    assert told.told["late"] == "this process cannot watch itself: the interpreter is ending"
    assert told.ended - told.told["now"] < 2.0  # far less, on a machine with nothing else to do
