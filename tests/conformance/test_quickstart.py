"""What TensorFlow Serving's documentation shows: curl lines, a container's environment, a config with labels."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import model_management_pb2

from tests.conformance.conftest import Serve, Serving, predict_request, program_or_skip
from tests.support import saved_models
from tests.support.programs import fetch, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HALF_PLUS_TWO = "http://localhost:8501/v1/models/half_plus_two"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`half_plus_two` and `half_plus_three` as the tutorial has them, with a version `2` of each that adds 10 more."""
    directory = tmp_path_factory.mktemp("quickstart")
    for name, offset in (("half_plus_two", 2.0), ("half_plus_three", 3.0)):
        saved_models.half_plus_two(directory / name / "1", b=offset)
        saved_models.half_plus_two(directory / name / "2", b=offset + 10)
    return directory


@pytest.fixture(scope="module")
def container(models: Path, serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Serving:
    """As `docker run -e MODEL_NAME=half_plus_two ...`, with arguments for the server after the image's name."""
    mounted = tmp_path_factory.mktemp("models")
    shutil.copytree(models / "half_plus_two" / "1", mounted / "half_plus_two" / "1")
    return serve(
        "--rest_api_num_threads=1",
        "--enable_serialization_as_tensor_content=true",
        MODEL_NAME="half_plus_two",
        MODEL_BASE_PATH=str(mounted),
    )


def curl(server: Serving, line: str) -> str:
    """Run a line of the documentation and return what it prints."""
    program_or_skip("curl")
    command = line.replace("http://localhost:8501", server.rest).replace("curl", "curl -sS", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_containers_tests(container: Serving) -> None:
    """They read the log until REST is there, and compare an answer without its blanks and newlines."""
    assert "Exporting HTTP/REST API" in container.process.log
    answer = curl(container, post('{"instances": [1.0, 2.0, 5.0]}'))
    assert "".join(answer.split()) == '{"predictions":[2.5,3.0,4.5]}'


def post(body: str, url: str = f"{HALF_PLUS_TWO}:predict") -> str:
    return f"curl -d '{body}' -X POST {url}"


AVAILABLE = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (post('{"instances": [1.0, 2.0, 5.0]}'), {"predictions": [2.5, 3.0, 4.5]}),
        (post('{"inputs": [1.0, 2.0, 5.0]}'), {"outputs": [2.5, 3.0, 4.5]}),
        (
            post('{"signature_name": "serving_default", "instances": [[1.0]]}', f"{HALF_PLUS_TWO}/versions/1:predict"),
            {"predictions": [[2.5]]},
        ),
        (f"curl {HALF_PLUS_TWO}", {"model_version_status": [AVAILABLE], "ready": True}),
    ],
    ids=["predict", "columns", "version", "status"],
)
def test_a_curl_line(container: Serving, line: str, expected: object) -> None:
    assert json.loads(curl(container, line)) == expected


def test_a_curl_line_with_the_wrong_method_is_told_the_right_one_after_the_known_words(container: Serving) -> None:
    line = "curl -d '{\"instances\": [1.0,5.0]}' -X GET http://localhost:8501/v1/models/half:predict"
    error = json.loads(curl(container, line))["error"]
    assert error.startswith("Malformed request: GET /v1/models/half:predict")
    assert "POST" in error


def test_curl_shows_the_headers_of_an_error(container: Serving) -> None:
    line = post('{"instances": [1.0,5.0]}', "-i http://localhost:8501/v1/models/half:predict")
    head, _, body = curl(container, line).replace("\r", "").partition("\n\n")
    lines = head.lower().splitlines()
    assert lines[0] == "http/1.1 404 not found"
    assert "content-type: application/json" in lines
    assert json.loads(body)["error"].startswith("Servable not found for request: Latest(half)")


def test_the_containers_arguments_count(container: Serving) -> None:
    """Both break REST in TensorFlow Serving, where the other tests of this server would not pass."""
    with container.stubs() as (stub, _):
        output = stub.Predict(predict_request("half_plus_two", rows=True), timeout=60).outputs["y"]
    assert output.tensor_content == np.float32(3.0).tobytes()
    assert not output.float_val
    assert "--rest_api_num_threads is ignored" in container.process.log


# A config with two models, versions and labels, and its reload.

CONFIG = """
model_config_list {
  config {
    name: 'half_plus_two' base_path: '%s/half_plus_two' model_platform: 'tensorflow'
    model_version_policy { specific { versions: 1 versions: 2 } }
    version_labels { key: 'stable' value: 1 }
    version_labels { key: 'canary' value: 2 }
  }
  config {
    name: 'half_plus_three' base_path: '%s/half_plus_three' model_platform: 'tensorflow'
  }
}
"""


def reload(server: Serving, config: str) -> Any:
    request = model_management_pb2.ReloadConfigRequest(metric_names=["/tensorflow/serving/request_count"])
    text_format.Parse(config, request.config)
    with server.stubs() as (_, stub):
        return stub.HandleReloadConfigRequest(request, timeout=60)


def test_two_models_labels_and_a_reload(models: Path, serve: Serve, tmp_path: Path) -> None:
    config = CONFIG % (models, models)
    (tmp_path / "models.config").write_text(config)
    (tmp_path / "monitoring.config").write_text("prometheus_config { enable: true }")
    server = serve(
        f"--model_config_file={tmp_path / 'models.config'}",
        f"--monitoring_config_file={tmp_path / 'monitoring.config'}",
        "--allow_version_labels_for_unavailable_models=true",
    )

    def answers(name: str, label: str | None = None) -> tuple[float, int]:
        request = predict_request(name, rows=True)
        if label is not None:
            request.model_spec.version_label = label
        with server.stubs() as (stub, _):
            response = stub.Predict(request, timeout=60)
        return response.outputs["y"].float_val[0], response.model_spec.version.value

    def refusal(name: str, label: str) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            answers(name, label)
        error: Any = caught.value
        return error.code(), error.details()

    def states() -> list[str]:
        _, body = fetch(f"{server.rest}/v1/models/half_plus_two")
        return [version["state"] for version in body["model_version_status"]]

    # As in TensorFlow Serving, a start waits for one version of each model.
    wait_until(lambda: states() == ["AVAILABLE"] * 2)
    assert answers("half_plus_two", "stable") == (3.0, 1)
    assert answers("half_plus_two", "canary") == answers("half_plus_two") == (13.0, 2)
    assert answers("half_plus_three") == (14.0, 2)
    line = post('{"instances": [1.0]}', f"{HALF_PLUS_TWO}/labels/stable:predict")
    assert json.loads(curl(server, line)) == {"predictions": [2.5]}

    # A label moves to an available version; a model leaves; the request is counted.
    moved = config.replace("'stable' value: 1", "'stable' value: 2")
    moved = moved[: moved.index("  config {\n    name: 'half_plus_three'")] + "}"
    response = reload(server, moved)
    assert response.status.error_code == 0
    assert [(metric.name, metric.int64_value_increase) for metric in response.metric] == [
        ("/tensorflow/serving/request_count", 0)
    ]
    assert answers("half_plus_two", "stable") == (13.0, 2)
    with pytest.raises(grpc.RpcError, match="Servable not found for request: Latest\\(half_plus_three\\)"):
        answers("half_plus_three")

    # It does not move to a version that is not there, and a reload that is refused changes nothing.
    with pytest.raises(grpc.RpcError) as caught:
        reload(server, config.replace("'stable' value: 1", "'stable' value: 7"))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == (
        "Request to assign label to version 7 of model half_plus_two, which is not currently available for inference"
    )
    assert answers("half_plus_two", "stable") == (13.0, 2)

    # A label that a new config omits is gone.
    assert reload(server, moved.replace("    version_labels { key: 'canary' value: 2 }\n", "")).status.error_code == 0
    code, message = refusal("half_plus_two", "canary")
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message.startswith("Unrecognized servable version label: canary")
    assert server.process.running
