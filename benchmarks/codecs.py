"""Codecs beside the plain ways to do the same, in one run.

python -m benchmarks.codecs [--only NAME]     # only the documents whose name begins with NAME, such as `784 floats`

Only ratios mean something: each pair runs in turn, and the best of several rounds counts. `bare simdjson` is the least
that the reading of a body can cost: the parse, and one array of the numbers.
"""

from __future__ import annotations

import argparse
import json
import timeit
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import simdjson
import tensorflow as tf

from embedserve.rest.payload import encode_predict, parse_predict
from embedserve.servable import Array
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors.dtypes import by_name
from embedserve.tensors.proto import decode, encode
from embedserve.tensors.sizes import json_document_bytes

FLOAT, INT64, STRING = by_name("float"), by_name("int64"), by_name("string")


def best(call: Callable[[], object], budget: float = 0.3) -> float:
    timer = timeit.Timer(call)
    number = max(1, int(budget / 50 / max(timer.timeit(1), 1e-7)))
    return min(timer.repeat(50, number)) / number


def report(what: str, plain: str, plain_call: Callable[[], object], ours: Callable[[], object]) -> None:
    slow, fast = best(plain_call), best(ours)
    print(f"{what:<44} {plain:<30} {slow * 1e6:>10.1f} us  embedserve {fast * 1e6:>10.1f} us  x{slow / fast:.1f}")


def protos(name: str, array: Array) -> None:
    dtype = STRING if array.dtype.hasobject else INT64 if array.dtype == np.int64 else FLOAT
    typed = encode(array, dtype)
    report(
        f"{name}: TensorProto in, typed field", "tf.make_ndarray", lambda: tf.make_ndarray(typed), lambda: decode(typed)
    )
    if not array.dtype.hasobject:
        content = encode(array, dtype, as_content=True)
        report(
            f"{name}: TensorProto in, content",
            "tf.make_ndarray",
            lambda: tf.make_ndarray(content),
            lambda: decode(content),
        )

    def extended() -> object:
        proto = tf.make_tensor_proto(0, dtype.number, ())
        getattr(proto, dtype.field).extend(array.ravel().tolist())
        return proto

    report(f"{name}: TensorProto out, typed field", "extend(list)", extended, lambda: encode(array, dtype))
    report(
        f"{name}: TensorProto out, content",
        "tf.make_tensor_proto",
        lambda: tf.make_tensor_proto(array),
        lambda: encode(array, dtype, as_content=True),
    )


def signature(dtype: str) -> Signature:
    return Signature("serving_default", {"x": TensorSpec("x", by_name(dtype), None)}, {})


def documents(name: str, array: Array, key: str) -> None:
    dtype = "int64" if array.dtype == np.int64 else "float"
    body = json.dumps({key: array.tolist()}).encode()
    of = signature(dtype)

    def plain() -> Array:
        return np.asarray(json.loads(body)[key], array.dtype)

    def faster() -> Array:
        return np.asarray(orjson.loads(body)[key], array.dtype)

    def ours() -> Array:
        return parse_predict(body).decode(of)[0]["x"]

    parser = simdjson.Parser()

    def bare() -> Array:
        root: Any = parser.parse(body)
        numbers = root[key].as_buffer(of_type="i" if dtype == "int64" else "d")
        return np.frombuffer(numbers, np.int64 if dtype == "int64" else np.float64).astype(array.dtype)

    def counted() -> int:
        return sum(map(body.count, b',"[{'))

    assert np.array_equal(ours(), plain())
    size = f"{name}: {key}, {len(body) / 1000:.0f} kB"
    report(size, "json.loads + np.asarray", plain, ours)
    report(size, "orjson.loads + np.asarray", faster, ours)
    report(size, "bare simdjson", bare, ours)
    report(f"{name}: memory estimate", "bytes.count", counted, lambda: json_document_bytes(body))
    outputs = {"y": array}
    report(
        f"{name}: answer",
        "json.dumps(tolist())",
        lambda: json.dumps({"predictions": array.tolist()}).encode(),
        lambda: encode_predict(outputs, of, True),
    )


def strings() -> None:
    texts = [f"a text of some length, number {i}" for i in range(10_000)]
    body = json.dumps({"instances": texts}).encode()
    of = signature("string")
    report(
        "10k strings: instances",
        "json.loads + encode",
        lambda: np.array([text.encode() for text in json.loads(body)["instances"]], dtype=object),
        lambda: parse_predict(body).decode(of),
    )
    rows = json.dumps({"instances": [{"x": i / 7} for i in range(10_000)]}).encode()
    floats = signature("float")
    report(
        "10k named rows: instances",
        "json.loads + np.asarray",
        lambda: np.asarray([row["x"] for row in json.loads(rows)["instances"]], np.float32),
        lambda: parse_predict(rows).decode(floats),
    )
    array = STRING.convert(texts)
    report(
        "10k strings: answer",
        "json.dumps(decode)",
        lambda: json.dumps({"predictions": [text.decode() for text in array.tolist()]}).encode(),
        lambda: encode_predict({"y": array}, of, True),
    )


def main(only: str) -> None:
    chance = np.random.default_rng(0)
    image = chance.random((1, 224, 224, 3)).astype(np.float32).round(4)
    flat = chance.random(150_000).astype(np.float32)
    table = chance.random((1000, 10)).astype(np.float32)
    labels = chance.integers(0, 1000, (1000, 10))
    arrays: dict[str, Array] = {"image": image, "150k floats": flat, "1000x10": table, "1000x10 ints": labels}
    if not only:
        for name, array in arrays.items():
            protos(name, array)
    arrays = {**arrays, "784 floats": chance.random((1, 784)).astype(np.float32), "3 floats": flat[:3]}
    for name, array in arrays.items():
        if name.startswith(only):
            documents(name, array, "instances")
    if not only:
        documents("image", image, "inputs")
        strings()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    main(parser.parse_args().only)
