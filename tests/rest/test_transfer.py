"""What happens on the way: chunked and compressed bodies, bounds, pipelining, timeouts, clients that leave."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from embedserve.errors import Code
from embedserve.observer import Observer
from embedserve.rest import RestApp, create_app
from embedserve.testing import FakeLoader, FakeRegistry, Gate, fake_signature
from tests.rest.conftest import Connection, Serve

BODY = b'{"instances": [1, 2]}'
ANSWER = {"predictions": [11.0, 21.0]}
PREDICT = "/v1/models/m:predict"


class Finished(Observer):
    """Lets a test wait for what an adapter says of its requests."""

    def __init__(self) -> None:
        self.codes: asyncio.Queue[Code] = asyncio.Queue()

    def request_finished(self, model_name: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        self.codes.put_nowait(code)


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry({"m": {1: FakeLoader()}}, max_request_bytes=10_000, max_inflight_bytes=15_000) as registry:
        yield registry


@pytest.fixture
async def connection(registry: FakeRegistry, serve: Serve) -> AsyncIterator[Connection]:
    async with serve(create_app(registry)) as server:
        yield await server.connect()
    assert registry.inflight.reserved == 0


async def test_keep_alive_answers_one_request_after_the_other(connection: Connection) -> None:
    for _ in range(3):
        answer = await connection.request("POST", PREDICT, BODY)
        assert (answer.status, json.loads(answer.body)) == (200, ANSWER)
        assert (await connection.request("POST", PREDICT, b"{")).status == 400


async def test_pipelined_requests_are_answered_in_order(connection: Connection) -> None:
    request = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    connection.send(request + b"GET /v1/models/q HTTP/1.1\r\nHost: x\r\n\r\n" + request)
    assert [(await connection.answer()).status for _ in range(3)] == [200, 404, 200]


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_chunked_bodies(size: int, connection: Connection) -> None:
    connection.send(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    for at in range(0, len(BODY), size):
        piece = BODY[at : at + size]
        connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
    connection.send(b"0\r\n\r\n")
    assert json.loads((await connection.answer()).body) == ANSWER


async def test_expect_100_continue(connection: Connection) -> None:
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(BODY)}\r\n\r\n"
    connection.send(head.encode())
    assert (await connection.answer()).status == 100
    connection.send(BODY)
    assert json.loads((await connection.answer()).body) == ANSWER


async def test_http_1_0(connection: Connection) -> None:
    connection.send(f"POST {PREDICT} HTTP/1.0\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
    assert json.loads((await connection.answer()).body) == ANSWER
    assert await connection.at_end()


async def test_gzip_bodies_are_read_and_answers_are_plain(connection: Connection) -> None:
    zipped = gzip.compress(BODY)
    answer = await connection.request("POST", PREDICT, zipped, content_encoding="gzip", accept_encoding="gzip")
    assert json.loads(answer.body) == ANSWER
    assert "content-encoding" not in answer.headers


ZIPPED = gzip.compress(BODY, mtime=0)  # Without the time, which would be in the tests' names.


@pytest.mark.parametrize("body", [BODY, ZIPPED[:-2], ZIPPED + b"x"])
async def test_bad_gzip_is_an_empty_document(body: bytes, connection: Connection) -> None:
    answer = await connection.request("POST", PREDICT, body, content_encoding="gzip")
    assert answer.status == 400
    assert json.loads(answer.body)["error"].startswith("JSON Parse error: The document is empty")


async def test_a_body_over_the_bound_is_refused_and_the_connection_lives(connection: Connection) -> None:
    answer = await connection.request("POST", PREDICT, b" " * 200_000)
    assert answer.status == 429
    assert "max_request_bytes" in json.loads(answer.body)["error"]
    assert json.loads((await connection.request("POST", PREDICT, BODY)).body) == ANSWER


async def test_a_compressed_body_over_the_bound_is_refused(connection: Connection) -> None:
    body = gzip.compress(b" " * 10_001)
    answer = await connection.request("POST", PREDICT, body, content_encoding="gzip")
    assert answer.status == 429
    assert "max_request_bytes" in json.loads(answer.body)["error"]


async def test_bodies_in_flight_are_bounded_over_all_connections(serve: Serve) -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}}, max_request_bytes=60_000, max_inflight_bytes=60_000)
    async with registry, serve(create_app(registry)) as server:
        first, second = await server.connect(), await server.connect()
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 9001\r\n\r\n".encode()
        first.send(head + b" " * 9000)
        # The first request holds its bytes while it waits for the last one; an answer to another shows it got there.
        while registry.inflight.reserved < 9000:
            assert (await second.request("GET", "/-/live")).status == 200
        answer = await second.request("POST", PREDICT, b" " * 55_000)
        assert answer.status == 429
        assert "max_inflight_bytes" in json.loads(answer.body)["error"]
        assert json.loads((await second.request("POST", PREDICT, BODY)).body) == ANSWER
        first.send(b" ")
        assert json.loads((await first.answer()).body)["error"].startswith("JSON Parse error: The document is empty")
        assert registry.inflight.reserved == 0


def slow_registry(gate: Gate, finished: Finished | None = None) -> FakeRegistry:
    loader = FakeLoader(signatures=[fake_signature(batchable=False)], gate=gate)
    return FakeRegistry({"m": {1: loader}}, warmup="none", observers=[finished] if finished else [])


async def test_a_run_over_the_timeout_is_504_with_tf_servings_words(serve: Serve) -> None:
    gate = Gate()
    async with slow_registry(gate) as registry, serve(create_app(registry, timeout=0.05)) as server:
        response = await server.client.post(PREDICT, content=BODY)
        assert response.status_code == 504
        assert response.json()["error"].startswith("Timed out waiting for notification")
        gate.open()
        assert (await server.client.post(PREDICT, content=BODY)).json() == ANSWER


async def test_a_full_queue_is_503(serve: Serve) -> None:
    gate = Gate()
    loader = FakeLoader(signatures=[fake_signature(batchable=False)], gate=gate)
    options: dict[str, Any] = {"warmup": "none", "max_pending_requests": 1, "num_batch_threads": 1}
    async with FakeRegistry({"m": {1: loader}}, **options) as registry, serve(create_app(registry)) as server:
        tasks = [asyncio.create_task(server.client.post(PREDICT, content=BODY)) for _ in range(8)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().status_code for task in done} == {503}
        gate.open()
        codes = [response.status_code for response in await asyncio.gather(*tasks)]
        assert sorted(set(codes)) == [200, 503]


@pytest.mark.parametrize("timeout", [None, 0, -1])
def test_no_timeout_has_three_spellings(timeout: float | None) -> None:
    assert create_app(FakeRegistry({}), timeout=timeout)._timeout is None


async def test_a_client_that_leaves_stops_its_run(serve: Serve) -> None:
    finished, gate = Finished(), Gate()
    async with slow_registry(gate, finished) as registry, serve(create_app(registry)) as server:
        connection = await server.connect()
        connection.send(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
        while not gate.waiting:
            assert (await server.client.get("/-/live")).status_code == 200
        connection.close()
        assert await asyncio.wait_for(finished.codes.get(), 20) is Code.CANCELLED
        # The gate never opened: the run ended because it was cancelled, and its thread serves the next request.
        gate.open()
        assert (await server.client.post(PREDICT, content=BODY)).json() == ANSWER
    assert registry.started is False


async def test_a_client_that_leaves_inside_its_body_leaves_nothing_behind(serve: Serve) -> None:
    finished = Finished()
    async with slow_registry(Gate(opened=True), finished) as registry, serve(create_app(registry)) as server:
        connection = await server.connect()
        connection.send(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode() + BODY)
        while not registry.inflight.reserved:
            assert (await server.client.get("/-/live")).status_code == 200
        connection.close()
        assert await asyncio.wait_for(finished.codes.get(), 20) is Code.CANCELLED
        assert registry.inflight.reserved == 0


async def test_a_cancelled_request_task_stays_cancelled() -> None:
    """A host that cancels (shutdown, a timeout middleware) must see its own CancelledError."""
    finished, gate = Finished(), Gate()
    async with slow_registry(gate, finished) as registry:
        task = asyncio.create_task(call(create_app(registry)))
        while not gate.waiting:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await finished.codes.get() is Code.CANCELLED
        assert registry.inflight.reserved == 0


async def call(app: RestApp) -> list[Any]:
    """One request through the bare ASGI interface, by a client that never leaves."""
    sent: list[Any] = []
    messages = [{"type": "http.request", "body": BODY, "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": PREDICT, "headers": []}, receive, send)
    return sent


async def test_the_bare_asgi_interface_needs_no_raw_path() -> None:
    async with slow_registry(Gate(opened=True)) as registry:
        start, body = await call(create_app(registry))
    assert start["status"] == 200
    assert json.loads(body["body"]) == ANSWER
    assert (b"content-length", b"%d" % len(body["body"])) in start["headers"]
