"""The watch that this process keeps over itself: one for all, since it is well as a whole or not at all.

Two kinds of beats, for either alone is blind on one side. A thread sees the process stopped, suspended and
starved; it does not see a coroutine that blocks its event loop. A chain of timers inside the loop sees
that, and nothing of a process without a loop. The thread also looks at the loops: it notes a stall while
it lasts, for those who decide outside that loop, and lets a loop rest that is not running, since between
two runs nobody expects it to beat.

Whoever asks may be the first to run after a stall. So each question is itself measured against the last
beats, and what it finds is noted at once, before the thread has had its turn. A healthy answer takes no
lock. Guarded calls have nothing to do with any of this.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable
from contextvars import Context
from functools import partial
from itertools import count
from math import inf
from typing import Final, NamedTuple
from weakref import ref

from .._core.observer import BEAT, PROCESS, QUIET, STALL, Observer, Sickness, SicknessKind
from . import log

_numbers = count(1)
AT_ONCE: Final = 0.001
"""Seconds for which a healthy answer is good in the same loop: a batch asks for each of its items."""
_running_loop = asyncio._get_running_loop


def _boottime() -> Callable[[], float] | None:
    """Find the clock that counts sleep, where there is one."""
    number = getattr(time, "CLOCK_BOOTTIME", None)
    if number is None:
        return None
    clock_gettime = time.clock_gettime
    try:
        clock_gettime(number)
    except OSError:  # a kernel, or a sandbox, that does not know it
        return None
    return partial(clock_gettime, number)


class Reading(NamedTuple):
    """The clocks at one instant, as `Observer.beat` takes them."""

    monotonic: float
    wall: float
    boottime: float | None


class Clocks:
    """The machine's clocks, kept in a class: those who freeze time by patching modules do not find them."""

    __slots__ = ()

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
    boottime = staticmethod(_boottime() or (lambda: None))

    @classmethod
    def read(cls) -> Reading:
        """Read them as one. Whoever is stopped between two of them would see a jump that was none."""
        for _ in range(4):
            before = cls.monotonic()
            reading = Reading(cls.monotonic(), cls.wall(), cls.boottime())
            if cls.monotonic() - before < 0.1:
                return reading
        return Reading(cls.monotonic(), cls.wall(), cls.boottime())


def _weakly(loop: AbstractEventLoop) -> Callable[[], AbstractEventLoop | None]:
    """Refer to a loop. One that has no weak references is let go when it is found closed."""
    try:
        return ref(loop)
    except TypeError:
        return lambda: loop


class Chain:
    """The beats inside one event loop: a timer that sets the next one. It keeps no loop alive."""

    __slots__ = ("_watch", "begun", "loop", "source")

    def __init__(self, watch: Watch, loop: AbstractEventLoop) -> None:
        self._watch = watch
        self.loop = _weakly(loop)
        self.source = f"loop {next(_numbers)}"
        self.begun = False

    def beat(self) -> None:
        """Beat, and set the next one first: whatever interrupts this must not end it."""
        loop = self.loop()
        if loop is not None and self._watch._chains.get(id(loop)) is self:  # else: a newer one, or a fork
            loop.call_later(BEAT, self.beat, context=Context())
            self.begun = True
            self._watch._beat(self.source)


class Watch:
    """What the gate asks. All of it may be called from any thread, finaliser or signal handler."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        """Begin, also in a forked child: no lock is held, no thread alive, no loop of the parent's ours."""
        self._lock = threading.RLock()  # a finaliser may come back in
        self._observer = Observer()  # its changes guarded by _lock
        self._chains: dict[int, Chain] = {}  # changes guarded by _lock
        self._thread: threading.Thread | None = None  # changes guarded by _lock
        self._failure = ""
        self._seen_well = (-inf, 0)  # when, and the id of the loop in which
        self._since: float | None = None

    # --- what the gate asks ---------------------------------------------------------------------------

    def ensure(self) -> None:
        """Watch from a thread from now on."""
        if self._thread is None:
            self._start()

    def ensure_loop(self) -> None:
        """Watch from inside the running event loop, too, from now on, if there is one."""
        self.ensure()
        loop = _running_loop()
        if loop is None:
            return
        chain = self._chains.get(id(loop))
        if chain is None or chain.loop() is not loop:
            self._begin_chain(loop)

    def sickness(self, stall: float = STALL, quiet: float = QUIET) -> Sickness | None:
        """Say what is wrong with this process, `None` when it is well; begins to watch where nobody does.

        `stall`: seconds (at least 0.5) by which a beat may be late; `quiet`: seconds for which the process
        stays sick afterwards.
        """
        if self.is_well(stall):
            return None
        now = Clocks.monotonic()
        if self._thread is None:
            text = f"this process cannot watch itself: {self._failure}"
            return Sickness(kind=SicknessKind.UNWATCHED, text=text, left=quiet, until=now)
        return self._observer.sickness(now, stall, quiet)

    def void_before(self, stall: float = STALL) -> float | None:
        """Give the monotonic instant up to which nothing counts that was seen, `None` if all of it does."""
        if self.is_well(stall):
            return None
        return Clocks.monotonic() if self._thread is None else self._observer.last_sick(stall)

    @property
    def since(self) -> float | None:
        """The monotonic instant at which the watch began; nothing is known of the time before."""
        return self._since

    # --- inside ---------------------------------------------------------------------------------------

    def is_well(self, stall: float = STALL) -> bool:
        """Whether nothing was ever wrong, this very instant included. What is found is noted."""
        loop, source, boottime = _running_loop(), PROCESS, Clocks.boottime()
        seen_at, seen_in = self._seen_well
        if boottime is not None and 0 <= boottime - seen_at < AT_ONCE and id(loop) == seen_in:
            return True  # not even a machine that slept can have lost more than that
        if self._thread is None:
            self._start()
        if loop is not None:
            chain = self._chains.get(id(loop))
            if chain is None or chain.loop() is not loop:  # numbers are used again
                chain = self._begin_chain(loop)
            source = chain.source
        if self._observer.ahead(source, Clocks.monotonic(), Clocks.wall(), boottime, stall):
            self._note_late(loop, source)
        well = self._thread is not None and not self._observer.lapses  # looked at last: see `Observer`
        if well and boottime is not None:
            self._seen_well = boottime, id(loop)
        return well

    def _note_late(self, loop: AbstractEventLoop | None, source: str) -> None:
        """Take the question for the beat that is late, and see that others follow."""
        with self._lock:
            if self._thread is not None and not self._thread.is_alive():
                self._thread = None
                self._start_thread()
            self._beat(PROCESS)
            if loop is not None and self._observer.expects(source):
                self._beat(source)
                self._begin_chain(loop)  # the old chain ends where it finds this one

    def _beat(self, source: str) -> None:
        with self._lock:
            self._observer.beat(source, *Clocks.read())

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._start_thread()

    def _start_thread(self) -> None:
        """Start the thread; its first beat is this one. A step under the lock."""
        if sys.is_finalizing():  # a thread that never gets to run would be waited for
            self._failure = "the interpreter is ending"
            return
        thread = threading.Thread(target=self._run, name="safehold-observer", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads to be had
            self._failure = str(error)
            return
        self._beat(PROCESS)
        self._thread = thread
        if self._since is None:
            self._since = Clocks.monotonic()

    def _run(self) -> None:
        pause = threading.Event().wait
        try:
            while True:
                pause(BEAT)
                self._beat(PROCESS)
                for chain in list(self._chains.values()):
                    self._look(chain)
        except Exception as error:  # noqa: BLE001 - the next question finds it late, and starts another
            log.fault("observer_failed", error)

    def _look(self, chain: Chain) -> None:
        loop = chain.loop()
        with self._lock:
            if loop is None or not loop.is_running():
                self._observer.rest(chain.source)
                if loop is None or loop.is_closed():
                    self._drop(chain)
            elif self._observer.expects(chain.source):
                self._observer.look(chain.source, Clocks.monotonic())
            elif chain.begun:
                self._beat(chain.source)

    def _begin_chain(self, loop: AbstractEventLoop) -> Chain:
        """Begin to beat in the running loop."""
        chain = Chain(self, loop)
        with self._lock:
            old = self._chains.get(id(loop))
            if old is not None:
                self._drop(old)
            self._chains[id(loop)] = chain
        try:
            chain.beat()
        except Exception as error:  # noqa: BLE001 - a loop of a strange kind; the thread watches the process
            log.fault("loop_unwatched", error)
        return chain

    def _drop(self, chain: Chain) -> None:
        """Forget a chain. A step under the lock."""
        self._observer.rest(chain.source)
        for number, known in list(self._chains.items()):
            if known is chain:
                del self._chains[number]


watch = Watch()
"""The one of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=watch._begin)
