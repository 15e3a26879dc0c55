"""Scales that follow a convolution go into its weights, and equal constants become one, without another answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from embedserve.saved_model.optimise.folding import fold_channel_scales, share_constants
from embedserve.servable import Array

v1 = tf.compat.v1
RANDOM = np.random.default_rng(5)


def floats(*shape: int) -> Array:
    return RANDOM.uniform(0.5, 1.5, shape).astype(np.float32)


def convolution(x: Any, weights: Array | None = None) -> Any:
    weights = floats(3, 3, 3, 4) if weights is None else weights
    return tf.nn.conv2d(x, tf.constant(weights), 1, "SAME", name="convolution")


def depthwise(x: Any) -> Any:
    """Three channels in, six out."""
    return tf.nn.depthwise_conv2d(x, tf.constant(floats(3, 3, 3, 2)), [1, 1, 1, 1], "SAME", name="convolution")


def normalised(x: Any, training: bool = False) -> Any:
    channels = x.shape[-1]
    moments: dict[str, Any] = {} if training else {"mean": floats(channels), "variance": floats(channels)}
    return v1.nn.fused_batch_norm(
        x, floats(channels), floats(channels), is_training=training, epsilon=0.01, name="norm", **moments
    )[0]


def graph_of(build: Callable[[Any], Any]) -> Any:
    with tf.Graph().as_default() as graph:
        x = v1.placeholder(tf.float32, [None, 5, 5, 3], "x")
        tf.identity(build(x), name="y")
    return graph.as_graph_def()


def run(graph_def: Any, image: Array) -> Array:
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        tf.graph_util.import_graph_def(graph_def, name="")
        answer: Array = session.run("y:0", {"x:0": image})
    return answer


def operations(graph_def: Any) -> Counter[str]:
    """What `y` is computed with."""
    return Counter(node.op for node in v1.graph_util.extract_sub_graph(graph_def, ["y"]).node)


FOLDED: dict[str, Callable[[Any], Any]] = {
    "a scale per channel": lambda x: convolution(x) * floats(4),
    "the scale first": lambda x: floats(1, 1, 1, 4) * convolution(x),
    "one scale for all": lambda x: convolution(x) * np.float32(0.3),
    "depthwise, two channels of each": lambda x: depthwise(x) * floats(6),
    "normalisation": lambda x: normalised(convolution(x)),
    "normalisation, depthwise": lambda x: normalised(depthwise(x)),
}


@pytest.mark.parametrize("build", FOLDED.values(), ids=FOLDED)
def test_scales_go_into_the_weights(build: Callable[[Any], Any]) -> None:
    before = graph_of(build)
    kept = before.SerializeToString(deterministic=True)
    after = fold_channel_scales(before, ["x:0", "y:0"])
    assert before.SerializeToString(deterministic=True) == kept
    found = operations(after)
    assert found["Mul"] == 0
    assert not any(name.startswith("FusedBatchNorm") for name in found)
    image = floats(2, 5, 5, 3)
    assert np.allclose(run(after, image), run(before, image), rtol=1e-5)


def twice(x: Any) -> Any:
    convolved = convolution(x)
    return convolved * floats(4) + convolved


LEFT_ALONE: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "used besides": (twice, ()),
    "fetched before it is scaled": (lambda x: convolution(x) * floats(4), ("convolution:0",)),
    "a scale per place": (lambda x: convolution(x) * floats(5, 5, 4), ()),
    "a scale that is no constant": (lambda x: convolution(x) * tf.reduce_mean(x), ()),
    "a scale of more dimensions": (lambda x: tf.squeeze(convolution(x) * floats(1, 1, 1, 1, 4), 0), ()),
    "normalised by the batch": (lambda x: normalised(convolution(x), training=True), ()),
    "the normalised is fetched": (lambda x: normalised(convolution(x)), ("norm:0",)),
    "doubles": (lambda x: tf.nn.conv2d(tf.cast(x, tf.float64), np.ones((1, 1, 3, 2)), 1, "SAME") * np.ones(2), ()),
    "no convolution": (lambda x: tf.matmul(tf.reshape(x, [-1, 3]), floats(3, 4)) * floats(4), ()),
}


@pytest.mark.parametrize(("build", "kept"), LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_a_fold_would_change_is_left_alone(build: Callable[[Any], Any], kept: tuple[str, ...]) -> None:
    before = graph_of(build)
    after = fold_channel_scales(before, ["x:0", "y:0", *kept])
    assert operations(after) == operations(before)


def test_weights_that_are_shared_are_scaled_for_one_convolution_only() -> None:
    weights = floats(3, 3, 3, 4)
    before = graph_of(lambda x: convolution(x, weights) * floats(4) + convolution(x, weights))
    share_constants(before, ["x:0", "y:0"])
    after = fold_channel_scales(before, ["x:0", "y:0"])
    assert operations(after)["Mul"] == 0
    image = floats(1, 5, 5, 3)
    assert np.allclose(run(after, image), run(before, image), rtol=1e-5)


def test_large_equal_constants_become_one() -> None:
    large, small = floats(3, 3, 3, 16), floats(3)

    def build(x: Any) -> Any:
        return convolution(x + small, large) - convolution(x + small, large) + convolution(x, large[::-1])

    graph_def = graph_of(build)
    image = floats(1, 5, 5, 3)
    before, answer = operations(graph_def)["Const"], run(graph_def, image)
    share_constants(graph_def, ["x:0", "y:0"])
    assert before - operations(graph_def)["Const"] == 1
    assert np.array_equal(run(graph_def, image), answer)


def test_a_constant_that_is_fetched_stays() -> None:
    weights = floats(3, 3, 3, 16)
    with tf.Graph().as_default() as graph:
        tf.add(tf.constant(weights, name="first"), tf.constant(weights, name="second"), name="y")
    graph_def = graph.as_graph_def()
    share_constants(graph_def, ["second:0", "y:0"])
    assert {node.name for node in v1.graph_util.extract_sub_graph(graph_def, ["y"]).node} == {"first", "second", "y"}
