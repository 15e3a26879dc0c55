"""The standalone server's HTTP/1.1: wishes for another protocol, bytes that are no HTTP, clients that leave."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from embedserve.http import HttpProtocol
from embedserve.rest import create_app
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.grpc.conftest import until_running
from tests.rest.conftest import Connection, Serve, Server

BODY = b'{"instances": [1, 2]}'
PREDICTIONS = [11.0, 21.0]
UPGRADES = [
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA",
    "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\nSec-WebSocket-Version: 13",
    "connection: keep-alive, Upgrade\r\nupgrade: anything/1",
]


def post(headers: str = "", chunked: bool = False) -> bytes:
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(BODY)}"
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY) if chunked else BODY
    lines = ["POST /v1/models/m:predict HTTP/1.1", "Host: x", length, *headers.split("\r\n")]
    return "\r\n".join(line for line in lines if line).encode() + b"\r\n\r\n" + body


@pytest.fixture
async def server(serve: Serve, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Server]:
    async with FakeRegistry({"m": {1: FakeLoader()}}) as registry:
        async with serve(create_app(registry), http=HttpProtocol) as server:
            yield server
        assert registry.inflight.reserved == 0
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


async def answered(connection: Connection) -> list[float]:
    answer = await asyncio.wait_for(connection.answer(), 30)
    assert answer.status == 200, answer
    predictions: list[float] = json.loads(answer.body)["predictions"]
    return predictions


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [1, 50, 10_000])
async def test_a_request_that_asks_for_another_protocol_is_answered_in_this_one(
    server: Server, upgrade: str, chunked: bool, size: int
) -> None:
    connection = await server.connect()
    both = post(upgrade, chunked) + post() + post(upgrade)
    for at in range(0, len(both), size):
        connection.send(both[at : at + size])
        await connection.writer.drain()
    for _ in range(3):
        assert await answered(connection) == PREDICTIONS


async def test_many_such_requests_may_come_at_once(server: Server) -> None:
    connection = await server.connect()
    count = 2000  # More than Python's stack is deep.
    connection.send(b"GET /-/live HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\n" * count + post())
    for _ in range(count):
        assert (await connection.answer()).status == 200
    assert await answered(connection) == PREDICTIONS


async def test_such_a_request_may_close_its_connection(server: Server) -> None:
    connection = await server.connect()
    connection.send(post("Connection: Upgrade, close\r\nUpgrade: h2c"))
    assert await answered(connection) == PREDICTIONS
    assert await connection.at_end()


async def test_connect_is_not_implemented(server: Server) -> None:
    connection = await server.connect()
    connection.send(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
    data = await connection.reader.read()
    assert data.startswith((b"HTTP/1.1 501", b"HTTP/1.1 400"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
            "the bytes are TLS, and this port is not",
        ),
        (b"\r\nE 2026 forged line\r\n\x00\x01", "the bytes are not HTTP"),
    ],
)
async def test_bytes_that_are_no_http_are_answered_and_named(
    server: Server, data: bytes, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = await server.connect()
    connection.send(data)
    assert (await connection.answer()).status == 400
    assert await connection.at_end()
    assert words in caplog.text
    assert "forged" not in caplog.text


def reset(connection: Connection) -> None:
    """Leave without a word: the peer gets a RST."""
    taken: socket.socket = connection.writer.get_extra_info("socket")
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.writer.transport.abort()


@pytest.mark.parametrize("sent", [0, 20, 120, -5, None])
async def test_a_client_that_is_reset_costs_nothing(server: Server, sent: int | None) -> None:
    for headers in ("", UPGRADES[0]):
        connection = await server.connect()
        connection.send(post(headers)[:sent])
        await connection.writer.drain()
        reset(connection)
    connection = await server.connect()
    connection.send(post())
    assert await answered(connection) == PREDICTIONS


async def test_a_client_that_vanishes_before_its_answer_costs_no_traceback(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate()
    registry = FakeRegistry({"m": {1: FakeLoader(gate=gate)}}, batching=False, warmup="none")
    async with registry, serve(create_app(registry), http=HttpProtocol) as server:
        for leave in (reset, Connection.close):
            connection = await server.connect()
            connection.send(post())
            await until_running(gate)
            leave(connection)
        gate.open()
        connection = await server.connect()
        connection.send(post())
        assert await answered(connection) == PREDICTIONS
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
