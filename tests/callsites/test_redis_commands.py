"""The table of Redis commands: its vocabulary, its order, and a real server's word on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from safehold.callsites import _redis_commands as table
from safehold.testing.servers import RedisServer

READS = """
    PING|ECHO|TIME|INFO|COMMAND|COMMAND DOCS|CONFIG GET|CLIENT LIST|CLIENT ID|CLIENT INFO|SELECT|HELLO|EXISTS|TTL
    SCRIPT EXISTS|SCAN|HSCAN|GET|MGET|EVAL_RO|EVALSHA_RO|FCALL_RO|SUBSCRIBE|PSUBSCRIBE|SSUBSCRIBE|WATCH|UNWATCH
    MULTI|DISCARD|XREAD|SORT_RO|SINTERCARD|WAIT|FT.SEARCH|JSON.GET|TS.RANGE|DIGEST|SENTINEL MASTERS
"""
DESTRUCTIVE = """
    DEL|UNLINK|FLUSHALL|FLUSHDB|SWAPDB|SHUTDOWN|RENAME|RENAMENX|GETDEL|LPOP|RPOP|SPOP|ZPOPMIN|BLPOP|BLMOVE|LMOVE
    RPOPLPUSH|LMPOP|BZMPOP|LTRIM|XTRIM|XDEL|XACKDEL|ZREM|ZREMRANGEBYSCORE|ZREMRANGEBYRANK|ZREMRANGEBYLEX|SREM|HDEL
    LREM|SMOVE|SDIFFSTORE|SINTERSTORE|SUNIONSTORE|ZUNIONSTORE|ZRANGESTORE|GEOSEARCHSTORE|BITOP|EXPIRE|PEXPIRE
    EXPIREAT|PEXPIREAT|HEXPIRE|HPEXPIREAT|HGETDEL|SCRIPT FLUSH|FUNCTION FLUSH|FUNCTION DELETE|CONFIG SET
    CONFIG REWRITE|DEBUG|REPLICAOF|SLAVEOF|FAILOVER|CLUSTER RESET|CLUSTER FLUSHSLOTS|CLUSTER DELSLOTS
    CLUSTER DELSLOTSRANGE|CLUSTER FORGET|ACL DELUSER|ACL LOAD|ACL SETUSER|CLIENT KILL|CLIENT PAUSE|MODULE UNLOAD
    XGROUP DESTROY|XGROUP DELCONSUMER|XCLAIM|XAUTOCLAIM|FT.DROPINDEX|JSON.DEL|TS.DEL|MOVE|MIGRATE|DELEX|DELIFEQ
    SENTINEL REMOVE|SAVE
"""
ORDINARY = (
    "HSET|SADD|LPUSH|ZADD|INCR|APPEND|PUBLISH|PERSIST|SETNX|MSETNX|XACK|XREADGROUP|EVAL|EXEC|CLIENT NO-EVICT"
)
OVERWRITES = "SET|MSET|GETSET|SETEX|PSETEX|MSETEX|JSON.SET"
CONDITIONAL = """
    SET|GETEX|HGETEX|HSETEX|COPY|RESTORE|XADD|FUNCTION RESTORE|SORT|GEORADIUS|GEORADIUSBYMEMBER
"""
CONTAINERS = "ACL|CLIENT|CLUSTER|COMMAND|CONFIG|FUNCTION|MODULE|SCRIPT|SENTINEL|XGROUP"


def names(text: str) -> set[str]:
    return {name for line in text.split("\n") for name in line.strip().split("|") if name}


@pytest.mark.parametrize("name", ["READS", "DESTRUCTIVE", "OVERWRITES", "CONDITIONAL", "CONTAINERS"])
def test_vocabulary(name: str) -> None:
    """These words are where they belong, whatever servers the table is made from."""
    assert names(globals()[name]) <= getattr(table, name)


def test_ordinary_writes_are_neither_reads_nor_gated() -> None:
    assert not names(ORDINARY) & (table.READS | table.DESTRUCTIVE | table.OVERWRITES | table.CONDITIONAL)


@pytest.mark.parametrize(
    "name", ["GETDEL", "GETEX", "FT.ALIASDEL", "FT.DICTADD", "FT.CURSOR", "CLIENT REPLY", "SPUBLISH"]
)
def test_what_only_looks_like_a_read(name: str) -> None:
    """By its name, its category or its module's word; sent again it would act again."""
    assert name not in table.READS


def test_tables_do_not_contradict_each_other() -> None:
    """A read changes nothing; what is always destructive needs no rule for its arguments."""
    assert not table.READS & (table.WRITES | table.DESTRUCTIVE | table.OVERWRITES | table.CONDITIONAL)
    assert not table.DESTRUCTIVE & (table.OVERWRITES | table.CONDITIONAL)
    assert not (table.CONTAINERS - {"COMMAND"}) & (table.READS | table.WRITES | table.DESTRUCTIVE)
    assert table.KEYS.keys() <= table.DESTRUCTIVE | table.OVERWRITES | table.CONDITIONAL


def test_places_of_keys() -> None:
    """Only keys that change: a `*STORE` reads its sources."""
    assert table.KEYS["DEL"] == (1, -1, 1)
    assert table.KEYS["BLPOP"] == (1, -2, 1)
    assert table.KEYS["MSET"] == (1, -1, 2)
    assert table.KEYS["RENAME"] == (1, 2, 1)
    assert table.KEYS["XGROUP DESTROY"] == (2, 2, 1)
    assert table.KEYS["SUNIONSTORE"] == table.KEYS["ZUNIONSTORE"] == (1, 1, 1)
    assert table.KEYS["BITOP"] == table.KEYS["COPY"] == (2, 2, 1)
    assert table.NUMKEYS["LMPOP"] == table.NUMKEYS["SINTERCARD"] == (1, 2, 1)
    assert table.NUMKEYS["EVAL"] == table.NUMKEYS["BLMPOP"] == (2, 3, 1)
    assert table.NUMKEYS["MSETEX"] == (1, 2, 2)
    assert not table.NUMKEYS.keys() & table.KEYS.keys()
    assert table.KEYWORD == {"XREAD": "STREAMS", "XREADGROUP": "STREAMS", "MIGRATE": "KEYS"}


def spoken(rows: Any) -> Iterator[tuple[str, set[str], bool]]:
    """What COMMAND says: names and flags, and which commands are containers."""
    for row in rows:
        yield row[0].upper().replace("|", " "), set(row[2]), bool(row[9])
        yield from spoken(row[9])


def test_agrees_with_a_real_server(redis_servers: dict[str, RedisServer]) -> None:
    """Nothing that this server calls a write is a read to us, and we miss none of its containers."""
    said = list(spoken(redis_servers["unix"].command("COMMAND")))
    assert len(said) > 300
    assert {name for name, flags, _ in said if "write" in flags} <= table.WRITES
    assert not {name for name, flags, _ in said if "write" in flags} & table.READS
    assert {name for name, flags, _ in said if "blocking" in flags} <= table.BLOCKING
    assert {name for name, _, container in said if container} <= table.CONTAINERS
    assert {name for name, flags, _ in said if flags >= {"readonly"} and "module" not in flags} <= table.READS
