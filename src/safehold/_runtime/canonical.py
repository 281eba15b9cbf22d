"""JSON that has one form only, so that what was read can be compared with what was written, byte by byte.

Sorted keys, no blanks, ASCII: a file in it can be shown on any terminal without telling it to do anything.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, NoReturn


def canonical(value: Any) -> str:
    """Give the text of a JSON value. Raises `ValueError` for what has none, or would be read as another."""
    try:
        text = _text(value)
        if _text(json.loads(text)) != text:  # say, a number for a key, which is sorted in another place
            msg = "it would be read as something else"
            raise ValueError(msg)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"not a JSON value: {error}"
        raise ValueError(msg) from None
    return text


def parse(raw: bytes) -> Any:
    """Give the value that was written. Raises `ValueError` for any byte that `canonical` would not write."""
    try:
        text = raw.decode("ascii")
        value = json.loads(text, parse_constant=_refuse)
        same = _text(value) == text
    except (ValueError, RecursionError):
        same, value = False, None
    if not same:
        msg = "not JSON as it is written here"
        raise ValueError(msg)
    return value


def checksum(*texts: str) -> str:
    """Give 32 hexadecimal digits of the SHA-256 of the texts, one after the other."""
    return hashlib.sha256("".join(texts).encode("ascii")).hexdigest()[:32]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
