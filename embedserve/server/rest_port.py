"""The standalone server's REST port: bound sockets, and uvicorn on the sockets without its signal handlers.

The module knows no route: the application is `embedserve.rest`.
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
from embedserve.server.listening import bound_sockets, bracketed

if TYPE_CHECKING:
    import uvicorn

    from embedserve.metrics import Metrics
    from embedserve.rest.app import RestApp

__all__ = ["Accept", "listening_sockets", "serve_rest"]

logger = logging.getLogger("embedserve")

# Seconds. A pooled connection should outlive a client's pauses: closing an idle connection races with the next request.
KEEP_ALIVE = 300
# Seconds of a drain for busy clients to receive an answer with `connection: close`.
LINGER = 0.5
# Checks for open connections during LINGER: a check every 10 ms.
LOOKS = 50

Accept: TypeAlias = Callable[
    [list[socket.socket], Callable[[], Any], int, ssl.SSLContext | None, Callable[[], int]], Any
]
"""Makes an `asyncio.Server`, or a replacement, to accept the connections of listeners.

Arguments: the listeners, the protocol's factory, the backlog, the TLS context, and a function for the number of
connections.
"""


@asynccontextmanager
async def serve_rest(
    registry: ModelRegistry,
    config: RestConfig,
    listeners: list[socket.socket],
    metrics: Metrics | None,
    wrap: Callable[[RestApp], Any] | None = None,
    accept: Accept | None = None,
) -> AsyncIterator[None]:
    """Answer REST on `listeners` while the context lasts; leaving the context finishes the requests in flight.

    Requests in flight have `drain_timeout` seconds. Without a listener the context is empty. `wrap` makes the served
    application from the REST API's. `accept` accepts connections in place of the loop's servers.
    """
    if not listeners:
        yield
        return
    import uvicorn

    from embedserve.rest import DEFAULT_METRICS_PATH, create_app
    from embedserve.rest.uvicorn_protocol import Http1Protocol

    opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Server(uvicorn.Server):
        """Leaves signals to the process, and tells the opening of the port."""

        def capture_signals(self) -> Any:
            return contextlib.nullcontext()

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets if accept is None else [])
            if accept is not None:
                connections = self.server_state.connections
                self.servers.append(
                    accept(listeners, self._protocol, settings.backlog, settings.ssl, lambda: len(connections))
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
    serving = asyncio.create_task(server.serve(listeners))
    await asyncio.wait({serving, opened}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if not serving.done():
            for each in listeners:
                host, port, *_ = each.getsockname()
                where = bracketed(host) if config.hosts else "localhost"  # As in the line known to tools.
                logger.info("Exporting HTTP/REST API at:%s:%d ...", where, port)
            yield
    finally:
        if not serving.done():
            await _linger(server)
        app.ending = True  # From here on uvicorn cancels requests longer than `drain_timeout`.
        server.should_exit = True
        await serving


async def _linger(server: uvicorn.Server) -> None:
    """Stop accepting, and close busy connections after their next answer.

    Closing a connection between two requests of a busy client would lose the second request.
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
def listening_sockets(config: RestConfig) -> Iterator[list[socket.socket]]:
    """The REST port at each address, bound but not listening yet; an empty list without a port.

    A taken port is therefore known before the models are loaded.

    Raises:
        StartError: An explicitly requested port cannot be opened, or an address is not this machine's. A taken default
            port is logged, and the list is empty.
    """
    bound: list[socket.socket] = []
    if config.port is not None:
        try:
            bound = bound_sockets(config.hosts, config.port)
        except OSError as error:
            if config.required or error.errno == errno.EADDRNOTAVAIL:
                raise StartError(f"Failed to start HTTP Server: {error.filename}: {error.strerror}") from None
            logger.error(
                "Failed to start HTTP Server at localhost:%d: %s. gRPC serves alone; --rest_api_port=PORT chooses "
                "another port, 0 none",
                config.port,
                error.strerror,
            )
    with contextlib.ExitStack() as stack:
        for each in bound:
            stack.enter_context(each)
        yield bound
