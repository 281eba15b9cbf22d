"""Lua scripts and functions."""

from __future__ import annotations

from typing import Any, Final

from ..play import Group, Several, World, attempt, settle, shape, within
from ..relay import packed
from .tools import both_ways

scripts = Group("scripts")

JOIN: Final = "return {KEYS[1], ARGV[1], redis.call('GET', KEYS[1])}"
LIBRARY: Final = """#!lua name=library
redis.register_function('twice', function(keys, args) return args[1] * 2 end)
redis.register_function{function_name='read', callback=function(keys) return redis.call('GET', keys[1]) end,
    flags={'no-writes'}}
"""


@scripts.case("eval")
async def evaluated(w: World) -> Any:
    bodies = (
        "return 1", "return 'text'", "return nil", "return true", "return false", "return {1, 'a', {2.9, nil, 3}}",
        "return {ok='FINE'}", "return {err='MINE of my own'}", "return 3.99", "return redis.call('HGETALL', 'hash')",
        "return redis.call('LPUSH', 'text', 1)", "return redis.pcall('LPUSH', 'text', 1)", "error('thrown')",
        "redis.setresp(3); return redis.call('HGETALL', 'hash')", "return '\\255'", "nonsense",
    )  # fmt: skip
    return Several({body: await attempt(w.client.eval, body, 0) for body in bodies})


@scripts.case("eval")
async def evaluated_with_keys(w: World) -> Any:
    return [
        await attempt(w.client.eval, JOIN, 1, "text", "argument"),
        await attempt(w.client.eval, JOIN, 1, b"number", 5),
        await attempt(w.client.eval, JOIN, "1", "text", 2.5),
        await attempt(w.client.eval, JOIN, 1, "text"),
    ]


@scripts.case("eval_ro", "evalsha_ro")
async def evaluated_for_reading(w: World) -> Any:
    told = [await attempt(w.client.eval_ro, "return redis.call('GET', KEYS[1])", 1, "text")]
    told += [await attempt(w.client.eval_ro, "return redis.call('SET', KEYS[1], 1)", 1, "text")]
    sha = await settle(w.client.script_load(JOIN))
    return [*told, await attempt(w.client.evalsha_ro, sha, 1, "text", "x")]


@scripts.case("evalsha")
async def evaluated_by_name(w: World) -> Any:
    sha = await settle(w.client.script_load(JOIN))
    told = [sha, await attempt(w.client.evalsha, sha, 1, "text", "x")]
    told += [await attempt(w.client.script_exists, sha, "0" * 40), await attempt(w.client.script_flush)]
    told += [await attempt(w.client.evalsha, sha, 1, "text", "x"), await attempt(w.client.script_exists, sha)]
    return told


@scripts.case("script_load")
async def kept_by_the_server(w: World) -> Any:
    return [
        await attempt(w.client.script_load, "nonsense"),
        await attempt(w.client.script_flush, "SYNC"),
        await attempt(w.client.script_flush, "ASYNC"),
        await attempt(w.client.script_flush, "LATER"),
        await attempt(w.client.script_kill),
        await attempt(w.client.script_debug, "YES"),
        await attempt(w.client.script_exists),
    ]


@scripts.case("register_script")
async def registered(w: World) -> Any:
    script = w.client.register_script(JOIN)
    told = [type(script), script.sha, script.script, script.registered_client is w.client]
    told += [await attempt(script, keys=["text"], args=["x"]), await attempt(script, ["number"], [5])]
    told += [await attempt(script), await attempt(script, keys=["text"], args=["x"], client=w.make())]
    return told


@scripts.case("register_script")
async def registered_and_lost(w: World) -> Any:
    script = w.client.register_script(JOIN)
    told = [await attempt(script, keys=["text"], args=["x"])]
    w.door(packed("SCRIPT", "FLUSH"))
    return [
        *told,
        await attempt(script, keys=["text"], args=["x"]),
        await attempt(script, keys=["list"], args=["x"]),
    ]


@scripts.case("register_script")
async def registered_as_bytes(w: World) -> Any:
    script = w.client.register_script(JOIN.encode())
    return [script.sha, await attempt(script, keys=["text"], args=["x"])]


@scripts.case("register_script")
async def registered_and_wrong(w: World) -> Any:
    script = w.client.register_script("nonsense")
    return [await attempt(script), await attempt(script)]


@scripts.case("register_script")
@both_ways
async def script_in_a_pipeline(w: World, pipe: Any) -> Any:
    script = w.client.register_script(JOIN)
    pipe.get("text")
    queued = await attempt(script, keys=["text"], args=["x"], client=pipe)
    told = [queued is pipe, len(pipe.scripts), await attempt(pipe.execute), len(pipe.scripts)]
    await attempt(script, keys=["number"], args=["y"], client=pipe)
    told += [await attempt(pipe.execute)]
    w.door(packed("SCRIPT", "FLUSH"))
    await attempt(script, keys=["number"], args=["z"], client=pipe)
    return [*told, await attempt(pipe.execute)]


@scripts.case("register_script")
@both_ways
async def script_of_a_pipeline(w: World, pipe: Any) -> Any:
    script = pipe.register_script(JOIN)
    await attempt(script, keys=["text"], args=["x"])
    return [type(script), await attempt(pipe.execute)]


@scripts.case("register_script")
@both_ways
async def script_that_fails_in_a_pipeline(w: World, pipe: Any) -> Any:
    script = w.client.register_script("return redis.call('INCR', 'text')")
    await attempt(script, client=pipe)
    told = [await attempt(pipe.execute)]
    await attempt(script, client=pipe)
    return [*told, await attempt(pipe.execute, raise_on_error=False)]


@scripts.case("register_script")
@both_ways
async def script_while_watching(w: World, pipe: Any) -> Any:
    script = w.client.register_script(JOIN)
    async with within(pipe):
        await settle(pipe.watch("text"))
        told = [await attempt(script, keys=["text"], args=["x"], client=pipe)]
        pipe.multi()
        await attempt(script, keys=["text"], args=["y"], client=pipe)
        return [*told, await attempt(pipe.execute)]


@scripts.case("function_load", "fcall", "fcall_ro")
async def functions_called(w: World) -> Any:
    return [
        await attempt(w.client.function_load, LIBRARY),
        await attempt(w.client.function_load, LIBRARY),
        await attempt(w.client.function_load, LIBRARY, replace=True),
        await attempt(w.client.function_load, "nonsense"),
        await attempt(w.client.fcall, "twice", 0, 21),
        await attempt(w.client.fcall, "read", 1, "text"),
        await attempt(w.client.fcall_ro, "read", 1, "text"),
        await attempt(w.client.fcall_ro, "twice", 0, 21),
        await attempt(w.client.fcall, "nothing", 0),
    ]


@scripts.case("function_list", "function_stats", "function_dump", "function_restore")
async def functions_kept_by_the_server(w: World) -> Any:
    await settle(w.client.function_load(LIBRARY))
    told = [shape(await attempt(w.client.function_list)), await attempt(w.client.function_list, "none*")]
    told += [shape(await attempt(w.client.function_list, "library", withcode=True))]
    told += [await attempt(w.client.function_stats), await attempt(w.client.function_kill)]
    payload = await settle(w.client.function_dump())
    told += [payload, await attempt(w.client.function_restore, payload)]
    told += [
        await attempt(w.client.function_delete, "library"),
        await attempt(w.client.function_delete, "library"),
    ]
    told += [
        await attempt(w.client.function_restore, payload, "REPLACE"),
        await attempt(w.client.fcall, "twice", 0, 2),
    ]
    return [*told, await attempt(w.client.function_flush), await attempt(w.client.function_flush, "ASYNC")]
