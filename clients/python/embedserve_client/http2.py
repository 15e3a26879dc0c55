"""HTTP/2 (RFC 9113) of a client as a state machine of bytes: requests and received bytes in, bytes to send out.

Any number of streams, flow control both ways, and the fact whether a failed request may have been seen by the server.
The module knows no socket, no clock and no gRPC.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from embedserve_client.hpack import Decoder, Headers, HpackError

__all__ = ["Connection", "ConnectionEnd", "Stream"]

Buffer = bytes | memoryview

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    0,
    1,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
)
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 0x20
_REFUSED_STREAM, _CANCEL, _PROTOCOL_ERROR = 7, 8, 1

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_LARGEST_WINDOW = (1 << 31) - 1
_LARGEST_FRAME = (1 << 24) - 1
_DEFAULT_WINDOW, _DEFAULT_FRAME = 65_535, 16_384
_REFILL = 1 << 30
"""Received bytes after which a window is opened again."""
_MAX_CONTROL = 1 << 20
"""Bytes of a header block, or of a frame without data, at the most."""
_HEAD = 9


class ConnectionEnd(Exception):
    """The connection has ended or broken the rules; no further request is possible."""


class Stream:
    """A request and its answer.

    Attributes:
        headers, trailers: Of the answer; an answer without a body has only trailers.
        parts: The body as received.
        done: Whether the answer is whole, or the stream has failed.
        failure: Why the stream failed; None for a whole answer.
        untouched: Whether the server has surely not processed a failed request.
    """

    __slots__ = (
        "done",
        "failure",
        "headers",
        "id",
        "on_done",
        "parts",
        "received",
        "to_send",
        "trailers",
        "untouched",
        "window",
    )

    def __init__(self, id: int, window: int, parts: Sequence[Buffer]) -> None:
        self.id = id
        self.window = window
        self.to_send: deque[memoryview] = deque(memoryview(part) for part in parts if len(part))
        self.headers: Headers | None = None
        self.trailers: Headers | None = None
        self.parts: list[bytes] = []
        self.received = 0
        self.done = False
        self.failure: str | None = None
        self.untouched = False
        self.on_done: Callable[[], object] | None = None

    def end(self, failure: str | None = None, *, untouched: bool = False) -> None:
        """Note the end of the stream; a second end changes nothing."""
        if self.done:
            return
        self.done = True
        self.failure = failure
        self.untouched = untouched
        self.to_send.clear()
        if self.on_done is not None:
            self.on_done()


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return b"".join((len(payload).to_bytes(3), bytes((kind, flags)), stream.to_bytes(4), payload))


def _setting(number: int, value: int) -> bytes:
    return number.to_bytes(2) + value.to_bytes(4)


_FIRST_BYTES = b"".join(
    (
        _PREFACE,
        _frame(
            _SETTINGS, 0, 0, _setting(2, 0) + _setting(4, _LARGEST_WINDOW) + _setting(5, _LARGEST_FRAME)
        ),  # No pushes, a window for any answer, and frames of any size.
        _frame(_WINDOW_UPDATE, 0, 0, (_LARGEST_WINDOW - _DEFAULT_WINDOW).to_bytes(4)),
    )
)


class Connection:
    """The client's end of a connection; `take` gives the bytes to send after each call of another method."""

    def __init__(self) -> None:
        self._out: list[Buffer] = [_FIRST_BYTES]
        self._streams: dict[int, Stream] = {}
        self._next = 1
        self._decoder = Decoder()
        self._buffer = b""
        self._block = b""  # Of a header block in several frames.
        self._block_of: tuple[int, int] | None = None
        self._data_left = 0
        self._data_of: tuple[int, int] = (0, 0)
        self._received = 0
        self._window = _DEFAULT_WINDOW
        self._first_window = _DEFAULT_WINDOW
        self._frame_size = _DEFAULT_FRAME
        self.most_streams = 100
        self.closing: str | None = None
        """Why no further stream may be opened; None while streams may be opened."""

    def __len__(self) -> int:
        """Open streams."""
        return len(self._streams)

    @property
    def full(self) -> bool:
        """Whether another stream must wait or take another connection."""
        return self.closing is not None or len(self._streams) >= self.most_streams or self._next > _LARGEST_WINDOW - 2

    def open(self, block: bytes, parts: Sequence[Buffer]) -> Stream:
        """Send a request.

        Args:
            block: The header block.
            parts: The body.

        Raises:
            ConnectionEnd: No further stream may be opened.
        """
        if self.closing is not None:
            raise ConnectionEnd(self.closing)
        stream = Stream(self._next, self._first_window, parts)
        self._next += 2
        self._streams[stream.id] = stream
        flags = _END_HEADERS if stream.to_send else _END_HEADERS | _END_STREAM
        if len(block) <= self._frame_size:
            self._out.append(_frame(_HEADERS, flags, stream.id, block))
        else:
            size = self._frame_size
            pieces = [block[at : at + size] for at in range(0, len(block), size)]
            self._out.append(_frame(_HEADERS, flags & ~_END_HEADERS, stream.id, pieces[0]))
            self._out += [_frame(_CONTINUATION, 0, stream.id, piece) for piece in pieces[1:-1]]
            self._out.append(_frame(_CONTINUATION, _END_HEADERS, stream.id, pieces[-1]))
        if stream.to_send:
            self._send(stream)
        return stream

    def cancel(self, stream: Stream) -> None:
        """Give a request up; what still arrives for the stream is ignored."""
        if self._streams.pop(stream.id, None) is not None:
            self._out.append(_frame(_RST_STREAM, 0, stream.id, _CANCEL.to_bytes(4)))
            stream.end("cancelled")

    def take(self) -> bytes:
        """The bytes to send now; the next call gives only later bytes."""
        out, self._out = self._out, []
        return b"".join(out)

    def _send(self, stream: Stream) -> None:
        """Queue as much of a body as both windows allow."""
        to_send = stream.to_send
        while to_send:
            room = min(self._frame_size, self._window, stream.window)
            if room <= 0:
                return
            pieces: list[memoryview] = []
            size = 0
            while to_send and size < room:
                piece = to_send.popleft()
                if len(piece) > room - size:
                    to_send.appendleft(piece[room - size :])
                    piece = piece[: room - size]
                pieces.append(piece)
                size += len(piece)
            self._window -= size
            stream.window -= size
            flags = 0 if to_send else _END_STREAM
            self._out.append(size.to_bytes(3) + bytes((_DATA, flags)) + stream.id.to_bytes(4))
            self._out += pieces

    def _send_all(self) -> None:
        for stream in list(self._streams.values()):
            if stream.to_send:
                self._send(stream)

    def lost(self, reason: str) -> None:
        """The connection has ended: every open stream has failed."""
        self.closing = self.closing or reason
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.end(reason)

    def feed(self, data: bytes) -> None:
        """Read received bytes. A breach of the rules ends the connection, as `lost` does."""
        try:
            self._feed(data)
        except (HpackError, ConnectionEnd, IndexError) as error:
            self._out.append(_frame(_GOAWAY, 0, 0, bytes(4) + _PROTOCOL_ERROR.to_bytes(4)))
            self.lost(f"the server broke the rules of HTTP/2: {error}")

    def _feed(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        at, end = 0, len(data)
        while True:
            if self._data_left:
                size = min(self._data_left, end - at)
                if size:
                    self._data(data if size == end and not at else data[at : at + size])
                    at += size
                if self._data_left:
                    break
            if end - at < _HEAD:
                break
            length = int.from_bytes(data[at : at + 3])
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9]) & _LARGEST_WINDOW
            if self._block_of is not None and kind != _CONTINUATION:
                raise ConnectionEnd("another frame within a header block")
            if kind == _DATA and not flags & _PADDED:
                at += _HEAD
                self._data_left, self._data_of = length, (stream, flags)
                if not length:
                    self._data(b"")
                continue
            if length > (_LARGEST_FRAME if kind == _DATA else _MAX_CONTROL):
                raise ConnectionEnd(f"a frame of kind {kind} with {length} bytes")
            if end - at < _HEAD + length:
                break
            at += _HEAD + length
            self._read(kind, flags, stream, data[at - length : at])
        self._buffer = data[at:]

    def _read(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == _HEADERS:
            payload = _unpadded(flags, payload)
            self._headers(flags, number, payload[5:] if flags & _PRIORITY else payload)
        elif kind == _CONTINUATION:
            self._continuation(flags, number, payload)
        elif kind == _DATA:
            size = len(payload)
            payload = _unpadded(flags, payload)
            self._data_left, self._data_of = len(payload), (number, flags)
            self._refill(size - len(payload), self._streams.get(number))
            self._data(payload)
        elif kind == _WINDOW_UPDATE:
            self._window_update(number, int.from_bytes(payload[:4]) & _LARGEST_WINDOW)
        elif kind == _SETTINGS and not flags & _ACK:
            self._settings(payload)
        elif kind == _PING and not flags & _ACK:
            self._out.append(_frame(_PING, _ACK, 0, payload))
        elif kind == _RST_STREAM:
            self._reset(number, int.from_bytes(payload[:4]))
        elif kind == _GOAWAY:
            self._go_away(int.from_bytes(payload[:4]) & _LARGEST_WINDOW, payload[8:])
        elif kind == _PUSH:
            raise ConnectionEnd("a pushed stream")

    def _data(self, payload: bytes) -> None:
        """A part of the payload of a DATA frame."""
        self._data_left -= len(payload)
        number, flags = self._data_of
        stream = self._streams.get(number)
        self._refill(len(payload), stream)
        if stream is None:
            return
        if payload:
            stream.parts.append(payload)
        if not self._data_left and flags & _END_STREAM:
            self._ended(stream)

    def _refill(self, size: int, stream: Stream | None) -> None:
        self._received += size
        if self._received >= _REFILL:
            self._out.append(_frame(_WINDOW_UPDATE, 0, 0, self._received.to_bytes(4)))
            self._received = 0
        if stream is not None:
            stream.received += size
            if stream.received >= _REFILL:
                self._out.append(_frame(_WINDOW_UPDATE, 0, stream.id, stream.received.to_bytes(4)))
                stream.received = 0

    def _headers(self, flags: int, number: int, block: bytes) -> None:
        if flags & _END_HEADERS:
            self._headers_whole(flags, number, block)
        else:
            self._block, self._block_of = block, (number, flags)

    def _continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block_of is None or self._block_of[0] != number:
            raise ConnectionEnd("a continuation of no header block")
        self._block += payload
        if len(self._block) > _MAX_CONTROL:
            raise ConnectionEnd("a header block of more than 1 MiB")
        if flags & _END_HEADERS:
            (_, first), self._block_of = self._block_of, None
            self._headers_whole(first, number, self._block)

    def _headers_whole(self, flags: int, number: int, block: bytes) -> None:
        headers = self._decoder.decode(block)  # Also of a cancelled stream: the tables follow each block.
        stream = self._streams.get(number)
        if stream is None:
            return
        if flags & _END_STREAM:
            stream.trailers = headers
            self._ended(stream)
        elif stream.headers is None and not (headers and headers[0][0] == b":status" and headers[0][1][:1] == b"1"):
            stream.headers = headers

    def _ended(self, stream: Stream) -> None:
        del self._streams[stream.id]
        if stream.to_send:  # The answer came before the end of the request.
            self._out.append(_frame(_RST_STREAM, 0, stream.id, _CANCEL.to_bytes(4)))
        stream.end()

    def _window_update(self, number: int, size: int) -> None:
        if number == 0:
            self._window += size
            self._send_all()
        elif (stream := self._streams.get(number)) is not None:
            stream.window += size
            self._send(stream)

    def _settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            number, value = int.from_bytes(payload[at : at + 2]), int.from_bytes(payload[at + 2 : at + 6])
            if number == 3:
                self.most_streams = max(value, 1)
            elif number == 4:
                for stream in self._streams.values():
                    stream.window += value - self._first_window
                self._first_window = value
            elif number == 5:
                self._frame_size = value
        self._out.append(_frame(_SETTINGS, _ACK, 0))
        self._send_all()

    def _reset(self, number: int, code: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            stream.end(f"the server reset the call with code {code}", untouched=code == _REFUSED_STREAM)

    def _go_away(self, last: int, said: bytes) -> None:
        words = said[:200].decode("utf-8", "replace")
        self.closing = f"the server is going away{': ' if words else ''}{words}"
        for number in [number for number in self._streams if number > last]:
            self._streams.pop(number).end(self.closing, untouched=True)


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & _PADDED:
        return payload
    size = payload[0]
    if size >= len(payload):
        raise ConnectionEnd("a padding longer than its frame")
    return payload[1 : len(payload) - size]
