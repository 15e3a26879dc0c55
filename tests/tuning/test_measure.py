"""Callers ask in a closed loop for a bounded time, and what fails is counted."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from embedserve.errors import InvalidInputError, QueueFullError
from embedserve.tuning.measure import measure


async def test_every_caller_asks_in_its_turn_and_only_the_second_phase_counts() -> None:
    asked: list[int] = []

    async def ask(turn: int) -> None:
        asked.append(turn)
        await asyncio.sleep(0)

    # No time at all: each caller asks once in each phase.
    measured = await measure(ask, 3, seconds=1e-9, warmup=1e-9)
    assert asked == [0, 1, 2, 0, 1, 2]
    assert (measured.answered, measured.failures) == (3, 0)
    assert measured.p50 is not None
    assert measured.p99 is not None
    assert 0 < measured.p50 <= measured.p99 <= measured.seconds
    assert measured.throughput == 3 / measured.seconds


async def test_a_caller_never_has_two_requests_under_way_and_all_have_one() -> None:
    under_way, most = Counter[int](), 0

    async def ask(turn: int) -> None:
        nonlocal most
        under_way[turn % 4] += 1
        most = max(most, under_way.total())
        assert max(under_way.values()) == 1
        await asyncio.sleep(0.001)
        under_way[turn % 4] -= 1

    measured = await measure(ask, 4, seconds=0.02, warmup=0.002)
    assert most == 4
    assert measured.answered >= 8


async def test_failures_are_counted_by_reason_and_neither_answers_nor_latencies() -> None:
    async def ask(turn: int) -> None:
        if turn == 0:
            await asyncio.sleep(0)
        elif turn % 2:
            raise QueueFullError("the queue is full")
        else:
            raise InvalidInputError("no such input\nwith more to it")

    measured = await measure(ask, 3, seconds=1e-9, warmup=1e-9)
    assert measured.answered == 1
    assert measured.failed == {"UNAVAILABLE: the queue is full": 1, "INVALID_ARGUMENT: no such input": 1}


async def test_refusals_that_come_at_once_leave_the_loop_to_others_and_end_in_time() -> None:
    async def ask(turn: int) -> None:
        raise QueueFullError("full")

    others = 0

    async def other() -> None:
        nonlocal others
        while True:
            await asyncio.sleep(0)
            others += 1

    turning = asyncio.create_task(other())
    async with asyncio.timeout(30):
        measured = await measure(ask, 2, seconds=0.005, warmup=0.001)
    turning.cancel()
    assert others > 1
    assert (measured.answered, measured.throughput, measured.p99) == (0, 0, None)
    assert measured.failures >= 2


async def test_what_is_no_serving_error_is_a_bug_and_ends_the_measurement() -> None:
    async def ask(turn: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        await measure(ask, 1, seconds=1e-9, warmup=1e-9)
