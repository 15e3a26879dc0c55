"""Calls ⇄ the messages of TensorFlow Serving's gRPC API, as bytes.

Predict is written and read around the arrays' own memory; the other calls are small and use protobuf's classes. The
module knows no connection and no retry.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embedserve_client.descriptors import message_class
from embedserve_client.dtypes import Array, Tensors, by_number, by_numpy
from embedserve_client.errors import Code, InferenceError, InvalidInputError, UnsupportedError
from embedserve_client.model import (
    Classifications,
    ModelMetadata,
    ModelSpec,
    Signature,
    State,
    TensorSpec,
    VersionStatus,
)
from embedserve_client.tensors import decode, encode
from embedserve_client.wire_format import LENGTH_DELIMITED, delimited, fields, varint

__all__ = [
    "classify_request",
    "classify_response",
    "examples_bytes",
    "health_request",
    "health_response",
    "metadata_request",
    "metadata_response",
    "predict_request",
    "predict_response",
    "regress_response",
    "status_request",
    "status_response",
]

_SERVING = "tensorflow.serving."


@functools.lru_cache(maxsize=256)
def _model_spec(spec: ModelSpec, signature_name: str) -> bytes:
    message = message_class(_SERVING + "ModelSpec")(name=spec.name, signature_name=signature_name)
    if spec.version is not None:
        message.version.value = spec.version
    elif spec.label is not None:
        message.version_label = spec.label
    return delimited(1, message.SerializeToString())


@functools.lru_cache(maxsize=1024)
def _up_to_values(alias: str, head: bytes, size: int) -> bytes:
    """An entry of `inputs` up to the tensor's values; the values have `size` bytes."""
    key = delimited(1, alias.encode())
    tensor = varint(2 << 3 | LENGTH_DELIMITED) + varint(len(head) + size) + head
    return b"".join((varint(2 << 3 | LENGTH_DELIMITED), varint(len(key) + len(tensor) + size), key, tensor))


def predict_request(
    spec: ModelSpec, signature_name: str, inputs: Tensors, output_filter: Sequence[str]
) -> list[bytes | memoryview]:
    """A PredictRequest in parts; large values are the arrays' own memory.

    Raises:
        InvalidInputError: TensorFlow has no dtype for an array.
    """
    parts: list[bytes | memoryview] = [_model_spec(spec, signature_name)]
    for alias, array in inputs.items():
        head, values = encode(array, by_numpy(array.dtype))
        parts += (_up_to_values(alias, head, len(values)), values)
    parts += [delimited(3, name.encode()) for name in output_filter]
    return parts


def predict_response(data: bytes) -> dict[str, Array]:
    """The outputs of a PredictResponse by name.

    Raises:
        InferenceError: The bytes are no PredictResponse.
        UnsupportedError: An output's dtype has no values for clients.
    """
    view = memoryview(data)
    outputs = {}
    try:
        for number, _, start, stop in fields(data, 0, len(data)):
            if number != 1:
                continue
            name, place = "", (stop, stop)
            for part, _, at, end in fields(data, start, stop):
                if part == 1:
                    name = data[at:end].decode()
                elif part == 2:
                    place = at, end
            outputs[name] = decode(view, *place, name)
    except (ValueError, IndexError) as error:
        raise InferenceError(f"the server's answer is no PredictResponse: {error}") from None
    return outputs


def _parsed(name: str, data: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return message_class(name).FromString(data)
    except DecodeError as error:
        raise InferenceError(f"the server's answer is no {name}: {error}") from None


def _with_spec(name: str, spec: ModelSpec, signature_name: str = "") -> Any:
    return message_class(_SERVING + name).FromString(_model_spec(spec, signature_name))


def examples_bytes(examples: Sequence[Any]) -> list[bytes]:
    """Serialized `tf.Example`s of bytes, messages, or dictionaries of feature values.

    A feature's value is a number, a string, bytes, or a list or array of one kind of these.

    Raises:
        InvalidInputError: No example, or a feature of no kind of `tf.Example`.
    """
    if isinstance(examples, bytes | str | Mapping) or not len(examples):
        raise InvalidInputError("expects a list of tf.Examples, with one at least")
    return [_example(each) for each in examples]


def _example(given: Any) -> bytes:
    if isinstance(given, bytes):
        return given
    if not isinstance(given, Mapping):
        serialize = getattr(given, "SerializeToString", None)
        if serialize is None:
            raise InvalidInputError(
                f"{type(given).__name__} is no tf.Example: expects bytes, a message or a dictionary"
            )
        return bytes(serialize())
    example = message_class("tensorflow.Example")()
    example.SetInParent()
    for name, value in given.items():
        _set_feature(example.features.feature[name], name, value)
    return bytes(example.SerializeToString())


def _set_feature(feature: Any, name: str, value: Any) -> None:
    elements = value if isinstance(value, list | tuple) else np.asarray(value, object).ravel().tolist()
    elements = [each.item() if isinstance(each, np.generic) else each for each in elements]
    if not elements:
        return
    if all(isinstance(each, bytes | str) for each in elements):
        feature.bytes_list.value.extend([each.encode() if isinstance(each, str) else each for each in elements])
    elif all(isinstance(each, int) for each in elements):
        try:
            feature.int64_list.value.extend([int(each) for each in elements])
        except ValueError as error:
            raise InvalidInputError(f"feature {name!r}: {error}") from None
    elif all(isinstance(each, int | float) for each in elements):
        feature.float_list.value.extend(elements)
    else:
        kinds = sorted({type(each).__name__ for each in elements})
        raise InvalidInputError(f"feature {name!r} expects numbers or strings, but {', '.join(kinds)} are provided")


def classify_request(
    kind: str, spec: ModelSpec, signature_name: str, examples: Sequence[bytes], context: bytes
) -> bytes:
    """A ClassificationRequest or RegressionRequest (`kind`); the context is shared by the examples unless empty."""
    request = _with_spec(kind, spec, signature_name)
    of = message_class("tensorflow.Example").FromString
    if context:
        listed = request.input.example_list_with_context
        listed.context.CopyFrom(of(context))
    else:
        listed = request.input.example_list
    listed.examples.extend([of(each) for each in examples])
    return bytes(request.SerializeToString())


def classify_response(data: bytes) -> Classifications:
    """(label, score) pairs for each example."""
    result = _parsed(_SERVING + "ClassificationResponse", data).result
    return [[(each.label.encode(), each.score) for each in one.classes] for one in result.classifications]


def regress_response(data: bytes) -> Array:
    """A float32 value for each example."""
    result = _parsed(_SERVING + "RegressionResponse", data).result
    return np.array([each.value for each in result.regressions], np.float32)


def metadata_request(spec: ModelSpec) -> bytes:
    """A GetModelMetadataRequest for the signatures."""
    request = _with_spec("GetModelMetadataRequest", spec)
    request.metadata_field.append("signature_def")
    return bytes(request.SerializeToString())


def metadata_response(data: bytes) -> ModelMetadata:
    """Name, version and signatures of a GetModelMetadataResponse."""
    response = _parsed(_SERVING + "GetModelMetadataResponse", data)
    found = message_class(_SERVING + "SignatureDefMap")()
    if not response.metadata["signature_def"].Unpack(found):
        raise InferenceError("the server's answer holds no signatures")
    spec = response.model_spec
    signatures = {
        name: Signature(name, _specs(each.inputs), _specs(each.outputs), each.method_name, tuple(sorted(each.defaults)))
        for name, each in sorted(found.signature_def.items())
    }
    return ModelMetadata(spec.name, spec.version.value, signatures)


def _specs(infos: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {name: _spec(name, infos[name]) for name in sorted(infos)}


def _spec(name: str, info: Any) -> TensorSpec:
    shape = None
    if not info.tensor_shape.unknown_rank:
        shape = tuple([None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim])
    return TensorSpec(name, _dtype_name(info.dtype), shape)


def _dtype_name(number: int) -> str:
    try:
        return by_number(number).name
    except UnsupportedError:
        enum = message_class("tensorflow.TensorProto").DESCRIPTOR.fields_by_name["dtype"].enum_type
        found = enum.values_by_number.get(number)
        return found.name.removeprefix("DT_").lower() if found is not None else f"dtype {number}"


def status_request(spec: ModelSpec) -> bytes:
    """A GetModelStatusRequest."""
    return bytes(_with_spec("GetModelStatusRequest", spec).SerializeToString())


def status_response(data: bytes) -> tuple[VersionStatus, ...]:
    """The versions of a GetModelStatusResponse, descending."""
    listed = _parsed(_SERVING + "GetModelStatusResponse", data).model_version_status
    return tuple(
        VersionStatus(each.version, State(each.state), Code(each.status.error_code), each.status.error_message)
        for each in sorted(listed, key=lambda each: -each.version)
    )


def health_request(service: str) -> bytes:
    """A `grpc.health.v1.HealthCheckRequest`."""
    return delimited(1, service.encode()) if service else b""


def health_response(data: bytes) -> bool:
    """Whether a `grpc.health.v1.HealthCheckResponse` says SERVING."""
    return data == b"\x08\x01"
