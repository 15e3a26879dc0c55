"""One replica without a cluster: its registry's life, versions by user_config, health, answers over both protocols."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2, predict_pb2, session_service_pb2

from embedserve import ConfigError, ModelConfig, ServableNotFoundError, ServingError, StartError
from embedserve.errors import Code, NotReadyError
from embedserve.ray.replica import Replica, RestRequest
from embedserve.ray.settings import ReplicaSettings
from tests.integration.conftest import deploy
from tests.ray.clients import predict_request

PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
QUICK: dict[str, Any] = {"settle": 0.05, "poll_interval": 0.2, "start_timeout": 20.0}


def specific(*versions: int, labels: dict[str, int] | None = None, name: str = "line") -> dict[str, Any]:
    chosen: dict[str, Any] = {"version_policy": {"specific": {"versions": list(versions)}}}
    return {"models": {name: chosen | ({} if labels is None else {"version_labels": labels})}}


@pytest.fixture
def store(tmp_path: Path, line: Callable[[int], Path]) -> Path:
    """A models directory with versions 1 and 2 of `line`."""
    for version in (1, 2):
        deploy(line(version), tmp_path / "store" / "line" / str(version))
    return tmp_path / "store"


@asynccontextmanager
async def replica(**settings: Any) -> AsyncIterator[Replica]:
    made = Replica(ReplicaSettings(**{"options": QUICK} | settings), "r1")
    try:
        yield made
    finally:
        await made.aclose()


async def value(of: Replica, **spec: Any) -> float:
    answer = await of.answer_rpc(PREDICT, predict_request("line", **spec).SerializeToString(), ())
    assert answer.code == Code.OK, answer
    assert answer.replica == "r1"
    found: float = predict_pb2.PredictResponse.FromString(answer.body).outputs["y"].float_val[0]
    return found


async def available(of: Replica, name: str = "line") -> list[int]:
    request = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": name})
    answer = await of.answer_rpc(STATUS, request.SerializeToString(), ())
    statuses = get_model_status_pb2.GetModelStatusResponse.FromString(answer.body).model_version_status
    return [status.version for status in statuses if status.state == 30]


async def test_the_first_configuration_loads_only_what_it_pins(store: Path) -> None:
    async with replica(root=store) as one:
        await one.configure(specific(1))
        assert await value(one) == 1.0
        status = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "line"}).SerializeToString()
        answer = await one.answer_rpc(STATUS, status, ())
        found = get_model_status_pb2.GetModelStatusResponse.FromString(answer.body)
        assert [status.version for status in found.model_version_status] == [1], "2 was never loaded"


@pytest.mark.parametrize("one_by_one", [False, True], ids=["directory", "models"])
async def test_a_changed_configuration_changes_the_versions(store: Path, one_by_one: bool) -> None:
    models = (ModelConfig(name="line", base_path=store / "line"),)
    async with replica(**{"models": models} if one_by_one else {"root": store}) as one:
        await one.configure({})
        assert await value(one) == 2.0
        await one.configure(specific(1))
        assert await value(one) == 1.0
        await one.configure(specific(1))  # Serve repeats itself when a replica's rank changes.
        await one.configure(specific(1, 2, labels={"stable": 1, "canary": 2}))
        assert await available(one) == [2, 1]
        assert await value(one, version_label="stable") == 1.0
        assert await value(one, version_label="canary") == 2.0
        await one.configure(specific(2))
        assert await available(one) == [2]
        await one.configure(None)
        assert await value(one) == 2.0


async def test_a_version_that_cannot_be_had_is_an_error_and_what_served_serves_on(
    store: Path, line: Callable[[int], Path]
) -> None:
    broken = deploy(line(1), store / "line" / "3")
    (broken / "saved_model.pb").write_bytes(b"\x12\x00broken")
    async with replica(root=store) as one:
        await one.configure(specific(2))
        with pytest.raises(ServableNotFoundError, match="version 9"):
            await one.configure(specific(9))
        with pytest.raises(ServingError):
            await one.configure(specific(3))
        with pytest.raises(ServingError, match="not currently available"):
            await one.configure(specific(2, labels={"canary": 9}))
        assert await value(one) == 2.0
        one.check_health()


@pytest.mark.parametrize(
    ("user_config", "message"),
    [
        ({"versions": {}}, "versions"),
        ({"models": {"line": {"base_path": "/"}}}, "base_path"),
        ({"models": {"line": {"version_policy": {"newest": {}}}}}, "version_policy"),
        ({"models": {"nope": {}}}, "names model 'nope'"),
    ],
)
async def test_a_user_config_that_means_nothing_is_refused(store: Path, user_config: Any, message: str) -> None:
    async with replica(models=(ModelConfig(name="line", base_path=store / "line"),)) as one:
        with pytest.raises(ConfigError, match=message):
            await one.configure(user_config)


async def test_a_replica_without_a_model_that_should_be_there_does_not_start(store: Path) -> None:
    models = [ModelConfig(name=name, base_path=store / name) for name in ("line", "nope")]
    async with replica(models=tuple(models), options=QUICK | {"start_timeout": 1.0}) as one:
        with pytest.raises(StartError, match="nope"):
            await one.configure({})
        with pytest.raises(NotReadyError):
            one.check_health()


async def test_health_fails_when_there_is_nothing_to_serve_and_not_before(
    store: Path, line: Callable[[int], Path]
) -> None:
    async with replica(root=store) as one:
        with pytest.raises(NotReadyError, match="has not been entered"):
            one.check_health()
        await one.configure({})
        one.check_health()
        broken = deploy(line(1), store / "other" / "1")
        (broken / "saved_model.pb").unlink()
        registry = one._registry
        assert registry is not None
        assert registry._runtime is not None
        assert await registry._runtime.monitor.wait_until(lambda: "other" in registry.readiness(), 20)
        one.check_health()
        assert (await one.answer_rest(RestRequest("GET", "/-/ready", [], b""))).status == 200
        assert (await one.answer_rest(RestRequest("GET", "/-/ready/other", [], b""))).status == 503
        shutil.rmtree(store / "line")
        assert await registry._runtime.monitor.wait_until(lambda: "line" not in registry.readiness(), 20)
        with pytest.raises(NotReadyError, match="no model is available: other"):
            one.check_health()


async def test_errors_are_answers(store: Path) -> None:
    async with replica(root=store) as one:
        await one.configure({})
        not_found = await one.answer_rpc(PREDICT, predict_request("nope").SerializeToString(), ())
        assert not_found.code == Code.NOT_FOUND
        assert not_found.message.startswith("Servable not found for request: Latest(nope)")
        assert (await one.answer_rpc(PREDICT, b"\xff\xff", ())).code == Code.INVALID_ARGUMENT
        assert (await one.answer_rpc("/tensorflow.serving.PredictionService/Nope", b"", ())).code == Code.UNIMPLEMENTED


async def test_metadata_reaches_the_call(store: Path) -> None:
    async with replica(root=store) as one:
        await one.configure({})
        body = predict_request("line").SerializeToString()
        answer = await one.answer_rpc(PREDICT, body, [("a", "b"), ("x-embedserve-priority", "nope")])
        assert (answer.code, "nope" in answer.message) == (Code.INVALID_ARGUMENT, True)


@pytest.mark.parametrize("asked_for", [False, True])
async def test_session_run_answers_where_it_was_asked_for(store: Path, asked_for: bool) -> None:
    body = session_service_pb2.SessionRunRequest(model_spec={"name": "line"}, fetch=["none:0"]).SerializeToString()
    async with replica(root=store, session_run=asked_for, options=QUICK | {"servable": "session"}) as one:
        await one.configure({})
        answer = await one.answer_rpc("/tensorflow.serving.SessionService/SessionRun", body, ())
        expected = (Code.INVALID_ARGUMENT, True) if asked_for else (Code.UNIMPLEMENTED, False)
        assert (answer.code, "no tensor" in answer.message) == expected


async def test_a_reload_is_refused_because_it_would_reach_one_replica(store: Path) -> None:
    reload = model_management_pb2.ReloadConfigRequest(config={"model_config_list": {}}).SerializeToString()
    async with replica(root=store) as one:
        await one.configure({})
        answer = await one.answer_rpc("/tensorflow.serving.ModelService/HandleReloadConfigRequest", reload, ())
        assert answer.code == Code.UNIMPLEMENTED
        assert "user_config" in answer.message
        assert await value(one) == 2.0


async def test_rest_answers_say_which_replica_gave_them(store: Path) -> None:
    async with replica(root=store) as one:
        await one.configure({})
        body = json.dumps({"instances": [[1.0]]}).encode()
        answer = await one.answer_rest(RestRequest("POST", "/v1/models/line:predict", [], body))
        assert (answer.status, json.loads(answer.body)) == (200, {"predictions": [[2.0]]})
        headers = dict(answer.headers)
        assert headers[b"embedserve-replica"] == b"r1"
        assert headers[b"content-length"] == b"%d" % len(answer.body)
        assert (await one.answer_rest(RestRequest("GET", "/v1/models/l%69ne", [], b""))).status == 200
        assert (await one.answer_rest(RestRequest("GET", "/v1/models/nope?x=1", [], b""))).status == 404


async def test_a_replica_that_left_answers_with_an_error(store: Path) -> None:
    async with replica(root=store) as one:
        await one.configure({})
        await one.aclose()
        answer = await one.answer_rpc(PREDICT, predict_request("line").SerializeToString(), ())
        assert answer.code == Code.UNAVAILABLE
        with pytest.raises(NotReadyError):
            one.check_health()
