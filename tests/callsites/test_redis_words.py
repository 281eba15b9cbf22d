"""An option is one only where the command's grammar has a place for it."""

from __future__ import annotations

import pytest

from safehold.callsites._redis_words import Command, Harm, block_time


@pytest.mark.parametrize(
    ("words", "harm"),
    [
        ("MSETEX 1 exat nx", Harm.OVERWRITES),
        ("MSETEX 1 k v EXAT 1", Harm.DESTROYS),
        ("MSETEX 2 nx v k exat NX EX 5", Harm.NONE),
        ("SET k v IFEQ nx", Harm.OVERWRITES),
        ("SET nx nx", Harm.OVERWRITES),
        ("SET k v GET NX", Harm.NONE),
        ("SET k v IFEQ exat", Harm.OVERWRITES),
        ("HGETEX h FIELDS 2 ex px", Harm.NONE),
        ("HGETEX h PERSIST FIELDS 1 ex", Harm.NONE),
        ("HGETEX h FIELDS 1 f EX 5", Harm.DESTROYS),
        ("HSETEX h FIELDS 1 ex px", Harm.NONE),
        ("HSETEX h FNX EX 5 FIELDS 1 f v", Harm.DESTROYS),
        ("HSETEX h FIELDS nonsense EX 5", Harm.DESTROYS),
        ("INCREX ex BYINT 5", Harm.NONE),
        ("INCREX k BYINT 5 EX 5", Harm.DESTROYS),
        ("RESTORE replace 0 replace", Harm.NONE),
        ("RESTORE k 0 x ABSTTL FREQ 1 REPLACE", Harm.DESTROYS),
        ("FUNCTION LOAD replace", Harm.NONE),
        ("FUNCTION RESTORE flush", Harm.NONE),
        ("FUNCTION RESTORE x APPEND", Harm.NONE),
        ("XADD maxlen * f v", Harm.NONE),
        ("XADD s IDMP maxlen 0 MAXLEN 5 * f v", Harm.OVERWRITES),
        ("XADD s MAXLEN 5 1-1 f v", Harm.OVERWRITES),
        ("XADD s MAXLEN", Harm.DESTROYS),
        ("COPY a b DB", Harm.NONE),
        ("COPY a b NEWER REPLACE", Harm.DESTROYS),
    ],
)
def test_options_are_found_where_they_may_stand(words: str, harm: Harm) -> None:
    """A key, field or value of the same name is none; a word that is unknown hides no option behind it."""
    assert Command(words.split(" ")).harm() is harm
    assert Command([word.lower().encode() for word in words.split(" ")]).harm() is harm


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("SORT store BY storedist STORE to", ["to"]),
        ("SORT store", []),
        ("SORT k STORE a STORE b", ["b"]),
        ("GEORADIUSBYMEMBER store store 1 km COUNT 1 ANY STORE a STOREDIST b", ["a", "b"]),
        ("GEORADIUS store 1 1 1 km STORE", []),
    ],
)
def test_key_that_is_stored_in_is_the_one_behind_the_option(words: str, keys: list[str]) -> None:
    """The server takes the last of several."""
    assert Command(words.split(" ")).keys() == keys


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("XREAD COUNT 1 BLOCK 1500 STREAMS s 0", 1.5),
        ("XREAD STREAMS block 0", None),
        ("XREADGROUP GROUP block streams BLOCK 0 STREAMS block >", 0.0),
        ("XREADGROUP GROUP g c COUNT 5 NOACK STREAMS s >", None),
        ("XREAD BLOCK", None),
    ],
)
def test_stream_that_is_called_block_waits_for_nothing(words: str, seconds: float | None) -> None:
    """A read that does not wait and times out is a failure; one that waits for its own time is none."""
    assert block_time(Command(words.split(" "))) == seconds
