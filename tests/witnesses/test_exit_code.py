"""What an exit code says: declared codes speak, everything else does not."""

from __future__ import annotations

import asyncio
import re
import subprocess
from typing import Any

import pytest

from safehold import ConfigurationError, Presence
from safehold.witnesses import exit_code

from .support import ABSENT, PRESENT, Service, unproven

# As tmux: one code for "no such session" and for "no server".
HAS_SESSION = """
case "$1" in
  live) exit 0 ;;
  cut-off) echo "no server running on /tmp/tmux-0/default" >&2; exit 1 ;;
  killed) kill -9 $$ ;;
  broken) exit 2 ;;
  lost) exec /nowhere/tmux ;;
  *) echo "can't find session: $1" >&2; exit 1 ;;
esac
"""


def has_session(name: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["sh", "-c", HAS_SESSION, "sh", name], capture_output=True, check=False, timeout=20)


def there(session_id: str) -> Presence:
    return exit_code(has_session(session_id), stderr_says="can't find session")


@pytest.mark.parametrize(
    ("session_id", "why"),
    [
        ("cut-off", "exit code 1, but stderr does not say that it is absent"),
        ("killed", "the program was killed by signal 9"),
        ("broken", "exit code 2 says neither"),
        ("lost", "the program did not run (127)"),
    ],
)
def test_what_proves_nothing(service: Service, session_id: str, why: str) -> None:
    """Of a real program: a server that is away, a signal, another code, no program."""
    assert service.why(there, session_id) == why


def test_a_session_that_is_not_there(service: Service) -> None:
    """The positive twin: the same program, and its own words."""
    assert service.sweep(there, "live", "gone") == {"live"}


def test_only_a_program_that_has_not_answered_is_a_miss(service: Service) -> None:
    """One that said something odd has; the next subject may go."""
    assert service.sweep(there, "broken", "gone") == {"broken"}
    assert service.sweep(there, "killed", "gone2") == {"broken", "killed", "gone2"}


def test_the_words_may_come_in_any_form(service: Service) -> None:
    """Text or bytes, a pattern or its source, with the program's end or beside it."""
    said = has_session("gone")
    for pattern in ("can't find session", re.compile("^can't find (session|window)")):
        assert exit_code(said, stderr_says=pattern) is ABSENT
        assert exit_code(1, stderr_says=pattern, stderr=said.stderr) is ABSENT
        assert exit_code(1, stderr_says=pattern, stderr=said.stderr.decode()) is ABSENT
        assert "stderr does not say" in unproven(exit_code, 1, stderr_says=pattern, stderr=b"\xff")
        assert "captured" in unproven(exit_code, 1, stderr_says=pattern)
        assert exit_code(0, stderr_says=pattern) is PRESENT


def test_a_program_that_has_not_ended() -> None:
    """It has not said anything yet."""
    with subprocess.Popen(["sh", "-c", "read x"], stdin=subprocess.PIPE) as child:
        assert "has not ended" in unproven(exit_code, child)
        child.communicate(b"\n", timeout=20)
    assert exit_code(child) is PRESENT
    assert "has not ended" in unproven(exit_code, None)


async def test_an_asyncio_child() -> None:
    """Its stderr is a stream: give what was read of it."""
    child = await asyncio.create_subprocess_exec(
        "sh", "-c", HAS_SESSION, "sh", "gone", stderr=asyncio.subprocess.PIPE
    )
    _, said = await child.communicate()
    assert "captured" in unproven(exit_code, child, stderr_says="can't find session")
    assert exit_code(child, stderr_says="can't find session", stderr=said) is ABSENT


def test_other_codes() -> None:
    """Each program has its own."""
    assert exit_code(3, present={0, 3}, absent={4}) is PRESENT
    assert exit_code(4, present={0, 3}, absent={4}) is ABSENT
    assert "neither" in unproven(exit_code, 1, present={0, 3}, absent={4})


@pytest.mark.parametrize("code", [True, False, "1", 1.0, b"", object()])
def test_what_is_no_code(code: Any) -> None:
    """`False` is what somebody has made of a code already."""
    assert "exit code" in unproven(exit_code, code)


@pytest.mark.parametrize(
    "codes", [{"absent": (-9,)}, {"absent": (127,)}, {"present": (126,)}, {"absent": (0,)}]
)
def test_codes_that_cannot_be_answers(codes: dict[str, Any]) -> None:
    """A signal, a program that did not run, a code with two meanings."""
    with pytest.raises(ConfigurationError):
        exit_code(0, **codes)
