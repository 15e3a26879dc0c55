"""What an operator does with a server: choose its addresses, scrape it, send it SIGHUP, end it while requests run."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.e2e.clients import asked, config_of, grpc_predict, publish, state_of
from tests.e2e.conftest import Start
from tests.support.programs import fetch, free_port, run_program, wait_until

pytestmark = pytest.mark.timeout(180)

FOR_EVER = 10**12


@contextlib.contextmanager
def grpc_asked(port: int) -> Iterator[Any]:
    """A Predict call that runs for ever, and what becomes of it."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "endless"
    request.inputs["steps"].dtype = 9
    request.inputs["steps"].tensor_shape.dim.add(size=1)
    request.inputs["steps"].tensor_content = np.int64(FOR_EVER).tobytes()
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        grpc.channel_ready_future(channel).result(60)
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict.future(request, timeout=90)


def core_series(rest: int) -> dict[str, int]:
    with urlopen(f"http://localhost:{rest}/monitoring/prometheus/metrics", timeout=30) as page:
        found = re.findall(r"^:tensorflow:core:(\w+)\{\} (\S+)$", page.read().decode(), re.MULTILINE)
    return {name: int(float(value)) for name, value in found}


@pytest.mark.parametrize("workers", [0, 1])
def test_metrics_hang_ups_and_the_end_of_a_drain(start: Start, saved: Path, tmp_path: Path, workers: int) -> None:
    publish(saved / "two", tmp_path / "m" / "1")
    publish(saved / "endless", tmp_path / "endless" / "1")
    config, rest, port = tmp_path / "models.config", free_port(), free_port()
    config.write_text(config_of(("m", tmp_path / "m"), ("endless", tmp_path / "endless")))
    server = start(
        f"--workers={workers}",
        f"--rest_api_port={rest}",
        f"--port={port}",
        "--model_config_file=models.config",
        "--file_system_poll_wait_seconds=0",
        "--drain_timeout=1",
        "--host=127.0.0.1,::1",
        "--host=127.0.0.2",
    )
    server.wait_for_log("Adding/updating models.")
    server.send(signal.SIGHUP)  # Before the models are there.
    server.wait_until_serving()

    def predicted(model: str) -> float | None:
        status, body = fetch(f"http://localhost:{rest}/v1/models/{model}:predict", {"instances": [2.0]})
        return body["predictions"][0] if status == 200 else None

    # Both ports are open at the addresses that were named, and at no other.
    for host in ("127.0.0.1", "127.0.0.2", "[::1]"):
        assert f"Exporting HTTP/REST API at:{host}:{rest} ..." in server.log
        assert f"Running gRPC ModelServer at {host}:{port} ..." in server.log
        assert fetch(f"http://{host}:{rest}/-/ready")[0] == 200
        grpc_predict(f"{host}:{port}", "m")
    flags = (f"--rest_api_port={rest}", f"--port={port}", "--host=127.0.0.2")
    assert '200 {"status":"live"}' in run_program("-m", "embedserve", "live", *flags)
    for closed in (port, rest):
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.3", closed), timeout=30)

    # Metrics need no file; what Grafana's dashboard for TensorFlow Serving plots is there.
    assert predicted("m") == 3.0
    series = core_series(rest)
    assert series["graph_runs"] == 4
    assert series["graph_build_calls"] == 2
    assert min(series["graph_run_time_usecs"], series["graph_build_time_usecs"]) > 0
    assert fetch(f"http://localhost:{rest}/v1/models/m")[1]["ready"] is True

    # SIGHUP looks for versions although nothing polls, and reads the file although nothing follows it.
    publish(saved / "three", tmp_path / "m" / "2")
    server.send(signal.SIGHUP)
    wait_until(lambda: predicted("m") == 4.0)
    config.write_text("improperly formatted")
    server.send(signal.SIGHUP)
    server.wait_for_log("Failed to read ModelServerConfig file: Invalid protobuf file:")
    assert predicted("m") == 4.0
    config.write_text(config_of(("endless", tmp_path / "endless"), ("n", tmp_path / "m")))
    server.send(signal.SIGHUP)
    wait_until(lambda: predicted("n") == 4.0)
    wait_until(lambda: state_of(rest, "m") == "END")
    assert fetch(f"http://localhost:{rest}/v1/models/m")[1]["ready"] is False

    # What runs longer than the drain gets an error that says so, and so does a body that never comes.
    with (
        asked(rest, "/v1/models/endless:predict", {"instances": [FOR_EVER]}) as answer,
        socket.create_connection(("localhost", rest)) as stalled,
        grpc_asked(port) as call,
    ):
        stalled.sendall(b"POST /v1/models/n:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        server.send(signal.SIGTERM)
        server.wait_for_log("SIGTERM: finishing the requests in flight")
        server.send(signal.SIGHUP)
        status, body = answer()
        assert (status, "the server shuts down" in str(body)) == (503, True)
        stalled.settimeout(60)
        head, _, text = stalled.makefile("rb").read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 "), head
        assert "the server shuts down" in json.loads(text)["error"]
        with pytest.raises(grpc.RpcError) as cut:
            call.result(60)
        assert cut.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.ended() == 0
    assert "Traceback" not in server.log, server.log[-3000:]


@pytest.mark.parametrize(
    ("kind", "host", "words"),
    [
        ("--workers=0", "192.0.2.1", "it is no address of this machine"),
        ("--workers=1", "192.0.2.1", "it is no address of this machine"),
        ("--grpc_server=grpcio", "192.0.2.1", "it is no address of this machine"),
        ("--workers=1", "no.such.host.invalid", "no name that can be looked up"),
    ],
)
def test_an_address_that_cannot_be_had_ends_the_start_in_one_line(
    start: Start, tmp_path: Path, kind: str, host: str, words: str
) -> None:
    server = start(tmp_path, kind, f"--host={host}", f"--port={free_port()}")
    assert server.ended() == 255
    (line,) = server.out.splitlines()
    assert line.startswith("Failed to start server. Error: ")
    assert host in line
    assert words in line
    assert not server.log
