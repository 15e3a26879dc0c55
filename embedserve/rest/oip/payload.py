"""Inference bodies ⇄ tensors: JSON, and JSON with raw bytes behind (the binary tensor extension).

Numbers of JSON take the fast readers and writers of the REST API. The functions run in threads as well. The module
knows no HTTP and no model, only a signature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson
import simdjson

from embedserve.errors import InvalidInputError
from embedserve.oip.datatypes import (
    checked_shape,
    dtype_named,
    from_raw,
    listed,
    raw_parts,
    sent_datatype,
)
from embedserve.oip.requests import InferRequest, check_tensor_parameters, request_of
from embedserve.servable import Array, Tensors
from embedserve.signature import Signature
from embedserve.tensors import json_numbers, sizes
from embedserve.tensors.dtypes import DType, by_name
from embedserve.tensors.json_dump import dump
from embedserve.tensors.json_parser import is_deep, loads
from embedserve.tensors.json_text import array_text, string_text, with_json_form
from embedserve.tensors.json_values import to_array

__all__ = ["InferBody", "encode_infer", "parse_infer"]

_NUMBERS_FROM = 4096
"""Bytes of a document from which the fast path for numbers is tried."""
_MAX_HEAD = 1024
"""Bytes of the longest head of a body with raw bytes that is kept."""
_KEYS = ("id", "inputs", "outputs", "parameters", "model_name", "model_version")

# JSON has no half floats and no narrow integers: the numbers are read in a wider dtype, and must fit.
_READ_AS: Mapping[str, DType] = {
    **dict.fromkeys(("half", "bfloat16"), by_name("float")),
    **dict.fromkeys(("int8", "int16", "uint8", "uint16"), by_name("int32")),
}


class _Input(NamedTuple):
    """An input of a body: `data` is JSON's value or an array of its numbers, `raw` the size of its raw bytes."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    data: Any
    raw: int | None


class _Head(NamedTuple):
    request: InferRequest
    inputs: tuple[_Input, ...]


class InferBody:
    """A received body, whose inputs wait for the signature.

    Attributes:
        request: The request beside its inputs.
    """

    def __init__(self, head: _Head, raw: memoryview, whole: bool = False) -> None:
        self.request, self._inputs = head
        self._raw = raw
        self._whole = whole

    def declare(self, signature: Signature) -> int:
        """Check the declared names, dtypes and shapes of the inputs.

        Returns:
            Bytes of the arrays beside the bytes of the body.

        Raises:
            InvalidInputError: An input does not fit the signature, or the raw bytes are not as many as declared.
        """
        if self._whole:
            self._inputs = (_only_input(signature, len(self._raw)),)
        names = [found.name for found in self._inputs]
        if len(names) > 1 and len(set(names)) != len(names):
            raise InvalidInputError(f"an input came twice: {listed(names)}")
        signature.check_names(names)
        made, rest = 0, len(self._raw)
        for name, dtype, shape, _, raw in self._inputs:
            signature.check_declared(name, dtype, shape)
            if raw is not None:
                rest -= raw
                if dtype.numpy.hasobject:
                    made += sizes.tensor_bytes(dtype, (min(math.prod(shape), raw // 4),))
        if rest:
            raise InvalidInputError(
                f"{len(self._raw)} raw bytes came behind the JSON object, and the inputs declare "
                f"{len(self._raw) - rest} by binary_data_size"
            )
        return made

    def decode(self) -> dict[str, Array]:
        """The inputs by name, after `declare`.

        Raises:
            InvalidInputError: The values are not as many as the shape asks for, or are no values of the dtype.
        """
        if self._whole:
            (only,) = self._inputs
            if only.dtype.numpy.hasobject:  # The whole body is the only element, without its length.
                array = np.empty(1, dtype=object)
                array[0] = bytes(self._raw)
                return {only.name: array.reshape(only.shape)}
        arrays, at = {}, 0
        for found in self._inputs:
            if found.raw is None:
                arrays[found.name] = _from_json(found)
            else:
                arrays[found.name] = from_raw(self._raw[at : at + found.raw], found.dtype, found.shape, found.name)
                at += found.raw
        return arrays


def _only_input(signature: Signature, size: int) -> _Input:
    """The only input of a signature, whose raw bytes are the whole body: one row, and at most one unknown size more."""
    if len(signature.inputs) != 1:
        raise InvalidInputError(
            f"a body of raw bytes alone needs a signature with one input; {signature.name!r} has "
            f"{len(signature.inputs)}"
        )
    (spec,) = signature.inputs.values()
    shape: list[int | None] = list(spec.shape) if spec.shape is not None else [None]
    if spec.dtype.numpy.hasobject:
        return _Input(spec.name, spec.dtype, (1,) * len(shape), None, size)
    if len(shape) > 1 and shape[0] is None:
        shape[0] = 1
    if shape.count(None) > 1:
        raise InvalidInputError(f"input {spec.name!r} is {spec}: its shape does not follow from the size of a body")
    known = math.prod([each for each in shape if each is not None]) * spec.dtype.numpy.itemsize
    return _Input(spec.name, spec.dtype, tuple([size // known if each is None else each for each in shape]), None, size)


def parse_infer(body: bytes, json_size: int | None) -> InferBody:
    """Read a body.

    Args:
        body: The whole body.
        json_size: Bytes of the JSON object at the start; 0 for a body of raw bytes alone, None for JSON alone.

    Raises:
        InvalidInputError: No JSON, no inputs, or a member of a wrong kind.
        UnsupportedError: A parameter of an extension that is not supported.
    """
    if json_size is None:
        if len(body) >= _NUMBERS_FROM and b"\\" not in body and not is_deep(body):
            head = _quick_head(body)
            if head is not None:
                return InferBody(head, memoryview(b""))
        head = _known_form(body) if len(body) <= _NUMBERS_FROM else None
        return InferBody(head or _head_of(_loads(body)), memoryview(b""))
    if json_size > len(body):
        raise InvalidInputError(f"Inference-Header-Content-Length is {json_size}, and the body has {len(body)} bytes")
    raw = memoryview(body)[json_size:]
    if json_size == 0:
        return InferBody(_Head(InferRequest(binary=True), ()), raw, whole=True)
    text = body[:json_size]
    return InferBody(_kept_head(text) if json_size <= _MAX_HEAD else _head_of(_loads(text)), raw)


def _known_form(body: bytes) -> _Head | None:
    """A small document with one flat list of data: the text around the list is read once and kept.

    A quote inside a string has a backslash before, so the key found is a key, and the list ends at the first bracket.
    """
    start = body.find(b"[", body.rfind(b'"data"') + 6)
    end = body.find(b"]", start) + 1
    if not 6 < start < end or start > _MAX_HEAD or len(body) - end > _MAX_HEAD:
        return None
    head = _form(body[:start], body[end:])
    if head is None:
        return None
    try:
        data = orjson.loads(body[start:end])
    except ValueError:
        return None
    return head._replace(inputs=(head.inputs[0]._replace(data=data),))


@lru_cache(maxsize=256)
def _form(before: bytes, after: bytes) -> _Head | None:
    """The document with no data between the texts; None unless the data is the only input's."""
    try:
        head = _head_of(orjson.loads(b"%b[]%b" % (before, after)))
    except ValueError:  # No JSON. A ServingError is no ValueError, and is the document's own.
        return None
    fits = len(head.inputs) == 1 and head.inputs[0].data == [] and head.inputs[0].raw is None
    return head if fits else None


@lru_cache(maxsize=256)
def _kept_head(text: bytes) -> _Head:
    return _head_of(_loads(text))


def _loads(text: bytes) -> Any:
    """A document; bare NaN and Infinity, and the words of errors, are those of TensorFlow Serving's API."""
    try:
        return orjson.loads(text)
    except ValueError:
        return loads(text)


def _head_of(document: Any) -> _Head:
    if not isinstance(document, dict):
        raise InvalidInputError(f"the body is {dump(document)}, expected a JSON object with 'inputs'")
    inputs = document.get("inputs")
    if not isinstance(inputs, list):
        raise InvalidInputError("the body has no list 'inputs'")
    return _Head(_request_of(document), tuple([_input_of(given) for given in inputs]))


def _request_of(document: dict[str, Any]) -> InferRequest:
    id = document.get("id", "")
    if not isinstance(id, str):
        raise InvalidInputError(f"'id' is {dump(id)}, expected a string")
    outputs = document.get("outputs") or []
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise InvalidInputError(f"'outputs' is {dump(outputs)}, expected a list of objects")
    wanted = [(_name_of(output, "an output"), _parameters_of(output)) for output in outputs]
    return request_of(id, _parameters_of(document), wanted)


def _name_of(tensor: dict[str, Any], what: str) -> str:
    name = tensor.get("name")
    if not isinstance(name, str):
        raise InvalidInputError(f"{what} has name {dump(name)}, expected a string")
    return name


def _parameters_of(holder: dict[str, Any]) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidInputError(f"'parameters' is {dump(parameters)}, expected an object")
    return parameters


def _input_of(given: Any) -> _Input:
    if not isinstance(given, dict):
        raise InvalidInputError(f"an input is {dump(given)}, expected an object")
    name = _name_of(given, "an input")
    shape = given.get("shape")
    if not isinstance(shape, list):
        raise InvalidInputError(f"input {name!r} has shape {dump(shape)}, expected a list of integers")
    parameters, raw = _parameters_of(given), None
    if parameters:
        check_tensor_parameters(f"input {name!r}", parameters)
        raw = parameters.get("binary_data_size")
        if raw is not None and (type(raw) is not int or raw < 0):
            raise InvalidInputError(f"input {name!r} has binary_data_size {dump(raw)}, expected a number of bytes")
    if raw is None and "data" not in given:
        raise InvalidInputError(f"input {name!r} has neither 'data' nor a parameter 'binary_data_size'")
    dtype = dtype_named(given.get("datatype"), name)
    return _Input(name, dtype, checked_shape(shape, name), given.get("data"), raw)


# Documents of many numbers.


def _quick_head(body: bytes) -> _Head | None:
    """Read a document whose large lists are numbers; None for any other document."""
    document = json_numbers.parse(body)
    if document is None:
        return None
    with document as root:
        try:
            return _quick(json_numbers.ListReader(body), root)
        except json_numbers.DeclinedError:
            return None


def _quick(reader: json_numbers.ListReader, root: simdjson.Object) -> _Head | None:
    members: dict[str, Any] = {}
    inputs: list[_Input] = []
    for key in json_numbers.keys_of(root):
        if key not in _KEYS:
            return None
        reader.label(key)
        node = root[key]
        if key == "inputs":
            inputs = _quick_inputs(reader, node)
        else:
            reader.value(node)
            members[key] = _plain(node)
        reader.parts.append(b",")
    reader.parts[-1] = b"}"
    if "inputs" not in root or not reader.is_regular():
        return None
    return _Head(_request_of(members), tuple(inputs))


def _plain(node: Any) -> Any:
    if isinstance(node, simdjson.Object):
        return node.as_dict()
    return node.as_list() if isinstance(node, simdjson.Array) else node


def _quick_inputs(reader: json_numbers.ListReader, node: Any) -> list[_Input]:
    if not isinstance(node, simdjson.Array) or not len(node):
        raise json_numbers.DeclinedError
    reader.lists += 1
    reader.parts.append(b"[")
    inputs = []
    for given in node:
        if not isinstance(given, simdjson.Object):
            raise json_numbers.DeclinedError
        inputs.append(_quick_input(reader, given))
        reader.parts.append(b",")
    reader.parts[-1] = b"]"
    return inputs


def _quick_input(reader: json_numbers.ListReader, given: simdjson.Object) -> _Input:
    keys = json_numbers.keys_of(given)
    if "data" not in keys:
        raise json_numbers.DeclinedError
    described = {key: _plain(given[key]) for key in keys if key != "data"}
    found = _input_of(described | {"data": None})
    reader.parts.append(b"{")
    for key in keys:
        reader.label(key)
        node = given[key]
        if key != "data":
            reader.value(node)
        elif isinstance(node, simdjson.Array):
            found = found._replace(data=reader.numbers(node, _READ_AS.get(found.dtype.name, found.dtype)))
        else:
            raise json_numbers.DeclinedError
        reader.parts.append(b",")
    reader.parts[-1] = b"}"
    return found


def _from_json(given: _Input) -> Array:
    """The values of an input, in its dtype and shape; a list may be flat or nested."""
    name, dtype, shape, data, _ = given
    wide = _READ_AS.get(dtype.name, dtype)
    try:
        array: Array = data if isinstance(data, np.ndarray) else to_array(data, wide)
    except InvalidInputError as error:
        raise InvalidInputError(f"input {name!r}: {error.message}") from None
    if array.size != math.prod(shape):
        raise InvalidInputError(
            f"input {name!r} has {array.size} values in 'data'; shape {listed(shape)} needs {math.prod(shape)}"
        )
    if wide is not dtype:
        array = _narrowed(array, dtype, name)
    return array.reshape(shape)


def _narrowed(array: Array, dtype: DType, name: str) -> Array:
    if dtype.limits is None:
        with np.errstate(over="ignore"):
            return array.astype(dtype.numpy)
    low, high = dtype.limits
    if array.size and (array.min() < low or array.max() > high):
        raise InvalidInputError(f"input {name!r} has values outside {dtype.name}, from {low} to {high}")
    return array.astype(dtype.numpy)


# Answers.


def encode_infer(name: str, version: int, request: InferRequest, outputs: Tensors) -> tuple[bytes, int | None]:
    """Write an answer.

    Returns:
        The body, and the size of its JSON object where raw bytes follow; None for JSON alone.

    Raises:
        UnsupportedError: The protocol has no datatype for an output.
        InvalidInputError: An output has no form in JSON.
    """
    described: list[_Described] = []
    texts: list[bytes] = []
    pieces: list[bytes | memoryview] = []
    for alias, array in outputs.items():
        array = np.asarray(array)
        datatype = sent_datatype(alias, array)
        if request.is_binary(alias, False):
            raw, parts = raw_parts(array)
            described.append((alias, datatype, array.shape, raw))
            pieces += parts
        else:
            described.append((alias, datatype, array.shape, None))
            texts.append(_text_of(alias, array))
    head = _answer_head(name, version, tuple(described))
    text = head % (_id_text(request.id), *texts) if texts else head % _id_text(request.id)
    if not any(found[3] is not None for found in described):
        return text, None
    return b"".join((text, *pieces)), len(text)


def _text_of(name: str, array: Array) -> bytes:
    """The values as one flat list."""
    flat = array.reshape(-1)
    if flat.dtype.hasobject:
        try:
            flat = np.array([_text(element) for element in flat.tolist()], dtype=object)
        except UnicodeDecodeError:
            raise InvalidInputError(
                f"output {name!r} holds bytes that are no UTF-8, and JSON cannot carry them: ask for binary_data"
            ) from None
        return orjson.dumps(flat.tolist())
    return array_text(with_json_form(flat))


def _text(element: bytes | str) -> str:
    return element if isinstance(element, str) else element.decode()


def _id_text(id: str) -> bytes:
    return b'"id":%b,' % string_text(id) if id else b""


_Described = tuple[str, str, tuple[int, ...], int | None]


@lru_cache(maxsize=256)
def _answer_head(name: str, version: int, described: tuple[_Described, ...]) -> bytes:
    """The JSON object of an answer, with a place for the id and for the values of each output without raw bytes."""
    outputs = []
    for alias, datatype, shape, raw in described:
        text = b'{"name":%b,"datatype":"%b","shape":[%b],' % (
            string_text(alias),
            datatype.encode(),
            b",".join(b"%d" % size for size in shape),
        )
        text = text.replace(b"%", b"%%")
        outputs.append(text + (b'"data":%b}' if raw is None else b'"parameters":{"binary_data_size":%d}}' % raw))
    start = b'"model_name":%b,"model_version":"%d","outputs":[' % (string_text(name), version)
    return b"{%b" + start.replace(b"%", b"%%") + b",".join(outputs) + b"]}"
