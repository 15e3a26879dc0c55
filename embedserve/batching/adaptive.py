"""The time and size of a leaving batch, and the refusal of late requests, learnt from the times of earlier runs.

The policy of `batching="adaptive"`. The batch size keeps the target latency, and is larger where throughput would
suffer. The size also fits the time left to the batch's most urgent task. A batch may wait a moment for callers about to
return. Without the wait, a large fixed cost of a run splits repeating callers into groups: the first callers leave at
once in a small batch, and every caller waits for two runs. A request without enough time for an answer is refused at
once. The module knows no clock, thread or model.
"""

from __future__ import annotations

import heapq
import math

from embedserve.batching.batch import Batch, BatchTask
from embedserve.batching.batch_queue import BatchQueue
from embedserve.batching.run_times import RunTimes
from embedserve.config import BatchingOptions
from embedserve.errors import DeadlineExceededError, OverloadedError

__all__ = ["AdaptivePolicy"]

# No batch is so small that a batch of unlimited size would raise the throughput by more than the share.
WORTHWHILE = 0.02

# No batch is smaller than the number of waiting tasks divided by 4: under a backlog only throughput counts.
SHARE_OF_BACKLOG = 4

# A batch in every `PROBE_INTERVAL` has `PROBE` times the limit, so that the limit never rests on old runs alone.
PROBE_INTERVAL = 256
PROBE = 1.5

# Tasks given up before a run has to confirm the learnt times.
MOST_GIVEN_UP = 64

# Seconds. For shorter runs only a run in `QUICK_SHARE` is learnt from, after the first `FIRST_RUNS` runs.
QUICK = 0.001
QUICK_SHARE = 32
FIRST_RUNS = 32

# Seconds of a run's fixed cost; below, a wait would be too short for the timers of an event loop.
SHORTEST = 0.002

# Wait only if the expected arrivals save at least `GAIN` times the seconds that queued requests lose.
GAIN = 1.5


class AdaptivePolicy:
    """The limits of a queue, learnt from the queue's runs.

    Args:
        options: Bounds, and the target latency.
        threads: Largest number of runs at once.

    Attributes:
        times: Expected seconds of a run by rows.
        limit, looks, shed, leaving: As `LeavingPolicy`.
    """

    __slots__ = (
        "_allowed",
        "_batches_since_probe",
        "_callers",
        "_earliest",
        "_forecast",
        "_held",
        "_largest",
        "_longest",
        "_target",
        "_threads",
        "_timed",
        "_to_give_up",
        "_unlearnt",
        "_watches",
        "leaving",
        "limit",
        "looks",
        "shed",
        "times",
    )

    def __init__(self, options: BatchingOptions, threads: int) -> None:
        self.times = RunTimes()
        self.limit = self._largest = options.execution_size
        self.looks = False
        self.shed = 0
        self.leaving = 0
        self._callers = ReturningCallers()
        self._forecast = Forecast(threads)
        self._target = options.target_latency
        self._allowed = options.allowed_batch_sizes
        self._threads = threads
        self._watches = False  # Whether a wait for returning callers may pay.
        self._held = False
        self._longest = 0.0  # Twice the seconds of the largest batch: an upper bound of a run.
        self._timed = False  # Whether a request had a deadline.
        self._earliest = math.inf  # Lower bound of the waiting tasks' deadlines.
        self._to_give_up = MOST_GIVEN_UP
        self._batches_since_probe = 0
        self._unlearnt = 0

    def __repr__(self) -> str:
        return f"<AdaptivePolicy of at most {self.limit} rows, {self.times!r}>"

    # Admission.

    def check_deadline(self, queue: BatchQueue, rows: int, deadline: float, now: float, level: int) -> None:
        """Refuse a request without time for an answer; called before the request is put into the queue.

        Raises:
            DeadlineExceededError: A run alone takes longer than the time left.
            OverloadedError: The waiting and running requests ahead take too long.
        """
        # A request to an idle queue is always tried: only a run can correct the learnt times.
        if queue.running and deadline - now < (queue.batches + 2) * self._longest * max(self._forecast.pace, 1.0):
            self._check(rows, deadline - now, now, queue.rows_ahead(level), queue.waiting)
        self._timed = True
        self._earliest = min(self._earliest, deadline) if queue.waiting else deadline

    def _check(self, rows: int, left: float, now: float, ahead: int, waiting: int) -> None:
        pace, margin = self._forecast.pace, self._margin
        alone = self._seconds(rows)
        if alone > left:
            self.shed += 1
            raise DeadlineExceededError(
                f"a run of {rows} rows takes about {alone:.3g} s, {max(left, 0):.3g} s are left"
            )
        wait = self._forecast.next_slot(now)
        if not ahead and not wait:
            return
        # A batch small enough to run twice in the time left: one run to wait for, and the request's own run.
        room = max(min(self.limit, self._rows_within(left / (1 + pace) / margin)), rows)
        if ahead + rows > room:
            wait += pace * self._seconds(room) * ahead / room
        run = self._seconds(min(room, ahead + rows))
        if (wait + run) * margin > left:
            self.shed += 1
            raise OverloadedError(
                f"{waiting} requests wait already; an answer takes about {wait + run:.3g} s, {left:.3g} s are left"
            )

    def _seconds(self, rows: float) -> float:
        if self._allowed:
            rows = min((size for size in self._allowed if size >= rows), default=rows)
        return self.times.seconds(rows)

    def _rows_within(self, seconds: float) -> float:
        return self._allowed_rows(self.times.rows_within(seconds))

    def _allowed_rows(self, rows: float) -> float:
        """Return the largest batch of at most `rows` without padding; 0 if the smallest allowed size is larger."""
        return max((size for size in self._allowed if size <= rows), default=0) if self._allowed else rows

    @property
    def _margin(self) -> float:
        """A factor on predictions, so that nearly all promises hold."""
        return 1.03 + min(self.times.error, 0.2)

    # Departure and size of batches.

    def leaves_at(self, batch: Batch, at: float, running: int) -> float:
        """As `LeavingPolicy.leaves_at`."""
        # With another free thread, returning callers need not wait for the batch's run.
        if not self._watches or running < self._threads - 1:
            return at
        until = self._callers.worth_waiting_until(batch.rows, self.times)
        if until:
            until = min(until, batch.opened_at + self._target - self.times.seconds(batch.rows))
        self._held = until > at
        return max(at, until)

    def came(self, rows: int, now: float) -> bool:
        """As `LeavingPolicy.came`."""
        if now <= self._callers.until:
            self._callers.came(rows, now)
        return self._held

    def share(self, batch: Batch, now: float, waiting: int) -> tuple[int, int, int]:
        """As `LeavingPolicy.share`."""
        self._held = False
        self._batches_since_probe += 1
        if batch.rows <= self.limit and now + self._longest <= self._earliest:
            return len(batch.tasks), batch.rows, self.limit
        room: float = max(self.limit, waiting // SHARE_OF_BACKLOG)
        if batch.rows > room and self._batches_since_probe > PROBE_INTERVAL:
            self._batches_since_probe = 0
            room = max(PROBE * room, room + 1)
        room = self._allowed_rows(min(room, self._largest))
        rows = count = 0
        for task in batch.tasks:
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
            if not task.future.done():
                if rows and rows + task.rows > room:
                    break
                rows += task.rows
            count += 1
        return count, rows, max(int(room), rows)

    def _give_up(self, task: BatchTask) -> None:
        self.shed += 1
        self._to_give_up -= 1
        run = self._seconds(task.rows)
        task.future.set_exception(DeadlineExceededError(f"a run takes about {run:.3g} s, and less is left of the time"))

    # Learning.

    def started(self, now: float, waiting: int) -> None:
        """As `LeavingPolicy.started`."""
        if self._timed:
            self._forecast.started(now, self._seconds(self.leaving), waiting > 0)

    def ended(self, seconds: float | None, rows: int, now: float, waiting: int, typical: float) -> bool:
        """As `LeavingPolicy.ended`."""
        if self._timed:
            self._forecast.ended(waiting > 0)
            self._to_give_up = MOST_GIVEN_UP
        changed = False
        if seconds is not None:
            self._unlearnt += 1
            if self._unlearnt >= QUICK_SHARE or typical >= QUICK or self.times.runs <= FIRST_RUNS:
                self._unlearnt = 0
                changed = self.times.observe(rows, seconds)
                if changed:
                    self.choose()
        if self._watches:
            self._callers.answered(rows, now, self.times)
        return changed

    def choose(self) -> None:
        """Choose the limit, and whether each request is worth a second look."""
        times = self.times
        # The target covers two runs: a run to wait for and the request's own run.
        rows = times.rows_within(self._target / 2)
        rows = max(rows, times.fixed / (WORTHWHILE * times.per_row) if times.per_row else math.inf)
        smallest = min(self._allowed, default=1)
        self.limit = int(max(self._allowed_rows(min(rows, self._largest)), smallest))
        self._longest = 2 * times.seconds(self._largest)
        self._watches = times.fixed >= SHORTEST
        self.looks = self._watches or self.limit < self._largest


class Forecast:
    """The time until a run thread comes free, forecast from the present runs and the recent pace of batches.

    Further models may use the same threads; the pace shows the effect.

    Attributes:
        pace: Seconds between two starts under a backlog, as a share of the first run's expected seconds.
    """

    def __init__(self, threads: int) -> None:
        self.pace = 1 / threads
        self._threads = threads
        self._ends: list[float] = []  # Expected end of each present run, as a heap.
        self._started_at = 0.0
        self._expected = 0.0
        self._backlogged = False

    def started(self, now: float, expected: float, backlogged: bool) -> None:
        """Note the start of a run with `expected` seconds; `backlogged` if more tasks wait."""
        if self._backlogged and self._expected:
            share = min((now - self._started_at) / self._expected, 10.0)
            self.pace += (share - self.pace) * 0.1
        self._backlogged = backlogged
        self._started_at = now
        self._expected = expected
        heapq.heappush(self._ends, now + expected)

    def ended(self, waits: bool) -> None:
        """Note the end of a run; `waits` if more tasks wait."""
        if self._ends:  # The run may have begun before the first forecast.
            heapq.heappop(self._ends)
        if not waits:
            # The pace measured under load fades without load.
            self.pace += (1 / self._threads - self.pace) * 0.1

    def next_slot(self, now: float) -> float:
        """Return the seconds until a thread should be free."""
        return max(self._ends[0] - now, 0.0) if len(self._ends) >= self._threads else 0.0


class ReturningCallers:
    """The usual number and speed of rows that return within a run's fixed cost after the end of a run.

    Attributes:
        until: The `loop.time()` after which a row no longer counts as a return.
    """

    def __init__(self) -> None:
        self.until = -math.inf
        self._ended_at = -math.inf
        self._answered = 0
        self._returned = 0
        self._all_answered = 0.0
        self._all_returned = 0.0
        # Seconds from an end to the first row, and from row to row.
        self._first = 0.0
        self._gap = 0.0
        self._last = 0.0

    def answered(self, rows: int, now: float, times: RunTimes) -> None:
        """Note the end of a run of `rows` rows."""
        self._all_answered = self._all_answered * 0.8 + self._answered
        self._all_returned = self._all_returned * 0.8 + min(self._returned, self._answered)
        self._answered, self._returned = rows, 0
        self._ended_at, self.until = now, now + times.fixed

    def came(self, rows: int, now: float) -> None:
        """Note a queued request of `rows` rows, not later than `until`."""
        if self._returned:
            self._gap += ((now - self._last) / rows - self._gap) * 0.05
        else:
            self._first += (now - self._ended_at - self._first) * 0.2
        self._last = now
        self._returned += rows

    def worth_waiting_until(self, rows: int, times: RunTimes) -> float:
        """Return the time until which `rows` ready rows should wait for returning callers; 0 for no wait.

        Returning rows in time save a separate run, `times.fixed` seconds each. Waiting rows lose the wait and the run
        time of the added rows.
        """
        usual = self._all_returned / self._all_answered if self._all_answered else 0.0
        expected = usual * self._answered
        missing = expected - self._returned
        if missing < 0.5:
            return 0.0
        wait = missing * self._gap + (0.0 if self._returned else self._first)
        if missing * (times.fixed - wait) < GAIN * rows * (wait + times.per_row * missing):
            return 0.0
        return min(self._ended_at + self._first + 1.5 * expected * self._gap, self.until)
