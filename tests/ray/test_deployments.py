"""The ingress without a cluster: which deployment a request goes to, and what a lost one looks like to the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError
from tensorflow_serving.apis import predict_pb2

from embedserve.errors import Code
from embedserve.ray.deployments import IngressDeployment, build_rest_app
from embedserve.ray.replica import RestAnswer, RestRequest
from embedserve.ray.rpcs import RpcAnswer

PREDICT = "/tensorflow.serving.PredictionService/Predict"


class Remote:
    """A method of a deployment handle."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.remote = call


class Model:
    """A deployment handle whose replica says which model it is, and what came."""

    def __init__(self, name: str, ready: bool = True, error: Exception | None = None) -> None:
        self.name, self.ready, self.error = name, ready, error
        self.answer_rpc, self.answer_rest = Remote(self._rpc), Remote(self._rest)

    async def _rpc(self, path: str, body: bytes, metadata: Any) -> RpcAnswer:
        if self.error is not None:
            raise self.error
        return RpcAnswer(Code.OK, "", body, self.name)

    async def _rest(self, request: RestRequest) -> RestAnswer:
        if self.error is not None:
            raise self.error
        if request.target == "/-/ready":
            reason = "ready" if self.ready else "loading"
            return RestAnswer(200 if self.ready else 503, [], orjson.dumps({"models": {self.name: reason}}))
        said = f"{self.name} {request.method} {request.target} ".encode() + request.body
        return RestAnswer(200, [(b"content-length", b"%d" % len(said))], said)


def ingress(*models: Model, max_request_bytes: int = 1000) -> Any:
    return IngressDeployment({model.name: model for model in models}, None, max_request_bytes)


def predict(name: str) -> bytes:
    return bytes(predict_pb2.PredictRequest(model_spec={"name": name}).SerializeToString())


async def http(of: Any, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": []}
    await of.answer_http(scope, receive, send)
    start, end = sent
    assert dict(start["headers"])[b"content-length"] == b"%d" % len(end["body"])
    return start["status"], end["body"]


async def test_a_call_goes_to_the_model_it_names_and_otherwise_to_the_first() -> None:
    of = ingress(Model("a"), Model("b"))
    assert (await of.answer_rpc(PREDICT, predict("b"), [])).replica == "b"
    assert (await of.answer_rpc(PREDICT, predict("nope"), [])).replica == "a"
    assert (await of.answer_rpc(PREDICT, b"\xff", [])).replica == "a"


@pytest.mark.parametrize(
    ("method", "path", "model"),
    [
        ("POST", "/v1/models/b:predict", b"b"),
        ("POST", "/V1/Models/b/versions/3:predict", b"b"),
        ("GET", "/v1/models/b/labels/x/metadata", b"b"),
        ("GET", "/-/ready/b", b"b"),
        ("GET", "/v1/models/nope", b"a"),
        ("GET", "/v1/models", b"a"),
        ("GET", "/", b"a"),
    ],
)
async def test_a_rest_request_goes_to_the_model_it_names(method: str, path: str, model: bytes) -> None:
    status, said = await http(ingress(Model("a"), Model("b")), method, path, b"body")
    body = b"body" if method == "POST" else b""
    assert (status, said) == (200, b"%s %s %s %s" % (model, method.encode(), path.encode(), body))


@pytest.mark.parametrize("error", [ActorDiedError(), BackPressureError(num_queued_requests=1, max_queued_requests=1)])
async def test_a_deployment_that_cannot_answer_is_unavailable(error: Exception) -> None:
    of = ingress(Model("a", error=error))
    answer = await of.answer_rpc(PREDICT, predict("a"), [])
    assert (answer.code, type(error).__name__ in answer.message) == (Code.UNAVAILABLE, True)
    assert (await http(of, "POST", "/v1/models/a:predict", b"{}"))[0] == 503


async def test_a_request_over_the_bound_is_refused_before_it_is_passed_on() -> None:
    of = ingress(Model("a"), max_request_bytes=10)
    assert (await http(of, "POST", "/v1/models/a:predict", b"x" * 11))[0] == 429
    assert (await http(of, "POST", "/v1/models/a:predict", b"x" * 10))[0] == 200


async def test_the_ingress_is_ready_when_every_model_is() -> None:
    ready, loading, lost = Model("a"), Model("b", ready=False), Model("c", error=ActorDiedError())
    status, body = await http(ingress(ready), "GET", "/-/ready")
    assert (status, orjson.loads(body)) == (200, {"status": "ready", "models": {"a": "ready"}})
    status, body = await http(ingress(ready, loading, lost), "GET", "/-/ready")
    models = orjson.loads(body)["models"]
    assert status == 503
    assert (models["a"], models["b"]) == ("ready", "loading")
    assert "ActorDiedError" in models["c"]


async def test_the_application_that_serve_builds_has_a_lifespan_and_no_registry() -> None:
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> dict[str, str]:
        return events.pop(0)

    async def send(message: dict[str, str]) -> None:
        sent.append(message["type"])

    await build_rest_app()({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
