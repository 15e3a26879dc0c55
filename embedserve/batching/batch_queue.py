"""The choice of requests for a shared batch, and the time of leaving: plain decisions over plain data.

The time is passed in. A policy, if present, decides the size and the time of a leaving batch. The queue knows no clock,
thread, model or numpy. A request of higher priority overtakes requests of lower priority, and takes the place of a
lower request in a full queue. A batch in every `TURNS` begins with the oldest request. TF Serving:
shared_batch_scheduler.h.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeAlias

from embedserve.batching.batch import Batch, BatchTask, Cut, Key
from embedserve.config import BatchingOptions
from embedserve.errors import InvalidInputError, QueueFullError
from embedserve.priority import OVERTAKEN, TURNS, Priority

__all__ = ["SLACK", "BatchQueue", "LeavingPolicy"]

# In the order of turns. Every line has at least a batch, and every batch at least a task.
Lines: TypeAlias = dict[Key, deque[Batch]]

FULL = "The batch scheduling queue to which this task was submitted is full"

# Seconds. A second run beside a shorter run gains no time: both fight for the interpreter. During a short run an open
# batch therefore grows until full, until the run's end, or for `PATIENCE` at most.
PATIENCE = 0.001

# Seconds of a timer's error, early or late; a batch due within the slack is due.
SLACK = 0.0005

# Least seconds between two searches of a full queue for requests of departed callers.
SEARCH_INTERVAL = 0.01


class LeavingPolicy(Protocol):
    """Decides the size and time of leaving batches, and gives up late tasks, instead of the configured limits.

    Attributes:
        limit: Rows of the largest batch to leave now.
        looks: Whether each queued request is worth a second look.
        shed: Tasks refused for want of time.
        leaving: Rows of the last batch to leave; the queue sets the value.
    """

    limit: int
    looks: bool
    shed: int
    leaving: int

    def came(self, rows: int, now: float) -> bool:
        """Note a queued request; return whether a batch may have waited for the request."""

    def leaves_at(self, batch: Batch, at: float, running: int) -> float:
        """Return the time of leaving for a batch with room, free to leave from `at` on."""

    def share(self, batch: Batch, now: float, waiting: int) -> tuple[int, int, int]:
        """Return the leaving part of a batch: the number of first tasks, their rows, and the bound of rows to fill."""

    def started(self, now: float, waiting: int) -> None:
        """Note the start of the last batch to leave."""

    def ended(self, seconds: float | None, rows: int, now: float, waiting: int, typical: float) -> bool:
        """Note the end of a run, as `BatchQueue.ended`; return whether `limit` or `looks` changed."""


class BatchQueue:
    """The queue of a signature of a loaded version: for each priority a line of batches per key, served in turn.

    Args:
        options: Bounds. With a policy, `batch_timeout_micros` is ignored.
        cut: Makes the pieces of a too large request.
        policy: Decides the size and time of leaving batches; None leaves both to the options.

    Attributes:
        limit: Rows of the largest batch to leave now.
        batches, waiting: Waiting batches and waiting tasks.
        running: Running batches.
        evicted: Tasks refused in favour of a higher priority.
    """

    __slots__ = (
        "_careful",
        "_closing",
        "_cut",
        "_joinable",
        "_levels",
        "_limit",
        "_max_batches",
        "_max_rows",
        "_overtakes",
        "_policy",
        "_rejects",
        "_reruns",
        "_room",
        "_search_at",
        "_splits",
        "_started_at",
        "_timeout",
        "_typical",
        "_usual",
        "batches",
        "evicted",
        "limit",
        "running",
        "waiting",
    )

    def __init__(self, options: BatchingOptions, cut: Cut, policy: LeavingPolicy | None = None) -> None:
        self._cut = cut
        self._policy = policy
        self._splits = options.enable_large_batch_splitting
        self._rejects = options.oversize == "reject"
        self._max_rows = options.max_batch_size
        self._limit = options.execution_size
        self._max_batches = options.max_enqueued_batches
        self._timeout = options.batch_timeout_micros / 1e6 if policy is None else 0.0
        self._levels: Sequence[Lines] = tuple({} for _ in Priority)
        # Rows up to which an open batch takes more tasks without a second look. The bound is 0 while evictions keep the
        # queue over the bound of batches, else the usual number.
        self._joinable = self._usual = self._limit
        self._careful = self._splits  # Whether the opening of a batch needs a second look.
        self.limit = self._limit
        self._room = self._limit  # Rows up to which a leaving batch is filled up.
        self._overtakes = 0
        self._reruns: deque[Batch] = deque()
        self._closing = False
        self._search_at = 0.0
        self.running = 0
        self._started_at = 0.0
        self._typical = 0.0  # Seconds of a run, with most weight on fast runs: slow runs may have waited for the GIL.
        self.batches = 0
        self.waiting = 0
        self.evicted = 0

    def __repr__(self) -> str:
        policy = "" if self._policy is None else f", {self._policy!r}"
        return f"<BatchQueue {self.waiting} tasks in {self.batches} batches waiting, {self.running} running{policy}>"

    @property
    def shed(self) -> int:
        """Tasks refused for want of time."""
        return 0 if self._policy is None else self._policy.shed

    def rows_ahead(self, level: int) -> int:
        """Return the number of waiting rows ahead of a request with the priority."""
        return sum(batch.rows for lines in self._levels[: level + 1] for line in lines.values() for batch in line)

    def admits(self, rows: int) -> bool:
        """Return whether the queue takes a request of `rows` rows; False means a run alone.

        Raises:
            InvalidInputError: The request is too large, and `oversize` says `reject` or splitting is on.
        """
        if rows > self._max_rows:
            if self._rejects or self._splits:
                raise InvalidInputError(f"Task size {rows} is larger than maximum input batch size {self._max_rows}")
            return False
        return rows > 0

    def put(self, key: Key, task: BatchTask, now: float, level: int = Priority.NORMAL) -> bool:
        """Queue an admitted request, cut into several tasks where splitting is on; return whether a full batch waits.

        Raises:
            QueueFullError: No open batch has room, `max_enqueued_batches` are waiting, and no lower task can give way.
        """
        line = self._levels[level].get(key)
        if line is not None:
            batch = line[-1]
            rows = batch.rows + task.rows
            if rows <= self._joinable:
                batch.tasks.append(task)
                batch.rows = rows
                self.waiting += 1
                return rows == self._limit
        if self._careful or self.batches >= self._max_batches:
            full, policy = self._put_with_care(key, task, now, level), self._policy
            if policy is None:
                return full
            return policy.came(task.rows, now) or full or self._levels[level][key][-1].rows >= self.limit
        return self._open(key, task, now, level)

    def _put_with_care(self, key: Key, task: BatchTask, now: float, level: int) -> bool:
        if self._splits:
            return self._put_pieces(key, task, now, level)
        line = self._levels[level].get(key)
        joins = line is not None and line[-1].rows + task.rows <= self._limit
        if self.batches >= self._max_batches + joins:
            if self._make_room(now):
                return self._put_with_care(key, task, now, level)
            if not self._evict(task.rows, level):
                raise self._full()
        return self._join_or_open(key, task, now, level)

    def _join_or_open(self, key: Key, task: BatchTask, opened_at: float, level: int) -> bool:
        line = self._levels[level].get(key)
        if line is None or line[-1].rows + task.rows > self._limit:
            return self._open(key, task, opened_at, level)
        line[-1].tasks.append(task)
        line[-1].rows += task.rows
        self.waiting += 1
        return line[-1].rows == self._limit

    def _open(self, key: Key, task: BatchTask, opened_at: float, level: int) -> bool:
        lines = self._levels[level]
        line = lines.get(key)
        if line is None:
            line = lines[key] = deque()
        line.append(Batch(key, task, opened_at))
        self.waiting += 1
        self.batches += 1
        if self.batches > self._max_batches:
            self._joinable = 0
        return len(line) > 1 or task.rows == self._limit

    def _gone(self) -> None:
        """Count a batch removed from a line."""
        self.batches -= 1
        if self.batches == self._max_batches:
            self._joinable = self._usual

    def _put_pieces(self, key: Key, task: BatchTask, now: float, level: int) -> bool:
        limit = self._limit
        line = self._levels[level].get(key)
        # A line without an open batch may open a batch: count the new batch as present and empty.
        opened, batches = (line[-1].rows, self.batches) if line else (0, self.batches + 1)
        room = limit - opened
        capacity = (self._max_batches - batches) * limit + room
        if task.rows > capacity:
            if self._make_room(now):
                return self._put_with_care(key, task, now, level)
            if not self._evict(task.rows - max(capacity, 0), level):
                raise self._full(task.rows, max(capacity, 0), opened)
        if task.rows <= limit and not opened:
            return self._open(key, task, now, level)
        sizes = [min(room, task.rows)] if opened and room else []
        rest = task.rows - sum(sizes)
        sizes += [limit] * (rest // limit) + ([rest % limit] if rest % limit else [])
        if len(sizes) == 1:
            return self._join_or_open(key, task, now, level)
        pieces = task.pieces(sizes, self._cut)
        if opened and room:
            self._join_or_open(key, next(pieces), now, level)
        for piece in pieces:
            self._open(key, piece, now, level)
        return True

    def _full(self, rows: int = 0, capacity: int = 0, opened: int = 0) -> QueueFullError:
        batches, most = self.batches, self._max_batches
        if self._splits:
            return QueueFullError(
                f"{FULL}; task size is {rows} but scheduling capacity is only {capacity} "
                f"(num_enqueued_batches={batches}, max_enqueued_batches={most}, open_batch_size={opened}, "
                f"max_execution_batch_size={self._limit})"
            )
        return QueueFullError(f"{FULL}; currently {batches} batches enqueued and max_enqueued_batches is {most}")

    def _make_room(self, now: float) -> bool:
        """Drop tasks of departed callers, and pack the rest anew; return whether a task was dropped."""
        if now < self._search_at:
            return False
        self._search_at = now + SEARCH_INTERVAL
        before, levels = self.waiting, self._levels
        self._levels = tuple({} for _ in Priority)
        self.batches, self.waiting, self._joinable = 0, len(self._reruns), self._usual
        for level, lines in enumerate(levels):
            for key, line in lines.items():
                for batch in line:
                    for task in batch.tasks:
                        if not task.future.done():
                            self._join_or_open(key, task, batch.opened_at, level)
        return self.waiting < before

    def _evict(self, rows: int, level: int) -> bool:
        """Refuse the newest tasks of the lowest priorities below `level` to free `rows` rows; False if too few."""
        below = self._levels[level + 1 :]
        if sum(batch.rows for lines in below for line in lines.values() for batch in line) < rows:
            return False
        for lines in reversed(below):
            while lines and rows > 0:
                key, line = max(lines.items(), key=lambda item: item[1][-1].tasks[-1].entered)
                batch = line[-1]
                task = batch.tasks.pop()
                batch.rows -= task.rows
                rows -= task.rows
                self.waiting -= 1
                if not task.future.done():
                    self.evicted += 1
                    task.future.set_exception(QueueFullError(f"{FULL}; {OVERTAKEN}"))
                if not batch.tasks:
                    line.pop()
                    self._gone()
                if not line:
                    del lines[key]
        return True

    def rerun(self, key: Key, tasks: list[BatchTask]) -> None:
        """Queue each task of a failed batch again, alone and before all further tasks, without a second admission."""
        self._reruns.extend(Batch(key, task, 0.0) for task in tasks)
        self.waiting += len(tasks)

    def ready_at(self) -> float | None:
        """Return the time for the next batch to leave (0 for at once), or None in an empty queue."""
        if self._reruns:
            return 0.0
        first: float | None = None
        for lines in self._levels:
            for line in lines.values():
                at = self._ready(line)
                if first is None or at < first:
                    first = at
        return first

    def _ready(self, line: deque[Batch]) -> float:
        batch = line[0]
        if self._closing or len(line) > 1 or batch.rows >= self.limit:
            return 0.0
        at = batch.opened_at + self._timeout if self._timeout else 0.0
        if self.running and self._typical < PATIENCE:
            at = max(at, self._started_at + PATIENCE)
        return at if self._policy is None else self._policy.leaves_at(batch, at, self.running)

    def pop(self, now: float) -> Batch | None:
        """Return the next ready batch, of the highest priority and from the line in turn; None without a ready batch.

        The batch may hold tasks of departed callers; the caller drops such tasks, and calls `started` to run the rest.
        """
        if self._reruns:
            batch = self._reruns.popleft()
            batch.reason = "rerun"
            self.waiting -= 1
            return batch
        due = now + SLACK
        for lines in self._levels if self._overtakes < TURNS - 1 else sorted(self._levels, key=_oldest):
            for key, line in lines.items():
                if self._ready(line) <= due:
                    return self._take(lines, key, line, now)
        return None

    def _take(self, lines: Lines, key: Key, line: deque[Batch], now: float) -> Batch:
        if self._policy is not None:
            self._divide(self._policy, line, now)
        batch = line.popleft()
        self._gone()
        del lines[key]
        if line:  # The line goes to the end of the turns.
            lines[key] = line
        high, normal, low = self._levels
        if high or low or lines is not normal:
            overtaken = (low and lines is not low) or (normal and lines is high)
            self._overtakes = self._overtakes + 1 if overtaken and self._overtakes < TURNS - 1 else 0
            self._fill(batch, self._room)
        elif line and batch.rows < self._room:  # Tasks may have filled up another batch.
            self._fill(batch, self._room)
        batch.reason = self._reason(batch, bool(line))
        self.waiting -= len(batch.tasks)
        if self._policy is not None:
            self._policy.leaving = batch.rows
        return batch

    def _divide(self, policy: LeavingPolicy, line: deque[Batch], now: float) -> None:
        """Make the first batch of a line the leaving part, and the rest the second batch."""
        front = leaving = line[0]
        count, rows, self._room = policy.share(front, now, self.waiting)
        if count < len(front.tasks):
            gone = sum(task.rows for task in front.tasks[:count]) - rows
            leaving = Batch(front.key, front.tasks[0], front.opened_at)
            leaving.tasks = front.tasks[:count]
            front.tasks, front.rows = front.tasks[count:], front.rows - rows - gone
            line.appendleft(leaving)
            self.batches += 1
        leaving.rows = rows  # Tasks of departed callers take no room.

    def _fill(self, batch: Batch, limit: int) -> None:
        """Fill the room left in a batch with waiting tasks of the same key, the most urgent first."""
        for lines in self._levels:
            line = lines.get(batch.key)
            while line:
                front, count, rows = line[0], 0, batch.rows
                for task in front.tasks:
                    if rows + task.rows > limit:
                        break
                    rows += task.rows
                    count += 1
                front.rows -= rows - batch.rows
                batch.rows = rows
                batch.tasks += front.tasks[:count]
                del front.tasks[:count]
                if front.tasks:
                    break
                line.popleft()
                self._gone()
                if not line:
                    del lines[batch.key]

    def _reason(self, batch: Batch, closed: bool) -> str:
        if closed or batch.rows >= self._limit:
            return "full"
        if self._closing:
            return "closing"
        return "timeout" if self._timeout else "slot"

    def started(self, now: float) -> None:
        """Note the start of a popped batch."""
        self.running += 1
        self._started_at = now
        if self._policy is not None:
            self._policy.started(now, self.waiting)

    def ended(self, seconds: float | None, rows: int, now: float) -> None:
        """Note the end of a run of `rows` rows, padding included, after `seconds`; None after a failure."""
        self.running -= 1
        if seconds is not None:
            if not self._typical:
                self._typical = seconds
            self._typical += (seconds - self._typical) * (0.5 if seconds < self._typical else 0.05)
        if self._policy is not None and self._policy.ended(seconds, rows, now, self.waiting, self._typical):
            self.adopt(self._policy)

    def adopt(self, policy: LeavingPolicy) -> None:
        """Take over the policy's present limits."""
        self.limit = policy.limit
        self._careful = policy.looks or self._splits
        self._usual = 0 if policy.looks else self._limit
        if self.batches <= self._max_batches:
            self._joinable = self._usual

    def close(self) -> None:
        """Let batches leave as soon as a slot is free, without a wait for further requests."""
        self._closing = True

    def tasks(self) -> Iterator[BatchTask]:
        """Yield every waiting task."""
        for batch in self._reruns:
            yield from batch.tasks
        for lines in self._levels:
            for line in lines.values():
                for batch in line:
                    yield from batch.tasks


def _oldest(lines: Lines) -> float:
    return min((line[0].opened_at for line in lines.values()), default=math.inf)
