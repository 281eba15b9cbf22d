"""What a listing says of what it does not hold: only when it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from safehold import ConfigurationError
from safehold.testing.clock import ManualClock
from safehold.witnesses import Listing, Unproven

from .support import ABSENT, PRESENT, Service, unproven

ALL = [f"s{number}" for number in range(1, 75)]
PAGES = [ALL[:30], ALL[30:60], ALL[60:]]


def listed(pages: list[Any] = PAGES, **options: Any) -> Listing:
    listing = Listing(**options)
    for page in pages:
        with listing.page():
            listing.add(page)
    listing.complete()
    return listing


def test_a_whole_listing_is_acted_upon(service: Service) -> None:
    """The positive twin of all that follows: what is listed stays, what is not goes."""
    listing = listed(expected=74, canary="s1", itself="s74")
    assert listing.why == ""
    assert service.sweep(listing.presence, "s1", "s40", "gone") == {"s1", "s40"}


def test_t12_never_read_is_not_read_and_empty(service: Service) -> None:
    """Nobody has asked: nothing is known. Somebody has, and there is nothing: that is an answer."""
    assert service.why(Listing(expected=0).presence, "s1") == "it was never read"
    never = Listing(expected=0)
    never.complete()
    assert service.why(never.presence, "s1") == "it was never read"
    assert service.sweep(listed([[]], expected=0).presence, "s1") == set()


def test_an_empty_listing_needs_to_be_expected(service: Service) -> None:
    """Storage that is not mounted lists nothing, and is quick about it."""
    assert "empty" in service.why(listed([[]]).presence)
    assert "canary" in service.why(listed([[]], canary="canary").presence)
    assert "0 of 74" in service.why(listed([[]], expected=74).presence)
    assert service.sweep(listed([["canary"]], canary="canary").presence, "s1") == set()


def failing(page: list[str]) -> Iterator[str]:
    yield from page[:3]
    raise TimeoutError


def swallowed_in_the_fetch(listing: Listing) -> None:
    def fetch() -> list[str]:
        raise TimeoutError

    with suppress(TimeoutError), listing.page():
        listing.add(fetch())


def swallowed_midway(listing: Listing) -> None:
    with suppress(TimeoutError):
        listing.add(failing(PAGES[1]))


def swallowed_inside(listing: Listing) -> None:
    with listing.page(), suppress(TimeoutError):
        raise TimeoutError


@pytest.mark.parametrize("fail", [swallowed_in_the_fetch, swallowed_midway, swallowed_inside])
def test_t21_a_page_that_failed_spoils_the_pass(service: Service, fail: Any) -> None:
    """Also where somebody swallows it and goes on; what was seen is there all the same."""
    listing = Listing()
    listing.add(PAGES[0])
    fail(listing)
    listing.add(PAGES[2])
    listing.complete()
    assert "page 2" in service.why(listing.presence, "s99")
    assert service.sweep(listing.presence, "s1", "s40", "s99") == {"s1", "s40", "s99"}
    assert service.seen["s1"].presence == "present"
    assert service.sweep(listed().presence, "s99") == {"s1", "s40"}


def test_t21_a_failed_page_goes_on(service: Service) -> None:
    """It is not ours to swallow."""
    listing = Listing()
    with pytest.raises(TimeoutError), listing.page():
        raise TimeoutError
    with pytest.raises(TimeoutError):
        listing.add(failing(ALL))


@pytest.mark.parametrize("page", [None, 7, "s1", b"s1"])
def test_a_page_that_is_none(page: Any) -> None:
    """`null`, a number, one item in the place of several."""
    listing = Listing()
    with pytest.raises((TypeError, ConfigurationError)):
        listing.add(page)
    listing.complete()
    assert "page 1" in unproven(listing.presence, "s2")


def test_t22_a_listing_that_is_capped(service: Service) -> None:
    """It ends without error, and an independent count says that there are more."""
    assert service.why(listed(PAGES[:1], expected=74).presence, "s40") == "it holds 30 of 74"
    assert service.sweep(listed(expected=74).presence, "s40", "s99") == {"s40"}


def test_more_than_expected_is_no_agreement() -> None:
    """One of the two is wrong."""
    assert "74 of 73" in unproven(listed(expected=73).presence, "s99")


def test_items_that_come_twice_count_once() -> None:
    """As cursors do give them."""
    assert listed([*PAGES, PAGES[0]], expected=74).presence("s99") is ABSENT


@pytest.mark.parametrize(
    ("lacks", "why"), [("s1", "the canary is not in it"), ("s74", "the asker itself is not in it")]
)
def test_t25_what_has_to_be_visible(service: Service, lacks: str, why: str) -> None:
    """The canary, and whoever asks: either is enough to make it unknown."""
    pages = [[item for item in page if item != lacks] for page in PAGES]
    assert service.why(listed(pages, canary="s1", itself="s74").presence, "s99") == why
    assert service.sweep(listed(canary="s1", itself="s74").presence, "s99") == set()


def test_a_listing_that_was_not_read_to_its_end() -> None:
    """Adding another page takes back that it was."""
    listing = Listing()
    listing.add(PAGES[0])
    assert "end" in unproven(listing.presence, "s99")
    listing.complete()
    assert listing.presence("s99") is ABSENT
    listing.add(PAGES[1])
    assert "end" in unproven(listing.presence, "s99")


def test_an_old_listing_says_nothing_new() -> None:
    """What came since it was begun is not in it; what it saw is still more than nothing."""
    clock = ManualClock()
    listing = listed(max_age=30.0, clock=clock)
    for seconds in (0.0, 29.999, 0.001):
        clock.advance(seconds)
        assert listing.presence("s99") is ABSENT
    clock.advance(0.001)
    assert "30 s ago" in unproven(listing.presence, "s99")
    assert listing.presence("s1") is PRESENT


@pytest.mark.parametrize(("items", "subject"), [([1, 2], "7"), ([b"s1"], "s1"), (["7"], 7), ([1, "7"], 8)])
def test_items_of_another_kind(items: list[Any], subject: Any) -> None:
    """Bytes are never in a listing of text, whoever is there."""
    assert "was asked about" in unproven(listed([items]).presence, subject)


def test_items_of_one_kind() -> None:
    """Whatever kind that is."""
    assert listed([[1, 2]]).presence(7) is ABSENT
    assert listed([[b"s1"]]).presence(b"s2") is ABSENT
    assert listed([[("a", 1)]]).presence(("a", 2)) is ABSENT


@pytest.mark.parametrize("options", [{"expected": -1}, {"expected": True}, {"max_age": 0}])
def test_settings_that_cannot_work(options: dict[str, Any]) -> None:
    """Said where the listing is made."""
    with pytest.raises(ConfigurationError):
        Listing(**options)


def test_why_is_there_without_asking() -> None:
    """For a log line; `presence` raises the same words."""
    listing = Listing()
    assert listing.why == "it was never read"
    with pytest.raises(Unproven, match=listing.why):
        listing.presence("s1")
