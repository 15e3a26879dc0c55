"""The requests of one signature that are answered in every way: recorded ones, or made up and unlike each other.

Only requests that plain TensorFlow answers are kept. Blocks; knows no registry.
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

# 64 requests have some 2,000 distinct pairs.
MOST_REQUESTS = 64
# Two ordinary requests and one of each kind.
_FIRST = 6


@dataclass(frozen=True)
class Answered:
    """A request, and plain TensorFlow's answer to it.

    Attributes:
        inputs: Bound inputs.
        outputs: What plain TensorFlow answers to the request by itself.
        kind: Requests of one kind may share a run: the sizes of their inputs after the first are the same.
        rows: Size along dimension 0; 0 where the request has no rows.
    """

    inputs: Tensors
    outputs: Tensors
    kind: object
    rows: int

    def __str__(self) -> str:
        """The values of a small request, the shapes of a large one."""
        parts = []
        for name, array in self.inputs.items():
            size = sum(map(len, array.ravel())) if array.dtype.hasobject else 8 * array.size
            parts.append(f"{name} {array.tolist() if size <= 80 else f'{array.dtype} {list(array.shape)}'}")
        return ", ".join(parts)


def answered(plain: PlainModel, signature: Signature, requests: Sequence[Tensors]) -> list[Answered]:
    """Those of `requests` that plain TensorFlow answers, without repetitions."""
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
    """Requests of one row that are unlike each other; one request where the signature takes no rows.

    Args:
        plain: Answers them.
        signature: Whose requests they are.
        features: What the signature parses out of `tf.Example`s.
        recorded: Recorded requests; their sizes and values are taken where there are some.
        count: How many are wanted.
        seed: Other requests for each.
    """
    for sample in candidates(signature, recorded, features):
        first = answered(plain, signature, [signature.bind(sample.batch(1))])
        if first:
            count = min(count, MOST_REQUESTS)
            tried = itertools.islice(sample.unlike(np.random.default_rng(seed)), 2 * count)
            return answered(plain, signature, list(tried))[:count] or first
    return []


def shortened(signature: Signature, requests: Sequence[Answered], plain: PlainModel, seed: int) -> list[Answered]:
    """The requests cut to other lengths along their open dimensions after the first, and the whole ones."""
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
    """`count` groups of requests that may share a run, as indices: the first few together, then two to four at random.

    The first made-up requests are of every kind, so that their group is as unlike as any.

    Args:
        requests: To choose from.
        count: How many groups.
        seed: Other groups for each.
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
