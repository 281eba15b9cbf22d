"""The methods that the guarded ones stand in front of, bound as attribute access would have bound them.

They are looked up at each call, so that tools that patch them go on working, and what is put in the place
of one need be no function: a mock is called without the object, as redis-py itself would call it.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any, Final

import redis
import redis.asyncio
from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.client import Pipeline

__all__ = ["AEXECUTES", "ENTERS", "EXECUTES", "of_redis_py", "parents"]


def parents(plain: Any, name: str, of: Any) -> Any:
    """Give a method of the parent class, for an object of the guarded one."""
    for kind in plain.__mro__:
        if name in (has := vars(kind)):
            found = has[name]
            bind = getattr(type(found), "__get__", None)
            return found if bind is None else bind(found, of, type(of))
    msg = f"{plain.__name__!r} object has no attribute {name!r}"
    raise AttributeError(msg)


def of_redis_py(thing: Any) -> bool:
    """Whether an object is of a class of redis-py's or of a subclass of one; a mock of one is not."""
    return any(kind.__module__.partition(".")[0] == "redis" for kind in type(thing).__mro__)


# --- what may be called at once -----------------------------------------------------------------------
# Binding costs something. Where nothing was put in the place of redis-py's own function, it is called with
# the object at hand; and of two that only call each other, the second.


def _own(found: Any, beside: type) -> Any:
    """Give redis-py's own function; `None` for what was put in its place before we came."""
    is_own = isinstance(found, FunctionType) and found.__code__.co_filename == inspect.getfile(beside)
    return found if is_own else None


ENTERS: Final[Any] = _own(redis.Redis.execute_command, Pipeline)
EXECUTES: Final[Any] = (
    _own(redis.Redis._execute_command, Pipeline)
    if ENTERS is not None and ENTERS.__code__.co_names == ("_execute_command",)
    else None
)
"""What `ENTERS` does nothing but call."""
AEXECUTES: Final[Any] = _own(redis.asyncio.Redis.execute_command, AsyncPipeline)
