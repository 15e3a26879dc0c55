"""REST bodies ⇄ tensors: `:predict` in row and columnar format, `:classify`, `:regress`, errors.

The accepted forms, the order of errors and the words follow TF Serving's json_tensor.cc. The functions run in threads
as well. The module knows no HTTP and no model, only a signature.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from embedserve.errors import InvalidInputError, ServingError
from embedserve.servable import Array
from embedserve.signature import DEFAULT_SIGNATURE, Signature
from embedserve.tensors import json_numbers
from embedserve.tensors.dtypes import MAX_RANK, DType
from embedserve.tensors.json_dump import dump, type_name
from embedserve.tensors.json_parser import Repeated, is_deep, loads
from embedserve.tensors.json_text import (
    array_text,
    is_written_in_base64,
    object_text,
    row_texts,
    string_text,
    with_json_form,
)
from embedserve.tensors.json_values import (
    INTEGER_LIMITS,
    check,
    decode_base64,
    is_base64,
    quick_array,
    shape_text,
    to_array,
)

__all__ = [
    "ExamplesPayload",
    "PredictPayload",
    "encode_classify",
    "encode_error",
    "encode_predict",
    "encode_regress",
    "parse_examples",
    "parse_predict",
]

_NUMBERS_FROM = 4096
"""Bytes of a body from which the fast path for numbers is tried."""

_MANY_QUOTES = 64
"""Quotes in the first `_NUMBERS_FROM` bytes from which a body counts as text, not as numbers."""


class PredictPayload:
    """A `:predict` body whose inputs wait for the signature with their dtypes."""

    def __init__(
        self,
        body: bytes,
        numbers: json_numbers.Document | json_numbers.Nest | None,
        document: dict[str, object] | None,
        signature_name: str,
        output_filter: Sequence[str],
    ) -> None:
        self.signature_name = signature_name
        self.output_filter = output_filter
        """Names of the outputs to answer, all if empty; an addition to TensorFlow Serving's REST API."""
        self._body = body
        self._numbers = numbers
        self._document = document

    def decode(self, signature: Signature) -> tuple[dict[str, Array], bool]:
        """Read the inputs.

        Returns:
            Arrays by input name, without the inputs left to the signature's defaults; and whether the inputs are rows.
            The answer to rows is rows.

        Raises:
            InvalidInputError: A value fits no name or dtype of the signature, or is no tensor.
            UnsupportedError: An input has a dtype that JSON cannot carry, in columnar format.
        """
        dtypes = signature.input_dtypes
        if not dtypes:
            return self._without_inputs(signature)
        if self._numbers is not None:
            numbers, self._numbers = self._numbers, None
            found = numbers.read(dtypes)
            if found is not None:
                return found
        document = self._document if self._document is not None else _object(loads(self._body))
        has_rows, has_columns = "instances" in document, "inputs" in document
        if has_rows and has_columns:
            raise InvalidInputError(
                f"JSON Value: {dump(document)} Not formatted correctly expecting only one of 'inputs' or 'instances' "
                "keys to exist "
            )
        if has_rows:
            return _rows(document, dtypes, signature.defaults.keys()), True
        if has_columns:
            return _columns(document["inputs"], dtypes, signature.defaults.keys()), False
        raise InvalidInputError("Missing 'inputs' or 'instances' key")

    def _without_inputs(self, signature: Signature) -> tuple[dict[str, Array], bool]:
        """Read the body for a signature without inputs; TensorFlow Serving's REST API cannot call such signatures."""
        document = self._document if self._document is not None else _object(loads(self._body))
        if document.get("inputs") == {} and "instances" not in document:
            return {}, False
        rows = document.get("instances")
        if isinstance(rows, list) and rows and all(row == {} for row in rows) and "inputs" not in document:
            return {}, True
        name = "DEFAULT" if signature.name == DEFAULT_SIGNATURE else signature.name
        raise InvalidInputError(
            f'Failed to get input map for signature: {name}: it has no inputs, so send {{"inputs": {{}}}}'
        )


def parse_predict(body: bytes) -> PredictPayload:
    """Read the parts of a `:predict` body that need no signature.

    Raises:
        InvalidInputError: No JSON, no object, a `signature_name` that is no string, or an `output_filter` that is
            neither a string nor a list of strings.
    """
    nest = json_numbers.parse_nest(body)
    if nest is not None:
        return PredictPayload(body, nest, None, nest.signature_name or DEFAULT_SIGNATURE, ())
    if len(body) >= _NUMBERS_FROM and body.count(b'"', 0, _NUMBERS_FROM) < _MANY_QUOTES and not is_deep(body):
        numbers = json_numbers.parse(body)
        if numbers is not None:
            name, chosen = numbers.get("signature_name", ""), _names(numbers.get("output_filter", []))
            if isinstance(name, str) and chosen is not None:
                return PredictPayload(body, numbers, None, name or DEFAULT_SIGNATURE, chosen)
    document = _object(loads(body))
    name, chosen = _signature_name(document), _names(document.get("output_filter", []))
    if chosen is None:
        raise InvalidInputError(
            f"JSON Value: {dump(document)} not formatted correctly. 'output_filter' key must be a string value or a "
            "list of strings."
        )
    return PredictPayload(body, None, document, name, chosen)


def _names(value: object) -> list[str] | None:
    """A name or a list of names as a list; None for any other value."""
    names = [value] if isinstance(value, str) else value
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _object(document: object) -> dict[str, object]:
    if not isinstance(document, dict):
        raise InvalidInputError(f"JSON Value: {dump(document)} Is not object")
    return document


def _signature_name(document: dict[str, object]) -> str:
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise InvalidInputError(
            f"JSON Value: {dump(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name or DEFAULT_SIGNATURE


def _columns(value: Any, dtypes: Mapping[str, DType], defaulted: Set[str]) -> dict[str, Array]:
    if not _is_named(value):
        if len(dtypes) > 1:
            raise InvalidInputError(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        ((name, dtype),) = dtypes.items()
        return {name: to_array(value, dtype)}
    arrays = {}
    for name, dtype in dtypes.items():
        if name not in value:
            if name in defaulted:
                continue
            raise InvalidInputError(
                f"Missing named input: {name} in 'inputs' object. It takes {', '.join(dtypes)}; "
                f"sent: {', '.join(value)}"
            )
        arrays[name] = to_array(value[name], dtype)
    return arrays


def _is_named(value: object) -> bool:
    return isinstance(value, dict) and not is_base64(value)


def _rows(document: dict[str, object], dtypes: Mapping[str, DType], defaulted: Set[str]) -> dict[str, Array]:
    instances = document["instances"]
    if not isinstance(instances, list):
        raise InvalidInputError(f"JSON Value: {dump(document)} Expecting 'instances' to be an list/array")
    if not instances:
        raise InvalidInputError(f"JSON Value: {dump(document)} No values in 'instances' array")
    named = _is_named(instances[0])
    if not named and len(dtypes) > 1:
        raise InvalidInputError(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
            "tensorinfo_map"
        )
    if named and defaulted:
        dtypes = _given_in_rows(instances, dtypes, defaulted)
    arrays = _quick_rows(instances, dtypes) if named else _quick_plain_rows(instances, dtypes)
    if arrays is None:
        _explain_rows(instances, dtypes, named)
    return arrays


def _given_in_rows(instances: list[Any], dtypes: Mapping[str, DType], defaulted: Set[str]) -> Mapping[str, DType]:
    """The inputs that the first row gives; every row must leave the same inputs to their defaults."""
    left_out = defaulted - instances[0].keys()
    for i, row in enumerate(instances):
        if isinstance(row, dict) and not left_out.isdisjoint(row):
            also = ", ".join(sorted(left_out & row.keys()))
            raise InvalidInputError(
                f"Failed to process element: {i} of 'instances' list. It has {also}, "
                "which element 0 leaves to the signature's default: give an input in all elements or in none"
            )
    return {name: dtype for name, dtype in dtypes.items() if name not in left_out}


def _quick_plain_rows(instances: list[object], dtypes: Mapping[str, DType]) -> dict[str, Array] | None:
    ((name, dtype),) = dtypes.items()
    array = quick_array(instances, dtype)
    return None if array is None else {name: array}


def _quick_rows(instances: list[Any], dtypes: Mapping[str, DType]) -> dict[str, Array] | None:
    """Read rows that are all objects with exactly the signature's names; None asks for the slow way."""
    if set(map(type, instances)) != {dict} or set(map(len, instances)) != {len(dtypes)}:
        return None
    if list(dtypes) == ["b64"] and any(map(is_base64, instances)):
        return None
    arrays = {}
    for name, dtype in dtypes.items():
        try:
            column = [row[name] for row in instances]
        except KeyError:
            return None
        array = quick_array(column, dtype)
        if array is None:
            return None
        arrays[name] = array
    return arrays


def _explain_rows(instances: list[Any], dtypes: Mapping[str, DType], named: bool) -> NoReturn:
    """Raise the first error in document order."""
    seen: dict[str, tuple[list[int], int]] = {}
    for i, row in enumerate(instances):
        if named != _is_named(row):
            kinds = "object but got list" if named else "value/list but got object"
            raise InvalidInputError(f"Expecting {kinds} at item {i} of input list")
        if not named:
            (name,) = dtypes
            _explain_row(i, name, row, dtypes, seen, "")
            continue
        for name, value in _members(row):
            _explain_row(i, name, value, dtypes, seen, f" key: {name}")
        if row.keys() != dtypes.keys():
            raise InvalidInputError(
                f"Failed to process element: {i} of 'instances' list. JSON object: {dump(row)} keys must be equal to: "
                f"{','.join(sorted(dtypes))}"
            )
        if isinstance(row, Repeated):
            raise InvalidInputError(f"Failed to process element: {i} of 'instances' list. Error: repeated key")
    raise InvalidInputError(f"'instances' has more than {MAX_RANK} nested lists")


def _members(value: dict[str, object]) -> Iterable[tuple[str, object]]:
    return value.pairs if isinstance(value, Repeated) else value.items()


def _explain_row(
    i: int, name: str, value: object, dtypes: Mapping[str, DType], seen: dict[str, tuple[list[int], int]], key: str
) -> None:
    try:
        if name not in dtypes:
            raise InvalidInputError(
                f"JSON object: does not have named input: {name}; the inputs of the signature are: {', '.join(dtypes)}"
            )
        shape, size = check(value, dtypes[name])
        first_shape, first_size = seen.setdefault(name, (shape, size))
        if size != first_size:
            raise InvalidInputError(f"Expecting tensor size: {first_size} but got: {size}")
        if shape != first_shape:
            raise InvalidInputError(f"Expecting shape {shape_text(first_shape)} but got: {shape_text(shape)}")
    except ServingError as error:
        raise InvalidInputError(
            f"Failed to process element: {i}{key} of 'instances' list. Error: {error.code.name}: {error.message}"
        ) from None


def encode_predict(outputs: Mapping[str, Array], signature: Signature, row_format: bool) -> bytes:
    """Write the answer to `:predict`.

    Args:
        outputs: Arrays by output name; a single output is written without its name.
        signature: The signature of the outputs.
        row_format: Write `predictions`, with an element per row; else `outputs`.

    Raises:
        InvalidInputError: The outputs cannot be rows, or have a dtype that JSON cannot carry.
    """
    if not outputs:
        raise InvalidInputError("Cannot convert empty tensor map to JSON")
    for name, array in outputs.items():
        if row_format and array.ndim == 0:
            raise InvalidInputError(
                f"Tensor name: {name} has no shape information : output {name!r} is one value and has no rows; "
                'ask with "inputs", or for other outputs by "output_filter"'
            )
    outputs = {name: with_json_form(array) for name, array in outputs.items()}
    if len(outputs) == 1:
        ((name, array),) = outputs.items()
        text = array_text(array, base64=is_written_in_base64(name))
        return b'{"predictions": %b}' % text if row_format else b'{"outputs": %b}' % text
    if not row_format:
        return b'{"outputs": %b}' % object_text(outputs)
    _check_rows(outputs, signature)
    columns = [row_texts(array, base64=is_written_in_base64(name)) for name, array in outputs.items()]
    template = b"{%b}" % b", ".join(string_text(name).replace(b"%", b"%%") + b": %b" for name in outputs)
    return b'{"predictions": [%b]}' % b", ".join([template % row for row in zip(*columns, strict=True)])


def _check_rows(outputs: Mapping[str, Array], signature: Signature) -> None:
    expected: int | None = None
    for name, array in outputs.items():
        if expected is not None and len(array) != expected:
            raise InvalidInputError(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {expected}"
                + "".join(
                    f": output {alias!r} is {what.kind}, whose parts are no rows; name the outputs that are in "
                    "'output_filter', or send 'inputs' in place of 'instances'"
                    for alias, what in list(signature.composites.items())[:1]
                )
            )
        expected = len(array)


@dataclass(frozen=True, slots=True)
class ExamplesPayload:
    """A `:classify` or `:regress` body: serialized `tf.Example`s, and their common context, if any."""

    signature_name: str
    examples: list[bytes]
    context: bytes | None

    def merged(self) -> list[bytes]:
        """The examples, each behind the context: concatenated messages merge, and an example's own features win."""
        return [self.context + example for example in self.examples] if self.context else self.examples


def parse_examples(body: bytes) -> ExamplesPayload:
    """Read a `:classify` or `:regress` body.

    Raises:
        InvalidInputError: No JSON, or no examples; in TF Serving's words and order.
    """
    document = _object(loads(body))
    name = _signature_name(document)
    context = example_bytes(document["context"]) if "context" in document else None
    if "examples" not in document:
        raise InvalidInputError(
            f"JSON Value: {dump(document)} When method is classify, key 'examples' is expected and was not found"
        )
    examples = document["examples"]
    if not isinstance(examples, list):
        raise InvalidInputError(f"JSON Value: {dump(document)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise InvalidInputError(f"JSON Value: {dump(document)} 'examples' value is an empty array")
    return ExamplesPayload(name, [example_bytes(example) for example in examples], context)


def encode_classify(result: Sequence[Sequence[tuple[bytes, float]]]) -> bytes:
    """Write the answer to `:classify`: (label, score) pairs per example."""
    if not result:
        raise InvalidInputError("Cannot convert empty ClassificationResults to JSON")
    pairs = [pair for classes in result for pair in classes]
    labels = np.empty(len(pairs), dtype=object)
    labels[:] = [label for label, _ in pairs]
    scores = row_texts(np.array([score for _, score in pairs], np.float32))
    written = iter([b"[%b, %b]" % pair for pair in zip(row_texts(labels), scores, strict=True)])
    return b'{"results": [%b]}' % b", ".join(
        [b"[%b]" % b", ".join([next(written) for _ in classes]) for classes in result]
    )


def encode_regress(result: Array) -> bytes:
    """Write the answer to `:regress`: a value per example."""
    if len(result) == 0:
        raise InvalidInputError("Cannot convert empty RegressionResults to JSON")
    return b'{"results": %b}' % array_text(np.asarray(result, np.float32))


def encode_error(message: str) -> bytes:
    """Write an error body."""
    return b'{"error": %b}' % string_text(message)


def example_bytes(value: object) -> bytes:
    """Make a `tf.Example` of an object of feature values: scalars or flat lists, each of a single kind.

    Raises:
        InvalidInputError: The value is no object, or a feature is of no kind of `tf.Example`.
    """
    from tensorflow.core.example.example_pb2 import Example

    if not isinstance(value, dict):
        raise InvalidInputError(f"Example must be JSON object but got JSON {type_name(value)}")
    example = Example()
    members: Iterable[tuple[str, object]] = value.pairs if isinstance(value, Repeated) else value.items()
    for name, given in members:
        try:
            feature = example.features.feature[name]
        except ValueError:
            raise InvalidInputError(f"Feature: {_printable(name)} has a name that is not UTF-8") from None
        feature.Clear()  # Of a repeated name the last value counts.
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


def _values(name: str, elements: list[object]) -> tuple[str, list[Any]]:
    expected, values = "", []
    for element in elements:
        kind, value = _element(name, element)
        expected = expected or kind
        if kind != expected:
            raise InvalidInputError(f"Unexpected element type in feature: {name} expecting type: {expected}")
        values.append(value)
    return expected, values


def _element(name: str, element: object) -> tuple[str, object]:
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
