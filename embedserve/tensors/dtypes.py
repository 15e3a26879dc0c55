"""The dtype table: TensorFlow `DataType` ↔ numpy dtype ↔ `TensorProto` field ↔ kind of JSON value.

All code that names, reads or writes a tensor uses the table. The module knows no TensorFlow and no wire format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from embedserve.tensors.foreign import MissingValueError, first_missing, without_hidden_nulls

__all__ = [
    "DTYPES",
    "MAX_RANK",
    "Array",
    "DType",
    "JsonKind",
    "Tensors",
    "by_name",
    "by_number",
    "by_numpy",
    "short_name",
]

Array: TypeAlias = npt.NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]
"""Arrays by input or output name: the only tensor type between layers. String tensors are object arrays of `bytes`."""
JsonKind: TypeAlias = Literal["number", "int32", "int64", "uint32", "uint64", "bool", "string", "unsupported"]
"""Kind of a JSON value that can become an element; `int32` also stands for the narrower integers, as on the wire."""

MAX_RANK = 64
"""Dimensions of a tensor at the most: the bound of numpy 2."""
_FIRST_REFERENCE = 100


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """A row of the table; each dtype has a single object, so rows compare by identity.

    Attributes:
        name: TensorFlow's short name (`float`, `int64`, `string`), as in messages.
        enum_name: Name in `types.proto` (`DT_FLOAT`).
        number: Number in `types.proto`.
        numpy: dtype of arrays; object for strings, whose elements are `bytes`.
        field: `TensorProto` field of the values, if `tensor_content` is empty.
        json: Kind of JSON values; `unsupported` for a dtype without values in the JSON API.
        limits: Least and greatest value of an integer dtype, else None.
    """

    name: str
    enum_name: str
    number: int
    numpy: np.dtype[Any]
    field: str
    json: JsonKind
    limits: tuple[int, int] | None

    def __repr__(self) -> str:
        return f"<DType {self.name}>"

    def __reduce__(self) -> tuple[object, ...]:
        return by_number, (self.number,)

    def convert(self, value: object) -> Array:
        """Bring a value to the dtype.

        Python numbers and lists take the dtype if their kind allows (ints for floats, never floats for ints). Arrays,
        tensors and columns are cast if `np.can_cast(..., "same_kind")` allows. `str` becomes UTF-8; `bytearray` and
        `memoryview` are bytes.

        Returns:
            The value itself if already an array of the dtype, else a new array.

        Raises:
            TypeError: The values are of a wrong kind; the only argument is the short name of their dtype.
            MissingValueError: A masked element, None, NA, a null of a column; NaN for a dtype without NaN.
            ValueError: A ragged list, or a number out of range.
        """
        if type(value) is not np.ndarray:
            value = without_hidden_nulls(value)
        if self.field == "string_val":
            return _strings(value)
        if self.numpy.hasobject:
            raise TypeError(_kind_of(_discovered(value, object)))
        if hasattr(value, "__array__"):
            array = np.asarray(value)
            if array.dtype == self.numpy:
                return array
            if not array.dtype.hasobject:
                return self._cast(array)
            value = array.tolist()  # A column of Python objects: the objects' types decide.
        return self._from_python(value)

    def _from_python(self, value: object) -> Array:
        array = _discovered(value)
        target, given = self.numpy, array.dtype
        if given == target:
            return array
        if array.size == 0:
            return np.zeros(array.shape, target)
        if target.fields:
            return _integers_of(target)._from_python(value).view(target)
        if given.hasobject or (given.kind == "f" and self.limits):
            # numpy reads ints beyond 64 bits as objects, and as floats if some of the ints are negative.
            array = _discovered(value, object)
            elements = array.ravel().tolist()
            kinds = set(map(type, elements))
            missing = first_missing(elements, array.shape, nan=not self._has_nan)
            if missing is not None:
                raise missing
            if list in kinds or tuple in kinds:
                raise ValueError(_ragged(value))
            if not all(issubclass(kind, int | np.integer) for kind in kinds):
                raise TypeError(_kind_of(array) if given.hasobject else short_name(given))
            if not self.limits:
                array = array.astype(np.float64)
        if self.limits and array.dtype.kind in "iuO":
            _check_range(array, self)
            return array.astype(target)
        return self._cast(array)

    def _cast(self, array: Array) -> Array:
        target = self.numpy
        if target.fields:
            return _integers_of(target)._cast(array).view(target)
        if not np.can_cast(array.dtype, target, "same_kind"):
            if array.dtype.kind == "f" and not self._has_nan and np.isnan(array).any():
                index = np.argwhere(np.isnan(array))[0]
                raise MissingValueError(tuple(map(int, index)), np.nan)
            raise TypeError(short_name(array.dtype))
        if self.limits and array.dtype.kind in "iu":
            _check_range(array, self)
        if not self._has_nan:
            return array.astype(target)
        with np.errstate(over="ignore"):
            cast = array.astype(target)
        finite = np.isfinite(cast)
        if not finite.all():
            _check_overflow(array, finite, self)
        return cast

    @property
    def _has_nan(self) -> bool:
        return self.numpy.kind in "fc" or self.field in ("half_val", "float8_val")


def _ragged(value: object) -> str:
    """The message that a list is ragged, with the first element out of shape."""
    told = "the list is ragged: lists at the same depth must have the same length and depth"
    level: list[tuple[tuple[int, ...], Any]] = [((), value)]
    while level:
        sizes = [
            len(one) if isinstance(one, list | tuple) or (isinstance(one, np.ndarray) and one.ndim) else None
            for _, one in level
        ]
        for (where, _), size in zip(level, sizes, strict=True):
            if size != sizes[0]:
                place = f"row {where[0]}" if len(where) == 1 else f"element {list(where)}"
                return f"{told}; {place} has {_count(size)}, expected {_count(sizes[0])}"
        if sizes[0] is None:
            break
        level = [((*where, i), one) for where, many in level for i, one in enumerate(many)]
    return told


def _count(size: int | None) -> str:
    return "no list" if size is None else f"{size} value{'' if size == 1 else 's'}"


def _integers_of(quantized: np.dtype[np.generic]) -> DType:
    """The integer dtype inside a quantized dtype; numpy has a structure with a single field for the latter."""
    assert quantized.fields is not None
    return by_numpy(next(iter(quantized.fields.values()))[0])


def _discovered(value: object, dtype: type | None = None) -> Array:
    try:
        return np.asarray(value, dtype=dtype)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        missing = first_missing(list(value), (len(value),), nan=False) if isinstance(value, list | tuple) else None
        raise missing or ValueError(_ragged(value)) from None


def _check_range(array: Array, dtype: DType) -> None:
    assert dtype.limits is not None
    low, high = dtype.limits
    given = None if array.dtype.hasobject else by_numpy(array.dtype).limits
    if array.size == 0 or (given is not None and low <= given[0] and given[1] <= high):
        return
    least, greatest = int(array.min()), int(array.max())
    if least < low or greatest > high:
        raise ValueError(f"{least if least < low else greatest} is out of range for {dtype.name} [{low}, {high}]")


def _check_overflow(array: Array, finite: Array, dtype: DType) -> None:
    """Refuse finite values that overflow the narrower dtype; infinity stays infinity."""
    overflown = np.isfinite(array) & ~finite
    if overflown.any():
        greatest = float(ml_dtypes.finfo(dtype.numpy).max)  # type: ignore[no-untyped-call]
        raise ValueError(f"{array[overflown][0]} is out of range for {dtype.name} [{-greatest:.8g}, {greatest:.8g}]")


def _strings(value: object) -> Array:
    """Object array of `bytes`."""
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "__array__"):
        array = np.asarray(value)
        if array.dtype.kind not in "OSUT":
            raise TypeError(short_name(array.dtype))
    else:
        array = np.array(value, dtype=object)
    elements = array.ravel().tolist()
    kinds = set(map(type, elements))
    if kinds <= {bytes} and array.dtype.hasobject:
        return array
    if not kinds <= {bytes, str}:
        missing = first_missing(elements, array.shape, nan=True)
        if missing is not None:
            raise missing
        replaced = _as_bytes(value)  # numpy takes a bytearray for a list of integers.
        if replaced is not value:
            return _strings(replaced)
    for kind in kinds:
        if issubclass(kind, list | tuple | np.ndarray):
            raise ValueError(_ragged(value))
        if not issubclass(kind, bytes | str):
            raise TypeError(_kind_of(array))
    converted = np.empty(len(elements), dtype=object)
    converted[:] = [bytes(e) if isinstance(e, bytes) else e.encode() for e in elements]
    return converted.reshape(array.shape)


def _as_bytes(value: object) -> object:
    """The value with each inner `bytearray` and `memoryview` as bytes; the same object if the value has none."""
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        return _as_bytes(value.tolist())
    if isinstance(value, list | tuple):
        replaced = [_as_bytes(element) for element in value]
        if any(new is not old for new, old in zip(replaced, value, strict=True)):
            return replaced
    return value


def _kind_of(array: Array) -> str:
    """Name of the elements' type in an object array, judged by the first element that is no string."""
    for element in array.ravel().tolist():
        if not isinstance(element, bytes | str):
            return short_name(np.asarray(element).dtype) if isinstance(element, _NUMBERS) else type(element).__name__
    return "string"


_NUMBERS = bool | int | float | complex | np.generic


def _row(
    number: int, name: str, numpy: object, field: str = "int_val", json: JsonKind = "unsupported", enum: str = ""
) -> DType:
    dtype = np.dtype(numpy)  # type: ignore[call-overload]
    limits = None
    if dtype.kind in "iu":
        limits = (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    elif name.startswith(("int", "uint")):
        info = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
        limits = (int(info.min), int(info.max))
    return DType(name, enum or f"DT_{name.upper()}", number, dtype, field, json, limits)


def _rows() -> list[DType]:
    rows = [
        _row(1, "float", np.float32, "float_val", "number"),
        _row(2, "double", np.float64, "double_val", "number"),
        _row(3, "int32", np.int32, json="int32"),
        _row(4, "uint8", np.uint8, json="int32"),
        _row(5, "int16", np.int16, json="int32"),
        _row(6, "int8", np.int8, json="int32"),
        _row(7, "string", object, "string_val", "string"),
        _row(8, "complex64", np.complex64, "scomplex_val"),
        _row(9, "int64", np.int64, "int64_val", "int64"),
        _row(10, "bool", np.bool_, "bool_val", "bool"),
        _row(11, "qint8", [("qint8", np.int8)]),
        _row(12, "quint8", [("quint8", np.uint8)]),
        _row(13, "qint32", [("qint32", np.int32)]),
        _row(14, "bfloat16", ml_dtypes.bfloat16, "half_val"),
        _row(15, "qint16", [("qint16", np.int16)]),
        _row(16, "quint16", [("quint16", np.uint16)]),
        _row(17, "uint16", np.uint16),
        _row(18, "complex128", np.complex128, "dcomplex_val"),
        _row(19, "half", np.float16, "half_val"),
        _row(20, "resource", object, "resource_handle_val"),
        _row(21, "variant", object, "variant_val"),
        _row(22, "uint32", np.uint32, "uint32_val", "uint32"),
        _row(23, "uint64", np.uint64, "uint64_val", "uint64"),
    ]
    floats = ["float8_e5m2", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e4m3b11fnuz", "float8_e5m2fnuz"]
    small = [*((name, "float8_val") for name in floats), *((name, "int_val") for name in _SMALL_INTEGERS)]
    for number, (name, field) in enumerate(small, start=24):
        scalar = getattr(ml_dtypes, name, None)  # Older ml_dtypes has fewer dtypes.
        if scalar is not None:
            rows.append(_row(number, name, scalar, field))
    return rows


_SMALL_INTEGERS = ("int4", "uint4", "int2", "uint2")

DTYPES: tuple[DType, ...] = tuple(_rows())
"""Every known dtype, by number."""

_BY_NUMBER: Mapping[int, DType] = MappingProxyType({row.number: row for row in DTYPES})
_BY_NAME: Mapping[str, DType] = MappingProxyType({row.name: row for row in DTYPES})
_BY_NUMPY: Mapping[np.dtype[np.generic], DType] = MappingProxyType(
    {row.numpy: row for row in DTYPES if not row.numpy.hasobject} | {np.dtype(object): _BY_NAME["string"]}
)


def by_number(number: int) -> DType:
    """Row of a `DataType`; a reference dtype (101...) means the dtype behind the reference.

    Raises:
        KeyError: Not in the table.
    """
    return _BY_NUMBER[number - _FIRST_REFERENCE if number > _FIRST_REFERENCE else number]


def by_name(name: str) -> DType:
    """Row of a short name (`float`, `string`).

    Raises:
        KeyError: Not in the table.
    """
    return _BY_NAME[name]


def by_numpy(dtype: np.dtype[np.generic]) -> DType:
    """Row of a numpy dtype; any byte order. Object and numpy's string dtypes are `string`.

    Raises:
        KeyError: Not in the table.
    """
    row = _BY_NUMPY.get(dtype)
    if row is None:
        row = _BY_NAME["string"] if dtype.kind in "SUT" else _BY_NUMPY[dtype.newbyteorder("=")]
    return row


def short_name(dtype: np.dtype[np.generic]) -> str:
    """TensorFlow's short name of a numpy dtype; numpy's own name for a dtype unknown to TensorFlow."""
    try:
        return by_numpy(dtype).name
    except KeyError:
        return str(dtype)
