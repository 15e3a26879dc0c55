"""How many bytes of memory will this be? Asked before anything is made, so that it can be refused in time.

Each figure is an upper bound, measured as growth of the process and held by tests. Knows no account.
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
"""Bytes of one element of a string tensor beside its text: the Python object, the pointer, TensorFlow's own copy."""

_COMMA, _QUOTE, _LIST, _OBJECT = 64, 56, 128, 232
"""Bytes that reading JSON may take for each `,`, `"`, `[` and `{`, however the document is nested."""

_RESULT = 320
"""Bytes of one class or regression: Python objects, the message and its bytes; labels are short."""

_ASCII_COPIES, _OTHER_COPIES = 5, 8
"""Copies of the text that reading may make: one character over U+FFFF makes four bytes of each in its string."""

_ODD = 192
"""Bytes that writing a NaN or an infinity takes."""

_JSON_ELEMENT = {"f4": 16, "f8": 26, "i1": 6, "i2": 8, "i4": 13, "i8": 22, "u1": 5, "u4": 12, "u8": 22, "b1": 7}
"""Bytes of the longest number of a dtype in JSON, with what separates it from the next."""


def tensor_bytes(dtype: DType, shape: Iterable[int], given: int | None = None) -> int:
    """Bytes of a tensor of this dtype and shape, of which `given` elements are values of their own (None: all)."""
    count = math.prod(shape)
    if not dtype.numpy.hasobject:
        return count * dtype.numpy.itemsize
    own = count if given is None else min(given, count)
    return own * STRING_BYTES + (count - own) * STRING_BYTES // 2  # The others share one Python object.


def array_bytes(array: Array) -> int:
    """Bytes of an array with its strings."""
    if not array.dtype.hasobject:
        return array.nbytes
    return array.size * STRING_BYTES + sum(map(len, array.ravel().tolist()))


def repeated_examples(count: int, context: int) -> int:
    """Bytes of `count` serialized Examples, with a context of `context` bytes in front of each, beside their own."""
    return count * (STRING_BYTES + context)


def results_bytes(results: Iterable[Any]) -> int:
    """Bytes that writing classifications (lists of pairs by example) or regressions (an array) may take."""
    return _RESULT * sum(len(result) if isinstance(result, list) else max(np.size(result), 1) for result in results)


def json_document_bytes(body: bytes) -> int:
    """Bytes that reading a JSON document may take beside the body itself: buffers, the tree, the arrays of its numbers.

    Brackets, quotes and commas inside strings count too, so prose is taken for more than it is.
    """
    copies = _ASCII_COPIES if body.isascii() else _OTHER_COPIES
    count = body.count
    return (
        copies * len(body) + _COMMA * count(b",") + _QUOTE * count(b'"') + _LIST * count(b"[") + _OBJECT * count(b"{")
    )


def json_text_bytes(arrays: Iterable[Array]) -> int:
    """Bytes of memory that writing arrays as JSON may take beside the arrays."""
    size = 0
    for array in arrays:
        if array.dtype.hasobject:
            # Each byte may be written as an escape of six; the Python strings are as long as the text or longer.
            size += 8 * array_bytes(array)
            continue
        lists = sum(itertools.accumulate(array.shape[:-1], operator.mul, initial=1))
        text = array.size * _JSON_ELEMENT.get(array.dtype.str[1:], 26) + 3 * lists
        if array.dtype.kind == "f":  # Each of what JSON has no number for is put in one by one.
            size += _ODD * (array.size - int(np.count_nonzero(np.isfinite(array))))
        size += 3 * text  # Rows of several tensors are put together from the text of each.
    return size
