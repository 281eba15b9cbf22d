"""What the drill says before it begins and when it is over, for a person."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .. import HealthState
from .marks import STYLES, Marks
from .play import Drill
from .result import Move, Result
from .service import THREE_LINES


def introduce(console: Console, drill: Drill) -> None:
    """Say what is about to happen, on which servers and with which settings."""
    timing, acts = drill.timing, drill.script[-1].act
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("Redis", Text(drill.lab.redis.origin))
    table.add_row("API", Text(drill.lab.api.origin))
    faults = (
        f"{acts} faults in {drill.length:.0f} s, then the recovery" if acts else "no faults, nothing fails"
    )
    table.add_row(
        "Script",
        f"seed {drill.seed}, speed {drill.speed:g}: {faults}",
    )
    table.add_row(
        "Settings",
        f"settle {timing.settle_min:.3g} to {timing.settle_max:.3g} s (default 30 to 600), "
        f"cooldown {timing.cooldown_first:.3g} to {timing.cooldown_cap:.3g} s (1 to 60), "
        f"implicit scope {timing.implicit_scope:.3g} s (60), "
        f"start-up grace {timing.startup_grace:.3g} s (30), "
        "trips after 3 failures (5): shorter, so that you need not wait",
    )
    console.print(Text("Safehold drill: one outage, two copies of one session service\n", style="bold"))
    console.print(table)
    console.print("\nOne copy runs as it is. The other has these three lines more:\n")
    for line in THREE_LINES:
        console.print(Text(f"    {line}", style="cyan"))
    console.print()


def conclude(console: Console, result: Result) -> None:
    """Tell everything, and the verdict last, where it stays on the screen."""
    marks = Marks(console)
    _transitions(console, marks, result.protected.transitions)
    _acts(console, result)
    console.print(
        Panel(_summary(marks, result), title="VERDICT", box=box.ROUNDED, border_style=_style(result))
    )


def _transitions(console: Console, marks: Marks, moves: tuple[Move, ...]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("dependency", no_wrap=True)
    table.add_column("transition", no_wrap=True)
    table.add_column("cause")
    for move in moves:
        state = HealthState(move.after)
        text = f"{marks.states[state]} {move.before} {marks.arrow} {move.after}"
        if move.before == move.after:
            text = f"{marks.states[state]} {move.after}: {move.breaker_before} {marks.arrow} {move.breaker}"
        table.add_row(f"{move.at:.1f} s", move.dependency, Text(text, style=STYLES[state]), Text(move.cause))
    console.print(Text("\nEvery state transition of the protected copy\n", style="bold"))
    console.print(table)


def _acts(console: Console, result: Result) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("what happened")
    table.add_column("lost without", justify="right")
    table.add_column("lost with", justify="right")
    table.add_column("blocked", justify="right")
    for act in result.acts:
        counts = (act.unprotected_lost, act.protected_lost, act.protected_blocked)
        table.add_row(f"{act.at:.1f} s", Text(act.name), *map(str, counts))
    console.print(Text("\nWhat each fault did to live sessions\n", style="bold"))
    console.print(table)
    console.print()


def _summary(marks: Marks, result: Result) -> Table:
    without, protected = result.unprotected, result.protected
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_row("", Text("without", style="bold"), Text("with three lines", style="bold"))
    table.add_row(
        "live sessions lost", *(_lost(marks, run.sessions_lost, run.sessions) for run in (without, protected))
    )
    table.add_row(
        "ended sessions removed", *(f"{run.ended_removed} of {run.ended}" for run in (without, protected))
    )
    table.add_row("operations blocked", "0", str(protected.operations_blocked))
    if (took := result.repair_to_recovered) is not None or not result.recovered:
        table.add_row("repair to recovered", "", "never" if took is None else f"{took:.1f} s")
    blamed = ", ".join(f"{code} {times}" for code, times in protected.blocked_by.items())
    whole = Table.grid()
    whole.add_row(Text(_sentence(marks, result), style=f"bold {_style(result)}"))
    whole.add_row("")
    whole.add_row(table)
    if blamed:
        whole.add_row(Text(f"\nBlocked by: {blamed}"))
    return whole


def _lost(marks: Marks, lost: int, sessions: int) -> Text:
    mark, style = (marks.bad, "bold red") if lost else (marks.good, "bold green")
    return Text(f"{mark} {lost} of {sessions}", style=style)


def _sentence(marks: Marks, result: Result) -> str:
    without, protected = result.unprotected.sessions_lost, result.protected.sessions_lost
    if protected:
        return f"{marks.bad} FAILED: {protected} live sessions were lost in spite of the protection."
    if not result.recovered:
        return f"{marks.bad} FAILED: no live session was lost, but the protected copy did not recover."
    if not without:
        return f"{marks.good} PASSED: no live session was lost, with or without protection."
    return f"{marks.good} PASSED: {without} live sessions destroyed without Safehold, none with it."


def _style(result: Result) -> str:
    return "green" if result.passed else "red"
