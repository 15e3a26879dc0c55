"""Signatures with a declared number of rows: may a request have another number, and how must the graph change?

The graph must keep the rows apart for any number of rows, and `probe.objection_to_counts` must return None. The module
reads and changes protos only, and runs no model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from embedserve.config import FreeBatch
from embedserve.saved_model.files.graph import Operations
from embedserve.saved_model.judge.rows.walk import RowAnalysis
from embedserve.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

__all__ = ["declared_rows", "forget_rows", "freed", "kept", "obstacle"]

_WITH_DECLARED_SHAPES = frozenset(("While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase"))


def declared_rows(signature: Signature) -> int | None:
    """The first fixed dimension 0 of an input; None where no input declares a number of rows."""
    return next((spec.shape[0] for spec in signature.inputs.values() if spec.shape and spec.shape[0] is not None), None)


def obstacle(signature: Signature, operations: Operations, rows: RowAnalysis, option: FreeBatch) -> str:
    """Why the number of rows stays as declared; empty where the graph or the option allows any number.

    Args:
        signature: The signature as stored, with a fixed dimension 0.
        operations: Effects of the signature's part of the graph.
        rows: Judges whether the graph keeps rows apart.
        option: The model's option.
    """
    if option is False:
        return "it is False"
    problem = _undeclared(signature)
    if problem or option is True:
        return problem
    for operation, does in ((operations.writes, "writes state"), (operations.random, "draws random numbers")):
        if operation is not None:
            return f"{operation} {does}"
    shapes = {spec.tensor_name: spec.shape or () for spec in signature.inputs.values()}
    found = rows.judge(shapes, [spec.tensor_name for spec in signature.outputs.values()], free_batch=True)
    first = found.mixed or found.unproven
    return f"{first.op} {first.node!r} {first.why}" if first is not None else ""


def _undeclared(signature: Signature) -> str:
    """Why the declared shapes do not tell a number of rows; empty where the shapes do."""
    count = declared_rows(signature)
    for name, composite in signature.composites.items():
        return f"output {name!r} is {composite.kind}"
    for name in signature.defaults:
        return f"input {name!r} has a default, which has its own number of rows"
    for spec in signature.inputs.values():
        if not spec.shape or spec.shape[0] != count or count == 0:
            return f"input {spec.name!r} is {spec}, dimension 0 of an input is {count}"
    for spec in signature.outputs.values():
        if spec.shape is not None and spec.shape[:1] not in ((count,), (None,)):
            return f"output {spec.name!r} is {spec}, dimension 0 of the inputs is {count}"
    return ""


def freed(signature: Signature) -> Signature:
    """The signature with dimension 0 of every input and output unknown."""

    def side(specs: Iterable[TensorSpec]) -> dict[str, TensorSpec]:
        return {
            spec.name: dataclasses.replace(spec, shape=(None, *spec.shape[1:])) if spec.shape else spec
            for spec in specs
        }

    return dataclasses.replace(
        signature, inputs=side(signature.inputs.values()), outputs=side(signature.outputs.values())
    )


def kept(signature: Signature, why: str) -> Signature:
    """The signature as declared, with the reason `why` for its errors."""
    return dataclasses.replace(signature, fixed_rows=why)


def forget_rows(meta_graph: MetaGraphDef, signatures: Iterable[Signature]) -> None:
    """Remove the declared number of rows, and every shape inferred from the number, from a MetaGraph.

    TensorFlow folds sizes into constants where the graph declares the sizes. TensorFlow infers shapes again at the load
    of the graph.

    Args:
        meta_graph: The MetaGraph to change in place.
        signatures: The signatures whose dimension 0 becomes unknown.
    """
    graph = meta_graph.graph_def
    fed = {spec.tensor_name.partition(":")[0] for signature in signatures for spec in signature.inputs.values()}
    for node in graph.node:
        if node.name in fed and "shape" in node.attr and node.attr["shape"].shape.dim:
            node.attr["shape"].shape.dim[0].size = -1
    for function in graph.library.function:
        function.attr.pop("_input_shapes", None)
        for argument in function.arg_attr.values():
            argument.attr.pop("_output_shapes", None)
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        for node in nodes:
            node.attr.pop("_output_shapes", None)
            if node.op in _WITH_DECLARED_SHAPES:
                for shape in node.attr["output_shapes"].list.shape:
                    for dimension in shape.dim:
                        dimension.size = -1
