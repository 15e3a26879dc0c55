"""`inference.GRPCInferenceService`, the Open Inference Protocol over a registry.

Turns messages into calls on a model handle, and documents into messages. The registry and the handle decide, as for
TensorFlow Serving's services.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from time import perf_counter
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseDict

from embedserve.concurrency.off_loop import MESSAGE_BYTES, MESSAGE_COPY_BYTES
from embedserve.config import Clients
from embedserve.errors import RegistryStateError, ServingError, UnsupportedError
from embedserve.grpc.access import answering
from embedserve.grpc.calls import Context, Streaming, Unary, paths, priority_of, streaming, unary
from embedserve.grpc.errors import StatusError
from embedserve.grpc.services.infer_messages import InferMessage, RawRequests, message_of, response_of
from embedserve.oip import documents
from embedserve.oip.messages import SERVICE, message_class
from embedserve.oip.repository import Repository, check_parameters
from embedserve.oip.requests import classified, shorter
from embedserve.oip.statistics import statistics_of
from embedserve.request_log.records import predict_exchange
from embedserve.tensors import sizes
from embedserve.tensors.wire_format import delimited

if TYPE_CHECKING:
    from embedserve.handle import ModelHandle
    from embedserve.registry import ModelRegistry
    from embedserve.servable import Tensors

__all__ = ["DIRECT", "SERVICE", "methods"]

DIRECT = ("ModelInfer", "ServerLive", "ServerReady", "ModelReady")
"""The methods that many clients call often, and that ask nothing about the client."""

_REFUSED = {
    "SystemSharedMemoryStatus": "shared memory is",
    "SystemSharedMemoryRegister": "shared memory is",
    "SystemSharedMemoryUnregister": "shared memory is",
    "CudaSharedMemoryStatus": "shared memory is",
    "CudaSharedMemoryRegister": "shared memory is",
    "CudaSharedMemoryUnregister": "shared memory is",
    "TraceSetting": "trace settings are",
    "LogSettings": "log settings are",
}


def methods(
    registry: ModelRegistry, *, repository: Repository | None = None, changed_by: Clients = "local"
) -> dict[str, Unary | Streaming]:
    """The service's methods.

    Args:
        registry: The registry of the models.
        repository: Loads and unloads models; `registry.unpin` and `registry.pin` by default.
        changed_by: The clients that may load and unload models.
    """
    service = _Service(registry, repository or Repository(registry))
    infer = unary(
        registry,
        message_class("ModelInferRequest"),
        service.infer,
        observed_as="ModelInfer",
        templates=RawRequests(),
        model_name=attrgetter("model_name"),
    )
    plain: dict[str, Callable[[Any], Awaitable[Any]]] = {
        "ServerLive": service.server_live,
        "ServerReady": service.server_ready,
        "ModelReady": service.model_ready,
        "ServerMetadata": service.server_metadata,
        "ModelMetadata": service.model_metadata,
        "ModelConfig": service.model_config,
        "ModelStatistics": service.model_statistics,
        "RepositoryIndex": service.index,
    }
    changes = {"RepositoryModelLoad": service.load, "RepositoryModelUnload": service.unload}
    return {
        **paths(SERVICE, {name: _documented(registry, name, call) for name, call in plain.items()}),
        **paths(SERVICE, {"ModelInfer": infer}),
        **paths(SERVICE, {"ModelStreamInfer": streaming(partial(_stream, infer))}),
        **answering(
            changed_by,
            "the change of models",
            "reload_clients",
            paths(SERVICE, {name: _documented(registry, name, call) for name, call in changes.items()}),
        ),
        **paths(SERVICE, {name: _refusal(what) for name, what in _REFUSED.items()}),
    }


def _documented(registry: ModelRegistry, name: str, call: Callable[[Any], Awaitable[Any]]) -> Unary:
    """A method whose answer is a document."""
    response = message_class(f"{name}Response")

    async def handler(request: Any, context: Context, large: bool) -> bytes:
        data: bytes = ParseDict(await call(request), response()).SerializeToString()
        return data

    return unary(registry, message_class(f"{name}Request"), handler)


def _refusal(what: str) -> Unary:
    async def answer(body: bytes, context: Context) -> bytes:
        refused = UnsupportedError(f"{what} not supported; docs/compatibility.md lists what is")
        raise StatusError(refused.code, refused.message)

    return Unary(answer)


async def _stream(infer: Unary, requests: AsyncIterator[bytes], context: Context) -> AsyncGenerator[bytes, None]:
    """One answer for each request, in order; an error of a request ends no stream."""
    async for body in requests:
        try:
            yield delimited(2, await infer.answer(body, context))
        except StatusError as error:
            failed: Any = message_class("ModelStreamInferResponse")(error_message=error.message)
            found = _id_of(body)
            if found:
                failed.infer_response.id = found
            yield failed.SerializeToString()


def _id_of(body: bytes) -> str:
    """The id of a request that failed, for clients with several requests under way; empty if unreadable."""
    try:
        found = RawRequests().find(body)
        if found is not None:
            return found.request.id
        message: Any = message_class("ModelInferRequest").FromString(body)
    except Exception:
        return ""
    return str(message.id)


@dataclass(frozen=True)
class _Service:
    """The calls of the service over a registry."""

    registry: ModelRegistry
    repository: Repository

    async def infer(self, request: Any, context: Context, large: bool) -> bytes:
        registry = self.registry
        counted = statistics_of(registry)
        began = perf_counter()
        message = request if type(request) is InferMessage else message_of(request)
        asked = message.request
        with documents.acquire(registry, message.model_name, message.model_version) as handle:
            signature = handle.signature(asked.signature_name)
            if registry.options.enable_signature_method_name_check:
                signature.check_predict_method()
            made = message.declare(signature)
            if made:
                context.held.grow(made, "the inputs")
            slow = made > MESSAGE_BYTES or (large and not message.is_raw)
            inputs = await registry.run_in_thread(message.decode) if slow else message.decode()
            bound = signature.bind(inputs, cast=False)
            names = signature.pick(asked.output_names) if asked.outputs else None
            timeout = shorter(context.time_remaining(), asked.timeout)
            priority = asked.priority or priority_of(context)
            read = perf_counter()
            outputs = await handle.run(signature, bound, names, timeout, priority)
            ran = perf_counter()
            context.held.add(2 * sum([sizes.array_bytes(array) for array in outputs.values()]), "the answer")
            answer = await self._answer(handle, message, outputs)
            log = handle.request_log()
            if log is not None:
                log.add(predict_exchange(handle.name, handle.version, signature, bound, outputs))
            counted.translated(handle.name, handle.version, read - began, perf_counter() - ran)
            return answer

    async def _answer(self, handle: ModelHandle, message: InferMessage, outputs: Tensors) -> bytes:
        asked = message.request
        as_raw = message.is_raw if asked.binary is None else asked.binary

        def encode() -> bytes:
            return response_of(handle.name, handle.version, asked, classified(outputs, asked.outputs), as_raw)

        slow = any(output.classes for output in asked.outputs) or not as_raw
        bound = MESSAGE_BYTES if slow else MESSAGE_COPY_BYTES
        size = sum([sizes.array_bytes(array) for array in outputs.values()])
        return await self.registry.run_in_thread(encode) if size > bound else encode()

    async def server_live(self, request: Any) -> Mapping[str, Any]:
        return {"live": self.registry.liveness() is None}

    async def server_ready(self, request: Any) -> Mapping[str, Any]:
        try:
            documents.check_server_ready(self.registry)
        except RegistryStateError:
            return {"ready": False}
        return {"ready": True}

    async def model_ready(self, request: Any) -> Mapping[str, Any]:
        try:
            documents.check_model_ready(self.registry, request.name, request.version)
        except ServingError:
            return {"ready": False}
        return {"ready": True}

    async def server_metadata(self, request: Any) -> Mapping[str, Any]:
        return documents.server_metadata()

    async def model_metadata(self, request: Any) -> Mapping[str, Any]:
        with documents.acquire(self.registry, request.name, request.version) as handle:
            return documents.model_metadata(self.registry, handle, handle.signature())

    async def model_config(self, request: Any) -> Mapping[str, Any]:
        with documents.acquire(self.registry, request.name, request.version) as handle:
            return {"config": documents.model_config(handle, handle.signature())}

    async def model_statistics(self, request: Any) -> Mapping[str, Any]:
        counted = statistics_of(self.registry)
        return documents.model_statistics(self.registry, counted, request.name, request.version)

    async def index(self, request: Any) -> Mapping[str, Any]:
        return {"models": documents.index_entries(self.registry, request.ready)}

    async def load(self, request: Any) -> Mapping[str, Any]:
        check_parameters(request.parameters)
        await self.repository.load(request.model_name)
        return {}

    async def unload(self, request: Any) -> Mapping[str, Any]:
        await self.repository.unload(request.model_name)
        return {}
