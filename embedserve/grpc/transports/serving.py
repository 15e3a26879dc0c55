"""`serve`: the gRPC services on a port or a Unix socket of their own, in the registry's event loop.

The own listener answers gRPC over HTTP/2, and gRPC-Web. grpcio's server is the other transport. The module knows no
message.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

from embedserve.concurrency.owner_loop import check_asyncio
from embedserve.config import Access
from embedserve.errors import ConfigError, RegistryStateError
from embedserve.grpc.transports.asgi import GrpcApp
from embedserve.grpc.transports.binding import resolved_sockets
from embedserve.grpc.transports.channel_arguments import MAX_MESSAGE_BYTES, ConnectionPolicy, connection_policy
from embedserve.http.listener import HttpListener
from embedserve.http.sockets import UnixSocket, bracketed, tls_context

if TYPE_CHECKING:
    import grpc

    from embedserve.grpc.services.model_service import MetricReader, Reload
    from embedserve.grpc.services.table import Services
    from embedserve.grpc.transports.grpcio import GrpcioOptions
    from embedserve.oip.repository import Repository
    from embedserve.registry import ModelRegistry

__all__ = ["GrpcServer", "TlsConfig", "Transport", "log_places", "serve"]

logger = logging.getLogger("embedserve")

Transport: TypeAlias = Literal["embedserve", "grpcio"]


class Listener(Protocol):
    """A transport that listens."""

    async def open(self) -> None:
        """Listen and answer."""

    async def wait(self) -> None:
        """Return at the end."""

    async def drain(self, timeout: float) -> None:
        """Take no more calls, and cancel the calls in flight after `timeout` seconds."""


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

    def context(self) -> ssl.SSLContext:
        """The same for the own listener.

        Raises:
            ConfigError: As `credentials`.
            OSError: The key or a certificate is not usable.
        """
        self._check()
        if self.client_verify and not self.custom_ca:
            _system_roots()
        try:
            return tls_context(
                _bytes(self.server_cert),
                _bytes(self.server_key),
                _bytes(self.custom_ca),
                verify_clients=self.client_verify,
            )
        except ssl.SSLError as error:
            raise OSError(errno.EINVAL, f"the TLS key or certificate is not usable: {error.strerror}") from None

    def _check(self) -> None:
        for name in ("server_key", "server_cert"):
            if b"-----BEGIN " not in _bytes(getattr(self, name)):
                raise ConfigError(f"TLS: {name} must hold a PEM text, starting with '-----BEGIN '; paths are not read")

    def credentials(self) -> grpc.ServerCredentials:
        """The same as grpcio's server credentials.

        Raises:
            ConfigError: A key or certificate is missing, or client verification has no root certificate.
        """
        import grpc

        self._check()
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
        listener: Listener,
        end_watches: Callable[[], Awaitable[None]],
        hosts: Sequence[str],
        port: int | None,
        socket_path: str | None,
    ) -> None:
        self._listener = listener
        self._end_watches = end_watches
        self._hosts = hosts
        self._closed = False
        self.port = port
        self.socket_path = socket_path

    def __repr__(self) -> str:
        where = [] if self.port is None else [f"{bracketed(host)}:{self.port}" for host in self._hosts]
        where += [] if self.socket_path is None else [f"unix:{self.socket_path}"]
        return f"<GrpcServer {' '.join(where)}{' (closed)' if self._closed else ''}>"

    async def wait(self) -> None:
        """Return when the server has ended."""
        await self._listener.wait()

    async def aclose(self, grace: float | None = None) -> None:
        """Take no more calls, and cancel the calls in flight after `grace` seconds."""
        if not self._closed:
            self._closed = True
            await self._end_watches()
            await self._listener.drain(grace or 0.0)


@asynccontextmanager
async def serve(
    registry: ModelRegistry,
    *,
    host: str | Sequence[str] = "0.0.0.0",
    port: int | None = 8500,
    socket_path: str | None = None,
    transport: Transport | None = None,
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
    repository: Repository | None = None,
) -> AsyncIterator[GrpcServer]:
    """Serve the registry over gRPC while the context lasts; leaving the context drains for `drain_timeout` seconds.

    Args:
        registry: An entered registry; the server runs in its event loop.
        host, port: TCP address, or several hosts with a single port; port 0 takes any free port, None serves no TCP.
        socket_path: Also listen on a Unix socket; a stale or taken socket is taken over.
        transport: `embedserve`: the own listener, for gRPC over HTTP/2 and for gRPC-Web over any HTTP. `grpcio`:
            grpcio's server, gRPC alone. By default `grpcio` where only grpcio has an argument's value.
        max_message_bytes: Largest message in or out; `max_request_bytes` bounds requests too.
        tls: Encrypt both the port and the socket.
        credentials: Server credentials of a further kind (ALTS, xDS) instead of `tls`; of grpcio alone.
        channel_arguments: gRPC channel arguments; the last of duplicates wins. The own listener names the arguments
            without a meaning in a warning.
        compression: Compression of answers; compressed requests are always read. `deflate` is grpcio's alone.
        max_concurrent_calls: Calls over this number are refused with RESOURCE_EXHAUSTED.
        health: Serve `grpc.health.v1.Health`.
        reflection: Serve server reflection.
        access: Clients that may reload, use SessionRun and the profiler; `Access` has the defaults.
        tensor_content: Answer numeric tensors as `tensor_content` instead of typed fields.
        reload: Applies the `ModelServerConfig` of a HandleReloadConfigRequest; `registry.reconfigure` by default.
        metric: Reads a metric for HandleReloadConfigRequest's `metric_names`.
        repository: Loads and unloads models on request; the registry by default.

    Raises:
        RegistryStateError: The registry was not entered, or lives on another event loop; trio runs the caller.
        OSError: The port or socket is not available; the message names the place.
        ConfigError: Unusable TLS material, neither port nor socket, or a value that the chosen transport lacks.
    """
    _check_loop(registry)
    transport = _chosen(transport, credentials, compression)
    if port is None and socket_path is None:
        raise ConfigError("give a port, a socket_path, or both: there is nothing to listen on")
    unix = None if socket_path is None else await asyncio.to_thread(UnixSocket, socket_path)
    place = _Place([host] if isinstance(host, str) else list(host), port, unix)
    # The table imports TensorFlow, for its messages.
    await asyncio.to_thread(import_module, "tensorflow")  # Waits for an import in another thread, as `GrpcApp` does.
    table = await asyncio.to_thread(import_module, "embedserve.grpc.services.table")
    services: dict[str, Any] = {
        "health": health,
        "reflection": reflection,
        "access": access or Access(),
        "tensor_content": tensor_content,
        "reload": reload,
        "metric": metric,
        "repository": repository,
    }
    if transport == "grpcio":
        from embedserve.grpc.transports.grpcio import GrpcioOptions

        if tls is not None:
            credentials = await asyncio.to_thread(tls.credentials)
        options = GrpcioOptions(max_message_bytes, channel_arguments, compression, max_concurrent_calls)
        running = await _on_grpcio(registry, place, table.Services(registry, **services), credentials, options)
    else:
        policy = connection_policy(dict(channel_arguments))
        app = GrpcApp(
            registry,
            max_message_bytes=min(max_message_bytes, policy.max_receive_bytes, registry.inflight.limit),
            max_send_bytes=min(max_message_bytes, policy.max_send_bytes),
            compression="gzip" if compression == "gzip" else "none",
            max_concurrent_calls=max_concurrent_calls,
            **services,
        )
        running = await _on_listener(app, place, tls, policy)
    log_places(place.hosts, running.port, running.socket_path)
    try:
        yield running
    finally:
        await running.aclose(registry.options.drain_timeout)


@dataclass(frozen=True)
class _Place:
    """The places to listen on: TCP hosts with a single port, and a Unix socket."""

    hosts: Sequence[str]
    port: int | None
    unix: UnixSocket | None

    def server(self, listener: Listener, end_watches: Callable[[], Awaitable[None]], port: int | None) -> GrpcServer:
        """The running server on `listener`."""
        return GrpcServer(listener, end_watches, self.hosts, port, None if self.unix is None else self.unix.path)

    def sockets(self, *, shared: bool) -> list[socket.socket]:
        """Listening TCP sockets; with port 0 the first takes a free port, and the rest take the same port."""
        with contextlib.ExitStack() as stack:
            found: list[socket.socket] = []
            if self.port is None:
                return found
            for host in self.hosts:
                number = found[0].getsockname()[1] if found else self.port
                found += map(stack.enter_context, resolved_sockets(host, number, shared=shared))
            stack.pop_all()
        return found


async def _on_listener(app: GrpcApp, place: _Place, tls: TlsConfig | None, policy: ConnectionPolicy) -> GrpcServer:
    context = None if tls is None else await asyncio.to_thread(tls.context)
    sockets = await asyncio.to_thread(partial(place.sockets, shared=policy.shared))
    port = sockets[0].getsockname()[1] if sockets else None
    settings: dict[str, Any] = {"tls": context, "limits": policy.limits, "keep_alive": policy.keep_alive}
    settings["ages"] = policy.ages
    listener = HttpListener(app, sockets, unix=place.unix, cut=app.cut, **settings)
    await listener.open()
    return place.server(listener, app.aclose, port)


async def _on_grpcio(
    registry: ModelRegistry,
    place: _Place,
    services: Services,
    credentials: grpc.ServerCredentials | None,
    options: GrpcioOptions,
) -> GrpcServer:
    from embedserve.grpc.transports.grpcio import GrpcioListener

    methods = services.methods
    listener = GrpcioListener(registry, methods, place.hosts, place.port, place.unix, credentials, options)
    await listener.open()
    return place.server(listener, services.aclose, listener.port)


def log_places(hosts: Sequence[str], port: int | None, socket_path: str | None) -> None:
    """Log the lines that tools look for (TF Serving: server.cc)."""
    for host in hosts if port is not None else ():
        logger.info("Running gRPC ModelServer at %s:%d ...", bracketed(host), port)
    if socket_path is not None:
        logger.info("Running gRPC ModelServer at UNIX socket %s ...", socket_path)


def _chosen(transport: Transport | None, credentials: grpc.ServerCredentials | None, compression: str) -> Transport:
    """The transport that has the arguments' values.

    Raises:
        ConfigError: The named transport lacks a value, or is unknown.
    """
    if transport not in (None, *get_args(Transport)):
        raise ConfigError(f"transport is {transport!r}, expected one of {', '.join(get_args(Transport))}")
    needs = "credentials" if credentials is not None else "compression='deflate'" if compression == "deflate" else None
    if needs is not None and transport == "embedserve":
        raise ConfigError(f'{needs} needs transport="grpcio": the own listener has none')
    return transport or ("embedserve" if needs is None else "grpcio")


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
