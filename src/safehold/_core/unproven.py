"""An answer that proves nothing, with its reason."""

from __future__ import annotations

from .configuration import SafeholdError


class Unproven(SafeholdError):
    """What a witness's function raises for an answer that proves nothing; the text says why.

    It is `UNKNOWN` with a reason. It moves no breaker, and resolves no miss. `miss=True` makes it one: there
    was no answer at all.
    """

    code = "unproven"

    def __init__(self, why: str, *, miss: bool = False) -> None:
        super().__init__(why)
        self.miss = miss
