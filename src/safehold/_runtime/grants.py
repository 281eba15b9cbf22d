"""Grants: audited leave to act in spite of a block.

A grant is an object of this very process, known by its identity: it has no secret that could leak, cannot be
copied or pickled, and one that was not made by `health.grant`, or was changed since, is worth nothing. Each
subject uses it up once, before the act. What may be granted to whom is a policy's to decide.
"""

from __future__ import annotations

import inspect
import os
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, cast, final

from .._core.configuration import ConfigurationError, check_name, check_number
from .._core.gate import RULES

if TYPE_CHECKING:
    from .engine import Engine

LIFETIME: Final = 600.0
"""Seconds for which a grant is good, unless it is made for fewer."""
_ids = count(1)
_LONGEST: Final = 500  # characters of subjects in one line


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


@final
class Grant:
    """Leave for one operation on named subjects: made by `health.grant`, used by `health.force`.

    One that was made by hand is worth nothing.
    """

    __slots__ = ("__weakref__", "_request", "_until", "id")
    id: str
    _request: GrantRequest
    _until: float

    def __init__(self, number: int, request: GrantRequest, until: float) -> None:
        object.__setattr__(self, "id", f"g{number}")
        object.__setattr__(self, "_request", request)
        object.__setattr__(self, "_until", until)

    def __init_subclass__(cls) -> NoReturn:
        msg = "a grant has no other kinds"
        raise TypeError(msg)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        msg = f"a grant cannot be changed ({name})"
        raise TypeError(msg)

    def __delattr__(self, name: str) -> NoReturn:
        self.__setattr__(name, None)

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


class _Given(NamedTuple):
    """What was granted, kept where nobody changes it, and the subjects for which it is left."""

    request: GrantRequest
    until: float
    process: int
    left: set[str | None]


class Grants:
    """The grants of one Safehold, and what is left of each."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._given: weakref.WeakKeyDictionary[Grant, _Given] = weakref.WeakKeyDictionary()
        self.policy: GrantPolicy = anyone

    def reborn(self) -> None:
        """Begin again in a forked child, where the parent's grants are worth nothing."""
        self._given = weakref.WeakKeyDictionary()

    def make(self, request: GrantRequest) -> Grant:
        """Make one, or raise `GrantDeniedError`."""
        try:
            denied: Any = cast("Any", self.policy(request))
        except Exception as error:
            msg = f"the grant policy failed ({type(error).__name__})"
            raise GrantDeniedError(msg) from error
        if inspect.iscoroutine(denied):
            denied.close()
            denied = "the policy is a coroutine function, which nobody awaits here"
        if denied is not None:
            msg = f"no grant for {request.operation} to {request.actor}: {denied}"
            raise GrantDeniedError(msg)
        return self._give(request, self._engine.clock.monotonic() + request.expires_in)

    def _give(self, request: GrantRequest, until: float) -> Grant:
        grant = Grant(next(_ids), request, until)
        self._given[grant] = _Given(request, until, os.getpid(), set(request.subjects) or {None})
        return grant

    def fault(self, grant: Grant, operation: str, subject: str | None, *, runs: bool = False) -> str | None:
        """Say why it does not cover an act; `None` when it does. One that `runs` has used it up already."""
        given = self._given.get(grant)
        if given is None or given.process != os.getpid():  # which a fork that nobody told us of has changed
            return "this process has not made that grant"
        request = given.request
        if grant._request is not request or grant._until != given.until:
            return f"{grant.id} was changed"
        if operation != request.operation:
            return f"{grant.id} is for {request.operation}"
        if self._engine.clock.monotonic() >= given.until:
            return f"{grant.id} has expired"
        if request.subjects and subject not in request.subjects:
            return f"{grant.id} is not for {subject!r}"
        if not runs and _key(request, subject) not in given.left:
            return f"{grant.id} is used up"
        return None

    def use(self, grant: Grant, subject: str | None) -> bool:
        """Use it up for a subject; say whether it was left. One thread at a time gets it."""
        given = self._given[grant]
        key = _key(given.request, subject)

        def take() -> bool:
            if key not in given.left:
                return False
            given.left.remove(key)
            return True

        return bool(self._engine.run(take, interrupted=lambda: False))

    def give_back(self, grant: Grant, subject: str | None) -> None:
        """Undo a use for an act that has certainly not begun."""
        given = self._given[grant]
        self._engine.run(lambda: given.left.add(_key(given.request, subject)))

    def rest_of(self, grant: Grant, subject: str | None) -> Grant:
        """Give what carries on a use: an act that was begun is decided once more where it really begins."""
        given = self._given[grant]
        subjects = (subject,) if subject is not None and given.request.subjects else ()
        rest = self._give(replace(given.request, subjects=subjects), given.until)
        object.__setattr__(rest, "id", grant.id)
        return rest


def _key(request: GrantRequest, subject: str | None) -> str | None:
    return subject if request.subjects else None


def told_of(subjects: tuple[str, ...]) -> str | None:
    """Name the subjects for a line of the ledger; of many, how many there are."""
    if not subjects:
        return None
    told = ", ".join(subjects)
    return told if len(told) <= _LONGEST else f"{len(subjects)} subjects: {told[:_LONGEST]}..."


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
    if isinstance(subjects, str | bytes) or not isinstance(subjects, Collection | None):
        msg = f"subjects must be a list of subjects, got {subjects!r}"
        raise ConfigurationError(msg)
    if None in cast("Collection[object]", subjects or ()):
        msg = f"subjects must not hold None, got {subjects!r}"
        raise ConfigurationError(msg)
    named = tuple(dict.fromkeys(str(subject) for subject in subjects or ()))
    if any(not subject.strip() for subject in named):
        msg = f"subjects must not hold an empty one, got {subjects!r}"
        raise ConfigurationError(msg)
    if has_subject and not named:
        msg = f"subjects must name what {operation!r} may destroy, got {subjects!r}"
        raise ConfigurationError(msg)
    if named and not has_subject:
        msg = f"subjects={named!r}, but {operation!r} has no subject"
        raise ConfigurationError(msg)
    if isinstance(overrides, str) or not isinstance(cast("object", overrides), Collection) or not overrides:
        msg = f"overrides must be a list of the rules that it lifts, got {overrides!r}"
        raise ConfigurationError(msg)
    for code in overrides:
        check_name("a rule in overrides", code)
        rule = RULES.get(code)
        if rule is None:
            msg = f"overrides names {code!r}, which is no rule; there are {', '.join(sorted(RULES))}"
            raise ConfigurationError(msg)
        if not rule.may_be_forced:
            msg = f"overrides names {code!r}, which nobody may override ({rule.meaning})"
            raise ConfigurationError(msg)
    return GrantRequest(
        operation=operation,
        subjects=named,
        actor=actor,
        reason=reason,
        overrides=frozenset(overrides),
        expires_in=float(expires_in),
        plan=plan,
        approved_by=approved_by,
    )
