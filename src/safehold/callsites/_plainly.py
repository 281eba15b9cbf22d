"""Subclasses that go by the name of their parent, and are pickled as it."""

from __future__ import annotations

import copyreg
from typing import Any

from .._core.configuration import ConfigurationError


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
    try:
        return _untold(plain, mark, {**over, **names})
    except TypeError as error:
        msg = f"cannot make a guarded subclass of {plain.__qualname__}: {error}; its metaclass asks for more"
        raise ConfigurationError(msg) from error


class _Quiet:
    __slots__ = ()

    def __init_subclass__(cls, **_: Any) -> None:
        """Do nothing, not even what those behind it would do."""


def _untold(plain: Any, mark: type, names: dict[str, Any]) -> Any:
    """Make the subclass without running a `__init_subclass__` of the user's, who has no subclass there.

    Python asks what comes second in the class's order, so while the class is made that is one that does
    nothing. As one of its bases it would change the layout of the objects; in their order it does not.
    """
    told = next(kind for kind in plain.__mro__ if "__init_subclass__" in vars(kind))
    if told.__module__ in {"builtins", "typing"}:  # nobody's
        return type(plain.__name__, (plain, mark), names)
    metaclass: Any = type(plain)
    made = False

    class Meta(metaclass):  # type: ignore[misc]  # whichever the user's class has
        def mro(self) -> list[type]:
            first, *rest = super().mro()
            return [first, *rest] if made else [first, _Quiet, *rest]

    guarded: Any = Meta(plain.__name__, (plain, mark), names)
    made = True
    guarded.__bases__ = guarded.__bases__  # asks for the order anew
    if metaclass is not type:  # for which Python does not allow it
        guarded.__class__ = metaclass
    return guarded


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
