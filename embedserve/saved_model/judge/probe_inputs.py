"""Inputs for runs that nobody asked for, the load-time probe and warm-up: made up from a signature, or recorded ones.

Made-up inputs keep to what the signature declares, as a client's must, and are small. Called by the loader.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from embedserve.servable import Array, Tensors
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors import dtypes

__all__ = ["MadeUp", "Recorded", "Sample", "candidates"]

# Sizes for unknown dimensions after the first: a short text or a small vector, a thumbnail, a photograph.
_SIZES = (4, 1, 32, 224)
_MAX_ELEMENTS = 2**20


class Sample(Protocol):
    """Inputs of any number of rows, of which no two neighbours are equal."""

    def batch(self, rows: int) -> dict[str, Array]:
        """Inputs of `rows` rows; where an input has no leading unknown dimension, its one value."""


def shape_of(signature: Signature, spec: TensorSpec) -> tuple[int | None, ...] | None:
    """Declared shape, or the rank that `input_ranks` adds; element-wise signatures take a plain row of values."""
    if spec.shape is not None:
        return spec.shape
    if spec.name in signature.input_ranks:
        return (None,) * signature.input_ranks[spec.name]
    return (None,) if signature.shape_free else None


class MadeUp:
    """Small numbers, or the given texts, in the declared shapes with `size` for each unknown dimension."""

    def __init__(self, signature: Signature, size: int, texts: Sequence[bytes]) -> None:
        self._shapes = {}
        for spec in signature.inputs.values():
            shape = shape_of(signature, spec)
            if shape is None:
                raise ValueError(f"the rank of {spec.name!r} is unknown")
            self._shapes[spec.name] = shape
        self._dtypes = {spec.name: spec.dtype.numpy for spec in signature.inputs.values()}
        self._size = size
        self._texts = texts

    @property
    def elements(self) -> int:
        """Elements of the largest input of one row."""
        return max((int(np.prod(self._row_shape(name))) for name in self._shapes), default=0)

    def batch(self, rows: int) -> dict[str, Array]:
        return {name: self._input(name, rows) for name in self._shapes}

    def _row_shape(self, name: str) -> tuple[int, ...]:
        shape = self._shapes[name]
        rest = shape[1:] if _is_batched(shape) else shape
        return tuple(self._size if size is None else size for size in rest)

    def _input(self, name: str, rows: int) -> Array:
        shape, dtype = self._row_shape(name), self._dtypes[name]
        if not _is_batched(self._shapes[name]):
            return self._row(shape, dtype, 0)
        return np.stack([self._row(shape, dtype, row) for row in range(rows)])

    def _row(self, shape: tuple[int, ...], dtype: np.dtype[Any], row: int) -> Array:
        count = int(np.prod(shape))
        if dtype.hasobject:
            texts = np.empty(count, object)
            texts[:] = [self._texts[(index + row) % len(self._texts)] for index in range(count)]
            return texts.reshape(shape)
        index = np.arange(count)
        if dtype.kind == "b" or dtypes.by_numpy(dtype).limits:
            # Indices, sizes and class numbers: small, and no 0 where there is only one.
            return ((index + row + 1) % (2 if dtype.kind == "b" else 3)).astype(dtype).reshape(shape)
        if dtype.fields:
            return ((index + row + 1) % 3).astype(dtype[0]).view(dtype).reshape(shape)
        return ((0.1 + 0.37 * index + 0.51 * row) % 1.0).astype(dtype).reshape(shape)


class Recorded:
    """Rows taken from recorded warm-up requests of one signature."""

    def __init__(self, signature: Signature, requests: Sequence[Tensors]) -> None:
        self._batched = all(_is_batched(shape_of(signature, spec)) for spec in signature.inputs.values())
        self._first = dict(requests[0])
        alike = [request for request in requests if _row_shapes(request) == _row_shapes(self._first)]
        if self._batched:
            self._first = {name: np.concatenate([request[name] for request in alike]) for name in self._first}

    def batch(self, rows: int) -> dict[str, Array]:
        if not self._batched:
            return self._first
        return {name: array[np.arange(rows) % len(array)] for name, array in self._first.items()}


def _is_batched(shape: tuple[int | None, ...] | None) -> bool:
    return bool(shape) and shape is not None and shape[0] is None


def _row_shapes(request: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in request.items()}


def candidates(
    signature: Signature, recorded: Sequence[Tensors] = (), examples: Sequence[bytes] = ()
) -> Iterator[Sample]:
    """Samples to try in turn until the model takes one; only recorded ones where an input declares no rank.

    Args:
        signature: With `input_ranks` and `shape_free` already set.
        recorded: Bound inputs of recorded requests.
        examples: Serialized `tf.Example`s that the signature's parser takes, if it has one.
    """
    usable = [request for request in recorded if all(array.size for array in request.values())]
    if usable and signature.inputs:
        yield Recorded(signature, usable)
    if not all(_may_be_made_up(signature, spec) for spec in signature.inputs.values()):
        return
    shapes = [shape_of(signature, spec) for spec in signature.inputs.values()]
    open_sizes = any(size is None for shape in shapes if shape for size in shape[1:])
    takes_text = any(spec.dtype.numpy.hasobject for spec in signature.inputs.values())
    for texts in _texts(examples) if takes_text else [()]:
        for size in _SIZES if open_sizes else _SIZES[:1]:
            sample = MadeUp(signature, size, texts)
            if sample.elements <= _MAX_ELEMENTS:
                yield sample


def _may_be_made_up(signature: Signature, spec: TensorSpec) -> bool:
    """Whether a wrong guess can do no worse than an error.

    Kernels abort the process on wrong ranks of numbers, and whoever set `input_ranks` may have erred: where the model
    itself declares no rank, only recorded requests are run.
    """
    if spec.shape is not None or signature.shape_free:
        return True
    return spec.dtype.name == "string" and spec.name in signature.input_ranks


def _texts(examples: Sequence[bytes]) -> list[Sequence[bytes]]:
    """Pairs of strings that models of many kinds can read: their tf.Examples, numbers (and words), pictures."""
    return [*([examples] if examples else []), (b"1", b"2"), (_png(64), _png(192))]


def _png(level: int, side: int = 8) -> bytes:
    """A square RGB picture of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + bytes([level, 255 - level, level]) * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def feature_examples(features: Mapping[str, tuple[int, int]]) -> list[bytes]:
    """Two serialized `tf.Example`s with these features, as (`DataType` number, number of values)."""
    from tensorflow.core.example.example_pb2 import Example

    made = []
    for row in range(2):
        example = Example()
        for name, (dtype, count) in sorted(features.items()):
            feature = example.features.feature[name]
            if dtype == 7:
                feature.bytes_list.value.extend([b"1", b"2"][row] for _ in range(count))
            elif dtype == 9:
                feature.int64_list.value.extend((index + row + 1) % 3 for index in range(count))
            else:
                feature.float_list.value.extend((0.1 + 0.37 * index + 0.51 * row) % 1.0 for index in range(count))
        made.append(example.SerializeToString())
    return made
