"""Threads for all slow work but inference: loads, unloads, directory scans, large decodes and encodes.

A call beyond the time limit is left behind in the thread, and the thread is replaced. No thread holds up the end of the
process. The module knows neither model nor directory.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from embedserve.concurrency.threads import outlast, tellable
from embedserve.errors import HungError

__all__ = ["LoadPool", "doing"]

logger = logging.getLogger("embedserve")

T = TypeVar("T")

MAX_STUCK = 8
"""Bound of replaced threads of a pool: each thread costs the memory held by the call, a model in the worst case."""

_here = threading.local()


class _Job:
    """A call, from the queue through a thread to the future; caller and thread may each end the future first."""

    def __init__(self, pool: LoadPool, call: Callable[..., object], args: tuple[object, ...], limit: float) -> None:
        self.pool = pool
        self.call = call
        self.args = args
        self.limit = limit
        self.future: Future[Any] = Future()
        self.late: Callable[[Any], object] | None = None
        self.thread: int | None = None  # Set at the beginning of the call.
        self.what = ""
        self.since = 0.0
        self.ends_at = math.inf
        self.timer: asyncio.TimerHandle | None = None

    def now_does(self, what: str, limit: float) -> None:
        """In the thread: begin a part with a separate limit."""
        self.what, self.since = what, time.monotonic()
        self.ends_at = self.since + min(limit, self.limit)

    def run(self) -> bool:
        """Run the call in a thread; return False for a thread left behind during the call."""
        if not self.future.set_running_or_notify_cancel():
            return True
        self.now_does("", self.limit)
        self.thread = threading.get_ident()
        _here.job = self
        result: object = None
        error: Exception | None = None
        try:
            result = self.call(*self.args)
        except BaseException as raised:
            error = tellable(raised)
        finally:
            _here.job = None
        try:
            if error is None:
                self.future.set_result(result)
            else:
                self.future.set_exception(error)
        except InvalidStateError:
            self._returned_late(result, error)
            return False
        return True

    def _returned_late(self, result: object, error: Exception | None) -> None:
        logger.warning("a call that hung has returned: %s", self.where())
        if error is None and self.late is not None:
            try:
                self.late(result)
            except Exception:
                logger.exception("what a call that hung had made could not be given back")

    def where(self) -> str:
        """Return the current part, and the innermost function of embedserve in the call's stack."""
        frame = sys._current_frames().get(self.thread or 0)
        while frame is not None and not str(frame.f_globals.get("__name__")).startswith("embedserve."):
            frame = frame.f_back
        place = "" if frame is None else f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname}"
        return f"{self.what} ({place})" if self.what and place else self.what or place or repr(self.call)


@contextmanager
def doing(what: str, limit: float) -> Iterator[None]:
    """Name a part of a load thread's work, with a limit in seconds; no effect in further threads.

    A hanging call is named by the part. After the part the limit of the whole call counts anew.
    """
    job: _Job | None = getattr(_here, "job", None)
    if job is None:
        yield
        return
    job.now_does(what, limit)
    job.pool.look_soon(job)
    try:
        yield
    finally:
        job.now_does("", job.limit)


class LoadPool:
    """Threads made on demand and ended by `close`.

    Args:
        loop: The loop of the results.
        size: Largest number of threads, without threads left behind.
        name: Beginning of the threads' names.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int, name: str = "embedserve-load") -> None:
        self.loop = loop
        self._size = size
        self._name = name
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = self._made = self._stuck = 0
        self._closed = False

    def __repr__(self) -> str:
        return f"<LoadPool {self._name}, {self._threads} threads{f', {self._stuck} stuck' * bool(self._stuck)}>"

    @property
    def trouble(self) -> str | None:
        """Why the process should be replaced; None in a healthy process."""
        return f"{self._stuck} load threads hang" if self._stuck > MAX_STUCK else None

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """Run `call(*args)` in a thread. A running thread cannot be stopped: cancelling leaves the thread alone."""
        result: T = await asyncio.wrap_future(self._submit(call, args, math.inf).future, loop=self.loop)
        return result

    async def run_shielded(
        self,
        call: Callable[..., T],
        *args: object,
        limit: float = math.inf,
        late: Callable[[T], object] | None = None,
    ) -> T:
        """As `run`, but a cancelled caller still waits for the thread's end before the cancellation.

        Args:
            call, args: The function to run and the arguments.
            limit: Seconds from the call's beginning to the time of leaving the thread behind.
            late: Called in the thread with the result of a call left behind and returned after all.

        Raises:
            HungError: `limit` or the limit of a part (`doing`) has passed; the call may still go on.
        """
        job = self._submit(call, args, limit)
        job.late = late
        if limit < math.inf:
            job.timer = self.loop.call_later(limit, self._look, job)
        try:
            result: T = await outlast(asyncio.wrap_future(job.future, loop=self.loop), job.future.cancel)
            return result
        finally:
            if job.timer is not None:
                job.timer.cancel()

    def _submit(self, call: Callable[..., object], args: tuple[object, ...], limit: float) -> _Job:
        if self._closed:
            raise RuntimeError(f"the pool {self._name} was closed")
        job = _Job(self, call, args, limit)
        self._jobs.put(job)
        if not self._idle.acquire(blocking=False):
            self._make_thread()
        return job

    def _make_thread(self) -> None:
        if self._threads < self._size and self._stuck <= MAX_STUCK:
            self._threads += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._made}", daemon=True).start()
            self._made += 1

    def _work(self) -> None:
        while (job := self._next()) is not None:
            if not job.run():
                with suppress(RuntimeError):  # The loop is closed.
                    self.loop.call_soon_threadsafe(self._came_back)
                return
            del job

    def _next(self) -> _Job | None:
        try:
            return self._jobs.get_nowait()
        except queue.Empty:
            self._idle.release()
            return self._jobs.get()

    def look_soon(self, job: _Job) -> None:
        """From a thread: report a changed end time of `job`."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._look, job)

    def _look(self, job: _Job) -> None:
        if job.timer is not None:
            job.timer.cancel()
        if job.future.done():
            return
        left = job.limit if job.thread is None else job.ends_at - time.monotonic()
        if left <= 0:
            self._leave_behind(job)
        elif left < math.inf:
            job.timer = self.loop.call_later(left, self._look, job)

    def _leave_behind(self, job: _Job) -> None:
        seconds = time.monotonic() - job.since
        error = HungError(
            f"a step of the load has not ended after {seconds:.0f} s and was left behind in its thread: {job.where()}"
        )
        try:
            job.future.set_exception(error)
        except InvalidStateError:  # The call has just ended.
            return
        self._threads -= 1
        self._stuck += 1
        if self._jobs.qsize():
            self._make_thread()

    def _came_back(self) -> None:
        self._stuck -= 1

    def close(self) -> None:
        """Let the threads end after the present calls; queued calls are cancelled."""
        self._closed = True
        with suppress(queue.Empty):
            while True:
                if (job := self._jobs.get_nowait()) is not None:
                    job.future.cancel()
        for _ in range(self._threads):
            self._jobs.put(None)
