"""The direct way of known requests: a whole body to the application's own coroutine, and a whole answer back.

No scope, no `receive` and no `send` stand between. The application names the requests that it knows. The module
decides whether the application may be asked, and when a request goes the ASGI way after all. The module knows no route.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from embedserve.http.heads import Field, RequestHead

if TYPE_CHECKING:
    from uvicorn.server import ServerState

    from embedserve.http.asgi_request import AsgiRequest
    from embedserve.http.connection import Http2Connection
    from embedserve.http.http1 import Http1Connection

__all__ = [
    "PATIENCE",
    "WHOLE_BYTES",
    "Answer",
    "DirectCall",
    "DirectRequest",
    "EncodedFields",
    "Offer",
    "Started",
    "Tell",
    "offer_of",
    "without_proxy_headers",
]

WHOLE_BYTES = 65_536
"""Bytes of a body that may wait for its end. Larger bodies cost far more than the ASGI way, and are read in pieces."""

PATIENCE = 0.02
"""Seconds that a body may wait for its end: the time after which the adapters begin to watch a call."""

logger = logging.getLogger("uvicorn.error")


class Answer(NamedTuple):
    """A whole answer.

    Attributes:
        status: The status code.
        fields: Names in lower case, and values.
        body: All bytes of the body.
        trailers: Fields after the body, for HTTP/2.
        sent: Called once, when the bytes have left or can leave no more.
    """

    status: int
    fields: tuple[Field, ...]
    body: bytes
    trailers: tuple[Field, ...] = ()
    sent: Callable[[], None] | None = None


class Started:
    """A call under way without a coroutine."""

    __slots__ = ()

    def stop(self) -> Answer | None:
        """Give the call up: no answer is told any more. Returns an answer for a client who is still there, if any."""
        raise NotImplementedError


Tell: TypeAlias = Callable[[Answer], None]

DirectCall: TypeAlias = "Callable[[float, bytes, str, Tell], Coroutine[object, None, Answer] | Started | None]"
"""Answers a request; takes the loop's time of the head's arrival, the whole body, the peer's address, and a function to
tell the answer to.

None leaves the request to the ASGI way. A coroutine runs in a task of its own, and is cancelled when the client goes. A
started call tells its answer once, in a later turn of the loop.
"""

Offer: TypeAlias = Callable[[RequestHead, bool], "DirectCall | None"]
"""The method `direct` of an application: takes a head, and whether HTTP/2 carries the request.

The application gives None for requests without a direct way. The result counts for every request with an equal head, so
only the head and constants of the application may decide.
"""


def offer_of(app: Any) -> Offer | None:
    """The method `direct` of an application; None for an application without a direct way.

    The class that defines the application's `__call__` must define `direct` too. Middleware of a host, a subclass with
    a `__call__` of its own and a proxy object therefore see every request: authentication is never passed by.
    """
    for kind in type(app).__mro__:
        if "__call__" in vars(kind):
            offer: Offer | None = app.direct if "direct" in vars(kind) else None
            return offer
    return None


def without_proxy_headers(app: object) -> Any:
    """The application behind uvicorn's own middleware, which changes the client's address and the scheme only."""
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    return app.app if type(app) is ProxyHeadersMiddleware else app


class Link(Protocol):
    """The request's view of the protocol with its connection.

    Attributes:
        client_host: The address of the peer; empty for none.
        partial: Requests on the direct way whose bodies are not whole.
    """

    client_host: str

    connection: Http1Connection | Http2Connection
    encoded: EncodedFields
    loop: asyncio.AbstractEventLoop
    partial: int
    server_state: ServerState
    write_paused: bool

    @property
    def default_fields(self) -> Sequence[Field]:
        """The fields of every answer."""

    def start_asgi(self, stream_id: int, head: RequestHead, body: bytes | None) -> AsgiRequest:
        """Call the application as ASGI; `body` is the whole body, or None as long as bytes are due."""

    def after_send(self, request: DirectRequest) -> None:
        """The connection has new bytes to send."""

    def finished(self, request: DirectRequest) -> None:
        """The request is over."""

    def log_access(self, head: RequestHead, status: int) -> None:
        """An answer begins."""


class EncodedFields:
    """The encoded fields of a connection's last answer, because answers of a kind have the same fields."""

    __slots__ = ("_of",)

    def __init__(self) -> None:
        self._of: tuple[Any, ...] = (None,) * 6

    def of(self, protocol: Link, answer: Answer) -> tuple[bytes, bytes]:
        """The head and the trailers of an answer as bytes."""
        status, fields, _, trailers, _ = answer
        default = protocol.default_fields
        last = self._of
        if last[0] is fields and last[1] is trailers and last[2] is default and last[3] == status:
            return last[4], last[5]
        connection = protocol.connection
        head = connection.encode_head(((b":status", b"%d" % status), *default, *fields))
        tail = connection.encode_trailers(trailers) if trailers else b""
        self._of = fields, trailers, default, status, head, tail
        return head, tail


_PLAIN: tuple[Field, ...] = ((b"content-type", b"text/plain; charset=utf-8"),)


class DirectRequest:
    """A request on the direct way, from its head to the end of its answer; has the events of an `AsgiRequest`."""

    __slots__ = (
        "_answer",
        "_call",
        "_calling",
        "_pieces",
        "_protocol",
        "_sending",
        "_size",
        "_started",
        "_task",
        "began",
        "complete",
        "disconnected",
        "head",
        "stream_id",
    )

    def __init__(self, protocol: Link, stream_id: int, head: RequestHead, call: DirectCall, now: float) -> None:
        self._protocol = protocol
        self.stream_id = stream_id
        self.head = head
        self._call = call
        self.began = now
        self.complete = self.disconnected = self._sending = False
        self._pieces: list[bytes] | None = []
        self._size = 0
        self._task: asyncio.Task[None] | None = None
        self._calling: Coroutine[object, None, Answer] | None = None
        self._started: Started | None = None
        self._answer: Answer | None = None
        protocol.partial += 1

    def __repr__(self) -> str:
        state = "being received" if self._pieces is not None else "answered" if self.complete else "under way"
        return f"<DirectRequest {self.head.target!r}, {state}>"

    @property
    def is_partial(self) -> bool:
        """Whether bytes of the body are due."""
        return self._pieces is not None

    # Events of the connection.

    def progressed(self, size: int, now: float) -> None:
        """Bytes of the body came; the time for the body is bounded as a whole."""

    def feed(self, data: bytes, ended: bool) -> None:
        """Bytes of the body came."""
        pieces = self._pieces
        assert pieces is not None
        pieces.append(data)
        self._size += len(data)
        if ended:
            self.end()
        elif self._size > WHOLE_BYTES:
            self.go_asgi()

    def end(self) -> None:
        """The body is here: call the application."""
        pieces, protocol = self._pieces, self._protocol
        assert pieces is not None
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        calling = self._call(self.began, body, protocol.client_host, self._told)
        if calling is None:
            self.go_asgi(ended=True)
            return
        self._pieces = None
        protocol.partial -= 1
        if body:
            protocol.connection.consume(self.stream_id, len(body))
        if isinstance(calling, Started):
            self._started = calling
            tasks: set[Any] = protocol.server_state.tasks  # uvicorn counts and cancels the members.
            tasks.add(self)
        else:
            self._calling = calling
            self._task = task = protocol.loop.create_task(self._run())
            self._protocol.server_state.tasks.add(task)

    def sent(self, ended: bool) -> None:
        """The waiting bytes of the answer have left."""
        self._sending = False
        self.wake()

    def wake(self) -> None:
        """Finish after the answer, if the client has room for more."""
        if self._answer is not None and not self._sending and not self._protocol.write_paused:
            self._finish()

    def disconnect(self) -> None:
        """The client is gone: no bytes come, and no bytes can be sent."""
        if self._pieces is not None:
            self.go_asgi().disconnect()  # Applications count such requests.
        elif self._answer is not None:
            self._finish()
        elif not self.disconnected and not self.complete:
            self.disconnected = True
            if self._started is not None:
                self._end_started()
                self._protocol.finished(self)
                return
            assert self._task is not None
            self._task.cancel()
            if self._calling is not None:  # The task has not begun, and ends without a step of `_run`.
                self._calling.close()
                self._protocol.server_state.tasks.discard(self._task)
                self._protocol.finished(self)

    def cancel(self, msg: str | None = None) -> None:
        """Cut the started call, as a server cancels a task; the server may be going through its tasks now."""
        self._protocol.loop.call_soon(self._cut)

    def _cut(self) -> None:
        if self._started is None:
            return
        answer = self._end_started()
        if answer is not None:
            self._send(answer)
        else:
            self._break_off()

    def _end_started(self) -> Answer | None:
        started, self._started = self._started, None
        assert started is not None
        self._protocol.server_state.tasks.discard(self)
        return started.stop()

    def go_asgi(self, *, ended: bool = False) -> AsgiRequest:
        """Leave the direct way, with the received part of the body."""
        pieces, self._pieces = self._pieces, None
        assert pieces is not None
        self._protocol.partial -= 1
        request = self._protocol.start_asgi(self.stream_id, self.head, b"".join(pieces) if ended else None)
        if pieces and not ended:
            request.progressed(self._size, self.began)
            request.feed(b"".join(pieces), False)
        return request

    # The answer.

    def _told(self, answer: Answer) -> None:
        """Take the answer of a started call."""
        if self._started is None:  # Its end was on the way as the call was given up.
            if answer.sent is not None:
                answer.sent()
            return
        self._started = None
        self._protocol.server_state.tasks.discard(self)
        self._send(answer)

    async def _run(self) -> None:
        calling, self._calling = self._calling, None
        assert calling is not None
        try:
            answer = await calling
        except Exception as error:
            logger.error("Exception in ASGI application\n", exc_info=error)
            self._break_off()
        except BaseException:
            self._break_off()
            raise
        else:
            self._send(answer)
        finally:
            self._protocol.server_state.tasks.discard(self._task)

    def _send(self, answer: Answer) -> None:
        protocol, self._answer = self._protocol, answer
        if self.disconnected:
            self._finish()
            return
        protocol.log_access(self.head, answer.status)
        head, trailers = protocol.encoded.of(protocol, answer)
        self._sending = not protocol.connection.answer(self.stream_id, head, answer.body, trailers)
        self.complete = True
        if self._sending or protocol.write_paused:
            protocol.after_send(self)
            return
        self._answer = None
        protocol.after_send(self)
        protocol.finished(self)
        if answer.sent is not None:
            answer.sent()

    def _break_off(self) -> None:
        if not self.disconnected:
            self._send(Answer(500, _PLAIN, b"Internal Server Error"))
        else:
            self._protocol.finished(self)

    def _finish(self) -> None:
        """Tell the application, once, that its answer needs no more memory."""
        answer, self._answer = self._answer, None
        self._protocol.finished(self)
        if answer is not None and answer.sent is not None:
            answer.sent()
