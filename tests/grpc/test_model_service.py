"""ModelService over fake versions: status of versions, and a reload of the configuration."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2

from embedserve.config import AllVersions, ModelConfig
from embedserve.errors import Code, ServingError
from embedserve.testing import FakeLoader, FakeRegistry
from tests.grpc.conftest import Start, failure, predict_request

C = grpc.StatusCode
State = get_model_status_pb2.ModelVersionStatus.State


def status_request(name: str | None = "m", version: int | None = None, label: str | None = None) -> Any:
    request = get_model_status_pb2.GetModelStatusRequest()
    if name is not None:
        request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    return request


async def test_every_known_version_is_listed_newest_first(start: Start) -> None:
    model = ModelConfig(name="m", base_path="/fake/m", version_policy=AllVersions())
    registry = FakeRegistry(
        {"m": {1: FakeLoader(failures=-1), 2: FakeLoader()}}, models=[model], retry={"max_retries": 0}
    )
    client = await start(registry)
    while True:
        response = await client.model.GetModelStatus(status_request())
        states = {status.version: State.Name(status.state) for status in response.model_version_status}
        if states.get(1) == "END":
            break
        await asyncio.sleep(0.001)
    assert list(states.items()) == [(2, "AVAILABLE"), (1, "END")]
    available, failed = response.model_version_status
    assert (available.status.error_code, available.status.error_message) == (0, "")
    assert failed.status.error_code == Code.DATA_LOSS
    assert "told to fail" in failed.status.error_message
    one = await client.model.GetModelStatus(status_request(version=1))
    assert [status.version for status in one.model_version_status] == [1]
    # A label is ignored, as TensorFlow Serving does.
    labelled = await client.model.GetModelStatus(status_request(label="no such label"))
    assert len(labelled.model_version_status) == 2


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (status_request(None), C.INVALID_ARGUMENT, "Missing ModelSpec"),
        (status_request(""), C.NOT_FOUND, "Could not find any versions of model "),
        (status_request("none"), C.NOT_FOUND, "Could not find any versions of model none"),
        (status_request("none", label="l"), C.NOT_FOUND, "Could not find any versions of model none"),
        (status_request("m", 7), C.NOT_FOUND, "Could not find version 7 of model m"),
        (status_request("m", 0), C.NOT_FOUND, "Could not find version 0 of model m"),
    ],
)
async def test_status_errors(start: Start, request_: Any, code: grpc.StatusCode, message: str) -> None:
    client = await start(FakeRegistry({"m": {1: FakeLoader()}}))
    given, details = await failure(client.model.GetModelStatus(request_))
    assert (given, details.strip()) == (code, message.strip())


def reload_request(*names: str, metrics: tuple[str, ...] = ()) -> Any:
    request = model_management_pb2.ReloadConfigRequest(metric_names=metrics)
    request.config.model_config_list.SetInParent()
    for name in names:
        request.config.model_config_list.config.add(name=name, base_path=f"/fake/{name}", model_platform="tensorflow")
    return request


async def test_a_reload_adds_and_removes_models(start: Start) -> None:
    found = {"a": {1: FakeLoader()}, "b": {1: FakeLoader()}}
    registry = FakeRegistry(found, models=[ModelConfig(name="a", base_path="/fake/a")])
    client = await start(registry)
    response = await client.model.HandleReloadConfigRequest(reload_request("b"))
    assert (response.status.error_code, response.status.error_message) == (0, "")
    assert list((await client.prediction.Predict(predict_request("b", x=[1]))).outputs["y"].float_val) == [11]
    assert (await failure(client.prediction.Predict(predict_request("a", x=[1]))))[0] is C.NOT_FOUND


async def test_only_a_list_of_models_can_be_reloaded(start: Start) -> None:
    client = await start(FakeRegistry({"a": {1: FakeLoader()}}))
    message = (
        "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently supported"
    )
    empty = model_management_pb2.ReloadConfigRequest()
    custom = model_management_pb2.ReloadConfigRequest()
    custom.config.custom_model_config.SetInParent()
    for request in (empty, custom):
        assert await failure(client.model.HandleReloadConfigRequest(request)) == (C.INVALID_ARGUMENT, message)


async def test_a_reload_that_fails_is_the_calls_error(start: Start) -> None:
    client = await start(FakeRegistry({"a": {1: FakeLoader()}}))
    code, message = await failure(client.model.HandleReloadConfigRequest(reload_request("a", "a")))
    assert code is C.INVALID_ARGUMENT
    assert message.startswith("Illegal to list model a multiple times in config list")


async def test_an_own_reload_and_metrics_are_used(start: Start) -> None:
    seen: list[Any] = []
    values = {"/tensorflow/serving/request_count": 3}

    async def reload(config: Any) -> None:
        seen.append(config)
        values["/tensorflow/serving/request_count"] = 5

    async def metric(name: str) -> int:
        return values.get(name, 0)

    client = await start(FakeRegistry({"a": {1: FakeLoader()}}), reload=reload, metric=metric)
    names = ("/tensorflow/serving/request_count", "/unknown", "/unknown")
    response = await client.model.HandleReloadConfigRequest(reload_request("a", metrics=names))
    assert [model.name for model in seen[0].model_config_list.config] == ["a"]
    assert {metric.name: metric.int64_value_increase for metric in response.metric} == {
        "/tensorflow/serving/request_count": 2,
        "/unknown": 0,
    }


async def test_a_deadline_ends_the_call_but_not_the_reload(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    go, done = asyncio.Event(), asyncio.Event()

    async def reload(config: Any) -> None:
        await go.wait()
        done.set()
        raise ServingError("1 model(s) did not become available", code=Code.UNKNOWN)

    client = await start(FakeRegistry({"a": {1: FakeLoader()}}), reload=reload)
    code, _ = await failure(client.model.HandleReloadConfigRequest(reload_request("a"), timeout=0.2))
    assert code is C.DEADLINE_EXCEEDED
    go.set()
    await done.wait()
    while "ReloadConfig failed: 1 model(s) did not become available" not in caplog.text:
        await asyncio.sleep(0.001)
