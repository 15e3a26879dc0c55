"""Arrays, columns and tables of foreign libraries → values for numpy, with no missing value hidden.

numpy reads the data under a mask, and reads a null of pandas, polars or pyarrow as NaN. Each library is recognised by
its methods, so none needs to be installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

__all__ = ["MissingValueError", "columns_of", "first_missing", "without_hidden_nulls"]

_MAX_DEPTH = 64
"""Dimensions of an array at the most: the bound of numpy 2."""

_QUANTIZED = frozenset(("qint8", "quint8", "qint16", "quint16", "qint32"))
"""Names of the single field of a quantized dtype in numpy; an array with a quantized dtype is no table."""

_MISSING_TYPES = frozenset(("NoneType", "NAType", "NaTType", "MaskedConstant"))


class MissingValueError(ValueError):
    """An element has no value.

    Attributes:
        index: Position of the element; empty for a scalar.
    """

    def __init__(self, index: tuple[int, ...], what: object) -> None:
        super().__init__(f"{what!r} at {list(index)}")
        self.index = index
        self.what = what


def columns_of(value: Any) -> dict[str, object] | None:
    """The columns of a DataFrame (pandas, polars), a Table or RecordBatch (pyarrow), or records; None for other values.

    Records are a list of mappings, or numpy's structured array.

    Raises:
        ValueError: Two columns have the same name, or records differ in their keys.
    """
    if hasattr(value, "column_names") and hasattr(value, "column"):
        names = list(value.column_names)
        columns = [value.column(i) for i in range(len(names))]
    elif hasattr(value, "columns") and hasattr(value, "to_numpy"):
        names = list(value.columns)
        columns = [value[name] for name in names]
    elif isinstance(value, np.ndarray) and value.dtype.names and value.dtype.names[0] not in _QUANTIZED:
        names = list(value.dtype.names)
        columns = [value[name] for name in names]
    elif isinstance(value, list | tuple) and value and all(isinstance(row, Mapping) for row in value):
        return _columns_of_records(value)
    else:
        return None
    found = dict(zip(map(str, names), columns, strict=True))
    if len(found) < len(names):
        twice = next(name for name in found if [str(n) for n in names].count(name) > 1)
        raise ValueError(f"two columns have the name {twice!r}")
    return found


def _columns_of_records(rows: Sequence[Mapping[object, object]]) -> dict[str, object]:
    names = rows[0].keys()
    for i, row in enumerate(rows):
        if row.keys() != names:
            lacking, extra = sorted(names - row.keys(), key=str), sorted(row.keys() - names, key=str)
            raise ValueError(
                f"record {i} has other keys than record 0:"
                + (f" it lacks {', '.join(map(repr, lacking))}" if lacking else "")
                + (" and" if lacking and extra else "")
                + (f" it has {', '.join(map(repr, extra))} besides" if extra else "")
            )
    return {str(name): [row[name] for row in rows] for name in names}


def without_hidden_nulls(value: Any) -> object:
    """The value itself, or nested lists with None or NA for missing elements.

    Raises:
        MissingValueError: A masked element.
    """
    if isinstance(value, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(value)
        if mask.any():
            raise MissingValueError(tuple(map(int, np.argwhere(mask)[0])), np.ma.masked)
        return value
    if isinstance(value, list | tuple):
        return _checked_list(value)
    if hasattr(value, "null_count"):
        if hasattr(value, "columns"):  # A DataFrame of polars.
            return _rows_if_null(value, [value[name] for name in value.columns])
        return _listed(value) if _has_nulls(value) else value
    if hasattr(value, "column_names"):
        return _rows_if_null(value, [value.column(i) for i in range(len(value.column_names))])
    if hasattr(value, "isna"):  # pandas: in its numpy dtypes NaN is an ordinary number.
        if hasattr(value, "columns"):
            return _rows_if_null(value, [value.iloc[:, i] for i in range(len(value.columns))])
        if not isinstance(value.dtype, np.dtype) and bool(np.any(value.isna())):
            return list(value)
    return value


def _checked_list(value: list[object] | tuple[object, ...]) -> object:
    """Nested lists, with arrays and columns at any depth checked for nulls."""
    level: Any = value
    depth = 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"lists are inside each other more than {_MAX_DEPTH} deep, or a list holds itself")
        kinds = set(map(type, level))
        if any(
            hasattr(kind, "__array__") and kind is not np.ndarray and not issubclass(kind, np.generic) for kind in kinds
        ):
            return _nested(value)
        if not kinds <= {list, tuple}:
            break
        level = list(chain.from_iterable({id(one): one for one in level}.values()))
    return value


def _nested(value: object) -> object:
    if not isinstance(value, list | tuple):
        return without_hidden_nulls(value)
    nested = []
    for i, element in enumerate(value):
        try:
            nested.append(_nested(element))
        except MissingValueError as error:
            raise MissingValueError((i, *error.index), error.what) from None
    return nested


def _rows_if_null(table: object, columns: list[object]) -> object:
    """The table, or its rows as lists if a column holds nulls."""
    found = [without_hidden_nulls(column) for column in columns]
    if all(one is column for one, column in zip(found, columns, strict=True)):
        return table
    return [list(row) for row in zip(*found, strict=True)]


def _has_nulls(column: Any) -> bool:
    """Whether a column of polars or pyarrow holds nulls, also inside of its lists."""
    count = column.null_count
    if count() if callable(count) else count:
        return True
    if hasattr(column, "explode"):
        # Empty lists explode to nulls too; their rows are ragged, or the column is read element by element.
        return bool(column.dtype.is_nested()) and bool(column.explode().null_count())
    while hasattr(column.type, "value_type") and hasattr(column.type, "value_field"):  # Lists of any kind.
        column = importlib.import_module("pyarrow.compute").list_flatten(column)
        if column.null_count:
            return True
    return False


def _listed(column: Any) -> list[object]:
    listed: list[object] = column.to_pylist() if hasattr(column, "to_pylist") else column.to_list()
    return listed


def first_missing(elements: list[object], shape: tuple[int, ...], *, nan: bool) -> MissingValueError | None:
    """The error for the first missing value among the flattened elements of an array; None without a missing value.

    Args:
        elements: In order.
        shape: The array's shape.
        nan: Whether NaN also counts as missing: pandas writes missing integers and strings as NaN.
    """
    for i, element in enumerate(elements):
        kind = type(element)
        if kind.__name__ in _MISSING_TYPES or (nan and issubclass(kind, float | np.floating) and element != element):
            return MissingValueError(tuple(map(int, np.unravel_index(i, shape))) if shape else (), element)
    return None
