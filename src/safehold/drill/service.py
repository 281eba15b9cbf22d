"""An ordinary session service with a reaper, and the three lines that protect it.

It is written as such services are: with time-outs, a retry in the client, a log line for each failure,
two looks before anything is removed, and one removal a round. None of that tells "gone" from
"cannot see".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import httpx
import redis

from .. import Safehold
from ..callsites.httpx import guard_client as guard_api
from ..callsites.redis import guard_client as guard_redis

_log = logging.getLogger(__name__)

Listing = Callable[[httpx.Client], Iterator[str]]
Reap = Callable[[str], None]

THREE_LINES: Final = (
    'redis = guard_redis(redis, health["redis"])',
    'api = guard_api(api, health["api_socket"])',
    'reap = health.destructive("session.reap", subject="session_id")(reap)',
)
"""What `protected` does, to be shown; a test compares them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a service is given to work with."""

    redis: redis.Redis
    api: httpx.Client
    reap: Reap


def protected(tools: Tools, health: Safehold) -> Tools:
    """Give the same tools, guarded."""
    redis, api, reap = tools.redis, tools.api, tools.reap
    redis = guard_redis(redis, health["redis"])
    api = guard_api(api, health["api_socket"])
    reap = health.destructive("session.reap", subject="session_id")(reap)
    return Tools(redis=redis, api=api, reap=reap)


class SessionService:
    """Looks after sessions, and removes those that are gone."""

    def __init__(self, tools: Tools, *, listing: Listing, prefix: str, sessions: Iterable[str]) -> None:
        self._tools = tools
        self._listing = listing
        self._prefix = prefix
        self._sessions = set(sessions)
        self._suspects: set[str] = set()
        self.seen = (len(self._sessions), len(self._sessions))  # in the listing, and with a heartbeat

    def sweep(self) -> None:
        """Remove a session that is gone: not listed or not beating, twice in a row, and one at a time."""
        listed, beating = self.listed(), self.beating()
        self.seen = (len(listed), len(beating))
        gone = self._sessions - (listed & beating)
        certain, self._suspects = gone & self._suspects, gone
        for session_id in sorted(certain)[:1]:
            self._tools.reap(session_id)
            self._sessions.discard(session_id)

    def listed(self) -> set[str]:
        """Ask the API which sessions run."""
        listed: set[str] = set()
        try:
            for session_id in self._listing(self._tools.api):
                listed.add(session_id)
        except httpx.HTTPError as error:
            _log.warning("listing the sessions: %r, going on with %d", error, len(listed))
        return listed

    def beating(self) -> set[str]:
        """Ask Redis which sessions have a heartbeat."""
        sessions = sorted(self._sessions)
        try:
            beats = self._tools.redis.mget([self._prefix + session_id for session_id in sessions])
        except redis.RedisError as error:
            _log.warning("reading the heartbeats: %r", error)
            return set()
        return {session_id for session_id, beat in zip(sessions, beats, strict=True) if beat is not None}
