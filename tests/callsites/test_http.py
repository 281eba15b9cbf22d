"""How guarded HTTP clients behave, all alike: kept connections, redirects, long calls, hooks, probes, and their ends."""

from __future__ import annotations

import contextlib
import errno
import gc
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from safehold import (
    Backoff,
    BreakerPolicy,
    BreakerState,
    ConfigurationError,
    Dependency,
    HealthState,
    Outcome,
    Safehold,
)
from safehold._runtime.classify import Judgement
from safehold.callsites import _http
from safehold.callsites import requests as on_requests
from safehold.callsites._exchange import Exchange
from safehold.callsites._guarding import Guard, Meaning
from safehold.callsites._http import long_calls
from safehold.testing.clock import ManualClock

from .clients import DRIVERS, Driver, RequestsDriver
from .scripts import Guest, Scripted
from .support import COOLDOWN, PATIENCE, Watch

pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed <socket\.socket fd=\d+, family=\d:ResourceWarning")

NEVER = BreakerPolicy(failures=None, failure_rate=None)
PROMPT = BreakerPolicy(
    failures=2, failure_rate=None, cooldown=Backoff(first=COOLDOWN, factor=1.0, cap=COOLDOWN, jitter=0.0)
)
BIG = b"x" * 500_000
Drive = Callable[..., Driver]


@pytest.fixture(scope="module", autouse=True)
def nothing_for_others() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def dependency(health: Safehold) -> Dependency:
    return health.dependency("api", critical=True, policy=NEVER)


@pytest.fixture
def prompt(health: Safehold) -> Dependency:
    """Two failures in a row trip, 10 s cooldown."""
    return health.dependency("prompt", critical=True, policy=PROMPT)


@pytest.fixture(params=DRIVERS)
def drive(request: pytest.FixtureRequest, dependency: Dependency) -> Iterator[Drive]:
    """Make guarded clients."""
    with contextlib.ExitStack() as stack:

        def drive(where: Path | int, of: Dependency = dependency, **options: Any) -> Driver:
            driver = DRIVERS[request.param](where, of, **options)
            stack.callback(driver.close)
            return driver

        yield drive


def answer(guest: Guest) -> None:
    guest.answer()


def in_flight(health: Safehold) -> bool:
    return any(reason.code == "call_in_flight" for reason in health.check("look").reasons)


@pytest.fixture
def look(health: Safehold, dependency: Dependency) -> None:
    health.destructive("look", requires=[dependency.name])(lambda: None)


# --- kept connections ---------------------------------------------------------------------------------


def second_one_dies(guest: Guest) -> bool | None:
    """Answer the first request of a connection, and close it on the second one."""
    if guest.number > 1:
        return False
    return guest.answer()


def test_kept_connection_that_was_closed_is_excused_once_in_a_row(
    drive: Drive, dependency: Dependency, health: Safehold
) -> None:
    """It is no failure, but a miss; the next one counts, unless something has answered in between."""
    with Scripted(None, second_one_dies) as server:
        driver = drive(server.where)
        for _ in range(2):
            assert driver.call().status == 200
            assert not dependency.status().unresolved_miss
            with health.scope("work") as scope:
                with pytest.raises(driver.error) as caught:
                    driver.call()
                assert scope.tainted
            assert caught.value.outcome == "unknown"
            report = dependency.status()
            assert (report.failures, report.unresolved_miss) == (0, True)
            assert report.cause == "a kept connection was closed"


def test_second_kept_connection_in_a_row_counts(drive: Drive, dependency: Dependency) -> None:
    """One may have been closed while nobody looked; two are a server that closes connections."""
    both = threading.Barrier(2)

    def script(guest: Guest) -> bool | None:
        if guest.number == 1:
            return guest.answer(body=BIG)
        if isinstance(driver, RequestsDriver):  # urllib3 makes a new one after one that died: die together
            both.wait(PATIENCE)
        return False

    def dies() -> None:
        with pytest.raises(driver.error):
            driver.call()

    with Scripted(None, script) as server:
        driver = drive(server.where)
        held = [driver.stream() for _ in range(2)]
        for parts in held:
            next(parts)
        for parts in held:
            assert list(parts)
        if isinstance(driver, RequestsDriver):
            threads = [threading.Thread(target=dies) for _ in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
        else:
            dies()
            assert dependency.status().failures == 0
            dies()
        assert dependency.status().failures == 1
        assert server.accepted == 2


def test_new_connection_is_not_excused(drive: Drive, dependency: Dependency, tmp_path: Path) -> None:
    """A server that closes what was just opened is not well."""
    with Scripted(tmp_path / "s", lambda _: False) as server:
        with pytest.raises(drive(server.where).error):
            drive(server.where).call()
    assert dependency.status().failures == 1


def test_kept_connection_that_breaks_in_the_answer_is_not_excused(
    drive: Drive, dependency: Dependency
) -> None:
    """Whoever has begun to answer has had the request."""

    def script(guest: Guest) -> bool | None:
        if guest.number == 1:
            return guest.answer()
        guest.say(b"HTTP/1.1 200 OK\r\nContent-Len")
        return False

    with Scripted(None, script) as server:
        driver = drive(server.where)
        if not driver.sees_half_a_head:
            pytest.skip("it cannot be told from no answer at all")
        driver.call()
        with pytest.raises(driver.error):
            driver.call()
    assert dependency.status().failures == 1


def test_trial_that_met_a_closed_connection_decides_nothing(
    drive: Drive, prompt: Dependency, clock: ManualClock
) -> None:
    """The permit is back, and the next request is the trial."""
    with Scripted(None, second_one_dies) as server:
        driver = drive(server.where, prompt)
        driver.call()
        prompt.trip()
        clock.advance(COOLDOWN)
        with pytest.raises(driver.error):
            driver.call()
        assert prompt.breaker is BreakerState.HALF_OPEN
        assert driver.call().status == 200
        assert prompt.breaker is BreakerState.CLOSED


# --- several exchanges in one call --------------------------------------------------------------------


def test_hop_that_fails_counts(drive: Drive, dependency: Dependency, health: Safehold) -> None:
    """Each request of a redirected call is judged; the first one has answered."""

    def script(guest: Guest) -> bool | None:
        if guest.path == "/end":
            return False
        return guest.answer("302 Found", Location="/end", Connection="close")

    with Scripted(None, script) as server, health.scope("work") as scope:
        driver = drive(server.where)
        with pytest.raises(driver.error):
            driver.call()
        assert scope.tainted
    report = dependency.status()
    assert (report.successes, report.failures) == (1, 1)


def test_endless_redirects_are_a_miss_and_no_failure(
    drive: Drive, dependency: Dependency, health: Safehold
) -> None:
    """The server answers each time, but the call never gets an answer."""
    with Scripted(None, lambda guest: guest.answer("302 Found", Location="/again")) as server:
        driver = drive(server.where)
        with health.scope("work") as scope:
            with pytest.raises(driver.error) as caught:
                driver.call()
            assert scope.tainted
    assert type(caught.value).__name__ == "TooManyRedirects"
    report = dependency.status()
    assert report.failures == 0
    assert report.unresolved_miss
    assert caught.value.outcome == "executed"


def test_redirect_to_where_nobody_can_go_is_a_miss(
    drive: Drive, dependency: Dependency, health: Safehold
) -> None:
    """It is a mistake, but none of the caller's."""
    with Scripted(None, lambda guest: guest.answer("302 Found", Location="ftp://api/x")) as server:
        driver = drive(server.where)
        with health.scope("work") as scope:
            with pytest.raises(driver.error):
                driver.call()
            assert scope.tainted
    assert dependency.status().failures == 0


def test_body_that_cannot_be_decoded_counts(drive: Drive, dependency: Dependency) -> None:
    """A complete body that is not what its head says is a broken answer."""
    with Scripted(None, lambda guest: guest.answer(body=b"no gzip", Content_Encoding="gzip")) as server:
        driver = drive(server.where)
        with pytest.raises(driver.error) as caught:
            driver.call()
    report = dependency.status()
    assert (report.failures, report.unresolved_miss) == (1, True)
    assert caught.value.outcome == "executed"


def test_hidden_attempts_count_and_end_with_the_breaker(
    drive: Drive, prompt: Dependency, tmp_path: Path
) -> None:
    """A client's own attempts to connect are attempts: two of them trip, and the other eight are not made."""
    (tmp_path / "s").write_text("no socket")
    driver = drive(tmp_path / "s", prompt, retries=9)
    with pytest.raises(driver.error) as caught:
        driver.call()
    assert not isinstance(caught.value, driver.refusal)
    assert caught.value.outcome == "not_executed"
    report = prompt.status()
    assert (report.failures, report.breaker) == (2, BreakerState.OPEN)


@pytest.mark.parametrize("nobody", ["path", "port"])
def test_trial_fails_with_its_first_attempt(
    drive: Drive, prompt: Dependency, clock: ManualClock, tmp_path: Path, nobody: str
) -> None:
    """A client that tries again by itself does not get to: the trial has failed, and a new cooldown begins."""
    (tmp_path / "s").write_text("no socket")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    driver = drive(tmp_path / "s" if nobody == "path" else port, prompt, retries=2)
    prompt.trip()
    for failures in (1, 2):
        clock.advance(COOLDOWN)
        with pytest.raises(driver.error) as caught:
            driver.call()
        assert not isinstance(caught.value, driver.refusal)
        report = prompt.status()
        assert (report.breaker, report.failures) == (BreakerState.OPEN, failures)
        assert report.retry_after == COOLDOWN
        with pytest.raises(driver.refusal):
            driver.call()


def test_one_failure_that_passes_two_guards_counts_once(
    drive: Drive, dependency: Dependency, tmp_path: Path
) -> None:
    """A guarded function that uses a guarded client has one failure, whatever the client makes of it."""

    def script(guest: Guest) -> bool:
        guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        return False

    with Scripted(tmp_path / "s", script) as server:
        driver = drive(server.where)
        with pytest.raises(driver.error):
            dependency.guard(lambda: driver.call())()
        with pytest.raises(driver.error):
            dependency.guard(lambda: list(driver.stream()))()
    assert dependency.status().failures == 2


def test_what_the_caller_was_handling_has_no_part_in_it(
    drive: Drive, dependency: Dependency, tmp_path: Path
) -> None:
    """A file that was missed before the call does not make it one that was not sent."""
    with Scripted(tmp_path / "s", lambda _: False) as server:
        driver = drive(server.where)
        try:
            (tmp_path / "none").read_text()
        except FileNotFoundError:
            with pytest.raises(driver.error) as caught:
                driver.call()
    assert FileNotFoundError in {type(link) for link in _links(caught.value)}  # it is told all the same
    assert caught.value.outcome == "unknown"
    assert "no such file" not in dependency.status().cause


def test_trouble_of_the_system_after_the_request_was_sent_is_no_proof(dependency: Dependency) -> None:
    """What says "nothing was sent" before a connection stands, says no such thing once bytes have left."""
    meaning = Meaning(_http.Marks(*[_http.never] * 5), on_requests.RequestsUnhealthy, own=(OSError,))
    for sent, outcome in ((False, "not_executed"), (True, "unknown")):
        exchange = Exchange(Guard(dependency, meaning), "POST", wired=True)
        exchange.sent = sent
        error: Any = PermissionError(errno.EPERM, "a firewall")
        exchange.failed(error)
        assert error.outcome == outcome


def _links(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


# --- long calls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", ["client", "block"])
def test_silence_of_a_long_call_is_no_failure(
    drive: Drive, dependency: Dependency, health: Safehold, tmp_path: Path, declared: str
) -> None:
    """It waits by nature: its time-out says nothing, and what else the client does is judged as ever."""
    with Scripted(tmp_path / "s", Guest.hang) as server:
        driver = drive(server.where, timeout=0.1, long=declared == "client")
        with health.scope("work") as scope:
            with long_calls() if declared == "block" else contextlib.nullcontext():
                with pytest.raises(driver.error):
                    driver.call()
            assert not scope.tainted
        assert not dependency.status().unresolved_miss
        if declared == "block":
            with pytest.raises(driver.error):
                driver.call()
    assert dependency.status().failures == (declared == "block")


def test_long_call_is_not_waited_for(
    drive: Drive, dependency: Dependency, health: Safehold, tmp_path: Path, look: None
) -> None:
    """The gate does not wait for the end of what has none."""
    started, go = threading.Event(), threading.Event()
    answered: list[int] = []

    def script(guest: Guest) -> None:
        if guest.path == "/long":
            started.set()
            go.wait(PATIENCE)
        guest.answer()

    with Scripted(tmp_path / "s", script) as server:
        driver = drive(server.where)
        with health.scope("work"):
            from contextvars import copy_context

            context = copy_context()

            def wait() -> None:
                with long_calls():
                    answered.append(driver.call("/long").status)

            thread = threading.Thread(target=lambda: context.run(wait))
            thread.start()
            assert started.wait(PATIENCE)
            assert not in_flight(health)
            go.set()
            thread.join(PATIENCE)
    assert answered == [200]


EVENT = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"9\r\ndata: 1\n\n\r\n"
)


def events(guest: Guest) -> None:
    guest.say(EVENT)
    guest.hang()


def test_event_stream_is_answered_by_its_head(
    drive: Drive, dependency: Dependency, health: Safehold, tmp_path: Path, look: None
) -> None:
    """Nobody waits for its end, leaving it is no miss, and a trial that is one has recovered."""
    with Scripted(tmp_path / "s", events) as server:
        driver = drive(server.where)
        with health.scope("work") as scope:
            parts = driver.stream()
            assert b"data: 1" in next(parts)
            assert dependency.status().successes == 1
            assert not in_flight(health)
            parts.close()
            assert not scope.tainted
    assert dependency.state is HealthState.HEALTHY


def test_silence_of_an_event_stream_is_no_failure_but_its_break_is(
    drive: Drive, dependency: Dependency, tmp_path: Path
) -> None:
    """Whoever says nothing is quiet; whoever hangs up in the middle is not well."""

    def script(guest: Guest) -> bool:
        guest.say(EVENT)
        if guest.path == "/quiet":
            guest.hang()
        return False

    with Scripted(tmp_path / "s", script) as server:
        driver = drive(server.where, timeout=0.15)
        with pytest.raises(driver.error):
            list(driver.stream("/quiet"))
        report = dependency.status()
        assert (report.failures, report.unresolved_miss) == (0, False)
        with pytest.raises(driver.error):
            list(driver.stream("/break"))
    report = dependency.status()
    assert (report.failures, report.unresolved_miss, report.successes) == (1, True, 2)


def test_long_call_has_no_limits_but_the_clients_own(
    drive: Drive, dependency: Dependency, tmp_path: Path
) -> None:
    """A drip is what it is for."""

    def script(guest: Guest) -> None:
        guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n")
        guest.drip(b"x" * 12, 0.015)

    with Scripted(tmp_path / "s", script) as server:
        driver = drive(server.where, deadline=0.1, timeout=0.2)
        with long_calls():
            assert driver.call() == (200, b"x" * 12)
        with pytest.raises(driver.error):
            driver.call()


# --- ends ---------------------------------------------------------------------------------------------


def test_response_that_was_dropped_gives_its_permit_back(
    drive: Drive, prompt: Dependency, clock: ManualClock, tmp_path: Path
) -> None:
    """Never read, never closed: when it is collected, the next request may be the trial."""
    with Scripted(tmp_path / "s", lambda guest: guest.answer(body=BIG)) as server:
        driver = drive(server.where, prompt)
        prompt.trip()
        clock.advance(COOLDOWN)
        response = driver.open()
        with pytest.raises(driver.refusal):
            driver.call()
        del response
        gc.collect()
        assert prompt.breaker is BreakerState.HALF_OPEN
        assert driver.call().status == 200
        assert prompt.breaker is BreakerState.CLOSED


def test_body_without_a_length_ends_with_its_connection(
    drive: Drive, dependency: Dependency, health: Safehold, tmp_path: Path
) -> None:
    """In HTTP/1.0 the end of the connection is the end of the body."""

    def script(guest: Guest) -> bool:
        guest.say(b"HTTP/1.0 200 OK\r\n\r\nall of it")
        return False

    with Scripted(tmp_path / "s", script) as server, health.scope("work") as scope:
        assert drive(server.where).call() == (200, b"all of it")
        assert b"".join(drive(server.where).stream()) == b"all of it"
        assert not scope.tainted
    assert dependency.status().successes == 2


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
def test_hook_that_raises_has_seen_the_answer(
    drive: Drive, dependency: Dependency, health: Safehold, tmp_path: Path, look: None, status: str
) -> None:
    """What a hook makes of an answer is the caller's business: no failure, no miss, nothing in flight."""

    def hook(response: Any) -> None:
        raise LookupError(response.status_code)

    with (
        Scripted(tmp_path / "s", lambda guest: guest.answer(status)) as server,
        health.scope("work") as scope,
    ):
        driver = drive(server.where)
        driver.hooked(hook)
        with pytest.raises(LookupError):
            driver.call()
        assert not in_flight(health)
        assert not scope.tainted
    report = dependency.status()
    assert (report.failures, report.successes, report.unresolved_miss) == (0, 1, False)


def test_hook_that_asks_for_a_good_status_has_seen_the_answer(
    drive: Drive, dependency: Dependency, tmp_path: Path
) -> None:
    """`raise_for_status` in a hook raises one of the client's own errors, and is still the caller's."""
    with Scripted(tmp_path / "s", lambda guest: guest.answer("404 Not Found")) as server:
        driver = drive(server.where)
        driver.hooked(lambda response: response.raise_for_status())
        with pytest.raises(Exception, match="404"):
            driver.call()
    report = dependency.status()
    assert (report.failures, report.successes, report.unresolved_miss) == (0, 1, False)


def test_threads_may_share_a_client(drive: Drive, dependency: Dependency) -> None:
    """Each call is counted once, whoever makes it."""
    with Scripted(None, answer) as server:
        driver = drive(server.where)
        if hasattr(driver, "runner"):
            pytest.skip("an asyncio client belongs to its loop")
        failed: list[BaseException] = []

        def work() -> None:
            try:
                for _ in range(10):
                    assert driver.call() == (200, b"ok")
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert failed == []
    report = dependency.status()
    assert (report.successes, report.failures, report.unresolved_miss) == (60, 0, False)


def test_call_leaves_nothing_to_collect(drive: Drive, tmp_path: Path) -> None:
    """What a call has made is gone with it: a busy service does not wait for the garbage collector."""
    with Scripted(tmp_path / "s", answer) as server:
        driver = drive(server.where)
        if driver.in_cycles:
            pytest.skip("its responses are cycles by themselves")
        gc.collect()
        gc.disable()
        try:
            before = exchanges()
            for _ in range(3):
                driver.call()
            left = [exchange for exchange in exchanges() if exchange not in before]
        finally:
            gc.enable()
    assert left == []


def exchanges() -> list[Exchange]:
    return [thing for thing in gc.get_objects() if isinstance(thing, Exchange)]


# --- guards -------------------------------------------------------------------------------------------


def test_guarding_twice_is_one_guard_and_the_later_settings_count(
    drive: Drive, dependency: Dependency, tmp_path: Path
) -> None:
    """One call is one success, and a deadline that is set later holds."""
    with Scripted(
        tmp_path / "s", lambda guest: guest.hang() if guest.path == "/hang" else guest.answer()
    ) as server:
        driver = drive(server.where)
        assert driver.again(dependency, deadline=0.1) is driver.client
        assert driver.call().status == 200
        assert dependency.status().successes == 1
        with pytest.raises(driver.error):
            driver.call("/hang")


def test_unguarded_client_is_as_it_was(
    drive: Drive, dependency: Dependency, health: Safehold, tmp_path: Path
) -> None:
    """It asks no breaker and counts nothing, connections that it kept included; once more does no harm."""
    with Scripted(tmp_path / "s", answer) as server:
        driver = drive(server.where)
        driver.call()
        guarded = type(driver.client)
        driver.unguard()
        driver.unguard()
        assert type(driver.client) is guarded.__mro__[1]
        dependency.trip()
        assert driver.call().status == 200
        assert server.accepted == 1
        assert dependency.status().refusals == 0
        dependency.reset()
        driver.again(health["other"])
        assert driver.call().status == 200
        assert health["other"].status().successes == 1
    assert dependency.status().successes == 1


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("deadline", 0),
        ("deadline", "soon"),
        ("deadline", float("inf")),
        ("long", 1),
        ("probe_path", None),
        ("dependency", "api"),
    ],
)
def test_wrong_argument_is_named(
    drive: Drive, dependency: Dependency, tmp_path: Path, argument: str, value: Any
) -> None:
    """The mistake is told where it is made, and changes nothing."""
    driver = drive(tmp_path / "s")
    settings = {"dependency": dependency, argument: value}
    with pytest.raises(ConfigurationError, match=argument):
        driver.again(settings.pop("dependency"), **settings)


def test_clients_of_all_kinds_share_a_dependency(
    health: Safehold, dependency: Dependency, tmp_path: Path
) -> None:
    """Each is judged by its own table, whoever came first."""
    with contextlib.ExitStack() as stack, Scripted(tmp_path / "s", lambda _: False) as server:
        drivers = [make(server.where, dependency) for make in DRIVERS.values()]
        for driver in drivers:
            stack.callback(driver.close)
        for count, driver in enumerate(drivers, 1):
            with pytest.raises(driver.error):
                driver.call()
            assert dependency.status().failures == count
            with pytest.raises((driver.error, ValueError)):
                driver.call("ftp://api/")
            assert dependency.status().failures == count


def test_declared_classifier_goes_first(drive: Drive, health: Safehold, tmp_path: Path) -> None:
    """What a declaration says of exceptions holds for answers, too; a pause is kept whatever it says."""
    seen: list[Exception] = []
    dependency = health.dependency("own", policy=NEVER, classify=lambda error: seen.append(error))
    with Scripted(
        tmp_path / "s",
        lambda guest: guest.path != "/" or guest.answer("503 No", Retry_After="7"),
    ) as server:
        driver = drive(server.where, dependency)
        driver.call()
        assert [type(error) for error in seen] == [_http.ServerFaultError]
        assert dependency.status().failures == 0
        assert dependency.status().paused == pytest.approx(7)


@pytest.mark.parametrize("module", ["aiohttp", "httpx", "httpx2", "requests"])
def test_missing_package_is_named_with_its_extra(module: str) -> None:
    """Whoever has not installed the client is told how to."""
    code = f"import sys; sys.modules[{module!r}] = None; import safehold.callsites.{module}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert (
        f'ImportError: safehold.callsites.{module} needs {module}: pip install "safehold[{module}]"'
        in done.stderr
    )


# --- probes -------------------------------------------------------------------------------------------


def quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("_httpx_like", "_requests_calls", "_aiohttp_calls"):
        monkeypatch.setattr(f"safehold.callsites.{module}.PROBE_TIMEOUT", 0.1)


def test_default_probe_goes_where_the_client_goes(
    drive: Drive, dependency: Dependency, watch: Watch, tmp_path: Path
) -> None:
    """Over the same socket, on a connection of its own, and closed afterwards."""
    with Scripted(tmp_path / "s", answer) as server:
        drive(server.where, probe_path="/health")
        assert watch.probe(dependency) is HealthState.HEALTHY
        assert [heard.split(b"\r\n")[0] for heard in server.heard] == [b"GET /health HTTP/1.1"]
        assert server.accepted == 1


def test_default_probe_goes_through_the_clients_proxy(
    drive: Drive, dependency: Dependency, watch: Watch
) -> None:
    """What is reached through a proxy is probed through it."""
    with Scripted(None, answer) as server:
        driver = drive(9, proxy=f"http://127.0.0.1:{server.where}", probe_path="/health")
        assert watch.probe(dependency) is HealthState.HEALTHY
        assert server.heard[0].startswith(b"GET http://127.0.0.1:9/health ")
        assert driver.call("/x").status == 200
        assert server.heard[1].startswith(b"GET http://127.0.0.1:9/x ")
    assert dependency.status().successes == 2


def test_default_probe_needs_no_place_in_the_clients_pool(
    drive: Drive, dependency: Dependency, watch: Watch
) -> None:
    """A client that is busy with all the connections that it may have does not keep the probe out."""
    with Scripted(None, lambda guest: guest.answer(body=BIG if guest.path == "/big" else b"")) as server:
        held = drive(server.where, pool=1).stream("/big")
        next(held)
        assert watch.probe(dependency) is HealthState.HEALTHY
        held.close()


@pytest.mark.parametrize("status", ["503 No", "429 Too Many Requests"])
def test_probe_that_is_asked_to_wait_waits(
    drive: Drive, dependency: Dependency, watch: Watch, tmp_path: Path, status: str
) -> None:
    """A probe's answer sets the pause that it asks for, as any other answer does."""
    with Scripted(tmp_path / "s", lambda guest: guest.answer(status, Retry_After="30")) as server:
        driver = drive(server.where)
        watch.probe(dependency)
        watch.until(lambda: dependency.status().paused > 0)
        with pytest.raises(driver.refusal):
            driver.call()
        assert len(server.heard) == 1


@pytest.mark.parametrize("status", ["503 No", "429 Too Many Requests"])
@pytest.mark.parametrize("says", [None, True, Judgement(Outcome.FAILURE, missed=True, pause=30.0)])
def test_probe_that_is_asked_to_wait_is_no_failure_whatever_was_declared(
    drive: Drive, health: Safehold, watch: Watch, tmp_path: Path, status: str, says: Any
) -> None:
    """A declared classifier speaks of calls; its probe is the call site's own."""
    dependency = health.dependency("own", critical=True, policy=PROMPT, classify=lambda error: says)
    with Scripted(tmp_path / "s", lambda guest: guest.answer(status, Retry_After="30")) as server:
        drive(server.where, dependency)
        assert watch.probe(dependency) is HealthState.DEGRADED
    report = dependency.status()
    assert (report.failures, report.paused) == (0, pytest.approx(30))


def no_answer_in_time(guest: Guest) -> None:
    guest.hang()


def half_a_head(guest: Guest) -> bool:
    guest.say(b"HTTP/1.1 200 OK\r\nContent-Le")
    return False


def no_http(guest: Guest) -> bool:
    guest.say(b"220 mail.example.org ESMTP\r\n\r\n")
    return False


@pytest.mark.parametrize(
    ("script", "failures"),
    [
        (no_answer_in_time, 1),
        (half_a_head, 1),
        (no_http, 1),
        (lambda _: False, 1),
        (lambda guest: guest.answer("500 Oh"), 1),
        (lambda guest: guest.answer("503 No"), 1),
        (lambda guest: guest.answer("429 Too Many Requests"), 0),
    ],
    ids=["silence", "half a head", "not HTTP", "closed", "500", "503", "429"],
)
def test_probe_takes_only_an_answer_for_one(
    drive: Drive,
    dependency: Dependency,
    watch: Watch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: Any,
    failures: int,
) -> None:
    """Neither a connection nor half an answer resolves a miss, nor one that asks to be left alone."""
    quick_probes(monkeypatch)
    with Scripted(tmp_path / "s", script) as server:
        drive(server.where)
        assert watch.probe(dependency) is HealthState.DEGRADED
    report = dependency.status()
    assert (report.failures, report.successes, report.unresolved_miss) == (failures, 0, True)


def test_probe_is_not_held_by_a_drip(
    drive: Drive, dependency: Dependency, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that comes byte by byte is no answer to a probe either."""
    quick_probes(monkeypatch)
    hung = threading.Event()

    def script(guest: Guest) -> None:
        try:
            guest.drip(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000, 0.02)
        except OSError:
            hung.set()

    with Scripted(tmp_path / "s", script) as server:
        drive(server.where)
        assert watch.probe(dependency) is HealthState.DEGRADED
        assert hung.wait(PATIENCE)
    assert "timed out" in dependency.status().cause
