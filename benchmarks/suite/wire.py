"""The requests that the suite sends and the answers it gets, in each format that the servers speak.

One format per server and protocol, chosen in `contenders`. Protobuf messages are written and read field by field: the
suite needs four of them, and importing TensorFlow for that would cost more than the rest of it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float32]
Protocol: TypeAlias = Literal["rest", "grpc", "in-process"]


@dataclass(frozen=True)
class Format:
    """How rows are asked for over one protocol.

    Attributes:
        name: As the report says it.
        protocol: REST bodies go out as they are, gRPC messages with their five-byte prefix.
        path: The URL's path for a model.
        encode: Model and rows `[rows, ...]` to a body or message.
        decode: An answer's body or message to rows.
    """

    name: str
    protocol: Protocol
    path: Callable[[str], str]
    encode: Callable[[str, Array], bytes]
    decode: Callable[[bytes], Array]


def framed(message: bytes) -> bytes:
    """A gRPC message as it stands in an HTTP/2 body."""
    return b"\0" + struct.pack(">I", len(message)) + message


def dumps(document: Any) -> bytes:
    """As `requests.post(json=...)` and the tutorials of TensorFlow Serving write it."""
    return json.dumps(document).encode()


def _rows_of(key: str) -> Callable[[bytes], Array]:
    return lambda answer: np.asarray(json.loads(answer)[key], np.float32)


# Protobuf.


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Each field's number and value; of the wire types, the four that can occur in the answers."""
    at = 0

    def read_varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = message[at]
            at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
            shift += 7

    while at < len(message):
        key = read_varint()
        match key & 7:
            case 0:
                yield key >> 3, read_varint()
            case 1 | 5 as wire_type:
                size = 8 if wire_type == 1 else 4
                yield key >> 3, message[at : at + size]
                at += size
            case 2:
                size = read_varint()
                yield key >> 3, message[at : at + size]
                at += size
            case other:
                raise ValueError(f"wire type {other} at byte {at}")


def one(message: bytes, number: int) -> bytes:
    """The last value of a field of bytes, as protobuf has it; empty when it is absent."""
    value: bytes | int = b""
    for found, content in fields(message):
        if found == number:
            value = content
    assert isinstance(value, bytes)
    return value


def _tfs_request(model: str, rows: Array) -> bytes:
    """PredictRequest, its tensor as `tf.make_tensor_proto` writes it: one value in `float_val`, more as bytes."""
    shape = b"".join(field(2, field(1, size)) for size in rows.shape)
    values = field(5 if rows.size == 1 else 4, rows.astype("<f4").tobytes())
    tensor = field(1, 1) + field(2, shape) + values
    return field(1, field(1, model.encode())) + field(2, field(1, b"x") + field(2, tensor))


def tfs_answer(model: str, rows: Array) -> bytes:
    """The PredictResponse that a server of TensorFlow Serving's API gives to `_tfs_request`."""
    shape = b"".join(field(2, field(1, size)) for size in rows.shape)
    tensor = field(1, 1) + field(2, shape) + field(5, rows.astype("<f4").tobytes())
    spec = field(1, model.encode()) + field(2, field(1, 1)) + field(3, b"serving_default")
    return field(1, field(1, b"y") + field(2, tensor)) + field(2, spec)


def _tfs_rows(answer: bytes) -> Array:
    """The only output of a PredictResponse."""
    tensor = one(one(answer, 1), 2)
    sizes = [sum(value for _, value in fields(dim)) for _, dim in fields(one(tensor, 2))]  # type: ignore[arg-type, misc]
    return np.frombuffer(one(tensor, 5) or one(tensor, 4), "<f4").reshape(sizes)


def _v2_request(model: str, rows: Array) -> bytes:
    """ModelInferRequest of the open inference protocol, with raw contents."""
    shape = b"".join(varint(size) for size in rows.shape)
    tensor = field(1, b"x") + field(2, b"FP32") + field(3, shape)
    return field(1, model.encode()) + field(5, tensor) + field(7, rows.astype("<f4").tobytes())


def _v2_rows(answer: bytes) -> Array:
    values = one(answer, 6) or one(one(one(answer, 5), 5), 6)
    return np.frombuffer(values, "<f4")


def _v2_json(model: str, rows: Array) -> bytes:
    tensor = {"name": "x", "shape": rows.shape, "datatype": "FP32", "data": rows.ravel().tolist()}
    return dumps({"inputs": [tensor]})


def _v2_json_rows(answer: bytes) -> Array:
    (output,) = json.loads(answer)["outputs"]
    return np.asarray(output["data"], np.float32)


TFS_REST = Format(
    "TensorFlow Serving's REST",
    "rest",
    lambda model: f"/v1/models/{model}:predict",
    lambda model, rows: dumps({"instances": rows.tolist()}),
    _rows_of("predictions"),
)
TFS_GRPC = Format(
    "TensorFlow Serving's gRPC",
    "grpc",
    lambda model: "/tensorflow.serving.PredictionService/Predict",
    _tfs_request,
    _tfs_rows,
)
V2_REST = Format(
    "open inference protocol, JSON", "rest", lambda model: f"/v2/models/{model}/infer", _v2_json, _v2_json_rows
)
V2_GRPC = Format(
    "open inference protocol, gRPC",
    "grpc",
    lambda model: "/inference.GRPCInferenceService/ModelInfer",
    _v2_request,
    _v2_rows,
)
PLAIN_REST = Format(
    "JSON of its own",
    "rest",
    lambda model: f"/{model}",
    lambda model, rows: dumps({"instances": rows.tolist()}),
    _rows_of("predictions"),
)
LIST_REST = replace(PLAIN_REST, decode=lambda answer: np.asarray(json.loads(answer), np.float32))
IN_PROCESS = Format("a call", "in-process", lambda model: model, lambda model, rows: b"", _rows_of("predictions"))
