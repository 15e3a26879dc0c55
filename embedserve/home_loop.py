"""The event loop that something belongs to, and how callers on other loops and threads reach it.

`Runtime` is one. Where a call could only hang (a closed loop, a forked child, the loop itself waiting for itself) it
raises with the remedy instead. Knows no model.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from embedserve.errors import RegistryStateError

__all__ = ["HomeLoop"]

T = TypeVar("T")


class HomeLoop:
    """Belongs to the loop on which it is made, until it is closed."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self.closed = False

    def on_loop(self) -> bool:
        """Whether the caller runs on this loop."""
        return asyncio._get_running_loop() is self.loop

    @property
    def dead(self) -> bool:
        """Whether nothing can run here any more: the loop is closed, or in another process."""
        return self.loop.is_closed() or os.getpid() != self.pid

    def check_reachable(self) -> None:
        """Raise, with the remedy, where a call from outside the loop could only hang.

        Raises:
            RegistryStateError: A forked child, a closed loop or a loop that does not run.
        """
        if os.getpid() != self.pid:
            raise RegistryStateError(
                f"the registry was entered in process {self.pid}, this is a forked child (process {os.getpid()}): "
                "TensorFlow does not survive a fork; enter a registry of its own in the child, or spawn workers"
            )
        if self.closed:
            raise RegistryStateError("the registry has been left; enter it again with `async with` or `with`")
        if self.loop.is_closed() or not self.loop.is_running():
            state = "closed" if self.loop.is_closed() else "not running"
            raise RegistryStateError(
                f"the event loop that entered the registry is {state}; enter it again on the loop that runs, or use "
                "`with registry` for a private one"
            )

    async def bridge(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on this loop for a caller on another; cancellation is carried over."""
        return await asyncio.wrap_future(self._submit(call))

    def call_sync(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run a call on this loop for a thread that waits.

        Raises:
            RegistryStateError: The caller is on that loop, which would wait for itself.
        """
        if self.on_loop():
            raise RegistryStateError(
                "a `_sync` call on the registry's own event loop would wait for itself for ever: await the call "
                "without `_sync`, or make it from a thread (a plain `def` endpoint, asyncio.to_thread)"
            )

        async def on_loop() -> T:
            return await call()

        future = self._submit(on_loop())
        try:
            return future.result()
        except BaseException:
            future.cancel()  # KeyboardInterrupt in the waiting thread gives the request up.
            raise

    def _submit(self, call: Coroutine[Any, Any, T]) -> Future[T]:
        try:
            self.check_reachable()
            return asyncio.run_coroutine_threadsafe(call, self.loop)
        except BaseException as error:
            call.close()
            if isinstance(error, RuntimeError):  # The loop was closed just now.
                self.check_reachable()
            raise

    def call_soon(self, call: Callable[[], object]) -> None:
        """Run `call` on the loop from any thread; nothing is left to do once the loop is closed."""
        with suppress(RuntimeError):  # Closed.
            self.loop.call_soon_threadsafe(call)
