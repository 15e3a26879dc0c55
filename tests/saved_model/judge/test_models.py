"""Whole models: which are batched by proof, and which are refused, with the operation and node in the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from keras import layers

from benchmarks import models as benchmark_models
from embedserve.saved_model.files.meta_graph import read_meta_graph, read_signatures
from embedserve.saved_model.judge import probe
from embedserve.saved_model.judge.rows.walk import RowAnalysis
from embedserve.signature import BatchingVerdict
from tests.saved_model.conftest import Load

pytestmark = pytest.mark.slow


def save(path: Path, function: Callable[[Any], Any], shape: list[int | None], dtype: Any, **tracked: Any) -> Path:
    module = tf.Module()
    for name, value in tracked.items():
        setattr(module, name, value)
    serve = tf.function(function, input_signature=[tf.TensorSpec(shape, dtype, name="x")])
    tf.saved_model.save(module, str(path), signatures=serve)
    return path


def clicks(path: Path) -> Path:
    """Sparse features to the longest row."""

    def serve(x: Any) -> Any:
        parsed = tf.io.parse_example(x, {"clicks": tf.io.VarLenFeature(tf.float32)})
        return {"mean": tf.reduce_mean(tf.sparse.to_dense(parsed["clicks"]), axis=1)}

    return save(path, serve, [None], tf.string)


def words(path: Path) -> Path:
    """Words to the longest text."""
    return save(path, lambda x: {"y": tf.strings.length(tf.strings.split(x).to_tensor())}, [None], tf.string)


def batch_wide(path: Path) -> Path:
    """A branch on all rows."""
    return save(
        path,
        lambda x: {"y": tf.cond(tf.reduce_max(tf.abs(x)) > 1, lambda: x * 2, lambda: x)},
        [None, 3],
        tf.float32,
    )


def vectorized(**options: Any) -> Any:
    layer = layers.TextVectorization(max_tokens=20, **options)
    layer.adapt(["a b c", "d e"])
    return layer


def pooled_text(path: Path, length: int | None = None) -> Path:
    """Words, embeddings, their mean."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            layers.Input((), dtype="string"),
            vectorized(output_sequence_length=length),
            layers.Embedding(20, 4),
            layers.GlobalAveragePooling1D(),
        ]
    )
    model.export(str(path), verbose=False)
    return path


def probing(*_: Any) -> BatchingVerdict:
    raise AssertionError("a run was asked")


@pytest.mark.parametrize(
    ("build", "operation", "why"),
    [
        (clicks, "SparseToDense", "pads to the longest row of the batch"),
        (words, "RaggedTensorToTensor", "pads to the longest row of the batch"),
        (pooled_text, "RaggedTensorToTensor", "pads to the longest row of the batch"),
        (batch_wide, "StatelessIf", "depends on a condition over the whole batch"),
    ],
)
def test_what_a_neighbour_would_change_is_refused_without_a_run(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Any, operation: str, why: str
) -> None:
    monkeypatch.setattr(probe, "probe", probing)
    found = load(build(tmp_path / "m" / "1")).signatures["serving_default"].batching
    assert (found.batchable, found.by, found.operation) == (False, "graph", operation)
    assert found.reason == f"{operation} {found.node!r} {why}"


def test_a_probe_decides_where_an_operation_is_not_in_the_table(load: Load, tmp_path: Path) -> None:
    path = save(tmp_path / "m" / "1", lambda x: {"y": tf.math.special.bessel_j0(x)}, [None, 3], tf.float32)
    found = load(path).signatures["serving_default"].batching
    assert (found.batchable, found.by, found.operation, found.node) == (True, "probe", "BesselJ0", "bessel_j0/BesselJ0")
    assert found.reason == (
        "unlike rows together equal each alone; BesselJ0 'bessel_j0/BesselJ0' is not known to keep rows apart"
    )


def test_an_element_wise_model_with_a_constant_of_higher_rank_is_not_batched(load: Load, tmp_path: Path) -> None:
    # A plain row of values, which such a model takes, would become the row of a matrix.
    path = save(tmp_path / "m" / "1", lambda x: {"y": x * tf.constant([[2.0]])}, [None, 1], tf.float32)
    signature = load(path).signatures["serving_default"]
    assert (signature.shape_free, signature.batching.batchable) == (True, False)


def sequence(shape: tuple[int | None, ...], *parts: Any, dtype: str = "float32") -> Callable[[], Any]:
    return lambda: keras.Sequential([layers.Input(shape, dtype=dtype), *parts])


def encoder(masked: bool) -> Any:
    x = layers.Input((None,), dtype="int32")
    h = layers.Embedding(20, 8, mask_zero=masked)(x)
    h = layers.LayerNormalization()(h + layers.MultiHeadAttention(2, 4)(h, h))
    return keras.Model(x, layers.GlobalAveragePooling1D()(layers.Dense(8)(h)))


KERAS: dict[str, Callable[[], Any]] = {
    "dense on rank 3": sequence((None, 5), layers.Dense(3), layers.GlobalAveragePooling1D()),
    "convolutional": sequence(
        (28, 28, 1),
        layers.Conv2D(4, 3, activation="relu"),
        layers.MaxPooling2D(),
        layers.BatchNormalization(),
        layers.Flatten(),
        layers.Dropout(0.5),
        layers.Dense(10, activation="softmax"),
    ),
    "images of any size": sequence((None, None, 3), layers.Conv2D(4, 3, 2, "same"), layers.GlobalMaxPooling2D()),
    "transposed convolution": sequence((16, 16, 3), layers.UpSampling2D(), layers.Conv2DTranspose(3, 3, 2, "same")),
    "lstm": sequence((None, 3), layers.Bidirectional(layers.LSTM(4))),
    "gru over a mask": sequence((None,), layers.Embedding(10, 4, mask_zero=True), layers.GRU(4), dtype="int32"),
    "layer normalisation": sequence((None, 8), layers.LayerNormalization()),
    "transformer": lambda: encoder(False),
    "transformer with a padding mask": lambda: encoder(True),
    "text of a fixed length": sequence(
        (), vectorized(output_sequence_length=6), layers.Embedding(20, 4), layers.Flatten(), dtype="string"
    ),
    "text as counts": sequence((), vectorized(output_mode="multi_hot"), layers.Dense(2), dtype="string"),
    "string lookup": sequence(
        (3,), layers.StringLookup(vocabulary=["a", "b"], output_mode="multi_hot"), dtype="string"
    ),
    "integer lookup": sequence((1,), layers.IntegerLookup(vocabulary=[1, 5], output_mode="one_hot"), dtype="int64"),
    "hashing": sequence((1,), layers.Hashing(8), dtype="string"),
    "buckets": sequence((1,), layers.Discretization(bin_boundaries=[0.0, 1.0], output_mode="one_hot")),
    "categories": sequence((3,), layers.CategoryEncoding(6, output_mode="count"), dtype="int32"),
    "normalisation": sequence((2,), layers.Normalization(mean=[0.0, 1.0], variance=[1.0, 2.0])),
    "small mobilenet": lambda: keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None, classes=5),
}


def findings_of(path: Path) -> Any:
    meta_graph = read_meta_graph(path, ["serve"])
    signature = read_signatures(meta_graph)["serving_default"]
    fed = {spec.tensor_name: spec.shape or () for spec in signature.inputs.values()}
    return RowAnalysis(meta_graph).judge(fed, [spec.tensor_name for spec in signature.outputs.values()])


@pytest.mark.parametrize("name", KERAS)
def test_keras_models_are_batched_by_proof(tmp_path: Path, name: str) -> None:
    keras.utils.set_random_seed(1)
    KERAS[name]().export(str(tmp_path / "1"), verbose=False)
    assert findings_of(tmp_path / "1").proven, findings_of(tmp_path / "1")


def test_the_models_of_the_benchmarks_are_batched_by_proof(tmp_path: Path) -> None:
    for name, model in (("half", benchmark_models.Half()), ("mlp", benchmark_models.Mlp())):
        benchmark_models.save(model, tmp_path / name)
        assert findings_of(tmp_path / name).proven


def test_statistics_of_the_batch_are_refused(tmp_path: Path) -> None:
    x = layers.Input((5,))
    keras.Model(x, layers.BatchNormalization()(x, training=True)).export(str(tmp_path / "1"), verbose=False)
    mixed = findings_of(tmp_path / "1").mixed
    assert (mixed.op, mixed.why) == ("Mean", "reduces the rows to one value")


def test_a_loop_of_tensorflow_1_along_time_is_followed() -> None:
    v1 = tf.compat.v1
    for condition in (None, 1.0):
        with tf.Graph().as_default() as graph:
            v1.disable_control_flow_v2()
            try:
                x = v1.placeholder(tf.float32, [None, 3], "x")
                state = [tf.constant(0), x]

                def unfinished(i: Any, y: Any, condition: Any = condition) -> Any:
                    return i < 4 if condition is None else tf.reduce_max(y) > condition

                _, y = v1.while_loop(unfinished, lambda i, y: (i + 1, y * 0.5), state)
            finally:
                v1.enable_control_flow_v2()
            meta_graph = v1.MetaGraphDef()
            meta_graph.graph_def.CopyFrom(graph.as_graph_def())
            found = RowAnalysis(meta_graph).judge({"x:0": (None, 3)}, [y.name])
        assert any(node.op == "NextIteration" for node in meta_graph.graph_def.node)
        assert found.proven is (condition is None), found
        assert (found.mixed is None) is (condition is None)
        assert found.mixed is None or found.mixed.why == "depends on a condition over the whole batch"


def test_dimension_0_counts_as_rows_where_it_is_to_be_freed(tmp_path: Path) -> None:
    path = save(tmp_path / "1", lambda x: {"y": tf.reshape(x, [8, 6]) * 2.0}, [8, 2, 3], tf.float32)
    free = save(tmp_path / "2", lambda x: {"y": tf.reduce_sum(x, 1) * 2.0}, [8, 2, 3], tf.float32)
    for made, proven in ((path, False), (free, True)):
        meta_graph = read_meta_graph(made, ["serve"])
        (output,) = read_signatures(meta_graph)["serving_default"].outputs.values()
        fed = {"serving_default_x:0": (8, 2, 3)}
        assert not RowAnalysis(meta_graph).judge(fed, [output.tensor_name]).proven
        assert RowAnalysis(meta_graph).judge(fed, [output.tensor_name], free_batch=True).proven is proven
