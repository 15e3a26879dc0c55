"""A registry and its ASGI host: whether the host may use the registry, the lifespan, and the path as sent.

The module knows no route.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from embedserve.asgi.calls import Receive, Scope, Send
from embedserve.concurrency.owner_loop import check_asyncio
from embedserve.errors import NotReadyError

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry

__all__ = ["NOT_ENTERED", "check_usable", "path_as_sent", "run_lifespan"]

NOT_ENTERED = (
    "the registry has not been entered. If it stays so, the host application does not run its lifespan: add "
    "`lifespan=registry.lifespan` to the application that embedserve is mounted in, as in "
    "`Starlette(routes=[Mount('/ml', create_app(registry))], lifespan=registry.lifespan)`, or "
    "`async with registry.lifespan(app):` to its own lifespan"
)


_SLASHES = (b"/", b"%2F", b"%2f")


def check_usable(registry: ModelRegistry) -> None:
    """Refuse a call on a loop that cannot reach the registry's loop; the message says how to change the host.

    Raises:
        NotReadyError: Not entered.
        RegistryStateError: The host runs on trio, the process is a forked child, or the registry's loop has ended.
    """
    loop = registry.loop
    if loop is None:
        raise NotReadyError(NOT_ENTERED)
    if loop is not asyncio._get_running_loop():
        check_asyncio()
        registry.check_reachable()


def path_as_sent(scope: Scope) -> str:
    """The path of a request without the slash that Litestar puts at the end of a mounted application's path."""
    path: str = scope["path"]
    raw = scope.get("raw_path")
    if raw and len(path) > 1 and path[-1] == "/" and not raw.partition(b"?")[0].endswith(_SLASHES):
        return path[:-1]
    return path


async def run_lifespan(registry: ModelRegistry, app: object, receive: Receive, send: Send) -> None:
    """Enter the registry, unless entered already, on any loop: `app` is the whole application, not a mounted part.

    Raises:
        Exception: The failure, after a message to the host: some hosts (test clients) wait for the message.
    """
    await receive()
    step = "startup"
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(registry.lifespan(app))
            await send({"type": "lifespan.startup.complete"})
            step = "shutdown"
            await receive()
    except Exception as error:
        await send({"type": f"lifespan.{step}.failed", "message": str(error)})
        raise
    else:
        await send({"type": "lifespan.shutdown.complete"})
