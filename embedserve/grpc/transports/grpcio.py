"""The services over grpcio: for credentials and channel arguments that only grpcio has.

A listener as `embedserve.http.listener` has: opened once in the registry's event loop, and drained without the loss of
a call. The module knows no message.
"""

from __future__ import annotations

import asyncio
import errno
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import unquote

import grpc
import grpc.aio

from embedserve.asgi.clients import is_loopback
from embedserve.call_record import CallHeaders
from embedserve.concurrency.inflight import Reservation
from embedserve.concurrency.off_loop import MESSAGE_BYTES
from embedserve.errors import Code, ServingError
from embedserve.grpc.calls import Methods, Streaming, Unary
from embedserve.grpc.errors import StatusError, status_of
from embedserve.grpc.transports.binding import resolved_sockets
from embedserve.grpc.transports.frames import inflate
from embedserve.http.sockets import UnixSocket, bracketed

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry

    GrpcContext: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]

__all__ = ["GrpcioListener", "GrpcioOptions"]

STATUS_CODES: dict[Code, grpc.StatusCode] = {Code(status.value[0]): status for status in grpc.StatusCode}

QUIET = 0.05
"""Seconds without a new call after which all clients count as waiting for their answers."""
PATIENCE = 0.5
"""Seconds that a stop waits for the quiet time at the most."""


@dataclass(frozen=True)
class GrpcioOptions:
    """Options of grpcio's server, as `embedserve.grpc.serve` has them."""

    max_message_bytes: int
    channel_arguments: Sequence[tuple[str, int | str]] = ()
    compression: Literal["none", "deflate", "gzip"] = "none"
    max_concurrent_calls: int | None = None


class GrpcioListener:
    """Answers calls from `open` to the end of `drain`.

    Args:
        registry: An entered registry.
        methods: The methods by path.
        hosts, port: TCP addresses with a single port; port 0 takes any free port, None serves no TCP.
        unix: The Unix socket, not bound yet, or None.
        credentials: Server credentials, or None for plain text.
        options: Messages' bound, compression, calls at a time, channel arguments.

    Attributes:
        port: The TCP port; after `open` also the chosen port for port 0.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        methods: Methods,
        hosts: Sequence[str],
        port: int | None,
        unix: UnixSocket | None,
        credentials: grpc.ServerCredentials | None,
        options: GrpcioOptions,
    ) -> None:
        self.port = port
        self._hosts = hosts
        self._unix = unix
        self._credentials = credentials
        self._stop = GracefulStop()
        # A message over the bound on all requests together could never be answered.
        limit = min(options.max_message_bytes, registry.options.max_request_bytes, registry.inflight.limit)
        arguments = {
            "grpc.so_reuseport": 0,  # Otherwise a second server on the same port starts and takes half of the calls.
            "grpc.max_receive_message_length": limit,
            "grpc.max_send_message_length": options.max_message_bytes,
            "grpc.per_message_decompression": 0,  # `_Messages` decompresses in steps, within the bytes in flight.
        } | dict(options.channel_arguments)
        self._shared = bool(arguments["grpc.so_reuseport"])
        self._server = grpc.aio.server(
            options=list(arguments.items()),
            compression=_COMPRESSION[options.compression],
            maximum_concurrent_rpcs=options.max_concurrent_calls,
        )
        self._server.add_generic_rpc_handlers((_Router(methods, self._stop, _Messages(registry, limit)),))

    def __repr__(self) -> str:
        return f"<GrpcioListener on port {self.port}>"

    async def open(self) -> None:
        """Bind, listen and answer.

        Raises:
            OSError: The port or socket is not available; the message names the place.
        """
        try:
            if self.port is not None:
                for each in self._hosts:  # With port 0, the first address takes a free port, and the rest the same.
                    secure = self._credentials is not None
                    why = partial(_bind_error, each, self.port, secure=secure, shared=self._shared)
                    address = f"{bracketed(each)}:{self.port}"
                    self.port = await _bind(self._server, address, self._credentials, why)
            if self._unix is not None:
                why = partial(_unix_error, self._unix)
                await _bind(self._server, f"unix:{self._unix.bound_path}", self._credentials, why)
            await self._server.start()
            if self._unix is not None:
                await asyncio.to_thread(self._unix.publish)
        except BaseException:
            await self._server.stop(None)
            if self._unix is not None:
                await asyncio.to_thread(self._unix.remove)
            raise

    async def wait(self) -> None:
        """Return when the server has ended."""
        await self._server.wait_for_termination()

    async def drain(self, timeout: float) -> None:
        """Take no more calls, and cancel the calls in flight after `timeout` seconds."""
        if timeout:
            await self._stop.hold()
        stopping = asyncio.ensure_future(self._server.stop(timeout or None))
        await asyncio.sleep(0)  # The first step of the stop tells the clients.
        self._stop.release()
        await stopping
        if self._unix is not None:
            await asyncio.to_thread(self._unix.remove)


_COMPRESSION = {
    "none": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}


async def _bind(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None, why: Callable[[], OSError]
) -> int:
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except (RuntimeError, ValueError) as error:  # grpc has a single error for all failures, and logs the reason.
        raise await asyncio.to_thread(why) from error


class _Messages:
    """Takes grpcio's messages, compressed or not."""

    def __init__(self, registry: ModelRegistry, limit: int) -> None:
        self.registry = registry
        self._limit = limit

    async def plain(self, message: bytes, held: Reservation) -> bytes:
        """The message, decompressed if compressed.

        grpcio does not mark compressed messages, but no request begins with the first bytes of gzip or zlib.

        Raises:
            ServingError: As `inflate`.
        """
        if message[:2] != _GZIP and (message[:1] != _ZLIB or int.from_bytes(message[:2], "big") % 31):
            return message
        held.receive(len(message), "the message as it came")
        try:
            return await inflate(message, self._limit, held, self.registry, or_zlib=True)
        except zlib.error:
            return message  # The parser decides about the bytes.


_GZIP = b"\x1f\x8b"  # As a tag: field 3 with wire type 7, an unknown type.
_ZLIB = b"\x78"  # As a tag: field 15 as a varint, a field of no request.


class _Context:
    """The transport's side of a call, over grpcio's context."""

    __slots__ = ("_context", "_trailing", "held", "path", "time_remaining")

    def __init__(self, context: GrpcContext, held: Reservation, path: str) -> None:
        self._context = context
        self._trailing: list[tuple[str, str]] = []
        self.path = path
        self.held = held
        self.time_remaining = context.time_remaining

    def metadata_value(self, key: str) -> str | bytes | None:
        for name, value in self._context.invocation_metadata() or ():
            if name == key:
                found: str | bytes = value
                return found
        return None

    @property
    def peer(self) -> str:
        kind, _, address = unquote(self._context.peer()).partition(":")
        return address.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else ""

    def headers(self) -> CallHeaders:
        sent = self._context.invocation_metadata() or ()
        return CallHeaders([(name.encode(), _bytes(value)) for name, value in sent])

    def add_trailing(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        self._trailing += [(name.decode(), value.decode()) for name, value in fields]
        self._context.set_trailing_metadata(tuple(self._trailing))

    def is_local(self) -> bool:
        kind, _, address = unquote(self._context.peer()).partition(":")
        return kind == "unix" or (kind in ("ipv4", "ipv6") and is_loopback(address.rpartition(":")[0]))


class _Router(grpc.GenericRpcHandler):
    """Finds the method of a call by its path, for grpcio."""

    def __init__(self, methods: Methods, stop: GracefulStop, messages: _Messages) -> None:
        self._handlers = {path: _handler(path, method, stop, messages) for path, method in methods.items()}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        return self._handlers.get(details.method)


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _handler(
    path: str, method: Unary | Streaming, stop: GracefulStop, messages: _Messages
) -> grpc.RpcMethodHandler[bytes, bytes]:
    if isinstance(method, Unary):
        return grpc.unary_unary_rpc_method_handler(_unary(path, method, stop, messages))
    stream = method.stream

    async def calls(requests: AsyncIterator[bytes], context: GrpcContext) -> AsyncIterator[bytes]:
        with Reservation(messages.registry.inflight) as held:

            async def plain() -> AsyncIterator[bytes]:
                async for message in requests:
                    yield await messages.plain(message, held)
                    held.release()

            try:
                async for response in stream(plain(), _Context(context, held, path)):
                    yield response
            except StatusError as error:
                await context.abort(STATUS_CODES[error.code], error.message)

    return grpc.stream_stream_rpc_method_handler(calls)


def _unary(
    path: str, method: Unary, stop: GracefulStop, messages: _Messages
) -> Callable[[bytes, GrpcContext], Awaitable[bytes]]:
    answer, registry = method.answer, messages.registry

    async def call(body: bytes, context: GrpcContext) -> bytes:
        stop.arrived()
        held = Reservation(registry.inflight)
        try:
            try:
                body = await messages.plain(body, held)
                held.release()  # The method reserves the message again at once.
                response = await answer(body, _Context(context, held, path))
            except ServingError as error:
                raise StatusError(*status_of(error)) from None
            await stop.answer()
            if held.size > MESSAGE_BYTES:  # grpcio keeps the response until the client has read all bytes.
                sending, held = held, Reservation(registry.inflight)
                # The stubs take only objects of a class of their own.
                context.add_done_callback(lambda _: sending.release())  # type: ignore[arg-type]
            return response
        except StatusError as error:
            held.release()
            await stop.answer()
            await context.abort(STATUS_CODES[error.code], error.message)
            raise AssertionError("abort always raises") from None
        finally:
            held.release()

    return call


class GracefulStop:
    """Counts the calls of a server, and holds their answers until every client knows about the stop.

    gRPC cancels a call that arrives after the server's decision and before the client's notice, and no client retries
    the call. A client that waits for an answer sends no call, so answers wait until the clients have the notice.
    """

    def __init__(self) -> None:
        self._arrivals = 0
        self._released: asyncio.Event | None = None

    def __repr__(self) -> str:
        return f"<GracefulStop after {self._arrivals} calls{' (held)' if self._released is not None else ''}>"

    def arrived(self) -> None:
        """Count a new call."""
        self._arrivals += 1

    async def answer(self) -> None:
        """Wait, before an answer goes out, while answers are held."""
        if self._released is not None:
            await self._released.wait()

    async def hold(self) -> None:
        """Hold answers; returns after `QUIET` seconds without a new call, or after `PATIENCE` seconds."""
        self._released = asyncio.Event()
        end = asyncio.get_running_loop().time() + PATIENCE
        before = -1
        while before != self._arrivals and asyncio.get_running_loop().time() < end:
            before = self._arrivals
            await asyncio.sleep(QUIET)

    def release(self) -> None:
        """Let the answers go."""
        if self._released is not None:
            self._released.set()


def _bind_error(host: str, port: int, *, secure: bool, shared: bool) -> OSError:
    """The reason why gRPC could not bind, found by binding a plain socket to the same place.

    Args:
        host, port: The place.
        secure: Whether TLS material or other credentials may be the reason.
        shared: Whether processes share the port: a worker's port is held by its supervisor too.
    """
    try:
        for each in resolved_sockets(host, port, shared=shared):
            each.close()
    except OSError as error:
        return error
    where = f"port {port} of {host}"
    if secure:
        return OSError(
            errno.EINVAL,
            f"gRPC cannot listen on {where}: the TLS key or certificate is not usable, or this machine has no ALTS",
        )
    return OSError(errno.EADDRNOTAVAIL, f"gRPC cannot listen on {where}")


def _unix_error(unix: UnixSocket) -> OSError:
    return unix.bind_error() or OSError(
        errno.EINVAL, f"gRPC cannot listen on socket {unix.path}: the credentials are not usable, or the path is not"
    )
