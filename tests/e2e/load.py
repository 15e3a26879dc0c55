"""Clients that ask again and again, and what they saw: failures, versions, older versions after newer ones."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

Ask = Callable[[], int]

# Seconds from an answer to the next request: the servers keep some of the processor, for what they do meanwhile.
_PAUSE = 0.01
_BODY = json.dumps({"instances": [1.0]})


class Seen:
    """What all clients together have seen.

    Attributes:
        failures: Requests without an answer.
        stale: Answers of an older version than one that somebody had in hand when the request was sent.
        versions: Versions in the order in which they first answered.
    """

    def __init__(self) -> None:
        self.answers = 0
        self.failures: list[str] = []
        self.stale: list[tuple[int, int]] = []
        self.versions: list[int] = []
        self.rising = True
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def floor(self) -> int:
        """Where the next request may not fall back to."""
        return self.versions[-1] if self.versions else 0

    def add(self, floor: int, version: int) -> None:
        """An answer to a request that was sent when `floor` had been seen."""
        with self._lock:
            self.answers += 1
            if version not in self.versions:
                self.versions.append(version)
            if floor and self.versions.index(version) < self.versions.index(floor):
                self.stale.append((floor, version))


def rest_client(port: int, model: str = "m") -> Iterator[Ask]:
    """Asks over one connection, which is opened anew when it was closed."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask() -> int:
        try:
            connection.request("POST", f"/v1/models/{model}:predict", _BODY)
            response = connection.getresponse()
            body = response.read()
        except BaseException:
            connection.close()
            raise
        assert response.status == 200, body
        return int(json.loads(body)["predictions"][0])

    with contextlib.closing(connection):
        yield ask


def grpc_client(port: int, model: str = "m") -> Iterator[Ask]:
    """Asks over one channel with a connection of its own."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    tensor = request.inputs["x"]
    tensor.dtype = 1
    for size in (1, 1):
        tensor.tensor_shape.dim.add(size=size)
    tensor.float_val.append(1.0)
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        predict = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict

        def ask() -> int:
            answer: Any = predict(request, timeout=60)
            version = int(answer.model_spec.version.value)
            assert list(answer.outputs["y"].float_val) == [float(version)]
            return version

        yield ask


def _refused(error: Exception) -> bool:
    """Whether nobody listens any more: the request was never sent."""
    if isinstance(error, grpc.RpcError):
        return "refused" in (error.details() or "")
    return isinstance(error, ConnectionRefusedError)


@contextlib.contextmanager
def load(rest: int, grpc_port: int, clients: int = 3) -> Iterator[Seen]:
    """So many REST and so many gRPC clients ask while the body runs."""
    seen = Seen()

    def work(make: Callable[[int], Iterator[Ask]], port: int) -> None:
        with contextlib.contextmanager(make)(port) as ask:
            while not seen.stop.wait(_PAUSE):
                floor = seen.floor()
                try:
                    seen.add(floor, ask())
                except Exception as error:
                    if _refused(error):
                        seen.stop.wait(0.05)
                    else:
                        seen.failures.append(f"{type(error).__name__}: {error}")

    threads = [
        threading.Thread(target=work, args=(make, port))
        for make, port in ((rest_client, rest), (grpc_client, grpc_port))
        for _ in range(clients)
    ]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        seen.stop.set()
        for thread in threads:
            thread.join(60)
