"""The classes of Serve's deployments: `ReplicaDeployment` around a `Replica`, and the ingress that picks a model.

Serve pickles the classes by name, and calls all methods of an instance on a single event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

import orjson

from embedserve.concurrency.inflight import InflightBytes, Reservation
from embedserve.errors import Code, ServingError
from embedserve.ray.replica import Replica, RestAnswer, RestRequest
from embedserve.ray.rpcs import Metadata, RpcAnswer, RpcMethods, model_name
from embedserve.ray.settings import ReplicaSettings

if TYPE_CHECKING:
    from embedserve.asgi.calls import Receive, Scope, Send

__all__ = ["IngressDeployment", "ReplicaDeployment", "build_rest_app"]

T = TypeVar("T")

_READY = RestRequest("GET", "/-/ready", [], b"")


class ReplicaDeployment(RpcMethods):
    """A replica with every given model; serves as the ingress, or behind the ingress.

    Args:
        settings: A `ReplicaSettings` as JSON.
    """

    def __init__(self, settings: str) -> None:
        from ray import get_runtime_context, serve

        name = serve.get_replica_context().replica_tag
        cpus = get_runtime_context().get_assigned_resources().get("CPU")
        self._replica = Replica(ReplicaSettings.model_validate_json(settings), name, cpus)

    async def reconfigure(self, user_config: Mapping[str, object] | None) -> None:
        """Apply `user_config`; Serve calls the method before the first request and after each change."""
        await self._replica.configure(user_config)

    async def check_health(self) -> None:
        """Raise if the replica is unhealthy; Serve replaces a replica after several errors."""
        self._replica.check_health()

    async def answer_rpc(self, path: str, body: bytes, metadata: Metadata) -> RpcAnswer:
        """Answer a gRPC call."""
        return await self._replica.answer_rpc(path, body, metadata)

    async def answer_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request from a proxy."""
        await self._replica.answer_http(scope, receive, send)

    async def answer_rest(self, request: RestRequest) -> RestAnswer:
        """Answer an HTTP request from the ingress."""
        return await self._replica.answer_rest(request)

    async def __del__(self) -> None:
        """Leave the registry; Serve calls the method after the last request in flight."""
        await self._replica.aclose()


class IngressDeployment(RpcMethods):
    """Passes each request on, in bytes, to the deployment of the requested model.

    A request for an unknown model goes to the first deployment, whose registry makes the error.

    Args:
        models: A deployment by model name.
        max_inflight_bytes, max_request_bytes: As in `RegistryOptions`.
    """

    def __init__(self, models: Mapping[str, Any], max_inflight_bytes: int | None, max_request_bytes: int) -> None:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        self._models = dict(models)
        self._first = next(iter(self._models.values()))
        self._inflight = InflightBytes(max_inflight_bytes, max_request_bytes)
        self._lost = (RayActorError, BackPressureError, DeploymentUnavailableError)

    async def answer_rpc(self, path: str, body: bytes, metadata: Metadata) -> RpcAnswer:
        """Answer a gRPC call."""
        model = self._models.get(model_name(path, body), self._first)
        try:
            with self._inflight.holding(len(body)):
                return await self._answer(model.answer_rpc.remote(path, body, list(metadata)))
        except ServingError as error:
            return RpcAnswer(error.code, error.message, b"", "")

    async def answer_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request from a proxy, as an ASGI application."""
        from embedserve.rest.errors import error_response

        try:
            with Reservation(self._inflight) as held:
                answer = await self._pass_on(scope, receive, held)
        except ServingError as error:
            response = error_response(error)
            headers = [*response.headers, (b"content-length", b"%d" % len(response.body))]
            answer = RestAnswer(response.status, headers, response.body)
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _pass_on(self, scope: Scope, receive: Receive, held: Reservation) -> RestAnswer:
        from embedserve.rest.body import read_body
        from embedserve.rest.target import path_of, raw_target

        target = raw_target(scope)
        if path_of(target) == _READY.target and scope["method"] == "GET":
            return await self._readiness()
        body = b""
        if scope["method"] == "POST":
            # Without headers, `read_body` does not decompress: the replica decompresses.
            body = await read_body(
                (), receive, held, check_size=self._inflight.check_request, run_in_thread=asyncio.to_thread
            )
        model = self._models.get(_named_in(path_of(target)), self._first)
        request = RestRequest(scope["method"], target, list(scope["headers"]), body)
        return await self._answer(model.answer_rest.remote(request))

    async def _readiness(self) -> RestAnswer:
        """Readiness of all models together; each deployment asks a single replica."""
        calls = (self._answer(model.answer_rest.remote(_READY)) for model in self._models.values())
        reasons: dict[str, str] = {}
        ready = True
        for name, answer in zip(self._models, await asyncio.gather(*calls, return_exceptions=True), strict=True):
            if isinstance(answer, RestAnswer):
                reasons |= orjson.loads(answer.body)["models"]
                ready = ready and answer.status == 200
            else:
                reasons[name], ready = str(answer), False
        body = orjson.dumps({"status": "ready" if ready else "not ready", "models": reasons})
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        return RestAnswer(200 if ready else 503, headers, body)

    async def _answer(self, response: Awaitable[T]) -> T:
        """Await a deployment's answer; a lost or missing replica is UNAVAILABLE, so clients may retry.

        Raises:
            ServingError: The replica died with the request, or no replica could take the request.
        """
        try:
            return await response
        except self._lost as error:
            raise ServingError(f"no replica answered: {type(error).__name__}", code=Code.UNAVAILABLE) from error


def _named_in(path: str) -> str:
    """The model in a REST path, or an empty string."""
    for prefix in ("/v1/models/", "/-/ready/"):
        if path[: len(prefix)].lower() == prefix:
            return unquote(path[len(prefix) :].partition("/")[0].partition(":")[0])
    return ""


def build_rest_app() -> Any:
    """Return the application for `serve.ingress`; each replica makes the application, so none is pickled."""
    return _rest


async def _rest(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "lifespan":
        from ray import serve

        deployment: Any = serve.get_replica_context().servable_object
        await deployment.answer_http(scope, receive, send)
        return
    for step in ("startup", "shutdown"):  # The registry's life is in `reconfigure` and `__del__`.
        await receive()
        await send({"type": f"lifespan.{step}.complete"})
