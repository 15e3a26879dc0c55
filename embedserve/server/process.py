"""The standalone process without workers: a registry and its ports. `serving` has the steps of its life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager

from embedserve.server import tensorflow_setup
from embedserve.server.applied_config import AppliedConfig
from embedserve.server.config import ServerConfig
from embedserve.server.ports import Port, Services, bind_ports, make_ports
from embedserve.server.serving import Service, run_service
from embedserve.server.standalone import make_metrics, make_registry

__all__ = ["run_server"]


async def run_server(config: ServerConfig) -> int:
    """Load the models, serve until SIGTERM or SIGINT, drain, and return the process's exit status."""

    def make(sockets: ExitStack) -> Service:
        bound = sockets.enter_context(bind_ports(config))
        metrics = make_metrics(config.rest)
        registry = make_registry(config, metrics)
        applied = AppliedConfig(registry, config)

        @asynccontextmanager
        async def started() -> AsyncIterator[Sequence[Port]]:
            await asyncio.to_thread(tensorflow_setup.apply, config.session_config)
            await registry.start(wait=False)
            services = Services(applied.reload, metrics, None if metrics is None else metrics.read)
            yield list((await make_ports(registry, config, bound, services)).values())

        return Service(config, registry, applied, started)

    return await run_service(make)
