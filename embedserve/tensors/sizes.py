"""Bytes of memory for a tensor or a document, estimated in advance so a server can refuse in time.

Each figure is an upper bound, measured as growth of the process and held by tests. The module knows no account.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np

from embedserve.tensors.dtypes import Array, DType

__all__ = [
    "STRING_BYTES",
    "array_bytes",
    "json_document_bytes",
    "json_text_bytes",
    "repeated_examples",
    "results_bytes",
    "tensor_bytes",
]

STRING_BYTES = 64
"""Bytes of a string tensor's element beside its text: the Python object, the pointer, TensorFlow's own copy."""

_COMMA, _QUOTE, _LIST, _OBJECT = 64, 56, 128, 232
"""Bytes that reading JSON may take for each `,`, `"`, `[` and `{`, however the document is nested."""

_SHORT = 1024
"""Bytes of a body up to which `bytes.count` is the fastest."""

_RARE = 4
"""Occurrences of a byte up to which searches are faster than counting."""

_CHUNK = 2**18
"""Bytes counted at once: the comparison makes a byte per byte, which fits into a processor's cache."""

_RESULT = 320
"""Bytes of a class or a regression: Python objects, the message and its bytes; labels are short."""

_ASCII_COPIES, _OTHER_COPIES = 5, 8
"""Copies of the text while reading, for ASCII and else: a character over U+FFFF makes a string four bytes wide."""

_ODD = 192
"""Bytes that writing a NaN or an infinity takes."""

_FEW = 64
"""Elements up to which looking for a NaN or an infinity takes longer than it saves: each element counts as one."""

_JSON_ELEMENT = {"f4": 16, "f8": 26, "i1": 6, "i2": 8, "i4": 13, "i8": 22, "u1": 5, "u4": 12, "u8": 22, "b1": 7}
"""Bytes of the longest number of a dtype in JSON, with the separator."""


def tensor_bytes(dtype: DType, shape: Iterable[int], given: int | None = None) -> int:
    """Bytes of a tensor by dtype and shape; `given` elements have their own values (None: all elements)."""
    count = math.prod(shape)
    if not dtype.numpy.hasobject:
        return count * dtype.numpy.itemsize
    own = count if given is None else min(given, count)
    return own * STRING_BYTES + (count - own) * STRING_BYTES // 2  # Repeated elements share a Python object.


def array_bytes(array: Array) -> int:
    """Bytes of an array with its strings."""
    if not array.dtype.hasobject:
        return array.nbytes
    return array.size * STRING_BYTES + sum(map(len, array.ravel().tolist()))


def repeated_examples(count: int, context: int) -> int:
    """Bytes of `count` serialized Examples, each behind a context of `context` bytes, beside the Examples' own."""
    return count * (STRING_BYTES + context)


def results_bytes(results: Iterable[Any]) -> int:
    """Bytes for writing classifications (lists of pairs by example) or regressions (an array)."""
    return _RESULT * sum(len(result) if isinstance(result, list) else max(np.size(result), 1) for result in results)


def json_document_bytes(body: bytes) -> int:
    """Bytes for reading a JSON document, beside the body: buffers, the tree, the arrays of its numbers.

    Brackets, quotes and commas inside strings count too, so the bound for prose is too high.
    """
    copies = _ASCII_COPIES if body.isascii() else _OTHER_COPIES
    commas, quotes = _count(body, 0x2C), _count(body, 0x22)
    lists, objects = _count(body, 0x5B), _count(body, 0x7B)
    return copies * len(body) + _COMMA * commas + _QUOTE * quotes + _LIST * lists + _OBJECT * objects


def _count(body: bytes, byte: int) -> int:
    """How often a byte occurs; several times as fast as `bytes.count` for a long body."""
    if len(body) <= _SHORT:
        return body.count(byte)
    count, at = 0, body.find(byte)
    while at >= 0 and count < _RARE:
        count += 1
        at = body.find(byte, at + 1)
    if at < 0:
        return count
    rest = np.frombuffer(body, np.uint8, offset=at)
    return count + sum(
        int(np.count_nonzero(rest[start : start + _CHUNK] == byte)) for start in range(0, len(rest), _CHUNK)
    )


def json_text_bytes(arrays: Iterable[Array]) -> int:
    """Bytes of memory for writing arrays as JSON, beside the arrays."""
    size = 0
    for array in arrays:
        if array.dtype.hasobject:
            # A byte may become an escape of six bytes; the Python strings are at least as long as the text.
            size += 8 * array_bytes(array)
            continue
        count, dtype, shape = array.size, array.dtype, array.shape
        lists = 1 + shape[0] if len(shape) == 2 else sum(itertools.accumulate(shape[:-1], operator.mul, initial=1))
        text = count * _JSON_ELEMENT.get(dtype.str[1:], 26) + 3 * lists
        if dtype.kind == "f":  # Values without a number in JSON are inserted singly.
            size += _ODD * (count if count <= _FEW else count - int(np.count_nonzero(np.isfinite(array))))
        size += 3 * text  # Rows of several tensors are joined from the text of each tensor.
    return size
