"""Follows every remote model of a registry: the models given by name and the models under a remote root.

Decides which models are followed; `follower` does the work. The class also works without a registry: a listener then
hears the versions' places on the local disk. Imports no file system before the first remote model. Loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from embedserve.concurrency.load_pool import LoadPool
from embedserve.config import ModelConfig, RegistryOptions, VersionPolicy, absolute, name_problem
from embedserve.errors import StartError
from embedserve.lifecycle.scan import VersionDirectory
from embedserve.lifecycle.source_protocol import SourceListener, StoreStatistics
from embedserve.remote.cache import Cache
from embedserve.remote.concurrency_limit import ConcurrencyLimit
from embedserve.remote.context import SyncContext
from embedserve.remote.errors import StoreError
from embedserve.remote.follower import Follower
from embedserve.remote.leases import Leases
from embedserve.remote.root import RemoteRoot
from embedserve.store_url import StoreUrl

if TYPE_CHECKING:
    from embedserve.remote.store import Store

__all__ = ["Syncer", "default_cache_dir"]

# Threads for the cache's files and for opening stores.
DISK_THREADS = 4


def default_cache_dir(environment: Mapping[str, str]) -> Path:
    """The cache directory without an option: `$XDG_CACHE_HOME/embedserve`, or `~/.cache/embedserve`."""
    return absolute(environment.get("XDG_CACHE_HOME") or "~/.cache") / "embedserve"


class Syncer:
    """Syncs remote models from `start` to `aclose`.

    Args:
        options: The syncer reads `poll_interval`, `settle`, `start_timeout` and all options that begin with `remote_`.
        root: URL of a directory of models, or None.
        cache_dir: The cache directory, unless the options name another directory.
        listener: Receives the reports; `on_models` gets only the models under the root.
        in_use: Paths of reported version directories that may still be read, wanted or not; the directories stay.
    """

    def __init__(
        self,
        options: RegistryOptions,
        root: StoreUrl | None,
        cache_dir: Path,
        listener: SourceListener,
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
        self._settled: dict[str, VersionPolicy] = {}
        self._followers: dict[str, Follower] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._started = False

    def __repr__(self) -> str:
        return f"<Syncer of {len(self._followers)} models in {self._cache.root}>"

    # Queries.

    @property
    def diagnosis(self) -> str | None:
        """The reason why the root gives no model, with advice, or None."""
        return None if self._root is None else self._root.diagnosis

    @property
    def misused(self) -> bool:
        """Whether the root is missing, or holds other contents than models; an empty root is merely early."""
        return self._root is not None and self._root.misused

    @property
    def unread(self) -> bool:
        """Whether the root's models are still unknown; False without a root."""
        return self._root is not None and self._root.unread

    def problem(self, name: str) -> str | None:
        """The reason why a model may have no version, or None."""
        follower = self._followers.get(name)
        return None if follower is None else follower.problem

    def coming(self, name: str) -> bool:
        """Whether a store's first answer is pending, or a version is being fetched."""
        follower = self._followers.get(name)
        return follower is not None and follower.coming

    def served(self, name: str) -> Mapping[int, VersionDirectory]:
        """The versions last reported of a model."""
        follower = self._followers.get(name)
        return {} if follower is None else follower.served

    def misplaced(self, name: str) -> bool:
        """Return False: a store's contents are listed, and not looked into."""
        return False

    def stores(self) -> dict[str, StoreStatistics]:
        """The state of each model's sync; readable from any thread."""
        return {name: follower.statistics() for name, follower in list(self._followers.items())}

    # Commands.

    def set_models(
        self, models: Iterable[ModelConfig], served: Mapping[str, Mapping[int, VersionDirectory]] | None = None
    ) -> None:
        """Follow exactly the given models and the root's models. Policies set by `set_policy` are forgotten.

        Args:
            models: Models with URLs as base paths.
            served: Versions reported by another source, by model; the versions stay until a replacement is there.
        """
        self._configured = {config.name: config for config in models}
        self._policies.clear()
        if self._started:
            self._follow(served or {})

    def set_policy(self, name: str, policy: VersionPolicy) -> None:
        """Choose versions of a model by `policy` instead of the configured policy."""
        self._policies[name] = policy
        if name in self._followers:
            self._followers[name].set_policy(self._followers[name].config, policy)

    def _on_root(self, names: Sequence[str]) -> None:
        assert self._root is not None
        gone = self._discovered.keys() - set(names)
        for name in gone - self._configured.keys():
            self._policies.pop(name, None)  # A model that comes back under the name is a new model.
        self._discovered = {
            name: ModelConfig(name=name, base_path=self._root.url / name) for name in names if not name_problem(name)
        }
        self._listener.on_models(self._discovered)
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

    def _run(self, work: Coroutine[object, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _leave(self, follower: Follower, replaced: bool) -> None:
        """Stop following; unused cached versions then go, unless the cache has a bound."""
        await follower.aclose()
        if not replaced:
            self._leases.keep(follower.config.name, ())
        bounded = self._options.remote_cache_max_bytes is not None
        self._leases.discard(follower.config.name, await follower.cached_paths(), remove=not bounded)

    # Start and stop.

    async def start(self) -> None:
        """Begin; returns after the root's answer, if the syncer has a root, without waiting for fetches.

        Raises:
            StartError: The cache directory cannot be used.
        """
        if self._configured or self._root is not None:
            try:
                await self._disk.run(self._cache.open)
            except StoreError as error:
                raise StartError(str(error)) from None
        if self._root is not None:
            self._leases.start()
            await self._root.start()
        self.begin()

    def begin(self) -> None:
        """Begin at once, without a root; each follower opens the cache, and reports a cache that cannot be used."""
        self._leases.start()
        self._started = True
        self._follow({})

    def hint(self) -> None:
        """Query the root and every model's store soon."""
        if self._root is not None:
            self._root.hint()
        for follower in self._followers.values():
            follower.hint()

    async def scan_now(self, names: Collection[str] | None = None) -> None:
        """Wait for the stores of models with a new policy from `set_policy` since the last call.

        No other store is waited for: a silent store must not delay changes of other models.
        """
        changed = [name for name, policy in self._policies.items() if self._settled.get(name) != policy]
        self._settled = dict(self._policies)
        await self.settled(changed)

    async def settled(self, names: Iterable[str]) -> None:
        """Wait until the named models' wanted versions are fetched and reported, or are unavailable for now.

        The wait ends after `start_timeout` seconds.
        """
        followers = [self._followers[name] for name in names if name in self._followers]
        limit = self._options.start_timeout
        with suppress(TimeoutError):
            async with asyncio.timeout(limit if limit < inf else None), asyncio.TaskGroup() as waiting:
                for follower in followers:
                    waiting.create_task(follower.settled())

    async def aclose(self) -> None:
        """Stop all reports. Reported versions stay on the disk until `release`."""
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
        """Note that no reported version is read any more: other processes may remove the versions."""
        self._leases.release()
        self._disk.close()

    async def _open_store(self, url: StoreUrl, options: Mapping[str, object]) -> Store:
        limit = self._limits.setdefault(f"{url.scheme}://{url.host}", ConcurrencyLimit())
        return await self._disk.run(_open, url, options, self._options.remote_timeout, limit)


def _open(url: StoreUrl, options: Mapping[str, object], timeout: float, limit: ConcurrencyLimit) -> Store:
    try:
        from embedserve.remote.store import open_store
    except ImportError as error:
        raise StoreError(f"{url} cannot be opened: {error}") from None
    return open_store(url, options, timeout, limit)


def _same_store(one: ModelConfig, other: ModelConfig) -> bool:
    return (one.base_path, one.storage_options) == (other.base_path, other.storage_options)
