"""The contents of a batch queue: a request, the pieces of a cut request, and a batch of requests or pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any, TypeAlias

from embedserve.call_record import CallRecord, RunRecord, Step
from embedserve.servable import Answer, Tensors

__all__ = ["Batch", "BatchTask", "Cut", "Key", "Whole"]

Key: TypeAlias = tuple[Any, ...]
"""The common properties of requests in a batch; requests with different keys never share a batch."""

Cut: TypeAlias = Callable[[Tensors, int, int], Tensors]
"""Returns the rows from a first up to a second number of a request's inputs."""


class Whole:
    """A request cut into several tasks: the outputs by position, until no piece is missing."""

    __slots__ = ("missing", "parts")

    def __init__(self, pieces: int) -> None:
        self.parts: list[Tensors] = [{}] * pieces
        self.missing = pieces


class BatchTask:
    """A request in the queue, or a piece of a cut request; pieces share the request's future."""

    __slots__ = ("context", "deadline", "entered", "future", "inputs", "position", "record", "rows", "step", "whole")

    def __init__(
        self,
        future: Answer,
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
        self.context: Context | None = None
        self.record: CallRecord | None = None
        self.step: Step | None = None

    def note(self, record: CallRecord, rows: int) -> None:
        """Have the wait and the run noted in the record of the call."""
        self.record = record
        self.step = record.wait(rows)

    def leave(self, run: RunRecord) -> None:
        """Note the run that ends the wait; a request that runs once more has waited once more."""
        if self.record is not None and self.step is not None:
            if self.step.run is not None:
                self.step = self.record.wait(0)
            self.step.run = run
            run.marks.append(self.record.marks)

    def pieces(self, sizes: list[int], cut: Cut) -> Iterator[BatchTask]:
        """Yield the request as tasks of `sizes` rows."""
        whole, end = Whole(len(sizes)), 0
        for position, rows in enumerate(sizes):
            start, end = end, end + rows
            piece = BatchTask(self.future, cut(self.inputs, start, end), rows, self.deadline, self.entered)
            piece.whole = whole
            piece.position = position
            piece.context = self.context
            if self.record is not None and self.step is not None:
                piece.record = self.record
                piece.step = self.record.wait(rows) if position else self.step
                piece.step.rows = rows
            yield piece


class Batch:
    """Tasks with a shared run. The last batch of a line is open and still takes tasks."""

    __slots__ = ("key", "opened_at", "reason", "rows", "tasks")

    def __init__(self, key: Key, task: BatchTask, opened_at: float) -> None:
        self.key = key
        self.tasks = [task]
        self.rows = task.rows
        self.opened_at = opened_at
        self.reason = ""
