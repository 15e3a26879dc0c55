"""Gives a request up when its client goes away, at almost no cost to requests that end soon.

The application wraps the work after the body in it. Knows ASGI's receive channel and nothing of what is cancelled.
"""

from __future__ import annotations

import asyncio
from typing import Self

from embedserve.rest.body import Receive
from embedserve.rest.errors import ClientDisconnected

__all__ = ["CancelOnDisconnect"]


class CancelOnDisconnect:
    """Cancels the current task inside the context once `receive` says `http.disconnect`.

    Listening costs a task per request, so it starts only after `delay` seconds: most requests have ended by then.

    Raises:
        ClientDisconnected: From the end of the context, in place of the CancelledError it caused.
    """

    def __init__(self, receive: Receive, delay: float = 0.05) -> None:
        self._receive = receive
        self._delay = delay
        self._listener: asyncio.Task[None] | None = None
        self._gone = False

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = loop.call_later(self._delay, self._start)
        return self

    def _start(self) -> None:
        self._listener = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        # The body has ended, so a host that says anything else would say it for ever.
        if (await self._receive())["type"] == "http.disconnect":
            self._gone = True
            self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._timer.cancel()
        if self._listener is not None and not self._listener.done():
            self._listener.cancel()
        if not self._gone:
            return
        if kind is None or not issubclass(kind, asyncio.CancelledError):
            # The work ended in the same turn of the loop: take the cancellation that is still on its way.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                kind = asyncio.CancelledError
        if self._task.uncancel() <= self._cancelling and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise ClientDisconnected("the client disconnected before the answer was there") from None
