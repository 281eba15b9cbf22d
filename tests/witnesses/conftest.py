"""Fixtures of the witnesses' tests: a service whose sweep removes what its witness finds absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from .support import Service


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path / "belongings")
