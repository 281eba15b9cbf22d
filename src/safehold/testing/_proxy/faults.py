"""What a proxy can do to its connections: a fault is a frozen value, and the board holds the current ones.

The pumps look at the board *after* bytes have become readable, never before they start to wait. A fault
therefore reaches a pooled connection that has been idle for an hour just as it reaches a new one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Iterable

Way = Literal["upstream", "downstream"]
"""One direction of a connection: ``upstream`` carries requests, ``downstream`` carries replies."""

Direction = Literal["upstream", "downstream", "both"]

FaultKind = Literal["cut", "drop_reply", "half_close", "hang", "latency", "refuse", "reset"]

_WAYS: Final[tuple[Way, ...]] = ("upstream", "downstream")
_BOTH: Final = ("both",)

_DIRECTIONS: Final[dict[str, tuple[str, ...]]] = {
    "cut": _WAYS,
    "drop_reply": ("downstream",),
    "half_close": _WAYS,
    "hang": get_args(Direction),
    "latency": get_args(Direction),
    "refuse": _BOTH,
    "reset": _BOTH,
}

_HOW: Final[dict[str, tuple[str, ...]]] = {"cut": ("close", "reset"), "drop_reply": ("hang", "close")}

_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "cut": ("after", "how"),
    "drop_reply": ("count", "how"),
    "latency": ("seconds", "jitter"),
    "refuse": ("stale", "keep"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. It checks itself when it is made, and raises ``ValueError`` with the name of the argument.

    A field that does not belong to ``kind`` keeps its default. ``direction`` is where it applies; ``refuse``
    and ``reset`` take the whole connection. ``seconds`` and ``jitter`` belong to ``latency``, ``after``
    (bytes) to ``cut``, ``count`` (replies, ``None``: all) to ``drop_reply``; ``how`` says what the client of
    a ``cut`` or ``drop_reply`` sees. ``stale`` and ``keep`` belong to ``refuse``.
    """

    kind: FaultKind
    direction: Direction = "both"
    seconds: float = 0.0
    jitter: float = 0.0
    after: int = 0
    count: int | None = None
    how: Literal["close", "reset", "hang"] = "close"
    stale: bool = False
    keep: bool = False

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, get_args(FaultKind))
        _one_of("direction", self.direction, _DIRECTIONS[self.kind])
        _one_of("how", self.how, _HOW.get(self.kind, ("close",)))
        for field in fields(self)[2:]:
            if field.name not in _FIELDS.get(self.kind, ()) and getattr(self, field.name) != field.default:
                msg = f"{field.name}: does not belong to {self.kind!r}"
                raise ValueError(msg)
        duration("seconds", self.seconds)
        duration("jitter", self.jitter)
        whole("after", self.after, least=0)
        if self.count is not None:
            whole("count", self.count, least=1)

    @property
    def ways(self) -> tuple[Way, ...]:
        """The directions it takes. ``refuse`` stands at the door and takes none."""
        if self.kind == "refuse":
            return ()
        return _WAYS if self.direction == "both" else (self.direction,)

    def __str__(self) -> str:
        match self.kind:
            case "latency":
                details = [
                    f"{self.seconds:g}s",
                    f"jitter {self.jitter:g}s" if self.jitter else "",
                    self.direction,
                ]
            case "cut":
                details = [f"after {self.after}", self.direction, self.how]
            case "drop_reply":
                details = ["" if self.count is None else f"{self.count} times", self.how]
            case "refuse":
                details = ["stale" if self.stale else "", "keep" if self.keep else ""]
            case "reset":
                details = []
            case _:
                details = [self.direction]
        return f"{self.kind}({', '.join(filter(None, details))})"


class Board:
    """The one place that holds the faults in force. Belongs to the proxy's thread."""

    def __init__(self) -> None:
        self.faults: tuple[Fault, ...] = ()
        self.refusal: Fault | None = None
        self._at: dict[Way, Fault] = {}
        self._drops_left: int | None = None

    def put(self, faults: tuple[Fault, ...]) -> None:
        """Put ``faults`` in force, in place of all others; what they count starts anew."""
        self.faults = faults
        self.refusal = next((fault for fault in faults if fault.kind == "refuse"), None)
        self._at = {way: fault for fault in faults for way in fault.ways}
        self._drops_left = next((fault.count for fault in faults if fault.kind == "drop_reply"), None)

    def at(self, way: Way) -> Fault | None:
        """Return the fault in this direction."""
        return self._at.get(way)

    @property
    def resets(self) -> bool:
        """True while every connection is to be reset."""
        return any(fault.kind == "reset" for fault in self.faults)

    @property
    def black_hole(self) -> bool:
        """True while nothing passes in either direction."""
        return all(fault is not None and fault.kind == "hang" for fault in map(self.at, _WAYS))

    def take_drop(self) -> bool:
        """Count one lost reply; false when as many as asked for are lost already."""
        if self._drops_left is None:
            return True
        self._drops_left -= 1
        return self._drops_left >= 0


def together(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """Return ``faults`` as a tuple, or raise ``ValueError`` if two of them claim one place."""
    taken: dict[str, Fault] = {}
    for fault in (checked := tuple(faults)):
        for place in fault.ways or ("door",):
            if (other := taken.setdefault(place, fault)) is not fault:
                msg = f"faults: {other} and {fault} cannot both be in force {place}"
                raise ValueError(msg)
    return checked


def duration(name: str, value: object) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number of seconds, zero or more."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (math.isfinite(number) and number >= 0):
        msg = f"{name}: need a finite number of seconds, zero or more, got {value!r}"
        raise ValueError(msg)


def whole(name: str, value: object, *, least: int | None = None) -> None:
    """Raise ``ValueError`` unless ``value`` is a whole number, and not too small."""
    if not isinstance(value, int) or isinstance(value, bool) or (least is not None and value < least):
        msg = f"{name}: need a whole number{'' if least is None else f', {least} or more'}, got {value!r}"
        raise ValueError(msg)


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        msg = f"{name}: need {' or '.join(map(repr, known))}, got {value!r}"
        raise ValueError(msg)
