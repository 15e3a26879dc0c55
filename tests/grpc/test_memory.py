"""A few bytes never become gigabytes: what a call makes the process hold is in one account, and refused in time."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import grpc
import numpy as np
import pytest
from tensorflow.core.example.example_pb2 import Example
from tensorflow_serving.apis import classification_pb2, predict_pb2, session_service_pb2

from embedserve.config import Access, ModelConfig
from embedserve.registry import ModelRegistry
from embedserve.servable import Array, Tensors
from embedserve.tensors.wire_format import delimited
from embedserve.testing import FakeLoader, FakeRegistry, fake_signature
from tests.grpc.conftest import TRANSPORTS, Client, Start, failure, predict_request, until_given_back
from tests.support import saved_models

pytestmark = pytest.mark.slow

C = grpc.StatusCode
MIB = 1 << 20
LIMIT = 4 * MIB


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def zeros(version: int, inputs: Tensors) -> dict[str, Array]:
    """As many zeros as the request's number says."""
    return {"y": np.zeros(int(inputs["x"][0]), np.float32)}


def registry(loader: FakeLoader | None = None, limit: int = LIMIT) -> FakeRegistry:
    return FakeRegistry({"m": {1: loader or FakeLoader()}}, max_inflight_bytes=limit)


async def refused(client: Client, call: Any, *words: str) -> None:
    code, message = await failure(call)
    assert code is C.RESOURCE_EXHAUSTED, message
    for word in (*words, "max_inflight_bytes", str(client.registry.inflight.limit)):
        assert word in message
    await until_given_back(client.registry)


def one_value(dtype: int, *shape: int, **values: Any) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    tensor = request.inputs["x"]
    tensor.dtype = dtype
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    for field, value in values.items():
        getattr(tensor, field).extend(value)
    return request


@pytest.mark.parametrize(
    ("dtype", "name", "values"),
    [
        (1, "float", {}),
        (1, "float", {"float_val": [1.5]}),
        (9, "int64", {"int64_val": [1]}),
        (10, "bool", {"bool_val": [True]}),
        (7, "string", {"string_val": [b"a"]}),
        (18, "complex128", {}),
    ],
)
async def test_one_value_for_a_large_shape_is_refused_before_it_is_made(
    start: Start, dtype: int, name: str, values: dict[str, Any]
) -> None:
    signature = fake_signature(inputs={"x": (name, (None,))}, outputs={"y": (name, (None,))})
    client = await start(registry(FakeLoader(lambda version, inputs: {"y": inputs["x"]}, signatures=[signature])))
    request = one_value(dtype, 1 << 40, **values)
    await refused(client, client.prediction.Predict(request), f"input 'x', {name} [1099511627776]")
    assert (await client.prediction.Predict(one_value(dtype, 2, **values))).outputs["y"].tensor_shape.dim[0].size == 2


async def test_a_few_bytes_of_gzip_stay_small_on_the_largest_machine(start: Start) -> None:
    client = await start(registry(limit=1 << 50))
    flood = predict_pb2.PredictRequest.FromString(b"\x1a\x00" * 4_000_000)  # As many empty names of outputs.
    code, message = await failure(client.prediction.Predict(flood, compression=grpc.Compression.Gzip))
    assert code is C.RESOURCE_EXHAUSTED
    assert "and would become" in message
    await until_given_back(client.registry)


async def test_one_value_stays_small_on_the_largest_machine(start: Start) -> None:
    client = await start(registry(limit=1 << 50))
    code, message = await failure(client.prediction.Predict(one_value(1, 1 << 30, float_val=[1])))
    assert code is C.RESOURCE_EXHAUSTED
    assert re.match(r"input 'x', float \[1073741824\]: the request has 3\d bytes and would become 42949673", message)
    assert "are made of it" in message
    await until_given_back(client.registry)


async def test_a_tensor_that_does_not_fit_the_signature_is_never_made(start: Start) -> None:
    client = await start(registry(limit=1 << 50))
    code, message = await failure(client.prediction.Predict(one_value(1, 1 << 20, 1 << 20, float_val=[1])))
    assert code is C.INVALID_ARGUMENT
    assert message.startswith("input 'x' of signature 'serving_default' has shape [1048576,1048576], expected [?]")
    code, message = await failure(client.prediction.Predict(one_value(2, 1 << 40)))
    assert code is C.INVALID_ARGUMENT
    assert message.startswith("Expects arg[0] to be float but double is provided")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([-1], "negative dimension"),
        ([1 << 40, 1 << 40], "too large"),
        ([(1 << 63) - 1, (1 << 63) - 1, 2], "too large"),
        ([0, 1 << 40, 1 << 40], "too large"),
        ([1] * 100_000, "rank 100000"),
    ],
)
async def test_shapes_that_no_tensor_has(start: Start, shape: list[int], words: str) -> None:
    client = await start(registry(limit=64 * MIB))
    code, message = await failure(client.prediction.Predict(one_value(1, *shape)))
    assert code is C.INVALID_ARGUMENT
    assert "tensor parsing error: x" in message
    assert words in message


async def test_an_empty_tensor_takes_nothing_however_large_its_other_dimensions(start: Start) -> None:
    signature = fake_signature(inputs={"x": ("float", (None, None))}, outputs={"y": ("float", (None, None))})
    client = await start(registry(FakeLoader(signatures=[signature])))
    response = await client.prediction.Predict(one_value(1, 0, 1 << 40))
    assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == [0, 1 << 40]


FLOODS = {
    "map entries": b"\x12\x00" * 200_000,
    "overlong map entries": b"\x92\x00\x00" * 200_000,
    "inputs": b"".join(delimited(2, delimited(1, b"%x" % i)) for i in range(50_000)),
    "filters": b"\x1a\x00" * 500_000,
    "strings": delimited(2, delimited(1, b"x") + delimited(2, b"\x08\x07" + b"\x42\x00" * 500_000)),
    "dimensions": delimited(2, delimited(1, b"x") + delimited(2, delimited(2, b"\x12\x00" * 200_000))),
    "numbers": delimited(2, delimited(1, b"x") + delimited(2, delimited(10, bytes(1_000_000)))),
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_message_of_very_many_fields_is_refused_before_it_is_parsed(start: Start, flood: str) -> None:
    client = await start(registry(limit=8 * MIB))
    body = delimited(1, delimited(1, b"m")) + FLOODS[flood]
    call = client.raw("/tensorflow.serving.PredictionService/Predict", body)
    await refused(client, call, "the request, parsed")


async def test_a_message_nested_too_deeply_is_no_message(start: Start) -> None:
    body = b""
    for _ in range(5000):
        body = delimited(3, body)
    client = await start(registry())
    code, _ = await failure(client.raw("/tensorflow.serving.ModelService/HandleReloadConfigRequest", b"\x0b" * 50_000))
    assert code is C.INVALID_ARGUMENT
    code, _ = await failure(client.raw("/tensorflow.serving.PredictionService/Predict", delimited(2, body)))
    assert code is C.INVALID_ARGUMENT


async def test_a_context_is_not_repeated_beyond_the_bound(start: Start) -> None:
    example = Example()
    example.features.feature["text"].bytes_list.value.append(b"a" * 100_000)
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = "m"
    chosen = request.input.example_list_with_context
    chosen.context.CopyFrom(example)
    for _ in range(1000):
        chosen.examples.add()
    client = await start(registry())
    await refused(client, client.prediction.Classify(request), "1000 examples with a context of 1000")


async def test_an_answer_is_held_while_it_is_made_and_refused_where_there_is_no_room(start: Start) -> None:
    client = await start(registry(FakeLoader(zeros, signatures=[fake_signature(batchable=False)])))
    assert len((await client.prediction.Predict(predict_request(x=[100.0]))).outputs["y"].float_val) == 100
    await refused(client, client.prediction.Predict(predict_request(x=[10_000_000.0])), "the answer", "80000000 more")


async def test_an_answer_is_held_until_its_client_has_read_it(start: Start) -> None:
    client = await start(registry(FakeLoader(zeros, signatures=[fake_signature(batchable=False)]), limit=64 * MIB))
    size = 4 * MIB
    call = client.channel.unary_stream("/tensorflow.serving.PredictionService/Predict")(
        predict_request(x=[size / 4]).SerializeToString()
    )
    # A client that asks for no message opens no window for one of this size.
    while not size < client.registry.inflight.reserved < size + MIB:
        await asyncio.sleep(0.001)
    async for response in call:
        assert len(response) > size
    await until_given_back(client.registry)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_a_compressed_flood_is_stopped_while_it_is_decompressed(
    start: Start, transport: str, compression: grpc.Compression
) -> None:
    client = await start(registry())
    request = predict_request(x=np.zeros(32 * MIB, np.float32))
    code, message = await failure(client.prediction.Predict(request, compression=compression))
    if transport != "grpcio" and compression is grpc.Compression.Deflate:
        assert code is C.UNIMPLEMENTED
    else:
        assert code is C.RESOURCE_EXHAUSTED
        assert "the message, decompressed" in message
    await until_given_back(client.registry)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests_are_understood(start: Start, transport: str, compression: grpc.Compression) -> None:
    if transport != "grpcio" and compression is grpc.Compression.Deflate:
        return  # HTTP servers hand over what came, and deflate is none of the encodings that are offered.
    client = await start(registry())
    for size in (1, 100_000):
        values = np.arange(size, dtype=np.float32)
        response = await client.prediction.Predict(predict_request(x=values), compression=compression)
        assert np.array_equal(response.outputs["y"].float_val, values * 10 + 1)


@pytest.fixture(scope="module")
def session_model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    path = tmp_path_factory.mktemp("session")
    saved_models.half_plus_two(path / "1")
    return ModelConfig(name="session", base_path=path, servable="session")


def session_request(dtype: int, *shape: int) -> bytes:
    request = session_service_pb2.SessionRunRequest(fetch=["y"], tensor_name_is_alias=True)
    request.model_spec.name = "session"
    feed = request.feed.add(name="x")
    feed.tensor.CopyFrom(one_value(dtype, *shape).inputs["x"])
    data: bytes = request.SerializeToString()
    return data


async def test_feeds_are_checked_against_the_graph_and_counted_before_they_are_made(
    start: Start, session_model: ModelConfig
) -> None:
    client = await start(
        ModelRegistry(models=[session_model], max_inflight_bytes=LIMIT), access=Access(session_run="local")
    )
    run = "/tensorflow.serving.SessionService/SessionRun"
    await refused(client, client.raw(run, session_request(1, 1 << 40, 1)), "float [1099511627776,1]")
    for request, words in (
        (session_request(2, 1 << 40, 1), "is float, the feed is double"),
        (session_request(1, 1 << 40, 7), "the feed has (1099511627776, 7)"),
    ):
        code, message = await failure(client.raw(run, request))
        assert code is C.INVALID_ARGUMENT
        assert words in message
    response = session_service_pb2.SessionRunResponse.FromString(await client.raw(run, session_request(1, 3, 1)))
    assert list(response.tensor[0].tensor.float_val) == [2.0, 2.0, 2.0]
