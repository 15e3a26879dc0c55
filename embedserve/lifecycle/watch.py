"""Hints that something changed below some directories, from the operating system's file events.

Called by `source`, which scans on every hint and would find everything without them, only later: on network file
systems and for directories that do not exist there are no events. Knows no model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from watchfiles import Change

__all__ = ["DirectoryWatch", "WatchTarget"]

logger = logging.getLogger("embedserve")

_STEP_MILLISECONDS = 50  # An event is told when so long nothing else has happened,
_DEBOUNCE_MILLISECONDS = 200  # but at the latest after this.


class WatchTarget(NamedTuple):
    """A directory that exists, and which one it is: a directory that was made anew needs a new watch."""

    path: Path
    device: int
    inode: int


class DirectoryWatch:
    """Watches one set of directories at a time, in one task; loop only."""

    def __init__(self, hint: Callable[[], None]) -> None:
        self._hint = hint
        self._targets: frozenset[WatchTarget] = frozenset()
        self._task: asyncio.Task[None] | None = None
        self._stale = False  # A watched directory was removed: one made in its place would not be watched.
        self._complaint = ""

    async def arm(self, targets: Iterable[WatchTarget]) -> bool:
        """Watch exactly these directories; does nothing while they are watched already.

        Returns:
            Whether a new watch was set: changes until now may have gone unnoticed.
        """
        wanted = frozenset(targets)
        if wanted == self._targets and not self._stale and (not wanted or (self._task and not self._task.done())):
            return False
        await self.aclose()
        self._targets = wanted
        self._stale = False
        if not wanted:
            return False
        self._task = asyncio.create_task(self._watch(sorted(target.path for target in wanted)), name="embedserve-watch")
        await asyncio.sleep(0)  # The task's first step sets the watch, or ends because it cannot.
        return not self._task.done()

    async def aclose(self) -> None:
        """Stop watching."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _watch(self, paths: list[Path]) -> None:
        try:
            from watchfiles import awatch

            async for _ in awatch(
                *paths,
                watch_filter=self._notice,
                step=_STEP_MILLISECONDS,
                debounce=_DEBOUNCE_MILLISECONDS,
                ignore_permission_denied=True,  # Else one directory that cannot be watched takes all with it.
            ):
                pass
        except Exception as error:
            # No more watches to be had, a directory that went away just now...: the periodic scan finds everything.
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.info(
                    "cannot watch %s (%s); new versions are found by polling", ", ".join(map(str, paths)), error
                )

    def _notice(self, change: Change, path: str) -> bool:
        """Takes the place of watchfiles' filter, which hides some directories; letting nothing through keeps it from
        logging every change in the host's log."""
        if change.name == "deleted" and any(path == str(target.path) for target in self._targets):
            self._stale = True
        self._hint()
        return False
