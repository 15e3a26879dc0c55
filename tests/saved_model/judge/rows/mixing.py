"""Functions that make rows depend on each other, and what the analysis has to name; and those that it may not prove."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from tests.saved_model.judge.rows.cases import (
    CLICKS,
    FILTERS,
    IMAGE,
    INT,
    TEXTS,
    VECTOR,
    WEIGHTS,
    WORD_IDS,
    F,
    count_of,
    crossed,
    dilated,
    embedded,
    grown,
    in_blocks,
    ragged_ids,
    raw,
    sparse_words,
)
from tests.saved_model.judge.rows.graphs import Input, examples, texts

Function = Callable[..., Any]


def hashed(keys: Any) -> Any:
    """A number below 1000 for each key."""
    return tf.strings.to_hash_bucket_fast(keys, 1000)


GROUPED: Mapping[str, tuple[str, Function]] = {
    "UnsortedSegmentMax": (
        "UnsortedSegmentMax",
        lambda x, q: x / tf.gather(tf.math.unsorted_segment_max(x, hashed(q), 1000), hashed(q)),
    ),
    "distinct keys": (
        "UnsortedSegmentSum",
        lambda x, q: (
            x / tf.gather(tf.math.unsorted_segment_sum(x, (found := tf.unique(q))[1], tf.size(found[0])), found[1])
        ),
    ),
    "counts of keys": (
        "UniqueWithCounts",
        lambda x, q: x / tf.cast(tf.gather((found := tf.unique_with_counts(q))[2], found[1]), F),
    ),
    "TensorScatterMax": (
        "TensorScatterMax",
        lambda x, q: (
            x - tf.gather_nd(tf.tensor_scatter_nd_max(tf.zeros([1000]), hashed(q)[:, None], x), hashed(q)[:, None])
        ),
    ),
    "ScatterNd": (
        "ScatterNd",
        lambda x, q: x - tf.gather(tf.scatter_nd(hashed(q)[:, None], x, [1000]), hashed(q)),
    ),
    "Bincount": (
        "Bincount",
        lambda x, q: tf.gather(raw.Bincount(arr=tf.cast(hashed(q), INT), size=1000, weights=x), hashed(q)),
    ),
}


def pushed(x: Any) -> Any:
    """Two lists by `TensorListPushBack`, one of which is longer, and a shape by the other's length."""
    empty = raw.EmptyTensorList(element_shape=[-1, 3], max_num_elements=10, element_dtype=F)
    once = raw.TensorListPushBack(input_handle=empty, tensor=x)
    twice = raw.TensorListPushBack(input_handle=once, tensor=2 * x)
    stacked = raw.TensorListStack(input_handle=twice, element_shape=[-1, 3], element_dtype=F)
    return tf.reshape(stacked, tf.stack([raw.TensorListLength(input_handle=once), count_of(x), -1]))[0]


def parted(x: Any, function: Function) -> Any:
    """The rows with a function of those that begin with a positive number."""
    parts = tf.cast(x[:, 0] > 0, INT)
    rest, positive = tf.dynamic_partition(x, parts, 2)
    return tf.dynamic_stitch(tf.dynamic_partition(tf.range(count_of(x)), parts, 2), [rest, function(positive)])


def unknown(x: Any) -> Any:
    """What the table does not know: each row by twice the unit matrix."""
    return tf.linalg.solve(tf.tile(2 * tf.eye(3)[None], [count_of(x), 1, 1]), x[:, :, None])[:, :, 0]


MIXED: Mapping[str, tuple[str, Function] | tuple[str, Function, *tuple[Input, ...]]] = {
    # The four models of the issue.
    "sparse to the longest row": (
        "SparseToDense",
        lambda x: tf.reduce_mean(
            tf.sparse.to_dense(tf.io.parse_example(x, {"clicks": tf.io.VarLenFeature(F)})["clicks"]), 1
        ),
        CLICKS,
    ),
    "words to the longest row": ("RaggedTensorToTensor", lambda x: tf.strings.split(x).to_tensor(), TEXTS),
    "a condition over the batch": (
        "StatelessIf",
        lambda x: tf.cond(tf.reduce_max(tf.abs(x)) > 1, lambda: x * 2, lambda: x),
    ),
    # Their relatives.
    "ragged feature to the longest row": (
        "RaggedTensorToTensor",
        lambda x: ragged_ids(x).to_tensor(),
        WORD_IDS,
    ),
    "dense feature of the longest row": (
        "ParseExampleV2",
        lambda x: tf.io.parse_example(x, {"ids": tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)})[
            "ids"
        ],
        WORD_IDS,
    ),
    "characters to the longest row": (
        "RaggedTensorToTensor",
        lambda x: tf.strings.unicode_decode(x, "UTF-8").to_tensor(),
        TEXTS,
    ),
    "words after an unknown operation to the longest row": (
        "RaggedTensorToTensor",
        lambda x: tf.ragged.map_flat_values(
            lambda words: tf.strings.bytes_split(words).row_lengths(), tf.strings.split(x)
        ).to_tensor(),
        TEXTS,
    ),
    "an embedding without an entry for the last rows": (
        "SparseSegmentMean",
        lambda x: embedded(x, safe=False),
        examples(ids=[[1], [2, 4], [], [1, 2, 3], [4], []]),
    ),
    "a switch over the batch": (
        "StatelessCase",
        lambda x: tf.switch_case(tf.cast(tf.reduce_max(x) > 1, INT), [lambda: x, lambda: -x]),
    ),
    "a loop until the batch is done": (
        "StatelessWhile",
        lambda x: tf.while_loop(lambda y: tf.reduce_max(tf.abs(y)) > 1, lambda y: [y / 2], [x])[0],
    ),
    # Reductions and their kind.
    "Sum": ("Sum", lambda x: x + tf.reduce_sum(x, 0)),
    "Sum of all": ("Sum", lambda x: x + tf.reduce_sum(x)),
    "Max, negative axis": ("Max", lambda x: x - tf.reduce_max(x, -2, keepdims=True)),
    "Softmax of a vector": ("Softmax", lambda x: tf.nn.softmax(x), VECTOR),
    "Softmax over the rows": ("Softmax", lambda x: tf.transpose(tf.nn.softmax(tf.transpose(x)))),
    "ArgMax": ("ArgMax", lambda x: x + tf.cast(tf.argmax(x, 0), F)),
    "Cumsum": ("Cumsum", lambda x: tf.cumsum(x)),
    "TopKV2 of a vector": ("TopKV2", lambda x: x - tf.math.top_k(x, 1)[0], VECTOR),
    "L2 over the rows": ("Sum", lambda x: tf.math.l2_normalize(x, 0)),
    "the mean by the number of rows": ("RealDiv", lambda x: x / tf.cast(count_of(x), F)),
    "batch statistics": (
        "FusedBatchNormV3",
        lambda x: tf.compat.v1.nn.fused_batch_norm(x, [1.0, 2, 3], [0.0, 1, 2])[0],
        IMAGE,
    ),
    "a range of the whole batch": (
        "QuantizeAndDequantizeV2",
        lambda x: raw.QuantizeAndDequantizeV2(input=x, input_min=0.0, input_max=0.0),
    ),
    "MatMul with itself": ("MatMul", lambda x: tf.matmul(tf.matmul(x, x, transpose_b=True), x)),
    "MatMul over the rows": ("MatMul", lambda x: x + tf.matmul(x, x, transpose_a=True)[0]),
    "Einsum over the rows": ("Einsum", lambda x: tf.einsum("ij,kj->ik", x, x)),
    "Einsum that sums the rows": ("Einsum", lambda x: x + tf.einsum("ij,ij->j", x, x)),
    "Conv2D over the rows": (
        "Conv2D",
        lambda x: tf.nn.conv2d(tf.transpose(x, [1, 0, 2, 3]), FILTERS, 1, "SAME")[0],
        IMAGE,
    ),
    # Places.
    "broadcasting rows against rows": ("Mul", lambda x: tf.reduce_sum(x[:, None] * x[None, :], -1), VECTOR),
    "a column and a row": ("Sub", lambda x: tf.reduce_max(x - tf.transpose(x), 1), Input(F, (1,))),
    "a constant for each row": ("AddV2", lambda x: x + tf.constant([[1.0], [2.0]])),
    "a vector and a constant vector": ("AddV2", lambda x: x + tf.constant([1.0, 2.0]), VECTOR),
    "Concat along the rows": ("ConcatV2", lambda x: tf.concat([x, x], 0)),
    "Concat with a constant": ("ConcatV2", lambda x: tf.concat([x, tf.constant([[1.0]])], 1)),
    "the first row": ("StridedSlice", lambda x: x - x[:1]),
    "all but the first row": ("StridedSlice", lambda x: x[1:]),
    "rows in steps": ("StridedSlice", lambda x: x[::2]),
    "Slice of rows": ("Slice", lambda x: tf.slice(x, [0, 0], [1, 3])),
    "as many entries as rows": (
        "StridedSlice",
        lambda x: tf.reduce_sum(x[:, : count_of(x)], 1),
        Input(F, (9,)),
    ),
    "Reshape to a fixed number of rows": ("Reshape", lambda x: tf.reshape(x, [3, -1])),
    "Reshape across the rows": (
        "Reshape",
        lambda x: tf.reshape(x, tf.stack([3, count_of(x)])),
    ),
    "Transpose and reshape": (
        "Reshape",
        lambda x: tf.reshape(tf.transpose(x), tf.shape(x)),
    ),
    "Squeeze of whatever is 1": ("Squeeze", lambda x: tf.squeeze(x), Input(F, (1, 3))),
    "part of the rows": (
        "Mean",
        lambda x: parted(x, lambda part: part - tf.reduce_mean(part, 0)),
    ),
    **{
        f"{operation} of what is not known": (operation, lambda x, reduce=reduce: x - reduce(unknown(x)))
        for operation, reduce in (
            ("Max", lambda y: tf.reduce_max(y, 0)),
            ("Mean", lambda y: tf.reduce_mean(y, [0, 1])),
            ("Sum", lambda y: tf.reduce_sum(y)),
            ("ArgMax", lambda y: tf.cast(tf.argmax(y, 0), F)),
            ("L2Loss", tf.nn.l2_loss),
            ("Cumsum", lambda y: tf.cumsum(y, 0)),
            ("MatMul", lambda y: tf.matmul(y, y, transpose_a=True)[:1]),
        )
    },
    "L2Loss": ("L2Loss", lambda x: x / tf.nn.l2_loss(x)),
    "a real transform of the rows": (
        "RFFT",
        lambda x: tf.abs(tf.transpose(raw.RFFT(input=tf.transpose(x), fft_length=[2]))),
    ),
    "rows as blocks of an image": (
        "BatchToSpaceND",
        lambda x: raw.BatchToSpaceND(input=x, block_shape=[2, 2], crops=[[0, 0], [0, 0]]),
        IMAGE,
    ),
    "crosses of the longest row": (
        "SparseToDense",
        lambda x, y: crossed("SparseCrossHashed", y, sparse=sparse_words(x)),
        TEXTS,
        Input(tf.string, (2,)),
    ),
    "crosses across the rows": (
        "SparseCrossV2",
        lambda x: crossed("SparseCrossV2", tf.transpose(x)),
        Input(tf.string, (2,)),
    ),
    "Reverse": ("ReverseV2", lambda x: tf.reverse(x, [0])),
    "ReverseSequence of the rows": (
        "ReverseSequence",
        lambda x: tf.reverse_sequence(x, [2, 1, 2], seq_axis=0, batch_axis=1),
    ),
    "Roll": ("Roll", lambda x: tf.roll(x, 1, 0)),
    "Pad": ("Pad", lambda x: tf.pad(x, [[1, 0], [0, 0]])),
    "Tile of the rows": ("Tile", lambda x: tf.tile(x, [2, 1])),
    "Tile of constants": (
        "Tile",
        lambda x: tf.tile(tf.constant([[1.0], [2.0]]), [count_of(x), 1]),
    ),
    "Unpack along the rows": (
        "Pack",
        lambda x: tf.stack([x, tf.zeros([2, 3])]),
    ),
    "Gather of rows": ("GatherV2", lambda x: tf.gather(x, [0, 0])),
    "Gather of rows by rows": ("GatherV2", lambda x, n: tf.gather(x, n), Input(), Input(INT, (), [0] * 6)),
    "GatherNd of rows": ("GatherNd", lambda x: tf.gather_nd(x, [[0], [0]])),
    "counts over the rows": (
        "DenseBincount",
        lambda x: x + raw.DenseBincount(input=x, size=4, weights=tf.constant([], INT))[1],
        Input(INT, (), [1, 0, 1, 2, 1, 3]),
    ),
    "segments of rows": ("SegmentSum", lambda x: tf.math.segment_sum(x, [0] * 3 + [1] * 3)),
    # Lists that grow.
    **{
        f"a list that grows, {name}": (
            "Reshape",
            grown(lambda array, x: tf.reshape(array.stack(), [count_of(x), -1]), how, **options),
        )
        for name, how, options in (
            ("unrolled", "range", {}),
            ("from nothing", "range", {"size": 0}),
            ("in a loop", "loop", {}),
            ("in a loop, from nothing, with a shape", "loop", {"size": 0, "element_shape": [None, 3]}),
        )
    },
    "a list that grows, by its size": (
        "Reshape",
        grown(lambda array, x: tf.reshape(array.stack(), tf.stack([count_of(x), array.size() * 3]))),
    ),
    "a list that grew twice": ("Reshape", pushed),
    "a list that each row writes to and reads": ("StatelessWhile", lambda x: carried(x)),
    "a list that each row adds to": ("StatelessWhile", lambda x: counted(x)),
    "a product of numbers of rows": (
        "Prod",
        lambda x: x * tf.cast(tf.reduce_prod(tf.stack([count_of(x), count_of(x)])), F),
    ),
    # A condition over the batch, forgotten by what pads.
    "a condition over the batch before ragged rows": (
        "StatelessIf",
        lambda x: (
            (words := tf.strings.split(x))
            .with_values(
                tf.cond(
                    tf.reduce_any(words.values == "dd"),
                    lambda: tf.strings.upper(words.values),
                    lambda: tf.strings.lower(words.values),
                )
            )
            .to_tensor(shape=[None, 4])
        ),
        TEXTS,
    ),
    "a condition over the batch in a sparse constant": (
        "StatelessIf",
        lambda x: (
            x
            + tf.sparse.to_dense(
                tf.SparseTensor([[0]], tf.cond(tf.reduce_max(x) > 1, lambda: 1.0, lambda: 0.0)[None], [1])
            )
        ),
    ),
    "a bound of several entries that the batch has": (
        "MatMul",
        lambda x: tf.reduce_sum(x[:, :1] + tf.minimum(0.0, tf.maximum(0.0, tf.matmul(x, x, transpose_b=True))), 1),
    ),
    # Groups by a key of the rows.
    **{
        f"groups by a key, {name}": (op, by_key, Input(F, ()), texts(b"a", b"b", b"a", b"c", b"b", b"a"))
        for name, (op, by_key) in GROUPED.items()
    },
    # Outputs.
    "entries of the rows": ("GatherV2", lambda x: tf.boolean_mask(x, x[:, 0] > 0)),
    "a constant": ("Const", lambda x: tf.constant([1.0, 2])),
    "time first": ("Transpose", lambda x: tf.transpose(x)),
    "two outputs of a row": ("Reshape", lambda x: tf.reshape(x, [-1, 1])),
    # Loops over rows.
    "map_fn with the mean of all": ("Mean", lambda x: tf.map_fn(lambda row: row - tf.reduce_mean(x), x)),
    "scan": ("StatelessWhile", lambda x: tf.scan(lambda a, row: a + row, x)),
    "map_fn of a neighbour": (
        "TensorListGetItem",
        lambda x: neighbours(x),
    ),
}


def neighbours(x: Any) -> Any:
    """A loop over the rows in which each row sees the first."""
    rows = tf.TensorArray(F, size=count_of(x), clear_after_read=False).unstack(x)
    outputs = tf.TensorArray(F, size=count_of(x))
    _, outputs = tf.while_loop(
        lambda i, _: i < count_of(x), lambda i, out: (i + 1, out.write(i, rows.read(i) + rows.read(0))), [0, outputs]
    )
    return outputs.stack()


UNPROVEN: Mapping[str, tuple[Function, *tuple[Input, ...]]] = {
    "parts of the rows put together again": (lambda x: parted(x, lambda part: part * 2),),
    "a reduction of other dimensions of what is not known": (
        lambda x: (
            tf.reduce_max(unknown(x), 1)
            + tf.reduce_sum(unknown(x), -1)
            + tf.cumsum(unknown(x), 1)[:, 0]
            + tf.matmul(unknown(x), WEIGHTS)[:, 0]
        ),
    ),
    "blocks against the mean of all": (lambda x: in_blocks(x, lambda y: y - tf.reduce_mean(y, 0)), IMAGE),
    "blocks beside each other": (
        lambda x: in_blocks(x, lambda y: tf.nn.conv2d(y, FILTERS, 1, "VALID") + tf.nn.conv2d(-y, FILTERS, 1, "VALID")),
        IMAGE,
    ),
    "blocks of another shape": (lambda x: dilated(x, (4, 1)), IMAGE),
    "an operation that is not in the table": (tf.linalg.inv, Input(F, (3, 3))),
    **{
        f"numbers of rows as {dtype.name}": (
            lambda x, dtype=dtype: tf.gather(x, tf.cast(tf.cast(tf.range(count_of(x)), dtype), INT)),
        )
        for dtype in (tf.bool, tf.int8, tf.uint8, tf.int16, tf.float16, tf.bfloat16, F)
    },
    "places of distinct values as bool": (
        lambda x: tf.gather(tf.gather(WEIGHTS, (found := tf.unique(x)).y), tf.cast(tf.cast(found.idx, tf.bool), INT)),
        Input(INT, ()),
    ),
    "rows and entries of rows": (lambda x: tf.reshape(x, [-1, 1]) + tf.reshape(x, [-1, 3])[:, :1],),
    "rows by their number": (lambda x: x + tf.cast(tf.range(count_of(x)), F)[:, None],),
    "a reshape that the sizes do not settle": (lambda x: tf.reshape(x, [-1, 6]), Input(F, (None, 3))),
}


def carried(x: Any) -> Any:
    """A loop over the rows that keeps the last row in a list of its own."""
    rows = tf.TensorArray(F, size=count_of(x)).unstack(x)
    last = tf.TensorArray(F, size=1, clear_after_read=False).write(0, tf.zeros([3]))

    def turn(i: Any, last: Any, out: Any) -> Any:
        row = rows.read(i)
        return i + 1, last.write(0, row), out.write(i, row + last.read(0))

    *_, out = tf.while_loop(lambda i, *_: i < count_of(x), turn, [0, last, tf.TensorArray(F, size=count_of(x))])
    return out.stack()


def counted(x: Any) -> Any:
    """A loop over the rows that adds to a list in each turn."""
    rows = tf.TensorArray(F, size=count_of(x)).unstack(x)
    empty = raw.EmptyTensorList(element_shape=tf.constant([], INT), max_num_elements=100, element_dtype=F)

    def turn(i: Any, ones: Any, out: Any) -> Any:
        return i + 1, raw.TensorListPushBack(input_handle=ones, tensor=1.0), out.write(i, rows.read(i))

    _, ones, out = tf.while_loop(lambda i, *_: i < count_of(x), turn, [0, empty, tf.TensorArray(F, size=count_of(x))])
    return out.stack() * tf.cast(raw.TensorListLength(input_handle=ones), F)
