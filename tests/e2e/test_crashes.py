"""One worker and requests that end its process: what their clients see, what their neighbours see, and what is said."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2, prediction_service_pb2_grpc

from tests.e2e.clients import asked, grpc_predict, publish
from tests.e2e.conftest import ABORTS_ON_DEMAND, ServerProcess
from tests.support.programs import PYTHONPATH, fetch, free_port, wait_until
from tests.support.saved_models import aborting, add_warmup_requests

pytestmark = pytest.mark.timeout(300)

STEPS = 2_000_000_000


class Server:
    """A server with one worker, a harmless model, an endless one, and one whose kernel aborts at a word."""

    def __init__(self, directory: Path, saved: Path) -> None:
        self._order = directory / "abort"
        self.port, self.rest = free_port(), free_port()
        (directory / "aborts_on_demand.py").write_text(ABORTS_ON_DEMAND)
        publish(saved / "two", directory / "models" / "good" / "1")
        publish(saved / "endless", directory / "models" / "endless" / "1")
        publish(aborting(directory / "aborting"), directory / "models" / "aborting" / "1")
        self.process = ServerProcess(
            "models",
            "--workers=1",
            "--num_batch_threads=2",
            "--preload_modules=aborts_on_demand",
            f"--port={self.port}",
            f"--rest_api_port={self.rest}",
            cwd=directory,
            ABORT_ORDER=str(self._order),
            PYTHONPATH=f"{PYTHONPATH}{os.pathsep}{directory}",
        )

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.rest}{path}"

    def page(self) -> dict[str, Any]:
        page: dict[str, Any] = fetch(self.url("/-/workers"))[1]
        return page

    def abort_at(self, runs: int) -> None:
        """Have the worker abort in a thread of its own once so many runs are under way."""
        self._order.with_suffix(".new").write_text(str(runs))
        self._order.with_suffix(".new").rename(self._order)

    def answers(self) -> None:
        """Both ports answer again; connections that come before wait in the listening socket, where there is one."""
        body = {"instances": [2.0]}
        wait_until(lambda: fetch(self.url("/v1/models/good:predict"), body) == (200, {"predictions": [3.0]}))
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            grpc.channel_ready_future(channel).result(60)
        assert grpc_predict(f"127.0.0.1:{self.port}", "good").outputs["y"].float_val == [3.0]


@pytest.fixture(scope="module")
def server(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of this module, in the order in which they stand."""
    server = Server(tmp_path_factory.mktemp("server"), saved)
    try:
        server.process.wait_until_serving()
        yield server
    finally:
        server.process.close()


class GrpcCall:
    """A call on a connection of its own, in a thread; `error` is what it ended with."""

    def __init__(self, server: Server, model: str, name: str, value: Any) -> None:
        self._request = predict_pb2.PredictRequest()
        self._request.model_spec.name = model
        self._request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        self._target = f"127.0.0.1:{server.port}"
        self._error: grpc.RpcError | None = None
        self._thread = threading.Thread(target=self._call)
        self._thread.start()

    def _call(self) -> None:
        with grpc.insecure_channel(self._target) as channel:
            try:
                prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(self._request, timeout=100)
            except grpc.RpcError as error:
                self._error = error

    def error(self) -> tuple[grpc.StatusCode, str]:
        self._thread.join()
        assert self._error is not None
        return self._error.code(), self._error.details() or ""


def test_requests_of_an_aborting_process_get_an_error_and_the_next_ones_an_answer(server: Server) -> None:
    pid = server.page()["workers"][0]["pid"]
    call = GrpcCall(server, "endless", "steps", np.array([STEPS]))
    with asked(server.rest, "/v1/models/endless:predict", {"instances": [STEPS]}) as answer:
        server.abort_at(runs=2)
        status, body = answer()
    assert status == 503, body
    assert "TensorFlow aborted it" in str(body)
    code, details = call.error()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "TensorFlow aborted it" in details
    server.answers()
    assert server.page()["workers"][0]["pid"] != pid
    assert "Worker 0 was ended by SIGABRT; it is restarted" in server.process.log
    assert "Traceback" not in server.process.log


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_a_kernel_that_aborts_costs_its_own_request_and_those_beside_it(server: Server, transport: str) -> None:
    restarts = server.page()["workers"][0]["restarts"]
    with asked(server.rest, "/v1/models/endless:predict", {"instances": [STEPS]}) as neighbour:
        if transport == "rest":
            status, body = fetch(server.url("/v1/models/aborting:predict"), {"instances": ["abort"]})
            assert status == 503, body
            assert "TensorFlow aborted it" in str(body)
        else:
            call = GrpcCall(server, "aborting", "x", ["abort"])
            assert call.error()[0] is grpc.StatusCode.UNAVAILABLE
        assert neighbour()[0] == 503
    server.answers()
    assert fetch(server.url("/v1/models/aborting:predict"), {"instances": ["ab"]}) == (200, {"predictions": [2.0]})
    assert server.page()["workers"][0]["restarts"] == restarts + 1


def test_requests_that_were_there_at_two_deaths_are_suspects(server: Server) -> None:
    suspects = {each["model"]: each for each in server.page()["suspects"]}
    assert suspects["aborting"] == {
        "model": "aborting",
        "version": 1,
        "signature": "serving_default",
        "inputs": "x string[?]",
        "deaths": 2,
    }
    said = "Suspect: a worker had a request of model aborting, version 1, signature serving_default, inputs x string[?]"
    assert server.process.log.count(said) == 1
    assert "abort'" not in server.process.log, "contents are nobody's business"


def test_a_killed_worker_leaves_connections_in_the_port_until_the_next_one_takes_them(server: Server) -> None:
    """Nothing can be said for a process that is killed; but those who connect after it are answered."""
    os.kill(server.page()["workers"][0]["pid"], signal.SIGKILL)
    wait_until(lambda: "Worker 0 was ended by SIGKILL" in server.process.log)
    assert fetch(server.url("/v1/models/good:predict"), {"instances": [2.0]}) == (200, {"predictions": [3.0]})
    server.process.terminate()


def test_a_model_that_ends_whoever_loads_it_is_given_up_and_the_others_are_served(saved: Path, tmp_path: Path) -> None:
    """Its recorded warm-up request aborts the process; at first it is loaded beside others, which are not blamed."""
    for name in ("one", "two"):
        publish(saved / "two", tmp_path / "models" / name / "1")
    warm = aborting(tmp_path / "fatal")
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(["abort"]))
    publish(add_warmup_requests(warm, [log]), tmp_path / "models" / "fatal" / "1")
    rest = free_port()
    server = ServerProcess("models", f"--port={free_port()}", f"--rest_api_port={rest}", cwd=tmp_path)
    try:
        server.wait_for_log("Entering the event loop ...", 200)
        for name in ("one", "two"):
            answer = fetch(f"http://127.0.0.1:{rest}/v1/models/{name}:predict", {"instances": [2.0]})
            assert answer == (200, {"predictions": [3.0]})
        status, document = fetch(f"http://127.0.0.1:{rest}/-/ready")
        assert status == 200
        assert "2 workers ended while they loaded" in document["models"]["fatal"]
        os.kill(fetch(f"http://127.0.0.1:{rest}/-/workers")[1]["workers"][0]["pid"], signal.SIGTERM)
        server.terminate()  # A service manager may tell every process of a service to end.
    finally:
        server.close()
