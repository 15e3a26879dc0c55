"""A batch queue that learns how long runs take, and chooses how large a batch leaves, when, and who cannot be helped.

The queue of `batching="adaptive"`. A batch is as large as holds the target latency, larger where throughput would
suffer, and no larger than its most urgent task has time for. It may wait a moment for callers that are about to come
back (returns.py). What cannot be answered in time is refused at once. Like its base it knows no clock, thread or model.
"""

from __future__ import annotations

import math
from collections import deque

from embedserve.batching.batch import Batch, BatchTask, Cut, Key
from embedserve.batching.batch_queue import BatchQueue, Lines
from embedserve.batching.forecast import Forecast
from embedserve.batching.returns import SHORTEST, Returns
from embedserve.batching.run_times import RunTimes
from embedserve.config import BatchingOptions
from embedserve.errors import DeadlineExceededError, OverloadedError
from embedserve.priority import Priority

__all__ = ["AdaptiveQueue"]

# A batch is not so small that one of any size would have this share more throughput.
WORTHWHILE = 0.02

# No batch is smaller than this share of what waits: then throughput is all that counts.
SHARE_OF_BACKLOG = 4

# One batch in so many is larger than the limit, so that the limit cannot rest on runs of long ago.
PROBE_INTERVAL = 256
PROBE = 1.5

# Tasks that are given up before a run has to show that what was learnt is still so.
MOST_GIVEN_UP = 64

# Of runs shorter than so many seconds one in so many is learnt from, but for the first ones.
QUICK = 0.001
QUICK_SHARE = 32
FIRST_RUNS = 32


class AdaptiveQueue(BatchQueue):
    """The queue of one signature of one loaded version, with limits that it learns.

    Args:
        options: Bounds; `batch_timeout_micros` says nothing here.
        cut: As for `BatchQueue`.
        threads: How many runs there can be at once.
    """

    __slots__ = (
        "_allowed",
        "_batches_since_probe",
        "_earliest",
        "_forecast",
        "_held",
        "_leaving",
        "_longest",
        "_returns",
        "_target",
        "_threads",
        "_timed",
        "_to_give_up",
        "_unlearnt",
        "_watches",
        "times",
    )

    def __init__(self, options: BatchingOptions, cut: Cut, threads: int) -> None:
        super().__init__(options, cut)
        self.times = RunTimes()
        self._returns = Returns()
        self._forecast = Forecast(threads)
        self._target = options.target_latency
        self._allowed = options.allowed_batch_sizes
        self._threads = threads
        self._timeout = 0.0
        self._watches = False  # Whether callers may be worth waiting for.
        self._held = False
        self._longest = 0.0  # Far more seconds than the largest batch runs.
        self._timed = False  # Whether there has been a deadline.
        self._earliest = math.inf  # No deadline of a task that waits is before this.
        self._leaving = 0
        self._to_give_up = MOST_GIVEN_UP
        self._batches_since_probe = 0
        self._unlearnt = 0

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, at most {self.limit} rows, {self.times!r}>"

    # Who is admitted.

    def check_deadline(self, rows: int, deadline: float, now: float, level: int = Priority.NORMAL) -> None:
        """Refuse a request that could not be answered in time; called before it is put.

        Raises:
            DeadlineExceededError: A run alone takes longer than it has.
            OverloadedError: What waits and runs before it takes longer.
        """
        # What comes to an idle queue is tried whatever was learnt, for how else would it learn better?
        if self._running and deadline - now < (self.batches + 2) * self._longest * max(self._forecast.pace, 1.0):
            self._check(rows, deadline - now, now, level)
        self._timed = True
        self._earliest = min(self._earliest, deadline) if self.waiting else deadline

    def _check(self, rows: int, left: float, now: float, level: int) -> None:
        pace, margin = self._forecast.pace, self._margin
        alone = self._seconds(rows)
        if alone > left:
            self.shed += 1
            raise DeadlineExceededError(
                f"a run of {rows} rows takes about {alone:.3g} s, {max(left, 0):.3g} s are left"
            )
        ahead = sum(batch.rows for lines in self._levels[: level + 1] for line in lines.values() for batch in line)
        wait = self._forecast.next_slot(now)
        if not ahead and not wait:
            return
        # So small a batch that one can run while another waits for it.
        room = max(min(self.limit, self._rows_within(left / (1 + pace) / margin)), rows)
        if ahead + rows > room:
            wait += pace * self._seconds(room) * ahead / room
        run = self._seconds(min(room, ahead + rows))
        if (wait + run) * margin > left:
            self.shed += 1
            raise OverloadedError(
                f"{self.waiting} requests wait already; an answer takes about {wait + run:.3g} s, {left:.3g} s are left"
            )

    def _seconds(self, rows: float) -> float:
        if self._allowed:
            rows = min((size for size in self._allowed if size >= rows), default=rows)
        return self.times.seconds(rows)

    def _rows_within(self, seconds: float) -> float:
        return self._allowed_rows(self.times.rows_within(seconds))

    def _allowed_rows(self, rows: float) -> float:
        """The largest batch of at most `rows` that needs no padding; 0 if the smallest is larger."""
        return max((size for size in self._allowed if size <= rows), default=0) if self._allowed else rows

    @property
    def _margin(self) -> float:
        """What a prediction is multiplied by, to be kept nearly always."""
        return 1.03 + min(self.times.error, 0.2)

    # When a batch leaves, and how large.

    def _ready(self, line: deque[Batch]) -> float:
        batch = line[0]
        if batch.rows >= self.limit:
            return 0.0
        at = BatchQueue._ready(self, line)  # Not by super(): one of these is made per call, and a quick run has four.
        # With another thread free, those who come back need not wait for this run.
        if not self._watches or self._closing or len(line) > 1 or self._running < self._threads - 1:
            return at
        until = self._returns.worth_waiting_until(batch.rows, self.times)
        if until:
            until = min(until, batch.opened_at + self._target - self.times.seconds(batch.rows))
        self._held = until > at
        return max(at, until)

    def _put_with_care(self, key: Key, task: BatchTask, now: float, level: int) -> bool:
        full = super()._put_with_care(key, task, now, level)
        if now <= self._returns.until:
            self._returns.came(task.rows, now)
        return full or self._held or self._levels[level][key][-1].rows >= self.limit

    def _take(self, lines: Lines, key: Key, line: deque[Batch], now: float) -> Batch:
        self._held = False
        self._room = self._divide(line, now)
        batch = BatchQueue._take(self, lines, key, line, now)
        self._leaving = batch.rows
        return batch

    def _divide(self, line: deque[Batch], now: float) -> int:
        """Make the first batch of a line what may leave now, and its rest the next; up to how many rows it may grow."""
        front, rows, gone, count = line[0], 0, 0, 0
        self._batches_since_probe += 1
        if front.rows <= self.limit and now + self._longest <= self._earliest:
            return self.limit
        room: float = max(self.limit, self.waiting // SHARE_OF_BACKLOG)
        if front.rows > room and self._batches_since_probe > PROBE_INTERVAL:
            self._batches_since_probe = 0
            room = max(PROBE * room, room + 1)
        room = self._allowed_rows(min(room, self._limit))
        for task in front.tasks:
            if task.deadline is not None and not task.future.done():
                within = self._rows_within(task.deadline - now)
                if within < task.rows:
                    if self._to_give_up:
                        self._give_up(task)
                elif rows and within < rows + task.rows:
                    room = rows
                    break
                else:
                    room = min(room, within)
            if task.future.done():
                gone += task.rows
            elif rows and rows + task.rows > room:
                break
            else:
                rows += task.rows
            count += 1
        leaving = front
        if count < len(front.tasks):
            leaving = Batch(front.key, front.tasks[0], front.opened_at)
            leaving.tasks = front.tasks[:count]
            front.tasks, front.rows = front.tasks[count:], front.rows - rows - gone
            line.appendleft(leaving)
            self.batches += 1
        leaving.rows = rows  # Those who are gone take no room.
        return max(int(room), rows)

    def _give_up(self, task: BatchTask) -> None:
        self.shed += 1
        self._to_give_up -= 1
        run = self._seconds(task.rows)
        task.future.set_exception(DeadlineExceededError(f"a run takes about {run:.3g} s, and less is left of the time"))

    # What is learnt.

    def started(self, now: float) -> None:
        """As `BatchQueue.started`."""
        BatchQueue.started(self, now)
        if self._timed:
            self._forecast.started(now, self._seconds(self._leaving), self.waiting > 0)

    def ended(self, seconds: float | None, rows: int, now: float) -> None:
        """As `BatchQueue.ended`."""
        BatchQueue.ended(self, seconds, rows, now)
        if self._timed:
            self._forecast.ended(self.waiting > 0)
            self._to_give_up = MOST_GIVEN_UP
        if seconds is not None:
            self._unlearnt += 1
            if self._unlearnt >= QUICK_SHARE or self._typical >= QUICK or self.times.runs <= FIRST_RUNS:
                self._unlearnt = 0
                if self.times.observe(rows, seconds):
                    self._choose()
        if self._watches:
            self._returns.answered(rows, now, self.times)

    def _choose(self) -> None:
        """Choose the limit, and whether each request is worth a look."""
        times = self.times
        # One run may be waited for and one is the request's own.
        rows = times.rows_within(self._target / 2)
        rows = max(rows, times.fixed / (WORTHWHILE * times.per_row) if times.per_row else math.inf)
        smallest = min(self._allowed, default=1)
        self.limit = int(max(self._allowed_rows(min(rows, self._limit)), smallest))
        self._longest = 2 * times.seconds(self._limit)
        self._watches = times.fixed >= SHORTEST
        looks = self._watches or self.limit < self._limit
        self._careful = looks or self._splits
        self._usual = 0 if looks else self._limit
        if self.batches <= self._max_batches:
            self._joinable = self._usual
