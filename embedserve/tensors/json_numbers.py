"""The fast path for JSON requests that are mostly numbers: simdjson's buffers instead of a Python object per number.

It answers, or it declines with None; it never differs from the slow way, so whatever is odd in any sense is declined.
That lists are not ragged is shown by the text itself: without numbers and white space it must be what a document with
the arrays found would leave. Called by `rest/payload.py`; knows no signature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import simdjson

from embedserve.tensors.dtypes import Array, DType
from embedserve.tensors.json_values import MAX_RANK, narrowed, quick_array, within

__all__ = ["parse", "read"]

_COUNT_LIMIT = 0xFFFFFF
"""simdjson counts the elements of a list no further than this."""

_SMALL_ROW = 512
"""Bytes per row below which building Python objects for all rows at once is faster."""

_BUFFERS: Mapping[str, tuple[Any, type]] = {
    "number": ("d", np.float64),
    "int32": ("i", np.int64),
    "int64": ("i", np.int64),
    "uint32": ("u", np.uint64),
    "uint64": ("u", np.uint64),
}
_NO_STRUCTURE = b"0123456789+-.eE \t\n\r"


class _DeclinedError(Exception):
    """The document is not for the fast path."""


def parse(body: bytes) -> simdjson.Object | None:
    """Parse a document, or decline: it is no strict JSON, or no object."""
    try:
        document = simdjson.Parser().parse(body)
    except (ValueError, RuntimeError):
        return None
    return document if isinstance(document, simdjson.Object) else None


def read(body: bytes, document: simdjson.Object, dtypes: Mapping[str, DType]) -> tuple[dict[str, Array], bool] | None:
    """Read the inputs of a `:predict` document.

    Args:
        body: The text of `document`.
        document: What `parse` gave.
        dtypes: By input name.

    Returns:
        Arrays by input name and whether they came as rows; None if the slow way must read, or refuse, the document.
    """
    if b"\\" in body:
        return None
    try:
        keys = _keys(document)
        if ("instances" in keys) == ("inputs" in keys) or not dtypes:
            return None
        skeleton, arrays = [b"{"], {}
        for key in keys:
            skeleton.append(_label(key))
            if key == "instances":
                arrays = _instances(document[key], dtypes, skeleton, len(body))
            elif key == "inputs":
                arrays = _inputs(document[key], dtypes, skeleton)
            else:
                skeleton.append(_scalar_text(document[key]))
            skeleton.append(b",")
        skeleton[-1] = b"}"
    except _DeclinedError:
        return None
    # Equal skeletons mean equal structure: all parts but the arrays are the document's own, and no list that is closed
    # begins another one.
    if b"".join(skeleton).translate(None, _NO_STRUCTURE) != body.removeprefix(b"\xef\xbb\xbf").translate(
        None, _NO_STRUCTURE
    ):
        return None
    return arrays, "instances" in keys


def _keys(node: simdjson.Object) -> list[str]:
    keys = list(node)
    if not keys or len(set(keys)) != len(keys):
        raise _DeclinedError
    return keys


def _label(key: str) -> bytes:
    return b'"%b":' % key.encode()


def _scalar_text(value: Any) -> bytes:
    """What the text of a scalar leaves in a skeleton; numbers leave nothing."""
    if isinstance(value, str):
        return b'"%b"' % value.encode()
    if value is None:
        return b"null"
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, int | float):
        return b""
    raise _DeclinedError


def _inputs(node: Any, dtypes: Mapping[str, DType], skeleton: list[bytes]) -> dict[str, Array]:
    if not isinstance(node, simdjson.Object):
        if len(dtypes) != 1:
            raise _DeclinedError
        ((name, dtype),) = dtypes.items()
        return {name: _tensor(node, dtype, skeleton)}
    keys, arrays = _keys(node), {}
    if keys == ["b64"] or not dtypes.keys() <= set(keys):
        raise _DeclinedError
    skeleton.append(b"{")
    for key in keys:
        skeleton.append(_label(key))
        if key in dtypes:
            arrays[key] = _tensor(node[key], dtypes[key], skeleton)
        else:
            skeleton.append(_scalar_text(node[key]))
        skeleton.append(b",")
    skeleton[-1] = b"}"
    return arrays


def _instances(node: Any, dtypes: Mapping[str, DType], skeleton: list[bytes], size: int) -> dict[str, Array]:
    if not isinstance(node, simdjson.Array) or not len(node):
        raise _DeclinedError
    if not isinstance(node[0], simdjson.Object):
        if len(dtypes) != 1:
            raise _DeclinedError
        ((name, dtype),) = dtypes.items()
        return {name: _tensor(node, dtype, skeleton)}
    if size < len(node) * _SMALL_ROW:
        raise _DeclinedError
    columns: dict[str, list[Array]] = {name: [] for name in dtypes}
    skeleton.append(b"[")
    for row in node:
        if not isinstance(row, simdjson.Object) or len(row) != len(columns):
            raise _DeclinedError
        for name, array in _inputs(row, dtypes, skeleton).items():
            columns[name].append(array)
        skeleton.append(b",")
    skeleton[-1] = b"]"
    if any(len({array.shape for array in column}) != 1 for column in columns.values()):
        raise _DeclinedError
    return {name: np.stack(column) for name, column in columns.items()}


def _tensor(node: Any, dtype: DType, skeleton: list[bytes]) -> Array:
    if not isinstance(node, simdjson.Array):
        skeleton.append(_scalar_text(node))
        array = quick_array(node, dtype)
    else:
        array = _numbers(node, dtype, skeleton)
    if array is None:
        raise _DeclinedError
    return array


def _numbers(node: simdjson.Array, dtype: DType, skeleton: list[bytes]) -> Array | None:
    if dtype.json not in _BUFFERS:
        return None
    shape: list[int] = []
    first: Any = node
    while isinstance(first, simdjson.Array):
        size = len(first)
        if size == 0 or size == _COUNT_LIMIT or len(shape) == MAX_RANK:
            return None
        shape.append(size)
        first = first[0]
    if isinstance(first, str | bool) or not isinstance(first, int | float):
        return None
    kind, scalar = _BUFFERS[dtype.json]
    try:
        flat: Array = np.frombuffer(node.as_buffer(of_type=kind), scalar)
    except (TypeError, ValueError, RuntimeError):  # Not a number, no integer, or not within 64 bits.
        return None
    if flat.size != math.prod(shape) or (kind != "d" and not within(flat, dtype)):
        return None
    structure = b""
    for size in reversed(shape):
        structure = b"[%b]" % b",".join([structure] * size)
    skeleton.append(structure)
    return narrowed(flat, dtype).reshape(shape)
