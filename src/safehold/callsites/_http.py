"""What every HTTP client has in common: the taxonomy, the answers that are none, and Retry-After.

The rows and what they mean are here, once; a client's module only says by which of its exceptions each
condition is recognised, so that the same trouble gets the same verdict through every client.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

from .._core.breaker import Cause, Outcome
from .._runtime.classify import Judgement
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

FAULTS: Final = frozenset({500, 502, 503, 504})
"""Answers that say the server cannot serve; the response reaches the caller all the same."""
PROBE_TIMEOUT: Final = 0.5
"""Seconds that a default probe waits in each step."""
LONGEST_PAUSE: Final = 3600.0
"""Seconds: the longest Retry-After that is believed."""

Test = Callable[[BaseException], bool]


class Marks(NamedTuple):
    """By which exceptions of a client each condition is recognised."""

    pool_full: Test
    mistake: Test
    not_http: Test
    connect_timeout: Test
    timeout: Test


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
            Row("not HTTP at all", marks.not_http, down("not_http", "no HTTP answer")),
            Row("no connection in time", marks.connect_timeout, down("timeout"), Sent.NO),
            Row("no answer in time", marks.timeout, down("timeout")),
            Row("closed or reset before the answer", lambda _: True, down("lost")),
        )
    )


OWN_POOL_FULL: Final = unanswered("overloaded", "the client's own pool is full")
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
    Row(
        "its accept queue is full (`EAGAIN`; `ENOTCONN` and `EINVAL` through asyncio)",
        lambda error: has_errno(error, {errno.EAGAIN, errno.ENOTCONN, errno.EINVAL}),
        down("overloaded", "its accept queue is full"),
        Sent.NO,
    ),
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

STATUS_ROWS: Final = (
    ("429, or 503 with Retry-After", "back-pressure: a pause, no failure"),
    ("500, 502, 503, 504", "counts as a failure; the response reaches the caller"),
    ("any other status", "an answer"),
)


class ServerFaultError(Exception):
    """The server answered that it cannot serve. Seen by the breaker only."""


def judge_status(status: int, retry_after: str | None, wall: float) -> Judgement | None:
    """Say what an answer's status means; `None` for an answer like any other.

    `retry_after` is the header, `wall` the Unix time now.
    """
    seconds = parse_retry_after(retry_after, wall)
    if status == 429 or (status == 503 and seconds is not None):
        cause = Cause("shedding", f"answered {status}")
        return Judgement(Outcome.IGNORED, missed=True, cause=cause, pause=seconds)
    if status in FAULTS:
        return down("server_fault", f"answered {status}")
    return None


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
