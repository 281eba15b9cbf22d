"""One real Redis and one proxy in front of it, and a maker of worlds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from safehold.testing import FaultProxy, RedisServer

from .world import World


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer(listen="tcp") as running:
        yield running


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(f"127.0.0.1:{server.port}") as running:
        yield running


@pytest.fixture
def make(server: RedisServer, proxy: FaultProxy) -> Callable[..., World]:
    """Make a world; `off` switches rules of its gate off."""

    def maker(**settings: Any) -> World:
        return World(server, proxy, **settings)

    return maker
