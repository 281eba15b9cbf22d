"""What a program's exit code says, such as that of `tmux has-session`."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from .._core.configuration import ConfigurationError
from .._core.evidence import ABSENT, PRESENT, Presence
from .._core.unproven import Unproven

_NOT_RUN = frozenset({126, 127})  # what shells say for "cannot be executed" and "not found"


def exit_code(
    completed: Any,
    *,
    present: Collection[int] = (0,),
    absent: Collection[int] = (1,),
    stderr_says: str | re.Pattern[str] | None = None,
    stderr: str | bytes | None = None,
) -> Presence:
    """Say what an exit code says: a number, or what has a `returncode`, such as a `CompletedProcess`.

    Only the codes in `present` and `absent` speak. `stderr_says` is a pattern that has to be found in what
    the program wrote to stderr for its code to mean absence: many use one code for "no such session" and "no
    server running". `stderr` gives that text where `completed` does not hold it.

    A program that was killed, or that could not be run (126, 127), has not answered: that is a miss. Raises
    `ConfigurationError` for codes that cannot mean an answer.
    """
    _check(present, absent)
    code = getattr(completed, "returncode", completed)
    if code is None:
        msg = "the program has not ended"
        raise Unproven(msg)
    if not isinstance(code, int) or isinstance(code, bool):
        msg = f"{type(code).__name__} is no exit code"
        raise Unproven(msg)
    if code < 0 or code in _NOT_RUN:
        msg = f"the program was killed by signal {-code}" if code < 0 else f"the program did not run ({code})"
        raise Unproven(msg, miss=True)
    if code in present:
        return PRESENT
    if code not in absent:
        msg = f"exit code {code} says neither"
        raise Unproven(msg)
    if stderr_says is not None:
        _check_words(stderr_says, getattr(completed, "stderr", None) if stderr is None else stderr, code)
    return ABSENT


def _check(present: Collection[int], absent: Collection[int]) -> None:
    both = [*present, *absent]
    wrong = sorted({code for code in both if code < 0 or code in _NOT_RUN or both.count(code) > 1})
    if wrong:
        msg = f"present and absent must be codes that answer, each one thing; got {wrong} among {both}"
        raise ConfigurationError(msg)


def _check_words(pattern: str | re.Pattern[str], stderr: object, code: int) -> None:
    text = stderr.decode(errors="replace") if isinstance(stderr, bytes) else stderr
    if not isinstance(text, str):
        msg = "stderr was not captured, so it is not known what the program said"
        raise Unproven(msg)
    if not re.search(pattern, text):
        msg = f"exit code {code}, but stderr does not say that it is absent"
        raise Unproven(msg)
