"""A worker's registry: loads on orders, answers by the serving table, and shows the whole server's status.

Adapters see a `ModelRegistry` as in a single process. The registry watches no directory and decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from embedserve.errors import Code, LoadError, ServingError
from embedserve.lifecycle.manager import AspiredVersion
from embedserve.lifecycle.source_protocol import IdleSource
from embedserve.lifecycle.transition_policy import as_told
from embedserve.registry import ModelRegistry
from embedserve.runtime.runtime import Collaborators, Runtime
from embedserve.servable import ServableId, State
from embedserve.server.standalone import exit_now
from embedserve.server.workers.hands import NotedServable
from embedserve.server.workers.messages import (
    Configs,
    Dropped,
    Failed,
    Failure,
    Key,
    Load,
    Loaded,
    ServingTable,
    Status,
)

if TYPE_CHECKING:
    from embedserve.config import ModelConfig, RegistryOptions
    from embedserve.lifecycle.managed_version import ManagedVersion
    from embedserve.lifecycle.monitor import VersionStatus
    from embedserve.observer import Observer
    from embedserve.runtime.runtime import MakeBlockingLoader
    from embedserve.servable import Predictor, Servable
    from embedserve.server.workers.hands import Places
    from embedserve.server.workers.shared_value import SharedValue

__all__ = ["WorkerRegistry"]

logger = logging.getLogger("embedserve")

_NOTHING = Status({}, {}, "the supervisor has not said anything yet", False, ())


class WorkerRegistry(ModelRegistry):
    """Serves the versions in the serving table, and answers status questions for all workers.

    Args:
        options: Options with the worker's share of the limits.
        serving_table: The serving versions; posted by the supervisor.
        status: The status of all workers; posted by the supervisor.
        send: Sends a message to the supervisor.
        observers: As `ModelRegistry`.
        make_loader: Makes blocking loaders; None for loaders of SavedModels.
        places: Places for notes of current runs; None notes no runs.
    """

    def __init__(
        self,
        options: RegistryOptions,
        serving_table: SharedValue,
        status: SharedValue,
        send: Callable[[object], None],
        observers: Iterable[Observer] = (),
        make_loader: MakeBlockingLoader | None = None,
        places: Places | None = None,
    ) -> None:
        fields = {name: getattr(options, name) for name in type(options).model_fields}
        super().__init__(models=(), observers=observers, collaborators=self._follow, **fields)
        self._serving_table = serving_table
        self._status = status
        self._send = send
        self._make_loader = make_loader
        self._places = places
        self._orders: Orders | None = None
        self._seen: tuple[int, Status] = (0, _NOTHING)

    def _follow(self, runtime: Runtime) -> Collaborators:
        self._orders = orders = Orders(runtime, self._serving_table, self._send)

        def make_predictor(version: ManagedVersion, servable: Servable) -> Predictor:
            noted = servable if self._places is None else NotedServable(servable, version.id, self._places)
            return runtime.predictor_of(version, noted)

        return Collaborators(
            make_source=lambda options, root, listener, in_use: IdleSource(),
            make_loader=None if self._make_loader is None else runtime.in_threads(self._make_loader),
            make_predictor=make_predictor,
            policy=as_told,
            coordinator=orders,
            before_request=orders.before_request,
        )

    @property
    def orders(self) -> Orders:
        """The receiver of the supervisor's orders in the current entry."""
        assert self._orders is not None
        return self._orders

    @property
    def whole(self) -> Status:
        """The latest status of all workers."""
        if self._status.number != self._seen[0]:
            number, status = self._status.read()
            self._seen = number, status
        return self._seen[1]

    @property
    def draining(self) -> bool:
        """Whether the server or the worker is shutting down."""
        return super().draining or self.whole.draining

    def status(self, name: str | None = None) -> dict[str, tuple[VersionStatus, ...]]:
        """As `ModelRegistry`, for all workers together."""
        return {model: found for model, found in self.whole.versions.items() if name is None or model == name}

    def models(self) -> tuple[str, ...]:
        """As `ModelRegistry`, for all workers together."""
        return tuple(sorted(self.whole.readiness))

    def readiness(self) -> dict[str, str | None]:
        """As `ModelRegistry`, for all workers together."""
        return dict(self.whole.readiness)

    def refused(self) -> frozenset[str]:
        """Models refused by the worker because of stuck runs."""
        models = self._here().models
        return frozenset(name for name in models.configs if models.trouble(name) is not None)

    def unready(self) -> str | None:
        """As `ModelRegistry`, for all workers together, or for a leaving worker alone."""
        return self.whole.unready or super().unready()


def ending_error() -> ServingError:
    """The error of pending requests when a kernel aborts the process."""
    return ServingError(
        "the worker process that had this request ends: TensorFlow aborted it while it ran this or another request",
        code=Code.UNAVAILABLE,
    )


def _key_of(version: ManagedVersion) -> Key:
    return Key(version.id.name, version.id.version, version.fingerprint)


class Orders:
    """Follows the supervisor's orders and the serving table in an entry, as the coordinator of the entry's manager.

    Args:
        runtime: The entry.
        serving_table: The serving versions; posted by the supervisor.
        send: Sends a message to the supervisor.
    """

    def __init__(self, runtime: Runtime, serving_table: SharedValue, send: Callable[[object], None]) -> None:
        self._runtime = runtime
        self._ending = False
        self._serving_table = serving_table
        self._send = send
        self._following = False
        self._adopted = 0
        self._told: dict[str, dict[int, tuple[int, AspiredVersion]]] = {}
        self._held: dict[Key, tuple[ManagedVersion, Servable, asyncio.Future[None]]] = {}

    def before_request(self) -> None:
        """Adopt the last post: from the moment of a post all workers answer alike.

        Raises:
            ServingError: UNAVAILABLE, because the process ends.
        """
        if self._following and self._serving_table.number != self._adopted:
            self.adopt()
        if self._ending:
            raise ending_error()

    async def fail_all(self, patience: float) -> None:
        """Answer every request with UNAVAILABLE; return when all are answered, or after `patience` seconds."""
        self._ending = True
        deadline = asyncio.get_running_loop().time() + patience
        while self._runtime.manager.abort(lambda id: ending_error()) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    def follow_routes(self) -> None:
        """Answer by the serving table from now on; all versions in the table are loaded."""
        self._following = True
        self.adopt()

    def adopt(self) -> None:
        """Publish and withdraw by the serving table; synchronous, so a request sees the whole change."""
        if not self._following or self._serving_table.number == self._adopted:
            return
        self._adopted, serving_table = self._serving_table.read()
        assert isinstance(serving_table, ServingTable)
        wanted = {
            Key(name, version, attempt)
            for name, versions in serving_table.serving.items()
            for version, attempt in versions.items()
        }
        for key in wanted - {_key_of(version) for version in self._runtime.manager.serving()}:
            self._publish(key)
        for version in self._runtime.manager.serving():
            if (key := _key_of(version)) not in wanted:
                self._told.get(key.name, {}).pop(key.attempt, None)
                self._runtime.manager.withdraw(version)
                self._aspire(key.name)
        self._runtime.models.labels = {name: dict(labels) for name, labels in serving_table.labels.items()}

    def _publish(self, key: Key) -> None:
        held = self._held.pop(key, None)
        if held is None:
            # The supervisor posts only versions loaded by all workers. A worker without the version would answer with
            # the past.
            logger.critical("%s is to be served and is not loaded here: this worker ends", key)
            exit_now(1)
        else:
            version, servable, published = held
            self._runtime.manager.publish(version, servable)
            if not published.done():
                published.set_result(None)

    # Orders.

    def set_configs(self, configs: Configs) -> None:
        """Note the models' configurations."""
        self._runtime.models.configs = dict(configs.models)
        self._runtime.request_logs.set_models(self._runtime.models.configs)

    async def load(self, order: Load) -> None:
        """Load and warm up a version, hold the version until the serving table names the attempt, and report."""
        key, config = order.key, order.config
        self._runtime.models.configs.setdefault(key.name, config)

        id = ServableId(key.name, key.version)
        make_loader = partial(self._runtime.make_loader, id, order.directory, config)
        aspired = AspiredVersion(make_loader, key.attempt, str(order.directory.path))
        self._told.setdefault(key.name, {})[key.attempt] = key.version, aspired
        self._aspire(key.name)
        version = self._version_of(key)
        if version is None:
            refused = LoadError("the worker does not take it", code=Code.ABORTED)
            self._send(Failed(key, Failure.of(refused)))
            return
        await self._runtime.monitor.wait_until(
            lambda: key in self._held or version.failed or version.state is State.END
        )
        if key in self._held:
            servable = self._held[key][1]
            verdicts = {name: signature.batching for name, signature in servable.signatures.items()}
            self._send(Loaded(key, servable.kind, servable.reads_files_at_run_time, version.loader.note, verdicts))
        elif version.error is not None and version.aspired:  # Otherwise the version was dropped or replaced.
            self._send(Failed(key, Failure.of(version.error)))

    async def drop(self, key: Key) -> None:
        """Unload a version after the last request, and report."""
        self.adopt()
        self._told.get(key.name, {}).pop(key.attempt, None)
        self._aspire(key.name)
        await self._runtime.monitor.wait_until(lambda: self._version_of(key) is None)
        self._send(Dropped(key))

    def _aspire(self, name: str) -> None:
        """Aim for all versions ordered and not dropped; of several generations of a version, for the last."""
        told = self._told.get(name, {})
        aspired = {told[attempt][0]: told[attempt][1] for attempt in sorted(told)}
        self._runtime.manager.set_aspired_versions(name, aspired)

    def _version_of(self, key: Key) -> ManagedVersion | None:
        """The manager's version for the key, unless at its end."""
        for version in self._runtime.manager.versions_of(key.name):
            if version.fingerprint == key.attempt and version.state is not State.END:
                return version
        return None

    # The manager's coordinator (lifecycle/coordinator.py).

    async def hold(self, version: ManagedVersion, servable: Servable) -> None:
        """Wait until the serving table names the version, or the version is dropped."""
        if not version.aspired:
            return
        key, published = _key_of(version), asyncio.get_running_loop().create_future()
        self._held[key] = version, servable, published
        self._runtime.monitor.publish()
        dropped = asyncio.ensure_future(version.unaspired.wait())
        await asyncio.wait({published, dropped}, return_when=asyncio.FIRST_COMPLETED)
        dropped.cancel()
        self._held.pop(key, None)

    def serving_changed(self) -> None:
        """Return at once: the serving table told the change."""

    def models_changed(self, configs: Mapping[str, ModelConfig]) -> None:
        """Return at once: the supervisor told the change."""
