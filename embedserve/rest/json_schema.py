"""JSON Schemas and example bodies of a signature's requests and answers, in row and in column form.

The forms are the forms that `payload` reads and writes. The module knows no HTTP and no registry.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from embedserve.saved_model.judge.probe_inputs import candidates, example_of, shape_of
from embedserve.servable import Array, Tensors
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors.dtypes import DType
from embedserve.tensors.json_text import array_text, is_written_in_base64, with_json_form
from embedserve.tensors.json_values import INTEGER_LIMITS

__all__ = [
    "COMPONENTS",
    "Schema",
    "column_request",
    "column_value",
    "example_features",
    "example_inputs",
    "has_json_form",
    "predict_request",
    "predict_response",
    "row_request",
]

Schema: TypeAlias = "dict[str, Any]"

_BASE64 = {"$ref": "#/components/schemas/serving.Base64"}
_KINDS: Mapping[str, Schema] = {
    "number": {"type": "number"},
    "bool": {"type": "boolean"},
    "string": {"anyOf": [{"type": "string"}, _BASE64]},
    **{name: {"type": "integer", "minimum": low, "maximum": high} for name, (low, high) in INTEGER_LIMITS.items()},
}


def _any_rank(kind: str) -> Schema:
    return {"$ref": f"#/components/schemas/serving.AnyRank.{kind}"}


COMPONENTS: Mapping[str, Schema] = {
    "serving.Base64": {
        "type": "object",
        "description": "Bytes of a string that is no UTF-8 text, in standard base64.",
        "properties": {
            "b64": {
                "type": "string",
                "contentEncoding": "base64",
                "pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
            }
        },
        "required": ["b64"],
        "additionalProperties": False,
    },
    **{
        f"serving.AnyRank.{kind}": {
            "description": "One value, or lists of any depth; lists at the same depth have the same length.",
            "anyOf": [leaf, {"type": "array", "items": _any_rank(kind)}],
        }
        for kind, leaf in _KINDS.items()
    },
}
"""Schemas that the schemas of signatures refer to, by their names under `#/components/schemas`."""


def has_json_form(signature: Signature) -> bool:
    """Whether `:predict` over JSON can carry the signature's inputs and outputs."""
    given = [spec.dtype.json for spec in signature.inputs.values()]
    made = [spec.dtype.numpy.kind for spec in signature.outputs.values()]
    return "unsupported" not in given and bool(made) and "c" not in made


# Schemas.


def predict_request(signature: Signature) -> list[Schema]:
    """The schemas of the forms in which a body may ask for the signature; columns are always possible."""
    forms = [_body("inputs", _columns(signature), signature)]
    rows = _rows(signature)
    return forms if rows is None else [_body("instances", rows, signature), *forms]


def _body(key: str, inputs: Schema, signature: Signature) -> Schema:
    outputs: Schema = {"type": "string", "enum": list(signature.outputs)}
    return {
        "type": "object",
        "title": f"{signature.name}, {'rows' if key == 'instances' else 'columns'}",
        "properties": {
            key: inputs,
            "signature_name": {"const": signature.name},
            "output_filter": {
                "description": "The only outputs to answer; all if left out.",
                "anyOf": [outputs, {"type": "array", "items": outputs, "uniqueItems": True}],
            },
        },
        "required": [key] if signature.name == "serving_default" else [key, "signature_name"],
        "additionalProperties": False,
    }


def _rows(signature: Signature) -> Schema | None:
    shapes = {name: _shape(signature, spec) for name, spec in signature.inputs.items()}
    if not shapes or () in shapes.values():
        return None
    of_row = {name: None if shape is None else shape[1:] for name, shape in shapes.items()}
    row = _named({n: _tensor(of_row[n], spec.dtype) for n, spec in signature.inputs.items()}, signature)
    counts = [shape[0] for shape in shapes.values() if shape and shape[0] is not None]
    return {"type": "array", "items": row, "minItems": max([1, *counts])} | ({"maxItems": counts[0]} if counts else {})


def _columns(signature: Signature) -> Schema:
    values = {n: _tensor(_shape(signature, spec), spec.dtype) for n, spec in signature.inputs.items()}
    return _named(values, signature)


def _named(values: Mapping[str, Schema], signature: Signature) -> Schema:
    """An object by input name; the value of an only input may stand without its name."""
    named = {
        "type": "object",
        "properties": dict(values),
        "required": [name for name in values if name not in signature.defaults],
        "additionalProperties": False,
    }
    return {"anyOf": [*values.values(), named]} if len(values) == 1 else named


def predict_response(signature: Signature) -> list[Schema]:
    """The schemas of the answers: `predictions` for rows, `outputs` for columns."""
    answers = []
    if all(spec.shape != () for spec in signature.outputs.values()):
        of_row = {
            n: _output(s, None if (shape := _out_shape(signature, s)) is None else shape[1:])
            for n, s in signature.outputs.items()
        }
        answers.append(_answer("predictions", {"type": "array", "items": _outputs(of_row)}))
    whole = {name: _output(spec, _out_shape(signature, spec)) for name, spec in signature.outputs.items()}
    return [*answers, _answer("outputs", _outputs(whole))]


def _answer(key: str, value: Schema) -> Schema:
    return {"type": "object", "properties": {key: value}, "required": [key]}


def _outputs(values: Mapping[str, Schema]) -> Schema:
    """An object by output name; a single output, as `output_filter` may leave one, stands without its name."""
    if len(values) == 1:
        return next(iter(values.values()))
    named = {"type": "object", "properties": dict(values), "additionalProperties": False}
    return {"anyOf": [named, *values.values()]}


def _output(spec: TensorSpec, shape: tuple[int | None, ...] | None) -> Schema:
    if spec.dtype.json == "string":
        leaf: Schema = _BASE64 if is_written_in_base64(spec.name) else {"type": "string"}
        return _any_rank("string") if shape is None else _nested(shape, leaf)
    kind = spec.dtype.json
    if kind == "unsupported":  # Written, although not read: narrow floats and quantized integers.
        kind = "int32" if spec.dtype.limits is not None or spec.dtype.numpy.fields else "number"
    return _any_rank(kind) if shape is None else _nested(shape, _KINDS[kind])


def _tensor(shape: tuple[int | None, ...] | None, dtype: DType) -> Schema:
    if shape is None:
        return _any_rank(dtype.json)
    leaf = dict(_KINDS[dtype.json])
    if dtype.limits is not None:
        leaf |= {"minimum": dtype.limits[0], "maximum": dtype.limits[1]}
    return _nested(shape, leaf)


def _nested(shape: tuple[int | None, ...], leaf: Schema) -> Schema:
    found = leaf
    for size in reversed(shape):
        found = {"type": "array", "items": found} | ({} if size is None else {"minItems": size, "maxItems": size})
    return found


def _shape(signature: Signature, spec: TensorSpec) -> tuple[int | None, ...] | None:
    """The shape that `bind` demands; None for any rank."""
    if signature.shape_free:
        return None
    return spec.shape if spec.shape is not None or spec.name not in signature.input_ranks else shape_of(signature, spec)


def _out_shape(signature: Signature, spec: TensorSpec) -> tuple[int | None, ...] | None:
    return None if signature.shape_free else spec.shape


# Examples.


def example_inputs(signature: Signature) -> Tensors | None:
    """The request that the model answered at the load, else an untried request made up from the declared shapes.

    Returns:
        None where the inputs are large, or declare no rank.
    """
    if signature.example:
        return signature.example
    sample = next(iter(candidates(signature)), None)
    return None if sample is None else (example_of(sample) or (None if signature.inputs else {}))


def row_request(inputs: Tensors, signature: Signature) -> dict[str, Any] | None:
    """A body in row form; None where the inputs are no rows of equal number."""
    counts = {len(array) if array.ndim else None for array in inputs.values()}
    if len(counts) != 1 or None in counts or not all(counts) or _rows(signature) is None:
        return None
    values = {name: _json_value(array) for name, array in inputs.items()}
    if len(values) == 1:
        return _asked(signature) | {"instances": next(iter(values.values()))}
    rows = zip(*values.values(), strict=True)
    return _asked(signature) | {"instances": [dict(zip(values, row, strict=True)) for row in rows]}


def column_request(inputs: Tensors, signature: Signature) -> dict[str, Any]:
    """A body in column form."""
    return _asked(signature) | {"inputs": column_value(inputs)}


def column_value(inputs: Tensors) -> dict[str, Any]:
    """JSON values of whole inputs by name."""
    return {name: _json_value(array) for name, array in inputs.items()}


def example_features(inputs: Tensors) -> list[dict[str, Any]]:
    """The serialized `tf.Example`s of a single input as JSON objects of features; imports TensorFlow's messages."""
    from tensorflow.core.example.example_pb2 import Example

    (array,) = inputs.values()
    found = []
    for serialized in array.ravel().tolist():
        features = Example.FromString(serialized).features.feature
        found.append({name: _feature(value) for name, value in sorted(features.items())})
    return found


def _feature(feature: Any) -> list[Any]:
    kind = feature.WhichOneof("kind")
    values = list(getattr(feature, kind).value) if kind else []
    return [_strings(value) for value in values] if kind == "bytes_list" else values


def _asked(signature: Signature) -> dict[str, Any]:
    return {} if signature.name == "serving_default" else {"signature_name": signature.name}


def _json_value(array: Array) -> Any:
    if not array.dtype.hasobject:
        return json.loads(array_text(with_json_form(array)))
    return _strings(array.tolist())


def _strings(value: Any) -> Any:
    if isinstance(value, list):
        return [_strings(each) for each in value]
    try:
        text: str = value.decode()
    except UnicodeDecodeError:
        text = ""
    if text.isprintable() and (text or not value):
        return text
    return {"b64": binascii.b2a_base64(value, newline=False).decode()}
