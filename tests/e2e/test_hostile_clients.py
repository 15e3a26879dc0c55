"""What clients may send to a standalone process of any kind: they get errors, and write no line of its log."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tensorflow_serving.apis import model_management_pb2, predict_pb2, session_service_pb2

from embedserve.grpc.services.profiler import message_class
from tests.e2e.clients import publish
from tests.e2e.conftest import ServerProcess
from tests.support.programs import fetch, free_port

pytestmark = pytest.mark.timeout(300)

C = grpc.StatusCode
FORGED = "a\nE 2026-01-01 00:00:00.000000: forged"
FLAGS = {"alone": ("--workers=0",), "workers": ("--workers=1",), "grpcio": ("--grpc_server=grpcio",)}
BODY = b'{"instances": [1.0]}'
POST = b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % len(BODY)
# What starts a line of the log: a record, a traceback's line, or what TensorFlow's C++ code says itself.
RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}: [IWEFDC] |[IWEF]\d{4} |    |WARNING: |\[\d{4}-|$")


class Hostile:
    def __init__(self, server: ServerProcess, port: int, rest: int) -> None:
        self.server, self.port, self.rest = server, port, rest

    def call(self, path: str, request: Any, **metadata: str) -> tuple[grpc.StatusCode, str]:
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            try:
                headers = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
                channel.unary_unary(path)(request.SerializeToString(), timeout=60, metadata=headers)
            except grpc.RpcError as error:
                found: Any = error
                return found.code(), found.details()
        return C.OK, ""

    def raw(self, port: int, data: bytes, *, reset: bool = False) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(data)
            if reset:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return b""
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
            return answer


@pytest.fixture(scope="module", params=FLAGS)
def hostile(request: pytest.FixtureRequest, saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    directory = tmp_path_factory.mktemp("hostile")
    publish(saved / "two", directory / "models" / "half_plus_two" / "1")
    port, rest = free_port(), free_port()
    server = ServerProcess("models/", f"--port={port}", f"--rest_api_port={rest}", *FLAGS[request.param], cwd=directory)
    try:
        server.wait_for_log("Entering the event loop ...", 200)
        yield Hostile(server, port, rest)
        server.terminate()
        assert "forged" not in [line.partition(": ")[2] for line in server.log.splitlines()]
        strange = [line for line in server.log.splitlines() if not RECORD.match(line)]
        assert not [line for line in strange if "forged" in line], strange
    finally:
        server.close()


def predict(name: str, signature_name: str = "") -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = name, signature_name
    return request


def reload(name: str, base_path: str) -> Any:
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.add(name=name, base_path=base_path, model_platform="tensorflow")
    return request


def test_names_of_all_kinds_are_answered_and_start_no_line_of_the_log(hostile: Hostile) -> None:
    path = "/tensorflow.serving.PredictionService/Predict"
    code, message = hostile.call(path, predict(FORGED))
    assert (code, FORGED in message) == (C.NOT_FOUND, True)
    code, message = hostile.call(path, predict("half_plus_two", "a\0" + FORGED))
    assert (code, "a\0" + FORGED in message) == (C.FAILED_PRECONDITION, True), "a NUL does not end the message"
    url = f"http://127.0.0.1:{hostile.rest}/v1/models"
    assert fetch(f"{url}/a%0Aforged%00")[0] == 404
    assert fetch(f"{url}/a%0Aforged%ff")[0] == 404
    assert fetch(f"{url}/a%0Aforged:predict", {"instances": [1.0]})[0] == 404
    for name, base_path in ((FORGED, "/m"), ("m", f"/{FORGED}"), ("m", "/proc"), ("m", "/")):
        code, _ = hostile.call("/tensorflow.serving.ModelService/HandleReloadConfigRequest", reload(name, base_path))
        assert code is C.INVALID_ARGUMENT, (name, base_path)
    assert fetch(f"{url}/half_plus_two:predict", {"instances": [1.0]}) == (200, {"predictions": [2.5]})


@pytest.mark.parametrize("header", ["x_forwarded_for", "forwarded", "x_real_ip", "x_envoy_external_address"])
def test_where_a_client_is_does_not_follow_from_what_it_says(hostile: Hostile, header: str) -> None:
    reloaded = reload("m", "/proc")  # INVALID_ARGUMENT to those who may reload, PERMISSION_DENIED to others.
    path = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
    code, _ = hostile.call(path, reloaded, **{header: "10.1.2.3"})
    assert code is C.INVALID_ARGUMENT, "a client that can say that it is elsewhere could say that it is here"


def test_session_run_is_off_and_the_profiler_writes_nowhere_else(hostile: Hostile, tmp_path: Path) -> None:
    request = session_service_pb2.SessionRunRequest(model_spec={"name": "half_plus_two"}, fetch=["x:0"])
    assert hostile.call("/tensorflow.serving.SessionService/SessionRun", request)[0] is C.UNIMPLEMENTED
    profile = message_class("ProfileRequest")(duration_ms=1, repository_root=str(tmp_path), session_id="../elsewhere")
    code, message = hostile.call("/tensorflow.ProfilerService/Profile", profile)
    assert (code, message) == (C.INVALID_ARGUMENT, "session_id '../elsewhere' is not a session's id")
    assert list(tmp_path.iterdir()) == []


def test_clients_that_leave_or_speak_another_protocol_cost_no_traceback(hostile: Hostile) -> None:
    for port in {hostile.port, hostile.rest}:
        for data in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), b"\0" * 100, b"GET", POST, b""):
            hostile.raw(port, data, reset=True)
    for sent in (POST + b"\r\n", POST + b"\r\n" + BODY[:5], POST + b"\r\n" + BODY, POST + b"Upgrade: h2c\r\n"):
        hostile.raw(hostile.rest, sent, reset=True)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
    for sent in (preface, preface[:10], preface + b"\xff" * 50):
        hostile.raw(hostile.port, sent, reset=True)
    with grpc.insecure_channel(f"127.0.0.1:{hostile.port}") as channel:
        method = "/tensorflow.serving.PredictionService/Predict"
        predict: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        predict.future(b"").cancel()
    assert fetch(f"http://127.0.0.1:{hostile.rest}/v1/models")[0] == 200
    assert "Traceback" not in hostile.server.log


def test_a_request_that_asks_for_another_protocol_is_answered(hostile: Hostile) -> None:
    upgrades = [b"h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA", b"websocket\r\nSec-WebSocket-Version: 13"]
    for upgrade in upgrades:
        head = POST + b"Connection: Upgrade, close\r\nUpgrade: " + upgrade + b"\r\n\r\n"
        answer = hostile.raw(hostile.rest, head + BODY)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"predictions": [2.5]}
