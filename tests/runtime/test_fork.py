"""A forked child begins again: no lock is held, no permit borrowed, no prober believed alive."""

from __future__ import annotations

import os
import sys

import pytest

from .support import python

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or sys.platform != "linux", reason="forks, on Linux")

PRELUDE = """
import contextlib, faulthandler, os, random, select, signal, sys, threading, warnings
from safehold import *
from safehold.testing.clock import ManualClock

warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
faulthandler.register(signal.SIGALRM, chain=True)  # a child that hangs says where, and ends
POLICY = BreakerPolicy(
    failures=3, failure_rate=None, cooldown=Backoff(first=10, factor=2, cap=60, jitter=0)
)

def child(work, deadline=10.0):
    \"\"\"Fork; the child does its work. It has to end well, and in time.\"\"\"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(int(deadline))
            work()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            sys.stdout.flush()
            os._exit(code)
    ended = os.pidfd_open(pid)
    ready, _, _ = select.select([ended], [], [], deadline + 5)
    os.close(ended)
    if not ready:
        os.kill(pid, 9)
    _, status = os.waitpid(pid, 0)
    assert ready, "the child hangs"
    assert os.waitstatus_to_exitcode(status) == 0, "the child ended badly"

def make(clock=None, **gate):
    gate = GatePolicy(**{"startup_grace": 0, **gate})
    home = Safehold("fork", clock=clock, rng=random.Random(1), gate=gate)
    return home, home.dependency("redis", critical=True, policy=POLICY)

def succeed(dependency):
    with dependency.permit():
        pass

def fail(dependency, times=1):
    for _ in range(times):
        with contextlib.suppress(OSError), dependency.permit():
            raise OSError

def refused(dependency):
    try:
        succeed(dependency)
    except DependencyUnhealthy:
        return True
    return False
"""


def run(script: str, timeout: float = 55.0) -> None:
    assert python(f"{PRELUDE}\n{script}\nprint('well')", timeout=timeout) == "well\n"


@pytest.mark.timeout(200)
def test_three_hundred_forks_under_load() -> None:
    """While threads answer, fail, trip, recover, block and listen, every child makes its call and ends."""
    run(
        """
home = Safehold("load", gate=GatePolicy(startup_grace=0))
quick = BreakerPolicy(failures=3, failure_rate=None, cooldown=Backoff(first=0.0005, factor=1, cap=0.0005))
redis = home.dependency("redis", critical=True, policy=quick, probe=lambda: None)
api = home.dependency("api", critical=True, policy=quick.model_copy(update={"slow_after": 1.0}))
heard = []
home.subscribe(lambda event: heard.append(None))
home.subscribe(lambda event: None, threaded=True)
stop = threading.Event()
sys.setswitchinterval(0.0002)
states = set()

@home.destructive("destroy")
def destroy():
    pass

@redis.guard
def call(fails):
    if fails:
        raise OSError

@home.guard("api")
def other(fails):
    states.add(str(redis.breaker))
    if fails:
        raise OSError

def hammer(seed):
    dice = random.Random(seed)
    while not stop.is_set():
        with contextlib.suppress(OSError, Refused), home.scope("round"):
            (call if dice.random() < 0.7 else other)(dice.random() < 0.6)
        with contextlib.suppress(Refused):
            destroy()

def work():
    with contextlib.suppress(DependencyUnhealthy):
        call(False)
    other(False) if not api.held and api.retry_after == 0 else None
    home.status()
    with contextlib.suppress(Refused):
        destroy()

threads = [threading.Thread(target=hammer, args=(seed,), daemon=True) for seed in range(3)]
for thread in threads:
    thread.start()
with home.running():
    for _ in range(300):
        child(work, 8.0)
stop.set()
for thread in threads:
    thread.join(10)
    assert not thread.is_alive()
assert states == {"closed", "open", "half_open"}, states
assert heard
""",
        timeout=190.0,
    )


def test_what_a_child_knows() -> None:
    """What was well is unknown, what was open stays open with a trial due, what was held stays held."""
    run(
        """
clock = ManualClock()
home, redis = make(clock)
opened = home.dependency("opened", policy=POLICY)
held = home.dependency("held", policy=POLICY)
trying = home.dependency("trying", policy=POLICY)
succeed(redis)
fail(opened, 3)
held.hold("maintenance")
fail(trying, 3)
clock.advance(10)
trial = trying.permit()
trial.__enter__()
fail(opened) if not refused(opened) else None
opened.trip()

def work():
    assert (redis.state, redis.breaker) == (HealthState.UNKNOWN, BreakerState.CLOSED)
    succeed(redis)
    assert redis.state is HealthState.HEALTHY
    assert opened.breaker is BreakerState.OPEN
    assert opened.retry_after == 0.0
    assert held.held and held.retry_after is None and refused(held)
    assert trying.breaker is BreakerState.OPEN, "no permit is borrowed"
    trial.fail(OSError())
    assert trying.breaker is BreakerState.OPEN
    succeed(trying)
    assert trying.breaker is BreakerState.CLOSED
    held.release()
    succeed(held)

child(work)
assert redis.state is HealthState.HEALTHY
assert trying.breaker is BreakerState.HALF_OPEN, "the parent has lost nothing"
trial.succeed()
assert trying.breaker is BreakerState.CLOSED
assert held.held
"""
    )


def test_calls_that_the_fork_interrupted() -> None:
    """A call that began in the parent and ends in the child proves nothing there."""
    run(
        """
home, redis = make(ManualClock())
succeed(redis)
for fails in (False, True):
    with contextlib.suppress(OSError), redis.permit():
        def work():
            with contextlib.suppress(OSError):
                inner.__exit__(*((OSError, OSError(), None) if fails else (None, None, None)))
            assert redis.state is HealthState.UNKNOWN, redis.state
            assert redis.status().failures == 0
            assert redis.status().late_dropped == 1
        inner = redis.permit()
        inner.__enter__()
        child(work)
        inner.succeed()
"""
    )


def test_scopes_and_calls_in_flight() -> None:
    """A scope goes along with its taints; the parent's calls in flight stay behind."""
    run(
        """
home, redis = make(ManualClock())
destroy = home.destructive("destroy")(lambda: "destroyed")
optional = home.dependency("optional")
begun, go = threading.Event(), threading.Event()

@optional.guard
def hang():
    begun.set()
    go.wait(20)

with home.scope("sweep") as scope:
    thread = threading.Thread(target=home.carry(hang), daemon=True)
    thread.start()
    assert begun.wait(20)
    assert [r.code for r in home.check("destroy").reasons] == ["dependency_unknown", "call_in_flight"]

    def work():
        succeed(redis)
        assert destroy() == "destroyed"

    child(work)
    fail(optional)

    def tainted():
        succeed(redis)
        assert [r.code for r in home.check("destroy").reasons] == ["scope_tainted"]

    child(tainted)
    go.set()
    thread.join(20)
"""
    )


def test_start_up_grace_begins_again() -> None:
    """A child has just started: automatic operations wait, as in any new process."""
    run(
        """
clock = ManualClock()
home, redis = make(clock, startup_grace=30)
destroy = home.destructive("destroy")(lambda: "destroyed")
clock.advance(100)
succeed(redis)
assert destroy() == "destroyed"

def work():
    succeed(redis)
    assert [r.code for r in home.check("destroy").reasons] == ["startup_grace"]
    clock.advance(30)
    assert destroy() == "destroyed"

child(work)
assert destroy() == "destroyed"
"""
    )


def test_no_prober_is_inherited() -> None:
    """The child has no prober and says so; one begins again with the first thing that happens there."""
    run(
        """
home = Safehold("probed", gate=GatePolicy(startup_grace=0))
probed = threading.Event()
redis = home.dependency("redis", critical=True, policy=POLICY, probe=probed.set)
home.start()
assert home.status().probing

def work():
    assert threading.active_count() == 1
    assert not home.status().probing
    assert home.check("nothing").retry_after is None
    probed.clear()
    fail(redis, 3)
    assert home.status().probing
    redis.hold()
    redis.release()
    assert probed.wait(8)  # by the new prober
    probed.clear()
    home.destructive("destroy")(lambda: None)
    assert not home.check("destroy").allowed
    assert probed.wait(8)
    home.stop()

child(work)
assert home.status().probing
home.stop()
"""
    )


def test_orders_of_probes_work_in_a_child() -> None:
    """A probe that was under way in the parent does not count as under way in the child."""
    run(
        """
home = Safehold("probed", gate=GatePolicy(startup_grace=0))
asked, go = threading.Event(), threading.Event()

def probe():
    asked.set()
    assert go.wait(20)

redis = home.dependency("redis", critical=True, policy=POLICY, probe=probe)
destroy = home.destructive("destroy")(lambda: "destroyed")
assert not home.check("destroy").allowed
assert asked.wait(20)

def work():
    go.set()
    well = threading.Event()
    home.subscribe(lambda event: well.set() if event.after is HealthState.HEALTHY else None)
    assert not home.check("destroy").allowed
    assert well.wait(8)
    assert destroy() == "destroyed"

child(work)
go.set()
"""
    )


def test_listeners_work_in_a_child() -> None:
    """Listeners go along, threaded ones on a new thread; what the parent had to tell is not told twice."""
    run(
        """
home, redis = make(ManualClock())
direct, threaded = [], []
inside, go = threading.Event(), threading.Event()

def slow(event):
    inside.set()
    go.wait(20)
    threaded.append(event)

home.subscribe(direct.append)
home.subscribe(slow, threaded=True)
succeed(redis)
assert inside.wait(20)

def work():
    go.set()
    direct.clear()
    fail(redis)
    assert home.flush(8)
    assert [str(event.after) for event in direct] == ["degraded"]
    assert [str(event.after) for event in threaded] == ["degraded"]

child(work)
go.set()
assert home.flush(8)
assert [str(event.after) for event in threaded] == ["healthy"]
"""
    )


def test_fork_inside_a_listener_and_inside_a_call() -> None:
    """A child that is born while the parent tells, or in the middle of a guarded call, is free."""
    run(
        """
home, redis = make(ManualClock())
heard = []

def work():
    heard.clear()
    succeed(redis)
    fail(redis)
    assert [str(event.after) for event in heard] == ["healthy", "degraded"], heard

def listener(event):
    heard.append(event)
    if len(heard) == 1 and os.getpid() == parent:
        child(work)
        well.append("listener")

parent, well = os.getpid(), []
home.subscribe(listener)

@redis.guard
def call():
    child(work)
    well.append("call")

call()
assert well == ["call", "listener"]
assert [str(event.after) for event in heard] == ["healthy"]
"""
    )


def test_children_draw_their_own_jitter() -> None:
    """Children that trip at once do not probe in step."""
    run(
        """
home = Safehold("dice")
redis = home.dependency("redis", policy=BreakerPolicy(failures=1, cooldown=Backoff(first=10, jitter=1)))
succeed(redis)
read, write = os.pipe()

def work():
    fail(redis)
    os.write(write, f"{home.status().dependencies['redis'].retry_after:.9f}\\n".encode())

for _ in range(4):
    child(work)
waits = {line[:4] for line in os.read(read, 1000).decode().split()}
assert len(waits) > 1, waits
"""
    )


def test_a_child_of_a_thread_and_a_grandchild() -> None:
    """Whichever thread forks, and however often, the child is whole: also its gate is not at its end."""
    run(
        """
home, redis = make(ManualClock())
destroy = home.destructive("destroy")(lambda: "destroyed")
succeed(redis)
results = []

def grandchild():
    assert redis.state is HealthState.UNKNOWN
    succeed(redis)
    assert destroy() == "destroyed"

def work():
    succeed(redis)
    assert destroy() == "destroyed"
    child(grandchild, 6.0)

def fork():
    child(work)
    results.append("well")

thread = threading.Thread(target=fork)
thread.start()
thread.join(30)
assert results == ["well"]
"""
    )
