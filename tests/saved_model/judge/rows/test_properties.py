"""Whatever graph is put together of the table's operations: a proof means that rows together equal each alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, event, given, settings

from tests.saved_model.judge.rows.graphs import Graph, Input

pytestmark = pytest.mark.slow

Step = Callable[[Any, Any, int], Any]
CONSTANTS = [tf.constant(value, tf.float32) for value in (2.0, [1.0, 2, 3], [[1.0, 2, 3]], [[1.0], [2.0]], [[3.0]])]


def axis(x: Any, n: int) -> int:
    return n % max(len(x.shape), 1)


def permutation(x: Any, n: int) -> list[int]:
    places = list(range(len(x.shape)))
    return places[n % len(places) :] + places[: n % len(places)]


def matmul(x: Any, y: Any, transposed: bool) -> Any:
    """A product; of up to three dimensions.

    TensorFlow 2.21.0 with oneDNN reads and writes beyond its memory where four dimensions, of which one is 1, meet a
    broadcast matrix (tensorflow/tensorflow#117700): the answer is wrong, alone or not, or the process dies.
    """
    if max(len(x.shape), len(y.shape)) > 3:
        raise ValueError
    return tf.matmul(x, y, transpose_b=transposed)


STEPS: tuple[Step, ...] = (
    lambda x, y, n: x + y,
    lambda x, y, n: x * tf.tanh(y),
    lambda x, y, n: x - CONSTANTS[n % 5],
    lambda x, y, n: tf.where(x > 0, x, y),
    lambda x, y, n: matmul(x, tf.ones([3, 2 + n % 2]), False),
    lambda x, y, n: matmul(x, y, bool(n % 2)),
    lambda x, y, n: tf.transpose(x, permutation(x, n)),
    lambda x, y, n: tf.reshape(x, [-1, 1 + n % 4]),
    lambda x, y, n: tf.reshape(x, [-1]),
    lambda x, y, n: tf.reshape(x, tf.concat([tf.shape(x)[: n % 3], [-1]], 0)),
    lambda x, y, n: tf.reshape(x, tf.shape(y)),
    lambda x, y, n: tf.reduce_max(x, axis(x, n)),
    lambda x, y, n: tf.reduce_sum(x, axis(x, n), keepdims=True),
    lambda x, y, n: tf.concat([x, y], axis(x, n)),
    lambda x, y, n: tf.stack([x, y], axis(x, n)),
    lambda x, y, n: tf.unstack(x, axis=axis(x, n), num=3)[n % 3],
    lambda x, y, n: tf.split(x, 3, axis(x, n))[n % 3],
    lambda x, y, n: x[..., n % 3 :],
    lambda x, y, n: x[n % 2 :],
    lambda x, y, n: x[:, n % 3],
    lambda x, y, n: x[:, ::-1],
    lambda x, y, n: x[:, None],
    lambda x, y, n: tf.slice(x, [0] * len(x.shape), [-1] * (len(x.shape) - 1) + [1 + n % 3]),
    lambda x, y, n: tf.tile(x, [2 if place == axis(x, n) else 1 for place in range(len(x.shape))]),
    lambda x, y, n: tf.tile(CONSTANTS[2 + n % 3], tf.stack([tf.shape(x)[0], 1])),
    lambda x, y, n: tf.broadcast_to(CONSTANTS[n % 3], tf.shape(x)),
    lambda x, y, n: tf.fill(tf.shape(x), 3.0),
    lambda x, y, n: tf.gather(x, [0, 0], axis=axis(x, n)),
    lambda x, y, n: tf.gather(CONSTANTS[1], tf.cast(tf.abs(x), tf.int32) % 3),
    lambda x, y, n: tf.gather(x, tf.cast(tf.abs(y), tf.int32) % 2, axis=axis(x, n), batch_dims=n % 2),
    lambda x, y, n: tf.gather(x, tf.range(tf.shape(x)[0])),
    lambda x, y, n: tf.expand_dims(x, axis(x, n)),
    lambda x, y, n: tf.squeeze(x, [axis(x, n)]),
    lambda x, y, n: tf.squeeze(x),
    lambda x, y, n: tf.nn.softmax(x),
    lambda x, y, n: tf.cumsum(x, axis(x, n)),
    lambda x, y, n: tf.reverse(x, [axis(x, n)]),
    lambda x, y, n: tf.pad(x, [[0, n % 2]] + [[0, 1]] * (len(x.shape) - 1)),
    lambda x, y, n: tf.one_hot(tf.cast(tf.abs(x), tf.int32) % 3, 3, axis=axis(x, n)),
    lambda x, y, n: tf.math.top_k(x, 1 + n % 2)[0],
    lambda x, y, n: tf.einsum("...i,...j->...ij" if n % 2 else "...i,...i->...", x, y),
    lambda x, y, n: x / tf.cast(tf.shape(x)[n % 2], tf.float32),
    lambda x, y, n: x * tf.cast(tf.size(x) > n % 2, tf.float32),
    lambda x, y, n: tf.cond(tf.shape(y)[0] > n % 3, lambda: x, lambda: -x),
    lambda x, y, n: tf.map_fn(lambda row: row * tf.reduce_max(row), x),
    lambda x, y, n: tf.map_fn(lambda row: row + y[0], x),
    lambda x, y, n: tf.while_loop(lambda i, z: i < tf.shape(y)[1], lambda i, z: (i + 1, z + y[:, i : i + 1]), [0, x])[
        1
    ],
    lambda x, y, n: tf.math.segment_sum(x, tf.range(tf.shape(x)[0])),
)
PROGRAMS = st.lists(
    st.tuples(st.integers(0, len(STEPS) - 1), st.integers(0, 9), st.integers(0, 9), st.integers(0, 7)),
    min_size=1,
    max_size=6,
)


def traced(program: list[tuple[int, int, int, int]]) -> Callable[..., Any]:
    """A function that applies the steps to the inputs and to what steps before gave; impossible steps do nothing."""

    def function(*inputs: Any) -> Any:
        pool = list(inputs)
        for step, first, second, number in program:
            try:
                pool.append(STEPS[step](pool[-1 - first % len(pool)], pool[-1 - second % len(pool)], number))
            except (ValueError, TypeError, IndexError, ZeroDivisionError):
                continue
        return pool[-1]

    return function


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(PROGRAMS)
def test_a_proof_means_that_rows_together_equal_each_alone(program: list[tuple[int, int, int, int]]) -> None:
    graph = Graph(traced(program), (Input(), Input(tf.float32, (1,)), Input(tf.float32, (3, 3))))
    findings = graph.findings()
    event("proven" if findings.proven else "mixed" if findings.mixed else "open")
    if not findings.proven:
        return
    try:
        alone = graph.alone()
    except tf.errors.OpError:
        return
    try:
        together = graph.together()
    except tf.errors.OpError:
        return  # Each request is run again alone then.
    assert graph.difference_of(together, alone) is None
