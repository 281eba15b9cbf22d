"""The object itself: its names, signatures, copies."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import pickle
import weakref
from collections.abc import Iterator
from typing import Any

import redis
import redis.asyncio

from ..play import Group, Several, World, attempt, close, plainly, settle, shape

objects = Group("objects")


def public(thing: Any) -> Iterator[tuple[str, Any]]:
    """All that has a name without an underscore."""
    for name in dir(thing):
        if not name.startswith("_"):
            with contextlib.suppress(Exception):
                yield name, getattr(thing, name)


async def related(w: World) -> dict[str, Any]:
    """A client, and what it gives birth to."""
    born = {"client": w.client, "pipeline": w.client.pipeline(), "pubsub": w.client.pubsub()}
    return {**born, "script": w.client.register_script("return 1"), "lock": w.client.lock("lock")}


@objects.case(slow=True)
async def names(w: World) -> Any:
    told = Several()
    for name, thing in (await related(w)).items():
        kind = type(thing)
        told[name] = [kind.__name__, kind.__qualname__, kind.__module__, kind.__doc__, plainly(repr(thing))]
        told[name] += [str(kind), plainly(thing), sorted(set(vars(thing)) - {"_safehold"})]
        told[name] += [bool(thing), [n for n in dir(thing) if not n.startswith("__") and n != "_safehold"]]
    return told


@objects.case()
async def kinds(w: World) -> Any:
    born = await related(w)
    module = w.module.client
    told = [isinstance(w.client, w.module.Redis), isinstance(w.client, w.module.StrictRedis)]
    told += [isinstance(born["pipeline"], module.Pipeline), isinstance(born["pipeline"], w.module.Redis)]
    told += [isinstance(born["pubsub"], module.PubSub), issubclass(type(w.client), w.module.Redis)]
    told += [isinstance(w.client, redis.Redis), isinstance(w.client, redis.asyncio.Redis)]
    return [
        *told,
        [kind.__qualname__ for kind in type(w.client).__mro__ if kind.__module__.startswith("redis")][-8:],
    ]


@objects.case(slow=True)
async def signatures(w: World) -> Any:
    told = Several()
    for thing_name, thing in (await related(w)).items():
        for name, value in public(thing):
            if callable(value):
                with contextlib.suppress(ValueError, TypeError):
                    told[f"{thing_name}.{name}"] = plainly(inspect.signature(value))
    return told


@objects.case(slow=True)
async def documentation(w: World) -> Any:
    told = Several()
    for thing_name, thing in (await related(w)).items():
        for name, value in public(thing):
            if inspect.ismethod(value):
                told[f"{thing_name}.{name}"] = [
                    value.__name__,
                    value.__qualname__,
                    value.__module__,
                    value.__doc__,
                ]
    return told


@objects.case(slow=True)
async def coroutine_functions(w: World) -> Any:
    asked = (
        inspect.iscoroutinefunction,
        asyncio.iscoroutinefunction,
        inspect.isasyncgenfunction,
        inspect.ismethod,
    )
    return Several(
        {
            f"{thing_name}.{name}": [ask(value) for ask in asked]
            for thing_name, thing in (await related(w)).items()
            for name, value in public(thing)
        }
    )


@objects.case(side="asyncio")
async def what_is_awaited(w: World) -> Any:
    told = []
    pipe = w.client.pipeline()
    pipe.get("text")
    channel = w.client.pubsub()
    things = (
        w.client.get("text"),
        w.client.execute_command("GET", "text"),
        pipe.execute(),
        channel.subscribe("news"),
    )
    for thing in things:
        told.append([type(thing), thing.__name__, thing.__qualname__, inspect.iscoroutine(thing)])
        await attempt(lambda thing=thing: thing)
    await close(channel)
    return told


@objects.case(side="asyncio")
async def never_awaited(w: World) -> Any:
    w.client.get("text").close()
    thing = w.client.get("text")
    del thing
    return await attempt(w.client.get, "text")


@objects.case()
async def equality(w: World) -> Any:
    other = w.make()
    return [w.client == w.client, w.client == other, w.client != other, len({w.client, other})]


@objects.case()
async def references(w: World) -> Any:
    client = w.make()
    return [weakref.ref(client)() is client, await attempt(lambda: setattr(client, "own", 1)), client.own]


@objects.case()
async def copied(w: World) -> Any:
    client = w.make()
    await settle(client.get("text"))
    twin = await attempt(copy.copy, client)
    told = [type(twin), twin is client, twin.connection_pool is client.connection_pool]
    return [*told, await attempt(twin.get, "text"), await attempt(twin.pipeline().get("text").execute)]


@objects.case()
async def copied_deeply(w: World) -> Any:
    client = w.make()
    twin = await attempt(copy.deepcopy, client)
    if isinstance(twin, Exception):
        return twin
    w.keep(twin)
    return [type(twin), twin.connection_pool is client.connection_pool, await attempt(twin.get, "text")]


@objects.case()
async def pickled(w: World) -> Any:
    told = Several()
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        client = w.make()
        told[str(protocol)] = twin = await attempt(
            lambda c=client, p=protocol: pickle.loads(pickle.dumps(c, p))
        )
        if isinstance(twin, w.module.Redis):
            w.keep(twin)
            told[str(protocol)] = [type(twin), await attempt(twin.get, "text"), sorted(vars(twin))]
    return told


@objects.case()
async def relatives_copied_and_pickled(w: World) -> Any:
    told = Several()
    for name, thing in (await related(w)).items():
        if name != "client":
            told[f"{name} copied"] = type(await attempt(copy.copy, thing))
            told[f"{name} pickled"] = shape(
                await attempt(lambda thing=thing: pickle.loads(pickle.dumps(thing)))
            )
            told[f"{name} copied deeply"] = shape(await attempt(copy.deepcopy, thing))
    return told


@objects.case()
async def pool_pickled(w: World) -> Any:
    retry = w.client.connection_pool.connection_kwargs["retry"]
    told = [type(await attempt(lambda: pickle.loads(pickle.dumps(retry)))), type(copy.copy(retry))]
    told += [shape(await attempt(lambda: pickle.loads(pickle.dumps(w.client.connection_pool))))]
    return [*told, shape(await attempt(copy.deepcopy, w.client.connection_pool))]
