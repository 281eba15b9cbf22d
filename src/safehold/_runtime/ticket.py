"""The registered operation inside which the present line of code runs.

Call sites that know destructive commands let them through only with such a ticket. It travels like any
context, into child tasks and `asyncio.to_thread`, and is worth nothing once the operation has ended.
"""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from types import TracebackType
from typing import Protocol


class Running(Protocol):
    """An act that runs, or that has run."""

    @property
    def name(self) -> str: ...
    @property
    def runs(self) -> bool: ...
    def recheck(self) -> None: ...


held: ContextVar[Running | None] = ContextVar("safehold_ticket", default=None)


class Step:
    """One step of an act that runs in steps: `with Step(act): ...`."""

    __slots__ = ("_act", "_token", "runs")

    def __init__(self, act: Running) -> None:
        self._act = act
        self.runs = False

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._act.name

    def recheck(self) -> None:
        """Decide again."""
        self._act.recheck()

    def __enter__(self) -> None:
        self.runs = True
        self._token = held.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.runs = False
        with suppress(
            ValueError
        ):  # ended in another context, as a generator that was dropped: it is worthless there
            held.reset(self._token)


def running_operation() -> str | None:
    """Name the operation inside which this runs; `None` outside of all."""
    act = running_act()
    return None if act is None else act.name


def running_act() -> Running | None:
    """Give the act inside which this runs; `None` outside of all."""
    act = held.get()
    return None if act is None or not act.runs else act
