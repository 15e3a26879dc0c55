"""Trains a dense network on scikit-learn's 1,797 real handwritten digits and exports it as one version.

python -m examples.digits.train models/digits/1 --hidden 16 --epochs 3
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Digits(NamedTuple):
    """Images [n, 64] of 8x8 grey values 0..16, and what they show [n]; the held-out part is never trained on."""

    images: Images
    labels: Labels
    held_out_images: Images
    held_out_labels: Labels


def load_digits() -> Digits:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.data))
    images, labels = found.data[order].astype(np.float32), found.target[order].astype(np.int64)
    return Digits(images[360:], labels[360:], images[:360], labels[:360])


def as_mnist(images: Images) -> Images:
    """[n, 64] of 8x8 -> [n, 28, 28], the shape that MNIST has."""
    big = np.kron(images.reshape(-1, 8, 8), np.ones((1, 3, 3), np.float32))
    return np.pad(big, ((0, 0), (2, 2), (2, 2))).astype(np.float32)


def train(hidden: int, epochs: int, seed: int = 1) -> Any:
    import keras

    digits = load_digits()
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((64,), name="pixels"),
            keras.layers.Rescaling(1 / 16),
            keras.layers.Dense(hidden, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(digits.images, digits.labels, batch_size=32, epochs=epochs, verbose=0)
    return model


def export(model: Any, version_directory: Path) -> None:
    """Write `serving_default`: pixels float [rows, 64] -> digit int64 [rows], probability float [rows]."""
    import keras
    import tensorflow as tf

    def classify(pixels: Any) -> dict[str, Any]:
        probabilities = model(pixels)
        return {"digit": tf.argmax(probabilities, axis=1), "probability": tf.reduce_max(probabilities, axis=1)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", classify, [tf.TensorSpec([None, 64], tf.float32, name="pixels")])
    archive.write_out(str(version_directory), verbose=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("version_directory", type=Path)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    export(train(arguments.hidden, arguments.epochs), arguments.version_directory)


if __name__ == "__main__":
    main()
