"""The health endpoints, whatever serves them: read from memory, so they answer while a dependency hangs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from .._core.configuration import ConfigurationError
from .._core.health import BreakerState, HealthState
from .._runtime.redact import redact
from .._runtime.report import DependencyReport, HealthReport
from .._runtime.safehold import Safehold
from ._render import Answer, answer

Page = Literal["/livez", "/readyz", "/health"]
JSON: Final = "application/json"
_PAGES: Final[dict[str, Page]] = {"/livez": "/livez", "/readyz": "/readyz", "/health": "/health"}


def check_arguments(health: object, health_at: object, authorise: object) -> None:
    """Raise `ConfigurationError` for arguments of a middleware that cannot work."""
    if not isinstance(health, Safehold):
        msg = f"health must be a Safehold, got {health!r}"
        raise ConfigurationError(msg)
    if health_at is not None and not (isinstance(health_at, str) and health_at.startswith("/")):
        msg = f'health_at must be None or a path such as "/" or "/internal", got {health_at!r}'
        raise ConfigurationError(msg)
    if authorise is not None and not callable(authorise):
        msg = f"authorise must be a function, got {authorise!r}"
        raise ConfigurationError(msg)


def page_at(path: str, health_at: str | None) -> Page | None:
    """Give the endpoint that a path names."""
    if health_at is None or not path.startswith(base := health_at.rstrip("/")):
        return None
    return _PAGES.get(path[len(base) :])


def serve(page: Page, method: str, health: Safehold, *, details: Callable[[], bool]) -> Answer:
    """Answer a request for an endpoint. `details`: whether whoever asks may see them."""
    if method not in {"GET", "HEAD"}:
        return answer({"status": "method not allowed"}, 405, JSON, ("allow", "GET, HEAD"))
    match page:
        case "/livez":
            return answer({"status": "alive"}, 200, JSON)
        case "/readyz":
            return _ready(health.status(), details=details())
        case "/health":
            return _health(health.status(), details=details())


def _ready(report: HealthReport, *, details: bool) -> Answer:
    waiting = [one.name for one in report.dependencies.values() if _holds_up(one, report)]
    told: dict[str, Any] = {"status": "not ready" if waiting else "ready"}
    if details:
        told["waiting_for"] = _redacted(waiting)
    return answer(told, 503 if waiting else 200, JSON)


def _holds_up(one: DependencyReport, report: HealthReport) -> bool:
    """Whether the service cannot work yet. What nobody asks stays unknown: waiting for it would never end."""
    asked = one.probed and report.probing and one.mode != "disabled"
    unknown = one.state is HealthState.UNKNOWN and asked
    return one.critical and (one.breaker is not BreakerState.CLOSED or unknown)


def _health(report: HealthReport, *, details: bool) -> Answer:
    told: dict[str, Any] = {"status": str(report.overall), "at": report.at.isoformat()}
    if details:
        told |= _redacted(report.model_dump(mode="json"))
    return answer(told, 503 if report.overall is HealthState.UNHEALTHY else 200, JSON)


def _redacted(value: Any) -> Any:
    """Take secrets out of every text: a cause may quote what people wrote."""
    match value:
        case str():
            return redact(value)
        case dict():
            return {redact(str(key)): _redacted(part) for key, part in value.items()}
        case list():
            return [_redacted(part) for part in value]
        case _:
            return value
