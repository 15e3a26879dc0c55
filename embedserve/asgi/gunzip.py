"""Decompresses in bounded steps, so that a small body cannot fill the memory. Knows no protocol."""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from embedserve.concurrency.off_loop import ZIP_FIRST_STEP, ZIP_STEP, ZIPPED_BYTES

if TYPE_CHECKING:
    from embedserve.concurrency.inflight import Reservation

__all__ = ["Gunzip", "RunInThread", "gunzip"]

RunInThread: TypeAlias = Callable[..., Awaitable[Any]]

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


async def gunzip(
    body: bytes,
    held: Reservation,
    check_size: Callable[[int], None],
    run_in_thread: RunInThread,
    *,
    what: str = "body",
    or_zlib: bool = False,
) -> bytes:
    """Decompress step by step, so that a small body with a huge content is refused before the memory is full.

    Args:
        body: Compressed bytes.
        held: Reserves each piece, and the whole while the pieces are put together.
        check_size: Raises for too many decompressed bytes; called after each step.
        run_in_thread: Takes all but the first step of a small body off the loop.
        what: Names the body in refusals.
        or_zlib: Whether zlib's own format is read as well.

    Raises:
        RequestTooLargeError: The process holds too many bytes already.
        zlib.error: Corrupt or truncated.
    """
    stream = Gunzip(body, or_zlib=or_zlib)
    pieces: list[bytes] = []
    size = 0
    while not stream.done:
        if not pieces and len(body) <= ZIPPED_BYTES:
            piece = stream.step(ZIP_FIRST_STEP)
        else:
            piece = await run_in_thread(stream.step, ZIP_STEP)
        size += len(piece)
        check_size(size)
        held.grow(len(piece), f"the {what}, decompressed")
        pieces.append(piece)
    if len(pieces) == 1:
        return pieces[0]
    before = held.size
    held.grow(size, f"the {what}, put together")
    joined: bytes = await run_in_thread(b"".join, pieces)
    held.become(before)
    return joined
