from __future__ import annotations

import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from embedserve.tensors.dtypes import DTYPES, DType, by_name, by_number, by_numpy, short_name


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda row: row.name)
def test_rows_agree_with_tensorflow(dtype: DType) -> None:
    assert types_pb2.DataType.Value(dtype.enum_name) == dtype.number
    assert dtype.field in tensor_pb2.TensorProto.DESCRIPTOR.fields_by_name
    if dtype.name not in ("resource", "variant"):
        assert np.dtype(tf.dtypes.as_dtype(dtype.number).as_numpy_dtype) == dtype.numpy


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda row: row.name)
def test_rows_are_found_by_number_name_and_numpy_dtype(dtype: DType) -> None:
    assert by_number(dtype.number) is by_number(dtype.number + 100) is by_name(dtype.name) is dtype
    assert dtype.numpy.hasobject or by_numpy(dtype.numpy) is dtype
    assert pickle.loads(pickle.dumps(dtype)) is dtype


def test_numpy_dtypes_that_mean_the_same() -> None:
    assert by_numpy(np.dtype(">f4")) is by_name("float")
    assert by_numpy(np.dtype("S5")) is by_numpy(np.dtype("U1")) is by_numpy(np.dtype(object)) is by_name("string")
    assert short_name(np.dtype("M8[s]")) == "datetime64[s]"
    with pytest.raises(KeyError):
        by_number(99)


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("float", [1, 2.5], [1, 2.5]),
        ("float", 1, 1),
        ("float", [True], [1]),
        ("float", [2**70], [np.float32(2**70)]),
        ("double", [2**63, -1], [2.0**63, -1]),
        ("float", [np.float64(2), 1], [2, 1]),
        ("float", np.array([1], ">f4"), [1]),
        ("int32", [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ("int32", [], []),
        ("int32", [[], []], [[], []]),
        ("int32", [True], [1]),
        ("int32", np.array([1, 2], object), [1, 2]),
        ("int32", np.int64(7), 7),
        ("int32", np.array([5], np.int64), [5]),
        ("uint8", [1, 255], [1, 255]),
        ("uint64", [2**64 - 1], [2**64 - 1]),
        ("uint64", [2**63, 1], [2**63, 1]),
        ("complex64", [1, 2j], [1, 2j]),
        ("bool", [True, False], [True, False]),
        ("bfloat16", [1, 2.5], [1, 2.5]),
        ("bfloat16", np.array([2.5], np.float32), [2.5]),
        ("int4", [1, -8], [1, -8]),
        ("string", "é", b"\xc3\xa9"),
        ("string", b"a\0", b"a\0"),
        ("string", [["a", b"b"], ["c", "d"]], [[b"a", b"b"], [b"c", b"d"]]),
        ("string", np.array(["a", "bc"]), [b"a", b"bc"]),
        ("string", np.array([b"a"]), [b"a"]),
        ("string", [], []),
        ("float", tf.constant([1.5]), [1.5]),
        ("int64", tf.constant([1, 2]), [1, 2]),
        ("string", tf.constant(["a"]), [b"a"]),
        ("string", tf.constant("a"), b"a"),
        ("float", pd.Series([1, 2]), [1, 2]),
        ("string", pd.Series(["a", "b"]), [b"a", b"b"]),
        ("int64", pd.Series([1, 2], dtype="Int64"), [1, 2]),
        ("float", np.float64(1.5), 1.5),
    ],
)
def test_values_take_the_dtype(dtype: str, value: Any, expected: Any) -> None:
    array = by_name(dtype).convert(value)
    assert array.dtype == by_name(dtype).numpy
    assert array.tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "value", "given"),
    [
        ("int32", [1.0], "double"),
        ("int32", [2**63, 0.5], "double"),
        ("int32", np.array([1.0], np.float32), "float"),
        ("float", "1", "string"),
        ("float", ["1"], "string"),
        ("float", {"a": 1}, "dict"),
        ("float", [1j], "complex128"),
        ("bool", [1], "int64"),
        ("uint8", np.array([1]), "int64"),
        ("string", [1], "int64"),
        ("string", np.array([1]), "int64"),
        ("float", np.datetime64("2020-01-01"), "datetime64[D]"),
        ("resource", [1], "int64"),
        ("float", tf.constant("a"), "string"),
    ],
)
def test_values_of_another_kind_are_named(dtype: str, value: Any, given: str) -> None:
    with pytest.raises(TypeError) as caught:
        by_name(dtype).convert(value)
    assert caught.value.args == (given,)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int32", [2**31]),
        ("int32", [2**70]),
        ("int32", np.array([2**31])),
        ("uint8", [-1]),
        ("int64", [2**63]),
        ("int64", [2**63, -1]),
        ("uint64", [-1, 2**63]),
        ("int4", [8]),
        ("qint8", [128]),
    ],
)
def test_integers_never_wrap(dtype: str, value: Any) -> None:
    with pytest.raises(ValueError, match="out of range for"):
        by_name(dtype).convert(value)


@pytest.mark.parametrize("dtype", ["float", "int32", "string", "bool"])
@pytest.mark.parametrize("nested", [[[1, 2], [3]], [[1], 2], [1, [2]], [[1, 2], [3], [4, 5, 6]]])
def test_ragged_lists_are_called_ragged(dtype: str, nested: list[Any]) -> None:
    def leaves(value: Any) -> Any:
        if isinstance(value, list):
            return [leaves(item) for item in value]
        return "a" if dtype == "string" else bool(value) if dtype == "bool" else value

    with pytest.raises(ValueError, match="ragged"):
        by_name(dtype).convert(leaves(nested))


@pytest.mark.parametrize(
    ("nested", "said"),
    [
        ([[1, 2], [3]], "row 1 has 1 value, expected 2"),
        ([[1], 2], "row 1 has no list, expected 1 value"),
        ([1, [2, 3]], "row 1 has 2 values, expected no list"),
        ([[[1, 2], [3, 4]], [[5, 6], [7]]], r"element \[1, 1\] has 1 value, expected 2 values"),
        ([np.zeros(2), np.zeros(3)], "row 1 has 3 values, expected 2"),
    ],
)
def test_the_first_ragged_row_is_named(nested: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"the list is ragged: .*; {said}"):
        by_name("float").convert(nested)


@pytest.mark.parametrize("dtype", ["float", "string"])
def test_an_array_that_fits_is_not_copied(dtype: str) -> None:
    array = np.zeros(3, np.float32) if dtype == "float" else np.array([b"a"], dtype=object)
    assert by_name(dtype).convert(array) is array


def test_quantized_values_are_structures_of_one_integer() -> None:
    array = by_name("qint8").convert([1, -2])
    assert array.dtype.names == ("qint8",)
    assert array["qint8"].tolist() == [1, -2]
    assert by_name("qint8").convert(np.array([3], np.int8))["qint8"].tolist() == [3]


def test_bfloat16_is_the_one_that_tensorflow_uses() -> None:
    assert by_name("bfloat16").numpy == np.dtype(ml_dtypes.bfloat16) == tf.bfloat16.as_numpy_dtype
