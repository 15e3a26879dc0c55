"""The supervisor's registry: a real one in what it decides, whose versions are loaded by workers, not by itself.

So versions, retries, labels, reloads, readiness and status are what they are in one process. It answers no request.
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

# A process may end by chance while it loads a version; a second one is the version's fault.
CRASHES = 2


class FleetRegistry(ModelRegistry):
    """Decides for all workers of `fleet`, which publish and withdraw in one step.

    Args:
        config: The server's configuration.
        fleet: Who loads.
        observer: Hears of versions' states.
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
        """Wait until something of the status has changed."""
        assert self._runtime is not None
        await self._runtime.monitor.changed()

    def lose(self, key: Key) -> None:
        """A version that was published cannot be had any more: withdraw it, and try to load it anew."""
        runtime = self._runtime
        if isinstance(runtime, _FleetRuntime):
            runtime.lose(key)


class _FleetRuntime(Runtime):
    """One entry of the registry; posts what serves whenever that changes."""

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

    # The coordinator of its own manager (lifecycle/coordinator.py).

    async def hold(self, version: ManagedVersion, servable: Servable) -> None:
        """Nothing to wait for: a load returns when every worker is ready."""

    def serving_changed(self) -> None:
        """Let all workers switch at once."""
        serving: dict[str, dict[int, int]] = {}
        for version in self.manager.serving():
            assert isinstance(version.loader, _FleetLoader)
            assert version.loader.key is not None
            serving.setdefault(version.id.name, {})[version.id.version] = version.loader.key.attempt
        self._fleet.post(ServingTable(serving, {name: dict(labels) for name, labels in self.models.labels.items()}))

    def on_models(self, configs: Mapping[str, ModelConfig]) -> None:
        """As `Runtime`, and the workers hear of it."""
        super().on_models(configs)
        self._fleet.set_configs(dict(configs))
        self.serving_changed()

    def lose(self, key: Key) -> None:
        """As `FleetRegistry`."""
        for version in self.manager.serving():
            if isinstance(version.loader, _FleetLoader) and version.loader.key == key:
                self.manager.withdraw(version)


class _FleetLoader:
    """Has one generation of a version loaded by every worker. Its methods block; they are called in load threads."""

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
            LoadError: One of them could not, or the version ends the processes that load it.
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
                self._crashes += crash.alone  # One of several may be innocent: then each is loaded by itself.
                alone = True
            else:
                self.key, self.note = loaded.key, loaded.note
                return _FleetServable(loaded)

    def warm_up(self, servable: Servable) -> None:
        """The workers have."""

    def warm_up_thread(self, servable: Servable) -> None:
        """The workers have, in each of their threads."""

    def unchanged(self) -> bool:
        """Each worker has compared what it loaded."""
        return True

    def unload(self, servable: Servable | None) -> None:
        """Return when no worker has the version any more."""
        self._on_loop(self.dropped())

    def give_back(self) -> None:
        """The workers hold the memory, and give it back themselves."""

    async def dropped(self) -> None:
        """Have every worker answer what it holds and unload the version."""
        if self.key is not None:
            await self._rollout.drop(self.key)

    def _on_loop(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()


class _FleetServable:
    """What the supervisor has of a version: what a worker said of it."""

    def __init__(self, loaded: Loaded) -> None:
        self.kind = loaded.kind
        self.reads_files_at_run_time = loaded.reads_files_at_run_time
        self.signatures = {name: Signature(name, {}, {}, batching=found) for name, found in loaded.batching.items()}
        self.signature_defs: Mapping[str, Any] = {}

    def run(self, *args: Any, **options: Any) -> Any:
        """Never called."""
        raise AssertionError("requests go to the workers")


class _FleetPredictor:
    """Stands for the requests that workers still answer with a version that was withdrawn."""

    def __init__(self, loader: _FleetLoader) -> None:
        self._loader = loader

    def submit(self, *args: Any, **options: Any) -> Any:
        """Never called."""
        raise AssertionError("requests go to the workers")

    submit_call = submit
    trouble = None

    def abort(self, error: Any = None) -> None:
        """The workers end their requests themselves."""

    async def aclose(self) -> None:
        """Wait until the last request has been answered."""
        await self._loader.dropped()

    def statistics(self) -> None:
        """Each worker has its own."""
