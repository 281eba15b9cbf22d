"""How the table is played: one body for both sides, on a plain client and on a guarded one.

Entries are coroutine functions, also for the sync side: there nothing ever waits, so one `send` runs them
from the beginning to the end.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import pickle
import re
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import redis
import redis.asyncio

from .relay import Backdoor, Relay, packed

Guard = Callable[[Any, str], Any]
"""Takes a client and the name of the entry that made it, and gives the client back, guarded or not."""
Answer = Callable[["World"], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One of the ways in which clients are used."""

    side: str
    protocol: int
    decode: bool

    @property
    def is_async(self) -> bool:
        return self.side == "asyncio"

    @property
    def module(self) -> Any:
        return redis.asyncio if self.is_async else redis

    def __str__(self) -> str:
        return f"{self.side}-resp{self.protocol}-{'str' if self.decode else 'bytes'}"


@dataclass(frozen=True)
class Call:
    """A method of the client and its arguments; `rough` if its answer is never twice the same."""

    method: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    rough: bool = False

    def __str__(self) -> str:
        told = [*map(repr, self.args), *(f"{name}={value!r}" for name, value in self.options.items())]
        return f"{self.method}({', '.join(told)})"

    @property
    def waits(self) -> bool:
        return self.method.startswith(("bl", "br", "bz")) or "block" in self.options

    def on(self, client: Any) -> Any:
        return getattr(client, self.method)(*self.args, **self.options)

    async def __call__(self, world: World) -> Any:
        answer = await settle(self.on(world.client))
        return shape(answer) if self.rough else answer


class _Do:
    """Writes calls: `do.get("k")`."""

    def __getattr__(self, method: str) -> Callable[..., Call]:
        return lambda *args, **options: Call(method, args, options)


do = _Do()


def rough(call: Call) -> Call:
    """Compare only what the answer is made of: the server's clock, memory or dice are in it."""
    return replace(call, rough=True)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the table. It is left out where the client lacks a method that it needs.

    What waits for a time-out is `slow`: it is played in one of the four manners of each side.
    """

    name: str
    play: Answer
    needs: tuple[str, ...] = ()
    side: str | None = None
    protocol: int | None = None
    decode: bool | None = None
    slow: bool = False

    def applies(self, setting: Setting) -> bool:
        return (
            self.side in (None, setting.side)
            and self.protocol in (None, setting.protocol)
            and self.decode in (None, setting.decode)
            and not (self.slow and (setting.protocol, setting.decode) != (2, True))
            and all(hasattr(setting.module.Redis, method) for method in self.needs)
        )


class Group:
    """A part of the table. Where `queued`, its calls are played once more in one pipeline, and in a MULTI."""

    def __init__(self, name: str, *calls: Call, queued: bool = False) -> None:
        self.name = name
        self.entries = [Entry(name=str(call), play=call, needs=(call.method,)) for call in calls]
        if queued:
            self.entries.append(Entry(name="pipeline", play=_queue(calls, transaction=False)))
            self.entries.append(Entry(name="MULTI", play=_queue(calls, transaction=True), decode=True))

    def case(self, *needs: str, **limits: Any) -> Callable[[Answer], Answer]:
        """Add a function to the table, under its own name."""

        def add(play: Any) -> Any:
            name = play.__name__.replace("_", " ").strip()
            self.entries.append(Entry(name=name, play=play, needs=needs, **limits))
            return play

        return add

    def __str__(self) -> str:
        return self.name


class Several(dict[str, Any]):
    """The answers of an entry that asked for many things, by name."""


def _queue(calls: Sequence[Call], *, transaction: bool) -> Answer:
    """Play calls in one pipeline, or each in a transaction: one that is not known there discards it."""

    async def play(world: World) -> Any:
        pipe = world.client.pipeline(transaction=transaction)
        answers, queued = Several(), []

        async def execute() -> None:
            replies = await attempt(pipe.execute, raise_on_error=False)
            for index, call in enumerate(queued):
                reply = replies if isinstance(replies, Exception) else replies[index]
                answers[str(call)] = reply
            queued.clear()

        for call in calls:
            if hasattr(pipe, call.method) and not call.rough and (transaction or not call.waits):
                answer = await attempt(call.on, pipe)
                if len(pipe) > len(queued):
                    queued.append(call)
                else:
                    answers[str(call)] = answer
            if transaction:
                await execute()
        await execute()
        return answers

    return play


# --- what entries are written with --------------------------------------------------------------------


async def settle(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer


async def attempt(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call, wait, and give what came of it: an answer or an exception."""
    try:
        return await settle(function(*args, **options))
    except Exception as error:
        return error.with_traceback(None)  # it would keep alive what was half made


async def each(things: Any) -> list[Any]:
    return [thing async for thing in things] if hasattr(things, "__aiter__") else list(things)


@asynccontextmanager
async def within(thing: Any) -> AsyncIterator[Any]:
    """`async with`, or `with`."""
    if hasattr(thing, "__aenter__"):
        async with thing as inner:
            yield inner
    else:
        with thing as inner:
            yield inner


async def close(thing: Any) -> None:
    await settle(thing.aclose() if hasattr(thing, "aclose") else thing.close())


class World:
    """What an entry may use: a client, the means to make more of them, and the server behind their back."""

    def __init__(self, setting: Setting, relay: Relay, door: Backdoor, guard: Guard) -> None:
        self.setting = setting
        self.relay = relay
        self.door = door
        self.entry = ""
        self.client: Any = None
        self._guard = guard
        self._made: list[Any] = []

    @property
    def is_async(self) -> bool:
        return self.setting.is_async

    @property
    def module(self) -> Any:
        return self.setting.module

    @property
    def options(self) -> dict[str, Any]:
        """Where the server is, how to talk to it, and to try twice without a pause."""
        return {"host": "127.0.0.1", "port": self.relay.port, "retry": self.retry(1), **self.manner}

    @property
    def manner(self) -> dict[str, Any]:
        return {"protocol": self.setting.protocol, "decode_responses": self.setting.decode}

    def guard(self, client: Any) -> Any:
        """Guard it, or leave it: clients that an entry makes share a dependency of their own."""
        return self._guard(client, self.entry)

    def make(self, kind: Any = None, **options: Any) -> Any:
        """Make a client, of a class of the caller's if he likes."""
        return self.keep(self.guard((kind or self.module.Redis)(**{**self.options, **options})))

    def keep(self, client: Any) -> Any:
        """Let a client be closed at the end of the entry."""
        self._made.append(client)
        return client

    def retry(self, times: int) -> Any:
        """Make a policy that tries again at once."""
        module = redis.asyncio.retry if self.is_async else redis.retry
        return module.Retry(redis.backoff.NoBackoff(), times)

    async def tidy(self) -> None:
        made, self._made = self._made, []
        for client in made:
            await close(client)
            await settle(client.connection_pool.disconnect())


# --- playing ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of an entry: the answer, what went over the wire, and what was said beside it."""

    name: str
    answer: str
    wire: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    failed: bool = False

    def against(self, other: Outcome) -> Iterator[str]:
        """Tell how they differ."""
        for what in ("name", "answer", "wire", "warned"):
            plain, guarded = str(getattr(self, what)), str(getattr(other, what))
            if plain != guarded:
                start = next(i for i, pair in enumerate(zip_longest(plain, guarded)) if len(set(pair)) > 1)
                plain, guarded = _excerpt(plain, start), _excerpt(guarded, start)
                yield f"{self.name}: {what}\n    plain:   {plain}\n    guarded: {guarded}"


def _excerpt(text: str, start: int) -> str:
    """Cut out what is around the place where a text begins to differ."""
    first = 0 if start < 200 else start - 100
    return f"{'...' if first else ''}{text[first : start + 400]}{'...' if start + 400 < len(text) else ''}"


UNSCRIPTED: Final = packed("SCRIPT", "FLUSH") + packed("FUNCTION", "FLUSH")


class Stage:
    """A server, and a relay in front of it."""

    def __init__(self, path: str, reset: bytes) -> None:
        self.relay = Relay(path)
        self.door = Backdoor(path)
        self._reset = reset

    def close(self) -> None:
        self.relay.close()
        self.door.close()

    def play(self, entries: Sequence[Entry], setting: Setting, guard: Guard) -> list[Outcome]:
        """Play entries one after the other, each on a server that is like new, and tell the outcomes."""
        self.relay.restart()
        self.door(UNSCRIPTED)
        world = World(setting, self.relay, self.door, guard)
        with asyncio.Runner() as runner, _no_collection():
            run = runner.get_loop().run_until_complete if setting.is_async else _run
            client = world.client = run(_made(world))
            try:
                return [
                    outcome
                    for entry in entries
                    if entry.applies(setting)
                    for outcome in self._play(entry, world, run)
                ]
            finally:
                world.keep(client)
                run(world.tidy())

    def _play(self, entry: Entry, world: World, run: Callable[..., Any]) -> list[Outcome]:
        self.door(self._reset)
        world.entry = entry.name
        with warnings.catch_warnings(record=True) as caught, _unraisable() as lost:
            warnings.simplefilter("always")
            answer = run(_played(entry, world))
        wire = tuple(self.relay.take())
        if re.search("EVAL|FUNCTION|SCRIPT", str(wire)):
            self.door(UNSCRIPTED)  # which takes time
        warned = (*map(_told, caught), *lost)
        several = answer if isinstance(answer, Several) else {}
        told = list(several) if several else answer
        return [
            Outcome(entry.name, describe(told), wire, warned, failed=isinstance(answer, Exception)),
            *(Outcome(f"{entry.name}: {name}", describe(value)) for name, value in several.items()),
        ]


@contextmanager
def _unraisable() -> Iterator[list[str]]:
    """Catch what is raised where nobody can: redis-py's half-made copies complain when they go."""
    lost: list[str] = []
    hook, sys.unraisablehook = sys.unraisablehook, lambda args: lost.append(plainly(repr(args.exc_value)))
    try:
        yield lost
    finally:
        sys.unraisablehook = hook


@contextmanager
def _no_collection() -> Iterator[None]:
    """Let no warning about rubbish come in the middle of somebody else's entry."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _run(body: Coroutine[Any, Any, Any]) -> Any:
    try:
        body.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("an entry waits on the sync side")


async def _made(world: World) -> Any:
    return world.guard(world.module.Redis(**world.options))


async def _played(entry: Entry, world: World) -> Any:
    try:
        return await attempt(entry.play, world)
    finally:
        await world.tidy()
        if world.is_async:
            await asyncio.sleep(0)  # for transports that were told to close


def _told(warning: warnings.WarningMessage) -> str:
    return f"{Path(warning.filename).name}: {warning.category.__name__}: {plainly(warning.message)}"


# --- telling ------------------------------------------------------------------------------------------


def plainly(thing: object) -> str:
    """Leave out what is never twice the same."""
    text = str(thing)
    return re.sub(r"\b0x[0-9a-f]+", "0x", text) if "0x" in text else text


def shape(value: Any) -> Any:
    """Put the names of their types in the place of values; the names in dictionaries stay."""
    match value:
        case dict():
            return {key: shape(item) for key, item in value.items()}
        case list() | tuple():
            return [type(value), *map(shape, value)]
        case set():
            return [type(value), *sorted({str(shape(item)) for item in value})]
        case bool():
            return bool
        case int() | float():
            return "a number"
        case _:
            return type(value)


def _named(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def describe(value: Any) -> str:
    """Tell a value and the types of all its parts, so that equal texts mean equal values."""
    match value:
        case BaseException():
            return _describe_error(value)
        case dict():
            text = "{" + ", ".join(f"{describe(k)}: {describe(v)}" for k, v in value.items()) + "}"
        case list():
            text = f"[{', '.join(map(describe, value))}]"
        case tuple():
            text = f"({', '.join(map(describe, value))})"
        case set() | frozenset():
            text = "{" + ", ".join(sorted(map(describe, value))) + "}"
        case type():
            return _named(value)
        case _:
            text = plainly(repr(value))
    plain = type(value) in {dict, list, tuple, set, str, bytes, int, float, bool, type(None)}
    return text if plain else f"{_named(type(value))}: {text}"


def _marks(error: BaseException) -> dict[str, Any]:
    """Give what is written on an error, but for what the guard writes there, as its documentation says."""
    marks = {name: mark for name, mark in vars(error).items() if name not in {"_safehold", "outcome"}}
    notes = [note for note in marks.pop("__notes__", ()) if not note.startswith("safehold: ")]
    return {**marks, **({"__notes__": notes} if notes else {})}


def _can_be_pickled(error: BaseException) -> bool:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return False
    return True


def _describe_error(error: BaseException) -> str:
    told = [f"{_named(type(error))}{describe(error.args)} {plainly(error)!r}"]
    if marks := _marks(error):
        told.append(f"with {describe(marks)}")
    if not _can_be_pickled(error):
        told.append("and cannot be pickled")
    for word, other in (("from", error.__cause__), ("after", error.__context__)):
        if other is not None:
            told.append(f"{word} {_describe_error(other)}")
    return " ".join(told)
