"""The state machine in front of a dependency: all of it, without I/O.

Theory, in the order in which a call meets it.

*Generation.* Each stay in a state is one object with its own counters. A call takes the current one on
entry and reports to that one on exit. A result that comes home after the state has changed therefore
lands in an object that nobody judges any more: it moves `late_dropped` and nothing else. That needs no
comparison, because the tally of a generation is replaced by the tally of late results in the moment
the generation ends.

*Era.* A stretch between two misses inside a generation. A miss (a guarded call that did not answer)
starts a new era, so a success that began before the miss reports to an era that is over and proves
nothing about now. Only a success of the current era resolves the miss. As long as an era still has
something to learn from a success (the first one, a recovery to settle, a window to fill) its `ask` is
true and successes are settled one by one; after that a success is a count.

*Three outcomes.* Success and failure move the machine. Ignored (a cancelled call, the application's own
error) gives its permit back and decides nothing; when the call did not answer, it is still a miss.

*Trial.* Half-open lets one call through at a time. A trial is a lease: when it runs out, the trial has
failed, whoever holds it. Should the answer come after all, the next trial is due at once.

*Settling.* After an outage the dependency stays `recovering` for as long as the outage lasted (within
limits), and until a success beyond the closing trial has arrived without a miss since. A miss starts
the settle time again; a trip before it is over prolongs the same outage.

*Level.* The cooldown grows with every entry into open and shrinks by one step for each `cooldown.cap`
seconds spent closed, so that a dependency that flaps is asked less and less often.

*Facet.* A part of what the dependency does that can fail by itself: writing, one node of many. A facet
that failed is impaired, and the dependency `degraded`, until a success of that very facet in the current
era; the rest goes on.

*Pause.* How long the dependency itself has asked to be left alone. It is a lower bound for the next call,
trial and probe, and no verdict.

Every method takes `now` (seconds on a monotonic clock). Whoever calls them holds the lock, except for
`next` of a tally and reads of `Breaker.era`, which are single atomic steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableSequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import count
from typing import Any, Final, NamedTuple

from .health import BreakerState, HealthState, fold
from .settings import BreakerSettings, Mode
from .window import Log, TimeWindow, counted

PROBE_HEAD_START: Final = 1.0
"""Seconds that a running prober has, from a trial's due time, before the next caller is the trial."""


class Outcome(StrEnum):
    """How a call ended, for the machine."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = "ignored"


class Cause(NamedTuple):
    """Why something happened: a stable code, and a short text for people, without secrets."""

    code: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One change of breaker or health, told exactly once and in order.

    `at` is monotonic and `wall` the Unix time of the telling; `retry_after` counts from `at` and is
    `None` when only a person can end the state. `lasted` is how many seconds the state before had lasted.
    `failures` (in a row) and `failure_rate` (where one is judged, else `None`) are what the breaker went by:
    while it is closed the present ones, else those that opened it.
    """

    dependency: str
    breaker_before: BreakerState
    breaker: BreakerState
    before: HealthState
    after: HealthState
    held: bool
    cause: Cause
    generation: int
    level: int
    at: float
    retry_after: float | None
    lasted: float = 0.0
    failures: int = 0
    failure_rate: float | None = None
    wall: float = 0.0


class Trial:
    """The leased permit of half-open. `deadline` is when it has failed."""

    __slots__ = ("began", "deadline", "generation")

    def __init__(self, generation: Generation, began: float, deadline: float) -> None:
        self.generation = generation
        self.began = began
        self.deadline = deadline


class Generation:
    """One stay in one state.

    `due` is the instant from which the next trial may begin (infinite while held). `refuses` says
    whether calls are turned away before it. `tally` numbers the outcomes and `turned_away` the refusals;
    both are moved without the lock. `notice` is the shell's: what its refusals say.
    """

    __slots__ = (
        "began", "cause", "due", "failed", "held", "log", "marked", "notice", "number", "refuses", "state",
        "streak", "streak_end", "tally", "trial", "turned_away", "wins",
    )  # fmt: skip

    def __init__(self, number: int, state: BreakerState, now: float, cause: Cause, *, refuses: bool) -> None:
        self.number = number
        self.state = state
        self.began = now
        self.cause = cause
        self.refuses = refuses
        self.held = False
        self.due = now
        self.tally = count()
        self.turned_away = count()
        self.notice: Any = None
        self.log: Log | None = None
        self.failed = 0
        self.marked = False  # whether the log holds more than plain successes
        self.streak = 0
        self.streak_end = -1
        self.trial: Trial | None = None
        self.wins = 0

    @property
    def succeeded(self) -> int:
        """How many outcomes were successes, while this generation is the current one."""
        return counted(self.tally) - self.failed


class Era:
    """A stretch between two misses inside a generation."""

    __slots__ = ("answered", "ask", "generation", "number")

    def __init__(self, number: int, generation: Generation) -> None:
        self.number = number
        self.generation = generation
        self.answered = False
        self.ask = True  # read without the lock


class Breaker:
    """The machine. `era` is what calls take on entry; transitions to be told are appended to `mail`."""

    def __init__(self, name: str, settings: BreakerSettings, now: float, mail: MutableSequence[Any]) -> None:
        self.name = name
        self._mail = mail  # several breakers may share one, so that what they tell has one order
        self.late = count()
        self.failures = 0
        self.last_miss: float | None = None
        self.level = 0
        self.cause = Cause(code="start", text="nothing has answered yet")  # of the present health
        self.suppressed = 0  # refusals that an observing breaker did not make
        self.impaired: Mapping[str, Cause] = {}  # facets that failed, each with why; replaced whole
        self.paused_until: float | None = None
        self.head_start = 0.0  # PROBE_HEAD_START while a prober runs for a registered probe
        self._settings = settings
        self._steady = not isinstance(settings.window, TimeWindow)
        self._outage: float | None = None  # when the outage began that is not settled yet
        self._settle = 0.0  # how long the recovery has to stay quiet
        self._quiet_since = now
        self._missed = False
        self._answers = 0
        self._refusals = 0
        self._successes = 0
        self._told = (BreakerState.CLOSED, HealthState.UNKNOWN, False)
        self._told_at = now
        self._opened_by: tuple[int, float | None] = (0, None)  # failures in a row and their rate
        self.is_plainly_well = (
            False  # healthy after the last step, and time cannot change that; read anywhere
        )
        self._eras = 0
        self.era = self._begin(0, BreakerState.CLOSED, now, self.cause)
        self.era.ask = self._must_ask(now)

    # --- reading ---------------------------------------------------------------------------------

    @property
    def settings(self) -> BreakerSettings:
        """What the machine runs on; `reconfigure` replaces it."""
        return self._settings

    @property
    def state(self) -> BreakerState:
        """The state as of the last step; `tick` first, where a lease may have run out."""
        return self.era.generation.state

    @property
    def held(self) -> bool:
        """Whether a person keeps it open."""
        return self.era.generation.held

    @property
    def unresolved_miss(self) -> bool:
        """Whether no call that began after the last miss has answered yet."""
        return self._missed

    @property
    def successes(self) -> int:
        """How many guarded calls answered, over all generations."""
        return self._successes + self.era.generation.succeeded

    @property
    def refusals(self) -> int:
        """How many calls were refused, over all generations."""
        return self._refusals + counted(self.era.generation.turned_away)

    @property
    def late_dropped(self) -> int:
        """How many results came home after their generation was over."""
        return counted(self.late)

    @property
    def since(self) -> float:
        """When the present health began: for an outage that is not settled yet, when the outage did."""
        return self._told_at if self._outage is None else self._outage

    def settle_left(self, now: float) -> float:
        """Give the seconds until the settle time is over; 0 when nothing has to settle."""
        if self._outage is None or self.state is not BreakerState.CLOSED:
            return 0.0
        return max(0.0, self._quiet_since + self._settle - now)

    def health(self, now: float) -> HealthState:
        """Fold the facts of this instant."""
        return fold(
            breaker=self.state,
            disabled=self._settings.mode is Mode.DISABLED,
            settling=self._outage is not None and not self._has_settled(now),
            missed=self._missed,
            answered=self._answers > 0,
            rates_high=self._rates_reach(0.5, now),
            impaired=bool(self.impaired) or self.pause_left(now) > 0,
        )

    def level_now(self, now: float) -> int:
        """Give how many steps the cooldown has grown, less one for each `cooldown.cap` spent closed since."""
        if self.state is not BreakerState.CLOSED:
            return self.level
        quiet = int((now - self.era.generation.began) // self._settings.cooldown.cap)
        return max(0, self.level - max(0, quiet))

    def pause_left(self, now: float) -> float:
        """Give the seconds for which the dependency has asked to be left alone."""
        return 0.0 if self.paused_until is None else max(0.0, self.paused_until - now)

    def retry_after(self, now: float) -> float | None:
        """Give the seconds until a trial may happen, as of `now`; `None` when only a person can end it.

        While a trial is in flight: until its lease ends, or until the next multiple of the first
        cooldown since it began, whichever is sooner (a look worth taking; never zero, so that nobody
        spins on it).
        """
        generation = self.era.generation
        if generation.held:
            return None
        if generation.state is BreakerState.CLOSED:
            return self.pause_left(now)
        if (trial := generation.trial) is not None and now < trial.deadline:
            first = self._settings.cooldown.first
            return min(trial.deadline - now, first - (now - trial.began) % first)
        return max(0.0, generation.due - now)

    # --- calls -----------------------------------------------------------------------------------

    def admit(self, now: float, *, draw: float, probe: bool = False) -> Trial | Era | None:
        """Ask for leave: a `Trial` to be settled, the `Era` of a breaker that lets calls through, or `None`.

        Callers leave a trial to a running prober for a head start; a held breaker admits no trial at all.
        While it pauses, a closed one admits nobody.
        """
        self.tick(now, draw=draw)
        generation = self.era.generation
        if generation.state is BreakerState.CLOSED:
            if self.paused_until is not None and self._settings.mode is Mode.ENFORCE:
                return None
            self.suppressed += self.paused_until is not None
            return self.era
        if now < generation.due + (0.0 if probe else self.head_start):
            if generation.refuses:
                return None
            self.suppressed += 1
            return self.era
        cause = Cause(code="trial", text="the cooldown is over, one trial is let through")
        if generation.state is BreakerState.OPEN:
            self._move(BreakerState.HALF_OPEN, now, cause)
            generation = self.era.generation
        generation.trial = Trial(generation, now, now + self._settings.lease)
        generation.due = generation.trial.deadline
        self._observe(now, cause)
        return generation.trial

    def tick(self, now: float, *, draw: float) -> None:
        """Let the passing of time take effect: a lease that ran out, a settle time that is over.

        A lease ends when it ends, not when somebody looks: the cooldown counts from its deadline.
        """
        trial = self.era.generation.trial
        if trial is not None and now >= trial.deadline:
            text = f"the trial did not answer within its lease of {self._settings.lease:g} s"
            cause = Cause(code="lease_expired", text=text)
            self._open(trial.deadline, draw, cause)
            self._note_miss(trial.generation, trial.deadline)
            self._observe(trial.deadline, cause)
        if self.paused_until is not None and now >= self.paused_until:
            self.paused_until = None
            self._observe(now, Cause(code="pause_over", text="the pause that it asked for is over"))
        if self._outage is not None or isinstance(self._settings.window, TimeWindow):
            self._observe(now, Cause(code="time_passed", text="the rates are in order again"))

    def settle(
        self,
        taken: Era | Trial,
        outcome: Outcome,
        now: float,
        *,
        draw: float,
        cause: Cause,
        slow: bool = False,
        missed: bool = False,
        facets: tuple[str, ...] = (),
    ) -> None:
        """Take in how a call ended.

        `draw` (uniform in [0, 1)) is the jitter, should this open the breaker. `missed` says that an
        ignored call did not answer; a failed one never did. A miss that comes home late says when it
        was, and nothing about the present generation. `facets` are those that the call has shown to
        work, or to fail.
        """
        self.tick(now, draw=draw)
        trial = taken if isinstance(taken, Trial) else None
        generation = taken.generation
        current = generation is self.era.generation
        if (
            facets
            and outcome is Outcome.SUCCESS
            and not missed
            and taken in (self.era, self.era.generation.trial)
        ):
            self.impaired = {facet: why for facet, why in self.impaired.items() if facet not in facets}
        if not current:
            self._drop_late(trial, outcome, now)
        elif self._settings.mode is Mode.DISABLED:
            self._count(outcome)
            self._resolve(taken, outcome)
        else:
            self._step(taken, outcome, now, draw=draw, cause=cause, slow=slow)
        if missed or outcome is Outcome.FAILURE:
            if current:
                self._note_miss(generation, now)
                self.impaired = {**self.impaired, **dict.fromkeys(facets, cause)}
            else:
                self._date_miss(now)
        moved = current and self.era.generation is not generation
        self._observe(now, self.era.generation.cause if moved else cause)

    def attempt_failed(self, taken: Era | Trial, now: float, *, draw: float, cause: Cause) -> None:
        """Count a hidden attempt inside one call (a client's own retry): it may trip, and is no miss."""
        self.tick(now, draw=draw)
        enabled = self._settings.mode is not Mode.DISABLED
        if enabled and taken.generation is self.era.generation and self.state is BreakerState.CLOSED:
            self._count_failure(now, slow=False)
            self._judge(now, draw, cause)
            self.era.ask = self._must_ask(now)
            self._observe(now, cause)

    def hasten(self, now: float) -> None:
        """Let the next trial be due at once, on somebody's wish; a hold and a pause stay."""
        generation = self.era.generation
        if generation.state is not BreakerState.CLOSED and not generation.held and generation.trial is None:
            generation.due = self._not_in_pause(now)

    def pause(self, until: float, now: float, *, draw: float, cause: Cause) -> None:
        """Let nobody ask before `until`, as the dependency wished. A pause is never shortened."""
        self.tick(now, draw=draw)
        generation = self.era.generation
        longer = until > max(now, self.paused_until or now)
        if not longer or self._settings.mode is Mode.DISABLED:
            return
        self.paused_until = until
        generation.notice = None
        if generation.state is BreakerState.CLOSED:
            self.era.ask = True
        elif generation.trial is None:
            generation.due = max(generation.due, until)
        self._observe(now, cause)

    def impair(self, facet: str, now: float, *, draw: float, cause: Cause) -> None:
        """Note that a facet fails, whatever became of the call that has met it."""
        self.tick(now, draw=draw)
        self.impaired = {**self.impaired, facet: cause}
        self.era.ask = self._must_ask(now)
        self._observe(now, cause)

    def mend(self, facet: str, now: float, *, draw: float, cause: Cause) -> None:
        """Note that a facet works again, or is no more."""
        self.tick(now, draw=draw)
        if facet in self.impaired:
            self.impaired = {name: why for name, why in self.impaired.items() if name != facet}
            self.era.ask = self._must_ask(now)
            self._observe(now, cause)

    # --- people ----------------------------------------------------------------------------------

    def trip(self, now: float, *, draw: float, cause: Cause) -> None:
        """Open it, as if it had failed. Nothing happens where it is open already."""
        self.tick(now, draw=draw)
        if self.state is not BreakerState.OPEN:
            self._open(now, draw, cause)
            self._observe(now, cause)

    def hold(self, now: float, *, draw: float, cause: Cause) -> None:
        """Open it until `release`."""
        self.tick(now, draw=draw)
        self._move(BreakerState.OPEN, now, cause)
        self.era.generation.held = True
        self.era.generation.due = math.inf
        self._observe(now, cause)

    def release(self, now: float, *, draw: float, cause: Cause) -> None:
        """End a hold: still open, with a trial due now. Nothing happens where it is not held."""
        self.tick(now, draw=draw)
        if self.held:
            self._move(BreakerState.OPEN, now, cause)
            self._observe(now, cause)

    def reset(self, now: float, *, draw: float, cause: Cause) -> None:
        """Close it by hand and forget counters and growth. What must settle, settles all the same."""
        self.tick(now, draw=draw)
        self.level = 0
        self._move(BreakerState.CLOSED, now, cause)
        self._observe(now, cause)

    def reconfigure(self, settings: BreakerSettings, now: float, *, draw: float, cause: Cause) -> None:
        """Take other settings; state, health and misses stay, counters begin anew."""
        self.tick(now, draw=draw)
        old = self.era.generation
        self._settings = settings
        self._steady = not isinstance(settings.window, TimeWindow)
        self._move(old.state if settings.mode is not Mode.DISABLED else BreakerState.CLOSED, now, cause)
        if self.state is BreakerState.OPEN:
            self.era.generation.held, self.era.generation.due = old.held, old.due
        self._observe(now, cause)

    def set_cooldown(self, generation: Generation, cooldown: float) -> None:
        """Set another cooldown for an open generation that is still the current one."""
        if (
            generation is self.era.generation
            and generation.state is BreakerState.OPEN
            and not generation.held
        ):
            generation.due = self._not_in_pause(generation.began + cooldown)
            for index, event in enumerate(self._mail):  # what is not told yet shall tell it right
                mine = isinstance(event, Transition) and event.dependency == self.name
                if mine and event.generation == generation.number:
                    self._mail[index] = replace(event, retry_after=generation.due - event.at)

    def reborn(self, now: float) -> None:
        """Begin again in a forked child: what the parent knew is not known here, no permit is borrowed.

        An open breaker stays open (a trial is due at once), a closed one knows nothing yet. Each process
        counts its own calls.
        """
        held, cause = self.held, Cause(code="forked", text="new process")
        self._answers = 0
        self.impaired, self.paused_until = {}, None
        self._move(
            BreakerState.CLOSED if self.state is BreakerState.CLOSED else BreakerState.OPEN, now, cause
        )
        if held:
            self.era.generation.held, self.era.generation.due = True, math.inf
        self._successes = self._refusals = self.failures = self.suppressed = 0
        self._told, self._told_at = (self.state, self.health(now), self.held), now
        self.is_plainly_well = False

    # --- the machine -----------------------------------------------------------------------------

    def _step(
        self, taken: Era | Trial, outcome: Outcome, now: float, *, draw: float, cause: Cause, slow: bool
    ) -> None:
        generation = self.era.generation
        match generation.state, outcome:
            case BreakerState.CLOSED, Outcome.SUCCESS:
                self._succeed(taken, now, slow=slow, draw=draw)
            case BreakerState.CLOSED, Outcome.FAILURE:
                self._count_failure(now, slow=slow)
                self._judge(now, draw, cause)
            case BreakerState.HALF_OPEN, Outcome.SUCCESS if taken is generation.trial:
                self._win(now)
            case BreakerState.HALF_OPEN, Outcome.FAILURE if taken is generation.trial:
                self._count_failure(now, slow=slow)
                self._open(now, draw, cause)
            case BreakerState.HALF_OPEN, Outcome.IGNORED if taken is generation.trial:
                generation.trial, generation.due = None, now
            case _:
                self._count(outcome)  # let through by an observing breaker: its trial decides

    def _count(self, outcome: Outcome) -> None:
        """Count an outcome that nobody judges."""
        generation = self.era.generation
        if outcome is not Outcome.IGNORED:
            next(generation.tally)
        if outcome is Outcome.FAILURE:
            generation.failed += 1
            self.failures += 1

    def _succeed(self, taken: Era | Trial, now: float, *, slow: bool, draw: float) -> None:
        generation = self.era.generation
        number = next(generation.tally)
        if generation.log is not None:
            generation.log.add(number, now, failed=False, slow=slow)
            generation.marked = generation.marked or slow
        self._resolve(taken, Outcome.SUCCESS)
        if slow:
            self._judge(now, draw, Cause(code="slow_rate", text="too many calls were slow"))
        self.era.ask = self._must_ask(now)

    def _resolve(self, taken: Era | Trial, outcome: Outcome) -> None:
        """Let a success of the current era prove that the dependency answers."""
        if outcome is Outcome.SUCCESS and taken is self.era:
            self._missed = False
            self.era.answered = True
            self.era.ask = bool(self.impaired)
            if self._settings.mode is not Mode.DISABLED:
                self._answers += 1

    def _win(self, now: float) -> None:
        generation = self.era.generation
        next(generation.tally)
        self._answers += 1
        generation.wins += 1
        generation.trial, generation.due = None, now
        if generation.wins >= self._settings.successes:
            self._move(BreakerState.CLOSED, now, Cause(code="recovered", text="the trial answered"))

    def _count_failure(self, now: float, *, slow: bool) -> None:
        generation = self.era.generation
        number = next(generation.tally)
        generation.failed += 1
        self.failures += 1
        generation.streak = generation.streak + 1 if generation.streak_end == number - 1 else 1
        generation.streak_end = number
        if generation.log is not None:
            generation.log.add(number, now, failed=True, slow=slow)
            generation.marked = True

    def _judge(self, now: float, draw: float, cause: Cause) -> None:
        streak, limit = self.era.generation.streak, self._settings.failures
        if (limit is not None and streak >= limit) or self._rates_reach(1.0, now):
            self._open(now, draw, cause)

    def _rates_reach(self, part: float, now: float) -> bool:
        """Whether `min_calls` is reached and a rate is at `part` of its limit or above."""
        generation, settings = self.era.generation, self._settings
        if generation.log is None or not generation.marked:
            return False
        calls, failures, slow = generation.log.totals(counted(generation.tally), now)
        if calls < settings.min_calls:
            return False
        fail_limit = settings.failure_rate
        return (fail_limit is not None and failures / calls >= fail_limit * part) or (
            settings.slow_after is not None and slow / calls >= settings.slow_rate * part
        )

    def _failing(self, now: float) -> tuple[int, float | None]:
        """Give the failures in a row, and the failure rate where one is judged."""
        generation = self.era.generation
        numbered = counted(generation.tally)
        streak = generation.streak if generation.streak_end == numbered - 1 else 0
        if generation.log is None or self._settings.failure_rate is None:
            return streak, None
        calls, failures, _ = generation.log.totals(numbered, now)
        return streak, failures / calls if calls else 0.0

    def _must_ask(self, now: float) -> bool:
        """Whether the next success could still change anything but a count.

        A window of counts needs no more as long as its failures are too few to raise a rate to half
        its limit over `min_calls` calls: successes only lower it further.
        """
        settings, era = self._settings, self.era
        generation = era.generation
        if settings.mode is Mode.DISABLED or self.impaired or self.paused_until is not None:
            return bool(self.impaired or self.paused_until)
        if generation.state is not BreakerState.CLOSED or not era.answered or self._outage is not None:
            return True
        if settings.slow_after is not None:
            return True
        if generation.log is None or settings.failure_rate is None:
            return False
        if isinstance(settings.window, TimeWindow):
            return True
        _, failures, _ = generation.log.totals(counted(generation.tally), now)
        return failures / settings.min_calls >= settings.failure_rate * 0.5

    def _has_settled(self, now: float) -> bool:
        return (
            self.state is BreakerState.CLOSED
            and self.era.answered
            and not self._missed
            and now >= self._quiet_since + self._settle
        )

    def _date_miss(self, now: float) -> None:
        self.last_miss = now if self.last_miss is None else max(self.last_miss, now)

    def _note_miss(self, generation: Generation, now: float) -> None:
        self._date_miss(now)
        self._missed = True
        self._quiet_since = now
        if generation is self.era.generation:  # else this very miss has opened the breaker
            self.era = self._next_era(generation)

    def _drop_late(self, trial: Trial | None, outcome: Outcome, now: float) -> None:
        next(self.late)
        generation = self.era.generation
        if trial is None or outcome is not Outcome.SUCCESS:
            return
        if generation.cause.code == "lease_expired" and generation.number == trial.generation.number + 1:
            generation.due = min(generation.due, now)

    def _open(self, now: float, draw: float, cause: Cause) -> None:
        """Go to open for the next cooldown, counting how often that happened lately."""
        self.level = self.level_now(now) + 1
        self._move(BreakerState.OPEN, now, cause)
        self.era.generation.due = self._not_in_pause(now + self._settings.cooldown.seconds(self.level, draw))

    def _not_in_pause(self, due: float) -> float:
        return due if self.paused_until is None else max(due, self.paused_until)

    def _move(self, state: BreakerState, now: float, cause: Cause) -> None:
        """End the current generation and begin the next: the one place where the state changes."""
        old = self.era.generation
        if state is BreakerState.OPEN and old.state is not BreakerState.OPEN:
            self._opened_by = self._failing(now)
        answered = self.era.answered and old.state is BreakerState.CLOSED and self._answers > 0
        self._successes += old.succeeded
        if refused := counted(old.turned_away):
            self._refusals += refused
            self._date_miss(now)
            self._missed = True
        match old.state, state:
            case BreakerState.CLOSED, BreakerState.OPEN if self._outage is None:
                self._outage = now
            case ((BreakerState.OPEN | BreakerState.HALF_OPEN), BreakerState.CLOSED) if (
                self._outage is not None
            ):
                self._settle = min(
                    max(now - self._outage, self._settings.settle_min), self._settings.settle_max
                )
                self._quiet_since = now
            case _:
                pass
        self.era = self._begin(old.number + 1, state, now, cause)
        old.tally = self.late
        if state is BreakerState.CLOSED:
            self.era.answered = answered and self._outage is None and not self._missed
            self.era.ask = self._must_ask(now)

    def _begin(self, number: int, state: BreakerState, now: float, cause: Cause) -> Era:
        refuses = state is not BreakerState.CLOSED and self._settings.mode is Mode.ENFORCE
        generation = Generation(number, state, now, cause, refuses=refuses)
        rated = self._settings.failure_rate is not None or self._settings.slow_after is not None
        if state is BreakerState.CLOSED and rated:
            generation.log = self._settings.window.log(now)
        return self._next_era(generation)

    def _next_era(self, generation: Generation) -> Era:
        self._eras += 1
        return Era(self._eras, generation)

    def _observe(self, now: float, cause: Cause) -> None:
        """Tell of a change once."""
        if self._outage is not None and self._has_settled(now):
            self._outage = None
            self.era.ask = self._must_ask(now)
            cause = Cause(code="settled", text="answers, and quiet for the settle time")
        told = self._told
        current = (self.state, self.health(now), self.held)
        self.is_plainly_well = current[1] is HealthState.HEALTHY and self._steady
        if current != told:
            lasted = max(0.0, now - self._told_at)
            self._told, self._told_at = current, now
            failures, rate = self._failing(now) if self.state is BreakerState.CLOSED else self._opened_by
            if cause.code != "trial":  # while a trial is out, the trouble is still what it was
                self.cause = cause
            self._mail.append(
                Transition(
                    dependency=self.name,
                    breaker_before=told[0],
                    breaker=current[0],
                    before=told[1],
                    after=current[1],
                    held=current[2],
                    cause=cause,
                    generation=self.era.generation.number,
                    level=self.level,
                    at=now,
                    retry_after=self.retry_after(now),
                    lasted=lasted,
                    failures=failures,
                    failure_rate=rate,
                )
            )
