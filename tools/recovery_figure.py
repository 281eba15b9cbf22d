"""Draw what happens in an outage, from a real one: `python tools/recovery_figure.py docs/recovery.svg`."""

from __future__ import annotations

import sys
import time
from itertools import pairwise
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from safehold import Backoff, BreakerPolicy, GatePolicy, ProbePolicy, Safehold, Transition
from safehold.callsites.redis import guard_client
from safehold.testing import RedisServer

COLOURS = {
    "closed": "#2e7d32",
    "open": "#c62828",
    "half_open": "#1565c0",
    "unknown": "#9aa0a6",
    "healthy": "#2e7d32",
    "degraded": "#f9a825",
    "unhealthy": "#c62828",
    "recovering": "#1565c0",
}
WIDTH, LEFT, ROW = 900, 90, 26


def outage() -> tuple[list[Transition], float, float, float, float]:
    """Give the transitions of an outage, when it began, when the server was back, and when all ended."""
    health = Safehold("figure", gate=GatePolicy(startup_grace=0, settle_min=3, settle_max=3))
    policy = BreakerPolicy(failures=3, cooldown=Backoff(first=0.5, factor=2, cap=2, jitter=0))
    dependency = health.dependency(
        "redis", critical=True, policy=policy, probe_policy=ProbePolicy(timeout=0.5, interval=0.5)
    )
    told: list[Transition] = []
    health.subscribe(lambda event: told.append(event) if isinstance(event, Transition) else None)
    with RedisServer() as server, health.running():
        client = guard_client(redis.Redis.from_url(server.url, retry=Retry(NoBackoff(), 0)), dependency)
        began = time.time()
        client.ping()
        time.sleep(1)
        server.kill()
        down = time.time()
        time.sleep(3)
        server.start()
        up = time.time()
        health.wait_until("redis", "healthy", timeout=30)
        time.sleep(1)
        return told, began, down, up, time.time()


def draw(told: list[Transition], began: float, down: float, up: float, ended: float) -> str:
    """Write the figure."""

    def x(at: float) -> float:
        return LEFT + (max(began, at) - began) / (ended - began) * (WIDTH - LEFT - 10)

    def bar(row: int, start: float, end: float, colour: str, text: str) -> str:
        y, width = 40 + ROW * row, max(1.0, x(end) - x(start))
        label = f'<text x="{x(start) + 4:.1f}" y="{y + 15}" fill="#fff">{text}</text>' if width > 50 else ""
        return (
            f'<rect x="{x(start):.1f}" y="{y}" width="{width:.1f}" height="{ROW - 6}" fill="{colour}">'
            f"<title>{text}: {start - began:.2f} s to {end - began:.2f} s</title></rect>{label}"
        )

    parts = [
        bar(0, began, down, COLOURS["healthy"], "up"),
        bar(0, down, up, "#424242", "killed"),
        bar(0, up, ended, COLOURS["healthy"], "up"),
    ]
    for row, read in ((1, lambda event: str(event.breaker)), (2, lambda event: str(event.after))):
        marks = [(event.wall, read(event)) for event in told] + [(ended, "")]
        for (start, state), (end, _) in pairwise(marks):
            parts.append(bar(row, start, end, COLOURS[state], state))
    for row, name in enumerate(("server", "breaker", "health")):
        parts.append(f'<text x="4" y="{55 + ROW * row}">{name}</text>')
    for second in range(int(ended - began) + 1):
        at = x(began + second)
        top = 40 + 3 * ROW
        parts.append(f'<line x1="{at:.1f}" y1="{top}" x2="{at:.1f}" y2="{top + 6}" stroke="#555"/>')
        parts.append(f'<text x="{at - 4:.1f}" y="{60 + 3 * ROW}">{second} s</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {74 + 3 * ROW}" '
        'font-family="sans-serif" font-size="12" role="img">\n'
        "<title>A Redis server is killed and comes back: its breaker and its health</title>\n"
        f'<text x="4" y="20" font-size="14">A Redis server is killed and comes back</text>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(draw(*outage()))
