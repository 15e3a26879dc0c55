"""The sending side of a connection: due frames, and answers waiting for the client's windows.

The module decides about the order of streams and the sizes of frames. The module knows no request.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from functools import lru_cache

from embedserve.http.frames import (
    CONTINUATION,
    DATA,
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER,
    HEADERS,
    MAX_WINDOW,
    ErrorCode,
    ProtocolError,
    Setting,
    frame,
    settings_frame,
    window_update,
)
from embedserve.http.header_blocks import NO_DYNAMIC_TABLE
from embedserve.http.limits import Limits
from embedserve.http.streams import Stream

__all__ = ["Outbox", "greeting"]

TURN_BYTES = 262_144
"""Bytes of answers per turn of the loop: four socket buffers of 64 KiB, so that no stream blocks the rest for long."""

_header = FRAME_HEADER.pack


def greeting(limits: Limits) -> bytes:
    """The first bytes of a server: the settings, and the connection's window, which needs a frame of its own."""
    settings = {
        Setting.MAX_CONCURRENT_STREAMS: limits.max_streams,
        Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
        Setting.MAX_FRAME_SIZE: limits.max_frame_bytes,
        Setting.MAX_HEADER_LIST_SIZE: limits.max_header_bytes,
    }
    wider = limits.connection_window - DEFAULT_WINDOW
    return settings_frame(settings) + (window_update(0, wider) if wider else b"")


@lru_cache(maxsize=1024)
def _around(head: bytes, size: int, trailers: bytes) -> tuple[bytes, bytes, bytes]:
    """The bytes before the three stream identifiers of a whole answer with a body of `size` bytes."""
    first = _header(len(head) >> 8, len(head) & 0xFF, HEADERS, END_HEADERS, 0)[:5]
    second = _header(size >> 8, size & 0xFF, DATA, 0 if trailers else END_STREAM, 0)[:5]
    last = _header(len(trailers) >> 8, len(trailers) & 0xFF, HEADERS, END_HEADERS | END_STREAM, 0)[:5]
    return first, head + second, last


class Outbox:
    """The queue of a connection's frames and waiting answers.

    Attributes:
        window: Bytes of bodies that the client takes on all streams together.
        initial_window: Bytes of bodies that the client takes on a new stream.
        max_frame: Largest payload that the client takes.
        queued_bytes: Bytes of answers that wait.
        waiting: Streams that can send as soon as the connection has room, the next stream first.
    """

    __slots__ = (
        "_control_bytes",
        "_limits",
        "_pieces",
        "_returns",
        "_size",
        "_table_announced",
        "initial_window",
        "max_frame",
        "queued_bytes",
        "waiting",
        "window",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pieces: list[bytes | memoryview] = []
        self._size = self._control_bytes = 0
        self._table_announced = False
        self.window = self.initial_window = DEFAULT_WINDOW
        self.max_frame = DEFAULT_FRAME_BYTES
        self.queued_bytes = self._returns = 0
        self.waiting: dict[int, Stream] = {}

    def __bool__(self) -> bool:
        """Whether `take` would return bytes."""
        return bool(self._pieces) or (bool(self.waiting) and self.window > 0)

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies and of answers to control frames that wait, with or without room for them."""
        return self.queued_bytes + self._size + self._control_bytes

    def put(self, frame_bytes: bytes) -> None:
        """Send a whole frame, regardless of the windows."""
        self._pieces.append(frame_bytes)

    def control(self, frame_bytes: bytes) -> None:
        """Send a frame that a client provoked.

        Raises:
            ProtocolError: Too many bytes wait, because the client does not read.
        """
        self._pieces.append(frame_bytes)
        self._control_bytes += len(frame_bytes)
        if self._control_bytes > self._limits.max_unread_control_bytes:
            raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "answers to control frames are not read")

    def headers(self, stream_id: int, block: bytes, end_stream: int) -> None:
        """Send a header block, split at the client's frame size."""
        if not self._table_announced:
            self._table_announced = True
            block = NO_DYNAMIC_TABLE + block
        size, limit = len(block), self.max_frame
        if size <= limit:
            header = _header(size >> 8, size & 0xFF, HEADERS, END_HEADERS | end_stream, stream_id)
            self._pieces += (header, block)
            return
        self._pieces.append(frame(HEADERS, end_stream, stream_id, block[:limit]))
        for at in range(limit, size, limit):
            flags = END_HEADERS if at + limit >= size else 0
            self._pieces.append(frame(CONTINUATION, flags, stream_id, block[at : at + limit]))

    def answer(self, stream: Stream, head: bytes, body: bytes, trailers: bytes) -> bool:
        """Send a whole answer that fits into every window and a single frame; else return False and send no byte."""
        size = len(body)
        if (
            size > self.max_frame
            or size > self.window
            or size > stream.send_window
            or self._size > TURN_BYTES
            or not self._table_announced
            or len(head) > DEFAULT_FRAME_BYTES
            or len(trailers) > DEFAULT_FRAME_BYTES
        ):
            return False
        self.window -= size
        self._size += size
        self._returns += 2
        first, second, last = _around(head, size, trailers)
        stream_id = stream.id.to_bytes(4, "big")
        if trailers:
            self._pieces += (first, stream_id, second, stream_id, body, last, stream_id, trailers)
        else:
            self._pieces += (first, stream_id, second, stream_id, body)
        return True

    def data(self, stream: Stream, data: bytes | memoryview) -> bool:
        """Send bytes of a body, and the end of a complete answer; False if some bytes have to wait."""
        size = len(data)
        if not stream.queue:
            if not size or (
                size <= self.max_frame
                and size <= self.window
                and size <= stream.send_window
                and self._size <= TURN_BYTES
            ):
                self._frame(stream, data, size)
                return True
            stream.queue = deque()
        assert stream.queue is not None
        if size:
            stream.queue.append(memoryview(data))
            self.queued_bytes += size
        if stream.send_window > 0:
            self.waiting[stream.id] = stream
        return False

    def _frame(self, stream: Stream, data: bytes | memoryview, size: int) -> None:
        """Send the next DATA frame, and the end of the stream after the last frame."""
        last = stream.local_ended and not stream.queue
        if size or (last and stream.trailers is None):
            self.window -= size
            stream.send_window -= size
            self._size += size
            self._returns += 2
            flags = END_STREAM if last and stream.trailers is None else 0
            self._pieces += (_header(size >> 8, size & 0xFF, DATA, flags, stream.id), data)
        if last and stream.trailers is not None:
            self.headers(stream.id, stream.trailers, END_STREAM)

    def fill(self) -> list[Stream]:
        """Turn waiting bytes into frames, a frame per stream in turn, while windows and the turn's bound allow.

        Returns:
            The streams without waiting bytes.
        """
        sent = []
        waiting = self.waiting
        while waiting and self.window > 0 and self._size <= TURN_BYTES:
            stream = waiting.pop(next(iter(waiting)))
            queue = stream.queue
            if not queue or stream.send_window <= 0:
                continue  # SETTINGS closed the window meanwhile; the next window update brings the stream back.
            room = min(stream.send_window, self.window, self.max_frame)
            piece = queue[0]
            if len(piece) > room:
                piece, queue[0] = piece[:room], piece[room:]
            else:
                queue.popleft()
            self.queued_bytes -= len(piece)
            stream.blocked_since = math.inf
            self._frame(stream, piece, len(piece))
            if not queue:
                sent.append(stream)
            elif stream.send_window > 0:
                waiting[stream.id] = stream
        return sent

    def set_initial_window(self, value: int, streams: Iterable[Stream]) -> None:
        """Apply the client's window for new streams, and its change to the open `streams`.

        Raises:
            ProtocolError: A window would be over the protocol's bound.
        """
        change, self.initial_window = value - self.initial_window, value
        if change:
            for stream in streams:
                stream.send_window += change
                if stream.send_window > MAX_WINDOW:
                    raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS widen a window over 2**31 - 1")
                self.widened(stream)

    def widened(self, stream: Stream) -> None:
        """Note that the stream's window grew: waiting bytes may go on."""
        if stream.queue and stream.send_window > 0:
            self.waiting[stream.id] = stream

    def returned(self) -> bool:
        """Whether the client may send a small window update: one for the stream and one for the connection per DATA."""
        self._returns = min(self._returns, self._limits.control_frames_burst)
        if not self._returns:
            return False
        self._returns -= 1
        return True

    def drop(self, stream: Stream) -> None:
        """Forget the waiting bytes of a finished stream."""
        if stream.queue:
            self.queued_bytes -= sum(map(len, stream.queue))
            stream.queue = None
            self.waiting.pop(stream.id, None)

    def take(self) -> bytes:
        """The due frames, as a single piece."""
        pieces = self._pieces
        self._pieces = []
        self._size = self._control_bytes = 0
        return b"".join(pieces)
