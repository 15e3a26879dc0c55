"""HTTP/1.x and HTTP/2 on a port as an asyncio protocol for uvicorn, with uvicorn's sockets, TLS, signals and lifespan.

`uvicorn --http embedserve.http:HttpProtocol`, or `Config(http=HttpProtocol)`. HTTP/2 comes by ALPN under TLS,
and by prior knowledge without TLS. The module decides about time limits; the connections decide about validity.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, cast

from embedserve.http.account import Share
from embedserve.http.admission import admission_of
from embedserve.http.asgi_request import App, AsgiRequest, whole_scope
from embedserve.http.buffers import common_memory
from embedserve.http.connection import Http2Connection
from embedserve.http.direct import (
    PATIENCE,
    WHOLE_BYTES,
    DirectCall,
    DirectRequest,
    EncodedFields,
    offer_of,
    without_proxy_headers,
)
from embedserve.http.events import ClientLeaves, Data, Ended, Event, Pong, Refused, Request, Reset, Trailers
from embedserve.http.frames import PREFACE, ErrorCode
from embedserve.http.heads import Field, RequestHead
from embedserve.http.http1 import STEP_BYTES, Http1Connection
from embedserve.http.http1_heads import reader_of
from embedserve.http.limits import Limits
from embedserve.http.sockets import ALPN_PROTOCOLS, addresses_of, is_unix

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

__all__ = ["HttpProtocol"]

logger = logging.getLogger("uvicorn.error")
access_logger = logging.getLogger("uvicorn.access")

TURN_BYTES = 65_536
"""Bytes of HTTP/1.x answers that wait for the end of the loop's turn: the high-water mark of asyncio's transports."""

TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\nretry-after: 1\r\n\r\n"
"""The answer to a connection over a limit."""

FULL = "the server holds too many bytes of requests and answers"

PROBE_SECONDS = 0.2
"""Seconds from a client's last byte to a probe, and from the probe to its result. Origin: quick answers come unprobed,
and the network's way to and fro is shorter."""

LINGER_SECONDS = 1.0
"""Seconds for a client to stop sending a body that was refused, and to read the refusal."""

CHECK_SECONDS = 1.0
"""Seconds between two checks of a connection's time limits; the limits are much longer."""


class HttpProtocol(asyncio.BufferedProtocol):
    """A connection of either version; a subclass may set different `limits`.

    Attributes:
        limits: The costs that a connection may cause.
        client_host: The address of the peer; empty for none.
        unix_client: Client in the scopes of a Unix socket's connections, which have no address.
        is_retiring: Whether the connection ends after its next answer.
    """

    alpn_protocols: ClassVar[list[str]] = ALPN_PROTOCOLS
    limits: ClassVar[Limits] = Limits()
    unix_client: ClassVar[tuple[str, int] | None] = None

    connection: Http1Connection | Http2Connection
    transport: asyncio.Transport

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self.config = config
        self.app = cast(App, config.loaded_app)
        self.loop = _loop or asyncio.get_running_loop()
        self.server_state = server_state
        self.connections: set[Any] = cast(Any, server_state.connections)
        self.app_state = app_state
        self.access_log = config.access_log and access_logger.hasHandlers()
        self.encoded = EncodedFields()
        self.requests: dict[int, AsgiRequest | DirectRequest] = {}
        self._http1: Http1Connection | None = None
        self._offer = offer_of(without_proxy_headers(self.app)) if not config.root_path else None
        self.partial = 0
        self._late: asyncio.TimerHandle | None = None
        self.write_paused = False
        self._admission = admission_of(server_state, self.app, self.limits)
        self.share = Share(self._admission.account())
        self._memory = common_memory()
        self._reads_body = False
        self._begun = b""
        self._flush_due = self._read_paused = self._leaving = self._lingering = self._is_refused = self._probed = False
        self.is_retiring = False
        self.client_host = ""
        self._active = self._received_at = self._waiting_since = self.loop.time()
        self._unread_bytes = 0
        self._eof_at = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._addresses: dict[str, Any] = {}

    # Calls of the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; under TLS the version is known already."""
        self.transport = cast(asyncio.Transport, transport)
        server, client = addresses_of(transport)
        self.client_host = client[0] if client else ""
        if not self._admission.enter(self.client_host):
            self._turn_away()
            return
        self.connections.add(self)
        tls = transport.get_extra_info("ssl_object")
        self._scheme = b"https" if tls is not None else b"http"
        self._addresses = {
            "server": server,
            "client": self.unix_client if is_unix(transport) else client,
        }
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check_time)
        if tls is not None:
            self._begin(tls.selected_alpn_protocol() == "h2")

    def _turn_away(self) -> None:
        """Refuse a connection over a limit, unread: HTTP/1.x clients understand the answer, HTTP/2's see an end."""
        self._is_refused = True
        self.transport.write(TOO_MANY)
        self.transport.close()

    def _begin(self, is_http2: bool) -> None:
        if is_http2:
            self.connection = Http2Connection(self.limits)
            self._flush_soon()
        else:
            heads = reader_of(self.config, self.limits, self._scheme)
            self.connection = self._http1 = Http1Connection(self.limits, heads, self._wants_whole)
        if self.is_retiring:
            self.retire()

    def _wants_whole(self, head: RequestHead) -> bool:
        """Whether a declared body comes as a single piece; an unknown application may want a large body as a stream."""
        size = head.content_length or 0
        if self._admission.takes_whole(size):
            return self.share.cover(self.connection.held_bytes + min(size, STEP_BYTES))
        return size <= self.limits.stream_window

    def get_buffer(self, sizehint: int) -> memoryview:
        """The memory for the next bytes: a body's own, or memory that all connections of the thread share."""
        body = self._http1.body_buffer() if self._http1 is not None else None
        self._reads_body = body is not None
        return self._memory if body is None else body

    def buffer_updated(self, nbytes: int) -> None:
        """Read the received bytes."""
        if self._is_refused:
            return
        if self._reads_body and self._http1 is not None:
            self._received_at = self.loop.time()
            for request in self.requests.values():
                request.progressed(nbytes, self._received_at)
            self._on_received(self._http1.body_filled(nbytes))
            self._flush()
        else:
            self._on_data(bytes(self._memory[:nbytes]))

    def _on_data(self, data: bytes) -> None:
        now = self._received_at = self.loop.time()
        if not hasattr(self, "connection"):
            data = self._begun + data
            if len(data) < len(PREFACE) and PREFACE.startswith(data):
                self._begun = data
                return
            self._begin(data.startswith(PREFACE))
        connection, http1 = self.connection, self._http1
        if http1 is None:
            assert isinstance(connection, Http2Connection)
            self._on_received(connection.receive(data, now))
            self._active = max(self._active, connection.reader.progress_at)
        else:
            was_idle = http1.is_idle
            self._on_received(http1.receive(data))
            if self._http1 is None:
                return  # A WebSocket has the connection now.
            if http1.is_answering and not self._read_paused:
                self._settle()
                return
            if was_idle and not http1.is_idle:
                self._active = now  # A head has begun; its further bytes give it no further time.
        self._flush()

    def eof_received(self) -> bool:
        """Note the client's last byte; over plain TCP the client may still read its answers."""
        if not hasattr(self, "connection") or isinstance(self.connection, Http2Connection):
            return False
        self._eof_at = self.loop.time()
        self._on_events(self.connection.eof())
        self._flush()
        if not self.requests or self._scheme != b"http":
            return False
        self.loop.call_later(PROBE_SECONDS, self._probe)
        return True

    def _probe(self) -> None:
        """Find out whether a client that sends no more has gone: an end and a half-closed connection look the same.

        A system without the client's socket answers any byte with a reset. A client has to skip an interim response.
        """
        if self.transport.is_closing() or not isinstance(self.connection, Http1Connection):
            return
        if self.connection.probe():
            self._probed = True
            self._flush()
            self.loop.call_later(PROBE_SECONDS, self._abort_if_reset)

    def _abort_if_reset(self) -> None:
        """End a half-closed connection after the client's reset, which no loop reports: the loop reads no more."""
        found = self.transport.get_extra_info("socket")
        if found is not None and not self.transport.is_closing():
            with suppress(OSError):  # The socket is closed already.
                if found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request that its client is gone."""
        if self._is_refused:
            return
        self._leave()
        if self._timer is not None:
            self._timer.cancel()
        if hasattr(self, "connection"):
            self._on_events(self.connection.lost())
        for request in list(self.requests.values()):
            request.disconnect()

    def _leave(self) -> None:
        self.connections.discard(self)
        self._admission.leave(self.client_host)
        self.share.close()

    def pause_writing(self) -> None:
        """Note that the client reads slower than answers are made."""
        self.write_paused = True
        self._waiting_since, self._unread_bytes = self.loop.time(), self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        """Go on writing, as the client has read."""
        self.write_paused = False
        for request in list(self.requests.values()):
            request.wake()
        self._flush()

    def shutdown(self) -> None:
        """Leave after the answers to the current requests (uvicorn's name)."""
        self._leaving = True
        if not hasattr(self, "connection"):
            self.transport.close()
            return
        self.connection.drain()
        self._flush()

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way; an HTTP/2 connection counts as busy, because it may end at any time."""
        connection = getattr(self, "connection", None)
        return isinstance(connection, Http2Connection) or (connection is not None and connection.open_streams > 0)

    def retire(self) -> None:
        """Leave after the next answer: the client of an idle HTTP/1.x connection may be about to ask."""
        self.is_retiring = True
        connection = getattr(self, "connection", None)
        if isinstance(connection, Http1Connection):
            connection.retire()
        elif connection is not None:
            self.shutdown()

    # Calls of requests.

    def consumed(self, stream_id: int, size: int) -> None:
        """The application has taken `size` bytes of a body."""
        self.connection.consume(stream_id, size)
        self._settle()  # At once: the application reserves the same bytes next.
        self._flush_soon()

    def send_continue(self, stream_id: int) -> None:
        """Ask for a body that the client holds back."""
        self.connection.send_informational(stream_id, self.connection.encode_head(((b":status", b"100"),)))
        self._flush_soon()

    @property
    def default_fields(self) -> Sequence[Field]:
        """The fields of every answer; uvicorn renews the date each second."""
        return self.server_state.default_headers

    def after_send(self, request: AsgiRequest | DirectRequest) -> None:
        """Write the new bytes together with all further bytes of the loop's turn; at once where no more can come."""
        if request.complete and self.requests.get(request.stream_id) is request:
            self.server_state.total_requests += 1
        if self._http1 is not None and self._http1.is_idle:
            self._flush()
        elif self.connection.queued_bytes > TURN_BYTES:
            self._flush()  # An application that never waits would otherwise keep the loop from writing.
        else:
            self._flush_soon()

    def finished(self, request: AsgiRequest | DirectRequest) -> None:
        """The application is done with a request."""
        self.requests.pop(request.stream_id, None)
        self._active = self.loop.time()

    def log_access(self, head: RequestHead, status: int) -> None:
        """A line in uvicorn's access log."""
        if self.access_log:
            client = self._addresses["client"]
            address = f"{client[0]}:{client[1]}" if client else ""
            method, target = head.method.decode(), head.target.decode("latin-1")
            access_logger.info('%s - "%s %s HTTP/%s" %d', address, method, target, self._version, status)

    # Within.

    def _on_received(self, events: list[Event]) -> None:
        """Count the bytes that the connection keeps of what came, and go on with the events."""
        if not self.share.cover(self.connection.held_bytes):
            events = self._shed(events)
        self._on_events(events)

    def _shed(self, events: list[Event]) -> list[Event]:
        """Refuse requests until the account covers the rest; the other events remain."""
        connection = self.connection
        if isinstance(connection, Http1Connection):
            return connection.refuse(503, FULL)
        for stream_id in dict.fromkeys(event.stream_id for event in events if isinstance(event, Request | Data)):
            self._admission.refused("memory")
            connection.reset(stream_id, ErrorCode.ENHANCE_YOUR_CALM)
            request = self.requests.get(stream_id)
            if request is not None:
                request.disconnect()
            events = [event for event in events if getattr(event, "stream_id", None) != stream_id]
            if self.share.cover(connection.held_bytes):
                return events
        connection.fail(ErrorCode.ENHANCE_YOUR_CALM, FULL)
        return [*events, *connection.events()]

    def _settle(self) -> None:
        """Count exactly the bytes that the connection and its transport hold."""
        unread = self.transport.get_write_buffer_size() if self.write_paused else self._unread_bytes
        self.share.become(self.connection.held_bytes + unread)

    def _on_events(self, events: list[Event]) -> None:
        while events:
            for event in events:
                if isinstance(event, Request):
                    self._on_request(event)
                elif isinstance(event, Data):
                    if (request := self.requests.get(event.stream_id)) is not None:
                        if not event.ended:
                            request.progressed(len(event.data), self._received_at)
                        request.feed(event.data, event.ended)
                else:
                    self._on_event(event)
            events = self.connection.events() if hasattr(self, "connection") else []
        if self.partial and self._late is None:
            self._late = self.loop.call_later(PATIENCE, self._go_asgi_late)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Ended):
            logger.warning("a connection ended for its client's fault: %s", event.reason)
            self._admission.refused(_reason(event.code, self.connection))
        elif isinstance(event, Refused):
            self._admission.refused(event.reason)
        elif isinstance(event, ClientLeaves):
            self._leaving = True
            self.connection.drain()
        elif not isinstance(event, Pong | Request | Data):
            request = self.requests.get(event.stream_id)
            if request is None:
                return
            if isinstance(event, Trailers):
                request.end()
            elif isinstance(event, Reset):
                request.disconnect()
            else:
                request.sent(event.ended)

    def _on_request(self, event: Request) -> None:
        head, stream_id = event.head, event.stream_id
        call = self._direct_call(head) if head.direct is ... else head.direct
        if call is None and event.ended and not event.body and self._is_websocket(head):
            self._hand_on(head)  # An upgrade with a body is answered as a plain request.
            return
        self._active = self.loop.time()
        limit = self.config.limit_concurrency
        if limit is not None and max(len(self.connections), len(self.server_state.tasks)) >= limit:
            self._admission.refused("concurrency")
            fields = ((b":status", b"503"), (b"content-type", b"text/plain; charset=utf-8"))
            self.connection.answer(stream_id, self.connection.encode_head(fields), b"Service Unavailable")
            return
        if call is None:
            self.start_asgi(stream_id, head, event.body if event.ended else None)
            return
        request = self.requests[stream_id] = DirectRequest(self, stream_id, head, call, self._active)
        if event.body:
            request.feed(event.body, True)
        elif event.ended:
            request.end()

    def _direct_call(self, head: RequestHead) -> DirectCall | None:
        """The only decision between the direct way and the ASGI way, made once per head."""
        whole = (head.content_length or 0) <= WHOLE_BYTES and head.get(b"expect") is None
        fits = self._offer is not None and whole and not self._is_websocket(head)
        head.direct = call = self._offer(head, self._http1 is None) if self._offer is not None and fits else None
        return call

    def start_asgi(self, stream_id: int, head: RequestHead, body: bytes | None) -> AsgiRequest:
        """Call the application as ASGI; `body` is the whole body, or None as long as bytes are due."""
        request = AsgiRequest(self, stream_id, head, self.loop.time(), body)
        request.scope = {**whole_scope(head, self.config, self._version, self.app_state), **self._addresses}
        self.requests[stream_id] = request
        task = self.loop.create_task(request.run(self.app))
        self.server_state.tasks.add(task)
        task.add_done_callback(self.server_state.tasks.discard)
        return request

    @property
    def _version(self) -> str:
        """The HTTP version of the current request."""
        return "2" if isinstance(self.connection, Http2Connection) else self.connection.version

    def _go_asgi_late(self) -> None:
        """Let requests go the ASGI way whose bodies are not whole after PATIENCE seconds."""
        self._late = None
        due = self.loop.time() - PATIENCE
        for request in list(self.requests.values()):
            if isinstance(request, DirectRequest) and request.is_partial and request.began <= due:
                request.go_asgi()
        if self.partial:
            self._late = self.loop.call_later(PATIENCE, self._go_asgi_late)

    def _is_websocket(self, head: RequestHead) -> bool:
        return (
            isinstance(self.connection, Http1Connection)
            and head.method == b"GET"
            and (head.get(b"upgrade") or b"").lower() == b"websocket"
            and b"upgrade" in (head.get(b"connection") or b"").lower()
            and self.config.ws_protocol_class is not None
        )

    def _hand_on(self, head: RequestHead) -> None:
        """Give the connection to uvicorn's WebSocket protocol, with the unchanged head."""
        self._leave()
        if self._timer is not None:
            self._timer.cancel()
        lines = [b"GET %s HTTP/1.1" % head.target, *[name + b": " + value for name, value in head.fields], b"", b""]
        make: Any = self.config.ws_protocol_class
        protocol = make(config=self.config, server_state=self.server_state, app_state=self.app_state)
        del self.connection
        self._http1 = None
        protocol.connection_made(self.transport)
        protocol.data_received(b"\r\n".join(lines))
        self.transport.set_protocol(protocol)

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write the due bytes, once per turn of the loop; then close, or read on."""
        self._flush_due = False
        transport = self.transport
        if not hasattr(self, "connection") or transport.is_closing():
            return
        connection = self.connection
        if events := connection.events():
            self._on_events(events)
        while connection.wants_write and not self.write_paused:
            transport.write(connection.take())
            if events := connection.events():
                self._on_events(events)
        self._settle()
        if connection.is_over and not connection.wants_write:
            self._close()
        elif isinstance(connection, Http1Connection) and connection.wants_read == self._read_paused:
            self._read_paused = not self._read_paused
            (transport.pause_reading if self._read_paused else transport.resume_reading)()

    def _close(self) -> None:
        """Close; a client that still sends a body gets time to read the answer, which unread bytes would destroy."""
        connection, transport = self.connection, self.transport
        if not isinstance(connection, Http1Connection) or connection.has_received or self._scheme != b"http":
            transport.close()
        elif not self._lingering:
            self._lingering = True
            transport.write_eof()
            if self._read_paused:
                transport.resume_reading()
            self.loop.call_later(LINGER_SECONDS, transport.close)

    # Time.

    def _check_time(self) -> None:
        """End requests and connections whose client has exceeded a time limit."""
        now = self.loop.time()
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check_time)
        if self._is_unread(now):
            self._admission.refused("write_timeout")
            self.transport.abort()
        elif self._probed:
            self._abort_if_reset()
            self._check_requests(now)
        elif now - self._eof_at > self.limits.half_closed_timeout:
            self._admission.refused("half_closed_timeout")
            self.transport.abort()
        elif not self.transport.is_closing():
            self._check_head(now)
            self._check_requests(now)
            self._flush()

    def _is_unread(self, now: float) -> bool:
        """Whether the client has read no byte of waiting answers for `write_timeout` seconds."""
        left = self.transport.get_write_buffer_size()
        if left < self._unread_bytes or not (self.write_paused or self.transport.is_closing()):
            self._waiting_since = now
        self._unread_bytes = left
        return now - self._waiting_since > self.limits.write_timeout

    def _check_head(self, now: float) -> None:
        limits, connection = self.limits, getattr(self, "connection", None)
        if isinstance(connection, Http2Connection) and now - connection.reader.head_began > limits.head_timeout:
            self._time_out_head()
        elif self._leaving:
            self.connection.drain()  # A second call ends the wait for the answer to the PING.
            self._flush()
        elif not self.requests:
            idle = connection is not None and self._is_idle()
            if now - self._active > (self.config.timeout_keep_alive if idle else limits.head_timeout):
                if idle:
                    self.shutdown()  # Requests on their way are still answered.
                else:
                    self._time_out_head()

    def _check_requests(self, now: float) -> None:
        for request in list(self.requests.values()):
            if isinstance(request, AsgiRequest) and request.waits_for_body and self._is_slow(request, now):
                self._time_out_request(request)
        connection = getattr(self, "connection", None)
        if isinstance(connection, Http2Connection) and not self.write_paused:
            connection.drop_stuck(now)
            self._flush()

    def _is_idle(self) -> bool:
        return not isinstance(self.connection, Http1Connection) or self.connection.is_idle

    def _is_slow(self, request: AsgiRequest, now: float) -> bool:
        limits = self.limits
        spent = now - request.began
        slow = spent > limits.body_timeout and request.body_bytes < limits.body_rate * spent
        return slow or now - request.last_byte > limits.body_timeout

    def _time_out_head(self) -> None:
        connection = getattr(self, "connection", None)
        if isinstance(connection, Http1Connection):
            self._on_events(connection.refuse(408, "the request's head took too long"))
            self._flush()
        elif isinstance(connection, Http2Connection):
            connection.fail(ErrorCode.ENHANCE_YOUR_CALM, "a head took too long")
            self._flush()
        self.transport.close()

    def _time_out_request(self, request: AsgiRequest) -> None:
        if isinstance(self.connection, Http1Connection):
            self._on_events(self.connection.refuse(408, "the request's body took too long"))
        else:
            self.connection.reset(request.stream_id, ErrorCode.CANCEL)
            self._admission.refused("body_timeout")
        request.disconnect()
        self._flush()


def _reason(code: int, connection: Http1Connection | Http2Connection) -> str:
    if isinstance(connection, Http2Connection):
        return ErrorCode(code).name.lower()
    return "memory" if code == 503 else str(code)
