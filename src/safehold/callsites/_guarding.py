"""How an HTTP client is guarded: what its exceptions mean, and the settings of its guard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from .._core.configuration import ConfigurationError, check_number
from .._runtime.classify import Judgement
from .._runtime.dependency import Dependency
from ..errors import DependencyUnhealthy
from ._http import Marks, ServerFaultError, table
from ._outcome import check_dependency


class Meaning:
    """What a client's exceptions mean.

    `own` are those that it raises by itself, but for those that people raise with its help, such as
    `raise_for_status`. `refusal` is ours in its tree.
    """

    def __init__(
        self,
        marks: Marks,
        refusal: type[DependencyUnhealthy],
        *,
        own: tuple[type[BaseException], ...],
        but: tuple[type[BaseException], ...] = (),
    ) -> None:
        self.marks = marks
        self._own = own
        self._but = but
        self.refusal = refusal
        self.table = table(marks)

    def classify(self, error: Exception) -> Judgement:
        """Say what an exception means for the breaker: the call site's classifier."""
        return error.judgement if isinstance(error, ServerFaultError) else self.table.classify(error)

    def is_own(self, error: BaseException) -> bool:
        """Whether the client has raised it by itself."""
        return isinstance(error, self._own) and not isinstance(error, self._but)

    def is_silence(self, error: BaseException) -> bool:
        """Whether nothing came on a connection that stands."""
        return self.marks.timeout(error) and not self.marks.connect_timeout(error)


class Guard:
    """How a client is guarded, for all that it sends. The settings may change."""

    def __init__(
        self, dependency: Dependency, meaning: Meaning, *, deadline: float | None = None, long: bool = False
    ) -> None:
        check_dependency(dependency)
        self.dependency = dependency
        self.meaning = meaning
        self.set(deadline=deadline, long=long)
        self._excuses: list[None] = [None]

    def set(self, *, deadline: float | None, long: bool) -> None:
        """Take settings; raise `ConfigurationError` for bad ones."""
        if deadline is not None:
            check_number("deadline", deadline, above=0)
        if not isinstance(long, bool):
            msg = f"long must be True or False, got {long!r}"
            raise ConfigurationError(msg)
        self.deadline = deadline
        self.long = long

    def renewing(self, known: Self | None, what: str) -> Self:
        """Give the guard that a client shall have which has `known` so far: one, with the later settings.

        Raises `ConfigurationError` for a client of another dependency; `what` says what it is.
        """
        if known is None:
            return self
        if known.dependency is not self.dependency:
            names = f"{known.dependency.name!r} already, not as {self.dependency.name!r}"
            msg = f"this {what} is guarded as {names}"
            raise ConfigurationError(msg)
        known.set(deadline=self.deadline, long=self.long)
        return known

    def excuse(self) -> bool:
        """Whether a kept connection that broke is the first in a row."""
        try:
            self._excuses.pop()
        except IndexError:
            return False
        return True

    def forgive(self) -> None:
        """Begin a new row: something has answered."""
        self._excuses[:] = (None,)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class SessionGuard(Guard):
    """The guard of a client that may have to learn from a request where the dependency is."""

    def __init__(
        self, dependency: Dependency, meaning: Meaning, probe_path: str, *, deadline: float | None, long: bool
    ) -> None:
        super().__init__(dependency, meaning, deadline=deadline, long=long)
        self.probe_path = probe_path
        self._located = False

    def locate(self, make_probe: Callable[[str], Any]) -> None:
        """Give the dependency its default probe, made for the path, as soon as it is known where it is."""
        if not self._located:
            self._located = True
            self.dependency.provide(probe=make_probe(self.probe_path))
