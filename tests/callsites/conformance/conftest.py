"""The guarded classes are made once and keep the names that their parents' methods had then."""

from __future__ import annotations

from typing import Any

import pytest
import redis
import redis.asyncio

from safehold import Safehold
from safehold.callsites.redis import guard_client


@pytest.fixture(scope="session", autouse=True)
def made_before_anybody_patches() -> None:
    for kind in (redis.Redis, redis.asyncio.Redis):
        client: Any = guard_client(kind(), Safehold()["redis"])
        client.pipeline()
        client.pubsub()
