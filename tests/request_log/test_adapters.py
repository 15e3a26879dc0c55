"""Real REST and gRPC servers over real SavedModels: what was asked and answered is in the log, and loads as a warm-up
file."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import httpx
import numpy as np
import pytest
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
    session_service_pb2,
)

from embedserve import ModelRegistry
from embedserve.config import Access, LoggingOptions, ModelConfig
from embedserve.errors import Code, InvalidInputError
from embedserve.grpc import serve as serve_grpc
from embedserve.metrics import Metrics
from embedserve.observer import Observer
from embedserve.request_log.__main__ import main
from embedserve.rest import create_app
from embedserve.testing import FakeLoader, FakeRegistry
from tests.grpc.conftest import predict_request
from tests.request_log.conftest import Read
from tests.rest.conftest import _serve
from tests.support import saved_models

pytestmark = pytest.mark.slow

CLASSIFY, REGRESS = "classify_x_to_y", "regress_x_to_y"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_models.tf1_examples(tmp_path_factory.mktemp("half") / "1")


@pytest.fixture
def base_path(half: Path, tmp_path: Path) -> Path:
    shutil.copytree(half, tmp_path / "m" / "1")
    return tmp_path / "m"


class Clients(NamedTuple):
    """Both ends of one registry."""

    registry: ModelRegistry
    rest: httpx.AsyncClient
    stub: Any
    channel: Any

    async def post(self, action: str, body: Any) -> Any:
        return (await self.rest.post(f"/v1/models/m:{action}", json=body)).json()


SESSION_RUN = Access(session_run="local")


@asynccontextmanager
async def serving(registry: ModelRegistry) -> AsyncIterator[Clients]:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(registry)
        server = await stack.enter_async_context(serve_grpc(registry, host="127.0.0.1", port=0, access=SESSION_RUN))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
        rest = await stack.enter_async_context(_serve(create_app(registry)))
        yield Clients(registry, rest.client, prediction_service_pb2_grpc.PredictionServiceStub(channel), channel)


def logged(base_path: Path, prefix: Path, *observers: Observer, **options: Any) -> ModelRegistry:
    config = ModelConfig(name="m", base_path=base_path, logging_config=LoggingOptions(filename_prefix=prefix))
    return ModelRegistry(models=[config], observers=observers, settle=0.0, **options)


def with_spec(request: Any, signature_name: str) -> Any:
    request.model_spec.name, request.model_spec.signature_name = "m", signature_name
    return request


def with_x(request: Any, *values: float) -> Any:
    for value in values:
        request.input.example_list.examples.add().features.feature["x"].float_list.value.append(value)
    return request


def kinds(logs: list[Any]) -> list[str]:
    return [log.WhichOneof("log_type") for log in logs]


def xs(given: Any) -> list[float]:
    return [example.features.feature["x"].float_list.value[0] for example in given.examples]


async def test_grpc_requests_are_logged_as_they_came(base_path: Path, prefix: Path, read: Read) -> None:
    predict = predict_request(x=[[2.0], [4.0]])
    predict.model_spec.version.value = 1
    classify = with_x(with_spec(classification_pb2.ClassificationRequest(), CLASSIFY), 2.0)
    regress = with_x(with_spec(regression_pb2.RegressionRequest(), REGRESS), 2.0, 6.0)
    both = with_x(inference_pb2.MultiInferenceRequest(), 2.0)
    with_spec(both.tasks.add(method_name="tensorflow/serving/classify"), CLASSIFY)
    with_spec(both.tasks.add(method_name="tensorflow/serving/regress"), REGRESS)
    async with serving(logged(base_path, prefix)) as clients:
        answers = [
            await clients.stub.Predict(predict),
            await clients.stub.Classify(classify),
            await clients.stub.Regress(regress),
            await clients.stub.MultiInference(both),
        ]
    logs = await asyncio.to_thread(read)
    assert kinds(logs) == ["predict_log", "classify_log", "regress_log", "multi_inference_log"]
    parts = [logs[0].predict_log, logs[1].classify_log, logs[2].regress_log, logs[3].multi_inference_log]
    assert [part.request for part in parts] == [predict, classify, regress, both]
    assert [part.response for part in parts] == answers
    specs = [log.log_metadata.model_spec for log in logs]
    assert [(spec.name, spec.version.value) for spec in specs] == [("m", 1)] * 4
    assert [spec.signature_name for spec in specs] == ["serving_default", CLASSIFY, REGRESS, ""]
    assert all(list(log.log_metadata.saved_model_tags) == ["serve"] for log in logs)


async def test_rest_requests_are_logged_as_the_messages_that_say_the_same(
    base_path: Path, prefix: Path, read: Read
) -> None:
    async with serving(logged(base_path, prefix)) as clients:
        assert await clients.post("predict", {"instances": [[2.0], [4.0]]}) == {"predictions": [[3.0], [4.0]]}
        classify = {"signature_name": CLASSIFY, "examples": [{"x": 2.0}]}
        assert await clients.post("classify", classify) == {"results": [[["", 3.0]]]}
        regress = {"signature_name": REGRESS, "examples": [{"x": 2.0}, {}], "context": {"x": 4.0}}
        assert await clients.post("regress", regress) == {"results": [3.0, 4.0]}
        large = [[float(number)] for number in range(20_000)]
        assert len((await clients.post("predict", {"inputs": large}))["outputs"]) == 20_000
    predict, classified, regressed, largest = await asyncio.to_thread(read)
    assert kinds([predict, classified, regressed, largest]) == [
        "predict_log",
        "classify_log",
        "regress_log",
        "predict_log",
    ]
    assert np.frombuffer(predict.predict_log.request.inputs["x"].tensor_content, np.float32).tolist() == [2, 4]
    assert np.frombuffer(predict.predict_log.response.outputs["y"].tensor_content, np.float32).tolist() == [3, 4]
    assert classified.classify_log.request.model_spec.signature_name == CLASSIFY
    assert xs(classified.classify_log.request.input.example_list) == [2.0]
    (classes,) = classified.classify_log.response.result.classifications
    assert [(each.label, each.score) for each in classes.classes] == [("", 3.0)]
    given = regressed.regress_log.request.input.example_list_with_context
    assert given.context.features.feature["x"].float_list.value[0] == 4.0
    assert len(given.examples) == 2
    assert [each.value for each in regressed.regress_log.response.result.regressions] == [3.0, 4.0]
    assert largest.predict_log.request.inputs["x"].tensor_shape.dim[0].size == 20_000


async def test_session_runs_are_logged_too(base_path: Path, prefix: Path, read: Read) -> None:
    request = session_service_pb2.SessionRunRequest(fetch=["y:0"])
    request.model_spec.name = "m"
    request.feed.add(name="x:0").tensor.CopyFrom(predict_request(x=[[2.0]]).inputs["x"])
    async with serving(logged(base_path, prefix)) as clients:
        call = clients.channel.unary_unary("/tensorflow.serving.SessionService/SessionRun")
        await call(request.SerializeToString())
    (log,) = await asyncio.to_thread(read)
    assert log.session_run_log.request == request
    assert log.session_run_log.response.tensor[0].name == "y:0"


async def test_requests_in_process_are_logged_and_their_arrays_stay_the_callers(
    base_path: Path, prefix: Path, read: Read
) -> None:
    async with logged(base_path, prefix) as registry:
        inputs = np.array([[2.0], [4.0]], np.float32)
        outputs = await registry.predict("m", inputs)
        inputs[:] = outputs["y"][:] = 0
    (log,) = await asyncio.to_thread(read)
    assert np.frombuffer(log.predict_log.request.inputs["x"].tensor_content, np.float32).tolist() == [2, 4]
    assert np.frombuffer(log.predict_log.response.outputs["y"].tensor_content, np.float32).tolist() == [3, 4]


async def test_only_successful_requests_are_logged(base_path: Path, prefix: Path, read: Read) -> None:
    async with serving(logged(base_path, prefix)) as clients:
        with pytest.raises(grpc.aio.AioRpcError):
            await clients.stub.Predict(predict_request(wrong=[[2.0]]))
        with pytest.raises(grpc.aio.AioRpcError):
            await clients.stub.Predict(predict_request("absent", x=[[2.0]]))
        assert "error" in await clients.post("predict", {"instances": [["text"]]})
        with pytest.raises(InvalidInputError):
            await clients.registry.predict("m", {"wrong": 1})
        await clients.registry.predict("m", [[1.0]])
    assert len(await asyncio.to_thread(read)) == 1


async def test_each_sampled_request_is_counted(base_path: Path, prefix: Path) -> None:
    metrics = Metrics()
    registry = logged(base_path, prefix, metrics, request_log_max_file_bytes=1000)
    async with registry:
        for _ in range(3):
            await registry.predict("m", [[1.0]])
        await registry.predict("m", np.ones((1000, 1), np.float32))
    page = metrics.exposition().decode()
    assert ':tensorflow:serving:request_log_count{model_name="m",status_code="OK"} 3\n' in page
    assert ':tensorflow:serving:request_log_count{model_name="m",status_code="RESOURCE_EXHAUSTED"} 1\n' in page


async def test_logging_follows_the_configuration_without_a_restart(prefix: Path, read: Read) -> None:
    def config(log: LoggingOptions | None) -> ModelConfig:
        return ModelConfig(name="m", base_path="/fake/m", logging_config=log)

    options = LoggingOptions(filename_prefix=prefix)
    loader = FakeLoader()
    registry = FakeRegistry({"m": {1: loader}}, models=[config(None)])
    async with registry:
        for number, log in enumerate((None, options, options, None)):
            await registry.reconfigure([config(log)])
            await registry.predict("m", [float(number)])
        assert loader.loads == 1, "a change of logging loads nothing"
    numbers = [
        np.frombuffer(log.predict_log.request.inputs["x"].tensor_content, np.float32)[0]
        for log in await asyncio.to_thread(read)
    ]
    assert numbers == [1, 2]
    assert len(await asyncio.to_thread(os.listdir, prefix.parent)) == 1


async def test_a_registry_that_is_entered_again_logs_again(base_path: Path, prefix: Path, read: Read) -> None:
    registry = logged(base_path, prefix)
    for _ in range(2):
        async with registry:
            await registry.predict("m", [[1.0]])
    assert len(await asyncio.to_thread(read)) == 2


def test_a_private_loop_logs_as_well(base_path: Path, prefix: Path, read: Read) -> None:
    with logged(base_path, prefix) as registry:
        registry.predict_sync("m", [[1.0]])
    assert len(read()) == 1


class Replayed(Observer):
    """What the warm-up of a version has read."""

    records = 0

    def warmup_finished(self, id: Any, path: str, seconds: float, records: int, error: Exception | None) -> None:
        assert error is None
        self.records += records


async def test_a_log_becomes_the_warm_up_file_of_the_next_version(
    half: Path, base_path: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = with_x(inference_pb2.MultiInferenceRequest(), 2.0)
    with_spec(both.tasks.add(method_name="tensorflow/serving/regress"), REGRESS)
    async with serving(logged(base_path, prefix)) as clients:
        for _ in range(2):
            await clients.post("predict", {"instances": [[2.0]]})
        await clients.stub.Predict(predict_request(x=[[3.0]]))
        await clients.post("classify", {"signature_name": CLASSIFY, "examples": [{"x": 2.0}]})
        await clients.post("regress", {"signature_name": REGRESS, "examples": [{}], "context": {"x": 4.0}})
        await clients.stub.MultiInference(both)
    await asyncio.to_thread(shutil.copytree, half, base_path / "2")
    output = base_path / "2" / "assets.extra" / "tf_serving_warmup_requests"
    logs = [str(prefix.parent / name) for name in await asyncio.to_thread(os.listdir, prefix.parent)]
    assert await asyncio.to_thread(main, ["to-warmup", *logs, f"--output={output}"]) == 0
    assert capsys.readouterr().out == f"5 records in {output}; left out: 1 repeated\n"
    replayed = Replayed()
    async with ModelRegistry(models=[ModelConfig(name="m", base_path=base_path)], observers=[replayed]) as registry:
        assert [status.code for status in registry.status("m")["m"]] == [Code.OK]
    assert replayed.records == 5
