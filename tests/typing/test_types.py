"""Decorated functions and guarded clients keep their types: as a type checker sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CONFIG = f"--config-file={ROOT / 'pyproject.toml'}"


def mypy(sample: Path) -> str:
    """Run mypy of this environment under the project's own strict settings; give all that it said."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--no-color-output", CONFIG, str(sample)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    return done.stdout + done.stderr


def test_mypy_finds_nothing_in_the_sample() -> None:
    """Every `assert_type` holds, and every planted mistake is found where an ignore expects it."""
    assert mypy(HERE / "sample.py") == ""


def test_mypy_is_awake(tmp_path: Path) -> None:
    """The positive twin: a wrong type and a wrong argument in such a sample are found."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from typing import assert_type\n"
        "from safehold import health\n"
        "@health.guard('api')\n"
        "def call(name: str) -> int: return 1\n"
        "assert_type(call('a'), str)\n"
        "call(1)\n"
    )
    said = mypy(wrong)
    assert "[assert-type]" in said
    assert "[arg-type]" in said
