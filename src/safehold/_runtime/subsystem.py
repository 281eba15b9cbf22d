"""Parts of a service that do less while what they need is not well."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from contextvars import Context
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

from .._core.breaker import Transition
from .._core.configuration import ConfigurationError, check_name
from .._core.health import HealthState, severity
from . import log
from .kinds import Kinds

if TYPE_CHECKING:
    from .dependency import Dependency
    from .engine import Engine, Event
    from .flow_report import SubsystemReport


class SubsystemState(StrEnum):
    """How much of its work a subsystem does."""

    FULL = "full"
    REDUCED = "reduced"
    PAUSED = "paused"


_WORST: Final = (SubsystemState.FULL, SubsystemState.REDUCED, SubsystemState.PAUSED)
_STATES: Final[Mapping[HealthState, SubsystemState]] = MappingProxyType(
    {
        HealthState.HEALTHY: SubsystemState.FULL,
        HealthState.DEGRADED: SubsystemState.REDUCED,
        HealthState.RECOVERING: SubsystemState.REDUCED,
        HealthState.UNKNOWN: SubsystemState.REDUCED,
        HealthState.UNHEALTHY: SubsystemState.PAUSED,
    }
)
Callback = Callable[[SubsystemState], Any]


class Subsystem:
    """A part of a service and what it needs: `full`, `reduced` or `paused`, by the worst of its dependencies.

    Made by `health.subsystem`. `state` may be read at any time; `subscribe` tells of changes.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        on: tuple[Dependency, ...],
        states: Mapping[str, str] | None,
    ) -> None:
        check_name("name of the subsystem", name)
        if not on:
            msg = f"subsystem {name!r} needs at least one dependency in on="
            raise ConfigurationError(msg)
        self.name = name
        self.dependencies = tuple(handle.name for handle in on)
        self._states = _merged(states)
        self._handles = {handle.name: handle for handle in on}
        self._engine = engine
        self._subscribers: tuple[SubsystemSubscription, ...] = ()  # replaced whole
        self._changing = threading.RLock()
        self._changes = 0
        self._known: dict[str, HealthState] = {}
        self._subscription = engine.subscribe(self._heard, threaded=False)
        for handle in on:
            self._known.setdefault(handle.name, handle.state)  # an event that came first is newer
        self._state = self._fold()

    @property
    def state(self) -> SubsystemState:
        """How much it does at this instant."""
        for handle in self._handles.values():
            _ = handle.state  # lets time that has passed take effect, and tell us
        return self._state

    @property
    def why(self) -> str:
        """The dependency that decides, and its health."""
        name = self._decisive()
        return f"{name} is {self._known[name]}"

    def subscribe(self, callback: Callback) -> SubsystemSubscription:
        """Tell `callback` the present state at once, and from then on each change, in order and once.

        A plain function runs before the call that caused the change returns, so it must be quick. A
        coroutine function runs in the event loop in which it subscribes, one call after the other. What it
        raises is logged.
        """
        if not callable(callback):
            msg = f"callback must be callable, got {callback!r}"
            raise ConfigurationError(msg)
        subscriber = SubsystemSubscription(self, callback)
        _ = self.state  # lets time that has passed take effect
        with self._changing:
            self._subscribers = (*self._subscribers, subscriber)
            subscriber.mail.append(self._state)
        subscriber.deliver()
        return subscriber

    def close(self) -> None:
        """Follow no more."""
        self._subscription.close()
        for subscriber in self._subscribers:
            subscriber.close()

    def report(self) -> SubsystemReport:
        """Say how it is."""
        from .flow_report import SubsystemReport  # noqa: PLC0415 - pydantic's models load when they are used

        return SubsystemReport(
            name=self.name,
            dependencies=self.dependencies,
            state=str(self.state),
            why=self.why,
            changes=self._changes,
        )

    def _reborn(self) -> None:
        """Begin again in a forked child, where what was known is not known any more."""
        self._changing = threading.RLock()
        for subscriber in self._subscribers:
            subscriber.reborn()
        with self._changing:
            self._known = {
                name: handle._breaker.health(handle._now()) for name, handle in self._handles.items()
            }
            self._change()

    def _heard(self, event: Event) -> None:
        if not isinstance(event, Transition) or event.dependency not in self._handles:
            return
        with self._changing:
            self._known[event.dependency] = event.after
            if len(self._known) < len(self._handles) or not hasattr(self, "_state"):
                return  # it is being made
            self._change()
        for subscriber in self._subscribers:
            subscriber.deliver()

    def _change(self) -> None:
        state = self._fold()
        if state is self._state:
            return
        self._state = state
        self._changes += 1
        for subscriber in self._subscribers:
            subscriber.mail.append(state)

    def _decisive(self) -> str:
        return max(
            self.dependencies,
            key=lambda n: (_WORST.index(self._states[self._known[n]]), -severity(self._known[n])),
        )

    def _fold(self) -> SubsystemState:
        return self._states[self._known[self._decisive()]]

    def __repr__(self) -> str:
        return f"<Subsystem {self.name!r} {self._state}: {self.why}>"


class SubsystemSubscription:
    """A callback's place. `close` ends it; as a context manager it ends with the block."""

    def __init__(self, subsystem: Subsystem, callback: Callback) -> None:
        self._subsystem = subsystem
        self._callback = callback
        self._is_async = Kinds(callback).is_async
        self._loop: asyncio.AbstractEventLoop | None = None
        if self._is_async:
            self._loop = asyncio._get_running_loop()
            if self._loop is None:
                msg = f"subscribe {callback!r} in the event loop in which it shall run"
                raise ConfigurationError(msg)
        self._task: asyncio.Task[None] | None
        self._closed = False
        self.mail: deque[SubsystemState] = deque()  # appended to under the subsystem's lock, so in order
        self.reborn()

    def reborn(self) -> None:
        """Begin, also in a forked child."""
        self._telling = threading.Lock()
        self._task = None

    def deliver(self) -> None:
        """Tell what there is to tell; whoever does so already, tells it all."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._begin, context=Context())
            return
        while self.mail and self._telling.acquire(blocking=False):
            try:
                while self.mail and not self._closed:
                    self._tell(self.mail.popleft())
                if self._closed:
                    return
            finally:
                self._telling.release()

    def close(self) -> None:
        """Tell no more. A coroutine that runs is cancelled."""
        self._closed = True
        subsystem = self._subsystem
        with subsystem._changing:
            subsystem._subscribers = tuple(s for s in subsystem._subscribers if s is not self)
        if self._loop is not None:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._cancel, context=Context())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, state: SubsystemState) -> None:
        try:
            self._callback(state)
        except Exception as error:  # noqa: BLE001 - a listener harms nobody
            self._log(error)

    def _log(self, error: Exception) -> None:
        log.fault("listener_failed", error, listener=f"callback of subsystem {self._subsystem.name}")

    def _begin(self) -> None:
        if self._task is None and self._loop is not None and not self._closed:
            name = f"safehold-subsystem-{self._subsystem.name}"
            self._task = self._loop.create_task(self._tell_all(), name=name, context=Context())

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _tell_all(self) -> None:
        try:
            while self.mail and not self._closed:
                try:
                    await self._callback(self.mail.popleft())
                except Exception as error:  # noqa: BLE001 - a listener harms nobody
                    self._log(error)
        finally:
            self._task = None


class Subsystems:
    """The subsystems of one Safehold, by name."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._all: dict[str, Subsystem] = {}
        self._making = threading.RLock()

    def __iter__(self) -> Iterator[Subsystem]:
        return iter(list(self._all.values()))

    def get(self, name: str, on: tuple[Dependency, ...], states: Mapping[str, str] | None) -> Subsystem:
        """Give the subsystem of a name; made now if there is none. Another one of the same name raises."""
        with self._making:
            known = self._all.get(name)
            if known is None:
                known = self._all[name] = Subsystem(self._engine, name, on, states)
            elif known.dependencies != tuple(h.name for h in on) or known._states != _merged(states):
                msg = f"subsystem {name!r} exists already, with other dependencies or states"
                raise ConfigurationError(msg)
            return known

    def reborn(self) -> None:
        """Begin again in a forked child."""
        self._making = threading.RLock()
        for subsystem in self:
            subsystem._reborn()


def _merged(states: Mapping[str, str] | None) -> dict[HealthState, SubsystemState]:
    try:
        own = {HealthState(health): SubsystemState(state) for health, state in (states or {}).items()}
    except (ValueError, AttributeError):
        msg = f"states must map healths to 'full', 'reduced' or 'paused', got {states!r}"
        raise ConfigurationError(msg) from None
    return {**_STATES, **own}
