"""The requests of a signature for every way of answering: recorded, or made up and unlike each other.

Only requests answered by plain TensorFlow are kept. The functions block; the module knows no registry.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from embedserve.errors import ServingError
from embedserve.saved_model.judge.compare import equal
from embedserve.saved_model.judge.probe_inputs import candidates, shape_of
from embedserve.saved_model.judge.probe_texts import Features
from embedserve.servable import Array, Tensors
from embedserve.signature import Signature, rows
from embedserve.verify.plain import PlainModel

__all__ = ["Answered", "answered", "made_up", "shortened"]

# Requests per signature: 64 requests have some 2,000 distinct pairs.
MOST_REQUESTS = 64
# Size of the first group: two ordinary requests and a request of each kind.
_FIRST = 6


@dataclass(frozen=True)
class Answered:
    """A request, with plain TensorFlow's answer.

    Attributes:
        inputs: Bound inputs.
        outputs: Plain TensorFlow's answer to the single request.
        kind: Sizes of the inputs after the first dimension. Requests of equal kind may share a run.
        rows: Size along dimension 0; 0 for a request without rows.
    """

    inputs: Tensors
    outputs: Tensors
    kind: object
    rows: int

    def __str__(self) -> str:
        """The values of a small request, the shapes of a large request."""
        parts = []
        for name, array in self.inputs.items():
            size = sum(map(len, array.ravel())) if array.dtype.hasobject else 8 * array.size
            parts.append(f"{name} {array.tolist() if size <= 80 else f'{array.dtype} {list(array.shape)}'}")
        return ", ".join(parts)


def answered(plain: PlainModel, signature: Signature, requests: Sequence[Tensors]) -> list[Answered]:
    """Keep the requests answered by plain TensorFlow, without repetitions and at most `MOST_REQUESTS`."""
    found: list[Answered] = []
    for inputs in requests:
        if len(found) == MOST_REQUESTS:
            break
        if any(_same(inputs, other.inputs) for other in found):
            continue
        try:
            outputs = plain.answer(signature, inputs)
        except ServingError:
            continue
        batched = all((shape_of(signature, spec) or (0,))[0] is None for spec in signature.inputs.values())
        kind = tuple((name, array.shape[1:]) for name, array in sorted(inputs.items()))
        found.append(Answered(inputs, outputs, kind, rows(inputs) if batched and inputs else 0))
    return found


def made_up(
    plain: PlainModel, signature: Signature, features: Features, recorded: Sequence[Tensors], count: int, seed: int
) -> list[Answered]:
    """Make up requests of a single row, unlike each other; a single request if the signature takes no rows.

    Args:
        plain: Answers the requests.
        signature: The requested signature.
        features: The features parsed from `tf.Example`s by the signature.
        recorded: Recorded requests as patterns for sizes and values, if any.
        count: The wanted number of requests.
        seed: Seed of the random choice.
    """
    for sample in candidates(signature, recorded, features):
        first = answered(plain, signature, [signature.bind(sample.batch(1))])
        if first:
            count = min(count, MOST_REQUESTS)
            tried = itertools.islice(sample.unlike(np.random.default_rng(seed)), 2 * count)
            return answered(plain, signature, list(tried))[:count] or first
    return []


def shortened(signature: Signature, requests: Sequence[Answered], plain: PlainModel, seed: int) -> list[Answered]:
    """The requests, and copies cut to random lengths along open dimensions after the first."""
    random = np.random.default_rng(seed)

    def cut(inputs: Tensors) -> Tensors:
        length = int(random.integers(1, 4))
        return {
            name: _cut(array, shape_of(signature, signature.inputs[name]), length) for name, array in inputs.items()
        }

    cuts = [cut(request.inputs) for request in requests if request.rows]
    mixed = itertools.chain.from_iterable(zip((request.inputs for request in requests), cuts, strict=False))
    return answered(plain, signature, list(mixed))


def _cut(array: Array, shape: tuple[int | None, ...] | None, length: int) -> Array:
    declared = shape or (None,) * array.ndim
    sizes = [slice(length) if size is None and place else slice(None) for place, size in enumerate(declared)]
    return array[tuple(sizes)]


def _same(first: Tensors, second: Tensors) -> bool:
    return all(equal(array, second[name], 0.0) for name, array in first.items())


def groups(requests: Sequence[Answered], count: int, seed: int, *, ragged: bool = False) -> Iterator[list[int]]:
    """Yield `count` groups of requests that may share a run, as indices.

    First comes a group per kind from the first requests, then groups of two to four at random. The first made-up
    requests are of every kind, so the first group is as mixed as possible.

    Args:
        requests: The requests to choose from.
        count: The number of groups.
        seed: Seed of the random choice.
        ragged: Whether requests of different sizes may share a run.
    """
    random = np.random.default_rng(seed)
    kinds: dict[object, list[int]] = {}
    for index, request in enumerate(requests):
        if request.rows:
            kinds.setdefault(None if ragged else request.kind, []).append(index)
    shareable = [indices for indices in kinds.values() if len(indices) > 1]
    for number in range(count if shareable else 0):
        alike = shareable[number % len(shareable)]
        if number < len(shareable):
            yield alike[:_FIRST]
            continue
        size = 2 if number % 3 else int(random.integers(2, 5))
        yield random.choice(alike, min(size, len(alike)), replace=False).tolist()
