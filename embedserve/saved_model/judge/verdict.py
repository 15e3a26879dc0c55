"""Judges each signature at load by its graph: statelessness, freedom of shape, and whether requests may share a run.

The answer is in `Signature.batching`; `needs_probe` tells where only a run can give the answer. A proof of row
independence or an operation that mixes rows makes a run unnecessary. The module runs no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from embedserve.config import Batching
from embedserve.saved_model.files.graph import GraphReader, Operations
from embedserve.saved_model.judge.probe_inputs import shape_of
from embedserve.saved_model.judge.rows.walk import RowAnalysis
from embedserve.signature import BatchingVerdict, Signature, TensorSpec

__all__ = ["by_probe", "describe", "needs_probe", "unguarded_inputs"]

PROVEN = "each operation keeps the rows apart"


def describe(
    signature: Signature,
    operations: Operations,
    graph: GraphReader | None,
    rows: RowAnalysis | None,
    input_ranks: Mapping[str, int],
    batching: Batching,
) -> Signature:
    """Return the signature with all facts that are known without a run; see `needs_probe`.

    Args:
        signature: The signature as stored.
        operations: Effects of the signature's part of the graph.
        graph: Finds parsers of the signature's inputs; None for a model without a graph.
        rows: Judges whether the graph keeps rows apart; None for a model without a graph.
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
    return dataclasses.replace(described, batching=_static_verdict(described, operations, rows, batching))


def _static_verdict(
    signature: Signature, operations: Operations, rows: RowAnalysis | None, batching: Batching
) -> BatchingVerdict:
    if batching is True or batching is False:
        return BatchingVerdict(batching, f"batching={batching}", "option")
    for operation, does in ((operations.writes, "writes state"), (operations.random, "draws random numbers")):
        if operation is not None:
            return BatchingVerdict(False, f"{operation} {does}", "graph", operation)
    if not signature.inputs:
        return BatchingVerdict(False, "it has no input", "graph")
    for name, composite in signature.composites.items():
        return BatchingVerdict(False, f"output {name!r} is {composite.kind}, which cannot be cut into rows", "graph")
    shapes: dict[str, tuple[int | None, ...]] = {}
    for spec in signature.inputs.values():
        shape = spec.shape if spec.shape is not None else (None,) * signature.input_ranks.get(spec.name, 0)
        if not shape or shape[0] is not None:
            return _without_rows("input", spec)
        # Element-wise signatures take any shape: a proof for a plain row of values holds for more dimensions too.
        shapes[spec.tensor_name] = (None,) if signature.shape_free else shape
    for spec in signature.outputs.values():
        if spec.shape is not None and spec.shape[:1] != (None,):
            return _without_rows("output", spec)
    if rows is None:
        return BatchingVerdict(False, "not probed")
    return _verdict_of(signature, rows, shapes)


def _without_rows(kind: str, spec: TensorSpec) -> BatchingVerdict:
    return BatchingVerdict(False, f"{kind} {spec.name!r} is {spec}: no leading unknown dimension", "graph")


def _verdict_of(
    signature: Signature, rows: RowAnalysis, shapes: Mapping[str, tuple[int | None, ...]]
) -> BatchingVerdict:
    found = rows.judge(shapes, [spec.tensor_name for spec in signature.outputs.values()])
    if found.proven:
        return BatchingVerdict(True, PROVEN, "proof")
    obstacle = found.mixed or found.unproven
    assert obstacle is not None
    reason = f"{obstacle.op} {obstacle.node!r} {obstacle.why}"
    return BatchingVerdict(False, reason, "graph" if found.mixed else "none", obstacle.op, obstacle.node)


def needs_probe(signature: Signature) -> bool:
    """Whether only a run can tell if the signature batches."""
    return signature.batching.by == "none"


def by_probe(open_question: BatchingVerdict, answer: BatchingVerdict) -> BatchingVerdict:
    """The verdict of a probe, with the obstacle that the graph left open."""
    reason = answer.reason
    if open_question.operation:
        reason += f"; {open_question.reason}"
    return BatchingVerdict(answer.batchable, reason, "probe", open_question.operation, open_question.node)


def unguarded_inputs(signature: Signature) -> list[str]:
    """Inputs of unknown rank without any bound: a request can reach a kernel that aborts on a rank."""
    return [name for name, spec in signature.inputs.items() if shape_of(signature, spec) is None]
