"""What the adaptive queue makes of what it has learnt, as a table: sizes, waits, and who is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from embedserve.batching.adaptive import FIRST_RUNS, MOST_GIVEN_UP, PROBE_INTERVAL, QUICK_SHARE, AdaptivePolicy
from embedserve.batching.batch import Batch, BatchTask
from embedserve.batching.batch_queue import BatchQueue
from embedserve.batching.merge import cut
from embedserve.config import BatchingOptions
from embedserve.errors import Code, DeadlineExceededError, OverloadedError, QueueFullError
from embedserve.priority import Priority
from tests.batching.fakes import outcome

KEY = ("a",)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


class Line:
    """An adaptive queue, a clock, and a model of which it has seen some runs."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fixed: float, per_row: float, *, threads: int = 1, **options: Any
    ) -> None:
        self._loop = loop
        self.fixed, self.per_row = fixed, per_row
        self.now = 100.0
        chosen = BatchingOptions(**{"target_latency": 0.11} | options)
        self.policy = AdaptivePolicy(chosen, threads)
        self.queue = BatchQueue(chosen, cut, self.policy)
        for rows in (1, 4, 16) * 3:
            self.policy.times.observe(rows, fixed + per_row * rows)
        self.policy.choose()
        self.queue.adopt(self.policy)
        self.queue._typical = 1.0  # Long enough for a second run beside a first one.

    def put(self, rows: int = 1, left: float | None = None, level: int = Priority.NORMAL) -> BatchTask:
        deadline = None if left is None else self.now + left
        if deadline is not None:
            self.policy.check_deadline(self.queue, rows, deadline, self.now, level)
        task = BatchTask(self._loop.create_future(), {"x": np.zeros(rows)}, rows, deadline, self.now)
        self.queue.put(KEY, task, self.now, level)
        return task

    def run(self) -> Batch:
        """Take a batch and let it begin."""
        batch = self.queue.pop(self.now)
        assert batch is not None
        self.queue.started(self.now)
        return batch

    def end(self, rows: int) -> None:
        """A run of `rows` ends now."""
        self.queue.ended(self.fixed + self.per_row * rows, rows, self.now)


# Sizes.


@pytest.mark.parametrize(
    ("fixed", "per_row", "target", "limit"),
    [
        (0.0, 0.010, 0.11, 5),  # Half of the target for the wait, half for the run.
        (0.010, 0.001, 0.1, 128),  # A smaller batch would cost throughput.
        (0.0011, 0.010, 0.001, 5),  # Where one row takes longer than the target, too.
        (0.001, 0.010, 10.0, 128),  # Within the bound there is.
        (0.001, 0.010, 1.0, 49),
    ],
)
def test_a_batch_is_as_large_as_the_target_allows_and_throughput_needs(
    loop: asyncio.AbstractEventLoop, fixed: float, per_row: float, target: float, limit: int
) -> None:
    line = Line(loop, fixed, per_row, target_latency=target)
    assert line.queue.limit == limit
    assert f"at most {limit} rows" in repr(line.queue)


def test_before_a_second_size_has_been_seen_nothing_limits_a_batch(loop: asyncio.AbstractEventLoop) -> None:
    policy = AdaptivePolicy(BatchingOptions(target_latency=0.001), 1)
    policy.times.observe(1, 1.0)
    policy.choose()
    assert policy.limit == 128


def test_what_is_over_the_limit_stays_first_in_line(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.0, 0.010)
    tasks = [line.put() for _ in range(8)]
    assert line.run().tasks == tasks[:5]
    assert (line.queue.waiting, line.queue.batches) == (3, 1)
    more = [line.put() for _ in range(3)]
    assert line.run().tasks == tasks[5:] + more[:2]
    assert line.run().tasks == more[2:]
    assert (line.queue.waiting, line.queue.batches) == (0, 0)


def test_under_a_long_backlog_batches_grow(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.0, 0.010)
    for _ in range(60):
        line.put()
    assert len(line.run().tasks) == 15


def test_no_batch_is_larger_than_the_option_says(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.0, 0.010, max_batch_size=8)
    for _ in range(64):
        line.put()
    while line.queue.waiting:
        assert len(line.run().tasks) <= 8


def test_a_request_over_the_limit_runs_alone(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.0, 0.010)
    tasks = [line.put(2), line.put(12), line.put(1)]
    assert [line.run().tasks for _ in range(3)] == [[task] for task in tasks]


def test_limits_are_allowed_sizes(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.0, 0.010, allowed_batch_sizes=(2, 4, 8, 32), max_batch_size=32)
    assert line.queue.limit == 4
    for _ in range(48):
        line.put()
    assert len(line.run().tasks) == 8  # A quarter of what waits, and no padding.
    small = Line(loop, 0.0, 0.010, allowed_batch_sizes=(16, 32), max_batch_size=32)
    assert small.queue.limit == 16


def test_now_and_then_a_larger_batch_is_tried(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.0, 0.010)
    sizes = set()
    for _ in range(PROBE_INTERVAL + 1):
        while line.queue.waiting < 10:
            line.put()
        sizes.add(len(line.run().tasks))
        line.end(5)
    assert sizes == {5, 7}


def test_a_full_limit_is_told_at_once(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.0, 0.010)
    told = []
    for _ in range(6):
        task = BatchTask(loop.create_future(), {}, 1)
        told.append(line.queue.put(KEY, task, line.now))
    assert told == [False] * 4 + [True] * 2


# Waits.


def test_one_that_comes_back_first_waits_for_the_others_and_leaves_with_them(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.010, 0.0001)
    for _ in range(12):
        for i in range(16):
            line.now += 0.001 if i == 0 else 0.0001
            line.put()
        while line.queue.waiting:  # Once it is known that they all come, they leave together.
            line.now = max(line.now, line.queue.ready_at() or 0.0)
            rows = line.run().rows
            line.now += 0.0116
            line.end(rows)
    line.now += 0.001
    line.put()
    ready = line.queue.ready_at()
    assert ready is not None
    assert line.now + 0.0015 < ready < line.now + 0.005
    assert line.queue.pop(line.now) is None
    for _ in range(15):
        line.now += 0.0001
        line.put()
    assert line.queue.ready_at() == 0.0
    assert line.run().rows == 16


def test_nobody_waits_on_an_idle_system_or_for_a_short_run(loop: asyncio.AbstractEventLoop) -> None:
    for fixed in (0.010, 0.0001):
        line = Line(loop, fixed, 0.0001)
        for _ in range(20):
            line.put()
            assert line.queue.ready_at() == 0.0
            line.run()
            line.now += 0.02
            line.end(1)
            line.now += 1.0


# Who is refused.


def test_an_idle_queue_tries_whatever_it_has_learnt(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 1.0, 0.1)
    task = line.put(left=0.001)
    assert line.run().tasks == [task]


def test_a_request_that_no_run_could_answer_is_over_its_deadline(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.010, 0.001)
    line.put()
    line.run()
    with pytest.raises(DeadlineExceededError, match=r"^a run of 4 rows takes about 0\.014 s, 0\.012 s are left$"):
        line.put(4, left=0.012)
    with pytest.raises(DeadlineExceededError, match=r", 0 s are left$"):
        line.put(4, left=-1.0)
    assert line.queue.shed == 2


def test_a_request_that_comes_too_late_in_line_is_told_that_the_server_is_overloaded(
    loop: asyncio.AbstractEventLoop,
) -> None:
    line = Line(loop, 0.0, 0.010)
    line.put()
    line.run()
    for _ in range(4):
        line.put(left=0.1)
    words = r"^4 requests wait already; an answer takes about 0\.06\d* s, 0\.05 s are left$"
    with pytest.raises(OverloadedError, match=words) as caught:
        line.put(left=0.05)
    assert caught.value.code is Code.RESOURCE_EXHAUSTED
    assert isinstance(caught.value, QueueFullError)
    line.put(left=1.0)
    line.put()
    assert (line.queue.shed, line.queue.waiting) == (1, 6)


def test_what_waits_with_a_lower_priority_holds_nobody_up(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.0, 0.010)
    line.put()
    line.run()
    for _ in range(8):
        line.put(level=Priority.LOW)
    with pytest.raises(OverloadedError):
        line.put(left=0.05, level=Priority.LOW)
    line.put(left=0.05)


def test_a_high_priority_overtakes_into_batches_of_the_limit(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.0, 0.010)
    low = [line.put(level=Priority.LOW) for _ in range(8)]
    high = [line.put(level=Priority.HIGH) for _ in range(3)]
    assert line.run().tasks == high + low[:2]
    assert line.run().tasks == low[2:7]


def test_with_a_thread_free_a_short_time_is_enough(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.010, 0.001, threads=2)
    line.put(left=1.0)
    line.run()
    line.put(left=0.0115)


def test_a_batch_is_no_larger_than_its_most_urgent_task_has_time_for(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.0, 0.010)
    tasks = [line.put(left=left) for left in (1.0, 0.035, 1.0, 1.0, 1.0)]
    assert line.run().tasks == tasks[:3]
    line.now += 0.03
    assert line.run().tasks == tasks[3:]


def test_a_task_without_time_for_those_before_it_is_left_to_another_batch(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.0, 0.010)
    tasks = [line.put(left=left) for left in (1.0, 1.0, 1.0, 0.035)]
    assert line.run().tasks == tasks[:3]


def test_a_task_that_cannot_be_answered_any_more_is_given_up_before_it_costs_a_run(
    loop: asyncio.AbstractEventLoop,
) -> None:
    line = Line(loop, 0.0, 0.010)
    line.put(left=1.0)
    line.run()
    late, fine = line.put(left=0.06), line.put(left=1.0)
    line.now += 0.055
    line.end(1)
    batch = line.run()
    assert fine in batch.tasks
    assert isinstance(outcome(late.future), DeadlineExceededError)
    assert not fine.future.done()


def test_what_was_learnt_is_put_to_the_test_before_too_many_are_given_up(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 1.0, 0.0)
    line.put()
    line.run()
    line.end(1)
    tasks = []
    for _ in range(MOST_GIVEN_UP + 10):
        tasks.append(line.put(left=0.5))  # Nothing runs, so each is admitted.
        line.queue.pop(line.now)
    given_up = [task.future.done() and outcome(task.future) is not None for task in tasks]
    assert given_up == [True] * MOST_GIVEN_UP + [False] * 10


def test_a_failed_run_teaches_nothing(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.010, 0.001)
    runs = line.policy.times.runs
    line.put(left=1.0)
    line.run()
    line.queue.ended(None, 0, line.now)
    assert line.policy.times.runs == runs
    assert line.queue.ready_at() is None


def test_only_some_of_many_quick_runs_are_learnt_from(loop: asyncio.AbstractEventLoop) -> None:
    line = Line(loop, 0.0001, 0.00001)
    line.queue._typical = 0.0001
    for _ in range(FIRST_RUNS):
        line.policy.times.observe(1, 0.00011)
    runs = line.policy.times.runs
    for _ in range(10 * QUICK_SHARE):
        line.put()
        line.run()
        line.end(1)
    assert line.policy.times.runs == runs + 10


@pytest.mark.parametrize("splits", [False, True])
def test_every_row_leaves_once(loop: asyncio.AbstractEventLoop, splits: bool) -> None:
    line = Line(loop, 0.0, 0.010, max_batch_size=16, enable_large_batch_splitting=splits, max_execution_batch_size=8)
    put = sum(line.put(rows).rows for rows in (3, 7, 16, 1, 9, 2, 5, 16))
    left = 0
    while (batch := line.queue.pop(line.now)) is not None:
        assert batch.rows == sum(task.rows for task in batch.tasks) <= 16
        left += batch.rows
    assert (left, line.queue.waiting, line.queue.batches) == (put, 0, 0)
