"""Everything that Safehold raises.

    SafeholdError
    ├── ConfigurationError (also ValueError, TypeError)   a setting or an argument that cannot work
    │   └── GrantDeniedError (also PermissionError)       the grant policy says no; in `safehold`
    └── Refused                                           did not run, because Safehold said so
        ├── DependencyUnhealthy                           a call, refused by a breaker
        ├── Saturated                                     a call, refused by a limiter
        └── OperationBlocked                              a destructive operation, blocked by the gate

A `Refused` says which `dependency` is to blame, in which `state`, since when, for which `reason` (a
stable code), and when to try again: `retry_after` in seconds, never negative, 0 for "now", `None` when
only a person can end it. It is computed when it is read, so raising stays cheap.

Every one of them can be pickled and copied, and turned into a payload (`to_payload`) and back
(`from_payload`), so that the context survives a chain of services.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from ._core.configuration import ConfigurationError, SafeholdError, check_number
from ._core.gate import Reason
from ._core.health import HealthState

if TYPE_CHECKING:
    from ._payload import Refusal

__all__ = [
    "ConfigurationError",
    "DependencyUnhealthy",
    "OperationBlocked",
    "Refusal",
    "Refused",
    "SafeholdError",
    "Saturated",
]


_GOLDEN = 0.6180339887498949  # its multiples, less their whole parts, lie as far apart as can be


class Notice(Protocol):
    """What a refusal stores: where its context is read when somebody asks."""

    @property
    def dependency(self) -> str: ...
    @property
    def state(self) -> HealthState: ...
    @property
    def reason(self) -> str: ...
    @property
    def since(self) -> datetime | None: ...
    @property
    def cause(self) -> str: ...
    def retry_after(self) -> float | None: ...


class _Told:
    """A notice that is all said: of a refusal built by hand, copied, pickled or received.

    `elapsed` gives the seconds that have passed since it was said, where somebody can know.
    """

    __slots__ = ("_elapsed", "_retry_after", "cause", "dependency", "reason", "since", "state")

    def __init__(
        self,
        dependency: str,
        state: HealthState,
        retry_after: float | None,
        reason: str,
        since: datetime | None,
        cause: str,
        elapsed: Callable[[], float] | None = None,
    ) -> None:
        if retry_after is not None:
            check_number("retry_after", retry_after, least=0)
        self.dependency = dependency
        self.state = HealthState(state)
        self.reason = reason
        self.since = since
        self.cause = cause
        self._retry_after = retry_after
        self._elapsed = elapsed

    def retry_after(self) -> float | None:
        if self._retry_after is None or self._elapsed is None:
            return self._retry_after
        return max(0.0, self._retry_after - self._elapsed())


class Refused(SafeholdError):
    """Did not run, because Safehold said so. Catch this to catch all kinds."""

    code = "refused"
    outcome: ClassVar[str] = "not_executed"
    _turn = 0  # how many were refused before, where they are spread

    def __init__(
        self,
        dependency: str | Notice,
        state: HealthState = HealthState.UNKNOWN,
        retry_after: float | None = None,
        reason: str = "refused",
        since: datetime | None = None,
        cause: str = "",
    ) -> None:
        if isinstance(dependency, str):
            dependency = _Told(dependency, state, retry_after, reason, since, cause)
        self._notice = dependency

    @property
    def dependency(self) -> str:
        """The dependency to blame; `"self"` when none is."""
        return self._notice.dependency

    @property
    def state(self) -> HealthState:
        """Its health when this was raised."""
        return self._notice.state

    @property
    def retry_after(self) -> float | None:
        """Seconds until a new attempt makes sense; 0 for now, `None` when only a person can end it."""
        wait, turn = self._notice.retry_after(), self._turn
        if wait and turn:  # others were told before: nobody comes earlier than may be, nor all at once
            wait *= 1 + getattr(self._notice, "spread", 0.0) * (turn * _GOLDEN % 1)
        return wait

    @property
    def reason(self) -> str:
        """A stable code."""
        return self._notice.reason

    @property
    def since(self) -> datetime | None:
        """When that state began (aware, for people to read); `None` when it is not known."""
        return self._notice.since

    @property
    def cause(self) -> str:
        """What brought the state about, in a few words; empty when it is not known."""
        return self._notice.cause

    def __str__(self) -> str:
        since = self.since
        text = f"{self.dependency} is {self.state}"
        if since is not None:
            text += f" since {since:%H:%M:%S} UTC"
        if self.cause:
            text += f" ({self.cause})"
        return f"{text}, {self._not_done()}, {self._when()}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self}>"

    def _not_done(self) -> str:
        return "the call was not made"

    def _when(self) -> str:
        seconds = self.retry_after
        if seconds is None:
            return "a person has to end this"
        if seconds == 0:
            return "retry now"
        return f"retry in {seconds:.3g} s" if seconds < 1000 else f"retry in {seconds:.0f} s"

    def to_payload(self) -> Refusal:
        """Give what travels: a frozen pydantic model, with `retry_after` as of now."""
        from ._payload import Refusal  # noqa: PLC0415 - pydantic's models load when they are used

        return Refusal(
            code=self.code,
            dependency=self.dependency,
            state=self.state,
            reason=self.reason,
            retry_after=self.retry_after,
            since=self.since,
            cause=self.cause[:2000],
            detail=str(self)[:2000],
        )

    @classmethod
    def from_payload(cls, payload: Refusal | Mapping[str, Any] | str | bytes) -> Refused:
        """Turn a payload (model, mapping or JSON) back into the exception it came from.

        Raises `ConfigurationError` when it is not a refusal's payload. A code that this version does
        not know becomes a plain `Refused`.
        """
        from ._payload import read  # noqa: PLC0415 - pydantic's models load when they are used

        told = read(payload)
        kind: dict[str, type[Refused]] = {
            DependencyUnhealthy.code: DependencyUnhealthy,
            OperationBlocked.code: OperationBlocked,
            Saturated.code: Saturated,
        }
        return kind.get(told.code, Refused)._from_refusal(told)

    @classmethod
    def _from_refusal(cls, told: Refusal) -> Self:
        return cls(told.dependency, told.state, told.retry_after, told.reason, told.since, told.cause)

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.dependency, self.state, self.retry_after, self.reason, self.since, self.cause)
        return (type(self), arguments, {k: v for k, v in self.__dict__.items() if k != "_notice"} or None)


class DependencyUnhealthy(Refused):
    """A call was refused by a breaker, at once and without being made.

    `reason` is `breaker_open`, `trial_in_flight` or `held`.
    """

    code = "dependency_unhealthy"


class Saturated(Refused):
    """A call was refused by a limiter: as many as may be are in flight, and as many as may wait are waiting.

    `reason` is `saturated`. It says nothing about the dependency, which may be as well as can be.
    """

    code = "saturated"

    def __str__(self) -> str:
        why = f" ({self.cause})" if self.cause else ""
        return f"{self.dependency} is given no more calls now{why}, {self._not_done()}, {self._when()}"

    @classmethod
    def _told(
        cls, dependency: str, state: HealthState, retry_after: float, cause: str, elapsed: Callable[[], float]
    ) -> Self:
        return cls(_Told(dependency, state, retry_after, cls.code, None, cause, elapsed))


class OperationBlocked(Refused):
    """A destructive operation was blocked by the gate. It has not been executed.

    `reasons` holds every reason, the worst dependency first; the attributes of the error speak of the
    first. It is never a `TimeoutError`, `OSError`, `ConnectionError` or a client's error, so that no
    handler takes it for an outage.
    """

    code = "operation_blocked"

    def __init__(
        self,
        operation: str,
        reasons: tuple[Reason, ...],
        subject: str | None = None,
        since: datetime | None = None,
        elapsed: Callable[[], float] | None = None,
    ) -> None:
        if not reasons:
            msg = "reasons must not be empty: an operation is blocked for at least one"
            raise ConfigurationError(msg)
        waits = [reason.retry_after for reason in reasons]
        longest = None if None in waits else max(wait for wait in waits if wait is not None)
        first = reasons[0]
        super().__init__(
            _Told(first.dependency, first.state, longest, first.code, since, first.text, elapsed)
        )
        self._elapsed = elapsed
        self.operation = operation
        self.reasons = reasons
        self.subject = subject

    def __str__(self) -> str:
        more = f" (and {len(self.reasons) - 1} more)" if len(self.reasons) > 1 else ""
        return f"{self.cause}{more}, {self._not_done()}, {self._when()}"

    def _not_done(self) -> str:
        return f"{self.operation} was not executed"

    def to_payload(self) -> Refusal:
        """Give what travels: a frozen pydantic model, with `retry_after` as of now."""
        from ._payload import ReasonPayload  # noqa: PLC0415 - pydantic's models load when they are used

        reasons = tuple(ReasonPayload.of(reason) for reason in self._reasons_now()[:100])
        subject = None if self.subject is None else self.subject[:500]
        told = {"operation": self.operation, "subject": subject, "reasons": reasons}
        return super().to_payload().model_copy(update=told)

    @classmethod
    def _from_refusal(cls, told: Refusal) -> Self:
        reasons = tuple(part.to_reason() for part in told.reasons) or (
            Reason(
                code=told.reason,
                dependency=told.dependency,
                state=told.state,
                retry_after=told.retry_after,
                text=told.detail,
            ),
        )
        return cls(told.operation or "", reasons, told.subject, told.since)

    def __reduce__(self) -> tuple[Any, ...]:
        told = ("_notice", "_elapsed", "operation", "reasons", "subject")
        extra = {k: v for k, v in self.__dict__.items() if k not in told}
        return (type(self), (self.operation, self._reasons_now(), self.subject, self.since), extra or None)

    def _reasons_now(self) -> tuple[Reason, ...]:
        """Give the reasons with `retry_after` as of now, to be taken elsewhere."""
        passed = 0.0 if self._elapsed is None else self._elapsed()
        return tuple(
            reason
            if reason.retry_after is None
            else replace(reason, retry_after=max(0.0, reason.retry_after - passed))
            for reason in self.reasons
        )


def __getattr__(name: str) -> Any:
    if name == "Refusal":
        from ._payload import Refusal  # noqa: PLC0415 - pydantic's models load when they are used

        return Refusal
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)
