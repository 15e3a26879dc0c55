"""CombinedSource: local directories and remote stores as the one source that a registry knows.

A model whose base path is a URL is followed by the syncer, any other by `FileSystemSource`; the listener cannot tell.
Made by `runtime`; loop only. Imports no file system before there is a remote model.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from embedserve.config import ModelConfig, RegistryOptions, VersionPolicy
from embedserve.lifecycle.source import FileSystemSource, SourceListener, VersionDirectory
from embedserve.remote.follower import StoreStatistics
from embedserve.remote.syncer import Syncer, default_cache_dir
from embedserve.store_url import StoreUrl

__all__ = ["CombinedSource", "VersionHolder"]


class VersionHolder(SourceListener, Protocol):
    """A listener that says which of the version directories it was told of are still read."""

    def directories_in_use(self) -> Collection[str]:
        """Paths of the versions that are loaded, or being loaded or unloaded."""


class CombinedSource:
    """Follows the models given by name, and those under `root`, wherever they are.

    Args:
        options: As for `FileSystemSource` and `Syncer`.
        root: Directory or URL of a directory of models, or None to discover nothing.
        listener: Whom to tell.
    """

    def __init__(self, options: RegistryOptions, root: Path | StoreUrl | None, listener: VersionHolder) -> None:
        self._listener = listener
        self._root = root
        local, remote = (root, None) if isinstance(root, Path) else (None, root)
        self._local = FileSystemSource(options, local, _FromDirectories(self))
        self._remote = Syncer(
            options, remote, default_cache_dir(os.environ), _FromStores(self), listener.directories_in_use
        )
        self._configured: dict[str, ModelConfig] = {}
        self._discovered: Mapping[str, ModelConfig] = {}
        self._told: dict[str, ModelConfig] = {}
        self._aspired: dict[str, Mapping[int, VersionDirectory]] = {}
        self._waiting: dict[str, Mapping[int, str]] = {}
        self._bridged: set[str] = set()
        self._policies: dict[str, VersionPolicy] = {}
        self._settled: dict[str, VersionPolicy] = {}

    def __repr__(self) -> str:
        return f"<CombinedSource {self._root or 'no root'}, {self._local!r}, {self._remote!r}>"

    # What is asked.

    @property
    def diagnosis(self) -> str | None:
        """Why no model was discovered under the root and what to do, or None."""
        return (self._remote if isinstance(self._root, StoreUrl) else self._local).diagnosis

    @property
    def misused(self) -> bool:
        """Whether the root is not there, or holds something else than models; an empty one is merely early."""
        return (self._remote if isinstance(self._root, StoreUrl) else self._local).misused

    @property
    def unread(self) -> bool:
        """Whether it is not known yet which models there are."""
        return self._local.unread or self._remote.unread

    def problem(self, name: str) -> str | None:
        """What is wrong with a model's base path, or None."""
        return (self._remote if self._is_remote(name) else self._local).problem(name)

    def coming(self, name: str) -> bool:
        """Whether a version of the model is on its way by itself: it is being fetched, or was copied a moment ago."""
        return (self._remote if self._is_remote(name) else self._local).coming(name)

    def misplaced(self, name: str) -> bool:
        """Whether what stands at a model's base path has to be moved or converted before any of it is a version."""
        return not self._is_remote(name) and self._local.misplaced(name)

    def stores(self) -> Mapping[str, StoreStatistics]:
        """How the sync of each remote model goes; readable from any thread."""
        return self._remote.statistics()

    def _is_remote(self, name: str) -> bool:
        config = self._configured.get(name) or self._discovered.get(name)
        return config is not None and isinstance(config.base_path, StoreUrl)

    # What is told.

    def set_models(self, models: Iterable[ModelConfig]) -> None:
        """Follow exactly these models, and the discovered ones, from the next scan on, which comes at once.

        Policies set by `set_policy` are forgotten.
        """
        before = {name for name in self._told if self._is_remote(name)}
        self._configured = {config.name: config for config in models}
        remote = {name for name in self._configured if self._is_remote(name)}
        self._bridged |= {name for name in before - remote if self._remote.served(name)}
        handed_over = {name: self._aspired[name] for name in remote - before if name in self._aspired}
        self._policies.clear()
        self._local.set_models([config for name, config in self._configured.items() if name not in remote])
        self._remote.set_models([self._configured[name] for name in remote], handed_over)

    def set_policy(self, name: str, policy: VersionPolicy) -> None:
        """Choose versions of one model by this policy, not its own, from the next scan on, which comes at once."""
        if self._is_remote(name):
            self._policies[name] = policy
            self._remote.set_policy(name, policy)
        else:
            self._local.set_policy(name, policy)

    async def start(self) -> None:
        """Look at every local directory once, begin to ask the stores, tell, and go on until `aclose`.

        Raises:
            StartError: The cache of remote versions cannot be used.
        """
        await self._local.start()
        self._tell_models()
        await self._remote.start()

    async def scan_now(self, names: Collection[str] | None = None) -> None:
        """Look at these models, or at everything, and return when the listener has been told.

        Of stores only those are waited for whose model was given another policy by `set_policy` since the last call: a
        store that does not answer must not hold up the others' changes.
        """
        await self._local.scan_now(None if names is None else [name for name in names if not self._is_remote(name)])
        self._tell_models()
        changed = [name for name, policy in self._policies.items() if self._settled.get(name) != policy]
        self._settled = dict(self._policies)
        await self._remote.settled(changed)

    def hint(self) -> None:
        """Look at every directory and ask every store soon."""
        self._local.hint()
        self._remote.hint()

    async def aclose(self) -> None:
        """Stop; the listener is told nothing any more."""
        await self._local.aclose()
        await self._remote.aclose()

    def release(self) -> None:
        """No version is loaded any more."""
        self._remote.release()

    # What the two sources tell.

    def on_discovered(self, configs: Mapping[str, ModelConfig], remote: bool) -> None:
        """One of them found its models."""
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
        """One of them chose versions."""
        if not remote:
            self._aspired[name] = aspired
            if not aspired and name in self._bridged and self._local.found(name):
                return  # What the store had is served until the directory's versions are whole and quiet.
            self._bridged.discard(name)
        if name in self._told and remote == self._is_remote(name):
            self._listener.on_aspired(name, aspired)

    def on_waiting(self, name: str, reasons: Mapping[int, str], remote: bool) -> None:
        """One of them has versions that cannot be served yet."""
        if not remote:
            self._waiting[name] = reasons
        if name in self._told and remote == self._is_remote(name):
            self._listener.on_waiting(name, reasons)

    def on_trouble(self, name: str, trouble: str | None) -> None:
        """A local directory cannot be read, or can be again; of stores `stores` tells."""
        if name in self._told and not self._is_remote(name):
            self._listener.on_trouble(name, trouble)


class _FromDirectories:
    def __init__(self, source: CombinedSource) -> None:
        self._source = source

    def on_models(self, configs: Mapping[str, ModelConfig]) -> None:
        self._source.on_discovered(configs, remote=False)

    def on_aspired(self, name: str, aspired: Mapping[int, VersionDirectory]) -> None:
        self._source.on_aspired(name, aspired, remote=False)

    def on_waiting(self, name: str, reasons: Mapping[int, str]) -> None:
        self._source.on_waiting(name, reasons, remote=False)

    def on_trouble(self, name: str, trouble: str | None) -> None:
        self._source.on_trouble(name, trouble)


class _FromStores:
    def __init__(self, source: CombinedSource) -> None:
        self._source = source

    def on_discovered(self, configs: Mapping[str, ModelConfig]) -> None:
        self._source.on_discovered(configs, remote=True)

    def on_aspired(self, name: str, aspired: Mapping[int, VersionDirectory]) -> None:
        self._source.on_aspired(name, aspired, remote=True)

    def on_waiting(self, name: str, reasons: Mapping[int, str]) -> None:
        self._source.on_waiting(name, reasons, remote=True)
