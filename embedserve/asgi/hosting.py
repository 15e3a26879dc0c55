"""A registry and the ASGI host it runs in: may it be used here, and who enters it.

Called by the applications. Knows no route.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from embedserve.asgi.calls import Receive, Send
from embedserve.errors import NotReadyError, RegistryStateError

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry

__all__ = ["NOT_ENTERED", "check_usable", "run_lifespan"]

NOT_ENTERED = (
    "the registry has not been entered. If it stays so, the host application does not run its lifespan: add "
    "`lifespan=registry.lifespan` to the application that embedserve is mounted in, as in "
    "`Starlette(routes=[Mount('/ml', create_app(registry))], lifespan=registry.lifespan)`, or "
    "`async with registry.lifespan(app):` to its own lifespan"
)


def check_usable(registry: ModelRegistry) -> None:
    """Refuse, with what to change, to use a registry that is not entered, or that is another loop's.

    Raises:
        NotReadyError: Not entered.
        RegistryStateError: Entered on another loop.
    """
    loop = registry.loop
    if loop is None:
        raise NotReadyError(NOT_ENTERED)
    if loop is not asyncio.get_running_loop():
        raise RegistryStateError(
            "this application runs on another event loop than its registry: enter the registry on the loop that "
            "serves (`lifespan=registry.lifespan`), not by plain `with registry` and not in another thread"
        )


async def run_lifespan(registry: ModelRegistry, app: Any, receive: Receive, send: Send) -> None:
    """Enter the registry where nobody else did: `app` is the whole application, not a mounted one.

    Raises:
        Exception: What went wrong, once the host has been told: some hosts (test clients) wait for it.
    """
    await receive()
    step = "startup"
    try:
        async with AsyncExitStack() as stack:
            if registry.loop is None:
                await stack.enter_async_context(registry.lifespan(app))
            check_usable(registry)
            await send({"type": "lifespan.startup.complete"})
            step = "shutdown"
            await receive()
    except Exception as error:
        await send({"type": f"lifespan.{step}.failed", "message": str(error)})
        raise
    else:
        await send({"type": "lifespan.shutdown.complete"})
