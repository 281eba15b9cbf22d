"""What the cases share."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Final

from ..play import Several, World, attempt
from ..relay import PATIENCE, packed

SHORT: Final = 0.12  # the time-out of a socket that will wait in vain
NUMBERS: Final = [f"member:{number}" for number in range(300)]


def both_ways(play: Callable[[World, Any], Any]) -> Callable[[World], Any]:
    """Play it with a pipeline that is a transaction, and with one that is not."""

    async def played(world: World) -> Several:
        ways = {"in a transaction": True, "without": False}
        return Several(
            {way: await attempt(play, world, world.client.pipeline(how)) for way, how in ways.items()}
        )

    played.__name__ = play.__name__
    return played


async def first(things: Any, count: int) -> list[Any]:
    taken: list[Any] = []
    if hasattr(things, "__aiter__"):
        async with contextlib.aclosing(things):
            while len(taken) < count:
                taken.append(await anext(things))
        return taken
    with contextlib.closing(things):
        return [next(things) for _ in range(count)]


async def rounds(count: int) -> None:
    """Let the event loop go on."""
    for _ in range(count):
        await asyncio.sleep(0)


async def while_blocked(
    w: World, commands: bytes, call: Callable[..., Any], *args: Any, **options: Any
) -> Any:
    """Call something that waits at the server, and send commands there as soon as it does."""

    def send() -> None:
        while b"blocked_clients:0\r\n" in w.door(packed("INFO", "clients")):
            assert not over.is_set()
        w.door(commands)

    over = threading.Event()
    thread = threading.Thread(target=send)
    thread.start()
    try:
        return await attempt(call, *args, **options)
    finally:
        over.set()
        thread.join(PATIENCE)


async def answers(client: Any) -> list[Any]:
    return [
        await attempt(client.get, "text"),
        await attempt(client.set, "text", "x"),
        await attempt(client.hgetall, "hash"),
    ]
