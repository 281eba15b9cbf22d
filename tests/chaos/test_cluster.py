"""A cluster client under guard, against a real cluster that loses a node."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.cluster import ClusterNode

from safehold import Backoff, BreakerPolicy, GatePolicy, OperationBlocked, Safehold
from safehold.callsites.redis import RedisUnhealthy, guard_client, guarding, unguard_client
from safehold.testing.clock import ManualClock

from .cluster import Cluster, running_cluster, wait_for

COOLDOWN = 2.0
KEYS = [f"key:{number}" for number in range(30)]


@pytest.fixture(scope="module")
def cluster(redis_binary: str) -> Iterator[Cluster]:
    with running_cluster(redis_binary) as cluster:
        yield cluster


@pytest.fixture
def clock() -> ManualClock:
    """A cooldown ends when the test says so, however slow the machine is."""
    return ManualClock()


@pytest.fixture
def health(clock: ManualClock) -> Safehold:
    health = Safehold(clock=clock, gate=GatePolicy(startup_grace=0))
    health.dependency("redis", policy=BreakerPolicy(cooldown=Backoff(first=COOLDOWN)))
    return health


class Forms:
    """The same verbs for both clients."""

    def __init__(self, cluster: Cluster, kind: str) -> None:
        self.loop = asyncio.new_event_loop() if kind == "asyncio" else None
        node, home = (AsyncClusterNode, redis.asyncio) if self.loop else (ClusterNode, redis)
        nodes: Any = [node(*address) for address in cluster.startup_nodes]
        self.client: Any = home.RedisCluster(startup_nodes=nodes, socket_timeout=1.0)
        if self.loop:
            self.do(self.client.initialize())

    def do(self, answer: Any) -> Any:
        return answer if self.loop is None else self.loop.run_until_complete(answer)

    def close(self) -> None:
        self.do(self.client.close() if self.loop is None else self.client.aclose())
        if self.loop is not None:
            self.loop.close()


@pytest.fixture(params=["sync", "asyncio"])
def forms(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Forms]:
    forms = Forms(cluster, request.param)
    yield forms
    forms.close()


def test_a_guarded_cluster_client_does_what_it_did(forms: Forms, health: Safehold) -> None:
    """Commands, pipelines, and commands over several slots go through; the client is what it was."""
    plain = type(forms.client)
    client = guard_client(forms.client, health["redis"])
    assert client is forms.client
    assert isinstance(client, plain)
    assert guard_client(client, health["redis"]) is client
    for key in KEYS:
        assert forms.do(client.set(key, key)) is True
    assert forms.do(client.get(KEYS[3])) == KEYS[3].encode()
    assert forms.do(client.mget_nonatomic(KEYS[:5])) == [key.encode() for key in KEYS[:5]]
    assert forms.do(client.delete(*KEYS[:3])) == 3
    pipeline = client.pipeline()
    assert guarding(pipeline) is guarding(client)
    for key in KEYS[:5]:
        pipeline.get(key)
    assert forms.do(pipeline.execute()) == [None, None, None, KEYS[3].encode(), KEYS[4].encode()]
    assert health["redis"].state == "healthy"
    assert guarding(client).unregistered == {"DEL"}
    assert type(unguard_client(client)) is plain


def test_a_lost_node_is_a_degraded_cluster(
    forms: Forms, cluster: Cluster, health: Safehold, clock: ManualClock
) -> None:
    """What the other nodes hold can be had, what the lost one held fails fast, and it comes back by itself."""
    redis_dependency = health["redis"]
    client = guard_client(forms.client, redis_dependency)
    for key in KEYS:
        forms.do(client.set(key, key))
    lost_node = client.get_node_from_key(KEYS[0])
    elsewhere = next(key for key in KEYS if client.get_node_from_key(key).port != lost_node.port)
    server = cluster.server_of(lost_node.port)
    server.kill()
    try:
        with pytest.raises(redis.ConnectionError) as first:
            forms.do(client.get(KEYS[0]))
        assert not isinstance(first.value, RedisUnhealthy), "it was tried, so the error is redis-py's"
        status = redis_dependency.status()
        assert (status.state, status.breaker) == ("degraded", "closed")
        assert list(status.impaired) == [f"node 127.0.0.1:{lost_node.port}"]
        clock.advance(COOLDOWN / 2)
        with pytest.raises(RedisUnhealthy) as refused:
            forms.do(client.get(KEYS[0]))
        assert (refused.value.state, refused.value.reason) == ("degraded", "node_lost")
        assert refused.value.retry_after == COOLDOWN / 2
        assert forms.do(client.get(elsewhere)) == elsewhere.encode()
        assert redis_dependency.state == "degraded", "an answer of another node proves nothing"
    finally:
        server.start()
    wait_for(lambda: _can_be_had(forms, client, clock), "answer of the node")
    assert redis_dependency.status().impaired == {}
    assert redis_dependency.state == "healthy"


def test_where_refusals_are_observed_a_lost_node_is_asked(forms: Forms, cluster: Cluster) -> None:
    """The loss is seen and told, and each call ends as it would without a guard."""
    health = Safehold(clock=ManualClock())
    dependency = health.dependency("redis", policy=BreakerPolicy(mode="observe"))
    client = guard_client(forms.client, dependency)
    forms.do(client.set(KEYS[0], "x"))
    server = cluster.server_of(client.get_node_from_key(KEYS[0]).port)
    server.kill()
    try:
        for _ in range(2):
            with pytest.raises((redis.RedisError, redis.exceptions.RedisClusterException)) as error:
                forms.do(client.get(KEYS[0]))
            assert not isinstance(error.value, RedisUnhealthy)
            assert dependency.state == "degraded"
    finally:
        server.start()
    wait_for(lambda: _can_be_had(forms, client, ManualClock()), "answer of the node")
    assert dependency.status().impaired == {}


def _can_be_had(forms: Forms, client: Any, clock: ManualClock) -> bool:
    clock.advance(COOLDOWN)
    try:
        forms.do(client.get(KEYS[0]))
    except (redis.RedisError, redis.exceptions.RedisClusterException):
        return False
    return True


def test_the_default_probe_finds_a_lost_node_again(
    forms: Forms, cluster: Cluster, health: Safehold, clock: ManualClock
) -> None:
    """A node that is back is seen without a call that needs it."""
    redis_dependency = health["redis"]
    client = guard_client(forms.client, redis_dependency)
    lost_node = client.get_node_from_key(KEYS[0])
    server = cluster.server_of(lost_node.port)
    server.kill()
    try:
        with pytest.raises(redis.ConnectionError):
            forms.do(client.get(KEYS[0]))
    finally:
        server.start()
    probe = redis_dependency._probe
    wait_for(lambda: _probed(forms, probe) and not redis_dependency.status().impaired, "probe that finds it")
    # redis-py closes the connections that it knows only
    wait_for(lambda: _can_be_had(forms, client, clock), "answer of the node")


def _probed(forms: Forms, probe: Any) -> bool:
    try:
        forms.do(probe())
    except redis.RedisError:
        return False
    return True


def test_destructive_commands_need_a_ticket_on_a_cluster_too(forms: Forms, health: Safehold) -> None:
    """A DEL over several slots goes as a pipeline, and is held back as a whole."""
    client = guard_client(forms.client, health["redis"], destructive="ticket")
    forms.do(client.set(KEYS[0], "x"))
    forms.do(client.set(KEYS[1], "x"))
    with pytest.raises(OperationBlocked):
        forms.do(client.delete(KEYS[0], KEYS[1]))
    assert forms.do(client.exists(KEYS[0], KEYS[1])) == 2

    @health.destructive("session.forget", requires=())
    def forget() -> Any:
        return forms.do(client.delete(KEYS[0], KEYS[1]))

    assert forget() == 2
