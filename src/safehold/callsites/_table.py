"""The rows of a classification table: what a client's exception means, in one place, for code and docs alike.

The first row that matches an exception says what it is for the breaker, which facet it concerns, and
whether the request may have reached the other side.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable, Collection, Iterator
from enum import StrEnum
from typing import Final, NamedTuple

from .._core.breaker import Cause, Outcome
from .._runtime.classify import Judgement

_LONGEST: Final = 20  # links of a chain that are looked at


class Sent(StrEnum):
    """Whether the request may have been executed on the other side."""

    NO = "no"
    MAYBE = "maybe"
    YES = "yes"


class Row(NamedTuple):
    """One condition. `matches` recognises it by the exception; `what` and `told` are for people."""

    what: str
    matches: Callable[[BaseException], bool]
    judgement: Judgement
    sent: Sent = Sent.MAYBE


class Table(tuple[Row, ...]):
    """Rows in the order in which they are asked."""

    __slots__ = ()

    def row(self, error: BaseException) -> Row:
        """Give the first row that matches; the last one matches everything."""
        return next(row for row in self if row.matches(error))

    def classify(self, error: Exception) -> Judgement:
        """Say what an exception means for the breaker: a classifier."""
        return self.row(error).judgement


def down(code: str, text: str = "") -> Judgement:
    """Judge that it failed: it counts, and the call was not answered."""
    return Judgement(Outcome.FAILURE, missed=True, cause=Cause(code, text) if text else None)


def unanswered(code: str, text: str = "") -> Judgement:
    """Judge that it says nothing about the other side, but the call was not answered."""
    return Judgement(Outcome.IGNORED, missed=True, cause=Cause(code, text) if text else None)


def misconfigured(text: str) -> Judgement:
    """Judge that it cannot work as it is set up: it counts, and trying again at once helps nobody."""
    return down(MISCONFIGURED, text)


MISCONFIGURED: Final = "misconfigured"
"""The code of a cause that a person has to mend."""
NOTHING_SAID: Final = Judgement(Outcome.IGNORED, missed=False)
"""An answer, or the caller's own mistake: says nothing about the other side."""
OUT_OF_TIME: Final = unanswered("deadline", "the caller has used up the time")


def refuses(facet: str, code: str, text: str) -> Judgement:
    """Judge that it answered, and that this facet of it does not work."""
    return Judgement(Outcome.SUCCESS, missed=True, facets=(facet,), cause=Cause(code, text))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Give an exception, then what led to it, nearest first."""
    for _ in range(_LONGEST):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def has_errno(error: BaseException, numbers: Collection[int | None]) -> bool:
    """Whether the operating system said one of these, in the chain or up to a time-out in it.

    What led to a time-out may be no trouble at all: that there is nothing to read yet, for one.
    """
    for link in chain(error):
        if isinstance(link, OSError) and not isinstance(link, ssl.SSLError):  # OpenSSL has numbers of its own
            if link.errno in numbers:
                return True
            if isinstance(link, TimeoutError):
                return False
    return False


OWN_LIMITS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""This process or machine has nothing left to make a connection with."""
NO_PERMISSION: Final = frozenset({errno.EACCES, errno.EPERM})
NO_SOCKET_THERE: Final = frozenset({errno.ENOTSOCK, errno.EPROTOTYPE, errno.ENAMETOOLONG})
"""What the path names can never be connected to."""
CONNECTION_LOST: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED})


def is_certificate(error: BaseException) -> bool:
    """Whether TLS was set up wrongly: the certificate is not the one that was expected."""
    return any(isinstance(link, ssl.SSLCertVerificationError) for link in chain(error))
