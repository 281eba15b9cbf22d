"""Safehold keeps a service from destroying what it merely cannot see."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._core.backoff import Backoff
from ._core.breaker import Cause, Outcome, Transition
from ._core.budget import Budget
from ._core.epoch import EpochReading
from ._core.evidence import UNKNOWN, Evidence, Presence, combine
from ._core.gate import Reason, Trigger, Verdict
from ._core.health import BreakerState, HealthState
from ._core.window import CountWindow, TimeWindow
from ._runtime.clock import Clock, SystemClock
from ._runtime.dependency import Dependency
from ._runtime.engine import Subscription
from ._runtime.events import Decision, ForcedAct
from ._runtime.grants import Grant, GrantDeniedError, GrantRequest
from ._runtime.ledger import Entry, Ledger, LedgerOutcome
from ._runtime.limiter import Limiter, RetryBudget
from ._runtime.operations import Operation
from ._runtime.pace import Pace, Tick
from ._runtime.permit import Permit
from ._runtime.plans import Plan
from ._runtime.safehold import Safehold
from ._runtime.scope import Scope
from ._runtime.subsystem import Subsystem, SubsystemState, SubsystemSubscription
from ._runtime.sweep import AsyncSweep, Sweep, SweepReport, Swept
from ._runtime.timeline import Timeline, TimelineEntry
from ._version import __version__
from .errors import (
    ConfigurationError,
    DependencyUnhealthy,
    OperationBlocked,
    Refused,
    SafeholdError,
    Saturated,
)

if TYPE_CHECKING:
    from ._payload import Refusal
    from ._runtime.flow_report import LimiterReport, PaceReport, SubsystemReport
    from ._runtime.inventory import Inventory
    from ._runtime.policies import BreakerPolicy, GatePolicy, LogPolicy, ProbePolicy
    from ._runtime.report import DependencyReport, HealthReport

health = Safehold("health")
"""The default Safehold. Libraries and tests make their own."""

_MODELS = {
    "BreakerPolicy": "_runtime.policies",
    "DependencyReport": "_runtime.report",
    "GatePolicy": "_runtime.policies",
    "HealthReport": "_runtime.report",
    "Inventory": "_runtime.inventory",
    "LimiterReport": "_runtime.flow_report",
    "LogPolicy": "_runtime.policies",
    "PaceReport": "_runtime.flow_report",
    "ProbePolicy": "_runtime.policies",
    "Refusal": "_payload",
    "SubsystemReport": "_runtime.flow_report",
}


def __getattr__(name: str) -> Any:
    """Load pydantic's models when they are first named: they are half of what an import would cost."""
    if name not in _MODELS:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f"{__name__}.{_MODELS[name]}"), name)
    globals()[name] = value
    return value


__all__ = [
    "UNKNOWN",
    "AsyncSweep",
    "Backoff",
    "BreakerPolicy",
    "BreakerState",
    "Budget",
    "Cause",
    "Clock",
    "ConfigurationError",
    "CountWindow",
    "Decision",
    "Dependency",
    "DependencyReport",
    "DependencyUnhealthy",
    "Entry",
    "EpochReading",
    "Evidence",
    "ForcedAct",
    "GatePolicy",
    "Grant",
    "GrantDeniedError",
    "GrantRequest",
    "HealthReport",
    "HealthState",
    "Inventory",
    "Ledger",
    "LedgerOutcome",
    "Limiter",
    "LimiterReport",
    "LogPolicy",
    "Operation",
    "OperationBlocked",
    "Outcome",
    "Pace",
    "PaceReport",
    "Permit",
    "Plan",
    "Presence",
    "ProbePolicy",
    "Reason",
    "Refusal",
    "Refused",
    "RetryBudget",
    "Safehold",
    "SafeholdError",
    "Saturated",
    "Scope",
    "Subscription",
    "Subsystem",
    "SubsystemReport",
    "SubsystemState",
    "SubsystemSubscription",
    "Sweep",
    "SweepReport",
    "Swept",
    "SystemClock",
    "Tick",
    "TimeWindow",
    "Timeline",
    "TimelineEntry",
    "Transition",
    "Trigger",
    "Verdict",
    "__version__",
    "combine",
    "health",
]
