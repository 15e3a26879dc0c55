"""Follows every remote model of one registry, those given by name and those under a remote root.

Decides who is followed; `follower` does it. Made by `source`, or by whoever wants versions from stores without a
registry: a listener is told where they are on the local disk. Imports no file system before there is a remote model.
Loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from embedserve.concurrency.load_pool import LoadPool
from embedserve.config import ModelConfig, RegistryOptions, VersionPolicy, absolute, name_problem
from embedserve.errors import StartError
from embedserve.lifecycle.scan import VersionDirectory
from embedserve.remote.cache import Cache
from embedserve.remote.concurrency_limit import ConcurrencyLimit
from embedserve.remote.errors import StoreError
from embedserve.remote.follower import Follower, StoreStatistics, SyncContext, SyncListener
from embedserve.remote.leases import Leases
from embedserve.remote.root import RemoteRoot
from embedserve.store_url import StoreUrl

if TYPE_CHECKING:
    from embedserve.remote.store import Store

__all__ = ["Syncer", "SyncerListener", "default_cache_dir"]

DISK_THREADS = 4


class SyncerListener(SyncListener, Protocol):
    """Whom a syncer tells; every call comes on the loop, between two turns of it, and must not block."""

    def on_discovered(self, configs: Mapping[str, ModelConfig]) -> None:
        """The models under the remote root changed: all of them."""


def default_cache_dir(environment: Mapping[str, str]) -> Path:
    """Where versions are cached unless an option says otherwise: `$XDG_CACHE_HOME/embedserve`, or `~/.cache/...`."""
    return absolute(environment.get("XDG_CACHE_HOME") or "~/.cache") / "embedserve"


class Syncer:
    """Syncs remote models from `start` to `aclose`.

    Args:
        options: `poll_interval`, `settle`, `start_timeout` and those that begin with `remote_`.
        root: URL of a directory of models, or None.
        cache_dir: Where versions are put, unless the options say.
        listener: Whom to tell.
        in_use: Paths of version directories that were told and may still be read, wanted or not; they stay.
    """

    def __init__(
        self,
        options: RegistryOptions,
        root: StoreUrl | None,
        cache_dir: Path,
        listener: SyncerListener,
        in_use: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._options = options
        self._listener = listener
        self._limits: dict[str, ConcurrencyLimit] = {}
        self._cache = Cache(options.remote_cache_dir or cache_dir, options.remote_cache_max_bytes)
        self._disk = LoadPool(asyncio.get_running_loop(), DISK_THREADS, "embedserve-sync")
        self._leases = Leases(self._cache, self._disk, in_use)
        self._context = SyncContext(options, self._cache, self._disk, self._leases, self._open_store)
        self._root = None if root is None else RemoteRoot(root, self._context, self._on_root)
        self._configured: dict[str, ModelConfig] = {}
        self._discovered: dict[str, ModelConfig] = {}
        self._policies: dict[str, VersionPolicy] = {}
        self._followers: dict[str, Follower] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._started = False

    def __repr__(self) -> str:
        return f"<Syncer of {len(self._followers)} models in {self._cache.root}>"

    # What is asked.

    @property
    def diagnosis(self) -> str | None:
        """Why there is no model under the root and what to do, or None."""
        return None if self._root is None else self._root.diagnosis

    @property
    def misused(self) -> bool:
        """Whether the root is not there, or holds something else than models; an empty one is merely early."""
        return self._root is not None and self._root.misused

    @property
    def unread(self) -> bool:
        """Whether there is a root of which it is not known yet which models it has."""
        return self._root is not None and self._root.unread

    def problem(self, name: str) -> str | None:
        """Why a model may have no version, or None."""
        follower = self._followers.get(name)
        return None if follower is None else follower.problem

    def coming(self, name: str) -> bool:
        """Whether a model's store is being asked for the first time, or a version is being fetched."""
        follower = self._followers.get(name)
        return follower is not None and follower.coming

    def served(self, name: str) -> Mapping[int, VersionDirectory]:
        """What the listener was told of a model last."""
        follower = self._followers.get(name)
        return {} if follower is None else follower.served

    def statistics(self) -> dict[str, StoreStatistics]:
        """How each model's sync goes; readable from any thread."""
        return {name: follower.statistics() for name, follower in list(self._followers.items())}

    # What is told.

    def set_models(
        self, models: Iterable[ModelConfig], served: Mapping[str, Mapping[int, VersionDirectory]] | None = None
    ) -> None:
        """Follow exactly these models, and those under the root. Policies set by `set_policy` are forgotten.

        Args:
            models: Whose base paths are URLs.
            served: What the listener was told of a model by somebody else, which stays until it can be replaced.
        """
        self._configured = {config.name: config for config in models}
        self._policies.clear()
        if self._started:
            self._follow(served or {})

    def set_policy(self, name: str, policy: VersionPolicy) -> None:
        """Choose versions of one model by this policy, not its own."""
        self._policies[name] = policy
        if name in self._followers:
            self._followers[name].set_policy(self._followers[name].config, policy)

    def _on_root(self, names: Sequence[str]) -> None:
        assert self._root is not None
        gone = self._discovered.keys() - set(names)
        for name in gone - self._configured.keys():
            self._policies.pop(name, None)  # One that comes back under this name is another model.
        self._discovered = {
            name: ModelConfig(name=name, base_path=self._root.url / name) for name in names if not name_problem(name)
        }
        self._listener.on_discovered(self._discovered)
        if self._started:
            self._follow({})

    def _follow(self, served: Mapping[str, Mapping[int, VersionDirectory]]) -> None:
        wanted = self._discovered | self._configured
        left: dict[str, Mapping[int, VersionDirectory]] = {}
        for name, follower in list(self._followers.items()):
            config = wanted.get(name)
            if config is not None and _same_store(config, follower.config):
                follower.set_policy(config, self._policies.get(name))
            else:
                follower.stop()
                left[name] = follower.served
                del self._followers[name]
                self._run(self._leave(follower, replaced=config is not None))
        for name, config in wanted.items():
            if name not in self._followers:
                follower = Follower(config, self._context, self._listener, left.get(name) or served.get(name, {}))
                follower.set_policy(config, self._policies.get(name))
                self._followers[name] = follower
                follower.start()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _leave(self, follower: Follower, replaced: bool) -> None:
        """Stop following; what is cached goes when nobody uses it any more, unless the cache has a bound."""
        await follower.aclose()
        if not replaced:
            self._leases.keep(follower.config.name, ())
        bounded = self._options.remote_cache_max_bytes is not None
        self._leases.discard(follower.config.name, await follower.cached_paths(), remove=not bounded)

    # Start and stop.

    async def start(self) -> None:
        """Begin; returns when the root has answered, if there is one, not when anything was fetched.

        Raises:
            StartError: The cache directory cannot be used.
        """
        if self._configured or self._root is not None:
            try:
                await self._disk.run(self._cache.open)
            except StoreError as error:
                raise StartError(str(error)) from None
        self._leases.start()
        if self._root is not None:
            await self._root.start()
        self._started = True
        self._follow({})

    def hint(self) -> None:
        """Ask the root and every model's store soon."""
        if self._root is not None:
            self._root.hint()
        for follower in self._followers.values():
            follower.hint()

    async def settled(self, names: Iterable[str]) -> None:
        """Wait until what these models' policies want has been fetched and told, or cannot be had now.

        No longer than `start_timeout`.
        """
        followers = [self._followers[name] for name in names if name in self._followers]
        limit = self._options.start_timeout
        with suppress(TimeoutError):
            async with asyncio.timeout(limit if limit < inf else None), asyncio.TaskGroup() as waiting:
                for follower in followers:
                    waiting.create_task(follower.settled())

    async def aclose(self) -> None:
        """Stop; nothing is told any more. What was told stays on the disk until `release`."""
        for follower in self._followers.values():
            follower.stop()
        if self._root is not None:
            await self._root.aclose()
        for follower in self._followers.values():
            await follower.aclose()
        while self._closing:
            await asyncio.wait(self._closing)
        await self._leases.aclose()

    def release(self) -> None:
        """Nothing that was told is read any more: other processes may remove it."""
        self._leases.release()
        self._disk.close()

    async def _open_store(self, url: StoreUrl, options: Mapping[str, Any]) -> Store:
        limit = self._limits.setdefault(f"{url.scheme}://{url.host}", ConcurrencyLimit())
        return await self._disk.run(_open, url, options, self._options.remote_timeout, limit)


def _open(url: StoreUrl, options: Mapping[str, Any], timeout: float, limit: ConcurrencyLimit) -> Store:
    try:
        from embedserve.remote.store import open_store
    except ImportError as error:
        raise StoreError(f"{url} cannot be opened: {error}") from None
    return open_store(url, options, timeout, limit)


def _same_store(one: ModelConfig, other: ModelConfig) -> bool:
    return (one.base_path, one.storage_options) == (other.base_path, other.storage_options)
