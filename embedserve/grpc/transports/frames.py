"""Length-prefixed messages out of a request body, within the bounds on size, bytes in flight, gzip and base64.

`MessageReader` reads a body in pieces; gRPC-Web's text form is base64. The module knows no method.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections import deque
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from embedserve.asgi.calls import ClientDisconnected, Receive
from embedserve.asgi.gunzip import gunzip
from embedserve.concurrency.inflight import Reservation
from embedserve.errors import Code, InvalidInputError, ServingError, UnsupportedError

if TYPE_CHECKING:
    from embedserve.registry import ModelRegistry

__all__ = ["PREFIX_BYTES", "MessageReader", "frame", "inflate", "too_large"]

PREFIX_BYTES = 5
"""Bytes of a message's prefix: a byte of flags and the length as four bytes, big-endian."""

_COMPRESSED = 1


def frame(message: bytes, flags: int = 0) -> bytes:
    """A message with its prefix."""
    prefix = (flags << 32 | len(message)).to_bytes(PREFIX_BYTES, "big")
    return prefix + message


def too_large(size: int, limit: int, what: str = "Received") -> ServingError:
    """The error for a message over the limit, in gRPC's words."""
    return ServingError(f"{what} message larger than max ({size} vs. {limit})", code=Code.RESOURCE_EXHAUSTED)


class MessageReader:
    """Reads the messages of a request body; use as a context to release the reserved bytes.

    Args:
        registry: The registry with the bytes in flight and the threads for decompression.
        receive: The scope's receive callable.
        limit: Largest message in bytes, before and after decompression.
        encoding: Value of `grpc-encoding`.
        text: The body is base64, as in `application/grpc-web-text`.

    Attributes:
        disconnected: The client has gone before the end of its request.
    """

    def __init__(
        self, registry: ModelRegistry, receive: Receive, limit: int, encoding: bytes = b"", text: bool = False
    ) -> None:
        self._registry = registry
        self._receive = receive
        self._limit = limit
        self._encoding = encoding
        self._base64 = _Base64() if text else None
        self._pieces: deque[bytes] = deque()
        self._size = 0  # Bytes in `_pieces`.
        self._ended = False
        self._held = Reservation(registry.inflight)
        self.disconnected = False

    def __enter__(self) -> MessageReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    @property
    def sent(self) -> int:
        """Bytes received over the wire, compressed or not."""
        return self._held.sent

    def release(self) -> None:
        """Release the bytes reserved by the messages so far."""
        self._held.release()

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """Every message, in the order of arrival.

        Raises:
            ServingError: A message over its bounds, a truncated message, failed decompression, or a client that left.
        """
        while await self._fill(1):
            yield await self._message()
            self.release()

    async def only(self) -> bytes:
        """The only message of the body; its reserved bytes stay reserved.

        Raises:
            ServingError: As `messages`, or the body has no message or several.
        """
        if not await self._fill(1):
            raise _cardinality("none")
        message = await self._message()
        if await self._fill(1):
            raise _cardinality("more than one")
        return message

    async def _message(self) -> bytes:
        if not await self._fill(PREFIX_BYTES):
            raise _cut_off(self._size, PREFIX_BYTES)
        prefix = self._take(PREFIX_BYTES)
        flags, size = prefix[0], int.from_bytes(prefix[1:], "big")
        if flags > _COMPRESSED:
            raise InvalidInputError(f"a gRPC message starts with 0, or 1 where it is compressed; byte {flags} came")
        if size > self._limit:
            raise too_large(size, self._limit)
        if not await self._fill(size):
            raise _cut_off(self._size, size)
        message = self._take(size)
        return await self._unzip(message) if flags else message

    async def _fill(self, size: int) -> bool:
        """Whether `size` bytes are buffered, after reading as far as needed."""
        while self._size < size and not self._ended:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                self.disconnected = True
                raise ClientDisconnected("the client disconnected while it sent the request")
            piece = event.get("body", b"")
            self._ended = not event.get("more_body", False)
            if piece:
                self._held.receive(len(piece), "the request's body")
                piece = piece if self._base64 is None else self._base64.decode(piece)
                self._pieces.append(piece)
                self._size += len(piece)
            if self._ended and self._base64 is not None:
                self._base64.end()
        return self._size >= size

    def _take(self, size: int) -> bytes:
        """The next `size` bytes of the buffer; each byte is copied once, however many pieces there are."""
        self._size -= size
        taken: list[bytes] = []
        while size > 0:
            piece = self._pieces.popleft()
            if len(piece) > size:
                self._pieces.appendleft(piece[size:])
                piece = piece[:size]
            size -= len(piece)
            taken.append(piece)
        return taken[0] if len(taken) == 1 else b"".join(taken)

    async def _unzip(self, message: bytes) -> bytes:
        if self._encoding in (b"", b"identity"):
            raise ServingError("the message is compressed, and grpc-encoding does not say how", code=Code.INTERNAL)
        if self._encoding != b"gzip":
            raise UnsupportedError(f"grpc-encoding {self._encoding.decode('latin-1')!r} is none of identity, gzip")
        try:
            return await inflate(message, self._limit, self._held, self._registry)
        except zlib.error as error:
            raise InvalidInputError(f"the message is not whole gzip, as grpc-encoding says: {error}") from None


async def inflate(
    message: bytes, limit: int, held: Reservation, registry: ModelRegistry, *, or_zlib: bool = False
) -> bytes:
    """Decompress step by step, so that a gzip bomb is found before the memory is full.

    Args:
        message: In gzip.
        limit: Bytes of the largest message.
        held: Reserves the output, piece by piece.
        registry: The registry with the threads for decompression.
        or_zlib: The message may be in zlib's format, named deflate in gRPC.

    Raises:
        ServingError: The message is over its limit, or the process holds too many bytes already.
        zlib.error: The message is corrupt or truncated.
    """

    def check(size: int) -> None:
        if size > limit:
            raise too_large(size, limit)

    return await gunzip(message, held, check, registry.run_in_thread, what="message", or_zlib=or_zlib)


class _Base64:
    """Decodes base64 in arbitrary pieces; the whole may be several padded texts in a row."""

    def __init__(self) -> None:
        self._rest = b""

    def decode(self, piece: bytes) -> bytes:
        text = self._rest + piece
        end = len(text) // 4 * 4
        self._rest = text[end:]
        text = text[:end]
        try:
            if b"=" not in text:
                return base64.b64decode(text, validate=True)
            return b"".join(base64.b64decode(part, validate=True) for part in _padded_parts(text))
        except binascii.Error as error:
            raise _not_base64(str(error)) from None

    def end(self) -> None:
        if self._rest:
            raise _not_base64(f"it is cut off {len(self._rest)} characters after a multiple of 4")


def _not_base64(reason: str) -> InvalidInputError:
    return InvalidInputError(f"the body is not base64, as its content type says: {reason}")


def _padded_parts(text: bytes) -> list[bytes]:
    """Cut after each padding; quadruples stay whole, because the length of each text is a multiple of four."""
    parts, start = [], 0
    at = text.find(b"=")
    while at >= 0:
        end = (at // 4 + 1) * 4
        parts.append(text[start:end])
        start = end
        at = text.find(b"=", end)
    parts.append(text[start:])
    return parts


def _cut_off(found: int, size: int) -> InvalidInputError:
    return InvalidInputError(f"the request ended inside a message: {found} of {size} bytes came")


def _cardinality(count: str) -> ServingError:
    return ServingError(f"the method takes one message, {count} came", code=Code.UNIMPLEMENTED)
