"""What a Redis command would do, told from its words as redis-py is given them.

The vocabulary is generated from servers (`_redis_commands`); here are the rules for those commands whose
harm depends on their arguments. Commands inside a script (`EVAL`, `FCALL`) cannot be seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Final

from ._redis_commands import (
    CONDITIONAL,
    CONTAINERS,
    DESTRUCTIVE,
    KEYS,
    KEYWORD,
    NUMKEYS,
    OVERWRITES,
    READS,
    WRITES,
)

Words = Sequence[Any]


class Harm(IntEnum):
    """How much a command destroys. Overwriting is everyday work, except on keys that somebody named."""

    NONE = 0
    OVERWRITES = 1
    DESTROYS = 2


class Command:
    """One command: its name in capitals (`GET`, `CONFIG SET`), and all its words, the name's included."""

    __slots__ = ("name", "words")

    def __init__(self, args: Words) -> None:
        first = _text(args[0]).split() if args else []
        self.words: list[Any] = [*first, *args[1:]]  # redis-py splits the first argument as well
        name = _text(self.words[0]).upper() if self.words else ""
        if name in CONTAINERS and len(self.words) > 1:
            name = f"{name} {_text(self.words[1]).upper()}"
        self.name = name

    def name_is(self, first: Any) -> bool:
        """Whether the first argument alone is the whole name."""
        return _text(first).upper() == self.name

    @property
    def reads_only(self) -> bool:
        """Whether it changes nothing, so that sending it twice is sending it once."""
        return self.name in READS

    @property
    def writes(self) -> bool:
        """Whether the server takes it for a write."""
        return self.name in WRITES

    def harm(self) -> Harm:
        """Say what it destroys."""
        if self.name in DESTRUCTIVE:
            return Harm.DESTROYS
        rule = _RULES.get(self.name)
        if rule is not None and self.name in CONDITIONAL:
            return rule(_options(self.words))
        return Harm.OVERWRITES if self.name in OVERWRITES else Harm.NONE

    def keys(self) -> list[str] | None:
        """Give the keys that it names; `None` where it names none, because it concerns all or no keys."""
        words, name = self.words, self.name
        if name in _STORES:
            upper = _options(words)
            return [
                _text(words[i + 1]) for i in range(2, len(words) - 1) if upper[i] in {"STORE", "STOREDIST"}
            ]
        if not (name in KEYS or name in NUMKEYS or name in KEYWORD):
            return None
        keys: list[Any] = []
        if name in KEYS:
            first, last, step = KEYS[name]
            end = len(words) + last if last < 0 else last
            keys += words[first : end + 1 : max(1, step)]
        if name in NUMKEYS:
            count_at, first, step = NUMKEYS[name]
            keys += words[first : first + _number(words, count_at) * step : step]
        if name in KEYWORD and KEYWORD[name] in (upper := _options(words)):
            rest = words[upper.index(KEYWORD[name]) + 1 :]
            keys += rest[: len(rest) // 2] if KEYWORD[name] == "STREAMS" else rest
        return [_text(key) for key in keys]


_STORES: Final = {"SORT", "GEORADIUS", "GEORADIUSBYMEMBER"}  # what they change stands behind a word


def _text(word: Any) -> str:
    if isinstance(word, bytes | bytearray | memoryview):
        return bytes(word).decode(errors="replace")
    return str(word)


def _number(words: Words, at: int) -> int:
    try:
        return int(_text(words[at]))
    except (IndexError, ValueError):  # not well formed: the server will say so
        return 0


def _options(words: Words) -> list[str]:
    return [_text(word).upper() for word in words]


def _if_given(*options: str) -> Callable[[list[str]], Harm]:
    return lambda words: Harm.DESTROYS if any(option in words for option in options) else Harm.NONE


def _set(words: list[str]) -> Harm:
    """Overwrite, unless it may only create; with an end in the past it deletes."""
    if _ends_in_past(words):
        return Harm.DESTROYS
    return Harm.NONE if "NX" in words[3:] else Harm.OVERWRITES


def _ends_in_past(words: list[str]) -> bool:
    for option, per_second in (("EXAT", 1), ("PXAT", 1000)):
        if option in words[3:]:
            return _number(words, words.index(option, 3) + 1) / per_second <= time.time()
    return False


def _getex(words: list[str]) -> Harm:
    return _if_given("EX", "PX", "EXAT", "PXAT")(words[2:])


def _add_to_stream(words: list[str]) -> Harm:
    """Keep a stream short as it grows, which is everyday work, or empty it, which is not."""
    if not {"MAXLEN", "MINID"} & set(words):
        return Harm.NONE
    return Harm.DESTROYS if "MAXLEN" in words and "0" in words[2:6] else Harm.OVERWRITES


_RULES: Final[dict[str, Callable[[list[str]], Harm]]] = {
    "SET": _set,
    "GETEX": _getex,
    "HGETEX": _getex,
    "HSETEX": _getex,
    "COPY": _if_given("REPLACE"),
    "RESTORE": _if_given("REPLACE"),
    "RESTORE-ASKING": _if_given("REPLACE"),
    "FUNCTION RESTORE": _if_given("FLUSH", "REPLACE"),
    "FUNCTION LOAD": _if_given("REPLACE"),
    "INCREX": _getex,
    "MSETEX": lambda words: Harm.DESTROYS if _ends_in_past(words) else Harm.OVERWRITES,
    "SORT": _if_given("STORE"),
    "GEORADIUS": _if_given("STORE", "STOREDIST"),
    "GEORADIUSBYMEMBER": _if_given("STORE", "STOREDIST"),
    "XADD": _add_to_stream,
}


# --- commands that wait ---------------------------------------------------------------------------------

_SECONDS_LAST: Final = {"BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BZPOPMIN", "BZPOPMAX"}
_SECONDS_FIRST: Final = {"BLMPOP", "BZMPOP"}
_MILLISECONDS_LAST: Final = {"WAIT", "WAITAOF"}
_MILLISECONDS_BEHIND_BLOCK: Final = {"XREAD", "XREADGROUP"}
_WAITING: Final = _SECONDS_LAST | _SECONDS_FIRST | _MILLISECONDS_LAST | _MILLISECONDS_BEHIND_BLOCK


def block_time(command: Command) -> float | None:
    """Give the seconds for which a command asks the server to wait, 0 for no end; `None` for none."""
    name, words = command.name, command.words
    if name not in _WAITING:
        return None
    try:
        if name in _SECONDS_LAST:
            return float(words[-1])
        if name in _SECONDS_FIRST:
            return float(words[1])
        if name in _MILLISECONDS_LAST:
            return float(words[-1]) / 1000
        return float(words[_options(words).index("BLOCK") + 1]) / 1000
    except (IndexError, TypeError, ValueError):  # not well formed, or it does not wait
        return None
