from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework import tensor_pb2

from embedserve.errors import InvalidInputError, RequestTooLargeError
from embedserve.tensors import proto as tensor_proto
from embedserve.tensors.dtypes import DTYPES, Array, DType, by_name
from embedserve.tensors.proto import declared, decode, encode, encode_into
from embedserve.tensors.sizes import STRING_BYTES

VALUED = [row for row in DTYPES if row.field not in ("resource_handle_val", "variant_val")]
FLOAT, STRING = by_name("float"), by_name("string")


def message(dtype: str | int, shape: list[int], **fields: Any) -> tensor_pb2.TensorProto:
    number = dtype if isinstance(dtype, int) else by_name(dtype).number
    proto = tensor_pb2.TensorProto(dtype=number, **fields)
    for size in shape:
        proto.tensor_shape.dim.add().size = size
    return proto


def same(left: Array, right: Array) -> bool:
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    if left.dtype.name in ("int4", "uint4", "int2", "uint2"):  # Bits above the value's own are nobody's.
        left, right = left.astype(np.int8), right.astype(np.int8)
    return bool(left.tolist() == right.tolist()) if left.dtype.hasobject else left.tobytes() == right.tobytes()


def arrays(dtype: DType) -> st.SearchStrategy[Array]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    if dtype is STRING:
        return hnp.arrays(object, shapes, elements=st.binary(max_size=200), fill=st.nothing())
    if dtype.numpy.kind in "biufc" and dtype.numpy.num < 30:
        return hnp.arrays(dtype.numpy, shapes)
    base = dtype.numpy[0] if dtype.numpy.fields else np.dtype(f"u{dtype.numpy.itemsize}")
    if dtype.numpy.fields is None and dtype.limits:  # int4 and the like: a byte each, not every byte.
        low, high = dtype.limits
        return hnp.arrays(np.int8, shapes, elements=st.integers(low, high)).map(lambda array: array.astype(dtype.numpy))
    return hnp.arrays(base, shapes).map(lambda array: array.view(dtype.numpy))


@pytest.mark.parametrize("as_content", [False, True])
@pytest.mark.parametrize("dtype", VALUED, ids=lambda row: row.name)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_decode_gives_back_what_encode_was_given(dtype: DType, as_content: bool, data: st.DataObject) -> None:
    array = data.draw(arrays(dtype))
    assert same(decode(encode(array, dtype, as_content=as_content)), array)


@pytest.mark.parametrize("as_content", [False, True])
@pytest.mark.parametrize("dtype", [row for row in VALUED if not row.numpy.fields], ids=lambda row: row.name)
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_tensorflow_reads_what_encode_writes(dtype: DType, as_content: bool, data: st.DataObject) -> None:
    array = data.draw(arrays(dtype))
    read = tf.io.parse_tensor(encode(array, dtype, as_content=as_content).SerializeToString(), dtype.number)
    assert same(np.asarray(read.numpy(), dtype.numpy), array)


@pytest.mark.parametrize("dtype", [row for row in VALUED if row.number < 24], ids=lambda row: row.name)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_make_ndarray_reads_what_encode_writes(dtype: DType, data: st.DataObject) -> None:
    array = data.draw(arrays(dtype))
    assert same(np.asarray(tf.make_ndarray(encode(array, dtype)), dtype.numpy), array)


@pytest.mark.slow
@given(data=st.data(), dtype=st.sampled_from(VALUED), shape=st.lists(st.integers(-1, 4), max_size=3))
@settings(max_examples=300, deadline=None)
def test_decode_agrees_with_tensorflow_on_any_message(data: st.DataObject, dtype: DType, shape: list[int]) -> None:
    ints = st.integers(-(2**31), 2**31 - 1)
    fields: dict[str, st.SearchStrategy[Any]] = {
        "float_val": st.lists(st.floats(width=32), max_size=5),
        "double_val": st.lists(st.floats(), max_size=5),
        "int_val": st.lists(ints, max_size=5),
        "half_val": st.lists(ints, max_size=5),
        "int64_val": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
        "bool_val": st.lists(st.booleans(), max_size=5),
        "uint32_val": st.lists(st.integers(0, 2**32 - 1), max_size=5),
        "uint64_val": st.lists(st.integers(0, 2**64 - 1), max_size=5),
        "scomplex_val": st.lists(st.floats(width=32), max_size=5),
        "dcomplex_val": st.lists(st.floats(), max_size=5),
        "string_val": st.lists(st.binary(max_size=3), max_size=5),
        "float8_val": st.binary(max_size=5),
        "tensor_content": st.binary(max_size=9),
    }
    names = {dtype.field, *data.draw(st.sets(st.sampled_from(sorted(fields)), max_size=1))}
    proto = message(dtype.number, shape, **{name: data.draw(fields[name]) for name in names})
    try:
        expected = tf.io.parse_tensor(proto.SerializeToString(), dtype.number).numpy()
    except tf.errors.InvalidArgumentError:
        with pytest.raises(InvalidInputError, match=r"^tensor parsing error: x "):
            decode(proto, "x")
        return
    decoded = decode(proto, "x")
    if dtype.numpy.fields:
        decoded = decoded.view(dtype.numpy[0])
    assert same(decoded, np.asarray(expected, decoded.dtype))


@pytest.mark.parametrize(
    ("proto", "expected"),
    [
        (message("float", [3], float_val=[1, 2]), [1, 2, 2]),
        (message("float", [3]), [0, 0, 0]),
        (message("float", [1], float_val=[1, 2]), [1]),
        (message("float", [], float_val=[1, 2]), 1),
        (message("uint8", [2], int_val=[-1, 300]), [255, 44]),
        (message("int8", [2], int_val=[-1, 300]), [-1, 44]),
        (message("string", [2], string_val=[b"a"]), [b"a", b"a"]),
        (message("string", [2]), [b"", b""]),
        (message("half", [2], half_val=[15360]), [1, 1]),
        (message("float", [2], double_val=[1]), [0, 0]),
        (message("bool", [2]), [False, False]),
        (message("string", [2], tensor_content=b"\x01\x02abc"), [b"a", b"bc"]),
    ],
)
def test_short_surplus_and_misplaced_values(proto: tensor_pb2.TensorProto, expected: Any) -> None:
    assert decode(proto).tolist() == expected


def test_unknown_rank_is_a_scalar() -> None:
    proto = message("float", [], float_val=[3])
    proto.tensor_shape.unknown_rank = True
    assert decode(proto).shape == ()


@pytest.mark.parametrize(
    "proto",
    [
        message("float", [2], tensor_content=b"abcd"),
        message("float", [-1]),
        message(0, [], float_val=[1]),
        message(999, [], float_val=[1]),
        message(101, [1], float_val=[1]),
        message("resource", [1]),
        message("variant", [1]),
        message("float", [2**40, 2**40], float_val=[1]),
        message("float", [0, 2**40, 2**40]),
        message("float", [1] * 65, float_val=[1]),
        message("bool", [1], tensor_content=b"\x02"),
        message("string", [2**40], tensor_content=b"\x01"),
        message("string", [2], tensor_content=b"\x01\x02abcd"),
        message("string", [2], tensor_content=b"\x01\xff\xff\xff\xff\xff\xff"),
    ],
)
def test_what_is_no_tensor_is_refused_by_name(proto: tensor_pb2.TensorProto) -> None:
    with pytest.raises(InvalidInputError, match=r"^tensor parsing error: image \("):
        decode(proto, "image")


@pytest.mark.parametrize(
    ("proto", "size"),
    [
        (message("float", [2**40], float_val=[1]), 4 * 2**40),
        (message("int64", [3, 5]), 120),
        (message("float", [2], tensor_content=b"abcdefgh"), 8),
        (message("double", [0, 2**40], float_val=[1]), 0),
        (message("string", [1000], string_val=[b"a"]), STRING_BYTES + 999 * STRING_BYTES // 2),
    ],
)
def test_what_a_message_declares_is_known_before_it_is_made(proto: tensor_pb2.TensorProto, size: int) -> None:
    assert declared(proto).size == size


def test_a_tensor_that_no_machine_has_memory_for_is_refused() -> None:
    with pytest.raises(RequestTooLargeError, match=r"no memory for image: double \[36028797018963968\]"):
        decode(message("double", [2**55], double_val=[1]), "image")


@pytest.mark.parametrize("count", [1, tensor_proto._PIECE, 2 * tensor_proto._PIECE + 1])
def test_numbers_written_in_pieces_are_one_tensor(count: int) -> None:
    array = np.arange(count, dtype=np.int64) - 1000
    assert np.array_equal(decode(encode(array, by_name("int64"))), array)


def test_encode_into_fills_a_map_entry() -> None:
    from tensorflow_serving.apis.predict_pb2 import PredictResponse

    response = PredictResponse()
    encode_into(response.outputs["y"], np.array([[1, 2]], np.float32), FLOAT)
    assert tf.make_ndarray(response.outputs["y"]).tolist() == [[1, 2]]
    assert list(response.outputs["y"].float_val) == [1, 2]


def test_typed_fields_are_the_default_and_content_is_an_option() -> None:
    array = np.arange(6, dtype=np.int64).reshape(2, 3) * 1000
    typed, content = encode(array, by_name("int64")), encode(array, by_name("int64"), as_content=True)
    assert list(typed.int64_val) == array.ravel().tolist()
    assert typed.tensor_content == b""
    assert content.tensor_content == array.tobytes()
    assert not content.int64_val


def test_strings_never_travel_as_content() -> None:
    proto = encode(np.array([b"a", b"\xff\0"], dtype=object), STRING, as_content=True)
    assert list(proto.string_val) == [b"a", b"\xff\0"]


@pytest.mark.parametrize("as_content", [False, True])
def test_arrays_of_any_memory_order_are_written_in_c_order(as_content: bool) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    assert same(decode(encode(array, FLOAT, as_content=as_content)), np.ascontiguousarray(array))
    swapped = np.arange(3, dtype=">f4")
    assert decode(encode(swapped, FLOAT, as_content=as_content)).tolist() == [0, 1, 2]


def test_quantized_outputs_that_tensorflow_hands_out_as_integers_are_written() -> None:
    proto = encode(np.array([-1, 2], np.int8), by_name("qint8"))
    assert list(proto.int_val) == [-1, 2]
    assert proto.dtype == by_name("qint8").number


def test_large_messages_cost_no_object_per_element() -> None:
    proto = encode(np.zeros(200_000, np.float32), FLOAT)
    assert len(proto.float_val) == 200_000
    assert decode(proto).shape == (200_000,)
