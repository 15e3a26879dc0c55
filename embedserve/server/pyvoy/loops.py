"""What pyvoy's event loops need of an application: calls that change loops, and silence about events that come late.

Called by `application`. Knows ASGI and nothing of what is served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from embedserve.asgi.calls import Receive, Scope, Send

__all__ = ["carry_over", "overlook_late_events"]

T = TypeVar("T")


async def carry_over(
    application: Callable[[Scope, Receive, Send], Awaitable[None]],
    home: asyncio.AbstractEventLoop,
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Run one ASGI call on the loop `home`, while its events are those of the running loop; cancellation crosses over.

    Costs two thread hops per event: for HTTP/3, whose loop is not the registry's.
    """
    here = asyncio.get_running_loop()

    async def received() -> Any:
        return await _on(here, receive)

    async def sent(event: Any) -> None:
        await _on(here, partial(send, event))

    await _on(home, partial(application, scope, received, sent))


async def _on(loop: asyncio.AbstractEventLoop, call: Callable[[], Awaitable[T]]) -> T:
    async def awaited() -> T:
        return await call()

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(awaited(), loop))


def overlook_late_events(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Exception handler of a loop: pyvoy gives an event to a `receive` that was cancelled, and the loop complains."""
    if not isinstance(context.get("exception"), asyncio.InvalidStateError):
        loop.default_exception_handler(context)
