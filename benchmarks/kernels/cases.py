"""A small graph around each operation of TensorFlow's registry that has a CPU kernel, and hostile feeds for its inputs.

Each input of the operation is a placeholder of a declared rank, as an input of a signature is. Everything is drawn from
one `random.Random`, so that a case can be had again. Nothing here runs a kernel.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.python.framework import kernels, op_def_registry

from benchmarks.kernels.programs import PROGRAMS
from benchmarks.kernels.values import hostile
from embedserve.saved_model.files.graph import words

__all__ = ["Program", "Unbuildable", "make_feeds", "make_program", "targets"]

v1 = tf.compat.v1

# These reach outside the process, block by design, or need a function, a device or a queue that no request brings.
_SKIPPED_WORDS = (
    *("Dataset", "Iterator", "Collective", "PyFunc", "Session", "Summary", "TensorArray", "Save", "Stage", "Barrier"),
    *("Debug", "Copy", "Checkpoint", "FileSystem", "Sdca", "Print", "Restore", "Infeed", "Outfeed", "Sharded"),
)
_SKIPPED = words("""
    Abort Batch BatchFunction Case CheckPinned Enter Exit Merge Switch LoopCond For If While MapDefun PartitionedCall
    StatefulPartitionedCall RemoteCall StatelessCase StatelessIf StatelessWhile SymbolicGradient Send StackV2 Unbatch
    UnbatchGrad MapPeek OrderedMapPeek MapUnstage MapUnstageNoKey OrderedMapUnstage OrderedMapUnstageNoKey WriteFile
    ReadFile MatchingFiles WindowOp GenerateVocabRemapping LoadAndRemapMatrix NonDeterministicInts OptionalFromValue
    CompositeTensorVariantFromComponents DeepCopy TakeManySparseFromTensorsMap
    """)
# Attributes without a default that a model's author would choose; the first that fits the ranks is taken.
_ATTRIBUTES: dict[str, tuple[Any, ...]] = {
    "padding": ("SAME", "VALID"),
    "strides": ([1, 1, 1, 1], [1, 2, 2, 1], [1, 1, 1, 1, 1], [1, 2, 2, 2, 1]),
    "ksize": ([1, 2, 2, 1], [1, 1, 1, 1], [1, 2, 2, 2, 1]),
    "ksizes": ([1, 2, 2, 1], [1, 2, 2, 2, 1]),
    "rates": ([1, 1, 1, 1], [1, 2, 2, 1]),
    "pooling_ratio": ([1.0, 1.44, 1.73, 1.0],),
    "equation": ("ij,jk->ik", "ij->ji", "bij,bjk->bik", "...i,...i->..."),
    "pattern": ("a+", "(.)b"),
    "rewrite": ("x",),
    "mode": ("REFLECT", "SYMMETRIC", "MIN_COMBINED", "SCALED"),
    "set_operation": ("union", "intersection", "a-b"),
    "interpolation": ("NEAREST", "BILINEAR"),
    "input_encoding": ("UTF-8", "UTF-16-BE"),
    "output_encoding": ("UTF-8", "UTF-32-BE"),
    "merge_op": ("Max",),
    "final_op": ("Id", "Div"),
    "boundaries": ([0.0, 1.0, 5.0],),
    "ngram_widths": ([2], [1, 3]),
    "row_partition_types": (
        *(["ROW_SPLITS"], ["FIRST_DIM_SIZE", "VALUE_ROWIDS"], ["ROW_SPLITS", "ROW_SPLITS"]),
        ["FIRST_DIM_SIZE", "VALUE_ROWIDS", "VALUE_ROWIDS"],
    ),
    "unique": (True, False),
    "range_max": (5,),
    "num_sampled": (2,),
    "num_buckets": (7,),
    "block_size": (2,),
    "hash_key": (7,),
    "k": (2, 1),
}
_INTEGERS, _FLOATS, _TEXTS = (1, 2, 3), (0.5, 1.0), ("a", "", "|")
_MOST_RANKS = 5
_ATTEMPTS = 300


class Unbuildable(Exception):
    """No ranks and attributes were found with which TensorFlow's shape functions take the operation."""


@dataclass
class Program:
    """A graph with placeholders, ready to be run.

    Attributes:
        graph: Holds them.
        feeds: The placeholders.
        fetches: What to compute: tensors, or the operation where its outputs have no values.
        text: What the operation's ranks, dtypes and attributes are.
    """

    graph: Any
    feeds: list[Any]
    fetches: list[Any]
    text: str


def targets() -> list[str]:
    """Names of what is fuzzed: operations that TensorFlow offers in Python and has a CPU kernel for, and programs."""
    found = [name for name in dir(tf.raw_ops) if name[0].isupper() and _is_reachable(name)]
    return sorted(found) + sorted(PROGRAMS)


def _is_reachable(name: str) -> bool:
    definition = op_def_registry.get(name)
    if definition is None or not definition.input_arg or name in _SKIPPED or any(w in name for w in _SKIPPED_WORDS):
        return False
    if any(attr.type in ("func", "list(func)") for attr in definition.attr):
        return False
    if any(arg.is_ref or not _has_values(arg.type or types_pb2.DT_FLOAT) for arg in definition.input_arg):
        return False
    return bool(_cpu_kernels(name))


def _cpu_kernels(name: str) -> list[Any]:
    return [kernel for kernel in kernels.get_registered_kernels_for_op(name).kernel if kernel.device_type == "CPU"]


def _has_values(dtype: int) -> bool:
    return dtype not in (types_pb2.DT_RESOURCE, types_pb2.DT_VARIANT) and dtype < 100


def make_program(name: str, r: random.Random) -> Program:
    """The graph around an operation, with ranks, dtypes and attributes drawn.

    Raises:
        Unbuildable: TensorFlow took none that was tried.
    """
    for _ in range(_ATTEMPTS):
        graph = tf.Graph()
        with graph.as_default():
            try:
                feeds, outputs, text = _program(name, r) if name in PROGRAMS else _operation(name, r)
            except (ValueError, TypeError, tf.errors.OpError, KeyError, IndexError, OverflowError, RuntimeError):
                continue
        flat = [tensor for tensor in tf.nest.flatten(outputs) if tensor is not None]
        fetches = [
            tensor for tensor in flat if isinstance(tensor, tf.Tensor) and _has_values(tensor.dtype.as_datatype_enum)
        ]
        graph.finalize()
        return Program(graph, feeds, fetches or [t.op if isinstance(t, tf.Tensor) else t for t in flat], text)
    raise Unbuildable(name)


def _program(name: str, r: random.Random) -> tuple[list[Any], Any, str]:
    specs, build = PROGRAMS[name]
    feeds = [v1.placeholder(dtype, [None] * rank if isinstance(rank, int) else rank) for dtype, rank in specs]
    return feeds, build(*feeds), ", ".join(f"{feed.dtype.name}{feed.shape}" for feed in feeds)


def _operation(name: str, r: random.Random) -> tuple[list[Any], Any, str]:
    definition = op_def_registry.get(name)
    attributes = _attributes(definition, r.choice(_cpu_kernels(name)), r)
    feeds: list[Any] = []
    arguments: dict[str, Any] = {}
    like = r.randrange(_MOST_RANKS)

    def placeholder(dtype: int) -> Any:
        # Integers are mostly sizes, axes and indices.
        small = dtype in (types_pb2.DT_INT32, types_pb2.DT_INT64) and r.random() < 0.6
        rank = r.randrange(2) if small else like if r.random() < 0.4 else r.randrange(_MOST_RANKS)
        feeds.append(v1.placeholder(tf.as_dtype(dtype), [None] * rank))
        return feeds[-1]

    for arg in definition.input_arg:
        if arg.type_list_attr:
            arguments[arg.name] = [placeholder(dtype) for dtype in attributes[arg.type_list_attr]]
            continue
        dtype = arg.type or attributes[arg.type_attr]
        if arg.number_attr:
            arguments[arg.name] = [placeholder(dtype) for _ in range(attributes[arg.number_attr])]
        else:
            arguments[arg.name] = placeholder(dtype)
    inferred = {arg.type_attr for arg in definition.input_arg} | {arg.number_attr for arg in definition.input_arg}
    inferred |= {arg.type_list_attr for arg in definition.input_arg}
    given = {key: value for key, value in attributes.items() if key not in inferred}
    outputs = getattr(tf.raw_ops, name)(**arguments, **given)
    text = ", ".join(f"{feed.dtype.name}{[None] * feed.shape.rank}" for feed in feeds)
    return feeds, outputs, f"({text}) {given or ''}"


def _attributes(definition: Any, kernel: Any, r: random.Random) -> dict[str, Any]:
    """A value for each attribute that has to be given, and for some of the others."""
    allowed = {constraint.name: list(constraint.allowed_values.list.type) for constraint in kernel.constraint}
    inputs = {arg.type_attr for arg in definition.input_arg}
    chosen: dict[str, Any] = {}
    for attr in definition.attr:
        options = attr.allowed_values.list
        if attr.type == "type":
            types = allowed.get(attr.name) or list(options.type) or [1, 3, 9, 7]
            if attr.HasField("default_value") and attr.name not in inputs and attr.default_value.type in types:
                continue
            types = [dtype for dtype in types if _has_values(dtype)]
            chosen[attr.name] = r.choice(types)
        elif attr.type == "list(type)":
            default = attr.default_value.list.type if attr.HasField("default_value") else [0]
            if attr.HasField("default_value") and not default:
                chosen[attr.name] = []
            else:
                types = [dtype for dtype in options.type or [1, 9, 7] if _has_values(dtype)]
                chosen[attr.name] = [r.choice(types) for _ in range(r.randrange(1, 3))]
        elif attr.HasField("default_value"):
            if attr.type == "bool" and r.random() < 0.3:
                chosen[attr.name] = not attr.default_value.b
            elif attr.type == "string" and options.s and r.random() < 0.2:
                chosen[attr.name] = r.choice(options.s).decode()
        else:
            chosen[attr.name] = _attribute(attr, r)
    if "num_row_partition_tensors" in chosen:
        chosen["num_row_partition_tensors"] = len(chosen["row_partition_types"])
    return chosen


def _attribute(attr: Any, r: random.Random) -> Any:
    if attr.name in _ATTRIBUTES:
        return r.choice(_ATTRIBUTES[attr.name])
    if attr.allowed_values.list.s:
        return r.choice(attr.allowed_values.list.s).decode()
    plain: dict[str, Callable[[], Any]] = {
        "int": lambda: r.choice(_INTEGERS),
        "float": lambda: r.choice(_FLOATS),
        "bool": lambda: r.random() < 0.5,
        "string": lambda: r.choice(_TEXTS),
        "shape": lambda: r.choice([None, [], [2]]),
        "list(int)": lambda: [1] * r.randrange(1, 5),
        "list(float)": lambda: [1.0] * r.randrange(1, 5),
        "list(string)": lambda: ["a"] * r.randrange(3),
        "list(shape)": lambda: [r.choice([[], [2]]) for _ in range(r.randrange(1, 3))],
    }
    return plain[attr.type]()


def make_feeds(program: Program, r: random.Random) -> dict[Any, np.ndarray[Any, Any]]:
    """Arrays for the placeholders: shapes that often agree, values that often should not be there."""
    common = r.choice([1, 2, 2, 3, 4])
    agreeing = r.random() < 0.7
    feeds = {}
    for feed in program.feeds:
        shape = []
        for declared in feed.shape.as_list():
            if declared is not None:
                shape.append(declared)
            elif agreeing and r.random() < 0.9:
                shape.append(common)
            else:
                shape.append(r.choice([0, 1, 1, 2, 3, 4, 7]))
        feeds[feed] = hostile(feed.dtype.as_numpy_dtype, tuple(shape), r)
    return feeds
