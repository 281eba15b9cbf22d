"""The drill while it plays: a live view for a terminal, a line for each act for anything else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .. import BreakerState, DependencyReport, HealthState
from .marks import STYLES, Marks
from .play import Drill, Side
from .script import PAUSE
from .world import ENDED, LIVE

REFRESH: Final = 0.1
EVENTS: Final = 6
RECOVERY_SHARE: Final = 0.85  # of the progress bar belongs to the script, the rest to the recovery


class View(AbstractContextManager["View"]):
    """Shows nothing. Entered while the drill plays, and called many times a second."""

    def __call__(self) -> None:
        """Look at the drill."""

    def __exit__(self, *_: object) -> None:
        """End the view."""


class PlainView(View):
    """A line for each act."""

    def __init__(self, console: Console, drill: Drill) -> None:
        self._console = console
        self._drill = drill
        self._told = -1

    def __call__(self) -> None:
        """Tell of a new act."""
        drill = self._drill
        if drill.step.act == self._told:
            return
        self._told = drill.step.act
        self._console.print(Text(f"{drill.now:6.1f} s  {heading(drill)}"), soft_wrap=True)


class LiveView(View):
    """Both runs side by side; gone when it ends, so that the verdict has the screen."""

    def __init__(self, console: Console, drill: Drill) -> None:
        self._drill = drill
        self._marks = Marks(console)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._shown = 0.0

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def __call__(self) -> None:
        """Draw, unless that was done just now."""
        now = time.monotonic()
        if now - self._shown >= REFRESH:
            self._shown = now
            self._live.update(self._screen(), refresh=True)

    def _screen(self) -> Group:
        drill = self._drill
        sides = Table.grid(expand=True)
        sides.add_column(ratio=1)
        sides.add_column(ratio=1)
        sides.add_row(
            Panel(self._unprotected(drill.unprotected), title="WITHOUT Safehold", border_style="red"),
            Panel(self._protected(drill.protected), title="WITH the three lines", border_style="green"),
        )
        return Group(self._headline(), self._progress(), sides, *self._events())

    def _headline(self) -> Text:
        mark, style = (
            (self._marks.bad, "bold red") if self._drill.step.faulty else (self._marks.good, "green")
        )
        return Text.assemble(
            " ", (f"{mark} {heading(self._drill)}", style), overflow="ellipsis", no_wrap=True
        )

    def _progress(self) -> Text:
        drill = self._drill
        share = min(1.0, drill.now / drill.length) * RECOVERY_SHARE
        about = drill.length + drill.timing.settle_max
        return Text(f" {self._marks.bar(share, 40)}  {drill.now:.0f} s of about {about:.0f} s\n")

    def _unprotected(self, side: Side) -> Table:
        table = self._run(side)
        table.add_row("blocked", Text("nothing: there is no gate", style="bright_black"))
        table.add_row("redis", Text("? nobody keeps watch", style="bright_black"))
        table.add_row("api_socket", Text("? nobody keeps watch", style="bright_black"))
        return table

    def _protected(self, side: Side) -> Table:
        table = self._run(side)
        table.add_row("blocked", f"{len(side.blocks)} operations")
        for report in self._drill.health.status().dependencies.values():
            table.add_row(report.name, self._dependency(report))
        return table

    def _run(self, side: Side) -> Table:
        lost, buried, (listed, beating) = len(side.world.lost), len(side.world.buried), side.service.seen
        alive = len(LIVE) - lost
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, width=10)
        table.add_column(no_wrap=True, overflow="ellipsis")
        style = "bold red" if lost else "bold green"
        table.add_row(
            "alive", Text(f"{self._marks.bar(alive / len(LIVE), 15)} {alive} of {len(LIVE)}", style=style)
        )
        table.add_row("lost", Text(f"{lost} {self._marks.bad if lost else self._marks.good}", style=style))
        table.add_row("tidied up", f"{buried} of {ENDED} that ended")
        table.add_row("it sees", f"{listed} listed, {beating} beating")
        return table

    def _dependency(self, report: DependencyReport) -> Text:
        text = f"{self._marks.states[report.state]} {report.state}"
        return Text(f"{text}{self._countdown(report)}", style=STYLES[report.state])

    def _countdown(self, report: DependencyReport) -> str:
        if report.breaker is BreakerState.OPEN:
            return f", retry {report.retry_after or 0:.1f} s"
        if report.breaker is BreakerState.HALF_OPEN:
            return ", trial call"
        return self._settling(report) if report.state is HealthState.RECOVERING else ""

    def _settling(self, report: DependencyReport) -> str:
        """Count down what the newest block has said; nobody asks the gate for the view's sake."""
        for block in self._drill.protected.blocks[-1:]:
            for reason in block.verdict.reasons:
                if reason.dependency == report.name and reason.code == "dependency_recovering":
                    left = (reason.retry_after or 0.0) - (time.monotonic() - block.at)
                    return f", settling {max(0.0, left):.0f} s"
        return ", settling"

    def _events(self) -> list[Text]:
        """Give the newest events of both runs, the newest last."""
        newest = sorted([*self._losses(), *self._blocks(), *self._moves()])[-EVENTS:]
        lines = [
            Text(f" {at - self._drill.zero:5.1f} s  {text}", style=style, overflow="ellipsis", no_wrap=True)
            for at, text, style in newest
        ]
        return lines + [Text("")] * (EVENTS - len(lines))

    def _losses(self) -> Iterator[tuple[float, str, str]]:
        for side, who in zip(self._drill.sides, ("without", "with   "), strict=True):
            for loss in side.world.lost[-EVENTS:]:
                yield loss.at, f"{self._marks.bad} {who}: live session {loss.session} LOST", "bold red"

    def _blocks(self) -> Iterator[tuple[float, str, str]]:
        for block in self._drill.protected.blocks[-EVENTS:]:
            verdict = block.verdict
            text = f"{self._marks.held} with   : {verdict.operation} of {verdict.subject} BLOCKED"
            yield block.at, f"{text}, {verdict.reasons[0].text}", "yellow"

    def _moves(self) -> Iterator[tuple[float, str, str]]:
        for move in self._drill.protected.transitions[-EVENTS:]:
            text = f"{self._marks.states[move.after]} with   : {move.dependency} is {move.after}"
            yield move.at, f"{text}, {move.cause.text}", STYLES[move.after]


def heading(drill: Drill) -> str:
    """Say which act plays."""
    step, acts = drill.step, drill.script[-1].act
    if not 1 <= step.act <= acts:
        return step.name
    if step.name == PAUSE:
        return f"Fault {step.act} of {acts} is over, repaired for a moment"
    return f"Fault {step.act} of {acts}: {step.name}"
