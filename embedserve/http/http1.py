"""The server's side of an HTTP/1.x connection (RFC 9112): bytes in, events and bytes out, as for HTTP/2.

Requests are served one after another. Bytes behind a request wait for its answer, and `wants_read` bounds the waiting
bytes. The module knows no loop, no socket and no clock.
"""

from __future__ import annotations

from collections.abc import Callable

from embedserve.http.buffers import BodyBuffer
from embedserve.http.chunks import ChunkReader
from embedserve.http.events import Data, Ended, Event, Request, Reset, Trailers
from embedserve.http.heads import RequestHead
from embedserve.http.http1_heads import Http1Head, Http1HeadReader, RefusedError, encode_head, encode_trailers
from embedserve.http.limits import Limits

__all__ = ["Http1Connection"]

_NO_BODY = (b"204", b"304")
_END_OF_HEAD = b"\r\n\r\n"

STEP_BYTES = 1 << 20
"""Bytes of a body in a single buffer that are counted ahead of their arrival: the largest read into the buffer."""


class Http1Connection:
    """An HTTP/1.x connection; `stream_id` is the number of a request, from 1.

    A request ends exactly once for the user: by the end of an answer, by `Reset`, or by a call of `reset`. Sends for a
    request that is over are dropped silently.

    Args:
        limits: The costs that the client may cause.
        heads: Reads heads; connections with the same reader share its memory of heads.
        wants_whole: Called with the head of each declared body of `direct_body_bytes` or more that did not come with
            its head. After True the body is received into a single buffer, and a single Data event reports the body.
    """

    encode_head = staticmethod(encode_head)
    encode_trailers = staticmethod(encode_trailers)

    def __init__(
        self,
        limits: Limits | None = None,
        heads: Http1HeadReader | None = None,
        wants_whole: Callable[[RequestHead], bool] | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._heads = heads or Http1HeadReader(self._limits)
        self._remembered = self._heads.remembered
        self._wants_whole = wants_whole
        self._buffer = b""
        self._events: list[Event] = []
        self._out: list[bytes | memoryview] = []
        self._id = 0
        self._request: Http1Head | None = None
        self._received = self._eof = self._over = self._draining = self._retiring = False
        self._body_left = 0
        self._chunks: ChunkReader | None = None
        self._whole: BodyBuffer | None = None
        self._filling: BodyBuffer | None = None
        self._unconsumed = 0
        self._head_sent = self._ended = self._continued = self._close = False
        self._out_chunked = self._out_no_body = False
        self._out_bytes = 0
        self._out_left: int | None = None

    def __repr__(self) -> str:
        state = "over" if self._over else "idle" if self._request is None else "busy"
        return f"<Http1Connection {state}, request {self._id}, {len(self._buffer)} bytes unread>"

    @property
    def is_over(self) -> bool:
        """Whether only the bytes of `take` are left to send."""
        return self._over or (self._draining and self._request is None)

    @property
    def is_idle(self) -> bool:
        """Whether no request is being received or answered."""
        return self._request is None and not self._buffer

    @property
    def is_answering(self) -> bool:
        """Whether the application has the whole request, and there is nothing to read and nothing to send."""
        waiting = self._out or self._buffer or self._unconsumed or self._events
        return self._received and self._request is not None and not (waiting or self._over or self._eof)

    @property
    def has_received(self) -> bool:
        """Whether no byte of the current request is missing."""
        return self._request is None or self._received

    @property
    def version(self) -> str:
        """The version of the current request."""
        return "1.0" if self._request is not None and self._request.is_1_0 else "1.1"

    @property
    def open_streams(self) -> int:
        """Requests that are not over: 0 or 1."""
        return int(self._request is not None and not self._ended and not self._over)

    @property
    def queued_bytes(self) -> int:
        """Bytes of answers that `take` would return."""
        return self._out_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes that the connection keeps for its client: heads, bodies and answers, a step of a buffer ahead."""
        held = len(self._buffer) + self._unconsumed + self._out_bytes
        if self._request is not None:
            held += self._request.head.size
        if self._whole is not None:
            held += min(self._whole.size, self._whole.filled + STEP_BYTES)
        return held

    @property
    def wants_read(self) -> bool:
        """Whether more bytes may come; if not, pause the transport."""
        return (
            not self._over
            and len(self._buffer) <= self._limits.max_header_bytes
            and self._unconsumed <= self._limits.stream_window
        )

    @property
    def wants_write(self) -> bool:
        """Whether `take` would return bytes."""
        return bool(self._out)

    # Receiving.

    def receive(self, data: bytes, now: float = 0.0) -> list[Event]:
        """Take the client's bytes, in pieces of any size; only HTTP/2 uses `now`.

        Returns:
            Events in order. Violations are events too; the method raises no error.
        """
        if self._over or self._eof:
            return self.events()
        if self._request is None and not self._buffer:
            end = data.find(_END_OF_HEAD) + len(_END_OF_HEAD)
            found = self._remembered.get(data[:end])
            if (
                found is not None and len(data) - end == found.body_bytes
            ):  # The common case: a known head, a whole body.
                self._begin(found, data[end:])
                return self.events()
        self._buffer = self._buffer + data if self._buffer else data
        self._advance()
        return self.events()

    def events(self) -> list[Event]:
        """The events since the last call: the end of an answer may bring the next request."""
        events, self._events = self._events, []
        return events

    def eof(self) -> list[Event]:
        """Note the client's last byte: complete requests are still answered."""
        self._eof = True
        if self._request is None or not self._received:
            self._end_early(400)
            self._stop()
        return self.events()

    def lost(self) -> list[Event]:
        """End after the transport's loss; returns a `Reset` for an unanswered request."""
        self._end_early(400)
        self._stop()
        self._out.clear()
        self._out_bytes = 0
        return self.events()

    def body_buffer(self) -> memoryview | None:
        """The memory for the next bytes of a body in a single buffer, up to `body_filled`; None for any other bytes."""
        self._filling = self._whole  # The memory lives as long as the caller may write.
        return self._whole.rest(STEP_BYTES) if self._whole is not None else None

    def body_filled(self, size: int) -> list[Event]:
        """Note that the caller has put `size` bytes into `body_buffer`."""
        self._filling = None
        self._body_left -= size
        self._received = not self._body_left
        if self._whole is not None:
            self._whole.filled += size
            self._end_whole(self._whole)
        self._advance()
        return self.events()

    def refuse(self, status: int, reason: str) -> list[Event]:
        """End the connection for the client's fault; the answer has `status`, unless an answer has begun."""
        if not self._over:
            self._refuse(RefusedError(status, reason))
        return self.events()

    def consume(self, stream_id: int, size: int) -> None:
        """Release `size` bytes of Data events."""
        if stream_id == self._id:
            self._unconsumed = max(0, self._unconsumed - size)

    def _advance(self) -> None:
        """Read the buffered bytes as far as the order of requests allows."""
        try:
            while not self._over:
                if self._request is None:
                    if not self._read_head():
                        return
                elif not self._received:
                    if not self._read_body():
                        return
                elif self._ended:
                    self._next()
                else:
                    return
        except RefusedError as error:
            self._refuse(error)

    def _read_head(self) -> bool:
        data = self._buffer
        while data.startswith(b"\r\n"):
            data = data[2:]
        end = data.find(_END_OF_HEAD)
        if end < 0:
            self._buffer = data
            if b"\n\n" in data or data.startswith(b"\n"):
                raise RefusedError(400, "a line ends without a carriage return")
            self._heads.check_partial(data)
            self._heads.check_begin(data)
            if self._draining or self._eof:
                self._over = True
            return False
        found = self._heads.read(data[: end + 4])
        at, size = end + 4, found.body_bytes
        if 0 <= size <= len(data) - at:
            self._buffer = data[at + size :]
            self._begin(found, data[at : at + size])
            return True
        self._buffer = data[at:]
        self._begin(found, None)
        self._chunks = ChunkReader(self._limits) if found.chunked else None
        self._body_left = max(0, size)
        if size >= self._limits.direct_body_bytes and self._wants_whole and self._wants_whole(found.head):
            self._whole = BodyBuffer(size)
        return True

    def _begin(self, found: Http1Head, body: bytes | None) -> None:
        """Begin a request, with the whole body, or with None for a body that is to be read."""
        self._id += 1
        self._request = found
        self._head_sent = self._ended = self._continued = False
        self._close = not found.keep_alive or self._draining or self._retiring
        self._received = body is not None
        self._unconsumed = len(body) if body is not None else 0
        self._events.append(Request(self._id, found.head, self._received, body or b""))

    def _read_body(self) -> bool:
        """Whether any byte was read."""
        data = self._buffer
        if self._chunks is not None:
            return self._read_chunks(self._chunks)
        if not data:
            return False
        if len(data) <= self._body_left:
            piece, self._buffer = data, b""
        else:
            piece, self._buffer = data[: self._body_left], data[self._body_left :]
        self._body_left -= len(piece)
        if self._whole is not None:
            self._whole.put(piece)
            self._end_whole(self._whole)
        else:
            self._received = not self._body_left
            self._tell(piece, self._received)
        return True

    def _end_whole(self, whole: BodyBuffer) -> None:
        if not self._body_left:
            self._whole = None
            self._received = True
            self._tell(whole.take(), True)

    def _read_chunks(self, chunks: ChunkReader) -> bool:
        before = len(self._buffer)
        pieces, at = chunks.read(self._buffer, 0)
        self._buffer = self._buffer[at:]
        self._received = chunks.ended
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        ended = chunks.ended and not chunks.trailers
        if data or ended:
            self._tell(data, ended)
        if chunks.trailers and not self._ended:
            self._events.append(Trailers(self._id, chunks.trailers))
        return len(self._buffer) < before

    def _tell(self, data: bytes, ended: bool) -> None:
        if not self._ended:
            self._unconsumed += len(data)
            self._events.append(Data(self._id, data, ended))

    def _next(self) -> None:
        """Go on to the next request, or to the end of the connection."""
        self._request = None
        self._unconsumed = 0
        self._over = self._over or self._close

    def _stop(self) -> None:
        """Read no more."""
        self._over = True
        self._buffer = b""
        self._whole = None
        self._unconsumed = 0

    def _end_early(self, code: int) -> None:
        if self._request is not None and not self._ended:
            self._ended = True
            self._events.append(Reset(self._id, code))

    def _refuse(self, error: RefusedError) -> None:
        """Answer an invalid request, and end the connection."""
        fresh = self._request is None or (not self._head_sent and not self._ended)
        self._end_early(error.status)
        if fresh:
            body = f"{error}\n".encode()
            head = encode_head(((b":status", b"%d" % error.status), (b"content-type", b"text/plain; charset=utf-8")))
            self._out += (head, b"content-length: %d\r\nconnection: close\r\n\r\n" % len(body), body)
        self._stop()
        self._events.append(Ended(error.status, str(error)))

    # Sending.

    def take(self) -> bytes:
        """The bytes that are due."""
        out, self._out = self._out, []
        self._out_bytes = 0
        return b"".join(out)

    def answer(self, stream_id: int, head: bytes, body: bytes, trailers: bytes = b"") -> bool:
        """Send a whole answer.

        Args:
            stream_id: Number of the request.
            head: Status line and fields (`encode_head`).
            body: All bytes of the body.
            trailers: Trailer section (`encode_trailers`); empty for none. Dropped for HTTP/1.0, which has no trailers.

        Returns:
            True: HTTP/1.x has no windows to wait for.

        Raises:
            RuntimeError: The answer has a head already.
        """
        request = self._live(stream_id)
        if request is None:
            return True
        if trailers or not self._is_plain(request, head, body):
            length = None if trailers and not request.is_1_0 else len(body)
            self._send_head(request, head, length)
            self._body(body)
            self._finish(trailers)
            return True
        self._head_sent = self._ended = True
        self._out_bytes += len(body)
        self._out += (head, b"\r\n", body)
        if self._buffer or self._eof:
            self._advance()
        else:
            self._next()
        return True

    def _is_plain(self, request: Http1Head, head: bytes, body: bytes) -> bool:
        """Whether a whole answer needs no field for its framing: the common case."""
        is_open = self._received and not (self._close or self._head_sent or request.is_1_0)
        has_body = request.head.method != b"HEAD" and head[9:12] not in _NO_BODY
        return is_open and has_body and b"\r\ncontent-length: %d\r\n" % len(body) in head

    def send_informational(self, stream_id: int, head: bytes) -> None:
        """Send a head with a 1xx status, before the answer's own head; HTTP/1.0 clients get none."""
        request = self._live(stream_id)
        if request is not None and not request.is_1_0:
            if self._head_sent:
                raise RuntimeError(f"request {stream_id} has a head already")
            self._continued = self._continued or head[9:12] == b"100"
            self._out += (head, b"\r\n")

    def probe(self) -> bool:
        """Send an interim response, if the current request waits for its answer and its client knows such responses."""
        waits = self._request is not None and not self._request.is_1_0 and not self._head_sent and not self._over
        if waits:
            self.send_informational(self._id, encode_head(((b":status", b"100"),)))
        return waits

    def send_head(self, stream_id: int, head: bytes, *, ended: bool = False) -> None:
        """Send the head of an answer; with `ended` the head is the whole answer.

        Raises:
            RuntimeError: The answer has a head already.
        """
        request = self._live(stream_id)
        if request is not None:
            self._send_head(request, head, 0 if ended else None)
            if ended:
                self._finish(b"")

    def send_data(self, stream_id: int, data: bytes | memoryview, *, ended: bool = False) -> bool:
        """Send bytes of an answer's body, and its end.

        Returns:
            True, as `answer`.

        Raises:
            RuntimeError: The answer has no head, or its body would be longer than its declared length.
        """
        if self._live(stream_id) is not None:
            self._check_head(stream_id)
            self._body(data)
            if ended:
                self._finish(b"")
        return True

    def send_trailers(self, stream_id: int, block: bytes) -> bool:
        """End an answer with a trailer section.

        Returns:
            True, as `answer`.

        Raises:
            RuntimeError: The answer has no head.
        """
        if self._live(stream_id) is not None:
            self._check_head(stream_id)
            self._finish(block)
        return True

    def reset(self, stream_id: int, code: int = 0) -> None:
        """Break off an answer by ending the connection, the only way in HTTP/1.x."""
        if self._live(stream_id) is not None:
            self._ended = True
            self._stop()

    def retire(self) -> None:
        """End the connection after the answer to the current request, or to the next request."""
        self._retiring = self._close = True

    def drain(self) -> None:
        """Begin to leave: the current request is the last; `is_over` reports the end."""
        self._draining = self._close = True
        if self._request is None:
            self._over = True

    def _live(self, stream_id: int) -> Http1Head | None:
        return self._request if stream_id == self._id and not self._ended and not self._over else None

    def _check_head(self, stream_id: int) -> None:
        if not self._head_sent:
            raise RuntimeError(f"request {stream_id} has no head yet")

    def _send_head(self, request: Http1Head, head: bytes, length: int | None) -> None:
        """Send a head with the framing of its body: the length of a whole answer, or None for an answer in parts."""
        if self._head_sent:
            raise RuntimeError(f"request {self._id} has a head already")
        self._head_sent = True
        self._close = self._close or not self._received
        self._out_no_body = request.head.method == b"HEAD" or head[9:12] in _NO_BODY
        self._out_left, self._out_chunked = length, False
        lines = [head]
        at = head.find(b"\r\ncontent-length: ")
        if at >= 0:
            self._out_left = int(head[at + 18 : head.index(b"\r\n", at + 18)])
        elif head[9:12] in _NO_BODY:
            self._out_left = None
        elif length is not None:
            lines.append(b"content-length: %d\r\n" % length)
        elif request.is_1_0:
            self._close = True
        else:
            self._out_chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        if self._close:
            lines.append(b"connection: close\r\n")
        elif request.is_1_0:
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self._out.append(b"".join(lines))

    def _body(self, data: bytes | memoryview) -> None:
        size = len(data)
        if not size or self._out_no_body:
            return
        self._out_bytes += size
        if self._out_chunked:
            self._out += (b"%x\r\n" % size, data, b"\r\n")
            return
        if self._out_left is not None:
            if size > self._out_left:
                raise RuntimeError(f"the answer of request {self._id} is longer than its content-length")
            self._out_left -= size
        self._out.append(data)

    def _finish(self, trailers: bytes) -> None:
        self._ended = True
        if self._out_chunked and not self._out_no_body:
            self._out.append(b"0\r\n" + (trailers or b"\r\n"))
        elif self._out_left and not self._out_no_body:
            self._close = True  # The client waits for missing bytes; the end of the connection ends the wait.
            self._over = True
        if not self._received:
            assert self._request is not None
            self._whole = None
            if self._request.expects_continue and not self._continued:
                self._over = True  # The client still holds the body back.
        self._advance()
