"""Decides by the graph whether the sizes of a request's inputs bound the time of a run.

Operations outside the table count as unbounded: loops, branches, queues, files, Python, strings, and each operation
that a guard watches. An operation that makes a tensor of a given size is bounded only if the size is no value of the
request. The module runs no model and measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import tensorflow as tf

from embedserve.saved_model.files.graph import GraphReader, Operations, words
from embedserve.saved_model.judge import guards
from embedserve.signature import Signature

if TYPE_CHECKING:
    from tensorflow.core.framework.node_def_pb2 import NodeDef

__all__ = ["BOUNDED", "SIZED", "objection"]

BOUNDED = words("""
    Const Identity IdentityN Cast Bitcast ReadVariableOp VarHandleOp Placeholder PlaceholderWithDefault NoOp
    StopGradient PreventGradient Snapshot EnsureShape PartitionedCall StatefulPartitionedCall Assert
    Add AddV2 AddN Sub Mul Div RealDiv DivNoNan MulNoNan FloorDiv TruncateDiv FloorMod Mod Maximum Minimum Pow Xlogy
    SquaredDifference Neg Abs Sign Square Sqrt Rsqrt Exp Expm1 Log Log1p Sin Cos Tan Asin Acos Atan Atan2 Sinh Cosh Tanh
    Asinh Acosh Atanh Sigmoid Relu Relu6 Elu Selu Softplus Softsign LeakyRelu Floor Ceil Round Rint Reciprocal Inv Erf
    Erfc Equal NotEqual Less LessEqual Greater GreaterEqual LogicalAnd LogicalOr LogicalNot Select SelectV2 ClipByValue
    IsNan IsInf IsFinite ZerosLike OnesLike Bucketize FakeQuantWithMinMaxArgs FakeQuantWithMinMaxVars
    MatMul BatchMatMul BatchMatMulV2 BatchMatMulV3 Einsum BiasAdd Conv1D Conv2D DepthwiseConv2dNative MaxPool MaxPoolV2
    AvgPool FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3 LRN Softmax LogSoftmax L2Loss MatrixBandPart
    Sum Mean Max Min Prod All Any ArgMax ArgMin EuclideanNorm Cumsum Cumprod TopK TopKV2
    Reshape Transpose Squeeze ExpandDims Shape ShapeN Size Rank Concat ConcatV2 Pack Unpack Split SplitV Slice
    StridedSlice Reverse ReverseV2 InvertPermutation BroadcastArgs BroadcastGradientArgs Where ResourceGather Gather
    GatherNd SpaceToDepth DepthToSpace
    """)
"""Operations that end in a time bounded by the sizes of the operands, for operands of any value."""

SIZED: Mapping[str, tuple[str, ...]] = {
    "Fill": ("dims",),
    "Tile": ("multiples",),
    "BroadcastTo": ("shape",),
    "Range": ("start", "limit", "delta"),
    "LinSpace": ("num",),
    "OneHot": ("depth",),
    "GatherV2": ("axis",),
    **dict.fromkeys(("Pad", "PadV2", "MirrorPad"), ("paddings",)),
    **dict.fromkeys(("ResizeBilinear", "ResizeNearestNeighbor", "ResizeBicubic"), ("size",)),
}
"""Bounded operations whose named operands choose the size of the output."""

# Sizes of tensors that the request already carries.
_SIZE_MAKERS = words("Shape ShapeN Size Rank")
_NO_NUMBERS = frozenset((tf.string.as_datatype_enum, tf.variant.as_datatype_enum))
_MAY_HOLD_TEXT = words("Const Assert")  # The text of a message.


def objection(reader: GraphReader | None, signature: Signature, operations: Iterable[Operations]) -> str:
    """Return why the sizes of the inputs do not bound the time of a run; empty where the sizes do.

    Args:
        reader: Reader of the MetaGraph; None for a model without a graph.
        signature: The signature to judge.
        operations: Effects of each signature of the version: a write of a variable holds up the readers.
    """
    if reader is None:
        return "it has no graph"
    for effects in operations:
        if effects.writes is not None:
            return f"{effects.writes} writes state of the version"
    for name, spec in signature.inputs.items():
        if spec.dtype.numpy.hasobject:
            return f"input {name!r} holds texts of any length"
    fed = [spec.tensor_name for spec in signature.inputs.values()]
    fetched = [spec.tensor_name for spec in signature.outputs.values()]
    bodies = reader.bodies(fetched, fed)
    functions = {body.function for body in bodies}
    for body in bodies:
        for node in body.nodes.values():
            if node.op in functions:  # Old style: the op of the node is the function.
                continue
            if node.op not in BOUNDED and node.op not in SIZED:
                return f"the sizes of the inputs do not bound {node.op} {node.name!r}"
            if node.op not in _MAY_HOLD_TEXT and _NO_NUMBERS & _types(node):
                return f"{node.op} {node.name!r} holds no numbers"
    for body, node, operands in guards.in_table(reader, bodies, SIZED):
        for operand in SIZED[node.op]:
            if any(guards.is_chosen(body, tensor, _SIZE_MAKERS) for tensor in operands.tensors[operand]):
                return f"a value chooses the size of {node.op} {node.name!r}"
    return ""


def _types(node: NodeDef) -> set[int]:
    found: set[int] = set()
    for value in node.attr.values():
        found.add(value.type)
        found.update(value.list.type)
    return found
