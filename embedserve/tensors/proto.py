"""`TensorProto` ⇄ ndarray at memory speed, from any field with values.

The rules are TensorFlow's C++ `Tensor::FromProto`, not `tf.make_ndarray`: the latter refuses some messages that
TensorFlow Serving takes. The module knows no signature and no model.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embedserve.errors import InvalidInputError, RequestTooLargeError
from embedserve.tensors import sizes
from embedserve.tensors.dtypes import DTYPES, MAX_RANK, Array, DType
from embedserve.tensors.wire_format import delimited, read_varint, varint

if TYPE_CHECKING:
    from tensorflow.core.framework.tensor_pb2 import TensorProto
    from tensorflow.core.framework.tensor_shape_pb2 import TensorShapeProto

__all__ = [
    "Declared",
    "before_small",
    "declared",
    "decode",
    "encode",
    "encode_into",
    "serialized",
]

_BY_NUMBER = {row.number: row for row in DTYPES}
_MAX_ELEMENTS = 1 << 56
"""Elements of a shape at the most: with 64 bytes per string, the size in bytes still fits into 63 bits."""


class _ParseError(Exception):
    """The reason why a message is no tensor."""


class Declared(NamedTuple):
    """A message's declaration of its tensor, read before any value.

    Attributes:
        dtype, shape: As declared.
        size: Bytes of the array that `decode` makes: a few bytes on the wire may declare a large array.
    """

    dtype: DType
    shape: tuple[int, ...]
    size: int

    def __str__(self) -> str:
        return f"{self.dtype.name} {_listed(self.shape)}"


def declared(proto: TensorProto, what: str = "") -> Declared:
    """Read dtype, shape and size of a tensor, without making an array.

    Args:
        proto, what: As for `decode`.

    Raises:
        InvalidInputError: No dtype with values, or no shape of a tensor.
    """
    try:
        dtype, shape = _dtype(proto), _shape(proto.tensor_shape)
    except _ParseError as error:
        raise _no_tensor(what, error) from None
    if 0 in shape:
        return Declared(dtype, shape, 0)
    given = None if proto.tensor_content else len(getattr(proto, dtype.field))
    return Declared(dtype, shape, sizes.tensor_bytes(dtype, shape, given))


def decode(proto: TensorProto, what: str = "") -> Array:
    """Read a tensor.

    The rules are TensorFlow's. The last value is repeated for missing elements, and a message without values is zeros.
    Surplus values are ignored, and integers wrap into narrower dtypes. A reader of clients' messages reserves the size
    from `declared` before.

    Args:
        proto: Any representation: `tensor_content` or the typed field.
        what: Name of the input, for the message.

    Returns:
        An array of the declared dtype and shape; read-only if the array shares the memory of `tensor_content`.

    Raises:
        InvalidInputError: No valid tensor.
        RequestTooLargeError: The machine has no memory for the tensor.
    """
    try:
        dtype = _dtype(proto)
        shape = _shape(proto.tensor_shape)
        if 0 in shape:  # TensorFlow ignores any values of the message.
            return np.zeros(shape, dtype.numpy)
        content = proto.tensor_content
        if content:
            return _from_content(content, dtype, shape)
        return _from_field(getattr(proto, dtype.field), dtype, shape)
    except _ParseError as error:
        raise _no_tensor(what, error) from None
    except MemoryError:
        raise RequestTooLargeError(f"no memory for {what or 'a tensor'}: {dtype.name} {_listed(shape)}") from None


def _dtype(proto: TensorProto) -> DType:
    dtype = _BY_NUMBER.get(proto.dtype)
    if dtype is None or dtype.field in ("resource_handle_val", "variant_val"):
        raise _ParseError(f"dtype {proto.dtype} carries no values")
    return dtype


def _no_tensor(what: str, error: _ParseError) -> InvalidInputError:
    return InvalidInputError(f"tensor parsing error: {what} ({error})")


def encode(array: Array, dtype: DType, *, as_content: bool = False) -> TensorProto:
    """Write a tensor.

    Args:
        array: Values; cast if not of `dtype`.
        dtype: The dtype that the message declares.
        as_content: Use `tensor_content`; strings always use `string_val`, which every client reads.
    """
    from tensorflow.core.framework.tensor_pb2 import TensorProto

    proto = TensorProto()
    encode_into(proto, array, dtype, as_content=as_content)
    return proto


def encode_into(proto: TensorProto, array: Array, dtype: DType, *, as_content: bool = False) -> None:
    """Write a tensor into an empty message, as `encode` does."""
    proto.MergeFromString(b"".join(serialized(array, dtype, as_content=as_content)))


def serialized(array: Array, dtype: DType, *, as_content: bool = False) -> tuple[bytes, bytes | memoryview]:
    """The bytes of the message that `encode` makes, in two parts: the bytes before the values, and the values.

    The values may be the array's own memory, so that an outer message can be put together without a copy in between.
    """
    array = np.asarray(array)  # A rank-0 output may be a numpy scalar.
    if array.dtype != dtype.numpy:
        array = dtype.convert(array)
    field = dtype.field
    if field == "string_val":
        return _header(dtype.number, array.shape), _strings(array)
    number = _CONTENT if as_content or not array.size else _RAW_FIELDS.get(field)
    if number is None:
        return _varints(array, dtype)
    # A packed field of fixed-size numbers is their little-endian memory; bools are varints of one byte.
    if array.nbytes <= _SMALL:
        return _header_to(dtype.number, array.shape, number, array.nbytes), array.tobytes()
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return _header_to(dtype.number, array.shape, number, array.nbytes), array.reshape(-1).view(np.uint8).data


def before_small(number: int, shape: tuple[int, ...], *, as_content: bool = False) -> tuple[bytes, int] | None:
    """The first part of `serialized`, and the size of the values, for a small array whose values are its memory.

    None for an empty or a larger array, and for a dtype with another form of values.
    """
    dtype = _BY_NUMBER[number]
    size = math.prod(shape) * dtype.numpy.itemsize
    field = None if dtype.field == "string_val" else _CONTENT if as_content else _RAW_FIELDS.get(dtype.field)
    if field is None or not 0 < size <= _SMALL:
        return None
    return _header_to(number, shape, field, size), size


@functools.lru_cache(maxsize=1024)
def _header_to(number: int, shape: tuple[int, ...], field: int, size: int) -> bytes:
    """`dtype`, `tensor_shape`, and the tag and length of a field of `size` bytes."""
    return b"".join((_header(number, shape), varint(field << 3 | 2), varint(size)))


def _strings(array: Array) -> bytes:
    from tensorflow.core.framework.tensor_pb2 import TensorProto

    data: bytes = TensorProto(string_val=_as_bytes(array.ravel().tolist())).SerializeToString()
    return data


def _varints(array: Array, dtype: DType) -> tuple[bytes, bytes]:
    if dtype.field == "half_val":
        array = array.view(np.uint16)
    elif dtype.numpy.fields:
        array = array.view(dtype.numpy[0])
    elif dtype.numpy.kind == "V":  # Small integers such as int4.
        array = array.astype(np.int8 if dtype.limits and dtype.limits[0] < 0 else np.uint8)
    number = _VARINT_FIELDS[dtype.field]
    if array.min() >= 0 and array.max() < 128:  # Each value is a varint of one byte.
        return _header_to(dtype.number, array.shape, number, array.size), array.astype(np.uint8).tobytes()
    from tensorflow.core.framework.tensor_pb2 import TensorProto

    # In pieces, joined by readers of a packed field: a Python number takes ten times the memory of an element.
    flat = array.reshape(-1)
    pieces = [
        TensorProto(**{dtype.field: flat[at : at + _PIECE].tolist()}).SerializeToString()
        for at in range(0, flat.size, _PIECE)
    ]
    return _header(dtype.number, array.shape), b"".join(pieces)


_SMALL = 4096
"""Bytes of an array up to which a copy costs less than a view."""

_PIECE = 1 << 18
"""Numbers per piece, if each number becomes a Python object on the way: a bound on memory."""

_CONTENT = 4
_RAW_FIELDS = {
    "float_val": 5,
    "double_val": 6,
    "scomplex_val": 9,
    "bool_val": 11,
    "dcomplex_val": 12,
    "float8_val": 18,
}
_VARINT_FIELDS = {"int_val": 7, "int64_val": 10, "half_val": 13, "uint32_val": 16, "uint64_val": 17}


@functools.lru_cache(maxsize=1024)
def _header(number: int, shape: tuple[int, ...]) -> bytes:
    """Serialized `dtype` and `tensor_shape`."""
    dims = b"".join(delimited(2, b"\x08" + varint(size)) for size in shape)
    return b"\x08" + varint(number) + delimited(2, dims)


def _as_bytes(elements: list[str | bytes]) -> list[bytes]:
    return [element.encode() if isinstance(element, str) else element for element in elements]


def _shape(proto: TensorShapeProto) -> tuple[int, ...]:
    # `unknown_rank` is ignored, as in TensorFlow: a shape without dimensions is a scalar.
    dims = proto.dim
    if len(dims) > MAX_RANK:
        raise _ParseError(f"rank {len(dims)}; at most {MAX_RANK} dimensions")
    shape = tuple([dim.size for dim in dims])
    if shape and min(shape) < 0:
        raise _ParseError(f"shape {_listed(shape)} has a negative dimension")
    if math.prod([size or 1 for size in shape]) > _MAX_ELEMENTS:
        raise _ParseError(f"shape {_listed(shape)} is too large")
    return shape


def _listed(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _from_content(content: bytes, dtype: DType, shape: tuple[int, ...]) -> Array:
    count = math.prod(shape)
    if dtype.field == "string_val":
        strings = _string_list(content, count)
        array = np.empty(count, dtype=object)
        array[:] = strings
        return array.reshape(shape)
    if len(content) != count * dtype.numpy.itemsize:
        raise _ParseError(
            f"tensor_content holds {len(content)} bytes; shape {_listed(shape)} of {dtype.name} needs "
            f"{count * dtype.numpy.itemsize}"
        )
    if dtype.field == "bool_val" and max(content) > 1:
        raise _ParseError("tensor_content of bool holds bytes that are neither 0 nor 1")
    return np.frombuffer(content, dtype.numpy).reshape(shape)


def _string_list(content: bytes, count: int) -> list[bytes]:
    """TensorFlow's memory form of strings: all lengths as varints, then all bytes (`port::DecodeStringList`)."""
    if count > len(content):
        raise _ParseError(f"tensor_content of {len(content)} bytes cannot hold {count} strings")
    lengths, at = [], 0
    try:
        for _ in range(count):
            length, at = read_varint(content, at)
            lengths.append(length)
    except IndexError:
        raise _ParseError("tensor_content holds no list of strings") from None
    if at + sum(lengths) != len(content):
        raise _ParseError("tensor_content is not as long as its strings")
    strings = []
    for length in lengths:
        strings.append(content[at : at + length])
        at += length
    return strings


def _from_field(values: Any, dtype: DType, shape: tuple[int, ...]) -> Array:
    count = math.prod(shape)
    if dtype.field == "string_val":
        given = np.empty(min(len(values), count), dtype=object)
        given[:] = values[:count]
    elif values:
        given = _elements(values, dtype)
    else:
        given = np.zeros(0, dtype.numpy)
    if len(given) < count:
        given = _filled(given, dtype, count)
    return given[:count].reshape(shape)


def _elements(values: Any, dtype: DType) -> Array:
    """The values of a typed field, in their dtype."""
    target, field = dtype.numpy, dtype.field
    if field == "float8_val":
        return np.frombuffer(values, target)
    if field == "scomplex_val" or field == "dcomplex_val":
        parts: Array = np.array(values, np.float32 if field == "scomplex_val" else np.float64)
        return parts[: len(parts) // 2 * 2].view(target)
    array = np.array(values)  # upb gives its memory as a whole; no element becomes a Python object.
    if field == "half_val":
        return array.astype(np.uint16).view(target)
    if target.fields:
        return array.astype(target[0]).view(target)
    return array.astype(target, copy=False)


def _filled(given: Array, dtype: DType, count: int) -> Array:
    array = np.empty(count, dtype.numpy)
    array[: len(given)] = given
    array[len(given) :] = given[-1] if len(given) else (b"" if dtype.numpy.hasobject else np.zeros((), dtype.numpy))
    return array
