"""One connection and the calls that are made over it: what a stream has met, and what that means.

A `Line` is the connection, a `Talk` a guarded stretch of it: a whole exchange, or a single read or write
between exchanges. A talk notes what its reads and writes meet, and is judged when it ends: what was
swallowed inside it counts as well, unless the other side has said something afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from math import inf
from time import monotonic
from types import TracebackType
from typing import Final, Self
from weakref import WeakSet

from .._core.breaker import Outcome, Trial
from .._core.configuration import ConfigurationError, check_number
from .._runtime.classify import Judgement, judge
from .._runtime.dependency import Dependency
from .._runtime.handling import mark
from .._runtime.permit import Permit
from ..errors import DependencyUnhealthy
from ._http import SOCKET_ROWS
from ._outcome import check_dependency, row_of, tell_outcome
from ._table import NOTHING_SAID, OUT_OF_TIME, Row, Sent, Table, down, misconfigured, unanswered

_STALE: Final = unanswered("stale", "a kept connection was closed")


def _says(text: str) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, OSError) and error.errno is None and text in str(error)


TABLE: Final = Table(
    (
        *SOCKET_ROWS,
        Row(
            "the path is too long for a socket's",
            _says("path too long"),
            misconfigured("the path is no such socket"),
            Sent.NO,
        ),
        Row(
            "none of a name's addresses can be connected to",
            _says("Multiple exceptions"),
            down("refused", "none of its addresses can be connected to"),
            Sent.NO,
        ),
        Row(
            "the caller's mistake, such as a `TypeError`",
            lambda error: isinstance(
                error, TypeError | AttributeError | NameError | RuntimeError | AssertionError
            ),
            NOTHING_SAID,
        ),
        Row("no answer in time", lambda error: isinstance(error, TimeoutError), down("timeout", "timed out")),
        Row(
            "the answer is cut short",
            lambda error: isinstance(error, asyncio.IncompleteReadError) and bool(error.partial),
            down("cut_body", "the answer was cut short"),
        ),
        Row(
            "closed before the answer",
            lambda error: isinstance(error, EOFError),
            down("lost", "closed before the answer"),
        ),
        Row("reset, or lost in another way", lambda error: isinstance(error, OSError), down("lost")),
        Row("an answer that makes no sense", lambda _: True, down("broken_answer", "broken answer")),
    )
)


class StreamUnhealthy(DependencyUnhealthy, ConnectionError):
    """A refused call over a stream: a `DependencyUnhealthy`, and a `ConnectionError` for handlers of it."""


class Line:
    """A connection."""

    def __init__(self, dependency: Dependency) -> None:
        check_dependency(dependency)
        if dependency._classify is None:
            dependency.provide(classify=TABLE.classify)
        self.dependency = dependency
        self.trial: Permit | None = None  # it has let this connect, and is to be decided
        self.talk: Talk | None = None  # the exchange that is going on
        self.owed = False  # something was sent, and nothing heard since
        self.used = False  # something was heard

    @contextmanager
    def connecting(self) -> Generator[None]:
        """Guard the making of the connection."""
        permit = Permit(self.dependency, stepwise=True, error=StreamUnhealthy, classify=self._unconnected)
        permit.__enter__()
        try:
            yield
        except BaseException as error:
            if isinstance(error, OSError):
                tell_outcome(error, Sent.NO, "it")
            permit.fail(error)
            raise
        if isinstance(permit._taken, Trial):
            self.trial = permit
        else:
            permit.withdraw()

    def _unconnected(self, error: Exception) -> Outcome | bool | Judgement:
        if not isinstance(error, OSError):
            return NOTHING_SAID
        return self.judge(error)

    def judge(self, error: Exception) -> Outcome | bool | Judgement:
        """Say what an exception means by itself."""
        declared = self.dependency.declared_classifier
        return declared(error) if declared is not None else row_of(TABLE, error).judgement

    @contextmanager
    def step(self) -> Generator[Talk]:
        """Wait for one read or write, as a part of the exchange or for itself."""
        if self.talk is not None:
            with self.talk.waiting():
                yield self.talk
        else:
            with Talk(self, whole=False) as talk, talk.waiting():
                yield talk

    def sending(self) -> None:
        """Take in that something is about to be written."""
        self.owed = True
        if self.talk is not None:
            self.talk.wrote = True

    def give_up(self) -> None:
        """Give back a trial that nothing has decided."""
        trial, self.trial = self.trial, None
        if trial is not None:
            trial.withdraw()

    def __del__(self) -> None:
        if getattr(self, "trial", None) is not None:
            self.give_up()


class Talk:
    """A guarded stretch of what goes on over a line, as a context manager."""

    def __init__(self, line: Line, *, whole: bool, deadline: float | None = None, long: bool = False) -> None:
        if deadline is not None:
            check_number("deadline", deadline, above=0)
        if not isinstance(long, bool):
            msg = f"long must be True or False, got {long!r}"
            raise ConfigurationError(msg)
        if whole and line.talk is not None:
            msg = "this connection is in an exchange already: there is one at a time"
            raise ConfigurationError(msg)
        self.line = line
        self.wrote = line.owed
        self._whole = whole
        self._long = long
        self._kept = line.used
        self._heard = False
        self._trouble: BaseException | None = (
            None  # what a read or write has met, and nothing was heard since
        )
        self._waited = 0.0
        self._limit = inf if deadline is None else deadline
        self._ends = monotonic() + self._limit
        self._judged: tuple[Exception, Judgement] | None = None
        self._trial: Permit | None = None
        self._permit = line.trial or Permit(line.dependency, error=StreamUnhealthy, long=long)
        self._permit._classify = self._classify

    def __enter__(self) -> Self:
        self._trial, self.line.trial = self.line.trial, None
        if self._trial is not None:
            pass  # it was entered to connect
        elif self._whole:
            self._permit.__enter__()
        else:
            self._permit._unasked()
        if self._whole:
            self.line.talk = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._whole:
            self.line.talk = None
        met = self._trouble if isinstance(self._trouble, Exception) else error or self._trouble
        if self._has_just_left(error):
            met = None
        if met is not None:
            self._failed(met, error)
        elif self._whole or self._heard:
            _excused.discard(self.line.dependency)
            self._permit.succeed()
        elif self._trial is not None:
            self.line.trial = self._trial  # not decided yet
        else:
            self._permit.withdraw()
        self._trouble = self._judged = None  # they have this frame in their tracebacks

    def _has_just_left(self, error: BaseException | None) -> bool:
        """Whether a single read has met the end of the stream while nothing was to come."""
        left = isinstance(error, asyncio.IncompleteReadError) and not error.partial
        return left and not self._whole and self._trouble is None

    def _failed(self, met: BaseException, error: BaseException | None) -> None:
        for told in (met, error):
            if isinstance(told, OSError | EOFError):
                tell_outcome(told, Sent.MAYBE if self.wrote else Sent.NO, "what was asked for")
        self._permit.fail(met)
        if isinstance(error, Exception) and error is not met:  # it says the same: guards around shall know
            dependency = self.line.dependency
            mark(error, dependency._key, dependency._breaker.era.number, dependency.name)

    # --- steps ----------------------------------------------------------------------------------------

    @contextmanager
    def waiting(self) -> Generator[None]:
        """Wait for one read or write."""
        began = monotonic()
        try:
            yield
        except asyncio.IncompleteReadError as error:
            self.met_end(error.partial)
            raise
        except BaseException as error:
            self._trouble = error
            raise
        finally:
            self._waited += monotonic() - began

    def allow(self, own: float | None) -> float | None:
        """Give the seconds that the next wait may take, where the socket itself would wait for `own`."""
        left = self._ends - monotonic()
        if left <= 0:
            msg = "timed out"
            raise TimeoutError(msg)
        if left == inf:
            return own
        return left if own is None else min(own, left)

    def heard(self) -> None:
        """Take in that the other side has said something."""
        self._heard = self.line.used = True
        self.line.owed = False
        self._trouble = None

    def met_end(self, partial: bytes = b"") -> None:
        """Take in the end of the stream. It is no trouble where all that was to come has come."""
        if partial or self.line.owed or (self._whole and not self._heard):
            self._trouble = asyncio.IncompleteReadError(partial, None)

    # --- what it means --------------------------------------------------------------------------------

    def _classify(self, error: Exception) -> Judgement:
        if self._judged is None or self._judged[0] is not error:
            self._judged = (error, self._judge(error))
        return self._judged[1]

    def _judge(self, error: Exception) -> Judgement:
        said = judge(error, self.line.judge)
        if said.outcome is not Outcome.FAILURE:
            return said
        if isinstance(error, TimeoutError) and self._ends <= monotonic() and self._waited < self._limit / 2:
            return OUT_OF_TIME
        if self._long and isinstance(error, TimeoutError):
            return NOTHING_SAID
        if self._is_stale(error) and self.line.dependency not in _excused:
            _excused.add(self.line.dependency)
            return _STALE
        return said

    def _is_stale(self, error: Exception) -> bool:
        if isinstance(error, asyncio.IncompleteReadError) and error.partial:
            return False
        return self._kept and not self._heard and isinstance(error, EOFError | ConnectionError)


_excused: Final[WeakSet[Dependency]] = WeakSet()
"""Those that a kept connection was lost to, with no answer since. The next one that is lost counts."""
