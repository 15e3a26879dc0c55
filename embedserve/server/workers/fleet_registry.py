"""The supervisor's registry: a `ModelRegistry` in its decisions; the workers load its versions.

Versions, retries, labels, reloads, readiness and status therefore behave as in a single process. The registry answers
no request.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from embedserve.config import ModelConfig
from embedserve.errors import Code, LoadError, UnsupportedError
from embedserve.registry import ModelRegistry
from embedserve.runtime.runtime import Runtime
from embedserve.server.workers.fleet import Fleet
from embedserve.server.workers.messages import Key, Loaded, ServingTable
from embedserve.server.workers.rollout import CrashedError, Rollout
from embedserve.signature import Signature

if TYPE_CHECKING:
    from embedserve.config import RegistryOptions
    from embedserve.lifecycle.managed_version import ManagedVersion
    from embedserve.lifecycle.source import VersionDirectory
    from embedserve.observer import Observer, Observers
    from embedserve.servable import Loader, Predictor, Servable, ServableId
    from embedserve.server.config import ServerConfig
    from embedserve.store_url import StoreUrl

__all__ = ["FleetRegistry"]

T = TypeVar("T")

# A process may end by chance while a version loads. A second end counts as the version's fault.
CRASHES = 2


class FleetRegistry(ModelRegistry):
    """Decides for all workers of `fleet`; the workers publish and withdraw in a single step.

    Args:
        config: The server's configuration.
        fleet: The workers.
        observer: Hears of the states of versions.
    """

    def __init__(self, config: ServerConfig, fleet: Fleet, observer: Observer | None) -> None:
        options = config.options.model_copy(update={"num_batch_threads": 1, "load_timeout": math.inf})
        super().__init__(
            config.root,
            models=config.models,
            observers=[observer] if observer else [],
            **{name: getattr(options, name) for name in type(options).model_fields},
        )
        self._fleet = fleet

    def _make_runtime(self) -> Runtime:
        return _FleetRuntime(self._fleet, self.options, self._root, self._models, self.observers)

    async def changed(self) -> None:
        """Wait until the status has changed."""
        assert self._runtime is not None
        await self._runtime.monitor.changed()

    def lose(self, key: Key) -> None:
        """Withdraw a published version after a failed reload in the workers, and retry the load."""
        runtime = self._runtime
        if isinstance(runtime, _FleetRuntime):
            runtime.lose(key)


class _FleetRuntime(Runtime):
    """An entry of the registry; posts the serving table after every change."""

    def __init__(
        self,
        fleet: Fleet,
        options: RegistryOptions,
        root: Path | StoreUrl | None,
        models: Sequence[ModelConfig],
        observers: Observers,
    ) -> None:
        self._fleet = fleet
        super().__init__(options, root, models, observers, make_loader=self._make_fleet_loader, coordinator=self)

    def _make_fleet_loader(
        self, id: ServableId, directory: VersionDirectory, config: ModelConfig, options: RegistryOptions
    ) -> Loader:
        return _FleetLoader(self._fleet.rollout, self.loop, id, directory, config)

    def _predictor_of(self, version: ManagedVersion, servable: Servable) -> Predictor:
        assert isinstance(version.loader, _FleetLoader)
        return _FleetPredictor(version.loader)

    def resolve(self, name: str, version: int | None, label: str | None) -> ManagedVersion:
        """Refuse: requests go to the workers.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError("the supervisor of workers answers no request")

    # The runtime is the coordinator of its own manager (lifecycle/coordinator.py).

    async def hold(self, version: ManagedVersion, servable: Servable) -> None:
        """Return at once: a load has returned only after every worker was ready."""

    def serving_changed(self) -> None:
        """Let all workers switch at once."""
        serving: dict[str, dict[int, int]] = {}
        for version in self.manager.serving():
            assert isinstance(version.loader, _FleetLoader)
            assert version.loader.key is not None
            serving.setdefault(version.id.name, {})[version.id.version] = version.loader.key.attempt
        self._fleet.post(ServingTable(serving, {name: dict(labels) for name, labels in self.models.labels.items()}))

    def on_models(self, configs: Mapping[str, ModelConfig]) -> None:
        """As `Runtime.on_models`; also sends the configurations to the workers."""
        super().on_models(configs)
        self._fleet.set_configs(dict(configs))
        self.serving_changed()

    def lose(self, key: Key) -> None:
        """As `FleetRegistry.lose`."""
        for version in self.manager.serving():
            if isinstance(version.loader, _FleetLoader) and version.loader.key == key:
                self.manager.withdraw(version)


class _FleetLoader:
    """Loads a generation of a version in every worker. The methods block, so load threads call the loader."""

    batching = None
    note = ""
    warmup_records: int | None = None

    def __init__(
        self,
        rollout: Rollout,
        loop: asyncio.AbstractEventLoop,
        id: ServableId,
        directory: VersionDirectory,
        config: ModelConfig,
    ) -> None:
        self.key: Key | None = None
        self._rollout = rollout
        self._loop = loop
        self._id = id
        self._directory = directory
        self._config = config
        self._crashes = 0

    def __repr__(self) -> str:
        return f"<_FleetLoader {self._id}, {self.key}>"

    def load(self) -> Servable:
        """Return when every worker has loaded and warmed up the version.

        Raises:
            LoadError: A worker could not load the version, or the version ended two processes that loaded it.
        """
        alone = self._crashes > 0
        while True:
            if self._crashes >= CRASHES:
                raise LoadError(
                    f"{self._crashes} workers ended while they loaded {self._directory.path}; it is not tried again "
                    "before its directory changes",
                    code=Code.ABORTED,
                )
            try:
                loaded = self._on_loop(self._rollout.load(self._id.name, self._directory, self._config, alone))
            except CrashedError as crash:
                # Several versions loaded, so the version may be innocent: load each version alone.
                self._crashes += crash.alone
                alone = True
            else:
                self.key, self.note = loaded.key, loaded.note
                return _FleetServable(loaded)

    def warm_up(self, servable: Servable) -> None:
        """Return at once: the workers have warmed up."""

    def warm_up_thread(self, servable: Servable) -> None:
        """Return at once: the workers have warmed up each of their threads."""

    def unchanged(self) -> bool:
        """Return True: each worker has compared the loaded files."""
        return True

    def unload(self, servable: Servable | None) -> None:
        """Return when no worker has the version any more."""
        self._on_loop(self.dropped())

    def give_back(self) -> None:
        """Return at once: the workers free the memory themselves."""

    async def dropped(self) -> None:
        """Let every worker answer pending requests and unload the version."""
        if self.key is not None:
            await self._rollout.drop(self.key)

    def _on_loop(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()


class _FleetServable:
    """A version in the supervisor: the facts reported by a worker."""

    def __init__(self, loaded: Loaded) -> None:
        self.kind = loaded.kind
        self.reads_files_at_run_time = loaded.reads_files_at_run_time
        self.signatures = {name: Signature(name, {}, {}, batching=found) for name, found in loaded.batching.items()}
        self.signature_defs: Mapping[str, Any] = {}

    def run(self, *args: Any, **options: Any) -> Any:
        """Raise an AssertionError: requests go to the workers."""
        raise AssertionError("requests go to the workers")


class _FleetPredictor:
    """Stands for the workers' pending requests to a withdrawn version."""

    def __init__(self, loader: _FleetLoader) -> None:
        self._loader = loader

    def submit(self, *args: Any, **options: Any) -> Any:
        """Raise an AssertionError: requests go to the workers."""
        raise AssertionError("requests go to the workers")

    submit_call = submit
    trouble = None

    def abort(self, error: Any = None) -> None:
        """Return at once: the workers end their requests."""

    async def aclose(self) -> None:
        """Wait until the last request has been answered."""
        await self._loader.dropped()

    def statistics(self) -> None:
        """Return None: each worker has its own statistics."""
