"""Inputs for the load-time probe and for warm-up: made up from a signature, or taken from recorded requests.

Made-up inputs respect the declared dtypes and shapes, as a client's inputs must, and are small. The module knows no
servable.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from embedserve.saved_model.judge.probe_texts import Examples, Features, Kind, Pictures, Pieces, Texts, Words
from embedserve.servable import Array, Tensors
from embedserve.signature import Signature, TensorSpec
from embedserve.tensors import dtypes

__all__ = ["MadeUp", "Recorded", "Sample", "candidates", "example_of", "shape_of"]

# Sizes for unknown dimensions after the first: a short text or a small vector, a single element, a thumbnail, a
# photograph.
_SIZES = (4, 1, 32, 224)
# Most elements per input and row; a larger made-up input is skipped to keep the load short.
_MAX_ELEMENTS = 2**20
# Bytes of the inputs that are kept as a signature's example: a small picture in numbers, or a page of text.
_EXAMPLE_BYTES = 4096
# Rows of made-up integers hold indices, sizes and class numbers: small, and never negative.
_SMALL_INTEGERS = (0, 2)
# Largest float of an unlike row; a loop with a data-dependent length still ends.
_LARGE = 1e3
_TINY = 1e-6


class Sample(Protocol):
    """Inputs of any number of rows, of which no two neighbours are equal."""

    def batch(self, rows: int) -> dict[str, Array]:
        """Inputs of `rows` rows; an input without a leading unknown dimension has a single value."""

    def unlike(self, random: np.random.Generator) -> Iterator[dict[str, Array]]:
        """Yield inputs of a single row, without end, with different length, sign, magnitude and number of values.

        All rows have the sizes of `batch`. The model may refuse a row. The iterator is empty where an input has no
        rows.
        """


def shape_of(signature: Signature, spec: TensorSpec) -> tuple[int | None, ...] | None:
    """Declared shape, or the rank that `input_ranks` adds; element-wise signatures take a plain row of values."""
    if spec.shape is not None:
        return spec.shape
    if spec.name in signature.input_ranks:
        return (None,) * signature.input_ranks[spec.name]
    return (None,) if signature.shape_free else None


class MadeUp:
    """Small numbers, or strings of a single family, in the declared shapes.

    Args:
        signature: The signature to feed.
        size: Size for each unknown dimension after the first.
        texts: Family for string inputs.
    """

    def __init__(self, signature: Signature, size: int, texts: Texts) -> None:
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._batched: dict[str, bool] = {}
        for spec in signature.inputs.values():
            shape = shape_of(signature, spec)
            if shape is None:
                raise ValueError(f"the rank of {spec.name!r} is unknown")
            self._batched[spec.name] = _is_batched(shape)
            rest = shape[1:] if _is_batched(shape) else shape
            self._shapes[spec.name] = tuple(size if each is None else each for each in rest)
        self._dtypes = {spec.name: spec.dtype.numpy for spec in signature.inputs.values()}
        self._texts = texts

    @property
    def elements(self) -> int:
        """Elements of the largest input of one row."""
        return max((int(np.prod(shape)) for shape in self._shapes.values()), default=0)

    def batch(self, rows: int) -> dict[str, Array]:
        return {name: self._input(name, rows) for name in self._shapes}

    def unlike(self, random: np.random.Generator) -> Iterator[dict[str, Array]]:
        if not self._shapes or not all(self._batched.values()):
            return
        yield {name: self._input(name, 2)[:1] for name in self._shapes}
        yield {name: self._input(name, 2)[1:] for name in self._shapes}
        texts = dict.fromkeys(self._shapes, self._texts)
        yield from _unlike_rows(self._shapes, self._dtypes, texts, {}, random)

    def _input(self, name: str, rows: int) -> Array:
        shape, dtype = self._shapes[name], self._dtypes[name]
        if not self._batched[name]:
            return self._row(shape, dtype, 0)
        return np.stack([self._row(shape, dtype, row) for row in range(rows)])

    def _row(self, shape: tuple[int, ...], dtype: np.dtype[Any], row: int) -> Array:
        count = int(np.prod(shape))
        if dtype.hasobject:
            return _objects([self._texts.ordinary(index + row) for index in range(count)], shape)
        index = np.arange(count)
        if dtype.kind == "b" or dtypes.by_numpy(dtype).limits:
            # No 0 for a single element.
            return ((index + row + 1) % (2 if dtype.kind == "b" else 3)).astype(dtype).reshape(shape)
        if dtype.fields:
            return ((index + row + 1) % 3).astype(dtype[0]).view(dtype).reshape(shape)
        return ((0.1 + 0.37 * index + 0.51 * row) % 1.0).astype(dtype).reshape(shape)


class Recorded:
    """Rows taken from recorded warm-up requests of one signature.

    Args:
        signature: The signature of the requests.
        requests: Bound inputs; requests with other sizes than the first are left out.
        features: Features that the signature parses out of its strings, where the signature parses `tf.Example`s.
    """

    def __init__(
        self, signature: Signature, requests: Sequence[Tensors], features: Features = MappingProxyType({})
    ) -> None:
        self._batched = all(_is_batched(shape_of(signature, spec)) for spec in signature.inputs.values())
        self._first = dict(requests[0])
        self._features = features
        alike = [request for request in requests if _row_shapes(request) == _row_shapes(self._first)]
        if self._batched:
            self._first = {name: np.concatenate([request[name] for request in alike]) for name in self._first}

    def batch(self, rows: int) -> dict[str, Array]:
        if not self._batched:
            return self._first
        return {name: array[np.arange(rows) % len(array)] for name, array in self._first.items()}

    def unlike(self, random: np.random.Generator) -> Iterator[dict[str, Array]]:
        if not self._batched or not self._first:
            return
        arrays = self._first
        count = len(next(iter(arrays.values())))
        rows = ({name: array[row : row + 1] for name, array in arrays.items()} for row in range(count))
        texts = {name: self._texts(array) for name, array in arrays.items() if array.dtype.hasobject}
        ranges = {name: _range(array) for name, array in arrays.items() if not array.dtype.hasobject}
        made_up = _unlike_rows(_row_shapes(arrays), {n: a.dtype for n, a in arrays.items()}, texts, ranges, random)
        for _ in range(count):
            yield next(rows)
            yield next(made_up)
        yield from made_up

    def _texts(self, array: Array) -> Texts:
        return Examples(self._features) if self._features else Pieces(array.ravel().tolist())


def _unlike_rows(
    shapes: Mapping[str, tuple[int, ...]],
    types: Mapping[str, np.dtype[np.generic]],
    texts: Mapping[str, Texts],
    ranges: Mapping[str, tuple[int, int]],
    random: np.random.Generator,
) -> Iterator[dict[str, Array]]:
    """Yield a row of each kind, then rows that mix the kinds of inputs."""
    for turn in itertools.count():
        kinds = list(Kind)
        row = {}
        for name, shape in shapes.items():
            kind = kinds[turn] if turn < len(kinds) else kinds[random.integers(len(kinds))]
            if types[name].hasobject:
                count = int(np.prod(shape))
                row[name] = _objects([texts[name].unlike(kind, random) for _ in range(count)], shape)[None]
            else:
                row[name] = _numbers(kind, shape, types[name], ranges.get(name, _SMALL_INTEGERS), random)[None]
        yield row


def _numbers(
    kind: Kind, shape: tuple[int, ...], dtype: np.dtype[Any], seen: tuple[int, int], random: np.random.Generator
) -> Array:
    """A row of numbers; integers stay within the range `seen`, or are zero."""
    count = int(np.prod(shape))
    plain = dtype[0] if dtype.fields else dtype
    if plain.kind == "b":
        found = np.zeros(count) if kind is Kind.NOTHING else random.integers(0, 2, count)
    elif dtype.fields or dtypes.by_numpy(plain).limits:
        low, high = (0, 255) if plain == np.uint8 and not dtype.fields else seen  # A uint8 is a pixel.
        found = random.integers(low, high + 1, count)
        if kind is Kind.SMALL:
            found[:] = found[:1]
        found = np.zeros(count, np.int64) if kind is Kind.NOTHING else found
    else:
        scale = {Kind.LARGE: _LARGE, Kind.NOTHING: 0.0, Kind.SMALL: _TINY, Kind.PADDED: -1.0}[kind]
        found = random.uniform(-1, 1, count) * scale if kind is not Kind.PADDED else -random.uniform(0, 1, count)
    if kind is Kind.PADDED:
        found[(count + 1) // 2 :] = 0
    typed = found.astype(plain)
    return (typed.view(dtype) if dtype.fields else typed).reshape(shape)


def _range(array: Array) -> tuple[int, int]:
    """Least and greatest of recorded integers."""
    if array.dtype.kind == "b" or array.dtype.fields or not dtypes.by_numpy(array.dtype).limits or not array.size:
        return _SMALL_INTEGERS
    return int(array.min()), int(array.max())


def _objects(values: Sequence[bytes], shape: tuple[int, ...]) -> Array:
    found = np.empty(len(values), object)
    found[:] = values
    return found.reshape(shape)


def _is_batched(shape: tuple[int | None, ...] | None) -> bool:
    return bool(shape) and shape is not None and shape[0] is None


def _row_shapes(request: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: array.shape[1:] for name, array in request.items()}


def candidates(
    signature: Signature, recorded: Sequence[Tensors] = (), features: Features = MappingProxyType({})
) -> Iterator[Sample]:
    """Yield samples to try until the model takes one; only recorded samples where an input declares no rank.

    Args:
        signature: The signature with `input_ranks` and `shape_free` already set.
        recorded: Bound inputs of recorded requests.
        features: Features that the signature's parser of `tf.Example`s reads, if any.
    """
    usable = [request for request in recorded if all(array.size for array in request.values())]
    if usable and signature.inputs:
        yield Recorded(signature, usable, features)
    if not all(_may_be_made_up(signature, spec) for spec in signature.inputs.values()):
        return
    shapes = [shape_of(signature, spec) for spec in signature.inputs.values()]
    open_sizes = any(size is None for shape in shapes if shape for size in shape[1:])
    takes_text = any(spec.dtype.numpy.hasobject for spec in signature.inputs.values())
    families: list[Texts] = [*([Examples(features)] if features else []), Words(), Pictures()]
    for texts in families if takes_text else families[:1]:
        for size in _SIZES if open_sizes else _SIZES[:1]:
            sample = MadeUp(signature, size, texts)
            if sample.elements <= _MAX_ELEMENTS:
                yield sample


def example_of(sample: Sample) -> dict[str, Array]:
    """A copy of the sample's request of one row; empty where the request is large."""
    inputs = sample.batch(1)
    size = sum(sum(map(len, array.flat)) if array.dtype.hasobject else array.nbytes for array in inputs.values())
    return {name: array.copy() for name, array in inputs.items()} if size <= _EXAMPLE_BYTES else {}


def _may_be_made_up(signature: Signature, spec: TensorSpec) -> bool:
    """Whether a wrong guess causes at most an error.

    Kernels abort the process on wrong ranks of numbers, and `input_ranks` may be wrong. Where the model declares no
    rank, only recorded requests are run.
    """
    if spec.shape is not None or signature.shape_free:
        return True
    return spec.dtype.name == "string" and spec.name in signature.input_ranks
