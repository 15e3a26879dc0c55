"""CombinedSource: local directories and remote stores as a single source for a registry.

The syncer follows models with a URL as base path, and `FileSystemSource` follows all other models; the listener sees no
difference. Without a remote model no syncer exists, and no module of `remote` is imported. Loop only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from embedserve.config import ModelConfig, RegistryOptions, VersionPolicy
from embedserve.lifecycle.source import FileSystemSource, VersionDirectory
from embedserve.lifecycle.source_protocol import Source, SourceListener, StoreStatistics
from embedserve.store_url import StoreUrl

if TYPE_CHECKING:
    from embedserve.remote.syncer import Syncer

__all__ = ["CombinedSource"]


class CombinedSource:
    """Follows the models given by name, and the models under `root`, local or remote.

    Args:
        options: As for `FileSystemSource` and `Syncer`.
        root: Directory or URL of a directory of models, or None to discover no models.
        listener: Receives the reports.
        in_use: Returns the paths of version directories that may still be read, wanted or not.
    """

    def __init__(
        self,
        options: RegistryOptions,
        root: Path | StoreUrl | None,
        listener: SourceListener,
        in_use: Callable[[], Collection[str]],
    ) -> None:
        self._options = options
        self._listener = listener
        self._in_use = in_use
        self._root = root
        self._local = FileSystemSource(options, root if isinstance(root, Path) else None, _Side(self, remote=False))
        self._remote: Syncer | None = None
        if isinstance(root, StoreUrl):
            self._remote = self._make_syncer(root)
        self._started = False
        self._configured: dict[str, ModelConfig] = {}
        self._discovered: Mapping[str, ModelConfig] = {}
        self._told: dict[str, ModelConfig] = {}
        self._aspired: dict[str, Mapping[int, VersionDirectory]] = {}
        self._waiting: dict[str, Mapping[int, str]] = {}
        self._bridged: set[str] = set()

    def __repr__(self) -> str:
        return f"<CombinedSource {self._root or 'no root'}, {self._local!r}, {self._remote!r}>"

    # Queries.

    @property
    def diagnosis(self) -> str | None:
        """The reason why the root gives no model, with advice, or None."""
        return self._of_root().diagnosis

    @property
    def misused(self) -> bool:
        """Whether the root is missing, or holds other contents than models; an empty root is merely early."""
        return self._of_root().misused

    @property
    def unread(self) -> bool:
        """Whether the set of models is still unknown."""
        return self._of_root().unread

    def problem(self, name: str) -> str | None:
        """The fault of a model's base path, or None."""
        return self._of(name).problem(name)

    def coming(self, name: str) -> bool:
        """Whether a version of the model is on the way: a fetch is under way, or a copy was made a moment ago."""
        return self._of(name).coming(name)

    def misplaced(self, name: str) -> bool:
        """Whether the contents of a model's base path must be moved or converted to become a version."""
        return self._of(name).misplaced(name)

    def stores(self) -> Mapping[str, StoreStatistics]:
        """The state of each remote model's sync; readable from any thread."""
        return {} if self._remote is None else self._remote.stores()

    def _sources(self) -> tuple[Source, ...]:
        return (self._local,) if self._remote is None else (self._local, self._remote)

    def _of_root(self) -> Source:
        return self._local if self._remote is None or not isinstance(self._root, StoreUrl) else self._remote

    def _of(self, name: str) -> Source:
        return self._remote if self._remote is not None and self._is_remote(name) else self._local

    def _is_remote(self, name: str) -> bool:
        config = self._configured.get(name) or self._discovered.get(name)
        return config is not None and isinstance(config.base_path, StoreUrl)

    # Commands.

    def set_models(self, models: Iterable[ModelConfig]) -> None:
        """Follow exactly the given models and the discovered models; the next scan comes at once.

        Policies set by `set_policy` are forgotten.
        """
        before = {name for name in self._told if self._is_remote(name)}
        self._configured = {config.name: config for config in models}
        remote = {name for name in self._configured if self._is_remote(name)}
        if self._remote is not None:
            self._bridged |= {name for name in before - remote if self._remote.served(name)}
        handed_over = {name: self._aspired[name] for name in remote - before if name in self._aspired}
        self._local.set_models([config for name, config in self._configured.items() if name not in remote])
        if remote and self._remote is None:
            self._remote = self._make_syncer(None)
            if self._started:
                self._remote.begin()
        if self._remote is not None:
            self._remote.set_models([self._configured[name] for name in remote], handed_over)

    def _make_syncer(self, root: StoreUrl | None) -> Syncer:
        from embedserve.remote.syncer import Syncer, default_cache_dir

        side = _Side(self, remote=True)
        return Syncer(self._options, root, default_cache_dir(os.environ), side, self._in_use)

    def set_policy(self, name: str, policy: VersionPolicy) -> None:
        """Choose versions of a model by `policy` instead of the configured policy; the next scan comes at once."""
        self._of(name).set_policy(name, policy)

    async def start(self) -> None:
        """Look at every local directory once, begin to query the stores, report, and go on until `aclose`.

        Raises:
            StartError: The cache of remote versions cannot be used.
        """
        await self._local.start()
        self._tell_models()
        self._started = True
        if self._remote is not None:
            await self._remote.start()

    async def scan_now(self, names: Collection[str] | None = None) -> None:
        """Look at the named models, or at every model, and return when the listener has been told.

        The call waits only for stores of models with a new policy from `set_policy` since the last call: a silent store
        must not delay changes of other models.
        """
        await self._local.scan_now(None if names is None else [name for name in names if not self._is_remote(name)])
        self._tell_models()
        if self._remote is not None:
            await self._remote.scan_now(names)

    def hint(self) -> None:
        """Look at every directory and query every store soon."""
        for source in self._sources():
            source.hint()

    async def aclose(self) -> None:
        """Stop; the listener hears no more."""
        self._started = False
        for source in self._sources():
            await source.aclose()

    def release(self) -> None:
        """Take note that no version is loaded any more."""
        for source in self._sources():
            source.release()

    # Reports of the two sources.

    def on_discovered(self, configs: Mapping[str, ModelConfig], remote: bool) -> None:
        """Take the models found by either source."""
        if remote == isinstance(self._root, StoreUrl):
            self._discovered = configs
        if not remote:
            for told in (self._aspired, self._waiting):
                for name in told.keys() - configs.keys():
                    del told[name]
        self._tell_models()

    def _tell_models(self) -> None:
        models = {**self._discovered, **self._configured}
        if models == self._told:
            return
        before, self._told = self._told, models
        self._listener.on_models(models)
        for name, config in models.items():
            was_remote = name in before and isinstance(before[name].base_path, StoreUrl)
            if was_remote and not isinstance(config.base_path, StoreUrl) and name in self._aspired:
                self.on_aspired(name, self._aspired[name], remote=False)
                self.on_waiting(name, self._waiting.get(name, {}), remote=False)

    def on_aspired(self, name: str, aspired: Mapping[int, VersionDirectory], remote: bool) -> None:
        """Take the versions chosen by either source."""
        if not remote:
            self._aspired[name] = aspired
            if not aspired and name in self._bridged and self._local.found(name):
                return  # The store's versions serve until the directory's versions are whole and quiet.
            self._bridged.discard(name)
        if name in self._told and remote == self._is_remote(name):
            self._listener.on_aspired(name, aspired)

    def on_waiting(self, name: str, reasons: Mapping[int, str], remote: bool) -> None:
        """Take the versions of either source that cannot be served yet."""
        if not remote:
            self._waiting[name] = reasons
        if name in self._told and remote == self._is_remote(name):
            self._listener.on_waiting(name, reasons)

    def on_trouble(self, name: str, trouble: str | None) -> None:
        """Take the trouble of a local directory, or None after the trouble; `stores` reports the trouble of stores."""
        if name in self._told and not self._is_remote(name):
            self._listener.on_trouble(name, trouble)


class _Side:
    """The listener of one of the two sources."""

    def __init__(self, source: CombinedSource, remote: bool) -> None:
        self._source = source
        self._remote = remote

    def on_models(self, configs: Mapping[str, ModelConfig]) -> None:
        self._source.on_discovered(configs, self._remote)

    def on_aspired(self, name: str, aspired: Mapping[int, VersionDirectory]) -> None:
        self._source.on_aspired(name, aspired, self._remote)

    def on_waiting(self, name: str, reasons: Mapping[int, str]) -> None:
        self._source.on_waiting(name, reasons, self._remote)

    def on_trouble(self, name: str, trouble: str | None) -> None:
        self._source.on_trouble(name, trouble)
