"""Reads one request body within its bounds: size, bytes in flight, gzip.

Called by the application once per POST, on the loop; large bodies are decompressed in threads, in bounded steps. Knows
no JSON.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from embedserve.errors import InvalidInputError
from embedserve.rest.errors import ClientDisconnected

if TYPE_CHECKING:
    from embedserve.inflight import InflightBytes

__all__ = ["MAX_UNZIPPED", "Gunzip", "Receive", "Reservation", "read_body"]

Receive: TypeAlias = Callable[[], Awaitable[Any]]
RunInThread: TypeAlias = Callable[..., Awaitable[Any]]

MAX_UNZIPPED = 100 * 1024 * 1024
"""TF Serving's bound on a gzip body, in decompressed bytes."""

_SMALL = 16 * 1024
_SLICE = 256 * 1024
_FIRST_STEP = 64 * 1024
_STEP = 4 * 1024 * 1024


class Reservation:
    """The bytes that one request holds of `max_inflight_bytes`; leaving the context gives them back."""

    __slots__ = ("_held", "_inflight")

    def __init__(self, inflight: InflightBytes) -> None:
        self._inflight = inflight
        self._held = 0

    def add(self, size: int) -> None:
        """Hold `size` more bytes.

        Raises:
            RequestTooLargeError: The process holds too much already.
        """
        self._inflight.reserve(size)
        self._held += size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._inflight.release(self._held)
        self._held = 0


async def read_body(
    headers: Iterable[tuple[bytes, bytes]],
    receive: Receive,
    held: Reservation,
    *,
    check_size: Callable[[int], None],
    run_in_thread: RunInThread,
) -> bytes:
    """The body of a request, decompressed where its `Content-Encoding` says gzip.

    Args:
        headers: The scope's headers.
        receive: The scope's receive callable; read up to the end of the body.
        held: Reserves each piece as it arrives.
        check_size: Raises RequestTooLargeError for a body over `max_request_bytes`, before and after decompression.
        run_in_thread: Takes decompression off the loop.

    Raises:
        RequestTooLargeError: Over `max_request_bytes`, or over the bytes in flight. TF Serving knows neither bound; of
            the statuses in its table RESOURCE_EXHAUSTED (429) fits, so there is no 413. The rest is not read.
        InvalidInputError: The gzip body is corrupt, or over TF Serving's 100 MiB.
        ClientDisconnected: The connection ended inside the body.
    """
    zipped = False
    for name, value in headers:
        if name == b"content-length":
            # Some hosts pass on what the client wrote; without digits the pieces below are counted all the same.
            if value.isdigit() and len(value) < 20:
                check_size(int(value))
        elif name == b"content-encoding" and b"gzip" in value.lower():
            zipped = True
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("the client disconnected while it sent the request body")
        piece = message.get("body", b"")
        more = message.get("more_body", False)
        if piece:
            size += len(piece)
            check_size(size)
            held.add(len(piece))
            pieces.append(piece)
    body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    return await _unzip(body, held, check_size, run_in_thread) if zipped and body else body


async def _unzip(
    body: bytes, held: Reservation, check_size: Callable[[int], None], run_in_thread: RunInThread
) -> bytes:
    """Decompress step by step, so that a bomb is found out before it has filled memory."""
    stream = Gunzip(body)
    pieces: list[bytes] = []
    size = 0
    try:
        while not stream.done:
            if not pieces and len(body) <= _SMALL:
                piece = stream.step(_FIRST_STEP)
            else:
                piece = await run_in_thread(stream.step, _STEP)
            size += len(piece)
            check_size(size)
            if size > MAX_UNZIPPED:
                raise _unreadable(f"the gzip body is over {MAX_UNZIPPED} bytes when decompressed")
            held.add(len(piece))
            pieces.append(piece)
    except zlib.error as error:
        raise _unreadable(f"the body is not whole gzip, as Content-Encoding says: {error}") from None
    if len(pieces) == 1:
        return pieces[0]
    joined: bytes = await run_in_thread(b"".join, pieces)
    return joined


def _unreadable(reason: str) -> InvalidInputError:
    # TF Serving goes on with an empty body, and clients know the error that this ends in.
    return InvalidInputError(f"JSON Parse error: The document is empty: {reason}")


class Gunzip:
    """Decompresses gzip in steps of bounded size; several members are one stream, as `gunzip` reads them."""

    def __init__(self, body: bytes, slice_size: int = _SLICE) -> None:
        self._body = memoryview(body)
        self._slice = slice_size
        self._at = 0
        self._pending = b""
        self._stream = zlib.decompressobj(wbits=31)
        self.done = False

    def step(self, size: int) -> bytes:
        """The next bytes, `size` of them unless the stream ends before.

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
            self._stream = zlib.decompressobj(wbits=31)
        else:
            self.done = True
