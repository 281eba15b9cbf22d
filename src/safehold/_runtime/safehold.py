"""The composition root: everything that one Safehold knows hangs here."""

from __future__ import annotations

import os
import random
import threading
import weakref
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar, cast, overload

from .._core.breaker import PROBE_HEAD_START
from .._core.budget import Budget
from .._core.configuration import ConfigurationError, check_count, check_name
from .._core.evidence import MAX_AGE
from .._core.gate import GateSettings, Verdict
from .._core.health import HealthState, overall
from . import log
from . import scope as scopes
from .acts import gated, making_of
from .budgets import BudgetHandle
from .classify import Classify, make_classifier
from .clock import Clock, SystemClock
from .dependency import Declaration, Dependency, EpochFunction, Probe, check_probe
from .engine import Engine, Listener, Subscription, nobody
from .fork import begin_again_in_children
from .gate import Gate
from .grants import LIFETIME, Grant, GrantPolicy, Grants, make_request, told_of
from .ledger import Ledger
from .limiter import Limiter, Limiters
from .operations import Operation, make_operation
from .pace import Pace, Paces, settings_of
from .plans import Plan, explicit, judged, plan_of
from .prober import STOP_TIMEOUT, LoopProber, ThreadProber
from .probing import Probing
from .questions import aask, ask
from .records import Records
from .scope import Scope
from .subsystem import Subsystem, Subsystems
from .sweep import AsyncSweep, Sweep, Swept
from .ticket import running_act
from .waiting import Events, await_until, wait_until, wanted_states
from .witness import WitnessDecorator, Witnesses, testify

if TYPE_CHECKING:
    from .inventory import Inventory
    from .policies import BreakerPolicy, GatePolicy, LogPolicy, ProbePolicy
    from .report import DependencyReport, HealthReport
    from .timeline import Timeline

F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")

_alive: weakref.WeakSet[Safehold] = weakref.WeakSet()
_JUST_NOW = 60.0  # seconds for which a block is told in the status
_SAME_REPORT = 0.05  # seconds for which a report is given again while nothing changes
_dice = random.Random()  # noqa: S311 - jitter, no secret; not the shared one, which people seed


class _Told(NamedTuple):
    """A report that was given, when, and at which version of everything."""

    at: float
    version: tuple[int, int]
    report: HealthReport


class Safehold:
    """What a service knows of everything that it depends on, and the gate in front of what it destroys.

    `name` appears in reports. `clock` and `rng` are for tests: a `Clock` with `monotonic()` and `wall()`,
    a `random.Random` for jitter. `gate` says when destructive operations are held back.

    Making one starts no thread, opens no socket and configures no logging. All methods may be called
    from any thread or task, and at import time: names are looked up late.
    """

    def __init__(
        self,
        name: str = "health",
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        gate: GatePolicy | None = None,
    ) -> None:
        check_name("name", name)
        if clock is not None and not isinstance(clock, Clock):
            msg = f"clock must have monotonic() and wall(), got {clock!r}"
            raise ConfigurationError(msg)
        if rng is not None and not isinstance(rng, random.Random):
            msg = f"rng must be a random.Random, got {rng!r}"
            raise ConfigurationError(msg)
        self.name = name
        self._gate_settings = GateSettings()
        if gate is not None:
            from .policies import GatePolicy, check_policy  # noqa: PLC0415 - pydantic's models load when used

            self._gate_settings = check_policy("gate", gate, GatePolicy).to_settings()
        self._engine = Engine(clock or SystemClock(), rng or _dice)
        self._handles: dict[str, Dependency] = {}  # only ever added to, in single atomic steps
        self._engine.diary.find = self._handles.get
        self._witnesses = Witnesses()
        self._records = Records(self._engine)
        self._ledger, self._budgets = self._records.ledger, self._records.budgets
        self._grants = Grants(self._engine)
        self._paces, self._limiters = Paces(self._engine), Limiters(self._engine.clock)
        self._subsystems = Subsystems(self._engine)
        self._declarations = 0  # how many there were; operations look again when it moves
        self._gate = Gate(self)
        self._starting = threading.Lock()  # one prober at a time
        self._started = False  # whether probes shall run on a thread
        self._told: _Told | None = None  # the last report
        on_advance = getattr(clock, "on_advance", None)
        if callable(on_advance):
            on_advance(self._wake)
        _alive.add(self)

    def _wake(self) -> None:
        self._engine.wake()

    # --- dependencies -----------------------------------------------------------------------------

    def dependency(
        self,
        name: str,
        *,
        critical: bool = False,
        policy: BreakerPolicy | None = None,
        classify: Classify = None,
        probe: Probe | None = None,
        probe_policy: ProbePolicy | None = None,
        epoch: EpochFunction | None = None,
        depends_on: Collection[str] = (),
    ) -> Dependency:
        """Declare a dependency and give its handle.

        `critical`: the service cannot do without it; automatic operations require all critical ones
        unless they say otherwise. `classify`: which exceptions are failures: exception types, or a
        function from the exception to true (failure) or false (the application's own error). `probe`: a
        function or coroutine function without arguments that returns when the dependency answers. `epoch`:
        one that says which data it holds (see `EpochReading`); it is asked before each destructive operation
        that requires this dependency, and a change that nothing explains blocks them. `depends_on`: the names
        of what it needs itself: while one of those is down it is that one's outage, and it is probed after.

        Declaring it again with equal settings gives the same handle; with different ones it raises
        `ConfigurationError` and names the difference.
        """
        from .policies import BreakerPolicy, ProbePolicy, check_policy  # noqa: PLC0415 - pydantic's models load when used

        _load_what_an_outage_needs()
        if not isinstance(critical, bool):
            msg = f"critical must be True or False, got {critical!r}"
            raise ConfigurationError(msg)
        if probe is not None:
            check_probe(probe)
        make_classifier(classify)
        declaration = Declaration(
            critical,
            check_policy("policy", policy, BreakerPolicy),
            classify,
            probe,
            check_policy("probe_policy", probe_policy, ProbePolicy),
            epoch,
            check_roots(self, name, depends_on),
        )
        handle = self[name]
        handle.declare(declaration)
        self._declarations += 1
        self._engine.wake()
        return handle

    def __getitem__(self, name: str) -> Dependency:
        """Give the handle of a name, declared or not."""
        handle = self._handles.get(name) if isinstance(name, str) else None
        if handle is None:
            made = Dependency(name, self._engine, self._gate_settings, self._records, self.__getitem__)
            handle = self._handles.setdefault(name, made)
        return handle

    def __iter__(self) -> Iterator[Dependency]:
        """Give all handles: the declared ones in the order of their declarations, then the others."""
        handles = list(self._handles.values())
        return iter(sorted(handles, key=lambda handle: handle._place))

    def __contains__(self, name: object) -> bool:
        """Whether this dependency was declared."""
        return isinstance(name, str) and name in self._handles and self._handles[name].declared

    def _required(self, names: Collection[str] | None, written: Collection[str]) -> list[Dependency]:
        """Give the dependencies that an operation requires, in the order of their declarations."""
        if names is None:
            names = dict.fromkeys([*(handle.name for handle in self if handle.critical), *written])
        return sorted((self[name] for name in names), key=lambda handle: handle._place)

    def _known(self, names: Iterable[str]) -> list[Dependency]:
        return [self._handles[name] for name in dict.fromkeys(names) if name in self._handles]

    # --- guarding and gating ----------------------------------------------------------------------

    def guard(self, name: str, *, long: bool = False) -> Callable[[F], F]:
        """Guard what is decorated as calls to this dependency: see `Dependency.guard`."""
        return self[name].guard(long=long)

    def destructive(
        self,
        name: str,
        *,
        trigger: str = "automatic",
        requires: Collection[str] | None = None,
        writes: Collection[str] = (),
        tolerates: Collection[str] = (),
        subject: str | None = None,
        evidence: str | None = None,
        evidence_age: float = MAX_AGE,
        budget: Budget | None = None,
        subject_type: str | None = None,
        owner: str | None = None,
    ) -> Callable[[F], F]:
        """Register what is decorated as a destructive operation, and put the gate in front of it.

        `trigger`: `"automatic"` (code decides) or `"requested"` (a person's explicit wish). `requires`:
        the dependencies that it relies on; `None` for all critical ones, `()` for none. `writes`:
        those of them that it must be able to write to: while one refuses writes, a requested operation is
        blocked too. `tolerates`:
        dependencies whose misses in the scope do not matter to an automatic operation. `subject`: the
        parameter that says what is destroyed. `evidence`: the witness that must have found this very subject
        absent, in this scope, at most `evidence_age` seconds ago, with no failure since. `budget`: how much
        may be destroyed; operations of one `subject_type` (by default the name up to its first dot) count
        together. `owner`: who answers for it, for the inventory.

        A blocked call raises `OperationBlocked` and has not run. Raises `ConfigurationError` for bad
        arguments, and when another operation has this name.
        """
        check_name("operation name", name)

        def decorate(function: F) -> F:
            if isinstance(function, staticmethod | classmethod):
                descriptor: Any = function
                return cast("F", type(descriptor)(decorate(descriptor.__func__)))
            if isinstance(function, type) or not callable(function):
                msg = f"destructive({name!r}) decorates functions and methods, got {function!r}"
                raise ConfigurationError(msg)
            operation = make_operation(
                function,
                name,
                trigger=trigger,
                requires=requires,
                writes=writes,
                tolerates=tolerates,
                subject=subject,
                evidence=evidence,
                evidence_age=evidence_age,
                budget=budget,
                subject_type=subject_type,
                owner=owner,
            )
            self._gate.register(operation)
            wrapped: F = gated(function, self._gate, operation)
            return wrapped

        return decorate

    def witness(
        self, dependency: str, *, name: str | None = None, subject: str | None = None
    ) -> WitnessDecorator:
        """Let what is decorated give `Evidence`: `True` makes present, `False` absent, all else unknown.

        The function is asked as a guarded call to `dependency`. Whatever it raises makes unknown, and so does
        a guarded call inside it that did not answer, even where it was swallowed. Return `UNKNOWN` for an
        answer that is no proof. `name`: its name for `destructive(evidence=...)`, by default the function's.
        `subject`: the parameter that says what it is about, by default the first.

        Raises `ConfigurationError` for bad arguments, and when another witness has this name.
        """
        handle = self[dependency]
        return lambda function: testify(function, self._witnesses, handle, name, subject)

    def check(self, operation: str, subject: str | None = None) -> Verdict:
        """Ask the gate without running anything. Never raises; orders the probes that could help."""
        return self._gate.check(operation, subject)

    def recheck(self) -> None:
        """Ask the gate again in the middle of a long operation: health, scope, epoch, observer, interruption.

        Raises `OperationBlocked` when it must not go on. Outside of all operations nothing happens.
        """
        act = running_act()
        if act is not None:
            act.recheck()

    # --- plans, grants and budgets ----------------------------------------------------------------

    def plan(self, operation: str, subjects: Collection[str]) -> Plan:
        """Nominate all subjects at once: the budget judges the whole, and allows all of them or none.

        A plan that fits charges nothing twice: the calls for its subjects are covered by it. A fresh plan
        that fits ends a trip, once an hour has passed since something did not fit. Raises
        `ConfigurationError` when `subjects` is no explicit list or the operation is not registered.
        """
        registered, names = self._gate.operation(operation), explicit("subjects", subjects)
        population = ask(self._gate.questions(registered))
        return plan_of(self._gate, registered, names, judged(self._gate, registered, names, population))

    async def aplan(self, operation: str, subjects: Collection[str]) -> Plan:
        """Do the same as `plan`, where the population or an epoch has to be awaited."""
        registered, names = self._gate.operation(operation), explicit("subjects", subjects)
        population = await aask(self._gate.questions(registered))
        return plan_of(self._gate, registered, names, judged(self._gate, registered, names, population))

    def grant(
        self,
        *,
        operation: str,
        actor: str,
        reason: str,
        overrides: Collection[str],
        subjects: Collection[str] | None = None,
        plan: Plan | None = None,
        expires_in: float = LIFETIME,
        approved_by: str | None = None,
    ) -> Grant:
        """Give leave to act in spite of a block, once for each subject. It is written to the ledger first.

        `overrides` are the codes of the rules that it lifts; what else blocks, blocks. `subjects` or `plan`
        say what it is for. `expires_in`: seconds (above 0, a day at most; default 600). `approved_by`: a
        second person, where the policy asks for one.

        Raises `ConfigurationError` for bad arguments and `GrantDeniedError` when the policy says no.
        """
        registered = self._gate.operation(operation)
        if plan is not None and (plan.operation != operation or subjects is not None):
            msg = f"plan is for {plan.operation!r}; give the plan of {operation!r}, or subjects"
            raise ConfigurationError(msg)
        request = make_request(
            operation=operation,
            has_subject=registered.subject is not None,
            subjects=subjects if plan is None else plan.subjects,
            actor=actor,
            reason=reason,
            overrides=overrides,
            expires_in=expires_in,
            plan=None if plan is None else plan.digest,
            approved_by=approved_by,
        )
        grant = self._grants.make(request)
        approved = "" if approved_by is None else f" (approved by {approved_by})"
        self._ledger.note(
            operation,
            reason + approved,
            actor,
            subject=told_of(request.subjects),
            reasons=tuple(sorted(request.overrides)),
            grant=grant.id,
        )
        return grant

    def force(self, grant: Grant, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a destructive operation with a grant: `await health.force(grant, terminate, "s1")`.

        `function` is the operation, a bound method or a partial of it; what it gives is given. The grant is
        for this very call: nothing that it calls inherits it. A block that the grant does not lift raises
        `OperationBlocked`, and leaves the grant as it was.
        """
        if not isinstance(grant, Grant):
            msg = f"grant must come from health.grant(...), got {grant!r}"
            raise ConfigurationError(msg)
        making, first, named = making_of(function, itself=True)
        forced: Callable[..., R] = making.form(grant)
        return forced(*first, *args, **{**named, **kwargs})

    @overload
    def sweep(  # type: ignore[overload-overlap]  # a coroutine is an object, too; the first that fits counts
        self,
        function: Callable[..., Coroutine[Any, Any, object]],
        *,
        nominate: Callable[[], object],
        confirm: Callable[..., object],
        every: float = ...,
        wait: float = ...,
        confirmations: int = ...,
        pace: float = ...,
        dry_run: bool = ...,
        name: str | None = ...,
        progress: Callable[[Swept], object] | None = ...,
    ) -> AsyncSweep: ...
    @overload
    def sweep(
        self,
        function: Callable[..., object],
        *,
        nominate: Callable[[], object],
        confirm: Callable[..., object],
        every: float = ...,
        wait: float = ...,
        confirmations: int = ...,
        pace: float = ...,
        dry_run: bool = ...,
        name: str | None = ...,
        progress: Callable[[Swept], object] | None = ...,
    ) -> Sweep: ...
    def sweep(
        self,
        function: Callable[..., Any],
        *,
        nominate: Callable[[], Any],
        confirm: Callable[..., Any],
        every: float = 300.0,
        wait: float = 60.0,
        confirmations: int = 2,
        pace: float = 0.0,
        dry_run: bool = False,
        name: str | None = None,
        progress: Callable[[Swept], object] | None = None,
    ) -> Sweep | AsyncSweep:
        """Make a periodic clean-up: nominate, confirm, wait, confirm again, act.

        `function`: a destructive operation with a `subject`. `nominate`: gives the subjects that may be
        gone, as any series. `confirm`: the witness that is asked about each. A subject is destroyed when it
        was found absent in `confirmations` rounds (at least 1) over `wait` *watched* seconds (at least 0),
        during which its dependencies and this process were well, and once more right before the act.
        `every`: seconds between rounds (above 0). `pace`: seconds between two acts (at least 0). `dry_run`:
        all but the acts. `progress`: told of each subject that was acted upon or spared.

        `run_once()` does one round and gives its report, `run()` goes on for ever; where the operation is a
        coroutine function, both are awaited. Raises `ConfigurationError` for bad arguments.
        """
        kind = AsyncSweep if making_of(function)[0].operation.is_async else Sweep
        return kind(
            self,
            function,
            nominate=nominate,
            confirm=confirm,
            every=every,
            wait=wait,
            confirmations=confirmations,
            pace=pace,
            dry_run=dry_run,
            name=name,
            progress=progress,
        )

    def budget(self, subject_type: str) -> BudgetHandle:
        """Give what is counted of one type of subject, and the way to reset it."""
        return BudgetHandle(subject_type, self._budgets, self._ledger)

    def configure(
        self,
        *,
        gate: GatePolicy | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        ledger: str | os.PathLike[str] | None = None,
        grants: GrantPolicy | None = None,
        log: LogPolicy | None = None,
    ) -> None:
        """Set up a Safehold that exists already, such as the default one; `None` leaves a setting as it is.

        `gate`: when destructive operations are held back; to be set before the first dependency is declared.
        `state_dir`: a directory of this Safehold's own, made private, where ledger, budgets, epochs and marks
        survive a restart; what is missing or corrupt there counts as used up. `ledger`: the path of the
        durable ledger alone. `grants`: who may be granted what. `log`: how much the log says.

        Raises `ConfigurationError` when that cannot be.
        """
        if gate is not None:
            from .policies import GatePolicy, check_policy  # noqa: PLC0415 - pydantic's models load when used

            if self._declarations:
                msg = "gate must be configured before the first dependency is declared"
                raise ConfigurationError(msg)
            self._gate_settings = check_policy("gate", gate, GatePolicy).to_settings()
            for handle in self._handles.values():
                handle._gate = self._gate_settings
        if log is not None:
            from .policies import LogPolicy, check_policy  # noqa: PLC0415 - pydantic's models load when used

            self._engine.diary.settings = check_policy("log", log, LogPolicy).to_settings()
        if grants is not None:
            if not callable(grants):
                msg = f"grants must be a function of a GrantRequest, got {grants!r}"
                raise ConfigurationError(msg)
            self._grants.policy = grants
        if state_dir is not None:
            self._records.keep(state_dir)
        if ledger is not None:
            self._records.keep_ledger(ledger)

    @property
    def ledger(self) -> Ledger:
        """What destructive operations did, and which were blocked: `health.ledger.entries()`."""
        return self._ledger

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Every registered destructive operation, by name."""
        return self._gate.operations

    def inventory(self) -> Inventory:
        """Give every registered operation with what it requires and demands, for people to review."""
        from .inventory import inventory_of  # noqa: PLC0415 - pydantic's models load when they are used

        return inventory_of(self)

    def scope(self, name: str = "scope") -> Scope:
        """Open a stretch of work, `with health.scope("sweep"): ...`; misses in it block what it decides."""
        self._gate.watch()
        return Scope(name)

    @staticmethod
    def carry(function: F) -> F:
        """Let `function` run in the present scope wherever it runs: `pool.submit(health.carry(work))`."""
        return scopes.carry(function)  # type: ignore[return-value]  # the signature is kept

    # --- easing off -------------------------------------------------------------------------------

    def pace(
        self,
        *dependencies: str,
        every: float = 5.0,
        degraded: float | None = None,
        unhealthy: float | None = None,
        recovering: float | None = None,
        jitter: float = 0.1,
        priority: int = 0,
        name: str | None = None,
    ) -> Pace:
        """Make the ticks of a loop that slows down with what it calls, for `for` and `async for`.

        `every`: seconds between two ticks while all is well, or not known yet (above 0). `degraded`,
        `recovering`: instead of that (default: four times as long). `unhealthy`: likewise; `None` pauses
        until it recovers, and so does `math.inf` for any of them. The worst of several dependencies
        decides. `jitter`: share of the interval by which chance puts a tick off, 0 to 1. `priority`: after
        a pause, loops of a higher one wake first; destructive sweeps should be last. `name`: for reports.

        `for tick in ...` waits on a thread; as a decorator it makes a function the body of a loop: see
        `Pace`.
        """
        settings = settings_of(
            every=every, degraded=degraded, recovering=recovering, unhealthy=unhealthy, jitter=jitter
        )
        handles = tuple(self[dependency] for dependency in dict.fromkeys(dependencies))
        return Pace(self._paces, handles, settings, priority=priority, name=name)

    def limiter(
        self,
        dependency: str,
        concurrency: int,
        *,
        max_waiting: int = 0,
        wait_timeout: float | None = None,
    ) -> Limiter:
        """Give the limiter of a dependency: at most `concurrency` calls at a time, the rest waits or fails.

        `max_waiting`: how many may wait (default 0). `wait_timeout`: seconds that each waits at most (`None`:
        as long as it takes). Refused calls raise `Saturated`. Again with equal limits: the same limiter, with
        other ones: `ConfigurationError`.
        """
        handle = self[dependency]
        return self._limiters.get(handle, concurrency, max_waiting=max_waiting, wait_timeout=wait_timeout)

    def subsystem(
        self, name: str, *, on: Collection[str], states: Mapping[str, str] | None = None
    ) -> Subsystem:
        """Give a part of the service that does less while what it needs is not well: see `Subsystem`.

        `on`: the dependencies; the worst decides. `states`: `"full"`, `"reduced"` or `"paused"` by health,
        where it shall be another than usual (healthy: full; unhealthy: paused; else: reduced).
        """
        return self._subsystems.get(name, tuple(self[one] for one in dict.fromkeys(on)), states)

    # --- telling ----------------------------------------------------------------------------------

    def status(self) -> HealthReport:
        """Say how everything is, from memory: nothing is called, and nothing is waited for.

        Between changes the same report is given again, for a twentieth of a second at most.
        """
        from .report import HealthReport  # noqa: PLC0415 - pydantic's models load when they are used

        engine, told = self._engine, self._told
        if told is not None:
            age = engine.clock.monotonic() - told.at
            if 0 <= age < _SAME_REPORT and (engine.steps, self._traffic()) == told.version:
                return told.report
        now, draw, offset = engine.clock.monotonic(), engine.rng.random(), engine.offset()
        handles = list(self)

        def read() -> dict[str, DependencyReport]:
            return {handle.name: handle._report(now, offset) for handle in handles if handle.declared}

        def look() -> dict[str, DependencyReport]:
            for handle in handles:
                handle._breaker.tick(now, draw=draw)
            return read()

        reports = engine.run(look, interrupted=read)
        for handle in handles:
            handle._settled()
        if now >= engine.diary.due:
            engine.catch_up(now)
        waits = [r.retry_after for r in reports.values() if r.state is not HealthState.HEALTHY]
        report = HealthReport(
            name=self.name,
            at=datetime.fromtimestamp(engine.clock.wall(), UTC),
            overall=overall((report.critical, report.state) for report in reports.values()),
            retry_after=None if None in waits else max((w for w in waits if w is not None), default=0.0),
            dependencies=reports,
            undeclared=tuple(handle.name for handle in handles if not handle.declared),
            probing=engine.probing,
            blocked=self._ledger.blocked_since(engine.clock.wall() - _JUST_NOW),
            loops=tuple(pace.report() for pace in self._paces),
            limiters=tuple(limiter.report() for limiter in self._limiters),
            subsystems=tuple(subsystem.report() for subsystem in self._subsystems),
        )
        self._told = _Told(now, (engine.steps, self._traffic()), report)
        return report

    def _traffic(self) -> int:
        return sum(handle._traffic for handle in list(self._handles.values()))

    def subscribe(self, listener: Listener, *, threaded: bool = False) -> Subscription:
        """Tell `listener` of every `Transition` and `Decision`, in order and once.

        A direct listener runs before the call that caused the event returns, so it must be quick; one
        that is not, says `threaded=True`. What it raises is logged and harms nobody.
        """
        if not callable(listener):
            msg = f"listener must be callable, got {listener!r}"
            raise ConfigurationError(msg)
        return self._engine.subscribe(listener, threaded=threaded)

    def flush(self, timeout: float | None = None) -> bool:
        """Let the log tell what it has put off, and wait until the threaded listeners were told everything.

        `timeout`: seconds at most; says whether they were.
        """
        return self._engine.flush(timeout)

    def timeline(self) -> Timeline:
        """Give what has happened lately: transitions, blocks and forced acts, the oldest first.

        `health.timeline().to_markdown()` is a table for an incident report. The newest 1,000 entries are kept
        in memory; what is blocked again and again between two transitions is one entry that counts.
        """
        return self._engine.chronicle.timeline(self.name)

    # --- probing ----------------------------------------------------------------------------------

    def probe_now(self, name: str) -> Probing:
        """Probe a dependency at once: `await health.probe_now("redis")`, or `.result()` from a thread.

        An open breaker does not wait for its cooldown. Both give the health when the probe has ended. Raises
        `ConfigurationError` for a dependency that has no probe, or is held.
        """
        return Probing(self[name])

    def wait_until(self, name: str, state: str | Collection[str], *, timeout: float | None = None) -> bool:
        """Wait on this thread until a dependency is in a state, or in one of several; say whether it came.

        `timeout`: seconds (at least 0; `None`: for ever).
        """
        return wait_until(self[name], wanted_states(state), timeout)

    async def await_until(
        self,
        name: str,
        state: str | Collection[str],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - by our own clock
    ) -> bool:
        """Do the same as `wait_until` in a task, without blocking the loop."""
        return await await_until(self[name], wanted_states(state), timeout)

    def events(self, most: int = 1000) -> Events:
        """Give events as they come: `async for event in health.events(): ...`. At most `most` wait."""
        check_count("most", most)
        return Events(self._engine, most)

    def start(self) -> None:
        """Run the probes on a daemon thread. Nothing happens where a prober runs already.

        In a forked child they begin again with the first thing that happens to a dependency there.
        """
        self._started = True
        self._begin(lambda: ThreadProber(self._engine, lambda: self))

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """End the probes that `start` began, waiting `timeout` seconds at most. May be called twice."""
        self._started = False
        prober = self._engine.prober
        if isinstance(prober, ThreadProber) and self._end(prober):
            prober.stop(timeout)

    def running(self) -> Running:
        """Probe for the length of a block: `async with` in the running loop, `with` on a thread."""
        return Running(self)

    def _begin(self, make: Callable[[], ThreadProber | LoopProber]) -> ThreadProber | LoopProber | None:
        """Let a new prober run, unless one does; give the new one."""
        engine = self._engine
        self._gate.watch()
        with self._starting:
            if engine.probing:
                return None
            if engine.prober is not None:  # its loop is gone
                engine.prober.give_up_all()
            prober = make()
            prober.start()
            engine.prober, engine.wake = prober, prober.wake
        self._give_head_starts()
        engine.wake()
        return prober

    def _end(self, prober: ThreadProber | LoopProber) -> bool:
        """Let a prober run no longer; say whether it was the one that ran."""
        engine = self._engine
        with self._starting:
            if engine.prober is not prober:
                return False
            engine.prober, engine.wake = None, nobody
        self._give_head_starts()
        return True

    def _give_head_starts(self) -> None:
        def give() -> None:
            probing = self._engine.probing
            for handle in self:
                probed = handle._schedule is not None
                handle._breaker.head_start = PROBE_HEAD_START if probed and probing else 0.0

        self._engine.run(give)

    def _reborn(self) -> None:
        if self._engine.rng is _dice:
            _dice.seed()  # else all children would draw alike
        self._engine.reborn()
        self._starting = threading.Lock()
        if self._started:
            self._engine.wake = self._start_again
        self._told = None
        self._records.reborn()
        self._grants.reborn()
        self._gate.reborn()
        self._witnesses.forget()
        for handle in self._handles.values():
            handle._reborn()
        self._paces.reborn()
        self._limiters.reborn()
        self._subsystems.reborn()

    def _start_again(self) -> None:
        """Start the prober that the parent had, now that there is something to do."""
        self._engine.wake = nobody
        try:
            self.start()
        except RuntimeError as error:  # no thread to be had, or the interpreter ends
            log.fault("prober_failed", error)

    def __repr__(self) -> str:
        return f"<Safehold {self.name!r}: {len(self._handles)} dependencies>"


class Running:
    """Probing for the length of a block; inside one that is running already, it changes nothing."""

    def __init__(self, home: Safehold) -> None:
        self._home = home
        self._mine: ThreadProber | LoopProber | None = None

    def __enter__(self) -> Safehold:
        home = self._home
        self._mine = home._begin(lambda: ThreadProber(home._engine, lambda: home))
        return home

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self._mine, ThreadProber):
            self._home._end(self._mine)
            self._mine.stop()

    async def __aenter__(self) -> Safehold:
        home = self._home
        self._mine = home._begin(lambda: LoopProber(home._engine, lambda: home))
        return home

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self._mine, LoopProber):
            self._home._end(self._mine)
            await self._mine.stop()


def check_roots(home: Safehold, name: str, roots: Collection[str]) -> tuple[str, ...]:
    """Give what a dependency needs itself; raise where it would need itself in the end."""
    if isinstance(roots, str) or not isinstance(cast("object", roots), Collection):
        msg = f"depends_on must be a list of dependency names, got {roots!r}"
        raise ConfigurationError(msg)
    waiting, met = list(roots), set[str]()
    for root in roots:
        check_name("a name in depends_on", root)
    while waiting:
        root = waiting.pop()
        if root == name:
            msg = f"depends_on={list(roots)!r} of {name!r} leads back to {name!r}"
            raise ConfigurationError(msg)
        if root not in met:
            met.add(root)
            waiting += home[root].depends_on
    return tuple(dict.fromkeys(roots))


def _load_what_an_outage_needs() -> None:
    """Load the models of reports and payloads: a process without a free descriptor can load nothing."""
    for module in ("safehold._payload", "safehold._runtime.report"):
        import_module(module)


begin_again_in_children(_alive)
