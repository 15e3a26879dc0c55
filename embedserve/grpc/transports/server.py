"""The services over grpcio: addresses, sockets, TLS, limits, start, and a stop that loses no call.

`serve` is the whole life of a server, in the registry's event loop. The module knows no message.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import socket
import ssl
import stat
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

import grpc
import grpc.aio

from embedserve.concurrency.inflight import Reservation
from embedserve.concurrency.owner_loop import check_asyncio
from embedserve.config import Access
from embedserve.errors import Code, ConfigError, RegistryStateError, ServingError
from embedserve.grpc.access import is_loopback
from embedserve.grpc.calls import LARGE, Methods, Streaming, Unary
from embedserve.grpc.errors import StatusError, status_of
from embedserve.grpc.transports.frames import inflate

if TYPE_CHECKING:
    from embedserve.grpc.services.model_service import MetricReader, Reload
    from embedserve.grpc.services.table import Services
    from embedserve.registry import ModelRegistry

__all__ = ["GrpcServer", "TlsConfig", "serve"]

logger = logging.getLogger("embedserve")

MAX_MESSAGE_BYTES = 2**31 - 1

STATUS_CODES: dict[Code, grpc.StatusCode] = {Code(status.value[0]): status for status in grpc.StatusCode}

QUIET = 0.05
"""Seconds without a new call after which all clients count as waiting for their answers."""
PATIENCE = 0.5
"""Seconds that a stop waits for the quiet time at the most."""

MAX_SOCKET_PATH = 107
"""Bytes of Linux's longest socket path, without its NUL."""


@dataclass(frozen=True, repr=False)
class TlsConfig:
    """Keys and certificates as PEM text, not as paths (TF Serving: ssl_config.proto).

    Attributes:
        server_key, server_cert: The server's private key and certificate chain.
        custom_ca: Root certificates for client certificates; the system's roots if empty.
        client_verify: Require and verify a client certificate.
    """

    server_key: str | bytes
    server_cert: str | bytes
    custom_ca: str | bytes = b""
    client_verify: bool = False

    def __repr__(self) -> str:  # A private key is not for logs.
        return f"<TlsConfig{' with client verification' if self.client_verify else ''}>"

    def credentials(self) -> grpc.ServerCredentials:
        """The same as gRPC server credentials.

        Raises:
            ConfigError: A key or certificate is missing, or client verification has no root certificate.
        """
        for name in ("server_key", "server_cert"):
            if b"-----BEGIN " not in _bytes(getattr(self, name)):
                raise ConfigError(f"TLS: {name} must hold a PEM text, starting with '-----BEGIN '; paths are not read")
        roots = _bytes(self.custom_ca) or (_system_roots() if self.client_verify else None)
        return grpc.ssl_server_credentials(
            [(_bytes(self.server_key), _bytes(self.server_cert))],
            root_certificates=roots,
            require_client_auth=self.client_verify,
        )


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _system_roots() -> bytes:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    roots = "".join(ssl.DER_cert_to_PEM_cert(der) for der in context.get_ca_certs(binary_form=True))
    if not roots:
        raise ConfigError("TLS: client_verify needs custom_ca, because this system has no root certificates of its own")
    return roots.encode()


class GrpcServer:
    """A running gRPC server; made by `serve`.

    Attributes:
        port: The TCP port, also the chosen port for port 0; None without TCP.
        socket_path: The Unix socket, if any.
    """

    def __init__(
        self,
        server: Any,
        hosts: Sequence[str],
        port: int | None,
        socket: UnixSocket | None,
        services: Services,
        stop: GracefulStop,
    ) -> None:
        self._server = server
        self._hosts = hosts
        self._socket = socket
        self._services = services
        self._stop = stop
        self._closed = False
        self.port = port
        self.socket_path = None if socket is None else socket.path

    def __repr__(self) -> str:
        where = [] if self.port is None else [tcp_address(host, self.port) for host in self._hosts]
        where += [] if self.socket_path is None else [f"unix:{self.socket_path}"]
        return f"<GrpcServer {' '.join(where)}{' (closed)' if self._closed else ''}>"

    async def wait(self) -> None:
        """Return when the server has ended."""
        await self._server.wait_for_termination()

    async def aclose(self, grace: float | None = None) -> None:
        """Take no more calls, and cancel the calls in flight after `grace` seconds."""
        self._closed = True
        await self._services.aclose()
        if grace:
            await self._stop.hold()
        stopping = asyncio.ensure_future(self._server.stop(grace))
        await asyncio.sleep(0)  # The first step of the stop tells the clients.
        self._stop.release()
        await stopping
        if self._socket is not None:
            await asyncio.to_thread(self._socket.remove)


@asynccontextmanager
async def serve(
    registry: ModelRegistry,
    *,
    host: str | Sequence[str] = "0.0.0.0",
    port: int | None = 8500,
    socket_path: str | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    tls: TlsConfig | None = None,
    credentials: grpc.ServerCredentials | None = None,
    channel_arguments: Sequence[tuple[str, int | str]] = (),
    compression: Literal["none", "deflate", "gzip"] = "none",
    max_concurrent_calls: int | None = None,
    health: bool = True,
    reflection: bool = True,
    access: Access | None = None,
    tensor_content: bool = False,
    reload: Reload | None = None,
    metric: MetricReader | None = None,
) -> AsyncIterator[GrpcServer]:
    """Serve the registry over gRPC while the context lasts; leaving the context drains for `drain_timeout` seconds.

    Args:
        registry: An entered registry; the server runs in its event loop.
        host, port: TCP address, or several hosts with a single port; port 0 takes any free port, None serves no TCP.
        socket_path: Also listen on a Unix socket; a stale or taken socket is taken over.
        max_message_bytes: Largest message in or out; `max_request_bytes` bounds requests too.
        tls: Encrypt both the port and the socket.
        credentials: Server credentials of a further kind (ALTS, xDS) instead of `tls`.
        channel_arguments: gRPC channel arguments; the last of duplicates wins.
        compression: Compression of answers; compressed requests are always read.
        max_concurrent_calls: Calls over this number are refused with RESOURCE_EXHAUSTED.
        health: Serve `grpc.health.v1.Health`.
        reflection: Serve server reflection.
        access: Clients that may reload, use SessionRun and the profiler; `Access` has the defaults.
        tensor_content: Answer numeric tensors as `tensor_content` instead of typed fields.
        reload: Applies the `ModelServerConfig` of a HandleReloadConfigRequest; `registry.reconfigure` by default.
        metric: Reads a metric for HandleReloadConfigRequest's `metric_names`.

    Raises:
        RegistryStateError: The registry was not entered, or lives on another event loop; trio runs the caller.
        OSError: The port or socket is not available; the message names the place.
        ConfigError: Unusable TLS material, or neither port nor socket.
    """
    _check_loop(registry)
    if tls is not None:
        credentials = await asyncio.to_thread(tls.credentials)
    if port is None and socket_path is None:
        raise ConfigError("give a port, a socket_path, or both: there is nothing to listen on")
    # A message over the bound on all requests together could never be answered.
    limit = min(max_message_bytes, registry.options.max_request_bytes, registry.inflight.limit)
    options = {
        "grpc.so_reuseport": 0,  # Otherwise a second server on the same port starts and takes half of the calls.
        "grpc.max_receive_message_length": limit,
        "grpc.max_send_message_length": max_message_bytes,
        "grpc.per_message_decompression": 0,  # `_Messages` decompresses in steps, within the bytes in flight.
    } | dict(channel_arguments)
    server = grpc.aio.server(
        options=list(options.items()),
        compression=_COMPRESSION[compression],
        maximum_concurrent_rpcs=max_concurrent_calls,
    )
    # The table imports TensorFlow, for its messages.
    await asyncio.to_thread(import_module, "tensorflow")  # Waits for an import in another thread, as `GrpcApp` does.
    services: Services = (await asyncio.to_thread(import_module, "embedserve.grpc.services.table")).Services(
        registry,
        health=health,
        reflection=reflection,
        access=access or Access(),
        tensor_content=tensor_content,
        reload=reload,
        metric=metric,
    )
    stop = GracefulStop()
    hosts = [host] if isinstance(host, str) else list(host)
    messages = _Messages(registry, limit)
    server.add_generic_rpc_handlers((_Router(services.methods, stop, messages),))
    socket: UnixSocket | None = None
    try:
        bound = port
        if bound is not None:
            for each in hosts:  # With port 0, the first address takes a free port, and the rest take the same port.
                bound = await _bind(server, tcp_address(each, bound), credentials, each, bound)
        if socket_path is not None:
            socket = await asyncio.to_thread(UnixSocket, socket_path)
            await _bind(server, socket.address, credentials, socket_path, None)
        await server.start()
        if socket is not None:
            await asyncio.to_thread(socket.publish)
    except BaseException:
        await server.stop(None)
        if socket is not None:
            await asyncio.to_thread(socket.remove)
        raise
    running = GrpcServer(server, hosts, bound, socket, services, stop)
    if bound is not None:
        for each in hosts:
            logger.info("Running gRPC ModelServer at %s ...", tcp_address(each, bound))
    if socket is not None:
        logger.info("Running gRPC ModelServer at UNIX socket %s ...", socket.path)
    try:
        yield running
    finally:
        await running.aclose(registry.options.drain_timeout)


_COMPRESSION = {
    "none": grpc.Compression.NoCompression,
    "deflate": grpc.Compression.Deflate,
    "gzip": grpc.Compression.Gzip,
}


def _check_loop(registry: ModelRegistry) -> None:
    check_asyncio()
    loop = registry.loop
    if loop is None:
        raise RegistryStateError("enter the registry first: `async with registry:` around `async with serve(registry)`")
    if loop is not asyncio.get_running_loop():
        raise RegistryStateError(
            "the registry lives on another event loop, and gRPC must run on the same one: enter it with `async with` "
            "on this loop, instead of plain `with` or in another thread"
        )


async def _bind(
    server: Any, address: str, credentials: grpc.ServerCredentials | None, place: str, port: int | None
) -> int:
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except (RuntimeError, ValueError) as error:  # grpc has a single error for all failures, and logs the reason.
        reason = await asyncio.to_thread(bind_error, place, port, secure=credentials is not None)
        raise reason from error


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

    __slots__ = ("_context", "held", "time_remaining")

    def __init__(self, context: Any, held: Reservation) -> None:
        self._context = context
        self.held = held
        self.time_remaining = context.time_remaining

    def metadata_value(self, key: str) -> str | bytes | None:
        for name, value in self._context.invocation_metadata() or ():
            if name == key:
                found: str | bytes = value
                return found
        return None

    def is_local(self) -> bool:
        kind, _, address = unquote(self._context.peer()).partition(":")
        return kind == "unix" or (kind in ("ipv4", "ipv6") and is_loopback(address.rpartition(":")[0]))


class _Router(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the method of a call by its path, for grpcio."""

    def __init__(self, methods: Methods, stop: GracefulStop, messages: _Messages) -> None:
        self._handlers = {path: _handler(method, stop, messages) for path, method in methods.items()}

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._handlers.get(details.method)


def _handler(method: Unary | Streaming, stop: GracefulStop, messages: _Messages) -> grpc.RpcMethodHandler:
    if isinstance(method, Unary):
        return grpc.unary_unary_rpc_method_handler(_unary(method, stop, messages))
    stream = method.stream

    async def calls(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        with Reservation(messages.registry.inflight) as held:

            async def plain() -> AsyncIterator[bytes]:
                async for message in requests:
                    yield await messages.plain(message, held)
                    held.release()

            try:
                async for response in stream(plain(), _Context(context, held)):
                    yield response
            except StatusError as error:
                await context.abort(STATUS_CODES[error.code], error.message)

    return grpc.stream_stream_rpc_method_handler(calls)


def _unary(method: Unary, stop: GracefulStop, messages: _Messages) -> Callable[[bytes, Any], Awaitable[bytes]]:
    answer, registry = method.answer, messages.registry

    async def call(body: bytes, context: Any) -> bytes:
        stop.arrived()
        held = Reservation(registry.inflight)
        try:
            try:
                body = await messages.plain(body, held)
                held.release()  # The method reserves the message again at once.
                response = await answer(body, _Context(context, held))
            except ServingError as error:
                raise StatusError(*status_of(error)) from None
            await stop.answer()
            if held.size > LARGE:  # grpcio keeps the response until the client has read all bytes.
                sending, held = held, Reservation(registry.inflight)
                context.add_done_callback(lambda _: sending.release())
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


def tcp_address(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


class UnixSocket:
    """The path of a Unix socket: bound under a temporary name, then renamed into place.

    The path therefore always leads to a live server, and the last server to start wins. gRPC removes a bound path at
    the stop of a server; the temporary name keeps the successor's path from removal. Every method touches the file
    system.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._bound = f"{self.path}.{secrets.token_hex(3)}"
        self._inode: int | None = None
        if len(os.fsencode(self._bound)) > MAX_SOCKET_PATH:
            longest = MAX_SOCKET_PATH - (len(self._bound) - len(self.path))
            raise OSError(errno.ENAMETOOLONG, f"the socket path must not be longer than {longest} bytes", self.path)
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise OSError(errno.EEXIST, "the socket path is taken by something that is not a socket", self.path)

    def __repr__(self) -> str:
        return f"<UnixSocket {self.path}{'' if self._inode is None else ' (published)'}>"

    @property
    def address(self) -> str:
        """The address for gRPC to bind."""
        return f"unix:{self._bound}"

    def publish(self) -> None:
        """Move the bound socket to its path, over any older socket."""
        self._inode = os.lstat(self._bound).st_ino
        os.replace(self._bound, self.path)

    def remove(self) -> None:
        """Remove the path, unless the socket of another server is there by now."""
        path = self._bound if self._inode is None else self.path
        try:
            if self._inode is None or os.lstat(path).st_ino == self._inode:
                os.unlink(path)
        except FileNotFoundError:
            pass


def bind_error(place: str, port: int | None, *, secure: bool) -> OSError:
    """The reason why gRPC could not bind, found by binding a plain socket to the same place.

    Args:
        place: Host, or path of the Unix socket when `port` is None.
        port: TCP port.
        secure: Whether TLS material may be the reason.
    """
    if port is None:
        directory = os.path.dirname(os.path.abspath(place))
        if not os.path.isdir(directory):
            return FileNotFoundError(errno.ENOENT, "no such directory for the gRPC socket", directory)
        if not os.access(directory, os.W_OK):
            return PermissionError(errno.EACCES, "no permission to make the gRPC socket", place)
    else:
        try:
            _try_to_bind(place, port)
        except OSError as error:
            number = error.errno or errno.EIO
            reason = error.strerror or str(error)
            if number == errno.EADDRINUSE:
                reason = "already in use"
            return OSError(number, f"gRPC cannot listen on port {port} of {place}: {reason}")
    where = f"socket {place}" if port is None else f"port {port} of {place}"
    if secure:
        return OSError(errno.EINVAL, f"gRPC cannot listen on {where}: the TLS key or certificate is not usable")
    return OSError(errno.EADDRNOTAVAIL, f"gRPC cannot listen on {where}")


def _try_to_bind(host: str, port: int) -> None:
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as trial:
            if os.name == "posix":
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            # Without `listen`, binding succeeds on a port where another socket with SO_REUSEADDR listens.
            trial.listen(1)
