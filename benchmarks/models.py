"""SavedModels that the benchmarks make for themselves: small ones with a known answer, and hostile shapes.

python -m benchmarks.models DIRECTORY half|mlp|mobilenet ...

makes those of the suite, `DIRECTORY/<name>/1`, each from `x` to `y`, and beside each of them `DIRECTORY/<name>.npz`
with a few rows of `x` and what a plain signature call answers to each.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

Spec = tf.TensorSpec
EXAMPLES = 4


class Half(tf.Module):
    """y = x / 2 + 2 over one value: what it costs is the way to the model and back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = tf.Variable(0.5), tf.Variable(2.0)

    @tf.function(input_signature=[Spec([None, 1], tf.float32, name="x")])
    def serve(self, x: Any) -> dict[str, Any]:
        return {"y": self.a * x + self.b}


class Mlp(tf.Module):
    """784 → 512 → 10, as in every MNIST tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = tf.Variable(tf.random.stateless_normal([784, 512], [1, 2]) / 28)
        self.out = tf.Variable(tf.random.stateless_normal([512, 10], [3, 4]) / 22)

    @tf.function(input_signature=[Spec([None, 784], tf.float32, name="x")])
    def serve(self, x: Any) -> dict[str, Any]:
        return {"y": tf.nn.softmax(tf.nn.relu(x @ self.hidden) @ self.out)}


class Recurrent(tf.Module):
    """16 values through 400 small steps, one after the other: a run costs much by itself and little for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = tf.Variable(tf.random.stateless_normal([16, 16], [1, 2]) / 4)

    @tf.function(input_signature=[Spec([None, 16], tf.float32, name="x")])
    def serve(self, x: Any) -> dict[str, Any]:
        y = x
        for _ in tf.range(400):
            y = tf.tanh(x + y @ self.weights)
        return {"y": y}


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


def export_mobilenet(images: Any, version_directory: Path) -> None:
    """By Keras' own export: what `tf.saved_model.save` writes of a Keras 3 model runs in no session.

    Untrained weights answer everything alike, so the normalisations are first fitted to `images`.
    """
    import keras

    keras.utils.set_random_seed(1)
    model = keras.applications.MobileNet(weights=None)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images, training=True)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default", lambda x: {"y": model(x)}, input_signature=[Spec([None, 224, 224, 3], tf.float32, name="x")]
    )
    archive.write_out(str(version_directory), verbose=False)


def examples(name: str) -> Any:
    """A few rows of a model's `x`; as pixels where it takes pixels."""
    random = np.random.default_rng(0)
    if name == "half":
        return np.arange(1, EXAMPLES + 1, dtype=np.float32)[:, None]
    if name == "mlp":
        return random.integers(0, 256, (EXAMPLES, 784)).astype(np.float32) / np.float32(255)
    images = random.integers(0, 256, (EXAMPLES, 224, 224, 3)).astype(np.float32) / np.float32(255)
    # From dark to light, so that each gets an answer of its own.
    return images * np.linspace(0.25, 1, EXAMPLES, dtype=np.float32)[:, None, None, None]


def make(name: str, directory: Path) -> None:
    """Make one of the suite's models and its examples; those last, as the sign that both are whole."""
    x, version_directory = examples(name), directory / name / "1"
    if name == "mobilenet":
        export_mobilenet(x, version_directory)
    else:
        save(Half() if name == "half" else Mlp(), version_directory)
    signature = tf.saved_model.load(str(version_directory)).signatures["serving_default"]
    y = np.concatenate([signature(x=tf.constant(row[None]))["y"].numpy() for row in x])
    np.savez(directory / f"{name}.npz", x=x, y=y)


def drop(template: Path, version_directory: Path) -> None:
    """Copy as a careful deployment would: under another name first, then renamed into place."""
    hidden = version_directory.with_name(f".{version_directory.name}")
    shutil.copytree(template, hidden)
    hidden.rename(version_directory)


if __name__ == "__main__":
    for wanted in sys.argv[2:]:
        make(wanted, Path(sys.argv[1]))
