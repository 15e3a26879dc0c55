"""Which RPCs pass through Serve's gRPC proxies, how the proxies take them, and how a deployment answers them.

A proxy hands each call to the deployment method of the RPC's name. Knows no registry, and imports no TensorFlow: the
proxies and the ingress import this too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeAlias

from embedserve.errors import Code

__all__ = ["REPLICA_KEY", "SERVICES", "Metadata", "RpcAnswer", "RpcMethods", "add_services_to_server", "model_name"]

SERVICES: dict[str, tuple[str, ...]] = {
    "tensorflow.serving.PredictionService": ("Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata"),
    "tensorflow.serving.ModelService": ("GetModelStatus", "HandleReloadConfigRequest"),
    "tensorflow.serving.SessionService": ("SessionRun",),
}
"""Names of the RPCs by service; no name is in two services, as Serve routes by name alone."""

REPLICA_KEY = "embedserve-replica"
"""Response header and trailing metadata key that say which replica answered."""

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]


class RpcAnswer(NamedTuple):
    """How a call ended, as one deployment gives it to another.

    Attributes:
        code: A number of `Code`.
        message: What the client reads where the code is not OK.
        body: The response's bytes.
        replica: Which replica answered.
    """

    code: int
    message: str
    body: bytes
    replica: str


class _Serialized(NamedTuple):
    """A response that needs no message class; Serve asks for nothing else of one."""

    body: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self.body


class RpcMethods(ABC):
    """Gives a deployment class one method per RPC, named as Serve's proxies look for it."""

    @abstractmethod
    async def answer_rpc(self, path: str, body: bytes, metadata: Metadata) -> RpcAnswer:
        """Answer the call of `/package.Service/Method`."""


def _rpc(path: str) -> Callable[..., Awaitable[_Serialized]]:
    async def call(self: RpcMethods, request: Any, grpc_context: Any) -> _Serialized:
        # Messages come from the proxies that took the generated servicer functions, bytes from those that took ours.
        body = request if isinstance(request, bytes) else request.SerializeToString()
        answer = await self.answer_rpc(path, body, grpc_context.invocation_metadata())
        grpc_context.set_trailing_metadata([(REPLICA_KEY, answer.replica)])
        if answer.code != Code.OK:
            # Not raised: Serve would log the traceback of every client's mistake, in the replica and in the proxy.
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


def add_services_to_server(servicer: Any, server: Any) -> None:
    """Register the RPCs with one of Serve's proxies, as an entry of `grpc_servicer_functions`.

    In place of the generated functions (`prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server`...). They
    work too, but make every proxy import TensorFlow and parse every request before the replica does it again.
    """
    import grpc

    for service, names in SERVICES.items():
        handlers = {name: grpc.unary_unary_rpc_method_handler(getattr(servicer, name)) for name in names}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def model_name(path: str, body: bytes) -> str:
    """The model that a request asks for; empty where it names none or cannot be read.

    Only the way to the name is read: whichever RPC it is, that is field 1 of field 1 of the message, below the first
    task in a MultiInference. Parsing the message would copy its tensors.

    Args:
        path: `/package.Service/Method`.
        body: The request's bytes.
    """
    message = memoryview(body)
    try:
        for _ in range(3 if path.endswith("/MultiInference") else 2):
            message = _first_field(message)
    except IndexError:
        return ""
    return bytes(message).decode("utf-8", "replace")


def _first_field(message: memoryview) -> memoryview:
    """The contents of field 1, which is a message or a string; empty where it is not there.

    Raises:
        IndexError: The message ends inside a field, or has one of an unknown kind.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
            continue
        size, at = _varint(message, at) if kind == _LENGTH else (_FIXED_SIZES[kind], at)
        if at + size > len(message):
            raise IndexError(at + size)
        if tag == 1 << 3 | _LENGTH:
            return message[at : at + size]
        at += size
    return message[:0]


_VARINT, _LENGTH = 0, 2
_FIXED_SIZES = (0, 8, 0, 0, 0, 4)  # By wire type; groups, which proto3 lacks, are skipped field by field.


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
