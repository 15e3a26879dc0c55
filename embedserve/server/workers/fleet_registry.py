"""The supervisor's registry: a `ModelRegistry` in its decisions; the workers load its versions.

Versions, retries, labels, reloads, readiness and status therefore behave as in a single process. The registry answers
no request.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from embedserve.config import ModelConfig
from embedserve.errors import Code, LoadError, UnsupportedError
from embedserve.registry import ModelRegistry
from embedserve.runtime.runtime import Collaborators, Runtime
from embedserve.server.workers.fleet import Fleet
from embedserve.server.workers.messages import Key, Loaded, ServingTable
from embedserve.server.workers.rollout import CrashedError, Rollout
from embedserve.signature import Signature

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from embedserve.lifecycle.managed_version import ManagedVersion
    from embedserve.lifecycle.source import VersionDirectory
    from embedserve.observer import Observer
    from embedserve.servable import Loader, Predictor, Servable, ServableId
    from embedserve.server.config import ServerConfig

__all__ = ["FleetRegistry"]

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
        options = config.options.model_copy(update={"num_batch_threads": 1})
        super().__init__(
            config.root,
            models=config.models,
            observers=[observer] if observer else [],
            collaborators=lambda runtime: _collaborators(fleet, runtime),
            **{name: getattr(options, name) for name in type(options).model_fields},
        )

    async def changed(self) -> None:
        """Wait until the status has changed."""
        assert self._runtime is not None
        await self._runtime.monitor.changed()

    def lose(self, key: Key) -> None:
        """Withdraw a published version after a failed reload in the workers, and retry the load."""
        manager = self._here().manager
        for version in manager.serving():
            if _loader_of(version).key == key:
                manager.withdraw(version)


def _collaborators(fleet: Fleet, runtime: Runtime) -> Collaborators:
    def make_loader(id: ServableId, directory: VersionDirectory, config: ModelConfig) -> Loader:
        return _FleetLoader(fleet.rollout, id, directory, config)

    def make_predictor(version: ManagedVersion, servable: Servable) -> Predictor:
        return _FleetPredictor(_loader_of(version))

    def refuse() -> None:
        raise UnsupportedError("the supervisor of workers answers no request")

    return Collaborators(
        make_loader=make_loader,
        make_predictor=make_predictor,
        coordinator=_FleetCoordinator(fleet, runtime),
        before_request=refuse,
    )


def _loader_of(version: ManagedVersion) -> _FleetLoader:
    assert isinstance(version.loader, _FleetLoader)
    return version.loader


class _FleetCoordinator:
    """Posts the serving table after every change of an entry."""

    def __init__(self, fleet: Fleet, runtime: Runtime) -> None:
        self._fleet = fleet
        self._runtime = runtime

    async def hold(self, version: ManagedVersion, servable: Servable) -> None:
        """Return at once: a load has returned only after every worker was ready."""

    def serving_changed(self) -> None:
        """Let all workers switch at once."""
        serving: dict[str, dict[int, int]] = {}
        for version in self._runtime.manager.serving():
            key = _loader_of(version).key
            assert key is not None
            serving.setdefault(version.id.name, {})[version.id.version] = key.attempt
        labels = {name: dict(labels) for name, labels in self._runtime.models.labels.items()}
        self._fleet.post(ServingTable(serving, labels))

    def models_changed(self, configs: Mapping[str, ModelConfig]) -> None:
        """Send the configurations to the workers."""
        self._fleet.set_configs(dict(configs))
        self.serving_changed()


class _FleetLoader:
    """Loads a generation of a version in every worker."""

    batching = None
    note = ""

    def __init__(self, rollout: Rollout, id: ServableId, directory: VersionDirectory, config: ModelConfig) -> None:
        self.key: Key | None = None
        self._rollout = rollout
        self._id = id
        self._directory = directory
        self._config = config
        self._crashes = 0

    def __repr__(self) -> str:
        return f"<_FleetLoader {self._id}, {self.key}>"

    async def load(self) -> Servable:
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
                loaded = await self._rollout.load(self._id.name, self._directory, self._config, alone)
            except CrashedError as crash:
                # Several versions loaded, so the version may be innocent: load each version alone.
                self._crashes += crash.alone
                alone = True
            else:
                self.key, self.note = loaded.key, loaded.note
                return _FleetServable(loaded)

    async def unload(self) -> None:
        """Let every worker answer pending requests and unload the version; return when no worker has the version."""
        if self.key is not None:
            await self._rollout.drop(self.key)


class _FleetServable:
    """A version in the supervisor: the facts reported by a worker."""

    def __init__(self, loaded: Loaded) -> None:
        self.kind = loaded.kind
        self.reads_files_at_run_time = loaded.reads_files_at_run_time
        self.signatures = {name: Signature(name, {}, {}, batching=found) for name, found in loaded.batching.items()}
        self.signature_defs: Mapping[str, Message] = {}

    inline: Collection[str] = frozenset()

    def run(self, *args: object, **options: object) -> Any:
        """Raise an AssertionError: requests go to the workers."""
        raise AssertionError("requests go to the workers")


class _FleetPredictor:
    """Stands for the workers' pending requests to a withdrawn version."""

    def __init__(self, loader: _FleetLoader) -> None:
        self._loader = loader

    def submit(self, *args: object, **options: object) -> Any:
        """Raise an AssertionError: requests go to the workers."""
        raise AssertionError("requests go to the workers")

    submit_call = submit_to = submit
    trouble = None

    def abort(self, error: object = None) -> None:
        """Return at once: the workers end their requests."""

    async def aclose(self) -> None:
        """Wait until the last request has been answered."""
        await self._loader.unload()

    def max_batch_rows(self, signature_name: str) -> int:
        """Return 0: the workers batch."""
        return 0

    def statistics(self) -> None:
        """Return None: each worker has its own statistics."""
