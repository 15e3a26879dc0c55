"""The standalone process: a registry, its REST and gRPC ports, the config file poller, signals and the drain.

`run_server` reads from top to bottom as the process lives. Called by `cli`, which decides every option; knows no flag.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from embedserve import tensorflow_setup
from embedserve.config import ModelConfig, RegistryOptions
from embedserve.errors import Code, ServingError, StartError
from embedserve.registry import ModelRegistry
from embedserve.rest_port import bound_socket, listening_socket, serve_rest
from embedserve.server_config import ConfigFile, GrpcConfig, RestConfig, ServerConfig
from embedserve.tfs_config import models_from_proto, read_model_server_config

if TYPE_CHECKING:
    import grpc

    from embedserve.metrics import Metrics

__all__ = ["report_failed_start", "run_server"]

logger = logging.getLogger("embedserve")

EXIT_FAILED_START = 255
# Seconds between log lines that say which models the start still waits for.
WAITING_LOG_INTERVAL = 10.0
# Seconds that unloading may take on top of `drain_timeout`.
UNLOAD_GRACE = 10.0


async def run_server(config: ServerConfig) -> int:
    """Load the models, serve until SIGTERM or SIGINT, drain, and return the process's exit status."""
    status = 0
    registry: ModelRegistry | None = None
    with _stop_on_signals() as stop:
        try:
            with listening_socket(config.rest) as listener:
                _check_port_is_free(config.grpc.port)
                metrics = _metrics(config.rest)
                registry = _registry(config, metrics)
                rest = serve_rest(registry, config.rest, listener, metrics)
                await _serve(registry, config, rest, metrics, stop)
        except* (ServingError, OSError) as failures:
            status = report_failed_start(_first(failures))
        if registry is not None:
            await _leave(registry, status)
    return status


async def _serve(
    registry: ModelRegistry,
    config: ServerConfig,
    rest: AbstractAsyncContextManager[None],
    metrics: Metrics | None,
    stop: asyncio.Event,
) -> None:
    """From the first load to the last answer. The adapters drain side by side, each in a task of its own."""
    leaving = asyncio.Event()
    applied = _AppliedConfig(registry, config)
    if config.models is not None:
        _log_models(config.models)
    async with asyncio.TaskGroup() as tasks:
        await asyncio.to_thread(tensorflow_setup.apply, config.session_config)
        await registry.start(wait=False)
        if config.rest.early:
            await _enter(tasks, rest, leaving)
        follower: asyncio.Task[None] | None = None
        if await _wait_until_ready(registry, stop):
            await _enter(tasks, _serve_grpc(registry, config.grpc, applied, metrics), leaving)
            if not config.rest.early:
                await _enter(tasks, rest, leaving)
            logger.info("[evhttp_server.cc : 250] NET_LOG: Entering the event loop ...")
            if config.config_file is not None and config.config_file.poll_interval is not None:
                follower = tasks.create_task(_follow(config.config_file, applied))
        await stop.wait()
        registry.begin_drain()
        if follower is not None:
            follower.cancel()
        leaving.set()


def _registry(config: ServerConfig, metrics: Metrics | None) -> ModelRegistry:
    options = {name: getattr(config.options, name) for name in RegistryOptions.model_fields}
    return ModelRegistry(config.root, models=config.models, observers=[metrics] if metrics else [], **options)


async def _enter(tasks: asyncio.TaskGroup, adapter: AbstractAsyncContextManager[None], leaving: asyncio.Event) -> None:
    """Return when `adapter` is open; it is left when `leaving` is set."""
    opened = asyncio.Event()

    async def life() -> None:
        async with adapter:
            opened.set()
            await leaving.wait()

    tasks.create_task(life())
    await opened.wait()


# Start.


async def _wait_until_ready(registry: ModelRegistry, stop: asyncio.Event) -> bool:
    """Wait for the first load; False when a signal came before.

    Raises:
        StartError: In TensorFlow Serving's words.
    """
    ready, stopped = asyncio.ensure_future(registry.wait_until_ready()), asyncio.ensure_future(stop.wait())
    try:
        while not (ready.done() or stopped.done()):
            await asyncio.wait({ready, stopped}, timeout=WAITING_LOG_INTERVAL, return_when=asyncio.FIRST_COMPLETED)
            for name, reason in registry.readiness().items():
                if reason is not None and not (ready.done() or stopped.done()):
                    logger.info("Still waiting for model %s: %s", name, reason)
        if stopped.done():
            return False
        ready.result()
        return True
    except StartError as error:
        raise _start_error(registry, error) from None
    finally:
        for waiting in (ready, stopped):
            waiting.cancel()
        await asyncio.wait({ready, stopped})


def _start_error(registry: ModelRegistry, error: StartError) -> StartError:
    """Say which versions failed as TensorFlow Serving says it (server_core.cc), then what the registry knows."""
    failed = []
    for name, reason in registry.readiness().items():
        decisive = next((status for status in registry.status(name).get(name, ()) if status.message), None)
        if reason is not None and decisive is not None:
            failed.append(
                f"{{name: {name} version: {decisive.version}}} due to error: {decisive.code.name}: {decisive.message}"
            )
    if not failed:
        return error
    listed = "".join(f"{each}}}, " for each in failed)
    return StartError(f"{len(failed)} servable(s) did not become available: {{{listed}}}")


def report_failed_start(error: Exception) -> int:
    """Print why the server did not start, where and as TensorFlow Serving does; the exit status is returned."""
    if isinstance(error, ServingError):
        code, message = Code(error.code), error.message
    else:
        code, message = Code.UNKNOWN, str(error)
    print(f"Failed to start server. Error: {code.name}: {message}", flush=True)
    return EXIT_FAILED_START


def _first(failures: BaseExceptionGroup[Any]) -> Exception:
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error


# Stop.


@contextmanager
def _stop_on_signals() -> Iterator[asyncio.Event]:
    """The event that the first SIGTERM or SIGINT sets; the second ends the process at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            logger.warning("%s again: leaving at once", number.name)
            _exit(128 + number)
        logger.info("%s: finishing the requests in flight; a second signal leaves at once", number.name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _leave(registry: ModelRegistry, status: int) -> None:
    """Unload every model. A thread that is stuck in TensorFlow cannot be stopped: the process then ends around it."""
    leaving = asyncio.ensure_future(registry.aclose())
    limit = registry.options.drain_timeout + UNLOAD_GRACE
    _, pending = await asyncio.wait({leaving}, timeout=limit)
    if pending:
        logger.error("Models are still in use after %g s: leaving without them", limit)
        _exit(status)
    leaving.result()


def _exit(status: int) -> None:
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)


# Configuration while serving.


class _AppliedConfig:
    """Applies one `ModelServerConfig` after the other, from the file and from HandleReloadConfigRequest."""

    def __init__(self, registry: ModelRegistry, config: ServerConfig) -> None:
        self._registry = registry
        self._platforms = config.platforms
        self._latest: Any = None if config.config_file is None else config.config_file.applied

    async def apply(self, config: Any, *, wait: bool = True) -> None:
        """Check `config` against the one in force, then serve what it says; calls wait for each other in the registry.

        Raises:
            ServingError: As `models_from_proto` and `ModelRegistry.reconfigure`.
        """
        models = models_from_proto(config, platforms=self._platforms, previous=self._latest)
        if config != self._latest:
            _log_models(models)
        self._latest = config
        await self._registry.reconfigure(models, wait=wait)


def _log_models(models: Sequence[ModelConfig]) -> None:
    logger.info("Adding/updating models.")
    for model in models:
        logger.info(" (Re-)adding model: %s", model.name)
    logger.info("Finished adding/updating models")


async def _follow(file: ConfigFile, applied: _AppliedConfig) -> None:
    """Apply the config file again and again, changed or not: it overrides what a reload request has set."""
    assert file.poll_interval is not None
    while True:
        try:
            config = await asyncio.to_thread(read_model_server_config, file.path)
        except ServingError as error:
            logger.error("Failed to read ModelServerConfig file: %s", error)
        else:
            try:
                # Without waiting: a model that cannot load must not keep the next edit, its cure, from being read.
                await applied.apply(config, wait=False)
            except ServingError as error:
                logger.error("PollFilesystemAndReloadConfig failed to ReloadConfig: %s", error)
        await asyncio.sleep(file.poll_interval)


# gRPC.


@asynccontextmanager
async def _serve_grpc(
    registry: ModelRegistry, config: GrpcConfig, applied: _AppliedConfig, metrics: Metrics | None
) -> AsyncIterator[None]:
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
            port=config.port,
            socket_path=config.socket_path,
            tls=tls,
            credentials=_alts() if config.alts else None,
            channel_arguments=tuple(config.channel_arguments.items()),
            health=config.health,
            reflection=config.reflection,
            profiler=config.profiler,
            tensor_content=config.tensor_content,
            reload=applied.apply,
            metric=None if metrics is None else partial(_first_cell, metrics),
        ):
            if config.profiler:
                logger.info("Profiler service is enabled")
            yield
    except OSError as error:
        raise StartError(f"Failed to BuildAndStart gRPC server: {error.strerror or error}") from error


def _first_cell(metrics: Metrics, name: str) -> int:
    """What HandleReloadConfigRequest reports of a metric, whose `name` is TensorFlow Serving's with slashes."""
    mangled = re.sub(r"[^A-Za-z0-9_]", ":", name)
    return next((int(m.samples[0].value) for m in metrics.collect() if m.name == mangled and m.samples), 0)


def _alts() -> grpc.ServerCredentials:
    import grpc

    return grpc.alts_server_credentials()


def _check_port_is_free(port: int | None) -> None:
    """Find a taken gRPC port before the models are loaded, not after."""
    if port is None:
        return
    try:
        bound_socket(socket.AF_INET, "0.0.0.0", port).close()
    except OSError as error:
        raise StartError(f"Failed to BuildAndStart gRPC server: port {port}: {error.strerror}") from None


def _metrics(config: RestConfig) -> Metrics | None:
    if config.port is None or config.metrics_path is None:
        return None
    from embedserve.metrics import Metrics

    return Metrics()
