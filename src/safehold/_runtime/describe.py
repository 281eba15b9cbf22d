"""Say in a few words what an exception means, without repeating its text: that may hold a secret."""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from typing import Any, cast

from .._core.breaker import Cause
from .._core.configuration import ConfigurationError
from .._core.unproven import Unproven

_LONGEST = 20  # links of a chain that are looked at


def words_of(error: BaseException) -> str:
    """Say it in words: our own complaints about what was given speak for themselves."""
    ours = isinstance(error, ConfigurationError | Unproven)
    return str(error) if ours else cause_of(error).text


def cause_of(error: BaseException) -> Cause:
    """Give the type as the code, and words for people: the operating system's where it has some."""
    if error.__cause__ is None and error.__context__ is None and not isinstance(error, OSError):
        return _cause_of_type(cast("Any", type(error)))
    return _cause_of_chain(error)


@lru_cache(maxsize=1000)
def _cause_of_type(kind: Any) -> Cause:
    """Give what an exception without a history means: its type alone says it."""
    return _in_words(kind.__name__, timed_out="Timeout" in kind.__name__)


def _in_words(code: str, *, timed_out: bool) -> Cause:
    if timed_out:
        return Cause(code=code, text="timed out")
    broken = "Protocol" in code or "IncompleteRead" in code
    return Cause(code=code, text="broken answer" if broken else code)


def _cause_of_chain(error: BaseException) -> Cause:
    code = type(error).__name__
    timed_out = "Timeout" in code
    link: BaseException | None = error
    for _ in range(_LONGEST):
        if link is None:
            break
        if isinstance(link, OSError):
            if isinstance(link, socket.gaierror):
                return Cause(code=code, text="name not resolved")
            if isinstance(link.errno, int):
                return Cause(code=code, text=os.strerror(link.errno).lower())
            timed_out = timed_out or isinstance(link, TimeoutError)
        link = link.__cause__ or link.__context__
    return _in_words(code, timed_out=timed_out)
