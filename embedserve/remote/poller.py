"""Does something again and again: at an interval, sooner when woken, later while it fails.

`follower` and `root` are driven by it. Knows no store; loop only.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress

from embedserve.remote.errors import StoreError
from embedserve.remote.plan import next_delay

__all__ = ["Poller"]

logger = logging.getLogger("embedserve")


class Poller:
    """One task that runs `round` until it is closed.

    Args:
        round: One round; StoreError means that the store could not be asked.
        interval: Seconds between rounds; infinite for rounds that only come when woken, or until one succeeds.
    """

    def __init__(self, round: Callable[[], Awaitable[None]], interval: float) -> None:
        self._round = round
        self._interval = interval
        self._wake = asyncio.Event()
        self._begun = self._ended = 0
        self._changed: set[asyncio.Future[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._failing_since: float | None = None
        self.failures = 0
        """Rounds that failed in a row."""
        self.error: str | None = None
        """Why the last one failed, or None."""

    def start(self) -> None:
        """Begin with the first round at the next turn of the loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="embedserve-sync")

    def wake(self) -> None:
        """Have a round that begins from now on come at once."""
        self._wake.set()

    def stop(self) -> None:
        """Begin no round and go on with none: what `round` waits for ends in a cancellation."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()

    async def aclose(self) -> None:
        """Stop, and wait for the end; who waits is released."""
        self.stop()
        if self._task is not None:
            await asyncio.wait([self._task])
        self._tell()

    async def settled(self, done: Callable[[], bool]) -> None:
        """Have a round come at once; return when it and as many more as `done()` takes have ended, or failed."""
        self.wake()
        first = self._begun + 1
        while not self._closed and not (self._ended >= first and (self.error or (done() and not self._wake.is_set()))):
            change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._changed.add(change)
            try:
                await change
            finally:
                self._changed.discard(change)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            self._begun += 1
            try:
                await self._round()
                self.failures, self.error = 0, None
            except StoreError as error:
                self.failures, self.error = self.failures + 1, str(error)
            except Exception as error:
                self.failures, self.error = self.failures + 1, f"{type(error).__name__}: {error}"
                logger.exception("syncing failed; it is tried again")
            self._ended = self._begun
            self._tell()
            if not self.failures:
                self._failing_since = None
            elif self._failing_since is None:
                self._failing_since = loop.time()
            failing_for = None if self._failing_since is None else loop.time() - self._failing_since
            delay = next_delay(self._interval, failing_for)
            with suppress(TimeoutError):
                async with asyncio.timeout(None if math.isinf(delay) else delay):
                    await self._wake.wait()

    def _tell(self) -> None:
        changed, self._changed = self._changed, set()
        for change in changed:
            if not change.done():
                change.set_result(None)
