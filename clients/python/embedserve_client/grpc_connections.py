"""gRPC calls over sockets: connections that threads borrow one at a time, and connections that a loop's tasks share.

Which call is repeated, and where, is not decided here: a failure says only whether the server may have seen the call.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from typing import Protocol

from embedserve_client.address import Address
from embedserve_client.errors import Code, ServingError
from embedserve_client.exchange import Exchange, Failure, Reply, deadline_error, time_left
from embedserve_client.grpc_calls import outgoing, reply_of
from embedserve_client.http2 import Connection, ConnectionEnd, Stream

__all__ = ["GrpcConnections", "GrpcTasks"]

_CHUNK = 1 << 18
"""Bytes that one call of the operating system may receive."""
_MOST_IDLE_SECONDS = 240.0
"""Idle time after which a connection is not used again: balancers drop silent connections without a word."""
_MOST_IDLE = 64
"""Idle connections kept for an address."""


class Settings(Protocol):
    """What connections need to know of their client."""

    connect_timeout: float
    ssl_context: ssl.SSLContext | None
    compress: bool


def _unreachable(address: Address, reason: object) -> Failure:
    error = ServingError(f"{address} cannot be reached: {reason}", code=Code.UNAVAILABLE)
    return Failure(error, repeatable=True, unreachable=True)


def _context(settings: Settings) -> ssl.SSLContext:
    context = settings.ssl_context or ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    return context


class _Socket:
    """A connection for one call at a time."""

    def __init__(self, address: Address, settings: Settings, deadline: float | None) -> None:
        left = time_left(deadline)
        timeout = settings.connect_timeout if left is None else min(left, settings.connect_timeout)
        try:
            self._socket = _connected(address, timeout, settings)
        except OSError as error:
            time_left(deadline)
            raise _unreachable(address, error) from None
        self._http2 = Connection()
        self.process = os.getpid()
        self._used = time.monotonic()

    def usable(self) -> bool:
        """Whether the connection is open, as far as the operating system knows; reads what has come since."""
        if time.monotonic() - self._used > _MOST_IDLE_SECONDS:
            return False
        try:
            self._socket.settimeout(0)
            data = self._socket.recv(_CHUNK)
        except (BlockingIOError, ssl.SSLWantReadError):
            return self._http2.closing is None
        except OSError:
            return False
        if not data:
            return False
        self._http2.feed(data)
        return not self._http2.full

    def call(self, block: bytes, parts: list[bytes | memoryview], deadline: float | None) -> Stream:
        """Send a request and wait for the end of the answer.

        Raises:
            Failure: The connection has ended, and whether the server may have seen the request.
            DeadlineExceededError: The deadline has passed; the server is told.
        """
        try:
            stream = self._http2.open(block, parts)
        except ConnectionEnd as error:
            raise Failure(ServingError(f"no answer: {error}", code=Code.UNAVAILABLE), repeatable=True) from None
        try:
            while True:
                self._send(deadline)
                if stream.done:
                    self._used = time.monotonic()
                    return stream
                self._socket.settimeout(time_left(deadline))
                data = self._socket.recv(_CHUNK)
                if data:
                    self._http2.feed(data)
                else:
                    self._http2.lost("the connection ended before the answer")
        except TimeoutError:
            self._give_up(stream)
            raise deadline_error() from None
        except OSError as error:
            self._http2.lost(f"the connection broke before the answer: {error}")
            return stream

    def _send(self, deadline: float | None) -> None:
        data = self._http2.take()
        if data:
            self._socket.settimeout(time_left(deadline))
            self._socket.sendall(data)

    def _give_up(self, stream: Stream) -> None:
        self._http2.cancel(stream)
        with contextlib.suppress(OSError):
            self._socket.settimeout(0.05)
            self._socket.sendall(self._http2.take())

    def close(self) -> None:
        """Close the socket; the server ends what still runs for it."""
        with contextlib.suppress(OSError):
            self._socket.close()


def _connected(address: Address, timeout: float, settings: Settings) -> socket.socket:
    if address.path:
        plain = socket.socket(socket.AF_UNIX)
        try:
            plain.settimeout(timeout)
            plain.connect(address.path)
        except BaseException:
            plain.close()
            raise
        return plain
    plain = socket.create_connection((address.host, address.port), timeout)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not address.secure:
            return plain
        wrapped = _context(settings).wrap_socket(plain, server_hostname=address.host)
        if wrapped.selected_alpn_protocol() != "h2":
            wrapped.close()
            raise OSError("the server offers no HTTP/2 over TLS (ALPN h2)")
        return wrapped
    except BaseException:
        plain.close()
        raise


class GrpcConnections:
    """Blocking gRPC calls to one address, from any number of threads; each call has a connection of its own."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self._address = address
        self._settings = settings
        self._idle: list[_Socket] = []
        self._closed = False

    def exchange(self, exchange: Exchange) -> Reply:
        """Send a request and return the reply.

        Raises:
            Failure: No reply.
            DeadlineExceededError: The deadline has passed.
        """
        address = self._address
        block, parts = outgoing(address.scheme, address.authority, exchange, self._settings.compress)
        connection = self._borrow(exchange.deadline)
        try:
            stream = connection.call(block, parts, exchange.deadline)
        except BaseException:
            connection.close()
            raise
        self._give_back(connection)
        return reply_of(stream)

    def _borrow(self, deadline: float | None) -> _Socket:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # Another thread was quicker.
                break
            if connection.process != os.getpid():
                continue  # The parent of a fork goes on with its own end.
            if connection.usable():
                return connection
            connection.close()
        return _Socket(self._address, self._settings, deadline)

    def _give_back(self, connection: _Socket) -> None:
        if self._closed or len(self._idle) >= _MOST_IDLE:
            connection.close()
        else:
            self._idle.append(connection)

    def close(self) -> None:
        """Close the idle connections; calls that run still end."""
        self._closed = True
        while self._idle:
            with contextlib.suppress(IndexError):
                self._idle.pop().close()


class _Shared(asyncio.Protocol):
    """A connection for any number of calls of one event loop at a time."""

    def __init__(self) -> None:
        self.http2 = Connection()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.http2.feed(data)
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.http2.lost(f"the connection ended before the answer{f': {error}' if error else ''}")

    def flush(self) -> None:
        """Send what the state machine wants to send."""
        data = self.http2.take()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
        if self.http2.closing is not None and not len(self.http2):
            self.close()

    async def call(self, block: bytes, parts: list[bytes | memoryview], left: float | None) -> Stream:
        """Send a request and wait for the end of the answer; a cancelled wait cancels the call."""
        stream = self.http2.open(block, parts)
        ended = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not ended.done():
                ended.set_result(None)

        stream.on_done = end
        self.flush()
        try:
            if not stream.done:
                async with asyncio.timeout(left):
                    await ended
        except TimeoutError:
            raise deadline_error() from None
        finally:
            self.http2.cancel(stream)  # Only of effect for a call without an end.
            self.flush()
        return stream

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()


class GrpcTasks:
    """Awaited gRPC calls to one address; the tasks of a loop share connections."""

    def __init__(self, address: Address, settings: Settings) -> None:
        self._address = address
        self._settings = settings
        self._shared: list[_Shared] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: asyncio.Task[_Shared] | None = None

    async def exchange(self, exchange: Exchange) -> Reply:
        """Send a request and return the reply.

        Raises:
            Failure: No reply.
            DeadlineExceededError: The deadline has passed.
        """
        address = self._address
        connection = await self._borrow(exchange.deadline)
        block, parts = outgoing(address.scheme, address.authority, exchange, self._settings.compress)
        try:
            stream = await connection.call(block, parts, time_left(exchange.deadline))
        except ConnectionEnd as error:
            raise Failure(ServingError(f"no answer: {error}", code=Code.UNAVAILABLE), repeatable=True) from None
        return reply_of(stream)

    async def _borrow(self, deadline: float | None) -> _Shared:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # Connections live and end with their loop.
            self._loop, self._shared, self._connecting = loop, [], None
        while True:
            self._shared = [one for one in self._shared if one.http2.closing is None]
            free = next((one for one in self._shared if not one.http2.full), None)
            if free is not None:
                return free
            if self._connecting is None:
                self._connecting = loop.create_task(self._connect())
                self._connecting.add_done_callback(self._connected)
            left = time_left(deadline)
            done, _ = await asyncio.wait([self._connecting], timeout=left)
            for task in done:
                task.result()
            time_left(deadline)

    def _connected(self, task: asyncio.Task[_Shared]) -> None:
        if task is self._connecting:
            self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._shared.append(task.result())

    async def _connect(self) -> _Shared:
        address, loop = self._address, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._settings.connect_timeout):
                if address.path:
                    _, connection = await loop.create_unix_connection(_Shared, address.path)
                    return connection
                context = _context(self._settings) if address.secure else None
                transport, connection = await loop.create_connection(
                    _Shared, address.host, address.port, ssl=context, server_hostname=address.host if context else None
                )
        except (OSError, TimeoutError) as error:
            raise _unreachable(address, error or "no answer in time") from None
        wrapped = transport.get_extra_info("ssl_object")
        if wrapped is not None and wrapped.selected_alpn_protocol() != "h2":
            transport.close()
            raise _unreachable(address, "the server offers no HTTP/2 over TLS (ALPN h2)")
        return connection

    async def aclose(self) -> None:
        """Close the connections; calls that run fail."""
        if self._connecting is not None and self._loop is asyncio.get_running_loop():
            self._connecting.cancel()
        shared, self._shared = self._shared, []
        for connection in shared:
            connection.close()
        await asyncio.sleep(0)  # The transports close in the next turn of the loop.
