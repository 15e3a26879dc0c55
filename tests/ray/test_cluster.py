"""A real cluster: several replicas behind Serve's proxies, scaled, changed and killed under load."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray
import tensorflow as tf
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.schema import ServeDeploySchema
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2, predict_pb2

from tests.integration.conftest import deploy
from tests.ray.clients import Clients, Load, predict_request
from tests.support import saved_models
from tests.support.programs import free_port, wait_until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

GENERATED = [
    "tensorflow_serving.apis.prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server",
    "tensorflow_serving.apis.model_service_pb2_grpc.add_ModelServiceServicer_to_server",
]
# Seconds between two questions to Serve's controller, each of which takes a processor for some milliseconds.
ASKING = 0.5
QUICK: dict[str, Any] = {"settle": 0.05, "poll_interval": 0.2}


def scaled(least: int, most: int, name: str = "embedserve", **options: Any) -> dict[str, Any]:
    """A deployment that takes on replicas at once."""
    scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": 0.1, "upscale_delay_s": 0}
    return {"name": name, "autoscaling_config": scaling | {"look_back_period_s": 10.1}} | options  # Serve's least.


class Application:
    """The one application of the cluster, deployed from what a Serve config file would say."""

    def __init__(self, clients: Clients, models: Path) -> None:
        self.clients = clients
        self.models = models

    def deploy(self, *deployments: Mapping[str, Any], **args: Any) -> None:
        """Deploy, and return when it runs as asked."""
        config = {
            "name": "models",
            "import_path": "embedserve.ray:app",
            "args": {"models": str(self.models)} | QUICK | args,
            "deployments": list(deployments),
        }
        client = serve.context._get_global_client()
        client.deploy_apps(ServeDeploySchema.model_validate({"applications": [config]}))
        wait_until(self._decided, within=200, every=ASKING)
        assert self.status().status == "RUNNING", self.status()

    def _decided(self) -> bool:
        return self.status().status in ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY")

    def status(self) -> Any:
        return serve.status().applications["models"]

    def running(self, deployment: str = "embedserve") -> int:
        return int(self.status().deployments[deployment].replica_states.get("RUNNING", 0))


@pytest.fixture(scope="module")
def app(
    cluster: Cluster, line: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Application]:
    models = tmp_path_factory.mktemp("models")
    deploy(line(1), models / "line" / "1")
    saved_models.half_plus_two(models / "half_plus_two" / "1")
    saved_models.endless(models / "endless" / "1")
    rest, grpc_port = free_port(), free_port()
    with contextlib.suppress(TimeoutError):  # After a minute, which is not enough where others work too.
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": rest},
            grpc_options={"port": grpc_port, "grpc_servicer_functions": GENERATED},
        )
    app = Application(Clients(rest, grpc_port), models)
    yield app
    app.clients.channel.close()
    serve.shutdown()


def replica_pid(unique: str) -> int:
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    (name,) = (name for name in names if name.endswith(f"#{unique}"))
    actor: Any = ray.get_actor(name, namespace="serve")
    pid: int = ray.get(actor.is_allocated.remote())[0]
    return pid


def test_one_replica_becomes_three_under_load_and_no_request_fails(app: Application) -> None:
    app.deploy(scaled(1, 3))
    with Load(app.clients) as load:
        wait_until(lambda: app.running() == 3, within=120, every=ASKING)
        wait_until(lambda: all(len(replicas) == 3 for replicas in load.answered_by()))
    assert load.failed == []
    assert load.answered_by()[0] == load.answered_by()[1], "both protocols reach each of them"


def test_errors_have_the_codes_and_words_of_one_server(app: Application) -> None:
    status, headers, body = app.clients.rest("/v1/models/nope:predict", {"instances": [1.0]})
    assert status == 404
    assert body["error"].startswith("Servable not found for request: Latest(nope)")
    assert headers["embedserve-replica"]
    with pytest.raises(grpc.RpcError) as raised:
        app.clients.prediction.Predict(predict_request("nope"))
    call: Any = raised.value
    assert (call.code(), call.details()) == (grpc.StatusCode.NOT_FOUND, body["error"])
    assert dict(call.trailing_metadata())["embedserve-replica"]
    for code, request in {
        grpc.StatusCode.INVALID_ARGUMENT: predict_pb2.PredictRequest(model_spec={"name": "line"}),
        grpc.StatusCode.FAILED_PRECONDITION: predict_request("line", signature_name="nope"),
    }.items():
        with pytest.raises(grpc.RpcError) as raised:
            app.clients.prediction.Predict(request)
        assert raised.value.code() is code


def test_a_reload_is_refused_because_it_would_reach_one_replica(app: Application) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        app.clients.model.HandleReloadConfigRequest(
            model_management_pb2.ReloadConfigRequest(config={"model_config_list": {}})
        )
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "user_config" in (raised.value.details() or "")


def test_a_version_dropped_into_the_store_goes_live_on_all_replicas(
    app: Application, line: Callable[[int], Path]
) -> None:
    with Load(app.clients) as load:
        deploy(line(2), app.models / "line" / "2")
        wait_until(lambda: newest(load) == {2.0})
    assert load.failed == []
    assert {one.value for said in load.said for one in said} == {1.0, 2.0}
    assert {one.replica for said in load.said for one in said if one.value == 2.0} == app.clients.replicas(3)


def test_a_pinned_version_changes_on_all_replicas_by_user_config_and_none_restarts(
    app: Application, line: Callable[[int], Path]
) -> None:
    before = app.clients.replicas(3)

    def pin(version: int) -> None:
        policy = {"line": {"version_policy": {"specific": {"versions": [version]}}}}
        app.deploy(scaled(3, 3, user_config={"models": policy}))

    with Load(app.clients) as load:
        pin(1)
        wait_until(lambda: newest(load) == {1.0})
        deploy(line(3), app.models / "line" / "3")
        load.go_on()
        assert newest(load) == {1.0}, "the store says 3, the pin says 1"
        pin(3)
        wait_until(lambda: newest(load) == {3.0})
    assert load.failed == []
    assert {one.value for said in load.said for one in said} <= {2.0, 1.0, 3.0}
    assert app.clients.replicas(3) == before
    statuses = [app.clients.model.GetModelStatus(STATUS).model_version_status[0].version for _ in range(20)]
    assert set(statuses) == {3}


def test_a_replica_killed_under_load_fails_what_was_in_its_hands_and_is_replaced(app: Application) -> None:
    before = app.clients.replicas(3)
    victim = sorted(before)[0]
    with Load(app.clients) as load:
        load.go_on()
        os.kill(replica_pid(victim), signal.SIGKILL)
        load.go_on()
        wait_until(lambda: all(len(seen - before) >= 1 for seen in load.answered_by()), within=120)
        load.go_on()
    assert len(load.failed) <= len(load.said), load.failed
    assert app.clients.replicas(3) > before - {victim}


def test_fewer_replicas_drain_and_no_request_fails(app: Application) -> None:
    with Load(app.clients) as load:
        app.deploy(scaled(1, 1))
        states = {"RUNNING": 1}
        wait_until(lambda: app.status().deployments["embedserve"].replica_states == states, within=120, every=ASKING)
        load.go_on()
    assert load.failed == []
    app.clients.replicas(1)


def test_a_client_that_gives_up_gives_the_replica_its_thread_back(app: Application) -> None:
    """The one replica has one CPU, and so one thread that runs models."""
    request = predict_pb2.PredictRequest(model_spec={"name": "endless"})
    request.inputs["steps"].CopyFrom(tf.make_tensor_proto([2**62], tf.int64))
    with pytest.raises(grpc.RpcError) as raised:
        app.clients.prediction.Predict(request, timeout=1)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(TimeoutError):
        app.clients.rest("/v1/models/endless:predict", {"instances": [2**62]}, timeout=1)
    assert app.clients.over_grpc("half_plus_two").value == 2.5


def test_each_model_scales_by_itself_behind_one_ingress(app: Application) -> None:
    names = ("line", "half_plus_two")
    models = [{"name": name, "base_path": str(app.models / name)} for name in names]
    app.deploy(*(scaled(1, 1, name) for name in names), models=models, per_model=True)
    of_line, of_half = app.clients.replicas(1, "line"), app.clients.replicas(1, "half_plus_two")
    assert not of_line & of_half
    assert app.clients.over_rest("line").value == 3.0
    assert app.clients.over_grpc("half_plus_two").value == 2.5

    status, _, body = app.clients.rest("/-/ready")
    assert (status, body) == (200, {"status": "ready", "models": {"line": "ready", "half_plus_two": "ready"}})
    assert app.clients.rest("/-/ready/half_plus_two")[0] == 200
    assert app.clients.rest("/v1/models/nope")[0] == 404
    with pytest.raises(grpc.RpcError) as raised:
        app.clients.prediction.Predict(predict_request("nope"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND

    with Load(app.clients) as load:
        app.deploy(scaled(2, 2, "line"), scaled(1, 1, "half_plus_two"), models=models, per_model=True)
        wait_until(lambda: all(len(replicas) == 2 for replicas in load.answered_by()), within=120)
    assert load.failed == []
    assert app.clients.replicas(1, "half_plus_two") == of_half


STATUS = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "line"})


def newest(load: Load) -> set[float]:
    """Versions that the callers heard of last, once each was answered by every replica since."""
    load.go_on(15)
    return {one.value for said in load.said for one in said[-10:]}
