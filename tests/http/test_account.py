"""Bodies in a single buffer, on both loops; and the account of a listener's bytes, which always returns to zero."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.server import ServerState

from embedserve.concurrency.inflight import InflightBytes
from embedserve.http import frames
from embedserve.http.account import accounted
from embedserve.http.buffers import READ_BYTES, BodyBuffer
from embedserve.http.frames import ErrorCode, frame
from embedserve.http.limits import Limits
from embedserve.http.protocol import HttpProtocol
from tests.http.http2_peer import HANDSHAKE, WHOLE, block, data, headers, parse
from tests.http.test_protocol import Host, serving
from tests.support.programs import make_certificates

BODY = bytes(range(256)) * 12_000  # 3 MB.
POST = b"POST /%s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class OwnHost(Host):
    """An application with an account, which keeps the pieces of each body as they came."""

    def __init__(self, limit: int = 1 << 30, largest: int = 1 << 30) -> None:
        super().__init__()
        self.bytes = InflightBytes(limit, largest)
        self.messages: list[Any] = []

    def account(self) -> InflightBytes:
        return self.bytes

    def takes_whole(self, size: int) -> bool:
        return size <= self.bytes.request_limit

    def refused(self, reason: str) -> None:
        pass

    async def body(self, receive: Any) -> bytes:
        body = b""
        while True:
            message = await receive()
            self.messages.append(message)
            piece: bytes = message.get("body", b"")
            body += piece
            if not message.get("more_body"):
                return body


class Foreign:
    """An application without an account around a host."""

    def __init__(self, host: OwnHost) -> None:
        self.host = host

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.host(scope, receive, send)


def run(loop: str, scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await asyncio.wait_for(scenario(), 60)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())


@asynccontextmanager
async def connected(port: int, **options: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24, **options)
    try:
        yield reader, writer
    finally:
        writer.close()


async def given_back(account: InflightBytes) -> None:
    async with asyncio.timeout(30):
        while account.reserved:
            await asyncio.sleep(0.005)


async def send_in_pieces(writer: asyncio.StreamWriter, sent: bytes) -> None:
    for at in range(0, len(sent), 700_000):
        writer.write(sent[at : at + 700_000])
        await writer.drain()
        await asyncio.sleep(0.001)  # The server reads meanwhile.


async def answered(reader: asyncio.StreamReader) -> bytes:
    """The body of an answer with a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
    return await reader.readexactly(int(length[16:]))


def test_a_buffer_is_bytes_once_it_is_full() -> None:
    buffer = BodyBuffer(100_000)
    buffer.put(b"abc")
    while buffer.filled < buffer.size:
        memory = buffer.rest(30_000)
        memory[:] = b"x" * len(memory)
        buffer.filled += len(memory)
    body = buffer.take()
    assert type(body) is bytes
    assert body == b"abc" + b"x" * 99_997
    half = BodyBuffer(3)
    half.put(b"ab")
    with pytest.raises(ValueError, match="2 of 3 bytes"):
        half.take()


def test_an_account_is_found_behind_other_applications() -> None:
    host = OwnHost()
    wrapped = ProxyHeadersMiddleware(host)
    assert accounted(host) is accounted(wrapped) is host
    assert accounted(Host()) is accounted(None) is None


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_large_body_comes_as_one_piece_and_the_next_request_behind_it(loop: str, tls: bool, tmp_path: Path) -> None:
    options: dict[str, Any] = {}
    trust = None
    if tls:
        make_certificates(tmp_path)
        options = {"ssl_keyfile": str(tmp_path / "server.key"), "ssl_certfile": str(tmp_path / "server.crt")}
        trust = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))

    async def scenario() -> None:
        host = OwnHost()
        async with serving(host, **options) as port, connected(port, ssl=trust) as (reader, writer):
            sent = POST % (b"echo", len(BODY)) + BODY + POST % (b"echo", 3) + b"abc"
            await send_in_pieces(writer, sent * 2)
            for _ in range(2):
                assert await answered(reader) == BODY
                assert await answered(reader) == b"abc"
            assert [len(message["body"]) for message in host.messages] == [len(BODY), 3] * 2
            assert all(type(message["body"]) is bytes for message in host.messages)
            await given_back(host.bytes)

    run(loop, scenario)


@pytest.mark.parametrize("loop", LOOPS)
def test_expect_and_chunks_and_a_websocket_after_reads_into_a_buffer(loop: str) -> None:
    websockets = pytest.importorskip("websockets.asyncio.client")

    async def scenario() -> None:
        host = OwnHost()
        async with serving(host) as port, connected(port) as (reader, writer):
            writer.write((POST % (b"echo", len(BODY))).replace(b"Host", b"Expect: 100-continue\r\nHost"))
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await send_in_pieces(writer, BODY)
            assert await answered(reader) == BODY
            chunk = b"%x\r\n%b\r\n" % (len(BODY), BODY)
            await send_in_pieces(
                writer, b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n"
            )
            assert await answered(reader) == BODY
            await given_back(host.bytes)
            async with websockets.connect(f"ws://127.0.0.1:{port}/") as socket_:
                await socket_.send("hello")
                assert await socket_.recv() == "HELLO"
                await socket_.send("hello " * 100)

    run(loop, scenario)


async def test_a_foreign_application_gets_a_stream_of_bytes_over_its_window() -> None:
    host = OwnHost()
    async with serving(Foreign(host)) as port, connected(port) as (reader, writer):  # type: ignore[arg-type]
        for body in (BODY[:500_000], BODY):
            await send_in_pieces(writer, POST % (b"echo", len(body)) + body)
            assert await answered(reader) == body
    assert len(host.messages[0]["body"]) == 500_000, "no more bytes are held than for a stream"
    assert len(host.messages) > 2
    assert {type(message["body"]) for message in host.messages} == {bytes}


async def test_a_body_is_counted_as_it_comes_and_refused_over_the_account() -> None:
    """A declared length alone costs nothing: a client that sends no bytes holds a step ahead at most."""
    host = OwnHost(limit=1_500_000)
    async with serving(host) as port, connected(port) as (reader, writer):
        writer.write(POST % (b"echo", len(BODY)) + BODY[:100_000])
        while host.bytes.reserved < 100_000:
            await asyncio.sleep(0.005)
        assert host.bytes.reserved < 1_200_000
        writer.write(BODY[100_000:])
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\n"), answer
        assert b"connection: close" in answer
        await given_back(host.bytes)


async def test_http2_refuses_only_the_stream_that_the_account_has_no_room_for() -> None:
    host = OwnHost(limit=300_000)
    async with serving(host, protocol=small(stream_window=1 << 20)) as port, connected(port) as (reader, writer):
        writer.write(HANDSHAKE + headers(1, block(path(b"/hold"))) + headers(3, block(path(b"/held_call")), WHOLE))
        await host.entered.wait()
        writer.write(b"".join(data(3, bytes(16_000)) for _ in range(30)))  # The application does not read yet.
        seen = b""
        while frame(frames.RST_STREAM, 0, 3, int(ErrorCode.ENHANCE_YOUR_CALM).to_bytes(4, "big")) not in seen:
            seen += await reader.read(65_536)
        host.left.set()
        while not any(found.stream == 1 and found.payload == b"held" for found in parse(seen)):
            seen += await reader.read(65_536)
        await given_back(host.bytes)


async def test_an_answer_that_no_client_reads_is_counted_until_the_client_goes() -> None:
    host = OwnHost()
    async with serving(host) as port:
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"GET /big HTTP/1.1\r\nHost: h\r\n\r\n")
        async with asyncio.timeout(30):
            while host.bytes.reserved < 10 << 20:
                await asyncio.sleep(0.005)
        client.close()
        await given_back(host.bytes)


def path(target: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return ((b":method", b"POST"), (b":scheme", b"http"), (b":path", target), (b":authority", b"host"))


def small(**options: Any) -> type[HttpProtocol]:
    return type("Small", (HttpProtocol,), {"limits": Limits(**options)})


class Transport(asyncio.Transport):
    """Takes any bytes, holds writing back from time to time, and ends when told."""

    def __init__(self, protocol: HttpProtocol, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.protocol, self.loop = protocol, loop
        self.unread, self.reading, self.closing, self.lost = 0, True, False, False

    def write(self, data: Any) -> None:
        self.unread += len(data)
        if self.unread > 65_536 and not self.protocol.write_paused:
            self.protocol.pause_writing()

    def write_eof(self) -> None:
        assert not self.closing

    def read_all(self) -> None:
        self.unread = 0
        if self.protocol.write_paused:
            self.protocol.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.unread

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True
        self.loop.call_soon(self.lose)

    abort = close

    def lose(self) -> None:
        self.closing = True
        if not self.lost:
            self.lost = True
            self.protocol.connection_lost(None)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def put(self, data: bytes) -> None:
        """Bytes from the client, as far as the server reads them."""
        while data and self.reading and not self.closing:
            buffer = self.protocol.get_buffer(-1)
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
            self.protocol.buffer_updated(size)
            data = data[size:]


ROUTES = [b"echo", b"wait", b"hold", b"refuse", b"fail", b"slow", b"call", b"pieces", b"trailers"]
LIMITS = Limits(direct_body_bytes=2_000, stream_window=20_000, connection_window=65_535, max_queued_bytes=10_000)

requests = st.tuples(st.sampled_from(ROUTES), st.sampled_from([0, 1, 1_999, 2_000, 30_000, 300_000]))
steps = st.lists(st.sampled_from(["read", "turn", "eof", "leave", "junk"]), max_size=12)


def http1(asked: list[tuple[bytes, int]]) -> bytes:
    return b"".join(POST % (route, size) + bytes(size) for route, size in asked)


def http2(asked: list[tuple[bytes, int]]) -> bytes:
    sent = [HANDSHAKE]
    for stream, (route, size) in zip(itertools.count(1, 2), asked, strict=False):
        sent.append(headers(stream, block(path(b"/" + route)), WHOLE))
        sent += [data(stream, bytes(min(16_384, size - at))) for at in range(0, size, 16_384)]
        sent.append(data(stream, b"", frames.END_STREAM))
    return b"".join(sent)


@settings(deadline=None, max_examples=150)
@given(
    asked=st.lists(requests, min_size=1, max_size=6),
    wire=st.sampled_from([http1, http2]),
    cut=st.integers(50, 200_000),
    limit=st.sampled_from([0, 700, 5_000, 50_000, 1 << 30]),
    todo=steps,
)
def test_every_reservation_returns_to_zero(
    asked: list[tuple[bytes, int]], wire: Any, cut: int, limit: int, todo: list[str]
) -> None:
    async def scenario() -> None:
        host = OwnHost(limit)
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(host, lifespan="off", log_config=None, proxy_headers=False)
        kind = type("Fuzzed", (HttpProtocol,), {"limits": LIMITS})
        protocol = kind(config, ServerState(), {})
        transport = Transport(protocol, loop)
        protocol.connection_made(transport)
        sent, doing = wire(asked), iter(todo)
        for at in range(0, len(sent), cut):
            transport.put(sent[at : at + cut])
            assert host.bytes.reserved <= limit + READ_BYTES + transport.unread + protocol.connection.queued_bytes
            match next(doing, "turn"):
                case "read":
                    transport.read_all()
                case "eof" if not transport.closing and not protocol.eof_received():
                    transport.close()
                case "leave" if not transport.closing:
                    protocol.shutdown()
                case "junk":
                    transport.put(b"\xff" * 40)
                case _:
                    await asyncio.sleep(0)
        host.left.set()
        for _ in range(3):
            await asyncio.sleep(0)
        transport.lose()
        async with asyncio.timeout(10):
            while protocol.requests:
                await asyncio.sleep(0)
        assert host.bytes.reserved == 0

    asyncio.run(scenario())
