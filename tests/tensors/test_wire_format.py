"""Varints and fields of protobuf messages, read and written as protobuf does."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2, wrappers_pb2
from hypothesis import given
from hypothesis import strategies as st

from embedserve.tensors.wire_format import LENGTH_DELIMITED, VARINT, delimited, fields, read_varint, varint


@given(st.integers(0, 2**64 - 1))
def test_a_varint_is_read_as_written_and_as_protobuf_writes_it(value: int) -> None:
    encoded = varint(value)
    assert read_varint(encoded, 0) == (value, len(encoded))
    assert read_varint(memoryview(b"x" + encoded + b"y"), 1) == (value, 1 + len(encoded))
    assert wrappers_pb2.UInt64Value(value=value).SerializeToString() == (b"\x08" + encoded if value else b"")


@pytest.mark.parametrize("torn", [b"", b"\x80", b"\xff" * 10 + b"\x01"])
def test_a_torn_or_endless_varint_is_an_index_error(torn: bytes) -> None:
    with pytest.raises(IndexError):
        read_varint(torn, 0)


def test_fields_of_every_wire_type_are_found() -> None:
    message = descriptor_pb2.UninterpretedOption(
        positive_int_value=300, double_value=0.5, string_value=b"text", identifier_value="name"
    ).SerializeToString()
    found = {number: message[start:end] for number, kind, start, end in fields(message, 0, len(message))}
    assert (found[3], found[7]) == (b"name", b"text")
    assert read_varint(found[4], 0) == (300, 2)
    assert len(found[6]) == 8
    group = b"\x0b" + b"\x10\x05" + b"\x0c" + b"\x1d" + bytes(4) + delimited(9, b"z")
    assert [(number, kind) for number, kind, _, _ in fields(group, 0, len(group))] == [
        *((1, 3), (2, VARINT), (1, 4), (3, 5), (9, LENGTH_DELIMITED)),
    ]


@pytest.mark.parametrize("torn", [delimited(1, b"abc")[:-1], b"\x09" + bytes(7), b"\x0e", b"\x0f\x00"])
def test_bytes_that_are_no_message_are_refused(torn: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        list(fields(torn, 0, len(torn)))
