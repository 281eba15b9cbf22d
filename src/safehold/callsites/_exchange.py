"""One HTTP request and its answer: the permit, what it has met, and what that means.

*Settling.* An exchange is answered when its body is complete. A server fault settles it at the head, and so
does a head that nothing follows. A *long* one (`long_calls`, `long=True`, an event stream) is settled by its
head, too: silence after it is no failure, and what breaks later counts by itself.

*Reuse.* A kept connection may be closed while nobody looks, and then fails its next request. That says
little about the server, so it is excused, once in a row, if not a single byte of an answer has come.

*Calls.* One call of the user's may need several exchanges: redirects, authentication. They share a deadline.
What the client raises above them, such as endless redirects, is a miss as well; what a hook of the user's
raises is not, for the hook has seen the answer.
"""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from itertools import count
from types import TracebackType
from typing import Final, Self

from .._core.breaker import Outcome
from .._runtime.classify import Judgement, judge
from .._runtime.handling import mark
from .._runtime.permit import Permit, missed
from ..errors import Refused
from ._guarding import Guard
from ._http import (
    BODY,
    QUEUE_FULL,
    SOCKET_ROWS,
    STALE,
    ServerFaultError,
    declared_long,
    judge_status,
)
from ._outcome import tell_outcome
from ._table import NOTHING_SAID, OUT_OF_TIME, Sent, chain, unanswered
from ._waits import Span, Waits

_LED_ASTRAY: Final = unanswered("redirects", "redirected to where nobody can go")
_BODILESS: Final = frozenset({101, 204, 304})
_NUMBER: Final = "_safehold_exchange"
_numbers = count()


class Call(Span):
    """One call of the user's. As a context manager, it is the one that new exchanges belong to."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.long = guard.long or declared_long()
        super().__init__(None if self.long else guard.deadline)
        self.exchanges = 0
        self.last: Exchange | None = None
        self.open = False
        self._token: Token[Call | None] | None = None

    def __enter__(self) -> Self:
        self._token = _call.set(self)
        self.open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open = False
        if self._token is not None:
            _call.reset(self._token)
        last, self.last = self.last, None
        if error is not None and last is not None:
            last.left_unread(error)
            last.passed_on(error)
            if self.guard.meaning.is_own(error) and not isinstance(error, Refused):
                last.raised_above(error)


_call: ContextVar[Call | None] = ContextVar("safehold_http_call", default=None)
call_under_way: Final = _call.get


class Exchange(Waits):
    """One request and its answer. Making one takes a permit, and raises the client's refusal without one.

    `wired` says whether all that goes over the line is seen: then it is known what has been sent and whether
    the connection was a new one.
    """

    def __init__(self, guard: Guard, method: str, *, wired: bool) -> None:
        call = _call.get()
        if call is None or call.guard is not guard or not call.open:
            call = Call(guard)  # of a transport without its client
        super().__init__(call, long=call.long)
        self.guard = guard
        self.call = call
        self.method = method
        self.wired = wired
        self.upload_error: BaseException | None = None
        self._attempt: Exception | None = None  # one that has failed: another may follow
        self._touched = self._follows = self._own_fault = False
        self._number = next(_numbers)  # written on what it has judged: to keep that would make a cycle
        self._judging: tuple[BaseException, Judgement] | None = None
        self._verdict: Judgement | None = None
        self._permit: Permit | None = Permit(
            guard.dependency,
            stepwise=True,  # the answer may be read in another task than the request was sent from
            error=guard.meaning.refusal,
            classify=self.classify,
            long=self.long,
        ).__enter__()  # until it is settled
        call.exchanges += 1
        call.last = self if call.open else None

    # --- attempts -----------------------------------------------------------------------------------

    def allow(self, what: str, own: float | None) -> float | None:
        """Give the seconds that this wait may take: none after an upload that failed."""
        return 0.0 if self.upload_error is not None else super().allow(what, own)

    def attempt_failed(self, error: Exception) -> None:
        """Take in that an attempt has failed, and keep it until it is known whether another one follows."""
        self._attempt = error

    def given_up(self) -> Exception | None:
        """Report the attempt before this one, if there was one; give it if it shall be the last.

        It has opened the breaker, or it was a trial: what the client makes of it decides that one.
        """
        failed, self._attempt = self._attempt, None
        if failed is None or self._permit is None:
            return None
        go_on = self._permit.attempt_failed(failed)
        self._judging = None
        if not go_on:
            return failed
        self.renew()
        return None

    def overdue(self) -> bool:
        """Whether the deadline is over, where the line would not find that out by itself."""
        left = None if self.wired else self.call.left()
        return left is not None and left <= 0

    # --- how it ends --------------------------------------------------------------------------------

    def head(self, status: int, headers: Mapping[str, str], *, empty: bool) -> None:
        """Take in the head of the answer. `empty`: nothing follows it, as far as the client knows."""
        self.headed, self._attempt = True, None
        self.guard.forgive()
        wall = self.guard.dependency._engine.clock.wall()
        judgement = judge_status(status, headers.get("Retry-After"), wall)
        self.long = self.long or headers.get("Content-Type", "").startswith("text/event-stream")
        bodiless = self.method == "HEAD" or status in _BODILESS or headers.get("Content-Length") == "0"
        if judgement is not None:
            self._settle(ServerFaultError(status, judgement))
        elif empty or bodiless or self.long:
            self._follows = self.long
            self.answered()

    def answered(self) -> None:
        """Report that the answer is complete."""
        permit, self._permit, self.handled = self._permit, None, None
        if permit is not None:
            permit.succeed()

    def touched(self) -> None:
        """Take in that a part of the body has reached the caller."""
        self._touched = True

    def abandoned(self) -> None:
        """Report that nobody reads on."""
        self.left_unread(sys.exception() if self.call.open else None)

    def left_unread(self, error: BaseException | None) -> None:
        """Report that nobody reads on because of `error`: if a hook raised it, that has seen the answer."""
        if self.headed and not self._touched and isinstance(error, Exception):
            self.answered()
        elif self._permit is not None:
            self._settle(GeneratorExit())

    def failed(self, error: BaseException) -> None:
        """Report what was raised, and write on it what may have become of the request."""
        if isinstance(error, GeneratorExit):
            self.abandoned()
            return
        vars(error)[_NUMBER] = self._number
        self._own_fault = self._is_upload(error)
        if self._permit is not None:
            self._settle(error)
        elif self._follows and isinstance(error, Exception):
            dependency = self.guard.dependency
            missed(dependency, dependency._breaker.era, error, self.classify)
        if self._judging is not None:
            self._verdict = self._judging[1]
        self._judging = self.upload_error = None
        self.tell_outcome(error)
        self.handled = None

    def _settle(self, error: BaseException) -> None:
        permit, self._permit = self._permit, None
        if permit is not None:
            permit.fail(error)

    def passed_on(self, error: BaseException) -> None:
        """Take in that a client has made another exception of one that was reported."""
        if vars(error).get(_NUMBER) == self._number or not self._has_seen(error):
            return
        vars(error)[_NUMBER] = self._number
        dependency = self.guard.dependency
        if self._verdict is not None and self._verdict.missed:
            mark(error, dependency._key, dependency._breaker.era.number, dependency.name)
        self.tell_outcome(error)

    def raised_above(self, error: BaseException) -> None:
        """Take in what the client raised by itself about answers that are none, such as endless redirects."""
        astray = self.call.exchanges > 1 and self._verdict == NOTHING_SAID  # no mistake of the caller's
        if self._has_seen(error) and not astray:
            return
        self.tell_outcome(error)
        dependency = self.guard.dependency
        missed(dependency, dependency._breaker.era, error, self._about_answers)

    def _about_answers(self, error: Exception) -> Judgement:
        marks = self.guard.meaning.marks
        known = marks.not_decoded(error) or marks.redirected(error)
        return self.guard.meaning.classify(error) if known else _LED_ASTRAY

    def _has_seen(self, error: BaseException) -> bool:
        return any(vars(link).get(_NUMBER) == self._number for link in chain(error))

    def tell_outcome(self, error: BaseException) -> None:
        """Write on a client's error whether the request may have been executed."""
        if self.guard.meaning.is_own(error) and not self._own_fault:
            sent = Sent.YES if self.headed else self._sent_by(error)
            tell_outcome(error, sent, f"the {self.method}")

    def _sent_by(self, error: BaseException) -> Sent:
        if self.wired and not self.sent:
            return Sent.NO
        with self._apart(error):
            row = self.guard.meaning.table.row(error)
        return Sent.MAYBE if self.sent and row in SOCKET_ROWS else row.sent

    # --- what it means ------------------------------------------------------------------------------

    def classify(self, error: Exception) -> Judgement:
        """Judge an error of this exchange; the same one always alike."""
        if self._judging is None or self._judging[0] is not error:
            with self._apart(error):
                self._judging = (error, self._judge(error))
        return self._judging[1]

    @contextmanager
    def _apart(self, error: BaseException) -> Generator[None]:
        """Look at an error apart from what the caller was handling when it made the call."""
        handled = self.handled
        links = () if handled is None else chain(error)
        link = next((link for link in links if link.__context__ is handled), None)
        if link is None:
            yield
            return
        link.__context__ = None
        try:
            yield
        finally:
            link.__context__ = handled

    def _judge(self, error: Exception) -> Judgement:
        if self._is_upload(error):
            return NOTHING_SAID
        said = judge(error, self.guard.dependency.declared_classifier or self._by_table)
        if isinstance(error, ServerFaultError):
            return said._replace(pause=error.judgement.pause)  # whatever it means, it was asked for
        if said.outcome is not Outcome.FAILURE:
            return said
        if self.call.used_up():
            return OUT_OF_TIME
        if self.long and self.guard.meaning.is_silence(error):
            return NOTHING_SAID
        if self._is_stale(error) and self.guard.excuse():
            return STALE
        return said

    def _by_table(self, error: Exception) -> Judgement:
        meaning = self.guard.meaning
        if self.headed and not isinstance(error, ServerFaultError):
            return BODY.classify(error)
        if self.unix and not self.sent and meaning.marks.connect_timeout(error):
            return QUEUE_FULL.judgement  # nothing else makes connecting to a unix socket take time
        said = meaning.classify(error)
        return said if meaning.is_own(error) else said._replace(cause=None)  # its type says more than the row

    def _is_upload(self, error: BaseException) -> bool:
        failed = self.upload_error  # what follows from it may hide it: urllib3 waits for an answer first
        return failed is not None and (not self.headed or failed in chain(error))

    def _is_stale(self, error: Exception) -> bool:
        table = self.guard.meaning.table
        reused = self.wired and not self.fresh and not self.received
        return reused and table.row(error) is table[-1]
