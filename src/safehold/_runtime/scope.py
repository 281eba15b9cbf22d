"""The stretch of work in which a decision is made, and what went unanswered inside it.

The current scope is a context variable, so it travels through awaits, child tasks, task groups and
`asyncio.to_thread`. A guarded call notes itself in the scope in which it began and in all that enclose
it, and takes the note back when it ends; a miss leaves a taint there, to the scope's end, whether or not
the application swallowed the failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar, copy_context
from functools import wraps
from itertools import count
from types import MappingProxyType, TracebackType
from typing import ParamSpec, Self, TypeVar

from .._core.configuration import ConfigurationError, check_name
from .._core.gate import ScopeFacts
from .handling import handled

P = ParamSpec("P")
R = TypeVar("R")

_current: ContextVar[Scope | None] = ContextVar("safehold_scope", default=None)
innermost = _current.get
scopes_open: set[int] = set()
"""The scopes that are open anywhere in the process. Guarded calls ask for theirs only while there are any."""
_numbers = count(1)
_process = 0  # how often this process was forked into being; a call of the parent's is not ours


def forked() -> None:
    """Disown the calls that the parent had in flight."""
    global _process  # noqa: PLW0603 - one number per process
    _process += 1


class Scope:
    """A scope: `with health.scope("stale sessions") as scope:`. One use each; leaving it never raises.

    A nested scope is as tainted as what encloses it; only a root scope is clean. A scope that is opened
    while a seen failure is being handled is born tainted. Code that still holds a scope after its end
    counts as being in the nearest one that is open, or in none.
    """

    __slots__ = ("_asked", "_calls", "_open", "_parent", "_taints", "_used", "name", "number")

    def __init__(self, name: str) -> None:
        check_name("scope name", name)
        self.name = name
        self.number = next(_numbers)
        self._open = False
        self._parent: Scope | None = None
        self._used = False
        self._taints: dict[str, str] = {}
        self._calls: dict[object, tuple[str, int]] = {}
        self._asked: set[str] = set()

    @property
    def tainted(self) -> bool:
        """Whether a dependency missed in this scope or in one that encloses it."""
        return any(scope._taints for scope in self.lineage())

    @property
    def is_clean(self) -> bool:
        """Whether nothing at all was noted: neither a miss nor a call that has not ended."""
        return not any(scope._taints or scope._calls for scope in self.lineage())

    @property
    def missed(self) -> tuple[str, ...]:
        """The dependencies that missed in this very scope, or in one inside it."""
        return tuple(self._taints)

    @property
    def asked(self) -> frozenset[str]:
        """The dependencies that were called in this scope, or in one inside it."""
        return frozenset(self._asked)

    @property
    def taints(self) -> Mapping[str, str]:
        """The dependencies that missed, each with why its first miss was one."""
        taints: dict[str, str] = {}
        for scope in self.lineage():
            taints = {**scope._taints, **taints}
        return MappingProxyType(taints)

    def __enter__(self) -> Self:
        if self._used:
            msg = f"scope {self.name!r} was entered before: make a new one for each stretch of work"
            raise ConfigurationError(msg)
        self._parent = open_scope()
        self._open = self._used = True
        for name, why in handled().failures.items():
            self.taint(name, f"opened while a failure is being handled: {why}")
        scopes_open.add(id(self))
        _current.set(self)  # last: nothing that fails before it leaves a scope that nobody ends
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        scopes_open.discard(id(self))
        if _current.get() is self:  # else another one was entered since, or this is another context
            _current.set(open_scope())

    def lineage(self) -> Iterator[Scope]:
        """Give this scope and those that enclose it, innermost first."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope._parent

    def taint(self, dependency: str, why: str) -> None:
        """Note a miss here and in all enclosing scopes; the first one of a dependency is kept."""
        for scope in self.lineage():
            scope._taints.setdefault(dependency, why)

    def begin(self, call: object, dependency: str, *, long: bool) -> None:
        """Note a call in flight. A long one is not waited for."""
        for scope in self.lineage():
            scope._asked.add(dependency)
            if not long:
                scope._calls[call] = (dependency, _process)

    def end(self, call: object) -> None:
        """Take the note back."""
        for scope in self.lineage():
            scope._calls.pop(call, None)

    def facts(self) -> ScopeFacts:
        """Give what the gate has to know, of this scope and of what encloses it."""
        calls: dict[object, str] = {}
        for scope in self.lineage():
            calls.update(
                {call: name for call, (name, born) in scope._calls.copy().items() if born == _process}
            )
        names = list(calls.values())
        in_flight = {name: names.count(name) for name in dict.fromkeys(names)}
        return ScopeFacts(name=self.name, taints=dict(self.taints), in_flight=in_flight)

    def __repr__(self) -> str:
        state = "tainted" if self.tainted else "clean"
        return f"<Scope {self.name!r} {state}{'' if self._open else ', not open'}>"


def open_scope() -> Scope | None:
    """Give the innermost scope that is still open, if there is one."""
    scope = _current.get()
    while scope is not None and not scope._open:
        scope = scope._parent
    return scope


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """Let `function` run in the scope of whoever called `carry`, wherever it runs: executors, threads.

    It may run many times and in many threads at once; each run has its own copy of the context.
    """
    context = copy_context()

    @wraps(function)
    def carried(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.copy().run(function, *args, **kwargs)

    return carried
