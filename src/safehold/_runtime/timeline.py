"""What has happened lately, for an incident report, and how often since the start.

Both are fed with the events that listeners hear, so a guarded call costs nothing more.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from .._core.breaker import Transition
from .events import Decision, Event
from .redact import redact

MOST_KEPT: Final = 1000
"""Entries that are kept; the oldest fall out first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """An event; of equal blocks or forced acts between two transitions, the first, and `count` in all.

    `last` is the newest of them.
    """

    event: Event
    count: int = 1
    last: Event


@dataclass(frozen=True, slots=True)
class Timeline:
    """What has happened, the oldest first. `dropped` entries were there before and are not kept."""

    name: str
    entries: tuple[TimelineEntry, ...]
    dropped: int = 0

    def __iter__(self) -> Iterator[TimelineEntry]:
        """Give the entries, the oldest first."""
        return iter(self.entries)

    def __len__(self) -> int:
        """Give the number of entries."""
        return len(self.entries)

    def to_markdown(self) -> str:
        """Give a table for an incident report, in UTC. Texts are redacted."""
        lines = [f"# Timeline of {_cell(self.name)}", ""]
        if self.dropped:
            lines += [f"{self.dropped} earlier entries are not kept.", ""]
        if not self.entries:
            return "\n".join([*lines, "Nothing has happened.", ""])
        lines += ["| time (UTC) | what | from | to | why |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(map(_cell, _row(entry)))} |" for entry in self.entries]
        return "\n".join([*lines, ""])


class Chronicle:
    """Keeps events and counts them. One thread at a time feeds it; anybody may read."""

    def __init__(self) -> None:
        self.reborn()

    def reborn(self) -> None:
        """Begin, also in a forked child."""
        self._kept: deque[TimelineEntry] = deque(maxlen=MOST_KEPT)
        self._taken = 0
        self._places: dict[Any, int] = {}  # of what may be repeated, since the last transition
        self.transitions: Counter[tuple[str, str]] = Counter()  # by dependency and health
        self.blocked: Counter[tuple[str, str, str]] = Counter()  # by operation, reason and whether enforced
        self.forced: Counter[tuple[str, str]] = Counter()  # by operation and what was overridden

    def take(self, event: Event) -> None:
        """Keep an event and count it."""
        if isinstance(event, Transition):
            self.transitions[event.dependency, str(event.after)] += 1
            self._places.clear()
            self._keep(event)
        elif isinstance(event, Decision):
            verdict = event.verdict
            key = (verdict.operation, verdict.reasons[0].code, str(event.enforced).lower())
            self.blocked[key] += 1
            self._repeat(key, event)
        else:
            self.forced[event.operation, event.overridden[0] if event.overridden else "none"] += 1
            self._repeat((event.operation, event.grant, event.outcome), event)

    def timeline(self, name: str) -> Timeline:
        """Give what is kept."""
        entries = tuple(self._kept.copy())
        return Timeline(name, entries, max(0, self._taken - len(entries)))

    def _keep(self, event: Event) -> None:
        self._taken += 1
        self._kept.append(TimelineEntry(event=event, last=event))

    def _repeat(self, key: Any, event: Event) -> None:
        """Count what is repeated: a sweep that is blocked all night must not push out the outage."""
        index = self._places.get(key, self._taken) - self._taken  # from the end
        if index < 0:  # no more than that many were kept since, so it is still there
            known = self._kept[index]
            self._kept[index] = TimelineEntry(event=known.event, count=known.count + 1, last=event)
            return
        if len(self._places) >= MOST_KEPT:
            self._places.clear()
        self._places[key] = self._taken
        self._keep(event)


def _row(entry: TimelineEntry) -> tuple[str, str, str, str, str]:
    began, last = _utc(entry.event.wall), entry.last
    when = began if entry.count == 1 else f"{began} to {_utc(last.wall)[11:]}"
    times = f", {entry.count} times" if entry.count > 1 else ""
    if isinstance(last, Transition):
        before, after = f"{last.before}", f"{last.after}"
        if last.breaker is not last.breaker_before:
            before, after = f"{before} ({last.breaker_before})", f"{after} ({last.breaker})"
        after += ", held" if last.held else ""
        return when, last.dependency, before, after, f"{last.cause.text} ({last.cause.code})"
    if isinstance(last, Decision):
        first, did = last.verdict.reasons[0], "blocked" if last.enforced else "would have been blocked"
        return when, last.verdict.operation, "", did + times, f"{first.text} ({first.code})"
    over = f", in spite of {', '.join(last.overridden)}" if last.overridden else ""
    return when, last.operation, "", f"forced, {last.outcome}{times}", f"{last.actor}: {last.reason}{over}"


def _utc(wall: float) -> str:
    return f"{datetime.fromtimestamp(wall, UTC):%Y-%m-%d %H:%M:%S}"


def _cell(text: str) -> str:
    return redact(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
