"""What a run thread does for a batch, and for a request that was cut: merge, run, split; or join.

Made by batcher.py, which hears of the end on the loop; only the `call` methods run in threads.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import TYPE_CHECKING, Any

from embedserve.batching.batch import Batch, BatchTask
from embedserve.batching.direct import Answer
from embedserve.batching.merge import join, merge, split
from embedserve.servable import Array, Cancellation, Tensors

if TYPE_CHECKING:
    from embedserve.batching.batcher import SignatureBatcher

__all__ = ["BatchRun", "Join"]


class BatchRun:
    """One batch, from the queue through a run thread to its tasks' answers."""

    __slots__ = (
        *("_owner", "cancellation", "ends_at", "key", "look_at", "padding", "ran", "rows", "tasks", "timeout"),
        "watched",
    )

    def __init__(self, owner: SignatureBatcher, batch: Batch, tasks: list[BatchTask], rows: int, padding: int) -> None:
        self._owner = owner
        self.key = batch.key
        self.tasks = tasks
        self.rows = rows
        self.padding = padding
        self.timeout: float | None = None
        self.cancellation = Cancellation()
        self.ran = False
        self.watched = 0
        self.ends_at = self.look_at = math.inf

    def call(self) -> tuple[list[dict[str, Array]], float]:
        """In a run thread: merge, run, split; the outputs of each task, and how long that took."""
        began = perf_counter()
        tasks, owner = self.tasks, self._owner
        alone = len(tasks) == 1 and not self.padding
        inputs = tasks[0].inputs if alone else merge([task.inputs for task in tasks], self.padding, ragged=owner.ragged)
        outputs = owner.servable.run(
            owner.signature.name,
            inputs,
            self.key[0],
            cancellation=self.cancellation,
            timeout=self.timeout,
        )
        self.ran = True
        # An unmerged request is answered as it would be without batching: its outputs need no rows.
        if alone and tasks[0].whole is None:
            return [outputs], perf_counter() - began
        pieces = split(outputs, [task.rows for task in tasks], self.rows + self.padding)
        return pieces, perf_counter() - began

    def done(self, result: Any, error: Exception | None) -> None:
        """On the loop, when the thread is back."""
        tasks, self.tasks = self.tasks, []  # No cycle through the traceback of an error, and nothing left to watch.
        self._owner.ended(self, tasks, result, error)

    def overdue(self) -> bool:
        """As `Work.overdue`."""
        if self._owner.runs.overdue(self):
            return True
        self.expire()
        return False

    def expire(self) -> None:
        """Answer the callers that are left: their time is over by `run_timeout`."""
        for task in self.tasks:
            if not task.future.done():
                task.future.set_exception(self._owner.runs.expired())

    def stuck(self, seconds: float) -> None:
        """As `Work.stuck`."""
        self.expire()
        self._owner.left_behind(self, seconds)

    def watch(self, _: Answer | None = None) -> None:
        """Keep an eye on one task whose caller still waits; when none is left, stop the run."""
        tasks = self.tasks
        for i in range(self.watched, len(tasks)):
            if not tasks[i].future.done():
                self.watched = i
                tasks[i].future.add_done_callback(self.watch)
                return
        if tasks:
            self._owner.abandoned(self)


class Join:
    """The outputs of a request that was cut, being put together in a run thread."""

    __slots__ = ("_owner", "deadline", "future", "parts")

    look_at = math.inf  # Concatenating arrays ends.

    def __init__(self, owner: SignatureBatcher, future: Answer, deadline: float | None, parts: list[Tensors]) -> None:
        self._owner = owner
        self.future = future
        self.deadline = deadline
        self.parts = parts

    def call(self) -> dict[str, Array]:
        return join(self.parts)

    def overdue(self) -> bool:
        return False

    def stuck(self, seconds: float) -> None:
        raise AssertionError("never asked for")

    def done(self, result: Any, error: Exception | None) -> None:
        if not self.future.done():
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)
        self._owner.joined(self)
