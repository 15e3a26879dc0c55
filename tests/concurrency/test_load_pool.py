"""A call that hangs costs its thread and nothing else; parts of a call are named and bounded each on its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from embedserve.concurrency import load_pool
from embedserve.concurrency.load_pool import LoadPool, doing
from embedserve.errors import HungError
from embedserve.testing import FakeLoader, FakeRegistry, Gate


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
async def pool() -> AsyncIterator[LoadPool]:
    pool = LoadPool(asyncio.get_running_loop(), 1)
    yield pool
    pool.close()


async def test_a_call_past_its_limit_is_left_behind_and_what_waits_runs_in_a_new_thread(
    pool: LoadPool, gate: threading.Event
) -> None:
    late: asyncio.Queue[object] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def give_back(result: object) -> None:
        loop.call_soon_threadsafe(late.put_nowait, result)

    hanging = asyncio.ensure_future(pool.run_shielded(gate.wait, limit=0.05, late=give_back))
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(pool.run(divmod, 7, 2))
    with pytest.raises(HungError, match=r"has not ended after 0 s and was left behind in its thread: .*_Job\.run"):
        await hanging
    assert await waiting == (3, 1)
    assert repr(pool) == "<LoadPool embedserve-load, 1 threads, 1 stuck>"
    gate.set()
    assert await late.get() is True
    while "stuck" in repr(pool):
        await asyncio.sleep(0.001)


async def test_a_part_has_a_limit_of_its_own_and_gives_the_hang_its_name(pool: LoadPool, gate: threading.Event) -> None:
    def load() -> None:
        with doing("the part that ends", 0.05):
            pass
        with doing("signature 'f' on made-up inputs", 0.05):
            gate.wait()

    with pytest.raises(HungError, match=r"signature 'f' on made-up inputs \(embedserve\."):
        await pool.run_shielded(load, limit=3600)


async def test_limits_count_from_a_calls_beginning_and_anew_after_each_part(pool: LoadPool) -> None:
    def load() -> str:
        for _ in range(20):
            with doing("a part", 10):
                threading.Event().wait(0.02)
        return "loaded"

    first = asyncio.ensure_future(pool.run(threading.Event().wait, 0.4))
    await asyncio.sleep(0)
    assert await pool.run_shielded(load, limit=0.2) == "loaded"
    await first


async def test_so_many_threads_are_replaced_and_then_the_pool_is_in_trouble(
    pool: LoadPool, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_pool, "MAX_STUCK", 1)
    for trouble in (None, "2 load threads hang"):
        with pytest.raises(HungError):
            await pool.run_shielded(gate.wait, limit=0.01)
        assert pool.trouble == trouble


async def test_a_load_that_hangs_fails_its_version_is_not_retried_and_holds_up_no_other() -> None:
    gate = Gate()
    hanging = FakeLoader(load_gate=gate)
    registry = FakeRegistry(
        {"bad": {1: hanging}, "good": {1: FakeLoader()}}, load_timeout=0.1, num_load_threads=1, retry={"initial": 0}
    )
    await registry.start(wait=False)
    try:
        while registry.readiness()["good"] is not None or "DEADLINE_EXCEEDED" not in str(registry.readiness()["bad"]):
            await asyncio.sleep(0.001)
        (status,) = registry.status("bad")["bad"]
        assert status.state.name == "END"
        assert "left behind in its thread: embedserve.testing.Gate.wait" in status.message
        assert hanging.loads == 1
        assert hanging.unloads == 0
        gate.open()
        while not hanging.unloads:  # What it had loaded after all.
            await asyncio.sleep(0.001)
        await registry.put("bad", 1, FakeLoader())  # Other contents are tried.
        while registry.readiness()["bad"] is not None:
            await asyncio.sleep(0.001)
    finally:
        gate.open()
        await registry.aclose()


async def test_a_warm_up_that_hangs_in_a_run_thread_fails_the_version_and_the_thread_is_replaced(
    gate: threading.Event,
) -> None:
    class Cold(FakeLoader):
        def warm_up_thread(self, servable: object) -> None:
            gate.wait()

    cold = Cold()
    registry = FakeRegistry({"bad": {1: cold}, "good": {1: FakeLoader()}}, load_timeout=0.1, num_batch_threads=1)
    await registry.start(wait=False)
    try:
        while registry.readiness()["good"] is not None or "DEADLINE_EXCEEDED" not in str(registry.readiness()["bad"]):
            await asyncio.sleep(0.001)
        assert "warm-up in a run thread has not ended" in registry.status("bad")["bad"][0].message
        assert (await registry.predict("good", {"x": [1.0]}))["y"].tolist() == [11.0]
        assert cold.unloads == 0
    finally:
        gate.set()
        await registry.aclose()


@pytest.mark.slow
def test_the_end_of_the_process_waits_for_no_thread() -> None:
    program = """
import asyncio, threading
from embedserve.concurrency.load_pool import LoadPool
async def main():
    pool = LoadPool(asyncio.get_running_loop(), 1)
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    hang = asyncio.ensure_future(pool.run(lambda: (loop.call_soon_threadsafe(begun.set), threading.Event().wait())))
    await begun.wait()
    hang.cancel()
    pool.close()
asyncio.run(main())
print("left")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "left\n"
