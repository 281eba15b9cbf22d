"""Plans: everything that is to be destroyed, named before the first of it is, and judged as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._core.budget import Population
from .._core.configuration import ConfigurationError
from .._core.gate import Reason, Verdict, blocked_by

if TYPE_CHECKING:
    from .gate import Gate
    from .operations import Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one operation is to do to which subjects, and whether the budget allows all of it.

    True in a condition when it does. `digest` names exactly this operation with exactly these subjects, in
    any order: what a person approves is that and nothing else.
    """

    operation: str
    subjects: tuple[str, ...]
    digest: str
    verdict: Verdict

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """What the budget has against it."""
        return self.verdict.reasons

    @property
    def allowed(self) -> bool:
        """Whether all of it fits."""
        return self.verdict.allowed

    def __bool__(self) -> bool:
        return self.allowed


def plan_of(
    gate: Gate,
    operation: Operation,
    subjects: Collection[str],
    nominated: Collection[str],
    population: Population | None,
) -> Plan:
    """Judge what is to be destroyed; the budget judges everything that was nominated."""
    found = gate.nominate(operation, nominated, population, plan=True) if nominated else ()
    reasons = tuple(
        blocked_by(finding.code, finding.text, retry_after=finding.retry_after)
        for finding in found
        if finding.code not in gate.off
    )
    name = operation.name
    return Plan(
        operation=name,
        subjects=tuple(subjects),
        digest=digest_of(name, subjects),
        verdict=Verdict(operation=name, trigger=operation.trigger, reasons=reasons),
    )


def explicit(what: str, subjects: object) -> tuple[str, ...]:
    """Give the subjects as text, each once. Nothing but a collection names any: no text, no `None`."""
    if isinstance(subjects, str | bytes) or not isinstance(subjects, Collection):
        msg = f"{what} must be an explicit list of subjects, got {subjects!r}"
        raise ConfigurationError(msg)
    names = tuple(dict.fromkeys(str(subject) for subject in subjects if subject is not None))
    if any(not name.strip() for name in names) or None in subjects:
        msg = f"{what} must not hold an empty subject or None"
        raise ConfigurationError(msg)
    return names


def digest_of(operation: str, subjects: Collection[str]) -> str:
    """Give the SHA-256 of what is planned, in hexadecimal."""
    told = json.dumps([operation, sorted(subjects)], ensure_ascii=True)
    return hashlib.sha256(told.encode()).hexdigest()
