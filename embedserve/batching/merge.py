"""Merge, pad, split: a batch out of several requests' arrays, and each request's piece out of the batch's outputs.

Pure numpy, in run threads. Dimension 0 is rows everywhere. The queue decides on the mergeable requests
(batch_queue.py). TF Serving: batching_session.cc, batching_util.cc.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedserve.errors import Code, InferenceError, InvalidInputError
from embedserve.servable import Array, Tensors

__all__ = ["MAX_PADDED_RANK", "cut", "join", "merge", "split", "target_rows"]

MAX_PADDED_RANK = 6


def target_rows(rows: int, allowed: Sequence[int]) -> int:
    """Return the rows to run for a batch of `rows`: the smallest sufficient allowed size, else `rows`."""
    return min((size for size in allowed if size >= rows), default=rows)


def merge(requests: Sequence[Tensors], padding: int = 0, *, ragged: bool = False) -> dict[str, Array]:
    """Concatenate along dimension 0, then add `padding` copies of the last request's row 0.

    Args:
        requests: Same names and dtypes in each; every array is `[rows, ...]` with at least one row.
        padding: Rows to add; outputs of added rows are meaningless.
        ragged: Where other dimensions differ, pad the ends of each array to the largest size, with the array's own
            first element.

    Raises:
        InvalidInputError: `ragged`, and an array of a different shape is empty or of a rank over 6.
    """
    merged: dict[str, Array] = {}
    for name in requests[0]:
        arrays = [request[name] for request in requests]
        if ragged and any(array.shape[1:] != arrays[0].shape[1:] for array in arrays):
            merged[name] = _merge_ragged(arrays, padding)
            continue
        if padding:
            last = arrays[-1]
            arrays.append(np.broadcast_to(last[:1], (padding, *last.shape[1:])))
        merged[name] = np.concatenate(arrays)
    return merged


def _merge_ragged(arrays: Sequence[Array], padding: int) -> Array:
    rank = arrays[0].ndim
    if any(not 1 <= array.ndim <= MAX_PADDED_RANK or array.ndim != rank for array in arrays):
        raise InvalidInputError("Only tensors with rank from 1 to 6 can be padded.")
    if any(array.size == 0 for array in arrays):
        raise InvalidInputError("Got empty tensor in batch of non-empty tensors.")
    tail = tuple(map(max, zip(*(array.shape[1:] for array in arrays), strict=True)))
    merged = np.empty((sum(map(len, arrays)) + padding, *tail), arrays[0].dtype)
    end = 0
    for array in arrays:
        start, end = end, end + len(array)
        piece = merged[start:end]
        piece.fill(array[(0,) * rank])
        piece[tuple(map(slice, array.shape))] = array
    if padding:
        merged[end:] = merged[start]
    return merged


def split(outputs: Tensors, sizes: Sequence[int], rows: int) -> list[dict[str, Array]]:
    """Undo `merge`: views of each output, `sizes[i]` rows for request i; further rows are padding.

    The views are disjoint, so callers cannot see each other's writes. Each view keeps the whole batch's output alive.

    Raises:
        InferenceError: An output is a scalar, or the size along dimension 0 is not `rows` (FAILED_PRECONDITION).
    """
    pieces: list[dict[str, Array]] = [{} for _ in sizes]
    size = sizes[0]
    uniform = sizes.count(size) == len(sizes)
    for name, array in outputs.items():
        _check_rows(name, array, rows)
        if uniform and array.flags.c_contiguous:  # Iterating over a block per request makes the views faster.
            blocks = array[: size * len(sizes)].reshape(len(sizes), size, *array.shape[1:])
            for piece, block in zip(pieces, blocks, strict=True):
                piece[name] = block
            continue
        end = 0
        for piece, size_ in zip(pieces, sizes, strict=True):
            start, end = end, end + size_
            piece[name] = array[start:end]
    return pieces


def _check_rows(name: str, array: Array, rows: int) -> None:
    if array.ndim == 0:
        raise InferenceError(
            f"Batched output tensor has 0 dimensions: output {name!r} is a scalar, so this signature cannot be batched",
            code=Code.FAILED_PRECONDITION,
        )
    if len(array) != rows:
        raise InferenceError(
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
            f"tensors: output {name!r} has {len(array)} rows for {rows} rows of input",
            code=Code.FAILED_PRECONDITION,
        )


def cut(inputs: Tensors, start: int, stop: int) -> dict[str, Array]:
    """Rows `start` to `stop` of every array, as views."""
    return {name: array[start:stop] for name, array in inputs.items()}


def join(parts: Sequence[Tensors]) -> dict[str, Array]:
    """Concatenate the outputs of a cut request, in order.

    Raises:
        InferenceError: The parts' outputs do not fit together (INTERNAL).
    """
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    except ValueError as error:
        raise InferenceError(f"Tensor concat operation failed: {error}", code=Code.INTERNAL) from error
