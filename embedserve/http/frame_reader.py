"""Bytes → whole frames and whole header blocks (RFC 9113, sections 3.4, 4 and 6.10). Knows no stream.

The hot path of the receiving side: a single pass over the received bytes, without an object per frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from embedserve.http.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER,
    HEADER_BYTES,
    HEADERS,
    MAX_STREAM_ID,
    PADDED,
    PREFACE,
    PRIORITY_FLAG,
    SETTINGS,
    ErrorCode,
    ProtocolError,
)
from embedserve.http.limits import Limits

__all__ = ["FrameReader", "OnBlock", "OnFrame", "without_padding"]

OnFrame: TypeAlias = Callable[[int, int, bytes, int, int], None]
"""Called with flags, stream, and the payload as buffer, start and end."""

OnBlock: TypeAlias = Callable[[int, bool, bytes], None]
"""Called with stream, whether the stream ends, and the whole header block."""

_read_header = FRAME_HEADER.unpack_from
_DATA = bytes([DATA])


class FrameReader:
    """Cuts a client's bytes into frames, from the preface on.

    Args:
        limits: Bounds of frames and header blocks.
        handlers: Callbacks for the known types, by number; the reader itself handles HEADERS and CONTINUATION.
        on_block: Callback for a header block.
        on_unknown: Callback for a frame of an unknown type.

    Attributes:
        progress_at: Time at which the last whole frame came; minus infinity before the first frame.
        head_began: Begin of the unfinished greeting, header block or frame other than DATA; infinity for none.
    """

    __slots__ = (
        "_block",
        "_block_bytes",
        "_handlers",
        "_have",
        "_limits",
        "_missing",
        "_on_block",
        "_on_unknown",
        "_pieces",
        "_preface",
        "_settings_seen",
        "head_began",
        "progress_at",
    )

    def __init__(
        self, limits: Limits, handlers: dict[int, OnFrame], on_block: OnBlock, on_unknown: Callable[[], None]
    ) -> None:
        handlers = {HEADERS: self._on_headers, CONTINUATION: self._on_continuation, **handlers}
        self._handlers: Sequence[OnFrame] = [handlers[kind] for kind in range(10)]
        self._limits = limits
        self._on_block = on_block
        self._on_unknown = on_unknown
        self._preface = PREFACE
        self._settings_seen = False
        self._pieces: list[bytes] = []
        self._have = self._missing = 0
        self._block: tuple[int, bool, list[bytes]] | None = None
        self._block_bytes = 0
        self.progress_at, self.head_began = -math.inf, math.inf

    def read(self, data: bytes, now: float) -> None:
        """Call the handlers for each complete frame; keep the rest. `now` is the time in seconds.

        Raises:
            ProtocolError: A violation, found here or by a handler. No more bytes can be read.
        """
        kept, block = bool(self._pieces), self._block
        if kept:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._missing:
                return
            data = b"".join(self._pieces)
            self._pieces = []
        at = self._read_preface(data) if self._preface else 0
        size, handlers, limit = len(data), self._handlers, self._limits.max_frame_bytes
        missing = HEADER_BYTES
        while size - at >= HEADER_BYTES:
            high, low, kind, flags, stream_id = _read_header(data, at)
            length = high << 8 | low
            start = at + HEADER_BYTES
            end = start + length
            if length > limit:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes, at most {limit} are taken")
            if not self._settings_seen:
                self._check_first(kind, flags)
            if self._block is not None and kind != CONTINUATION:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "a header block is cut by another frame")
            if end > size:
                missing = HEADER_BYTES + length
                break
            at = end
            if kind < 10:
                handlers[kind](flags, stream_id & MAX_STREAM_ID, data, start, end)
            else:
                self._on_unknown()
        if at < size:
            self._pieces, self._have, self._missing = [data[at:]], size - at, missing
        if at:
            self.progress_at = now
        if self._settings_seen and self._block is None and (at == size or data[at + 3 : at + 4] == _DATA):
            self.head_began = math.inf
        elif self.head_began == math.inf or (
            self._settings_seen and not (kept and not at) and (self._block is None or self._block is not block)
        ):
            self.head_began = now

    @property
    def kept_bytes(self) -> int:
        """Bytes of unfinished frames and header blocks."""
        return (self._have if self._pieces else 0) + (self._block_bytes if self._block is not None else 0)

    def clear(self) -> None:
        """Forget the kept bytes."""
        self._pieces, self._block = [], None

    def _read_preface(self, data: bytes) -> int:
        """The position of the first frame in `data`; the end of `data` if the preface is not complete."""
        preface = self._preface
        size = min(len(data), len(preface))
        if data[:size] != preface[:size]:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "the connection does not begin with HTTP/2's preface")
        self._preface = preface[size:]
        return size

    def _check_first(self, kind: int, flags: int) -> None:
        if kind != SETTINGS or flags & 1:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "the first frame is no SETTINGS")
        self._settings_seen = True

    def _on_headers(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if not stream_id & 1:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}, expected an odd one")
        if flags & (PADDED | PRIORITY_FLAG):
            start, end = without_padding(data, start, end, flags, 5 if flags & PRIORITY_FLAG else 0)
        if flags & END_HEADERS:
            self._on_block(stream_id, flags & END_STREAM > 0, data[start:end])
        else:
            self._block = stream_id, flags & END_STREAM > 0, [data[start:end]]
            self._block_bytes = end - start

    def _on_continuation(self, flags: int, stream_id: int, data: bytes, start: int, end: int) -> None:
        if self._block is None or self._block[0] != stream_id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION continues no header block")
        _, ended, pieces = self._block
        pieces.append(data[start:end])
        self._block_bytes += end - start
        limits = self._limits
        if self._block_bytes > limits.max_header_bytes or len(pieces) > limits.max_continuations + 1:
            raise ProtocolError(
                ErrorCode.ENHANCE_YOUR_CALM, f"a header block of {self._block_bytes} bytes in {len(pieces)} frames"
            )
        if flags & END_HEADERS:
            self._block = None
            self._on_block(stream_id, ended, b"".join(pieces))


def without_padding(data: bytes, start: int, end: int, flags: int, skipped: int) -> tuple[int, int]:
    """The bounds of a payload without its padding and without `skipped` bytes at its start.

    Raises:
        ProtocolError: The frame is too short for its fields, or for its padding.
    """
    padding = 0
    if flags & PADDED:
        if start == end:
            raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "a padded frame has no length of its padding")
        padding = data[start]
        start += 1
    start += skipped
    if start > end:
        raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "a frame is too short for its fields")
    if padding > end - start:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"{padding} bytes of padding in {end - start}")
    return start, end - padding
