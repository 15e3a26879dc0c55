"""The Open Inference Protocol over REST, on a real server: golden requests from the specification, errors, codings."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from embedserve.config import Access, AllVersions, ModelConfig
from embedserve.errors import Code
from embedserve.http import HttpProtocol
from embedserve.metrics import Metrics
from embedserve.observer import Observer
from embedserve.registry import ModelRegistry
from embedserve.rest import create_app
from embedserve.servable import State
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors.dtypes import Array, Tensors, by_name
from embedserve.testing import FakeLoader, FakeRegistry, Gate
from tests.rest.conftest import Serve

SIZE = "inference-header-content-length"


def _of(name: str, dtype: str, *shape: int | None) -> TensorSpec:
    return TensorSpec(name, by_name(dtype), shape)


def _golden(version: int, inputs: Tensors) -> dict[str, Array]:
    return {"output0": np.array([[1.0, 1.1], [2.0, 2.1], [3.0, 3.1]], np.float32)}


# The model of the specification's examples.
GOLDEN = Signature(
    "serving_default",
    {"input0": _of("input0", "uint32", 2, 2), "input1": _of("input1", "bool", 3)},
    {"output0": _of("output0", "float", 3, 2)},
)


def echo(dtype: str, *shape: int | None) -> FakeLoader:
    signature = Signature("serving_default", {"x": _of("x", dtype, *shape)}, {"y": _of("y", dtype, *shape)})
    return FakeLoader(lambda version, inputs: {"y": inputs["x"]}, signatures=[signature])


MODELS = {
    "mymodel": {1: FakeLoader(_golden, signatures=[GOLDEN])},
    "text": {1: echo("string", None)},
    "half": {1: echo("half", None, 2)},
    "small": {1: echo("uint8", None)},
    "m": {1: FakeLoader(), 2: FakeLoader()},
    "a/b c": {1: FakeLoader()},
    "complex": {1: echo("complex64", None)},
}


def registry(**options: Any) -> FakeRegistry:
    models = [ModelConfig(name=name, base_path=f"/fake/{name}") for name in MODELS if name != "m"]
    models.append(
        ModelConfig(name="m", base_path="/fake/m", version_policy=AllVersions(), version_labels={"stable": 1})
    )
    given: dict[str, Any] = {"allow_version_labels_for_unavailable_models": True, "models": models} | options
    return FakeRegistry(MODELS, **given)


async def until_all_serve(reg: ModelRegistry) -> None:
    """A model is ready with its first version; the tests ask for each."""
    async with asyncio.timeout(60):
        while {status.state for versions in reg.status().values() for status in versions} != {State.AVAILABLE}:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def served(serve: Serve, reg: ModelRegistry, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with reg, serve(create_app(reg, **options), http=HttpProtocol) as server:
        await until_all_serve(reg)
        yield server.client


@pytest.fixture
async def client(serve: Serve) -> AsyncIterator[httpx.AsyncClient]:
    async with served(serve, registry()) as found:
        yield found


def request_of(x: Any, datatype: str = "FP32", **members: Any) -> dict[str, Any]:
    array = np.asarray(x)
    tensor = {"name": "x", "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist()}
    return {"inputs": [tensor]} | members


async def test_the_specifications_request_in_json(client: httpx.AsyncClient) -> None:
    body = {
        "id": "42",
        "inputs": [
            {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "data": [1, 2, 3, 4]},
            {"name": "input1", "shape": [3], "datatype": "BOOL", "data": [True, False, True]},
        ],
        "outputs": [{"name": "output0"}],
    }
    answer = await client.post("/v2/models/mymodel/infer", json=body)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "id": "42",
        "model_name": "mymodel",
        "model_version": "1",
        "outputs": [{"name": "output0", "shape": [3, 2], "datatype": "FP32", "data": [1.0, 1.1, 2.0, 2.1, 3.0, 3.1]}],
    }


async def test_the_binary_extensions_request(client: httpx.AsyncClient) -> None:
    head = {
        "model_name": "mymodel",
        "inputs": [
            {"name": "input0", "shape": [2, 2], "datatype": "UINT32", "parameters": {"binary_data_size": 16}},
            {"name": "input1", "shape": [3], "datatype": "BOOL", "parameters": {"binary_data_size": 3}},
        ],
        "outputs": [{"name": "output0", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(head).encode()
    body = text + np.arange(4, dtype=np.uint32).tobytes() + b"\1\0\1"
    headers = {"content-type": "application/octet-stream", "Inference-Header-Content-Length": str(len(text))}
    answer = await client.post("/v2/models/mymodel/infer", content=body, headers=headers)
    assert answer.headers["content-type"] == "application/octet-stream"
    size = int(answer.headers[SIZE])
    assert json.loads(answer.content[:size])["outputs"] == [
        {"name": "output0", "shape": [3, 2], "datatype": "FP32", "parameters": {"binary_data_size": 24}}
    ]
    assert (
        np.frombuffer(answer.content[size:], np.float32).tolist()
        == np.array([1, 1.1, 2, 2.1, 3, 3.1], np.float32).tolist()
    )


async def test_a_body_of_raw_bytes_alone_is_one_row_of_the_only_input(client: httpx.AsyncClient) -> None:
    values = np.array([1.5, -2.0], np.float16)
    answer = await client.post("/v2/models/half/infer", content=values.tobytes(), headers={SIZE: "0"})
    size = int(answer.headers[SIZE])
    assert json.loads(answer.content[:size])["outputs"][0]["shape"] == [1, 2]
    assert answer.content[size:] == values.tobytes()
    answer = await client.post("/v2/models/text/infer", content=b"one text", headers={SIZE: "0"})
    assert answer.content[int(answer.headers[SIZE]) :] == b"\x08\0\0\0one text"
    refused = await client.post("/v2/models/mymodel/infer", content=b"1234", headers={SIZE: "0"})
    assert (refused.status_code, "needs a signature with one input" in refused.json()["error"]) == (400, True)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("count", [2, 3000])
async def test_nested_and_flat_lists_are_the_same_tensor(client: httpx.AsyncClient, nested: bool, count: int) -> None:
    array = np.arange(count * 2).reshape(count, 2) / 4
    body = request_of(array, "FP16")
    if nested:
        body["inputs"][0]["data"] = array.tolist()
    answer = await client.post("/v2/models/half/infer", json=body)
    (output,) = answer.json()["outputs"]
    assert (output["shape"], output["datatype"]) == ([count, 2], "FP16")
    assert output["data"] == array.astype(np.float16).ravel().tolist()


async def test_strings_are_text_in_json_and_bytes_behind_it(client: httpx.AsyncClient) -> None:
    body = request_of(["a", "ü"], "BYTES")
    answer = await client.post("/v2/models/text/infer", json=body)
    assert answer.json()["outputs"][0]["data"] == ["a", "ü"]
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 5}}
    text = json.dumps({"inputs": [tensor]}).encode()
    answer = await client.post("/v2/models/text/infer", content=text + b"\1\0\0\0\xff", headers={SIZE: str(len(text))})
    assert answer.status_code == 400
    assert "no UTF-8" in answer.json()["error"]
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    answer = await client.post("/v2/models/text/infer", content=text + b"\1\0\0\0\xff", headers={SIZE: str(len(text))})
    assert answer.content.endswith(b"\1\0\0\0\xff")


async def test_the_server_and_its_models_are_described(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v2")).json()["name"] == "embedserve"
    assert (await client.get("/v2/")).json() == (await client.get("/v2")).json()
    assert (await client.head("/v2")).content == b""
    assert (await client.get("/v2/models/mymodel")).json() == {
        "name": "mymodel",
        "versions": ["1"],
        "platform": "tensorflow_savedmodel",
        "inputs": [
            {"name": "input0", "datatype": "UINT32", "shape": [2, 2]},
            {"name": "input1", "datatype": "BOOL", "shape": [3]},
        ],
        "outputs": [{"name": "output0", "datatype": "FP32", "shape": [3, 2]}],
    }
    assert (await client.get("/v2/models/m/versions/stable")).json()["versions"] == ["2", "1"]
    assert (await client.get("/v2/models/a/b%20c")).json()["name"] == "a/b c"
    assert (await client.get("/v2/models/a%2Fb%20c/config")).json()["backend"] == "tensorflow"
    assert (await client.get("/v2/models/complex/config")).json()["input"][0]["data_type"] == "TYPE_INVALID"
    assert (await client.get("/v2/models/m?signature_name=serving_default")).status_code == 200
    assert (await client.get("/v2/models/m?signature_name=other")).status_code == 400


async def test_health_is_a_status_and_a_document(serve: Serve) -> None:
    reg = registry()
    async with served(serve, reg) as client:
        assert (await client.get("/v2/health/live")).json() == {"live": True}
        assert (await client.get("/v2/health/ready")).json() == {"ready": True}
        assert (await client.get("/v2/models/m/versions/2/ready")).json() == {"name": "m", "ready": True}
        gone = await client.get("/v2/models/m/versions/7/ready")
        assert (gone.status_code, gone.json()["ready"]) == (503, False)
        assert (await client.get("/v2/models/x/ready")).status_code == 404
        reg.begin_drain()
        leaving = await client.get("/v2/health/ready")
        assert (leaving.status_code, "draining" in leaving.json()["error"]) == (503, True)
        assert (await client.get("/v2/models/m/ready")).status_code == 503


async def test_health_answers_before_the_registry_is_entered(serve: Serve) -> None:
    async with serve(create_app(registry())) as server:
        answer = await server.client.get("/v2/health/ready")
        assert (answer.status_code, "not been entered" in answer.json()["error"]) == (503, True)
        assert (await server.client.get("/v2/health/live")).status_code == 200
        assert (await server.client.get("/v2/models/m")).status_code == 503


ERRORS: list[tuple[str, str, Any, int, str]] = [
    ("GET", "/v2/nothing", None, 404, "has no path /v2/nothing"),
    ("GET", "/v2/models/x", None, 404, "Servable not found for request: Latest(x)"),
    ("GET", "/v2/models/m/versions/9", None, 404, "Specific(m, 9)"),
    ("GET", "/v2/models/m/versions/new", None, 400, "Unrecognized servable version label: new"),
    ("GET", "/v2/models/m/infer", None, 405, "takes POST"),
    ("DELETE", "/v2/models/m", None, 405, "takes GET"),
    ("TRACE", "/v2/models/m", None, 405, "takes GET"),
    ("GET", "/v2/trace/setting", None, 501, "trace settings are not supported"),
    ("GET", "/v2/models/m/trace/setting", None, 501, "trace settings are not supported"),
    ("GET", "/v2/systemsharedmemory/status", None, 501, "shared memory is not supported"),
    ("POST", "/v2/cudasharedmemory/region/r/register", {}, 501, "shared memory is not supported"),
    ("GET", "/v2/logging", None, 501, "log settings are not supported"),
    ("POST", "/v2/models/m/generate", {}, 501, "text generation is not supported"),
    ("POST", "/v2/models/m/infer", b"{", 400, "JSON Parse error"),
    ("POST", "/v2/models/m/infer", b"", 400, "JSON Parse error"),
    ("POST", "/v2/models/m/infer", b"\xff", 400, "JSON Parse error"),
    ("POST", "/v2/models/m/infer", [1], 400, "expected a JSON object"),
    ("POST", "/v2/models/m/infer", {}, 400, "no list 'inputs'"),
    ("POST", "/v2/models/m/infer", {"inputs": [1]}, 400, "an input is 1, expected an object"),
    ("POST", "/v2/models/m/infer", {"inputs": [{"name": 1}]}, 400, "expected a string"),
    ("POST", "/v2/models/m/infer", {"inputs": [{"name": "x"}]}, 400, "expected a list of integers"),
    ("POST", "/v2/models/m/infer", request_of([1], "FP99"), 400, "expected one of BOOL"),
    ("POST", "/v2/models/m/infer", request_of([1], "INT32"), 400, "Expects arg[0] to be float but int32 is provided"),
    ("POST", "/v2/models/m/infer", request_of([[1]]), 400, "has shape [1,1], expected [?]"),
    ("POST", "/v2/models/m/infer", request_of([1], id=7), 400, "'id' is 7"),
    ("POST", "/v2/models/m/infer", request_of([1], outputs=[{"name": "z"}]), 400, "alias not found in signature: z"),
    ("POST", "/v2/models/m/infer", request_of([1], outputs="y"), 400, "expected a list of objects"),
    ("POST", "/v2/models/m/infer", request_of([1], parameters=[]), 400, "expected an object"),
    ("POST", "/v2/models/m/infer", request_of([1], parameters={"signature_name": "z"}), 400, 'key "z" not found'),
    ("POST", "/v2/models/m/infer", request_of([1], parameters={"sequence_id": 1}), 501, "sequences"),
    ("POST", "/v2/models/x/infer", request_of([1]), 404, "Latest(x)"),
    ("POST", "/v2/models/small/infer", request_of([300], "UINT8"), 400, "outside uint8, from 0 to 255"),
    ("POST", "/v2/repository/index", b"[]", 400, "no JSON object"),
    ("POST", "/v2/repository/models/x/load", None, 404, "Could not find model 'x'"),
    ("POST", "/v2/repository/models/m/load", {"parameters": {"config": "{}"}}, 501, "'config' is not supported"),
]


@pytest.mark.parametrize(("method", "target", "body", "status", "words"), ERRORS)
async def test_every_error_below_v2_is_the_protocols_document(
    client: httpx.AsyncClient, method: str, target: str, body: Any, status: int, words: str
) -> None:
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    answer = await client.request(method, target, content=content)
    assert answer.headers["content-type"] == "application/json"
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert words in answer.json()["error"]


def _one(**change: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]} | change]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (_one(data=[1, 2, 3]), "has 3 values in 'data'; shape [2] needs 2"),
        (_one(data=[[1], [2, 3]]), "input 'x': "),
        (_one(data=["a", "b"]), "is not of expected type: float"),
        (_one(data=None), "is not of expected type: float"),
        (_one(shape=[-2]), "each size is an integer of 0 or more"),
        (_one(parameters={"binary_data_size": 8}), "0 raw bytes came behind the JSON object"),
        (_one(parameters={"binary_data_size": -1}), "expected a number of bytes"),
        (_one(parameters={"shared_memory_region": "r"}), "shared memory"),
        ({"inputs": [_one()["inputs"][0]] * 2}, "came twice"),
    ],
)
async def test_values_that_are_not_the_declared_tensor_are_refused(
    client: httpx.AsyncClient, body: dict[str, Any], words: str
) -> None:
    answer = await client.post("/v2/models/m/infer", json=body)
    assert answer.status_code in (400, 501)
    assert words in answer.json()["error"]


async def test_large_documents_with_wrong_values_are_refused_as_small_ones_are(client: httpx.AsyncClient) -> None:
    many = list(range(3000))
    for data, words in (
        ([*many, 1], "has 3001 values"),
        ([*many[1:], "a"], "not of expected type"),
        ([many, [1]], "x"),
    ):
        answer = await client.post("/v2/models/m/infer", json=_one(shape=[3000], data=data))
        assert (answer.status_code, words in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize("size", ["x", "-1", "1000000", "9" * 30])
async def test_a_wrong_size_of_the_json_object_is_refused(client: httpx.AsyncClient, size: str) -> None:
    answer = await client.post("/v2/models/m/infer", json=_one(), headers={SIZE: size})
    assert (answer.status_code, "Inference-Header-Content-Length" in answer.json()["error"]) == (400, True)


CODINGS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_coding_is_read_and_written_on_request(client: httpx.AsyncClient, coding: str) -> None:
    body = CODINGS[coding](json.dumps(request_of(np.arange(500))).encode())
    headers = {"content-encoding": coding, "accept-encoding": coding}
    answer = await client.post("/v2/models/m/infer", content=body, headers=headers)
    assert answer.headers["content-encoding"] == coding
    assert answer.json()["outputs"][0]["data"] == [10 * x + 2 for x in range(500)]


async def test_a_librarys_default_list_of_codings_is_no_wish_for_compression(client: httpx.AsyncClient) -> None:
    body = request_of(np.arange(500))
    for accepted in ("gzip, deflate, br", "identity", "*"):
        answer = await client.post("/v2/models/m/infer", json=body, headers={"accept-encoding": accepted})
        assert "content-encoding" not in answer.headers


@pytest.mark.parametrize(("coding", "status"), [("br", 415), ("gzip, gzip", 415), ("gzip", 400), ("deflate", 400)])
async def test_an_unreadable_coding_is_refused(client: httpx.AsyncClient, coding: str, status: int) -> None:
    answer = await client.post("/v2/models/m/infer", json=_one(), headers={"content-encoding": coding})
    assert (answer.status_code, list(answer.json())) == (status, ["error"])


async def test_an_output_without_a_datatype_is_refused_with_the_way_round_it(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v2/models/complex/infer", json=request_of([1], "FP32"))
    assert (answer.status_code, "Expects arg[0] to be complex64" in answer.json()["error"]) == (400, True)


async def test_a_model_is_unloaded_and_loaded_again(client: httpx.AsyncClient) -> None:
    async def states(**members: Any) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for entry in (await client.post("/v2/repository/index", json=members)).json():
            found.setdefault(entry["name"], set()).add(entry["state"])
        return found

    assert (await states())["m"] == {"READY"}
    assert (await client.post("/v2/repository/models/m/unload")).json() == {}
    assert (await states())["m"] == {"UNAVAILABLE"}
    assert "m" not in await states(ready=True)
    assert (await client.get("/v2/models/m/ready")).status_code == 503
    assert (await client.post("/v2/repository/models/m/load", json={})).json() == {}
    assert (await states(ready=True))["m"] == {"READY"}


@pytest.mark.parametrize(
    ("clients", "headers", "status"),
    [
        ("none", {}, 501),
        ("local", {}, 200),
        ("local", {"origin": "https://evil.example"}, 403),
        ("all", {"origin": "https://evil.example"}, 200),
    ],
)
async def test_models_are_changed_by_whom_access_names_and_by_no_foreign_web_page(
    serve: Serve, clients: Any, headers: dict[str, str], status: int
) -> None:
    async with served(serve, registry(), access=Access(reload=clients)) as client:
        answer = await client.post("/v2/repository/models/m/load", headers=headers)
        assert answer.status_code == status


async def test_another_machine_may_not_change_models(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    monkeypatch.setattr("embedserve.rest.oip.api.is_loopback", lambda host: False)
    async with served(serve, registry()) as client:
        assert (await client.post("/v2/repository/models/m/unload")).status_code == 403
        assert (await client.post("/v2/models/m/infer", json=request_of([1]))).status_code == 200


async def test_statistics_of_all_of_one_and_of_a_version(client: httpx.AsyncClient) -> None:
    await client.post("/v2/models/m/infer", json=request_of([1, 2, 3]))
    await client.post("/v1/models/m:predict", json={"instances": [1, 2]})
    (found,) = (await client.get("/v2/models/m/versions/2/stats")).json()["model_stats"]
    assert found["inference_stats"]["success"]["count"] == 2
    assert found["inference_stats"]["compute_infer"]["ns"] > 0
    assert {each["version"] for each in (await client.get("/v2/models/m/stats")).json()["model_stats"]} == {"1", "2"}
    every = (await client.get("/v2/models/stats")).json()["model_stats"]
    assert {each["name"] for each in every} == set(MODELS)
    assert (await client.get("/v2/models/x/stats")).status_code == 404


async def test_a_request_without_the_protocol_adds_no_observer(serve: Serve) -> None:
    reg = registry()
    async with served(serve, reg) as client:
        await client.post("/v1/models/m:predict", json={"instances": [1]})
        assert not reg.observers
        await client.post("/v2/models/m/infer", json=request_of([1]))
        assert reg.observers


class _Finished(Observer):
    def __init__(self) -> None:
        self.requests: list[tuple[str, str, str, Code]] = []

    def request_finished(self, model_name: str, api: str, entrypoint: str, code: Code, seconds: float) -> None:
        self.requests.append((model_name, api, entrypoint, code))


async def test_requests_are_counted_under_the_name_of_their_model(serve: Serve) -> None:
    finished = _Finished()
    async with served(serve, registry(observers=[finished])) as client:
        await client.post("/v2/models/m/infer", json=request_of([1]))
        await client.post("/v2/models/x/infer", json=request_of([1]))
        await client.get("/v2/models/m")
    assert finished.requests == [
        ("m", "infer", "REST", Code.OK),
        ("x", "infer", "REST", Code.NOT_FOUND),
        ("m", "", "REST", Code.OK),
    ]


async def test_a_timeout_of_the_request_or_of_the_application_is_504(serve: Serve) -> None:
    gate = Gate()
    reg = FakeRegistry({"m": {1: FakeLoader(gate=gate)}}, batching=False)
    async with served(serve, reg, timeout=0.05) as client:
        answer = await client.post("/v2/models/m/infer", json=request_of([1]))
        assert (answer.status_code, list(answer.json())) == (504, ["error"])
    async with served(serve, reg, timeout=None) as client:
        answer = await client.post("/v2/models/m/infer", json=request_of([1], parameters={"timeout": 50_000}))
        assert answer.status_code == 504
    gate.open()


async def test_bodies_in_flight_are_bounded_and_given_back(serve: Serve) -> None:
    reg = registry(max_inflight_bytes=1 << 20)
    async with served(serve, reg) as client:
        answer = await client.post("/v2/models/m/infer", json=request_of(np.arange(100_000)))
        assert (answer.status_code, "max_inflight_bytes" in answer.json()["error"]) == (429, True)
        assert (await client.post("/v2/models/m/infer", json=request_of([1]))).status_code == 200
        assert reg.inflight.reserved == 0


async def test_below_a_mount_beside_the_other_api(serve: Serve) -> None:
    reg, metrics = registry(), Metrics()
    host = Starlette(routes=[Mount("/ml", create_app(reg, metrics=metrics))], lifespan=reg.lifespan)
    async with serve(host, lifespan="on") as server:
        await until_all_serve(reg)
        answer = await server.client.post("/ml/v2/models/m/versions/1/infer", json=request_of([1]))
        assert answer.json()["outputs"][0]["data"] == [11]
        assert (await server.client.get("/ml/v2/models/a/b%20c/ready")).status_code == 200
        page = (await server.client.get("/ml/monitoring/prometheus/metrics")).text
        assert ':tensorflow:serving:request_count{model_name="m",status="OK"} 1' in page
        assert 'API="infer",entrypoint="REST"' in page


async def test_cors_headers_are_on_every_answer_where_asked_for(serve: Serve) -> None:
    async with served(serve, registry(), cors=True) as client:
        for answer in (await client.get("/v2"), await client.get("/v2/nothing")):
            assert answer.headers["access-control-allow-origin"] == "*"
        assert (await client.options("/v2/models/m/infer", headers={"origin": "https://a.b"})).status_code == 200
