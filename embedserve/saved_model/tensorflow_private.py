"""Every use of TensorFlow's private interfaces, each with a public way for versions without the private interface.

The public call of a signature costs 100-250 µs of Python; the calls here cost 5-20 µs and can be cancelled. Callers see
a single interface for both ways. The module knows no model and no servable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import tensorflow as tf

from embedserve.servable import Array

if TYPE_CHECKING:
    from tensorflow.core.framework.graph_pb2 import GraphDef
    from tensorflow.core.framework.op_def_pb2 import OpDef
    from tensorflow.core.protobuf.config_pb2 import ConfigProto

    from embedserve.saved_model.tensorflow_types import ConcreteFunction, Session

__all__ = [
    "CancellableCall",
    "FunctionCall",
    "PublicFunctionCall",
    "argument_names",
    "forget_kernels",
    "function_call",
    "is_stateful",
    "op_definition",
    "optimized_graph",
    "process_config",
    "quiet_loading",
    "session_callable",
    "session_run",
    "string_inputs",
    "takes_references",
    "takes_resources",
]

logger = logging.getLogger("embedserve")

_STRING, _RESOURCE = tf.string.as_datatype_enum, tf.resource.as_datatype_enum
_CPU = "/job:localhost/replica:0/task:0/device:CPU:0"


class FunctionCall(Protocol):
    """Calls a concrete function: takes arrays in input order, returns arrays or scalars in output order.

    Outputs may share memory with the inputs, with variables and with constants: copy before giving an output away.
    """

    def __call__(self, arrays: Sequence[Array], started: Callable[[Callable[[], None]], None] | None) -> list[object]:
        """Run the function; `started` gets a function that stops the run from any thread, if possible."""


class CancellableCall:
    """Runs a function through TensorFlow's own binding, with a CancellationManager per run.

    A call by the function's own name runs in TensorFlow's pool, as a signature call does: 45 µs; the kernel goes with
    the function. An `inline` call, as a `StatefulPartitionedCall`, runs in the caller's thread: 19 µs. TensorFlow then
    keeps the kernel, with graph and constants, until `forget_kernels`.
    """

    def __init__(self, function: ConcreteFunction, *, inline: bool = False) -> None:
        from tensorflow.python import pywrap_tfe
        from tensorflow.python.eager import cancellation, context
        from tensorflow.python.framework import ops

        eager = context.context()
        eager.ensure_initialized()
        self._execute = pywrap_tfe.TFE_Py_ExecuteCancelable
        self._manager = cancellation.CancellationManager
        self._tensor = ops.EagerTensor
        self._context = eager._handle
        self._captured = list(function.captured_inputs)
        self._outputs = len(function.outputs)
        self._op = b"StatefulPartitionedCall" if inline else function.name
        self._attributes: tuple[object, ...] = (
            *("config_proto", eager.function_call_options.config_proto_serialized),
            *("executor_type", ""),
        )
        if inline:
            self._attributes += (
                *("Tin", [tensor.dtype.as_datatype_enum for tensor in function.inputs]),
                *("Tout", [tensor.dtype.as_datatype_enum for tensor in function.outputs]),
                *("f", function.name),
            )
        self._function = function  # The reference keeps the function, its variables and its tables alive.

    def __call__(self, arrays: Sequence[Array], started: Callable[[Callable[[], None]], None] | None) -> list[object]:
        manager = self._manager()
        if started is not None:
            started(manager.start_cancel)
        make = self._tensor
        tensors = [make(array, _CPU, None) for array in arrays]
        tensors += self._captured
        outputs = self._execute(self._context, "", self._op, tensors, self._attributes, manager._impl, self._outputs)
        return [tensor._numpy_internal() for tensor in outputs]


class PublicFunctionCall:
    """Runs a function through `tf.raw_ops`: twice as slow as `CancellableCall`, and without cancellation."""

    def __init__(self, function: ConcreteFunction) -> None:
        self._function = function
        self._captured = list(function.captured_inputs)
        self._types = [tensor.dtype for tensor in function.outputs]

    def __call__(self, arrays: Sequence[Array], started: Callable[[Callable[[], None]], None] | None) -> list[object]:
        tensors = [tf.constant(array) for array in arrays]
        outputs = tf.raw_ops.StatefulPartitionedCall(
            args=[*tensors, *self._captured], Tout=self._types, f=self._function
        )
        return [tensor.numpy() for tensor in outputs]


def function_call(function: ConcreteFunction, *, inline: bool = False) -> FunctionCall:
    """The fastest available call of a concrete function; `inline` as for `CancellableCall`."""
    try:
        return CancellableCall(function, inline=inline)
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning("TensorFlow %s: runs are slower and cannot be cancelled (%s)", tf.__version__, error)
        return PublicFunctionCall(function)


def forget_kernels() -> None:
    """Drop every kernel that TensorFlow keeps in the process; the next call of a used kernel makes the kernel again.

    Runs in further threads are not disturbed.
    """
    try:
        from tensorflow.python.eager import context

        context.context().clear_kernel_cache()
    except (ImportError, AttributeError) as error:
        logger.debug("TensorFlow %s keeps the kernels of unloaded models: %s", tf.__version__, error)


def argument_names(function: ConcreteFunction) -> list[str]:
    """Names of a signature function's keyword arguments in the order of its inputs, without captured inputs."""
    names = getattr(function, "_arg_keywords", None)
    if names is not None:
        return list(names)
    keywords = function.structured_input_signature[1]
    free = len(function.inputs) - len(function.captured_inputs)
    by_placeholder = [tensor.name.partition(":")[0] for tensor in function.inputs[:free]]
    return by_placeholder if set(by_placeholder) == set(keywords) else sorted(keywords)


def session_callable(session: Session, feeds: Sequence[str], fetches: Sequence[str]) -> Callable[..., list[object]]:
    """A function from fed arrays to fetched arrays that runs every op in the caller's thread: 5 µs, no time limit.

    Each such function compiles its own copy of the graph, with constants. Outputs may share memory with inputs and
    variables.
    """
    config = tf.compat.v1.RunOptions(inter_op_thread_pool=-1)
    try:
        from tensorflow.core.protobuf.config_pb2 import CallableOptions

        options = CallableOptions(feed=feeds, fetch=fetches, run_options=config)
        private: Any = session
        call: Callable[..., list[object]] = private._make_callable_from_options(options)
        return call
    except (ImportError, AttributeError):
        return lambda *arrays: list(session.run(list(fetches), dict(zip(feeds, arrays, strict=True)), options=config))


def session_run(
    session: Session, feeds: Sequence[str], fetches: Sequence[str]
) -> Callable[[Sequence[Array], int], list[object]]:
    """A function from fed arrays and a time limit (ms, 0 is none) to fetched arrays: 35 µs, in TensorFlow's pool.

    All functions over the same tensors share a compiled graph. Outputs as for `session_callable`.
    """
    private: Any = session
    graph = private.graph
    try:
        from tensorflow.python.client import pywrap_tf_session as wrapped

        handle, run = private._session, wrapped.TF_SessionRun_wrapper
        new_buffer, delete_buffer = wrapped.TF_NewBufferFromString, wrapped.TF_DeleteBuffer
        sources = [graph.get_tensor_by_name(name)._as_tf_output() for name in feeds]
        wanted = [graph.get_tensor_by_name(name)._as_tf_output() for name in fetches]
    except (ImportError, AttributeError):
        return lambda arrays, limit: list(
            session.run(
                list(fetches),
                dict(zip(feeds, arrays, strict=True)),
                options=tf.compat.v1.RunOptions(timeout_in_ms=limit) if limit else None,
            )
        )

    def call(arrays: Sequence[Array], limit: int) -> list[object]:
        feed = dict(zip(sources, arrays, strict=True))
        if not limit:
            values: list[object] = run(handle, None, feed, wanted, [], None)
            return values
        options = new_buffer(tf.compat.v1.RunOptions(timeout_in_ms=limit).SerializeToString())
        try:
            values = run(handle, options, feed, wanted, [], None)
            return values
        finally:
            delete_buffer(options)

    return call


def _op_def(op: str) -> OpDef | None:
    try:
        from tensorflow.python.framework import op_def_registry

        definition: OpDef | None = op_def_registry.get(op)
        return definition
    except (ImportError, AttributeError):
        return None


def op_definition(op: str, stored: OpDef | None = None) -> OpDef | None:
    """The `OpDef` of an op type, or `stored`, the SavedModel's `OpDef`; None for an unknown op."""
    return _op_def(op) or stored


def is_stateful(op: str, stored: OpDef | None = None) -> bool:
    """Whether an op type is registered as stateful; `stored` is the SavedModel's `OpDef`, if any.

    An unknown op counts as stateful.
    """
    definition = op_definition(op, stored)
    return definition is None or bool(definition.is_stateful)


def takes_resources(op: str, stored: OpDef | None = None) -> bool:
    """Whether an op type takes a handle of a resource: a variable, a table, a generator of random numbers."""
    definition = _op_def(op) or stored
    return definition is None or any(argument.type == _RESOURCE for argument in definition.input_arg)


def string_inputs(op: str, stored: OpDef | None = None) -> list[str]:
    """Names of an op type's inputs that are strings."""
    definition = _op_def(op) or stored
    return [] if definition is None else [arg.name for arg in definition.input_arg if arg.type == _STRING]


def takes_references(op: str, stored: OpDef | None = None) -> bool:
    """Whether an op type takes a TF1 reference, and so may write a variable."""
    definition = op_definition(op, stored)
    return definition is not None and any(argument.is_ref for argument in definition.input_arg)


def optimized_graph(graph_def: GraphDef, kept: Iterable[str], optimizers: Iterable[str]) -> GraphDef | None:
    """A `GraphDef` after some of grappler's optimizers; None where this TensorFlow lacks the private interface.

    TensorFlow has no public interface for grappler.

    Args:
        graph_def: The graph; not changed.
        kept: Tensors that are fed or fetched: their nodes keep their names.
        optimizers: Names of passes: `function` inlines called functions, `constfold` computes constant parts...
    """
    try:
        from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
        from tensorflow.python.grappler import tf_optimizer

        optimize = tf_optimizer.OptimizeGraph
    except (ImportError, AttributeError) as error:
        logger.warning("TensorFlow %s: graphs cannot be optimised ahead of their use (%s)", tf.__version__, error)
        return None
    meta_graph = MetaGraphDef()
    meta_graph.graph_def.CopyFrom(graph_def)
    meta_graph.collection_def["train_op"].node_list.value.extend(kept)
    config = tf.compat.v1.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    rewrites.min_graph_nodes = -1  # -1 includes small graphs.
    rewrites.optimizers.extend(optimizers)
    optimized: GraphDef = optimize(config, meta_graph)
    return optimized


def process_config() -> ConfigProto:
    """The `ConfigProto` of TensorFlow in the process, for sessions to follow."""
    config: ConfigProto
    try:
        from tensorflow.python.eager import context

        config = tf.compat.v1.ConfigProto()
        config.CopyFrom(context.context().config)
        return config
    except (ImportError, AttributeError, TypeError):
        config = tf.compat.v1.ConfigProto(allow_soft_placement=True)
        return config


class _NoAdvice(logging.Filter):
    """Drops advice about TensorFlow's own interfaces, as users of a server cannot follow the advice."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "is deprecated and will be removed" not in record.getMessage()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence TensorFlow's advice to use further loaders."""
    noise, advice = logging.getLogger("tensorflow"), _NoAdvice()
    noise.addFilter(advice)
    try:
        yield
    finally:
        noise.removeFilter(advice)
