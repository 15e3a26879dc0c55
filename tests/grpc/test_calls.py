"""Limits, cancellation, deadlines, compression and reflection: what every transport does for every method."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import numpy as np

from embedserve.config import BatchingOptions
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.grpc.conftest import (
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


async def test_bytes_in_flight_are_bounded_and_given_back(start: Start) -> None:
    reg, _, gate = gated(max_inflight_bytes=75_000)
    client = await start(reg)
    request = predict_request(x=np.zeros(5000, np.float32))
    gate.close()
    first = client.prediction.Predict(request)
    await until_running(gate)
    assert reg.inflight.reserved > 20_000
    code, message = await failure(client.prediction.Predict(predict_request(x=np.zeros(15_000, np.float32))))
    assert code is C.RESOURCE_EXHAUSTED
    assert "max_inflight_bytes" in message
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
    waiting = client.prediction.Predict(predict_request(x=[2]), timeout=0.3)
    code, _ = await failure(waiting)
    assert code is C.DEADLINE_EXCEEDED
    while reg.inflight.reserved > 200:
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
        "grpc.reflection.v1alpha.ServerReflection",
        "tensorflow.serving.ModelService",
        "tensorflow.serving.PredictionService",
    ]
    assert file == "tensorflow_serving/apis/prediction_service.proto"


async def test_optional_services_can_be_left_out(start: Start) -> None:
    client = await start(registry(), health=False, reflection=False)
    for method in (
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/tensorflow.ProfilerService/Profile",
    ):
        assert (await failure(client.raw(method)))[0] is C.UNIMPLEMENTED
