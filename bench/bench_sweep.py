"""What a sweep costs: seconds and bytes for each candidate, from 1,000 to 100,000 of them.

    python bench/bench_sweep.py

Three kinds of round: all are there (the usual one), none can be told (an outage), and all are gone and over
the budget (a backlog). The time for each candidate (of this thread) must be flat, and what is left
after a round bounded: a report names a hundred, and marks, evidence and nominations have their own limits.
"""

from __future__ import annotations

import time
import tracemalloc

from safehold import UNKNOWN, Budget, GatePolicy, Presence, Safehold
from safehold._core.evidence import ABSENT, PRESENT

SIZES = (1_000, 10_000, 100_000)
ROUNDS = 2  # the second one meets marks


def measured(size: int, answer: Presence, *, trace: bool) -> tuple[float, int, int]:
    """Give the seconds for one candidate of the last round, the bytes that are left and those at the peak."""
    home = Safehold("bench", gate=GatePolicy(startup_grace=0.0, quiet_time=0.1))
    redis = home.dependency("redis", critical=True)
    with redis.permit():
        pass

    @home.witness("redis")
    def exists(item: str) -> Presence:
        return answer

    @home.destructive("item.drop", subject="item", budget=Budget(per_hour=10))
    def drop(item: str) -> None:
        raise AssertionError(item)

    sweep = home.sweep(
        drop, nominate=lambda: (f"item-{number}" for number in range(size)), confirm=exists, wait=0.0
    )
    if trace:
        tracemalloc.start()
    seconds = 0.0
    for _ in range(ROUNDS):
        began = time.thread_time()
        report = sweep.run_once()
        seconds = time.thread_time() - began
        if report.nominated != size or report.done or report.error:
            raise SystemExit(f"not the round that was meant: {report}")
    del report
    left, peak = tracemalloc.get_traced_memory() if trace else (0, 0)
    tracemalloc.stop()
    return seconds / size, left, peak


def main() -> None:
    """Print a table, and end with 1 when the time for a candidate is not flat."""
    print(f"{'answer':8} {'candidates':>10} {'us each':>8} {'left, kB':>9} {'peak, kB':>9}")
    flat = True
    for answer in (PRESENT, UNKNOWN, ABSENT):
        each = []
        for size in SIZES:
            seconds = min(measured(size, answer, trace=False)[0] for _ in range(3))
            _, left, peak = measured(size, answer, trace=True)
            each.append(seconds)
            print(f"{answer:8} {size:10,} {seconds * 1e6:8.1f} {left / 1e3:9,.0f} {peak / 1e3:9,.0f}")
        flat = flat and each[-1] < 2 * each[0]
    if not flat:
        raise SystemExit("the time for each candidate is not flat")


if __name__ == "__main__":
    main()
