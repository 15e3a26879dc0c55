"""A convolutional network as TensorFlow 1 users built and saved it, in version directory `0`.

python -m examples.tf1_cnn.export models/cnn/0
python -m embedserve --port=9000 --model_base_path=models/cnn           # the model's name is then `default`
"""

from __future__ import annotations

import sys
from typing import Any

import tensorflow as tf

from examples.digits.train import as_mnist, load_digits

tf1 = tf.compat.v1


def network(image: Any) -> Any:
    """[n, 28, 28] -> logits [n, 10], with reference variables, as `tf.get_variable` made them."""
    tf1.disable_resource_variables()
    kernel = tf1.get_variable("kernel", [5, 5, 1, 8])
    dense = tf1.get_variable("dense", [7 * 7 * 8, 10])
    features = tf.nn.relu(tf.nn.conv2d(image[..., None] / 16, kernel, 2, "SAME"))
    pooled = tf.nn.max_pool2d(features, 2, 2, "SAME")
    return tf.reshape(pooled, [-1, 7 * 7 * 8]) @ dense


def main(version_directory: str) -> None:
    digits = load_digits()
    with tf.Graph().as_default(), tf1.Session() as session:
        image = tf1.placeholder(tf.float32, [None, 28, 28], name="image")
        label = tf1.placeholder(tf.int64, [None], name="label")
        logits = network(image)
        softmax, prediction = tf.nn.softmax(logits, name="softmax"), tf.argmax(logits, 1, name="prediction")
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits))
        step = tf1.train.AdamOptimizer(0.005).minimize(loss)

        tf1.set_random_seed(1)
        session.run(tf1.global_variables_initializer())
        images = as_mnist(digits.images)
        for start in list(range(0, len(images) - 64, 64)) * 4:
            batch = slice(start, start + 64)
            session.run(step, {image: images[batch], label: digits.labels[batch]})

        info = tf1.saved_model.build_tensor_info
        signature = tf1.saved_model.build_signature_def(
            inputs={"image": info(image)},
            outputs={"softmax": info(softmax), "prediction": info(prediction)},
            method_name="tensorflow/serving/predict",
        )
        builder = tf1.saved_model.Builder(version_directory)
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map={"serving_default": signature})
        builder.save()


if __name__ == "__main__":
    main(sys.argv[1])
