"""Reads a body in gzip or deflate, within the bounds on size and bytes in flight. Knows no JSON."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from embedserve.asgi.gunzip import gunzip
from embedserve.errors import InvalidInputError, UnsupportedError
from embedserve.rest.body import receive_body

if TYPE_CHECKING:
    from embedserve.asgi.calls import Receive
    from embedserve.concurrency.inflight import Reservation
    from embedserve.registry import ModelRegistry

__all__ = ["UnsupportedMediaError", "read_coded_body"]


class UnsupportedMediaError(UnsupportedError):
    """A body has a coding that is not read."""


async def read_coded_body(
    headers: Mapping[bytes, bytes], receive: Receive, held: Reservation, registry: ModelRegistry
) -> bytes:
    """The body of a request, decompressed as `Content-Encoding` says.

    Args:
        headers: Names in lower case, and values.
        receive: The scope's receive callable; read up to the end of the body.
        held: Reserves each piece on arrival.
        registry: Bounds the sizes, before and after decompression, and has the threads.

    Raises:
        UnsupportedMediaError: The coding is neither gzip nor deflate.
        RequestTooLargeError: Over `max_request_bytes`, or over the bytes in flight.
        InvalidInputError: The body is not whole in its coding.
        ClientDisconnected: The connection ended inside the body.
    """
    coding = headers.get(b"content-encoding", b"").strip().lower()
    if coding not in (b"", b"identity", b"gzip", b"deflate"):
        raise UnsupportedMediaError(f"content-encoding is {coding[:100].decode('latin-1')!r}, expected gzip or deflate")
    check_size = registry.inflight.check_request
    body = await receive_body(headers.items(), receive, held, check_size)
    if coding in (b"", b"identity") or not body:
        return body
    try:
        return await gunzip(body, held, check_size, registry.run_in_thread, or_zlib=True)
    except zlib.error as error:
        raise InvalidInputError(f"the body is not whole {coding.decode()}, as Content-Encoding says: {error}") from None
