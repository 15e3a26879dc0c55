"""One registry behind every server that can share a process and a loop; says their ports and serves until SIGTERM.

`python -m tests.interop.server MODELS`; the key `NAME+gzip` is the same server with compressed answers.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from contextlib import AsyncExitStack
from typing import Any, Literal

import hypercorn.asyncio
import hypercorn.config
import uvicorn

from embedserve import ModelRegistry
from embedserve.grpc import Access, GrpcMiddleware, serve
from embedserve.rest import create_app

PORTS = "serving on "


def _listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


async def _hypercorn(app: Any, tasks: asyncio.TaskGroup, stop: asyncio.Event) -> int:
    listener = _listener()
    port: int = listener.getsockname()[1]
    config = hypercorn.config.Config()
    config.accesslog = None
    config.bind = [f"fd://{listener.detach()}"]
    tasks.create_task(hypercorn.asyncio.serve(app, config, shutdown_trigger=stop.wait, mode="asgi"))
    return port


async def _uvicorn(app: Any, tasks: asyncio.TaskGroup, stop: asyncio.Event, http: Any = "auto") -> int:
    listener = _listener()
    server = uvicorn.Server(
        uvicorn.Config(app, http=http, lifespan="off", ws="none", log_config=None, access_log=False)
    )

    async def serve() -> None:
        config = server.config
        config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener])
        await stop.wait()
        await server.shutdown(sockets=[listener])

    tasks.create_task(serve())
    port: int = listener.getsockname()[1]
    return port


async def _main(models: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    ports: dict[str, int | None] = {}
    # One thread runs models: a run that its client has given up must be stopped, or nothing is answered any more.
    registry = ModelRegistry(models, num_batch_threads=1, watch=False)
    kinds: tuple[tuple[str, Literal["none", "gzip"]], ...] = (("", "none"), ("+gzip", "gzip"))
    async with registry, asyncio.TaskGroup() as tasks, AsyncExitStack() as stack:
        for suffix, compression in kinds:
            chosen: dict[str, Any] = {"compression": compression, "access": Access(session_run="local")}
            server = serve(registry, transport="grpcio", host="127.0.0.1", port=0, **chosen)
            ports[f"grpcio{suffix}"] = (await stack.enter_async_context(server)).port
            app = GrpcMiddleware(create_app(registry), registry, all_calls=True, cors=True, **chosen)
            ports[f"hypercorn{suffix}"] = await _hypercorn(app, tasks, stop)
            ports[f"HttpProtocol{suffix}"] = await _uvicorn(app, tasks, stop, "embedserve.http:HttpProtocol")
            ports[f"uvicorn{suffix}"] = await _uvicorn(app, tasks, stop)
        print(f"{PORTS}{json.dumps(ports)}", file=sys.stderr, flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
