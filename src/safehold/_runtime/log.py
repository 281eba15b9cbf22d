"""One line per transition, on the standard library's logger named `safehold`, rendered by structlog.

Neither logging nor structlog is configured here: the logger has no handler of ours and nothing reaches
stdout. What the application does with it is the application's choice.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import structlog

from .._core.breaker import Transition
from .._core.health import HealthState
from .describe import cause_of

if TYPE_CHECKING:
    from .engine import Decision, Event

logging.getLogger("safehold").addHandler(logging.NullHandler())  # else the last-resort handler writes
_logger: Any = structlog.wrap_logger(
    logging.getLogger("safehold"),
    processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
    wrapper_class=structlog.stdlib.BoundLogger,
)
_SEVERITY = {
    HealthState.UNHEALTHY: "error",
    HealthState.DEGRADED: "warning",
    HealthState.RECOVERING: "warning",
}
_QUIET = 60.0  # seconds for which a repeated block is counted instead of told
_MOST_REPEATS = 1000  # operations and reasons that are remembered


def event(event: Event, repeats: dict[tuple[str, str], tuple[float, int]]) -> None:
    """Write an event's line. Never raises: a log sink that fails harms nobody."""
    try:
        if isinstance(event, Transition):
            _transition(event)
        else:
            _decision(event, repeats)
    except Exception:  # noqa: BLE001, S110 - there is nowhere left to report to
        pass


def fault(what: str, error: BaseException, **context: Any) -> None:
    """Write that something of the user's, or of ours, raised where it must not harm anybody."""
    try:
        cause = cause_of(error)
        _logger.error(f"{what}: {cause.code}", fault=what, error=cause.code, **context)
    except Exception:  # noqa: BLE001, S110 - there is nowhere left to report to
        pass


def _transition(event: Transition) -> None:
    text = f"{event.dependency} is {event.after} (was {event.before}): {event.cause.text}"
    if event.held:
        text += "; held until released"
    elif event.retry_after:
        text += f"; next look in {event.retry_after:.3g} s"
    getattr(_logger, _SEVERITY.get(event.after, "info"))(
        text,
        dependency=event.dependency,
        health=str(event.after),
        health_before=str(event.before),
        breaker=str(event.breaker),
        breaker_before=str(event.breaker_before),
        cause=event.cause.code,
        retry_after=event.retry_after,
        generation=event.generation,
    )


def _decision(event: Decision, repeats: dict[tuple[str, str], tuple[float, int]]) -> None:
    """Write a block once a minute for each operation and reason, with the number left untold."""
    verdict = event.verdict
    first = verdict.reasons[0]
    key = (verdict.operation, first.code)
    last, untold = repeats.get(key, (event.at - _QUIET, 0))
    if 0 <= event.at - last < _QUIET:
        repeats[key] = (last, untold + 1)
        return
    if len(repeats) >= _MOST_REPEATS:
        repeats.clear()
    repeats[key] = (event.at, 0)
    did = "was not executed" if event.enforced else "would have been blocked (observing)"
    wait = verdict.retry_after
    then = "a person has to end this" if wait is None else f"retry in {wait:.3g} s"
    _logger.warning(
        f"{verdict.operation} {did}: {first.text}; {then}",
        operation=verdict.operation,
        trigger=str(verdict.trigger),
        reasons=[reason.code for reason in verdict.reasons],
        dependency=first.dependency,
        retry_after=wait,
        suppressed=untold,
    )
