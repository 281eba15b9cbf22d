"""Lines that break. What is sent over them only reads: a lost write is sent once, and that is meant."""

from __future__ import annotations

from typing import Any

from ..play import Group, World, attempt, settle
from ..relay import packed
from .tools import SHORT, while_blocked

lines = Group("lines")


@lines.case()
async def nobody_listens(w: World) -> Any:
    gone = w.make(unix_socket_path=w.relay.path + ".gone", retry=w.retry(0))
    return [await attempt(gone.get, "text"), await attempt(gone.get, "text")]


@lines.case()
async def nobody_listens_over_tcp(w: World) -> Any:
    gone = w.make(port=1, retry=w.retry(1))
    return [await attempt(gone.get, "text"), await attempt(gone.pipeline().get("a").execute)]


@lines.case()
async def line_cut_in_the_pool(w: World) -> Any:
    told = [await attempt(w.client.get, "text")]
    w.door(packed("CLIENT", "KILL", "TYPE", "normal"))
    w.relay.settle()
    return [*told, await attempt(w.client.get, "text"), await attempt(w.client.set, "text", "x")]


@lines.case()
async def line_cut_while_reading(w: World) -> Any:
    kill = packed("CLIENT", "KILL", "TYPE", "normal")
    told = []
    for times in (0, 1):
        client = w.make(retry=w.retry(times))
        told.append(await while_blocked(w, kill, client.xread, {"stream": "$"}, block=50))
        told.append(await attempt(client.get, "text"))
    return told


@lines.case()
async def line_cut_while_watching(w: World) -> Any:
    pipe = w.client.pipeline()
    await settle(pipe.watch("text"))
    w.door(packed("CLIENT", "KILL", "TYPE", "normal"))
    w.relay.settle()
    told = [await attempt(pipe.get, "text"), pipe.watching]
    pipe.get("text")
    return [*told, await attempt(pipe.execute)]


@lines.case()
async def line_cut_before_exec(w: World) -> Any:
    pipe = w.client.pipeline()
    await settle(pipe.watch("text"))
    pipe.multi()
    pipe.get("text")
    w.door(packed("CLIENT", "KILL", "TYPE", "normal"))
    w.relay.settle()
    return [await attempt(pipe.execute), pipe.watching, await attempt(w.client.get, "text")]


@lines.case()
async def line_cut_of_a_single_connection(w: World) -> Any:
    client = w.make(single_connection_client=True)
    told = [await attempt(client.get, "text")]
    w.door(packed("CLIENT", "KILL", "TYPE", "normal"))
    w.relay.settle()
    return [*told, await attempt(client.get, "text"), await attempt(client.get, "text")]


@lines.case(slow=True)
async def nothing_comes_back(w: World) -> Any:
    client = w.make(socket_timeout=SHORT, retry=w.retry(1))
    told = [await attempt(client.get, "text")]
    w.relay.mute = True
    told += [await attempt(client.get, "text")]
    w.relay.mute = False
    return [*told, await attempt(client.get, "text")]


@lines.case(slow=True)
async def an_empty_command(w: World) -> Any:
    return await attempt(w.make(socket_timeout=SHORT, retry=w.retry(0)).execute_command, "")
