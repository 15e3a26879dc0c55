"""Builders of small SavedModels whose signatures declare a fixed dimension 0."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tests.support import saved_models

v1 = tf.compat.v1


def export(path: Path, function: Callable[..., Any], *specs: Any) -> Path:
    """A TensorFlow 2 model of one function."""
    traced = tf.function(function, input_signature=list(specs), autograph=False)
    tf.saved_model.save(tf.Module(), str(path), signatures={"serving_default": traced.get_concrete_function()})
    return path


def like_resnet(path: Path, rows: int = 64) -> Path:
    """As the published ResNet SavedModels: a TF1 graph over `image [64,8,8,3]`, with `classes` and `probabilities`."""
    random = np.random.default_rng(3)
    with tf.Graph().as_default(), v1.Session() as session:
        image = v1.placeholder(tf.float32, [rows, 8, 8, 3], "input_tensor")
        kernel = v1.get_variable("kernel", initializer=random.normal(size=(3, 3, 3, 4)).astype(np.float32))
        mean = v1.get_variable("mean", initializer=np.zeros(4, np.float32))
        weights = v1.get_variable("weights", initializer=random.normal(size=(4, 5)).astype(np.float32))
        maps = tf.nn.conv2d(image, kernel, 2, "SAME")
        maps, *_ = v1.nn.fused_batch_norm(maps, mean + 1.0, mean, mean, mean + 2.0, is_training=False)
        pooled = tf.reduce_mean(tf.nn.relu(maps), [1, 2], keepdims=True)
        logits = tf.matmul(tf.squeeze(pooled, [1, 2]), weights)
        outputs = {
            "classes": tf.argmax(logits, 1, name="ArgMax"),
            "probabilities": tf.nn.softmax(logits, name="softmax_tensor"),
        }
        session.run(v1.global_variables_initializer())
        signatures = {"serving_default": saved_models.v1_signature({"input": image}, outputs)}
        return saved_models.save_v1(path, session, signatures)


def sized(path: Path, rows: int = 4) -> Path:
    """A TensorFlow 2 function over `x [rows,3]` that asks for its size at run time, in a loop as well."""
    weights = tf.constant(np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32))

    def serve(x: Any) -> Any:
        y = tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 0.5), [0, x @ weights])[1]
        count = tf.raw_ops.Shape(input=y)[:1]
        return {"y": tf.nn.softmax(y), "flat": tf.reshape(y, tf.concat([count, [-1]], 0))}

    return export(path, serve, tf.TensorSpec([rows, 3], tf.float32, "x"))


def keras_model(path: Path) -> Path:
    """A Keras model with `batch_size=2`."""
    import keras

    keras.utils.set_random_seed(1)
    x = keras.Input((6,), batch_size=2, name="x")
    hidden = keras.layers.BatchNormalization()(keras.layers.Dense(5, "relu")(x))
    model = keras.Model(x, keras.layers.Dense(3, "softmax")(hidden))
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.call, [tf.TensorSpec([2, 6], tf.float32, "x")])
    archive.write_out(str(path), verbose=False)
    return path
