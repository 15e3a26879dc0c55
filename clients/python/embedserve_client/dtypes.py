"""The dtype table: TensorFlow `DataType` ⇄ numpy dtype ⇄ `TensorProto` field, and values brought to a declared dtype.

The dtypes of `ml_dtypes` join the table at first use, because the package takes longer to import than the client. The
module knows no wire and no server.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from embedserve_client.errors import InvalidInputError, UnsupportedError

__all__ = ["Array", "DType", "Tensors", "as_array", "by_name", "by_number", "by_numpy", "convert"]

Array: TypeAlias = npt.NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]
"""Arrays by input or output name; string tensors are object arrays of `bytes`."""


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """A row of the table; rows compare by identity.

    Attributes:
        name: TensorFlow's short name (`float`, `int64`, `string`).
        number: Number in `types.proto`.
        numpy: dtype of arrays; object for strings.
        field: `TensorProto` field of the values, if `tensor_content` is empty.
        json: Whether TensorFlow Serving's JSON carries values of the dtype.
    """

    name: str
    number: int
    numpy: np.dtype[Any]
    field: str
    json: bool

    def __repr__(self) -> str:
        return f"<DType {self.name}>"


def _rows() -> list[DType]:
    plain: list[tuple[int, str, Any, str, bool]] = [
        (1, "float", np.float32, "float_val", True),
        (2, "double", np.float64, "double_val", True),
        (3, "int32", np.int32, "int_val", True),
        (4, "uint8", np.uint8, "int_val", True),
        (5, "int16", np.int16, "int_val", True),
        (6, "int8", np.int8, "int_val", True),
        (7, "string", object, "string_val", True),
        (8, "complex64", np.complex64, "scomplex_val", False),
        (9, "int64", np.int64, "int64_val", True),
        (10, "bool", np.bool_, "bool_val", True),
        (11, "qint8", [("qint8", np.int8)], "int_val", False),
        (12, "quint8", [("quint8", np.uint8)], "int_val", False),
        (13, "qint32", [("qint32", np.int32)], "int_val", False),
        (15, "qint16", [("qint16", np.int16)], "int_val", False),
        (16, "quint16", [("quint16", np.uint16)], "int_val", False),
        (17, "uint16", np.uint16, "int_val", False),
        (18, "complex128", np.complex128, "dcomplex_val", False),
        (19, "half", np.float16, "half_val", False),
        (22, "uint32", np.uint32, "uint32_val", True),
        (23, "uint64", np.uint64, "uint64_val", True),
    ]
    return [DType(name, number, np.dtype(scalar), field, json) for number, name, scalar, field, json in plain]


_ML_DTYPES: dict[int, tuple[str, str]] = {
    14: ("bfloat16", "half_val"),
    24: ("float8_e5m2", "float8_val"),
    25: ("float8_e4m3fn", "float8_val"),
    26: ("float8_e4m3fnuz", "float8_val"),
    27: ("float8_e4m3b11fnuz", "float8_val"),
    28: ("float8_e5m2fnuz", "float8_val"),
    29: ("int4", "int_val"),
    30: ("uint4", "int_val"),
    31: ("int2", "int_val"),
    32: ("uint2", "int_val"),
}
_NUMBERS = {name: number for number, (name, _) in _ML_DTYPES.items()}

_BY_NUMBER = {row.number: row for row in _rows()}
_BY_NAME = {row.name: row for row in _BY_NUMBER.values()}
_BY_NUMPY = {row.numpy: row for row in _BY_NUMBER.values()}
_STRING = _BY_NAME["string"]
_FIRST_REFERENCE = 100
_ALIASES = {"float32": "float", "float64": "double", "float16": "half", "str": "string", "bytes": "string"}


@functools.cache
def _from_ml_dtypes(number: int) -> DType:
    name, field = _ML_DTYPES[number]
    try:
        import ml_dtypes

        scalar = getattr(ml_dtypes, name)
    except (ImportError, AttributeError):
        raise UnsupportedError(f"values of dtype {name} need a newer ml_dtypes: pip install -U ml_dtypes") from None
    return DType(name, number, np.dtype(scalar), field, False)


def by_number(number: int) -> DType:
    """Row of a `DataType`; a reference dtype (101...) means the dtype behind the reference.

    Raises:
        UnsupportedError: No dtype with values, or ml_dtypes is missing.
    """
    if number > _FIRST_REFERENCE:
        number -= _FIRST_REFERENCE
    row = _BY_NUMBER.get(number)
    if row is not None:
        return row
    if number in _ML_DTYPES:
        return _from_ml_dtypes(number)
    raise UnsupportedError(f"dtype {number} of TensorFlow carries no values for clients")


def by_name(name: str) -> DType:
    """Row of a short name (`float`, `string`), or of numpy's name (`float32`).

    Raises:
        UnsupportedError: As `by_number`.
    """
    name = _ALIASES.get(name, name)
    row = _BY_NAME.get(name)
    if row is not None:
        return row
    if name in _NUMBERS:
        return _from_ml_dtypes(_NUMBERS[name])
    raise UnsupportedError(f"dtype {name!r} of TensorFlow carries no values for clients")


def by_numpy(dtype: np.dtype[Any]) -> DType:
    """Row of a numpy dtype in any byte order; object and numpy's string dtypes are `string`.

    Raises:
        InvalidInputError: TensorFlow has no such dtype.
    """
    row = _BY_NUMPY.get(dtype)
    if row is not None:
        return row
    if dtype.kind in "SUT":
        return _STRING
    if dtype.name in _NUMBERS:
        return _from_ml_dtypes(_NUMBERS[dtype.name])
    native = _BY_NUMPY.get(dtype.newbyteorder("="))
    if native is None:
        raise InvalidInputError(f"TensorFlow has no dtype for numpy's {dtype}")
    return native


def as_array(value: object) -> Array:
    """A value as an array of a dtype that TensorFlow has; str becomes UTF-8 bytes, and numbers take numpy's dtypes.

    Raises:
        InvalidInputError: A ragged list, or values without a dtype.
    """
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidInputError(f"the value is no tensor: {error}") from None
    dtype = by_numpy(array.dtype)
    if dtype is _STRING:
        return _strings(value, array)
    return array if array.dtype == dtype.numpy else array.astype(dtype.numpy)


def convert(value: object, dtype: DType, what: str) -> Array:
    """Bring a value to a declared dtype, by the rules of `ModelRegistry.predict`.

    Python numbers and lists take the dtype if their kind allows: ints for floats, never floats for ints. Arrays are
    cast where `np.can_cast(..., "same_kind")` allows. str becomes UTF-8 bytes.

    Args:
        value: An array, or anything that numpy reads.
        dtype: The declared dtype.
        what: Name of the input, for the message.

    Returns:
        The value itself if already an array of the dtype, else a new array.

    Raises:
        InvalidInputError: A value of another kind or out of range, or a ragged list.
    """
    if type(value) is np.ndarray and value.dtype == dtype.numpy and dtype is not _STRING:
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise InvalidInputError(f"input {what!r} is no tensor: {error}") from None
    if dtype is _STRING:
        return _strings(value, array, what)
    if array.dtype == dtype.numpy:
        return array
    if array.size == 0 and not isinstance(value, np.ndarray):
        return np.zeros(array.shape, dtype.numpy)
    _check_kind(array, value, dtype, what)
    return _cast(array, dtype, what)


def _check_kind(array: Array, value: object, dtype: DType, what: str) -> None:
    """Refuse values of another kind than the dtype's: the rule of numpy's same_kind, and Python numbers by kind."""
    given, target = array.dtype, dtype.numpy
    python = not hasattr(value, "__array__")
    if given.kind == "O" and python and all(isinstance(each, int) for each in array.ravel().tolist()):
        return  # Integers beyond 64 bits; the range decides.
    integers = target.kind in "iu" or dtype.field == "int_val"
    if given.kind in "iu" and (python or integers):
        allowed = target.kind != "b"
    elif given.kind == "f" and dtype.field in ("half_val", "float8_val"):
        allowed = True
    else:
        allowed = np.can_cast(given, target, "same_kind")
    if not allowed:
        raise InvalidInputError(f"input {what!r}: expects {dtype.name}, but {_name_of(given)} is provided")


def _name_of(given: np.dtype[Any]) -> str:
    try:
        return by_numpy(given).name if given.kind != "O" else "object"
    except InvalidInputError:
        return str(given)


def _cast(array: Array, dtype: DType, what: str) -> Array:
    target = dtype.numpy
    inner = target[0] if target.fields else target
    if inner.kind in "iu" and array.dtype.kind in "iuO" and array.size:
        limits = np.iinfo(inner)
        least, greatest = int(array.min()), int(array.max())
        if least < limits.min or greatest > limits.max:
            wrong = least if least < limits.min else greatest
            raise InvalidInputError(
                f"input {what!r}: {wrong} is out of range for {dtype.name} [{limits.min}, {limits.max}]"
            )
    with np.errstate(over="ignore"):
        cast: Array = array.astype(inner)
    if cast.dtype.kind == "f" and array.dtype.kind in "fiuO":
        finite = np.isfinite(cast)
        if not finite.all():
            overflown = ~finite & np.isfinite(array.astype(np.float64))
            if overflown.any():
                raise InvalidInputError(f"input {what!r}: {array[overflown][0]} is out of range for {dtype.name}")
    return cast.view(target) if target.fields else cast


def _strings(value: object, array: Array, what: str = "") -> Array:
    """Object array of `bytes`."""
    # numpy's own byte strings lose NULs at the end; only the objects have the whole values.
    if array.dtype.kind in "SU" and not isinstance(value, np.ndarray):
        array = np.array(value, dtype=object)
    elements = array.ravel().tolist()
    if array.dtype.hasobject and set(map(type, elements)) <= {bytes}:
        return array
    found = np.empty(len(elements), dtype=object)
    for at, element in enumerate(elements):
        if isinstance(element, str):
            element = element.encode()
        elif isinstance(element, bytearray | memoryview):
            element = bytes(element)
        elif not isinstance(element, bytes):
            place = f"input {what!r}: " if what else ""
            raise InvalidInputError(f"{place}expects string, but {type(element).__name__} is provided")
        found[at] = bytes(element)
    return found.reshape(array.shape)
