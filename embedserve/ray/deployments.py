"""The classes that Serve makes replicas of: one around a `Replica`, and one that finds the right model's.

Made into deployments by `application`. Serve pickles them by name and calls every method of one on one event loop.
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
    """A replica that holds every model given to it; the ingress itself, or behind one.

    Args:
        settings: A `ReplicaSettings` as JSON.
    """

    def __init__(self, settings: str) -> None:
        from ray import get_runtime_context, serve

        name = serve.get_replica_context().replica_tag
        cpus = get_runtime_context().get_assigned_resources().get("CPU")
        self._replica = Replica(ReplicaSettings.model_validate_json(settings), name, cpus)

    async def reconfigure(self, user_config: Mapping[str, Any] | None) -> None:
        """Serve calls this before the first request, and when `user_config` has changed."""
        await self._replica.configure(user_config)

    async def check_health(self) -> None:
        """Serve replaces a replica for which this raises several times."""
        self._replica.check_health()

    async def answer_rpc(self, path: str, body: bytes, metadata: Metadata) -> RpcAnswer:
        """Answer one gRPC call."""
        return await self._replica.answer_rpc(path, body, metadata)

    async def answer_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request from a proxy."""
        await self._replica.answer_http(scope, receive, send)

    async def answer_rest(self, request: RestRequest) -> RestAnswer:
        """Answer one HTTP request from the ingress."""
        return await self._replica.answer_rest(request)

    async def __del__(self) -> None:
        """Serve calls this once no request is in flight any more."""
        await self._replica.aclose()


class IngressDeployment(RpcMethods):
    """Passes each request on, in bytes, to the deployment of the model that it names.

    A request that names none of them goes to the first, whose registry knows what to say.

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
        """Answer one gRPC call."""
        model = self._models.get(model_name(path, body), self._first)
        try:
            with self._inflight.holding(len(body)):
                return await self._answer(model.answer_rpc.remote(path, body, list(metadata)))
        except ServingError as error:
            return RpcAnswer(error.code, error.message, b"", "")

    async def answer_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request from a proxy, as an ASGI application."""
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
            # Without headers it is not decompressed here: the replica does that.
            body = await read_body(
                (), receive, held, check_size=self._inflight.check_request, run_in_thread=asyncio.to_thread
            )
        model = self._models.get(_named_in(path_of(target)), self._first)
        request = RestRequest(scope["method"], target, list(scope["headers"]), body)
        return await self._answer(model.answer_rest.remote(request))

    async def _readiness(self) -> RestAnswer:
        """Of all models together, each asked at one replica of its own."""
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
        """Await a deployment; one that cannot answer is UNAVAILABLE, which tells clients that they may try again.

        Raises:
            ServingError: The replica died with the request in its hands, or there is none that could take it.
        """
        try:
            return await response
        except self._lost as error:
            raise ServingError(f"no replica answered: {type(error).__name__}", code=Code.UNAVAILABLE) from error


def _named_in(path: str) -> str:
    """The model that a REST path is about, or an empty string."""
    for prefix in ("/v1/models/", "/-/ready/"):
        if path[: len(prefix)].lower() == prefix:
            return unquote(path[len(prefix) :].partition("/")[0].partition(":")[0])
    return ""


def build_rest_app() -> Any:
    """What `serve.ingress` takes: called in each replica, so that no application is ever pickled."""
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
