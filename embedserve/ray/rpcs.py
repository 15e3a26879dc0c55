"""The RPCs through Serve's gRPC proxies: registration in a proxy, and methods of a deployment.

A proxy passes each call to the deployment method with the RPC's name. The module knows no registry. Proxies and ingress
import the module too, so no TensorFlow is imported.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from embedserve.errors import Code
from embedserve.tensors.wire_format import LENGTH_DELIMITED, fields

__all__ = ["REPLICA_KEY", "SERVICES", "Metadata", "RpcAnswer", "RpcMethods", "add_services_to_server", "model_name"]

SERVICES: dict[str, tuple[str, ...]] = {
    "tensorflow.serving.PredictionService": ("Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata"),
    "tensorflow.serving.ModelService": ("GetModelStatus", "HandleReloadConfigRequest"),
    "tensorflow.serving.SessionService": ("SessionRun",),
}
"""Names of the RPCs by service; each name is unique, because Serve routes by name alone."""

REPLICA_KEY = "embedserve-replica"
"""Key of the answering replica's name, in response headers and trailing metadata."""

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]


class RpcAnswer(NamedTuple):
    """The end of a call, as passed between deployments.

    Attributes:
        code: A number of `Code`.
        message: The error message for the client; empty for OK.
        body: The response's bytes.
        replica: The answering replica's name.
    """

    code: int
    message: str
    body: bytes
    replica: str


class _Serialized(NamedTuple):
    """A response without a message class; Serve calls only `SerializeToString`."""

    body: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self.body


class RpcMethods(ABC):
    """Gives a deployment class a method per RPC, under the name called by Serve's proxies."""

    @abstractmethod
    async def answer_rpc(self, path: str, body: bytes, metadata: Metadata) -> RpcAnswer:
        """Answer the call of `/package.Service/Method`."""


def _rpc(path: str) -> Callable[..., Awaitable[_Serialized]]:
    async def call(self: RpcMethods, request: Any, grpc_context: Any) -> _Serialized:
        # Proxies with the generated servicer functions send messages; proxies with `add_services_to_server` send bytes.
        body = request if isinstance(request, bytes) else request.SerializeToString()
        answer = await self.answer_rpc(path, body, grpc_context.invocation_metadata())
        grpc_context.set_trailing_metadata([(REPLICA_KEY, answer.replica)])
        if answer.code != Code.OK:
            # The error is not raised: Serve would log a traceback for every client error, in the replica and in the
            # proxy.
            grpc_context.set_code(_status_codes()[answer.code])
            grpc_context.set_details(answer.message)
        return _Serialized(answer.body)

    call.__name__ = path.rpartition("/")[2]
    return call


for _service, _names in SERVICES.items():
    for _name in _names:
        setattr(RpcMethods, _name, _rpc(f"/{_service}/{_name}"))


@cache
def _status_codes() -> dict[int, Any]:
    import grpc

    return {status.value[0]: status for status in grpc.StatusCode}


def add_services_to_server(servicer: object, server: Any) -> None:
    """Register the RPCs in a proxy of Serve, as an entry of `grpc_servicer_functions`.

    The function replaces the generated functions (`prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server`
    and further). The generated functions work too, but make every proxy import TensorFlow and parse every request,
    before the replica parses the request again.
    """
    import grpc

    for service, names in SERVICES.items():
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in names
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def model_name(path: str, body: bytes) -> str:
    """The model named in a request; empty for an unnamed model or unreadable bytes.

    Only the path to the name is parsed: in every RPC, field 1 of field 1 of the message; in a MultiInference, below the
    first task. Parsing the whole message would copy the tensors.

    Args:
        path: `/package.Service/Method`.
        body: The request's bytes.
    """
    message = memoryview(body)
    try:
        for _ in range(3 if path.endswith("/MultiInference") else 2):
            message = _first_field(message)
    except (IndexError, ValueError):
        return ""
    return bytes(message).decode("utf-8", "replace")


def _first_field(message: memoryview) -> memoryview:
    """The contents of field 1, a message or a string; empty if absent.

    Raises:
        ValueError, IndexError: The message ends inside a field, or has a field of unknown kind.
    """
    for number, kind, start, end in fields(message, 0, len(message)):
        if (number, kind) == (1, LENGTH_DELIMITED):
            return message[start:end]
    return message[:0]
