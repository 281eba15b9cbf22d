"""The windows against a naive list, and at their edges."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehold._core.configuration import ConfigurationError
from safehold._core.window import BUCKETS, CountWindow, TimeWindow, Totals, counted


class Fed:
    """A log together with the tally that numbers its outcomes, as a generation keeps them."""

    def __init__(self, window: CountWindow | TimeWindow, now: float = 0.0) -> None:
        self.log = window.log(now)
        self.tally = count()

    def add(
        self, now: float = 0.0, *, failed: bool = False, slow: bool = False, plainly: bool = True
    ) -> None:
        number = next(self.tally)
        if failed or slow or plainly:
            self.log.add(number, now, failed=failed, slow=slow)

    def totals(self, now: float = 0.0) -> Totals:
        return self.log.totals(counted(self.tally), now)


class Past(NamedTuple):
    at: float
    failed: bool
    slow: bool


def total(outcomes: list[Past]) -> Totals:
    return Totals(len(outcomes), sum(o.failed for o in outcomes), sum(o.slow for o in outcomes))


def test_a_tally_can_be_read_without_moving_it() -> None:
    """Looking at a tally is not counting."""
    tally = count()
    for number in range(1000):
        assert counted(tally) == number
        assert counted(tally) == number
        next(tally)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 100])
def test_a_failure_is_inside_for_exactly_the_size(size: int) -> None:
    """The last `size` outcomes are judged: the oldest leaves when one more arrives, not before."""
    fed = Fed(CountWindow(size))
    fed.add(failed=True, slow=True)
    for older in range(1, size):
        assert fed.totals() == (older, 1, 1)
        fed.add(plainly=False)
    assert fed.totals() == (size, 1, 1)
    fed.add(plainly=False)
    assert fed.totals() == (size, 0, 0)


def test_slow_and_failed_leave_on_their_own() -> None:
    """Being slow and having failed are two facts of one outcome, counted apart."""
    fed = Fed(CountWindow(2))
    fed.add(failed=True, slow=True)
    fed.add(slow=True)
    assert fed.totals() == (2, 1, 2)
    fed.add()
    assert fed.totals() == (2, 0, 1)
    fed.add(failed=True)
    assert fed.totals() == (2, 1, 0)


@given(
    size=st.integers(1, 12),
    outcomes=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()), max_size=60),
)
def test_a_count_window_is_the_end_of_a_list(
    size: int, outcomes: list[tuple[bool, bool, bool, bool]]
) -> None:
    """Whether plain successes are added or only numbered, and however often it is read."""
    fed, past = Fed(CountWindow(size)), []
    for failed, slow, plainly, read in outcomes:
        fed.add(failed=failed, slow=slow, plainly=plainly)
        past.append(Past(0.0, failed, slow))
        if read:
            assert fed.totals() == total(past[-size:])
    assert fed.totals() == total(past[-size:])


def test_a_count_window_keeps_no_more_than_it_judges() -> None:
    """Memory is bounded by the size, however long a generation lives."""
    fed = Fed(CountWindow(5))
    for _ in range(10_000):
        fed.add(failed=True, slow=True)
        fed.totals()
    assert len(fed.log._failures) == len(fed.log._slow) == 5


@pytest.mark.parametrize(
    "length", [0.1, 0.3, 0.5, 0.7, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 30.0, 60.0, 1e-6, 86400.0]
)
def test_an_outcome_as_old_as_the_window_is_outside(length: float) -> None:
    """At exactly its length an outcome has left; just under it is inside."""
    fed = Fed(TimeWindow(length))
    fed.add(0.0, failed=True)
    assert fed.totals(length * 0.9375) == (1, 1, 0)
    assert fed.totals(length) == (0, 0, 0)


def test_a_bucket_leaves_as_a_whole_when_its_first_instant_does() -> None:
    """An outcome late in its bucket leaves with it: up to a tenth early, never late."""
    fed = Fed(TimeWindow(10.0))
    fed.add(0.75, failed=True)
    fed.add(1.0)
    assert fed.totals(9.75) == (2, 1, 0)
    assert fed.totals(10.0) == (1, 0, 0)
    assert fed.totals(10.75) == (1, 0, 0)
    assert fed.totals(11.0) == (0, 0, 0)


def test_reading_alone_lets_time_pass() -> None:
    """What is old leaves without a new outcome."""
    fed = Fed(TimeWindow(10.0))
    for second in range(10):
        fed.add(float(second))
    assert [fed.totals(10.0 + second)[0] for second in range(11)] == [*list(range(9, -1, -1)), 0]


@pytest.mark.parametrize("gap", [10.0, 11.0, 1e3, 1e9])
def test_a_long_idle_time_leaves_nothing_behind(gap: float) -> None:
    """After a gap as long as the window the count begins anew."""
    fed = Fed(TimeWindow(10.0))
    for _ in range(50):
        fed.add(3.0, failed=True)
    fed.add(3.0 + gap, failed=True)
    assert fed.totals(3.0 + gap) == (1, 1, 0)


def test_a_window_that_is_full_keeps_ten_buckets() -> None:
    """Memory does not grow with traffic."""
    fed = Fed(TimeWindow(1.0))
    for step in range(5000):
        fed.add(step / 100, failed=True)
    assert len(fed.log._buckets) <= BUCKETS
    assert fed.totals(49.99).calls == 100


def test_an_outcome_that_comes_in_out_of_order_is_taken_for_one_of_now() -> None:
    """A report with an older instant than the last one is counted, and leaves with the newest."""
    fed = Fed(TimeWindow(10.0))
    fed.add(5.0)
    fed.add(2.0, failed=True)
    assert fed.totals(5.0) == (2, 1, 0)
    assert fed.totals(14.75) == (2, 1, 0)
    assert fed.totals(15.0) == (0, 0, 0)


def test_while_time_stands_still_everything_counts() -> None:
    """Equal instants share a bucket."""
    fed = Fed(TimeWindow(10.0), now=1e6)
    for _ in range(1000):
        fed.add(1e6, failed=True, slow=True)
    assert fed.totals(1e6) == (1000, 1000, 1000)


@given(
    start=st.sampled_from([0.0, -64.0, 3.25, 1e6]),
    steps=st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.booleans()), max_size=60),
)
def test_a_time_window_lies_between_nine_and_ten_tenths(
    start: float, steps: list[tuple[int, bool, bool]]
) -> None:
    """Everything younger than nine tenths of the length is counted, nothing as old as the length is."""
    length, now, past = 8.0, start, []
    fed = Fed(TimeWindow(length), now=start)
    for quarters, failed, slow in steps:
        now += quarters * 0.25
        fed.add(now, failed=failed, slow=slow)
        past.append(Past(now, failed, slow))
        least = total([o for o in past if now - o.at <= length * (BUCKETS - 1) / BUCKETS])
        most = total([o for o in past if now - o.at < length])
        there = fed.totals(now)
        assert all(a <= b <= c for a, b, c in zip(least, there, most, strict=True))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: CountWindow(0), "window size"),
        (lambda: CountWindow(-1), "window size"),
        (lambda: CountWindow(2.0), "window size"),
        (lambda: CountWindow(True), "window size"),
        (lambda: CountWindow("5"), "window size"),
        (lambda: TimeWindow(0), "window length"),
        (lambda: TimeWindow(-1.0), "window length"),
        (lambda: TimeWindow(float("nan")), "window length"),
        (lambda: TimeWindow(float("inf")), "window length"),
        (lambda: TimeWindow(True), "window length"),
        (lambda: TimeWindow(None), "window length"),
        (lambda: TimeWindow(10**400), "window length"),
    ],
)
def test_a_window_that_cannot_work_is_refused(make: Callable[[], Any], name: str) -> None:
    """Every bad size or length is a configuration error that names what it was."""
    with pytest.raises(ConfigurationError, match=name):
        make()
