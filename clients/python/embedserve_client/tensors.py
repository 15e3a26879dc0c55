"""ndarray ⇄ the bytes of a `TensorProto`, without a message where the values are an array's memory.

A packed field of fixed-size numbers is little-endian memory. Strings and varints pass through a message of protobuf,
which is faster than Python. The rules of reading are TensorFlow's C++ `Tensor::FromProto`. The module knows no server.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from embedserve_client.descriptors import message_class
from embedserve_client.dtypes import Array, DType, by_number
from embedserve_client.errors import InferenceError
from embedserve_client.wire_format import LENGTH_DELIMITED, Buffer, delimited, fields, read_varint, varint

__all__ = ["decode", "encode", "from_message", "to_message"]

_TENSOR = "tensorflow.TensorProto"
_DTYPE, _SHAPE, _VERSION, _CONTENT = 1, 2, 3, 4
_RAW_FIELDS = {
    "float_val": 5,
    "double_val": 6,
    "scomplex_val": 9,
    "bool_val": 11,
    "dcomplex_val": 12,
    "float8_val": 18,
}
_MAX_RANK = 64

_SMALL = 4096
"""Bytes of an array up to which a copy costs less than a view."""


def encode(array: Array, dtype: DType) -> tuple[bytes, bytes | memoryview]:
    """The bytes of a `TensorProto` in two parts: the bytes before the values, and the values.

    Fixed-size numbers are `tensor_content`, and the second part may be the array's own memory.

    Args:
        array: Values of the dtype.
        dtype: The dtype that the message declares.
    """
    if dtype.field == "string_val":
        return _head(dtype.number, array.shape), _strings(array)
    if dtype.numpy.kind == "V" and not dtype.numpy.fields and dtype.numpy.itemsize == 1 and dtype.field == "int_val":
        return _head(dtype.number, array.shape), _narrow(array, dtype)
    size = array.nbytes
    if size <= _SMALL:
        return _head_to(dtype.number, array.shape, size), array.tobytes()
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return _head_to(dtype.number, array.shape, size), array.reshape(-1).view(np.uint8).data


@functools.lru_cache(maxsize=1024)
def _head(number: int, shape: tuple[int, ...]) -> bytes:
    """Serialized `dtype` and `tensor_shape`."""
    dims = b"".join(delimited(2, b"\x08" + varint(size)) for size in shape)
    return b"\x08" + varint(number) + delimited(_SHAPE, dims)


@functools.lru_cache(maxsize=1024)
def _head_to(number: int, shape: tuple[int, ...], size: int) -> bytes:
    """`dtype`, `tensor_shape`, and tag and length of `tensor_content`."""
    if not size:
        return _head(number, shape)
    return b"".join((_head(number, shape), varint(_CONTENT << 3 | LENGTH_DELIMITED), varint(size)))


def _strings(array: Array) -> bytes:
    data: bytes = message_class(_TENSOR)(string_val=array.ravel().tolist()).SerializeToString()
    return data


def _narrow(array: Array, dtype: DType) -> bytes:
    """Integers below a byte: TensorFlow's memory has the same form, but servers differ in reading its content."""
    wide = array.astype(np.int8 if dtype.name.startswith("int") else np.uint8).reshape(-1)
    data: bytes = message_class(_TENSOR)(int_val=wide.tolist()).SerializeToString()
    return data


def decode(data: Buffer, at: int, end: int, what: str = "") -> Array:
    """Read the `TensorProto` between two positions.

    Returns:
        A writable array of the declared dtype and shape with memory of its own; strings are objects of `bytes`.

    Raises:
        InferenceError: No valid tensor.
        UnsupportedError: The dtype has no values for clients, or needs ml_dtypes.
    """
    try:
        return _decode(data, at, end)
    except (ValueError, IndexError, MemoryError) as error:
        raise InferenceError(f"the server's answer holds no tensor for {what!r}: {error}") from None


def _decode(data: Buffer, at: int, end: int) -> Array:
    number = 0
    shape: tuple[int, ...] = ()
    values = None
    for field, kind, start, stop in fields(data, at, end):
        if field == _DTYPE:
            number, _ = read_varint(data, start)
        elif field == _SHAPE:
            shape = _shape(bytes(data[start:stop]))
        elif field == _VERSION:
            continue
        elif values is None and kind == LENGTH_DELIMITED:
            values = field, start, stop
        else:
            return _parsed(data, at, end)  # Strings, numbers in several pieces, or an unknown field.
    dtype = by_number(number)
    if values is None:
        return np.zeros(shape, dtype.numpy) if not dtype.numpy.hasobject else _parsed(data, at, end)
    field, start, stop = values
    fixed = field in (_CONTENT, _RAW_FIELDS.get(dtype.field))
    if not fixed or dtype.numpy.hasobject or stop - start != math.prod(shape) * dtype.numpy.itemsize:
        return _parsed(data, at, end)
    array = np.empty(shape, dtype.numpy)
    if array.size:
        array.reshape(-1).view(np.uint8).data[:] = data[start:stop]
    return array


@functools.lru_cache(maxsize=1024)
def _shape(dims: bytes) -> tuple[int, ...]:
    """The sizes of a serialized `TensorShapeProto`."""
    sizes = []
    for field, _, start, stop in fields(dims, 0, len(dims)):
        if field == 2:
            inner = [read_varint(dims, at)[0] for number, _, at, _ in fields(dims, start, stop) if number == 1]
            sizes.append(inner[-1] if inner else 0)
    if len(sizes) > _MAX_RANK or any(size >> 56 for size in sizes):
        raise ValueError(f"the shape {sizes} is no tensor's")
    return tuple(sizes)


def _parsed(data: Buffer, at: int, end: int) -> Array:
    from google.protobuf.message import DecodeError

    try:
        return from_message(message_class(_TENSOR).FromString(bytes(data[at:end])))
    except DecodeError as error:
        raise ValueError(str(error)) from None


def from_message(proto: Any) -> Array:
    """Read a `TensorProto` of any package: `tensor_content` or the typed field.

    Missing elements repeat the last value, and a message without values is zeros, as in TensorFlow.

    Raises:
        ValueError: No valid tensor.
        UnsupportedError: The dtype has no values for clients, or needs ml_dtypes.
    """
    dtype = by_number(proto.dtype)
    shape = tuple([dim.size for dim in proto.tensor_shape.dim])
    count = math.prod(shape)
    if any(size < 0 for size in shape):
        raise ValueError(f"the shape {list(shape)} has a negative dimension")
    if proto.tensor_content:
        if dtype.field == "string_val":
            return _objects(_string_list(proto.tensor_content, count)).reshape(shape)
        if len(proto.tensor_content) != count * dtype.numpy.itemsize:
            raise ValueError(f"{len(proto.tensor_content)} bytes of content for {dtype.name} {list(shape)}")
        return np.frombuffer(proto.tensor_content, dtype.numpy).reshape(shape).copy()
    given = _elements(getattr(proto, dtype.field), dtype)[:count]
    if len(given) < count:
        filled = np.empty(count, dtype.numpy)
        filled[: len(given)] = given
        rest = b"" if dtype.numpy.hasobject else np.zeros((), dtype.numpy)
        filled[len(given) :] = given[-1] if len(given) else rest
        given = filled
    return given.reshape(shape)


def _elements(values: Any, dtype: DType) -> Array:
    """The values of a typed field, in their dtype."""
    target, field = dtype.numpy, dtype.field
    if field == "string_val":
        return _objects(list(values))
    if not len(values):
        return np.zeros(0, target)
    if field == "float8_val":
        return np.frombuffer(values, target).copy()
    if field in ("scomplex_val", "dcomplex_val"):
        parts: Array = np.array(values, np.float32 if field == "scomplex_val" else np.float64)
        return parts[: len(parts) // 2 * 2].view(target)
    array = np.array(values)
    if field == "half_val":
        return array.astype(np.uint16).view(target)
    if target.fields:
        return array.astype(target[0]).view(target)
    return array.astype(target, copy=False)


def _objects(strings: list[bytes]) -> Array:
    array = np.empty(len(strings), dtype=object)
    array[:] = strings
    return array


def _string_list(content: bytes, count: int) -> list[bytes]:
    """TensorFlow's memory form of strings: all lengths as varints, then all bytes."""
    lengths, at = [], 0
    for _ in range(count):
        length, at = read_varint(content, at)
        lengths.append(length)
    if at + sum(lengths) != len(content):
        raise ValueError("tensor_content is not as long as its strings")
    strings = []
    for length in lengths:
        strings.append(content[at : at + length])
        at += length
    return strings


def to_message(array: Array, dtype: DType) -> Any:
    """A `TensorProto` of the client's own pool."""
    return message_class(_TENSOR).FromString(b"".join(encode(array, dtype)))
