"""Limits, cancellation, deadlines, compression and reflection: what every transport does for every method."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf import descriptor_database, descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2

from embedserve.config import BatchingOptions
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.grpc.conftest import (
    TRANSPORTS,
    Start,
    answers,
    failure,
    gated,
    predict_request,
    registry,
    until_given_back,
    until_idle,
    until_running,
)

C = grpc.StatusCode


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Limits.


async def test_a_message_over_the_limit_is_refused(start: Start) -> None:
    client = await start(registry(), max_message_bytes=10_000)
    assert await answers(client)
    code, _ = await failure(client.prediction.Predict(predict_request(x=np.zeros(5000, np.float32))))
    assert code is C.RESOURCE_EXHAUSTED


async def test_max_request_bytes_counts_after_decompression(start: Start) -> None:
    client = await start(registry(max_request_bytes=10_000))
    request = predict_request(x=np.zeros(5000, np.float32))
    code, _ = await failure(client.prediction.Predict(request, compression=grpc.Compression.Gzip))
    assert code is C.RESOURCE_EXHAUSTED


async def test_bytes_in_flight_are_bounded_and_given_back(start: Start, transport: str) -> None:
    reg, _, gate = gated(max_inflight_bytes=75_000)
    client = await start(reg)
    request = predict_request(x=np.zeros(5000, np.float32))
    gate.close()
    first = client.prediction.Predict(request)
    await until_running(gate)
    assert reg.inflight.reserved > 20_000
    code, message = await failure(client.prediction.Predict(predict_request(x=np.zeros(15_000, np.float32))))
    assert code is C.RESOURCE_EXHAUSTED
    # The own listener refuses the body by ENHANCE_YOUR_CALM, before the body is there and a method could answer.
    assert ("error code 11" if transport == "embedserve" else "max_inflight_bytes") in message
    gate.open()
    await first
    await until_given_back(reg)
    await client.prediction.Predict(request)


async def test_what_a_small_message_unpacks_to_counts_as_bytes_in_flight(start: Start) -> None:
    reg = registry(max_inflight_bytes=1_000_000)
    client = await start(reg)
    request = predict_request(x=np.zeros(1, np.float32))
    request.inputs["x"].tensor_shape.dim[0].size = 1_000_000
    code, message = await failure(client.prediction.Predict(request))
    assert code is C.RESOURCE_EXHAUSTED
    assert "input 'x', float [1000000]" in message
    assert "max_inflight_bytes" in message
    await until_given_back(reg)


# Cancellation and deadlines.


async def test_a_clients_cancel_reaches_the_run(start: Start) -> None:
    reg, _, gate = gated()
    client = await start(reg)
    gate.close()
    call = client.prediction.Predict(predict_request(x=[1]))
    await until_running(gate)
    call.cancel()
    await until_idle(gate)  # The gate was never opened: only the cancelled run can have left it.
    await until_given_back(reg)
    gate.open()
    assert await answers(client)


async def test_a_deadline_ends_the_call_and_the_run(start: Start) -> None:
    reg, _, gate = gated()
    client = await start(reg)
    gate.close()
    code, _ = await failure(client.prediction.Predict(predict_request(x=[1]), timeout=0.2))
    assert code is C.DEADLINE_EXCEEDED
    await until_idle(gate)
    gate.open()
    assert await answers(client)


async def test_a_waiting_request_whose_client_has_gone_costs_no_run(start: Start) -> None:
    gate = Gate(opened=True)
    loader = FakeLoader(gate=gate)
    options = BatchingOptions(max_batch_size=1)
    reg = FakeRegistry({"m": {1: loader}}, num_batch_threads=1, batching_options=options)
    client = await start(reg)
    gate.close()
    assert loader.servable is not None
    before = len(loader.servable.runs)
    running = client.prediction.Predict(predict_request(x=[1]))
    await until_running(gate)
    alone = reg.inflight.reserved
    waiting = client.prediction.Predict(predict_request(x=[2]), timeout=0.3)
    code, _ = await failure(waiting)
    assert code is C.DEADLINE_EXCEEDED
    while reg.inflight.reserved > alone:
        await asyncio.sleep(0.001)
    gate.open()
    await running
    assert len(loader.servable.runs) == before + 1


# Reflection.


async def test_reflection_names_and_describes_the_services(start: Start) -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    client = await start(registry())

    def ask() -> tuple[list[str], str]:
        with grpc.insecure_channel(f"127.0.0.1:{client.server.port}") as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            names = list(database.get_services())
            return names, str(database.FindFileContainingSymbol("tensorflow.serving.PredictionService").name)

    names, file = await asyncio.to_thread(ask)
    assert names == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "inference.GRPCInferenceService",
        "tensorflow.serving.ModelService",
        "tensorflow.serving.PredictionService",
    ]
    assert file == "tensorflow_serving/apis/prediction_service.proto"


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_a_client_of_either_reflection_calls_a_service_by_its_description_alone(
    start: Start, version: str
) -> None:
    """As grpcurl does: every file comes over the wire into a pool of the client's own, and so do the messages."""
    package = f"grpc.reflection.{version}"
    client = await start(registry())
    # The wire form of a ServerReflectionRequest is the same in both versions.
    call = client.channel.stream_stream(f"/{package}.ServerReflection/ServerReflectionInfo")()
    received = descriptor_database.DescriptorDatabase()
    pool = descriptor_pool.DescriptorPool(received)
    for symbol in (f"{package}.ServerReflection", "tensorflow.serving.ModelService"):
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol).SerializeToString())
        answer: Any = reflection_pb2.ServerReflectionResponse.FromString(await call.read())
        for file in answer.file_descriptor_response.file_descriptor_proto:
            received.Add(descriptor_pb2.FileDescriptorProto.FromString(file))
    await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol="no.Such").SerializeToString())
    own = pool.FindServiceByName(f"{package}.ServerReflection").FindMethodByName("ServerReflectionInfo")
    answer = message_factory.GetMessageClass(own.output_type).FromString(await call.read())
    assert answer.error_response.error_code == C.NOT_FOUND.value[0]
    assert answer.original_request.file_containing_symbol == "no.Such"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    status = pool.FindServiceByName("tensorflow.serving.ModelService").FindMethodByName("GetModelStatus")
    asked: Any = message_factory.GetMessageClass(status.input_type)()
    asked.model_spec.name = "m"
    body = await client.raw(f"/{status.containing_service.full_name}/{status.name}", asked.SerializeToString())
    found: Any = message_factory.GetMessageClass(status.output_type).FromString(body)
    assert [each.version for each in found.model_version_status] == [1]


def test_reflection_leaves_the_name_of_its_file_to_other_packages() -> None:
    from embedserve.grpc.services import reflection

    assert reflection.methods(()).keys() == {f"/{name}/ServerReflectionInfo" for name in reflection.SERVICES}
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindFileByName("grpc/reflection/v1/reflection.proto")


async def test_optional_services_can_be_left_out(start: Start) -> None:
    client = await start(registry(), health=False, reflection=False)
    for method in (
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/tensorflow.ProfilerService/Profile",
    ):
        assert (await failure(client.raw(method)))[0] is C.UNIMPLEMENTED
