"""Large and compressed messages, headers, TLS, Unix sockets, cancellation, and the state machine of HTTP/2."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedserve import ModelRegistry
from embedserve.errors import Code, DeadlineExceededError, ServingError
from embedserve.grpc import serve
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from embedserve_client import AsyncClient, Client
from embedserve_client.hpack import encode
from embedserve_client.http2 import Connection
from tests.client.serving import Scripted, served
from tests.support.programs import make_certificates

X = {"x": np.zeros(1, np.float32)}


def test_messages_of_64_megabytes_go_both_ways(port: int) -> None:
    array = np.random.default_rng(1).random((16, 1024, 1024), np.float32)
    with Client(f"grpc://127.0.0.1:{port}") as client:
        found = client.predict("same", {"x": array})["y"]
    assert np.array_equal(found, array)


async def test_large_messages_of_awaited_calls_go_both_ways_at_once(port: int) -> None:
    arrays = [np.random.default_rng(each).random((1 << 21,), np.float32) for each in range(4)]
    async with AsyncClient(f"grpc://127.0.0.1:{port}") as client:
        found = await asyncio.gather(*(client.predict("same", {"x": array}) for array in arrays))
    assert all(np.array_equal(one["y"], array) for one, array in zip(found, arrays, strict=True))


def test_compressed_requests_are_answered(remote: Client, target: Callable[[str], Any]) -> None:
    scheme = "grpc" if "grpc" in repr(remote) else "http"
    array = np.arange(5000, dtype=np.float32)
    with Client(target(scheme), compression="gzip") as client:
        assert np.array_equal(client.predict("same", {"x": array})["y"], array)


def test_a_compressed_request_says_so_and_a_compressed_answer_is_read() -> None:
    reply = gzip.compress(b"")
    with Scripted(reply=reply, reply_encoding="gzip") as server, Client(server.url, compression="gzip") as client:
        assert client.predict("m", X) == {}
        assert server.calls[0]["grpc-encoding"] == "gzip"
        assert gzip.decompress(server.bodies[0][5:])
        assert server.bodies[0][0] == 1


def test_headers_of_the_client_and_of_the_call_are_sent() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with Scripted() as server, Client(server.url, headers={"x-team": "a", "x-kind": "b"}) as client:
        client.predict("m", X, request_id="id-1", traceparent=trace, priority="high", headers={"x-kind": "c"})
        (sent,) = server.calls
    assert sent["x-request-id"] == "id-1"
    assert sent["traceparent"] == trace
    assert sent["x-embedserve-priority"] == "high"
    assert (sent["x-team"], sent["x-kind"]) == ("a", "c")
    assert sent["te"] == "trailers"
    assert sent[":authority"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_tls_by_a_context_of_the_caller(scheme: str, registry: ModelRegistry, tmp_path: Path) -> None:
    make_certificates(tmp_path)
    files = {"ssl_keyfile": str(tmp_path / "server.key"), "ssl_certfile": str(tmp_path / "server.crt")}
    with served(registry, **files) as port:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
        with Client(f"{scheme}://localhost:{port}", ssl_context=context) as client:
            assert client.predict("half", [[1.0]], version=1)["y"].tolist() == [[2.5]]
        with Client(f"{scheme}://localhost:{port}", timeout=20) as stranger:
            with pytest.raises(ServingError, match=r"certificate|CERTIFICATE") as raised:
                stranger.predict("half", [[1.0]])
            assert raised.value.code == Code.UNAVAILABLE


async def test_tls_of_awaited_calls(registry: ModelRegistry, tmp_path: Path) -> None:
    make_certificates(tmp_path)
    files = {"ssl_keyfile": str(tmp_path / "server.key"), "ssl_certfile": str(tmp_path / "server.crt")}
    stack = contextlib.ExitStack()
    port = await asyncio.to_thread(stack.enter_context, served(registry, **files))
    try:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
        async with AsyncClient(f"grpcs://localhost:{port}", ssl_context=context) as client:
            assert (await client.predict("half", [[1.0]], version=1))["y"].tolist() == [[2.5]]
    finally:
        await asyncio.to_thread(stack.close)


async def test_calls_over_a_unix_socket(tmp_path: Path) -> None:
    path = os.path.relpath(tmp_path / "s")
    path = path if len(path) < 90 else str(tmp_path / "s")
    fake = FakeRegistry({"m": {1: FakeLoader()}})
    async with fake, serve(fake, port=None, socket_path=path):
        url = f"grpc+unix://{os.path.abspath(path)}"
        async with AsyncClient(url) as client:
            assert (await client.predict("m", {"x": np.ones(1, np.float32)}))["y"].tolist() == [11.0]

        def ask() -> Any:
            with Client(url) as blocking:
                return blocking.predict("m", {"x": np.ones(1, np.float32)})["y"].tolist()

        assert await asyncio.to_thread(ask) == [11.0]


async def test_a_cancelled_call_is_cancelled_at_the_server_and_leaves_the_connection_usable() -> None:
    gate = Gate(opened=False)
    fake = FakeRegistry({"m": {1: FakeLoader(gate=gate)}}, batching=False)
    async with (
        fake,
        serve(fake, host="127.0.0.1", port=0) as server,
        AsyncClient(f"grpc://127.0.0.1:{server.port}") as client,
    ):
        call = asyncio.ensure_future(client.predict("m", X))
        while not gate.waiting:
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while gate.waiting:  # The server has stopped the run.
            await asyncio.sleep(0.001)
        with pytest.raises(DeadlineExceededError):
            await client.predict("m", X, timeout=0.1)
        gate.open()
        assert (await client.predict("m", X))["y"].tolist() == [1.0]


def test_a_client_serves_one_loop_after_another(target: Callable[[str], Any]) -> None:
    for scheme in ("grpc", "http"):
        client = AsyncClient(target(scheme))

        async def ask(client: AsyncClient = client) -> None:
            found = await client.predict("half", [[1.0]], version=1)
            assert found["y"].tolist() == [[2.5]]
            await client.aclose()
            client._closed = False

        for _ in range(2):
            asyncio.run(ask())


BLOCK = encode([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b":authority", b"b")])


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 200_000), min_size=1, max_size=5),
    cuts=st.integers(1, 70_000),
    frame=st.integers(16_384, 100_000),
    window=st.integers(65_535, 100_000),  # h2 cannot shrink a window that is in use.
)
def test_bodies_arrive_whole_whatever_the_windows_and_the_cuts(
    sizes: list[int], cuts: int, frame: int, window: int
) -> None:
    """Against h2, which refuses a frame beyond a window: each body is echoed."""
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.local_settings[h2.settings.SettingCodes.MAX_FRAME_SIZE] = frame
    server.local_settings[h2.settings.SettingCodes.INITIAL_WINDOW_SIZE] = window
    server.initiate_connection()
    client = Connection()
    bodies = [np.random.default_rng(size).bytes(size) for size in sizes]
    streams = [client.open(BLOCK, [body[:10], memoryview(body)[10:]]) for body in bodies]
    received: dict[int, bytearray] = {stream.id: bytearray() for stream in streams}
    for _ in range(10_000):
        for event in server.receive_data(client.take()):
            if isinstance(event, h2.events.DataReceived):
                received[event.stream_id] += event.data
                server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                server.send_headers(event.stream_id, [(":status", "200")])
                body, size = bytes(received[event.stream_id]), server.max_outbound_frame_size
                for at in range(0, len(body), min(size, 60_000)):
                    server.send_data(event.stream_id, body[at : at + min(size, 60_000)])
                server.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
        data = server.data_to_send()
        for at in range(0, len(data), cuts):
            client.feed(data[at : at + cuts])
        if all(stream.done for stream in streams):
            break
    assert client.closing is None
    for stream, body in zip(streams, bodies, strict=True):
        assert stream.failure is None
        assert b"".join(stream.parts) == body == bytes(received[stream.id])
        assert stream.trailers == [(b"grpc-status", b"0")]


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200), cut=st.integers(1, 20))
def test_any_bytes_of_a_server_end_in_failures_and_never_raise(data: bytes, cut: int) -> None:
    client = Connection()
    stream = client.open(BLOCK, [b"abc"])
    for at in range(0, len(data), cut):
        client.feed(data[at : at + cut])
    client.lost("over")
    assert stream.done
    client.take()
