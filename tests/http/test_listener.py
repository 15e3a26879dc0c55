"""A listener opens bound sockets, answers, and leaves in order: no request is lost, and none outlives the time."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from embedserve.http.limits import Limits, PingLimit
from embedserve.http.listener import HttpListener
from embedserve.http.sockets import UnixSocket, bound_sockets


class App:
    """Answers with the client's address; `/slow` waits for `go`, and `/stuck` for ever."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.waiting = 0
        self.cut = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status = 200
        self.waiting += 1
        try:
            if scope["path"] == "/slow":
                await self.go.wait()
            elif scope["path"] == "/stuck":
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not self.cut:
                raise
            status = 503
        body = str(scope["client"]).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def end(self) -> None:
        self.cut = True


class Client:
    """An HTTP/1.1 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def ask(self, path: str = "/") -> None:
        self.writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())

    async def answer(self) -> tuple[bytes, bytes]:
        async with asyncio.timeout(30):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            return head.lower(), await self.reader.readexactly(length)

    async def ended(self) -> bool:
        async with asyncio.timeout(30):
            return await self.reader.read(1) == b""


@pytest.fixture
def app() -> App:
    return App()


@asynccontextmanager
async def listening(app: App, **options: Any) -> AsyncIterator[tuple[HttpListener, int]]:
    (bound,) = bound_sockets(["127.0.0.1"], 0)
    listener = HttpListener(app, [bound], cut=app.end, **options)
    await listener.open()
    port: int = bound.getsockname()[1]
    try:
        yield listener, port
    finally:
        await listener.drain(0)


Connect = Callable[[int | Path], Awaitable[Client]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Connections to a port or a Unix path, closed at the end of the test."""
    clients: list[Client] = []

    async def connected(place: int | Path) -> Client:
        if isinstance(place, int):
            clients.append(Client(*await asyncio.open_connection("127.0.0.1", place)))
        else:
            clients.append(Client(*await asyncio.open_unix_connection(place)))
        return clients[-1]

    yield connected
    for client in clients:
        client.writer.close()
        with suppress(OSError):
            await client.writer.wait_closed()


async def until(waiting: int, app: App) -> None:
    async with asyncio.timeout(30):
        while app.waiting < waiting:
            await asyncio.sleep(0.001)


async def test_a_busy_client_is_answered_and_told_that_its_connection_ends(app: App, connect: Connect) -> None:
    async with listening(app) as (listener, port):
        busy, idle, late = [await connect(port) for _ in range(3)]
        for each in (busy, idle, late):
            each.ask()
            head, _ = await each.answer()
            assert b"\r\ndate: " in head
            assert b"connection: close" not in head
        busy.ask("/slow")
        await until(4, app)
        draining = asyncio.create_task(listener.drain(30))
        async with asyncio.timeout(30):
            while not [each for each in listener._connections if each.is_retiring]:
                await asyncio.sleep(0.001)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), 10).close()
        late.ask()  # Between two requests as the drain begins: the second is not lost.
        head, _ = await late.answer()
        assert b"connection: close" in head
        assert await late.ended()
        assert await idle.ended()
        app.go.set()
        head, _ = await busy.answer()
        assert b"http/1.1 200" in head
        assert b"connection: close" in head
        await draining
        assert "closed" in repr(listener)


async def test_what_outlives_the_time_gets_an_error(
    app: App, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(app) as (listener, port):
        stuck = await connect(port)
        stuck.ask("/stuck")
        await until(1, app)
        await listener.drain(0.05)
        head, _ = await stuck.answer()
        assert b"http/1.1 503" in head
        assert await stuck.ended()
        assert "The time of the drain is over: 1 requests are cut" in caplog.text


async def test_a_client_of_a_unix_socket_is_of_this_machine(app: App, connect: Connect, tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = HttpListener(app, [], unix=await asyncio.to_thread(UnixSocket, str(path)))
    await listener.open()
    client = await connect(path)
    client.ask()
    assert (await client.answer())[1] == b"('127.0.0.1', 0)"
    await listener.drain(1)
    assert not await asyncio.to_thread(path.exists)


async def test_busy_connections_retire_and_idle_ones_stay(app: App, connect: Connect) -> None:
    async with listening(app) as (listener, port):
        busy, idle = await connect(port), await connect(port)
        for each in (busy, idle):
            each.ask()
            await each.answer()
        busy.ask("/slow")
        await until(3, app)
        listener.retire(2)
        listener.retire(2)
        app.go.set()
        assert b"connection: close" in (await busy.answer())[0]
        idle.ask()
        assert b"connection: close" not in (await idle.answer())[0]


async def test_a_connection_over_its_age_ends_with_an_answer(app: App, connect: Connect) -> None:
    async with listening(app, ages=(0.01, 60.0)) as (_, port):
        client = await connect(port)
        async with asyncio.timeout(30):
            while True:
                client.ask()
                if b"connection: close" in (await client.answer())[0]:
                    break
        assert await client.ended()


@pytest.fixture
def access_log() -> Iterator[logging.Logger]:
    logger = logging.getLogger("uvicorn.access")
    handler = logging.NullHandler()
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


async def test_the_hosts_access_log_stays_the_hosts(app: App, access_log: logging.Logger) -> None:
    async with listening(app):
        assert access_log.handlers
        assert access_log.propagate


async def test_a_port_taken_meanwhile_is_an_error(app: App) -> None:
    first, second = (bound_sockets(["127.0.0.1"], 0)[0] for _ in range(2))
    second.close()
    with socket.socket() as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        same.bind(first.getsockname())
        same.listen()
        listener = HttpListener(app, [first])
        with pytest.raises(OSError, match="in use"):
            await listener.open()
    assert "closed" in repr(listener)


def test_pings_come_apart_or_with_requests() -> None:
    limit = PingLimit(Limits(ping_interval=10.0, max_ping_strikes=2))
    assert [limit.take(now, 1) for now in (0.0, 10.0, 11.0, 12.0, 13.0)] == [True, True, True, True, False]
    assert limit.take(14.0, 3), "a request forgives"
    free = PingLimit(Limits())
    assert all(free.take(0.0, 1) for _ in range(100))
