"""The fault proxy by hand: ``safehold fault-proxy --upstream ADDR`` and one command a line.

The first line of output says where it listens. Then each line of input gets one line of answer, which begins
with ``ok``, ``error``, ``status`` or ``help``. At the end of the input (Ctrl-D) a proxy at a terminal ends;
one that is fed through a pipe keeps running, with the last fault in force, until SIGINT or SIGTERM. Both end
it in good order, leave no socket file behind, and make the exit status 130 or 143.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn

from .proxy import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

HELP: Final = (
    "refuse [stale] [keep] | hang [DIRECTION] | latency SECONDS [JITTER] [DIRECTION] | reset | "
    "cut BYTES [DIRECTION] [close|reset] | drop-reply [COUNT] [hang|close] | half-close [DIRECTION] | "
    "disconnect [close|reset] | clear | status | help | quit; DIRECTION: upstream, downstream or both"
)

_NUMBERS: Final[dict[str, tuple[tuple[str, Callable[[str], float]], ...]]] = {
    "cut": (("after", int),),
    "drop-reply": (("count", int),),
    "latency": (("seconds", float), ("jitter", float)),
}
_NEEDED: Final = {"cut": "after", "latency": "seconds"}
_WORDS: Final[dict[str, tuple[str, ...]]] = {
    "clear": (),
    "cut": ("direction", "how"),
    "disconnect": ("how",),
    "drop-reply": ("how",),
    "half-close": ("direction",),
    "hang": ("direction",),
    "latency": ("direction",),
    "refuse": ("stale", "keep"),
    "reset": (),
}
_MEANING: Final[dict[str, tuple[str, Any]]] = {
    "upstream": ("direction", "upstream"),
    "downstream": ("direction", "downstream"),
    "both": ("direction", "both"),
    "close": ("how", "close"),
    "reset": ("how", "reset"),
    "hang": ("how", "hang"),
    "stale": ("stale", True),
    "keep": ("keep", True),
}


def main(argv: list[str]) -> int:
    """Run a proxy until told to quit. Exit status 2: bad arguments; 1: the address cannot be had."""
    options = _parser().parse_args(argv)
    try:
        proxy = FaultProxy(options.upstream, listen=options.listen, seed=options.seed)
        with _termination_raises(), proxy:
            _say(f"listening on {proxy.address}")
            _converse(proxy)
    except _Terminated:
        return 143
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _forget_output()
        return 0
    except (OSError, ValueError) as error:
        sys.stderr.write(f"safehold fault-proxy: {error}\n")
        return 2 if isinstance(error, ValueError) else 1
    return 0


def respond(proxy: FaultProxy, line: str) -> str:
    """Carry out one command and return the one line of answer. A bad command changes nothing."""
    name, *words = line.split() or ["help"]
    try:
        match name:
            case "help":
                return f"help: {HELP}"
            case "status":
                return f"status: {_status(proxy)}"
            case _:
                _carry_out(proxy, name, words)
                return f"ok: {_in_force(proxy)}"
    except ValueError as error:
        return f"error: {error}"


class _Terminated(BaseException):
    """SIGTERM came."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safehold fault-proxy",
        description="Forward connections, and break them on command.",
        epilog=f"Commands, one a line on standard input: {HELP}. "
        "After the end of the input it keeps running until a signal comes, unless the input is a terminal.",
    )
    address = 'an address: "127.0.0.1:6379" or "unix:/run/redis.sock"'
    parser.add_argument("--upstream", required=True, metavar="ADDR", help=f"where to forward to, {address}")
    parser.add_argument("--listen", metavar="ADDR", help="where to listen (default: a fresh local address)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="what chance is drawn from (default: 0)"
    )
    return parser


def _converse(proxy: FaultProxy) -> None:
    for line in sys.stdin:
        if line.strip() == "quit":
            _say("ok: bye")
            return
        _say(respond(proxy, line))
    if not sys.stdin.isatty():
        forever = threading.Event()
        while not forever.wait(1.0):  # not without a limit: a signal that comes just before would be missed
            pass


def _carry_out(proxy: FaultProxy, name: str, words: list[str]) -> None:
    if name not in _WORDS:
        msg = f"no such command: {name!r}; try help"
        raise ValueError(msg)
    fields = _fields(name, words)
    getattr(proxy, name.replace("-", "_"))(**fields)


def _fields(name: str, words: list[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    numbers = list(_NUMBERS.get(name, ()))
    for word in words:
        field, value = _MEANING.get(word, (None, None))
        if field is None and numbers:
            field, convert = numbers.pop(0)
            value = _number(field, convert, word)
        if field is None or field in fields or (word in _MEANING and field not in _WORDS[name]):
            msg = f"{name} does not take {word!r}; try help"
            raise ValueError(msg)
        fields[field] = value
    if (needed := _NEEDED.get(name)) is not None and needed not in fields:
        msg = f"{name} needs a number: {needed}"
        raise ValueError(msg)
    return fields


def _number(field: str, convert: Callable[[str], float], word: str) -> float:
    try:
        return convert(word)
    except ValueError:
        msg = f"{field}: need a number, got {word!r}"
        raise ValueError(msg) from None


def _in_force(proxy: FaultProxy) -> str:
    return " + ".join(map(str, proxy.faults)) or "clear"


def _status(proxy: FaultProxy) -> str:
    live = proxy.connections
    passed = sum(one.passed_upstream for one in live), sum(one.passed_downstream for one in live)
    held = sum(one.held_upstream for one in live), sum(one.held_downstream for one in live)
    return (
        f"{proxy.address} to {proxy.upstream}, {_in_force(proxy)}, connections {len(live)}, "
        f"bytes passed {passed[0]} up {passed[1]} down, held {held[0]} up {held[1]} down"
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _forget_output() -> None:
    """Nobody reads the answers any more: let the interpreter flush the last one to nowhere, in silence."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@contextmanager
def _termination_raises() -> Generator[None]:
    """Let SIGTERM unwind the stack as SIGINT does. Only the main thread may ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminate(_signal: int, _frame: object) -> NoReturn:
    raise _Terminated
