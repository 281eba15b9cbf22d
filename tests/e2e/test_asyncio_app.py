"""An asyncio application with everything in it, under asyncio's own debugging: no warning, nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

APP = """
    import asyncio, gc, logging, warnings
    from safehold import Budget, DependencyUnhealthy, GatePolicy, OperationBlocked, ProbePolicy, Safehold

    complaints = []
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("asyncio").addFilter(lambda record: complaints.append(record.getMessage()) or False)
    logging.getLogger("safehold").setLevel(logging.CRITICAL)

    health = Safehold("app", gate=GatePolicy(startup_grace=0, settle_min=0, settle_max=0))
    works = [True]

    async def probe():
        if not works[0]:
            raise ConnectionError("down")

    store = health.dependency(
        "store", critical=True, probe=probe, probe_policy=ProbePolicy(interval=0.05, timeout=0.05)
    )

    @health.guard("store")
    async def ask():
        await probe()
        return "answer"

    @health.witness("store")
    async def there(subject):
        await ask()
        return False

    @health.destructive("thing.remove", subject="subject", evidence="there", budget=Budget(per_hour=100))
    async def remove(subject):
        return subject

    async def poll(ticks):
        async for tick in health.pace("store", every=0.02, unhealthy=None):
            ticks.append(tick.number)
            try:
                await ask()
            except (ConnectionError, DependencyUnhealthy):
                pass

    async def main():
        limit, ticks = health.limiter("store", 2, max_waiting=50), []
        sweep = health.sweep(remove, nominate=lambda: ["a", "b"], confirm=there, wait=0, confirmations=1)
        async with health.running(), health.events() as events:
            assert await health.probe_now("store") == "healthy"
            poller = asyncio.create_task(poll(ticks))

            async def limited():
                async with limit:
                    return await ask()

            assert await asyncio.gather(*[limited() for _ in range(20)]) == ["answer"] * 20
            report = await sweep.run_once()
            assert report.done == 2, report
            works[0] = False
            assert await health.await_until("store", ["unhealthy", "recovering"], timeout=20)
            try:
                await remove("c")
            except OperationBlocked:
                pass
            else:
                raise AssertionError("it ran")
            works[0] = True
            assert await health.await_until("store", "healthy", timeout=30)
            before = len(ticks)
            while len(ticks) <= before:
                await asyncio.sleep(0.01)
            poller.cancel()
            await asyncio.gather(poller, return_exceptions=True)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        assert left == [], left

    asyncio.run(main())
    gc.collect()
    never = [text for text in complaints if not text.startswith("Executing ")]  # how long a turn took is the machine's
    assert never == [], never
    print("fine")
"""


def test_an_application_under_asyncio_debugging_is_quiet_and_leaves_nothing() -> None:
    """With warnings as errors: no coroutine that was never awaited, no task that is pending at the end."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", textwrap.dedent(APP)],
        env={**os.environ, "PYTHONASYNCIODEBUG": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
    assert "Warning" not in done.stderr
