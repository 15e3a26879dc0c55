"""A registry served twice by `HttpProtocol`, by the direct way and the ASGI way; clients that compare the bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import hpack
import uvicorn

from embedserve.errors import Code
from embedserve.grpc.transports.frames import frame
from embedserve.http import HttpProtocol, frames
from embedserve.http.asgi_request import AsgiRequest
from embedserve.http.heads import RequestHead
from embedserve.observer import Observer
from tests.grpc.conftest import predict_request
from tests.http.http2_peer import HANDSHAKE, block, data, headers, settings
from tests.rest.conftest import shut_down

SERVICE = "/tensorflow.serving.PredictionService/"
PREDICT = SERVICE + "Predict"
REST = "/v1/models/m:predict"
WHOLE = frame(predict_request(x=[1.0, 2.0]).SerializeToString())
JSON = b'{"instances": [1, 2]}'

GRPC_HEAD = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":authority", b"localhost"),
    (b":path", b"/"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
)


class Finished(Observer):
    """What the adapters say of their requests."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str, Code]] = []

    def request_finished(self, model_name: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        self.seen.append((model_name, api, entrypoint, code))


class Counting(HttpProtocol):
    """Counts the requests that took the ASGI way, and the answers that were begun on any way."""

    asgi = answered = 0

    def start_asgi(self, stream_id: int, head: RequestHead, body: bytes | None) -> AsgiRequest:
        type(self).asgi += 1
        return super().start_asgi(stream_id, head, body)

    def log_access(self, head: RequestHead, status: int) -> None:
        type(self).answered += 1
        super().log_access(head, status)


class InFront:
    """Middleware of a host: every request passes here."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.seen = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen += 1
        await self.app(scope, receive, send)


class Way:
    """A server: `asgi` counts the requests that took the ASGI way."""

    def __init__(self, server: uvicorn.Server, protocol: type[Counting]) -> None:
        self.server = server
        self.port: int = server.servers[0].sockets[0].getsockname()[1]
        self.protocol = protocol

    @property
    def asgi(self) -> int:
        return self.protocol.asgi

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


@asynccontextmanager
async def served(app: Any, **options: Any) -> AsyncIterator[Way]:
    """`app` on a free port, with everything that uvicorn's command line does."""
    protocol = type("Counted", (Counting,), {})
    options = {"lifespan": "off", "ws": "none", "log_config": None, "date_header": False} | options
    config = uvicorn.Config(app, host="127.0.0.1", port=0, http=protocol, **options)
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield Way(server, protocol)
    finally:
        async with asyncio.timeout(5):
            await shut_down(server)


@asynccontextmanager
async def both(app: Any, **options: Any) -> AsyncIterator[tuple[Way, Way]]:
    """The direct way and the ASGI way to one application."""
    async with AsyncExitStack() as stack:
        ways = [await stack.enter_async_context(served(each, **options)) for each in (app, InFront(app))]
        yield ways[0], ways[1]


class Answered(NamedTuple):
    """All that a client sees of an HTTP/2 answer; `frames` are kind, flags, and fields or bytes."""

    frames: list[tuple[int, int, Any]]

    @property
    def head(self) -> dict[bytes, bytes]:
        return dict(self.frames[0][2])

    @property
    def body(self) -> bytes:
        return b"".join(content for kind, _, content in self.frames if kind == frames.DATA)

    @property
    def trailers(self) -> dict[bytes, bytes]:
        return dict(self.frames[-1][2])


class Http2Client:
    """A connection that sends exactly the frames that it is given."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.decoder = hpack.Decoder()
        self.stream = -1
        writer.write(HANDSHAKE)

    def send(self, *pieces: bytes) -> None:
        self.writer.write(b"".join(pieces))

    def begin(self, fields: Sequence[tuple[bytes, bytes]], *, ended: bool = False) -> int:
        self.stream += 2
        self.send(headers(self.stream, block(fields), frames.END_HEADERS | ended))
        return self.stream

    def call(self, path: str, body: bytes, *more: tuple[bytes, bytes], pieces: int = 1) -> int:
        """A request of gRPC's shape; the fields of `more` replace equal names."""
        fields = {**dict(GRPC_HEAD), b":path": path.encode(), **dict(more)}
        stream = self.begin([(name, value) for name, value in fields.items() if value])
        step = max(1, -(-len(body) // pieces))
        cut = [body[at : at + step] for at in range(0, len(body), step)] or [b""]
        self.send(*[data(stream, piece, frames.END_STREAM * (piece is cut[-1])) for piece in cut])
        return stream

    async def frame(self) -> tuple[int, int, int, bytes]:
        head = await self.reader.readexactly(9)
        payload = await self.reader.readexactly(int.from_bytes(head[:3], "big"))
        return head[3], head[4], int.from_bytes(head[5:], "big"), payload

    async def answer(self, stream: int) -> Answered:
        found: list[tuple[int, int, Any]] = []
        while True:
            kind, flags, of, payload = await self.frame()
            if kind == frames.HEADERS:
                fields = self.decoder.decode(payload, raw=True)
                content: Any = [(bytes(name), bytes(value)) for name, value in fields]
            else:
                content = payload
            if of == stream:
                found.append((kind, flags, content))
                if kind == frames.RST_STREAM or (kind in (frames.DATA, frames.HEADERS) and flags & 1):
                    return Answered(found)

    def close(self) -> None:
        self.writer.close()


async def http2_answers(way: Way, *calls: Any, **more: Any) -> list[Answered]:
    """The answers to calls (arguments of `Http2Client.call`), one after the other on a connection."""
    client = Http2Client(*await way.connect())
    client.send(settings((frames.Setting.INITIAL_WINDOW_SIZE, 1 << 24)), frames.window_update(0, 1 << 24))
    try:
        async with asyncio.timeout(20):
            return [await client.answer(client.call(*call, **more)) for call in calls]
    finally:
        client.close()


async def http1_answer(way: Way, *pieces: bytes) -> bytes:
    """All bytes that the server sends for a request that closes its connection."""
    reader, writer = await way.connect()
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        async with asyncio.timeout(20):
            return await reader.read()
    finally:
        writer.close()


def http1_request(method: str, target: str, body: bytes | None = None, *lines: str) -> bytes:
    length = [] if body is None else [f"Content-Length: {len(body)}"]
    head = [f"{method} {target} HTTP/1.1", "Host: x", "Connection: close", *length, *lines, "", ""]
    return "\r\n".join(head).encode("latin-1") + (body or b"")
