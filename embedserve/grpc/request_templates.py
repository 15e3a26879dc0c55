"""Request templates: the constant part of Predict requests that differ in their values only.

Most clients repeat a request with new numbers. The bytes before the numbers determine names, version, dtype and shape.
A request with the length and the first bytes of a known template needs no parsing. All further requests are parsed. The
module knows no registry.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from embedserve.servable import Array
from embedserve.tensors.dtypes import by_number
from embedserve.tensors.wire_format import LENGTH_DELIMITED, VARINT, fields

if TYPE_CHECKING:
    from tensorflow_serving.apis.predict_pb2 import PredictRequest

__all__ = ["KnownRequest", "RequestTemplates"]

_MAX_TEMPLATES = 256
"""Templates kept; at the bound all templates are dropped."""
_MAX_HEAD = 1024
"""Bytes before the values of the longest head that is kept."""
_MAX_LENGTHS = 4
"""Positions of values kept per length of request; each position costs a lookup."""

# Field numbers of PredictRequest, its map entries, and TensorProto.
_MODEL_SPEC, _INPUTS = 1, 2
_KEY, _VALUE = 1, 2
_DTYPE, _SHAPE, _VERSION, _CONTENT = 1, 2, 3, 4
# Packed fields that are the array's memory, with the dtype of each field.
_PACKED = {5: 1, 6: 2}  # float_val: DT_FLOAT, double_val: DT_DOUBLE


class KnownSpec(NamedTuple):
    """A `ModelSpec` read into Python values: each attribute of the message costs a call."""

    name: str
    version: int | None
    label: str | None
    signature_name: str


class RequestTemplate(NamedTuple):
    """The common part of a template's requests: model spec, a single input, and the position of the values."""

    model_spec: KnownSpec
    alias: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    start: int


class KnownRequest:
    """A request of a known template: the content of a `PredictRequest`, without parsing."""

    __slots__ = ("_body", "_template", "model_spec")

    output_filter: tuple[str, ...] = ()

    def __init__(self, template: RequestTemplate, body: bytes) -> None:
        self._template = template
        self._body = body
        self.model_spec = template.model_spec

    def decode(self) -> dict[str, Array]:
        """The input by its name: read-only, in the template's dtype and shape."""
        template = self._template
        # A slice, not an offset: users of arrays expect aligned memory.
        return {template.alias: np.ndarray(template.shape, template.dtype, self._body[template.start :])}


class RequestTemplates:
    """The templates seen so far, bounded in number; at the bound all templates are dropped at once.

    A template is kept at its second sight, so that clients without repetition cost next to no memory.
    """

    def __init__(self) -> None:
        # By length and head. The head alone is not enough: fields may follow the input, as an `output_filter` does.
        self._templates: dict[tuple[int, bytes], RequestTemplate] = {}
        self._starts: dict[int, tuple[int, ...]] = {}  # By the length of the request.
        self._candidate: tuple[int, bytes] = 0, b""

    def __len__(self) -> int:
        return len(self._templates)

    def find(self, body: bytes) -> KnownRequest | None:
        """The request, if a template has the same length and the same bytes before the values."""
        size = len(body)
        for start in self._starts.get(size, ()):
            template = self._templates.get((size, body[:start]))
            if template is not None:
                return KnownRequest(template, body)
        return None

    def learn(self, body: bytes, request: PredictRequest) -> None:
        """Consider the template of a parsed and answered request; `request` is the message in `body`."""
        start = _start_of_values(body)
        if start is None or start > _MAX_HEAD:
            return
        head = body[:start]
        if (len(body), head) != self._candidate:
            self._candidate = len(body), head
            return
        template = _template(request, start, len(body))
        if template is None:
            return
        starts = self._starts.get(len(body), ())
        if len(self._templates) >= _MAX_TEMPLATES or len(starts) >= _MAX_LENGTHS:
            self._templates.clear()
            self._starts.clear()
            starts = ()
        self._templates[len(body), head] = template
        if start not in starts:
            self._starts[len(body)] = (*starts, start)


def _template(request: PredictRequest, start: int, size: int) -> RequestTemplate | None:
    [(alias, tensor)] = request.inputs.items()
    shape = tuple(dim.size for dim in tensor.tensor_shape.dim)
    dtype = by_number(tensor.dtype)
    fits = dtype.numpy.itemsize * math.prod(shape) == size - start > 0
    if not fits or dtype.numpy.kind not in "fiuc":
        return None  # Bool and string need checks of their values; a wrong number of values needs a rule.
    spec = request.model_spec
    choice = spec.WhichOneof("version_choice")
    version = spec.version.value if choice == "version" else None
    label = spec.version_label if choice == "version_label" else None
    known = KnownSpec(spec.name, version, label, spec.signature_name)
    return RequestTemplate(known, alias, dtype.numpy, shape, start)


def _start_of_values(body: bytes) -> int | None:
    """The position of the only input's values, if the values end the request and are the array's memory.

    The lengths before the position fix the extent of each message, so any following bytes are values.
    """
    try:
        top = _few_fields(body, 0, len(body))
        if [number for number, *_ in top] != [_MODEL_SPEC, _INPUTS]:
            return None
        entry = _few_fields(body, *top[-1][2:])
        if [number for number, *_ in entry] != [_KEY, _VALUE]:
            return None
        tensor = _few_fields(body, *entry[-1][2:])
    except (IndexError, ValueError):
        return None
    numbers = [number for number, *_ in tensor]
    if numbers[:2] != [_DTYPE, _SHAPE] or len(numbers) - len(set(numbers)) or set(numbers[2:-1]) - {_VERSION}:
        return None
    number, kind, start, _ = tensor[-1]
    dtype = tensor[0][2]
    if kind != LENGTH_DELIMITED or not (number == _CONTENT or _PACKED.get(number) == body[dtype]):
        return None
    return start


def _few_fields(body: bytes, at: int, end: int) -> list[tuple[int, int, int, int]]:
    """The first six fields of a message; a template has fewer.

    Raises:
        ValueError, IndexError: The bytes are no message, or a field of a fixed size or a group is among the fields.
    """
    found = list(islice(fields(body, at, end), 6))
    if any(kind not in (VARINT, LENGTH_DELIMITED) for _, kind, _, _ in found):
        raise ValueError("a template has fields of other kinds")
    return found
