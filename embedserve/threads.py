"""The only door from the event loop to threads: run threads for inference, load threads for everything slow.

Run threads are few, live as long as the registry and are warmed, because TensorFlow keeps state per thread. A run slot
is asked for before the work is chosen, so that a batch keeps growing while every thread is busy. Knows no model.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeAlias, TypeVar

__all__ = ["LoadPool", "RunPool", "SlotClient"]

T = TypeVar("T")


class SlotClient(Protocol):
    """Something with work for a run thread."""

    def take_work(self) -> tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]] | None:
        """Choose the work now that a thread is free: the call for the thread, and what to do on the loop with its
        result or error. None when there is nothing (any more) to run. Loop only; must not raise."""


Done: TypeAlias = Callable[[Any, BaseException | None], None]
Work: TypeAlias = tuple[Callable[[], Any], Done]


class _RunThread:
    """One run thread and the one place its next work is put."""

    def __init__(self, pool: RunPool, name: str) -> None:
        self._pool = pool
        self.todo: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self.reserved: deque[Work] = deque()  # Work for this thread and no other.
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        call_soon = self._pool.loop.call_soon_threadsafe
        while (work := self.todo.get()) is not None:
            call, done = work
            result: Any = None
            error: BaseException | None = None
            try:
                result = call()
            except BaseException as raised:  # Handed to the loop; a run thread must outlive whatever it ran.
                error = raised
            del call, work
            try:
                call_soon(self._pool.finished, self, done, result, error)
            except RuntimeError:  # The loop was closed under us: nobody is left to tell.
                return
            del done, result, error


class RunPool:
    """A fixed number of run threads handed out as slots, first come first served. Loop only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int, name: str = "embedserve-run") -> None:
        self.loop = loop
        self.size = size
        self._waiting: deque[SlotClient] = deque()
        self._dispatching = False
        self._closed = False
        self._threads = [_RunThread(self, f"{name}-{i}") for i in range(size)]
        # Last in, first out: the thread that ran last has its caches warm.
        self._idle = list(self._threads)

    def __repr__(self) -> str:
        return f"<RunPool {self.busy}/{self.size} busy, {len(self._waiting)} waiting>"

    @property
    def busy(self) -> int:
        """Threads that run something now."""
        return self.size - len(self._idle)

    def request(self, client: SlotClient) -> None:
        """Claim one slot; `client.take_work` is called when one is free, never from within this call.

        Waiting until the next turn of the loop lets every request of this turn join the same batch, at no idle cost.
        """
        self._waiting.append(client)
        if self._idle and not self._dispatching:
            self._dispatching = True
            self.loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatching = False
        while self._idle and self._waiting:
            work = self._waiting.popleft().take_work()
            if work is not None:
                self._idle.pop().todo.put(work)

    def finished(self, thread: _RunThread, done: Done, result: Any, error: BaseException | None) -> None:
        """Called on the loop by a thread whose work has ended."""
        if thread.reserved:
            thread.todo.put(thread.reserved.popleft())
        else:
            self._idle.append(thread)
            if self._closed:
                thread.todo.put(None)
        try:
            done(result, error)
        finally:
            # Not at once: answers go out first, and their callers' next requests join the next batch.
            if self._waiting and self._idle and not self._dispatching:
                self._dispatching = True
                self.loop.call_soon(self._dispatch)

    async def run_in_each_thread(self, call: Callable[[], object]) -> None:
        """Run `call` once in every run thread, one after the other; for warm-up.

        Only one thread at a time is taken from the requests of other models. Raises what `call` raised first.
        """
        for thread in self._threads:
            done: asyncio.Future[None] = self.loop.create_future()

            def finish(_: Any, error: BaseException | None, done: asyncio.Future[None] = done) -> None:
                if done.done():
                    return
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

            if thread in self._idle:
                self._idle.remove(thread)
                thread.todo.put((call, finish))
            else:
                thread.reserved.append((call, finish))
            await done

    def close(self) -> None:
        """Let each thread end after what it runs now; nothing may be requested any more."""
        self._closed = True
        for thread in self._idle:
            thread.todo.put(None)


class LoadPool:
    """Threads for loads, unloads, directory scans and large decodes and encodes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int, name: str = "embedserve-load") -> None:
        self._loop = loop
        self._executor = ThreadPoolExecutor(size, thread_name_prefix=name)

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Run `call(*args)` in a thread. The thread cannot be stopped: cancelling only leaves it alone."""
        return await self._loop.run_in_executor(self._executor, call, *args)

    async def run_shielded(self, call: Callable[..., T], *args: Any) -> T:
        """As `run`, but a cancelled caller still waits for the thread's end before it is cancelled."""
        run = asyncio.ensure_future(self._loop.run_in_executor(self._executor, call, *args))
        try:
            return await asyncio.shield(run)
        except asyncio.CancelledError:
            await asyncio.wait([run])
            raise

    def close(self) -> None:
        """Let the threads end after what they run now."""
        self._executor.shutdown(wait=False, cancel_futures=True)
