"""The protocol in uvicorn on loopback, with clients of other makers: httpx, curl, nghttp, h2load, grpcio."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import uvicorn

from embedserve.http import frames
from embedserve.http.limits import Limits
from embedserve.http.protocol import HttpProtocol
from tests.http.http2_peer import HANDSHAKE, block, headers, parse, settings
from tests.support.programs import make_certificates

BODY = bytes(range(256)) * 8_000  # 2 MB: over every window.


class Host:
    """An ASGI application with a route for each thing to be shown; counts what it sees of its clients."""

    def __init__(self) -> None:
        self.disconnects = 0
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.scopes: list[dict[str, Any]] = []
        self.sent = 0
        self.more: dict[str, Any] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            message = await receive()
            await send({"type": "websocket.send", "text": message["text"].upper()})
            return
        assert scope["type"] == "http"
        self.scopes.append(scope)
        route = getattr(self, scope["path"].strip("/").split("/")[0] or "echo")
        await route(scope, receive, send)

    async def body(self, receive: Any) -> bytes:
        body, more = b"", True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            body += message["body"]
            more = message["more_body"]
        return body

    async def start(self, send: Any, status: int = 200, **more: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"x-host", b"yes")], **more})

    async def echo(self, scope: Any, receive: Any, send: Any) -> None:
        body = await self.body(receive)
        await self.start(send)
        await send({"type": "http.response.body", "body": body})

    async def pieces(self, scope: Any, receive: Any, send: Any) -> None:
        await self.start(send)
        for number in range(100):
            await send({"type": "http.response.body", "body": b"%d," % number * 1_000, "more_body": True})
        await send({"type": "http.response.body"})

    async def trailers(self, scope: Any, receive: Any, send: Any) -> None:
        body = await self.body(receive)
        await self.start(send, trailers=True)
        await send({"type": "http.response.body", "body": body})
        await send({"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]})

    async def refuse(self, scope: Any, receive: Any, send: Any) -> None:
        await self.start(send, 413)
        await send({"type": "http.response.body", "body": b"no"})

    async def fail(self, scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("a fault of the application")

    async def fail_late(self, scope: Any, receive: Any, send: Any) -> None:
        await self.start(send)
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("a fault of the application")

    async def big(self, scope: Any, receive: Any, send: Any) -> None:
        await self.start(send)
        await send({"type": "http.response.body", "body": bytes(20 << 20)})

    async def too_long(self, scope: Any, receive: Any, send: Any) -> None:
        length = [(b"content-length", b"1")]
        await send({"type": "http.response.start", "status": 200, "headers": length, **self.more})
        if scope["query_string"] == b"two":
            await send({"type": "http.response.body", "body": b"", "more_body": True})
        await send({"type": "http.response.body", "body": b"abc"})
        await send({"type": "http.response.trailers", "headers": [(b"a", b"b")]})

    async def wait(self, scope: Any, receive: Any, send: Any) -> None:
        await self.body(receive)
        self.entered.set()
        message = await receive()
        assert message["type"] == "http.disconnect"
        self.disconnects += 1
        self.left.set()

    async def hold(self, scope: Any, receive: Any, send: Any) -> None:
        await self.body(receive)
        self.entered.set()
        await self.left.wait()
        await self.start(send)
        await send({"type": "http.response.body", "body": b"held"})

    async def flood(self, scope: Any, receive: Any, send: Any) -> None:
        await self.start(send)
        self.entered.set()
        try:
            while self.sent < 1 << 30:
                await send({"type": "http.response.body", "body": bytes(65_536), "more_body": True})
                self.sent += 65_536
                if self.left.is_set():
                    return
        finally:
            self.left.set()

    async def slow(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        while message["type"] == "http.request" and message["more_body"]:
            message = await receive()
        self.disconnects += message["type"] == "http.disconnect"
        self.left.set()

    async def held_call(self, scope: Any, receive: Any, send: Any) -> None:
        await self.left.wait()
        await self.call(scope, receive, send)

    async def call(self, scope: Any, receive: Any, send: Any) -> None:
        """A unary gRPC call that answers its request."""
        body = await self.body(receive)
        kind = (b"content-type", b"application/grpc")
        await send({"type": "http.response.start", "status": 200, "headers": [kind], "trailers": True})
        await send({"type": "http.response.body", "body": body})
        await send({"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]})


@asynccontextmanager
async def serving(host: Host, protocol: type[HttpProtocol] = HttpProtocol, **options: Any) -> AsyncIterator[int]:
    """A server of `host` on loopback; gives its port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        http: Any = protocol  # uvicorn names `asyncio.Protocol`, and takes any protocol.
        config = uvicorn.Config(host, http=http, lifespan="off", log_config=None, **options)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await task


@pytest.fixture
def host() -> Host:
    return Host()


def client(port: int, http2: bool, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", http1=not http2, http2=http2, timeout=30, **options)


versions = pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])


@versions
@pytest.mark.parametrize("body", [b"", b"x", BODY], ids=["nothing", "a byte", "2 MB"])
async def test_a_body_comes_and_goes_unchanged(host: Host, http2: bool, body: bytes) -> None:
    async with serving(host) as port, client(port, http2) as http:
        for _ in range(3):
            answer = await http.post("/echo?a=%20b", content=body)
            assert (answer.status_code, answer.content, answer.headers["x-host"]) == (200, body, "yes")
    scope = host.scopes[0]
    assert scope["http_version"] == ("2" if http2 else "1.1")
    assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/echo", b"a=%20b")
    assert (scope["scheme"], scope["server"][1]) == ("http", port)
    assert dict(scope["headers"])[b"host"] == b"127.0.0.1:%d" % port


@versions
async def test_many_requests_at_once(host: Host, http2: bool) -> None:
    async with serving(host) as port, client(port, http2) as http:
        answers = await asyncio.gather(*[http.post("/echo", content=b"%d" % number * 100) for number in range(200)])
    assert [answer.content for answer in answers] == [b"%d" % number * 100 for number in range(200)]


@versions
async def test_a_body_in_pieces(host: Host, http2: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(50):
            yield b"%d," % number * 1_000

    async with serving(host) as port, client(port, http2) as http:
        answer = await http.post("/echo", content=pieces())
        assert answer.content == b"".join(b"%d," % number * 1_000 for number in range(50))
        answer = await http.get("/pieces")
        assert answer.content == b"".join(b"%d," % number * 1_000 for number in range(100))


async def test_an_early_answer_reaches_a_client_that_still_sends(host: Host) -> None:
    async with serving(host) as port:
        url = f"http://127.0.0.1:{port}/refuse"
        found = await run("curl", "-s", "-w", " %{http_code}", "--data-binary", "@-", url, stdin=BODY)
    assert found == b"no 413"


async def test_an_early_answer_reaches_a_client_that_still_sends_over_http2(host: Host, tmp_path: Path) -> None:
    """curl 7.88 misses the end of such an answer now and then, and waits until the connection ends."""
    (tmp_path / "body").write_bytes(BODY)
    async with serving(host) as port:
        found = await run("nghttp", "--verbose", "--data", str(tmp_path / "body"), f"http://127.0.0.1:{port}/refuse")
    assert b":status: 413" in found
    assert b"\nno" in found


@versions
async def test_a_fault_of_the_application_is_told(host: Host, http2: bool) -> None:
    async with serving(host) as port, client(port, http2) as http:
        assert (await http.get("/fail")).status_code == 500
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get("/fail_late")
        assert (await http.post("/echo", content=b"on")).content == b"on"


@versions
async def test_a_client_that_goes_is_told(host: Host, http2: bool) -> None:
    async with serving(host, Impatient) as port:
        async with client(port, http2) as http:
            task = asyncio.create_task(http.get("/wait"))
            await host.entered.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.wait_for(host.left.wait(), 10)
    assert host.disconnects == 1


@versions
async def test_a_client_that_does_not_read_holds_the_application(host: Host, http2: bool) -> None:
    async with serving(host) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_000)
        path = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/flood"), (b":authority", b"h")]
        writer.write(HANDSHAKE + headers(1, block(path)) if http2 else b"GET /flood HTTP/1.1\r\nHost: h\r\n\r\n")
        await host.entered.wait()
        before = -1
        while before != host.sent:
            before = host.sent
            await asyncio.sleep(0.2)
        assert host.sent < 20_000_000, "kernel buffers, and little else"
        writer.transport.abort()
        host.left.set()
    assert reader is not None


async def test_a_shutdown_answers_what_is_open(host: Host) -> None:
    async with serving(host) as port:
        http, channel = client(port, False), grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        get = asyncio.create_task(http.get("/hold"))
        it: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/held_call/It")
        call = it(b"held", timeout=30)
        while len(host.scopes) < 2:
            await asyncio.sleep(0.01)
        asyncio.get_running_loop().call_later(0.3, host.left.set)
    assert ((await get).content, await call) == (b"held", b"held")
    await http.aclose()
    await channel.close()


async def test_a_websocket_is_handed_on(host: Host) -> None:
    websockets = pytest.importorskip("websockets.asyncio.client")
    async with serving(host) as port, websockets.connect(f"ws://127.0.0.1:{port}/") as socket_:
        await socket_.send("hello")
        assert await socket_.recv() == "HELLO"


@pytest.mark.parametrize(
    "body", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
async def test_an_upgrade_with_a_body_is_a_plain_request(host: Host, body: bytes) -> None:
    upgrade = b"GET /echo HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n"
    upgrade += b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    async with serving(host) as port:
        found = await read_all(port, upgrade + body)
    assert found.startswith(b"HTTP/1.1 200 OK")
    assert found.endswith(b"abc")


async def test_concurrency_over_uvicorns_limit_is_refused(host: Host) -> None:
    async with serving(host, limit_concurrency=1) as port, client(port, True) as http:
        assert (await http.get("/echo")).status_code == 503


async def read_all(port: int, *sent: bytes, eof: bool = False) -> bytes:
    """What a server answers until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in sent:
        writer.write(piece)
        await writer.drain()
    if eof:
        writer.write_eof()
    found = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return found


async def test_http_1_0_and_half_closed_clients(host: Host) -> None:
    async with serving(host) as port:
        assert (await read_all(port, b"GET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        both = await read_all(port, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n" * 2, eof=True)
        assert both.count(b"HTTP/1.1 200 OK") == 2
        post = b"POST / HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nabc"
        assert (await read_all(port, post, eof=True)).endswith(b"abc")
        assert (await read_all(port, b"no\r\n\r\n")).startswith(b"HTTP/1.1 501")


@pytest.mark.parametrize("query", [b"one", b"two"])
@pytest.mark.parametrize("trailers", [False, True])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_an_answer_over_its_declared_length_ends_the_connection(
    host: Host, query: bytes, trailers: bool, version: bytes
) -> None:
    host.more = {"trailers": trailers}
    async with serving(host, Patient, timeout_keep_alive=600) as port:
        found = await read_all(port, b"GET /too_long?%s HTTP/%s\r\nHost: h\r\n\r\n" % (query, version))
    assert found.startswith(b"HTTP/1.1 200 OK")
    assert not found.endswith(b"abc")


class Patient(HttpProtocol):
    limits = Limits(head_timeout=600, body_timeout=600, write_timeout=600, half_closed_timeout=600)


class Impatient(HttpProtocol):
    limits = Limits(head_timeout=0.5, body_timeout=0.5, write_timeout=0.5, half_closed_timeout=0.5)


@pytest.mark.parametrize("sent", [b"", b"PRI * HTT", b"GET / HTTP/1.1\r\nHost: h"])
async def test_a_head_takes_no_longer_than_its_limit(host: Host, sent: bytes) -> None:
    async with serving(host, Impatient) as port:
        found = await read_all(port, sent)
    assert (b"408" in found) == sent.startswith(b"GET")


HEAD_1 = headers(1)
DRIPS = {
    "a line": (b"GET / HTTP/1.1\r\n", b"a: b\r\n", b"408"),
    "a byte": (b"G", b"E", b"408"),
    "empty lines": (b"", b"\r\n", b""),
    "the preface": (b"", frames.PREFACE, b""),
    "a frame": (HANDSHAKE, HEAD_1[:3] + b"\x01\x05\0\0\0\x01" + HEAD_1[9:], b"a head took too long"),
    "a block": (HANDSHAKE + headers(1, b"", 0), frames.frame(frames.CONTINUATION, 0, 1), b"a head took too long"),
}


@pytest.mark.parametrize(("first", "drip", "answer"), DRIPS.values(), ids=DRIPS)
async def test_bytes_now_and_then_give_a_head_no_more_time(
    host: Host, first: bytes, drip: bytes, answer: bytes
) -> None:
    single = answer == b"a head took too long" and first == HANDSHAKE
    async with serving(host, Impatient, timeout_keep_alive=1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(first)

        async def send() -> None:
            pieces = [drip[at : at + 1] for at in range(len(drip))] if single or drip == frames.PREFACE else [drip] * 25
            for piece in pieces:
                await asyncio.sleep(0.4)
                writer.write(piece)

        task = asyncio.create_task(send())
        try:
            found = await asyncio.wait_for(reader.read(), 8)
        except ConnectionResetError:
            found = answer if not answer else b""
        finally:
            task.cancel()
            writer.transport.abort()
    assert answer in found


async def test_a_slow_reader_that_goes_on_is_not_cut(host: Host) -> None:
    loop = asyncio.get_running_loop()
    async with serving(host, Impatient) as port:
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", port))
            await loop.sock_sendall(sock, b"GET /big HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            size = 0
            while piece := await loop.sock_recv(sock, 100_000):
                size += len(piece)
                await asyncio.sleep(0.02)
    assert size > 20 << 20


@pytest.mark.parametrize("window", [0, 1_000])
async def test_a_stream_that_a_window_holds_is_reset(host: Host, window: int) -> None:
    path = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/pieces"), (b":authority", b"h")]
    start = HANDSHAKE + settings((frames.Setting.INITIAL_WINDOW_SIZE, window)) + headers(1, block(path))
    async with serving(host, Impatient, timeout_keep_alive=1) as port:
        found = parse(await read_all(port, start))
    reset = next(each for each in found if each.kind == frames.RST_STREAM)
    assert (reset.stream, int.from_bytes(reset.payload)) == (1, frames.ErrorCode.ENHANCE_YOUR_CALM)


async def test_an_idle_connection_is_closed(host: Host) -> None:
    async with serving(host, Impatient, timeout_keep_alive=1) as port:
        found = await read_all(port, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert found.startswith(b"HTTP/1.1 200")
        assert parse(await read_all(port, HANDSHAKE))[-1].kind == 7


async def test_a_request_on_its_way_to_an_idle_connection_is_answered(host: Host) -> None:
    """The client learns of the end first; a lost call on a channel that was idle would be UNAVAILABLE."""
    path = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"h")]
    async with serving(host, Impatient, timeout_keep_alive=1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE)
        found = b""
        while not (found and [each.kind for each in parse(found)][-1] == frames.PING):
            found += await reader.read(65_536)
        ping = parse(found)[-1]
        assert parse(found)[-2].kind == frames.GOAWAY
        writer.write(headers(1, block(path)))
        writer.write(frames.frame(frames.PING, frames.ACK, 0, ping.payload))
        answers = parse(await asyncio.wait_for(reader.read(), 30))
        writer.close()
    assert answers[0].kind == frames.GOAWAY
    assert int.from_bytes(answers[0].payload[:4], "big") == 1
    assert (answers[1].kind, answers[1].stream) == (frames.HEADERS, 1)


@versions
async def test_a_body_takes_no_longer_than_its_limit(host: Host, http2: bool) -> None:
    path = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/slow"), (b":authority", b"h")]
    http1 = b"POST /slow HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc"
    async with serving(host, Impatient, timeout_keep_alive=1) as port:
        found = await read_all(port, HANDSHAKE + headers(1, block(path), 4) if http2 else http1)
        await asyncio.wait_for(host.left.wait(), 10)
    assert host.disconnects == 1
    assert b"408" in found or any(f.kind == 3 for f in parse(found))


async def test_a_client_that_never_reads_is_cut(host: Host) -> None:
    async with serving(host, Impatient) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_000)
        writer.write(b"GET /flood HTTP/1.1\r\nHost: h\r\n\r\n")
        await host.entered.wait()
        while host.scopes and host.sent < 1 << 30 and not host.left.is_set():
            await asyncio.sleep(0.1)
        writer.transport.abort()


# TLS.


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@versions
async def test_tls_and_the_version_that_the_client_chooses(host: Host, http2: bool, certificates: Path) -> None:
    key, certificate = str(certificates / "server.key"), str(certificates / "server.crt")
    trust = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    async with serving(host, ssl_keyfile=key, ssl_certfile=certificate) as port:
        base = f"https://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base, http2=http2, verify=trust, timeout=30) as http:
            answer = await http.post("/echo", content=BODY)
            assert (answer.http_version, answer.content) == ("HTTP/2" if http2 else "HTTP/1.1", BODY)
    assert host.scopes[0]["scheme"] == "https"


# Programs.


async def run(*command: str, stdin: bytes | None = None) -> bytes:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await asyncio.wait_for(process.communicate(stdin), 60)
    assert process.returncode == 0, out
    return out


CURL = {
    "1.0": ["--http1.0"],
    "1.1": ["--http1.1"],
    "2 by prior knowledge": ["--http2-prior-knowledge"],
    "2 by Upgrade": ["--http2"],
    "chunks": ["--http1.1", "-H", "Transfer-Encoding: chunked"],
    "Expect": ["--http1.1", "-H", "Expect: 100-continue"],
}


@pytest.mark.parametrize("options", CURL.values(), ids=CURL)
async def test_curl(host: Host, options: list[str]) -> None:
    async with serving(host) as port:
        url = f"http://127.0.0.1:{port}/echo"
        assert await run("curl", "-s", *options, "--data-binary", "@-", url, stdin=BODY) == BODY


async def test_nghttp(host: Host) -> None:
    async with serving(host) as port:
        found = await run(
            "nghttp",
            "-v",
            f"http://127.0.0.1:{port}/trailers",
            "-H",
            "x: y",
            "--trailer",
            "a: b",
            "-d",
            "/etc/hostname",
        )
    assert b"grpc-status: 0" in found
    assert b"error_code=NO_ERROR" in found or b"GOAWAY" not in found


@pytest.mark.parametrize(
    "options", [["-c", "4", "-m", "32"], ["-c", "4", "-m", "1", "--h1"]], ids=["HTTP/2", "HTTP/1.1"]
)
async def test_h2load(host: Host, options: list[str]) -> None:
    async with serving(host) as port:
        found = await run("h2load", "-n", "2000", "-c", "4", *options, f"http://127.0.0.1:{port}/echo")
    assert b"2000 succeeded, 0 failed, 0 errored" in found


async def test_grpcio(host: Host) -> None:
    async with serving(host) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/call/It")
        answers = await asyncio.gather(*[call(b"%d" % number * 20, timeout=30) for number in range(300)])
        assert answers == [b"%d" % number * 20 for number in range(300)]
        assert await call(BODY) == BODY
        waiting: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/wait/It")
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await waiting(b"", timeout=0.5)
        assert failed.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.wait_for(host.left.wait(), 10)
    assert host.disconnects == 1
