"""Binding: what fits is passed on untouched, what does not is explained in the contract's words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from embedserve import InvalidInputError
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors.dtypes import by_name


def signature(
    inputs: dict[str, tuple[str, tuple[int | None, ...] | None]],
    defaults: dict[str, Any] | None = None,
    shape_free: bool = False,
    input_ranks: dict[str, int] | None = None,
) -> Signature:
    return Signature(
        name="serving_default",
        inputs={k: TensorSpec(k, by_name(d), s, f"serving_default_{k}:0") for k, (d, s) in sorted(inputs.items())},
        outputs={"y": TensorSpec("y", by_name("float"), (None,), "y:0")},
        defaults=defaults or {},
        shape_free=shape_free,
        input_ranks=input_ranks or {},
    )


def test_an_array_that_fits_is_passed_on_without_a_copy() -> None:
    x = np.ones((2, 3), np.float32)
    assert signature({"x": ("float", (None, 3))}).bind({"x": x})["x"] is x


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("float", [1, 2], np.array([1, 2], np.float32)),
        ("float", 1, np.float32(1)),
        ("int32", [True, False], np.array([1, 0], np.int32)),
        ("int64", np.array([1, 2], np.int32), np.array([1, 2], np.int64)),
        ("float", np.array([1.5], np.float64), np.array([1.5], np.float32)),
        ("int32", np.array([1.5]), None),
        ("int32", [1.5], None),
        ("int32", [2**31], None),
        ("int8", np.array([1], np.int64), np.array([1], np.int8)),
        ("string", ["ä", b"b"], np.array(["ä".encode(), b"b"], object)),
        ("string", np.array(["a", "bc"]), np.array([b"a", b"bc"], object)),
        ("string", "a", np.array(b"a", object)),
        ("float", "a", None),
        ("bool", [True], np.array([True])),
        ("float", [[1], [2, 3]], None),
        ("float", pd.Series([1.0, 2.0]), np.array([1, 2], np.float32)),
        ("string", pd.Series(["a", "b"]), np.array([b"a", b"b"], object)),
        ("float", None, None),
        ("float", {"a": 1}, None),
    ],
)
def test_values_take_the_declared_dtype_or_are_refused(dtype: str, value: Any, expected: Any) -> None:
    bound_to = signature({"x": (dtype, None)})
    if expected is None:
        with pytest.raises(InvalidInputError, match=r"input 'x' of signature 'serving_default'"):
            bound_to.bind({"x": value})
        return
    bound = bound_to.bind({"x": value})["x"]
    expected = np.asarray(expected)
    assert bound.dtype == expected.dtype
    assert bound.shape == expected.shape
    assert bound.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("dtype", "value", "given"),
    [
        ("float", np.array([1.5], np.float64), "double"),
        ("int64", np.array([1], np.int32), "int32"),
        ("float", np.float64(1.5), "double"),
        ("float", pd.Series([1.5]), "double"),
        ("string", np.array([1], np.int64), "int64"),
        ("int32", np.array([b"1"], object), "string"),
        ("quint8", np.array([1], np.uint8), "uint8"),
    ],
)
def test_without_a_cast_an_array_of_another_dtype_is_refused(dtype: str, value: Any, given: str) -> None:
    words = (
        rf"^Expects arg\[0\] to be {dtype} but {given} is provided: input 'x' of signature 'serving_default' is {dtype}"
    )
    with pytest.raises(InvalidInputError, match=words):
        signature({"x": (dtype, None)}).bind({"x": value}, cast=False)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float", [1, 2]),
        ("float", np.array([1], np.float32)),
        ("float", np.array([1], ">f4")),
        ("string", ["a"]),
        ("string", np.array(["a"])),
        ("string", np.array([b"a"], object)),
    ],
)
def test_without_a_cast_lists_and_arrays_of_the_dtype_are_still_taken(dtype: str, value: Any) -> None:
    bound_to = signature({"x": (dtype, None), "y": ("int32", ())}, defaults={"y": np.array(1, np.int32)})
    assert bound_to.bind({"x": value}, cast=False)["x"].dtype == by_name(dtype).numpy


def test_wrong_dtype_counts_arguments_by_sorted_tensor_name() -> None:
    both = signature({"aa": ("int32", (None,)), "zz": ("float", (None,))})
    with pytest.raises(InvalidInputError, match=r"^Expects arg\[1\] to be float but string is provided"):
        both.bind({"aa": [1], "zz": ["x"]})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"input size does not match signature: 0!=2 len\({}\) != len\({a,b}\)\. Sent extra: {}\. "),
        ({"a": 1.0}, r"Missing but required: {b}\."),
        ({"a": 1.0, "c": 2.0}, r"Signature input alias: b\(feed name: serving_default_b:0\) not found in request"),
        ({"a": 1.0, "b": 1.0, "c": 2.0}, r"3!=2 len\({a,b,c}\).*Sent extra: {c}"),
        ({1: 1.0, "b": 2.0}, "input names must be strings"),
    ],
)
def test_wrong_names_in_the_words_of_the_contract(given: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        signature({"a": ("float", ()), "b": ("float", ())}).bind(given)


def test_defaults_fill_in_and_unknown_names_are_still_refused() -> None:
    bound_to = signature({"a": ("float", ()), "b": ("float", ())}, defaults={"b": np.float32(7)})
    assert bound_to.bind({"a": 1.0})["b"] == 7
    with pytest.raises(
        InvalidInputError, match=r"Inputs contains invalid name. Used request inputs: a, request input: a,c"
    ):
        bound_to.bind({"a": 1.0, "c": 2.0})
    with pytest.raises(InvalidInputError, match="no default value provided"):
        bound_to.bind({"b": 1.0})


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 2, 3), ()])
def test_rank_and_fixed_sizes_are_checked(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match=r"has shape \[.*\], expected \[\?,3\]"):
        signature({"x": ("float", (None, 3))}).bind({"x": np.zeros(shape, np.float32)})


def test_element_wise_signatures_take_any_shape() -> None:
    free = signature({"x": ("float", (None, 1))}, shape_free=True)
    assert free.bind([1.0, 2.0, 5.0])["x"].shape == (3,)


def test_unknown_rank_is_guarded_by_input_ranks() -> None:
    guarded = signature({"x": ("float", None)}, input_ranks={"x": 4})
    with pytest.raises(InvalidInputError, match=r"expected \[\?,\?,\?,\?\] \(rank set by input_ranks\)"):
        guarded.bind([[1.0]])
    assert guarded.bind(np.zeros((1, 2, 2, 1), np.float32))["x"].shape == (1, 2, 2, 1)


def test_a_data_frame_gives_one_column_per_input() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})
    bound = signature({"a": ("float", (None, 1)), "b": ("string", (None,))}).bind(frame)
    assert bound["a"].shape == (2, 1)
    assert bound["b"].tolist() == [b"x", b"y"]


def test_output_filter() -> None:
    picked = signature({"x": ("float", None)})
    assert picked.pick(None) is None
    assert picked.pick([]) is None
    assert picked.pick(["y"]) == ("y",)
    with pytest.raises(
        InvalidInputError, match=r"output tensor alias not found in signature: q Outputs expected .* {y}\."
    ):
        picked.pick(["q"])
    with pytest.raises(InvalidInputError, match="duplicate output tensor alias: y"):
        picked.pick(["y", "y"])
