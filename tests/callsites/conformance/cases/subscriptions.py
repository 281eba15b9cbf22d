"""Publish and subscribe."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from ..play import Group, World, attempt, close, each, plainly, settle, within
from ..relay import PATIENCE, packed
from .tools import first, rounds

subscriptions = Group("subscriptions")


async def hear(w: World, channel: Any, count: int, **options: Any) -> list[Any]:
    """Take so many messages, or as many as there are, without waiting for any."""
    heard: list[Any] = []
    for _ in range(count + 5):  # nothing is given for what a handler takes, or the subscription itself
        if len(heard) == count:
            break
        await all_is_said(w)
        message = await settle(channel.get_message(timeout=0.001, **options))
        if message is not None:
            heard.append(message)
    return heard


async def all_is_said(w: World) -> None:
    """Wait until the server has answered what it was sent, and the answers are here."""
    w.relay.settle()
    for _ in range(2):
        w.door(b"")
    w.relay.settle()
    if w.is_async:
        await rounds(5)


@subscriptions.case()
async def subscribe_and_unsubscribe(w: World) -> Any:
    async with within(w.client.pubsub()) as channel:
        told = [channel.subscribed, await attempt(channel.subscribe, "news", "sport")]
        told += [await hear(w, channel, 2), channel.subscribed, channel.channels]
        told += [await attempt(w.client.publish, "news", "hello"), await hear(w, channel, 1)]
        told += [await attempt(channel.unsubscribe, "news"), await hear(w, channel, 1)]
        told += [await attempt(w.client.publish, "news", "nobody"), channel.channels, channel.subscribed]
        told += [await attempt(channel.unsubscribe), await hear(w, channel, 1), channel.subscribed]
    return told


@subscriptions.case()
async def patterns(w: World) -> Any:
    async with within(w.client.pubsub()) as channel:
        told = [await attempt(channel.psubscribe, "n*", "s?"), await hear(w, channel, 2), channel.patterns]
        told += [await attempt(w.client.publish, "news", b"\x00"), await hear(w, channel, 1)]
        told += [await attempt(channel.punsubscribe), await hear(w, channel, 2)]
    return told


@subscriptions.case()
async def handlers(w: World) -> Any:
    heard: list[Any] = []
    async with within(w.client.pubsub()) as channel:
        told = [await attempt(channel.subscribe, "plain", news=heard.append)]
        told += [await attempt(channel.psubscribe, **{"sp*": heard.append}), await hear(w, channel, 3)]
        for name in ("news", "sport", "plain"):
            told.append(await attempt(w.client.publish, name, f"of {name}"))
        told += [await hear(w, channel, 3), heard, sorted(map(str, channel.channels))]
    return told


@subscriptions.case()
async def handler_that_fails(w: World) -> Any:
    def fail(message: Any) -> Any:
        raise KeyError(message["data"])

    async with within(w.client.pubsub()) as channel:
        await settle(channel.subscribe(news=fail))
        told = [await hear(w, channel, 1), await attempt(w.client.publish, "news", "x")]
        return [*told, await attempt(hear, w, channel, 1), channel.subscribed]


@subscriptions.case()
async def handler_that_is_a_coroutine(w: World) -> Any:
    heard: list[Any] = []

    async def handle(message: Any) -> None:
        heard.append(message)

    async with within(w.client.pubsub()) as channel:
        await settle(channel.subscribe(news=handle if w.is_async else heard.append))
        await hear(w, channel, 1)
        await settle(w.client.publish("news", "x"))
        return [await hear(w, channel, 1), heard]


@subscriptions.case()
async def own_messages_ignored(w: World) -> Any:
    async with within(w.client.pubsub(ignore_subscribe_messages=True)) as channel:
        await settle(channel.subscribe("news"))
        told = [
            await hear(w, channel, 1),
            await attempt(w.client.publish, "news", "x"),
            await hear(w, channel, 1),
        ]
    async with within(w.client.pubsub()) as channel:
        await settle(channel.subscribe("news"))
        return [*told, await hear(w, channel, 1, ignore_subscribe_messages=True)]


@subscriptions.case()
async def silence(w: World) -> Any:
    async with within(w.client.pubsub()) as channel:
        told = [await attempt(channel.get_message, timeout=0.001)]
        await settle(channel.subscribe("news"))
        told += [await hear(w, channel, 1)]
        return [*told, await attempt(channel.get_message, timeout=0.001)]


@subscriptions.case()
async def listening(w: World) -> Any:
    async with within(w.client.pubsub()) as channel:
        await settle(channel.subscribe("news"))
        told = await first(channel.listen(), 1)
        for text in ("a", "b"):
            await settle(w.client.publish("news", text))
        return [told, await first(channel.listen(), 2)]


@subscriptions.case()
async def listening_to_the_end(w: World) -> Any:
    async with within(w.client.pubsub()) as channel:
        await settle(channel.subscribe("news"))
        await settle(channel.unsubscribe("news"))
        return [await each(channel.listen()), channel.subscribed]


@subscriptions.case()
async def not_subscribed(w: World) -> Any:
    channel = w.client.pubsub()
    told = [await attempt(each, channel.listen()), await attempt(channel.parse_response)]
    told += [await attempt(channel.check_health), await attempt(channel.unsubscribe)]
    await close(channel)
    return told


@subscriptions.case()
async def pinged(w: World) -> Any:
    async with within(w.client.pubsub()) as channel:
        await settle(channel.subscribe("news"))
        told = [await hear(w, channel, 1), await attempt(channel.ping), await hear(w, channel, 1)]
        return [*told, await attempt(channel.ping, "hello"), await hear(w, channel, 1)]


@subscriptions.case("spublish")
async def shards(w: World) -> Any:
    async with within(w.client.pubsub()) as channel:
        told = [await attempt(channel.ssubscribe, "news"), await hear(w, channel, 1)]
        told += [await attempt(w.client.spublish, "news", "x"), await hear(w, channel, 1)]
        told += [
            await attempt(w.client.pubsub_shardchannels),
            await attempt(w.client.pubsub_shardnumsub, "news"),
        ]
        return [*told, await attempt(channel.sunsubscribe), await hear(w, channel, 1)]


@subscriptions.case()
async def names_of_bytes_and_of_other_scripts(w: World) -> Any:
    async with within(w.client.pubsub()) as channel:
        await settle(channel.subscribe(b"news", "новости"))
        told = [await hear(w, channel, 2), await attempt(w.client.publish, "новости", "да")]
        return [*told, await hear(w, channel, 1), channel.channels]


@subscriptions.case()
async def seen_by_the_server(w: World) -> Any:
    async with within(w.client.pubsub()) as channel:
        await settle(channel.subscribe("news"))
        await settle(channel.psubscribe("n*"))
        told = [await hear(w, channel, 2), await attempt(w.client.pubsub_channels)]
        return [
            *told,
            await attempt(w.client.pubsub_numsub, "news", "sport"),
            await attempt(w.client.pubsub_numpat),
        ]


@subscriptions.case()
async def closed_and_used_again(w: World) -> Any:
    channel = w.client.pubsub()
    await settle(channel.subscribe("news"))
    told = [await hear(w, channel, 1)]
    await close(channel)
    told += [channel.subscribed, channel.channels, channel.connection]
    await settle(channel.subscribe("sport"))
    told += [await hear(w, channel, 1)]
    await close(channel)
    await close(channel)
    return told


@subscriptions.case()
async def line_cut_and_taken_up_again(w: World) -> Any:
    async with within(w.client.pubsub()) as channel:
        await settle(channel.subscribe("news"))
        await settle(channel.psubscribe("s*"))
        told = [await hear(w, channel, 2)]
        w.door(packed("CLIENT", "KILL", "TYPE", "pubsub"))
        told += [await hear(w, channel, 2), await attempt(w.client.publish, "news", "again")]
        return [*told, await hear(w, channel, 1)]


@subscriptions.case()
async def subscribed_after_the_line_was_cut(w: World) -> Any:
    async with within(w.client.pubsub()) as channel:
        await settle(channel.subscribe("news"))
        told = [await hear(w, channel, 1)]
        w.door(packed("CLIENT", "KILL", "TYPE", "pubsub"))
        w.relay.settle()
        return [*told, await attempt(channel.subscribe, "sport"), await hear(w, channel, 2)]


@subscriptions.case(protocol=3)
async def pushed(w: World) -> Any:
    heard: list[Any] = []

    async def handle(message: Any) -> None:
        heard.append(message)

    client = w.make()  # whose connection keeps the handler
    async with within(client.pubsub(push_handler_func=handle if w.is_async else heard.append)) as channel:
        await settle(channel.subscribe("news"))
        told = [await hear(w, channel, 1)]
        await settle(w.client.publish("news", "x"))
        return [*told, await hear(w, channel, 1), heard]


@subscriptions.case(side="sync")
async def run_in_a_thread(w: World) -> Any:
    heard: list[Any] = []
    came = threading.Event()

    def handle(message: Any) -> None:
        heard.append(message)
        came.set()

    channel = w.make().pubsub()
    channel.subscribe(news=handle)
    told = await hear(w, channel, 1)
    thread = channel.run_in_thread(sleep_time=0.01)
    try:
        receivers = w.client.publish("news", "x")
        assert came.wait(PATIENCE)
    finally:
        thread.stop()
        thread.join(PATIENCE)
    return [told, type(thread), receivers, heard, channel.subscribed, channel.connection]


@subscriptions.case(side="sync")
async def run_in_a_thread_with_a_handler_of_errors(w: World) -> Any:
    heard: list[Any] = []
    came = threading.Event()

    def fail(message: Any) -> None:
        raise KeyError("mine")

    def handle(error: BaseException, channel: Any, thread: Any) -> None:
        heard.extend([error, type(channel), type(thread)])
        thread.stop()
        came.set()

    channel = w.make().pubsub()
    channel.subscribe(news=fail)
    await hear(w, channel, 1)
    thread = channel.run_in_thread(sleep_time=0.01, daemon=True, exception_handler=handle)
    w.client.publish("news", "x")
    assert came.wait(PATIENCE)
    thread.join(PATIENCE)
    return heard


@subscriptions.case(side="sync")
async def run_in_a_thread_without_a_handler(w: World) -> Any:
    with w.make().pubsub() as channel:
        channel.subscribe("news")
        told = [await attempt(channel.run_in_thread)]
        channel.psubscribe("n*")
        channel.unsubscribe("news")
        return [*told, await attempt(channel.run_in_thread)]


@subscriptions.case(side="asyncio")
async def run(w: World) -> Any:
    heard: list[Any] = []
    came = asyncio.Event()

    def handle(message: Any) -> None:
        heard.append(message)
        came.set()

    channel = w.client.pubsub()
    await channel.subscribe(news=handle)
    told = await hear(w, channel, 1)
    task = asyncio.ensure_future(channel.run(poll_timeout=PATIENCE))
    receivers = await w.client.publish("news", "x")
    await asyncio.wait_for(came.wait(), PATIENCE)
    task.cancel()
    ended = await asyncio.gather(task, return_exceptions=True)
    await close(channel)
    return [told, receivers, heard, ended]


@subscriptions.case(side="asyncio")
async def run_without_a_handler(w: World) -> Any:
    async with w.client.pubsub() as channel:
        await channel.subscribe("news")
        return await attempt(channel.run)


@subscriptions.case(side="asyncio")
async def run_with_a_handler_of_errors(w: World) -> Any:
    heard: list[Any] = []

    def fail(message: Any) -> None:
        raise KeyError("mine")

    def handle(error: BaseException, channel: Any) -> None:
        heard.extend([error, type(channel)])
        raise error

    async with w.client.pubsub() as channel:
        await channel.subscribe(news=fail)
        await hear(w, channel, 1)
        await w.client.publish("news", "x")
        return [await attempt(channel.run, exception_handler=handle), heard]


@subscriptions.case("keyspace_notifications")
async def keyspace_notifications(w: World) -> Any:
    w.door(packed("CONFIG", "SET", "notify-keyspace-events", "KEA"))
    notifications = w.client.keyspace_notifications()
    told = [type(notifications), await attempt(notifications.subscribe_keyspace, "text")]
    told += [await attempt(w.client.set, "text", "new")]
    told += map(plainly, await hear(w, notifications, 1))
    await close(notifications)
    w.door(packed("CONFIG", "SET", "notify-keyspace-events", ""))
    return told
