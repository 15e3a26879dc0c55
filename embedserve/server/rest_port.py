"""The standalone server's REST port: a socket of our own, and uvicorn on it without its signal handlers.

Called by `server`. Knows no route: the application is `embedserve.rest`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from embedserve.errors import StartError
from embedserve.registry import ModelRegistry
from embedserve.server.config import RestConfig

if TYPE_CHECKING:
    import uvicorn

    from embedserve.metrics import Metrics
    from embedserve.rest.app import RestApp

__all__ = ["Accept", "bound_socket", "dual_stack_socket", "listening_socket", "serve_rest"]

logger = logging.getLogger("embedserve")

# A client's pooled connection should outlive its pauses: closing an idle one races with its next request.
KEEP_ALIVE = 300
# Seconds that a drain gives busy clients to learn from an answer that they must connect anew.
LINGER = 0.5
LOOKS = 50

Accept: TypeAlias = Callable[[socket.socket, Callable[[], Any], int, ssl.SSLContext | None, Callable[[], int]], Any]
"""Takes the connections of a listener: makes an `asyncio.Server`, or what can stand for one, of the listener, the
connections' protocol, the backlog, the TLS context and how many connections there are."""


@asynccontextmanager
async def serve_rest(
    registry: ModelRegistry,
    config: RestConfig,
    listener: socket.socket | None,
    metrics: Metrics | None,
    wrap: Callable[[RestApp], Any] | None = None,
    accept: Accept | None = None,
) -> AsyncIterator[None]:
    """Answer REST on `listener` while the context lasts; leaving it finishes the requests in flight.

    They have `drain_timeout` seconds for it. Nothing happens without a listener. `wrap` makes the application that is
    served of the REST API's; `accept` takes the listener's connections in place of the loop's own server.
    """
    if listener is None:
        yield
        return
    import uvicorn

    from embedserve.rest import DEFAULT_METRICS_PATH, create_app
    from embedserve.rest.uvicorn_protocol import Http1Protocol

    taken = listener
    opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Server(uvicorn.Server):
        """Leaves signals to `run_server`, and says when the port is open."""

        def capture_signals(self) -> Any:
            return contextlib.nullcontext()

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets if accept is None else [])
            if accept is not None:
                connections = self.server_state.connections
                self.servers.append(
                    accept(taken, self._protocol, settings.backlog, settings.ssl, lambda: len(connections))
                )
            opened.set_result(None)

        def _protocol(self) -> Any:
            make: Any = settings.http_protocol_class
            return make(config=settings, server_state=self.server_state, app_state=self.lifespan.state)

    app = create_app(
        registry,
        cors=config.cors,
        timeout=config.timeout,
        metrics=metrics,
        metrics_path=config.metrics_path or DEFAULT_METRICS_PATH,
    )
    tls = config.tls
    settings = uvicorn.Config(
        app if wrap is None else wrap(app),
        http=Http1Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(registry.options.drain_timeout),
        ssl_certfile=None if tls is None else tls.cert,
        ssl_keyfile=None if tls is None else tls.key,
        ssl_ca_certs=None if tls is None or tls.client_ca is None else str(tls.client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if tls is None or tls.client_ca is None else ssl.CERT_REQUIRED,
    )
    settings.load()
    server = Server(settings)
    serving = asyncio.create_task(server.serve([listener]))
    await asyncio.wait({serving, opened}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if not serving.done():
            logger.info("Exporting HTTP/REST API at:localhost:%d ...", listener.getsockname()[1])
            yield
    finally:
        if not serving.done():
            await _linger(server)
        app.ending = True  # From here on uvicorn cancels whatever takes longer than `drain_timeout`.
        server.should_exit = True
        await serving


async def _linger(server: uvicorn.Server) -> None:
    """Take no more connections, and have those that are busy end with their next answer.

    Closing one between two requests of a client that does not pause would lose the second.
    """
    for listening in server.servers:
        listening.close()
    goodbye = (b"connection", b"close")
    server.config.encoded_headers.append(goodbye)
    server.server_state.default_headers = [*server.server_state.default_headers, goodbye]
    for _ in range(LOOKS):
        if not server.server_state.connections:
            break
        await asyncio.sleep(LINGER / LOOKS)


@contextmanager
def listening_socket(config: RestConfig) -> Iterator[socket.socket | None]:
    """The REST port, bound but not listening yet, so that a taken one is known before the models are loaded.

    Raises:
        StartError: The port cannot be had and was asked for. One that was not is logged, and there is none.
    """
    listener: socket.socket | None = None
    if config.port is not None:
        try:
            listener = dual_stack_socket(config.port)
        except OSError as error:
            if config.required:
                raise StartError(f"Failed to start HTTP Server: port {config.port}: {error.strerror}") from None
            logger.error(
                "Failed to start HTTP Server at localhost:%d: %s. gRPC serves alone; --rest_api_port=PORT chooses "
                "another port, 0 none",
                config.port,
                error.strerror,
            )
    with listener or contextlib.nullcontext():
        yield listener


def dual_stack_socket(port: int) -> socket.socket:
    """A socket that has the port and does not listen: of IPv6 and IPv4, or of IPv4 alone where that is all there is.

    Raises:
        OSError: The port is taken, or not allowed.
    """
    if socket.has_dualstack_ipv6():
        try:
            return bound_socket(socket.AF_INET6, "::", port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise
    return bound_socket(socket.AF_INET, "0.0.0.0", port)


def bound_socket(
    family: socket.AddressFamily, host: str, port: int, kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    """A TCP socket, or of another kind, that has the port and does not listen.

    Raises:
        OSError: The port is taken, or not allowed.
    """
    bound = socket.socket(family, kind)
    try:
        if kind == socket.SOCK_STREAM:  # Two of UDP would share the port.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        bound.bind((host, port))
    except BaseException:
        bound.close()
        raise
    return bound
