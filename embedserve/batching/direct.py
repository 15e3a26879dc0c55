"""DirectPredictor: one run per request, bounded, and what it shares with the batched path: deadlines, errors, figures.

Called on the loop by a handle; knows no batch. Only `Servable.run` runs in a thread.
"""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Protocol, TypeAlias, TypeVar

from embedserve.batching.watchdog import VersionRuns
from embedserve.concurrency.threads import RunPool, Work
from embedserve.errors import Code, DeadlineExceededError, QueueFullError, RegistryStateError, ServingError
from embedserve.observer import Observers
from embedserve.priority import OVERTAKEN, Lanes, Priority
from embedserve.servable import Array, Cancellation, Servable, ServableId, SlotCall, Tensors
from embedserve.signature import Signature

__all__ = [
    "Answer",
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

Answer: TypeAlias = asyncio.Future[dict[str, Array]]
MakeError: TypeAlias = Callable[[ServableId], ServingError]

# The deadline timer does not come more often than this, however many deadlines there are.
SWEEP_INTERVAL = 0.001


@dataclass(frozen=True, slots=True)
class PredictorStatistics:
    """What a predictor has done and has to do.

    Attributes:
        waiting: Requests, or pieces of split ones, in a queue now.
        running: Runs in a thread now.
        runs: Runs that were started.
        requests: Requests, or pieces, that those runs served.
        rows: Rows of batched runs, without padding.
        padding_rows: Rows that were added to reach an allowed batch size.
        refused: Requests turned away by a full queue, those among them that had to leave it for one of higher priority.
        dropped: Requests that cost no run, because their deadline had passed or their caller had left.
        cancelled: Runs that were asked to stop because nobody was left to answer.
        rerun: Requests that ran again, alone, because a batch that they were in failed.
        shed: Requests that adaptive batching gave up, because they could not be answered in time.
        stuck: Runs that were left behind in their threads and have not returned.
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


class Pending(Protocol):
    """A request whose answer is owed."""

    future: Answer
    deadline: float | None


class DeadlineTimer:
    """One timer for the deadlines of many requests: watching one more costs a comparison.

    When it comes it looks through all of `pending`, ends those whose time is over, and is set for the next.
    """

    __slots__ = ("_at", "_loop", "_pending", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, pending: Callable[[], Iterable[Pending]]) -> None:
        self._loop = loop
        self._pending = pending
        self._at = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, deadline: float) -> None:
        """See to it that the request with this deadline, which is or will be pending, does not outlive it."""
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
    """The error of a request whose deadline passed, waiting or running."""
    return DeadlineExceededError("Timed out waiting for notification")


def refusal(id: ServableId) -> RegistryStateError:
    """The error of a request that came after the predictor was closed."""
    return RegistryStateError(f"servable {id} is being unloaded and takes no more requests; acquire the model again")


def left_behind(id: ServableId) -> RegistryStateError:
    """The error of a request that was still running when the registry's drain timeout passed."""
    return RegistryStateError(f"the registry was left while servable {id} was still working on the request")


def copied(error: Exception) -> Exception:
    """An exception of its own for each caller: raising one in several tasks would mix their tracebacks."""
    try:
        own = copy.copy(error)
    except Exception:
        return error
    own.__cause__ = error.__cause__
    return own.with_traceback(error.__traceback__)


def timed_out(error: Exception, timeout: float | None) -> bool:
    """Whether a run failed because its `timeout` was over, shortly before the deadline timer would have come."""
    return timeout is not None and getattr(error, "code", None) is Code.DEADLINE_EXCEEDED


async def drained(waiting: Callable[[], set[Answer]], running: Callable[[], int], idle: asyncio.Event) -> None:
    """Wait until nothing waits and nothing runs; `idle` is set whenever a last run ends."""
    while True:
        if futures := waiting():
            await asyncio.wait(futures)
        elif running():
            idle.clear()
            await idle.wait()
        else:
            return


class _DirectRun:
    """One request, from the queue through a run thread to its answer."""

    __slots__ = (
        *("_call", "_owner", "cancellation", "deadline", "ends_at", "future", "inputs", "look_at"),
        *("seconds", "signature", "timeout"),
    )

    def __init__(
        self,
        owner: DirectPredictor,
        future: asyncio.Future[Any],
        call: SlotCall[Any],
        deadline: float | None,
        signature: str,
        inputs: Tensors,
    ) -> None:
        self._owner = owner
        self._call = call
        self.future = future
        self.deadline = deadline
        self.signature = signature
        self.inputs = inputs
        self.timeout: float | None = None
        self.cancellation = Cancellation()
        self.seconds = 0.0
        self.ends_at = self.look_at = math.inf

    def call(self) -> Any:
        """In a run thread."""
        began = perf_counter()
        result = self._call(cancellation=self.cancellation, timeout=self.timeout)
        self.seconds = perf_counter() - began
        return result

    def done(self, result: Any, error: Exception | None) -> None:
        """On the loop, when the thread is back."""
        self._owner.ended(self, error is None)
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
        """Answer the caller, whose time is over by `run_timeout`."""
        if not self.future.done():
            self.future.set_exception(self._owner.runs.expired())

    def stuck(self, seconds: float) -> None:
        """As `Work.stuck`."""
        self.expire()
        self._owner.left_behind(self, seconds)

    def left(self, _: Answer) -> None:
        """The future is done; if the thread is not back yet, the caller has left or its time is over."""
        self._owner.abandoned(self)


class DirectPredictor:
    """Runs every request on its own, in the order in which they came but for priorities; implements `Predictor`.

    Lives as long as its version is loaded. It holds one place in the line for run threads at a time, so many requests
    of one version do not keep the others waiting.
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
    ) -> Answer:
        """As `Predictor.submit`."""
        call = partial(self.servable.run, signature.name, inputs, output_names)
        return self._submit(call, deadline, priority, signature.name, inputs)

    def submit_call(
        self, call: SlotCall[T], deadline: float | None = None, priority: int = Priority.NORMAL
    ) -> asyncio.Future[T]:
        """As `Predictor.submit_call`."""
        return self._submit(call, deadline, priority, "", {})

    def _submit(
        self, call: SlotCall[T], deadline: float | None, priority: int, signature: str, inputs: Tensors
    ) -> asyncio.Future[T]:
        if self._closed or self._stuck:
            raise self._refuse(self._id) if self._closed else self.runs.refusal()
        if len(self._waiting) + len(self._running) >= self._max_pending:
            self._make_room(priority)
        future: asyncio.Future[T] = self._create_future()
        self._waiting.append(_DirectRun(self, future, call, deadline, signature, inputs), priority)
        if deadline is not None:
            self._deadlines.watch(deadline)
        if not self._claimed:
            self._claimed = True
            self._pool.request(self)
        return future

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
            request.timeout = self.runs.begin(request, now, request.timeout)
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
        """The thread that ran `request` is back; `completed` if it has an answer."""
        self._running.discard(request)
        if not self._running:
            self._idle.set()
        if self._stuck:
            self.runs.returned(request)
        if completed:
            self.runs.completed(request.seconds)

    def left_behind(self, request: _DirectRun, seconds: float) -> None:
        """`request` is stuck in its thread."""
        self._running.discard(request)
        if not self._running:
            self._idle.set()
        self.runs.left_behind(request, request.signature, request.inputs, 0, seconds)

    def abandoned(self, request: _DirectRun) -> None:
        """Nobody waits for `request` any more; stop its run if there still is one."""
        if request in self._running:
            self._cancelled += 1
            request.cancellation.cancel()

    def statistics(self) -> PredictorStatistics:
        """Counts so far, and what waits and runs now."""
        return PredictorStatistics(
            waiting=len(self._waiting),
            running=len(self._running),
            runs=self._started,
            requests=self._started,
            refused=self._refused,
            dropped=self._dropped,
            cancelled=self._cancelled,
            stuck=len(self._stuck),
        )

    @property
    def trouble(self) -> str | None:
        """As `Predictor.trouble`."""
        return self.runs.trouble

    def close(self) -> None:
        """Take no more requests; those that are here are answered."""
        self._closed = True

    def abort(self, error: MakeError | None = None) -> None:
        """Take no more requests, fail every one that is still owed an answer, and ask its run to stop."""
        make = self._refuse = error or left_behind
        self._closed = True
        for request in [*self._waiting, *self._running]:
            if not request.future.done():
                request.future.set_exception(make(self._id))

    async def aclose(self) -> None:
        """Close, and wait until every request has been answered and every thread is back."""
        self.close()
        await drained(self._unanswered, lambda: len(self._running), self._idle)
        self._dropped += len(self._waiting)  # Their callers have left.
        self._waiting.clear()
        self._deadlines.close()

    def _unanswered(self) -> set[Answer]:
        return {request.future for request in self._waiting if not request.future.done()}
