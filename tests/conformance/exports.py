"""`python -m tests.conformance.exports DISTRIBUTED TEXT` writes two models that need a TensorFlow process of their own.

DISTRIBUTED is a Keras model made under MirroredStrategy on two virtual CPUs, which must be set up before TensorFlow is
used. TEXT has TensorFlow Text's operations, which must not be registered in the tests' process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
import tensorflow_text as text


def distributed(path: Path) -> None:
    """`y = 3 * x`, `x` declared `[-1, 1]`, from variables that are mirrored on two devices."""
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2
    with strategy.scope():
        x = keras.Input((1,), name="x")
        layer = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(3.0))
        model = keras.Model({"x": x}, {"y": layer(x)})
        assert len(layer.kernel.value.values) == 2, "the variable is not mirrored"
        model.export(str(path), verbose=False)


def tokens(path: Path) -> None:
    """Text in, words out: `text [-1]` to `words [-1, ?]`, padded with empty strings, and `counts [-1]`."""
    module = tf.Module()
    module.tokenizer = text.WhitespaceTokenizer()

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(text: Any) -> Any:
        words = module.tokenizer.tokenize(text)
        return {"words": words.to_tensor(""), "counts": words.row_lengths()}

    tf.saved_model.save(module, str(path), signatures=serve)


if __name__ == "__main__":
    distributed(Path(sys.argv[1]))
    tokens(Path(sys.argv[2]))
