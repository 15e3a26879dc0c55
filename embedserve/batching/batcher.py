"""Drives the queue of a signature: claims a run thread for a ready batch, and hands the answers out.

The queue (batch_queue.py) decides; the batcher waits and calls. The failure, deadline or departure of a request touches
no batch mate. Loop only, except the `call` methods, mostly in run threads.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from contextvars import copy_context
from time import perf_counter, thread_time
from typing import Any

from embedserve.batching.adaptive import AdaptivePolicy
from embedserve.batching.batch import Batch, BatchTask, Key
from embedserve.batching.batch_queue import SLACK, BatchQueue
from embedserve.batching.direct import (
    DeadlineTimer,
    DirectPredictor,
    MakeError,
    PredictorStatistics,
    copied,
    drained,
    expired,
    left_behind,
    refusal,
    timed_out,
)
from embedserve.batching.merge import MAX_PADDED_RANK, cut, join, merge, split, target_rows
from embedserve.call_record import RunRecord, current_call
from embedserve.concurrency.threads import RunPool, Work
from embedserve.config import BatchingOptions
from embedserve.errors import InvalidInputError, QueueFullError, ServingError
from embedserve.observer import Observers
from embedserve.priority import Priority
from embedserve.servable import Answer, Array, Cancellation, Tensors
from embedserve.signature import Signature

__all__ = ["SignatureBatcher"]


class SignatureBatcher:
    """Drives the queue of a signature: claims a run thread for a ready batch, and hands answers out."""

    def __init__(
        self,
        signature: Signature,
        direct: DirectPredictor,
        pool: RunPool,
        observers: Observers,
        options: BatchingOptions,
        adaptive: bool = False,
    ) -> None:
        self.signature = signature
        self.servable = direct.servable
        self.ragged = options.pad_variable_length_inputs
        self.runs = direct.runs
        self.model = direct.model
        self.runs.predictors.append(self)
        self._stuck = self.runs.stuck
        self._direct = direct
        self._id = self.runs.id
        self._pool = pool
        self._delay = pool.delay
        self.loop_runs = None if self.ragged else direct.loop_runs.get(signature.name)
        self._observers = observers
        self._allowed = options.allowed_batch_sizes
        self.max_rows = options.max_batch_size
        self._policy = AdaptivePolicy(options, pool.size) if adaptive else None
        self._queue = BatchQueue(options, cut, self._policy)
        self._names = tuple(signature.inputs)
        self._same_tails = not signature.shape_free and all(
            spec.shape is not None and None not in spec.shape[1:] for spec in signature.inputs.values()
        )
        loop = pool.loop
        self._now = loop.time
        self._timer: asyncio.TimerHandle | None = None
        self._came: list[int] = []  # Rows of the requests since the last slot, for the observers.
        self._claimed = False
        self._closed = False
        self._refuse: MakeError = refusal
        self._running: set[BatchRun | Join] = set()
        self._joins: deque[Join] = deque()
        self._idle = asyncio.Event()
        self._deadlines = DeadlineTimer(loop, self._pending)
        self._started = self._requests = self._rows = self._padding_rows = 0
        self._refused = self._dropped = self._cancelled = self._rerun = 0

    def __repr__(self) -> str:
        return f"<{self.signature.name}: {self._queue.waiting} waiting, {len(self._running)} running>"

    def submit_to(
        self,
        answer: Answer,
        inputs: Tensors,
        output_names: tuple[str, ...] | None = None,
        deadline: float | None = None,
        priority: int = Priority.NORMAL,
    ) -> None:
        """As `Predictor.submit_to`. The hot path: a task per request, a slot per batch."""
        if self._closed or self._stuck:
            raise self._refuse(self._id) if self._closed else self.runs.refusal()
        if self._same_tails:  # Shapes were checked by `bind`, so only the filter tells requests apart.
            rows, key = self._rows_of(inputs), (output_names,)
        else:
            rows, key = self._measure(inputs, output_names)
        if rows == 0 or (rows > self.max_rows and not self._queue.admits(rows)):
            self._direct.submit_to(answer, self.signature, inputs, output_names, deadline, priority)
            return
        now = self._now()
        task = BatchTask(answer, inputs, rows, deadline, perf_counter())
        if self._observers.keep_contexts:
            task.context = copy_context()
        if (record := current_call.get()) is not None:
            task.note(record, rows)
        if deadline is not None and self._policy is not None:
            self._policy.check_deadline(self._queue, rows, deadline, now, priority)
        try:
            full = self._queue.put(key, task, now, priority)
        except QueueFullError:
            self._refused += 1
            raise
        if deadline is not None:
            self._deadlines.watch(deadline)
        if self._observers.keep_contexts:
            self._observers.request_enqueued(self._id, self.signature.name, rows, len(inputs))
        elif self._observers.present:
            self._came.append(rows)
        # With a slot on the way or a timer set, only a full batch changes the time of the next departure.
        if not self._claimed and (full or self._timer is None):
            self._look(now)
        elif full or self._queue.waiting >= self._delay.enough:
            self._pool.hurry()

    def _rows_of(self, inputs: Tensors) -> int:
        rows = -1
        for name in self._names:
            size = len(inputs[name])
            if size != rows:
                if rows >= 0:
                    raise _unequal(inputs)
                rows = size
        return rows

    def _measure(self, inputs: Tensors, output_names: tuple[str, ...] | None) -> tuple[int, Key]:
        """Return rows and key of a request; 0 rows for a scalar input, so that the request runs directly."""
        rows = -1
        key: list[object] = [output_names]
        for name in self._names:
            shape = inputs[name].shape
            if not shape:
                return 0, ()
            if shape[0] != rows:
                if rows >= 0:
                    raise _unequal(inputs)
                rows = shape[0]
            tail = shape[1:]
            # With padding only ranks must agree; unpaddable inputs share a batch only with the same shape.
            key.append(len(shape) if self.ragged and len(shape) <= MAX_PADDED_RANK and 0 not in tail else tail)
        return rows, tuple(key)

    def _look(self, now: float) -> None:
        """Claim a slot for a ready batch, else set the timer for the next ready batch."""
        if self._claimed:
            return
        at = 0.0 if self._joins else self._queue.ready_at()
        if at is None:
            return
        if at <= now + SLACK:
            self._claimed = True
            self._pool.request(self)
        elif self._timer is None or at < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._pool.loop.call_at(at, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._look(self._now())

    @property
    def waiting(self) -> int:
        """As `SlotClient.waiting`; 0 with a full batch, because a full batch gains from no wait."""
        waiting = self._queue.waiting
        return waiting if waiting < self._queue.limit else 0

    def take_work(self) -> Work | None:
        """As `SlotClient.take_work`: a slot is free, so choose the batch now."""
        self._claimed = False
        if self._came:
            self._report_came()
        now = self._now()
        work = self._next_join() or self._next_batch(now)
        if self._queue.waiting or self._joins:
            self._look(now)
        return work

    def _report_came(self) -> None:
        came, self._came = self._came, []
        self._observers.requests_enqueued(self._id, self.signature.name, came, len(self._names))

    def _next_join(self) -> Work | None:
        while self._joins:
            joining = self._joins.popleft()
            if not joining.future.done():
                self._running.add(joining)
                return joining
        return None

    def _next_batch(self, now: float) -> Work | None:
        while (batch := self._queue.pop(now)) is not None:
            tasks = self._live(batch.tasks, now)
            if tasks:
                break
        else:
            return None
        rows = batch.rows if tasks is batch.tasks else sum(task.rows for task in tasks)
        padding = target_rows(rows, self._allowed) - rows if self._allowed else 0
        run = BatchRun(self, batch, tasks, rows, padding)
        run.timeout = self.runs.begin(run, now, _longest(tasks, now))
        for task in tasks:
            if task.record is not None:
                run.leave(task, batch.reason)
        if self.loop_runs is not None:
            run.expected = self.loop_runs.expected(batch.key, rows + padding, perf_counter())
        self._queue.started(now)
        self._running.add(run)
        self._started += 1
        self._requests += len(tasks)
        self._rows += rows
        self._padding_rows += padding
        run.watch()
        if self._observers.present:
            self._report(batch.reason, tasks, rows, padding)
        return run

    def turn_away(self, error: ServingError) -> None:
        """As `SlotClient.turn_away`."""
        self._claimed = False
        for future in self._unanswered():
            future.set_exception(copied(error))

    def _live(self, tasks: list[BatchTask], now: float) -> list[BatchTask]:
        """Return the tasks still in need of an answer; the same list if no task has ended."""
        gone = 0
        for task in tasks:
            future = task.future
            if task.deadline is not None and task.deadline <= now and not future.done():
                future.set_exception(expired())
            if future.done():
                gone += 1
        if not gone:
            return tasks
        self._dropped += gone
        return [task for task in tasks if not task.future.done()]

    def _report(self, reason: str, tasks: list[BatchTask], rows: int, padding: int) -> None:
        id, name, now = self._id, self.signature.name, perf_counter()
        self._observers.batch_formed(id, name, rows, rows + padding, len(tasks), reason)
        waits = [now - task.entered for task in tasks]
        if not self._observers.keep_contexts:
            self._observers.queue_waits(id, name, waits)
            return
        tell = self._observers.queue_wait
        for task, seconds in zip(tasks, waits, strict=True):
            if task.context is None:
                tell(id, name, seconds)
            else:
                task.context.run(tell, id, name, seconds)

    def ended(self, run: BatchRun, tasks: list[BatchTask], result: Any, error: Exception | None) -> None:
        """Take back the thread of a batch's run, and answer the tasks."""
        self._over(run)
        self.runs.returned(run)
        if run.record is not None:
            run.record.end(error)
        if error is None:
            pieces, seconds, used = result
            self.runs.completed(seconds)
            if self.loop_runs is not None and not run.on_loop:
                self.loop_runs.ran_in_thread(run.key, run.rows + run.padding, used)
            self._queue.ended(seconds, run.rows + run.padding, self._now())
            for task, outputs in zip(tasks, pieces, strict=True):
                if not task.future.done():
                    if task.whole is None:
                        task.future.set_result(outputs)
                    else:
                        self._collect(task, outputs)
        else:
            self._queue.ended(None, 0, self._now())
            self._fail(run, tasks, error)
        if self._queue.waiting or self._joins:
            self._look(self._now())

    def held(self, run: BatchRun, seconds: float, used: float) -> None:
        """Learn from a run on the loop."""
        assert self.loop_runs is not None
        self.loop_runs.held(run.key, run.rows + run.padding, seconds, used, perf_counter())

    def _over(self, run: BatchRun | Join) -> None:
        self._running.discard(run)
        if not self._running:
            self._idle.set()

    def _collect(self, task: BatchTask, outputs: Tensors) -> None:
        whole = task.whole
        assert whole is not None
        whole.parts[task.position] = outputs
        whole.missing -= 1
        if not whole.missing:
            self._joins.append(Join(self, task.future, task.deadline, whole.parts))

    def joined(self, join: Join) -> None:
        """Take back the thread of a join."""
        self._over(join)

    def _fail(self, run: BatchRun, tasks: list[BatchTask], error: Exception) -> None:
        live = [task for task in tasks if not task.future.done()]
        if timed_out(error, run.timeout):
            error = expired()
        elif len(tasks) > 1 and self.signature.stateless and not run.ran:
            # A single request may be guilty; alone, each request gets the own result.
            self._rerun += len(live)
            self._queue.rerun(run.key, live)
            return
        for i, task in enumerate(live):
            if not task.future.done():  # Pieces of a request share a future.
                task.future.set_exception(copied(error) if i else error)

    def abandoned(self, run: BatchRun) -> None:
        """Cancel a running batch without waiting callers. The slot is free at the return of the thread."""
        self._cancelled += 1
        run.cancellation.cancel()

    def left_behind(self, run: BatchRun, seconds: float) -> None:
        """Report a batch as stuck in the run thread."""
        self._over(run)
        rows = run.rows + run.padding
        self.runs.left_behind(run, self.signature.name, run.tasks[0].inputs, rows, seconds)

    def statistics(self) -> PredictorStatistics:
        """Return the counts so far, and the present numbers of waiting tasks and runs."""
        return PredictorStatistics(
            waiting=self._queue.waiting,
            running=len(self._running),
            runs=self._started,
            requests=self._requests,
            rows=self._rows,
            padding_rows=self._padding_rows,
            refused=self._refused + self._queue.evicted,
            dropped=self._dropped,
            cancelled=self._cancelled,
            rerun=self._rerun,
            shed=self._queue.shed,
        )

    def _pending(self) -> Iterator[BatchTask | Join]:
        yield from self._queue.tasks()
        yield from self._joins
        for run in self._running:
            if isinstance(run, BatchRun):
                yield from run.tasks
            else:
                yield run

    def close(self) -> None:
        """Take no more requests; waiting requests leave as soon as there is a slot."""
        if not self._closed:
            self._closed = True
            self._queue.close()
            self._look(self._now())

    def abort(self, error: MakeError | None = None) -> None:
        """Take no more requests, and fail every unanswered request; a run without a waiting caller is stopped."""
        make = self._refuse = error or left_behind
        self._closed = True
        for pending in list(self._pending()):
            if not pending.future.done():
                pending.future.set_exception(make(self._id))

    async def drained(self) -> None:
        """Wait, after `close`, for the answer of every request and the return of every thread."""
        await drained(self._unanswered, lambda: len(self._running), self._idle)
        self._report_came()
        self._deadlines.close()
        if self._timer is not None:
            self._timer.cancel()

    def _unanswered(self) -> set[Answer]:
        waiting = {task.future for task in self._queue.tasks()} | {join.future for join in self._joins}
        return {future for future in waiting if not future.done()}


def _unequal(inputs: Tensors) -> InvalidInputError:
    shapes = ", ".join(f"{name} [{','.join(map(str, array.shape))}]" for name, array in inputs.items())
    return InvalidInputError(f"Batching Run() input tensors must have equal 0th-dimension size: {shapes}")


def _longest(tasks: list[BatchTask], now: float) -> float | None:
    """Return the seconds for the run: the most time left to any task, None for a task without a deadline."""
    last = 0.0
    for task in tasks:
        if task.deadline is None:
            return None
        last = max(last, task.deadline)
    return last - now


class BatchRun:
    """A batch, from the queue through a run, mostly in a thread, to the tasks' answers."""

    __slots__ = (
        *("_owner", "cancellation", "ends_at", "expected", "key", "look_at", "on_loop", "padding", "ran"),
        *("record", "rows", "tasks", "timeout", "watched"),
    )

    def __init__(self, owner: SignatureBatcher, batch: Batch, tasks: list[BatchTask], rows: int, padding: int) -> None:
        self._owner = owner
        self.key = batch.key
        self.tasks = tasks
        self.rows = rows
        self.padding = padding
        self.timeout: float | None = None
        self.cancellation = Cancellation()
        self.ran = self.on_loop = False
        self.watched = 0
        self.record: RunRecord | None = None
        self.ends_at = self.look_at = self.expected = math.inf

    def leave(self, task: BatchTask, reason: str) -> None:
        """Note a task of a recorded call."""
        if self.record is None:
            self.record = RunRecord(perf_counter(), self.rows, self.padding, len(self.tasks), reason)
        task.leave(self.record)

    def call(self) -> tuple[list[dict[str, Array]], float, float]:
        """Merge, run, split; return the outputs of each task, the seconds and the processor time of the thread."""
        tasks, owner = self.tasks, self._owner
        began, used = perf_counter(), thread_time() if owner.loop_runs is not None else 0.0
        if self.record is not None:
            self.record.began = began
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
        if self.record is not None:
            self.record.ended = perf_counter()
        # An unmerged request is answered as without batching: the outputs need no rows.
        if alone and tasks[0].whole is None:
            pieces = [outputs]
        else:
            pieces = split(outputs, [task.rows for task in tasks], self.rows + self.padding)
        if owner.loop_runs is not None:
            used = thread_time() - used
        return pieces, perf_counter() - began, used

    def held(self, seconds: float, used: float) -> None:
        """As `Work.held`."""
        self.on_loop = True
        self._owner.held(self, seconds, used)

    def done(self, result: Any, error: Exception | None) -> None:
        """Take the result on the loop, at the return of the thread."""
        tasks, self.tasks = self.tasks, []  # Breaks a cycle through an error's traceback, and ends `watch`.
        self._owner.ended(self, tasks, result, error)

    def overdue(self) -> bool:
        """As `Work.overdue`."""
        if self._owner.runs.overdue(self):
            return True
        self.expire()
        return False

    def expire(self) -> None:
        """Answer the remaining callers: the time of `run_timeout` is over."""
        for task in self.tasks:
            if not task.future.done():
                task.future.set_exception(self._owner.runs.expired())

    def stuck(self, seconds: float) -> None:
        """As `Work.stuck`."""
        self.expire()
        self._owner.left_behind(self, seconds)

    def watch(self, _: object = None) -> None:
        """Watch a single task with a waiting caller; without such a task, stop the run."""
        tasks = self.tasks
        for i in range(self.watched, len(tasks)):
            if not tasks[i].future.done():
                self.watched = i
                tasks[i].future.add_done_callback(self.watch)
                return
        if tasks:
            self._owner.abandoned(self)


class Join:
    """The concatenation of a cut request's outputs, in a run thread."""

    __slots__ = ("_owner", "deadline", "future", "parts")

    look_at = math.inf  # Infinite: the concatenation of arrays surely ends.
    expected = math.inf  # The arrays are large.

    def __init__(self, owner: SignatureBatcher, future: Answer, deadline: float | None, parts: list[Tensors]) -> None:
        self._owner = owner
        self.future = future
        self.deadline = deadline
        self.parts = parts

    def call(self) -> dict[str, Array]:
        return join(self.parts)

    def overdue(self) -> bool:
        return False

    def held(self, seconds: float, used: float) -> None:
        raise AssertionError("never on the loop")

    def stuck(self, seconds: float) -> None:
        raise AssertionError("never asked for")

    def done(self, result: Any, error: Exception | None) -> None:
        if not self.future.done():
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)
        self._owner.joined(self)
