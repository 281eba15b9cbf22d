"""Whether this process may trust its own eyes: what the gaps between its beats, and its clocks, say.

Whoever did not run for a while sees a world that aged at once: heartbeats of others look stale, time-outs
have passed, caches are old. None of that is proof of anything. So the process beats, from a thread and from
inside its event loops, and every beat is compared with the one before it:

* `suspended`: the clock that counts sleep went ahead of the one that does not; the machine slept.
* `clock_jumped`: wall time moved against monotonic time, and no sleep explains it. (Where no clock counts
  sleep, a sleep looks like that, too.)
* `stalled`: the beat came late by more than the asker allows. The process was stopped or starved, native
  code kept the interpreter to itself, or something blocked the event loop.

A beat that has not come yet is compared as if it came now. That closes the gap between the end of a stall
and the first beat after it, in which the very decision would fall that must not be taken.

Different askers allow different stalls, so gaps are kept with their size. A gap that is followed by one at
least as large answers nothing that the later one does not; without such gaps what is kept is a staircase,
later and smaller step by step, and its first step says whether there is anything to tell at all.

Jumps are looked for between neighbouring beats. Slewing, at most half a millisecond in a second as NTP does
it, is allowed for and never adds up; neither do steps too small to matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

PROCESS: Final = "process"
"""The source that speaks for the whole process; every other one is an event loop."""
BEAT: Final = 0.5
"""Seconds from one beat to the next."""
STALL: Final = 2.0
"""Seconds by which a beat may be late, unless the asker says otherwise."""
LEAST_STALL: Final = 0.5
"""Beats that are late by no more than this are forgotten at once: no asker may allow less."""
QUIET: Final = 30.0
"""Seconds for which the process stays sick after the end of it, unless the asker says otherwise."""
JUMP: Final = 1.0
"""Seconds of sleep, or of wall time against monotonic time, that are no noise. A leap second is none."""
SLEW: Final = 0.0005
"""Seconds of wall time per second that slewing may add or take (adjtime's limit, 500 ppm)."""
_NOISE: Final = 0.01  # the clocks are read one after the other
_MOST_LAPSES: Final = 16


class SicknessKind(StrEnum):
    """What the clocks say it was."""

    SUSPENDED = "suspended"
    CLOCK_JUMPED = "clock_jumped"
    STALLED = "stalled"
    UNWATCHED = "unwatched"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sickness:
    """Why this process may not be trusted now.

    `until` is the monotonic instant at which it ended (or was last seen to go on): what was seen before is
    void. `left` are the seconds of the quiet time that remain, above 0. `text` is for people.
    """

    kind: SicknessKind
    text: str
    left: float
    until: float


class Lapse(NamedTuple):
    """A stretch that went wrong: `length` in seconds (signed, for a clock that jumped), `until` its end.

    `late` is what is compared with the stall that an asker allows; jumps are allowed by nobody.
    """

    kind: SicknessKind
    source: str
    length: float
    until: float
    late: float

    def told(self, now: float) -> str:
        """Say it to people."""
        ago = now - self.until
        end = "just now" if ago < 0.05 else f"{ago:.1f} s ago"
        match self.kind:
            case SicknessKind.SUSPENDED:
                return f"the machine was suspended for {self.length:.1f} s until {end}"
            case SicknessKind.CLOCK_JUMPED:
                return f"the wall clock jumped by {self.length:+.1f} s {end}"
            case _:
                who = "this process" if self.source == PROCESS else "an event loop of this process"
                return f"{who} did not run for {self.length:.1f} s until {end}"


class Observer:
    """Takes beats and says how the process is. One at a time may call what changes it.

    The questions may be asked at any time beside that, without a lock. For their sake a beat is taken only
    after what it says was noted, and whoever asks both looks at the beats first.
    """

    __slots__ = ("_beats", "_clocks", "_interval", "lapses")

    def __init__(self, interval: float = BEAT) -> None:
        self._interval = interval
        self._beats: dict[str, float] = {}
        self._clocks: tuple[float, float, float | None] | None = None
        self.lapses: tuple[Lapse, ...] = ()

    # --- what changes it ------------------------------------------------------------------------------

    def beat(self, source: str, monotonic: float, wall: float, boottime: float | None) -> None:
        """Take a beat; `boottime` is `None` where no clock counts sleep. The first of a source begins it."""
        self.look(source, monotonic)
        jumped = self._jump(monotonic, wall, boottime)
        if jumped is not None:
            self._note(jumped)
        self._clocks = (monotonic, wall, boottime)
        self._beats[source] = monotonic

    def look(self, source: str, monotonic: float) -> None:
        """Note how late a source is, without a beat of it."""
        beat = self._beats.get(source)
        if beat is None or (late := monotonic - beat - self._interval) <= LEAST_STALL:
            return
        last = self.lapses[-1] if self.lapses else None
        if last is not None and last.source == PROCESS and monotonic - last.until < self._interval:
            source = PROCESS  # a loop in a process that was stopped is not what people have to be told of
        self._note(Lapse(SicknessKind.STALLED, source, monotonic - beat, monotonic, late))

    def rest(self, source: str) -> None:
        """Expect no beat of a source until it begins again."""
        self._beats.pop(source, None)

    # --- what may be asked at any time ----------------------------------------------------------------

    def expects(self, source: str) -> bool:
        """Whether a source has begun and does not rest."""
        return source in self._beats

    def ahead(
        self, source: str, monotonic: float, wall: float, boottime: float | None, stall: float = STALL
    ) -> bool:
        """Whether a beat taken now would be the first to tell of something.

        That is so if the process, or `source` as well, should have beaten more than `stall` seconds ago, or
        if the clocks disagree with the last beat. Every question asks it, so it is written out.
        """
        clocks = self._clocks
        if clocks is None:
            return False
        then, wall_then, boottime_then = clocks
        due, beats = monotonic - self._interval - stall, self._beats
        if beats.get(PROCESS, monotonic) < due or beats.get(source, monotonic) < due:
            return True
        if boottime is None or boottime_then is None:
            return self._jump(monotonic, wall, boottime) is not None
        slept = boottime - boottime_then - monotonic + then
        return slept > JUMP or not -JUMP < wall - wall_then - boottime + boottime_then < JUMP

    def last_lapse(self, stall: float = STALL) -> Lapse | None:
        """Give the last one that was longer than what the asker allows."""
        lapses = self.lapses
        if not lapses or lapses[0].late <= stall:
            return None
        return next(lapse for lapse in reversed(lapses) if lapse.late > stall)

    def last_sick(self, stall: float = STALL) -> float | None:
        """Give the monotonic instant at which the process was last sick; what was seen before is void."""
        lapse = self.last_lapse(stall)
        return None if lapse is None else lapse.until

    def sickness(self, now: float, stall: float = STALL, quiet: float = QUIET) -> Sickness | None:
        """Say what is wrong until `quiet` seconds after its end, `None` when nothing is."""
        lapse = self.last_lapse(stall)
        if lapse is None or (left := lapse.until + quiet - now) <= 0:
            return None
        return Sickness(kind=lapse.kind, text=lapse.told(now), left=left, until=lapse.until)

    # --- inside ---------------------------------------------------------------------------------------

    def _jump(self, monotonic: float, wall: float, boottime: float | None) -> Lapse | None:
        clocks = self._clocks
        if clocks is None:
            return None
        then, wall_then, boottime_then = clocks
        passed = monotonic - then
        slept = 0.0
        if boottime is not None and boottime_then is not None:
            slept = boottime - boottime_then - passed
            if slept > JUMP:
                return Lapse(SicknessKind.SUSPENDED, PROCESS, slept, monotonic, math.inf)
        moved = wall - wall_then - passed - slept
        if abs(moved) > JUMP + _NOISE + SLEW * passed:
            return Lapse(SicknessKind.CLOCK_JUMPED, PROCESS, moved, monotonic, math.inf)
        return None

    def _note(self, lapse: Lapse) -> None:
        """Add a step to the staircase. Where it gets too long, two steps become the worse of both."""
        kept = [known for known in self.lapses if known.late > lapse.late]
        if len(kept) == _MOST_LAPSES:
            first, second, *rest = kept
            kept = [first._replace(until=second.until), *rest]
        self.lapses = (*kept, lapse)
