"""Small graphs for the tests of row independence: what the analysis says, and what TensorFlow does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from embedserve.saved_model.judge.compare import equal
from embedserve.saved_model.judge.rows.walk import Findings, RowAnalysis
from embedserve.servable import Array

# Requests of two, one and three rows.
REQUESTS = ((0, 2), (2, 3), (3, 6))
ROWS = 6
WORDS = (b"a", b"bb c", b"", b"dd e f gggg", b"h", b"i j")


@dataclass(frozen=True)
class Input:
    """One input: its dtype, its sizes after the rows (None for unknown, run with 4), and its six rows."""

    dtype: Any = tf.float32
    tail: tuple[int | None, ...] = (3,)
    values: Any = None

    def spec(self) -> Any:
        """As a signature declares it."""
        return tf.TensorSpec([None, *self.tail], self.dtype)

    def rows(self) -> Array:
        """Six rows that are unlike in sign, size and length."""
        if self.values is not None:
            return np.array(self.values, object if self.dtype == tf.string else self.dtype.as_numpy_dtype)
        shape = (ROWS, *(4 if size is None else size for size in self.tail))
        random = np.random.default_rng(7)
        if self.dtype == tf.string:
            return np.array(
                [random.choice(np.array(WORDS, object)) for _ in range(int(np.prod(shape)))], object
            ).reshape(shape)
        if self.dtype == tf.bool:
            return np.asarray(random.random(shape) < 0.5)
        if self.dtype.is_floating or self.dtype.is_complex:
            sizes = np.array([0.1, 1, 5, 0.5, 2, 0.01]).reshape(-1, *(1,) * len(self.tail))
            return np.asarray(random.normal(size=shape) * sizes, self.dtype.as_numpy_dtype)
        return np.asarray(random.integers(0, 4, shape), self.dtype.as_numpy_dtype)


@dataclass(frozen=True)
class Case:
    """A function of rows."""

    name: str
    function: Callable[..., Any]
    inputs: Sequence[Input] = field(default_factory=lambda: (Input(),))

    def __str__(self) -> str:
        return self.name


class Graph:
    """A traced function, its GraphDef and its answers."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Input]) -> None:
        self._rows = [one.rows() for one in inputs]
        traced = tf.function(lambda *tensors: tf.nest.flatten(function(*tensors)))
        self._call = traced.get_concrete_function(*(one.spec() for one in inputs))
        graph = self._call.graph
        self.meta_graph = tf.compat.v1.MetaGraphDef()
        self.meta_graph.graph_def.CopyFrom(graph.as_graph_def())
        shapes = {captured.name.partition(":")[0]: handle for handle, captured in graph.captures}
        for node in self.meta_graph.graph_def.node:
            variables = [one for one in self._call.variables if one.handle is shapes.get(node.name)]
            if variables:
                node.op = "VarHandleOp"
                node.attr["shape"].shape.CopyFrom(variables[0].shape.as_proto())
        fed = [tensor for tensor in graph.inputs if tensor.name.partition(":")[0] not in shapes]
        self._fed = {tensor.name: tensor.shape.as_list() for tensor in fed}
        self._outputs = [tensor.name for tensor in graph.outputs]

    def findings(self) -> Findings:
        """What the analysis says."""
        return RowAnalysis(self.meta_graph).judge(self._fed, self._outputs)

    def nodes(self) -> set[str]:
        """Node names, nested functions included."""
        graph = self.meta_graph.graph_def
        return {node.name for body in (graph, *graph.library.function) for node in _nodes(body)}

    def operations(self) -> set[str]:
        """Op types, nested functions included."""
        graph = self.meta_graph.graph_def
        return {node.op for body in (graph, *graph.library.function) for node in _nodes(body)}

    def _run(self, inputs: Sequence[Array]) -> list[Array]:
        return [tensor.numpy() for tensor in self._call(*map(tf.constant, inputs))]

    def alone(self) -> list[list[Array]]:
        """The answers of each request."""
        return [self._run([rows[start:stop] for rows in self._rows]) for start, stop in REQUESTS]

    def together(self) -> list[Array]:
        """The answers of all rows at once."""
        return self._run(self._rows)

    def difference(self) -> str | None:
        """How the six rows together differ from three requests alone; None if they do not."""
        return self.difference_of(self.together(), self.alone())

    @staticmethod
    def difference_of(together: Sequence[Array], alone: Sequence[Sequence[Array]]) -> str | None:
        """As `difference`, of answers."""
        for index, merged in enumerate(together):
            if merged.ndim == 0 or len(merged) != ROWS:
                return f"output {index} has shape {merged.shape}"
            for (start, stop), answers in zip(REQUESTS, alone, strict=True):
                if not equal(np.asarray(merged[start:stop]), np.asarray(answers[index])):
                    return f"rows {start} to {stop} of output {index}: {merged[start:stop]} and {answers[index]}"
        return None


def _nodes(body: Any) -> Any:
    return body.node_def if hasattr(body, "node_def") else body.node


def texts(*values: bytes) -> Input:
    """A vector of six texts."""
    return Input(tf.string, (), values or WORDS)


def examples(**features: Sequence[Any]) -> Input:
    """Six serialized examples with these features, a sequence of values for each row."""

    def feature(values: Sequence[Any]) -> Any:
        if values and isinstance(values[0], bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        if values and isinstance(values[0], float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    made = []
    for row in range(ROWS):
        by_name: Mapping[str, Any] = {name: feature(values[row]) for name, values in features.items() if values[row]}
        made.append(tf.train.Example(features=tf.train.Features(feature=by_name)).SerializeToString())
    return Input(tf.string, (), made)


def named(cases: Mapping[str, Any]) -> Iterator[Case]:
    """Cases from `{name: function}` or `{name: (function, *inputs)}`."""
    for name, case in cases.items():
        function, *inputs = case if isinstance(case, tuple) else (case,)
        yield Case(name, function, inputs or (Input(),))
