"""The log tells the story once: complete, in few lines, with counts that add up, and without secrets."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safehold import (
    Backoff,
    BreakerPolicy,
    ConfigurationError,
    Dependency,
    GatePolicy,
    LogPolicy,
    OperationBlocked,
    Safehold,
    Transition,
)
from safehold._runtime import log
from safehold._runtime.redact import LONGEST, redact
from safehold.testing.clock import ManualClock

from .support import COOLDOWN, POLICY, answer, fail, is_refused, make_healthy, make_open, python, succeed


class Lines(logging.Handler):
    """Keeps the records of the logger `safehold`."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, *kinds: str) -> list[Any]:
        return [record for record in self.records if record.kind in kinds]

    @property
    def texts(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger("safehold")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def told_transitions(lines: Lines) -> Counter[str]:
    """Count the transitions that the lines tell, by the health after them."""
    told: Counter[str] = Counter()
    for record in lines.records:
        if record.kind == "dependency.flapping":
            assert record.transitions == sum(record.states.values())
            told.update(record.states)
        elif record.kind.startswith("dependency.") and record.kind != "dependency.refused":
            told[record.health] += 1
    return told


def told_refusals(lines: Lines) -> int:
    return sum(record.refused for record in lines.records if hasattr(record, "refused"))


# --- one line per transition --------------------------------------------------------------------------


def test_the_way_out_of_an_outage_is_always_told(lines: Lines, redis: Dependency, clock: ManualClock) -> None:
    """unhealthy, recovering and healthy each have their line, with all that there is to know."""
    make_healthy(redis)
    clock.advance(12)
    fail(redis, 2)
    clock.advance(3)
    fail(redis)
    assert [is_refused(redis) for _ in range(7)] == [True] * 7
    clock.advance(COOLDOWN)
    succeed(redis)
    clock.advance(60)
    succeed(redis)
    redis.status()
    assert lines.texts == [
        "redis is healthy (was unknown): a call was answered",
        "redis is degraded (was healthy for 12 s): Down",
        "redis is unhealthy (was degraded for 3 s), breaker open: Down; 3 failures in a row; next look in 10 s",
        "redis is recovering (was unhealthy for 10 s), breaker half_open: the cooldown is over, one trial is "
        "let through; 7 calls refused; next look in 10 s",
        "redis is recovering (was recovering), breaker closed: the trial answered",
        "redis is healthy (was recovering for 60 s): answers, and quiet for the settle time",
    ]
    opened = lines.records[2]
    fields = {name: getattr(opened, name) for name in log.KINDS["dependency.unhealthy"].fields}
    assert fields == {
        "dependency": "redis",
        "health": "unhealthy",
        "health_before": "degraded",
        "breaker": "open",
        "breaker_before": "closed",
        "held": False,
        "cause": "Down",
        "cause_text": "Down",
        "failures": 3,
        "failure_rate": None,
        "retry_after": COOLDOWN,
        "next_probe": None,
        "generation": opened.generation,
        "level": 1,
        "lasted": 3.0,
        "refused": 0,
    }
    assert [record.levelname for record in lines.records] == [
        "INFO",
        "WARNING",
        "ERROR",
        "WARNING",
        "WARNING",
        "INFO",
    ]


def test_the_rate_that_tripped_and_the_next_probe_are_told(lines: Lines, health: Safehold) -> None:
    """Where a rate is judged it is told; where a probe is planned, so is when."""
    policy = BreakerPolicy(failures=None, min_calls=10, cooldown=Backoff(first=4.0, jitter=0.0))
    dependency = health.dependency("rated", policy=policy, probe=answer)
    for index in range(10):
        (fail if index % 2 else succeed)(dependency)
    (opened,) = lines.of("dependency.unhealthy")
    assert (opened.failure_rate, opened.failures, opened.next_probe) == (0.5, 1, 4.0)
    assert [record.failures for record in lines.of("dependency.healthy")[1:]] == [0, 0, 0]
    assert "50% of the calls failed; next look in 4 s" in opened.getMessage()


def test_a_hold_is_no_failure(lines: Lines, redis: Dependency) -> None:
    """What a person did is told with the person's reason, not with failures of former times."""
    fail(redis, 2)
    redis.hold("upgrade")
    (held,) = lines.of("dependency.unhealthy")
    assert held.getMessage().endswith("breaker open: upgrade; 2 failures in a row; held until released")
    redis.reset()
    succeed(redis)
    redis.hold("upgrade")
    assert lines.records[-1].failures == 0
    assert lines.texts[-1].endswith("breaker open: upgrade; held until released")


# --- flapping -----------------------------------------------------------------------------------------


def flip(redis: Dependency, clock: ManualClock, times: int, pause: float) -> None:
    for index in range(times):
        (succeed if index % 2 else fail)(redis)
        clock.advance(pause)


def test_a_flapping_dependency_has_few_lines(
    lines: Lines, health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """200 flips in a minute: a few lines, whose counts add up to what listeners heard, last state included."""
    heard: list[Any] = []
    health.subscribe(heard.append)
    flip(redis, clock, 200, 0.3)
    health.flush()
    assert len(heard) == 200
    assert len(lines.records) == 9
    assert told_transitions(lines) == Counter(str(event.after) for event in heard)
    summary = lines.records[-1]
    assert (summary.kind, summary.health, summary.transitions) == ("dependency.flapping", "healthy", 192)
    assert summary.getMessage() == (
        "redis is flapping: 192 transitions in 57.3 s (96 x degraded, 96 x healthy), now healthy, level 0: "
        "a call was answered"
    )


def test_flapping_that_goes_on_has_fewer_lines_still(
    lines: Lines, health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """An hour of it costs three lines a minute; a quiet window later, the story is told in full again."""
    heard: list[Any] = []
    health.subscribe(heard.append)
    flip(redis, clock, 3600, 1.0)
    assert len(lines.records) < 60 * 3 + 8
    clock.advance(120)
    health.status()
    assert told_transitions(lines) == Counter(str(event.after) for event in heard)
    before = len(lines.records)
    flip(redis, clock, 6, 1.0)
    assert len(lines.records) == before + 6


@pytest.mark.parametrize("occasion", ["event", "look", "failing call", "prober", "flush", "other event"])
def test_a_summary_comes_without_a_thread_of_its_own(
    lines: Lines, health: Safehold, redis: Dependency, api: Dependency, clock: ManualClock, occasion: str
) -> None:
    """Whatever happens next once the window is over brings the summary, and nothing brings it earlier."""
    api.hold("elsewhere")
    for index in range(21):
        (succeed if index % 2 else fail)(redis)
    assert lines.of("dependency.flapping") == []
    clock.advance(59.9)
    redis.status()
    assert lines.of("dependency.flapping") == []
    clock.advance(0.1)
    match occasion:
        case "event":
            succeed(redis)
        case "look":
            assert api.held
            _ = api.state
        case "failing call":
            fail(redis)
        case "prober":
            from safehold._runtime.prober import Prober

            Prober(health._engine, lambda: health).round()
        case "flush":
            health.flush()
        case "other event":
            api.release()
    (summary,) = lines.of("dependency.flapping")
    assert (summary.transitions, summary.health) == (13, "degraded")


def test_the_prober_wakes_for_a_summary(health: Safehold, redis: Dependency) -> None:
    """Where a prober runs, nobody has to look: its next round is no later than what is put off."""
    from safehold._runtime.prober import Prober

    prober = Prober(health._engine, lambda: health)
    assert prober.round() is None
    for index in range(21):
        (succeed if index % 2 else fail)(redis)
    assert prober.round() == 60.0


def test_an_outage_is_not_put_off(lines: Lines, redis: Dependency, clock: ManualClock) -> None:
    """An outage that begins while it flaps is told at once, and so is the way out of it."""
    flip(redis, clock, 20, 0.1)
    fail(redis, 3)
    assert [record.kind for record in lines.records[8:]] == ["dependency.flapping", "dependency.unhealthy"]
    assert lines.records[8].health == "degraded"
    clock.advance(COOLDOWN)
    succeed(redis)
    assert lines.records[10].health == "recovering"
    redis.reset()
    succeed(redis)
    clock.advance(600)
    make_healthy(redis)
    clock.advance(60)
    flip(redis, clock, 20, 0.1)
    before = len(lines.records)
    redis.trip()
    assert [record.health for record in lines.records[before:]][-1] == "unhealthy", "in each window"


def test_a_summary_is_as_severe_as_where_it_ended(
    lines: Lines, health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """A summary that ends in an outage is an error, not a warning."""
    health.configure(log=LogPolicy(lines=1))
    for _ in range(4):
        redis.trip()
        clock.advance(1)
        redis.reset()
    redis.trip()
    clock.advance(3)
    health.flush()
    summary = lines.records[-1]
    assert (summary.levelname, summary.kind, summary.health) == ("ERROR", "dependency.flapping", "unhealthy")
    assert "now unhealthy, level 1: tripped by hand; next look in 7 s" in summary.getMessage()
    health.configure(log=LogPolicy(lines=1, severity={"dependency.flapping": "critical"}))
    redis.reset()
    redis.trip()
    health.flush()
    assert lines.records[-1].levelname == "CRITICAL"


def test_dependencies_flap_by_themselves(lines: Lines, redis: Dependency, api: Dependency) -> None:
    """One that flaps takes no lines from another."""
    for index in range(50):
        (succeed if index % 2 else fail)(redis)
    succeed(api)
    assert lines.records[-1].dependency == "api"


def test_the_last_state_is_told_at_the_end_of_the_process() -> None:
    """A process that ends while something is put off tells it."""
    told = python(
        """
        import logging, sys
        from safehold import BreakerPolicy, Safehold
        logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
        policy = BreakerPolicy(failures=None, failure_rate=None)
        redis = Safehold("ends").dependency("redis", policy=policy)
        for index in range(21):
            redis.report("success" if index % 2 else "failure")
        """
    )
    assert len(told.splitlines()) == 9
    assert told.splitlines()[-1].startswith("redis is flapping: 13 transitions in ")
    assert "now degraded" in told


# --- what is counted ----------------------------------------------------------------------------------


def test_a_thousand_refusals_in_an_outage_are_a_handful_of_lines(
    lines: Lines, redis: Dependency, clock: ManualClock
) -> None:
    """Refused calls are counted, and the counts add up to what the breaker has refused."""
    make_healthy(redis)
    make_open(redis)
    redis.hold("a long one")
    for _ in range(1000):
        assert is_refused(redis)
        clock.advance(0.2)
        _ = redis.state
    redis.release()
    clock.advance(COOLDOWN)
    succeed(redis)
    assert len(lines.records) < 12
    assert told_refusals(lines) == redis.status().refusals == 1000
    counts = lines.of("dependency.refused")
    assert [round(record.refused, -1) for record in counts] == [300, 300, 300]
    assert counts[0].getMessage() == f"redis is unhealthy: {counts[0].refused} calls refused in 60 s"


def test_who_is_not_refused_is_not_counted(lines: Lines, redis: Dependency, clock: ManualClock) -> None:
    """An outage in which nobody calls says nothing of refused calls, nor does one that is over."""
    redis.hold("quiet")
    clock.advance(600)
    redis.status()
    redis.reset()
    clock.advance(600)
    redis.status()
    assert lines.of("dependency.refused") == []
    assert redis._engine.diary.due == math.inf, "nobody has to wake for it any more"


def test_a_transition_counts_by_itself(lines: Lines, redis: Dependency, clock: ManualClock) -> None:
    """Where a transition's line tells what was refused, no line of its own comes before it."""
    redis.hold("a short one")
    assert is_refused(redis)
    clock.advance(60)
    redis.release()
    assert lines.of("dependency.refused") == []
    assert lines.records[-1].refused == 1


def test_repeated_blocks_that_stop_are_told_too(lines: Lines, health: Safehold, clock: ManualClock) -> None:
    """What was left out is told when the window ends, also if no further block comes."""
    health.dependency("redis", critical=True, policy=POLICY)
    destroy = health.destructive("log.rest")(answer)
    for _ in range(5):
        with pytest.raises(OperationBlocked):
            destroy()
    clock.advance(60)
    health.status()
    blocks = lines.of("operation.blocked")
    assert len(blocks) + sum(record.suppressed for record in blocks) == 5
    assert len(blocks) == 2


def test_forced_acts_are_told(lines: Lines, health: Safehold, redis: Dependency) -> None:
    """Who acted in spite of what, and what became of it, is a line."""
    end = health.destructive("log.forced", subject="session")(lambda session: session)
    grant = health.grant(
        operation="log.forced",
        subjects=["s1"],
        actor="ops@example.org",
        reason="stuck, INC-12",
        overrides=["dependency_unknown"],
    )
    health.force(grant, end, "s1")
    (forced,) = lines.of("operation.forced")
    assert forced.getMessage() == (
        "log.forced was forced by ops@example.org (stuck, INC-12), in spite of dependency_unknown: done"
    )
    assert (forced.grant, forced.overridden) == (grant.id, ["dependency_unknown"])


# --- secrets ------------------------------------------------------------------------------------------

SECRET = st.text("abcXYZ0189-_.~!$*+%", min_size=8, max_size=30).map(lambda text: f"s3cr{text}t")
PLACES = st.sampled_from(
    [
        "redis://user:{0}@redis.internal:6379/0",
        "cannot reach https://:{0}@api/v1?x=1 at all",
        "amqp://a:b@{0}@host/",
        "https://api/v1?access_token={0}&page=2",
        "GET https://api/v1?page=2&api_key={0} failed",
        "Authorization: Bearer {0}",
        "authorization: Basic {0}",
        "{{'Authorization': 'Token {0}', 'Accept': '*/*'}}",
        "Proxy-Authorization: Digest username={0}",
        "sent Bearer {0}, got 401",
        "Set-Cookie: sid={0}; Path=/",
        "password={0}",
        "PASSWORD = '{0}'",
        'config {{"client_secret": "{0}", "id": 4}}',
        "AUTH failed with password: {0}",
        "session_id={0}",
        "Authorization:\r\n Bearer {0}",
    ]
)
HIDDEN_TEXTS = st.builds(lambda place, secret: (place.format(secret), secret), PLACES, SECRET)


def everything(lines: Lines) -> str:
    return "\n".join(f"{record.getMessage()} {record.__dict__}" for record in lines.records)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(HIDDEN_TEXTS)
def test_no_secret_is_ever_told(lines: Lines, told: tuple[str, str]) -> None:
    """Whatever is raised, reported, or given as a reason: passwords, tokens and headers stay out of the log
    and of the timeline."""
    text, secret = told
    lines.records.clear()
    clock = ManualClock()
    health = Safehold("secrets", clock=clock, gate=GatePolicy(startup_grace=0.0))
    redis = health.dependency("redis", critical=True, policy=POLICY)
    destroy = health.destructive("log.secret")(answer)

    def broken(_: object) -> None:
        raise ValueError(text)

    health.subscribe(broken)
    with contextlib.suppress(OSError), redis.permit():
        raise ConnectionError(text) from RuntimeError(text)
    with contextlib.suppress(OperationBlocked):
        destroy()
    redis.report("failure", cause=text)
    redis.report(OSError(text), cause=text)
    redis.hold(text[:200].replace("\r\n", " "))
    grant = health.grant(
        operation="log.secret",
        actor="ops",
        reason=text[:200].replace("\r\n", " "),
        overrides=["dependency_unhealthy", "unresolved_miss", "recent_miss"],
    )
    with contextlib.suppress(OperationBlocked):
        health.force(grant, destroy)
    with contextlib.suppress(OperationBlocked):
        destroy()
    assert len(lines.records) > 8
    assert secret not in everything(lines)
    assert secret not in health.timeline().to_markdown()


@given(HIDDEN_TEXTS, st.text(max_size=50))
def test_redacting_keeps_the_rest_and_one_line(told: tuple[str, str], around: str) -> None:
    """A text stays one printable line, and redacting twice changes nothing that matters."""
    text, secret = told
    redacted = redact(f"{around} {text}")
    assert secret not in redacted
    assert "***" in redacted
    assert len(redacted.splitlines()) <= 1
    assert secret not in redact(redacted)


@pytest.mark.parametrize(
    "text",
    [
        "a call was answered",
        "redis is unhealthy since 00:01:00 UTC (timed out)",
        "upgrade of node 3, see https://wiki.example.org/runbooks/redis?page=2",
        "mail ops@example.org",
        "connection refused by unix:///run/redis.sock",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """Words that help are not taken out."""
    assert redact(text) == text


def test_long_texts_are_cut() -> None:
    """A text has a limit, and what is cut in two does not show its first half."""
    assert len(redact("word " * 10_000)) <= LONGEST
    assert "hunter2" not in redact("password=" + "x" * 1900 + " redis://user:hunter2" + "y" * 4000 + "@host")


# --- severity -----------------------------------------------------------------------------------------


def test_severities_are_configurable(lines: Lines, health: Safehold, redis: Dependency) -> None:
    """Each kind of line has the severity that the application wants, or is left out."""
    health.configure(log=LogPolicy(severity={"dependency.degraded": "info", "dependency.healthy": "off"}))
    succeed(redis)
    fail(redis, 3)
    assert [(record.kind, record.levelname) for record in lines.records] == [
        ("dependency.degraded", "INFO"),
        ("dependency.unhealthy", "ERROR"),
    ]


def test_how_much_is_told_is_configurable(
    lines: Lines, health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """Lines and window are the application's choice."""
    health.configure(log=LogPolicy(lines=2, window=5.0))
    flip(redis, clock, 10, 0.1)
    assert len(lines.records) == 2
    clock.advance(4.0)
    health.status()
    assert (len(lines.records), lines.records[-1].transitions) == (3, 8)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"lines": 0}, "lines"),
        ({"window": 0}, "window"),
        ({"severity": {"dependency.sick": "info"}}, "dependency.sick"),
        ({"severity": {"dependency.healthy": "loud"}}, "loud"),
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any], told: str) -> None:
    """A policy that cannot be is an error that says what is wrong."""
    with pytest.raises(ConfigurationError, match=told):
        LogPolicy(**wrong)


# --- other people's logging ---------------------------------------------------------------------------


def test_plain_logging_gets_the_fields(redis: Dependency, caplog: pytest.LogCaptureFixture) -> None:
    """Under plain logging the message is for people, and the fields are attributes of the record."""
    with caplog.at_level(logging.INFO, "safehold"):
        make_open(redis)
    record: Any = caplog.records[-1]
    assert (record.name, record.kind, record.dependency, record.level) == (
        "safehold",
        "dependency.unhealthy",
        "redis",
        1,
    )
    assert record.getMessage() == record.msg


def test_an_applications_own_processor_formatter(redis: Dependency) -> None:
    """Under structlog's `ProcessorFormatter` a line comes out like the application's own."""
    stream, logger = io.StringIO(), logging.getLogger("safehold")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logger.addHandler(handler)
    try:
        fail(redis)
    finally:
        logger.removeHandler(handler)
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert line["event"] == "redis is degraded (was unknown): Down"
    assert (line["level"], line["kind"], line["dependency"]) == (0, "dependency.degraded", "redis")


def test_structlog_renders_it(redis: Dependency, monkeypatch: pytest.MonkeyPatch) -> None:
    """What reaches the logger is what structlog's own capturing logger sees: text and `extra`."""
    captured = structlog.testing.CapturingLogger()
    monkeypatch.setattr(
        log, "_logger", structlog.wrap_logger(captured, processors=[structlog.stdlib.render_to_log_kwargs])
    )
    fail(redis)
    (call,) = captured.calls
    assert (call.method_name, call.kwargs["msg"]) == ("warning", "redis is degraded (was unknown): Down")
    assert call.kwargs["extra"]["dependency"] == "redis"


def test_nothing_is_configured_and_nothing_written() -> None:
    """A process that configures nothing sees nothing, on stdout or stderr, through outage and refusals."""
    script = """
        import structlog, logging
        before = structlog.get_config(), list(logging.root.handlers)
        from safehold import Refused, Safehold
        home = Safehold("quiet")
        redis = home.dependency("redis", critical=True)
        destroy = home.destructive("quiet.end")(print)
        for index in range(100):
            redis.report("success" if index % 2 else "failure")
        redis.hold("upgrade")
        for call in (redis.guard(print), destroy):
            try:
                call()
            except Refused:
                pass
        home.subscribe(lambda event: 1 / 0)
        redis.release()
        assert (structlog.get_config(), list(logging.root.handlers)) == before
        """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_failing_sink_harms_nobody(lines: Lines, redis: Dependency, clock: ManualClock) -> None:
    """A handler that raises costs its lines; calls, listeners and later lines go on."""
    logger = logging.getLogger("safehold")
    told: list[str] = []

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())
            raise OSError("disk full")

    handler = Broken()
    logger.addHandler(handler)
    try:
        flip(redis, clock, 30, 0.1)
        clock.advance(60)
        redis.status()
        succeed(redis)
    finally:
        logger.removeHandler(handler)
    assert len(told) == 9
    assert "flapping" in told[8]


def test_a_child_tells_its_own_story(
    lines: Lines, health: Safehold, redis: Dependency, api: Dependency
) -> None:
    """What the parent has put off is the parent's to tell, and its refusals are not the child's."""
    for index in range(20):
        (succeed if index % 2 else fail)(api)
    make_open(redis)
    assert is_refused(redis)
    health._reborn()
    assert redis.status().refusals == 0
    before = len(lines.records)
    health.flush()
    assert len(lines.records) == before


def test_every_line_has_its_kind_and_its_fields(
    lines: Lines, health: Safehold, redis: Dependency, clock: ManualClock
) -> None:
    """What a line carries is what the table of kinds says."""
    destroy = health.destructive("log.fields")(answer)
    with pytest.raises(OperationBlocked):
        destroy()
    make_healthy(redis)
    flip(redis, clock, 20, 0.1)
    make_open(redis)
    redis.hold()
    clock.advance(60)
    redis.status()
    assert is_refused(redis)
    clock.advance(60)
    redis.status()
    plain = set(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {"message", "kind"}
    seen = {record.kind: set(record.__dict__) - plain for record in lines.records}
    assert len(seen) >= 4
    for kind, fields in seen.items():
        assert fields == set(log.KINDS[kind].fields), kind
    assert all(isinstance(event.event, Transition) or event.count for event in health.timeline())
