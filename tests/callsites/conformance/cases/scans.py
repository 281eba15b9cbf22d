"""Iterators over what comes in pieces."""

from __future__ import annotations

from typing import Any

from ..play import Group, Several, World, attempt, each, settle
from ..relay import packed
from .tools import NUMBERS, first

scans = Group("scans")


async def filled(w: World) -> Any:
    """Put enough into the server that a scan needs many steps."""
    w.door(
        packed("SADD", "large", *NUMBERS)
        + packed("HSET", "wide", *(word for name in NUMBERS for word in (name, name)))
        + packed(
            "ZADD", "ranked", *(word for score, name in enumerate(NUMBERS) for word in (str(score), name))
        )
    )
    return w.client


@scans.case("scan_iter")
async def scan_iter(w: World) -> Any:
    client = w.client
    return Several(
        {
            "all": await each(client.scan_iter()),
            "match": await each(client.scan_iter("z*")),
            "match by name": await each(client.scan_iter(match=b"h*", count=5)),
            "count": await each(client.scan_iter(count=100)),
            "type": await each(client.scan_iter(_type="list", count=3)),
            "none": await each(client.scan_iter("nothing*")),
        }
    )


@scans.case("sscan_iter")
async def sscan_iter(w: World) -> Any:
    client = await filled(w)
    return [
        await each(client.sscan_iter("large")),
        await each(client.sscan_iter("large", match="*7", count=50)),
        await each(client.sscan_iter("absent")),
        await attempt(each, client.sscan_iter("text")),
    ]


@scans.case("hscan_iter")
async def hscan_iter(w: World) -> Any:
    client = await filled(w)
    return [
        await each(client.hscan_iter("wide")),
        await each(client.hscan_iter("wide", match="*7", count=50)),
        await attempt(lambda: each(client.hscan_iter("wide", no_values=True))),
        await each(client.hscan_iter("absent")),
        await attempt(each, client.hscan_iter("text")),
    ]


@scans.case("zscan_iter")
async def zscan_iter(w: World) -> Any:
    client = await filled(w)
    return [
        await each(client.zscan_iter("ranked")),
        await each(client.zscan_iter("ranked", match="*7", count=50, score_cast_func=int)),
        await attempt(each, client.zscan_iter("text")),
    ]


@scans.case()
async def scans_by_hand(w: World) -> Any:
    client = await filled(w)
    told: list[Any] = []
    for scan in (client.sscan, client.hscan, client.zscan):
        name = {"sscan": "large", "hscan": "wide", "zscan": "ranked"}[scan.__name__]
        cursor: Any = 0
        while cursor != 0 or not told or told[-1][0] == 0:
            cursor, found = await settle(scan(name, cursor, count=60))
            told.append((cursor, found))
            if cursor == 0:
                break
    return told


@scans.case("scan_iter")
async def scan_left_in_the_middle(w: World) -> Any:
    return [await first(w.client.scan_iter(count=2), 1), await attempt(w.client.get, "text")]
