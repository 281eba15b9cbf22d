"""A guarded session of requests is the session that it was, and a response may be read in any way."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
import requests_unixsocket
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import HTTPDigestAuth
from urllib3 import Retry

from safehold import (
    Backoff,
    BreakerPolicy,
    BreakerState,
    ConfigurationError,
    Dependency,
    DependencyUnhealthy,
    HealthState,
    Outcome,
    Safehold,
)
from safehold._runtime.classify import judge
from safehold.callsites.requests import RequestsUnhealthy, classify, guard_session, unguard_session
from safehold.testing.clock import ManualClock
from safehold.testing.proxy import FaultProxy
from safehold.testing.servers import ApiServer

from .scripts import Guest, Scripted
from .support import COOLDOWN, PATIENCE, Watch, descriptors, last, raises, since

pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed <socket\.socket fd=\d+, family=\d:ResourceWarning")

NEVER = BreakerPolicy(failures=None, failure_rate=None)
POLICY = BreakerPolicy(
    failures=2, failure_rate=None, cooldown=Backoff(first=COOLDOWN, factor=1.0, cap=COOLDOWN, jitter=0.0)
)
BIG = b"0123456789abcde\n" * 20_000


@pytest.fixture(scope="module", autouse=True)
def nothing_for_others() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def dependency(health: Safehold) -> Dependency:
    return health.dependency("api", critical=True, policy=POLICY)


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    routes: dict[str, Any] = {
        "GET /": lambda _: (200, {}),
        "GET /x": lambda _: (200, {"a": 1}),
        "HEAD /x": lambda _: (200, {"a": 1}),
        "POST /x": lambda request: (201, request.body),
        "GET /204": lambda _: (204, {}),
        "GET /503": lambda _: (503, {}),
        "GET /empty": lambda _: (200, b""),
        "GET /big": lambda _: (200, BIG),
    }
    with ApiServer(routes) as api, FaultProxy(f"unix:{api.path}") as proxy:
        yield proxy


class Api:
    """A guarded session and the URL of what it talks to."""

    def __init__(self, session: requests.Session, where: Any) -> None:
        self.session = session
        self.base = f"http://127.0.0.1:{where}" if isinstance(where, int) else unix(where)

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(self.base + path, **{"timeout": PATIENCE, **options})


def unix(path: Any) -> str:
    return "http+unix://" + quote(str(path), safe="")


@pytest.fixture
def api(proxy: FaultProxy, dependency: Dependency) -> Iterator[Api]:
    with requests_unixsocket.Session() as session:
        yield Api(guard_session(session, dependency), proxy.path)


def make_open(dependency: Dependency) -> None:
    dependency.trip()
    assert dependency.breaker is BreakerState.OPEN


# --- the session that it was --------------------------------------------------------------------------


def test_guarded_session_is_the_session_that_it_was(api: Api, dependency: Dependency) -> None:
    """The same object, of its own class by name and nature; every style of call counts as one."""
    assert isinstance(api.session, requests_unixsocket.Session)
    assert type(api.session).__name__ == "Session"
    assert api.get("/x").json() == {"a": 1}
    assert api.session.post(api.base + "/x", json={"b": 2}, timeout=1).json() == {"b": 2}
    assert api.session.request("GET", api.base + "/x", timeout=1).status_code == 200
    request = api.session.prepare_request(requests.Request("GET", api.base + "/x"))
    assert api.session.send(request, timeout=1).status_code == 200
    report = dependency.status()
    assert (report.state, report.successes, report.failures) == (HealthState.HEALTHY, 4, 0)


def test_session_and_response_can_be_pickled(api: Api) -> None:
    """What guards them stays behind: elsewhere they are plain."""
    response = pickle.loads(pickle.dumps(api.get("/x")))
    assert type(response) is requests.Response
    assert response.json() == {"a": 1}
    plain = guard_session(requests.Session(), api.session._safehold.dependency)
    assert type(pickle.loads(pickle.dumps(plain))) is requests.Session


@pytest.mark.parametrize("thing", [None, "http://api", requests.Session, 1.5], ids=repr)
def test_what_is_no_session_is_turned_away(dependency: Dependency, thing: Any) -> None:
    """The mistake is told where it is made."""
    with pytest.raises(ConfigurationError, match="session"):
        guard_session(thing, dependency)


@pytest.mark.parametrize("url", ["api", "http:", 1])
def test_base_url_that_is_none_is_turned_away(dependency: Dependency, url: Any) -> None:
    """A URL without a host leads nowhere."""
    with pytest.raises(ConfigurationError, match="base_url"):
        guard_session(requests.Session(), dependency, base_url=url)


def test_session_of_another_dependency_is_turned_away(api: Api, health: Safehold) -> None:
    """One session stands for one dependency."""
    with pytest.raises(ConfigurationError, match=r"api.*other"):
        guard_session(api.session, health["other"])


def test_refusal_is_both_errors_and_never_reaches_the_wire(
    api: Api, dependency: Dependency, proxy: FaultProxy
) -> None:
    """While open, requests raise a `requests.ConnectionError` that is a `DependencyUnhealthy`."""
    api.get("/x")
    make_open(dependency)
    mark = last(proxy)
    error: Any = raises(requests.ConnectionError, lambda: api.get("/x"))
    assert type(error) is RequestsUnhealthy
    assert isinstance(error, DependencyUnhealthy)
    assert (error.reason, error.retry_after, error.outcome) == ("breaker_open", COOLDOWN, "not_executed")
    assert error.request.url == api.base + "/x"
    assert error.response is None
    assert since(proxy, mark) == []


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_refusal_can_be_copied_and_pickled(
    api: Api, dependency: Dependency, copied: Callable[[Any], Any]
) -> None:
    """A refusal crosses processes with everything that it says, and stays of both kinds."""
    make_open(dependency)
    error: Any = raises(RequestsUnhealthy, lambda: api.get("/x"))
    twin = copied(error)
    assert type(twin) is RequestsUnhealthy
    for name in ("dependency", "state", "reason", "retry_after", "since", "cause"):
        assert getattr(twin, name) == getattr(error, name)
    assert str(twin) == str(error)


# --- the response, however it is read -----------------------------------------------------------------

WAYS: dict[str, Callable[[requests.Response], bytes]] = {
    "content": lambda r: r.content,
    "text": lambda r: r.text.encode(),
    "iter_content": lambda r: b"".join(r.iter_content(1000)),
    "iter": lambda r: b"".join(r),
    "iter_lines": lambda r: b"".join(line + b"\n" for line in r.iter_lines()),
    "raw.read": lambda r: r.raw.read(),
    "raw.read(n)": lambda r: b"".join(iter(lambda: r.raw.read(1000), b"")),
    "raw.stream": lambda r: b"".join(r.raw.stream(1000)),
    "raw lines": lambda r: b"".join(r.raw),
    "readinto": lambda r: io.BufferedReader(r.raw).read(),
    "data": lambda r: r.raw.data,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chunked", [False, True])
def test_streamed_response_is_answered_when_it_was_read(
    dependency: Dependency, health: Safehold, tmp_path: Path, way: str, chunked: bool
) -> None:
    """Until the last byte the call is in flight, however it is read; with it, it was answered."""
    health.destructive("reap", requires=["api"])(lambda: None)

    def script(guest: Guest) -> None:
        if chunked:
            body = b"".join(b"%x\r\n%b\r\n" % (len(BIG) // 4, BIG[:80_000]) for _ in range(4))
            guest.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n")
        else:
            guest.answer(body=BIG)

    with Scripted(tmp_path / "s", script) as server, requests_unixsocket.Session() as session:
        api = Api(guard_session(session, dependency), server.where)
        api.get("/x")
        with health.scope("work") as scope:
            response = api.get("/big", stream=True)
            assert dependency.status().successes == 1
            assert "call_in_flight" in {reason.code for reason in health.check("reap").reasons}
            assert WAYS[way](response) == BIG
            assert dependency.status().successes == 2
            response.close()
            assert not scope.tainted


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chunked", [False, True])
def test_streamed_response_that_breaks_counts_once(
    dependency: Dependency, health: Safehold, tmp_path: Path, way: str, chunked: bool
) -> None:
    """The part that arrived does not make up for the part that did not, however it is read."""

    def script(guest: Guest) -> bool:
        if chunked:
            guest.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n100\r\n" + BIG[:200])
        else:
            guest.say(b"HTTP/1.1 200 OK\r\nContent-Length: 320000\r\n\r\n" + BIG[:5000])
        return False

    with Scripted(tmp_path / "s", script) as server, requests_unixsocket.Session() as session:
        api = Api(guard_session(session, dependency), server.where)
        with health.scope("work") as scope:
            response = api.get("/big", stream=True)
            with pytest.raises((requests.RequestException, urllib3.exceptions.HTTPError)) as caught:
                WAYS[way](response)
            response.close()
            assert scope.tainted
    assert dependency.status().failures == 1
    assert caught.value.outcome == "executed"


def test_stream_that_was_closed_early_is_abandoned(
    api: Api, dependency: Dependency, health: Safehold
) -> None:
    """Half a listing is no listing: leaving it is no failure, but a miss."""
    api.get("/x")
    with health.scope("work") as scope:
        with api.get("/big", stream=True) as response:
            next(response.iter_lines())
        assert scope.tainted
    report = dependency.status()
    assert (report.failures, report.successes, report.state) == (0, 1, HealthState.DEGRADED)


@pytest.mark.parametrize(
    ("method", "path"), [("HEAD", "/x"), ("GET", "/204"), ("GET", "/empty"), ("HEAD", "/404")]
)
def test_answer_without_a_body_is_complete_with_its_head(
    api: Api, dependency: Dependency, health: Safehold, method: str, path: str
) -> None:
    """Nothing is waited for where nothing comes, also if nobody reads it."""
    with health.scope("work") as scope:
        response = api.session.request(method, api.base + path, stream=True, timeout=PATIENCE)
        assert dependency.status().successes == 1
        response.close()
        assert not scope.tainted
    assert dependency.state is HealthState.HEALTHY


def test_adapter_without_a_network_is_guarded_too(dependency: Dependency) -> None:
    """A stub that gives responses whole is answered with its head, and its errors count."""

    class Stub(requests.adapters.BaseAdapter):
        def send(self, request: Any, *args: Any, **options: Any) -> requests.Response:
            if request.url.endswith("/broken"):
                raise requests.ConnectionError(request=request)
            response = requests.Response()
            response.status_code, response.url, response.request = 200, request.url, request
            response.raw = io.BytesIO(b"stub")
            return response

        def close(self) -> None:
            pass

    with requests.Session() as session:
        session.mount("stub://", Stub())
        guard_session(session, dependency)
        assert session.get("stub://api/x").content == b"stub"
        assert dependency.status().successes == 1
        raises(requests.ConnectionError, lambda: session.get("stub://api/broken"))
    assert dependency.status().failures == 1


def test_adapters_stay_within_reach(api: Api) -> None:
    """Outside a call, `get_adapter` gives the session's own."""
    adapter = api.session.get_adapter(api.base)
    assert isinstance(adapter, requests_unixsocket.UnixAdapter)
    assert adapter in api.session.adapters.values()


def test_answer_to_a_challenge_is_a_call_of_its_own(dependency: Dependency) -> None:
    """What authentication sends past the session is guarded as well."""

    def script(guest: Guest) -> None:
        if b"Authorization: Digest" in guest.heard:
            guest.answer("503 No")
        else:
            guest.answer("401 No", WWW_Authenticate='Digest realm="r", nonce="n", qop="auth"')

    with Scripted(None, script) as server, requests.Session() as session:
        session.auth = HTTPDigestAuth("user", "word")
        response = Api(guard_session(session, dependency), server.where).get("/x")
        assert response.status_code == 503
        assert len(server.heard) == 2
    assert dependency.status().failures == 1


def test_answers_that_urllib3_tries_again_by_itself_count(dependency: Dependency) -> None:
    """A retry policy hides server faults from the caller, not from the breaker; the breaker ends it."""
    with Scripted(None, lambda guest: guest.answer("503 No")) as server, requests.Session() as session:
        retries = Retry(9, status_forcelist=[503], backoff_factor=0)
        session.mount("http://", HTTPAdapter(max_retries=retries))
        api = Api(guard_session(session, dependency), server.where)
        raises(requests.RequestException, lambda: api.get("/x"))
        assert len(server.heard) == 2
    report = dependency.status()
    assert (report.failures, report.breaker) == (2, BreakerState.OPEN)


def test_attempt_that_succeeds_in_the_end_was_no_miss(health: Safehold) -> None:
    """Attempts count for the trip rule, and the call was answered."""
    dependency = health.dependency("patient", policy=NEVER)

    def script(guest: Guest) -> None:
        guest.answer("200 OK" if len(guest.server.heard) > 2 else "503 No")

    with Scripted(None, script) as server, requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=Retry(9, status_forcelist=[503], backoff_factor=0)))
        with health.scope("work") as scope:
            assert Api(guard_session(session, dependency), server.where).get("/x").status_code == 200
            assert not scope.tainted
    report = dependency.status()
    assert (report.failures, report.successes, report.unresolved_miss) == (2, 1, False)


def test_attempt_after_one_that_was_lost_begins_anew(health: Safehold) -> None:
    """What the first one has met, and how long it took, is not held against the second one."""
    dependency = health.dependency("patient", policy=NEVER)

    def script(guest: Guest) -> bool | None:
        guest.server.closing.wait(0.2)
        return len(guest.server.heard) > 2 and guest.answer()

    with Scripted(None, script) as server, requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=Retry(9, backoff_factor=0)))
        api = Api(guard_session(session, dependency), server.where)
        assert api.get("/x", timeout=0.5).content == b"ok"
    report = dependency.status()
    assert (report.failures, report.successes, report.unresolved_miss) == (2, 1, False)


# --- what it means ------------------------------------------------------------------------------------

MEANING: dict[str, tuple[Exception, Outcome, bool]] = {
    "refused": (requests.ConnectionError("no"), Outcome.FAILURE, True),
    "slow": (requests.ReadTimeout("slow"), Outcome.FAILURE, True),
    "slow to connect": (requests.ConnectTimeout("slow"), Outcome.FAILURE, True),
    "cut": (requests.exceptions.ChunkedEncodingError("cut"), Outcome.FAILURE, True),
    "proxy": (requests.exceptions.ProxyError("502"), Outcome.FAILURE, True),
    "broken header": (requests.exceptions.InvalidHeader("two lengths"), Outcome.FAILURE, True),
    "endless": (requests.TooManyRedirects("31"), Outcome.IGNORED, True),
    "scheme": (requests.exceptions.InvalidSchema("ftp"), Outcome.IGNORED, False),
    "bad url": (requests.exceptions.InvalidURL("no"), Outcome.IGNORED, False),
    "no certificates": (
        OSError("Could not find a suitable TLS CA certificate bundle"),
        Outcome.IGNORED,
        False,
    ),
    "argument": (ValueError("Invalid timeout"), Outcome.IGNORED, False),
}


@pytest.mark.parametrize("name", MEANING)
def test_meaning_of_each_error(name: str) -> None:
    """Failures of the line count, the caller's own mistakes do not."""
    error, outcome, missed = MEANING[name]
    judgement = judge(error, classify)
    assert (judgement.outcome, judgement.missed) == (outcome, missed)


# --- the default probe --------------------------------------------------------------------------------


def test_probe_learns_from_the_first_request_where_to_ask(
    dependency: Dependency, watch: Watch, health: Safehold, tmp_path: Path
) -> None:
    """A session has no address of its own: until it is known there is no probe, and then there is."""
    with Scripted(tmp_path / "s", lambda guest: guest.answer()) as server:
        with requests_unixsocket.Session() as session:
            api = Api(guard_session(session, dependency, probe_path="health"), server.where)
            assert not dependency.status().probed
            make_open(dependency)
            raises(RequestsUnhealthy, lambda: api.get("/v1/x"))
            assert dependency.status().probed
            health.start()
            health_clock(health).advance(COOLDOWN)
            watch.until_closed(dependency)
            assert [heard.split(b" HTTP")[0] for heard in server.heard] == [b"GET /v1/x/health"]


def health_clock(health: Safehold) -> ManualClock:
    clock: Any = health._engine.clock
    return clock


def test_probe_of_a_session_with_an_adapter_that_cannot_be_made_anew(
    dependency: Dependency, watch: Watch
) -> None:
    """An adapter that needs something to be made is asked itself."""

    class Needy(HTTPAdapter):
        def __init__(self, need: str) -> None:
            super().__init__()

    with Scripted(None, lambda guest: guest.answer()) as server, requests.Session() as session:
        session.mount("http://", Needy("something"))
        guard_session(session, dependency, base_url=f"http://127.0.0.1:{server.where}")
        assert watch.probe(dependency) is HealthState.HEALTHY
        assert Api(session, server.where).get("/x").status_code == 200


# --- what is left behind ------------------------------------------------------------------------------


def test_faulted_calls_leave_nothing_open(proxy: FaultProxy, health: Safehold) -> None:
    """Neither a connection nor a descriptor is lost, whatever ends the calls."""
    dependency = health.dependency("leaky", policy=NEVER)
    with requests_unixsocket.Session() as session:
        api = Api(guard_session(session, dependency), proxy.path)
        api.get("/x")
        gc.collect()
        before = descriptors()
        injections = [
            lambda: proxy.reset(),
            lambda: proxy.cut(after=30),
            lambda: proxy.half_close(),
            lambda: proxy.drop_reply(how="close"),
            lambda: proxy.refuse(),
        ]
        for index in range(60):
            injections[index % len(injections)]()
            with contextlib.suppress(requests.RequestException):
                api.get("/x")
            if index % 3 == 0:
                proxy.clear()
                assert api.get("/x").json() == {"a": 1}
        proxy.clear()
        api.get("/x")
        gc.collect()
        assert len(proxy.connections) <= 1
        assert descriptors() <= before + 1


def test_unguarding_twice_does_no_harm(api: Api) -> None:
    """Nothing happens to a session that is not guarded."""
    assert unguard_session(unguard_session(api.session)) is api.session
    assert type(api.session) is requests_unixsocket.Session
