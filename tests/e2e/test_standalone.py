"""`python -m embedserve` as its users and TensorFlow Serving's tools start, ask, reconfigure and stop it."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.e2e.clients import asked, config_of, grpc_predict, publish, state_of, taken_port
from tests.e2e.conftest import Start
from tests.support.programs import answers, fetch, free_port, wait_until

pytestmark = pytest.mark.timeout(180)


@contextlib.contextmanager
def default_rest_port_taken() -> Iterator[None]:
    """Take 8501. A program that has the port already keeps it, unless it leaves within half a minute."""
    end = time.monotonic() + 30
    with socket.socket(socket.AF_INET6) as taken:
        # Without the option, a closed connection of an earlier server would refuse the port here, and not to a server.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                taken.bind(("::", 8501))
                taken.listen()
                break
            time.sleep(0.1)
        yield


# Serving.


def test_a_relative_directory_of_models_is_served_and_drained(start: Start, saved: Path, tmp_path: Path) -> None:
    publish(saved / "two", tmp_path / "models" / "half_plus_two" / "123")
    publish(saved / "endless", tmp_path / "models" / "endless" / "1")
    publish(saved / "sized", tmp_path / "models" / "sized" / "1")
    port, rest = free_port(), free_port()
    server = start("models/", f"--port={port}", f"--rest_api_port={rest}", "--free_batch=false", cold=True)
    server.wait_until_serving()
    url = f"http://localhost:{rest}/v1/models"

    # The lines that tools look for.
    for line in (
        "Successfully loaded servable version {name: half_plus_two version: 123}",
        f"Running gRPC ModelServer at 0.0.0.0:{port} ...",
        f"Exporting HTTP/REST API at:localhost:{rest} ...",
    ):
        assert line in server.log

    assert fetch(f"{url}/half_plus_two:predict", {"instances": [1.0, 2.0, 5.0]}) == (
        200,
        {"predictions": [2.5, 3, 4.5]},
    )
    answer = grpc_predict(f"localhost:{port}", "half_plus_two")
    assert (list(answer.outputs["y"].float_val), answer.model_spec.version.value) == ([3.0], 123)
    assert fetch(f"http://127.0.0.1:{rest}/-/ready")[0] == 200

    # The flag holds: the declared number of rows, and no other.
    one_row = [[0.0, 0.0, 0.0]]
    assert fetch(f"{url}/sized:predict", {"inputs": one_row * 4})[0] == 200
    status, body = fetch(f"{url}/sized:predict", {"inputs": one_row})
    assert (status, "free_batch could not be used: it is False" in body["error"]) == (400, True)

    # A request that is running when SIGTERM comes is answered, and no new one is taken.
    with asked(rest, "/v1/models/endless:predict", {"instances": [400_000]}) as answer:
        server.terminate()
        assert answer() == (200, {"predictions": [400_001 * 400_000]})
    assert "SIGTERM: finishing the requests in flight" in server.log
    with pytest.raises(OSError, match="refused"):
        fetch(url)


def test_a_config_file_is_followed_and_reload_requests_are_answered(start: Start, saved: Path, tmp_path: Path) -> None:
    publish(saved / "two", tmp_path / "two" / "1")
    publish(saved / "three", tmp_path / "three" / "7")
    config, monitoring, unix = tmp_path / "models.config", tmp_path / "monitoring", tmp_path / "s.sock"
    config.write_text(config_of(("m", tmp_path / "two")))
    monitoring.write_text("prometheus_config { enable: true }")
    port, rest = free_port(), free_port()
    server = start(
        f"--port={port}",
        f"--rest_api_port={rest}",
        "--grpc_socket_path=s.sock",
        "--model_config_file=models.config",
        "--model_config_file_poll_wait_seconds=1",
        "--monitoring_config_file=monitoring",
        "--enable_batching",
        "--enable_grpc_healthcheck_service",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb,grpc.so_reuseaddr=1",
    )
    server.wait_until_serving()
    assert f"Running gRPC ModelServer at UNIX socket {unix} ..." in server.log
    assert list(grpc_predict(f"unix:{unix}", "m").outputs["y"].float_val) == [3.0]

    def answer() -> float:
        return float(grpc_predict(f"localhost:{port}", "m").outputs["y"].float_val[0])

    # An edit that does not parse is logged and changes nothing.
    config.write_text("improperly formatted")
    server.wait_for_log("Failed to read ModelServerConfig file: Invalid protobuf file:")
    assert answer() == 3.0

    # An edit adds a model; a later one moves the first model to another directory of versions.
    config.write_text(config_of(("m", tmp_path / "two"), ("n", tmp_path / "three")))
    wait_until(answers(f"http://localhost:{rest}/v1/models/n"))
    config.write_text(config_of(("m", tmp_path / "three")))
    wait_until(lambda: answer() == 4.0)
    wait_until(lambda: state_of(rest, "n") == "END")

    # A reload request counts its own metrics and is overridden by the next reading of the file.
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        request = model_management_pb2.ReloadConfigRequest(metric_names=["/tensorflow/serving/request_count"])
        added = request.config.model_config_list.config.add(name="k", base_path=str(tmp_path / "two"))
        added.model_platform = "tensorflow"

        def reloaded() -> bool:
            try:
                return bool(stub.HandleReloadConfigRequest(request, timeout=60).status.error_code == 0)
            except grpc.RpcError as error:  # The file was read before the model was loaded.
                if "a later configuration does not list it" in (error.details() or ""):
                    return False
                raise

        wait_until(reloaded)
        added.base_path = "relative"
        with pytest.raises(grpc.RpcError) as caught:
            stub.HandleReloadConfigRequest(request, timeout=60)
        assert "Expected model k to have an absolute path" in (caught.value.details() or "")
    wait_until(lambda: state_of(rest, "k") == "END" and state_of(rest, "m") == "AVAILABLE")

    with urlopen(f"http://localhost:{rest}/monitoring/prometheus/metrics", timeout=30) as page:
        assert b"# TYPE :tensorflow:serving:request_count counter" in page.read()
    server.terminate()
    assert not unix.exists()


def test_rest_opens_early_on_request_and_says_what_is_missing(start: Start, saved: Path, tmp_path: Path) -> None:
    rest, port = free_port(), free_port()
    server = start(
        "--rest_early",
        f"--rest_api_port={rest}",
        f"--port={port}",
        MODEL_BASE_PATH=str(tmp_path / "data"),
        MODEL_NAME="digits",
    )
    ready = f"http://localhost:{rest}/-/ready"
    wait_until(answers(f"http://localhost:{rest}/-/live"), 60)
    status, document = fetch(ready)
    assert status == 503
    assert str(tmp_path / "data" / "digits") in document["models"]["digits"]
    assert fetch(f"http://localhost:{rest}/v1/models/digits:predict", {"instances": [1]})[0] == 404
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("localhost", port), 5)
    publish(saved / "two", tmp_path / "data" / "digits" / "1")
    wait_until(answers(ready))
    server.wait_until_serving()
    server.terminate()


def test_a_taken_default_rest_port_leaves_grpc_alone_behind_tls(
    start: Start, saved: Path, tmp_path: Path, certificates: Path
) -> None:
    publish(saved / "two", tmp_path / "m" / "1")
    contents = {name: (certificates / f"server.{part}").read_text() for name, part in (("key", "key"), ("cert", "crt"))}
    escaped = {name: text.replace("\n", "\\n") for name, text in contents.items()}
    (tmp_path / "ssl").write_text(f'server_key: "{escaped["key"]}" server_cert: "{escaped["cert"]}"')
    port = free_port()
    with default_rest_port_taken():
        server = start(f"--port={port}", "--model_base_path=m", "--ssl_config_file=ssl", "--drain_timeout=60")
        server.wait_until_serving()
    assert "Failed to start HTTP Server at localhost:8501: Address already in use" in server.log
    assert "Using SSL credentials" in server.log
    roots = grpc.ssl_channel_credentials((certificates / "ca.crt").read_bytes())
    with grpc.secure_channel(f"localhost:{port}", roots) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(
                predict_pb2.PredictRequest(model_spec={"name": "intentionally_missing_model"}), timeout=30
            )
        assert "Servable not found for request: Latest(intentionally_missing_model)" in (caught.value.details() or "")
    server.terminate()


def test_rest_speaks_tls_and_a_second_signal_ends_the_process_at_once(
    start: Start, saved: Path, tmp_path: Path, certificates: Path
) -> None:
    publish(saved / "endless", tmp_path / "models" / "endless" / "1")
    rest = free_port()
    server = start(
        "models",
        f"--port={free_port()}",
        f"--rest_api_port={rest}",
        f"--rest_tls_cert_file={certificates / 'server.crt'}",
        f"--rest_tls_key_file={certificates / 'server.key'}",
        "--rest_api_timeout_in_ms=0",
    )
    server.wait_until_serving()
    trusting = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    with asked(rest, "/v1/models/endless:predict", {"instances": [10**12]}, trusting):
        server.send(signal.SIGINT)
        server.wait_for_log("SIGINT: finishing the requests in flight")
        assert server.running
        server.send(signal.SIGTERM)
        assert server.ended(10) == 128 + signal.SIGTERM
    assert "SIGTERM again: leaving at once" in server.log


# Starts that fail.


def test_a_bad_config_file_ends_the_start_with_the_words_that_tools_look_for(start: Start, tmp_path: Path) -> None:
    (tmp_path / "bad.config").write_text("improperly formatted file")
    server = start(f"--model_config_file={tmp_path / 'bad.config'}", f"--port={free_port()}")
    assert server.ended() == 255
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig: 1:1: " in server.log
    assert server.out == (
        f"Failed to start server. Error: INVALID_ARGUMENT: Invalid protobuf file: '{tmp_path / 'bad.config'}'\n"
    )


@pytest.mark.parametrize("flag", ["port", "rest_api_port"])
def test_a_taken_port_that_was_asked_for_ends_the_start_with_its_number(
    start: Start, tmp_path: Path, flag: str
) -> None:
    with taken_port() as port:
        ports = {"port": free_port(), "rest_api_port": free_port()} | {flag: port}
        server = start(tmp_path, *(f"--{name}={number}" for name, number in ports.items()))
        assert server.ended() == 255
    assert server.out.startswith("Failed to start server. Error: UNKNOWN: Failed to ")
    assert f"port {port}: Address already in use" in server.out


def test_a_model_that_cannot_be_loaded_ends_the_start_with_its_reason(
    start: Start, saved: Path, tmp_path: Path
) -> None:
    publish(saved / "two", tmp_path / "m" / "1")
    server = start(
        f"--port={free_port()}",
        f"--rest_api_port={free_port()}",
        "--model_name=m",
        f"--model_base_path={tmp_path / 'm'}",
        "--saved_model_tags=serve,tpu",
        "--max_num_load_retries=1",
        "--load_retry_interval_micros=1000",
    )
    assert server.ended() == 255, server.log
    assert server.out.startswith(
        "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: "
        "{{name: m version: 1} due to error: NOT_FOUND: Could not find meta graph def matching supplied tags: "
    )
    assert server.out.endswith("}, }\n")
    assert "Traceback" not in server.log


@pytest.mark.parametrize("workers", [0, 1])
def test_a_directory_with_models_that_cannot_be_had_serves_the_others_and_goes_on_trying(
    start: Start, saved: Path, tmp_path: Path, workers: int
) -> None:
    publish(saved / "two", tmp_path / "models" / "good" / "1")
    publish(saved / "two", tmp_path / "models" / "bad" / "1")
    broken = tmp_path / "models" / "bad" / "1" / "saved_model.pb"
    broken.write_bytes(broken.read_bytes().replace(b"StatefulPartitionedCall", b"StatefulPartitionedCell"))
    (tmp_path / "models" / "torn" / "1").mkdir(parents=True)
    port, rest = free_port(), free_port()
    server = start(
        "models",
        f"--port={port}",
        f"--rest_api_port={rest}",
        f"--workers={workers}",
        "--enable_grpc_healthcheck_service",
        "--load_retry_interval_micros=100000",
        "--max_num_load_retries=1000000",
    )
    server.wait_until_serving()
    url = f"http://localhost:{rest}"
    assert grpc_predict(f"localhost:{port}", "good").model_spec.version.value == 1
    assert fetch(f"{url}/v1/models/good:predict", {"instances": [2.0]}) == (200, {"predictions": [3.0]})
    status, document = fetch(f"{url}/-/ready")
    assert (status, document["status"], document["models"]["good"]) == (200, "ready", "ready")
    assert "StatefulPartitionedCell" in document["models"]["bad"]
    assert "saved_model.pb" in document["models"]["torn"]
    assert [fetch(f"{url}/-/ready/{name}")[0] for name in ("good", "bad", "torn")] == [200, 503, 503]
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        said = [check(health_pb2.HealthCheckRequest(service=name)).status for name in ("", "good", "bad", "torn")]
    assert said == [1, 1, 2, 2]
    assert "Serving without model bad, which is tried again in the background: version 1 is LOADING" in server.log
    publish(saved / "three", tmp_path / "models" / "torn" / "2")
    publish(saved / "three", tmp_path / "models" / "bad" / "2")
    wait_until(lambda: {fetch(f"{url}/-/ready/{name}")[0] for name in ("bad", "torn")} == {200})
    server.terminate()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_config_file_that_lists_no_model_is_ready(start: Start, tmp_path: Path, workers: int) -> None:
    (tmp_path / "none.config").write_text("model_config_list {}")
    rest = free_port()
    server = start(
        f"--port={free_port()}", f"--rest_api_port={rest}", "--model_config_file=none.config", f"--workers={workers}"
    )
    server.wait_until_serving()
    assert fetch(f"http://localhost:{rest}/-/ready") == (200, {"status": "ready", "models": {}})
    server.terminate()


def test_a_signal_before_the_first_load_has_ended_ends_the_process(start: Start, tmp_path: Path) -> None:
    ports = (f"--port={free_port()}", f"--rest_api_port={free_port()}")
    server = start(*ports, f"--model_base_path={tmp_path / 'none'}", cold=True)
    server.wait_for_log("Finished adding/updating models")
    server.terminate()


def test_a_model_archive_of_sagemaker_is_served_at_its_paths(start: Start, saved: Path, tmp_path: Path) -> None:
    publish(saved / "two", tmp_path / "archive" / "export" / "Servo" / "1")
    rest = free_port()
    server = start(
        "--sagemaker",
        f"--port={free_port()}",
        SM_MODEL_DIR=str(tmp_path / "archive"),
        SAGEMAKER_BIND_TO_PORT=str(rest),
    )
    server.wait_until_serving()
    url = f"http://localhost:{rest}"
    wait_until(lambda: fetch(f"{url}/ping")[0] == 200)
    assert fetch(f"{url}/invocations", [1.0, 2.0, 5.0])[1] == {"predictions": [[2.5, 3.0, 4.5]]}
    assert fetch(f"{url}/v1/models/Servo:predict", {"instances": [1.0]}) == (200, {"predictions": [2.5]})
    server.terminate()
