"""What a Redis command would do, told from its words as redis-py is given them.

The vocabulary is generated from servers (`_redis_commands`); here are the rules for those commands whose
harm depends on their arguments. Commands inside a script (`EVAL`, `FCALL`) cannot be seen.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

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
            return rule(_upper(self.words))
        return Harm.OVERWRITES if self.name in OVERWRITES else Harm.NONE

    def keys(self) -> list[str] | None:
        """Give the keys that it names; `None` where it names none, because it concerns all or no keys."""
        words, name = self.words, self.name
        if name in _STORES:
            places = _STORES[name].places(_upper(words))
            return [
                _text(word) for option in _STORING for word in words[places.get(option, len(words)) :][1:2]
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
        if name in KEYWORD and KEYWORD[name] in (upper := _upper(words)):
            rest = words[upper.index(KEYWORD[name]) + 1 :]
            keys += rest[: len(rest) // 2] if KEYWORD[name] == "STREAMS" else rest
        return [_text(key) for key in keys]


def _text(word: Any) -> str:
    if isinstance(word, bytes | bytearray | memoryview):
        return bytes(word).decode(errors="replace")
    return str(word)


def _number(words: Words, at: int) -> int:
    try:
        return int(_text(words[at]))
    except (IndexError, ValueError):  # not well formed: the server will say so
        return 0


def _upper(words: Words) -> list[str]:
    return [_text(word).upper() for word in words]


# --- options --------------------------------------------------------------------------------------------
# A key, a field or a value may be called `STORE`. An option is one only where the server looks for it.

_PER_PAIR: Final = -2
_PER_FIELD: Final = -1


class _Options(NamedTuple):
    """Where a command's options begin, and how many words follow each of those that have any.

    A negative number: as many times so many as the next word says. What comes behind `end` is no option.
    """

    begin: int
    follow: Mapping[str, int] = {}
    end: str = ""

    def places(self, words: list[str]) -> dict[str, int]:
        """Say where each option stands. A word that is unknown may be an option of a newer server."""
        found: dict[str, int] = {}
        at = self.begin
        while at < len(words) and words[at] != self.end:
            found[words[at]] = at
            follow = self.follow.get(words[at], 0)
            at += 1 + (follow if follow >= 0 else 1 - follow * max(0, _number(words, at + 1)))
        return found


_ENDS: Final = {"EX": 1, "PX": 1, "EXAT": 1, "PXAT": 1}
_STORING: Final = ("STORE", "STOREDIST")
_NEAR: Final = {"COUNT": 1, "STORE": 1, "STOREDIST": 1}
_STORES: Final = {
    "SORT": _Options(2, {"BY": 1, "LIMIT": 2, "GET": 1, "STORE": 1}),
    "GEORADIUS": _Options(6, _NEAR),
    "GEORADIUSBYMEMBER": _Options(5, _NEAR),
}
"""What these change stands behind a word."""
_SET: Final = _Options(3, {**_ENDS, "IFEQ": 1, "IFNE": 1, "IFDEQ": 1, "IFDNE": 1})
_RESTORE: Final = _Options(4, {"IDLETIME": 1, "FREQ": 1})


def _if_given(options: _Options, *names: str) -> Callable[[list[str]], Harm]:
    return lambda words: Harm.NONE if options.places(words).keys().isdisjoint(names) else Harm.DESTROYS


def _may_overwrite(options: _Options, words: list[str]) -> Harm:
    """Overwrite, unless it may only create; with an end in the past it deletes."""
    places = options.places(words)
    for option, per_second in (("EXAT", 1), ("PXAT", 1000)):
        if option in places and _number(words, places[option] + 1) / per_second <= time.time():
            return Harm.DESTROYS
    return Harm.NONE if "NX" in places else Harm.OVERWRITES


def _set(words: list[str]) -> Harm:
    return _may_overwrite(_SET, words)


def _set_many(words: list[str]) -> Harm:
    return _may_overwrite(_Options(2 + 2 * max(0, _number(words, 1)), _ENDS), words)


def _load_function(words: list[str]) -> Harm:
    return Harm.DESTROYS if "REPLACE" in words[2:-1] else Harm.NONE  # the last one is the code


def _add_to_stream(words: list[str]) -> Harm:
    """Keep a stream short as it grows, which is everyday work, or empty it, which is not."""
    harm, at, unsure = Harm.NONE, 2, False
    while at < len(words) and (unsure or not _ENTRY.fullmatch(words[at])):
        option = words[at]
        if option in {"MAXLEN", "MINID"}:
            at += words[at + 1 : at + 2] in (["="], ["~"])
            emptied = option == "MAXLEN" and _number(words, at + 1) == 0
            harm = max(harm, Harm.DESTROYS if emptied else Harm.OVERWRITES)
        unsure = unsure or option not in _BEFORE_ENTRY  # of a newer server: its value may look like an id
        at += 1 + _BEFORE_ENTRY.get(option, 0)
    return harm


_ENTRY: Final = re.compile(r"\*|\d+(-(\d+|\*))?")
_BEFORE_ENTRY: Final = {
    "NOMKSTREAM": 0,
    "KEEPREF": 0,
    "DELREF": 0,
    "ACKED": 0,
    "IDMPAUTO": 1,
    "IDMP": 2,
    "MAXLEN": 1,
    "MINID": 1,
    "LIMIT": 1,
}


_RULES: Final[dict[str, Callable[[list[str]], Harm]]] = {
    "SET": _set,
    "MSETEX": _set_many,
    "GETEX": _if_given(_Options(2, _ENDS), *_ENDS),
    "HGETEX": _if_given(_Options(2, {**_ENDS, "FIELDS": _PER_FIELD}), *_ENDS),
    "HSETEX": _if_given(_Options(2, {**_ENDS, "FIELDS": _PER_PAIR}), *_ENDS),
    "INCREX": _if_given(_Options(2, {**_ENDS, "BYINT": 1, "BYFLOAT": 1, "LBOUND": 1, "UBOUND": 1}), *_ENDS),
    "COPY": _if_given(_Options(3, {"DB": 1}), "REPLACE"),
    "RESTORE": _if_given(_RESTORE, "REPLACE"),
    "RESTORE-ASKING": _if_given(_RESTORE, "REPLACE"),
    "FUNCTION RESTORE": _if_given(_Options(3), "FLUSH", "REPLACE"),
    "FUNCTION LOAD": _load_function,
    "XADD": _add_to_stream,
    **{name: _if_given(options, *_STORING) for name, options in _STORES.items()},
}


# --- commands that wait ---------------------------------------------------------------------------------

_SECONDS_LAST: Final = {"BLPOP", "BRPOP", "BLMOVE", "BRPOPLPUSH", "BZPOPMIN", "BZPOPMAX"}
_SECONDS_FIRST: Final = {"BLMPOP", "BZMPOP"}
_MILLISECONDS_LAST: Final = {"WAIT", "WAITAOF"}
_MILLISECONDS_BEHIND_BLOCK: Final = {"XREAD", "XREADGROUP"}
_STREAMS: Final = _Options(1, {"GROUP": 2, "COUNT": 1, "BLOCK": 1}, end="STREAMS")
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
        return float(words[_STREAMS.places(_upper(words))["BLOCK"] + 1]) / 1000
    except (IndexError, KeyError, TypeError, ValueError):  # not well formed, or it does not wait
        return None
