"""Builders of small real SavedModels: each writes one version directory and returns its path.

For every test that needs TensorFlow; call them from session-scoped fixtures, for a save takes 0.1 to 1 second.
`MODELS` lists the builders by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2

v1 = tf.compat.v1
Builder = Callable[[Path], Path]


def _spec(shape: Any, dtype: Any, name: str) -> Any:
    return tf.TensorSpec(shape, dtype, name=name)


def _save(path: Path, module: Any, **signatures: Any) -> Path:
    tf.saved_model.save(module, str(path), signatures=signatures)
    return path


def _signature(*specs: Any) -> Callable[[Callable[..., Any]], Any]:
    return lambda function: tf.function(function, input_signature=list(specs))


class _Module(tf.Module):
    """Holds whatever a signature needs: variables, tables, assets."""

    def __init__(self, **tracked: Any) -> None:
        super().__init__()
        for name, value in tracked.items():
            setattr(self, name, value)


def half_plus_two(path: Path, a: float = 0.5, b: float = 2.0) -> Path:
    """TensorFlow Serving's best-known model: `y = a * x + b`, element-wise, `x` declared `(-1, 1)`."""
    module = _Module(a=tf.Variable(a), b=tf.Variable(b))

    @_signature(_spec([None, 1], tf.float32, "x"))
    def serve(x: Any) -> Any:
        return {"y": module.a * x + module.b}

    return _save(path, module, serving_default=serve)


def dense(path: Path, inputs: int = 4, outputs: int = 3, seed: int = 1) -> Path:
    """One float matmul with a bias: `features [-1, inputs]` to `scores [-1, outputs]`."""
    random = np.random.default_rng(seed)
    weights = tf.Variable(random.normal(size=(inputs, outputs)).astype(np.float32))
    module = _Module(weights=weights, bias=tf.Variable(tf.zeros(outputs)))

    @_signature(_spec([None, inputs], tf.float32, "features"))
    def serve(features: Any) -> Any:
        return {"scores": features @ module.weights + module.bias}

    return _save(path, module, serving_default=serve)


def integer_matmul(path: Path, inputs: int = 4, outputs: int = 3) -> Path:
    """A matmul whose batched results are exact: `features [-1, inputs]` int32 to `scores [-1, outputs]`."""
    module = _Module(weights=tf.Variable(tf.reshape(tf.range(inputs * outputs), [inputs, outputs])))

    @_signature(_spec([None, inputs], tf.int32, "features"))
    def serve(features: Any) -> Any:
        return {"scores": tf.matmul(features, module.weights)}

    return _save(path, module, serving_default=serve)


def counter(path: Path) -> Path:
    """State: each run adds 1 to a count and answers `y = x + count`; signature `read` only reads it."""
    module = _Module(count=tf.Variable(0.0))

    @_signature(_spec([None], tf.float32, "x"))
    def serve(x: Any) -> Any:
        return {"y": x + module.count.assign_add(1.0)}

    @_signature(_spec([None], tf.float32, "x"))
    def read(x: Any) -> Any:
        return {"y": x + module.count}

    return _save(path, module, serving_default=serve, read=read)


def exposed_variable(path: Path) -> Path:
    """Outputs that could share memory with a variable (`all`) or the input (`same`); `bump` changes the variable."""
    module = _Module(values=tf.Variable(tf.range(64, dtype=tf.float32)))

    @_signature(_spec([None], tf.float32, "x"))
    def serve(x: Any) -> Any:
        return {"all": tf.identity(module.values), "same": tf.identity(x)}

    @_signature(_spec([None], tf.float32, "x"))
    def bump(x: Any) -> Any:
        module.values.assign_add(tf.ones_like(module.values))
        return {"y": x}

    return _save(path, module, serving_default=serve, bump=bump)


def random_noise(path: Path) -> Path:
    """Draws random numbers: `y = x + uniform`."""

    @_signature(_spec([None, 2], tf.float32, "x"))
    def serve(x: Any) -> Any:
        return {"y": x + tf.random.uniform(tf.shape(x))}

    return _save(path, _Module(), serving_default=serve)


def strings(path: Path) -> Path:
    """String in, string and integer out: `text [-1]` to `upper [-1]` and `length [-1]`."""

    @_signature(_spec([None], tf.string, "text"))
    def serve(text: Any) -> Any:
        return {"upper": tf.strings.upper(text), "length": tf.strings.length(text)}

    return _save(path, _Module(), serving_default=serve)


def to_number(path: Path) -> Path:
    """A kernel that quotes the request in its error: `text [-1]` to `number [-1]`."""

    @_signature(_spec([None], tf.string, "text"))
    def serve(text: Any) -> Any:
        return {"number": tf.strings.to_number(text)}

    return _save(path, _Module(), serving_default=serve)


def several(path: Path) -> Path:
    """Two inputs and three outputs in `serving_default`; `scalars` (rank 0) and `free` (unknown rank) besides."""

    @_signature(_spec([None, 3], tf.float32, "left"), _spec([None, 3], tf.int32, "right"))
    def serve(left: Any, right: Any) -> Any:
        total = left + tf.cast(right, tf.float32)
        return {"total": total, "row_sum": tf.reduce_sum(total, axis=1), "doubled": right * 2}

    @_signature(_spec([], tf.float32, "a"), _spec([], tf.float32, "b"))
    def scalars(a: Any, b: Any) -> Any:
        return {"product": a * b, "larger": a > b}

    @_signature(_spec(None, tf.float32, "x"))
    def free(x: Any) -> Any:
        return {"y": 3.0 * x}

    return _save(path, _Module(), serving_default=serve, scalars=scalars, free=free)


DTYPES: Mapping[str, Any] = {
    dtype.name: dtype
    for dtype in (
        *(tf.float32, tf.float64, tf.float16, tf.bfloat16, tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint16),
        *(tf.uint32, tf.uint64, tf.bool, tf.string, tf.complex64, tf.complex128),
    )
}


def identities(path: Path) -> Path:
    """One signature per dtype, named as TensorFlow names it (`float32`, `string`...): `y = x`, any shape."""

    def identity(dtype: Any) -> Any:
        @_signature(_spec(None, dtype, "x"))
        def serve(x: Any) -> Any:
            return {"y": tf.identity(x)}

        return serve

    return _save(path, _Module(), **{name: identity(dtype) for name, dtype in DTYPES.items()})


def lookup(path: Path, words: Iterable[str] = ("red", "green", "blue")) -> Path:
    """A lookup table filled from an asset file: `words [-1]` to `ids [-1]`, -1 for unknown words."""
    path.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = path.parent / f"vocabulary-{path.name}.txt"
    vocabulary.write_text("\n".join(words))
    initializer = tf.lookup.TextFileInitializer(
        str(vocabulary), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
    )
    module = _Module(table=tf.lookup.StaticHashTable(initializer, -1))

    @_signature(_spec([None], tf.string, "words"))
    def serve(words: Any) -> Any:
        return {"ids": module.table.lookup(words)}

    return _save(path, module, serving_default=serve)


def reads_asset_at_run_time(path: Path) -> Path:
    """Opens its asset file in every run: `x [-1]` string to `x + file text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.parent / f"suffix-{path.name}.txt"
    suffix.write_text("!")
    module = _Module(suffix=tf.saved_model.Asset(str(suffix)))

    @_signature(_spec([None], tf.string, "x"))
    def serve(x: Any) -> Any:
        return {"y": tf.strings.join([x, tf.io.read_file(module.suffix)])}

    return _save(path, module, serving_default=serve)


def aborting(path: Path) -> Path:
    """`y = length(x)` of strings; a kernel aborts the process if one of them is `abort`.

    It is the inverse FFT of a variable, whose values no request chooses, so that no guard stands before it.
    """
    module = _Module(bins=tf.Variable(tf.zeros([2, 1])))

    @_signature(_spec([None], tf.string, "x"))
    def serve(x: Any) -> Any:
        length = tf.cast(tf.strings.length(x), tf.float32)

        def abort() -> Any:
            return tf.reduce_sum(tf.signal.irfft(tf.cast(module.bins, tf.complex64)))

        return {"y": length + tf.cond(tf.reduce_any(x == "abort"), abort, lambda: 0.0)}

    return _save(path, module, serving_default=serve)


def positive_only(path: Path) -> Path:
    """Fails with INVALID_ARGUMENT `x must be positive` as soon as one row is negative; else `y = x * 2`."""

    @_signature(_spec([None], tf.float32, "x"))
    def serve(x: Any) -> Any:
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, message="x must be positive")]):
            return {"y": x * 2.0}

    return _save(path, _Module(), serving_default=serve)


def across_rows(path: Path) -> Path:
    """Declares a batch dimension but mixes the rows: `y = x - mean(x)`; only the load-time probe can tell."""

    @_signature(_spec([None, 2], tf.float32, "x"))
    def serve(x: Any) -> Any:
        return {"y": x - tf.reduce_mean(x, axis=0, keepdims=True)}

    return _save(path, _Module(), serving_default=serve)


def endless(path: Path) -> Path:
    """A loop as long as its data says: `steps [-1]` int64 to `done [-1]`; about 10 million steps a minute."""

    @_signature(_spec([None], tf.int64, "steps"))
    def serve(steps: Any) -> Any:
        _, total = tf.while_loop(
            lambda i, _: i < tf.reduce_max(steps),
            lambda i, total: (i + 1, total + steps),
            [tf.constant(0, tf.int64), steps],
        )
        return {"done": total}

    return _save(path, _Module(), serving_default=serve)


def sized_by_value(path: Path) -> Path:
    """A matmul as large as a value says: `size []` int32 to `sum []`."""

    @_signature(_spec([], tf.int32, "size"))
    def serve(size: Any) -> Any:
        square = tf.ones(tf.stack([size, size]))
        return {"sum": tf.reduce_sum(square @ square)}

    return _save(path, _Module(), serving_default=serve)


def sized_by_shape(path: Path) -> Path:
    """A matmul as large as the input: `x [-1, -1]` to `sums [-1]`, each row times the transposed input."""

    @_signature(_spec([None, None], tf.float32, "x"))
    def serve(x: Any) -> Any:
        return {"sums": tf.reduce_sum(tf.matmul(x, x, transpose_b=True), axis=1)}

    return _save(path, _Module(), serving_default=serve)


def hue(path: Path) -> Path:
    """A kernel that nothing can stop: short for a `delta []` of size 1, and for 16,000,000 hours."""

    @_signature(_spec([None, None, 3], tf.float32, "image"), _spec([], tf.float32, "delta"))
    def serve(image: Any, delta: Any) -> Any:
        return {"mean": tf.reduce_mean(tf.image.adjust_hue(tf.tile(image, [500, 500, 1]), delta))}

    return _save(path, _Module(), serving_default=serve)


def endless_on_made_up_inputs(path: Path) -> Path:
    """The same kernel, which takes hours for any `image`."""

    @_signature(_spec([None, None, 3], tf.float32, "image"))
    def serve(image: Any) -> Any:
        return {"mean": tf.reduce_mean(tf.image.adjust_hue(tf.tile(image, [500, 500, 1]), 16e6))}

    return _save(path, _Module(), serving_default=serve)


def control_flow(path: Path) -> Path:
    """Nested functions: `pure` has a cond and a loop without effects, `hidden` a write inside a cond's branch."""
    module = _Module(count=tf.Variable(0.0))

    @tf.function
    def halve(x: Any) -> Any:
        return tf.while_loop(lambda y: tf.reduce_any(y > 100.0), lambda y: (tf.where(y > 100.0, y / 2.0, y),), [x])[0]

    @_signature(_spec([None], tf.float32, "x"))
    def pure(x: Any) -> Any:
        return {"y": tf.cond(tf.size(x) > 0, lambda: halve(x), lambda: x)}

    @_signature(_spec([None], tf.float32, "x"))
    def hidden(x: Any) -> Any:
        return {"y": tf.cond(tf.size(x) > 0, lambda: x + module.count.assign_add(1.0), lambda: x)}

    return _save(path, module, pure=pure, hidden=hidden)


def big_constant(path: Path, size: int = 1024) -> Path:
    """A 4 MB constant in the graph itself, as frozen models have: `x [-1, size]` to `y [-1, size]`."""
    constant = np.eye(size, dtype=np.float32) * 2

    @_signature(_spec([None, size], tf.float32, "x"))
    def serve(x: Any) -> Any:
        return {"y": x @ tf.constant(constant)}

    return _save(path, _Module(), serving_default=serve)


def conv2d(path: Path, unknown_rank: bool = False) -> Path:
    """Whose kernel aborts the process on a wrong rank: `image [-1, ?, ?, 1]` to `map` and `score`."""
    module = _Module(filters=tf.Variable(tf.ones([3, 3, 1, 2]) / 9))

    @_signature(_spec(None if unknown_rank else [None, None, None, 1], tf.float32, "image"))
    def serve(image: Any) -> Any:
        features = tf.raw_ops.Conv2D(input=image, filter=module.filters, strides=[1, 1, 1, 1], padding="SAME")
        return {"map": features, "score": tf.reduce_mean(features, axis=[1, 2])}

    return _save(path, module, serving_default=serve)


def conv2d_unknown_rank(path: Path) -> Path:
    """As `conv2d`, but the signature declares no rank at all."""
    return conv2d(path, unknown_rank=True)


def text_cnn(path: Path) -> Path:
    """Embedding, 1-D convolution, maximum: `tokens [-1, -1]` int32 to `score [-1, 4]`; aborts on rank 1."""
    random = np.random.default_rng(2)
    module = _Module(
        embedding=tf.Variable(random.normal(size=(50, 8)).astype(np.float32)),
        filters=tf.Variable(random.normal(size=(3, 8, 4)).astype(np.float32)),
    )

    @_signature(_spec([None, None], tf.int32, "tokens"))
    def serve(tokens: Any) -> Any:
        embedded = tf.gather(module.embedding, tokens % 50)
        return {"score": tf.reduce_max(tf.nn.conv1d(embedded, module.filters, 1, "SAME"), axis=1)}

    return _save(path, module, serving_default=serve)


def unknown_rank_product(path: Path) -> Path:
    """TensorFlow Serving's `test_tf_saved_model_save`: `y = 3 * 2 * x`, `x` of unknown rank, no signature named."""
    root = tf.train.Checkpoint(v1=tf.Variable(3.0), v2=tf.Variable(2.0))
    root.f = tf.function(lambda x: {"y": root.v1 * root.v2 * x})
    tf.saved_model.save(root, str(path), signatures=root.f.get_concrete_function(tf.TensorSpec(None, tf.float32)))
    return path


def constant_scalars(path: Path) -> Path:
    """Two signatures with a scalar output each (1 and 2) and an input of unknown rank that the graph never uses."""
    x = tf.TensorSpec(None, tf.float32)
    root = tf.train.Checkpoint()
    root.f = tf.function(lambda x: {"y": 1.0}, input_signature=[x])
    root.g = tf.function(lambda x: {"y": 2.0}, input_signature=[x])
    return _save(path, root, serving_default=root.f, custom_signature_key=root.g)


def keras_export(path: Path) -> Path:
    """What Keras 3's `Model.export` writes: a two-layer classifier over `[-1, 6]`."""
    import keras

    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.layers.Input((6,), name="features"),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.export(str(path), verbose=False)
    return path


def keras_line(path: Path) -> Path:
    """A functional Keras model with named input and output: `y = 3 * x`, `x` declared `[-1, 1]`."""
    import keras

    x = keras.Input((1,), name="x")
    y = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(3.0))(x)
    keras.Model({"x": x}, {"y": y}).export(str(path), verbose=False)
    return path


def keras_saved(path: Path, constant: int = 0) -> Path:
    """A Keras 3 model written by `tf.saved_model.save`, whose restore op leaves its variables unset in a session.

    With `constant`, its graph holds a constant of so many float32 besides.
    """
    import keras

    keras.utils.set_random_seed(4)
    model = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(3)])
    weights = np.linspace(0, 1, constant, dtype=np.float32)

    @_signature(_spec([None, 6], tf.float32, "x"))
    def serve(x: Any) -> Any:
        return {"y": model(x) + tf.reduce_sum(tf.constant(weights))}

    return _save(path, model, serving_default=serve)


def save_v1(path: Path, session: Any, signatures: Mapping[str, Any], **options: Any) -> Path:
    """Write what a TF1 session holds, with TF1's builder."""
    builder = v1.saved_model.builder.SavedModelBuilder(str(path))
    builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures, **options)
    builder.save()
    return path


def v1_signature(inputs: Mapping[str, Any], outputs: Mapping[str, Any], method: str = "predict") -> Any:
    """A `SignatureDef` over tensors of the graph."""
    info = v1.saved_model.utils.build_tensor_info
    return v1.saved_model.signature_def_utils.build_signature_def(
        {name: info(tensor) for name, tensor in inputs.items()},
        {name: info(tensor) for name, tensor in outputs.items()},
        f"tensorflow/serving/{method}",
    )


def tf1_ref_variables(path: Path) -> Path:
    """A TF1 builder model with reference variables, which `tf.saved_model.load` may refuse: `y = x * w + b`."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 2], "x")
        w = v1.get_variable("w", initializer=[[2.0, 3.0]], use_resource=False)
        b = v1.get_variable("b", initializer=[1.0, 1.0], use_resource=False)
        y = tf.add(x * w, b, name="y")
        session.run(v1.global_variables_initializer())
        return save_v1(path, session, {"serving_default": v1_signature({"x": x}, {"y": y})})


def tf1_dangerous(path: Path) -> Path:
    """`y = x * w`, beside operations that a client who feeds and fetches what it likes must not reach."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 2], "x")
        w = v1.get_variable("w", initializer=[2.0, 3.0], use_resource=True)
        r = v1.get_variable("r", initializer=[1.0, 1.0], use_resource=False)
        y = tf.multiply(x, w, name="y")
        name = tf.constant("/etc/passwd", name="name")
        tf.io.read_file(name, name="read")
        tf.identity(tf.io.read_file(tf.strings.join([name, ""], name="joined")), name="indirectly")
        tf.io.matching_files(name, name="matching")
        tf.io.write_file(name, "text", name="write")
        with tf.control_dependencies([w.assign([0.0, 0.0])]):
            tf.identity(x, name="after_assign")
        v1.assign(r, [5.0, 5.0], name="assign_reference")

        @tf.function
        def nested(path: Any) -> Any:
            return tf.io.read_file(path)

        @tf.function
        def loop(steps: Any) -> Any:
            for _ in tf.range(steps):
                w.assign_add([1.0, 1.0])
            return steps

        tf.identity(nested(name), name="in_a_function")
        tf.identity(loop(tf.constant(2)), name="in_a_loop")
        tf.raw_ops.GenerateVocabRemapping(
            new_vocab_file=name, old_vocab_file=name, new_vocab_offset=0, num_new_vocab=1, name="remapped"
        )
        tf.identity(tf.random.uniform([2]), name="noise")
        saver = v1.train.Saver([w, r])
        session.run(v1.global_variables_initializer())
        return save_v1(path, session, {"serving_default": v1_signature({"x": x}, {"y": y})}, saver=saver)


def tf1_assign_on_read(path: Path) -> Path:
    """A TF1 model that sets a variable whenever a request reads it: `y = 3 x`."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], "x")
        v = v1.get_variable("v", initializer=0.0, use_resource=True)
        with tf.control_dependencies([v.assign(3.0)]):
            y = tf.multiply(x, v.read_value(), name="y")
        session.run(v1.global_variables_initializer())
        return save_v1(path, session, {"serving_default": v1_signature({"x": x}, {"y": y})})


def tf1_counter(path: Path) -> Path:
    """A TF1 reference variable that each run increments: `y = x + count`."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], "x")
        count = v1.get_variable("count", initializer=0.0, use_resource=False)
        y = tf.add(x, v1.assign_add(count, 1.0), name="y")
        session.run(v1.global_variables_initializer())
        return save_v1(path, session, {"serving_default": v1_signature({"x": x}, {"y": y})})


def tf1_legacy_init(path: Path, main_op: bool = False) -> Path:
    """A TF1 lookup table filled from an asset by `legacy_init_op` (or `main_op`): `words [-1]` to `ids [-1]`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = path.parent / f"names-{path.name}.txt"
    vocabulary.write_text("cat\ndog\n")
    with tf.Graph().as_default(), v1.Session() as session:
        asset = tf.constant(str(vocabulary), name="asset")
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, asset)
        initializer = tf.lookup.TextFileInitializer(
            asset, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        )
        table = v1.lookup.StaticHashTable(initializer, -1)
        scale = v1.get_variable("scale", initializer=tf.constant(10, tf.int64), use_resource=False)
        words = v1.placeholder(tf.string, [None], "words")
        ids = tf.multiply(table.lookup(words), scale, name="ids")
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        init = {"main_op" if main_op else "legacy_init_op": v1.tables_initializer(name="init_tables")}
        assets = v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS)
        signatures = {"serving_default": v1_signature({"words": words}, {"ids": ids})}
        return save_v1(path, session, signatures, assets_collection=assets, **init)


def tf1_examples(path: Path, a: float = 0.5, b: float = 2.0) -> Path:
    """TensorFlow Serving's half_plus_two: `serving_default`, `classify_x_to_y`, `regress_x_to_y` over tf.Example."""
    with tf.Graph().as_default(), v1.Session() as session:
        serialized = v1.placeholder(tf.string, name="tf_example")
        parsed = v1.parse_example(serialized, {"x": tf.io.FixedLenFeature([1], tf.float32)})
        x = tf.identity(parsed["x"], name="x")
        scale = v1.get_variable("a", initializer=a, use_resource=False)
        offset = v1.get_variable("b", initializer=b, use_resource=False)
        y = tf.add(tf.multiply(scale, x), offset, name="y")
        session.run(v1.global_variables_initializer())
        signatures = {
            "serving_default": v1_signature({"x": x}, {"y": y}),
            "classify_x_to_y": v1_signature({"inputs": serialized}, {"scores": y}, "classify"),
            "regress_x_to_y": v1_signature({"inputs": serialized}, {"outputs": y}, "regress"),
        }
        return save_v1(path, session, signatures)


def examples(path: Path) -> Path:
    """The TF2 twin of `tf1_examples`; `classify_labels` answers classes and scores."""
    module = _Module(a=tf.Variable(0.5), b=tf.Variable(2.0))

    def parse(serialized: Any) -> Any:
        return tf.io.parse_example(serialized, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]

    @_signature(_spec([None, 1], tf.float32, "x"))
    def serve(x: Any) -> Any:
        return {"y": module.a * x + module.b}

    @_signature(_spec([None], tf.string, "inputs"))
    def classify(inputs: Any) -> Any:
        return {"scores": module.a * parse(inputs) + module.b}

    @_signature(_spec([None], tf.string, "inputs"))
    def regress(inputs: Any) -> Any:
        return {"outputs": module.a * parse(inputs) + module.b}

    @_signature(_spec([None], tf.string, "inputs"))
    def labels(inputs: Any) -> Any:
        x = parse(inputs)
        return {"classes": tf.strings.as_string(tf.concat([x, -x], 1), precision=1), "scores": tf.concat([x, -x], 1)}

    named = {
        "serving_default": serve,
        "classify_x_to_y": classify,
        "regress_x_to_y": regress,
        "classify_labels": labels,
    }
    return _save(path, module, **named)


def python_call(path: Path, where: str = "signature", op: str = "EagerPyFunc") -> Path:
    """`y = x * 2` by a Python function, which no SavedModel holds.

    Args:
        path: Version directory.
        where: What calls it: the `signature`, a `branch` or a `dataset` in it, the `initializer` of a resource, or a
            function that nothing served reaches (`unused`).
        op: `EagerPyFunc`, `PyFunc` or `PyFuncStateless`.
    """

    def call(x: Any) -> Any:
        if op == "EagerPyFunc":
            y = tf.py_function(lambda x: x * 2.0, [x], tf.float32)
        else:
            y = tf.numpy_function(lambda x: x * np.float32(2), [x], tf.float32, stateful=op == "PyFunc")
        return tf.ensure_shape(y, [None])

    class Resource(tf.saved_model.experimental.TrackableResource):
        def _create_resource(self) -> Any:
            return tf.raw_ops.MutableHashTableV2(key_dtype=tf.int64, value_dtype=tf.float32, shared_name="resource")

        def _initialize(self) -> None:
            tf.print(call(tf.constant([1.0])))

    module = _Module()
    if where == "initializer":
        module.resource = Resource()
        module.resource.resource_handle  # noqa: B018

    @_signature(_spec([None], tf.float32, "x"))
    def serve(x: Any) -> Any:
        if where == "signature":
            return {"y": call(x)}
        if where == "branch":
            return {"y": tf.cond(tf.size(x) > 100, lambda: call(x), lambda: x * 2.0)}
        if where == "dataset":
            rows = tf.data.Dataset.from_tensors(x).map(call)
            return {"y": rows.reduce(tf.zeros_like(x), lambda _, row: row)}
        return {"y": x * 2.0}

    if where == "unused":
        module.unused = tf.function(call, input_signature=[tf.TensorSpec([None], tf.float32)])
    return _save(path, module, serving_default=serve)


def tf1_python_call(path: Path, init: bool = False) -> Path:
    """`y = x * 2` by a `PyFunc` of a TF1 graph; with `init` its init op calls one besides, and `y` does not."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], "x")
        call = v1.py_func(lambda x: x * np.float32(2), [tf.constant([1.0]) if init else x], tf.float32)
        y = x * 2.0 if init else call
        main_op = tf.group(call, name="init") if init else None
        return save_v1(path, session, {"serving_default": v1_signature({"x": x}, {"y": y})}, main_op=main_op)


def composite_outputs(path: Path) -> Path:
    """Words of texts: `count [-1]` is dense, `ragged` and `sparse` are the words, `letters` the letters of each."""

    @_signature(_spec([None], tf.string, "text"))
    def serve(text: Any) -> Any:
        words = tf.strings.split(text)
        return {
            "count": words.row_lengths(),
            "ragged": words,
            "sparse": words.to_sparse(),
            "letters": tf.strings.bytes_split(words),
        }

    return _save(path, _Module(), serving_default=serve)


def without_inputs(path: Path) -> Path:
    """A signature that takes nothing: `y` is `[1, 2]`."""

    @_signature()
    def serve() -> Any:
        return {"y": tf.constant([1.0, 2.0])}

    return _save(path, _Module(), serving_default=serve)


def narrow(path: Path) -> Path:
    """Outputs in dtypes that TensorFlow Serving's JSON lacks: `x [-1]` as `half`, `bfloat16` and `uint16`."""

    @_signature(_spec([None], tf.float32, "x"))
    def serve(x: Any) -> Any:
        return {name: tf.cast(x, name) for name in ("half", "bfloat16", "uint16")}

    return _save(path, _Module(), serving_default=serve)


def tf1_composites(path: Path) -> Path:
    """`serving_default` takes `text`, gives `count` and sparse `words`; `sparse_input` takes `words`, gives `total`."""
    with tf.Graph().as_default(), v1.Session() as session:
        text = v1.placeholder(tf.string, [None], "text")
        words = v1.strings.split(text, result_type="RaggedTensor")
        sparse = words.to_sparse()
        given = v1.sparse_placeholder(tf.float32, [None, 3], "given")
        total = v1.sparse_reduce_sum(given, axis=1)
        signatures = {
            "serving_default": v1_signature({"text": text}, {"count": words.row_lengths(), "words": sparse}),
            "sparse_input": v1_signature({"words": given}, {"total": tf.reshape(total, [-1])}),
        }
        return save_v1(path, session, signatures)


def tf1_assigns_when_read(path: Path, order: str = "assign") -> Path:
    """A variable in no collection, so that nothing restores it: `y = x * 3`.

    Args:
        path: Version directory.
        order: `assign` before each read; `branches` assigns in both branches of a `cond`, `one branch` in one of them;
            `fed` assigns what the request gives (`value []`), well before the read; `never` does not assign;
            `partly` has a signature `other` besides, which reads a variable that is never assigned.
    """
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], "x")
        value = v1.placeholder(tf.float32, [], "value")
        v, other = (v1.Variable(0.0, collections=[], trainable=False, use_resource=True, name=n) for n in ("v", "w"))
        inputs = {"x": x, "value": value} if order == "fed" else {"x": x}
        if order in ("branches", "one branch"):
            with _control_flow_v1():
                assigned = v1.cond(
                    tf.size(x) > 2, lambda: v.assign(3.0).op, lambda: v.assign(3.0).op if order == "branches" else v.op
                )
        else:
            assigned = v.assign(value if order == "fed" else 3.0)
        if order == "fed":
            with tf.control_dependencies([assigned]):  # Time for another run to come between.
                noise = tf.random.normal([500, 500])
                assigned = tf.reduce_sum(noise @ noise)
        with tf.control_dependencies([] if order == "never" else [assigned]):
            y = tf.multiply(x, v.read_value(), name="y")
        signatures = {"serving_default": v1_signature(inputs, {"y": y})}
        if order == "partly":
            signatures["other"] = v1_signature({"x": x}, {"y": x * other.read_value()})
        return save_v1(path, session, signatures)


def tf1_without_init(path: Path, state: str = "resource", *, asks: bool = False) -> Path:
    """A TF1 model without an init op, whose local state only `tf.saved_model.load` sets: `y = x * 3`.

    Args:
        path: Version directory.
        state: `resource` or `reference` is a local variable, `table` and `old table` a lookup table; `saved` a variable
            of the checkpoint. `partly` has a local variable in the signature `other` (`y = x * 3`) alone.
        asks: The model asks whether its local variable is set, and takes the initial value otherwise.
    """
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None], "x")
        signatures = {}
        if state == "partly":
            signatures["serving_default"] = v1_signature({"x": x}, {"y": x * 3})
        if state == "table":
            initializer = tf.lookup.KeyValueTensorInitializer(tf.constant([7], tf.int64), tf.constant([3.0]))
            value = tf.lookup.StaticHashTable(initializer, 0.0).lookup(tf.constant(7, tf.int64))
        elif state == "old table":
            value = _old_table(tf.constant([7], tf.int64), tf.constant([3.0]))
        else:
            kept = v1.GraphKeys.GLOBAL_VARIABLES if state == "saved" else v1.GraphKeys.LOCAL_VARIABLES
            v = v1.Variable(3.0, collections=[kept], trainable=False, use_resource=state != "reference", name="v")
            value = v.read_value()
            if asks:
                with _control_flow_v1():
                    value = v1.cond(v1.is_variable_initialized(v), v.read_value, lambda: tf.constant(3.0))
        signatures["other" if state == "partly" else "serving_default"] = v1_signature({"x": x}, {"y": x * value})
        session.run([v1.global_variables_initializer(), v1.local_variables_initializer(), v1.tables_initializer()])
        return save_v1(path, session, signatures)


def _old_table(keys: Any, values: Any) -> Any:
    """The value of the first key, from a table with a reference for a handle, as TensorFlow 1.0 wrote."""
    graph, types = keys.graph, {"key_dtype": keys.dtype, "value_dtype": values.dtype}
    attrs = {name: attr_value_pb2.AttrValue(type=dtype.as_datatype_enum) for name, dtype in types.items()}
    table = graph.create_op("HashTable", [], [tf.string._as_ref], attrs=attrs, name="old_table").outputs[0]
    init = graph.create_op("InitializeTable", [table, keys, values], [])
    v1.add_to_collection(v1.GraphKeys.TABLE_INITIALIZERS, init)
    return graph.create_op("LookupTableFind", [table, keys[0], tf.constant(0.0)], [values.dtype]).outputs[0]


def tf1_asset_in_variable(path: Path, main_op: bool = False) -> Path:
    """The name of an asset file in a variable that `legacy_init_op` (or `main_op`) assigns: `x [-1]` to `x + text`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = path.parent / f"text-{path.name}.txt"
    suffix.write_text("!")
    with tf.Graph().as_default(), v1.Session() as session:
        asset = tf.constant(str(suffix), name="asset")
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, asset)
        name = v1.Variable(str(suffix), collections=[], trainable=False, use_resource=True, name="file_name")
        x = v1.placeholder(tf.string, [None], "x")
        y = tf.strings.join([x, tf.io.read_file(name.read_value())], name="y")
        init = {"main_op" if main_op else "legacy_init_op": tf.group(name.assign(asset), name="assign_asset")}
        assets = v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS)
        signatures = {"serving_default": v1_signature({"x": x}, {"y": y})}
        path = save_v1(path, session, signatures, assets_collection=assets, **init)
    suffix.unlink()
    return path


@contextlib.contextmanager
def _control_flow_v1() -> Iterator[None]:
    v1.disable_control_flow_v2()
    try:
        yield
    finally:
        v1.enable_control_flow_v2()


def set_default(path: Path, signature_name: str, alias: str, value: Any) -> Path:
    """Give an input of a saved signature a default value, as `SignatureDef.defaults` holds it."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    file = path / "saved_model.pb"
    proto = SavedModel.FromString(file.read_bytes())
    for meta_graph in proto.meta_graphs:
        meta_graph.signature_def[signature_name].defaults[alias].CopyFrom(tf.make_tensor_proto(value))
    file.write_bytes(proto.SerializeToString())
    return path


def add_warmup_requests(path: Path, logs: Iterable[Any]) -> Path:
    """Write `assets.extra/tf_serving_warmup_requests` with these PredictionLog messages (or raw record bytes)."""
    extra = path / "assets.extra"
    extra.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for log in logs:
            writer.write(log if isinstance(log, bytes) else log.SerializeToString())
    return path


MODELS: Mapping[str, Builder] = {
    builder.__name__: builder
    for builder in (
        *(half_plus_two, dense, integer_matmul, counter, exposed_variable, random_noise, strings, several, identities),
        *(lookup, reads_asset_at_run_time, positive_only, across_rows, endless, control_flow, big_constant, conv2d),
        *(
            conv2d_unknown_rank,
            text_cnn,
            keras_export,
            keras_saved,
            tf1_ref_variables,
            tf1_dangerous,
            tf1_assign_on_read,
            tf1_counter,
            tf1_legacy_init,
            tf1_examples,
        ),
        *(examples, unknown_rank_product, constant_scalars, keras_line, composite_outputs, tf1_composites),
        *(tf1_assigns_when_read, tf1_asset_in_variable, tf1_without_init, without_inputs, narrow),
        *(sized_by_value, sized_by_shape),
    )
}
