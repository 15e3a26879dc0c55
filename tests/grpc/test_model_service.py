"""ModelService over fake versions: status of versions, and a reload of the configuration."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2

from embedserve.config import AllVersions, ModelConfig
from embedserve.errors import Code, ServingError
from embedserve.testing import FakeLoader, FakeRegistry
from embedserve.tfs import config as tfs_config
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


async def test_a_torn_version_says_why_it_is_not_served(start: Start) -> None:
    registry = FakeRegistry({"m": {1: FakeLoader()}})
    client = await start(registry)
    assert registry._runtime is not None
    registry._runtime.monitor.set_waiting("torn", {1: "saved_model.pb is missing"})
    (status,) = (await client.model.GetModelStatus(status_request("torn"))).model_version_status
    assert (State.Name(status.state), status.status.error_message) == ("START", "saved_model.pb is missing")
    code, message = await failure(client.prediction.Predict(predict_request("torn", x=[1])))
    assert code is C.NOT_FOUND
    assert message.endswith("; version 1 is not taken yet: saved_model.pb is missing")


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


BAD_NAMES = ["a\nb", "a\x00b", "a\x1b[2Jb", "a\u2028b", "..", "a/../b", "/a", "a//b", "x" * 256, "a\tb"]


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_a_reload_takes_no_name_that_would_harm_logs_labels_or_paths(
    start: Start, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = await start(reg := FakeRegistry({"a": {1: FakeLoader()}}))
    code, message = await failure(client.model.HandleReloadConfigRequest(reload_request("a", name)))
    assert code is C.INVALID_ARGUMENT
    assert message.startswith("Illegal model name ")
    assert "\n" not in message
    assert reg.models() == ("a",)
    assert all(len(record.getMessage().splitlines()) == 1 for record in caplog.records)


async def test_a_reload_takes_names_with_slashes_and_letters_of_all_languages(start: Start) -> None:
    client = await start(FakeRegistry({"team/größe": {1: FakeLoader()}}))
    await client.model.HandleReloadConfigRequest(reload_request("team/größe"))


@pytest.mark.parametrize("kind", ["/", "/proc", "/proc/self", "/sys/kernel", "/dev", "file", "fifo", "link", "many"])
async def test_a_reload_refuses_what_is_obviously_no_base_path(
    start: Start, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(kind) if kind.startswith("/") else tmp_path / kind
    match kind:
        case "file":
            path.write_text("")
        case "fifo":
            os.mkfifo(path)
        case "link":
            path.symlink_to("/proc")
        case "many":
            monkeypatch.setattr(tfs_config, "MAX_ENTRIES", 3)
            for number in range(4):
                (path / str(number)).mkdir(parents=True)
    client = await start(reg := FakeRegistry({"a": {1: FakeLoader()}}))
    request = reload_request("a")
    request.config.model_config_list.config[0].base_path = str(path)
    code, message = await failure(client.model.HandleReloadConfigRequest(request))
    assert code is C.INVALID_ARGUMENT
    assert message.startswith(f"model a has base_path {path}, which ")
    assert reg.models() == ("a",)


async def test_a_reload_has_request_logs_only_below_the_root_that_was_named_at_start(
    start: Start, tmp_path: Path
) -> None:
    root = tmp_path / "logs"
    root.mkdir()
    (root / "out").symlink_to(tmp_path)

    async def reloaded(client: Any, prefix: object) -> None:
        request = reload_request("a")
        logging = request.config.model_config_list.config[0].logging_config
        logging.log_collector_config.type = "file"
        logging.log_collector_config.filename_prefix = str(prefix)
        await client.model.HandleReloadConfigRequest(request)

    without = await start(FakeRegistry({"a": {1: FakeLoader()}}))
    code, message = await failure(reloaded(without, root / "a"))
    assert code is C.INVALID_ARGUMENT
    assert "--request_log_root" in message
    client = await start(FakeRegistry({"a": {1: FakeLoader()}}, request_log_root=root))
    for prefix in (tmp_path / "a", root / ".." / "a", root / "out" / "a", root, f"{root}/a\nb", f"{root}x/a"):
        assert (await failure(reloaded(client, prefix)))[0] is C.INVALID_ARGUMENT, prefix
    await reloaded(client, root / "deep" / "a")
