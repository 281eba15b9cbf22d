"""Classes of the user's own, and tools that patch."""

from __future__ import annotations

import inspect
from typing import Any
from unittest import mock

from ..play import Group, World, attempt, describe, plainly
from .tools import answers

users = Group("users")


@users.case()
async def own_class(w: World) -> Any:
    class Store(w.module.Redis):
        """Mine."""

        prefix = "te"

        def read(self, name: str) -> Any:
            return self.get(self.prefix + name)

    client = w.make(Store)
    return [
        type(client),
        type(client).__doc__,
        plainly(repr(client)),
        isinstance(client, Store),
        await attempt(client.read, "xt"),
    ]


@users.case()
async def own_execute_command(w: World) -> Any:
    seen: list[Any] = []

    class Store(w.module.Redis):
        def execute_command(self, *args: Any, **options: Any) -> Any:
            seen.append((args, options))
            return super().execute_command(*args, **options)

    client = w.make(Store)
    return [
        await answers(client),
        await attempt(client.incr, "text"),
        seen,
        plainly(inspect.signature(client.execute_command)),
    ]


@users.case()
async def own_execute_command_that_answers_itself(w: World) -> Any:
    class Store(w.module.Redis):
        def execute_command(self, *args: Any, **options: Any) -> Any:
            async def answer() -> Any:
                return ["mine", *args]

            return answer() if w.is_async else ["mine", *args]

    client = w.make(Store)
    return [await answers(client), await attempt(client.execute_command)]


@users.case()
async def own_execute_command_with_other_arguments(w: World) -> Any:
    class Store(w.module.Redis):
        def execute_command(self, name: str, *args: Any, trace: bool = False, **options: Any) -> Any:
            return super().execute_command(name, *args, **options)

    client = w.make(Store)
    told = [await attempt(client.execute_command, "GET", "text", trace=True)]
    return [
        *told,
        await attempt(lambda: client.execute_command(name="PING")),
        await attempt(client.execute_command),
    ]


@users.case()
async def own_pipeline(w: World) -> Any:
    class Pipe(w.module.client.Pipeline):
        def execute(self, raise_on_error: bool = True) -> Any:
            self.get("number")
            return super().execute(raise_on_error)

    class Store(w.module.Redis):
        def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
            return Pipe(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    pipe = w.make(Store).pipeline()
    pipe.get("text")
    return [type(pipe), isinstance(pipe, Pipe), await attempt(pipe.execute)]


@users.case()
async def own_parse_response(w: World) -> Any:
    class Store(w.module.Redis):
        if w.is_async:

            async def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
                return (command_name, await super().parse_response(connection, command_name, **options))

        else:

            def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
                return (command_name, super().parse_response(connection, command_name, **options))

    return await answers(w.make(Store))


@users.case()
async def own_metaclass(w: World) -> Any:
    made: list[str] = []

    class Meta(type):
        def __new__(cls, name: str, bases: Any, body: Any, **options: Any) -> Any:
            made.append(name)
            return super().__new__(cls, name, bases, body)

    class Store(w.module.Redis, metaclass=Meta, option=1):
        pass

    client = w.make(Store)
    return [type(type(client)), await answers(client), made]


@users.case()
async def own_metaclass_that_needs_an_argument(w: World) -> Any:
    class Meta(type):
        def __new__(cls, name: str, bases: Any, body: Any, *, table: str) -> Any:
            return super().__new__(cls, name, bases, {**body, "table": table})

        def __init__(cls, name: str, bases: Any, body: Any, *, table: str) -> None:
            super().__init__(name, bases, body)

    class Store(w.module.Redis, metaclass=Meta, table="here"):
        pass

    client = await attempt(w.make, Store)
    return client if isinstance(client, Exception) else [client.table, await answers(client)]


@users.case()
async def own_slots(w: World) -> Any:
    class Store(w.module.Redis):
        __slots__ = ("extra",)

    client = await attempt(w.make, Store)
    if isinstance(client, Exception):
        return client
    client.extra = 1
    return [client.extra, await answers(client)]


@users.case()
async def own_attributes(w: World) -> Any:
    class Store(w.module.Redis):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("read_"):
                return lambda: self.get(name.removeprefix("read_"))
            raise AttributeError(name)

        def __setattr__(self, name: str, value: Any) -> None:
            if name.startswith("frozen"):
                raise AttributeError(name)
            super().__setattr__(name, value)

    client = w.make(Store)
    return [
        await attempt(client.read_text),
        await attempt(lambda: client.other),
        await attempt(lambda: setattr(client, "frozen", 1)),
    ]


@users.case()
async def own_private_names(w: World) -> Any:
    class Store(w.module.Redis):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.__secret = "text"

        def read(self) -> Any:
            return self.get(self.__secret)

        def copy_of_mine(self) -> Any:
            return type(self)(connection_pool=self.connection_pool)

    client = w.make(Store)
    twin = client.copy_of_mine()
    return [await attempt(client.read), type(twin), await attempt(twin.read)]


@users.case()
async def own_class_with_a_final_mark(w: World) -> Any:
    class Store(w.module.Redis):
        __match_args__ = ("connection_pool",)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Store)

        def __hash__(self) -> int:
            return 7

        def __len__(self) -> int:
            return 0

    client = w.make(Store)
    return [client == w.make(Store), hash(client), bool(client), len(client), await answers(client)]


@users.case()
async def mixed_in(w: World) -> Any:
    class Mixin:
        def get(self, name: str) -> Any:
            return super().get("number")  # type: ignore[misc]  # of whom it is mixed into

    class Store(Mixin, w.module.Redis):
        pass

    return await answers(w.make(Store))


@users.case()
async def instance_patched(w: World) -> Any:
    client = w.make()
    original, seen = client.execute_command, []

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(args)
        return original(*args, **options)

    client.execute_command = spy
    return [await answers(client), seen]


@users.case()
async def class_patched(w: World) -> Any:
    seen: list[Any] = []
    kind = w.module.Redis
    original = kind.execute_command

    def spy(self: Any, *args: Any, **options: Any) -> Any:
        seen.append((type(self), args))
        return original(self, *args, **options)

    with mock.patch.object(kind, "execute_command", spy):
        told = await answers(w.client)
    return [told, seen, await answers(w.client)]


@users.case()
async def pipelines_patched(w: World) -> Any:
    seen: list[Any] = []
    kind = w.module.client.Pipeline
    original = kind.execute

    def spy(self: Any, *args: Any, **options: Any) -> Any:
        seen.append((type(self), args, len(self)))
        return original(self, *args, **options)

    with mock.patch.object(kind, "execute", spy):
        pipe = w.client.pipeline()
        pipe.get("text")
        return [await attempt(pipe.execute), seen]


@users.case()
async def method_patched(w: World) -> Any:
    with mock.patch.object(w.module.Redis, "get", lambda self, name: f"mine: {name}"):
        return await answers(w.client)


@users.case()
async def base_called_by_hand(w: World) -> Any:
    kind = w.module.Redis
    return [
        await attempt(kind.get, w.client, "text"),
        await attempt(kind.execute_command, w.client, "GET", "text"),
    ]


@users.case()
async def two_clients_of_one_pool(w: World) -> Any:
    plain = w.module.Redis(connection_pool=w.client.connection_pool)
    told = [await answers(plain), await answers(w.client), type(plain), await attempt(plain.incr, "text")]
    return [*told, describe(await attempt(w.client.incr, "text"))]
