"""Reads the tables of a flatbuffer, and judges whether a TFLite file is whole.

A flatbuffer is written back to front. Operator codes, weights and names are written first and end the file, so a
truncated file has offsets past the end. The module judges no operator.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["PastEndError", "Table", "root", "torn"]

_IDENTIFIER = b"TFL3"
# Field numbers of tflite/schema.fbs.
_MODEL_OPERATOR_CODES, _MODEL_SUBGRAPHS, _MODEL_BUFFERS = 1, 2, 4
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 0, 1, 2
_SUBGRAPH_TENSORS, _SUBGRAPH_OPERATORS = 0, 3
_OPERATOR_CODE_CUSTOM_NAME = 1
_TENSOR_SHAPE, _TENSOR_NAME = 0, 3


class PastEndError(Exception):
    """An offset leads outside the file."""


class Table:
    """A table of a flatbuffer: fields by number, each checked to be inside the file, empty where left out."""

    __slots__ = ("_at", "_data", "_vtable", "_vtable_size")

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at
        self._check(at + 4)
        self._vtable = at - struct.unpack_from("<i", data, at)[0]
        if self._vtable < 0:
            raise PastEndError
        self._vtable_size, size = struct.unpack_from("<HH", data, self._vtable)
        self._check(self._vtable + self._vtable_size)
        self._check(at + size)

    def _check(self, end: int) -> None:
        if not 0 <= end <= len(self._data):
            raise PastEndError

    def _field(self, number: int) -> int:
        """Position of a field, 0 where the table omits the field."""
        if 4 + 2 * number >= self._vtable_size:
            return 0
        offset: int = struct.unpack_from("<H", self._data, self._vtable + 4 + 2 * number)[0]
        return self._at + offset if offset else 0

    def number(self, number: int, kind: str = "i") -> int:
        """A scalar field in the `struct` format `kind`."""
        field = self._field(number)
        return int(struct.unpack_from(f"<{kind}", self._data, field)[0]) if field else 0

    def _vector(self, number: int, width: int) -> tuple[int, int]:
        """Begin and length of a vector or string field."""
        field = self._field(number)
        if not field:
            return 0, 0
        begin = field + struct.unpack_from("<I", self._data, field)[0]
        length = struct.unpack_from("<I", self._data, begin)[0]
        self._check(begin + 4 + width * length)
        return begin + 4, length

    def check_vector(self, number: int, width: int) -> None:
        """Check, without a read, that a vector of elements of `width` bytes is inside the file."""
        self._vector(number, width)

    def octets(self, number: int) -> bytes:
        """A string, or a vector of bytes."""
        begin, length = self._vector(number, 1)
        return self._data[begin : begin + length]

    def integers(self, number: int) -> tuple[int, ...]:
        """A vector of int32."""
        begin, length = self._vector(number, 4)
        return struct.unpack_from(f"<{length}i", self._data, begin)

    def tables(self, number: int) -> Iterator[Table]:
        """A vector of tables."""
        begin, length = self._vector(number, 4)
        for at in range(begin, begin + 4 * length, 4):
            yield Table(self._data, at + struct.unpack_from("<I", self._data, at)[0])


def root(data: bytes) -> Table:
    """The root table of a flatbuffer.

    Raises:
        PastEndError, struct.error: The file is torn. Every access to a table may raise the same errors.
    """
    return Table(data, struct.unpack_from("<I", data)[0])


def torn(data: bytes) -> str | None:
    """The fault in the bytes of a `model.tflite`, or None if the file holds every part reached from its root."""
    if data[4:8] != _IDENTIFIER:
        return f"its {len(data)} bytes do not begin as a TFLite model does"
    try:
        _walk(root(data), len(data))
    except (PastEndError, struct.error):
        return f"it refers to parts past its {len(data)} bytes"
    return None


def _walk(model: Table, size: int) -> None:
    for code in model.tables(_MODEL_OPERATOR_CODES):
        code.check_vector(_OPERATOR_CODE_CUSTOM_NAME, 1)
    for graph in model.tables(_MODEL_SUBGRAPHS):
        for tensor in graph.tables(_SUBGRAPH_TENSORS):
            tensor.check_vector(_TENSOR_SHAPE, 4)
            tensor.check_vector(_TENSOR_NAME, 1)
        for _ in graph.tables(_SUBGRAPH_OPERATORS):
            pass
    for buffer in model.tables(_MODEL_BUFFERS):
        buffer.check_vector(_BUFFER_DATA, 1)
        # Weights of a model over 2 GiB stand behind the flatbuffer.
        if buffer.number(_BUFFER_OFFSET, "Q") + buffer.number(_BUFFER_SIZE, "Q") > size:
            raise PastEndError
