"""Exports Keras's MobileNet (random weights, nothing is downloaded) twice, as a team would over time.

Version 1 is the bare network: 224x224 floats in, 1,000 numbers out, and every client does the rest by itself.
Version 2 brings its preprocessing and its labels along: `image` of any height and width in, `label` out.

python -m examples.mobilenet.export models/mobilenet 1
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf


def mobilenet(alpha: float = 0.25) -> Any:
    keras.utils.set_random_seed(1)
    return keras.applications.MobileNet(weights=None, alpha=alpha)


def export_bare(model: Any, version_directory: Path) -> None:
    tf.saved_model.save(model, str(version_directory))


class ImageClassifier(tf.Module):
    """MobileNet between a resize and a label table; the table's file travels in the SavedModel's assets."""

    def __init__(self, model: Any, labels: Path) -> None:
        super().__init__()
        self.model = model
        self.labels = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                str(labels),
                key_dtype=tf.int64,
                key_index=tf.lookup.TextFileIndex.LINE_NUMBER,
                value_dtype=tf.string,
                value_index=tf.lookup.TextFileIndex.WHOLE_LINE,
            ),
            default_value="unknown",
        )

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="image")])
    def classify(self, image: Any) -> dict[str, Any]:
        resized = tf.image.resize(tf.cast(image, tf.float32), [224, 224])
        probabilities = self.model(resized / 127.5 - 1.0)
        return {"label": self.labels.lookup(tf.argmax(probabilities, axis=1))}


def export_with_labels(model: Any, version_directory: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        # Names that say which class they are: the real ones would have to be downloaded.
        labels = Path(directory, "labels.txt")
        labels.write_text("".join(f"class {number:03d}\n" for number in range(1000)))
        module = ImageClassifier(model, labels)
        tf.saved_model.save(module, str(version_directory), signatures={"serving_default": module.classify})


if __name__ == "__main__":
    base, version = Path(sys.argv[1]), sys.argv[2]
    {"1": export_bare, "2": export_with_labels}[version](mobilenet(), base / version)
