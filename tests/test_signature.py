"""Binding: what fits is passed on untouched, what does not is explained in the contract's words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
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
        with pytest.raises(InvalidInputError, match=r"input 'x'.* signature 'serving_default'"):
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


MASKED = np.ma.masked_array([1.0, 2.0, 3.0], [False, False, True])
NAN = float("nan")


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float", MASKED),
        ("float", [1.0, 2.0, np.ma.masked]),
        ("float", [[1.0], [2.0], np.ma.masked_array([1.0], [True])]),
        ("string", np.ma.masked_array(["a", "b", "c"], [False, False, True])),
        ("float", [1.0, 2.0, None]),
        ("float", [[1.0, 2.0], [3.0, 4.0], None]),
        ("int64", [[1], [2], [None]]),
        ("bool", [True, False, None]),
        ("string", ["a", b"b", None]),
        ("string", ["a", "b", NAN]),
        ("int64", np.array([1.0, 2.0, NAN])),
        ("float", np.array([1, 2, None], object)),
        ("float", pd.Series([1.0, 2.0, None], dtype=object)),
        ("float", pd.Series([1, 2, None], dtype="Int64")),
        ("int64", pd.Series([1, 2, None], dtype="Int64")),
        ("int64", pd.Series([1, 2, None])),
        ("float", pd.Series([1.0, 2.0, None], dtype=pd.ArrowDtype(pa.float64()))),
        ("bool", pd.Series([True, False, None], dtype="boolean")),
        ("string", pd.Series(["a", "b", None])),
        ("string", pd.Series(["a", "b", None], dtype="category")),
        ("float", pd.DataFrame({"a": pd.Series([1, 2, None], dtype="Int64")})),
        ("float", pl.Series([1, 2, None])),
        ("string", pl.Series(["a", "b", None])),
        ("float", pl.Series([[1.0], [2.0], [None]])),
        ("float", pl.DataFrame({"a": [1, 2, None]})),
        ("float", pa.array([1, 2, None])),
        ("float", pa.chunked_array([[1], [2, None]])),
        ("string", pa.array([b"a", b"b", None])),
        ("float", pa.array([[1.0], [2.0], [None]])),
        ("float", pa.array([[1.0], [2.0], None])),
    ],
)
def test_a_missing_value_is_named_by_input_and_row(dtype: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^row 2 of input 'x' is missing \("):
        signature({"x": (dtype, None)}).bind({"x": value})


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("float", np.ma.masked_array([1.0, 2.0], [False, False]), [1.0, 2.0]),
        ("float", pd.Series([1, 2], dtype="Int64"), [1.0, 2.0]),
        ("float", pl.Series([1, 2]), [1.0, 2.0]),
        ("float", pa.array([[1.0, 2.0], [3.0, 4.0]]), [[1.0, 2.0], [3.0, 4.0]]),
        ("float", pl.Series([[1.0, 2.0], [3.0, 4.0]]), [[1.0, 2.0], [3.0, 4.0]]),
        ("string", pa.array(["a", "b"]), [b"a", b"b"]),
        ("string", bytearray(b"ab"), b"ab"),
        ("string", memoryview(b"ab"), b"ab"),
        ("string", [bytearray(b"ab"), bytearray(b"cd")], [b"ab", b"cd"]),
        ("string", [[b"ab", memoryview(b"cd")], ["e", bytearray(b"f")]], [[b"ab", b"cd"], [b"e", b"f"]]),
        ("string", np.array([bytearray(b"ab"), b"c"], object), [b"ab", b"c"]),
    ],
)
def test_values_of_other_libraries_are_read(dtype: str, value: Any, expected: Any) -> None:
    assert signature({"x": (dtype, None)}).bind({"x": value})["x"].tolist() == expected


def test_nan_is_a_number_where_the_dtype_has_it() -> None:
    for value in ([1.0, NAN], np.array([1.0, NAN]), pd.Series([1.0, NAN])):
        assert np.isnan(signature({"x": ("float", None)}).bind({"x": value})["x"]).tolist() == [False, True]


@pytest.mark.parametrize(
    ("dtype", "value", "words"),
    [
        ("float", np.array([1.0, -1e39]), r"-1e\+39 is out of range for float \[-3\.40"),
        ("float", [1e39], r"1e\+39 is out of range for float"),
        ("half", np.array([7e4], np.float32), r"70000\.0 is out of range for half \[-65504, 65504\]"),
        ("half", np.array([70000]), "70000 is out of range for half"),
        ("bfloat16", np.array([1e300]), "out of range for bfloat16"),
        ("float8_e4m3fn", np.array([1e4]), "out of range for float8_e4m3fn"),
        ("complex64", np.array([1e300 + 1j]), "out of range for complex64"),
    ],
)
def test_a_float_that_overflows_is_refused_as_an_int_is(dtype: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        signature({"x": (dtype, None)}).bind({"x": value})


def test_infinity_stays_infinity() -> None:
    for value in ([np.inf, -np.inf], np.array([np.inf, -np.inf])):
        assert signature({"x": ("half", None)}).bind({"x": value})["x"].tolist() == [np.inf, -np.inf]


ROWS = {"a": [1.0, 2.0], "b": ["x", "y"]}


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame(ROWS),
        pl.DataFrame(ROWS),
        pa.table(ROWS),
        pa.RecordBatch.from_pydict(ROWS),
        pd.DataFrame(ROWS).to_dict("records"),
    ],
    ids=["pandas", "polars", "table", "record batch", "records"],
)
def test_a_table_gives_one_column_per_input(table: Any) -> None:
    bound = signature({"a": ("float", (None, 1)), "b": ("string", (None,))}).bind(table)
    assert bound["a"].tolist() == [[1.0], [2.0]]
    assert bound["b"].tolist() == [b"x", b"y"]
    with pytest.raises(
        InvalidInputError, match=r"gives one input per column, .* one input, 'x', which is float \[\?,2\]"
    ):
        signature({"x": ("float", (None, 2))}).bind(table)
    assert signature({"a": ("float", (None,))}).bind(pd.DataFrame({"a": [1.0]}))["a"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([{"a": 1.0, "b": "x"}, {"a": 2.0}], "record 1 has other keys than record 0: it lacks 'b'"),
        ([{"a": 1.0}, {"a": 2.0, "c": 1}], "record 1 has other keys than record 0: it has 'c' besides"),
        (pd.DataFrame([[1.0, 2.0]], columns=["a", "a"]), "two columns have the name 'a'"),
        (pa.table({"a": [1.0, 2.0, None], "b": ["x", "y", "z"]}), r"^row 2 of input 'a' is missing \(None\)"),
        ([{"a": 1.0, "b": "x"}, {"a": None, "b": "y"}], r"^row 1 of input 'a' is missing"),
        ([1.0, 2.0], r"a mapping by input name .* or a table or records of these columns; got list"),
    ],
)
def test_a_table_that_does_not_fit_says_why(table: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        signature({"a": ("float", (None, 1)), "b": ("string", (None,))}).bind(table)


def test_columns_are_named_in_their_order() -> None:
    table = pd.DataFrame({"width": [1], "age": [2], "height": [3]})
    with pytest.raises(InvalidInputError, match="The columns are width,age,height"):
        signature({"x": ("float", (None, 3))}).bind(table)


def test_a_structured_array_gives_one_column_per_input() -> None:
    records = np.array([(1.5, 2), (2.5, 3)], [("a", np.float64), ("b", np.int64)])
    bound = signature({"a": ("float", (None,)), "b": ("int32", (None, 1))}).bind(records)
    assert bound["a"].tolist() == [1.5, 2.5]
    assert bound["b"].tolist() == [[2], [3]]
    quantized = np.array([1, 2], np.int8).view([("qint8", "i1")])
    assert signature({"q": ("qint8", (None,))}).bind(quantized)["q"].tolist() == [(1,), (2,)]


@pytest.mark.parametrize("defaults", [{}, {"f0": np.zeros(1, np.float32)}])
def test_of_many_inputs_only_those_that_do_not_fit_are_named(defaults: dict[str, Any]) -> None:
    names = [f"f{i}" for i in range(40)]
    many = signature(dict.fromkeys(names, ("float", (None,))), defaults=defaults)
    given = {key: [1.0] for key in [*names[:-2], "wrong"]}
    with pytest.raises(InvalidInputError) as raised:
        many.bind(given)
    message = raised.value.message
    assert message.endswith("Sent extra: {wrong}. Missing but required: {f38,f39}.")
    assert "f7" not in message
    with pytest.raises(InvalidInputError, match=r"Sent extra: {wrong}\. Missing but required: {}\.$"):
        many.bind({**{key: [1.0] for key in names}, "wrong": [1.0]})


@pytest.mark.parametrize(
    ("output_filter", "words"),
    [(1, "must be names of outputs, got 1"), ([1], "got 1 among them"), ([["y"]], r"got \['y'\] among them")],
)
def test_an_output_filter_of_another_type_is_explained(output_filter: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        signature({"x": ("float", None)}).pick(output_filter)


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


def test_a_list_that_holds_itself_is_refused_and_does_not_hang() -> None:
    endless: list[Any] = []
    endless.append(endless)
    endless.append(endless)
    signature = Signature("s", {"x": TensorSpec("x", by_name("float"), (None,))}, {})
    with pytest.raises(InvalidInputError, match="a list holds itself"):
        signature.bind({"x": endless})
