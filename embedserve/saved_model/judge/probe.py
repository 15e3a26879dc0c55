"""Runs a signature at load on made-up inputs: accepted inputs, row independence, and the accepted number of rows.

A probe decides only the cases that the graph leaves open; `verdict` names the cases. The module knows no graph.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from embedserve.concurrency.load_pool import doing
from embedserve.errors import DeadlineExceededError, ServingError
from embedserve.saved_model.judge.compare import equal, is_rounding, rows_equal, usual_size
from embedserve.saved_model.judge.probe_inputs import Sample
from embedserve.servable import Array, Servable, Tensors
from embedserve.signature import BatchingVerdict, Signature

__all__ = ["find_sample", "objection_to_counts", "probe"]

logger = logging.getLogger("embedserve")

# Seconds per run; a made-up input may make a loop very long.
_PATIENCE = 30.0
# The probe tries `_TRIED` rows alone, of which the model may refuse some; up to `_ROWS` rows then share runs. The first
# two rows are ordinary, the next four each differ in another way.
_TRIED = 8
_ROWS = 6
# A fixed seed gives a version the same rows, and so the same verdict, at each load.
_SEED = 0


def _run(servable: Servable, signature: Signature, inputs: Tensors) -> Tensors:
    with doing(f"signature {signature.name!r} on made-up inputs", 2 * _PATIENCE):  # Some kernels cannot be stopped.
        return servable.run(signature.name, inputs, timeout=_PATIENCE)


def find_sample(servable: Servable, signature: Signature, samples: Iterable[Sample], rows: int = 1) -> Sample | None:
    """The first sample of which the model takes `rows` rows, or None."""
    for sample in samples:
        try:
            _run(servable, signature, signature.bind(sample.batch(rows)))
        except DeadlineExceededError:
            logger.info("signature %r does not end on a made-up input", signature.name)
            return None
        except ServingError as error:
            logger.debug("signature %r takes no %r: %s", signature.name, sample, error)
        else:
            return sample
    return None


def probe(servable: Servable, signature: Signature, sample: Sample | None) -> BatchingVerdict:
    """Run unlike rows together and each row alone, and compare the answers.

    Exact dtypes must be equal; floats may differ by 1e-5 of a row's own size.
    """
    if sample is None:
        return BatchingVerdict(False, "no input for the load-time probe could be made up: record warm-up requests")
    try:
        rows = _answered(servable, signature, sample)
        if len(rows) < 2:
            return BatchingVerdict(False, "the requests it takes are all alike: nothing to probe with")
        sharing = _sharing(servable, signature, rows)
        together = _Together(servable, signature, [*rows, *sharing])
        for order in [*_orders(len(rows)), *_orders_of_sharing(len(rows), len(sharing))]:
            reason = together.objection(order)
            if reason is not None:
                return BatchingVerdict(False, reason)
    except ServingError as error:
        return BatchingVerdict(False, f"rows together fail: {error}")
    return BatchingVerdict(True, "unlike rows together equal each alone")


def objection_to_counts(servable: Servable, signature: Signature, sample: Sample | None, declared: int) -> str | None:
    """Why a signature may not take another number of rows than declared; None if each row's answer stays equal.

    Args:
        servable: Loaded from a graph that does not know the declared number.
        signature: The signature with dimension 0 unknown.
        sample: Inputs of which the model takes the declared number of rows.
        declared: The declared number of rows.
    """
    if sample is None:
        return "no input for the load-time probe could be made up: record warm-up requests"
    count = 1
    try:
        _run(servable, signature, sample.batch(1))
        rows = _answered(servable, signature, sample)
        if len(rows) < 2:
            return "the requests it takes are all alike: nothing to probe with"
        together = _Together(servable, signature, rows)
        for count in dict.fromkeys((1, 2, declared, declared + 1)):
            reason = together.objection([place % len(rows) for place in range(count)])
            if reason is not None:
                return reason
    except ServingError as error:
        return f"{count} rows fail: {error}" if count > 1 else f"one row fails: {error}"
    return None


@dataclass(frozen=True)
class _Row:
    """A single row, and the model's answer to the row alone."""

    inputs: Tensors
    alone: Tensors


def _answered(servable: Servable, signature: Signature, sample: Sample) -> list[_Row]:
    """Pairwise different rows that the model answers alone, at most `_ROWS`.

    Raises:
        DeadlineExceededError: A run does not end.
    """
    found: list[_Row] = []
    for inputs in itertools.islice(sample.unlike(np.random.default_rng(_SEED)), _TRIED):
        if any(all(equal(inputs[name], row.inputs[name], 0.0) for name in inputs) for row in found):
            continue
        if (row := _row(servable, signature, inputs)) is not None:
            found.append(row)
        if len(found) == _ROWS:
            break
    return found


def _sharing(servable: Servable, signature: Signature, rows: Sequence[_Row]) -> list[_Row]:
    """For each input, the second row with the first row's value of the input, as far as the model answers.

    Made-up texts never coincide by chance. Only rows with a shared key show how a model treats such a key.
    """
    first, second = rows[0].inputs, rows[1].inputs
    found = []
    for name in first if len(first) > 1 else ():
        if (row := _row(servable, signature, {**second, name: first[name]})) is not None:
            found.append(row)
    return found


def _row(servable: Servable, signature: Signature, inputs: Tensors) -> _Row | None:
    """Run the model on a made-up row; None for a refused row."""
    try:
        return _Row(inputs, _run(servable, signature, inputs))
    except DeadlineExceededError:
        raise
    except ServingError as error:
        logger.debug("signature %r refuses a made-up row: %s", signature.name, error)
        return None


def _orders_of_sharing(count: int, sharing: int) -> list[tuple[int, ...]]:
    """The first row before and after the rows with a value of the first row."""
    order = (0, *range(count, count + sharing))
    return [order, order[::-1]] if sharing else []


def _orders(count: int) -> list[tuple[int, ...]]:
    """Orders in which rows share a run."""
    every = tuple(range(count))
    last = count - 1
    return list(dict.fromkeys([(0, 1), (1, 0), every, every[::-1], (last, last, 0, last)]))


class _Together:
    """Runs rows together and compares each answer with the row's answer alone."""

    def __init__(self, servable: Servable, signature: Signature, rows: Sequence[_Row]) -> None:
        self._servable = servable
        self._signature = signature
        self._rows = rows
        self._usual = {name: usual_size([row.alone[name] for row in rows]) for name in rows[0].alone}

    def objection(self, order: Sequence[int]) -> str | None:
        """Why the rows may not share a run, or None."""
        answers = self._run(order)
        for name, merged in answers.items():
            if merged.ndim == 0 or len(merged) != len(order):
                return f"output {name!r} of {len(order)} rows has shape {list(merged.shape)}"
        for place, index in enumerate(order):
            copies: Tensors | None = None
            for name, merged in answers.items():
                found, alone = merged[place : place + 1], self._rows[index].alone[name]
                if rows_equal(found, alone):
                    continue
                copies = copies or self._run([index] * len(order))
                if not self._is_rounding(found, copies[name][place : place + 1], alone, name):
                    return f"output {name!r} of a row depends on the other rows of its batch"
        return None

    def _is_rounding(self, found: Array, copies: Array, alone: Array, name: str) -> bool:
        return is_rounding(found, copies, alone, self._usual[name])

    def _run(self, order: Sequence[int]) -> Tensors:
        rows = [self._rows[index].inputs for index in order]
        inputs = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        return _run(self._servable, self._signature, inputs)
