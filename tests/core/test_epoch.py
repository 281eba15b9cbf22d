"""Which data it is: changes that are explained, changes that are not, and readings that contradict each other."""

from __future__ import annotations

from typing import Any

import pytest

from safehold import ConfigurationError, EpochReading
from safehold._core.epoch import Epoch


def reading(lineage: str = "a", **more: Any) -> EpochReading:
    return EpochReading(lineage=lineage, **more)


def see(epoch: Epoch, found: EpochReading, now: float = 0.0) -> bool:
    return epoch.see(found, now, epoch.turn)


@pytest.fixture
def epoch() -> Epoch:
    """One that knows the data of lineage "a"."""
    epoch = Epoch()
    assert not see(epoch, reading())
    return epoch


def test_nothing_is_known_before_the_first_reading() -> None:
    """Not read is not well."""
    epoch = Epoch()
    assert epoch.failed
    see(epoch, reading())
    assert (epoch.failed, epoch.unexplained, epoch.number) == ("", "", 1)
    assert epoch.accepted == reading()


@pytest.mark.parametrize(
    ("found", "number", "is_explained"),
    [
        (reading(), 1, True),
        (reading(instance="another run"), 2, True),
        (reading("b", former=("a",)), 2, True),
        (reading("b", former=("z", "a")), 2, True),
        (reading("b"), 2, False),
        (reading("b", former=("z",)), 2, False),
        (reading("b", former=("ab",)), 2, False),
        (reading(doubt="the canary is missing"), 2, False),
        (reading("b", former=("a",), doubt="a replica"), 2, False),
    ],
)
def test_what_explains_a_change(epoch: Epoch, found: EpochReading, number: int, is_explained: bool) -> None:
    """Every change is a new epoch; only the same history, or one that goes on from it, is explained."""
    assert see(epoch, found, 5.0) is (number == 2)
    assert (epoch.number, not epoch.unexplained) == (number, is_explained)
    assert epoch.accepted == (found if is_explained else reading())


def test_two_failovers_between_two_readings_are_not_explained(epoch: Epoch) -> None:
    """Nobody saw the one in the middle."""
    see(epoch, reading("c", former=("b",)))
    assert epoch.unexplained


def test_the_known_data_comes_back(epoch: Epoch) -> None:
    """Then it is known again, in an epoch of its own."""
    see(epoch, reading("b"))
    see(epoch, reading())
    assert (epoch.unexplained, epoch.number) == ("", 3)


def test_a_person_accepts(epoch: Epoch) -> None:
    """From there on that is the known data, and the old one is not."""
    see(epoch, reading("b"))
    epoch.accept()
    assert not epoch.unexplained
    see(epoch, reading("b"))
    assert (epoch.unexplained, epoch.number) == ("", 2)
    see(epoch, reading())
    assert epoch.unexplained


def test_the_settle_time_begins_with_each_change(epoch: Epoch) -> None:
    """By nothing, just under, exactly and past it; another change begins it again."""
    see(epoch, reading("b"), 100.0)
    assert not epoch.rebase(129.0, 30.0)
    see(epoch, reading("b"), 129.0)
    see(epoch, reading("c"), 130.0)
    assert not epoch.rebase(159.5, 30.0)
    assert epoch.rebase(160.0, 30.0)
    assert (epoch.unexplained, epoch.accepted) == ("", reading("c"))
    assert not epoch.rebase(1000.0, 30.0), "there is nothing more to accept"


@pytest.mark.parametrize("doubt", ["this is a replica", "the canary is missing"])
def test_what_is_doubtful_in_itself_needs_a_person(epoch: Epoch, doubt: str) -> None:
    """A replica may be full; that makes it no authority."""
    see(epoch, reading(doubt=doubt), 0.0)
    assert not epoch.rebase(1e6, 30.0)
    epoch.accept()
    see(epoch, reading(doubt=doubt), 0.0)
    assert not epoch.unexplained


def test_what_cannot_be_read_now_is_not_accepted_now(epoch: Epoch) -> None:
    """The population may be back, and yet nobody knows of what."""
    see(epoch, reading("b"), 0.0)
    epoch.miss("timed out")
    assert not epoch.rebase(1e6, 30.0)
    see(epoch, reading("b"), 0.0)
    assert epoch.rebase(1e6, 30.0)


def test_a_late_reading_clears_nothing(epoch: Epoch) -> None:
    """One that looked before the loss, and is told after it was found, does not undo it."""
    began = epoch.turn
    see(epoch, reading("b"), 1.0)
    epoch.see(reading(), 2.0, began)
    assert epoch.unexplained
    assert epoch.failed
    assert epoch.number == 3
    see(epoch, reading("b"), 3.0)
    assert (bool(epoch.unexplained), epoch.failed) == (True, "")


def test_a_late_reading_does_not_hide_a_failure(epoch: Epoch) -> None:
    """One that looked before a reading failed says nothing of the time after it."""
    began = epoch.turn
    epoch.miss("timed out")
    epoch.see(reading(), 2.0, began)
    assert epoch.failed == "timed out"
    see(epoch, reading())
    assert (epoch.failed, epoch.number) == ("", 1)


def test_late_readings_that_agree_disturb_nobody(epoch: Epoch) -> None:
    """Many at once, all the same: it is what it was."""
    fresh = Epoch()
    for _ in range(3):
        fresh.see(reading(), 0.0, 0)
    assert (fresh.failed, fresh.unexplained, fresh.number) == ("", "", 1)


def test_a_late_reading_that_is_bad_news_blocks(epoch: Epoch) -> None:
    """Of two at once that differ, nobody knows which is newer."""
    began = epoch.turn
    see(epoch, reading("b", former=("a",)), 1.0)
    epoch.see(reading("c"), 1.0, began)
    assert epoch.failed
    see(epoch, reading("c"), 2.0)
    assert epoch.unexplained


@pytest.mark.parametrize(
    "wrong",
    [
        {"lineage": ""},
        {"lineage": None},
        {"lineage": 5},
        {"lineage": "a", "former": "ab"},
        {"lineage": "a", "former": ["b"]},
        {"lineage": "a", "former": ("",)},
        {"lineage": "a", "former": (1,)},
        {"lineage": "a", "instance": None},
        {"lineage": "a", "doubt": True},
    ],
)
def test_a_reading_checks_itself(wrong: dict[str, Any]) -> None:
    """What is no text, or would be taken apart letter by letter, is named at once."""
    with pytest.raises(ConfigurationError, match=r"lineage|former|instance|doubt"):
        EpochReading(**wrong)
