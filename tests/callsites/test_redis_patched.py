"""Tools that patch redis-py go on working: what is in the place of one of its methods is called as before."""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import redis
import redis.asyncio
from redis.asyncio.client import Monitor as AsyncMonitor
from redis.asyncio.client import Pipeline as AsyncPipeline
from redis.asyncio.client import PubSub as AsyncPubSub
from redis.asyncio.cluster import ClusterPipeline as AsyncClusterPipeline
from redis.client import Monitor, Pipeline, PubSub
from redis.cluster import ClusterPipeline
from redis.commands.json import JSON

from safehold import Dependency, Safehold
from safehold.callsites.redis import _adopt, _overrides, guard_client, guarding

CLIENTS: list[Any] = [redis.Redis, redis.asyncio.Redis, redis.RedisCluster, redis.asyncio.RedisCluster]
BORN: list[Any] = [
    Pipeline,
    AsyncPipeline,
    PubSub,
    AsyncPubSub,
    Monitor,
    AsyncMonitor,
    ClusterPipeline,
    AsyncClusterPipeline,
    JSON,
]
OVERRIDES = [
    pytest.param(kind, name, id=f"{kind.__module__}.{kind.__name__}.{name}")
    for kind in [*CLIENTS, *BORN]
    for name in _overrides(kind)
]
NODE = SimpleNamespace(name="node", redis_connection=None)


def bare(kind: Any) -> Any:
    """An object without a server, which has what our methods read before they call the parent's."""
    thing = object.__new__(kind)
    of_cluster = "Cluster" in kind.__name__
    thing.__dict__.update(
        command_stack=[SimpleNamespace(args=("GET", "a")) if of_cluster else (("GET", "a"), {})],
        connection=None,
        _client=SimpleNamespace(),
        nodes_manager=SimpleNamespace(nodes_cache={"node": NODE}),
        read_from_replicas=False,
        retry=None,
        watching=False,
        **{} if of_cluster else {"connection_pool": SimpleNamespace(connection_kwargs={})},
    )
    return thing


def asked(thing: Any, name: str, args: tuple[Any, ...]) -> Any:
    """Call a method, or await it, whichever it is."""

    async def awaited() -> Any:
        answer = getattr(type(thing), name)(thing, *args)
        return await answer if inspect.isawaitable(answer) else answer

    return asyncio.run(awaited())


@pytest.fixture
def dependency() -> Dependency:
    return Safehold("test").dependency("redis")


@pytest.mark.parametrize(("kind", "name"), OVERRIDES)
@pytest.mark.parametrize("guarded", [True, False])
def test_mock_in_place_of_a_method_is_called_as_redis_py_calls_it(
    dependency: Dependency, kind: Any, name: str, guarded: bool
) -> None:
    """A mock is no function, so Python does not hand it the object; nor do we. It may give what it likes."""
    guard = guarding(guard_client(redis.Redis(), dependency))
    thing = _adopt(bare(kind), guard)
    if not guarded:
        thing._safehold = None
    args = (NODE, "GET", "a") if kind in CLIENTS and name == "_execute_command" else ("GET",)
    given = object()
    double: Any = mock.AsyncMock if inspect.iscoroutinefunction(getattr(kind, name)) else mock.Mock
    with mock.patch.object(kind, name, double(return_value=given)) as patched:
        assert asked(thing, name, args) is given
    assert patched.call_args_list == [mock.call(*args)]


@pytest.mark.parametrize("name", ["execute_command", "_execute_command"])
def test_mock_behind_a_command_is_called_as_redis_py_calls_it(dependency: Dependency, name: str) -> None:
    """The shorter way calls at once what `execute_command` does nothing but call, unless that was patched."""
    client = guard_client(redis.Redis(), dependency)
    with mock.patch.object(redis.Redis, name, return_value=b"1") as patched:
        assert client.get("a") == b"1"
    assert [call.args for call in patched.call_args_list] == [("GET", "a")]
    assert dependency.status().successes == 1


def test_mock_behind_an_asyncio_command_is_called_as_redis_py_calls_it(dependency: Dependency) -> None:
    """The same for `redis.asyncio.Redis`, where there is nothing to skip."""
    client = guard_client(redis.asyncio.Redis(), dependency)
    with mock.patch.object(redis.asyncio.Redis, "execute_command", return_value=b"1") as patched:
        assert asked(client, "get", ("a",)) == b"1"
    assert [call.args for call in patched.call_args_list] == [("GET", "a")]
    assert dependency.status().successes == 1


@pytest.mark.parametrize("kind", [redis.Redis, redis.asyncio.Redis])
def test_function_in_place_of_a_method_gets_the_object(dependency: Dependency, kind: Any) -> None:
    """What a tracing package puts there is a function, and sees the client first, as ever."""
    client = guard_client(kind(), dependency)
    seen = []

    def traced(self: Any, *args: Any, **options: Any) -> Any:
        seen.append((self, args))
        return answer(b"1") if kind is redis.asyncio.Redis else b"1"

    async def answer(value: bytes) -> bytes:
        return value

    with mock.patch.object(kind, "execute_command", traced):
        assert asked(client, "get", ("a",)) == b"1"
    assert seen == [(client, ("GET", "a"))]


def test_static_and_class_methods_are_bound_as_they_say(dependency: Dependency) -> None:
    """A subclass of the user's may put any descriptor there."""

    class Store(redis.Redis):
        @staticmethod
        def execute_command(*args: Any, **options: Any) -> Any:
            return args

    client = guard_client(Store(), dependency)
    assert client.execute_command("PING") == ("PING",)


def test_mock_of_what_is_born_is_not_guarded(dependency: Dependency) -> None:
    """A test's stand-in for a pipeline stays what it is, whatever it claims to be."""
    client = guard_client(redis.Redis(), dependency)
    stand_in = mock.Mock(spec=Pipeline)
    before = type(stand_in)
    with mock.patch.object(redis.Redis, "pipeline", return_value=stand_in):
        assert client.pipeline() is stand_in
    assert type(stand_in) is before


@pytest.mark.parametrize("made", [redis.backoff.NoBackoff, redis.backoff.ExponentialBackoff])
def test_mock_of_a_backoff_is_called_as_redis_py_calls_it(dependency: Dependency, made: Any) -> None:
    """The policy between the attempts is patched by many a test, so as not to wait."""
    client: Any = guard_client(redis.Redis(retry=redis.retry.Retry(made(), 1)), dependency)
    backoff = client.connection_pool.connection_kwargs["retry"]._backoff
    with mock.patch.object(made, "compute", return_value=0.0) as patched:
        assert backoff.compute(3) == 0.0
    assert patched.call_args_list == [mock.call(3)]


@pytest.mark.parametrize("name", ["set_parser", "on_connect", "make_connection"])
def test_mock_below_a_client_is_called_as_redis_py_calls_it(dependency: Dependency, name: str) -> None:
    """What bounds the answers stands in for single methods of a pool, a connection and a parser."""
    pool: Any = guard_client(redis.Redis(), dependency).connection_pool
    connection = pool.make_connection()
    of = {"set_parser": connection, "on_connect": connection._parser, "make_connection": pool}[name]
    plain = connection._parser if name == "set_parser" else None  # it is looked at afterwards
    given = () if name == "make_connection" else (connection,)
    with mock.patch.object(type(of), name, return_value=plain) as patched:
        getattr(of, name)(*given)
    assert patched.call_args_list == [mock.call(*given)]


@pytest.mark.parametrize("spec", [None, redis.Connection])
def test_mock_of_a_connection_is_let_be(dependency: Dependency, spec: Any) -> None:
    """It has no buffer that could be another, whatever it claims to be."""
    connection = mock.Mock(spec=spec)
    pool: Any = redis.ConnectionPool()
    pool._available_connections.append(connection)
    guard_client(redis.Redis(connection_pool=pool), dependency)
    with mock.patch.object(redis.ConnectionPool, "make_connection", return_value=connection):
        assert pool.make_connection() is connection
