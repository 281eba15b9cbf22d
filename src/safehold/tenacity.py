"""Lets tenacity's retries respect what Safehold knows.

    from tenacity import retry, stop_after_attempt
    from safehold.tenacity import retry_unless_refused, stop_when_held, wait_retry_after

    @retry(
        retry=retry_unless_refused(unhealthy=True),
        wait=wait_retry_after(),
        stop=stop_when_held() | stop_after_attempt(5),
    )
    @health.guard("redis")
    def read(key): ...

Each part stands alone, works for plain functions and coroutine functions, and combines with tenacity's own
(`|`, `&`, `+`). All look for a refusal in the whole chain of an exception: its causes, its contexts, the
members of groups. A blocked operation is never tried again: its reasons are old by then, and a new decision
belongs to a new round.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tenacity import RetryCallState, retry_if_exception_type, wait_random_exponential
from tenacity.retry import retry_base
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from ._core.configuration import ConfigurationError, check_number
from ._runtime.limiter import RetryBudget
from .errors import DependencyUnhealthy, Refused, Saturated

__all__ = ["retry_unless_refused", "retry_within", "stop_when_held", "wait_retry_after"]

_DEEPEST: Final = 1000
_USUAL: Final = wait_random_exponential(multiplier=0.5, max=30.0)


class retry_unless_refused(retry_base):  # noqa: N801 - named as tenacity names its own
    """Try again after an exception, unless Safehold refused the call, or blocked an operation.

    `retry`: what else decides (any tenacity retry; default: every `Exception`). `unhealthy`: try again
    after a breaker's refusal as well; `saturated`: after a limiter's. Either wants `wait_retry_after`. What
    only a person can end (`retry_after` is `None`) is not tried again.
    """

    def __init__(
        self, retry: retry_base | None = None, *, unhealthy: bool = False, saturated: bool = False
    ) -> None:
        self._retry = retry_if_exception_type(Exception) if retry is None else retry
        self._unhealthy = unhealthy
        self._saturated = saturated

    def __call__(self, retry_state: RetryCallState) -> bool:
        """Say whether to try again."""
        refusals = _refusals(retry_state)
        if not refusals:
            return bool(self._retry(retry_state))
        return all(self._may(refused) for refused in refusals)

    def _may(self, refused: Refused) -> bool:
        match refused:
            case DependencyUnhealthy():
                allowed = self._unhealthy
            case Saturated():
                allowed = self._saturated
            case _:  # an operation that was blocked, or what a newer version refuses
                return False
        return allowed and refused.retry_after is not None


class retry_within(retry_base):  # noqa: N801 - likewise
    """Try again as `retry` says (default: `retry_unless_refused()`), as long as the budget has retries left.

    Each user call counts as one call, however often it is tried. Over the budget, the last attempt's own
    exception is raised, as it is when `retry` says no.
    """

    def __init__(self, budget: RetryBudget, retry: retry_base | None = None) -> None:
        if not isinstance(budget, RetryBudget):
            msg = f"budget must be a RetryBudget, got {budget!r}"
            raise ConfigurationError(msg)
        self._budget = budget
        self._retry = retry_unless_refused() if retry is None else retry

    def __call__(self, retry_state: RetryCallState) -> bool:
        """Say whether to try again; the first attempt counts the call."""
        if retry_state.attempt_number == 1:
            self._budget.call()
        return bool(self._retry(retry_state)) and self._budget.retry()


class wait_retry_after(wait_base):  # noqa: N801 - likewise
    """Wait as long as a refusal says, and otherwise as long as `fallback` does.

    `fallback`: any tenacity wait (default: a random exponential one of 30 s at most). `least`: seconds to
    wait after a refusal even if it says "now" (default 0.05), because others were told the same. Where a
    person has to end it (`retry_after` is `None`), no wait helps: unless `stop` ends the retrying, the
    refused call's own exception does.
    """

    def __init__(self, fallback: wait_base | None = None, *, least: float = 0.05) -> None:
        check_number("least", least, least=0)
        self._fallback = _USUAL if fallback is None else fallback
        self._least = least

    def __call__(self, retry_state: RetryCallState) -> float:
        """Give the seconds to wait."""
        refusals = _refusals(retry_state)
        if not refusals:
            return float(self._fallback(retry_state))
        waits = [refused.retry_after for refused in refusals]
        if None not in waits:
            return max(self._least, *(wait for wait in waits if wait is not None))
        outcome = retry_state.outcome
        error = None if outcome is None else outcome.exception()
        if error is None or _stops(retry_state):
            return self._least
        raise error


class stop_when_held(stop_base):  # noqa: N801 - likewise
    """Stop once only a person can end what refuses the call: a held breaker, a block without a time."""

    def __call__(self, retry_state: RetryCallState) -> bool:
        """Say whether to stop."""
        return any(refused.retry_after is None for refused in _refusals(retry_state))


def _stops(retry_state: RetryCallState) -> bool:
    stop = getattr(retry_state.retry_object, "stop", None)
    return callable(stop) and stop(retry_state) is True


def _refusals(retry_state: RetryCallState) -> list[Refused]:
    """Give the refusals that an attempt ended with."""
    outcome = retry_state.outcome
    error = outcome.exception() if outcome is not None and outcome.failed else None
    return [] if error is None else [link for link in _links(error) if isinstance(link, Refused)]


def _links(error: BaseException) -> Iterator[BaseException]:
    """Give an exception and what led to it, each once; a context that was suppressed led to nothing."""
    waiting, met = [error], set[int]()
    while waiting and len(met) < _DEEPEST:
        link = waiting.pop()
        if id(link) in met:
            continue
        met.add(id(link))
        yield link
        context = None if link.__suppress_context__ else link.__context__
        waiting.extend(x for x in (link.__cause__, context) if x is not None)
        if isinstance(link, BaseExceptionGroup):
            waiting.extend(link.exceptions)
