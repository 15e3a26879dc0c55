"""Raw bytes of the Open Inference Protocol: what is written is read back, and nothing else is read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from embedserve.errors import InvalidInputError, UnsupportedError
from embedserve.oip.datatypes import (
    DATATYPES,
    checked_shape,
    datatype_of,
    dtype_named,
    from_raw,
    raw_parts,
    sent_datatype,
)
from embedserve.tensors.dtypes import DTYPES, Array, by_name

SHAPES = npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@st.composite
def arrays(draw: st.DrawFn, datatype: str | None = None) -> tuple[str, Array]:
    """A datatype and an array of it; half floats and strings from what numpy can draw."""
    name = draw(st.sampled_from(sorted(DATATYPES))) if datatype is None else datatype
    shape, dtype = draw(SHAPES), DATATYPES[name].numpy
    if name == "BYTES":
        return name, draw(npst.arrays(object, shape, elements=st.binary(max_size=9)))
    if name == "BF16":
        return name, draw(npst.arrays(np.uint16, shape)).view(dtype)
    return name, draw(npst.arrays(dtype, shape))


@given(arrays(), st.integers(0, 3))
def test_raw_bytes_read_back_as_the_same_array_at_any_position(drawn: tuple[str, Array], offset: int) -> None:
    name, array = drawn
    size, pieces = raw_parts(array)
    data = b"".join(pieces)
    assert size == len(data)
    held = memoryview(bytes(offset) + data)[offset:]
    found = from_raw(held, DATATYPES[name], array.shape, "x")
    assert found.flags.aligned
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert found.tobytes() == array.tobytes() if name != "BYTES" else found.tolist() == array.tolist()


def test_raw_bytes_of_an_aligned_position_are_read_without_a_copy() -> None:
    body = np.arange(8, dtype=np.float32).tobytes()
    assert np.shares_memory(from_raw(memoryview(body), by_name("float"), (8,), "x"), np.frombuffer(body, np.uint8))


def test_a_non_contiguous_output_is_written_in_row_major_order() -> None:
    array = np.arange(4096, dtype=np.float32).reshape(64, 64).T
    assert b"".join(raw_parts(array)[1]) == np.ascontiguousarray(array).tobytes()


def test_an_element_of_bytes_is_its_length_little_endian_and_its_bytes() -> None:
    strings = np.array([b"ab", b""], dtype=object)
    assert b"".join(raw_parts(strings)[1]) == b"\x02\x00\x00\x00ab\x00\x00\x00\x00"


@pytest.mark.parametrize(
    ("data", "name", "shape", "told"),
    [
        (b"\0" * 7, "FP32", (2,), "has 7 bytes of raw data; shape [2] of FP32 needs 8"),
        (b"\0" * 12, "FP32", (2,), "needs 8"),
        (b"\2", "BOOL", (1,), "neither 0 nor 1"),
        (b"\1\0\0\0", "BYTES", (1,), "are not the 1 elements"),
        (b"\1\0\0\0a\1\0\0\0b", "BYTES", (1,), "are not the 1 elements"),
        (b"\xff\xff\xff\xffa", "BYTES", (1,), "are not the 1 elements"),
        (b"\0" * 8, "BYTES", (1 << 40,), "are not the"),
    ],
)
def test_raw_bytes_of_a_wrong_size_or_value_are_refused(
    data: bytes, name: str, shape: tuple[int, ...], told: str
) -> None:
    with pytest.raises(InvalidInputError, match="input 'x'") as refused:
        from_raw(data, DATATYPES[name], shape, "x")
    assert told in refused.value.message


@given(st.binary(max_size=40), SHAPES)
def test_no_bytes_break_the_reading_of_strings(data: bytes, shape: tuple[int, ...]) -> None:
    try:
        found = from_raw(data, by_name("string"), shape, "x")
    except InvalidInputError:
        return
    assert b"".join(raw_parts(found)[1]) == data


@pytest.mark.parametrize("shape", [[-1], [1.5], ["2"], [True], [None], [1] * 65, [1 << 40, 1 << 40]])
def test_a_shape_that_is_no_tensors_is_refused(shape: list[object]) -> None:
    with pytest.raises(InvalidInputError, match="input 'x' has"):
        checked_shape(shape, "x")


@pytest.mark.parametrize("datatype", ["FLOAT", "fp32", "", None, 3, ["FP32"]])
def test_an_unknown_datatype_is_refused_with_the_known_ones(datatype: object) -> None:
    with pytest.raises(InvalidInputError, match="expected one of BOOL, UINT8"):
        dtype_named(datatype, "x")


def test_each_dtype_has_one_name_for_descriptions_and_what_has_no_datatype_is_not_sent() -> None:
    names = [datatype_of(dtype) for dtype in DTYPES]
    assert len(set(names)) == len(names)
    with pytest.raises(UnsupportedError, match="output 'y' is complex64"):
        sent_datatype("y", np.zeros(2, np.complex64))
