"""Difference between two answers: exact for exact dtypes, relative to a size for floats.

The size is the largest element of a whole output (`difference`) or of each row (`row_difference`). The module knows no
servable and no signature.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from embedserve.servable import Array
from embedserve.tensors import dtypes

__all__ = ["TOLERANCE", "difference", "equal", "is_rounding", "limit", "row_difference", "rows_equal", "usual_size"]

TOLERANCE = 1e-5
"""Relative difference up to which floats count as equal: a merged batch changes the order of sums (about 6e-8)."""


def equal(first: Array, second: Array, tolerance: float = TOLERANCE) -> bool:
    """Whether two outputs are equal: exactly, or for floats within `tolerance` of `difference`."""
    return first.dtype == second.dtype and difference(first, second) <= limit(first.dtype, tolerance)


def rows_equal(first: Array, second: Array, tolerance: float = TOLERANCE, least_size: float = 0.0) -> bool:
    """Whether the rows of two outputs are equal, each within `tolerance` of `row_difference`."""
    return first.dtype == second.dtype and row_difference(first, second, least_size) <= limit(first.dtype, tolerance)


def limit(dtype: np.dtype[np.generic], tolerance: float) -> float:
    """The allowed difference of a dtype: 0 for an exact dtype, otherwise at least four units in the last place."""
    return max(tolerance, 4.0 * _epsilon(dtype)) if _is_inexact(dtype) else 0.0


def difference(first: Array, second: Array) -> float:
    """The largest difference of an element, relative to the largest finite element of `second`.

    Infinite where the shapes, exact values or non-finite elements differ.
    """
    return _largest(first, second, 1, 0.0)


def row_difference(first: Array, second: Array, least_size: float = 0.0) -> float:
    """The largest difference of an element, relative to the largest finite element of the same row in `second`.

    Large values of a neighbour thus do not hide errors of a row of small values.

    Args:
        first, second: Outputs of shape `[rows, ...]`.
        least_size: Lower bound of the size that divides a row's difference.
    """
    return _largest(first, second, len(second) if second.ndim else 1, least_size)


def _largest(first: Array, second: Array, rows: int, least_size: float) -> float:
    if first.shape != second.shape:
        return math.inf
    if not _is_inexact(first.dtype):
        return 0.0 if np.array_equal(first, second) else math.inf
    if not second.size:
        return 0.0
    wide = np.complex128 if first.dtype.kind == "c" else np.float64
    a, b = first.astype(wide).reshape(rows, -1), second.astype(wide).reshape(rows, -1)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return math.inf
    a[~finite] = b[~finite] = 0
    apart = np.abs(a - b).max(axis=1)
    sizes = np.maximum(np.abs(b).max(axis=1), least_size)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(apart == 0, 0.0, apart / sizes).max())


def usual_size(outputs: Iterable[Array]) -> float:
    """The median of the largest finite elements of answers to single rows; 0 for an exact dtype."""
    sizes = [
        float(np.abs(output[np.isfinite(output)]).max(initial=0)) for output in outputs if _is_inexact(output.dtype)
    ]
    return float(np.median(sizes)) if sizes else 0.0


def is_rounding(together: Array, copies: Array, alone: Array, usual: float = 0.0, tolerance: float = TOLERANCE) -> bool:
    """Whether a row's answers beside neighbours and alone differ only by the rounding of reordered sums.

    A sum that cancels out leaves a small result with a large relative error, with any neighbours. So the row is
    answered once more among copies of the row. The answer among copies must equal the answer beside neighbours. The
    number of rows may change the answer only by a small part of the output's usual size.

    Args:
        together: The row's answer beside neighbours.
        copies: The row's answer at the same place among as many copies of the row.
        alone: The row's answer alone.
        usual: `usual_size` of the output.
        tolerance: Tolerance of both comparisons.
    """
    return rows_equal(together, copies, tolerance) and rows_equal(copies, alone, tolerance, usual)


def _is_inexact(dtype: np.dtype[np.generic]) -> bool:
    return not (dtype.hasobject or dtype.fields or dtype.kind == "b" or dtypes.by_numpy(dtype).limits)


def _epsilon(dtype: np.dtype[np.generic]) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]
