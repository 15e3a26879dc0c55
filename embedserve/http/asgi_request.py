"""A request as ASGI (HTTP connection scope 2.3, with trailers): a scope, `receive` and `send` on a connection.

The module decides nothing about the wire: connections of both versions take the same calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from urllib.parse import unquote

from embedserve.http.connection import Http2Connection
from embedserve.http.frames import ErrorCode
from embedserve.http.heads import Field, RequestHead
from embedserve.http.http1 import Http1Connection

if TYPE_CHECKING:
    from uvicorn.config import Config

__all__ = ["App", "AsgiRequest", "Link", "scope_of"]

Message: TypeAlias = MutableMapping[str, Any]
App: TypeAlias = Callable[[dict[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Any]

logger = logging.getLogger("uvicorn.error")


class Link(Protocol):
    """The request's view of the protocol with its connection."""

    connection: Http1Connection | Http2Connection
    write_paused: bool

    @property
    def default_fields(self) -> Sequence[Field]:
        """The fields of every answer."""

    def consumed(self, stream_id: int, size: int) -> None:
        """The application has taken bytes of the body."""

    def send_continue(self, stream_id: int) -> None:
        """The application asks for a body that the client holds back."""

    def after_send(self, request: AsgiRequest) -> None:
        """The connection has new bytes to send."""

    def finished(self, request: AsgiRequest) -> None:
        """The application is done."""

    def log_access(self, head: RequestHead, status: int) -> None:
        """An answer begins."""


def scope_of(head: RequestHead, root_path: str) -> dict[str, Any]:
    """The common part of the scopes of equal heads; made once per head."""
    if head.scope is not None:
        return head.scope
    raw_path, _, query = head.target.partition(b"?")
    fields: tuple[Field, ...] = head.fields
    if head.authority and head.get(b"host") is None:
        fields = ((b"host", head.authority), *fields)
    head.scope = made = {
        "type": "http",
        "method": head.method.decode(),
        "scheme": head.scheme.decode(),
        "root_path": root_path,
        "path": root_path + unquote(raw_path.decode("latin-1")),
        "raw_path": root_path.encode() + raw_path,
        "query_string": query,
        "headers": fields,
    }
    return made


def whole_scope(head: RequestHead, config: Config, version: str, state: dict[str, Any]) -> dict[str, Any]:
    """The scope of a request but the addresses; new for each request, because applications may change a scope."""
    shared = scope_of(head, config.root_path)
    made = {
        **shared,
        "headers": list(shared["headers"]),
        "asgi": {"version": config.asgi_version, "spec_version": "2.3"},
        "http_version": version,
        "state": state.copy(),
    }
    if version != "1.0":
        made["extensions"] = {"http.response.trailers": {}}
    return made


class AsgiRequest:
    """A request between its head and the end of its answer."""

    __slots__ = (
        "_body",
        "_changed",
        "_expects",
        "_fields",
        "_head_sent",
        "_held",
        "_protocol",
        "_sending",
        "_trailers",
        "_trailers_due",
        "began",
        "body_bytes",
        "complete",
        "disconnected",
        "ended",
        "head",
        "last_byte",
        "scope",
        "stream_id",
    )

    def __init__(
        self, protocol: Link, stream_id: int, head: RequestHead, now: float, body: bytes | None = None
    ) -> None:
        """A request whose body is whole already, or None as long as bytes are due."""
        self._protocol = protocol
        self.stream_id = stream_id
        self.head = head
        self.ended = ended = body is not None
        self.scope: dict[str, Any] = {}
        self.disconnected = self.complete = False
        self.began = self.last_byte = now
        self.body_bytes = 0
        self._body: list[bytes] = [] if body is None else [body]
        self._changed = asyncio.Event()
        self._expects = not ended and (head.get(b"expect") or b"").lower() == b"100-continue"
        self._fields: list[Field] | None = None
        self._held: bytes | None = None
        self._head_sent = self._sending = self._trailers_due = False
        self._trailers: list[Field] = []

    @property
    def waits_for_body(self) -> bool:
        """Whether the application has taken all received bytes, and further bytes are due."""
        return not self.ended and not self._body and not self._expects and not self.complete

    # Events of the connection.

    def feed(self, data: bytes, ended: bool) -> None:
        """Bytes of the body came."""
        self._body.append(data)
        self.ended = ended
        self._changed.set()

    def progressed(self, size: int, now: float) -> None:
        """Bytes of the body came, given to `feed` or into the buffer of the whole body."""
        self.last_byte = now
        self.body_bytes += size

    def end(self) -> None:
        """The body ended with trailers; ASGI has no message for trailers of a request."""
        self._body.append(b"")
        self.ended = True
        self._changed.set()

    def sent(self, ended: bool) -> None:
        """The waiting bytes of the answer have left."""
        self._sending = False
        self._changed.set()

    def disconnect(self) -> None:
        """The client is gone: no bytes come, and no bytes can be sent."""
        self.disconnected = True
        self._body.clear()
        self._changed.set()

    # Calls of the application.

    async def receive(self) -> Message:
        """The next piece of the body, or `http.disconnect` after the request's end."""
        while True:
            if self._body and not self.disconnected:
                body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
                self._body.clear()
                self._protocol.consumed(self.stream_id, len(body))
                return {"type": "http.request", "body": body, "more_body": not self.ended}
            if self.disconnected or self.complete:
                return {"type": "http.disconnect"}
            if self._expects and not self._head_sent:
                self._expects = False
                self._protocol.send_continue(self.stream_id)
            self._changed.clear()
            await self._changed.wait()

    async def send(self, message: Message) -> None:
        """Send the content of an ASGI message; returns when the client has room for more."""
        kind = message["type"]
        if self.disconnected:
            return
        if self.complete:
            raise RuntimeError(f"the answer is complete, and {kind} came after it")
        if self._fields is None:
            if kind != "http.response.start":
                raise RuntimeError(f"{kind} came, expected http.response.start")
            status = b"%d" % message["status"]
            self._fields = [
                (b":status", status),
                *self._protocol.default_fields,
                *map(tuple, message.get("headers", ())),
            ]
            self._trailers_due = message.get("trailers", False)
            self._protocol.log_access(self.head, message["status"])
        elif kind == "http.response.body":
            self._send_body(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.trailers" and self._trailers_due:
            self._trailers += map(tuple, message.get("headers", ()))
            if not message.get("more_trailers", False):
                self._send_trailers()
        else:
            raise RuntimeError(f"{kind} came, expected http.response.body")
        while (self._sending or self._protocol.write_paused) and not self.disconnected:
            self._changed.clear()
            await self._changed.wait()

    def wake(self) -> None:
        """The transport takes bytes again."""
        self._changed.set()

    def _send_body(self, body: bytes, more: bool) -> None:
        assert self._fields is not None
        connection = self._protocol.connection
        if self._held is not None:
            self._send_head()
            self._sending = not connection.send_data(self.stream_id, self._held)
            self._held = None
        if not self._head_sent and not more:
            if self._trailers_due:
                self._held = bytes(body)
                return
            head = connection.encode_head(self._fields)
            self._head_sent = ended = True
            self._sending = not connection.answer(self.stream_id, head, bytes(body))
        else:
            self._send_head()
            ended = not more and not self._trailers_due
            self._sending = not connection.send_data(self.stream_id, bytes(body), ended=ended)
        self.complete = ended  # Only now: an answer that the connection refuses is still to be broken off.
        self._protocol.after_send(self)

    def _send_trailers(self) -> None:
        assert self._fields is not None
        connection = self._protocol.connection
        trailers = connection.encode_trailers(self._trailers)
        if self._head_sent:
            self._sending = not connection.send_trailers(self.stream_id, trailers)
        else:
            head = connection.encode_head(self._fields)
            self._head_sent = True
            self._sending = not connection.answer(self.stream_id, head, self._held or b"", trailers)
        self.complete = True
        self._protocol.after_send(self)

    def _send_head(self) -> None:
        if not self._head_sent:
            assert self._fields is not None
            self._head_sent = True
            connection = self._protocol.connection
            connection.send_head(self.stream_id, connection.encode_head(self._fields))

    async def run(self, app: App) -> None:
        """Call the application, and end an answer that the application left open."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception as error:
            logger.error("Exception in ASGI application\n", exc_info=error)
            self._break_off()
        except BaseException:
            self._break_off()
            raise
        else:
            if not self.complete and not self.disconnected:
                logger.error("ASGI callable returned without completing response.")
                self._break_off()
        finally:
            self._protocol.finished(self)

    def _break_off(self) -> None:
        if self.disconnected or self.complete:
            return
        self.complete = True
        connection = self._protocol.connection
        if self._head_sent:
            connection.reset(self.stream_id, ErrorCode.INTERNAL_ERROR)
        else:
            fields = ((b":status", b"500"), (b"content-type", b"text/plain; charset=utf-8"))
            connection.answer(self.stream_id, connection.encode_head(fields), b"Internal Server Error")
        self._protocol.after_send(self)
