"""Tools for the tests of services that use Safehold: a clock that stands still, faults, real servers."""

from .clock import ManualClock
from .proxy import Fault, FaultProxy
from .servers import ApiServer, RedisServer

__all__ = ["ApiServer", "Fault", "FaultProxy", "ManualClock", "RedisServer"]
