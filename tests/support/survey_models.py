"""Builders of SavedModels like those that people serve: Keras applications, text and tables, sequences, detection.

Random weights, no download, small inputs where a model allows them. For the survey of batching verdicts and for tests;
`SURVEYED` lists the builders by name. Each takes the version directory and returns it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tests.support.saved_models import Builder, save_v1, v1_signature

v1 = tf.compat.v1
Spec = tf.TensorSpec

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "out", "of", "vocabulary", "1", "2", "7"]


def _serve(path: Path, function: Callable[..., Any], *specs: Any, **tracked: Any) -> Path:
    """Save one signature of a function; `tracked` are the variables and tables it uses."""
    module = tf.Module()
    for name, value in tracked.items():
        setattr(module, name, value)
    tf.saved_model.save(module, str(path), signatures=tf.function(function, input_signature=list(specs)))
    return path


def _export(path: Path, model: Any) -> Path:
    """Save the one signature of a Keras model."""
    import keras

    archive = keras.export.ExportArchive()
    archive.track(model)
    inputs = model.inputs if isinstance(model.inputs, list) else [model.inputs]
    specs = [Spec(each.shape, each.dtype, name=each.name) for each in inputs]
    archive.add_endpoint("serving_default", lambda *given: model(list(given) if len(given) > 1 else given[0]), specs)
    archive.write_out(str(path), verbose=False)
    return path


def _keras(seed: int = 1) -> Any:
    import keras

    keras.utils.set_random_seed(seed)
    return keras


# What batches that pad or branch change.


def mean_of_clicks(path: Path) -> Path:
    """A mean over sparse values made dense: padded to the longest row of the batch."""

    def serve(examples: Any) -> Any:
        parsed = tf.io.parse_example(examples, {"clicks": tf.io.VarLenFeature(tf.float32)})
        return {"mean": tf.reduce_mean(tf.sparse.to_dense(parsed["clicks"]), axis=1)}

    return _serve(path, serve, Spec([None], tf.string, name="examples"))


def split_words(path: Path) -> Path:
    """Words made dense: as wide as the longest text of the batch."""

    def serve(text: Any) -> Any:
        return {"words": tf.strings.split(text).to_tensor()}

    return _serve(path, serve, Spec([None], tf.string, name="text"))


def text_of_any_length(path: Path) -> Path:
    """TextVectorization without a fixed length, embedding, average over the padding too."""
    return _export(path, _text_classifier(None))


def branch_on_the_batch(path: Path) -> Path:
    """A condition on the largest value of the whole batch."""

    def serve(x: Any) -> Any:
        return {"y": tf.cond(tf.reduce_max(tf.abs(x)) > 1, lambda: x / tf.reduce_max(tf.abs(x)), lambda: x)}

    return _serve(path, serve, Spec([None, 3], tf.float32, name="x"))


def similarities(path: Path) -> Path:
    """Each row against each other row of its batch: softmax of `x x^T`, times x."""

    def serve(x: Any) -> Any:
        return {"y": tf.nn.softmax(tf.matmul(x, x, transpose_b=True)) @ x}

    return _serve(path, serve, Spec([None, 3], tf.float32, name="x"))


# Keras applications.


def _application(name: str, side: int, top: bool = True) -> Builder:
    def build(path: Path) -> Path:
        keras = _keras()
        options: dict[str, Any] = {"classes": 10} if top else {"include_top": False, "pooling": "avg"}
        model = getattr(keras.applications, name)(weights=None, input_shape=(side, side, 3), **options)
        # Untrained weights answer every picture alike, so the normalisations are first fitted to some pictures.
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0
        model(np.random.default_rng(0).uniform(-1, 1, (16, side, side, 3)).astype(np.float32), training=True)
        return _export(path, model)

    build.__name__ = name
    build.__doc__ = f"`keras.applications.{name}` over pictures of {side} by {side}, random weights."
    return build


APPLICATIONS: Mapping[str, Builder] = {
    name: _application(name, side, top)
    for name, side, top in (
        *(("Xception", 71, True), ("VGG16", 32, False), ("ResNet50", 32, True), ("ResNet50V2", 32, True)),
        *(("InceptionV3", 75, True), ("InceptionResNetV2", 75, False), ("MobileNet", 32, True)),
        *(("MobileNetV2", 32, True), ("MobileNetV3Small", 32, True), ("DenseNet121", 32, True)),
        *(("NASNetMobile", 32, True), ("EfficientNetB0", 32, True), ("EfficientNetV2B0", 32, True)),
        ("ConvNeXtTiny", 32, True),
    )
}


# Text and tables.


def _text_classifier(length: int | None) -> Any:
    keras = _keras()
    vectorize = keras.layers.TextVectorization(output_sequence_length=length, vocabulary=WORDS)
    text = keras.Input((), dtype="string", name="text")
    embedded = keras.layers.Embedding(len(WORDS) + 2, 8)(vectorize(text))
    pooled = keras.layers.GlobalAveragePooling1D()(embedded)
    return keras.Model(text, keras.layers.Dense(3, activation="softmax")(pooled))


def text_of_fixed_length(path: Path) -> Path:
    """TextVectorization to eight words, embedding, average, classifier."""
    return _export(path, _text_classifier(8))


def bag_of_words(path: Path) -> Path:
    """TextVectorization to counts of words, classifier."""
    keras = _keras()
    vectorize = keras.layers.TextVectorization(output_mode="count", vocabulary=WORDS)
    text = keras.Input((), dtype="string", name="text")
    return _export(path, keras.Model(text, keras.layers.Dense(3)(vectorize(text))))


def string_lookup(path: Path) -> Path:
    """StringLookup of three words a row to an embedding, flattened."""
    keras = _keras()
    words = keras.Input((3,), dtype="string", name="words")
    ids = keras.layers.StringLookup(vocabulary=WORDS)(words)
    flat = keras.layers.Flatten()(keras.layers.Embedding(len(WORDS) + 1, 4)(ids))
    return _export(path, keras.Model(words, keras.layers.Dense(1)(flat)))


def string_lookup_one_hot(path: Path) -> Path:
    """StringLookup to one-hot vectors."""
    keras = _keras()
    words = keras.Input((1,), dtype="string", name="words")
    return _export(path, keras.Model(words, keras.layers.StringLookup(vocabulary=WORDS, output_mode="one_hot")(words)))


def integer_lookup(path: Path) -> Path:
    """IntegerLookup to multi-hot vectors."""
    keras = _keras()
    ids = keras.Input((4,), dtype="int64", name="ids")
    lookup = keras.layers.IntegerLookup(vocabulary=[1, 2, 3], output_mode="multi_hot")
    return _export(path, keras.Model(ids, lookup(ids)))


def normalization(path: Path) -> Path:
    """Normalization by a fixed mean and variance, and a regressor."""
    keras = _keras()
    x = keras.Input((4,), name="x")
    normal = keras.layers.Normalization(mean=[1.0, 2.0, 3.0, 4.0], variance=[1.0, 4.0, 9.0, 16.0])(x)
    return _export(path, keras.Model(x, keras.layers.Dense(1)(normal)))


def hashing(path: Path) -> Path:
    """Hashing of words to bins, embedding."""
    keras = _keras()
    words = keras.Input((1,), dtype="string", name="words")
    return _export(path, keras.Model(words, keras.layers.Embedding(7, 4)(keras.layers.Hashing(num_bins=7)(words))))


def discretization(path: Path) -> Path:
    """Discretization into one-hot bins."""
    keras = _keras()
    x = keras.Input((1,), name="x")
    bins = keras.layers.Discretization(bin_boundaries=[-1.0, 0.0, 1.0], output_mode="one_hot")
    return _export(path, keras.Model(x, bins(x)))


def feature_space(path: Path) -> Path:
    """FeatureSpace over a float, an integer category and a string category with their cross."""
    keras = _keras()
    space = keras.utils.FeatureSpace
    features = space(
        features={
            "age": space.float_normalized(),
            "kind": space.integer_categorical(num_oov_indices=1),
            "word": space.string_categorical(num_oov_indices=1),
        },
        crosses=[space.cross(("kind", "word"), crossing_dim=8)],
        output_mode="concat",
    )
    table = {"age": [1.0, 2.0, 3.0, 4.0], "kind": [0, 1, 2, 1], "word": ["a", "b", "1", "2"]}
    features.adapt(tf.data.Dataset.from_tensor_slices(table).batch(2))
    encoded = features.get_encoded_features()
    inputs = features.get_inputs()
    model = keras.Model(list(inputs.values()), keras.layers.Dense(1)(encoded))
    return _export(path, model)


def parsed_table(path: Path) -> Path:
    """Dense features parsed out of tf.Examples: wide and deep."""
    weights = tf.Variable(tf.random.stateless_normal([3, 2], [1, 2]))
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["1", "2"], tf.constant([1, 2], tf.int64)), 0)

    def serve(examples: Any) -> Any:
        features = {
            "numbers": tf.io.FixedLenFeature([3], tf.float32),
            "word": tf.io.FixedLenFeature([], tf.string, default_value="?"),
        }
        parsed = tf.io.parse_example(examples, features)
        return {"logits": parsed["numbers"] @ weights, "word": table.lookup(parsed["word"])}

    return _serve(path, serve, Spec([None], tf.string, name="examples"), weights=weights, table=table)


def pooled_examples(path: Path) -> Path:
    """Words of tf.Examples embedded and averaged by row, as feature columns do."""
    embedding = tf.Variable(tf.random.stateless_normal([5, 4], [1, 2]))

    def serve(examples: Any) -> Any:
        parsed = tf.io.parse_example(examples, {"ids": tf.io.VarLenFeature(tf.int64)})
        return {"pooled": tf.nn.safe_embedding_lookup_sparse(embedding, parsed["ids"], combiner="mean")}

    return _serve(path, serve, Spec([None], tf.string, name="examples"), embedding=embedding)


def pictures(path: Path) -> Path:
    """Encoded pictures, decoded and resized one by one, then a convolution."""
    kernel = tf.Variable(tf.random.stateless_normal([3, 3, 3, 4], [1, 2]))

    def decode(encoded: Any) -> Any:
        picture = tf.image.decode_image(encoded, channels=3, expand_animations=False)
        return tf.image.resize(picture, [16, 16]) / 255.0

    def serve(encoded: Any) -> Any:
        decoded = tf.map_fn(decode, encoded, fn_output_signature=Spec([16, 16, 3], tf.float32))
        return {"y": tf.reduce_mean(tf.nn.conv2d(decoded, kernel, 2, "SAME"), axis=[1, 2])}

    return _serve(path, serve, Spec([None], tf.string, name="encoded"), kernel=kernel)


# Sequences.


def _sequence(layer: Callable[[Any], Any], mask_zero: bool = False) -> Builder:
    def build(path: Path) -> Path:
        keras = _keras()
        tokens = keras.Input((None,), dtype="int32", name="tokens")
        embedded = keras.layers.Embedding(20, 8, mask_zero=mask_zero)(tokens)
        return _export(path, keras.Model(tokens, keras.layers.Dense(2)(layer(keras)(embedded))))

    return build


def _attention_block(keras: Any, x: Any, mask: Any) -> Any:
    attended = keras.layers.MultiHeadAttention(2, 4)(x, x, attention_mask=mask)
    x = keras.layers.LayerNormalization()(keras.layers.Add()([x, attended]))
    fed = keras.layers.Dense(8)(keras.layers.Dense(16, activation="gelu")(x))
    return keras.layers.LayerNormalization()(keras.layers.Add()([x, fed]))


def transformer(path: Path, masked: bool = False) -> Path:
    """An encoder of two blocks over token ids; `masked` leaves out the padding id 0."""
    keras = _keras()
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(20, 8)(tokens)
    mask = keras.layers.Lambda(lambda ids: tf.not_equal(ids, 0)[:, tf.newaxis, :])(tokens) if masked else None
    for _ in range(2):
        x = _attention_block(keras, x, mask)
    first = keras.layers.Lambda(lambda states: states[:, 0])(x)
    return _export(path, keras.Model(tokens, keras.layers.Dense(2)(first)))


def transformer_with_padding_mask(path: Path) -> Path:
    """As `transformer`, without the padding id 0."""
    return transformer(path, masked=True)


def tf1_cnn_with_dropout(path: Path) -> Path:
    """The MNIST tutorial's convolutions in TF1: variables, max-pooling, dropout that draws and keeps all."""
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(1)
        x = v1.placeholder(tf.float32, [None, 784], "images")
        keep = v1.placeholder_with_default(1.0, (), "keep")
        flat = tf.reshape(x, [-1, 28, 28, 1])
        for number, (size, channels) in enumerate(((1, 8), (8, 16))):
            kernel = v1.get_variable(f"kernel{number}", [5, 5, size, channels], use_resource=False)
            bias = v1.get_variable(f"bias{number}", [channels], use_resource=False)
            flat = tf.nn.max_pool2d(tf.nn.relu(tf.nn.conv2d(flat, kernel, 1, "SAME") + bias), 2, 2, "SAME")
        weights = v1.get_variable("weights", [7 * 7 * 16, 10], use_resource=False)
        dropped = v1.nn.dropout(tf.reshape(flat, [-1, 7 * 7 * 16]), keep_prob=keep)
        scores = tf.nn.softmax(tf.matmul(dropped, weights))
        values, indices = tf.nn.top_k(scores, 10)
        session.run(v1.global_variables_initializer())
        outputs = {"scores": scores, "values": values, "classes": indices}
        return save_v1(path, session, {"serving_default": v1_signature({"images": x}, outputs)})


# Detection.


def _boxes(features: Any, weights: Any) -> tuple[Any, Any]:
    found = tf.reshape(features @ weights, [-1, 12, 6])
    corners = tf.sort(tf.sigmoid(tf.reshape(found[..., :4], [-1, 12, 2, 2])), axis=2)
    return tf.reshape(corners, [-1, 12, 4]), tf.sigmoid(found[..., 4:])


def detection_combined(path: Path) -> Path:
    """Boxes and scores out of features, and `combined_non_max_suppression` to at most five a picture."""
    weights = tf.Variable(tf.random.stateless_normal([8, 72], [1, 2]))

    def serve(features: Any) -> Any:
        boxes, scores = _boxes(features, weights)
        found = tf.image.combined_non_max_suppression(boxes[:, :, tf.newaxis], scores, 5, 5, 0.5, 0.1)
        return {"boxes": found[0], "scores": found[1], "classes": found[2], "count": found[3]}

    return _serve(path, serve, Spec([None, 8], tf.float32, name="features"), weights=weights)


def detection_padded(path: Path) -> Path:
    """As `detection_combined`, with `non_max_suppression_padded` over the batch."""
    weights = tf.Variable(tf.random.stateless_normal([8, 72], [1, 2]))

    def serve(features: Any) -> Any:
        boxes, scores = _boxes(features, weights)
        chosen, valid = tf.image.non_max_suppression_padded(
            *(boxes, scores[..., 0], 5), pad_to_max_output_size=True, sorted_input=False, iou_threshold=0.5
        )
        return {"boxes": tf.gather(boxes, chosen, batch_dims=1), "valid": tf.reshape(valid, [-1])}

    return _serve(path, serve, Spec([None, 8], tf.float32, name="features"), weights=weights)


def retrieval(path: Path) -> Path:
    """The nearest of fixed candidates: normalised queries, inner products, top three and their names."""
    candidates = tf.Variable(tf.random.stateless_normal([9, 4], [1, 2]))
    names = tf.constant([f"item {number}" for number in range(9)])

    def serve(query: Any) -> Any:
        scores, indices = tf.math.top_k(tf.math.l2_normalize(query, axis=1) @ tf.transpose(candidates), 3)
        return {"scores": scores, "items": tf.gather(names, indices)}

    return _serve(path, serve, Spec([None, 4], tf.float32, name="query"), candidates=candidates)


def spectrogram(path: Path) -> Path:
    """Sound to a spectrogram in mel bands, as audio models begin, and a mean over time."""
    bands = tf.signal.linear_to_mel_weight_matrix(8, 33, 8000)

    def serve(sound: Any) -> Any:
        size = tf.abs(tf.signal.stft(sound, frame_length=64, frame_step=32))
        return {"bands": tf.reduce_mean(tf.math.log(tf.tensordot(size, bands, 1) + 1e-6), axis=1)}

    return _serve(path, serve, Spec([None, 256], tf.float32, name="sound"))


def matrices(path: Path) -> Path:
    """Determinant, inverse and eigenvalues of a symmetric matrix a row."""

    def serve(x: Any) -> Any:
        matrix = tf.matmul(x, x, transpose_b=True) / (1 + tf.reduce_sum(x * x, axis=[1, 2], keepdims=True)) + tf.eye(3)
        return {
            "determinant": tf.linalg.det(matrix),
            "inverse": tf.linalg.inv(matrix),
            "values": tf.linalg.eigvalsh(matrix),
        }

    return _serve(path, serve, Spec([None, 3, 3], tf.float32, name="x"))


def batch_statistics(path: Path) -> Path:
    """Batch normalisation left in training mode, by mistake: the batch's own mean and variance."""

    def serve(x: Any) -> Any:
        mean, variance = tf.nn.moments(x, axes=[0])
        return {"y": tf.nn.batch_normalization(x, mean, variance, None, None, 1e-3)}

    return _serve(path, serve, Spec([None, 4], tf.float32, name="x"))


SURVEYED: Mapping[str, Builder] = {
    **{
        builder.__name__: builder
        for builder in (
            *(mean_of_clicks, split_words, text_of_any_length, branch_on_the_batch, similarities),
            *(text_of_fixed_length, bag_of_words, string_lookup, string_lookup_one_hot, integer_lookup),
            *(normalization, hashing, discretization, feature_space, parsed_table, pooled_examples, pictures),
            *(
                transformer,
                transformer_with_padding_mask,
                tf1_cnn_with_dropout,
                detection_combined,
                detection_padded,
                retrieval,
            ),
            *(batch_statistics, spectrogram, matrices),
        )
    },
    "lstm": _sequence(lambda keras: keras.layers.LSTM(6)),
    "gru": _sequence(lambda keras: keras.layers.GRU(6)),
    "lstm_with_mask": _sequence(lambda keras: keras.layers.LSTM(6), mask_zero=True),
    "bidirectional_lstm": _sequence(lambda keras: keras.layers.Bidirectional(keras.layers.LSTM(6))),
    "convolution_1d": _sequence(lambda keras: partial(_pooled_convolution, keras)),
    **APPLICATIONS,
}


def _pooled_convolution(keras: Any, x: Any) -> Any:
    return keras.layers.GlobalMaxPooling1D()(keras.layers.Conv1D(6, 3, padding="same", activation="relu")(x))
