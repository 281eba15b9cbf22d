"""One request and its answer: what it may take, what it has met, and what that means.

*Time.* Clients limit each wait, so a server that sends one byte now and then holds a call for as long as
it likes. Here the waits of one exchange are added up, by what is waited for:

- a connection: each attempt is one wait, as the client has it;
- the head of the answer: all its waits together are one, so that it has to come whole in one read time-out;
- what is transferred (an upload, a body): as long as it makes progress. Its waits may add up to `GRACE`
  time-outs, and `SLOWEST` bytes earn one more second. That is how Apache's mod_reqtimeout limits requests,
  its `MinRate` included.

Where the client sets no time-out, a wait is `LONGEST_WAIT`. A deadline, where one is given, ends whatever is
going on: it belongs to the user's call, redirects, pauses between two reads and all. Only waits are counted
against the other side: a call whose caller has used up the time himself is no failure.

*Reuse.* A kept connection may be closed while nobody looks, and then fails its next request. That says
little about the server, so it is excused, once in a row, if not a single byte of an answer has come.

*Long calls* (`long_calls`, `long=True`, an event stream) are settled by the head of the answer; there are no
limits for them but the client's own, and silence is no failure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar, Token
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any, Final, NamedTuple

from .._core.breaker import Outcome
from .._core.configuration import ConfigurationError, check_number
from .._runtime.classify import Judgement, judge
from .._runtime.dependency import Dependency
from .._runtime.handling import mark, mark_attempt
from .._runtime.permit import Permit, missed
from ..errors import DependencyUnhealthy, Refused
from ._http import (
    BODY,
    SOCKET_ROWS,
    STALE,
    ServerFaultError,
    declared_long,
    judge_status,
)
from ._table import NOTHING_SAID, Sent, Table, chain, unanswered

LONGEST_WAIT: Final = 60.0
"""Seconds of a wait for which neither the client nor a deadline sets a limit."""
GRACE: Final = 10
"""Time-outs that the waits of a transfer may add up to, whatever its rate."""
SLOWEST: Final = 500.0
"""Bytes of a transfer that earn one second more."""

CONNECT: Final = "connect"
WRITE: Final = "write"
READ: Final = "read"
HEAD: Final = "head"
_OUT_OF_TIME: Final = unanswered("deadline", "the caller has used up the time")
_OUTCOMES: Final = {Sent.NO: "not_executed", Sent.MAYBE: "unknown", Sent.YES: "executed"}


class Meaning(NamedTuple):
    """What a client's exceptions mean: its table, those that are its own, and those that tell of silence."""

    table: Table
    own: tuple[type[BaseException], ...]
    silence: Callable[[BaseException], bool]
    refusal: type[DependencyUnhealthy]

    def classify(self, error: Exception) -> Judgement:
        """Say what an exception means for the breaker: the call site's classifier."""
        return error.judgement if isinstance(error, ServerFaultError) else self.table.classify(error)


class Guard:
    """How a client is guarded, for all that it sends. The settings may change."""

    def __init__(
        self, dependency: Dependency, meaning: Meaning, *, deadline: float | None = None, long: bool = False
    ) -> None:
        if not isinstance(dependency, Dependency):
            msg = f'dependency must be one of a Safehold, such as health["api"], got {dependency!r}'
            raise ConfigurationError(msg)
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


class Call:
    """One call of the user's, with all the exchanges that it needs. As a context manager, it is the current one."""

    def __init__(self, guard: Guard) -> None:
        self.guard = guard
        self.long = guard.long or declared_long()
        limit = None if self.long else guard.deadline
        self.limit = inf if limit is None else limit
        self.ends = inf if limit is None else monotonic() + limit
        self.waited = 0.0
        self.exchanges = 0
        self.last: Exchange | None = None
        self.open = False
        self._token: Token[Call | None] | None = None

    def __enter__(self) -> Call:
        self._token = _call.set(self)
        self.open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open = False
        if self._token is not None:
            _call.reset(self._token)
        if error is not None:
            self._ended(error)

    def left(self) -> float | None:
        """Give the seconds to its deadline; `None` without one."""
        return None if self.ends == inf else self.ends - monotonic()

    def used_up(self) -> bool:
        """Whether its time is over, and was spent by the caller rather than in waiting."""
        return self.ends <= monotonic() and self.waited < self.limit / 2

    def _ended(self, error: BaseException) -> None:
        """Take in that it ended with this, above the exchanges."""
        last = self.last
        if last is None:
            return
        last.left_unread(error)
        if isinstance(error, Refused) or not isinstance(error, self.guard.meaning.own):
            return  # a hook's, or the caller's own
        if not last.has_judged(error):
            last.not_an_answer(error)


_call: ContextVar[Call | None] = ContextVar("safehold_http_call", default=None)
_exchange: ContextVar[Exchange | None] = ContextVar("safehold_http_exchange", default=None)
under_way: Final = _exchange.get
"""The exchange on whose behalf this code waits; `None` where no guard is concerned."""


class _Meter:
    """What was waited, and what was moved."""

    __slots__ = ("moved", "waited")

    def __init__(self) -> None:
        self.waited = 0.0
        self.moved = 0


class Exchange:
    """One request and its answer. Making one takes a permit, and raises the client's refusal without one.

    `wired` says whether all that goes over the line is seen: then it is known what has been sent and whether
    the connection was a new one.
    """

    def __init__(self, guard: Guard, method: str, *, wired: bool) -> None:
        call = _call.get()
        if call is None or call.guard is not guard or not call.open:
            call = Call(guard)  # of a transport without its client
        self.guard = guard
        self.call = call
        self.method = method
        self.wired = wired
        self.long = call.long
        self.unix = self.connected = self.fresh = self.sent = self.received = False
        self.headed = False
        self.attempt: Exception | None = None  # one that was made and failed, if another one follows
        self.upload_error: BaseException | None = None
        self._meters = {WRITE: _Meter(), HEAD: _Meter(), READ: _Meter()}
        self._touched = self._settled = False
        self._judged: tuple[BaseException, Judgement] | None = None
        self._seen: BaseException | None = None
        permit = Permit(
            guard.dependency,
            stepwise=True,
            error=guard.meaning.refusal,
            classify=self.classify,
            long=self.long,
        )
        self._permit = permit.__enter__()
        call.exchanges += 1
        call.last = self

    # --- waiting ------------------------------------------------------------------------------------

    def here(self) -> _Here:
        """Make it the one that waits, for the length of a block."""
        return _Here(self)

    def allow(self, what: str, own: float | None) -> float | None:
        """Give the seconds that this wait may take, not above 0 when there are none left.

        `own` is the client's own time-out for it.
        """
        if what is WRITE:
            self.sent = True
        if self.long:
            return own
        left = self.call.ends - monotonic()
        patience = own if own is not None else (LONGEST_WAIT if left == inf else left)
        if what is CONNECT:
            return min(patience, left)
        if what is READ and not self.headed:
            return min(patience - self._meters[HEAD].waited, left)
        meter = self._meters[what]
        return min(patience, patience * GRACE + meter.moved / SLOWEST - meter.waited, left)

    def took(self, what: str, began: float, moved: int) -> None:
        """Take in a wait that is over."""
        waited = monotonic() - began
        self.call.waited += waited
        if what is READ:
            self.received = self.received or moved > 0
            what = READ if self.headed else HEAD
        if what is not CONNECT:
            meter = self._meters[what]
            meter.waited += waited
            meter.moved += moved

    def connecting(self, *, unix: bool) -> bool:
        """Take in that a connection is about to be made; say whether that is wanted still.

        It is not when an attempt before has opened the breaker. The hidden attempts of a client count.
        """
        self.fresh, self.unix = True, unix
        return self.again()

    def again(self) -> bool:
        """Report the attempt before this one, if there was one; say whether to go on."""
        failed, self.attempt = self.attempt, None
        return failed is None or self._permit.attempt_failed(failed)

    def was_counted(self, error: Exception) -> Exception:
        """Mark an error that stands for an attempt which was counted already."""
        mark_attempt(error, self.guard.dependency._key)
        return error

    # --- how it ends --------------------------------------------------------------------------------

    def head(self, status: int, *, retry_after: str | None, content_type: str | None, empty: bool) -> None:
        """Take in the head of the answer. `empty`: nothing follows it."""
        self.headed = True
        self.guard.forgive()
        wall = self.guard.dependency._engine.clock.wall()
        judgement = judge_status(status, retry_after, wall)
        if judgement is not None:
            self._settled = True
            self._permit.fail(ServerFaultError(status, judgement))
            return
        self.long = self.long or (content_type or "").startswith("text/event-stream")
        if empty or self.long:
            self.answered()

    @property
    def watched(self) -> bool:
        """Whether the body has a say still: it is to come, and what breaks in it counts."""
        return self.long or not self._settled

    def answered(self) -> None:
        """Report that the answer is complete."""
        self._settled = True
        self._permit.succeed()

    def touched(self) -> None:
        """Take in that a part of the body has reached the caller."""
        self._touched = True

    def abandoned(self) -> None:
        """Report that nobody reads on. A call that ends by a hook's error was answered: the hook has seen it."""
        if self._settled:
            return
        error = sys.exception()
        if self.call.open and self.headed and not self._touched and isinstance(error, Exception):
            self.answered()
            return
        self._settled = True
        self._permit.abandon()

    def failed(self, error: BaseException) -> None:
        """Report what was raised, and write on it what may have become of the request."""
        if isinstance(error, GeneratorExit):
            self.abandoned()
            return
        self._seen = error
        if not self._settled:
            self._settled = True
            self._permit.fail(error)
        elif self.long:
            dependency = self.guard.dependency
            missed(dependency, dependency._breaker.era, error, self.classify)
        self.tell_outcome(error)

    def passed_on(self, error: BaseException) -> None:
        """Take in that a client has made another exception of one that was reported."""
        seen = self._seen
        if seen is None or seen is error or seen not in chain(error):
            return
        self._seen = error
        dependency = self.guard.dependency
        if isinstance(seen, Exception) and self.classify(seen).missed:
            mark(error, dependency._key, dependency._breaker.era.number, dependency.name)
        self.tell_outcome(error)

    def has_judged(self, error: BaseException) -> bool:
        """Whether it has reported this, or what led to this. What stops a redirect is no mistake of the caller's."""
        seen = self._seen
        if seen is None or seen not in chain(error):
            return False
        mistake = isinstance(seen, Exception) and self.classify(seen) == NOTHING_SAID
        return not (mistake and self.call.exchanges > 1)

    def not_an_answer(self, error: BaseException) -> None:
        """Report what the client raised by itself about answers that are none, such as endless redirects."""
        self.tell_outcome(error)
        dependency = self.guard.dependency
        missed(dependency, dependency._breaker.era, error, self._about_answers)

    def _about_answers(self, error: Exception) -> Judgement:
        said = self.guard.meaning.table.classify(error)
        return said if said.cause is not None else unanswered("redirects", "redirected to where nobody can go")

    def left_unread(self, error: BaseException) -> None:
        """Settle it when its call is over and nobody will read on."""
        if self._settled:
            return
        if self.headed and not self._touched and isinstance(error, Exception):
            self.answered()
        else:
            self.failed(error)

    def tell_outcome(self, error: BaseException) -> None:
        """Write on a client's error whether the request may have been executed."""
        if isinstance(error, DependencyUnhealthy) or not isinstance(error, self.guard.meaning.own):
            return
        if "outcome" in vars(error) or self._is_upload(error):
            return
        sent = Sent.YES if self.headed else self._sent_by(error)
        told: Any = error
        told.outcome = _OUTCOMES[sent]
        if sent is Sent.MAYBE:
            error.add_note(f"safehold: outcome: unknown, the {self.method} may have been executed")

    def _sent_by(self, error: BaseException) -> Sent:
        if self.wired and not self.sent:
            return Sent.NO
        row = self.guard.meaning.table.row(error)
        return Sent.MAYBE if self.sent and row in SOCKET_ROWS else row.sent

    # --- what it means ------------------------------------------------------------------------------

    def classify(self, error: Exception) -> Judgement:
        """Judge an error of this exchange; the same one always alike."""
        if self._judged is None or self._judged[0] is not error:
            self._judged = (error, self._judge(error))
        return self._judged[1]

    def _judge(self, error: Exception) -> Judgement:
        if self._is_upload(error):
            return NOTHING_SAID
        said = judge(error, self.guard.dependency.declared_classifier or self._by_table)
        if isinstance(error, ServerFaultError):
            return said._replace(pause=error.judgement.pause)  # whatever it means, it was asked for
        if said.outcome is not Outcome.FAILURE:
            return said
        if self.call.used_up():
            return _OUT_OF_TIME
        if self.long and self._is_silence(error):
            return NOTHING_SAID
        if self._is_stale(error) and self.guard.excuse():
            return STALE
        return said

    def _by_table(self, error: Exception) -> Judgement:
        if isinstance(error, ServerFaultError):
            return error.judgement
        return (BODY if self.headed else self.guard.meaning.table).classify(error)

    def _is_upload(self, error: BaseException) -> bool:
        return self.upload_error is not None and self.upload_error in chain(error)

    def _is_silence(self, error: Exception) -> bool:
        return (self.sent or self.headed) and self.guard.meaning.silence(error)

    def _is_stale(self, error: Exception) -> bool:
        table = self.guard.meaning.table
        reused = self.wired and not self.fresh and not self.received
        return reused and table.row(error) is table[-1]


class _Here:
    __slots__ = ("_exchange", "_token")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __enter__(self) -> None:
        self._token = _exchange.set(self._exchange)

    def __exit__(self, *_: object) -> None:
        _exchange.reset(self._token)
