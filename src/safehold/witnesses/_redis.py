"""Whether a key is there, asked of the primary, and answered to this very question.

One transaction holds `ECHO` of a number that nobody else knows, `ROLE` and `EXISTS`. A connection that has
lost its step, and hands on the answer to somebody else's question, cannot give that number back; a replica,
which may lag by minutes, says that it is one; and both are said at the instant of the look.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from .._core.evidence import ABSENT, PRESENT, Presence
from .._core.unproven import Unproven

if TYPE_CHECKING:
    import redis
    import redis.asyncio


def key(client: redis.Redis, name: str | bytes, *, replica_ok: bool = False) -> Presence:
    """Say whether the primary holds a key; the client may be guarded or not, and is used as it is.

    An answer from a replica is unproven: it may be old. `replica_ok=True` takes it, and does not need the
    right to `ROLE`. A key that is missing is a missing record: whether what it stands for is gone as well is
    for you to say. Asks in one round trip. Raises what the client raises.
    """
    nonce = secrets.token_hex(8)
    try:
        with _pipeline(client) as pipeline:
            for words in _question(nonce, name, replica_ok=replica_ok):
                pipeline.execute_command(*words)
            replies = pipeline.execute()
    except Exception as error:
        _check_rights(error)
        raise
    return _answer(replies, nonce, replica_ok=replica_ok)


async def akey(client: redis.asyncio.Redis, name: str | bytes, *, replica_ok: bool = False) -> Presence:
    """Say whether the primary holds a key, as `key` does, with an asyncio client."""
    nonce = secrets.token_hex(8)
    try:
        async with _pipeline(client) as pipeline:
            for words in _question(nonce, name, replica_ok=replica_ok):
                pipeline.execute_command(*words)
            replies = await pipeline.execute()
    except Exception as error:
        _check_rights(error)
        raise
    return _answer(replies, nonce, replica_ok=replica_ok)


def _pipeline(client: Any) -> Any:
    if hasattr(client, "get_node_from_key"):
        msg = "a cluster client asks many nodes: give a client of the node that holds the key"
        raise Unproven(msg)
    return client.pipeline(transaction=True)


def _question(nonce: str, name: str | bytes, *, replica_ok: bool) -> list[tuple[str | bytes, ...]]:
    role: list[tuple[str | bytes, ...]] = [] if replica_ok else [("ROLE",)]
    return [("ECHO", nonce), *role, ("EXISTS", name)]


def _check_rights(error: Exception) -> None:
    from redis.exceptions import NoPermissionError  # noqa: PLC0415 - loaded with the client that raised it

    if isinstance(error, NoPermissionError):
        msg = "not permitted: allow ECHO, MULTI, EXEC, EXISTS and ROLE; replica_ok=True does without ROLE"
        raise Unproven(msg) from error


def _answer(replies: Any, nonce: str, *, replica_ok: bool) -> Presence:
    echoed, *roles, found = replies
    if _text(echoed) != nonce:
        msg = "the answer belongs to another question"
        raise Unproven(msg, miss=True)
    role = _text(roles[0][0]) if roles else "unasked"
    if not replica_ok and role != "master":
        msg = f"the answer came from a {'replica' if role == 'slave' else role}"
        raise Unproven(msg)
    if type(found) is not int or found not in {0, 1}:
        msg = f"EXISTS gave a {type(found).__name__}, not 0 or 1"
        raise Unproven(msg)
    return PRESENT if found else ABSENT


def _text(reply: object) -> str:
    return reply.decode(errors="replace") if isinstance(reply, bytes) else str(reply)
