"""A few threads for looks at directories, side by side: a look that hangs keeps a thread and delays no other look.

Knows neither models nor directories, and sets no time limit on a look.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

__all__ = ["MOST_THREADS", "Look", "LookThreads", "came_back", "excused"]

# Threads of a registry, hung threads included. When all threads hang, further looks wait for a thread to come back.
MOST_THREADS = 16
# Seconds for which looks wait behind a look under way before another thread starts. Python's threads share a lock with
# the event loop, so a healthy disk gets a single thread.
_PATIENCE = 0.05
# Seconds between two deliveries of results while more looks are waiting.
_DELIVERY_INTERVAL = 0.005

_here = threading.local()


class Look:
    """One call: asked for on the loop, made in a thread, delivered on the loop.

    Attributes:
        call: The function to run.
        begun: Start in the thread, in monotonic seconds; None while the look waits for a thread.
        since: Last sign of life in monotonic seconds: the request, the start or the latest `came_back`.
    """

    def __init__(self, call: Callable[[], object]) -> None:
        self.call = call
        self.since = time.monotonic()
        self.begun: float | None = None

    def __repr__(self) -> str:
        return f"<Look of {self.call!r}, {'waiting' if self.begun is None else 'under way'}>"


def came_back() -> None:
    """Note from inside a look that a part is done; the note tells a slow disk from a hung disk."""
    look: Look | None = getattr(_here, "look", None)
    if look is not None:
        look.since = time.monotonic()


@contextmanager
def excused(seconds: float) -> Iterator[None]:
    """Let a part of a look take `seconds` longer, because the part does not wait for the disk."""
    look: Look | None = getattr(_here, "look", None)
    if look is not None:
        look.since = time.monotonic() + seconds
    try:
        yield
    finally:
        came_back()


class LookThreads:
    """Threads that exist only while looks are waiting; every method except the threads' own runs on the loop.

    Args:
        told: Called on the loop with each finished look, and the look's result or exception.
    """

    def __init__(self, told: Callable[[Look, object], None]) -> None:
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()  # Held for a few instructions.
        self._waiting: deque[Look] = deque()
        self._under_way: set[Look] = set()
        self._threads = 0
        self._results: list[tuple[Look, object]] = []
        self._delivered = 0.0
        self._growing: asyncio.TimerHandle | None = None
        self._came_back = asyncio.Event()
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"<LookThreads, {len(self._under_way)} under way in {self._threads} threads, {len(self._waiting)} waiting>"
        )

    def ask(self, call: Callable[[], object]) -> Look:
        """Have `call` run in a thread, soon."""
        look = Look(call)
        with self._lock:
            self._waiting.append(look)
        self._grow()
        return look

    async def aclose(self, patience: float) -> None:
        """Begin and deliver no more looks; wait at most `patience` seconds for looks under way."""
        self._closed = True
        with self._lock:
            self._waiting.clear()
        if self._growing is not None:
            self._growing.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                while self._under_way:
                    self._came_back.clear()
                    await self._came_back.wait()

    def _grow(self) -> None:
        """Start a thread if waiting looks have no thread that is soon free; check again while looks wait."""
        now = time.monotonic()
        with self._lock:
            begun = [look.begun or now for look in self._under_way]
            soon_free = self._threads > len(begun) or any(now - at < _PATIENCE for at in begun)
            more = bool(self._waiting) and not soon_free and self._threads < MOST_THREADS
            self._threads += more
            waiting = bool(self._waiting)
        if more:
            threading.Thread(target=self._work, name="embedserve-scan", daemon=True).start()
        if waiting and (self._growing is None or self._growing.when() <= self._loop.time()):
            self._growing = self._loop.call_later(_PATIENCE, self._grow)

    def _work(self) -> None:
        """Run in a thread: make looks until none waits."""
        while (look := self._next()) is not None:
            result: object
            _here.look = look
            try:
                result = look.call()
            except BaseException as error:
                result = error
            with self._lock:
                self._under_way.discard(look)
                self._results.append((look, result))
                first = len(self._results) == 1
            if first:
                with suppress(RuntimeError):  # The loop is closed.
                    self._loop.call_soon_threadsafe(self._deliver_soon)

    def _next(self) -> Look | None:
        with self._lock:
            if not self._waiting:
                self._threads -= 1
                return None
            look = self._waiting.popleft()
            look.begun = look.since = time.monotonic()
            self._under_way.add(look)
            return look

    def _deliver_soon(self) -> None:
        at = self._delivered + _DELIVERY_INTERVAL
        if self._closed or at <= self._loop.time():
            self._deliver()
        else:
            self._loop.call_at(at, self._deliver)

    def _deliver(self) -> None:
        self._delivered = self._loop.time()
        with self._lock:
            results, self._results = self._results, []
        self._came_back.set()
        for look, result in results:
            if not self._closed:
                self._told(look, result)
