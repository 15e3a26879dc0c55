"""One unary call from request bytes to response bytes: limits, parsing, the handler, and the status of a failure.

Every service makes its method handlers here. grpc gets raw bytes both ways, so that large messages can be parsed and
built in a thread. Knows no service.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from embedserve.errors import Code, InvalidInputError, InvalidModelSpecError
from embedserve.grpc.errors import STATUS_CODES, status_of
from embedserve.request_log.records import Exchange, Kind

if TYPE_CHECKING:
    from embedserve.handle import ModelHandle
    from embedserve.registry import ModelRegistry

__all__ = ["LARGE", "Handler", "Log", "acquire", "parse", "unary"]

LARGE = 256 * 1024
"""Bytes from which parsing and building a message leave the event loop."""

Handler: TypeAlias = Callable[..., Awaitable[bytes]]
"""Takes the request message, the `grpc.aio.ServicerContext` and whether the request is large; gives response bytes.

One that `unary` makes `logged_as` something takes a `Log` besides.
"""

Log: TypeAlias = "Callable[[ModelHandle, str, bytes], bytes]"
"""Takes handle, signature name and response bytes of a request that was answered; gives the response bytes back."""


def unary(
    registry: ModelRegistry,
    request_type: Any,
    handler: Handler,
    *,
    observed_as: str | None = None,
    logged_as: Kind | None = None,
) -> grpc.RpcMethodHandler:
    """Make the method handler of one unary RPC.

    Args:
        registry: Whose limits and observers count.
        request_type: Message class of the request.
        handler: Answers one parsed request.
        observed_as: API name under which observers hear of each call; None for calls that are not counted.
        logged_as: What a request log calls such an exchange; None for calls that are not logged.
    """

    async def call(body: bytes, context: Any) -> bytes:
        started = time.perf_counter()
        code, message = Code.CANCELLED, ""
        request: Any = None
        size = len(body)
        try:
            registry.inflight.reserve(size)
            try:
                large = size > LARGE
                request = (
                    await registry.run_in_thread(parse, request_type, body) if large else parse(request_type, body)
                )
                if logged_as is None:
                    response = await handler(request, context, large)
                else:
                    response = await handler(request, context, large, partial(_log, logged_as, body))
            finally:
                registry.inflight.release(size)
            code = Code.OK
            return response
        except Exception as error:
            code, message = status_of(error)
        finally:
            if observed_as is not None and request is not None and registry.observers:
                registry.observers.request_finished(
                    request.model_spec.name, observed_as, "GRPC", code, time.perf_counter() - started
                )
        await context.abort(STATUS_CODES[code], message)
        raise AssertionError("abort always raises")

    return grpc.unary_unary_rpc_method_handler(call)


def _log(kind: Kind, request: bytes, handle: ModelHandle, signature_name: str, response: bytes) -> bytes:
    log = handle.request_log()
    if log is not None:
        size = len(request) + len(response)
        log.add(Exchange(kind, handle.name, handle.version, signature_name, request, response, size))
    return response


def parse(request_type: Any, body: bytes) -> Any:
    """The message in `body`.

    Raises:
        InvalidInputError: There is none.
    """
    try:
        return request_type.FromString(body)
    except DecodeError:
        raise InvalidInputError(f"the request is not a {request_type.DESCRIPTOR.full_name} message") from None


def acquire(registry: ModelRegistry, request: Any) -> ModelHandle:
    """Resolve `request.model_spec` to a counted handle, a context manager (TF Serving: server_core.cc).

    Raises:
        InvalidModelSpecError: No model spec, no name, or an unknown label.
        ServableNotFoundError: No available version answers it.
    """
    if not request.HasField("model_spec"):
        raise InvalidModelSpecError("Missing ModelSpec")
    return acquire_spec(registry, request.model_spec)


def acquire_spec(registry: ModelRegistry, spec: Any) -> ModelHandle:
    """As `acquire`, for a bare `ModelSpec`."""
    choice = spec.WhichOneof("version_choice")
    if choice is None:
        return registry.acquire_now(spec.name)
    if choice == "version":
        return registry.acquire_now(spec.name, version=spec.version.value)
    return registry.acquire_now(spec.name, label=spec.version_label)
