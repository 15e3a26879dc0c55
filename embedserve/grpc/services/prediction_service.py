"""`tensorflow.serving.PredictionService`: Predict, Classify, Regress, MultiInference and GetModelMetadata.

Turns messages into calls on a model handle and answers back into messages. Each request holds a handle from the model
spec to the encoded answer. The handle decides about the checks and their order.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    model_pb2,
    predict_pb2,
    prediction_service_pb2,
    regression_pb2,
)

from embedserve.concurrency.off_loop import MESSAGE_BYTES, MESSAGE_COPY_BYTES, MESSAGE_RESULTS
from embedserve.errors import InvalidInputError, InvalidModelSpecError
from embedserve.grpc.calls import (
    Context,
    Handler,
    Log,
    Methods,
    acquire,
    acquire_spec,
    paths,
    priority_of,
    unary,
)
from embedserve.grpc.known_predict import KnownPredicts
from embedserve.grpc.request_templates import KnownRequest, RequestTemplates
from embedserve.request_log.records import Kind
from embedserve.servable import Array, Tensors
from embedserve.signature import DEFAULT_SIGNATURE, Signature
from embedserve.tensors import proto, sizes
from embedserve.tensors.wire_format import delimited, varint
from embedserve.tfs.examples import InferenceTask

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from tensorflow.core.framework.tensor_pb2 import TensorProto
    from tensorflow_serving.apis.classification_pb2 import (
        ClassificationRequest,
        ClassificationResponse,
        ClassificationResult,
    )
    from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest
    from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest
    from tensorflow_serving.apis.input_pb2 import Input
    from tensorflow_serving.apis.model_pb2 import ModelSpec
    from tensorflow_serving.apis.regression_pb2 import RegressionRequest, RegressionResponse, RegressionResult

    from embedserve.concurrency.inflight import Reservation
    from embedserve.handle import ModelHandle
    from embedserve.registry import ModelRegistry

__all__ = ["SERVICE", "methods"]

SERVICE = prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name


SMALL = 4096
"""Bytes up to which an array costs less than its call, and is not reserved."""

# Field numbers of PredictResponse and of its map entries.
_OUTPUTS, _MODEL_SPEC = 1, 2
_KEY, _VALUE = 1, 2


def methods(registry: ModelRegistry, *, tensor_content: bool = False) -> Methods:
    """The service's methods.

    Args:
        registry: The registry of the models.
        tensor_content: Answer numeric tensors as `tensor_content` instead of typed fields.
    """
    metadata = get_model_metadata_pb2.GetModelMetadataRequest
    requests: dict[str, tuple[type[Message], Handler, str | None, Kind | None]] = {
        "Predict": (
            predict_pb2.PredictRequest,
            partial(_predict, registry, tensor_content),
            "Predict",
            "predict_log",
        ),
        "Classify": (
            classification_pb2.ClassificationRequest,
            partial(_run_examples, _CLASSIFY, registry),
            "Classify",
            "classify_log",
        ),
        "Regress": (
            regression_pb2.RegressionRequest,
            partial(_run_examples, _REGRESS, registry),
            "Regress",
            "regress_log",
        ),
        "MultiInference": (
            inference_pb2.MultiInferenceRequest,
            partial(_multi_inference, registry),
            None,
            "multi_inference_log",
        ),
        "GetModelMetadata": (metadata, partial(_metadata, registry), None, None),
    }
    templates = RequestTemplates()
    encode = partial(predict_response, tensor_content=tensor_content)
    known = KnownPredicts(registry, templates, encode, _is_large)
    return paths(
        SERVICE,
        {
            name: unary(
                registry,
                message,
                handler,
                observed_as=api,
                logged_as=kind,
                templates=templates if name == "Predict" else None,
                known=known if name == "Predict" else None,
            )
            for name, (message, handler, api, kind) in requests.items()
        },
    )


class _DecodedInputs(Mapping[str, Array]):
    """The inputs of a PredictRequest, each decoded at its first use.

    `Signature.bind` therefore finds wrong names before a broken tensor is decoded, as TF Serving does.
    """

    __slots__ = ("_protos",)

    def __init__(self, protos: Mapping[str, TensorProto]) -> None:
        self._protos = protos

    def __getitem__(self, name: str) -> Array:
        # Reading an absent key of a protobuf message map would add it.
        if name not in self._protos:
            raise KeyError(name)
        return proto.decode(self._protos[name], name)

    def __contains__(self, name: object) -> bool:
        return name in self._protos

    def __iter__(self) -> Iterator[str]:
        return iter(self._protos)

    def __len__(self) -> int:
        return len(self._protos)


async def _predict(
    registry: ModelRegistry, tensor_content: bool, request: Any, context: Context, large: bool, log: Log
) -> bytes:
    spec = request.model_spec
    known = type(request) is KnownRequest
    with (
        registry.acquire_now(spec.name, version=spec.version, label=spec.label)
        if known
        else acquire(registry, request) as handle
    ):
        signature = handle.signature(spec.signature_name)
        if registry.options.enable_signature_method_name_check:
            signature.check_predict_method()
        # A tensor names its own dtype, so no input is cast.
        if known:
            inputs = signature.bind(request.decode(), cast=False)
        else:
            made = _reserve_inputs(context.held, signature, request.inputs)
            bind = partial(signature.bind, _DecodedInputs(request.inputs), cast=False)
            inputs = await registry.run_in_thread(bind) if large or made > MESSAGE_COPY_BYTES else bind()
        names = signature.pick(request.output_filter) if request.output_filter else None
        outputs = await handle.run(signature, inputs, names, context.time_remaining(), priority_of(context))
        # The arrays, and the message around a copy of the arrays.
        context.held.add(2 * sum([sizes.array_bytes(array) for array in outputs.values()]), "the answer")
        made_of = (handle.name, handle.version, signature, outputs, tensor_content)
        if _is_large(outputs):
            answer = await registry.run_in_thread(predict_response, *made_of)
        else:
            answer = predict_response(*made_of)
        return log(handle, signature.name, answer)


def _reserve_inputs(held: Reservation, signature: Signature, tensors: Mapping[str, TensorProto]) -> int:
    """Check the declared dtypes and shapes of inputs, and reserve their memory beyond the bytes on the wire.

    Returns:
        Bytes of the arrays to be made.
    """
    signature.check_names(tensors)
    made = 0
    for name in tensors:
        tensor = tensors[name]
        declared = proto.declared(tensor, name)
        signature.check_declared(name, declared.dtype, declared.shape)
        made += declared.size
        if declared.size > SMALL:
            held.grow(max(declared.size - tensor.ByteSize(), 0), f"input {name!r}, {declared}")
    return made


def _is_large(outputs: Tensors) -> bool:
    """Whether writing the outputs takes long enough to need a thread."""
    for array in outputs.values():
        if array.nbytes > MESSAGE_BYTES and (array.dtype.kind not in "fcb" or array.nbytes > MESSAGE_COPY_BYTES):
            return True
    return False


def _write_spec(spec: ModelSpec, handle: ModelHandle, signature_name: str = "") -> None:
    spec.name = handle.name
    spec.signature_name = signature_name
    spec.version.value = handle.version


def _examples(message: Input) -> list[bytes]:
    """The serialized Examples of an `Input`, each behind the common context; empty without a kind.

    Concatenated messages merge, and an example's own features win over the context's.
    """
    kind = message.WhichOneof("kind")
    if kind is None:
        return []
    chosen = getattr(message, kind)
    context = chosen.context.SerializeToString() if kind == "example_list_with_context" else b""
    return [context + example.SerializeToString() for example in chosen.examples]


async def _read_examples(
    registry: ModelRegistry,
    request: ClassificationRequest | RegressionRequest | MultiInferenceRequest,
    context: Context,
    large: bool,
) -> list[bytes]:
    """The examples; their memory is reserved before the making, because a context is repeated for each example."""
    kind = request.input.WhichOneof("kind")
    if kind is not None:
        chosen = getattr(request.input, kind)
        shared = chosen.context.ByteSize() if kind == "example_list_with_context" else 0
        made = sizes.repeated_examples(len(chosen.examples), shared)
        context.held.add(made, f"{len(chosen.examples)} examples with a context of {shared} bytes")
        large = large or made > MESSAGE_BYTES
    return await registry.run_in_thread(_examples, request.input) if large else _examples(request.input)


def _write_classifications(result: ClassificationResult, classified: Sequence[Sequence[tuple[bytes, float]]]) -> None:
    for classes in classified:
        add = result.classifications.add().classes.add
        for label, score in classes:
            # `label` is a proto3 string: bytes that are not UTF-8 would make the answer unreadable for the client.
            add(label=label.decode("utf-8", "replace"), score=score)


def _write_regressions(result: RegressionResult, values: Array) -> None:
    for value in values.tolist():
        result.regressions.add(value=value)


class _ExampleKind(NamedTuple):
    """An RPC over examples: the response's class, and the writer of a result into a response."""

    response: type[ClassificationResponse | RegressionResponse]
    write: Callable[[Any, Any], None]


_CLASSIFY = _ExampleKind(classification_pb2.ClassificationResponse, _write_classifications)
_REGRESS = _ExampleKind(regression_pb2.RegressionResponse, _write_regressions)


async def _run_examples(
    kind: _ExampleKind,
    registry: ModelRegistry,
    request: ClassificationRequest | RegressionRequest,
    context: Context,
    large: bool,
    log: Log,
) -> bytes:
    with acquire(registry, request) as handle:
        name = request.model_spec.signature_name or DEFAULT_SIGNATURE
        examples = await _read_examples(registry, request, context, large)
        call: Callable[..., Awaitable[Any]] = handle.classify if kind is _CLASSIFY else handle.regress
        result = await call(
            examples,
            signature_name=name,
            timeout=context.time_remaining(),
            priority=priority_of(context),
        )

        def encode() -> bytes:
            response = kind.response()
            _write_spec(response.model_spec, handle, name)
            kind.write(response.result, result)
            data: bytes = response.SerializeToString()
            return data

        results = result if kind is _CLASSIFY else [result]
        context.held.add(sizes.results_bytes(results), "the answer")
        large = sum(map(len, results)) > MESSAGE_RESULTS
        return log(handle, name, await registry.run_in_thread(encode) if large else encode())


async def _multi_inference(
    registry: ModelRegistry, request: MultiInferenceRequest, context: Context, large: bool, log: Log
) -> bytes:
    # The first task's model spec decides alone; a request without tasks reads as a spec without a name.
    first = request.tasks[0].model_spec if request.tasks else inference_pb2.InferenceTask().model_spec
    with acquire_spec(registry, first) as handle:
        examples = await _read_examples(registry, request, context, large)
        tasks = [
            InferenceTask(task.model_spec.signature_name or DEFAULT_SIGNATURE, task.method_name, task.model_spec.name)
            for task in request.tasks
        ]
        results = await handle.multi_inference(
            tasks, examples, timeout=context.time_remaining(), priority=priority_of(context)
        )
        registry.observers.examples_counted(handle.name, len(examples))

        def encode() -> bytes:
            response = inference_pb2.MultiInferenceResponse()
            for task, result in zip(tasks, results, strict=True):
                added = response.results.add()
                _write_spec(added.model_spec, handle, task.signature_name)
                if isinstance(result, list):
                    added.classification_result.SetInParent()
                    _write_classifications(added.classification_result, result)
                else:
                    added.regression_result.SetInParent()
                    _write_regressions(added.regression_result, result)
            data: bytes = response.SerializeToString()
            return data

        context.held.add(sum(map(sizes.results_bytes, results)), "the answer")
        large = len(examples) * len(tasks) > MESSAGE_RESULTS
        # A model may have answered by several signatures, so the record's own model spec names none.
        return log(handle, "", await registry.run_in_thread(encode) if large else encode())


async def _metadata(registry: ModelRegistry, request: GetModelMetadataRequest, context: Context, large: bool) -> bytes:
    if not request.HasField("model_spec"):
        raise InvalidModelSpecError("Missing ModelSpec")
    if not request.metadata_field:
        raise InvalidInputError("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != "signature_def":
            raise InvalidInputError(f"Metadata field {field} is not supported")
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    with acquire(registry, request) as handle:
        _write_spec(response.model_spec, handle)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, signature_def in handle.signature_defs.items():
            signatures.signature_def[name].CopyFrom(signature_def)
    response.metadata["signature_def"].Pack(signatures)
    data: bytes = response.SerializeToString()
    return data


def predict_response(
    name: str, version: int, signature: Signature, outputs: Tensors, tensor_content: bool = False
) -> bytes:
    """A PredictResponse as bytes, put together around the arrays' own memory: each value is copied once.

    Args:
        name, version: The model of the answer.
        signature: The signature of the outputs.
        outputs: Arrays by output name, of any shape; cast if not of the signature's dtype.
        tensor_content: Write numeric tensors as `tensor_content` instead of typed fields.
    """
    if len(outputs) == 1:
        for alias, array in outputs.items():
            dtype = signature.outputs[alias].dtype
            if array.dtype is dtype.numpy and type(array) is np.ndarray:
                made_of = (name, version, signature.name, alias, dtype.number, array.shape, tensor_content)
                around = _around_values(*made_of)
                if around is not None:
                    return around[0] + array.tobytes() + around[1]
    parts: list[bytes | memoryview] = []
    for alias, array in outputs.items():
        head, values = proto.serialized(array, signature.outputs[alias].dtype, as_content=tensor_content)
        parts.append(_up_to_values(alias, head, len(values)))
        parts.append(values)
    parts.append(_model_spec(name, version, signature.name))
    return b"".join(parts)


@functools.lru_cache(maxsize=1024)
def _around_values(
    name: str, version: int, signature_name: str, alias: str, number: int, shape: tuple[int, ...], as_content: bool
) -> tuple[bytes, bytes] | None:
    """The bytes around the values of an answer with a small output whose values are its memory; else None."""
    head = proto.before_small(number, shape, as_content=as_content)
    if head is None:
        return None
    before, size = head
    return _up_to_values(alias, before, size), _model_spec(name, version, signature_name)


@functools.lru_cache(maxsize=1024)
def _up_to_values(alias: str, head: bytes, size: int) -> bytes:
    """An entry of `outputs` up to the tensor's values; the values have `size` bytes."""
    key = delimited(_KEY, alias.encode())
    tensor = varint(_VALUE << 3 | 2) + varint(len(head) + size) + head
    return b"".join((varint(_OUTPUTS << 3 | 2), varint(len(key) + len(tensor) + size), key, tensor))


@functools.lru_cache(maxsize=256)
def _model_spec(name: str, version: int, signature_name: str) -> bytes:
    spec = model_pb2.ModelSpec(name=name, signature_name=signature_name)
    spec.version.value = version
    return delimited(_MODEL_SPEC, spec.SerializeToString())
