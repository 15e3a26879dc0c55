"""Waiting for a condition: every change asks the condition again. Loop only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Changes"]


class Changes:
    """Wakes tasks that wait for a condition; `notify` reports a change."""

    def __init__(self) -> None:
        self._watchers: set[asyncio.Future[None]] = set()

    def __repr__(self) -> str:
        return f"<Changes watched by {len(self._watchers)}>"

    def notify(self) -> None:
        """Wake every waiting task."""
        watchers, self._watchers = self._watchers, set()
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    async def next(self) -> None:
        """Wait for a change."""
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.add(watcher)
        try:
            await watcher
        finally:
            self._watchers.discard(watcher)

    async def wait_until(self, condition: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `condition()` holds.

        Returns:
            The condition's last answer: False if the condition does not hold when `timeout` seconds are over.
        """
        try:
            async with asyncio.timeout(timeout):
                while not condition():
                    await self.next()
        except TimeoutError:
            return condition()
        return True
