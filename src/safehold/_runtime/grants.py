"""Grants: audited leave to act in spite of a block.

A grant is an object of this very process, known by its identity: it has no secret that could leak, cannot be
copied or pickled, and one that was not made by `health.grant` is worth nothing. Each subject uses it up once,
before the act. What may be granted to whom is a policy's to decide.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NoReturn

from .._core.configuration import ConfigurationError, check_name, check_number
from .._core.gate import RULES

if TYPE_CHECKING:
    from .engine import Engine

LIFETIME: Final = 600.0
"""Seconds for which a grant is good, unless it is made for fewer."""
_ids = count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantRequest:
    """What a policy is asked about. `plan` is the digest of the plan that it was asked for, if it was."""

    operation: str
    subjects: tuple[str, ...]
    actor: str
    reason: str
    overrides: frozenset[str]
    expires_in: float
    plan: str | None
    approved_by: str | None


class GrantDeniedError(ConfigurationError, PermissionError):
    """The policy makes no such grant; the message says why."""

    code = "grant_denied"


GrantPolicy = Callable[[GrantRequest], "str | None"]
"""Asked before a grant is made: gives why it must not be, or `None`. What it raises denies as well."""


def anyone(_: GrantRequest) -> str | None:
    """Grant to any actor that gives a name and a reason: the default."""
    return None


def nobody(_: GrantRequest) -> str | None:
    """Grant nothing."""
    return "this service makes no grants"


def two_persons(request: GrantRequest) -> str | None:
    """Grant what a second person has approved: `grant(..., actor="a", approved_by="b")`."""
    if request.approved_by is None:
        return "a second person has to approve it: approved_by="
    if request.approved_by.strip().casefold() == request.actor.strip().casefold():
        return f"{request.actor} cannot approve the own request"
    return None


class Grant:
    """Leave for one operation on named subjects: made by `health.grant`, used by `health.force`.

    One that was made by hand is worth nothing.
    """

    __slots__ = ("__weakref__", "_request", "_until", "id")

    def __init__(self, number: int, request: GrantRequest, until: float) -> None:
        self.id = f"g{number}"
        self._request = request
        self._until = until

    @property
    def operation(self) -> str:
        """The operation that it is for."""
        return self._request.operation

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects that it is for; empty for an operation that has none."""
        return self._request.subjects

    @property
    def actor(self) -> str:
        """Who has asked for it."""
        return self._request.actor

    @property
    def reason(self) -> str:
        """Why."""
        return self._request.reason

    @property
    def overrides(self) -> frozenset[str]:
        """The rules that it lifts."""
        return self._request.overrides

    @property
    def plan(self) -> str | None:
        """The digest of the plan that it is for, if it is for one."""
        return self._request.plan

    def __repr__(self) -> str:
        return f"<Grant {self.id} for {self.operation} to {self.actor}>"

    def __copy__(self) -> NoReturn:
        msg = "a grant cannot be copied: it is good once"
        raise TypeError(msg)

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        msg = "a grant cannot be pickled: it is good in this process only"
        raise TypeError(msg)


class Grants:
    """The grants of one Safehold, and what is left of each."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._left: weakref.WeakKeyDictionary[Grant, set[str | None]] = weakref.WeakKeyDictionary()
        self.policy: GrantPolicy = anyone

    def reborn(self) -> None:
        """Begin again in a forked child, where the parent's grants are worth nothing."""
        self._left = weakref.WeakKeyDictionary()

    def make(self, request: GrantRequest) -> Grant:
        """Make one, or raise `GrantDeniedError`."""
        try:
            denied = self.policy(request)
        except Exception as error:
            msg = f"the grant policy failed ({type(error).__name__})"
            raise GrantDeniedError(msg) from error
        if denied is not None:
            msg = f"no grant for {request.operation} to {request.actor}: {denied}"
            raise GrantDeniedError(msg)
        grant = Grant(next(_ids), request, self._engine.clock.monotonic() + request.expires_in)
        self._left[grant] = set(request.subjects) or {None}
        return grant

    def fault(self, grant: Grant, operation: str, subject: str | None) -> str | None:
        """Say why it does not cover an act; `None` when it does."""
        left = self._left.get(grant)
        request = grant._request
        if left is None:
            return "this process has not made that grant"
        if operation != request.operation:
            return f"{grant.id} is for {request.operation}"
        if self._engine.clock.monotonic() >= grant._until:
            return f"{grant.id} has expired"
        if request.subjects and subject not in request.subjects:
            return f"{grant.id} is not for {subject!r}"
        if (subject if request.subjects else None) not in left:
            return f"{grant.id} is used up"
        return None

    def use(self, grant: Grant, subject: str | None) -> bool:
        """Use it up for a subject; say whether it was left. One thread at a time gets it."""
        left = self._left.get(grant, set())
        key = subject if grant._request.subjects else None

        def take() -> bool:
            if key not in left:
                return False
            left.remove(key)
            return True

        return bool(self._engine.run(take))


def make_request(
    *,
    operation: str,
    has_subject: bool,
    subjects: Collection[str] | None,
    actor: str,
    reason: str,
    overrides: Collection[str],
    expires_in: float,
    plan: str | None,
    approved_by: str | None,
) -> GrantRequest:
    """Check what `grant` was told, at once."""
    check_name("actor", actor)
    check_name("reason", reason)
    if approved_by is not None:
        check_name("approved_by", approved_by)
    check_number("expires_in", expires_in, above=0, most=24 * 3600)
    if isinstance(subjects, str) or not isinstance(subjects, Collection | None):
        msg = f"subjects must be a list of subjects, got {subjects!r}"
        raise ConfigurationError(msg)
    named: tuple[Any, ...] = tuple(dict.fromkeys(subjects or ()))
    if has_subject and not named:
        msg = f"subjects must name what {operation!r} may destroy, got {subjects!r}"
        raise ConfigurationError(msg)
    if named and not has_subject:
        msg = f"subjects={named!r}, but {operation!r} has no subject"
        raise ConfigurationError(msg)
    if isinstance(overrides, str) or not overrides:
        msg = f"overrides must be a list of the rules that it lifts, got {overrides!r}"
        raise ConfigurationError(msg)
    for code in overrides:
        rule = RULES.get(code)
        if rule is None:
            msg = f"overrides names {code!r}, which is no rule; there are {', '.join(sorted(RULES))}"
            raise ConfigurationError(msg)
        if not rule.may_be_forced:
            msg = f"overrides names {code!r}, which nobody may override ({rule.meaning})"
            raise ConfigurationError(msg)
    return GrantRequest(
        operation=operation,
        subjects=tuple(str(subject) for subject in named),
        actor=actor,
        reason=reason,
        overrides=frozenset(overrides),
        expires_in=float(expires_in),
        plan=plan,
        approved_by=approved_by,
    )
