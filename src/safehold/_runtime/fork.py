"""After a fork, the child begins again: no lock is held, no permit borrowed, no prober believed alive.

The parent's locks may be held by threads that the child does not have, and its breakers may be in the
middle of a step. So nothing is taken over but a few single values: each breaker begins a new generation
that knows nothing yet, or that stays open with a trial due at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

from .scope import forked


class Reborn(Protocol):
    """What begins again in a child."""

    def _reborn(self) -> None: ...


def begin_again_in_children(alive: Iterable[Reborn]) -> None:
    """Register once, at import."""

    def child() -> None:
        forked()
        for home in list(alive):
            home._reborn()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=child)
