"""SavedModels that the benchmarks make for themselves: small ones with a known answer, and hostile shapes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import tensorflow as tf

Spec = tf.TensorSpec


class Tiny(tf.Module):
    """y = x + version, beside the version itself: an answer says which version, or versions, made it."""

    def __init__(self, version: int) -> None:
        super().__init__()
        self.version = tf.Variable(float(version))

    @tf.function(input_signature=[Spec([None, 4], tf.float32, name="x")])
    def serve(self, x: Any) -> dict[str, Any]:
        return {"y": x + self.version, "version": tf.fill([tf.shape(x)[0]], self.version)}


class Conv2D(tf.Module):
    """A convolution over images [rows, 8, 8, 3], or over whatever rank comes when `rank_known` is false."""

    def __init__(self, rank_known: bool = True) -> None:
        super().__init__()
        self.kernel = tf.Variable(tf.random.stateless_normal([3, 3, 3, 4], [1, 2]))
        shape = [None, 8, 8, 3] if rank_known else None
        self.serve = tf.function(self._serve, input_signature=[Spec(shape, tf.float32, name="image")])

    def _serve(self, image: Any) -> dict[str, Any]:
        return {"y": tf.reduce_mean(tf.nn.conv2d(image, self.kernel, 1, "SAME"), axis=[1, 2])}


class TextCNN(tf.Module):
    """Token ids int32 [rows, length] -> embedding -> 1-D convolution -> max over the length."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = tf.Variable(tf.random.stateless_normal([100, 8], [1, 2]))
        self.kernel = tf.Variable(tf.random.stateless_normal([3, 8, 4], [3, 4]))

    @tf.function(input_signature=[Spec([None, None], tf.int32, name="tokens")])
    def serve(self, tokens: Any) -> dict[str, Any]:
        embedded = tf.nn.embedding_lookup(self.embedding, tf.math.floormod(tokens, 100))
        return {"y": tf.reduce_max(tf.nn.conv1d(embedded, self.kernel, 1, "SAME"), axis=1)}


def save(module: Any, version_directory: Path) -> None:
    signature = module.serve.get_concrete_function()
    tf.saved_model.save(module, str(version_directory), signatures={"serving_default": signature})


def save_mobilenet(seed: int, version_directory: Path) -> None:
    import keras

    keras.utils.set_random_seed(seed)
    model = keras.applications.MobileNet(weights=None)
    serve = tf.function(
        lambda image: {"probabilities": model(image)},
        input_signature=[Spec([None, 224, 224, 3], tf.float32, name="image")],
    )
    tf.saved_model.save(model, str(version_directory), signatures={"serving_default": serve})


def drop(template: Path, version_directory: Path) -> None:
    """Copy as a careful deployment would: under another name first, then renamed into place."""
    hidden = version_directory.with_name(f".{version_directory.name}")
    shutil.copytree(template, hidden)
    hidden.rename(version_directory)
