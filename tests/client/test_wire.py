"""The client's tables and bytes are those of TensorFlow, TensorFlow Serving, HPACK and embedserve."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import hpack
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.descriptor import Descriptor
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import model_service_pb2, prediction_service_pb2

from embedserve import errors as server_errors
from embedserve.tensors.dtypes import DTYPES
from embedserve.tensors.proto import encode as server_encode
from embedserve_client import errors, own_errors
from embedserve_client.descriptors import FILES, SERVICES, message_class, pool
from embedserve_client.dtypes import by_name, by_number, by_numpy
from embedserve_client.hpack import Decoder, HpackError, encode
from embedserve_client.tensors import decode, from_message
from embedserve_client.tensors import encode as encode_tensor

WITH_VALUES = [row for row in DTYPES if row.field not in ("resource_handle_val", "variant_val")]


def test_the_errors_of_an_environment_without_embedserve_are_the_same() -> None:
    for name in own_errors.__all__:
        ours, theirs = getattr(own_errors, name), getattr(server_errors, name)
        if name == "Code":
            assert {each.name: each.value for each in ours} == {each.name: each.value for each in theirs}
            continue
        assert (ours.code, [base.__name__ for base in ours.__mro__]) == (
            theirs.code,
            [base.__name__ for base in theirs.__mro__],
        )
        assert inspect.signature(ours).parameters.keys() == inspect.signature(theirs).parameters.keys()
        assert getattr(errors, name) is theirs, "with embedserve installed, the classes are one"


@pytest.mark.parametrize("row", WITH_VALUES, ids=lambda row: row.name)
def test_the_table_of_dtypes_is_the_servers(row: Any) -> None:
    ours = by_number(row.number)
    assert (ours.name, ours.numpy, ours.field) == (row.name, row.numpy, row.field)
    assert ours.json == (row.json != "unsupported")
    assert by_name(row.name) is ours
    assert by_numpy(row.numpy) is ours


def fields(descriptor: Descriptor) -> dict[str, tuple[Any, ...]]:
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.containing_oneof.name if field.containing_oneof else None,
            field.message_type.full_name if field.message_type else None,
            field.enum_type.full_name if field.enum_type else None,
        )
        for field in descriptor.fields
    }


# Streams have no method in the service, and composite tensors and sampling by task no reader here.
LEFT_OUT = {
    "tensorflow.serving.PredictRequest": {"predict_streamed_options", "client_id", "request_options"},
    "tensorflow.TensorInfo": {"composite_tensor"},
    "tensorflow.serving.SamplingConfig": {"per_task_sampling_configs", "attributes"},
    "tensorflow.serving.LoggingConfig": {"custom_logging_config"},
}


def official(name: str) -> Any:
    return prediction_service_pb2.DESCRIPTOR.pool.FindMessageTypeByName(name)


@pytest.mark.parametrize("name", [f"{package}.{path}" for package, paths in FILES.values() for path in paths])
def test_a_message_has_the_fields_of_the_official_one(name: str) -> None:
    assert model_service_pb2.DESCRIPTOR.pool is prediction_service_pb2.DESCRIPTOR.pool
    theirs = fields(official(name))
    ours = fields(pool().FindMessageTypeByName(name))
    assert ours == {field: about for field, about in theirs.items() if field not in LEFT_OUT.get(name, ())}


@pytest.mark.parametrize(
    "name", ["tensorflow.DataType", "tensorflow.error.Code", "tensorflow.serving.ModelVersionStatus.State"]
)
def test_an_enum_has_the_official_numbers(name: str) -> None:
    theirs = prediction_service_pb2.DESCRIPTOR.pool.FindEnumTypeByName(name).values_by_name
    ours = pool().FindEnumTypeByName(name).values_by_name
    assert {each: ours[each].number for each in ours}.items() <= {each: theirs[each].number for each in theirs}.items()


def test_the_services_have_the_official_methods() -> None:
    for module in (prediction_service_pb2, model_service_pb2):
        for name, service in module.DESCRIPTOR.services_by_name.items():
            assert SERVICES[name] == {
                method.name: (method.input_type.name, method.output_type.name) for method in service.methods
            }


@st.composite
def tensors(draw: st.DrawFn) -> tuple[Any, Any]:
    row = draw(st.sampled_from(WITH_VALUES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=40))
    if row.name == "string":
        flat = draw(st.lists(st.binary(max_size=4), max_size=1).map(lambda one: (one or [b""]) * int(np.prod(shape))))
        array = np.empty(len(flat), dtype=object)
        array[:] = flat
        return row, array.reshape(shape)
    size = int(np.prod(shape)) * row.numpy.itemsize
    seed = draw(st.integers(0, 1 << 30))
    data = np.random.default_rng(seed).bytes(size)
    if row.name in ("bool", "int4", "uint4", "int2", "uint2"):
        narrow = np.frombuffer(data, np.uint8) % 2
        return row, narrow.astype(row.numpy).reshape(shape)
    return row, np.frombuffer(data, row.numpy).reshape(shape)


@settings(max_examples=100, deadline=None)
@given(made=tensors())
def test_tensors_are_read_by_tensorflow_and_read_from_tensorflow(made: tuple[Any, Any]) -> None:
    row, array = made
    data = b"".join(encode_tensor(array, by_number(row.number)))
    theirs = tensor_pb2.TensorProto.FromString(data)
    assert theirs.dtype == row.number
    expected = array.tobytes() if not array.dtype.hasobject else array.tolist()
    if row.name not in ("int4", "uint4", "int2", "uint2") and not row.numpy.fields:
        read = tf.io.parse_tensor(data, row.number).numpy() if row.name != "string" else tf.make_ndarray(theirs)
        assert (read.tobytes() if not array.dtype.hasobject else read.tolist()) == expected
    for as_content in (False, True):
        sent = server_encode(array, row, as_content=as_content).SerializeToString()
        found = decode(b"ab" + sent + b"c", 2, 2 + len(sent))
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert (found.tobytes() if not array.dtype.hasobject else found.tolist()) == expected
        assert found.flags.writeable


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dtype": 1, "float_val": [1.5]}, 1.5),
        ({"dtype": 1, "shape": [3], "float_val": [1.0, 2.0]}, [1.0, 2.0, 2.0]),
        ({"dtype": 1, "shape": [2]}, [0.0, 0.0]),
        ({"dtype": 7, "shape": [2]}, [b"", b""]),
        ({"dtype": 9, "shape": [2], "int64_val": [-1, 300]}, [-1, 300]),
        ({"dtype": 3, "shape": [2], "int_val": [5, 6, 7]}, [5, 6]),
        ({"dtype": 7, "shape": [2], "tensor_content": b"\x01\x02abb"}, [b"a", b"bb"]),
    ],
)
def test_a_shortened_tensor_is_read_by_tensorflows_rules(fields: dict[str, Any], expected: Any) -> None:
    shape = fields.pop("shape", ())
    proto = tensor_pb2.TensorProto(**fields)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    data = proto.SerializeToString()
    assert decode(data, 0, len(data)).tolist() == expected
    assert from_message(proto).tolist() == expected


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60))
def test_bytes_that_are_no_tensor_are_an_error_of_the_server(data: bytes) -> None:
    with contextlib.suppress(errors.ServingError):
        decode(data, 0, len(data))


def test_messages_and_tensorflows_live_in_one_process() -> None:
    ours = message_class("tensorflow.TensorProto")(dtype=1, float_val=[1.0])
    assert type(ours) is not tensor_pb2.TensorProto
    assert tensor_pb2.TensorProto.FromString(ours.SerializeToString()).float_val == [1.0]


HEADERS = st.lists(st.tuples(st.binary(min_size=1, max_size=12), st.binary(max_size=40)), max_size=8)


@settings(max_examples=60, deadline=None)
@given(blocks=st.lists(st.tuples(HEADERS, st.booleans()), max_size=6))
def test_header_blocks_are_read_as_another_implementation_writes_them(blocks: list[Any]) -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    for headers, huffman in blocks:
        assert decoder.decode(encoder.encode(headers, huffman=huffman)) == headers
        theirs = hpack.Decoder().decode(encode(headers), raw=True)
        assert [tuple(each) for each in theirs] == headers


@settings(max_examples=100, deadline=None)
@given(block=st.binary(max_size=40))
def test_bytes_that_are_no_header_block_are_an_error(block: bytes) -> None:
    with contextlib.suppress(HpackError):
        Decoder().decode(block)
