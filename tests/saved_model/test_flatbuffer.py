from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from embedserve.saved_model.files.flatbuffer import torn


@pytest.fixture(scope="module")
def tflite(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    weights = tf.Variable(np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32))
    module = tf.Module()
    module.weights = weights

    @tf.function(input_signature=[tf.TensorSpec([1, 20], tf.float32, name="x")])
    def serve(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.nn.relu(x @ weights)}

    path = str(tmp_path_factory.mktemp("tflite") / "1")
    tf.saved_model.save(module, path, signatures=serve)
    model: bytes = tf.lite.TFLiteConverter.from_saved_model(path).convert()
    return model


def test_a_converted_model_is_whole(tflite: bytes) -> None:
    assert torn(tflite) is None


def test_every_truncation_is_seen(tflite: bytes) -> None:
    assert [length for length in range(len(tflite)) if torn(tflite[:length]) is None] == []


def test_another_file_is_named_as_such() -> None:
    assert torn(b"") == "its 0 bytes do not begin as a TFLite model does"
    assert torn(bytes(100)) == "its 100 bytes do not begin as a TFLite model does"
