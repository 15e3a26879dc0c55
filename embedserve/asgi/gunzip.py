"""Decompresses in bounded steps, so that a small body cannot fill the memory. Knows no protocol."""

from __future__ import annotations

import zlib

__all__ = ["Gunzip"]

_SLICE = 256 * 1024
"""Compressed bytes given to zlib at once."""
# zlib's `wbits` for a window of 32 KiB with a header of gzip, or of gzip or zlib.
_GZIP, _EITHER = 31, 47


class Gunzip:
    """Decompresses gzip, or zlib's own format, in steps of bounded size.

    Several members form a single stream, as for `gunzip`.
    """

    def __init__(self, body: bytes, slice_size: int = _SLICE, *, or_zlib: bool = False) -> None:
        self._wbits = _EITHER if or_zlib else _GZIP
        self._body = memoryview(body)
        self._slice = slice_size
        self._at = 0
        self._pending = b""
        self._stream = zlib.decompressobj(wbits=self._wbits)
        self.done = False

    def step(self, size: int) -> bytes:
        """The next bytes of the stream: `size` bytes, or fewer at the stream's end.

        Raises:
            zlib.error: Corrupt or truncated.
        """
        pieces = []
        while size > 0 and not self.done:
            data: bytes | memoryview = self._pending
            if not data:
                data = self._body[self._at : self._at + self._slice]
                self._at += len(data)
            piece = self._stream.decompress(data, size)
            self._pending = self._stream.unconsumed_tail
            size -= len(piece)
            pieces.append(piece)
            if self._stream.eof:
                self._next_member()
            elif not data and not piece:
                raise zlib.error("incomplete or truncated stream")
        return b"".join(pieces)

    def _next_member(self) -> None:
        self._pending = self._stream.unused_data
        if self._pending or self._at < len(self._body):
            self._stream = zlib.decompressobj(wbits=self._wbits)
        else:
            self.done = True
