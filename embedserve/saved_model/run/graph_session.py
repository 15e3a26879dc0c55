"""Opens graph sessions: one of a SavedModel, restored and initialised, or one of a graph alone.

Called by the loader and by what freezes models. Knows no servable, and of a signature only the tensors it names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tensorflow as tf

from embedserve.saved_model import tensorflow_private
from embedserve.signature import Signature

__all__ = ["UnsetVariablesError", "open_graph", "open_saved_model", "reached"]

logger = logging.getLogger("embedserve")

v1 = tf.compat.v1

_INIT_ATTEMPTS = 5
# What hands a variable's handle on without reading the variable.
_PASS_HANDLES = frozenset(("Identity", "Enter", "Exit", "Merge", "NextIteration", "Switch"))
_READ_NOTHING = frozenset(("AssignVariableOp", "VarIsInitializedOp")) | _PASS_HANDLES


class UnsetVariablesError(LookupError):
    """Every signature reads a variable that nothing has set."""


def open_saved_model(
    path: Path,
    tags: Iterable[str],
    signatures: Iterable[Signature],
    captured: Mapping[str, Sequence[Any]] = MappingProxyType({}),
) -> Any:
    """A session with the model restored and initialised.

    Args:
        path: Version directory.
        tags: Tag set of the MetaGraph.
        signatures: What will be run.
        captured: For variables that the restore op does not set, where another way of loading the model does: the
            `captured_inputs` of a lifted signature, by one of its output tensors.

    Raises:
        UnsetVariablesError: Each signature would read a variable that is unset.
        Exception: Whatever TensorFlow's loader raises.
    """
    session = _restored(path, tags)
    try:
        _check_variables(session, signatures, captured)
    except BaseException:
        session.close()
        raise
    return session


def open_graph(graph: Any) -> Any:
    """A session of a graph that is complete and folded; what needs to be initialised in it is not."""
    config = _config()
    # The graph never grows, so TensorFlow need not keep a second one, constants and all, to build upon.
    config.experimental.optimize_for_static_graph = True
    # Each of these would copy the constants several times, for nothing.
    rewrites = config.graph_options.rewrite_options
    rewrites.constant_folding = rewrites.arithmetic_optimization = rewrites.OFF
    rewrites.meta_optimizer_iterations = rewrites.ONE
    return v1.Session(graph=graph, config=config)


def reached(graph: Any, fetches: Iterable[str], feeds: Iterable[str] = ()) -> set[Any]:
    """Every operation of a graph that computing the tensors `fetches` needs when the tensors `feeds` are given."""
    given = {graph.get_tensor_by_name(name) for name in feeds}
    todo = [tensor.op for name in fetches if (tensor := graph.get_tensor_by_name(name)) not in given]
    seen = set(todo)
    while todo:
        operation = todo.pop()
        sources = {tensor.op for tensor in operation.inputs if tensor not in given} | set(operation.control_inputs)
        todo += sources - seen
        seen |= sources
    return seen


def _restored(path: Path, tags: Iterable[str]) -> Any:
    for attempt in range(1, _INIT_ATTEMPTS + 1):
        session = v1.Session(graph=tf.Graph(), config=_config())
        try:
            with session.graph.as_default(), tensorflow_private.quiet_loading():
                v1.saved_model.loader.load(session, sorted(tags), str(path))
        except tf.errors.FailedPreconditionError as error:
            session.close()
            # TF1 init ops may race: a table is filled from a variable that is not there yet, now and then.
            if attempt == _INIT_ATTEMPTS or "uninitialized" not in (error.message or ""):
                raise
            logger.info("the init op of %s read a value before it was set; trying again", path)
        except BaseException:
            session.close()
            raise
        else:
            return session
    raise AssertionError("unreachable")


def _check_variables(session: Any, signatures: Iterable[Signature], captured: Mapping[str, Sequence[Any]]) -> None:
    """Raise UnsetVariablesError if no signature can run, for each reads a variable that is set by nothing before.

    Keras 3 models written by `tf.saved_model.save` are so: TensorFlow Serving loads them and fails at every request.
    """
    read: dict[str, set[Any]] = {}
    for signature in signatures:
        inputs, outputs = (
            [spec.tensor_name for spec in side.values()] for side in (signature.inputs, signature.outputs)
        )
        read[signature.name] = _read_before_set(reached(session.graph, outputs, inputs))
    handles = sorted(set().union(*read.values()), key=lambda handle: str(handle.name))
    unset = _unset(session, handles)
    if unset and captured:
        values = _captured_variables(session.graph, captured)
        _set_variables(session, {handle: values[handle] for handle in unset if handle in values})
        unset = [handle for handle in unset if handle not in values]
    if not unset:
        return
    names = [handle.name for handle in unset]
    found = (
        f"the SavedModel's restore op leaves {len(unset)} of {len(handles)} variables unset "
        f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
    )
    affected = sorted(name for name, needed in read.items() if not needed.isdisjoint(unset))
    if len(affected) < len(read):
        logger.warning("requests to signatures %s will fail: %s", ", ".join(affected), found)
        return
    raise UnsetVariablesError(
        f"{found}, and a run may read them before it assigns them. If this is a Keras 3 model written by "
        'tf.saved_model.save, export it with Model.export, or set servable="function"; otherwise save its variables'
    )


def _read_before_set(operations: set[Any]) -> set[Any]:
    """The handles of resource variables that a run may read before the run itself has assigned them."""
    handles: dict[str, set[Any]] = {}
    for operation in operations:
        if operation.type == "VarHandleOp":
            handles.setdefault(_variable_name(operation), set()).add(operation)
    users: dict[Any, set[Any]] = {}
    for operation in operations:
        for source in [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]:
            users.setdefault(source, set()).add(operation)
    return set().union(*(same for same in handles.values() if _may_read_unset(same, users)))


def _variable_name(handle: Any) -> str:
    """Handles with this name in common are the same variable (TensorFlow: resource_mgr.h)."""
    return f"{handle.get_attr('container').decode()}/{handle.get_attr('shared_name').decode() or handle.name}"


def _may_read_unset(handles: set[Any], users: Mapping[Any, set[Any]]) -> bool:
    """Whether an operation reads a variable that no earlier operation of the same run is sure to have assigned."""
    same = set(handles)  # With what hands the handle on.
    todo = list(handles)
    touching: set[Any] = set()
    while todo:
        handle = todo.pop()
        for user in users.get(handle, set()) - same:
            if not set(handle.outputs).isdisjoint(user.inputs):
                touching.add(user)
                if user.type in _PASS_HANDLES:
                    same.add(user)
                    todo.append(user)
    after = _surely_after([operation for operation in touching if operation.type == "AssignVariableOp"], users)
    return any(user.type not in _READ_NOTHING and user not in after for user in touching)


def _surely_after(assigns: Iterable[Any], users: Mapping[Any, set[Any]]) -> set[Any]:
    """Operations that run only when one of `assigns` has run before."""
    todo, after = list(assigns), set(assigns)
    while todo:
        for user in users.get(todo.pop(), ()):
            # Either side of a branch brings a Merge about; a loop's first round comes from its Enter alone.
            sure = user.type not in ("Merge", "RefMerge") or all(
                tensor.op in after
                for tensor in user.inputs
                if tensor.op.type not in ("NextIteration", "RefNextIteration")
            )
            if sure and user not in after:
                after.add(user)
                todo.append(user)
    return after


def _unset(session: Any, handles: Sequence[Any]) -> list[Any]:
    if not handles:
        return []
    with session.graph.as_default():
        checks = [tf.raw_ops.VarIsInitializedOp(resource=handle.outputs[0]) for handle in handles]
    return [handle for handle, is_set in zip(handles, session.run(checks), strict=True) if not is_set]


def _captured_variables(graph: Any, captured: Mapping[str, Sequence[Any]]) -> dict[Any, Any]:
    """The lifted variable of each handle: a function's node takes what the function has captured, in order and last."""
    found: dict[Any, Any] = {}
    for output, values in captured.items():
        call = graph.get_tensor_by_name(output).op
        taken = [tensor.op for tensor in call.inputs][len(call.inputs) - len(values) :]
        if len(taken) == len(values):
            found |= dict(zip(taken, values, strict=True))
    return found


def _set_variables(session: Any, values: Mapping[Any, Any]) -> None:
    assigns, feed = [], {}
    for handle, resource in values.items():
        dtype = handle.get_attr("dtype")
        with session.graph.as_default():
            value = v1.placeholder(dtype)
            assigns.append(tf.raw_ops.AssignVariableOp(resource=handle.outputs[0], value=value))
        with tf.init_scope():
            feed[value] = tf.raw_ops.ReadVariableOp(resource=resource, dtype=dtype).numpy()
    session.run(assigns, feed)


def _config() -> Any:
    config = tensorflow_private.process_config()
    config.allow_soft_placement = True
    config.gpu_options.allow_growth = True
    return config
