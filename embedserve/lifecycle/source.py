"""FileSystemSource: keeps telling its listener which version directories should be served.

File events make a scan come sooner, and a periodic scan finds what they miss; what is aspired follows from the
directories alone (`scan`). Scans run in a load thread, everything else on the registry's loop. Knows no loader.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from embedserve.concurrency.load_pool import LoadPool, doing
from embedserve.config import AbsentVersions, ModelConfig, RegistryOptions, VersionPolicy
from embedserve.errors import HungError
from embedserve.lifecycle.scan import Child, Memory, ModelScan, Scan, VersionDirectory, scan
from embedserve.lifecycle.watch import DirectoryWatch, WatchTarget, polled_devices
from embedserve.saved_model.files.completeness import Look, check, look

__all__ = ["FileSystemSource", "SourceListener", "VersionDirectory"]

logger = logging.getLogger("embedserve")

# Seconds for which a directory that goes on changing counts as a version that is about to be whole.
COPY_PATIENCE = 10.0

# Seconds that the look at one model may take; then it is left behind in its thread, and the others are looked at.
LOOK_SECONDS = 10.0


class SourceListener(Protocol):
    """Whom a source tells; every call comes on the loop, between two turns of it, and must not block."""

    def on_models(self, configs: Mapping[str, ModelConfig]) -> None:
        """The models changed: all of them, given by name or discovered. Nothing more is told of one left out."""

    def on_aspired(self, name: str, aspired: Mapping[int, VersionDirectory]) -> None:
        """The versions of a model that should be served changed: all of them. Leaving one out means unload it."""

    def on_waiting(self, name: str, reasons: Mapping[int, str]) -> None:
        """The versions that the policy wants but that are not whole and quiet yet changed: all of them, with why."""


class _FileSystem:
    """The `Disk` of one real scan.

    Args:
        hung: Models of which an earlier look has not come back.
    """

    def __init__(self, hung: Iterable[str] = ()) -> None:
        self._hung = frozenset(hung)
        self.current = ""  # The model that is being looked at.

    @contextmanager
    def part(self, model: str) -> Iterator[None]:
        if model in self._hung:
            raise OSError(errno.ETIMEDOUT, "an earlier look at its files has not come back", model)
        self.current = model
        with doing(f"looking at the files of {model or 'the models directory'}", LOOK_SECONDS):
            yield

    def time(self) -> float:
        return time.monotonic()

    def children(self, path: Path) -> Sequence[Child]:
        return self.listing(path)[1]

    def listing(self, path: Path) -> tuple[int, Sequence[Child]]:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        try:
            with os.scandir(directory) as entries:
                kinds = [(entry.name, _is_directory(entry)) for entry in entries]
            device = os.fstat(directory).st_dev
        finally:
            os.close(directory)
        return device, [Child(name, is_directory) for name, is_directory in kinds if is_directory is not None]

    def look(self, path: Path) -> Look:
        return look(path)

    def check(self, path: Path) -> str | None:
        return check(path)


def _is_directory(entry: os.DirEntry[str]) -> bool | None:
    """None for a dangling link. What cannot be looked at is there, so that nobody takes it for deleted."""
    try:
        if entry.is_dir():
            return True
        return False if entry.is_file() or not entry.is_symlink() else None
    except OSError:
        return True


@dataclass
class _Waiter:
    """Somebody who wants a scan: answered by one that begins at `quiet_at` or later, or that leaves nothing due."""

    done: asyncio.Future[None]
    quiet_at: float = math.inf


class FileSystemSource:
    """Follows the models given by name, and those discovered under `root`.

    Args:
        options: `poll_interval`, `settle` and `watch` are used.
        load_pool: Where scans run.
        root: Directory of model directories, or None to discover nothing.
        listener: Whom to tell.
    """

    def __init__(
        self, options: RegistryOptions, load_pool: LoadPool, root: Path | None, listener: SourceListener
    ) -> None:
        self._options = options
        self._load_pool = load_pool
        self._root = root
        self._listener = listener
        self._configured: dict[str, ModelConfig] = {}
        self._policies: dict[str, VersionPolicy] = {}
        self._epoch = 0  # Counts what was asked for; a scan that began before the last change is thrown away.
        self._last = Scan(Memory(), {}, {})
        self._hung: dict[str, _FileSystem] = {}  # By model ("" for the root): the scan that has not come back.
        self._loop = load_pool.loop
        self._coming: dict[str, float] = {}
        self._noticed: set[str] = set()
        self._waiters: list[_Waiter] = []
        self._wake = asyncio.Event()
        self._watch = DirectoryWatch(self._wake.set)
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "watching" if self._task is not None and not self._task.done() else "stopped"
        return f"<FileSystemSource {self._root or 'no root'}, {len(self._last.configs)} models, {state}>"

    @property
    def diagnosis(self) -> str | None:
        """Why the last scan discovered no model under the root and what to do, or None."""
        return self._last.diagnosis

    @property
    def misused(self) -> bool:
        """Whether the root is not there, or holds something else than models; an empty one is merely early."""
        return self._last.misused

    def problem(self, name: str) -> str | None:
        """What the last scan found wrong with a model's base path, or None."""
        model = self._last.models.get(name)
        return None if model is None else model.problem

    def coming(self, name: str) -> bool:
        """Whether a version that is wanted has been changing, but for no longer than a copy may take."""
        since = self._coming.get(name)
        return since is not None and time.monotonic() < since + self._options.settle + COPY_PATIENCE

    def found(self, name: str) -> Mapping[int, Path]:
        """Every version directory of a model that the last scan saw, whole or not, wanted or not."""
        model = self._last.models.get(name)
        return MappingProxyType({}) if model is None else model.found

    def set_models(self, models: Iterable[ModelConfig]) -> None:
        """Follow exactly these models, and the discovered ones, from the next scan on, which comes at once.

        Policies set by `set_policy` are forgotten.
        """
        self._configured = {config.name: config for config in models}
        self._policies.clear()
        self._changed()

    def set_policy(self, name: str, policy: VersionPolicy) -> None:
        """Choose versions of one model by this policy, not its own, from the next scan on, which comes at once."""
        self._policies[name] = policy
        self._changed()

    def _changed(self) -> None:
        self._epoch += 1
        self._wake.set()

    async def start(self) -> None:
        """Go on by itself until `aclose`; returns when the listener has been told of a first scan."""
        self._task = asyncio.create_task(self._run(), name="embedserve-source")
        await self._scanned(_Waiter(asyncio.get_running_loop().create_future(), -math.inf))

    async def scan_now(self) -> None:
        """Scan, and return when the listener has been told.

        Directories that were complete before the call are taken when it returns: where one has to be watched for the
        settle window first, this waits so long, but no longer if it keeps changing.
        """
        if self._closed:
            return
        if self._task is None or self._task.done():
            await self._scan()
        else:
            await self._scanned(_Waiter(asyncio.get_running_loop().create_future()))

    def hint(self) -> None:
        """Scan soon."""
        self._wake.set()

    async def _scanned(self, waiter: _Waiter) -> None:
        self._waiters.append(waiter)
        self._wake.set()
        await waiter.done

    async def aclose(self) -> None:
        """Stop; the listener is told nothing any more."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self._watch.aclose()
        self._answer(list(self._waiters), math.inf)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            waiting = list(self._waiters)
            begin = time.monotonic()
            await self._scan()
            self._answer(waiting, begin)
            await self._pause()

    def _answer(self, waiting: Sequence[_Waiter], begin: float) -> None:
        """Release those for whom a scan that began at `begin` was late enough; the rest gets one settle window more."""
        for waiter in waiting:
            if self._last.due is None or begin >= waiter.quiet_at:
                self._waiters.remove(waiter)
                if not waiter.done.done():
                    waiter.done.set_result(None)
            else:
                waiter.quiet_at = min(waiter.quiet_at, time.monotonic() + self._options.settle)

    async def _pause(self) -> None:
        """Wait for a hint, for the end of a settle window or for the next regular scan, whichever comes first."""
        now = time.monotonic()
        moments = [now + self._options.poll_interval, *(waiter.quiet_at for waiter in self._waiters)]
        if self._last.due is not None:
            moments.append(self._last.due)
        # A timer may fire a little early, and a look that comes early has to be repeated.
        delay = max(0.0, min(moments) - now) + 0.001
        with suppress(TimeoutError):
            async with asyncio.timeout(None if math.isinf(delay) else delay):
                await self._wake.wait()

    async def _scan(self) -> None:
        """Scan and tell. Whatever goes wrong is logged: the host must not fail over it, and the next scan comes."""
        try:
            while True:
                epoch = self._epoch
                disk = _FileSystem(self._hung)
                scanning = self._load_pool.run_shielded(
                    _scan_in_thread,
                    disk,
                    self._last.memory,
                    dict(self._configured),
                    dict(self._policies),
                    self._root,
                    self._options.settle,
                    self._options.absent_versions,
                    late=partial(self._came_back_soon, disk),
                )
                try:
                    result, targets = await scanning
                except HungError as error:
                    self._hung[disk.current] = disk
                    logger.warning("%s; the other models are looked at without it", error)
                    continue
                if epoch == self._epoch:
                    break
            self._tell(result)
            if self._options.watch:
                self._watch.arm(targets)
        except Exception:
            logger.exception(
                "scanning for model versions failed; it is tried again in %g s", self._options.poll_interval
            )
            self._last = replace(self._last, due=None)

    def _came_back_soon(self, disk: _FileSystem, result: object) -> None:
        """In the thread of a scan that was left behind and has ended."""
        with suppress(RuntimeError):  # The loop is closed.
            self._loop.call_soon_threadsafe(self._came_back, disk)

    def _came_back(self, disk: _FileSystem) -> None:
        self._hung = {model: other for model, other in self._hung.items() if other is not disk}
        self._wake.set()

    def _tell(self, result: Scan) -> None:
        before, self._last = self._last, result
        now = time.monotonic()
        self._coming = {
            name: self._coming.get(name, now) for name, model in result.models.items() if model.due is not None
        }
        for notice in result.notices:
            if notice not in self._noticed:
                logger.warning("%s", notice)
        self._noticed = set(result.notices)
        for name in before.configs.keys() - result.configs.keys():
            self._policies.pop(name, None)  # One that comes back under this name is another model.
        if result.configs != before.configs:
            self._call(self._listener.on_models, result.configs)
        for name, model in result.models.items():
            self._tell_model(name, before.models.get(name), model)

    def _tell_model(self, name: str, before: ModelScan | None, model: ModelScan) -> None:
        aspired = model.memory.aspired
        if aspired is not None and (before is None or before.memory.aspired != aspired):
            self._call(self._listener.on_aspired, name, MappingProxyType(dict(aspired)))
        if model.waiting != (before.waiting if before is not None else {}):
            self._call(self._listener.on_waiting, name, MappingProxyType(dict(model.waiting)))

    def _call(self, callback: Callable[..., None], *args: object) -> None:
        try:
            callback(*args)
        except Exception:
            logger.exception("%s failed", getattr(callback, "__qualname__", callback))


def _scan_in_thread(
    disk: _FileSystem,
    memory: Memory,
    configured: Mapping[str, ModelConfig],
    policies: Mapping[str, VersionPolicy],
    root: Path | None,
    settle: float,
    absent: AbsentVersions,
) -> tuple[Scan, list[WatchTarget]]:
    result = scan(memory, configured, policies, root, disk, settle, absent)
    paths = {config.directory for config in result.configs.values()}
    if root is not None:
        paths.add(root)
    targets = [target for target in map(_watch_target, sorted(_outermost(paths))) if target is not None]
    polled = polled_devices()
    return result, [target for target in targets if target.device not in polled]


def _outermost(paths: set[Path]) -> set[Path]:
    return {path for path in paths if paths.isdisjoint(path.parents)}


def _watch_target(path: Path) -> WatchTarget | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return WatchTarget(path, status.st_dev, status.st_ino)
