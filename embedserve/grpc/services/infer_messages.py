"""`ModelInferRequest` and `ModelInferResponse` at memory speed: raw contents are never parsed, typed ones as buffers.

The bytes of a request beside its id and raw contents are its head. Clients repeat a head with new contents, so parsed
heads are kept. The module knows no registry.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from embedserve.errors import InvalidInputError
from embedserve.oip.datatypes import DATATYPES, checked_shape, dtype_named, from_raw, listed, raw_parts, sent_datatype
from embedserve.oip.messages import message_class
from embedserve.oip.requests import InferRequest, check_tensor_parameters, request_of
from embedserve.servable import Array, Tensors
from embedserve.signature import Signature
from embedserve.tensors import sizes
from embedserve.tensors.dtypes import DType
from embedserve.tensors.wire_format import LENGTH_DELIMITED, delimited, fields, varint

__all__ = ["InferMessage", "RawRequests", "message_of", "response_of"]

_REQUEST = message_class("ModelInferRequest")
_RESPONSE = message_class("ModelInferResponse")

_ID, _RAW_INPUTS, _RAW_OUTPUTS = 3, 7, 6
_MAX_HEAD = 1024
"""Bytes of the longest head that is kept."""
_MAX_FIELDS = 256
"""Fields beside raw contents of a request that is read without protobuf."""

# The typed field of each datatype; half floats have raw contents only.
_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_FIELDS_BY_DTYPE = {DATATYPES[datatype].name: field for datatype, field in _FIELDS.items()}


class _Input(NamedTuple):
    name: str
    dtype: DType
    shape: tuple[int, ...]
    contents: Any


class _Head(NamedTuple):
    """A request beside its raw contents."""

    model_name: str
    model_version: str
    request: InferRequest
    inputs: tuple[_Input, ...]


class InferMessage:
    """A received request: its head, and the raw contents in the memory of the message.

    Attributes:
        model_name, model_version, request: As received.
        is_raw: Whether raw contents came; the answer has the same form unless the request says otherwise.
    """

    __slots__ = ("_inputs", "_raw", "is_raw", "model_name", "model_version", "request")

    def __init__(self, head: _Head, raw: Sequence[bytes | memoryview]) -> None:
        self.model_name, self.model_version, self.request, self._inputs = head
        self._raw = raw
        self.is_raw = bool(raw) or not self._inputs

    def declare(self, signature: Signature) -> int:
        """Check the declared names, dtypes and shapes of the inputs.

        Returns:
            Bytes of the arrays beside the bytes of the message.

        Raises:
            InvalidInputError: An input does not fit the signature, or has no contents.
        """
        inputs = self._inputs
        names = [found.name for found in inputs]
        if len(names) > 1 and len(set(names)) != len(names):
            raise InvalidInputError(f"an input came twice: {listed(names)}")
        signature.check_names(names)
        if self._raw and len(self._raw) != len(inputs):
            raise InvalidInputError(
                f"{len(inputs)} inputs came with {len(self._raw)} raw contents; raw contents are for all inputs or none"
            )
        made = 0
        for position, (name, dtype, shape, _) in enumerate(inputs):
            signature.check_declared(name, dtype, shape)
            if dtype.numpy.hasobject or not self._raw:
                # A BYTES element of raw contents has four bytes at least, so no more elements can come.
                most = len(self._raw[position]) // 4 if self._raw else math.prod(shape)
                made += sizes.tensor_bytes(dtype, (min(math.prod(shape), most),))
        return made

    def decode(self) -> dict[str, Array]:
        """The inputs by name, after `declare`.

        Raises:
            InvalidInputError: The contents are not as many as the shape asks for, or are no values of the dtype.
        """
        inputs = self._inputs
        if self._raw:
            return {
                found.name: from_raw(data, found.dtype, found.shape, found.name)
                for found, data in zip(inputs, self._raw, strict=True)
            }
        return {found.name: _typed(found) for found in inputs}


def _typed(given: _Input) -> Array:
    name, dtype, shape, contents = given
    field = _FIELDS_BY_DTYPE.get(dtype.name)
    if field is None:
        raise InvalidInputError(f"input {name!r} is {dtype.name}, which has raw contents only")
    values, count = getattr(contents, field), math.prod(shape)
    if len(values) != count:
        raise InvalidInputError(
            f"input {name!r} has {len(values)} values in {field}; shape {listed(shape)} needs {count}"
        )
    if dtype.numpy.hasobject:
        strings = np.empty(count, dtype=object)
        strings[:] = values[:]
        return strings.reshape(shape)
    if not count:
        return np.zeros(shape, dtype.numpy)
    array = np.array(values)  # upb gives its memory as a whole.
    if dtype.limits is not None and dtype.numpy.itemsize < array.itemsize:
        low, high = dtype.limits
        if array.min() < low or array.max() > high:
            raise InvalidInputError(f"input {name!r} has values outside {dtype.name}, from {low} to {high}")
    return array.astype(dtype.numpy, copy=False).reshape(shape)


class RawRequests:
    """Reads requests with raw contents without copying the contents; all further requests are parsed as messages."""

    def find(self, body: bytes) -> InferMessage | None:
        """The request, if it has raw contents and a small head."""
        raw: list[memoryview] = []
        head: list[memoryview] = []
        id = b""
        view, before, count = memoryview(body), 0, 0
        try:
            for number, kind, start, end in fields(body, 0, len(body)):
                count += 1
                if number == _RAW_INPUTS and kind == LENGTH_DELIMITED:
                    raw.append(view[start:end])
                elif number == _ID and kind == LENGTH_DELIMITED:
                    id = body[start:end]
                else:
                    # Tag and length stand before the start, so the field is cut from the end of the field before.
                    head.append(view[before:end])
                before = end
                if count > _MAX_FIELDS:
                    return None
        except (IndexError, ValueError):
            return None
        if not raw:
            return None
        text = b"".join(head)
        found = _kept_head(text) if len(text) <= _MAX_HEAD else _read_head(text)
        if id:
            found = found._replace(request=found.request._replace(id=id.decode("utf-8", "replace")))
        return InferMessage(found, raw)

    def learn(self, body: bytes, request: Any) -> None:
        """Heads are kept as they are read."""


@lru_cache(maxsize=256)
def _kept_head(text: bytes) -> _Head:
    return _read_head(text)


def _read_head(text: bytes) -> _Head:
    from embedserve.grpc.calls import parse

    return _head_of(parse(_REQUEST, text))


def message_of(message: Any) -> InferMessage:
    """A parsed request.

    Raises:
        ServingError: A parameter, datatype or shape is not usable.
    """
    return InferMessage(_head_of(message), message.raw_input_contents)


def _head_of(message: Any) -> _Head:
    outputs = [(output.name, _parameters(output.parameters)) for output in message.outputs]
    inputs = []
    for given in message.inputs:
        if given.parameters:
            check_tensor_parameters(f"input {given.name!r}", given.parameters)
        dtype = dtype_named(given.datatype, given.name)
        inputs.append(_Input(given.name, dtype, checked_shape(list(given.shape), given.name), given.contents))
    request = request_of(message.id, _parameters(message.parameters), outputs)
    return _Head(message.model_name, message.model_version, request, tuple(inputs))


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    found = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("choice")
        if choice is not None:
            found[name] = getattr(parameter, choice)
    return found


def response_of(name: str, version: int, request: InferRequest, outputs: Tensors, as_raw: bool) -> bytes:
    """A ModelInferResponse as bytes, put together around the arrays' own memory.

    Args:
        name, version: The model of the answer.
        request: The answered request.
        outputs: Arrays by output name.
        as_raw: Whether to write raw contents; outputs without typed contents are always raw.

    Raises:
        UnsupportedError: The protocol has no datatype for an output.
    """
    described = tuple([(alias, sent_datatype(alias, array), array.shape) for alias, array in outputs.items()])
    if not as_raw and all(datatype in _FIELDS for _, datatype, _ in described):
        return _typed_response(name, version, request, described, outputs)
    parts: list[bytes | memoryview] = [_response_head(name, version, described)]
    if request.id or request.final_response:
        parts.append(_RESPONSE(id=request.id, **_final(request)).SerializeToString())
    for array in outputs.values():
        size, pieces = raw_parts(np.asarray(array))
        parts.append(_RAW_TAG + varint(size))
        parts += pieces
    return b"".join(parts)


_RAW_TAG = varint(_RAW_OUTPUTS << 3 | LENGTH_DELIMITED)
_Described = tuple[tuple[str, str, tuple[int, ...]], ...]


@lru_cache(maxsize=256)
def _response_head(name: str, version: int, described: _Described) -> bytes:
    data: bytes = _described_response(name, version, described).SerializeToString()
    return data


def _described_response(name: str, version: int, described: _Described) -> Any:
    response: Any = _RESPONSE(model_name=name, model_version=str(version))
    for alias, datatype, shape in described:
        response.outputs.add(name=alias, datatype=datatype, shape=shape)
    return response


def _final(request: InferRequest) -> dict[str, Any]:
    return {"parameters": {"triton_final_response": {"bool_param": True}}} if request.final_response else {}


def _typed_response(name: str, version: int, request: InferRequest, described: _Described, outputs: Tensors) -> bytes:
    response = _described_response(name, version, described)
    response.id = request.id
    if request.final_response:
        response.parameters["triton_final_response"].bool_param = True
    for output, (_, datatype, _), array in zip(response.outputs, described, outputs.values(), strict=True):
        _write_typed(output.contents, _FIELDS[datatype], np.asarray(array))
    data: bytes = response.SerializeToString()
    return data


def _write_typed(contents: Any, field: str, array: Array) -> None:
    flat = array.reshape(-1)
    if field in _PACKED:  # A packed field of fixed-size numbers is their little-endian memory.
        contents.MergeFromString(delimited(_PACKED[field], flat.tobytes()))
    else:
        getattr(contents, field).extend(_values(flat.tolist()))


_PACKED = {"bool_contents": 1, "fp32_contents": 6, "fp64_contents": 7}


def _values(values: Iterable[Any]) -> list[Any]:
    return [value.encode() if isinstance(value, str) else value for value in values]
