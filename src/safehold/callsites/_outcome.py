"""What an error of a call says afterwards: whether the call may have been executed on the other side."""

from __future__ import annotations

from typing import Any, Final

from .._core.configuration import ConfigurationError
from .._runtime.dependency import Dependency
from ..errors import Refused
from ._table import Row, Sent, Table

OUTCOMES: Final = {Sent.NO: "not_executed", Sent.MAYBE: "unknown", Sent.YES: "executed"}


def tell_outcome(error: BaseException, sent: Sent, what: str) -> None:
    """Write it on an error, once; `what` names the call to people, without secrets."""
    if isinstance(error, Refused) or "outcome" in vars(error):
        return
    told: Any = error
    told.outcome = OUTCOMES[sent]
    if sent is Sent.MAYBE:
        error.add_note(f"safehold: outcome: unknown, {what} may have been executed")


def row_of(table: Table, error: BaseException) -> Row:
    """Give the row of an error for itself: what its caller was handling just then has no say."""
    context, error.__context__ = error.__context__, None
    try:
        return table.row(error)
    finally:
        error.__context__ = context


def check_dependency(dependency: object) -> None:
    """Raise `ConfigurationError` for what is no dependency."""
    if not isinstance(dependency, Dependency):
        msg = f'dependency must be one of a Safehold, such as health["git"], got {dependency!r}'
        raise ConfigurationError(msg)
