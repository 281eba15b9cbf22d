"""Say in a few words what an exception means, without repeating its text: that may hold a secret."""

from __future__ import annotations

import os
import socket

from .._core.breaker import Cause

_LONGEST = 20  # links of a chain that are looked at


def cause_of(error: BaseException) -> Cause:
    """Give the type as the code, and words for people: the operating system's where it has some."""
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
    if not timed_out and ("Protocol" in code or "IncompleteRead" in code):
        return Cause(code=code, text="broken answer")
    return Cause(code=code, text="timed out" if timed_out else code)
