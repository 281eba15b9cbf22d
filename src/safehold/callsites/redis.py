"""Guard a redis-py client, sync or asyncio: `client = guard_client(client, health["redis"])`.

The client stays the object that it was: its class becomes a cached subclass of its own class, in place,
and what it gives birth to (pipelines, subscriptions, monitors, copies) is treated alike. Commands are
guarded at the top, outside redis-py's own retry loop, where a refusal may safely be a
`redis.ConnectionError`. Between the attempts of that loop stands a companion (`_redis_retry`), so that the
breaker sees each of them and ends the loop, and so that a write is sent at most once.

A command that succeeds while nothing is amiss pays for one look at the breaker, one look at its name and
one count. Everything else takes the slower way, through a permit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, update_wrapper
from typing import Any, Final, TypeVar, cast

import redis
import redis.asyncio
from redis import exceptions
from redis.asyncio.client import Monitor as AsyncMonitor
from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.asyncio.client import PubSub as AsyncPubSub
from redis.client import Monitor, Pipeline, PubSub
from redis.exceptions import ConnectionError as RedisConnectionError

from .._core.configuration import ConfigurationError
from .._runtime.dependency import Dependency
from .._runtime.scope import innermost, scopes_open
from ..errors import DependencyUnhealthy
from ._plainly import plain_class, plainly
from ._redis_calls import Call, ClientGuard, Destructive, Keys, Listening
from ._redis_cluster import CLUSTERS
from ._redis_cluster import overrides as cluster_overrides
from ._redis_drip import bound_answers
from ._redis_epoch import aredis_epoch, awrite_canary, redis_epoch, write_canary
from ._redis_parent import AEXECUTES, ENTERS, EXECUTES, of_redis_py, parents
from ._redis_probe import probe_for
from ._redis_retry import call_sites, pools_of, watch_retries
from ._redis_table import TABLE

__all__ = [
    "TABLE",
    "ClientGuard",
    "RedisUnhealthy",
    "aredis_epoch",
    "awrite_canary",
    "classify",
    "guard_client",
    "guarding",
    "redis_epoch",
    "unguard_client",
    "write_canary",
]

C = TypeVar("C", bound="redis.Redis | redis.asyncio.Redis | redis.RedisCluster | redis.asyncio.RedisCluster")

classify: Final = TABLE.classify
"""Say what an exception of redis-py means; `TABLE` holds the rows."""


class RedisUnhealthy(DependencyUnhealthy, RedisConnectionError):
    """A refused Redis call: a `DependencyUnhealthy`, and a `redis.ConnectionError` for existing handlers."""

    error_type: Any = getattr(getattr(exceptions, "ExceptionType", None), "NETWORK", None)
    status_code = None


def guard_client(
    client: C,
    dependency: Dependency,
    *,
    destructive: Destructive = "allow",
    keys: Keys = None,
    resend_writes: bool = False,
) -> C:
    """Guard a client and give it back: the same object, of a subclass of its own class.

    Commands, pipelines, subscriptions and monitors go through the dependency's breaker; a refused one
    raises `RedisUnhealthy`. The dependency gets a default probe (a connection of its own, no retries,
    half a second for each step, an `ECHO` of a nonce), unless it has one.

    `destructive`: what a destructive command needs that is sent outside of a running operation.
    `"allow"`: nothing, it is only noted in `guarding(client).unregistered`. `"observe"`: nothing, and
    what `"ticket"` would have blocked is told to listeners and logs. `"ticket"`: it is blocked, with
    `OperationBlocked`. Commands inside scripts cannot be seen.
    `keys`: the keys whose loss matters, as glob patterns or as a function of the key; `None` for all.
    On keys that are named so, overwriting counts as destructive too.
    `resend_writes`: whether redis-py may send a command that is no plain read once more when its reply
    was lost. Without it such a command is sent at most once; its error has `outcome == "unknown"`.

    Guarding twice is guarding once; the later settings count. Raises `ConfigurationError` for what is not
    a redis-py client, and for a client of another dependency.
    """
    kinds = (redis.Redis, redis.asyncio.Redis, *CLUSTERS)
    if not issubclass(type(client), kinds) or isinstance(client, (Pipeline, AsyncPipeline)):  # nor a mock
        msg = f"client must be a redis-py client, got {client!r}"
        raise ConfigurationError(msg)
    known = guarding(client)
    if known is not None and known.dependency is not dependency:
        msg = f"this client is guarded as {known.dependency.name!r} already, not as {dependency.name!r}"
        raise ConfigurationError(msg)
    guard = ClientGuard(
        dependency,
        error=RedisUnhealthy,
        destructive=destructive,
        keys=keys,
        resend_writes=resend_writes,
    )
    _adopt(client, guard)
    for pool in pools_of(client):
        watch_retries(pool)
        bound_answers(pool)
    dependency.provide(probe=probe_for(client, guard), classify=classify)
    return client


def unguard_client(client: C) -> C:
    """Undo `guard_client`, in place, and give the client back. Nothing happens to one that is not guarded.

    What it gave birth to stays guarded. The dependency keeps its probe.
    """
    if guarding(client) is not None:
        client.__class__ = plain_class(type(client))
        del client.__dict__["_safehold"]
    return client


def guarding(client: object) -> ClientGuard | None:
    """Say how a client (or a pipeline, a subscription, ...) is guarded; `None` for one that is not."""
    guard = getattr(client, "_safehold", None) if isinstance(client, _Guarded) else None
    return guard if isinstance(guard, ClientGuard) else None


class _Guarded:
    """Marks the classes made here. `None` until an object is guarded: redis-py makes more by itself."""

    __slots__ = ()
    _safehold: ClientGuard | None = None


def _adopt(thing: Any, guard: ClientGuard) -> Any:
    """Make an object guarded, whatever redis-py made it."""
    if not isinstance(thing, _Guarded):
        thing.__class__ = _guarded_class(cast("Any", type(thing)))  # its parent built it
        thing.__dict__ = dict(vars(thing))  # Python reads this one faster than what the change has left
    thing._safehold = guard
    return thing


@cache
def _guarded_class(plain: Any) -> Any:
    """Make the guarded subclass of a class of redis-py's, or of a user's subclass of one.

    The parent's methods are looked up at each call, so that tools that patch them go on working.
    """
    made = {name: make(plain, name) for name, make in _overrides(plain).items()}
    return plainly(plain, _Guarded, {name: _like(function, plain, name) for name, function in made.items()})


def _like(function: Any, plain: Any, name: str) -> Any:
    """Give a method the name, signature and docstring of the one that it stands for."""
    known = getattr(plain, name, None)
    return function if known is None else update_wrapper(function, known)


def _overrides(plain: Any) -> dict[str, Callable[[Any, str], Any]]:
    if (cluster := cluster_overrides(plain)) is not None:
        return {**cluster, **(_births(plain) if issubclass(plain, CLUSTERS) else {})}
    if issubclass(plain, Pipeline):
        return {"execute": _batch, "immediate_execute_command": _single}
    if issubclass(plain, AsyncPipeline):
        return {"execute": _abatch, "immediate_execute_command": _asingle}
    if issubclass(plain, redis.Redis):
        return {"execute_command": _command, "client": _connects, "monitor": _connects, **_births(plain)}
    if issubclass(plain, redis.asyncio.Redis):
        return {"execute_command": _acommand, "client": _bears, "monitor": _bears, **_births(plain)}
    if issubclass(plain, PubSub):
        return {"execute_command": _subscribes, "parse_response": _listens}
    if issubclass(plain, AsyncPubSub):
        return {"execute_command": _asubscribes, "parse_response": _alistens}
    if issubclass(plain, Monitor):
        return {"_start_monitor": _connects, "next_command": _listens}
    if issubclass(plain, AsyncMonitor):
        return {"__aenter__": _aconnects, "next_command": _alistens}
    return {"pipeline": _bears}  # the commands of a module, such as JSON


def _births(plain: Any) -> dict[str, Callable[[Any, str], Any]]:
    births = dict.fromkeys(("pipeline", "pubsub", "json", "ft", "ts"), _bears)
    more = {"monitor": _connects} if issubclass(plain, redis.RedisCluster) else {}
    known = {**births, **more, "set_retry": _set_retry}
    return {name: make for name, make in known.items() if hasattr(plain, name)}


# --- commands -----------------------------------------------------------------------------------------
# The shorter way takes itself from `args`: passing them on as they came is a third of what it costs. And
# where nobody has patched what it would call, it calls at once what that leads to.


def _command(plain: Any, name: str) -> Any:
    slow = _single(plain, name)

    def execute_command(*args: Any, **options: Any) -> Any:
        guard = args[0]._safehold
        if guard is None:
            return parents(plain, name, args[0])(*args[1:], **options)
        era = guard.breaker.era
        if era.ask or (scopes_open and innermost() is not None):
            return slow(*args, **options)
        try:
            needs_look = args[1] not in guard.passes
        except (IndexError, TypeError):  # none, or it cannot be hashed: redis-py will say what it thinks
            needs_look = False
        if needs_look:
            guard.look(args[1:])
        try:
            if plain.execute_command is ENTERS and plain._execute_command is EXECUTES:
                result = EXECUTES(*args, **options)
            else:
                result = parents(plain, name, args[0])(*args[1:], **options)
        except BaseException as error:
            Call(guard, args[0], (args[1:],)).failed(era, error)
            raise
        next(era.generation.tally)
        return result

    call_sites[execute_command.__code__] = _in_short
    return execute_command


def _acommand(plain: Any, name: str) -> Any:
    slow = _asingle(plain, name)

    async def execute_command(*args: Any, **options: Any) -> Any:
        guard = args[0]._safehold
        if guard is None:
            return await parents(plain, name, args[0])(*args[1:], **options)
        era = guard.breaker.era
        if era.ask or (scopes_open and innermost() is not None):
            return await slow(*args, **options)
        try:
            needs_look = args[1] not in guard.passes
        except (IndexError, TypeError):  # none, or it cannot be hashed: redis-py will say what it thinks
            needs_look = False
        if needs_look:
            guard.look(args[1:])
        try:
            if plain.execute_command is AEXECUTES:
                result = await AEXECUTES(*args, **options)
            else:
                result = await parents(plain, name, args[0])(*args[1:], **options)
        except BaseException as error:
            Call(guard, args[0], (args[1:],)).failed(era, error)
            raise
        next(era.generation.tally)
        return result

    call_sites[execute_command.__code__] = _in_short
    return execute_command


def _in_short(local: Mapping[str, Any]) -> Call:
    """Read the call of the shorter way from its function's locals."""
    self, *words = local["args"]
    return Call(local["guard"], self, (tuple(words),), local["era"])


def _in_full(local: Mapping[str, Any]) -> Any:
    return local["tried"]


def _single(plain: Any, name: str) -> Any:
    def single(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None:
            return parents(plain, name, self)(*args, **options)
        guard.look_at(args)
        tried = Call(guard, self, (args,))  # found on the stack, too
        with tried:
            return parents(plain, name, self)(*args, **options)

    return _seen(single, name)


def _asingle(plain: Any, name: str) -> Any:
    async def single(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None:
            return await parents(plain, name, self)(*args, **options)
        guard.look_at(args)
        tried = Call(guard, self, (args,))  # found on the stack, too
        with tried:
            return await parents(plain, name, self)(*args, **options)

    return _seen(single, name)


def _seen(function: Any, name: str) -> Any:
    """Let retries find the calls that are made in this function, and give it the name that it stands for."""
    call_sites[function.__code__] = _in_full
    function.__name__ = name
    return function


# --- pipelines ----------------------------------------------------------------------------------------


def _batch(plain: Any, name: str) -> Any:
    def batch(self: Any, *args: Any, **options: Any) -> Any:
        guard, commands = self._safehold, _queued(self)
        if guard is None or commands is None:
            return parents(plain, name, self)(*args, **options)
        for command in commands:
            guard.look_at(command)
        with Call(guard, self, commands) as tried:
            results = parents(plain, name, self)(*args, **options)
            if not (args[0] if args else options.get("raise_on_error", True)):
                tried.answered(results)
            return results

    return _seen(batch, name)


def _abatch(plain: Any, name: str) -> Any:
    async def batch(self: Any, *args: Any, **options: Any) -> Any:
        guard, commands = self._safehold, _queued(self)
        if guard is None or commands is None:
            return await parents(plain, name, self)(*args, **options)
        for command in commands:
            guard.look_at(command)
        with Call(guard, self, commands) as tried:
            results = await parents(plain, name, self)(*args, **options)
            if not (args[0] if args else options.get("raise_on_error", True)):
                tried.answered(results)
            return results

    return _seen(batch, name)


def _queued(pipeline: Any) -> list[tuple[Any, ...]] | None:
    """Give the commands that executing a pipeline would send; `None` when it would send nothing."""
    stack = pipeline.command_stack
    return [args for args, _ in stack] if stack or pipeline.watching else None


# --- births -------------------------------------------------------------------------------------------


def _bears(plain: Any, name: str) -> Any:
    """Guard what is born."""

    def bears(self: Any, *args: Any, **options: Any) -> Any:
        born = parents(plain, name, self)(*args, **options)
        guard = self._safehold
        if guard is None or not of_redis_py(born):
            return born
        if type(born) in _NEWBORN:
            born = _as_if_born_guarded(born)
        return _adopt(born, guard)

    bears.__name__ = name
    return bears


_NEWBORN: Final = (Pipeline, AsyncPipeline)


def _as_if_born_guarded(born: Any) -> Any:
    """Make the guarded object anew that nobody else knows yet.

    Python reads the attributes of an object whose class was changed more slowly, and every command that is
    queued reads some.
    """
    anew = object.__new__(_guarded_class(cast("Any", type(born))))
    for name, value in vars(born).items():
        setattr(anew, name, value)
    return anew


def _connects(plain: Any, name: str) -> Any:
    """Guard what connects at once, and what is born of it."""

    def connects(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None:
            return parents(plain, name, self)(*args, **options)
        tried = Call(guard, self, ())  # found on the stack, too
        with tried:
            born = parents(plain, name, self)(*args, **options)
        return _adopt(born, guard) if of_redis_py(born) else born

    return _seen(connects, name)


def _aconnects(plain: Any, name: str) -> Any:
    async def connects(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None:
            return await parents(plain, name, self)(*args, **options)
        tried = Call(guard, self, ())  # found on the stack, too
        with tried:
            return await parents(plain, name, self)(*args, **options)

    return _seen(connects, name)


def _set_retry(plain: Any, name: str) -> Any:
    """Watch a retry policy that is set later, too."""

    def set_retry(self: Any, retry: Any) -> Any:
        done = parents(plain, name, self)(retry)
        if self._safehold is not None:
            for pool in pools_of(self):
                watch_retries(pool)
        return done

    return set_retry


# --- listening ----------------------------------------------------------------------------------------
# A subscription is refused while the breaker is open; to give one up is not. Who listens on a connection
# that stands is let be, and silence says nothing; but nobody connects anew past an open breaker.


def _subscribes(plain: Any, name: str) -> Any:
    def subscribes(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None or "UNSUBSCRIBE" in str(args[:1]).upper():
            return parents(plain, name, self)(*args, **options)
        tried = Call(guard, self, (args,))  # found on the stack, too
        with tried:
            return parents(plain, name, self)(*args, **options)

    return _seen(subscribes, name)


def _asubscribes(plain: Any, name: str) -> Any:
    async def subscribes(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None or "UNSUBSCRIBE" in str(args[:1]).upper():
            return await parents(plain, name, self)(*args, **options)
        tried = Call(guard, self, (args,))  # found on the stack, too
        with tried:
            return await parents(plain, name, self)(*args, **options)

    return _seen(subscribes, name)


def _listens(plain: Any, name: str) -> Any:
    def listens(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None:
            return parents(plain, name, self)(*args, **options)
        with Listening(guard, self) as tried:
            heard = parents(plain, name, self)(*args, **options)
            if heard is not None:
                tried.heard()
            return heard

    return _seen(listens, name)


def _alistens(plain: Any, name: str) -> Any:
    async def listens(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None:
            return await parents(plain, name, self)(*args, **options)
        with Listening(guard, self) as tried:
            heard = await parents(plain, name, self)(*args, **options)
            if heard is not None:
                tried.heard()
            return heard

    return _seen(listens, name)
