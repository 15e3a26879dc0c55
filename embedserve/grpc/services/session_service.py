"""`tensorflow.serving.SessionService`: SessionRun on versions that run in a graph session.

TensorFlow Serving defines the service and links no implementation. The module turns messages into
`ModelHandle.run_graph` and back; a version without a graph session answers UNIMPLEMENTED.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from tensorflow_serving.apis import session_service_pb2

from embedserve.concurrency.off_loop import MESSAGE_BYTES
from embedserve.errors import InvalidInputError
from embedserve.grpc.calls import Log, Unary, acquire, paths, priority_of, unary
from embedserve.servable import Array
from embedserve.signature import DEFAULT_SIGNATURE, TensorSpec
from embedserve.tensors import dtypes, proto, sizes

if TYPE_CHECKING:
    from tensorflow.core.framework.tensor_pb2 import TensorProto
    from tensorflow_serving.apis.session_service_pb2 import SessionRunRequest

    from embedserve.concurrency.inflight import Reservation
    from embedserve.grpc.calls import Context
    from embedserve.handle import ModelHandle
    from embedserve.registry import ModelRegistry

__all__ = ["SERVICE", "methods"]

SERVICE = session_service_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name


def methods(registry: ModelRegistry, *, tensor_content: bool = False) -> dict[str, Unary]:
    """The service's methods; `tensor_content` as for Predict."""
    run = partial(_session_run, registry, tensor_content)
    return paths(
        SERVICE,
        {"SessionRun": unary(registry, session_service_pb2.SessionRunRequest, run, logged_as="session_run_log")},
    )


async def _session_run(
    registry: ModelRegistry, tensor_content: bool, request: SessionRunRequest, context: Context, large: bool, log: Log
) -> bytes:
    with acquire(registry, request) as handle:
        priority = priority_of(context)
        named, tensors = _names(handle, request)
        declared = {name: proto.declared(tensor, name) for name, tensor in named.items()}
        fits = partial(
            handle.check_graph,
            {name: (feed.dtype.numpy, feed.shape) for name, feed in declared.items()},
            tensors,
            tuple(request.target),
        )
        await registry.run_in_thread(fits)
        _reserve_feeds(context.held, named, declared)
        feeds = await registry.run_in_thread(_decode, named)
        arrays = await handle.run_graph(
            feeds,
            tensors,
            tuple(request.target),
            timeout=_timeout(request, context),
            priority=priority,
        )
        # The arrays, and the message and its bytes.
        context.held.add(3 * sum([sizes.array_bytes(array) for array in arrays]), "the answer")
        encode = partial(_response, handle, request.fetch, arrays, tensor_content)
        large = sum(array.nbytes for array in arrays) > MESSAGE_BYTES
        answer = await registry.run_in_thread(encode) if large else encode()
        return log(handle, request.model_spec.signature_name, answer)


def _timeout(request: SessionRunRequest, context: Context) -> float | None:
    """Seconds until the client's deadline, or fewer by the request's `RunOptions`; None without either."""
    limits = [context.time_remaining(), max(request.options.timeout_in_ms, 0) / 1000 or None]
    return min((limit for limit in limits if limit is not None), default=None)


def _names(handle: ModelHandle, request: SessionRunRequest) -> tuple[dict[str, TensorProto], list[str]]:
    """Feeds as messages by tensor name, and the names of the fetches."""
    feeds: dict[str, TensorProto] = {}
    for feed in request.feed:
        if feed.name in feeds:
            raise InvalidInputError(f"duplicate feed: {feed.name}")
        feeds[feed.name] = feed.tensor
    if request.tensor_name_is_alias:
        return _resolve(handle, request.model_spec.signature_name, feeds, list(request.fetch))
    return feeds, list(request.fetch)


def _reserve_feeds(held: Reservation, feeds: Mapping[str, TensorProto], declared: Mapping[str, proto.Declared]) -> None:
    """Reserve the memory of feeds beyond their bytes on the wire."""
    for name, tensor in feeds.items():
        # A copy of each feed keeps the graph from changing the request.
        held.grow(max(2 * declared[name].size - tensor.ByteSize(), 0), f"feed {name!r}, {declared[name]}")


def _decode(feeds: Mapping[str, TensorProto]) -> dict[str, Array]:
    return {name: proto.decode(tensor, name) for name, tensor in feeds.items()}


def _resolve(
    handle: ModelHandle, signature_name: str, feeds: dict[str, TensorProto], fetches: list[str]
) -> tuple[dict[str, TensorProto], list[str]]:
    """Replace the signature's aliases by the names of its tensors."""
    signature = handle.signature(signature_name or DEFAULT_SIGNATURE)

    def tensor_name(specs: Mapping[str, TensorSpec], alias: str) -> str:
        spec = specs.get(alias)
        if spec is None:
            raise InvalidInputError(
                f"alias {alias!r} not found in signature {signature.name!r}, "
                f"which has {', '.join(sorted(specs)) or 'none'}"
            )
        return str(spec.tensor_name)

    return (
        {tensor_name(signature.inputs, alias): tensor for alias, tensor in feeds.items()},
        [tensor_name(signature.outputs, alias) for alias in fetches],
    )


def _response(handle: ModelHandle, fetches: Sequence[str], arrays: list[Array], tensor_content: bool) -> bytes:
    response = session_service_pb2.SessionRunResponse()
    response.model_spec.name = handle.name
    response.model_spec.version.value = handle.version
    for name, array in zip(fetches, arrays, strict=True):
        added = response.tensor.add(name=name)
        proto.encode_into(added.tensor, array, dtypes.by_numpy(array.dtype), as_content=tensor_content)
    data: bytes = response.SerializeToString()
    return data
