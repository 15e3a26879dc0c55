"""What the tests of server processes put before a server, and how they ask it."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tests.support.programs import fetch


def grpc_predict(target: str, name: str, x: float = 2.0) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    tensor = request.inputs["x"]
    tensor.dtype = 1
    for size in (1, 1):
        tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.append(x)
    with grpc.insecure_channel(target) as channel:
        return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=30)


def publish(source: Path, version: Path) -> None:
    """Copy a version beside its place and rename it into it."""
    version.parent.mkdir(parents=True, exist_ok=True)
    hidden = version.parent / f".{version.name}.part"
    shutil.copytree(source, hidden)
    hidden.rename(version)


@contextlib.contextmanager
def taken_port(host: str = "0.0.0.0") -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind((host, 0))
        taken.listen()
        yield taken.getsockname()[1]


def config_of(*models: tuple[str, Path]) -> str:
    listed = " ".join(
        f'config: {{ name: "{name}", base_path: "{path}", model_platform: "tensorflow" }},' for name, path in models
    )
    return f"model_config_list: {{ {listed.rstrip(',')} }}"


@contextlib.contextmanager
def asked(
    port: int, path: str, body: object, tls: ssl.SSLContext | None = None
) -> Iterator[Callable[[], tuple[int, object]]]:
    """Send a request and go on while the server works at it; the callable waits for the answer."""
    connection = (
        http.client.HTTPConnection("localhost", port, timeout=60)
        if tls is None
        else http.client.HTTPSConnection("localhost", port, timeout=60, context=tls)
    )
    with contextlib.closing(connection):
        connection.request("POST", path, json.dumps(body))
        # The loop reads connections in turn: when it has answered a later one, it has this request.
        with urlopen(f"http{'s' if tls else ''}://localhost:{port}/-/live", timeout=30, context=tls):
            pass

        def answer() -> tuple[int, object]:
            response = connection.getresponse()
            return response.status, json.loads(response.read())

        yield answer


def state_of(rest: int, model: str) -> str:
    state: str = fetch(f"http://localhost:{rest}/v1/models/{model}")[1]["model_version_status"][0]["state"]
    return state
