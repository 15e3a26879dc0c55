"""DirectPredictor: a run per request, bounded, and the parts shared with the batched path: deadlines, errors, figures.

The module knows no batch. Only `Servable.run` runs in a thread, and short runs stay on the loop (loop_runs.py).
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import partial
from time import perf_counter, thread_time
from typing import Any, Protocol, TypeAlias, TypeVar

from embedserve.batching.loop_runs import loop_runs
from embedserve.batching.watchdog import VersionRuns
from embedserve.call_record import RunRecord, Step, current_call
from embedserve.concurrency.threads import RunPool, Work
from embedserve.errors import Code, DeadlineExceededError, QueueFullError, RegistryStateError, ServingError
from embedserve.observer import Observers
from embedserve.priority import OVERTAKEN, Lanes, Priority
from embedserve.servable import Answer, Array, Cancellation, Servable, ServableId, SlotCall, Tensors
from embedserve.signature import Signature
from embedserve.tfs.constants import TIMED_OUT

__all__ = [
    "DeadlineTimer",
    "DirectPredictor",
    "MakeError",
    "PredictorStatistics",
    "copied",
    "drained",
    "expired",
    "left_behind",
    "refusal",
    "timed_out",
]

T = TypeVar("T")

MakeError: TypeAlias = Callable[[ServableId], ServingError]

# Least seconds between two sweeps of the deadline timer, however many deadlines there are.
SWEEP_INTERVAL = 0.001


@dataclass(frozen=True, slots=True)
class PredictorStatistics:
    """The counts of a predictor, and the present numbers of waiting requests and runs.

    Attributes:
        waiting: Requests, or pieces of split requests, in a queue now.
        running: Runs in a thread now.
        runs: Started runs.
        requests: Requests, or pieces, in the started runs.
        rows: Rows of batched runs, without padding.
        padding_rows: Rows added to reach an allowed batch size.
        refused: Requests turned away by a full queue, including requests evicted by a higher priority.
        dropped: Requests without a run, because of a passed deadline or a departed caller.
        cancelled: Runs asked to stop for want of a waiting caller.
        rerun: Requests run again, alone, after the failure of their batch.
        shed: Requests given up by adaptive batching for want of time.
        stuck: Runs left behind in their threads and not yet returned.
        on_loop: Runs on the event loop, because the runs were expected to be short.
        loop_signatures: Signatures with runs on the event loop, of late or still.
    """

    waiting: int = 0
    running: int = 0
    runs: int = 0
    requests: int = 0
    rows: int = 0
    padding_rows: int = 0
    refused: int = 0
    dropped: int = 0
    cancelled: int = 0
    rerun: int = 0
    shed: int = 0
    stuck: int = 0
    on_loop: int = 0
    loop_signatures: tuple[str, ...] = ()


class Pending(Protocol):
    """A request without an answer yet."""

    @property
    def future(self) -> Answer: ...

    @property
    def deadline(self) -> float | None: ...


class DeadlineTimer:
    """A timer for the deadlines of many requests: a further watch costs a comparison.

    The sweep looks through all of `pending`, ends requests with a passed deadline, and sets the timer for the next
    deadline.
    """

    __slots__ = ("_at", "_loop", "_pending", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, pending: Callable[[], Iterable[Pending]]) -> None:
        self._loop = loop
        self._pending = pending
        self._at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, deadline: float) -> None:
        """End the request with the deadline in time; the request is pending, or soon pending."""
        if deadline < self._at:
            self._at = deadline
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(deadline, self._sweep)

    def _sweep(self) -> None:
        now = max(self._loop.time(), self._at)
        self._at, self._timer = math.inf, None
        earliest = math.inf
        for request in self._pending():
            deadline = request.deadline
            if deadline is None or request.future.done():
                continue
            if deadline <= now:
                request.future.set_exception(expired())
            elif deadline < earliest:
                earliest = deadline
        if earliest < math.inf:
            self.watch(max(earliest, now + SWEEP_INTERVAL))

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._at, self._timer = math.inf, None


def expired() -> DeadlineExceededError:
    """Return the error of a request with a passed deadline, waiting or running."""
    return DeadlineExceededError(TIMED_OUT)


def refusal(id: ServableId) -> RegistryStateError:
    """Return the error of a request to a closed predictor."""
    return RegistryStateError(f"servable {id} is being unloaded and takes no more requests; acquire the model again")


def left_behind(id: ServableId) -> RegistryStateError:
    """Return the error of a request still running at the end of the registry's drain timeout."""
    return RegistryStateError(f"the registry was left while servable {id} was still working on the request")


def copied(error: Exception) -> Exception:
    """Return a separate exception for each caller: a shared exception in several tasks would mix their tracebacks."""
    try:
        own = copy.copy(error)
    except Exception:
        return error
    own.__cause__ = error.__cause__
    return own.with_traceback(error.__traceback__)


def timed_out(error: Exception, timeout: float | None) -> bool:
    """Return whether a run failed by the end of `timeout`, shortly before the sweep of the deadline timer."""
    return timeout is not None and getattr(error, "code", None) is Code.DEADLINE_EXCEEDED


async def drained(waiting: Callable[[], set[Answer]], running: Callable[[], int], idle: asyncio.Event) -> None:
    """Wait until no request waits and no run is left; `idle` is set at the end of each last run."""
    while True:
        if unanswered := waiting():
            done = asyncio.Event()
            unanswered.pop().add_done_callback(lambda _, done=done: done.set())  # type: ignore[misc]
            await done.wait()
        elif running():
            idle.clear()
            await idle.wait()
        else:
            return


class _DirectRun:
    """A request, from the queue through a run, mostly in a thread, to the answer."""

    __slots__ = (
        *("_call", "_owner", "cancellation", "deadline", "ends_at", "expected", "future", "inputs", "look_at"),
        *("marks", "on_loop", "seconds", "signature", "size", "step", "timeout", "used"),
    )

    def __init__(
        self,
        owner: DirectPredictor,
        future: Answer,
        call: SlotCall[Any],
        deadline: float | None,
        signature: str,
        inputs: Tensors,
        size: Hashable,
    ) -> None:
        self._owner = owner
        self._call = call
        self.size = size  # As for `LoopRuns.expected`; None for a call that belongs in a thread.
        self.on_loop = False
        self.future = future
        self.deadline = deadline
        self.signature = signature
        self.inputs = inputs
        self.timeout: float | None = None
        self.cancellation = Cancellation()
        self.step: Step | None = None
        self.marks: dict[object, Any] = {}
        self.seconds = self.used = 0.0
        self.ends_at = self.look_at = self.expected = math.inf

    def call(self) -> Any:
        """Run the call, and measure the seconds and the processor time of the thread."""
        began = perf_counter()
        if self.step is not None and self.step.run is not None:
            self.step.run.began = began
        if self.size is None:
            result = self._call(cancellation=self.cancellation, timeout=self.timeout)
        else:
            used = thread_time()
            result = self._call(cancellation=self.cancellation, timeout=self.timeout)
            self.used = thread_time() - used
        self.seconds = perf_counter() - began
        if self.step is not None and self.step.run is not None:
            self.step.run.ended = began + self.seconds
        return result

    def held(self, seconds: float, used: float) -> None:
        """As `Work.held`."""
        self.on_loop = True
        self._owner.loop_runs[self.signature].held(self.size, 1, seconds, used, perf_counter())

    def done(self, result: object, error: Exception | None) -> None:
        """Take the result on the loop, at the return of the thread."""
        self._owner.ended(self, error is None)
        if self.step is not None and self.step.run is not None:
            self.step.run.end(error)
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(expired() if timed_out(error, self.timeout) else error)

    def overdue(self) -> bool:
        """As `Work.overdue`."""
        if self._owner.runs.overdue(self):
            return True
        self.expire()
        return False

    def expire(self) -> None:
        """Answer the caller: the time of `run_timeout` is over."""
        if not self.future.done():
            self.future.set_exception(self._owner.runs.expired())

    def stuck(self, seconds: float) -> None:
        """As `Work.stuck`."""
        self.expire()
        self._owner.left_behind(self, seconds)

    def left(self, _: object) -> None:
        """Stop the run, if the future is done before the thread's return: the caller has left, or the time is over."""
        self._owner.abandoned(self)


class DirectPredictor:
    """Runs every request alone, in the order of priority and arrival; implements `Predictor`.

    Lives as long as the loaded version. The predictor holds a single place in the line for run threads: many requests
    of a version do not delay further versions.
    """

    def __init__(
        self, servable: Servable, runs: VersionRuns, pool: RunPool, observers: Observers, max_pending: int
    ) -> None:
        self.servable = servable
        self.runs = runs
        self.model = runs.id.name
        runs.predictors.append(self)
        self._stuck = runs.stuck
        self._id = runs.id
        self._pool = pool
        made = {s.name: loop_runs(runs.id, s, servable, pool.loop_run_limit) for s in servable.signatures.values()}
        self.loop_runs = {name: found for name, found in made.items() if found is not None}
        self._observers = observers
        self._max_pending = max_pending
        self._create_future: Callable[[], asyncio.Future[Any]] = pool.loop.create_future
        self._waiting: Lanes[_DirectRun] = Lanes()
        self._running: set[_DirectRun] = set()
        self._deadlines = DeadlineTimer(pool.loop, lambda: [*self._waiting, *self._running])
        self._claimed = False
        self._closed = False
        self._refuse: MakeError = refusal
        self._idle = asyncio.Event()
        self._started = self._refused = self._dropped = self._cancelled = 0

    def __repr__(self) -> str:
        state = "closed, " if self._closed else ""
        return f"<DirectPredictor {self._id} {state}{len(self._waiting)} waiting, {len(self._running)} running>"

    def submit(
        self,
        signature: Signature,
        inputs: Tensors,
        output_names: tuple[str, ...] | None = None,
        deadline: float | None = None,
        priority: int = Priority.NORMAL,
    ) -> asyncio.Future[dict[str, Array]]:
        """As `Predictor.submit`."""
        future = self._create_future()
        self.submit_to(future, signature, inputs, output_names, deadline, priority)
        return future

    def submit_to(
        self,
        answer: Answer,
        signature: Signature,
        inputs: Tensors,
        output_names: tuple[str, ...] | None = None,
        deadline: float | None = None,
        priority: int = Priority.NORMAL,
    ) -> None:
        """As `Predictor.submit_to`."""
        call = partial(self.servable.run, signature.name, inputs, output_names)
        size = None
        if signature.name in self.loop_runs:
            size = (output_names, *[inputs[name].shape for name in signature.inputs])
        self._put(_DirectRun(self, answer, call, deadline, signature.name, inputs, size), priority)

    def submit_call(
        self, call: SlotCall[T], deadline: float | None = None, priority: int = Priority.NORMAL
    ) -> asyncio.Future[T]:
        """As `Predictor.submit_call`."""
        future: asyncio.Future[T] = self._create_future()
        self._put(_DirectRun(self, future, call, deadline, "", {}, None), priority)
        return future

    def _put(self, request: _DirectRun, priority: int) -> None:
        if self._closed or self._stuck:
            raise self._refuse(self._id) if self._closed else self.runs.refusal()
        if len(self._waiting) + len(self._running) >= self._max_pending:
            self._make_room(priority)
        if (record := current_call.get()) is not None:
            request.step, request.marks = record.wait(_rows_of(request.inputs)), record.marks
        self._waiting.append(request, priority)
        if request.deadline is not None:
            self._deadlines.watch(request.deadline)
        if not self._claimed:
            self._claimed = True
            self._pool.request(self)

    def _make_room(self, priority: int) -> None:
        self._dropped += self._waiting.retain(lambda request: not request.future.done())
        if len(self._waiting) + len(self._running) < self._max_pending:
            return
        self._refused += 1
        full = (
            f"The queue of servable {self._id} is full; currently {len(self._waiting)} requests wait, "
            f"{len(self._running)} run and max_pending_requests is {self._max_pending}"
        )
        evicted = self._waiting.evict(priority)
        if evicted is None:
            raise QueueFullError(full)
        evicted.future.set_exception(QueueFullError(f"{full}; {OVERTAKEN}"))

    waiting = 0  # As `SlotClient.waiting`: each goes alone.

    def take_work(self) -> Work | None:
        """As `SlotClient.take_work`."""
        self._claimed = False
        now = self._pool.loop.time()
        while self._waiting:
            request = self._waiting.popleft()
            if request.deadline is not None and not request.future.done():
                request.timeout = request.deadline - now
                if request.timeout <= 0:
                    request.future.set_exception(expired())
            if request.future.done():
                self._dropped += 1
                continue
            if self._waiting:
                self._claimed = True
                self._pool.request(self)
            self._started += 1
            self._running.add(request)
            if request.step is not None:
                request.step.run = run = RunRecord(perf_counter(), request.step.rows)
                run.marks.append(request.marks)
            request.timeout = self.runs.begin(request, now, request.timeout)
            if request.size is not None:
                request.expected = self.loop_runs[request.signature].expected(request.size, 1, perf_counter())
            request.future.add_done_callback(request.left)
            return request
        return None

    def turn_away(self, error: ServingError) -> None:
        """As `SlotClient.turn_away`."""
        self._claimed = False
        for request in self._waiting:
            if not request.future.done():
                request.future.set_exception(copied(error))

    def ended(self, request: _DirectRun, completed: bool) -> None:
        """Take back the thread of `request`; `completed` after a run with an answer."""
        self._running.discard(request)
        if not self._running:
            self._idle.set()
        if self._stuck:
            self.runs.returned(request)
        if completed:
            self.runs.completed(request.seconds)
            if request.size is not None and not request.on_loop:
                self.loop_runs[request.signature].ran_in_thread(request.size, 1, request.used)

    def left_behind(self, request: _DirectRun, seconds: float) -> None:
        """Report `request` as stuck in the run thread."""
        self._running.discard(request)
        if not self._running:
            self._idle.set()
        self.runs.left_behind(request, request.signature, request.inputs, 0, seconds)

    def abandoned(self, request: _DirectRun) -> None:
        """Stop the run, if any, of a request without a waiting caller."""
        if request in self._running:
            self._cancelled += 1
            request.cancellation.cancel()

    def statistics(self) -> PredictorStatistics:
        """Return the counts so far, and the present numbers of waiting requests and runs."""
        return PredictorStatistics(
            waiting=len(self._waiting),
            running=len(self._running),
            runs=self._started,
            requests=self._started,
            refused=self._refused,
            dropped=self._dropped,
            cancelled=self._cancelled,
            stuck=len(self._stuck),
            on_loop=sum(found.runs for found in self.loop_runs.values()),
            loop_signatures=tuple(n for n, found in self.loop_runs.items() if found.runs and not found.barred),
        )

    def max_batch_rows(self, signature_name: str) -> int:
        """As `Predictor.max_batch_rows`: nothing is batched."""
        return 0

    @property
    def trouble(self) -> str | None:
        """As `Predictor.trouble`."""
        return self.runs.trouble

    def close(self) -> None:
        """Take no more requests; queued and running requests are answered."""
        self._closed = True

    def abort(self, error: MakeError | None = None) -> None:
        """Take no more requests, and fail every unanswered request; runs of failed requests are asked to stop."""
        make = self._refuse = error or left_behind
        self._closed = True
        for request in [*self._waiting, *self._running]:
            if not request.future.done():
                request.future.set_exception(make(self._id))

    async def aclose(self) -> None:
        """Close, and wait for the answer of every request and the return of every thread."""
        self.close()
        await drained(self._unanswered, lambda: len(self._running), self._idle)
        self._dropped += len(self._waiting)  # The callers have left.
        self._waiting.clear()
        self._deadlines.close()

    def _unanswered(self) -> set[Answer]:
        return {request.future for request in self._waiting if not request.future.done()}


def _rows_of(inputs: Tensors) -> int:
    """Rows of a request outside of a batch: the first size of the first input that has one, else 1."""
    return next((array.shape[0] for array in inputs.values() if array.shape), 1)
