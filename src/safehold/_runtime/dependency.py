"""A dependency: the handle that users hold, around one breaker, its probe and its declaration."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, cast, overload

from tenacity import RetryCallState

from .._core.breaker import PROBE_HEAD_START, Breaker, Cause, Outcome
from .._core.configuration import ConfigurationError, check_name, check_number
from .._core.epoch import Epoch
from .._core.gate import DependencyFacts
from .._core.health import BreakerState, HealthState
from .._core.schedule import ProbeSchedule, ProbeSettings
from .._core.settings import BreakerSettings, Mode
from .._core.unproven import Unproven
from .._core.window import counted
from . import log
from .classify import Classifier, make_classifier
from .clock import at_wall
from .describe import cause_of
from .epochs import reading_of
from .guard import wrap
from .permit import WRITES, Permit, report_by_hand
from .questions import Questions, aask, ask
from .scope import Scope

if TYPE_CHECKING:
    from .._core.gate import GateSettings
    from .engine import Engine
    from .policies import BreakerPolicy, ProbePolicy
    from .records import Records
    from .report import DependencyReport

F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")

Probe = Callable[[], Any]
EpochFunction = Callable[[], Any]

_UNDECLARED: Final = BreakerSettings(mode=Mode.DISABLED)
_keys = count()


class Declaration(NamedTuple):
    """What a dependency was declared with; two equal ones are one dependency."""

    critical: bool
    policy: BreakerPolicy
    classify: object
    probe: object
    probe_policy: ProbePolicy
    epoch: object
    depends_on: tuple[str, ...]


class Dependency:
    """A thing that is called, its breaker, and what is known of its health.

    `health["redis"]` gives one before or after `health.dependency("redis")` declares it. Until it is
    declared it refuses nothing and says `unknown`, but its misses count. All methods may be called from
    any thread or task.
    """

    def __init__(
        self,
        name: str,
        engine: Engine,
        gate: GateSettings,
        records: Records,
        root: Callable[[str], Dependency],
    ) -> None:
        check_name("dependency name", name)
        self.name = name
        self._engine = engine
        self._gate = gate
        self._records = records
        self._root = root  # gives what it depends on, by name
        self._key = next(_keys)
        self._place = math.inf  # among the declarations
        self._timed = False
        self._classify: Classifier | None = None
        self._declared_classify: Classifier | None = None
        self._writes_failed = False  # a write was not answered lately: probes that can shall try one
        self._declaration: Declaration | None = None  # written in steps
        self._breaker = Breaker(
            name, _UNDECLARED, engine.clock.monotonic(), engine.mail
        )  # moved in steps of the engine, read anywhere
        self._schedule: ProbeSchedule | None = None  # moved in steps
        self._probe: Probe | None = None  # written in steps
        self._landings: list[Callable[[], object]] = []  # called when the probe under way has ended
        self._hanging: set[object] = set()  # probes that run on a thread
        self._wait: Callable[[RetryCallState], float] | None = None  # decides the cooldown, where it is given
        self._cooldown_asked: object = None
        self._epoch = Epoch()  # moved in steps
        self._epoch_function: EpochFunction | None = None  # written in steps

    # --- what it is, and how it is ----------------------------------------------------------------

    @property
    def declared(self) -> bool:
        """Whether `dependency()` has filled this handle."""
        return self._declaration is not None

    @property
    def critical(self) -> bool:
        """Whether the service cannot do without it."""
        return self._declaration is not None and self._declaration.critical

    @property
    def policy(self) -> BreakerPolicy | None:
        """The breaker's policy; `None` while undeclared."""
        return None if self._declaration is None else self._declaration.policy

    @property
    def state(self) -> HealthState:
        """Its health at this instant."""
        return self._look(self._breaker.health)

    @property
    def breaker(self) -> BreakerState:
        """Where its breaker stands."""
        return self._look(lambda _: self._breaker.state)

    @property
    def declared_classifier(self) -> Classifier | None:
        """What the declaration says of exceptions; it goes before what a call site knows."""
        return self._declared_classify

    @property
    def depends_on(self) -> tuple[str, ...]:
        """The dependencies that it needs itself."""
        return () if self._declaration is None else self._declaration.depends_on

    @property
    def is_down(self) -> bool:
        """Whether its breaker lets no calls through."""
        return self._breaker.state is not BreakerState.CLOSED

    @property
    def because(self) -> str | None:
        """Name the dependency at the root of its trouble, where that is not itself; `None` elsewhere."""
        for name in self.depends_on:
            root = self._root(name)
            if root.is_down:
                return root.because or name
        return None

    @property
    def held(self) -> bool:
        """Whether a person keeps its breaker open."""
        return self._breaker.held

    @property
    def retry_after(self) -> float | None:
        """Seconds until the next trial or probe may happen; 0 when closed, `None` when held."""
        return self._look(self._breaker.retry_after)

    @property
    def since(self) -> datetime:
        """When the present state began, for people to read."""
        return at_wall(self._look(lambda _: self._breaker.since), self._engine.offset())

    def status(self) -> DependencyReport:
        """Say everything that is known of it at this instant."""
        offset = self._engine.offset()
        return self._look(lambda now: self._report(now, offset))

    def __repr__(self) -> str:
        return f"<Dependency {self.name!r} {self.state if self.declared else 'undeclared'}>"

    # --- guarding ---------------------------------------------------------------------------------

    @overload
    def guard(self, function: F, /, *, long: bool = False) -> F: ...
    @overload
    def guard(self, /, *, long: bool = False) -> Callable[[F], F]: ...
    def guard(self, function: F | None = None, /, *, long: bool = False) -> F | Callable[[F], F]:
        """Guard a function, coroutine function, generator, async generator, method or callable.

        Signature, name, docstring and types stay; exceptions pass through as they are. A call that the
        breaker refuses raises `DependencyUnhealthy` and is not made. `long=True` is for calls that wait
        by nature (a subscription): the gate does not wait for their end. Raises `ConfigurationError` for
        what cannot be guarded, such as a class.
        """
        if function is None:
            return lambda decorated: wrap(decorated, self, long=long)
        wrapped: F = wrap(function, self, long=long)
        return wrapped

    def permit(self, *, long: bool = False) -> Permit:
        """Guard a block: `with dependency.permit(): ...`, in threads and tasks alike.

        Entering raises `DependencyUnhealthy` when the breaker refuses.
        """
        return Permit(self, long=True) if long else Permit(self)

    def report(
        self,
        outcome: Outcome | str | BaseException,
        *,
        cause: str = "",
        retry_after: float | None = None,
        writes: bool = False,
    ) -> None:
        """Report how a call ended that no guard has seen: over a raw socket, or in another process.

        `outcome`: `"success"`, `"failure"`, `"ignored"` (it was not answered, and that decides nothing),
        or the exception that was raised, which the classifier judges. `cause`: why, for people, without
        secrets. `retry_after`: the seconds for which the dependency has asked to be left alone. `writes`:
        it was a write, so it speaks of the write facet: a failed one says that writes are refused and the
        rest goes on. A failure taints the open scope. Raises `ConfigurationError` for bad arguments.
        """
        if not isinstance(outcome, BaseException) and outcome not in tuple(Outcome):
            msg = f'outcome must be "success", "failure", "ignored" or an exception, got {outcome!r}'
            raise ConfigurationError(msg)
        if retry_after is not None:
            check_number("retry_after", retry_after, least=0)
        report_by_hand(self, outcome, cause=cause, pause=retry_after, facets=(WRITES,) if writes else ())

    # --- people -----------------------------------------------------------------------------------

    def trip(self, reason: str = "tripped by hand") -> None:
        """Open its breaker for one cooldown, as if it had failed. Nothing happens where it is open."""
        self._by_hand(self._breaker.trip, reason)

    def hold(self, reason: str = "held by hand") -> None:
        """Open its breaker until `release`. `retry_after` is `None` meanwhile."""
        self._by_hand(self._breaker.hold, reason)

    def release(self, reason: str = "released by hand") -> None:
        """End a hold: the next call or probe is the trial. Nothing happens where it is not held."""
        self._by_hand(self._breaker.release, reason)

    def reset(self, reason: str = "reset by hand") -> None:
        """Close its breaker, forget its counters and the growth of its cooldown.

        An outage that has not settled goes on settling: a reset is no proof of health.
        """
        self._by_hand(self._breaker.reset, reason)

    def _by_hand(self, step: Callable[..., None], reason: str) -> None:
        check_name("reason", reason)
        verb = step.__name__
        if self._breaker.settings.mode is Mode.DISABLED:
            msg = f"cannot {verb} {self.name}: it is {'disabled' if self.declared else 'not declared'}"
            raise ConfigurationError(msg)
        now, draw = self._now(), self._draw()
        self._engine.run(lambda: step(now, draw=draw, cause=Cause(code=verb, text=reason)))
        self._settled()

    @property
    def epoch(self) -> int | None:
        """The number of the epoch of its data, as it was read last; `None` without an epoch function."""
        return None if self._epoch_function is None else self._epoch.number

    @property
    def epoch_stamp(self) -> str:
        """What names its data over a restart; empty without an epoch function."""
        reading = self._epoch.reading
        return (
            "" if self._epoch_function is None or reading is None else f"{reading.lineage} {reading.instance}"
        )

    @property
    def _is_well(self) -> bool:
        """Whether what is read there may be believed: healthy, and holding the data that was known."""
        epoch = self._epoch
        known = self._epoch_function is None or not (epoch.failed or epoch.unexplained)
        return known and self.state is HealthState.HEALTHY

    def acknowledge_epoch(self, *, actor: str, reason: str) -> None:
        """Take the data that is there as the data that is known: a person accepts what was lost.

        What was learnt before stays void. It is written to the ledger first. Raises `ConfigurationError`
        where no epoch function was declared, or it has told nothing yet.
        """
        check_name("actor", actor)
        check_name("reason", reason)
        if self._epoch_function is None or self._epoch.reading is None:
            msg = f"{self.name} has no epoch to acknowledge: declare it with epoch=, and read it once"
            raise ConfigurationError(msg)
        self._records.ledger.note("epoch acknowledged", reason, actor, subject=self.name)
        self._accept_epoch()

    def read_epoch(self) -> int:
        """Ask the epoch function now and give the number of the epoch. A coroutine function raises."""
        ask(self._read_epoch())
        return self._epoch.number

    async def aread_epoch(self) -> int:
        """Ask the epoch function now, awaiting it, and give the number of the epoch."""
        await aask(self._read_epoch())
        return self._epoch.number

    # --- declaring --------------------------------------------------------------------------------

    def declare(self, declaration: Declaration) -> None:
        """Fill the handle. Equal declarations are one; different ones raise and name the difference."""
        classify = make_classifier(declaration.classify)
        if declaration.probe is not None:
            check_probe(declaration.probe)
        if declaration.epoch is not None and not callable(declaration.epoch):
            msg = f"epoch must be a function without arguments, got {declaration.epoch!r}"
            raise ConfigurationError(msg)
        settings = declaration.policy.to_settings(self._gate)
        now, draw = self._now(), self._draw()

        def fill() -> None:
            if self._declaration is not None:
                self._compare(self._declaration, declaration)
                return
            self._declaration = declaration
            self._place = next(_keys)
            self._declared_classify = classify
            self._classify = classify or self._classify
            self._timed = settings.slow_after is not None
            self._wait = declaration.policy.cooldown_wait
            cause = Cause(code="declared", text="declared")
            self._breaker.reconfigure(settings, now, draw=draw, cause=cause)
            probe = declaration.probe or self._probe
            if probe is not None:
                self._install(probe, now, draw)
            self._epoch_function = cast("EpochFunction | None", declaration.epoch)

        self._engine.run(fill)
        self._settled()

    def _compare(self, old: Declaration, new: Declaration) -> None:
        differences = [
            difference
            for field, was, wanted in zip(Declaration._fields, old, new, strict=True)
            for difference in _differences(field, was, wanted)
        ]
        if differences:
            msg = f"dependency {self.name!r} is declared already with {', '.join(differences)}"
            raise ConfigurationError(msg)

    def provide(self, *, probe: Probe | None = None, classify: Classifier | None = None) -> None:
        """Give it what a call site knows; what its declaration says goes first."""
        now, draw = self._now(), self._draw()

        def fill() -> None:
            self._classify = self._classify or classify
            if probe is not None and self._probe is None:
                self._install(probe, now, draw)

        self._engine.run(fill)
        self._settled()
        self._engine.wake()

    def _impair(self, facet: str, cause: Cause) -> None:
        """Note that a facet fails, such as one node of many; the dependency is `degraded` meanwhile."""
        self._facet(self._breaker.impair, facet, cause)

    def _mend(self, facet: str) -> None:
        """Note that a facet works again, or is no more."""
        self._facet(self._breaker.mend, facet, Cause(code="mended", text=f"{facet} works again"))

    def _facet(self, step: Callable[..., None], facet: str, cause: Cause) -> None:
        now, draw = self._now(), self._draw()
        self._engine.run(lambda: step(facet, now, draw=draw, cause=cause))
        self._settled()

    def _install(self, probe: Any, now: float, draw: float) -> None:
        declared = self._declaration
        settings = ProbeSettings() if declared is None else declared.probe_policy.to_settings()
        self._probe = probe
        self._schedule = ProbeSchedule(self._breaker, settings, now, draw=draw)
        self._breaker.head_start = PROBE_HEAD_START if self._engine.probing else 0.0

    # --- for the rest of the runtime --------------------------------------------------------------

    def _now(self) -> float:
        return self._engine.clock.monotonic()

    def _draw(self) -> float:
        return self._engine.rng.random()

    def _look(self, read: Callable[[float], R]) -> R:
        now, draw = self._now(), self._draw()

        def look() -> R:
            self._breaker.tick(now, draw=draw)
            return read(now)

        answer = self._engine.run(look, interrupted=lambda: read(now))
        self._settled()
        if now >= self._engine.diary.due:
            self._engine.catch_up(now)
        return answer

    def _settled(self) -> None:
        """Do what follows a step, now that the lock is free: ask for a cooldown, and tell of the step."""
        if self._wait is not None:
            self._ask_cooldown(self._wait)
        if self._schedule is not None and self._engine.prober is not None:
            self._engine.moved.append(self)
        if self._engine.mail:
            self._engine.deliver()

    def _ask_cooldown(self, wait: Callable[[RetryCallState], float]) -> None:
        """Let a tenacity wait decide how long this generation stays open; ask once for each."""
        generation = self._breaker.era.generation
        asked, self._cooldown_asked = self._cooldown_asked, generation
        if asked is generation or generation.state is not BreakerState.OPEN:
            return
        if generation.held or generation.due <= max(generation.began, self._now()):  # due at once
            return
        state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]  # no retry runs
        state.attempt_number = max(1, self._breaker.level)
        try:
            cooldown = float(wait(state))
            if not 0 <= cooldown < float("inf"):
                msg = (
                    f"cooldown of {self.name} must be a finite number of seconds, at least 0, got {cooldown}"
                )
                raise ConfigurationError(msg)
        except Exception as error:  # noqa: BLE001 - the default cooldown stands
            log.fault("cooldown_failed", error, dependency=self.name)
            return
        self._engine.run(lambda: self._breaker.set_cooldown(generation, cooldown))
        self._engine.wake()

    def _reborn(self) -> None:
        """Begin again in a forked child."""
        now = self._now()
        self._breaker.reborn(now)
        self._breaker.head_start = 0.0
        self._hanging.clear()
        if self._probe is not None:
            self._install(self._probe, now, self._draw())

    def _claim(self, now: float) -> float | None:
        """Take the flight of a probe that is due, and give its time-out. A step, under the lock."""
        schedule = self._schedule
        return schedule.settings.timeout if schedule is not None and schedule.claim(now) else None

    def _flight_over(self, *, decided: bool) -> None:
        """Give the flight of a probe back, and plan the next one."""
        now, draw, schedule = self._now(), self._draw(), self._schedule
        if schedule is not None:
            self._engine.run(lambda: schedule.done(now, draw=draw, decided=decided))
            self._engine.moved.append(self)
        landings, self._landings = self._landings, []
        for landed in landings:
            with suppress(RuntimeError):  # the loop of who waited is closed
                landed()

    def _order(self) -> bool:
        """Ask for a probe as soon as it may be; say whether that is news. The caller holds the lock."""
        if self._schedule is None or not self._schedule.order():
            return False
        self._engine.moved.append(self)
        return True

    def _read_epoch(self) -> Questions[None]:
        """Ask which data it holds. A reading that fails proves nothing."""
        function, epoch, run = self._epoch_function, self._epoch, self._engine.run
        if function is None:
            return
        turn = epoch.turn
        try:
            with Scope(f"epoch of {self.name}"[:200]) as around:
                reading = reading_of((yield function))
        except Exception as error:  # noqa: BLE001 - users' code; cannot tell means no
            ours = isinstance(error, ConfigurationError | Unproven)
            why = str(error) if ours else cause_of(error).text
            run(lambda: epoch.miss(why))
            return
        if around.missed:
            run(lambda: epoch.miss("a call did not answer while it was read"))
            return
        if epoch.reading is None or epoch.unexplained:  # before this process, or meanwhile by another one
            known = self._records.known_epoch(self.name)
            if known is not None and (epoch.reading is None or known == reading):
                run(lambda: epoch.restore(known))
        before, now = epoch.accepted, self._now()
        run(lambda: epoch.see(reading, now, turn))
        if epoch.accepted != before:
            self._records.keep_epoch(self.name, epoch.accepted)

    def _accept_epoch(self) -> None:
        self._engine.run(self._epoch.accept)
        self._records.keep_epoch(self.name, self._epoch.accepted)

    def _rebase_epoch(self) -> None:
        """Take what is there as what is known where the population is back and time has passed."""
        now, settle = self._now(), self._gate.settle_min
        if self._engine.run(lambda: self._epoch.rebase(now, settle)):
            self._records.keep_epoch(self.name, self._epoch.accepted)

    def _facts(self, now: float, offset: float) -> DependencyFacts:
        """Give what the gate has to know. The caller holds the lock and has ticked the breaker."""
        breaker = self._breaker
        last, state = breaker.last_miss, breaker.health(now)
        well = state is HealthState.HEALTHY  # then nobody reads since when
        return DependencyFacts(
            name=self.name,
            declared=self.declared,
            state=state,
            breaker=breaker.state,
            unresolved_miss=breaker.unresolved_miss,
            since_miss=None if last is None else max(0.0, now - last),
            retry_after=breaker.retry_after(now),
            settle_left=breaker.settle_left(now),
            probe_timeout=None if self._schedule is None else self._schedule.settings.timeout,
            since="" if well else f"{at_wall(breaker.since, offset):%H:%M:%S} UTC",
            cause=breaker.cause.text,
            epoch_unknown=self._epoch.failed if self._epoch_function is not None else "",
            epoch_unexplained=self._epoch.unexplained,
            writes_refused=None if (refused := breaker.impaired.get(WRITES)) is None else refused.text,
        )

    @property
    def _traffic(self) -> int:
        """Give a number that grows with every call that needs no step."""
        generation = self._breaker.era.generation
        return counted(generation.tally) + counted(generation.turned_away) + counted(self._breaker.late)

    def _next_probe(self, now: float) -> float | None:
        """Give the seconds until its next probe; `None` when none is planned."""
        due = None if self._schedule is None else self._schedule.due()
        return None if due is None else max(0.0, due - now)

    def _report(self, now: float, offset: float) -> DependencyReport:
        from .report import DependencyReport  # noqa: PLC0415 - pydantic's models load when they are used

        breaker = self._breaker
        return DependencyReport(
            name=self.name,
            declared=self.declared,
            critical=self.critical,
            state=breaker.health(now),
            breaker=breaker.state,
            held=breaker.held,
            mode=str(breaker.settings.mode) if self.declared else "undeclared",
            since=at_wall(breaker.since, offset),
            cause=breaker.cause.text,
            retry_after=breaker.retry_after(now),
            impaired={facet: why.text for facet, why in breaker.impaired.items()},
            paused=breaker.pause_left(now),
            unresolved_miss=breaker.unresolved_miss,
            because=None if breaker.health(now) is HealthState.HEALTHY else self.because,
            depends_on=self.depends_on,
            epoch=self.epoch,
            next_probe=self._next_probe(now),
            last_miss=None if breaker.last_miss is None else at_wall(breaker.last_miss, offset),
            generation=breaker.era.generation.number,
            level=breaker.level_now(now),
            successes=breaker.successes,
            failures=breaker.failures,
            refusals=breaker.refusals,
            suppressed=breaker.suppressed,
            late_dropped=breaker.late_dropped,
            probed=self._probe is not None,
        )


def _differences(field: str, was: Any, wanted: Any) -> list[str]:
    """Say in what two settings differ; of two policies, in which of their fields."""
    if was == wanted:
        return []
    if hasattr(was, "model_fields_set") and type(was) is type(wanted):
        return [
            f"{field}.{name}={getattr(was, name)!r}, not {getattr(wanted, name)!r}"
            for name in type(was).model_fields
            if getattr(was, name) != getattr(wanted, name)
        ]
    return [f"{field}={was!r}, not {wanted!r}"]


def check_probe(probe: object) -> None:
    """Raise `ConfigurationError` unless `probe` can be called."""
    if not callable(probe) or isinstance(probe, type):
        msg = f"probe must be a function or a coroutine function without arguments, got {probe!r}"
        raise ConfigurationError(msg)
