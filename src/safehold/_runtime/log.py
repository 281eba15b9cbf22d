"""What the log says, on the standard library's logger named `safehold`, rendered by structlog.

Neither logging nor structlog is configured here: the logger has no handler of ours and nothing reaches
stdout. What the application does with it is the application's choice.

Each transition is one line, until a dependency has had `lines` of them in a window. Further ones are summed
up in one line when the window ends, with the state in which they ended; while it goes on flapping, a window
has few lines of its own. The first one into each health is always told at once: an outage is not put off
because it began with a flicker. Refused calls and repeated blocks are counted, and the count is told. There
is no thread for that: what was put off is told with the next event, look (`status()`, a failing call, the
gate) or round of the prober once it is due, at `flush()`, and at the end of the process.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog

from .._core.breaker import Cause, Transition
from .._core.health import BreakerState, HealthState
from .describe import cause_of
from .events import Decision, Event, ForcedAct
from .redact import redact

if TYPE_CHECKING:
    from .dependency import Dependency

logging.getLogger("safehold").addHandler(logging.NullHandler())  # else the last-resort handler writes
_logger: Any = structlog.wrap_logger(
    logging.getLogger("safehold"),
    processors=[structlog.stdlib.filter_by_level, structlog.stdlib.render_to_log_kwargs],
    wrapper_class=structlog.stdlib.BoundLogger,
)

_FACTS: Final = (
    "dependency", "health", "health_before", "breaker", "breaker_before", "held", "cause", "cause_text",
    "failures", "failure_rate", "retry_after", "next_probe", "generation", "level", "lasted", "refused",
)  # fmt: skip
_OF_A_BLOCK: Final = ("operation", "trigger", "reasons", "dependency", "retry_after", "suppressed")


class Kind(NamedTuple):
    """One kind of line: how severe it is unless configured otherwise, what it says, and its fields."""

    severity: str
    says: str
    fields: tuple[str, ...]


KINDS: Final[Mapping[str, Kind]] = {
    "dependency.unknown": Kind("info", "nothing is known of it", _FACTS),
    "dependency.healthy": Kind("info", "it is healthy", _FACTS),
    "dependency.degraded": Kind("warning", "it answers, and not always or not well", _FACTS),
    "dependency.recovering": Kind("warning", "a trial is out, or the outage has not settled", _FACTS),
    "dependency.unhealthy": Kind("error", "its breaker is open", _FACTS),
    "dependency.flapping": Kind(
        "warning",
        "so many further transitions, and the state in which they ended; as severe as that, if more",
        (*_FACTS, "transitions", "states", "span"),
    ),
    "dependency.refused": Kind(
        "warning", "so many calls were refused lately", ("dependency", "health", "refused", "span")
    ),
    "operation.blocked": Kind("warning", "the gate has blocked it", _OF_A_BLOCK),
    "operation.would_block": Kind("warning", "it has run because the gate observes", _OF_A_BLOCK),
    "operation.forced": Kind(
        "warning",
        "it was done with a grant",
        ("operation", "trigger", "actor", "reason", "grant", "overridden", "outcome", "suppressed"),
    ),
}
SEVERITIES: Final = ("off", "debug", "info", "warning", "error", "critical")
_WHILE_FLAPPING: Final = 2  # lines in a window that follows one with a summary
_MOST_REPEATS: Final = 1000  # operations and reasons that are remembered


class LogSettings(NamedTuple):
    """How much is told, and how severe it is."""

    lines: int = 8
    window: float = 60.0
    severity: Mapping[str, str] = {}


def fault(what: str, error: BaseException, **context: Any) -> None:
    """Write that something of the user's, or of ours, raised where it must not harm anybody."""
    try:
        cause = cause_of(error)
        told = {name: redact(value) if isinstance(value, str) else value for name, value in context.items()}
        _logger.error(f"{what}: {cause.code}", kind="fault", fault=what, error=cause.code, **told)
    except Exception:  # noqa: BLE001, S110 - there is nowhere left to report to
        pass


class Story:
    """What the log has told of one dependency, and what it has put off."""

    def __init__(self) -> None:
        self.ends = self.flapped = -math.inf  # the window's end, and that of the last one with a summary
        self.left = 0  # lines in this window
        self.seen: set[str] = set()  # healths that have had a line in this window
        self.health = ""
        self.refused = 0  # calls, as told
        self.counted = 0.0  # when they were counted
        self.count_at = math.inf
        self.put_off: list[Transition] = []  # the first and the last of them
        self.states: Counter[str] = Counter()

    def put(self, event: Transition) -> None:
        self.put_off[1:] = [event]
        self.states[str(event.after)] += 1

    @property
    def due(self) -> float:
        return min(self.count_at, self.ends if self.put_off else math.inf)


class Repeat(NamedTuple):
    """When a block was told, and which events like it were not told since."""

    at: float
    untold: int
    last: Decision | ForcedAct


class Diary:
    """The log of one Safehold. One thread at a time writes it; a log sink that fails harms nobody."""

    def __init__(self) -> None:
        self.find: Callable[[str], Dependency | None] = _unknown  # the dependencies, by name
        self.settings = LogSettings()
        self.reborn()

    def reborn(self) -> None:
        """Begin, also in a forked child."""
        self.due = math.inf  # when something that was put off is to be told; read anywhere
        self._stories: dict[str, Story] = {}
        self._repeats: dict[tuple[str, str], Repeat] = {}

    def take(self, event: Event) -> None:
        """Write an event's line, or put it off. Never raises."""
        with suppress(Exception):
            if not isinstance(event, Transition):
                self._act(event)
            elif event.dependency in self._stories:  # its line counts what was refused
                self._stories[event.dependency].count_at = math.inf
            if event.at >= self.due:
                self.catch_up(event.at)
            if isinstance(event, Transition):
                self._transition(event)

    def catch_up(self, now: float, *, everything: bool = False) -> None:
        """Write what was put off and is due; or everything. Never raises."""
        self.due = math.inf
        with suppress(Exception):
            for name, story in self._stories.items():
                if story.put_off and (everything or now >= story.ends):
                    self._sum_up(story, now)
                if everything or now >= story.count_at:
                    self._count_refused(name, story, now)
                self.due = min(self.due, story.due)
            for key, repeat in self._repeats.items():
                if repeat.untold and (everything or now >= repeat.at + self.settings.window):
                    self._repeats[key] = Repeat(now, 0, repeat.last)
                    self._write_act(repeat.last, repeat.untold - 1)
                elif repeat.untold:
                    self.due = min(self.due, repeat.at + self.settings.window)

    # --- dependencies -----------------------------------------------------------------------------

    def _transition(self, event: Transition) -> None:
        story = self._stories.setdefault(event.dependency, Story())
        if event.at >= story.ends:
            flapping = event.at - story.flapped < self.settings.window
            story.left = min(_WHILE_FLAPPING, self.settings.lines) if flapping else self.settings.lines
            story.ends = event.at + self.settings.window
            story.seen = set()
        self._plan_to_count(story, event)
        if story.left > 0 or event.after not in story.seen:
            story.left -= 1
            story.seen.add(event.after)
            if story.put_off:  # what came before is told before
                self._sum_up(story, event.at)
            self._write_one(story, event)
        else:
            story.put(event)
        self.due = min(self.due, story.due)

    def _plan_to_count(self, story: Story, event: Transition) -> None:
        """Count refusals from time to time while calls may be refused."""
        story.health = str(event.after)
        if event.breaker is BreakerState.CLOSED and event.retry_after == 0:
            story.count_at = math.inf
        elif story.count_at == math.inf:
            story.counted, story.count_at = event.at, event.at + self.settings.window

    def _write_one(self, story: Story, event: Transition) -> None:
        facts = self._facts(story, event, event.at)
        moved = f", breaker {event.breaker}" if event.breaker is not event.breaker_before else ""
        lasted = f" for {_span(event.lasted)}" if event.lasted else ""
        text = f"{event.dependency} is {event.after} (was {event.before}{lasted}){moved}"
        self._write(f"dependency.{event.after}", f"{text}: {_more(event, facts)}", **facts)

    def _sum_up(self, story: Story, now: float) -> None:
        first, last, states = story.put_off[0], story.put_off[-1], story.states
        story.put_off, story.states = [], Counter()
        story.flapped = story.ends
        facts, span, number = self._facts(story, last, now), last.at - first.at, states.total()
        kind = max("dependency.flapping", f"dependency.{last.after}", key=self._severity_of)
        self._write(
            kind,
            f"{last.dependency} is flapping: {number} {_plural(number, 'transition')} in {_span(span)} "
            f"({', '.join(f'{count} x {state}' for state, count in states.items())}), "
            f"now {last.after}, level {last.level}: {_more(last, facts)}",
            **(facts | {"kind": "dependency.flapping"}),
            transitions=number,
            states=dict(states),
            span=span,
        )

    def _count_refused(self, name: str, story: Story, now: float) -> None:
        number, span = self._refused(name, story), now - story.counted
        story.counted = now
        if story.count_at != math.inf:
            story.count_at = now + self.settings.window
        if number:
            self._write(
                "dependency.refused",
                f"{name} is {story.health}: {number} {_plural(number, 'call')} refused in {_span(span)}",
                dependency=name,
                health=story.health,
                refused=number,
                span=span,
            )

    def _refused(self, name: str, story: Story) -> int:
        """Give how many calls were refused that no line has told yet."""
        handle = self.find(name)
        told, story.refused = story.refused, 0 if handle is None else handle._breaker.refusals
        return max(0, story.refused - told)

    def _facts(self, story: Story, event: Transition, now: float) -> dict[str, Any]:
        handle, wait = self.find(event.dependency), event.retry_after
        schedule = None if handle is None else handle._schedule
        due = None if schedule is None else schedule.due()
        story.counted = now
        cause = _redacted(event.cause)
        values = (
            event.dependency, str(event.after), str(event.before), str(event.breaker),
            str(event.breaker_before), event.held, cause.code, cause.text, event.failures,
            event.failure_rate, None if wait is None else max(0.0, wait - (now - event.at)),
            None if due is None else max(0.0, due - now), event.generation, event.level, event.lasted,
            self._refused(event.dependency, story),
        )  # fmt: skip
        return dict(zip(_FACTS, values, strict=True))

    # --- operations -------------------------------------------------------------------------------

    def _act(self, event: Decision | ForcedAct) -> None:
        """Write a block once in a window for each operation and reason, and count the others."""
        key = _key(event)
        known = self._repeats.get(key)
        if known is not None and 0 <= event.at - known.at < self.settings.window:
            self._repeats[key] = Repeat(known.at, known.untold + 1, event)
            self.due = min(self.due, known.at + self.settings.window)
            return
        if len(self._repeats) >= _MOST_REPEATS:
            self.catch_up(event.at, everything=True)
            self._repeats.clear()
        self._repeats[key] = Repeat(event.at, 0, event)
        self._write_act(event, 0 if known is None else known.untold)

    def _write_act(self, event: Decision | ForcedAct, untold: int) -> None:
        """Write an event's line, with the number of those like it that were not told before it."""
        kind, text, facts = _forced(event) if isinstance(event, ForcedAct) else _blocked(event)
        self._write(kind, text, **facts, suppressed=untold)

    # --- writing ----------------------------------------------------------------------------------

    def _severity_of(self, kind: str) -> int:
        return SEVERITIES.index(self.settings.severity.get(kind, KINDS[kind].severity))

    def _write(self, kind: str, text: str, /, **facts: Any) -> None:
        severity = SEVERITIES[self._severity_of(kind)]
        if severity == "off":
            return
        with suppress(Exception):  # there is nowhere left to report to
            getattr(_logger, severity)(text, **({"kind": kind} | facts))


def _unknown(_: str) -> None:
    """Find nothing: an engine without a home."""


def _key(event: Decision | ForcedAct) -> tuple[str, str]:
    """Say which events are told as repetitions of each other."""
    if isinstance(event, ForcedAct):
        return event.operation, f"{event.grant} {event.outcome}"
    verdict = event.verdict
    return verdict.operation, f"{verdict.reasons[0].code} {event.enforced}"


def _blocked(event: Decision) -> tuple[str, str, dict[str, Any]]:
    verdict = event.verdict
    first, wait = verdict.reasons[0], verdict.retry_after
    did = "was not executed" if event.enforced else "would have been blocked (observing)"
    then = "a person has to end this" if wait is None else f"retry in {_span(wait)}"
    facts = (
        verdict.operation, str(verdict.trigger), [reason.code for reason in verdict.reasons],
        first.dependency, wait,
    )  # fmt: skip
    return (
        "operation.blocked" if event.enforced else "operation.would_block",
        f"{verdict.operation} {did}: {redact(first.text)}; {then}",
        dict(zip(_OF_A_BLOCK, facts, strict=False)),
    )


def _forced(event: ForcedAct) -> tuple[str, str, dict[str, Any]]:
    actor, reason = redact(event.actor), redact(event.reason)
    in_spite = f", in spite of {', '.join(event.overridden)}" if event.overridden else ""
    facts = (
        event.operation, event.trigger, actor, reason, event.grant, list(event.overridden), event.outcome,
    )  # fmt: skip
    return (
        "operation.forced",
        f"{event.operation} was forced by {actor} ({reason}){in_spite}: {event.outcome}",
        dict(zip(KINDS["operation.forced"].fields, facts, strict=False)),
    )


def _redacted(cause: Cause) -> Cause:
    return Cause(redact(cause.code), redact(cause.text))


def _more(event: Transition, facts: Mapping[str, Any]) -> str:
    """Say why, how bad it is, and when to look again."""
    text: str = facts["cause_text"]
    if event.after is HealthState.UNHEALTHY:
        text += f"; {event.failures} failures in a row" if event.failures > 1 else ""
        text += f"; {event.failure_rate:.0%} of the calls failed" if event.failure_rate else ""
    if number := facts["refused"]:
        text += f"; {number} {_plural(number, 'call')} refused"
    if event.held:
        return f"{text}; held until released"
    wait = facts["retry_after"]
    return f"{text}; next look in {_span(wait)}" if wait else text


def _plural(number: int, word: str) -> str:
    return word if number == 1 else f"{word}s"


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 100 else f"{seconds:.3g} s"
