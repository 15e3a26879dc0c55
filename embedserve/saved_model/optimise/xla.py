"""Compiles a frozen graph's signatures by XLA for the most frequent input shapes; inputs of further shapes run frozen.

XLA makes a program per shape, which takes seconds. So programs are made at load, and never for a request.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import tensorflow as tf

from embedserve.saved_model import tensorflow_private
from embedserve.saved_model.optimise.freezing import NotOptimisableError
from embedserve.saved_model.run.session import Plan, SessionServable
from embedserve.servable import Tensors
from embedserve.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from tensorflow.core.framework.graph_pb2 import GraphDef

    from embedserve.saved_model.tensorflow_types import Graph, Session

__all__ = ["OptimisedServable", "add_compiled"]

v1 = tf.compat.v1

# Shapes of a request's inputs, in the order of the feeds.
Shapes: TypeAlias = tuple[tuple[int, ...], ...]

# Bytes. Constants of at least this size are arguments of the programs, not copied into each program.
_LARGE_CONSTANT = 1024
# XLA drops these operations, and would answer a request that TensorFlow refuses.
_CHECKS = frozenset(("Assert",))


def add_compiled(graph: Graph, graph_def: GraphDef, signature: Signature) -> Signature:
    """Add a compiled twin of a signature's part of a graph, over the same inputs and constants.

    Args:
        graph: The graph imported from `graph_def`, not yet in a session.
        graph_def: The graph without variables.
        signature: A signature over tensors of the graph.

    Returns:
        The signature over the twin's outputs.

    Raises:
        NotOptimisableError: XLA cannot compile the signature, or would answer a request that TensorFlow refuses.
    """
    fed = [spec.tensor_name for spec in signature.inputs.values()]
    computed = [spec.tensor_name for spec in signature.outputs.values() if spec.tensor_name not in fed]
    if not computed:
        raise NotOptimisableError("it computes nothing")
    with_text = [spec.name for spec in (*signature.inputs.values(), *signature.outputs.values()) if _is_text(spec)]
    if with_text:
        raise NotOptimisableError(f"XLA knows no strings ({', '.join(with_text)})")
    body, constants = _without_constants(_part(graph_def, computed), fed)
    _refuse_checks(body)
    used = {name if ":" in name else f"{name}:0" for node in body.node for name in node.input}
    given = [name for name in (*fed, *(f"{name}:0" for name in constants)) if name in used]

    @tf.function(jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
    def compiled(*arguments: object) -> object:
        found = dict(zip(given, arguments, strict=True))
        return tf.graph_util.import_graph_def(body, input_map=found, return_elements=computed, name="")

    with graph.as_default():
        outputs = compiled(*(graph.get_tensor_by_name(name) for name in given))
    names = dict(zip(computed, (tensor.name for tensor in outputs), strict=True))
    return dataclasses.replace(
        signature,
        outputs={
            name: dataclasses.replace(spec, tensor_name=names.get(spec.tensor_name, spec.tensor_name))
            for name, spec in signature.outputs.items()
        },
    )


def _is_text(spec: TensorSpec) -> bool:
    return bool(spec.dtype.numpy.hasobject)


def _part(graph_def: GraphDef, outputs: Sequence[str]) -> GraphDef:
    with tensorflow_private.quiet_loading():
        nodes = sorted({name.partition(":")[0] for name in outputs})
        part: GraphDef = v1.graph_util.extract_sub_graph(graph_def, nodes)
        return part


def _without_constants(graph_def: GraphDef, fed: Sequence[str]) -> tuple[GraphDef, list[str]]:
    """The graph without fed nodes and large constants, which become arguments; and the constants' names."""
    constants = [
        node.name
        for node in graph_def.node
        if node.op == "Const" and node.attr["value"].tensor.ByteSize() >= _LARGE_CONSTANT
    ]
    gone = {*constants, *(name.partition(":")[0] for name in fed)}
    body: GraphDef = v1.GraphDef(versions=graph_def.versions, library=graph_def.library)
    for node in graph_def.node:
        if node.name not in gone:
            copy = body.node.add()
            copy.CopyFrom(node)
            del copy.input[:]
            copy.input.extend(name for name in node.input if not (name[0] == "^" and name[1:] in gone))
    return body, constants


def _refuse_checks(body: GraphDef) -> None:
    nodes = [*body.node, *(node for function in body.library.function for node in function.node_def)]
    found = next((node for node in nodes if node.op in _CHECKS), None)
    if found is not None:
        raise NotOptimisableError(f"XLA would leave out what its {found.op} operation ({found.name}) checks")


class OptimisedServable(SessionServable):
    """A frozen version; some signatures may have XLA programs for some shapes.

    Attributes:
        kind: `xla` if a signature has programs, else `frozen`.
    """

    def __init__(self, session: Session, compiled: Mapping[str, Signature], *arguments: Any, **options: Any) -> None:
        """Take over a session as `SessionServable` does.

        Args:
            session: A session of a frozen graph with the twins of `add_compiled`.
            compiled: Results of `add_compiled`, by signature.
            arguments, options: As for `SessionServable`.
        """
        super().__init__(session, *arguments, **options)
        self.kind = "frozen"
        self._compiled = {name: Plan(session, signature, None) for name, signature in compiled.items()}
        self._shapes: dict[str, set[Shapes]] = {}

    @property
    def inline(self) -> Collection[str]:
        """As in `Servable`: programs of XLA run in a pool of threads."""
        return frozenset(super().inline) - self._shapes.keys()

    def compile(self, signature_name: str, inputs: Tensors) -> None:
        """Make the program for the shapes of `inputs`, and run the program for these shapes from now on.

        Raises:
            tf.errors.OpError: XLA cannot compile the signature.
        """
        plan = self._compiled[signature_name]
        arrays = [inputs[name] for name in plan.fed]
        plan.run(arrays, 0)
        self._shapes.setdefault(signature_name, set()).add(tuple(array.shape for array in arrays))
        self.kind = "xla"

    def forget(self, signature_name: str) -> None:
        """Run the signature without programs from now on."""
        self._shapes.pop(signature_name, None)
        self.kind = "xla" if self._shapes else "frozen"

    def close(self) -> None:
        """Close the session as `SessionServable` does, and drop the programs."""
        self._compiled, self._shapes = {}, {}
        super().close()

    def _find_plan(self, signature_name: str, choice: tuple[str, ...] | None, inputs: Tensors) -> Plan:
        shapes = self._shapes.get(signature_name)
        if shapes is not None:
            plan = self._compiled[signature_name]
            if tuple([inputs[name].shape for name in plan.fed]) in shapes:
                return plan
        return super()._find_plan(signature_name, choice, inputs)
