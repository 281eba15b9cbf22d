"""What Safehold costs, beside the hand-written floor, in one run.

    python bench/bench.py              about a minute
    python bench/bench.py --quick      a few seconds
    python bench/bench.py --json FILE

Every case is sampled in turn with its floor, so that a busy machine slows both; the minimum per call is
what counts, and the ratio of what each adds to the bare call. Absolute times mean little.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import subprocess
import sys
import threading
import time
import timeit
import tracemalloc
from collections.abc import Callable
from typing import Any

from floor import Floor

from safehold import Backoff, BreakerPolicy, GatePolicy, Safehold

NEVER = BreakerPolicy(failures=10**9, failure_rate=None)
FOR_LONG = BreakerPolicy(failures=1, cooldown=Backoff(first=3600, cap=3600))
SAMPLE = 1_500_000  # nanoseconds


class Boom(Exception):
    pass


def nothing() -> None:
    return None


def argued(a: int, b: str = "b", *, c: float = 1.0) -> int:
    return a


async def anothing() -> None:
    return None


async def aargued(a: int, b: str = "b", *, c: float = 1.0) -> int:
    return a


def boom() -> None:
    raise Boom


def items() -> Any:
    yield 1


# --- timed loops --------------------------------------------------------------------------------------


def calls(f: Callable[[], Any], n: int) -> None:
    for _ in itertools.repeat(None, n):
        f()


def argued_calls(f: Callable[..., Any], n: int) -> None:
    for _ in itertools.repeat(None, n):
        f(1, "x", c=2.0)


def failing_calls(f: Callable[[], Any], n: int) -> None:
    for _ in itertools.repeat(None, n):
        try:
            f()
        except Exception:
            pass


def read_refusals(f: Callable[[], Any], n: int) -> None:
    for _ in itertools.repeat(None, n):
        try:
            f()
        except Exception as error:
            error.dependency, error.state, error.retry_after  # type: ignore[attr-defined] # noqa: B018


def iterations(f: Callable[[], Any], n: int) -> None:
    for _ in itertools.repeat(None, n):
        for _ in f():
            pass


def blocks(f: Callable[[], Any], n: int) -> None:
    for _ in itertools.repeat(None, n):
        with f():
            nothing()


async def awaits(f: Callable[[], Any], n: int) -> None:
    for _ in itertools.repeat(None, n):
        await f()


async def argued_awaits(f: Callable[..., Any], n: int) -> None:
    for _ in itertools.repeat(None, n):
        await f(1, "x", c=2.0)


def measure(loop: Callable[..., Any], subjects: dict[str, Any], rounds: int) -> dict[str, float]:
    """Give the least nanoseconds per call of each subject, sampled in turn."""
    runner = asyncio.new_event_loop()

    def timed(f: Any, n: int) -> float:
        begin = time.perf_counter_ns()
        if asyncio.iscoroutinefunction(loop):
            runner.run_until_complete(loop(f, n))
        else:
            loop(f, n)
        return (time.perf_counter_ns() - begin) / n

    sizes = {}
    for name, f in subjects.items():
        timed(f, 50)
        sizes[name] = max(10, int(SAMPLE / timed(f, 200)))
    best = dict.fromkeys(subjects, float("inf"))
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, f in subjects.items():
                best[name] = min(best[name], timed(f, sizes[name]))
    finally:
        gc.enable()
        runner.close()
    return best


# --- cases --------------------------------------------------------------------------------------------


def opened() -> tuple[Floor, Any]:
    floor, dependency = Floor(), Safehold("open").dependency("d", policy=FOR_LONG)
    floor.is_open = True
    dependency.trip()
    return floor, dependency


def per_call(rounds: int) -> dict[str, dict[str, float]]:
    default = Safehold("closed").dependency("d")
    failing = Safehold("failing").dependency("d", policy=NEVER)
    floor = Floor()
    shut, refusing = opened()
    scoped = Safehold("scoped")
    in_scope = scoped.dependency("d").guard(nothing)
    results = {
        "closed, function": measure(
            calls,
            {"bare": nothing, "floor": floor.guard(nothing), "safehold": default.guard(nothing)},
            rounds,
        ),
        "closed, function, arguments": measure(
            argued_calls,
            {"bare": argued, "floor": floor.guard(argued), "safehold": default.guard(argued)},
            rounds,
        ),
        "closed, coroutine": measure(
            awaits,
            {"bare": anothing, "floor": floor.guard_async(anothing), "safehold": default.guard(anothing)},
            rounds,
        ),
        "closed, coroutine, arguments": measure(
            argued_awaits,
            {"bare": aargued, "floor": floor.guard_async(aargued), "safehold": default.guard(aargued)},
            rounds,
        ),
        "closed, generator": measure(
            iterations,
            {"bare": items, "floor": floor.guard_generator(items), "safehold": default.guard(items)},
            rounds,
        ),
        "closed, with": measure(blocks, {"floor": lambda: floor, "safehold": default.permit}, rounds),
        "refusal, raised and caught": measure(
            failing_calls, {"bare": boom, "floor": shut.guard(boom), "safehold": refusing.guard(boom)}, rounds
        ),
        "refusal, caught and read": measure(
            read_refusals, {"floor": shut.guard(boom), "safehold": refusing.guard(boom)}, rounds
        ),
        "failure, recorded": measure(
            failing_calls, {"bare": boom, "floor": floor.guard(boom), "safehold": failing.guard(boom)}, rounds
        ),
    }
    with scoped.scope("bench"):
        results["closed, function, in a scope"] = measure(
            calls, {"bare": nothing, "floor": floor.guard(nothing), "safehold": in_scope}, rounds
        )
    gated = Safehold("gate", gate=GatePolicy(startup_grace=0))
    for name in ("a", "b"):
        with gated.dependency(name, critical=True).permit():
            pass
    results["gate, allowed, two dependencies"] = measure(
        calls,
        {"bare": nothing, "floor": floor.guard(nothing), "safehold": gated.destructive("op")(nothing)},
        rounds,
    )
    return results


def per_second(f: Callable[[], Any], seconds: float, threads: int = 8) -> float:
    stop, gate, done = threading.Event(), threading.Barrier(threads + 1), [0] * threads

    def work(index: int) -> None:
        count, is_set = 0, stop.is_set
        gate.wait()
        while not is_set():
            for _ in range(50):
                f()
            count += 50
        done[index] = count

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    gate.wait()
    begin = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - begin)


def throughput(rounds: int) -> dict[str, float]:
    subjects = {
        "floor": Floor().guard(nothing),
        "safehold": Safehold("threads").dependency("d").guard(nothing),
    }
    best = dict.fromkeys(subjects, 0.0)
    for _ in range(max(2, rounds // 20)):
        for name, f in subjects.items():
            best[name] = max(best[name], per_second(f, 0.2))
    return best


def memory() -> dict[str, float]:
    home, count = Safehold("memory"), 1000
    home.dependency("warm").guard(nothing)()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    dependencies = [home.dependency(f"d{index}") for index in range(count)]
    between = tracemalloc.get_traced_memory()[0]
    guarded = [dependency.guard(nothing) for dependency in dependencies]
    for f in guarded:
        f()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return {"dependency": (between - before) / count, "guarded function, called": (after - between) / count}


def once(quick: bool) -> dict[str, float]:
    number = 2000 if quick else 20000
    dependency = Safehold("once").dependency("d")
    micros = {
        "decorate, until the first call": timeit.timeit(lambda: dependency.guard(argued), number=number)
        / number
    }
    for count in (1, 10, 1000):
        home = Safehold("status")
        for index in range(count):
            home.dependency(f"d{index}")
        home.status()
        times = max(3, (300 if quick else 3000) // count)
        micros[f"status(), {count} dependencies"] = timeit.timeit(home.status, number=times) / times
    return {name: seconds * 1e6 for name, seconds in micros.items()}


IMPORT = """
import time
a = time.perf_counter()
from pydantic import BaseModel
import structlog, tenacity
b = time.perf_counter()
import safehold
c = time.perf_counter()
print(b - a, c - b)
"""


def imports(rounds: int) -> dict[str, float]:
    runs = []
    for _ in range(max(5, rounds // 10)):
        text = subprocess.run(
            [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True
        ).stdout
        runs.append([float(part) * 1e3 for part in text.split()])
    return {
        "pydantic, structlog, tenacity": min(run[0] for run in runs),
        "safehold on top": min(run[1] for run in runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds, rougher figures")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    rounds = 10 if options.quick else 120

    results: dict[str, Any] = {"calls": per_call(rounds)}
    print("| nanoseconds per call | bare | floor | Safehold | adds, in floors |")
    print("|---|---|---|---|---|")
    for name, row in results["calls"].items():
        bare = row.get("bare", 0.0)
        ratio = (row["safehold"] - bare) / (row["floor"] - bare)
        shown = f"{bare:.0f}" if bare else ""
        print(f"| {name} | {shown} | {row['floor']:.0f} | {row['safehold']:.0f} | {ratio:.2f} |")
    results["threads"] = throughput(rounds)
    share = results["threads"]["safehold"] / results["threads"]["floor"]
    print(f"\n8 threads on one breaker: {share:.2f} of the floor's calls per second")
    results["bytes"] = memory()
    results["microseconds"] = once(options.quick)
    results["import, milliseconds"] = imports(rounds)
    for title in ("bytes", "microseconds", "import, milliseconds"):
        print(f"\n{title}:")
        for name, value in results[title].items():
            print(f"  {name}: {value:,.1f}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
