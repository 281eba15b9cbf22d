"""The process that suspects itself: what its beats and its clocks say, with no clock and no thread in sight."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safehold._core.observer import (
    BEAT,
    JUMP,
    LEAST_STALL,
    PROCESS,
    QUIET,
    SLEW,
    STALL,
    Observer,
    Sickness,
)

LIMIT = BEAT + STALL
TINY = 0.001
WALL = 1_700_000_000.0


class World:
    """Three clocks, moved by hand, and an observer that is asked and told with what they show."""

    def __init__(self, *, boottime: bool = True) -> None:
        self.monotonic = 1000.0
        self.wall = WALL
        self.boottime: float | None = 5000.0 if boottime else None
        self.observer = Observer()
        self.beat()

    def passes(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds
        if self.boottime is not None:
            self.boottime += seconds

    def sleeps(self, seconds: float) -> None:
        self.wall += seconds
        if self.boottime is not None:
            self.boottime += seconds

    def beat(self, source: str = PROCESS) -> None:
        self.observer.beat(source, self.monotonic, self.wall, self.boottime)

    def beats(self, seconds: float, source: str = PROCESS) -> None:
        for _ in range(round(seconds / BEAT)):
            self.passes(BEAT)
            self.beat(source)

    def ahead(self, source: str = PROCESS, stall: float = STALL) -> bool:
        return self.observer.ahead(source, self.monotonic, self.wall, self.boottime, stall)

    def sickness(self, **limits: float) -> Sickness | None:
        return self.observer.sickness(self.monotonic, **limits)

    def kind(self, **limits: float) -> str | None:
        sickness = self.sickness(**limits)
        return None if sickness is None else str(sickness.kind)


@pytest.fixture(params=[True, False], ids=["with boottime", "without"])
def world(request: pytest.FixtureRequest) -> World:
    return World(boottime=request.param)


def test_beats_in_time_say_nothing(world: World) -> None:
    """A process that beats is well, and so is one that has never beaten."""
    world.beats(600)
    assert world.sickness() is None
    assert world.observer.last_sick() is None
    assert not world.ahead()
    fresh = Observer()
    assert fresh.sickness(1000.0) is None
    assert not fresh.ahead(PROCESS, 1000.0, WALL, None)


@pytest.mark.parametrize(
    ("gap", "sick"),
    [(0.0, False), (BEAT, False), (LIMIT - TINY, False), (LIMIT, False), (LIMIT + TINY, True), (12.3, True)],
)
def test_a_gap_beyond_the_limit_is_a_stall(world: World, gap: float, sick: bool) -> None:
    """A beat is late when it comes more than the stall after it was due, and not a moment before."""
    world.passes(gap)
    assert world.ahead() is sick
    world.beat()
    assert world.kind() == ("stalled" if sick else None)
    assert world.observer.last_sick() == (world.monotonic if sick else None)


def test_a_beat_that_has_not_come_counts_as_one_that_comes_now(world: World) -> None:
    """The first question after a stall finds it, even if the watcher has not had its turn (T53)."""
    world.passes(15)
    assert world.ahead()
    assert world.observer.sickness(world.monotonic) is None  # nothing was noted yet; `ahead` is what tells
    world.beat()
    assert not world.ahead()
    assert world.kind() == "stalled"


def test_a_look_notes_a_stall_while_it_lasts(world: World) -> None:
    """Others are told of a loop that hangs before it comes back, and the end of it moves along."""
    world.beat("loop")
    world.beats(3)
    world.observer.look("loop", world.monotonic)
    assert world.kind() == "stalled"
    assert "event loop" in world.sickness().text  # type: ignore[union-attr]
    world.beats(3)
    world.observer.look("loop", world.monotonic)
    assert world.observer.last_sick() == world.monotonic
    assert world.ahead("loop")  # no beat was taken for it
    assert len(world.observer.lapses) == 1


def test_a_source_is_held_to_its_own_beats(world: World) -> None:
    """A thread that beats does not excuse a loop that does not, nor the other way round."""
    world.beat("loop")
    world.beats(10)
    assert world.ahead("loop")
    assert not world.ahead()
    assert not world.ahead("another loop")
    world.beat("loop")
    world.beats(10, "loop")
    assert world.ahead("loop")
    assert world.ahead("another loop")  # for the process is late


def test_a_source_that_rests_owes_no_beat(world: World) -> None:
    """A loop that is not running is not stalled; what it did before stays noted."""
    world.beat("loop")
    assert world.observer.expects("loop")
    world.observer.rest("loop")
    world.observer.rest("loop")
    assert not world.observer.expects("loop")
    world.beats(100)
    assert not world.ahead("loop")
    world.beat("loop")
    assert world.sickness() is None


@pytest.mark.parametrize(("slept", "sick"), [(0.5, False), (0.99, False), (1.02, True), (28800, True)])
def test_a_sleep_is_found_though_monotonic_time_stood_still(world: World, slept: float, sick: bool) -> None:
    """A suspended machine shows no gap: the clock that counts sleep tells of it, or the wall clock (T50)."""
    world.passes(0.1)
    world.sleeps(slept)
    assert world.ahead() is sick
    world.beat()
    expected = "clock_jumped" if world.boottime is None else "suspended"
    assert world.kind() == (expected if sick else None)


@pytest.mark.parametrize("step", [-86400.0, -1.02, -1.0, -0.5, 0.5, 1.0, 1.02, 3600.0])
def test_a_wall_clock_that_steps(world: World, step: float) -> None:
    """More than a second against monotonic time, either way, is a jump; a leap second is none."""
    world.passes(BEAT)
    world.wall += step
    sick = abs(step) > JUMP
    assert world.ahead() or not sick
    world.beat()
    assert world.kind() == ("clock_jumped" if sick else None)


def test_what_it_is_called(world: World) -> None:
    """Sleep explains a wall clock that moved along; a clock that moved explains more than a late beat."""
    world.passes(5)
    world.wall += 60
    world.beat()
    assert world.kind() == "clock_jumped"
    world.sleeps(60)
    world.passes(5)
    world.wall -= 10
    world.beat()
    assert world.kind() == ("clock_jumped" if world.boottime is None else "suspended")


def test_the_words() -> None:
    """People read what happened, how long it took, and when it ended."""
    world = World()
    world.beat("loop")
    world.passes(12.3)
    world.beat()
    world.passes(0.2)
    world.beat("loop")  # it belongs to a process that stood still: no news
    world.beats(4)
    world.passes(0.1)
    sickness = world.sickness()
    assert sickness is not None
    assert sickness.text == "this process did not run for 12.5 s until 4.1 s ago"
    assert sickness.left == pytest.approx(QUIET - 4.1)
    assert sickness.until == pytest.approx(world.monotonic - 4.1)
    world.beat("loop")
    world.beats(5)
    world.beat("loop")
    world.beat()
    assert world.sickness().text == "an event loop of this process did not run for 5.0 s until just now"  # type: ignore[union-attr]
    world.sleeps(28800)
    world.beat()
    assert world.sickness().text == "the machine was suspended for 28800.0 s until just now"  # type: ignore[union-attr]
    world.wall -= 3.5
    world.beat()
    world.passes(1)
    assert world.sickness().text == "the wall clock jumped by -3.5 s 1.0 s ago"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("later", "sick"), [(0, True), (QUIET - TINY, True), (QUIET, False), (QUIET + 1, False)]
)
def test_the_quiet_time(later: float, sick: bool) -> None:
    """Sick to the end of the quiet time; what was seen before stays void for ever."""
    world = World()
    world.passes(10)
    world.beat()
    end = world.monotonic
    sickness = world.observer.sickness(end + later)
    assert (sickness is not None) is sick
    if sickness is not None:
        assert sickness.left == pytest.approx(QUIET - later)
        assert sickness.until == end
    assert world.observer.sickness(end + later, quiet=later + 1) is not None
    assert world.observer.last_sick() == end


def test_another_one_begins_the_quiet_time_again(world: World) -> None:
    """Time passing proves something only if nothing happened in it."""
    world.passes(10)
    world.beat()
    world.beats(QUIET - 5)
    world.passes(4)
    world.beat()
    assert world.sickness().left == QUIET  # type: ignore[union-attr]


def test_each_asker_allows_what_it_allows(world: World) -> None:
    """A gap that one asker minds is nothing to another; jumps are minded by all."""
    world.passes(5)
    assert world.ahead(stall=4)
    assert not world.ahead(stall=4.5)
    world.beat()
    assert world.kind(stall=4) == "stalled"
    assert world.kind(stall=4.5) is None
    world.wall += 100
    world.beat()
    assert world.kind(stall=1e9) == "clock_jumped"


def test_a_sickness_is_a_value() -> None:
    """It does not change under whoever holds it."""
    sickness = Sickness(kind="stalled", text="", left=1.0, until=2.0)  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        sickness.left = 0.0  # type: ignore[misc]


# --- whatever happens ---------------------------------------------------------------------------------

seconds = st.floats(0, 20, allow_nan=False)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("passes"), seconds),
        st.tuples(st.just("sleeps"), st.integers(0, 30).map(lambda n: n * 0.3)),
        st.tuples(st.just("jumps"), st.integers(-30, 30).map(lambda n: n * 0.3)),
        st.tuples(st.just("beat"), st.sampled_from([PROCESS, "loop"])),
        st.tuples(st.just("look"), st.sampled_from([PROCESS, "loop"])),
        st.tuples(st.just("rest"), st.just("loop")),
    ),
    max_size=60,
)


class Slow(World):
    """Beside the observer, a list of every late beat that there ever was."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.late: list[tuple[float, float]] = []
        self.clocks: tuple[float, float, float] | None = None
        super().__init__()

    def take(self, step: tuple[str, Any]) -> None:
        match step:
            case "passes", length:
                self.passes(length)
            case "sleeps", length:
                self.sleeps(length)
            case "jumps", length:
                self.wall += length
            case "beat", source:
                self.beat(source)
            case "look", source:
                self.find(source)
                self.observer.look(source, self.monotonic)
            case "rest", source:
                self.last.pop(source, None)
                self.observer.rest(source)

    def find(self, source: str) -> None:
        then = self.last.get(source)
        if then is not None and self.monotonic - then - BEAT > LEAST_STALL:
            self.late.append((self.monotonic, self.monotonic - then - BEAT))

    def beat(self, source: str = PROCESS) -> None:
        self.find(source)
        assert self.boottime is not None
        if self.clocks is not None:
            passed, awake = self.monotonic - self.clocks[0], self.boottime - self.clocks[2]
            moved = self.wall - self.clocks[1] - awake
            if awake - passed > JUMP or abs(moved) > JUMP + SLEW * passed + 0.01:
                self.late.append((self.monotonic, math.inf))
        self.clocks = self.monotonic, self.wall, self.boottime
        self.last[source] = self.monotonic
        super().beat(source)


@given(steps=steps, stall=st.floats(LEAST_STALL, 25))
def test_what_is_kept_answers_like_the_whole_history(steps: list[tuple[str, Any]], stall: float) -> None:
    """For every asker, the last lapse that it minds; and never more kept than a few."""
    world = Slow()
    for step in steps:
        world.take(step)
        longest = [end for end, late in world.late if late > stall]
        found = world.observer.last_sick(stall)
        expected = longest[-1] if longest else None
        unsure = any(abs(late - stall) < 1e-6 for _, late in world.late)
        assert found == expected or unsure
        lates = [lapse.late for lapse in world.observer.lapses]
        assert lates == sorted(lates, reverse=True)
        assert len(lates) <= 16


@given(gaps=st.lists(st.floats(LIMIT, 100), min_size=30, max_size=60), stall=st.floats(STALL, 99))
def test_where_steps_are_lost_the_answer_is_the_more_careful_one(gaps: list[float], stall: float) -> None:
    """Bounded memory may make a process look sick for longer, never well for a lapse that it had."""
    world = World()
    ends = []
    for gap in sorted(gaps, reverse=True):
        world.passes(gap)
        world.beat()
        if gap - BEAT > stall + 1e-6:
            ends.append(world.monotonic)
    found = world.observer.last_sick(stall)
    assert not ends or (found is not None and found >= ends[-1])
    assert len(world.observer.lapses) <= 16


@given(steps=steps, more=steps, at=st.integers(0, 60), stall=st.floats(LEAST_STALL, 25))
def test_more_trouble_never_makes_it_well(
    steps: list[tuple[str, Any]], more: list[tuple[str, Any]], at: int, stall: float
) -> None:
    """A sickness that was noted is taken back by nothing that happens later."""
    world = Slow()
    for step in steps[:at]:
        world.take(step)
    before = world.observer.last_sick(stall)
    for step in (*more, *steps[at:]):
        world.take(step)
    after = world.observer.last_sick(stall)
    assert before is None or (after is not None and after >= before)


@given(steps=steps, stall=st.floats(LEAST_STALL, 25))
def test_what_is_ahead_is_what_the_beat_will_say(steps: list[tuple[str, Any]], stall: float) -> None:
    """Whoever asks first is told what the watcher would have noted a moment later."""
    world = Slow()
    for step in steps:
        world.take(step)
    ahead, at = world.ahead("loop", stall), world.monotonic
    known = len(world.late)
    for source in (PROCESS, "loop"):
        if source in world.last:
            world.beat(source)
    told = any(late > stall + 1e-6 for _, late in world.late[known:])
    assert ahead or not told
    assert world.observer.last_sick(stall) == at or not told


@given(rate=st.floats(-SLEW, SLEW), gaps=st.lists(st.floats(0.01, LIMIT - 0.01), min_size=1, max_size=50))
def test_slewing_never_adds_up(rate: float, gaps: list[float]) -> None:
    """A wall clock that is drawn near slowly is no jump, however far it goes."""
    world = World()
    for gap in gaps * 20:
        world.passes(gap)
        world.wall += rate * gap
        assert not world.ahead()
        world.beat()
    assert world.sickness() is None


def test_slewing_for_days_is_no_jump() -> None:
    """Nor in a stall so long that slewing alone makes a second: it is called by its own name."""
    world = World()
    for _ in range(20_000):
        world.passes(BEAT)
        world.wall += SLEW * BEAT
        world.beat()
    assert world.sickness() is None
    world.passes(10_000)
    world.wall += SLEW * 10_000
    world.beat()
    assert world.kind() == "stalled"
