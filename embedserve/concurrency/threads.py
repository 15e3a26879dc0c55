"""Run threads, the only door from the event loop to inference; all further slow work is in load_pool.py.

Work expected to be shorter than the way to a thread and back stays on the loop, within a budget.

Run threads are few, live as long as the registry and are warmed, because TensorFlow keeps state per thread. A run slot
is claimed before the choice of the work, so that a batch keeps growing while every thread is busy. `fairness` chooses
the next claim. A thread with endless work is left behind and replaced. The module knows only the names of models.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from time import perf_counter, thread_time
from typing import Any, Protocol, TypeVar

from embedserve.concurrency import fairness
from embedserve.concurrency.dispatch_delay import DispatchDelay
from embedserve.concurrency.owner_loop import LoopWaker
from embedserve.errors import Code, HungError, RegistryStateError, ServingError

__all__ = ["RunPool", "SlotClient", "Task", "Work", "outlast", "tellable"]

T = TypeVar("T")

# Seconds between two checks of a thread of a closed pool for a closed loop: no message comes from a closed loop.
LOOK_FOR_LOOP = 0.5


class Work(Protocol):
    """The work of a run thread. All methods but `call` run on the loop."""

    look_at: float
    """The `loop.time()` of the next `overdue` check; infinite for work with a sure end."""

    expected: float
    """Expected seconds of work short enough for the loop itself; infinite for work that belongs in a thread."""

    def call(self) -> Any:
        """Do the work; in the thread."""

    def done(self, result: object, error: Exception | None) -> None:
        """Take the result of `call`, or the raised error, even after `stuck`."""

    def overdue(self) -> bool:
        """Return whether to leave the thread behind; if not, `look_at` is later from here on."""

    def held(self, seconds: float, used: float) -> None:
        """Take note: the work took `seconds` of the loop and `used` processor time; before `done`, only on the loop."""

    def stuck(self, seconds: float) -> None:
        """Take note: the thread was left behind after `seconds`. The thread may still come back."""


class Task:
    """Work made of functions."""

    __slots__ = ("call", "done", "look_at", "stuck")

    expected = math.inf

    def __init__(
        self,
        call: Callable[[], object],
        done: Callable[[Any, Exception | None], None],
        stuck: Callable[[float], None] = lambda seconds: None,
        look_at: float = math.inf,
    ) -> None:
        self.call = call
        self.done = done
        self.stuck = stuck
        self.look_at = look_at

    def overdue(self) -> bool:
        """Return True: there is no second limit."""
        return True

    def held(self, seconds: float, used: float) -> None:
        raise AssertionError("never on the loop")


class SlotClient(Protocol):
    """A client with work for a run thread."""

    @property
    def model(self) -> str:
        """The model of the work: clients of the same model share the model's turns."""

    @property
    def waiting(self) -> int:
        """Requests able to share the next work; 0 where each request goes alone. Loop only."""

    def take_work(self) -> Work | None:
        """Choose the work for the free thread, or return None without any work. Loop only; must not raise."""

    def turn_away(self, error: ServingError) -> None:
        """Fail all waiting requests, because no thread can run them. An open claim counts as withdrawn.

        Loop only; must not raise.
        """


class _RunThread:
    """A run thread and the queue for the thread's next work."""

    def __init__(self, pool: RunPool, name: str, *, lent: bool = False) -> None:
        self._pool = pool
        self.lent = lent
        self.todo: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.reserved: deque[_Reserved] = deque()  # Work for this thread only.
        self.work: Work | None = None
        self.model: str | None = None  # None for work without a client.
        self.began = 0.0
        pool.waker.join()
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        waker = self._pool.waker
        try:
            self._work_until_ended(waker.ring)
        finally:
            waker.leave()

    def _work_until_ended(self, ring: Callable[[tuple[object, ...]], bool]) -> None:
        while (work := self._next()) is not None:
            result: object = None
            error: Exception | None = None
            try:
                result = work.call()
            except BaseException as raised:  # Handed to the loop; a run thread must outlive any work.
                error = tellable(raised)
            if not ring((self, work, result, error)):
                return
            del work, result, error

    def _next(self) -> Work | None:
        """Return the next work, or None to end."""
        while self._pool.closed:  # The loop may close before hearing of the thread's return.
            try:
                return self.todo.get(timeout=LOOK_FOR_LOOP)
            except queue.Empty:
                if self._pool.loop.is_closed():
                    return None
        return self.todo.get()


class _Reserved:
    """A call for a single run thread; `RunPool.run_in_each_thread` awaits the outcome."""

    expected = math.inf

    def __init__(self, call: Callable[[], object], ended: asyncio.Future[None], limit: float) -> None:
        self.call = call
        self.ended = ended
        self.limit = limit
        self.look_at = math.inf  # Until the call begins.

    def overdue(self) -> bool:
        return True

    def done(self, _: object, error: Exception | None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)

    def held(self, seconds: float, used: float) -> None:
        raise AssertionError("never on the loop")

    def stuck(self, seconds: float) -> None:
        self.done(None, HungError(f"warm-up in a run thread has not ended after {seconds:.0f} s"))


class RunPool:
    """A fixed number of run threads handed out as slots, to models in turn. Loop only.

    Args:
        loop: The loop of all calls but `Work.call`.
        size: Run threads, warm and free or at work.
        name: Beginning of the threads' names.
        max_stuck: Bound of replaced threads with endless work; None is `size`.
        loop_run_limit: Seconds of the loop for short work, as in `fairness.LoopBudget`.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        size: int,
        name: str = "embedserve-run",
        max_stuck: int | None = None,
        loop_run_limit: float = 0.0,
    ) -> None:
        self.loop = loop
        self.loop_run_limit = loop_run_limit
        # A dispatch and a run belong to many requests, so the context of no single request holds there.
        self._context = Context()
        self._budget = fairness.LoopBudget(loop_run_limit)
        self.size = size
        self.max_stuck = size if max_stuck is None else max_stuck
        self._name = name
        self._waiting: list[SlotClient] = []
        self._turns = fairness.Turns()
        self._dispatching = False
        self.delay = DispatchDelay(time.monotonic)  # A loop's own clock may stand still for a millisecond.
        self._settled: asyncio.TimerHandle | None = None
        self._lending: asyncio.TimerHandle | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._look_at = math.inf
        self.closed = False
        self.waker = LoopWaker(loop, self._finished)
        self._made = 0
        self._threads: list[_RunThread] = []
        # Last in, first out: the thread of the last run has warm caches.
        self._idle: list[_RunThread] = []
        self._spare: _RunThread | None = None  # Beyond `size`; made at the first loan.
        self._stuck: list[_RunThread] = []
        for _ in range(size):
            self._idle.append(self._make_thread())

    def __repr__(self) -> str:
        stuck = f", {len(self._stuck)} stuck" * bool(self._stuck)
        return f"<RunPool {self.busy}/{self.size} busy, {len(self._waiting)} waiting{stuck}{', closed' * self.closed}>"

    def _make_thread(self, *, lent: bool = False) -> _RunThread:
        thread = _RunThread(self, f"{self._name}-{self._made}", lent=lent)
        self._made += 1
        if lent:
            self._spare = thread
        else:
            self._threads.append(thread)
        return thread

    @property
    def busy(self) -> int:
        """Number of threads at work, without threads left behind."""
        lent = self._spare is not None and self._spare.work is not None
        return len(self._threads) - len(self._idle) + lent

    @property
    def stuck(self) -> int:
        """Number of threads left behind with their work and not yet back."""
        return len(self._stuck)

    @property
    def trouble(self) -> str | None:
        """Why the process should be replaced; None in a healthy process. Readable from any thread."""
        if not self._stuck or self.closed:
            return None
        if not self._threads:
            return f"no run thread is left, stuck runs: {len(self._stuck)}"
        if len(self._stuck) >= self.max_stuck:
            return f"stuck runs: {len(self._stuck)}, as many as may be replaced (max_stuck_runs is {self.max_stuck})"
        return None

    def request(self, client: SlotClient) -> None:
        """Claim a slot; `client.take_work` is called once a slot is free, never within the call of `request`.

        Work is chosen in the next turn of the loop: all requests of a turn join the same batch, at no idle cost.

        Raises:
            RegistryStateError: The pool was closed and the threads have ended.
        """
        if not self._threads:
            if self.closed:
                raise RegistryStateError("the registry has been left; its run threads have ended")
            self.loop.call_soon(self._turn_away, context=self._context)
        self._waiting.append(client)
        self._dispatch_soon()

    def _turn_away(self) -> None:
        """Without any thread left, refuse all waiting clients."""
        reason = self.trouble
        if reason is not None and not self._threads:
            clients, self._waiting = self._waiting, []
            for client in clients:
                client.turn_away(ServingError(reason, code=Code.UNAVAILABLE))

    def _dispatch_soon(self) -> None:
        if self._waiting and not self._dispatching and (self._idle or self._may_lend()):
            self._dispatching = True
            self.loop.call_soon(self._dispatch, context=self._context)

    def _may_lend(self) -> bool:
        """Whether the thread beyond the pool's size may be used now; a later time sets a timer."""
        spare = self._spare
        if self._lending is not None or (spare is not None and spare.work is not None):
            return False
        if spare is None and len(self._stuck) > self.max_stuck:
            return False
        claims = {client.model for client in self._waiting}
        if len(claims) == 1 and claims == self._turns.held.keys():  # A model alone: the common case.
            return False
        at = fairness.lend_at(claims, [(thread.model or "", thread.began) for thread in self._threads])
        if at is None:
            return False
        if at <= self.loop.time():
            return True
        self._lending = self.loop.call_at(at, self._lend, context=self._context)
        return False

    def _lend(self) -> None:
        self._lending = None
        self._dispatch_soon()

    def hurry(self) -> None:
        """End the pause of free slots: a client has a full batch, or as many requests as `delay.enough`."""
        if self._settled is not None:
            self._settled.cancel()
            self._settled = None
            self.delay.stop(sum([client.waiting for client in self._waiting]))
            self.loop.call_soon(self._hand_out, context=self._context)

    def _dispatch(self) -> None:
        self._settled = None
        pause = self.delay.pause(sum([client.waiting for client in self._waiting]))
        if pause is None:
            self._hand_out()
        elif pause:
            self._settled = self.loop.call_later(pause, self._dispatch, context=self._context)
        else:
            self.loop.call_soon(self._dispatch, context=self._context)

    def _hand_out(self) -> None:
        # Clients that return during the hand-out wait for the next turn: answers of runs on the loop go out first.
        claims = len(self._waiting)
        try:
            while claims and self._waiting and (self._idle or self._may_lend()):
                claims -= 1
                client = self._next_client()
                work = client.take_work()
                if work is None:
                    continue
                model = client.model
                self._turns.begin(model)
                if work.expected < math.inf and not self.busy and self._budget.admits(work.expected, perf_counter()):
                    self._run_here(work, model)
                else:
                    thread = self._idle.pop() if self._idle else self._spare or self._make_thread(lent=True)
                    self._give(thread, work, model)
        finally:  # A client with an unexpected error must not keep further clients waiting.
            self._dispatching = False
            self._dispatch_soon()
            if self.closed:
                self._end_idle()

    def _next_client(self) -> SlotClient:
        waiting = self._waiting
        if len(waiting) == 1:
            return waiting.pop()
        return waiting.pop(self._turns.next([client.model for client in waiting]))

    def _give(self, thread: _RunThread, work: Work, model: str | None) -> None:
        thread.work, thread.model, thread.began = work, model, self.loop.time()
        if work.look_at < self._look_at:
            self._watch(work.look_at)
        thread.todo.put(work)

    def _run_here(self, work: Work, model: str) -> None:
        """Do short work on the loop: the change to a thread and back would take longer.

        No thread is at work, so a run does not wait for the threads of TensorFlow that a longer run has taken.
        """
        result: object = None
        error: BaseException | None = None
        began, used = perf_counter(), thread_time()
        try:
            result = work.call()
        except BaseException as raised:
            error = raised
        seconds, used = perf_counter() - began, thread_time() - used
        self._turns.end(model)
        self._budget.spend(seconds)
        self.delay.ran(seconds)
        work.held(seconds, used)
        work.done(result, None if error is None else tellable(error))
        if error is not None and not isinstance(error, Exception):  # An interrupt by a signal is meant for the loop.
            raise error

    def _give_reserved(self, thread: _RunThread, work: _Reserved) -> None:
        work.look_at = self.loop.time() + work.limit
        self._give(thread, work, None)

    def _release(self, thread: _RunThread) -> None:
        """End a thread's work, at least in the account of the models' turns."""
        if thread.model is not None:
            self._turns.end(thread.model)
        thread.model = thread.work = None

    def _finished(self, thread: _RunThread, work: Work, result: object, error: Exception | None) -> None:
        """Take back a thread at the end of the work; on the loop."""
        if self._stuck and thread in self._stuck:
            self._came_back(thread)
        else:
            if thread.model is not None:
                self.delay.ran(self.loop.time() - thread.began)
            self._release(thread)
            if thread.reserved:
                self._give_reserved(thread, thread.reserved.popleft())
            elif not thread.lent:
                self._idle.append(thread)
        try:
            work.done(result, error)
        finally:
            # Not at once: answers go out first, and their callers' next requests join the next batch.
            self._dispatch_soon()
            if self.closed:
                self._end_idle()

    # Endless work.

    def _watch(self, at: float) -> None:
        """Check overdue work at time `at`. A single timer serves all threads and is seldom reset."""
        self._look_at = at
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None
        if at < math.inf:
            self._watching = self.loop.call_at(at, self._look, context=self._context)

    def _look(self) -> None:
        self._look_at, self._watching = math.inf, None
        now = self.loop.time()
        next_look = math.inf
        for thread in [*self._threads, *([] if self._spare is None else [self._spare])]:
            if thread.work is None:
                continue
            if thread.work.look_at <= now and thread.work.overdue():
                self._leave_behind(thread, now)
            else:
                next_look = min(next_look, thread.work.look_at)
        if next_look < self._look_at:
            self._watch(next_look)
        self._dispatch_soon()

    def _leave_behind(self, thread: _RunThread, now: float) -> None:
        """Go on without a thread; within the bound a new thread takes the place."""
        work = thread.work
        assert work is not None
        self._stuck.append(thread)
        self._release(thread)
        if thread.lent:
            self._spare = None
        else:
            self._threads.remove(thread)
            if len(self._stuck) <= self.max_stuck:
                self._replace(thread)
            while thread.reserved:
                thread.reserved.popleft().done(
                    None, ServingError("its run thread is stuck and is not replaced", code=Code.UNAVAILABLE)
                )
        work.stuck(now - thread.began)
        if not self._threads:
            self._turn_away()

    def _replace(self, thread: _RunThread) -> None:
        new = self._make_thread()
        if thread.reserved:
            new.reserved, thread.reserved = thread.reserved, deque()
            self._give_reserved(new, new.reserved.popleft())
        else:
            self._idle.append(new)

    def _came_back(self, thread: _RunThread) -> None:
        self._stuck.remove(thread)
        if thread.lent or self.closed or len(self._threads) >= self.size:
            thread.todo.put(None)
        else:
            self._threads.append(thread)
            self._idle.append(thread)

    # Warm-up and the end.

    async def run_in_each_thread(
        self, call: Callable[[], object], patience: float | None = None, limit: float = math.inf
    ) -> int:
        """Run `call` once in every run thread, in turn; for warm-up.

        Only a single thread at a time is taken from the requests of further models. The first error of `call` is
        raised. A cancelled caller first waits for the thread in `call`, so that no run uses a servable behind the
        owner's back. Threads made later, as replacements or as the lent thread, do not run `call`.

        Args:
            call: The function to run.
            patience: Seconds to wait for a thread at work.
            limit: Seconds for `call` in a thread; beyond, the thread is left behind.

        Returns:
            The number of threads left out, because their work went on for more than `patience` seconds.

        Raises:
            HungError: `call` took longer than `limit`.
        """
        left_out = 0
        for thread in tuple(self._threads):
            work = _Reserved(call, self.loop.create_future(), limit)
            wait: float | None = None
            if thread in self._idle:
                self._idle.remove(thread)
                self._give_reserved(thread, work)
            elif thread in self._threads:
                thread.reserved.append(work)
                wait = patience
            elif self.closed:
                raise RegistryStateError("the registry has been left; its run threads have ended")
            else:  # Left behind in the mean time.
                left_out += 1
                continue

            def withdraw(work: _Reserved = work) -> bool:
                holder = next((t for t in self._threads if work in t.reserved), None)
                if holder is None:
                    return False
                holder.reserved.remove(work)
                return True

            try:
                async with asyncio.timeout(wait):
                    await outlast(work.ended, withdraw)
            except TimeoutError:
                if work.ended.done():  # The call began just in time, or raised the error itself.
                    work.ended.result()
                else:
                    left_out += 1
        return left_out

    def close(self) -> None:
        """Let the threads end once no work is left; earlier requests are still served."""
        self.closed = True
        self.hurry()
        self._end_idle()

    def _end_idle(self) -> None:
        if self._waiting:
            return
        for thread in self._idle:
            thread.todo.put(None)
            self._threads.remove(thread)
        self._idle.clear()
        if self._spare is not None and self._spare.work is None:
            self._spare.todo.put(None)
            self._spare = None
        if not self._threads and self._spare is None:
            self._watch(math.inf)
            if self._lending is not None:
                self._lending.cancel()
            if not self._stuck:
                self.waker.silence()


def tellable(error: BaseException) -> Exception:
    """Return an error safe for the loop: no future takes StopIteration, and a SystemExit in a task ends the process."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    told = RuntimeError(f"a thread's work ended with {type(error).__name__}: {error}")
    told.__cause__ = error
    return told


async def outlast(run: asyncio.Future[T], withdraw: Callable[[], bool]) -> T:
    """Await a thread's work; a cancelled caller withdraws unstarted work, and else still waits for the end."""
    cancelled: asyncio.CancelledError | None = None
    while not run.done():
        try:
            await asyncio.wait([run])
        except asyncio.CancelledError as error:
            if withdraw():
                raise
            cancelled = error
    if cancelled is None:
        return run.result()
    if not run.cancelled():
        run.exception()  # Retrieved, so that asyncio does not report the error as lost.
    raise cancelled
