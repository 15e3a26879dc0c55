"""`python -m embedserve --server=pyvoy`: REST, gRPC and gRPC-Web on one port, from the start to the drain."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.e2e.clients import asked, config_of, grpc_predict, publish, state_of
from tests.e2e.conftest import ServerProcess, Start
from tests.support.programs import ROOT, answers, fetch, free_port, wait_until

pytest.importorskip("pyvoy", reason="the extra embedserve[pyvoy] is not installed")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose sockets' names are within the system's bound, wherever pytest keeps its own."""
    with TemporaryDirectory(prefix="es-") as directory:
        yield Path(directory)


pytestmark = pytest.mark.timeout(240)

ENDLESS = {"instances": [10**12]}
TWO = np.array([2.0], np.float32)


def envoy_of(server: ServerProcess) -> int:
    """The process id of the Envoy that a server has spawned."""
    (child,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return int(child)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # Nobody may be there to bury it.


def predict_request(name: str, x: Any) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    tensor = request.inputs["x"]
    tensor.dtype = 1
    tensor.tensor_shape.dim.add(size=len(x))
    tensor.tensor_shape.dim.add(size=1)
    tensor.tensor_content = x.tobytes()
    return request


def framed(request: Any) -> bytes:
    message: bytes = request.SerializeToString()
    return struct.pack(">BI", 0, len(message)) + message


def web_answer(body: bytes) -> list[float]:
    """What a gRPC-Web answer holds, whose trailers must say that all is well."""
    (size,) = struct.unpack(">I", body[1:5])
    assert b"grpc-status:0" in body[5 + size :].replace(b" ", b"")
    return list(predict_pb2.PredictResponse.FromString(body[5 : 5 + size]).outputs["y"].float_val)


def test_rest_grpc_and_grpc_web_are_answered_on_one_port_and_drained(start: Start, saved: Path, tmp_path: Path) -> None:
    publish(saved / "two", tmp_path / "two" / "1")
    publish(saved / "three", tmp_path / "three" / "7")
    publish(saved / "endless", tmp_path / "endless" / "1")
    config = tmp_path / "models.config"
    config.write_text(config_of(("m", tmp_path / "two"), ("endless", tmp_path / "endless")))
    port = free_port()
    target, url = f"localhost:{port}", f"http://localhost:{port}"
    server = start(
        "--server=pyvoy",
        f"--port={port}",
        "--model_config_file=models.config",
        "--model_config_file_poll_wait_seconds=1",
        "--enable_grpc_healthcheck_service",
        "--grpc_reflection",
        "--rest_api_timeout_in_ms=0",
    )
    server.wait_until_serving()
    for line in (
        "Successfully loaded servable version {name: m version: 1}",
        f"Running gRPC ModelServer at 0.0.0.0:{port} ...",
        f"Exporting HTTP/REST API at:localhost:{port} ...",
    ):
        assert line in server.log

    assert fetch(f"{url}/v1/models/m:predict", {"instances": [1.0, 2.0]}) == (200, {"predictions": [2.5, 3.0]})
    assert list(grpc_predict(target, "m").outputs["y"].float_val) == [3.0]
    _one_connection_carries_many_rest_requests(port)
    _grpc_web_is_answered_over_http_1_1(url)
    _messages_of_64_mib_pass(target)
    _health_is_watched_and_services_are_listed(target)
    _a_cancelled_call_frees_its_run(target)

    # The config file is followed inside of Envoy, and reload requests count its metrics.
    config.write_text(config_of(("m", tmp_path / "three"), ("endless", tmp_path / "endless")))
    wait_until(lambda: list(grpc_predict(target, "m").outputs["y"].float_val) == [4.0])
    with grpc.insecure_channel(target) as channel:
        request = model_management_pb2.ReloadConfigRequest(metric_names=["/tensorflow/serving/request_count"])
        added = request.config.model_config_list.config.add(name="k", base_path=str(tmp_path / "two"))
        added.model_platform = "tensorflow"
        stub = model_service_pb2_grpc.ModelServiceStub(channel)

        def added_before_the_next_poll() -> bool:
            # A poll of the file takes the model away again; on a busy machine, before it is loaded.
            response = stub.HandleReloadConfigRequest(request, timeout=60)
            assert [metric.name for metric in response.metric] == list(request.metric_names)
            return bool(response.status.error_code == 0)

        wait_until(added_before_the_next_poll)
    wait_until(lambda: state_of(port, "k") == "END" and state_of(port, "m") == "AVAILABLE")
    with urlopen(f"{url}/monitoring/prometheus/metrics", timeout=30) as page:
        assert b':tensorflow:serving:request_count{model_name="m",status="OK"}' in page.read()

    # A second server is told that the port is taken, at once and without a trace of Envoy.
    second = start("--server=pyvoy", f"--port={port}", "--model_config_file=models.config")
    assert second.ended() == 255
    assert second.out == f"Failed to start server. Error: UNKNOWN: Failed to start Envoy: port {port}: " + (
        "Address already in use\n"
    )
    _every_request_in_flight_is_answered(server, port)


def _one_connection_carries_many_rest_requests(port: int) -> None:
    connection = http.client.HTTPConnection("localhost", port, timeout=60)
    for _ in range(3):
        connection.request("POST", "/v1/models/m:predict", '{"instances": [1.0]}')
        assert connection.getresponse().read() == b'{"predictions": [2.5]}'
        assert connection.sock is not None, "the connection is kept"
    connection.close()


def _grpc_web_is_answered_over_http_1_1(url: str) -> None:
    message = predict_request("m", TWO).SerializeToString()
    request = Request(
        f"{url}/tensorflow.serving.PredictionService/Predict", struct.pack(">BI", 0, len(message)) + message
    )
    request.add_header("Content-Type", "application/grpc-web+proto")
    with urlopen(request, timeout=30) as response:
        assert web_answer(response.read()) == [3.0]


def _messages_of_64_mib_pass(target: str) -> None:
    x = np.arange(2**24, dtype=np.float32)
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(target, options=unlimited) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = stub.Predict(predict_request("m", x), timeout=60)
    assert answer.ByteSize() > 2**26
    np.testing.assert_array_equal(np.array(answer.outputs["y"].float_val, np.float32), x * np.float32(0.5) + 2)


def _health_is_watched_and_services_are_listed(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        replies = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask, ask]), timeout=60)
        listed = [{service.name for service in reply.list_services_response.service} for reply in replies]
    assert len(listed) == 2
    assert "tensorflow.serving.PredictionService" in listed[0]


def _a_cancelled_call_frees_its_run(target: str) -> None:
    """Else the drain of a test's end would wait for it, and find the model in use."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "endless"
    tensor = request.inputs["steps"]
    tensor.dtype = 9
    tensor.tensor_shape.dim.add(size=1)
    tensor.int64_val.append(10**12)
    with grpc.insecure_channel(target) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(request, timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        call = stub.Predict.future(request, timeout=60)
        grpc_predict(target, "m")
        call.cancel()


def _every_request_in_flight_is_answered(server: ServerProcess, port: int) -> None:
    """Over REST, over gRPC, and a watch of health, which is told that it is over; then the port is closed."""
    with (
        grpc.insecure_channel(f"localhost:{port}") as channel,
        asked(port, "/v1/models/endless:predict", {"instances": [400_000]}) as answer,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        next(watch)
        request = predict_request("m", np.full(100_000, 2.0, np.float32))
        calls = [prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict.future(request) for _ in range(8)]
        calls[0].result(60)
        server.terminate()
        assert answer() == (200, {"predictions": [400_001 * 400_000]})
        assert [len(call.result(60).outputs["y"].float_val) for call in calls] == [100_000] * 8
        assert [reply.status for reply in watch] == [health_pb2.HealthCheckResponse.NOT_SERVING]
    assert "SIGTERM: finishing the requests in flight" in server.log
    assert "Exception" not in server.log
    with pytest.raises(OSError, match="refused"):
        fetch(f"http://localhost:{port}/v1/models/m")


def test_tls_speaks_http_1_2_and_3_asks_for_certificates_and_a_second_signal_ends_it_all(
    start: Start, saved: Path, tmp_path: Path, short_path: Path, certificates: Path
) -> None:
    publish(saved / "two", tmp_path / "models" / "m" / "1")
    publish(saved / "endless", tmp_path / "models" / "endless" / "1")
    contents = {kind: (certificates / f"server.{kind}").read_text() for kind in ("key", "crt")}
    roots = (certificates / "ca.crt").read_bytes()
    fields = {"server_key": contents["key"], "server_cert": contents["crt"], "custom_ca": roots.decode()}
    (tmp_path / "ssl").write_text("".join(f"{name}: {json.dumps(text)} " for name, text in fields.items()))
    with (tmp_path / "ssl").open("a") as file:
        file.write("client_verify: true")
    port = free_port()
    temporary = short_path
    server = start(
        *("models", "--server=pyvoy", f"--port={port}", "--ssl_config_file=ssl"),
        *("--host=127.0.0.1,127.0.0.2", "--host=::1", "--file_system_poll_wait_seconds=0"),
        TMPDIR=str(temporary),
    )
    server.wait_until_serving()
    assert "Using SSL credentials" in server.log
    assert f"Exporting HTTP/REST API at:[::1]:{port} ..." in server.log

    # Who shows no certificate is refused; who shows one gets answers over each version of HTTP.
    trusting = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    with pytest.raises(OSError, match=r"(?i)certificate|eof|reset"):
        urlopen(f"https://localhost:{port}/v1/models/m", timeout=30, context=trusting).read()
    trusting.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    with urlopen(f"https://localhost:{port}/v1/models/m", timeout=30, context=trusting) as response:
        assert b"AVAILABLE" in response.read()
    with pytest.raises(OSError, match="refused"):
        fetch(f"https://127.0.0.3:{port}/v1/models/m")

    # SIGHUP goes to the application, which looks for versions at once.
    publish(saved / "two", tmp_path / "models" / "m" / "2")
    server.send(signal.SIGHUP)
    any_name = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
    any_name.check_hostname = False
    any_name.load_cert_chain(certificates / "server.crt", certificates / "server.key")

    def reloaded() -> bool:
        with contextlib.suppress(HTTPError), urlopen(f"{second}/v1/models/m/versions/2", context=any_name) as answer:
            return b"AVAILABLE" in answer.read()
        return False

    second = f"https://127.0.0.2:{port}"
    wait_until(reloaded)
    mutual = grpc.ssl_channel_credentials(roots, contents["key"].encode(), contents["crt"].encode())
    with grpc.secure_channel(f"localhost:{port}", mutual) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = stub.Predict(predict_request("m", TWO), timeout=30)
    assert list(answer.outputs["y"].float_val) == [3.0]
    _http_3_is_answered_from_the_registrys_loop(f"https://localhost:{port}", certificates)

    # The key is in no file, argument or variable of Envoy once it serves.
    envoy = envoy_of(server)
    key = contents["key"].splitlines()[1].encode()
    assert key not in Path(f"/proc/{envoy}/environ").read_bytes() + Path(f"/proc/{envoy}/cmdline").read_bytes()
    assert [path.name for path in temporary.rglob("*") if not path.is_dir()] == ["admin.sock"]

    with asked(port, "/v1/models/endless:predict", ENDLESS, trusting):
        server.send(signal.SIGINT)
        server.wait_for_log("SIGINT: finishing the requests in flight")
        assert server.running
        server.send(signal.SIGTERM)
        assert server.ended(10) == 128 + signal.SIGTERM
    assert "SIGTERM again: leaving at once" in server.log
    wait_until(lambda: not alive(envoy), 10)
    assert not list(temporary.iterdir())


def _http_3_is_answered_from_the_registrys_loop(url: str, certificates: Path) -> None:
    def asked_over_http_3(path: str, content_type: str, body: bytes) -> bytes:
        command = [sys.executable, "-m", "tests.e2e.http3_client", url + path, str(certificates), content_type]
        done = subprocess.run(command, cwd=ROOT, input=body, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    answer = asked_over_http_3("/v1/models/m:predict", "application/json", b'{"instances": [1.0]}')
    assert json.loads(answer) == {"predictions": [2.5]}
    # As gRPC-Web, because this client knows no trailers of HTTP/3.
    path, body = "/tensorflow.serving.PredictionService/Predict", framed(predict_request("m", TWO))
    assert web_answer(asked_over_http_3(path, "application/grpc-web", body)) == [3.0]


def test_the_port_opens_early_on_request_and_a_killed_parent_takes_envoy_with_it(
    start: Start, saved: Path, tmp_path: Path
) -> None:
    port = free_port()
    server = start(
        "--server=pyvoy",
        "--rest_early",
        f"--rest_api_port={port}",
        MODEL_BASE_PATH=str(tmp_path / "data"),
        MODEL_NAME="digits",
    )
    wait_until(answers(f"http://localhost:{port}/-/live"))
    ready = f"http://localhost:{port}/-/ready"
    status, document = fetch(ready)
    assert status == 503
    assert str(tmp_path / "data" / "digits") in document["models"]["digits"]
    with pytest.raises(grpc.RpcError) as caught:
        grpc_predict(f"localhost:{port}", "digits")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "the registry is starting" in (caught.value.details() or "")
    assert "Entering the event loop" not in server.log
    publish(saved / "two", tmp_path / "data" / "digits" / "1")
    wait_until(answers(ready))
    server.wait_until_serving()

    envoy = envoy_of(server)
    server.send(signal.SIGKILL)
    wait_until(lambda: not alive(envoy), 20)
    assert server.ended() == -signal.SIGKILL


def test_a_killed_envoy_ends_its_parent_with_a_status_that_says_so(start: Start, saved: Path, tmp_path: Path) -> None:
    publish(saved / "two", tmp_path / "models" / "m" / "1")
    server = start("models", "--server=pyvoy", f"--port={free_port()}")
    server.wait_until_serving()
    os.kill(envoy_of(server), signal.SIGKILL)
    assert server.ended() == 128 + signal.SIGKILL
    assert "Envoy ended with status -9 while it served" in server.log


def test_a_model_that_cannot_be_loaded_ends_the_start_with_its_reason_and_nothing_of_envoys(
    start: Start, saved: Path, tmp_path: Path
) -> None:
    publish(saved / "two", tmp_path / "m" / "1")
    server = start(
        "--server=pyvoy",
        f"--port={free_port()}",
        "--model_name=m",
        "--model_base_path=m",
        "--saved_model_tags=serve,tpu",
        "--max_num_load_retries=0",
    )
    assert server.ended() == 255, server.log
    assert server.out.startswith(
        "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: "
        "{{name: m version: 1} due to error: NOT_FOUND: Could not find meta graph def matching supplied tags: "
    )
    assert "static_resources" not in server.log
    assert "Traceback" not in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_before_the_first_load_has_ended_ends_both_processes(
    start: Start, short_path: Path, number: signal.Signals
) -> None:
    temporary = short_path
    server = start("--server=pyvoy", f"--port={free_port()}", "--model_base_path=none", TMPDIR=str(temporary))
    server.wait_for_log("Finished adding/updating models")
    envoy = envoy_of(server)
    server.send(number)
    assert server.ended() == (0 if number is signal.SIGTERM else -number)
    wait_until(lambda: not alive(envoy), 30)
    assert not list(temporary.iterdir())
    assert "Traceback" not in server.log


def test_a_taken_udp_port_and_an_unusable_certificate_end_the_start_at_once(
    start: Start, tmp_path: Path, certificates: Path
) -> None:
    import socket

    tls = [f"--rest_tls_cert_file={certificates}/server.crt", f"--rest_tls_key_file={certificates}/ca.key"]
    server = start(tmp_path, "--server=pyvoy", f"--port={free_port()}", *tls)
    assert server.ended() == 255
    assert "Error: INVALID_ARGUMENT: unusable key or certificate (--rest_tls_cert_file" in server.out

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        port = taken.getsockname()[1]
        tls[1] = f"--rest_tls_key_file={certificates}/server.key"
        server = start(tmp_path, "--server=pyvoy", f"--port={port}", *tls)
        assert server.ended() == 255
    assert f"Failed to start Envoy: port {port}: Address already in use" in server.out
