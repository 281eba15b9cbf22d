"""Clients: how they are made, configured, used again and closed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import redis
import redis.asyncio

from ..play import Group, Several, World, attempt, close, plainly, settle, shape, within
from ..relay import packed
from .tools import answers

clients = Group("clients")


@clients.case()
async def from_url(w: World) -> Any:
    told = []
    urls = (
        f"unix://{w.relay.path}", f"redis://127.0.0.1:{w.relay.port}", f"redis://127.0.0.1:{w.relay.port}/3",
        f"unix://{w.relay.path}?db=2&decode_responses=yes", f"redis://localhost:{w.relay.port}?protocol=3&client_name=me",
        f"redis://127.0.0.1:{w.relay.port}?socket_timeout=5&health_check_interval=100",
    )  # fmt: skip
    for url in urls:
        client = w.keep(w.guard(w.module.Redis.from_url(url)))
        told += [plainly(repr(client)), await answers(client), await attempt(client.client_getname)]
        told += [await attempt(client.dbsize)]
    return told


@clients.case()
async def from_url_that_is_wrong(w: World) -> Any:
    return [
        await attempt(w.module.Redis.from_url, url)
        for url in ("http://x", "redis://x:y", "unix://?db=text", "")
    ]


@clients.case()
async def from_the_module(w: World) -> Any:
    client = w.keep(w.guard(w.module.from_url(f"unix://{w.relay.path}", **w.manner)))
    return [type(client), plainly(repr(client)), await answers(client)]


@clients.case()
async def over_a_unix_socket(w: World) -> Any:
    client = w.make(unix_socket_path=w.relay.path)
    return [plainly(repr(client)), await answers(client)]


def pool(w: World, kind: str = "ConnectionPool", **options: Any) -> Any:
    module = w.module.connection
    settings = {
        "host": "127.0.0.1",
        "port": w.relay.port,
        "retry": w.retry(0),
    }
    return getattr(module, kind)(**{**settings, **w.manner, **options})


@clients.case()
async def of_an_existing_pool(w: World) -> Any:
    shared = pool(w)
    client, other = (w.guard(w.module.Redis(connection_pool=shared)) for _ in range(2))
    told = [await answers(client), await answers(other), client.auto_close_connection_pool]
    await close(client)
    told += [await attempt(other.get, "text")]
    await close(other)
    await settle(shared.disconnect())
    return told


@clients.case("from_pool")
async def from_pool(w: World) -> Any:
    client = w.keep(w.guard(w.module.Redis.from_pool(pool(w))))
    return [await answers(client), client.auto_close_connection_pool]


@clients.case()
async def of_a_blocking_pool(w: World) -> Any:
    client = w.keep(
        w.guard(
            w.module.Redis(connection_pool=pool(w, "BlockingConnectionPool", max_connections=1, timeout=0.01))
        )
    )
    told = [plainly(repr(client)), await answers(client)]
    pipe = client.pipeline()
    await settle(pipe.watch("text"))
    told += [await attempt(client.get, "text"), await attempt(client.pipeline().set("a", 1).execute)]
    await settle(pipe.reset())
    return [*told, await attempt(client.get, "text")]


@clients.case()
async def with_a_pool_that_is_full(w: World) -> Any:
    client = w.make(max_connections=1, retry=w.retry(0))
    pipe = client.pipeline()
    await settle(pipe.watch("text"))
    told = [await attempt(client.get, "text"), await attempt(client.pubsub().subscribe, "news")]
    await settle(pipe.reset())
    return [*told, await attempt(client.get, "text")]


@clients.case()
async def of_a_single_connection(w: World) -> Any:
    client = w.make(single_connection_client=True)
    told = [
        await answers(client),
        await attempt(client.client_setname, "me"),
        await attempt(client.client_getname),
    ]
    await close(client)
    return [*told, client.connection, await attempt(client.get, "text")]


@clients.case()
async def copies_with_a_connection_of_their_own(w: World) -> Any:
    client = w.make()
    twin = client.client()
    told = [type(twin), twin.connection_pool is client.connection_pool, await answers(twin)]
    told += [await attempt(twin.client_setname, "twin"), await attempt(client.client_getname)]
    pipe = twin.pipeline()
    pipe.get("text").client_getname()
    told += [await attempt(pipe.execute), await attempt(lambda: type(twin.client()))]
    await close(twin)
    return [*told, await answers(client)]


@clients.case()
async def as_a_context(w: World) -> Any:
    client = w.make()
    async with within(client) as inner:
        told = [inner is client, await answers(client)]
    return [*told, await answers(client)]


@clients.case()
async def closed_and_used_again(w: World) -> Any:
    client = w.make()
    told = [await answers(client)]
    await close(client)
    await close(client)
    return [*told, await answers(client)]


@clients.case(side="asyncio")
async def closed_the_old_way(w: World) -> Any:
    client = w.make()
    told = [await answers(client), await attempt(client.close), await answers(client)]
    return [*told, await attempt(client.aclose, close_connection_pool=True)]


@clients.case(side="asyncio")
async def client_awaited(w: World) -> Any:
    client = w.make(single_connection_client=True)
    return [await client is client, await client.initialize() is client, await answers(client)]


@clients.case(side="asyncio")
async def contexts_in_contexts(w: World) -> Any:
    client = w.make()
    async with client:
        async with client:
            told = [await answers(client)]
        told.append(await answers(client))
    return told


@clients.case()
async def of_another_database(w: World) -> Any:
    client = w.make(db=5)
    wrong = w.make(db=99, retry=w.retry(0))
    return [await answers(client), await attempt(client.dbsize), await attempt(wrong.get, "text")]


@clients.case()
async def with_a_name(w: World) -> Any:
    client = w.make(client_name="me")
    return [
        await attempt(client.client_getname),
        await attempt(w.make(client_name="not a name", retry=w.retry(0)).ping),
    ]


@clients.case()
async def with_a_wrong_password(w: World) -> Any:
    told = [await attempt(w.make(password="wrong", retry=w.retry(0)).get, "text")]
    told += [await attempt(w.make(username="nobody", password="wrong", retry=w.retry(0)).get, "text")]
    client = w.make(retry=w.retry(0))
    return [
        *told,
        await attempt(client.auth, "wrong"),
        await attempt(client.auth, "wrong", username="nobody"),
    ]


@clients.case()
async def with_credentials(w: World) -> Any:
    w.door(packed("ACL", "SETUSER", "me", "on", ">secret", "~*", "&*", "+@all"))
    provider = redis.UsernamePasswordCredentialProvider("me", "secret")
    client = w.make(credential_provider=provider)
    told = [
        await attempt(client.acl_whoami),
        await attempt(w.make(username="me", password="secret").acl_whoami),
    ]
    w.door(packed("ACL", "SETUSER", "me", "-set"))
    told += [
        await attempt(client.set, "text", "x"),
        await attempt(client.pipeline().set("a", 1).get("a").execute),
    ]
    return told


@clients.case()
async def with_a_callback_on_connecting(w: World) -> Any:
    seen: list[Any] = []

    def on_connect(connection: Any) -> Any:
        seen.append(type(connection))
        return connection.on_connect()

    async def aon_connect(connection: Any) -> None:
        seen.append(type(connection))
        await connection.on_connect()

    client = w.make(redis_connect_func=aon_connect if w.is_async else on_connect)
    return [await answers(client), seen]


@clients.case()
async def with_another_encoding(w: World) -> Any:
    client = w.make(encoding="latin-1")
    told = [await attempt(client.set, "text", "è"), await attempt(client.get, "text")]
    strict = w.make(encoding="ascii")
    told += [await attempt(strict.set, "text", "è"), await attempt(strict.get, "text")]
    loose = w.make(encoding="ascii", encoding_errors="replace", decode_responses=True)
    return [*told, await attempt(loose.get, "text")]


@clients.case()
async def with_a_reply_that_is_no_text(w: World) -> Any:
    w.door(packed("SET", "binary", b"\xff\xfe") + packed("HSET", "binaries", b"\xff", b"\xfe"))
    return [
        await attempt(w.client.get, "binary"),
        await attempt(w.client.hgetall, "binaries"),
        await answers(w.client),
    ]


@clients.case()
async def with_health_checks(w: World) -> Any:
    client = w.make(health_check_interval=1000)
    return [await answers(client), await answers(client)]


@clients.case("client_tracking")
async def with_tracking(w: World) -> Any:
    client = w.make()
    told = [await attempt(client.client_tracking_on), shape(await attempt(client.client_trackinginfo))]
    told += [
        await attempt(client.client_tracking_off),
        await attempt(client.client_tracking, on=True, bcast=True, prefix=["a", "b"]),
    ]
    return [
        *told,
        await attempt(client.client_trackinginfo),
        await attempt(client.client_tracking, on=False),
        await attempt(client.get, "text"),
    ]


@clients.case("quit")
async def that_quits(w: World) -> Any:
    client = w.make()
    told = [await attempt(client.quit)]
    w.door(b"")
    w.relay.settle()
    return [*told, await attempt(client.ping)]


@clients.case("set_response_callback")
async def with_an_own_callback(w: World) -> Any:
    client = w.make()
    client.set_response_callback("GET", lambda reply, **options: ("mine", reply, options))
    client.set_response_callback("set", lambda reply, **options: "yours")

    def fail(reply: Any, **options: Any) -> Any:
        raise KeyError(reply)

    client.set_response_callback("HGETALL", fail)
    return [await answers(client), await attempt(client.execute_command, "GET", "text", some="option")]


@clients.case("get_retry", "set_retry")
async def with_another_retry(w: World) -> Any:
    client = w.make()
    first, second = client.get_retry(), w.retry(5)
    told = [
        first == w.retry(1),
        w.retry(1) == first,
        first == second,
        hash(first) == hash(w.retry(1)),
        type(first),
    ]
    told += [
        await answers(client),
        client.set_retry(second),
        client.get_retry() == second,
        await answers(client),
    ]
    return [*told, type(copy.deepcopy(client.get_retry())), plainly(vars(client.get_retry())["_retries"])]


@clients.case("get_connection_kwargs", "get_encoder")
async def settings_read(w: World) -> Any:
    kwargs = w.client.get_connection_kwargs()
    return [list(kwargs), type(w.client.get_encoder()), kwargs["decode_responses"], type(kwargs["retry"])]


@clients.case("load_external_module")
async def with_a_module_of_ones_own(w: World) -> Any:
    client = w.make()

    class Module:
        def __init__(self, client: Any) -> None:
            self.client = client

        def read(self) -> Any:
            return self.client.execute_command("GET", "text")

    client.load_external_module("module", lambda: Module(client))
    return await attempt(client.module().read)


@clients.case(side="sync", protocol=3)
async def with_a_cache(w: World) -> Any:
    try:
        from redis.cache import CacheConfig
    except ImportError:
        return None
    # It asks for a newer Redis than the one that Valkey says it is.
    proxy, asked = (
        redis.connection.CacheProxyConnection,
        {"MIN_ALLOWED_VERSION": "7.0.0", "DEFAULT_SERVER_NAME": "valkey"},
    )
    with mock.patch.multiple(proxy, **asked):
        client = w.make(cache_config=CacheConfig())
        told = [await answers(client), await answers(client), client.get_cache().size]
        told += [
            await attempt(client.mget, ["text", "number"]),
            await attempt(client.mget, ["text", "number"]),
        ]
        told += [
            await attempt(client.pipeline().get("text").get("number").execute),
            await attempt(client.get, "text"),
        ]
    return told


@clients.case("command", slow=True)
async def that_asks_for_all_commands(w: World) -> Any:
    return shape(await attempt(w.client.command))


@clients.case()
async def modules(w: World) -> Any:
    calls: dict[str, Callable[[], Any]] = {
        "json": lambda: w.client.json().set("a", "$", {"b": 1}),
        "ft": lambda: w.client.ft("index").info(),
        "ft search": lambda: w.client.ft("index").search("hello"),
        "ts": lambda: w.client.ts().create("series"),
        "bf": lambda: w.client.bf().add("filter", "x"),
        "cf": lambda: w.client.cf().add("filter", "x"),
        "cms": lambda: w.client.cms().info("sketch"),
        "topk": lambda: w.client.topk().list("top"),
        "tdigest": lambda: w.client.tdigest().min("digest"),
        "vset": lambda: w.client.vset().vcard("vectors"),
    }
    return Several({name: await attempt(call) for name, call in calls.items()})


@clients.case(side="sync")  # on asyncio, redis-py makes pipelines that are not
async def pipelines_of_modules(w: World) -> Any:
    return [
        await attempt(lambda: w.client.json().pipeline().set("a", "$", 1).execute()),
        await attempt(lambda: w.client.ts().pipeline(transaction=False).get("series").execute()),
        await attempt(lambda: w.client.ft("index").pipeline().search("hello").execute()),
        await attempt(lambda: type(w.client.json().pipeline())),
    ]


@clients.case()
async def types_of_modules(w: World) -> Any:
    names = ("json", "ft", "ts", "bf", "cf", "cms", "topk", "tdigest", "vset")
    return [type(getattr(w.client, name)()) for name in names if hasattr(w.client, name)]
