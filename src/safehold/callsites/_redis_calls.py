"""How a client is guarded, and one guarded call of it: what it would do, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from types import TracebackType
from typing import Any, Final, Literal, Self, cast

from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .._core.breaker import Era, Outcome
from .._core.configuration import ConfigurationError
from .._core.gate import Trigger, Verdict, blocked_by
from .._runtime.classify import UNANSWERED, Judgement, gravity, judge
from .._runtime.dependency import Dependency
from .._runtime.permit import WRITES, Permit, answered, attempt_failed, missed, refusal, turned_away
from .._runtime.ticket import running_operation
from ..errors import DependencyUnhealthy, OperationBlocked
from . import _redis_commands as vocabulary
from ._redis_retry import may_have_been_sent
from ._redis_table import TABLE, inside
from ._redis_words import Command, Harm, block_time
from ._table import MISCONFIGURED, NOTHING_SAID, Sent

Destructive = Literal["allow", "observe", "ticket"]
Keys = Sequence[str] | Callable[[str], bool] | None

_MOST_SPELLINGS: Final = 1000  # names of commands that are remembered as harmless
_HARMLESS: Final = (vocabulary.READS | vocabulary.WRITES) - (
    vocabulary.DESTRUCTIVE | vocabulary.CONDITIONAL | vocabulary.OVERWRITES
)


class ClientGuard:
    """How a client is guarded. Read it with `guarding(client)`; change it by guarding the client again.

    `dependency`, `destructive`, `keys` and `resend_writes` are what `guard_client` was told.
    `unregistered` names the destructive commands that were seen outside of a running operation: what an
    inventory of operations has left out.
    """

    def __init__(
        self,
        dependency: Dependency,
        *,
        error: type[DependencyUnhealthy],
        destructive: Destructive = "allow",
        keys: Keys = None,
        resend_writes: bool = False,
    ) -> None:
        if destructive not in ("allow", "observe", "ticket"):
            msg = f'destructive must be "allow", "observe" or "ticket", got {destructive!r}'
            raise ConfigurationError(msg)
        if isinstance(keys, str) or not (keys is None or callable(keys) or isinstance(keys, Sequence)):
            msg = f"keys must be a list of glob patterns, a function of a key, or None, got {keys!r}"
            raise ConfigurationError(msg)
        if not isinstance(resend_writes, bool):
            msg = f"resend_writes must be True or False, got {resend_writes!r}"
            raise ConfigurationError(msg)
        self.dependency = dependency
        self.destructive = destructive
        self.keys = keys
        self.resend_writes = resend_writes
        self.unregistered: set[str] = set()
        self.error = error
        self.breaker = dependency._breaker
        self.due: dict[str, float] = {}  # when a lost node of a cluster may be asked again
        passes = set(_HARMLESS)
        if keys is None:
            passes |= vocabulary.OVERWRITES - vocabulary.CONDITIONAL
        if destructive == "allow":
            passes |= vocabulary.CONDITIONAL | vocabulary.OVERWRITES
        self.passes: set[Any] = passes
        """Names of commands, as they were spelled, that need no look at their words."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> Any:
        return (_not_guarded, ())

    def __repr__(self) -> str:
        return (
            f"<ClientGuard of {self.dependency.name!r}: destructive={self.destructive!r}, "
            f"keys={self.keys!r}, resend_writes={self.resend_writes!r}>"
        )

    def classify(self, error: Exception) -> Outcome | bool | Judgement:
        """Judge by what the dependency's declaration says, or else by the table."""
        return (self.dependency.declared_classifier or TABLE.classify)(error)

    def look_at(self, args: tuple[Any, ...]) -> None:
        """Look at a command, unless its name says that there is no need to."""
        try:
            needs_look = args[0] not in self.passes
        except (IndexError, TypeError):  # none, or it cannot be hashed: redis-py will say what it thinks
            return
        if needs_look:
            self.look(args)

    def look(self, args: tuple[Any, ...]) -> None:
        """Look at a command that may be destructive; raise `OperationBlocked` where it needs a ticket."""
        command = Command(args)
        first = args[0] if args else ""
        if command.name in self.passes and len(self.passes) < _MOST_SPELLINGS and command.name_is(first):
            self.passes.add(first)
        elif self._matters(command) and running_operation() is None:
            self._unregistered(command)
            if self.destructive == "allow" and command.name_is(first):
                self.passes.add(first)  # noted once

    def _matters(self, command: Command) -> bool:
        harm = command.harm()
        if harm is Harm.NONE:
            return False
        named = None if self.keys is None else command.keys()
        if named is None:
            return harm is Harm.DESTROYS
        return any(self._authoritative(key) for key in named)

    def _authoritative(self, key: str) -> bool:
        if callable(self.keys):
            return bool(self.keys(key))
        return any(fnmatchcase(key, pattern) for pattern in self.keys or ())

    def _unregistered(self, command: Command) -> None:
        self.unregistered.add(command.name)
        if self.destructive == "allow":
            return
        name = f"{self.dependency.name} {command.name}"
        text = (
            f"{command.name} was sent to {self.dependency.name} outside of a running operation; send it "
            "inside a function that is registered with destructive(...)"
        )
        reasons = (blocked_by("no_ticket", text, retry_after=None),)
        subject = ", ".join(command.keys() or ()) or None
        verdict = Verdict(operation=name, trigger=Trigger.AUTOMATIC, subject=subject, reasons=reasons)
        enforced = self.destructive == "ticket"
        self.dependency._engine.tell(verdict, enforced=enforced)
        if enforced:
            raise OperationBlocked(name, reasons, subject)


def _not_guarded() -> None:
    """Give what is left of a guard in another process."""


class Call:
    """One guarded call, as a context manager: a command, or a whole pipeline.

    `commands` are the words of each. Entering looks at what it would destroy and asks the breaker.
    """

    __slots__ = ("__dict__", "_commands", "client", "era", "guard", "permit")

    def __init__(
        self, guard: ClientGuard, client: Any, commands: Sequence[tuple[Any, ...]], era: Era | None = None
    ) -> None:
        self.guard = guard
        self.client = client
        self.era = era
        self.permit: Permit | None = None
        self._commands = commands

    @cached_property
    def commands(self) -> list[Command]:
        """The commands that it makes."""
        return [Command(words) for words in self._commands]

    @property
    def reads_only(self) -> bool:
        """Whether sending it twice is sending it once."""
        return all(command.reads_only for command in self.commands)

    @property
    def once(self) -> bool:
        """Whether it must not be sent again once it may have been sent."""
        return not (self.guard.resend_writes or self.reads_only)

    @property
    def facets(self) -> tuple[str, ...]:
        """What its success shows to work, beside the server itself."""
        return (WRITES,) if any(command.writes for command in self.commands) else ()

    def __enter__(self) -> Self:
        guard = self.guard
        if len(self._commands) == 1 and self.commands[0].name == "SHUTDOWN":
            return self  # redis-py would take the refusal for its success
        facets = self.facets if guard.breaker.impaired else ()
        permit = Permit(guard.dependency, error=guard.error, classify=self._classify, facets=facets)
        self.permit = permit.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        permit, self.permit = self.permit, None  # it holds our classifier: together they would outlive us
        if error is not None:
            self._tell_outcome(error)
        if permit is not None:
            permit._leave(error)

    def failed(self, era: Era, error: BaseException) -> None:
        """Settle a call of the shorter way, which had no permit, that raised."""
        self._tell_outcome(error)
        missed(self.guard.dependency, era, error, classify=self._classify)

    def again(self, error: Exception) -> bool:
        """Take in an attempt that failed; say whether redis-py may try once more."""
        guard, met = self.guard, inside(error)  # a loop around a loop sees the same one wrapped
        if self.permit is not None:
            go_on = self.permit.attempt_failed(met)
        else:
            era = self.era or guard.breaker.era
            go_on = attempt_failed(guard.dependency, era, met, self._classify)
        said = judge(error, guard.classify)
        if said.cause is not None and said.cause.code == MISCONFIGURED:
            return False
        answered = TABLE.row(error).sent is Sent.NO  # such as LOADING: it was not executed
        return go_on and (answered or not self.once or not may_have_been_sent(error))

    def answered(self, results: Any) -> None:
        """Judge the errors among the results of a pipeline that was not told to raise them."""
        errors = [result for result in results if isinstance(result, Exception)]
        if errors and self.permit is not None:
            worst = max(errors, key=lambda error: gravity(judge(error, self.guard.classify)))
            self.permit.fail(worst)

    def _tell_outcome(self, error: BaseException) -> None:
        """Write on the error of a command that changes something whether it may have been executed."""
        if not isinstance(error, RedisError | OSError | ValueError) or self.reads_only:
            return
        self.guard.dependency._writes_failed = True
        if "outcome" in error.__dict__ or isinstance(error, DependencyUnhealthy):
            return
        sent = TABLE.row(error).sent
        if sent is Sent.YES:  # an answer, which says by itself what became of it
            return
        unknown = sent is Sent.MAYBE and may_have_been_sent(error)
        cast("Any", error).outcome = "unknown" if unknown else "not_executed"
        if unknown:
            names = ", ".join(dict.fromkeys(c.name for c in self.commands if not c.reads_only))
            error.add_note(f"safehold: outcome: unknown, {names} may have been executed; not sent again")

    # --- waiting ------------------------------------------------------------------------------------

    def _classify(self, error: Exception) -> Outcome | bool | Judgement:
        """Judge a command that waits for longer than its socket does: an idle queue is no outage.

        A server that cannot even be connected to is one.
        """
        timed_out = isinstance(error, RedisTimeoutError) and "connecting" not in str(error).lower()
        return UNANSWERED if timed_out and self._waits() else self.guard.classify(error)

    def _waits(self) -> bool:
        """Whether the server may answer it later than the client's socket will wait."""
        wait = next((w for w in map(block_time, self.commands) if w is not None), None)
        if wait is None:
            return False
        pool = getattr(self.client, "connection_pool", None)
        settings = {} if pool is None else pool.connection_kwargs
        limit = settings.get("socket_timeout", 5.0)  # redis-py 8's own default
        return limit is not None and (wait == 0 or wait >= limit)


class Listening:
    """One wait for a message, as a context manager."""

    __slots__ = ("_client", "_era", "_guard")

    def __init__(self, guard: ClientGuard, client: Any) -> None:
        self._guard = guard
        self._client = client
        self._era = guard.breaker.era

    def __enter__(self) -> Self:
        dependency, generation = self._guard.dependency, self._era.generation
        if generation.refuses and not _is_connected(self._client) and turned_away(dependency, generation):
            raise refusal(dependency, generation, self._guard.error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            missed(self._guard.dependency, self._era, error, classify=self._classify)

    def heard(self) -> None:
        """Take in that a message came."""
        answered(self._guard.dependency, self._era)

    def again(self, error: Exception) -> bool:
        """Take in a failed attempt to connect anew; say whether there may be another one."""
        return attempt_failed(self._guard.dependency, self._era, inside(error), self._classify)

    def _classify(self, error: Exception) -> Outcome | bool | Judgement:
        silence = isinstance(error, RedisTimeoutError) and "connecting" not in str(error).lower()
        return NOTHING_SAID if silence else self._guard.classify(error)


def _is_connected(client: Any) -> bool:
    connection = getattr(client, "connection", None)
    if connection is None:
        return False
    known = getattr(connection, "is_connected", None)
    return bool(getattr(connection, "_sock", None) is not None if known is None else known)
