"""Every use of TensorFlow's private interfaces, each with the public way beside it for versions that lack it.

Why at all: calling a signature costs 100-250 µs of Python; the calls here cost 5-20 µs and can be cancelled. Callers
see one interface and need not know which way was taken. Knows no model and no servable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import tensorflow as tf

from embedserve.servable import Array

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
    """Calls one concrete function: arrays in its inputs' order go in, arrays or scalars in its outputs' order come out.

    What comes out may share memory with the inputs, with variables and with constants: copy before giving it away.
    """

    def __call__(self, arrays: Sequence[Array], started: Callable[[Callable[[], None]], None] | None) -> list[Any]:
        """Run; `started` is given a function that stops the run from any thread, if it can be stopped."""


class CancellableCall:
    """Runs a function through TensorFlow's own binding, with a CancellationManager per run.

    By its own name, as a signature call does: TensorFlow's pool runs it, 45 µs, and its kernel goes when it goes. Or
    `inline`, as a `StatefulPartitionedCall`: the caller's thread runs it, 19 µs, and TensorFlow keeps the kernel, graph
    and constants included, until `forget_kernels`.
    """

    def __init__(self, function: Any, *, inline: bool = False) -> None:
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
        self._attributes: tuple[Any, ...] = (
            *("config_proto", eager.function_call_options.config_proto_serialized),
            *("executor_type", ""),
        )
        if inline:
            self._attributes += (
                *("Tin", [tensor.dtype.as_datatype_enum for tensor in function.inputs]),
                *("Tout", [tensor.dtype.as_datatype_enum for tensor in function.outputs]),
                *("f", function.name),
            )
        self._function = function  # Keeps the function, its variables and its tables alive.

    def __call__(self, arrays: Sequence[Array], started: Callable[[Callable[[], None]], None] | None) -> list[Any]:
        manager = self._manager()
        if started is not None:
            started(manager.start_cancel)
        make = self._tensor
        tensors = [make(array, _CPU, None) for array in arrays]
        tensors += self._captured
        outputs = self._execute(self._context, "", self._op, tensors, self._attributes, manager._impl, self._outputs)
        return [tensor._numpy_internal() for tensor in outputs]


class PublicFunctionCall:
    """The same through `tf.raw_ops`: twice as slow, and it cannot be cancelled."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self._captured = list(function.captured_inputs)
        self._types = [tensor.dtype for tensor in function.outputs]

    def __call__(self, arrays: Sequence[Array], started: Callable[[Callable[[], None]], None] | None) -> list[Any]:
        tensors = [tf.constant(array) for array in arrays]
        outputs = tf.raw_ops.StatefulPartitionedCall(
            args=[*tensors, *self._captured], Tout=self._types, f=self._function
        )
        return [tensor.numpy() for tensor in outputs]


def function_call(function: Any, *, inline: bool = False) -> FunctionCall:
    """The fastest call of a concrete function that this TensorFlow has; `inline` as for `CancellableCall`."""
    try:
        return CancellableCall(function, inline=inline)
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning("TensorFlow %s: runs are slower and cannot be cancelled (%s)", tf.__version__, error)
        return PublicFunctionCall(function)


def forget_kernels() -> None:
    """Drop every kernel that TensorFlow keeps in this process; those still in use are made again at their next call.

    Runs that are going on in other threads are not disturbed.
    """
    try:
        from tensorflow.python.eager import context

        context.context().clear_kernel_cache()
    except (ImportError, AttributeError) as error:
        logger.debug("TensorFlow %s keeps the kernels of unloaded models: %s", tf.__version__, error)


def argument_names(function: Any) -> list[str]:
    """Names of a signature function's keyword arguments in the order of its inputs (captured ones left out)."""
    names = getattr(function, "_arg_keywords", None)
    if names is not None:
        return list(names)
    keywords: dict[str, Any] = function.structured_input_signature[1]
    free = len(function.inputs) - len(function.captured_inputs)
    by_placeholder = [tensor.name.partition(":")[0] for tensor in function.inputs[:free]]
    return by_placeholder if set(by_placeholder) == set(keywords) else sorted(keywords)


def session_callable(session: Any, feeds: Sequence[str], fetches: Sequence[str]) -> Callable[..., list[Any]]:
    """A function from fed arrays to fetched ones that runs every op in the caller's thread: 5 µs, no time limit.

    It compiles a copy of the graph for itself, constants included. Outputs may share memory with inputs and variables.
    """
    config = tf.compat.v1.RunOptions(inter_op_thread_pool=-1)
    try:
        from tensorflow.core.protobuf.config_pb2 import CallableOptions

        options = CallableOptions(feed=feeds, fetch=fetches, run_options=config)
        call: Callable[..., list[Any]] = session._make_callable_from_options(options)
        return call
    except (ImportError, AttributeError):
        return lambda *arrays: list(session.run(list(fetches), dict(zip(feeds, arrays, strict=True)), options=config))


def session_run(
    session: Any, feeds: Sequence[str], fetches: Sequence[str]
) -> Callable[[Sequence[Array], int], list[Any]]:
    """A function from fed arrays and a time limit (ms, 0 is none) to fetched arrays: 35 µs, in TensorFlow's pool.

    Every such function over the same tensors shares one compiled graph. Outputs as for `session_callable`.
    """
    graph = session.graph
    try:
        from tensorflow.python.client import pywrap_tf_session as wrapped

        handle, run = session._session, wrapped.TF_SessionRun_wrapper
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

    def call(arrays: Sequence[Array], limit: int) -> list[Any]:
        feed = dict(zip(sources, arrays, strict=True))
        if not limit:
            values: list[Any] = run(handle, None, feed, wanted, [], None)
            return values
        options = new_buffer(tf.compat.v1.RunOptions(timeout_in_ms=limit).SerializeToString())
        try:
            values = run(handle, options, feed, wanted, [], None)
            return values
        finally:
            delete_buffer(options)

    return call


def _op_def(op: str) -> Any:
    try:
        from tensorflow.python.framework import op_def_registry

        return op_def_registry.get(op)
    except (ImportError, AttributeError):
        return None


def op_definition(op: str, stored: Any = None) -> Any:
    """The `OpDef` of an op type, or `stored`, the SavedModel's own; None if nobody knows it."""
    return _op_def(op) or stored


def is_stateful(op: str, stored: Any = None) -> bool:
    """Whether an op type is registered as stateful; `stored` is the SavedModel's own `OpDef`, if it has one.

    An op that nobody knows counts as stateful.
    """
    definition = op_definition(op, stored)
    return definition is None or bool(definition.is_stateful)


def takes_resources(op: str, stored: Any = None) -> bool:
    """Whether an op type takes a handle of a resource: a variable, a table, a generator of random numbers."""
    definition = _op_def(op) or stored
    return definition is None or any(argument.type == _RESOURCE for argument in definition.input_arg)


def string_inputs(op: str, stored: Any = None) -> list[str]:
    """Names of an op type's inputs that are strings."""
    definition = _op_def(op) or stored
    return [] if definition is None else [arg.name for arg in definition.input_arg if arg.type == _STRING]


def takes_references(op: str, stored: Any = None) -> bool:
    """Whether an op type takes a TF1 reference, through which it may write a variable."""
    definition = op_definition(op, stored)
    return definition is not None and any(argument.is_ref for argument in definition.input_arg)


def optimized_graph(graph_def: Any, kept: Iterable[str], optimizers: Iterable[str]) -> Any | None:
    """A `GraphDef` after some of grappler's optimizers; None where this TensorFlow has no such door: there is no other.

    Args:
        graph_def: Not changed.
        kept: Tensors that are fed or fetched: their nodes keep their names.
        optimizers: `function` puts called functions in place of their calls, `constfold` computes what is constant...
    """
    try:
        from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
        from tensorflow.python.grappler import tf_optimizer

        optimize = tf_optimizer.OptimizeGraph
    except (ImportError, AttributeError) as error:
        logger.warning("TensorFlow %s: graphs cannot be optimised ahead of their use (%s)", tf.__version__, error)
        return None
    meta_graph: Any = MetaGraphDef()
    meta_graph.graph_def.CopyFrom(graph_def)
    meta_graph.collection_def["train_op"].node_list.value.extend(kept)
    config = tf.compat.v1.ConfigProto()
    rewrites = config.graph_options.rewrite_options
    rewrites.min_graph_nodes = -1  # Small ones, too.
    rewrites.optimizers.extend(optimizers)
    return optimize(config, meta_graph)


def process_config() -> Any:
    """The `ConfigProto` this process runs TensorFlow with, for sessions to follow."""
    try:
        from tensorflow.python.eager import context

        config = tf.compat.v1.ConfigProto()
        config.CopyFrom(context.context().config)
        return config
    except (ImportError, AttributeError, TypeError):
        return tf.compat.v1.ConfigProto(allow_soft_placement=True)


class _NoAdvice(logging.Filter):
    """Drops advice about TensorFlow's own interfaces: whoever serves a model cannot follow it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "is deprecated and will be removed" not in record.getMessage()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep TensorFlow from advising users of its loaders to use others."""
    noise, advice = logging.getLogger("tensorflow"), _NoAdvice()
    noise.addFilter(advice)
    try:
        yield
    finally:
        noise.removeFilter(advice)
