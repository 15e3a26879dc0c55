"""The datatypes of the Open Inference Protocol ⇄ the dtype table, and raw bytes ⇄ arrays at memory speed.

Raw bytes are little-endian and row-major. An element of BYTES is a length of four bytes and the bytes themselves. The
module knows no message, no JSON and no model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from embedserve.errors import InvalidInputError, UnsupportedError
from embedserve.tensors.dtypes import MAX_RANK, Array, DType, by_name, by_numpy

__all__ = [
    "DATATYPES",
    "checked_shape",
    "datatype_of",
    "dtype_named",
    "from_raw",
    "listed",
    "raw_parts",
    "sent_datatype",
]

DATATYPES: Mapping[str, DType] = MappingProxyType(
    {
        "BOOL": by_name("bool"),
        "UINT8": by_name("uint8"),
        "UINT16": by_name("uint16"),
        "UINT32": by_name("uint32"),
        "UINT64": by_name("uint64"),
        "INT8": by_name("int8"),
        "INT16": by_name("int16"),
        "INT32": by_name("int32"),
        "INT64": by_name("int64"),
        "FP16": by_name("half"),
        "BF16": by_name("bfloat16"),
        "FP32": by_name("float"),
        "FP64": by_name("double"),
        "BYTES": by_name("string"),
    }
)
"""The dtype of each datatype; BF16 is Triton's addition."""

_NAMES: Mapping[str, str] = MappingProxyType({dtype.name: name for name, dtype in DATATYPES.items()})
_LENGTH_BYTES = 4
_MAX_ELEMENTS = 1 << 56
_SMALL = 4096
"""Bytes of an array up to which a copy costs less than a view."""


def datatype_of(dtype: DType) -> str:
    """The datatype for a model's description; TensorFlow's name in capitals for a dtype that the protocol lacks."""
    return _NAMES.get(dtype.name, dtype.name.upper())


def dtype_named(datatype: object, name: str) -> DType:
    """The dtype of a tensor in a request.

    Args:
        datatype: As sent.
        name: The name of the tensor, for the message.

    Raises:
        InvalidInputError: The protocol has no such datatype.
    """
    dtype = DATATYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise InvalidInputError(f"input {name!r} has datatype {datatype!r}, expected one of {', '.join(DATATYPES)}")
    return dtype


def sent_datatype(name: str, array: Array) -> str:
    """The datatype of an output.

    Raises:
        UnsupportedError: The protocol has no datatype for the output.
    """
    dtype = by_numpy(array.dtype)
    datatype = _NAMES.get(dtype.name)
    if datatype is None:
        raise UnsupportedError(
            f"output {name!r} is {dtype.name}, for which the Open Inference Protocol has no datatype; name the wanted "
            "outputs in 'outputs'"
        )
    return datatype


def listed(shape: Iterable[object]) -> str:
    """`[2,3]`."""
    return f"[{','.join(map(str, shape))}]"


def checked_shape(shape: Sequence[object], name: str) -> tuple[int, ...]:
    """The shape of a tensor in a request.

    Raises:
        InvalidInputError: A size is no number of 0 or more, or the shape is no tensor's.
    """
    sizes = tuple([size for size in shape if type(size) is int and size >= 0])
    if len(sizes) != len(shape):
        raise InvalidInputError(f"input {name!r} has shape {listed(shape)}; each size is an integer of 0 or more")
    if len(sizes) > MAX_RANK:
        raise InvalidInputError(f"input {name!r} has {len(sizes)} dimensions, expected at most {MAX_RANK}")
    if math.prod([size or 1 for size in sizes]) > _MAX_ELEMENTS:
        raise InvalidInputError(f"input {name!r} has shape {listed(shape)}, which is too large")
    return sizes


def from_raw(data: bytes | memoryview, dtype: DType, shape: tuple[int, ...], name: str) -> Array:
    """Read raw bytes.

    Returns:
        An array of the dtype and shape; read-only, over the memory of `data` itself where the position allows.

    Raises:
        InvalidInputError: The bytes are not as many as the shape asks for, or are no values of the dtype.
    """
    if dtype.numpy.hasobject:
        return _strings(data, shape, name)
    wanted = math.prod(shape) * dtype.numpy.itemsize
    if len(data) != wanted:
        raise InvalidInputError(
            f"input {name!r} has {len(data)} bytes of raw data; shape {listed(shape)} of {datatype_of(dtype)} needs "
            f"{wanted}"
        )
    array = np.frombuffer(data, dtype.numpy)
    if not array.flags.aligned:  # Users of arrays expect aligned memory.
        array = np.frombuffer(bytes(data), dtype.numpy)
    if dtype.name == "bool" and wanted and array.view(np.uint8).max() > 1:
        raise InvalidInputError(f"input {name!r} is BOOL, and its raw data holds bytes that are neither 0 nor 1")
    return array.reshape(shape)


def _strings(data: bytes | memoryview, shape: tuple[int, ...], name: str) -> Array:
    count, held, at = math.prod(shape), bytes(data), 0
    if count * _LENGTH_BYTES > len(held):
        raise _no_strings(name, shape, len(held))
    strings: list[bytes] = []
    for _ in range(count):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(held[at:start], "little")
        strings.append(held[start:at])
        if at > len(held):
            break
    if at != len(held):
        raise _no_strings(name, shape, len(held))
    array = np.empty(count, dtype=object)
    array[:] = strings
    return array.reshape(shape)


def _no_strings(name: str, shape: tuple[int, ...], size: int) -> InvalidInputError:
    return InvalidInputError(
        f"input {name!r} has {size} bytes of raw data, which are not the {math.prod(shape)} elements of shape "
        f"{listed(shape)}: an element of BYTES is its length in 4 bytes, little-endian, and its bytes"
    )


def raw_parts(array: Array) -> tuple[int, list[bytes | memoryview]]:
    """Write raw bytes: their number, and the pieces to be joined, of which one may be the array's own memory."""
    if array.dtype.hasobject:
        pieces: list[bytes | memoryview] = []
        for element in array.ravel().tolist():
            text = element.encode() if isinstance(element, str) else element
            pieces += (len(text).to_bytes(_LENGTH_BYTES, "little"), text)
        return sum(map(len, pieces)), pieces
    if array.nbytes <= _SMALL:
        return array.nbytes, [array.tobytes()]
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return array.nbytes, [array.reshape(-1).view(np.uint8).data]
