"""What every HTTP client has in common: the taxonomy, the answers that are none, and Retry-After.

The rows and what they mean are here, once; a client's module only says by which of its exceptions each
condition is recognised, so that the same trouble gets the same verdict through every client.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

from .._core.breaker import Cause, Outcome
from .._runtime.classify import Judgement
from .._runtime.dependency import Dependency
from .._runtime.prober import JudgedError
from ._table import (
    NO_PERMISSION,
    NO_SOCKET_THERE,
    NOTHING_SAID,
    OWN_LIMITS,
    Row,
    Sent,
    Table,
    chain,
    down,
    has_errno,
    is_certificate,
    misconfigured,
    unanswered,
)

PROBE_TIMEOUT: Final = 0.5
"""Seconds that a default probe waits in each step."""
LONGEST_PAUSE: Final = 3600.0
"""Seconds: the longest Retry-After that is believed."""

Test = Callable[[BaseException], bool]


def never(error: BaseException) -> bool:
    """Recognise nothing: the mark of a condition that a client has no exception for."""
    del error
    return False


class Marks(NamedTuple):
    """By which exceptions of a client each condition is recognised."""

    pool_full: Test
    mistake: Test
    not_http: Test
    connect_timeout: Test
    timeout: Test
    proxy: Test = never
    redirected: Test = never
    not_decoded: Test = never


def table(marks: Marks) -> Table:
    """Make the classification table of an HTTP client: for everything up to the head of the answer."""
    return Table(
        (
            Row("the client's own pool is full", marks.pool_full, OWN_POOL_FULL, Sent.NO),
            *SOCKET_ROWS,
            Row(
                "the caller's mistake: a URL or a request that cannot be",
                marks.mistake,
                NOTHING_SAID,
                Sent.NO,
            ),
            Row(
                "redirected without end, or to where nobody can go",
                marks.redirected,
                unanswered("redirects", "redirected without end"),
                Sent.YES,
            ),
            Row(
                "the body is not what its encoding says",
                marks.not_decoded,
                down("broken_body", "the body cannot be decoded"),
                Sent.YES,
            ),
            Row("not HTTP at all", marks.not_http, down("not_http", "no HTTP answer")),
            Row(
                "its proxy does not let it through",
                marks.proxy,
                down("proxy", "refused by its proxy"),
                Sent.NO,
            ),
            Row("no connection in time", marks.connect_timeout, down("timeout", "timed out"), Sent.NO),
            Row("no answer in time", marks.timeout, down("timeout", "timed out")),
            Row(
                "closed or reset before the answer", lambda _: True, down("lost", "closed before the answer")
            ),
        )
    )


OWN_POOL_FULL: Final = unanswered("overloaded", "the client's own pool is full")
QUEUE_FULL: Final = Row(
    "its accept queue is full (`EAGAIN`; `ENOTCONN` and `EINVAL` through asyncio)",
    lambda error: has_errno(error, {errno.EAGAIN, errno.ENOTCONN, errno.EINVAL}),
    down("overloaded", "its accept queue is full"),
    Sent.NO,
)
SOCKET_ROWS: Final = (
    Row(
        "this process has no descriptor or memory left for a connection",
        lambda error: has_errno(error, OWN_LIMITS),
        unanswered("overloaded", "this process has no descriptor left"),
        Sent.NO,
    ),
    Row(
        "the socket file is missing (`ENOENT`)",
        lambda error: has_errno(error, {errno.ENOENT}),
        down("missing"),
        Sent.NO,
    ),
    Row(
        "nobody listens: a stale socket file, a regular file, a closed port (`ECONNREFUSED`)",
        lambda error: has_errno(error, {errno.ECONNREFUSED}),
        down("refused"),
        Sent.NO,
    ),
    Row(
        "no permission to open the socket (`EACCES`, `EPERM`)",
        lambda error: has_errno(error, NO_PERMISSION),
        misconfigured("no permission to open the socket"),
        Sent.NO,
    ),
    Row(
        "what the path names can be no socket of this kind (`EPROTOTYPE`, `ENOTSOCK`, too long)",
        lambda error: has_errno(error, NO_SOCKET_THERE),
        misconfigured("the path is no such socket"),
        Sent.NO,
    ),
    QUEUE_FULL,
    Row(
        "its name is not resolved",
        lambda error: any(isinstance(link, socket.gaierror) for link in chain(error)),
        down("no_such_name", "name not resolved"),
        Sent.NO,
    ),
    Row(
        "no way to its host or network",
        lambda error: has_errno(error, {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EADDRNOTAVAIL}),
        down("unreachable"),
        Sent.NO,
    ),
    Row(
        "its TLS certificate is not trusted",
        is_certificate,
        misconfigured("TLS certificate not trusted"),
        Sent.NO,
    ),
)

BODY: Final = Table(
    (
        Row(
            "the body stalls after the head of the answer",
            lambda error: any("Timeout" in type(link).__name__ for link in chain(error)),
            down("stalled_body", "the body stalled"),
            Sent.YES,
        ),
        Row("the body is cut short", lambda _: True, down("cut_body", "the body was cut short"), Sent.YES),
    )
)
"""What it means when the head of the answer came and the body did not come whole."""

SHEDDING: Final = Judgement(Outcome.IGNORED, missed=True, cause=Cause("shedding", "asked to be left alone"))
STALE: Final = unanswered("stale_connection", "a kept connection was closed")
STATUS_ROWS: Final = (
    Row("status 429, or 503 with `Retry-After`: a pause for as long as it says", never, SHEDDING, Sent.NO),
    Row("status 500, 502, 503, 504; the response reaches the caller", never, down("server_fault"), Sent.YES),
    Row("any other status, 404 and 501 included", never, Judgement(Outcome.SUCCESS, missed=False), Sent.YES),
)
"""What answers mean, for people: `judge_status` is their code."""
CONNECTION_ROWS: Final = (
    Row("a kept connection that was closed meanwhile, the first time in a row", never, STALE),
)
"""What a call site knows beside the exception, for people."""


def rows() -> tuple[Row, ...]:
    """Give all that can happen to an HTTP call, for people."""
    return (*STATUS_ROWS, *CONNECTION_ROWS, *table(Marks(*[never] * 5)), *BODY)


def judge_status(status: int, retry_after: str | None, wall: float) -> Judgement | None:
    """Say what an answer's status means; `None` for an answer like any other.

    `retry_after` is the header, `wall` the Unix time now.
    """
    seconds = parse_retry_after(retry_after, wall)
    if status == 429 or (status == 503 and seconds):
        return SHEDDING._replace(cause=Cause("shedding", f"answered {status}"), pause=seconds)
    return down("server_fault", f"answered {status}") if status in FAULTS else None


FAULTS: Final = frozenset({500, 502, 503, 504})
"""Answers that say the server cannot serve; the response reaches the caller all the same."""


class ServerFaultError(JudgedError):
    """The server answered that it cannot serve, or not now. Seen by the breaker and by classifiers only.

    `status` is the answer's, `judgement` what it means, where nobody has declared otherwise.
    """

    def __init__(self, status: int, judgement: Judgement | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.judgement = judgement or down("server_fault", f"answered {status}")


def judge_probe(dependency: Dependency, status: int, headers: Mapping[str, str]) -> None:
    """Raise `ServerFaultError` for an answer that is none: from 500, or one that asks to be left alone."""
    judgement = judge_status(status, headers.get("Retry-After"), dependency._engine.clock.wall())
    if judgement is not None or status >= 500:
        raise ServerFaultError(status, judgement)


def parse_retry_after(value: str | None, wall: float) -> float | None:
    """Read a Retry-After header (seconds, or an HTTP date) as seconds from `wall`; `None` for junk.

    Never negative, and an hour at most.
    """
    if value is None:
        return None
    text = value.strip()
    try:
        seconds = float(text) if text.isascii() and text.isdigit() else _until(text, wall)
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, seconds), LONGEST_PAUSE) if math.isfinite(seconds) else None


def _until(text: str, wall: float) -> float:
    at: datetime = parsedate_to_datetime(text)
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp() - wall


_declared_long: ContextVar[bool] = ContextVar("safehold_long", default=False)
declared_long: Final = _declared_long.get


@contextmanager
def long_calls() -> Generator[None]:
    """Declare the calls that begin in this block long: they wait by nature, such as for the next event.

    The gate does not wait for their end, their silence is no failure, and no limits but the client's own
    are set to them. The head of the answer settles such a call; what breaks later still counts.
    """
    before = _declared_long.set(True)
    try:
        yield
    finally:
        _declared_long.reset(before)
