"""How a refusal travels: one pydantic model, whatever the surface."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ._core.configuration import ConfigurationError
from ._core.gate import Reason
from ._core.health import HealthState

PAYLOAD_VERSION = 1


def _known_state(value: object) -> object:
    """Read a state that a newer version may have sent."""
    return value if value in HealthState.__members__.values() else HealthState.UNKNOWN


class ReasonPayload(BaseModel):
    """One of the reasons of a blocked operation, as it travels."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    code: str = Field(max_length=100)
    dependency: str = Field(max_length=200)
    state: HealthState = HealthState.UNKNOWN
    retry_after: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    text: str = Field(default="", max_length=2000)

    _state = field_validator("state", mode="before")(_known_state)

    @classmethod
    def of(cls, reason: Reason) -> Self:
        """Write a reason down."""
        return cls(
            code=reason.code,
            dependency=reason.dependency,
            state=reason.state,
            retry_after=reason.retry_after,
            text=reason.text[:2000],
        )

    def to_reason(self) -> Reason:
        """Read it back."""
        return Reason(
            code=self.code,
            dependency=self.dependency,
            state=self.state,
            retry_after=self.retry_after,
            text=self.text,
        )


class Refusal(BaseModel):
    """What every surface renders and every client of ours can read: one refusal, as it travels.

    Unknown members are ignored and unknown states become `unknown`, so that versions can mix.
    `retry_after` is in seconds as of the moment it was written, `None` when only a person can end it.
    `outcome` is always `not_executed`: whatever was asked for has not happened.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    version: int = PAYLOAD_VERSION
    code: str = Field(max_length=100)
    dependency: str = Field(max_length=200)
    state: HealthState
    reason: str = Field(max_length=100)
    retry_after: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    since: datetime | None = None
    cause: str = Field(default="", max_length=2000)
    detail: str = Field(default="", max_length=2000)
    outcome: str = Field(default="not_executed", max_length=100)
    operation: str | None = Field(default=None, max_length=200)
    subject: str | None = Field(default=None, max_length=500)
    reasons: tuple[ReasonPayload, ...] = Field(default=(), max_length=100)

    _state = field_validator("state", mode="before")(_known_state)


def read(payload: Refusal | Mapping[str, Any] | str | bytes) -> Refusal:
    """Take a refusal from outside; raise `ConfigurationError` for anything that is none."""
    if isinstance(payload, Refusal):
        return payload
    try:
        if isinstance(payload, str | bytes):
            return Refusal.model_validate_json(payload)
        return Refusal.model_validate(payload)
    except ValidationError as error:
        msg = f"payload is not a refusal: {error.error_count()} members are missing or wrong"
        raise ConfigurationError(msg) from error
