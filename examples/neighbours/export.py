"""Nearest-neighbour search as a TensorFlow 1 model: the data to search travels as two asset files.

Embeddings are read with `tf.io.read_file`, names through a lookup table, both by `legacy_init_op` as the model loads.

python -m examples.neighbours.export models/neighbours/1
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

tf1 = tf.compat.v1

FACES, SIZE = 200, 16


def latents() -> Any:
    """What there is to find: [FACES, SIZE], one embedding per file name."""
    return np.random.default_rng(1).normal(size=(FACES, SIZE)).astype(np.float32)


def asset(path: Path) -> Any:
    """A constant with the file's path; the loader replaces it by where the copy in `assets/` is."""
    filename = tf.constant(str(path))
    tf1.add_to_collection(tf1.GraphKeys.ASSET_FILEPATHS, filename)
    return filename


def build_search(embeddings_file: Path, names_file: Path) -> tuple[Any, Any]:
    """The graph; returns its signature and its init op."""
    tf1.disable_resource_variables()
    content = tf.io.decode_raw(tf.io.read_file(asset(embeddings_file)), tf.float32)
    embeddings = tf1.Variable(tf.reshape(content, [FACES, SIZE]), trainable=False, collections=[])
    names = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            asset(names_file),
            key_dtype=tf.int64,
            key_index=tf.lookup.TextFileIndex.LINE_NUMBER,
            value_dtype=tf.string,
            value_index=tf.lookup.TextFileIndex.WHOLE_LINE,
        ),
        default_value="?",
    )
    target = tf1.placeholder(tf.float32, [None, SIZE], name="target_latent")
    k_num = tf1.placeholder(tf.int32, [], name="k_num")
    distances = tf.norm(embeddings[None] - target[:, None], axis=2)
    nearest, indices = tf.nn.top_k(-distances, k_num)
    filenames = names.lookup(tf.cast(indices, tf.int64))

    info = tf1.saved_model.build_tensor_info
    signature = tf1.saved_model.build_signature_def(
        inputs={"target_latent": info(target), "k_num": info(k_num)},
        outputs={"xvals": info(-nearest), "indices": info(indices), "filenames": info(filenames)},
        method_name="tensorflow/serving/predict",
    )
    return signature, tf.group(embeddings.initializer, tf1.tables_initializer())


def main(version_directory: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        embeddings_file, names_file = Path(directory, "embeddings.bin"), Path(directory, "names.txt")
        embeddings_file.write_bytes(latents().tobytes())
        names_file.write_text("".join(f"face_{number:03d}.jpg\n" for number in range(FACES)))
        with tf.Graph().as_default(), tf1.Session() as session:
            signature, init_op = build_search(embeddings_file, names_file)
            builder = tf1.saved_model.Builder(version_directory)
            builder.add_meta_graph_and_variables(
                session,
                ["serve"],
                signature_def_map={"serving_default": signature},
                assets_collection=tf1.get_collection(tf1.GraphKeys.ASSET_FILEPATHS),
                legacy_init_op=init_op,
            )
            builder.save()


if __name__ == "__main__":
    main(sys.argv[1])
