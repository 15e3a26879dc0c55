"""A JSON object → a serialized `tf.Example`, by TF Serving's rules (json_tensor.cc). Called by `payload` only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from embedserve.errors import InvalidInputError
from embedserve.tensors.json_dump import type_name
from embedserve.tensors.json_parser import Repeated
from embedserve.tensors.json_values import INTEGER_LIMITS, decode_base64, is_base64

__all__ = ["example_bytes"]


def example_bytes(value: Any) -> bytes:
    """Make a `tf.Example` of an object of feature values: scalars or flat lists, of one kind each.

    Raises:
        InvalidInputError: Not such an object.
    """
    from tensorflow.core.example.example_pb2 import Example

    if not isinstance(value, dict):
        raise InvalidInputError(f"Example must be JSON object but got JSON {type_name(value)}")
    example = Example()
    members: Iterable[tuple[str, Any]] = value.pairs if isinstance(value, Repeated) else value.items()
    for name, given in members:
        try:
            feature = example.features.feature[name]
        except ValueError:
            raise InvalidInputError(f"Feature: {_printable(name)} has a name that is not UTF-8") from None
        feature.Clear()  # A repeated name: the last one counts.
        elements = given if isinstance(given, list) else [given]
        kind, values = _values(name, elements)
        if kind == "bytes":
            feature.bytes_list.value.extend(values)
        elif kind == "float":
            with np.errstate(over="ignore"):
                feature.float_list.value.extend(np.array(values, np.float64).astype(np.float32).tolist())
        elif kind == "int64":
            feature.int64_list.value.extend(values)
    return bytes(example.SerializeToString())


def _printable(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _values(name: str, elements: list[Any]) -> tuple[str, list[Any]]:
    expected, values = "", []
    for element in elements:
        kind, value = _element(name, element)
        expected = expected or kind
        if kind != expected:
            raise InvalidInputError(f"Unexpected element type in feature: {name} expecting type: {expected}")
        values.append(value)
    return expected, values


def _element(name: str, element: Any) -> tuple[str, Any]:
    if isinstance(element, bool):
        return "int64", int(element)
    if isinstance(element, int):
        if element > INTEGER_LIMITS["int64"][1]:
            raise InvalidInputError(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        return "int64", element
    if isinstance(element, float):
        return "float", element
    if isinstance(element, str):
        return "bytes", element.encode("utf-8", "surrogateescape")
    if is_base64(element):
        return "bytes", decode_base64(element["b64"])
    raise InvalidInputError(f"Feature: {name} has element with unexpected JSON type: {type_name(element)}")
