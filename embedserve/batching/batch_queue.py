"""Which requests of one signature share a batch, and when a batch leaves: plain decisions over plain data.

Driven by predictor.py on the loop, which passes the time in. Knows no clock, no thread, no model and no numpy:
`Key` stands for everything that two requests must have in common. TF Serving: shared_batch_scheduler.h.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from embedserve.config import BatchingOptions
from embedserve.errors import InvalidInputError, QueueFullError
from embedserve.servable import Array, Tensors

__all__ = ["Batch", "BatchQueue", "BatchTask", "Key", "Whole"]

Key: TypeAlias = tuple[Any, ...]

# A run that is usually shorter than this gains nothing from a second one beside it: they fight for the interpreter.
# So while one runs, an open batch grows until it is full, the run ends, or the run has lasted this long.
PATIENCE = 0.001

# Timers come up to this much early or late; a batch that is due within it is due.
SLACK = 0.0005

# How often a full queue is searched for requests whose callers have left, at most.
SEARCH_INTERVAL = 0.01


class Whole:
    """A request that was cut into several tasks: their outputs by position, until none is missing."""

    __slots__ = ("missing", "parts")

    def __init__(self, pieces: int) -> None:
        self.parts: list[Tensors] = [{}] * pieces
        self.missing = pieces


class BatchTask:
    """One request in the queue, or one piece of a request that was cut; pieces share the request's future."""

    __slots__ = ("deadline", "entered", "future", "inputs", "position", "rows", "whole")

    def __init__(
        self,
        future: asyncio.Future[dict[str, Array]],
        inputs: Tensors,
        rows: int,
        deadline: float | None = None,
        entered: float = 0.0,
    ) -> None:
        self.future = future
        self.inputs = inputs
        self.rows = rows
        self.deadline = deadline
        self.entered = entered
        self.whole: Whole | None = None
        self.position = 0

    def pieces(self, sizes: list[int], cut: Callable[[Tensors, int, int], Tensors]) -> Iterator[BatchTask]:
        """This request as tasks of `sizes` rows."""
        whole, end = Whole(len(sizes)), 0
        for position, rows in enumerate(sizes):
            start, end = end, end + rows
            piece = BatchTask(self.future, cut(self.inputs, start, end), rows, self.deadline, self.entered)
            piece.whole = whole
            piece.position = position
            yield piece


class Batch:
    """Tasks that run together. The last batch of its group is open: it still takes tasks."""

    __slots__ = ("key", "opened_at", "reason", "rows", "tasks")

    def __init__(self, key: Key, task: BatchTask, opened_at: float) -> None:
        self.key = key
        self.tasks = [task]
        self.rows = task.rows
        self.opened_at = opened_at
        self.reason = ""


class BatchQueue:
    """The queue of one signature of one loaded version: a line of batches per key, served in turn."""

    def __init__(self, options: BatchingOptions, cut: Callable[[Tensors, int, int], Tensors]) -> None:
        self._cut = cut
        self._splits = options.enable_large_batch_splitting
        self._rejects = options.oversize == "reject"
        self._max_rows = options.max_batch_size
        self._limit = options.execution_size
        self._max_batches = options.max_enqueued_batches
        self._timeout = options.batch_timeout_micros / 1e6
        # In the order of their turns. Every line has at least one batch, so there are at most `max_batches` lines.
        self._lines: dict[Key, deque[Batch]] = {}
        self._reruns: deque[Batch] = deque()
        self._closing = False
        self._search_at = 0.0
        self._running = 0
        self._started_at = 0.0
        self._typical = 0.0  # Seconds of a run, the fast ones counting most: slow ones may have waited for the GIL.
        self.batches = 0
        self.waiting = 0

    def __repr__(self) -> str:
        return f"<BatchQueue {self.waiting} tasks in {self.batches} batches waiting, {self._running} running>"

    def admits(self, rows: int) -> bool:
        """Whether a request of so many rows can be put here; False means that it runs alone.

        Raises:
            InvalidInputError: The request is too large, and `oversize` says `reject` or splitting is on.
        """
        if rows > self._max_rows:
            if self._rejects or self._splits:
                raise InvalidInputError(f"Task size {rows} is larger than maximum input batch size {self._max_rows}")
            return False
        return rows > 0

    def put(self, key: Key, task: BatchTask, now: float) -> bool:
        """Queue an admitted request, cut into several tasks where splitting is on; whether a full batch waits.

        Raises:
            QueueFullError: It fits in no open batch, and `max_enqueued_batches` are waiting.
        """
        line = self._lines.get(key)
        if line is not None:
            batch = line[-1]
            rows = batch.rows + task.rows
            if rows <= self._limit:
                batch.tasks.append(task)
                batch.rows = rows
                self.waiting += 1
                return rows == self._limit
        if self._splits:
            return self._put_pieces(key, task, now)
        if self.batches >= self._max_batches:
            if not self._make_room(now):
                raise self._full()
            return self.put(key, task, now)
        return self._open(key, task, now)

    def _open(self, key: Key, task: BatchTask, now: float) -> bool:
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = deque()
        line.append(Batch(key, task, now))
        self.batches += 1
        self.waiting += 1
        return len(line) > 1 or task.rows == self._limit

    def _put_pieces(self, key: Key, task: BatchTask, now: float) -> bool:
        limit = self._limit
        line = self._lines.get(key)
        # A line without an open batch may open one: as if it were there, empty and counted.
        opened, batches = (line[-1].rows, self.batches) if line else (0, self.batches + 1)
        room = limit - opened
        capacity = (self._max_batches - batches) * limit + room
        if task.rows > capacity:
            if not self._make_room(now):
                raise self._full(task.rows, max(capacity, 0), opened)
            return self.put(key, task, now)
        if task.rows <= limit and not opened:
            return self._open(key, task, now)
        sizes = [room] if opened and room else []
        rest = task.rows - sum(sizes)
        sizes += [limit] * (rest // limit) + ([rest % limit] if rest % limit else [])
        if len(sizes) == 1:
            return self._open(key, task, now)
        pieces = task.pieces(sizes, self._cut)
        if opened and room and line:
            line[-1].tasks.append(next(pieces))
            line[-1].rows = limit
            self.waiting += 1
        for piece in pieces:
            self._open(key, piece, now)
        return True

    def _full(self, rows: int = 0, capacity: int = 0, opened: int = 0) -> QueueFullError:
        words = "The batch scheduling queue to which this task was submitted is full"
        batches, most = self.batches, self._max_batches
        if self._splits:
            return QueueFullError(
                f"{words}; task size is {rows} but scheduling capacity is only {capacity} "
                f"(num_enqueued_batches={batches}, max_enqueued_batches={most}, open_batch_size={opened}, "
                f"max_execution_batch_size={self._limit})"
            )
        return QueueFullError(f"{words}; currently {batches} batches enqueued and max_enqueued_batches is {most}")

    def _make_room(self, now: float) -> bool:
        """Drop tasks whose callers have left, and pack the rest anew; whether there were any."""
        if now < self._search_at:
            return False
        self._search_at = now + SEARCH_INTERVAL
        before, lines = self.waiting, self._lines
        self._lines, self.batches, self.waiting = {}, 0, len(self._reruns)
        for key, line in lines.items():
            for batch in line:
                for task in batch.tasks:
                    if not task.future.done():
                        self._pack(key, task, batch.opened_at)
        return self.waiting < before

    def _pack(self, key: Key, task: BatchTask, opened_at: float) -> None:
        line = self._lines.get(key)
        if line is None or line[-1].rows + task.rows > self._limit:
            self._open(key, task, opened_at)
            return
        line[-1].tasks.append(task)
        line[-1].rows += task.rows
        self.waiting += 1

    def rerun(self, key: Key, tasks: list[BatchTask]) -> None:
        """Queue each task of a failed batch again, alone and before all others; they were admitted once already."""
        self._reruns.extend(Batch(key, task, 0.0) for task in tasks)
        self.waiting += len(tasks)

    def ready_at(self) -> float | None:
        """When the next batch should leave (0 for at once), or None while nothing waits."""
        if self._reruns:
            return 0.0
        if not self._lines:
            return None
        if len(self._lines) == 1:
            return self._ready(next(iter(self._lines.values())))
        return min(map(self._ready, self._lines.values()))

    def _ready(self, line: deque[Batch]) -> float:
        batch = line[0]
        if self._closing or len(line) > 1 or batch.rows >= self._limit:
            return 0.0
        at = batch.opened_at + self._timeout if self._timeout else 0.0
        if self._running and self._typical < PATIENCE:
            return max(at, self._started_at + PATIENCE)
        return at

    def pop(self, now: float) -> Batch | None:
        """Take the next batch that is ready, from the line whose turn it is; None if none is.

        The batch may hold tasks whose callers have left; the caller drops them, and says `started` if it runs the rest.
        """
        if self._reruns:
            batch = self._reruns.popleft()
            batch.reason = "rerun"
            self.waiting -= 1
            return batch
        for key, line in self._lines.items():
            if self._ready(line) <= now + SLACK:
                batch = line.popleft()
                batch.reason = self._reason(batch, bool(line))
                del self._lines[key]
                if line:  # To the end of the turns.
                    self._lines[key] = line
                self.batches -= 1
                self.waiting -= len(batch.tasks)
                return batch
        return None

    def _reason(self, batch: Batch, closed: bool) -> str:
        if closed or batch.rows >= self._limit:
            return "full"
        if self._closing:
            return "closing"
        return "timeout" if self._timeout else "slot"

    def started(self, now: float) -> None:
        """A batch that was popped runs now."""
        self._running += 1
        self._started_at = now

    def ended(self, seconds: float | None) -> None:
        """A run ended after `seconds`; None when it failed and says nothing about how long runs take."""
        self._running -= 1
        if seconds is None:
            return
        if not self._typical:
            self._typical = seconds
        self._typical += (seconds - self._typical) * (0.5 if seconds < self._typical else 0.05)

    def close(self) -> None:
        """Batches leave as soon as a slot is free from now on; none waits for company."""
        self._closing = True

    def tasks(self) -> Iterator[BatchTask]:
        """Every task that waits."""
        for batch in self._reruns:
            yield from batch.tasks
        for line in self._lines.values():
            for batch in line:
                yield from batch.tasks
