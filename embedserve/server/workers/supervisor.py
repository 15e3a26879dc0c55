"""The parent process of `--workers=N`: watches the disk, decides, keeps workers alive; answers no request.

`serving` has the steps of its life. The ports of the supervisor are the ports of all workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from embedserve.concurrency.container import usable_cpus
from embedserve.errors import NotReadyError, ServingError
from embedserve.events import acting_as
from embedserve.oip.repository import change_served
from embedserve.server.applied_config import AppliedConfig
from embedserve.server.config import ServerConfig
from embedserve.server.ports import Bound, Port, bind_ports
from embedserve.server.serving import Service, run_service
from embedserve.server.workers.fleet import Fleet, FleetHooks
from embedserve.server.workers.fleet_metrics import FleetMetrics, Measurement
from embedserve.server.workers.fleet_registry import FleetRegistry
from embedserve.server.workers.messages import Change, MetricOf, MetricsPage, Open, Reload, Setup, Status
from embedserve.server.workers.process import WorkerProcess
from embedserve.server.workers.worker_limits import check_supported, worker_config

if TYPE_CHECKING:
    pass


__all__ = ["run_supervisor"]

# Seconds between posts of the status to the workers, for changes without notice, such as a vanished base path.
STATUS_INTERVAL = 1.0


async def run_supervisor(config: ServerConfig) -> int:
    """Load the models in every worker, serve until SIGTERM or SIGINT, drain, and return the process's exit status."""
    supervisor: _Supervisor | None = None

    def make(sockets: ExitStack) -> Service:
        nonlocal supervisor
        check_supported(config)
        supervisor = _Supervisor(config, sockets.enter_context(bind_ports(config)))
        return Service(config, supervisor.registry, supervisor.applied, supervisor.started)

    def at_once() -> None:
        if supervisor is not None:
            supervisor.fleet.kill()

    return await run_service(make, at_once)


class _FleetPort:
    """The ports of all workers, from an order of the supervisor; `early` the REST port alone."""

    def __init__(self, fleet: Fleet, bound: Bound, wanted: Open, *, early: bool, drained: Callable[[], None]) -> None:
        self.early = early
        self._fleet = fleet
        self._bound = bound
        self._wanted = wanted
        self._drained = drained

    def __repr__(self) -> str:
        return f"<_FleetPort {self._wanted}>"

    async def open(self) -> None:
        self._fleet.open(rest=self._wanted.rest, grpc=self._wanted.grpc)
        if self.early:
            return  # A worker opens the port as soon as TensorFlow is imported there.
        await self._fleet.opened()
        if self._bound.path is not None:
            await asyncio.to_thread(self._bound.path.publish)

    async def drain(self, timeout: float) -> None:
        if self.early:
            return
        self._drained()
        for each in self._bound:
            each.close()  # Open sockets would let connections wait for a worker in vain.
        await self._fleet.drain(timeout)


class _Supervisor:
    """The parent's state: the workers, the deciding registry, and the posted status."""

    def __init__(self, config: ServerConfig, bound: Bound) -> None:
        self._config = config
        self._bound = bound
        self._metrics = FleetMetrics() if config.rest.port is not None and config.rest.metrics_path else None
        for_workers = worker_config(config, usable_cpus())
        self.fleet = Fleet(
            lambda index: Setup(index, config.workers, for_workers),
            config.workers,
            list(bound),
            config.worker_timeout,
            FleetHooks(self._answer, lambda key: self.registry.lose(key), self._bury),
        )
        self.registry = FleetRegistry(config, self.fleet, self._metrics.ended if self._metrics else None)
        self.applied = AppliedConfig(self.registry, config)

    @asynccontextmanager
    async def started(self) -> AsyncIterator[Sequence[Port]]:
        """Start the workers and the registry, and give the ports of all workers."""
        rest, ports = bool(self._bound.rest), self._config.grpc
        grpc = ports.port is not None or ports.socket_path is not None
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.fleet.run())
            await self.registry.start(wait=False)
            posting = tasks.create_task(self._keep_status_posted())
            found = [_FleetPort(self.fleet, self._bound, Open(rest, grpc), early=False, drained=self._post_status)]
            if self._config.rest.early and rest:
                early = Open(rest=True, grpc=False)
                found.append(_FleetPort(self.fleet, self._bound, early, early=True, drained=self._post_status))
            yield found
            posting.cancel()

    # Questions of workers, answered for all workers.

    async def _answer(self, question: object) -> object:
        match question:
            case Reload(config, actor):
                with acting_as(actor.identity, address=actor.address, reason=actor.reason):
                    await self._reload(config)
            case Change(name, served, actor):
                with acting_as(actor.identity, address=actor.address, reason=actor.reason):
                    await self._change(name, served)
            case MetricsPage(openmetrics):
                measured = await self._measured()
                assert self._metrics is not None
                return await asyncio.to_thread(self._metrics.page, measured, openmetrics=openmetrics)
            case MetricOf(name):
                if self._metrics is None:
                    return 0
                return self._metrics.total(await self._measured()).value(name)
        return None

    async def _reload(self, config: bytes) -> None:
        from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

        if self.registry.draining:
            raise NotReadyError("the server is draining: shutdown has begun")
        try:
            await self.applied.reload(ModelServerConfig.FromString(config))
        finally:
            self._post_status()  # After the answer a client may ask any worker.

    async def _change(self, name: str, served: bool) -> None:
        if self.registry.draining:
            raise NotReadyError("the server is draining: shutdown has begun")
        try:
            await change_served(self.registry, name, served)
        finally:
            self._post_status()

    async def _measured(self) -> list[Measurement]:
        await self.fleet.measure()
        cells = {process.index: process.cells for process in self.fleet.processes()}
        return [Measurement(worker, cells.get(worker.index)) for worker in self.fleet.workers()]

    def _bury(self, process: WorkerProcess) -> None:
        if self._metrics is not None:
            self._metrics.bury(process.index, process.cells)

    # Messages to all workers about all workers.

    async def _keep_status_posted(self) -> None:
        while True:
            self._post_status()
            changed = [asyncio.ensure_future(self.registry.changed()), asyncio.ensure_future(self.fleet.changes.next())]
            try:
                await asyncio.wait(changed, timeout=STATUS_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiting in changed:
                    waiting.cancel()

    def _post_status(self) -> None:
        registry, stuck = self.registry, self.fleet.stuck_in()
        readiness = registry.readiness()
        for name in stuck.keys() & readiness.keys():
            where = f"worker {', '.join(map(str, stuck[name]))}"
            readiness[name] = readiness[name] or f"{where} refuses it: runs of it are stuck there"
        unready = registry.unready() or (f"stuck: {', '.join(sorted(stuck))}" if stuck else None)
        status = Status(
            registry.status(),
            readiness,
            unready,
            registry.draining,
            self.fleet.workers(),
            self.fleet.suspects.listed(),
        )
        if status != self._posted:
            self._posted = status
            with suppress(ServingError):  # The status is larger than a shared value can hold, so the last status stays.
                self.fleet.status.post(status)

    _posted: Status | None = None
