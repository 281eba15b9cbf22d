"""Reads a page of the documentation and runs what it shows.

A fenced block is `python`, `sh` or `text`; anything else is a mistake in the page. The blocks of a page
share one process, in their order. A comment on the line above a block says what it is, where that is not
plain:

    <!-- output -->         a `text` block: what the block before it prints; `...` stands for anything
    <!-- alone -->          a `python` block that needs nothing of what comes before: it gets its own process
    <!-- drill command -->  an `sh` block of one line, which `.ci/run` runs
    <!-- test command -->   likewise

What a block prints must be shown, nothing may be written to stderr, and nothing may raise.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("drill command", "test command")
MARKS = {"python": ("", "alone"), "sh": ("", *COMMANDS), "text": ("output",)}
LIMIT = 50.0

_RUNNER = """
import json, os, subprocess, sys
for mark, place, line, language, source in json.load(sys.stdin):
    print(mark, flush=True)
    if language == "sh":
        path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
        command = ["bash", "-euo", "pipefail", "-c", source]
        subprocess.run(command, check=True, env=dict(os.environ, PATH=path))
    else:
        code = compile("\\n" * line + source, place, "exec", dont_inherit=True)
        exec(code, globals().setdefault("page", {"__name__": "__main__"}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block; `line` is that of its fence."""

    line: int
    language: str
    mark: str
    source: str


class PageError(Exception):
    """A page that shows what is not so."""


def pages() -> list[Path]:
    """Every page that the project shows to people."""
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(text: str) -> list[Block]:
    """Find every block; raise `PageError` for one that could be overlooked."""
    found: list[Block] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith("```"):
            end = next((i for i in range(at + 1, len(lines)) if lines[i].rstrip() == "```"), None)
            if end is None:
                raise PageError(f"line {at + 1}: the block has no end")
            mark = re.fullmatch(r"<!-- (.+) -->", lines[at - 1]) if at else None
            source = "\n".join(lines[at + 1 : end]) + "\n"
            found.append(
                Block(line=at + 1, language=line[3:].strip(), mark=mark[1] if mark else "", source=source)
            )
            at = end
        elif re.match(r"\s*(```|~~~)", line) or (
            re.match(r" {4}|\t", line) and not (at and lines[at - 1].strip())
        ):
            raise PageError(f"line {at + 1}: a block that would not be run: {line!r}")
        at += 1
    for block in found:
        if block.mark not in MARKS.get(block.language, ()):
            raise PageError(f"line {block.line}: nobody runs {block.language!r} with the mark {block.mark!r}")
    return found


def programs(found: list[Block]) -> list[list[Block]]:
    """Divide a page's blocks among processes, each `alone` block with the output that follows it."""
    shared: list[Block] = []
    alone: list[list[Block]] = []
    current = shared
    for block in found:
        if block.mark in COMMANDS:
            continue
        if block.mark == "alone":
            current = []
            alone.append(current)
        elif block.language != "text":
            current = shared
        current.append(block)
    return [program for program in (shared, *alone) if program]


def run(program: list[Block], place: str, directory: Path) -> None:
    """Run blocks in one process; raise `PageError` unless all is as the page says."""
    steps = [block for block in program if block.language != "text"]
    marks = [f"--- block {number} ---" for number, _ in enumerate(steps)]
    told = [
        (mark, place, block.line, block.language, block.source)
        for mark, block in zip(marks, steps, strict=True)
    ]
    done = subprocess.run(
        [sys.executable, "-c", _RUNNER],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        cwd=directory,
        timeout=LIMIT,
        check=False,
    )
    if done.returncode or done.stderr:
        raise PageError(f"{place}: status {done.returncode}\n{done.stdout[-1000:]}\n{done.stderr}")
    parts = re.split("|".join(f"{mark}\n" for mark in marks), done.stdout)[1:]
    printed = dict(zip((block.line for block in steps), parts, strict=True))
    for block, after in pairwise([*program, None]):
        if block is not None and block.language != "text":
            shown = after.source if after is not None and after.language == "text" else ""
            compare(shown, printed[block.line], f"{place}:{block.line}")


def compare(shown: str, printed: str, place: str) -> None:
    """Compare what a page shows with what was printed; `...` stands for anything."""
    pattern = re.escape(shown.strip()).replace(re.escape("..."), ".*?")
    if not re.fullmatch(pattern, printed.strip(), re.DOTALL):
        raise PageError(f"{place} shows\n{shown}\nand prints\n{printed}")


def spoken(text: str) -> str:
    """What a page says outside its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def in_code(text: str) -> set[str]:
    """Every word that stands in code: in a block, or between backticks."""
    fenced = re.findall(r"^```.*?\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return set(re.findall(r"\w+", " ".join([*fenced, *re.findall(r"`([^`\n]+)`", rest)])))
