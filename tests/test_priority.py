"""Levels, their names, the queue with a lane per level, and what both ways to a run thread make of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from embedserve import InvalidInputError, QueueFullError
from embedserve.config import Batching, BatchingOptions
from embedserve.errors import Code
from embedserve.priority import OVERTAKEN, TURNS, Lanes, Priority, priority_named, sent_priority
from embedserve.servable import Array
from tests.batching.fakes import FakeServable, Rig, rig
from tests.support.recorder import Recorder

HIGH, NORMAL, LOW = Priority


@pytest.mark.parametrize("name", ["high", "HIGH", " High "])
def test_a_priority_is_named_in_any_case(name: str) -> None:
    assert priority_named(name) is HIGH
    assert sent_priority(name.encode()) == "high"
    assert sent_priority(name) == "high"


@pytest.mark.parametrize("name", ["", "urgent", "1", 1, None, ["high"]])
def test_a_priority_that_is_none_is_named_with_those_there_are(name: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"is none of high, normal, low$"):
        priority_named(name)


def test_what_a_client_sent_is_refused_with_the_name_of_its_header() -> None:
    with pytest.raises(InvalidInputError, match=r"^x-embedserve-priority: priority '\\x80' is none of high, norm"):
        sent_priority(b"\x80")


def lanes(*levels: int) -> Lanes[str]:
    """Entries named by level and by when they came: `h0`, `n1`..."""
    made: Lanes[str] = Lanes()
    for i, level in enumerate(levels):
        made.append(f"{'hnl'[level]}{i}", level)
    return made


def drained(of: Lanes[str]) -> list[str]:
    return [of.popleft() for _ in range(len(of))]


def test_a_higher_level_goes_first_and_within_a_level_who_came_first() -> None:
    assert drained(lanes(LOW, NORMAL, HIGH, NORMAL, HIGH, LOW)) == ["h2", "h4", "n1", "n3", "l0", "l5"]


def test_of_eight_in_a_row_one_is_the_oldest() -> None:
    order = drained(lanes(LOW, NORMAL, *[HIGH] * 20))
    assert order.index("l0") == TURNS - 1
    assert order.index("n1") == 2 * TURNS - 1
    assert sorted(order) == sorted(["l0", "n1", *(f"h{i}" for i in range(2, 22))])


def test_who_overtakes_nobody_is_not_counted() -> None:
    waiting = lanes(*[HIGH] * 30)
    drained(waiting)
    waiting.append("l", LOW)
    for _ in range(20):
        waiting.append("h", HIGH)
    assert drained(waiting).index("l") == TURNS - 1


def test_the_newest_of_the_lowest_level_is_evicted() -> None:
    waiting = lanes(LOW, NORMAL, LOW, NORMAL, HIGH)
    assert [waiting.evict(NORMAL) for _ in range(3)] == ["l2", "l0", None]
    assert [waiting.evict(HIGH) for _ in range(3)] == ["n3", "n1", None]
    assert (len(waiting), drained(waiting)) == (1, ["h4"])


def test_what_is_not_wanted_any_more_leaves_every_lane() -> None:
    waiting = lanes(LOW, NORMAL, HIGH, LOW)
    assert waiting.retain(lambda entry: entry != "l0") == 1
    assert list(waiting) == ["h2", "n1", "l3"]
    waiting.clear()
    assert len(waiting) == 0
    with pytest.raises(IndexError):
        waiting.popleft()


# Both ways to a run thread.

both = pytest.mark.parametrize("batching", [False, True, "adaptive"], ids=["direct", "batched", "adaptive"])


def order(r: Rig) -> list[int]:
    """The values in the order in which they ran."""
    return [int(value) for inputs in r.servable.runs for value in inputs["x"]]


async def behind_a_blocker(r: Rig, *priorities: int) -> list[asyncio.Future[dict[str, Array]]]:
    """Requests 1, 2, ... that queue while request 0 has the only run thread."""
    blocker = r.submit(0)
    await r.began()
    return [blocker, *(r.submit(i, priority=priority) for i, priority in enumerate(priorities, 1))]


@both
async def test_a_high_priority_overtakes_and_a_low_one_comes_last(batching: Batching) -> None:
    async with rig(FakeServable(held=True), BatchingOptions(max_batch_size=1), batching=batching) as r:
        answers = await behind_a_blocker(r, LOW, NORMAL, HIGH, NORMAL, LOW, HIGH)
        r.servable.let(7)
        await asyncio.gather(*answers)
        assert order(r) == [0, 3, 6, 2, 4, 1, 5]


@both
async def test_a_low_priority_is_not_starved(batching: Batching) -> None:
    async with rig(FakeServable(held=True), BatchingOptions(max_batch_size=1), batching=batching) as r:
        answers = await behind_a_blocker(r, LOW, *[HIGH] * 20)
        r.servable.let(22)
        await asyncio.gather(*answers)
        assert order(r)[: TURNS + 1] == [0, *range(2, TURNS + 1), 1]


@both
async def test_a_full_queue_takes_a_high_priority_in_place_of_the_newest_lowest(batching: Batching) -> None:
    options = BatchingOptions(max_batch_size=2, max_enqueued_batches=2)
    async with rig(FakeServable(held=True), options, batching=batching, max_pending=5) as r:
        answers = await behind_a_blocker(r, NORMAL, LOW, NORMAL, LOW) if not batching else []
        answers = answers or await behind_a_blocker(r, LOW, LOW, NORMAL, NORMAL)
        with pytest.raises(QueueFullError):
            r.submit(9, priority=LOW)
        answers += [r.submit(5, priority=HIGH), r.submit(6)]
        with pytest.raises(QueueFullError):
            r.submit(9)
        r.servable.let(10)
        outcomes = await asyncio.gather(*answers, return_exceptions=True)
        refused = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]
        assert refused == ([1, 2] if batching else [2, 4])
        for i in refused:
            error = outcomes[i]
            assert isinstance(error, QueueFullError)
            assert error.code is Code.UNAVAILABLE
            assert str(error).endswith(OVERTAKEN)
        assert r.predictor.statistics().refused == 4
        assert order(r)[:2] == [0, 5]


async def test_a_place_that_a_caller_has_left_goes_before_one_that_is_wanted() -> None:
    async with rig(FakeServable(held=True), batching=False, max_pending=3) as r:
        answers = await behind_a_blocker(r, LOW, NORMAL)
        answers[2].cancel()
        high = r.submit(3, priority=HIGH)
        r.servable.let(3)
        await asyncio.gather(answers[0], answers[1], high)
        assert order(r) == [0, 3, 1]


# In process.


async def test_predict_takes_a_priority_on_the_registry_and_on_a_handle_async_and_sync() -> None:
    recorder = Recorder()
    async with recorder.registry as registry, registry.acquire("m") as handle:
        asks: list[asyncio.Task[Any]] = [asyncio.create_task(registry.predict("m", {"x": [0.0]}))]
        await recorder.running()
        for number, ask in enumerate(
            (
                registry.predict("m", {"x": [1.0]}, priority="low"),
                asyncio.to_thread(handle.predict_sync, {"x": [2.0]}, timeout=60),
                handle.predict({"x": [3.0]}, priority="high", timeout=60),
                asyncio.to_thread(registry.predict_sync, "m", {"x": [4.0]}, priority="high"),
            ),
            1,
        ):
            asks.append(asyncio.create_task(ask))
            await recorder.waiting(number)
        recorder.gate.open()
        await asyncio.gather(*asks)
        assert recorder.ran == [0, 3, 4, 2, 1]


async def test_a_priority_that_is_none_is_refused_before_anything_runs() -> None:
    recorder = Recorder()
    recorder.gate.open()
    async with recorder.registry as registry:
        with pytest.raises(InvalidInputError, match="priority 'urgent' is none of high, normal, low"):
            await registry.predict("m", {"x": [0.0]}, priority="urgent")  # type: ignore[arg-type]
        assert recorder.ran == []
