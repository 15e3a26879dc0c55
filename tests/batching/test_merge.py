"""Merging, padding and splitting are exact for every dtype, and outputs that cannot be split are refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedserve.batching.merge import cut, join, merge, split, target_rows
from embedserve.errors import Code, InferenceError, InvalidInputError
from embedserve.servable import Array


def strings(*values: bytes) -> Array:
    array = np.empty(len(values), object)
    array[:] = values
    return array


@pytest.mark.parametrize(
    ("rows", "allowed", "target"),
    [(3, (), 3), (3, (2, 4, 8), 4), (4, (2, 4, 8), 4), (1, (8, 2), 2), (9, (2, 4, 8), 9)],
)
def test_target_rows_is_the_smallest_allowed_size_that_holds_them(rows: int, allowed: Any, target: int) -> None:
    assert target_rows(rows, allowed) == target


def test_merge_keeps_order_and_dtype_of_every_input() -> None:
    a, b = np.array([[1, 2]], np.float32), np.array([[3, 4], [5, 6]], np.float32)
    merged = merge([{"n": a, "s": strings(b"x")}, {"n": b, "s": strings(b"y\0", b"")}])
    assert merged["n"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert merged["n"].dtype == np.float32
    assert merged["s"].tolist() == [b"x", b"y\0", b""]
    assert merged["s"].dtype == object


def test_padding_rows_are_row_0_of_the_last_request() -> None:
    merged = merge([{"x": np.array([1])}, {"x": np.array([2, 3])}], padding=2)
    assert merged["x"].tolist() == [1, 2, 3, 2, 2]
    assert merge([{"s": strings(b"a", b"b\0")}], padding=1)["s"].tolist() == [b"a", b"b\0", b"a"]


def test_ragged_arrays_are_padded_at_the_end_with_their_own_first_element() -> None:
    a, b = np.array([[[1, 2]]]), np.array([[[3], [4]], [[5], [6]]])
    merged = merge([{"x": a}, {"x": b}], padding=1, ragged=True)["x"]
    assert merged.tolist() == [[[1, 2], [1, 1]], [[3, 3], [4, 3]], [[5, 3], [6, 3]], [[3, 3], [4, 3]]]
    words = [strings(b"a\0").reshape(1, 1), strings(b"b", b"c").reshape(1, 2)]
    assert merge([{"s": word} for word in words], ragged=True)["s"].tolist() == [[b"a\0", b"a\0"], [b"b", b"c"]]


def test_ragged_merge_leaves_equal_shapes_alone() -> None:
    empty = np.zeros((1, 0), np.int64)
    assert merge([{"x": empty}, {"x": empty}], ragged=True)["x"].shape == (2, 0)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ((1,) * 7, (1,) * 6 + (2,), "Only tensors with rank from 1 to 6 can be padded."),
        ((1, 2), (1, 2, 2), "Only tensors with rank from 1 to 6 can be padded."),
        ((1, 0), (1, 2), "Got empty tensor in batch of non-empty tensors."),
    ],
)
def test_what_cannot_be_padded_is_refused(a: tuple[int, ...], b: tuple[int, ...], words: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^{re.escape(words)}$"):
        merge([{"x": np.zeros(a)}, {"x": np.zeros(b)}], ragged=True)


def test_pieces_are_disjoint_views() -> None:
    output = np.arange(6)
    first, second = split({"y": output}, [2, 3], 6)
    first["y"][:] = -1
    assert second["y"].tolist() == [2, 3, 4]
    assert np.shares_memory(second["y"], output)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (np.float32(1).reshape(()), "Batched output tensor has 0 dimensions"),
        (
            np.zeros((3, 2)),
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
            "tensors",
        ),
    ],
)
def test_an_output_without_a_row_for_each_row_is_refused(output: Array, words: str) -> None:
    with pytest.raises(InferenceError, match=f"^{re.escape(words)}: output 'y'") as caught:
        split({"ok": np.zeros(2), "y": output}, [1, 1], 2)
    assert caught.value.code is Code.FAILED_PRECONDITION


def test_join_undoes_cut_and_says_what_does_not_fit() -> None:
    inputs = {"x": np.arange(10).reshape(5, 2), "s": strings(*b"a b c d e".split())}
    parts = [cut(inputs, start, stop) for start, stop in ((0, 1), (1, 4), (4, 5))]
    joined = join(parts)
    assert all((joined[name] == inputs[name]).all() for name in inputs)
    with pytest.raises(InferenceError, match=r"^Tensor concat operation failed: ") as caught:
        join([{"y": np.zeros((1, 2))}, {"y": np.zeros((1, 3))}])
    assert caught.value.code is Code.INTERNAL


tails = st.lists(st.integers(0, 3), max_size=3).map(tuple)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    tail=tails,
    padding=st.integers(0, 3),
    dtype=st.sampled_from(["<f4", "<i8", "?", "<c8", object]),
    contiguous=st.booleans(),
)
def test_split_undoes_merge(
    sizes: list[int], tail: tuple[int, ...], padding: int, dtype: Any, contiguous: bool
) -> None:
    numbers = np.arange(sum(sizes) * int(np.prod(tail))).reshape(-1 if 0 not in tail else sum(sizes), *tail)
    values = (
        np.array([str(n).encode() for n in numbers.flat], object).reshape(numbers.shape) if dtype is object else None
    )
    array = numbers.astype(dtype) if values is None else values
    ends = np.cumsum(sizes)
    requests = [{"x": piece} for piece in np.split(array, ends[:-1])]
    merged = merge(requests, padding)
    assert len(merged["x"]) == sum(sizes) + padding
    output = merged["x"] if contiguous else np.asfortranarray(merged["x"])
    pieces = split({"x": output}, sizes, sum(sizes) + padding)
    for request, piece in zip(requests, pieces, strict=True):
        assert piece["x"].dtype == request["x"].dtype
        assert piece["x"].shape == request["x"].shape
        assert (piece["x"] == request["x"]).all()
