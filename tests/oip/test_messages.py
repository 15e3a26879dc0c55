"""The messages are the protocol's: fields and numbers as in a client's generated classes, beside which they live."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from tritonclient.grpc import model_config_pb2, service_pb2

from embedserve.oip.messages import PACKAGE, SERVICE, message_class, message_pool


def described(message: Any) -> dict[str, tuple[Any, ...]]:
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.message_type.full_name if field.message_type else field.enum_type and field.enum_type.full_name,
        )
        for field in message.fields
    }


def nested(message: Descriptor) -> list[Descriptor]:
    return [message, *(each for inner in message.nested_types for each in nested(inner))]


def test_every_field_is_the_clients_of_the_same_number_and_type() -> None:
    file: Any = message_pool().FindMessageTypeByName(f"{PACKAGE}.ModelInferRequest").file
    seen = 0
    for top in file.message_types_by_name.values():
        for message in nested(top):
            theirs = descriptor_pool.Default().FindMessageTypeByName(message.full_name)
            mine, all_of_theirs = described(message), described(theirs)
            assert mine == {name: all_of_theirs[name] for name in mine}, message.full_name
            assert theirs is not message
            seen += len(mine)
    assert seen > 100


def test_the_service_is_the_clients_as_far_as_it_goes() -> None:
    service = message_pool().FindServiceByName(SERVICE)
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in service.methods:
        assert method.input_type.full_name == theirs[method.name].input_type.full_name
        assert method.output_type.full_name == theirs[method.name].output_type.full_name
        assert method.client_streaming == theirs[method.name].client_streaming


def test_enumerated_types_have_the_clients_numbers() -> None:
    mine = message_pool().FindEnumTypeByName(f"{PACKAGE}.DataType")
    assert dict(model_config_pb2.DataType.items()) == {value.name: value.number for value in mine.values}


def test_a_clients_message_is_read_and_ours_is_read_by_the_client() -> None:
    theirs = service_pb2.ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"ab"])
    theirs.parameters["timeout"].int64_param = 5
    theirs.inputs.add(name="x", datatype="BYTES", shape=[1, 2])
    mine: Any = message_class("ModelInferRequest").FromString(theirs.SerializeToString())
    assert mine.parameters["timeout"].int64_param == 5
    assert service_pb2.ModelInferRequest.FromString(mine.SerializeToString()) == theirs


def test_an_unknown_message_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        message_class("Nothing")
