"""Media types of `:predict` beside JSON: `.npy`, `.npz`, raw numbers, CSV and JSON lines, and answers by `Accept`.

TensorFlow Serving reads every body as JSON, whatever its type, so only the types named here change anything. The module
turns bytes into inputs and outputs into bytes, and knows no registry.
"""

from __future__ import annotations

import csv
import functools
import io
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl

import numpy as np

from embedserve.concurrency import off_loop
from embedserve.errors import InvalidInputError
from embedserve.rest import payload
from embedserve.signature import DEFAULT_SIGNATURE, Signature, TensorSpec
from embedserve.tensors import sizes
from embedserve.tensors.dtypes import MAX_RANK, Array, DType, Tensors, by_name
from embedserve.tensors.json_parser import loads
from embedserve.tensors.json_text import array_text, with_json_form
from embedserve.tensors.npy import NpzReader, as_dtype, npy_bytes, read_npy, write_npy, write_npz

__all__ = ["BODY_TYPES", "INSTANCES", "AnswerForm", "BodyForm", "Inputs", "Parameters", "Wishes", "wishes"]

Field = tuple[bytes, bytes]

_CSV_COPIES = 64
"""Bytes of memory for each byte of a CSV body: two bytes may become a Python string, a place in a list and a number."""


class Parameters(NamedTuple):
    """The part of a request that its body has no place for, from the query or from `x-tensor-...` headers.

    Attributes:
        dtype, shape, name: Of a raw tensor; empty where the signature decides.
        signature_name: As in a JSON body.
        output_filter: Names of outputs, joined by commas.
    """

    dtype: str = ""
    shape: str = ""
    name: str = ""
    signature_name: str = ""
    output_filter: str = ""

    @property
    def outputs(self) -> Sequence[str]:
        """The names of `output_filter`."""
        return self.output_filter.split(",") if self.output_filter else ()


_HEADERS = {
    b"x-tensor-dtype": "dtype",
    b"x-tensor-shape": "shape",
    b"x-tensor-name": "name",
    b"x-signature-name": "signature_name",
    b"x-output-filter": "output_filter",
}


class Inputs(Protocol):
    """A body whose inputs wait for the signature.

    Attributes:
        signature_name: The signature.
        output_filter: Names of the outputs to answer, all if empty.
    """

    @property
    def signature_name(self) -> str: ...

    @property
    def output_filter(self) -> Sequence[str]: ...

    def size(self, signature: Signature) -> int:
        """Bytes that `decode` makes, beside the body."""

    def decode(self, signature: Signature) -> tuple[dict[str, Array], bool]:
        """Arrays by input name, and whether a JSON answer is in rows.

        Raises:
            InvalidInputError: The body fits neither the form nor the signature.
        """


class BodyForm(NamedTuple):
    """A form of bodies.

    Attributes:
        read: Reads the parts of a body that need no signature.
        size: Bytes that `read` may make, beside the body.
        answers: Media types of the answer where `Accept` names none, in the order of preference.
        thread_bytes: Bytes of a body above which reading leaves the loop.
    """

    read: Callable[[bytes, Parameters], Inputs]
    size: Callable[[bytes], int]
    answers: tuple[str, ...]
    thread_bytes: int


class AnswerForm(NamedTuple):
    """A form of answers.

    Attributes:
        check: Raises InvalidInputError where the form cannot carry these outputs; called before the run.
        size: Bytes for writing outputs, beside their arrays.
        write: Makes the body, and the fields of the head.
    """

    check: Callable[[Sequence[TensorSpec]], None]
    size: Callable[[Tensors], int]
    write: Callable[[Tensors, Signature, bool], tuple[bytes, tuple[Field, ...]]]


class Wishes(NamedTuple):
    """How a request sends its inputs and wants its outputs.

    Attributes:
        body: The form of the body.
        answers: Forms of the answer, the first that can carry the outputs; the last one raises the error.
        parameters: From query and headers.
    """

    body: BodyForm
    answers: tuple[AnswerForm, ...]
    parameters: Parameters


def wishes(headers: Iterable[Field], query: str) -> Wishes | None:
    """Read the forms from a request's head.

    Returns:
        None for a JSON body with a JSON answer, and for a JSON body with a query, which no such request has.

    Raises:
        InvalidInputError: An unknown parameter in the query of another body.
    """
    content = accept = b""
    sent: list[Field] = []
    for name, value in headers:
        if name == b"content-type":
            content = value
        elif name == b"accept":
            accept = value
        elif name in _HEADERS:
            sent.append((name, value))
    return _wishes(content, accept, tuple(sent), query)


@functools.lru_cache(maxsize=256)
def _wishes(content: bytes, accept: bytes, sent: tuple[Field, ...], query: str) -> Wishes | None:
    # A raw tensor's dtype or shape tells it from JSON under the same type, so the parameters are read first.
    media = content.partition(b";")[0].strip().lower().decode("latin-1")
    parameters = Parameters(**{_HEADERS[name]: value.decode("latin-1").strip() for name, value in sent})
    if media in _BODIES:
        parameters = _with_query(parameters, query)
    if media == _RAW and not (parameters.dtype or parameters.shape):
        media = ""  # Many clients send JSON under this type: it is their default for bytes.
    body = _BODIES.get(media)
    wanted = next((media for media in _accepted(accept) if media in _ANSWERS or media == _ANY), _ANY)
    if body is None and (query or wanted in (_ANY, _JSON)):
        return None
    body = body or _JSON_BODY
    return Wishes(body, tuple(_ANSWERS[name] for name in (body.answers if wanted == _ANY else (wanted,))), parameters)


def _with_query(parameters: Parameters, query: str) -> Parameters:
    given = parse_qsl(query, keep_blank_values=True, max_num_fields=len(Parameters._fields)) if query else ()
    for name, value in given:
        if name not in Parameters._fields:
            raise InvalidInputError(
                f"unknown parameter {name!r} in the query; the parameters are {', '.join(Parameters._fields)}"
            )
        parameters = parameters._replace(**{name: value})
    return parameters


def _accepted(accept: bytes) -> list[str]:
    """The media types of `Accept`, the most wanted first; `*/*` for wildcards."""
    wanted = []
    for part in accept.decode("latin-1").lower().split(",")[:32]:
        media, *options = (piece.strip() for piece in part.split(";"))
        quality = next((option[2:] for option in options if option.startswith("q=")), "1")
        try:
            wanted.append((float(quality), _ANY if media.endswith("/*") else media))
        except ValueError:
            wanted.append((0.0, media))
    wanted.sort(key=lambda pair: -pair[0])
    return [media for quality, media in wanted if quality > 0]


# Bodies.


def _the_input(signature: Signature, name: str) -> TensorSpec:
    """The input that a body with a single tensor means."""
    if name:
        if name not in signature.inputs:
            raise InvalidInputError(
                f"signature {signature.name!r} has no input {name!r}; its inputs are {', '.join(signature.inputs)}"
            )
        return signature.inputs[name]
    needed = [spec for name, spec in signature.inputs.items() if name not in signature.defaults]
    if len(needed) != 1:
        raise InvalidInputError(
            f"the body is one tensor, and signature {signature.name!r} takes {len(needed)}: "
            f"{', '.join(map(str, signature.inputs)) or 'none'}. Send a .npz file, with a .npy file for each input"
        )
    return needed[0]


class _Sent:
    """What all bodies have in common."""

    def __init__(self, body: bytes, parameters: Parameters) -> None:
        self._body = body
        self._parameters = parameters
        self.signature_name = parameters.signature_name or DEFAULT_SIGNATURE
        self.output_filter = parameters.outputs

    def size(self, signature: Signature) -> int:
        return 0


class _Npy(_Sent):
    def size(self, signature: Signature) -> int:
        # Strings become Python objects; numbers of a foreign byte order are copied.
        return 2 * len(self._body)

    def decode(self, signature: Signature) -> tuple[dict[str, Array], bool]:
        spec = _the_input(signature, self._parameters.name)
        return {spec.name: as_dtype(read_npy(self._body, "the body"), spec.dtype)}, False


class _Npz(_Sent):
    def __init__(self, body: bytes, parameters: Parameters) -> None:
        super().__init__(body, parameters)
        self._archive = NpzReader(body)

    def size(self, signature: Signature) -> int:
        return 2 * self._archive.size

    def decode(self, signature: Signature) -> tuple[dict[str, Array], bool]:
        names = self._archive.names
        if list(names) == ["arr_0"] and "arr_0" not in signature.inputs:  # numpy's name for an array without one.
            spec = _the_input(signature, "")
            return {spec.name: as_dtype(self._archive.read("arr_0"), spec.dtype)}, False
        signature.check_names(names)
        return {name: as_dtype(self._archive.read(name), signature.inputs[name].dtype) for name in names}, False


class _Raw(_Sent):
    def decode(self, signature: Signature) -> tuple[dict[str, Array], bool]:
        parameters = self._parameters
        spec = _the_input(signature, parameters.name)
        dtype = _named_dtype(parameters.dtype) if parameters.dtype else spec.dtype
        if dtype.numpy.hasobject:
            raise InvalidInputError(f"input {spec.name!r} is {spec}; raw bytes carry numbers and bools only")
        size = dtype.numpy.itemsize
        if len(self._body) % size:
            raise InvalidInputError(
                f"the body has {len(self._body)} bytes, no multiple of {size}: {dtype.name} is sent"
            )
        shape = _raw_shape(parameters.shape, spec, len(self._body) // size)
        return {spec.name: np.frombuffer(self._body, dtype.numpy).reshape(shape)}, False


def _named_dtype(name: str) -> DType:
    """A dtype by TensorFlow's name or numpy's."""
    try:
        return by_name({"float32": "float", "float64": "double", "float16": "half"}.get(name, name))
    except KeyError:
        raise InvalidInputError(f"unknown dtype {name!r}; numpy's and TensorFlow's names are known: float32") from None


def _raw_shape(text: str, spec: TensorSpec, count: int) -> tuple[int, ...]:
    """The shape of `count` elements: as sent, or as declared; a single size may be left open."""
    try:
        shape = [int(part) for part in text.strip("[]() ").split(",") if part.strip()]
    except ValueError:
        raise InvalidInputError(f"the shape {text!r} is no list of sizes, as in 1,224,224,3") from None
    if not text:
        shape = [-1 if size is None else size for size in spec.shape or ()]
        if spec.shape is None or shape.count(-1) > 1:
            raise InvalidInputError(f"input {spec.name!r} is {spec}: the shape of raw bytes must be sent")
    fixed = math.prod(size for size in shape if size >= 0)
    if len(shape) > MAX_RANK or min(shape, default=0) < -1 or shape.count(-1) > 1:
        raise InvalidInputError(f"the shape {text!r} is no shape; a single size may be -1")
    if -1 in shape and fixed and count % fixed == 0:
        shape[shape.index(-1)] = count // fixed
    if -1 in shape or math.prod(shape) != count:
        raise InvalidInputError(f"the body has {count} elements, which are no tensor of shape {shape}")
    return tuple(shape)


class _Csv(_Sent):
    """A table of values for one input; or a column for each input, below a line of the inputs' names."""

    def size(self, signature: Signature) -> int:
        return _CSV_COPIES * len(self._body)

    def decode(self, signature: Signature) -> tuple[dict[str, Array], bool]:
        try:
            text = self._body.decode()
        except UnicodeDecodeError as error:
            raise InvalidInputError(f"the CSV body is not UTF-8: {error}") from None
        if not text.strip():
            raise InvalidInputError("the CSV body has no rows")
        names = self._named(text, signature)
        if names is None:
            spec = _the_input(signature, self._parameters.name)
            return {spec.name: _in_shape(_table(text, spec.dtype), spec)}, True
        lines = list(_lines(text))[1:]
        signature.check_names(names)
        columns = {}
        for name, column in zip(names, zip(*lines, strict=True), strict=True):
            spec = signature.inputs[name]
            columns[name] = _in_shape(_elements([column], spec.dtype).T, spec)
        return columns, True

    @staticmethod
    def _named(text: str, signature: Signature) -> list[str] | None:
        """The names in the first line, if all are inputs."""
        first = next(csv.reader([text.lstrip().partition("\n")[0].rstrip("\r")]), [])
        names = [name.strip() for name in first]
        return names if names and set(names) <= signature.inputs.keys() and len(set(names)) == len(names) else None


def _lines(text: str) -> Iterable[list[str]]:
    """The rows of a CSV text, all of one length; blank lines are left out."""
    columns = 0
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for line in reader:
            if not line:
                continue
            columns = columns or len(line)
            if len(line) != columns:
                raise InvalidInputError(f"line {reader.line_num} has {len(line)} values, the first line has {columns}")
            yield line
    except csv.Error as error:
        raise InvalidInputError(f"the body is no CSV: {error}") from None


def _table(text: str, dtype: DType) -> Array:
    """An array `[rows, columns]`; numbers are read without a Python object for each."""
    if dtype.json in ("number", "int32", "int64", "uint32", "uint64"):
        try:
            return np.loadtxt(io.StringIO(text), dtype.numpy, delimiter=",", ndmin=2, comments=None)
        except ValueError as error:
            raise InvalidInputError(f"the CSV body is no table of {dtype.name}: {error}") from None
    return _elements(list(_lines(text)), dtype)


_BOOLS = {"true": True, "1": True, "false": False, "0": False}


def _elements(lines: Sequence[Sequence[str]], dtype: DType) -> Array:
    if not lines:
        raise InvalidInputError("the CSV body has no rows")
    if dtype.numpy.hasobject:
        array = np.array(lines, dtype=object)
        return np.array([value.encode() for value in array.ravel().tolist()], dtype=object).reshape(array.shape)
    try:
        if dtype.numpy.kind == "b":
            return np.array([[_BOOLS[value.strip().lower()] for value in line] for line in lines])
        parse = int if dtype.limits else float
        return dtype.convert([[parse(value) for value in line] for line in lines])
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(f"the CSV body has a value that is no {dtype.name}: {error}") from None


def _in_shape(table: Array, spec: TensorSpec) -> Array:
    """A table in the declared shape of an input: a column may be a list, and a row may be a small image."""
    rows, columns = table.shape
    shape = spec.shape
    if shape is not None and len(shape) == 1 and columns == 1:
        return table.reshape(rows)
    inner = shape[1:] if shape else ()
    if len(inner) > 1 and None not in inner and math.prod(size or 0 for size in inner) == columns:
        return table.reshape(rows, *(size or 0 for size in inner))
    return table


class _Json:
    """The JSON body of TensorFlow Serving, where only the answer is in another form."""

    def __init__(self, body: bytes, parameters: Parameters) -> None:
        request = payload.parse_predict(body)
        self.signature_name = parameters.signature_name or request.signature_name
        self.output_filter = parameters.outputs or request.output_filter
        self.decode = request.decode

    def size(self, signature: Signature) -> int:
        return 0


def _read_json_lines(body: bytes, parameters: Parameters) -> _Json:
    """Read an instance from each line, or a whole JSON request from a single line."""
    lines = [line for line in body.splitlines() if line.strip()]
    if not lines:
        raise InvalidInputError("the body has no lines; each line is an instance, as JSON")
    document = loads(lines[0]) if len(lines) == 1 else None
    whole = isinstance(document, dict) and not document.keys().isdisjoint(("instances", "inputs"))
    return _Json(lines[0] if whole else b'{"instances": [%b]}' % b",".join(lines), parameters)


_NAMED = re.compile(rb'"(?:instances|inputs|examples)"\s*:')
_BETWEEN_LINES = re.compile(rb"[}\]]\s*[\[{]")
_LIST_OF_LISTS = re.compile(rb"\s*\[\s*\[")


def _read_instances(body: bytes, parameters: Parameters) -> _Json:
    """Read JSON as SageMaker's clients send it: a whole request, an instance a line, a list of rows, or an instance."""
    if _NAMED.search(body):
        return _Json(body, parameters)
    # Between two values in a list stands a comma, so a bracket after a bracket begins another line.
    if _BETWEEN_LINES.search(body):
        return _read_json_lines(body, parameters)
    rows = body if _LIST_OF_LISTS.match(body) else b"[%b]" % body
    return _Json(b'{"instances": %b}' % rows, parameters)


# Answers.


def _any_outputs(specs: Sequence[TensorSpec]) -> None:
    """The form carries all outputs."""


def _the_output(specs: Sequence[TensorSpec], media: str) -> TensorSpec:
    if len(specs) != 1:
        raise InvalidInputError(
            f"{media} carries one output, and the answer has {len(specs)}: {', '.join(spec.name for spec in specs)}. "
            f"Choose by output_filter, or accept {_NPZ}"
        )
    return specs[0]


def _write_json(outputs: Tensors, signature: Signature, row_format: bool) -> tuple[bytes, tuple[Field, ...]]:
    return payload.encode_predict(outputs, signature, row_format), _typed(_JSON)


def _json_size(outputs: Tensors) -> int:
    return sizes.json_text_bytes(outputs.values())


def _write_npy(outputs: Tensors, signature: Signature, row_format: bool) -> tuple[bytes, tuple[Field, ...]]:
    ((name, array),) = outputs.items()
    return write_npy(array, name), _typed(_NPY)


def _write_npz(outputs: Tensors, signature: Signature, row_format: bool) -> tuple[bytes, tuple[Field, ...]]:
    return write_npz(outputs), _typed(_NPZ)


def _check_npy(specs: Sequence[TensorSpec]) -> None:
    _the_output(specs, _NPY)


def _check_raw(specs: Sequence[TensorSpec]) -> None:
    spec = _the_output(specs, _RAW)
    if spec.dtype.numpy.hasobject:
        raise InvalidInputError(f"output {spec.name!r} is {spec}; raw bytes carry numbers and bools only")


def _write_raw(outputs: Tensors, signature: Signature, row_format: bool) -> tuple[bytes, tuple[Field, ...]]:
    ((name, array),) = outputs.items()
    shape = ",".join(map(str, array.shape))
    told = (
        (b"x-tensor-name", name.encode("latin-1", "replace")),
        (b"x-tensor-dtype", signature.outputs[name].dtype.name.encode()),
        (b"x-tensor-shape", shape.encode()),
    )
    return array.tobytes(), (*_typed(_RAW), *told)


def _write_csv(outputs: Tensors, signature: Signature, row_format: bool) -> tuple[bytes, tuple[Field, ...]]:
    """A row of values for each row of the only output; or a column for each output, below the names."""
    tables = {name: _as_table(name, array, len(outputs) == 1) for name, array in outputs.items()}
    if len({len(table) for table in tables.values()}) != 1:
        lengths = ", ".join(f"{name} {len(table)}" for name, table in tables.items())
        raise InvalidInputError(f"the outputs are no table, for they differ in rows: {lengths}")
    if len(tables) == 1:
        ((_, table),) = tables.items()
        return _csv_text(table), _typed(_CSV)
    names = io.StringIO(newline="")
    csv.writer(names, lineterminator="\n").writerow(tables)
    columns = [_csv_text(table).splitlines() for table in tables.values()]
    return names.getvalue().encode() + b"".join(b",".join(row) + b"\n" for row in zip(*columns, strict=True)), _typed(
        _CSV
    )


def _as_table(name: str, array: Array, wide: bool) -> Array:
    if array.ndim == 1:
        return array[:, None]
    if array.ndim == 2 and (wide or array.shape[1] == 1):
        return array
    raise InvalidInputError(
        f"output {name!r} has the shape {list(array.shape)}, which is no {'table' if wide else 'column of a table'}"
    )


def _csv_text(table: Array) -> bytes:
    """Lines of an array `[rows, columns]`."""
    if table.dtype.hasobject:
        # A line break inside a string would end the line of another output.
        rows = [[value.decode("utf-8", "replace").replace("\n", "\\n") for value in row] for row in table.tolist()]
        file = io.StringIO(newline="")
        csv.writer(file, lineterminator="\n").writerows(rows)
        return file.getvalue().encode()
    if not table.size:
        return b"\n" * len(table)
    return array_text(with_json_form(table))[2:-2].replace(b"],[", b"\n") + b"\n"


def _typed(media: str) -> tuple[Field, ...]:
    return ((b"content-type", media.encode()),)


_ANY = "*/*"
_JSON = "application/json"
_NPY = "application/x-npy"
_NPZ = "application/x-npz"
_RAW = "application/octet-stream"
_CSV = "text/csv"
_JSON_LINES = "application/jsonlines"
INSTANCES = "application/vnd.embedserve.instances+json"
"""JSON without names: an instance, a list of instances, or an instance a line."""

_JSON_BODY = BodyForm(_Json, sizes.json_document_bytes, (_JSON,), off_loop.JSON_BODY_BYTES)


def _nothing(body: bytes) -> int:
    """Reading makes nothing: the arrays share the memory of the body."""
    return 0


_BODIES: Mapping[str, BodyForm] = {
    _NPY: BodyForm(_Npy, _nothing, (_NPY, _NPZ), off_loop.MESSAGE_COPY_BYTES),
    _NPZ: BodyForm(_Npz, _nothing, (_NPZ,), off_loop.ZIPPED_BYTES),
    _RAW: BodyForm(_Raw, _nothing, (_RAW, _NPZ), off_loop.MESSAGE_COPY_BYTES),
    _CSV: BodyForm(_Csv, _nothing, (_JSON,), off_loop.ZIPPED_BYTES),
    **dict.fromkeys(
        (_JSON_LINES, "application/jsonl", "application/x-ndjson"),
        _JSON_BODY._replace(read=_read_json_lines),
    ),
    INSTANCES: _JSON_BODY._replace(read=_read_instances),
}
"""Forms of bodies by media type; any other type is JSON, as in TensorFlow Serving."""

BODY_TYPES: Collection[str] = _BODIES.keys()
"""Media types of bodies beside JSON."""

_ANSWERS: Mapping[str, AnswerForm] = {
    **dict.fromkeys((_JSON, _JSON_LINES), AnswerForm(_any_outputs, _json_size, _write_json)),
    _NPY: AnswerForm(_check_npy, npy_bytes, _write_npy),
    _NPZ: AnswerForm(_any_outputs, npy_bytes, _write_npz),
    _RAW: AnswerForm(_check_raw, npy_bytes, _write_raw),
    _CSV: AnswerForm(_any_outputs, _json_size, _write_csv),
}
"""Forms of answers by media type."""
