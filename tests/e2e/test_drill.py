"""The drill for real: processes, sockets, signals and time. Each run has a temporary directory of its own,
so that whatever is left behind can be found."""

from __future__ import annotations

import inspect
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safehold.drill import service
from safehold.drill.script import make_script
from safehold.drill.timing import FASTEST, Timing
from safehold.testing.servers import ApiServer, RedisServer

SPEED = "4"
PASSWORD = "s3cret-word"


@pytest.fixture(scope="module", autouse=True)
def heed_sigint() -> Iterator[None]:
    """A job that a script put into the background ignores SIGINT, and so would every child of ours."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A short path: long ones are avoided by the servers, because a socket's path is limited."""
    path = Path(tempfile.mkdtemp(prefix="drill-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


def environment(place: Path) -> dict[str, str]:
    """What an ordinary user has at least, and no HOME."""
    return {"PATH": os.defpath, "TMPDIR": str(place), "FORCE_COLOR": "1", "TERM": "xterm-256color"}


def drill(*argv: str, program: str | None = None) -> list[str]:
    return [sys.executable, *(("-m", "safehold") if program is None else ("-c", program)), "drill", *argv]


def run(place: Path, *argv: str, program: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        drill(*argv, program=program),
        env=environment(place),
        cwd="/proc",  # where nobody can write
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )


def leftovers(place: Path) -> list[str]:
    """Files, and processes that were told of the directory in their arguments or their environment."""
    found = [str(path) for path in place.rglob("*")]
    needle = os.fsencode(place)
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            for source in ("cmdline", "environ"):
                try:
                    if needle in (entry / source).read_bytes():
                        found.append(f"process {entry.name}: {(entry / 'cmdline').read_bytes()!r}")
                except OSError:
                    continue
    return found


@pytest.fixture(scope="module")
def outage(place) -> dict[str, Any]:
    """One drill with all its faults, as a machine sees it."""
    done = run(place, "--json", "--speed", SPEED, "--seed", "1")
    assert done.stderr == ""
    told: dict[str, Any] = json.loads(done.stdout)
    return {**told, "status": done.returncode, "left": leftovers(place)}


def test_the_faults_cost_sessions_and_safehold_saves_them(outage):
    """The promise: what cannot be seen is not destroyed; without protection it is."""
    assert outage["unprotected"]["sessions_lost"] > 0
    assert outage["protected"]["sessions_lost"] == 0
    assert outage["protected"]["operations_blocked"] > 0
    assert outage["recovered"] is True
    assert outage["passed"] is True
    assert outage["status"] == 0


def test_every_kind_of_fault_makes_the_gate_act(outage):
    """The script has no decoration: each fault would have cost something."""
    calm, *faults, _ = outage["acts"]
    assert calm["unprotected_lost"] == calm["protected_lost"] == 0
    assert len(faults) == 7
    assert all(act["protected_blocked"] > 0 for act in faults), faults


def test_sessions_that_really_end_are_removed(outage):
    """Protection does not mean never acting: what ended, even amid the outage, is gone in the end."""
    assert outage["protected"]["ended"] > 0
    assert outage["protected"]["ended_removed"] == outage["protected"]["ended"]


def test_every_transition_and_every_block_says_why(outage):
    """Nothing happens without a cause, and no block without a time to retry."""
    moves, blocks = outage["protected"]["transitions"], outage["protected"]["blocks"]
    assert {move["dependency"] for move in moves} == {"redis", "api_socket"}
    assert {"healthy", "degraded", "unhealthy", "recovering"} <= {move["after"] for move in moves}
    assert all(move["cause"] and move["cause_code"] for move in moves)
    assert len(blocks) == outage["protected"]["operations_blocked"]
    assert all(block["dependency"] and block["text"] and block["session"] for block in blocks)
    assert all(block["retry_after"] is not None for block in blocks)
    assert 0 < outage["repair_to_recovered"] < 20


def test_an_outage_leaves_nothing_behind(outage):
    """No process, no socket file, no directory."""
    assert outage["left"] == []


@pytest.fixture(scope="module")
def calm(place) -> dict[str, Any]:
    """The control: the same services, and nothing fails."""
    done = run(place, "--json", "--speed", SPEED, "--no-faults")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("name", ["unprotected", "protected"])
def test_without_faults_both_act_alike(calm, name):
    """The unprotected service is no strawman: only faults make it destroy what lives."""
    assert calm[name]["sessions_lost"] == 0
    assert calm[name]["ended"] > 0
    assert (
        calm[name]["ended_removed"] >= calm[name]["ended"] - 1
    )  # the last to end may still wait for its round


def test_without_faults_nothing_is_blocked_in_the_end(calm):
    """The gate lets through what may run."""
    assert calm["recovered"] is True
    assert calm["repair_to_recovered"] is None


def test_with_ones_own_servers_and_in_plain_text(place):
    """Only keys under the drill's prefix are used, only GET / is sent, and no password is shown."""
    with (
        RedisServer(listen="tcp", password=PASSWORD) as redis,
        ApiServer(lambda _: (404, {"error": "no such thing"})) as api,
    ):
        redis.command("SET", "mine", "untouched")
        done = run(place, "--speed", SPEED, "--redis-url", redis.url, "--api-socket", api.path)
        assert set(api.requests) == {"GET /"}
        assert redis.command("KEYS", "*") == ["mine"]
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    assert PASSWORD not in done.stdout
    assert "redis://***@127.0.0.1" in done.stdout
    assert "PASSED" in done.stdout
    assert "\x1b" not in done.stdout
    assert all(line in done.stdout for line in service.THREE_LINES)
    assert all(f"Fault {number} of 7" in done.stdout for number in range(1, 8))
    lost = re.search(r"live sessions lost +\S (\d+) of 50 +\S (\d+) of 50", done.stdout)
    assert lost is not None
    assert int(lost[1]) > 0
    assert int(lost[2]) == 0


FAKE = """
import sys
from safehold.testing._servers import redis
from safehold.testing.servers import ServerUnavailable

def nowhere(binary=None):
    raise ServerUnavailable(["nowhere"], None)

redis.find_redis_server = nowhere
from safehold.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_last_resort_is_a_stand_in_and_the_drill_says_so(place):
    """Where no server runs, fakeredis does."""
    done = run(place, "--json", "--speed", "4", "--no-faults", program=FAKE)
    assert done.returncode == 0, done.stderr
    assert "fakeredis" in json.loads(done.stdout)["redis"]
    assert leftovers(place) == []


def test_on_a_terminal_it_is_alive_and_the_verdict_stays(place):
    """The live view shows both runs side by side, and gives the terminal back as it was."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        drill("--speed", "4", "--no-faults"),
        env={**environment(place), "COLUMNS": "80", "LINES": "40"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = read_all(ours, until=time.monotonic() + 40)
    os.close(ours)
    assert process.wait(timeout=5) == 0
    assert "WITHOUT Safehold" in seen
    assert "healthy" in seen
    assert "VERDICT" in seen.rpartition("\x1b[?25h")[2], "after the cursor is back"


def read_all(terminal: int, *, until: float) -> str:
    seen = b""
    while time.monotonic() < until:
        if not select.select([terminal], [], [], 0.5)[0]:
            continue
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
    return seen.decode()


@pytest.mark.parametrize(
    ("moment", "signum", "status"),
    [
        ("Safehold drill", signal.SIGINT, 130),
        ("All is well", signal.SIGINT, 130),
        ("Fault 1", signal.SIGINT, 130),
        ("Fault 2", signal.SIGTERM, 143),
    ],
)
def test_a_signal_ends_it_and_leaves_nothing(place, moment, signum, status):
    """Ctrl-C, or a kill, at any moment of the drill."""
    with subprocess.Popen(
        drill("--speed", "4"),
        env=environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any(moment in line for line in process.stdout)
        process.send_signal(signum)
        _, complaint = process.communicate(timeout=20)
    assert process.returncode == status
    assert complaint == "safehold drill: interrupted; everything is stopped and removed\n"
    assert leftovers(place) == []


@pytest.mark.parametrize("after", [0.3, 0.5, 0.7, 0.9])
def test_a_signal_while_it_starts_leaves_nothing(place, after):
    """Also in between, where no line says how far it is; and twice, as impatient people do."""
    with subprocess.Popen(
        drill("--json"), env=environment(place), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=20)
    assert process.returncode in (130, -signal.SIGINT)  # the latter: before there was a drill at all
    assert told == ""
    assert leftovers(place) == []


def test_the_same_seed_gives_the_same_script():
    """A drill can be repeated, and varied."""
    scripts = [make_script(seed, timeout=0.3) for seed in (7, 7, 8)]
    assert scripts[0] == scripts[1] != scripts[2]
    assert [step.name for step in scripts[0]] == [step.name for step in scripts[2]], "the order is fixed"


def test_the_drill_is_short():
    """Under a minute at the default speed, with the longest recovery that settling can take."""
    timing = Timing()
    scripts = [make_script(seed, timeout=timing.timeout) for seed in range(100)]
    longest = max(sum(step.lasts for step in script) for script in scripts)
    assert longest + timing.cooldown_cap + timing.settle_max + 4 * timing.round < 55


@pytest.mark.parametrize("speed", [1, FASTEST])
def test_the_settings_are_sound(speed):
    """Settling outlasts the return of the heartbeats; the implicit scope outlasts a round."""
    timing = Timing().faster(speed)
    assert min(timing.settle_min, timing.implicit_scope) > timing.beat + 3 * timing.timeout
    assert timing.implicit_scope > 4 * timing.timeout + timing.round
    assert timing.heartbeat_ttl > 2 * timing.beat + timing.timeout


def test_the_three_lines_that_are_shown_are_those_that_run():
    """What the newcomer is promised is the code."""
    source = inspect.getsource(service.protected).splitlines()
    shown = [line.strip() for line in source if "guard_" in line or "health.destructive" in line]
    assert tuple(shown) == service.THREE_LINES
