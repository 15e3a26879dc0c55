"""`--workers=2` as real processes: one server on one set of ports, whatever happens to a worker."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2, model_service_pb2_grpc

from tests.e2e.clients import config_of, grpc_predict, publish, taken_port
from tests.e2e.conftest import ServerProcess, Start
from tests.e2e.load import load
from tests.support.programs import PYTHONPATH, answers, fetch, free_port, wait_until
from tests.support.saved_models import half_plus_two

pytestmark = pytest.mark.timeout(300)


class Server:
    """A server process with two workers, and what any of its workers says of all."""

    def __init__(self, directory: Path, *, cold: bool = False) -> None:
        self.directory = directory
        self.port, self.rest = free_port(), free_port()
        (directory / "monitoring").write_text("prometheus_config { enable: true }")
        (directory / "models.config").write_text(config_of(("m", directory / "m")))
        self.process = ServerProcess(
            "--workers=2",
            "--worker_timeout=10",
            f"--port={self.port}",
            f"--rest_api_port={self.rest}",
            "--model_config_file=models.config",
            "--monitoring_config_file=monitoring",
            "--max_num_load_retries=1",
            "--load_retry_interval_micros=100000",
            "--enable_batching",
            cwd=directory,
            cold=cold,
        )

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.rest}{path}"

    def workers(self) -> list[dict[str, Any]]:
        """Each worker's status, whoever answers."""
        workers: list[dict[str, Any]] = fetch(self.url("/-/workers"))[1]["workers"]
        return workers

    def replaced(self, index: int, pid: int) -> bool:
        """Whether every worker serves, and one of them in another process than this."""
        workers = self.workers()  # Asked for once: a moment later the process may have ended, and nobody has its place.
        return all(worker["state"] == "serving" for worker in workers) and workers[index]["pid"] != pid

    def metrics(self) -> str:
        with urlopen(self.url("/monitoring/prometheus/metrics"), timeout=30) as page:
            return str(page.read().decode())

    def answered(self) -> int:
        """Successful requests for the model, by the metrics page."""
        found = re.findall(r'request_count\{model_name="m",status="OK"\} (\d+)', self.metrics())
        return int(found[0]) if found else 0

    def states(self, model: str = "m") -> dict[int, str]:
        statuses = fetch(self.url(f"/v1/models/{model}"))[1].get("model_version_status", ())
        return {int(status["version"]): status["state"] for status in statuses}

    def model_service(self, channel: grpc.Channel) -> Any:
        return model_service_pb2_grpc.ModelServiceStub(channel)

    def reload(self, *models: tuple[str, Path], **metrics: Any) -> Any:
        from google.protobuf import text_format

        request = model_management_pb2.ReloadConfigRequest(**metrics)
        text_format.Parse(config_of(*models), request.config)
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            return self.model_service(channel).HandleReloadConfigRequest(request, timeout=60)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions 1 to 30, each of which answers with its number."""
    directory = tmp_path_factory.mktemp("versions")
    for version in range(1, 31):
        half_plus_two(directory / str(version), 0.0, float(version))
    return directory


@contextlib.contextmanager
def serving(versions: Path, directory: Path, *, cold: bool = False) -> Iterator[Server]:
    publish(versions / "1", directory / "m" / "1")
    server = Server(directory, cold=cold)
    try:
        server.process.wait_until_serving()
        yield server
    finally:
        server.process.close()


@pytest.fixture(scope="module")
def server(versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the tests of this module, in the order in which they stand."""
    with serving(versions, tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def cold_server(versions: Path, tmp_path: Path) -> Iterator[Server]:
    """Another one, of real starts."""
    with serving(versions, tmp_path, cold=True) as server:
        yield server


def libraries_of(pid: int) -> set[str]:
    maps = Path(f"/proc/{pid}/maps").read_text()
    return {name for name in ("libtensorflow_framework", "cygrpc") if name in maps}


def test_both_workers_answer_and_the_supervisor_runs_no_tensorflow(cold_server: Server) -> None:
    server = cold_server
    with load(server.rest, server.port, clients=8) as seen:
        wait_until(lambda: seen.answers > 400)
    assert not seen.failures
    page = server.metrics()
    each = [int(count) for count in re.findall(r'embedserve_worker_requests_total\{worker="\d"\} (\d+)', page)]
    assert len(each) == 2
    assert min(each) > 0
    assert sum(each) >= server.answered() >= 400
    pids = [worker["pid"] for worker in server.workers()]
    assert len(set(pids)) == 2
    supervisor = server.process.pid
    assert libraries_of(supervisor) == set()
    assert all(libraries_of(pid) == {"libtensorflow_framework"} for pid in pids), "and no worker loads grpcio"
    resident = int(Path(f"/proc/{supervisor}/statm").read_text().split()[1]) * 4096
    assert resident < 120e6
    assert fetch(server.url("/-/ready")) == (200, {"status": "ready", "models": {"m": "ready"}})


def test_twenty_versions_go_live_under_load_and_none_answers_after_a_newer_one(server: Server, versions: Path) -> None:
    with load(server.rest, server.port) as seen:
        for version in range(2, 22):
            publish(versions / str(version), server.directory / "m" / str(version))
            wait_until(lambda version=version: server.states().get(version - 1) == "END")  # type: ignore[misc]
            shutil.rmtree(server.directory / "m" / str(version - 1))
        wait_until(lambda: seen.floor() == 21)
    assert not seen.failures
    assert not seen.stale
    assert len(seen.versions) > 10, "most versions have answered"
    assert seen.versions == sorted(seen.versions)


def test_a_roll_back_is_as_sudden(server: Server, versions: Path) -> None:
    publish(versions / "20", server.directory / "m" / "20")
    with load(server.rest, server.port) as seen:
        wait_until(lambda: seen.floor() == 21)
        hidden = server.directory / "m" / ".21"
        (server.directory / "m" / "21").rename(hidden)
        wait_until(lambda: server.states().get(21) == "END")
        wait_until(lambda: seen.floor() == 20)
        shutil.rmtree(hidden)
    assert not seen.failures
    assert not seen.stale
    assert seen.versions == [21, 20]


def test_a_killed_worker_takes_only_what_it_holds_and_is_replaced(server: Server, versions: Path) -> None:
    victim = server.workers()[1]["pid"]
    with load(server.rest, server.port) as seen:
        wait_until(lambda: seen.answers > 100)
        before = server.answered()
        os.kill(victim, signal.SIGKILL)
        # A version that comes meanwhile is there when the new process serves.
        publish(versions / "22", server.directory / "m" / "22")
        low = before
        while not server.replaced(1, victim):
            now = server.answered()
            assert now >= low, "sums do not go back"
            low = now
        wait_until(lambda: seen.floor() == 22)
        wait_until(lambda: server.answered() > low)
        failures = list(seen.failures)
    assert len(failures) <= 12, "what was on its way over each of six connections, and what followed at once"
    assert not seen.stale
    worker = server.workers()[1]
    assert (worker["restarts"], worker["ended"]) == (1, "was ended by SIGKILL")
    shutil.rmtree(server.directory / "m" / "20")


def test_a_worker_that_hangs_is_killed_and_replaced(server: Server) -> None:
    victim = server.workers()[0]["pid"]
    os.kill(victim, signal.SIGSTOP)
    server.process.wait_for_log("Worker 0 has been silent for")

    def replaced() -> bool:
        # A connection that the stopped process has taken is closed with it.
        try:
            return server.replaced(0, victim)
        except OSError:
            return False

    wait_until(replaced)


def test_a_worker_that_is_asked_to_end_finishes_what_it_has_and_is_replaced(server: Server) -> None:
    asked = server.workers()[1]["pid"]
    with load(server.rest, server.port) as seen:
        wait_until(lambda: seen.answers > 100)
        os.kill(asked, signal.SIGTERM)
        wait_until(lambda: server.replaced(1, asked), 120)
    assert not seen.failures
    assert server.workers()[1]["ended"] == "ended with status 0"


def test_a_version_that_one_worker_cannot_load_serves_nowhere(server: Server, tmp_path: Path) -> None:
    claim_once(tmp_path / "claimed", tmp_path / "version")
    publish(tmp_path / "version", server.directory / "m" / "23")
    with load(server.rest, server.port) as seen:
        wait_until(lambda: server.states().get(23) == "END")
    assert not seen.failures
    assert seen.versions == [22]
    status = fetch(server.url("/v1/models/m/versions/23"))[1]["model_version_status"][0]["status"]
    assert "another worker has it" in status["error_message"]
    assert server.states()[22] == "AVAILABLE"
    shutil.rmtree(server.directory / "m" / "23")


def claim_once(claim: Path, path: Path) -> None:
    """A version whose recorded warm-up request succeeds in one process only."""
    from tests.support.saved_models import _save, _signature, _spec, add_warmup_requests

    module = tf.Module()

    @_signature(_spec([None, 1], tf.float32, "x"))
    def serve(x: Any) -> Any:
        free = tf.equal(tf.size(tf.io.matching_files(str(claim))), 0)
        with tf.control_dependencies([tf.debugging.Assert(free, ["another worker has it"])]):
            taken = tf.io.write_file(str(claim), "taken")
        with tf.control_dependencies([taken]):
            return {"y": tf.identity(x)}

    _save(path, module, serving_default=serve)
    add_warmup_requests(path, [predict_log([[1.0]])])


def predict_log(x: Any) -> Any:
    from tensorflow_serving.apis import prediction_log_pb2

    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = "m"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(x, tf.float32))
    return log


def test_a_reload_reaches_all_workers_or_none(server: Server, versions: Path) -> None:
    publish(versions / "7", server.directory / "n" / "7")
    m, n = ("m", server.directory / "m"), ("n", server.directory / "n")
    answer = server.reload(m, n, metric_names=["/tensorflow/serving/request_count"])
    assert answer.status.error_code == 0
    assert [metric.name for metric in answer.metric] == ["/tensorflow/serving/request_count"]
    # Every connection may reach another worker.
    for _ in range(8):
        assert fetch(server.url("/v1/models/n:predict"), {"instances": [1.0]}) == (200, {"predictions": [7.0]})
        assert server.states("n") == {7: "AVAILABLE"}
        with grpc.insecure_channel(f"127.0.0.1:{server.port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
            request = get_model_status_pb2.GetModelStatusRequest(model_spec={"name": "n"})
            (status,) = server.model_service(channel).GetModelStatus(request, timeout=60).model_version_status
            assert (status.version, status.state) == (7, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    # A configuration that is refused changes nothing anywhere.
    with pytest.raises(grpc.RpcError) as refused:
        server.reload(n, n)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    server.reload(m)
    wait_until(lambda: server.states("n") == {7: "END"})
    assert {fetch(server.url("/v1/models/n:predict"), {"instances": [1.0]})[0] for _ in range(8)} == {404}


def test_an_unload_by_the_open_inference_protocol_reaches_all_workers(server: Server) -> None:
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}

    def statuses() -> set[int]:
        return {fetch(server.url("/v2/models/m/infer"), {"inputs": [tensor]})[0] for _ in range(8)}

    def change(what: str) -> tuple[int, Any]:
        return fetch(server.url(f"/v2/repository/models/m/{what}"), {"parameters": {}})

    assert statuses() == {200}
    assert change("unload") == (200, {})
    assert statuses() == {404}
    assert change("load") == (200, {})
    assert statuses() == {200}


def test_sigterm_drains_the_workers_one_by_one_and_loses_no_request(server: Server) -> None:
    pids = [worker["pid"] for worker in server.workers()]
    with load(server.rest, server.port) as seen:
        wait_until(lambda: seen.answers > 100)
        before = len(server.process.log)
        server.process.send(signal.SIGTERM)
        assert server.process.ended() == 0, server.process.log[-3000:]
    assert not seen.failures
    log = server.process.log
    drained = re.findall(r"worker (\d): Done unloading servable version \{name: m version: 22\}", log[before:])
    assert drained == ["0", "1"]
    assert "Traceback" not in log, log[-5000:]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


# Ends that nobody wanted, and starts that fail.


def test_workers_without_a_supervisor_finish_and_end(start: Start, tmp_path: Path) -> None:
    rest = free_port()
    server = start(tmp_path, "--workers=1", f"--port={free_port()}", f"--rest_api_port={rest}")
    server.wait_until_serving()
    (worker,) = fetch(f"http://127.0.0.1:{rest}/-/workers")[1]["workers"]
    server.send(signal.SIGKILL)
    server.ended()
    wait_until(lambda: not Path(f"/proc/{worker['pid']}").exists())


def test_a_worker_that_ends_while_it_loads_ends_the_start_with_the_reason(
    start: Start, versions: Path, tmp_path: Path
) -> None:
    (tmp_path / "crashing.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    publish(versions / "1", tmp_path / "m" / "1")
    server = start(
        "--workers=1",
        f"--port={free_port()}",
        f"--rest_api_port={free_port()}",
        "--model_name=m",
        "--model_base_path=m",
        "--preload_modules=crashing",
        "--max_num_load_retries=0",
        PYTHONPATH=f"{PYTHONPATH}{os.pathsep}{tmp_path}",
    )
    assert server.ended(120) == 255, server.log
    assert "Worker 0 was ended by SIGSEGV; it is restarted" in server.log
    assert server.out.startswith(
        "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: {{name: m version: 1} due to "
        f"error: ABORTED: 2 workers ended while they loaded {tmp_path / 'm' / '1'}; it is not tried again"
    ), server.out


def test_workers_share_the_unix_socket(start: Start, versions: Path, tmp_path: Path) -> None:
    publish(versions / "1", tmp_path / "models" / "m" / "1")
    path = tmp_path / "s.sock"
    server = start("models", "--workers=2", "--grpc_socket_path=s.sock", "--port=0", f"--rest_api_port={free_port()}")
    server.wait_until_serving()
    for _ in range(4):
        assert list(grpc_predict(f"unix:{path}", "m").outputs["y"].float_val) == [1.0]
    server.terminate()
    assert not path.exists()


def test_what_workers_cannot_share_ends_the_start(start: Start, tmp_path: Path) -> None:
    flags = ("--workers=2", "--grpc_server=grpcio", "--grpc_socket_path=s.sock")
    server = start(tmp_path, *flags, f"--port={free_port()}")
    assert server.ended() == 255
    assert "--grpc_server=grpcio cannot share --grpc_socket_path among --workers" in server.out
    with taken_port() as port:
        server = start(tmp_path, "--workers=2", f"--port={port}", f"--rest_api_port={free_port()}")
        assert server.ended() == 255
    assert f"port {port}: Address already in use" in server.out
    assert answers(f"http://127.0.0.1:{port}/-/live")() is False
