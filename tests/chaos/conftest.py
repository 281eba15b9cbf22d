"""Fixtures of the fault matrix: a world of its own for each test, which leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .sides import Side
from .world import World, nothing_left


@pytest.fixture(params=["sync", "asyncio"])
def side(request: pytest.FixtureRequest) -> Iterator[Side]:
    side = Side(request.param)
    yield side
    side.close()


@pytest.fixture
def make_world(side: Side, redis_binary: str, tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Make the test's world, with a server, a client or a policy of another kind if need be."""
    made: list[World] = []

    def make(**how: Any) -> World:
        made.append(World(side, redis_binary, tmp_path, **how))
        return made[-1]

    with nothing_left(side):
        yield make
        for world in made:
            world.close()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()
