"""Every endpoint and every RPC of a server process gets what nobody would send: it answers, blames the request, lives.

No answer is 500, INTERNAL or UNKNOWN, none is missing, and the log has no traceback.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
    session_service_pb2,
)

from embedserve.grpc.services.profiler import message_class
from embedserve.tensors import proto
from embedserve.tensors.dtypes import by_numpy
from tests.conformance.conftest import METRICS_PATH, Serve, Serving, config_of
from tests.conformance.fuzzing import BUILDERS, HttpRequest, broken, http_requests, messages, requests
from tests.support.programs import fetch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PREDICTION, MODEL = "/tensorflow.serving.PredictionService", "/tensorflow.serving.ModelService"


def spec(name: str, signature_name: str = "") -> model_pb2.ModelSpec:
    return model_pb2.ModelSpec(name=name, signature_name=signature_name)


def predict(name: str, signature_name: str = "", **inputs: Any) -> Any:
    request = predict_pb2.PredictRequest(model_spec=spec(name, signature_name))
    for alias, value in inputs.items():
        array = np.array(value)
        proto.encode_into(request.inputs[alias], array, by_numpy(array.dtype))
    return request


def one_x(kind: Any, name: str, signature_name: str) -> Any:
    request = kind(model_spec=spec(name, signature_name))
    return with_x(request)


def with_x(request: Any) -> Any:
    request.input.example_list.examples.add().features.feature["x"].float_list.value.append(2.0)
    return request


def inference(*signature_names: str) -> Any:
    request = with_x(inference_pb2.MultiInferenceRequest())
    for name in signature_names:
        method = f"tensorflow/serving/{name.partition('_')[0]}"
        request.tasks.add(model_spec=spec("half_plus_two", name), method_name=method)
    return request


def session_run() -> Any:
    request = session_service_pb2.SessionRunRequest(model_spec=spec("tf1"), fetch=["y:0"])
    array = np.ones((2, 1), np.float32)
    proto.encode_into(request.feed.add(name="x:0").tensor, array, by_numpy(array.dtype))
    return request


ONE = np.ones(1, np.float32)
RPCS: dict[str, list[Any]] = {
    f"{PREDICTION}/Predict": [
        predict("half_plus_two", x=ONE),
        predict("tf1", x=ONE),
        predict("several", left=np.ones((1, 3), np.float32), right=np.ones((1, 3), np.int32)),
        predict("several", "scalars", a=ONE[0], b=ONE[0]),
        predict("strings", text=np.array([b"a"], object)),
        predict("conv2d", image=np.ones((1, 2, 2, 1), np.float32)),
        predict("positive_only", x=ONE),
        predict("identities", "uint8", x=np.ones((2, 2), np.uint8)),
    ],
    f"{PREDICTION}/Classify": [
        one_x(classification_pb2.ClassificationRequest, name, "classify_x_to_y") for name in ("half_plus_two", "tf1")
    ],
    f"{PREDICTION}/Regress": [
        one_x(regression_pb2.RegressionRequest, name, "regress_x_to_y") for name in ("half_plus_two", "tf1")
    ],
    f"{PREDICTION}/MultiInference": [inference("regress_x_to_y", "classify_x_to_y"), inference("classify_labels")],
    f"{PREDICTION}/GetModelMetadata": [
        get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec("tf1"), metadata_field=["signature_def"])
    ],
    f"{MODEL}/GetModelStatus": [get_model_status_pb2.GetModelStatusRequest(model_spec=spec("tf1"))],
    "/tensorflow.serving.SessionService/SessionRun": [session_run()],
    "/grpc.health.v1.Health/Check": [health_pb2.HealthCheckRequest(service="tf1")],
    "/tensorflow.ProfilerService/Terminate": [message_class("TerminateRequest")(session_id="s")],
    "/tensorflow.ProfilerService/Monitor": [message_class("MonitorRequest")(duration_ms=1)],
}

PATIENCE = 20  # Seconds after which a request counts as forgotten.
# A reload that adds a model without a version waits for one, as long as a start does.
START_TIMEOUT = 40
RELOAD_PATIENCE = START_TIMEOUT + PATIENCE
BLAMES_THE_SERVER = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.DATA_LOSS,
}


def fuzz(examples: int) -> Any:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models are."""
    directory = tmp_path_factory.mktemp("fuzzed")
    for name, build in BUILDERS.items():
        build(directory / name / "1")
    return directory


@pytest.fixture(scope="module")
def fuzzed(serve: Serve, directory: Path) -> Iterator[Serving]:
    """A server of its own, because it is reconfigured too; what it said is looked at in the end."""
    (directory / "models").write_text(config_of(**{name: directory / name for name in BUILDERS}))
    (directory / "monitoring").write_text("prometheus_config { enable: true }")
    server = serve(
        f"--model_config_file={directory / 'models'}",
        f"--monitoring_config_file={directory / 'monitoring'}",
        "--enable_batching",
        "--enable_grpc_healthcheck_service",
        "--grpc_reflection",
        "--session_run_clients=local",
        "--max_request_bytes=4000000",
        "--max_num_load_retries=0",
        "--rest_api_timeout_in_ms=10000",
        f"--start_timeout={START_TIMEOUT}",
    )
    yield server
    assert server.process.running, server.process.log[-3000:]
    assert "Traceback" not in server.process.log, server.process.log[-3000:]


def http_status(server: Serving, data: bytes) -> int:
    """Send bytes on a connection of their own, read the answer to its end."""
    port = int(server.rest.rpartition(":")[2])
    with socket.create_connection(("localhost", port), PATIENCE) as connection:
        connection.sendall(data)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return int(answer.split(b" ", 2)[1])


def test_rest(fuzzed: Serving) -> None:
    statuses: Counter[int] = Counter()

    @fuzz(400)
    @given(request=http_requests())
    def ask(request: HttpRequest) -> None:
        status = http_status(fuzzed, request.data())
        statuses[status] += 1
        assert status in {200, 400, 404, 501} or (status == 405 and request.target.startswith(b"/-/"))

    ask()
    print(dict(statuses))
    assert statuses[200] > 40, "too little of it was right enough to get anywhere"


def grpc_code(server: Serving, method: str, body: bytes, patience: float = PATIENCE) -> tuple[grpc.StatusCode, str]:
    with grpc.insecure_channel(server.grpc) as channel:
        try:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            call(body, timeout=patience)
        except grpc.RpcError as error:
            found: Any = error
            return found.code(), found.details()
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize("method", RPCS, ids=lambda method: method.rpartition("/")[2])
def test_an_rpc(fuzzed: Serving, method: str) -> None:
    codes: Counter[str] = Counter()

    @fuzz(200)
    @given(body=requests(*RPCS[method]))
    def ask(body: bytes) -> None:
        code, message = grpc_code(fuzzed, method, body)
        codes[code.name] += 1
        assert code not in BLAMES_THE_SERVER, f"{code.name}: {message}"

    ask()
    print(dict(codes))
    assert codes["OK"] > 10 or method.startswith("/tensorflow.ProfilerService"), dict(codes)


@fuzz(20)
@given(request=messages(message_class("ProfileRequest").DESCRIPTOR))
def test_profile(fuzzed: Serving, request: Any) -> None:
    code, message = grpc_code(fuzzed, "/tensorflow.ProfilerService/Profile", request.SerializeToString())
    assert code not in BLAMES_THE_SERVER, message


@fuzz(40)
@given(asked=st.lists(messages(reflection_pb2.ServerReflectionRequest.DESCRIPTOR), max_size=3))
def test_reflection(fuzzed: Serving, asked: list[Any]) -> None:
    """Whole messages only: what else the library that answers is sent, it calls UNKNOWN."""
    with grpc.insecure_channel(fuzzed.grpc) as channel:
        method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
        info: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
        answers = info((one.SerializeToString() for one in asked), timeout=PATIENCE)
        assert len(list(answers)) == len(asked)


@fuzz(20)
@given(body=requests(health_pb2.HealthCheckRequest(service="tf1")))
def test_watch(fuzzed: Serving, body: bytes) -> None:
    """Its answers do not end: the first one is enough."""
    with grpc.insecure_channel(fuzzed.grpc) as channel:
        watch: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/grpc.health.v1.Health/Watch")
        call = watch(body, timeout=PATIENCE)
        try:
            next(call)
        except grpc.RpcError as error:
            found: Any = error
            assert found.code() not in BLAMES_THE_SERVER, found.details()
        call.cancel()


@fuzz(100)
@given(whole=http_requests(), data=st.data())
def test_bytes_that_are_hardly_http(fuzzed: Serving, whole: HttpRequest, data: st.DataObject) -> None:
    """The server may close without an answer, but it goes on serving."""
    port = int(fuzzed.rest.rpartition(":")[2])
    with socket.create_connection(("localhost", port), PATIENCE) as connection:
        connection.sendall(data.draw(broken(st.just(whole.data()))))
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert fetch(fuzzed.url("/-/live"))[0] == 200


def test_the_metrics_of_all_that_can_be_read(fuzzed: Serving) -> None:
    status = http_status(fuzzed, f"GET {METRICS_PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert status == 200


def test_reload(fuzzed: Serving, directory: Path, tmp_path: Path) -> None:
    """The one RPC that may say UNKNOWN: of an added model that did not load. Last, for it changes what is served."""
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "saved_model.pb").write_bytes(b"not a SavedModel")
    paths = [str(directory / "half_plus_two"), str(tmp_path / "broken"), "relative", "", "gs://b/m"]
    sample = model_management_pb2.ReloadConfigRequest(metric_names=["/tensorflow/serving/request_count"])
    sample.config.model_config_list.config.add(
        name="tf1", base_path=str(directory / "tf1"), model_platform="tensorflow"
    )
    hints = {"tensorflow.serving.ModelConfig.base_path": st.sampled_from(paths)}

    @fuzz(100)
    @given(body=requests(sample, hints=hints))
    def ask(body: bytes) -> None:
        code, message = grpc_code(fuzzed, f"{MODEL}/HandleReloadConfigRequest", body, RELOAD_PATIENCE)
        if code is grpc.StatusCode.UNKNOWN:
            assert "model(s) did not become available" in message
        else:
            assert code not in BLAMES_THE_SERVER, f"{code.name}: {message}\n{fuzzed.process.log[-4000:]}"

    ask()
