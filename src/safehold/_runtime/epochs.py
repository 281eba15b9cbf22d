"""What an epoch function may give, turned into what the core compares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .._core.configuration import ConfigurationError
from .._core.epoch import EpochReading


def reading_of(answer: Any) -> EpochReading:
    """Take what an epoch function gave: an `EpochReading`, or any plain value that names the data's history.

    Two values that are equal are one epoch. `None` and the empty text tell nothing, and raise.
    """
    if isinstance(answer, EpochReading):
        return answer
    if answer is None or answer == "" or isinstance(answer, bool):
        msg = f"the epoch function gave {answer!r}, which names no epoch"
        raise ConfigurationError(msg)
    plain = dict(answer) if isinstance(answer, Mapping) else answer
    return EpochReading(lineage=json.dumps(plain, sort_keys=True, default=repr))
