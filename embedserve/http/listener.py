"""An ASGI application on bound sockets in the running loop: opened once, and drained without the loss of a request.

The module decides about the steps of a drain. `HttpProtocol` decides about connections.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import socket
import ssl
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from embedserve.http.limits import Limits
from embedserve.http.protocol import HttpProtocol
from embedserve.http.sockets import UnixSocket

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

__all__ = ["KEEP_ALIVE", "Accept", "HttpListener"]

logger = logging.getLogger("embedserve")

KEEP_ALIVE = 300.0
"""Seconds of an idle connection. A pooled connection should outlive a client's pauses: closing an idle connection races
with the next request."""
LINGER = 0.5
"""Seconds of a drain for busy clients to receive an answer with `connection: close`, or a GOAWAY."""
LOOK = 0.01
"""Seconds between two checks for open connections."""
LAST_ANSWERS = 1.0
"""Seconds for requests that are cut to send an error."""
BACKLOG = 2048
"""Connections queued by the kernel: uvicorn's default."""

LOCAL_CLIENT = ("127.0.0.1", 0)
"""Client of a Unix socket's connections: a process of the same machine."""

Accept: TypeAlias = Callable[
    [Sequence[socket.socket], Callable[[], asyncio.BaseProtocol], int, ssl.SSLContext | None, "HttpListener"], Any
]
"""Accepts the connections of sockets in place of the loop's servers, and has their `close`, and `wait_closed`.

Arguments: the sockets, the protocol's factory, the backlog, the TLS context, and the listener.
"""


class HttpListener:
    """Answers an application's requests from `open` to the end of `drain`.

    Args:
        app: The ASGI application; its lifespan is the owner's.
        sockets: Bound sockets, of TCP or Unix, which the listener closes.
        unix: A Unix socket that the listener binds, publishes and removes.
        tls: TLS context, or None for plain text.
        limits: The costs that a connection may cause.
        keep_alive: Seconds until an idle connection ends.
        ages: Seconds until a connection ends after its next answers (gRPC's `max_connection_age`, give or take a tenth
            at random), and seconds more until its requests are cut.
        accept: Accepts connections in place of the loop's servers.
        cut: Called when the time of a drain is over, before the remaining requests are cancelled.
    """

    def __init__(
        self,
        app: Any,
        sockets: Sequence[socket.socket],
        *,
        unix: UnixSocket | None = None,
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
        keep_alive: float = KEEP_ALIVE,
        ages: tuple[float, float] = (math.inf, math.inf),
        accept: Accept | None = None,
        cut: Callable[[], None] = lambda: None,
    ) -> None:
        self._app = app
        self._sockets = list(sockets)
        self._unix = unix
        self._tls = tls
        self._limits = limits or Limits()
        self._keep_alive = keep_alive
        self._max_age, self._age_grace = ages
        self._accept = accept
        self._cut = cut
        self._servers: list[Any] = []
        self._acceptor: Any = None
        self._state: ServerState | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._ended = asyncio.Event()

    def __repr__(self) -> str:
        state = "closed" if self._ended.is_set() else "open" if self._state else "not open"
        return f"<HttpListener {state}, {self.connections} connections>"

    @property
    def connections(self) -> int:
        """Number of connections."""
        return 0 if self._state is None else len(self._state.connections)

    @property
    def _connections(self) -> set[Any]:
        found: Any = set() if self._state is None else self._state.connections
        return set(found)

    async def open(self) -> None:
        """Listen and answer.

        Raises:
            OSError: A socket cannot listen: two servers were bound to a port that neither listened on.
        """
        from uvicorn.config import Config
        from uvicorn.server import ServerState

        config = Config(
            self._app,
            http=cast(Any, HttpProtocol),
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=self._keep_alive,  # type: ignore[arg-type]  # Fractions count.
        )
        config.load()
        config.access_log = False  # As an argument, the value would end the access log of the whole process.
        self._state = ServerState()
        self._each_second()
        try:
            if self._unix is not None:
                self._sockets.append(await asyncio.to_thread(self._unix.bind))
            await self._listen(config, self._state)
            if self._unix is not None:
                await asyncio.to_thread(self._unix.publish)
        except BaseException:
            await self.drain(0.0)
            raise

    async def _listen(self, config: Config, state: ServerState) -> None:
        class Connection(HttpProtocol):
            limits = self._limits
            unix_client = LOCAL_CLIENT
            retires_at = math.inf

            def connection_made(connection, transport: asyncio.BaseTransport) -> None:  # noqa: N805
                connection.retires_at = connection.loop.time() + self._max_age * random.uniform(0.9, 1.1)
                super().connection_made(transport)

        def make() -> HttpProtocol:
            return Connection(config, state, {})

        if self._accept is not None:
            self._acceptor = self._accept(self._sockets, make, BACKLOG, self._tls, self)
            return
        loop = asyncio.get_running_loop()
        for each in self._sockets:
            create: Any = loop.create_unix_server if each.family == socket.AF_UNIX else loop.create_server
            self._servers.append(await create(make, sock=each, ssl=self._tls, backlog=BACKLOG))

    def _each_second(self) -> None:
        """Renew the `date` of answers, and end connections over their age."""
        assert self._state is not None
        loop = asyncio.get_running_loop()
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._ticking = loop.call_later(1.0, self._each_second)
        if self._max_age < math.inf:
            now = loop.time()
            for each in self._connections:
                if now > each.retires_at + self._age_grace:
                    each.transport.abort()
                elif now > each.retires_at and not each.is_retiring:
                    each.retire()

    def retire(self, count: int) -> None:
        """End `count` busy connections after their next answers, so that the clients connect anew."""
        busy = [each for each in self._connections if each.is_busy]
        count -= sum(each.is_retiring for each in busy)
        for each in busy:
            if count > 0 and not each.is_retiring:
                each.retire()
                count -= 1

    async def wait(self) -> None:
        """Return at the end of the drain."""
        await self._ended.wait()

    async def drain(self, timeout: float) -> None:
        """Leave in order; the only place that decides the order for a port.

        1. Accept no more connections.
        2. Linger: for half a second, connections of busy clients end with their next answers. Ending a connection
           between two requests would lose the second request.
        3. End idle connections, and wait for the answers in flight.
        4. After `timeout` seconds in all, cancel the remaining requests, which send an error.
        5. Close the remaining connections.

        Args:
            timeout: Seconds; 0 cuts at once.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        for server in self._servers:
            server.close()
        if self._acceptor is not None:
            self._acceptor.close()
            await self._acceptor.wait_closed()
        for each in self._sockets:
            each.close()
        await self._until(self._is_free, min(end, loop.time() + LINGER), lambda each: each.retire())
        await self._until(self._is_free, end, lambda each: each.shutdown())
        if not self._is_free():
            await self._cut_short()
        if self._ticking is not None:
            self._ticking.cancel()
        if self._unix is not None:
            await asyncio.to_thread(self._unix.remove)
        self._ended.set()

    def _is_free(self) -> bool:
        return self._state is None or not (self._state.connections or self._state.tasks)

    async def _until(self, done: Callable[[], bool], end: float, each: Callable[[Any], None] | None = None) -> None:
        """Wait for `done` until `end`, and apply `each` to all connections, also those that come meanwhile."""
        loop = asyncio.get_running_loop()
        seen: set[Any] = set()
        while not done() and loop.time() < end:
            for connection in self._connections - seen if each is not None else ():
                assert each is not None
                each(connection)
                seen.add(connection)
            await asyncio.sleep(LOOK)

    async def _cut_short(self) -> None:
        assert self._state is not None
        if self._state.tasks:
            logger.warning("The time of the drain is over: %d requests are cut", len(self._state.tasks))
        self._cut()
        for task in list(self._state.tasks):
            task.cancel()
        await self._until(self._is_free, asyncio.get_running_loop().time() + LAST_ANSWERS)
        for connection in self._connections:
            connection.transport.abort()
