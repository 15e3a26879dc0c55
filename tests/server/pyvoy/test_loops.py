"""A call of one event loop is answered by an application on another."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from embedserve.server.pyvoy.loops import carry_over, overlook_late_events


@pytest.fixture
def home() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in another thread, as the registry's does for calls of HTTP/3."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


class Connection:
    """The server's side of one call, which insists on its own loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        assert asyncio.get_running_loop() is self._loop
        return await self.events.get()

    async def send(self, event: Any) -> None:
        assert asyncio.get_running_loop() is self._loop
        self.sent.append(event)


async def test_events_cross_either_way(home: asyncio.AbstractEventLoop) -> None:
    connection = Connection()

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        assert asyncio.get_running_loop() is home
        while (event := await receive()) is not None:
            await send((scope["path"], event))

    for event in ("a", "b", None):
        connection.events.put_nowait(event)
    await carry_over(echo, home, {"path": "/"}, connection.receive, connection.send)
    assert connection.sent == [("/", "a"), ("/", "b")]


async def test_what_either_side_raises_reaches_the_other(home: asyncio.AbstractEventLoop) -> None:
    connection = Connection()

    async def failing_send(event: Any) -> None:
        raise OSError("the client has gone")

    async def application(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(OSError, match="the client has gone"):
            await send("x")
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await carry_over(application, home, {}, connection.receive, failing_send)


async def test_cancellation_crosses_either_way(home: asyncio.AbstractEventLoop) -> None:
    connection = Connection()
    waiting, cancelled = threading.Event(), threading.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        # The application gives one receive up, and goes on.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), 0.01)
        waiting.set()
        try:
            await receive()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    call = asyncio.create_task(carry_over(application, home, {}, connection.receive, connection.send))
    await asyncio.to_thread(waiting.wait, 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(cancelled.wait, 10)


def test_only_events_that_come_too_late_are_overlooked(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    try:
        overlook_late_events(loop, {"message": "late", "exception": asyncio.InvalidStateError("invalid state")})
        overlook_late_events(loop, {"message": "no exception"})
        overlook_late_events(loop, {"message": "a bug", "exception": ValueError("x")})
    finally:
        loop.close()
    assert [record.message.splitlines()[0] for record in caplog.records] == ["no exception", "a bug"]
    assert all(record.levelno == logging.ERROR for record in caplog.records)
