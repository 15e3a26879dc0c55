"""The standalone server's REST port: sockets of our own, and uvicorn on them without its signal handlers.

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
from embedserve.server.listening import bound_sockets, bracketed

if TYPE_CHECKING:
    import uvicorn

    from embedserve.metrics import Metrics
    from embedserve.rest.app import RestApp

__all__ = ["Accept", "listening_sockets", "serve_rest"]

logger = logging.getLogger("embedserve")

# A client's pooled connection should outlive its pauses: closing an idle one races with its next request.
KEEP_ALIVE = 300
# Seconds that a drain gives busy clients to learn from an answer that they must connect anew.
LINGER = 0.5
LOOKS = 50

Accept: TypeAlias = Callable[
    [list[socket.socket], Callable[[], Any], int, ssl.SSLContext | None, Callable[[], int]], Any
]
"""Takes the connections of listeners: makes an `asyncio.Server`, or what can stand for one, of the listeners, the
connections' protocol, the backlog, the TLS context and how many connections there are."""


@asynccontextmanager
async def serve_rest(
    registry: ModelRegistry,
    config: RestConfig,
    listeners: list[socket.socket],
    metrics: Metrics | None,
    wrap: Callable[[RestApp], Any] | None = None,
    accept: Accept | None = None,
) -> AsyncIterator[None]:
    """Answer REST on `listeners` while the context lasts; leaving it finishes the requests in flight.

    They have `drain_timeout` seconds for it. Nothing happens without a listener. `wrap` makes the application that is
    served of the REST API's; `accept` takes the listeners' connections in place of the loop's own servers.
    """
    if not listeners:
        yield
        return
    import uvicorn

    from embedserve.rest import DEFAULT_METRICS_PATH, create_app
    from embedserve.rest.uvicorn_protocol import Http1Protocol

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
                where = bracketed(host) if config.hosts else "localhost"  # As in the line that tools look for.
                logger.info("Exporting HTTP/REST API at:%s:%d ...", where, port)
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
def listening_sockets(config: RestConfig) -> Iterator[list[socket.socket]]:
    """The REST port at each of its addresses, bound but not listening yet; none without a port.

    So a taken port is known before the models are loaded.

    Raises:
        StartError: The port cannot be had and was asked for, or an address is not this machine's. A taken port that was
            not asked for is logged, and there is none.
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
