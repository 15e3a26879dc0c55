"""`tensorflow.serving.SessionService`: SessionRun on versions that run in a graph session.

TensorFlow Serving defines the service and links no implementation of it. Knows nothing of graphs: the servable's
`run_graph` does; a version without one answers UNIMPLEMENTED.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from tensorflow_serving.apis import session_service_pb2

from embedserve.errors import InvalidInputError, UnsupportedError
from embedserve.grpc.calls import acquire, unary
from embedserve.servable import Array
from embedserve.signature import DEFAULT_SIGNATURE
from embedserve.tensors import dtypes, proto

if TYPE_CHECKING:
    from embedserve.handle import ModelHandle
    from embedserve.registry import ModelRegistry

__all__ = ["SERVICE", "handlers"]

SERVICE = session_service_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name


def handlers(registry: ModelRegistry, *, tensor_content: bool = False) -> grpc.GenericRpcHandler:
    """The service's handlers; `tensor_content` as for Predict."""
    # A graph run cannot be cancelled: one at a time, so that it cannot take every codec thread from other requests.
    turn = asyncio.Semaphore(1)
    run = partial(_session_run, registry, turn, tensor_content)
    return grpc.method_handlers_generic_handler(
        SERVICE, {"SessionRun": unary(registry, session_service_pb2.SessionRunRequest, run)}
    )


async def _session_run(
    registry: ModelRegistry, turn: asyncio.Semaphore, tensor_content: bool, request: Any, context: Any, large: bool
) -> bytes:
    handle = acquire(registry, request)
    try:
        run_graph = getattr(handle.servable, "run_graph", None)
        if run_graph is None:
            raise UnsupportedError(
                "SessionRun needs a model that runs in a graph session; "
                f"version {handle.version} of {handle.name} runs as {handle.servable.kind!r}: "
                'set servable="session" for this model'
            )
        await turn.acquire()
    except BaseException:
        handle.release()
        raise

    def finished(work: asyncio.Future[bytes]) -> None:
        handle.release()
        turn.release()
        if not work.cancelled():
            work.exception()  # Seen, also where nobody waits any more.

    # The thread goes on when the client has gone, and needs its version until it ends.
    work = asyncio.ensure_future(registry.run_in_thread(partial(_run, handle, run_graph, request, tensor_content)))
    work.add_done_callback(finished)
    return await asyncio.shield(work)


def _run(handle: ModelHandle, run_graph: Callable[..., list[Array]], request: Any, tensor_content: bool) -> bytes:
    fetches = list(request.fetch)
    feeds, tensors = _decode(request), fetches
    if request.tensor_name_is_alias:
        feeds, tensors = _resolve(handle, request.model_spec.signature_name, feeds, fetches)
    return _response(handle, fetches, run_graph(feeds, tensors, list(request.target)), tensor_content)


def _decode(request: Any) -> dict[str, Array]:
    feeds: dict[str, Array] = {}
    for feed in request.feed:
        if feed.name in feeds:
            raise InvalidInputError(f"duplicate feed: {feed.name}")
        feeds[feed.name] = proto.decode(feed.tensor, feed.name)
    return feeds


def _resolve(
    handle: ModelHandle, signature_name: str, feeds: dict[str, Array], fetches: list[str]
) -> tuple[dict[str, Array], list[str]]:
    """Replace the signature's aliases by the names of its tensors."""
    signature = handle.signature(signature_name or DEFAULT_SIGNATURE)

    def tensor_name(specs: Any, alias: str) -> str:
        spec = specs.get(alias)
        if spec is None:
            raise InvalidInputError(
                f"alias {alias!r} not found in signature {signature.name!r}, "
                f"which has {', '.join(sorted(specs)) or 'none'}"
            )
        return str(spec.tensor_name)

    return (
        {tensor_name(signature.inputs, alias): array for alias, array in feeds.items()},
        [tensor_name(signature.outputs, alias) for alias in fetches],
    )


def _response(handle: ModelHandle, fetches: list[str], arrays: list[Array], tensor_content: bool) -> bytes:
    response = session_service_pb2.SessionRunResponse()
    response.model_spec.name = handle.name
    response.model_spec.version.value = handle.version
    for name, array in zip(fetches, arrays, strict=True):
        added = response.tensor.add(name=name)
        proto.encode_into(added.tensor, array, dtypes.by_numpy(array.dtype), as_content=tensor_content)
    data: bytes = response.SerializeToString()
    return data
