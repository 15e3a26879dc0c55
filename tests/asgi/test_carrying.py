"""A call of one event loop is answered by an application on another, its registry's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from embedserve.asgi.calls import ClientDisconnected
from embedserve.asgi.carrying import carry_over, is_elsewhere
from embedserve.errors import RegistryStateError
from embedserve.testing import FakeLoader, FakeRegistry

pytestmark = pytest.mark.may_block  # Entering by `with` blocks the loop of a test.


@pytest.fixture
def home() -> Iterator[FakeRegistry]:
    """A registry on a loop in another thread."""
    with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        yield registry


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


async def test_events_cross_either_way(home: FakeRegistry) -> None:
    connection = Connection()

    async def echo(scope: Any, receive: Any, send: Any) -> None:
        assert asyncio.get_running_loop() is home.loop
        while (event := await receive()) is not None:
            await send((scope["path"], event))

    for event in ("a", "b", None):
        connection.events.put_nowait(event)
    await carry_over(home, echo, {"path": "/"}, connection.receive, connection.send)
    assert connection.sent == [("/", "a"), ("/", "b")]


async def test_what_either_side_raises_reaches_the_other(home: FakeRegistry) -> None:
    connection = Connection()

    async def failing_send(event: Any) -> None:
        raise OSError("the client has gone")

    async def application(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(OSError, match="the client has gone"):
            await send("x")
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await carry_over(home, application, {}, connection.receive, failing_send)


async def test_cancellation_crosses_either_way(home: FakeRegistry) -> None:
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

    call = asyncio.create_task(carry_over(home, application, {}, connection.receive, connection.send))
    await asyncio.to_thread(waiting.wait, 10)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(cancelled.wait, 10)


async def test_a_client_that_reads_slowly_holds_the_application_up(home: FakeRegistry) -> None:
    reads, sent = asyncio.Event(), []

    async def slow_send(event: Any) -> None:
        sent.append(event)
        await reads.wait()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        for piece in range(3):
            await send(piece)

    call = asyncio.create_task(carry_over(home, application, {}, Connection().receive, slow_send))
    while not sent:
        await asyncio.sleep(0)
    for _ in range(3):
        await home.run_on_loop(asyncio.sleep, 0)  # The application has had its turns, and waits.
    assert sent == [0]
    reads.set()
    await call
    assert sent == [0, 1, 2]


async def test_a_registry_that_is_left_ends_the_calls_with_an_error(home: FakeRegistry) -> None:
    waiting = threading.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        waiting.set()
        await receive()

    call = asyncio.create_task(carry_over(home, application, {}, Connection().receive, Connection().send))
    await asyncio.to_thread(waiting.wait, 10)
    await asyncio.to_thread(home.close)
    with pytest.raises(RegistryStateError, match="was left before this call was answered"):
        await call
    assert not is_elsewhere(home)


def test_a_host_that_has_ended_counts_as_a_client_that_has_gone(home: FakeRegistry) -> None:
    found: list[BaseException] = []
    waiting, ended, told = threading.Event(), threading.Event(), threading.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            waiting.set()
            await asyncio.to_thread(ended.wait, 10)
        except asyncio.CancelledError:
            await asyncio.to_thread(ended.wait, 10)
        try:
            await send("late")
        except ClientDisconnected as error:
            found.append(error)
        told.set()

    async def host() -> None:
        call = asyncio.create_task(carry_over(home, application, {}, Connection().receive, Connection().send))
        await asyncio.to_thread(waiting.wait, 10)
        call.cancel()

    asyncio.run(host())
    ended.set()
    assert told.wait(10)
    assert "the event loop of the host has ended" in str(found[0])
