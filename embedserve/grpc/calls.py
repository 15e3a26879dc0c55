"""An RPC from request bytes to response bytes, on any transport: limits, parsing, the handler, the status.

Transports hand raw bytes both ways, so that a thread can parse and build large messages. The module knows no service
and no transport.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from embedserve.call_record import MAX_TARGET, TIMING_KEY, CallHeaders, CallRecord, current_call
from embedserve.concurrency.off_loop import MESSAGE_BYTES
from embedserve.errors import Code, InvalidInputError, InvalidModelSpecError, UnsupportedError
from embedserve.grpc.errors import StatusError, status_of
from embedserve.grpc.message_size import parsed_bytes
from embedserve.priority import PRIORITY_KEY, PriorityName, sent_priority
from embedserve.request_log.records import Exchange, Kind

if TYPE_CHECKING:
    from tensorflow_serving.apis.model_pb2 import ModelSpec

    from embedserve.concurrency.inflight import Reservation
    from embedserve.grpc.known_predict import KnownPredicts
    from embedserve.handle import ModelHandle
    from embedserve.registry import ModelRegistry

__all__ = [
    "Context",
    "Handler",
    "KnownRequests",
    "Log",
    "Methods",
    "Streaming",
    "Unary",
    "acquire",
    "one_of",
    "parse",
    "paths",
    "priority_of",
    "streaming",
    "unary",
]


class KnownRequests(Protocol):
    """Reads some requests without protobuf; `find` gives None for the others."""

    def find(self, body: bytes) -> Any | None:
        """The request in place of a message, or None."""

    def learn(self, body: bytes, request: Any) -> None:
        """Take note of a parsed and answered request."""


class Context(Protocol):
    """The transport's side of a call."""

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline, or None without one."""

    def metadata_value(self, key: str) -> str | bytes | None:
        """The client's metadata under a key in lower case; the first value of several."""

    @property
    def path(self) -> str:
        """The path of the method."""

    @property
    def peer(self) -> str:
        """The address at the other end of the connection; empty where there is none."""

    def headers(self) -> CallHeaders:
        """All of the client's metadata, as headers."""

    def add_trailing(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        """Add metadata to the end of the answer, whatever the status."""

    def is_local(self) -> bool:
        """Whether the client is known to be on the same machine: at a loopback address or behind a Unix socket."""

    @property
    def held(self) -> Reservation:
        """The bytes that the call holds; the transport releases the bytes after sending the answer."""


@dataclass(frozen=True, slots=True)
class Unary:
    """A method with one request message and one response message.

    Attributes:
        answer: Takes request bytes and context, and gives response bytes. `context.held` then holds the response.
        known: Answers requests of known templates without a coroutine; None for a method without templates.

    Raises:
        StatusError: From `answer`, in place of any error.
    """

    answer: Callable[[bytes, Context], Awaitable[bytes]]
    known: KnownPredicts | None = None


@dataclass(frozen=True, slots=True)
class Streaming:
    """A method with any number of messages either way.

    Attributes:
        stream: Takes the requests' bytes and the context, yields responses' bytes.

    Raises:
        StatusError: From `stream`, in place of any error.
    """

    stream: Callable[[AsyncIterator[bytes], Context], AsyncGenerator[bytes, None]]


Methods: TypeAlias = Mapping[str, Unary | Streaming]
"""Methods by path, `/package.Service/Method`."""

Method = TypeVar("Method", Unary, Streaming, "Unary | Streaming")
M = TypeVar("M", bound=Message)


class ForModel(Protocol):
    """A message that names its model."""

    @property
    def model_spec(self) -> ModelSpec: ...
    def HasField(self, field_name: str, /) -> bool: ...  # noqa: N802


Handler: TypeAlias = Callable[..., Awaitable[bytes]]
"""Takes the request message, the `Context` and whether the request is large; gives response bytes.

A handler of a method with `logged_as` also takes a `Log`.
"""

Log: TypeAlias = "Callable[[ModelHandle, str, bytes], bytes]"
"""Takes handle, signature name and response bytes of an answered request; gives the response bytes back."""


def unary(
    registry: ModelRegistry,
    request_type: type[Message],
    handler: Handler,
    *,
    observed_as: str | None = None,
    logged_as: Kind | None = None,
    templates: KnownRequests | None = None,
    model_name: Callable[[Any], str] = attrgetter("model_spec.name"),
    known: KnownPredicts | None = None,
) -> Unary:
    """Make a unary method.

    Args:
        registry: The registry whose limits and observers count.
        request_type: Message class of the request.
        handler: Answers a parsed request.
        observed_as: API name of each call for the observers; None leaves the calls uncounted.
        logged_as: Kind of the exchange in a request log; None leaves the calls unlogged.
        templates: Reads known requests; the handler takes what `find` gives in place of a message.
        model_name: Takes a request, and gives the name of the model for the observers.
        known: As for `Unary`, with the same templates.
    """

    async def recorded(record: CallRecord, body: bytes, context: Context) -> bytes:
        record.target, record.api = context.path[:MAX_TARGET], observed_as or context.path.rpartition("/")[2]
        record.received = len(body)
        try:
            with registry.observers.recorded(record):
                try:
                    response = await plain(body, context)
                except StatusError as error:
                    record.code = error.code
                    raise
                record.sent = len(response)
        finally:
            context.add_trailing(record.answer_headers())
        return response

    def answer(body: bytes, context: Context) -> Awaitable[bytes]:
        observers = registry.observers
        if observers.may_record or context.metadata_value(TIMING_KEY) is not None:
            record = observers.begin_call("GRPC", context.headers(), context.peer)
            if record is not None:
                return recorded(record, body, context)
        return plain(body, context)

    async def plain(body: bytes, context: Context) -> bytes:
        started = time.perf_counter()
        code, message = Code.CANCELLED, ""
        request: Any = None
        size = len(body)
        held = context.held
        try:
            if held.sent:  # The transport has counted the bytes of the wire.
                held.add(size, "the request")
            else:
                held.receive(size, "the request")
            large = size > MESSAGE_BYTES
            request = known = None if templates is None else templates.find(body)
            if request is None:
                parsed = parsed_bytes(request_type, body)
                held.grow(parsed, "the request, parsed")
                request = (
                    await registry.run_in_thread(parse, request_type, body) if large else parse(request_type, body)
                )
            if logged_as is None:
                response = await handler(request, context, large)
            else:
                response = await handler(request, context, large, partial(_log, logged_as, body))
            if templates is not None and known is None:
                templates.learn(body, request)
            held.become(len(response))
            code = Code.OK
            return response
        except Exception as error:
            code, message = status_of(error)
        finally:
            if code is not Code.OK:
                held.release()
            if observed_as is not None and request is not None and registry.observers.present:
                registry.observers.request_finished(
                    model_name(request), observed_as, "GRPC", code, time.perf_counter() - started
                )
            if code is not Code.OK and (record := current_call.get()) is not None and not record.model:
                record.model = _name_in(request)
        raise StatusError(code, message)

    return Unary(answer, known)


def _name_in(request: Any) -> str:
    """The name of the model in a request that found no version; empty for none."""
    spec = getattr(request, "model_spec", None)
    return "" if spec is None else str(spec.name)[:MAX_TARGET]


def streaming(stream: Callable[[AsyncIterator[bytes], Context], AsyncGenerator[bytes, None]]) -> Streaming:
    """Make a method with any number of messages either way; an error of `stream` becomes the status."""

    async def guarded(requests: AsyncIterator[bytes], context: Context) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(stream(requests, context)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:
            raise StatusError(*status_of(error)) from None

    return Streaming(guarded)


async def one_of(requests: AsyncIterator[bytes], request_type: type[M]) -> M:
    """The message of a stream that must hold exactly one message.

    Raises:
        InvalidInputError: The bytes are no message of the type.
        UnsupportedError: The stream has no message, or several.
    """
    found: list[bytes] = []
    async for body in requests:
        found.append(body)
        if len(found) > 1:
            break
    if len(found) != 1:
        # gRPC's own code for a wrong number of requests.
        raise UnsupportedError(f"the method takes one message, {'none' if not found else 'more than one'} came")
    return parse(request_type, found[0])


def paths(service: str, methods: Mapping[str, Method]) -> dict[str, Method]:
    """Methods of a service by path instead of by name."""
    return {f"/{service}/{name}": method for name, method in methods.items()}


def _log(kind: Kind, request: bytes, handle: ModelHandle, signature_name: str, response: bytes) -> bytes:
    log = handle.request_log()
    if log is not None:
        size = len(request) + len(response)
        log.add(Exchange(kind, handle.name, handle.version, signature_name, request, response, size))
    return response


def priority_of(context: Context) -> PriorityName:
    """The priority in the client's metadata.

    Raises:
        InvalidInputError: The name is no priority.
    """
    value = context.metadata_value(PRIORITY_KEY)
    return "normal" if value is None else sent_priority(value)


def parse(request_type: type[M], body: bytes) -> M:
    """The message in `body`.

    Raises:
        InvalidInputError: The bytes are no message of the type.
    """
    try:
        return request_type.FromString(body)
    except DecodeError:
        raise InvalidInputError(f"the request is not a {request_type.DESCRIPTOR.full_name} message") from None


def acquire(registry: ModelRegistry, request: ForModel) -> ModelHandle:
    """Resolve `request.model_spec` to a counted handle, a context manager (TF Serving: server_core.cc).

    Raises:
        InvalidModelSpecError: No model spec, no name, or an unknown label.
        ServableNotFoundError: No available version fits the model spec.
    """
    if not request.HasField("model_spec"):
        raise InvalidModelSpecError("Missing ModelSpec")
    return acquire_spec(registry, request.model_spec)


def acquire_spec(registry: ModelRegistry, spec: ModelSpec) -> ModelHandle:
    """As `acquire`, for a bare `ModelSpec`."""
    choice = spec.WhichOneof("version_choice")
    if choice is None:
        return registry.acquire_now(spec.name)
    if choice == "version":
        return registry.acquire_now(spec.name, version=spec.version.value)
    return registry.acquire_now(spec.name, label=spec.version_label)
