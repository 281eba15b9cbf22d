"""What a destructive operation is: what `destructive` was told about it, and where its code stands."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

from .._core.budget import Budget
from .._core.configuration import ConfigurationError, check_name, check_number
from .._core.gate import Trigger
from .kinds import Kinds, without_partials
from .subjects import check_subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A registered destructive operation: what `destructive` was told, and where the code stands.

    `requires` is `None` when every critical dependency is required. Operations of one `subject_type` share
    what their budgets count. `owner` is who answers for it.
    """

    name: str
    trigger: Trigger
    requires: tuple[str, ...] | None
    writes: frozenset[str]
    tolerates: frozenset[str]
    subject: str | None
    evidence: str | None
    evidence_age: float
    budget: Budget | None
    subject_type: str
    owner: str | None
    is_async: bool
    module: str
    qualname: str
    filename: str
    line: int

    @property
    def place(self) -> str:
        """Where the code stands, for people."""
        return f"{self.qualname} in {self.filename}:{self.line}"

    def same_code(self, other: Operation) -> bool:
        """Whether both come from one place in the source: loaded again, or run as `__main__` as well.

        Lines move when a module is edited and loaded again, so they count for lambdas only.
        """
        lines = self.line == other.line or "<lambda>" not in self.qualname
        return lines and (self.filename, self.qualname) == (other.filename, other.qualname)


def make_operation(
    function: Any,
    name: str,
    *,
    trigger: str,
    requires: Collection[str] | None,
    writes: Collection[str],
    tolerates: Collection[str],
    subject: str | None,
    evidence: str | None,
    evidence_age: float,
    budget: Budget | None,
    subject_type: str | None,
    owner: str | None,
) -> Operation:
    """Check what `destructive` was told, at once, and find out where the code stands."""
    check_name("operation name", name)
    if trigger not in tuple(Trigger):
        msg = f'trigger must be "automatic" or "requested", got {trigger!r}'
        raise ConfigurationError(msg)
    required = None if requires is None else _names("requires", requires)
    written = frozenset(_names("writes", writes))
    if required is not None and (other := written.difference(required)):
        msg = f"writes={sorted(written)!r} names {sorted(other)!r}, which requires={required!r} does not"
        raise ConfigurationError(msg)
    tolerated = frozenset(_names("tolerates", tolerates))
    if both := tolerated.intersection(required or ()):
        msg = f"requires={required!r} and tolerates={sorted(tolerated)!r} both name {sorted(both)!r}"
        raise ConfigurationError(msg)
    if evidence is not None:
        check_name("evidence", evidence)
        if subject is None:
            msg = f"evidence={evidence!r} of {name!r} needs subject=: what shall it testify about?"
            raise ConfigurationError(msg)
    check_number("evidence_age", evidence_age, above=0)
    if budget is not None and not isinstance(budget, Budget):
        msg = f"budget must be a Budget, got {budget!r}"
        raise ConfigurationError(msg)
    for what, value in (("subject_type", subject_type), ("owner", owner)):
        if value is not None:
            check_name(what, value)
    if subject is not None:
        check_subject(function, name, subject)
    inner = without_partials(function)
    code = getattr(inspect.unwrap(inner), "__code__", None)
    kinds = Kinds(function)
    return Operation(
        name=name,
        trigger=Trigger(trigger),
        requires=required,
        writes=written,
        tolerates=tolerated,
        subject=subject,
        evidence=evidence,
        evidence_age=evidence_age,
        budget=budget,
        subject_type=name.partition(".")[0] if subject_type is None else subject_type,
        owner=owner,
        is_async=kinds.is_async or kinds.is_async_generator,
        module=str(getattr(inner, "__module__", "")),
        qualname=str(getattr(inner, "__qualname__", type(inner).__qualname__)),
        filename="" if code is None else code.co_filename,
        line=0 if code is None else code.co_firstlineno,
    )


def _names(what: str, names: Collection[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not isinstance(cast("object", names), Collection):
        msg = f"{what} must be a list of dependency names, got {names!r}"
        raise ConfigurationError(msg)
    for name in names:
        check_name(f"a name in {what}", name)
    return tuple(dict.fromkeys(names))
