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
from embedserve.saved_model.run import unset_state
from embedserve.signature import Signature

__all__ = ["open_graph", "open_saved_model"]

logger = logging.getLogger("embedserve")

v1 = tf.compat.v1

_INIT_ATTEMPTS = 5


def open_saved_model(
    path: Path,
    tags: Iterable[str],
    signatures: Iterable[Signature],
    captured: Mapping[str, Sequence[Any]] = MappingProxyType({}),
    *,
    partly: bool = False,
) -> Any:
    """A session with the model restored and initialised.

    Args:
        path: Version directory.
        tags: Tag set of the MetaGraph.
        signatures: What will be run.
        captured: For variables that the restore op does not set, where another way of loading the model does: the
            `captured_inputs` of a lifted signature, by one of its output tensors.
        partly: Open it for the other signatures where only some would read what is unset.

    Raises:
        UnsetStateError: A signature would read a variable or a table that is unset.
        Exception: Whatever TensorFlow's loader raises.
    """
    session = _restored(path, tags)
    try:
        unset_state.check(
            session.graph,
            session.run,
            signatures,
            lambda handles: _set_variables(session, handles, _captured_variables(session.graph, captured)),
            partly=partly,
        )
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


def _captured_variables(graph: Any, captured: Mapping[str, Sequence[Any]]) -> dict[Any, Any]:
    """The lifted variable of each handle: a function's node takes what the function has captured, in order and last."""
    found: dict[Any, Any] = {}
    for output, values in captured.items():
        call = graph.get_tensor_by_name(output).op
        taken = [tensor.op for tensor in call.inputs][len(call.inputs) - len(values) :]
        if len(taken) == len(values):
            found |= dict(zip(taken, values, strict=True))
    return found


def _set_variables(session: Any, handles: Sequence[Any], captured: Mapping[Any, Any]) -> list[Any]:
    """Give unset variables the values of captured ones; those that there are."""
    found = [handle for handle in handles if handle.type == "VarHandleOp" and handle in captured]
    assigns, feed = [], {}
    for handle in found:
        resource = captured[handle]
        dtype = handle.get_attr("dtype")
        with session.graph.as_default():
            value = v1.placeholder(dtype)
            assigns.append(tf.raw_ops.AssignVariableOp(resource=handle.outputs[0], value=value))
        with tf.init_scope():
            feed[value] = tf.raw_ops.ReadVariableOp(resource=resource, dtype=dtype).numpy()
    session.run(assigns, feed)
    return found


def _config() -> Any:
    config = tensorflow_private.process_config()
    config.allow_soft_placement = True
    config.gpu_options.allow_growth = True
    return config
