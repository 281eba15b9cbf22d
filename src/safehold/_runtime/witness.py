"""Witnesses: functions that say whether something is there, made to say also that they cannot tell.

A witness is a guarded call in a scope of its own. Whatever it raises, and whatever a guarded call inside it
has missed, swallowed or not, makes `unknown`; only a clean `False` makes `absent`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, overload

from .._core.configuration import ConfigurationError, check_name
from .._core.evidence import ABSENT, PRESENT, UNKNOWN, Evidence, Presence
from .._core.unproven import Unproven
from ..errors import Refused
from .describe import cause_of
from .kinds import Kinds, named
from .permit import Permit
from .scope import Scope, open_scope
from .subjects import subject_parameter, subject_reader

if TYPE_CHECKING:
    from .dependency import Dependency

MOST_KEPT: Final = 10_000
"""Subjects whose newest evidence is kept; older ones are forgotten, which is no proof of anything."""


_WITNESS: Final = "__safehold_witness__"

P = ParamSpec("P")


class WitnessDecorator(Protocol):
    """Turns a function, or a coroutine function, into one that gives evidence."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine is an object, too; the first that fits counts
        self, function: Callable[P, Coroutine[Any, Any, object]], /
    ) -> Callable[P, Coroutine[Any, Any, Evidence]]: ...
    @overload
    def __call__(self, function: Callable[P, object], /) -> Callable[P, Evidence]: ...


class Witnesses:
    """The witnesses of one Safehold, and the newest evidence of each about each subject."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._asks: dict[str, str] = {}
        self._seen: OrderedDict[tuple[str, str], Evidence] = OrderedDict()  # moved in steps of the engine

    def register(self, name: str, place: str, dependency: str) -> None:
        """Add a witness; two of one name raise, unless they are the same code loaded twice."""
        known = self._known.setdefault(name, place)
        if known != place:
            msg = f"witness {name!r} is registered already, by {known}; {place} needs another name"
            raise ConfigurationError(msg)
        self._asks[name] = dependency

    def asks(self, name: str) -> str | None:
        """Name the dependency that a witness asks; `None` when there is no such witness."""
        return self._asks.get(name)

    def knows(self, name: str) -> bool:
        """Whether there is one of this name."""
        return name in self._known

    def keep(self, evidence: Evidence) -> None:
        """Remember the newest. A step."""
        key = (evidence.witness, evidence.subject)
        self._seen.pop(key, None)
        self._seen[key] = evidence
        while len(self._seen) > MOST_KEPT:
            self._seen.popitem(last=False)

    def about(self, name: str, subject: str | None) -> Evidence | None:
        """Give the newest evidence. A step."""
        return None if subject is None else self._seen.get((name, subject))

    def forget(self) -> None:
        """Let all evidence be void, as in a forked child."""
        self._seen.clear()


def testify(
    function: Any, witnesses: Witnesses, dependency: Dependency, name: str | None, subject: str | None
) -> Callable[..., Any]:
    """Give the form of a function that returns evidence."""
    kinds = Kinds(function)
    ask: Any = function
    if isinstance(function, type) or not callable(function) or kinds.is_generator or kinds.is_async_generator:
        msg = f"witness({dependency.name!r}) decorates functions and coroutine functions, got {function!r}"
        raise ConfigurationError(msg)
    name = str(getattr(function, "__name__", "")) if name is None else name
    check_name("witness name", name)
    read = subject_reader(function, subject_parameter(function, name, subject))
    place = (getattr(function, "__module__", ""), getattr(function, "__qualname__", name))
    witnesses.register(name, ".".join(place), dependency.name)

    def witness(*args: Any, **kwargs: Any) -> Evidence:
        asking = _Asking(witnesses, dependency, name, read(args, kwargs))
        try:
            with asking.scope, Permit(dependency):
                answer = ask(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - what is no `Exception` goes on, and proves nothing
            return asking.failed(error)
        return asking.answered(answer)

    async def awitness(*args: Any, **kwargs: Any) -> Evidence:
        asking = _Asking(witnesses, dependency, name, read(args, kwargs))
        try:
            with asking.scope, Permit(dependency):
                answer = await ask(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - what is no `Exception` goes on, and proves nothing
            return asking.failed(error)
        return asking.answered(answer)

    asked = named(awitness if kinds.is_async else witness, function)
    setattr(asked, _WITNESS, name)
    return asked


def name_of_witness(function: Any) -> str | None:
    """Give the name under which a witness was registered; `None` for any other function."""
    told = getattr(function, _WITNESS, None)
    return told if isinstance(told, str) else None


class _Asking:
    """One question, and what is known of it before it is answered."""

    def __init__(self, witnesses: Witnesses, dependency: Dependency, name: str, subject: str | None) -> None:
        if subject is None:
            msg = f"witness {name!r} was asked about None: say which subject"
            raise ConfigurationError(msg)
        around = open_scope()
        self.scope = Scope(f"witness {name}")
        self._witnesses = witnesses
        self._dependency = dependency
        self._name = name
        self._subject = subject
        self._around = None if around is None else around.number
        self._asked = dependency._now()
        self._generation = dependency._breaker.era.generation.number
        self._epoch = dependency._epoch.number

    def answered(self, answer: object) -> Evidence:
        """Take what the function gave."""
        missed = self.scope.missed
        if missed:
            return self._evidence(UNKNOWN, f"a call to {', '.join(missed)} did not answer while it was asked")
        if isinstance(answer, bool):
            return self._evidence(PRESENT if answer else ABSENT)
        if isinstance(answer, Presence):
            return self._evidence(answer, "it said so" if answer is UNKNOWN else "")
        if isinstance(answer, Evidence):
            return self._evidence(answer.presence, answer.why)
        return self._evidence(UNKNOWN, f"it gave a {type(answer).__name__}, neither True nor False")

    def failed(self, error: BaseException) -> Evidence:
        """Take what the function raised."""
        why = str(error) if isinstance(error, Refused | Unproven) else cause_of(error).text
        evidence = self._evidence(UNKNOWN, why)
        if not isinstance(error, Exception):
            raise error
        return evidence

    def _evidence(self, presence: Presence, why: str = "") -> Evidence:
        evidence = Evidence(
            presence=presence,
            subject=self._subject,
            witness=self._name,
            dependency=self._dependency.name,
            asked=self._asked,
            answered=self._dependency._now(),
            generation=self._generation,
            scope=self._around,
            epoch=self._epoch,
            why=why,
        )
        self._dependency._engine.run(lambda: self._witnesses.keep(evidence))
        return evidence
