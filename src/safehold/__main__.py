"""The `safehold` command."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:  # noqa: ARG001 - no commands yet
    """Run a command and give its exit code."""
    return 0


if __name__ == "__main__":
    sys.exit(main())
