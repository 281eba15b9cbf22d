"""A small language for breaker cases: one line of words, read from left to right.

Calls. `s` `f` `x` `c`: admitted and ended at once with success, failure, the application's own error,
cancellation; a trailing `!` makes it slow (`s!`), a leading `P` makes it a probe (`Ps`). `-` must be refused,
`P-` likewise for a probe. `a>` begins call *a* (`Pa>` a probe), `a:f` ends it, `a~` is a hidden attempt in it that failed.

Time and people. `+3` moves time, `look` lets it take effect, `trip` `hold` `release` `reset`, `fork`, `wait:7`
sets another cooldown, `mode:observe`, `draw:0.5` fixes the dice.

Checks, which look first, as every reader does. `=open` breaker, `@degraded` health, and `name=value` for the numbers
in `NUMBERS`; `told=a,b` lists what was told since the last such check as `state/health`, `told=` nothing;
`heard=a,b` is the same without the look.

`3*s` and `5*(s f)` repeat.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .machine import SHIPPED, Call, Core, Machine

NUMBERS: dict[str, Callable[[Machine], Any]] = {
    "retry": lambda m: m.retry_after,
    "level": lambda m: m.breaker.level,
    "late": lambda m: m.breaker.late_dropped,
    "failures": lambda m: m.breaker.failures,
    "successes": lambda m: m.breaker.successes,
    "refusals": lambda m: m.breaker.refusals,
    "suppressed": lambda m: m.breaker.suppressed,
    "missed": lambda m: int(m.breaker.unresolved_miss),
    "miss_at": lambda m: m.breaker.last_miss,
    "settle": lambda m: m.breaker.settle_left(m.now),
    "since": lambda m: m.breaker.since,
    "held": lambda m: int(m.breaker.held),
    "generation": lambda m: m.generation.number,
    "cause": lambda m: m.breaker.cause.code,
    "ask": lambda m: int(m.breaker.era.ask),
}


def expand(steps: str) -> list[str]:
    """Write the repetitions out."""
    while match := re.search(r"(\d+)\*\(([^()]*)\)", steps):
        steps = steps[: match.start()] + " ".join([match[2]] * int(match[1])) + steps[match.end() :]
    words: list[str] = []
    for word in steps.split():
        times, _, what = word.rpartition("*")
        words += [what] * int(times or 1)
    return words


class Player:
    """Plays a line of steps; an `AssertionError` names the step at which it went wrong."""

    def __init__(self, core: Core = SHIPPED, **settings: Any) -> None:
        head_start = settings.pop("head_start", 0.0)
        start = settings.pop("start", 0.0)
        self.core = core
        self.machine = Machine(core, core.make_settings(**settings), now=start, head_start=head_start)
        self.calls: dict[str, Call] = {}
        self.read = 0

    def play(self, steps: str) -> Player:
        words = expand(steps)
        for index, word in enumerate(words):
            try:
                self.step(word)
            except AssertionError as error:
                done = " ".join(words[max(0, index - 12) : index])
                m = self.machine
                raise AssertionError(f"{done} >>> {word} <<< at {m.now:g}: {error}; {m.view}") from None
        return self

    def step(self, word: str) -> None:
        m = self.machine
        if match := re.fullmatch(r"(P?)([sfxc])(!?)", word):
            call = m.begin(probe=bool(match[1]))
            assert call is not None, "was refused"
            m.end(call, match[2], slow=bool(match[3]))
        elif match := re.fullmatch(r"(P?)-", word):
            assert m.begin(probe=bool(match[1])) is None, "was not refused"
        elif match := re.fullmatch(r"(P?)([a-z]\d*)>", word):
            call = m.begin(probe=bool(match[1]), name=match[2])
            assert call is not None, "was refused"
            self.calls[match[2]] = call
        elif match := re.fullmatch(r"([a-z]\d*):([sfxc])(!?)", word):
            m.end(self.calls.pop(match[1]), match[2], slow=bool(match[3]))
        elif match := re.fullmatch(r"([a-z]\d*)~", word):
            m.attempt(self.calls[match[1]])
        elif word.startswith("+"):
            m.now += float(word[1:])
        elif word in ("trip", "hold", "release", "reset"):
            m.by_hand(word)
        elif "=" in word or word[0] == "@":
            if not word.startswith("heard"):
                m.look()
            self.check(word)
        else:
            self.rarely(word)

    def rarely(self, word: str) -> None:
        m = self.machine
        verb, _, value = word.partition(":")
        match verb:
            case "look":
                m.look()
            case "fork":
                m.breaker.reborn(m.now)
            case "wait":
                m.breaker.set_cooldown(m.generation, float(value))
            case "draw":
                m.draw = float(value)
            case "mode":
                self.configure(mode=self.core.Mode(value))
            case _:
                raise ValueError(word)

    def configure(self, **values: Any) -> None:
        m = self.machine
        m.settings = m.breaker.settings._replace(**values)
        m.breaker.reconfigure(m.settings, m.now, draw=m.draw, cause=m.cause("declared"))

    def check(self, word: str) -> None:
        m = self.machine
        name, _, value = word.partition("=")
        if word[0] == "@":
            assert m.health == word[1:], f"health is {m.health}"
        elif not name:
            assert m.state == value, f"breaker is {m.state}"
        elif name in ("told", "heard"):
            fresh, self.read = m.mail[self.read :], len(m.mail)
            told = [f"{t.breaker}/{t.after}" for t in fresh]
            assert told == [text for text in value.split(",") if text], f"was told {told}"
        elif name == "cause":
            assert NUMBERS[name](m) == value, f"{name} is {NUMBERS[name](m)}"
        else:
            is_now = NUMBERS[name](m)
            wanted = None if value == "none" else float(value)
            near = wanted is not None and is_now is not None and abs(is_now - wanted) < 1e-9
            assert near or is_now == wanted, f"{name} is {is_now}"


def play(steps: str, core: Core = SHIPPED, **settings: Any) -> Player:
    return Player(core, **settings).play(steps)
