"""The Open Inference Protocol over gRPC, on each transport: what each RPC answers, and how each request ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest

from embedserve.concurrency.inflight import Reservation
from embedserve.config import Access, AllVersions, ModelConfig
from embedserve.errors import Code
from embedserve.grpc.errors import StatusError
from embedserve.grpc.services.infer_messages import message_of, response_of
from embedserve.grpc.services.inference_service import methods
from embedserve.observer import Observer
from embedserve.oip.messages import SERVICE, message_class
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors.dtypes import by_name
from embedserve.testing import FakeLoader, FakeRegistry
from tests.grpc.conftest import Client, Start, failure, gated, until_given_back, until_idle, until_running

C = grpc.StatusCode


def typed(name: str, shape: tuple[int | None, ...] | None, dtype: str) -> TensorSpec:
    return TensorSpec(name, by_name(dtype), shape)


def identity(dtype: str) -> FakeLoader:
    signature = Signature("serving_default", {"x": typed("x", (None, 2), dtype)}, {"y": typed("y", (None, 2), dtype)})
    return FakeLoader(lambda version, inputs: {"y": inputs["x"]}, signatures=[signature])


def registry(**options: Any) -> FakeRegistry:
    return FakeRegistry({"m": {1: FakeLoader(), 2: FakeLoader()}}, **options)


async def call(client: Client, rpc: str, **fields: Any) -> Any:
    answer = await client.raw(f"/{SERVICE}/{rpc}", message_class(f"{rpc}Request")(**fields).SerializeToString())
    return message_class(f"{rpc}Response").FromString(answer)


def infer_request(x: Any = (1, 2), datatype: str = "FP32", *, raw: bool = True, **fields: Any) -> Any:
    array = np.asarray(x, np.float32) if not isinstance(x, np.ndarray) else x
    request: Any = message_class("ModelInferRequest")(**({"model_name": "m"} | fields))
    given = request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    if raw:
        request.raw_input_contents.append(array.tobytes())
    else:
        given.contents.fp32_contents.extend(array.ravel().tolist())
    return request


async def infer(client: Client, request: Any, **options: Any) -> Any:
    method = client.channel.unary_unary(f"/{SERVICE}/ModelInfer")
    return message_class("ModelInferResponse").FromString(await method(request.SerializeToString(), **options))


async def test_raw_contents_are_answered_as_raw_contents(start: Start) -> None:
    client = await start(registry())
    response = await infer(client, infer_request(id="7"))
    assert (response.model_name, response.model_version, response.id) == ("m", "2", "7")
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("y", "FP32", [2])
    assert np.frombuffer(response.raw_output_contents[0], np.float32).tolist() == [12, 22]
    assert not output.contents.fp32_contents


async def test_typed_contents_are_answered_as_typed_contents_unless_the_request_says_otherwise(start: Start) -> None:
    client = await start(registry())
    response = await infer(client, infer_request(raw=False))
    assert list(response.outputs[0].contents.fp32_contents) == [12, 22]
    assert not response.raw_output_contents
    request = infer_request(raw=False)
    request.parameters["binary_data_output"].bool_param = True
    assert len((await infer(client, request)).raw_output_contents) == 1


@pytest.mark.parametrize(
    ("dtype", "datatype", "field", "values"),
    [
        ("bool", "BOOL", "bool_contents", [True, False]),
        ("int8", "INT8", "int_contents", [-128, 127]),
        ("int16", "INT16", "int_contents", [-32768, 32767]),
        ("int32", "INT32", "int_contents", [-(2**31), 2**31 - 1]),
        ("int64", "INT64", "int64_contents", [-(2**63), 2**63 - 1]),
        ("uint8", "UINT8", "uint_contents", [0, 255]),
        ("uint16", "UINT16", "uint_contents", [0, 65535]),
        ("uint32", "UINT32", "uint_contents", [0, 2**32 - 1]),
        ("uint64", "UINT64", "uint64_contents", [0, 2**64 - 1]),
        ("float", "FP32", "fp32_contents", [0.5, -1.5]),
        ("double", "FP64", "fp64_contents", [1e300, -1e-300]),
        ("string", "BYTES", "bytes_contents", [b"\xff\0", b""]),
    ],
)
async def test_each_datatype_has_its_typed_field(dtype: str, datatype: str, field: str, values: list[Any]) -> None:
    request: Any = message_class("ModelInferRequest")(model_name="m")
    given = request.inputs.add(name="x", datatype=datatype, shape=[1, 2])
    getattr(given.contents, field).extend(values)
    message = message_of(request)
    arrays = message.decode()
    assert arrays["x"].dtype == by_name(dtype).numpy
    assert arrays["x"].tolist() == [values]
    response: Any = message_class("ModelInferResponse").FromString(
        response_of("m", 1, message.request, {"y": arrays["x"]}, as_raw=False)
    )
    assert list(getattr(response.outputs[0].contents, field)) == values


@pytest.mark.parametrize(("dtype", "datatype"), [("half", "FP16"), ("bfloat16", "BF16")])
async def test_half_floats_are_raw_both_ways(start: Start, dtype: str, datatype: str) -> None:
    client = await start(FakeRegistry({"m": {1: identity(dtype)}}))
    array = np.array([[1.5, -2]], np.float16 if datatype == "FP16" else ml_dtypes.bfloat16)
    response = await infer(client, infer_request(array, datatype))
    assert response.outputs[0].datatype == datatype
    assert response.raw_output_contents[0] == array.tobytes()
    code, text = await failure(infer(client, infer_request(array, datatype, raw=False)))
    assert (code, dtype in text) == (C.INVALID_ARGUMENT, True)


class _BareContext:
    """A call without a transport."""

    def __init__(self, reg: FakeRegistry) -> None:
        self.held = Reservation(reg.inflight)

    def time_remaining(self) -> float | None:
        return None

    def metadata_value(self, key: str) -> str | bytes | None:
        return None

    def is_local(self) -> bool:
        return True


class _Finished(Observer):
    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str, Code]] = []

    def request_finished(self, model_name: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        self.requests.append((model_name, api, entrypoint, code))


def _broken(change: Callable[[Any], Any]) -> Any:
    request = infer_request(id="broken")
    change(request)
    return request


def _named(request: Any) -> None:
    request.inputs[0].name = "z"


def _parameter(request: Any, name: str, **value: Any) -> None:
    for key, each in value.items():
        setattr(request.parameters[name], key, each)


ERRORS: list[tuple[Callable[[Any], Any], grpc.StatusCode, str]] = [
    (lambda r: setattr(r, "model_name", ""), C.INVALID_ARGUMENT, "ModelSpec has no name"),
    (lambda r: setattr(r, "model_name", "x"), C.NOT_FOUND, "Servable not found for request: Latest(x)"),
    (lambda r: setattr(r, "model_version", "9"), C.NOT_FOUND, "Servable not found for request: Specific(m, 9)"),
    (
        lambda r: setattr(r, "model_version", "stable"),
        C.INVALID_ARGUMENT,
        "Unrecognized servable version label: stable",
    ),
    (_named, C.INVALID_ARGUMENT, "Missing but required: {x}"),
    (lambda r: setattr(r.inputs[0], "datatype", "INT32"), C.INVALID_ARGUMENT, "Expects arg[0] to be float"),
    (lambda r: setattr(r.inputs[0], "datatype", "FLOAT"), C.INVALID_ARGUMENT, "expected one of BOOL"),
    (lambda r: r.inputs[0].shape.append(2), C.INVALID_ARGUMENT, "has shape [2,2], expected [?]"),
    (lambda r: r.inputs.append(r.inputs[0]), C.INVALID_ARGUMENT, "came twice"),
    (lambda r: r.raw_input_contents.append(b""), C.INVALID_ARGUMENT, "1 inputs came with 2 raw contents"),
    (lambda r: r.raw_input_contents.__setitem__(0, b"123"), C.INVALID_ARGUMENT, "has 3 bytes of raw data"),
    (lambda r: r.raw_input_contents.pop(), C.INVALID_ARGUMENT, "has 0 values in fp32_contents"),
    (lambda r: r.outputs.add(name="z"), C.INVALID_ARGUMENT, "output tensor alias not found in signature: z"),
    (lambda r: _parameter(r, "signature_name", string_param="z"), C.FAILED_PRECONDITION, 'key "z" not found'),
    (lambda r: _parameter(r, "timeout", string_param="soon"), C.INVALID_ARGUMENT, "'timeout' is 'soon'"),
    (lambda r: _parameter(r, "sequence_id", int64_param=3), C.UNIMPLEMENTED, "sequences"),
    (
        lambda r: setattr(r.inputs[0].parameters["shared_memory_region"], "string_param", "r"),
        C.UNIMPLEMENTED,
        "shared memory",
    ),
]


@pytest.mark.parametrize(("change", "code", "words"), ERRORS)
async def test_a_bad_request_ends_with_its_code_and_the_reason(
    change: Callable[[Any], Any], code: grpc.StatusCode, words: str
) -> None:
    """Without a transport: the RPC as a function of bytes."""
    async with registry() as reg:
        method: Any = methods(reg)[f"/{SERVICE}/ModelInfer"]
        with pytest.raises(StatusError) as ended:
            await method.answer(_broken(change).SerializeToString(), _BareContext(reg))
        assert (ended.value.code, words in ended.value.message) == (Code(code.value[0]), True), ended.value.message
        assert reg.inflight.reserved == 0


async def test_parameters_choose_signature_outputs_and_classes(start: Start) -> None:
    client = await start(registry())
    request = infer_request([1, 5, 3])
    request.parameters["signature_name"].string_param = "serving_default"
    request.outputs.add(name="y").parameters["classification"].int64_param = 2
    response = await infer(client, request)
    assert response.outputs[0].datatype == "BYTES"
    assert response.raw_output_contents[0] == b"\x0b\0\0\x0052.000000:1\x0b\0\0\x0032.000000:2"


async def test_a_version_is_a_number_or_a_label(start: Start) -> None:
    config = ModelConfig(
        name="m", base_path="/fake/m", version_policy=AllVersions(), version_labels={"stable": 1, "canary": 2}
    )
    found = {"m": {1: FakeLoader(), 2: FakeLoader()}}
    client = await start(FakeRegistry(found, models=[config], allow_version_labels_for_unavailable_models=True))
    for version, number in (("1", "1"), ("stable", "1"), ("canary", "2"), ("", "2")):
        assert (await infer(client, infer_request(model_version=version))).model_version == number
        assert (await call(client, "ModelReady", name="m", version=version)).ready


async def test_a_timeout_of_the_request_ends_the_run(start: Start) -> None:
    reg, _, gate = gated()
    client = await start(reg)
    gate.close()
    request = infer_request()
    request.parameters["timeout"].int64_param = 50_000
    code, _ = await failure(infer(client, request))
    assert code is C.DEADLINE_EXCEEDED
    await until_idle(gate)


async def test_a_clients_cancel_reaches_the_run(start: Start) -> None:
    reg, _, gate = gated()
    client = await start(reg)
    gate.close()
    under_way = asyncio.ensure_future(infer(client, infer_request()))
    await until_running(gate)
    under_way.cancel()
    await until_idle(gate)
    gate.open()
    await until_given_back(reg)


async def test_a_stream_answers_each_request_in_order_and_outlives_errors(start: Start) -> None:
    client = await start(registry())

    async def requests() -> AsyncIterator[bytes]:
        yield infer_request([1], id="a").SerializeToString()
        yield infer_request([2], id="b", model_name="x").SerializeToString()
        yield infer_request([3], "FP99", raw=False, id="c").SerializeToString()
        last = infer_request([4], id="d")
        last.parameters["triton_enable_empty_final_response"].bool_param = True
        yield last.SerializeToString()

    stream = client.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(requests())
    answers: list[Any] = [message_class("ModelStreamInferResponse").FromString(body) async for body in stream]
    assert [answer.infer_response.id for answer in answers] == ["a", "b", "c", "d"]
    assert [bool(answer.error_message) for answer in answers] == [False, True, True, False]
    assert answers[1].error_message.startswith("Servable not found for request: Latest(x)")
    assert np.frombuffer(answers[3].infer_response.raw_output_contents[0], np.float32).tolist() == [42]
    assert answers[3].infer_response.parameters["triton_final_response"].bool_param
    assert not answers[0].infer_response.parameters
    await until_given_back(client.registry)


async def test_health_follows_the_registry(start: Start) -> None:
    client = await start(registry())
    assert (await call(client, "ServerLive")).live
    assert (await call(client, "ServerReady")).ready
    for name, version, ready in (
        ("m", "", True),
        ("m", "2", True),
        ("m", "1", False),
        ("m", "no", False),
        ("x", "", False),
    ):
        assert (await call(client, "ModelReady", name=name, version=version)).ready is ready
    client.registry.begin_drain()
    assert not (await call(client, "ServerReady")).ready
    assert not (await call(client, "ModelReady", name="m")).ready


async def test_a_model_is_described_with_and_without_its_rows(start: Start) -> None:
    client = await start(FakeRegistry({"m": {3: identity("half")}}, batching=True))
    metadata = await call(client, "ModelMetadata", name="m")
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("m", ["3"], "tensorflow_savedmodel")
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [("x", "FP16", [-1, 2])]
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.outputs] == [("y", "FP16", [-1, 2])]
    config = (await call(client, "ModelConfig", name="m")).config
    assert config.max_batch_size == client.registry.options.batching_options.max_batch_size
    assert config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [2]


async def test_without_batching_the_configuration_has_every_dimension(start: Start) -> None:
    client = await start(FakeRegistry({"m": {1: identity("double")}}, batching=False))
    config = (await call(client, "ModelConfig", name="m", version="1")).config
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (0, False)
    assert list(config.input[0].dims) == [-1, 2]


async def test_statistics_count_what_ran_and_what_failed(start: Start) -> None:
    def model(version: int, inputs: Any) -> Any:
        if inputs["x"][0] < 0:
            raise ValueError
        return {"y": inputs["x"]}

    client = await start(FakeRegistry({"m": {1: FakeLoader(model)}, "other": {1: FakeLoader()}}))
    assert (await call(client, "ModelStatistics", name="m")).model_stats[0].inference_stats.success.count == 0
    for _ in range(3):
        await infer(client, infer_request())
    await failure(infer(client, infer_request([-1])))
    (found,) = (await call(client, "ModelStatistics", name="m", version="1")).model_stats
    counts = found.inference_stats
    assert (counts.success.count, counts.fail.count) == (3, 1)
    assert counts.queue.count == counts.compute_infer.count == counts.compute_input.count == 3
    assert min(counts.success.ns, counts.compute_infer.ns, counts.compute_input.ns, counts.compute_output.ns) > 0
    assert found.inference_count >= 6
    assert found.execution_count >= 3
    assert found.last_inference > 1_600_000_000_000
    every = (await call(client, "ModelStatistics")).model_stats
    assert [each.name for each in every] == ["m", "other"]
    assert (await failure(call(client, "ModelStatistics", name="x")))[0] is C.NOT_FOUND


async def test_an_unloaded_model_is_refused_until_it_is_loaded_again(start: Start) -> None:
    client = await start(registry())

    async def index(**fields: Any) -> list[tuple[str, str, str]]:
        models = (await call(client, "RepositoryIndex", **fields)).models
        return [(each.name, each.version, each.state) for each in models]

    assert await index() == [("m", "2", "READY")]
    await call(client, "RepositoryModelUnload", model_name="m")
    assert await index() == [("m", "2", "UNAVAILABLE")]
    assert await index(ready=True) == []
    assert (await failure(infer(client, infer_request())))[0] is C.NOT_FOUND
    await call(client, "RepositoryModelLoad", model_name="m")
    assert await index(ready=True) == [("m", "2", "READY")]
    assert (await infer(client, infer_request())).model_version == "2"


async def test_a_change_of_an_unknown_model_or_by_a_configuration_is_refused(start: Start) -> None:
    client = await start(registry())
    for rpc in ("RepositoryModelLoad", "RepositoryModelUnload"):
        assert (await failure(call(client, rpc, model_name="x")))[0] is C.NOT_FOUND
        assert (await failure(call(client, rpc)))[0] is C.INVALID_ARGUMENT
    for name in ("config", "file:1/model.pb"):
        code, text = await failure(
            call(client, "RepositoryModelLoad", model_name="m", parameters={name: {"string_param": "{}"}})
        )
        assert (code, name in text) == (C.UNIMPLEMENTED, True)


@pytest.mark.parametrize(("clients", "code"), [("none", C.UNIMPLEMENTED), ("local", None), ("all", None)])
async def test_who_may_reload_may_load_and_unload(start: Start, clients: Any, code: grpc.StatusCode | None) -> None:
    client = await start(registry(), access=Access(reload=clients))
    changed = call(client, "RepositoryModelLoad", model_name="m")
    if code is None:
        await changed
    else:
        assert await failure(changed) == (
            code,
            "the change of models is off; --reload_clients=local or all turns it on",
        )


@pytest.mark.parametrize("rpc", ["SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "TraceSetting", "LogSettings"])
async def test_what_is_left_out_is_unimplemented_and_says_so(start: Start, rpc: str) -> None:
    client = await start(registry())
    code, text = await failure(client.raw(f"/{SERVICE}/{rpc}"))
    assert code is C.UNIMPLEMENTED
    assert "not supported" in text


async def test_requests_are_counted_under_the_name_of_their_model(start: Start) -> None:
    finished = _Finished()
    client = await start(FakeRegistry({"m": {1: FakeLoader()}}, observers=[finished]))
    await infer(client, infer_request())
    await failure(infer(client, infer_request(model_name="x")))
    assert finished.requests == [("m", "ModelInfer", "GRPC", Code.OK), ("x", "ModelInfer", "GRPC", Code.NOT_FOUND)]


async def test_large_raw_contents_pass_both_ways(start: Start) -> None:
    client = await start(registry())
    array = np.arange(1_000_000, dtype=np.float32)
    response = await infer(client, infer_request(array))
    assert np.array_equal(np.frombuffer(response.raw_output_contents[0], np.float32), array * 10 + 2)


async def test_a_flood_of_short_strings_is_counted_before_it_is_read(start: Start) -> None:
    client = await start(FakeRegistry({"m": {1: identity("string")}}, max_inflight_bytes=8 << 20))
    request: Any = message_class("ModelInferRequest")(model_name="m", raw_input_contents=[bytes(4 << 20)])
    request.inputs.add(name="x", datatype="BYTES", shape=[1 << 19, 2])
    code, text = await failure(infer(client, request))
    assert code is C.RESOURCE_EXHAUSTED
    assert "max_inflight_bytes" in text
    await until_given_back(client.registry)
