"""The `safehold` command: `safehold COMMAND ...`, also as `python -m safehold`.

A command's code is imported when it is called for, so that `safehold --version` needs no extra.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Final

from ._version import __version__


def _drill(argv: list[str]) -> int:
    from .drill.cli import main as drill  # noqa: PLC0415 - lazily: see above

    return drill(argv)


def _fault_proxy(argv: list[str]) -> int:
    from .testing.proxy_cli import main as fault_proxy  # noqa: PLC0415 - lazily: see above

    return fault_proxy(argv)


def _ledger(argv: list[str]) -> int:
    from .ledger_cli import main as ledger  # noqa: PLC0415 - lazily: see above

    return ledger(argv)


def _ops(argv: list[str]) -> int:
    from .ops_cli import main as ops  # noqa: PLC0415 - lazily: see above

    return ops(argv)


COMMANDS: Final[dict[str, tuple[Callable[[list[str]], int], str]]] = {
    "drill": (_drill, "watch a real outage, with and without protection; under a minute, no root"),
    "fault-proxy": (_fault_proxy, "forward connections, and break them on command"),
    "ledger": (_ledger, "read a ledger that is kept in files, and tell whether it is whole"),
    "ops": (_ops, "list an application's destructive operations, and what holds them back"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a command and give its exit code; without one, print the help. Usage errors exit with 2."""
    words = sys.argv[1:] if argv is None else argv
    parser = _parser()
    if not words:
        parser.print_help()
        return 0
    options = parser.parse_args(words)
    run, _ = COMMANDS[options.command]
    try:
        return run(options.arguments)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="safehold",
        description="Keeps a service from destroying what it merely cannot see.",
        epilog="commands:\n"
        + "".join(f"  {name:<12} {told}\n" for name, (_, told) in COMMANDS.items())
        + "\n`safehold COMMAND --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"safehold {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="what to do, see below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the command's own")
    return parser


if __name__ == "__main__":
    sys.exit(main())
