"""Carries the calls of a host on a foreign event loop over to the registry's loop, and their events back.

The module knows ASGI, and not the work of the calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from embedserve.asgi.calls import ClientDisconnected, Event, Receive, Scope, Send
from embedserve.errors import RegistryStateError

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry

__all__ = ["carry_over", "is_elsewhere"]

T = TypeVar("T")

Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def is_elsewhere(registry: ModelRegistry) -> bool:
    """Whether the caller runs on a loop other than the registry's, and can reach the registry's loop.

    False also for an unreachable loop: the call then continues here, and `check_usable` reports the reason.
    """
    if asyncio._get_running_loop() is None or registry.loop is None:
        return False
    try:
        registry.check_reachable()
    except RegistryStateError:
        return False
    return True


async def carry_over(
    registry: ModelRegistry, application: Application, scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer an ASGI call on the registry's loop; `receive` and `send` run on the caller's loop.

    Cancellation crosses over either way, as does the wait for a client that reads slowly. A call costs two changes of
    threads, and each event two more.

    Raises:
        RegistryStateError: The registry was left before the call ended.
    """
    here = asyncio.get_running_loop()

    async def received() -> Event:
        return await _on(here, receive)

    async def sent(event: Event) -> None:
        await _on(here, partial(send, event))

    async def answered() -> None:
        await application(scope, received, sent)

    task = asyncio.current_task()
    assert task is not None
    try:
        await registry.run_on_loop(answered)
    except asyncio.CancelledError:
        if task.cancelling():
            raise
        raise RegistryStateError("the registry was left before this call was answered") from None


async def _on(loop: asyncio.AbstractEventLoop, call: Callable[[], Awaitable[T]]) -> T:
    async def awaited() -> T:
        return await call()

    work = awaited()
    try:
        future = asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:  # The loop is closed.
        work.close()
        raise ClientDisconnected("the event loop of the host has ended before the answer was there") from None
    return await asyncio.wrap_future(future)
