"""ResNet-50 with random weights (nothing is downloaded): `image` float [rows, 224, 224, 3] -> `probabilities`.

python -m examples.resnet.export models/resnet/1
MODEL_NAME=resnet MODEL_BASE_PATH=models python -m embedserve            # as in TensorFlow Serving's container image
"""

from __future__ import annotations

import sys

import keras
import tensorflow as tf


def main(version_directory: str) -> None:
    keras.utils.set_random_seed(1)
    model = keras.applications.ResNet50(weights=None)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serve",
        lambda image: {"probabilities": model(image)},
        [tf.TensorSpec([None, 224, 224, 3], tf.float32, name="image")],
    )
    archive.write_out(version_directory, verbose=False)


if __name__ == "__main__":
    main(sys.argv[1])
