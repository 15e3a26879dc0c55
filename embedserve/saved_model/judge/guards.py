"""Operations whose kernels do not check operands: the rules for the operands, and the nodes of a model to guard.

`GUARDS` is the table; `python -m benchmarks.fuzz --kernels` found its rows. `find` says which nodes of a graph a
request's values reach unchecked; `guarding.py` puts a check before each node. The module runs no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import tensorflow as tf
from tensorflow.core.util.quantization import uniform_quant_ops_attr_pb2

from embedserve.concurrency.container import usable_memory
from embedserve.saved_model.files.graph import Body, GraphReader, called, node_name, words

if TYPE_CHECKING:
    from tensorflow.core.framework.attr_value_pb2 import AttrValue
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.framework.op_def_pb2 import OpDef

    from embedserve.saved_model.tensorflow_types import Tensor

__all__ = [
    "GUARDS",
    "UNGUARDED",
    "Found",
    "Guard",
    "Hazard",
    "NodeInputs",
    "find",
    "in_table",
    "is_chosen",
    "unguarded",
]

Condition: TypeAlias = object
"""A symbolic boolean tensor of one element, for TensorFlow's functions only."""

Operands: TypeAlias = Mapping[str, Any]
"""Symbolic tensors by the operation's names for its inputs; a list of tensors for an input that is a list."""


@dataclass(frozen=True)
class Guard:
    """A rule for the operands of an operation whose kernel does not check the rule.

    Attributes:
        operands: The inputs of the check, by the operation's names; the first input is at fault.
        rule: The words for a client: the requirement on the first operand.
        holds: Builds the check from the node and its operands: a boolean tensor of one element.
        harm: Effect of the operation on the process where the rule does not hold.
        makers: Operations whose outputs, and values computed from such outputs alone, need no check.
        at_fault: How many of the operands, from the first on, can break the rule.
    """

    operands: tuple[str, ...]
    rule: str
    holds: Callable[[NodeDef, Operands], Condition]
    harm: str
    makers: frozenset[str] = frozenset()
    at_fault: int = 1


@dataclass(frozen=True)
class Hazard:
    """A harm to the process by an operation without any check.

    Attributes:
        operand: The input at fault, by the operation's name for the input.
        harm: The harm in the words of the load log.
        where: Which nodes do the harm.
    """

    operand: str
    harm: str
    where: Callable[[NodeDef], bool] = lambda node: True


@dataclass(frozen=True)
class NodeInputs:
    """Inputs of a node, by the operation's names.

    Attributes:
        tensors: Names of the tensors, as used in the function or graph that holds the node.
        dtypes: `DataType` numbers, in the same order.
        lists: The inputs that are lists of tensors.
    """

    tensors: dict[str, list[str]]
    dtypes: dict[str, list[int]]
    lists: set[str]


@dataclass(frozen=True)
class Found:
    """An operation of a model whose operands need a check.

    Attributes:
        function: The function that holds the node; empty for the graph.
        node: The `NodeDef`.
        guard: The rule for the operands.
        given: Inputs of the node.
        inputs: Aliases of the signatures' inputs that the first operand comes from unchanged, if any.
    """

    function: str
    node: NodeDef
    guard: Guard
    given: NodeInputs
    inputs: Sequence[str] = ()

    @property
    def rule(self) -> str:
        """The rule with the names of the operation and of the input."""
        operand = self.guard.operands[0]
        where = ", ".join((f"node {self.node.name}", *(f"input {alias}" for alias in self.inputs)))
        return f"{operand} of {self.node.op} ({where}) {self.guard.rule}"

    @property
    def hazard(self) -> str:
        """The harm to the process where a model runs without the check."""
        return f"{self.node.op} {self.node.name!r}: it {self.guard.harm} where {self.guard.operands[0]} is not checked"


def _flat(tensor: object) -> Any:
    return tf.reshape(tensor, [-1])


def _all(*conditions: Condition) -> Condition:
    """Whether every element of every tensor is true."""
    return tf.reduce_all(tf.concat([_flat(condition) for condition in conditions], 0))


def _transform_length(node: NodeDef, operands: Operands) -> Condition:
    """The length of the last dimension must be positive, unless the input is empty."""
    return tf.logical_or(_all(_flat(operands["fft_length"])[-1:] > 0), tf.equal(tf.size(operands["input"]), 0))


def _fit_memory(sizes: Any, like: Tensor) -> Condition:
    """Whether a tensor of the given sizes and of `like`'s dtype fits into the memory of the machine."""
    size_in_bytes = tf.reduce_prod(_flat(tf.cast(sizes, tf.float64))) * like.dtype.size
    return _all(sizes >= 0, size_in_bytes <= float(usable_memory()))


def _image_sizes(node: NodeDef, operands: Operands) -> Condition:
    """The sizes cover all dimensions, or the height and the width of pictures."""
    count, dimensions = tf.size(operands["input_sizes"]), tf.rank(operands["out_backprop"])
    pictures = tf.logical_and(tf.equal(count, 2), tf.equal(dimensions, 4))
    complete = tf.logical_or(tf.equal(count, dimensions), pictures)
    return _all(complete, _fit_memory(operands["input_sizes"], operands["out_backprop"]))


def _product_sizes(node: NodeDef, operands: Operands) -> Condition:
    sizes = tf.cast(_flat(operands["a_shape"]), tf.int64)
    kept = 1 if "adjoint_a" in node.attr and node.attr["adjoint_a"].b else 0
    right = tf.shape(operands["b"], tf.int64)
    columns = right[:1] if "adjoint_b" in node.attr and node.attr["adjoint_b"].b else right[-1:]
    return _all(sizes >= 0, _fit_memory(tf.concat([sizes[kept : kept + 1], columns], 0), operands["b"]))


def _steps(node: NodeDef, operands: Operands) -> Condition:
    steps = operands["seq_len_max"]
    return _all(steps >= 0, steps <= tf.shape(operands["x"], tf.int64)[:1])


def _has_length(length: int) -> Callable[[NodeDef, Operands], Condition]:
    return lambda node, operands: tf.equal(tf.size(operands["orig_input_shape"]), length)


def _have_dimensions(count: int) -> Callable[[NodeDef, Operands], Condition]:
    return lambda node, operands: _all(*(tf.equal(tf.rank(tensor), count) for tensor in operands.values()))


def _covers_indices(node: NodeDef, operands: Operands) -> Condition:
    return tf.rank(operands["updates"]) >= tf.rank(operands["indices"]) - 1


def _segments(node: NodeDef, operands: Operands) -> Condition:
    data = operands["data"]
    row = tf.shape(data, tf.int64)[tf.rank(operands["segment_ids"]) :]
    return _fit_memory(tf.concat([_flat(tf.cast(operands["num_segments"], tf.int64)), row], 0), data)


def _list_length(*counts: str) -> Callable[[NodeDef, Operands], Condition]:
    return lambda node, operands: _all(*(operands[count] < _MOST_TENSORS for count in counts))


def _have_ranks(ranks: Mapping[str, int]) -> Callable[[NodeDef, Operands], Condition]:
    return lambda node, operands: _all(*(tf.equal(tf.rank(operands[name]), rank) for name, rank in ranks.items()))


def _element(node: NodeDef, operands: Operands) -> Condition:
    sizes = tf.cast(_flat(operands["element_shape"]), tf.float64)
    return _all(tf.reduce_prod(tf.maximum(sizes, 1)) < 2.0**62)


def _has_channels(node: NodeDef, operands: Operands) -> Condition:
    return _all(tf.shape(operands["x"])[-1:] > 0)


def _has_features(node: NodeDef, operands: Operands) -> Condition:
    numbers = uniform_quant_ops_attr_pb2.UniformQuantizedConvolutionDimensionNumbersAttr()
    given = node.attr["dimension_numbers"].s if "dimension_numbers" in node.attr else b""
    numbers.ParseFromString(given)
    dimension = numbers.kernel_input_feature_dimension if given else 1
    return _all(tf.shape(operands["rhs"])[dimension : dimension + 1] > 0)


def _rate(operand: str) -> Callable[[NodeDef, Operands], Condition]:
    def holds(node: NodeDef, operands: Operands) -> Condition:
        rate = tf.cast(operands[operand], tf.float64)
        return _all(tf.logical_or(rate <= 1e18, tf.equal(rate, math.inf)))

    return holds


def _turn(node: NodeDef, operands: Operands) -> Condition:
    return _all(tf.logical_not(tf.abs(operands["delta"]) > 2.0**24))


def _axis(node: NodeDef, operands: Operands) -> Condition:
    return _all(tf.cast(operands["axis"], tf.int64) > tf.int64.min)


def _row_splits(node: NodeDef, operands: Operands) -> Condition:
    """Each partition by splits begins at 0 and never decreases; the innermost partition ends within the values."""
    kinds = list(node.attr["row_partition_types"].list.s)
    good = [tf.constant(True)]
    for index, (partition, kind) in enumerate(zip(operands["row_partition_tensors"], kinds, strict=True)):
        if kind != b"ROW_SPLITS":
            continue
        splits = _flat(partition)
        good += [tf.equal(splits[:1], 0), splits[1:] >= splits[:-1]]
        if index == len(kinds) - 1:
            good.append(splits[-1:] <= tf.shape(operands["values"], splits.dtype)[:1])
    return _all(*good)


# These operations make ordered splits; values computed from ordered splits are ordered too.
_SPLIT_MAKERS = words("""
    StringSplit StringSplitV2 UnicodeDecode UnicodeDecodeWithOffsets StringNGrams RaggedRange RaggedGather Shape
    RaggedTensorFromVariant RaggedCross RaggedFillEmptyRows ParseExampleV2 ParseSequenceExampleV2 Where
    """)
# A length of an existing tensor is safe: the request already carries the tensor.
_LENGTH_MAKERS = words("Shape ShapeN Size TensorListLength")
_MOST_TENSORS = 2**24
"""Most tensors in a list. An empty list takes 32 bytes per tensor: 512 MB at the limit, for a number of four bytes."""
_CELL_RANKS = {
    **dict.fromkeys(words("x cs_prev h_prev w i cs f o ci co cs_grad h_grad"), 2),
    **dict.fromkeys(words("wci wcf wco b"), 1),
}
_ENDS, _HANGS = "ends the process", "never ends"
_NO_NAN = "must be numbers, none of them between 1e18 and infinity"

_FFT = Guard(("fft_length", "input"), "must be positive", _transform_length, _ENDS)
_SIZES = Guard(
    ("input_sizes", "out_backprop"),
    "must be at least 0, one for each dimension, and the whole fit into the memory",
    *(_image_sizes, _ENDS),
)
_PICTURES = Guard(("input", "out_backprop"), "must have 4 dimensions, as must out_backprop", _have_dimensions(4), _ENDS)
_VOLUMES = Guard(("input", "out_backprop"), "must have 5 dimensions, as must out_backprop", _have_dimensions(5), _ENDS)
_SCATTERED = Guard(("updates", "indices"), "must have all dimensions of indices but the last", _covers_indices, _ENDS)
_SEGMENTS = Guard(
    ("num_segments", "segment_ids", "data"), "must be so few that their output fits into the memory", _segments, _ENDS
)
_FEATURES = Guard(("rhs",), "must have at least one input feature", _has_features, _ENDS)
_FEW = "must be below 2**24"
_LSTM = Guard(("seq_len_max", "x"), "must be from 0 to the number of steps of x", _steps, _ENDS)

GUARDS: Mapping[str, Guard] = {
    **dict.fromkeys(("RFFT", "RFFT2D", "RFFT3D", "IRFFT", "IRFFT2D", "IRFFT3D"), _FFT),
    **dict.fromkeys(("Conv2DBackpropInput", "Conv3DBackpropInputV2", "DepthwiseConv2dNativeBackpropInput"), _SIZES),
    **dict.fromkeys(("BlockLSTM", "BlockLSTMV2"), _LSTM),
    **dict.fromkeys(("Conv2DBackpropFilter", "DepthwiseConv2dNativeBackpropFilter"), _PICTURES),
    "Conv3DBackpropFilterV2": _VOLUMES,
    **dict.fromkeys((f"TensorScatter{kind}" for kind in ("Update", "Add", "Sub", "Min", "Max")), _SCATTERED),
    "ScatterNd": _SCATTERED,
    **dict.fromkeys((f"UnsortedSegment{kind}" for kind in ("Sum", "Prod", "Min", "Max")), _SEGMENTS),
    **dict.fromkeys(("UniformQuantizedConvolution", "UniformQuantizedConvolutionHybrid"), _FEATURES),
    "QuantizedInstanceNorm": Guard(("x",), "must have at least one channel", _has_channels, _ENDS),
    "TensorListReserve": Guard(
        *(("num_elements",), _FEW, _list_length("num_elements"), _ENDS, _LENGTH_MAKERS),
    ),
    "TensorListResize": Guard(("size",), _FEW, _list_length("size"), _ENDS, _LENGTH_MAKERS),
    "TensorArrayV3": Guard(("size",), _FEW, _list_length("size"), _ENDS, _LENGTH_MAKERS),
    **dict.fromkeys(
        ("TensorListScatter", "TensorListScatterIntoExistingList"),
        Guard(("indices",), _FEW, _list_length("indices"), _ENDS),
    ),
    "TensorListScatterV2": Guard(
        ("indices", "num_elements"),
        "must be below 2**24, as must num_elements",
        *(_list_length("indices", "num_elements"), _ENDS, _LENGTH_MAKERS, 2),
    ),
    "LSTMBlockCellGrad": Guard(
        tuple(sorted(_CELL_RANKS, key="x".__ne__)),
        "must be a matrix, as must all others but wci, wcf, wco and b, which must be vectors",
        *(_have_ranks(_CELL_RANKS), _ENDS),
    ),
    "TensorListSplit": Guard(("element_shape",), "must be a shape of fewer than 2**62 elements", _element, _ENDS),
    "AvgPoolGrad": Guard(("orig_input_shape",), "must have 4 elements", _has_length(4), _ENDS),
    "AvgPool3DGrad": Guard(("orig_input_shape",), "must have 5 elements", _has_length(5), _ENDS),
    "GatherV2": Guard(("axis",), "must be an axis", _axis, _ENDS),
    "SparseTensorDenseMatMul": Guard(
        ("a_shape", "b"), "must be at least 0, and the product fit into the memory", _product_sizes, _ENDS
    ),
    "RaggedTensorToTensor": Guard(
        ("row_partition_tensors", "values"),
        "must start at 0, never decrease and end within the values, where they are row splits",
        *(_row_splits, _ENDS, _SPLIT_MAKERS),
    ),
    "AdjustHue": Guard(("delta",), "must be from -2**24 to 2**24", _turn, _HANGS),
    "RandomPoisson": Guard(("rate",), _NO_NAN, _rate("rate"), _HANGS),
    "RandomPoissonV2": Guard(("rate",), _NO_NAN, _rate("rate"), _HANGS),
    "StatelessRandomPoisson": Guard(("lam",), _NO_NAN, _rate("lam"), _HANGS),
    "StatelessRandomBinomial": Guard(("counts",), _NO_NAN, _rate("counts"), _HANGS),
}
"""Op type → rule for each of its runs."""

UNGUARDED: Mapping[str, Hazard] = {
    "MatrixLogarithm": Hazard("input", "it never ends for a singular matrix"),
    "UnicodeDecodeWithOffsets": Hazard(
        "input",
        "it ends the process if Tsplits is int32",
        lambda node: node.attr["Tsplits"].type == tf.int32.as_datatype_enum,
    ),
}
"""Op type → harm to the process, where no check is cheap."""

# The outputs of these operations are never chosen by a request.
_OWN = words("Const VarHandleOp ReadVariableOp Variable VariableV2 LookupTableSizeV2")
_PASS = words("Identity Cast Reshape ExpandDims Squeeze StopGradient Snapshot EnsureShape")
# Calls whose operands are the function's arguments, from the operand with this index on.
_CALLS = {
    **dict.fromkeys(("PartitionedCall", "StatefulPartitionedCall", "While", "StatelessWhile"), 0),
    **dict.fromkeys(("If", "StatelessIf", "Case", "StatelessCase"), 1),
}


def find(reader: GraphReader, inputs: Mapping[str, str], fetched: Iterable[str]) -> list[Found]:
    """Find every operation of the table that a run reaches and whose operands at fault a request can choose.

    Args:
        reader: Reader of the MetaGraph.
        inputs: Tensors that requests feed → aliases of the tensors.
        fetched: Tensors that are computed.
    """
    bodies = reader.bodies(fetched, inputs)
    origins = _Origins(bodies, {node_name(tensor): alias for tensor, alias in inputs.items()})
    found = []
    for body, node, operands in in_table(reader, bodies, GUARDS):
        guard = GUARDS[node.op]
        watched = [tensor for name in guard.operands[: guard.at_fault] for tensor in operands.tensors[name]]
        if any(is_chosen(body, tensor, guard.makers) for tensor in watched):
            aliases = sorted({alias for tensor in watched for alias in origins.of(body, tensor)})
            found.append(Found(body.function, node, guard, operands, aliases))
    return found


def unguarded(reader: GraphReader, inputs: Iterable[str], fetched: Iterable[str]) -> list[str]:
    """Possible harms of a request in spite of the table, a line for each dangerous operation of the model."""
    return [
        f"{node.op} {node.name!r}: {UNGUARDED[node.op].harm}"
        for body, node, operands in in_table(reader, reader.bodies(fetched, inputs), UNGUARDED)
        if UNGUARDED[node.op].where(node)
        and any(is_chosen(body, tensor, frozenset()) for tensor in operands.tensors[UNGUARDED[node.op].operand])
    ]


def in_table(
    reader: GraphReader, bodies: Iterable[Body], table: Mapping[str, object]
) -> Iterator[tuple[Body, NodeDef, NodeInputs]]:
    """Yield each node of the bodies whose operation is in the table, with the inputs by the operation's names."""
    for body in bodies:
        for node in body.nodes.values():
            definition = reader.definition(node.op) if node.op in table else None
            if definition is not None:
                yield body, node, _inputs_of(definition, node)


def _inputs_of(definition: OpDef, node: NodeDef) -> NodeInputs:
    def attribute(name: str) -> AttrValue:
        if name in node.attr:
            return node.attr[name]
        return next(attr.default_value for attr in definition.attr if attr.name == name)  # The node omits defaults.

    given = iter([source for source in node.input if not source.startswith("^")])
    found = NodeInputs({}, {}, set())
    for argument in definition.input_arg:
        if argument.type_list_attr:
            types = list(attribute(argument.type_list_attr).list.type)
        else:
            dtype = argument.type or attribute(argument.type_attr).type
            types = [dtype] * (attribute(argument.number_attr).i if argument.number_attr else 1)
        if argument.type_list_attr or argument.number_attr:
            found.lists.add(argument.name)
        found.dtypes[argument.name] = types
        found.tensors[argument.name] = [next(given) for _ in types]
    return found


def is_chosen(body: Body, tensor: str, makers: frozenset[str]) -> bool:
    """Whether a value of the request reaches a tensor by a path around `makers`."""
    todo, seen = [node_name(tensor)], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        node = body.nodes.get(name)
        if node is None:
            return True
        if node.op not in _OWN and node.op not in makers:
            todo += [node_name(source) for source in node.input if not source.startswith("^")]
    return False


class _Origins:
    """Finds the inputs of the signatures that a tensor equals, through calls and value-preserving operations."""

    def __init__(self, bodies: Sequence[Body], aliases: Mapping[str, str]) -> None:
        self._aliases = aliases
        self._bodies = {body.function: body for body in bodies}
        self._callers: dict[str, list[tuple[Body, NodeDef]]] = {}
        for body in bodies:
            for node in body.nodes.values():
                for name in called(node):
                    self._callers.setdefault(name, []).append((body, node))

    def of(self, body: Body, tensor: str, depth: int = 0) -> set[str]:
        name = node_name(tensor)
        node = body.nodes.get(name)
        if depth > 50:
            return set()
        if node is not None:
            return self.of(body, node.input[0], depth + 1) if node.op in _PASS else set()
        if not body.function:
            return {self._aliases[name]} if name in self._aliases else set()
        found: set[str] = set()
        for caller, call in self._callers.get(body.function, ()):
            if call.op in _CALLS and name in body.arguments:
                index = _CALLS[call.op] + body.arguments.index(name)
                found |= self.of(caller, call.input[index], depth + 1)
        return found
