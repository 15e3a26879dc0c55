"""The queue as a table: what is put, when, and what leaves when. Tasks are named by their rows or a letter."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.batching.batch import BatchTask
from embedserve.batching.batch_queue import PATIENCE, SEARCH_INTERVAL, BatchQueue
from embedserve.batching.merge import cut
from embedserve.config import BatchingOptions
from embedserve.errors import Code, InvalidInputError, QueueFullError
from embedserve.priority import OVERTAKEN, TURNS, Priority
from tests.batching.fakes import outcome

HIGH, NORMAL, LOW = Priority
A, B, C = ("a",), ("b",), ("c",)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


class Line:
    """A queue whose tasks are made from their rows."""

    def __init__(self, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        self._loop = loop
        self._next = 0
        self.queue = BatchQueue(BatchingOptions(**options), cut)

    def put(self, rows: int, key: tuple[str, ...] = A, now: float = 0.0, level: int = Priority.NORMAL) -> BatchTask:
        inputs = {"x": np.arange(self._next, self._next + rows)}
        self._next += rows
        task = BatchTask(self._loop.create_future(), inputs, rows, entered=float(self._next))
        self.full = self.queue.put(key, task, now, level)
        return task

    def pop(self, now: float = 0.0) -> tuple[str, list[int], str] | None:
        batch = self.queue.pop(now)
        if batch is None:
            return None
        assert batch.rows == sum(task.rows for task in batch.tasks)
        return batch.key[0], [task.rows for task in batch.tasks], batch.reason

    def pop_all(self, now: float = 0.0) -> list[list[int]]:
        popped = []
        while (batch := self.pop(now)) is not None:
            popped.append(batch[1])
        return popped


def test_everything_that_queued_leaves_with_the_first_free_slot(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=8)
    assert line.queue.ready_at() is None
    for rows in (1, 2, 3):
        line.put(rows)
    assert not line.full
    assert line.queue.ready_at() == 0.0
    assert line.pop() == ("a", [1, 2, 3], "slot")
    assert line.pop() is None
    assert line.queue.ready_at() is None
    assert (line.queue.waiting, line.queue.batches) == (0, 0)


def test_a_batch_takes_no_more_than_fits_and_nothing_overtakes(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=4)
    for rows in (3, 2, 2, 1, 4):
        line.put(rows)
    assert line.full
    assert [line.pop() for _ in range(4)] == [
        ("a", [3], "full"),
        ("a", [2, 2], "full"),
        ("a", [1], "full"),
        ("a", [4], "full"),
    ]


def test_an_open_batch_waits_for_company_until_its_first_tasks_time_is_over(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=4, batch_timeout_micros=500_000)
    line.put(1, now=10.0)
    line.put(1, now=10.25)
    assert line.queue.ready_at() == 10.5
    assert line.pop(10.25) is None
    assert line.pop(10.5) == ("a", [1, 1], "timeout")


def test_a_full_batch_does_not_wait_and_its_successor_does(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=4, batch_timeout_micros=500_000)
    for at in range(5):
        line.put(1, now=10.0 + at / 16)
    assert line.pop(10.25) == ("a", [1, 1, 1, 1], "full")
    assert line.queue.ready_at() == 10.75
    assert line.pop(10.25) is None


def test_closing_ends_all_waiting(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, batch_timeout_micros=500_000)
    line.put(1, now=10.0)
    line.queue.close()
    assert line.queue.ready_at() == 0.0
    assert line.pop(10.0) == ("a", [1], "closing")


def test_keys_never_share_a_batch_and_take_turns(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=2)
    for key in (A, A, A, A, A, B, C, B, B):
        line.put(1, key)
    assert [line.pop() for _ in range(6)] == [
        ("a", [1, 1], "full"),
        ("b", [1, 1], "full"),
        ("c", [1], "slot"),
        ("a", [1, 1], "full"),
        ("b", [1], "slot"),
        ("a", [1], "slot"),
    ]


def test_a_key_that_must_wait_does_not_hold_up_one_that_need_not(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=2, batch_timeout_micros=1_000_000)
    line.put(1, A, now=10.0)
    line.put(2, B, now=10.0)
    assert line.queue.ready_at() == 0.0
    assert line.pop(10.0) == ("b", [2], "full")
    assert line.queue.ready_at() == 11.0


# A second batch beside a running one.


def test_while_a_short_run_runs_only_a_full_batch_leaves(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=2)
    line.queue.started(5.0)
    line.put(1)
    assert line.queue.ready_at() == 5.0 + PATIENCE
    assert line.pop(5.0) is None
    line.put(1)
    assert line.pop(5.0) == ("a", [1, 1], "full")
    line.put(1)
    line.queue.ended(0.0001, 1, 5.0)
    assert line.pop(5.0) == ("a", [1], "slot")


def test_a_run_that_takes_long_has_company_after_a_moment(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop)
    line.queue.started(5.0)
    line.put(1)
    assert line.pop(5.0 + PATIENCE) == ("a", [1], "slot")


def test_where_runs_usually_take_long_a_second_one_starts_at_once(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop)
    for _ in range(3):
        line.queue.started(5.0)
        line.queue.ended(0.02, 1, 5.0)
    line.queue.started(6.0)
    line.put(1)
    assert line.queue.ready_at() == 0.0
    for _ in range(6):  # Short ones count more: a long one may only have waited for the interpreter.
        line.queue.ended(0.0001, 1, 5.0)
        line.queue.started(6.0)
    line.queue.ended(0.01, 1, 5.0)
    line.queue.started(6.0)
    assert line.queue.ready_at() == 6.0 + PATIENCE
    line.queue.ended(None, 1, 5.0)


# Bounds.


@pytest.mark.parametrize(
    ("options", "rows", "admitted"),
    [
        ({}, 4, True),
        ({}, 0, False),
        ({}, 5, False),
        ({"oversize": "reject"}, 4, True),
        ({"oversize": "reject"}, 5, None),
        ({"enable_large_batch_splitting": True, "max_execution_batch_size": 2}, 4, True),
        ({"enable_large_batch_splitting": True, "max_execution_batch_size": 2}, 5, None),
    ],
)
def test_which_sizes_are_admitted(
    loop: asyncio.AbstractEventLoop, options: dict[str, Any], rows: int, admitted: bool | None
) -> None:
    queue = Line(loop, max_batch_size=4, **options).queue
    if admitted is None:
        with pytest.raises(InvalidInputError, match=r"^Task size 5 is larger than maximum input batch size 4$"):
            queue.admits(rows)
    else:
        assert queue.admits(rows) is admitted


def test_full_is_only_what_does_not_fit_in_the_open_batch(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=4, max_enqueued_batches=2)
    for rows in (4, 2):
        line.put(rows)
    words = (
        "The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued and "
        "max_enqueued_batches is 2"
    )
    with pytest.raises(QueueFullError, match=f"^{re.escape(words)}$") as caught:
        line.put(3)
    assert caught.value.code is Code.UNAVAILABLE
    with pytest.raises(QueueFullError):
        line.put(1, B)
    line.put(2)
    assert line.pop_all() == [[4], [2, 2]]
    line.put(1, B)


def test_tasks_whose_callers_left_make_room_in_a_full_queue(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=4, max_enqueued_batches=3, batch_timeout_micros=1_000_000)
    tasks = [line.put(rows, key, now=float(rows)) for rows, key in ((3, A), (2, A), (2, A), (4, B))]
    for task in tasks[1:]:
        task.future.cancel()
    line.put(4, A, now=5.0)
    assert (line.queue.waiting, line.queue.batches) == (2, 2)
    line.put(4, B, now=5.0)
    with pytest.raises(QueueFullError):  # A search for the departed does not come with every refusal.
        line.put(1, C, now=5.0 + SEARCH_INTERVAL / 2)
    line.pop(5.0)
    assert line.pop(5.0) == ("b", [4], "full")
    assert line.pop(5.0) == ("a", [4], "full")


def test_reruns_go_alone_and_first_and_are_not_refused(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=4, max_enqueued_batches=1, batch_timeout_micros=1_000_000)
    tasks = [line.put(rows) for rows in (1, 2)]
    line.pop(2.0)
    line.put(1, now=2.0)
    line.queue.rerun(A, tasks)
    assert line.queue.ready_at() == 0.0
    assert [task.rows for task in line.queue.tasks()] == [1, 2, 1]
    assert [line.pop(2.0), line.pop(2.0), line.pop(2.0)] == [("a", [1], "rerun"), ("a", [2], "rerun"), None]
    assert (line.queue.waiting, line.queue.batches) == (1, 1)


# Splitting.


def splitting(loop: asyncio.AbstractEventLoop, **options: Any) -> Line:
    return Line(
        loop, **{"max_batch_size": 10, **options}, enable_large_batch_splitting=True, max_execution_batch_size=4
    )


@pytest.mark.parametrize(
    ("rows", "batches"),
    [
        ([4], [[4]]),
        ([10], [[4], [4], [2]]),
        ([3, 3], [[3, 1], [2]]),
        ([4, 3], [[4], [3]]),
        ([1, 10, 1], [[1, 3], [4], [3, 1]]),
        ([8], [[4], [4]]),
    ],
)
def test_a_request_is_cut_to_fill_the_open_batch_first(
    loop: asyncio.AbstractEventLoop, rows: list[int], batches: list[list[int]]
) -> None:
    line = splitting(loop)
    for size in rows:
        line.put(size)
    assert [size for batch in batches for size in batch] == [task.rows for task in line.queue.tasks()]
    values = np.concatenate([task.inputs["x"] for task in line.queue.tasks()])
    assert values.tolist() == list(range(sum(rows)))
    assert line.queue.waiting == sum(map(len, batches))
    assert line.pop_all() == batches


def test_pieces_know_their_request_and_their_place_in_it(loop: asyncio.AbstractEventLoop) -> None:
    line = splitting(loop)
    request = line.put(10)
    pieces = list(line.queue.tasks())
    assert all(piece.future is request.future for piece in pieces)
    assert [piece.position for piece in pieces] == [0, 1, 2]
    assert len({id(piece.whole) for piece in pieces}) == 1
    assert pieces[0].whole is not None
    assert pieces[0].whole.missing == 3


@pytest.mark.parametrize(
    ("waiting", "rows", "capacity", "opened"),
    [([], 9, 8, 0), ([4], 5, 4, 4), ([3], 6, 5, 3), ([4, 4], 1, 0, 4)],
)
def test_a_request_over_the_capacity_is_refused_whole(
    loop: asyncio.AbstractEventLoop, waiting: list[int], rows: int, capacity: int, opened: int
) -> None:
    line = splitting(loop, max_enqueued_batches=2)
    for size in waiting:
        line.put(size)
    words = (
        f"The batch scheduling queue to which this task was submitted is full; task size is {rows} but scheduling "
        f"capacity is only {capacity} (num_enqueued_batches={len(waiting)}, max_enqueued_batches=2, "
        f"open_batch_size={opened}, max_execution_batch_size=4)"
    )
    with pytest.raises(QueueFullError, match=f"^{re.escape(words)}$"):
        line.put(rows)
    assert line.queue.waiting == len(waiting)
    if capacity:
        line.put(capacity)
        assert line.queue.batches == 2


def test_room_is_made_for_a_request_that_is_cut(loop: asyncio.AbstractEventLoop) -> None:
    line = splitting(loop, max_enqueued_batches=2)
    line.put(4).future.cancel()
    line.put(2)
    line.put(5)
    assert line.pop_all() == [[2, 2], [3]]


# Priorities. A task is told by its rows.


def refused(*tasks: BatchTask) -> list[bool]:
    return [task.future.done() and OVERTAKEN in str(outcome(task.future)) for task in tasks]


def test_a_batch_begins_with_the_highest_priority_and_is_filled_up_with_the_next(
    loop: asyncio.AbstractEventLoop,
) -> None:
    line = Line(loop, max_batch_size=8)
    for rows, level in ((5, LOW), (4, NORMAL), (3, NORMAL), (2, HIGH), (1, HIGH)):
        line.put(rows, level=level)
    assert line.queue.batches == 3
    assert line.pop() == ("a", [2, 1, 4], "slot")
    assert line.pop() == ("a", [3, 5], "full")
    assert (line.queue.waiting, line.queue.batches, line.queue.ready_at()) == (0, 0, None)


def test_a_batch_is_filled_up_from_several_batches_of_the_next_priority(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=4)
    for rows in (3, 2, 2, 1):
        line.put(rows)
    line.pop()
    line.put(1, level=HIGH)
    line.put(1)
    assert (line.queue.waiting, line.queue.batches) == (5, 3)
    assert [line.pop() for _ in range(3)] == [("a", [1, 2], "slot"), ("a", [2, 1, 1], "full"), None]
    assert (line.queue.waiting, line.queue.batches) == (0, 0)


def test_priorities_of_different_keys_do_not_meet(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=8)
    line.put(1, A, level=LOW)
    line.put(2, B, level=NORMAL)
    line.put(3, C, level=HIGH)
    assert [line.pop() for _ in range(3)] == [("c", [3], "slot"), ("b", [2], "slot"), ("a", [1], "slot")]


def test_of_eight_batches_in_a_row_one_begins_with_who_has_waited_longest(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=2)
    line.put(1, B, now=1.0, level=LOW)
    line.put(1, C, now=2.0)
    for i in range(20):
        line.put(2, A, now=3.0 + i, level=HIGH)
    keys = [line.pop()[0] for _ in range(22)]  # type: ignore[index]
    assert keys.index("b") == TURNS - 1
    assert keys.index("c") == 2 * TURNS - 1


def test_a_full_queue_evicts_the_newest_of_the_lowest_priority_and_no_more_than_needed(
    loop: asyncio.AbstractEventLoop,
) -> None:
    line = Line(loop, max_batch_size=4, max_enqueued_batches=3)
    low = [line.put(1, level=LOW) for _ in range(4)]
    other = [line.put(2, B, level=LOW) for _ in range(2)]
    normal = [line.put(1) for _ in range(4)]
    with pytest.raises(QueueFullError):
        line.put(1, level=LOW)
    high = line.put(1, level=HIGH)
    assert refused(*low, *other, *normal) == [False] * 5 + [True] + [False] * 4
    line.put(3, level=HIGH)  # There is room in the batch that was opened for `high`, and none in the queue.
    assert refused(*low, *other) == [False] * 3 + [True] * 3
    with pytest.raises(QueueFullError):
        line.put(4)
    line.put(3)
    assert refused(*low, *other) == [True] * 6
    assert line.queue.evicted == 6
    line.put(1)
    with pytest.raises(QueueFullError):
        line.put(1)
    assert not any(refused(high, *normal))
    assert line.queue.waiting == 8
    assert line.pop_all() == [[1, 3], [1, 1, 1, 1], [3, 1]]


def test_evictions_keep_the_rows_that_wait_within_the_bound(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=4, max_enqueued_batches=3)
    tasks = [line.put(1) for _ in range(12)]
    high = [line.put(1, level=HIGH) for _ in range(12)]
    assert all(refused(*tasks))
    with pytest.raises(QueueFullError):
        line.put(1, level=HIGH)
    assert not any(refused(*high))
    assert (line.queue.waiting, line.queue.batches) == (12, 3)
    line.pop()
    line.put(1, level=LOW)
    assert (line.queue.waiting, line.queue.batches) == (9, 3)


def test_whoever_left_makes_room_before_anyone_is_evicted(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, max_batch_size=2, max_enqueued_batches=2)
    tasks = [line.put(2), line.put(2, level=LOW)]
    tasks[0].future.cancel()
    line.put(2, level=HIGH, now=1.0)
    assert not tasks[1].future.done()
    assert line.pop_all() == [[2], [2]]


def test_a_request_that_is_cut_evicts_what_it_needs(loop: asyncio.AbstractEventLoop) -> None:
    line = splitting(loop, max_enqueued_batches=3)
    low = [line.put(2, level=LOW) for _ in range(6)]
    line.put(5, level=HIGH)
    assert refused(*low) == [False, False, False, True, True, True]
    with pytest.raises(QueueFullError, match="scheduling capacity is only"):
        line.put(9)
    cut_request = line.put(6, level=HIGH)
    assert not any(refused(cut_request))
    assert all(refused(*low))
    assert line.pop_all() == [[4], [1, 3], [3]]


@given(
    sizes=st.lists(st.integers(1, 10), max_size=30),
    keys=st.lists(st.sampled_from([A, B, C]), min_size=30, max_size=30),
    pops=st.lists(st.booleans(), min_size=30, max_size=30),
    splits=st.booleans(),
    levels=st.one_of(st.none(), st.lists(st.sampled_from(Priority), min_size=30, max_size=30)),
)
def test_every_row_leaves_once_in_order_and_no_batch_is_too_large(
    sizes: list[int], keys: list[tuple[str]], pops: list[bool], splits: bool, levels: list[Priority] | None
) -> None:
    loop = asyncio.new_event_loop()
    line = splitting(loop) if splits else Line(loop, max_batch_size=10)
    expected: dict[tuple[str, ...], list[int]] = {}
    seen: dict[tuple[str, ...], list[int]] = {}

    def pop() -> bool:
        batch = line.queue.pop(0.0)
        if batch is None:
            return False
        assert 0 < batch.rows <= (4 if splits else 10)
        for task in batch.tasks:
            seen.setdefault(batch.key, []).extend(task.inputs["x"].tolist())
        return True

    for i, (size, key, popping) in enumerate(zip(sizes, keys, pops, strict=False)):
        task = line.put(size, key, level=levels[i] if levels else NORMAL)
        expected.setdefault(key, []).extend(task.inputs["x"].tolist())
        if popping:
            pop()
    while pop():
        pass
    if levels:  # Order is kept within a priority only.
        seen = {key: sorted(rows) for key, rows in seen.items()}
    assert seen == expected
    assert (line.queue.waiting, line.queue.batches, line.queue.ready_at()) == (0, 0, None)
    loop.close()
