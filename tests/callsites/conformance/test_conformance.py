"""Every call of a client gives the same on a guarded client as on a plain one, and sends the same.

One entry of the table is played on a plain client and on a guarded one, with the server made new in between.
Compared are the answer with the types of all its parts (or the exception, with its arguments and causes),
the bytes that each connection has sent, and the warnings. All this while the breaker is closed, and but for what
the guard is there to change: a write whose reply was lost is not sent again, nor is a login that was refused,
and errors say what became of the call.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from safehold import Safehold
from safehold.callsites.redis import guard_client
from safehold.testing.servers import RedisServer

from . import cases
from .calls import RESET, TABLE
from .cases import CASES
from .play import Call, Entry, Group, Guard, Setting, Stage, do

GROUPS: Final = (*TABLE, *CASES)
SETTINGS: Final = [
    Setting(side=side, protocol=protocol, decode=decode)
    for side in ("sync", "asyncio")
    for protocol in (2, 3)
    for decode in (False, True)
]
ENOUGH: Final = 350
LEFT_OUT: Final = {
    "bgrewriteaof",
    "bgsave",
    "debug_segfault",
    "hotkeys_start",
    "psync",
    "sync",
}  # see `calls`


@pytest.fixture(scope="module")
def stage(redis_binary: str) -> Iterator[Stage]:
    """A server that looks at its time-outs every 2 ms, and a relay in front of it."""
    with RedisServer(binary=redis_binary, args=("--hz", "500")) as server:
        stage = Stage(str(server.address), RESET)
        assert b"\r\n-" not in stage.door(RESET)
        yield stage
        stage.close()


@pytest.fixture
def safehold() -> Iterator[Safehold]:
    safehold = Safehold("conformance")
    yield safehold
    safehold.stop()


def unguarded(client: Any, entry: str) -> Any:
    return client


def guarded_in(safehold: Safehold) -> Guard:
    return lambda client, entry: guard_client(client, safehold.dependency(entry or "redis"))


def differences(stage: Stage, entries: Sequence[Entry], setting: Setting, guard: Guard) -> list[str]:
    plain = stage.play(entries, setting, unguarded)
    guarded = stage.play(entries, setting, guard)
    assert [outcome.name for outcome in plain] == [outcome.name for outcome in guarded]
    return [text for one, other in zip(plain, guarded, strict=True) for text in one.against(other)]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_guarded_client_does_what_a_plain_one_does(
    stage: Stage, safehold: Safehold, group: Group, setting: Setting
) -> None:
    """Not one answer, exception, byte or warning differs."""
    found = differences(stage, group.entries, setting, guarded_in(safehold))
    if found:
        pytest.fail("\n\n".join([f"{len(found)} differences", *found]), pytrace=False)


def test_table_is_long_and_is_played(stage: Stage) -> None:
    """Whatever the version of redis-py: hundreds of entries have run on each side, and most of them got an answer."""
    for setting in SETTINGS:
        assert sum(entry.applies(setting) for group in GROUPS for entry in group.entries) >= ENOUGH
    setting = Setting(side="sync", protocol=2, decode=True)
    outcomes = [outcome for group in TABLE for outcome in stage.play(group.entries, setting, unguarded)]
    answered = [outcome for outcome in outcomes if outcome.wire and not outcome.failed]
    assert len(answered) >= ENOUGH


def test_every_method_of_the_client_is_played() -> None:
    """The table follows redis-py: a twentieth of its methods may be new to it."""
    played = {entry.play.method for group in TABLE for entry in group.entries if isinstance(entry.play, Call)}
    for module in Path(cases.__file__).parent.glob("*.py"):
        played |= set(re.findall(r"\.(\w+)", module.read_text(encoding="utf-8")))
    methods = {
        name for name in dir(redis.Redis) if not name.startswith("_") and not name.endswith("_internal")
    }
    missing = methods - played - LEFT_OUT
    assert len(missing) <= len(methods) / 20, sorted(missing)


# --- what if they differed ----------------------------------------------------------------------------

FEW: Final = Group("few", do.get("text"), do.blpop("list", 1), do.incr("text"), do.hmset("hash", {"a": 1}))

Execute = Callable[..., Any]
Plant = Callable[[Execute, Any, tuple[Any, ...], dict[str, Any]], Any]


def more_bytes(execute: Execute, self: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    execute(self, "PING")
    return execute(self, *args, **options)


def fewer_bytes(execute: Execute, self: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    return b"hello" if args[0] == "GET" else execute(self, *args, **options)


def other_connection(execute: Execute, self: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    answer = execute(self, *args, **options)
    self.connection_pool.disconnect()
    return answer


def other_type(execute: Execute, self: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    answer = execute(self, *args, **options)
    return list(answer) if isinstance(answer, tuple) else answer


def subclass(execute: Execute, self: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    answer = execute(self, *args, **options)
    return type("Answer", (bytes,), {})(answer) if isinstance(answer, bytes) else answer


def other_error(execute: Execute, self: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    try:
        return execute(self, *args, **options)
    except redis.ResponseError as error:
        raise redis.DataError(*error.args) from None


def other_arguments(execute: Execute, self: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    try:
        return execute(self, *args, **options)
    except redis.ResponseError as error:
        error.args = (*error.args, "more")
        raise


def cause(execute: Execute, self: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    try:
        return execute(self, *args, **options)
    except redis.ResponseError as error:
        raise error from KeyError("planted")


def warning(execute: Execute, self: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    warnings.warn("planted", stacklevel=2)
    return execute(self, *args, **options)


PLANTS: Final[dict[Plant, str]] = {
    more_bytes: r"get\('text'\): wire\n +plain: .* \*2 \$3 GET \$4 text ',\)\n +guarded: .* \*1 \$4 PING \*2 \$3 GET",
    fewer_bytes: r"get\('text'\): wire\n +plain: .*GET.*\n +guarded: \(\)$",
    other_connection: r"get\('text'\): wire\n +plain: .*text ',\)\n +guarded: .*text \(closed\)',\)",
    other_type: r"blpop\('list', 1\): answer\n +plain: +\(b'list', b'a'\)\n +guarded: \[b'list', b'a'\]",
    subclass: r"get\('text'\): answer\n +plain: +b'hello'\n +guarded: .*Answer: b'hello'",
    other_error: r"incr\('text'\): answer\n +plain: .*ResponseError\(.*\n +guarded: .*DataError\(",
    other_arguments: r"incr\('text'\): answer\n +plain: .*integer.*\n +guarded: .*'more'",
    cause: r"incr\('text'\): answer\n +plain: .*\n +guarded: .* from KeyError\('planted'\)",
    warning: r"get\('text'\): warned\n +plain: +\(\)\n +guarded: .*UserWarning: planted",
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.__name__)
def test_planted_difference_is_found(
    stage: Stage, safehold: Safehold, monkeypatch: pytest.MonkeyPatch, plant: Plant
) -> None:
    """Each kind of difference makes it red, and the message names the call and both results."""
    guard = guarded_in(safehold)
    assert not differences(stage, FEW.entries, SETTINGS[0], guard)
    kind = type(guard(redis.Redis(), ""))
    execute = kind.execute_command
    monkeypatch.setattr(
        kind, "execute_command", lambda self, *args, **options: plant(execute, self, args, options)
    )
    found = differences(stage, FEW.entries, SETTINGS[0], guard)
    assert any(re.search(PLANTS[plant], text) for text in found), found
