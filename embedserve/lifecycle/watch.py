"""Hints that something changed in some directories, from the operating system's file events.

Called by `source`, which scans on every hint and would find everything without them, only later: on network file
systems and for directories that do not exist there are no events. Knows no model.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from watchfiles import Change

__all__ = ["DirectoryWatch", "WatchTarget"]

logger = logging.getLogger("embedserve")

_STEP_MILLISECONDS = 50  # An event is told when so long nothing else has happened,
_DEBOUNCE_MILLISECONDS = 200  # but at the latest after this.
# How soon a watch that was set is noticed, for the scan of what changed before that.
_TIMEOUT_MILLISECONDS = 100
# Threads at most, each with the directories that were added together; then one takes all.
_MAX_GROUPS = 4
# Seconds that the end waits for threads, which look for it every step; one that is in a hung mount is left.
_CLOSE_SECONDS = 2.0


_POLLED = re.compile(r"fuse|nfs|cifs|smb|9p|virtiofs|ceph|glusterfs|lustre|afs|gpfs|beegfs|davfs")


class WatchTarget(NamedTuple):
    """A directory that exists, and which one it is: a directory that was made anew needs a new watch."""

    path: Path
    device: int
    inode: int


def polled_devices() -> frozenset[int]:
    """The devices (`st_dev`) of mounts whose file events tell of this machine's changes only, or cost a walk over a
    network; blocks. Empty where the system does not list its mounts."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(device for device in map(_polled_device, lines) if device is not None)


def _polled_device(line: str) -> int | None:
    """The device in a line of mountinfo (proc(5)), if it is to be polled."""
    mount, _, file_system = line.partition(" - ")
    fields = mount.split()
    if len(fields) < 3 or _POLLED.match(file_system) is None:
        return None
    major, _, minor = fields[2].partition(":")
    return os.makedev(int(major), int(minor))


class _Group:
    """Directories that one thread watches; the thread sets the watch too, because a sick mount may take long for it."""

    def __init__(
        self, targets: frozenset[WatchTarget], hint: Callable[[], None], complain: Callable[..., None]
    ) -> None:
        self.targets = targets
        self._hint = hint
        self._complain = complain
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._deleted: deque[str] = deque()
        self._telling = False
        self.ended = asyncio.Event()
        self.idle = False  # All of it is polled.
        threading.Thread(target=self._work, name="embedserve-watch", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _work(self) -> None:
        from watchfiles import watch

        polled = polled_devices()
        paths = sorted(target.path for target in self.targets if target.device not in polled)
        if not paths:
            self.idle = True
            return
        try:
            changes = watch(
                *paths,
                watch_filter=self._notice,
                step=_STEP_MILLISECONDS,
                debounce=_DEBOUNCE_MILLISECONDS,
                rust_timeout=_TIMEOUT_MILLISECONDS,
                yield_on_timeout=True,
                stop_event=self._stop,
                ignore_permission_denied=True,  # Else one directory that cannot be watched takes all with it.
            )
            for first, _ in enumerate(changes):
                if not first:  # For what changed before there was a watch on it.
                    self._on_loop(self._hint)
        except Exception as error:
            # No more watches to be had, a directory that went away just now...: the periodic scan finds everything.
            self._on_loop(self._complain, paths, str(error))
        self._on_loop(self.ended.set)

    def _on_loop(self, call: Callable[..., None], *args: object) -> None:
        with suppress(RuntimeError):  # The loop is closed.
            self._loop.call_soon_threadsafe(call, *args)

    def _notice(self, change: Change, path: str) -> bool:
        """Takes the place of watchfiles' filter, which hides some directories; letting nothing through keeps it from
        logging every change in the host's log."""
        if change.name == "deleted":
            self._deleted.append(path)
        if not self._telling:
            self._telling = True
            self._on_loop(self._tell)
        return False

    def _tell(self) -> None:
        """Hint; a watched directory that was removed is forgotten, since one made in its place would not be watched."""
        self._telling = False
        deleted = {self._deleted.popleft() for _ in range(len(self._deleted))}
        self.targets = frozenset(target for target in self.targets if str(target.path) not in deleted)
        self._hint()


class DirectoryWatch:
    """Watches one set of directories at a time, in threads; loop only, where nothing waits for a file system."""

    def __init__(self, hint: Callable[[], None]) -> None:
        self._hint = hint
        self._groups: list[_Group] = []
        self._complaint = ""

    def arm(self, targets: Iterable[WatchTarget]) -> None:
        """Watch these directories; those that are watched already, or where it is still tried, are left alone.

        A hint comes when a new watch is set: changes until then may have gone unnoticed.
        """
        wanted = frozenset(targets)
        self._drop([group for group in self._groups if group.ended.is_set() or not group.targets & wanted])
        new = wanted.difference(*(group.targets for group in self._groups))
        if new and len(self._groups) >= _MAX_GROUPS:
            self._drop(list(self._groups))
            new = wanted
        if new:
            self._groups.append(_Group(new, self._hint, self._complain))

    def _drop(self, groups: list[_Group]) -> None:
        for group in groups:
            group.stop()
            self._groups.remove(group)

    async def aclose(self) -> None:
        """Stop watching."""
        groups = list(self._groups)
        self._drop(groups)
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                for group in groups:
                    if not group.idle:
                        await group.ended.wait()

    def _complain(self, paths: list[Path], problem: str) -> None:
        if problem != self._complaint:
            self._complaint = problem
            logger.info("cannot watch %s (%s); new versions are found by polling", ", ".join(map(str, paths)), problem)
