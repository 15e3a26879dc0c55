"""An answered request as a `PredictionLog` record.

gRPC messages are copied unchanged; JSON and in-process requests are written as the equivalent messages. Knows no file
and no sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

from embedserve.servable import Array, Tensors
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors import proto
from embedserve.tensors.wire_format import delimited

if TYPE_CHECKING:
    from tensorflow.core.framework.tensor_pb2 import TensorProto
    from tensorflow_serving.apis.classification_pb2 import ClassificationRequest
    from tensorflow_serving.apis.model_pb2 import ModelSpec
    from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse
    from tensorflow_serving.apis.regression_pb2 import RegressionRequest

__all__ = ["Exchange", "Kind", "classify_exchange", "predict_exchange", "record_of", "regress_exchange"]

Kind: TypeAlias = Literal["classify_log", "regress_log", "multi_inference_log", "session_run_log", "predict_log"]
"""Field of `PredictionLog`."""

_FIELDS: Mapping[Kind, int] = {
    "classify_log": 2,
    "regress_log": 3,
    "multi_inference_log": 4,
    "session_run_log": 5,
    "predict_log": 6,
}
_METADATA, _REQUEST, _RESPONSE = 1, 1, 2

Contents: TypeAlias = bytes | Callable[[], bytes]
"""A serialized message, or a function that makes the message; called once, in the writer's thread."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and the answer.

    Attributes:
        kind: The field of `PredictionLog`.
        model_name, version, signature_name: The answering signature.
        request, response: The messages.
        size: Approximate bytes held in memory.
    """

    kind: Kind
    model_name: str
    version: int
    signature_name: str
    request: Contents
    response: Contents
    size: int


def record_of(exchange: Exchange, sampling_rate: float, tags: Sequence[str], seconds: int) -> bytes:
    """Serialize an exchange as a `PredictionLog`.

    Args:
        exchange: Request and answer.
        sampling_rate: The logged share of the model's exchanges, 1 for all.
        tags: The tag set of the loaded model.
        seconds: Time of the answer, in seconds since 1970.
    """
    from tensorflow_serving.apis.logging_pb2 import LogMetadata

    metadata = LogMetadata(saved_model_tags=tags, timestamp_secs=seconds)
    metadata.sampling_config.sampling_rate = sampling_rate
    _write_spec(metadata.model_spec, exchange.model_name, exchange.version, exchange.signature_name)
    log = delimited(_REQUEST, _contents(exchange.request)) + delimited(_RESPONSE, _contents(exchange.response))
    return delimited(_METADATA, metadata.SerializeToString()) + delimited(_FIELDS[exchange.kind], log)


def _contents(given: Contents) -> bytes:
    return given if isinstance(given, bytes) else given()


def _write_spec(spec: ModelSpec, name: str, version: int, signature_name: str) -> None:
    spec.name = name
    spec.version.value = version
    spec.signature_name = signature_name


# Messages for exchanges that did not come as messages.

_Spec: TypeAlias = tuple[str, int, str]


def predict_exchange(name: str, version: int, signature: Signature, inputs: Tensors, outputs: Tensors) -> Exchange:
    """A Predict exchange; the caller must not change the arrays any more."""
    spec = (name, version, signature.name)
    return Exchange(
        "predict_log",
        *spec,
        partial(_predict_request, spec, signature, inputs),
        partial(_predict_response, spec, signature, outputs),
        sum(map(_size, inputs.values())) + sum(map(_size, outputs.values())),
    )


def _size(array: Array) -> int:
    return sum(map(len, array.flat)) if array.dtype.hasobject else array.nbytes


def _predict_request(spec: _Spec, signature: Signature, inputs: Tensors) -> bytes:
    from tensorflow_serving.apis.predict_pb2 import PredictRequest

    request = PredictRequest()
    return _predict_message(request, spec, request.inputs, signature.inputs, inputs)


def _predict_response(spec: _Spec, signature: Signature, outputs: Tensors) -> bytes:
    from tensorflow_serving.apis.predict_pb2 import PredictResponse

    response = PredictResponse()
    return _predict_message(response, spec, response.outputs, signature.outputs, outputs)


def _predict_message(
    message: PredictRequest | PredictResponse,
    spec: _Spec,
    into: MutableMapping[str, TensorProto],
    declared: Mapping[str, TensorSpec],
    arrays: Tensors,
) -> bytes:
    _write_spec(message.model_spec, *spec)
    for alias, array in arrays.items():
        proto.encode_into(into[alias], array, declared[alias].dtype, as_content=True)
    data: bytes = message.SerializeToString()
    return data


def classify_exchange(
    spec: _Spec, examples: Sequence[bytes], context: bytes | None, result: Sequence[Sequence[tuple[bytes, float]]]
) -> Exchange:
    """A Classify exchange; `spec` is model, version and signature."""

    def request() -> bytes:
        from tensorflow_serving.apis.classification_pb2 import ClassificationRequest

        return _examples_request(ClassificationRequest(), spec, examples, context)

    def response() -> bytes:
        from tensorflow_serving.apis.classification_pb2 import ClassificationResponse

        message = ClassificationResponse()
        _write_spec(message.model_spec, *spec)
        for classes in result:
            add = message.result.classifications.add().classes.add
            for label, score in classes:
                add(label=label.decode("utf-8", "replace"), score=score)
        data: bytes = message.SerializeToString()
        return data

    return Exchange("classify_log", *spec, request, response, sum(map(len, examples)) + 32 * sum(map(len, result)))


def regress_exchange(spec: _Spec, examples: Sequence[bytes], context: bytes | None, values: Array) -> Exchange:
    """A Regress exchange; `spec` is model, version and signature."""

    def request() -> bytes:
        from tensorflow_serving.apis.regression_pb2 import RegressionRequest

        return _examples_request(RegressionRequest(), spec, examples, context)

    def response() -> bytes:
        from tensorflow_serving.apis.regression_pb2 import RegressionResponse

        message = RegressionResponse()
        _write_spec(message.model_spec, *spec)
        for value in values.tolist():
            message.result.regressions.add(value=value)
        data: bytes = message.SerializeToString()
        return data

    return Exchange("regress_log", *spec, request, response, sum(map(len, examples)) + values.nbytes)


def _examples_request(
    message: ClassificationRequest | RegressionRequest, spec: _Spec, examples: Sequence[bytes], context: bytes | None
) -> bytes:
    _write_spec(message.model_spec, *spec)
    if context is None:
        into = message.input.example_list.examples
    else:
        message.input.example_list_with_context.context.MergeFromString(context)
        into = message.input.example_list_with_context.examples
    for example in examples:
        into.add().MergeFromString(example)
    data: bytes = message.SerializeToString()
    return data
