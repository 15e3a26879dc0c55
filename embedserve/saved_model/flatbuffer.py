"""Is a TFLite file whole? Follows the offsets of its tables and looks whether they stay inside the file.

A flatbuffer is written back to front and its first written parts, operator codes, weights and names, end the file; so a
truncated one points past its end. Called by `completeness`; reads no weights and judges no operator.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["torn"]

_IDENTIFIER = b"TFL3"
# Field numbers of tflite/schema.fbs.
_MODEL_OPERATOR_CODES, _MODEL_SUBGRAPHS, _MODEL_BUFFERS = 1, 2, 4
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 0, 1, 2
_SUBGRAPH_TENSORS, _SUBGRAPH_OPERATORS = 0, 3
_OPERATOR_CODE_CUSTOM_NAME = 1
_TENSOR_SHAPE, _TENSOR_NAME = 0, 3


class _PastEndError(Exception):
    """An offset leads outside the file."""


def torn(data: bytes) -> str | None:
    """What is wrong with the bytes of a `model.tflite`, or None if every part reached from its root is there."""
    if data[4:8] != _IDENTIFIER:
        return f"its {len(data)} bytes do not begin as a TFLite model does"
    try:
        _walk(data)
    except (_PastEndError, struct.error):
        return f"it refers to parts past its {len(data)} bytes"
    return None


def _walk(data: bytes) -> None:
    model = _table(data, _target(data, 0))
    for code in _tables(data, model, _MODEL_OPERATOR_CODES):
        _vector(data, code, _OPERATOR_CODE_CUSTOM_NAME, 1)
    for graph in _tables(data, model, _MODEL_SUBGRAPHS):
        for tensor in _tables(data, graph, _SUBGRAPH_TENSORS):
            _vector(data, tensor, _TENSOR_SHAPE, 4)
            _vector(data, tensor, _TENSOR_NAME, 1)
        for _ in _tables(data, graph, _SUBGRAPH_OPERATORS):
            pass
    for buffer in _tables(data, model, _MODEL_BUFFERS):
        _vector(data, buffer, _BUFFER_DATA, 1)
        offset, size = (_field(data, buffer, number) for number in (_BUFFER_OFFSET, _BUFFER_SIZE))
        if offset and size:  # Weights of a model over 2 GiB stand behind the flatbuffer.
            _inside(data, struct.unpack_from("<Q", data, offset)[0] + struct.unpack_from("<Q", data, size)[0])


def _target(data: bytes, at: int) -> int:
    value: int = struct.unpack_from("<I", data, at)[0]
    return at + value


def _inside(data: bytes, end: int) -> None:
    if not 0 <= end <= len(data):
        raise _PastEndError


def _table(data: bytes, at: int) -> int:
    """Check that the table at `at`, and the vtable that describes it, are inside the file."""
    _inside(data, at + 4)
    vtable = at - struct.unpack_from("<i", data, at)[0]
    if vtable < 0:
        raise _PastEndError
    vtable_size, table_size = struct.unpack_from("<HH", data, vtable)
    _inside(data, vtable + vtable_size)
    _inside(data, at + table_size)
    return at


def _field(data: bytes, table: int, number: int) -> int:
    """Position of a table's field, 0 where the table leaves it out."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0]
    return table + offset if offset else 0


def _vector(data: bytes, table: int, number: int, width: int) -> tuple[int, int]:
    """Begin and length of a vector or string field, checked to be inside the file; length 0 where it is left out."""
    field = _field(data, table, number)
    if not field:
        return 0, 0
    begin = _target(data, field)
    length = struct.unpack_from("<I", data, begin)[0]
    _inside(data, begin + 4 + width * length)
    return begin + 4, length


def _tables(data: bytes, table: int, number: int) -> Iterator[int]:
    begin, length = _vector(data, table, number, 4)
    for i in range(length):
        yield _table(data, _target(data, begin + 4 * i))
