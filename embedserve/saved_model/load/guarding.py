"""Puts checks into a MetaGraph before a load: a call that asserts an unchecked rule of an operation.

A check is a function in the MetaGraph's library. The operation waits for the check by a control input; the rest of the
graph stays. TensorFlow loads directories only, so a copy holds the changed graph, beside links to the version's files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from embedserve.saved_model.judge.guards import Found

if TYPE_CHECKING:
    from tensorflow.core.framework.function_pb2 import FunctionDef
    from tensorflow.core.framework.node_def_pb2 import NodeDef
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef

__all__ = ["GraphCopy", "add_checks"]

v1 = tf.compat.v1

_PREFIX = "embedserve-graph-"


class GraphCopy:
    """A directory that TensorFlow loads in place of a version's directory, until `close`.

    Attributes:
        path: The directory.
    """

    def __init__(self, version: Path, meta_graph: MetaGraphDef) -> None:
        """Write the directory.

        Args:
            version: The version's own directory.
            meta_graph: The only MetaGraph of the copy.
        """
        saved_model = SavedModel(saved_model_schema_version=1)
        saved_model.meta_graphs.add().CopyFrom(meta_graph)
        self._directory = tempfile.TemporaryDirectory(prefix=_PREFIX)
        self.path = Path(self._directory.name)
        for entry in version.iterdir():
            if not entry.name.startswith("saved_model.pb"):
                os.symlink(entry.absolute(), self.path / entry.name)
        (self.path / "saved_model.pb").write_bytes(saved_model.SerializeToString())

    def close(self) -> None:
        """Remove the directory."""
        self._directory.cleanup()


def add_checks(meta_graph: MetaGraphDef, found: Iterable[Found]) -> None:
    """Change a MetaGraph so that each found operation runs only after a check of the operands."""
    library = meta_graph.graph_def.library
    functions = {function.signature.name: function for function in library.function}
    for number, one in enumerate(found):
        nodes = functions[one.function].node_def if one.function else meta_graph.graph_def.node
        definitions, call = _check(one, number)
        library.function.extend(definitions)
        call.name = f"embedserve_guard_{number}"
        call.input.extend(tensor for name in one.guard.operands for tensor in one.given.tensors[name])
        node = next(node for node in nodes if node.name == one.node.name)
        node.input.append(f"^{call.name}")
        nodes.add().CopyFrom(call)


def _check(found: Found, number: int) -> tuple[list[FunctionDef], NodeDef]:
    """The functions of a check, and the node that calls the check, without name and inputs."""
    guard, given = found.guard, found.given
    dtypes = [tf.as_dtype(dtype) for name in guard.operands for dtype in given.dtypes[name]]

    def check(*tensors: object) -> object:
        rest = iter(tensors)
        operands: dict[str, object] = {}
        for name in guard.operands:
            taken = [next(rest) for _ in given.tensors[name]]
            operands[name] = taken if name in given.lists else taken[0]
        good = guard.holds(found.node, operands)
        shown = tensors[: len(given.tensors[guard.operands[0]])]
        asserted = tf.raw_ops.Assert(condition=good, data=[found.rule, *shown], summarize=8)
        # An inlined call finishes with its data outputs, so the output depends on the assertion.
        with tf.control_dependencies([asserted]):
            return tf.identity(good)

    check.__name__ = f"embedserve_guard_{number}"
    function = tf.function(check, autograph=False, input_signature=[tf.TensorSpec(None, dtype) for dtype in dtypes])
    graph = tf.Graph()
    with graph.as_default():
        function(*(v1.placeholder(dtype) for dtype in dtypes))
    made = graph.as_graph_def()
    call = next(node for node in made.node if "f" in node.attr)
    del call.input[:]
    return list(made.library.function), call
