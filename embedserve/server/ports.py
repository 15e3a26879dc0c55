"""The ports of a standalone server: sockets bound before the models load, and listeners on the sockets.

Every port answers REST, gRPC and gRPC-Web. The numbers 8500 and 8501 are for clients that know the ports of TensorFlow
Serving. The module knows no flag.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from embedserve.errors import StartError
from embedserve.http.listener import Accept, HttpListener
from embedserve.http.sockets import EVERY_IPV4, UnixSocket, bound_sockets, bracketed, tls_context
from embedserve.registry import ModelRegistry
from embedserve.server.config import GrpcConfig, RestConfig, ServerConfig, TlsFiles

if TYPE_CHECKING:
    import grpc

    from embedserve.grpc import GrpcMiddleware
    from embedserve.grpc.services.model_service import MetricReader, Reload
    from embedserve.grpc.transports.channel_arguments import ConnectionPolicy
    from embedserve.metrics import Metrics
    from embedserve.oip.repository import Repository
    from embedserve.rest.app import RestApp
    from embedserve.rest.sagemaker import SageMakerApp

__all__ = ["Bound", "Port", "Services", "bind_ports", "make_ports"]

logger = logging.getLogger("embedserve")


class Port(Protocol):
    """A port, or all ports of the workers.

    Attributes:
        early: Whether to open the port before the end of the first load.
    """

    early: bool

    async def open(self) -> None:
        """Answer requests.

        Raises:
            StartError: The port cannot be opened.
        """

    async def drain(self, timeout: float) -> None:
        """Take no more requests, and answer the requests in flight within `timeout` seconds."""


# Sockets.


@dataclass(frozen=True)
class Bound:
    """Bound sockets, not listening yet.

    Attributes:
        rest, grpc: Sockets of either port, by address.
        unix: The socket at the Unix path of gRPC; only where several processes share the socket.
        path: The path of `unix`, not published yet.
    """

    rest: Sequence[socket.socket] = ()
    grpc: Sequence[socket.socket] = ()
    unix: Sequence[socket.socket] = ()
    path: UnixSocket | None = None

    def __iter__(self) -> Iterator[socket.socket]:
        return iter((*self.rest, *self.grpc, *self.unix))


@contextmanager
def bind_ports(config: ServerConfig) -> Iterator[Bound]:
    """Bind the ports while the context lasts, so that a taken port is known before the models are loaded.

    grpcio's server binds by itself, so its port is only tried, and with workers kept from further servers.

    Raises:
        StartError: A requested port cannot be opened, or an address is not this machine's. A taken default REST port is
            logged, and has no sockets.
    """
    grpc = config.grpc
    with contextlib.ExitStack() as stack:
        rest = [stack.enter_context(each) for each in _rest_sockets(config.rest)]
        own = [stack.enter_context(each) for each in _grpc_sockets(grpc)]
        path, unix = None, []
        if grpc.server == "grpcio":
            for each in own:
                each.close()
            own = []
            if config.workers:
                for each in _grpc_sockets(grpc, shared=True):
                    stack.enter_context(each)
        elif grpc.socket_path is not None and config.workers:
            with _told_as(_GRPC_FAILURE):
                path = UnixSocket(grpc.socket_path)
                unix = [stack.enter_context(path.bind())]
                stack.callback(path.remove)
        yield Bound(rest, own, unix, path)


def _rest_sockets(config: RestConfig) -> list[socket.socket]:
    if config.port is None:
        return []
    try:
        return bound_sockets(config.hosts, config.port)
    except OSError as error:
        if config.required or error.errno == errno.EADDRNOTAVAIL:
            raise StartError(f"{_REST_FAILURE}: {error.filename}: {error.strerror}") from None
        logger.error(
            "Failed to start HTTP Server at localhost:%d: %s. The port of gRPC serves alone; "
            "--rest_api_port=PORT chooses another port, 0 none",
            config.port,
            error.strerror,
        )
        return []


def _grpc_sockets(config: GrpcConfig, *, shared: bool = False) -> list[socket.socket]:
    if config.port is None:
        return []
    shared = shared or bool(config.channel_arguments.get("grpc.so_reuseport"))
    try:
        return bound_sockets(config.hosts, config.port, shared=shared)
    except OSError as error:
        raise StartError(f"{_GRPC_FAILURE}: {error.filename}: {error.strerror}") from None


_REST_FAILURE, _GRPC_FAILURE = "Failed to start HTTP Server", "Failed to BuildAndStart gRPC server"


@contextmanager
def _told_as(failure: str) -> Iterator[None]:
    """Turn an OSError into a StartError that begins with TensorFlow Serving's words."""
    try:
        yield
    except OSError as error:
        raise StartError(f"{failure}: {error.strerror or error}") from error


# Ports.


@dataclass(frozen=True)
class Services:
    """The application's links to the process.

    Attributes:
        metrics: Metrics of the metrics page, or None.
        reload: Applies a reload request.
        metric: Reads a metric for reload requests, or None.
        wrap: Makes the application of REST requests from the REST API's.
        repository: Loads and unloads models on request; None leaves both to the registry.
    """

    reload: Reload
    metrics: Metrics | None = None
    metric: MetricReader | None = None
    wrap: Callable[[RestApp | SageMakerApp], Any] | None = None
    repository: Repository | None = None


async def make_ports(
    registry: ModelRegistry,
    config: ServerConfig,
    bound: Bound,
    services: Services,
    accept: Mapping[str, Accept] | None = None,
) -> dict[str, Port]:
    """The ports `rest` and `grpc` of a configuration, as far as the server has them, not open yet.

    Args:
        registry: The registry of this process, entered.
        config: The server's configuration.
        bound: The sockets.
        services: The application's links to the process.
        accept: By port: accepts connections in place of the loop's servers.

    Raises:
        StartError: TLS material is not usable.
        ConfigError: As `connection_policy`.
    """
    # The table imports TensorFlow's messages, and an import of TensorFlow in another thread has to end first.
    await asyncio.to_thread(import_module, "tensorflow")
    await asyncio.to_thread(import_module, "embedserve.grpc.services.table")
    from embedserve.grpc.transports.channel_arguments import connection_policy

    grpc, rest, accept = config.grpc, config.rest, accept or {}
    own_grpc = grpc.server == "embedserve"
    policy = connection_policy(grpc.channel_arguments if own_grpc else {})
    app, cut = _application(registry, config, services, policy)
    ports: dict[str, Port] = {}
    if bound.rest:
        with _told_as(_REST_FAILURE):
            tls = await asyncio.to_thread(_rest_tls, rest.tls)
        listener = HttpListener(app, bound.rest, tls=tls, accept=accept.get("rest"), cut=cut)
        ports["rest"] = _HttpPort(listener, app, partial(_log_rest, rest, bound.rest), _REST_FAILURE, rest.early)
    if not own_grpc:
        ports["grpc"] = _GrpcioPort(registry, grpc, services)
    elif grpc.port is not None or grpc.socket_path is not None:
        with _told_as(_GRPC_FAILURE):
            tls = await asyncio.to_thread(_grpc_tls, grpc)
            alone = grpc.socket_path is not None and not config.workers
            unix = await asyncio.to_thread(UnixSocket, str(grpc.socket_path)) if alone else None
        listener = HttpListener(
            app,
            (*bound.grpc, *bound.unix),
            unix=unix,
            tls=tls,
            limits=policy.limits,
            keep_alive=policy.keep_alive,
            ages=policy.ages,
            accept=accept.get("grpc"),
            cut=cut,
        )
        ports["grpc"] = _HttpPort(listener, app, partial(_log_grpc, grpc), _GRPC_FAILURE)
    return ports


def _application(
    registry: ModelRegistry, config: ServerConfig, services: Services, policy: ConnectionPolicy
) -> tuple[GrpcMiddleware, Callable[[], None]]:
    """The application of every port, and a function for the end of a drain's time."""
    from embedserve.grpc import GrpcMiddleware
    from embedserve.rest import DEFAULT_METRICS_PATH, create_app
    from embedserve.rest.sagemaker import SageMakerApp

    rest, grpc = config.rest, config.grpc
    api = create_app(
        registry,
        cors=rest.cors,
        timeout=rest.timeout,
        metrics=services.metrics,
        metrics_path=rest.metrics_path or DEFAULT_METRICS_PATH,
        access=grpc.access,
        repository=services.repository,
    )
    answering = SageMakerApp(api, rest.sagemaker_default_model) if rest.sagemaker else api
    app = GrpcMiddleware(
        answering if services.wrap is None else services.wrap(answering),
        registry,
        all_calls=True,
        max_message_bytes=min(policy.max_receive_bytes, registry.inflight.limit),
        max_send_bytes=policy.max_send_bytes,
        cors=rest.cors,
        health=grpc.health,
        reflection=grpc.reflection,
        access=grpc.access,
        tensor_content=grpc.tensor_content,
        reload=services.reload,
        metric=services.metric,
        repository=services.repository,
    )

    def cut() -> None:
        api.ending = True
        app.cut()

    return app, cut


def _rest_tls(files: TlsFiles | None) -> ssl.SSLContext | None:
    if files is None:
        return None
    return tls_context(files.cert, files.key, files.client_ca, verify_clients=files.client_ca is not None)


def _grpc_tls(config: GrpcConfig) -> ssl.SSLContext | None:
    from embedserve.grpc import TlsConfig

    return None if config.tls is None else TlsConfig(**config.tls.model_dump()).context()


class _HttpPort:
    """A port on the own listener."""

    def __init__(
        self,
        listener: HttpListener,
        app: GrpcMiddleware,
        announce: Callable[[], None],
        failure: str,
        early: bool = False,
    ) -> None:
        self.early = early
        self.listener = listener
        self._app = app
        self._announce = announce
        self._failure = failure

    def __repr__(self) -> str:
        return f"<_HttpPort {self.listener!r}>"

    async def open(self) -> None:
        with _told_as(self._failure):
            await self.listener.open()
        self._announce()

    async def drain(self, timeout: float) -> None:
        await self._app.aclose()
        await self.listener.drain(timeout)


def _log_rest(config: RestConfig, sockets: Sequence[socket.socket]) -> None:
    for each in sockets:
        host, port, *_ = each.getsockname()
        where = bracketed(host) if config.hosts else "localhost"  # As in the line known to tools.
        logger.info("Exporting HTTP/REST API at:%s:%d ...", where, port)


def _log_grpc(config: GrpcConfig) -> None:
    from embedserve.grpc.transports.serving import log_places

    logger.info("Using %s", "SSL credentials" if config.tls else "InsecureServerCredentials")
    path = None if config.socket_path is None else os.path.abspath(config.socket_path)
    log_places(config.hosts or (EVERY_IPV4,), config.port, path)
    if config.access.profiler != "none":
        logger.info("Profiler service is enabled")


class _GrpcioPort:
    """The gRPC port on grpcio's server, which answers gRPC alone."""

    early = False

    def __init__(self, registry: ModelRegistry, config: GrpcConfig, services: Services) -> None:
        self._registry = registry
        self._config = config
        self._services = services
        self._stack = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<_GrpcioPort {self._config.port}>"

    async def open(self) -> None:
        from embedserve.grpc import TlsConfig, serve

        config = self._config
        tls = None if config.tls is None else TlsConfig(**config.tls.model_dump())
        kind = "ALTS credentials" if config.alts else "SSL credentials" if tls else "InsecureServerCredentials"
        logger.info("Using %s", kind)
        serving = serve(
            self._registry,
            host=config.hosts or EVERY_IPV4,
            port=config.port,
            socket_path=config.socket_path,
            transport="grpcio",
            tls=tls,
            credentials=_alts() if config.alts else None,
            channel_arguments=tuple(config.channel_arguments.items()),
            health=config.health,
            reflection=config.reflection,
            access=config.access,
            tensor_content=config.tensor_content,
            reload=self._services.reload,
            metric=self._services.metric,
            repository=self._services.repository,
        )
        with _told_as(_GRPC_FAILURE):
            await self._stack.enter_async_context(serving)
        if config.access.profiler != "none":
            logger.info("Profiler service is enabled")

    async def drain(self, timeout: float) -> None:
        await self._stack.aclose()  # Within the registry's `drain_timeout`.


def _alts() -> grpc.ServerCredentials:
    import grpc

    return grpc.alts_server_credentials()
