"""Subclasses that go by the name of their parent, and are pickled as it."""

from __future__ import annotations

import copyreg
from typing import Any


def plainly(plain: Any, mark: type, over: dict[str, Any]) -> Any:
    """Make a subclass of `plain` that nobody can tell from it by name.

    Its objects stay what they are when they are copied, and become plain ones when they are pickled:
    what guards them belongs to this process.
    """

    def reduce(self: Any, protocol: Any) -> Any:
        made = plain.__reduce_ex__(self, protocol)
        if isinstance(made, tuple) and made[0] is copyreg.__newobj__ and made[1] == (type(self),):  # type: ignore[attr-defined]  # typeshed leaves it out
            return (_make, (plain, _Here(type(self))), *made[2:])
        return made

    over = {**over, "__reduce_ex__": reduce}
    names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    return type(plain.__name__, (plain, mark), {**over, **names})


def plain_class(kind: Any) -> Any:
    """Give the class that a class made here stands for."""
    return kind.__mro__[1]


class _Here:
    """A class that exists in this process only."""

    __slots__ = ("kind",)

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def __deepcopy__(self, memo: Any) -> _Here:
        return self

    def __reduce__(self) -> Any:
        return (_nowhere, ())


def _nowhere() -> None:
    """Give what is left of such a class elsewhere."""


def _make(plain: Any, here: _Here | None) -> Any:
    return object.__new__(plain if here is None else here.kind)
