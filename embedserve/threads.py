"""The only door from the event loop to threads: run threads for inference, load threads for everything slow.

Run threads are few, live as long as the registry and are warmed, because TensorFlow keeps state per thread. A run slot
is asked for before the work is chosen, so that a batch keeps growing while every thread is busy. Knows no model.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias, TypeVar

from embedserve.errors import RegistryStateError
from embedserve.settling import Settling

__all__ = ["Done", "LoadPool", "RunPool", "SlotClient", "Work"]

T = TypeVar("T")

# Seconds after which a thread of a closed pool sees that nobody will tell it to end.
LOOK_FOR_LOOP = 0.5

Done: TypeAlias = Callable[[Any, Exception | None], None]
Work: TypeAlias = tuple[Callable[[], Any], Done]


class SlotClient(Protocol):
    """Something with work for a run thread."""

    @property
    def waiting(self) -> int:
        """Requests that could go together in the next work; 0 where each goes alone. Loop only."""

    def take_work(self) -> Work | None:
        """Choose the work now that a thread is free: the call for the thread, and what to do on the loop with its
        result or error. None when there is nothing (any more) to run. Loop only; must not raise."""


class _RunThread:
    """One run thread and the one place its next work is put."""

    def __init__(self, pool: RunPool, name: str) -> None:
        self._pool = pool
        self.todo: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.reserved: deque[Work] = deque()  # Work for this thread and no other.
        self.began = 0.0  # When it was given the work that it runs, if a client chose that.
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        bell = self._pool.bell
        try:
            self._work_until_ended(bell.ring)
        finally:
            bell.leave()

    def _work_until_ended(self, ring: Callable[[tuple[Any, ...]], bool]) -> None:
        while (work := self._next()) is not None:
            call, done = work
            result: Any = None
            error: Exception | None = None
            try:
                result = call()
            except BaseException as raised:  # Handed to the loop; a run thread must outlive whatever it ran.
                error = _tellable(raised)
            del call, work
            if not ring((self, done, result, error)):
                return
            del done, result, error

    def _next(self) -> Work | None:
        """What to do next, or None to end."""
        while self._pool.closed:  # Its loop may be closed before it sees that this thread is back.
            try:
                return self.todo.get(timeout=LOOK_FOR_LOOP)
            except queue.Empty:
                if self._pool.loop.is_closed():
                    return None
        return self.todo.get()


class _Bell:
    """How run threads tell the loop what has ended: an eventfd where there is one.

    Measured against `call_soon_threadsafe`, to a thread and back: 21 instead of 26 µs, with uvloop 14 instead of 22.
    The last thread closes the file: one that has told the loop may still be about to ring.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: Callable[..., None], threads: int) -> None:
        self._loop = loop
        self._answer = answer
        self._threads = threads
        self._leaving = threading.Lock()
        self._ended: deque[tuple[Any, ...]] = deque()
        self._fd = -1
        if hasattr(os, "eventfd"):
            self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            try:
                loop.add_reader(self._fd, self._rung)
            except NotImplementedError:  # A loop that watches no files.
                os.close(self._fd)
                self._fd = -1

    def ring(self, ended: tuple[Any, ...]) -> bool:
        """Make the loop call `answer(*ended)`; from any thread. False if the loop is closed: nobody is left to tell."""
        if self._loop.is_closed():
            return False
        if self._fd >= 0:
            self._ended.append(ended)
            os.eventfd_write(self._fd, 1)
            return True
        try:
            self._loop.call_soon_threadsafe(self._answer, *ended)
        except RuntimeError:  # Closed since.
            return False
        return True

    def _rung(self) -> None:
        os.eventfd_read(self._fd)
        try:
            while self._ended:
                self._answer(*self._ended.popleft())
        finally:
            if self._ended:  # The answer raised: the loop reports that, and the rest is not lost.
                os.eventfd_write(self._fd, 1)

    def silence(self) -> None:
        """Stop listening; on the loop, when every thread has told its last."""
        if self._fd >= 0 and not self._loop.is_closed():
            self._loop.remove_reader(self._fd)

    def leave(self) -> None:
        """A thread ends."""
        with self._leaving:
            self._threads -= 1
            if not self._threads and self._fd >= 0:
                os.close(self._fd)


class RunPool:
    """A fixed number of run threads handed out as slots, first come first served. Loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int, name: str = "embedserve-run") -> None:
        self.loop = loop
        self.size = size
        self._waiting: deque[SlotClient] = deque()
        self._dispatching = False
        self.settling = Settling(time.monotonic)  # A loop's own clock may stand still for a millisecond.
        self._settled: asyncio.TimerHandle | None = None
        self.closed = False
        self.bell = _Bell(loop, self._finished, size)
        self._threads = [_RunThread(self, f"{name}-{i}") for i in range(size)]
        # Last in, first out: the thread that ran last has its caches warm.
        self._idle = list(self._threads)

    def __repr__(self) -> str:
        return f"<RunPool {self.busy}/{self.size} busy, {len(self._waiting)} waiting{', closed' * self.closed}>"

    @property
    def busy(self) -> int:
        """Threads that run something now."""
        return len(self._threads) - len(self._idle)

    def request(self, client: SlotClient) -> None:
        """Claim one slot; `client.take_work` is called when one is free, never from within this call.

        Waiting until the next turn of the loop lets every request of this turn join the same batch, at no idle cost.

        Raises:
            RegistryStateError: The pool was closed and its threads have ended.
        """
        if not self._threads:
            raise RegistryStateError("the registry has been left; its run threads have ended")
        self._waiting.append(client)
        self._dispatch_soon()

    def _dispatch_soon(self) -> None:
        if self._idle and self._waiting and not self._dispatching:
            self._dispatching = True
            self.loop.call_soon(self._dispatch)

    def hurry(self) -> None:
        """A client has as much as it can take at once, or as `settling.enough` says: free slots wait no longer."""
        if self._settled is not None:
            self._settled.cancel()
            self._settled = None
            self.settling.stop(sum([client.waiting for client in self._waiting]))
            self.loop.call_soon(self._hand_out)

    def _dispatch(self) -> None:
        self._settled = None
        pause = self.settling.pause(sum([client.waiting for client in self._waiting]))
        if pause is None:
            self._hand_out()
        elif pause:
            self._settled = self.loop.call_later(pause, self._dispatch)
        else:
            self.loop.call_soon(self._dispatch)

    def _hand_out(self) -> None:
        try:
            while self._idle and self._waiting:
                work = self._waiting.popleft().take_work()
                if work is not None:
                    thread = self._idle.pop()
                    thread.began = self.loop.time()
                    thread.todo.put(work)
        finally:  # A client that raises, against its promise, must not keep the others waiting.
            self._dispatching = False
            self._dispatch_soon()
            if self.closed:
                self._end_idle()

    def _finished(self, thread: _RunThread, done: Done, result: Any, error: Exception | None) -> None:
        """Called on the loop when a thread's work has ended."""
        if thread.began:
            self.settling.ran(self.loop.time() - thread.began)
            thread.began = 0.0
        if thread.reserved:
            thread.todo.put(thread.reserved.popleft())
        else:
            self._idle.append(thread)
        try:
            done(result, error)
        finally:
            # Not at once: answers go out first, and their callers' next requests join the next batch.
            self._dispatch_soon()
            if self.closed:
                self._end_idle()

    async def run_in_each_thread(self, call: Callable[[], object], patience: float | None = None) -> int:
        """Run `call` once in every run thread, one after the other; for warm-up.

        Only one thread at a time is taken from the requests of other models. Raises what `call` raised first. When
        cancelled it first waits for the thread that is in `call`, so that nothing runs a servable behind its owner.

        Returns:
            How many threads were left out, because what they ran went on for `patience` seconds more.
        """
        left_out = 0
        for thread in tuple(self._threads):
            ended: asyncio.Future[None] = self.loop.create_future()

            def finish(_: Any, error: Exception | None, ended: asyncio.Future[None] = ended) -> None:
                if ended.done():
                    return
                if error is None:
                    ended.set_result(None)
                else:
                    ended.set_exception(error)

            work: Work = (call, finish)
            limit: float | None = None
            if thread in self._idle:
                self._idle.remove(thread)
                thread.todo.put(work)
            elif thread in self._threads:
                thread.reserved.append(work)
                limit = patience
            else:
                raise RegistryStateError("the registry has been left; its run threads have ended")

            def withdraw(thread: _RunThread = thread, work: Work = work) -> bool:
                if work not in thread.reserved:
                    return False
                thread.reserved.remove(work)
                return True

            try:
                async with asyncio.timeout(limit):
                    await _outlast(ended, withdraw)
            except TimeoutError:
                if ended.done():  # It had begun just in time, or raised this itself.
                    ended.result()
                else:
                    left_out += 1
        return left_out

    def close(self) -> None:
        """Let the threads end when nothing is left to run; what was requested before is still served."""
        self.closed = True
        self.hurry()
        self._end_idle()

    def _end_idle(self) -> None:
        if self._waiting or not self._idle:
            return
        if len(self._idle) == len(self._threads):
            self.bell.silence()
        for thread in self._idle:
            thread.todo.put(None)
            self._threads.remove(thread)
        self._idle.clear()


class LoadPool:
    """Threads for loads, unloads, directory scans and large decodes and encodes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int, name: str = "embedserve-load") -> None:
        self._loop = loop
        self._executor = ThreadPoolExecutor(size, thread_name_prefix=name)

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Run `call(*args)` in a thread. The thread cannot be stopped: cancelling only leaves it alone."""
        return await self._loop.run_in_executor(self._executor, _contained, call, *args)

    async def run_shielded(self, call: Callable[..., T], *args: Any) -> T:
        """As `run`, but a cancelled caller still waits for the thread's end before it is cancelled."""
        work = self._executor.submit(_contained, call, *args)
        return await _outlast(asyncio.wrap_future(work, loop=self._loop), work.cancel)

    def close(self) -> None:
        """Let the threads end after what they run now."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _contained(call: Callable[..., T], *args: Any) -> T:
    try:
        return call(*args)
    except BaseException as error:
        told = _tellable(error)
        if told is error:
            raise
        raise told from error


def _tellable(error: BaseException) -> Exception:
    """What the loop may be told: StopIteration fits in no future, and SystemExit in a task would end the process."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    told = RuntimeError(f"a thread's work ended with {type(error).__name__}: {error}")
    told.__cause__ = error
    return told


async def _outlast(run: asyncio.Future[T], withdraw: Callable[[], bool]) -> T:
    """Await a thread's work; a cancelled caller withdraws it if it has not begun, else still waits for its end."""
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
        run.exception()  # Retrieved, so that asyncio does not report it as lost.
    raise cancelled
