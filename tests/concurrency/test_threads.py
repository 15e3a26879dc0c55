"""Run slots come in turn and are never lost; nothing a thread raises is lost or ends the process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from embedserve.concurrency import threads
from embedserve.concurrency.load_pool import LoadPool
from embedserve.concurrency.owner_loop import LoopWaker
from embedserve.concurrency.threads import RunPool, Task, Work
from embedserve.errors import RegistryStateError, ServingError


class Client:
    """Asks for a slot per call and keeps the outcomes."""

    waiting = 0

    def __init__(self, pool: RunPool, name: str = "", log: list[str] | None = None) -> None:
        self.pool = pool
        self.name = self.model = name
        self.calls: list[Callable[[], Any]] = []
        self.outcomes: asyncio.Queue[Any] = asyncio.Queue()
        self.log = log if log is not None else []

    def add(self, call: Callable[[], Any]) -> None:
        self.calls.append(call)
        self.pool.request(self)

    def take_work(self) -> Work | None:
        if not self.calls:
            return None
        self.log.append(self.name)
        return Task(self.calls.pop(0), lambda result, error: self.outcomes.put_nowait(error or result))

    def turn_away(self, error: ServingError) -> None:
        self.outcomes.put_nowait(error)


@pytest.fixture(autouse=True, params=["eventfd", "call_soon"])
def way_back(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which a thread may tell the loop."""
    if request.param == "call_soon":
        monkeypatch.delattr(os, "eventfd", raising=False)


@pytest.fixture
async def pool() -> AsyncIterator[RunPool]:
    pool = RunPool(asyncio.get_running_loop(), 2)
    yield pool
    pool.close()


@pytest.fixture
async def single() -> AsyncIterator[RunPool]:
    pool = RunPool(asyncio.get_running_loop(), 1)
    yield pool
    pool.close()


def raises(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


async def test_work_is_chosen_on_the_next_turn_of_the_loop(pool: RunPool) -> None:
    client = Client(pool)
    client.add(threading.get_ident)
    assert client.calls
    assert pool.busy == 0
    assert await client.outcomes.get() != threading.get_ident()
    assert repr(pool) == "<RunPool 0/2 busy, 0 waiting>"


async def test_clients_are_served_in_the_order_of_their_requests(single: RunPool) -> None:
    log: list[str] = []
    clients = [Client(single, name, log) for name in "abc"]
    for _ in range(2):
        for client in clients:
            client.add(int)
    for client in clients * 2:
        await client.outcomes.get()
    assert log == [*"abcabc"]


async def test_a_client_with_nothing_left_gives_its_slot_to_the_next(single: RunPool) -> None:
    empty, client = Client(single), Client(single)
    single.request(empty)
    client.add(lambda: "served")
    assert await client.outcomes.get() == "served"


@pytest.mark.parametrize("error", [ValueError("x"), StopIteration(), SystemExit(3), KeyboardInterrupt()])
async def test_a_thread_outlives_what_it_ran_and_tells_the_loop_an_ordinary_error(
    single: RunPool, error: BaseException
) -> None:
    client = Client(single)
    client.add(raises(error))
    told = await client.outcomes.get()
    assert told is error if isinstance(error, ValueError) else isinstance(told, RuntimeError)
    client.add(lambda: "alive")
    assert await client.outcomes.get() == "alive"


async def test_a_client_that_breaks_its_promise_keeps_nobody_waiting(single: RunPool) -> None:
    class Broken:
        model = "broken"
        waiting = 0

        def take_work(self) -> Work | None:
            raise ValueError("broken")

        def turn_away(self, error: ServingError) -> None: ...

    loop = asyncio.get_running_loop()
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    single.request(Broken())
    client = Client(single)
    client.add(lambda: "served")
    assert await client.outcomes.get() == "served"
    assert [type(context["exception"]) for context in reported] == [ValueError]


async def test_closing_still_serves_what_was_requested_and_then_ends_every_thread(pool: RunPool) -> None:
    gate = threading.Event()
    client = Client(pool)
    for _ in range(2):
        client.add(gate.wait)
    for _ in range(3):
        client.add(lambda: "served")
    threads = [thread.thread for thread in pool._threads]
    while client.calls[0] == gate.wait:
        await asyncio.sleep(0)
    pool.close()
    gate.set()
    outcomes = [await client.outcomes.get() for _ in range(5)]
    assert outcomes.count(True) == 2
    assert outcomes.count("served") == 3
    for thread in threads:
        await asyncio.to_thread(thread.join)
    with pytest.raises(RegistryStateError):
        client.add(int)
    with pytest.raises(RegistryStateError):
        pool.request(client)
    assert "closed" in repr(pool)


async def test_run_in_each_thread_runs_once_in_each_busy_or_not(pool: RunPool) -> None:
    gate = threading.Event()
    client = Client(pool)
    client.add(gate.wait)
    await asyncio.sleep(0)
    threads: list[int] = []
    warming = asyncio.create_task(pool.run_in_each_thread(lambda: threads.append(threading.get_ident())))
    gate.set()
    await warming
    assert len(set(threads)) == len(threads) == 2
    client.add(lambda: "served")
    assert [await client.outcomes.get() for _ in range(2)] == [True, "served"]


@pytest.mark.parametrize("error", [ValueError("cold"), StopIteration()])
async def test_run_in_each_thread_raises_what_the_call_raised(pool: RunPool, error: Exception) -> None:
    with pytest.raises(ValueError if isinstance(error, ValueError) else RuntimeError):
        await pool.run_in_each_thread(raises(error))
    assert pool.busy == 0


async def test_a_cancelled_run_in_each_thread_waits_for_the_thread_that_is_in_the_call(single: RunPool) -> None:
    entered, gate = threading.Event(), threading.Event()

    def call() -> None:
        entered.set()
        gate.wait()
        raise ValueError("after the caller has gone")

    warming = asyncio.create_task(single.run_in_each_thread(call))
    await asyncio.to_thread(entered.wait)
    for _ in range(2):
        warming.cancel()
        await asyncio.sleep(0)
    assert not warming.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await warming
    assert single.busy == 0


async def test_a_cancelled_run_in_each_thread_takes_back_what_has_not_begun(single: RunPool) -> None:
    gate = threading.Event()
    client = Client(single)
    client.add(gate.wait)
    while single.busy == 0:
        await asyncio.sleep(0)
    called: list[int] = []
    warming = asyncio.create_task(single.run_in_each_thread(lambda: called.append(1)))
    await asyncio.sleep(0)
    warming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await warming
    gate.set()
    await client.outcomes.get()
    client.add(lambda: "served")
    assert await client.outcomes.get() == "served"
    assert not called


async def test_an_answer_that_raises_is_reported_and_loses_no_other(pool: RunPool) -> None:
    class Broken:
        model = "broken"
        waiting = 0

        def take_work(self) -> Work | None:
            return Task(int, lambda result, error: [][0])

        def turn_away(self, error: ServingError) -> None: ...

    loop = asyncio.get_running_loop()
    reported: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    loop.set_exception_handler(lambda _, context: reported.put_nowait(context))
    client = Client(pool)
    for i in range(20):
        pool.request(Broken())
        client.add(lambda i=i: i)  # type: ignore[misc]
    assert {await client.outcomes.get() for _ in range(20)} == {*range(20)}
    # The two models took turns, so that some of the broken runs may still wait.
    assert all([isinstance((await reported.get())["exception"], IndexError) for _ in range(20)])
    await pool.run_in_each_thread(int)
    assert reported.empty()
    assert pool.busy == 0


async def test_a_closed_pool_gives_its_file_back() -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = await asyncio.to_thread(open_files)
    pools = [RunPool(asyncio.get_running_loop(), 2) for _ in range(5)]
    threads = [thread.thread for pool in pools for thread in pool._threads]
    for pool in pools:
        client = Client(pool)
        client.add(int)
        await client.outcomes.get()
        pool.close()
        pool.close()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    assert await asyncio.to_thread(open_files) == before


def test_a_pool_may_be_closed_after_its_loop() -> None:
    async def make() -> RunPool:
        return RunPool(asyncio.get_running_loop(), 2)

    pool = asyncio.run(make())
    threads = [thread.thread for thread in pool._threads]
    pool.close()
    for thread in threads:
        thread.join()


async def test_the_threads_end_when_the_loop_was_closed_under_them() -> None:
    def entered() -> threading.Thread:
        gate = threading.Event()

        async def main() -> threading.Thread:
            pool = RunPool(asyncio.get_running_loop(), 1)
            client = Client(pool)
            client.add(gate.wait)
            while pool.busy == 0:
                await asyncio.sleep(0)
            return pool._threads[0].thread

        thread = asyncio.run(main())
        gate.set()
        return thread

    thread = await asyncio.to_thread(entered)
    await asyncio.to_thread(thread.join)


@pytest.mark.may_block
async def test_a_thread_that_comes_back_as_the_loop_is_closed_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()
    ring = LoopWaker.ring

    def ring_and_tell(waker: Any, ended: tuple[Any, ...]) -> bool:
        heard = ring(waker, ended)
        told.set()
        return heard

    monkeypatch.setattr(LoopWaker, "ring", ring_and_tell)

    def entered() -> threading.Thread:
        gate = threading.Event()

        async def main() -> threading.Thread:
            pool = RunPool(asyncio.get_running_loop(), 1)
            client = Client(pool)
            client.add(gate.wait)
            while pool.busy == 0:
                await asyncio.sleep(0)
            thread = pool._threads[0]
            pool.close()
            gate.set()
            assert told.wait(20)  # The loop, which has no turn left to hear it.
            return thread.thread

        return asyncio.run(main())

    thread = await asyncio.to_thread(entered)
    await asyncio.to_thread(thread.join, 20)
    assert not thread.is_alive()


@pytest.fixture
async def load_pool() -> AsyncIterator[LoadPool]:
    pool = LoadPool(asyncio.get_running_loop(), 1)
    yield pool
    pool.close()


async def test_load_pool_runs_and_raises(load_pool: LoadPool) -> None:
    assert await load_pool.run(divmod, 7, 2) == (3, 1)
    assert await load_pool.run_shielded(divmod, 7, 2) == (3, 1)
    for run in (load_pool.run, load_pool.run_shielded):
        with pytest.raises(ValueError, match="bad"):
            await run(raises(ValueError("bad")))
        with pytest.raises(RuntimeError, match="SystemExit: 3"):
            await run(raises(SystemExit(3)))
        with pytest.raises(RuntimeError, match="StopIteration"):
            await run(raises(StopIteration()))


async def test_a_cancelled_shielded_run_ends_after_its_thread_however_often_it_is_cancelled(
    load_pool: LoadPool,
) -> None:
    entered, gate = threading.Event(), threading.Event()

    def load() -> None:
        entered.set()
        gate.wait()
        raise ValueError("nobody waits for this")

    loading = asyncio.create_task(load_pool.run_shielded(load))
    await asyncio.to_thread(entered.wait)
    for _ in range(3):
        loading.cancel()
        await asyncio.sleep(0)
    assert not loading.done()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await loading


async def test_a_cancelled_shielded_run_that_has_not_begun_never_begins(load_pool: LoadPool) -> None:
    entered, gate = threading.Event(), threading.Event()

    def first() -> None:
        entered.set()
        gate.wait()

    called: list[int] = []
    running = asyncio.create_task(load_pool.run_shielded(first))
    await asyncio.to_thread(entered.wait)
    queued = asyncio.create_task(load_pool.run_shielded(called.append, 1))
    await asyncio.sleep(0)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    gate.set()
    await running
    await load_pool.run(int)
    assert not called


class OnLoop(Task):
    """Work that is short enough for the loop."""

    def __init__(self, call: Callable[[], Any], done: Callable[[Any, Exception | None], None], expected: float) -> None:
        super().__init__(call, done)
        self.expected = expected
        self.times: list[tuple[float, float]] = []

    def held(self, seconds: float, used: float) -> None:
        self.times.append((seconds, used))


class ShortClient(Client):
    """A client whose work is expected to take `expected` seconds."""

    expected = 0.001

    def take_work(self) -> Work | None:
        if not self.calls:
            return None
        self.log.append(self.name)
        return OnLoop(self.calls.pop(0), lambda result, error: self.outcomes.put_nowait(error or result), self.expected)


@pytest.fixture
async def short() -> AsyncIterator[RunPool]:
    pool = RunPool(asyncio.get_running_loop(), 2, loop_run_limit=0.001)
    yield pool
    pool.close()


async def test_short_work_is_done_on_the_loop_in_the_next_turn(short: RunPool) -> None:
    client = ShortClient(short)
    client.add(threading.get_ident)
    assert client.outcomes.empty()
    assert await client.outcomes.get() == threading.get_ident()
    assert short.busy == 0


async def test_longer_work_than_the_limit_is_done_in_a_thread(short: RunPool) -> None:
    client = ShortClient(short)
    client.expected = 0.0011
    client.add(threading.get_ident)
    assert await client.outcomes.get() != threading.get_ident()


async def test_a_turn_of_the_loop_has_no_more_short_work_than_the_budget(
    short: RunPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(threads, "perf_counter", lambda: clock[0])

    def call() -> int:
        clock[0] += 0.0005
        return threading.get_ident()

    clients = [ShortClient(short, name) for name in "ab"]  # Each may use the budget up.
    for client in clients:
        client.add(call)
    found = [await client.outcomes.get() for client in clients]
    assert found[0] == threading.get_ident()
    assert found[1] != threading.get_ident()


async def test_a_client_that_returns_at_once_waits_for_the_next_turn_of_the_loop(short: RunPool) -> None:
    client, order = ShortClient(short), list[str]()
    client.expected = 0.0001

    def again() -> None:
        order.append("work")
        if len(order) == 1:
            asyncio.get_running_loop().call_soon(order.append, "answer")
            client.add(again)

    client.add(again)
    for _ in range(2):
        await client.outcomes.get()
    assert order == ["work", "answer", "work"]


async def test_errors_of_work_on_the_loop_are_told_as_from_a_thread(short: RunPool) -> None:
    client = ShortClient(short)
    client.add(raises(ValueError("bad")))
    assert str(await client.outcomes.get()) == "bad"
    client.add(raises(StopIteration()))
    assert "StopIteration" in str(await client.outcomes.get())


def test_an_interrupt_during_work_on_the_loop_reaches_the_loop() -> None:
    async def main() -> None:
        pool = RunPool(asyncio.get_running_loop(), 1, loop_run_limit=0.001)
        try:
            client = ShortClient(pool)
            client.add(raises(KeyboardInterrupt()))
            await asyncio.sleep(30)
        finally:
            assert "KeyboardInterrupt" in str(client.outcomes.get_nowait())
            pool.close()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
