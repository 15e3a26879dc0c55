"""The process inside Envoy: a registry and an ASGI application of REST and gRPC, alive during pyvoy's lifespan.

Pyvoy imports `app` and calls the application on an event loop in a separate thread. The module knows the parent process
by the link alone: no signal and no port.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import socket
from typing import TYPE_CHECKING, Any, NoReturn

from embedserve.errors import ServingError
from embedserve.registry import ModelRegistry
from embedserve.server import tensorflow_setup
from embedserve.server.applied_config import AppliedConfig, log_models
from embedserve.server.config import ServerConfig
from embedserve.server.log import configure_logging
from embedserve.server.pyvoy.envoy import LINK_VARIABLE
from embedserve.server.pyvoy.link import Link
from embedserve.server.standalone import (
    EXIT_FAILED_START,
    exit_now,
    first_failure,
    leave,
    make_metrics,
    make_registry,
    wait_until_ready,
)

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from embedserve.asgi.calls import Receive, Scope, Send
    from embedserve.metrics import Metrics

__all__ = ["PyvoyApp", "app"]

logger = logging.getLogger("embedserve")

# Exit status after a bug, and after the end of the parent.
EXIT_BUG = EXIT_ABANDONED = 1


class PyvoyApp:
    """The application of a process; the registry lives on the event loop of the first lifespan.

    Pyvoy has a loop for TCP and a second loop for HTTP/3, each with a lifespan. The adapters carry calls from the
    second loop to the first.
    """

    _asgi_single_callable = True  # Pyvoy requires the mark for an application without a coroutine function.

    def __init__(self) -> None:
        self._has_begun = False
        self._route: Any = None

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Return the coroutine to answer an ASGI connection; a wrapping coroutine would cost time in each call."""
        if scope["type"] == "lifespan":
            return self._lifespan(receive, send)
        answering: Coroutine[Any, Any, None] = self._route(scope, receive, send)
        return answering

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(overlook_late_events)
        if not self._has_begun:
            self._has_begun = True
            await self._live(receive, send)
        else:
            await _follow_the_first(receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Run from the start of the process to the end."""
        await receive()
        configure_logging()
        told = json.loads(os.environ.pop(LINK_VARIABLE))
        link = await Link.open(socket.socket(fileno=told["link"]))
        config_text = await link.told()
        if not config_text:
            _abandon(told["directory"])
        config = ServerConfig.from_json(config_text)
        stop = asyncio.Event()
        registry: ModelRegistry | None = None
        try:
            metrics = make_metrics(config.rest)
            registry = make_registry(config, metrics)
            async with asyncio.TaskGroup() as tasks:
                applied = AppliedConfig(registry, config)
                obeying = tasks.create_task(_obey(link, registry, applied, stop, tasks, told["directory"]))
                await self._serve(registry, config, applied, metrics, link, stop, tasks, receive, send)
                obeying.cancel()
        except* (ServingError, OSError) as failures:
            link.say("failed", first_failure(failures))
            await link.flush()
            if registry is not None:
                await leave(registry, EXIT_FAILED_START)
            # Not through Envoy: Envoy would log its whole configuration.
            exit_now(EXIT_FAILED_START)
        except* Exception:
            # Pyvoy would go on without the failed task: the drain, or the config file.
            logger.exception("A bug ends the server")
            exit_now(EXIT_BUG)
        assert registry is not None
        await leave(registry, 0)
        # Envoy has closed its connections by now, and exit handlers of TensorFlow's libraries complain inside Envoy.
        exit_now(0)

    async def _serve(
        self,
        registry: ModelRegistry,
        config: ServerConfig,
        applied: AppliedConfig,
        metrics: Metrics | None,
        link: Link,
        stop: asyncio.Event,
        tasks: asyncio.TaskGroup,
        receive: Receive,
        send: Send,
    ) -> None:
        """Serve from the first load to the end of the last request."""
        ending = asyncio.ensure_future(receive())
        ending.add_done_callback(lambda _: stop.set())
        if config.models is not None:
            log_models(config.models)
        await asyncio.to_thread(tensorflow_setup.apply, config.session_config)
        await registry.start(wait=False)
        self._route = _application(registry, config, applied, metrics).route
        if config.rest.early:
            link.say("opening")
            await send({"type": "lifespan.startup.complete"})
        following: asyncio.Task[None] | None = None
        if await wait_until_ready(registry, stop):
            if not config.rest.early:
                link.say("opening")
                await send({"type": "lifespan.startup.complete"})
            link.say("ready")
            following = tasks.create_task(applied.follow())
        await ending
        if following is not None:
            following.cancel()


def _application(registry: ModelRegistry, config: ServerConfig, applied: AppliedConfig, metrics: Metrics | None) -> Any:
    from embedserve.grpc import GrpcMiddleware
    from embedserve.rest import DEFAULT_METRICS_PATH, create_app

    rest, grpc = config.rest, config.grpc
    return GrpcMiddleware(
        create_app(
            registry,
            cors=rest.cors,
            timeout=rest.timeout,
            metrics=metrics,
            metrics_path=rest.metrics_path or DEFAULT_METRICS_PATH,
        ),
        registry,
        all_calls=True,
        cors=rest.cors,
        health=grpc.health,
        reflection=grpc.reflection,
        access=grpc.access,
        tensor_content=grpc.tensor_content,
        reload=applied.reload,
        metric=None if metrics is None else metrics.read,
    )


def overlook_late_events(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Ignore a loop's complaint about pyvoy, which delivers events to a cancelled `receive`."""
    if not isinstance(context.get("exception"), asyncio.InvalidStateError):
        loop.default_exception_handler(context)


async def _follow_the_first(receive: Receive, send: Send) -> None:
    """Run the lifespan of the second loop; pyvoy begins the lifespan after the start of the first loop."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def _obey(
    link: Link,
    registry: ModelRegistry,
    applied: AppliedConfig,
    stop: asyncio.Event,
    tasks: asyncio.TaskGroup,
    directory: str,
) -> None:
    """Follow the parent's orders, and leave at once when the parent has ended."""
    while (said := await link.heard()) is not None:
        if said == "reread":
            tasks.create_task(applied.reread())
        elif said == "give up":
            registry.give_up()
        else:
            registry.begin_drain()
            stop.set()
    _abandon(directory)


def _abandon(directory: str) -> NoReturn:
    logger.error("The process that started this one has ended: leaving at once")
    shutil.rmtree(directory, ignore_errors=True)
    exit_now(EXIT_ABANDONED)


app = PyvoyApp()
"""The application for pyvoy to serve."""
