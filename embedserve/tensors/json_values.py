"""A parsed JSON value ⇄ ndarray: dtype rules, base64, ragged lists, NaN and Infinity.

The quick way works on whole levels of the nested lists at C speed, and gives up on unusual values. The careful way then
walks the value in document order and words the first error as TensorFlow Serving does (json_tensor.cc). The module
knows no request and no signature.
"""

from __future__ import annotations

import array
import binascii
import re
from itertools import chain
from typing import Any, TypeGuard

import numpy as np

from embedserve.concurrency.codec_pool import CHECK_EVERY, check_wanted
from embedserve.errors import InvalidInputError, ServingError, UnsupportedError
from embedserve.tensors.dtypes import MAX_RANK, Array, DType
from embedserve.tensors.json_dump import dump, type_name

__all__ = [
    "INTEGER_LIMITS",
    "check",
    "decode_base64",
    "is_base64",
    "narrowed",
    "quick_array",
    "shape_text",
    "to_array",
    "within",
]

INTEGER_LIMITS = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*+")


def to_array(value: object, dtype: DType) -> Array:
    """Read a tensor.

    Raises:
        InvalidInputError: Wrong type, ragged, out of range, bad base64; in TensorFlow Serving's words.
        UnsupportedError: The JSON API has no values of the dtype.
    """
    found = quick_array(value, dtype)
    if found is None:
        check(value, dtype)
        raise InvalidInputError(f"JSON value has more than {MAX_RANK} nested lists")
    return found


def quick_array(value: object, dtype: DType) -> Array | None:
    """Read a tensor; None for a value with any error, for `check` to explain."""
    shape: list[int] = []
    leaves: list[Any] = [value]  # Of one type each, after a look at all types.
    if type(value) is list:
        shape.append(len(value))
        leaves = value
        while leaves and type(leaves[0]) is list:
            size = len(leaves[0])
            if len(shape) == MAX_RANK or set(map(type, leaves)) != {list} or set(map(len, leaves)) != {size}:
                return None
            shape.append(size)
            leaves = list(chain.from_iterable(leaves))
    if not leaves:
        return np.zeros(shape, dtype.numpy)
    try:
        flat = _elements(leaves, dtype)
    except (InvalidInputError, OverflowError):
        return None
    return None if flat is None else flat.reshape(shape)


def _elements(leaves: list[Any], dtype: DType) -> Array | None:
    kinds, wanted = set(map(type, leaves)), dtype.json
    if wanted == "number":
        if kinds <= {int, float}:
            # Faster than numpy for a few numbers, and values too large for float32 become infinite without a warning.
            return np.frombuffer(array.array(dtype.numpy.char, leaves), dtype.numpy)
    elif wanted == "string":
        if kinds <= {str, dict}:
            return _strings(leaves, kinds)
    elif wanted == "bool":
        if kinds == {bool}:
            return np.array(leaves, np.bool_)
    elif wanted != "unsupported" and kinds == {int}:
        unsigned = wanted.startswith("u")
        if unsigned and min(leaves) < 0:
            return None
        integers = np.array(leaves, np.uint64 if unsigned else np.int64)
        return narrowed(integers, dtype) if within(integers, dtype) else None
    return None


def within(integers: Array, dtype: DType) -> bool:
    """Whether 64-bit integers are in JSON's range for the dtype: narrow dtypes take the range of int32, then wrap."""
    low, high = INTEGER_LIMITS[dtype.json]
    return dtype.json.endswith("64") or bool(integers.min() >= low and integers.max() <= high)


def narrowed(values: Array, dtype: DType) -> Array:
    """Values at 64 bits in their own dtype: values too large for float32 become infinite, integers wrap."""
    if dtype.json != "number":
        return values.astype(dtype.numpy, copy=False)
    with np.errstate(over="ignore"):
        return values.astype(dtype.numpy, copy=False)


def _strings(leaves: list[Any], kinds: set[type]) -> Array:
    if dict in kinds:
        strings = [_bytes(leaf) if type(leaf) is str else _from_base64(leaf) for leaf in leaves]
    else:  # A single call for all strings, unless a string holds the separator.
        strings = "\0".join(leaves).encode("utf-8", "surrogateescape").split(b"\0")
        if len(strings) != len(leaves):
            strings = [_bytes(leaf) for leaf in leaves]
    return np.fromiter(strings, object, len(strings))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def is_base64(value: object) -> TypeGuard[dict[str, str]]:
    """Whether a value is `{"b64": "<string>"}`."""
    return type(value) is dict and len(value) == 1 and type(value.get("b64")) is str


def _from_base64(value: dict[str, object]) -> bytes:
    if not is_base64(value):
        raise InvalidInputError(f"JSON Value: {dump(value)} not formatted correctly for base64 data")
    return decode_base64(value["b64"])


def decode_base64(text: str) -> bytes:
    """Decode standard base64; padding may be left out, white space may stand anywhere.

    Raises:
        InvalidInputError: `Unable to base64 decode`.
    """
    data = _bytes(text)
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except binascii.Error:
        pass
    data = data.translate(None, b" \t\n\r\v\f")
    digits = data.rstrip(b"=")
    padding = -len(digits) % 4
    if padding == 3 or len(data) - len(digits) not in (0, padding) or _BASE64.fullmatch(digits) is None:
        raise InvalidInputError("Unable to base64 decode")
    return binascii.a2b_base64(digits + b"=" * padding)


def shape_text(shape: list[int]) -> str:
    """`[2,3]`."""
    return f"[{','.join(map(str, shape))}]"


def walked_shape(value: object) -> list[int]:
    """Shape by walking `value[0][0]...`."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def check(value: object, dtype: DType) -> tuple[list[int], int]:
    """Walk a value in document order and return its shape and number of elements.

    Raises:
        InvalidInputError, UnsupportedError: The first error of the value.
    """
    shape = walked_shape(value)
    rank, count = len(shape), 0
    stack = [iter((value,))]  # An iterator per level, the current level last.
    while stack:
        level = len(stack) - 1
        for item in stack[-1]:
            if isinstance(item, list):
                if level >= rank:
                    raise InvalidInputError(f"Encountered list at unexpected level: {level} expected < {rank}")
                if len(item) != shape[level]:
                    raise InvalidInputError(
                        f"Encountered list at unexpected size: {len(item)} at level: {level} "
                        f"expected size: {shape[level]}"
                    )
                check_wanted()
                stack.append(iter(item))
                break
            if level != rank:
                raise InvalidInputError(
                    f"JSON Value: {dump(item)} found at incorrect level: {level + 1} in the JSON DOM. "
                    f"Expected at level: {rank}"
                )
            if (error := _element_error(item, dtype)) is not None:
                raise error
            count += 1
            if not count % CHECK_EVERY:
                check_wanted()
        else:
            stack.pop()
    return shape, count


def _element_error(item: Any, dtype: DType) -> ServingError | None:
    wanted = dtype.json
    if wanted == "unsupported":
        return UnsupportedError(f"Conversion of JSON Value: {dump(item)} to type: {dtype.name}")
    if wanted == "string" and isinstance(item, str):
        return None
    if wanted == "string" and isinstance(item, dict):
        try:
            _from_base64(item)
        except InvalidInputError as error:
            return error
        return None
    kind = type(item)
    fits = (
        (wanted == "number" and kind in (int, float))
        or (wanted == "bool" and kind is bool)
        or (wanted in INTEGER_LIMITS and kind is int and _in_limits(item, wanted))
    )
    if fits:
        return None
    message = f"JSON Value: {dump(item)} Type: {type_name(item)} is not of expected type: {dtype.name}"
    if wanted in INTEGER_LIMITS and kind is int:
        low, high = INTEGER_LIMITS[wanted]
        message += f", whose values are from {low} to {high}"
    return InvalidInputError(message)


def _in_limits(item: int, wanted: str) -> bool:
    low, high = INTEGER_LIMITS[wanted]
    return low <= item <= high
