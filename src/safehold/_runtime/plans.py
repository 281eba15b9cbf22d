"""Plans: everything that is to be destroyed, named before the first of it is, and judged as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._core.budget import Population
from .._core.configuration import ConfigurationError
from .._core.gate import Reason, Verdict, blocked_by
from . import log
from .describe import cause_of

if TYPE_CHECKING:
    from .gate import Gate
    from .operations import Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one operation is to do to which subjects, and whether the budget allows all of it.

    True in a condition when it does. `digest` names exactly this operation with exactly these subjects, in
    any order, in the present epoch of what it requires: what a person approves is that and nothing else.
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


def judged(
    gate: Gate, operation: Operation, nominated: Collection[str], population: Population | None
) -> tuple[Reason, ...]:
    """Nominate all at once, and give what the budget has against acting on them. Never raises."""
    try:
        found = gate.nominate(operation, nominated, population, plan=True)
    except Exception as error:  # noqa: BLE001 - what cannot be counted is not done
        with suppress(Exception):
            log.fault("gate_failed", error, operation=operation.name)
        text = f"what is nominated cannot be counted ({cause_of(error).text})"
        return (blocked_by("gate_fault", text, retry_after=None),)
    return tuple(
        blocked_by(finding.code, finding.text, retry_after=finding.retry_after)
        for finding in found
        if finding.code not in gate.off
    )


def plan_of(gate: Gate, operation: Operation, subjects: Collection[str], reasons: tuple[Reason, ...]) -> Plan:
    """Give the plan to destroy these subjects, against which the budget has these reasons."""
    stamps = {d.name: d.epoch_stamp for d in gate.needs(operation).required if d.epoch_stamp}
    return Plan(
        operation=operation.name,
        subjects=tuple(subjects),
        digest=digest_of(operation.name, subjects, stamps),
        verdict=Verdict(operation=operation.name, trigger=operation.trigger, reasons=reasons),
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


def digest_of(operation: str, subjects: Collection[str], stamps: Mapping[str, str]) -> str:
    """Give the SHA-256 of what is planned, and of the data that it speaks of, in hexadecimal."""
    told = json.dumps([operation, sorted(subjects), stamps], ensure_ascii=True, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()
