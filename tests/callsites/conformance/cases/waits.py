"""Commands that wait at the server, and what ends the wait."""

from __future__ import annotations

import asyncio
from typing import Any

from ..play import Group, Several, World, attempt, settle, shape, within
from ..relay import packed
from .tools import SHORT, first, rounds, while_blocked

waits = Group("waits")


@waits.case()
async def served_while_waiting(w: World) -> Any:
    push, add = packed("RPUSH", "absent", "x"), packed("ZADD", "absentz", "1", "x")
    entry = packed("XADD", "stream", "9-9", "k", "v")
    client = w.client
    return Several(
        {
            "blpop": await while_blocked(w, push, client.blpop, "absent", 5),
            "brpop": await while_blocked(w, push, client.brpop, ["absent", "nothing"]),
            "blmove": await while_blocked(w, push, client.blmove, "absent", "target", 5),
            "blmpop": await while_blocked(w, push, client.blmpop, 5, 1, "absent", direction="LEFT"),
            "bzpopmin": await while_blocked(w, add, client.bzpopmin, "absentz", 5),
            "xread": await while_blocked(w, entry, client.xread, {"stream": "$"}, block=5000),
            "rest": await settle(client.xreadgroup("group", "bob", {"stream": ">"})),
            "xreadgroup": await while_blocked(
                w, packed("XADD", "stream", "9-10", "k", "v"), client.xreadgroup, "group", "bob", {"stream": ">"}, block=5000
            ),
        }
    )  # fmt: skip


@waits.case()
async def let_go_by_the_server(w: World) -> Any:
    unblock = b"CLIENT UNBLOCK "
    told = []
    client = w.make(single_connection_client=True)
    await settle(client.ping())
    number = str(await settle(client.client_id())).encode()
    for way in (b"TIMEOUT", b"ERROR"):
        commands = packed(*(unblock + number + b" " + way).split())
        told.append(await while_blocked(w, commands, client.blpop, "absent", 5))
    commands = packed("DEL", "list") + packed("SET", "list", "x")
    told.append(
        await while_blocked(w, commands + packed(*(unblock + number).split()), client.blpop, "absent", 5)
    )
    return told


@waits.case(slow=True)
async def longer_than_the_socket_waits(w: World) -> Any:
    client = w.make(socket_timeout=SHORT, retry=w.retry(0))
    pipe = client.pipeline(transaction=False).get("text").blpop("absent", 0)
    return Several(
        {
            "blpop": await attempt(client.blpop, "absent", 0),
            "xread": await attempt(client.xread, {"stream": "$"}, block=0),
            "wait": await attempt(client.wait, 1, 10_000),
            "pipeline": await attempt(pipe.execute),
            "and then": await attempt(client.get, "text"),
        }
    )


@waits.case(side="asyncio")
async def cancelled_while_waiting(w: World) -> Any:
    task = asyncio.ensure_future(w.client.blpop("absent", 0))
    while b"blocked_clients:0\r\n" in w.door(packed("INFO", "clients")):
        await rounds(1)
    await rounds(
        20
    )  # Python 3.11 loses what is cancelled at the end of a `wait_for`, and it sends within one
    task.cancel()
    ended = await asyncio.gather(task, return_exceptions=True)
    return [ended, await attempt(w.client.get, "text")]


@waits.case(side="asyncio")
async def timed_out_while_waiting(w: World) -> Any:
    await w.client.ping()

    async def wait() -> None:
        async with asyncio.timeout(0.05):
            await w.client.blpop("absent", 0)

    return [type(await attempt(wait)), await attempt(w.client.get, "text")]


@waits.case(side="asyncio")
async def many_at_once(w: World) -> Any:
    client = w.make(max_connections=20)
    names = ["text", "number", "list", "absent"]
    answers = await asyncio.gather(*(client.get(name) for name in names), return_exceptions=True)
    return [answers, len(client.connection_pool._available_connections)]


@waits.case("monitor")
async def monitored(w: World) -> Any:
    async with within(w.client.monitor()) as monitor:
        await settle(w.client.get("text"))
        await settle(w.client.set("a b", 'quoted "text"'))
        told = [await settle(monitor.next_command()) for _ in range(2)]
        told += [shape(seen) for seen in await first(monitor.listen(), 0)]
    return [type(monitor), [(seen["command"], seen["db"], shape(seen)) for seen in told]]
