"""Calls ⇄ the JSON of TensorFlow Serving's REST API. The module knows no connection and no retry."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embedserve_client.descriptors import message_class
from embedserve_client.dtypes import Array, DType, Tensors, by_name, by_numpy
from embedserve_client.errors import Code, InferenceError, UnsupportedError
from embedserve_client.model import Classifications, ModelMetadata, Signature, State, TensorSpec, VersionStatus

__all__ = [
    "error_message",
    "examples_body",
    "parse_classify",
    "parse_metadata",
    "parse_predict",
    "parse_regress",
    "parse_status",
    "predict_body",
]

_BASE64_SUFFIX = "_bytes"


def _dump(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogateescape")


def _load(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        raise InferenceError(f"the server's answer is no JSON: {body[:80]!r}") from None


def _string(value: bytes) -> Any:
    """A JSON string, or the base64 form of bytes that are no UTF-8 text."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _nested(array: Array) -> Any:
    if array.dtype.hasobject:
        texts = np.empty(array.size, dtype=object)
        texts[:] = [_string(each) for each in array.ravel().tolist()]
        array = texts.reshape(array.shape)
    return array.tolist()


def predict_body(signature_name: str, inputs: Tensors, output_filter: Sequence[str]) -> bytes:
    """The body of a `:predict` request, by columns.

    Raises:
        UnsupportedError: JSON has no form for a dtype.
    """
    columns = {}
    for name, array in inputs.items():
        dtype = by_numpy(array.dtype)
        if not dtype.json:
            raise UnsupportedError(f"input {name!r}: TensorFlow Serving's JSON carries no {dtype.name}; use grpc://")
        columns[name] = _nested(array)
    document: dict[str, Any] = {"signature_name": signature_name, "inputs": columns}
    if output_filter:
        document["output_filter"] = list(output_filter)
    return _dump(document)


def parse_predict(body: bytes, signature: Signature, wanted: Sequence[str]) -> dict[str, Array]:
    """The outputs of an answer by columns.

    Args:
        body: The answer.
        signature: Declares the outputs' dtypes.
        wanted: Names of the outputs that were asked for; empty for all. A server may answer more.

    Raises:
        InferenceError: The answer does not fit the signature.
        UnsupportedError: JSON has no form for a dtype.
    """
    document = _load(body)
    if not isinstance(document, dict) or "outputs" not in document:
        raise InferenceError('the server\'s answer has no "outputs"')
    found = document["outputs"]
    names = list(wanted) or list(signature.outputs)
    if not (isinstance(found, dict) and not found.keys() - signature.outputs.keys() and found.keys() >= set(names)):
        if len(names) != 1:
            raise InferenceError(f"the server's answer does not name the outputs {', '.join(names)}")
        found = {names[0]: found}
    return {name: _tensor(found[name], signature.outputs[name]) for name in names}


def _tensor(value: Any, spec: TensorSpec) -> Array:
    dtype = by_name(spec.dtype)
    if not dtype.json:
        raise UnsupportedError(f"output {spec.name!r}: TensorFlow Serving's JSON carries no {dtype.name}; use grpc://")
    try:
        if dtype.field == "string_val":
            return _strings(value, spec.name.endswith(_BASE64_SUFFIX))
        if value == [] and spec.shape is not None:
            return np.zeros([size or 0 for size in spec.shape], dtype.numpy)
        return _numbers(value, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise InferenceError(f"output {spec.name!r} of the server's answer is no {spec}: {error}") from None


def _numbers(value: Any, dtype: DType) -> Array:
    array = np.asarray(value)
    if array.dtype.hasobject or (array.dtype.kind == "f" and dtype.numpy.kind in "iub"):
        array = np.asarray(value, dtype=object)
        if any(isinstance(each, float) for each in array.ravel().tolist()) and dtype.numpy.kind in "iub":
            raise ValueError("a fraction")
    with np.errstate(over="ignore"):
        found: Array = array.astype(dtype.numpy)
    return found


def _strings(value: Any, coded: bool) -> Array:
    shape: list[int] = []
    level = value
    while isinstance(level, list):
        shape.append(len(level))
        level = level[0] if level else None
    elements = [value]
    for _ in shape:
        elements = [each for many in elements for each in many]
    if len(elements) != math.prod(shape):
        raise ValueError("a ragged list")
    array = np.empty(len(elements), dtype=object)
    array[:] = [_bytes_of(each) for each in elements]
    return array.reshape(shape)


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    return base64.b64decode(value["b64"], validate=True)


def examples_body(signature_name: str, examples: Sequence[bytes], context: bytes) -> bytes:
    """The body of a `:classify` or `:regress` request; the context is shared by the examples unless empty."""
    document: dict[str, Any] = {"signature_name": signature_name, "examples": [_features(each) for each in examples]}
    if context:
        document["context"] = _features(context)
    return _dump(document)


def _features(example: bytes) -> dict[str, Any]:
    message = message_class("tensorflow.Example").FromString(example)
    found = {}
    for name, feature in message.features.feature.items():
        kind = feature.WhichOneof("kind")
        values = [] if kind is None else list(getattr(feature, kind).value)
        found[name] = [_string(each) for each in values] if kind == "bytes_list" else values
    return found


def _results(body: bytes) -> list[Any]:
    document = _load(body)
    if not isinstance(document, dict) or not isinstance(document.get("results"), list):
        raise InferenceError('the server\'s answer has no "results"')
    found: list[Any] = document["results"]
    return found


def parse_classify(body: bytes) -> Classifications:
    """(label, score) pairs for each example."""
    return [[(_bytes_of(label), float(score)) for label, score in classes] for classes in _results(body)]


def parse_regress(body: bytes) -> Array:
    """A float32 value for each example."""
    return np.array(_results(body), np.float32)


def parse_metadata(body: bytes) -> ModelMetadata:
    """Name, version and signatures of a metadata document."""
    document = _load(body)
    try:
        spec, listed = document["model_spec"], document["metadata"]["signature_def"]["signature_def"]
        signatures = {name: _signature(name, one) for name, one in sorted(listed.items())}
        return ModelMetadata(spec["name"], int(spec["version"]), signatures)
    except (KeyError, TypeError, ValueError):
        raise InferenceError("the server's answer is no metadata document") from None


def _signature(name: str, document: Mapping[str, Any]) -> Signature:
    defaults = tuple(sorted(document.get("defaults", ())))
    return Signature(name, _specs(document["inputs"]), _specs(document["outputs"]), document["method_name"], defaults)


def _specs(infos: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {name: _spec(name, info) for name, info in sorted(infos.items())}


def _spec(name: str, info: Mapping[str, Any]) -> TensorSpec:
    declared = info.get("tensor_shape", {})
    sizes = [int(dim["size"]) for dim in declared.get("dim", ())]
    shape = None if declared.get("unknown_rank") else tuple(None if size < 0 else size for size in sizes)
    return TensorSpec(name, info["dtype"].removeprefix("DT_").lower(), shape)


def parse_status(body: bytes) -> tuple[VersionStatus, ...]:
    """The versions of a status document, descending."""
    document = _load(body)
    try:
        found = [
            VersionStatus(
                int(each["version"]),
                State[each["state"]],
                Code[each["status"]["error_code"]],
                each["status"]["error_message"],
            )
            for each in document["model_version_status"]
        ]
    except (KeyError, TypeError, ValueError):
        raise InferenceError("the server's answer is no status document") from None
    return tuple(sorted(found, key=lambda each: -each.version))


def error_message(body: bytes) -> str:
    """The message of an error's body; the body's first words, if a proxy wrote the body."""
    try:
        document = json.loads(body.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict) and isinstance(document.get("error"), str):
        found: str = document["error"]
        return found
    return " ".join(body[:200].decode("utf-8", "replace").split())
