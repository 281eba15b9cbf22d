"""A ledger on disk: the intent is there before the act, and what cannot be written is not done."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safehold import GatePolicy, OperationBlocked, Safehold
from safehold.testing.clock import ManualClock

from .support import POLICY, Form, fail, make_healthy, make_open

FORCED = ["dependency_unhealthy", "recent_miss"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def outcomes(path: Path) -> list[str]:
    return [line["outcome"] for line in lines(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "private" / "ledger.jsonl"


@pytest.fixture
def durable(clock: ManualClock, path: Path) -> Safehold:
    """A Safehold with a ledger on disk, and redis, which is well."""
    health = Safehold("d", clock=clock, rng=random.Random(1), gate=GatePolicy(startup_grace=0.0))
    health.configure(ledger=path)
    make_healthy(health.dependency("redis", critical=True, policy=POLICY))
    return health


def test_t116_the_intent_is_on_disk_before_the_act(gate_form: Form, durable: Safehold, path: Path) -> None:
    """Inside the act the file has the intent and nothing more; after it, the outcome as well."""
    seen: list[list[str]] = []
    destroy = gate_form.gate(durable, "destroy", lambda *_: seen.append(outcomes(path)))
    destroy()
    assert seen == [["intent"]]
    intent, done = lines(path)
    assert (intent["operation"], done["outcome"], done["intent"]) == ("destroy", "done", intent["seq"])


def test_it_is_told_to_the_disk_first(durable: Safehold, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written is not enough: `fsync` returns before the act runs."""
    told: list[str] = []
    fsync = os.fsync

    def noted(file: int) -> None:
        told.append("fsync")
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    durable.destructive("destroy")(lambda: told.append("act"))()
    assert "fsync" in told[: told.index("act")]


# --- a disk that does not take it ---------------------------------------------------------------------


def broken(name: str, number: int) -> Callable[[pytest.MonkeyPatch], None]:
    def breaks(patch: pytest.MonkeyPatch) -> None:
        def fails(*_: Any, **__: Any) -> int:
            raise OSError(number, os.strerror(number))

        patch.setattr(os, name, fails)

    return breaks


DISKS = {
    "full": broken("write", errno.ENOSPC),
    "broken": broken("write", errno.EIO),
    "not synced": broken("fsync", errno.EIO),
    "read-only": broken("open", errno.EROFS),
    "no descriptors": broken("open", errno.EMFILE),
}


@pytest.mark.parametrize("trigger", ["automatic", "requested"])
@pytest.mark.parametrize("disk", DISKS)
def test_t116_no_record_no_act(durable: Safehold, path: Path, disk: str, trigger: str) -> None:
    """The act has not run, forced or not; the application goes on; and when the disk is back, so are the acts."""
    ran: list[str] = []
    redis = durable["redis"]
    destroy = durable.destructive("destroy", trigger=trigger)(lambda: ran.append("ran"))
    grant = durable.grant(operation="destroy", actor="ada", reason="stuck", overrides=FORCED)
    with pytest.MonkeyPatch.context() as patch:
        DISKS[disk](patch)
        for call in (destroy, lambda: durable.force(grant, destroy)):
            with pytest.raises(OperationBlocked) as blocked:
                call()
            assert blocked.value.reason == "ledger_unavailable"
            assert blocked.value.dependency == "self"
        assert redis.guard(lambda: "answer")() == "answer"
        assert durable.status().overall == "healthy"
        with pytest.raises(OSError, match=r"\w"):
            durable.grant(operation="destroy", actor="ada", reason="stuck", overrides=FORCED)
    assert ran == []
    destroy()
    durable.force(grant, destroy)
    assert ran == ["ran", "ran"]
    assert outcomes(path)[-4:] == ["intent", "done", "intent", "done"]


def test_an_outcome_that_cannot_be_written_harms_nobody(
    durable: Safehold, path: Path, clock: ManualClock
) -> None:
    """The act is done and gives its result; it is open in the file, and in memory it is told."""
    with pytest.MonkeyPatch.context() as patch:

        @durable.destructive("destroy")
        def destroy() -> str:
            DISKS["full"](patch)
            return "result"

        assert destroy() == "result"
    assert outcomes(path) == ["intent"]
    assert [str(entry.outcome) for entry in durable.ledger.entries()] == ["intent", "done"]


def test_a_file_size_limit(path: Path) -> None:
    """The system itself refuses to write more: blocked, and the process lives."""
    told = run(
        """
        import resource, signal, sys
        from pathlib import Path
        from safehold import GatePolicy, OperationBlocked, Safehold

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        health = Safehold("limited", gate=GatePolicy(startup_grace=0))
        health.configure(ledger=sys.argv[1])

        @health.destructive("destroy", requires=())
        def destroy():
            print("ran")

        destroy()
        size = Path(sys.argv[1]).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))
        try:
            destroy()
        except OperationBlocked as blocked:
            print(blocked.reason)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        destroy()
        """,
        path,
    )
    assert told.splitlines() == ["ran", "ledger_unavailable", "ran"]
    assert outcomes(path)[-2:] == ["intent", "done"]


def run(script: str, *arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout


# --- blocks without end -------------------------------------------------------------------------------


def test_a_hundred_thousand_blocks(durable: Safehold, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """So many candidates of one round cost a handful of lines, in the file and in the log, and no memory."""
    fail(durable["redis"])
    reap = durable.destructive("reap", subject="session")(lambda session: None)

    def blocks(numbers: range) -> None:
        for number in numbers:
            try:
                reap(f"session-{number}")
            except OperationBlocked:
                continue
            raise AssertionError("it ran")

    blocks(range(2_000))
    tracemalloc.start()
    try:
        blocks(range(2_000, 4_000))
        before = tracemalloc.get_traced_memory()[0]
        blocks(range(4_000, 8_000))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    blocks(range(8_000, 100_000))
    assert grown < 100_000
    (entry,) = durable.ledger.entries("reap")
    assert (entry.count, entry.subject) == (100_000, "session-99999")
    written = lines(path)
    assert [line["count"] for line in written[1:]] == [2**power for power in range(1, 17)]
    assert len(caplog.records) < 100


def test_a_full_disk_does_not_fill_the_log(durable: Safehold, caplog: pytest.LogCaptureFixture) -> None:
    """A thousand acts that cannot be written are told in a few lines, which name the disk's own words."""
    destroy = durable.destructive("destroy")(lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        DISKS["full"](patch)
        for _ in range(1000):
            with pytest.raises(OperationBlocked):
                destroy()
    assert 0 < len(caplog.records) < 50
    assert "no space left on device" in caplog.text
    destroy()


# --- a process that ends in the middle ----------------------------------------------------------------


def test_killed_in_the_middle_of_an_act(path: Path, clock: ManualClock) -> None:
    """Whoever comes next tells the intent as unknown, once; nobody knows what it has done."""
    run(
        """
        import os, signal, sys
        from safehold import GatePolicy, Safehold

        health = Safehold("killed", gate=GatePolicy(startup_grace=0))
        health.configure(ledger=sys.argv[1])

        @health.destructive("destroy", subject="session", requires=())
        def destroy(session):
            if session == "s2":
                os.kill(os.getpid(), signal.SIGKILL)

        destroy("s1")
        destroy("s2")
        """,
        path,
        code=-signal.SIGKILL,
    )
    assert outcomes(path) == ["intent", "done", "intent"]
    for _ in range(2):
        Safehold("next", clock=clock).configure(ledger=path)
        last = lines(path)[-1]
        assert outcomes(path) == ["intent", "done", "intent", "unknown"]
        assert (last["subject"], last["intent"]) == ("s2", lines(path)[2]["seq"])


# --- secrets ------------------------------------------------------------------------------------------


def test_no_credentials(
    gate_form: Form, durable: Safehold, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What an exception says may hold a password: neither the file, nor memory, nor the log repeats it."""
    secret = "hunter2"
    errors: list[Exception] = [
        ConnectionError(f"cannot reach redis://ops:{secret}@db:6379/0"),
        ValueError(f"password={secret}"),
        OSError(errno.ECONNREFUSED, f"refused by https://u:{secret}@host"),
    ]

    def act(*_: Any) -> None:
        raise errors[0]

    destroy = gate_form.gate(durable, "destroy", act)
    while errors:
        with pytest.raises(type(errors[0])):
            destroy()
        errors.pop(0)
    assert secret not in path.read_text()
    assert secret not in repr(durable.ledger.entries())
    assert secret not in caplog.text
    assert outcomes(path) == ["intent", "unknown", "intent", "failed", "intent", "unknown"]


def test_a_forced_act_is_written_with_its_grant(durable: Safehold, path: Path) -> None:
    """Who, why and over which rules, durably, before it runs."""
    seen: list[dict[str, Any]] = []
    destroy = durable.destructive("destroy")(lambda: seen.extend(lines(path)))
    grant = durable.grant(operation="destroy", actor="ada", reason="INC-12", overrides=FORCED)
    make_open(durable["redis"])
    durable.force(grant, destroy)
    noted, intent = (line for line in seen if line["outcome"] != "blocked")
    assert (noted["outcome"], noted["actor"], noted["why"]) == ("noted", "ada", "INC-12")
    assert (intent["outcome"], intent["actor"], intent["grant"]) == ("intent", "ada", grant.id)
    assert set(intent["reasons"]) == set(FORCED)
