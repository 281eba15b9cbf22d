"""Which data a Redis holds: an epoch function for `health.dependency("redis", epoch=redis_epoch(client))`.

A Redis that came back empty answers correctly, and so does one that somebody has flushed. The first has
another replication id than before; the second has not, so a *canary* tells: a key with a random value that a
person, or first provisioning, writes once. Nobody here ever writes it again. One that came back with an empty
store would bless it.

All is asked in one transaction together with an `ECHO` of a number that nobody else knows, so that the parts
belong to one instant, and a connection that hands on somebody else's answer is found out.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoPermissionError

from .._core.configuration import ConfigurationError, check_name
from .._core.epoch import EpochReading
from .._core.unproven import Unproven

if TYPE_CHECKING:
    import redis
    import redis.asyncio

CANARY: Final = "safehold:canary"
_NOBODY: Final = "0" * 40  # the replication id that stands for none


def redis_epoch(client: redis.Redis, canary: str = CANARY) -> Callable[[], EpochReading]:
    """Give a function that says which data `client` reads: replication id, logical database, canary, run id.

    A failover that goes on where the old primary stopped is explained, one that lost what was seen before is
    not. Another database, a server that came back with other data, and one that came back from a file without
    the old id are other data. A missing canary and a replica are doubtful in themselves. Costs one round trip
    a call; the client may be guarded or not, and is used as it is. Raises what the client raises, `Unproven`
    when this user may not ask (the text says what to allow), and `ConfigurationError` for a cluster client,
    whose nodes have many histories.
    """
    past = _Past(client, canary)

    def epoch() -> EpochReading:
        nonce = secrets.token_hex(8)
        with client.pipeline(transaction=True) as pipeline:
            _queue(pipeline, nonce, canary)
            try:
                replies = pipeline.execute()
            except Exception as error:
                _check_rights(error, canary)
                raise
        return past.reading(replies, nonce)

    return epoch


def aredis_epoch(client: redis.asyncio.Redis, canary: str = CANARY) -> Callable[[], Awaitable[EpochReading]]:
    """Give a coroutine function that says which data an asyncio client reads, as `redis_epoch` does."""
    past = _Past(client, canary)

    async def epoch() -> EpochReading:
        nonce = secrets.token_hex(8)
        async with client.pipeline(transaction=True) as pipeline:
            _queue(pipeline, nonce, canary)
            try:
                replies = await pipeline.execute()
            except Exception as error:
                _check_rights(error, canary)
                raise
        return past.reading(replies, nonce)

    return epoch


def write_canary(client: redis.Redis, key: str = CANARY) -> str:
    """Write the canary, once, when the store is first set up, and give its value.

    Never call it from what a service does at its start: it would bless an empty store. Raises
    `ConfigurationError` when there is one already, and what the client raises.
    """
    value = secrets.token_hex(16)
    return _written(client.set(key, value, nx=True), key, value)


async def awrite_canary(client: redis.asyncio.Redis, key: str = CANARY) -> str:
    """Write the canary with an asyncio client, as `write_canary` does."""
    value = secrets.token_hex(16)
    return _written(await client.set(key, value, nx=True), key, value)


def _written(answer: Any, key: str, value: str) -> str:
    if not answer:
        msg = f"the canary {key!r} is there already, and stays as it is"
        raise ConfigurationError(msg)
    return value


def _queue(pipeline: Any, nonce: str, canary: str) -> None:
    for words in (("ECHO", nonce), ("INFO", "server"), ("INFO", "replication"), ("GET", canary)):
        pipeline.execute_command(*words)


def _check_rights(error: Exception, canary: str) -> None:
    if isinstance(error, NoPermissionError) or isinstance(error.__cause__, NoPermissionError):
        msg = f"not permitted: allow this user +echo +info +get +multi +exec ~{canary}"
        raise Unproven(msg) from error


class _Past:
    """What was seen before, which explains or contradicts what is seen now.

    A history may go on from another one (`master_replid2`) up to an offset. Where we had seen that one
    further on, what followed is lost, and nothing is explained. A primary that had no replica for an hour
    begins a new id by itself, in the same run and without naming the old one.
    """

    def __init__(self, client: Any, canary: str) -> None:
        check_name("canary", canary)
        if hasattr(client, "get_node_from_key") or not hasattr(client, "connection_pool"):
            msg = f"client must be a Redis client of one server, got {type(client).__name__}"
            raise ConfigurationError(msg)
        self._canary = canary
        self._database = client.connection_pool.connection_kwargs.get("db") or 0
        self._offsets: dict[str, int] = {}
        self._former: dict[str, tuple[str, ...]] = {}  # of each history, as it was when it was first seen
        self._last = ("", "")

    def reading(self, replies: Any, nonce: str) -> EpochReading:
        """Take what the transaction gave."""
        echoed, server, replication, canary = replies
        if _text(echoed) != nonce:
            msg = "the answer belongs to another question"
            raise Unproven(msg)
        about = {**_info(server), **_info(replication)}
        try:
            run, history, role = about["run_id"], about["master_replid"], about["role"]
        except KeyError as error:
            msg = f"INFO does not tell {error}: not a Redis that can name its data"
            raise Unproven(msg) from None
        doubts = [f"the canary {self._canary!r} is missing"] if canary is None else []
        if role != "master":
            doubts.append("this is a replica, which is no authority")
        else:
            self._learn(run, history, about)
        return EpochReading(
            lineage=self._lineage(history, canary),
            instance=run,
            former=tuple(self._lineage(name, canary) for name in self._former.get(history, ())),
            doubt="; ".join(doubts),
        )

    def _learn(self, run: str, history: str, about: Mapping[str, str]) -> None:
        older, last = about.get("master_replid2", _NOBODY), self._last
        if history not in self._former:
            known = []
            if older != _NOBODY and self._offsets.get(older, -1) < _number(about.get("second_repl_offset")):
                known.append(older)
            if older == _NOBODY and last[0] == run:
                known.append(last[1])
            self._former[history] = tuple(known)
        seen = _number(about.get("master_repl_offset"))
        self._offsets[history] = max(seen, self._offsets.get(history, -1))
        self._last = run, history

    def _lineage(self, history: str, canary: Any) -> str:
        bird = "none" if canary is None else hashlib.sha256(_text(canary).encode()).hexdigest()[:16]
        return f"{history} db {self._database} canary {bird}"


def _info(reply: Any) -> dict[str, str]:
    """Give what INFO told, which redis-py has made into a mapping unless it was told not to."""
    if isinstance(reply, Mapping):
        return {_text(name): _text(value) for name, value in reply.items()}
    lines = (line.partition(":") for line in _text(reply).splitlines() if ":" in line)
    return {name: value for name, _, value in lines}


def _number(told: str | None) -> int:
    try:
        return int(told or -1)
    except ValueError:
        return -1


def _text(word: Any) -> str:
    return word.decode(errors="backslashreplace") if isinstance(word, bytes) else str(word)
