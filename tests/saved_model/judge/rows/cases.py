"""Functions of rows: operations of the table in the cases that keep rows apart, and in those that do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tests.saved_model.judge.rows.graphs import Case, Input, examples, named, texts

raw: Any = tf.raw_ops
F, INT, S, B = tf.float32, tf.int32, tf.string, tf.bool
IMAGE = Input(F, (8, 8, 3))
VECTOR = Input(F, ())
INTS = Input(INT, (3,))
PAIR = (Input(), Input(F, (3,)))
CUBE = Input(F, (4, 3))
OPEN = Input(F, (None, 3))
TEXTS = texts()
WEIGHTS = tf.constant(np.linspace(-1, 1, 12).reshape(3, 4), F)
FILTERS = tf.constant(np.linspace(-1, 1, 54).reshape(3, 3, 3, 2), F)
TABLE = tf.Variable(np.linspace(-1, 1, 20).reshape(5, 4).astype(np.float32))
LOOKUP = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(["a", "h"], [5, 6]), -1)
CLICKS = examples(clicks=[[1.0], [2.0, 4.0], [], [1.0, 2.0, 3.0], [5.0], [0.5, 1.5]])
WORD_IDS = examples(ids=[[1], [2, 4], [], [1, 2, 3], [4], [0, 1]])
NUMBERS = texts(b"1", b"-2.5", b"3", b"0.25", b"8", b"1e3")


def unary(name: str, dtype: Any = F, **attributes: Any) -> tuple[Callable[..., Any], Input]:
    """One raw operation on `x`, named as its first argument is."""
    operation = getattr(raw, name)

    def call(x: Any) -> Any:
        argument = next(iter(_arguments(operation)))
        return operation(**{argument: x}, **attributes)

    return call, Input(dtype, (3,))


def binary(name: str, dtype: Any = F, **attributes: Any) -> tuple[Any, ...]:
    """One raw operation on two inputs of one shape."""
    operation = getattr(raw, name)

    def call(x: Any, y: Any) -> Any:
        first, second, *_ = _arguments(operation)
        return operation(**{first: x, second: y}, **attributes)

    return call, Input(dtype, (3,)), Input(dtype, (3,), None if dtype != F else np.linspace(0.5, 4, 18).reshape(6, 3))


def _arguments(operation: Any) -> list[str]:
    import inspect

    return [name for name in inspect.signature(operation).parameters if name != "name"]


def looped(function: Callable[[Any], Any], dtype: Any = F) -> Callable[[Any], Any]:
    """`tf.map_fn` over the rows."""
    return lambda x: tf.map_fn(function, x, fn_output_signature=dtype)


def count_of(x: Any) -> Any:
    """The number of rows."""
    return tf.shape(x)[0]


def along_time(x: Any) -> Any:
    """A recurrent loop over dimension 1, with a state of zeros."""
    steps = tf.TensorArray(F, size=tf.shape(x)[1]).unstack(tf.transpose(x, [1, 0, 2]))
    state = tf.zeros([count_of(x), 3])
    outputs = tf.TensorArray(F, size=tf.shape(x)[1])

    def step(i: Any, state: Any, outputs: Any) -> Any:
        state = tf.tanh(state + steps.read(i))
        return i + 1, state, outputs.write(i, state)

    _, last, outputs = tf.while_loop(lambda i, *_: i < tf.shape(x)[1], step, [0, state, outputs])
    return last, tf.transpose(outputs.stack(), [1, 0, 2])


def embedded(x: Any, combiner: str = "mean", safe: bool = True) -> Any:
    """Sparse embeddings combined per row."""
    ids = tf.io.parse_example(x, {"ids": tf.io.VarLenFeature(tf.int64)})["ids"]
    if safe:
        return tf.nn.safe_embedding_lookup_sparse(TABLE, ids, combiner=combiner)
    return tf.nn.embedding_lookup_sparse(TABLE, ids, None, combiner=combiner)


def ragged_ids(x: Any) -> Any:
    """A ragged feature."""
    return tf.io.parse_example(x, {"ids": tf.io.RaggedFeature(tf.int64)})["ids"]


def sparse_ids(x: Any) -> Any:
    """A sparse feature."""
    return tf.io.parse_example(x, {"ids": tf.io.VarLenFeature(tf.int64)})["ids"]


def sparse_words(x: Any) -> Any:
    """The words of each text."""
    return tf.compat.v1.string_split(x)


def segments(operation: str, **more: Any) -> Callable[[Any], Any]:
    """A segment reduction over the filled entries of each row."""

    def call(x: Any) -> Any:
        filled, _ = tf.sparse.fill_empty_rows(sparse_ids(x), 0)
        data = tf.gather(TABLE, filled.values)
        return getattr(raw, operation)(data=data, segment_ids=filled.indices[:, 0], **more)

    return call


def counted_segments(operation: str) -> Callable[[Any], Any]:
    """A segment reduction into a number of segments."""

    def call(x: Any) -> Any:
        ids = sparse_ids(x)
        return getattr(raw, operation)(
            data=tf.gather(TABLE, ids.values), segment_ids=ids.indices[:, 0], num_segments=ids.dense_shape[0]
        )

    return call


def sparse_segments(operation: str, counted: bool) -> Callable[[Any], Any]:
    """A segment reduction of entries of a constant."""

    def call(x: Any) -> Any:
        filled, _ = tf.sparse.fill_empty_rows(sparse_ids(x), 0)
        more = {"num_segments": filled.dense_shape[0]} if counted else {}
        return getattr(raw, operation)(
            data=tf.identity(TABLE), indices=filled.values, segment_ids=filled.indices[:, 0], **more
        )

    return call


def list_of_rows(x: Any) -> Any:
    """A list along time, with what lists of TensorFlow offer besides."""
    made = raw.EmptyTensorList(element_shape=tf.constant([-1, 3]), max_num_elements=-1, element_dtype=F)
    for step in tf.unstack(x, axis=1):
        made = raw.TensorListPushBack(input_handle=made, tensor=step)
    length = tf.cast(raw.TensorListLength(input_handle=made), F)
    return (
        tf.transpose(
            raw.TensorListStack(input_handle=made, element_shape=tf.constant([-1, 3]), element_dtype=F), [1, 0, 2]
        )
        * length
    )


_UNARY_FLOAT = """
    Neg Abs Sign Square Sqrt Rsqrt Exp Expm1 Log Log1p Sin Cos Tan Asin Acos Atan Sinh Cosh Tanh Asinh Acosh Atanh
    Sigmoid Relu Relu6 Elu Selu Softplus Softsign LeakyRelu Floor Ceil Round Rint Reciprocal Inv Erf Erfc Erfinv Ndtri
    Lgamma Digamma BesselI0e BesselI1e BesselI0 BesselI1 IsNan IsInf IsFinite ZerosLike OnesLike Identity Snapshot
    StopGradient PreventGradient DeepCopy Softmax LogSoftmax
    """
_UNARY_COMPLEX = "ComplexAbs Real Imag Conj Angle FFT IFFT"
_BINARY_FLOAT = """
    Add AddV2 Sub Mul Maximum Minimum Equal NotEqual Less LessEqual Greater GreaterEqual RealDiv Div DivNoNan MulNoNan
    FloorDiv FloorMod Mod Pow SquaredDifference Atan2 Xdivy Xlogy Xlog1py Igamma Igammac Zeta Polygamma NextAfter
    Complex ApproximateEqual
    """
_BINARY_INT = "TruncateDiv TruncateMod BitwiseAnd BitwiseOr BitwiseXor LeftShift RightShift"

APART: list[Case] = [
    *named({name: unary(name) for name in _UNARY_FLOAT.split()}),
    *named({name: unary(name, tf.complex64) for name in _UNARY_COMPLEX.split()}),
    *named({name: unary(name, INT) for name in ("Invert", "PopulationCount")}),
    *named({name: binary(name) for name in _BINARY_FLOAT.split()}),
    *named(
        {
            name: (
                lambda x, y, name=name: getattr(raw, name)(x=x, y=y + 1),
                INTS,
                Input(INT, (3,)),
            )
            for name in _BINARY_INT.split()
        }
    ),
    *named(
        {
            "logic": (lambda x, y: [x & y, x | y, ~x], Input(B, (3,)), Input(B, (3,))),
            "Betainc": lambda x: raw.Betainc(a=x * x + 0.1, b=x * x + 0.2, x=tf.sigmoid(x)),
            "Cast": lambda x: [tf.cast(x, INT), tf.cast(x, tf.float64), tf.cast(x > 0, F)],
            "IdentityN": lambda x: raw.IdentityN(input=[x, x + 1]),
            "CheckNumerics": lambda x: raw.CheckNumerics(tensor=x, message="no"),
            "EnsureShape": lambda x: tf.ensure_shape(x, [None, 3]),
            "PlaceholderWithDefault": lambda x: raw.PlaceholderWithDefault(input=x, shape=[None, 3]),
            "constant of lower rank": lambda x: x + tf.constant([1.0, 2, 3]),
            "constant of size 1": lambda x: x * tf.constant([[2.0]]),
            "rows with rows of size 1": (lambda x, y: x + y, Input(F, (3,)), Input(F, (1,))),
            "variable": lambda x: x + tf.reduce_sum(TABLE),
            "SelectV2": lambda x: tf.where(x > 0, x, tf.constant(1.0)),
            "Select by element": lambda x: raw.Select(condition=x > 0, x=x, y=-x),
            "Select by row": lambda x: raw.Select(condition=x[:, 0] > 0, x=x, y=-x),
            "ClipByValue": lambda x: raw.ClipByValue(t=x, clip_value_min=-1.0, clip_value_max=1.0),
            "Bucketize": lambda x: raw.Bucketize(input=x, boundaries=[-1.0, 0.0, 1.0]),
            "AddN": lambda x: raw.AddN(inputs=[x, x * 2]),
            "QuantizeAndDequantizeV2": lambda x: raw.QuantizeAndDequantizeV2(
                input=x, input_min=-1.0, input_max=1.0, range_given=True
            ),
            "QuantizeAndDequantizeV3": lambda x: raw.QuantizeAndDequantizeV3(
                input=x, input_min=-1.0, input_max=1.0, num_bits=8, range_given=True
            ),
            "QuantizeAndDequantizeV4": lambda x: raw.QuantizeAndDequantizeV4(
                input=x, input_min=-1.0, input_max=1.0, range_given=True
            ),
            "FakeQuant": lambda x: [
                raw.FakeQuantWithMinMaxVars(inputs=x, min=-1.0, max=1.0),
                raw.FakeQuantWithMinMaxArgs(inputs=x),
                raw.FakeQuantWithMinMaxVarsPerChannel(inputs=x, min=[-1.0] * 3, max=[1.0] * 3),
            ],
        }
    ),
    # Inner dimensions.
    *named(
        {
            "inner 2": (lambda x: [raw.FFT2D(input=x), raw.IFFT2D(input=x)], Input(tf.complex64, (2, 3))),
            "inner 3": (lambda x: [raw.FFT3D(input=x), raw.IFFT3D(input=x)], Input(tf.complex64, (2, 3, 2))),
            "real transforms": (
                lambda x: [
                    *(raw.RFFT(input=x, fft_length=[n]) for n in (1, 2, 3)),
                    raw.RFFT2D(input=x, fft_length=[4, 2]),
                    raw.RFFT3D(input=x[:, None], fft_length=[1, 4, 2]),
                    tf.signal.irfft(tf.signal.rfft(x)),
                    tf.signal.irfft2d(tf.signal.rfft2d(x)),
                    tf.signal.irfft3d(tf.signal.rfft3d(x[:, None])),
                ],
                CUBE,
            ),
            "spectra": (
                lambda x: [
                    tf.abs(spectrum := tf.signal.stft(x, 8, 4)),
                    tf.signal.inverse_stft(spectrum, 8, 4),
                    tf.signal.dct(x),
                    tf.signal.mdct(x, 8),
                ],
                Input(F, (32,)),
            ),
            "a loss of a constant": (lambda x: x * tf.nn.l2_loss(WEIGHTS), Input()),
            "frames": (
                lambda x: [
                    tf.signal.frame(x, 4, 2),
                    tf.signal.frame(x, 5, 3, pad_end=True),
                    tf.signal.frame(x[:, :, None], 4, 2, axis=1),
                    tf.signal.overlap_and_add(tf.signal.frame(x, 4, 2), 2),
                ],
                Input(F, (16,)),
            ),
            "frames of any length": (
                lambda x: [tf.signal.frame(x, 2, 1), tf.signal.overlap_and_add(tf.signal.frame(x, 2, 1), 1)],
                Input(F, (None,)),
            ),
            "sizes in parts": (
                lambda x: [
                    tf.reshape(x, tf.concat([*tf.split(tf.shape(x), [1, 1, 1]), [1]], 0)),
                    tf.reshape(x, tf.concat([*tf.split(tf.shape(x), [1, -1]), [1]], 0)),
                    tf.reshape(x, tf.concat([*tf.split(tf.shape(x), 3), [1]], 0)),
                ],
                CUBE,
            ),
            "MatrixBandPart": (lambda x: tf.linalg.band_part(x, 1, 0), CUBE),
            "colours": (lambda x: [raw.RGBToHSV(images=tf.sigmoid(x)), raw.HSVToRGB(images=tf.sigmoid(x))], IMAGE),
            "LRN": (lambda x: raw.LRN(input=x), IMAGE),
            "AdjustContrastv2": (lambda x: raw.AdjustContrastv2(images=x, contrast_factor=2.0), IMAGE),
            "AdjustHue, AdjustSaturation": (
                lambda x: [raw.AdjustHue(images=x, delta=0.1), raw.AdjustSaturation(images=x, scale=0.5)],
                IMAGE,
            ),
        }
    ),
    # Layout.
    *named(
        {
            "Shape": lambda x: tf.zeros(tf.shape(x)) + x,
            "ShapeN": lambda x: tf.zeros(raw.ShapeN(input=[x, x])[1]) + x,
            "Size, Rank": lambda x: tf.reshape(x, [tf.size(x) // 3, 3]) * tf.cast(raw.Rank(input=x), F),
            "Reshape to one": (lambda x: tf.reshape(tf.reshape(x, [-1, 3]) @ WEIGHTS, [-1, 4, 4]), CUBE),
            "Reshape by shape": (
                lambda x: tf.reshape(
                    tf.reshape(x, [-1, 3]) @ WEIGHTS, tf.concat([tf.shape(x)[:-1], tf.constant([4])], 0)
                ),
                OPEN,
            ),
            "Reshape by Pack": (lambda x: tf.reshape(x, tf.stack([count_of(x), 12])), CUBE),
            "Reshape rest": (lambda x: tf.reshape(x, tf.stack([count_of(x), -1])), OPEN),
            "Reshape and reduce": (lambda x: tf.reduce_sum(tf.reshape(x, [-1, 12]), 1), CUBE),
            "Reshape behind one": lambda x: tf.reshape(tf.reshape(x, [1, -1, 3]) * 2, [-1, 3]),
            "Transpose and back": (
                lambda x: tf.transpose(tf.reduce_sum(tf.transpose(x, [1, 0, 2]), 0, keepdims=True), [1, 0, 2]),
                CUBE,
            ),
            "ExpandDims, Squeeze": lambda x: [
                tf.expand_dims(x, 1),
                tf.squeeze(tf.expand_dims(x, 0), [0]),
                tf.squeeze(tf.expand_dims(x, -1), [2]),
            ],
            "ConcatV2": (lambda x, y: tf.concat([x, y, x], 1), *PAIR),
            "Concat": (lambda x, y: raw.Concat(concat_dim=1, values=[x, y]), *PAIR),
            "Pack": (lambda x, y: [tf.stack([x, y], 1), tf.reduce_max(tf.stack([x, y], 0), 0)], *PAIR),
            "Unpack": lambda x: tf.unstack(x, axis=1),
            "Split": (lambda x: tf.split(x, 2, 1), CUBE),
            "SplitV": (lambda x: tf.split(x, [1, 3], 1), CUBE),
            "Slice": (
                lambda x: [tf.slice(x, [0, 1, 0], [-1, 2, 2]), tf.slice(x, [0, 0, 0], [count_of(x), 1, 3])],
                CUBE,
            ),
            "StridedSlice": (
                lambda x: [
                    x[:, 0],
                    x[:, -1],
                    x[:, 1:, :2],
                    x[..., 0],
                    x[:, ::2],
                    x[:, ::-1],
                    x[:, None],
                    x[: count_of(x)],
                ],
                CUBE,
            ),
            "Tile": lambda x: [tf.tile(x, [1, 2]), tf.tile(tf.constant([[1.0, 2, 3]]), [count_of(x), 1]) + x],
            "BroadcastTo": lambda x: [
                tf.broadcast_to(x[:, None], tf.stack([count_of(x), 2, 3])),
                tf.broadcast_to(tf.constant([1.0, 2, 3]), tf.shape(x)),
            ],
            "Fill": lambda x: tf.fill([count_of(x), 2], 3.0),
            "Range": (
                lambda x, n: tf.gather_nd(x, tf.stack([tf.range(count_of(x)), n], 1)),
                CUBE,
                Input(INT, (), [0, 1, 2, 3, 1, 0]),
            ),
            "Pad": lambda x: [
                tf.pad(x, [[0, 0], [1, 2]]),
                tf.pad(x, [[0, 0], [1, 2]], constant_values=5.0),
                tf.pad(x, [[0, 0], [1, 1]], "REFLECT"),
            ],
            "ReverseV2": lambda x: tf.reverse(x, [1]),
            "ReverseSequence": (
                lambda x, n: tf.reverse_sequence(x, n, seq_axis=1, batch_axis=0),
                CUBE,
                Input(INT, (), [0, 1, 2, 3, 4, 1]),
            ),
            "Roll": lambda x: tf.roll(x, 1, 1),
        }
    ),
    # Picking.
    *named(
        {
            "Gather by rows": (lambda x: tf.gather(tf.constant(np.arange(12.0).reshape(4, 3)), x), INTS),
            "Gather same of each": lambda x: tf.gather(x, [2, 0], axis=1),
            "Gather v1": (lambda x: raw.Gather(params=tf.constant([1.0, 2, 3, 4]), indices=x), INTS),
            "Gather in batch": (lambda x, n: tf.gather(x, n, axis=1, batch_dims=1), CUBE, Input(INT, (2,))),
            "ResourceGather": (lambda x: tf.gather(TABLE, x), INTS),
            "GatherNd": (lambda x: tf.gather_nd(tf.constant(np.arange(16.0).reshape(4, 4)), x), Input(INT, (2,))),
            "GatherNd of a transposed": (
                lambda x: tf.gather_nd(tf.transpose(x, [1, 0, 2]), [[1], [3]])[0],
                CUBE,
            ),
            "OneHot": (lambda x: [tf.one_hot(x, 4), tf.one_hot(x, 4, axis=1)], INTS),
            "LookupTableFindV2": (lambda x: LOOKUP.lookup(x), TEXTS),
            "TopKV2": lambda x: list(tf.math.top_k(x, 2)),
        }
    ),
    # Contracting.
    *named(
        {
            "reductions": (
                lambda x: [
                    tf.reduce_sum(x, 1),
                    tf.reduce_mean(x, [1, 2], keepdims=True),
                    tf.reduce_max(x, -1),
                    tf.reduce_min(x, [2, 1]),
                    tf.reduce_prod(x, 2),
                    tf.reduce_all(x > 0, 1),
                    tf.reduce_any(x > 0, 1),
                    tf.math.reduce_euclidean_norm(x, 1),
                ],
                CUBE,
            ),
            "ReduceJoin": (lambda x: tf.strings.reduce_join(x, 1), Input(S, (3,))),
            "ArgMax, ArgMin": (lambda x: [tf.argmax(x, 1), tf.argmin(x, 2)], CUBE),
            "cumulative": (
                lambda x: [tf.cumsum(x, 1), tf.math.cumprod(x, 2), tf.math.cumulative_logsumexp(x, 1)],
                CUBE,
            ),
            "MatMul": lambda x: [x @ WEIGHTS, tf.matmul(tf.transpose(x), WEIGHTS, transpose_a=True)],
            "MatMul from the right": lambda x: tf.transpose(tf.matmul(WEIGHTS, x, transpose_a=True, transpose_b=True)),
            "BatchMatMulV2": (
                lambda x: [tf.matmul(x, WEIGHTS), tf.matmul(x, x, transpose_b=True), tf.matmul(x, x, adjoint_a=True)],
                CUBE,
            ),
            "BatchMatMul": (lambda x: raw.BatchMatMul(x=x, y=x, adj_y=True), CUBE),
            "BatchMatMulV3": (lambda x: raw.BatchMatMulV3(x=x, y=x, adj_y=True, Tout=F), CUBE),
            "BatchMatMul of a matrix of rows": lambda x: tf.transpose(
                tf.matmul(x, tf.reshape(tf.concat([WEIGHTS, -WEIGHTS], 0), [2, 3, 4])), [1, 0, 2]
            ),
            "Einsum": (
                lambda x: [
                    tf.einsum("btd,dk->btk", x, WEIGHTS),
                    tf.einsum("btd,bsd->bts", x, x),
                    tf.einsum("...d,dk->...k", x, WEIGHTS),
                    tf.einsum("btd->bd", x),
                ],
                CUBE,
            ),
            "Conv2D": (
                lambda x: [
                    tf.nn.conv2d(x, FILTERS, 1, "SAME"),
                    tf.nn.conv2d(x, FILTERS, 2, "VALID"),
                    tf.nn.conv2d(x, FILTERS, 1, [[0, 0], [1, 1], [2, 0], [0, 0]]),
                    tf.reshape(tf.nn.conv2d(x, FILTERS, 2, "SAME"), [-1, 32]),
                    raw.Conv2D(input=x, filter=FILTERS, strides=[1] * 4, padding="VALID", dilations=[1, 2, 2, 1]),
                ],
                IMAGE,
            ),
            "Conv2D of any size": (lambda x: tf.nn.conv2d(x, FILTERS, 2, "SAME"), Input(F, (None, None, 3))),
            "Conv3D": (lambda x: tf.nn.conv3d(x, tf.ones([2, 2, 2, 1, 2]), [1] * 5, "SAME"), Input(F, (4, 4, 4, 1))),
            "DepthwiseConv2dNative": (
                lambda x: tf.reshape(tf.nn.depthwise_conv2d(x, FILTERS, [1] * 4, "VALID"), [-1, 6 * 6 * 6]),
                IMAGE,
            ),
            "Conv2DBackpropInput": (
                lambda x: tf.nn.conv2d_transpose(x, tf.ones([3, 3, 2, 3]), tf.stack([count_of(x), 16, 16, 2]), 2),
                IMAGE,
            ),
            "Conv3DBackpropInputV2": (
                lambda x: tf.nn.conv3d_transpose(x, tf.ones([2, 2, 2, 2, 1]), tf.stack([count_of(x), 8, 8, 8, 2]), 2),
                Input(F, (4, 4, 4, 1)),
            ),
            "pooling": (
                lambda x: [
                    tf.nn.max_pool2d(x, 2, 2, "VALID"),
                    tf.nn.avg_pool2d(x, 3, 1, "SAME"),
                    raw.MaxPoolV2(input=x, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="SAME"),
                    tf.nn.max_pool_with_argmax(x, 2, 2, "VALID")[1],
                    tf.reshape(tf.nn.max_pool2d(x, 2, 2, "VALID"), [-1, 48]),
                ],
                IMAGE,
            ),
            "pooling in 3D": (
                lambda x: [tf.nn.max_pool3d(x, 2, 2, "SAME"), tf.nn.avg_pool3d(x, 2, 2, "VALID")],
                Input(F, (4, 4, 4, 1)),
            ),
            "BiasAdd": (
                lambda x: [tf.nn.bias_add(x, [1.0, 2, 3]), raw.BiasAddV1(value=x, bias=[1.0, 2, 3])],
                IMAGE,
            ),
            "FusedBatchNormV3": (
                lambda x: tf.compat.v1.nn.fused_batch_norm(
                    x, [1.0, 2, 3], [0.0, 1, 2], [0.1, 0.2, 0.3], [1.0, 2, 3], is_training=False
                )[0],
                IMAGE,
            ),
            "FusedBatchNorm, V2": (
                lambda x: [
                    operation(
                        x=x,
                        scale=[1.0, 2, 3],
                        offset=[0.0, 1, 2],
                        mean=[0.1, 0.2, 0.3],
                        variance=[1.0, 2, 3],
                        is_training=False,
                    )[0]
                    for operation in (raw.FusedBatchNorm, raw.FusedBatchNormV2)
                ],
                IMAGE,
            ),
            "resizing": (
                lambda x: [tf.image.resize(x, [4, 5], method) for method in ("bilinear", "nearest", "bicubic", "area")],
                IMAGE,
            ),
            "DepthToSpace, SpaceToDepth": (
                lambda x: tf.nn.depth_to_space(tf.nn.space_to_depth(x, 2), 2),
                IMAGE,
            ),
            "dilated by space": (lambda x: tf.nn.conv2d(x, FILTERS, 1, "SAME", dilations=2), IMAGE),
            "dilated by blocks": (lambda x: dilated(x), IMAGE),
            "dilated depthwise by blocks": (
                lambda x: in_blocks(x, lambda y: tf.nn.depthwise_conv2d(y, FILTERS, [1, 1, 1, 1], "VALID")),
                IMAGE,
            ),
            "dilated along time by blocks": (
                lambda x: tf.nn.with_space_to_batch(
                    x, [2], "SAME", lambda y, n, padding: tf.nn.conv1d(y, FILTERS[0], 1, padding), [3]
                ),
                Input(F, (8, 3)),
            ),
            "DenseBincount": (
                lambda x: raw.DenseBincount(input=x, size=4, weights=tf.constant([], F)),
                INTS,
            ),
            "counts within each row": (lambda x: tf.math.bincount(x, minlength=5, maxlength=5, axis=-1), INTS),
            "CombinedNonMaxSuppression": (
                lambda x, y: list(tf.image.combined_non_max_suppression(tf.abs(x)[:, :, None], y, 2, 3)),
                Input(F, (5, 4)),
                Input(F, (5, 2)),
            ),
        }
    ),
]


def in_blocks(x: Any, operation: Callable[[Any], Any], shape: tuple[int, int] = (2, 2)) -> Any:
    """An operation with windows of 3 by 3 on blocks of images of 8 by 8."""
    around = [[2, 2], [2, 2]]
    blocks = raw.SpaceToBatchND(input=x, block_shape=list(shape), paddings=around)
    return raw.BatchToSpaceND(input=operation(blocks), block_shape=[2, 2], crops=[[0, 0], [0, 0]])


def dilated(x: Any, shape: tuple[int, int] = (2, 2)) -> Any:
    """A dilated convolution as TensorFlow 1 wrote it."""
    return in_blocks(x, lambda y: tf.nn.conv2d(y, FILTERS, 1, "VALID"), shape)


def crossed(operation: str, *dense: Any, sparse: Any = None, width: int = 0) -> Any:
    """Entries of the rows crossed by one of the operations `SparseCross`, made dense."""
    given = [] if sparse is None else [sparse]
    parts: dict[str, Any] = {
        "indices": [one.indices for one in given],
        "values": [one.values for one in given],
        "shapes": [one.dense_shape for one in given],
        "dense_inputs": dense,
    }
    if operation == "SparseCross":
        types = {"out_type": tf.int64, "internal_type": tf.string}
        found = raw.SparseCross(**parts, hashed_output=True, num_buckets=9, hash_key=7, **types)
    elif operation == "SparseCrossV2":
        found = raw.SparseCrossV2(**parts, sep="_")
    else:
        found = raw.SparseCrossHashed(**parts, num_buckets=9, strong_hash=False, salt=[1, 2])
    indices, values, shape = found
    made = tf.sparse.SparseTensor(indices, tf.as_string(values), shape)
    if width:
        made = tf.sparse.SparseTensor(indices, made.values, tf.stack([shape[0], tf.constant(width, tf.int64)]))
    return tf.sparse.to_dense(made)


def grown(result: Any, how: str = "range", **options: Any) -> Any:
    """A function of a `TensorArray` that is written to beyond its size, which is 1 if not given, three times."""

    def function(x: Any) -> Any:
        array = tf.TensorArray(F, **{"size": 1, "dynamic_size": True, **options})
        if how == "range":
            for turn in range(3):
                array = array.write(turn, x * float(turn + 1))
        else:
            _, array = tf.while_loop(
                lambda turn, _: turn < 3,
                lambda turn, array: (turn + 1, array.write(turn, x * tf.cast(turn + 1, F))),
                [0, array],
            )
        return result(array, x)

    return function
