"""The same trouble gets the same verdict through every HTTP client: one row for each, every client for each row."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from safehold import BreakerPolicy, Dependency, HealthState, Safehold
from safehold.testing.clock import ManualClock

from .clients import DRIVERS, TIMEOUT, Driver
from .scripts import Guest, Scripted, full_backlog

# httpcore and urllib3 leave a socket that could not be connected to the garbage collector
pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed <socket\.socket fd=\d+, family=\d:ResourceWarning")

BIG = b"x" * 100_000
NOBODY = 65534


@pytest.fixture(scope="module", autouse=True)
def nothing_for_others() -> Iterator[None]:
    """Collect those sockets before tests of other modules are blamed for them."""
    yield
    gc.collect()


@pytest.fixture
def dependency(health: Safehold) -> Dependency:
    return health.dependency("api", critical=True, policy=BreakerPolicy(failures=None, failure_rate=None))


@pytest.fixture(params=DRIVERS)
def drive(request: pytest.FixtureRequest, dependency: Dependency) -> Iterator[Callable[..., Driver]]:
    """Make guarded clients."""
    with contextlib.ExitStack() as stack:

        def drive(where: Path | int, **options: Any) -> Driver:
            driver = DRIVERS[request.param](where, dependency, **options)
            stack.callback(driver.close)
            return driver

        yield drive


class Row(NamedTuple):
    """One condition: how to bring it about, and what comes of it. `sent` is the outcome on the error.

    Those that end by the client's time-out are `slow`.
    """

    make: Callable[[Path], Any]
    sent: str
    cause: str
    slow: bool = False


def missing(where: Path) -> Any:
    return contextlib.nullcontext()


def stale(where: Path) -> Any:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(where))
    return contextlib.nullcontext()


def regular(where: Path) -> Any:
    where.write_text("no socket")
    return contextlib.nullcontext()


@contextlib.contextmanager
def forbidden(where: Path) -> Iterator[None]:
    """A socket that this process may not open, if need be by becoming another user."""
    with Scripted(where, lambda guest: guest.answer()):
        where.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(user)


def play(script: Callable[[Guest], Any]) -> Callable[[Path], Any]:
    return lambda where: Scripted(where, script)


def closed(guest: Guest) -> bool:
    guest.close()
    return False


def half_a_head(guest: Guest) -> bool:
    guest.say(b"HTTP/1.1 200 OK\r\nContent-Le")
    guest.close()
    return False


def garbage(guest: Guest) -> bool:
    guest.say(b"220 mail.example.org ESMTP\r\n250 go ahead\r\n\r\n")
    guest.close()
    return False


def cut(guest: Guest) -> bool:
    guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + BIG[:5000])
    guest.close()
    return False


def cut_chunks(guest: Guest) -> bool:
    guest.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n5\r\nab")
    guest.close()
    return False


def reset_body(guest: Guest) -> bool:
    guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + BIG[:5000])
    guest.reset()
    return False


def stalled(guest: Guest) -> None:
    guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it")
    guest.hang()


def reset_at_once(where: Path) -> Any:
    return Scripted(where, lambda _: None, before=lambda guest: guest.line.recv(1) and closed(guest))


ROWS: dict[str, Row] = {
    "missing": Row(missing, "not_executed", "no such file or directory"),
    "stale": Row(stale, "not_executed", "connection refused"),
    "regular file": Row(regular, "not_executed", "connection refused"),
    "permission": Row(forbidden, "not_executed", "no permission to open the socket"),
    "full backlog": Row(full_backlog, "not_executed", "its accept queue is full", slow=True),
    "no answer": Row(play(Guest.hang), "unknown", "timed out", slow=True),
    "closed": Row(play(closed), "unknown", "closed before the answer"),
    "half a head": Row(play(half_a_head), "unknown", "closed before the answer"),
    "reset": Row(reset_at_once, "unknown", "closed before the answer"),
    "not HTTP": Row(play(garbage), "unknown", "no HTTP answer"),
    "cut body": Row(play(cut), "executed", "the body was cut short"),
    "cut chunks": Row(play(cut_chunks), "executed", "the body was cut short"),
    "reset body": Row(play(reset_body), "executed", "the body was cut short"),
    "stalled body": Row(play(stalled), "executed", "the body stalled", slow=True),
}


@pytest.mark.parametrize("name", ROWS)
def test_condition_gets_its_verdict(
    drive: Callable[..., Driver], dependency: Dependency, health: Safehold, tmp_path: Path, name: str
) -> None:
    """The client's own error, with what became of the request; counted as the row says, once."""
    row = ROWS[name]
    where = tmp_path / "s"
    driver = drive(where, timeout=0.1 if row.slow else TIMEOUT)
    with row.make(where), health.scope("work") as scope:
        with pytest.raises(driver.error) as caught:
            driver.call(method="POST", body=b"x")
        assert scope.tainted
    report = dependency.status()
    assert (report.failures, report.unresolved_miss) == (1, True)
    assert caught.value.outcome == row.sent
    notes = getattr(caught.value, "__notes__", [])
    assert [note for note in notes if "unknown, the POST may have been executed" in note] == notes
    assert bool(notes) is (row.sent == "unknown")
    assert report.cause == row.cause


STATUSES = {
    200: (0, False),
    301: (0, False),
    400: (0, False),
    404: (0, False),
    429: (0, True),
    500: (1, True),
    501: (0, False),
    502: (1, True),
    503: (1, True),
    504: (1, True),
    505: (0, False),
}


@pytest.mark.parametrize("status", STATUSES)
def test_status_gets_its_verdict(
    drive: Callable[..., Driver], dependency: Dependency, tmp_path: Path, status: int
) -> None:
    """500, 502, 503 and 504 count, 429 is a miss, the rest are answers; all of them reach the caller."""
    failures, missed = STATUSES[status]
    with Scripted(tmp_path / "s", lambda guest: guest.answer(f"{status} Said So")) as server:
        assert drive(server.where).call() == (status, b"ok")
    report = dependency.status()
    assert (report.failures, report.unresolved_miss) == (failures, missed)
    assert report.paused == 0


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_kept(
    drive: Callable[..., Driver],
    dependency: Dependency,
    clock: ManualClock,
    tmp_path: Path,
    status: int,
    form: str,
) -> None:
    """Who asks to be left alone is no failure, and is left alone for as long, whichever way it is said."""
    from email.utils import formatdate

    said = "30" if form == "seconds" else formatdate(clock.wall() + 30, usegmt=True)
    with Scripted(
        tmp_path / "s",
        lambda guest: (
            guest.answer(f"{status} No", Retry_After=said) if len(guest.server.heard) == 1 else guest.answer()
        ),
    ) as server:
        driver = drive(server.where)
        assert driver.call() == (status, b"ok")
        report = dependency.status()
        assert (report.failures, report.state) == (0, HealthState.DEGRADED)
        assert report.paused == pytest.approx(30, abs=1.1)
        with pytest.raises(driver.refusal) as refused:
            driver.call()
        assert refused.value.reason == "paused"
        assert len(server.heard) == 1
        clock.advance(31)
        assert driver.call() == (200, b"ok")
    assert dependency.state is HealthState.HEALTHY


def test_retry_after_of_no_time_at_all_excuses_nothing(
    drive: Callable[..., Driver], dependency: Dependency, tmp_path: Path
) -> None:
    """A 503 that says: at once, is a 503."""
    with Scripted(tmp_path / "s", lambda guest: guest.answer("503 No", Retry_After="0")) as server:
        drive(server.where).call()
    assert dependency.status().failures == 1


def test_connection_that_never_stood_has_sent_nothing(
    drive: Callable[..., Driver], dependency: Dependency
) -> None:
    """A server that hangs up in the TLS handshake has seen no request."""
    with Scripted(None, lambda _: None, before=lambda guest: guest.line.recv(1) and closed(guest)) as server:
        driver = drive(server.where)
        with pytest.raises(driver.error) as caught:
            driver.call(f"https://127.0.0.1:{server.where}/", method="POST")
    assert caught.value.outcome == "not_executed"
    assert dependency.status().failures == 1


def test_full_pool_is_no_failure_and_a_miss(
    drive: Callable[..., Driver], dependency: Dependency, health: Safehold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool without a free connection says nothing about the server, and nothing was sent."""
    for module in ("_httpx_like", "_requests_wire"):
        monkeypatch.setattr(f"safehold.callsites.{module}.LONGEST_WAIT", 0.05)
    script = lambda guest: guest.answer(body=BIG * 20)  # noqa: E731
    with Scripted(None, script) as server:
        driver = drive(server.where, pool=1, timeout=None)
        held = driver.stream()
        next(held)
        with health.scope("work") as scope:
            with pytest.raises(driver.error) as caught:
                driver.call(method="POST")
            assert scope.tainted
        assert caught.value.outcome == "not_executed"
        assert len(server.heard) == 1
        assert dependency.status().failures == 0
        assert dependency.status().unresolved_miss
        held.close()


@pytest.mark.parametrize("path", ["ftp://api/x", "nowhere://api"])
def test_mistake_of_the_caller_says_nothing(
    drive: Callable[..., Driver], dependency: Dependency, health: Safehold, tmp_path: Path, path: str
) -> None:
    """A URL that cannot be is no miss."""
    with Scripted(tmp_path / "s", lambda guest: guest.answer()) as server, health.scope("work") as scope:
        driver = drive(server.where)
        with pytest.raises((driver.error, ValueError)):
            driver.call(path)
        assert not scope.tainted
    assert dependency.status().failures == 0
    assert not dependency.status().unresolved_miss


def chunked(*parts: Any) -> Iterator[bytes]:
    for part in parts:
        if isinstance(part, Exception):
            raise part
        yield part


@pytest.mark.parametrize(
    "error", [RuntimeError("mine"), OSError(5, "my disk"), ConnectionResetError(104, "mine")]
)
def test_upload_that_fails_is_the_callers_mistake(
    drive: Callable[..., Driver], dependency: Dependency, health: Safehold, tmp_path: Path, error: Exception
) -> None:
    """Whatever a generator raises that is being sent, the server has no part in it."""
    with Scripted(tmp_path / "s", lambda guest: guest.answer()) as server, health.scope("work") as scope:
        driver = drive(server.where)
        assert driver.call(method="POST", body=chunked(b"a", b"b")).status == 200
        with pytest.raises((type(error), driver.error)):
            driver.call(method="POST", body=chunked(b"a", error))
        assert not scope.tainted
    assert dependency.status().failures == 0


def test_upload_that_nobody_takes_counts(
    drive: Callable[..., Driver], dependency: Dependency, tmp_path: Path
) -> None:
    """A server that stops reading is not well, and what became of the request is not known."""
    with Scripted(tmp_path / "s", Guest.hang, before=lambda guest: guest.server.closing.wait(20)) as server:
        driver = drive(server.where, timeout=0.1)
        with pytest.raises(driver.error) as caught:
            driver.call(method="POST", body=BIG * 10)
        server.closing.set()
    assert caught.value.outcome == "unknown"
    assert dependency.status().failures == 1
    assert dependency.status().cause == "timed out"


# --- time ---------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n" + b"X-Filler: " + b"y" * 500 + b"\r\n\r\n"


def test_head_that_drips_ends_in_one_time_out(
    drive: Callable[..., Driver], dependency: Dependency, tmp_path: Path
) -> None:
    """A byte every so often resets each wait, but not their sum."""
    with Scripted(tmp_path / "s", lambda guest: guest.drip(HEAD, 0.02)) as server:
        driver = drive(server.where, timeout=0.15)
        with pytest.raises(driver.error) as caught:
            driver.call()
    assert "timed out" in dependency.status().cause
    assert caught.value.outcome == "unknown"
    assert dependency.status().failures == 1


def test_body_that_drips_ends(
    drive: Callable[..., Driver], dependency: Dependency, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does a body that is no progress."""
    monkeypatch.setattr("safehold.callsites._waits.GRACE", 2)

    def script(guest: Guest) -> None:
        guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n")
        guest.drip(BIG, 0.02)

    with Scripted(tmp_path / "s", script) as server:
        driver = drive(server.where, timeout=0.1)
        with pytest.raises(driver.error) as caught:
            driver.call()
    assert caught.value.outcome == "executed"
    assert dependency.status().cause == "the body stalled"


def test_body_that_makes_progress_may_take_its_time(
    drive: Callable[..., Driver], dependency: Dependency, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many waits, each within the time-out, are no trouble as long as something comes of them."""
    monkeypatch.setattr("safehold.callsites._waits.GRACE", 1)

    def script(guest: Guest) -> None:
        guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: 90000\r\n\r\n")
        for _ in range(10):
            guest.say(BIG[:9000])
            guest.server.closing.wait(0.03)

    with Scripted(tmp_path / "s", script) as server:
        driver = drive(server.where, timeout=0.2)
        assert len(driver.call().body) == 90000
    assert dependency.state is HealthState.HEALTHY


@pytest.mark.parametrize("where", ["head", "body", "redirects"])
def test_deadline_ends_whatever_goes_on(
    drive: Callable[..., Driver], dependency: Dependency, tmp_path: Path, where: str
) -> None:
    """However long the single waits may be, the whole call ends with its deadline, by the client's time-out."""

    def script(guest: Guest) -> None:
        if where == "body":
            guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            guest.drip(BIG, 0.02)
        elif where == "head":
            guest.drip(HEAD, 0.02)
        else:
            guest.server.closing.wait(0.04)
            guest.answer("302 Found", Location=f"{driver.base}/{len(guest.server.heard)}")

    with Scripted(tmp_path / "s", script) as server:
        driver = drive(server.where, timeout=5.0, deadline=0.15)
        with pytest.raises(driver.error) as caught:
            driver.call()
    assert "Timeout" in repr(caught.value) or "timed out" in str(caught.value)
    assert dependency.status().failures == 1


def test_no_wait_is_endless(
    drive: Callable[..., Driver],
    dependency: Dependency,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the client sets no time-out, there is one all the same."""
    monkeypatch.setattr("safehold.callsites._waits.LONGEST_WAIT", 0.1)
    with Scripted(tmp_path / "s", Guest.hang) as server:
        driver = drive(server.where, timeout=None)
        with pytest.raises(driver.error):
            driver.call()
    assert dependency.status().failures == 1


def test_deadline_that_the_caller_has_used_up_is_no_failure(
    drive: Callable[..., Driver], dependency: Dependency, tmp_path: Path
) -> None:
    """Who thinks for too long between two parts of a body has nobody else to blame."""

    def script(guest: Guest) -> None:
        guest.answer(body=BIG * 50)

    with Scripted(tmp_path / "s", script) as server:
        driver = drive(server.where, deadline=0.2)
        parts = driver.stream()
        next(parts)
        threading.Event().wait(0.21)
        with pytest.raises((driver.error, Exception)):
            list(parts)
    assert dependency.status().failures == 0
    assert dependency.status().unresolved_miss
