"""What an epoch function may give, turned into what the core compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from .._core.configuration import ConfigurationError
from .._core.epoch import EpochReading

_LONGEST: Final = 1000  # characters of a value that is kept as it is


def reading_of(answer: Any) -> EpochReading:
    """Take what an epoch function gave: an `EpochReading`, or any plain value that names the data's history.

    Two values that are equal are one epoch, also in another process. What is empty, a bool or `None` tells
    nothing, and neither does an object without a text of its own: these raise `ConfigurationError`.
    """
    if isinstance(answer, EpochReading):
        return answer
    if answer is None or isinstance(answer, bool) or (hasattr(answer, "__len__") and not len(answer)):
        msg = f"the epoch function gave {answer!r}, which names no epoch"
        raise ConfigurationError(msg)
    plain = dict(answer) if isinstance(answer, Mapping) else answer
    try:
        told = json.dumps(plain, sort_keys=True, default=_in_words)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"the epoch function gave a {type(answer).__name__} that names no epoch ({error})"
        raise ConfigurationError(msg) from None
    if len(told) > _LONGEST:
        told = hashlib.sha256(told.encode()).hexdigest()
    return EpochReading(lineage=told)


def _in_words(value: Any) -> Any:
    """Put into words what JSON does not know, and refuse what has other words each time."""
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, Mapping):
        return dict(value)
    words = repr(value)
    if " at 0x" in words:
        msg = f"{type(value).__name__} has no text that stays the same"
        raise TypeError(msg)
    return words
