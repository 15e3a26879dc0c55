"""The standalone process: a registry, REST and gRPC ports, the config file poller, signals and the drain.

`run_server` reads from top to bottom as the process lives. The module knows no flag.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from embedserve.errors import ServingError, StartError
from embedserve.registry import ModelRegistry
from embedserve.server import tensorflow_setup
from embedserve.server.applied_config import AppliedConfig, log_models
from embedserve.server.config import GrpcConfig, ServerConfig
from embedserve.server.listening import EVERY_IPV4, bound_sockets
from embedserve.server.rest_port import listening_sockets, serve_rest
from embedserve.server.standalone import (
    announce_ready,
    first_failure,
    leave,
    make_metrics,
    make_registry,
    obey_hangups,
    report_failed_start,
    stop_on_signals,
    wait_until_ready,
)

if TYPE_CHECKING:
    import grpc

    from embedserve.grpc.services.model_service import MetricReader, Reload
    from embedserve.metrics import Metrics

__all__ = ["check_port_is_free", "enter", "run_server", "serve_grpc"]

logger = logging.getLogger("embedserve")


async def run_server(config: ServerConfig) -> int:
    """Load the models, serve until SIGTERM or SIGINT, drain, and return the process's exit status."""
    status = 0
    registry: ModelRegistry | None = None
    with stop_on_signals() as stop:
        try:
            with listening_sockets(config.rest) as listeners:
                check_port_is_free(config.grpc)
                metrics = make_metrics(config.rest)
                registry = make_registry(config, metrics)
                rest = serve_rest(registry, config.rest, listeners, metrics)
                await _serve(registry, config, rest, metrics, stop)
        except* (ServingError, OSError) as failures:
            status = report_failed_start(first_failure(failures))
        if registry is not None:
            await leave(registry, status)
    return status


async def _serve(
    registry: ModelRegistry,
    config: ServerConfig,
    rest: AbstractAsyncContextManager[None],
    metrics: Metrics | None,
    stop: asyncio.Event,
) -> None:
    """Serve from the first load to the last answer. The adapters drain side by side, each in a separate task."""
    leaving = asyncio.Event()
    applied = AppliedConfig(registry, config)
    if config.models is not None:
        log_models(config.models)
    async with asyncio.TaskGroup() as tasks:
        await asyncio.to_thread(tensorflow_setup.apply, config.session_config)
        await registry.start(wait=False)
        if config.rest.early:
            await enter(tasks, rest, leaving)
        obeying = tasks.create_task(obey_hangups(applied.reread))
        follower: asyncio.Task[None] | None = None
        if await wait_until_ready(registry, stop):
            metric = None if metrics is None else metrics.read
            await enter(tasks, serve_grpc(registry, config.grpc, applied.reload, metric), leaving)
            if not config.rest.early:
                await enter(tasks, rest, leaving)
            announce_ready()
            follower = tasks.create_task(applied.follow())
        await stop.wait()
        registry.begin_drain()
        obeying.cancel()
        if follower is not None:
            follower.cancel()
        leaving.set()


async def enter(tasks: asyncio.TaskGroup, adapter: AbstractAsyncContextManager[None], leaving: asyncio.Event) -> None:
    """Return when `adapter` is open; close `adapter` when `leaving` is set."""
    opened = asyncio.Event()

    async def life() -> None:
        async with adapter:
            opened.set()
            await leaving.wait()

    tasks.create_task(life())
    await opened.wait()


# gRPC.


@asynccontextmanager
async def serve_grpc(
    registry: ModelRegistry, config: GrpcConfig, reload: Reload, metric: MetricReader | None
) -> AsyncIterator[None]:
    """Answer gRPC while the context lasts; without a port and a socket the context is empty.

    Raises:
        StartError: The port or socket cannot be opened.
    """
    if config.port is None and config.socket_path is None:
        yield
        return
    from embedserve.grpc import TlsConfig, serve

    tls = None if config.tls is None else TlsConfig(**config.tls.model_dump())
    kind = "ALTS credentials" if config.alts else "SSL credentials" if tls else "InsecureServerCredentials"
    logger.info("Using %s", kind)
    try:
        async with serve(
            registry,
            host=config.hosts or EVERY_IPV4,
            port=config.port,
            socket_path=config.socket_path,
            tls=tls,
            credentials=_alts() if config.alts else None,
            channel_arguments=tuple(config.channel_arguments.items()),
            health=config.health,
            reflection=config.reflection,
            access=config.access,
            tensor_content=config.tensor_content,
            reload=reload,
            metric=metric,
        ):
            if config.access.profiler != "none":
                logger.info("Profiler service is enabled")
            yield
    except OSError as error:
        raise StartError(f"Failed to BuildAndStart gRPC server: {error.strerror or error}") from error


def _alts() -> grpc.ServerCredentials:
    import grpc

    return grpc.alts_server_credentials()


def check_port_is_free(config: GrpcConfig) -> None:
    """Find an unavailable gRPC port before the models are loaded.

    Raises:
        StartError: The port is taken, or an address is not this machine's.
    """
    if config.port is None:
        return
    try:
        for each in bound_sockets(config.hosts or (EVERY_IPV4,), config.port):
            each.close()
    except OSError as error:
        place = error.filename if config.hosts else f"port {config.port}"
        raise StartError(f"Failed to BuildAndStart gRPC server: {place}: {error.strerror}") from None
