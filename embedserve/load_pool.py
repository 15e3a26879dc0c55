"""Threads for everything slow but inference: loads, unloads, directory scans, large decodes and encodes.

Knows neither model nor directory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from embedserve.threads import outlast, tellable

__all__ = ["LoadPool"]

T = TypeVar("T")


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
        return await outlast(asyncio.wrap_future(work, loop=self._loop), work.cancel)

    def close(self) -> None:
        """Let the threads end after what they run now."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _contained(call: Callable[..., T], *args: Any) -> T:
    try:
        return call(*args)
    except BaseException as error:
        told = tellable(error)
        if told is error:
            raise
        raise told from error
