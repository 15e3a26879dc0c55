"""A body in chunks (RFC 9112, section 7.1) → its bytes. Strict: no bare line feed, no sign, no space.

The reader exists because `httptools` does not tell the position of a message's end in its input.
"""

from __future__ import annotations

import re

from embedserve.http.heads import Field
from embedserve.http.http1_heads import RefusedError, read_trailers
from embedserve.http.limits import Limits

__all__ = ["ChunkReader"]

MAX_LINE = 256
"""Bytes of the line before a chunk: sixteen digits, and extensions. Extensions are rare, and ignored."""

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?").fullmatch


class ChunkReader:
    """A body in chunks; call `read` with the available bytes until `ended`.

    Attributes:
        ended: The body and its trailers are complete.
        trailers: The fields after the body.
    """

    __slots__ = ("_left", "_limits", "_lines", "ended", "trailers")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left: int | None = None  # Missing bytes of the chunk and its line end; None before a size.
        self._lines = 0
        self.ended = False
        self.trailers: tuple[Field, ...] = ()

    def read(self, data: bytes, at: int) -> tuple[list[bytes], int]:
        """The pieces of the body from `at` on, and the position of the next message or of an incomplete part.

        Raises:
            RefusedError: The framing is wrong or over a limit.
        """
        pieces: list[bytes] = []
        size = len(data)
        while not self.ended:
            left = self._left
            if left is None:
                line_end = self._line_end(data, at, MAX_LINE)
                if line_end < 0:
                    break
                found = _SIZE(data[at:line_end])
                if found is None:
                    raise RefusedError(400, f"the size of a chunk is {data[at:line_end][:40]!r}")
                chunk = int(found[1], 16)
                at = line_end + 2
                self._left = chunk + 2 if chunk else 0
            elif left > 2:
                end = min(size, at + left - 2)
                if end == at:
                    break
                pieces.append(data[at:end])
                self._left = left - (end - at)
                at = end
            elif left:
                if size - at < 2:
                    break
                if data[at : at + 2] != b"\r\n":
                    raise RefusedError(400, "a chunk does not end with a line end")
                at += 2
                self._left = None
            else:
                done = self._read_trailers(data, at)
                if done < 0:
                    break
                at = done
        return pieces, at

    def _line_end(self, data: bytes, at: int, limit: int) -> int:
        end = data.find(b"\r\n", at, at + limit + 2)
        if end < 0 and (len(data) - at > limit or b"\n" in data[at : at + limit]):
            raise RefusedError(400, f"the line before a chunk has no end within {limit} bytes")
        return end

    def _read_trailers(self, data: bytes, at: int) -> int:
        if data[at : at + 2] == b"\r\n":
            self.ended = True
            return at + 2
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            if len(data) - at > self._limits.max_header_bytes:
                raise RefusedError(431, f"the trailers have more than {self._limits.max_header_bytes} bytes")
            return -1
        self.trailers = read_trailers(data[at:end], self._limits)
        self.ended = True
        return end + 4
