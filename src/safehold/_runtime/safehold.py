"""The composition root: everything that one Safehold knows hangs here."""

from __future__ import annotations

import random
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .._core.breaker import PROBE_HEAD_START
from .._core.configuration import ConfigurationError, check_name
from .._core.evidence import MAX_AGE
from .._core.gate import GateSettings, Verdict
from .._core.health import HealthState, overall
from . import scope as scopes
from .classify import Classify, make_classifier
from .clock import Clock, SystemClock
from .dependency import Declaration, Dependency, Probe, check_probe
from .engine import Engine, Listener, Subscription, nobody
from .fork import begin_again_in_children
from .ledger import Ledger
from .operations import Gate, Operation, gated, make_operation
from .prober import STOP_TIMEOUT, LoopProber, ThreadProber
from .scope import Scope
from .witness import WitnessDecorator, Witnesses, testify

if TYPE_CHECKING:
    from .policies import BreakerPolicy, GatePolicy, ProbePolicy
    from .report import DependencyReport, HealthReport

F = TypeVar("F", bound=Callable[..., Any])

_alive: weakref.WeakSet[Safehold] = weakref.WeakSet()
_dice = random.Random()  # noqa: S311 - jitter, no secret; not the shared one, which people seed


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
        self._witnesses = Witnesses()
        self._ledger = Ledger(self._engine)
        self._gate = Gate(self)
        self._starting = threading.Lock()  # one prober at a time
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
    ) -> Dependency:
        """Declare a dependency and give its handle.

        `critical`: the service cannot do without it; automatic operations require all critical ones
        unless they say otherwise. `classify`: which exceptions are failures: exception types, or a
        function from the exception to true (failure) or false (the application's own error). `probe`: a
        function or coroutine function without arguments that returns when the dependency answers.

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
        )
        handle = self[name]
        handle.declare(declaration)
        self._engine.wake()
        return handle

    def __getitem__(self, name: str) -> Dependency:
        """Give the handle of a name, declared or not."""
        handle = self._handles.get(name) if isinstance(name, str) else None
        if handle is None:
            made = Dependency(name, self._engine, self._gate_settings)
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
    ) -> Callable[[F], F]:
        """Register what is decorated as a destructive operation, and put the gate in front of it.

        `trigger`: `"automatic"` (code decides) or `"requested"` (a person's explicit wish). `requires`:
        the dependencies that it relies on; `None` for all critical ones, `()` for none. `writes`:
        those of them that it must be able to write to: while one refuses writes, a requested operation is
        blocked too. `tolerates`:
        dependencies whose misses in the scope do not matter to an automatic operation. `subject`: the
        parameter that says what is destroyed. `evidence`: the witness that must have found this very subject
        absent, in this scope, at most `evidence_age` seconds ago, with no failure since.

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

    @property
    def ledger(self) -> Ledger:
        """What destructive operations did, and which were blocked: `health.ledger.entries()`."""
        return self._ledger

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Every registered destructive operation, by name."""
        return self._gate.operations

    def scope(self, name: str = "scope") -> Scope:
        """Open a stretch of work, `with health.scope("sweep"): ...`; misses in it block what it decides."""
        return Scope(name)

    @staticmethod
    def carry(function: F) -> F:
        """Let `function` run in the present scope wherever it runs: `pool.submit(health.carry(work))`."""
        return scopes.carry(function)  # type: ignore[return-value]  # the signature is kept

    # --- telling ----------------------------------------------------------------------------------

    def status(self) -> HealthReport:
        """Say how everything is, from memory: nothing is called, and nothing is waited for."""
        from .report import HealthReport  # noqa: PLC0415 - pydantic's models load when they are used

        engine = self._engine
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
        waits = [r.retry_after for r in reports.values() if r.state is not HealthState.HEALTHY]
        return HealthReport(
            name=self.name,
            at=datetime.fromtimestamp(engine.clock.wall(), UTC),
            overall=overall((report.critical, report.state) for report in reports.values()),
            retry_after=None if None in waits else max((w for w in waits if w is not None), default=0.0),
            dependencies=reports,
            undeclared=tuple(handle.name for handle in handles if not handle.declared),
            probing=engine.probing,
        )

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
        """Wait until the threaded listeners were told everything, `timeout` seconds at most."""
        return self._engine.flush(timeout)

    # --- probing ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Run the probes on a daemon thread. Nothing happens where a prober runs already."""
        self._begin(lambda: ThreadProber(self._engine, lambda: self))

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """End the probes that `start` began, waiting `timeout` seconds at most. May be called twice."""
        prober = self._engine.prober
        if isinstance(prober, ThreadProber) and self._end(prober):
            prober.stop(timeout)

    def running(self) -> Running:
        """Probe for the length of a block: `async with` in the running loop, `with` on a thread."""
        return Running(self)

    def _begin(self, make: Callable[[], ThreadProber | LoopProber]) -> ThreadProber | LoopProber | None:
        """Let a new prober run, unless one does; give the new one."""
        engine = self._engine
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
        self._gate.reborn()
        self._witnesses.forget()
        for handle in self._handles.values():
            handle._reborn()

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


def _load_what_an_outage_needs() -> None:
    """Load the models of reports and payloads: a process without a free descriptor can load nothing."""
    for module in ("safehold._payload", "safehold._runtime.report"):
        import_module(module)


begin_again_in_children(_alive)
