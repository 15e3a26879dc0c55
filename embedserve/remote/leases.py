"""Counts the uses of cached versions: used versions stay, unwanted and unused versions go.

All followers of a registry share the leases. A version is wanted from `take` until the model's next set of versions. A
version is in use until the registry has unloaded the version. Loop only; threads touch files and locks.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from embedserve.concurrency.load_pool import LoadPool
from embedserve.remote.cache import Cache
from embedserve.remote.lock import Lock
from embedserve.saved_model.files.completeness import Fingerprint

__all__ = ["Leases"]

# Seconds between checks whether an unwanted version is still loaded.
LOOK_AGAIN = 1.0


class Leases:
    """The versions that a registry has taken from a cache.

    Args:
        cache: The place of the versions.
        disk: Threads.
        in_use: Paths of the version directories that are loaded, or being loaded or unloaded.
    """

    def __init__(self, cache: Cache, disk: LoadPool, in_use: Callable[[], Collection[str]]) -> None:
        self._cache = cache
        self._disk = disk
        self._in_use = in_use
        self._locks: dict[Path, Lock] = {}
        self._wanted: dict[str, set[Path]] = {}
        self._fresh: dict[str, set[Path]] = {}
        self._unwanted: set[Path] = set()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Leases of {len(self._locks)} versions, {len(self._unwanted)} to go>"

    def start(self) -> None:
        """Begin to tidy up, unless already begun."""
        self._task = self._task or asyncio.get_running_loop().create_task(self._tidy(), name="embedserve-leases")

    def put(self, model: str, path: Path, lock: Lock) -> None:
        """Keep a version that was just fetched for a model, under the fetch's lock."""
        self._fresh.setdefault(model, set()).add(path)
        self._unwanted.discard(path)
        self._locks[path] = lock

    async def take(self, model: str, path: Path) -> Fingerprint | None:
        """Keep a whole version for a model.

        Returns:
            The files' fingerprint; None if the version is incomplete or gone.
        """
        self._wanted.setdefault(model, set()).add(path)
        self._fresh.get(model, set()).discard(path)
        self._unwanted.discard(path)
        taken = await self._disk.run_shielded(self._cache.take, path)
        if taken is None:
            return None
        self._locks[path], fingerprint = taken
        return fingerprint

    def keep(self, model: str, paths: Iterable[Path]) -> None:
        """Want exactly the given versions for a model, and versions fetched since the choice."""
        self._wanted[model] = set(paths)
        self._changed.set()

    def discard(self, model: str, paths: Iterable[Path], *, remove: bool = True) -> None:
        """Give up fetched versions of a model; remove the versions when no model wants or uses the files."""
        unwanted = set(paths)
        self._fresh[model] = self._fresh.get(model, set()) - unwanted
        if remove:
            self._unwanted |= unwanted
        self._changed.set()

    def _all_wanted(self) -> set[Path]:
        return {path for wanted in (self._wanted, self._fresh) for paths in wanted.values() for path in paths}

    async def aclose(self) -> None:
        """Stop tidying up. Taken versions are still loaded and stay until `release`."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def release(self) -> None:
        """Let go of every version."""
        while self._locks:
            self._locks.popitem()[1].release()

    async def _tidy(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            while await self._tidy_once():  # noqa: ASYNC110 - nobody tells when a version has been unloaded.
                await asyncio.sleep(LOOK_AGAIN)

    async def _tidy_once(self) -> bool:
        """Let go of unused versions; return whether an unwanted version is still in use."""
        used = {*map(Path, self._in_use()), *self._all_wanted()}
        locks = {path: self._locks.pop(path) for path in self._locks.keys() - used}
        going = self._unwanted - used
        self._unwanted -= going
        await self._disk.run_shielded(_let_go, self._cache, locks, going)
        return bool((self._locks.keys() | self._unwanted) - self._all_wanted())


def _let_go(cache: Cache, locks: Mapping[Path, Lock], paths: Iterable[Path]) -> None:
    for path, lock in locks.items():
        with suppress(OSError):
            os.utime(path)  # The end of the last use.
        lock.release()
    for path in paths:
        cache.remove(path)
