"""How far two answers are apart: exactly for what is exact, relative to an output's largest element for floats.

Used wherever two ways of running a signature are compared. Knows no servable and no signature.
"""

from __future__ import annotations

import math

import numpy as np

from embedserve.servable import Array
from embedserve.tensors import dtypes

__all__ = ["TOLERANCE", "difference", "equal"]

TOLERANCE = 1e-5
"""Relative difference up to which floats count as equal: a merged batch changes the order of sums (about 6e-8)."""


def equal(first: Array, second: Array, tolerance: float = TOLERANCE) -> bool:
    """Whether two outputs are the same: exactly, or for floats within `tolerance` as `difference` measures it."""
    if first.dtype != second.dtype:
        return False
    return difference(first, second) <= (max(tolerance, 4.0 * _epsilon(first.dtype)) if _is_inexact(first) else 0.0)


def difference(first: Array, second: Array) -> float:
    """The largest difference of an element, relative to the largest finite element of `second`.

    Infinite where the shapes, exact values or non-finite elements differ.
    """
    if first.shape != second.shape:
        return math.inf
    if not _is_inexact(first):
        return 0.0 if np.array_equal(first, second) else math.inf
    wide = np.complex128 if first.dtype.kind == "c" else np.float64
    a, b = first.astype(wide), second.astype(wide)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return math.inf
    apart = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    return apart / float(np.abs(b[finite]).max()) if apart and b[finite].any() else (math.inf if apart else 0.0)


def _is_inexact(array: Array) -> bool:
    dtype = array.dtype
    return not (dtype.hasobject or dtype.fields or dtype.kind == "b" or dtypes.by_numpy(dtype).limits)


def _epsilon(dtype: np.dtype[np.generic]) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]
