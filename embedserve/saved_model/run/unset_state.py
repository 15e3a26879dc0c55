"""Finds unset variables and tables that a run of a loaded graph may read.

The caller gives a function that computes tensors of the graph. The module sets no state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import tensorflow as tf

from embedserve.signature import Signature

if TYPE_CHECKING:
    from embedserve.saved_model.tensorflow_types import Graph, Operation, Tensor

__all__ = ["Compute", "UnsetStateError", "check", "reached"]

logger = logging.getLogger("embedserve")

Compute: TypeAlias = "Callable[[Sequence[Tensor]], Sequence[object]]"
"""Values of tensors of the graph, numpy arrays or bools; raises TensorFlow's errors."""

_RESOURCES, _REFERENCES = frozenset(("VarHandleOp",)), frozenset(("Variable", "VariableV2"))
_TABLES = frozenset(("HashTable", "HashTableV2"))
_STATE = _RESOURCES | _REFERENCES | _TABLES
# Operations that pass a handle on without a read of its state; for a reference, `Identity` reads.
_PASS_REFERENCES = frozenset(
    f"Ref{name}" for name in ("Identity", "Enter", "Exit", "Merge", "NextIteration", "Switch", "Select")
)
_PASS_HANDLES = frozenset(("Identity", "Enter", "Exit", "Merge", "NextIteration", "Switch"))
_SET = frozenset(
    (
        *(
            "AssignVariableOp",
            "Assign",
            "InitializeTable",
            "InitializeTableV2",
            "LookupTableImport",
            "LookupTableImportV2",
        ),
        *("InitializeTableFromTextFile", "InitializeTableFromTextFileV2", "InitializeTableFromDataset"),
    )
)
_ASK = frozenset(("VarIsInitializedOp", "IsVariableInitialized"))


class UnsetStateError(LookupError):
    """Signatures read an unset variable or table.

    Args:
        found: The unset state, as the beginning of a sentence.
        spared: Whether some signature reads no unset state.
    """

    def __init__(self, found: str, spared: bool) -> None:
        self.spared = spared
        super().__init__(
            f"{found}, and a run may read them before it assigns them. If this is a Keras 3 model written by "
            'tf.saved_model.save, export it with Model.export, or set servable="function"; otherwise save its '
            "variables, and give it an init op for its tables and local variables"
        )


def check(
    graph: Graph,
    compute: Compute,
    signatures: Iterable[Signature],
    set_otherwise: Callable[[Sequence[Operation]], Iterable[Operation]] = lambda handles: (),
    *,
    partly: bool = False,
) -> None:
    """Make sure that no signature reads unset state.

    Keras 3 models written by `tf.saved_model.save` read unset state in a session: TensorFlow Serving loads such a model
    and fails at every request. TensorFlow 1 models without an init op also do: no op restores their local variables and
    tables.

    Args:
        graph: The model's graph; the check adds operations to the graph.
        compute: Computes tensors of the graph.
        signatures: Signatures to run.
        set_otherwise: Sets some of the unset handles, and returns the set handles.
        partly: Only warn where some signature reads no unset state.

    Raises:
        UnsetStateError: A signature would read unset state.
    """
    read = {signature.name: _read_before_set(_operations(graph, signature)) for signature in signatures}
    handles = sorted(set().union(*read.values()), key=lambda handle: str(handle.name))
    unset = _unset_handles(graph, compute, handles)
    if unset:
        done = set(set_otherwise(unset))
        unset = [handle for handle in unset if handle not in done]
    if not unset:
        return
    names = [handle.name for handle in unset]
    what = "tables" if all(handle.type in _TABLES for handle in unset) else "variables"
    found = (
        f"the SavedModel's restore op leaves {len(unset)} of {len(handles)} {what} unset "
        f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
    )
    affected = sorted(name for name, needed in read.items() if not needed.isdisjoint(unset))
    spared = len(affected) < len(read)
    if not (partly and spared):
        raise UnsetStateError(found, spared)
    logger.warning("requests to signatures %s will fail: %s", ", ".join(affected), found)


def _operations(graph: Graph, signature: Signature) -> set[Operation]:
    inputs, outputs = ([spec.tensor_name for spec in side.values()] for side in (signature.inputs, signature.outputs))
    return reached(graph, outputs, inputs)


def reached(graph: Graph, fetches: Iterable[str], feeds: Iterable[str] = ()) -> set[Operation]:
    """Every operation that a computation of the tensors `fetches` needs when the tensors `feeds` are given."""
    given = {graph.get_tensor_by_name(name).name for name in feeds}  # Names, as some tensors are not hashable.
    todo = [tensor.op for name in fetches if (tensor := graph.get_tensor_by_name(name)).name not in given]
    seen = set(todo)
    while todo:
        operation = todo.pop()
        sources = {tensor.op for tensor in operation.inputs if tensor.name not in given} | set(operation.control_inputs)
        todo += sources - seen
        seen |= sources
    return seen


def _read_before_set(operations: set[Operation]) -> set[Operation]:
    """The handles of variables and tables that a run may read before the same run sets the state."""
    handles: dict[str, set[Operation]] = {}
    for operation in operations:
        if operation.type in _STATE:
            handles.setdefault(_state_name(operation), set()).add(operation)
    users: dict[Operation, set[Operation]] = {}
    for operation in operations:
        for source in [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]:
            users.setdefault(source, set()).add(operation)
    return set().union(*(same for same in handles.values() if _may_read_unset(same, users)))


def _state_name(handle: Operation) -> str:
    """The name of a handle's state: handles with the same name share their state (TensorFlow: resource_mgr.h)."""
    name = handle.get_attr("shared_name").decode() or handle.name
    return f"{handle.type in _TABLES}/{handle.get_attr('container').decode()}/{name}"


def _may_read_unset(handles: set[Operation], users: Mapping[Operation, set[Operation]]) -> bool:
    """Whether an operation may read state before an earlier operation of the same run has set the state."""
    same = set(handles)  # The handles, with operations that pass a handle on.
    todo = list(handles)
    touching: set[Operation] = set()
    passing = _PASS_REFERENCES if any(handle.type in _REFERENCES for handle in handles) else _PASS_HANDLES
    while todo:
        handle = todo.pop()
        for user in users.get(handle, set()) - same:
            if any(tensor.op is handle for tensor in user.inputs):
                touching.add(user)
                if user.type in passing:
                    same.add(user)
                    todo.append(user)
    if any(user.type in _ASK for user in touching):
        return False  # A model that asks whether its variable is set handles both cases.
    after = _surely_after([operation for operation in touching if operation.type in _SET], users)
    return any(user.type not in _SET and user.type not in passing and user not in after for user in touching)


def _surely_after(assigns: Iterable[Operation], users: Mapping[Operation, set[Operation]]) -> set[Operation]:
    """Operations that run only after an operation of `assigns`."""
    todo, after = list(assigns), set(assigns)
    while todo:
        for user in users.get(todo.pop(), ()):
            # Either side of a branch triggers a Merge; a loop's first turn comes from the Enter alone.
            sure = user.type not in ("Merge", "RefMerge") or all(
                tensor.op in after
                for tensor in user.inputs
                if tensor.op.type not in ("NextIteration", "RefNextIteration")
            )
            if sure and user not in after:
                after.add(user)
                todo.append(user)
    return after


def _unset_handles(graph: Graph, compute: Compute, handles: Sequence[Operation]) -> list[Operation]:
    """The handles whose variable or table has no value yet."""
    variables = [handle for handle in handles if handle.type not in _TABLES]
    with graph.as_default():
        checks = [_is_set(handle) for handle in variables]
        answers = {handle: _nothing_found(handle) for handle in handles if handle.type in _TABLES}
    found = compute(checks) if checks else []
    unset = [handle for handle, is_set in zip(variables, found, strict=True) if not is_set]
    for handle, answer in answers.items():
        try:
            compute([answer])
        except tf.errors.FailedPreconditionError:
            unset.append(handle)
    return unset


def _is_set(handle: Operation) -> Tensor:
    is_set: Tensor
    if handle.type in _REFERENCES:
        is_set = tf.compat.v1.is_variable_initialized(handle.outputs[0])
    else:
        is_set = tf.raw_ops.VarIsInitializedOp(resource=handle.outputs[0])
    return is_set


def _nothing_found(table: Operation) -> Tensor:
    """A table's answer to zero keys: the lookup fails for an unset table."""
    keys, values = (tf.as_dtype(table.get_attr(name)) for name in ("key_dtype", "value_dtype"))
    given = [table.outputs[0], tf.zeros([0], keys), tf.zeros([], values)]
    op = "LookupTableFind" if table.type == "HashTable" else "LookupTableFindV2"
    return table.graph.create_op(op, given, [values], attrs={}).outputs[0]
