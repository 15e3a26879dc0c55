"""Triton's Python clients against the standalone server: HTTP, gRPC and their asyncio twins."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.e2e.conftest import ServerProcess
from tests.support import saved_models
from tests.support.programs import free_port

pytestmark = pytest.mark.timeout(240)

MODULES: dict[str, Any] = {"http": triton_http, "grpc": triton_grpc}
ASYNC_MODULES: dict[str, Any] = {"http": triton_http_aio, "grpc": triton_grpc_aio}
Open = Callable[[str], Any]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    directory = tmp_path_factory.mktemp("triton")
    models = directory / "models"
    saved_models.half_plus_two(models / "half_plus_two" / "1")
    saved_models.identities(models / "identities" / "1")
    saved_models.dense(models / "dense" / "1")
    saved_models.endless(models / "endless" / "1")
    number = free_port()
    flags = (f"--port={number}", "--rest_api_port=0", "--num_batch_threads=1")
    server = ServerProcess(models, *flags, cwd=directory)
    try:
        server.wait_for_log("Entering the event loop ...", 200)
        yield number
        server.terminate()
    finally:
        server.close()


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> Any:
    """Both protocols are answered on one port."""
    return MODULES[request.param]


@pytest.fixture
def client(module: Any, port: int) -> Iterator[Any]:
    found = module.InferenceServerClient(f"127.0.0.1:{port}")
    yield found
    found.close()


def given(module: Any, array: Any, name: str = "x", datatype: str | None = None) -> Any:
    found = module.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
    found.set_data_from_numpy(array)
    return found


X = np.array([[1.0], [2.0], [5.0]], np.float32)
Y = [[2.5], [3.0], [4.5]]


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("half_plus_two")
    assert client.is_model_ready("half_plus_two", "1")
    assert not client.is_model_ready("nobody")
    options: dict[str, Any] = {"as_json": True} if isinstance(client, triton_grpc.InferenceServerClient) else {}
    assert client.get_server_metadata(**options)["name"] == "embedserve"
    metadata = client.get_model_metadata("half_plus_two", **options)
    assert [int(size) for size in metadata["inputs"][0]["shape"]] == [-1, 1]
    config = client.get_model_config("half_plus_two", **options)
    config = config.get("config", config)
    assert (config["max_batch_size"], config["platform"]) == (128, "tensorflow_savedmodel")


def test_infer(client: Any, module: Any) -> None:
    answer = client.infer("half_plus_two", [given(module, X)], request_id="7", priority=1, timeout=60_000_000)
    assert answer.as_numpy("y").tolist() == Y
    chosen = module.InferRequestedOutput("y")
    answer = client.infer("half_plus_two", [given(module, X)], model_version="1", outputs=[chosen])
    assert answer.as_numpy("y").tolist() == Y


def test_async_infer(client: Any, module: Any) -> None:
    if module is triton_http:
        answers = [client.async_infer("half_plus_two", [given(module, X)]).get_result() for _ in range(3)]
    else:
        found: queue.Queue[Any] = queue.Queue()
        for _ in range(3):
            client.async_infer("half_plus_two", [given(module, X)], lambda result, error: found.put(error or result))
        answers = [found.get(timeout=60) for _ in range(3)]
    assert [answer.as_numpy("y").tolist() for answer in answers] == [Y] * 3


def test_a_stream_has_an_answer_for_each_request(port: int) -> None:
    found: queue.Queue[Any] = queue.Queue()
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
        client.start_stream(lambda result, error: found.put(error or result))
        for number in range(3):
            client.async_stream_infer("half_plus_two", [given(triton_grpc, X)], request_id=str(number))
        client.async_stream_infer("nobody", [given(triton_grpc, X)])
        answers = [found.get(timeout=60) for _ in range(4)]
        client.stop_stream()
    assert [answer.get_response().id for answer in answers[:3]] == ["0", "1", "2"]
    assert isinstance(answers[3], InferenceServerException)


def test_json_over_http(port: int) -> None:
    with triton_http.InferenceServerClient(f"127.0.0.1:{port}") as client:
        tensor = triton_http.InferInput("x", [3, 1], "FP32")
        tensor.set_data_from_numpy(X, binary_data=False)
        chosen = triton_http.InferRequestedOutput("y", binary_data=False)
        answer = client.infer("half_plus_two", [tensor], outputs=[chosen])
        assert answer.get_output("y")["data"] == [2.5, 3.0, 4.5]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression(client: Any, module: Any, coding: str) -> None:
    large = np.linspace(0, 1, 5000, dtype=np.float32)[:, None]
    options: dict[str, Any] = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
    if module is triton_grpc:  # The own listener reads gzip alone.
        options = {"compression_algorithm": "gzip"}
    answer = client.infer("half_plus_two", [given(module, large)], **options)
    assert np.array_equal(answer.as_numpy("y"), large / 2 + 2)


INTEGERS = tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
DTYPES = ("bool", *INTEGERS, "float16", "float32", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_by_a_signature_of_its_own(client: Any, module: Any, dtype: str) -> None:
    array = np.array([[0, 1], [1, 0]]).astype(dtype)
    answer = client.infer("identities", [given(module, array)], parameters={"signature_name": dtype})
    found = answer.as_numpy("y")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


def test_bytes_and_bf16(client: Any, module: Any) -> None:
    text = np.array([[b"a\xff", b""], ["ü".encode(), b"\0"]], dtype=object)
    answer = client.infer("identities", [given(module, text)], parameters={"signature_name": "string"})
    assert answer.as_numpy("y").tolist() == text.tolist()
    halves = np.array([1.5, -2.0], np.float32)  # The client has no bfloat16 of its own.
    tensor = given(module, halves, datatype="BF16")
    answer = client.infer("identities", [tensor], parameters={"signature_name": "bfloat16"})
    assert answer.as_numpy("y").tolist() == [1.5, -2.0]


def test_classification(client: Any, module: Any) -> None:
    chosen = module.InferRequestedOutput("y", class_count=1)
    answer = client.infer("half_plus_two", [given(module, X)], outputs=[chosen])
    assert answer.as_numpy("y").tolist() == [[b"2.500000:0"], [b"3.000000:0"], [b"4.500000:0"]]


def test_statistics(client: Any, module: Any) -> None:
    def success() -> int:
        found = client.get_inference_statistics("half_plus_two", **options)["model_stats"][0]
        return int(found["inference_stats"]["success"].get("count", 0))

    options: dict[str, Any] = {"as_json": True} if module is triton_grpc else {}
    client.infer("half_plus_two", [given(module, X)])
    before = success()
    client.infer("half_plus_two", [given(module, X)])
    assert success() == before + 1


def test_errors(client: Any, module: Any) -> None:
    for name, array, words in (
        ("nobody", X, "Servable not found for request: Latest(nobody)"),
        ("half_plus_two", X.astype(np.int32), "Expects arg[0] to be float but int32 is provided"),
        ("dense", np.zeros((1, 2, 3), np.float32), "has shape [1,2,3], expected [?,4]"),
    ):
        tensor = given(module, array, "features" if name == "dense" else "x")
        with pytest.raises(InferenceServerException) as refused:
            client.infer(name, [tensor])
        assert words in refused.value.message()
    steps = given(module, np.array([10**10]), "steps")
    with pytest.raises(InferenceServerException) as late:
        client.infer("endless", [steps], timeout=200_000)
    assert late.value.status() in ("504", "StatusCode.DEADLINE_EXCEEDED")


def test_the_repository(client: Any, module: Any) -> None:
    def states() -> dict[str, str]:
        index = client.get_model_repository_index()
        return (
            {each["name"]: each["state"] for each in index}
            if isinstance(index, list)
            else {each.name: each.state for each in index.models}
        )

    assert states()["dense"] == "READY"
    client.unload_model("dense")
    assert states()["dense"] == "UNAVAILABLE"
    assert not client.is_model_ready("dense")
    client.load_model("dense")
    assert states()["dense"] == "READY"


def test_what_is_left_out_is_unimplemented(client: Any) -> None:
    for call in (client.get_trace_settings, client.get_log_settings, client.get_system_shared_memory_status):
        with pytest.raises(InferenceServerException, match="not supported"):
            call()


@pytest.mark.parametrize("protocol", ASYNC_MODULES)
async def test_the_asyncio_clients(protocol: str, port: int) -> None:
    module = ASYNC_MODULES[protocol]
    async with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
        assert await client.is_server_ready()
        asked: list[Awaitable[Any]] = [client.infer("half_plus_two", [given(module, X)]) for _ in range(8)]
        assert [answer.as_numpy("y").tolist() for answer in await asyncio.gather(*asked)] == [Y] * 8
        with pytest.raises(InferenceServerException):
            await client.infer("nobody", [given(module, X)])
        await client.get_inference_statistics("half_plus_two")
