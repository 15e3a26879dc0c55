"""Arrays → JSON text of the REST API: NaN and Infinity as bare tokens, strings as text or in base64.

float32 values have the digits that float32 needs; narrower floats are written as the float32 of the same value. The
module knows no signature.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping

import numpy as np
import orjson

from embedserve.errors import InvalidInputError
from embedserve.tensors.dtypes import Array, by_numpy

__all__ = ["array_text", "is_written_in_base64", "object_text", "row_texts", "string_text", "to_json", "with_json_form"]

_BASE64_SUFFIX = "_bytes"
"""End of an output's name whose strings are written in base64."""


def to_json(outputs: Mapping[str, Array] | Array) -> bytes:
    """Write the result of `predict` as JSON text, many times faster than `json.dumps` of lists.

    Numbers, NaN and strings are written as the REST API writes them: NaN and infinity as the bare tokens `NaN`,
    `Infinity` and `-Infinity`, strings as UTF-8 text, and strings of an output whose name ends in `_bytes` as
    `{"b64": "..."}`.

    Args:
        outputs: Arrays of any shape by name, as `predict` returns them; or a single array.

    Returns:
        A JSON object by output name; nested lists for a single array.

    Raises:
        InvalidInputError: JSON has no form for a dtype: complex numbers.
    """
    if isinstance(outputs, Mapping):
        return object_text({name: with_json_form(array) for name, array in outputs.items()})
    return array_text(with_json_form(outputs))


def object_text(outputs: Mapping[str, Array]) -> bytes:
    """JSON object of whole arrays, each as `with_json_form` returns it."""
    texts = [
        b"%b: %b" % (string_text(name), array_text(array, base64=is_written_in_base64(name)))
        for name, array in outputs.items()
    ]
    return b"{%b}" % b", ".join(texts)


def is_written_in_base64(name: str) -> bool:
    """Whether the strings of an output are written in base64, as TensorFlow Serving decides by the output's name."""
    return name.endswith(_BASE64_SUFFIX)


# numpy's numbers of the dtypes that orjson writes: float and double, integers but of 16 bits without a sign, bool.
_WRITTEN = frozenset(np.dtype(char).num for char in "fdbhilqBILQ?")


def with_json_form(array: Array) -> Array:
    """The same values in a dtype that `array_text` writes; the array itself if its dtype is fit.

    TensorFlow Serving writes neither the narrow floats nor 16-bit, 4-bit and quantized integers.

    Raises:
        InvalidInputError: JSON has no form for the values: complex numbers.
    """
    dtype = array.dtype
    if dtype.num in _WRITTEN or dtype.hasobject:
        return array
    row = by_numpy(dtype)
    if dtype.fields:
        return with_json_form(np.ascontiguousarray(array).view(dtype[0]))
    if row.limits is not None:
        return array.astype(np.int32)
    if row.field in ("half_val", "float8_val"):
        return array.astype(np.float32)
    raise InvalidInputError(f"Failed to write JSON value for tensor type: {row.name}")


def array_text(array: Array, *, base64: bool = False) -> bytes:
    """JSON text of a whole array; a rank-0 array is a bare value.

    Args:
        array: Numbers, bools, or an object array of bytes, as `with_json_form` returns them.
        base64: Write each string as `{"b64": ...}`.
    """
    if array.dtype.hasobject:
        return _dumped(_strings(array, base64).tolist())
    if array.ndim == 0:
        return _numbers(array.reshape(1))[1:-1]
    return _numbers(array)


def row_texts(array: Array, *, base64: bool = False) -> list[bytes]:
    """JSON text of each row along dimension 0 of an array of rank 1 or more."""
    if array.dtype.hasobject:
        return [_dumped(row) for row in _strings(array, base64).tolist()]
    text = array_text(array)
    if array.size == 0:
        return [orjson.dumps(row) for row in array.tolist()]
    # Numbers hold no brackets, so the separator occurs only between rows.
    inner = array.ndim - 1
    rows = text[1 + inner : -1 - inner].split(b"]" * inner + b"," + b"[" * inner)
    return [b"[" * inner + row + b"]" * inner for row in rows] if inner else rows


def string_text(text: str) -> bytes:
    """JSON string; lone surrogates stand for bytes that are no UTF-8, and are written as the bytes."""
    return _dumped(text)


def _numbers(array: Array) -> bytes:
    try:
        text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:  # orjson writes arrays in C order and in the machine's byte order.
        array = np.ascontiguousarray(array)
        text = orjson.dumps(array.astype(array.dtype.newbyteorder("=")), option=orjson.OPT_SERIALIZE_NUMPY)
    if array.dtype.kind != "f" or b"n" not in text:
        return text
    # orjson writes null for each value that is not finite; the order gives the values.
    values = array[~np.isfinite(array)]
    tokens = np.where(np.isnan(values), b"NaN", np.where(values > 0, b"Infinity", b"-Infinity")).tolist()
    parts = text.split(b"null")
    return b"".join([part for pair in zip(parts, [*tokens, b""], strict=True) for part in pair])


def _strings(array: Array, base64: bool) -> Array:
    """The array with text or base64 objects in place of bytes."""
    elements = array.ravel().tolist()
    written = np.empty(len(elements), dtype=object)
    if base64:
        written[:] = [{"b64": binascii.b2a_base64(_bytes(e), newline=False).decode("ascii")} for e in elements]
    else:
        written[:] = [e if isinstance(e, str) else e.decode("utf-8", "surrogateescape") for e in elements]
    return written.reshape(array.shape)


def _bytes(element: bytes | str) -> bytes:
    return element.encode("utf-8", "surrogateescape") if isinstance(element, str) else element


def _dumped(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # Bytes that are no UTF-8, or lists deeper than orjson goes.
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")
