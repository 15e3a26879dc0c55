"""Opens graph sessions: a session of a SavedModel, restored and initialised, or a session of a plain graph.

The module knows no servable, and only the tensors of a signature.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import tensorflow as tf

from embedserve.saved_model import tensorflow_private
from embedserve.saved_model.run import unset_state
from embedserve.signature import Signature

if TYPE_CHECKING:
    from tensorflow.core.protobuf.config_pb2 import ConfigProto

    from embedserve.saved_model.tensorflow_types import Graph, Operation, Session, Tensor

__all__ = ["open_graph", "open_saved_model"]

logger = logging.getLogger("embedserve")

v1 = tf.compat.v1

# Loads in turn before a race of init ops counts as a failure.
_INIT_ATTEMPTS = 5


def open_saved_model(
    path: Path,
    tags: Iterable[str],
    signatures: Iterable[Signature],
    captured: Mapping[str, Sequence[Tensor]] = MappingProxyType({}),
    *,
    partly: bool = False,
) -> Session:
    """A session with the model restored and initialised.

    Args:
        path: Version directory.
        tags: Tag set of the MetaGraph.
        signatures: Signatures to run.
        captured: The `captured_inputs` of lifted signatures, by the name of an output tensor. Their values set
            variables that the restore op leaves unset.
        partly: Only warn where some signature reads no unset state.

    Raises:
        UnsetStateError: A signature would read an unset variable or table.
        Exception: Any error of TensorFlow's loader.
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


def open_graph(graph: Graph) -> Session:
    """A session of a complete and folded graph; the session runs no initialiser."""
    config = _config()
    # The graph never grows, so TensorFlow need not keep a second graph with all constants for extensions.
    config.experimental.optimize_for_static_graph = True
    # Each of these passes would copy the constants several times without a gain.
    rewrites = config.graph_options.rewrite_options
    rewrites.constant_folding = rewrites.arithmetic_optimization = rewrites.OFF
    rewrites.meta_optimizer_iterations = rewrites.ONE
    session: Session = v1.Session(graph=graph, config=config)
    return session


def _restored(path: Path, tags: Iterable[str]) -> Session:
    for attempt in range(1, _INIT_ATTEMPTS + 1):
        session: Session = v1.Session(graph=tf.Graph(), config=_config())
        try:
            with session.graph.as_default(), tensorflow_private.quiet_loading():
                v1.saved_model.loader.load(session, sorted(tags), str(path))
        except tf.errors.FailedPreconditionError as error:
            session.close()
            # TF1 init ops may race: an op fills a table from a variable that is not set yet.
            if attempt == _INIT_ATTEMPTS or "uninitialized" not in (error.message or ""):
                raise
            logger.info("the init op of %s read a value before it was set; trying again", path)
        except BaseException:
            session.close()
            raise
        else:
            return session
    raise AssertionError("unreachable")


def _captured_variables(graph: Graph, captured: Mapping[str, Sequence[Tensor]]) -> dict[Operation, Tensor]:
    """The lifted variable of each handle. A function's node takes captured inputs last, in order."""
    found: dict[Operation, Tensor] = {}
    for output, values in captured.items():
        call = graph.get_tensor_by_name(output).op
        taken = [tensor.op for tensor in call.inputs][len(call.inputs) - len(values) :]
        if len(taken) == len(values):
            found |= dict(zip(taken, values, strict=True))
    return found


def _set_variables(
    session: Session, handles: Sequence[Operation], captured: Mapping[Operation, Tensor]
) -> list[Operation]:
    """Give unset variables the values of captured variables; return the handles of the set variables."""
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


def _config() -> ConfigProto:
    config = tensorflow_private.process_config()
    config.allow_soft_placement = True
    config.gpu_options.allow_growth = True
    return config
