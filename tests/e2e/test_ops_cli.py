"""`safehold ops`, as it is run: what it lists, and when it says that an inventory is out of date."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SERVICE = """
from safehold import Budget, Safehold

health = Safehold("svc")
health.dependency("redis", critical=True)

def how_many(): return 40

@health.destructive("session.terminate", trigger="requested", subject="session_id")
def terminate(session_id): ...

@health.destructive(
    "session.reap", subject="session_id", requires=["redis"], evidence="exists", owner="team sessions",
    budget=Budget(per_hour=5, population=how_many),
)
async def reap(session_id): ...
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "svc.py").write_text(SERVICE)
    return tmp_path


def ops(place: Path, *arguments: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "safehold", "ops", *arguments]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr


def test_every_operation_is_listed_with_what_holds_it_back(place: Path) -> None:
    """Owner, code, trigger, what it requires and demands; and the table of rules, for a person to sign."""
    code, told, _ = ops(place, "svc")
    assert code == 0
    for text in (
        "2 destructive operations of svc", "session.reap  (automatic)", "session.terminate  (requested)",
        "svc:9 terminate", "team sessions", "every critical dependency", "exists, at most 5 s old",
        "5 an hour", "session_id, of type session",
    ):  # fmt: skip
        assert text in told
    rules = {line.split()[0]: line for line in told.splitlines() if " blocks " in line}
    assert "passes" in rules["startup_grace"]
    assert "blocks unless closed" in rules["dependency_unhealthy"]
    assert "never" in rules["hard_cap"]


def test_json_and_markdown_say_the_same(place: Path) -> None:
    """For machines and for reviews."""
    told = json.loads(ops(place, "svc", "--format", "json")[1])
    assert [operation["name"] for operation in told["operations"]] == ["session.reap", "session.terminate"]
    assert told["operations"][0]["budget"]["population"] == "how_many"
    markdown = ops(place, "svc:health", "--format", "markdown")[1]
    assert "| session.reap | automatic | redis | session_id (session) | exists, 5 s |" in markdown


def test_an_inventory_on_disk_is_compared(place: Path) -> None:
    """A line that moved is no change; a limit that was raised is."""
    (place / "ops.json").write_text(ops(place, "svc", "--format", "json")[1])
    service = place / "svc.py"
    service.write_text("\n\n" + SERVICE)
    code, told, _ = ops(place, "svc", "--check", "ops.json")
    assert (code, told) == (0, "ops.json is up to date\n")
    service.write_text(
        SERVICE.replace("per_hour=5", "per_hour=500") + "\nhealth.destructive('x')(how_many)\n"
    )
    code, told, _ = ops(place, "svc", "--check", "ops.json")
    assert code == 1
    assert "x is new" in told
    assert "session.reap: budget.per_hour was 5 and is 500" in told
    assert "ops.json is out of date" in told


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere"], "'nowhere' cannot be imported: ModuleNotFoundError"),
        (["svc:reap"], "'svc:reap' is no Safehold"),
        (["svc", "--check", "missing.json"], "missing.json is no inventory"),
    ],
)
def test_what_cannot_be_read_is_said(place: Path, arguments: list[str], text: str) -> None:
    """With a code of its own, and no traceback."""
    code, _, told = ops(place, *arguments)
    assert code == 2
    assert text in told
    assert "Traceback" not in told


def test_two_safeholds_in_one_module_have_to_be_named(place: Path) -> None:
    """Rather than to list one of them and be silent about the other."""
    with (place / "svc.py").open("a") as service:
        service.write("\nother = Safehold('other')\n")
    code, _, told = ops(place, "svc")
    assert code == 2
    assert "svc:health, svc:other" in told
