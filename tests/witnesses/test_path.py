"""Whether a path is there: ENOENT alone is absence, and only while its storage is there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from safehold.witnesses import path

from .support import ABSENT, PRESENT, Service, unproven


@pytest.fixture
def work(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    (work / "live").mkdir(parents=True)
    (work / ".canary").touch()
    return work


@contextmanager
def not_allowed_to_look_into(directory: Path) -> Iterator[None]:
    """Take our rights away, also where we are root."""
    directory.chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
            directory.chmod(0o700)
    else:
        yield
        directory.chmod(0o700)


def test_used_whole(service: Service, work: Path) -> None:
    """One line makes it a witness, which says why it cannot tell."""
    there = service.health.witness("source", name="workdir_there")(path)
    assert there(work / "live").presence is PRESENT
    gone = there(str(work / "gone"))
    assert (gone.presence, gone.subject, gone.why) == (ABSENT, str(work / "gone"), "")
    assert there(work / "none" / "x").why == "the directory that would hold it is missing: the storage may be"


@pytest.mark.parametrize("kind", ["file", "directory", "fifo", "dangling link"])
def test_what_is_there_is_present(work: Path, kind: str) -> None:
    """Whatever it is."""
    one = work / "one"
    make: dict[str, Any] = {
        "file": one.touch,
        "directory": one.mkdir,
        "fifo": lambda: os.mkfifo(one),
        "dangling link": lambda: one.symlink_to(work / "nowhere"),
    }
    make[kind]()
    assert path(one) is PRESENT
    one.rmdir() if kind == "directory" else one.unlink()
    assert path(one) is ABSENT


def test_t05_only_enoent_is_absence(service: Service, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time-out, a stale handle, a lack of rights: `os.path.exists` takes all of them for absence."""
    real = Path.lstat
    wanted: list[int] = []

    def lstat(asked: Path) -> os.stat_result:
        if wanted and asked == work / "s1":
            raise OSError(wanted[0], os.strerror(wanted[0]))
        return real(asked)

    monkeypatch.setattr(Path, "lstat", lstat)
    for number in (errno.ETIMEDOUT, errno.EACCES, errno.ESTALE, errno.EIO, errno.EHOSTDOWN, errno.ENOTCONN):
        wanted[:] = [number]
        assert service.why(lambda subject: path(work / subject)) == os.strerror(number).lower()
        service.source.reset()
        service.source.report("success")
    wanted.clear()
    assert service.sweep(lambda subject: path(work / subject), "s1", "live") == {"live"}


def test_t05_rights_for_real(service: Service, work: Path) -> None:
    """The kernel's own EACCES."""
    with not_allowed_to_look_into(work):
        assert not os.path.exists(work / "s1")
        with pytest.raises(PermissionError):
            path(work / "s1")
    assert path(work / "s1") is ABSENT


def test_surprises_are_raised(work: Path) -> None:
    """A file where a directory should be, a loop, a name that is too long."""
    (work / "file").touch()
    (work / "loop").symlink_to(work / "loop")
    for odd, number in (("file/x", errno.ENOTDIR), ("loop/x", errno.ELOOP), ("x" * 300, errno.ENAMETOOLONG)):
        with pytest.raises(OSError) as caught:
            path(work / odd)
        assert caught.value.errno == number
    with pytest.raises(ValueError):
        path(str(work) + "/a\0b")
    assert path(work / "x") is ABSENT


def test_a_link_that_leads_nowhere(work: Path) -> None:
    """The link is there; of what it points to nothing is known, since that may lie on another storage."""
    link = work / "link"
    link.symlink_to(work / "target")
    assert path(link) is PRESENT
    assert "link" in unproven(path, link, follow_symlinks=True)
    (work / "target").touch()
    assert path(link, follow_symlinks=True) is PRESENT
    link.unlink()
    assert path(link, follow_symlinks=True) is ABSENT


@pytest.mark.parametrize("odd", ["", ".", "gone", "../gone"])
def test_a_path_that_names_no_one_file(odd: str) -> None:
    """For the kernel the empty path is ENOENT, and a relative one is another file after `chdir`."""
    assert "absolute" in unproven(path, odd)


def test_a_slash_at_the_end(work: Path) -> None:
    """It changes nothing: neither what is asked about, nor what would hold it."""
    assert path(f"{work}/live/") is PRESENT
    assert path(f"{work}/gone/") is ABSENT


def test_t27_an_unmounted_storage_is_no_absence(service: Service, work: Path) -> None:
    """What is left of it is an empty directory, where nothing lies: the canary does not, either."""
    ask = partial(path, canary=work / ".canary")
    away = work.with_name("away")
    work.rename(away)
    work.mkdir()
    assert path(work / "s1") is ABSENT, "without a canary it cannot be known"
    assert service.why(lambda subject: ask(work / subject)) == "the canary is missing: the storage may be"
    work.rmdir()
    away.rename(work)
    service.source.report("success")
    assert service.sweep(lambda subject: ask(work / subject), "s1", "live") == {"live"}


def test_t27_a_missing_storage_stops_the_whole_sweep(service: Service, work: Path) -> None:
    """It is a miss: what another storage says of the next subject is not acted upon in this sweep."""
    away = work.with_name("away")
    away.mkdir()

    def there(subject: str) -> Any:
        return path(away / subject if subject == "s2" else work / "gone" / subject)

    assert service.sweep(there, "s1", "s2") == {"s1", "s2"}
    service.source.report("success")
    assert service.sweep(there, "s2") == {"s1"}


def test_t27_a_storage_that_goes_while_it_is_asked(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary is looked for after the answer as well."""
    real = Path.lstat
    away = work.with_name("away")

    def lstat(asked: Path) -> os.stat_result:
        work.rename(away)
        work.mkdir()
        return real(asked)

    monkeypatch.setattr(Path, "lstat", lstat)
    assert "canary" in unproven(path, work / "live", canary=work / ".canary")


def test_the_canary_lies_on_the_same_storage(work: Path) -> None:
    """One on another storage says nothing, though it is there."""
    elsewhere = Path("/proc/version")
    assert "another storage" in unproven(path, work / "gone", canary=elsewhere)
    assert path(work / "gone", canary=work / ".canary") is ABSENT


def test_a_mount_point_has_to_be_one(work: Path) -> None:
    """Where nothing is mounted nothing is proven; where something is, only of what lies on it."""
    assert "mounted" in unproven(path, work / "gone", mount=work)
    assert "does not lie" in unproven(path, work / "gone", mount="/proc")
    assert path("/proc/gone", mount="/proc") is ABSENT
    assert path("/proc/version", mount="/proc") is PRESENT


def test_a_canary_in_one_line(service: Service, work: Path) -> None:
    """A partial is a witness, too."""
    there: Any = service.health.witness("source", name="there")(partial(path, canary=work / ".canary"))
    assert there(work / "gone").presence is ABSENT
    (work / ".canary").unlink()
    assert there(work / "gone").why == "the canary is missing: the storage may be"
