"""TensorFlow Serving's own integration tests (`tensorflow_model_server_test.py`), against our process.

Each test is named after the one there and asserts what that one asserts, with the flags of that test's server. Two
servers run at the same time on one Unix socket path: `polled` reads its config file every second, `static` only once.
What is not about ports and flags is asked of a third one besides, which has REST and gRPC on one port.
The TFLite rows are in `test_tflite.py`; `_TestBadModel` is disabled there.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    regression_pb2,
)

from tests.conformance.conftest import METRICS_PATH, VERSION_NUMBER, Serve, Serving, config_of, verify_predict
from tests.support.programs import fetch, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
BOTH = pytest.mark.parametrize("name", ["half_plus_two", "half_plus_two_tf2"], ids=["tf1", "tf2"])


class Configs:
    """The config files of both servers, and the edit that `testModelConfigReload` makes."""

    def __init__(self, directory: Path, exported: Path) -> None:
        self.polled, self.static = directory / "polled.config", directory / "static.config"
        self._models = {path.name: path for path in exported.iterdir()}
        self._two, self._three = exported / "half_plus_two", exported / "half_plus_three"
        self._write(before=self._two)

    def edit(self) -> None:
        """Replace the model `before`, half_plus_two, by the model `after`, half_plus_three; in both files."""
        self._write(after=self._three)

    def _write(self, **changing: Path) -> None:
        self.static.write_text(config_of(half_plus_three=self._three, **changing))
        self.polled.write_text(config_of(**self._models, **changing))


@pytest.fixture(scope="module")
def configs(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Configs:
    return Configs(tmp_path_factory.mktemp("configs"), exported)


@pytest.fixture(scope="module")
def polled(configs: Configs, serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Serving:
    monitoring = tmp_path_factory.mktemp("monitoring") / "monitoring.config"
    monitoring.write_text(f'prometheus_config: {{ enable: true, path: "{METRICS_PATH}" }}')
    return serve(
        f"--model_config_file={configs.polled}",
        "--model_config_file_poll_wait_seconds=1",
        f"--monitoring_config_file={monitoring}",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb,grpc.so_reuseaddr=1",
    )


@pytest.fixture(scope="module")
def static(polled: Serving, configs: Configs, serve: Serve) -> Serving:
    """Starts second, although the first server has the path of the socket."""
    return serve(f"--model_config_file={configs.static}", "--model_config_file_poll_wait_seconds=0")


@pytest.fixture(scope="module")
def one_port(polled: Serving) -> Serving:
    """gRPC on the REST port, and REST on the gRPC port."""
    return Serving(polled.process, polled.rest.removeprefix("http://"), f"http://{polled.grpc}")


@pytest.fixture(scope="module")
def grpcio(configs: Configs, serve: Serve) -> Serving:
    return serve(f"--model_config_file={configs.polled}", "--grpc_server=grpcio")


@pytest.fixture(scope="module", params=["polled", "one_port", "grpcio"])
def served(request: pytest.FixtureRequest) -> Serving:
    server: Serving = request.getfixturevalue(request.param)
    return server


def with_spec(request: Any, name: str, signature_name: str = "") -> Any:
    spec = request.model_spec
    spec.name, spec.signature_name = name, signature_name
    return request


def with_x(request: Any) -> Any:
    """One Example with x = 2."""
    request.input.example_list.examples.add().features.feature["x"].float_list.value.append(2.0)
    return request


def assert_spec(spec: Any, name: str, signature_name: str) -> None:
    assert (spec.name, spec.signature_name, spec.version.value) == (name, signature_name, VERSION_NUMBER)


def test_wait_for_server_ready(served: Serving) -> None:
    """The harness asks for a missing model until the error says `Servable`."""
    from tensorflow_serving.apis import predict_pb2

    request = with_spec(predict_pb2.PredictRequest(), "intentionally_missing_model")
    with served.stubs() as (stub, _), pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request, timeout=60)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert error.details().startswith("Servable not found for request: Latest(intentionally_missing_model)")


def test_get_model_status(served: Serving) -> None:
    with served.stubs() as (_, stub):
        response = stub.GetModelStatus(with_spec(get_model_status_pb2.GetModelStatusRequest(), "half_plus_two"))
    (status,) = response.model_version_status
    assert status.version == VERSION_NUMBER
    assert status.status.error_code == 0
    assert status.status.error_message == ""


def test_get_model_metadata(served: Serving) -> None:
    request = with_spec(get_model_metadata_pb2.GetModelMetadataRequest(), "half_plus_two")
    request.metadata_field.append("signature_def")
    with served.stubs() as (stub, _):
        response = stub.GetModelMetadata(request, timeout=60)
    assert_spec(response.model_spec, "half_plus_two", "")
    assert list(response.metadata) == ["signature_def"]


@BOTH
def test_classify(served: Serving, name: str) -> None:
    request = with_x(with_spec(classification_pb2.ClassificationRequest(), name, "classify_x_to_y"))
    with served.stubs() as (stub, _):
        response = stub.Classify(request, timeout=60)
    (only,) = response.result.classifications
    assert [found.score for found in only.classes] == [3.0]
    assert_spec(response.model_spec, name, "classify_x_to_y")


@BOTH
def test_regress(served: Serving, name: str) -> None:
    request = with_x(with_spec(regression_pb2.RegressionRequest(), name, "regress_x_to_y"))
    with served.stubs() as (stub, _):
        response = stub.Regress(request, timeout=60)
    assert [found.value for found in response.result.regressions] == [3.0]
    assert_spec(response.model_spec, name, "regress_x_to_y")


@BOTH
def test_multi_inference(served: Serving, name: str) -> None:
    request = inference_pb2.MultiInferenceRequest()
    for signature_name, method in (("regress_x_to_y", REGRESS), ("classify_x_to_y", CLASSIFY)):
        with_spec(request.tasks.add(method_name=method), name, signature_name)
    with served.stubs() as (stub, _):
        first, second = stub.MultiInference(with_x(request), timeout=60).results
    assert [found.value for found in first.regression_result.regressions] == [3.0]
    assert_spec(first.model_spec, name, "regress_x_to_y")
    (only,) = second.classification_result.classifications
    assert [found.score for found in only.classes] == [3.0]
    assert_spec(second.model_spec, name, "classify_x_to_y")


def test_predict_saved_model(served: Serving) -> None:
    verify_predict(served, "half_plus_two", 3.0)
    verify_predict(served, "half_plus_two", 3.0, only="y")


def test_good_model_config(polled: Serving, static: Serving) -> None:
    verify_predict(static, "before", 3.0)
    verify_predict(static, "half_plus_three", 4.0)


def test_bad_model_config(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "bad.config").write_text("improperly formatted file")
    server = serve(f"--model_config_file={tmp_path / 'bad.config'}", ready=False)
    assert server.process.ended() == 255
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig" in server.process.log


def test_model_config_reload_and_with_zero_poll_period(polled: Serving, static: Serving, configs: Configs) -> None:
    for server in (polled, static):
        verify_predict(server, "before", 3.0)
    configs.edit()
    wait_until(lambda: fetch(polled.url("/v1/models/after"))[0] == 200, 10)
    wait_until(lambda: fetch(polled.url("/v1/models/after:predict"), {"instances": [2.0]})[0] == 200, 10)
    verify_predict(polled, "after", 4.0)
    # The same edit, while the other server read its file again, left this one as it was.
    verify_predict(static, "before", 3.0)
    assert fetch(static.url("/v1/models/after"))[0] == 404


def test_good_grpc_channel_args(polled: Serving) -> None:
    """`polled` has them; a connection that is older than `max_connection_age_ms` makes room for another unnoticed."""
    verify_predict(polled, "half_plus_two", 3.0)


def test_classify_rest(polled: Serving) -> None:
    body = {"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}]}
    assert fetch(polled.url("/v1/models/half_plus_two:classify"), body) == (200, {"results": [[["", 3.0]]]})


def test_regress_rest(polled: Serving) -> None:
    body = {"signature_name": "regress_x_to_y", "examples": [{"x": 2.0}]}
    assert fetch(polled.url("/v1/models/half_plus_two:regress"), body) == (200, {"results": [3.0]})


def test_predict_rest(polled: Serving) -> None:
    answer = fetch(polled.url("/v1/models/half_plus_two:predict"), {"instances": [2.0, 3.0, 4.0]})
    assert answer == (200, {"predictions": [3.0, 3.5, 4.0]})


def test_predict_columnar_rest(polled: Serving) -> None:
    answer = fetch(polled.url("/v1/models/half_plus_two:predict"), {"inputs": [2.0, 3.0, 4.0]})
    assert answer == (200, {"outputs": [3.0, 3.5, 4.0]})


def test_get_status_rest(polled: Serving) -> None:
    expected = {
        "model_version_status": [
            {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    assert fetch(polled.url("/v1/models/half_plus_two/versions/123")) == (200, expected)
    assert fetch(polled.url("/v1/models/half_plus_two")) == (200, {**expected, "ready": True})


def test_get_model_metadata_rest(polled: Serving) -> None:
    stored = json.loads(Path(__file__).with_name("half_plus_two_metadata.json").read_text())
    assert fetch(polled.url("/v1/models/half_plus_two/metadata")) == (200, stored)


def test_prometheus_endpoint(polled: Serving) -> None:
    with urlopen(polled.url(METRICS_PATH), timeout=60) as page:
        assert page.headers["Content-Type"] == "text/plain"
        text = page.read().decode()
    assert "# TYPE :tensorflow:serving:request_count counter" in text.splitlines()


def test_predict_uds(polled: Serving, static: Serving, socket_path: Path) -> None:
    """The path is that of the server which started last; the other one serves on by its port."""
    verify_predict(static, "half_plus_three", 4.0, target=f"unix:{socket_path}")
    verify_predict(polled, "half_plus_two", 3.0)
    with static.stubs(f"unix:{socket_path}") as (_, stub), pytest.raises(grpc.RpcError) as caught:
        stub.GetModelStatus(with_spec(get_model_status_pb2.GetModelStatusRequest(), "half_plus_two"))
    error: Any = caught.value
    assert error.details() == "Could not find any versions of model half_plus_two"


def test_tf_saved_model_save(served: Serving) -> None:
    verify_predict(served, "tf_saved_model_save", 12.0)


def test_tf_saved_model_save_multiple_signatures(served: Serving) -> None:
    verify_predict(served, "multiple_signatures", 2.0, signature_name="custom_signature_key")
    verify_predict(served, "multiple_signatures", 1.0)


@pytest.mark.parametrize("name", ["sequential_keras", "distributed"])
def test_sequential_keras_saved_model_save(served: Serving, name: str) -> None:
    """`distributed` is the row `test_distrat_sequential_keras_saved_model_save`."""
    verify_predict(served, name, 6.0, rows=True)


def test_profiler_service_with_valid_trace_request(served: Serving, tmp_path: Path) -> None:
    import tensorflow as tf

    with asked_on_and_on(served):
        tf.profiler.experimental.client.trace(f"grpc://{served.grpc}", str(tmp_path), 300)
    (trace,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 0


@contextmanager
def asked_on_and_on(server: Serving) -> Iterator[None]:
    """REST predictions, one after the other, while the body runs; every one must succeed."""
    over = threading.Event()
    answers: list[int] = []

    def ask() -> None:
        while not over.is_set():
            answers.append(fetch(server.url("/v1/models/half_plus_two:predict"), {"instances": [2.0]})[0])

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()
    assert set(answers) == {200}


def test_tf_text(polled: Serving) -> None:
    answer = fetch(polled.url("/v1/models/text:predict"), {"instances": ["to be or not", "to be"]})
    assert answer == (
        200,
        {
            "predictions": [
                {"words": ["to", "be", "or", "not"], "counts": 4},
                {"words": ["to", "be", "", ""], "counts": 2},
            ]
        },
    )
    assert "importing tensorflow_text" in polled.process.log
