"""The contents of a batch queue: a request, the pieces of a cut request, and a batch of requests or pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from embedserve.servable import Array, Tensors

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

    def pieces(self, sizes: list[int], cut: Cut) -> Iterator[BatchTask]:
        """Yield the request as tasks of `sizes` rows."""
        whole, end = Whole(len(sizes)), 0
        for position, rows in enumerate(sizes):
            start, end = end, end + rows
            piece = BatchTask(self.future, cut(self.inputs, start, end), rows, self.deadline, self.entered)
            piece.whole = whole
            piece.position = position
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
