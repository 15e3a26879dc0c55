"""What gRPC tells and records of a call, on every transport: trailing metadata, and the caller's trace."""

from __future__ import annotations

from typing import Any

import grpc.aio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tensorflow_serving.apis import model_management_pb2

from embedserve import AccessLog, Tracing
from embedserve.config import Access
from embedserve.errors import Code
from embedserve.testing import FakeLoader, FakeRegistry
from tests.grpc.conftest import TRANSPORTS, Start, predict_request, registry
from tests.rest.test_recorded_calls import Records, parts

TIMING = (("x-embedserve-timing", "1"),)


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def trailing(call: Any) -> dict[str, Any]:
    return dict(await call.trailing_metadata() or ())


async def test_a_client_asks_for_the_times_of_a_call(start: Start) -> None:
    client = await start(registry())
    for _ in range(3):  # The last finds a known request.
        call = client.prediction.Predict(predict_request(x=[1, 2]))
        plain = await call
        assert "server-timing" not in await trailing(call)
        call = client.prediction.Predict(predict_request(x=[1, 2]), metadata=TIMING)
        assert await call == plain
        told = parts((await trailing(call))["server-timing"])
        assert (told["rows"], told["batch"], told["version"]) == (2, 2, 1)
        assert 0 < told["run"] <= told["total"]


async def test_the_option_tells_the_times_of_each_call_failed_ones_too(start: Start) -> None:
    client = await start(registry(timing_headers=True))
    call = client.prediction.Predict(predict_request(x=[1]))
    await call
    assert "server-timing" in await trailing(call)
    call = client.prediction.Predict(predict_request("absent", x=[1]))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert "server-timing" in dict(raised.value.trailing_metadata() or ())


async def test_a_record_holds_what_came_and_what_went(start: Start) -> None:
    records = Records()
    client = await start(registry(observers=[records]))
    request = predict_request(x=[1, 2])
    answer = await client.prediction.Predict(request)
    with pytest.raises(grpc.aio.AioRpcError):
        await client.prediction.Predict(predict_request("absent", x=[1]))
    with pytest.raises(grpc.aio.AioRpcError):
        await client.raw("/tensorflow.serving.PredictionService/Predict", b"\xff\xff")
    good, absent, malformed = records.calls
    assert good.target == "/tensorflow.serving.PredictionService/Predict"
    assert (good.transport, good.api, good.code) == ("GRPC", "Predict", Code.OK)
    assert (good.model, good.version, good.signature, good.rows) == ("m", 1, "serving_default", 2)
    assert (good.received, good.sent) == (request.ByteSize(), answer.ByteSize())
    assert good.peer == "127.0.0.1"
    assert (absent.code, absent.model, absent.version) == (Code.NOT_FOUND, "absent", None)
    assert (malformed.code, malformed.model) == (Code.INVALID_ARGUMENT, "")


async def test_a_request_id_is_given_back(start: Start) -> None:
    log = AccessLog()
    client = await start(registry(observers=[log]))
    call = client.prediction.Predict(predict_request(x=[1]), metadata=(("x-request-id", "abc-1"),))
    await call
    assert (await trailing(call))["x-request-id"] == "abc-1"
    assert log.flush()


async def test_the_caller_s_trace_goes_on(start: Start) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    client = await start(registry(observers=[Tracing(provider, sampling=0.0)], warmup="none"))
    for flags in ("00", "01", "01"):
        metadata = (("traceparent", f"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"),)
        await client.prediction.Predict(predict_request(x=[1]), metadata=metadata)
    calls = [span for span in exporter.get_finished_spans() if span.name.startswith("tensorflow.serving")]
    assert {span.name for span in calls} == {"tensorflow.serving.PredictionService/Predict"}
    assert [span.context.trace_id for span in calls if span.context] == [0x0AF7651916CD43DD8448EB211C80319C] * 2
    attributes = dict(calls[0].attributes or {})
    assert attributes["rpc.system.name"] == "grpc"
    assert attributes["rpc.response.status_code"] == "OK"
    assert attributes["rpc.method"] == "tensorflow.serving.PredictionService/Predict"


async def test_a_reload_is_an_event_by_the_address_of_the_client(start: Start) -> None:
    reg = FakeRegistry({"m": {1: FakeLoader()}, "k": {1: FakeLoader()}})
    client = await start(reg, access=Access(reload="all"))
    request = model_management_pb2.ReloadConfigRequest()
    config = request.config.model_config_list.config.add()
    config.name, config.base_path, config.model_platform = "m", "/fake/m", "tensorflow"
    await client.model.HandleReloadConfigRequest(request)
    (event,) = [event for event in reg.events() if event.kind == "reconfigure"]
    assert (event.by.address, event.by.reason) == ("127.0.0.1", "HandleReloadConfigRequest")
    assert "removed 'k'" in event.detail
