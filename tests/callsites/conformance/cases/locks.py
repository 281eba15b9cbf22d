"""Locks."""

from __future__ import annotations

from typing import Any

from ..play import Group, World, attempt, plainly, settle, shape, within
from ..relay import PATIENCE, packed

locks = Group("locks")


@locks.case("lock")
async def held_and_given_back(w: World) -> Any:
    lock = w.client.lock("lock")
    told = [type(lock), await attempt(lock.locked), await attempt(lock.acquire), await attempt(lock.locked)]
    told += [await attempt(lock.owned), await attempt(w.client.ttl, "lock"), await attempt(lock.release)]
    return [*told, await attempt(lock.locked), await attempt(lock.owned), await attempt(lock.release)]


@locks.case("lock")
async def held_in_a_context(w: World) -> Any:
    async with within(w.client.lock("lock", timeout=100)) as lock:
        told = [await attempt(lock.owned), shape(await attempt(w.client.pttl, "lock"))]
        told += [await attempt(w.client.lock("lock", blocking=False).acquire)]
    return [*told, await attempt(w.client.exists, "lock")]


@locks.case("lock")
async def held_by_somebody_else(w: World) -> Any:
    w.door(packed("SET", "lock", "theirs"))
    lock = w.client.lock("lock", timeout=100, sleep=0.01, blocking_timeout=0.001)
    told = [
        await attempt(lock.acquire),
        await attempt(lock.acquire, blocking=False),
        await attempt(lock.locked),
    ]
    told += [await attempt(lock.owned), await attempt(lock.release)]

    async def enter() -> None:
        async with within(lock):
            raise AssertionError

    return [*told, await attempt(enter)]


@locks.case("lock")
async def waited_for(w: World) -> Any:
    w.door(packed("SET", "lock", "theirs"))
    lock = w.client.lock("lock", timeout=100, sleep=0.001)
    told = [await attempt(lock.acquire, blocking_timeout=0)]
    w.door(packed("DEL", "lock"))
    return [*told, await attempt(lock.acquire, blocking_timeout=PATIENCE), await attempt(lock.release)]


@locks.case("lock")
async def taken_over(w: World) -> Any:
    lock = w.client.lock("lock", timeout=100)
    await settle(lock.acquire())
    w.door(packed("SET", "lock", "theirs"))
    told = [await attempt(lock.owned), await attempt(lock.extend, 10), await attempt(lock.reacquire)]
    return [*told, await attempt(lock.release), await attempt(lock.release)]


@locks.case("lock")
async def lost_within_the_context(w: World) -> Any:
    async def enter(**options: Any) -> str:
        async with within(w.client.lock("lock", timeout=100, **options)):
            w.door(packed("DEL", "lock"))
        return "left"

    return [await attempt(enter), await attempt(enter, raise_on_release_error=False)]


@locks.case("lock")
async def extended(w: World) -> Any:
    lock = w.client.lock("lock", timeout=100)
    told = [await attempt(lock.extend, 10), await attempt(lock.acquire), await attempt(lock.extend, 50)]
    told += [await attempt(lock.extend, 50, replace_ttl=True), shape(await attempt(w.client.pttl, "lock"))]
    told += [await attempt(lock.reacquire), await attempt(lock.release), await attempt(lock.reacquire)]
    endless = w.client.lock("endless")
    await settle(endless.acquire())
    return [*told, await attempt(endless.extend, 10), await attempt(endless.reacquire)]


@locks.case("lock")
async def token_of_ones_own(w: World) -> Any:
    lock = w.client.lock("lock", thread_local=False)
    told = [await attempt(lock.acquire, token="mine"), await attempt(w.client.get, "lock")]
    told += [plainly(lock.local.token), await attempt(lock.release)]
    return [*told, await attempt(lock.acquire, token=b"mine"), await attempt(lock.release)]


@locks.case("lock")
async def impossible_settings(w: World) -> Any:
    class Own:
        def __init__(self, client: Any, name: str, **options: Any) -> None:
            self.told = (client is w.client, name, options)

    return [
        await attempt(lambda: w.client.lock("lock", timeout=1, sleep=2)),
        await attempt(w.client.lock("lock", timeout=0).acquire),
        w.client.lock("lock", timeout=5, lock_class=Own).told,
        plainly(w.client.lock("lock").name),
    ]


@locks.case("lock")
async def scripts_of_locks_lost(w: World) -> Any:
    lock = w.client.lock("lock", timeout=100)
    await settle(lock.acquire())
    w.door(packed("SCRIPT", "FLUSH"))
    return [await attempt(lock.extend, 10), await attempt(lock.release)]
