"""Judges each signature at load by its graph: is it stateless, does it take any shape, may requests share a run?

The answer is in `Signature.batching`; `needs_probe` tells where only a run can give one. Runs nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from embedserve.config import Batching
from embedserve.saved_model.graph import GraphReader, Operations
from embedserve.saved_model.judge.probe_inputs import shape_of
from embedserve.signature import BatchingVerdict, Signature, TensorSpec

__all__ = ["describe", "needs_probe", "unguarded_inputs"]

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
