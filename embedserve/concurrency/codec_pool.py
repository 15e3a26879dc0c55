"""Threads for large decodes and encodes: few at once, unless some calls take long. The module knows no format."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from embedserve.concurrency.load_pool import LoadPool

__all__ = ["CHECK_EVERY", "AbandonedError", "CodecPool", "check_wanted"]

CHECK_EVERY = 4096
"""Values that long work handles between two calls of `check_wanted`: a fraction of a millisecond."""

T = TypeVar("T")


class AbandonedError(Exception):
    """The work of a thread was given up: no caller waits for the result."""


class _Job:
    """A call for a thread, with a mark for an absent caller."""

    __slots__ = ("abandoned", "call")

    def __init__(self, call: Callable[..., object]) -> None:
        self.call = call
        self.abandoned = False

    def run(self, *args: object) -> Any:
        _here.job = self
        try:
            return self.call(*args)
        finally:
            _here.job = None


_here = threading.local()


def check_wanted() -> None:
    """End the long work of a pool's thread after the caller's cancellation. No effect in further threads.

    Raises:
        AbandonedError: No caller waits.
    """
    job = getattr(_here, "job", None)
    if job is not None and job.abandoned:
        raise AbandonedError


class CodecPool:
    """A few turns for many threads: a call beyond `patience` seconds gives the turn to the next call.

    A few slow bodies therefore hold up no request.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, at_once: int = 2, most: int = 16, *, patience: float = 0.5
    ) -> None:
        self._loop = loop
        self._turns = asyncio.Semaphore(at_once)
        self._patience = patience
        self._pool = LoadPool(loop, most, "embedserve-codec")

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """Run `call(*args)` in a thread.

        A cancelled caller leaves at once. The thread goes on, up to the next `check_wanted` of the call.
        """
        await self._turns.acquire()
        mine = [True]

        def give_turn() -> None:
            if mine:
                mine.clear()
                self._turns.release()

        slow = self._loop.call_later(self._patience, give_turn)
        job = _Job(call)
        try:
            result: T = await self._pool.run(job.run, *args)
        except asyncio.CancelledError:
            job.abandoned = True
            raise
        finally:
            slow.cancel()
            give_turn()
        return result

    def close(self) -> None:
        """Let the threads end after the present calls."""
        self._pool.close()
