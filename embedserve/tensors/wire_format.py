"""Protobuf's wire format: varints and the fields of a message, read and written without message classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

__all__ = ["FIXED_SIZES", "LENGTH_DELIMITED", "VARINT", "delimited", "fields", "read_varint", "varint"]

Buffer: TypeAlias = bytes | memoryview

VARINT, LENGTH_DELIMITED = 0, 2
"""Wire types, as the last three bits of a tag."""
FIXED_SIZES = {1: 8, 5: 4}
"""Bytes of a value by wire type, for numbers of a fixed size."""
_GROUPS = (3, 4)  # Absent from proto3: the fields inside read as fields of the message.


def varint(value: int) -> bytes:
    """A number in protobuf's form."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_varint(data: Buffer, at: int) -> tuple[int, int]:
    """The varint at a position, and the position behind the varint.

    Raises:
        IndexError: The data ends within the varint, or the varint has more than ten bytes.
    """
    value = data[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    shift = 7
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError("a varint of more than ten bytes")


def delimited(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return b"".join((varint(number << 3 | 2), varint(len(payload)), payload))


def fields(message: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, start and end of each field between two positions; varints start at their value.

    Raises:
        ValueError, IndexError: The bytes are no message.
    """
    while at < end:
        tag, at = read_varint(message, at)
        kind = tag & 7
        start = at
        if kind == LENGTH_DELIMITED:
            size, start = read_varint(message, at)
            at = start + size
        elif kind == VARINT:
            _, at = read_varint(message, at)
        elif kind in FIXED_SIZES:
            at += FIXED_SIZES[kind]
        elif kind not in _GROUPS:
            raise ValueError(f"wire type {kind}")
        if at > end:
            raise ValueError("a field reaches over the end of its message")
        yield tag >> 3, kind, start, at
