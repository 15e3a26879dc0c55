"""The parent process of `--workers=N`: watches the disk, decides, keeps workers alive; answers no request.

`run_supervisor` reads from top to bottom as the process lives, like `process.run_server`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from embedserve.concurrency.container import usable_cpus
from embedserve.errors import NotReadyError, ServingError, StartError
from embedserve.server.applied_config import AppliedConfig, log_models
from embedserve.server.config import GrpcConfig, ServerConfig
from embedserve.server.listening import EVERY_IPV4, bound_sockets
from embedserve.server.process import check_port_is_free
from embedserve.server.rest_port import listening_sockets
from embedserve.server.standalone import (
    announce_ready,
    first_failure,
    leave,
    obey_hangups,
    report_failed_start,
    stop_on_signals,
    wait_until_ready,
)
from embedserve.server.workers.fleet import Fleet, FleetHooks
from embedserve.server.workers.fleet_metrics import FleetMetrics, Measurement
from embedserve.server.workers.fleet_registry import FleetRegistry
from embedserve.server.workers.messages import MetricOf, MetricsPage, Reload, Setup, Status
from embedserve.server.workers.process import WorkerProcess
from embedserve.server.workers.worker_limits import check_supported, worker_config

__all__ = ["run_supervisor"]

logger = logging.getLogger("embedserve")

# Seconds between posts of the status to the workers, for changes without notice, such as a vanished base path.
STATUS_INTERVAL = 1.0


async def run_supervisor(config: ServerConfig) -> int:
    """Load the models in every worker, serve until SIGTERM or SIGINT, drain, and return the process's exit status."""
    status = 0
    supervisor: _Supervisor | None = None

    def at_once() -> None:
        if supervisor is not None:
            supervisor.fleet.kill()

    with stop_on_signals(at_once) as stop:
        try:
            check_supported(config)
            with listening_sockets(config.rest) as listeners, _reserved_port(config.grpc):
                supervisor = _Supervisor(config, listeners)
                await supervisor.serve(stop)
        except* (ServingError, OSError) as failures:
            status = report_failed_start(first_failure(failures))
        if supervisor is not None:
            await leave(supervisor.registry, status)
    return status


@contextmanager
def _reserved_port(config: GrpcConfig) -> Iterator[None]:
    """Keep the workers' gRPC port from further processes, even while no worker holds the port.

    Raises:
        StartError: The port is taken, or an address is not this machine's.
    """
    check_port_is_free(config)
    with contextlib.ExitStack() as stack:
        if config.port is not None:
            try:
                for each in bound_sockets(config.hosts or (EVERY_IPV4,), config.port, shared=True):
                    stack.enter_context(each)
            except OSError as error:
                raise StartError(f"Failed to BuildAndStart gRPC server: port {config.port}: {error.strerror}") from None
        yield


class _Supervisor:
    """The parent's state: the workers, the deciding registry, and the posted status."""

    def __init__(self, config: ServerConfig, listeners: list[socket.socket]) -> None:
        self._config = config
        self._listeners = listeners
        self._metrics = FleetMetrics() if config.rest.port is not None and config.rest.metrics_path else None
        for_workers = worker_config(config, usable_cpus())
        self.fleet = Fleet(
            lambda index: Setup(index, config.workers, for_workers),
            config.workers,
            listeners,
            config.worker_timeout,
            FleetHooks(self._answer, lambda key: self.registry.lose(key), self._bury),
        )
        self.registry = FleetRegistry(config, self.fleet, self._metrics.ended if self._metrics else None)
        self._applied = AppliedConfig(self.registry, config)

    async def serve(self, stop: asyncio.Event) -> None:
        """Serve from the first process to the last answer."""
        if self._config.models is not None:
            log_models(self._config.models)
        rest, ports = bool(self._listeners), self._config.grpc
        grpc = ports.port is not None or ports.socket_path is not None
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.fleet.run())
            await self.registry.start(wait=False)
            posting = tasks.create_task(self._keep_status_posted())
            obeying = tasks.create_task(obey_hangups(self._applied.reread))
            if self._config.rest.early:
                self.fleet.open(rest=rest, grpc=False)
            following: asyncio.Task[None] | None = None
            if await wait_until_ready(self.registry, stop):
                self.fleet.open(rest=rest, grpc=grpc)
                if await _first(self.fleet.opened(), stop):
                    announce_ready()
                following = tasks.create_task(self._applied.follow())
            await stop.wait()
            self.registry.begin_drain()
            obeying.cancel()
            if following is not None:
                following.cancel()
            self._post_status()
            for listener in self._listeners:
                listener.close()  # Open listeners would let connections wait for a worker in vain.
            await self.fleet.drain(self._config.options.drain_timeout)
            posting.cancel()

    # Questions of workers, answered for all workers.

    async def _answer(self, question: Any) -> Any:
        match question:
            case Reload(config):
                await self._reload(config)
            case MetricsPage():
                measured = await self._measured()
                assert self._metrics is not None
                return await asyncio.to_thread(self._metrics.page, measured)
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
            await self._applied.reload(ModelServerConfig.FromString(config))
        finally:
            self._post_status()  # After the answer a client may ask any worker.

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


async def _first(work: Any, stop: asyncio.Event) -> bool:
    """Whether `work` was done before `stop` was set."""
    working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return bool(working.done())
    finally:
        working.cancel()
        stopped.cancel()
