"""Reads a request body within the bounds on size, bytes in flight and gzip.

Reading happens on the loop. Threads decompress large bodies in bounded steps. The module knows no JSON.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

from embedserve.asgi.calls import ClientDisconnected, Receive
from embedserve.asgi.gunzip import RunInThread, gunzip
from embedserve.concurrency.inflight import Reservation
from embedserve.errors import InvalidInputError

__all__ = ["MAX_UNZIPPED", "read_body", "receive_body"]

MAX_UNZIPPED = 100 * 1024 * 1024
"""TF Serving's bound on a gzip body, in decompressed bytes."""


async def read_body(
    headers: Iterable[tuple[bytes, bytes]],
    receive: Receive,
    held: Reservation,
    *,
    check_size: Callable[[int], None],
    run_in_thread: RunInThread,
) -> bytes:
    """The body of a request, decompressed if `Content-Encoding` says gzip.

    Args:
        headers: The scope's headers.
        receive: The scope's receive callable; read up to the end of the body.
        held: Reserves each piece on arrival.
        check_size: Raises RequestTooLargeError for a body over `max_request_bytes`, before and after decompression.
        run_in_thread: Takes decompression off the loop.

    Raises:
        RequestTooLargeError: Over `max_request_bytes`, or over the bytes in flight. TF Serving has neither bound. The
            status is RESOURCE_EXHAUSTED (429) from TF Serving's table, not 413. The rest of the body is not read.
        InvalidInputError: The gzip body is corrupt, or over TF Serving's 100 MiB.
        ClientDisconnected: The connection ended inside the body.
    """
    zipped = any(name == b"content-encoding" and b"gzip" in value.lower() for name, value in headers)
    body = await receive_body(headers, receive, held, check_size)
    return await _unzip(body, held, check_size, run_in_thread) if zipped and body else body


async def receive_body(
    headers: Iterable[tuple[bytes, bytes]], receive: Receive, held: Reservation, check_size: Callable[[int], None]
) -> bytes:
    """The body of a request as sent; arguments and errors as `read_body`."""
    for name, value in headers:
        # Some hosts pass on a malformed length; the pieces below are counted in any case.
        if name == b"content-length" and value.isdigit() and len(value) < 20:
            check_size(int(value))
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
            held.receive(len(piece), "the body")
            pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _unzip(
    body: bytes, held: Reservation, check_size: Callable[[int], None], run_in_thread: RunInThread
) -> bytes:
    def check(size: int) -> None:
        check_size(size)
        if size > MAX_UNZIPPED:
            raise _unreadable(f"the gzip body is over {MAX_UNZIPPED} bytes when decompressed")

    try:
        return await gunzip(body, held, check, run_in_thread)
    except zlib.error as error:
        raise _unreadable(f"the body is not whole gzip, as Content-Encoding says: {error}") from None


def _unreadable(reason: str) -> InvalidInputError:
    # TF Serving goes on with an empty body, so clients know the error of an empty document.
    return InvalidInputError(f"JSON Parse error: The document is empty: {reason}")
