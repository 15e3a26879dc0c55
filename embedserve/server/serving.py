"""One script for every kind of server process: start, open the ports, serve, drain, leave.

`run_service` is the life of a process with a command line: a single process, or the supervisor of workers. A worker
opens its ports on orders, and drains with the same `drain`, which promises the order of every drain.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass

from embedserve.errors import ServingError
from embedserve.registry import ModelRegistry
from embedserve.server.applied_config import AppliedConfig, log_models
from embedserve.server.config import ServerConfig
from embedserve.server.ports import Port
from embedserve.server.standalone import (
    announce_ready,
    first_failure,
    leave,
    obey_hangups,
    report_failed_start,
    stop_on_signals,
    wait_until_ready,
)
from embedserve.server.terminal import progress, show_served

__all__ = ["Service", "drain", "run_service"]

logger = logging.getLogger("embedserve")


@dataclass(frozen=True)
class Service:
    """A server process before its start.

    Attributes:
        config: The configuration.
        registry: The registry, not entered yet.
        applied: Applies later configurations of models.
        started: Starts the registry without waiting, and gives the ports. The context ends after the drain.
    """

    config: ServerConfig
    registry: ModelRegistry
    applied: AppliedConfig
    started: Callable[[], AbstractAsyncContextManager[Sequence[Port]]]


async def run_service(make: Callable[[ExitStack], Service], at_once: Callable[[], object] = bool) -> int:
    """Load the models, serve until SIGTERM or SIGINT, drain, and return the process's exit status.

    Args:
        make: Binds the sockets, which the stack closes at the end, and makes the service.
        at_once: Called at a second signal, before the process ends without a drain.
    """
    status = 0
    service: Service | None = None
    with stop_on_signals(at_once) as stop, ExitStack() as sockets:
        try:
            service = make(sockets)
            await _serve(service, stop)
        except* (ServingError, OSError) as failures:
            status = report_failed_start(first_failure(failures))
        if service is not None:
            await leave(service.registry, status)
    return status


async def _serve(service: Service, stop: asyncio.Event) -> None:
    """Serve from the first load to the last answer."""
    registry, applied = service.registry, service.applied
    if service.config.models is not None:
        log_models(service.config.models)
    opened: list[Port] = []
    starting = ExitStack()
    starting.enter_context(progress(registry))
    async with service.started() as ports, asyncio.TaskGroup() as tasks:
        background = [tasks.create_task(obey_hangups(applied.reread))]
        try:
            with starting:
                await _open((port for port in ports if port.early), opened, stop)
                serves = await wait_until_ready(registry, stop) and await _open(ports, opened, stop)
            if serves:
                announce_ready()
                show_served(registry, service.config)
                background.append(tasks.create_task(applied.follow()))
            await stop.wait()
        finally:
            for task in background:
                task.cancel()
            await drain(registry, ports)


async def _open(ports: Iterable[Port], opened: list[Port], stop: asyncio.Event) -> bool:
    """Open the ports that are not open; False when a signal came before."""
    for port in ports:
        if port not in opened:
            opened.append(port)
            if not await _first(port.open(), stop):
                return False
    return True


async def drain(registry: ModelRegistry, ports: Iterable[Port]) -> None:
    """Drain the ports side by side, in an order that holds for every kind of server process.

    1. `registry.begin_drain()`: readiness, health and the watches of health turn, and requests are still answered.
    2. Each port accepts no more connections.
    3. Each port lingers for half a second: busy connections end with their next answers, or get a GOAWAY.
    4. Idle connections end, and the requests in flight are answered.
    5. After `drain_timeout` seconds the remaining requests are cut with UNAVAILABLE, and the connections end.
    6. The caller leaves the registry: every version is unloaded.

    Steps 2 to 5 are `HttpListener.drain`. A supervisor's port drains one worker after another, each in the same order.
    """
    if registry.loop is not None:
        registry.begin_drain()
    async with asyncio.TaskGroup() as tasks:
        for port in ports:
            tasks.create_task(port.drain(registry.options.drain_timeout))


async def _first(work: Awaitable[object], stop: asyncio.Event) -> bool:
    """Whether `work` was done before `stop` was set.

    Raises:
        ServingError: From `work`.
    """
    working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for each in (working, stopped):
            each.cancel()
        await asyncio.wait({working, stopped})
