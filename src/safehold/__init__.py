"""Safehold keeps a service from destroying what it merely cannot see."""

from ._core.backoff import Backoff
from ._core.breaker import Cause, Outcome, Transition
from ._core.gate import Reason, Trigger, Verdict
from ._core.health import BreakerState, HealthState
from ._core.window import CountWindow, TimeWindow
from ._runtime.clock import Clock, SystemClock
from ._runtime.dependency import Dependency
from ._runtime.engine import Decision, Subscription
from ._runtime.operations import Operation
from ._runtime.permit import Permit
from ._runtime.policies import BreakerPolicy, GatePolicy, ProbePolicy
from ._runtime.report import DependencyReport, HealthReport
from ._runtime.safehold import Safehold
from ._runtime.scope import Scope
from ._version import __version__
from .errors import ConfigurationError, DependencyUnhealthy, OperationBlocked, Refusal, Refused, SafeholdError

health = Safehold("health")
"""The default Safehold. Libraries and tests make their own."""

__all__ = [
    "Backoff",
    "BreakerPolicy",
    "BreakerState",
    "Cause",
    "Clock",
    "ConfigurationError",
    "CountWindow",
    "Decision",
    "Dependency",
    "DependencyReport",
    "DependencyUnhealthy",
    "GatePolicy",
    "HealthReport",
    "HealthState",
    "Operation",
    "OperationBlocked",
    "Outcome",
    "Permit",
    "ProbePolicy",
    "Reason",
    "Refusal",
    "Refused",
    "Safehold",
    "SafeholdError",
    "Scope",
    "Subscription",
    "SystemClock",
    "TimeWindow",
    "Transition",
    "Trigger",
    "Verdict",
    "__version__",
    "health",
]
