"""Protobuf's wire format: varints and the fields of a message, read and written without message classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

__all__ = ["LENGTH_DELIMITED", "VARINT", "Buffer", "delimited", "fields", "read_varint", "varint"]

Buffer: TypeAlias = bytes | memoryview

VARINT, LENGTH_DELIMITED = 0, 2
"""Wire types, as the last three bits of a tag."""
_FIXED_SIZES = {1: 8, 5: 4}
_MAX_SHIFT = 63


def varint(value: int) -> bytes:
    """A number of 0 or more in protobuf's form."""
    if value < 0x80:
        return bytes((value,))
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
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > _MAX_SHIFT:
            raise IndexError("a varint of more than ten bytes")


def delimited(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return b"".join((varint(number << 3 | LENGTH_DELIMITED), varint(len(payload)), payload))


def fields(message: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, start and end of each field between two positions; varints start at their value.

    Raises:
        ValueError, IndexError: The bytes are no message.
    """
    while at < end:
        tag = message[at]
        at += 1
        if tag >= 0x80:
            tag, at = read_varint(message, at - 1)
        kind = tag & 7
        start = at
        if kind == LENGTH_DELIMITED:
            size, start = read_varint(message, at)
            at = start + size
        elif kind == VARINT:
            _, at = read_varint(message, at)
        elif kind in _FIXED_SIZES:
            at += _FIXED_SIZES[kind]
        else:
            raise ValueError(f"wire type {kind}")
        if at > end:
            raise ValueError("a field reaches over the end of its message")
        yield tag >> 3, kind, start, at
