"""What the fuzz tests send: HTTP requests and messages of every RPC, right in part and odd in the rest.

Strategies only; which models there are is told here once, so that names, aliases and shapes hit something.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from tests.support import saved_models

BUILDERS = {
    "half_plus_two": saved_models.examples,
    "tf1": saved_models.tf1_examples,  # Runs in a graph session.
    "several": saved_models.several,
    "strings": saved_models.strings,
    "identities": saved_models.identities,
    "conv2d": saved_models.conv2d,
    "positive_only": saved_models.positive_only,
    "counter": saved_models.counter,
}
NAMES = [*BUILDERS, "missing", ""]
SIGNATURES = [
    *("", "serving_default", "scalars", "free", "classify_x_to_y", "regress_x_to_y", "classify_labels", "read"),
    *("__saved_model_init_op", "float32", "int32", "string", "bool", "bfloat16", "complex64", "missing"),
]
ALIASES = ["x", "left", "right", "a", "b", "text", "image", "inputs", "y", "total", "row_sum", "scores", "outputs", "z"]
TENSORS = ["x:0", "y:0", "tf_example:0", "a:0", "x", "y", "", ":", "x:7", "^x", "../x:0"]
METHODS = ["tensorflow/serving/classify", "tensorflow/serving/regress", "tensorflow/serving/predict", ""]

# Values in JSON.

EDGES = [0, 1, -1, 2**31, -(2**31) - 1, 2**63, 2**64, 1.5, -0.0, 1e39, 1e308, float("nan"), float("inf"), 1.0]
ODD: list[Any] = [
    None,
    True,
    "",
    "text",
    "é\x00",
    {},
    [],
    [[]],
    {"b64": "aGk="},
    {"b64": "?"},
    {"b64": 1},
    {"a": {"b": [1]}},
]
scalars = (
    st.sampled_from(EDGES) | st.sampled_from(ODD) | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
)
floats = st.sampled_from([0.0, 1.0, -2.5, 3])
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(ALIASES) | st.text(max_size=3), inner),
    max_leaves=12,
)
arrays = st.tuples(st.lists(st.integers(0, 3), max_size=5), floats | scalars).map(lambda given: _filled(*given))
rows = st.lists(arrays | st.dictionaries(st.sampled_from(ALIASES), arrays, max_size=3) | values, max_size=4)
features = st.dictionaries(st.sampled_from(ALIASES), floats | values | st.lists(scalars, max_size=3), max_size=3)


def _filled(shape: list[int], value: Any) -> Any:
    for size in reversed(shape):
        value = [value] * size
    return value


documents = st.fixed_dictionaries(
    {},
    optional={
        "signature_name": st.sampled_from(SIGNATURES) | values,
        "instances": rows | arrays | values,
        "inputs": arrays | st.dictionaries(st.sampled_from(ALIASES), arrays, max_size=3) | values,
        "examples": st.lists(features | values, max_size=3) | values,
        "context": features | values,
    },
)
# Requests that are answered, to be changed a little.
VALID: list[tuple[str, str, dict[str, Any]]] = [
    ("half_plus_two", ":predict", {"instances": [[1.0], [2.0]]}),
    ("half_plus_two", ":predict", {"inputs": {"x": [[1.0]]}}),
    ("half_plus_two", ":classify", {"signature_name": "classify_x_to_y", "examples": [{"x": 1.0}]}),
    ("half_plus_two", ":classify", {"signature_name": "classify_labels", "examples": [{"x": 1.0}], "context": {}}),
    ("tf1", ":regress", {"signature_name": "regress_x_to_y", "examples": [{"x": [1.0]}, {}], "context": {"x": 2.0}}),
    ("tf1", ":predict", {"instances": [{"x": [1.0]}]}),
    ("several", ":predict", {"instances": [{"left": [1.0, 2, 3], "right": [1, 2, 3]}]}),
    ("several", ":predict", {"signature_name": "scalars", "inputs": {"a": 1, "b": 2.0}}),
    ("several", ":predict", {"signature_name": "free", "instances": [1.0]}),
    ("strings", ":predict", {"instances": ["a", {"b64": "aGk="}]}),
    ("conv2d", ":predict", {"instances": [[[[1.0], [2.0]]]]}),
    ("positive_only", ":predict", {"instances": [1.0, 0.0]}),
    ("counter", ":predict", {"instances": [1.0]}),
    *(("identities", ":predict", {"signature_name": name, "inputs": [1]}) for name in ("float32", "uint8", "int64")),
    ("identities", ":predict", {"signature_name": "bool", "inputs": [[True], [False]]}),
    ("identities", ":predict", {"signature_name": "complex64", "inputs": []}),
]


@st.composite
def _changed(draw: st.DrawFn, document: Any) -> Any:
    """The document with one value in it, at any depth, replaced, dropped or doubled."""
    if isinstance(document, dict) and document and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(list(document)))
        match draw(st.sampled_from(["in", "in", "in", "drop", "rename"])):
            case "in":
                return document | {key: draw(_changed(document[key]))}
            case "rename":
                return {draw(st.sampled_from(ALIASES)) if name == key else name: document[name] for name in document}
        return {name: value for name, value in document.items() if name != key}
    if isinstance(document, list) and document and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(document) - 1))
        match draw(st.sampled_from(["in", "in", "drop", "double"])):
            case "in":
                return [*document[:at], draw(_changed(document[at])), *document[at + 1 :]]
            case "drop":
                return document[:at] + document[at + 1 :]
        return [*document, document[at]]
    return draw(floats | scalars | arrays)


texts = (documents | values).map(lambda document: json.dumps(document).encode("utf-8", "surrogatepass"))


@st.composite
def broken(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with a piece cut out, put in or written over."""
    data = draw(whole)
    start = draw(st.integers(0, len(data)))
    removed = draw(st.sampled_from([0, 1, 5, len(data)]))
    return (
        data[:start]
        + draw(st.binary(max_size=5) | st.sampled_from([b"[", b"}", b'"', b"NaN"]))
        + data[start + removed :]
    )


bodies = texts | broken(texts) | st.binary(max_size=40)


class HttpRequest(NamedTuple):
    """One HTTP/1.1 request as it goes over the socket."""

    method: bytes
    target: bytes
    headers: list[bytes]
    body: bytes

    def data(self) -> bytes:
        lines = [self.method + b" " + self.target + b" HTTP/1.1", b"Host: x", b"Connection: close", *self.headers]
        return b"\r\n".join([*lines, b"", b""]) + self.body


_where = st.sampled_from(
    ["", "", "", "/versions/1", "/versions/99", "/versions/x", "/versions/" + "9" * 30, "/labels/l"]
)
_what = st.sampled_from(
    [":predict", ":classify", ":regress", "/metadata", "", ":PREDICT", ":nope", ":predict?x=1", "/"]
)
_names = st.sampled_from([*NAMES, "%2F", "half%5Fplus_two", "%", "%FF", "a:b"])
_targets = st.one_of(
    st.builds("/v1/models/{}{}{}".format, _names, _where, _what),
    st.sampled_from(["/v1/models", "/V1/MODELS/tf1", "/v1/", "/", "*", "/-/ready", "/-/live", "/-/ready/tf1", "/-/"]),
    st.sampled_from(["/monitoring/prometheus/metrics", "/monitoring/prometheus/metrics?x", "http://x/v1/models/tf1"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20).map("/{}".format),
).map(str.encode)
_methods = st.sampled_from([b"POST"] * 6 + [b"GET"] * 3 + [b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"])


@st.composite
def http_requests(draw: st.DrawFn) -> HttpRequest:
    """A request to any route or to none, with a body that may be zipped, chunked, or neither."""
    if draw(st.integers(0, 2)):
        name, verb, document = draw(st.sampled_from(VALID))
        method, target = b"POST", f"/v1/models/{name}{verb}".encode()
        for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
            document = draw(_changed(document))
        body = json.dumps(document).encode("utf-8", "surrogatepass")
    else:
        method, target, body = draw(_methods), draw(_targets), draw(bodies)
    headers: list[bytes] = []
    match draw(st.sampled_from(["", "", "", "gzip", "not gzip", "origin", "type"])):
        case "gzip":
            headers, body = [b"Content-Encoding: gzip"], gzip.compress(body)
        case "not gzip":
            headers = [b"Content-Encoding: x-gzip, br"]
        case "origin":
            headers = [b"Origin: http://x"]
        case "type":
            headers = [b"Content-Type: text/plain; charset=\xff"]
    if draw(st.booleans()):
        headers.append(b"Content-Length: %d" % len(body))
    else:
        headers.append(b"Transfer-Encoding: chunked")
        body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    return HttpRequest(method, target, headers, body)


# Protocol buffers.

NUMBERS = [0, 1, 2, 3, 7, 100, 2**31 - 1, 2**32 - 1, 2**63 - 1, -1, -(2**31), -(2**63)]
Hints: TypeAlias = Mapping[str, st.SearchStrategy[Any] | None]
"""What a field's value may be, by the field's full name; None leaves it unset."""

_HINTS: dict[str, st.SearchStrategy[Any] | None] = {
    "tensorflow.serving.ModelSpec.name": st.sampled_from([*BUILDERS, *BUILDERS, *NAMES]),
    "tensorflow.serving.ModelSpec.signature_name": st.sampled_from(SIGNATURES),
    "tensorflow.serving.ModelSpec.version_label": st.sampled_from(["l", ""]),
    "tensorflow.serving.InferenceTask.method_name": st.sampled_from(METHODS),
    "tensorflow.serving.GetModelMetadataRequest.metadata_field": st.sampled_from(
        ["signature_def", "signature_def", "f"]
    ),
    "tensorflow.NamedTensorProto.name": st.sampled_from(TENSORS + ALIASES),
    "tensorflow.serving.SessionRunRequest.fetch": st.sampled_from(TENSORS + ALIASES),
    "tensorflow.serving.SessionRunRequest.target": st.sampled_from(TENSORS),
    "tensorflow.serving.ModelConfig.base_path": st.sampled_from(["relative", "", "gs://b/m"]),
    "tensorflow.serving.ModelConfig.model_platform": st.sampled_from(
        ["tensorflow", "tensorflow", "tensorflow", "", "p"]
    ),
    "tensorflow.serving.ModelConfig.model_type": st.sampled_from([0, 0, 0, 1, 2, 9]),
    # A model of which no version is asked for is waited for until there is one.
    "tensorflow.serving.FileSystemStoragePathSourceConfig.ServableVersionPolicy.specific": None,
    # Real time passes, and a directory is written to.
    "tensorflow.ProfileRequest.duration_ms": st.integers(0, 5),
    "tensorflow.ProfileRequest.repository_root": st.just(""),
}
_SIZES = st.integers(0, 3) | st.sampled_from([-1, 2**20, 2**40, 2**63 - 1])
_DTYPES = st.sampled_from([1, 1, 3, 7, 9, 10]) | st.integers(0, 30) | st.sampled_from([101, 2**31 - 1, -1])


def requests(*samples: Message, hints: Hints = _HINTS) -> st.SearchStrategy[bytes]:
    """Serialized messages of one class: the samples with up to two things changed, any others, and broken bytes.

    Args:
        samples: Messages that the server answers; what they need to get past the first checks.
        hints: Added to the hints that are always followed.
    """
    known = _HINTS | dict(hints)
    changed = st.sampled_from(samples).flatmap(lambda sample: _changed_message(sample, known))
    whole = (changed | changed | changed | messages(samples[0].DESCRIPTOR, hints=known)).map(
        lambda message: message.SerializeToString()
    )
    return whole | whole | whole | broken(whole) | st.binary(max_size=20)


@st.composite
def _changed_message(draw: st.DrawFn, sample: Message, hints: Hints) -> Message:
    message = type(sample)()
    message.CopyFrom(sample)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
        part: Any = draw(st.sampled_from([part for part in _parts(message) if part.DESCRIPTOR.fields]))
        if part.DESCRIPTOR.full_name == "tensorflow.TensorProto" and draw(st.booleans()):
            part.Clear()
            _tensor(draw, part)
            continue
        field = draw(st.sampled_from(list(part.DESCRIPTOR.fields)))
        part.ClearField(field.name)
        if draw(st.integers(0, 3)):
            _set(draw, part, field, 3, hints)
    return message


def _parts(message: Any) -> Iterator[Any]:
    """A message and every message in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            inner = [] if field.message_type.fields_by_name["value"].message_type is None else value.values()
        else:
            inner = value if field.is_repeated else [value]
        for part in inner:
            yield from _parts(part)


@st.composite
def messages(draw: st.DrawFn, descriptor: Any, depth: int = 7, hints: Hints = _HINTS) -> Message:
    """Any message of a type, each of its fields set or not."""
    message: Any = GetMessageClass(descriptor)()
    if descriptor.full_name == "tensorflow.TensorProto":
        return _tensor(draw, message)
    for field in descriptor.fields:
        # What a request is about is nearly always there; the rest is less likely the deeper it lies.
        wanted = field.name in ("model_spec", "name", "input", "inputs", "kind", "example_list", "examples", "tasks")
        if depth and draw(st.integers(0, 9)) < (9 if wanted else 4):
            _set(draw, message, field, depth - 1, hints)
    return message  # type: ignore[no-any-return]


def _set(draw: st.DrawFn, message: Any, field: FieldDescriptor, depth: int, hints: Hints) -> None:
    nested = field.message_type
    if field.full_name in hints and hints[field.full_name] is None:
        return
    if nested is not None and nested.GetOptions().map_entry:
        _set_map(draw, getattr(message, field.name), nested, depth, hints)
    elif nested is not None and field.is_repeated:
        for _ in range(draw(st.integers(0, 2))):
            getattr(message, field.name).add().CopyFrom(draw(messages(nested, depth, hints)))
    elif nested is not None:
        getattr(message, field.name).CopyFrom(draw(messages(nested, depth, hints)))
    elif field.is_repeated:
        getattr(message, field.name).extend(draw(st.lists(_value(field, hints), max_size=3)))
    else:
        setattr(message, field.name, draw(_value(field, hints)))


def _set_map(draw: st.DrawFn, entries: Any, entry: Descriptor, depth: int, hints: Hints) -> None:
    key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
    names = st.sampled_from(ALIASES) if key.type == FieldDescriptor.TYPE_STRING else _value(key, hints)
    for name in draw(st.lists(names, max_size=2)):
        if value.message_type is None:
            entries[name] = draw(_value(value, hints))
        else:
            entries[name].CopyFrom(draw(messages(value.message_type, depth, hints)))


def _value(field: FieldDescriptor, hints: Hints) -> st.SearchStrategy[Any]:
    hint = hints.get(field.full_name)
    if hint is not None:
        return hint
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return st.booleans()
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return floats | st.floats(width=32)
        case FieldDescriptor.CPPTYPE_STRING:
            return st.binary(max_size=6) if field.type == FieldDescriptor.TYPE_BYTES else st.text(max_size=6)
        case FieldDescriptor.CPPTYPE_ENUM:
            return st.sampled_from([value.number for value in getattr(field.enum_type, "values", ())])
    low, high = {
        FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
        FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    }[field.cpp_type]
    return st.sampled_from([number for number in NUMBERS if low <= number <= high])


def _tensor(draw: st.DrawFn, tensor: Any) -> Message:
    """Often a whole float tensor; sometimes of another dtype, with too many values, too few or none."""
    tensor.dtype = draw(_DTYPES)
    for size in draw(st.lists(_SIZES, max_size=5)):
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_shape.unknown_rank = draw(st.integers(0, 9)) == 0
    given = draw(st.lists(st.sampled_from([0, 1, 2, 255, -1]), max_size=4))
    match draw(st.sampled_from(["float_val", "float_val", "int_val", "string_val", "half_val", "content", "other"])):
        case "string_val":
            tensor.string_val.extend(str(number).encode() for number in given)
        case "content":
            tensor.tensor_content = draw(st.binary(max_size=16))
        case "other":
            field = draw(st.sampled_from(["double_val", "int64_val", "bool_val", "scomplex_val", "uint64_val"]))
            getattr(tensor, field).extend(abs(number) for number in given)
        case field:
            getattr(tensor, field).extend(given)
    return tensor  # type: ignore[no-any-return]
