"""Hints from the operating system's file events that directories have changed.

Hints only make scans come sooner: network file systems and missing directories give no events. Knows no model.
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

_STEP_MILLISECONDS = 50  # An event is reported after a quiet time of 50 ms,
_DEBOUNCE_MILLISECONDS = 200  # but after 200 ms at the latest.
# How soon a new watch is noticed. The notice starts a scan for changes from before the watch.
_TIMEOUT_MILLISECONDS = 100
# Threads at most; each thread watches the directories that were added together. A further group replaces all groups by
# a single group.
_MAX_GROUPS = 4
# Seconds that closing waits for threads. Threads check for the end every step; a thread in a hung mount is left.
_CLOSE_SECONDS = 2.0


# File system types whose mounts are polled, as mountinfo names the types: network mounts and FUSE.
_POLLED = re.compile(r"fuse|nfs|cifs|smb|9p|virtiofs|ceph|glusterfs|lustre|afs|gpfs|beegfs|davfs")


class WatchTarget(NamedTuple):
    """An existing directory with its identity: a directory that was made anew needs a new watch."""

    path: Path
    device: int
    inode: int


def polled_devices() -> frozenset[int]:
    """Find the devices (`st_dev`) of mounts that must be polled; blocks.

    File events of network mounts tell of changes on the local machine only, or cost a walk over the network.

    Returns:
        The devices; empty where the system does not list mounts.
    """
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(device for device in map(_polled_device, lines) if device is not None)


def _polled_device(line: str) -> int | None:
    """Parse the device from a line of mountinfo (proc(5)), if the device must be polled."""
    mount, _, file_system = line.partition(" - ")
    fields = mount.split()
    if len(fields) < 3 or _POLLED.match(file_system) is None:
        return None
    major, _, minor = fields[2].partition(":")
    return os.makedev(int(major), int(minor))


class _Group:
    """Directories that one thread watches; the thread also sets the watch, because a sick mount may delay the call."""

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
        self.idle = False  # All directories of the group are polled.
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
                ignore_permission_denied=True,  # Otherwise an unreadable directory would end the whole watch.
            )
            for first, _ in enumerate(changes):
                if not first:  # For changes from before the watch.
                    self._on_loop(self._hint)
        except Exception as error:
            # No more watches are available, or a directory has just gone away: the periodic scan finds the changes.
            self._on_loop(self._complain, paths, str(error))
        self._on_loop(self.ended.set)

    def _on_loop(self, call: Callable[..., None], *args: object) -> None:
        with suppress(RuntimeError):  # The loop is closed.
            self._loop.call_soon_threadsafe(call, *args)

    def _notice(self, change: Change, path: str) -> bool:
        """Take the place of watchfiles' filter, because the default filter hides some directories.

        False for every change keeps watchfiles from logging each change in the host's log.
        """
        if change.name == "deleted":
            self._deleted.append(path)
        if not self._telling:
            self._telling = True
            self._on_loop(self._tell)
        return False

    def _tell(self) -> None:
        """Give a hint, and forget removed directories: a directory made in the same place needs a new watch."""
        self._telling = False
        deleted = {self._deleted.popleft() for _ in range(len(self._deleted))}
        self.targets = frozenset(target for target in self.targets if str(target.path) not in deleted)
        self._hint()


class DirectoryWatch:
    """Watches one set of directories at a time, in threads; loop only, and no call waits for a file system."""

    def __init__(self, hint: Callable[[], None]) -> None:
        self._hint = hint
        self._groups: list[_Group] = []
        self._complaint = ""

    def arm(self, targets: Iterable[WatchTarget]) -> None:
        """Watch the given directories; running or starting watches of the same directories are left alone.

        A hint comes when a new watch is set, because changes until then may have gone unnoticed.
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
