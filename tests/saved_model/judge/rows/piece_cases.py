"""Functions of texts, examples, ragged and sparse structures, branches and loops that keep rows apart."""

from __future__ import annotations

import tensorflow as tf

from tests.saved_model.judge.rows.cases import (
    CUBE,
    INT,
    INTS,
    NUMBERS,
    OPEN,
    PAIR,
    TABLE,
    TEXTS,
    WEIGHTS,
    WORD_IDS,
    F,
    S,
    along_time,
    count_of,
    counted_segments,
    crossed,
    embedded,
    grown,
    list_of_rows,
    looped,
    raw,
    segments,
    sparse_ids,
    sparse_segments,
    sparse_words,
)
from tests.saved_model.judge.rows.graphs import Case, Input, examples, named

PIECES: list[Case] = [
    # Texts and examples.
    *named(
        {
            "texts": (
                lambda x: [
                    tf.strings.lower(x),
                    tf.strings.upper(x),
                    tf.strings.strip(x),
                    tf.strings.length(x),
                    tf.strings.to_hash_bucket_fast(x, 7),
                    tf.strings.to_hash_bucket_strong(x, 7, [1, 2]),
                    raw.StringToHashBucket(string_tensor=x, num_buckets=7),
                    raw.StaticRegexReplace(input=x, pattern="b", rewrite="q"),
                    raw.RegexReplace(input=x, pattern="b", rewrite="q"),
                    raw.StaticRegexFullMatch(input=x, pattern="b.*"),
                    raw.RegexFullMatch(input=x, pattern="b.*"),
                    tf.strings.substr(x, 0, 0),
                    tf.strings.join([x, "-", x]),
                    tf.io.decode_base64(tf.io.encode_base64(x)),
                    tf.strings.unicode_transcode(x, "UTF-8", "UTF-16-BE"),
                    raw.DecodeCompressed(bytes=x),
                ],
                TEXTS,
            ),
            "UnicodeScript": (lambda x: tf.strings.unicode_script(x + 100), INTS),
            "numbers": (lambda x: [tf.strings.to_number(x), tf.strings.as_string(tf.strings.to_number(x))], NUMBERS),
            "ReadFile": (lambda x: tf.strings.join([x, raw.ReadFile(filename="/dev/null")]), TEXTS),
            "DecodeRaw": (
                lambda x: [tf.io.decode_raw(tf.strings.substr(tf.strings.join([x, "12345678"]), 0, 8), F)],
                TEXTS,
            ),
            "DecodePaddedRaw": (lambda x: tf.io.decode_raw(x, tf.uint8, fixed_length=8), TEXTS),
            "DecodeCSV": (
                lambda x: tf.io.decode_csv(tf.strings.join([x, ",b"]), [[0.0], ["z"]]),
                NUMBERS,
            ),
            "split to a fixed width": (
                lambda x: [
                    tf.strings.split(x).to_tensor(shape=[None, 2]),
                    tf.strings.split(x).to_tensor("?", shape=[None, 5]),
                ],
                TEXTS,
            ),
            "StringSplit": (
                lambda x: tf.sparse.to_dense(
                    tf.SparseTensor(
                        (parts := raw.StringSplit(input=x, delimiter=" ")).indices,
                        parts.values,
                        tf.stack([parts.shape[0], tf.constant(9, tf.int64)]),
                    ),
                    default_value="",
                ),
                TEXTS,
            ),
            "UnicodeDecode": (
                lambda x: [
                    tf.strings.unicode_decode(x, "UTF-8").to_tensor(shape=[None, 3]),
                    tf.strings.unicode_decode_with_offsets(x, "UTF-8")[1].to_tensor(shape=[None, 3]),
                    tf.strings.unicode_encode(tf.strings.unicode_decode(x, "UTF-8"), "UTF-8"),
                    tf.strings.unicode_decode(x, "UTF-8").row_lengths(),
                ],
                TEXTS,
            ),
            "StringNGrams": (
                lambda x: raw.RaggedTensorToTensor(
                    shape=tf.constant([-1, 3], tf.int64),
                    values=(
                        grams := raw.StringNGrams(
                            data=tf.strings.as_string(
                                (parts := raw.UnicodeDecode(input=x, input_encoding="UTF-8")).char_values
                            ),
                            data_splits=parts.row_splits,
                            separator=" ",
                            ngram_widths=[2],
                            left_pad="",
                            right_pad="",
                            pad_width=0,
                            preserve_short_sequences=False,
                        )
                    ).ngrams,
                    default_value="",
                    row_partition_tensors=[grams.ngrams_splits],
                    row_partition_types=["ROW_SPLITS"],
                ),
                TEXTS,
            ),
            "counts within each text": (
                lambda x: tf.math.bincount(
                    tf.strings.to_hash_bucket_fast(tf.strings.split(x), 5), minlength=5, maxlength=5, axis=-1
                ),
                TEXTS,
            ),
            "row splits of row numbers": (lambda x: tf.strings.split(x).row_lengths(), TEXTS),
            "RaggedBincount": (
                lambda x: raw.RaggedBincount(
                    splits=(parts := raw.UnicodeDecode(input=x, input_encoding="UTF-8")).row_splits,
                    values=parts.char_values % 4,
                    size=4,
                    weights=tf.constant([], F),
                ),
                TEXTS,
            ),
            "ParseExampleV2": (
                lambda x: tf.io.parse_example(x, {"ids": tf.io.FixedLenFeature([1], tf.int64, [7])})["ids"],
                examples(ids=[[1], [2], [], [1], [4], [0]]),
            ),
            "ParseExample": (
                lambda x: (
                    raw.ParseExample(
                        serialized=x,
                        names=tf.constant([], S),
                        sparse_keys=[],
                        dense_keys=[tf.constant("ids")],
                        dense_defaults=[tf.constant([7], tf.int64)],
                        sparse_types=[],
                        dense_shapes=[[1]],
                    ).dense_values
                ),
                examples(ids=[[1], [2], [], [1], [4], [0]]),
            ),
            "ParseExampleV2 with ragged features": (
                lambda x: tf.io.parse_example(x, {"ids": tf.io.RaggedFeature(tf.int64)})["ids"].to_tensor(
                    shape=[None, 2]
                ),
                WORD_IDS,
            ),
            "SparseToDense of a fixed width": (
                lambda x: tf.sparse.to_dense(
                    tf.SparseTensor(
                        (ids := sparse_ids(x)).indices,
                        ids.values,
                        tf.stack([ids.dense_shape[0], tf.constant(3, tf.int64)]),
                    )
                ),
                WORD_IDS,
            ),
            "SparseTensorDenseMatMul": (
                lambda x: tf.sparse.sparse_dense_matmul(
                    tf.SparseTensor(
                        (ids := sparse_ids(x)).indices,
                        tf.cast(ids.values, F),
                        tf.stack([ids.dense_shape[0], tf.constant(3, tf.int64)]),
                    ),
                    WEIGHTS,
                ),
                WORD_IDS,
            ),
            "embeddings combined": (lambda x: [embedded(x, how) for how in ("sum", "mean", "sqrtn")], WORD_IDS),
            "DynamicPartition": (
                lambda x: [
                    tf.math.unsorted_segment_sum(tf.gather(x, places), places, count_of(x))
                    for places in tf.dynamic_partition(tf.range(count_of(x)), tf.cast(x[:, 0] > 0, INT), 2)
                ],
                Input(),
            ),
            "SparseReorder": (
                lambda x: tf.sparse.to_dense(
                    tf.sparse.reorder(
                        tf.sparse.SparseTensor(
                            (ids := sparse_ids(x)).indices, ids.values, [tf.shape(x, tf.int64)[0], 3]
                        )
                    )
                ),
                WORD_IDS,
            ),
            **{
                f"{name} of as many entries in each row": (
                    lambda x, y, name=name: crossed(name, tf.as_string(x), y),
                    INTS,
                    Input(S, (2,)),
                )
                for name in ("SparseCross", "SparseCrossV2", "SparseCrossHashed")
            },
            **{
                f"{name} of sparse entries": (
                    lambda x, y, name=name: crossed(name, y, sparse=sparse_words(x), width=12),
                    TEXTS,
                    Input(S, (2,)),
                )
                for name in ("SparseCross", "SparseCrossV2", "SparseCrossHashed")
            },
            "SparseReshape": (
                lambda x: tf.nn.safe_embedding_lookup_sparse(
                    TABLE, tf.sparse.reshape(ids := sparse_ids(x), ids.dense_shape)
                ),
                WORD_IDS,
            ),
            **{
                name: (segments(name), WORD_IDS)
                for name in ("SegmentSum", "SegmentMean", "SegmentMax", "SegmentMin", "SegmentProd")
            },
            **{
                f"Unsorted{name}": (counted_segments(f"Unsorted{name}"), WORD_IDS)
                for name in ("SegmentSum", "SegmentMax", "SegmentMin", "SegmentProd")
            },
            **{
                f"SparseSegment{name}": (sparse_segments(f"SparseSegment{name}", False), WORD_IDS)
                for name in ("Sum", "Mean", "SqrtN")
            },
            **{
                f"SparseSegment{name}": (sparse_segments(f"SparseSegment{name}", True), WORD_IDS)
                for name in ("SumWithNumSegments", "MeanWithNumSegments", "SqrtNWithNumSegments")
            },
            "Unique put back": (
                lambda x: tf.gather(tf.gather(TABLE, (found := tf.unique(x)).y), found.idx),
                Input(INT, ()),
            ),
            **{
                f"{name} put back": (
                    lambda x, take=take: tf.gather(tf.gather(TABLE, (found := take(x))[0]), found[1]),
                    Input(INT, ()),
                )
                for name, take in {
                    "UniqueV2": lambda x: raw.UniqueV2(x=x, axis=[0]),
                    "UniqueWithCounts": tf.unique_with_counts,
                    "UniqueWithCountsV2": lambda x: raw.UniqueWithCountsV2(x=x, axis=[0]),
                }.items()
            },
            "numbers of rows as int64": (
                lambda x: tf.gather(x, tf.cast(tf.cast(tf.range(count_of(x)), tf.int64), INT)),
                Input(),
            ),
            "counts of a constant size": (
                lambda x: tf.math.bincount(x, minlength=5, maxlength=5, axis=-1, dtype=F),
                Input(INT, (4,)),
            ),
            "a list that grows": (grown(lambda ta, x: tf.transpose(ta.stack(), [1, 0, 2])), Input()),
            "Where per row": (
                lambda x: raw.UnsortedSegmentSum(
                    data=tf.gather(x, (places := tf.where(x[:, 0] > 0))[:, 0]),
                    segment_ids=places[:, 0],
                    num_segments=count_of(x),
                ),
                Input(),
            ),
        }
    ),
    # Branches and loops.
    *named(
        {
            "a condition on a constant": lambda x: tf.cond(tf.reduce_sum(TABLE) > 0, lambda: x, lambda: -x),
            "a condition on there being rows": lambda x: tf.cond(tf.size(x) > 0, lambda: x * 2, lambda: x),
            "a loop along time": (along_time, OPEN),
            "a list along time": (list_of_rows, CUBE),
            "map_fn": looped(lambda row: tf.sort(row) / (1 + tf.reduce_max(tf.abs(row)))),
            "map_fn with a branch": looped(lambda row: tf.cond(row[0] > 0, lambda: row, lambda: -row)),
            "map_fn with a loop": looped(
                lambda row: tf.while_loop(lambda y: y[0] > 1, lambda y: [y / 2], [tf.abs(row)])[0]
            ),
            "map_fn on texts": (looped(lambda text: tf.strings.to_number(text)), NUMBERS),
            "map_fn parsing": (
                looped(
                    lambda one: tf.io.parse_single_example(one, {"ids": tf.io.FixedLenFeature([], tf.int64, 3)})["ids"],
                    tf.int64,
                ),
                examples(ids=[[1], [2], [], [1], [4], [0]]),
            ),
            "map_fn over two": (
                lambda x, y: tf.map_fn(lambda pair: pair[0] * pair[1], (x, y), fn_output_signature=F),
                *PAIR,
            ),
            "a call": lambda x: tf.function(lambda y: y * 2)(x),
            "switch_case": lambda x: tf.switch_case(tf.cast(TABLE[0, 0], INT) * 0, [lambda: x, lambda: -x]),
        }
    ),
]
