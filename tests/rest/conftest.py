"""A real HTTP server on a loopback port, in the loop of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal, NamedTuple, TypeAlias

import httpx
import pytest
import uvicorn


class Answer(NamedTuple):
    """One HTTP/1.1 answer as it came over a socket."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One keep-alive connection that sends exactly the bytes it is given."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def request(self, method: str, target: str, body: bytes = b"", **headers: str) -> Answer:
        lines = [f"{method} {target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        return await self.answer(head=method == "HEAD")

    async def answer(self, *, head: bool = False) -> Answer:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:]) if name}
        body = b"" if head else await self.reader.readexactly(int(headers.get("content-length", 0)))
        return Answer(int(lines[0].split()[1]), headers, body)

    async def at_end(self) -> bool:
        """Whether the server closes the connection without another byte."""
        return await self.reader.read() == b""

    def close(self) -> None:
        self.writer.close()


class Server:
    """Where an application is served."""

    def __init__(self, port: int, client: httpx.AsyncClient) -> None:
        self.port = port
        self.client = client
        self._connections: list[Connection] = []

    async def connect(self) -> Connection:
        connection = Connection(*await asyncio.open_connection("127.0.0.1", self.port))
        self._connections.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[Server]]


@asynccontextmanager
async def _serve(app: Any, *, lifespan: Literal["on", "off"] = "off", **options: Any) -> AsyncIterator[Server]:
    config = uvicorn.Config(app, host="127.0.0.1", port=0, lifespan=lifespan, ws="none", log_config=None, **options)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    assert not server.should_exit, "the application refused to start"
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            serving = Server(port, client)
            try:
                yield serving
            finally:
                serving.close()
    finally:
        await shut_down(server)


async def shut_down(server: uvicorn.Server) -> None:
    """What uvicorn's `shutdown` does, which sleeps for a tenth of a second at least."""
    for listener in server.servers:
        listener.close()
    while server.server_state.connections or server.server_state.tasks:
        for connection in list(server.server_state.connections):
            connection.shutdown()
        await asyncio.sleep(0.001)
    await server.lifespan.shutdown()


@pytest.fixture
def serve() -> Serve:
    """`async with serve(app) as server`: uvicorn on a free port; `server.client` is an httpx client on it."""
    return _serve
