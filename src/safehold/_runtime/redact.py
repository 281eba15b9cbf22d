"""Takes out of a text what may be a secret, before a person reads it in a log or a report.

Causes are words for a type or for what the operating system said, and hold no text of an exception. What
remains is what people wrote: a reason for a hold, a cause that was reported. It may quote a URL or a header.
"""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 500
"""Characters of a text that are kept."""
_HIDDEN: Final = "***"
_WORDS: Final = (
    r"(?:passw(?:or)?d|pwd|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key"
    r"|credential|cookie|session[_-]?id|signature|auth)[\w-]*"
)
_RULES: Final = (
    # up to the last "@" before a blank: a password may hold nearly anything
    (re.compile(r"(\w://)[^\s<>]*@"), rf"\1{_HIDDEN}@"),
    (re.compile(r"(?i)((?:authorization|cookie)[\"']?\s*[:=]).*"), rf"\1 {_HIDDEN}"),
    (re.compile(r"(?i)\b(bearer|basic|digest|negotiate)\s+[^\s,;\"']+"), rf"\1 {_HIDDEN}"),
    (re.compile(rf"(?i)({_WORDS}[\"']?\s*[:=]\s*)(?:\"[^\"]*\"|'[^']*'|[^\s&,;\"']+)"), rf"\1{_HIDDEN}"),
    (re.compile(r"\b(?:gh[pousr]_|sk-|xox[a-z]-|AKIA|eyJ)[\w.-]{10,}"), _HIDDEN),
)
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def redact(text: str) -> str:
    """Give one line of at most `LONGEST` characters, without passwords, tokens and values of such headers."""
    text = _UNPRINTABLE.sub(" ", text)
    if len(text) > 4 * LONGEST:  # what is cut in two would not be known for what it is
        text = text[: 4 * LONGEST].rpartition(" ")[0] + " ..."
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
