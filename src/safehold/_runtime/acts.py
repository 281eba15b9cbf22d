"""The forms of a destructive operation, and what happens around each act of one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .._core.budget import Population
from .._core.configuration import ConfigurationError
from ..errors import OperationBlocked
from .kinds import Kinds, around_async_generator, around_generator, named
from .ledger import LedgerOutcome, outcome_of
from .operations import Operation
from .questions import aask, ask
from .subjects import subject_reader
from .ticket import Step, held

if TYPE_CHECKING:
    from .gate import Gate
    from .grants import Grant

_GATED = "__safehold_gated__"
_DONE = LedgerOutcome.DONE  # every act asks for it, and an enumeration takes its time


def gated(function: Any, gate: Gate, operation: Operation) -> Any:
    """Give the gated form of a function, coroutine function, generator or async generator."""
    make = Making(function, gate, operation)
    wrapper = named(make.form(None), function)
    setattr(wrapper, _GATED, make)
    make.wrapper = wrapper
    return wrapper


class Making:
    """How the gated forms of one function are made: the one that everybody calls, and one for each grant."""

    def __init__(self, function: Any, gate: Gate, operation: Operation) -> None:
        self.operation = operation
        self.wrapper: object = None
        self._function = function
        self._gate = gate
        self._kinds = Kinds(function)
        self._read_subject = subject_reader(function, operation.subject)

    def form(self, grant: Grant | None) -> Callable[..., Any]:
        """Give the form that acts with this grant, or without one."""
        kinds, function = self._kinds, self._function
        if kinds.is_generator or kinds.is_async_generator:
            around = around_generator if kinds.is_generator else around_async_generator
            return around(function, self._acts(grant, stepwise=True))
        return (_gate_async if kinds.is_async else _gate)(function, self._acts(grant, stepwise=False))

    def _acts(self, grant: Grant | None, *, stepwise: bool) -> Callable[[Any, Any], Act]:
        """Give what makes an act of a call's arguments."""
        gate, operation, read = self._gate, self.operation, self._read_subject

        def act(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Act:
            return Act(gate, operation, read(args, kwargs), grant, stepwise=stepwise)

        def act_without_subject(_: tuple[Any, ...], __: dict[str, Any]) -> Act:
            return Act(gate, operation, None, grant, stepwise=stepwise)

        return act_without_subject if operation.subject is None else act


def making_of(function: Any, *, itself: bool = False) -> tuple[Making, tuple[Any, ...], dict[str, Any]]:
    """Find how a gated function, bound method or partial of one is made, and what it adds to a call.

    `itself`: a decorator around it is refused, because what the decorator does would be left out.
    """
    first: tuple[Any, ...] = ()
    named_ones: dict[str, Any] = {}
    while True:
        if isinstance(function, partial):
            first, named_ones = (*function.args, *first), {**function.keywords, **named_ones}
            function = function.func
        elif inspect.ismethod(function):
            first, function = (function.__self__, *first), function.__func__
        else:
            break
    making = getattr(function, "__dict__", {}).get(_GATED)
    if not isinstance(making, Making):
        msg = f"function must be a destructive operation, or a bound method of one, got {function!r}"
        raise ConfigurationError(msg)
    if itself and making.wrapper is not function:
        msg = f"function must be the operation {making.operation.name!r} itself, not {function!r} around it"
        raise ConfigurationError(msg)
    return making, first, named_ones


def _gate(function: Any, act: Callable[[Any, Any], Act]) -> Callable[..., Any]:
    def destructive(*args: Any, **kwargs: Any) -> Any:
        with act(args, kwargs) as this:
            result = function(*args, **kwargs)
            if not inspect.iscoroutine(result):
                return result
            this.deferred = True
        return ended(result, this)

    async def ended(coroutine: Any, begun: Act) -> Any:
        """Await what a plain function gave: nothing was done yet, so it is decided again."""
        try:
            this = begun.again()
            await this.prepare()
            with this:
                return await coroutine
        finally:
            coroutine.close()  # blocked, it was never begun

    return destructive


def _gate_async(function: Any, act: Callable[[Any, Any], Act]) -> Callable[..., Any]:
    async def destructive(*args: Any, **kwargs: Any) -> Any:
        this = act(args, kwargs)
        if not this.is_prepared():
            await this.prepare()
        with this:
            return await function(*args, **kwargs)

    return destructive


class Act:
    """One act: entering asks the gate and writes the intent, leaving writes what became of it.

    A generator's is entered at its first step, and runs for one step at a time.
    """

    __slots__ = (
        "_gate", "_grant", "_heard", "_intent", "_operation", "_stepwise", "_subject", "_token", "deferred",
        "runs",
    )  # fmt: skip

    def __init__(
        self,
        gate: Gate,
        operation: Operation,
        subject: str | None,
        grant: Grant | None,
        *,
        stepwise: bool,
    ) -> None:
        self._gate = gate
        self._operation = operation
        self._subject = subject
        self._grant = grant
        self._stepwise = stepwise
        self._heard: tuple[Population | None, Exception | None] | None = None
        self.deferred = self.runs = False

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation.name

    def again(self) -> Act:
        """Give one that decides the same again, and goes on with the same use of a grant."""
        rest = None if self._grant is None else self._gate.rest_of(self._grant, self._subject)
        return Act(self._gate, self._operation, self._subject, rest, stepwise=False)

    def is_prepared(self) -> bool:
        """Whether nothing has to be asked before, or it was."""
        if self._heard is not None:
            return True
        try:
            return self._gate.asks_nothing(self._operation)
        except Exception as error:  # noqa: BLE001 - cannot tell means no; entering says so
            self._heard = None, error
            return True

    async def prepare(self) -> None:
        """Ask what has to be asked before, where it can be awaited."""
        try:
            self._heard = await aask(self._gate.questions(self._operation)), None
        except Exception as error:  # noqa: BLE001 - cannot tell means no; entering says so
            self._heard = None, error

    def __enter__(self) -> Self:
        gate, operation = self._gate, self._operation
        try:
            intent = None
            if self._grant is None and (self._heard is None or self._heard[1] is None):
                intent = gate.admit_at_once(operation, self._subject)
            if intent is None:
                intent = gate.admit(operation, self._subject, self._grant, self._population())
            self._intent = intent
            if not self._stepwise:
                self.runs = True
                self._token = held.set(self)
        except OperationBlocked:
            raise
        except Exception as error:  # noqa: BLE001 - cannot tell means no
            gate.refuse(operation, self._subject, error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.runs:
            self.runs = False
            try:  # noqa: SIM105 - `suppress` costs as much as the rest
                held.reset(self._token)
            except ValueError:  # ended in another context, where nobody has it
                pass
        if self.deferred:
            outcome, why = LedgerOutcome.DEFERRED, ""
        elif error is None:
            outcome, why = _DONE, ""
        else:
            outcome, why = outcome_of(error)
        self._gate.conclude(self._operation, self._intent, outcome, why)

    def _population(self) -> Population | None:
        """Give what was asked before, or ask now."""
        if self.is_prepared():
            population, fault = self._heard or (None, None)
            if fault is not None:
                raise fault
            return population
        return ask(self._gate.questions(self._operation))

    def recheck(self) -> None:
        """Decide again, in the middle of it."""
        self._gate.recheck(self._operation, self._subject, self._grant)

    def sharing(self) -> AbstractContextManager[object]:
        return Step(self)

    def abandon(self) -> None:
        pass
