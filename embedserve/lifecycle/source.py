"""FileSystemSource: keeps telling a listener the version directories to serve.

from typing import Any
File events make a look come sooner, and regular looks find missed changes. The aspired versions follow from the
directories alone (`scan`). Threads look at the root and at every model separately (`looks`); all other work happens on
the registry's loop. Knows no loader.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from embedserve.config import ModelConfig, RegistryOptions, VersionPolicy
from embedserve.lifecycle.file_system import FileSystem
from embedserve.lifecycle.looks import MOST_THREADS, Look, LookThreads
from embedserve.lifecycle.scan import (
    ModelMemory,
    ModelScan,
    RootMemory,
    RootScan,
    VersionDirectory,
    base_path_problem,
    diagnose,
    scan_model,
    scan_root,
)
from embedserve.lifecycle.source_protocol import SourceListener, StoreStatistics
from embedserve.lifecycle.watch import DirectoryWatch, WatchTarget

__all__ = ["FileSystemSource", "VersionDirectory"]

logger = logging.getLogger("embedserve")

# Seconds for which a directory that goes on changing counts as a version on the way.
COPY_PATIENCE = 10.0

# Seconds without change after which misplaced contents end the wait for a version. Exporting programs write into a
# directory of another name first, and archives are unpacked beside the archive.
MOVE_PATIENCE = 2.0

# Seconds without progress after which a look counts as hung. The source then logs the directory, stops waiting, and
# leaves the directory alone until the look comes back.
LOOK_SECONDS = 10.0

# Seconds that a start waits for first looks, and the close for looks under way.
START_SECONDS = 5.0
CLOSE_SECONDS = 2.0

# After a slow look, a directory rests for `_REST` times the look's duration, even if `poll_interval` is shorter.
_REST = 4.0


class _Part:
    """A directory with separate looks: the root, or a model's base path.

    Attributes:
        path: The directory.
        config: The model; None for the root.
        scan: The findings of the last finished look.
        asked: When a look must begin at the latest, in monotonic seconds.
        regular: When the next regular look begins, in monotonic seconds.
        hung: The message about an overdue look, until the look comes back.
        epoch: Counts changes of the configuration; a look from before the last change is thrown away.
    """

    def __init__(self, path: Path, config: ModelConfig | None = None) -> None:
        self.path = path
        self.config = config
        self.policy: VersionPolicy | None = None if config is None else config.version_policy
        self.memory = ModelMemory()
        self.scan: ModelScan | None = None
        self.asked = -math.inf
        self.regular = math.inf
        self.due: float | None = None
        self.since: float | None = None  # When a wanted version began to change.
        self.misplaced: float | None = None  # When misplaced contents were first seen.
        self.hung: str | None = None
        self.epoch = 0
        self.target: WatchTarget | None = None
        self.noticed: frozenset[str] = frozenset()
        self.trouble: str | None = None

    @property
    def key(self) -> tuple[bool, Path]:
        """The identity of a look; a hung directory is left alone, whatever model is configured for the directory."""
        return self.config is None, self.path

    def ask(self, at: float = -math.inf) -> None:
        """Have a look begin at the time `at`."""
        self.asked = min(self.asked, at)


class _Waiter:
    """A task that waits for looks at some parts.

    A part is done after a look from `quiet_at` on, or after a look without a due version.
    """

    def __init__(self, parts: Iterable[_Part], names: Collection[str] | None, quiet_at: float = math.inf) -> None:
        self.names = names
        self.since = time.monotonic()
        self.quiet_at = dict.fromkeys(parts, quiet_at)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class FileSystemSource:
    """Follows the models given by name, and the models discovered under `root`.

    Args:
        options: The source reads `poll_interval`, `settle`, `watch` and `absent_versions`.
        root: Directory of model directories, or None to discover no models.
        listener: Receives the reports.
    """

    def __init__(self, options: RegistryOptions, root: Path | None, listener: SourceListener) -> None:
        self._options = options
        self._listener = listener
        self._disk = FileSystem()
        self._configured: dict[str, ModelConfig] = {}
        self._policies: dict[str, VersionPolicy] = {}
        self._discovered: dict[str, ModelConfig] = {}
        self._parts: dict[str, _Part] = {}
        self._root = None if root is None else _Part(root)
        self._root_scan = RootScan(RootMemory())
        self._told_models: Mapping[str, ModelConfig] = {}
        self._said: str | None = None
        self._hung: set[_Part] = set()
        self._looks: dict[tuple[bool, Path], Look] = {}
        self._owners: dict[Look, tuple[_Part, int]] = {}
        self._waiters: list[_Waiter] = []
        self._wake = asyncio.Event()
        self._threads = LookThreads(self._on_look)
        self._watch = DirectoryWatch(self.hint)
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "watching" if self._task is not None and not self._task.done() else "stopped"
        root = "no root" if self._root is None else self._root.path
        return f"<FileSystemSource {root}, {len(self._told_models)} models, {state}>"

    # Queries.

    @property
    def diagnosis(self) -> str | None:
        """The reason why the root gives no model, with advice, or the root's fault; None if all is well."""
        return self._diagnosis()[0]

    @property
    def misused(self) -> bool:
        """Whether the root is missing, or holds other contents than models; an empty root is merely early."""
        return self._diagnosis()[1]

    def _diagnosis(self) -> tuple[str | None, bool]:
        root, scan = self._root, self._root_scan
        if root is None:
            return None, False
        if root.hung is not None:
            return f"models directory {root.path} cannot be read: {root.hung}", False
        if scan.unreadable:
            return scan.problem, True
        parts = [self._parts[name] for name in scan.memory.names if name in self._parts]
        if any(part.memory.is_model or part.hung for part in parts):
            return None, False
        if self.unread:
            return f"models directory {root.path} has not been looked at yet", False
        instead = [part.scan.instead for part in parts if part.scan is not None and part.scan.instead is not None]
        return diagnose(root.path, scan.children, instead)

    @property
    def unread(self) -> bool:
        """Whether the set of models is still unknown: a first look is under way, or hangs at the root."""
        if self._root is None:
            return False
        never = self._root_scan.place is None and not self._root_scan.unreadable
        return never or any(part.scan is None and part.hung is None for part in self._parts.values())

    def problem(self, name: str) -> str | None:
        """The fault of a model's base path at the last look, or None."""
        part = self._parts.get(name)
        if part is None:
            return None
        return self._hung_base_path(part) or (None if part.scan is None else part.scan.problem)

    def _hung_base_path(self, part: _Part) -> str | None:
        if part.hung is None or part.config is None:
            return None
        return base_path_problem(part.config, OSError(errno.ETIMEDOUT, part.hung))

    def coming(self, name: str) -> bool:
        """Whether a version is on the way.

        True before the first look has come back, and while a wanted version changes for no longer than a copy may take.
        """
        part = self._parts.get(name)
        if part is None or part.hung is not None:
            return False
        if part.scan is None:
            return True
        return part.since is not None and time.monotonic() < part.since + self._options.settle + COPY_PATIENCE

    def misplaced(self, name: str) -> bool:
        """Whether the contents of a model's base path must be moved or converted first, and have stayed unchanged."""
        part = self._parts.get(name)
        since = None if part is None else part.misplaced
        return since is not None and time.monotonic() >= since + self._options.settle + MOVE_PATIENCE

    def found(self, name: str) -> Mapping[int, Path]:
        """Every version directory of a model at the last look, whole or not, wanted or not."""
        part = self._parts.get(name)
        return MappingProxyType({}) if part is None or part.scan is None else part.scan.found

    def stores(self) -> dict[str, StoreStatistics]:
        """Return no statistics: no model is in a store."""
        return {}

    # Commands.

    def set_models(self, models: Iterable[ModelConfig]) -> None:
        """Follow exactly the given models and the discovered models; a look at the changes comes at once.

        Policies set by `set_policy` are forgotten.
        """
        self._configured = {config.name: config for config in models}
        self._policies.clear()
        self._follow()
        self._wake.set()

    def set_policy(self, name: str, policy: VersionPolicy) -> None:
        """Choose versions of a model by `policy` instead of the configured policy; a look comes at once."""
        self._policies[name] = policy
        self._follow()
        self._wake.set()

    def _follow(self) -> list[_Part]:
        """Make the parts agree with the configuration and the root's contents; return the new parts."""
        if self._root is not None:
            self._discovered = {
                name: self._discovered.get(name) or ModelConfig(name=name, base_path=self._root.path / name)
                for name in sorted(self._root_scan.memory.names)
            }
        configs = self._discovered | self._configured
        for name in self._parts.keys() - configs.keys():
            del self._parts[name]
            self._policies.pop(name, None)  # A model that comes back under the name is a new model.
        new = []
        for name, config in configs.items():
            part = self._parts.get(name)
            if part is None or part.path != config.directory:
                before, part = part, _Part(config.directory, config)
                if before is not None:  # Serving versions stay until the versions of the new place are whole and quiet.
                    part.memory, part.trouble = replace(before.memory, device=None), before.trouble
                self._parts[name] = part
                new.append(part)
            policy = self._policies.get(name, config.version_policy)
            if (part.config, part.policy) != (config, policy):
                part.config, part.policy = config, policy
                part.epoch += 1
                part.ask()
        return new

    # From start to end.

    async def start(self) -> None:
        """Run until `aclose`.

        Returns after the listener has heard of a first look at every directory, or after `START_SECONDS`.
        """
        self._task = asyncio.create_task(self._run(), name="embedserve-source")
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self._looked(_Waiter(self._all(), None, -math.inf))

    async def scan_now(self, names: Collection[str] | None = None) -> None:
        """Look, and return when the listener has been told.

        Directories that were complete before the call are aspired at the return. The call waits for the settle window
        of a new directory, but no longer if the directory keeps changing. The call does not wait for hung directories.

        Args:
            names: Models of concern to the caller; None for all models, including newly found models.
        """
        if self._closed:
            return
        parts = self._all()
        if names is not None:
            parts = [self._parts[name] for name in names if name in self._parts]
            if self._root is not None and len(parts) < len(names):
                parts.append(self._root)
        for part in parts:
            part.ask()
        await self._looked(_Waiter([part for part in parts if part.hung is None], names))

    def _all(self) -> list[_Part]:
        return [*([] if self._root is None else [self._root]), *self._parts.values()]

    async def _looked(self, waiter: _Waiter) -> None:
        self._waiters.append(waiter)
        self._wake.set()
        try:
            await waiter.done
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def aclose(self) -> None:
        """Stop; the listener hears no more. A hung look is left alone in the look's thread."""
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        self._answer(all_of_them=True)
        await asyncio.gather(self._threads.aclose(CLOSE_SECONDS), self._watch.aclose())

    def release(self) -> None:
        """Return at once: the directories belong to others."""

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                self._turn()
            except Exception:
                logger.exception("following the model directories failed; it goes on")
            await self._pause()

    def _turn(self) -> None:
        """Begin the looks that are due, and report the changes since the last turn."""
        now = time.monotonic()
        # A regular look that is nearly due comes along, so that many models are looked at together.
        soon = now + min(0.05, self._options.poll_interval / 10)
        for part in self._all():
            due = part.asked <= now or part.regular <= soon or (part.due is not None and part.due <= now)
            if due and part.key not in self._looks:
                self._begin(part)
            self._check_time(part, now)
        self._tell_models()
        self._tell_troubles()
        self._answer()
        if self._options.watch:
            self._watch.arm(self._targets())

    def _begin(self, part: _Part) -> None:
        part.asked = part.regular = math.inf
        part.due = None
        settle, absent = self._options.settle, self._options.absent_versions
        call: Callable[[], object]
        if part.config is None:
            gone = {name for name, model in self._parts.items() if model.scan is not None and model.scan.gone}
            call = partial(scan_root, self._root_scan.memory, part.path, gone, self._disk, settle, absent)
        else:
            assert part.policy is not None
            call = partial(scan_model, part.config, part.policy, part.memory, self._disk, settle, absent)
        look = self._threads.ask(call)
        self._looks[part.key] = look
        self._owners[look] = (part, part.epoch)

    def _check_time(self, part: _Part, now: float) -> None:
        look = self._looks.get(part.key)
        if look is None or part.hung is not None or now < look.since + LOOK_SECONDS:
            return
        part.hung = (
            f"a look at it has not come back for more than {LOOK_SECONDS:g} s"
            if look.begun is not None
            else f"no look at it has begun for {LOOK_SECONDS:g} s, because other looks have all {MOST_THREADS} threads"
        )
        self._hung.add(part)
        for waiter in self._waiters:
            waiter.quiet_at.pop(part, None)
        logger.warning("%s is left alone: %s; what serves goes on", part.path, part.hung)

    async def _pause(self) -> None:
        """Wait for a hint, for a result, or for the time of the next look."""
        moments = []
        for part in self._all():
            look = self._looks.get(part.key)
            if look is None:
                moments += [part.asked, part.regular, math.inf if part.due is None else part.due]
            elif part.hung is None:
                moments.append(look.since + LOOK_SECONDS)
        # A timer may fire a little early, and an early look would have to be repeated.
        delay = max(0.0, min(moments, default=math.inf) - time.monotonic()) + 0.001
        with suppress(TimeoutError):
            async with asyncio.timeout(None if math.isinf(delay) else delay):
                await self._wake.wait()

    def hint(self) -> None:
        """Look at every directory soon."""
        for part in self._all():
            part.ask()
        self._wake.set()

    # Results of looks.

    def _on_look(self, look: Look, result: Any) -> None:
        self._wake.set()
        part, epoch = self._owners.pop(look)
        del self._looks[part.key]
        for other in [other for other in self._hung if other.key == part.key]:
            other.hung = None
            self._hung.discard(other)
            logger.warning("%s is looked at again: the look that hung has come back", part.path)
        if part is not (self._root if part.config is None else self._parts.get(part.config.name)):
            return
        if epoch != part.epoch:
            part.ask()
            return
        now = time.monotonic()
        begun = look.begun or now
        part.regular = now + max(self._options.poll_interval, _REST * (now - begun))
        if isinstance(result, BaseException):
            logger.error("looking at %s for versions failed; it is tried again", part.path, exc_info=result)
            result = self._failed(part, OSError(errno.EIO, f"{type(result).__name__}: {result}"))
        if isinstance(result, RootScan):
            self._on_root(part, result)
        else:
            self._on_model(part, result)
        self._note_looked(part, begun, now)

    def _failed(self, part: _Part, error: OSError) -> RootScan | ModelScan:
        if part.config is None:
            problem = f"models directory {part.path} cannot be read: {error.strerror}"
            return replace(self._root_scan, problem=problem, unreadable=True, due=None)
        known = part.scan or ModelScan(part.memory)
        return replace(known, problem=base_path_problem(part.config, error), unreadable=True, due=None)

    def _on_root(self, part: _Part, scan: RootScan) -> None:
        self._root_scan = scan
        part.due = scan.due
        if scan.place is not None:
            part.target = WatchTarget(part.path, *scan.place)
        new = self._follow()
        for waiter in self._waiters:
            if part in waiter.quiet_at:
                quiet_at = waiter.quiet_at[part]
                waiter.quiet_at |= {
                    model: quiet_at
                    for model in new
                    if waiter.names is None or (model.config is not None and model.config.name in waiter.names)
                }

    def _on_model(self, part: _Part, scan: ModelScan) -> None:
        before, part.scan = part.scan, scan
        part.memory = scan.memory
        part.due = scan.due
        if scan.due is None:
            part.since = None
        elif part.since is None:
            part.since = time.monotonic()
        part.misplaced = (part.misplaced or time.monotonic()) if scan.misplaced else None
        if scan.place is not None or scan.gone:  # The watch of an unreadable directory stays.
            part.target = None if scan.place is None else WatchTarget(part.path, *scan.place)
        if self._root is not None and scan.gone and scan.memory.is_model and (before is None or not before.gone):
            self._root.ask()  # A link without a target is listed, but is no model.
        if not self._is_visible(part):
            return
        for notice in scan.notices:
            if notice not in part.noticed:
                logger.warning("%s", notice)
        part.noticed = frozenset(scan.notices)
        self._tell_models()
        assert part.config is not None
        name, aspired = part.config.name, scan.memory.aspired
        if aspired is not None and (before is None or before.memory.aspired != aspired):
            self._call(self._listener.on_aspired, name, MappingProxyType(dict(aspired)))
        if scan.waiting != (before.waiting if before is not None else {}):
            self._call(self._listener.on_waiting, name, MappingProxyType(dict(scan.waiting)))

    def _is_visible(self, part: _Part) -> bool:
        """Whether the part is a model, or may be a model that has hung since before the first look."""
        assert part.config is not None
        hangs_unseen = part.hung is not None and part.scan is None
        return part.config.name in self._configured or part.memory.is_model or hangs_unseen

    def _note_looked(self, part: _Part, begun: float, now: float) -> None:
        """Release the waiters of the look; a part with a version that must be quiet first gets another look."""
        for waiter in self._waiters:
            quiet_at = waiter.quiet_at.get(part)
            if quiet_at is None or (begun < waiter.since and quiet_at > -math.inf):
                continue
            if part.due is None or begun >= quiet_at:
                del waiter.quiet_at[part]
            else:
                waiter.quiet_at[part] = min(quiet_at, now + self._options.settle)
                part.ask(waiter.quiet_at[part])

    def _answer(self, all_of_them: bool = False) -> None:
        followed = {*self._all()}
        for waiter in list(self._waiters):
            if all_of_them or not followed.intersection(waiter.quiet_at):
                self._waiters.remove(waiter)
                if not waiter.done.done():
                    waiter.done.set_result(None)

    # Reports to the listener.

    def _tell_models(self) -> None:
        models = {name: part.config for name, part in self._parts.items() if part.config and self._is_visible(part)}
        if models == self._told_models:
            return
        self._told_models = models
        self._call(self._listener.on_models, MappingProxyType(models))

    def _tell_troubles(self) -> None:
        root = self._diagnosis()[0] if self._root and (self._root.hung or self._root_scan.unreadable) else None
        for name in self._told_models:
            part = self._parts[name]
            unreadable = part.scan is not None and part.scan.unreadable
            trouble = self.problem(name) if unreadable or part.hung else None
            trouble = trouble or (root if name not in self._configured else None)
            if trouble != part.trouble:
                part.trouble = trouble
                self._call(self._listener.on_trouble, name, trouble)
        if self._told_models:
            self._tell_instead()
        diagnosis = None if self.unread else self.diagnosis
        if diagnosis is not None and diagnosis != self._said:
            logger.warning("%s", diagnosis)
        self._said = diagnosis

    def _tell_instead(self) -> None:
        """Log the contents of directories without versions beside models; without models, the diagnosis says so."""
        for part in self._parts.values():
            if part.scan is not None and part.scan.instead is not None and not self._is_visible(part):
                if part.scan.instead not in part.noticed:
                    logger.warning("%s", part.scan.instead)
                part.noticed = frozenset((part.scan.instead,))

    def _targets(self) -> list[WatchTarget]:
        """The outermost directories."""
        targets = {part.path: part.target for part in self._all() if part.target is not None}
        return [target for path, target in targets.items() if targets.keys().isdisjoint(path.parents)]

    def _call(self, callback: Callable[..., None], *args: object) -> None:
        try:
            callback(*args)
        except Exception:
            logger.exception("%s failed", getattr(callback, "__qualname__", callback))
