"""Write `src/safehold/callsites/_redis_commands.py`: what real servers say about their commands.

    python tools/redis_commands.py --server redis=/usr/bin/redis-server --server valkey=/opt/valkey-server

A server is a name and a command line (options such as `--loadmodule FILE` or `--sentinel` included), which is
started on a private socket and stopped again, or the URL of one that runs. Give many: the table knows what
any of them knows, and a command writes if one of them says so. With `--check` nothing is written, and the
exit status is 1 if the file differs.

Flags, ACL categories, key specifications and documented arguments decide. What they leave open, or get wrong,
stands here by name, in groups that give the reason; a name that no server knows ends the run.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis
from redis.commands import READ_COMMANDS

TARGET: Final = Path(__file__).parents[1] / "src/safehold/callsites/_redis_commands.py"


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Where some of a command's keys are, and what becomes of them: one key specification."""

    start: int | str | None
    """An index, the keyword before them, or unknown to the server."""
    counted: tuple[int, int] | None = None
    """How far from `start` their number stands, and the first of them."""
    last: int = 0
    """How far from `start` the last one is; negative counts from the end."""
    step: int = 1
    flags: frozenset[str] = frozenset()


@dataclass(kw_only=True)
class Command:
    """What all servers together say about one command."""

    flags: set[str] = field(default_factory=set)  # ACL categories too, which start with an @
    keys: set[Keys] = field(default_factory=set)
    words: set[str] = field(default_factory=set)  # documented as arguments
    container: bool = False


def _spelled(text: str) -> frozenset[str]:
    """Split lines of commands; after `CONFIG:` come its subcommands."""
    lines = (line.rpartition(":") for line in text.strip().splitlines())
    return frozenset(f"{box.strip()} {word}".strip() for box, _, words in lines for word in words.split())


def _takes(*keys: int, also: str = "") -> Command:
    """Describe a command that takes something away from these keys."""
    places = {Keys(start=key, flags=frozenset({"RW", "delete"})) for key in keys}
    return Command(flags={"write", *also.split()}, keys=places)


# --- what no server says ------------------------------------------------------------------------------

TELLS: Final = _spelled("""
    INFO LASTSAVE MONITOR ROLE TIME
    ACL: CAT DRYRUN GENPASS GETUSER LIST USERS WHOAMI
    CLIENT: LIST
    CLUSTER: COUNT-FAILURE-REPORTS COUNTKEYSINSLOT GETKEYSINSLOT GETSLOTMIGRATIONS INFO KEYSLOT LINKS MYID
    CLUSTER: MYSHARDID NODES REPLICAS SHARDS SLAVES SLOT-STATS SLOTS
    COMMANDLOG: GET LEN
    CONFIG: GET
    FUNCTION: DUMP LIST STATS
    LATENCY: DOCTOR GRAPH HISTOGRAM HISTORY LATEST
    MEMORY: DOCTOR MALLOC-STATS STATS
    MODULE: LIST
    SCRIPT: EXISTS SHOW
    SENTINEL: CKQUORUM GET-MASTER-ADDR-BY-NAME INFO-CACHE MASTER MASTERS MYID PENDING-SCRIPTS REPLICAS
    SENTINEL: SENTINELS SLAVES
    SLOWLOG: GET LEN
""")
"""They only tell; but `readonly` is a word for keys, and much of this is `admin` because it tells secrets."""

ACTS: Final = _spelled("""
    EXEC PUBLISH SPUBLISH
    CLIENT: IMPORT-SOURCE REPLY
""")
"""In harmless categories, and not harmless to send again: a second message is one too many, EXEC runs what
was queued, REPLY ends all answers, IMPORT-SOURCE shows keys that have expired."""

MISLABELLED: Final = _spelled("""
    CF.COMPACT FT.ALIASADD FT.ALIASDEL FT.ALIASUPDATE FT.CONFIG FT.CURSOR FT.DICTADD FT.DICTDEL
    FT._ALIASADDIFNX FT._ALIASDELIFX
""")
"""`readonly`, say their modules, of what changes aliases, dictionaries and settings, or uses a cursor up."""

DESTROYS: Final = _spelled("""
    MOVE XCLAIM
    FUNCTION: DELETE FLUSH
    SCRIPT: FLUSH
    XGROUP: SETID
""")
"""An update like any other to the server. For the others, the key has left this database, a message has left
the consumer that was at work on it, the scripts are gone, and the group never gets what it has skipped."""

MODULES_DESTROY: Final = _spelled("""
    CF.DEL FT.ALIASDEL FT.DEL FT.DICTDEL FT.DROP FT.DROPINDEX FT.SUGDEL FT._ALIASDELIFX FT._DROPIFX
    FT._DROPINDEXIFX JSON.ARRPOP JSON.ARRTRIM JSON.CLEAR JSON.DEL JSON.FORGET TDIGEST.RESET TS.DEL
    TS.DELETERULE VREM
""")
"""Modules say `RW access update` of every key, whatever becomes of it."""

SPARES: Final = _spelled("""
    PFSELFTEST PSYNC REPLCONF SYNC
    ACL: LOG
    CLIENT: NO-EVICT UNPAUSE
    COMMANDLOG: RESET
    CONFIG: RESETSTAT
    LATENCY: RESET
    SENTINEL: IS-MASTER-DOWN-BY-ADDR
    SLOWLOG: RESET
""")
"""`admin`, and all that they cost is statistics, logs or a vote, or they are what replicas say. SAVE and its
kind do not belong here: the last good snapshot makes way for what is held now, after a restart maybe nothing.
"""

REPLACES: Final = _spelled("""
    BF.LOADCHUNK CF.LOADCHUNK CMS.MERGE GETSET JSON.MERGE JSON.MSET JSON.SET SET
""")
"""Said to be `RW`: they may also give the old value back, or belong to modules."""

WORDS: Final = frozenset({"EX", "EXAT", "MAXLEN", "MINID", "PX", "PXAT", "REPLACE", "STORE", "STOREDIST"})
"""Arguments with which a writing command expires, trims or overwrites."""

NAMED: Final = (TELLS, ACTS, MISLABELLED, DESTROYS, MODULES_DESTROY, SPARES, REPLACES)

NEWER: Final = {
    "ARDEL": _takes(1),
    "ARDELRANGE": _takes(1),
    "BLMOVEM": _takes(1, 2, also="blocking"),
    "DELEX": _takes(1),
    "INCREX": Command(flags={"write"}, keys={Keys(start=1, flags=frozenset({"RW"}))}, words={"EX"}),
    "LMOVEM": _takes(1, 2),
}
"""redis-py sends them, to servers of Redis 8.4 and later that no package brings."""


# --- asking servers -----------------------------------------------------------------------------------


@contextmanager
def _served(command: str) -> Iterator[str]:
    """Run a server, or take one that runs, and give its URL."""
    if "://" in command:
        yield command
        return
    binary, *options = shlex.split(command)
    with tempfile.TemporaryDirectory() as place, Path(place, "log").open("w+") as log:
        url = f"unix://{place}/socket"
        settings = Path(place, "settings")  # a file, because a sentinel wants to write there
        settings.write_text(f'port 0\nunixsocket {place}/socket\nsave ""\ndir {place}\n')
        process = subprocess.Popen(  # noqa: S603 - the caller has named it
            [binary, settings, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + 20
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit(f"{command} does not come up:\n{log.read()}")
                time.sleep(0.02)
            yield url
        finally:
            process.kill()  # it has nothing to save
            process.wait()


def _answers(url: str) -> bool:
    with suppress(redis.ConnectionError), redis.Redis.from_url(url) as client:
        return bool(client.ping())
    return False


def _ask(url: str, commands: dict[str, Command]) -> str:
    """Add what a server knows; give its version and those of its modules."""
    with redis.Redis.from_url(url, protocol=3, decode_responses=True) as client:
        client.set_response_callback("COMMAND", lambda rows, **_: rows)  # redis-py's own leaves parts out
        for row in client.execute_command("COMMAND"):
            _add(row, commands)
        _add_words(client.execute_command("COMMAND DOCS"), commands)
        told: Any = client.info("everything")
    modules = ", ".join(sorted(f"{each['name']} {each['ver']}" for each in told.get("modules", ())))
    return f"{told.get('valkey_version', told['redis_version'])}{modules and f' with {modules}'}"


def _add(row: list[Any], commands: dict[str, Command]) -> None:
    name, _, flags, _, _, _, categories, _, keys, inner = row
    command = commands.setdefault(_named(name), Command())
    command.flags.update(flags, categories)
    command.keys |= {_keys(each) for each in keys}
    command.container |= bool(inner)
    for each in inner:
        _add(each, commands)


def _keys(said: dict[str, Any]) -> Keys:
    start, find = said["begin_search"]["spec"], said["find_keys"]["spec"]
    return Keys(
        start=start.get("index", start.get("keyword")),
        counted=(find["keynumidx"], find["firstkey"]) if "keynumidx" in find else None,
        last=find.get("lastkey", 0),
        step=find.get("keystep", 1),
        flags=frozenset(said["flags"]),
    )


def _add_words(docs: Mapping[str, Any], commands: dict[str, Command]) -> None:
    for name, said in docs.items():
        commands[_named(name)].words |= WORDS.intersection(_tokens(said.get("arguments", ())))
        _add_words(said.get("subcommands", {}), commands)


def _tokens(arguments: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for argument in arguments:
        yield argument.get("token", "")
        yield from _tokens(argument.get("arguments", ()))


def _named(name: str) -> str:
    return name.upper().replace("|", " ")


# --- deciding -----------------------------------------------------------------------------------------


def _reads(name: str, command: Command) -> bool:
    if "write" in command.flags or name in ACTS | MISLABELLED or ".DEBUG" in name:
        return False
    if {"module", "noscript"} <= command.flags:  # how shards talk to each other
        return False
    own = command.flags & {"@connection", "@pubsub", "@transaction"}  # of one connection, and ends with it
    return (
        "readonly" in command.flags
        or name in TELLS
        or name.endswith(" HELP")
        or bool(own and "admin" not in command.flags)
    )


def _destroys(name: str, command: Command) -> bool:
    if command.container or name in SPARES or _reads(name, command):
        return False
    done = {flag for keys in command.keys for flag in keys.flags}
    return bool(
        name in DESTROYS | MODULES_DESTROY
        or done & {"RM", "delete"}
        or (_overwrites(command) and "RO" in done)  # what it computes may be empty, and that deletes
        or ("write" in command.flags and name.endswith(("EXPIRE", "EXPIREAT")))
        or (not command.keys and command.flags & {"admin", "@dangerous"})
    )


def _overwrites(command: Command) -> bool:
    """Whether the old value is lost without an argument that says so."""
    always = (keys.flags for keys in command.keys if isinstance(keys.start, int))
    return "REPLACE" not in command.words and any({"OW", "update"} <= flags for flags in always)


def _range(name: str, command: Command) -> tuple[int, int, int] | None:
    """Join the places of the keys that are more than read."""
    ranges = sorted(
        (keys.start, keys.last if keys.last < 0 else keys.start + keys.last, keys.step)
        for keys in command.keys
        if isinstance(keys.start, int) and not keys.counted and not keys.flags & {"RO", "not_key"}
    )
    if not ranges:
        return None
    (first, last, step), *others = dict.fromkeys(ranges)
    for start, end, by in others:
        if (start, by) != (last + step, step):
            sys.exit(f"{name}: {ranges} are not one range")
        last = end
    return first, last, step


def _tables(commands: Mapping[str, Command]) -> dict[str, Any]:
    flagged = {flag: {n for n, c in commands.items() if flag in c.flags} for flag in ("write", "blocking")}
    destructive = {name for name, command in commands.items() if _destroys(name, command)}
    overwrites = {name for name, command in commands.items() if _overwrites(command)} | REPLACES
    conditional = {name for name in flagged["write"] if commands[name].words}
    gated = destructive | overwrites | conditional
    ranges = {name: place for name in gated if (place := _range(name, commands[name]))}
    places = [(name, keys) for name, command in commands.items() for keys in command.keys]
    return {
        "READS": {name for name, command in commands.items() if _reads(name, command)}
        | (READ_COMMANDS - commands.keys()),
        "WRITES": flagged["write"],
        "DESTRUCTIVE": destructive,
        "OVERWRITES": overwrites - destructive,
        "CONDITIONAL": conditional - destructive,
        "CONTAINERS": {name for name, command in commands.items() if command.container},
        "BLOCKING": flagged["blocking"],
        "KEYS": ranges,
        "NUMKEYS": {
            name: (keys.start + keys.counted[0], keys.start + keys.counted[1], keys.step)
            for name, keys in places
            if keys.counted and isinstance(keys.start, int) and name not in ranges
        },
        "KEYWORD": {
            name: keys.start for name, keys in places if isinstance(keys.start, str) and keys.last < 0
        },
    }


# --- writing ------------------------------------------------------------------------------------------

HEADER: Final = '''\
"""What Redis and Valkey commands do: generated by `tools/redis_commands.py`, not to be edited.

Names are in upper case, subcommands as `CONFIG SET`. Made from

{servers}
"""

# fmt: off

from __future__ import annotations

from typing import Final
'''

DOCS: Final = {
    "READS": "They change nothing but the state of their own connection, and may be sent again.",
    "WRITES": "Flagged `write`: they need a server that takes writes. Scripts are not, whatever they do.",
    "DESTRUCTIVE": "Whatever their arguments, what was there may be gone or out of reach, or get a deadline.",
    "OVERWRITES": "They put a value in a key, whatever it held.",
    "CONDITIONAL": "Destructive with some of their arguments.",
    "CONTAINERS": "The first words of subcommands. `COMMAND` is a command by itself, too.",
    "BLOCKING": "Flagged `blocking`: they may wait for something to happen.",
    "KEYS": """First, last and step of the keys that a command of the three tables changes.

They count the command's words, its name being 0; a negative last counts from the end. Keys that are only
read, such as the sources of a `*STORE`, are left out.
""",
    "NUMKEYS": "Where the number of keys stands, the first key and the step, of commands without `KEYS`.",
    "KEYWORD": """The word that is followed by keys, up to the end; after `STREAMS`, to the middle.

MIGRATE has its keys here if the one in `KEYS` is empty.
""",
}

PLACES: Final = "dict[str, tuple[int, int, int]]"
KINDS: Final = {"KEYS": PLACES, "NUMKEYS": PLACES, "KEYWORD": "dict[str, str]"}


def _module(servers: Iterable[str], found: Mapping[str, Any]) -> str:
    header = HEADER.format(servers="\n".join(f"- {server}" for server in servers))
    return "\n".join([header, *(_table(name, table) for name, table in found.items())])


def _table(name: str, table: Any) -> str:
    mapping = isinstance(table, dict)
    opening, closing = ("{", "}") if mapping else ("frozenset({", "})")
    items = (f"{key!r}: {table[key]!r}," if mapping else f"{key!r}," for key in sorted(table))
    glued = " ".join(item.replace(" ", "~").replace("'", '"') for item in items)  # no line ends in an item
    body = textwrap.indent(textwrap.fill(glued, 106, break_on_hyphens=False), "    ").replace("~", " ")
    kind = KINDS.get(name, "frozenset[str]")
    return f'{name}: Final[{kind}] = {opening}\n{body}\n{closing}\n"""{DOCS[name]}"""\n'


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Write the table of Redis commands.")
    parser.add_argument("--server", action="append", required=True, metavar="NAME=COMMAND", help="many times")
    parser.add_argument("--check", action="store_true", help="only compare")
    options = parser.parse_args()
    commands: dict[str, Command] = {}
    servers: list[str] = []
    for name, _, command in (server.partition("=") for server in options.server):
        with _served(command) as url:
            servers.append(f"{name} {_ask(url, commands)}")
    if known := NEWER.keys() & commands:
        sys.exit(f"not newer than these servers: {sorted(known)}")
    if unknown := set().union(*NAMED) - commands.keys():
        sys.exit(f"unknown to these servers: {sorted(unknown)}")
    text = _module(sorted(servers), _tables(commands | NEWER))
    if not options.check:
        TARGET.write_text(text, encoding="utf-8")
    elif TARGET.read_text(encoding="utf-8") != text:
        sys.exit(f"{TARGET} is not what these servers say")


if __name__ == "__main__":
    main()
