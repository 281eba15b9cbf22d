"""A class of the user's own is not told of the subclass that guards it."""

from __future__ import annotations

from typing import Any

import pytest
import redis
import redis.asyncio

from safehold import ConfigurationError, Dependency, Safehold
from safehold.callsites.redis import guard_client, guarding, unguard_client

CLIENTS: list[Any] = [redis.Redis, redis.asyncio.Redis, redis.asyncio.RedisCluster]


@pytest.fixture
def dependency() -> Dependency:
    return Safehold("test").dependency("redis")


def made(kind: Any) -> Any:
    return kind(host="localhost") if kind.__mro__.count(redis.asyncio.RedisCluster) else kind()


class Registry:
    """Keeps its subclasses, each with the region that it has to name."""

    known: list[tuple[str, str]]

    def __init_subclass__(cls, *, region: str, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.known = [*getattr(cls, "known", []), (cls.__name__, region)]


class Slotted(Registry, region="none"):
    __slots__ = ()


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("registry", [Registry, Slotted])
def test_init_subclass_is_not_run(dependency: Dependency, client: Any, registry: Any) -> None:
    """A base that records its subclasses, or asks them for an argument, sees those of the user only."""

    class Store(registry, client, region="eu"):  # type: ignore[misc]  # one of them
        """Sessions."""

        __slots__ = ("extra",)

    before = list(Store.known)
    store = guard_client(made(Store), dependency)
    kind: Any = type(store)
    assert Store.known == before
    assert kind.__mro__[1:-1] == tuple(k for k in kind.__mro__[1:-1] if k.__name__ != "_Quiet")
    assert kind.__mro__[1] is Store
    assert (kind.__name__, kind.__doc__, type(kind)) == ("Store", "Sessions.", type(Store))
    assert isinstance(store, Store)
    assert guarding(store).dependency is dependency
    assert type(unguard_client(store)) is Store


@pytest.mark.parametrize("client", CLIENTS)
def test_super_and_new_subclasses_go_on_working(dependency: Dependency, client: Any) -> None:
    """Methods find their parents as before, and a subclass that the user makes later is recorded."""
    seen: list[str] = []

    class Store(client):  # type: ignore[misc]  # one of them
        def __init_subclass__(cls) -> None:
            seen.append(cls.__name__)

        def get_encoder(self) -> Any:
            return super().get_encoder()

    store = guard_client(made(Store), dependency)
    assert seen == []
    assert store.get_encoder() is not None

    class Later(Store):
        pass

    assert seen == ["Later"]
    guard_client(made(Later), dependency)
    assert seen == ["Later"]


def test_pipelines_of_a_class_that_records_are_not_told_either(dependency: Dependency) -> None:
    """What is born of a client is guarded by a subclass as well."""
    seen: list[str] = []

    class Batch(redis.client.Pipeline):
        def __init_subclass__(cls, *, region: str) -> None:
            seen.append(region)

    class Store(redis.Redis):
        def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
            return Batch(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    pipeline = guard_client(Store(), dependency).pipeline()
    assert isinstance(pipeline, Batch)
    assert guarding(pipeline).dependency is dependency
    assert seen == []


def test_metaclass_that_asks_for_more_is_told_plainly(dependency: Dependency) -> None:
    """A metaclass makes every class, ours too: where it cannot, the error names the class, and nothing is done."""

    class Meta(type(redis.Redis)):  # type: ignore[misc]  # whichever redis-py has
        def __new__(cls, name: str, bases: Any, names: Any, *, region: str) -> Any:
            return super().__new__(cls, name, bases, names)

        def __init__(cls, name: str, bases: Any, names: Any, *, region: str) -> None:
            super().__init__(name, bases, names)

    class Store(redis.Redis, metaclass=Meta, region="eu"):
        pass

    store = Store()
    with pytest.raises(ConfigurationError, match=r"Store.*region.*metaclass"):
        guard_client(store, dependency)
    assert type(store) is Store
    assert not dependency.status().probed
