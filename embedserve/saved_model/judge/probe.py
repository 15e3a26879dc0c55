"""Runs a signature on inputs that nobody sent, at its load: which sample it takes, and whether rows batch.

A probe decides only what the graph leaves open; `verdict` says where. Knows no graph.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from embedserve.errors import DeadlineExceededError, ServingError
from embedserve.saved_model.judge.compare import equal
from embedserve.saved_model.judge.probe_inputs import Sample
from embedserve.servable import Servable, Tensors
from embedserve.signature import BatchingVerdict, Signature

__all__ = ["find_sample", "probe"]

logger = logging.getLogger("embedserve")

# Seconds; a made-up input may send a loop anywhere.
_PATIENCE = 30.0


def find_sample(servable: Servable, signature: Signature, samples: Iterable[Sample]) -> Sample | None:
    """The first sample that the model takes, one row of it, or None."""
    for sample in samples:
        try:
            servable.run(signature.name, signature.bind(sample.batch(1)), timeout=_PATIENCE)
        except DeadlineExceededError:
            logger.info("signature %r does not end on a made-up input", signature.name)
            return None
        except ServingError as error:
            logger.debug("signature %r takes no %r: %s", signature.name, sample, error)
        else:
            return sample
    return None


def probe(servable: Servable, signature: Signature, sample: Sample | None) -> BatchingVerdict:
    """Run two different rows together and each alone, and compare: exactly, for floats within 1e-5 relative."""
    if sample is None:
        return BatchingVerdict(False, "no input for the load-time probe could be made up: record warm-up requests")
    both = sample.batch(2)
    rows: list[Tensors] = [{name: array[row : row + 1] for name, array in both.items()} for row in range(2)]
    if all(equal(rows[0][name], rows[1][name]) for name in both):
        return BatchingVerdict(False, "the recorded requests are all alike: nothing to probe with")
    try:
        together = servable.run(signature.name, both, timeout=_PATIENCE)
        alone = [servable.run(signature.name, row, timeout=_PATIENCE) for row in rows]
    except ServingError as error:
        return BatchingVerdict(False, f"two rows together fail: {error}")
    for name, merged in together.items():
        if merged.ndim == 0 or len(merged) != 2:
            return BatchingVerdict(False, f"output {name!r} of two rows has shape {list(merged.shape)}")
        for row in range(2):
            if not equal(merged[row : row + 1], alone[row][name]):
                return BatchingVerdict(False, f"output {name!r} of a row depends on the other rows of its batch")
    return BatchingVerdict(True, "two rows together equal each alone")
