"""Pipelines, with and without a transaction."""

from __future__ import annotations

from typing import Any

from redis.exceptions import WatchError

from ..play import Group, World, attempt, close, settle, within
from ..relay import packed
from .tools import NUMBERS, both_ways

pipelines = Group("pipelines")


@pipelines.case()
@both_ways
async def answers_come_in_order(w: World, pipe: Any) -> Any:
    pipe.set("a", 1).incr("a").get("a").lrange("list", 0, -1).hgetall("hash").smembers("set")
    queued = len(pipe), bool(pipe), pipe.transaction, pipe.watching, pipe.explicit_transaction
    return [queued, pipe.command_stack, await attempt(pipe.execute), len(pipe), bool(pipe)]


@pipelines.case()
@both_ways
async def calls_give_the_pipeline(w: World, pipe: Any) -> Any:
    return pipe.set("a", 1) is pipe, pipe.execute_command("GET", "a") is pipe, await attempt(pipe.execute)


@pipelines.case()
@both_ways
async def empty(w: World, pipe: Any) -> Any:
    return [await attempt(pipe.execute), await attempt(pipe.execute, raise_on_error=False), pipe.connection]


@pipelines.case()
@both_ways
async def used_again(w: World, pipe: Any) -> Any:
    pipe.get("text")
    first = await attempt(pipe.execute)
    pipe.get("number")
    return [first, await attempt(pipe.execute), await attempt(pipe.execute)]


@pipelines.case()
@both_ways
async def error_raised(w: World, pipe: Any) -> Any:
    pipe.get("text").lpush("text", "x").get("number")
    raised = await attempt(pipe.execute)
    pipe.get("number")
    return [raised, await attempt(pipe.execute)]


@pipelines.case()
@both_ways
async def error_kept(w: World, pipe: Any) -> Any:
    pipe.get("text").lpush("text", "x").incr("text").get("number")
    return await attempt(pipe.execute, raise_on_error=False)


@pipelines.case()
@both_ways
async def error_kept_by_position(w: World, pipe: Any) -> Any:
    pipe.get("text").lpush("text", "x")
    return await attempt(pipe.execute, False)


@pipelines.case()
@both_ways
async def unknown_command(w: World, pipe: Any) -> Any:
    pipe.set("a", "1").execute_command("NOTHING", "x").get("a")
    raised = await attempt(pipe.execute)
    pipe.set("a", "1").execute_command("NOTHING", "x").get("a")
    return [raised, await attempt(pipe.execute, raise_on_error=False), await attempt(w.client.get, "a")]


@pipelines.case()
@both_ways
async def error_with_a_very_long_command(w: World, pipe: Any) -> Any:
    pipe.execute_command("LPUSH", "text", *NUMBERS)
    return await attempt(pipe.execute)


@pipelines.case()
@both_ways
async def argument_that_cannot_be_sent(w: World, pipe: Any) -> Any:
    pipe.set("a", "1").set("b", object)
    return [await attempt(pipe.execute), len(pipe), await attempt(w.client.get, "a")]


@pipelines.case()
@both_ways
async def argument_that_is_refused_at_once(w: World, pipe: Any) -> Any:
    return [await attempt(pipe.zadd, "z", {}), len(pipe), await attempt(pipe.execute)]


@pipelines.case()
@both_ways
async def reply_that_is_no_text(w: World, pipe: Any) -> Any:
    w.door(packed("SET", "binary", b"\xff\xfe"))
    pipe.get("text").get("binary").get("number")
    return [await attempt(pipe.execute), await attempt(w.client.get, "text")]


@pipelines.case()
@both_ways
async def as_a_context(w: World, pipe: Any) -> Any:
    async with within(pipe) as inner:
        inner.get("text")
        answers = await attempt(inner.execute)
        inner.set("text", "queued and forgotten")
    return [inner is pipe, answers, len(pipe), await attempt(w.client.get, "text")]


@pipelines.case()
@both_ways
async def context_left_by_an_error(w: World, pipe: Any) -> Any:
    async with within(pipe):
        pipe.set("text", "never")
        raise KeyError("mine")


@pipelines.case()
@both_ways
async def reset_and_closed(w: World, pipe: Any) -> Any:
    pipe.get("text")
    await settle(pipe.reset())
    before = len(pipe)
    pipe.get("text")
    await close(pipe)
    return [before, len(pipe), await attempt(pipe.execute)]


@pipelines.case()
@both_ways
async def watched_and_unchanged(w: World, pipe: Any) -> Any:
    async with within(pipe):
        told = [await attempt(pipe.watch, "text", "number"), pipe.watching]
        told += [await attempt(pipe.get, "text"), await attempt(pipe.lrange, "list", 0, 1)]
        told += [pipe.multi(), pipe.explicit_transaction]
        pipe.set("text", "new").incr("number")
        return [*told, await attempt(pipe.execute), pipe.watching, pipe.explicit_transaction]


@pipelines.case()
@both_ways
async def watched_and_changed(w: World, pipe: Any) -> Any:
    async with within(pipe):
        await settle(pipe.watch("text"))
        w.door(packed("SET", "text", "by somebody else"))
        pipe.multi()
        pipe.get("text")
        raised = await attempt(pipe.execute)
        pipe.get("text")
        return [raised, pipe.watching, await attempt(pipe.execute)]


@pipelines.case()
@both_ways
async def watched_in_a_loop_until_it_works(w: World, pipe: Any) -> Any:
    told = []
    async with within(pipe):
        for attempted in range(5):
            try:
                await settle(pipe.watch("number"))
                told.append(await settle(pipe.get("number")))
                if attempted < 2:
                    w.door(packed("INCR", "number"))
                pipe.multi()
                pipe.incr("number")
                told.append(await settle(pipe.execute()))
                break
            except WatchError as error:
                told.append(error)
    return told


@pipelines.case()
@both_ways
async def error_while_watching(w: World, pipe: Any) -> Any:
    async with within(pipe):
        await settle(pipe.watch("text"))
        return [await attempt(pipe.incr, "text"), pipe.watching, await attempt(pipe.get, "text")]


@pipelines.case()
@both_ways
async def unwatched(w: World, pipe: Any) -> Any:
    before = await attempt(pipe.unwatch)
    await settle(pipe.watch("text"))
    after = [await attempt(pipe.unwatch), pipe.watching]
    pipe.get("text")
    return [before, after, await attempt(pipe.execute)]


@pipelines.case()
@both_ways
async def watched_and_executed_with_nothing_queued(w: World, pipe: Any) -> Any:
    await settle(pipe.watch("text"))
    return [await attempt(pipe.execute), pipe.watching]


@pipelines.case()
@both_ways
async def watch_left_by_the_context(w: World, pipe: Any) -> Any:
    async with within(pipe):
        await settle(pipe.watch("text"))
    return [pipe.watching, pipe.connection, await attempt(w.client.get, "text")]


@pipelines.case()
@both_ways
async def multi_in_the_wrong_place(w: World, pipe: Any) -> Any:
    pipe.get("text")
    late = await attempt(pipe.multi)
    await settle(pipe.reset())
    pipe.multi()
    twice = await attempt(pipe.multi)
    inside = await attempt(pipe.watch, "text")
    return [late, twice, inside, await attempt(pipe.execute)]


@pipelines.case()
@both_ways
async def discarded(w: World, pipe: Any) -> Any:
    await settle(pipe.watch("text"))
    pipe.multi()
    pipe.set("text", "new")
    answer = await attempt(pipe.discard)
    executed = await attempt(pipe.execute)
    return [answer, executed, await attempt(w.client.get, "text")]


@pipelines.case()
@both_ways
async def odd_spellings(w: World, pipe: Any) -> Any:
    pipe.execute_command("get", "text").execute_command(b"GET", "text")
    pipe.execute_command("CONFIG GET", "maxmemory").execute_command("CONFIG", "GET", "maxmemory")
    pipe.execute_command("hgetall", "hash").execute_command(b"HGETALL", "hash")
    return await attempt(pipe.execute)


@pipelines.case()
@both_ways
async def name_that_cannot_be_hashed(w: World, pipe: Any) -> Any:
    pipe.get("text").execute_command(["GET"], "text")
    return await attempt(pipe.execute)


@pipelines.case()
@both_ways
async def name_that_is_missing(w: World, pipe: Any) -> Any:
    return [await attempt(pipe.execute_command), len(pipe), await attempt(pipe.execute)]


@pipelines.case(decode=True)
@both_ways
async def a_thousand_commands(w: World, pipe: Any) -> Any:
    for name in NUMBERS:
        pipe.set(name, name * 3).get(name).delete(name)
    return await attempt(pipe.execute)


@pipelines.case()
@both_ways
async def commands_that_wait(w: World, pipe: Any) -> Any:
    pipe.blpop("absent", 0.01).blpop("list", 0.01).xread({"absent": "$"}, block=10)
    return await attempt(pipe.execute)


@pipelines.case()
@both_ways
async def own_response_callback(w: World, pipe: Any) -> Any:
    client = w.make()
    client.set_response_callback("GET", lambda reply, **options: ("mine", reply))
    pipe = client.pipeline(pipe.transaction)
    pipe.get("text").get("absent")
    return [await attempt(pipe.execute), await attempt(client.get, "text")]


@pipelines.case()
@both_ways
async def two_at_once(w: World, pipe: Any) -> Any:
    other = w.client.pipeline(pipe.transaction)
    await settle(pipe.watch("text"))
    await settle(other.watch("number"))
    pipe.multi()
    other.multi()
    pipe.get("number")
    other.set("text", "changed")
    return [await attempt(other.execute), await attempt(pipe.execute)]


@pipelines.case()
@both_ways
async def pipeline_of_a_pipeline(w: World, pipe: Any) -> Any:
    inner = pipe.pipeline()
    inner.get("text")
    return [type(inner), await attempt(inner.execute)]


@pipelines.case()
@both_ways
async def pipeline_of_a_single_connection(w: World, pipe: Any) -> Any:
    client = w.make(single_connection_client=True)
    told = [await attempt(client.get, "text")]
    pipe = client.pipeline(pipe.transaction)
    pipe.get("text").get("number")
    return [*told, await attempt(pipe.execute), await attempt(client.get, "number")]


@pipelines.case()
async def with_a_shard_hint(w: World) -> Any:
    pipe = w.client.pipeline(shard_hint="hint", transaction=False)
    pipe.get("text")
    return [pipe.shard_hint, await attempt(pipe.execute)]


@pipelines.case(side="asyncio")
async def pipeline_awaited(w: World) -> Any:
    pipe = w.client.pipeline()
    same = await pipe is pipe
    return [same, await (await pipe.get("text")).execute()]


@pipelines.case("transaction")
async def transaction_of_a_function(w: World) -> Any:
    told = [await attempt(w.client.transaction, lambda pipe: pipe.set("a", 1).incr("a"))]
    told += [await attempt(w.client.transaction, lambda pipe: None, "text")]
    return told


@pipelines.case("transaction")
async def transaction_that_reads_first(w: World) -> Any:
    async def body(pipe: Any) -> Any:
        told = await settle(pipe.get("number"))
        pipe.multi()
        pipe.set("number", int(told) * 2)
        return "value"

    def plain_body(pipe: Any) -> Any:
        told = pipe.get("number")
        pipe.multi()
        pipe.set("number", int(told) * 2)
        return "value"

    function = body if w.is_async else plain_body
    return [
        await attempt(w.client.transaction, function, "number"),
        await attempt(w.client.transaction, function, "number", value_from_callable=True),
        await attempt(w.client.get, "number"),
    ]


@pipelines.case("transaction")
async def transaction_that_is_disturbed_once(w: World) -> Any:
    calls: list[Any] = []

    def body(pipe: Any) -> Any:
        calls.append(type(pipe))
        if len(calls) == 1:
            w.door(packed("INCR", "number"))
        pipe.multi()
        pipe.incr("number")

    return [await attempt(w.client.transaction, body, "number"), calls]


@pipelines.case("transaction")
async def transaction_whose_function_fails(w: World) -> Any:
    def body(pipe: Any) -> Any:
        raise KeyError("mine")

    return [await attempt(w.client.transaction, body, "text"), await attempt(w.client.get, "text")]
