"""Cluster clients: one breaker for the cluster, a facet for each node, and writes sent at most once.

A node that cannot be reached is a facet of the dependency, which is `degraded` until that very node
answers; what the others hold can still be had. Calls that need a lost node are refused for a cooldown at
a time. Only when no node is left, or the cluster says that it is down, the breaker counts.

redis-py's cluster clients try again in loops of their own: over the whole cluster for a command, over
what a lost connection has left of a pipeline. Where a loop must end (a write whose reply was lost, a node
that is known to be lost, an open breaker) it is ended with an exception that it does not know, which is
turned back at the top.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final

import redis
import redis.asyncio
from redis.asyncio.cluster import ClusterPipeline as AsyncClusterPipeline
from redis.backoff import NoBackoff
from redis.cluster import ClusterPipeline
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from .._core.breaker import Outcome
from .._core.health import HealthState
from .._core.settings import Mode
from .._runtime.classify import UNANSWERED, Judgement, judge
from .._runtime.describe import cause_of
from ._redis_calls import Call, ClientGuard
from ._redis_parent import parents
from ._redis_retry import Tried, call_sites, may_have_been_sent, tried_here
from ._redis_table import word

CLUSTERS: Final = (redis.RedisCluster, redis.asyncio.RedisCluster)
_LOST: Final = (RedisConnectionError, RedisTimeoutError)


class Stopped(RedisError):
    """Ends a loop of a cluster client's; it never reaches the application."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def overrides(plain: Any) -> dict[str, Callable[[Any, str], Any]] | None:
    """Say what is overridden in a cluster client's or a cluster pipeline's class; `None` for any other."""
    if issubclass(plain, ClusterPipeline):
        return {"execute": _batch, "_internal_execute_command": _one_of_batch}
    if issubclass(plain, AsyncClusterPipeline):
        return {"execute": _abatch}
    if issubclass(plain, redis.RedisCluster):
        return {"execute_command": _command, "_execute_command": _on_node}
    if issubclass(plain, redis.asyncio.RedisCluster):
        return {"execute_command": _acommand, "_execute_command": _aon_node}
    return None


def _command(plain: Any, name: str) -> Any:
    def execute_command(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None:
            return parents(plain, name, self)(*args, **options)
        guard.look_at(args)
        tried = ClusterCall(guard, self, (args,))  # found on the stack, too
        with tried:
            try:
                return parents(plain, name, self)(*args, **options)
            except Stopped as stopped:
                error = stopped.error
            raise error

    call_sites[execute_command.__code__] = _in_full
    return execute_command


def _acommand(plain: Any, name: str) -> Any:
    async def execute_command(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None:
            return await parents(plain, name, self)(*args, **options)
        guard.look_at(args)
        tried = ClusterCall(guard, self, (args,))  # found on the stack, too
        with tried:
            try:
                return await parents(plain, name, self)(*args, **options)
            except Stopped as stopped:
                error = stopped.error
            raise error

    call_sites[execute_command.__code__] = _in_full
    return execute_command


def _in_full(local: Any) -> Any:
    return local["tried"]


# --- nodes --------------------------------------------------------------------------------------------


def _on_node(plain: Any, name: str) -> Any:
    def _execute_command(self: Any, target_node: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None:
            return parents(plain, name, self)(target_node, *args, **options)
        visit = Visit(guard, self, target_node, tried_here(sys._getframe(1)))
        with visit:
            return parents(plain, name, self)(target_node, *args, **options)

    return _execute_command


def _aon_node(plain: Any, name: str) -> Any:
    async def _execute_command(self: Any, target_node: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is None:
            return await parents(plain, name, self)(target_node, *args, **options)
        visit = Visit(guard, self, target_node, tried_here(sys._getframe(1)))
        with visit:
            return await parents(plain, name, self)(target_node, *args, **options)

    return _execute_command


def node_facet(node: Any) -> str:
    """Name the facet that a node is."""
    return f"node {node.name}"


class ClusterCall(Call):
    """A guarded call of a cluster client: the loss of one node is not the loss of all.

    `known` are the facets that failed when it began. It may try as often as a breaker would let it.
    """

    def __init__(self, guard: ClientGuard, client: Any, commands: Sequence[tuple[Any, ...]]) -> None:
        super().__init__(guard, client, commands)
        self.known = guard.breaker.impaired
        self._attempts_left = guard.breaker.settings.failures or _MOST_ATTEMPTS

    def again(self, error: Exception) -> bool:
        """Take in an attempt that failed; say whether redis-py may try once more."""
        self._attempts_left -= 1
        return super().again(error) and self._attempts_left > 0

    def _classify(self, error: Exception) -> Outcome | bool | Judgement:
        of_a_node = isinstance(error, _LOST) and word(error) not in _OF_THE_WHOLE and self._others_left()
        said = judge(error, super()._classify)
        failed = said.outcome is Outcome.FAILURE
        return UNANSWERED._replace(cause=said.cause) if of_a_node and failed else said

    def _others_left(self) -> bool:
        impaired = self.guard.breaker.impaired
        return any(node_facet(node) not in impaired for node in _nodes(self.client))


_MOST_ATTEMPTS: Final = 5
_OF_THE_WHOLE: Final = {"CLUSTERDOWN", "MASTERDOWN", "LOADING"}


def _nodes(client: Any) -> list[Any]:
    manager = getattr(client, "nodes_manager", None)
    return [] if manager is None else list(manager.nodes_cache.values())


class Visit:
    """One attempt at one node, as a context manager."""

    __slots__ = ("_client", "_facet", "_guard", "_known", "_tried")

    def __init__(self, guard: ClientGuard, client: Any, node: Any, tried: Tried | None) -> None:
        self._guard = guard
        self._client = client
        self._facet = node_facet(node)
        self._tried = tried
        self._known = tried.known if isinstance(tried, ClusterCall) else guard.breaker.impaired

    def __enter__(self) -> None:
        why, due = self._known.get(self._facet), self._guard.due.get(self._facet, 0.0)
        left = due - self._guard.dependency._now()
        if why is None or left <= 0 or not self._refuses():
            return
        dependency = self._guard.dependency
        cause = f"{self._facet}: {why.text}"
        raise Stopped(
            self._guard.error(
                dependency.name, HealthState.DEGRADED, left, "node_lost", dependency.since, cause
            )
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        dependency = self._guard.dependency
        if error is None and self._facet in self._known:
            dependency._mend(self._facet)
        if not isinstance(error, _LOST):
            return
        said = judge(error, self._guard.classify)
        if said.outcome is Outcome.FAILURE:
            self._guard.due[self._facet] = dependency._now() + self._guard.breaker.settings.cooldown.first
            dependency._impair(self._facet, said.cause or cause_of(error))
        known = self._facet in self._known and self._refuses()
        if known or (self._tried is not None and not self._tried.again(error)):
            raise Stopped(error) from None

    def _refuses(self) -> bool:
        """Whether a node that is known to be lost is let be: not where refusals are only observed."""
        return self._guard.breaker.settings.mode is Mode.ENFORCE and not self._elsewhere()

    def _elsewhere(self) -> bool:
        """Whether another node may have the answer: reads that go to replicas."""
        spread = getattr(self._client, "load_balancing_strategy", None) or self._client.read_from_replicas
        return bool(spread) and isinstance(self._tried, Call) and self._tried.reads_only


# --- pipelines ----------------------------------------------------------------------------------------


def _batch(plain: Any, name: str) -> Any:
    def execute(self: Any, *args: Any, **options: Any) -> Any:
        guard, commands = self._safehold, _queued(self)
        if guard is None or not commands:
            return parents(plain, name, self)(*args, **options)
        for words in commands:
            guard.look_at(words)
        tried = ClusterCall(guard, self, commands)
        with tried, _without_loop(self, once=tried.once):
            results = parents(plain, name, self)(*args, **options)
            if not (args[0] if args else options.get("raise_on_error", True)):
                tried.answered(results)
            return results

    return execute


def _abatch(plain: Any, name: str) -> Any:
    async def execute(self: Any, *args: Any, **options: Any) -> Any:
        guard, commands = self._safehold, _queued(self)
        if guard is None or not commands:
            return await parents(plain, name, self)(*args, **options)
        for words in commands:
            guard.look_at(words)
        tried = ClusterCall(guard, self, commands)
        with tried, _without_aloop(self, once=tried.once):
            results = await parents(plain, name, self)(*args, **options)
            if not (args[0] if args else options.get("raise_on_error", True)):
                tried.answered(results)
            return results

    return execute


def _queued(pipeline: Any) -> list[tuple[Any, ...]]:
    strategy = getattr(pipeline, "_execution_strategy", pipeline)
    names = ("_command_queue", "_command_stack", "command_stack")
    stack = next((found for name in names if (found := getattr(strategy, name, None)) is not None), ())
    return [tuple(command.args) for command in stack]


@contextmanager
def _without_loop(pipeline: Any, *, once: bool) -> Generator[None]:
    """Let a pipeline be sent once, where it must not be sent again."""
    name = "retry" if "retry" in vars(pipeline) else "cluster_error_retry_attempts"
    if not once:
        yield
        return
    kept = getattr(pipeline, name)
    setattr(pipeline, name, Retry(NoBackoff(), 0) if name == "retry" else 0)
    try:
        yield
    finally:
        setattr(pipeline, name, kept)


def _one_of_batch(plain: Any, name: str) -> Any:
    """Send what a lost connection has left of a pipeline once more only where that does no harm."""

    def _internal_execute_command(self: Any, *args: Any, **options: Any) -> Any:
        guard = self._safehold
        if guard is not None and Call(guard, self, (args,)).once:
            error = _result_before(sys._getframe(1))
            if isinstance(error, _LOST) and may_have_been_sent(error):
                raise error
        return parents(plain, name, self)(*args, **options)

    return _internal_execute_command


def _result_before(frame: FrameType | None) -> Any:
    """Find what the pipeline has got for the command that it is about to send again."""
    for _ in range(5):
        if frame is None:
            break
        if frame.f_code.co_name == "_send_cluster_commands":
            return getattr(frame.f_locals.get("c"), "result", None)
        frame = frame.f_back
    return None


class _OnceOnly:
    """Stands for the cluster client while a pipeline is sent: the same, but it has no attempts left."""

    def __init__(self, client: Any) -> None:
        vars(self)["_client"] = client
        vars(self)["retry"] = Retry(NoBackoff(), 0)
        vars(self)["cluster_error_retry_attempts"] = 1

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_client"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["_client"], name, value)


@contextmanager
def _without_aloop(pipeline: Any, *, once: bool) -> Generator[None]:
    name = "cluster_client" if hasattr(pipeline, "cluster_client") else "_client"
    client = getattr(pipeline, name)
    if not once:
        yield
        return
    setattr(pipeline, name, _OnceOnly(client))
    try:
        yield
    finally:
        setattr(pipeline, name, client)
