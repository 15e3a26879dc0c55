"""A few bytes of JSON never become gigabytes, and documents that take long to read hold up nobody."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from embedserve.concurrency.codec_pool import check_wanted
from embedserve.rest import create_app, payload
from embedserve.servable import Array, Tensors
from embedserve.tensors import json_parser
from embedserve.testing import FakeLoader, FakeRegistry, fake_signature
from tests.rest.conftest import Serve

pytestmark = pytest.mark.slow

MIB = 1 << 20
PREDICT, CLASSIFY = "/v1/models/m:predict", "/v1/models/m:classify"


def zeros(version: int, inputs: Tensors) -> dict[str, Array]:
    """As many zeros as the request's number says."""
    return {"y": np.zeros(int(inputs["x"][0]), np.float32)}


def registry(loader: FakeLoader | None = None, limit: int = 4 * MIB) -> FakeRegistry:
    return FakeRegistry({"m": {1: loader or FakeLoader()}}, max_inflight_bytes=limit)


async def refused(reg: FakeRegistry, answer: httpx.Response, *words: str) -> None:
    error = answer.json()["error"]
    assert answer.status_code == 429, error
    for word in (*words, "max_inflight_bytes", str(reg.inflight.limit)):
        assert word in error
    await until_given_back(reg)


async def until_given_back(reg: FakeRegistry) -> None:
    while reg.inflight.reserved:
        await asyncio.sleep(0.001)


FLOODS = {
    "numbers": b'{"instances": [' + b"0," * 100_000 + b"0]}",
    "lists": b'{"instances": [' + b"[]," * 50_000 + b"[]]}",
    "nested lists": b'{"instances": [' + b"[[[[[[[[]]]]]]]]," * 5000 + b"[]]}",
    "objects": b'{"instances": [' + b"{}," * 50_000 + b"{}]}",
    "keys": b'{"instances": [1]' + b"".join(b',"%x":0' % i for i in range(50_000)) + b"}",
    "strings": b'{"instances": [' + b'"ab",' * 50_000 + b'""]}',
}


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("zipped", [False, True])
async def test_a_document_is_refused_before_it_becomes_a_tree(serve: Serve, flood: str, zipped: bool) -> None:
    body = FLOODS[flood]
    headers = {"content-encoding": "gzip"} if zipped else {}
    async with registry() as reg, serve(create_app(reg)) as server:
        answer = await server.client.post(PREDICT, content=gzip.compress(body) if zipped else body, headers=headers)
        await refused(reg, answer, "reading the JSON document")
        assert (await server.client.post(PREDICT, content=b'{"instances": [1]}')).status_code == 200


@pytest.mark.parametrize("flood", [b"[],", b"[[[[[[[[]]]]]]]],", b"{},"])
async def test_a_few_bytes_of_gzip_stay_small_on_the_largest_machine(serve: Serve, flood: bytes) -> None:
    zipped = gzip.compress(b'{"instances": [' + flood * (30_000_000 // len(flood)) + b"0]}")
    assert len(zipped) < 100_000
    async with registry(limit=1 << 50) as reg, serve(create_app(reg)) as server:
        answer = await server.client.post(PREDICT, content=zipped, headers={"content-encoding": "gzip"})
        assert answer.status_code == 429
        assert f"the request has {len(zipped)} bytes and would become" in answer.json()["error"]
        await until_given_back(reg)


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": ' + b"[" * 2_000_000,
        b'{"instances": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
        b'{"instances": ' + b"[ \n" * 700_000,
        b'{"instances": ' + b"[0," * 700_000,
        b'{"a":' * 400_000,
        b'{"signature_name": ' + b"[" * 2_000_000,
        b"[" * 2_000_000,
    ],
    ids=["open", "closed", "spaced", "ragged", "objects", "elsewhere", "bare"],
)
async def test_nesting_ends_the_reading_where_it_gets_too_deep(serve: Serve, body: bytes) -> None:
    async with registry(limit=1 << 30) as reg, serve(create_app(reg)) as server:
        zipped = gzip.compress(body)
        assert len(zipped) < 10_000
        answer = await server.client.post(PREDICT, content=zipped, headers={"content-encoding": "gzip"})
        assert answer.status_code == 400
        offset = int(answer.json()["error"].removeprefix(TOO_DEEP))
        assert offset < 400
        await until_given_back(reg)


TOO_DEEP = "JSON Parse error: More than 68 lists and objects inside each other. at offset: "


@pytest.mark.parametrize("form", ['{"inputs": %s}', '{"inputs": {"x": %s}}', '{"instances": %s}'])
async def test_as_many_lists_as_a_tensor_may_have_are_read(serve: Serve, form: str) -> None:
    signature = fake_signature(inputs={"x": ("float", None)}, outputs={"y": ("float", None)}, batchable=False)
    async with registry(FakeLoader(signatures=[signature])) as reg, serve(create_app(reg)) as server:
        answer = await server.client.post(PREDICT, content=form % ("[" * 64 + "1" + "]" * 64))
        assert answer.status_code == 200, answer.text


async def test_a_context_is_not_repeated_beyond_the_bound(serve: Serve) -> None:
    body = json.dumps({"context": {"text": "a" * 100_000}, "examples": [{}] * 1000})
    async with registry() as reg, serve(create_app(reg)) as server:
        await refused(reg, await server.client.post(CLASSIFY, content=body), "1000 examples with a context of 1000")


async def test_an_answer_is_held_while_it_is_written_and_refused_where_there_is_no_room(serve: Serve) -> None:
    loader = FakeLoader(zeros, signatures=[fake_signature(batchable=False)])
    async with registry(loader) as reg, serve(create_app(reg)) as server:
        answer = await server.client.post(PREDICT, content=b'{"instances": [100]}')
        assert answer.json() == {"predictions": [0.0] * 100}
        await refused(reg, await server.client.post(PREDICT, content=b'{"instances": [1000000]}'), "the answer")


async def test_an_answer_is_held_until_its_client_has_read_it(serve: Serve) -> None:
    loader = FakeLoader(zeros, signatures=[fake_signature(batchable=False)])
    async with registry(loader, limit=1 << 30) as reg, serve(create_app(reg)) as server:
        body, count = b'{"instances": [8000000]}', 8_000_000
        async with server.client.stream("POST", PREDICT, content=body) as answer:
            # What the client does not read fills the sockets' buffers and stays in the server.
            size = int(answer.headers["content-length"])
            assert size > 4 * count
            while reg.inflight.reserved > size:
                await asyncio.sleep(0.001)
            assert reg.inflight.reserved == size
            assert len(await answer.aread()) == size
        await until_given_back(reg)


async def test_a_client_that_does_not_read_its_answer_is_left_after_a_while(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embedserve.asgi.sending.PATIENCE", 0.05)
    loader = FakeLoader(zeros, signatures=[fake_signature(batchable=False)])
    async with (
        registry(loader, limit=1 << 30) as reg,
        serve(create_app(reg)) as server,
        server.client.stream("POST", PREDICT, content=b'{"instances": [8000000]}') as answer,
    ):
        assert answer.status_code == 200
        await until_given_back(reg)


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("float", [0.5] * 300_000),
        ("int64", [1000] * 300_000),
        ("string", ["ab"] * 100_000),
        ("string", ["\u00e9"] * 100_000),
        ("string", [{"b64": base64.b64encode(b"ab").decode()}] * 100_000),
        ("bool", [True] * 300_000),
    ],
)
def test_what_is_reserved_is_what_reading_takes(dtype: str, values: list[Any]) -> None:
    import tracemalloc

    from embedserve.tensors.sizes import json_document_bytes

    body = json.dumps({"instances": values}, ensure_ascii=False).encode()
    signature = fake_signature(inputs={"x": (dtype, (None,))})
    tracemalloc.start()
    try:
        request = payload.parse_predict(body)
        request.decode(signature)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < json_document_bytes(body)


# Documents that take long.


class SlowParser(json_parser._Parser):
    """The tolerant parser, held up in the middle of a document as by a very long one."""

    started = threading.Semaphore(0)
    given_up = threading.Semaphore(0)

    def parse(self) -> Any:
        if b"slow" not in self.body:
            return super().parse()
        self.started.release()
        try:
            while True:
                check_wanted()
        except BaseException:
            self.given_up.release()
            raise


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> type[SlowParser]:
    monkeypatch.setattr(json_parser, "_Parser", SlowParser)
    return SlowParser


SLOW = b'{"slow": ' + b" " * 100_000 + b"\\"
LARGE = b'{"instances": [' + b"1," * 50_000 + b"1]}"


async def within(acquire: Callable[..., bool]) -> None:
    assert await asyncio.to_thread(acquire, timeout=30)


async def test_a_long_reading_is_given_up_when_its_client_goes(serve: Serve, slow: type[SlowParser]) -> None:
    async with registry(limit=1 << 30) as reg, serve(create_app(reg)) as server:
        connection = await server.connect()
        connection.send(f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(SLOW)}\r\n\r\n".encode() + SLOW)
        await within(slow.started.acquire)
        connection.close()
        await within(slow.given_up.acquire)
        await until_given_back(reg)


async def test_a_long_reading_is_given_up_when_its_time_is_over(serve: Serve, slow: type[SlowParser]) -> None:
    async with registry(limit=1 << 30) as reg, serve(create_app(reg, timeout=0.1)) as server:
        answer = await server.client.post(PREDICT, content=SLOW)
        assert answer.status_code == 504
        assert "the body was not read within 0.1 s" in answer.json()["error"]
        await within(slow.given_up.acquire)


async def test_long_readings_do_not_hold_up_the_large_bodies_of_others(serve: Serve, slow: type[SlowParser]) -> None:
    async with registry(limit=1 << 30) as reg, serve(create_app(reg)) as server:
        tasks = [asyncio.create_task(server.client.post(PREDICT, content=SLOW)) for _ in range(4)]
        for _ in tasks:
            await within(slow.started.acquire)
        answer = await server.client.post(PREDICT, content=LARGE)
        assert len(answer.json()["predictions"]) == 50_001
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for _ in tasks:
            await within(slow.given_up.acquire)
