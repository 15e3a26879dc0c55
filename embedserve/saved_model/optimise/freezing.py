"""Freezes a model: makes a folded, smaller graph with variables as constants and with the contents of tables.

The module knows no servable, and only the tensors of a signature.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tensorflow as tf

from embedserve.saved_model import tensorflow_private
from embedserve.saved_model.files.graph import PER_RUN, VARIABLES
from embedserve.saved_model.optimise.folding import fold_channel_scales, share_constants
from embedserve.saved_model.run.graph_session import open_graph
from embedserve.saved_model.run.unset_state import reached
from embedserve.servable import Array

if TYPE_CHECKING:
    from tensorflow.core.framework.graph_pb2 import GraphDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef

    from embedserve.saved_model.tensorflow_types import Graph, Operation, Session, Tensor

__all__ = ["MAX_GRAPH_BYTES", "Frozen", "NotOptimisableError", "freeze"]

v1 = tf.compat.v1

MAX_GRAPH_BYTES = 2**31 - 1
"""Largest size of a protobuf message, and so of a graph with its constants, in bytes."""

_TABLES = frozenset(("HashTable", "HashTableV2", "MutableHashTable", "MutableHashTableV2"))
# Stateful in TensorFlow's registry, but without state that runs could change.
_HARMLESS = frozenset(
    (
        *("Placeholder", "PlaceholderV2", "PlaceholderWithDefault", "Assert", "Print", "PrintV2"),
        *("If", "While", "Case", "For", "PartitionedCall", "StatefulPartitionedCall", "XlaCallModule"),
        *("LookupTableFind", "LookupTableFindV2", "LookupTableSize", "LookupTableSizeV2"),
    )
)


class NotOptimisableError(Exception):
    """The model or a signature cannot be optimised as wanted; the message says why."""


@dataclass(frozen=True)
class Frozen:
    """A graph without variables.

    Attributes:
        graph_def: The graph; the model's fed and fetched tensors keep their names.
        tables: Keys and values of lookup tables, by node name.
    """

    graph_def: GraphDef
    tables: Mapping[str, tuple[Array, Array]]

    def open(self, graph: Graph) -> Session:
        """A session with filled tables over `graph`, into which `graph_def` has been imported."""
        feed: dict[Tensor, Array] = {}
        with graph.as_default():
            fills = [_fill(graph.get_operation_by_name(name), feed, *held) for name, held in self.tables.items()]
        session = open_graph(graph)
        if fills:
            session.run(fills, feed)
        return session


def freeze(session: Session, feeds: Sequence[str], fetches: Sequence[str]) -> Frozen:
    """Freeze the part of a session's graph that `fetches` need.

    Args:
        session: A session of the model; the function adds reads to the graph.
        feeds, fetches: Tensors that will be fed and fetched.

    Raises:
        NotOptimisableError: The graph would be too large for TensorFlow, or keeps state besides variables and tables.
        Exception: Any error of TensorFlow during the conversion.
    """
    _check_size(session.graph, fetches)
    _add_reads(session.graph)
    graph_def = session.graph.as_graph_def()
    _keep_feeds(graph_def, feeds)
    kept = list(dict.fromkeys([*feeds, *fetches]))
    nodes = [_node(name) for name in kept]
    inlined = _optimized(graph_def, kept, ["function"])
    with tensorflow_private.quiet_loading():
        constant = v1.graph_util.convert_variables_to_constants(session, inlined, nodes)
    if constant.ByteSize() > MAX_GRAPH_BYTES:
        raise _too_large(constant.ByteSize())
    folded = _optimized(constant, kept, ["constfold", "arithmetic", "dependency", "constfold"])
    scaled = fold_channel_scales(folded, kept)
    share_constants(scaled, kept)
    with tensorflow_private.quiet_loading():
        graph_def = v1.graph_util.extract_sub_graph(scaled, nodes)
    _check_state(graph_def)
    tables = {node.name: _contents(session, node.name) for node in graph_def.node if node.op in _TABLES}
    return Frozen(graph_def, tables)


def _optimized(graph_def: GraphDef, kept: Iterable[str], optimizers: Iterable[str]) -> GraphDef:
    optimized = tensorflow_private.optimized_graph(graph_def, kept, optimizers)
    if optimized is None:
        raise NotOptimisableError(f"TensorFlow {tf.__version__} has no way to optimise a graph ahead of its use")
    return optimized


def _check_size(graph: Graph, fetches: Iterable[str]) -> None:
    size = sum(_bytes_of(variable) for variable in reached(graph, fetches) if variable.type in VARIABLES)
    if size > MAX_GRAPH_BYTES:
        raise _too_large(size)


def _bytes_of(variable: Operation) -> int:
    shape = tf.TensorShape(variable.get_attr("shape"))
    dtype = tf.as_dtype(variable.get_attr("dtype"))
    return math.prod(shape) * dtype.size if shape.is_fully_defined() else 0


def _too_large(size: int) -> NotOptimisableError:
    return NotOptimisableError(
        f"its variables would make a graph of {size / 2**30:.1f} GB, and TensorFlow takes graphs up to "
        f"{(MAX_GRAPH_BYTES + 1) / 2**30:.0f} GB"
    )


def _add_reads(graph: Graph) -> None:
    """Add a read of each variable by the name that TensorFlow's conversion expects; models need not hold the read."""
    present = {operation.name for operation in graph.get_operations()}
    with graph.as_default():
        for operation in graph.get_operations():
            if operation.type == "VarHandleOp" and f"{operation.name}/Read/ReadVariableOp" not in present:
                tf.raw_ops.ReadVariableOp(
                    resource=operation.outputs[0],
                    dtype=operation.get_attr("dtype"),
                    name=f"{operation.name}/Read/ReadVariableOp",
                )


def _keep_feeds(graph_def: GraphDef, feeds: Iterable[str]) -> None:
    """Turn constants that a TensorFlow 1 model feeds into defaults; otherwise folding would remove the constants."""
    fed = {_node(name) for name in feeds}
    for node in [node for node in graph_def.node if node.op == "Const" and node.name in fed]:
        default = graph_def.node.add()
        default.CopyFrom(node)
        default.name = f"{node.name}/default"
        node.op = "PlaceholderWithDefault"
        node.input.insert(0, default.name)
        node.attr["shape"].shape.unknown_rank = True
        del node.attr["value"]


def _check_state(graph_def: GraphDef) -> None:
    """Refuse state besides variables, and besides tables at the top of the graph."""
    for node in graph_def.node:
        if node.op not in _TABLES:
            _check_node(node)
    for function in graph_def.library.function:
        for node in function.node_def:
            _check_node(node)


def _check_node(node: NodeDef) -> None:
    if node.op in _HARMLESS or node.op.startswith(PER_RUN):
        return
    if tensorflow_private.is_stateful(node.op) or tensorflow_private.takes_references(node.op):
        raise NotOptimisableError(f"what its {node.op} operation ({node.name}) holds cannot be frozen")


def _contents(session: Session, name: str) -> tuple[Array, Array]:
    """Current keys and values of a lookup table."""
    table = session.graph.get_operation_by_name(name)
    types = {"Tkeys": table.get_attr("key_dtype"), "Tvalues": table.get_attr("value_dtype")}
    with session.graph.as_default():
        if table.type.endswith("V2"):
            export = tf.raw_ops.LookupTableExportV2(table_handle=table.outputs[0], **types)
        else:
            export = tf.raw_ops.LookupTableExport(table_handle=table.outputs[0], **types)
    keys, values = session.run(export)
    return keys, values


def _fill(table: Operation, feed: dict[Tensor, Array], keys: Array, values: Array) -> object:
    """The operation that fills a table; adds the operation's placeholders to `feed`."""
    given = {
        "keys": v1.placeholder(table.get_attr("key_dtype"), keys.shape),
        "values": v1.placeholder(table.get_attr("value_dtype"), values.shape),
    }
    feed |= {given["keys"]: keys, given["values"]: values}
    handle = table.outputs[0]
    match table.type:
        case "HashTable":
            return tf.raw_ops.InitializeTable(table_handle=handle, **given)
        case "HashTableV2":
            return tf.raw_ops.InitializeTableV2(table_handle=handle, **given)
        case "MutableHashTable":
            return tf.raw_ops.LookupTableImport(table_handle=handle, **given)
        case _:
            return tf.raw_ops.LookupTableImportV2(table_handle=handle, **given)


def _node(tensor: str) -> str:
    return tensor.partition(":")[0]
