"""What `async with registry.acquire(...)` enters: resolves a version on the registry's loop, from any loop.

Made by the registry; a caller that is cancelled on the way leaves no handle behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

from embedserve.handle import ModelHandle

if TYPE_CHECKING:
    from embedserve.runtime.runtime import Runtime

__all__ = ["Acquisition"]


class Acquisition:
    """What `ModelRegistry.acquire` returns: an async context manager that holds one version."""

    __slots__ = ("_handle", "_runtime", "_spec")

    def __init__(self, runtime: Callable[[], Runtime], *spec: Any) -> None:
        self._runtime = runtime
        self._spec = spec
        self._handle: ModelHandle | None = None

    async def __aenter__(self) -> ModelHandle:
        runtime = self._runtime()
        if runtime.on_loop():
            self._handle = ModelHandle(runtime, runtime.resolve(*self._spec))
            return self._handle
        acquired: ModelHandle | None = None
        left = False

        async def acquire() -> ModelHandle:
            nonlocal acquired
            if left:
                raise asyncio.CancelledError
            acquired = ModelHandle(runtime, runtime.resolve(*self._spec))
            return acquired

        def leave() -> None:
            nonlocal left
            left = True
            if acquired is not None:
                acquired.release()

        try:
            self._handle = await runtime.bridge(acquire())
        except asyncio.CancelledError:
            # The handle may be on its way here, or yet to be acquired: asyncio starts what was cancelled too early.
            runtime.call_soon(leave)
            raise
        return self._handle

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._handle is not None:
            self._handle.release()
