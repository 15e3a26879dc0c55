"""Ends a call early when the client goes away or the deadline passes, at almost no cost to short calls.

The module knows ASGI's receive channel, and not the work that is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from types import TracebackType
from typing import Any, Self, TypeAlias

from embedserve.errors import Code, DeadlineExceededError, ServingError

__all__ = ["Call", "Calls", "ClientDisconnected", "Event", "Receive", "Scope", "Send"]

Scope: TypeAlias = Mapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
# Frameworks type events in different ways, as mappings and as `TypedDict`s of asgiref: an application takes them all.
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]


# Seconds between two calls of a `receive` that returns at once.
_FIRST_PAUSE = 0.03
_LAST_PAUSE = 0.25


class ClientDisconnected(ServingError):
    """The client went away before the answer was ready; an answer has no reader now."""

    code = Code.CANCELLED


class Calls:
    """The calls of an application that are under way.

    Listening for a client costs a task, a deadline costs a timer, and most calls end before either is of use. A single
    timer for all calls ticks every `patience` seconds, and watches each call at the second tick after the call's start.
    """

    def __init__(self, patience: float = 0.02) -> None:
        self._patience = patience
        self._seen: set[Call] = set()
        self._new: set[Call] = set()
        self._ticking_on: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<Calls {len(self._new) + len(self._seen)} not watched yet>"

    def enter(self, receive: Receive | None = None, deadline: float | None = None) -> Call:
        """Context of a call whose body has been read; without `receive` the body is read inside, up to `Call.listen`.

        Watching starts after `patience` to twice `patience` seconds. The task in the context is cancelled as soon as
        `receive` says `http.disconnect`, or the loop's clock reads `deadline`.

        Raises:
            ClientDisconnected, DeadlineExceededError: From the end of the context, in place of the CancelledError.
        """
        return Call(self, receive, deadline)

    def _add(self, call: Call) -> None:
        loop = asyncio.get_running_loop()
        if self._ticking_on is not loop:
            if self._ticking_on is not None:  # The old loop was closed; an application may continue on a new loop.
                self._seen, self._new = set(), set()
            self._ticking_on = loop
            loop.call_later(self._patience, self._tick)
        self._new.add(call)

    def _remove(self, call: Call) -> None:
        self._new.discard(call)
        self._seen.discard(call)

    def _tick(self) -> None:
        for call in self._seen:
            call._watch()
        self._seen, self._new = self._new, set()
        if self._seen and self._ticking_on is not None:
            self._ticking_on.call_later(self._patience, self._tick)
        else:
            self._ticking_on = None


class Call:
    """A call under way; made by `Calls.enter`."""

    __slots__ = (
        "_calls",
        "_cancelling",
        "_deadline",
        "_listener",
        "_reason",
        "_receive",
        "_task",
        "_timer",
        "_watched",
    )

    def __init__(self, calls: Calls, receive: Receive | None, deadline: float | None) -> None:
        self._calls = calls
        self._receive = receive
        self._deadline = deadline
        self._listener: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reason: ServingError | None = None
        self._watched = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._calls._add(self)
        return self

    def listen(self, receive: Receive) -> None:
        """Listen for the client's end: the body has been read, so `receive` has no further news."""
        self._receive = receive
        if self._watched:
            self._listener = asyncio.create_task(self._until_gone(receive))

    def deafen(self) -> None:
        """Stop listening, as the answer is being sent: a host may report a disconnect after a complete answer."""
        self._receive = None
        if self._listener is not None:
            self._listener.cancel()

    def _watch(self) -> None:
        self._watched = True
        if self._deadline is not None:
            error = DeadlineExceededError("Deadline Exceeded")
            self._timer = asyncio.get_running_loop().call_at(self._deadline, self._end, error)
        if self._receive is not None:
            self.listen(self._receive)

    async def _until_gone(self, receive: Receive) -> None:
        pause = _FIRST_PAUSE
        # Most hosts wait here until the client goes. Some hosts report the body's end at once, again and again.
        while (await receive())["type"] != "http.disconnect":
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_PAUSE)
        self._end(ClientDisconnected("the client disconnected before the answer was there"))

    def _end(self, reason: ServingError) -> None:
        if self._reason is None:
            self._reason = reason
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls._remove(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None and not self._listener.done():
            self._listener.cancel()
        if self._reason is None:
            return
        # Cancellation reaches a waiting task, so the CancelledError has come by now, handled by the work or not.
        mine = self._task.uncancel() <= self._cancelling
        if mine and kind is not None and issubclass(kind, asyncio.CancelledError):
            raise self._reason from None
