"""Micro-benchmarks of the hot path's parts: codecs, batching, registry lookup, dispatch.

python -m pytest benchmarks/micro.py [--benchmark-compare]      (with pytest-benchmark)

The models are fakes in numpy, so what is measured is the way to them and back. What is asked at 64 is one batch of 64.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeAlias

import numpy as np
import pytest

from benchmarks.suite.wire import TFS_GRPC, dumps
from embedserve.concurrency.inflight import InflightBytes, Reservation
from embedserve.config import Access
from embedserve.grpc.services.table import Services
from embedserve.rest import create_app
from embedserve.rest.payload import encode_predict, parse_predict
from embedserve.servable import Array
from embedserve.signature import Signature
from embedserve.tensors import proto
from embedserve.tensors.dtypes import by_name
from embedserve.testing import FakeLoader, FakeRegistry, fake_signature

Benchmark: TypeAlias = Callable[..., Any]
Run: TypeAlias = Callable[[Coroutine[Any, Any, Any]], Any]

FLOAT = by_name("float")
RANDOM = np.random.default_rng(0)
ARRAYS: dict[str, Array] = {
    "one value": np.ones((1, 1), np.float32),
    "784 values": RANDOM.random((1, 784), np.float32),
    "image": RANDOM.random((1, 224, 224, 3), np.float32),
}
named = pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)
at = pytest.mark.parametrize("callers", [1, 64])
SHAPE = (None, 1)


def signature_of(array: Array) -> Signature:
    shape = (None, *array.shape[1:])
    return fake_signature(inputs={"x": ("float", shape)}, outputs={"y": ("float", shape)})


# Codecs.


@named
def test_json_in(benchmark: Benchmark, array: Array) -> None:
    body, signature = dumps({"instances": array.tolist()}), signature_of(array)
    inputs, _ = benchmark(lambda: parse_predict(body).decode(signature))
    assert np.array_equal(inputs["x"], array)


@named
def test_json_out(benchmark: Benchmark, array: Array) -> None:
    signature = signature_of(array)
    body = benchmark(encode_predict, {"y": array}, signature, True)
    assert np.array_equal(np.asarray(json.loads(body)["predictions"], np.float32), array)


@named
def test_proto_in(benchmark: Benchmark, array: Array) -> None:
    tensor = proto.encode(array, FLOAT)
    assert np.array_equal(benchmark(proto.decode, tensor), array)


@named
def test_proto_out(benchmark: Benchmark, array: Array) -> None:
    tensor = benchmark(proto.encode, array, FLOAT)
    assert np.array_equal(proto.decode(tensor), array)


# The registry and what is in front of it.


@pytest.fixture
def run() -> Iterator[Run]:
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture
def registry(run: Run) -> Iterator[FakeRegistry]:
    signature = fake_signature(inputs={"x": ("float", SHAPE)}, outputs={"y": ("float", SHAPE)})
    found = FakeRegistry({"half": {1: FakeLoader(signatures=[signature], model=lambda version, x: {"y": x["x"] * 2})}})

    async def enter() -> None:
        await found.start()

    run(enter())
    yield found
    run(found.aclose())


def together(run: Run, callers: int, ask: Callable[[], Awaitable[object]]) -> Callable[[], None]:
    async def all_of_them() -> None:
        await asyncio.gather(*(ask() for _ in range(callers)))

    return lambda: run(all_of_them())


def test_registry_lookup(benchmark: Benchmark, run: Run, registry: FakeRegistry) -> None:
    async def many() -> None:
        for _ in range(1000):
            registry.acquire_now("half").release()

    benchmark(lambda: run(many()))


@at
def test_batcher(benchmark: Benchmark, run: Run, registry: FakeRegistry, callers: int) -> None:
    x = {"x": ARRAYS["one value"]}
    benchmark(together(run, callers, lambda: registry.predict("half", x)))


@at
def test_dispatch_of_rest(benchmark: Benchmark, run: Run, registry: FakeRegistry, callers: int) -> None:
    app, body = create_app(registry), dumps({"instances": [[1.0]]})
    path = "/v1/models/half:predict"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": [(b"content-length", str(len(body)).encode())], "root_path": ""}
    sent: list[dict[str, Any]] = []

    async def ask() -> None:
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            return messages.pop() if messages else await asyncio.Event().wait()  # type: ignore[return-value]

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await app(scope, receive, send)

    benchmark(together(run, callers, ask))
    assert [message["status"] for message in sent if "status" in message] == [200] * (len(sent) // 2)
    assert json.loads(sent[1]["body"]) == {"predictions": [[2.0]]}


class NoContext:
    """A call without deadline and metadata."""

    def __init__(self, inflight: InflightBytes) -> None:
        self.held = Reservation(inflight)

    def time_remaining(self) -> float | None:
        return None

    def metadata_value(self, key: str) -> str | bytes | None:
        return None


@at
def test_dispatch_of_grpc(benchmark: Benchmark, run: Run, registry: FakeRegistry, callers: int) -> None:
    services = Services(
        registry, health=False, reflection=False, access=Access(), tensor_content=False, reload=None, metric=None
    )
    predict: Any = services.methods[TFS_GRPC.path("half")]
    message, context = TFS_GRPC.encode("half", ARRAYS["one value"]), NoContext(registry.inflight)
    answers: list[bytes] = []

    async def ask() -> None:
        answers.append(await predict.answer(message, context))

    benchmark(together(run, callers, ask))
    assert TFS_GRPC.decode(answers[0]).tolist() == [[2.0]]
