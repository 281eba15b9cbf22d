"""What a witness saw: present, absent, or unknown, and everything that says how much it is worth.

"Cannot tell" is a value of its own, so that it cannot become "it is gone" on the way: evidence has no truth
value, is equal to nothing but itself, and is no key of a dictionary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, NoReturn

from .configuration import ConfigurationError

MAX_AGE: Final = 5.0
"""Seconds for which evidence is young enough to act upon, unless an operation says otherwise."""


class Presence(StrEnum):
    """Whether the subject is there."""

    PRESENT = "present"
    ABSENT = "absent"
    UNKNOWN = "unknown"


PRESENT, ABSENT, UNKNOWN = Presence.PRESENT, Presence.ABSENT, Presence.UNKNOWN
_STRONGEST = (PRESENT, UNKNOWN, ABSENT)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """One observation of one subject.

    `asked` and `answered` are monotonic instants. `generation` is the dependency's when it was asked, `scope`
    the number of the scope in which that happened (`None` outside of all). `why` says why it is unknown.
    """

    presence: Presence
    subject: str
    witness: str
    dependency: str
    asked: float
    answered: float
    generation: int
    scope: int | None = None
    epoch: int = 0
    why: str = ""

    def __bool__(self) -> NoReturn:
        msg = f"evidence has no truth value: ask for .presence ({self.witness} of {self.subject!r})"
        raise TypeError(msg)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Evidence):
            msg = f"evidence cannot be compared with {other!r}: ask for .presence"
            raise TypeError(msg)
        return self is other

    __hash__ = None  # type: ignore[assignment]  # no key of a dictionary


def combine(several: Iterable[Evidence]) -> Evidence:
    """Give the evidence that decides: present beats unknown, and unknown beats absent.

    Raises `ConfigurationError` when there is none.
    """
    ranked = sorted(several, key=lambda evidence: _STRONGEST.index(evidence.presence))
    if not ranked:
        msg = "evidence must not be empty: nothing seen is no proof of absence"
        raise ConfigurationError(msg)
    return ranked[0]


class Demand(NamedTuple):
    """What an operation asks of its evidence, and what there is of it at this instant.

    `seen` is the newest evidence of the witness about the subject; `same_scope` and `same_generation` compare
    where it was gathered with here and now; `miss_since` says that its dependency missed a call since,
    `sick_since` that this process was not well while or after it was asked, `epoch_doubt` why the data that
    it speaks of may not be the data that was known.
    """

    witness: str
    subject: str | None
    known: bool
    max_age: float
    seen: Evidence | None = None
    age: float = 0.0
    same_scope: bool = True
    same_generation: bool = True
    same_epoch: bool = True
    miss_since: bool = False
    epoch_doubt: str = ""
    sick_since: bool = False

    def missing(self) -> tuple[str, str] | None:
        """Say which part of the proof is missing, as a code and in words; `None` when it is complete."""
        name, subject = self.witness, self.subject
        if not self.known:
            return "evidence_missing", f"no witness {name!r} is registered"
        if subject is None:
            return "evidence_missing", "the subject is not known, so nothing can testify about it"
        seen = self.seen
        if seen is None:
            return "evidence_missing", f"{name} has not been asked about {subject!r}"
        if seen.presence is PRESENT:
            return "evidence_present", f"{name} says that {subject!r} is there"
        if seen.presence is UNKNOWN:
            return "evidence_unknown", f"{name} cannot tell about {subject!r} ({seen.why})"
        if not self.same_scope:
            return (
                "evidence_foreign",
                f"{name} was asked about {subject!r} in another scope; ask again",
            )
        if not self.same_generation or self.miss_since:
            return "evidence_overtaken", f"{seen.dependency} failed after {name} was asked about {subject!r}"
        if not self.same_epoch:
            text = f"the data of {seen.dependency} changed its epoch after {name} was asked about {subject!r}"
            return "evidence_overtaken", text
        if self.epoch_doubt:
            text = f"whether {seen.dependency} holds the data that was known is in doubt ({self.epoch_doubt})"
            return "evidence_unknown", text
        if self.sick_since:
            return "evidence_overtaken", f"this process was not well when {name} was asked about {subject!r}"
        if self.age > self.max_age:
            return "evidence_stale", f"{name} was asked about {subject!r} {self.age:.3g} s ago"
        return None
