"""What a complete listing says of what it does not hold.

A listing has holes that do not look like holes: a page that failed, a limit that nobody mentioned, rights
that became narrower, a storage that is not mounted. So it supports absence only when it was read to its end
and what was known about it beforehand is there.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterable
from contextlib import contextmanager
from typing import Final

from .._core.configuration import ConfigurationError, check_count, check_number
from .._core.evidence import ABSENT, PRESENT, Presence
from .._core.unproven import Unproven
from .._runtime.clock import Clock, SystemClock

MAX_AGE: Final = 30.0
"""Seconds for which a listing says something, counted from before its first page."""


class Listing:
    """A listing, built from its pages in one go; make a new one for each round.

    `expected` is how many there are, from another source than the pages. `canary` is an item that is always
    listed, and `itself` the one that stands for whoever asks. An empty listing supports absence only with
    `expected=0`. After `max_age` seconds it supports none: what came since is not in it. `clock` tells them.
    Not for several threads at once.

        listing = Listing(expected=client.count(), canary="canary")
        for number in range(pages):
            with listing.page():
                listing.add(client.fetch(number))
        listing.complete()
        listing.presence("s1")
    """

    def __init__(
        self,
        *,
        expected: int | None = None,
        canary: Hashable = None,
        itself: Hashable = None,
        max_age: float = MAX_AGE,
        clock: Clock | None = None,
    ) -> None:
        if expected is not None:
            check_count("expected", expected, least=0)
        check_number("max_age", max_age, above=0)
        self._expected = expected
        self._visible = {"the canary": canary, "the asker itself": itself}
        self._max_age = max_age
        self._clock = SystemClock() if clock is None else clock
        self._began = self._clock.monotonic()
        self._seen: set[Hashable] = set()
        self._pages = 0
        self._complete = False
        self._spoilt = ""

    def add(self, items: Iterable[Hashable]) -> None:
        """Take the items of one page. A page that is none, or breaks off, spoils the listing and raises."""
        self._complete = False
        self._pages += 1
        try:
            if isinstance(items, str | bytes):
                msg = f"items must be the items of a page, got one {type(items).__name__}"
                raise ConfigurationError(msg)
            self._seen.update(items)
        except BaseException:
            self._spoil(f"page {self._pages} could not be read")
            raise

    @contextmanager
    def page(self) -> Generator[None]:
        """Read one page: `with listing.page(): listing.add(fetch(cursor))`.

        What is raised goes on, and spoils the listing for good, even if somebody swallows it. So does a block
        that adds nothing.
        """
        before = self._pages
        try:
            yield
        except BaseException:
            self._spoil(f"page {before + 1} could not be read")
            raise
        if self._pages == before:
            self._spoil(f"page {before + 1} was not added")

    def complete(self) -> None:
        """Say that the last page is in: call it only where the source itself said that there is no more."""
        self._complete = True

    @property
    def why(self) -> str:
        """Why it does not support absence; empty when it does."""
        if self._spoilt:
            return self._spoilt
        if not self._pages:
            return "it was never read"
        if not self._complete:
            return "it was not read to its end"
        if self._expected not in {None, len(self._seen)}:
            return f"it holds {len(self._seen)} of {self._expected}"
        for what, item in self._visible.items():
            if item is not None and item not in self._seen:
                return f"{what} is not in it"
        if not self._seen and self._expected is None:
            return "it is empty, and nothing says that it should be"
        age = self._clock.monotonic() - self._began
        return f"it was begun {age:.3g} s ago" if age > self._max_age else ""

    def presence(self, subject: Hashable) -> Presence:
        """Say whether the subject is listed; raises `Unproven` where that cannot be told."""
        if subject in self._seen:
            return PRESENT
        if why := self.why:
            raise Unproven(why)
        strange = {type(item).__name__ for item in self._seen} - {type(subject).__name__}
        if strange:  # "7" is not in a listing of numbers, whoever is
            msg = f"it lists {', '.join(sorted(strange))}, and was asked about a {type(subject).__name__}"
            raise Unproven(msg)
        return ABSENT

    def _spoil(self, why: str) -> None:
        self._spoilt = self._spoilt or why
