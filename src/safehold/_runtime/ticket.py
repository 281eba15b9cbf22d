"""The registered operation inside which the present line of code runs.

Call sites that know destructive commands let them through only with such a ticket. It travels like any
context, into child tasks and `asyncio.to_thread`, and is worth nothing once the operation has ended.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from types import TracebackType
from typing import Protocol

_held: ContextVar[Ticket | None] = ContextVar("safehold_ticket", default=None)


class Running(Protocol):
    """What runs, and can be asked whether it may go on."""

    def recheck(self) -> None: ...


class Ticket:
    """The stretch in which an operation runs: `with Ticket(name): ...`."""

    __slots__ = ("_open", "_token", "act", "operation")

    def __init__(self, operation: str, act: Running | None = None) -> None:
        self.operation = operation
        self.act = act
        self._open = False
        self._token: Token[Ticket | None] | None = None

    def __enter__(self) -> None:
        self._open = True
        self._token = _held.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        if self._token is not None:
            _held.reset(self._token)


def running_operation() -> str | None:
    """Name the operation inside which this runs; `None` outside of all."""
    ticket = _held.get()
    return None if ticket is None or not ticket._open else ticket.operation


def running_act() -> Running | None:
    """Give the act inside which this runs; `None` outside of all."""
    ticket = _held.get()
    return None if ticket is None or not ticket._open else ticket.act
