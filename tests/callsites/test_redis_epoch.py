"""Redis came back with other data, or was flushed: nothing is destroyed that only seems to be gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from safehold import Budget, ConfigurationError, GatePolicy, OperationBlocked, Safehold
from safehold.callsites.redis import (
    aredis_epoch,
    awrite_canary,
    guard_client,
    redis_epoch,
    write_canary,
)
from safehold.testing.clock import ManualClock
from safehold.testing.servers import RedisServer

from .support import PATIENCE, Side

SESSIONS = [f"s{number}" for number in range(20)]


class Service:
    """A service that deletes sessions whose record is gone, as its witness says, with complete proof."""

    def __init__(
        self,
        clock: ManualClock,
        side: Side,
        server: RedisServer,
        *,
        state: Path | None = None,
        db: int = 0,
        **options: Any,
    ) -> None:
        self.clock, self.side = clock, side
        self.health = health = Safehold("service", clock=clock, gate=GatePolicy(startup_grace=0.0))
        if state is not None:
            health.configure(state_dir=state)
            health.budget("session").reset(actor="ada", reason="a new directory")
        family = side.pick(redis, redis.asyncio)
        self.client = family.Redis.from_url(f"{server.url.removesuffix('/0')}/{db}", **options)
        self.dependency = health.dependency(
            "redis", critical=True, epoch=side.pick(redis_epoch, aredis_epoch)(self.client)
        )
        guard_client(self.client, self.dependency)
        self.deleted: list[str] = []
        budget = Budget(per_hour=100, share=1.0, population=self._population(), zero_ok=True)
        settings: dict[str, Any] = {"subject": "session", "evidence": "exists", "budget": budget}
        if side.is_async:

            @health.witness("redis", name="exists")
            async def aexists(session: str) -> bool:
                return bool(await self.client.exists(session))

            @health.destructive("session.delete", **settings)
            async def adelete(session: str) -> None:
                await self.client.delete(f"work:{session}")
                self.deleted.append(session)

            self.exists, self.delete = aexists, adelete
        else:

            @health.witness("redis", name="exists")
            def exists(session: str) -> bool:
                return bool(self.client.exists(session))

            @health.destructive("session.delete", **settings)
            def delete(session: str) -> None:
                self.client.delete(f"work:{session}")
                self.deleted.append(session)

            self.exists, self.delete = exists, delete

    def _population(self) -> Callable[[], Any]:
        async def acount() -> int:
            return len(await self.client.keys("work:*"))

        return acount if self.side.is_async else lambda: len(self.client.keys("work:*"))

    def look(self, session: str) -> None:
        self.side.do(self.exists, session)

    def reap(self, session: str, *, look: bool = True) -> list[str]:
        """Try to delete one; give why not."""
        with self.health.scope("sweep"):
            if look:
                self.look(session)
            try:
                self.side.do(self.delete, session)
            except OperationBlocked as blocked:
                return [reason.code for reason in blocked.reasons]
        return []

    def close(self) -> None:
        self.side.do(self.client.aclose if self.side.is_async else self.client.close)


@pytest.fixture
def server(redis_binary: str) -> Iterator[RedisServer]:
    with RedisServer(listen="tcp", binary=redis_binary) as server:
        yield server


@pytest.fixture(params=[{}, {"decode_responses": True}, {"protocol": 2}, {"protocol": 3}], ids=repr)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture
def make(clock: ManualClock, side: Side) -> Iterator[Callable[..., Service]]:
    made: list[Service] = []

    def make(server: RedisServer, **options: Any) -> Service:
        made.append(Service(clock, side, server, **options))
        return made[-1]

    yield make
    for service in made:
        service.close()


def provision(server: RedisServer) -> None:
    """Write the canary and the sessions: of each the record that says that it lives, and its work."""
    client = redis.Redis.from_url(server.url)
    write_canary(client)
    client.close()
    fill(server)


def fill(server: RedisServer) -> None:
    for session in SESSIONS:
        server.command("SET", session, "alive")
        server.command("SET", f"work:{session}", "precious")


def works(server: RedisServer) -> set[str]:
    keys: Any = server.command("KEYS", "work:*")
    return {key.removeprefix("work:") for key in keys}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_with_complete_proof_it_deletes(
    server: RedisServer, make: Callable[..., Service], options: dict[str, Any]
) -> None:
    """The twin of all that follow: the same service, the known data, one record that is really gone."""
    provision(server)
    service = make(server, **options)
    server.command("DEL", "s3")
    assert service.reap("s3") == []
    assert service.reap("s4") == ["evidence_present"]
    assert works(server) == set(SESSIONS) - {"s3"}
    assert service.dependency.epoch == 1, "a second reading of the same data is the same epoch"


def test_t29_killed_and_restarted_empty(
    server: RedisServer, make: Callable[..., Service], options: dict[str, Any], clock: ManualClock
) -> None:
    """A server that comes back empty is healthy and says that nobody is there: nothing is deleted."""
    provision(server)
    service = make(server, **options)
    service.look("s0")
    service.side.do(
        service.dependency.aread_epoch if service.side.is_async else service.dependency.read_epoch
    )
    server.kill()
    server.restart()
    for session in SESSIONS:  # whose works are back, as files on another disk would be: they never went
        server.command("SET", f"work:{session}", "precious")
    service.client.connection_pool.disconnect() if not service.side.is_async else None
    reasons = [service.reap(session) for session in SESSIONS]
    assert all("epoch_unexplained" in told for told in reasons[1:]), reasons
    assert service.deleted == []
    assert works(server) == set(SESSIONS)
    clock.advance(100_000)
    assert "epoch_unexplained" in service.reap("s1"), "time passing is no proof"
    service.dependency.acknowledge_epoch(actor="ada", reason="no persistence, INC-1")
    assert service.reap("s1") == []
    assert works(server) == set(SESSIONS) - {"s1"}


def test_t30_flushed_while_it_runs(
    server: RedisServer, make: Callable[..., Service], options: dict[str, Any]
) -> None:
    """A flush changes no run id and no replication id; the canary tells."""
    provision(server)
    service = make(server, **options)
    server.command("DEL", "s3")
    assert service.reap("s3") == []
    server.command("FLUSHDB")
    for session in SESSIONS:
        server.command("SET", f"work:{session}", "precious")
    assert "epoch_unexplained" in service.reap("s4")
    assert service.reap("s4") == ["epoch_unexplained"]
    with pytest.raises(OperationBlocked, match="canary 'safehold:canary' is missing"):
        service.side.do(service.delete, "s4")
    assert works(server) == set(SESSIONS)


def test_a_full_store_without_its_canary_needs_a_person(
    server: RedisServer, make: Callable[..., Service], clock: ManualClock
) -> None:
    """The population is back, and yet the canary is not: only a person says so, or writes a new one."""
    provision(server)
    service = make(server)
    assert service.reap("s3") == ["evidence_present"]
    server.command("FLUSHDB")
    fill(server)
    clock.advance(3600)
    server.command("DEL", "s3")
    assert "epoch_unexplained" in service.reap("s3")
    clock.advance(3600)
    assert service.reap("s3") == ["epoch_unexplained"]
    plain = redis.Redis.from_url(server.url)
    write_canary(plain)
    plain.close()
    assert "epoch_unexplained" in service.reap("s3"), "another canary is another history"
    clock.advance(30)
    assert service.reap("s3") == [], "and now the population is back and settled"
    assert works(server) == set(SESSIONS) - {"s3"}


def test_t31_the_canary_is_written_once(server: RedisServer, side: Side) -> None:
    """What is there stays as it is, and whoever wants to write it is told; nothing else ever writes it."""
    client = side.pick(redis, redis.asyncio).Redis.from_url(server.url)
    write = side.pick(write_canary, awrite_canary)
    value = side.do(write, client)
    with pytest.raises(ConfigurationError, match="there already"):
        side.do(write, client)
    assert server.command("GET", "safehold:canary") == value
    other = side.do(write, client, "other:canary")
    assert other != value
    server.command("FLUSHALL")
    epoch = side.pick(redis_epoch, aredis_epoch)(client)
    assert "missing" in side.do(epoch).doubt
    assert server.command("DBSIZE") == 0, "looking for it does not bring it back"
    side.do(client.aclose if side.is_async else client.close)


@pytest.mark.parametrize("kind", ["rdb", "aof"])
def test_restarted_with_its_file(redis_binary: str, make: Callable[..., Service], kind: str) -> None:
    """A file may be older than what was known. A server that does not say where it goes on is other data,
    until a person has looked, or the population is back for the settle time.
    """
    args = ("--save", "3600 1") if kind == "rdb" else ("--appendonly", "yes", "--appendfsync", "always")
    with RedisServer(listen="tcp", binary=redis_binary, args=args) as server:
        provision(server)
        service = make(server)
        server.command("DEL", "s3")
        assert service.reap("s3") == []
        if kind == "rdb":
            server.command("SAVE")
        server.kill()
        server.start()
        server.command("DEL", "s4")
        service.reap("s4")  # finds the connection broken
        assert "epoch_unexplained" in service.reap("s4")
        assert works(server) == set(SESSIONS) - {"s3"}
        service.clock.advance(3600)
        assert service.reap("s4") == []
        assert works(server) == set(SESSIONS) - {"s3", "s4"}


def replicate(redis_binary: str, primary: RedisServer) -> RedisServer:
    args = ("--replicaof", "127.0.0.1", str(primary.port), "--repl-diskless-sync-delay", "0")
    replica = RedisServer(listen="tcp", binary=redis_binary, args=args).start()
    wait_until(lambda: "master_link_status:up" in str(replica.command("INFO", "replication")))
    primary.command("WAIT", "1", "5000")
    return replica


class Pair:
    """A primary and its replica, and a service whose client is led from one to the other."""

    def __init__(self, redis_binary: str, make: Callable[..., Service], server: RedisServer) -> None:
        provision(server)
        self.primary, self.replica = server, replicate(redis_binary, server)
        self.service = make(server)

    def lead_over(self) -> None:
        pool = self.service.client.connection_pool
        self.service.side.do(pool.disconnect)
        pool.reset()
        pool.connection_kwargs["port"] = self.replica.port


@pytest.fixture
def pair(redis_binary: str, make: Callable[..., Service], server: RedisServer) -> Iterator[Pair]:
    pair = Pair(redis_binary, make, server)
    yield pair
    pair.replica.stop()


def test_a_replica_is_no_authority(pair: Pair) -> None:
    """It may lag by minutes: what it does not have may well be there. Promoted, it goes on with the history."""
    assert pair.service.reap("s3") == ["evidence_present"]
    pair.lead_over()
    assert "epoch_unexplained" in pair.service.reap("s5")
    with pytest.raises(OperationBlocked, match="this is a replica"):
        pair.service.side.do(pair.service.delete, "s5")


def test_failover_that_goes_on_is_explained(pair: Pair) -> None:
    """Evidence from before is void, as it belongs to another epoch; nothing is blocked for long."""
    service = pair.service
    pair.primary.command("DEL", "s3", "s4", "s5")
    assert service.reap("s3") == []
    with service.health.scope("sweep"):
        service.look("s4")
        pair.primary.command("WAIT", "1", "5000")
        pair.primary.kill()
        pair.replica.command("REPLICAOF", "NO", "ONE")
        pair.lead_over()
        with pytest.raises(OperationBlocked) as blocked:
            service.side.do(service.delete, "s4")
        assert [reason.code for reason in blocked.value.reasons] == ["evidence_overtaken"]
    assert works(pair.replica) == set(SESSIONS) - {"s3"}
    assert service.reap("s4") == []
    assert service.reap("s5") == []
    assert works(pair.replica) == set(SESSIONS) - {"s3", "s4", "s5"}


def test_failover_that_lost_what_was_seen_is_not(pair: Pair) -> None:
    """A replica that was behind what we had seen of the primary has lost records that are no deaths."""
    service = pair.service
    pair.replica.command("REPLICAOF", "127.0.0.1", "1")  # it hears no more
    for number in range(50):
        pair.primary.command("SET", f"late{number}", "alive")
    assert service.reap("s3") == ["evidence_present"]
    pair.primary.kill()
    assert pair.replica.command("EXISTS", "late49") == 0
    pair.replica.command("REPLICAOF", "NO", "ONE")
    pair.lead_over()
    assert "epoch_unexplained" in service.reap("late49")


def test_another_database_is_other_data(
    server: RedisServer, make: Callable[..., Service], tmp_path: Path
) -> None:
    """The same server, the same canary even: another logical database has another history."""
    provision(server)
    first = make(server, state=tmp_path / "state")
    server.command("DEL", "s3")
    assert first.reap("s3") == []
    server.command("COPY", "safehold:canary", "safehold:canary", "DB", "1")
    second = make(server, state=tmp_path / "state", db=1)
    assert "epoch_unexplained" in second.reap("s4")
    third = make(server, state=tmp_path / "state")
    server.command("DEL", "s4")
    assert third.reap("s4") == [], "and the known one is the known one, in a new process"


def test_the_observer_restarts_while_the_store_is_replaced(
    server: RedisServer, make: Callable[..., Service], tmp_path: Path
) -> None:
    """What was known survives, so a service that starts after the loss knows that it is one."""
    provision(server)
    first = make(server, state=tmp_path / "state")
    assert first.reap("s3") == ["evidence_present"]
    server.restart()
    provision(server)
    server.command("DEL", "s3")
    second = make(server, state=tmp_path / "state")
    assert "epoch_unexplained" in second.reap("s3")
    assert works(server) == set(SESSIONS)
    second.dependency.acknowledge_epoch(actor="ada", reason="moved")
    assert second.reap("s3") == []
    third = make(server, state=tmp_path / "state")
    server.command("DEL", "s4")
    assert third.reap("s4") == []


def test_a_user_who_may_not_ask(server: RedisServer, make: Callable[..., Service]) -> None:
    """Without the right to INFO nothing can be told; the text says what to allow, and that helps."""
    provision(server)
    server.command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-info")
    service = make(server, username="app", password="secret")
    server.command("DEL", "s3")
    with service.health.scope("sweep"):
        service.look("s3")
        with pytest.raises(OperationBlocked) as blocked:
            service.side.do(service.delete, "s3")
    told = {reason.code: reason.text for reason in blocked.value.reasons}
    assert "+info" in told["epoch_unknown"]
    assert works(server) == set(SESSIONS)
    server.command("ACL", "SETUSER", "app", "+info")
    service.clock.advance(1)
    assert service.reap("s3") == []


def test_an_unguarded_client_serves_as_well(server: RedisServer, side: Side) -> None:
    """The epoch function uses the client as it is; both kinds say the same."""
    provision(server)
    readings = []
    for options in ({}, {"decode_responses": True}, {"protocol": 3}):
        client = side.pick(redis, redis.asyncio).Redis.from_url(server.url, **options)
        readings.append(side.do(side.pick(redis_epoch, aredis_epoch)(client)))
        side.do(client.aclose if side.is_async else client.close)
    assert readings[0] == readings[1] == readings[2]
    assert (readings[0].doubt, readings[0].former) == ("", ())


def test_a_connection_out_of_step(server: RedisServer) -> None:
    """An answer to somebody else's question is none."""
    from safehold._runtime.records import EpochReading
    from safehold.callsites._redis_epoch import _Past
    from safehold.witnesses import Unproven

    client = redis.Redis.from_url(server.url)
    past = _Past(client, "safehold:canary")
    about = {"run_id": "r", "master_replid": "a", "role": "master"}
    assert isinstance(past.reading(["n", about, {}, b"c"], "n"), EpochReading)
    with pytest.raises(Unproven, match="another question"):
        past.reading(["n", about, {}, b"c"], "other")
    with pytest.raises(Unproven, match="INFO does not tell"):
        past.reading(["n", {}, {}, b"c"], "n")
    client.close()


def test_an_id_that_the_same_run_begins_anew_is_explained(server: RedisServer) -> None:
    """A primary without replicas for an hour gives itself a new id; another run that does is other data."""
    from safehold.callsites._redis_epoch import _Past

    client = redis.Redis.from_url(server.url)
    past = _Past(client, "safehold:canary")

    def read(run: str, history: str) -> Any:
        about = {"run_id": run, "master_replid": history, "role": "master", "master_replid2": "0" * 40}
        return past.reading(["n", about, {}, b"c"], "n")

    first = read("r", "a")
    second = read("r", "b")
    assert second.former == (first.lineage,)
    assert read("r", "b") == second, "and stays what it is"
    assert read("q", "c").former == ()
    client.close()


def test_cluster_clients_are_turned_away() -> None:
    """A cluster has many histories; the message says so at once."""
    with pytest.raises(ConfigurationError, match="one server"):
        redis_epoch(redis.RedisCluster.__new__(redis.RedisCluster))
    with pytest.raises(ConfigurationError, match="canary"):
        redis_epoch(redis.Redis(), canary="")
