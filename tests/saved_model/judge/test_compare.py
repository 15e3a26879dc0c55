"""How far two answers are apart, and what a size is."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from embedserve.saved_model.judge import compare

ROWS = np.array([[1e6, 1.0], [1e-3, 2e-3]], np.float32)


def test_a_small_row_is_measured_by_itself_and_not_by_a_large_neighbour() -> None:
    changed = ROWS + np.array([[0.0, 0.0], [0.0, 2e-4]], np.float32)
    assert compare.difference(changed, ROWS) < 1e-9
    assert compare.row_difference(changed, ROWS) == pytest.approx(0.1, rel=1e-3)
    assert not compare.rows_equal(changed, ROWS)
    assert compare.row_difference(changed, ROWS, least_size=1e4) < 1e-7


@pytest.mark.parametrize("measure", [compare.difference, compare.row_difference])
def test_what_is_exact_must_be_equal(measure: object) -> None:
    assert callable(measure)
    for values in ([1, 2], [True, False], [b"a", b""]):
        array = np.array(values, object if values[0] == b"a" else None)
        assert measure(array, array.copy()) == 0
        assert measure(array, array[::-1]) == math.inf
        assert measure(array, array[:1]) == math.inf


@pytest.mark.parametrize("measure", [compare.difference, compare.row_difference])
def test_elements_that_are_not_finite_must_be_the_same(measure: object) -> None:
    assert callable(measure)
    array = np.array([[np.nan, np.inf, 1], [-np.inf, 2, 3]], np.float32)
    assert measure(array, array.copy()) == 0
    for place in ((0, 0), (0, 1), (0, 2)):
        other = array.copy()
        other[place] = -np.inf
        assert measure(other, array) == math.inf
        assert measure(array, other) == math.inf


@pytest.mark.parametrize("measure", [compare.difference, compare.row_difference])
def test_zeros_and_nothing_have_no_size(measure: object) -> None:
    assert callable(measure)
    zeros = np.zeros((2, 2), np.float32)
    assert measure(zeros, zeros) == 0
    assert measure(zeros + np.float32(1e-30), zeros) == math.inf
    assert measure(zeros[:0], zeros[:0]) == 0
    assert measure(zeros[:, :0], zeros[:, :0]) == 0
    assert measure(np.float32(2.0), np.float32(2.0)) == 0
    assert measure(np.array(3.0), np.array(2.0)) == 0.5


def test_the_last_places_of_short_floats_do_not_count() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        one = np.ones((1, 1), dtype)
        assert compare.rows_equal(one, np.nextafter(one, np.array(2, dtype)))
        assert compare.limit(one.dtype, 0.0) > 0
    assert compare.limit(np.dtype(np.int64), 0.5) == 0
    assert not compare.equal(np.ones(1, np.float32), np.ones(1, np.float64))


def test_the_usual_size_is_a_median() -> None:
    assert compare.usual_size([np.array([[size, np.inf]], np.float32) for size in (0, 1, -3, 1e9)]) == 2
    assert compare.usual_size([np.array([b"a"], object)]) == 0


def test_rounding_is_what_copies_of_a_row_show_too() -> None:
    alone, noisy, other = (np.array([[value]], np.float32) for value in (1e-6, 1.5e-6, 2e-6))
    assert compare.is_rounding(noisy, noisy, alone, usual=1.0)
    assert not compare.is_rounding(noisy, noisy, alone, usual=1e-2), "too much for what the output usually is"
    assert not compare.is_rounding(other, noisy, alone, usual=1.0), "other neighbours, another answer"
