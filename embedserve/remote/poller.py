"""Repeats a coroutine: at an interval, sooner after a wake-up, later during failures.

Knows no store; loop only.
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
    """A task that runs `round` until the close.

    Args:
        round: A round; StoreError means an unreachable store.
        interval: Seconds between rounds; infinite for rounds that come only on wake-ups, or until a round succeeds.
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
        """Failed rounds in a row."""
        self.error: str | None = None
        """The reason of the last round's failure, or None."""

    def start(self) -> None:
        """Begin with the first round at the next turn of the loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="embedserve-sync")

    def wake(self) -> None:
        """Have a new round come at once."""
        self._wake.set()

    def stop(self) -> None:
        """Begin no more rounds, and cancel a running round."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()

    async def aclose(self) -> None:
        """Stop, wait for the end, and release the waiters of `settled`."""
        self.stop()
        if self._task is not None:
            await asyncio.wait([self._task])
        self._tell()

    async def settled(self, done: Callable[[], bool]) -> None:
        """Have a round come at once; return after a failed round, or after rounds until `done()` holds."""
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
