"""What the tests ask a cluster, over both protocols, and the load that they put on it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import grpc
from tensorflow_serving.apis import model_service_pb2_grpc, predict_pb2, prediction_service_pb2_grpc

from tests.support.programs import wait_until


class Said(NamedTuple):
    """An answer of the model that tells its version."""

    value: float
    replica: str


class Failed(Exception):
    """A request that was not answered as it should be."""


class Clients:
    """The official stubs on one channel, and REST, to one cluster."""

    def __init__(self, rest_port: int, grpc_port: int) -> None:
        self.rest_port = rest_port
        self.channel = grpc.insecure_channel(f"127.0.0.1:{grpc_port}")
        self.prediction = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.model = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def rest(self, path: str, body: Any = None, timeout: float = 60) -> tuple[int, dict[str, str], Any]:
        """Status, headers and body, parsed where it is JSON: Serve's own errors are not."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=timeout)
        try:
            connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            text = answer.read()
            return answer.status, headers, json.loads(text) if "json" in headers["content-type"] else text
        finally:
            connection.close()

    def over_rest(self, model: str = "line") -> Said:
        status, headers, body = self.rest(f"/v1/models/{model}:predict", {"instances": [[1.0]]})
        if status != 200:
            raise Failed(f"REST {status}: {body}")
        return Said(body["predictions"][0][0], headers["embedserve-replica"])

    def over_grpc(self, model: str = "line") -> Said:
        try:
            response, call = self.prediction.Predict.with_call(predict_request(model), timeout=60)
        except grpc.RpcError as error:
            call = error
            raise Failed(f"gRPC {call.code()}: {call.details()}") from None
        return Said(response.outputs["y"].float_val[0], dict(call.trailing_metadata())["embedserve-replica"])

    def replicas(self, count: int, model: str = "line") -> set[str]:
        """The replicas that answer, which are so many, over both protocols."""
        heard: tuple[set[str], set[str]] = (set(), set())

        def enough() -> bool:
            heard[0].add(self.over_rest(model).replica)
            heard[1].add(self.over_grpc(model).replica)
            return len(heard[0]) == len(heard[1]) == count

        wait_until(enough)
        assert heard[0] == heard[1]
        return heard[0]


def predict_request(model: str, x: float = 1.0, **spec: Any) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    for name, value in spec.items():
        setattr(request.model_spec, name, value)
    request.inputs["x"].dtype = 1
    request.inputs["x"].float_val.append(x)
    for _ in range(2):
        request.inputs["x"].tensor_shape.dim.add(size=1)
    return request


PAUSE = 0.1


class Load:
    """Callers that ask again and again, half of them over each protocol, while the context lasts.

    They pause between two requests: replicas that start need processors too.
    """

    def __init__(self, clients: Clients, callers: int = 6, model: str = "line") -> None:
        ways = [clients.over_rest, clients.over_grpc]
        self.said: list[list[Said]] = [[] for _ in range(callers)]
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._call, args=(ways[number % 2], model, said))
            for number, said in enumerate(self.said)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _call(self, ask: Callable[[str], Said], model: str, said: list[Said]) -> None:
        while not self._stop.wait(PAUSE):
            try:
                said.append(ask(model))
            except (Failed, OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))

    def go_on(self, more: int = 20) -> None:
        """Let each caller have so many more answers."""
        target = [len(said) + more for said in self.said]
        wait_until(lambda: all(len(said) >= want for said, want in zip(self.said, target, strict=True)))

    def answered_by(self) -> tuple[set[str], set[str]]:
        """Replicas heard so far over REST, and over gRPC."""
        heard = [{one.replica for said in self.said[way::2] for one in list(said)} for way in (0, 1)]
        return heard[0], heard[1]
