"""Judges each signature at load: is it stateless, does it take any shape, may requests share a run?

`describe` reads the graph; `probe` runs two different rows together and alone and compares. Called by the loader, with
the answer in `Signature.batching`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping

from embedserve.config import Batching
from embedserve.errors import DeadlineExceededError, ServingError
from embedserve.saved_model.graph import GraphReader, Operations
from embedserve.saved_model.judge.compare import equal
from embedserve.saved_model.judge.probe_inputs import Sample, shape_of
from embedserve.servable import Servable, Tensors
from embedserve.signature import BatchingVerdict, Signature, TensorSpec

__all__ = ["describe", "find_sample", "needs_probe", "probe", "unguarded_inputs"]

logger = logging.getLogger("embedserve")

# A made-up input may send a loop anywhere.
_PATIENCE = 30.0
_TO_BE_PROBED = BatchingVerdict(False, "not probed")


def describe(
    signature: Signature,
    operations: Operations,
    graph: GraphReader | None,
    input_ranks: Mapping[str, int],
    batching: Batching,
) -> Signature:
    """The signature with everything that can be known without running it; see `needs_probe`.

    Args:
        signature: As stored.
        operations: What its part of the graph does.
        graph: To see what parses its inputs; None for a model without one.
        input_ranks: Ranks of unknown-rank inputs, set by the user or seen in recorded requests.
        batching: The model's option.
    """
    ranks = {name: rank for name, rank in input_ranks.items() if name in signature.inputs}
    for name, spec in signature.inputs.items():
        if (
            graph is not None
            and spec.shape is None
            and name not in ranks
            and spec.dtype.name == "string"
            and graph.is_parsed(spec.tensor_name)
        ):
            ranks[name] = 1
    # With two inputs, broadcasting could make an output as large as the product of both.
    described = dataclasses.replace(
        signature,
        stateless=operations.stateless,
        shape_free=operations.element_wise and len(signature.inputs) <= 1,
        input_ranks=ranks,
    )
    return dataclasses.replace(described, batching=_static_verdict(described, operations, batching))


def _static_verdict(signature: Signature, operations: Operations, batching: Batching) -> BatchingVerdict:
    if batching is not True and batching is not False:
        if operations.writes is not None:
            return BatchingVerdict(False, f"{operations.writes} writes state")
        if operations.random is not None:
            return BatchingVerdict(False, f"{operations.random} draws random numbers")
        if not signature.inputs:
            return BatchingVerdict(False, "it has no input")
        for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
            for spec in specs.values():
                if not _leads_with_rows(spec):
                    return BatchingVerdict(False, f"{kind} {spec.name!r} is {spec}: no leading unknown dimension")
        return _TO_BE_PROBED
    return BatchingVerdict(batching, f"batching={batching}")


def _leads_with_rows(spec: TensorSpec) -> bool:
    return bool(spec.shape) and spec.shape is not None and spec.shape[0] is None


def needs_probe(signature: Signature) -> bool:
    """Whether only a run can tell if the signature batches."""
    return signature.batching is _TO_BE_PROBED


def unguarded_inputs(signature: Signature) -> list[str]:
    """Inputs of unknown rank that nothing bounds: a kernel that aborts on a rank can be reached through them."""
    return [name for name, spec in signature.inputs.items() if shape_of(signature, spec) is None]


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
